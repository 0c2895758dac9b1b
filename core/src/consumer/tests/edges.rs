//! Lengths and counts at their limits, and streams cut at each byte.

use super::*;
use crate::consumer::status::DETAIL_MAX;

/// Calls `each` with a stream in one piece, cut in two at each byte, and byte by byte.
fn cuts(stream: &[u8], mut each: impl FnMut(&[&[u8]])) {
    each(&[stream]);
    for at in 1..stream.len() {
        let (one, two) = stream.split_at(at);
        each(&[one, two]);
    }
    each(&stream.chunks(1).collect::<Vec<_>>());
}

/// The outcome of a stream: its fault, the bodies taken, the answers sent, and the counters.
type Outcome = (Option<Fault>, Vec<Vec<u8>>, Vec<String>, Counters);

/// Returns the outcome of a stream that a subscribed connection receives in pieces. With `asked`,
/// the driver writes after each piece.
fn outcome_of(parts: &[&[u8]], asked: bool) -> Outcome {
    let mut outcome = None;
    with::<1, 8>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 8\n");
        let now = bench.now();
        let (mut fault, mut written) = (None, Vec::new());
        for part in parts {
            let received = bench.session(0).receive(now, part);
            fault = fault.or(received.err());
            if asked {
                written.extend(bench.written(0));
            }
        }
        let mut bodies = Vec::new();
        while let Some(delivery) = bench.consumer.take(now) {
            bodies.push(bench.body(delivery.token).to_vec());
            bench.finish(delivery.token);
        }
        written.extend(bench.written(0));
        let lines = String::from_utf8(written).unwrap();
        // The number of NOP and RDY depends on how often the driver writes.
        let is_answer = |line: &&str| !line.starts_with("NOP") && !line.starts_with("RDY");
        let mut answers: Vec<_> = lines.lines().filter(is_answer).map(str::to_owned).collect();
        answers.sort();
        outcome = Some((fault, bodies, answers, bench.consumer.counters()));
    });
    outcome.unwrap()
}

#[test]
fn the_stream_of_nsqd_may_be_cut_anywhere() {
    let good = [
        message(1, 1, b"short"),
        frame(0, b"_heartbeat_"),
        message(2, 1, b""),
        message(3, 1, &[b'l'; 90]),
        frame(1, b"E_FIN_FAILED FIN 0000000000000009 failed ID not in flight"),
        message(4, 1, &[b'x'; 500]),
        message(5, 6, b"too often"),
        frame(0, b"_heartbeat_"),
        message(6, 2, b"last"),
    ]
    .concat();
    let whole = outcome_of(&[&good], false);
    assert_eq!((whole.0, whole.1.len()), (None, 4));
    let numbers = [(1, "FIN"), (2, "FIN"), (3, "FIN"), (4, "REQ"), (5, "FIN"), (6, "FIN")];
    assert_eq!(whole.2.len(), numbers.len());
    for (number, verb) in numbers {
        let start = format!("{verb} {}", id(number));
        assert!(whole.2.iter().any(|line| line.starts_with(&start)), "{start}: {:?}", whole.2);
    }
    let Counters { received, heartbeats, refused, too_large, given_up, .. } = whole.3;
    assert_eq!((received, heartbeats, refused, too_large, given_up), (5, 2, 1, 1, 1));
    cuts(&good, |parts| {
        assert_eq!(outcome_of(parts, false), whole);
        assert_eq!(outcome_of(parts, true), whole);
    });
    // The same stream, followed by each kind of error.
    for bad in [
        &b"HTTP/1.1 400 Bad Request\r\n"[..],
        b"\0\0\0\x06\0\0\0\x03OK",
        b"\0\0\0\x03\0\0\0\0",
        b"\xff\xff\xff\xff\0\0\0\0",
        b"\0\0\0\x1d\0\0\0\x02x",
        b"\0\x10\0\0\0\0\0\0x",
        b"\0\0\0\x06\0\0\0\0OK",
        b"\0\0\0\x0f\0\0\0\0_heartbeet_",
        b"\0\0\0\x0d\0\0\0\x01E_INVALID",
    ] {
        let rest = [bad, b"what follows does not count"].concat();
        let whole = outcome_of(&[&good, &rest], false);
        assert!(whole.0.is_some(), "{}", bad.escape_ascii());
        cuts(&rest, |parts| {
            let parts = [&[&good[..]], parts].concat();
            assert_eq!(outcome_of(&parts, false), whole, "{}", bad.escape_ascii());
            // The answers are not compared: those before the error are sent only with `asked`.
            let asked = outcome_of(&parts, true);
            assert_eq!((asked.0, asked.1, asked.3), (whole.0, whole.1.clone(), whole.3));
        });
    }
}

