//! Which nsqd is dialed, and when.

use super::*;

const TLS: &str = "E_INVALID cannot PUB in current state (TLS required)";

/// All permanent refusals: the response to IDENTIFY, if any, then the refusal of the next command,
/// and its fault.
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
fn an_nsqd_that_refuses_permanently_is_left_out_and_dialed_again_every_five_minutes() {
    for (identified, refusal, fault) in permanent() {
        rig!(rig, Config { auth_secret: Some(b"s"), ..Config::new() });
        let ticket = rig.publish("a");
        for round in 0..3 {
            rig.dial();
            rig.publisher.open(rig.now);
            rig.written();
            if let Some(identified) = identified {
                rig.receive(frame(0, identified));
                assert!(!rig.written().is_empty());
            }
            assert_eq!(rig.receive_and_fault(&refusal), fault);
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
        // The settings were corrected.
        rig.connect();
        assert!(!rig.publisher.is_left_out(0));
        rig.expect(pub_one("a"));
        rig.receive(OK);
        assert_eq!(rig.outcome(ticket), Some(Outcome::Acknowledged));
    }
}

#[test]
fn one_of_several_is_left_out_and_the_others_are_used_without_delay() {
    rig!(rig, Config::new(), 1024, ["tls:1", "good:1", "down:1"]);
    let _ = rig.publish("a");
    rig.connect();
    rig.expect(pub_one("a"));
    rig.receive_and_fault(frame(1, TLS));
    rig.lose();
    assert_eq!(rig.publisher.state(), State::Waiting);
    assert_eq!(rig.publisher.nsqd().unwrap().to_string(), "good:1");
    rig.connect();
    rig.expect(pub_one("a"));
    rig.receive(OK);
    assert_eq!(rig.publisher.counters().acknowledged, 1);
    // The others are dialed in turn as before.
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
    let first = dialed.iter().find(|(_, nsqd)| nsqd == "tls:1").expect("it is dialed again");
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
    let _ = rig.publish("a");
    for round in 0..2 {
        for (nsqd, name) in names.iter().enumerate() {
            assert_eq!(rig.dial(), *name, "round {round}");
            rig.publisher.open(rig.now);
            rig.written();
            rig.receive_and_fault(frame(0, r#"{"auth_required":true}"#));
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
    rig.receive(frame(0, "OK"));
    let _ = rig.publish("a");
    rig.written();
    rig.receive(OK);
    // A good connection that is lost is dialed again at once, then the next nsqd.
    rig.lose();
    assert_eq!(rig.dial(), "two:1");
    refuse(&mut rig);
    assert_eq!(rig.dial(), "three:1");
}

#[test]
fn an_nsqd_that_accepts_and_hangs_up_is_not_dialed_often() {
    rig!(rig);
    let start = rig.now;
    let mut dials = 0;
    while rig.now < start.after(Span::from_secs(60)) {
        if rig.publisher.dial(rig.now).is_some() {
            dials += 1;
            rig.publisher.open(rig.now);
            rig.written();
            rig.receive(frame(0, "OK"));
            rig.lose();
        }
        rig.wait(1);
    }
    assert!((5..12).contains(&dials), "{dials} dials in a minute");
}

#[test]
fn only_an_nsqd_that_accepts_messages_or_lasts_is_dialed_again_at_once() {
    for (receive, held, at_once) in [
        (None, 9999, false),
        (None, 10_000, true),
        (Some(HEARTBEAT.to_vec()), 1000, false),
        (Some(OK.to_vec()), 0, true),
        (Some(frame(1, "E_BAD_MESSAGE PUB message too big 1 > 0")), 0, true),
        (Some(frame(1, "E_PUB_FAILED PUB failed exiting")), 0, false),
    ] {
        rig!(rig);
        let _ = rig.publish("a");
        rig.connect();
        rig.written();
        if let Some(receive) = &receive {
            let _ = rig.publisher.receive(rig.now, receive);
        }
        // Without a tick: a tick would end the connection, as the response is late.
        rig.now = rig.now.after(Span::from_millis(held));
        rig.lose();
        assert_eq!(rig.publisher.dial(rig.now).is_some(), at_once, "{receive:?}, {held} ms");
        rig.wait(499);
        assert!(rig.publisher.dial(rig.now).is_none(), "{receive:?}, {held} ms");
    }
}

#[test]
fn a_round_in_which_a_connection_came_up_but_was_not_good_is_followed_by_a_longer_wait() {
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
