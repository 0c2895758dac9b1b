//! The connection of one nsqd to an nsqlookupd.
//!
//! The connections that announce one address form a ring, so that lists have one entry for them.

mod answer;
mod session;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::table::numbered;
use super::{Event, Shared, TableFull};
use crate::macros::trace_state;
use crate::session::{Awaited, Closed, Fault};
use crate::time::Instant;
use crate::wire::nsqd::ErrorCode;
use crate::wire::nsqlookupd::{
    CommandDecoder, Item, NodeInfoScanner, OwnedNodeInfo, emit_refusal, emit_reply,
};

use answer::Answer;

/// The address of an unknown caller.
const NOBODY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// The slot of an nsqd: its connection, and after IDENTIFY the nsqd.
#[derive(Debug)]
pub(super) struct Producer {
    state: State,
    why: Option<Closed>,
    pending_event: Option<PendingEvent>,
    remote: SocketAddr,
    decoder: CommandDecoder,
    scanner: NodeInfoScanner,
    /// A serial number that no other nsqd, topic or channel has; 0 before IDENTIFY.
    serial: u32,
    /// The time of the last IDENTIFY or PING.
    pub(super) last_update: Instant,
    /// In Identified: the next connection in the ring of those that announce the same address.
    twin: u16,
    /// In Greeting, the deadline of IDENTIFY; in Closing, the time to abort; in Identified, the
    /// time of the last command.
    step: Instant,
    /// The deadline of the nsqd to read, while an answer waits to be written.
    write: Instant,
    answer: Answer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    /// No connection.
    Free,
    /// Connected, before IDENTIFY.
    Greeting,
    /// IDENTIFY was received.
    Identified,
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PendingEvent {
    Identified { listed: bool },
    Left { listed: bool },
}

impl Producer {
    pub(super) const FREE: Self = Self {
        state: State::Free,
        why: None,
        pending_event: None,
        remote: NOBODY,
        decoder: CommandDecoder::new(0),
        scanner: NodeInfoScanner::new(),
        serial: 0,
        last_update: Instant::ZERO,
        twin: 0,
        step: Instant::NEVER,
        write: Instant::NEVER,
        answer: Answer::NONE,
    };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self = Self {
        state: State::Free,
        why: Some(Closed::ZERO),
        pending_event: Some(PendingEvent::Identified { listed: false }),
        remote: NOBODY,
        decoder: CommandDecoder::new(0),
        scanner: NodeInfoScanner::ZERO,
        serial: 0,
        last_update: Instant::ZERO,
        twin: 0,
        step: Instant::ZERO,
        write: Instant::ZERO,
        answer: Answer::ZERO,
    };

    /// Returns the nsqd and its serial number, if it has sent IDENTIFY.
    pub(super) fn node(&self) -> Option<(&OwnedNodeInfo, u32)> {
        (self.state == State::Identified).then_some((self.scanner.node(), self.serial))
    }

    pub(super) const fn remote(&self) -> SocketAddr {
        self.remote
    }

    pub(super) fn poll_event(&mut self, index: usize) -> Option<Event> {
        Some(match self.pending_event.take()? {
            PendingEvent::Identified { listed } => Event::Identified { index, listed },
            PendingEvent::Left { listed } => {
                Event::Left { index, why: self.why.unwrap_or(Closed::Local), listed }
            }
        })
    }

    /// Returns a key that orders connections by the time of their last command.
    pub(super) fn last_received(&self) -> (Instant, u32) {
        (self.step, self.serial)
    }

    /// Returns whether the nsqd identified itself after `serial` was issued.
    pub(super) fn is_after(&self, serial: u32) -> bool {
        self.serial.wrapping_sub(serial).cast_signed() > 0
    }

    fn has_address(&self, node: &OwnedNodeInfo) -> bool {
        self.node().is_some_and(|(is, _)| {
            is.tcp_port == node.tcp_port && is.broadcast_address == node.broadcast_address
        })
    }

    #[cfg(feature = "async")]
    pub(super) fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    fn set_state(&mut self, state: State) {
        trace_state!("producer", self.state, state);
        self.state = state;
    }
}

/// The session of an nsqd's connection to the TCP port, with protocol V1.
///
/// Made for each call by [`Nsqlookupd::client`](super::Nsqlookupd::client); the state is in the
/// nsqlookupd.
#[derive(Debug)]
pub struct ProducerSession<'s, 'a> {
    pub(super) producers: &'s mut [Producer],
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) id: usize,
}

impl ProducerSession<'_, '_> {
    fn producer(&mut self) -> Option<&mut Producer> {
        self.producers.get_mut(self.id)
    }

    /// Removes producer `id` from the lists and begins to close its connection.
    fn leave(&mut self, now: Instant, id: usize, why: Closed) {
        let timeout = self.shared.config.close_timeout;
        let is_identified = self.producers.get(id).is_some_and(|it| it.state == State::Identified);
        let listed = is_identified && self.unlink(id);
        let Some(producer) = self.producers.get_mut(id) else { return };
        if is_identified {
            self.shared.tables.forget(now, id);
            producer.pending_event = Some(PendingEvent::Left { listed });
        }
        producer.why = Some(why);
        producer.step = now.after(timeout);
        producer.write = Instant::NEVER;
        producer.set_state(State::Closing);
        self.shared.tables.changed();
    }

