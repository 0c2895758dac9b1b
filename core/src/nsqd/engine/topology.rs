//! Creates, deletes, empties and pauses topics and channels, and evicts unused ones.

use core::cmp::Reverse;

use super::{Shared, TableFull};
use crate::name::{ChannelName, TopicName};
use crate::nsqd::Index;
use crate::nsqd::arena::NIL;
use crate::nsqd::table::{Channel, Entry, NONE, Origin, Subscription, Topic, Used};
use crate::time::Instant;

/// The age from which an unused channel that has delivered nothing may be evicted: 60 s in units of
/// [`Used`], rounded up.
const UNUSED: u32 = (60_000_000u32 >> 16) + 1;

/// How much a topic or channel is needed: the least is evicted first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Need {
    /// Messages wait in it.
    waiting: bool,
    /// It was named over HTTP.
    named: bool,
    /// The time since the last use: the older, the less needed.
    age: Reverse<u32>,
}

impl Shared<'_> {
    pub(in crate::nsqd) fn find_topic(&self, name: &TopicName) -> Option<Index> {
        self.topics.iter().position(|topic| topic.name == *name).map(|at| at as Index)
    }

    /// Checks that a topic of that name exists or can be created. Otherwise counts a rejection.
    pub(in crate::nsqd) fn has_slot_for(
        &mut self,
        now: Instant,
        name: &TopicName,
        origin: Origin,
    ) -> Result<(), TableFull> {
        let has = |topic: &Topic| !topic.is_used() || topic.name == *name;
        if self.topics.iter().any(has)
            || self.topics.next().is_some()
            || self.evictable_topic(now, origin).is_some()
        {
            return Ok(());
        }
        Err(self.reject_full(TableFull::Topics))
    }

    /// Returns the topic of that name. Creates it if needed, held until nsqlookupds were asked for
    /// its channels, and evicts the least needed topic if the table is full.
    pub(in crate::nsqd) fn topic_for(
        &mut self,
        now: Instant,
        name: &TopicName,
        origin: Origin,
    ) -> Result<Index, TableFull> {
        if let Some(at) = self.find_topic(name) {
            if let Some(topic) = self.topic_mut(at) {
                topic.used = Used::at(now);
                topic.origin = topic.origin.max(origin);
            }
            return Ok(at);
        }
        let unused = self.topics.iter().position(|topic| !topic.is_used());
        let free = unused.or_else(|| self.topics.next()).map(|at| at as Index);
        let at = match free.or_else(|| self.evictable_topic(now, origin)) {
            Some(at) => at,
            None => return Err(self.reject_full(TableFull::Topics)),
        };
        if free.is_none() {
            self.evict_topic(at);
        }
        self.topics.show(usize::from(at).saturating_add(1), || Topic::NEW);
        if let Some(topic) = self.topics.get_mut(usize::from(at)) {
            *topic = Topic { name: *name, origin, used: Used::at(now), ..Topic::NEW };
            if self.asks {
                self.holds = true;
                topic.asking = u8::MAX;
                topic.ask_until = now.after(self.config.channels_wait);
            }
        }
        self.full_reported &= !TableFull::Topics.bit();
        self.topology_changed();
        Ok(at)
    }

    /// Returns whether any topic is held until nsqlookupds were asked for its channels.
    pub(in crate::nsqd) fn is_holding(&self) -> bool {
        self.holds && self.topics.iter().any(|topic| topic.asking != 0)
    }

    /// Limits the nsqlookupds still to be asked for a topic's channels to `lookupds`, one bit each.
    /// Once none is left, or the time is up, the topic flows.
    pub(in crate::nsqd) fn ask_only(&mut self, now: Instant, at: Index, lookupds: u8) {
        let Some(topic) = self.topic_mut(at).filter(|topic| topic.asking != 0) else { return };
        topic.asking &= if topic.ask_until <= now { 0 } else { lookupds };
        if topic.asking == 0 {
            self.flow(now, at);
        }
    }

    pub(in crate::nsqd) fn find_channel(&self, topic: Index, name: &ChannelName) -> Option<Index> {
        let is = |channel: &Channel| channel.topic == topic && channel.name == *name;
        self.channels.iter().position(is).map(|at| at as Index)
    }

    /// Returns the topic's channel of that name. Creates it if needed, and evicts the least needed
    /// channel if a table is full. A topic's first channel gets the messages that the topic holds.
    pub(in crate::nsqd) fn channel_for(
        &mut self,
        now: Instant,
        topic: Index,
        name: &ChannelName,
        origin: Origin,
    ) -> Result<Index, TableFull> {
        if let Some(at) = self.find_channel(topic, name) {
            if let Some(channel) = self.channel_mut(at) {
                channel.origin = channel.origin.max(origin);
            }
            return Ok(at);
        }
        let is_taken = |channels: &[Channel], lane: u8| {
            channels.iter().any(|channel| channel.topic == topic && channel.lane == lane)
        };
        let lanes = 0..self.config.channels_per_topic;
        let mut lane = lanes.clone().find(|lane| !is_taken(&self.channels, *lane));
        let unused = self.channels.iter().position(|channel| !channel.is_used());
        let mut free = unused.or_else(|| self.channels.next());
        if lane.is_none() || free.is_none() {
            let (among, full) = match lane {
                None => (topic, TableFull::ChannelsOfTopic),
                Some(_) => (NONE, TableFull::Channels),
            };
            let Some(evictable) = self.evictable_channel(now, among) else {
                return Err(self.reject_full(full));
            };
            self.evict_channel(evictable, topic);
            lane = lanes.clone().find(|lane| !is_taken(&self.channels, *lane));
            free = Some(evictable.into());
        }
        let lane = lane.unwrap_or_default();
        let at = free.unwrap_or_default();
        self.channels.show(at.saturating_add(1), || Channel::NEW);
        if let Some(channel) = self.channels.get_mut(at) {
            let used = Used::at(now);
            *channel = Channel { name: *name, topic, lane, origin, used, ..Channel::NEW };
        }
        if let Some(topic) = self.topic_mut(topic) {
            topic.channels = topic.channels.saturating_add(1);
        }
        self.full_reported &= TableFull::Topics.bit();
        self.topology_changed();
        self.flow(now, topic);
        Ok(at as Index)
    }

    /// Returns the channel that a client subscribes to. Creates it and its topic if needed; both or
    /// neither.
    pub(in crate::nsqd) fn channel_of(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<Index, TableFull> {
        if self.find_topic(topic).is_none() {
            self.has_slot_for(now, topic, Origin::Client)?;
            let is_free = |channel: &Channel| !channel.is_used();
            if !self.channels.iter().any(is_free)
                && self.channels.next().is_none()
                && self.evictable_channel(now, NONE).is_none()
            {
                return Err(self.reject_full(TableFull::Channels));
            }
        }
        let topic = self.topic_for(now, topic, Origin::Client)?;
        self.channel_for(now, topic, channel, Origin::Client)
    }

    /// Counts a rejection because a table is full.
    fn reject_full(&mut self, full: TableFull) -> TableFull {
        let counters = &mut self.counters;
        let count = match full {
            TableFull::Topics => &mut counters.topics_refused,
            TableFull::Channels => &mut counters.channels_refused,
            TableFull::ChannelsOfTopic => &mut counters.channels_of_topic_refused,
        };
        *count = count.saturating_add(1);
        if self.full_reported & full.bit() == 0 {
            self.full_reported |= full.bit();
            self.pending |= full.bit();
            // Wake the task that waits for the event.
            self.changed();
        }
        full
    }

    /// Returns how much a channel is needed; `None` if it must not be evicted.
    fn channel_need(&self, now: Instant, channel: &Channel) -> Option<Need> {
        let age = channel.used.age(now);
        let had_messages = || self.topic(channel.topic).is_none_or(|topic| topic.messages > 0);
        let is_kept = !channel.is_used()
            || channel.delivered
            || channel.origin >= Origin::Http
            || channel.paused
            || channel.clients > 0
            || (age < UNUSED && (channel.origin == Origin::Lookupd || had_messages()));
        (!is_kept).then_some(Need {
            waiting: channel.waiting() > 0,
            named: false,
            age: Reverse(age),
        })
    }

    /// Returns how much a topic is needed; `None` if it must not be evicted for a topic of
    /// `origin`.
    fn topic_need(&self, now: Instant, at: Index, origin: Origin) -> Option<Need> {
        let topic = self.topic(at)?;
        let named = topic.origin == Origin::Http;
        let is_kept = !topic.is_used()
            || topic.origin == Origin::Application
            || (named && origin == Origin::Http)
            || topic.paused
            || topic.held.len > 0;
        if is_kept {
            return None;
        }
        let mut need = Need { waiting: false, named, age: Reverse(topic.used.age(now)) };
        for channel in self.channels.iter().filter(|channel| channel.topic == at) {
            need.waiting |= self.channel_need(now, channel)?.waiting;
        }
        Some(need)
    }

    /// Returns the least needed topic that may be evicted for a topic of `origin`.
    fn evictable_topic(&self, now: Instant, origin: Origin) -> Option<Index> {
        let all = (0..NONE).take(self.topics.len());
        all.filter_map(|at| Some((self.topic_need(now, at, origin)?, at))).min().map(|(_, at)| at)
    }

    /// Returns the least needed channel that may be evicted, of `topic` or, for [`NONE`], of all
    /// topics.
    fn evictable_channel(&self, now: Instant, topic: Index) -> Option<Index> {
        let all = (0..NONE).zip(&*self.channels);
        all.filter(|(_, channel)| topic == NONE || channel.topic == topic)
            .filter_map(|(at, channel)| Some((self.channel_need(now, channel)?, at)))
            .min()
            .map(|(_, at)| at)
    }

    fn evict_topic(&mut self, at: Index) {
        for channel in 0..self.channels.len() as Index {
            if self.channel(channel).is_some_and(|channel| channel.topic == at) {
                self.count_dropped(channel);
            }
        }
        self.delete_topic(at);
        let count = &mut self.counters.topics_given_back;
        *count = count.saturating_add(1);
    }

    /// Evicts a channel. `for_topic`, even if ephemeral, stays: it gets the new channel.
    fn evict_channel(&mut self, at: Index, for_topic: Index) {
        self.count_dropped(at);
        if self.channel(at).is_some_and(|channel| channel.topic == for_topic) {
            self.drop_channel(at);
            self.topology_changed();
        } else {
            self.delete_channel(at);
        }
        let count = &mut self.counters.channels_given_back;
        *count = count.saturating_add(1);
    }

    /// Counts the messages that are dropped with an evicted channel.
    fn count_dropped(&mut self, at: Index) {
        let waiting = self.channel(at).map_or(0, Channel::waiting);
        self.counters.abandoned = self.counters.abandoned.saturating_add(waiting.into());
        self.dropped_pending = self.dropped_pending.saturating_add(waiting);
    }

    /// Deletes a topic with its channels and messages. Closes its subscribers.
    pub(in crate::nsqd) fn delete_topic(&mut self, at: Index) {
        for channel in 0..self.channels.len() as Index {
            if self.channel(channel).is_some_and(|channel| channel.topic == at) {
                self.drop_channel(channel);
            }
        }
        self.empty_topic(at);
        if let Some(topic) = self.topic_mut(at) {
            *topic = Topic::NEW;
        }
        self.topics.trim(Topic::is_used);
        if self.asked == at {
            // The answer is not for the next topic in this slot.
            self.asked = NONE;
        }
        for subscription in &mut *self.subscriptions {
            for count in &mut subscription.pubs {
                if count.0 == at {
                    *count = (NONE, 0);
                }
            }
        }
        self.topology_changed();
    }

    /// Deletes a channel with its messages, and an ephemeral topic with its last channel. Closes
    /// the channel's subscribers.
    pub(in crate::nsqd) fn delete_channel(&mut self, at: Index) {
        let Some(topic) = self.channel(at).map(|channel| channel.topic) else { return };
        self.drop_channel(at);
        self.topology_changed();
        if self.topic(topic).is_some_and(|topic| topic.channels == 0 && topic.name.is_ephemeral()) {
            self.delete_topic(topic);
        }
    }

    fn drop_channel(&mut self, at: Index) {
        self.empty_channel(at);
        for subscription in &mut *self.subscriptions {
            if subscription.channel == at {
                subscription.channel = NONE;
                subscription.ready = 0;
                subscription.kicked = true;
            }
        }
        let Some(channel) = self.channel_mut(at) else { return };
        let topic = channel.topic;
        *channel = Channel::NEW;
        self.channels.trim(Channel::is_used);
        if let Some(topic) = self.topic_mut(topic) {
            topic.channels = topic.channels.saturating_sub(1);
        }
    }

    /// Drops the messages that a topic holds back.
    pub(in crate::nsqd) fn empty_topic(&mut self, at: Index) {
        while let Some(message) = self.pop_held(at) {
            self.release(message);
        }
    }

    /// Drops all messages of a channel. Answers to messages in flight are then too late.
    pub(in crate::nsqd) fn empty_channel(&mut self, at: Index) {
        let Some(channel) = self.channel_mut(at).filter(|channel| channel.is_used()) else {
            return;
        };
        let (topic, lane, mut message) = (channel.topic, channel.lane, channel.cursor);
        channel.cursor = NIL;
        channel.queued = 0;
        for _ in 0..self.store.capacity() {
            if message == NIL {
                break;
            }
            let next = self.store.next(message);
            self.done(message, lane);
            message = next;
        }
        self.trim(topic);
        while let Some(message) = self.pop_requeued(at) {
            self.done(message, lane);
        }
        while let Some(message) = self.pop_deferred(at) {
            self.done(message, lane);
        }
        for index in self.range(at) {
            let Some(entry) = self.entries.get(index) else { break };
            let (message, owner) = (entry.message, entry.owner);
            if message != NIL {
                self.end_flight(at, index, owner);
                self.done(message, lane);
            }
        }
        self.changed();
    }

    pub(in crate::nsqd) fn pause_topic(&mut self, now: Instant, at: Index, paused: bool) {
        if let Some(topic) = self.topic_mut(at) {
            topic.paused = paused;
        }
        self.flow(now, at);
    }

    pub(in crate::nsqd) fn pause_channel(&mut self, at: Index, paused: bool) {
        if let Some(channel) = self.channel_mut(at) {
            channel.paused = paused;
        }
        self.changed();
    }

    fn topology_changed(&mut self) {
        self.topology = self.topology.wrapping_add(1);
        self.changed();
    }

    /// Ends a client's subscription. Its messages in flight are requeued at once.
    pub(in crate::nsqd) fn leave(&mut self, now: Instant, id: Index) {
        let Some(subscription) = self.subscription_mut(id) else { return };
        let at = subscription.channel;
        let connected = subscription.connected;
        *subscription = Subscription { connected, ..Subscription::EMPTY };
        if at == NONE {
            return;
        }
        for index in self.range(at) {
            let is = |entry: &Entry| entry.message != NIL && entry.owner == id;
            if self.entries.get(index).is_some_and(is) {
                let (message, lane) = self.take_from_flight(at, index);
                self.put_back(at, message, lane);
                self.counters.returned = self.counters.returned.saturating_add(1);
            }
        }
        let Some(channel) = self.channel_mut(at) else { return };
        channel.clients = channel.clients.saturating_sub(1);
        channel.used = Used::at(now);
        let topic = channel.topic;
        let is_over = channel.clients == 0 && channel.name.is_ephemeral();
        if let Some(topic) = self.topic_mut(topic) {
            topic.used = Used::at(now);
        }
        if is_over {
            self.delete_channel(at);
        }
        self.changed();
    }

    /// Subscribes a client to a channel.
    pub(in crate::nsqd) fn join(&mut self, id: Index, at: Index) {
        let Some(channel) = self.channel_mut(at) else { return };
        channel.clients = channel.clients.saturating_add(1);
        let deliveries = channel.deliveries;
        if let Some(subscription) = self.subscription_mut(id) {
            subscription.channel = at;
            subscription.last_delivery = deliveries;
        }
    }
}
