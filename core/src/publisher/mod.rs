//! Publishing to nsqd: an outbox and one connection that empties it.
//!
//! [`Publisher`] takes messages into a bounded [`Outbox`] and brings them to one of several
//! nsqds. It batches by itself: what waits for one topic leaves as one MPUB, a single message as
//! PUB at once, a deferred one as DPUB. A message is resolved, with an [`Outcome`], exactly once;
//! until then it is sent again after every lost connection: at least once, in order, never
//! silently lost.
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
//! | messages | the ring that the user lends | refused, or the oldest dropped: [`Full`] |
//! | commands on the wire | [`FLIGHTS_MAX`] | the next waits, growing as a batch |
//! | one MPUB | [`Config::batch_bytes`], [`Config::batch_messages`] | the rest goes in the next |
//! | remembered exceptions | [`EXCEPTIONS_MAX`] ranges | the oldest reads [`Outcome::Forgotten`] |
//! | nsqd's error text | [`DETAIL_MAX`] bytes | cut off |
//!
//! # Refusals
//!
//! | nsqd refuses | what becomes of it |
//! |---|---|
//! | the connection (TLS or AUTH required, the secret) | nothing of the messages: that nsqd is left out for [`Config::left_out_for`], which is [`Event::LeftOut`] |
//! | the topic, or a deferral | the batch is [rejected](Outcome::Rejected) |
//! | a message on its own, for its body | it is rejected |
//! | a batch for a message in it, or twice for whatever else | half as many leave at once, down to one message each |
//! | a message on its own for whatever else | it is sent again, after a wait |
//!
//! Batches grow again as nsqd takes them: to double after each, below the length that was refused, and
//! without a bound again at the first heartbeat of a connection that has lasted for 10 s. A refused batch counts no possible duplicates: nsqd stores nothing of it, with one
//! exception. After `E_MPUB_FAILED` nsqd may have stored the first part (its disk is full, or it exits:
//! `PutMessages` in nsqd/topic.go), and that part counts. A node of ours says that there is no room, or
//! that the messages never fit, and has stored nothing.

mod config;
pub mod outbox;
mod outcome;
#[cfg(test)]
mod tests;

use core::fmt;

use embedded_io::Write;
use heapless::Vec;

pub use config::{Config, ConfigError, Full, RING_MIN};
pub use outbox::{Batch, Flight, HEADER_OVERHEAD, Outbox, PushError, RECORD_OVERHEAD, RING_MAX};
pub use outcome::{EXCEPTIONS_MAX, Outcome, Ticket};

use crate::address::Address;
use crate::name::TopicName;
use crate::session::handshake::{
    CloseReason, Handshake, LinkState, Received, is_cut_off, is_nothing_stored,
};
use crate::session::{Awaited, Closed, Fault, Link, Session, Transmit};
use crate::time::{Attempts, Instant, Jitter, Span, expire};
use crate::wire::nsqd::{self, ErrorCode, FramePart, FrameType, Meaning};
use outbox::Flights;
use outcome::Exceptions;

/// The most commands that wait for nsqd's answer.
pub const FLIGHTS_MAX: usize = 4;

/// The most bytes kept of an error's text.
pub const DETAIL_MAX: usize = 64;

/// The longest deferral, one hour: nsqd's `--max-req-timeout`.
pub const DEFER_MAX: Span = Span::from_secs(3600);

/// The most bytes that a [`Publisher`] takes.
pub const RAM_MAX: usize = 808;

/// Deadlines are rounded up to a multiple of this, 131 ms, so that messages published close
/// together still leave together.
const DEADLINE_STEP_MICROS: u64 = 1 << 17;

/// One more than the longest response that means something.
const WORD_MAX: usize = nsqd::HEARTBEAT.len() + 1;

/// Holds the head of every command: `DPUB`, the longest name, the longest deferral, and a NOP.
const TX_BUFFER: usize = 96;

