//! A consumer that receives anything from its nsqds and from its nsqlookupd.

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{
    Config, Consumer, Discovery, Exhausted, LookupdEvent, Storage, Token, TooLarge,
};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{Closed, LinkState, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqd::{CommandDecoder, Limits};

use crate::decode::http_seeds;
use crate::feature;
use crate::input::{Input, pieces};
use crate::reference::lookup;
use crate::session::{self, Machine, play};

const CONNECTIONS: usize = 2;
const MESSAGES: usize = 4;
const RING: usize = 64 * MESSAGES;

const FROM_NSQD: &[&[u8]] = &[
    b"\0\0\0\x1c\0\0\0\0{\"auth_required\":false }",
    b"\0\0\0\x06\0\0\0\0OK",
    b"\0\0\0\x22\0\0\0\x02\0\0\0\0\0\0\0\0\0\x010123456789abcdefbody",
    b"\0\0\0\x22\0\0\0\x02\0\0\0\0\0\0\0\0\0\x021123456789abcdefbody",
    b"\0\0\0\x22\0\0\0\x02\0\0\0\0\0\0\0\0\0\x070123456789abcdefbody",
    b"\0\0\0\x0f\0\0\0\0_heartbeat_",
    b"\0\0\0\x5e\0\0\0\x02\0\0\0\0\0\0\0\0\0\x012123456789abcdeflonger than a slot is, which has \
      sixty-four bytes, head and all",
    b"\0\0\x02\x22\0\0\0\x02\0\0\0\0\0\0\0\0\0\x013123456789abcdef",
    b"\0\0\0\x0e\0\0\0\0CLOSE_WAIT",
    b"\0\0\0\x10\0\0\0\x01E_FIN_FAILED",
    b"\0\0\0\x0d\0\0\0\x01E_INVALID",
    b"\0\0\0\x59\0\0\0\0{\"max_rdy_count\":3,\"max_msg_timeout\":4000,\"msg_timeout\":2000,\
      \"auth_required\":true    }",
    b"\0\0\0\x05\0\0\0\x02x",
    b"HTTP/1.1 400 Bad Request\r\n\r\n",
];

const FROM_NSQLOOKUPD: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nContent-Length: 58\r\n\r\n\
      {\"producers\":[{\"broadcast_address\":\"one\",\"tcp_port\":4150}]}",
    b"HTTP/1.1 200 OK\r\nContent-Length: 109\r\n\r\n\
      {\"producers\":[{\"broadcast_address\":\"two\",\"tcp_port\":1},{\"broadcast_address\":\"three\",\
      \"tcp_port\":3,\"x\":[{}]}]}",
    b"HTTP/1.1 404 Not Found\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 16\r\n\r\n{\"producers\":[]}",
    b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"10\r\n{\"producers\":[]}\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n\r\n{\"producers\":nul",
];

struct Application<'a> {
    consumer: Consumer<'a>,
    held: Vec<Token>,
    nsqds: [CommandDecoder; CONNECTIONS],
    request: Vec<u8>,
}

