//! Consuming from nsqds: a fixed number of connections, and the messages in flight on them.
//!
//! A [`Consumer`] is connected to the nsqds that it is given, to those that its nsqlookupds list,
//! or both. It asks for as many messages as there is room for, keeps each in the lent ring until
//! the application has answered it, and brings the answer to the nsqd it came from.
//!
//! ```text
//!             seat         dial           open                answered
//! Unused ----------> Waiting -----> Dialing -----> Identifying -------> [Authenticating]
//!    ^                  ^              | refused        | fault, timeout      |
//!    |                  |              v                v                     v
//!    |                  +----------- Closing <---+--- Ready <----------- Subscribing
//!    +---- seat gone ------------------+         |      | seat gone: CLS
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
//! | what is told of producers that nobody can use | as many at a time as nsqlookupds, [`HOST_SHOWN`] bytes of each host | counted: [`LookupdStatus::unusable`] |
//! | nsqd's error text | [`DETAIL_MAX`] bytes | cut off |

mod backoff;
mod config;
mod connection;
mod discovery;
mod in_flight;
mod leave;
mod lookupd;
mod rdy;
#[cfg(test)]
mod tests;
mod unusable;

use core::convert::Infallible;

use crate::address::Address;
use crate::session::{Closed, Fault, Session};
use crate::time::{Instant, Jitter, Span, TimerId, Timers};
use crate::wire::ChunkWriter as Piece;
use crate::wire::nsqd::{self, Message, MessageHead, MessageId};

pub use crate::session::lookupd_query::LookupdState;
pub use config::{Config, ConfigError, Exhausted, SLOT_MIN, TooLarge};
pub use connection::ConnectionSession;
pub use discovery::LOOKUPDS_MAX;
pub use in_flight::{AnswerError, Token};
pub use lookupd::LookupdSession;
pub use unusable::{BadProducer, HOST_SHOWN, Unusable};

use backoff::ConsumerBackoff;
use connection::Connection;
use discovery::{GIVEN, NsqdSlot, NsqdTable, Round};
use in_flight::{Answer, InFlight, Slot};
use leave::Leave;
use lookupd::Lookupd;
use rdy::{RdyTable, Share};

/// The most bytes kept of an error's text.
pub const DETAIL_MAX: usize = 56;

/// The tables of a consumer: for so many connections to nsqds and messages in flight.
///
/// RAM: at most [`CONNECTION_RAM_MAX`] bytes a connection and [`MESSAGE_RAM_MAX`] a message, and the
/// [`Counters`].
#[derive(Debug)]
pub struct Storage<const CONNECTIONS: usize, const MESSAGES: usize> {
    connections: [Connection; CONNECTIONS],
    seats: [NsqdSlot; CONNECTIONS],
    shares: [Share; CONNECTIONS],
    slots: [Slot; MESSAGES],
    tally: Counters,
}

/// The tables of a consumer that asks nsqlookupds: for so many of them, and so many nsqds that
/// they list. Only the first `NSQDS` connections of the consumer are used for found nsqds.
///
/// RAM: at most [`LOOKUPD_RAM_MAX`] bytes an nsqlookupd and [`FOUND_RAM_MAX`] an nsqd.
#[derive(Debug)]
pub struct Discovery<const LOOKUPDS: usize, const NSQDS: usize> {
    lookupds: [Lookupd; LOOKUPDS],
    unusable: [unusable::Entry; LOOKUPDS],
    found: [Option<Address>; NSQDS],
}

/// The most bytes that a connection takes of a [`Storage`].
pub const CONNECTION_RAM_MAX: usize = 288;

/// The most bytes that a message in flight takes of a [`Storage`], beside the ring.
pub const MESSAGE_RAM_MAX: usize = 32;

/// The most bytes that an nsqlookupd takes of a [`Discovery`].
pub const LOOKUPD_RAM_MAX: usize = 480;

/// The most bytes that a found nsqd takes of a [`Discovery`].
pub const FOUND_RAM_MAX: usize = 104;

/// The most bytes that a [`Consumer`] takes beside its storage and ring.
pub const RAM_MAX: usize = 424;

