//! The registration database of an nsqlookupd, in fixed tables.
//!
//! Each topic or channel has a slot with a bit for each producer. So a producer can register every
//! existing topic and channel, only the slots can run out, and the end of a connection clears one
//! column of bits. Slots without a bit are given back when others need them.

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
    /// A producer, which creates no topic if it has `topics` of them, and no channel if it has
    /// `channels`.
    Producer { id: usize, topics: u16, channels: u16 },
}

/// The tables. Producers are identified by their index, topics and channels by their slot.
#[derive(Debug)]
pub(super) struct Tables<'a> {
    topics: &'a mut [Topic],
    channels: &'a mut [Channel],
    /// The slots from here on are free and their bytes have no meaning, so that nothing takes longer
    /// in a large table than in a small one, and memory that a platform gives page by page is used as
    /// far as slots are.
    topics_end: u16,
    channels_end: u16,
    topic_bits: Bits<'a>,
    channel_bits: Bits<'a>,
    tombstones: [Tombstone; TOMBSTONES],
    last_serial: u32,
    version: u32,
    /// The number of keys collected so far.
    pub(super) collected: u32,
    /// The number of keys without producers removed so far because others needed their slots.
    pub(super) given_back: u32,
}

impl<'a> Tables<'a> {
    pub(super) fn new(
        topics: &'a mut [Topic],
        channels: &'a mut [Channel],
        topic_bits: Bits<'a>,
        channel_bits: Bits<'a>,
    ) -> Self {
        Self {
            topics,
            channels,
            topics_end: 0,
            channels_end: 0,
            topic_bits,
            channel_bits,
            tombstones: [Tombstone::FREE; TOMBSTONES],
            last_serial: 0,
            version: 0,
            collected: 0,
            given_back: 0,
        }
    }

    /// Creates a topic, or a channel and its topic, unless they exist. Returns their slots.
    ///
    /// If no slot is free, stale keys are collected; if there are none, the key that has had no
    /// producer and no use for longest is given back. If there is none either, nothing else
    /// changes.
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
            // Collecting may have removed this topic or channel.
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
            let has = (
                self.topic_bits.count_of(self.topics_end.into(), id),
                self.channel_bits.count_of(self.channels_end.into(), id),
            );
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

