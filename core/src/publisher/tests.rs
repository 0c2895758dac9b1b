//! Scenarios: a publisher, a time line, and the bytes that an nsqd would see and say.

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

    /// Writes all there is.
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
    fn say(&mut self, bytes: impl AsRef<[u8]>) {
        self.publisher.receive(self.now, bytes.as_ref()).unwrap();
    }

    #[track_caller]
    fn say_and_fault(&mut self, bytes: impl AsRef<[u8]>) -> Fault {
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
        self.say(frame(0, r#"{"max_rdy_count":2500,"auth_required":false}"#));
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

#[test]
fn the_handshake_is_what_nsqd_expects() {
    rig!(rig, Config { client_id: "c\"1", heartbeat: Span::from_secs(10), ..Config::new() });
    assert_eq!(rig.publisher.link(), Link::Down);
    assert_eq!(rig.dial(), "one:4150");
    assert_eq!(rig.publisher.dial(rig.now), None, "one dial at a time");
    rig.publisher.open(rig.now);
    let hello = rig.written();
    let (head, json) = hello.split_at(4 + 9 + 4);
    assert_eq!(&head[..13], b"  V2IDENTIFY\n");
    assert_eq!(u32::from_be_bytes(head[13..].try_into().unwrap()) as usize, json.len());
    let json = core::str::from_utf8(json).unwrap();
    for part in [
        r#""client_id":"c\"1""#,
        r#""hostname":"nanonsq""#,
        r#""feature_negotiation":true"#,
        r#""heartbeat_interval":10000"#,
        r#""user_agent":"nanonsq/"#,
    ] {
        assert!(json.contains(part), "{json}");
    }
    rig.say(frame(0, "OK"));
    assert_eq!(rig.publisher.state(), State::Ready, "a plain OK is an answer, too");
}

#[test]
fn a_single_message_leaves_as_pub_at_once_and_backlog_as_mpub() {
    rig!(rig);
    rig.connect();
    let first = rig.publish("a");
    rig.expect(pub_one("a"));
    // The second command while the first is unanswered.
    rig.publish("b");
    let last = rig.publish("c");
    rig.expect(mpub(&["b", "c"]));
    rig.say(OK);
    assert_eq!(rig.outcome(first), Some(Outcome::Acknowledged));
    assert_eq!(rig.outcome(last), None);
    rig.say(OK);
    assert_eq!(rig.outcome(last), Some(Outcome::Acknowledged));
    let counters = rig.publisher.counters();
    assert_eq!((counters.accepted, counters.acknowledged, counters.pending), (3, 3, 0));
    assert_eq!((counters.pubs, counters.mpubs), (1, 1));
}

#[test]
fn topics_and_deferrals_are_not_mixed_in_a_batch() {
    rig!(rig);
    for (name, defer) in [("t", None), ("t", None), ("u", None), ("t", Some(5)), ("t", Some(5))] {
        let options = PublishOptions { defer: defer.map(Span::from_millis), deadline: None };
        rig.publisher.publish_with(&topic(name), b"x", options).unwrap();
    }
    rig.connect();
    let dpub = [&b"DPUB t 5\n"[..], &record("x")].concat();
    let expected =
        [mpub(&["x", "x"]), [&b"PUB u\n"[..], &record("x")].concat(), dpub.clone(), dpub];
    rig.expect(expected.concat());
}

#[test]
fn flights_are_bounded_and_what_waits_becomes_one_batch() {
    rig!(rig);
    rig.connect();
    for n in 0..FLIGHTS_MAX {
        rig.publish(&n.to_string());
        rig.expect(pub_one(&n.to_string()));
    }
    rig.publish("x");
    rig.publish("y");
    rig.expect("");
    rig.say(OK);
    rig.expect(mpub(&["x", "y"]));
}

#[test]
fn every_split_of_nsqds_words_means_the_same() {
    let script = [OK, HEARTBEAT, OK, HEARTBEAT, OK].concat();
    for split in 0..=script.len() {
        rig!(rig);
        rig.connect();
        let tickets = ["a", "b", "c"].map(|body| {
            let ticket = rig.publish(body);
            rig.written();
            ticket
        });
        rig.say(&script[..split]);
        rig.say(&script[split..]);
        for ticket in tickets {
            assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged), "split at {split}");
        }
        rig.expect("NOP\nNOP\n");
    }
}

#[test]
fn partial_writes_lose_and_double_nothing() {
    for step in 1..40 {
        // A ring so small that records wrap in it.
        rig!(rig, Config::new(), 90, ["one:4150"]);
        rig.connect();
        let mut expected = Vec::new();
        let mut got: Vec<u8> = Vec::new();
        for n in 0..60 {
            let body = format!("{n:0>width$}", width = 1 + n % 17);
            rig.publish(&body);
            expected.extend(pub_one(&body));
            loop {
                let transmit = rig.publisher.transmit(rig.now);
                if transmit.is_empty() {
                    break;
                }
                let bytes = [transmit.head, transmit.body].concat();
                let n = step.min(bytes.len());
                got.extend(&bytes[..n]);
                rig.publisher.sent(rig.now, n);
            }
            rig.say(OK);
        }
        assert_eq!(got, expected, "{step} bytes at a time");
    }
}

#[test]
fn a_lost_connection_sends_everything_unanswered_again_in_order() {
    rig!(rig);
    rig.connect();
    let a = rig.publish("a");
    rig.expect(pub_one("a"));
    rig.publish("b");
    rig.expect(pub_one("b"));
    rig.say(OK);
    rig.publish("c");
    // Half of "c" is written.
    let n = rig.publisher.transmit(rig.now).len() - 1;
    rig.publisher.sent(rig.now, n);
    rig.reconnect();
    assert_eq!(rig.outcome(a), Some(Outcome::Acknowledged));
    rig.expect(mpub(&["b", "c"]));
    // nsqd cannot have stored the half-written one.
    assert_eq!(rig.publisher.counters().possible_duplicates, 1);
    rig.say(OK);
    assert_eq!(rig.publisher.counters().acknowledged, 3);
}

#[test]
fn a_rejected_batch_is_retried_one_by_one() {
    rig!(rig);
    rig.connect();
    let tickets = ["a", "bad", "c"].map(|body| rig.publish(body));
    rig.expect(mpub(&["a", "bad", "c"]));
    let fault = rig.say_and_fault(frame(1, "E_BAD_MESSAGE MPUB message too big 3 > 2"));
    assert_eq!(fault, Fault::Refused(ErrorCode::BadMessage));
    assert_eq!(rig.publisher.detail(), "E_BAD_MESSAGE MPUB message too big 3 > 2");
    rig.reconnect();
    rig.publish("later");
    rig.expect([pub_one("a"), pub_one("bad"), pub_one("c"), pub_one("later")].concat());
    rig.say(OK);
    rig.say_and_fault(frame(1, "E_BAD_MESSAGE PUB message too big 3 > 2"));
    rig.reconnect();
    // What was wrong is gone, so batches grow again: one was taken, so two leave at once.
    rig.expect(mpub(&["c", "later"]));
    rig.say(OK);
    for body in ["w", "x", "y", "z"] {
        rig.publish(body);
    }
    rig.expect(mpub(&["w", "x", "y", "z"]));
    assert_eq!(
        tickets.map(|ticket| rig.outcome(ticket).unwrap()),
        [Outcome::Acknowledged, Outcome::Rejected(ErrorCode::BadMessage), Outcome::Acknowledged]
    );
    let counters = rig.publisher.counters();
    assert_eq!((counters.rejected, counters.possible_duplicates), (1, 0));
}

/// Refuses what is written, with these words; gives how many messages that was.
fn refuse(rig: &mut Rig<'_>, words: &str) -> u32 {
    let written = rig.written();
    let count = match written.strip_prefix(b"MPUB t\n") {
        Some(rest) => u32::from_be_bytes(rest[4..8].try_into().unwrap()),
        None => u32::from(written.starts_with(b"PUB t\n")),
    };
    rig.say_and_fault(frame(1, words));
    rig.lose();
    rig.wait(16_000);
    rig.connect();
    count
}

#[test]
fn a_batch_that_is_refused_twice_is_halved_whatever_the_code() {
    for words in ["E_PUB_FAILED x", "E_MPUB_FAILED MPUB failed no room", "E_NEW", "E_INVALID x"] {
        rig!(rig);
        let last = (0..20).map(|n| rig.publish(&n.to_string())).last().unwrap();
        rig.connect();
        let counts: Vec<u32> = (0..9).map(|_| refuse(&mut rig, words)).collect();
        assert_eq!(counts, [20, 20, 10, 5, 2, 1, 1, 1, 1], "{words}");
        let counters = rig.publisher.counters();
        let lost = (counters.rejected, counters.possible_duplicates, counters.pending);
        assert_eq!(lost, (0, 0, 20), "{words}");
        // What it takes then grows, but for a while not to what it refused.
        rig.expect([pub_one("0"), pub_one("1"), pub_one("2"), pub_one("3")].concat());
        rig.say([OK; 4].concat());
        while rig.outcome(last).is_none() {
            let written = rig.written();
            assert!(!written.starts_with(b"MPUB"), "{}", String::from_utf8_lossy(&written));
            rig.say(OK);
            rig.say(OK);
            rig.say(OK);
            rig.say(OK);
        }
        assert_eq!(rig.publisher.counters().acknowledged, 20);
    }
}

#[test]
fn a_smaller_batch_is_tried_without_a_wait_and_one_message_is_not() {
    rig!(rig);
    for n in 0..4 {
        rig.publish(&n.to_string());
    }
    rig.connect();
    for (count, at_once) in [(4, false), (4, true), (2, true), (1, false)] {
        let written = rig.written();
        assert_eq!(written.starts_with(b"MPUB"), count > 1);
        rig.say_and_fault(frame(1, "E_PUB_FAILED PUB failed no room"));
        rig.lose();
        assert_eq!(rig.publisher.deadline() <= rig.now, at_once, "{count}");
        rig.wait(20_000);
        rig.connect();
    }
}

#[test]
fn batches_grow_past_what_was_refused_once_a_connection_lasts() {
    rig!(rig, Config::new(), 100_000, ["one:4150"]);
    rig.connect();
    let publish = |rig: &mut Rig<'_>, count: u32| {
        for _ in 0..count {
            rig.publish("x");
        }
    };
    publish(&mut rig, 8);
    assert_eq!(refuse(&mut rig, "E_NEW"), 8);
    assert_eq!(refuse(&mut rig, "E_NEW"), 8);
    let taken = |rig: &mut Rig<'_>| {
        let written = rig.written();
        let first = written.strip_prefix(b"MPUB t\n").expect("a batch");
        while rig.publisher.counters().pending > 0 {
            rig.say(OK);
            rig.written();
        }
        u32::from_be_bytes(first[4..8].try_into().unwrap())
    };
    for _ in 0..100 {
        assert_eq!(taken(&mut rig), 4);
        publish(&mut rig, 8);
    }
    rig.wait(9000);
    rig.say(HEARTBEAT);
    rig.expect([&b"NOP\n"[..], &mpub(&["x"; 4]), &mpub(&["x"; 4])].concat());
    rig.say([OK, OK].concat());
    rig.wait(1000);
    rig.say(HEARTBEAT);
    rig.expect("NOP\n");
    publish(&mut rig, 1000);
    assert_eq!(taken(&mut rig), 1000);
}