impl Machine for Application<'_> {
    fn sessions(&self) -> usize {
        CONNECTIONS + 1
    }

    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        match self.consumer.connection(index) {
            Some(mut session) => f(&mut session),
            None => f(&mut self.consumer.lookupd(0).expect("an nsqlookupd")),
        }
    }

    fn pieces(&self, index: usize) -> &'static [&'static [u8]] {
        if index < CONNECTIONS { FROM_NSQD } else { FROM_NSQLOOKUPD }
    }

    fn act(&mut self, now: Instant, input: &mut Input<'_>) {
        let consumer = &mut self.consumer;
        match input.below(12) {
            0..=2 => {
                if let Some(delivery) = consumer.take(now) {
                    let message = consumer.message(delivery.token).expect("the message");
                    feature((message.head.attempts.min(9), delivery.exhausted));
                    self.held.push(delivery.token);
                }
            }
            op @ 3..=6 if !self.held.is_empty() => {
                let at = input.below(self.held.len() as u32) as usize;
                let token = self.held.swap_remove(at);
                let done = match op {
                    3 | 4 => consumer.finish(now, token),
                    5 => consumer.requeue(now, token, None),
                    _ => consumer.release(now, token, Some(Span::from_millis(input.below(5000)))),
                };
                feature((op, done.is_ok()));
                assert!(consumer.message(token).is_none(), "an answered message is gone");
                assert!(consumer.finish(now, token).is_err(), "a message is answered once");
            }
            7 if !self.held.is_empty() => {
                let at = input.below(self.held.len() as u32) as usize;
                feature(("touch", consumer.touch(now, self.held[at]).is_ok()));
            }
            8 => {
                if consumer.is_paused() {
                    consumer.resume(now);
                } else {
                    consumer.pause(now);
                }
            }
            9 => consumer.set_max_in_flight(now, input.below(7) as u16),
            10 if input.byte() > 200 => {
                consumer.stop();
            }
            _ => while consumer.poll_event().is_some() {},
        }
    }

    fn opened(&mut self, index: usize) {
        match self.nsqds.get_mut(index) {
            Some(nsqd) => *nsqd = CommandDecoder::new(),
            None => self.request.clear(),
        }
    }

    fn wrote(&mut self, index: usize, bytes: &[u8]) {
        let Some(nsqd) = self.nsqds.get_mut(index) else {
            self.request.extend_from_slice(bytes);
            let text = b"GET /lookup?topic=t%23ephemeral HTTP/1.1\r\nHost: l:1\r\n";
            let n = text.len().min(self.request.len());
            assert_eq!(self.request[..n], text[..n], "a request");
            return;
        };
        let mut input = bytes;
        loop {
            match nsqd.next(&Limits::NSQD, &mut input) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(refusal) => panic!("nsqd refuses a command: {refusal}"),
            }
        }
    }

    fn check(&mut self, _: Instant) {
        assert!(self.held.len() + self.consumer.waiting() <= MESSAGES, "more messages than slots");
        let mut rdy = 0;
        for index in 0..CONNECTIONS {
            let status = self.consumer.status(index).expect("a connection");
            feature((index, status.state as u8, status.rdy.min(5), status.in_flight.min(5)));
            rdy += status.rdy;
        }
        assert!(usize::from(rdy) <= 2 * MESSAGES, "RDY {rdy}");
        let lookupd = self.consumer.lookupd_status(0).expect("an nsqlookupd");
        feature((lookupd.state as u8, lookupd.producers.min(4), lookupd.unserved.min(4)));
        // Each unanswered token names a message, and no two the same.
        for token in &self.held {
            let message = self.consumer.message(*token).expect("an unanswered message");
            assert!(message.body.len() <= RING - 26);
        }
    }
}

fn config(dice: u8) -> Config<'static> {
    let topic = TopicName::new("t#ephemeral").expect("a name");
    let channel = ChannelName::new("c").expect("a name");
    Config {
        auth_secret: (dice & 1 > 0).then_some(b"s3"),
        auto_touch: dice & 2 > 0,
        exhausted: if dice & 4 > 0 { Exhausted::Deliver } else { Exhausted::Finish },
        too_large: if dice & 8 > 0 { TooLarge::Finish } else { TooLarge::Requeue },
        max_in_flight: if dice & 16 > 0 { 1 } else { u16::MAX },
        drain_timeout: Span::from_millis(if dice & 32 > 0 { 0 } else { 5000 }),
        seed: u32::from(dice >> 6),
        ..Config::new(topic, channel)
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let config = config(input.byte());
    let nsqds: [Address; 2] = ["a:1", "b:1"].map(|a| a.parse().expect("an address"));
    let lookupds = ["l:1".parse().expect("an address")];
    let given = input.below(3) as usize;
    let mut ring = [0; RING];
    let mut storage = Storage::<CONNECTIONS, MESSAGES>::new();
    let mut discovery = Discovery::<1, CONNECTIONS>::new();
    let mut consumer = Consumer::new(&config, &mut storage, &nsqds[..given], &mut ring)
        .expect("a good configuration");
    consumer.discover(&mut discovery, &lookupds).expect("room for one");
    let mut application = Application {
        consumer,
        held: Vec::new(),
        nsqds: [(); CONNECTIONS].map(|()| CommandDecoder::new()),
        request: Vec::new(),
    };
    play(&mut application, &mut input);
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = session::seeds(CONNECTIONS as u8 + 1, 12);
    plain.iter().zip(0..).map(|(seed, dice)| [&[dice * 7, 2], &seed[..]].concat()).collect()
}

/// A response of nsqlookupd: splits do not show, and the producers are those that the reference
/// finds.
pub(crate) fn poll(data: &[u8]) {
    let Some((&seed, stream)) = data.split_first() else { return };
    let whole = ask(&mut std::iter::once(stream));
    let split = ask(&mut pieces(stream, seed));
    assert_eq!(whole, split, "splits show, seed {seed}");
    let Some(listed) = lookup::producers(stream) else {
        assert!(matches!(whole.event, LookupdEvent::Failed(_)), "{whole:?}");
        return;
    };
    let count = listed.len() as u16;
    assert_eq!(whole.event, LookupdEvent::Answered { producers: count });
    let mut slots = Vec::new();
    let mut unserved = 0;
    for address in listed.iter().flatten() {
        if slots.len() < FOUND && !slots.contains(address) {
            slots.push(address.clone());
        } else if !slots.contains(address) {
            unserved += 1;
        }
    }
    feature((slots.len(), unserved.min(3), count.min(9)));
    assert_eq!((whole.slots, whole.unserved), (slots, unserved));
}