#[test]
fn the_handshake_may_be_cut_anywhere() {
    let info = frame(0, b"{\"auth_required\":true,\"max_rdy_count\":3,\"msg_timeout\":5000}");
    let authorized = frame(0, b"{\"identity\":\"\",\"identity_url\":\"\",\"permission_count\":1}");
    let ok = frame(0, b"OK");
    let beat = frame(0, b"_heartbeat_");
    let config = Config { auth_secret: Some(b"s3"), ..config() };
    let answers = [(&info, "AUTH\n\0\0\0\x02s3"), (&authorized, "SUB t ch\n"), (&ok, "RDY 3\n")];
    for cut in 0..answers.len() {
        cuts(answers[cut].0, |parts| {
            with::<1, 4>(&config, 1, |bench| {
                bench.dial(0);
                bench.open(0).written(0);
                for (at, (answer, next)) in answers.iter().enumerate() {
                    if at == cut {
                        for part in parts {
                            bench.writes(0, "").receive(0, part);
                        }
                    } else {
                        bench.receive(0, answer);
                    }
                    bench.writes(0, next);
                }
                // The first heartbeat may follow at once.
                bench.receive(0, &beat).writes(0, "NOP\n");
            });
        });
    }
}

#[test]
fn a_server_without_negotiation_has_the_defaults_of_nsqd() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, b"OK")).writes(0, "SUB t ch\n");
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        for second in (10..60).step_by(10) {
            bench.at(second * 1000).tick().receive(0, &frame(0, b"_heartbeat_")).written(0);
        }
        bench.at(59_999).tick().finish(token).writes(0, &format!("FIN {}\n", id(1)));
    });
}

#[test]
fn after_a_bad_response_to_identify_the_nsqd_is_dialed_again() {
    with::<1, 4>(&config(), 1, |bench| {
        for answer in
            [&b""[..], b"E_INVALID", b"[]", b"OKAY", b"{\"max_rdy_count\":\"many\"}", b"{"]
        {
            let due = bench.session(0).deadline();
            if due != Instant::NEVER {
                let due = (due.as_micros() / 1000).max(bench.now);
                bench.at(due);
            }
            bench.dial(0);
            bench.open(0).written(0);
            let fault = bench.fault(0, &frame(0, answer));
            assert_eq!(
                fault,
                Fault::Decode(DecodeError::BadIdentifyReply),
                "{}",
                answer.escape_ascii()
            );
            bench.closed(0, Closed::Local);
        }
        let due = bench.session(0).deadline().as_micros() / 1000;
        bench.at(due).connect(0).writes(0, "RDY 4\n");
    });
}

#[test]
fn an_outage_of_days_is_over_as_soon_as_nsqd_is_back() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).closed(0, Closed::Peer);
        let mut dials = 0;
        while bench.now < 3 * 24 * 3_600_000 {
            let due = bench.session(0).deadline().as_micros().div_ceil(1000);
            assert!(due - bench.now <= 10_000, "waits until {due}");
            bench.at(due).tick().dial(0);
            bench.closed(0, Closed::Dial(DialError::Refused));
            dials += 1;
        }
        assert!(dials > 30_000, "{dials}");
        let due = bench.session(0).deadline().as_micros().div_ceil(1000);
        bench.at(due).connect(0).writes(0, "RDY 4\n");
    });
}

/// Four slots of 64 bytes: from an empty body to more bytes than the ring has.
#[test]
fn messages_of_every_length() {
    const ROOM: usize = 4 * 64 - 26;
    for len in 0..ROOM + 3 {
        with::<1, 4>(&config(), 1, |bench| {
            bench.connect(0).writes(0, "RDY 4\n");
            let body: Vec<u8> = (0..len).map(|at| at as u8).collect();
            bench.receive(0, &message(1, 1, &body));
            if len > ROOM {
                assert_eq!(bench.consumer.take(at(0)), None);
                bench.writes(0, &format!("REQ {} 90000\n", id(1)));
                assert_eq!(bench.consumer.counters().too_large, 1);
                return;
            }
            let rdy = 5 - (26 + len).div_ceil(64);
            let announced = if rdy == 4 { String::new() } else { format!("RDY {rdy}\n") };
            bench.writes(0, &announced);
            // The messages that RDY still allows have room.
            for n in 2..=rdy as u8 {
                bench.receive(0, &message(n, 1, &[n; 38]));
            }
            let token = bench.take();
            assert_eq!(bench.body(token), body);
            for n in 2..=rdy as u8 {
                let token = bench.take();
                assert_eq!(bench.body(token), [n; 38]);
            }
            bench.finish(token);
            let announced = if rdy == 4 { "" } else { "RDY 4\n" };
            bench.writes(0, &format!("FIN {}\n{announced}", id(1)));
            let counters = bench.consumer.counters();
            assert_eq!((counters.no_room, counters.too_large), (0, 0), "{len}");
        });
    }
}