#[test]
fn one_bad_message_among_many_is_rejected_alone() {
    for bad in [0, 1, 499, 998, 999] {
        rig!(rig, Config::new(), 100_000, ["one:4150"]);
        for n in 0..1000 {
            rig.publish(if n == bad { "bad" } else { "good" });
        }
        rig.connect();
        let mut refusals = 0;
        while rig.publisher.counters().pending > 0 {
            let written = rig.written();
            // What nsqd makes of it, command by command.
            let mut rest = &written[..];
            while let Some(end) = rest.iter().position(|&b| b == b'\n') {
                let word = |at: usize| {
                    u32::from_be_bytes(rest[end + at..end + at + 4].try_into().unwrap()) as usize
                };
                let used = 5 + word(1);
                let command = &rest[..end + used];
                rest = &rest[end + used..];
                if command.windows(3).any(|words| words == b"bad") {
                    refusals += 1;
                    rig.say_and_fault(frame(1, "E_BAD_MESSAGE MPUB message too big 3 > 2"));
                    rig.lose();
                    assert!(rig.publisher.deadline() <= rig.now, "nothing is gained by a wait");
                    rig.connect();
                    break;
                }
                rig.say(OK);
            }
        }
        let counters = rig.publisher.counters();
        assert_eq!((counters.acknowledged, counters.rejected), (999, 1), "{bad}");
        assert_eq!(counters.possible_duplicates, 0);
        assert!(refusals <= 24, "{refusals} refusals for message {bad}");
    }
}

