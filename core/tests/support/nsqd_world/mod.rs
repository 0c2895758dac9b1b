//! An nsqd and a model of it without bounds, with the same random actions: publishing, subscribing,
//! answering, pausing, deleting and disconnecting, over streams that are split anywhere. After
//! every step all visible state of the nsqd must be that of the model.
//!
//! [`Dice`] choose the actions: a seeded generator here, a fuzzer's bytes in the fuzz targets,
//! which share this file.

mod act;
mod check;
mod model;

use std::collections::{BTreeMap, VecDeque};

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{
    ClientSession, Config, Full, Nsqd, NsqdError, PublishError, PublishOptions, Storage,
    message_cost,
};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};

use model::{Channel, Model, Subscriber, defer_until};

/// The source of random decisions.
pub(crate) trait Dice {
    /// Returns a number below `n`.
    fn below(&mut self, n: u32) -> u32;

    /// Returns true with probability 1 in `n`.
    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// Returns whether the source is exhausted.
    fn is_over(&self) -> bool;

    /// Reports features of the state; a fuzzer continues from inputs with new ones.
    fn note(&mut self, features: &[usize]) {
        let _ = features;
    }
}

const TOPICS: usize = 2;
const CHANNELS: usize = 3;
const CLIENTS: usize = 4;
const IN_FLIGHT: usize = 3;
const LANES: usize = 2;
const BLOCKS: usize = 40;
const MSG_TIMEOUT: u64 = 2_000_000;
const MAX_MSG_TIMEOUT: u64 = 5_000_000;
const BODY_TIMEOUT: u64 = 3_000_000;
/// The blocks that no client can take, and that clients can announce together: 12 and 30 percent.
const RESERVE: usize = 4;
const ANNOUNCED: usize = 12;
/// The blocks of all unconsumed topics together, and of one: 50 percent, and 7/8 of that.
const UNCONSUMED: usize = 20;
const UNCONSUMED_EACH: usize = 18;
/// The age from which messages without a channel may expire, in units of 65.536 ms.
const OLD: u64 = 20_000_000 >> 16;

const TOPIC_NAMES: [&str; 3] = ["t", "u", "x#ephemeral"];
const CHANNEL_NAMES: [&str; 3] = ["a", "b", "e#ephemeral"];

fn topic_name(at: usize) -> TopicName {
    TopicName::new(TOPIC_NAMES[at]).unwrap()
}

fn channel_name(at: usize) -> ChannelName {
    ChannelName::new(CHANNEL_NAMES[at]).unwrap()
}

fn config(full: Full) -> Config<'static> {
    let mut config = Config {
        full,
        boot: 7,
        heartbeat: Span::from_secs(5),
        msg_timeout: Span::from_secs(2),
        publish_wait: Span::from_millis(500),
        body_timeout: Span::from_secs(3),
        unconsumed_age: Span::from_secs(20),
        channels_per_topic: LANES as u8,
        ..Config::new()
    };
    config.limits.max_msg_timeout_ms = 5000;
    config.limits.max_req_timeout_ms = 10_000;
    config
}

/// Returns the blocks of a body of `len` bytes: a head of 22 bytes, 11 for each lane, 64 in a
/// block; in a large nsqd, whose links have 4 bytes, 25 and 15.
fn blocks(len: usize) -> usize {
    let (fixed, lane) = if message_cost(1, LANES as u8) == 66 { (22, 11) } else { (25, 15) };
    (fixed + lane * LANES + len).div_ceil(64)
}

/// Returns whether a batch is larger than what clients can announce together.
fn never_fits(mpub: &[u8]) -> bool {
    let line = mpub.iter().position(|byte| *byte == b'\n').unwrap();
    let mut rest = &mpub[line + 9..];
    let mut sum = 0;
    while let Some((len, after)) = rest.split_first_chunk() {
        let len = u32::from_be_bytes(*len) as usize;
        sum += blocks(len);
        rest = &after[len..];
    }
    sum > ANNOUNCED
}

fn frame(kind: u8, data: &str) -> Vec<u8> {
    let mut frame = (data.len() as u32 + 4).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, kind]);
    frame.extend(data.as_bytes());
    frame
}

