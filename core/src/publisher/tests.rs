//! Scenarios: a publisher, a time line, and the bytes that an nsqd would receive and send.

use std::vec::Vec;

use super::outbox::{HEADER_OVERHEAD, RECORD_OVERHEAD};
use super::*;
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, handshake};
use crate::wire::DecodeError;
use crate::wire::nsqd::ErrorCode;

const T: &str = "t";
const OK: &[u8] = b"\0\0\0\x06\0\0\0\0OK";
const HEARTBEAT: &[u8] = b"\0\0\0\x0f\0\0\0\0_heartbeat_";

fn frame(frame_type: u8, text: &str) -> Vec<u8> {
    let size = u32::try_from(text.len() + 4).unwrap().to_be_bytes();
    [&size[..], &[0, 0, 0, frame_type], text.as_bytes()].concat()
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn record(body: &str) -> Vec<u8> {
    [&u32::try_from(body.len()).unwrap().to_be_bytes()[..], body.as_bytes()].concat()
}

fn pub_one(body: &str) -> Vec<u8> {
    [b"PUB t\n".to_vec(), record(body)].concat()
}

fn mpub(bodies: &[&str]) -> Vec<u8> {
    let records: Vec<u8> = bodies.iter().flat_map(|body| record(body)).collect();
    let len = u32::try_from(records.len() + 4).unwrap().to_be_bytes();
    let count = u32::try_from(bodies.len()).unwrap().to_be_bytes();
    [b"MPUB t\n", &len[..], &count[..], &records[..]].concat()
}

/// A publisher and the time.
struct Rig<'a> {
    publisher: Publisher<'a>,
    now: Instant,
}

impl<'a> Rig<'a> {
    fn new(config: &'a Config<'a>, nsqds: &'a [Address], ring: &'a mut [u8]) -> Self {
        let publisher = Publisher::new(config, nsqds, ring).unwrap();
        Self { publisher, now: Instant::from_millis(1000) }
    }

    #[track_caller]
    fn publish(&mut self, body: &str) -> Ticket {
        self.publisher.publish(&topic(T), body.as_bytes()).unwrap()
    }

    /// Lets time pass, ticking at each deadline on the way.
    fn wait(&mut self, ms: u32) {
        let end = self.now.after(Span::from_millis(ms));
        while self.publisher.deadline() <= end {
            let at = self.publisher.deadline();
            self.now = self.now.max(at);
            self.publisher.tick(self.now);
            if self.publisher.deadline() <= self.now {
                break; // a dial is due
            }
        }
        self.now = end;
        self.publisher.tick(self.now);
    }

    /// Writes all pending bytes and returns them.
    fn written(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..1000 {
            let transmit = self.publisher.transmit(self.now);
            let n = transmit.len();
            if n == 0 {
                return bytes;
            }
            bytes.extend([transmit.head, transmit.body].concat());
            self.publisher.sent(self.now, n);
        }
        panic!("never done writing");
    }

    #[track_caller]
    fn expect(&mut self, bytes: impl AsRef<[u8]>) {
        let written = self.written();
        assert_eq!(
            String::from_utf8_lossy(&written).into_owned(),
            String::from_utf8_lossy(bytes.as_ref()).into_owned()
        );
    }

    #[track_caller]
    fn receive(&mut self, bytes: impl AsRef<[u8]>) {
        self.publisher.receive(self.now, bytes.as_ref()).unwrap();
    }

    #[track_caller]
    fn receive_and_fault(&mut self, bytes: impl AsRef<[u8]>) -> Fault {
        let fault = self.publisher.receive(self.now, bytes.as_ref()).unwrap_err();
        assert_eq!(self.publisher.link(), Link::Close);
        assert!(self.publisher.transmit(self.now).is_empty(), "no more bytes after a fault");
        fault
    }

    fn lose(&mut self) {
        self.publisher.closed(self.now, Closed::Peer);
    }

