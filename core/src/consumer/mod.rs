//! Consuming from nsqds: a fixed number of connections, and the messages in flight on them.
//!
//! A [`Consumer`] connects to given nsqds, to nsqds that its nsqlookupds list, or to both. It
//! requests as many messages as there is room for, keeps each in the borrowed ring until the
//! application has answered it, and sends the answer to the nsqd that delivered the message.
//!
//! ```text
//!             slot         dial           open                answered
//!  Idle -----------> Waiting -----> Dialing -----> Identifying -------> [Authenticating]
//!    ^                  ^              | refused        | fault, timeout      |
//!    |                  |              v                v                     v
//!    |                  +----------- Closing <---+--- Ready <----------- Subscribing
//!    +---- slot gone ------------------+         |      | slot gone: CLS
//!                                      ^         |      v
//!                                      +----- Leaving <--- Draining
//!                                               time is up: REQ the rest
//! ```
//!
//! # The life of a message
//!
//! nsqd delivers a message, the application takes it with [`Consumer::take`], reads it in place
//! with [`Consumer::message`], and answers it with [`finish`](Consumer::finish),
//! [`requeue`](Consumer::requeue) or [`release`](Consumer::release). nsqd waits for the answer for
//! [`Config::msg_timeout`]; [`touch`](Consumer::touch) or [`Config::auto_touch`] restarts that
//! time. If the connection is lost or the time has passed, nsqd delivers the message again, here or
//! elsewhere, and a later answer is dropped and counted: [`AnswerError::Late`].
//!
//! # RDY and backoff
//!
//! The sum of all RDY never exceeds max_in_flight or the room in the ring. nsqd does not confirm
//! RDY, so the consumer moves RDY from one connection to another only when no more messages can
//! arrive because of the old value. A message that arrives without room is requeued at once and
//! counted ([`Counters::no_room`]). The connection continues, and heartbeats are answered whatever
//! the application does.
//!
//! | connections | RDY of each |
//! |---|---|
//! | no more than max_in_flight | an equal part, the remainder one by one from the first; the part above a `max_rdy_count` goes to the others |
//! | more than max_in_flight | 1, or 0: connections take turns. An idle connection passes its turn on after two intervals ([`Config::redistribute`]), a busy one after six |
//! | any, after a failure | 0, then 1 on one connection, as in nsq's client guide: see [`Config::backoff_base`] |
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | messages in flight | the storage's `MESSAGES`, [`Config::max_in_flight`] | no more are requested |
//! | body of a message | ring length / `MESSAGES`, less 26 | takes several slots if enough adjacent ones are free, else it is requeued; longer than the whole ring, see [`TooLarge`] |
//! | connections | the storage's `CONNECTIONS` | the nsqds take turns: [`Config::rotate`]; one whose connection fails makes room at once |
//! | time to try an nsqd that fails, while others wait | [`Config::connect_timeout`], at first 1 s; given nsqds every [`Config::reconnect_base`] / 2, doubled each time all were tried up to [`Config::reconnect_cap`] / 2 | |
//! | time between queries to an nsqlookupd meanwhile | 0.5 s, doubled each time all were tried up to [`Config::lookup_interval`] / 4 | |
//! | nsqds given | 255 | [`ConfigError::Addresses`] |
//! | nsqlookupds | the [`Discovery`]'s `LOOKUPDS`, at most [`LOOKUPDS_MAX`] | [`ConfigError::Lookupds`] |
//! | an nsqlookupd's answer | none: it is scanned as it arrives | |
//! | unusable producers that are reported | as many at a time as nsqlookupds, 40 bytes of each host | counted: [`LookupdStatus::unusable`] |
//! | nsqd's error text | 56 bytes | cut off |

mod backoff;
mod config;
mod connection;
mod discovery;
mod engine;
mod in_flight;
mod leave;
mod lookupd;
mod rdy;
mod status;
mod storage;
#[cfg(test)]
mod tests;
mod unusable;

use crate::address::Address;
use crate::session::{LinkState, Session};
use crate::time::{Instant, Jitter, Span, Timers};
use crate::wire::nsqd;

pub use crate::wire::nsqd::{Message, MessageHead, MessageId};
pub use config::{Config, ConfigError, Exhausted, SLOT_MIN, TooLarge};
pub use connection::ConnectionSession;
pub use discovery::LOOKUPDS_MAX;
pub use in_flight::Token;
pub use lookupd::LookupdSession;
pub use status::{
    AnswerError, ConnectionEvent, ConnectionStatus, Counters, Delivery, Event, LookupdEvent,
    LookupdStatus,
};
pub use storage::{Discovery, Storage};
pub use unusable::{BadProducer, Unusable};

