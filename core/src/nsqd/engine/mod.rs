//! The state of an nsqd that all sessions share: topics, channels, messages.

mod deliver;
mod discard;
mod publish;
mod topology;

use core::fmt;

use super::arena::{Arena, Cursor, Lane, NIL};
use super::slots::Slots;
use super::table::{Channel, Entry, NONE, Subscription, Topic};
use super::{Block, Config, Counters, Index};
use crate::time::{Instant, Jitter};
use crate::wire::nsqd::{Limits, MessageId};

/// The highest count of attempts. pynsq reads larger numbers as negative.
const ATTEMPTS_MAX: u16 = i16::MAX as u16;

/// The most messages that a client's sampling skips in one call.
const SKIPS_MAX: u32 = 64;

/// Marks that some client may have an event that was not polled yet.
pub(super) const CLIENT_EVENT: u8 = 1 << 7;

/// The reason for which a message waits for room and then is refused.
pub(super) const NO_ROOM: &str = "no room";
const NO_ROOM_ANNOUNCED: &str = "no room beside what others have announced";
pub(super) const NO_ROOM_UNCONSUMED: &str = "no room for what nobody consumes";

/// The state that all sessions share.
#[derive(Debug)]
pub(super) struct Shared<'a> {
    pub(super) config: &'a Config<'a>,
    pub(super) limits: Limits,
    pub(super) store: Arena<'a>,
    /// Blocks kept free for the application.
    reserve: Block,
    /// The most blocks that clients together can hold for incomplete messages.
    pub(super) announced_max: Block,
    /// The blocks that clients hold for incomplete messages.
    pub(super) announced: u32,
    /// The most blocks that clients' messages can take in unconsumed topics together.
    unconsumed_max: Block,
    /// The reason for the last rejection because of missing room.
    pub(super) reject_reason: &'static str,
    /// The number of expired messages that no polled event has reported yet.
    pub(in crate::nsqd) expired_pending: u32,
    /// The blocks that the application's messages take.
    own: Block,
    pub(super) topics: Slots<'a, Topic>,
    pub(super) channels: Slots<'a, Channel>,
    /// The in-flight entries, `per_channel` for each channel. An entry is written before it is read:
    /// memory that a platform gives page by page is used as far as messages were in flight.
    pub(super) entries: &'a mut [Entry],
    pub(super) per_channel: u16,
    pub(super) subscriptions: Slots<'a, Subscription>,
    /// The number of the next message to be published.
    pub(super) next: u64,
    pub(super) counters: Counters,
    pub(super) version: u32,
    pub(super) topology: u32,
    /// The number of dropped messages that no polled event has reported yet.
    pub(in crate::nsqd) dropped_pending: u32,
    /// The tables that refused a topic or channel since they last had room, one bit each; and those
    /// of them that no polled event has reported yet, with [`CLIENT_EVENT`].
    pub(in crate::nsqd) full_reported: u8,
    pub(in crate::nsqd) pending: u8,
    /// A client or the application waits for room.
    pub(super) wanted: bool,
    /// New topics are held until the nsqlookupds were asked for their channels.
    pub(super) asks: bool,
    /// A topic may be held until nsqlookupds were asked. While false, none is, which saves a search
    /// through all topics.
    pub(in crate::nsqd) holds: bool,
    /// The topic whose channels an nsqlookupd is being asked for; [`NONE`] without a query, or if
    /// the answer is no longer needed.
    pub(super) asked: Index,
    jitter: Jitter,
    /// Unix time at the platform's start, in nanoseconds.
    pub(super) epoch: i64,
}

/// Messages that are being received: in the store, but not in a topic yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Draft {
    first: Block,
    last: Block,
    count: u32,
    bytes: u32,
    /// The blocks reserved for the rest of a batch.
    promised: Block,
    /// The blocks that the messages take so far.
    held: Block,
    /// The blocks that count as announced, unless `is_complete`.
    claimed: Block,
    /// The application publishes these messages, and may use the reserve.
    own: bool,
    /// All announced bytes have arrived, so the draft need not wait for what others have announced.
    pub(super) is_complete: bool,
    /// The position at which the last message is being filled.
    to: Cursor,
}

impl Draft {
    /// An empty draft for a client.
    pub(super) const NONE: Self = Self { first: NIL, last: NIL, to: Cursor::NONE, ..Self::ZERO };

