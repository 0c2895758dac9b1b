//! All nodes and a model nsqlookupd in virtual time: the real state machines, on a network without
//! faults but with delays.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use nanonsq_models::nsqlookupd::Nsqlookupd;
use nanonsq_models::random::Random;
use nanonsq_models::server::{Out, Reply, Server};
use nanonsq_std::core::address::Address;
use nanonsq_std::core::name::TopicName;
use nanonsq_std::core::registration::{Config, Registration};
use nanonsq_std::core::session::{Closed, DialError, Link, Session, TransportError};
use nanonsq_std::core::time::Instant;

use crate::Return;

/// A fleet and the outage of its nsqlookupd.
pub(crate) struct Scenario {
    pub(crate) nodes: usize,
    pub(crate) config: Config<'static>,
    pub(crate) jitter: Jitter,
    /// The outage of nsqlookupd, in seconds.
    pub(crate) down: f64,
}

/// The jitter of the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Jitter {
    /// All nodes have the same seed and act at the same time.
    None,
    /// Each node has its own seed.
    Each,
}

/// When nsqlookupd goes down, in microseconds: all nodes are listed by then.
const CRASH: u64 = 20 * SECOND;
/// The time of the run after nsqlookupd is up again, in microseconds.
const WATCH: u64 = 30 * SECOND;
const SECOND: u64 = 1_000_000;
/// The shortest and longest delay of a segment, in microseconds.
const DELAY: (u64, u64) = (200, 2000);

/// An event of a node.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Alarm,
    /// A dial reaches nsqlookupd.
    Dial,
    /// The result of a dial reaches the node.
    Dialed(bool),
    /// Bytes reach nsqlookupd on this connection.
    Up(u64, Vec<u8>),
    /// Bytes reach the node.
    Down(u64, Vec<u8>),
    /// The node sees that its connection is gone.
    Gone(u64),
}

struct Node<'c> {
    lookup: Registration<'c, 1, 1, 1>,
    /// The current or last connection.
    conn: u64,
    connected: bool,
    dialing: bool,
    listed: bool,
    alarm: u64,
    /// When the last segment under way arrives.
    last: u64,
}

struct World<'c> {
    nodes: Vec<Node<'c>>,
    queue: BinaryHeap<Reverse<(u64, u64, usize, What)>>,
    pushed: u64,
    random: Random,
    now: u64,
    server: Option<Nsqlookupd>,
    listed: usize,
    conns: u64,
    /// The times at which connections came up.
    opened: Vec<u64>,
    /// When the last node was listed.
    last: u64,
}

pub(crate) fn run(scenario: &Scenario) -> Return {
    let topic = TopicName::new("fleet").expect("a name");
    let address: [Address; 1] = ["lookupd:4160".parse().expect("an address")];
    let configs: Vec<Config<'_>> = (0..scenario.nodes)
        .map(|n| {
            let seed = if scenario.jitter == Jitter::Each { n as u32 } else { 0 };
            Config { seed, ..scenario.config }
        })
        .collect();
    let mut world = World {
        nodes: Vec::new(),
        queue: BinaryHeap::new(),
        pushed: 0,
        random: Random::new(1),
        now: 1,
        server: Some(new_server()),
        listed: 0,
        conns: 0,
        opened: Vec::new(),
        last: 0,
    };
    for (at, config) in configs.iter().enumerate() {
        let mut lookup = Registration::new(config).expect("a good configuration");
        lookup.register(&topic, None).expect("room for one");
        lookup.configure(Instant::from_micros(world.now), &address).expect("room for one");
        let node = Node {
            lookup,
            conn: 0,
            connected: false,
            dialing: false,
            listed: false,
            alarm: u64::MAX,
            last: 0,
        };
        world.nodes.push(node);
        world.drive(at);
    }
    world.until(CRASH);
    assert_eq!(world.listed, scenario.nodes, "all are listed in the beginning");
    world.crash();
    let up = CRASH + (scenario.down * SECOND as f64) as u64;
    world.until(up);
    world.server = Some(new_server());
    world.opened.clear();
    world.until(up + WATCH);
    assert_eq!(world.listed, scenario.nodes, "all are listed again");
    let mut tenths = vec![0; (WATCH / (SECOND / 10)) as usize + 1];
    for at in &world.opened {
        tenths[((at - up) / (SECOND / 10)) as usize] += 1;
    }
    Return { tenths, listed: (world.last - up) as f64 / SECOND as f64 }
}

fn new_server() -> Nsqlookupd {
    Nsqlookupd::new(u64::MAX / 2)
}