    /// Adds this connection to the ring of its address. Returns whether there are others.
    fn link_twins(&mut self) -> bool {
        let id = self.id;
        let Some((node, _)) = self.producers.get(id).and_then(Producer::node) else { return false };
        let twin = numbered(self.producers, 0)
            .find(|(other, producer)| *other != id && producer.has_address(node));
        let twin = twin.map(|(other, _)| other);
        let twin = twin.and_then(|other| self.producers.get_mut(other));
        let next = twin.map(|twin| core::mem::replace(&mut twin.twin, id as u16));
        if let Some(producer) = self.producers.get_mut(id) {
            producer.twin = next.unwrap_or(id as u16);
        }
        next.is_some()
    }

    /// Removes a connection from the ring of its address. Returns whether there are others.
    fn unlink(&mut self, id: usize) -> bool {
        let Some(producer) = self.producers.get(id) else { return false };
        let next = producer.twin;
        let before = twins(self.producers, id).skip(1).last().map(|(before, _)| before);
        if let Some(before) = before.and_then(|before| self.producers.get_mut(before)) {
            before.twin = next;
        }
        before.is_some()
    }

    /// Closes the connection after a refusal was staged.
    fn close_rejected(&mut self, now: Instant, code: ErrorCode) {
        self.shared.counters.refused = self.shared.counters.refused.saturating_add(1);
        self.leave(now, self.id, Closed::Fault(Fault::Refused(code)));
    }

    /// Handles IDENTIFY once its body is complete.
    fn on_identify(&mut self, now: Instant) {
        let id = self.id;
        let Some(producer) = self.producers.get_mut(id) else { return };
        if let Err(refusal) = producer.scanner.finish() {
            producer.answer.stage(|w| emit_refusal(w, &refusal));
            return self.close_rejected(now, refusal.code());
        }
        producer.serial = self.shared.tables.next_serial();
        producer.last_update = now;
        producer.answer.identify();
        producer.set_state(State::Identified);
        self.shared.counters.identified = self.shared.counters.identified.saturating_add(1);
        let listed = self.link_twins();
        if let Some(producer) = self.producers.get_mut(id) {
            producer.pending_event = Some(PendingEvent::Identified { listed });
        }
        self.replace_silent(now);
    }

    /// Closes the older connections of this address that have been silent for long: the nsqd has
    /// reconnected, and its old connection is dead.
    fn replace_silent(&mut self, now: Instant) {
        while let Some(silent) = self.silent_twin(now) {
            self.shared.counters.replaced = self.shared.counters.replaced.saturating_add(1);
            self.leave(now, silent, Closed::Local);
        }
    }

    /// Returns an older connection of this address that has been silent for long.
    fn silent_twin(&self, now: Instant) -> Option<usize> {
        let silence_deadline = self.shared.config.replace_timeout;
        let (_, serial) = self.producers.get(self.id)?.node()?;
        let mut others = twins(self.producers, self.id).skip(1);
        let is_silent =
            |twin: &Producer| twin.step.after(silence_deadline) < now && !twin.is_after(serial);
        others.find(|(_, twin)| is_silent(twin)).map(|(id, _)| id)
    }

    /// Closes the connection that has been silent for longest, if that is long enough, after a
    /// caller was rejected.
    fn make_room(&mut self, now: Instant) {
        let identified = numbered(self.producers, 0).filter(|(_, is)| is.node().is_some());
        let Some((id, silent)) = identified.min_by_key(|(_, is)| is.last_received()) else {
            return;
        };
        if silent.step.after(self.shared.config.replace_timeout) <= now {
            self.shared.wants_room = false;
            self.shared.counters.timed_out = self.shared.counters.timed_out.saturating_add(1);
            self.leave(now, id, Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)));
        }
    }

    fn on_item(&mut self, now: Instant, item: Item<'_>) {
        let (id, config) = (self.id, self.shared.config);
        let Some(producer) = self.producers.get_mut(id) else { return };
        if producer.state == State::Identified {
            producer.step = now;
        }
        match item {
            Item::Identify => producer.scanner = NodeInfoScanner::new(),
            Item::Body { .. } => {}
            Item::Part { data, last } => {
                // An error is answered at the end of the body, as in nsqlookupd.
                let _ = producer.scanner.feed(data);
                if last {
                    producer.step = now;
                    self.on_identify(now);
                }
            }
            Item::Ping => {
                producer.last_update = now;
                producer.answer.ok();
                self.replace_silent(now);
            }
            Item::Unregister { topic, channel } => {
                producer.answer.ok();
                self.shared.tables.unregister(now, id, &topic, channel.as_ref());
            }
            Item::Register { topic, channel } => {
                match self.shared.tables.register(now, config, id, &topic, channel.as_ref()) {
                    Ok(()) => producer.answer.ok(),
                    Err(full) => {
                        self.shared.reject_full(full);
                        producer.answer.stage(|w| emit_reply(w, no_room(full)));
                    }
                }
            }
        }
    }
}

/// Returns the answer to REGISTER without room. nsqlookupd has no such answer, because its tables
/// are not bounded. Not fatal: the other registrations of the nsqd stay.
fn no_room(full: TableFull) -> &'static [u8] {
    match full {
        TableFull::Topics => b"E_REGISTER_FAILED REGISTER no room for another topic",
        TableFull::Channels | TableFull::Tombstones => {
            b"E_REGISTER_FAILED REGISTER no room for another channel"
        }
        TableFull::Share => b"E_REGISTER_FAILED REGISTER no room for more of one node",
    }
}

/// Returns the connections that announce the address of the identified connection `of`, which is
/// the first.
pub(super) fn twins(
    producers: &[Producer],
    of: usize,
) -> impl Iterator<Item = (usize, &Producer)> + Clone {
    let next = move |at: &usize| {
        let next = producers.get(*at)?.twin.into();
        (next != of).then_some(next)
    };
    let ring = core::iter::successors(Some(of), next).take(producers.len());
    ring.filter_map(|at| Some((at, producers.get(at)?)))
}
