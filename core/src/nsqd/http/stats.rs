//! `/stats`: topics and their channels in the order of their names, and clients.
//!
//! Each step looks up the next name in the tables, so topics and channels may come and go while the
//! answer is written.

use core::convert::Infallible;

use super::service::start_time;
use super::{Client, Shared, text};
use crate::http::emit::{emit_i64, emit_ip, emit_remote, emit_text, emit_u64};
use crate::http::{Content, Piece, Refusal, Request};
use crate::name::{ChannelName, TopicName};
use crate::nsqd::Index;
use crate::nsqd::status::ClientStatus;
use crate::nsqd::table::{Channel, NONE, Topic};
use crate::time::Instant;
use crate::wire::Write;

/// The state of an answer that is being written.
#[derive(Debug)]
pub(super) struct Stats {
    step: Step,
    shape: Shape,
    /// The topic being written or last written; at first the requested topic.
    topic: TopicName,
    /// The channel being written or last written; at first the requested channel.
    channel: ChannelName,
    /// The numbers of topics written so far, of this topic's channels, and of this list's clients.
    topics: Index,
    channels: Index,
    clients: Index,
    /// The index of the client being written, or the first index to try next.
    client: Index,
    /// The remote port of the client being written; 0 if unknown.
    port: u16,
}

/// The parameters of the request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    json: bool,
    only_topic: bool,
    only_channel: bool,
    with_clients: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begin,
    Topic,
    Channel,
    Client,
    ClientEnd,
    Producers,
    Producer,
    ProducerEnd,
    Done,
}

/// The constant end of a client's object.
const NO_TLS: &[u8] = b",\"tls\":false,\"tls_cipher_suite\":\"\",\"tls_version\":\"\",\
    \"tls_negotiated_protocol\":\"\",\"tls_negotiated_protocol_is_mutual\":false}";

/// The constant end of a topic's or channel's object. nsqadmin crashes without it.
const NO_LATENCY: &[u8] = b",\"e2e_processing_latency\":{\"count\":0,\"percentiles\":null}}";

impl Stats {
    pub(super) fn new(request: &Request<'_>) -> Result<Self, Refusal> {
        request.check_query().map_err(|_| Refusal::bad_request("INVALID_REQUEST"))?;
        // As in nsqd, an empty value counts as absent. An invalid name matches nothing.
        let given = |name| request.param(name).filter(|value| !value.bytes().is_empty());
        let topic = given("topic").map(|name| name.topic().unwrap_or(TopicName::NONE));
        let channel = given("channel").map(|name| name.channel().unwrap_or(ChannelName::NONE));
        let shape = Shape {
            json: request.param("format").is_some_and(|format| format.is("json")),
            only_topic: topic.is_some(),
            only_channel: channel.is_some(),
            with_clients: request
                .param("include_clients")
                .is_none_or(|value| !value.is("false") && !value.is("0")),
        };
        Ok(Self {
            step: Step::Begin,
            shape,
            topic: topic.unwrap_or(TopicName::NONE),
            channel: channel.unwrap_or(ChannelName::NONE),
            topics: 0,
            channels: 0,
            clients: 0,
            client: 0,
            port: 0,
        })
    }

    pub(super) const fn content(&self) -> Content {
        if self.shape.json { Content::Json } else { Content::Text }
    }

    /// Writes as much as fits. Returns true once the answer is complete.
    pub(super) fn write(
        &mut self,
        now: Instant,
        clients: &[Client],
        shared: &Shared<'_>,
        piece: &mut Piece<'_>,
    ) -> bool {
        let view = View { now, clients, shared };
        while self.step != Step::Done {
            if !self.advance(&view, piece) {
                return false;
            }
        }
        true
    }

    /// Writes the next element. Returns false if the piece has no room for the element.
    fn advance(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        match self.step {
            Step::Begin => self.begin(view, piece),
            Step::Topic => self.next_topic(view, piece),
            Step::Channel => self.next_channel(view, piece),
            Step::Client => self.next_client(view, piece),
            Step::ClientEnd => self.end_of_client(view, piece, Step::Client),
            Step::Producers => self.producers(view, piece),
            Step::Producer => self.next_producer(view, piece),
            Step::ProducerEnd => self.end_of_client(view, piece, Step::Producer),
            Step::Done => true,
        }
    }

    fn go(&mut self, fits: bool, step: Step) -> bool {
        if fits {
            self.step = step;
        }
        fits
    }