    /// Storage before its first use: all bytes are zero.
    pub(super) const ZERO: Self = Self {
        first: 0,
        last: 0,
        count: 0,
        bytes: 0,
        promised: 0,
        held: 0,
        claimed: 0,
        own: false,
        is_complete: false,
        to: Cursor::ZERO,
    };

    /// An empty draft for the application.
    pub(super) const OWN: Self = Self { own: true, ..Self::NONE };

    /// Returns the number of messages, including the last one, which may be incomplete.
    pub(super) const fn count(&self) -> u32 {
        self.count
    }
}

/// A part of a body, with its length in bytes.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    /// The start of a message.
    First(u32),
    /// More of the last message.
    Next(u32),
}

/// The table that has no room for another topic or channel, and nothing to evict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum TableFull {
    /// All topics: the storage's `TOPICS`.
    Topics,
    /// All channels of all topics: the storage's `CHANNELS`.
    Channels,
    /// The channels of one topic: [`Config::channels_per_topic`].
    ChannelsOfTopic,
}

impl TableFull {
    pub(super) const fn text(self) -> &'static str {
        match self {
            Self::Topics => "no room for another topic",
            Self::Channels => "no room for another channel",
            Self::ChannelsOfTopic => "no room for another channel of this topic",
        }
    }

    pub(super) const fn bit(self) -> u8 {
        match self {
            Self::Topics => 1,
            Self::Channels => 2,
            Self::ChannelsOfTopic => 4,
        }
    }
}

impl fmt::Display for TableFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// The reason why FIN, REQ or TOUCH fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotYours {
    NotInFlight,
    NotOwner,
}

/// A message to be written to a client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) message: Block,
    pub(super) attempts: u16,
}

impl<'a> Shared<'a> {
    pub(in crate::nsqd) fn new(
        config: &'a Config<'a>,
        store: Arena<'a>,
        topics: &'a mut [Topic],
        channels: &'a mut [Channel],
        entries: &'a mut [Entry],
        subscriptions: &'a mut [Subscription],
        per_channel: u16,
    ) -> Self {
        let blocks = u32::from(store.capacity());
        // Of hundreds and the rest, which is exact and does not overflow.
        let hundreds = |percent: u8| (blocks / 100).saturating_mul(percent.into());
        let rest = |percent: u8| (blocks % 100).saturating_mul(percent.into());
        let up = |percent| hundreds(percent).saturating_add(rest(percent).div_ceil(100)) as Block;
        let percent = config.reserve_percent;
        let reserve = hundreds(percent).saturating_add(rest(percent) / 100) as Block;
        let announced_max = up(config.announced_percent);
        let longest = store.layout().longest_in(announced_max);
        let mut limits = config.limits;
        limits.max_rdy_count = limits.max_rdy_count.min(per_channel.into());
        limits.max_msg_size = limits.max_msg_size.min(longest);
        limits.deflate = false;
        limits.snappy = false;
        Self {
            config,
            limits,
            store,
            reserve,
            announced_max,
            announced: 0,
            unconsumed_max: up(config.unconsumed_percent),
            reject_reason: NO_ROOM,
            expired_pending: 0,
            own: 0,
            topics: Slots::new(topics, || Topic::NEW),
            channels: Slots::new(channels, || Channel::NEW),
            entries,
            per_channel,
            subscriptions: Slots::new(subscriptions, || Subscription::EMPTY),
            next: 0,
            counters: Counters::default(),
            version: 0,
            topology: 0,
            dropped_pending: 0,
            full_reported: 0,
            pending: 0,
            wanted: false,
            asks: false,
            holds: false,
            asked: NONE,
            jitter: Jitter::new(config.seed),
            epoch: 0,
        }
    }

    /// Changes the version, which wakes all waiting tasks: sessions, publishers, registrations.
    pub(in crate::nsqd) fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    pub(in crate::nsqd) fn topic(&self, at: Index) -> Option<&Topic> {
        self.topics.get(usize::from(at))
    }

    fn topic_mut(&mut self, at: Index) -> Option<&mut Topic> {
        self.topics.get_mut(usize::from(at))
    }

    pub(in crate::nsqd) fn channel(&self, at: Index) -> Option<&Channel> {
        self.channels.get(usize::from(at))
    }

    fn channel_mut(&mut self, at: Index) -> Option<&mut Channel> {
        self.channels.get_mut(usize::from(at))
    }

    pub(in crate::nsqd) fn subscription(&self, id: Index) -> Option<&Subscription> {
        self.subscriptions.get(usize::from(id))
    }

