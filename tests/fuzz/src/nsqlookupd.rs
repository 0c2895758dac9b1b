//! A directory with nodes and HTTP clients that send anything; and a directory that is used
//! correctly and compared with a simple model: sets of names.

use std::collections::{BTreeMap, BTreeSet};

use nanonsq_core::nsqlookupd::{Config, Nsqlookupd, Storage};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqlookupd::ReplyDecoder;

use crate::feature;
use crate::input::{Input, pieces};
use crate::serving::{self, Answers, converse, play};
use crate::session::Machine;

const NODES: usize = 3;
const TOPICS: usize = 3;
const CHANNELS: usize = 4;
const HTTP: usize = 1;

const FROM_NODES: &[&[u8]] = &[
    b"  V1",
    b"  V1IDENTIFY\n\0\0\0\x51{\"broadcast_address\":\"a\",\"hostname\":\"h\",\"http_port\":2,\
      \"tcp_port\":1,\"version\":\"v\"}",
    b"  V1IDENTIFY\n\0\0\0\x51{\"broadcast_address\":\"b\",\"hostname\":\"h\",\"http_port\":2,\
      \"tcp_port\":1,\"version\":\"v\"}",
    b"REGISTER t c\n",
    b"REGISTER t\n",
    b"REGISTER u#ephemeral d#ephemeral\n",
    b"REGISTER w c\nREGISTER w d\nREGISTER w e\n",
    b"UNREGISTER t c\n",
    b"UNREGISTER t\n",
    b"UNREGISTER u#ephemeral d#ephemeral\n",
    b"PING\n",
    b"PING\nPING\nPING\nREGISTER x\n",
    b"REGISTER t bad!name\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
];

const FROM_ASKERS: &[&[u8]] = &[
    b"GET /lookup?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /topics HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /channels?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /nodes HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /debug HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /info HTTP/1.0\r\n\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    b"POST /topic/create?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /topic/delete?topic=t HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /channel/create?topic=t&channel=c HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
    b"POST /channel/delete?topic=t&channel=c HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /topic/tombstone?topic=t&node=a:2 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS /lookup HTTP/1.1\r\nHost: x\r\n\r\n",
    b"PUT /lookup HTTP/1.1\r\nHost: x\r\n\r\n",
];

struct Server<'a> {
    directory: Nsqlookupd<'a>,
    replies: [ReplyDecoder; NODES],
    answers: Answers,
}

impl Machine for Server<'_> {
    fn sessions(&self) -> usize {
        NODES + HTTP
    }

    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        match index.checked_sub(NODES) {
            None => f(&mut self.directory.client(index).expect("a node's")),
            Some(index) => f(&mut self.directory.http(index).expect("one over HTTP")),
        }
    }

    fn pieces(&self, index: usize) -> &'static [&'static [u8]] {
        if index < NODES { FROM_NODES } else { FROM_ASKERS }
    }

    fn act(&mut self, _: Instant, _: &mut Input<'_>) {
        while let Some(event) = self.directory.poll_event() {
            feature(std::mem::discriminant(&event));
        }
    }

    fn opened(&mut self, index: usize) {
        match self.replies.get_mut(index) {
            Some(replies) => *replies = ReplyDecoder::new(1000),
            None => self.answers = Answers::default(),
        }
    }

    fn received(&mut self, index: usize, bytes: &[u8]) {
        if index >= NODES {
            self.answers.received(bytes);
        }
    }

    fn wrote(&mut self, index: usize, bytes: &[u8]) {
        let Some(replies) = self.replies.get_mut(index) else { return self.answers.wrote(bytes) };
        let mut input = bytes;
        while let Some(part) = replies.next(&mut input).expect("well-formed answers") {
            feature((part.first, part.last, part.data.len().min(4)));
        }
    }

    fn check(&mut self, _: Instant) {
        let directory = &self.directory;
        let nodes = (0..NODES).filter(|index| directory.producer(*index).is_some()).count();
        let (mut topics, mut producers) = (0, 0);
        for (name, count) in directory.topics() {
            let having = (0..NODES).filter(|index| directory.has_topic(*index, name));
            let addresses = having.map(|index| {
                let producer = directory.producer(index);
                let node = producer.expect("only connected nodes have topics").node;
                (node.broadcast_address, node.tcp_port)
            });
            assert_eq!(addresses.collect::<BTreeSet<_>>().len(), count);
            topics += 1;
            producers += count;
        }
        let channels = directory.channels().count();
        assert!(topics <= TOPICS && channels <= CHANNELS);
        feature((nodes, topics, producers, channels));
    }
}

