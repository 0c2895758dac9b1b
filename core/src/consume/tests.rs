//! A consumer's connections and polls as scenarios: times in milliseconds, bytes as nsqd 1.3.0
//! sends them.

use super::*;
use crate::name::{ChannelName, TopicName};
use crate::session::{Awaited, DialError, Fault, Link, Session, TransportError};
use crate::wire::http::{BadAnswer, HttpError};
use crate::wire::v2::ErrorCode;

const INFO: &[u8] = b"{\"max_rdy_count\":2500,\"version\":\"1.3.0\",\"max_msg_timeout\":900000,\
    \"msg_timeout\":60000,\"tls_v1\":false,\"deflate\":false,\"deflate_level\":6,\
    \"max_deflate_level\":6,\"snappy\":false,\"sample_rate\":0,\"auth_required\":false,\
    \"output_buffer_size\":16384,\"output_buffer_timeout\":250}";

fn config() -> Config<'static> {
    Config {
        heartbeat: Span::from_secs(10),
        ..Config::new(TopicName::new("t").unwrap(), ChannelName::new("ch").unwrap())
    }
}

fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len() + 4).unwrap().to_be_bytes();
    [&size[..], &[0, 0, 0, kind], data].concat()
}

fn message(id: u8, attempts: u16, body: &[u8]) -> Vec<u8> {
    let data = [&[0; 7][..], &[id], &attempts.to_be_bytes(), &name(id)[..], body].concat();
    frame(2, &data)
}

fn name(id: u8) -> [u8; 16] {
    let text = format!("{id:016x}");
    text.as_bytes().try_into().unwrap()
}

fn id(id: u8) -> String {
    String::from_utf8(name(id).to_vec()).unwrap()
}

fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

/// A consumer and the time.
struct Bench<'a> {
    consumer: Consumer<'a>,
    now: u64,
}

impl<'a> Bench<'a> {
    fn now(&self) -> Instant {
        at(self.now)
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        assert!(ms >= self.now);
        self.now = ms;
        self
    }

    fn session(&mut self, index: usize) -> ConnectionSession<'_, 'a> {
        self.consumer.connection(index).unwrap()
    }

    fn tick(&mut self) -> &mut Self {
        let now = self.now();
        for index in 0..self.consumer.connections() {
            self.session(index).tick(now);
        }
        for index in 0..self.consumer.lookupds() {
            self.consumer.lookupd(index).unwrap().tick(now);
        }
        self
    }

    /// Everything that a connection writes.
    fn written(&mut self, index: usize) -> Vec<u8> {
        let now = self.now();
        let mut all = Vec::new();
        let mut session = self.session(index);
        loop {
            let bytes = session.transmit(now);
            assert!(bytes.body.is_empty());
            let n = bytes.head.len();
            if n == 0 {
                return all;
            }
            all.extend(bytes.head);
            session.sent(now, n);
        }
    }

    #[track_caller]
    fn writes(&mut self, index: usize, text: &str) -> &mut Self {
        let written = self.written(index);
        assert_eq!(String::from_utf8_lossy(&written), text);
        self
    }

    #[track_caller]
    fn receive(&mut self, index: usize, bytes: &[u8]) -> &mut Self {
        let now = self.now();
        self.session(index).receive(now, bytes).unwrap();
        self
    }

    #[track_caller]
    fn fault(&mut self, index: usize, bytes: &[u8]) -> Fault {
        let now = self.now();
        let fault = self.session(index).receive(now, bytes).unwrap_err();
        assert_eq!(self.session(index).link(), Link::Close);
        assert_eq!(self.session(index).receive(now, b"more"), Ok(()), "ignored");
        fault
    }

    #[track_caller]
    fn dial(&mut self, index: usize) -> String {
        let now = self.now();
        self.session(index).dial(now).expect("a dial is due").to_string()
    }

    fn open(&mut self, index: usize) -> &mut Self {
        let now = self.now();
        self.session(index).open(now);
        self
    }

    fn closed(&mut self, index: usize, why: Closed) -> &mut Self {
        let now = self.now();
        self.session(index).closed(now, why);
        self
    }

    /// Dials and goes through the handshake, up to SUB's answer.
    #[track_caller]
    fn connect(&mut self, index: usize) -> &mut Self {
        self.dial(index);
        self.open(index);
        assert!(self.written(index).starts_with(b"  V2IDENTIFY\n"));
        self.receive(index, &frame(0, INFO)).writes(index, "SUB t ch\n");
        self.receive(index, &frame(0, b"OK"))
    }

