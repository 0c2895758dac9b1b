//! A registry and its peers with model nsqlookupds, which are sets of names: whatever happened
//! before, once nothing fails any more every configured nsqlookupd lists exactly the desired names,
//! and no other has a connection.

use std::collections::BTreeSet;

use nanonsq_core::address::Address;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::registration::{Registration, RegistryFull};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqlookupd::{CommandDecoder, Item};

use crate::feature;
use crate::input::Input;
use crate::registration::config;

const PEERS: usize = 2;
const TOPICS: usize = 3;
const CHANNELS: usize = 4;
const INFO: &[u8] = b"\0\0\0\x18{\"broadcast_address\":\"\"}";
const OK: &[u8] = b"\0\0\0\x02OK";

/// A connection from the nsqlookupd's side.
struct Nsqlookupd {
    commands: CommandDecoder,
    listed: BTreeSet<String>,
    /// Sent bytes that the peer has not read.
    sent: Vec<u8>,
}

impl Nsqlookupd {
    fn receive(&mut self, bytes: &[u8]) {
        let mut input = bytes;
        loop {
            let item = match self.commands.next(&mut input) {
                Ok(Some(item)) => item,
                Ok(None) => return,
                Err(refusal) => panic!("refused: {refusal}"),
            };
            match item {
                Item::Identify | Item::Body { .. } | Item::Part { last: false, .. } => continue,
                Item::Part { last: true, .. } => {
                    self.sent.extend_from_slice(INFO);
                    continue;
                }
                Item::Ping => {}
                Item::Register { topic, channel } => {
                    self.listed.insert(topic.to_string());
                    self.listed.extend(channel.map(|channel| format!("{topic}/{channel}")));
                }
                Item::Unregister { topic, channel: Some(channel) } => {
                    let registered = self.listed.remove(&format!("{topic}/{channel}"));
                    assert!(registered, "UNREGISTER {topic} {channel}, which was not registered");
                }
                Item::Unregister { topic, channel: None } => {
                    let name = topic.to_string();
                    assert!(
                        self.listed.remove(&name),
                        "UNREGISTER {topic}, which was not registered"
                    );
                    let channels = format!("{name}/");
                    let left = self.listed.iter().any(|other| other.starts_with(&channels));
                    assert!(!left, "UNREGISTER {topic} before its channels");
                }
            }
            self.sent.extend_from_slice(OK);
        }
    }
}

struct World<'a> {
    registration: Registration<'a, PEERS, TOPICS, CHANNELS>,
    nsqlookupds: [Option<Nsqlookupd>; PEERS],
    addresses: [Address; 3],
    /// The configured nsqlookupds, in order.
    configured: Vec<Address>,
    desired: BTreeSet<String>,
    now: Instant,
}