fn config(dice: u8) -> Config<'static> {
    Config {
        empty_timeout: Span::from_secs(if dice & 1 > 0 { 20 } else { 0 }),
        idle_timeout: Span::from_secs(if dice & 2 > 0 { 40 } else { 300 }),
        inactive_timeout: Span::from_secs(if dice & 4 > 0 { 10 } else { 300 }),
        replace_timeout: Span::from_secs(if dice & 8 > 0 { 15 } else { 45 }),
        topics_per_node: if dice & 16 > 0 { 2 } else { u16::MAX },
        channels_per_node: if dice & 16 > 0 { 3 } else { u16::MAX },
        ..Config::new()
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(input.byte());
    let mut storage = Storage::<NODES, TOPICS, CHANNELS, HTTP>::new();
    let directory = Nsqlookupd::new(&config, &mut storage);
    let replies = [(); NODES].map(|()| ReplyDecoder::new(1000));
    play(&mut Server { directory, replies, answers: Answers::default() }, &mut input);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = serving::seeds((NODES + HTTP) as u8, FROM_NODES.len() as u8, 14);
    plain.iter().zip(0..).map(|(seed, dice)| [&[dice], &seed[..]].concat()).collect()
}

/// A node's commands: splits do not show.
pub(crate) fn nsqlookupd(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = register_over(&mut std::iter::once(stream));
    let split = register_over(&mut pieces(stream, seed));
    assert_eq!(whole, split, "splits show, seed {seed}");
}

/// Returns the directory's replies to a node, its events, and what is left when the node is gone.
fn register_over(
    commands: &mut dyn Iterator<Item = &[u8]>,
) -> (String, Vec<String>, BTreeSet<String>) {
    let config = config(0);
    let now = Instant::from_millis(1);
    let mut storage = Storage::<NODES, TOPICS, CHANNELS, HTTP>::new();
    let mut directory = Nsqlookupd::new(&config, &mut storage);
    let response = converse(&mut |f| f(&mut directory.client(0).expect("a node's")), now, commands);
    let events: Vec<_> =
        std::iter::from_fn(|| directory.poll_event()).map(|event| format!("{event:?}")).collect();
    let topics = directory.topics().map(|(name, count)| format!("{name} {count}"));
    let channels = directory.channels().map(|(topic, name)| format!("{topic}/{name}"));
    let left: BTreeSet<_> = topics.chain(channels).collect();
    feature((left.len(), events.len(), response.len().min(40) / 2));
    (response.escape_ascii().to_string(), events, left)
}

pub(crate) fn v1_seeds() -> Vec<Vec<u8>> {
    let hello = FROM_NODES[1];
    let mut seeds: Vec<_> = FROM_NODES.iter().map(|piece| [b"\0", hello, piece].concat()).collect();
    seeds.extend(FROM_NODES.iter().map(|piece| [b"\x02", *piece].concat()));
    seeds.push([&[3], hello, &FROM_NODES[3..12].concat()].concat());
    seeds
}

/// HTTP requests: splits do not show.
pub(crate) fn http(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = ask(&mut std::iter::once(stream));
    let split = ask(&mut pieces(stream, seed));
    assert_eq!(whole, split, "splits show, seed {seed}");
}

