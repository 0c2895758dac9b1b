//! Drops messages when a new message needs their room.

use super::{Draft, Shared};
use crate::nsqd::arena::{Arena, Lane};
use crate::nsqd::{Block, Full};

impl Shared<'_> {
    /// Drops one message towards `blocks` more blocks for a draft. Returns false, dropping none, if
    /// [`Full`] does not allow it or all droppable messages together would not make enough room.
    pub(super) fn make_room(&mut self, blocks: u32, draft: &Draft) -> bool {
        match self.config.full {
            Full::Refuse => return false,
            Full::DropAnswered if !draft.own => return false,
            Full::DropAnswered | Full::DropOldest => {}
        }
        let free = self.store.free().saturating_sub(self.store.reserved());
        let free = free.saturating_sub(self.kept(draft.own)).saturating_add(draft.promised);
        // For a client, messages of the application are dropped only while they exceed the
        // reserve.
        let own = if draft.own { Block::MAX } else { self.own.saturating_sub(self.reserve) };
        let missing = blocks.saturating_sub(free.into());
        self.can_drop(missing, own.into()) && self.drop_oldest(own > 0)
    }

    /// Returns whether the droppable messages take `blocks` blocks, counting at most `own_max` of
    /// the application's messages. Usually the first few messages are enough.
    fn can_drop(&self, blocks: u32, own_max: u32) -> bool {
        let (mut own, mut others) = (0u32, 0u32);
        let mut is_enough = |message: Block| {
            if self.is_droppable(message) {
                let sum = if self.store.is_own(message) { &mut own } else { &mut others };
                *sum = sum.saturating_add(self.store.layout().blocks(self.store.len(message)));
            }
            own.min(own_max).saturating_add(others) >= blocks
        };
        for topic in &*self.topics {
            for list in [topic.held, topic.list] {
                let mut message = list.first;
                for _ in 0..list.len {
                    if is_enough(message) {
                        return true;
                    }
                    message = self.store.next(message);
                }
            }
        }
        for channel in self.channels.iter().filter(|channel| channel.is_used()) {
            // Count each message once.
            let is_counted = |message: Block| {
                self.store.is_listed(message)
                    || (0..channel.lane).any(|lane| self.store.lane(message, lane) != Lane::Done)
            };
            let mut message = channel.requeued.first;
            for _ in 0..channel.requeued.len {
                if !is_counted(message) && is_enough(message) {
                    return true;
                }
                message = self.store.lane_next(message, channel.lane);
            }
            let mut walk = channel.deferred.walk();
            while let Some(message) = walk.message() {
                if !is_counted(message) && is_enough(message) {
                    return true;
                }
                walk.go_on(&self.store, channel.lane, true);
            }
        }
        false
    }

    /// Drops the oldest of the first droppable messages of all lists; the application's only if
    /// `own`.
    fn drop_oldest(&mut self, own: bool) -> bool {
        let may_go =
            |message: Block| self.is_droppable(message) && (own || !self.store.is_own(message));
        let mut oldest: Option<(u32, Block)> = None;
        let mut consider = |message: Block, store: &Arena<'_>, next: u64| {
            let age = (next as u32).wrapping_sub(store.sequence(message));
            if oldest.is_none_or(|(most, _)| age > most) {
                oldest = Some((age, message));
            }
        };
        for topic in &*self.topics {
            for list in [topic.held, topic.list] {
                let mut message = list.first;
                for _ in 0..list.len {
                    if may_go(message) {
                        consider(message, &self.store, self.next);
                        break;
                    }
                    message = self.store.next(message);
                }
            }
        }
        for channel in self.channels.iter().filter(|channel| channel.is_used()) {
            let mut message = channel.requeued.first;
            for _ in 0..channel.requeued.len {
                if may_go(message) {
                    consider(message, &self.store, self.next);
                    break;
                }
                message = self.store.lane_next(message, channel.lane);
            }
            if let Some(message) = channel.deferred.first(&self.store, channel.lane, may_go) {
                consider(message, &self.store, self.next);
            }
        }
        let Some((_, message)) = oldest else { return false };
        self.drop_message(message);
        true
    }

    /// Returns whether a message may be dropped: it is neither in flight nor being written, and,
    /// with [`Full::DropAnswered`], some client has answered it.
    fn is_droppable(&self, message: Block) -> bool {
        if self.config.full == Full::DropAnswered && !self.store.is_answered(message) {
            return false;
        }
        let mut waiting = 0u16;
        for lane in 0..self.config.channels_per_topic {
            match self.store.lane(message, lane) {
                Lane::Done => {}
                Lane::Queued | Lane::Requeued | Lane::Deferred => {
                    waiting = waiting.saturating_add(1);
                }
                Lane::InFlight => return false,
            }
        }
        // A message held by the topic is in no lane.
        self.store.refs(message) == waiting.max(1)
    }

    fn drop_message(&mut self, message: Block) {
        let at = self.store.topic(message);
        for channel in self.channels.iter_mut().filter(|channel| channel.topic == at) {
            let lane = channel.lane;
            match self.store.lane(message, lane) {
                Lane::Done | Lane::InFlight => continue,
                Lane::Queued => {
                    channel.queued = channel.queued.saturating_sub(1);
                    if channel.cursor == message {
                        channel.cursor = self.store.next(message);
                    }
                }
                Lane::Requeued => channel.requeued.unlink_lane(&mut self.store, message, lane),
                Lane::Deferred => channel.deferred.remove(&mut self.store, message, lane),
            }
            channel.dropped = channel.dropped.saturating_add(1);
        }
        if let Some(topic) = self.topics.get_mut(usize::from(at)) {
            let is_waiting = (0..self.config.channels_per_topic)
                .any(|lane| self.store.lane(message, lane) != Lane::Done);
            if self.store.is_listed(message) {
                topic.list.unlink(&mut self.store, message);
            } else if !is_waiting {
                topic.held.unlink(&mut self.store, message);
            }
            topic.dropped = topic.dropped.saturating_add(1);
        }
        self.counters.dropped = self.counters.dropped.saturating_add(1);
        self.dropped_pending = self.dropped_pending.saturating_add(1);
        self.uncount(message);
        self.store.give(message);
        self.changed();
    }
}
