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
//! | lines of any length | refused above [`nsqlookupd::LINE_BUFFER`](crate::wire::nsqlookupd::LINE_BUFFER) bytes |
//! | a silent connection stays for ever | closed after [`Config::idle_timeout`], before IDENTIFY after [`Config::greeting_timeout`] |
//! | connections that announce one address are listed as many times | listed once, see [below](#one-address-several-connections) |
//! | an nsqd that lost its connection comes back and its old registrations stay | the new connection replaces one that has been silent for more than [`Config::replace_timeout`] |
//! | topics and channels without producers stay for ever | forgotten after [`Config::empty_timeout`], unless they were made over HTTP; given back when others need the room |
//! | `topic=*` stands for all topics, also in `/topic/delete` | no topic |
//!
//! The life of an nsqd's connection:
//!
//! ```text
//!       accepted            IDENTIFY
//! Free ----------> Greeting ---------> Identified
//!   ^                 |                    |  refused, silent, does not read, or was silent
//!   |                 v                    v  for long and came back on another connection
//!   +------------- Closing <---------------+
//! ```
//!
//! Whatever happens to a connection, all that was registered on it ends with it; the topics and
//! channels themselves stay, as in nsqlookupd. An nsqd that sends no PING is not listed from
//! [`Config::inactive_timeout`] on. A tombstone hides an nsqd for one topic and
//! [`Config::tombstone_lifetime`], or until it unregisters and registers that topic.
//!
//! # One address, several connections
//!
//! Several connections may announce one address, which is `broadcast_address` and `tcp_port`,
//! compared byte by byte: publishers that register the nsqd that they publish to, nsqds behind one
//! NAT address, an nsqd that knows an nsqlookupd by two names. As in nsqlookupd each keeps what it
//! registered until it unregisters that or ends, and neither changes what the others have. Lists
//! are the union, with one entry for the address. Of the connections that would be listed it shows
//! the one heard last: its hostname, HTTP port, version and `remote_address`.
//!
//! - `/lookup`: one that sends no PING, or is tombstoned for the topic, does not hide another one.
//! - `/nodes`: the topics of all that send PING; tombstoned where `/lookup` leaves the address out.
//! - `/topic/tombstone`: all connections whose own `broadcast_address` and HTTP port are `node`.
//! - Whoever IDENTIFYs or sends PING ends the older connections of its address that have been
//!   silent for more than [`Config::replace_timeout`]: it is the nsqd, come back.
//!
//! Answers over HTTP are written as they are read, while the tables may change: a list may miss
//! what came meanwhile, and have an address twice of which a connection ended meanwhile, but is
//! well-formed, and the `tombstones` and `topics` of an nsqd in `/nodes` are always as many
//! (nsqadmin crashes otherwise).
//!
//! # Bounds
//!
//! | what | bound | when full |
//! |---|---|---|
//! | connections of nsqds | the storage's `PRODUCERS`; one that was silent for [`Config::replace_timeout`] goes when a caller finds no room | not accepted |
//! | topics, channels | the storage's `TOPICS`, `CHANNELS`; those that no connected nsqd registers are given back, least recently used first, [`Counters::given_back`] | REGISTER answers `E_REGISTER_FAILED`, HTTP 503; nothing changed; [`Counters::full`], [`Event::TableFull`] |
//! | topics, channels that one connection has when it makes another one | [`Config::topics_per_node`], [`Config::channels_per_node`] | as above |
//! | registrations | none: every nsqd may have every topic and channel that is there | |
//! | tombstones | [`TOMBSTONES`] at a time | HTTP 503 |
//! | answers that an nsqd does not read | 1024, then it is held | closed after [`Config::reply_timeout`] |
//! | HTTP connections | the storage's `HTTP` | not accepted |
//! | an HTTP request or answer | see [`http`] | |
//! | an nsqd's texts | see [`nsqlookupd::OwnedNodeInfo`](crate::wire::nsqlookupd::OwnedNodeInfo) | cut off; an address is refused |
//!
//! Used is what an nsqd registers or registered last, what is made again over HTTP, and the topic
//! that `/lookup` or `/channels` is asked for. What a connected nsqd registers is never given back.
//!
//! An nsqd that lost its connection without a word takes a second slot until the old connection is
//! found dead: after [`Config::idle_timeout`], or once it has been silent for
//! [`Config::replace_timeout`] and the nsqd sends PING. If all slots are taken, the one that has
//! been silent for longest makes room as soon as that is [`Config::replace_timeout`].

