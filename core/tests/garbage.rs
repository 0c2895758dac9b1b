//! Sessions that receive garbage report a fault, start anew, and lose no message.

mod support;

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{self, Consumer, Discovery, Storage};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::publisher::{Config, Publisher, State};
use nanonsq_core::registration::{self, NodeInfo, Registration};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use support::Random;

const TOTAL: usize = 5_000_000;

/// Valid input that gets far into each decoder, before random changes.
const SEEDS: [&[u8]; 11] = [
    b"\0\0\0\x06\0\0\0\0OK",
    b"\0\0\0\x0f\0\0\0\0_heartbeat_",
    b"\0\0\0\x1c\0\0\0\0{\"auth_required\":false }",
    b"\0\0\0\x11\0\0\0\x01E_BAD_MESSAGE",
    b"\0\0\0\x02OK",
    b"\0\0\0\x18{\"broadcast_address\":\"\"}",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\0\0\0\x22\0\0\0\x02\0\0\0\0\0\0\0\0\0\x010123456789abcdefbody",
    b"\0\0\0\x0e\0\0\0\0CLOSE_WAIT",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"1d\r\n{\"producers\":[{\"tcp_port\":1,\r\n1a\r\n\"broadcast_address\":\"h\"}]}\r\n0\r\n\r\n",
];

struct Garbage(Random);

impl Garbage {
    fn below(&mut self, n: usize) -> usize {
        self.0.next() as usize % n
    }

    fn next(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..1 + self.below(4) {
            bytes.extend(SEEDS[self.below(SEEDS.len())]);
        }
        match self.below(4) {
            0 => {}
            1 => {
                let len = 1 + self.below(64);
                bytes = (0..len).map(|_| self.0.next() as u8).collect();
            }
            _ => {
                for _ in 0..1 + self.below(3) {
                    let at = self.below(bytes.len());
                    bytes[at] = self.0.next() as u8;
                }
            }
        }
        bytes.truncate(1 + self.below(bytes.len()));
        bytes
    }
}

/// Returns the frame of a message with a body of `len` bytes.
fn long_message(len: usize) -> Vec<u8> {
    let size = 4 + 26 + len;
    [&(size as u32).to_be_bytes()[..], b"\0\0\0\x02", &vec![b'x'; size - 4]].concat()
}

/// Drives a session that receives `TOTAL` bytes of garbage and loses connections. Returns the
/// number of faults.
///
/// `hello` is the valid response to its handshake, which it often receives first.
fn feed_garbage<S: Session>(
    session: &mut S,
    seed: u32,
    hello: &[u8],
    mut each: impl FnMut(&mut S, Instant),
) -> u32 {
    let mut garbage = Garbage(Random::new(seed));
    let mut now = Instant::from_millis(1);
    let (mut fed, mut faults) = (0, 0);
    while fed < TOTAL {
        now = now.after(Span::from_millis(garbage.below(50) as u32));
        if session.deadline() <= now {
            session.tick(now);
        }
        match session.link() {
            Link::Down => {
                if session.dial(now).is_some() {
                    session.open(now);
                    if garbage.below(4) > 0 {
                        drain(session, now);
                        session.receive(now, hello).unwrap();
                    }
                }
                now = now.after(Span::from_millis(100));
            }
            Link::Up => {
                let len = session.transmit(now).len();
                session.sent(now, garbage.below(len + 1));
                let bytes = garbage.next();
                fed += bytes.len();
                if let Err(fault) = session.receive(now, &bytes) {
                    assert!(!fault.to_string().is_empty());
                    assert_eq!(session.link(), Link::Close, "{fault}");
                    faults += 1;
                } else if garbage.below(20) == 0 {
                    session.closed(now, Closed::Peer);
                }
            }
            Link::Close => session.closed(now, Closed::Local),
            Link::Upgrade(upgrade) => panic!("unexpected upgrade {upgrade:?}"),
        }
        each(session, now);
    }
    faults
}

fn drain<S: Session>(session: &mut S, now: Instant) {
    while !session.transmit(now).is_empty() {
        let n = session.transmit(now).len();
        session.sent(now, n);
    }
}

#[test]
fn five_million_bytes_of_garbage_to_a_publisher() {
    let config = Config::new();
    let nsqds: [Address; 2] = ["one:1", "two:1"].map(|a| a.parse().unwrap());
    let topic = TopicName::new("t").unwrap();
    let mut ring = [0; 512];
    let mut publisher = Publisher::new(&config, &nsqds, &mut ring).unwrap();
    let faults = feed_garbage(&mut publisher, 1, SEEDS[2], |publisher, _| {
        let _ = publisher.publish(&topic, b"a message");
        let c = publisher.counters();
        assert_eq!(c.accepted, c.acknowledged + c.rejected + c.expired + c.dropped + c.pending);
        assert!(publisher.outbox_used() <= 512);
    });
    assert!(faults > 10_000, "{faults}");
    let counters = publisher.counters();
    assert!(counters.acknowledged > 100 && counters.connections > 1000, "{counters:?}");

    // The publisher still works.
    let mut now = Instant::from_millis(1 << 40);
    publisher.tick(now);
    if publisher.link() != Link::Down {
        publisher.closed(now, Closed::Peer);
    }
    now = now.after(Span::from_secs(10));
    publisher.dial(now).unwrap();
    publisher.open(now);
    drain(&mut publisher, now);
    publisher.receive(now, b"\0\0\0\x06\0\0\0\0OK").unwrap();
    assert_eq!(publisher.state(), State::Ready);
    while publisher.counters().pending > 0 {
        drain(&mut publisher, now);
        publisher.receive(now, b"\0\0\0\x06\0\0\0\0OK").unwrap();
    }
}

