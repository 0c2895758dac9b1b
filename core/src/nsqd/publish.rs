//! Publishes the application's messages.

use super::engine::{Draft, Piece};
use super::table::Origin;
use super::{DEFER_MAX, Nsqd, PublishError};
use crate::name::TopicName;
use crate::time::{Instant, Span};

/// The number of a message that the nsqd accepted from the application. All messages, clients'
/// included, are counted from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ticket(u64);

impl Ticket {
    /// Returns the message's number, from 0, in the order of publishing.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// The options of a published message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PublishOptions {
    /// The delay before the first delivery, up to [`DEFER_MAX`]. It begins when the topic
    /// distributes the message: when the topic has a channel and is not paused.
    pub defer: Option<Span>,
}

impl Nsqd<'_> {
    /// Publishes a message, or fails at once.
    ///
    /// The body has 1 byte to the configured `limits.max_msg_size`, or to what the store holds. It
    /// is copied once, into the store, and sent from there. Creates the topic if needed.
    pub fn publish(
        &mut self,
        now: Instant,
        topic: &TopicName,
        body: &[u8],
    ) -> Result<Ticket, PublishError> {
        self.publish_with(now, topic, body, PublishOptions { defer: None })
    }

    /// Publishes a message with options, or fails at once.
    pub fn publish_with(
        &mut self,
        now: Instant,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        let taken = self.offer(now, topic, body, options);
        if matches!(taken, Err(PublishError::Full)) {
            self.shared.counters.refused = self.shared.counters.refused.saturating_add(1);
        }
        taken
    }

    /// Like [`publish_with`](Self::publish_with), without counting a refusal: for a caller that
    /// waits for room.
    pub(crate) fn offer(
        &mut self,
        now: Instant,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        if body.is_empty() {
            return Err(PublishError::Empty);
        }
        let defer = options.defer.unwrap_or(Span::ZERO);
        if defer > DEFER_MAX {
            return Err(PublishError::DeferTooLong);
        }
        let longest = self.shared.store.layout().longest();
        let max = self.shared.config.limits.max_msg_size.min(longest);
        let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        if len > max {
            return Err(PublishError::TooLarge { max: max as usize });
        }
        if self.shared.has_slot_for(now, topic, Origin::Application).is_err() {
            return Err(PublishError::TooManyTopics);
        }
        let mut draft = Draft::OWN;
        if !self.shared.take(now, topic, &mut draft, Piece::First(len)) {
            self.shared.wanted = true;
            return Err(PublishError::Full);
        }
        self.shared.fill(&mut draft, body);
        let Ok(topic) = self.shared.topic_for(now, topic, Origin::Application) else {
            self.shared.discard(&mut draft);
            return Err(PublishError::TooManyTopics);
        };
        let (number, _) = self.shared.commit(now, topic, &mut draft, defer.as_millis());
        Ok(Ticket(number))
    }
}
