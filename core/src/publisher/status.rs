//! Options, errors, events, counters and states of a publisher.

use core::fmt;

use super::{Outcome, Ticket};
use crate::session::{Closed, Fault};
use crate::time::{Instant, Span};

/// How to publish one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PublishOptions {
    /// How long nsqd holds the message back, up to [`DEFER_MAX`](super::DEFER_MAX) (DPUB). Deferred
    /// messages leave one by one.
    pub defer: Option<Span>,
    /// When to give the message up if nsqd has not acknowledged it, exact to 131 ms: then or later.
    pub deadline: Option<Instant>,
}

/// Why a message was not accepted. The publisher is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PublishError {
    /// The outbox is full. Try again after messages were acknowledged, or wait for room.
    Full,
    /// The message never fits into the outbox.
    TooLarge {
        /// The longest body that fits, in bytes, with this topic.
        max: usize,
    },
    /// nsqd accepts no empty message.
    Empty,
    /// The deferral is above [`DEFER_MAX`](super::DEFER_MAX).
    DeferTooLong,
    /// [`Publisher::stop`](super::Publisher::stop) was called.
    Stopped,
}

/// An event for the application. A newer change of the connection replaces an older one that was
/// not polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// The connection is ready: messages are sent.
    Connected {
        /// The index of the nsqd among the addresses.
        nsqd: usize,
    },
    /// The connection is gone or did not come up; another attempt is due.
    Disconnected {
        /// The index of the nsqd among the addresses.
        nsqd: usize,
        /// The reason; [`Publisher::detail`](super::Publisher::detail) has nsqd's text.
        why: Closed,
    },
    /// This nsqd refused permanently, and is left out for
    /// [`Config::left_out_for`](super::Config::left_out_for); the others are used meanwhile.
    /// Replaces `Disconnected`, each time.
    LeftOut {
        /// The index of the nsqd among the addresses.
        nsqd: usize,
        /// The reason; [`Publisher::detail`](super::Publisher::detail) has nsqd's text.
        why: Fault,
    },
    /// These messages failed: nsqd will not acknowledge them.
    Failed {
        /// The first of the messages.
        first: Ticket,
        /// How many, counting up from `first`.
        count: u32,
        /// Not [`Outcome::Acknowledged`].
        outcome: Outcome,
    },
    /// So many more messages failed, but their tickets are forgotten: more than 4 ranges failed
    /// before the application polled.
    Forgotten {
        /// How many messages.
        count: u32,
    },
    /// Every message before this ticket is final, and was acknowledged unless
    /// [`Event::Failed`] named it or [`Event::Forgotten`] counted it.
    Resolved {
        /// The first message that is not final.
        below: Ticket,
    },
}

/// Counters since the start. `accepted = acknowledged + rejected + expired + dropped + pending`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Messages accepted into the outbox.
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
    /// Calls of `publish` refused because the outbox was full. Each attempt of a message counts.
    pub refused: u64,
    /// Messages that were wholly written, but not answered, when their connection broke. Sending
    /// them again may have made a duplicate of each: nsqd has at most this many duplicates.
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

/// [`Counters`] without those that can be derived.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) acknowledged: u64,
    pub(super) rejected: u64,
    pub(super) expired: u64,
    pub(super) dropped: u64,
    pub(super) refused: u64,
    pub(super) possible_duplicates: u64,
    pub(super) late: u64,
    pub(super) pubs: u64,
    pub(super) mpubs: u64,
    pub(super) connections: u32,
    pub(super) failures: u32,
    pub(super) heartbeats: u32,
}

impl Tally {
    pub(super) const NONE: Self = Self {
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

/// The state of a publisher's connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum State {
    /// No connection; the next dial is due at a time.
    Waiting,
    /// No connection: every nsqd refused permanently; this is the last refusal. The nsqds are
    /// dialed again after [`Config::left_out_for`](super::Config::left_out_for).
    LeftOut(Fault),
    /// A dial is under way.
    Dialing,
    /// The transport is being wrapped: [`Link::Upgrade`](crate::session::Link::Upgrade).
    Upgrading,
    /// IDENTIFY is being sent, or its response is awaited.
    Identifying,
    /// AUTH is being sent, or its response is awaited.
    Authenticating,
    /// The handshake is done: batches are sent and answered.
    Ready,
    /// The driver has to close the connection.
    Closing(Closed),
    /// [`Publisher::stop`](super::Publisher::stop) was called and the connection is gone.
    Stopped,
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