#[test]
fn a_long_message_needs_adjacent_slots() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for n in 0..4 {
            bench.receive(0, &message(n, 1, b"x"));
        }
        let [first, second, third, _fourth] = [(); 4].map(|()| bench.take());
        bench.finish(first).finish(third);
        bench.writes(0, &format!("FIN {}\nFIN {}\n", id(0), id(2)));
        bench.receive(0, &message(9, 1, &[0; 39])).writes(0, &format!("REQ {} 1000\n", id(9)));
        assert_eq!(bench.consumer.counters().no_room, 1);
        bench.finish(second).writes(0, &format!("FIN {}\n", id(1)));
        bench.receive(0, &message(9, 2, &[0; 166])).writes(0, "RDY 2\n");
        let token = bench.take();
        assert_eq!(bench.body(token), [0; 166]);
        assert_eq!(bench.consumer.counters().no_room, 1);
    });
}

#[test]
fn one_message_more_than_there_is_room_for_is_requeued() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        for n in 1..=3 {
            bench.receive(0, &message(n, 1, &[n; 38]));
        }
        bench.writes(0, &format!("REQ {} 1000\n", id(3)));
        let (one, two) = (bench.take(), bench.take());
        assert_eq!((bench.body(one), bench.body(two)), (&[1; 38][..], &[2; 38][..]));
        assert_eq!(bench.consumer.take(at(0)), None);
        bench.finish(one).finish(two).written(0);
        let counters = bench.consumer.counters();
        assert_eq!((counters.received, counters.no_room), (2, 1));
    });
}

#[test]
fn without_a_message_nothing_is_taken_or_answered() {
    with::<1, 2>(&config(), 1, |bench| {
        assert_eq!(bench.consumer.take(at(0)), None);
        bench.connect(0).written(0);
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.finish(token);
        let unknown = Err(AnswerError::Unknown);
        let consumer = &mut bench.consumer;
        assert_eq!(consumer.take(at(0)), None);
        assert!(consumer.message(token).is_none());
        assert_eq!(consumer.finish(at(0), token), unknown);
        assert_eq!(consumer.requeue(at(0), token, None), unknown);
        assert_eq!(consumer.requeue(at(0), token, Some(Span::ZERO)), unknown);
        assert_eq!(consumer.release(at(0), token, None), unknown);
        assert_eq!(consumer.touch(at(0), token), unknown);
        assert!(!consumer.is_backing_off());
        let counters = consumer.counters();
        assert_eq!((counters.finished, counters.requeued, counters.late), (1, 0, 0));
        bench.writes(0, &format!("FIN {}\n", id(1))).writes(0, "");
        // Another message has the slot: the old token does not identify it.
        bench.receive(0, &message(2, 1, b"y")).receive(0, &message(3, 1, b"z"));
        let _ = (bench.take(), bench.take());
        assert_eq!(bench.consumer.finish(at(0), token), unknown);
        bench.writes(0, "");
    });
}

#[test]
fn the_longest_texts_of_nsqd() {
    let text_of = |len: usize| {
        let mut text = b"E_SUB_FAILED ".to_vec();
        text.resize(len, b'x');
        text
    };
    for len in [13, DETAIL_MAX - 1, DETAIL_MAX, DETAIL_MAX + 1, REPLY_MAX] {
        with::<1, 2>(&config(), 1, |bench| {
            bench.dial(0);
            bench.open(0).written(0);
            bench.receive(0, &frame(0, INFO)).written(0);
            let fault = bench.fault(0, &frame(1, &text_of(len)));
            assert_eq!(fault, Fault::Refused(ErrorCode::Sub));
            let detail = bench.consumer.status(0).unwrap().detail;
            assert_eq!(detail.as_bytes(), &text_of(len)[..len.min(DETAIL_MAX)]);
        });
    }
    let mut longest = INFO[..INFO.len() - 1].to_vec();
    longest.resize(REPLY_MAX - 1, b' ');
    longest.push(b'}');
    with::<1, 2>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, &longest)).writes(0, "SUB t ch\n");
    });
    longest.push(b' ');
    let max = REPLY_MAX as u32;
    with::<1, 2>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        let fault = bench.fault(0, &frame(0, &longest));
        assert_eq!(fault, Fault::Decode(DecodeError::BadLength { len: max + 1, max }));
    });
}

