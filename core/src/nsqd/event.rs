//! The events that a [`Nsqd`](super::Nsqd) reports to the application.

use super::TableFull;
use crate::session::Closed;

/// A change of a client's connection. A newer one replaces an older one that was not polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ClientEvent {
    /// A client connected.
    Connected,
    /// The client disconnected.
    Disconnected(Closed),
}

/// An event for the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// A client connected or disconnected.
    Client {
        /// The index of the client.
        index: usize,
        /// The change.
        event: ClientEvent,
    },
    /// Messages were dropped since the last such event: to make room for others
    /// ([`Full`](super::Full); the status of topics and channels has their own counts), or with an
    /// evicted channel.
    Dropped {
        /// The number of messages.
        count: u32,
    },
    /// A topic or channel was refused: the table is full, and nothing in it can be evicted.
    /// Reported once, until the table had room again.
    TableFull(TableFull),
    /// Messages were dropped since the last such event that had waited without a channel for
    /// [`Config::unconsumed_age`](super::Config::unconsumed_age). The status of topics has their
    /// own counts.
    Expired {
        /// The number of messages.
        count: u32,
    },
    /// An nsqlookupd did not answer which channels a new topic has elsewhere: the topic flows
    /// without them. A newer one replaces an older one that was not polled.
    AskFailed {
        /// The index of the nsqlookupd in the slice given to [`Nsqd::asking`](super::Nsqd::asking).
        lookupd: usize,
        /// The reason.
        why: Closed,
    },
}