    #[track_caller]
    fn take(&mut self) -> Token {
        let now = self.now();
        self.consumer.take(now).expect("a message waits").token
    }

    #[track_caller]
    fn finish(&mut self, token: Token) -> &mut Self {
        let now = self.now();
        self.consumer.finish(now, token).unwrap();
        self
    }

    fn state(&self, index: usize) -> ConnectionState {
        self.consumer.status(index).unwrap().state
    }

    #[track_caller]
    fn body(&self, token: Token) -> &[u8] {
        self.consumer.message(token).unwrap().body
    }
}

fn addresses<const N: usize>() -> [Address; N] {
    core::array::from_fn(|n| format!("nsqd{n}:4150").parse().unwrap())
}

/// Runs a scenario with so many connections, nsqds and slots of 64 bytes.
fn with<const C: usize, const M: usize>(
    config: &Config<'_>,
    nsqds: usize,
    scenario: impl FnOnce(&mut Bench<'_>),
) {
    let mut storage = Storage::<C, M>::new();
    let all = addresses::<8>();
    let mut ring = vec![0; M * 64];
    let consumer = Consumer::new(config, &mut storage, &all[..nsqds], &mut ring).unwrap();
    scenario(&mut Bench { consumer, now: 0 });
}

#[test]
fn connects_subscribes_and_asks() {
    with::<1, 4>(&config(), 1, |bench| {
        assert_eq!(bench.state(0), ConnectionState::Unused);
        assert_eq!(bench.dial(0), "nsqd0:4150");
        assert_eq!(bench.session(0).link(), Link::Up);
        bench.open(0).at(5);
        let hello = String::from_utf8(bench.written(0)).unwrap();
        let (head, body) = hello.split_once('{').unwrap();
        assert_eq!(
            head.as_bytes(),
            [b"  V2IDENTIFY\n\0\0\0", &[body.len() as u8 + 1][..]].concat()
        );
        assert!(body.contains("\"heartbeat_interval\":10000"), "{body}");
        bench.receive(0, &frame(0, INFO)).writes(0, "SUB t ch\n");
        assert_eq!(bench.state(0), ConnectionState::Subscribing);
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 4\n");
        assert_eq!(bench.state(0), ConnectionState::Ready);
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Connected));
        assert_eq!(bench.session(0).poll_event(), None);
        // A message, in pieces.
        let bytes = message(7, 1, b"hello");
        for byte in &bytes {
            assert_eq!(bench.consumer.waiting(), 0);
            bench.receive(0, &[*byte]);
        }
        let token = bench.take();
        assert_eq!(bench.body(token), b"hello");
        let head = bench.consumer.message(token).unwrap().head;
        assert_eq!((head.attempts, head.timestamp, head.id.0), (1, 7, name(7)));
        assert_eq!(bench.consumer.take(at(5)), None);
        bench.writes(0, "");
        bench.finish(token).writes(0, &format!("FIN {}\n", id(7)));
        assert!(bench.consumer.message(token).is_none());
        assert_eq!(bench.consumer.finish(at(5), token), Err(AnswerError::Unknown));
        let counters = bench.consumer.counters();
        assert_eq!((counters.received, counters.finished), (1, 1));
    });
}

#[test]
fn ram() {
    let word = size_of::<usize>();
    // On a 32-bit machine 176 bytes less.
    assert_eq!(size_of::<Consumer<'_>>(), if word == 8 { RAM_MAX } else { 0 });
    assert!(size_of::<Storage<1, 0>>() <= CONNECTION_RAM_MAX + 8, "{}", size_of::<Storage<1, 0>>());
    assert_eq!(size_of::<Storage<100, 0>>() / 100, CONNECTION_RAM_MAX);
    assert_eq!(size_of::<Storage<0, 100>>() / 100, MESSAGE_RAM_MAX);
    assert!(size_of::<Discovery<100, 0>>() / 100 <= LOOKUPD_RAM_MAX);
    assert!(size_of::<Discovery<0, 100>>() / 100 <= FOUND_RAM_MAX);
    let all = size_of::<Consumer<'_>>() + size_of::<Storage<2, 4>>();
    assert_eq!(all, 1016, "two connections, four messages in flight");
}