    fn begin(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let is_known = !self.shape.only_topic || view.topic(&self.topic).is_some();
        let shared = view.shared;
        let fits = if self.shape.json {
            piece.put(|w| {
                w.write_all(b"{\"version\":")?;
                emit_text(w, shared.config.version)?;
                w.write_all(b",\"health\":\"OK\",\"start_time\":")?;
                emit_i64(w, start_time(shared))?;
                w.write_all(if is_known {
                    b",\"topics\":["
                } else {
                    b",\"topics\":null,\"producers\":null}"
                })
            })
        } else {
            let any = is_known && self.following_topic(view).is_some();
            piece.put(|w| {
                text::emit_head(w, view.now, shared)?;
                w.write_all(if any { b"\nTopics:" } else { b"\nTopics: None\n" })?;
                w.write_all(if is_known { b"" } else { b"\nProducers: None\n" })
            })
        };
        self.go(fits, if is_known { Step::Topic } else { Step::Done })
    }

    /// Returns the next topic to write, by name.
    fn following_topic<'v>(&self, view: &View<'v, '_>) -> Option<(Index, &'v Topic)> {
        let is_wanted = |at: Index| {
            !self.shape.only_channel || view.shared.find_channel(at, &self.channel).is_some()
        };
        if self.shape.only_topic {
            let found = if self.topics == 0 { view.topic(&self.topic) } else { None };
            return found.filter(|(at, _)| is_wanted(*at));
        }
        let after = (self.topics > 0).then_some(self.topic.as_bytes());
        let topics = (0..NONE).zip(view.shared.topics.iter());
        topics
            .filter(|(at, topic)| topic.is_used() && is_wanted(*at))
            .filter(|(_, topic)| after.is_none_or(|after| topic.name.as_bytes() > after))
            .min_by_key(|(_, topic)| topic.name.as_bytes())
    }

    fn next_topic(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let Some((_, topic)) = self.following_topic(view) else {
            let fits = !self.shape.json || piece.put(|w| w.write_all(b"],\"producers\":"));
            return self.go(fits, Step::Producers);
        };
        let fits = piece.put(|w| {
            if !self.shape.json {
                return text::emit_topic(w, topic);
            }
            w.write_all(if self.topics == 0 { b"" } else { b"," })?;
            w.write_all(b"{\"topic_name\":")?;
            emit_text(w, topic.name.as_str())?;
            w.write_all(b",\"channels\":[")
        });
        if fits {
            self.topic = topic.name;
            self.topics = self.topics.saturating_add(1);
            self.channels = 0;
        }
        self.go(fits, Step::Channel)
    }

    /// Returns the topic's next channel to write, by name.
    fn following_channel<'v>(&self, view: &View<'v, '_>) -> Option<(Index, &'v Channel)> {
        let (topic, _) = view.topic(&self.topic)?;
        if self.shape.only_channel {
            let at = view.shared.find_channel(topic, &self.channel)?;
            return if self.channels == 0 { Some((at, view.shared.channel(at)?)) } else { None };
        }
        let after = (self.channels > 0).then_some(self.channel.as_bytes());
        let channels = (0..NONE).zip(view.shared.channels.iter());
        channels
            .filter(|(_, channel)| channel.is_used() && channel.topic == topic)
            .filter(|(_, channel)| after.is_none_or(|after| channel.name.as_bytes() > after))
            .min_by_key(|(_, channel)| channel.name.as_bytes())
    }

    fn next_channel(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let shape = self.shape;
        let Some((_, channel)) = self.following_channel(view) else {
            // A topic that was deleted meanwhile ends with zeros.
            let gone = Topic::NEW;
            let topic = view.topic(&self.topic).map_or(&gone, |(_, topic)| topic);
            let fits = !shape.json || piece.put(|w| emit_topic_end(w, topic));
            return self.go(fits, Step::Topic);
        };
        let fits = piece.put(|w| {
            if !shape.json {
                return text::emit_channel(w, channel);
            }
            w.write_all(if self.channels == 0 { b"" } else { b"," })?;
            emit_channel(w, channel)?;
            w.write_all(if shape.with_clients { b",\"clients\":[" } else { b",\"clients\":null" })
        });
        if fits {
            self.channel = channel.name;
            self.channels = self.channels.saturating_add(1);
            self.client = if shape.with_clients { 0 } else { NONE };
            self.clients = 0;
        }
        self.go(fits, Step::Client)
    }

    fn next_client(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let shape = self.shape;
        let is_here = |client: &ClientStatus<'_>| {
            client.topic == Some(&self.topic) && client.channel == Some(&self.channel)
        };
        if let Some((at, client)) = view.client(self.client, is_here) {
            return self.client(view, piece, at, &client, Step::Client, Step::ClientEnd);
        }
        let topic = view.topic(&self.topic).map(|(at, _)| at);
        let channel = topic.and_then(|topic| view.shared.find_channel(topic, &self.channel));
        let channel = channel.and_then(|at| view.shared.channel(at));
        let is_paused = channel.is_some_and(|channel| channel.paused);
        let fits = !shape.json
            || piece.put(|w| {
                w.write_all(if shape.with_clients { b"]" } else { b"" })?;
                emit_paused(w, is_paused)?;
                w.write_all(NO_LATENCY)
            });
        self.go(fits, Step::Channel)
    }

    fn producers(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        let any = self.shape.with_clients && view.client(0, is_producer).is_some();
        self.client = 0;
        self.clients = 0;
        let fits = piece.put(|w| {
            w.write_all(match (self.shape.json, any) {
                (true, true) => b"[",
                (true, false) => b"null}",
                (false, true) => b"\nProducers:\n",
                (false, false) => b"\nProducers: None\n",
            })
        });
        self.go(fits, if any { Step::Producer } else { Step::Done })
    }

    fn next_producer(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>) -> bool {
        if let Some((at, client)) = view.client(self.client, is_producer) {
            return self.client(view, piece, at, &client, Step::Producer, Step::ProducerEnd);
        }
        let fits = !self.shape.json || piece.put(|w| w.write_all(b"]}"));
        self.go(fits, Step::Done)
    }

    /// Writes a client: in text the whole line, in JSON the object up to `pub_counts`.
    fn client(
        &mut self,
        view: &View<'_, '_>,
        piece: &mut Piece<'_>,
        at: Index,
        client: &ClientStatus<'_>,
        text_next: Step,
        json_next: Step,
    ) -> bool {
        let is_json = self.shape.json;
        let topic = self.shape.only_topic.then_some(self.topic);
        let fits = piece.put(|w| {
            if !is_json {
                let is_producer = text_next == Step::Producer;
                let topics = published(client, topic.as_ref());
                return text::emit_client(w, view.unix(), client, is_producer, topics);
            }
            w.write_all(if self.clients == 0 { b"" } else { b"," })?;
            emit_client(w, client)
        });
        if fits {
            self.clients = self.clients.saturating_add(1);
            self.client = if is_json { at } else { at.saturating_add(1) };
            self.port = client.from.map_or(0, |from| from.port());
        }
        self.go(fits, if is_json { json_next } else { text_next })
    }

    fn end_of_client(&mut self, view: &View<'_, '_>, piece: &mut Piece<'_>, next: Step) -> bool {
        let topic = self.shape.only_topic.then_some(self.topic);
        // Another client may have taken the same slot meanwhile.
        let is_same = |client: &ClientStatus<'_>| {
            client.index == usize::from(self.client)
                && client.from.map_or(0, |from| from.port()) == self.port
        };
        let client = view.client(self.client, is_same).map(|(_, client)| client);
        let fits = piece.put(|w| {
            let mut before: &[u8] = b",\"pub_counts\":[";
            for (topic, count) in client.iter().flat_map(|client| published(client, topic.as_ref()))
            {
                w.write_all(before)?;
                w.write_all(b"{\"topic\":")?;
                emit_text(w, topic.as_str())?;
                w.write_all(b",\"count\":")?;
                emit_u64(w, count.into())?;
                w.write_all(b"}")?;
                before = b",";
            }
            w.write_all(if before == b"," { b"]" } else { b"" })?;
            w.write_all(NO_TLS)
        });
        if fits {
            self.client = self.client.saturating_add(1);
        }
        self.go(fits, next)
    }
}

