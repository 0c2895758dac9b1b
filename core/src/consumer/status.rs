//! What a consumer tells and counts.

use super::Token;
use crate::address::Address;
use crate::session::{Closed, Fault, LinkState};
use crate::wire::nsqd::MessageId;

/// The most bytes kept of an error's text.
pub(super) const DETAIL_MAX: usize = 56;

/// Why a message cannot be answered any more. Nothing is sent; nsqd has queued it again, or will.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AnswerError {
    /// Its connection is gone, or its time was up. Counted in
    /// [`Counters::late`](super::Counters::late).
    Late,
    /// It was answered before.
    Unknown,
}

/// A message handed out: to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Delivery {
    /// What to call it by.
    pub token: Token,
    /// It was delivered more than [`Config::max_attempts`](super::Config::max_attempts) times ([`Exhausted::Deliver`](super::Exhausted::Deliver)).
    pub exhausted: bool,
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
    /// `E_BAD_CHANNEL`). It is asked again after [`Config::left_out_for`](super::Config::left_out_for).
    LeftOut(Fault),
}

/// What the application should know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// A connection to an nsqd came or went; [`Consumer::status`](super::Consumer::status) has the rest.
    Connection {
        /// The connection, as [`Consumer::connection`](super::Consumer::connection) counts.
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
    /// An nsqlookupd lists a producer that nobody can use; [`Consumer::unusable`](super::Consumer::unusable) has it. Told once as long as
    /// it is listed, of as many at a time as the [`Discovery`](super::Discovery) has nsqlookupds;
    /// [`LookupdStatus::unusable`] counts them all. The others of the answer are used.
    Unusable {
        /// The nsqlookupd, as [`Consumer::lookupd`](super::Consumer::lookupd) counts.
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
    pub state: LinkState,
    /// The RDY that nsqd was told last.
    pub rdy: u16,
    /// Messages delivered and not answered.
    pub in_flight: u16,
    /// Why the last connection ended or failed; none while it is subscribed.
    pub last: Option<Closed>,
    /// nsqd's own words for its last error, cut off at 56 bytes.
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
    pub state: LinkState,
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
    pub(super) const NONE: Self = Self {
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

impl core::fmt::Display for AnswerError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Late => "too late: nsqd has taken the message back",
            Self::Unknown => "the message was answered before",
        })
    }
}

impl core::error::Error for AnswerError {}