impl<const CONNECTIONS: usize, const MESSAGES: usize> Storage<CONNECTIONS, MESSAGES> {
    /// Empty; [`Consumer::new`] fills it.
    pub const fn new() -> Self {
        Self {
            connections: [const { Connection::NEW }; CONNECTIONS],
            seats: [const { NsqdSlot::EMPTY }; CONNECTIONS],
            shares: [Share::NONE; CONNECTIONS],
            slots: [Slot::FREE; MESSAGES],
            tally: Counters::NONE,
        }
    }

    // One by one: as a whole, it would pass through the stack.
    fn clear(&mut self) {
        self.connections.fill_with(|| Connection::NEW);
        self.seats.fill(NsqdSlot::EMPTY);
        self.shares.fill(Share::NONE);
        self.slots.fill(Slot::FREE);
        self.tally = Counters::NONE;
    }

    /// With a ring of so many bytes, which is usually known when it is compiled: no division then.
    #[inline]
    pub(crate) fn tables(&mut self, ring: usize) -> Tables<'_> {
        let Self { connections, seats, shares, slots, tally } = self;
        let unit = ring.checked_div(MESSAGES).unwrap_or_default();
        Tables { connections, seats, shares, slots, tally, unit }
    }
}

/// A [`Storage`] of any size.
pub(crate) struct Tables<'a> {
    connections: &'a mut [Connection],
    seats: &'a mut [NsqdSlot],
    shares: &'a mut [Share],
    slots: &'a mut [Slot],
    tally: &'a mut Counters,
    /// Bytes of a slot.
    unit: usize,
}

impl<const CONNECTIONS: usize, const MESSAGES: usize> Default for Storage<CONNECTIONS, MESSAGES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const LOOKUPDS: usize, const NSQDS: usize> Discovery<LOOKUPDS, NSQDS> {
    /// Empty; [`Consumer::discover`] fills it.
    pub const fn new() -> Self {
        Self {
            lookupds: [const { Lookupd::NEW }; LOOKUPDS],
            unusable: [const { unusable::Entry::FREE }; LOOKUPDS],
            found: [const { None }; NSQDS],
        }
    }
}

impl<const LOOKUPDS: usize, const NSQDS: usize> Default for Discovery<LOOKUPDS, NSQDS> {
    fn default() -> Self {
        Self::new()
    }
}

/// Consumes one channel. See the [module](self).
///
/// RAM: at most [`RAM_MAX`] bytes beside storage, ring and the borrowed configuration.
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

/// Writes IDENTIFY.
type Identify = fn(&Config<'_>, &mut Piece<'_>) -> Result<(), Infallible>;

/// A message handed out: to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Delivery {
    /// What to call it by.
    pub token: Token,
    /// It was delivered more than [`Config::max_attempts`] times ([`Exhausted::Deliver`]).
    pub exhausted: bool,
}

/// Where a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ConnectionState {
    /// It is for no nsqd.
    Unused,
    /// No connection; the next dial is due at a time.
    Waiting,
    /// A dial is under way.
    Dialing,
    /// IDENTIFY is being sent, or its answer is due.
    Identifying,
    /// AUTH is being sent, or its answer is due.
    Authenticating,
    /// SUB is being sent, or its answer is due.
    Subscribing,
    /// Messages flow.
    Ready,
    /// It is to be closed: CLS is sent, the application may answer what it has.
    Draining,
    /// Its time for that is up: the rest is being requeued.
    Leaving,
    /// The driver is to close the connection.
    Closing,
}

/// A change of a connection. Newer ones replace older ones that nobody polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// Subscribed.
    Connected,
    /// The connection is gone or did not come up.
    Disconnected(Closed),
    /// The nsqd refused in a way that no repetition cures
    /// ([`Fault::is_permanent`](crate::session::Fault::is_permanent), or SUB with `E_BAD_TOPIC` or
    /// `E_BAD_CHANNEL`). It is asked again after [`Config::left_out_for`].
    LeftOut(Fault),
}

