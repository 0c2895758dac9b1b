//! A small nsqlookupd: a directory of nsqds and of their topics and channels.
//!
//! nsqds register on connections with protocol V1 ([`ProducerSession`]); consumers, nsqadmin and
//! curl query over HTTP ([`HttpSession`]). The semantics are those of nsqlookupd 1.3.0
//! (`nsqlookupd/lookup_protocol_v1.go`, `registration_db.go`, `http.go`), without its crashes and
//! leaks:
//!
//! | nsqlookupd | here |
//! |---|---|
//! | a negative length in IDENTIFY ends the process, a large one is allocated | refused: [`Config::max_body`] |
//! | lines of any length | refused above [`nsqlookupd::LINE_BUFFER`](crate::wire::nsqlookupd::LINE_BUFFER) bytes |
//! | a silent connection stays open for ever | closed after [`Config::idle_timeout`], before IDENTIFY after [`Config::greeting_timeout`] |
//! | connections that announce one address are listed as many times | listed once, see [below](#one-address-several-connections) |
//! | after an nsqd reconnects, the registrations of its dead connection stay | the new connection replaces one that has been silent for more than [`Config::replace_timeout`] |
//! | topics and channels without producers stay for ever | removed after [`Config::empty_timeout`], unless they were created over HTTP; given back when others need the room |
//! | `topic=*` stands for all topics, also in `/topic/delete` | names no topic |
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
//! The registrations of a connection end with it; the topics and channels themselves stay, as in
//! nsqlookupd. An nsqd that has sent no PING for [`Config::inactive_timeout`] is not listed. A
//! tombstone hides an nsqd in one topic for [`Config::tombstone_lifetime`], or until the nsqd
//! unregisters and registers that topic.
//!
//! # One address, several connections
//!
//! Several connections may announce one address, which is `broadcast_address` and `tcp_port`,
//! compared byte by byte: publishers that register the nsqd that they publish to, nsqds behind one
//! NAT address, an nsqd that knows an nsqlookupd by two names. As in nsqlookupd, each connection
//! keeps its registrations until it unregisters them or ends, and does not change those of the
//! others. Lists contain the union, with one entry for the address. The entry shows the hostname,
//! HTTP port, version and `remote_address` of the listed connection that sent something last.
//!
//! - `/lookup`: a connection without PING, or tombstoned for the topic, does not hide another.
//! - `/nodes`: the topics of all that send PING; tombstoned where `/lookup` leaves the address out.
//! - `/topic/tombstone`: all connections whose own `broadcast_address` and HTTP port are `node`.
//! - IDENTIFY or PING on a connection ends the older connections of its address that have been
//!   silent for more than [`Config::replace_timeout`]: the nsqd has reconnected.
//!
//! Answers over HTTP are written while the client reads them and the tables may change. A list may
//! miss entries that are added meanwhile, and may contain an address twice if one of its
//! connections ends meanwhile. But it is well-formed, and in `/nodes` the lists `tombstones` and
//! `topics` of an nsqd always have the same length (nsqadmin crashes otherwise).
//!
//! # Bounds
//!
//! | what | bound | when full |
//! |---|---|---|
//! | connections of nsqds | the storage's `PRODUCERS`; if a caller is rejected, one that has been silent for [`Config::replace_timeout`] is closed | not accepted |
//! | topics, channels | the storage's `TOPICS`, `CHANNELS`; those that no connected nsqd has registered are given back, least recently used first, [`Counters::given_back`] | REGISTER answers `E_REGISTER_FAILED`, HTTP 503; nothing changes; [`Counters::full`], [`Event::TableFull`] |
//! | topics, channels of a connection that creates another one | [`Config::topics_per_node`], [`Config::channels_per_node`] | as above |
//! | registrations | none: every nsqd may register every existing topic and channel | |
//! | tombstones | [`TOMBSTONES`] at a time | HTTP 503 |
//! | answers that an nsqd does not read | 1024, then its commands are held back | closed after [`Config::reply_timeout`] |
//! | HTTP connections | the storage's `HTTP` | not accepted |
//! | an HTTP request or answer | see [`http`] | |
//! | an nsqd's texts | see [`nsqlookupd::OwnedNodeInfo`](crate::wire::nsqlookupd::OwnedNodeInfo) | cut off; an address is refused |
//!
//! A topic or channel is used by a registration until that ends, and by its creation over HTTP; a
//! topic also by `/lookup` and `/channels`. A topic or channel that a connected nsqd has registered
//! is never given back.
//!
//! An nsqd whose connection broke without a close takes a second slot until the old connection is
//! found dead: after [`Config::idle_timeout`], or once that connection has been silent for
//! [`Config::replace_timeout`] and the nsqd sends PING. If all slots are taken, the connection that
//! has been silent for longest is closed once that time is [`Config::replace_timeout`].

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
use crate::wire::first;