/// The effect of a command once all its bytes were taken.
#[derive(Debug, Clone)]
enum Effect {
    None,
    Sub { topic: usize, channel: usize },
    Rdy(usize),
    Fin(u64),
    Req(u64, u64),
    Touch(u64),
    Cls,
    Publish { topic: usize, bodies: Vec<Vec<u8>>, defer: u64 },
}

struct Connection {
    pending: Option<(Vec<u8>, usize, Effect)>,
    /// The received part of a frame.
    got: Vec<u8>,
    offered: bool,
    sees: Vec<u64>,
    subscribed: bool,
    sent_cls: bool,
    reads: bool,
    /// The time at which the first bytes of the pending command were taken.
    begun: u64,
}

impl Connection {
    fn new() -> Self {
        Self {
            pending: Some((b"  V2".to_vec(), 0, Effect::None)),
            got: Vec::new(),
            offered: false,
            sees: Vec::new(),
            subscribed: false,
            sent_cls: false,
            reads: true,
            begun: 0,
        }
    }
}

struct World<'n, D> {
    random: D,
    node: Nsqd<'n>,
    model: Model,
    connections: Vec<Connection>,
    now: u64,
    delivered: u64,
    holds: u64,
    /// The application names the first `named` topics and channels; others may be evicted.
    named: usize,
    /// Clients come and go, and hardly any sends commands or sets RDY.
    crowd: bool,
}

impl<'n, D: Dice> World<'n, D> {
    fn new(mut random: D, full: Full, node: Nsqd<'n>) -> Self {
        let named = random.below(4) as usize;
        let crowd = random.one_in(3);
        Self {
            random,
            node,
            model: Model::new(full),
            connections: (0..CLIENTS).map(|_| Connection::new()).collect(),
            // Due times of 32 bits wrap around soon.
            now: ((1 << 32) - 20_000) * 1000,
            delivered: 0,
            holds: 0,
            named,
            crowd,
        }
    }

    fn below(&mut self, n: u32) -> usize {
        self.random.below(n) as usize
    }

    /// Reads the present topics and channels of the nsqd.
    fn read_tables(&mut self) {
        let at = |names: &[&str], name: &str| names.iter().position(|it| *it == name).unwrap();
        let mut there = Vec::new();
        for topic in self.node.topics() {
            let name = at(&TOPIC_NAMES, topic.name.as_str());
            there.push((name, None));
            let channels = self.node.channels(topic.name);
            there.extend(channels.map(|it| (name, Some(at(&CHANNEL_NAMES, it.name.as_str())))));
        }
        self.model.there = there;
    }

    fn instant(&self) -> Instant {
        Instant::from_micros(self.now)
    }

    fn client(&mut self, client: usize) -> ClientSession<'_, 'n> {
        self.node.client(client).unwrap()
    }

    /// Updates the model from the session's link.
    fn follow(&mut self, client: usize) {
        let link = self.client(client).link();
        let subscriber = &self.model.subscribers[client];
        if subscriber.open && link == Link::Close && !subscriber.closing {
            self.model.leave(self.now, client);
        }
        assert_eq!(self.model.subscribers[client].closing, link == Link::Close, "client {client}");
        if link == Link::Close && !self.model.subscribers[client].refused {
            // If the client's channel was deleted, the tick closes the session.
            let now = self.instant();
            self.client(client).tick(now);
            self.model.subscribers[client].writing = None;
        }
    }

    fn hang_up(&mut self, client: usize, why: Closed) {
        let now = self.instant();
        self.client(client).closed(now, why);
        if !self.model.subscribers[client].closing {
            self.model.leave(self.now, client);
        }
        self.model.subscribers[client] = Subscriber::default();
    }

    fn connect(&mut self, client: usize) {
        let now = self.instant();
        self.client(client).open(now);
        self.model.subscribers[client] = Subscriber { open: true, ..Subscriber::default() };
        self.connections[client] = Connection::new();
        self.connections[client].reads = !self.random.one_in(8);
    }