/// Bad ones expire, are dropped, or are given up with their connection: what comes later leaves in
/// batches.
#[test]
fn suspects_that_are_gone_are_none_any_more() {
    for expire in [true, false] {
        let full = if expire { Full::Refuse } else { Full::DropOldest };
        rig!(rig, Config { full, ..Config::new() }, 100, ["one:4150"]);
        rig.connect();
        for _ in 0..3 {
            if expire {
                with_deadline(&mut rig, 1000);
            } else {
                rig.publish(&"bad".repeat(7));
            }
        }
        assert!(rig.written().starts_with(b"MPUB"));
        rig.say_and_fault(frame(1, "E_BAD_MESSAGE MPUB invalid message"));
        rig.lose();
        rig.wait(2000);
        if !expire {
            rig.publisher.publish(&topic(T), &[b'x'; 79]).unwrap();
            assert_eq!(rig.publisher.counters().dropped, 3);
        }
        for body in ["a", "b"] {
            rig.publish(body);
        }
        rig.connect();
        assert!(rig.written().starts_with(b"MPUB"), "{expire}");
    }
}

#[test]
fn what_concerns_the_topic_rejects_the_whole_batch() {
    rig!(rig);
    rig.connect();
    let tickets = ["a", "b"].map(|body| rig.publish(body));
    rig.written();
    rig.say_and_fault(frame(1, "E_UNAUTHORIZED AUTH failed for MPUB on \"t\""));
    for ticket in tickets {
        assert_eq!(rig.outcome(ticket), Some(Outcome::Rejected(ErrorCode::Unauthorized)));
    }
    assert_eq!(
        rig.events().last(),
        Some(&Event::Resolved { below: Ticket(2) }),
        "and the application hears of it"
    );
    rig.reconnect();
    rig.expect("");
}