fn ask(requests: &mut dyn Iterator<Item = &[u8]>) -> (String, usize) {
    let config = config(0);
    let now = Instant::from_millis(1);
    let mut storage = Storage::<NODES, TOPICS, CHANNELS, HTTP>::new();
    let mut directory = Nsqlookupd::new(&config, &mut storage);
    for (index, name) in [b'a', b'b'].into_iter().enumerate() {
        let mut session = directory.client(index).expect("a node's");
        session.open(now);
        let mut hello = FROM_NODES[1].to_vec();
        let named = hello.windows(5).position(|word| word == b"\":\"a\"").expect("a name");
        hello[named + 3] = name;
        assert_eq!(session.take(now, &hello), hello.len());
        // The session holds further commands back until the reply to IDENTIFY was sent.
        while !session.transmit(now).is_empty() {
            let n = session.transmit(now).len();
            session.sent(now, n);
        }
        assert_eq!(session.take(now, b"REGISTER t c\n"), 13);
        assert_eq!(session.link(), Link::Up);
    }
    let response = converse(&mut |f| f(&mut directory.http(0).expect("one")), now, requests);
    for line in String::from_utf8_lossy(&response).split("\r\n") {
        feature(line.get(..20).unwrap_or(line).replace(|c: char| c.is_ascii_digit(), "0"));
    }
    let left = directory.topics().count() * 100 + directory.channels().count();
    feature(left);
    (response.escape_ascii().to_string(), left)
}

pub(crate) fn http_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = FROM_ASKERS.iter().map(|piece| [b"\0", *piece].concat()).collect();
    for few in FROM_ASKERS.chunks(4) {
        seeds.push([b"\x03", &few.concat()[..]].concat());
    }
    seeds
}

const TOPIC_NAMES: [&str; 4] = ["t", "u", "v", "x#ephemeral"];
const CHANNEL_NAMES: [&str; 3] = ["c", "d", "e#ephemeral"];
const NODE_NAMES: [&str; 3] = ["a", "b", "c"];

/// A topic's index, and for a channel also the channel's.
type Key = (usize, Option<usize>);

/// A registered topic or channel.
struct Known {
    /// Created over HTTP.
    kept: bool,
    /// When the last node or use was; `None` while a node has it.
    unused_since: Option<Instant>,
    number: u32,
}

impl Known {
    fn touch(&mut self, now: Instant) {
        self.unused_since = self.unused_since.map(|_| now);
    }
}

struct Peer {
    opened: Instant,
    /// A later IDENTIFY has a larger number.
    number: u32,
    /// The node's name, after IDENTIFY.
    name: Option<usize>,
    active: Instant,
    pinged: Instant,
    has: BTreeSet<Key>,
    tombstoned: BTreeMap<usize, Instant>,
}

/// A model of a directory.
struct Model<'a> {
    config: &'a Config<'a>,
    now: Instant,
    known: BTreeMap<Key, Known>,
    peers: [Option<Peer>; NODES],
    /// The number of the newest name or node.
    number: u32,
}

