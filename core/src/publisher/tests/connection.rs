//! The handshake of a connection, its commands, and when it is closed.

use super::*;

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
    rig.receive(frame(0, "OK"));
    assert_eq!(rig.publisher.state(), State::Ready, "a plain OK is a response, too");
}

#[test]
fn every_split_of_nsqds_bytes_means_the_same() {
    let script = [OK, HEARTBEAT, OK, HEARTBEAT, OK].concat();
    for split in 0..=script.len() {
        rig!(rig);
        rig.connect();
        let tickets = ["a", "b", "c"].map(|body| {
            let ticket = rig.publish(body);
            rig.written();
            ticket
        });
        rig.receive(&script[..split]);
        rig.receive(&script[split..]);
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
            let _ = rig.publish(&body);
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
            rig.receive(OK);
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
    let _ = rig.publish("b");
    rig.expect(pub_one("b"));
    rig.receive(OK);
    let _ = rig.publish("c");
    // Half of "c" is written.
    let n = rig.publisher.transmit(rig.now).len() - 1;
    rig.publisher.sent(rig.now, n);
    rig.reconnect();
    assert_eq!(rig.outcome(a), Some(Outcome::Acknowledged));
    rig.expect(mpub(&["b", "c"]));
    // nsqd cannot have stored the half-written message.
    assert_eq!(rig.publisher.counters().possible_duplicates, 1);
    rig.receive(OK);
    assert_eq!(rig.publisher.counters().acknowledged, 3);
}

#[test]
fn heartbeats_are_answered_before_payload() {
    rig!(rig);
    rig.connect();
    rig.receive(HEARTBEAT);
    let _ = rig.publish("a");
    rig.expect([&b"NOP\n"[..], &pub_one("a")].concat());
    // Also with all flights taken.
    for _ in 1..FLIGHTS_MAX {
        let _ = rig.publish("x");
        rig.written();
    }
    let _ = rig.publish("waits");
    rig.receive([HEARTBEAT, HEARTBEAT].concat());
    rig.expect("NOP\nNOP\n");
    assert_eq!(rig.publisher.counters().heartbeats, 3);
}

#[test]
fn a_half_written_nop_is_not_a_half_written_batch() {
    rig!(rig);
    rig.connect();
    let ticket = rig.publish("a");
    rig.expect(pub_one("a"));
    rig.receive(HEARTBEAT);
    let half = |rig: &mut Rig<'_>| {
        assert_eq!(rig.publisher.transmit(rig.now).head, b"NOP\n");
        rig.publisher.sent(rig.now, 2);
    };
    half(&mut rig);
    rig.receive(OK);
    assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
    rig.expect("P\n");
    // If the connection is lost instead, the batch counts as wholly written.
    let _ = rig.publish("b");
    rig.written();
    rig.receive(HEARTBEAT);
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
    rig.receive(HEARTBEAT);
    rig.wait(59_999);
    assert_eq!(rig.publisher.link(), Link::Up);
    rig.wait(1);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
    assert_eq!(rig.publisher.state(), State::Closing(why));
    rig.publisher.closed(rig.now, Closed::Local);
    assert!(rig.events().contains(&Event::Disconnected { nsqd: 0, why }));
}