#[test]
fn five_million_bytes_of_garbage_to_a_lookup_peer() {
    let config = registration::Config::new(NodeInfo {
        broadcast_address: "b",
        tcp_port: 1,
        http_port: 2,
        version: "1",
        ..NodeInfo::default()
    });
    let mut lookup = Registration::<1, 4, 4>::new(&config).unwrap();
    for name in ["a", "b", "c"] {
        lookup.register(&TopicName::new(name).unwrap(), None).unwrap();
    }
    lookup.configure(Instant::ZERO, &["one:1".parse().unwrap()]).unwrap();
    let faults = feed_garbage(&mut lookup.peer(0).unwrap(), 2, SEEDS[5], |_, _| {});
    assert!(faults > 10_000, "{faults}");
    assert!(lookup.status(0).unwrap().connections > 100);
}

const CONSUME: consumer::Config<'static> = consumer::Config::new(
    match TopicName::new("t") {
        Ok(topic) => topic,
        Err(_) => panic!("a topic"),
    },
    match ChannelName::new("c") {
        Ok(channel) => channel,
        Err(_) => panic!("a channel"),
    },
);

#[test]
fn five_million_bytes_of_garbage_to_a_consumers_connection() {
    let nsqds: [Address; 2] = ["one:1", "two:1"].map(|a| a.parse().unwrap());
    let mut ring = [0; 256];
    let mut storage = Storage::<1, 4>::new();
    let mut consumer = Consumer::new(&CONSUME, &mut storage, &nsqds, &mut ring).unwrap();
    let mut garbage = Garbage(Random::new(2));
    let mut now = Instant::from_millis(1);
    let (mut fed, mut faults, mut tokens) = (0, 0, Vec::new());
    while fed < TOTAL {
        now = now.after(Span::from_millis(garbage.below(50) as u32));
        let mut session = consumer.connection(0).unwrap();
        if session.deadline() <= now {
            session.tick(now);
        }
        match session.link() {
            Link::Down => {
                if session.dial(now).is_some() {
                    session.open(now);
                    drain(&mut session, now);
                    for hello in [SEEDS[2], SEEDS[0]] {
                        if garbage.below(8) > 0 {
                            let _ = session.receive(now, hello);
                            drain(&mut session, now);
                        }
                    }
                }
                now = now.after(Span::from_secs(10));
            }
            Link::Up => {
                let len = session.transmit(now).len();
                session.sent(now, garbage.below(len + 1));
                let bytes = match garbage.below(200) {
                    0..10 => long_message(100), // Longer than a slot.
                    10 => long_message(300),    // Longer than the ring.
                    _ => garbage.next(),
                };
                fed += bytes.len();
                if let Err(fault) = session.receive(now, &bytes) {
                    assert!(!fault.to_string().is_empty());
                    assert_eq!(session.link(), Link::Close, "{fault}");
                    faults += 1;
                } else if garbage.below(40) == 0 {
                    session.closed(now, Closed::Peer);
                }
            }
            Link::Close => session.closed(now, Closed::Local),
            Link::Upgrade(upgrade) => panic!("unexpected upgrade {upgrade:?}"),
        }
        while session.poll_event().is_some() {}
        while let Some(delivery) = consumer.take(now) {
            assert!(consumer.message(delivery.token).unwrap().body.len() <= 256 - 26);
            tokens.push(delivery.token);
        }
        // At most as many as there are slots.
        assert!(tokens.len() <= 4);
        for index in (0..tokens.len()).rev() {
            let token = tokens[index];
            let _ = match garbage.below(6) {
                0 => consumer.finish(now, tokens.swap_remove(index)),
                1 => consumer.requeue(now, tokens.swap_remove(index), None),
                2 => consumer.release(now, tokens.swap_remove(index), Some(Span::MAX)),
                3 => consumer.touch(now, token),
                _ => Ok(()),
            };
        }
    }
    let counters = consumer.counters();
    println!("{faults} faults, {counters:?}");
    assert!(faults > 5_000, "{faults}");
    assert!(counters.received > 8_000 && counters.connections > 5_000, "{counters:?}");
    assert!(counters.too_large > 100 && counters.no_room > 0, "{counters:?}");
}

#[test]
fn five_million_bytes_of_garbage_from_an_nsqlookupd() {
    let mut ring = [0; 256];
    let mut storage = Storage::<2, 4>::new();
    let mut discovery = Discovery::<1, 2>::new();
    let lookupds = ["l:1".parse().unwrap()];
    let config = consumer::Config { lookup_interval: Span::from_millis(1), ..CONSUME };
    let mut consumer = Consumer::new(&config, &mut storage, &[], &mut ring).unwrap();
    consumer.discover(&mut discovery, &lookupds).unwrap();
    let faults = feed_garbage(&mut consumer.lookupd(0).unwrap(), 3, SEEDS[9], |_, _| {});
    let counters = consumer.counters();
    println!("{faults} faults, {counters:?}");
    assert!(faults > 10_000, "{faults}");
    assert!(counters.lookups > 10 && consumer.unserved() < 100, "{counters:?}");
    assert!(consumer.status(0).unwrap().address.is_some(), "some of the garbage named an nsqd");
}
