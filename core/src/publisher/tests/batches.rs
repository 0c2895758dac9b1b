//! Which messages leave in one command, and the effect of a refusal on them.

use super::*;

#[test]
fn a_single_message_leaves_as_pub_at_once_and_backlog_as_mpub() {
    rig!(rig);
    rig.connect();
    let first = rig.publish("a");
    rig.expect(pub_one("a"));
    // The second command while the first is unanswered.
    let _ = rig.publish("b");
    let last = rig.publish("c");
    rig.expect(mpub(&["b", "c"]));
    rig.receive(OK);
    assert_eq!(rig.outcome(first), Some(Outcome::Acknowledged));
    assert_eq!(rig.outcome(last), None);
    rig.receive(OK);
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
        let _ = rig.publisher.publish_with(&topic(name), b"x", options).unwrap();
    }
    rig.connect();
    let dpub = [&b"DPUB t 5\n"[..], &record("x")].concat();
    let expected =
        [mpub(&["x", "x"]), [&b"PUB u\n"[..], &record("x")].concat(), dpub.clone(), dpub];
    rig.expect(expected.concat());
}

#[test]
fn flights_are_bounded_and_later_messages_become_one_batch() {
    rig!(rig);
    rig.connect();
    for n in 0..FLIGHTS_MAX {
        let _ = rig.publish(&n.to_string());
        rig.expect(pub_one(&n.to_string()));
    }
    let _ = rig.publish("x");
    let _ = rig.publish("y");
    rig.expect("");
    rig.receive(OK);
    rig.expect(mpub(&["x", "y"]));
}

#[test]
fn a_rejected_batch_is_retried_one_by_one() {
    rig!(rig);
    rig.connect();
    let tickets = ["a", "bad", "c"].map(|body| rig.publish(body));
    rig.expect(mpub(&["a", "bad", "c"]));
    let fault = rig.receive_and_fault(frame(1, "E_BAD_MESSAGE MPUB message too big 3 > 2"));
    assert_eq!(fault, Fault::Refused(ErrorCode::BadMessage));
    assert_eq!(rig.publisher.detail(), "E_BAD_MESSAGE MPUB message too big 3 > 2");
    rig.reconnect();
    let _ = rig.publish("later");
    rig.expect([pub_one("a"), pub_one("bad"), pub_one("c"), pub_one("later")].concat());
    rig.receive(OK);
    rig.receive_and_fault(frame(1, "E_BAD_MESSAGE PUB message too big 3 > 2"));
    rig.reconnect();
    // The bad message is gone, so batches grow again: one was accepted, so two leave at once.
    rig.expect(mpub(&["c", "later"]));
    rig.receive(OK);
    for body in ["w", "x", "y", "z"] {
        let _ = rig.publish(body);
    }
    rig.expect(mpub(&["w", "x", "y", "z"]));
    assert_eq!(
        tickets.map(|ticket| rig.outcome(ticket).unwrap()),
        [Outcome::Acknowledged, Outcome::Rejected(ErrorCode::BadMessage), Outcome::Acknowledged]
    );
    let counters = rig.publisher.counters();
    assert_eq!((counters.rejected, counters.possible_duplicates), (1, 0));
}

/// Refuses the next command with `text`; returns how many messages the command had.
fn refuse(rig: &mut Rig<'_>, text: &str) -> u32 {
    let written = rig.written();
    let count = match written.strip_prefix(b"MPUB t\n") {
        Some(rest) => u32::from_be_bytes(rest[4..8].try_into().unwrap()),
        None => u32::from(written.starts_with(b"PUB t\n")),
    };
    rig.receive_and_fault(frame(1, text));
    rig.lose();
    rig.wait(16_000);
    rig.connect();
    count
}

#[test]
fn a_batch_that_is_refused_twice_is_halved_whatever_the_code() {
    for text in ["E_PUB_FAILED x", "E_MPUB_FAILED MPUB failed no room", "E_NEW", "E_INVALID x"] {
        rig!(rig);
        let last = (0..20).map(|n| rig.publish(&n.to_string())).last().unwrap();
        rig.connect();
        let counts: Vec<u32> = (0..9).map(|_| refuse(&mut rig, text)).collect();
        assert_eq!(counts, [20, 20, 10, 5, 2, 1, 1, 1, 1], "{text}");
        let counters = rig.publisher.counters();
        let lost = (counters.rejected, counters.possible_duplicates, counters.pending);
        assert_eq!(lost, (0, 0, 20), "{text}");
        // Batches that are accepted then grow, but for a while not to a length that was refused.
        rig.expect([pub_one("0"), pub_one("1"), pub_one("2"), pub_one("3")].concat());
        rig.receive([OK; 4].concat());
        while rig.outcome(last).is_none() {
            let written = rig.written();
            assert!(!written.starts_with(b"MPUB"), "{}", String::from_utf8_lossy(&written));
            rig.receive(OK);
            rig.receive(OK);
            rig.receive(OK);
            rig.receive(OK);
        }
        assert_eq!(rig.publisher.counters().acknowledged, 20);
    }
}

#[test]
fn a_smaller_batch_is_tried_without_a_wait_and_one_message_is_not() {
    rig!(rig);
    for n in 0..4 {
        let _ = rig.publish(&n.to_string());
    }
    rig.connect();
    for (count, at_once) in [(4, false), (4, true), (2, true), (1, false)] {
        let written = rig.written();
        assert_eq!(written.starts_with(b"MPUB"), count > 1);
        rig.receive_and_fault(frame(1, "E_PUB_FAILED PUB failed no room"));
        rig.lose();
        assert_eq!(rig.publisher.deadline() <= rig.now, at_once, "{count}");
        rig.wait(20_000);
        rig.connect();
    }
}

