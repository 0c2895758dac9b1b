//! Publishing to nsqd: an outbox and one connection that empties it.
//!
//! [`Publisher`] accepts messages into a bounded outbox and sends them to one of several nsqds. It
//! forms batches by itself: pending messages of one topic leave as one MPUB, a single message as
//! PUB at once, a deferred one as DPUB. A message is resolved, with an [`Outcome`], exactly once.
//! Until then it is sent again after every lost connection: at least once, in order, never silently
//! lost.
//!
//! ```text
//!            dial            open             answered            AUTH answered
//! Waiting ---------> Dialing ----> Identifying -------> Authenticating ------> Ready
//!    ^                  |               |      \________________________________^ |
//!    |                  | refused       | fault, timeout      no AUTH required    |
//!    +------------------+<--- Closing <-+------------------------------------------+
//! ```
//!
//! # Bounds
//!
//! | what | bound | when full |
//! |---|---|---|
//! | messages | the ring that the user lends: 4 bytes + the body each, 16 + the topic's length for each change of topic, deferral or deadline | refused, or the oldest dropped: [`Full`] |
//! | commands in flight | [`FLIGHTS_MAX`] | messages wait for the next batch |
//! | one MPUB | [`Config::batch_bytes`], [`Config::batch_messages`] | the rest leaves in the next batch |
//! | remembered exceptions | 4 ranges | the oldest reads [`Outcome::Forgotten`] |
//! | the text of an error of nsqd | 64 bytes | cut off |
//!
//! # Refusals
//!
//! | nsqd refuses | effect |
//! |---|---|
//! | the connection (TLS or AUTH required, the secret) | messages stay pending; that nsqd is left out for [`Config::left_out_for`], reported as [`Event::LeftOut`] |
//! | the topic, or a deferral | the batch is [rejected](Outcome::Rejected) |
//! | a message on its own, for its body | the message is rejected |
//! | a batch for a message in it, or twice for any other reason | half as many messages leave at once, down to one message each |
//! | a message on its own for any other reason | the message is sent again, after a wait |
//!
//! Batches grow again as nsqd accepts them: to double after each, below the refused length; and
//! without a bound from the first heartbeat of a connection that has lasted for 10 s. A refused
//! batch counts no possible duplicates, since nsqd stores nothing of it, with one exception: after
//! `E_MPUB_FAILED` nsqd may have stored the first part (its disk is full, or it exits:
//! `PutMessages` in nsqd/topic.go), and that part counts. The nsqd of this project stores a batch
//! whole or not at all; the text of its refusal shows that (no room, or messages that never fit).

mod config;
mod connection;
// Public for the fuzz target that compares the outbox with a model; no part of the API.
#[doc(hidden)]
pub mod outbox;
mod outcome;
mod status;
#[cfg(test)]
mod tests;

use heapless::Vec;

pub use config::{Config, ConfigError, Full, RING_MIN};
pub use outbox::RING_MAX;
pub use outcome::{Outcome, Ticket};
pub use status::{Counters, Event, PublishError, PublishOptions, State};

use crate::address::Address;
use crate::name::TopicName;
use crate::session::handshake::Handshake;
use crate::session::{Closed, LinkState};
use crate::time::{Instant, Jitter, Span};
use crate::wire::nsqd;
use connection::bit;
use outbox::{Flights, Outbox, PushError};
use outcome::Exceptions;
use status::Tally;

/// The most commands in flight: sent and not answered.
pub const FLIGHTS_MAX: usize = 4;

/// The most bytes of an error's text that are kept.
const DETAIL_MAX: usize = 64;

/// The longest deferral, one hour: nsqd's `--max-req-timeout`.
pub const DEFER_MAX: Span = Span::from_secs(3600);

/// Deadlines are rounded up to a multiple of this, 131 ms, so that messages published close
/// together still leave together.
const DEADLINE_STEP_MICROS: u64 = 1 << 17;

/// The length of the longest response that is evaluated, and one more, so that longer ones differ.
const WORD_MAX: usize = nsqd::HEARTBEAT.len() + 1;