use backoff::ConsumerBackoff;
use connection::Connection;
use discovery::{NsqdTable, Round};
use engine::{Recovery, Shared, count, count_long, slower};
use in_flight::{Answer, InFlight};
use lookupd::Lookupd;
use rdy::RdyTable;
pub(crate) use storage::Tables;

/// Consumes one channel. See the [module](self).
///
/// RAM: at most 424 bytes, besides the storage, the ring and the configuration.
#[derive(Debug)]
pub struct Consumer<'a> {
    connections: &'a mut [Connection],
    lookupds: &'a mut [Lookupd],
    lookupd_addresses: &'a [Address],
    /// Set only by [`discover`](Self::discover), so that unused code is not linked.
    with_lookupd: Option<WithSession<'a>>,
    shared: Shared<'a>,
}

/// Runs a function on one of a consumer's sessions, if that index exists.
type WithSession<'a> = fn(&mut Consumer<'a>, usize, &mut dyn FnMut(&mut dyn Session));

impl<'a> Consumer<'a> {
    /// Makes a consumer of `nsqds`, which may be empty with [`discover`](Self::discover).
    ///
    /// `ring` holds the messages until they are answered, in slots of equal length, one for each
    /// message in flight, at least [`SLOT_MIN`] bytes long. Make a slot as long as a usual body,
    /// plus 26; a longer message takes several slots.
    pub fn new<const CONNECTIONS: usize, const MESSAGES: usize>(
        config: &'a Config<'a>,
        storage: &'a mut Storage<CONNECTIONS, MESSAGES>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Result<Self, ConfigError> {
        config.check(CONNECTIONS, nsqds.len(), MESSAGES, ring.len())?;
        // Another consumer may have used the storage before.
        storage.clear();
        let mut consumer = Self::unassigned(config, storage.tables(ring.len()), nsqds, ring);
        consumer.assign_given();
        if config.has_options() {
            consumer.send_options();
        }
        if nsqds.len() > CONNECTIONS {
            consumer.take_turns();
        }
        Ok(consumer)
    }

    /// As [`new`](Self::new), with checked settings and new tables. Then call
    /// [`assign_given`](Self::assign_given), and with more nsqds than connections
    /// [`take_turns`](Self::take_turns).
    #[inline(always)]
    pub(crate) fn unassigned(
        config: &'a Config<'a>,
        tables: Tables<'a>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Self {
        let Tables { connections, slots, shares, messages, tally, unit } = tables;
        Self {
            connections,
            lookupds: &mut [],
            lookupd_addresses: &[],
            with_lookupd: None,
            shared: Shared {
                config,
                nsqds: NsqdTable::new(slots, nsqds),
                given: Round::NONE,
                offers: Instant::NEVER,
                paced: Instant::ZERO,
                step_timeout: config.connect_timeout,
                reassign: None,
                leave: None,
                identify: None,
                recover: None,
                rdy: RdyTable::new(shares),
                in_flight: InFlight::new(messages, ring, unit),
                backoff: ConsumerBackoff::new(config.max_in_flight),
                timers: Timers::new(),
                jitter: Jitter::new(config.seed),
                tally,
                given_up: None,
                unusable: &mut [],
                stopping: false,
                version: 0,
                now: Instant::ZERO,
            },
        }
    }

    /// Assigns the connections to the given nsqds.
    pub(crate) fn assign_given(&mut self) {
        self.connections.iter_mut().for_each(Connection::set_up);
        self.shared.nsqds.assign_given();
        self.shared.adjust();
    }

    /// Sends IDENTIFY with the optional fields.
    pub(crate) fn send_options(&mut self) {
        self.shared.identify = Some(|config, w| {
            nsqd::emit_identify(w, &config.identify_request(), &config.identify_numbers(), &[])
        });
    }

    /// Lets the given nsqds take turns on the connections. Call this before any session is driven.
    pub(crate) fn take_turns(&mut self) {
        self.shared.may_leave();
        self.shared.reassign = Some(Shared::reassign_if_due);
        self.shared.offers = Instant::ZERO;
        self.shared.offer_and_leave();
    }

    /// Queries these nsqlookupds, at their HTTP ports (4161), and connects to the nsqds that they
    /// list. Call this once, before any session is driven.
    pub fn discover<const LOOKUPDS: usize, const NSQDS: usize>(
        &mut self,
        discovery: &'a mut Discovery<LOOKUPDS, NSQDS>,
        lookupds: &'a [Address],
    ) -> Result<(), ConfigError> {
        if lookupds.len() > LOOKUPDS.min(LOOKUPDS_MAX) {
            return Err(ConfigError::Lookupds { count: lookupds.len() });
        }
        let Discovery { lookupds: tables, unusable, found } = discovery;
        unusable.fill_with(|| unusable::Entry::FREE);
        self.shared.unusable = unusable;
        self.lookupds = tables;
        self.lookupd_addresses = lookupds;
        self.with_lookupd = Some(|consumer, index, f| {
            if let Some(mut session) = consumer.lookupd(index) {
                f(&mut session);
            }
        });
        self.shared.nsqds.find_into(found);
        self.shared.may_leave();
        self.shared.reassign = Some(Shared::reassign_if_due);
        self.lookupds.iter_mut().for_each(Lookupd::init);
        for (lookupd, _) in self.lookupds.iter_mut().zip(lookupds) {
            lookupd.start();
        }
        Ok(())
    }