mod config;
mod listing;
mod producer;
mod service;
mod status;
mod table;
#[cfg(test)]
mod tests;

use crate::http;
use crate::name::{ChannelName, TopicName};
use crate::time::Instant;

pub use crate::wire::nsqlookupd::{IdentifyReply, NodeInfo};
pub use config::Config;
pub use producer::ProducerSession;
pub use service::HttpSession;
pub use status::{Counters, Event, ProducerStatus, TableFull};

use listing::{Step, Task};
use producer::{Producer, twins};
use table::{Bits, Channel, Tables, Topic};

/// How many producers can be tombstoned at a time, each for a topic.
pub const TOMBSTONES: usize = 16;

/// The tables of an nsqlookupd: for so many connections of nsqds, topics, channels of all topics,
/// and HTTP connections. `WORDS` is for more than 32 nsqds: one for each 32, begun ones as well.
///
/// RAM: at most 848 bytes an nsqd, 88 + 4 `WORDS` a topic and a channel, and 1,192 an HTTP
/// connection.
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

/// The most bytes that an nsqd takes of a [`Storage`].
const PRODUCER_RAM_MAX: usize = 848;

/// The most bytes that a topic or channel takes of a [`Storage`], beside its bits.
const KEY_RAM_MAX: usize = 88;

/// The most bytes that an HTTP connection takes of a [`Storage`].
const HTTP_RAM_MAX: usize = 1192;

/// The most bytes that a [`Nsqlookupd`] takes beside its storage.
const RAM_MAX: usize = 448;