const REPLY_MAX: usize = 16 * 1024;

#[test]
fn tables_from_the_smallest_to_the_largest() {
    let config = config();
    for (connections, nsqds, slots, ring, error) in [
        (1, 0, 1, SLOT_MIN, None),
        (255, 255, 65_534, 65_534 * SLOT_MIN, None),
        (0, 0, 1, SLOT_MIN, Some(ConfigError::Connections { count: 0 })),
        (256, 0, 1, SLOT_MIN, Some(ConfigError::Connections { count: 256 })),
        (1, 256, 1, SLOT_MIN, Some(ConfigError::Addresses { count: 256 })),
        (1, 0, 0, SLOT_MIN, Some(ConfigError::Messages { count: 0 })),
        (1, 0, 65_535, usize::MAX, Some(ConfigError::Messages { count: 65_535 })),
        (1, 0, 1, SLOT_MIN - 1, Some(ConfigError::RingTooSmall { len: SLOT_MIN - 1 })),
    ] {
        let checked = config.check(connections, nsqds, slots, ring).err();
        assert_eq!(checked, error, "{connections}, {nsqds}, {slots}, {ring}");
    }
}

#[test]
fn as_many_nsqlookupds_as_there_may_be() {
    let config = config();
    let lookupds: [Address; LOOKUPDS_MAX + 1] =
        core::array::from_fn(|n| format!("l{n}:4161").parse().unwrap());
    let nsqds: [String; LOOKUPDS_MAX] = core::array::from_fn(|n| format!("nsqd{n}"));
    let mut storage = Storage::<LOOKUPDS_MAX, LOOKUPDS_MAX>::new();
    let mut discovery = Discovery::<{ LOOKUPDS_MAX + 1 }, LOOKUPDS_MAX>::new();
    let mut ring = [0; LOOKUPDS_MAX * 64];
    {
        let mut consumer = Consumer::new(&config, &mut storage, &[], &mut ring).unwrap();
        let refused = consumer.discover(&mut discovery, &lookupds);
        assert_eq!(refused, Err(ConfigError::Lookupds { count: LOOKUPDS_MAX + 1 }));
    }
    let mut consumer = Consumer::new(&config, &mut storage, &[], &mut ring).unwrap();
    consumer.discover(&mut discovery, &lookupds[..LOOKUPDS_MAX]).unwrap();
    let mut bench = Bench { consumer, now: 0 };
    // Each nsqlookupd lists its own nsqd.
    for (index, nsqd) in nsqds.iter().enumerate() {
        bench.answer(index, &http("200 OK", &lookup_body(&[nsqd]))).unwrap();
    }
    assert_eq!(bench.hosts(), nsqds);
    assert!(bench.consumer.lookupd(LOOKUPDS_MAX).is_none());
}

#[test]
fn as_many_connections_as_there_may_be() {
    const ALL: usize = 255;
    let config = config();
    let nsqds: Vec<Address> = (0..ALL).map(|n| format!("nsqd{n}:4150").parse().unwrap()).collect();
    let mut storage = Box::new(Storage::<ALL, 300>::new());
    let mut ring = vec![0; 300 * 64];
    let consumer = Consumer::new(&config, &mut storage, &nsqds, &mut ring).unwrap();
    let mut bench = Bench { consumer, now: 0 };
    bench.consumer.pause(at(0));
    for index in 0..ALL {
        bench.connect(index).writes(index, "");
    }
    bench.consumer.resume(at(0));
    for index in 0..ALL {
        bench.writes(index, if index < 45 { "RDY 2\n" } else { "RDY 1\n" });
    }
    // The last connection works like any other.
    bench.receive(ALL - 1, &message(1, 1, b"x"));
    let token = bench.take();
    bench.finish(token).writes(0, "").writes(ALL - 1, &format!("FIN {}\n", id(1)));
}

#[test]
fn without_a_limit_no_message_is_requested() {
    with::<1, 4>(&Config { max_in_flight: 0, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "");
        bench.at(9_000).tick().receive(0, &frame(0, b"_heartbeat_")).writes(0, "NOP\n");
        let now = bench.now();
        bench.consumer.set_max_in_flight(now, 1);
        bench.writes(0, "RDY 1\n");
    });
    // A server that allows no RDY.
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, b"{\"max_rdy_count\":0}")).writes(0, "SUB t ch\n");
        bench.receive(0, &frame(0, b"OK")).writes(0, "");
    });
}