    /// Creates a topic in a free slot, or in one that is given back.
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
        self.topic_bits.clear(at);
        self.topics_end = self.topics_end.max(at.saturating_add(1) as u16);
        Some(at)
    }

    /// Creates a channel in a free slot, or in one that is given back.
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
        self.channel_bits.clear(at);
        self.channels_end = self.channels_end.max(at.saturating_add(1) as u16);
        Some(at)
    }

    fn used_topics(&self) -> &[Topic] {
        self.topics.get(..self.topics_end.into()).unwrap_or_default()
    }

    fn used_channels(&self) -> &[Channel] {
        self.channels.get(..self.channels_end.into()).unwrap_or_default()
    }

    fn free_topic(&self) -> Option<usize> {
        let used = self.used_topics().iter().position(|slot| slot.key.is_free());
        used.or_else(|| Some(self.topics_end.into()).filter(|at| *at < self.topics.len()))
    }

    fn free_channel(&self) -> Option<usize> {
        let used = self.used_channels().iter().position(|slot| slot.key.is_free());
        used.or_else(|| Some(self.channels_end.into()).filter(|at| *at < self.channels.len()))
    }

    /// Returns the topic to give back first. Its channels have no producer either.
    fn oldest_topic(&self) -> Option<usize> {
        let topics = numbered(self.used_topics(), 0)
            .filter(|(at, slot)| !slot.key.is_free() && self.topic_bits.is_empty(*at));
        topics.min_by_key(|(_, slot)| slot.key.age()).map(|(at, _)| at)
    }

    /// Returns the channel to give back first.
    fn oldest_channel(&self) -> Option<usize> {
        let channels = numbered(self.used_channels(), 0)
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

    /// Unregisters a channel, or a topic with all its channels, for a producer. An ephemeral topic
    /// or channel without producers is then removed, as in nsqlookupd.
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
                for channel in 0..self.channels_end.into() {
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
        for channel in 0..self.channels_end.into() {
            self.leave_channel(now, channel, producer);
        }
        for topic in 0..self.topics_end.into() {
            self.leave_topic(now, topic, producer);
        }
        self.changed();
    }

    /// Removes a topic, its channels, and their registrations.
    pub(super) fn remove_topic(&mut self, topic: usize) {
        for channel in 0..self.channels_end.into() {
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
        let last = self.used_topics().iter().rposition(|slot| !slot.key.is_free());
        self.topics_end = last.map_or(0, |at| at.saturating_add(1) as u16);
        self.changed();
    }

    /// Removes a channel and its registrations.
    pub(super) fn remove_channel(&mut self, channel: usize) {
        self.channel_bits.clear(channel);
        if let Some(slot) = self.channels.get_mut(channel) {
            *slot = Channel::FREE;
        }
        let last = self.used_channels().iter().rposition(|slot| !slot.key.is_free());
        self.channels_end = last.map_or(0, |at| at.saturating_add(1) as u16);
        self.changed();
    }

    /// Removes the topics and channels that have had no producer and no use for `timeout`, except
    /// those that an administrator created. [`Span::ZERO`] removes none.
    pub(super) fn collect(&mut self, now: Instant, timeout: Span) {
        if timeout == Span::ZERO {
            return;
        }
        for channel in 0..self.channels_end.into() {
            if self.channels.get(channel).is_some_and(|slot| slot.key.is_stale(now, timeout)) {
                self.remove_channel(channel);
                self.collected = self.collected.saturating_add(1);
            }
        }
        for topic in 0..self.topics_end.into() {
            let is_stale =
                self.topics.get(topic).is_some_and(|slot| slot.key.is_stale(now, timeout));
            if is_stale && self.channels_of(topic, 0).next().is_none() {
                self.remove_topic(topic);
                self.collected = self.collected.saturating_add(1);
            }
        }
    }

    /// Returns the slot of a topic.
    pub(super) fn topic(&self, name: &TopicName) -> Option<usize> {
        self.used_topics().iter().position(|slot| !slot.key.is_free() && slot.name == *name)
    }

    /// Returns the slot of a channel.
    pub(super) fn channel(&self, topic: usize, name: &ChannelName) -> Option<usize> {
        self.used_channels().iter().position(|slot| {
            !slot.key.is_free() && usize::from(slot.topic) == topic && slot.name == *name
        })
    }

    /// Returns the topics from slot `from` on, each with its slot.
    pub(super) fn topics(&self, from: usize) -> impl Iterator<Item = (usize, &TopicName)> {
        let slots = numbered(self.used_topics(), from);
        slots.filter(|(_, slot)| !slot.key.is_free()).map(|(at, slot)| (at, &slot.name))
    }

    /// Returns the channels from slot `from` on, each with its slot and its topic.
    pub(super) fn channels(
        &self,
        from: usize,
    ) -> impl Iterator<Item = (usize, &TopicName, &ChannelName)> {
        let slots = numbered(self.used_channels(), from);
        slots.filter(|(_, slot)| !slot.key.is_free()).filter_map(|(at, slot)| {
            let topic = self.topics.get(usize::from(slot.topic))?;
            Some((at, &topic.name, &slot.name))
        })
    }

    /// Returns the channels of a topic from slot `from` on, each with its slot.
    pub(super) fn channels_of(
        &self,
        topic: usize,
        from: usize,
    ) -> impl Iterator<Item = (usize, &ChannelName)> {
        let slots = numbered(self.used_channels(), from);
        slots
            .filter(move |(_, slot)| !slot.key.is_free() && usize::from(slot.topic) == topic)
            .map(|(at, slot)| (at, &slot.name))
    }

    /// Returns the serial number of the topic in a slot; 0 if the slot is free.
    pub(super) fn serial(&self, topic: usize) -> u32 {
        self.topics.get(topic).map_or(0, |slot| slot.key.serial)
    }

    /// Returns the serial number of the channel in a slot; 0 if the slot is free.
    pub(super) fn channel_serial(&self, channel: usize) -> u32 {
        self.channels.get(channel).map_or(0, |slot| slot.key.serial)
    }

    /// Returns the numbers of slots for topics and for channels.
    pub(super) fn slots(&self) -> (usize, usize) {
        (self.topics.len(), self.channels.len())
    }

    /// Returns whether a producer has registered a topic.
    pub(super) fn has_topic(&self, topic: usize, producer: usize) -> bool {
        self.topic_bits.has(topic, producer)
    }

    /// Returns whether a producer has registered a channel.
    pub(super) fn has_channel(&self, channel: usize, producer: usize) -> bool {
        self.channel_bits.has(channel, producer)
    }

    /// Issues a serial number that no other topic, channel or producer has.
    pub(super) fn next_serial(&mut self) -> u32 {
        self.last_serial = self.last_serial.wrapping_add(1).max(1);
        self.changed();
        self.last_serial
    }

    /// Returns the serial number that was issued last.
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

/// Returns the slots of a table from `from` on, each with its index.
pub(super) fn numbered<T>(slots: &[T], from: usize) -> impl Iterator<Item = (usize, &T)> + Clone {
    (from..slots.len()).zip(slots.get(from..).unwrap_or_default())
}