/// Publishes to nsqd. See the [module](self).
///
/// RAM: at most [`RAM_MAX`] bytes beside the ring and the borrowed configuration.
// In this order because a Cortex-M0 reaches only the first 31 bytes, 62 half words and 124 bytes of
// a structure in one instruction.
#[derive(Debug)]
#[repr(C)]
pub struct Publisher<'a> {
    /// The head being written, or written last, is that of a plain PUB.
    staged_pub: bool,
    /// The nsqd in use or next to try, and how many failed in this round.
    current: u8,
    failed: u8,
    /// One that came up in this round was not good.
    short: bool,
    attempts: Attempts,
    /// What is staged is the head of the command being written.
    handshake: Handshake,
    config: &'a Config<'a>,
    /// Counts changes that may be worth waking somebody for.
    version: u32,
    /// So many messages from the oldest on were in a batch that was refused.
    suspects: u32,
    /// The most messages in a batch, and so many were too many.
    most: u32,
    too_many: u32,
    /// How often the batch at head was refused.
    refusals: u8,
    /// A smaller batch is to be tried without a wait.
    shrunk: bool,
    /// Body of the command being written: where in the ring, how much is left.
    body_index: usize,
    body_left: usize,
    /// Batches on the wire: when nsqd has neither answered nor taken more.
    reply: Instant,
    outbox: Outbox<'a>,
    /// The newest may be half written.
    flights: Flights,
    exceptions: Exceptions,
    counters: Tally,
    nsqds: &'a [Address],
    jitter: Jitter,
    polled: u64,
    /// When those that are left out are dialed again; a bit for each of them.
    again: Instant,
    left_out: [u8; 32],
    /// The newest change of the connection, if nobody polled it yet.
    pending_event: Option<PendingEvent>,
    /// What nsqd says in the response being read, as far as it takes to know OK and heartbeats.
    word: Vec<u8, WORD_MAX, u8>,
    tx_buffer: [u8; TX_BUFFER],
    /// What nsqd said in its last error, or says in the one being read.
    detail: Vec<u8, DETAIL_MAX, u8>,
}

/// How to publish one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PublishOptions {
    /// nsqd holds the message back for so long, up to [`DEFER_MAX`] (DPUB). Deferred messages
    /// leave one by one.
    pub defer: Option<Span>,
    /// Give the message up if nsqd has not acknowledged it by then, or up to 131 ms later.
    pub deadline: Option<Instant>,
}

/// Why a message was not accepted. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PublishError {
    /// The outbox is full. Try again when messages were acknowledged, or wait for room.
    Full,
    /// The message never fits into the outbox.
    TooLarge {
        /// The longest body that fits, in bytes, with this topic.
        max: usize,
    },
    /// nsqd takes no empty message.
    Empty,
    /// The deferral is above [`DEFER_MAX`].
    DeferTooLong,
    /// [`Publisher::stop`] was called.
    Stopped,
}

/// What the application should know. Newer changes of the connection replace older ones that
/// nobody polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// Ready to publish.
    Connected {
        /// Which of the nsqd addresses.
        nsqd: usize,
    },
    /// The connection is gone or did not come up; another attempt is due.
    Disconnected {
        /// Which of the nsqd addresses.
        nsqd: usize,
        /// CloseReason; [`Publisher::detail`] has nsqd's own words.
        why: Closed,
    },
    /// This nsqd refused in a way that no repetition cures, and is left out for
    /// [`Config::left_out_for`]; the others are used meanwhile. Instead of `Disconnected`, each time.
    LeftOut {
        /// Which of the nsqd addresses.
        nsqd: usize,
        /// CloseReason, and what to do; [`Publisher::detail`] has nsqd's own words.
        why: Fault,
    },
    /// These messages were not acknowledged, and never will be.
    Failed {
        /// The first of them.
        first: Ticket,
        /// How many, counting up from `first`.
        count: u32,
        /// Not [`Outcome::Acknowledged`].
        outcome: Outcome,
    },
    /// So many more messages were not acknowledged; which ones is forgotten, since nobody polled
    /// while more than [`EXCEPTIONS_MAX`] ranges failed.
    Forgotten {
        /// How many.
        count: u32,
    },
    /// Every message before this ticket is final, and was acknowledged unless
    /// [`Event::Failed`] named it or [`Event::Forgotten`] counted it.
    Resolved {
        /// The first that is not.
        below: Ticket,
    },
}