/// Bytes for the longest head of a command: a NOP, `DPUB`, the longest name and deferral.
const TX_BUFFER: usize = 96;

/// Publishes to nsqd. See the [module](self).
///
/// RAM: at most 808 bytes beside the ring and the borrowed configuration.
// In this order because a Cortex-M0 reaches only the first 31 bytes, 62 half words and 124 bytes of
// a structure in one instruction.
#[derive(Debug)]
#[repr(C)]
pub struct Publisher<'a> {
    /// The head staged last is that of a PUB without a NOP.
    staged_pub: bool,
    /// The nsqd in use or next to dial, and how many nsqds failed in this round.
    current: u8,
    failed: u8,
    /// A connection that came up in this round was not good.
    short: bool,
    /// How often the batch at head was refused.
    refusals: u8,
    /// The next batch is smaller than the refused one, and leaves without a wait.
    shrunk: bool,
    /// Stages the head of the command being written in `tx_buffer`.
    handshake: Handshake,
    config: &'a Config<'a>,
    /// Changes whenever a waiting task should check its condition again.
    version: u32,
    /// How many messages, from the oldest on, were in a batch that was refused.
    suspects: u32,
    /// The most messages in a batch, and a number that nsqd refused.
    most: u32,
    too_many: u32,
    /// Body of the command being written: its index in the ring, and how many bytes are left.
    body_index: usize,
    body_left: usize,
    /// With batches in flight: when nsqd is given up unless it answers, or accepts more bytes.
    reply: Instant,
    outbox: Outbox<'a>,
    /// The batches in flight; the newest may be half written.
    flights: Flights,
    exceptions: Exceptions,
    counters: Tally,
    nsqds: &'a [Address],
    jitter: Jitter,
    polled: u64,
    /// When the nsqds that are left out are dialed again, and a bit for each of them.
    again: Instant,
    left_out: [u8; 32],
    /// The newest change of the connection, if the application has not polled it.
    pending_event: Option<PendingEvent>,
    /// The start of the response being read: enough to recognize OK and heartbeats.
    word: Vec<u8, WORD_MAX, u8>,
    tx_buffer: [u8; TX_BUFFER],
    /// The text of the last error, or of the one being read.
    detail: Vec<u8, DETAIL_MAX, u8>,
}

#[derive(Debug, Clone, Copy)]
enum PendingEvent {
    Connected,
    Disconnected(u8, Closed),
}