#[test]
fn batches_grow_past_the_refused_length_once_a_connection_lasts() {
    rig!(rig, Config::new(), 100_000, ["one:4150"]);
    rig.connect();
    let publish = |rig: &mut Rig<'_>, count: u32| {
        for _ in 0..count {
            let _ = rig.publish("x");
        }
    };
    publish(&mut rig, 8);
    assert_eq!(refuse(&mut rig, "E_NEW"), 8);
    assert_eq!(refuse(&mut rig, "E_NEW"), 8);
    let taken = |rig: &mut Rig<'_>| {
        let written = rig.written();
        let first = written.strip_prefix(b"MPUB t\n").expect("a batch");
        while rig.publisher.counters().pending > 0 {
            rig.receive(OK);
            rig.written();
        }
        u32::from_be_bytes(first[4..8].try_into().unwrap())
    };
    for _ in 0..100 {
        assert_eq!(taken(&mut rig), 4);
        publish(&mut rig, 8);
    }
    rig.wait(9000);
    rig.receive(HEARTBEAT);
    rig.expect([&b"NOP\n"[..], &mpub(&["x"; 4]), &mpub(&["x"; 4])].concat());
    rig.receive([OK, OK].concat());
    rig.wait(1000);
    rig.receive(HEARTBEAT);
    rig.expect("NOP\n");
    publish(&mut rig, 1000);
    assert_eq!(taken(&mut rig), 1000);
}

#[test]
fn one_bad_message_among_many_is_rejected_alone() {
    for bad in [0, 1, 499, 998, 999] {
        rig!(rig, Config::new(), 100_000, ["one:4150"]);
        for n in 0..1000 {
            let _ = rig.publish(if n == bad { "bad" } else { "good" });
        }
        rig.connect();
        let mut refusals = 0;
        while rig.publisher.counters().pending > 0 {
            let written = rig.written();
            // The answers of an nsqd, command by command.
            let mut rest = &written[..];
            while let Some(end) = rest.iter().position(|&b| b == b'\n') {
                let word = |at: usize| {
                    u32::from_be_bytes(rest[end + at..end + at + 4].try_into().unwrap()) as usize
                };
                let used = 5 + word(1);
                let command = &rest[..end + used];
                rest = &rest[end + used..];
                if command.windows(3).any(|text| text == b"bad") {
                    refusals += 1;
                    rig.receive_and_fault(frame(1, "E_BAD_MESSAGE MPUB message too big 3 > 2"));
                    rig.lose();
                    assert!(rig.publisher.deadline() <= rig.now, "nothing is gained by a wait");
                    rig.connect();
                    break;
                }
                rig.receive(OK);
            }
        }
        let counters = rig.publisher.counters();
        assert_eq!((counters.acknowledged, counters.rejected), (999, 1), "{bad}");
        assert_eq!(counters.possible_duplicates, 0);
        assert!(refusals <= 24, "{refusals} refusals for message {bad}");
    }
}

/// Bad messages expire, are dropped, or are given up with their connection: later messages leave in
/// batches.
#[test]
fn suspects_that_are_gone_do_not_bound_batches() {
    for expire in [true, false] {
        let full = if expire { Full::Refuse } else { Full::DropOldest };
        rig!(rig, Config { full, ..Config::new() }, 100, ["one:4150"]);
        rig.connect();
        for _ in 0..3 {
            if expire {
                let _ = with_deadline(&mut rig, 1000);
            } else {
                let _ = rig.publish(&"bad".repeat(7));
            }
        }
        assert!(rig.written().starts_with(b"MPUB"));
        rig.receive_and_fault(frame(1, "E_BAD_MESSAGE MPUB invalid message"));
        rig.lose();
        rig.wait(2000);
        if !expire {
            let _ = rig.publisher.publish(&topic(T), &[b'x'; 79]).unwrap();
            assert_eq!(rig.publisher.counters().dropped, 3);
        }
        for body in ["a", "b"] {
            let _ = rig.publish(body);
        }
        rig.connect();
        assert!(rig.written().starts_with(b"MPUB"), "{expire}");
    }
}

#[test]
fn a_refusal_of_the_topic_rejects_the_whole_batch() {
    rig!(rig);
    rig.connect();
    let tickets = ["a", "b"].map(|body| rig.publish(body));
    rig.written();
    rig.receive_and_fault(frame(1, "E_UNAUTHORIZED AUTH failed for MPUB on \"t\""));
    for ticket in tickets {
        assert_eq!(rig.outcome(ticket), Some(Outcome::Rejected(ErrorCode::Unauthorized)));
    }
    assert_eq!(
        rig.events().last(),
        Some(&Event::Resolved { below: Ticket(2) }),
        "and the application is notified"
    );
    rig.reconnect();
    rig.expect("");
}

#[test]
fn errors_of_nsqd_itself_reject_nothing() {
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
        rig.receive_and_fault(frame(1, error));
        rig.reconnect();
        rig.expect(pub_one("a"));
        rig.receive(OK);
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
    rig.receive_and_fault(frame(1, "E_INVALID DPUB timeout 3600000 out of range 0-1000"));
    assert_eq!(rig.outcome(ticket), Some(Outcome::Rejected(ErrorCode::Invalid)));
}
