//! The application's calls for topics and channels: the counterpart of nsqd's HTTP endpoints.

use super::table::Origin;
use super::{Nsqd, NsqdError};
use crate::name::{ChannelName, TopicName};
use crate::time::Instant;

impl Nsqd<'_> {
    /// Makes a topic; one that is there is left as it is.
    pub fn create_topic(&mut self, now: Instant, topic: &TopicName) -> Result<(), NsqdError> {
        self.shared.topic_for(now, topic, Origin::Application)?;
        Ok(())
    }

    /// Deletes a topic with its channels and messages. Their subscribers are closed.
    pub fn delete_topic(&mut self, now: Instant, topic: &TopicName) -> Result<(), NsqdError> {
        let _ = now;
        let at = self.topic_at(topic)?;
        self.shared.delete_topic(at);
        Ok(())
    }

    /// Drops what a topic has not given to its channels.
    pub fn empty_topic(&mut self, now: Instant, topic: &TopicName) -> Result<(), NsqdError> {
        let _ = now;
        let at = self.topic_at(topic)?;
        self.shared.empty_topic(at);
        Ok(())
    }

    /// Holds a topic's new messages back from its channels.
    pub fn pause_topic(&mut self, now: Instant, topic: &TopicName) -> Result<(), NsqdError> {
        let at = self.topic_at(topic)?;
        self.shared.pause_topic(now, at, true);
        Ok(())
    }

    /// Lets a topic's messages flow to its channels again, beginning with those held back.
    pub fn unpause_topic(&mut self, now: Instant, topic: &TopicName) -> Result<(), NsqdError> {
        let at = self.topic_at(topic)?;
        self.shared.pause_topic(now, at, false);
        Ok(())
    }

    /// Makes a channel in a topic; one that is there is left as it is. A topic's first channel
    /// gets what the topic has.
    pub fn create_channel(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        let at = self.topic_at(topic)?;
        self.shared.channel_for(now, at, channel, Origin::Application)?;
        Ok(())
    }

    /// Deletes a channel with its messages. Its subscribers are closed.
    pub fn delete_channel(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        let _ = now;
        let at = self.channel_at(topic, channel)?;
        self.shared.delete_channel(at);
        Ok(())
    }

    /// Drops what a channel has: what waits, what is deferred, and what is in flight.
    pub fn empty_channel(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        let _ = now;
        let at = self.channel_at(topic, channel)?;
        self.shared.empty_channel(at);
        Ok(())
    }

    /// Delivers nothing more from a channel; what is in flight goes on.
    pub fn pause_channel(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        let _ = now;
        let at = self.channel_at(topic, channel)?;
        self.shared.pause_channel(at, true);
        Ok(())
    }

    /// Delivers from a channel again.
    pub fn unpause_channel(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        let _ = now;
        let at = self.channel_at(topic, channel)?;
        self.shared.pause_channel(at, false);
        Ok(())
    }

    fn topic_at(&self, topic: &TopicName) -> Result<u8, NsqdError> {
        self.shared.find_topic(topic).ok_or(NsqdError::NoTopic)
    }

    fn channel_at(&self, topic: &TopicName, channel: &ChannelName) -> Result<u8, NsqdError> {
        let at = self.topic_at(topic)?;
        self.shared.find_channel(at, channel).ok_or(NsqdError::NoChannel)
    }
}