/// What the application should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// A connection to an nsqd came or went; [`Consumer::status`] has the rest.
    Connection {
        /// Which one.
        index: usize,
        /// What happened.
        event: ConnectionEvent,
    },
    /// An nsqlookupd was asked.
    Lookupd {
        /// Which one, in the order of their addresses.
        index: usize,
        /// What came of it.
        event: LookupdEvent,
    },
    /// An nsqlookupd lists a producer that nobody can use; [`Consumer::unusable`] has it. Told once as long as
    /// it is listed, of as many at a time as the [`Discovery`] has nsqlookupds;
    /// [`LookupdStatus::unusable`] counts them all. The others of the answer are used.
    Unusable {
        /// Which one.
        index: usize,
    },
    /// A message was finished since it had been delivered too often. Several between two polls are
    /// one event, of the newest; [`Counters::given_up`] counts them all.
    GivenUp {
        /// Its id.
        id: MessageId,
        /// How often it was delivered.
        attempts: u16,
    },
}

/// What is known of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionStatus<'s> {
    /// The nsqd it is for.
    pub address: Option<&'s Address>,
    /// Where it is.
    pub state: ConnectionState,
    /// The RDY that nsqd was told last.
    pub rdy: u16,
    /// Messages delivered and not answered.
    pub in_flight: u16,
    /// Why the last connection ended or failed; none while it is subscribed.
    pub last: Option<Closed>,
    /// nsqd's own words for its last error, cut off at [`DETAIL_MAX`] bytes.
    pub detail: &'s str,
}

/// What came of asking an nsqlookupd. Newer ones replace older ones that nobody polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum LookupdEvent {
    /// It lists so many producers of the topic.
    Answered {
        /// How many; 0 also if it does not know the topic.
        producers: u16,
    },
    /// It was not to be reached, or its answer was of no use. Nothing changed.
    Failed(Closed),
}

/// What is known of an nsqlookupd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LookupdStatus {
    /// Where it is.
    pub state: LookupdState,
    /// How many producers its last answer listed, or the one being read so far.
    pub producers: u16,
    /// How many of them nobody can use: [`Event::Unusable`].
    pub unusable: u16,
    /// How many of them there was no connection for.
    pub unserved: u16,
    /// How asking it ended last: [`Closed::Local`] is well.
    pub last: Option<Closed>,
}

/// What happened so far. Each stays at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Messages received and kept.
    pub received: u64,
    /// Messages that the application finished; those with a late answer not included.
    pub finished: u64,
    /// Messages that the application requeued or released; likewise.
    pub requeued: u64,
    /// Answers dropped since their connection was gone or their time was up.
    pub late: u32,
    /// Messages whose time was up before they were answered.
    pub timed_out: u32,
    /// TOUCH commands sent.
    pub touched: u32,
    /// Messages finished since they had been delivered too often.
    pub given_up: u32,
    /// Messages longer than the whole ring, skipped and answered as configured.
    pub too_large: u32,
    /// Messages skipped since there was no room at the moment, and requeued.
    pub no_room: u32,
    /// Of the messages skipped, those that could not be answered at once: nsqd takes them back
    /// when their time is up.
    pub unanswered: u32,
    /// Answers that nsqd refused: it had taken the message back before.
    pub refused: u32,
    /// Connections that became ready.
    pub connections: u32,
    /// Dials that failed and connections that broke or were given up.
    pub failures: u32,
    /// Heartbeats of nsqd that were answered.
    pub heartbeats: u32,
    /// Answers of nsqlookupds that were of use.
    pub lookups: u32,
    /// Requests to nsqlookupds that failed, or whose answers were of no use.
    pub lookups_failed: u32,
}

impl Counters {
    const NONE: Self = Self {
        received: 0,
        finished: 0,
        requeued: 0,
        late: 0,
        timed_out: 0,
        touched: 0,
        given_up: 0,
        too_large: 0,
        no_room: 0,
        unanswered: 0,
        refused: 0,
        connections: 0,
        failures: 0,
        heartbeats: 0,
        lookups: 0,
        lookups_failed: 0,
    };
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Backoff: try one message.
    Probe,
    /// See whose turn it is.
    Turn,
    /// The given addresses are to be offered, or a seat given up.
    Seats,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        self as usize
    }
}

/// What may end or ease a backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recovery {
    /// A message is done.
    Success,
    /// Time passed.
    Time,
}

