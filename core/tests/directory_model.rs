//! An nsqlookupd against a simple model, with random actions of nodes and administrators: the
//! listings, the full tables, and the effects of time.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqlookupd::{Config, Nsqlookupd, Storage};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::json::{Scanner, Token};
use support::{Random, seeds};

const CLIENTS: usize = 4;
const TOPICS: usize = 4;
const CHANNELS: usize = 5;
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e#ephemeral", "f#ephemeral"];

const INACTIVE: Span = Span::from_secs(300);
const LIFETIME: Span = Span::from_secs(45);
const IDLE: Span = Span::from_secs(400);
const REPLACE: Span = Span::from_secs(45);
const GREETING: Span = Span::from_secs(10);
const EMPTY: Span = Span::from_secs(160);

/// The most topics and channels of one client.
const TOPICS_OF_ONE: usize = 3;
const CHANNELS_OF_ONE: usize = 4;

/// A topic or channel.
#[derive(Debug, Clone)]
struct Key {
    kept: bool,
    producers: BTreeSet<usize>,
    /// Without producers: when the last one left, or when it was last created or looked up.
    unused_since: Instant,
    number: u32,
}

impl Key {
    fn leave(&mut self, now: Instant, client: usize) {
        if self.producers.remove(&client) && self.producers.is_empty() {
            self.unused_since = now;
        }
    }

    fn touch(&mut self, now: Instant) {
        if self.producers.is_empty() {
            self.unused_since = now;
        }
    }

