//! A small nsqlookupd: who has which topics and channels, for nsqds, consumers and tools.
//!
//! nsqds register on connections that speak V1 ([`ProducerSession`]); consumers, nsqadmin and curl
//! ask over HTTP ([`HttpSession`]). Semantics are those of nsqlookupd 1.3.0
//! (`nsqlookupd/lookup_protocol_v1.go`, `registration_db.go`, `http.go`), with its crashes and
//! leaks mended:
//!
//! | nsqlookupd | here |
//! |---|---|
//! | a negative length in IDENTIFY ends the process, a large one is allocated | refused: [`Config::max_body`] |
//! | lines of any length | refused above [`v1::LINE_BUFFER`](crate::wire::v1::LINE_BUFFER) bytes |
//! | a silent connection stays for ever | closed after [`Config::idle_timeout`], before IDENTIFY after [`Config::greeting_timeout`] |
//! | a node that lost its connection comes back and is listed twice | the new connection replaces the old one |
//! | topics and channels without producers stay for ever | forgotten after [`Config::empty_timeout`], unless an administrator made them |
//! | `topic=*` stands for all topics, also in `/topic/delete` | no topic |
//!
//! The life of a node's connection:
//!
//! ```text
//!       accepted            IDENTIFY
//! Free ----------> Greeting ---------> Identified
//!   ^                 |                    |  refused, silent, does not read,
//!   |                 v                    v  or came back on another connection
//!   +------------- Closing <---------------+
//! ```
//!
//! Whatever happens to a connection, all that was registered on it ends with it; the topics and
//! channels themselves stay, as in nsqlookupd. A node that sends no PING is not listed from
//! [`Config::inactive_timeout`] on. A tombstone hides a node for one topic and
//! [`Config::tombstone_lifetime`], or until it unregisters and registers that topic.
//!
//! Answers over HTTP are written as they are read, while the tables may change: a list may miss
//! what came meanwhile, but is well-formed, and the `tombstones` and `topics` of a node in `/nodes`
//! are always as many (nsqadmin crashes otherwise).
//!
//! # Bounds
//!
//! | what | bound | when full |
//! |---|---|---|
//! | connections of nodes | the storage's `PRODUCERS` | not accepted |
//! | topics, channels | the storage's `TOPICS`, `CHANNELS` | REGISTER answers `E_REGISTER_FAILED`, HTTP 503; nothing changed; [`Counters::full`] |
//! | registrations | none: every node may have every topic and channel | |
//! | tombstones | [`TOMBSTONES`] at a time | HTTP 503 |
//! | answers that a node does not read | 1024, then it is held | closed after [`Config::reply_timeout`] |
//! | HTTP connections | the storage's `HTTP` | not accepted |
//! | an HTTP request or answer | see [`http`] | |
//! | a node's texts | see [`v1::Node`](crate::wire::v1::Node) | cut off; an address is refused |
//!
//! A slot for a node more than there are nodes lets one come back whose old connection is not yet
//! found dead.

mod listing;
mod producer;
mod service;
mod table;
#[cfg(test)]
mod tests;

use core::net::SocketAddr;

use crate::http;
use crate::name::{ChannelName, TopicName};
use crate::session::Closed;
use crate::time::{Instant, Span};
use crate::wire::v1::{IdentifyReply, NodeInfo};

pub use producer::ProducerSession;
pub use service::HttpSession;

use listing::Task;
use producer::Producer;
use table::{Bits, Channel, Tables, Topic};

/// How many producers can be tombstoned at a time, each for a topic.
pub const TOMBSTONES: usize = 16;

/// The settings. Borrowed, so that a constant one costs no RAM.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// What it says of itself, in answer to IDENTIFY; the version also to `/info`. nsqds ask at its
    /// `http_port` which channels a new topic has elsewhere: without one they do not. Default
    /// nothing but the version 1.3.0, whose behaviour this is.
    pub info: IdentifyReply<'a>,
    /// `-inactive-producer-timeout`: how long after its last PING a node is listed. Default 300 s.
    pub inactive_timeout: Span,
    /// `-tombstone-lifetime`: how long a tombstone hides a node. Default 45 s.
    pub tombstone_lifetime: Span,
    /// How long a node's connection may be silent. nsqd sends PING every 15 s. Default 300 s.
    pub idle_timeout: Span,
    /// How long a node may take to IDENTIFY itself. Default 10 s.
    pub greeting_timeout: Span,
    /// How long a node may take to read answers. Default 5 s.
    pub reply_timeout: Span,
    /// How long closing may take. Default 1 s.
    pub close_timeout: Span,
    /// How long a topic or channel is kept that no node has any more, unless it was made over
    /// HTTP; zero is for ever, as nsqlookupd. Default one hour.
    pub empty_timeout: Span,
    /// The longest IDENTIFY, in bytes; nsqd's has about 150. Default 1024.
    pub max_body: u32,
    /// The times of HTTP connections.
    pub http: http::Config,
}

