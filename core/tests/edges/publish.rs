//! A publisher's timers, and the outbox's counts.

use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::publish::{Config, Outbox, Publisher};
use nanonsq_core::session::{Awaited, Closed, Fault, Link, Session};
use nanonsq_core::time::{Instant, Span};

use crate::{at, said};

const OK: &[u8] = b"\0\0\0\x06\0\0\0\0OK";

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

/// Runs `test` with a publisher that is connected since 1,000 ms, and waits 10 s for an answer.
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
    said(&mut publisher, at(1000));
    publisher.receive(at(1000), OK).unwrap();
    assert_eq!(publisher.deadline(), at(121_000), "only silence is bounded");
    test(&mut publisher);
}

#[test]
fn an_answer_is_due_from_when_the_command_is_there_whether_any_of_it_is_taken_or_not() {
    connected(|publisher| {
        publisher.publish(&topic(), b"body").unwrap();
        assert!(!publisher.transmit(at(2000)).is_empty());
        assert_eq!(publisher.deadline(), at(12_000));
        publisher.tick(at(11_999));
        assert_eq!(publisher.link(), Link::Up);
        publisher.tick(at(12_000));
        assert_eq!(publisher.link(), Link::Close);
        // Who is silent takes no farewell either.
        assert_eq!(publisher.deadline(), at(12_000));
        publisher.closed(at(12_000), Closed::Local);
        assert_eq!(publisher.counters().failures, 1);
    });
}

#[test]
fn who_takes_a_command_byte_by_byte_has_the_time_from_the_last_one() {
    connected(|publisher| {
        publisher.publish(&topic(), b"body").unwrap();
        assert!(!publisher.transmit(at(2000)).is_empty());
        publisher.sent(at(5000), 1);
        assert_eq!(publisher.deadline(), at(15_000));
        // Nothing taken is nothing.
        publisher.sent(at(6000), 0);
        assert_eq!(publisher.deadline(), at(15_000));
        said(publisher, at(7000));
        assert_eq!(publisher.deadline(), at(17_000));
    });
}

#[test]
fn while_another_answer_is_due_its_time_runs() {
    connected(|publisher| {
        publisher.publish(&topic(), b"one").unwrap();
        said(publisher, at(2000));
        publisher.publish(&topic(), b"two").unwrap();
        said(publisher, at(3000));
        publisher.receive(at(4000), OK).unwrap();
        assert_eq!(publisher.deadline(), at(14_000));
        publisher.receive(at(5000), OK).unwrap();
        // Two intervals of nsqd's silence again.
        assert_eq!(publisher.deadline(), at(125_000));
        let fault = publisher.receive(at(6000), OK).unwrap_err();
        assert_eq!(fault, Fault::UnexpectedReply);
    });
}

#[test]
fn silence_ends_a_connection_without_a_farewell() {
    connected(|publisher| {
        publisher.tick(at(120_999));
        assert_eq!(publisher.link(), Link::Up);
        publisher.tick(at(121_000));
        assert_eq!((publisher.link(), publisher.deadline()), (Link::Close, at(121_000)));
        let why = publisher.state();
        let due = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
        assert_eq!(why, nanonsq_core::publish::State::Closing(due));
    });
}

#[test]
fn an_outbox_says_how_much_there_is() {
    let mut ring = [0; 200];
    let mut outbox = Outbox::new(&mut ring);
    assert_eq!((outbox.capacity(), outbox.messages(), outbox.all_sent()), (200, 0, true));
    for body in [&b"one"[..], b"two"] {
        outbox.push(&topic(), body, None, Instant::NEVER).unwrap();
    }
    assert_eq!((outbox.messages(), outbox.all_sent()), (2, false));
    outbox.next_batch(1, 999, 0).unwrap();
    assert!(!outbox.all_sent());
    outbox.next_batch(1, 999, 0).unwrap();
    assert_eq!((outbox.messages(), outbox.all_sent()), (2, true));
    assert_eq!(outbox.used() + outbox.free(), outbox.capacity());
}

#[test]
fn a_message_expires_at_its_time_and_not_before() {
    let mut ring = [0; 200];
    let mut outbox = Outbox::new(&mut ring);
    outbox.push(&topic(), b"x", None, at(50)).unwrap();
    let mut gone = Vec::new();
    outbox.expire(at(49), |first, count| gone.push((first, count)));
    assert_eq!((outbox.next_expiry(), gone.len()), (at(50), 0));
    outbox.expire(at(50), |first, count| gone.push((first, count)));
    assert_eq!(gone, [(0, 1)]);
    // It was not on the wire: its bytes are free.
    assert_eq!((outbox.used(), outbox.messages(), outbox.next_expiry()), (0, 0, Instant::NEVER));
}
