//! The registration database of an nsqlookupd, in fixed tables.
//!
//! A topic or channel has a slot, and in it a bit for each producer that registered it. So a
//! producer can have every topic and channel there is, nothing but the slots can be full, and a
//! connection's end is a column of bits cleared. Slots without a bit are given back when others
//! need them.

mod bits;
mod slot;
mod tombstone;

use super::{Config, TOMBSTONES, TableFull};
use crate::name::{ChannelName, TopicName};
use crate::time::{Instant, Span};

pub(super) use bits::Bits;
pub(super) use slot::{Channel, Topic};

use slot::Key;
use tombstone::Tombstone;

/// The origin of a topic or channel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Maker {
    /// A request over HTTP: the topic or channel stays.
    Administrator,
    /// A producer, which makes no topic if it has as many, and no channel likewise.
    Producer { id: usize, topics: u16, channels: u16 },
}

/// The tables. Producers are numbers below their count, topics and channels those of their slots.
#[derive(Debug)]
pub(super) struct Tables<'a> {
    topics: &'a mut [Topic],
    channels: &'a mut [Channel],
    topic_bits: Bits<'a>,
    channel_bits: Bits<'a>,
    tombstones: [Tombstone; TOMBSTONES],
    last_serial: u32,
    version: u32,
    /// Keys collected so far.
    pub(super) collected: u32,
    /// Keys without producers removed so far since others needed their slots.
    pub(super) given_back: u32,
}

impl<'a> Tables<'a> {
    pub(super) fn new(
        topics: &'a mut [Topic],
        channels: &'a mut [Channel],
        topic_bits: Bits<'a>,
        channel_bits: Bits<'a>,
    ) -> Self {
        topics.fill(Topic::FREE);
        channels.fill(Channel::FREE);
        topic_bits.bits.fill(0);
        channel_bits.bits.fill(0);
        Self {
            topics,
            channels,
            topic_bits,
            channel_bits,
            tombstones: [Tombstone::FREE; TOMBSTONES],
            last_serial: 0,
            version: 0,
            collected: 0,
            given_back: 0,
        }
    }

    /// Makes a topic, or a channel and its topic, if there are none, and says where they are.
    ///
    /// If there is no slot left, what is stale is collected, and after that what has had no
    /// producer and no use for longest is given back. If that does not help either, nothing has
    /// changed.
    pub(super) fn add(
        &mut self,
        now: Instant,
        timeout: Span,
        topic: &TopicName,
        channel: Option<&ChannelName>,
        maker: Maker,
    ) -> Result<(usize, Option<usize>), TableFull> {
        let (mut topic_at, mut channel_at) = self.find(topic, channel);
        let mut needs_channel = channel.is_some() && channel_at.is_none();
        if topic_at.is_none() && self.free_topic().is_none()
            || needs_channel && self.free_channel().is_none()
        {
            self.collect(now, timeout);
            // Collecting may have removed these as well.
            (topic_at, channel_at) = self.find(topic, channel);
            needs_channel = channel.is_some() && channel_at.is_none();
        }
        if needs_channel && self.free_channel().or_else(|| self.oldest_channel()).is_none() {
            return Err(TableFull::Channels);
        }
        if topic_at.is_none() && self.free_topic().or_else(|| self.oldest_topic()).is_none() {
            return Err(TableFull::Topics);
        }
        if let Maker::Producer { id, topics, channels } = maker {
            let has = (self.topics.len(), self.channels.len());
            let has = (self.topic_bits.count_of(has.0, id), self.channel_bits.count_of(has.1, id));
            if topic_at.is_none() && has.0 >= topics.into()
                || needs_channel && has.1 >= channels.into()
            {
                return Err(TableFull::Share);
            }
        }
        let keep = matches!(maker, Maker::Administrator);
        let topic_at = match topic_at {
            Some(at) => at,
            None => self.new_topic(now, topic).ok_or(TableFull::Topics)?,
        };
        if let Some(slot) = self.topics.get_mut(topic_at) {
            slot.key.kept |= keep;
            slot.key.touch(now);
        }
        let Some(channel) = channel else { return Ok((topic_at, None)) };
        let channel_at = match channel_at {
            Some(at) => at,
            None => self.new_channel(now, topic_at, channel).ok_or(TableFull::Channels)?,
        };
        if let Some(slot) = self.channels.get_mut(channel_at) {
            slot.key.kept |= keep;
            slot.key.touch(now);
        }
        Ok((topic_at, Some(channel_at)))
    }