#[test]
fn an_nsqd_that_sends_heartbeats_but_never_answers_is_left() {
    rig!(rig, Config::new(), 1024, ["one:1", "two:1"]);
    rig.connect();
    let _ = rig.publish("a");
    rig.written();
    for _ in 0..3 {
        rig.wait(3000);
        rig.receive(HEARTBEAT);
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
    let _ = rig.publish("a");
    rig.written();
    rig.wait(5000);
    rig.receive(HEARTBEAT);
    rig.expect("NOP\n");
    rig.wait(5000);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
    assert_eq!(rig.publisher.state(), State::Closing(why));
}

#[test]
fn the_last_error_stays_known() {
    rig!(rig);
    rig.connect();
    let _ = rig.publish("a");
    rig.written();
    rig.receive_and_fault(frame(1, "E_PUB_FAILED PUB failed exiting"));
    rig.reconnect();
    rig.receive(HEARTBEAT);
    assert_eq!(rig.publisher.detail(), "E_PUB_FAILED PUB failed exiting");
}

#[test]
fn an_answer_between_two_pieces_of_identify_ends_the_connection() {
    rig!(rig);
    rig.dial();
    rig.publisher.open(rig.now);
    let n = rig.publisher.transmit(rig.now).len();
    rig.publisher.sent(rig.now, n);
    assert_eq!(rig.receive_and_fault(frame(0, "OK")), Fault::UnexpectedReply);
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
    let _ = rig.publish("a");
    rig.dial();
    rig.publisher.open(rig.now);
    rig.written();
    rig.receive(frame(0, r#"{"auth_required":true}"#));
    rig.expect([b"AUTH\n", &200u32.to_be_bytes()[..], secret.as_bytes()].concat());
    rig.receive(frame(0, r#"{"identity":"","identity_url":"","permission_count":1}"#));
    rig.expect(pub_one("a"));
    let events = rig.events();
    assert!(matches!(events[0], Event::Connected { nsqd: 0 }), "{events:?}");
    rig.receive(OK);
    rig.reconnect();
    rig.expect("");
}

#[test]
fn auth_required_without_a_secret_is_reported() {
    rig!(rig);
    rig.dial();
    rig.publisher.open(rig.now);
    rig.written();
    assert_eq!(rig.receive_and_fault(frame(0, r#"{"auth_required":true}"#)), Fault::AuthRequired);
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
        assert_eq!(rig.receive_and_fault(&bytes), fault);
        rig.receive(b"more"); // ignored
        rig.reconnect();
        rig.expect(pub_one("a"));
        rig.receive(OK);
        assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
    }
}

#[test]
fn an_unexpected_response_ends_the_connection() {
    rig!(rig);
    rig.connect();
    assert_eq!(rig.receive_and_fault(OK), Fault::UnexpectedReply);
    // Likewise a response that arrives before its command is written.
    rig!(rig);
    rig.connect();
    let _ = rig.publish("a");
    let n = rig.publisher.transmit(rig.now).len() - 1;
    rig.publisher.sent(rig.now, n);
    assert_eq!(rig.receive_and_fault(OK), Fault::UnexpectedReply);
    rig.reconnect();
    rig.expect(pub_one("a"));
}

#[test]
fn stop_finishes_the_command_being_written() {
    rig!(rig);
    rig.connect();
    let _ = rig.publish("a");
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
    // The transport and its driver are dropped; a new driver opens again.
    for bytes in 0..60 {
        rig!(rig);
        let tickets = ["a", "b"].map(|body| rig.publish(body));
        rig.dial();
        rig.publisher.open(rig.now);
        let mut left: usize = bytes;
        while left > 0 {
            let n = rig.publisher.transmit(rig.now).len().min(left);
            if n == 0 {
                rig.receive(frame(0, "OK"));
                left -= 1;
                continue;
            }
            rig.publisher.sent(rig.now, n);
            left -= n;
        }
        rig.publisher.open(rig.now);
        let hello = rig.written();
        assert!(hello.starts_with(b"  V2IDENTIFY\n"));
        rig.receive(frame(0, "OK"));
        rig.expect(mpub(&["a", "b"]));
        rig.receive(OK);
        for ticket in tickets {
            assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
        }
    }
}

#[test]
fn spurious_ticks_at_any_time_change_nothing() {
    rig!(rig);
    rig.connect();
    let _ = rig.publish("a");
    for now in [Instant::ZERO, rig.now] {
        for _ in 0..3 {
            rig.publisher.tick(now);
        }
    }
    assert_eq!(rig.publisher.state(), State::Ready);
    rig.expect(pub_one("a"));
    // A clock that jumps to its end makes commands late, not wrong.
    rig.now = Instant::NEVER;
    rig.publisher.tick(rig.now);
    assert_eq!(rig.publisher.link(), Link::Close);
    rig.publisher.closed(rig.now, Closed::Local);
    assert_eq!(rig.publisher.counters().pending, 1);
}