impl<'a> Publisher<'a> {
    /// Creates a publisher that dials the first of `nsqds` at once, and the others when it fails.
    ///
    /// `ring` is the outbox. Its messages are lost when the publisher is dropped.
    pub fn new(
        config: &'a Config<'a>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Result<Self, ConfigError> {
        let mut publisher = Self::idle();
        publisher.set_up(config, nsqds, ring)?;
        Ok(publisher)
    }

    /// Creates a publisher without a ring and addresses, for [`set_up`](Self::set_up).
    // Parts of zeros are constants: they are cleared in place, and flash holds no image of them.
    #[inline(always)]
    pub(crate) const fn idle() -> Self {
        const NONE: Config<'_> = Config::new();
        Self {
            staged_pub: false,
            current: 0,
            failed: 0,
            short: false,
            handshake: Handshake::PUBLISHER,
            config: &NONE,
            version: 0,
            suspects: 0,
            most: u32::MAX,
            too_many: u32::MAX,
            refusals: 0,
            shrunk: false,
            body_index: 0,
            body_left: 0,
            reply: Instant::NEVER,
            outbox: Outbox::new(&mut []),
            flights: const { Flights::new() },
            exceptions: const { Exceptions::new() },
            counters: Tally::NONE,
            nsqds: &[],
            jitter: Jitter::new(0),
            polled: 0,
            again: Instant::NEVER,
            left_out: [0; 32],
            pending_event: None,
            word: Vec::new(),
            tx_buffer: [0; TX_BUFFER],
            detail: Vec::new(),
        }
    }

    /// Gives an idle publisher its settings; see [`new`](Self::new).
    pub(crate) fn set_up(
        &mut self,
        config: &'a Config<'a>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Result<(), ConfigError> {
        config.check(nsqds.len(), ring.len())?;
        self.config = config;
        self.nsqds = nsqds;
        self.outbox.set_ring(ring);
        self.jitter = Jitter::new(config.seed);
        Ok(())
    }

    /// Accepts a message at once, connected or not.
    ///
    /// The body, of 1 byte up to what the ring holds, is copied once, to where it is sent from.
    /// nsqd itself refuses bodies above its `--max-msg-size` (1 MiB): [`Outcome::Rejected`].
    pub fn publish(&mut self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        self.publish_with(topic, body, PublishOptions { defer: None, deadline: None })
    }

    /// Accepts a message with a deferral or a deadline at once, connected or not.
    pub fn publish_with(
        &mut self,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        let taken = self.offer(topic, body, options);
        if matches!(taken, Err(PublishError::Full)) {
            self.counters.refused = self.counters.refused.wrapping_add(1);
        }
        taken
    }

    /// As [`publish_with`](Self::publish_with), but does not count [`PublishError::Full`]: for a
    /// caller that waits for room.
    #[inline(never)]
    pub(crate) fn offer(
        &mut self,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        if body.is_empty() {
            return Err(PublishError::Empty);
        }
        if options.defer.is_some_and(|defer| defer > DEFER_MAX) {
            return Err(PublishError::DeferTooLong);
        }
        if self.is_stopped() {
            return Err(PublishError::Stopped);
        }
        let expiry = match options.deadline {
            Some(at) => Instant::from_micros(at.as_micros() | (DEADLINE_STEP_MICROS - 1)),
            None => Instant::NEVER,
        };
        loop {
            match self.outbox.push(topic, body, options.defer, expiry) {
                Ok(number) => return Ok(Ticket(number)),
                Err(PushError::TooLarge { max }) => return Err(PublishError::TooLarge { max }),
                Err(PushError::Full) => {}
            }
            if matches!(self.config.full, Full::Refuse) || !self.drop_oldest() {
                return Err(PublishError::Full);
            }
        }
    }

    /// Closes the connection after the command that is being written, until
    /// [`resume`](Self::resume).
    ///
    /// Messages that nsqd has not acknowledged by then stay pending: to avoid that, wait for
    /// [`Counters::pending`] to reach 0 first.
    pub fn stop(&mut self, now: Instant) {
        match self.handshake.state() {
            LinkState::Idle => {}
            LinkState::Waiting => {
                self.handshake.rest();
                self.changed();
            }
            _ => self.close(now, Closed::Local),
        }
    }

    /// Dials again after [`stop`](Self::stop), at once; pending messages are sent. Without effect
    /// unless the state is [`State::Stopped`].
    pub fn resume(&mut self) {
        if self.handshake.state() == LinkState::Idle {
            self.handshake.wait(Instant::ZERO);
            self.changed();
        }
    }

    /// Returns the outcome of a message; `None` while the message is pending.
    pub fn outcome(&self, ticket: Ticket) -> Option<Outcome> {
        self.exceptions.outcome(ticket.0, self.outbox.first())
    }

    /// Returns the counters since the start.
    pub fn counters(&self) -> Counters {
        let Tally {
            acknowledged,
            rejected,
            expired,
            dropped,
            refused,
            possible_duplicates,
            late,
            pubs,
            mpubs,
            connections,
            failures,
            heartbeats,
        } = self.counters;
        let accepted = self.outbox.end();
        let settled =
            acknowledged.saturating_add(rejected).saturating_add(expired).saturating_add(dropped);
        Counters {
            accepted,
            acknowledged,
            rejected,
            expired,
            dropped,
            pending: accepted.saturating_sub(settled),
            refused,
            possible_duplicates,
            late,
            connections,
            failures,
            heartbeats,
            pubs,
            mpubs,
        }
    }

    /// Returns the next event; call it until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        match self.pending_event.take() {
            Some(PendingEvent::Connected) => {
                return Some(Event::Connected { nsqd: self.current.into() });
            }
            Some(PendingEvent::Disconnected(nsqd, Closed::Fault(why))) if why.is_permanent() => {
                return Some(Event::LeftOut { nsqd: nsqd.into(), why });
            }
            Some(PendingEvent::Disconnected(nsqd, why)) => {
                return Some(Event::Disconnected { nsqd: nsqd.into(), why });
            }
            None => {}
        }
        let count = self.exceptions.take_overlooked();
        if count > 0 {
            return Some(Event::Forgotten { count });
        }
        if let Some(failed) = self.exceptions.poll() {
            let first = Ticket(failed.first);
            return Some(Event::Failed { first, count: failed.count, outcome: failed.outcome });
        }
        let below = self.outbox.first();
        (self.polled < below).then(|| {
            self.polled = below;
            Event::Resolved { below: Ticket(below) }
        })
    }