/// The tables that `/stats` lists, and the time.
struct View<'v, 'a> {
    now: Instant,
    clients: &'v [Client],
    shared: &'v Shared<'a>,
}

impl<'v> View<'v, '_> {
    fn topic(&self, name: &TopicName) -> Option<(Index, &'v Topic)> {
        // A free slot has no name.
        let at = self.shared.find_topic(name).filter(|_| *name != TopicName::NONE)?;
        Some((at, self.shared.topic(at)?))
    }

    /// Returns the first connected client with an index of at least `from` that matches.
    fn client(
        &self,
        from: Index,
        is_match: impl Fn(&ClientStatus<'_>) -> bool,
    ) -> Option<(Index, ClientStatus<'v>)> {
        let clients = (0..NONE).zip(self.clients).skip(from.into());
        clients
            .filter_map(|(at, client)| Some((at, client.status(self.shared, at)?)))
            .find(|(_, client)| is_match(client))
    }

    /// Unix time in seconds.
    fn unix(&self) -> i64 {
        self.shared.unix(self.now).div_euclid(1_000_000_000)
    }
}

/// Returns whether the client published a message, to any topic.
fn is_producer(client: &ClientStatus<'_>) -> bool {
    client.published().next().is_some()
}

/// Returns the client's number of published messages per topic, of topic `only` if given.
fn published<'v>(
    client: &ClientStatus<'v>,
    only: Option<&TopicName>,
) -> impl Iterator<Item = (&'v TopicName, u32)> + use<'v> {
    let only = only.copied();
    client.published().filter(move |(topic, _)| only.is_none_or(|only| only == **topic))
}

fn emit_paused(w: &mut Piece<'_>, is_paused: bool) -> Result<(), Infallible> {
    w.write_all(if is_paused { b",\"paused\":true" } else { b",\"paused\":false" })
}

fn emit_numbers(w: &mut Piece<'_>, numbers: &[(&str, u64)]) -> Result<(), Infallible> {
    for (key, number) in numbers {
        w.write_all(key.as_bytes())?;
        emit_u64(w, *number)?;
    }
    Ok(())
}

/// Writes the rest of a topic after its channels.
fn emit_topic_end(w: &mut Piece<'_>, topic: &Topic) -> Result<(), Infallible> {
    emit_numbers(
        w,
        &[
            ("],\"depth\":", topic.held.len.into()),
            (",\"backend_depth\":", 0),
            (",\"message_count\":", topic.messages),
            (",\"message_bytes\":", topic.bytes),
        ],
    )?;
    emit_paused(w, topic.paused)?;
    w.write_all(NO_LATENCY)
}

/// Writes a channel up to its clients.
fn emit_channel(w: &mut Piece<'_>, channel: &Channel) -> Result<(), Infallible> {
    w.write_all(b"{\"channel_name\":")?;
    emit_text(w, channel.name.as_str())?;
    emit_numbers(
        w,
        &[
            (",\"depth\":", channel.depth().into()),
            (",\"backend_depth\":", 0),
            (",\"in_flight_count\":", channel.in_flight.into()),
            (",\"deferred_count\":", channel.deferred.len.into()),
            (",\"message_count\":", channel.messages),
            (",\"requeue_count\":", channel.requeues),
            (",\"timeout_count\":", channel.timeouts),
            (",\"client_count\":", channel.clients.into()),
        ],
    )
}

/// Writes a client's object up to `pub_counts`: 600 bytes at most.
fn emit_client(w: &mut Piece<'_>, client: &ClientStatus<'_>) -> Result<(), Infallible> {
    w.write_all(b"{\"client_id\":")?;
    emit_name(w, client, client.client_id)?;
    w.write_all(b",\"hostname\":")?;
    emit_name(w, client, client.hostname)?;
    w.write_all(b",\"version\":\"V2\",\"remote_address\":\"")?;
    if let Some(from) = client.from {
        emit_remote(w, from)?;
    }
    w.write_all(b"\"")?;
    emit_numbers(
        w,
        &[
            (",\"state\":", client.state.number().into()),
            (",\"ready_count\":", client.ready.into()),
            (",\"in_flight_count\":", client.in_flight.into()),
            (",\"message_count\":", client.messages),
            (",\"finish_count\":", client.finished),
            (",\"requeue_count\":", client.requeued),
        ],
    )?;
    w.write_all(b",\"connect_ts\":")?;
    emit_i64(w, client.since)?;
    emit_numbers(w, &[(",\"sample_rate\":", client.sample_rate.into())])?;
    w.write_all(b",\"deflate\":false,\"snappy\":false,\"user_agent\":")?;
    emit_text(w, client.user_agent)?;
    for (key, place) in [
        (",\"topology_zone\":", client.topology_zone),
        (",\"topology_region\":", client.topology_region),
    ] {
        if !place.is_empty() {
            w.write_all(key.as_bytes())?;
            emit_text(w, place)?;
        }
    }
    Ok(())
}

/// Writes a name from IDENTIFY, or the client's address before IDENTIFY.
fn emit_name(w: &mut Piece<'_>, client: &ClientStatus<'_>, name: &str) -> Result<(), Infallible> {
    match client.from {
        Some(from) if !client.identified => {
            w.write_all(b"\"")?;
            emit_ip(w, from.ip())?;
            w.write_all(b"\"")
        }
        Some(_) | None => emit_text(w, name),
    }
}
