//! Deliveries and answers, and leaving an nsqd.

use super::*;

/// nsqd's response to IDENTIFY with a `msg_timeout` of `ms` milliseconds.
fn info_with_timeout(ms: u32) -> Vec<u8> {
    String::from_utf8(INFO.to_vec()).unwrap().replace("60000", &ms.to_string()).into_bytes()
}

#[test]
fn a_touch_lasts_for_the_timeout_of_the_nsqd_of_its_message() {
    with::<2, 4>(&Config { msg_timeout: Some(Span::from_secs(60)), ..config() }, 2, |bench| {
        bench.connect(0).written(0);
        // The second nsqd grants a shorter timeout.
        bench.connect_with(1, &info_with_timeout(10_000)).written(1);
        bench.receive(1, &message(1, 1, b"x"));
        let token = bench.take();
        bench.at(9_000).consumer.touch(at(9_000), token).unwrap();
        assert_eq!(bench.written(1), format!("TOUCH {}\n", id(1)).as_bytes());
        bench.at(18_999).tick();
        assert_eq!(bench.consumer.counters().timed_out, 0);
        bench.at(19_000).tick();
        assert_eq!(bench.consumer.counters().timed_out, 1);
    });
}

/// nsqd's timeout restarts when TOUCH arrives, not when the application calls `touch`.
#[test]
fn the_timeout_restarts_when_touch_is_sent() {
    with::<1, 4>(&Config { msg_timeout: Some(Span::from_secs(10)), ..config() }, 1, |bench| {
        bench.connect_with(0, &info_with_timeout(10_000)).written(0);
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.at(2_000).consumer.touch(at(2_000), token).unwrap();
        assert_eq!(bench.at(8_000).written(0), format!("TOUCH {}\n", id(1)).as_bytes());
        bench.at(17_999).tick();
        assert_eq!(bench.consumer.counters().timed_out, 0);
        bench.at(18_000).tick();
        assert_eq!(bench.consumer.counters().timed_out, 1);
    });
}

#[test]
fn answers_in_any_order_and_slots_used_again() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for round in 0..50u8 {
            for n in 0..4 {
                bench.receive(0, &message(round * 4 + n, 1, &[round * 4 + n; 38]));
            }
            let tokens: Vec<Token> = (0..4).map(|_| bench.take()).collect();
            for n in [2, 0, 3, 1] {
                let number = round * 4 + n;
                assert_eq!(bench.body(tokens[usize::from(n)]), [number; 38]);
                bench.finish(tokens[usize::from(n)]);
                bench.writes(0, &format!("FIN {}\n", id(number)));
            }
        }
        let counters = bench.consumer.counters();
        assert_eq!((counters.received, counters.finished, counters.no_room), (200, 200, 0));
    });
}

#[test]
fn a_long_message_takes_several_slots_and_lowers_rdy() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        // 26 + 150 bytes: three slots of 64.
        bench.receive(0, &message(1, 1, &[7; 150])).writes(0, "RDY 2\n");
        bench.receive(0, &message(2, 1, b"short"));
        // A message that was on its way when RDY was lowered.
        bench.receive(0, &message(3, 1, b"none left"));
        bench.writes(0, &format!("REQ {} 1000\n", id(3)));
        let (long, short) = (bench.take(), bench.take());
        assert_eq!((bench.body(long), bench.body(short)), (&[7; 150][..], &b"short"[..]));
        bench.finish(long);
        assert_eq!(bench.consumer.counters().no_room, 1);
        bench.writes(0, &format!("FIN {}\nRDY 4\n", id(1)));
    });
}

