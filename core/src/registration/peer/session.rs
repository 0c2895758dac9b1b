//! The session of one nsqlookupd: commands to it and its replies.

use embedded_io::Write;

use super::{FindPort, HttpPortFinder, Peer, REPLY_MAX, Timer};
use crate::address::Address;
use crate::registration::registry::{PeerId, RegistryView};
use crate::registration::{Config, OUTSTANDING_MAX, PeerEvent};
use crate::session::dialed::PendingEvent;
use crate::session::{Awaited, Closed, Fault, Link, LinkState, Session, Transmit, staging};
use crate::time::{Instant, Span};
use crate::wire::DecodeError;
use crate::wire::nsqd::ErrorCode;
use crate::wire::nsqlookupd::{self, Command, ReplyDecoder, ReplyPart};

/// Once all registrations are answered and the connection is this old, the node counts as listed.
const LISTED: Span = Span::from_secs(1);

/// The session of one nsqlookupd: a peer with the registry and the settings.
///
/// Made for each call by [`Registration::peer`](crate::registration::Registration::peer); the state
/// is in the table.
#[derive(Debug)]
pub struct PeerSession<'s, 'a> {
    pub(in crate::registration) peer: &'s mut Peer,
    pub(in crate::registration) registry: RegistryView<'s>,
    pub(in crate::registration) id: PeerId,
    pub(in crate::registration) config: &'a Config<'a>,
    pub(in crate::registration) find_port: Option<FindPort>,
}

impl PeerSession<'_, '_> {
    /// Returns the newest change of this peer, unless it was polled already.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        match self.peer.dialed.take_pending_event() {
            PendingEvent::None => None,
            PendingEvent::Up => Some(PeerEvent::Connected),
            PendingEvent::Down => {
                Some(PeerEvent::Disconnected(self.peer.dialed.why().unwrap_or(Closed::Local)))
            }
        }
    }

    #[cold]
    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        self.peer.close(self.config, now, Closed::Fault(fault));
        Err(fault)
    }

    fn is_settled(&self) -> bool {
        self.peer.is_quiet() && self.registry.next_work(self.id).is_none()
    }

    /// Schedules PING, or registering everything again, when due.
    fn keep_alive(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        if peer.timers.expired(Timer::Ping, now) {
            peer.dialed.nops = peer.dialed.nops.saturating_add(1);
            peer.repeat(Timer::Ping, now, self.config.ping);
        }
        if peer.timers.expired(Timer::Reassert, now) {
            // Not while a reply is due: the replies to later commands would restart the reply timer
            // again and again, and a connection on which one reply was lost would never end.
            if peer.outstanding == 0 {
                peer.reassert = 0;
            }
            peer.repeat(Timer::Reassert, now, self.config.reassert);
        }
    }

    fn expect_reply(&mut self, now: Instant) {
        if self.peer.outstanding == 0 {
            self.peer.timers.set(Timer::Reply, now.after(self.config.reply_timeout));
        }
        self.peer.outstanding = self.peer.outstanding.saturating_add(1);
    }

    fn stage(&mut self, now: Instant) {
        self.peer.dialed.staging.clear();
        let state = self.peer.state();
        if state == LinkState::Identifying {
            self.stage_identify();
        } else if state.is_subscribed() {
            self.stage_commands(now);
        }
    }

    #[cold]
    fn stage_identify(&mut self) {
        let Peer { dialed, tx_buffer, .. } = &mut *self.peer;
        dialed.staging.stage_text(tx_buffer, |w| {
            w.write_all(&nsqlookupd::MAGIC)?;
            Command::Identify(&self.config.node).emit(w)
        });
    }

    /// Stages as many command lines as fit, pipelined: nsqlookupd answers in order.
    fn stage_commands(&mut self, now: Instant) {
        while self.peer.outstanding < OUTSTANDING_MAX {
            let room = self.peer.dialed.staging.room(&self.peer.tx_buffer);
            let (command, work) = if self.peer.dialed.nops > 0 {
                (Command::Ping, None)
            } else {
                let work = match self.registry.next_work(self.id) {
                    Some(work) => work,
                    None => {
                        let mut cursor = self.peer.reassert.into();
                        let Some(work) = self.registry.next_reassert(self.id, &mut cursor) else {
                            self.peer.reassert = u16::MAX;
                            return;
                        };
                        if self.registry.command(work).is_some_and(|c| c.encoded_len() <= room) {
                            self.peer.reassert = cursor as u16;
                        }
                        work
                    }
                };
                let Some(command) = self.registry.command(work) else { return };
                (command, Some(work))
            };
            if command.encoded_len() > room {
                return;
            }
            let Peer { dialed, tx_buffer, .. } = &mut *self.peer;
            dialed.staging.append(tx_buffer, |w| command.emit(w));
            match work {
                Some(work) => self.registry.announced(self.id, work),
                None => self.peer.dialed.nops = self.peer.dialed.nops.saturating_sub(1),
            }
            self.expect_reply(now);
        }
    }

    fn on_part(&mut self, now: Instant, part: ReplyPart<'_>) -> Result<(), Fault> {
        let identifying = self.peer.state() == LinkState::Identifying;
        if part.first {
            self.peer.detail.clear();
        }
        staging::append(&mut self.peer.detail, part.data);
        if !part.last {
            return Ok(());
        }
        if self.peer.detail.starts_with(b"E_") {
            let (code, _) = ErrorCode::parse(&self.peer.detail);
            return self.fail(now, Fault::Refused(code));
        }
        if identifying {
            return self.on_identified(now);
        }
        let Some(outstanding) = self.peer.outstanding.checked_sub(1) else {
            return self.fail(now, Fault::UnexpectedReply);
        };
        if self.peer.detail.as_slice() != b"OK" {
            return self.fail(now, Fault::UnexpectedReply);
        }
        self.peer.outstanding = outstanding;
        if outstanding > 0 {
            self.peer.timers.set(Timer::Reply, now.after(self.config.reply_timeout));
            return Ok(());
        }
        self.peer.timers.stop(Timer::Reply);
        // Also true if there was nothing to register: then PING was answered.
        self.peer.listed |= self.is_settled();
        self.peer.changed();
        if self.peer.state() == LinkState::Leaving && self.is_settled() {
            self.peer.close(self.config, now, Closed::Local);
        }
        Ok(())
    }

    fn on_identified(&mut self, now: Instant) -> Result<(), Fault> {
        if !self.peer.dialed.staging.text_is_written() {
            // IDENTIFY is not wholly written yet.
            return self.fail(now, Fault::UnexpectedReply);
        }
        // Only the port in the reply is used, which `find_port` has found.
        if self.peer.detail.first() != Some(&b'{') {
            return self.fail(now, Fault::Decode(DecodeError::BadIdentifyReply));
        }
        let peer = &mut *self.peer;
        peer.connections = peer.connections.saturating_add(1);
        peer.dialed.pending_event = PendingEvent::Up;
        peer.repeat(Timer::Ping, now, self.config.ping);
        peer.repeat(Timer::Reassert, now, self.config.reassert);
        peer.step(LinkState::Ready, Instant::NEVER);
        Ok(())
    }
}

