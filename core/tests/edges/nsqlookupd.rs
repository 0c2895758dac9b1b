//! An nsqlookupd: answers whose tables change while they are written, and the ends of connections.

use nanonsq_core::http::DISCARD_MAX;
use nanonsq_core::nsqlookupd::{Config, Event, Nsqlookupd, Storage};
use nanonsq_core::session::{Closed, Fault, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::json::Scanner;

use crate::{at, written};

const NODES: usize = 6;
const NOW: Instant = at(60_000);

/// Runs `test` with an nsqlookupd that has room for one topic with many channels.
fn directory(test: impl FnOnce(&mut Nsqlookupd<'_>)) {
    let config = Config { reply_timeout: Span::from_secs(7), ..Config::new() };
    let mut storage = Storage::<NODES, 1, 32, 2>::new();
    test(&mut Nsqlookupd::new(&config, &mut storage));
}

fn hello(name: &str) -> Vec<u8> {
    let text = format!(
        "{{\"broadcast_address\":\"{name}\",\"hostname\":\"{name}\",\"http_port\":4151,\
         \"tcp_port\":4150,\"version\":\"1.3.0\"}}"
    );
    [b"  V1IDENTIFY\n", &(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

/// Connects client `index`, which identifies itself as `name` and sends `lines`.
fn connect(directory: &mut Nsqlookupd<'_>, index: usize, name: &str, lines: &str) {
    let mut session = directory.client(index).unwrap();
    session.open(NOW);
    assert_eq!(session.take(NOW, &hello(name)), hello(name).len());
    written(&mut session, NOW);
    send(directory, index, lines);
}

fn send(directory: &mut Nsqlookupd<'_>, index: usize, lines: &str) {
    for line in lines.lines() {
        let mut session = directory.client(index).unwrap();
        assert_eq!(session.take(NOW, format!("{line}\n").as_bytes()), line.len() + 1);
        assert_eq!(written(&mut session, NOW), b"\0\0\0\x02OK", "{line}");
    }
}

/// Returns the body of an answer, and whether `between` ran: after piece `pieces` of the answer.
fn ask(
    directory: &mut Nsqlookupd<'_>,
    request: &str,
    pieces: usize,
    between: impl FnOnce(&mut Nsqlookupd<'_>),
) -> (String, bool) {
    let mut session = directory.http(0).unwrap();
    session.open(NOW);
    session.receive(NOW, format!("{request} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    let mut between = Some(between);
    for piece in 0.. {
        let mut session = directory.http(0).unwrap();
        let lent = session.transmit(NOW);
        let bytes = [lent.head, lent.body].concat();
        if bytes.is_empty() {
            break;
        }
        session.sent(NOW, bytes.len());
        answer.extend(bytes);
        if piece == pieces {
            between.take().unwrap()(directory);
        }
    }
    directory.http(0).unwrap().closed(NOW, Closed::Local);
    let answer = String::from_utf8(answer).unwrap();
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    (body.to_owned(), between.is_none())
}

fn is_json(text: &str) -> bool {
    let mut scanner = Scanner::<0>::new();
    let mut input = text.as_bytes();
    while let Ok(Some(_)) = scanner.next(&mut input) {}
    scanner.end().is_ok()
}

/// Deletes topic `t`. Clients `nodes` then send `lines`, which take its slots.
fn replace(directory: &mut Nsqlookupd<'_>, nodes: std::ops::Range<usize>, lines: &str) {
    let mut session = directory.http(1).unwrap();
    session.open(NOW);
    session.receive(NOW, b"POST /topic/delete?topic=t HTTP/1.0\r\n\r\n").unwrap();
    assert!(written(&mut session, NOW).starts_with(b"HTTP/1.0 200 "));
    session.closed(NOW, Closed::Local);
    nodes.for_each(|node| send(directory, node, lines));
}

#[test]
fn channels_of_a_topic_that_takes_a_deleted_ones_slot_are_not_in_its_answer() {
    let list = |topic, letter| {
        let line = |at| format!("REGISTER {topic} {letter}{at:02}{}\n", "x".repeat(55));
        (0..32).map(line).collect::<String>()
    };
    let mut cut_short = 0;
    for pieces in 0..9 {
        directory(|directory| {
            connect(directory, 0, "a", &list("t", 'c'));
            let (body, between) = ask(directory, "GET /channels?topic=t", pieces, |directory| {
                replace(directory, 0..1, &list("u", 'd'));
            });
            assert!(is_json(&body), "{body}");
            assert!(body.contains("\"c00x") && !body.contains("\"d"), "{body}");
            cut_short += usize::from(between && !body.contains("\"c31x"));
        });
    }
    assert!(cut_short > 0);
}

#[test]
fn producers_of_a_key_that_takes_a_deleted_ones_slot_are_not_in_its_answer() {
    let mut changed = 0;
    for pieces in 0..20 {
        directory(|directory| {
            for node in 0..NODES {
                let name = format!("{}{node}{}", if node < 3 { "a" } else { "b" }, "x".repeat(90));
                connect(directory, node, &name, if node < 3 { "REGISTER t c\n" } else { "" });
            }
            let (body, between) = ask(directory, "GET /debug", pieces, |directory| {
                replace(directory, 3..NODES, "REGISTER u c\n");
            });
            assert!(is_json(&body), "{body}");
            let keys: Vec<_> = body.split("],").filter(|key| key.contains(":t:")).collect();
            assert!(keys.iter().all(|key| !key.contains(":\"b")), "{body}");
            changed += usize::from(between && !keys.is_empty());
        });
    }
    assert!(changed > 0);
}

#[test]
fn a_topic_without_producers_is_no_key() {
    directory(|directory| {
        ask(directory, "POST /channel/create?topic=t&channel=c", 99, |_| ());
        connect(directory, 0, "a", "");
        let (body, _) = ask(directory, "GET /debug", 99, |_| ());
        assert!(is_json(&body) && body.contains("\"client"), "{body}");
        send(directory, 0, "REGISTER t d\n");
        let (body, _) = ask(directory, "GET /debug", 99, |_| ());
        assert!(is_json(&body) && body.contains(":t:d"), "{body}");
    });
}

#[test]
fn times_are_those_of_the_clock_that_was_set() {
    directory(|directory| {
        directory.set_unix_time(at(50_000), 1_700_000_000_000_000_000);
        connect(directory, 0, "a", "");
        let (body, _) = ask(directory, "GET /debug", 99, |_| ());
        assert!(body.contains("\"last_update\":1700000010000000000"), "{body}");
    });
}

#[test]
fn an_unused_body_is_discarded_up_to_its_bound() {
    for (len, taken) in [(DISCARD_MAX, true), (DISCARD_MAX + 1, false)] {
        directory(|directory| {
            let request = "POST /topic/create?topic=t HTTP/1.0\r\n";
            let mut session = directory.http(0).unwrap();
            session.open(NOW);
            let head = format!("{request}Content-Length: {len}\r\n\r\n");
            session.take(NOW, head.as_bytes());
            session.take(NOW, &vec![b'x'; len as usize]);
            let answer = written(&mut session, NOW);
            assert_eq!(answer.starts_with(b"HTTP/1.0 200 "), taken);
            assert_eq!(directory.topics().count(), taken.into());
        });
    }
}

#[test]
fn an_idle_connection_is_closed_after_its_timeout() {
    directory(|directory| {
        let idle = Config::new().http.idle;
        let mut session = directory.http(0).unwrap();
        assert_eq!(session.deadline(), Instant::NEVER);
        session.open(NOW);
        assert_eq!(session.deadline(), NOW.after(idle));
        session.tick(NOW.after(idle));
        assert_eq!(session.link(), Link::Close);
        session.closed(NOW.after(idle), Closed::Local);
        assert_eq!((session.link(), session.deadline()), (Link::Down, Instant::NEVER));
    });
}

#[test]
fn a_client_that_does_not_read_its_response_is_closed() {
    directory(|directory| {
        let mut session = directory.client(0).unwrap();
        session.open(NOW);
        session.take(NOW, &hello("a"));
        assert!(!session.transmit(NOW).is_empty());
        session.sent(at(62_000), 1);
        assert_eq!(session.deadline(), at(69_000), "from its last read");
        session.tick(at(68_999));
        assert_eq!(session.link(), Link::Up);
        written(&mut session, at(68_999));
        assert!(session.deadline() > at(69_000), "the response was read completely");
        session.take(at(70_000), b"PING\n");
        assert!(!session.transmit(at(70_000)).is_empty());
        session.tick(at(77_000));
        assert_eq!(session.link(), Link::Close);
    });
}

#[test]
fn a_client_that_left_is_reported_even_if_another_has_its_slot() {
    directory(|directory| {
        connect(directory, 0, "a", "REGISTER t\n");
        assert_eq!(directory.poll_event(), Some(Event::Identified { index: 0, listed: false }));
        let why = Closed::Fault(Fault::UnexpectedReply);
        let mut session = directory.client(0).unwrap();
        session.closed(NOW, why);
        session.open(NOW);
        assert_eq!(directory.poll_event(), Some(Event::Left { index: 0, why, listed: false }));
        assert_eq!(directory.poll_event(), None);
    });
}