    fn find(
        &self,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> (Option<usize>, Option<usize>) {
        let topic = self.topic(topic);
        (topic, topic.zip(channel).and_then(|(topic, channel)| self.channel(topic, channel)))
    }

    /// Puts a topic into a slot, if need be one that is given back.
    fn new_topic(&mut self, now: Instant, name: &TopicName) -> Option<usize> {
        let at = match self.free_topic() {
            Some(at) => at,
            None => {
                let at = self.oldest_topic()?;
                let channels = self.channels_of(at, 0);
                let channels = channels.fold(0u32, |count, _| count.saturating_add(1));
                self.remove_topic(at);
                self.given_back = self.given_back.saturating_add(1).saturating_add(channels);
                at
            }
        };
        let key = Key { serial: self.next_serial(), kept: false, unused_since: now };
        *self.topics.get_mut(at)? = Topic { name: *name, key };
        Some(at)
    }

    /// Puts a channel into a slot, if need be one that is given back.
    fn new_channel(&mut self, now: Instant, topic: usize, name: &ChannelName) -> Option<usize> {
        let at = match self.free_channel() {
            Some(at) => at,
            None => {
                let at = self.oldest_channel()?;
                self.remove_channel(at);
                self.given_back = self.given_back.saturating_add(1);
                at
            }
        };
        let key = Key { serial: self.next_serial(), kept: false, unused_since: now };
        *self.channels.get_mut(at)? = Channel { name: *name, topic: topic as u16, key };
        Some(at)
    }

    fn free_topic(&self) -> Option<usize> {
        self.topics.iter().position(|slot| slot.key.is_free())
    }

    fn free_channel(&self) -> Option<usize> {
        self.channels.iter().position(|slot| slot.key.is_free())
    }

    /// The topic that is given back first: its channels have no producer either.
    fn oldest_topic(&self) -> Option<usize> {
        let topics = numbered(self.topics, 0)
            .filter(|(at, slot)| !slot.key.is_free() && self.topic_bits.is_empty(*at));
        topics.min_by_key(|(_, slot)| slot.key.age()).map(|(at, _)| at)
    }

    /// The channel that is given back first.
    fn oldest_channel(&self) -> Option<usize> {
        let channels = numbered(self.channels, 0)
            .filter(|(at, slot)| !slot.key.is_free() && self.channel_bits.is_empty(*at));
        channels.min_by_key(|(_, slot)| slot.key.age()).map(|(at, _)| at)
    }

    /// Marks a topic as used.
    pub(super) fn touch(&mut self, now: Instant, topic: usize) {
        if let Some(slot) = self.topics.get_mut(topic) {
            slot.key.touch(now);
        }
    }

    /// Registers a topic, or a channel and its topic, for a producer.
    pub(super) fn register(
        &mut self,
        now: Instant,
        config: &Config<'_>,
        producer: usize,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), TableFull> {
        let Config { topics_per_node: topics, channels_per_node: channels, .. } = *config;
        let maker = Maker::Producer { id: producer, topics, channels };
        let (topic, channel) = self.add(now, config.empty_timeout, topic, channel, maker)?;
        if let Some(channel) = channel {
            if let Some(slot) = self.channels.get_mut(channel) {
                slot.key.unused_since = Instant::NEVER;
            }
            if self.channel_bits.put(channel, producer, true) {
                self.changed();
            }
        }
        if let Some(slot) = self.topics.get_mut(topic) {
            slot.key.unused_since = Instant::NEVER;
        }
        if self.topic_bits.put(topic, producer, true) {
            self.changed();
        }
        Ok(())
    }

    /// A producer no longer has a channel, or a topic with all its channels. An ephemeral one that
    /// nobody has any more is gone, as in nsqlookupd.
    pub(super) fn unregister(
        &mut self,
        now: Instant,
        producer: usize,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) {
        let Some(topic) = self.topic(topic) else { return };
        match channel {
            Some(name) => {
                let Some(channel) = self.channel(topic, name) else { return };
                self.leave_channel(now, channel, producer);
                if name.is_ephemeral() && self.channel_bits.is_empty(channel) {
                    self.remove_channel(channel);
                }
            }
            None => {
                for channel in 0..self.channels.len() {
                    if self.topic_of(channel) == Some(topic) {
                        self.leave_channel(now, channel, producer);
                    }
                }
                self.leave_topic(now, topic, producer);
                let is_ephemeral =
                    self.topics.get(topic).is_some_and(|slot| slot.name.is_ephemeral());
                if is_ephemeral && self.topic_bits.is_empty(topic) {
                    self.remove_topic(topic);
                }
            }
        }
    }

    /// Removes all registrations of a producer. The topics and channels stay.
    pub(super) fn forget(&mut self, now: Instant, producer: usize) {
        for channel in 0..self.channels.len() {
            self.leave_channel(now, channel, producer);
        }
        for topic in 0..self.topics.len() {
            self.leave_topic(now, topic, producer);
        }
        self.changed();
    }

    /// Removes a topic, its channels, and what producers registered of them.
    pub(super) fn remove_topic(&mut self, topic: usize) {
        for channel in 0..self.channels.len() {
            if self.topic_of(channel) == Some(topic) {
                self.remove_channel(channel);
            }
        }
        for tombstone in &mut self.tombstones {
            if usize::from(tombstone.topic) == topic {
                *tombstone = Tombstone::FREE;
            }
        }
        self.topic_bits.clear(topic);
        if let Some(slot) = self.topics.get_mut(topic) {
            *slot = Topic::FREE;
        }
        self.changed();
    }

    /// Removes a channel.
    pub(super) fn remove_channel(&mut self, channel: usize) {
        self.channel_bits.clear(channel);
        if let Some(slot) = self.channels.get_mut(channel) {
            *slot = Channel::FREE;
        }
        self.changed();
    }

    /// Forgets the topics and channels that have had no producer and no use for so long, except
    /// those that an administrator made. [`Span::ZERO`] is never.
    pub(super) fn collect(&mut self, now: Instant, timeout: Span) {
        if timeout == Span::ZERO {
            return;
        }
        for channel in 0..self.channels.len() {
            if self.channels.get(channel).is_some_and(|slot| slot.key.is_stale(now, timeout)) {
                self.remove_channel(channel);
                self.collected = self.collected.saturating_add(1);
            }
        }
        for topic in 0..self.topics.len() {
            let is_stale =
                self.topics.get(topic).is_some_and(|slot| slot.key.is_stale(now, timeout));
            if is_stale && self.channels_of(topic, 0).next().is_none() {
                self.remove_topic(topic);
                self.collected = self.collected.saturating_add(1);
            }
        }
    }

    /// The slot of a topic.
    pub(super) fn topic(&self, name: &TopicName) -> Option<usize> {
        self.topics.iter().position(|slot| !slot.key.is_free() && slot.name == *name)
    }

    /// The slot of a channel.
    pub(super) fn channel(&self, topic: usize, name: &ChannelName) -> Option<usize> {
        self.channels.iter().position(|slot| {
            !slot.key.is_free() && usize::from(slot.topic) == topic && slot.name == *name
        })
    }

    /// The topics from slot `from` on, each with its slot.
    pub(super) fn topics(&self, from: usize) -> impl Iterator<Item = (usize, &TopicName)> {
        let slots = numbered(self.topics, from);
        slots.filter(|(_, slot)| !slot.key.is_free()).map(|(at, slot)| (at, &slot.name))
    }

    /// The channels from slot `from` on, each with its slot and its topic.
    pub(super) fn channels(
        &self,
        from: usize,
    ) -> impl Iterator<Item = (usize, &TopicName, &ChannelName)> {
        let slots = numbered(self.channels, from);
        slots.filter(|(_, slot)| !slot.key.is_free()).filter_map(|(at, slot)| {
            let topic = self.topics.get(usize::from(slot.topic))?;
            Some((at, &topic.name, &slot.name))
        })
    }

    /// The channels of a topic from slot `from` on, each with its slot.
    pub(super) fn channels_of(
        &self,
        topic: usize,
        from: usize,
    ) -> impl Iterator<Item = (usize, &ChannelName)> {
        let slots = numbered(self.channels, from);
        slots
            .filter(move |(_, slot)| !slot.key.is_free() && usize::from(slot.topic) == topic)
            .map(|(at, slot)| (at, &slot.name))
    }

    /// The serial number of the topic in a slot; 0 if it is free.
    pub(super) fn serial(&self, topic: usize) -> u32 {
        self.topics.get(topic).map_or(0, |slot| slot.key.serial)
    }

    /// The serial number of the channel in a slot; 0 if it is free.
    pub(super) fn channel_serial(&self, channel: usize) -> u32 {
        self.channels.get(channel).map_or(0, |slot| slot.key.serial)
    }

    /// The number of slots for topics and channels.
    pub(super) fn slots(&self) -> (usize, usize) {
        (self.topics.len(), self.channels.len())
    }

    /// Whether a producer registered a topic.
    pub(super) fn has_topic(&self, topic: usize, producer: usize) -> bool {
        self.topic_bits.has(topic, producer)
    }

    /// Whether a producer registered a channel.
    pub(super) fn has_channel(&self, channel: usize, producer: usize) -> bool {
        self.channel_bits.has(channel, producer)
    }

    /// A number that no other topic, channel or producer has.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        self.changed();
        self.last_serial
    }