impl Model<'_> {
    fn count(&self, channels: bool) -> usize {
        self.known.keys().filter(|(_, channel)| channel.is_some() == channels).count()
    }

    fn collect(&mut self) {
        let (now, timeout) = (self.now, self.config.empty_timeout);
        if timeout == Span::ZERO {
            return;
        }
        let stale = |known: &Known| {
            !known.kept && known.unused_since.is_some_and(|since| since.after(timeout) <= now)
        };
        self.known.retain(|(_, channel), known| channel.is_none() || !stale(known));
        let of: BTreeSet<_> =
            self.known.keys().filter(|key| key.1.is_some()).map(|key| key.0).collect();
        self.known.retain(|(topic, channel), known| {
            channel.is_some() || of.contains(topic) || !stale(known)
        });
    }

    /// Returns the topic or channel that no node has and that was unused for longest.
    fn oldest(&self, channels: bool) -> Option<Key> {
        let known = self.known.iter().filter(|(key, _)| key.1.is_some() == channels);
        let unused = known.filter_map(|(key, it)| Some((it.unused_since?, it.number, *key)));
        unused.min().map(|(.., key)| key)
    }

    /// Creates a topic, or a channel and its topic, for a peer or over HTTP; returns false and
    /// changes nothing if there is no room.
    fn make(&mut self, (topic, channel): Key, peer: Option<usize>) -> bool {
        let most = [(false, TOPICS), (true, CHANNELS)];
        let keys = [Some((topic, None)), channel.map(|_| (topic, channel))].into_iter().flatten();
        let is_new = |model: &Self, key: Key| !model.known.contains_key(&key);
        let is_full = |model: &Self, key: Key| {
            let (channels, most) = most[usize::from(key.1.is_some())];
            model.count(channels) == most
        };
        if keys.clone().any(|key| is_new(self, key) && is_full(self, key)) {
            self.collect();
        }
        let config = self.config;
        for key in keys.clone().filter(|key| is_new(self, *key)) {
            let channels = key.1.is_some();
            let has = peer.and_then(|at| self.peers[at].as_ref()).map_or(0, |peer| {
                peer.has.iter().filter(|key| key.1.is_some() == channels).count()
            });
            let per_node = if channels { config.channels_per_node } else { config.topics_per_node };
            if peer.is_some() && has >= per_node.into()
                || is_full(self, key) && self.oldest(channels).is_none()
            {
                return false;
            }
        }
        let now = self.now;
        for key in keys {
            if is_new(self, key) {
                if is_full(self, key) {
                    self.remove(self.oldest(key.1.is_some()).expect("one that nobody has"));
                    feature("given back");
                }
                self.number += 1;
                let number = self.number;
                self.known.insert(key, Known { kept: false, unused_since: Some(now), number });
            }
            let known = self.known.get_mut(&key).expect("it is there");
            known.kept |= peer.is_none();
            known.touch(now);
        }
        true
    }

    /// A peer no longer has this name: remember since when no peer has it.
    fn left(&mut self, key: Key) {
        let empty = !self.peers.iter().flatten().any(|peer| peer.has.contains(&key));
        let now = self.now;
        if let Some(known) = self.known.get_mut(&key)
            && empty
        {
            known.unused_since = Some(now);
        }
    }

    fn is_empty(&self, key: Key) -> bool {
        !self.peers.iter().flatten().any(|peer| peer.has.contains(&key))
    }

    fn remove(&mut self, key: Key) {
        let (topic, channel) = key;
        let gone = |other: &Key| match channel {
            None => other.0 == topic,
            Some(_) => *other == key,
        };
        self.known.retain(|other, _| !gone(other));
        for peer in self.peers.iter_mut().flatten() {
            peer.has.retain(|other| !gone(other));
            if channel.is_none() {
                peer.tombstoned.remove(&topic);
            }
        }
    }

    fn unregister(&mut self, at: usize, (topic, channel): Key) {
        if !self.known.contains_key(&(topic, channel)) {
            return;
        }
        let peer = self.peers[at].as_mut().expect("a peer");
        let gone: Vec<_> = peer
            .has
            .iter()
            .copied()
            .filter(|key| key.0 == topic && (channel.is_none() || key.1 == channel))
            .collect();
        for key in gone {
            let peer = self.peers[at].as_mut().expect("a peer");
            peer.has.remove(&key);
            if key.1.is_none() {
                peer.tombstoned.remove(&topic);
            }
            self.left(key);
        }
        let name = channel.map_or(TOPIC_NAMES[topic], |channel| CHANNEL_NAMES[channel]);
        if name.ends_with("#ephemeral") && self.is_empty((topic, channel)) {
            self.remove((topic, channel));
        }
    }

    fn forget(&mut self, at: usize) {
        let Some(peer) = self.peers[at].take() else { return };
        for key in peer.has {
            self.left(key);
        }
    }

    fn is_listed(&self, peer: &Peer) -> bool {
        peer.name.is_some() && self.now <= peer.pinged.after(self.config.inactive_timeout)
    }
}

