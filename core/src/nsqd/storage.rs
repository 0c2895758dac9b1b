//! The tables that a [`Nsqd`] borrows, and the cost of a message in its store.

use super::Nsqd;
use super::arena::Layout;
use super::client::Client;
use super::table::{Channel, Entry, Subscription, Topic};

/// The tables of an nsqd: for `TOPICS` topics, `CHANNELS` channels of all topics together,
/// `CLIENTS` clients, and `IN_FLIGHT` messages in flight in each channel.
///
/// RAM: at most 128 bytes for each topic, 136 for each channel, 1,056 for each client, and 24 for
/// each message in flight of each channel: 5.6 KiB for 2 topics with 2 channels each, 4 clients and
/// 8 messages in flight in each channel; with the feature `large` at most 144, 152, 1,064 and 32.
/// The store is separate.
#[derive(Debug)]
pub struct Storage<
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const IN_FLIGHT: usize,
> {
    pub(super) topics: [Topic; TOPICS],
    pub(super) channels: [Channel; CHANNELS],
    pub(super) clients: [Client; CLIENTS],
    pub(super) subscriptions: [Subscription; CLIENTS],
    pub(super) entries: [[Entry; IN_FLIGHT]; CHANNELS],
}

/// The most bytes that a topic takes of a [`Storage`].
pub(super) const TOPIC_RAM_MAX: usize = if cfg!(feature = "large") { 144 } else { 128 };

/// The most bytes that a channel takes of a [`Storage`], beside its entries.
pub(super) const CHANNEL_RAM_MAX: usize = if cfg!(feature = "large") { 152 } else { 136 };

/// The most bytes that a client takes of a [`Storage`].
pub(super) const CLIENT_RAM_MAX: usize = if cfg!(feature = "large") { 1064 } else { 1056 };

/// The bytes that the entry of one message in flight takes of a [`Storage`].
pub(super) const ENTRY_RAM: usize = if cfg!(feature = "large") { 32 } else { 24 };

/// The most bytes of a [`Nsqd`] itself.
pub(super) const RAM_MAX: usize = if cfg!(feature = "large") { 552 } else { 448 };

// Checked at compile time on every target.
const _: () = {
    assert!(size_of::<Topic>() <= TOPIC_RAM_MAX);
    assert!(size_of::<Channel>() <= CHANNEL_RAM_MAX);
    assert!(size_of::<Client>() + size_of::<Subscription>() <= CLIENT_RAM_MAX);
    assert!(size_of::<Entry>() == ENTRY_RAM);
    assert!(size_of::<Nsqd<'_>>() <= RAM_MAX);
};

/// Returns how many bytes of the store a message with a body of `len` bytes takes, in an nsqd with
/// `channels_per_topic`, if the store has fewer than 65,535 blocks (4 MiB; a larger store has
/// longer blocks). With the feature `large` a store of any length has blocks of 64 bytes, if they
/// hold the head of a message, and takes 1/8 byte more for each.
///
/// ```
/// // A store of 16 KiB holds 124 messages of 60 bytes.
/// # #[cfg(not(feature = "large"))]
/// assert_eq!(nanonsq_core::nsqd::message_cost(60, 2), 132);
/// ```
pub const fn message_cost(len: u32, channels_per_topic: u8) -> usize {
    match Layout::new(4096, channels_per_topic) {
        Some(layout) => layout.cost(len),
        None => usize::MAX,
    }
}

impl<const TOPICS: usize, const CHANNELS: usize, const CLIENTS: usize, const IN_FLIGHT: usize>
    Storage<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>
{
    /// Returns tables for [`Nsqd::new`], which initializes them. All bytes are zero, so a static
    /// needs no image in flash.
    pub const fn new() -> Self {
        Self {
            topics: [const { Topic::ZERO }; TOPICS],
            channels: [const { Channel::ZERO }; CHANNELS],
            clients: [const { Client::ZERO }; CLIENTS],
            subscriptions: [Subscription::ZERO; CLIENTS],
            entries: [[Entry::ZERO; IN_FLIGHT]; CHANNELS],
        }
    }
}

impl<const TOPICS: usize, const CHANNELS: usize, const CLIENTS: usize, const IN_FLIGHT: usize>
    Default for Storage<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>
{
    fn default() -> Self {
        Self::new()
    }
}