impl Session for PeerSession<'_, '_> {
    fn link(&self) -> Link {
        self.peer.dialed.link()
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        if !self.peer.dialed.dial(self.config.connect_timeout, now) {
            return None;
        }
        self.peer.changed();
        self.peer.address.as_ref()
    }

    fn open(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        if !peer.dialed.come_up(now) {
            return;
        }
        self.registry.forget(self.id);
        peer.timers.stop_all();
        peer.replies = ReplyDecoder::new(REPLY_MAX);
        peer.http.finder = HttpPortFinder::new();
        peer.outstanding = 0;
        peer.reassert = u16::MAX;
        peer.listed = false;
        peer.step(LinkState::Identifying, now.after(self.config.connect_timeout));
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if let Some(find_port) = self.find_port
            && self.peer.state() == LinkState::Identifying
        {
            find_port(&mut self.peer.http, bytes);
        }
        let mut input = bytes;
        while self.peer.state().is_up() {
            match self.peer.replies.next(&mut input) {
                Ok(Some(part)) => self.on_part(now, part)?,
                Ok(None) => return Ok(()),
                Err(error) => return self.fail(now, error.into()),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        if !self.peer.dialed.staging.is_writing() {
            self.stage(now);
        }
        Transmit { head: self.peer.dialed.staging.pending(&self.peer.tx_buffer), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        // A transport that takes bytes shows nothing about nsqlookupd: only replies do.
        self.peer.dialed.staging.sent(n);
    }

    fn deadline(&self) -> Instant {
        self.peer.timers.next().min(self.peer.dialed.deadline)
    }

    fn tick(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        let why = if let Some(why) = peer.dialed.tick(now) {
            why
        } else if peer.timers.expired(Timer::Reply, now) {
            Closed::Fault(Fault::TimedOut(Awaited::Reply))
        } else {
            return self.keep_alive(now);
        };
        peer.close(self.config, now, why);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let peer = &mut *self.peer;
        let leaves = peer.state() == LinkState::Leaving;
        let Some(why) = peer.dialed.closed(why) else { return };
        self.registry.forget(self.id);
        peer.timers.stop_all();
        if matches!(why, Closed::Dial(_)) {
            peer.http.port = 0;
        }
        if leaves || matches!(why, Closed::Local) {
            // The next connection has nothing to do with the reason of this close.
            peer.dialed.forget_why();
        } else {
            peer.failures = peer.failures.saturating_add(1);
            if peer.listed && peer.dialed.is_old(LISTED, now) {
                peer.dialed.attempts.prove_good();
            }
        }
        if peer.address.is_some() {
            peer.wait(self.config, now);
        } else {
            peer.changed();
        }
    }
}