    fn is_stale(&self, now: Instant) -> bool {
        !self.kept && self.producers.is_empty() && self.unused_since.after(EMPTY) <= now
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Client {
    Gone,
    Greeting { until: Instant },
    Here { node: u32, number: u32, last_seen: Instant, pinged: Instant },
}

/// The expected state of the nsqlookupd.
#[derive(Debug)]
struct Model {
    clients: [Client; CLIENTS],
    topics: BTreeMap<String, Key>,
    channels: BTreeMap<(String, String), Key>,
    buried: BTreeMap<(String, usize), Instant>,
    /// The number of the newest topic, channel or client.
    number: u32,
    /// A client was rejected since the last one left.
    turned_away: bool,
    full: u32,
    collected: u32,
    given_back: u32,
    replaced: u32,
}

/// Returns the key without producers that was unused for longest.
fn oldest<'m, K: Clone + 'm>(keys: impl Iterator<Item = (&'m K, &'m Key)>) -> Option<K> {
    let unused = keys.filter(|(_, key)| key.producers.is_empty());
    unused.min_by_key(|(_, key)| (key.unused_since, key.number)).map(|(name, _)| name.clone())
}

impl Model {
    fn new() -> Self {
        Self {
            clients: [Client::Gone; CLIENTS],
            topics: BTreeMap::new(),
            channels: BTreeMap::new(),
            buried: BTreeMap::new(),
            number: 0,
            turned_away: false,
            full: 0,
            collected: 0,
            given_back: 0,
            replaced: 0,
        }
    }

    fn collect(&mut self, now: Instant) {
        let before = self.channels.len() + self.topics.len();
        self.channels.retain(|_, key| !key.is_stale(now));
        let with_channels: BTreeSet<_> = self.channels.keys().map(|(t, _)| t.clone()).collect();
        self.topics.retain(|name, key| !key.is_stale(now) || with_channels.contains(name));
        self.collected += (before - self.channels.len() - self.topics.len()) as u32;
    }

    fn key(&mut self, now: Instant) -> Key {
        self.number += 1;
        Key { kept: false, producers: BTreeSet::new(), unused_since: now, number: self.number }
    }

    /// Creates a topic, and a channel if given, evicting stale and unused keys if needed. Returns
    /// whether there was room.
    fn make(
        &mut self,
        now: Instant,
        topic: &str,
        channel: Option<&str>,
        client: Option<usize>,
    ) -> bool {
        let both = channel.map(|channel| (topic.to_owned(), channel.to_owned()));
        let new_channel =
            |model: &Self| both.as_ref().is_some_and(|both| !model.channels.contains_key(both));
        if !self.topics.contains_key(topic) && self.topics.len() == TOPICS
            || new_channel(self) && self.channels.len() == CHANNELS
        {
            self.collect(now);
        }
        let (new_topic, new_channel) = (!self.topics.contains_key(topic), new_channel(self));
        let no_topic = self.topics.len() == TOPICS && oldest(self.topics.iter()).is_none();
        let no_channel = self.channels.len() == CHANNELS && oldest(self.channels.iter()).is_none();
        let of_one = |keys: &mut dyn Iterator<Item = &Key>, most| {
            client.is_some_and(|it| keys.filter(|key| key.producers.contains(&it)).count() >= most)
        };
        if new_topic && (no_topic || of_one(&mut self.topics.values(), TOPICS_OF_ONE))
            || new_channel && (no_channel || of_one(&mut self.channels.values(), CHANNELS_OF_ONE))
        {
            self.full += 1;
            return false;
        }
        if new_topic {
            if self.topics.len() == TOPICS {
                let name = oldest(self.topics.iter()).unwrap();
                let before = self.channels.len();
                self.delete(&name);
                self.given_back += 1 + (before - self.channels.len()) as u32;
            }
            let key = self.key(now);
            self.topics.insert(topic.into(), key);
        }
        if new_channel {
            if self.channels.len() == CHANNELS {
                let name = oldest(self.channels.iter()).unwrap();
                self.channels.remove(&name);
                self.given_back += 1;
            }
            let key = self.key(now);
            self.channels.insert(both.clone().unwrap(), key);
        }
        let channel = both.and_then(|both| self.channels.get_mut(&both));
        for key in self.topics.get_mut(topic).into_iter().chain(channel) {
            key.kept |= client.is_none();
            key.touch(now);
        }
        true
    }

    fn register(
        &mut self,
        now: Instant,
        client: usize,
        topic: &str,
        channel: Option<&str>,
    ) -> bool {
        if !self.make(now, topic, channel, Some(client)) {
            return false;
        }
        self.topics.get_mut(topic).unwrap().producers.insert(client);
        if let Some(channel) = channel {
            let key = (topic.into(), channel.into());
            self.channels.get_mut(&key).unwrap().producers.insert(client);
        }
        true
    }

    fn unregister(&mut self, now: Instant, client: usize, topic: &str, channel: Option<&str>) {
        if let Some(channel) = channel {
            let key = (topic.to_owned(), channel.to_owned());
            if let Some(is) = self.channels.get_mut(&key) {
                is.leave(now, client);
                if is.producers.is_empty() && channel.ends_with("#ephemeral") {
                    self.channels.remove(&key);
                }
            }
            return;
        }
        for (_, is) in self.channels.iter_mut().filter(|((name, _), _)| name == topic) {
            is.leave(now, client);
        }
        self.buried.remove(&(topic.to_owned(), client));
        if let Some(is) = self.topics.get_mut(topic) {
            is.leave(now, client);
            if is.producers.is_empty() && topic.ends_with("#ephemeral") {
                self.delete(topic);
            }
        }
    }

    fn delete(&mut self, topic: &str) {
        self.topics.remove(topic);
        self.channels.retain(|(name, _), _| name != topic);
        self.buried.retain(|(name, _), _| name != topic);
    }

    fn leave(&mut self, now: Instant, client: usize) {
        self.clients[client] = Client::Gone;
        self.turned_away = false;
        self.topics.values_mut().for_each(|key| key.leave(now, client));
        self.channels.values_mut().for_each(|key| key.leave(now, client));
        self.buried.retain(|(_, is), _| *is != client);
    }

    fn is_buried(&self, now: Instant, topic: &str, client: usize) -> bool {
        let at = self.buried.get(&(topic.to_owned(), client));
        at.is_some_and(|at| now < at.after(LIFETIME))
    }

    /// Returns the listed client of each node: of those that still send PING, the one last_seen
    /// last.
    fn listed(&self, now: Instant, clients: impl Iterator<Item = usize>) -> BTreeMap<u32, usize> {
        let last_seen = |client: usize| match self.clients[client] {
            Client::Here { number, last_seen, .. } => (last_seen, number),
            _ => unreachable!("listed clients are identified"),
        };
        let mut listed = BTreeMap::new();
        for client in clients {
            let Some(node) = self.active(now, client) else { continue };
            let shown = listed.entry(node).or_insert(client);
            if last_seen(client) > last_seen(*shown) {
                *shown = client;
            }
        }
        listed
    }

    /// Returns the node of a client, if the client still sends PING.
    fn active(&self, now: Instant, client: usize) -> Option<u32> {
        match self.clients[client] {
            Client::Here { node, pinged, .. } if now <= pinged.after(INACTIVE) => Some(node),
            _ => None,
        }
    }
}

struct World {
    directory: Nsqlookupd<'static>,
    model: Model,
    now: Instant,
    random: Random,
}

impl World {
    fn send(&mut self, client: usize, bytes: &[u8]) -> Vec<u8> {
        let (now, write) = (self.now, 1 + self.random.below(300) as usize);
        exchange(&mut self.directory.client(client).unwrap(), now, bytes, write)
    }

    /// Returns the status and body of an answer.
    fn ask(&mut self, request: &str) -> (String, String) {
        let (now, write) = (self.now, 1 + self.random.below(2000) as usize);
        let mut session = self.directory.http(0).unwrap();
        session.open(now);
        let request = format!("{request} HTTP/1.0\r\n\r\n");
        let answer = exchange(&mut session, now, request.as_bytes(), write);
        session.closed(now, Closed::Local);
        self.model.collect(now);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().to_owned(), body.to_owned())
    }

    fn step(&mut self) {
        let now = self.now;
        let client = self.random.below(CLIENTS as u32) as usize;
        // Some names are more frequent, so that clients share them.
        let mut name = || NAMES[self.random.below(6).min(self.random.below(6)) as usize];
        let (topic, channel) = (name(), name());
        let with_channel = (!self.random.one_in(3)).then_some(channel);
        let command = |verb: &str| match with_channel {
            Some(channel) => format!("{verb} {topic} {channel}\n"),
            None => format!("{verb} {topic}\n"),
        };
        match (self.random.below(12), self.model.clients[client]) {
            (0..=1, Client::Gone) => {
                let from = SocketAddr::from(([127, 0, 0, 1], 1000 + client as u16));
                self.directory.client(client).unwrap().accepted(now, from);
                self.send(client, b"  V1");
                self.model.clients[client] = Client::Greeting { until: now.after(GREETING) };
            }
            (0..=3, Client::Greeting { .. }) => {
                // Fewer nodes than connections, so that connections share nodes.
                let (node, port) = (self.random.below(3), port(client));
                let json = format!(
                    r#"{{"broadcast_address":"n{node}","tcp_port":1,"http_port":{port},"version":"v"}}"#
                );
                let len = (json.len() as u32).to_be_bytes();
                let reply = self.send(client, &[b"IDENTIFY\n", &len[..], json.as_bytes()].concat());
                assert!(reply.ends_with(b"}"));
                self.model.number += 1;
                let number = self.model.number;
                self.model.clients[client] =
                    Client::Here { node, number, last_seen: now, pinged: now };
                self.replace(client);
            }
            (0..=3, Client::Here { node, number, pinged, .. }) => {
                let reply = self.send(client, command("REGISTER").as_bytes());
                let took = self.model.register(now, client, topic, with_channel);
                assert_eq!(reply == b"\0\0\0\x02OK", took, "{}", reply.escape_ascii());
                assert!(took || reply[4..].starts_with(b"E_REGISTER_FAILED"));
                self.model.clients[client] = Client::Here { node, number, last_seen: now, pinged };
            }
            (4, Client::Here { node, number, pinged, .. }) => {
                let reply = self.send(client, command("UNREGISTER").as_bytes());
                assert_eq!(reply, b"\0\0\0\x02OK");
                self.model.unregister(now, client, topic, with_channel);
                self.model.clients[client] = Client::Here { node, number, last_seen: now, pinged };
            }
            (5, Client::Here { node, number, .. }) => {
                assert_eq!(self.send(client, b"PING\n"), b"\0\0\0\x02OK");
                self.model.clients[client] =
                    Client::Here { node, number, last_seen: now, pinged: now };
                self.replace(client);
            }
            (6, state) if state != Client::Gone && self.random.one_in(4) => {
                self.directory.client(client).unwrap().closed(now, Closed::Peer);
                self.model.leave(now, client);
            }
            (7, _) => self.administer(topic, channel),
            (8, _) if self.random.one_in(2) => self.pass(),
            (9, _) if self.random.one_in(4) => {
                self.directory.turned_away();
                self.model.turned_away = true;
            }
            _ => self.check(),
        }
    }

    /// Closes the older silent connections of a client's node, which the client replaces.
    fn replace(&mut self, client: usize) {
        let (now, clients) = (self.now, self.model.clients);
        let Client::Here { node, number, .. } = clients[client] else { return };
        for (other, state) in clients.iter().enumerate() {
            let mut session = self.directory.client(other).unwrap();
            match *state {
                Client::Here { node: of, number: older, last_seen, .. }
                    if of == node && older < number && last_seen.after(REPLACE) < now =>
                {
                    assert_eq!(session.link(), Link::Close, "the node has come back");
                    session.closed(now, Closed::Local);
                    self.model.leave(now, other);
                    self.model.replaced += 1;
                }
                Client::Gone => {}
                _ => assert_eq!(session.link(), Link::Up, "another node"),
            }
        }
    }

    fn administer(&mut self, topic: &str, channel: &str) {
        let now = self.now;
        let escaped = |name: &str| name.replace('#', "%23");
        let (t, c) = (escaped(topic), escaped(channel));
        // The nsqlookupd collects stale keys before each request.
        self.model.collect(now);
        let (request, expected) = match self.random.below(6) {
            0 => {
                let made = self.model.make(now, topic, None, None);
                (format!("POST /topic/create?topic={t}"), if made { "200" } else { "503" })
            }
            1 => {
                let made = self.model.make(now, topic, Some(channel), None);
                let request = format!("POST /channel/create?topic={t}&channel={c}");
                (request, if made { "200" } else { "503" })
            }
            2 => {
                self.model.delete(topic);
                (format!("POST /topic/delete?topic={t}"), "200")
            }
            3 => {
                let key = (topic.to_owned(), channel.to_owned());
                let had = self.model.channels.remove(&key).is_some();
                let request = format!("POST /channel/delete?topic={t}&channel={c}");
                (request, if had { "200" } else { "404" })
            }
            _ => {
                let (node, meant) = (self.random.below(3), 2 + self.random.below(2));
                for client in 0..CLIENTS {
                    let is_meant = port(client) == meant
                        && matches!(
                            self.model.clients[client],
                            Client::Here { node: is, .. } if is == node
                        );
                    let has = self.model.topics.get(topic);
                    if is_meant && has.is_some_and(|key| key.producers.contains(&client)) {
                        self.model.buried.insert((topic.to_owned(), client), now);
                    }
                }
                (format!("POST /topic/tombstone?topic={t}&node=n{node}:{meant}"), "200")
            }
        };
        assert_eq!(self.ask(&request).0, expected, "{request}");
    }

    /// Advances the time; sessions get their ticks when they are due.
    fn pass(&mut self) {
        let seconds = [1, 9, 46, 150, 301][self.random.below(5) as usize];
        let until = self.now.after(Span::from_secs(seconds));
        loop {
            let deadline =
                |world: &mut Self, client| world.directory.client(client).unwrap().deadline();
            let next = (0..CLIENTS).map(|client| deadline(self, client)).min().unwrap();
            self.now = next.min(until).max(self.now);
            let now = self.now;
            let last_seen = |client: &usize| match self.model.clients[*client] {
                Client::Here { last_seen, number, .. } => (last_seen, number),
                _ => (Instant::NEVER, 0),
            };
            let silent = (0..CLIENTS).min_by_key(last_seen).filter(|client| {
                self.model.turned_away && last_seen(client).0.after(REPLACE) <= now
            });
            for client in 0..CLIENTS {
                let mut session = self.directory.client(client).unwrap();
                session.tick(now);
                let is_over = match self.model.clients[client] {
                    Client::Gone => false,
                    Client::Greeting { until } => until <= now,
                    Client::Here { last_seen, .. } => {
                        last_seen.after(IDLE) <= now || Some(client) == silent
                    }
                };
                assert_eq!(session.link() == Link::Close, is_over, "{:?}", self.model.clients);
                if is_over {
                    session.closed(now, Closed::Local);
                    self.model.leave(now, client);
                }
            }
            if next > until {
                return;
            }
        }
    }

    fn check(&mut self) {
        let now = self.now;
        let topics = self.ask("GET /topics").1;
        let model = &self.model;
        assert_eq!(strings(&topics), model.topics.keys().cloned().collect::<BTreeSet<_>>());
        for topic in NAMES {
            let name = TopicName::new(topic).unwrap();
            for client in 0..CLIENTS {
                let has = |key: &Key| key.producers.contains(&client);
                let has = self.model.topics.get(topic).is_some_and(has);
                assert_eq!(self.directory.has_topic(client, &name), has);
            }
            // A lookup counts as use.
            if self.random.one_in(4) {
                self.look_up(topic);
            }
        }
        let channels: BTreeSet<_> = self.directory.channels().map(pair).collect();
        assert_eq!(channels, self.model.channels.keys().cloned().collect());
        let model = &self.model;
        for (name, count) in self.directory.topics() {
            let nodes = model.topics[name.as_str()].producers.iter().map(|client| {
                let Client::Here { node, .. } = model.clients[*client] else {
                    panic!("a producer is gone")
                };
                node
            });
            assert_eq!(count, nodes.collect::<BTreeSet<_>>().len(), "of {name}");
        }
        let nodes = self.ask("GET /nodes").1;
        let model = &self.model;
        assert_eq!(shown(&nodes), ports(model.listed(now, 0..CLIENTS)));
        let mut buried = 0;
        for (name, key) in &model.topics {
            let listed = |client: &&usize| !model.is_buried(now, name, **client);
            let all = model.listed(now, key.producers.iter().copied());
            let seen = model.listed(now, key.producers.iter().filter(listed).copied());
            buried += all.len() - seen.len();
        }
        assert_eq!(nodes.matches("true").count(), buried, "{nodes}");
        let topics = model.topics.values();
        let topics = topics.map(|key| model.listed(now, key.producers.iter().copied()).len());
        assert_eq!(nodes.matches("false").count() + buried, topics.sum::<usize>(), "{nodes}");
        let counters = self.directory.counters();
        let model = &self.model;
        assert_eq!((counters.full, counters.collected), (model.full, model.collected));
        assert_eq!((counters.given_back, counters.replaced), (model.given_back, model.replaced));
    }

    fn look_up(&mut self, topic: &str) {
        let now = self.now;
        let escaped = topic.replace('#', "%23");
        let (status, body) = self.ask(&format!("GET /lookup?topic={escaped}"));
        let model = &mut self.model;
        let Some(key) = model.topics.get_mut(topic) else {
            assert_eq!(status, "404");
            return;
        };
        key.touch(now);
        let of_topic =
            |((is, name), _): (&(String, String), _)| (is == topic).then(|| name.clone());
        let channels: BTreeSet<_> = model.channels.iter().filter_map(of_topic).collect();
        let producers = model.topics[topic].producers.iter();
        let listed = producers.filter(|client| !model.is_buried(now, topic, **client));
        let listed = ports(model.listed(now, listed.copied()));
        let (front, back) = body.split_once("],\"producers\":").unwrap();
        assert_eq!(strings(&format!("{front}]}}")), channels, "{body}");
        assert_eq!(shown(back.strip_suffix('}').unwrap()), listed, "{topic} {:?}", self.model);
    }
}

/// Returns a client's HTTP port, which some clients share.
fn port(client: usize) -> u32 {
    2 + client as u32 % 2
}

/// Returns the HTTP ports of the listed clients by the names of their nodes.
fn ports(listed: BTreeMap<u32, usize>) -> BTreeMap<String, u32> {
    listed.into_iter().map(|(node, client)| (format!("n{node}"), port(client))).collect()
}

fn pair((topic, channel): (&TopicName, &ChannelName)) -> (String, String) {
    (topic.to_string(), channel.to_string())
}

/// Returns all strings that are not keys.
fn strings(json: &str) -> BTreeSet<String> {
    let mut strings = BTreeSet::new();
    each(json, |_, text| assert!(strings.insert(text.to_owned()), "twice: {json}"));
    strings
}

/// Returns the HTTP ports of the nodes in an answer by their names.
fn shown(json: &str) -> BTreeMap<String, u32> {
    let nodes = json.split("\"broadcast_address\":\"").skip(1).map(|rest| {
        let (name, rest) = rest.split_once('"').unwrap();
        let port = rest.split("\"http_port\":").nth(1).unwrap();
        (name.to_owned(), port[..1].parse().unwrap())
    });
    let nodes: Vec<_> = nodes.collect();
    let by_name: BTreeMap<_, _> = nodes.iter().cloned().collect();
    assert_eq!(by_name.len(), nodes.len(), "twice: {json}");
    by_name
}

fn each(json: &str, mut then: impl FnMut(&str, &str)) {
    let mut scanner = Scanner::<128>::new();
    let (mut input, mut key) = (json.as_bytes(), String::new());
    while let Some(token) = scanner.next(&mut input).unwrap() {
        match token {
            Token::Key(name) => key = name.as_str().unwrap().to_owned(),
            Token::String(text) => then(&key, text.as_str().unwrap()),
            _ => {}
        }
    }
    assert!(scanner.finished(), "{json}");
}

/// Offers bytes while the session makes progress; a write takes `write` bytes. Returns the answers.
fn exchange(session: &mut dyn Session, now: Instant, mut bytes: &[u8], write: usize) -> Vec<u8> {
    let mut answers = Vec::new();
    loop {
        let taken = session.take(now, bytes);
        bytes = &bytes[taken..];
        let lent = session.transmit(now);
        let mut piece = [lent.head, lent.body].concat();
        piece.truncate(write);
        session.sent(now, piece.len());
        if taken == 0 && piece.is_empty() {
            assert!(bytes.is_empty(), "held without a reason");
            return answers;
        }
        answers.extend(piece);
    }
}

#[test]
fn an_nsqlookupd_agrees_with_the_model() {
    let (mut full, mut collected, mut replaced, mut timed_out) = (0, 0, 0, 0);
    let mut given_back = 0;
    for seed in 0..seeds(40) {
        let config = Box::leak(Box::new(Config {
            inactive_timeout: INACTIVE,
            tombstone_lifetime: LIFETIME,
            idle_timeout: IDLE,
            greeting_timeout: GREETING,
            empty_timeout: EMPTY,
            topics_per_node: TOPICS_OF_ONE as u16,
            channels_per_node: CHANNELS_OF_ONE as u16,
            ..Config::new()
        }));
        let storage = Box::leak(Box::new(Storage::<CLIENTS, TOPICS, CHANNELS, 1>::new()));
        let mut world = World {
            directory: Nsqlookupd::new(config, storage),
            model: Model::new(),
            now: Instant::from_millis(5),
            random: Random::new(seed),
        };
        for _ in 0..300 {
            world.step();
        }
        world.check();
        let counters = world.directory.counters();
        full += counters.full;
        collected += counters.collected;
        replaced += counters.replaced;
        given_back += counters.given_back;
        timed_out += counters.timed_out;
    }
    println!(
        "full {full}, collected {collected}, given back {given_back}, replaced {replaced}, timed \
         out {timed_out}"
    );
    let few = seeds(40);
    assert!(full > few && collected > few / 2 && replaced > few / 2 && timed_out > few / 2);
    assert!(given_back > few);
}
