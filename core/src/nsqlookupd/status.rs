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
    /// An nsqd said who it is: [`Nsqlookupd::producer`](super::Nsqlookupd::producer) has it.
    Identified {
        /// Its connection.
        index: usize,
        /// Its address is listed already: another connection announces it as well.
        listed: bool,
    },
    /// An nsqd's connection ended, and what it registered is listed no longer.
    Left {
        /// Its connection.
        index: usize,
        /// How that ended. [`Closed::Local`]: another connection replaced it.
        why: Closed,
        /// Its address is listed still: another connection announces it as well.
        listed: bool,
    },
    /// Something was refused since there is no room for it. Once for all since it was last polled:
    /// [`Counters::full`] has how often.
    TableFull(TableFull),
}

/// The table that is full. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TableFull {
    /// Another topic: connected nsqds register all that there is room for.
    Topics,
    /// Another channel: connected nsqds register all that there is room for.
    Channels,
    /// Another tombstone: there are [`TOMBSTONES`](super::TOMBSTONES).
    Tombstones,
    /// Another topic or channel of one connection:
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
    /// nsqds that said who they are.
    pub identified: u32,
    /// Connections of nsqds that another one of the same address replaced.
    pub replaced: u32,
    /// Connections of nsqds closed for what they sent.
    pub refused: u32,
    /// Connections of nsqds closed since they were silent, or did not read.
    pub timed_out: u32,
    /// REGISTERs and HTTP requests refused since there was no room.
    pub full: u32,
    /// Topics and channels forgotten after a while without producers.
    pub collected: u32,
    /// Topics and channels without producers removed since others needed their slots.
    pub given_back: u32,
    /// HTTP requests answered, refusals not included.
    pub requests: u32,
    /// HTTP requests refused.
    pub requests_refused: u32,
    /// HTTP requests whose client did not take the answer.
    pub requests_lost: u32,
}

/// An nsqd that is listed, or was until its PINGs stopped.
#[derive(Debug, Clone, Copy)]
pub struct ProducerStatus<'s> {
    /// What the nsqd sent in IDENTIFY.
    pub node: NodeInfo<'s>,
    /// The remote address of the connection.
    pub remote: SocketAddr,
    /// When it last sent IDENTIFY or PING.
    pub last_update: Instant,
}
