//! The entries of an nsqd's tables: topics, channels, subscriptions and messages in flight.

use crate::name::{ChannelName, TopicName};
use crate::time::{Instant, Span};

use super::arena::{Arena, NIL};
use super::heap::Heap;
use super::{Block, Index};

/// The number of topics for which a client's published messages are counted.
pub(super) const PUB_COUNTS_MAX: usize = 4;

/// The index of no topic, channel or client.
pub(super) const NONE: Index = Index::MAX;

/// A linked list of messages, through their own link or the link of one lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    pub(super) first: Block,
    pub(super) last: Block,
    pub(super) len: Block,
}

impl List {
    pub(super) const EMPTY: Self = Self { first: NIL, last: NIL, len: 0 };

    /// Storage before its first use: all bytes are zero.
    const ZERO: Self = Self { first: 0, last: 0, len: 0 };

    /// Appends a message, through the messages' own link.
    pub(super) fn push(&mut self, store: &mut Arena<'_>, message: Block) {
        store.set_next(message, NIL);
        if self.first == NIL {
            self.first = message;
        } else {
            store.set_next(self.last, message);
        }
        self.last = message;
        self.len = self.len.saturating_add(1);
    }

    /// Removes the first message, through the messages' own link.
    pub(super) fn pop(&mut self, store: &Arena<'_>) -> Option<Block> {
        let message = self.first;
        if message == NIL {
            return None;
        }
        self.first = store.next(message);
        self.shrink();
        Some(message)
    }

    /// Removes a message of the list, through the messages' own link.
    pub(super) fn unlink(&mut self, store: &mut Arena<'_>, message: Block) {
        if self.first == message {
            let _ = self.pop(store);
            return;
        }
        let mut before = self.first;
        for _ in 0..self.len {
            let next = store.next(before);
            if next == message {
                store.set_next(before, store.next(message));
                if self.last == message {
                    self.last = before;
                }
                self.shrink();
                return;
            }
            before = next;
        }
    }

    /// Appends a message, through the link of a lane.
    pub(super) fn push_lane(&mut self, store: &mut Arena<'_>, message: Block, lane: u8) {
        store.set_lane_next(message, lane, NIL);
        if self.first == NIL {
            self.first = message;
        } else {
            store.set_lane_next(self.last, lane, message);
        }
        self.last = message;
        self.len = self.len.saturating_add(1);
    }

    /// Removes the first message, through the link of a lane.
    pub(super) fn pop_lane(&mut self, store: &Arena<'_>, lane: u8) -> Option<Block> {
        let message = self.first;
        if message == NIL {
            return None;
        }
        self.first = store.lane_next(message, lane);
        self.shrink();
        Some(message)
    }

    /// Removes a message of the list, through the link of a lane.
    pub(super) fn unlink_lane(&mut self, store: &mut Arena<'_>, message: Block, lane: u8) {
        if self.first == message {
            let _ = self.pop_lane(store, lane);
            return;
        }
        let mut before = self.first;
        for _ in 0..self.len {
            let next = store.lane_next(before, lane);
            if next == message {
                let after = store.lane_next(message, lane);
                store.set_lane_next(before, lane, after);
                if self.last == message {
                    self.last = before;
                }
                self.shrink();
                return;
            }
            before = next;
        }
    }

    fn shrink(&mut self) {
        self.len = self.len.saturating_sub(1);
        if self.first == NIL {
            *self = Self::EMPTY;
        }
    }
}

/// The source that named a topic or channel; of several, the greatest. Topics and channels of the
/// application or an administrator are not evicted for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// A client, by SUB or publishing.
    Client,
    /// The answer of an nsqlookupd to a query for a topic's channels.
    Lookupd,
    /// `/topic/create` or `/channel/create`.
    Http,
    Application,
}

/// A point in time in units of 65.536 ms, to compute ages. It wraps after 8 years.
#[derive(Debug, Clone, Copy)]
pub(super) struct Used(u32);

impl Used {
    pub(super) const NEVER: Self = Self(0);

