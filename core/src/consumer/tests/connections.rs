//! Establishing a connection, refusals of nsqd, and the next dial.

use super::*;

#[test]
fn connects_subscribes_and_requests_messages() {
    with::<1, 4>(&config(), 1, |bench| {
        assert_eq!(bench.state(0), LinkState::Idle);
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
        assert_eq!(bench.state(0), LinkState::Subscribing);
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 4\n");
        assert_eq!(bench.state(0), LinkState::Ready);
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
fn a_connection_that_becomes_ready_while_paused_wakes_tasks() {
    with::<1, 4>(&config(), 1, |bench| {
        let now = bench.now();
        bench.consumer.pause(now);
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, INFO)).writes(0, "SUB t ch\n");
        let before = bench.consumer.version();
        bench.receive(0, &frame(0, b"OK")).writes(0, "");
        assert_ne!(bench.consumer.version(), before);
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Connected));
    });
}

#[test]
fn a_long_message_that_is_given_up_wakes_tasks() {
    let config = Config { max_attempts: 1, ..config() };
    with::<1, 1>(&config, 1, |bench| {
        bench.connect(0).writes(0, "RDY 1\n");
        let before = bench.consumer.version();
        bench.receive(0, &message(7, 2, &[b'x'; 100]));
        assert_ne!(bench.consumer.version(), before);
        let event = bench.consumer.poll_event();
        assert!(matches!(event, Some(Event::Connection { .. } | Event::GivenUp { .. })));
        assert_eq!(bench.consumer.counters().given_up, 1);
        bench.writes(0, &format!("FIN {}\n", id(7)));
    });
}

#[test]
fn the_answer_to_identify_may_come_in_pieces() {
    for len in 1..=INFO.len() {
        with::<1, 4>(&config(), 1, |bench| {
            bench.dial(0);
            bench.open(0).written(0);
            let answer = frame(0, INFO);
            let (last, pieces) = answer.split_last().unwrap();
            for piece in pieces.chunks(len) {
                // The driver writes after each piece.
                bench.receive(0, piece).writes(0, "");
            }
            bench.receive(0, &[*last]).writes(0, "SUB t ch\n");
        });
    }
}

#[test]
fn authenticates_if_nsqd_requires_it() {
    let info = b"{\"auth_required\":true,\"max_rdy_count\":3}";
    let secret = Config { auth_secret: Some(b"s3"), ..config() };
    with::<1, 4>(&secret, 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, info)).writes(0, "AUTH\n\0\0\0\x02s3");
        bench.receive(0, &frame(0, b"{\"permission_count\":1}")).writes(0, "SUB t ch\n");
        // RDY is limited by the server's max_rdy_count.
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 3\n");
    });
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        assert_eq!(bench.fault(0, &frame(0, info)), Fault::AuthRequired);
    });
}

#[test]
fn identify_sends_timeout_and_sample_rate() {
    let config = Config { msg_timeout: Some(Span::from_secs(5)), sample_rate: 7, ..config() };
    with::<1, 4>(&config, 1, |bench| {
        bench.dial(0);
        let hello = String::from_utf8_lossy(&bench.open(0).written(0)).into_owned();
        assert!(hello.contains("\"msg_timeout\":5000,\"sample_rate\":7"), "{hello}");
        assert!(!hello.contains("output_buffer"), "{hello}");
    });
}

#[test]
fn identify_sends_the_output_buffer_timeout() {
    let options = |ms| {
        let output_buffer_timeout = Some(Span::from_millis(ms));
        let mut hello = String::new();
        with::<1, 4>(&Config { output_buffer_timeout, ..config() }, 1, |bench| {
            bench.dial(0);
            hello = String::from_utf8_lossy(&bench.open(0).written(0)).into_owned();
        });
        let more = hello.split_once("\"heartbeat_interval\":").unwrap().1;
        more.trim_start_matches(|digit: char| digit.is_ascii_digit()).to_owned()
    };
    assert_eq!(options(25), ",\"output_buffer_timeout\":25}");
    assert_eq!(options(30_000), ",\"output_buffer_timeout\":30000}");
    assert_eq!(options(0), ",\"output_buffer_size\":-1}");
}

