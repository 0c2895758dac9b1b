//! A node and a model of it without bounds, which live the same life of publishing, subscribing,
//! answering, pausing, deleting and hanging up, over streams that are split anywhere. After every
//! step all that can be seen of the node is what the model says.
//!
//! What they do is thrown with [`Dice`]: seeded ones here, a fuzzer's bytes in the fuzz targets,
//! which share this file.

use std::collections::{BTreeMap, VecDeque};

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{
    ClientSession, Config, Full, Nsqd, NsqdError, PublishError, PublishOptions, Storage,
};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};

/// What decides.
pub(crate) trait Dice {
    /// A number below `n`.
    fn below(&mut self, n: u32) -> u32;

    /// True once in `n` times.
    fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }

    /// Nothing more is to be decided.
    fn is_over(&self) -> bool;

    /// Something was seen; a fuzzer goes on from where it saw something new.
    fn note(&mut self, what: &[usize]) {
        let _ = what;
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
/// What no client can take, and what clients can announce together: 12 and 30 percent.
const RESERVE: usize = 4;
const ANNOUNCED: usize = 12;
/// What topics that nobody consumes can have together, and one of them: 50 percent, and 7/8 of that.
const UNCONSUMED: usize = 20;
const UNCONSUMED_EACH: usize = 18;
/// From which age on what waits without a channel may go, in units of 65.536 ms.
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

/// What a body of that length takes, counted by hand: 22 bytes, 11 for each lane, 64 a block.
fn blocks(len: usize) -> usize {
    (22 + 11 * LANES + len).div_ceil(64)
}

/// Whether clients cannot announce that much together.
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

#[derive(Debug, Clone)]
struct Flight {
    number: u64,
    owner: usize,
    deadline: u64,
    delivered: u64,
}

#[derive(Debug)]
struct Channel {
    id: u64,
    topic: u64,
    name: usize,
    paused: bool,
    queue: VecDeque<u64>,
    requeued: VecDeque<u64>,
    /// When due, and which, in order.
    deferred: Vec<(u64, u64)>,
    entries: [Option<Flight>; IN_FLIGHT],
    attempts: BTreeMap<u64, u16>,
    requeued_next: bool,
    messages: u64,
    requeues: u64,
    timeouts: u64,
    dropped: u64,
    /// The application named it.
    named: bool,
    /// It gave somebody a message.
    delivered: bool,
    used: u64,
}

impl Channel {
    fn in_flight(&self) -> usize {
        self.entries.iter().flatten().count()
    }

    fn holds(&self, number: u64) -> bool {
        self.queue.contains(&number)
            || self.requeued.contains(&number)
            || self.deferred.iter().any(|(_, n)| *n == number)
            || self.has_in_flight(number)
    }

    fn has_in_flight(&self, number: u64) -> bool {
        self.entries.iter().flatten().any(|flight| flight.number == number)
    }

    fn waiting(&self) -> usize {
        self.queue.len() + self.requeued.len()
    }
}

#[derive(Debug)]
struct Topic {
    id: u64,
    name: usize,
    paused: bool,
    held: VecDeque<(u64, u64)>,
    messages: u64,
    bytes: u64,
    dropped: u64,
    /// When one of its messages was finished in all channels.
    finished: Option<u64>,
    named: bool,
    used: u64,
}

#[derive(Debug, Default, Clone)]
struct Seat {
    open: bool,
    channel: Option<u64>,
    closing: bool,
    /// It was told why: what is being written is written to its end.
    refused: bool,
    ready: usize,
    delivered: u64,
    finished: u64,
    requeued: u64,
    pubs: Vec<(u64, u32)>,
    /// The message that is being written.
    writing: Option<u64>,
    expected: VecDeque<Vec<u8>>,
}

impl Seat {
    /// It published, and is told that there is no room, for the message or its topic, or that the
    /// rest did not come.
    fn refused_publishing(&mut self, bytes: &[u8], late: bool) {
        let line = String::from_utf8_lossy(bytes);
        let verb = line.split(' ').next().unwrap();
        if ["PUB", "MPUB", "DPUB"].contains(&verb) {
            let text = match verb {
                _ if late => "E_BAD_*".into(),
                // Unless it waited in vain for room for some of it, or for its topic.
                "MPUB" if never_fits(bytes) => {
                    "E_BAD_BODY MPUB *|E_MPUB_FAILED MPUB failed no room*".into()
                }
                _ => format!("E_{verb}_FAILED {verb} failed no room*"),
            };
            self.expected.push_back(text.into_bytes());
            self.refused = true;
        }
    }
}

#[derive(Debug, Clone)]
struct Body {
    bytes: Vec<u8>,
    timestamp: i64,
    /// The application's.
    own: bool,
    /// Somebody has finished it, or sent it back for later.
    answered: bool,
}

/// What a node should be.
struct Model {
    /// Messages that nobody consumed for long.
    expired: u64,
    full: Full,
    next: u64,
    id: u64,
    topics: Vec<Topic>,
    channels: Vec<Channel>,
    seats: Vec<Seat>,
    bodies: BTreeMap<u64, Body>,
    finished: u64,
    dropped: u64,
    abandoned: u64,
    given_back: (u32, u32),
    /// The topics and channels that the node has after what it did last: of several that may be given
    /// back it chooses.
    there: Vec<(usize, Option<usize>)>,
}

/// In the node's units of time: what is not used for longer goes first.
fn units(micros: u64) -> u64 {
    micros >> 16
}

/// Whether waiting messages go with it, and since when it is not used: the least goes first.
type Need = (bool, u64);

impl Model {
    fn new(full: Full) -> Self {
        Self {
            expired: 0,
            full,
            next: 0,
            id: 0,
            topics: Vec::new(),
            channels: Vec::new(),
            seats: vec![Seat::default(); CLIENTS],
            bodies: BTreeMap::new(),
            finished: 0,
            dropped: 0,
            abandoned: 0,
            given_back: (0, 0),
            there: Vec::new(),
        }
    }

    /// What is lost with a channel, if it may be given back at all.
    fn channel_need(&self, now: u64, channel: &Channel) -> Option<Need> {
        let topic = self.topics.iter().find(|topic| topic.id == channel.topic).unwrap();
        let is_served = self.seats.iter().any(|seat| seat.channel == Some(channel.id));
        // 60 s, and a bit.
        let is_old = units(now) - units(channel.used) > units(60_000_000);
        let may = !channel.delivered && !channel.named && !channel.paused && !is_served;
        let waiting = channel.waiting() + channel.deferred.len() > 0;
        (may && (is_old || topic.messages == 0)).then_some((waiting, units(channel.used)))
    }

    fn topic_need(&self, now: u64, topic: &Topic) -> Option<Need> {
        if topic.named || topic.paused || !topic.held.is_empty() {
            return None;
        }
        let mut waiting = false;
        for channel in self.channels.iter().filter(|channel| channel.topic == topic.id) {
            waiting |= self.channel_need(now, channel)?.0;
        }
        Some((waiting, units(topic.used)))
    }

    fn has_slot_for(&self, now: u64, name: usize) -> bool {
        self.topics.len() < TOPICS
            || self.topics.iter().any(|topic| topic.name == name)
            || self.topics.iter().any(|topic| self.topic_need(now, topic).is_some())
    }

    /// Gives the topic back that the node gave back, which is one that can best be spared.
    fn spare_topic(&mut self, now: u64) -> Option<()> {
        let needs = self.topics.iter().map(|topic| self.topic_need(now, topic));
        let least = needs.flatten().min()?;
        let is_gone = |topic: &Topic| {
            self.topic_need(now, topic) == Some(least) && !self.there.contains(&(topic.name, None))
        };
        let at = self.topics.iter().position(is_gone).expect("the node spares one of the right");
        let id = self.topics[at].id;
        for channel in self.channels.iter().filter(|channel| channel.topic == id) {
            self.abandoned += (channel.waiting() + channel.deferred.len()) as u64;
        }
        self.given_back.0 += 1;
        self.delete_topic(at);
        Some(())
    }

    /// Likewise a channel, of one topic or of all.
    fn spare_channel(&mut self, now: u64, of: Option<u64>, stays: u64) -> Option<()> {
        let is_of = |channel: &&Channel| of.is_none_or(|topic| channel.topic == topic);
        let needs = self.channels.iter().filter(is_of).map(|it| self.channel_need(now, it));
        let least = needs.flatten().min()?;
        let is_gone = |channel: &Channel| {
            let topic = self.topics.iter().find(|topic| topic.id == channel.topic).unwrap().name;
            is_of(&channel)
                && self.channel_need(now, channel) == Some(least)
                && !self.there.contains(&(topic, Some(channel.name)))
        };
        let at = self.channels.iter().position(is_gone).expect("the node spares one of the right");
        let channel = &self.channels[at];
        self.abandoned += (channel.waiting() + channel.deferred.len()) as u64;
        self.given_back.1 += 1;
        if channel.topic == stays {
            self.drop_channel(at)
        } else {
            self.delete_channel(at)
        }
        Some(())
    }

    fn topic(&mut self, name: usize) -> Option<usize> {
        self.topics.iter().position(|topic| topic.name == name)
    }

    fn topic_for(&mut self, now: u64, name: usize, named: bool) -> Option<usize> {
        if let Some(at) = self.topic(name) {
            self.topics[at].used = now;
            self.topics[at].named |= named;
            return Some(at);
        }
        if self.topics.len() == TOPICS {
            self.spare_topic(now)?;
        }
        self.id += 1;
        self.topics.push(Topic {
            id: self.id,
            name,
            paused: false,
            held: VecDeque::new(),
            messages: 0,
            bytes: 0,
            dropped: 0,
            finished: None,
            named,
            used: now,
        });
        Some(self.topics.len() - 1)
    }

    fn channel(&mut self, topic: usize, name: usize) -> Option<usize> {
        let topic = self.topics[topic].id;
        self.channels.iter().position(|channel| channel.topic == topic && channel.name == name)
    }

    fn channel_at(&self, id: u64) -> usize {
        self.channels.iter().position(|channel| channel.id == id).unwrap()
    }

    fn channel_for(
        &mut self,
        now: u64,
        topic: usize,
        name: usize,
        named: bool,
    ) -> Result<usize, &'static str> {
        if let Some(at) = self.channel(topic, name) {
            self.channels[at].named |= named;
            return Ok(at);
        }
        let id = self.topics[topic].id;
        if self.channels.iter().filter(|channel| channel.topic == id).count() == LANES {
            let spared = self.spare_channel(now, Some(id), id);
            spared.ok_or("no room for another channel of this topic")?;
        } else if self.channels.len() == CHANNELS {
            self.spare_channel(now, None, id).ok_or("no room for another channel")?;
        }
        // Another topic may have gone with its channel.
        let topic = self.topics.iter().position(|topic| topic.id == id).unwrap();
        self.id += 1;
        self.channels.push(Channel {
            id: self.id,
            topic: id,
            name,
            paused: false,
            queue: VecDeque::new(),
            requeued: VecDeque::new(),
            deferred: Vec::new(),
            entries: [const { None }; IN_FLIGHT],
            attempts: BTreeMap::new(),
            requeued_next: false,
            messages: 0,
            requeues: 0,
            timeouts: 0,
            dropped: 0,
            named,
            delivered: false,
            used: now,
        });
        self.flow(now, topic);
        Ok(self.channels.len() - 1)
    }

    fn flow(&mut self, now: u64, topic: usize) {
        let id = self.topics[topic].id;
        if self.topics[topic].paused || !self.channels.iter().any(|channel| channel.topic == id) {
            return;
        }
        while let Some((number, defer)) = self.topics[topic].held.pop_front() {
            for channel in self.channels.iter_mut().filter(|channel| channel.topic == id) {
                channel.messages += 1;
                if defer == 0 {
                    channel.queue.push_back(number);
                } else {
                    defer_until(channel, number, now + defer);
                }
            }
        }
    }

    /// What a client subscribes to: a topic and a channel, or neither.
    fn channel_of(&mut self, now: u64, name: usize, channel: usize) -> Result<usize, &'static str> {
        if self.topic(name).is_none() {
            if !self.has_slot_for(now, name) {
                return Err("no room for another topic");
            }
            let may_go = |channel: &Channel| self.channel_need(now, channel).is_some();
            if self.channels.len() == CHANNELS && !self.channels.iter().any(may_go) {
                return Err("no room for another channel");
            }
        }
        let topic = self.topic_for(now, name, false).expect("as it said");
        self.channel_for(now, topic, channel, false)
    }

    fn publish(
        &mut self,
        now: u64,
        name: usize,
        bodies: Vec<Vec<u8>>,
        defer: u64,
        named: bool,
    ) -> usize {
        let topic = self.topic_for(now, name, named).unwrap();
        for bytes in bodies {
            let number = self.next;
            self.next += 1;
            self.topics[topic].held.push_back((number, defer));
            self.topics[topic].messages += 1;
            self.topics[topic].bytes += bytes.len() as u64;
            self.bodies.insert(
                number,
                Body { bytes, timestamp: now as i64 * 1000, own: named, answered: false },
            );
        }
        self.flow(now, topic);
        topic
    }

    fn drop_channel(&mut self, at: usize) {
        let id = self.channels[at].id;
        for seat in self.seats.iter_mut().filter(|seat| seat.channel == Some(id)) {
            seat.channel = None;
            seat.closing = true;
            seat.ready = 0;
        }
        self.channels.remove(at);
    }

    fn delete_channel(&mut self, at: usize) {
        let topic = self.channels[at].topic;
        self.drop_channel(at);
        let at = self.topics.iter().position(|other| other.id == topic).unwrap();
        let is_empty = !self.channels.iter().any(|channel| channel.topic == topic);
        if is_empty && TOPIC_NAMES[self.topics[at].name].ends_with("#ephemeral") {
            self.delete_topic(at);
        }
    }

    fn delete_topic(&mut self, at: usize) {
        let id = self.topics[at].id;
        while let Some(channel) = self.channels.iter().position(|channel| channel.topic == id) {
            self.drop_channel(channel);
        }
        self.topics.remove(at);
        for seat in &mut self.seats {
            seat.pubs.retain(|(topic, _)| *topic != id);
        }
    }

    fn empty_channel(&mut self, at: usize) {
        let channel = &mut self.channels[at];
        channel.queue.clear();
        channel.requeued.clear();
        channel.deferred.clear();
        channel.entries.fill(None);
    }

    fn release_due(&mut self, now: u64) {
        for channel in &mut self.channels {
            while channel.deferred.first().is_some_and(|(due, _)| *due <= now) {
                let (_, number) = channel.deferred.remove(0);
                channel.requeued.push_back(number);
            }
        }
    }

    fn in_flight(&self, client: usize) -> usize {
        let flights = self.channels.iter().flat_map(|channel| channel.entries.iter().flatten());
        flights.filter(|flight| flight.owner == client).count()
    }

    /// Whether a client may have one more of its channel's messages while so many blocks are free.
    fn may_have(&self, client: usize, free_blocks: usize) -> bool {
        let seat = &self.seats[client];
        let Some(id) = seat.channel else { return false };
        let channel = &self.channels[self.channel_at(id)];
        let free = IN_FLIGHT - channel.in_flight();
        let owed = (0..CLIENTS).filter(|other| {
            let seat = &self.seats[*other];
            seat.channel == Some(id) && seat.ready > 0 && self.in_flight(*other) == 0
        });
        let own = self.in_flight(client);
        let flights = channel.entries.iter().flatten().map(|flight| &self.bodies[&flight.number]);
        let theirs: usize =
            flights.filter(|body| body.own).map(|body| blocks(body.bytes.len())).sum();
        let is_bounded = self.full == Full::DropAnswered;
        let leaves_room = !is_bounded || free_blocks > RESERVE || 2 * CLIENTS * theirs < RESERVE;
        if own > 0 && !leaves_room {
            return false;
        }
        !channel.paused && own < seat.ready && free > if own == 0 { 0 } else { owed.count() }
    }

    /// A client is given a message: the right one, rightly.
    fn deliver(&mut self, now: u64, client: usize, number: u64, attempts: u16, free: usize) {
        assert!(self.may_have(client, free), "client {client} may have none");
        let at = self.channel_at(self.seats[client].channel.unwrap());
        let channel = &mut self.channels[at];
        let both = !channel.queue.is_empty() && !channel.requeued.is_empty();
        let requeued = if both { channel.requeued_next } else { !channel.requeued.is_empty() };
        channel.requeued_next = both && !requeued;
        let list = if requeued { &mut channel.requeued } else { &mut channel.queue };
        assert_eq!(list.pop_front(), Some(number));
        let count = channel.attempts.entry(number).or_default();
        *count += 1;
        assert_eq!(*count, attempts);
        channel.delivered = true;
        let entry = channel.entries.iter_mut().find(|entry| entry.is_none()).unwrap();
        *entry =
            Some(Flight { number, owner: client, deadline: now + MSG_TIMEOUT, delivered: now });
        self.seats[client].delivered += 1;
        self.seats[client].writing = Some(number);
    }

    fn flight(&mut self, client: usize, number: u64) -> Result<(usize, usize), &'static str> {
        let Some(id) = self.seats[client].channel else { return Err("ID not in flight") };
        let at = self.channel_at(id);
        let is = |entry: &Option<Flight>| entry.as_ref().is_some_and(|f| f.number == number);
        let entry = self.channels[at].entries.iter().position(is).ok_or("ID not in flight")?;
        if self.channels[at].entries[entry].as_ref().unwrap().owner == client {
            Ok((at, entry))
        } else {
            Err("client does not own message")
        }
    }

    /// Takes back what `which` says, in the order of the entries.
    fn take_back(&mut self, client: usize, which: impl Fn(&Flight) -> bool) -> u64 {
        let Some(id) = self.seats[client].channel else { return 0 };
        let at = self.channel_at(id);
        let Channel { entries, requeued, .. } = &mut self.channels[at];
        let mut count = 0;
        for entry in entries {
            if entry.as_ref().is_some_and(|flight| flight.owner == client && which(flight)) {
                requeued.push_back(entry.take().unwrap().number);
                count += 1;
            }
        }
        count
    }

    fn expire(&mut self, now: u64, client: usize) {
        let count = self.take_back(client, |flight| flight.deadline <= now);
        if let Some(id) = self.seats[client].channel {
            let at = self.channel_at(id);
            self.channels[at].timeouts += count;
        }
    }

    fn leave(&mut self, now: u64, client: usize) {
        self.take_back(client, |_| true);
        let seat = &mut self.seats[client];
        seat.closing = true;
        seat.ready = 0;
        seat.pubs.clear();
        seat.delivered = 0;
        seat.finished = 0;
        seat.requeued = 0;
        let Some(id) = seat.channel.take() else { return };
        let at = self.channel_at(id);
        self.channels[at].used = now;
        let topic = self.channels[at].topic;
        self.topics.iter_mut().find(|other| other.id == topic).unwrap().used = now;
        let is_empty = !self.seats.iter().any(|seat| seat.channel == Some(id));
        if is_empty && CHANNEL_NAMES[self.channels[at].name].ends_with("#ephemeral") {
            self.delete_channel(at);
        }
    }

    fn is_pinned(&self, number: u64) -> bool {
        self.seats.iter().any(|seat| seat.writing == Some(number))
    }

    /// Whether it waits for a channel, or for a channel's clients.
    fn waits(&self, number: u64) -> bool {
        self.topics.iter().any(|topic| topic.held.iter().any(|(held, _)| *held == number))
            || self.channels.iter().any(|channel| channel.holds(number))
    }

    /// Blocks in use.
    fn used(&self) -> usize {
        let is_needed = |number: &&u64| self.waits(**number) || self.is_pinned(**number);
        let needed = self.bodies.keys().filter(is_needed);
        needed.map(|number| blocks(self.bodies[number].bytes.len())).sum()
    }

    /// Blocks that messages of the application take.
    fn own(&self) -> usize {
        let own = self.bodies.iter().filter(|(number, body)| body.own && self.waits(**number));
        own.map(|(_, body)| blocks(body.bytes.len())).sum()
    }

    /// Forgets the bodies that nobody needs.
    fn forget(&mut self) {
        let oldest = self.channels.iter().flat_map(|channel| {
            let flights = channel.entries.iter().flatten().map(|flight| flight.number);
            let deferred = channel.deferred.iter().map(|(_, number)| *number);
            let lists = channel.queue.iter().chain(&channel.requeued).copied();
            lists.chain(flights).chain(deferred)
        });
        let held = self.topics.iter().flat_map(|topic| topic.held.iter().map(|(held, _)| *held));
        let writing = self.seats.iter().filter_map(|seat| seat.writing);
        let oldest = oldest.chain(held).chain(writing).min().unwrap_or(self.next);
        self.bodies.retain(|number, _| *number >= oldest);
        for channel in &mut self.channels {
            channel.attempts.retain(|number, _| *number >= oldest);
        }
    }

    /// A message is finished, or sent back for later.
    fn answer(&mut self, number: u64) {
        if let Some(body) = self.bodies.get_mut(&number) {
            body.answered = true;
        }
    }

    /// Blocks that clients' messages take in a topic.
    fn theirs(&self, topic: &Topic) -> usize {
        let is_in = |number: u64| {
            topic.held.iter().any(|(held, _)| *held == number)
                || self.channels.iter().any(|it| it.topic == topic.id && it.holds(number))
        };
        let theirs = self.bodies.iter().filter(|(number, body)| !body.own && is_in(**number));
        theirs.map(|(_, body)| blocks(body.bytes.len())).sum()
    }

    /// Whether a client may publish so many blocks to a topic, with what is there.
    fn has_share(&self, now: u64, name: usize, blocks: usize) -> bool {
        let is_consumed =
            |it: &&Topic| it.finished.is_some_and(|at| (now >> 16) - (at >> 16) < 60_000_000 >> 16);
        let topic = self.topics.iter().find(|topic| topic.name == name);
        let own = topic.map_or(0, |topic| self.theirs(topic));
        let others = self.topics.iter().filter(|topic| !is_consumed(topic));
        let all: usize = others.map(|topic| self.theirs(topic)).sum();
        self.full == Full::DropOldest
            || topic.as_ref().is_some_and(is_consumed)
            || (own + blocks <= UNCONSUMED_EACH && all + blocks <= UNCONSUMED)
    }

    /// The oldest message goes that waits in a topic without a channel, and is old.
    fn expire_held(&mut self, now: u64) {
        let may_go = |topic: &&Topic| {
            !topic.named && !self.channels.iter().any(|channel| channel.topic == topic.id)
        };
        let first = |topic: &Topic| topic.held.front().map(|(number, _)| *number);
        let oldest = self.topics.iter().filter(may_go).filter_map(first).filter(|number| {
            let at = (self.bodies[number].timestamp / 1000) as u64;
            (now >> 16) - (at >> 16) >= OLD
        });
        let number = oldest.min().expect("one that is old");
        for topic in &mut self.topics {
            if first(topic) == Some(number) {
                topic.held.pop_front();
                topic.dropped += 1;
            }
        }
        self.expired += 1;
    }

    /// Whether a message may be dropped to make room, if nobody is using it.
    fn drops(&self, body: &Body) -> bool {
        match self.full {
            Full::Refuse => false,
            Full::DropAnswered => body.answered,
            Full::DropOldest => true,
        }
    }

    /// Drops the oldest message as the node should: for a client none of the application's that its
    /// reserve has room for.
    fn drop_oldest(&mut self, own: bool) -> bool {
        let may_drop_own = own || self.own() > RESERVE;
        let is_droppable = |number: &u64| {
            let body = &self.bodies[number];
            (may_drop_own || !body.own)
                && self.drops(body)
                && !self.is_pinned(*number)
                && !self.channels.iter().any(|channel| channel.has_in_flight(*number))
        };
        let mut oldest = None;
        for topic in &self.topics {
            let held = topic.held.iter().map(|(held, _)| *held).find(is_droppable);
            let mut listed: Vec<u64> = Vec::new();
            for channel in self.channels.iter().filter(|channel| channel.topic == topic.id) {
                listed.extend(&channel.queue);
            }
            // A topic's list is in the order of publishing.
            listed.sort_unstable();
            let listed = listed.into_iter().find(is_droppable);
            oldest = [oldest, held, listed].into_iter().flatten().min();
        }
        for channel in &self.channels {
            let requeued = channel.requeued.iter().copied().find(is_droppable);
            let deferred = channel.deferred.iter().map(|(_, number)| *number).find(is_droppable);
            oldest = [oldest, requeued, deferred].into_iter().flatten().min();
        }
        let Some(number) = oldest else { return false };
        let mut of = None;
        for channel in &mut self.channels {
            if channel.holds(number) {
                channel.dropped += 1;
                of = Some(channel.topic);
            }
            channel.queue.retain(|other| *other != number);
            channel.requeued.retain(|other| *other != number);
            channel.deferred.retain(|(_, other)| *other != number);
        }
        for topic in &mut self.topics {
            let before = topic.held.len();
            topic.held.retain(|(other, _)| *other != number);
            if topic.held.len() < before || of == Some(topic.id) {
                topic.dropped += 1;
            }
        }
        self.dropped += 1;
        true
    }

    /// Makes room for a message of the application as the node should; false, and nothing changed, if that cannot be.
    fn make_room(&mut self, need: usize) -> bool {
        let free = BLOCKS - self.used();
        let is_droppable = |number: &&u64| {
            let held = |topic: &Topic| topic.held.iter().any(|(held, _)| held == *number);
            let has = |channel: &Channel| channel.has_in_flight(**number);
            self.drops(&self.bodies[*number])
                && (self.topics.iter().any(held) || self.channels.iter().any(|c| c.holds(**number)))
                && !self.is_pinned(**number)
                && !self.channels.iter().any(has)
        };
        let droppable = self.bodies.keys().filter(is_droppable);
        let most: usize = droppable.map(|number| blocks(self.bodies[number].bytes.len())).sum();
        if free < need && (self.full == Full::Refuse || free + most < need) {
            return false;
        }
        while BLOCKS - self.used() < need {
            assert!(self.drop_oldest(true));
        }
        true
    }
}

