//! The errors of the application's calls.

use core::fmt;

use super::{DEFER_MAX, TableFull};

/// The reason why a message was not accepted. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PublishError {
    /// The store is full. Try again when [`Nsqd::version`](super::Nsqd::version) has changed, as it
    /// does when messages are finished.
    Full,
    /// The message never fits into the store, or is longer than `limits.max_msg_size`.
    TooLarge {
        /// The longest accepted body in bytes.
        max: usize,
    },
    /// The message is empty.
    Empty,
    /// The deferral is above [`DEFER_MAX`].
    DeferTooLong,
    /// There is no room for another topic.
    TooManyTopics,
}

/// The reason why a call for a topic or channel failed. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum NsqdError {
    /// There is no such topic.
    NoTopic,
    /// There is no such channel.
    NoChannel,
    /// There is no room for another topic.
    TooManyTopics,
    /// There is no room for another channel, in all or in this topic.
    TooManyChannels,
}

impl From<TableFull> for NsqdError {
    fn from(full: TableFull) -> Self {
        match full {
            TableFull::Topics => Self::TooManyTopics,
            TableFull::Channels | TableFull::ChannelsOfTopic => Self::TooManyChannels,
        }
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the store is full"),
            Self::TooLarge { max } => {
                write!(f, "the message is longer than {max} bytes, the longest accepted")
            }
            Self::Empty => f.write_str("the message is empty"),
            Self::DeferTooLong => {
                write!(f, "the deferral is longer than {DEFER_MAX}, the longest accepted")
            }
            Self::TooManyTopics => f.write_str("no room for another topic"),
        }
    }
}

impl fmt::Display for NsqdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoTopic => "no such topic",
            Self::NoChannel => "no such channel",
            Self::TooManyTopics => "no room for another topic",
            Self::TooManyChannels => "no room for another channel",
        })
    }
}

impl core::error::Error for PublishError {}
impl core::error::Error for NsqdError {}
