//! A registration that receives anything.

use nanonsq_core::address::Address;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::registration::{Config, NodeInfo, Registration};
use nanonsq_core::session::{LinkState, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqlookupd::CommandDecoder;

use crate::feature;
use crate::input::Input;
use crate::session::{self, Machine, play};

const PEERS: usize = 2;

const PIECES: &[&[u8]] = &[
    b"\0\0\0\x18{\"broadcast_address\":\"\"}",
    b"\0\0\0\x02OK",
    b"\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK",
    b"\0\0\0\x0eE_BAD_PROTOCOL",
    b"\0\0\0\0",
    b"\0\0\0\x02NO",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
    b"\0\0\x20\0",
];

struct Node<'a> {
    lookup: Registration<'a, PEERS, 3, 4>,
    addresses: [Address; 3],
    nsqlookupds: [CommandDecoder; PEERS],
}

impl Machine for Node<'_> {
    fn sessions(&self) -> usize {
        PEERS
    }

    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut self.lookup.peer(index).expect("a peer"));
    }

    fn pieces(&self, _: usize) -> &'static [&'static [u8]] {
        PIECES
    }

    fn act(&mut self, now: Instant, input: &mut Input<'_>) {
        let topic = TopicName::new(input.pick(&["a", "b", "c", "d"])).expect("a name");
        let channel = ChannelName::new(input.pick(&["x", "y#ephemeral"])).expect("a name");
        match input.below(10) {
            0..=1 => drop(self.lookup.register(&topic, None)),
            2..=3 => drop(self.lookup.register(&topic, Some(&channel))),
            4 => drop(self.lookup.unregister(&topic, None)),
            5 => drop(self.lookup.unregister(&topic, Some(&channel))),
            6 => self.lookup.stop(now),
            7 => {
                for index in 0..PEERS {
                    let _ = self.lookup.peer(index).expect("a peer").poll_event();
                }
            }
            _ => {
                let (from, count) = (input.below(3) as usize, input.below(3) as usize);
                let some: Vec<_> =
                    self.addresses.iter().cycle().skip(from).take(count).cloned().collect();
                self.lookup.configure(now, &some).expect("as many as there are peers");
            }
        }
    }

    fn opened(&mut self, index: usize) {
        self.nsqlookupds[index] = CommandDecoder::new(1000);
    }

    fn wrote(&mut self, index: usize, bytes: &[u8]) {
        let mut input = bytes;
        loop {
            match self.nsqlookupds[index].next(&mut input) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(refusal) => panic!("nsqlookupd refuses a command: {refusal}"),
            }
        }
    }

    fn check(&mut self, _: Instant) {
        for index in 0..PEERS {
            let status = self.lookup.status(index).expect("a peer");
            feature((index, std::mem::discriminant(&status.state), status.settled));
            assert!(!status.settled || status.state == LinkState::Ready);
            assert!(status.state != LinkState::Idle || status.address.is_none());
        }
        let (channels, topics): (Vec<_>, Vec<_>) =
            self.lookup.registered().partition(|(_, channel)| channel.is_some());
        assert!(topics.len() <= 3 && channels.len() <= 4);
    }
}

pub(crate) fn config(dice: u8) -> Config<'static> {
    Config {
        reassert: Span::from_millis(if dice & 1 > 0 { 5000 } else { 0 }),
        ping: Span::from_millis(if dice & 2 > 0 { 3000 } else { 15_000 }),
        reconnect_spread: Span::from_millis(if dice & 4 > 0 { 500 } else { 0 }),
        seed: dice.into(),
        ..Config::new(NodeInfo {
            broadcast_address: "b",
            hostname: "h",
            tcp_port: 1,
            http_port: 2,
            version: "1",
            ..NodeInfo::default()
        })
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(input.byte());
    let addresses = ["one:1", "two:1", "three:1"].map(|a| a.parse().expect("an address"));
    let mut lookup = Registration::new(&config).expect("a good configuration");
    lookup.configure(Instant::ZERO, &addresses[..2]).expect("as many as there are peers");
    let nsqlookupds = [(); PEERS].map(|()| CommandDecoder::new(1000));
    play(&mut Node { lookup, addresses, nsqlookupds }, &mut input);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = session::seeds(PEERS as u8, 10);
    plain.iter().zip(0..).map(|(seed, dice)| [&[dice], &seed[..]].concat()).collect()
}
