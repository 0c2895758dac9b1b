//! Peers and model nsqlookupds in virtual time, over a network that fails at random: when the
//! faults stop, every nsqlookupd lists exactly the topics and channels of the registry.

mod support;

use std::collections::{BTreeSet, VecDeque};

use nanonsq_core::address::Address;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::registration::{Config, NodeInfo, Registration};
use nanonsq_core::session::{Closed, DRAINS_MAX, DialError, Link, LinkState, Session};
use nanonsq_core::time::{Instant, Span};
use support::{Random, seeds};

const PEERS: usize = 3;
const INFO: &[u8] =
    br#"{"broadcast_address":"l","hostname":"l","http_port":1,"tcp_port":2,"version":"1"}"#;

/// One connection of the model nsqlookupd, with the registrations that end with it.
#[derive(Default)]
struct Connection {
    inbox: Vec<u8>,
    outbox: VecDeque<(Instant, Vec<u8>)>,
    greeted: bool,
    listed: BTreeSet<String>,
    mute: bool,
}

impl Connection {
    fn run(&mut self, at: Instant, context: &str) {
        if !self.greeted && self.inbox.len() >= 4 {
            assert!(self.inbox.starts_with(b"  V1"), "{context}");
            self.inbox.drain(..4);
            self.greeted = true;
        }
        while let Some(end) = self.inbox.iter().position(|&b| b == b'\n') {
            if !self.greeted {
                return;
            }
            let line = String::from_utf8(self.inbox[..end].to_vec()).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let mut used = end + 1;
            let mut reply = b"OK".to_vec();
            match words[..] {
                ["PING"] => {}
                ["IDENTIFY"] => {
                    let Some(len) = self.inbox[used..].first_chunk::<4>() else { return };
                    let len = u32::from_be_bytes(*len) as usize;
                    if self.inbox.len() < used + 4 + len {
                        return;
                    }
                    used += 4 + len;
                    reply = INFO.to_vec();
                }
                ["REGISTER", t] => drop(self.listed.insert(t.to_owned())),
                ["REGISTER", t, c] => {
                    self.listed.insert(t.to_owned());
                    self.listed.insert(format!("{t}/{c}"));
                }
                ["UNREGISTER", t] => {
                    let channels = format!("{t}/");
                    assert!(!self.listed.iter().any(|l| l.starts_with(&channels)), "{context}");
                    assert!(self.listed.remove(t), "{context}: {line}");
                }
                ["UNREGISTER", t, c] => {
                    assert!(self.listed.remove(&format!("{t}/{c}")), "{context}: {line}");
                }
                _ => panic!("{context}: {line:?}"),
            }
            self.inbox.drain(..used);
            if !self.mute {
                let len = u32::try_from(reply.len()).unwrap().to_be_bytes();
                self.outbox.push_back((at, [&len[..], &reply].concat()));
            }
        }
    }
}

fn registered(lookup: &Registration<'_, PEERS, 5, 6>) -> BTreeSet<String> {
    let name = |(topic, channel): (&TopicName, Option<&ChannelName>)| match channel {
        None => topic.to_string(),
        Some(channel) => format!("{topic}/{channel}"),
    };
    lookup.registered().map(name).collect()
}