    pub(super) const fn at(now: Instant) -> Self {
        Self((now.as_micros() >> 16) as u32)
    }

    pub(super) const fn stored(self) -> u32 {
        self.0
    }

    pub(super) const fn from_stored(stored: u32) -> Self {
        Self(stored)
    }

    /// Returns whether the time is at least `age` ago.
    pub(super) const fn is_older(self, now: Instant, age: Span) -> bool {
        self.age(now) as u64 >= (age.as_millis() as u64 * 1000) >> 16
    }

    /// Returns whether the time is in the last minute.
    pub(super) const fn is_recent(self, now: Instant) -> bool {
        self.0 != Self::NEVER.0 && self.age(now) < 60_000_000 >> 16
    }

    /// Returns the time since then in units of 65.536 ms.
    pub(super) const fn age(self, now: Instant) -> u32 {
        Self::at(now).0.wrapping_sub(self.0)
    }
}

/// A slot for a topic.
#[derive(Debug)]
pub(super) struct Topic {
    /// Empty in a free slot.
    pub(super) name: TopicName,
    pub(super) origin: Origin,
    /// The last time that it was created, published to or subscribed to, or a subscriber left.
    pub(super) used: Used,
    pub(super) paused: bool,
    /// The number of its channels.
    pub(super) channels: u8,
    /// The nsqlookupds still to be asked for its channels, one bit each, and the time limit for
    /// that.
    pub(super) asking: u8,
    pub(super) ask_until: Instant,
    /// Messages not distributed yet: the topic has no channel, is paused, or nsqlookupds are asked.
    pub(super) held: List,
    /// Messages distributed to the channels, and not passed by all their cursors.
    pub(super) list: List,
    /// The blocks of clients' messages in it.
    pub(super) theirs: Block,
    /// The last time that a message of it became finished in all channels.
    pub(super) finished: Used,
    pub(super) messages: u64,
    pub(super) bytes: u64,
    pub(super) dropped: u64,
}

impl Topic {
    pub(super) const NEW: Self =
        Self { ask_until: Instant::NEVER, held: List::EMPTY, list: List::EMPTY, ..Self::ZERO };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self = Self {
        name: TopicName::NONE,
        origin: Origin::Client,
        used: Used::NEVER,
        paused: false,
        channels: 0,
        asking: 0,
        ask_until: Instant::ZERO,
        held: List::ZERO,
        theirs: 0,
        finished: Used::NEVER,
        list: List::ZERO,
        messages: 0,
        bytes: 0,
        dropped: 0,
    };

    pub(super) fn is_used(&self) -> bool {
        !self.name.as_bytes().is_empty()
    }
}

/// A slot for a channel.
#[derive(Debug)]
pub(super) struct Channel {
    pub(super) name: ChannelName,
    /// The channel's topic; [`NONE`] in a free slot.
    pub(super) topic: Index,
    pub(super) origin: Origin,
    /// The time that it was created, or that a client last left it.
    pub(super) used: Used,
    /// A message was delivered from it.
    pub(super) delivered: bool,
    /// The index of the channel's lane in the heads of the topic's messages.
    pub(super) lane: u8,
    /// The number of subscribed clients.
    pub(super) clients: Index,
    pub(super) paused: bool,
    /// If new and requeued messages wait, the next delivery is a requeued one.
    pub(super) requeued_next: bool,
    /// A client did not get a message because too few entries or blocks are free; wake clients when
    /// a message leaves flight.
    pub(super) starved: bool,
    /// The first message of the topic's list that the channel has not passed.
    pub(super) cursor: Block,
    /// The number of messages from the cursor on.
    pub(super) queued: Block,
    pub(super) requeued: List,
    /// Deferred messages.
    pub(super) deferred: Heap,
    pub(super) in_flight: u16,
    /// The number of its entries that were used since nothing was in flight. The entries behind
    /// them have no meaning and are not read.
    pub(super) entries: u16,
    /// Counts deliveries, wrapping, so that clients get messages in turn.
    pub(super) deliveries: u32,
    pub(super) messages: u64,
    pub(super) requeues: u64,
    pub(super) timeouts: u64,
    pub(super) dropped: u64,
}

