//! The events, counters and status of an nsqlookupd.

use core::net::SocketAddr;

use super::NodeInfo;
use crate::session::Closed;
use crate::time::Instant;

/// An event for the owner. A newer event of an nsqd replaces an older one that was not polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// An nsqd sent IDENTIFY: [`Nsqlookupd::producer`](super::Nsqlookupd::producer) has its status.
    Identified {
        /// The connection of the nsqd.
        index: usize,
        /// True if another connection already announces the same address.
        listed: bool,
    },
    /// An nsqd's connection ended, and with it its registrations.
    Left {
        /// The connection of the nsqd.
        index: usize,
        /// The reason. [`Closed::Local`]: another connection replaced this one.
        why: Closed,
        /// True if another connection still announces the same address.
        listed: bool,
    },
    /// A request was refused because there is no room. One event for all such requests since the
    /// last poll; [`Counters::full`] counts them.
    TableFull(TableFull),
}

/// The table that was full when a request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TableFull {
    /// The topics: connected nsqds have registered as many as there is room for.
    Topics,
    /// The channels: connected nsqds have registered as many as there is room for.
    Channels,
    /// The tombstones: there are [`TOMBSTONES`](super::TOMBSTONES).
    Tombstones,
    /// The share of one connection in the topics or channels:
    /// [`Config::topics_per_node`](super::Config::topics_per_node),
    /// [`Config::channels_per_node`](super::Config::channels_per_node).
    Share,
}

impl TableFull {
    pub(super) const ALL: [Self; 4] = [Self::Topics, Self::Channels, Self::Tombstones, Self::Share];

    pub(super) const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Counters since the start. Each saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Connections of nsqds that sent IDENTIFY.
    pub identified: u32,
    /// Connections of nsqds that another connection of the same address replaced.
    pub replaced: u32,
    /// Connections of nsqds closed because of an invalid command.
    pub refused: u32,
    /// Connections of nsqds closed because they were silent or did not read.
    pub timed_out: u32,
    /// REGISTERs and HTTP requests refused because there was no room.
    pub full: u32,
    /// Topics and channels removed after [`Config::empty_timeout`](super::Config::empty_timeout).
    pub collected: u32,
    /// Topics and channels without producers removed because others needed their slots.
    pub given_back: u32,
    /// HTTP requests answered, without refusals.
    pub requests: u32,
    /// HTTP requests refused.
    pub requests_refused: u32,
    /// HTTP requests whose client did not read the whole answer.
    pub requests_lost: u32,
}

/// The status of an nsqd that has sent IDENTIFY.
#[derive(Debug, Clone, Copy)]
pub struct ProducerStatus<'s> {
    /// The fields of IDENTIFY.
    pub node: NodeInfo<'s>,
    /// The remote address of the connection.
    pub remote: SocketAddr,
    /// The time of the last IDENTIFY or PING.
    pub last_update: Instant,
}