    #[track_caller]
    fn dial(&mut self) -> String {
        let address = self.publisher.dial(self.now).expect("a dial is due");
        address.to_string()
    }

    /// Dials, opens and identifies.
    #[track_caller]
    fn connect(&mut self) {
        self.dial();
        self.publisher.open(self.now);
        let hello = self.written();
        assert!(hello.starts_with(b"  V2IDENTIFY\n"), "{}", String::from_utf8_lossy(&hello));
        self.receive(frame(0, r#"{"max_rdy_count":2500,"auth_required":false}"#));
        assert_eq!(self.publisher.state(), State::Ready);
    }

    #[track_caller]
    fn reconnect(&mut self) {
        self.lose();
        self.wait(10_000);
        self.connect();
    }

    fn outcome(&self, ticket: Ticket) -> Option<Outcome> {
        self.publisher.outcome(ticket)
    }

    fn events(&mut self) -> Vec<Event> {
        core::iter::from_fn(|| self.publisher.poll_event()).collect()
    }
}

macro_rules! rig {
    ($rig:ident) => {
        rig!($rig, Config::new())
    };
    ($rig:ident, $config:expr) => {
        rig!($rig, $config, 1024, ["one:4150"])
    };
    ($rig:ident, $config:expr, $ring:expr, $nsqds:expr) => {
        let config = $config;
        let nsqds = $nsqds.map(|a: &str| a.parse::<Address>().unwrap());
        let mut ring = vec![0; $ring];
        #[allow(unused_mut)]
        let mut $rig = Rig::new(&config, &nsqds, &mut ring);
    };
}

fn with_deadline(rig: &mut Rig<'_>, ms: u32) -> Ticket {
    let deadline = Some(rig.now.after(Span::from_millis(ms)));
    rig.publisher.publish_with(&topic(T), b"x", PublishOptions { defer: None, deadline }).unwrap()
}

// They use the macro.
mod batches;
mod connection;
mod nsqds;
mod queue;

#[test]
fn bad_messages_are_refused_with_the_reason() {
    rig!(rig, Config::new(), 100, ["one:4150"]);
    let publish = |rig: &mut Rig<'_>, len| rig.publisher.publish(&topic(T), &vec![0; len]);
    assert_eq!(publish(&mut rig, 0), Err(PublishError::Empty));
    let max = 100 - HEADER_OVERHEAD - 1 - RECORD_OVERHEAD;
    assert_eq!(publish(&mut rig, max + 1), Err(PublishError::TooLarge { max }));
    assert!(publish(&mut rig, max).is_ok());
    let late = PublishOptions { defer: Some(Span::from_millis(3_600_001)), deadline: None };
    assert_eq!(rig.publisher.publish_with(&topic(T), b"x", late), Err(PublishError::DeferTooLong));
}

#[test]
fn bad_settings_are_refused_with_the_reason() {
    let nsqds = ["one:1".parse().unwrap()];
    let refused = |config: &Config<'_>, nsqds: &[Address], ring: usize| {
        Publisher::new(config, nsqds, &mut vec![0; ring]).unwrap_err()
    };
    let good = Config::new();
    assert_eq!(refused(&good, &[], 1024), ConfigError::Addresses { count: 0 });
    assert_eq!(
        refused(&good, &nsqds, RING_MIN - 1),
        ConfigError::RingTooSmall { len: RING_MIN - 1 }
    );
    for ms in [0, 999, 60_001] {
        let config = Config { heartbeat: Span::from_millis(ms), ..Config::new() };
        assert_eq!(refused(&config, &nsqds, 1024), ConfigError::Heartbeat { ms });
    }
    assert!(Publisher::new(&good, &nsqds, &mut [0; RING_MIN]).is_ok());
}

#[test]
fn ram() {
    let size = size_of::<Publisher<'_>>();
    println!("Publisher: {size} bytes");
    assert!(size <= 808, "{size}");
}
