//! Administers topics and channels for the application, like nsqd's HTTP endpoints.

use super::table::Origin;
use super::{Index, Nsqd, NsqdError};
use crate::name::{ChannelName, TopicName};
use crate::time::Instant;

impl Nsqd<'_> {
    /// Creates a topic, or a channel in an existing topic. Leaves existing ones as they are. A
    /// topic's first channel gets the messages that the topic holds.
    pub fn create(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        match channel {
            None => {
                self.shared.topic_for(now, topic, Origin::Application)?;
            }
            Some(channel) => {
                let at = self.topic_at(topic)?;
                self.shared.channel_for(now, at, channel, Origin::Application)?;
            }
        }
        Ok(())
    }

    /// Deletes a topic with its channels and messages, or a channel with its messages. Closes the
    /// connections of their subscribers.
    pub fn delete(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        let _ = now;
        match channel {
            None => self.shared.delete_topic(self.topic_at(topic)?),
            Some(channel) => self.shared.delete_channel(self.channel_at(topic, channel)?),
        }
        Ok(())
    }

    /// Drops the messages that a topic holds back, or all messages of a channel: waiting, deferred
    /// and in flight.
    pub fn empty(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        let _ = now;
        match channel {
            None => self.shared.empty_topic(self.topic_at(topic)?),
            Some(channel) => self.shared.empty_channel(self.channel_at(topic, channel)?),
        }
        Ok(())
    }

    /// Pauses a topic, which then holds new messages back from its channels, or a channel, which
    /// then delivers no message. Messages in flight are not affected.
    pub fn pause(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        self.set_paused(now, topic, channel, true)
    }

    /// Ends a pause. A topic distributes the messages that it held back.
    pub fn unpause(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        self.set_paused(now, topic, channel, false)
    }

    fn set_paused(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
        paused: bool,
    ) -> Result<(), NsqdError> {
        match channel {
            None => self.shared.pause_topic(now, self.topic_at(topic)?, paused),
            Some(channel) => self.shared.pause_channel(self.channel_at(topic, channel)?, paused),
        }
        Ok(())
    }

    fn topic_at(&self, topic: &TopicName) -> Result<Index, NsqdError> {
        self.shared.find_topic(topic).ok_or(NsqdError::NoTopic)
    }

    fn channel_at(&self, topic: &TopicName, channel: &ChannelName) -> Result<Index, NsqdError> {
        let at = self.topic_at(topic)?;
        self.shared.find_channel(at, channel).ok_or(NsqdError::NoChannel)
    }
}
