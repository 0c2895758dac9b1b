//! A consumer's window and slots, through its public interface, with correct nsqds: RDY never
//! exceeds the room, each delivery reaches the application once and unchanged, and nothing is left
//! in the end.

use std::collections::{BTreeMap, BTreeSet};

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Config, Consumer, Storage, Token};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqd::{CommandDecoder, Item, Limits};

use crate::feature;
use crate::input::Input;

const CONNECTIONS: usize = 3;
const MESSAGES: usize = 4;
const SLOT: usize = 64;
/// The longest body that fits into one slot.
const BODY_MAX: u32 = 38;
const TIMEOUT: Span = Span::from_millis(2000);
const TIMEOUT_MAX: Span = Span::from_millis(4000);
const INFO: &[u8] = b"{\"max_rdy_count\":5,\"max_msg_timeout\":4000,\"msg_timeout\":2000,\
    \"auth_required\":false}";

#[derive(Debug, Clone, Copy)]
struct InFlight {
    message: Message,
    delivered: Instant,
    due: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Message {
    number: u32,
    attempts: u16,
    len: u32,
}

/// A connection from the nsqd's side.
struct Nsqd {
    commands: CommandDecoder,
    sent_bytes: Vec<u8>,
    subscribed: bool,
    closing: bool,
    rdy: u32,
    in_flight: Vec<InFlight>,
    /// Messages whose timeout passed: answers to them fail.
    expired: BTreeSet<u32>,
}

impl Nsqd {
    fn send(&mut self, kind: u8, data: &[u8]) {
        let size = (data.len() + 4) as u32;
        self.sent_bytes.extend(size.to_be_bytes());
        self.sent_bytes.extend([0, 0, 0, kind]);
        self.sent_bytes.extend_from_slice(data);
    }

    fn committed(&self) -> u32 {
        self.rdy.max(self.in_flight.len() as u32)
    }

    /// Returns the index of the message with this id in flight.
    fn find(&mut self, id: &[u8; 16]) -> Option<usize> {
        let number = number(id);
        let at = self.in_flight.iter().position(|in_flight| in_flight.message.number == number);
        let delivered_here = at.is_some() || self.expired.contains(&number);
        assert!(delivered_here, "an answer to {number}, which was not delivered here");
        if at.is_none() {
            self.send(1, b"E_FIN_FAILED FIN failed ID not in flight");
        }
        at
    }
}

fn id(number: u32) -> [u8; 16] {
    let mut id = [b'0'; 16];
    id[8..].copy_from_slice(format!("{number:08x}").as_bytes());
    id
}

fn number(id: &[u8; 16]) -> u32 {
    let text = std::str::from_utf8(id).expect("an id of ours");
    u32::from_str_radix(text, 16).expect("an id of ours")
}

struct World<'a> {
    consumer: Consumer<'a>,
    nsqds: [Option<Nsqd>; CONNECTIONS],
    /// Messages that wait to be delivered.
    queue: Vec<Message>,
    finished: BTreeSet<u32>,
    held: Vec<(Token, Message)>,
    received: BTreeSet<Message>,
    /// Messages on their way to the application, as they were sent.
    sent: BTreeMap<(u32, u16), Message>,
    published: u32,
    /// A message timed out, perhaps before it was read: its room was promised only once.
    late: bool,
    max: u16,
    now: Instant,
}