#[test]
fn heartbeats_are_answered_whatever_the_application_does() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 1, &[b'x'; 30])).receive(0, &message(2, 1, &[b'y'; 30]));
        let beat = frame(0, b"_heartbeat_");
        // The application takes no message, and no room is left.
        for second in 1..50 {
            bench.at(second * 1000).tick().receive(0, &beat).writes(0, "NOP\n").writes(0, "");
        }
        // Two heartbeats at once get one NOP.
        bench.receive(0, &[beat.clone(), beat].concat()).writes(0, "NOP\n");
        assert_eq!(bench.consumer.counters().heartbeats, 51);
        // The NOP for a heartbeat that arrives during a write follows the half written command.
        let (one, two) = (bench.take(), bench.take());
        bench.finish(one).finish(two);
        let now = bench.now();
        assert_eq!(bench.session(0).transmit(now).len(), 42);
        bench.session(0).sent(now, 10);
        bench.receive(0, &frame(0, b"_heartbeat_"));
        assert!(bench.written(0).ends_with(b"\nNOP\n"));
    });
}

#[test]
fn a_silent_connection_is_closed() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).written(0);
        bench.at(15_000).receive(0, &frame(0, b"_heartbeat_")[..7]);
        assert_eq!(bench.session(0).deadline(), at(35_000));
        bench.at(34_999).tick();
        assert_eq!(bench.state(0), LinkState::Ready);
        bench.at(35_000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
        // The deadline is due at once and stays due, so that the driver aborts the silent
        // connection.
        let end = bench.session(0).deadline();
        assert_eq!(end, at(35_000));
        bench.at(36_000).tick();
        assert_eq!((bench.session(0).link(), bench.session(0).deadline()), (Link::Close, end));
        bench.closed(0, Closed::Local);
        let why = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
        let _ = bench.session(0).poll_event();
        assert_eq!(bench.consumer.status(0).unwrap().last, Some(why));
        assert_eq!(bench.state(0), LinkState::Waiting);
    });
}

#[test]
fn each_step_of_the_handshake_has_its_own_timeout() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.dial(0);
        bench.at(5_000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        let why = Closed::Dial(DialError::TimedOut);
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Disconnected(why)));
        bench.at(6_000).connect(0);
        bench.closed(0, Closed::Transport(TransportError::Reset)).at(7_000);
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, INFO)).written(0);
        bench.at(12_000).tick();
        bench.closed(0, Closed::Local);
        let why = Closed::Fault(Fault::TimedOut(Awaited::Handshake));
        assert_eq!(bench.session(0).poll_event(), Some(ConnectionEvent::Disconnected(why)));
        assert_eq!(bench.consumer.counters().failures, 3);
    });
}

#[test]
fn refusals_report_the_text_of_nsqd_and_waits_grow() {
    with::<1, 2>(&config(), 1, |bench| {
        let mut waits = Vec::new();
        for _ in 0..12 {
            bench.dial(0);
            bench.open(0).written(0);
            bench.receive(0, &frame(0, INFO)).written(0);
            let fault = bench.fault(0, &frame(1, b"E_SUB_FAILED SUB failed to too many consumers"));
            assert_eq!(fault, Fault::Refused(ErrorCode::Sub));
            bench.closed(0, Closed::Peer);
            let detail = bench.consumer.status(0).unwrap().detail;
            assert_eq!(detail, "E_SUB_FAILED SUB failed to too many consumers");
            let next = bench.session(0).deadline().as_micros() / 1000;
            waits.push(next - bench.now);
            bench.at(next);
        }
        for (wait, high) in waits.iter().zip([1000, 2000, 4000, 8000, 16_000, 16_000]) {
            assert!((high / 2..=high).contains(wait), "{waits:?}");
        }
        assert!(waits[11] <= 16_000, "{waits:?}");
    });
}

#[test]
fn only_an_nsqd_that_delivers_or_lasts_is_dialed_again_at_once() {
    for (bytes, held, at_once) in [
        (vec![], 9999, false),
        (vec![], 10_000, true),
        (frame(0, b"_heartbeat_"), 1000, false),
        (message(1, 1, b"x"), 0, true),
    ] {
        with::<1, 2>(&config(), 1, |bench| {
            bench.connect(0).written(0);
            bench.receive(0, &bytes);
            let lost = bench.now + held;
            bench.at(lost).closed(0, Closed::Peer);
            let next = bench.session(0).deadline().as_micros() / 1000;
            assert_eq!(next == lost, at_once, "{held} ms, {bytes:?}: at {next}");
            assert!(at_once || next >= lost + 500, "{next}");
        });
    }
}