/// What happened so far. `accepted = acknowledged + rejected + expired + dropped + pending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Messages taken into the outbox.
    pub accepted: u64,
    /// Messages that nsqd confirmed.
    pub acknowledged: u64,
    /// Messages that nsqd refused for good.
    pub rejected: u64,
    /// Messages whose deadline passed.
    pub expired: u64,
    /// Messages that made room for newer ones.
    pub dropped: u64,
    /// Messages not final yet.
    pub pending: u64,
    /// Calls of `publish` refused because the outbox was full. A message tried again counts again.
    pub refused: u64,
    /// Messages that were wholly written when their connection broke, so that sending them again
    /// may have made a duplicate each: there are at most this many duplicates in nsqd.
    pub possible_duplicates: u64,
    /// Expired messages that nsqd confirmed afterwards.
    pub late: u64,
    /// Connections that became ready.
    pub connections: u32,
    /// Dials that failed and connections that broke or were given up.
    pub failures: u32,
    /// Heartbeats of nsqd that were answered.
    pub heartbeats: u32,
    /// PUB and DPUB commands begun.
    pub pubs: u64,
    /// MPUB commands begun.
    pub mpubs: u64,
}

/// [`Counters`] less what can be derived.
#[derive(Debug)]
struct Tally {
    acknowledged: u64,
    rejected: u64,
    expired: u64,
    dropped: u64,
    refused: u64,
    possible_duplicates: u64,
    late: u64,
    pubs: u64,
    mpubs: u64,
    connections: u32,
    failures: u32,
    heartbeats: u32,
}

impl Tally {
    const NONE: Self = Self {
        acknowledged: 0,
        rejected: 0,
        expired: 0,
        dropped: 0,
        refused: 0,
        possible_duplicates: 0,
        late: 0,
        pubs: 0,
        mpubs: 0,
        connections: 0,
        failures: 0,
        heartbeats: 0,
    };
}

/// Where the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum State {
    /// No connection; the next dial is due at a time.
    Waiting,
    /// No connection: every nsqd refused in a way that no repetition cures, the last one so. They are
    /// dialed again after [`Config::left_out_for`].
    LeftOut(Fault),
    /// A dial is under way.
    Dialing,
    /// IDENTIFY is being sent, or its answer is due.
    Identifying,
    /// AUTH is being sent, or its answer is due.
    Authenticating,
    /// Messages flow.
    Ready,
    /// The driver is to close the connection.
    Closing(Closed),
    /// [`Publisher::stop`] was called and the connection is gone.
    Stopped,
}

#[derive(Debug, Clone, Copy)]
enum PendingEvent {
    Connected,
    Disconnected(u8, Closed),
}

