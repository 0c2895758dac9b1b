//! The public status of an nsqd, as in nsqd's `/stats`.

use core::net::SocketAddr;

use super::Index;
use super::table::{NONE, Topic};
use crate::name::{ChannelName, TopicName};

/// The status of a topic.
#[derive(Debug, Clone, Copy)]
pub struct TopicStatus<'s> {
    /// The topic's name.
    pub name: &'s TopicName,
    /// True while the topic is paused: its channels get no new messages.
    pub paused: bool,
    /// True while nsqlookupds are asked which channels the topic has elsewhere: its channels get no
    /// new messages.
    pub asking: bool,
    /// The number of the topic's channels.
    pub channels: u8,
    /// Messages that are not distributed yet: the topic has no channel, is paused, or `asking`.
    pub depth: u32,
    /// Published messages since the topic's creation.
    pub messages: u64,
    /// The bytes of their bodies.
    pub bytes: u64,
    /// Messages dropped to make room ([`Full`](super::Full)), or because they had no channel for
    /// [`Config::unconsumed_age`](super::Config::unconsumed_age), since the topic's creation.
    pub dropped: u64,
}

/// The status of a channel. Totals count from the channel's creation.
#[derive(Debug, Clone, Copy)]
pub struct ChannelStatus<'s> {
    /// The name of the channel's topic.
    pub topic: &'s TopicName,
    /// The channel's name.
    pub name: &'s ChannelName,
    /// True while the channel is paused: no message is delivered.
    pub paused: bool,
    /// The number of subscribed clients.
    pub clients: u16,
    /// Messages that wait for delivery, including requeued ones.
    pub depth: u32,
    /// Messages in flight.
    pub in_flight: u32,
    /// Deferred messages that are not due yet.
    pub deferred: u32,
    /// The total of messages that the channel got from its topic.
    pub messages: u64,
    /// The total of REQs.
    pub requeued: u64,
    /// The total of messages requeued after their timeout.
    pub timed_out: u64,
    /// The total of messages dropped to make room.
    pub dropped: u64,
}

/// The state of a client, with nsqd's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ClientState {
    /// Not subscribed, like a producer.
    Init,
    /// Subscribed.
    Subscribed,
    /// The client sent CLS, or its connection is closing.
    Closing,
}

impl ClientState {
    /// Returns the number of the state in nsqd's `/stats`.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Init => 0,
            Self::Subscribed => 3,
            Self::Closing => 4,
        }
    }
}

/// The status of a client. Totals count from its connection. Texts are from IDENTIFY: empty if not
/// given, and cut off at 32 bytes.
#[derive(Debug, Clone, Copy)]
pub struct ClientStatus<'s> {
    /// The index of the client, as in [`Nsqd::client`](super::Nsqd::client).
    pub index: usize,
    /// The client's state.
    pub state: ClientState,
    /// The remote address, if the driver knows it.
    pub from: Option<SocketAddr>,
    /// The Unix time in seconds at which the client connected, by the nsqd's clock.
    pub since: i64,
    /// True after IDENTIFY. Before that, nsqd shows the address as `client_id` and `hostname`.
    pub identified: bool,
    /// The client's id.
    pub client_id: &'s str,
    /// The client's host.
    pub hostname: &'s str,
    /// The client's library and version.
    pub user_agent: &'s str,
    /// The region of the client.
    pub topology_region: &'s str,
    /// The zone of the client in its region.
    pub topology_zone: &'s str,
    /// The percentage of its channel's messages that the client gets; 0 means all.
    pub sample_rate: u8,
    /// The topic that the client is subscribed to.
    pub topic: Option<&'s TopicName>,
    /// The channel that the client is subscribed to.
    pub channel: Option<&'s ChannelName>,
    /// The client's RDY count.
    pub ready: u16,
    /// The client's messages in flight.
    pub in_flight: u16,
    /// The total of deliveries to the client.
    pub messages: u64,
    /// The total of the client's FINs.
    pub finished: u64,
    /// The total of the client's REQs.
    pub requeued: u64,
    pub(super) pubs: &'s [(Index, u32)],
    pub(super) topics: &'s [Topic],
}

impl<'s> ClientStatus<'s> {
    /// Returns the topics that the client published to, with the number of messages. Counts only
    /// the first 4 topics.
    pub fn published(&self) -> impl Iterator<Item = (&'s TopicName, u32)> + use<'s> {
        let topics = self.topics;
        self.pubs
            .iter()
            .filter(|(at, _)| *at != NONE)
            .filter_map(move |(at, count)| Some((&topics.get(usize::from(*at))?.name, *count)))
    }
}

/// Counters since the nsqd was created. Each saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Messages accepted from the application and from clients.
    pub accepted: u64,
    /// Deliveries of messages to clients.
    pub delivered: u64,
    /// Messages finished with FIN.
    pub finished: u64,
    /// Messages requeued with REQ.
    pub requeued: u64,
    /// Messages requeued after their timeout.
    pub timed_out: u64,
    /// Messages requeued because their client disconnected.
    pub returned: u64,
    /// Messages that a client's sampling skipped: its channel is done with them.
    pub sampled_out: u64,
    /// Messages dropped to make room.
    pub dropped: u64,
    /// Messages that waited in evicted channels, counted once for each channel.
    pub abandoned: u64,
    /// Calls of `publish` refused because the store was full, including retries.
    pub refused: u64,
    /// Waits of clients for room.
    pub waits: u32,
    /// Messages dropped after [`Config::unconsumed_age`](super::Config::unconsumed_age).
    pub expired: u64,
    /// Clients closed because a body did not arrive within
    /// [`Config::body_timeout`](super::Config::body_timeout).
    pub body_timeouts: u32,
    /// Clients closed after a fatal error.
    pub refusals: u32,
    /// Accepted connections of clients.
    pub connections: u32,
    /// Queries that an nsqlookupd answered with a new topic's channels.
    pub asked: u32,
    /// Queries that an nsqlookupd did not answer.
    pub ask_failures: u32,
    /// Channels of new topics elsewhere for which there was no room here.
    pub channels_left_out: u32,
    /// Topics evicted because another needed the room.
    pub topics_given_back: u32,
    /// Channels evicted without their topic because another needed the room.
    pub channels_given_back: u32,
    /// Refused topics: there was no room for another.
    pub topics_refused: u32,
    /// Refused channels: there was no room for another.
    pub channels_refused: u32,
    /// Refused channels: their topic had [`Config::channels_per_topic`](super::Config).
    pub channels_of_topic_refused: u32,
}

/// The use of the store, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ArenaStatus {
    /// All blocks.
    pub blocks: u32,
    /// Free blocks.
    pub free: u32,
    /// Free blocks that are reserved for batches being received.
    pub promised: u32,
    /// Blocks taken by or reserved for messages that clients have announced and not completely
    /// sent.
    pub announced: u32,
}
