//! A node with clients that send anything, over V2 and over HTTP, and its application; and a node
//! compared with a model without bounds.

use std::collections::BTreeSet;

use nanonsq_core::address::Address;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{
    ClientState, Config, Event, Full, HttpConfig, HttpStorage, Nsqd, PublishOptions, Storage,
};
use nanonsq_core::session::Session;
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqd::{ErrorCode, FrameDecoder, FrameType, Message};

use crate::feature;
use crate::input::{Input, pieces};
use crate::serving::{self, Answers, converse, play};
use crate::session::Machine;

#[path = "../../../core/tests/support/nsqd_world/mod.rs"]
mod world;

use world::{Dice, live};

const TOPICS: usize = 2;
const CHANNELS: usize = 3;
const CLIENTS: usize = 3;
const IN_FLIGHT: usize = 3;
const HTTP: usize = 1;
const BLOCKS: usize = 30;

const FROM_CLIENTS: &[&[u8]] = &[
    b"  V2",
    b"  V2SUB t c\nRDY 3\n",
    b"  V2SUB t d\nRDY 1\n",
    b"SUB u e#ephemeral\nRDY 2\n",
    b"IDENTIFY\n\0\0\0\x1c{\"feature_negotiation\":true}",
    b"IDENTIFY\n\0\0\0\x23{\"heartbeat_interval\":-1,\"a\":[{}]} ",
    b"IDENTIFY\n\0\0\0\x35{\"heartbeat_interval\":1000,\"client_id\":\"x\",\"a\":null} ",
    b"RDY 0\n",
    b"RDY 3\n",
    b"FIN 0000000000000000\n",
    b"FIN 0000000000000001\n",
    b"FIN 0000000000000002\n",
    b"REQ 0000000000000001 0\n",
    b"REQ 0000000000000002 5000\n",
    b"TOUCH 0000000000000001\n",
    b"CLS\n",
    b"NOP\n",
    b"PUB t\n\0\0\0\x02hi",
    b"PUB u#ephemeral\n\0\0\x01\x40",
    b"DPUB t 100\n\0\0\0\x02hi",
    b"MPUB t\n\0\0\0\x10\0\0\0\x02\0\0\0\x02hi\0\0\0\x02ho",
    b"MPUB t\n\0\0\x10\0\0\0\0\x09\0\0\x01\0",
    b"AUTH\n\0\0\0\x02hi",
    b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n",
];

const FROM_HTTP: &[&[u8]] = &[
    b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /stats?format=json HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /stats HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /stats?format=json&topic=t&channel=c&include_clients=false HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /info HTTP/1.0\r\n\r\n",
    b"POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /pub?topic=u&defer=100 HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n",
    b"POST /mpub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\none\n\ntwo\n",
    b"POST /mpub?topic=t&binary=true HTTP/1.1\r\nHost: x\r\nContent-Length: 16\r\n\r\n\
      \0\0\0\x02\0\0\0\x02hi\0\0\0\x02ho",
    b"POST /mpub?topic=w HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n",
    b"POST /topic/create?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /topic/delete?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /topic/pause?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /topic/unpause?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /topic/empty?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /channel/create?topic=t&channel=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /channel/delete?topic=t&channel=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /channel/pause?topic=t&channel=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /channel/unpause?topic=t&channel=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /channel/empty?topic=t&channel=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /config/nsqlookupd_tcp_addresses HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /config/nsqlookupd_tcp_addresses HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n[\"a:1\"]",
    b"POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"OPTIONS /pub HTTP/1.1\r\nHost: x\r\n\r\n",
];

/// Parses the frames of a client's connection.
struct FrameReader {
    frames: FrameDecoder,
    frame: Vec<u8>,
}

struct Server<'a> {
    node: Nsqd<'a>,
    readers: [FrameReader; CLIENTS],
    answers: Answers,
    limit: u32,
}