    pub(in crate::nsqd) fn subscription_mut(&mut self, id: Index) -> Option<&mut Subscription> {
        self.subscriptions.get_mut(usize::from(id))
    }

    /// Returns the Unix time in nanoseconds.
    pub(in crate::nsqd) fn unix(&self, now: Instant) -> i64 {
        let nanos = i64::try_from(now.as_micros()).unwrap_or(i64::MAX).saturating_mul(1000);
        self.epoch.saturating_add(nanos)
    }

    /// Adds a reference to a message, which keeps its blocks while it is being written.
    fn pin(&mut self, message: Block) {
        let refs = self.store.refs(message).saturating_add(1);
        self.store.set_refs(message, refs);
    }

    /// Drops one reference to a message. Frees the message with the last reference.
    pub(in crate::nsqd) fn release(&mut self, message: Block) {
        let refs = self.store.refs(message).saturating_sub(1);
        self.store.set_refs(message, refs);
        if refs == 0 && !self.store.is_listed(message) {
            self.free(message);
        }
    }

    /// Marks a channel as done with a message. Returns true if all channels are.
    fn done(&mut self, message: Block, lane: u8) -> bool {
        self.store.set_lane(message, lane, Lane::Done);
        let is_done = |lane| self.store.lane(message, lane) == Lane::Done;
        let all = (0..self.config.channels_per_topic).all(is_done);
        if all {
            // The message may still be being written, and its topic may be deleted before that
            // ends.
            self.uncount(message);
        }
        self.release(message);
        all
    }

    /// Frees a message that nothing refers to.
    fn free(&mut self, message: Block) {
        self.uncount(message);
        self.store.give(message);
        self.freed();
    }

    /// Stops counting a message's blocks as those of its publisher.
    fn uncount(&mut self, message: Block) {
        let blocks = self.store.uncount(message);
        if self.store.is_own(message) {
            self.own = self.own.saturating_sub(blocks);
        } else if let Some(topic) = self.topic_mut(self.store.topic(message)) {
            topic.theirs = topic.theirs.saturating_sub(blocks);
        }
    }

    fn trim_of(&mut self, channel: Index) {
        if let Some(topic) = self.channel(channel).map(|channel| channel.topic) {
            self.trim(topic);
        }
    }

    /// Removes the messages from a topic's list that all cursors have passed.
    fn trim(&mut self, at: Index) {
        while let Some(topic) = self.topics.get_mut(usize::from(at))
            && topic.list.len > 0
        {
            let message = topic.list.first;
            let is_queued = |lane| self.store.lane(message, lane) == Lane::Queued;
            if (0..self.config.channels_per_topic).any(is_queued) {
                return;
            }
            let _ = topic.list.pop(&self.store);
            self.unlisted(message);
        }
    }

    fn unlisted(&mut self, message: Block) {
        self.store.set_listed(message, false);
        if self.store.refs(message) == 0 {
            self.free(message);
        }
    }

    /// Wakes the tasks that wait for room, after blocks became free.
    fn freed(&mut self) {
        if self.wanted {
            self.wanted = false;
            self.changed();
        }
    }

    /// The entries of a channel that may have a message.
    fn range(&self, at: Index) -> core::ops::Range<usize> {
        let Some(channel) = self.channel(at) else { return 0..0 };
        let start = usize::from(at).saturating_mul(self.per_channel.into());
        start..start.saturating_add(channel.entries.into())
    }

    /// Returns the id of a message: 8 hexadecimal digits of `Config::boot`, 8 of `sequence`.
    pub(in crate::nsqd) fn id_of(&self, sequence: u32) -> MessageId {
        let mut id = [0; 16];
        let number = u64::from(self.config.boot) << 32 | u64::from(sequence);
        for (slot, nibble) in id.iter_mut().zip((0..16).rev()) {
            let digit = (number >> (4 * nibble)) as u8 & 15;
            *slot = if digit < 10 { b'0' | digit } else { (b'a' - 10).wrapping_add(digit) };
        }
        MessageId(id)
    }

    fn sequence_of(&self, id: &MessageId) -> Option<u32> {
        let mut number = 0u64;
        for byte in id.0 {
            let digit = match byte {
                b'0'..=b'9' => byte & 15,
                b'a'..=b'f' => byte.wrapping_sub(b'a').wrapping_add(10),
                _ => return None,
            };
            number = number << 4 | u64::from(digit);
        }
        ((number >> 32) as u32 == self.config.boot).then_some(number as u32)
    }
}