impl World<'_> {
    fn push(&mut self, at: u64, node: usize, what: What) {
        self.pushed += 1;
        self.queue.push(Reverse((at, self.pushed, node, what)));
    }

    fn after_a_while(&mut self, node: usize, what: What) {
        let at = self.now + self.random.between(DELAY.0, DELAY.1);
        // Events of a node stay in order.
        let last = &mut self.nodes[node].last;
        *last = at.max(*last);
        let at = *last;
        self.push(at, node, what);
    }

    fn until(&mut self, end: u64) {
        while self.queue.peek().is_some_and(|Reverse((at, ..))| *at < end) {
            let Some(Reverse((at, _, node, what))) = self.queue.pop() else { return };
            self.now = at;
            self.happen(node, what);
        }
        self.now = end;
    }

    fn crash(&mut self) {
        self.server = None;
        for at in 0..self.nodes.len() {
            let node = &mut self.nodes[at];
            self.listed -= usize::from(std::mem::take(&mut node.listed));
            let conn = node.conn;
            self.after_a_while(at, What::Gone(conn));
        }
    }

    fn happen(&mut self, at: usize, what: What) {
        let now = Instant::from_micros(self.now);
        let node = &mut self.nodes[at];
        let mut peer = node.lookup.peer(0).expect("a peer");
        match what {
            What::Alarm => node.alarm = u64::MAX,
            What::Dial => {
                let up = self.server.is_some();
                if up {
                    self.opened.push(self.now);
                }
                self.after_a_while(at, What::Dialed(up));
                return;
            }
            What::Dialed(up) => {
                node.dialing = false;
                match (peer.link(), up) {
                    (Link::Up, true) => {
                        self.conns += 1;
                        node.conn = self.conns;
                        node.connected = true;
                        peer.open(now);
                        if let Some(server) = &mut self.server {
                            server.open(node.conn, &mut Out::new(self.now));
                        }
                    }
                    (Link::Up, false) => peer.closed(now, Closed::Dial(DialError::Refused)),
                    _ => {}
                }
            }
            What::Up(conn, bytes) => {
                self.serve(at, conn, &bytes);
                return;
            }
            What::Down(conn, bytes) => {
                if conn == node.conn && node.connected {
                    peer.receive(now, &bytes).expect("correct replies");
                }
            }
            What::Gone(conn) => {
                if conn == node.conn && std::mem::take(&mut node.connected) {
                    peer.closed(now, Closed::Transport(TransportError::Reset));
                }
            }
        }
        self.drive(at);
    }

    fn serve(&mut self, at: usize, conn: u64, bytes: &[u8]) {
        let Some(server) = &mut self.server else { return };
        let mut out = Out::new(self.now);
        server.receive(conn, bytes, &mut out);
        let node = &mut self.nodes[at];
        if !node.listed && server.listing(conn).is_some_and(|names| names.contains("fleet")) {
            node.listed = true;
            self.listed += 1;
            self.last = self.now;
        }
        for (_, reply) in out.replies {
            match reply {
                Reply::Say(_, bytes) => self.after_a_while(at, What::Down(conn, bytes)),
                Reply::Close => self.after_a_while(at, What::Gone(conn)),
            }
        }
    }

    /// Acts as a driver of the node.
    fn drive(&mut self, at: usize) {
        let now = Instant::from_micros(self.now);
        loop {
            let node = &mut self.nodes[at];
            let mut peer = node.lookup.peer(0).expect("a peer");
            if peer.deadline() <= now {
                peer.tick(now);
            }
            match peer.link() {
                Link::Down => {
                    if peer.dial(now).is_none() {
                        break;
                    }
                    node.dialing = true;
                    self.after_a_while(at, What::Dial);
                }
                Link::Up => {
                    let bytes = peer.transmit(now).head.to_vec();
                    if !node.connected || bytes.is_empty() {
                        break;
                    }
                    peer.sent(now, bytes.len());
                    let conn = node.conn;
                    self.after_a_while(at, What::Up(conn, bytes));
                }
                Link::Close => {
                    node.connected = false;
                    peer.closed(now, Closed::Local);
                }
                Link::Upgrade(upgrade) => panic!("an upgrade that was not requested: {upgrade:?}"),
            }
        }
        let node = &mut self.nodes[at];
        let deadline = node.lookup.peer(0).expect("a peer").deadline().as_micros();
        if deadline < node.alarm {
            node.alarm = deadline;
            self.push(deadline, at, What::Alarm);
        }
    }
}