    /// Sends a part of a client's pending command.
    fn send_some(&mut self, client: usize) {
        let Some((bytes, at, effect)) = self.connections[client].pending.clone() else { return };
        let rest = bytes.len() - at;
        let most = if self.random.one_in(2) { rest } else { 1 + self.below(rest as u32) };
        let now = self.instant();
        let before = self.node.counters();
        let free = |node: &Nsqd<'_>| node.store().free - node.store().promised;
        let had = free(&self.node);
        let taken = self.client(client).take(now, &bytes[at..at + most]);
        assert!(taken <= most);
        if at == 0 && taken > 0 {
            self.connections[client].begun = self.now;
        }
        let has = free(&self.node);
        if self.model.full != Full::DropOldest && has < had {
            assert!(has as usize >= RESERVE, "a client took blocks of the reserve");
        }
        if let Effect::Publish { topic, bodies, .. } = &effect
            && bytes[0] != b'M'
            && self.model.full != Full::DropOldest
            && (most == rest && rest >= bodies[0].len() + 4 && taken < most)
            && self.model.subscribers[client].expected.is_empty()
        {
            let need = blocks(bodies[0].len());
            let has_share = self.model.has_share(self.now, *topic, need);
            let has_room = need + RESERVE <= had as usize;
            assert!(!has_room || !has_share, "a message that has completely arrived does not wait");
        }
        if self.model.subscribers[client].closing {
            assert_eq!(taken, most, "a closing session discards all bytes");
            self.connections[client].pending = None;
            return self.follow(client);
        }
        if taken < most {
            self.holds += 1;
        }
        // A client's publishing may make the nsqd drop messages: the model drops the same.
        let after = self.node.counters();
        for _ in before.expired..after.expired {
            self.model.expire_held(self.now);
        }
        for _ in before.dropped..after.dropped {
            assert!(self.model.drop_oldest(false), "had {had}");
        }
        let done = at + taken == bytes.len();
        if done {
            self.connections[client].pending = None;
            self.apply(client, effect, &bytes, after.accepted - before.accepted);
        } else {
            self.connections[client].pending = Some((bytes, at + taken, effect));
        }
        self.follow_refusal(client, false);
    }

    /// Expects the refusal of a client whose session closed while it waited for room or for bytes.
    fn follow_refusal(&mut self, client: usize, late: bool) {
        let closing = self.client(client).link() == Link::Close;
        let subscriber = &mut self.model.subscribers[client];
        if closing
            && subscriber.open
            && !subscriber.closing
            && let Some((bytes, ..)) = &self.connections[client].pending
        {
            subscriber.refused_publishing(bytes, late);
        }
        self.follow(client);
    }