pub use crate::wire::nsqlookupd::{IdentifyReply, NodeInfo};
pub use config::Config;
pub use producer::ProducerSession;
pub use service::HttpSession;
pub use status::{Counters, Event, ProducerStatus, TableFull};

use listing::{Step, Task};
use producer::{Producer, twins};
use table::{Bits, Channel, Tables, Topic};

/// The maximum number of tombstones at a time, each for one producer and one topic.
pub const TOMBSTONES: usize = 16;

/// The tables of an nsqlookupd, for `PRODUCERS` connections of nsqds, `TOPICS` topics, `CHANNELS`
/// channels of all topics together, and `HTTP` connections over HTTP. `WORDS` is `PRODUCERS` / 32,
/// rounded up.
///
/// RAM: at most 848 bytes for each nsqd, 88 + 4 `WORDS` for each topic and channel, and 1,192 for
/// each HTTP connection.
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

/// The maximum number of bytes of an nsqd in a [`Storage`].
const PRODUCER_RAM_MAX: usize = 848;

/// The maximum number of bytes of a topic or channel in a [`Storage`], without its bits.
const KEY_RAM_MAX: usize = 88;

/// The maximum number of bytes of an HTTP connection in a [`Storage`].
const HTTP_RAM_MAX: usize = 1192;

/// The maximum size of a [`Nsqlookupd`] in bytes, without its storage.
const RAM_MAX: usize = 456;