#[test]
fn what_is_nsqds_own_fault_rejects_nothing() {
    for error in [
        // A connection that was cut off in the middle of a message.
        "E_BAD_MESSAGE PUB failed to read message body",
        "E_BAD_BODY MPUB failed to read body size",
        "E_PUB_FAILED PUB failed exiting",
        "E_MPUB_FAILED x",
        "E_INVALID cannot PUB in current state",
        "E_NEW x",
    ] {
        rig!(rig);
        rig.connect();
        let ticket = rig.publish("a");
        rig.written();
        rig.say_and_fault(frame(1, error));
        rig.reconnect();
        rig.expect(pub_one("a"));
        rig.say(OK);
        assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged), "{error}");
    }
}

#[test]
fn a_deferral_that_nsqd_refuses_is_rejected() {
    rig!(rig);
    rig.connect();
    let options = PublishOptions { defer: Some(DEFER_MAX), deadline: None };
    let ticket = rig.publisher.publish_with(&topic(T), b"x", options).unwrap();
    rig.written();
    rig.say_and_fault(frame(1, "E_INVALID DPUB timeout 3600000 out of range 0-1000"));
    assert_eq!(rig.outcome(ticket), Some(Outcome::Rejected(ErrorCode::Invalid)));
}

#[test]
fn full_refuses_at_once_and_changes_nothing() {
    rig!(rig, Config::new(), 100, ["one:4150"]);
    let mut taken = 0;
    while rig.publisher.publish(&topic(T), &[0; 10]).is_ok() {
        taken += 1;
    }
    let before = (rig.publisher.outbox_used(), rig.publisher.counters());
    assert_eq!(rig.publisher.publish(&topic(T), &[0; 10]), Err(PublishError::Full));
    let after = rig.publisher.counters();
    assert_eq!((before.1.accepted, before.1.pending), (taken, taken));
    assert_eq!(before.0, rig.publisher.outbox_used());
    assert_eq!(after, Counters { refused: before.1.refused + 1, ..before.1 });
    rig.connect();
    rig.written();
    rig.say(OK);
    assert!(rig.publisher.publish(&topic(T), &[0; 10]).is_ok(), "room again");
}

#[test]
fn drop_oldest_drops_counts_and_reports_but_never_what_is_on_the_wire() {
    rig!(rig, Config { full: Full::DropOldest, ..Config::new() }, 100, ["one:4150"]);
    for n in 10..30 {
        rig.publish(&n.to_string());
    }
    let counters = rig.publisher.counters();
    assert_eq!(counters.accepted, 20);
    assert_eq!((counters.dropped + counters.pending, counters.refused), (20, 0));
    assert!(counters.dropped > 0);
    assert_eq!(rig.outcome(Ticket(0)), Some(Outcome::Dropped));
    assert_eq!(rig.outcome(Ticket(19)), None);
    rig.connect();
    rig.written();
    // All is on the wire now.
    let refused = core::iter::repeat_with(|| rig.publisher.publish(&topic(T), &[0; 30]))
        .take(5)
        .filter(|taken| *taken == Err(PublishError::Full))
        .count();
    assert!(refused >= 4);
    assert_eq!(rig.publisher.counters().dropped, counters.dropped);
    let events = rig.events();
    let failed: u32 = events
        .iter()
        .map(|event| match event {
            Event::Failed { count, outcome: Outcome::Dropped, .. } => *count,
            _ => 0,
        })
        .sum();
    assert_eq!(u64::from(failed), counters.dropped);
}

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

fn with_deadline(rig: &mut Rig<'_>, ms: u32) -> Ticket {
    let deadline = Some(rig.now.after(Span::from_millis(ms)));
    rig.publisher.publish_with(&topic(T), b"x", PublishOptions { defer: None, deadline }).unwrap()
}

#[test]
fn a_deadline_expires_what_was_not_sent() {
    rig!(rig);
    let kept = rig.publish("kept");
    let ticket = with_deadline(&mut rig, 1000);
    rig.wait(999);
    assert_eq!(rig.outcome(ticket), None);
    rig.wait(133);
    assert_eq!(rig.outcome(ticket), Some(Outcome::Expired), "at most 131 ms late");
    rig.connect();
    rig.expect(pub_one("kept"));
    rig.say(OK);
    assert_eq!(rig.outcome(kept), Some(Outcome::Acknowledged));
    let counters = rig.publisher.counters();
    assert_eq!((counters.expired, counters.pending, counters.late), (1, 0, 0));
    assert_eq!(rig.publisher.outbox_used(), 0);
}

#[test]
fn what_expires_on_the_wire_is_reported_then_and_its_late_answer_counted() {
    rig!(rig);
    rig.connect();
    let ticket = with_deadline(&mut rig, 1000);
    rig.written();
    rig.wait(1200);
    assert_eq!(rig.outcome(ticket), Some(Outcome::Expired));
    rig.say(OK);
    let counters = rig.publisher.counters();
    assert_eq!((counters.expired, counters.late, counters.acknowledged), (1, 1, 0));
    assert_eq!(rig.outcome(ticket), Some(Outcome::Expired));
}

#[test]
fn what_expires_on_the_wire_is_not_sent_again() {
    rig!(rig);
    rig.connect();
    with_deadline(&mut rig, 1000);
    rig.written();
    rig.wait(1200);
    rig.reconnect();
    rig.expect("");
    assert_eq!(rig.publisher.outbox_used(), 0);
}