impl Machine for Server<'_> {
    fn sessions(&self) -> usize {
        CLIENTS + HTTP
    }

    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        match index.checked_sub(CLIENTS) {
            None => f(&mut self.node.client(index).expect("a client")),
            Some(index) => f(&mut self.node.http(index).expect("one over HTTP")),
        }
    }

    fn pieces(&self, index: usize) -> &'static [&'static [u8]] {
        if index < CLIENTS { FROM_CLIENTS } else { FROM_HTTP }
    }

    fn act(&mut self, now: Instant, input: &mut Input<'_>) {
        let node = &mut self.node;
        let topic = TopicName::new(input.pick(&["t", "u", "x#ephemeral"])).expect("a name");
        let channel = ChannelName::new(input.pick(&["c", "d", "e#ephemeral"])).expect("a name");
        match input.below(16) {
            0..=4 => {
                let defer = input.pick(&[None, None, Some(Span::from_millis(700))]);
                let len = 1 + input.below(300) as usize;
                let before = node.store();
                let taken =
                    node.publish_with(now, &topic, &vec![b'x'; len], PublishOptions { defer });
                feature(("publish", taken.is_ok()));
                if taken.is_err() {
                    assert_eq!(node.store(), before, "nothing changed");
                }
            }
            5 => drop(node.create(now, &topic, None)),
            6 => drop(node.create(now, &topic, Some(&channel))),
            7 => drop(node.delete(now, &topic, None)),
            8 => drop(node.delete(now, &topic, Some(&channel))),
            9 => drop(node.empty(now, &topic, None)),
            10 => drop(node.empty(now, &topic, Some(&channel))),
            11 => drop(node.pause(now, &topic, None)),
            12 => drop(node.unpause(now, &topic, None)),
            13 => drop(node.pause(now, &topic, Some(&channel))),
            14 => drop(node.unpause(now, &topic, Some(&channel))),
            _ => {
                node.tick(now);
                while let Some(event) = node.poll_event() {
                    if let Event::Dropped { count } = event {
                        assert!(count > 0);
                        feature("dropped");
                    }
                }
            }
        }
    }

    fn opened(&mut self, index: usize) {
        match self.readers.get_mut(index) {
            Some(reader) => {
                *reader = FrameReader { frames: FrameDecoder::new(self.limit), frame: Vec::new() }
            }
            None => self.answers = Answers::default(),
        }
    }

    fn received(&mut self, index: usize, bytes: &[u8]) {
        if index >= CLIENTS {
            self.answers.received(bytes);
        }
    }

    fn wrote(&mut self, index: usize, bytes: &[u8]) {
        let Some(reader) = self.readers.get_mut(index) else { return self.answers.wrote(bytes) };
        let mut input = bytes;
        while let Some(part) = reader.frames.next(&mut input).expect("well-formed frames") {
            reader.frame.extend_from_slice(part.data);
            if !part.last {
                continue;
            }
            let frame = std::mem::take(&mut reader.frame);
            match part.frame_type {
                FrameType::Response => {
                    let known = ["OK", "_heartbeat_", "CLOSE_WAIT"].map(str::as_bytes);
                    feature(("response", known.iter().position(|word| *word == frame)));
                    assert!(known.contains(&&frame[..]) || frame.starts_with(b"{"), "an answer");
                }
                FrameType::Error => {
                    let (code, _) = ErrorCode::parse(&frame);
                    feature(("error", code.as_str()));
                    assert_ne!(code, ErrorCode::Other, "{}", frame.escape_ascii());
                }
                FrameType::Message => {
                    let message = Message::parse(&frame).expect("a message");
                    feature(("message", message.head.attempts.min(3)));
                    assert!(message.head.attempts > 0 && !message.body.is_empty());
                }
            }
        }
    }

    fn check(&mut self, _: Instant) {
        let node = &self.node;
        let store = node.store();
        assert!(store.free <= store.blocks && store.promised <= store.free);
        assert!(node.topics().count() <= TOPICS);
        let (mut in_flight, mut channels) = (0, 0);
        for topic in node.topics() {
            assert_eq!(node.channels(topic.name).count(), usize::from(topic.channels));
            for channel in node.channels(topic.name) {
                assert!(channel.in_flight <= IN_FLIGHT as u32);
                in_flight += channel.in_flight;
                channels += 1;
                feature((channel.in_flight, channel.depth.min(3), channel.deferred.min(2)));
            }
            feature((topic.paused, topic.depth.min(3), topic.channels));
        }
        assert!(channels <= CHANNELS);
        let mut at_clients = 0;
        for status in node.statuses() {
            feature((status.state as u8, status.ready, status.in_flight, status.identified));
            assert!(status.state == ClientState::Subscribed || status.ready == 0);
            assert!(usize::from(status.ready) <= IN_FLIGHT);
            at_clients += u32::from(status.in_flight);
        }
        assert_eq!(in_flight, at_clients, "in flight in channels and at clients");
        let counters = node.counters();
        assert!(counters.finished + counters.requeued <= counters.delivered);
    }
}

fn full(dice: u8) -> Full {
    // The bits keep the meaning of older inputs, from when there were two policies.
    match (dice & 1, dice & 64) {
        (0, 0) => Full::Refuse,
        (0, _) => Full::DropAnswered,
        _ => Full::DropOldest,
    }
}