    /// Returns the number of connections to nsqds, used or not.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Returns the number of nsqlookupds.
    pub fn lookupds(&self) -> usize {
        self.lookupd_addresses.len()
    }

    /// Returns the session of connection `index`, below [`connections`](Self::connections).
    pub fn connection(&mut self, index: usize) -> Option<ConnectionSession<'_, 'a>> {
        let connection = self.connections.get_mut(index)?;
        Some(ConnectionSession { connection, shared: &mut self.shared, id: index as u8 })
    }

    /// Returns the session of nsqlookupd `index`, below [`lookupds`](Self::lookupds).
    pub fn lookupd(&mut self, index: usize) -> Option<LookupdSession<'_, 'a>> {
        let address = self.lookupd_addresses.get(index)?;
        let lookupd = self.lookupds.get_mut(index)?;
        let source = 1u8.unbounded_shl(index as u32);
        Some(LookupdSession { lookupd, shared: &mut self.shared, address, source })
    }

    /// Runs `f` on a session: the first indices are connections, the next ones nsqlookupds.
    #[cfg(feature = "async")]
    pub(crate) fn with_session(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        match index.checked_sub(self.connections.len()) {
            None => {
                if let Some(mut session) = self.connection(index) {
                    f(&mut session);
                }
            }
            Some(index) => {
                if let Some(with) = self.with_lookupd {
                    with(self, index, f);
                }
            }
        }
    }

    /// Returns the next message, which the application should answer before its timeout.
    pub fn take(&mut self, now: Instant) -> Option<Delivery> {
        let shared = &mut self.shared;
        shared.now = now;
        loop {
            let token = shared.in_flight.take()?;
            let attempts = shared.in_flight.attempts(token.slot.into());
            let exhausted = shared.config.is_exhausted(attempts);
            if !exhausted || shared.config.exhausted == Exhausted::Deliver {
                return Some(Delivery { token, exhausted });
            }
            if let Some(id) = shared.in_flight.id(token.slot.into()) {
                shared.give_up(MessageId(*id), attempts);
            }
            let _ = shared.answer(token, Answer::Finish);
        }
    }

