//! The timers of a publisher, and the counts of its outbox.

use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::outbox::Outbox;
use nanonsq_core::publisher::{Config, Event, Outcome, PublishOptions, Publisher, State};
use nanonsq_core::session::{Awaited, Closed, Fault, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqd::{CommandDecoder, Item, Limits};

use crate::{at, frame, written};

const OK: &[u8] = b"\0\0\0\x06\0\0\0\0OK";

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

/// Runs `test` with a publisher that is connected since 1,000 ms, with a reply timeout of 10 s.
fn connected(test: impl FnOnce(&mut Publisher<'_>)) {
    let config = Config {
        heartbeat: Span::from_secs(60),
        reply_timeout: Span::from_secs(10),
        ..Config::new()
    };
    let nsqds: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let mut ring = [0; 1000];
    let mut publisher = Publisher::new(&config, &nsqds, &mut ring).unwrap();
    assert!(publisher.dial(at(1000)).is_some());
    publisher.open(at(1000));
    written(&mut publisher, at(1000));
    publisher.receive(at(1000), OK).unwrap();
    assert_eq!(publisher.deadline(), at(121_000), "only the silence timeout runs");
    test(&mut publisher);
}

#[test]
fn the_reply_timeout_begins_when_the_command_is_staged() {
    connected(|publisher| {
        let _ = publisher.publish(&topic(), b"body").unwrap();
        assert!(!publisher.transmit(at(2000)).is_empty());
        assert_eq!(publisher.deadline(), at(12_000));
        publisher.tick(at(11_999));
        assert_eq!(publisher.link(), Link::Up);
        publisher.tick(at(12_000));
        assert_eq!(publisher.link(), Link::Close);
        // A silent nsqd is closed at once.
        assert_eq!(publisher.deadline(), at(12_000));
        publisher.closed(at(12_000), Closed::Local);
        assert_eq!(publisher.counters().failures, 1);
    });
}

#[test]
fn each_written_byte_restarts_the_reply_timeout() {
    connected(|publisher| {
        let _ = publisher.publish(&topic(), b"body").unwrap();
        assert!(!publisher.transmit(at(2000)).is_empty());
        publisher.sent(at(5000), 1);
        assert_eq!(publisher.deadline(), at(15_000));
        // A write of no byte does not count.
        publisher.sent(at(6000), 0);
        assert_eq!(publisher.deadline(), at(15_000));
        written(publisher, at(7000));
        assert_eq!(publisher.deadline(), at(17_000));
    });
}

#[test]
fn each_response_restarts_the_reply_timeout_of_the_next() {
    connected(|publisher| {
        let _ = publisher.publish(&topic(), b"one").unwrap();
        written(publisher, at(2000));
        let _ = publisher.publish(&topic(), b"two").unwrap();
        written(publisher, at(3000));
        publisher.receive(at(4000), OK).unwrap();
        assert_eq!(publisher.deadline(), at(14_000));
        publisher.receive(at(5000), OK).unwrap();
        // Only the silence timeout of two intervals runs again.
        assert_eq!(publisher.deadline(), at(125_000));
        let fault = publisher.receive(at(6000), OK).unwrap_err();
        assert_eq!(fault, Fault::UnexpectedReply);
    });
}

#[test]
fn silence_closes_a_connection_at_once() {
    connected(|publisher| {
        publisher.tick(at(120_999));
        assert_eq!(publisher.link(), Link::Up);
        publisher.tick(at(121_000));
        assert_eq!((publisher.link(), publisher.deadline()), (Link::Close, at(121_000)));
        let why = publisher.state();
        let due = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
        assert_eq!(why, State::Closing(due));
    });
}

#[test]
fn an_outbox_counts_its_messages_and_bytes() {
    let mut ring = [0; 200];
    let mut outbox = Outbox::new(&mut ring);
    assert_eq!((outbox.capacity(), outbox.messages(), outbox.all_sent()), (200, 0, true));
    for body in [&b"one"[..], b"two"] {
        outbox.push(&topic(), body, None, Instant::NEVER).unwrap();
    }
    assert_eq!((outbox.messages(), outbox.all_sent()), (2, false));
    outbox.next_batch(1, 999).unwrap();
    assert!(!outbox.all_sent());
    outbox.next_batch(1, 999).unwrap();
    assert_eq!((outbox.messages(), outbox.all_sent()), (2, true));
    assert_eq!(outbox.used() + outbox.free(), outbox.capacity());
}

#[test]
fn a_message_expires_at_its_deadline_and_not_before() {
    let mut ring = [0; 200];
    let mut outbox = Outbox::new(&mut ring);
    outbox.push(&topic(), b"x", None, at(50)).unwrap();
    let mut gone = Vec::new();
    outbox.expire(at(49), |first, count| gone.push((first, count)));
    assert_eq!((outbox.next_expiry(), gone.len()), (at(50), 0));
    outbox.expire(at(50), |first, count| gone.push((first, count)));
    assert_eq!(gone, [(0, 1)]);
    // The message was not sent, so its bytes are free.
    assert_eq!((outbox.used(), outbox.messages(), outbox.next_expiry()), (0, 0, Instant::NEVER));
}

/// Returns the commands that nsqd decodes from `bytes`.
fn commands(bytes: &[u8]) -> Vec<String> {
    let mut decoder = CommandDecoder::new();
    let mut read = Vec::new();
    let mut input = &[b"  V2", bytes].concat()[..];
    while let Some(item) = decoder.next(&Limits::NSQD, &mut input).unwrap() {
        read.push(match item {
            Item::Nop => "NOP".into(),
            Item::Pub { topic } => format!("PUB {topic}"),
            Item::Mpub { topic } => format!("MPUB {topic}"),
            Item::Batch { count, .. } => format!("{count}:"),
            Item::Part { data, .. } => String::from_utf8(data.into()).unwrap(),
            Item::Body { .. } => continue,
            other => panic!("{other:?}"),
        });
    }
    assert!(decoder.at_boundary());
    read
}

#[test]
fn commands_are_encoded_correctly_whatever_was_written_before() {
    connected(|publisher| {
        let mut send = |bodies: &[&str], heartbeat: bool| {
            for body in bodies {
                let _ = publisher.publish(&topic(), body.as_bytes()).unwrap();
            }
            if heartbeat {
                publisher.receive(at(2000), b"\0\0\0\x0f\0\0\0\0_heartbeat_").unwrap();
            }
            let said = commands(&written(publisher, at(2000)));
            publisher.receive(at(2000), OK).unwrap();
            said.join(" ")
        };
        assert_eq!(send(&["a"], false), "PUB t a");
        assert_eq!(send(&["bc"], false), "PUB t bc");
        assert_eq!(send(&["d", "e"], false), "MPUB t 2: d e");
        assert_eq!(send(&["f", "g", "h"], false), "MPUB t 3: f g h");
        assert_eq!(send(&["i"], false), "PUB t i");
        // Control commands are sent first, and once.
        assert_eq!(send(&["j"], true), "NOP PUB t j");
        assert_eq!(send(&["k"], true), "NOP PUB t k");
        assert_eq!(send(&["l"], false), "PUB t l");
        assert_eq!(send(&["m", "n"], true), "NOP MPUB t 2: m n");
        let counters = publisher.counters();
        assert_eq!((counters.pubs, counters.mpubs, counters.heartbeats), (6, 3, 3));
        assert_eq!((counters.acknowledged, counters.pending), (13, 0));
    });
}

#[test]
fn messages_with_nearly_equal_deadlines_share_a_command() {
    let deadline = |ms| PublishOptions { deadline: Some(at(ms)), ..PublishOptions::default() };
    connected(|publisher| {
        // Deadlines have steps of 131.072 ms; the last message is in the next step.
        for ms in [655_262, 655_263, 655_359, 655_361] {
            let _ = publisher.publish_with(&topic(), b"x", deadline(ms)).unwrap();
        }
        let said = commands(&written(publisher, at(2000))).join(" ");
        assert_eq!(said, "MPUB t 3: x x x PUB t x");
    });
    // A message never expires too early, and at most one step too late.
    connected(|publisher| {
        for ms in [5000, 5100, 5131] {
            let _ = publisher.publish_with(&topic(), b"x", deadline(ms)).unwrap();
            publisher.tick(at(ms));
            assert_eq!(publisher.counters().pending, 1);
            publisher.tick(at(ms + 132));
            assert_eq!(publisher.counters().pending, 0);
        }
        assert_eq!(publisher.counters().expired, 3);
    });
}

#[test]
fn a_response_other_than_ok_is_unexpected() {
    for reply in [&b"\0\0\0\x06\0\0\0\0NO"[..], b"\0\0\0\x07\0\0\0\0OKO", b"\0\0\0\x04\0\0\0\0"] {
        connected(|publisher| {
            let _ = publisher.publish(&topic(), b"body").unwrap();
            written(publisher, at(2000));
            assert_eq!(publisher.receive(at(2000), reply), Err(Fault::UnexpectedReply));
            let counters = publisher.counters();
            assert_eq!((counters.acknowledged, counters.pending), (0, 1));
        });
    }
    // OK may arrive in pieces.
    connected(|publisher| {
        let _ = publisher.publish(&topic(), b"body").unwrap();
        written(publisher, at(2000));
        for byte in OK {
            publisher.receive(at(2000), &[*byte]).unwrap();
        }
        assert_eq!(publisher.counters().acknowledged, 1);
    });
}

#[test]
fn only_a_failed_batch_may_be_partly_stored() {
    for (text, count, duplicates) in [
        ("E_MPUB_FAILED MPUB failed", 3, 3),
        // Our nsqd stores a batch as a whole or not at all.
        ("E_MPUB_FAILED MPUB failed no room", 3, 0),
        ("E_MPUB_FAILED MPUB failed the messages never fit", 3, 0),
        ("E_BAD_BODY MPUB body too big 3 > 2", 3, 0),
        ("E_NEW MPUB", 3, 0),
        ("E_PUB_FAILED PUB failed", 1, 0),
    ] {
        connected(|publisher| {
            for _ in 0..count {
                let _ = publisher.publish(&topic(), b"body").unwrap();
            }
            written(publisher, at(2000));
            publisher.receive(at(2000), &frame(1, text.as_bytes())).unwrap_err();
            let counters = publisher.counters();
            assert_eq!(counters.possible_duplicates, duplicates, "{text}");
            assert_eq!((counters.pending, counters.rejected), (count, 0), "{text}");
        });
    }
}

#[test]
fn an_expired_message_that_is_then_refused_is_reported_once() {
    connected(|publisher| {
        let options = PublishOptions { deadline: Some(at(3000)), ..PublishOptions::default() };
        let ticket = publisher.publish_with(&topic(), b"body", options).unwrap();
        written(publisher, at(2000));
        publisher.tick(at(4000));
        assert_eq!(publisher.outcome(ticket), Some(Outcome::Expired));
        publisher.receive(at(4000), &frame(1, b"E_BAD_TOPIC no")).unwrap_err();
        assert_eq!(publisher.outcome(ticket), Some(Outcome::Expired));
        let counters = publisher.counters();
        assert_eq!((counters.expired, counters.rejected, counters.pending), (1, 0, 0));
        let mut failed = Vec::new();
        while let Some(event) = publisher.poll_event() {
            if let Event::Failed { count, outcome, .. } = event {
                failed.push((count, outcome));
            }
        }
        assert_eq!(failed, [(1, Outcome::Expired)]);
    });
}

#[test]
fn a_publisher_without_a_connection_stops_at_once() {
    let config = Config::new();
    let nsqds: [Address; 1] = ["nsqd:4150".parse().unwrap()];
    let mut ring = [0; 100];
    let mut publisher = Publisher::new(&config, &nsqds, &mut ring).unwrap();
    for ms in [1000, 2000] {
        publisher.stop(at(ms));
        assert_eq!(publisher.state(), State::Stopped);
        assert_eq!((publisher.link(), publisher.deadline()), (Link::Down, Instant::NEVER));
        assert!(publisher.dial(at(ms)).is_none());
    }
}
