//! What a publisher is asked, answers and counts.

use core::fmt;

use super::{Outcome, Ticket};
use crate::session::{Closed, Fault};
use crate::time::{Instant, Span};

/// How to publish one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PublishOptions {
    /// nsqd holds the message back for so long, up to [`DEFER_MAX`](super::DEFER_MAX) (DPUB). Deferred messages
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
    /// The deferral is above [`DEFER_MAX`](super::DEFER_MAX).
    DeferTooLong,
    /// [`Publisher::stop`](super::Publisher::stop) was called.
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
        /// Why; [`Publisher::detail`](super::Publisher::detail) has nsqd's own words.
        why: Closed,
    },
    /// This nsqd refused in a way that no repetition cures, and is left out for
    /// [`Config::left_out_for`](super::Config::left_out_for); the others are used meanwhile. Instead of `Disconnected`, each time.
    LeftOut {
        /// Which of the nsqd addresses.
        nsqd: usize,
        /// Why, and what to do; [`Publisher::detail`](super::Publisher::detail) has nsqd's own words.
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
    /// while more than 4 ranges failed.
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

/// Where the connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum State {
    /// No connection; the next dial is due at a time.
    Waiting,
    /// No connection: every nsqd refused in a way that no repetition cures, the last one so. They are
    /// dialed again after [`Config::left_out_for`](super::Config::left_out_for).
    LeftOut(Fault),
    /// A dial is under way.
    Dialing,
    /// The transport is being wrapped: [`Link::Upgrade`](crate::session::Link::Upgrade).
    Upgrading,
    /// IDENTIFY is being sent, or its answer is due.
    Identifying,
    /// AUTH is being sent, or its answer is due.
    Authenticating,
    /// The handshake is done: batches are sent and answered.
    Ready,
    /// The driver is to close the connection.
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