#[test]
fn heartbeats_are_answered_before_payload() {
    rig!(rig);
    rig.connect();
    rig.say(HEARTBEAT);
    rig.publish("a");
    rig.expect([&b"NOP\n"[..], &pub_one("a")].concat());
    // Also with all flights taken.
    for _ in 1..FLIGHTS_MAX {
        rig.publish("x");
        rig.written();
    }
    rig.publish("waits");
    rig.say([HEARTBEAT, HEARTBEAT].concat());
    rig.expect("NOP\nNOP\n");
    assert_eq!(rig.publisher.counters().heartbeats, 3);
}

#[test]
fn a_half_written_nop_is_not_a_half_written_batch() {
    rig!(rig);
    rig.connect();
    let ticket = rig.publish("a");
    rig.expect(pub_one("a"));
    rig.say(HEARTBEAT);
    let half = |rig: &mut Rig<'_>| {
        assert_eq!(rig.publisher.transmit(rig.now).head, b"NOP\n");
        rig.publisher.sent(rig.now, 2);
    };
    half(&mut rig);
    rig.say(OK);
    assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
    rig.expect("P\n");
    // Lost instead, the batch counts as wholly written.
    rig.publish("b");
    rig.written();
    rig.say(HEARTBEAT);
    half(&mut rig);
    rig.reconnect();
    assert_eq!(rig.publisher.counters().possible_duplicates, 1);
}

#[test]
fn two_heartbeats_of_silence_end_a_half_open_connection() {
    rig!(rig);
    rig.connect();
    rig.wait(59_999);
    assert_eq!(rig.publisher.link(), Link::Up);
    rig.say(HEARTBEAT);
    rig.wait(59_999);
    assert_eq!(rig.publisher.link(), Link::Up);
    rig.wait(1);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
    assert_eq!(rig.publisher.state(), State::Closing(why));
    rig.publisher.closed(rig.now, Closed::Local);
    assert!(rig.events().contains(&Event::Disconnected { nsqd: 0, why }));
}

#[test]
fn an_nsqd_that_lives_but_never_answers_is_left() {
    rig!(rig, Config::new(), 1024, ["one:1", "two:1"]);
    rig.connect();
    rig.publish("a");
    rig.written();
    for _ in 0..3 {
        rig.wait(3000);
        rig.say(HEARTBEAT);
    }
    assert_eq!(rig.publisher.link(), Link::Up);
    rig.wait(1000);
    assert_eq!(
        rig.publisher.state(),
        State::Closing(Closed::Fault(Fault::TimedOut(Awaited::Reply)))
    );
}

#[test]
fn answering_heartbeats_does_not_put_off_the_reply_timeout() {
    rig!(rig, Config { heartbeat: Span::from_secs(5), ..Config::new() });
    rig.connect();
    rig.publish("a");
    rig.written();
    rig.wait(5000);
    rig.say(HEARTBEAT);
    rig.expect("NOP\n");
    rig.wait(5000);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
    assert_eq!(rig.publisher.state(), State::Closing(why));
}

#[test]
fn the_last_error_stays_known() {
    rig!(rig);
    rig.connect();
    rig.publish("a");
    rig.written();
    rig.say_and_fault(frame(1, "E_PUB_FAILED PUB failed exiting"));
    rig.reconnect();
    rig.say(HEARTBEAT);
    assert_eq!(rig.publisher.detail(), "E_PUB_FAILED PUB failed exiting");
}

#[test]
fn an_answer_between_two_pieces_of_identify_ends_the_connection() {
    rig!(rig);
    rig.dial();
    rig.publisher.open(rig.now);
    let n = rig.publisher.transmit(rig.now).len();
    rig.publisher.sent(rig.now, n);
    assert_eq!(rig.say_and_fault(frame(0, "OK")), Fault::UnexpectedReply);
}

#[test]
fn every_handshake_that_hangs_is_left() {
    rig!(rig);
    rig.dial();
    rig.wait(5000);
    assert_eq!(rig.publisher.state(), State::Closing(Closed::Dial(DialError::TimedOut)));
    assert_eq!(rig.publisher.link(), Link::Close);
    rig.publisher.closed(rig.now, Closed::Dial(DialError::TimedOut));
    rig.wait(1000);
    rig.dial();
    rig.publisher.open(rig.now);
    rig.wait(5000);
    assert_eq!(
        rig.publisher.state(),
        State::Closing(Closed::Fault(Fault::TimedOut(Awaited::Handshake)))
    );
}