#[test]
fn a_message_larger_than_the_ring_is_skipped_and_the_next_is_received() {
    for (too_large, attempts, answer) in [
        (TooLarge::Requeue, 1, "REQ {id} 90000\n"),
        (TooLarge::Requeue, 3, "REQ {id} 270000\n"),
        (TooLarge::Requeue, 6, "FIN {id}\n"),
        (TooLarge::Finish, 1, "FIN {id}\n"),
    ] {
        with::<1, 4>(&Config { too_large, ..config() }, 1, |bench| {
            bench.connect(0).writes(0, "RDY 4\n");
            let bytes = [message(1, attempts, &[b'x'; 100_000]), message(2, 1, b"next")].concat();
            for piece in bytes.chunks(777) {
                bench.receive(0, piece);
            }
            bench.writes(0, &answer.replace("{id}", &id(1)));
            let token = bench.take();
            assert_eq!(bench.body(token), b"next");
            let counters = bench.consumer.counters();
            assert_eq!((counters.too_large, counters.received), (1, 1));
            let given_up = (attempts == 6).then_some((MessageId(name(1)), 6));
            assert_eq!(bench.consumer.given_up(), given_up);
        });
    }
}

#[test]
fn skipped_messages_that_cannot_be_answered_at_once_are_counted() {
    with::<1, 1>(&Config { too_large: TooLarge::Finish, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "RDY 1\n");
        let all: Vec<u8> = (1..=9).flat_map(|n| message(n, 1, &[0; 99])).collect();
        bench.receive(0, &all);
        let answers = bench.written(0).iter().filter(|&&byte| byte == b'\n').count();
        let counters = bench.consumer.counters();
        assert_eq!((counters.too_large, answers + counters.unanswered as usize), (9, 9));
        assert!(answers >= 2);
    });
}

#[test]
fn a_message_delivered_too_often_is_given_up_or_marked() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 6, b"again")).receive(0, &message(2, 5, b"last try"));
        let token = bench.take();
        assert_eq!(bench.body(token), b"last try");
        assert_eq!(bench.consumer.take(at(0)), None);
        bench.writes(0, &format!("FIN {}\n", id(1)));
        assert_eq!(bench.consumer.given_up(), Some((MessageId(name(1)), 6)));
        assert_eq!(bench.consumer.given_up(), None);
        assert_eq!(bench.consumer.counters().given_up, 1);
    });
    with::<1, 2>(&Config { exhausted: Exhausted::Deliver, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 6, b"again"));
        assert!(bench.consumer.take(at(0)).unwrap().exhausted);
    });
}

#[test]
fn requeueing_waits_longer_each_time_and_backs_off() {
    let config = Config { requeue_cap: Span::from_secs(200), max_attempts: 0, ..config() };
    with::<2, 4>(&config, 2, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.connect(1).writes(1, "").writes(0, "RDY 2\n").at(1_000).tick();
        bench.writes(1, "RDY 2\n").writes(0, "");
        // Released messages are no failures: RDY stays.
        for (attempts, delay) in [(1, 90_000), (2, 180_000), (3, 200_000)] {
            let now = bench.now();
            bench.receive(0, &message(1, attempts, b"x"));
            let token = bench.take();
            bench.consumer.release(now, token, None).unwrap();
            bench.writes(0, &format!("REQ {} {delay}\n", id(1)));
        }
        // A requeued message is a failure.
        bench.receive(0, &message(2, 1, b"x")).receive(0, &message(3, 1, b"x"));
        let (one, two) = (bench.take(), bench.take());
        let now = bench.now();
        bench.consumer.requeue(now, one, Some(Span::from_millis(5))).unwrap();
        assert!(bench.consumer.is_backing_off());
        bench.writes(0, &format!("RDY 0\nREQ {} 5\n", id(2))).writes(1, "RDY 0\n");
        // The success of a message delivered before the failure does not count.
        bench.finish(two).writes(0, &format!("FIN {}\n", id(3)));
        let wait = bench.session(1).deadline().as_micros() / 1000;
        assert!((1_500..=2_000).contains(&wait), "{wait}");
        bench.at(wait).tick().at(2_001).tick().writes(1, "").writes(0, "RDY 1\n");
        bench.receive(0, &message(4, 1, b"x"));
        let token = bench.take();
        bench.finish(token);
        assert!(!bench.consumer.is_backing_off());
        bench.writes(0, &format!("RDY 2\nFIN {}\n", id(4))).writes(1, "RDY 2\n");
    });
}