/// The slots for nsqds from nsqlookupds.
const FOUND: usize = 2;

/// The result of a response.
#[derive(Debug, PartialEq)]
struct LookupResult {
    event: LookupdEvent,
    unserved: u16,
    slots: Vec<String>,
}

fn ask(answer: &mut dyn Iterator<Item = &[u8]>) -> LookupResult {
    let config = config(0);
    let lookupds = ["l:1".parse().expect("an address")];
    let mut ring = [0; RING];
    let mut storage = Storage::<3, MESSAGES>::new();
    let mut discovery = Discovery::<1, FOUND>::new();
    let mut consumer =
        Consumer::new(&config, &mut storage, &[], &mut ring).expect("a good configuration");
    consumer.discover(&mut discovery, &lookupds).expect("room for one");
    let now = Instant::from_millis(1);
    let mut session = consumer.lookupd(0).expect("an nsqlookupd");
    session.dial(now).expect("a lookup at once");
    session.open(now);
    while !session.transmit(now).is_empty() {
        let n = session.transmit(now).len();
        session.sent(now, n);
    }
    for piece in answer {
        if session.receive(now, piece).is_err() {
            break;
        }
    }
    session.closed(now, Closed::Peer);
    let event = session.poll_event().expect("the lookup ended");
    assert_eq!(session.poll_event(), None, "reported once");
    let status = consumer.lookupd_status(0).expect("an nsqlookupd");
    assert_eq!(status.state, LinkState::Waiting);
    feature(match event {
        LookupdEvent::Answered { producers } => format!("{}", producers.min(5)),
        other => {
            format!("{other:?}").split(|c: char| c.is_ascii_digit()).next().expect("one").into()
        }
    });
    let address = |index| consumer.status(index).expect("a connection").address;
    // The connection for configured addresses alone stays unused.
    assert!(address(FOUND).is_none());
    let slots = (0..FOUND).filter_map(address).map(ToString::to_string).collect();
    LookupResult { event, unserved: status.unserved, slots }
}

/// Responses of nsqlookupds, and lists in places and orders that no nsqlookupd uses.
pub(crate) fn poll_seeds() -> Vec<Vec<u8>> {
    let lists: &[&str] = &[
        r#"{"a":null}"#,
        r#"{"producers":null}"#,
        r#"{"producers":"none","x":[{"broadcast_address":"h","tcp_port":1}]}"#,
        r#"{"producers":{"producers":[{"broadcast_address":"h","tcp_port":1}]}}"#,
        r#"{"a":{"b":{"producers":[{"broadcast_address":"h","tcp_port":1}]}}}"#,
        r#"[[{"producers":[{"broadcast_address":"h","tcp_port":1}]}]]"#,
        r#"{"broadcast_address":"h","producers":[{"tcp_port":1}],"tcp_port":2}"#,
        r#"{"tcp_port":2,"producers":[{"broadcast_address":"h"}]}"#,
        r#"{"producers":[{"x":{"broadcast_address":"i","tcp_port":2},"tcp_port":1}]}"#,
        r#"{"producers":[{"broadcast_address":"h","x":{"tcp_port":2}}]}"#,
        r#"{"producers":[[{"broadcast_address":"h","tcp_port":1}],{"tcp_port":3}]}"#,
        r#"{"producers":[{"t":[],"broadcast_address":"h","tcp_port":1},{"broadcast_address":"i",
            "tags":[1,[2]],"tcp_port":2}],"x":[{"broadcast_address":"j","tcp_port":3}]}"#,
        r#"{"producers":[],"producers":[{"broadcast_address":"h","tcp_port":1}]}"#,
        r#"{"producers":[{"producers":[{"broadcast_address":"i","tcp_port":2}],"tcp_port":1}]}"#,
        r#"{"x":[{"broadcast_address":"h","tcp_port":1}],"producers":[]}"#,
    ];
    let mut seeds = http_seeds();
    seeds.extend(
        lists.iter().map(|list| [b"\x07HTTP/1.0 200 OK\r\n\r\n", list.as_bytes()].concat()),
    );
    seeds
}