    /// Returns the message, in place. `None` once it is answered.
    pub fn message(&self, token: Token) -> Option<Message<'_>> {
        Message::parse(self.shared.in_flight.message(token)?)
    }

    /// Returns only the body of the message.
    #[cfg(feature = "async")]
    pub(crate) fn body(&self, token: Token) -> Option<&[u8]> {
        self.shared.in_flight.message(token)?.get(MessageHead::LEN..)
    }

    /// Finishes the message (FIN). During backoff, this counts as a success.
    pub fn finish(&mut self, now: Instant, token: Token) -> Result<(), AnswerError> {
        let shared = &mut self.shared;
        shared.now = now;
        shared.answer(token, Answer::Finish)?;
        count_long(&mut shared.tally.finished);
        shared.recover(Recovery::Success);
        Ok(())
    }

    /// Requeues the message (REQ) after a failure, which begins backoff ([`Config::backoff_base`]).
    /// nsqd delivers the message again after `delay`, by default a delay that grows with the
    /// attempts ([`Config::requeue_base`]), one hour at most.
    pub fn requeue(
        &mut self,
        now: Instant,
        token: Token,
        delay: Option<Span>,
    ) -> Result<(), AnswerError> {
        self.release(now, token, delay)?;
        let shared = &mut self.shared;
        let Config { backoff_base, backoff_cap, .. } = *shared.config;
        let wait = shared.backoff.failed(backoff_base, backoff_cap, &mut shared.jitter);
        shared.back_off(wait);
        shared.recover = Some(Shared::recover_by);
        shared.adjust();
        Ok(())
    }

    /// As [`requeue`](Self::requeue), without a failure: does not begin backoff.
    pub fn release(
        &mut self,
        now: Instant,
        token: Token,
        delay: Option<Span>,
    ) -> Result<(), AnswerError> {
        let shared = &mut self.shared;
        shared.now = now;
        let delay = match delay {
            Some(delay) => delay.as_millis(),
            None => {
                shared.in_flight.message(token).ok_or(AnswerError::Unknown)?;
                shared.config.requeue_delay(shared.in_flight.attempts(token.slot.into()))
            }
        };
        shared.answer(token, Answer::Requeue(delay))?;
        count_long(&mut shared.tally.requeued);
        Ok(())
    }

    /// Restarts the timeout of the message at nsqd (TOUCH), up to nsqd's `--max-msg-timeout` in
    /// total.
    pub fn touch(&mut self, now: Instant, token: Token) -> Result<(), AnswerError> {
        self.shared.now = now;
        self.shared.answer(token, Answer::Touch)?;
        let owner = self.shared.in_flight.owner(token);
        if let Some(connection) = self.connections.get(usize::from(owner)) {
            let due = self.shared.after(connection.due_after(self.shared.config));
            self.shared.in_flight.prolong(token.slot.into(), due);
        }
        Ok(())
    }

    /// Requests no more messages. Messages in flight are not affected.
    pub fn pause(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.backoff.set_paused(true);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Requests messages again.
    pub fn resume(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.backoff.set_paused(false);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Returns whether the consumer is [paused](Self::pause).
    pub fn is_paused(&self) -> bool {
        self.shared.backoff.is_paused()
    }

    /// Replaces [`Config::max_in_flight`].
    pub fn set_max_in_flight(&mut self, now: Instant, max: u16) {
        self.shared.now = now;
        self.shared.backoff.set_max(max);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Leaves all nsqds for good. Requeues the messages that the application has not taken; the
    /// application may answer the others for [`Config::drain_timeout`], then they are requeued too.
    /// Complete when [`is_stopped`](Self::is_stopped).
    pub fn stop(&mut self) {
        let shared = &mut self.shared;
        shared.stopping = true;
        shared.may_leave();
        for id in 0..self.connections.len() {
            shared.nsqds.retire(id as u8);
        }
        shared.changed();
    }

    /// Returns whether all connections are closed after [`stop`](Self::stop).
    pub fn is_stopped(&self) -> bool {
        let asking = |lookupd: &Lookupd| lookupd.is_busy();
        let unused = |connection: &Connection| connection.state() == LinkState::Idle;
        self.shared.stopping
            && self.connections.iter().all(unused)
            && !self.lookupds.iter().any(asking)
    }

    /// Returns the status of connection `index`, below [`connections`](Self::connections).
    pub fn status(&self, index: usize) -> Option<ConnectionStatus<'_>> {
        Some(self.connections.get(index)?.status(&self.shared, index as u8))
    }

    /// Returns the status of nsqlookupd `index`, below [`lookupds`](Self::lookupds).
    pub fn lookupd_status(&self, index: usize) -> Option<LookupdStatus> {
        Some(self.lookupds.get(index)?.status())
    }

    /// Returns the producer of an [`Event::Unusable`].
    pub fn unusable(&self, index: usize) -> Option<Unusable<'_>> {
        self.shared.unusable.get(index)?.shown()
    }

    /// Returns the consumer's counters.
    pub fn counters(&self) -> Counters {
        *self.shared.tally
    }

    /// Returns the number of known nsqds that wait for a connection: the largest number of any
    /// source.
    pub fn unserved(&self) -> u16 {
        let given = self.shared.given.unserved;
        self.lookupds.iter().map(Lookupd::unserved).fold(given, u16::max)
    }

    /// Returns the number of messages that wait to be taken.
    pub fn waiting(&self) -> usize {
        self.shared.in_flight.waiting().into()
    }

    /// Returns whether at least 85 percent of RDY are in flight on any connection: nsqd may be
    /// waiting for answers, so an application that collects a batch should not wait for more
    /// messages.
    pub fn is_starved(&self) -> bool {
        self.shared.rdy.is_starved()
    }

    /// Returns whether RDY is reduced after failures.
    pub fn is_backing_off(&self) -> bool {
        !self.shared.backoff.is_open()
    }

    /// Returns the next event; call this until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        if let Some((id, attempts)) = self.given_up() {
            return Some(Event::GivenUp { id, attempts });
        }
        for index in 0..self.connections() {
            if let Some(event) = self.connection(index)?.poll_event() {
                return Some(Event::Connection { index, event });
            }
        }
        for index in 0..self.lookupds() {
            if let Some(event) = self.lookupd(index)?.poll_event() {
                return Some(Event::Lookupd { index, event });
            }
        }
        let index =
            self.shared.unusable.iter_mut().position(unusable::Entry::take_pending_event)?;
        Some(Event::Unusable { index })
    }

    /// Takes the newest message that was finished after too many deliveries, and their number.
    /// [`Counters::given_up`] counts all such messages.
    fn given_up(&mut self) -> Option<(MessageId, u16)> {
        self.shared.given_up.take()
    }

    /// Returns a number that changes when a connection opens or closes, a message arrives, or an
    /// answer, a failure or a deadline gives another connection something to write. Wake the driver
    /// of every session after a change.
    pub fn version(&self) -> u32 {
        self.shared.version
    }
}
