//! Stores published messages, and drops or expires others when there is no room.

use super::{Draft, NO_ROOM, NO_ROOM_ANNOUNCED, NO_ROOM_UNCONSUMED, Piece, Shared};
use crate::name::TopicName;
use crate::nsqd::arena::{Lane, NIL};
use crate::nsqd::table::{NONE, Origin, Topic, Used};
use crate::nsqd::{Block, Full, Index};
use crate::time::{Instant, Span};

impl Shared<'_> {
    /// Returns how many blocks to reserve for a batch of `len` bytes with `count` messages of equal
    /// length; `None` if the batch never fits.
    pub(in crate::nsqd) fn batch_blocks(&self, len: u32, count: u32) -> Option<Block> {
        let layout = self.store.layout();
        let bytes = len.saturating_sub(4).saturating_sub(count.saturating_mul(4));
        if layout.blocks_of(count, bytes) > self.announced_max.into() {
            return None;
        }
        let each = layout.blocks(bytes.checked_div(count).unwrap_or_default());
        let all = Block::try_from(each.saturating_mul(count)).unwrap_or(Block::MAX);
        Some(all.min(self.announced_max))
    }

    /// Returns true if a client's message of `len` bytes, with the messages that its batch already
    /// has, never fits.
    pub(in crate::nsqd) fn never_fits(&self, draft: &Draft, len: u32) -> bool {
        let blocks = self.store.layout().blocks(len).saturating_add(draft.held.into());
        blocks > self.announced_max.into()
    }

    /// Reserves blocks for a batch. Returns false if there is no room now. No message is dropped
    /// for an announcement: [`Full::DropOldest`] drops when each message of the batch arrives.
    pub(in crate::nsqd) fn promise(
        &mut self,
        now: Instant,
        topic: &TopicName,
        draft: &mut Draft,
        blocks: Block,
    ) -> bool {
        let more = self.unclaimed(draft, blocks.into());
        if !self.may_claim(draft, more) || !self.has_share(now, topic, draft, blocks.into()) {
            return false;
        }
        loop {
            let kept = self.store.reserve(blocks, self.kept(draft.own));
            if kept {
                draft.promised = draft.promised.saturating_add(blocks);
            }
            if kept || self.config.full == Full::DropOldest {
                self.claim(draft, more);
                return true;
            }
            if !self.expire_one(now, None) {
                self.reject_reason = NO_ROOM;
                return false;
            }
        }
    }

    /// Returns whether a client's draft may take `blocks` more blocks in its topic. Expires old
    /// enough messages if that is needed.
    fn has_share(&mut self, now: Instant, topic: &TopicName, draft: &Draft, blocks: u32) -> bool {
        let is_bounded = self.config.unconsumed_percent < 100;
        if draft.own || !is_bounded || self.config.full == Full::DropOldest {
            return true;
        }
        let topic = self.find_topic(topic);
        let blocks = blocks.saturating_add(draft.held.into());
        loop {
            let only = match self.lacks_share(now, topic, blocks) {
                None => return true,
                Some(only) => only,
            };
            if !self.expire_one(now, only) {
                self.reject_reason = NO_ROOM_UNCONSUMED;
                return false;
            }
        }
    }

    /// Returns which bound for unconsumed topics `blocks` more blocks would exceed: `None` if
    /// neither, `Some(Some(topic))` for the bound of one topic, `Some(None)` for that of all
    /// together.
    fn lacks_share(
        &self,
        now: Instant,
        topic: Option<Index>,
        blocks: u32,
    ) -> Option<Option<Index>> {
        let is_consumed = |topic: &Topic| topic.finished.is_recent(now);
        let own = topic.and_then(|at| self.topic(at));
        if own.is_some_and(is_consumed) {
            return None;
        }
        let max = u32::from(self.unconsumed_max);
        let held = own.map_or(0, |topic| topic.theirs.into());
        if blocks.saturating_add(held) > max.saturating_sub(max / 8) {
            return Some(Some(topic.unwrap_or(NONE)));
        }
        let unconsumed = self.topics.iter().filter(|topic| !is_consumed(topic));
        let all = unconsumed.fold(blocks, |all, topic| all.saturating_add(topic.theirs.into()));
        (all > max).then_some(None)
    }

    /// Returns whether a client's complete draft may still go to its topic: others may have filled
    /// it meanwhile.
    pub(in crate::nsqd) fn may_commit(
        &mut self,
        now: Instant,
        topic: &TopicName,
        draft: &Draft,
    ) -> bool {
        self.has_share(now, topic, draft, 0)
    }

    /// Drops the oldest message of at least [`Config::unconsumed_age`](crate::nsqd::Config) in a
    /// topic without a channel that the application has not named; in topic `only` if given.
    /// Returns whether a message was dropped.
    fn expire_one(&mut self, now: Instant, only: Option<Index>) -> bool {
        let age = self.config.unconsumed_age;
        if age == Span::ZERO || self.config.full == Full::DropOldest {
            return false;
        }
        let mut oldest: Option<(u32, Index)> = None;
        for at in 0..self.topics.len() as Index {
            let Some(topic) = self.topics.get(usize::from(at)) else { break };
            let first = topic.held.first;
            let may_go = topic.channels == 0
                && topic.origin != Origin::Application
                && only.is_none_or(|only| only == at);
            if !may_go || first == NIL {
                continue;
            }
            let is_old = Used::from_stored(self.store.held_since(first)).is_older(now, age);
            let number = (self.next as u32).wrapping_sub(self.store.sequence(first));
            if is_old && oldest.is_none_or(|(most, _)| number > most) {
                oldest = Some((number, at));
            }
        }
        let Some((_, at)) = oldest else { return false };
        let Some(message) = self.pop_held(at) else { return false };
        if let Some(topic) = self.topic_mut(at) {
            topic.dropped = topic.dropped.saturating_add(1);
        }
        self.counters.expired = self.counters.expired.saturating_add(1);
        self.expired_pending = self.expired_pending.saturating_add(1);
        self.release(message);
        self.changed();
        true
    }

    /// Counts a draft as announced that was complete and is not any more. Returns false if clients
    /// then would have announced too much.
    pub(in crate::nsqd) fn is_incomplete(&mut self, draft: &mut Draft) -> bool {
        let announced = self.announced.saturating_add(draft.claimed.into());
        if announced > self.announced_max.into() {
            return false;
        }
        self.announced = announced;
        draft.is_complete = false;
        true
    }

    /// Returns how many more blocks a draft has to claim to take `blocks` more.
    fn unclaimed(&self, draft: &Draft, blocks: u32) -> u32 {
        if draft.own {
            return 0;
        }
        blocks.saturating_add(draft.held.into()).saturating_sub(draft.claimed.into())
    }

    fn may_claim(&mut self, draft: &Draft, more: u32) -> bool {
        self.reject_reason = NO_ROOM_ANNOUNCED;
        more == 0
            || draft.is_complete
            || self.announced.saturating_add(more) <= self.announced_max.into()
    }

    fn claim(&mut self, draft: &mut Draft, more: u32) {
        draft.claimed = draft.claimed.saturating_add(more as Block);
        if !draft.is_complete {
            self.announced = self.announced.saturating_add(more);
        }
    }

    /// Stops counting a draft as announced.
    fn unclaim(&mut self, draft: &Draft) {
        if !draft.is_complete {
            self.announced = self.announced.saturating_sub(draft.claimed.into());
        }
    }

    /// Returns the number of free blocks that a draft may not take, because they are the
    /// application's reserve. With [`Full::DropOldest`] blocks of the application's messages count
    /// towards it.
    pub(super) fn kept(&self, own: bool) -> Block {
        match self.config.full {
            _ if own => 0,
            Full::Refuse | Full::DropAnswered => self.reserve,
            Full::DropOldest => self.reserve.saturating_sub(self.own),
        }
    }

    /// Takes blocks for a piece of a body. Returns false if there is no room now.
    pub(in crate::nsqd) fn take(
        &mut self,
        now: Instant,
        topic: &TopicName,
        draft: &mut Draft,
        piece: Piece,
    ) -> bool {
        let (len, blocks) = match piece {
            Piece::First(len) => (len, self.store.layout().blocks(len)),
            Piece::Next(len) => (len, self.store.missing(draft.last, len)),
        };
        let more = self.unclaimed(draft, blocks);
        if !self.may_claim(draft, more)
            // Blocks reserved for a batch were checked when they were reserved.
            || (more > 0 && !self.has_share(now, topic, draft, blocks))
        {
            return false;
        }
        loop {
            let kept = self.kept(draft.own);
            if let Piece::Next(_) = piece {
                if self.store.grow(draft.last, &mut draft.to, len, kept) {
                    break;
                }
            } else if let Some((message, to)) = self.store.take(len, &mut draft.promised, kept) {
                if draft.first == NIL {
                    draft.first = message;
                } else {
                    self.store.set_next(draft.last, message);
                }
                draft.last = message;
                draft.to = to;
                draft.count = draft.count.saturating_add(1);
                break;
            }
            if !self.expire_one(now, None) && !self.make_room(blocks, draft) {
                self.reject_reason = NO_ROOM;
                return false;
            }
        }
        self.claim(draft, more);
        draft.held = draft.held.saturating_add(blocks as Block);
        draft.bytes = draft.bytes.saturating_add(len);
        true
    }

    pub(in crate::nsqd) fn fill(&mut self, draft: &mut Draft, data: &[u8]) {
        self.store.fill(&mut draft.to, data);
    }

    /// Publishes a draft's complete messages to a topic. Returns the number of the first message,
    /// and how many there are.
    pub(in crate::nsqd) fn commit(
        &mut self,
        now: Instant,
        at: Index,
        draft: &mut Draft,
        defer_ms: u32,
    ) -> (u64, u32) {
        let first = self.next;
        self.unclaim(draft);
        let Draft { first: mut message, count, bytes, mut promised, own, held, .. } = *draft;
        *draft = Draft::NONE;
        self.store.release(&mut promised);
        if own {
            self.own = self.own.saturating_add(held);
        }
        let timestamp = self.unix(now);
        for _ in 0..count {
            let next = self.store.next(message);
            self.store.label(message, at, self.next as u32, timestamp, own);
            self.store.set_refs(message, 1);
            // The first lane keeps the delay until the topic distributes the message.
            self.store.set_delay(message, defer_ms);
            self.store.set_held_since(message, Used::at(now).stored());
            self.next = self.next.wrapping_add(1);
            if let Some(topic) = self.topics.get_mut(usize::from(at)) {
                topic.held.push(&mut self.store, message);
            }
            message = next;
        }
        if let Some(topic) = self.topic_mut(at) {
            topic.messages = topic.messages.saturating_add(count.into());
            topic.bytes = topic.bytes.saturating_add(bytes.into());
            if !own {
                topic.theirs = topic.theirs.saturating_add(held);
            }
        }
        self.counters.accepted = self.counters.accepted.saturating_add(count.into());
        self.flow(now, at);
        self.changed();
        if !own {
            // Other clients may announce what this draft had claimed.
            self.freed();
        }
        (first, count)
    }

    /// Frees the messages of a draft that will not be completed.
    pub(in crate::nsqd) fn discard(&mut self, draft: &mut Draft) {
        self.unclaim(draft);
        let Draft { first: mut message, count, mut promised, .. } = *draft;
        *draft = Draft::NONE;
        self.store.release(&mut promised);
        for _ in 0..count {
            let next = self.store.next(message);
            self.store.give(message);
            message = next;
        }
        self.freed();
    }

    /// Distributes the messages that a topic holds to its channels, unless it is paused, being
    /// asked for, or without a channel.
    pub(super) fn flow(&mut self, now: Instant, at: Index) {
        let flows = |topic: &Topic| !topic.paused && topic.asking == 0 && topic.channels > 0;
        while self.topic(at).is_some_and(flows)
            && let Some(message) = self.pop_held(at)
        {
            self.distribute(now, at, message);
        }
        self.changed();
    }

    fn distribute(&mut self, now: Instant, at: Index, message: Block) {
        let delay = self.store.delay(message);
        let is_deferred = delay != Span::ZERO;
        let due = self.due(now, delay);
        self.store.set_held_since(message, 0);
        let mut refs = 0u16;
        for channel in self.channels.iter_mut().filter(|channel| channel.topic == at) {
            refs = refs.saturating_add(1);
            channel.messages = channel.messages.saturating_add(1);
            let lane = channel.lane;
            if is_deferred {
                self.store.set_lane(message, lane, Lane::Deferred);
                channel.deferred.insert(&mut self.store, message, lane, due);
            } else {
                self.store.set_lane(message, lane, Lane::Queued);
                channel.queued = channel.queued.saturating_add(1);
                if channel.cursor == NIL {
                    channel.cursor = message;
                }
            }
        }
        self.store.set_refs(message, refs);
        if !is_deferred && let Some(topic) = self.topics.get_mut(usize::from(at)) {
            self.store.set_listed(message, true);
            topic.list.push(&mut self.store, message);
        }
    }

    pub(super) fn pop_held(&mut self, at: Index) -> Option<Block> {
        self.topics.get_mut(usize::from(at))?.held.pop(&self.store)
    }
}
