//! The application's calls for topics and channels: the counterpart of nsqd's HTTP endpoints.

use super::table::Origin;
use super::{Nsqd, NsqdError};
use crate::name::{ChannelName, TopicName};
use crate::time::Instant;

impl Nsqd<'_> {
    /// Makes a topic, or a channel in a topic; what is there is left as it is. A topic's first
    /// channel gets what the topic has.
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

    /// Deletes a topic with its channels and messages, or a channel with its messages. Their
    /// subscribers are closed.
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

    /// Drops what a topic has not given to its channels, or what a channel has: what waits, what is
    /// deferred, and what is in flight.
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

    /// Holds a topic's new messages back from its channels, or delivers nothing more from a
    /// channel; what is in flight goes on.
    pub fn pause(
        &mut self,
        now: Instant,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        self.set_paused(now, topic, channel, true)
    }

    /// Lets a topic's messages flow to its channels again, beginning with those held back, or
    /// delivers from a channel again.
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

    fn topic_at(&self, topic: &TopicName) -> Result<u8, NsqdError> {
        self.shared.find_topic(topic).ok_or(NsqdError::NoTopic)
    }

    fn channel_at(&self, topic: &TopicName, channel: &ChannelName) -> Result<u8, NsqdError> {
        let at = self.topic_at(topic)?;
        self.shared.find_channel(at, channel).ok_or(NsqdError::NoChannel)
    }
}
