//! An nsqd over HTTP.

use nanonsq_core::http::{BUFFER, DISCARD_MAX};
use nanonsq_core::name::TopicName;
use nanonsq_core::nsqd::{Config, HttpConfig, HttpStorage, Nsqd, Storage, TooManyLookupds};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::Instant;
use nanonsq_core::wire::nsqd::Limits;

use crate::{at, written};

const NOW: Instant = at(60_000);

struct Rig {
    node: Nsqd<'static>,
}

fn node(limits: Limits) -> Nsqd<'static> {
    let config = Box::leak(Box::new(Config { limits, ..Config::new() }));
    let storage = Box::leak(Box::new(Storage::<3, 6, 3, 4>::new()));
    let store = Box::leak(vec![0; 1 << 14].into_boxed_slice());
    Nsqd::new(config, storage, store).unwrap()
}

impl Rig {
    fn new(limits: Limits) -> Self {
        const HTTP: HttpConfig<'_> = HttpConfig { hostname: "h", ..HttpConfig::new() };
        let mut node = node(limits);
        let storage = Box::leak(Box::new(HttpStorage::<1, 2>::new()));
        node.answer_http(const { &HTTP }, storage, &[]).unwrap();
        Self { node }
    }

    /// Returns the body of an answer, after its status unless that is 200.
    fn ask(&mut self, request: &str, body: &[u8]) -> String {
        let head = format!("{request} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        let mut session = self.node.http(0).unwrap();
        session.open(NOW);
        session.receive(NOW, &[head.as_bytes(), body].concat()).unwrap();
        let answer = String::from_utf8(written(&mut session, NOW)).unwrap();
        session.closed(NOW, Closed::Local);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.strip_prefix("HTTP/1.0 ").unwrap().split(' ').next().unwrap();
        if status == "200" { body.to_owned() } else { format!("{status} {body}") }
    }

    fn depth(&self) -> u32 {
        self.node.topics().map(|topic| topic.depth).sum()
    }
}

#[test]
fn nsqlookupds_that_do_not_fit_are_an_error() {
    const HTTP: HttpConfig<'_> = HttpConfig::new();
    let three = ["a:1", "b:1", "c:1"].map(|address| address.parse().unwrap());
    for (given, taken) in [(0, true), (1, true), (2, true), (3, false)] {
        let mut node = node(Limits::NSQD);
        let storage = Box::leak(Box::new(HttpStorage::<3, 2>::new()));
        let made = node.answer_http(const { &HTTP }, storage, &three[..given]);
        assert_eq!(node.http_clients(), if taken { 3 } else { 0 });
        assert_eq!(made, if taken { Ok(()) } else { Err(TooManyLookupds { max: 2 }) });
    }
}

#[test]
fn a_message_may_have_max_msg_size_bytes_and_no_more() {
    let limits = Limits { max_msg_size: 300, ..Limits::NSQD };
    let line = |len| [vec![b'x'; len], vec![b'\n']].concat();
    let record = |len: u32| [&len.to_be_bytes()[..], &vec![b'x'; len as usize]].concat();
    let binary = |len| [&1u32.to_be_bytes()[..], &record(len)].concat();
    for (len, taken) in [(300, true), (301, false)] {
        let mut rig = Rig::new(limits);
        let answer = rig.ask("POST /mpub?topic=t", &line(len));
        assert_eq!(answer == "OK", taken, "{answer}");
        assert_eq!(rig.depth(), taken.into());
        let mut rig = Rig::new(limits);
        let answer = rig.ask("POST /mpub?topic=t&binary=true", &binary(len as u32));
        assert_eq!(answer == "OK", taken, "{answer}");
        let mut rig = Rig::new(limits);
        let answer = rig.ask("POST /pub?topic=t", &vec![b'x'; len]);
        assert_eq!(answer == "OK", taken, "{answer}");
    }
}

#[test]
fn a_batch_has_lines_unless_it_is_binary() {
    for (query, count) in [("", 2), ("&binary=false", 2), ("&binary=0", 2)] {
        let mut rig = Rig::new(Limits::NSQD);
        assert_eq!(rig.ask(&format!("POST /mpub?topic=t{query}"), b"one\ntwo\n"), "OK");
        assert_eq!(rig.depth(), count, "{query}");
    }
    for query in ["&binary=true", "&binary=1", "&binary="] {
        let mut rig = Rig::new(Limits::NSQD);
        let batch = b"\0\0\0\x02\0\0\0\x01a\0\0\0\x01b";
        assert_eq!(rig.ask(&format!("POST /mpub?topic=t{query}"), batch), "OK");
        assert_eq!(rig.depth(), 2, "{query}");
    }
}

#[test]
fn a_list_of_nsqlookupds_is_a_list_of_addresses_or_null() {
    let mut rig = Rig::new(Limits::NSQD);
    let (set, get) =
        ("PUT /config/nsqlookupd_tcp_addresses", "GET /config/nsqlookupd_tcp_addresses");
    assert!(!rig.ask(set, br#"["a:1","[::1]:2"]"#).starts_with('4'));
    let both = r#"["a:1","[::1]:2"]"#;
    assert_eq!(rig.ask(get, b""), both);
    for bad in ["[null]", "[[]]", "[{}]", "[1]", "{}", "1", "[", r#"["a"]"#, r#""a:1""#] {
        let answer = rig.ask(set, bad.as_bytes());
        assert!(answer.starts_with("400"), "{bad}: {answer}");
        assert_eq!(rig.ask(get, b""), both, "{bad}");
    }
    assert!(!rig.ask(set, b"null").starts_with('4'));
    assert_ne!(rig.ask(get, b""), both);
}

#[test]
fn stats_of_one_topic_and_one_channel() {
    let mut rig = Rig::new(Limits::NSQD);
    for query in [
        "topic/create?topic=t",
        "topic/create?topic=u",
        "channel/create?topic=t&channel=a",
        "channel/create?topic=t&channel=b",
        "channel/create?topic=u&channel=b",
    ] {
        assert_eq!(rig.ask(&format!("POST /{query}"), b""), "");
    }
    let mut names = |query: &str| {
        let stats = rig.ask(&format!("GET /stats?format=json{query}"), b"");
        let key = |key: &str| stats.matches(key).count();
        (key("\"topic_name\":\"t\""), key("\"topic_name\":\"u\""), key("\"channel_name\":\"a\""))
    };
    assert_eq!(names(""), (1, 1, 1));
    assert_eq!(names("&topic=t"), (1, 0, 1));
    assert_eq!(names("&topic=t&channel=b"), (1, 0, 0));
    assert_eq!(names("&topic=t&channel=a"), (1, 0, 1));
}

#[test]
fn a_clients_name_may_have_spaces() {
    let mut rig = Rig::new(Limits::NSQD);
    let ask = br#"{"client_id":"a b","hostname":"h","user_agent":"one two/3"}"#;
    let len = u32::try_from(ask.len()).unwrap().to_be_bytes();
    let mut client = rig.node.client(0).unwrap();
    client.accepted(NOW, ([10, 0, 0, 1], 5000).into());
    let mut input = [b"  V2IDENTIFY\n", &len[..], ask, b"SUB t c\n"].concat();
    while !input.is_empty() {
        let taken = client.take(NOW, &input);
        input.drain(..taken);
        written(&mut client, NOW);
    }
    assert_eq!(rig.node.topics().next().unwrap().name, &TopicName::new("t").unwrap());
    let stats = rig.ask("GET /stats", b"");
    assert!(stats.contains("[V2 h:5000 one two/3 "), "{stats}");
}

/// Only a driver that calls `take` and offers the rest again can hold a client.
#[test]
fn receive_of_an_http_session_fails_if_it_cannot_take_all_bytes() {
    let mut rig = Rig::new(Limits::NSQD);
    let mut session = rig.node.http(0).unwrap();
    session.open(NOW);
    assert_eq!(session.receive(NOW, b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n"), Ok(()));
    // The answer is not written yet, so there is no room for another request.
    let more = b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n".repeat(9);
    assert!(session.receive(NOW, &more).is_err());
    assert!(session.transmit(NOW).is_empty(), "the connection is over");
}

#[test]
fn a_binary_batch_may_have_as_many_messages_as_fit() {
    // 104 bytes: a count, and 20 messages of one byte.
    let limits = Limits { max_body_size: 104, ..Limits::NSQD };
    let batch = |count: u32, messages: u32| {
        let record = |_| b"\0\0\0\x01x";
        [&count.to_be_bytes()[..], &(0..messages).flat_map(record).copied().collect::<Vec<_>>()]
            .concat()
    };
    let mut rig = Rig::new(limits);
    let mpub = "POST /mpub?topic=t&binary=true";
    assert_eq!(rig.ask(mpub, &batch(20, 20)), "OK");
    assert_eq!(rig.depth(), 20);
    for (count, messages) in [(0, 0), (0, 20), (21, 20), (u32::MAX, 1)] {
        let answer = rig.ask(mpub, &batch(count, messages));
        assert!(answer.starts_with("413 ") && answer.contains("BAD_BODY"), "{count}: {answer}");
    }
    let answer = rig.ask(mpub, &batch(20, 21));
    assert!(answer.starts_with("413 ") && answer.contains("BODY_TOO_BIG"), "{answer}");
    // The same bound for lines.
    assert_eq!(rig.ask("POST /mpub?topic=t", &[b'x'; 104]), "OK");
    assert!(rig.ask("POST /mpub?topic=t", &[b'x'; 105]).starts_with("413 "));
    assert_eq!(rig.depth(), 21);
}

#[test]
fn an_unused_body_is_discarded_up_to_its_bound() {
    for (len, taken) in [(DISCARD_MAX, true), (DISCARD_MAX + 1, false)] {
        let mut rig = Rig::new(Limits::NSQD);
        let mut session = rig.node.http(0).unwrap();
        session.open(NOW);
        let head = format!("POST /topic/create?topic=t HTTP/1.0\r\nContent-Length: {len}\r\n\r\n");
        session.take(NOW, head.as_bytes());
        session.take(NOW, &vec![b'x'; len as usize]);
        let answer = written(&mut session, NOW);
        assert_eq!(answer.starts_with(b"HTTP/1.0 200 "), taken);
        assert_eq!(rig.node.topics().count(), taken.into(), "a refused request creates no topic");
    }
}

#[test]
fn a_content_length_has_only_digits() {
    for (length, status) in [("1", "200"), ("01", "200"), ("1:", "400"), ("1/", "400"), ("", "400")]
    {
        let mut rig = Rig::new(Limits::NSQD);
        let mut session = rig.node.http(0).unwrap();
        session.open(NOW);
        let head = format!("POST /pub?topic=t HTTP/1.0\r\nContent-Length: {length}\r\n\r\n");
        session.take(NOW, head.as_bytes());
        session.take(NOW, b"x");
        let answer = String::from_utf8(written(&mut session, NOW)).unwrap();
        assert_eq!(answer.get(9..12), Some(status), "{length}: {answer}");
    }
}

#[test]
fn a_list_of_nsqlookupds_may_fill_the_buffer_and_no_more() {
    let set = "PUT /config/nsqlookupd_tcp_addresses";
    for (len, taken) in [(BUFFER, true), (BUFFER + 1, false)] {
        let mut rig = Rig::new(Limits::NSQD);
        let list = format!("{:len$}", r#"["a:1"]"#);
        let answer = rig.ask(set, list.as_bytes());
        assert_eq!(!answer.starts_with('4'), taken, "{answer}");
    }
    // An address that is cut off would be another address.
    let mut rig = Rig::new(Limits::NSQD);
    let host = "h".repeat(95);
    for (text, taken) in [(format!("{host}:00000001"), true), (format!("{host}:000000019"), false)]
    {
        let answer = rig.ask(set, format!(r#"["{text}"]"#).as_bytes());
        assert_eq!(!answer.starts_with('4'), taken, "{answer}");
    }
}

#[test]
fn an_idle_http_connection_is_closed_after_its_timeout() {
    let mut rig = Rig::new(Limits::NSQD);
    assert_eq!(rig.node.http_clients(), 1);
    let mut session = rig.node.http(0).unwrap();
    assert_eq!(session.deadline(), Instant::NEVER);
    session.open(NOW);
    let idle = HttpConfig::new().times.idle;
    assert_eq!(session.deadline(), NOW.after(idle));
    session.tick(NOW.after(idle));
    assert_eq!(session.link(), Link::Close);
}

impl Rig {
    /// Connects a client from `port` that sends `bytes` and reads all responses.
    fn connect(&mut self, index: usize, port: u16, bytes: &[u8]) {
        let mut client = self.node.client(index).unwrap();
        client.accepted(NOW, ([10, 0, 0, 1], port).into());
        let mut input = bytes.to_vec();
        while !input.is_empty() {
            let taken = client.take(NOW, &input);
            input.drain(..taken);
            written(&mut client, NOW);
        }
    }
}

#[test]
fn stats_list_each_channel_and_client_once() {
    let mut rig = Rig::new(Limits::NSQD);
    let text = rig.ask("GET /stats", b"");
    assert!(text.contains("\nTopics: None\n"), "{text}");
    for (topic, channel) in [("t", "z"), ("t", "y"), ("u", "a")] {
        rig.ask(&format!("POST /topic/create?topic={topic}"), b"");
        rig.ask(&format!("POST /channel/create?topic={topic}&channel={channel}"), b"");
    }
    rig.connect(0, 5000, b"  V2SUB t y\n");
    let ask = br#"{"client_id":"me","hostname":"h"}"#;
    let identify = [b"  V2IDENTIFY\n\0\0\0", &[ask.len() as u8][..], ask, b"SUB u a\n"].concat();
    rig.connect(1, 5001, &identify);
    for (request, before) in
        [("GET /stats?format=json", "\"channel_name\":\""), ("GET /stats", " [")]
    {
        let stats = rig.ask(request, b"");
        for name in ["y", "z", "a"] {
            assert_eq!(stats.matches(&format!("{before}{name}")).count(), 1, "{name}: {stats}");
        }
    }
    let json = rig.ask("GET /stats?format=json", b"");
    assert_eq!(json.matches("10.0.0.1:5000").count(), 1, "{json}");
    assert_eq!(json.matches("10.0.0.1:5001").count(), 1, "{json}");
    assert!(json.contains("\"client_id\":\"me\""), "{json}");
    assert!(json.contains("\"client_id\":\"10.0.0.1\""), "a client without IDENTIFY: {json}");
}

#[test]
fn dates_have_two_digits() {
    let mut rig = Rig::new(Limits::NSQD);
    for (seconds, date) in
        [(1_696_932_610, "2023-10-10T10:10:10Z"), (1_709_802_549, "2024-03-07T09:09:09Z")]
    {
        rig.node.set_unix_time(Instant::ZERO, seconds * 1_000_000_000);
        let text = rig.ask("GET /stats", b"");
        assert!(text.contains(date), "{date}: {text}");
    }
}
