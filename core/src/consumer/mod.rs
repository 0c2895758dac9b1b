//! Consuming from nsqds: a fixed number of connections, and the messages in flight on them.
//!
//! A [`Consumer`] is connected to the nsqds that it is given, to those that its nsqlookupds list,
//! or both. It asks for as many messages as there is room for, keeps each in the lent ring until
//! the application has answered it, and brings the answer to the nsqd it came from.
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
//! nsqd delivers it, [`Consumer::take`] hands it out, [`Consumer::message`] shows it where it lies,
//! and [`finish`](Consumer::finish), [`requeue`](Consumer::requeue) or
//! [`release`](Consumer::release) answers it. nsqd waits for the answer as long as
//! [`Config::msg_timeout`] says; [`touch`](Consumer::touch), or [`Config::auto_touch`], makes it
//! wait again. If the connection is lost or the time is up, nsqd delivers the message again, here
//! or elsewhere, and the answer, when it comes, is dropped and counted: [`AnswerError::Late`].
//!
//! # Backoff
//!
//! The sum of all RDY is never above max_in_flight, nor above what the ring has room for, and what
//! is taken from one connection is given to another only when nothing of it can come any more:
//! nsqd confirms no RDY. See the table in [`window`](self#window). A message that comes all the
//! same and finds no room is requeued at once and counted ([`Counters::no_room`]); the stream goes
//! on, and heartbeats are answered whatever the application does.
//!
//! ## RDY
//!
//! | connections | what each gets |
//! |---|---|
//! | no more than max_in_flight | an equal part, the remainder one by one from the first; what is above one's `max_rdy_count` goes to the others |
//! | more than max_in_flight | 1, or 0: turns are taken. An idle connection passes its turn on after two intervals ([`Config::redistribute`]), a busy one after six |
//! | any, after a failure | 0, then 1 on one of them, as nsq's client guide has it: see [`Config::backoff_base`] |
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | messages in flight | the storage's `MESSAGES`, [`Config::max_in_flight`] | nsqd is not asked for more |
//! | a message | ring length / `MESSAGES`, less 26 | takes several slots, if they are free side by side, else it is requeued; see [`TooLarge`] above the whole ring |
//! | connections | the storage's `CONNECTIONS` | the nsqds take turns: [`Config::rotate`]; one whose connection fails makes room at once |
//! | trying nsqds that fail, while others wait | [`Config::connect_timeout`], at first 1 s; given ones every [`Config::reconnect_base`] / 2, at most [`Config::reconnect_cap`] / 2, doubled with each time round | |
//! | asking an nsqlookupd, likewise | 0.5 s after its last answer, doubled with each time round up to [`Config::lookup_interval`] / 4 | |
//! | nsqds given | 255 | [`ConfigError::Addresses`] |
//! | nsqlookupds | the [`Discovery`]'s `LOOKUPDS`, at most [`LOOKUPDS_MAX`] | [`ConfigError::Lookupds`] |
//! | an nsqlookupd's answer | none: it is scanned as it arrives | |
//! | what is told of producers that nobody can use | as many at a time as nsqlookupds, 40 bytes of each host | counted: [`LookupdStatus::unusable`] |
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
/// RAM: at most 424 bytes beside storage, ring and the borrowed configuration.
#[derive(Debug)]
pub struct Consumer<'a> {
    connections: &'a mut [Connection],
    lookupds: &'a mut [Lookupd],
    lookupd_addresses: &'a [Address],
    /// Only [`discover`](Self::discover) sets it: what is not used is not linked.
    with_lookupd: Option<WithSession<'a>>,
    shared: Shared<'a>,
}

/// Runs a function on one of a consumer's sessions, if there is such a one.
type WithSession<'a> = fn(&mut Consumer<'a>, usize, &mut dyn FnMut(&mut dyn Session));

