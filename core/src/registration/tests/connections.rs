//! When an nsqlookupd is dialed, and when a connection is closed.

use super::*;

#[test]
fn weakness_1_a_silent_peer_delays_no_other() {
    let config = Config::new(NODE);
    let mut rig = Rig::new(&config);
    rig.configure(&["silent:1", "healthy:1"]);
    rig.connect(0);
    rig.connect(1);
    rig.add(&["a"]);
    rig.written(0);
    assert_eq!(rig.commands(1), ["REGISTER a"]);
    assert!(rig.status(1).settled && !rig.status(0).settled);
    rig.wait(5000);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
    assert_eq!(rig.closing(0), Some(why));
    assert_eq!(rig.status(1).state, LinkState::Ready);
}

#[test]
fn weakness_2_a_lost_connection_is_redialed_at_once() {
    let config = Config::new(NODE);
    let mut rig = Rig::new(&config);
    rig.configure(&["one:1"]);
    rig.connect(0);
    rig.wait(60_000);
    rig.lose(0, Closed::Peer);
    assert!(rig.dial(0).is_some());
    // And then never later than the cap.
    for _ in 0..20 {
        rig.lose(0, Closed::Dial(DialError::Refused));
        rig.wait(800);
        assert!(rig.dial(0).is_some());
    }
}

#[test]
fn weakness_3_failures_back_off_and_changes_do_not_dial() {
    let config = Config::new(NODE);
    let mut rig = Rig::new(&config);
    rig.configure(&["one:1"]);
    let mut dials = 0;
    for ms in 0..60_000u32 {
        if ms % 100 == 0 {
            rig.remove("a");
            rig.add(&["a"]);
        }
        if rig.dial(0).is_some() {
            dials += 1;
            let now = rig.now;
            rig.peer(0).open(now);
            rig.written(0);
            rig.receive_and_fault(0, reply("E_INVALID client must not"));
            rig.lose(0, Closed::Local);
        }
        rig.wait(1);
    }
    assert!((5..12).contains(&dials), "{dials} dials in a minute");
}

/// Counts the dials if each connection receives `answers` and then stays up for `held` ms.
fn dials_within_20_s(config: &Config<'_>, answers: &[Vec<u8>], held: u32) -> usize {
    let mut rig = Rig::new(config);
    rig.add(&["a"]);
    rig.configure(&["one:1"]);
    let start = rig.now;
    let mut dials = 0;
    while rig.now < start.after(Span::from_secs(20)) {
        if rig.dial(0).is_some() {
            dials += 1;
            let now = rig.now;
            rig.peer(0).open(now);
            for answer in answers {
                rig.written(0);
                rig.receive(0, answer);
            }
            rig.wait(held);
            rig.lose(0, Closed::Peer);
        }
        rig.wait(1);
    }
    dials
}

#[test]
fn an_nsqlookupd_that_accepts_and_hangs_up_is_not_dialed_often() {
    for seed in 0..20 {
        let config = Config { seed, ..Config::new(NODE) };
        // The nsqlookupd hangs up before the handshake, after it, and after the reply to REGISTER.
        for answers in [vec![], vec![reply(INFO)], vec![reply(INFO), OK.to_vec()]] {
            for held in [0, 10, 900] {
                let dials = dials_within_20_s(&config, &answers, held);
                assert!((3..=7).contains(&dials), "{dials} dials, {answers:?}, {held} ms");
            }
        }
        // A connection that lists the node for a second is good.
        let dials = dials_within_20_s(&config, &[reply(INFO), OK.to_vec()], 1000);
        assert!((15..=20).contains(&dials), "{dials} dials");
        // A connection that lasts is good, even without registrations.
        let mut rig = Rig::new(&config);
        rig.configure(&["one:1"]);
        rig.connect(0);
        rig.wait(10_000);
        rig.lose(0, Closed::Peer);
        assert!(rig.dial(0).is_some());
    }
}

#[test]
fn a_node_is_listed_within_a_second_of_the_return_of_an_nsqlookupd_that_was_away_for_long() {
    for seed in 0..100 {
        let config = Config { seed, ..Config::new(NODE) };
        let mut rig = Rig::new(&config);
        rig.add(&["a"]);
        rig.configure(&["one:1"]);
        rig.connect(0);
        rig.commands(0);
        rig.wait(20_000);
        rig.lose(0, Closed::Peer);
        let mut away = 0;
        while away < 60_000 {
            if rig.dial(0).is_some() {
                rig.lose(0, Closed::Dial(DialError::Refused));
            }
            rig.wait(1);
            away += 1;
        }
        let back = rig.now;
        while rig.dial(0).is_none() {
            rig.wait(1);
        }
        assert!(rig.now.since(back) <= Span::from_millis(800), "{:?}", rig.now.since(back));
    }
}

#[test]
fn weakness_4_pings_are_jittered_and_answered_in_time() {
    let mut seen = Vec::new();
    for seed in 0..20 {
        let config = Config { seed, ..Config::new(NODE) };
        let mut rig = Rig::new(&config);
        rig.configure(&["one:1"]);
        rig.connect(0);
        let mut waited = 0;
        while rig.written(0).is_empty() {
            rig.wait(10);
            waited += 10;
        }
        rig.receive(0, OK);
        assert!((13_120..=16_890).contains(&waited), "{waited} ms");
        seen.push(waited);
    }
    seen.dedup();
    assert!(seen.len() > 15, "{seen:?}");
}

#[test]
fn weakness_10_the_name_is_resolved_anew_at_each_dial() {
    let config = Config::new(NODE);
    let mut rig = Rig::new(&config);
    rig.configure(&["nsqlookupd.example:4160"]);
    for _ in 0..3 {
        assert_eq!(rig.dial(0).unwrap(), "nsqlookupd.example:4160");
        rig.lose(0, Closed::Dial(DialError::NameNotFound));
        rig.wait(1000);
    }
}

#[test]
fn a_frozen_peer_is_noticed_while_changes_go_on() {
    let config = Config::new(NODE);
    let mut rig = Rig::new(&config);
    rig.configure(&["one:1"]);
    rig.connect(0);
    for second in 0.. {
        if second % 2 == 0 {
            rig.add(&["t"])
        } else {
            rig.remove("t");
        }
        rig.written(0);
        rig.wait(1000);
        if rig.status(0).state != LinkState::Ready {
            assert!(second <= 6, "{second}");
            return;
        }
        assert!(second < 60, "the frozen peer was never noticed");
    }
}

#[test]
fn a_lost_reply_is_noticed_while_everything_is_registered_again() {
    let config = Config { reassert: Span::from_secs(2), ..Config::new(NODE) };
    let mut rig = Rig::new(&config);
    rig.configure(&["one:1"]);
    rig.connect(0);
    rig.add(&["t"]);
    assert_eq!(rig.written(0), b"REGISTER t\n");
    // REGISTER is never answered, all later commands are.
    for _ in 0..12 {
        rig.wait(1000);
        rig.commands(0);
    }
    let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
    assert_eq!(rig.closing(0), Some(why));
}

#[test]
fn handshakes_that_hang_are_left() {
    let config = Config::new(NODE);
    let mut rig = Rig::new(&config);
    rig.configure(&["one:1"]);
    rig.dial(0);
    rig.wait(5000);
    assert_eq!(rig.closing(0), Some(Closed::Dial(DialError::TimedOut)));
    rig.lose(0, Closed::Local);
    rig.wait(1000);
    rig.dial(0);
    let now = rig.now;
    rig.peer(0).open(now);
    rig.wait(5000);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Handshake));
    assert_eq!(rig.closing(0), Some(why));
}