impl World<'_> {
    fn change(&mut self, input: &mut Input<'_>) {
        let name = input.pick(&["a", "b", "c", "d"]);
        let topic = TopicName::new(name).expect("a name");
        let channel = ChannelName::new(input.pick(&["x", "y"])).expect("a name");
        let both = format!("{name}/{channel}");
        match input.below(4) {
            0 => match self.registration.register(&topic, None) {
                Ok(()) => drop(self.desired.insert(name.into())),
                Err(full) => self.full(full, false),
            },
            1 => match self.registration.register(&topic, Some(&channel)) {
                Ok(()) => self.desired.extend([name.to_owned(), both]),
                Err(full) => self.full(full, true),
            },
            2 => {
                let was = self.desired.remove(name);
                self.desired.retain(|other| !other.starts_with(&format!("{name}/")));
                assert_eq!(self.registration.unregister(&topic, None), was);
            }
            _ => {
                let was = self.desired.remove(&both);
                assert_eq!(self.registration.unregister(&topic, Some(&channel)), was);
            }
        }
    }

    /// Configures other nsqlookupds; one that stays must keep its connection.
    fn configure(&mut self, input: &mut Input<'_>) {
        let (from, count) = (input.below(3) as usize, input.below(PEERS as u32 + 1) as usize);
        let some: Vec<_> = self.addresses.iter().cycle().skip(from).take(count).cloned().collect();
        let had = |world: &mut Self| {
            let peers = (0..PEERS).map(|at| {
                let status = world.registration.status(at).expect("a peer");
                (status.address.cloned(), status.state)
            });
            peers.collect::<Vec<_>>()
        };
        let before = had(self);
        self.registration.configure(self.now, &some).expect("as many as there are peers");
        for (before, after) in before.iter().zip(had(self)) {
            let stays = before.0.as_ref().is_some_and(|address| some.contains(address));
            assert!(!stays || *before == after, "{before:?} stays, not {after:?}");
        }
        self.configured = some;
    }

    /// Checks a full registry: slots are held by desired names, or by names that an nsqlookupd may
    /// still list.
    fn full(&self, full: RegistryFull, channel: bool) {
        feature((std::mem::discriminant(&full), channel));
        if self.nsqlookupds.iter().all(Option::is_none) {
            let channels = self.desired.iter().filter(|name| name.contains('/')).count();
            match full {
                RegistryFull::Topics { max } => assert_eq!(self.desired.len() - channels, max),
                RegistryFull::Channels { max } => assert_eq!(channels, max),
            }
        }
    }

    /// Lets a peer write up to `write` bytes and read up to `read` bytes.
    fn exchange(&mut self, at: usize, write: usize, read: usize) -> bool {
        let now = self.now;
        let mut peer = self.registration.peer(at).expect("a peer");
        if peer.deadline() <= now {
            peer.tick(now);
        }
        match (peer.link(), &mut self.nsqlookupds[at]) {
            (Link::Down, server) => {
                *server = None;
                if peer.dial(now).is_none() {
                    return false;
                }
                peer.open(now);
                *server = Some(Nsqlookupd {
                    commands: CommandDecoder::new(1000),
                    listed: BTreeSet::new(),
                    sent: Vec::new(),
                });
                true
            }
            (Link::Up, Some(server)) => {
                let bytes = peer.transmit(now).head.to_vec();
                let n = bytes.len().min(write);
                peer.sent(now, n);
                server.receive(&bytes[..n]);
                let read = server.sent.len().min(read);
                let received: Vec<u8> = server.sent.drain(..read).collect();
                assert_eq!(peer.receive(now, &received), Ok(()), "correct replies");
                n + read > 0
            }
            (Link::Close, server) => {
                *server = None;
                peer.closed(now, Closed::Local);
                true
            }
            (link, _) => panic!("{link:?} without a dial"),
        }
    }

    fn check(&mut self) {
        let status = |at| self.registration.status(at).expect("a peer").address.cloned();
        let mut addresses: Vec<_> = (0..PEERS).filter_map(status).collect();
        let mut configured = self.configured.clone();
        addresses.sort_by_key(ToString::to_string);
        configured.sort_by_key(ToString::to_string);
        assert_eq!(addresses, configured, "each nsqlookupd has one peer");
        let name = |(topic, channel): (&TopicName, Option<&ChannelName>)| match channel {
            None => topic.to_string(),
            Some(channel) => format!("{topic}/{channel}"),
        };
        let names: BTreeSet<_> = self.registration.registered().map(name).collect();
        assert_eq!(names, self.desired, "the registry has exactly the desired names");
        let listed = |server: &Option<Nsqlookupd>| server.as_ref().map(|it| it.listed.len());
        feature((names.len(), listed(&self.nsqlookupds[0]), listed(&self.nsqlookupds[1])));
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(input.byte());
    let mut registration = Registration::new(&config).expect("a good configuration");
    let addresses = ["one:1", "two:1", "three:1"].map(|a| a.parse().expect("an address"));
    let configured = addresses[..PEERS].to_vec();
    registration.configure(Instant::ZERO, &configured).expect("as many as there are peers");
    let now = Instant::from_millis(1);
    let desired = BTreeSet::new();
    let mut world =
        World { registration, nsqlookupds: [None, None], addresses, configured, desired, now };
    while !input.is_over() {
        let at = input.below(PEERS as u32) as usize;
        match input.below(8) {
            0..=2 => world.change(&mut input),
            3 => {
                let (write, read) = (input.byte().into(), input.byte().into());
                world.exchange(at, write, read);
            }
            4 => while world.exchange(at, 1000, 1000) {},
            5 if input.below(4) == 3 => world.configure(&mut input),
            5 => world.now = world.now.after(Span::from_millis(input.below(4000))),
            6 if world.nsqlookupds[at].take().is_some() => {
                let now = world.now;
                world.registration.peer(at).expect("a peer").closed(now, Closed::Peer);
            }
            _ => {
                for other in 0..PEERS {
                    world.exchange(other, 1000, 1000);
                }
            }
        }
        world.check();
    }
    // From now on nothing fails.
    for _ in 0..100 {
        for at in 0..PEERS {
            let mut rounds = 0;
            while world.exchange(at, 1000, 1000) {
                rounds += 1;
                assert!(rounds < 1000, "never settles");
            }
        }
        world.now = world.now.after(Span::from_millis(100));
    }
    for (at, server) in world.nsqlookupds.iter().enumerate() {
        let status = world.registration.status(at).expect("a peer");
        assert_eq!(server.is_some(), status.address.is_some(), "{status:?}");
        let Some(server) = server else { continue };
        assert_eq!(server.listed, world.desired, "nsqlookupd {at} does not list the desired names");
        assert!(status.settled);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    vec![
        vec![0, 0, 0, 0, 0, 1, 0, 4, 0, 1, 1, 1, 1, 4, 0, 2, 2, 0, 2],
        vec![1, 0, 4, 1, 4, 0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 0, 7, 0, 0, 2, 0, 3, 0, 6, 0, 4],
        vec![3, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0, 0, 3, 0, 0, 0, 4, 1, 6, 0, 5, 0, 9],
        vec![0, 0, 0, 0, 0, 0, 7, 0, 5, 3, 1, 2, 0, 7, 0, 5, 3, 0, 1, 0, 7, 0, 5, 3, 2, 2, 0, 4],
    ]
}