impl<'a> Consumer<'a> {
    /// A consumer that connects to `nsqds`; none is fine with [`discover`](Self::discover).
    ///
    /// Messages lie in `ring` until they are answered: a part of equal length for each message in
    /// flight, at least [`SLOT_MIN`] bytes. Make the parts as long as the messages usually are,
    /// plus 26; longer ones take several.
    pub fn new<const CONNECTIONS: usize, const MESSAGES: usize>(
        config: &'a Config<'a>,
        storage: &'a mut Storage<CONNECTIONS, MESSAGES>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Result<Self, ConfigError> {
        config.check(CONNECTIONS, nsqds.len(), MESSAGES, ring.len())?;
        // It may have been another consumer's.
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

    /// As [`new`](Self::new), of checked settings and new tables. [`slot`](Self::slot) it where it
    /// lies, and with more nsqds than connections have it [`take_turns`](Self::take_turns).
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
                patience: config.connect_timeout,
                rounds: None,
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

    /// Gives the given nsqds their connections.
    pub(crate) fn assign_given(&mut self) {
        self.connections.iter_mut().for_each(Connection::set_up);
        self.shared.nsqds.assign_given();
        self.shared.adjust();
    }

    /// IDENTIFY says what most consumers do not.
    pub(crate) fn send_options(&mut self) {
        self.shared.identify = Some(|config, w| {
            nsqd::emit_identify(w, &config.identify_request(), &config.identify_numbers(), &[])
        });
    }

    /// The given nsqds without a connection are to have their turn. Call it before anything is
    /// driven.
    pub(crate) fn take_turns(&mut self) {
        self.shared.may_leave();
        self.shared.rounds = Some(Shared::look_round);
        self.shared.offers = Instant::ZERO;
        self.shared.offer_and_leave();
    }

    /// Asks these nsqlookupds as well, at their HTTP ports (4161), and connects to what they list.
    /// Call it once, before anything is driven.
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
        self.shared.rounds = Some(Shared::look_round);
        self.lookupds.iter_mut().for_each(Lookupd::init);
        for (lookupd, _) in self.lookupds.iter_mut().zip(lookupds) {
            lookupd.start();
        }
        Ok(())
    }

    /// How many connections to nsqds there are, used or not.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// How many nsqlookupds are asked.
    pub fn lookupds(&self) -> usize {
        self.lookupd_addresses.len()
    }

    /// The session of connection `index`, below [`connections`](Self::connections).
    pub fn connection(&mut self, index: usize) -> Option<ConnectionSession<'_, 'a>> {
        let connection = self.connections.get_mut(index)?;
        Some(ConnectionSession { connection, shared: &mut self.shared, id: index as u8 })
    }

    /// The session of nsqlookupd `index`, below [`lookupds`](Self::lookupds).
    pub fn lookupd(&mut self, index: usize) -> Option<LookupdSession<'_, 'a>> {
        let address = self.lookupd_addresses.get(index)?;
        let lookupd = self.lookupds.get_mut(index)?;
        let source = 1u8.unbounded_shl(index as u32);
        Some(LookupdSession { lookupd, shared: &mut self.shared, address, source })
    }

    /// Runs `f` on a session: those of the connections, then those of nsqlookupds.
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

    /// Hands out the next message. It is to be answered before its time is up.
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