impl World<'_> {
    /// Runs a connection as far as possible; returns whether anything happened.
    fn settle(&mut self, at: usize) -> bool {
        let now = self.now;
        let mut session = self.consumer.connection(at).expect("a connection");
        if session.deadline() <= now {
            session.tick(now);
        }
        match session.link() {
            Link::Down => {
                assert!(self.nsqds[at].is_none());
                if session.dial(now).is_none() {
                    return false;
                }
                session.open(now);
                self.nsqds[at] = Some(Nsqd {
                    commands: CommandDecoder::new(),
                    sent_bytes: Vec::new(),
                    subscribed: false,
                    closing: false,
                    rdy: 0,
                    in_flight: Vec::new(),
                    expired: BTreeSet::new(),
                });
                true
            }
            Link::Up => {
                let bytes = session.transmit(now).head.to_vec();
                session.sent(now, bytes.len());
                self.read(at, &bytes);
                let nsqd = self.nsqds[at].as_mut().expect("a connection");
                let sent_bytes = std::mem::take(&mut nsqd.sent_bytes);
                let mut session = self.consumer.connection(at).expect("a connection");
                if let Err(fault) = session.receive(now, &sent_bytes) {
                    panic!("a correct nsqd was judged faulty: {fault}");
                }
                !bytes.is_empty() || !sent_bytes.is_empty()
            }
            Link::Close => {
                loop {
                    let mut session = self.consumer.connection(at).expect("a connection");
                    let bytes = session.transmit(now).head.to_vec();
                    session.sent(now, bytes.len());
                    if bytes.is_empty() {
                        break;
                    }
                    self.read(at, &bytes);
                }
                self.lose(at);
                self.consumer.connection(at).expect("a connection").closed(now, Closed::Local);
                true
            }
            Link::Upgrade(upgrade) => panic!("an upgrade that was not requested: {upgrade:?}"),
        }
    }

    /// nsqd parses these bytes.
    fn read(&mut self, at: usize, bytes: &[u8]) {
        let mut input = bytes;
        loop {
            let nsqd = self.nsqds[at].as_mut().expect("a connection");
            let item = match nsqd.commands.next(&Limits::NSQD, &mut input) {
                Ok(Some(item)) => item,
                Ok(None) => return,
                Err(refusal) => panic!("refused: {refusal}"),
            };
            match item {
                Item::Part { done: true, .. } => nsqd.send(0, INFO),
                Item::Sub { .. } => {
                    nsqd.subscribed = true;
                    nsqd.send(0, b"OK");
                }
                Item::Rdy(rdy) => {
                    let old = std::mem::replace(&mut nsqd.rdy, rdy);
                    assert_ne!(old, rdy, "a RDY that changes nothing");
                    let others = self.nsqds.iter().enumerate().filter(|(other, _)| *other != at);
                    let sum: u32 =
                        others.filter_map(|(_, it)| Some(it.as_ref()?.committed())).sum();
                    let most = u32::from(self.max).min(MESSAGES as u32);
                    assert!(rdy < old || sum + rdy <= most, "{sum} and {rdy} are more than {most}");
                    feature(("rdy", rdy, rdy > old));
                }
                Item::Fin(id) => {
                    if let Some(at) = nsqd.find(&id.0) {
                        let done = nsqd.in_flight.swap_remove(at).message.number;
                        assert!(self.finished.insert(done), "finished once");
                    }
                }
                Item::Req { id, .. } => {
                    if let Some(at) = nsqd.find(&id.0) {
                        let message = nsqd.in_flight.swap_remove(at).message;
                        self.queue.push(message);
                    }
                }
                Item::Touch(id) => {
                    let now = self.now;
                    if let Some(at) = nsqd.find(&id.0) {
                        let in_flight = &mut nsqd.in_flight[at];
                        in_flight.due =
                            now.after(TIMEOUT).min(in_flight.delivered.after(TIMEOUT_MAX));
                    }
                }
                Item::Cls => {
                    nsqd.closing = true;
                    nsqd.send(0, b"CLOSE_WAIT");
                }
                Item::Identify | Item::Body { .. } | Item::Part { .. } | Item::Nop => {}
                other => panic!("a consumer writes {other:?}"),
            }
        }
    }

    /// A connection is gone: nsqd queues its messages in flight again.
    fn lose(&mut self, at: usize) {
        if let Some(nsqd) = self.nsqds[at].take() {
            self.queue.extend(nsqd.in_flight.iter().map(|in_flight| in_flight.message));
        }
    }

    /// Delivers one message, if RDY allows that.
    fn deliver(&mut self, at: usize) -> bool {
        let now = self.now;
        let Some(nsqd) = &mut self.nsqds[at] else { return false };
        let room = nsqd.subscribed && !nsqd.closing && (nsqd.in_flight.len() as u32) < nsqd.rdy;
        if !room || self.queue.is_empty() {
            return false;
        }
        let mut message = self.queue.remove(0);
        message.attempts += 1;
        let head = [&[0; 8][..], &message.attempts.to_be_bytes(), &id(message.number)].concat();
        let body = vec![message.number as u8; message.len as usize];
        nsqd.send(2, &[head, body].concat());
        nsqd.in_flight.push(InFlight { message, delivered: now, due: now.after(TIMEOUT) });
        self.sent.insert((message.number, message.attempts), message);
        true
    }

    /// Advances the time; nsqds requeue messages whose timeout passed.
    fn pass(&mut self, span: Span) {
        self.now = self.now.after(span);
        for nsqd in self.nsqds.iter_mut().flatten() {
            let (late, rest) =
                nsqd.in_flight.iter().partition(|in_flight| in_flight.due <= self.now);
            nsqd.in_flight = rest;
            let late: Vec<InFlight> = late;
            self.late |= !late.is_empty();
            nsqd.expired.extend(late.iter().map(|in_flight| in_flight.message.number));
            self.queue.extend(late.iter().map(|in_flight| in_flight.message));
        }
    }

    fn take(&mut self) -> bool {
        let Some(delivery) = self.consumer.take(self.now) else { return false };
        let message = self.consumer.message(delivery.token).expect("the message");
        let key = (number(&message.head.id.0), message.head.attempts);
        let sent = *self.sent.get(&key).expect("it was delivered");
        assert!(self.received.insert(sent), "{key:?} was delivered twice");
        feature(("attempts", key.1.min(5)));
        self.held.push((delivery.token, sent));
        true
    }

    fn check(&self) {
        assert!(self.held.len() + self.consumer.waiting() <= MESSAGES);
        for (token, sent) in &self.held {
            let message = self.consumer.message(*token).expect("an unanswered message");
            let whole = message.body.len() == sent.len as usize;
            assert!(
                whole && message.body.iter().all(|&b| b == sent.number as u8),
                "the body is unchanged"
            );
        }
        let counters = self.consumer.counters();
        assert!(counters.no_room == 0 || self.late, "RDY exceeded the room");
        assert_eq!((counters.too_large, counters.given_up), (0, 0));
    }

    fn everything(&mut self) {
        for _ in 0..200 {
            let progress = (0..CONNECTIONS).fold(false, |any, at| self.settle(at) | any);
            if !progress {
                return;
            }
        }
        panic!("never settles");
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let dice = input.byte();
    let config = Config {
        max_attempts: 0,
        auto_touch: dice & 1 > 0,
        redistribute: Span::from_millis(300),
        backoff_base: Span::from_millis(if dice & 2 > 0 { 0 } else { 100 }),
        requeue_base: Span::ZERO,
        drain_timeout: Span::from_millis(500),
        ..Config::new(TopicName::new("t").expect("a name"), ChannelName::new("c").expect("a name"))
    };
    let nsqds = ["a:1", "b:1", "c:1"].map(|a| a.parse::<Address>().expect("an address"));
    let mut ring = [0; SLOT * MESSAGES];
    let mut storage = Storage::<CONNECTIONS, MESSAGES>::new();
    let given = 1 + input.below(3) as usize;
    let consumer = Consumer::new(&config, &mut storage, &nsqds[..given], &mut ring)
        .expect("a good configuration");
    let mut world = World {
        consumer,
        nsqds: [None, None, None],
        queue: Vec::new(),
        finished: BTreeSet::new(),
        held: Vec::new(),
        received: BTreeSet::new(),
        sent: BTreeMap::new(),
        published: 0,
        late: false,
        max: u16::MAX,
        now: Instant::from_millis(1),
    };
    while !input.is_over() {
        let at = input.below(CONNECTIONS as u32) as usize;
        match input.below(12) {
            0 | 1 => {
                let number = world.published;
                world.published += 1;
                world.queue.push(Message { number, attempts: 0, len: input.below(BODY_MAX + 1) });
            }
            2 => drop(world.deliver(at)),
            3 => drop(world.settle(at)),
            4 => drop(world.take()),
            op @ 5..=7 if !world.held.is_empty() => {
                let at = input.below(world.held.len() as u32) as usize;
                let (token, _) = world.held.swap_remove(at);
                let done = match op {
                    5 => world.consumer.finish(world.now, token),
                    6 => world.consumer.requeue(world.now, token, None),
                    _ => world.consumer.release(world.now, token, None),
                };
                feature((op, done.is_ok()));
            }
            8 => world.pass(Span::from_millis(input.below(1000))),
            9 => {
                world.max = input.below(6) as u16;
                world.consumer.set_max_in_flight(world.now, world.max);
            }
            10 if input.byte() > 127 => {
                if world.consumer.is_paused() {
                    world.consumer.resume(world.now);
                } else {
                    world.consumer.pause(world.now);
                }
            }
            10 if world.nsqds[at].is_some() => {
                world.lose(at);
                let mut session = world.consumer.connection(at).expect("a connection");
                session.closed(world.now, Closed::Peer);
            }
            11 if !world.held.is_empty() => {
                let at = input.below(world.held.len() as u32) as usize;
                let done = world.consumer.touch(world.now, world.held[at].0);
                feature(("touch", done.is_ok()));
            }
            _ => world.everything(),
        }
        world.check();
    }

    // From now on nothing fails, and every message is finished as soon as it comes.
    world.consumer.resume(world.now);
    world.max = u16::MAX;
    world.consumer.set_max_in_flight(world.now, world.max);
    let is_done = |world: &World<'_>| {
        let in_flight = world.nsqds.iter().flatten().any(|nsqd| !nsqd.in_flight.is_empty());
        !in_flight && world.queue.is_empty() && world.held.is_empty()
    };
    for _ in 0..2000 {
        while world.take() {}
        while let Some((token, _)) = world.held.pop() {
            let _ = world.consumer.finish(world.now, token);
        }
        world.everything();
        if is_done(&world) {
            break;
        }
        (0..CONNECTIONS).for_each(|at| while world.deliver(at) {});
        world.everything();
        world.check();
        world.pass(Span::from_millis(50));
    }
    assert!(is_done(&world), "messages are left: {:?}", world.consumer);
    assert_eq!(world.finished.len(), world.published as usize, "every message is finished");
    world.consumer.stop();
    for _ in 0..100 {
        world.everything();
        world.pass(Span::from_millis(50));
    }
    assert!(world.consumer.is_stopped());
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for dice in 0..4 {
        let mut seed = vec![dice, 2];
        for step in 0..20 {
            seed.extend([0, 0, step, 0, 0, 9, 0, 10, 200, 0, 10, 200, 0, 8, 50]);
            seed.extend([0, 3, 1, 3, 2, 3, step % 3, 2, 1, 2, 0, 3, 1, 3, 0, 4, 0, 4]);
            seed.extend([0, 5 + step % 3, 0, 0, 11, 0, 2, 9, step % 6, step % 3, 10, step]);
        }
        seeds.push(seed);
    }
    seeds
}
