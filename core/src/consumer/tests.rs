//! Scenarios of a consumer's connections and queries: times in milliseconds, bytes as nsqd 1.3.0
//! sends them.

mod connections;
mod edges;
mod lookupds;
mod messages;

use super::*;
use crate::address::HOST_MAX;
use crate::name::{ChannelName, TopicName};
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, TransportError};
use crate::wire::DecodeError;
use crate::wire::http::{BadAnswer, HttpError};
use crate::wire::nsqd::ErrorCode;

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

    /// Returns everything that a connection writes.
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

    /// Connection 0 dials, if that is due, and is refused; then the time advances to its next
    /// deadline. Returns the dialed address.
    fn dial_in_vain(&mut self) -> Option<String> {
        self.tick();
        let now = self.now();
        let dialed = self.session(0).dial(now).map(Address::to_string);
        if dialed.is_some() {
            self.closed(0, Closed::Dial(DialError::Refused));
        }
        let next = self.session(0).deadline().as_micros().div_ceil(1000);
        let next = next.max(self.now + 1);
        self.at(next);
        dialed
    }

    /// Dials and completes the handshake, including SUB's response.
    #[track_caller]
    fn connect(&mut self, index: usize) -> &mut Self {
        self.connect_with(index, INFO)
    }

    /// As [`connect`](Self::connect), with `info` as the response to IDENTIFY.
    #[track_caller]
    fn connect_with(&mut self, index: usize, info: &[u8]) -> &mut Self {
        self.dial(index);
        self.open(index);
        assert!(self.written(index).starts_with(b"  V2IDENTIFY\n"));
        self.receive(index, &frame(0, info)).writes(index, "SUB t ch\n");
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

    fn state(&self, index: usize) -> LinkState {
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

/// Runs a scenario with `C` connections, `M` slots of 64 bytes and `nsqds` given nsqds.
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

fn producer(host: &str) -> String {
    format!(
        "{{\"remote_address\":\"127.0.0.1:37372\",\"hostname\":\"h\",\"broadcast_address\":\
         \"{host}\",\"tcp_port\":4150,\"http_port\":4151,\"version\":\"1.3.0\",\
         \"topology_zone\":\"\",\"topology_region\":\"\"}}"
    )
}

fn lookup_body(hosts: &[&str]) -> String {
    let producers: Vec<String> = hosts.iter().map(|host| producer(host)).collect();
    format!("{{\"channels\":[\"archive\",\"metrics\"],\"producers\":[{}]}}", producers.join(","))
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\n\
         X-Nsq-Content-Type: nsq; version=1.0\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl<'a> Bench<'a> {
    fn poll(&mut self, index: usize) -> LookupdSession<'_, 'a> {
        self.consumer.lookupd(index).unwrap()
    }

    /// Dials nsqlookupd `index` and returns the request.
    #[track_caller]
    fn ask(&mut self, index: usize) -> String {
        let now = self.now();
        let mut session = self.poll(index);
        session.dial(now).expect("a dial is due");
        session.open(now);
        let mut request = Vec::new();
        loop {
            let bytes = session.transmit(now).head.to_vec();
            if bytes.is_empty() {
                return String::from_utf8(request).unwrap();
            }
            session.sent(now, bytes.len());
            request.extend(bytes);
        }
    }

    /// Queries nsqlookupd `index` as soon as that is due.
    #[track_caller]
    fn ask_when_due(&mut self, index: usize) {
        let due = self.poll(index).deadline().as_micros().div_ceil(1000);
        let due = due.max(self.now);
        self.at(due).tick();
        self.ask(index);
    }

    /// Queries nsqlookupd `index` as soon as that is due, with `bytes` as the answer.
    #[track_caller]
    fn answer(&mut self, index: usize, bytes: &[u8]) -> Result<(), Fault> {
        self.ask_when_due(index);
        let now = self.now();
        let mut session = self.poll(index);
        let answered = session.receive(now, bytes);
        session.closed(now, if session.link() == Link::Up { Closed::Peer } else { Closed::Local });
        answered
    }

    fn hosts(&mut self) -> Vec<String> {
        self.tick();
        let ids = 0..self.consumer.connections();
        let address = |id| self.consumer.status(id).unwrap().address.map(Address::host);
        ids.filter_map(address).map(str::to_owned).collect()
    }
}

fn looking_up(config: &Config<'_>, lookupds: usize, scenario: impl FnOnce(&mut Bench<'_>)) {
    let mut storage = Storage::<3, 4>::new();
    let mut discovery = Discovery::<2, 3>::new();
    let all: [Address; 2] = ["one:4161", "two:4161"].map(|host| host.parse().unwrap());
    let mut ring = [0; 256];
    let mut consumer = Consumer::new(config, &mut storage, &[], &mut ring).unwrap();
    consumer.discover(&mut discovery, &all[..lookupds]).unwrap();
    scenario(&mut Bench { consumer, now: 0 });
}

#[test]
fn settings_are_checked() {
    let check = |config: &Config<'_>, ring: usize, nsqds: usize| {
        let mut storage = Storage::<1, 2>::new();
        let mut ring = vec![0; ring];
        let all = vec!["h:1".parse().unwrap(); nsqds];
        let error = Consumer::new(config, &mut storage, &all, &mut ring).err();
        assert!(error.is_none_or(|error| !error.to_string().is_empty()));
        error
    };
    let c = config();
    assert_eq!(check(&c, 64, 255), None);
    assert_eq!(check(&c, 63, 1), Some(ConfigError::RingTooSmall { len: 63 }));
    assert_eq!(check(&c, 64, 256), Some(ConfigError::Addresses { count: 256 }));
    let short = Config { heartbeat: Span::from_millis(999), ..c };
    assert_eq!(check(&short, 64, 1), Some(ConfigError::Heartbeat { ms: 999 }));
    let all = Config { sample_rate: 100, ..c };
    assert_eq!(check(&all, 64, 1), Some(ConfigError::SampleRate { percent: 100 }));
    let hasty = Config { msg_timeout: Some(Span::from_millis(1)), ..c };
    assert_eq!(check(&hasty, 64, 1), Some(ConfigError::MsgTimeout { ms: 1 }));
    for (ms, refused) in
        [(0, false), (1, true), (24, true), (25, false), (30_000, false), (30_001, true)]
    {
        let held = Config { output_buffer_timeout: Some(Span::from_millis(ms)), ..c };
        let error = refused.then_some(ConfigError::OutputBufferTimeout { ms });
        assert_eq!(check(&held, 64, 1), error);
    }
    let (mut storage, mut ring) = (Storage::<1, 2>::new(), [0; 64]);
    let mut consumer = Consumer::new(&c, &mut storage, &[], &mut ring).unwrap();
    let lookups = ["h:1".parse().unwrap(), "i:1".parse().unwrap()];
    let mut discovery = Discovery::<1, 1>::new();
    let refused = consumer.discover(&mut discovery, &lookups);
    assert_eq!(refused, Err(ConfigError::Lookupds { count: 2 }));
}

#[test]
fn ram() {
    let word = size_of::<usize>();
    // On a 32-bit machine 112 bytes less.
    assert_eq!(size_of::<Consumer<'_>>(), if word == 8 { 424 } else { 0 });
    let one = size_of::<Storage<1, 0>>() - size_of::<Counters>();
    assert!(one <= 288 + 8, "{one}");
    let hundred = size_of::<Storage<100, 0>>() - size_of::<Counters>();
    assert_eq!(hundred / 100, 288);
    assert_eq!((size_of::<Storage<0, 100>>() - size_of::<Counters>()) / 100, 32);
    let lookupd = size_of::<Discovery<100, 0>>() / 100;
    assert!(lookupd <= 480, "{lookupd}");
    assert!(size_of::<Discovery<0, 100>>() / 100 <= 104);
    let all = size_of::<Consumer<'_>>() + size_of::<Storage<2, 4>>();
    assert_eq!(all - 112, 1096, "two connections, four messages in flight, on a 32-bit machine");
}
