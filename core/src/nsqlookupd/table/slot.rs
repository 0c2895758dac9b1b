//! The slots of topics and channels.

use crate::name::{ChannelName, TopicName};
use crate::time::{Instant, Span};

/// A topic's slot.
#[derive(Debug, Clone, Copy)]
pub(in crate::nsqlookupd) struct Topic {
    pub(super) name: TopicName,
    pub(super) key: Key,
}

/// A channel's slot.
#[derive(Debug, Clone, Copy)]
pub(in crate::nsqlookupd) struct Channel {
    pub(super) name: ChannelName,
    /// The slot of its topic, which exists as long as the channel.
    pub(super) topic: u16,
    pub(super) key: Key,
}

/// The common part of the slots of topics and channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// A serial number that no other slot has; 0 in a free slot.
    pub(super) serial: u32,
    /// An administrator created the key: it stays until an administrator deletes it, or others need
    /// the slot.
    pub(super) kept: bool,
    /// The time of the last use, or [`Instant::NEVER`] while the key has a producer; without meaning
    /// in a free slot.
    pub(super) unused_since: Instant,
}

impl Key {
    /// All bytes are zero.
    pub(super) const FREE: Self = Self { serial: 0, kept: false, unused_since: Instant::ZERO };

    pub(super) fn is_free(&self) -> bool {
        self.serial == 0
    }

    pub(super) fn is_stale(&self, now: Instant, timeout: Span) -> bool {
        !self.is_free() && !self.kept && self.unused_since.after(timeout) <= now
    }

    /// Marks the key as used.
    pub(super) fn touch(&mut self, now: Instant) {
        if self.unused_since != Instant::NEVER {
            self.unused_since = now;
        }
    }

    /// Returns the rank of the slot for being given back: the smallest is the first.
    pub(super) fn age(&self) -> (Instant, u32) {
        (self.unused_since, self.serial)
    }
}

impl Topic {
    pub(in crate::nsqlookupd) const FREE: Self = Self { name: TopicName::NONE, key: Key::FREE };
}

impl Channel {
    pub(in crate::nsqlookupd) const FREE: Self =
        Self { name: ChannelName::NONE, topic: 0, key: Key::FREE };
}