#[test]
fn auth_is_sent_when_it_is_required_and_only_then() {
    let secret = "s".repeat(200);
    rig!(rig, Config { auth_secret: Some(secret.as_bytes()), ..Config::new() });
    rig.publish("a");
    rig.dial();
    rig.publisher.open(rig.now);
    rig.written();
    rig.say(frame(0, r#"{"auth_required":true}"#));
    rig.expect([b"AUTH\n", &200u32.to_be_bytes()[..], secret.as_bytes()].concat());
    rig.say(frame(0, r#"{"identity":"","identity_url":"","permission_count":1}"#));
    rig.expect(pub_one("a"));
    let events = rig.events();
    assert!(matches!(events[0], Event::Connected { nsqd: 0 }), "{events:?}");
    rig.say(OK);
    rig.reconnect();
    rig.expect("");
}

#[test]
fn auth_required_without_a_secret_says_so() {
    rig!(rig);
    rig.dial();
    rig.publisher.open(rig.now);
    rig.written();
    assert_eq!(rig.say_and_fault(frame(0, r#"{"auth_required":true}"#)), Fault::AuthRequired);
}

const TLS: &str = "E_INVALID cannot PUB in current state (TLS required)";

/// All that can never work, with what nsqd says: after IDENTIFY was written, and after the next
/// thing.
fn permanent() -> [(Option<&'static str>, Vec<u8>, Fault); 9] {
    const AUTH: Option<&str> = Some(r#"{"auth_required":true}"#);
    [
        (Some("{}"), frame(1, TLS), Fault::TlsRequired),
        (
            Some("OK"),
            frame(1, "E_INVALID cannot MPUB in current state (TLS required)"),
            Fault::TlsRequired,
        ),
        (
            AUTH,
            frame(1, "E_INVALID cannot AUTH in current state (TLS required)"),
            Fault::TlsRequired,
        ),
        (AUTH, frame(1, "E_AUTH_FAILED AUTH failed"), Fault::AuthRefused),
        (AUTH, frame(1, "E_UNAUTHORIZED AUTH no authorizations found"), Fault::AuthRefused),
        (Some("{}"), frame(1, "E_AUTH_FIRST AUTH required before PUB"), Fault::AuthRefused),
        (Some("{}"), frame(1, "E_AUTH_FAILED AUTH failed"), Fault::AuthRefused),
        (
            None,
            frame(1, "E_BAD_BODY IDENTIFY heartbeat interval (60000) is invalid"),
            Fault::IdentifyRefused,
        ),
        (None, frame(1, "E_INVALID cannot IDENTIFY in current state"), Fault::IdentifyRefused),
    ]
}

#[test]
fn who_can_never_take_messages_is_left_out_and_asked_again_every_five_minutes() {
    for (identified, refusal, fault) in permanent() {
        rig!(rig, Config { auth_secret: Some(b"s"), ..Config::new() });
        let ticket = rig.publish("a");
        for round in 0..3 {
            rig.dial();
            rig.publisher.open(rig.now);
            rig.written();
            if let Some(identified) = identified {
                rig.say(frame(0, identified));
                assert!(!rig.written().is_empty());
            }
            assert_eq!(rig.say_and_fault(&refusal), fault);
            assert!(fault.is_permanent());
            rig.events();
            rig.lose();
            assert_eq!(rig.events(), [Event::LeftOut { nsqd: 0, why: fault }], "round {round}");
            assert_eq!(rig.publisher.state(), State::LeftOut(fault));
            assert!(rig.publisher.is_left_out(0));
            rig.wait(299_999);
            assert_eq!(rig.publisher.dial(rig.now), None);
            assert_eq!(rig.publisher.state(), State::LeftOut(fault));
            rig.wait(1);
        }
        let counters = rig.publisher.counters();
        assert_eq!((counters.pending, counters.rejected, counters.possible_duplicates), (1, 0, 0));
        // Somebody has put it right.
        rig.connect();
        assert!(!rig.publisher.is_left_out(0));
        rig.expect(pub_one("a"));
        rig.say(OK);
        assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
    }
}

#[test]
fn one_of_several_is_left_out_and_the_others_are_used_without_delay() {
    rig!(rig, Config::new(), 1024, ["tls:1", "good:1", "down:1"]);
    rig.publish("a");
    rig.connect();
    rig.expect(pub_one("a"));
    rig.say_and_fault(frame(1, TLS));
    rig.lose();
    assert_eq!(rig.publisher.state(), State::Waiting);
    assert_eq!(rig.publisher.nsqd().unwrap().to_string(), "good:1");
    rig.connect();
    rig.expect(pub_one("a"));
    rig.say(OK);
    assert_eq!(rig.publisher.counters().acknowledged, 1);
    // The others take turns as ever.
    rig.lose();
    let start = rig.now;
    let mut dialed = Vec::new();
    while rig.now < start.after(Span::from_secs(310)) {
        if let Some(nsqd) = rig.publisher.dial(rig.now) {
            dialed.push((rig.now.since(start).as_millis(), nsqd.to_string()));
            rig.publisher.closed(rig.now, Closed::Dial(DialError::Refused));
        }
        rig.wait(10);
    }
    let first = dialed.iter().find(|(_, nsqd)| nsqd == "tls:1").expect("it is asked again");
    assert!((298_000..303_000).contains(&first.0), "{first:?}");
    let others = dialed.iter().filter(|(_, nsqd)| nsqd != "tls:1").count();
    assert!(others > 300, "{others}");
    assert!(!rig.publisher.is_left_out(0) && !rig.publisher.is_left_out(300));
}

#[test]
fn all_are_left_out_in_one_round_however_many() {
    let names: Vec<String> = (0..255).map(|n| format!("nsqd{n}:1")).collect();
    let nsqds: Vec<Address> = names.iter().map(|name| name.parse().unwrap()).collect();
    let config = Config { left_out_for: Span::ZERO, ..Config::new() };
    let mut ring = vec![0; 1024];
    let mut rig = Rig::new(&config, &nsqds, &mut ring);
    rig.publish("a");
    for round in 0..2 {
        for (nsqd, name) in names.iter().enumerate() {
            assert_eq!(rig.dial(), *name, "round {round}");
            rig.publisher.open(rig.now);
            rig.written();
            rig.say_and_fault(frame(0, r#"{"auth_required":true}"#));
            rig.lose();
            assert_eq!(rig.events(), [Event::LeftOut { nsqd, why: Fault::AuthRequired }]);
        }
        assert_eq!(rig.publisher.state(), State::LeftOut(Fault::AuthRequired));
        rig.wait(999);
        assert_eq!(rig.publisher.dial(rig.now), None, "a second at least");
        rig.wait(1);
    }
}

#[test]
fn nonsense_ends_the_connection_with_a_reason() {
    for (bytes, fault) in [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), Fault::Decode(DecodeError::WrongPort)),
        (
            b"\xff\xff\xff\xff\0\0\0\0".to_vec(),
            Fault::Decode(DecodeError::BadLength { len: u32::MAX, max: handshake::REPLY_MAX + 4 }),
        ),
        (
            b"\0\0\0\x03\0\0\0\0".to_vec(),
            Fault::Decode(DecodeError::BadLength { len: 3, max: handshake::REPLY_MAX + 4 }),
        ),
        (
            b"\0\0\0\x06\0\0\0\x07OK".to_vec(),
            Fault::Decode(DecodeError::UnknownFrame { frame_type: 7 }),
        ),
        (frame(0, "{]"), Fault::Decode(DecodeError::BadIdentifyReply)),
        (frame(0, ""), Fault::Decode(DecodeError::BadIdentifyReply)),
        (frame(0, "NO"), Fault::Decode(DecodeError::BadIdentifyReply)),
        (frame(2, "a message"), Fault::UnexpectedReply),
        (frame(1, "E_BAD_BODY IDENTIFY"), Fault::IdentifyRefused),
        (frame(1, "E_BAD_BODY IDENTIFY failed to read body"), Fault::Refused(ErrorCode::BadBody)),
        (frame(1, "E_IDENTIFY_FAILED x"), Fault::Refused(ErrorCode::IdentifyFailed)),
    ] {
        rig!(rig, Config { left_out_for: Span::from_secs(5), ..Config::new() });
        let ticket = rig.publish("a");
        rig.dial();
        rig.publisher.open(rig.now);
        rig.written();
        assert_eq!(rig.say_and_fault(&bytes), fault);
        rig.say(b"more"); // ignored
        rig.reconnect();
        rig.expect(pub_one("a"));
        rig.say(OK);
        assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
    }
}

#[test]
fn an_answer_that_nobody_asked_for_ends_the_connection() {
    rig!(rig);
    rig.connect();
    assert_eq!(rig.say_and_fault(OK), Fault::UnexpectedReply);
    // And one that comes before the question is out.
    rig!(rig);
    rig.connect();
    rig.publish("a");
    let n = rig.publisher.transmit(rig.now).len() - 1;
    rig.publisher.sent(rig.now, n);
    assert_eq!(rig.say_and_fault(OK), Fault::UnexpectedReply);
    rig.reconnect();
    rig.expect(pub_one("a"));
}

#[test]
fn failover_tries_every_nsqd_before_it_pauses() {
    rig!(rig, Config::new(), 1024, ["one:1", "two:1", "three:1"]);
    let refuse = |rig: &mut Rig<'_>| {
        rig.publisher.closed(rig.now, Closed::Dial(DialError::Refused));
    };
    for round in 0..3 {
        for name in ["one:1", "two:1", "three:1"] {
            assert_eq!(rig.dial(), name, "round {round}");
            refuse(&mut rig);
        }
        assert_eq!(rig.publisher.dial(rig.now), None, "a pause after round {round}");
        rig.wait(2000);
    }
    assert_eq!(rig.dial(), "one:1");
    refuse(&mut rig);
    assert_eq!(rig.dial(), "two:1");
    rig.publisher.open(rig.now);
    rig.written();
    rig.say(frame(0, "OK"));
    rig.publish("a");
    rig.written();
    rig.say(OK);
    // A good one that is lost is tried again at once, then the next.
    rig.lose();
    assert_eq!(rig.dial(), "two:1");
    refuse(&mut rig);
    assert_eq!(rig.dial(), "three:1");
}

#[test]
fn an_nsqd_that_accepts_and_hangs_up_is_not_hammered() {
    rig!(rig);
    let start = rig.now;
    let mut dials = 0;
    while rig.now < start.after(Span::from_secs(60)) {
        if rig.publisher.dial(rig.now).is_some() {
            dials += 1;
            rig.publisher.open(rig.now);
            rig.written();
            rig.say(frame(0, "OK"));
            rig.lose();
        }
        rig.wait(1);
    }
    assert!((5..12).contains(&dials), "{dials} dials in a minute");
}

#[test]
fn only_an_nsqd_that_takes_messages_or_lasts_is_dialed_again_at_once() {
    for (say, held, at_once) in [
        (None, 9999, false),
        (None, 10_000, true),
        (Some(HEARTBEAT.to_vec()), 1000, false),
        (Some(OK.to_vec()), 0, true),
        (Some(frame(1, "E_BAD_MESSAGE PUB message too big 1 > 0")), 0, true),
        (Some(frame(1, "E_PUB_FAILED PUB failed exiting")), 0, false),
    ] {
        rig!(rig);
        rig.publish("a");
        rig.connect();
        rig.written();
        if let Some(say) = &say {
            let _ = rig.publisher.receive(rig.now, say);
        }
        // Without a tick: a tick would end it, as its answer is late.
        rig.now = rig.now.after(Span::from_millis(held));
        rig.lose();
        assert_eq!(rig.publisher.dial(rig.now).is_some(), at_once, "{say:?}, {held} ms");
        rig.wait(499);
        assert!(rig.publisher.dial(rig.now).is_none(), "{say:?}, {held} ms");
    }
}

#[test]
fn a_round_in_which_one_came_up_and_was_not_good_is_followed_by_a_longer_wait() {
    rig!(rig, Config::new(), 1024, ["one:1", "two:1"]);
    let mut wait = |hangs_up: bool| {
        for name in ["one:1", "two:1"] {
            assert_eq!(rig.dial(), name);
            if hangs_up && name == "one:1" {
                rig.publisher.open(rig.now);
            }
            rig.lose();
        }
        let before = rig.now;
        while rig.publisher.deadline() > rig.now {
            rig.wait(1);
        }
        rig.now.since(before).as_millis()
    };
    assert!((50..=100).contains(&wait(false)));
    assert!((500..=1000).contains(&wait(true)));
    assert!((1000..=2000).contains(&wait(true)));
    assert!((50..=2000).contains(&wait(false)));
}

#[test]
fn stop_finishes_the_command_being_written() {
    rig!(rig);
    rig.connect();
    rig.publish("a");
    rig.publisher.transmit(rig.now);
    rig.publisher.sent(rig.now, 3);
    rig.publisher.stop(rig.now);
    assert_eq!(rig.publisher.link(), Link::Close);
    assert_eq!(rig.publisher.publish(&topic(T), b"x"), Err(PublishError::Stopped));
    rig.expect(&pub_one("a")[3..]);
    rig.publisher.closed(rig.now, Closed::Local);
    assert_eq!(rig.publisher.state(), State::Stopped);
    assert_eq!((rig.publisher.link(), rig.publisher.deadline()), (Link::Down, Instant::NEVER));
    assert_eq!(rig.publisher.dial(rig.now), None);
}

#[test]
fn a_driver_that_vanishes_at_any_point_is_a_legal_path() {
    // The transport and its driver are dropped without a word; a new driver opens again.
    for bytes in 0..60 {
        rig!(rig);
        let tickets = ["a", "b"].map(|body| rig.publish(body));
        rig.dial();
        rig.publisher.open(rig.now);
        let mut left: usize = bytes;
        while left > 0 {
            let n = rig.publisher.transmit(rig.now).len().min(left);
            if n == 0 {
                rig.say(frame(0, "OK"));
                left -= 1;
                continue;
            }
            rig.publisher.sent(rig.now, n);
            left -= n;
        }
        rig.publisher.open(rig.now);
        let hello = rig.written();
        assert!(hello.starts_with(b"  V2IDENTIFY\n"));
        rig.say(frame(0, "OK"));
        rig.expect(mpub(&["a", "b"]));
        rig.say(OK);
        for ticket in tickets {
            assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
        }
    }
}

#[test]
fn spurious_ticks_at_any_time_change_nothing() {
    rig!(rig);
    rig.connect();
    rig.publish("a");
    for now in [Instant::ZERO, rig.now] {
        for _ in 0..3 {
            rig.publisher.tick(now);
        }
    }
    assert_eq!(rig.publisher.state(), State::Ready);
    rig.expect(pub_one("a"));
    // A clock that jumps to its end makes things late, not wrong.
    rig.now = Instant::NEVER;
    rig.publisher.tick(rig.now);
    assert_eq!(rig.publisher.link(), Link::Close);
    rig.publisher.closed(rig.now, Closed::Local);
    assert_eq!(rig.publisher.counters().pending, 1);
}

#[test]
fn ram() {
    let size = size_of::<Publisher<'_>>();
    println!("Publisher: {size} bytes");
    assert!(size <= 808, "{size}");
}
