//! Delivers messages to clients, and handles FIN, REQ, TOUCH and timeouts.

use super::{ATTEMPTS_MAX, Delivery, NotYours, SKIPS_MAX, Shared};
use crate::nsqd::arena::{Lane, NIL};
use crate::nsqd::table::{Entry, NONE, Subscription, Used};
use crate::nsqd::{Block, Full, Index};
use crate::time::{Instant, Span};
use crate::wire::nsqd::MessageId;

impl Shared<'_> {
    /// Puts the channel's next message in flight for a client, if the client may have one now.
    pub(in crate::nsqd) fn deliver(
        &mut self,
        now: Instant,
        id: Index,
        msg_timeout: Span,
        sample_rate: u8,
    ) -> Option<Delivery> {
        let subscription = *self.subscription(id)?;
        let at = subscription.channel;
        if !subscription.is_ready() || self.channel(at)?.paused {
            return None;
        }
        self.release_due(now, at);
        for _ in 0..SKIPS_MAX {
            let channel = self.channel(at)?;
            if channel.queued == 0 && channel.requeued.len == 0 {
                return None;
            }
            if !self.may_have_entry(id, at) || !self.may_have_blocks(id, at) || self.yields(id, at)
            {
                return None;
            }
            let lane = self.channel(at)?.lane;
            let message = self.next_message(at)?;
            if sample_rate > 0 && !self.samples(sample_rate) {
                self.done(message, lane);
                self.trim_of(at);
                self.counters.sampled_out = self.counters.sampled_out.saturating_add(1);
                continue;
            }
            return self.take_off(now, id, at, message, msg_timeout);
        }
        // The next call continues; the version makes the driver call again.
        self.changed();
        None
    }

    /// Returns whether other sessions may have caused work for a client.
    #[cfg(feature = "async")]
    pub(in crate::nsqd) fn has_work_for(&self, id: Index) -> bool {
        let Some(subscription) = self.subscription(id) else { return false };
        if subscription.kicked {
            return true;
        }
        let Some(channel) = self.channel(subscription.channel) else { return false };
        // A deferred message may be due before the client's deadline.
        channel.deferred.len > 0
            || (subscription.is_ready() && !channel.paused && channel.depth() > 0)
    }

    fn take_off(
        &mut self,
        now: Instant,
        id: Index,
        at: Index,
        message: Block,
        msg_timeout: Span,
    ) -> Option<Delivery> {
        let free = self.free_entry(at)?;
        let lane = self.channel(at)?.lane;
        let attempts = self.store.attempts(message, lane).saturating_add(1).min(ATTEMPTS_MAX);
        self.store.set_attempts(message, lane, attempts);
        self.store.set_lane(message, lane, Lane::InFlight);
        if let Some(entry) = self.entries.get_mut(free) {
            *entry = Entry {
                deadline: now.after(msg_timeout),
                delivered: now,
                sequence: self.store.sequence(message),
                message,
                owner: id,
            };
        }
        let channel = self.channel_mut(at)?;
        channel.in_flight = channel.in_flight.saturating_add(1);
        channel.deliveries = channel.deliveries.wrapping_add(1);
        channel.delivered = true;
        let deliveries = channel.deliveries;
        let more = channel.queued > 0 || channel.requeued.len > 0;
        let subscription = self.subscription_mut(id)?;
        subscription.in_flight = subscription.in_flight.saturating_add(1);
        subscription.delivered = subscription.delivered.saturating_add(1);
        subscription.last_delivery = deliveries;
        self.counters.delivered = self.counters.delivered.saturating_add(1);
        self.trim_of(at);
        // Pin the message while it is being written.
        self.pin(message);
        if more && self.has_other(id, at) {
            // Wake the others: the next message is for one of them.
            self.changed();
        }
        Some(Delivery { message, attempts })
    }

    /// Returns the first free entry of a channel.
    fn free_entry(&mut self, at: Index) -> Option<usize> {
        let range = self.range(at);
        let is_free =
            |index: &usize| self.entries.get(*index).is_some_and(|entry| entry.message == NIL);
        if let Some(index) = range.clone().find(is_free) {
            return Some(index);
        }
        let most = self.per_channel;
        let channel = self.channel_mut(at).filter(|channel| channel.entries < most)?;
        channel.entries = channel.entries.saturating_add(1);
        Some(range.end)
    }

    /// Returns whether there is an entry for one more message to a client. The last entries are for
    /// clients with nothing in flight.
    fn may_have_entry(&mut self, id: Index, at: Index) -> bool {
        let Some(channel) = self.channel(at) else { return false };
        let free = self.per_channel.saturating_sub(channel.in_flight);
        let mut owed = 0u16;
        if self.subscription(id).is_some_and(|subscription| subscription.in_flight > 0) {
            let others = self.subscriptions.iter().filter(|subscription| {
                subscription.channel == at && subscription.ready > 0 && subscription.in_flight == 0
            });
            owed = others.fold(0, |owed: u16, _| owed.saturating_add(1));
        }
        let may = free > owed;
        if !may && let Some(channel) = self.channel_mut(at) {
            channel.starved = true;
        }
        may
    }

    /// Returns whether the store allows one more message in flight for a client.
    ///
    /// Messages in flight cannot be dropped. So, with [`Full::DropAnswered`] and while no more than
    /// the reserve is free, a client that has a message gets another only while the application's
    /// messages in flight in the channel take less than half the reserve, divided by the number of
    /// clients.
    fn may_have_blocks(&mut self, id: Index, at: Index) -> bool {
        let free = self.store.free().saturating_sub(self.store.reserved());
        if self.config.full != Full::DropAnswered
            || free > self.reserve
            || self.subscription(id).is_none_or(|subscription| subscription.in_flight == 0)
        {
            return true;
        }
        let entries = self.entries.get(self.range(at)).unwrap_or_default();
        let own = entries
            .iter()
            .filter(|entry| entry.message != NIL && self.store.is_own(entry.message))
            .map(|entry| self.store.layout().blocks(self.store.len(entry.message)))
            .fold(0, u32::saturating_add);
        let parts = (self.subscriptions.len() as u32).saturating_mul(2);
        let may = own.saturating_mul(parts) < self.reserve.into();
        if !may {
            if let Some(channel) = self.channel_mut(at) {
                channel.starved = true;
            }
            self.wanted = true;
        }
        may
    }

    /// Returns whether the client has to let another client of the channel go first: one whose last
    /// delivery was earlier. It waits once for each delivery, whatever the other client does.
    fn yields(&mut self, id: Index, at: Index) -> bool {
        let Some(deliveries) = self.channel(at).map(|channel| channel.deliveries) else {
            return false;
        };
        let Some(subscription) = self.subscription(id).copied() else { return false };
        if subscription.yielded_at == Some(deliveries) {
            return false;
        }
        let last = subscription.last_delivery;
        let before = |other: &Subscription| (other.last_delivery.wrapping_sub(last) as i32) < 0;
        let is_next = |other: &Subscription| {
            other.channel == at && other.idle && other.is_ready() && before(other)
        };
        let yields = self.subscriptions.iter().any(is_next);
        if yields {
            if let Some(subscription) = self.subscription_mut(id) {
                subscription.yielded_at = Some(deliveries);
            }
            self.changed();
        }
        yields
    }

    fn has_other(&self, id: Index, at: Index) -> bool {
        let mut subscriptions = (0..NONE).zip(self.subscriptions.iter());
        subscriptions.any(|(other, subscription)| {
            other != id
                && subscription.channel == at
                && subscription.idle
                && subscription.is_ready()
        })
    }

    fn samples(&mut self, rate: u8) -> bool {
        self.jitter.between(Span::ZERO, Span::from_millis(99)).as_millis() < rate.into()
    }

    /// Removes the next waiting message: alternately a new and a requeued one, so that neither kind
    /// delays the other for long.
    fn next_message(&mut self, at: Index) -> Option<Block> {
        let channel = self.channel_mut(at)?;
        let both = channel.requeued.len > 0 && channel.cursor != NIL;
        let requeued = if both { channel.requeued_next } else { channel.requeued.len > 0 };
        channel.requeued_next = both && !requeued;
        if requeued {
            return self.pop_requeued(at);
        }
        let message = channel.cursor;
        if message == NIL {
            return None;
        }
        channel.queued = channel.queued.saturating_sub(1);
        let next = self.store.next(message);
        self.channel_mut(at)?.cursor = next;
        Some(message)
    }

    pub(super) fn pop_requeued(&mut self, at: Index) -> Option<Block> {
        let channel = self.channels.get_mut(usize::from(at))?;
        channel.requeued.pop_lane(&self.store, channel.lane)
    }

    pub(super) fn pop_deferred(&mut self, at: Index) -> Option<Block> {
        let channel = self.channels.get_mut(usize::from(at))?;
        channel.deferred.pop(&mut self.store, channel.lane)
    }

    /// Returns when a message is due that is deferred now. If lanes cannot have that time yet,
    /// releases the messages that are due, and advances the base.
    pub(super) fn due(&mut self, now: Instant, delay: Span) -> Instant {
        let due = now.after(delay);
        if !self.store.reaches(due) {
            for at in 0..self.channels.len() as Index {
                self.release_due(now, at);
            }
            self.store.set_base(now);
        }
        due
    }

    /// Moves the deferred messages that are due to the requeued ones.
    pub(in crate::nsqd) fn release_due(&mut self, now: Instant, at: Index) {
        let mut released = false;
        while let Some(channel) = self.channels.get_mut(usize::from(at))
            && channel.deferred.len > 0
            && self.store.due(channel.deferred.top, channel.lane) <= now
            && let Some(message) = channel.deferred.pop(&mut self.store, channel.lane)
        {
            self.store.set_lane(message, channel.lane, Lane::Requeued);
            channel.requeued.push_lane(&mut self.store, message, channel.lane);
            released = true;
        }
        if released {
            self.changed();
        }
    }

    /// Returns when the next deferred message of a channel is due.
    pub(in crate::nsqd) fn next_due(&self, at: Index) -> Instant {
        match self.channel(at) {
            Some(channel) if channel.deferred.len > 0 => {
                self.store.due(channel.deferred.top, channel.lane)
            }
            _ => Instant::NEVER,
        }
    }

    /// Finds the channel and the in-flight entry of a message that the client has in flight.
    fn flight(&self, id: Index, message: &MessageId) -> Result<(Index, usize), NotYours> {
        let at = self.subscription(id).map_or(NONE, |subscription| subscription.channel);
        let sequence = self.sequence_of(message).ok_or(NotYours::NotInFlight)?;
        let is = |entry: &Entry| entry.message != NIL && entry.sequence == sequence;
        let found = self.range(at).find(|index| self.entries.get(*index).is_some_and(is));
        let index = found.ok_or(NotYours::NotInFlight)?;
        match self.entries.get(index) {
            Some(entry) if entry.owner == id => Ok((at, index)),
            _ => Err(NotYours::NotOwner),
        }
    }

    /// Carries out FIN.
    pub(in crate::nsqd) fn finish(
        &mut self,
        now: Instant,
        id: Index,
        message: &MessageId,
    ) -> Result<(), NotYours> {
        let (at, index) = self.flight(id, message)?;
        let (message, lane) = self.take_from_flight(at, index);
        self.store.set_answered(message);
        if self.done(message, lane)
            && let Some(topic) = self.channel(at).map(|channel| channel.topic)
            && let Some(topic) = self.topic_mut(topic)
        {
            topic.finished = Used::at(now);
        }
        if let Some(subscription) = self.subscription_mut(id) {
            subscription.finished = subscription.finished.saturating_add(1);
        }
        self.counters.finished = self.counters.finished.saturating_add(1);
        Ok(())
    }

    /// Carries out REQ.
    pub(in crate::nsqd) fn requeue(
        &mut self,
        now: Instant,
        id: Index,
        message: &MessageId,
        delay_ms: u32,
    ) -> Result<(), NotYours> {
        let (at, index) = self.flight(id, message)?;
        let (message, lane) = self.take_from_flight(at, index);
        if delay_ms == 0 {
            self.put_back(at, message, lane);
        } else {
            let due = self.due(now, Span::from_millis(delay_ms));
            self.store.set_answered(message);
            self.store.set_lane(message, lane, Lane::Deferred);
            if let Some(channel) = self.channels.get_mut(usize::from(at)) {
                channel.deferred.insert(&mut self.store, message, lane, due);
            }
            self.changed();
        }
        if let Some(channel) = self.channel_mut(at) {
            channel.requeues = channel.requeues.saturating_add(1);
        }
        if let Some(subscription) = self.subscription_mut(id) {
            subscription.requeued = subscription.requeued.saturating_add(1);
        }
        self.counters.requeued = self.counters.requeued.saturating_add(1);
        Ok(())
    }

    /// Carries out TOUCH. Returns the new deadline.
    pub(in crate::nsqd) fn touch(
        &mut self,
        now: Instant,
        id: Index,
        message: &MessageId,
        msg_timeout: Span,
    ) -> Result<Instant, NotYours> {
        let (_, index) = self.flight(id, message)?;
        let longest = Span::from_millis(self.limits.max_msg_timeout_ms);
        let Some(entry) = self.entries.get_mut(index) else { return Err(NotYours::NotInFlight) };
        entry.deadline = now.after(msg_timeout).min(entry.delivered.after(longest));
        Ok(entry.deadline)
    }

    /// Requeues a client's messages whose timeout is over. Returns the deadline of the next.
    pub(in crate::nsqd) fn expire(&mut self, now: Instant, id: Index) -> Instant {
        let at = self.subscription(id).map_or(NONE, |subscription| subscription.channel);
        let mut next = Instant::NEVER;
        for index in self.range(at) {
            let Some(entry) = self.entries.get(index) else { break };
            if entry.message == NIL || entry.owner != id {
                continue;
            }
            if entry.deadline > now {
                next = next.min(entry.deadline);
                continue;
            }
            let (message, lane) = self.take_from_flight(at, index);
            self.put_back(at, message, lane);
            if let Some(channel) = self.channel_mut(at) {
                channel.timeouts = channel.timeouts.saturating_add(1);
            }
            self.counters.timed_out = self.counters.timed_out.saturating_add(1);
        }
        next
    }

    /// Frees an in-flight entry. Returns its message and the channel's lane.
    pub(super) fn take_from_flight(&mut self, at: Index, index: usize) -> (Block, u8) {
        let entry = self.entries.get(index).copied().unwrap_or(Entry::FREE);
        self.end_flight(at, index, entry.owner);
        (entry.message, self.channel(at).map_or(0, |channel| channel.lane))
    }

    pub(super) fn end_flight(&mut self, at: Index, index: usize, owner: Index) {
        if let Some(entry) = self.entries.get_mut(index) {
            *entry = Entry::FREE;
        }
        if let Some(subscription) = self.subscription_mut(owner) {
            subscription.in_flight = subscription.in_flight.saturating_sub(1);
        }
        let Some(channel) = self.channel_mut(at) else { return };
        channel.in_flight = channel.in_flight.saturating_sub(1);
        if channel.in_flight == 0 {
            channel.entries = 0;
        }
        if channel.starved {
            channel.starved = false;
            self.changed();
        }
    }

    pub(super) fn put_back(&mut self, at: Index, message: Block, lane: u8) {
        self.store.set_lane(message, lane, Lane::Requeued);
        if let Some(channel) = self.channels.get_mut(usize::from(at)) {
            channel.requeued.push_lane(&mut self.store, message, lane);
        }
        self.changed();
    }
}