/// What all connections share.
// In this order for the same reason as a `Connection`.
#[derive(Debug)]
#[repr(C)]
struct Shared<'a> {
    stopping: bool,
    flow: ConsumerBackoff,
    config: &'a Config<'a>,
    version: u32,
    tally: &'a mut Counters,
    /// The time of the call. Here rather than handed on: it takes two registers of the four that
    /// there are for arguments.
    now: Instant,
    jitter: Jitter,
    window: RdyTable<'a>,
    store: InFlight<'a>,
    timers: Timers<Timer, 3>,
    /// When the given addresses are offered again, and when that may be at the earliest.
    offers: Instant,
    paced: Instant,
    /// How long a connection may take to come up, each step of it.
    patience: Span,
    /// What [`go_round`](Self::go_round) does. Behind a pointer that is set only if the nsqds may be
    /// others than those that have a seat from the start: what is not used is not linked.
    rounds: Option<fn(&mut Self, Option<u8>)>,
    /// What is done as a connection is left: likewise.
    leave: Option<Leave<'a>>,
    /// Writes IDENTIFY with what else there is to say, if there is any.
    identify: Option<Identify>,
    /// What is done after failures: nothing until a message was requeued.
    recover: Option<fn(&mut Self, Recovery)>,
    directory: NsqdTable<'a>,
    /// The given addresses, as a source.
    given: Round,
    given_up: Option<(MessageId, u16)>,
    /// What nsqlookupds list and nobody can use.
    unusable: &'a mut [unusable::Entry],
}

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
        let mut consumer = Self::unseated(config, storage.tables(ring.len()), nsqds, ring);
        consumer.seat();
        if config.has_options() {
            consumer.say_options();
        }
        if nsqds.len() > CONNECTIONS {
            consumer.take_turns();
        }
        Ok(consumer)
    }

    /// As [`new`](Self::new), of checked settings and new tables. [`seat`](Self::seat) it where it
    /// lies, and with more nsqds than connections have it [`take_turns`](Self::take_turns).
    #[inline(always)]
    pub(crate) fn unseated(
        config: &'a Config<'a>,
        tables: Tables<'a>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Self {
        let Tables { connections, seats, shares, slots, tally, unit } = tables;
        Self {
            connections,
            lookupds: &mut [],
            lookupd_addresses: &[],
            with_lookupd: None,
            shared: Shared {
                config,
                directory: NsqdTable::new(seats, nsqds),
                given: Round::NONE,
                offers: Instant::NEVER,
                paced: Instant::ZERO,
                patience: config.connect_timeout,
                rounds: None,
                leave: None,
                identify: None,
                recover: None,
                window: RdyTable::new(shares),
                store: InFlight::new(slots, ring, unit),
                flow: ConsumerBackoff::new(config.max_in_flight),
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
    pub(crate) fn seat(&mut self) {
        self.connections.iter_mut().for_each(Connection::set_up);
        self.shared.directory.seat_given();
        self.shared.adjust();
    }

    /// IDENTIFY says what most consumers do not.
    pub(crate) fn say_options(&mut self) {
        self.shared.identify = Some(|config, w| {
            nsqd::emit_identify(w, &config.identify_request(), &config.identify_options())
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
        self.shared.directory.find_into(found);
        self.shared.may_leave();
        self.shared.rounds = Some(Shared::look_round);
        self.lookupds.fill_with(|| Lookupd::NEW);
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
            let token = shared.store.take()?;
            let attempts = shared.store.attempts(token.slot.into());
            let exhausted = shared.config.is_exhausted(attempts);
            if !exhausted || shared.config.exhausted == Exhausted::Deliver {
                return Some(Delivery { token, exhausted });
            }
            if let Some(id) = shared.store.id(token.slot.into()) {
                shared.give_up(MessageId(*id), attempts);
            }
            let _ = shared.answer(token, Answer::Finish);
        }
    }

    /// The message, where it lies, until it is answered.
    pub fn message(&self, token: Token) -> Option<Message<'_>> {
        Message::parse(self.shared.store.message(token)?)
    }

    /// Its body alone.
    pub fn body(&self, token: Token) -> Option<&[u8]> {
        self.shared.store.message(token)?.get(MessageHead::LEN..)
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
        let wait = shared.flow.failed(backoff_base, backoff_cap, &mut shared.jitter);
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
                shared.store.message(token).ok_or(AnswerError::Unknown)?;
                shared.config.requeue_delay(shared.store.attempts(token.slot.into()))
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
        let owner = self.shared.store.owner(token);
        if let Some(connection) = self.connections.get(usize::from(owner)) {
            let due = self.shared.after(connection.due_after(self.shared.config));
            self.shared.store.prolong(token, due);
        }
        Ok(())
    }

    /// Asks for no more messages; what is in flight goes on.
    pub fn pause(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.flow.set_paused(true);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Asks for messages again.
    pub fn resume(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.flow.set_paused(false);
        self.shared.adjust();
        self.shared.changed();
    }

    /// Whether [`pause`](Self::pause) was called last.
    pub fn is_paused(&self) -> bool {
        self.shared.flow.is_paused()
    }

    /// Another [`Config::max_in_flight`] from now on.
    pub fn set_max_in_flight(&mut self, now: Instant, max: u16) {
        self.shared.now = now;
        self.shared.flow.set_max(max);
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
            shared.directory.retire(id as u8);
        }
        shared.changed();
    }

    /// Whether no connection is left after [`stop`](Self::stop).
    pub fn is_stopped(&self) -> bool {
        let asking = |lookupd: &Lookupd| lookupd.is_busy();
        let unused = |connection: &Connection| connection.state() == ConnectionState::Unused;
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
        self.shared.store.waiting().into()
    }

    /// Whether nsqd may be waiting for answers: most of what it may deliver is in flight (85
    /// percent on some connection). Who collects messages into a batch should not wait for more.
    pub fn is_starved(&self) -> bool {
        self.shared.window.is_starved()
    }

    /// Whether fewer messages than max_in_flight are asked for, after failures.
    pub fn is_backing_off(&self) -> bool {
        !self.shared.flow.is_open()
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
    pub fn given_up(&mut self) -> Option<(MessageId, u16)> {
        self.shared.given_up.take()
    }

    /// Changes when a connection comes or goes, a message arrives, or an answer, a failure or the
    /// time gives another connection something to write: whether it is worth asking again. Wake
    /// the driver of every session then.
    pub fn version(&self) -> u32 {
        self.shared.version
    }
}

/// While others wait: how long a connection may take to come up, each step of it, in the first lap.
const PATIENCE: Span = Span::from_secs(1);

/// A time that doubles with each lap.
fn slower(span: Span, level: u8) -> Span {
    Span::from_millis(span.as_millis().saturating_mul(1 << u32::from(level.min(16))))
}

/// Counts one more: a function of its own, since there are so many of them.
#[inline(never)]
fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

/// Likewise.
#[inline(never)]
fn count_long(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

impl Shared<'_> {
    fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Makes the window as large as it is to be now.
    fn adjust(&mut self) {
        self.window.set_limit(self.flow.limit(self.store.capacity()));
        if !self.window.takes_turns() {
            self.timers.stop(Timer::Turn);
        } else if !self.timers.is_set(Timer::Turn) {
            let interval = self.jitter.around(self.config.redistribute).max(Span::from_millis(1));
            self.timers.set(Timer::Turn, self.after(interval));
        }
        if self.window.is_short() {
            self.changed();
        }
    }

    /// A message is no longer in flight.
    fn answered(&mut self, id: u8) {
        self.window.answered(id, 1);
        self.adjust();
    }

    fn answer(&mut self, token: Token, answer: Answer) -> Result<(), AnswerError> {
        let answered = self.store.answer(token, answer);
        if answered == Err(AnswerError::Late) {
            count(&mut self.tally.late);
        }
        // Its slot may be free now.
        self.adjust();
        self.changed();
        answered
    }

    fn back_off(&mut self, wait: Option<Span>) {
        if let Some(wait) = wait {
            self.timers.set(Timer::Probe, self.after(wait));
        }
    }

    /// Goes on after failures, if there were any.
    fn recover(&mut self, by: Recovery) {
        if let Some(recover) = self.recover {
            recover(self, by);
        }
    }

    fn recover_by(&mut self, by: Recovery) {
        match by {
            Recovery::Success => {
                let Config { backoff_base, backoff_cap, .. } = *self.config;
                let wait = self.flow.succeeded(backoff_base, backoff_cap, &mut self.jitter);
                self.back_off(wait);
                self.adjust();
            }
            Recovery::Time => {
                if self.timers.expired(Timer::Probe, self.now) {
                    self.flow.probe();
                    self.adjust();
                    self.changed();
                }
            }
        }
    }

    fn give_up(&mut self, id: MessageId, attempts: u16) {
        count(&mut self.tally.given_up);
        self.given_up = Some((id, attempts));
        self.changed();
    }

    /// Somebody lists an nsqd.
    fn offer(&mut self, source: u8, round: &mut Round, address: &Address) {
        if !self.stopping
            && self.directory.offer(self.now, self.config.rotate, source, round, address)
        {
            self.changed();
        }
    }

    /// Looks whether a seat is to be somebody else's. There may be a connection that does not come
    /// up.
    fn go_round(&mut self, failed: Option<u8>) {
        if let Some(rounds) = self.rounds {
            rounds(self, failed);
        }
    }

    /// Looks if there is a reason to.
    fn look_round(&mut self, failed: Option<u8>) {
        let fails = failed.is_some_and(|id| self.directory.fail(id));
        if fails && self.directory.soon & GIVEN != 0 {
            // Not in this moment: who waits for events is to hear of it first.
            let pause = self.pause();
            let pause = self.after(pause);
            self.offers = self.offers.min(self.paced.max(pause));
        }
        if fails || self.timers.expired(Timer::Seats, self.now) {
            self.offer_and_leave();
        }
    }

    /// Offers the given addresses if it is time, and gives up the seats whose time is over.
    fn offer_and_leave(&mut self) {
        if self.offers <= self.now {
            self.offer_given();
        }
        let (left, next) = self.directory.leave(self.now);
        if left {
            self.changed();
        }
        self.timers.set(Timer::Seats, next.min(self.offers));
        self.be_patient();
    }

    /// Offers the given addresses.
    fn offer_given(&mut self) {
        let pause = self.pause();
        let Self { directory, given, config, now, .. } = self;
        let soon = directory.soon;
        let mut changed = !self.stopping && directory.offer_given(*now, config.rotate, given);
        changed |= directory.soon & !soon != 0;
        self.offers = if given.unserved == 0 || self.stopping {
            Instant::NEVER
        } else if directory.soon & GIVEN != 0 {
            Instant::ZERO
        } else {
            // When the next may have a seat; if it is time already, another source's turn is it.
            let soon = now.after(Span::from_millis((config.rotate.as_millis() >> 2).max(1)));
            directory.rotates.max(soon)
        };
        if changed || directory.soon & GIVEN != 0 {
            self.paced = now.after(pause);
        }
        self.offers = self.offers.max(self.paced);
        if changed {
            self.changed();
        }
    }

    /// How long after one the next of the given ones is tried.
    fn pause(&mut self) -> Span {
        let Config { reconnect_base, reconnect_cap, .. } = *self.config;
        let pause = slower(reconnect_base, self.directory.level).min(reconnect_cap);
        self.jitter.around(Span::from_millis(pause.as_millis() >> 1)).max(Span::from_millis(1))
    }

    /// While others wait, nobody may take long to come up.
    fn be_patient(&mut self) {
        let longest = self.config.connect_timeout;
        self.patience = if self.directory.waiting == 0 {
            longest
        } else {
            slower(PATIENCE, self.directory.level).min(longest)
        };
    }

    /// A time from now.
    fn after(&self, span: Span) -> Instant {
        self.now.after(span)
    }

    fn deadline(&self) -> Instant {
        self.timers.next()
    }

    /// Time passed.
    fn tick(&mut self) {
        self.recover(Recovery::Time);
        if self.timers.expired(Timer::Turn, self.now) {
            self.window.turn();
            self.adjust();
            self.changed();
        }
        self.go_round(None);
    }
}