impl<'a> Config<'a> {
    /// The defaults.
    pub const fn new() -> Self {
        Self {
            info: IdentifyReply {
                broadcast_address: "",
                hostname: "",
                http_port: 0,
                tcp_port: 0,
                version: "1.3.0",
            },
            inactive_timeout: Span::from_secs(300),
            tombstone_lifetime: Span::from_secs(45),
            idle_timeout: Span::from_secs(300),
            greeting_timeout: Span::from_secs(10),
            reply_timeout: Span::from_secs(5),
            close_timeout: Span::from_secs(1),
            empty_timeout: Span::from_secs(3600),
            max_body: 1024,
            http: http::Config::new(),
        }
    }
}

impl Default for Config<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The tables of a directory: for so many connections of nodes, topics, channels of all topics,
/// and HTTP connections. `WORDS` is for more than 32 nodes: one for each 32, begun ones as well.
///
/// RAM: at most [`PRODUCER_RAM_MAX`] bytes a node, [`KEY_RAM_MAX`] + 4 `WORDS` a topic and a
/// channel, and [`HTTP_RAM_MAX`] an HTTP connection.
#[derive(Debug)]
pub struct Storage<
    const PRODUCERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const WORDS: usize = 1,
> {
    producers: [Producer; PRODUCERS],
    topics: [Topic; TOPICS],
    topic_bits: [[u32; WORDS]; TOPICS],
    channels: [Channel; CHANNELS],
    channel_bits: [[u32; WORDS]; CHANNELS],
    http: [http::Connection<Task>; HTTP],
}

/// The most bytes that a node takes of a [`Storage`].
pub const PRODUCER_RAM_MAX: usize = 848;

/// The most bytes that a topic or channel takes of a [`Storage`], beside its bits.
pub const KEY_RAM_MAX: usize = 88;

/// The most bytes that an HTTP connection takes of a [`Storage`].
pub const HTTP_RAM_MAX: usize = http::BUFFER + 168;

/// The most bytes that a [`Directory`] takes beside its storage.
pub const RAM_MAX: usize = 440;

// On every target that this is compiled for.
const _: () = {
    assert!(size_of::<Producer>() <= PRODUCER_RAM_MAX);
    assert!(size_of::<Topic>() <= KEY_RAM_MAX && size_of::<Channel>() <= KEY_RAM_MAX);
    assert!(size_of::<http::Connection<Task>>() <= HTTP_RAM_MAX);
    assert!(size_of::<Directory<'_>>() <= RAM_MAX);
};

impl<
    const PRODUCERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const WORDS: usize,
> Storage<PRODUCERS, TOPICS, CHANNELS, HTTP, WORDS>
{
    const LIMITS: () = {
        assert!(PRODUCERS <= 32 * WORDS, "32 producers for each of WORDS");
        assert!(PRODUCERS <= 65_535 && TOPICS <= 65_535 && CHANNELS <= 65_535, "16-bit numbers");
    };

    /// Empty; [`Directory::new`] fills it.
    pub const fn new() -> Self {
        let () = Self::LIMITS;
        Self {
            producers: [const { Producer::FREE }; PRODUCERS],
            topics: [Topic::FREE; TOPICS],
            topic_bits: [[0; WORDS]; TOPICS],
            channels: [Channel::FREE; CHANNELS],
            channel_bits: [[0; WORDS]; CHANNELS],
            http: [const { http::Connection::new() }; HTTP],
        }
    }
}

impl<
    const PRODUCERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const WORDS: usize,
> Default for Storage<PRODUCERS, TOPICS, CHANNELS, HTTP, WORDS>
{
    fn default() -> Self {
        Self::new()
    }
}

/// A small nsqlookupd. See the [module](self).
///
/// RAM: at most [`RAM_MAX`] bytes beside storage and the borrowed configuration.
#[derive(Debug)]
pub struct Directory<'a> {
    producers: &'a mut [Producer],
    http: &'a mut [http::Connection<Task>],
    shared: Shared<'a>,
}

/// What all connections share.
#[derive(Debug)]
struct Shared<'a> {
    config: &'a Config<'a>,
    tables: Tables<'a>,
    tally: Counters,
    /// What to add to the time for nanoseconds since 1970.
    unix_offset: i64,
}

/// What the owner should know. Newer ones of a node replace older ones that nobody polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Event {
    /// A node said who it is: [`Directory::producer`] has it.
    Identified {
        /// Its connection.
        index: usize,
    },
    /// A node is listed no longer.
    Left {
        /// Its connection.
        index: usize,
        /// How that ended. [`Closed::Local`]: another connection replaced it.
        why: Closed,
    },
}

/// What happened so far. Each stays at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub struct Counters {
    /// Nodes that said who they are.
    pub identified: u32,
    /// Of them, those that came back before their old connection was found dead.
    pub replaced: u32,
    /// Connections of nodes closed for what they sent.
    pub refused: u32,
    /// Connections of nodes closed since they were silent, or did not read.
    pub timed_out: u32,
    /// REGISTERs and HTTP requests refused since there was no room.
    pub full: u32,
    /// Topics and channels forgotten after a while without producers.
    pub collected: u32,
    /// HTTP requests answered, refusals not included.
    pub requests: u32,
    /// HTTP requests refused.
    pub requests_refused: u32,
    /// HTTP requests whose client did not take the answer.
    pub requests_lost: u32,
}

