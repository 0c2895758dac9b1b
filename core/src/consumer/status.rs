//! The events, the status and the counters of a consumer.

use super::Token;
use crate::address::Address;
use crate::session::{Closed, Fault, LinkState};
use crate::wire::nsqd::MessageId;

/// The maximum number of bytes kept of an error's text.
pub(super) const DETAIL_MAX: usize = 56;

/// The reason why a message can no longer be answered. No answer is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AnswerError {
    /// The connection of the message is lost, or its timeout has passed: nsqd requeues it. Counted
    /// in [`Counters::late`](super::Counters::late).
    Late,
    /// The message was answered before.
    Unknown,
}

/// A message that the application has taken and must answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Delivery {
    /// Identifies the message.
    pub token: Token,
    /// True if the message was delivered more than
    /// [`Config::max_attempts`](super::Config::max_attempts) times
    /// ([`Exhausted::Deliver`](super::Exhausted::Deliver)).
    pub exhausted: bool,
}

/// A change of a connection. A newer change replaces an older one that was not polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConnectionEvent {
    /// The connection is subscribed.
    Connected,
    /// The connection ended or could not be established.
    Disconnected(Closed),
    /// The nsqd refused permanently
    /// ([`Fault::is_permanent`](crate::session::Fault::is_permanent), or SUB with `E_BAD_TOPIC` or
    /// `E_BAD_CHANNEL`). It is dialed again after
    /// [`Config::left_out_for`](super::Config::left_out_for).
    LeftOut(Fault),
}

/// An event for the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// A connection to an nsqd opened, closed or failed;
    /// [`Consumer::status`](super::Consumer::status) has the details.
    Connection {
        /// The index of the connection in [`Consumer::connection`](super::Consumer::connection).
        index: usize,
        /// The change of the connection.
        event: ConnectionEvent,
    },
    /// A query to an nsqlookupd ended.
    Lookupd {
        /// The index of the nsqlookupd, in the order of the addresses.
        index: usize,
        /// The result of the query.
        event: LookupdEvent,
    },
    /// An nsqlookupd lists a producer that cannot be used. Reported once while it is listed, for as
    /// many producers at a time as the [`Discovery`](super::Discovery) has nsqlookupds;
    /// [`LookupdStatus::unusable`] counts all. The other producers of the answer are used.
    Unusable {
        /// The argument of [`Consumer::unusable`](super::Consumer::unusable).
        index: usize,
    },
    /// A message was finished after too many deliveries. Several such messages between two polls
    /// are one event, of the newest; [`Counters::given_up`] counts all.
    GivenUp {
        /// The id of the message.
        id: MessageId,
        /// The number of deliveries.
        attempts: u16,
    },
}

/// The status of a connection.
#[derive(Debug, Clone, Copy)]
pub struct ConnectionStatus<'s> {
    /// The nsqd of the connection.
    pub address: Option<&'s Address>,
    /// The state of the connection.
    pub state: LinkState,
    /// The RDY that was announced to nsqd last.
    pub rdy: u16,
    /// The number of messages delivered and not answered.
    pub in_flight: u16,
    /// The reason why the last connection ended or failed; `None` while subscribed.
    pub last: Option<Closed>,
    /// The text of nsqd's last error, cut off at 56 bytes.
    pub detail: &'s str,
}

/// The result of a query to an nsqlookupd. A newer result replaces an older one that was not
/// polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum LookupdEvent {
    /// The nsqlookupd answered.
    Answered {
        /// The number of producers of the topic; 0 also if the nsqlookupd does not know the topic.
        producers: u16,
    },
    /// The nsqlookupd could not be reached, or its answer is unusable. Nothing changed.
    Failed(Closed),
}

/// The status of an nsqlookupd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LookupdStatus {
    /// The state of the connection to it.
    pub state: LinkState,
    /// The number of producers in its last answer, or so far in the answer being read.
    pub producers: u16,
    /// The number of these producers that cannot be used: [`Event::Unusable`].
    pub unusable: u16,
    /// The number of these producers for which there was no connection.
    pub unserved: u16,
    /// The end of the last query; [`Closed::Local`] is success.
    pub last: Option<Closed>,
}

/// The counters of a consumer. Each saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Messages received and stored.
    pub received: u64,
    /// Messages that the application finished, without late answers.
    pub finished: u64,
    /// Messages that the application requeued or released, without late answers.
    pub requeued: u64,
    /// Answers dropped because the connection was lost or the message's timeout had passed.
    pub late: u32,
    /// Messages whose timeout passed before they were answered.
    pub timed_out: u32,
    /// TOUCH commands sent.
    pub touched: u32,
    /// Messages finished after too many deliveries.
    pub given_up: u32,
    /// Messages longer than the whole ring, skipped and answered as configured.
    pub too_large: u32,
    /// Messages skipped and requeued because there was no room at that moment.
    pub no_room: u32,
    /// Skipped messages that could not be answered at once: nsqd requeues them after their timeout.
    pub unanswered: u32,
    /// Answers that nsqd refused because it had requeued the message before.
    pub refused: u32,
    /// Connections that became ready.
    pub connections: u32,
    /// Dials that failed, and connections that broke or were closed because of an error.
    pub failures: u32,
    /// Heartbeats of nsqd that were answered.
    pub heartbeats: u32,
    /// Queries to nsqlookupds that succeeded.
    pub lookups: u32,
    /// Queries to nsqlookupds that failed or had an unusable answer.
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
            Self::Late => "too late: nsqd requeues the message",
            Self::Unknown => "the message was answered before",
        })
    }
}

impl core::error::Error for AnswerError {}