#[test]
fn an_nsqd_that_refuses_permanently_is_left_out_and_replaced() {
    let refusals: [(&[u8], Fault); 5] = [
        (b"E_INVALID cannot SUB in current state, TLS required", Fault::TlsRequired),
        (b"E_UNAUTHORIZED AUTH failed for SUB on \"t\" \"ch\"", Fault::AuthRefused),
        (b"E_AUTH_FIRST AUTH required before SUB", Fault::AuthRefused),
        (b"E_BAD_TOPIC SUB topic name", Fault::Refused(ErrorCode::BadTopic)),
        (b"E_BAD_CHANNEL SUB channel name", Fault::Refused(ErrorCode::BadChannel)),
    ];
    for (text, fault) in refusals {
        for nsqds in [1, 2] {
            with::<1, 2>(&config(), nsqds, |bench| {
                bench.dial(0);
                bench.open(0).written(0);
                bench.receive(0, &frame(0, INFO)).written(0);
                assert_eq!(bench.fault(0, &frame(1, text)), fault);
                bench.closed(0, Closed::Local);
                let event = bench.session(0).poll_event();
                assert_eq!(event, Some(ConnectionEvent::LeftOut(fault)));
                assert_eq!(bench.session(0).poll_event(), None);
                if nsqds == 1 {
                    bench.at(299_999).tick();
                    assert_eq!(bench.session(0).dial(at(299_999)), None);
                    bench.at(300_000).tick();
                    assert_eq!(bench.dial(0), "nsqd0:4150");
                } else {
                    bench.at(100).tick();
                    assert_eq!(bench.dial(0), "nsqd1:4150");
                }
            });
        }
    }
}

#[test]
fn several_nsqds_that_are_down_are_not_dialed_without_a_pause() {
    with::<1, 2>(&config(), 3, |bench| {
        let mut dialed = std::collections::HashMap::new();
        let mut dials = 0;
        while bench.now < 60_000 {
            if let Some(address) = bench.dial_in_vain() {
                *dialed.entry(address).or_insert(0) += 1;
                dials += 1;
            }
        }
        // Each is replaced as soon as it fails, so the pauses double only once in a lap.
        assert!(dials < 60, "{dials}: {dialed:?}");
        assert!(dialed.len() == 3 && dialed.values().all(|&n| n > 1), "{dialed:?}");
    });
}

#[test]
fn an_nsqd_that_fails_is_replaced_at_once() {
    with::<1, 2>(&config(), 3, |bench| {
        let mut dialed = Vec::new();
        while dialed.len() < 3 {
            dialed.extend(bench.dial_in_vain());
        }
        dialed.sort();
        assert_eq!(dialed, ["nsqd0:4150", "nsqd1:4150", "nsqd2:4150"], "each of them once");
        assert!(bench.now < 1000, "{} ms", bench.now);
    });
    // An nsqd that delivered a message is dialed again first.
    with::<1, 2>(&config(), 2, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 1, b"x"));
        bench.closed(0, Closed::Peer);
        assert_eq!(bench.dial_in_vain().as_deref(), Some("nsqd0:4150"));
        assert_eq!(bench.dial_in_vain().as_deref(), Some("nsqd1:4150"));
    });
}

#[test]
fn a_connection_without_an_nsqd_has_no_deadline() {
    with::<2, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.consumer.requeue(at(0), token, None).unwrap();
        // The backoff ends soon without an event.
        assert!(bench.session(0).deadline() < at(10_000));
        assert_eq!(bench.state(1), LinkState::Idle);
        assert_eq!(bench.session(1).deadline(), Instant::NEVER);
    });
}

#[test]
fn bytes_that_break_the_protocol_end_the_connection_with_a_reason() {
    let cases: [(&[u8], Fault); 6] = [
        (b"HTTP/1.1 400 Bad Request\r\n", Fault::Decode(DecodeError::WrongPort)),
        (b"\0\0\0\x06\0\0\0\x03OK", Fault::Decode(DecodeError::UnknownFrame { frame_type: 3 })),
        (b"\0\0\0\x1d\0\0\0\x02", Fault::Decode(DecodeError::ShortMessage { len: 25 })),
        (
            b"\0\x10\0\0\0\0\0\0x",
            Fault::Decode(DecodeError::BadLength { len: (1 << 20) - 4, max: 16 << 10 }),
        ),
        (b"\0\0\0\x06\0\0\0\0OK", Fault::UnexpectedReply),
        (b"\0\0\0\x0e\0\0\0\0CLOSE_WAIT", Fault::UnexpectedReply),
    ];
    for (bytes, fault) in cases {
        with::<1, 4>(&config(), 1, |bench| {
            bench.connect(0).written(0);
            // A short message is detected before its data arrive.
            let bytes = [bytes, b"x"].concat();
            assert_eq!(bench.fault(0, &bytes), fault);
            assert!(!fault.to_string().is_empty());
            // A wait follows a connection that delivered no message.
            bench.closed(0, Closed::Local).at(1000);
            bench.connect(0).writes(0, "RDY 4\n");
        });
    }
    // A response before IDENTIFY was sent.
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0);
        assert_eq!(bench.fault(0, &frame(0, INFO)), Fault::UnexpectedReply);
    });
}