    fn apply(&mut self, client: usize, effect: Effect, bytes: &[u8], accepted: u64) {
        self.read_tables();
        let now = self.now;
        let model = &mut self.model;
        let failed = |verb: &str, number: u64, why: &str| {
            frame(1, &format!("E_{verb}_FAILED {verb} 00000007{number:08x} failed {why}"))
        };
        match effect {
            Effect::None => {}
            Effect::Sub { topic, channel } => match model.channel_of(now, topic, channel) {
                Ok(at) => {
                    let id = model.channels[at].id;
                    model.subscribers[client].channel = Some(id);
                    model.subscribers[client].expected.push_back(frame(0, "OK"));
                    self.connections[client].subscribed = true;
                }
                Err(why) => {
                    let text = format!("E_SUB_FAILED SUB failed {why}");
                    model.subscribers[client].expected.push_back(frame(1, &text));
                    model.subscribers[client].refused = true;
                }
            },
            Effect::Rdy(count) => {
                if !self.connections[client].sent_cls {
                    model.subscribers[client].ready = count;
                }
            }
            Effect::Fin(number) => match model.flight(client, number) {
                Ok((at, entry)) => {
                    model.channels[at].entries[entry] = None;
                    model.answer(number);
                    if !model.waits(number) {
                        let topic = model.channels[at].topic;
                        let topic = model.topics.iter_mut().find(|it| it.id == topic).unwrap();
                        topic.finished = Some(now);
                    }
                    model.subscribers[client].finished += 1;
                    model.finished += 1;
                }
                Err(why) => {
                    model.subscribers[client].expected.push_back(failed("FIN", number, why));
                }
            },
            Effect::Req(number, delay) => match model.flight(client, number) {
                Ok((at, entry)) => {
                    let channel = &mut model.channels[at];
                    channel.entries[entry] = None;
                    channel.requeues += 1;
                    if delay == 0 {
                        channel.requeued.push_back(number);
                    } else {
                        // Longer delays are limited.
                        defer_until(channel, number, now + delay.min(10_000) * 1000);
                        model.answer(number);
                    }
                    model.subscribers[client].requeued += 1;
                }
                Err(why) => {
                    model.subscribers[client].expected.push_back(failed("REQ", number, why));
                }
            },
            Effect::Touch(number) => match model.flight(client, number) {
                Ok((at, entry)) => {
                    let flight = model.channels[at].entries[entry].as_mut().unwrap();
                    let last = flight.delivered + MAX_MSG_TIMEOUT;
                    flight.deadline = (now + MSG_TIMEOUT).min(last);
                }
                Err(why) => {
                    model.subscribers[client].expected.push_back(failed("TOUCH", number, why));
                }
            },
            Effect::Cls => {
                self.connections[client].sent_cls = true;
                model.subscribers[client].ready = 0;
                model.subscribers[client].expected.push_back(frame(0, "CLOSE_WAIT"));
            }
            Effect::Publish { topic, bodies, defer } => {
                assert!(accepted == bodies.len() as u64 || accepted == 0);
                if accepted == 0 {
                    // The table of topics was full when the body was complete.
                    model.subscribers[client].refused_publishing(bytes, false);
                    return;
                }
                let count = bodies.len() as u32;
                let need = bodies.iter().map(|body| blocks(body.len())).sum();
                assert!(
                    model.has_share(now, topic, need),
                    "the share of unconsumed topics is exceeded"
                );
                let at = model.publish(now, topic, bodies, defer * 1000, false);
                let id = model.topics[at].id;
                let subscriber = &mut model.subscribers[client];
                match subscriber.pubs.iter_mut().find(|(topic, _)| *topic == id) {
                    Some((_, n)) => *n += count,
                    None => subscriber.pubs.push((id, count)),
                }
                subscriber.expected.push_back(frame(0, "OK"));
            }
        }
    }

    /// Reads some of a client's bytes. Returns false if there are none.
    fn read_some(&mut self, client: usize, all: bool) -> bool {
        let now = self.instant();
        let mut session = self.client(client);
        let transmit = session.transmit(now);
        let mut bytes = transmit.head.to_vec();
        bytes.extend(transmit.body);
        self.follow(client);
        if bytes.is_empty() {
            return false;
        }
        let connection = &mut self.connections[client];
        if connection.got.is_empty() && !connection.offered && bytes[7] == 2 {
            connection.offered = true;
            let id = std::str::from_utf8(&bytes[18..34]).unwrap();
            assert_eq!(&id[..8], "00000007");
            let number = u64::from_str_radix(&id[8..], 16).unwrap();
            let attempts = u16::from_be_bytes([bytes[16], bytes[17]]);
            let free = (self.node.store().free - self.node.store().promised) as usize;
            self.model.deliver(self.now, client, number, attempts, free);
            connection.sees.push(number);
            self.delivered += 1;
        }
        let n = if all || self.random.one_in(2) {
            bytes.len()
        } else {
            self.random.below(bytes.len() as u32 + 1) as usize
        };
        self.client(client).sent(now, n);
        self.connections[client].got.extend(&bytes[..n]);
        self.read_frames(client);
        true
    }

    fn read_frames(&mut self, client: usize) {
        let connection = &mut self.connections[client];
        loop {
            let Some((size, rest)) = connection.got.split_first_chunk() else { return };
            let size = u32::from_be_bytes(*size) as usize;
            if rest.len() < size {
                return;
            }
            let frame: Vec<u8> = connection.got.drain(..4 + size).collect();
            let subscriber = &mut self.model.subscribers[client];
            if frame[7] == 2 {
                connection.offered = false;
                let number = subscriber.writing.take().unwrap();
                let body = &self.model.bodies[&number];
                assert_eq!(&frame[34..], &body.bytes[..]);
                assert_eq!(frame[8..16], body.timestamp.to_be_bytes());
            } else if &frame[8..] == b"_heartbeat_" {
            } else {
                let expected = subscriber.expected.pop_front().expect("a response");
                let text = String::from_utf8_lossy;
                let starts = |start: &str| text(&frame[8..]).starts_with(start);
                let is_same = match expected.strip_suffix(b"*") {
                    Some(start) => text(start).split("*|").any(starts),
                    None => frame == expected,
                };
                assert!(is_same, "client {client}: {:?}, not {:?}", text(&frame), text(&expected));
            }
        }
    }

