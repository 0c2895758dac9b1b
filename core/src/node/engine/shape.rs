//! Topics and channels: made, deleted, emptied, paused; who is subscribed.

use super::{NoSlot, Shared};
use crate::name::{ChannelName, TopicName};
use crate::node::store::NIL;
use crate::node::table::{Channel, Entry, NONE, Seat, Topic};
use crate::time::Instant;

impl Shared<'_> {
    pub(in crate::node) fn find_topic(&self, name: &TopicName) -> Option<u8> {
        self.topics.iter().position(|topic| topic.name == *name).map(|at| at as u8)
    }

    pub(in crate::node) fn has_slot_for(&self, name: &TopicName) -> bool {
        self.topics.iter().any(|topic| !topic.is_used() || topic.name == *name)
    }

    /// The topic of that name, made if need be: then it is held if nsqlookupds are to be asked for
    /// its channels.
    pub(in crate::node) fn topic_for(
        &mut self,
        now: Instant,
        name: &TopicName,
    ) -> Result<u8, NoSlot> {
        if let Some(at) = self.find_topic(name) {
            return Ok(at);
        }
        let free = self.topics.iter().position(|topic| !topic.is_used());
        let at = free.ok_or(NoSlot::Topics)?;
        if let Some(topic) = self.topics.get_mut(at) {
            *topic = Topic { name: *name, ..Topic::NEW };
            if self.asks {
                self.holds = true;
                topic.asking = u8::MAX;
                topic.ask_until = now.after(self.config.channels_wait);
            }
        }
        self.reshaped();
        Ok(at as u8)
    }

    /// Whether a topic is held until nsqlookupds were asked for its channels.
    pub(in crate::node) fn is_holding(&self) -> bool {
        self.holds && self.topics.iter().any(|topic| topic.asking != 0)
    }

    /// Of the nsqlookupds that are still to be asked for a topic's channels, leaves only these; once
    /// none is left, or no time, the topic is not held any more.
    pub(in crate::node) fn ask_only(&mut self, now: Instant, at: u8, lookupds: u8) {
        let Some(topic) = self.topic_mut(at).filter(|topic| topic.asking != 0) else { return };
        topic.asking &= if topic.ask_until <= now { 0 } else { lookupds };
        if topic.asking == 0 {
            self.flow(now, at);
        }
    }

    pub(in crate::node) fn find_channel(&self, topic: u8, name: &ChannelName) -> Option<u8> {
        let is = |channel: &Channel| channel.topic == topic && channel.name == *name;
        self.channels.iter().position(is).map(|at| at as u8)
    }

    /// The topic's channel of that name, made if need be: the topic's first gets what the topic
    /// has held back so far.
    pub(in crate::node) fn channel_for(
        &mut self,
        now: Instant,
        topic: u8,
        name: &ChannelName,
    ) -> Result<u8, NoSlot> {
        if let Some(at) = self.find_channel(topic, name) {
            return Ok(at);
        }
        let lanes = self.config.channels_per_topic;
        let is_taken = |lane: u8| {
            self.channels.iter().any(|channel| channel.topic == topic && channel.lane == lane)
        };
        let lane = (0..lanes).find(|lane| !is_taken(*lane)).ok_or(NoSlot::ChannelsOfTopic)?;
        let free = self.channels.iter().position(|channel| !channel.is_used());
        let at = free.ok_or(NoSlot::Channels)?;
        if let Some(channel) = self.channels.get_mut(at) {
            *channel = Channel { name: *name, topic, lane, ..Channel::NEW };
        }
        if let Some(topic) = self.topic_mut(topic) {
            topic.channels = topic.channels.saturating_add(1);
        }
        self.reshaped();
        self.flow(now, topic);
        Ok(at as u8)
    }

    /// Deletes a topic with its channels and messages; its subscribers are closed.
    pub(in crate::node) fn delete_topic(&mut self, at: u8) {
        for channel in 0..self.channels.len() as u8 {
            if self.channel(channel).is_some_and(|channel| channel.topic == at) {
                self.drop_channel(channel);
            }
        }
        self.empty_topic(at);
        if let Some(topic) = self.topic_mut(at) {
            *topic = Topic::NEW;
        }
        if self.asked == at {
            // What comes here next is another topic.
            self.asked = NONE;
        }
        for seat in &mut *self.seats {
            for count in &mut seat.pubs {
                if count.0 == at {
                    *count = (NONE, 0);
                }
            }
        }
        self.reshaped();
    }

    /// Deletes a channel with its messages; its subscribers are closed. An ephemeral topic goes
    /// with its last channel.
    pub(in crate::node) fn delete_channel(&mut self, at: u8) {
        let Some(topic) = self.channel(at).map(|channel| channel.topic) else { return };
        self.drop_channel(at);
        self.reshaped();
        if self.topic(topic).is_some_and(|topic| topic.channels == 0 && topic.name.is_ephemeral()) {
            self.delete_topic(topic);
        }
    }

    fn drop_channel(&mut self, at: u8) {
        self.empty_channel(at);
        for seat in &mut *self.seats {
            if seat.channel == at {
                seat.channel = NONE;
                seat.ready = 0;
                seat.kicked = true;
            }
        }
        let Some(channel) = self.channel_mut(at) else { return };
        let topic = channel.topic;
        *channel = Channel::NEW;
        if let Some(topic) = self.topic_mut(topic) {
            topic.channels = topic.channels.saturating_sub(1);
        }
    }

    /// Drops what a topic has not given to its channels.
    pub(in crate::node) fn empty_topic(&mut self, at: u8) {
        while let Some(message) = self.pop_held(at) {
            self.release(message);
        }
    }

    /// Drops what a channel has: also what is in flight, whose answers come too late then.
    pub(in crate::node) fn empty_channel(&mut self, at: u8) {
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

    pub(in crate::node) fn pause_topic(&mut self, now: Instant, at: u8, paused: bool) {
        if let Some(topic) = self.topic_mut(at) {
            topic.paused = paused;
        }
        self.flow(now, at);
    }

    pub(in crate::node) fn pause_channel(&mut self, at: u8, paused: bool) {
        if let Some(channel) = self.channel_mut(at) {
            channel.paused = paused;
        }
        self.changed();
    }

    fn reshaped(&mut self) {
        self.topology = self.topology.wrapping_add(1);
        self.changed();
    }

    /// A client goes: others get at once what it has in flight.
    pub(in crate::node) fn leave(&mut self, id: u8) {
        let Some(seat) = self.seat_mut(id) else { return };
        let at = seat.channel;
        *seat = Seat::EMPTY;
        if at == NONE {
            return;
        }
        for index in self.range(at) {
            let is = |entry: &Entry| entry.message != NIL && entry.owner == id;
            if self.entries.get(index).is_some_and(is) {
                let (message, lane) = self.land(at, index);
                self.put_back(at, message, lane);
                self.counters.returned = self.counters.returned.saturating_add(1);
            }
        }
        let Some(channel) = self.channel_mut(at) else { return };
        channel.clients = channel.clients.saturating_sub(1);
        let is_over = channel.clients == 0 && channel.name.is_ephemeral();
        if is_over {
            self.delete_channel(at);
        }
        self.changed();
    }

    /// A client joins a channel.
    pub(in crate::node) fn join(&mut self, id: u8, at: u8) {
        let Some(channel) = self.channel_mut(at) else { return };
        channel.clients = channel.clients.saturating_add(1);
        let turn = channel.turn;
        if let Some(seat) = self.seat_mut(id) {
            seat.channel = at;
            seat.turn = turn;
        }
    }
}