fn live(seed: u32) -> [u64; 3] {
    let mut random = Random::new(seed);
    let config = Config {
        seed,
        reassert: Span::from_millis(500 + random.below(5000)),
        reply_timeout: Span::from_millis(1000),
        ..Config::new(NodeInfo {
            broadcast_address: "b",
            hostname: "h",
            tcp_port: 1,
            http_port: 2,
            version: "1",
            ..NodeInfo::default()
        })
    };
    let mut lookup = Registration::<PEERS, 5, 6>::new(&config).unwrap();
    let all: Vec<Address> = (0..5).map(|n| format!("l{n}:1").parse().unwrap()).collect();
    let mut configured: Vec<Address> = Vec::new();
    let mut connections: [Option<Connection>; PEERS] = Default::default();
    let mut dialing = [false; PEERS];
    let mut now = Instant::from_millis(1);
    let end_of_faults = now.after(Span::from_millis(1000 + random.below(30_000)));
    let (mut full, mut changes) = (0, 0);
    let context = format!("seed {seed}");

    loop {
        let faulty = now < end_of_faults;
        // The application.
        if faulty && random.one_in(3) {
            let topic = TopicName::new(["a", "b", "c", "d", "e", "f"][random.below(6) as usize]);
            let channel = ChannelName::new(["x", "y"][random.below(2) as usize]).unwrap();
            let topic = topic.unwrap();
            let done = match random.below(4) {
                0 => lookup.register(&topic, None).is_ok(),
                1 => lookup.register(&topic, Some(&channel)).is_ok(),
                2 => {
                    lookup.unregister(&topic, None);
                    true
                }
                _ => {
                    lookup.unregister(&topic, Some(&channel));
                    true
                }
            };
            changes += u64::from(done);
            full += u64::from(!done);
        }
        if faulty && random.one_in(100) {
            let start = random.below(5) as usize;
            configured = (0..random.below(PEERS as u32 + 1) as usize)
                .map(|n| all[(start + n) % 5].clone())
                .collect();
            lookup.configure(now, &configured).unwrap();
        }

        for index in 0..PEERS {
            let mut peer = lookup.peer(index).unwrap();
            let mut drains = 0;
            loop {
                drains += 1;
                assert!(drains < DRAINS_MAX, "{context}: never settles");
                if peer.deadline() <= now {
                    peer.tick(now);
                }
                let mut progress = false;
                match peer.link() {
                    Link::Down => {
                        connections[index] = None;
                        progress = peer.dial(now).is_some();
                        dialing[index] |= progress;
                    }
                    Link::Up if dialing[index] => {
                        if faulty && random.one_in(10) {
                            break; // no answer yet
                        }
                        dialing[index] = false;
                        progress = true;
                        if faulty && random.one_in(3) {
                            peer.closed(now, Closed::Dial(DialError::Refused));
                        } else {
                            peer.open(now);
                            let mute = faulty && random.one_in(10);
                            connections[index] = Some(Connection { mute, ..Default::default() });
                        }
                    }
                    Link::Up => {
                        let bytes = peer.transmit(now).head.to_vec();
                        let n = if !faulty || random.one_in(2) {
                            bytes.len()
                        } else {
                            random.below(bytes.len() as u32 + 1) as usize
                        };
                        if n > 0 {
                            peer.sent(now, n);
                            let server = connections[index].as_mut().expect("a connection");
                            server.inbox.extend(&bytes[..n]);
                            let latency = if faulty { random.below(100) } else { 1 };
                            server.run(now.after(Span::from_millis(latency)), &context);
                            progress = true;
                        }
                    }
                    Link::Close => {
                        dialing[index] = false;
                        peer.closed(now, Closed::Local);
                        progress = true;
                    }
                    Link::Upgrade(_) => unreachable!(),
                }
                if !progress {
                    break;
                }
            }
            if let Some(server) = &mut connections[index] {
                let mut arrived = Vec::new();
                while server.outbox.front().is_some_and(|(at, _)| *at <= now) {
                    arrived.extend(server.outbox.pop_front().unwrap().1);
                }
                let cut = random.below(arrived.len() as u32 + 1) as usize;
                for piece in [&arrived[..cut], &arrived[cut..]] {
                    peer.receive(now, piece).unwrap();
                }
                if faulty && random.one_in(60) {
                    peer.closed(now, Closed::Peer);
                    connections[index] = None;
                }
            }
            while peer.poll_event().is_some() {}
        }

        if !faulty {
            let expected = registered(&lookup);
            let settled = (0..PEERS).all(|index| {
                let status = lookup.status(index).unwrap();
                match status.state {
                    LinkState::Idle => status.address.is_none(),
                    LinkState::Ready => status.settled,
                    _ => false,
                }
            });
            if settled {
                let connected: Vec<_> = connections.iter().flatten().collect();
                assert_eq!(connected.len(), configured.len(), "{context}");
                for server in connected {
                    assert_eq!(server.listed, expected, "{context}");
                }
                break;
            }
        }
        assert!(now < end_of_faults.after(Span::from_secs(20)), "{context}: stuck: {lookup:?}");
        now = now.after(Span::from_millis(random.below(20)));
    }
    let connected = (0..PEERS).map(|n| u64::from(lookup.status(n).unwrap().connections)).sum();
    [changes, full, connected]
}

#[test]
fn a_thousand_lives_converge() {
    let mut sums = [0; 3];
    for seed in 0..seeds(1000) {
        for (sum, n) in sums.iter_mut().zip(live(seed)) {
            *sum += n;
        }
    }
    println!("changes, refused without a slot, connections: {sums:?}");
    assert!(sums.iter().all(|&n| n > u64::from(seeds(1000)) / 10), "{sums:?}");
}