fn defer_until(channel: &mut Channel, number: u64, due: u64) {
    let due = due.div_ceil(1000) * 1000;
    let at = channel.deferred.partition_point(|(other, _)| *other <= due);
    channel.deferred.insert(at, (due, number));
}

fn frame(kind: u8, data: &str) -> Vec<u8> {
    let mut frame = (data.len() as u32 + 4).to_be_bytes().to_vec();
    frame.extend([0, 0, 0, kind]);
    frame.extend(data.as_bytes());
    frame
}

/// What a command does once all of it was taken.
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
    /// The frame of which a part was written.
    got: Vec<u8>,
    offered: bool,
    sees: Vec<u64>,
    subscribed: bool,
    said_cls: bool,
    reads: bool,
    /// When the first bytes of what it says were taken.
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
            said_cls: false,
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
    /// The application names so many of the topics and channels: others may be given back.
    named: usize,
    /// Clients come and go, and hardly any has something to say, or wants a message.
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
            now: 1_000_000,
            delivered: 0,
            holds: 0,
            named,
            crowd,
        }
    }

    fn below(&mut self, n: u32) -> usize {
        self.random.below(n) as usize
    }

    /// What the node has now.
    fn look(&mut self) {
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

    /// What a session did by itself shows in its link.
    fn follow(&mut self, client: usize) {
        let link = self.client(client).link();
        let seat = &self.model.seats[client];
        if seat.open && link == Link::Close && !seat.closing {
            self.model.leave(self.now, client);
        }
        assert_eq!(self.model.seats[client].closing, link == Link::Close, "client {client}");
        if link == Link::Close && !self.model.seats[client].refused {
            // If its channel was deleted, it hears of that only now.
            let now = self.instant();
            self.client(client).tick(now);
            self.model.seats[client].writing = None;
        }
    }

    fn hang_up(&mut self, client: usize, why: Closed) {
        let now = self.instant();
        self.client(client).closed(now, why);
        if !self.model.seats[client].closing {
            self.model.leave(self.now, client);
        }
        self.model.seats[client] = Seat::default();
    }

    fn connect(&mut self, client: usize) {
        let now = self.instant();
        self.client(client).open(now);
        self.model.seats[client] = Seat { open: true, ..Seat::default() };
        self.connections[client] = Connection::new();
        self.connections[client].reads = !self.random.one_in(8);
    }

    /// Hands over a part of what a client has to say.
    fn talk(&mut self, client: usize) {
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
            assert!(usize::from(has) >= RESERVE, "a client took what is kept for the application");
        }
        if let Effect::Publish { topic, bodies, .. } = &effect
            && bytes[0] != b'M'
            && self.model.full != Full::DropOldest
            && (most == rest && rest >= bodies[0].len() + 4 && taken < most)
            && self.model.seats[client].expected.is_empty()
        {
            let need = blocks(bodies[0].len());
            let has_share = self.model.has_share(self.now, *topic, need);
            let has_room = need + RESERVE <= usize::from(had);
            assert!(!has_room || !has_share, "what is here as a whole does not wait");
        }
        if self.model.seats[client].closing {
            assert_eq!(taken, most, "it is not listened to any more");
            self.connections[client].pending = None;
            return self.follow(client);
        }
        if taken < most {
            self.holds += 1;
        }
        // What a client publishes may make the node drop at any time: the model follows.
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

    /// A client that waited for room in vain, or that did not go on, is told so.
    fn follow_refusal(&mut self, client: usize, late: bool) {
        let closing = self.client(client).link() == Link::Close;
        let seat = &mut self.model.seats[client];
        if closing
            && seat.open
            && !seat.closing
            && let Some((bytes, ..)) = &self.connections[client].pending
        {
            seat.refused_publishing(bytes, late);
        }
        self.follow(client);
    }

    fn apply(&mut self, client: usize, effect: Effect, bytes: &[u8], accepted: u64) {
        self.look();
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
                    model.seats[client].channel = Some(id);
                    model.seats[client].expected.push_back(frame(0, "OK"));
                    self.connections[client].subscribed = true;
                }
                Err(why) => {
                    let text = format!("E_SUB_FAILED SUB failed {why}");
                    model.seats[client].expected.push_back(frame(1, &text));
                    model.seats[client].refused = true;
                }
            },
            Effect::Rdy(count) => {
                if !self.connections[client].said_cls {
                    model.seats[client].ready = count;
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
                    model.seats[client].finished += 1;
                    model.finished += 1;
                }
                Err(why) => {
                    model.seats[client].expected.push_back(failed("FIN", number, why));
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
                        // Longer ones are clamped.
                        defer_until(channel, number, now + delay.min(10_000) * 1000);
                        model.answer(number);
                    }
                    model.seats[client].requeued += 1;
                }
                Err(why) => {
                    model.seats[client].expected.push_back(failed("REQ", number, why));
                }
            },
            Effect::Touch(number) => match model.flight(client, number) {
                Ok((at, entry)) => {
                    let flight = model.channels[at].entries[entry].as_mut().unwrap();
                    let last = flight.delivered + MAX_MSG_TIMEOUT;
                    flight.deadline = (now + MSG_TIMEOUT).min(last);
                }
                Err(why) => {
                    model.seats[client].expected.push_back(failed("TOUCH", number, why));
                }
            },
            Effect::Cls => {
                self.connections[client].said_cls = true;
                model.seats[client].ready = 0;
                model.seats[client].expected.push_back(frame(0, "CLOSE_WAIT"));
            }
            Effect::Publish { topic, bodies, defer } => {
                assert!(accepted == bodies.len() as u64 || accepted == 0);
                if accepted == 0 {
                    // The topics were full when it came to that.
                    model.seats[client].refused_publishing(bytes, false);
                    return;
                }
                let count = bodies.len() as u32;
                let need = bodies.iter().map(|body| blocks(body.len())).sum();
                assert!(model.has_share(now, topic, need), "nobody consumes that");
                let at = model.publish(now, topic, bodies, defer * 1000, false);
                let id = model.topics[at].id;
                let seat = &mut model.seats[client];
                match seat.pubs.iter_mut().find(|(topic, _)| *topic == id) {
                    Some((_, n)) => *n += count,
                    None => seat.pubs.push((id, count)),
                }
                seat.expected.push_back(frame(0, "OK"));
            }
        }
    }

    /// Lets a client read some of what it is told. False if there is nothing.
    fn listen(&mut self, client: usize, all: bool) -> bool {
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
            let free = usize::from(self.node.store().free - self.node.store().promised);
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
            let seat = &mut self.model.seats[client];
            if frame[7] == 2 {
                connection.offered = false;
                let number = seat.writing.take().unwrap();
                let body = &self.model.bodies[&number];
                assert_eq!(&frame[34..], &body.bytes[..]);
                assert_eq!(frame[8..16], body.timestamp.to_be_bytes());
            } else if &frame[8..] == b"_heartbeat_" {
            } else {
                let expected = seat.expected.pop_front().expect("an answer");
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

    /// Time passes, and sessions hear of it.
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
                // One that waited for room may have got it.
                for _ in before.expired..self.node.counters().expired {
                    self.model.expire_held(self.now);
                }
                for _ in before.dropped..self.node.counters().dropped {
                    assert!(self.model.drop_oldest(false));
                }
                let late = self.node.counters().body_timeouts > before.body_timeouts;
                let waited = self.now - self.connections[client].begun;
                assert!(!late || waited >= BODY_TIMEOUT, "not yet");
                self.follow_refusal(client, late);
            }
            if let Some((bytes, at, Effect::Publish { .. })) = &self.connections[client].pending
                && bytes[..*at].contains(&b'\n')
                && (self.model.seats[client].open && !self.model.seats[client].closing)
            {
                let most = Instant::from_micros(self.now + BODY_TIMEOUT);
                assert!(self.client(client).deadline() <= most, "a body has no deadline");
            }
        }
    }

    fn body(&mut self) -> Vec<u8> {
        let len = match self.below(4) {
            0 => 1 + self.below(20),
            1 => 20 + self.below(5),
            _ => 1 + self.below(300),
        };
        let first = self.below(26);
        (first..first + len).map(|n| b'a' + (n % 26) as u8).collect()
    }

    /// A client thinks of something to say.
    fn think(&mut self, client: usize) {
        let topic = self.below(3);
        let name = TOPIC_NAMES[topic];
        let number = match self.connections[client].sees.len() {
            0 => u64::from(self.random.below(50)),
            n if self.random.one_in(10) => {
                let other = self.below(CLIENTS as u32);
                let at = self.below(n as u32);
                *self.connections[other].sees.last().unwrap_or(&self.connections[client].sees[at])
            }
            n => {
                let at = self.below(n as u32);
                self.connections[client].sees.swap_remove(at)
            }
        };
        let id = format!("00000007{number:08x}");
        let subscribed = self.connections[client].subscribed;
        let said_cls = self.connections[client].said_cls;
        let quiet = self.crowd && !self.random.one_in(32);
        let (bytes, effect) = match self.below(20) {
            0 => (b"NOP\n".to_vec(), Effect::None),
            1..=4 if quiet => (b"NOP\n".to_vec(), Effect::None),
            1..=2 => {
                let body = self.body();
                let mut bytes = format!("PUB {name}\n").into_bytes();
                bytes.extend((body.len() as u32).to_be_bytes());
                bytes.extend(&body);
                (bytes, Effect::Publish { topic, bodies: vec![body], defer: 0 })
            }
            3 => {
                let body = self.body();
                let defer = self.random.below(6000).into();
                let mut bytes = format!("DPUB {name} {defer}\n").into_bytes();
                bytes.extend((body.len() as u32).to_be_bytes());
                bytes.extend(&body);
                (bytes, Effect::Publish { topic, bodies: vec![body], defer })
            }
            4 => {
                let count = 1 + self.below(6);
                let bodies: Vec<_> = (0..count).map(|_| self.body()).collect();
                let mut batch = (bodies.len() as u32).to_be_bytes().to_vec();
                for body in &bodies {
                    batch.extend((body.len() as u32).to_be_bytes());
                    batch.extend(body);
                }
                let mut bytes = format!("MPUB {name}\n").into_bytes();
                bytes.extend((batch.len() as u32).to_be_bytes());
                bytes.extend(batch);
                (bytes, Effect::Publish { topic, bodies, defer: 0 })
            }
            _ if !subscribed => {
                let channel = self.below(3);
                let bytes = format!("SUB {name} {}\n", CHANNEL_NAMES[channel]).into_bytes();
                (bytes, Effect::Sub { topic, channel })
            }
            5..=8 => {
                let count = if quiet { 0 } else { self.below(IN_FLIGHT as u32 + 1) };
                (format!("RDY {count}\n").into_bytes(), Effect::Rdy(count))
            }
            9..=10 => {
                let delay =
                    if self.random.one_in(2) { 0 } else { u64::from(self.random.below(15_000)) };
                (format!("REQ {id} {delay}\n").into_bytes(), Effect::Req(number, delay))
            }
            11 => (format!("TOUCH {id}\n").into_bytes(), Effect::Touch(number)),
            12 if !said_cls && self.random.one_in(8) => (b"CLS\n".to_vec(), Effect::Cls),
            _ => (format!("FIN {id}\n").into_bytes(), Effect::Fin(number)),
        };
        if matches!(effect, Effect::Touch(_)) {
            self.connections[client].sees.push(number);
        }
        self.connections[client].pending = Some((bytes, 0, effect));
    }

    fn publish(&mut self) {
        let topic = self.below(3);
        if topic >= self.named {
            return;
        }
        let body = self.body();
        let defer = if self.random.one_in(5) { u64::from(self.random.below(5000)) } else { 0 };
        let has_slot = self.model.has_slot_for(self.now, topic);
        let need = blocks(body.len());
        let store = self.node.store();
        let exact = self.is_exact();
        let had = usize::from(store.free - store.promised);
        let options = PublishOptions { defer: Some(Span::from_millis(defer as u32)) };
        let now = self.instant();
        let before = self.node.counters();
        let done = self.node.publish_with(now, &topic_name(topic), &body, options);
        let dropped = self.node.counters().dropped - before.dropped;
        for _ in before.expired..self.node.counters().expired {
            self.model.expire_held(self.now);
        }
        match done {
            Err(PublishError::TooManyTopics) => assert!(!has_slot),
            Err(PublishError::Full) => {
                assert!(has_slot && need > had);
                assert_eq!(self.node.counters().refused, before.refused + 1);
                assert_eq!(dropped, 0, "nothing changed");
                if exact {
                    assert!(!self.model.make_room(need));
                }
            }
            Ok(ticket) => {
                assert!(has_slot);
                assert_eq!(ticket.number(), self.model.next);
                if exact {
                    assert!(self.model.make_room(need));
                } else {
                    for _ in 0..dropped {
                        assert!(self.model.drop_oldest(true));
                    }
                }
                self.look();
                self.model.publish(self.now, topic, vec![body], defer * 1000, true);
            }
            Err(error) => panic!("{error}"),
        }
        assert_eq!(self.node.counters().dropped, self.model.dropped);
    }

    /// The application, or HTTP, does something to topics and channels.
    fn administer(&mut self) {
        let (topic, channel) = (self.below(3), self.below(3));
        let (topic_is, channel_is) = (topic_name(topic), channel_name(channel));
        let now = self.instant();
        let at = self.model.topic(topic);
        let no_topic = |at: Option<usize>| at.ok_or(NsqdError::NoTopic);
        let what = self.below(16);
        let node = &mut self.node;
        let (done, expected) = match what {
            0 | 7 if topic.max(channel) >= self.named => return,
            0 => {
                let done = node.create_topic(now, &topic_is);
                self.look();
                let made = self.model.topic_for(self.now, topic, true);
                (done, made.map(|_| ()).ok_or(NsqdError::TooManyTopics))
            }
            1 if self.random.one_in(4) => {
                let done = node.delete_topic(now, &topic_is);
                (done, no_topic(at).map(|at| self.model.delete_topic(at)))
            }
            2 if self.random.one_in(3) => {
                let done = node.empty_topic(now, &topic_is);
                (done, no_topic(at).map(|at| self.model.topics[at].held.clear()))
            }
            3 => {
                let done = node.pause_topic(now, &topic_is);
                (done, no_topic(at).map(|at| self.model.topics[at].paused = true))
            }
            4..=6 => {
                let done = node.unpause_topic(now, &topic_is);
                let expected = no_topic(at).map(|at| {
                    self.model.topics[at].paused = false;
                    self.model.flow(self.now, at);
                });
                (done, expected)
            }
            7 => {
                let done = node.create_channel(now, &topic_is, &channel_is);
                self.look();
                let expected = no_topic(at).and_then(|at| {
                    let made = self.model.channel_for(self.now, at, channel, true);
                    made.map(|_| ()).map_err(|_| NsqdError::TooManyChannels)
                });
                (done, expected)
            }
            _ => {
                let found = no_topic(at)
                    .and_then(|at| self.model.channel(at, channel).ok_or(NsqdError::NoChannel));
                let model = &mut self.model;
                match what {
                    8 if self.random.one_in(2) => (
                        node.delete_channel(now, &topic_is, &channel_is),
                        found.map(|at| model.delete_channel(at)),
                    ),
                    9 if self.random.one_in(2) => (
                        node.empty_channel(now, &topic_is, &channel_is),
                        found.map(|at| model.empty_channel(at)),
                    ),
                    10 => (
                        node.pause_channel(now, &topic_is, &channel_is),
                        found.map(|at| model.channels[at].paused = true),
                    ),
                    _ => (
                        node.unpause_channel(now, &topic_is, &channel_is),
                        found.map(|at| model.channels[at].paused = false),
                    ),
                }
            }
        };
        assert_eq!(done, expected);
    }

    fn step(&mut self) {
        let client = self.below(CLIENTS as u32);
        let open = self.model.seats[client].open;
        match self.below(40) {
            0..=2 => self.publish(),
            3 if self.crowd || self.random.one_in(4) => self.administer(),
            4 => {
                let micros = match self.below(4) {
                    // Clients are silent for too long, and their channels not used.
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
                    self.think(client);
                }
                self.talk(client);
            }
            _ => {
                if self.connections[client].reads {
                    self.listen(client, false);
                }
            }
        }
        for client in 0..CLIENTS {
            self.follow(client);
            if self.model.seats[client].closing && self.random.one_in(3) {
                self.hang_up(client, Closed::Local);
            }
        }
        self.check();
        let model = &self.model;
        let waiting: usize = model.channels.iter().map(Channel::waiting).sum();
        let flying: usize = model.channels.iter().map(Channel::in_flight).sum();
        let (topics, channels) = (model.topics.len(), model.channels.len());
        let closing = model.seats.iter().filter(|seat| seat.closing).count();
        let used = model.used() / 8;
        self.random.note(&[topics, channels, waiting.min(4), flying, closing, used]);
    }

    /// Whether all blocks in use are those of messages that the model knows.
    fn is_exact(&self) -> bool {
        let is_publishing = |connection: &Connection| matches!(connection.pending, Some((_, at, Effect::Publish { .. })) if at > 0);
        self.model.seats.iter().all(|seat| !seat.closing)
            && !self.connections.iter().any(is_publishing)
    }

    /// All that can be seen is what it should be.
    fn check(&mut self) {
        let Self { node, model, .. } = &*self;
        assert_eq!(node.topics().count(), model.topics.len());
        for topic in &model.topics {
            let name = topic_name(topic.name);
            let status = node.topics().find(|status| *status.name == name).unwrap();
            let of = || model.channels.iter().filter(|channel| channel.topic == topic.id);
            assert_eq!(
                (status.paused, status.depth, status.messages, status.bytes, status.dropped),
                (topic.paused, topic.held.len() as u32, topic.messages, topic.bytes, topic.dropped)
            );
            assert_eq!(usize::from(status.channels), of().count());
            assert_eq!(node.channels(&name).count(), of().count());
            for channel in of() {
                let name_of = channel_name(channel.name);
                let status = node.channels(&name).find(|status| *status.name == name_of).unwrap();
                let clients =
                    model.seats.iter().filter(|seat| seat.channel == Some(channel.id)).count();
                assert_eq!(
                    (
                        (status.paused, status.clients, status.depth, status.in_flight),
                        (status.deferred, status.messages, status.requeued, status.timed_out),
                        status.dropped
                    ),
                    (
                        (
                            channel.paused,
                            clients as u8,
                            channel.waiting() as u32,
                            channel.in_flight() as u32
                        ),
                        (
                            channel.deferred.len() as u32,
                            channel.messages,
                            channel.requeues,
                            channel.timeouts
                        ),
                        channel.dropped
                    ),
                    "{channel:?}"
                );
            }
        }
        for (index, seat) in model.seats.iter().enumerate() {
            let Some(status) = node.status(index) else {
                assert!(!seat.open);
                continue;
            };
            let in_flight = model.in_flight(index);
            assert_eq!(
                (usize::from(status.ready), usize::from(status.in_flight)),
                (seat.ready, in_flight),
            );
            if !seat.closing {
                assert_eq!(
                    (status.messages, status.finished, status.requeued),
                    (seat.delivered, seat.finished, seat.requeued)
                );
                let published: u32 = status.published().map(|(_, count)| count).sum();
                assert_eq!(published, seat.pubs.iter().map(|(_, count)| count).sum::<u32>());
            }
        }
        assert_eq!(node.counters().finished, model.finished);
        assert_eq!(node.counters().dropped, model.dropped);
        assert_eq!(node.counters().expired, model.expired);
        let counters = node.counters();
        let given_back = (counters.topics_given_back, counters.channels_given_back);
        assert_eq!((counters.abandoned, given_back), (model.abandoned, model.given_back));
        assert_eq!(node.counters().delivered, self.delivered);
        assert!(usize::from(node.store().announced) <= ANNOUNCED);
        if self.is_exact() {
            assert_eq!((node.store().promised, node.store().announced), (0, 0));
            assert_eq!(usize::from(node.store().free), BLOCKS - model.used());
        }
    }

    /// Everybody reads until nothing comes: then nothing waits for who could have it.
    fn drain(&mut self) {
        loop {
            let version = self.node.version();
            let mut heard = false;
            for client in 0..CLIENTS {
                if self.model.seats[client].open {
                    while self.listen(client, true) {
                        heard = true;
                    }
                }
            }
            if !heard && self.node.version() == version {
                break;
            }
        }
        let free = usize::from(self.node.store().free - self.node.store().promised);
        for client in 0..CLIENTS {
            let seat = &self.model.seats[client];
            let Some(id) = seat.channel.filter(|_| !seat.closing) else { continue };
            let channel = &self.model.channels[self.model.channel_at(id)];
            assert!(
                channel.waiting() == 0 || !self.model.may_have(client, free),
                "client {client} could have a message of {channel:?}"
            );
            assert!(seat.expected.is_empty());
        }
        self.check();
        self.model.forget();
    }

    /// In the end everything that is left can be had, once, and nothing stays in the store.
    fn finish(&mut self) {
        for client in 0..CLIENTS {
            if self.model.seats[client].open {
                self.hang_up(client, Closed::Peer);
            }
            self.connections[client].pending = None;
        }
        for topic in 0..3 {
            let Some(at) = self.model.topic(topic) else { continue };
            let now = self.instant();
            self.node.unpause_topic(now, &topic_name(topic)).unwrap();
            self.model.topics[at].paused = false;
            self.model.flow(self.now, at);
            if !self.model.channels.iter().any(|c| c.topic == self.model.topics[at].id) {
                self.node.delete_topic(now, &topic_name(topic)).unwrap();
                self.model.delete_topic(at);
            }
        }
        self.wait(3_600_000_000);
        let all: Vec<_> = self
            .model
            .channels
            .iter()
            .map(|channel| {
                let topic = self.model.topics.iter().find(|t| t.id == channel.topic).unwrap();
                (topic.name, channel.name, channel.waiting())
            })
            .collect();
        for (topic, channel, waiting) in all {
            let now = self.instant();
            self.node.unpause_channel(now, &topic_name(topic), &channel_name(channel)).unwrap();
            let at = self.model.topic(topic).unwrap();
            let at = self.model.channel(at, channel).unwrap();
            self.model.channels[at].paused = false;
            self.connect(0);
            let (topic_is, channel_is) = (TOPIC_NAMES[topic], CHANNEL_NAMES[channel]);
            let say = |world: &mut Self, text: String, effect: Effect| {
                world.connections[0].pending = Some((text.into_bytes(), 0, effect));
                while world.connections[0].pending.is_some() {
                    world.talk(0);
                }
            };
            say(self, "  V2".into(), Effect::None);
            let sub = format!("SUB {topic_is} {channel_is}\n");
            say(self, sub, Effect::Sub { topic, channel });
            while self.listen(0, true) {}
            say(self, "RDY 1\n".into(), Effect::Rdy(1));
            for _ in 0..waiting {
                while self.listen(0, true) {}
                let number = *self.connections[0].sees.last().expect("one more");
                say(self, format!("FIN 00000007{number:08x}\n"), Effect::Fin(number));
                self.check();
            }
            assert!(!self.listen(0, true), "nothing more");
            self.hang_up(0, Closed::Peer);
        }
        self.check();
        assert_eq!(usize::from(self.node.store().free), BLOCKS);
    }
}

/// Lives up to so many steps, and says how many messages were delivered, and how often a client
/// was held.
pub(crate) fn live(dice: impl Dice, full: Full, steps: u32) -> (u64, u64) {
    let config = config(full);
    let mut storage = Storage::<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>::new();
    let mut store = vec![0x55; BLOCKS * 66 + 13];
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
