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
    /// The slot of its topic, which is there as long as it is.
    pub(super) topic: u16,
    pub(super) key: Key,
}

/// The part that slots of topics and channels have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key {
    /// A serial number that no other slot has; 0 in a free slot.
    pub(super) serial: u32,
    /// An administrator made it: it stays until one deletes it, or others need its slot.
    pub(super) kept: bool,
    /// Since when it has had no producer, was not made again and not asked for.
    /// [`Instant::NEVER`] while it has one.
    pub(super) unused_since: Instant,
}

impl Key {
    pub(super) const FREE: Self = Self { serial: 0, kept: false, unused_since: Instant::NEVER };

    pub(super) fn is_free(&self) -> bool {
        self.serial == 0
    }

    pub(super) fn is_stale(&self, now: Instant, timeout: Span) -> bool {
        !self.is_free() && !self.kept && self.unused_since.after(timeout) <= now
    }

    /// Marks the slot as used again.
    pub(super) fn touch(&mut self, now: Instant) {
        if self.unused_since != Instant::NEVER {
            self.unused_since = now;
        }
    }

    /// The order in which slots are given back: the smallest first.
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