    /// The last of these numbers.
    pub(super) fn last_serial(&self) -> u32 {
        self.last_serial
    }

    pub(super) fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    fn topic_of(&self, channel: usize) -> Option<usize> {
        let slot = self.channels.get(channel)?;
        (!slot.key.is_free()).then_some(slot.topic.into())
    }

    fn leave_channel(&mut self, now: Instant, channel: usize, producer: usize) {
        if self.channel_bits.put(channel, producer, false) {
            if self.channel_bits.is_empty(channel)
                && let Some(slot) = self.channels.get_mut(channel)
            {
                slot.key.unused_since = now;
            }
            self.changed();
        }
    }

    fn leave_topic(&mut self, now: Instant, topic: usize, producer: usize) {
        if self.topic_bits.put(topic, producer, false) {
            for tombstone in &mut self.tombstones {
                if usize::from(tombstone.topic) == topic
                    && usize::from(tombstone.producer) == producer
                {
                    *tombstone = Tombstone::FREE;
                }
            }
            if self.topic_bits.is_empty(topic)
                && let Some(slot) = self.topics.get_mut(topic)
            {
                slot.key.unused_since = now;
            }
            self.changed();
        }
    }
}

/// The slots of a table from `from` on, each with its index.
pub(super) fn numbered<T>(slots: &[T], from: usize) -> impl Iterator<Item = (usize, &T)> + Clone {
    (from..slots.len()).zip(slots.get(from..).unwrap_or_default())
}