struct World<'a> {
    directory: Nsqlookupd<'a>,
    model: Model<'a>,
}

impl World<'_> {
    fn send(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        let now = self.model.now;
        let mut session = self.directory.client(at).expect("a node's");
        assert_eq!(session.take(now, bytes), bytes.len());
        let mut response = Vec::new();
        while !session.transmit(now).is_empty() {
            let lent = session.transmit(now).head.to_vec();
            session.sent(now, lent.len());
            response.extend(lent);
        }
        response
    }

    /// Does one action of a node.
    fn node(&mut self, at: usize, input: &mut Input<'_>) {
        let now = self.model.now;
        let op = input.below(8);
        let Some(peer) = &mut self.model.peers[at] else {
            self.directory.client(at).expect("a node's").open(now);
            assert_eq!(self.send(at, b"  V1"), b"");
            let has = BTreeSet::new();
            let tombstoned = BTreeMap::new();
            let (active, pinged) = (now, now);
            let peer = Peer { opened: now, number: 0, name: None, active, pinged, has, tombstoned };
            self.model.peers[at] = Some(peer);
            return;
        };
        if op == 7 {
            self.directory.client(at).expect("a node's").closed(now, Closed::Peer);
            return self.model.forget(at);
        }
        if peer.name.is_none() {
            let name = input.below(3) as usize;
            let text = format!(
                "{{\"broadcast_address\":\"{}\",\"hostname\":\"h\",\"http_port\":2,\
                 \"tcp_port\":1,\"version\":\"v\"}}",
                NODE_NAMES[name]
            );
            (peer.name, peer.active, peer.pinged) = (Some(name), now, now);
            let len = (text.len() as u32).to_be_bytes();
            let response = self.send(at, &[b"IDENTIFY\n", &len[..], text.as_bytes()].concat());
            assert!(response.ends_with(b"}"), "{}", response.escape_ascii());
            self.model.number += 1;
            self.model.peers[at].as_mut().expect("a peer").number = self.model.number;
            return self.replace(at);
        }
        peer.active = now;
        let topic = input.below(4) as usize;
        let channel = [None, Some(0), Some(1), Some(2)][input.below(4) as usize];
        let mut line = TOPIC_NAMES[topic].to_owned();
        if let Some(channel) = channel {
            line.push(' ');
            line.push_str(CHANNEL_NAMES[channel]);
        }
        match op {
            0..4 => {
                let made = self.model.make((topic, channel), Some(at));
                let response = self.send(at, format!("REGISTER {line}\n").as_bytes());
                assert_eq!(response.ends_with(b"OK"), made, "{}", response.escape_ascii());
                feature(("register", made));
                if made {
                    for key in [(topic, None), (topic, channel)] {
                        self.model.peers[at].as_mut().expect("a peer").has.insert(key);
                        self.model.known.get_mut(&key).expect("made").unused_since = None;
                    }
                }
            }
            4 | 5 => {
                self.model.unregister(at, (topic, channel));
                let response = self.send(at, format!("UNREGISTER {line}\n").as_bytes());
                assert_eq!(response, b"\0\0\0\x02OK");
            }
            _ => {
                peer.pinged = now;
                assert_eq!(self.send(at, b"PING\n"), b"\0\0\0\x02OK");
                self.replace(at);
            }
        }
    }

    /// Removes earlier connections of this node that have been silent for long.
    fn replace(&mut self, at: usize) {
        let (now, patience) = (self.model.now, self.model.config.replace_timeout);
        let me = self.model.peers[at].as_ref().expect("a peer");
        let (name, number) = (me.name, me.number);
        for other in 0..NODES {
            let is_over = self.model.peers[other].as_ref().is_some_and(|it| {
                it.name == name && it.number < number && it.active.after(patience) < now
            });
            let mut session = self.directory.client(other).expect("a node's");
            assert_eq!(
                session.link() == Link::Close,
                is_over,
                "a node that came back replaces its silent connection"
            );
            if is_over {
                session.closed(now, Closed::Local);
                self.model.forget(other);
                feature("replaced");
            }
        }
    }

    /// Sends an HTTP request and returns the status and the body of the response.
    fn ask(&mut self, request: &str) -> (u16, String) {
        let request = format!("{request} HTTP/1.0\r\n\r\n");
        let now = self.model.now;
        let directory = &mut self.directory;
        let response = converse(
            &mut |f| f(&mut directory.http(0).expect("one")),
            now,
            &mut std::iter::once(request.as_bytes()),
        );
        let response = String::from_utf8(response).expect("text");
        let (head, body) = response.split_once("\r\n\r\n").expect("an answer");
        (head[9..12].parse().expect("a status"), body.to_owned())
    }

    /// Does one action of an administrator, or a lookup.
    fn administer(&mut self, input: &mut Input<'_>) {
        self.model.collect();
        let topic = input.below(4) as usize;
        let channel = input.below(3) as usize;
        let name = TOPIC_NAMES[topic].replace('#', "%23");
        let both = format!("{name}&channel={}", CHANNEL_NAMES[channel].replace('#', "%23"));
        let has_topic = self.model.known.contains_key(&(topic, None));
        match input.below(6) {
            0 => {
                let made = self.model.make((topic, None), None);
                let (status, _) = self.ask(&format!("POST /topic/create?topic={name}"));
                assert_eq!(status, if made { 200 } else { 503 });
            }
            1 => {
                let made = self.model.make((topic, Some(channel)), None);
                let (status, _) = self.ask(&format!("POST /channel/create?topic={both}"));
                assert_eq!(status, if made { 200 } else { 503 });
            }
            2 => {
                self.model.remove((topic, None));
                let (status, _) = self.ask(&format!("POST /topic/delete?topic={name}"));
                assert_eq!(status, 200);
            }
            3 => {
                let key = (topic, Some(channel));
                let there = self.model.known.contains_key(&key);
                self.model.remove(key);
                let (status, _) = self.ask(&format!("POST /channel/delete?topic={both}"));
                assert_eq!(status, if there { 200 } else { 404 });
            }
            4 => {
                let node = input.below(3) as usize;
                let now = self.model.now;
                for peer in self.model.peers.iter_mut().flatten() {
                    if peer.name == Some(node) && peer.has.contains(&(topic, None)) {
                        peer.tombstoned.insert(topic, now);
                        feature("tombstoned");
                    }
                }
                let node = NODE_NAMES[node];
                let path = format!("POST /topic/tombstone?topic={name}&node={node}:2");
                assert_eq!(self.ask(&path).0, 200);
            }
            _ => {
                let (status, body) = self.ask(&format!("GET /lookup?topic={name}"));
                assert_eq!(status, if has_topic { 200 } else { 404 });
                let now = self.model.now;
                if let Some(known) = self.model.known.get_mut(&(topic, None)) {
                    known.touch(now);
                }
                let names = body.split("\"broadcast_address\":\"").skip(1);
                let mut names: Vec<_> =
                    names.map(|rest| rest.split('"').next().expect("a name")).collect();
                names.sort_unstable();
                let lifetime = self.model.config.tombstone_lifetime;
                let is_buried = |peer: &Peer| {
                    peer.tombstoned
                        .get(&topic)
                        .is_some_and(|at| self.model.now < at.after(lifetime))
                };
                let peers = self.model.peers.iter().flatten().filter(|peer| {
                    peer.has.contains(&(topic, None))
                        && self.model.is_listed(peer)
                        && !is_buried(peer)
                });
                let mut listed: Vec<_> =
                    peers.map(|peer| NODE_NAMES[peer.name.expect("its name")]).collect();
                listed.sort_unstable();
                listed.dedup();
                assert_eq!(names, listed, "{body}");
                feature(("lookup", names.len(), status));
            }
        }
    }

    fn wait(&mut self, span: Span) {
        let now = self.model.now.after(span);
        self.model.now = now;
        let config = self.model.config;
        for at in 0..NODES {
            let mut session = self.directory.client(at).expect("a node's");
            if session.deadline() <= now {
                session.tick(now);
            }
            let over = session.link() == Link::Close;
            let should = self.model.peers[at].as_ref().is_some_and(|peer| match peer.name {
                None => peer.opened.after(config.greeting_timeout) <= now,
                Some(_) => peer.active.after(config.idle_timeout) <= now,
            });
            assert_eq!(over, should, "closed after silence");
            if over {
                session.closed(now, Closed::Local);
                self.model.forget(at);
                feature("silent");
            }
        }
    }

    fn check(&self) {
        let topics: BTreeSet<_> =
            self.directory.topics().map(|(name, count)| (name.to_string(), count)).collect();
        let having = |topic: usize| {
            let peers = self.model.peers.iter().flatten();
            let peers = peers.filter(|peer| peer.has.contains(&(topic, None)));
            peers.map(|peer| peer.name).collect::<BTreeSet<_>>().len()
        };
        let is_topic = |key: &&Key| key.1.is_none();
        let known = self.model.known.keys();
        let expected: BTreeSet<_> = known
            .clone()
            .filter(is_topic)
            .map(|(topic, _)| (TOPIC_NAMES[*topic].to_owned(), having(*topic)))
            .collect();
        assert_eq!(topics, expected);
        let channels: BTreeSet<_> =
            self.directory.channels().map(|(topic, name)| format!("{topic} {name}")).collect();
        let expected: BTreeSet<_> = known
            .filter_map(|(topic, channel)| {
                Some(format!("{} {}", TOPIC_NAMES[*topic], CHANNEL_NAMES[(*channel)?]))
            })
            .collect();
        assert_eq!(channels, expected);
        for (at, peer) in self.model.peers.iter().enumerate() {
            let name = peer.as_ref().and_then(|peer| peer.name).map(|name| NODE_NAMES[name]);
            let status = self.directory.producer(at);
            assert_eq!(status.map(|status| status.node.broadcast_address), name);
        }
        let tombstoned =
            self.model.peers.iter().flatten().map(|peer| peer.tombstoned.len()).sum::<usize>();
        let had = self.model.peers.iter().flatten().map(|peer| peer.has.len()).sum::<usize>();
        feature((topics.len(), channels.len(), tombstoned.min(3), had));
    }
}

/// Runs operations on a directory and on its model.
pub(crate) fn model(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(input.byte());
    let mut storage = Storage::<NODES, TOPICS, CHANNELS, HTTP>::new();
    let directory = Nsqlookupd::new(&config, &mut storage);
    let model = Model {
        config: &config,
        now: Instant::from_millis(1),
        known: BTreeMap::new(),
        peers: [const { None }; NODES],
        number: 0,
    };
    let mut world = World { directory, model };
    while !input.is_over() {
        match input.below(16) {
            0..10 => {
                let at = input.below(NODES as u32) as usize;
                world.node(at, &mut input);
            }
            10..13 => world.administer(&mut input),
            13 | 14 => world.wait(Span::from_millis(input.below(3000))),
            _ => world.wait(Span::from_secs(input.pick(&[9, 20, 44, 300]))),
        }
        world.check();
    }
}

pub(crate) fn model_seeds() -> Vec<Vec<u8>> {
    // Any bytes are valid operations.
    let mut random = crate::mutate::Random::new(9);
    (0..16).map(|_| (0..400).map(|_| random.below(256) as u8).collect()).collect()
}
