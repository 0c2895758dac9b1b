//! The events that a [`Nsqd`](super::Nsqd) reports to the application.

use super::TableFull;
use crate::session::Closed;

/// A change of a connection. Newer ones replace older ones that nobody polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ClientEvent {
    /// A client connected.
    Connected,
    /// The client disconnected.
    Disconnected(Closed),
}

/// An event that the application should know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// A client came or went.
    Client {
        /// The index of the client.
        index: usize,
        /// The change.
        event: ClientEvent,
    },
    /// So many messages were dropped to make room since this was last said: for others
    /// ([`Full::DropOldest`](super::Full::DropOldest); topics' and channels' status have how many
    /// of whose), or with a channel that was given back.
    Dropped {
        /// The number of messages.
        count: u32,
    },
    /// Somebody was refused since a table is full, with nothing in it that can be given back. Said
    /// once, until there was room again.
    TableFull(TableFull),
    /// So many messages were dropped since this was last said, which nobody had consumed for
    /// [`Config::unconsumed_age`](super::Config::unconsumed_age); topics' status has how many of
    /// whose.
    Expired {
        /// The number of messages.
        count: u32,
    },
    /// An nsqlookupd did not say which channels a new topic has elsewhere: the topic does without.
    /// A newer one replaces an older one that nobody polled.
    AskFailed {
        /// The index of the nsqlookupd in the slice given to [`Nsqd::asking`](super::Nsqd::asking).
        lookupd: usize,
        /// The reason.
        why: Closed,
    },
}