    /// Returns the state of the connection.
    pub fn state(&self) -> State {
        match self.handshake.state() {
            LinkState::Idle => State::Stopped,
            LinkState::Waiting => match self.handshake.why() {
                Some(Closed::Fault(why)) if self.is_left_out(self.current.into()) => {
                    State::LeftOut(why)
                }
                _ => State::Waiting,
            },
            LinkState::Dialing => State::Dialing,
            LinkState::Upgrading => State::Upgrading,
            LinkState::Identifying => State::Identifying,
            LinkState::Authenticating => State::Authenticating,
            LinkState::Closing => State::Closing(self.handshake.why().unwrap_or(Closed::Local)),
            // A publisher enters only `Ready` of these.
            LinkState::Subscribing
            | LinkState::Asking
            | LinkState::Ready
            | LinkState::Draining
            | LinkState::Leaving => State::Ready,
        }
    }

    /// Returns why the connection is closing, or why it was lost or did not come up last.
    pub fn last_closed(&self) -> Option<Closed> {
        self.handshake.why()
    }

    /// Returns whether [`stop`](Self::stop) was called.
    fn is_stopped(&self) -> bool {
        match self.handshake.state() {
            LinkState::Idle => true,
            LinkState::Closing => matches!(self.handshake.why(), Some(Closed::Local)),
            _ => false,
        }
    }

    /// Returns whether the nsqd at index `nsqd` is left out because of a permanent refusal.
    fn is_left_out(&self, nsqd: usize) -> bool {
        let bits = self.left_out.get(nsqd >> 3).copied().unwrap_or_default();
        bits & bit(nsqd) != 0
    }

    /// Returns the nsqd in use, or the next to dial.
    pub fn nsqd(&self) -> Option<&'a Address> {
        self.nsqds.get(usize::from(self.current))
    }

    /// Returns how many bytes of the outbox are in use.
    pub fn outbox_used(&self) -> usize {
        self.outbox.used()
    }

    /// Returns nsqd's text of the last error, cut off at 64 bytes.
    pub fn detail(&self) -> &str {
        match core::str::from_utf8(&self.detail) {
            Ok(text) => text,
            // The cut may be inside a character.
            Err(error) => self
                .detail
                .get(..error.valid_up_to())
                .and_then(|text| core::str::from_utf8(text).ok())
                .unwrap_or_default(),
        }
    }

    /// Returns a value that changes when a message is resolved or the connection changes, so that a
    /// waiting task should check its condition again.
    pub fn version(&self) -> u32 {
        self.version
    }

    fn drop_oldest(&mut self) -> bool {
        let before = self.outbox.first() as u32;
        let Some(number) = self.outbox.drop_oldest() else { return false };
        self.exceptions.add(number, 1, Outcome::Dropped);
        self.version = self.version.wrapping_add(1);
        self.counters.dropped = self.counters.dropped.wrapping_add(1);
        self.clear_suspects(before);
        true
    }
}