#[test]
fn pause_resume_and_another_limit_announce_only_changes() {
    with::<1, 4>(&Config { max_in_flight: 3, ..config() }, 1, |bench| {
        bench.connect(0).writes(0, "RDY 3\n");
        let now = bench.now();
        bench.consumer.pause(now);
        bench.consumer.resume(now);
        bench.writes(0, "");
        bench.consumer.pause(now);
        bench.writes(0, "RDY 0\n").writes(0, "");
        bench.consumer.set_max_in_flight(now, 2);
        bench.writes(0, "");
        bench.consumer.resume(now);
        bench.writes(0, "RDY 2\n");
        bench.consumer.set_max_in_flight(now, 100);
        bench.writes(0, "RDY 4\n");
        bench.consumer.set_max_in_flight(now, 0);
        bench.writes(0, "RDY 0\n");
    });
}

#[test]
fn auto_touch_touches_before_the_timeout_as_long_as_nsqd_allows() {
    let info = b"{\"msg_timeout\":4000,\"max_msg_timeout\":9000}";
    with::<1, 4>(&Config { auto_touch: true, ..config() }, 1, |bench| {
        bench.dial(0);
        bench.open(0).written(0);
        bench.receive(0, &frame(0, info)).written(0);
        bench.receive(0, &frame(0, b"OK")).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"taken")).receive(0, &message(2, 1, b"waiting"));
        let token = bench.take();
        let touches = format!("TOUCH {}\nTOUCH {}\n", id(1), id(2));
        for second in [2, 4, 6, 8] {
            assert_eq!(bench.session(0).deadline(), at(second * 1000));
            bench.at(second * 1000).tick().writes(0, &touches);
            bench.receive(0, &frame(0, b"_heartbeat_")).writes(0, "NOP\n");
        }
        // nsqd requeues both.
        bench.at(9_000).tick();
        assert_eq!(bench.consumer.take(at(9_000)), None);
        assert_eq!(bench.body(token), b"taken", "still readable");
        assert_eq!(bench.consumer.finish(at(9_000), token), Err(AnswerError::Late));
        assert!(bench.consumer.message(token).is_none());
        let counters = bench.consumer.counters();
        assert_eq!((counters.timed_out, counters.late, counters.touched), (2, 1, 8));
    });
}

#[test]
fn touched_by_hand_or_given_up() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        let keep = |bench: &mut Bench<'_>| {
            let beat = frame(0, b"_heartbeat_");
            bench.tick().receive(0, &beat).writes(0, "NOP\n");
        };
        for second in (15..60).step_by(15) {
            keep(bench.at(second * 1000));
        }
        bench.at(59_000);
        bench.consumer.touch(at(59_000), token).unwrap();
        bench.writes(0, &format!("TOUCH {}\n", id(1)));
        for second in (60..119).step_by(15) {
            keep(bench.at(second * 1000));
        }
        bench.at(119_000).tick();
        assert_eq!(bench.consumer.touch(at(119_000), token), Err(AnswerError::Late));
        // The message keeps its slot until the application answers.
        bench.writes(0, "RDY 3\n");
        let late = bench.consumer.release(at(119_000), token, None);
        assert_eq!(late, Err(AnswerError::Late));
        bench.at(120_000).tick().writes(0, "RDY 4\n");
    });
}

#[test]
fn an_answer_after_the_connection_is_dropped_and_counted() {
    with::<1, 2>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 2\n");
        bench.receive(0, &message(1, 1, b"taken")).receive(0, &message(2, 1, b"waiting"));
        let old = bench.take();
        bench.closed(0, Closed::Peer).at(1);
        assert_eq!(bench.consumer.take(at(1)), None, "nsqd delivers it again");
        // The old message keeps its slot.
        bench.connect(0).writes(0, "RDY 1\n");
        bench.receive(0, &message(1, 2, b"again"));
        let new = bench.take();
        assert_eq!((bench.body(old), bench.body(new)), (&b"taken"[..], &b"again"[..]));
        assert_eq!(bench.consumer.finish(at(1), old), Err(AnswerError::Late));
        assert_eq!(bench.consumer.finish(at(1), old), Err(AnswerError::Unknown));
        bench.writes(0, "RDY 2\n");
        bench.finish(new).writes(0, &format!("FIN {}\n", id(1)));
        assert_eq!(bench.consumer.counters().late, 1);
    });
}