fn config(dice: u8) -> Config<'static> {
    let mut config = Config {
        full: full(dice),
        heartbeat: Span::from_secs(if dice & 2 > 0 { 2 } else { 30 }),
        msg_timeout: Span::from_secs(if dice & 4 > 0 { 1 } else { 60 }),
        publish_wait: Span::from_millis(if dice & 8 > 0 { 500 } else { 0 }),
        channels_per_topic: if dice & 16 > 0 { 1 } else { 2 },
        seed: dice.into(),
        ..Config::new()
    };
    if dice & 32 > 0 {
        config.limits.max_msg_size = 300;
    }
    config
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(input.byte());
    let mut storage = Storage::<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>::new();
    let mut store = [0xaa; BLOCKS * 66 + 5];
    let mut http = HttpStorage::<HTTP, 2>::new();
    let mut node = Nsqd::new(&config, &mut storage, &mut store).expect("a good configuration");
    const ANSWERS: HttpConfig<'_> = HttpConfig::new();
    node.answer_http(&ANSWERS, &mut http, &[]).expect("no nsqlookupd");
    let limit = node.limits().max_msg_size + 26;
    let reader = || FrameReader { frames: FrameDecoder::new(limit), frame: Vec::new() };
    let readers = [(); CLIENTS].map(|()| reader());
    let mut server = Server { node, readers, answers: Answers::default(), limit: limit.max(1000) };
    play(&mut server, &mut input);
    // All clients are gone: only topics still hold messages.
    let names: Vec<_> = server.node.topics().map(|topic| *topic.name).collect();
    for name in &names {
        server.node.delete(Instant::ZERO, name, None).expect("the topic exists");
    }
    let store = server.node.store();
    assert_eq!((store.free, store.promised), (store.blocks, 0), "the store is not empty");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = serving::seeds((CLIENTS + HTTP) as u8, FROM_CLIENTS.len() as u8, 16);
    plain.iter().zip(0..).map(|(seed, dice)| [&[dice * 5], &seed[..]].concat()).collect()
}

/// Requests over HTTP: splits change neither the responses nor the effects.
pub(crate) fn http(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = ask(seed, &mut std::iter::once(stream));
    let split = ask(seed, &mut pieces(stream, seed));
    assert_eq!(whole, split, "splits show, seed {seed}");
}

fn ask(dice: u8, requests: &mut dyn Iterator<Item = &[u8]>) -> (String, BTreeSet<String>) {
    let config = config(dice & !8);
    let now = Instant::from_millis(3000);
    let mut storage = Storage::<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>::new();
    let mut store = [0xaa; BLOCKS * 66];
    let mut tables = HttpStorage::<HTTP, 2>::new();
    let mut node = Nsqd::new(&config, &mut storage, &mut store).expect("a good configuration");
    const ANSWERS: HttpConfig<'_> = HttpConfig::new();
    let lookupds: [Address; 1] = ["l:1".parse().expect("an address")];
    node.answer_http(&ANSWERS, &mut tables, &lookupds).expect("room for one");
    let topic = TopicName::new("t").expect("a name");
    node.publish(now, &topic, b"first").expect("room");
    let response = converse(&mut |f| f(&mut node.http(0).expect("one")), now, requests);
    for line in String::from_utf8_lossy(&response).split("\r\n") {
        feature(line.get(..20).unwrap_or(line).replace(|c: char| c.is_ascii_digit(), "0"));
    }
    let mut state = BTreeSet::new();
    for topic in node.topics() {
        state.insert(format!("{topic:?}"));
        state.extend(node.channels(topic.name).map(|channel| format!("{channel:?}")));
    }
    state.insert(format!("{:?} {:?} {:?}", node.counters(), node.store(), node.lookupds()));
    feature((state.len(), node.counters().accepted.min(5)));
    (response.escape_ascii().to_string(), state)
}

pub(crate) fn http_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = FROM_HTTP.iter().map(|piece| [b"\0", *piece].concat()).collect();
    for few in FROM_HTTP.chunks(5) {
        seeds.push([b"\x03", &few.concat()[..]].concat());
    }
    seeds
}

impl Dice for Input<'_> {
    fn below(&mut self, n: u32) -> u32 {
        Input::below(self, n)
    }

    fn is_over(&self) -> bool {
        Input::is_over(self)
    }

    fn note(&mut self, what: &[usize]) {
        feature(what);
    }
}

/// Runs operations on a node and on its model.
pub(crate) fn model(data: &[u8]) {
    let mut input = Input::new(data);
    let full = full(input.byte());
    let (delivered, holds) = live(input, full, u32::MAX);
    feature((delivered.min(20), holds.min(5)));
}

pub(crate) fn model_seeds() -> Vec<Vec<u8>> {
    // Any bytes are valid operations.
    let mut random = crate::mutate::Random::new(7);
    (0..16).map(|_| (0..600).map(|_| random.below(256) as u8).collect()).collect()
}
