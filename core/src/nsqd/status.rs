//! The public status of an nsqd: what nsqd's `/stats` shows.

use core::net::SocketAddr;

use super::table::{NONE, Topic};
use crate::name::{ChannelName, TopicName};

/// The status of a topic.
#[derive(Debug, Clone, Copy)]
pub struct TopicStatus<'s> {
    /// The topic's name.
    pub name: &'s TopicName,
    /// The topic is paused: its channels get no new messages.
    pub paused: bool,
    /// Likewise: nsqlookupds are being asked which channels it has elsewhere.
    pub asking: bool,
    /// How many channels it has.
    pub channels: u8,
    /// Messages that no channel has yet: there is none, or the topic is paused, or nsqlookupds are
    /// being asked for its channels.
    pub depth: u32,
    /// Messages published, in all.
    pub messages: u64,
    /// Their bodies' bytes, in all.
    pub bytes: u64,
    /// Messages dropped to make room ([`Full::DropOldest`](super::Full)), or since nobody consumed
    /// them for [`Config::unconsumed_age`](super::Config::unconsumed_age), in all.
    pub dropped: u64,
}

/// What is known of a channel.
#[derive(Debug, Clone, Copy)]
pub struct ChannelStatus<'s> {
    /// Its topic.
    pub topic: &'s TopicName,
    /// The topic's name.
    pub name: &'s ChannelName,
    /// Nothing is delivered.
    pub paused: bool,
    /// How many clients are subscribed.
    pub clients: u8,
    /// Messages that wait for their delivery, requeued ones included.
    pub depth: u32,
    /// Messages that clients have and did not answer.
    pub in_flight: u32,
    /// Messages that wait until they are due.
    pub deferred: u32,
    /// Messages that it got, in all.
    pub messages: u64,
    /// REQs, in all.
    pub requeued: u64,
    /// Messages taken back since their time was up, in all.
    pub timed_out: u64,
    /// Messages dropped to make room, in all.
    pub dropped: u64,
}

/// What a client may do, by nsqd's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ClientState {
    /// Not subscribed: a producer, say.
    Init,
    /// Subscribed.
    Subscribed,
    /// It said CLS, or is being closed.
    Closing,
}

impl ClientState {
    /// As nsqd's `/stats` has it.
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Init => 0,
            Self::Subscribed => 3,
            Self::Closing => 4,
        }
    }
}

/// What is known of a client. Texts are cut off at 32 bytes.
#[derive(Debug, Clone, Copy)]
pub struct ClientStatus<'s> {
    /// Which one: as [`Nsqd::client`](super::Nsqd::client) counts them.
    pub index: usize,
    /// What it may do.
    pub state: ClientState,
    /// From where it came, if the driver said.
    pub from: Option<SocketAddr>,
    /// Since when it is connected, in seconds of Unix time as the nsqd knows it.
    pub since: i64,
    /// It sent IDENTIFY. Before that nsqd shows its address as name and host.
    pub identified: bool,
    /// What it calls itself; empty if it did not say, as all texts here.
    pub client_id: &'s str,
    /// Its host.
    pub hostname: &'s str,
    /// Its library and version.
    pub user_agent: &'s str,
    /// Where it is.
    pub topology_region: &'s str,
    /// Where in the region it is.
    pub topology_zone: &'s str,
    /// How many percent of the messages it gets; 0 is all.
    pub sample_rate: u8,
    /// What it is subscribed to.
    pub topic: Option<&'s TopicName>,
    /// What it is subscribed to.
    pub channel: Option<&'s ChannelName>,
    /// Its RDY.
    pub ready: u16,
    /// Messages that it has and did not answer.
    pub in_flight: u16,
    /// Deliveries to it, in all.
    pub messages: u64,
    /// Its FINs, in all.
    pub finished: u64,
    /// Its REQs, in all.
    pub requeued: u64,
    pub(super) pubs: &'s [(u8, u32)],
    pub(super) topics: &'s [Topic],
}

impl<'s> ClientStatus<'s> {
    /// To which topics it published how many messages: the first 4 topics only.
    pub fn published(&self) -> impl Iterator<Item = (&'s TopicName, u32)> + use<'s> {
        let topics = self.topics;
        self.pubs
            .iter()
            .filter(|(at, _)| *at != NONE)
            .filter_map(move |(at, count)| Some((&topics.get(usize::from(*at))?.name, *count)))
    }
}

/// Counters since the start. Each saturates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Messages taken, from the application and from clients.
    pub accepted: u64,
    /// Deliveries begun.
    pub delivered: u64,
    /// Messages finished with FIN.
    pub finished: u64,
    /// Messages requeued with REQ.
    pub requeued: u64,
    /// Messages taken back since their time was up.
    pub timed_out: u64,
    /// Messages taken back since their client went.
    pub returned: u64,
    /// Messages that a client's sampling left out, for its channel.
    pub sampled_out: u64,
    /// Messages dropped to make room.
    pub dropped: u64,
    /// Messages that waited in channels that were given back, once for each channel.
    pub abandoned: u64,
    /// Calls of `publish` refused because the store was full. A message tried again counts again.
    pub refused: u64,
    /// How often a client had to wait for room.
    pub waits: u32,
    /// Messages dropped at [`Config::unconsumed_age`](super::Config::unconsumed_age).
    pub expired: u64,
    /// Clients closed since a body did not come within
    /// [`Config::body_timeout`](super::Config::body_timeout).
    pub body_timeouts: u32,
    /// Clients closed with an error.
    pub refusals: u32,
    /// Connections accepted.
    pub connections: u32,
    /// Times that an nsqlookupd said which channels a new topic has elsewhere.
    pub asked: u32,
    /// How often an nsqlookupd did not say.
    pub ask_failures: u32,
    /// Channels of new topics that are elsewhere, and for which there was no room.
    pub channels_left_out: u32,
    /// Topics given back because another needed the room.
    pub topics_given_back: u32,
    /// Channels given back because another needed the room, without their topic.
    pub channels_given_back: u32,
    /// How often there was no room for a topic.
    pub topics_refused: u32,
    /// How often there was no room for a channel.
    pub channels_refused: u32,
    /// How often a topic could not have another channel.
    pub channels_of_topic_refused: u32,
}

/// The use of the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ArenaStatus {
    /// Blocks in all.
    pub blocks: u16,
    /// Free blocks.
    pub free: u16,
    /// How many of the free ones are promised to batches that are being received.
    pub promised: u16,
    /// How many are taken by, or promised to, what clients have announced and not sent as a whole.
    pub announced: u16,
}