impl<'a> Publisher<'a> {
    /// A publisher that dials the first of `nsqds` at once and the others when it fails.
    ///
    /// `ring` is the outbox. It lives as long as the publisher; with the publisher its messages
    /// are gone.
    pub fn new(
        config: &'a Config<'a>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Result<Self, ConfigError> {
        let mut publisher = Self::idle();
        publisher.set_up(config, nsqds, ring)?;
        Ok(publisher)
    }

    /// Not set up yet: without a ring and without anybody to dial.
    pub(crate) const fn idle() -> Self {
        const NONE: Config<'_> = Config::new();
        Self {
            staged_pub: false,
            current: 0,
            failed: 0,
            short: false,
            attempts: Attempts::ONE,
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
            flights: Flights::new(),
            exceptions: Exceptions::new(),
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

    /// Makes an idle one work; see [`new`](Self::new).
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

    /// Takes a message, at once and whether connected or not.
    ///
    /// The body, 1 byte to what the ring holds, is copied once, to where it is sent from. nsqd
    /// itself refuses bodies above its `--max-msg-size` (1 MiB): [`Outcome::Rejected`].
    pub fn publish(&mut self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        self.publish_with(topic, body, PublishOptions { defer: None, deadline: None })
    }

    /// Takes a message with a deferral or a deadline, at once and whether connected or not.
    pub fn publish_with(
        &mut self,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        let taken = self.offer(topic, body, options);
        if matches!(taken, Err(PublishError::Full)) {
            self.counters.refused = self.counters.refused.saturating_add(1);
        }
        taken
    }

    /// As [`publish_with`](Self::publish_with), but a refusal is not counted: for a caller that
    /// waits for room.
    #[inline(never)]
    pub fn offer(
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

    /// Closes the connection for good after the command that is being written.
    ///
    /// Messages not acknowledged by then stay pending: wait for [`Counters::pending`] to reach 0
    /// first.
    pub fn stop(&mut self, now: Instant) {
        match self.handshake.state() {
            LinkState::Idle => {}
            LinkState::Waiting => {
                self.handshake.deadline = Instant::NEVER;
                self.set_state(LinkState::Idle);
            }
            _ => self.close(now, Closed::Local),
        }
    }

    /// What became of a message; `None` while that is open.
    pub fn outcome(&self, ticket: Ticket) -> Option<Outcome> {
        self.exceptions.outcome(ticket.0, self.outbox.first())
    }

    /// What happened so far.
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

    /// The next thing to tell; call until `None`.
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

    /// Where the connection is.
    pub fn state(&self) -> State {
        match self.handshake.state() {
            LinkState::Idle => State::Stopped,
            LinkState::Waiting => match self.handshake.why {
                CloseReason::Closed(Closed::Fault(why))
                    if self.is_left_out(self.current.into()) =>
                {
                    State::LeftOut(why)
                }
                _ => State::Waiting,
            },
            LinkState::Dialing => State::Dialing,
            LinkState::Identifying => State::Identifying,
            LinkState::Authenticating => State::Authenticating,
            LinkState::Closing => State::Closing(self.handshake.why.get().unwrap_or(Closed::Local)),
            // It neither subscribes nor is left.
            LinkState::Subscribing
            | LinkState::Ready
            | LinkState::Draining
            | LinkState::Leaving => State::Ready,
        }
    }

    /// Whether [`stop`](Self::stop) was called.
    fn is_stopped(&self) -> bool {
        match self.handshake.state() {
            LinkState::Idle => true,
            LinkState::Closing => matches!(self.handshake.why, CloseReason::Closed(Closed::Local)),
            _ => false,
        }
    }

    /// Whether an nsqd, by its place among the addresses, refused in a way that no repetition cures
    /// and is left out.
    pub fn is_left_out(&self, nsqd: usize) -> bool {
        let bits = self.left_out.get(nsqd >> 3).copied().unwrap_or_default();
        bits & bit(nsqd) != 0
    }

    /// The nsqd in use, or the next to try.
    pub fn nsqd(&self) -> Option<&'a Address> {
        self.nsqds.get(usize::from(self.current))
    }

    /// The outbox, to see how full it is.
    pub fn outbox(&self) -> &Outbox<'a> {
        &self.outbox
    }

    /// nsqd's own words for the last error, cut off at [`DETAIL_MAX`] bytes.
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

    /// Changes when a message is resolved or the connection comes or goes: whether it is worth
    /// asking again.
    pub fn version(&self) -> u32 {
        self.version
    }

    fn drop_oldest(&mut self) -> bool {
        let before = self.outbox.first();
        let Some(number) = self.outbox.drop_oldest() else { return false };
        self.exceptions.add(number, 1, Outcome::Dropped);
        self.version = self.version.wrapping_add(1);
        self.counters.dropped = self.counters.dropped.saturating_add(1);
        self.clear_suspects(before);
        true
    }

    fn set_state(&mut self, state: LinkState) {
        self.handshake.set_state(state);
        self.changed();
    }

    fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Asks the driver to close the connection.
    #[cold]
    #[inline(never)]
    fn close(&mut self, now: Instant, why: Closed) {
        if !matches!(why, Closed::Local) {
            self.abort_in_flight(why);
        }
        self.reply = Instant::NEVER;
        self.handshake.close(&why, now, self.config.close_timeout);
        self.changed();
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        self.close(now, Closed::Fault(fault));
        Err(fault)
    }

    /// Nothing is on the wire any more: all of it is to be sent again.
    fn abort_in_flight(&mut self, why: Closed) {
        let half_written = self.is_half_written();
        // nsqd runs no command after one that it refused.
        let refused = match why {
            Closed::Fault(fault) => fault.is_permanent() || matches!(fault, Fault::Refused(_)),
            _ => false,
        };
        if !refused {
            let whole = self.flights.len().saturating_sub(half_written.into());
            for flight in self.flights.iter().take(whole) {
                let count = u64::from(flight.count());
                self.counters.possible_duplicates =
                    self.counters.possible_duplicates.saturating_add(count);
            }
        }
        self.flights.clear();
        let before = self.outbox.first();
        self.outbox.rewind();
        self.clear_suspects(before);
        self.handshake.staging.clear();
        self.handshake.nops = 0;
        self.staged_pub = false;
        self.body_left = 0;
    }

    /// Whether the newest batch is: its records leave last. A NOP may be on its way without one.
    fn is_half_written(&self) -> bool {
        self.body_left > 0
    }

    fn is_writing(&self) -> bool {
        self.handshake.staging.is_writing() || self.body_left > 0
    }

    /// Puts the next command's head into the staging area.
    // Apart, so that a call that finds nothing to do is short.
    #[inline(never)]
    fn stage(&mut self, now: Instant) {
        match self.handshake.state() {
            LinkState::Ready => self.stage_batch(now),
            LinkState::Identifying | LinkState::Authenticating => {
                self.handshake.stage_command(&mut self.tx_buffer, self.config);
            }
            _ => self.handshake.staging.clear(),
        }
    }

    fn stage_batch(&mut self, now: Instant) {
        let batch = if self.flights.is_full() {
            None
        } else {
            let Config { batch_messages, batch_bytes, .. } = *self.config;
            self.outbox.next_batch(batch_messages.min(self.most), batch_bytes)
        };
        let nop = self.handshake.nops > 0;
        let Some(batch) = batch else {
            if nop {
                self.stage_head(None);
            }
            return;
        };
        let is_pub = !nop && batch.count() == 1 && batch.defer().is_none();
        if is_pub && self.staged_pub && batch.same_context() {
            // The head of a PUB to the same topic is there already.
            self.handshake.staging.rewind();
        } else {
            self.stage_head(Some(&batch));
            self.staged_pub = is_pub;
        }
        let commands =
            if batch.count() == 1 { &mut self.counters.pubs } else { &mut self.counters.mpubs };
        *commands = commands.wrapping_add(1);
        self.body_index = batch.index();
        self.body_left = batch.bytes() as usize;
        if self.flights.is_empty() {
            self.expect(now);
        }
        self.flights.push(batch.into());
    }

    #[inline(never)]
    fn stage_head(&mut self, batch: Option<&Batch>) {
        let Self { handshake: Handshake { staging, nops, .. }, tx_buffer, outbox, .. } = self;
        staging.clear();
        staging.append(tx_buffer, |w| {
            if let Some(left) = nops.checked_sub(1) {
                // Control bytes go first.
                *nops = left;
                w.write_all(nsqd::NOP)?;
            }
            let Some(batch) = batch else { return Ok(()) };
            let topic = outbox.batch_topic();
            match batch.defer() {
                Some(defer) => nsqd::emit_dpub_head(w, topic, defer.as_millis()),
                None if batch.count() == 1 => nsqd::emit_pub_head(w, topic),
                None => nsqd::emit_mpub_head(w, topic, batch.bytes(), batch.count()),
            }
        });
        self.staged_pub = false;
    }

    #[inline]
    fn on_part(&mut self, now: Instant, part: FramePart<'_>) -> Result<(), Fault> {
        let is_ok = part.first && part.last && matches!(part.data, b"OK");
        if is_ok
            && matches!(
                (part.frame_type, self.handshake.state()),
                (FrameType::Response, LinkState::Ready)
            )
        {
            // What nearly every frame is.
            return self.on_ok(now);
        }
        self.on_rare_part(now, part)
    }

    #[inline(never)]
    fn on_rare_part(&mut self, now: Instant, part: FramePart<'_>) -> Result<(), Fault> {
        let text = match part.frame_type {
            FrameType::Message => return self.fail(now, Fault::UnexpectedReply),
            FrameType::Error => self.detail.as_mut_view(),
            FrameType::Response => self.word.as_mut_view(),
        };
        let until = now.after(self.config.connect_timeout);
        match self.handshake.on_part(&part, text, self.config.auth_secret.is_some(), until) {
            Received::Nothing => Ok(()),
            Received::Heartbeat => {
                self.counters.heartbeats = self.counters.heartbeats.saturating_add(1);
                if self.handshake.lasted(now) {
                    self.lift();
                }
                Ok(())
            }
            Received::Ready => {
                self.on_ready(now);
                Ok(())
            }
            Received::Response if self.word.as_slice() == nsqd::OK => self.on_ok(now),
            Received::Response => self.fail(now, Fault::UnexpectedReply),
            Received::Refusal => self.on_error(now),
            Received::Fault(fault) => self.fail(now, fault),
        }
    }

    fn on_ready(&mut self, now: Instant) {
        self.handshake.on_receive(now, self.config.heartbeat);
        self.counters.connections = self.counters.connections.saturating_add(1);
        self.pending_event = Some(PendingEvent::Connected);
        self.changed();
    }

    /// The answer of the oldest batch is due.
    fn expect(&mut self, now: Instant) {
        self.reply = now.after(self.config.reply_timeout);
    }

    /// nsqd does what it is there for: the next loss is followed by an immediate redial.
    fn prove_good(&mut self) {
        self.attempts.prove_good();
        self.failed = 0;
        self.short = false;
    }

    fn on_ok(&mut self, now: Instant) -> Result<(), Fault> {
        if self.flights.len() == 1 && self.is_half_written() {
            return self.fail(now, Fault::UnexpectedReply);
        }
        let Some(flight) = self.flights.pop() else {
            return self.fail(now, Fault::UnexpectedReply);
        };
        let (_, live) = self.resolve(&flight);
        let late = flight.count().saturating_sub(live);
        self.counters.acknowledged = self.counters.acknowledged.wrapping_add(live.into());
        self.counters.late = self.counters.late.wrapping_add(late.into());
        self.prove_good();
        self.grow(flight.count());
        if self.flights.is_empty() {
            self.reply = Instant::NEVER;
        } else {
            self.expect(now);
        }
        Ok(())
    }

    /// The oldest batch is final. Gives its first message, and how many were not final already.
    fn resolve(&mut self, flight: &Flight) -> (u64, u32) {
        let before = self.outbox.first();
        let resolved = self.outbox.resolve(flight);
        let _ = self.pass_suspects(before);
        self.refusals = 0;
        self.version = self.version.wrapping_add(1);
        resolved
    }

    /// Head moved on from message `before`. Says whether there were suspects and none is left.
    fn pass_suspects(&mut self, before: u64) -> bool {
        let (passed, were) = (self.outbox.first().saturating_sub(before), self.suspects);
        self.suspects = were.saturating_sub(passed as u32);
        were > 0 && self.suspects == 0
    }

    /// Head moved on from message `before`, though nsqd took nothing: if those that were refused are
    /// gone, all others leave as ever.
    fn clear_suspects(&mut self, before: u64) {
        if self.pass_suspects(before) {
            self.lift();
        }
    }

    /// Batches are as long as ever.
    fn lift(&mut self) {
        (self.most, self.too_many, self.refusals) = (u32::MAX, u32::MAX, 0);
    }

    /// nsqd refused a batch of so many: fewer from now on.
    fn shrink(&mut self, count: u32) {
        self.suspects = self.suspects.max(count);
        (self.most, self.too_many) = (count >> 1, count);
        self.shrunk = true;
    }

    /// nsqd took a batch of so many.
    fn grow(&mut self, count: u32) {
        let twice = self.most.saturating_mul(2);
        if count >= self.most && twice < self.too_many {
            self.most = if twice < self.config.batch_messages { twice } else { u32::MAX };
        }
    }

    /// An error frame: it concerns the oldest command on the wire, if any, and nsqd closes after
    /// it.
    #[cold]
    #[inline(never)]
    fn on_error(&mut self, now: Instant) -> Result<(), Fault> {
        let fault = self.handshake.refusal(&self.detail);
        let (code, text) = ErrorCode::parse(&self.detail);
        let about_deferral = text.starts_with(b"DPUB timeout");
        // The command was cut off on its way: nothing is wrong with its messages.
        let cut_off = is_cut_off(text);
        let in_part = !is_nothing_stored(text);
        let Some(flight) = self.flights.first() else {
            return self.fail(now, fault);
        };
        if fault.is_permanent() {
            // It is not about the messages.
            return self.fail(now, fault);
        }
        let meaning = code.meaning();
        let about_body = meaning == Meaning::Message && !cut_off;
        // Whether nsqd would refuse these messages again.
        let refused = match meaning {
            Meaning::Topic => true,
            Meaning::Message => about_body && flight.count() == 1,
            Meaning::Command => about_deferral,
            Meaning::Channel
            | Meaning::Connection
            | Meaning::Auth
            | Meaning::Temporary
            | Meaning::InFlight => false,
        };
        if refused {
            let _ = self.flights.pop();
            let (first, live) = self.resolve(&flight);
            if live > 0 {
                self.exceptions.add(first, live, Outcome::Rejected(code));
            }
            self.counters.rejected = self.counters.rejected.saturating_add(live.into());
            self.prove_good();
            // That may be what was wrong with the batches that it was in.
            self.too_many = u32::MAX;
        } else if flight.count() > 1 && !cut_off {
            self.refusals = self.refusals.saturating_add(1);
            if about_body || self.refusals > 1 || self.most < u32::MAX {
                self.shrink(flight.count());
            }
            if code == ErrorCode::Mpub && in_part {
                self.counters.possible_duplicates =
                    self.counters.possible_duplicates.saturating_add(flight.count().into());
            }
        }
        self.fail(now, fault)
    }

    /// When to dial next, and whom.
    fn next_attempt(&mut self, now: Instant, refused: bool) -> Instant {
        if expire(&mut self.again, now) {
            self.left_out = [0; 32];
        }
        let current = usize::from(self.current);
        if refused {
            if let Some(bits) = self.left_out.get_mut(current >> 3) {
                *bits |= bit(current);
            }
            if self.again == Instant::NEVER {
                self.again = now.after(self.config.left_out_for.max(Span::from_secs(1)));
            }
        } else {
            self.failed = self.failed.saturating_add(1);
        }
        let at_once = core::mem::take(&mut self.shrunk) || refused;
        if !refused && self.attempts.is_good() {
            // It was good: the same again, at once.
        } else {
            let count = self.nsqds.len();
            let left = (0..count).filter(|nsqd| !self.is_left_out(*nsqd));
            let left = left.fold(0usize, |count, _| count.saturating_add(1));
            loop {
                let next = usize::from(self.current).saturating_add(1);
                self.current = if next < count { next as u8 } else { 0 };
                if left == 0 || !self.is_left_out(self.current.into()) {
                    break;
                }
            }
            if left == 0 {
                return self.again;
            }
            if at_once || usize::from(self.failed) < left {
                return now;
            }
        }
        self.failed = 0;
        let Config { reconnect_base, reconnect_cap, reconnect_spread, .. } = *self.config;
        let spans = [reconnect_base, reconnect_cap, reconnect_spread];
        let short = core::mem::take(&mut self.short);
        now.after(self.attempts.delay(spans, short, &mut self.jitter))
    }
}

impl Session for Publisher<'_> {
    fn link(&self) -> Link {
        self.handshake.link()
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        if !self.handshake.take_dial_due(now) {
            return None;
        }
        if expire(&mut self.again, now) {
            self.left_out = [0; 32];
        }
        self.handshake.dial(now.after(self.config.connect_timeout));
        self.changed();
        self.nsqd()
    }

    fn open(&mut self, now: Instant) {
        self.abort_in_flight(Closed::Local);
        self.reply = Instant::NEVER;
        self.handshake.open(now, now.after(self.config.connect_timeout));
        self.changed();
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        if !self.handshake.state().is_up() {
            return Ok(());
        }
        self.handshake.on_receive(now, self.config.heartbeat);
        loop {
            match self.handshake.frames.next(&mut input) {
                Ok(Some(part)) => self.on_part(now, part)?,
                Ok(None) => return Ok(()),
                Err(error) => return self.fail(now, error.into()),
            }
        }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        if !self.is_writing() {
            let idle = self.handshake.nops == 0 && self.outbox.all_sent();
            if idle && matches!(self.handshake.state(), LinkState::Ready) {
                // What nearly every call finds.
                return Transmit::default();
            }
            self.stage(now);
        }
        Transmit {
            head: self.handshake.staging.pending(&self.tx_buffer),
            body: self.outbox.bytes(self.body_index, self.body_left),
        }
    }

    fn sent(&mut self, now: Instant, n: usize) {
        let batch = self.is_half_written();
        let head = self.handshake.staging.sent(n);
        let body = n.saturating_sub(head).min(self.body_left);
        self.body_left = self.body_left.saturating_sub(body);
        self.body_index = self.outbox.advance(self.body_index, body);
        if batch && n > 0 {
            // nsqd still takes it. A NOP proves nothing.
            self.expect(now);
        }
    }

    fn deadline(&self) -> Instant {
        self.handshake.deadline.min(self.reply).min(self.outbox.next_expiry())
    }

    fn tick(&mut self, now: Instant) {
        let before = self.outbox.first();
        let Self { exceptions, counters, version, .. } = self;
        self.outbox.expire(now, |first, count| {
            exceptions.add(first, count, Outcome::Expired);
            *version = version.wrapping_add(1);
            counters.expired = counters.expired.saturating_add(count.into());
        });
        self.clear_suspects(before);
        let why = if expire(&mut self.reply, now) {
            Closed::Fault(Fault::TimedOut(Awaited::Reply))
        } else if let Some(why) = self.handshake.tick(now) {
            why
        } else {
            return;
        };
        self.close(now, why);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let Some(why) = self.handshake.closed(why) else { return };
        self.abort_in_flight(why);
        self.reply = Instant::NEVER;
        if matches!(why, Closed::Local) {
            self.set_state(LinkState::Idle);
            return;
        }
        self.counters.failures = self.counters.failures.saturating_add(1);
        self.pending_event = Some(PendingEvent::Disconnected(self.current, why));
        if self.handshake.lasted(now) {
            self.prove_good();
        }
        let refused = matches!(why, Closed::Fault(fault) if fault.is_permanent());
        self.short |= self.handshake.came_up() && !refused;
        self.handshake.deadline = self.next_attempt(now, refused);
        self.set_state(LinkState::Waiting);
    }
}

/// The bit of an nsqd in its byte.
fn bit(nsqd: usize) -> u8 {
    1u8.unbounded_shl((nsqd & 7) as u32)
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the outbox is full"),
            Self::TooLarge { max } => {
                write!(f, "the message never fits into the outbox; at most {max} bytes do")
            }
            Self::Empty => f.write_str("the message is empty; nsqd takes 1 byte or more"),
            Self::DeferTooLong => f.write_str("the deferral is longer than one hour"),
            Self::Stopped => f.write_str("the publisher was stopped"),
        }
    }
}

impl core::error::Error for PublishError {}