impl Channel {
    pub(super) const NEW: Self = Self {
        topic: NONE,
        cursor: NIL,
        requeued: List::EMPTY,
        deferred: Heap::EMPTY,
        ..Self::ZERO
    };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self = Self {
        name: ChannelName::NONE,
        topic: 0,
        origin: Origin::Client,
        used: Used::NEVER,
        delivered: false,
        lane: 0,
        clients: 0,
        paused: false,
        requeued_next: false,
        starved: false,
        cursor: 0,
        queued: 0,
        requeued: List::ZERO,
        deferred: Heap::ZERO,
        in_flight: 0,
        entries: 0,
        deliveries: 0,
        messages: 0,
        requeues: 0,
        timeouts: 0,
        dropped: 0,
    };

    /// Returns the number of messages that wait for delivery.
    pub(super) fn depth(&self) -> u32 {
        u32::from(self.queued).saturating_add(self.requeued.len.into())
    }

    /// Returns the number of messages that are not in flight.
    pub(super) fn waiting(&self) -> u32 {
        self.depth().saturating_add(self.deferred.len.into())
    }

    pub(super) fn is_used(&self) -> bool {
        self.topic != NONE
    }
}

/// A slot for a message in flight.
///
/// RAM: 24 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) deadline: Instant,
    pub(super) delivered: Instant,
    pub(super) sequence: u32,
    /// [`NIL`] in a free slot.
    pub(super) message: Block,
    /// The client that has the message in flight.
    pub(super) owner: Index,
}

impl Entry {
    pub(super) const FREE: Self = Self {
        deadline: Instant::NEVER,
        delivered: Instant::ZERO,
        sequence: 0,
        message: NIL,
        owner: NONE,
    };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self = Self {
        deadline: Instant::ZERO,
        delivered: Instant::ZERO,
        sequence: 0,
        message: 0,
        owner: 0,
    };
}

/// A client's subscription and its counters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subscription {
    /// The subscribed channel; [`NONE`] without a subscription.
    pub(super) channel: Index,
    /// The slot has a client.
    pub(super) connected: bool,
    /// The client could be sent a message at once, because nothing waits to be written.
    pub(super) idle: bool,
    /// The client's channel was deleted, so its connection has to be closed.
    pub(super) kicked: bool,
    /// The client's RDY count.
    pub(super) ready: u16,
    pub(super) in_flight: u16,
    /// The channel's `deliveries` when the client last got a message.
    pub(super) last_delivery: u32,
    /// The channel's `deliveries` when the client last let another client go first.
    pub(super) yielded_at: Option<u32>,
    pub(super) delivered: u64,
    pub(super) finished: u64,
    pub(super) requeued: u64,
    /// Topics that the client published to, with the number of messages.
    pub(super) pubs: [(Index, u32); PUB_COUNTS_MAX],
}

impl Subscription {
    pub(super) const EMPTY: Self =
        Self { channel: NONE, pubs: [(NONE, 0); PUB_COUNTS_MAX], ..Self::ZERO };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self = Self {
        channel: 0,
        connected: false,
        idle: false,
        kicked: false,
        ready: 0,
        in_flight: 0,
        last_delivery: 0,
        yielded_at: None,
        delivered: 0,
        finished: 0,
        requeued: 0,
        pubs: [(0, 0); PUB_COUNTS_MAX],
    };

    /// Returns whether RDY allows another message in flight.
    pub(super) fn is_ready(&self) -> bool {
        self.in_flight < self.ready
    }

    pub(super) fn count_pubs(&mut self, topic: Index, count: u32) {
        let known = self.pubs.iter().position(|(at, _)| *at == topic);
        let slot = known.or_else(|| self.pubs.iter().position(|(at, _)| *at == NONE));
        if let Some(slot) = slot.and_then(|at| self.pubs.get_mut(at)) {
            *slot = (topic, slot.1.saturating_add(count));
        }
    }
}