    /// The message, where it lies, until it is answered.
    pub fn message(&self, token: Token) -> Option<Message<'_>> {
        Message::parse(self.shared.in_flight.message(token)?)
    }

    /// Its body alone.
    #[cfg(feature = "async")]
    pub(crate) fn body(&self, token: Token) -> Option<&[u8]> {
        self.shared.in_flight.message(token)?.get(MessageHead::LEN..)
    }

    /// The message is done (FIN). While backing off, that is a success.
    #[inline(never)]
    pub fn finish(&mut self, now: Instant, token: Token) -> Result<(), AnswerError> {
        let shared = &mut self.shared;
        shared.now = now;
        shared.answer(token, Answer::Finish)?;
        count_long(&mut shared.tally.finished);
        shared.recover(Recovery::Success);
        Ok(())
    }

    /// The message failed (REQ): it comes again after `delay`, or one that grows with its attempts
    /// ([`Config::requeue_base`]); nsqd waits one hour at most. Backs off
    /// ([`Config::backoff_base`]).
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

    /// As [`requeue`](Self::requeue), but it is not the message's fault: does not back off.
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

    /// The message takes longer (TOUCH): nsqd waits anew, but never longer than its
    /// `--max-msg-timeout` in all.
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

    /// Asks for no more messages; what is in flight goes on.
    pub fn pause(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.backoff.set_paused(true);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Asks for messages again.
    pub fn resume(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.backoff.set_paused(false);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Whether [`pause`](Self::pause) was called last.
    pub fn is_paused(&self) -> bool {
        self.shared.backoff.is_paused()
    }

    /// Another [`Config::max_in_flight`] from now on.
    pub fn set_max_in_flight(&mut self, now: Instant, max: u16) {
        self.shared.now = now;
        self.shared.backoff.set_max(max);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Leaves all nsqds for good. Requeues what nobody took; what the application has, it may
    /// answer for [`Config::drain_timeout`], then that is requeued as well. Over when
    /// [`is_stopped`](Self::is_stopped).
    pub fn stop(&mut self) {
        let shared = &mut self.shared;
        shared.stopping = true;
        shared.may_leave();
        for id in 0..self.connections.len() {
            shared.nsqds.retire(id as u8);
        }
        shared.changed();
    }

    /// Whether no connection is left after [`stop`](Self::stop).
    pub fn is_stopped(&self) -> bool {
        let asking = |lookupd: &Lookupd| lookupd.is_busy();
        let unused = |connection: &Connection| connection.state() == LinkState::Idle;
        self.shared.stopping
            && self.connections.iter().all(unused)
            && !self.lookupds.iter().any(asking)
    }

    /// What is known of connection `index`, below [`connections`](Self::connections).
    pub fn status(&self, index: usize) -> Option<ConnectionStatus<'_>> {
        Some(self.connections.get(index)?.status(&self.shared, index as u8))
    }

    /// What is known of nsqlookupd `index`, below [`lookupds`](Self::lookupds).
    pub fn lookupd_status(&self, index: usize) -> Option<LookupdStatus> {
        Some(self.lookupds.get(index)?.status())
    }

    /// A producer that nobody can use, of an [`Event::Unusable`].
    pub fn unusable(&self, index: usize) -> Option<Unusable<'_>> {
        self.shared.unusable.get(index)?.shown()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        *self.shared.tally
    }

    /// How many nsqds, as far as is known, wait for a connection to be free: the most that one
    /// source lists.
    pub fn unserved(&self) -> u16 {
        let given = self.shared.given.unserved;
        self.lookupds.iter().map(Lookupd::unserved).fold(given, u16::max)
    }

    /// How many messages wait to be taken.
    pub fn waiting(&self) -> usize {
        self.shared.in_flight.waiting().into()
    }

    /// Whether nsqd may be waiting for answers: most of what it may deliver is in flight (85
    /// percent on some connection). Who collects messages into a batch should not wait for more.
    pub fn is_starved(&self) -> bool {
        self.shared.rdy.is_starved()
    }

    /// Whether fewer messages than max_in_flight are asked for, after failures.
    pub fn is_backing_off(&self) -> bool {
        !self.shared.backoff.is_open()
    }

    /// The next thing to tell; call until `None`.
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

    /// The newest message that was finished since it had been delivered too often, and how often,
    /// if nobody asked yet; [`Counters::given_up`] counts them all.
    fn given_up(&mut self) -> Option<(MessageId, u16)> {
        self.shared.given_up.take()
    }

    /// Changes when a connection comes or goes, a message arrives, or an answer, a failure or the
    /// time gives another connection something to write: whether it is worth asking again. Wake
    /// the driver of every session then.
    pub fn version(&self) -> u32 {
        self.shared.version
    }
}