    /// Advances the time, with the ticks of sessions.
    fn wait(&mut self, micros: u64) {
        self.now += micros;
        let now = self.instant();
        self.node.tick(now);
        self.model.release_due(self.now);
        for client in 0..CLIENTS {
            let before = self.node.counters();
            let mut session = self.client(client);
            if session.deadline() <= now && session.link() == Link::Up {
                session.tick(now);
                self.model.expire(self.now, client);
                // A session that waited for room may have got it.
                for _ in before.expired..self.node.counters().expired {
                    self.model.expire_held(self.now);
                }
                for _ in before.dropped..self.node.counters().dropped {
                    assert!(self.model.drop_oldest(false));
                }
                let late = self.node.counters().body_timeouts > before.body_timeouts;
                let waited = self.now - self.connections[client].begun;
                assert!(!late || waited >= BODY_TIMEOUT, "a body timed out too early");
                self.follow_refusal(client, late);
            }
            if let Some((bytes, at, Effect::Publish { .. })) = &self.connections[client].pending
                && bytes[..*at].contains(&b'\n')
                && (self.model.subscribers[client].open && !self.model.subscribers[client].closing)
            {
                let most = Instant::from_micros(self.now + BODY_TIMEOUT);
                assert!(self.client(client).deadline() <= most, "a body has no deadline");
            }
        }
    }

    fn step(&mut self) {
        let client = self.below(CLIENTS as u32);
        let open = self.model.subscribers[client].open;
        match self.below(40) {
            0..=2 => self.publish(),
            3 if self.crowd || self.random.one_in(4) => self.administer(),
            4 => {
                let micros = match self.below(4) {
                    // Clients are silent and channels unused for too long.
                    0 if self.random.one_in(if self.crowd { 2 } else { 16 }) => {
                        59_000_000 + self.random.below(3_000_000)
                    }
                    0 => self.random.below(5_000_000),
                    _ => self.random.below(300_000),
                };
                self.wait(micros.into());
            }
            5..=9 if open && self.crowd && self.random.one_in(4) => {
                self.hang_up(client, Closed::Peer);
            }
            5 if self.random.one_in(12) && open => self.hang_up(client, Closed::Peer),
            6 if open => self.connections[client].reads = !self.random.one_in(4),
            _ if !open => self.connect(client),
            7..=24 => {
                if self.connections[client].pending.is_none() {
                    self.choose_command(client);
                }
                self.send_some(client);
            }
            _ => {
                if self.connections[client].reads {
                    self.read_some(client, false);
                }
            }
        }
        for client in 0..CLIENTS {
            self.follow(client);
            if self.model.subscribers[client].closing && self.random.one_in(3) {
                self.hang_up(client, Closed::Local);
            }
        }
        self.check();
        let model = &self.model;
        let waiting: usize = model.channels.iter().map(Channel::waiting).sum();
        let flying: usize = model.channels.iter().map(Channel::in_flight).sum();
        let (topics, channels) = (model.topics.len(), model.channels.len());
        let closing = model.subscribers.iter().filter(|subscriber| subscriber.closing).count();
        let used = model.used() / 8;
        self.random.note(&[topics, channels, waiting.min(4), flying, closing, used]);
    }
}

/// Runs up to `steps` steps. Returns how many messages were delivered, and how often a client was
/// held.
pub(crate) fn live(dice: impl Dice, full: Full, steps: u32) -> (u64, u64) {
    let config = config(full);
    let mut storage = Storage::<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>::new();
    let mut store = vec![0x55; BLOCKS * message_cost(1, LANES as u8) + 13];
    let node = Nsqd::new(&config, &mut storage, &mut store).unwrap();
    let mut world = World::new(dice, full, node);
    for step in 0..steps {
        if world.random.is_over() {
            break;
        }
        world.step();
        if step % 64 == 0 {
            world.drain();
        }
    }
    world.finish();
    (world.delivered, world.holds)
}
