//! A connection to an nsqlookupd.

use nanonsq_core::name::TopicName;
use nanonsq_core::registration::{Config, HttpPort, PeerEvent, Registration};
use nanonsq_core::session::{Closed, DialError, Fault, Link, LinkState, Session};
use nanonsq_core::time::Span;
use nanonsq_core::wire::nsqlookupd::NodeInfo;

use crate::{at, written};

const NODE: NodeInfo<'_> = NodeInfo {
    broadcast_address: "10.0.0.9",
    hostname: "h",
    http_port: 4151,
    tcp_port: 4150,
    topology_region: "",
    topology_zone: "",
    version: "1.3.0",
};
const INFO: &[u8] = b"\0\0\0\x02{}";
const OK: &[u8] = b"\0\0\0\x02OK";

type Registrar<'a> = Registration<'a, 1, 4, 1>;

fn config() -> Config<'static> {
    Config { reply_timeout: Span::from_secs(10), ping: Span::ZERO, ..Config::new(NODE) }
}

/// Runs `test` with a registration whose connection is open since 1,000 ms.
fn open(test: impl FnOnce(&mut Registrar<'_>)) {
    let config = config();
    let mut lookup = Registration::new(&config).unwrap();
    lookup.configure(at(1000), &["lookupd:4160".parse().unwrap()]).unwrap();
    let mut peer = lookup.peer(0).unwrap();
    assert!(peer.dial(at(1000)).is_some());
    peer.open(at(1000));
    test(&mut lookup);
}

fn connected(test: impl FnOnce(&mut Registrar<'_>)) {
    open(|lookup| {
        let mut peer = lookup.peer(0).unwrap();
        written(&mut peer, at(1000));
        peer.receive(at(1000), INFO).unwrap();
        assert_eq!(lookup.status(0).unwrap().state, LinkState::Ready);
        test(lookup);
    });
}

/// A query over HTTP waits for the first connection to the nsqlookupd, and for no later one.
#[test]
fn the_http_port_is_coming_until_the_first_connection_ended_or_was_identified() {
    let port = |lookup: &Registrar<'_>| lookup.http(0).map(|(_, port)| port);
    let config = config();
    let mut lookup = Registrar::new(&config).unwrap();
    assert_eq!(port(&lookup), None);
    lookup.configure(at(1000), &["lookupd:4160".parse().unwrap()]).unwrap();
    assert_eq!(port(&lookup), Some(HttpPort::Coming));
    let mut peer = lookup.peer(0).unwrap();
    assert!(peer.dial(at(1000)).is_some());
    peer.closed(at(1000), Closed::Dial(DialError::Refused));
    assert_eq!(port(&lookup), Some(HttpPort::Unknown));
    // The response to IDENTIFY has no port.
    connected(|lookup| assert_eq!(port(lookup), Some(HttpPort::Unknown)));
}

fn add(lookup: &mut Registrar<'_>, name: &str) {
    lookup.register(&TopicName::new(name).unwrap(), None).unwrap();
}

/// IDENTIFY is staged in pieces; a response is expected only after its last byte.
#[test]
fn a_response_to_an_unfinished_identify_is_unexpected() {
    let mut all = 0;
    open(|lookup| all = written(&mut lookup.peer(0).unwrap(), at(1000)).len());
    assert!(all > 150, "IDENTIFY is longer than one piece");
    for len in 0..=all {
        open(|lookup| {
            let mut peer = lookup.peer(0).unwrap();
            let mut left = len;
            while left > 0 {
                let n = peer.transmit(at(1000)).len().min(left);
                peer.sent(at(1000), n);
                left -= n;
            }
            let received = peer.receive(at(1000), INFO);
            let expected = if len < all { Err(Fault::UnexpectedReply) } else { Ok(()) };
            assert_eq!(received, expected, "{len} of {all} bytes");
        });
    }
    // The last piece is staged and not written.
    open(|lookup| {
        let mut peer = lookup.peer(0).unwrap();
        let mut left = all;
        while left > 0 {
            let n = peer.transmit(at(1000)).len();
            if n == left {
                break;
            }
            peer.sent(at(1000), n);
            left -= n;
        }
        assert_eq!(peer.receive(at(1000), INFO), Err(Fault::UnexpectedReply));
    });
}

#[test]
fn each_response_restarts_the_reply_timeout_and_the_last_one_stops_it() {
    connected(|lookup| {
        add(lookup, "one");
        add(lookup, "two");
        let version = lookup.version();
        let mut peer = lookup.peer(0).unwrap();
        assert_eq!(written(&mut peer, at(2000)), b"REGISTER one\nREGISTER two\n");
        assert_eq!(peer.deadline(), at(12_000));
        peer.receive(at(5000), OK).unwrap();
        assert_eq!(peer.deadline(), at(15_000));
        assert_eq!(lookup.version(), version, "not settled yet");
        assert!(!lookup.status(0).unwrap().settled);
        let mut peer = lookup.peer(0).unwrap();
        peer.receive(at(6000), OK).unwrap();
        assert!(peer.deadline() > at(20_000));
        assert_ne!(lookup.version(), version);
        assert!(lookup.status(0).unwrap().settled);
    });
}

#[test]
fn a_silent_nsqlookupd_is_closed_at_once() {
    connected(|lookup| {
        add(lookup, "one");
        let mut peer = lookup.peer(0).unwrap();
        written(&mut peer, at(2000));
        peer.tick(at(11_999));
        assert_eq!(peer.link(), Link::Up);
        peer.tick(at(12_000));
        assert_eq!((peer.link(), peer.deadline()), (Link::Close, at(12_000)));
        // The driver ends the closing.
        peer.tick(at(13_000));
        assert_eq!((peer.link(), peer.deadline()), (Link::Close, at(12_000)));
    });
}

/// There is room for 144 bytes.
#[test]
fn as_many_commands_as_fit_are_sent_together() {
    for (len, fits) in [(61, true), (62, false)] {
        connected(|lookup| {
            let (first, second) = ("a".repeat(63), "b".repeat(len));
            add(lookup, &first);
            add(lookup, &second);
            let lines = [format!("REGISTER {first}\n"), format!("REGISTER {second}\n")];
            let mut peer = lookup.peer(0).unwrap();
            let together = if fits { lines.concat() } else { lines[0].clone() };
            assert_eq!(peer.transmit(at(2000)).head, together.as_bytes());
            assert_eq!(written(&mut peer, at(2000)), lines.concat().as_bytes());
        });
    }
}

#[test]
fn the_fleets_defaults_are_wide() {
    let (fleet, one) = (Config::fleet(NODE), Config::new(NODE));
    assert_eq!(fleet.reconnect_base, Span::from_secs(12));
    assert_eq!(fleet.reconnect_cap, Span::from_secs(16));
    assert_eq!(fleet.reconnect_spread, Span::from_secs(15));
    assert!(one.reconnect_base < Span::from_secs(1));
}

#[test]
fn events_are_reported_once() {
    connected(|lookup| {
        let mut peer = lookup.peer(0).unwrap();
        assert_eq!(peer.poll_event(), Some(PeerEvent::Connected));
        assert_eq!(peer.poll_event(), None);
        peer.closed(at(2000), Closed::Peer);
        assert_eq!(peer.poll_event(), Some(PeerEvent::Disconnected(Closed::Peer)));
    });
}

#[test]
fn a_tick_before_its_time_is_harmless() {
    open(|lookup| {
        let mut peer = lookup.peer(0).unwrap();
        peer.tick(at(1001));
        assert_eq!(peer.link(), Link::Up);
        written(&mut peer, at(1001));
        peer.receive(at(1002), INFO).unwrap();
    });
}

/// Only one command fits at a time: when all sent commands are answered, others are still unsent.
#[test]
fn a_stopped_registration_sends_all_unregisters_before_it_closes() {
    connected(|lookup| {
        for letter in ["a", "b", "c"] {
            add(lookup, &letter.repeat(64));
        }
        let mut peer = lookup.peer(0).unwrap();
        written(&mut peer, at(2000));
        for _ in 0..3 {
            peer.receive(at(2000), OK).unwrap();
        }
        lookup.stop(at(3000));
        let mut peer = lookup.peer(0).unwrap();
        for left in [2, 1, 0] {
            let n = peer.transmit(at(3000)).len();
            assert_eq!(n, "UNREGISTER \n".len() + 64);
            peer.sent(at(3000), n);
            peer.receive(at(3000), OK).unwrap();
            assert_eq!(peer.link(), if left > 0 { Link::Up } else { Link::Close });
        }
    });
}

#[test]
fn a_stopped_registration_without_answers_is_no_failure() {
    connected(|lookup| {
        add(lookup, "one");
        let mut peer = lookup.peer(0).unwrap();
        written(&mut peer, at(2000));
        peer.receive(at(2000), OK).unwrap();
        peer.poll_event();
        lookup.stop(at(3000));
        let mut peer = lookup.peer(0).unwrap();
        written(&mut peer, at(3000));
        let over = peer.deadline();
        peer.tick(over);
        assert_eq!(peer.link(), Link::Close);
        peer.closed(over, Closed::Local);
        assert_eq!(peer.poll_event(), Some(PeerEvent::Disconnected(Closed::Local)));
    });
}