#[test]
fn the_longest_delay_is_sent_unchanged() {
    with::<1, 1>(&config(), 1, |bench| {
        bench.connect(0).written(0);
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.consumer.release(at(0), token, Some(Span::MAX)).unwrap();
        bench.writes(0, &format!("REQ {} 4294967295\n", id(1)));
        bench.receive(0, &message(1, u16::MAX, b"x"));
        // The message was delivered too often.
        assert_eq!(bench.consumer.take(at(0)), None);
        bench.writes(0, &format!("FIN {}\n", id(1)));
    });
    let config = Config { max_attempts: 0, requeue_cap: Span::MAX, ..config() };
    with::<1, 1>(&config, 1, |bench| {
        bench.connect(0).written(0);
        bench.receive(0, &message(1, u16::MAX, b"x"));
        let token = bench.take();
        bench.consumer.release(at(0), token, None).unwrap();
        // 65,535 times 90 s exceed 32 bits: the delay saturates.
        bench.writes(0, &format!("REQ {} 4294967295\n", id(1)));
    });
}

#[test]
fn starved_when_85_percent_of_rdy_are_in_flight_on_a_connection() {
    with::<2, 40>(&Config { max_in_flight: 40, ..config() }, 2, |bench| {
        assert!(!bench.consumer.is_starved());
        bench.consumer.pause(at(0));
        bench.connect(0).connect(1);
        bench.consumer.resume(at(0));
        bench.writes(0, "RDY 20\n").writes(1, "RDY 20\n");
        for n in 0..16 {
            bench.receive(1, &message(n, 1, b"x"));
            assert!(!bench.consumer.is_starved(), "{n}");
        }
        bench.receive(1, &message(16, 1, b"x"));
        assert!(bench.consumer.is_starved());
        let token = bench.take();
        bench.finish(token).written(1);
        assert!(!bench.consumer.is_starved());
    });
}

// nsqlookupds.

#[test]
fn an_nsqlookupd_that_cannot_be_reached_delays_no_other() {
    looking_up(&config(), 2, |bench| {
        let now = bench.now();
        bench.poll(0).dial(now).expect("a dial is due");
        bench.poll(0).closed(now, Closed::Dial(DialError::Refused));
        bench.answer(1, &http("200 OK", &lookup_body(&["b"]))).unwrap();
        assert_eq!((bench.now, bench.hosts()), (0, vec!["b".to_owned()]));
        let why = Closed::Dial(DialError::Refused);
        assert_eq!(bench.poll(0).poll_event(), Some(LookupdEvent::Failed(why)));
        assert_eq!(bench.poll(1).poll_event(), Some(LookupdEvent::Answered { producers: 1 }));
        let again = bench.poll(0).deadline().as_micros() / 1000;
        assert!((500..=1000).contains(&again), "{again}");
    });
}

#[test]
fn nsqds_with_ipv6_addresses() {
    looking_up(&config(), 1, |bench| {
        bench.answer(0, &http("200 OK", &lookup_body(&["::1", "fe80::1%eth0"]))).unwrap();
        bench.tick();
        assert_eq!(bench.dial(0), "[::1]:4150");
        assert_eq!(bench.dial(1), "[fe80::1%eth0]:4150");
    });
}

/// The time between two queries may be up to a quarter shorter than the interval, never longer.
#[test]
fn an_interval_is_the_longest_time_from_one_query_to_the_next() {
    for lookup_interval in [1, 2, 1000, 60_000].map(Span::from_millis) {
        let (mut shortest, mut longest) = (u32::MAX, 0);
        for seed in 0..200 {
            let config = Config { lookup_interval, seed, ..config() };
            looking_up(&config, 1, |bench| {
                for _ in 0..3 {
                    bench.answer(0, &http("200 OK", &lookup_body(&["a"]))).unwrap();
                    let wait = bench.poll(0).deadline().since(bench.now()).as_millis();
                    (shortest, longest) = (shortest.min(wait), longest.max(wait));
                }
            });
        }
        let ms = lookup_interval.as_millis();
        assert!(longest <= ms && longest >= ms - ms / 16, "{shortest} to {longest} of {ms}");
        let least = ms - ms / 4;
        assert!(shortest >= least.max(1) && shortest <= least + ms / 16, "{shortest} of {ms}");
    }
}