/// A node that is listed, or was until its PINGs stopped.
#[derive(Debug, Clone, Copy)]
pub struct ProducerStatus<'s> {
    /// What it said of itself.
    pub node: NodeInfo<'s>,
    /// Where its connection comes from.
    pub remote: SocketAddr,
    /// When it last sent IDENTIFY or PING.
    pub last_update: Instant,
}

impl<'a> Directory<'a> {
    /// An empty one, with all that `storage` has room for.
    pub fn new<
        const PRODUCERS: usize,
        const TOPICS: usize,
        const CHANNELS: usize,
        const HTTP: usize,
        const WORDS: usize,
    >(
        config: &'a Config<'a>,
        storage: &'a mut Storage<PRODUCERS, TOPICS, CHANNELS, HTTP, WORDS>,
    ) -> Self {
        let Storage { producers, topics, topic_bits, channels, channel_bits, http } = storage;
        producers.fill_with(|| Producer::FREE);
        http.fill_with(http::Connection::new);
        let topic_bits = Bits::new(topic_bits.as_flattened_mut(), WORDS);
        let channel_bits = Bits::new(channel_bits.as_flattened_mut(), WORDS);
        let tables = Tables::new(topics, channels, topic_bits, channel_bits);
        let shared = Shared { config, tables, tally: Counters::default(), unix_offset: 0 };
        Self { producers, http, shared }
    }

    /// How many connections of nodes there are, used or not.
    pub fn clients(&self) -> usize {
        self.producers.len()
    }

    /// The session of a node's connection `index`, below [`clients`](Self::clients): for TCP port
    /// 4160.
    pub fn client(&mut self, index: usize) -> Option<ProducerSession<'_, 'a>> {
        if index >= self.producers.len() {
            return None;
        }
        Some(ProducerSession { producers: self.producers, shared: &mut self.shared, id: index })
    }

    /// How many HTTP connections there are, used or not.
    pub fn http_clients(&self) -> usize {
        self.http.len()
    }

    /// The session of HTTP connection `index`, below [`http_clients`](Self::http_clients): for TCP
    /// port 4161.
    pub fn http(&mut self, index: usize) -> Option<HttpSession<'_, 'a>> {
        let connection = self.http.get_mut(index)?;
        Some(HttpSession { connection, producers: self.producers, shared: &mut self.shared })
    }

    /// The node on connection `index`, if there is one.
    pub fn producer(&self, index: usize) -> Option<ProducerStatus<'_>> {
        let producer = self.producers.get(index)?;
        let (node, _) = producer.node()?;
        Some(ProducerStatus {
            node: node.info(),
            remote: producer.remote(),
            last_update: producer.last_update,
        })
    }

    /// The topics, in no order, each with how many nodes have it.
    pub fn topics(&self) -> impl Iterator<Item = (&TopicName, usize)> {
        let tables = &self.shared.tables;
        tables.topics(0).map(|(at, name)| (name, tables.producers_of(at)))
    }

    /// The channels, in no order, each with its topic.
    pub fn channels(&self) -> impl Iterator<Item = (&TopicName, &ChannelName)> {
        self.shared.tables.channels(0).map(|(_, topic, channel)| (topic, channel))
    }

    /// Whether the node on connection `index` registered a topic.
    pub fn has_topic(&self, index: usize, topic: &TopicName) -> bool {
        let tables = &self.shared.tables;
        tables.topic(topic).is_some_and(|topic| tables.has_topic(topic, index))
    }

    /// Whether the node on connection `index` registered a channel.
    pub fn has_channel(&self, index: usize, topic: &TopicName, channel: &ChannelName) -> bool {
        let tables = &self.shared.tables;
        let channel = tables.topic(topic).and_then(|topic| tables.channel(topic, channel));
        channel.is_some_and(|channel| tables.has_channel(channel, index))
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        Counters { collected: self.shared.tables.collected, ..self.shared.tally }
    }

    /// The next thing to tell; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        let mut producers = self.producers.iter_mut().enumerate();
        producers.find_map(|(index, producer)| producer.poll_event(index))
    }

    /// Changes when a node comes or goes, or what is registered does: whether it is worth asking
    /// again. Wake the driver of every session then: one that replaced another closes that.
    pub fn version(&self) -> u32 {
        self.shared.tables.version()
    }

    /// It is so many nanoseconds since 1970. Without that `/debug` counts from the platform's
    /// start; nothing else depends on it.
    pub fn set_unix_time(&mut self, now: Instant, nanos: i64) {
        self.shared.unix_offset = nanos.saturating_sub(nanos_of(now));
    }
}

impl Shared<'_> {
    /// Nanoseconds since 1970.
    fn unix_time(&self, at: Instant) -> i64 {
        nanos_of(at).saturating_add(self.unix_offset)
    }
}

fn nanos_of(at: Instant) -> i64 {
    i64::try_from(at.as_micros()).unwrap_or(i64::MAX).saturating_mul(1000)
}