// Checked on every target for which this is compiled.
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

    /// Returns empty tables for [`Nsqlookupd::new`]. All bytes are zero: a static of it needs no
    /// image in flash.
    pub const fn new() -> Self {
        let () = Self::LIMITS;
        Self {
            producers: [const { Producer::ZERO }; PRODUCERS],
            topics: [Topic::FREE; TOPICS],
            topic_bits: [[0; WORDS]; TOPICS],
            channels: [Channel::FREE; CHANNELS],
            channel_bits: [[0; WORDS]; CHANNELS],
            http: [const { http::Connection::zero(Task::new(Step::Nothing)) }; HTTP],
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
/// RAM: at most 456 bytes, besides the storage and the configuration.
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
    /// The Unix time in nanoseconds at [`Instant::ZERO`].
    unix_offset: i64,
    /// The bits of the tables that were full and whose event was not polled yet.
    full_pending: u8,
    /// A caller was rejected because all connections of nsqds were taken.
    wants_room: bool,
}

impl<'a> Nsqlookupd<'a> {
    /// Makes an nsqlookupd without topics and channels.
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
        let producers = first(producers, config.max_nodes);
        let (topics, channels) =
            (first(topics, config.max_topics), first(channels, config.max_channels));
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

    /// Returns the number of connections of nsqds that there may be at a time.
    pub fn clients(&self) -> usize {
        self.producers.len()
    }

    /// Returns the session of an nsqd's connection `index`, below [`clients`](Self::clients): for
    /// TCP port 4160.
    pub fn client(&mut self, index: usize) -> Option<ProducerSession<'_, 'a>> {
        if index >= self.producers.len() {
            return None;
        }
        Some(ProducerSession { producers: self.producers, shared: &mut self.shared, id: index })
    }

    /// Returns the number of HTTP connections, used or not.
    pub fn http_clients(&self) -> usize {
        self.http.len()
    }

    /// Returns the session of HTTP connection `index`, below [`http_clients`](Self::http_clients):
    /// for TCP port 4161.
    pub fn http(&mut self, index: usize) -> Option<HttpSession<'_, 'a>> {
        let connection = self.http.get_mut(index)?;
        Some(HttpSession { connection, producers: self.producers, shared: &mut self.shared })
    }

    /// Returns the status of the nsqd on connection `index`, if it has sent IDENTIFY.
    pub fn producer(&self, index: usize) -> Option<ProducerStatus<'_>> {
        let producer = self.producers.get(index)?;
        let (node, _) = producer.node()?;
        Some(ProducerStatus {
            node: node.info(),
            remote: producer.remote(),
            last_update: producer.last_update,
        })
    }

    /// Returns the topics, in no particular order, each with the number of nsqds that have
    /// registered it. Addresses are counted, not connections.
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

    /// Returns the channels, in no particular order, each with its topic.
    pub fn channels(&self) -> impl Iterator<Item = (&TopicName, &ChannelName)> {
        self.shared.tables.channels(0).map(|(_, topic, channel)| (topic, channel))
    }

    /// Returns whether the nsqd on connection `index` has registered a topic.
    pub fn has_topic(&self, index: usize, topic: &TopicName) -> bool {
        let tables = &self.shared.tables;
        tables.topic(topic).is_some_and(|topic| tables.has_topic(topic, index))
    }

    /// Returns whether the nsqd on connection `index` has registered a channel.
    pub fn has_channel(&self, index: usize, topic: &TopicName, channel: &ChannelName) -> bool {
        let tables = &self.shared.tables;
        let channel = tables.topic(topic).and_then(|topic| tables.channel(topic, channel));
        channel.is_some_and(|channel| tables.has_channel(channel, index))
    }

    /// Returns the counters.
    pub fn counters(&self) -> Counters {
        let Tables { collected, given_back, .. } = self.shared.tables;
        Counters { collected, given_back, ..self.shared.counters }
    }

    /// Returns the next event; call this until `None`.
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

    /// Records that a caller was rejected because all connections of nsqds were taken. The
    /// connection that has been silent for longest is closed once that time is
    /// [`Config::replace_timeout`]: wake the driver of every session.
    pub fn turned_away(&mut self) {
        self.shared.wants_room = true;
        self.shared.tables.changed();
    }

    /// Returns a number that changes when an nsqd identifies itself or leaves, or when
    /// registrations change. Wake the driver of every session after a change: a session may have to
    /// close.
    pub fn version(&self) -> u32 {
        self.shared.tables.version()
    }

    /// Returns whether other sessions may have created work for connection `index`: an earlier
    /// deadline, or its close. For a driver, after [`version`](Self::version) changed.
    #[cfg(feature = "async")]
    pub(crate) fn has_work_for(&self, index: usize) -> bool {
        self.shared.wants_room || self.producers.get(index).is_some_and(Producer::is_closing)
    }

    /// Sets the clock: `nanos` is the Unix time in nanoseconds at `now`. Only `/debug` uses it;
    /// without it, times there count from the platform's start.
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

    /// Returns the time at which a connection that last sent something at `last_received` has been
    /// silent for too long.
    fn silence_deadline(&self, last_received: Instant) -> Instant {
        let idle = last_received.after(self.config.idle_timeout);
        if self.wants_room {
            idle.min(last_received.after(self.config.replace_timeout))
        } else {
            idle
        }
    }

    /// Returns the Unix time in nanoseconds.
    fn unix_time(&self, at: Instant) -> i64 {
        nanos_of(at).saturating_add(self.unix_offset)
    }
}

fn nanos_of(at: Instant) -> i64 {
    i64::try_from(at.as_micros()).unwrap_or(i64::MAX).saturating_mul(1000)
}