#[test]
fn an_earlier_delivery_of_the_same_message_does_not_answer_the_new_one() {
    for (before, after) in [(1, 2), (2, 3), (2, 5)] {
        with::<1, 4>(&config(), 1, |bench| {
            bench.connect(0).writes(0, "RDY 4\n");
            bench.receive(0, &message(1, before, b"first"));
            let old = bench.take();
            bench.receive(0, &message(1, after, b"second"));
            assert_eq!(bench.consumer.finish(at(0), old), Err(AnswerError::Late));
            let new = bench.take();
            assert_eq!(bench.body(new), b"second");
        });
    }
}

#[test]
fn refused_answers_are_counted_and_end_no_connection() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for code in ["FIN", "REQ", "TOUCH"] {
            let text = format!("E_{code}_FAILED {code} {} failed ID not in flight", id(1));
            bench.receive(0, &frame(1, text.as_bytes()));
        }
        assert_eq!(bench.state(0), LinkState::Ready);
        assert_eq!(bench.consumer.counters().refused, 3);
        let fault = bench.fault(0, &frame(1, b"E_INVALID invalid message ID"));
        assert_eq!(fault, Fault::Refused(ErrorCode::Invalid));
    });
}

#[test]
fn stops_with_everything_answered() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        for n in 1..=3 {
            bench.receive(0, &message(n, 1, b"x"));
        }
        let (one, two) = (bench.take(), bench.take());
        bench.consumer.stop();
        assert_eq!(bench.session(0).link(), Link::Up, "CLS must be sent");
        bench.writes(0, &format!("CLS\nREQ {} 0\n", id(3)));
        assert_eq!(bench.state(0), LinkState::Draining);
        assert_eq!(bench.consumer.take(at(0)), None);
        // A message that was on its way is requeued.
        bench.receive(0, &message(4, 1, b"x")).writes(0, &format!("REQ {} 0\n", id(4)));
        bench.receive(0, &frame(0, b"CLOSE_WAIT"));
        bench.at(1000).finish(one).finish(two);
        let now = bench.now();
        let mut session = bench.session(0);
        assert_eq!(session.transmit(now).len(), 42);
        assert_eq!(session.link(), Link::Close, "once the answers are written");
        session.sent(now, 42);
        assert!(session.transmit(now).is_empty());
        session.closed(now, Closed::Local);
        assert!(bench.consumer.is_stopped());
        assert_eq!(bench.session(0).dial(now), None);
        assert_eq!(bench.session(0).deadline(), Instant::NEVER);
    });
}

#[test]
fn stopping_does_not_wait_for_ever() {
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        let token = bench.take();
        bench.consumer.stop();
        bench.writes(0, "CLS\n").receive(0, &frame(0, b"CLOSE_WAIT"));
        bench.at(4_999).tick().writes(0, "");
        bench.at(5_000).tick().writes(0, &format!("REQ {} 0\n", id(1)));
        assert_eq!(bench.session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        assert!(bench.consumer.is_stopped());
        assert_eq!(bench.consumer.finish(at(5_000), token), Err(AnswerError::Late));
    });
    // A transport that accepts no bytes.
    with::<1, 4>(&config(), 1, |bench| {
        bench.connect(0).writes(0, "RDY 4\n");
        bench.receive(0, &message(1, 1, b"x"));
        bench.consumer.stop();
        bench.tick().at(5_000).tick();
        assert_eq!(bench.state(0), LinkState::Leaving);
        bench.at(5_999).tick();
        assert_eq!(bench.session(0).link(), Link::Up);
        bench.at(6_000).tick();
        assert_eq!(bench.session(0).link(), Link::Close);
    });
    // A stop before the connection is established.
    with::<1, 4>(&config(), 1, |bench| {
        bench.dial(0);
        bench.consumer.stop();
        assert_eq!(bench.session(0).deadline(), Instant::ZERO, "at once");
        assert_eq!(bench.tick().session(0).link(), Link::Close);
        bench.closed(0, Closed::Local);
        assert!(bench.consumer.is_stopped());
    });
}