// On every target that this is compiled for.
const _: () = {
    assert!(size_of::<Producer>() <= PRODUCER_RAM_MAX);
    assert!(size_of::<Topic>() <= KEY_RAM_MAX && size_of::<Channel>() <= KEY_RAM_MAX);
    assert!(size_of::<http::Connection<Task>>() <= HTTP_RAM_MAX);
    assert!(size_of::<Nsqlookupd<'_>>() <= RAM_MAX);
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

    /// Empty; [`Nsqlookupd::new`] fills it.
    pub const fn new() -> Self {
        let () = Self::LIMITS;
        Self {
            producers: [const { Producer::FREE }; PRODUCERS],
            topics: [Topic::FREE; TOPICS],
            topic_bits: [[0; WORDS]; TOPICS],
            channels: [Channel::FREE; CHANNELS],
            channel_bits: [[0; WORDS]; CHANNELS],
            http: [const { http::Connection::zero(Task::new(Step::Ping)) }; HTTP],
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
/// RAM: at most 448 bytes beside storage and the borrowed configuration.
#[derive(Debug)]
pub struct Nsqlookupd<'a> {
    producers: &'a mut [Producer],
    http: &'a mut [http::Connection<Task>],
    shared: Shared<'a>,
}

/// The state that all connections share.
#[derive(Debug)]
struct Shared<'a> {
    config: &'a Config<'a>,
    tables: Tables<'a>,
    counters: Counters,
    /// What to add to the time for nanoseconds since 1970.
    unix_offset: i64,
    /// The tables that were full, a bit each, as long as nobody polled that.
    full_pending: u8,
    /// A caller found no room among the connections of nsqds.
    wants_room: bool,
}

impl<'a> Nsqlookupd<'a> {
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
        http.iter_mut().for_each(http::Connection::init);
        let topic_bits = Bits::new(topic_bits.as_flattened_mut(), WORDS);
        let channel_bits = Bits::new(channel_bits.as_flattened_mut(), WORDS);
        let tables = Tables::new(topics, channels, topic_bits, channel_bits);
        let counters = Counters::default();
        let shared =
            Shared { config, tables, counters, unix_offset: 0, full_pending: 0, wants_room: false };
        Self { producers, http, shared }
    }

    /// How many connections of nsqds there are, used or not.
    pub fn clients(&self) -> usize {
        self.producers.len()
    }

    /// The session of an nsqd's connection `index`, below [`clients`](Self::clients): for TCP port
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

    /// The nsqd on connection `index`, if there is one.
    pub fn producer(&self, index: usize) -> Option<ProducerStatus<'_>> {
        let producer = self.producers.get(index)?;
        let (node, _) = producer.node()?;
        Some(ProducerStatus {
            node: node.info(),
            remote: producer.remote(),
            last_update: producer.last_update,
        })
    }

    /// The topics, in no order, each with how many nsqds have it: addresses, not connections.
    pub fn topics(&self) -> impl Iterator<Item = (&TopicName, usize)> {
        let (tables, producers) = (&self.shared.tables, &*self.producers);
        tables.topics(0).map(move |(topic, name)| {
            let has = move |id: &usize| tables.has_topic(topic, *id);
            let is_first =
                |id: &usize| twins(producers, *id).all(|(other, _)| other >= *id || !has(&other));
            let nodes = (0..producers.len()).filter(has).filter(is_first);
            (name, nodes.fold(0usize, |count, _| count.saturating_add(1)))
        })
    }

    /// The channels, in no order, each with its topic.
    pub fn channels(&self) -> impl Iterator<Item = (&TopicName, &ChannelName)> {
        self.shared.tables.channels(0).map(|(_, topic, channel)| (topic, channel))
    }

    /// Whether the nsqd on connection `index` registered a topic.
    pub fn has_topic(&self, index: usize, topic: &TopicName) -> bool {
        let tables = &self.shared.tables;
        tables.topic(topic).is_some_and(|topic| tables.has_topic(topic, index))
    }

    /// Whether the nsqd on connection `index` registered a channel.
    pub fn has_channel(&self, index: usize, topic: &TopicName, channel: &ChannelName) -> bool {
        let tables = &self.shared.tables;
        let channel = tables.topic(topic).and_then(|topic| tables.channel(topic, channel));
        channel.is_some_and(|channel| tables.has_channel(channel, index))
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        let Tables { collected, given_back, .. } = self.shared.tables;
        Counters { collected, given_back, ..self.shared.counters }
    }

    /// The next event; call until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        let mut producers = self.producers.iter_mut().enumerate();
        let event = producers.find_map(|(index, producer)| producer.poll_event(index));
        event.or_else(|| {
            let full_pending = &mut self.shared.full_pending;
            let full = TableFull::ALL.into_iter().find(|full| *full_pending & full.bit() != 0)?;
            *full_pending &= !full.bit();
            Some(Event::TableFull(full))
        })
    }

    /// A caller found all connections of nsqds taken. The one that has been silent for longest
    /// makes room as soon as that is [`Config::replace_timeout`]: wake the driver of every session.
    pub fn turned_away(&mut self) {
        self.shared.wants_room = true;
        self.shared.tables.changed();
    }

    /// Changes when an nsqd comes or goes, or what is registered does: whether it is worth asking
    /// again. Wake the driver of every session then: one that replaced another closes that.
    pub fn version(&self) -> u32 {
        self.shared.tables.version()
    }

    /// Whether others may have given an nsqd's connection something to do: an earlier deadline, or
    /// its end. A driver asks when [`version`](Self::version) changed.
    #[cfg(feature = "async")]
    pub(crate) fn has_work_for(&self, index: usize) -> bool {
        self.shared.wants_room || self.producers.get(index).is_some_and(Producer::is_closing)
    }

    /// It is so many nanoseconds since 1970. Without that `/debug` counts from the platform's
    /// start; nothing else depends on it.
    pub fn set_unix_time(&mut self, now: Instant, nanos: i64) {
        self.shared.unix_offset = nanos.saturating_sub(nanos_of(now));
    }
}

impl Shared<'_> {
    /// Counts a rejection because a table is full.
    fn reject_full(&mut self, full: TableFull) {
        self.counters.full = self.counters.full.saturating_add(1);
        if self.full_pending & full.bit() == 0 {
            self.full_pending |= full.bit();
            self.tables.changed();
        }
    }

    /// The time at which a connection that was last heard at `last_received` has been silent for
    /// too long.
    fn silence_deadline(&self, last_received: Instant) -> Instant {
        let idle = last_received.after(self.config.idle_timeout);
        if self.wants_room {
            idle.min(last_received.after(self.config.replace_timeout))
        } else {
            idle
        }
    }

    /// Nanoseconds since 1970.
    fn unix_time(&self, at: Instant) -> i64 {
        nanos_of(at).saturating_add(self.unix_offset)
    }
}

fn nanos_of(at: Instant) -> i64 {
    i64::try_from(at.as_micros()).unwrap_or(i64::MAX).saturating_mul(1000)
}
