use core::net::SocketAddr;

use super::*;
use crate::session::{Awaited, Closed, Fault, Link, Session};
use crate::time::Span;
use crate::wire::json::{Scanner, Token};

mod metrics;
mod tables;

type Small = Storage<3, 3, 3, 1>;

/// An nsqlookupd and the current time.
struct World<'a> {
    nsqlookupd: Nsqlookupd<'a>,
    now: Instant,
}

const NODE: &str =
    r#"{"broadcast_address":"a","hostname":"h","http_port":2,"tcp_port":1,"version":"v"}"#;

fn identify(json: &str) -> Vec<u8> {
    let len = (json.len() as u32).to_be_bytes();
    [b"IDENTIFY\n", &len[..], json.as_bytes()].concat()
}

fn node(name: &str) -> String {
    NODE.replace("\"a\"", &format!("\"{name}\""))
}

/// Returns a world with the given storage and configuration, which are leaked.
fn a_world<const P: usize, const T: usize, const C: usize, const H: usize, const W: usize>(
    storage: Storage<P, T, C, H, W>,
    config: Config<'static>,
) -> World<'static> {
    let nsqlookupd = Nsqlookupd::new(Box::leak(Box::new(config)), Box::leak(Box::new(storage)));
    World { nsqlookupd, now: Instant::from_millis(1) }
}

fn small() -> World<'static> {
    a_world(Small::new(), Config::new())
}

impl World<'_> {
    #[track_caller]
    fn connect(&mut self, at: usize) {
        let from = SocketAddr::from(([127, 0, 0, 1], 1000 + at as u16));
        self.nsqlookupd.client(at).unwrap().accepted(self.now, from);
        assert_eq!(self.send(at, b"  V1"), b"");
    }

    /// Connects an nsqd and sends IDENTIFY.
    #[track_caller]
    fn arrive(&mut self, at: usize, name: &str) {
        self.connect(at);
        let reply = self.send(at, &identify(&node(name)));
        assert!(reply.ends_with(b"\"version\":\"1.3.0\"}"), "{}", reply.escape_ascii());
        assert_eq!(self.link(at), Link::Up);
    }

    fn send(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        exchange(&mut self.nsqlookupd.client(at).unwrap(), self.now, bytes, usize::MAX)
    }

    #[track_caller]
    fn ok(&mut self, at: usize, command: &str) {
        assert_eq!(self.send(at, command.as_bytes()), b"\0\0\0\x02OK", "{command}");
    }

    fn link(&mut self, at: usize) -> Link {
        self.nsqlookupd.client(at).unwrap().link()
    }

    /// Advances the time and ticks every session.
    fn after(&mut self, seconds: u32) {
        self.now = self.now.after(Span::from_secs(seconds));
        for at in 0..self.nsqlookupd.clients() {
            self.nsqlookupd.client(at).unwrap().tick(self.now);
        }
    }

    /// Returns the body of an answer, behind its status if that is not 200.
    #[track_caller]
    fn ask(&mut self, request: &str) -> String {
        let request = format!("{request} HTTP/1.0\r\n\r\n");
        let mut session = self.nsqlookupd.http(0).unwrap();
        session.open(self.now);
        let answer = exchange(&mut session, self.now, request.as_bytes(), usize::MAX);
        assert_eq!(session.link(), Link::Close);
        session.closed(self.now, Closed::Local);
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.strip_prefix("HTTP/1.0 ").unwrap().split(' ').next().unwrap();
        if status == "200" { body.to_owned() } else { format!("{status} {body}") }
    }

    /// Returns the addresses that `/lookup` lists for a topic.
    #[track_caller]
    fn lookup(&mut self, topic: &str) -> String {
        let body = self.ask(&format!("GET /lookup?topic={topic}"));
        let names = body.split("\"broadcast_address\":\"").skip(1);
        names.map(|rest| rest.split('"').next().unwrap()).collect::<Vec<_>>().join(" ")
    }
}

/// Offers bytes until none are taken, with writes of at most `write` bytes. Returns the output.
fn exchange(session: &mut dyn Session, now: Instant, bytes: &[u8], write: usize) -> Vec<u8> {
    let (mut rest, mut output) = (bytes, Vec::new());
    loop {
        let taken = session.take(now, rest);
        rest = &rest[taken..];
        let lent = session.transmit(now);
        let mut piece = [lent.head, lent.body].concat();
        piece.truncate(write);
        session.sent(now, piece.len());
        if taken == 0 && piece.is_empty() {
            assert!(rest.is_empty(), "bytes are held back although nothing waits to be written");
            return output;
        }
        output.extend(piece);
    }
}

#[track_caller]
fn check_json(json: &str) {
    let mut scanner = Scanner::<8>::new();
    let mut input = json.as_bytes();
    while scanner.next(&mut input).unwrap().is_some() {}
    assert!(scanner.finished(), "{json}");
}

/// Checks that each nsqd has as many `tombstones` as `topics`. Returns the number of nsqds with
/// topics.
#[track_caller]
fn check_nodes(json: &str) -> usize {
    let mut scanner = Scanner::<128>::new();
    let mut input = json.as_bytes();
    let (mut key, mut topics, mut tombstones, mut nodes) = (String::new(), 0, 0, 0);
    while let Some(token) = scanner.next(&mut input).unwrap() {
        match token {
            Token::Key(name) => key = name.as_str().unwrap().to_owned(),
            Token::String(name) if key == "topics" => {
                assert!(!name.as_bytes().is_empty());
                topics += 1;
            }
            Token::Bool(_) => tombstones += 1,
            Token::ObjectEnd => {
                assert_eq!(topics, tombstones, "{json}");
                nodes += usize::from(topics > 0);
                (topics, tombstones) = (0, 0);
            }
            _ => {}
        }
    }
    assert!(scanner.finished(), "{json}");
    nodes
}

#[test]
fn answers_are_those_of_nsqlookupd() {
    let mut world = small();
    world.connect(0);
    assert_eq!(world.send(0, b"PING\n"), b"\0\0\0\x02OK");
    let reply = world.send(0, &identify(NODE));
    assert_eq!(
        reply.escape_ascii().to_string(),
        r#"\x00\x00\x00S{\"broadcast_address\":\"\",\"hostname\":\"\",\"http_port\":0,\"tcp_port\":0,\"version\":\"1.3.0\"}"#
    );
    world.ok(0, "REGISTER t c\n");
    world.ok(0, "REGISTER t d#ephemeral\n");
    world.ok(0, "REGISTER u\n");
    assert_eq!(world.ask("GET /topics"), r#"{"topics":["t","u"]}"#);
    assert_eq!(world.ask("GET /channels?topic=t"), r#"{"channels":["c","d#ephemeral"]}"#);
    assert_eq!(
        world.ask("GET /lookup?topic=t"),
        r#"{"channels":["c","d#ephemeral"],"producers":[{"remote_address":"127.0.0.1:1000","hostname":"h","broadcast_address":"a","tcp_port":1,"http_port":2,"version":"v"}]}"#
    );
    assert_eq!(
        world.ask("GET /nodes"),
        r#"{"producers":[{"remote_address":"127.0.0.1:1000","hostname":"h","broadcast_address":"a","tcp_port":1,"http_port":2,"version":"v","topics":["t","u"],"tombstones":[false,false]}]}"#
    );
    world.nsqlookupd.set_unix_time(world.now, 1_795_489_237_747_341_552);
    assert_eq!(world.ask("POST /topic/tombstone?topic=u&node=a:2"), "");
    let producer = r#"[{"broadcast_address":"a","hostname":"h","http_port":2,"id":"127.0.0.1:1000","last_update":1795489237747341552,"tcp_port":1,"tombstoned":false,"tombstoned_at":-6795364578871345152,"version":"v"}]"#;
    let buried =
        producer.replace("false", "true").replace("-6795364578871345152", "1795489237747341552");
    assert_eq!(
        world.ask("GET /debug"),
        format!(
            r#"{{"client::":{producer},"topic:t:":{producer},"topic:u:":{buried},"channel:t:c":{producer},"channel:t:d#ephemeral":{producer}}}"#
        )
    );
    assert_eq!(world.ask("GET /ping"), "OK");
    assert_eq!(world.ask("GET /info"), r#"{"version":"1.3.0"}"#);
    // Newer nsqds send their zone and region.
    world.connect(1);
    let zoned = node("b").replace('}', r#","topology_zone":"z","topology_region":"r"}"#);
    world.send(1, &identify(&zoned));
    world.ok(1, "REGISTER w\n");
    assert!(
        world
            .ask("GET /lookup?topic=w")
            .ends_with(r#""version":"v","topology_zone":"z","topology_region":"r"}]}"#)
    );
    let counters = world.nsqlookupd.counters();
    assert_eq!((counters.identified, counters.refused, counters.requests), (2, 0, 9));
}

#[test]
fn the_end_of_a_connection_ends_its_registrations() {
    let mut world = small();
    world.arrive(0, "a");
    world.arrive(1, "b");
    world.ok(0, "REGISTER t c\n");
    world.ok(1, "REGISTER t c\n");
    assert_eq!(world.nsqlookupd.poll_event(), Some(Event::Identified { index: 0, listed: false }));
    assert_eq!(world.nsqlookupd.poll_event(), Some(Event::Identified { index: 1, listed: false }));
    assert_eq!(world.nsqlookupd.poll_event(), None);
    let version = world.nsqlookupd.version();
    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
    assert_ne!(world.nsqlookupd.version(), version);
    let left = Event::Left { index: 0, why: Closed::Peer, listed: false };
    assert_eq!(world.nsqlookupd.poll_event(), Some(left));
    assert_eq!(world.lookup("t"), "b");
    assert!(world.nsqlookupd.producer(0).is_none());
    world.nsqlookupd.client(1).unwrap().closed(world.now, Closed::Peer);
    // The topic stays without producers.
    assert_eq!(world.ask("GET /lookup?topic=t"), r#"{"channels":["c"],"producers":[]}"#);
    assert_eq!(world.ask("GET /nodes"), r#"{"producers":[]}"#);
    // The next connection in the slot inherits nothing.
    world.connect(0);
    assert_eq!(world.ask("GET /debug"), "{}");
    assert!(world.send(0, b"REGISTER t\n").ends_with(b"E_INVALID client must IDENTIFY"));
}

#[test]
fn connections_of_one_address_are_one_entry_and_keep_what_they_registered() {
    let mut world = small();
    world.arrive(0, "b");
    world.ok(0, "REGISTER t c\n");
    world.arrive(2, "a");
    world.ok(2, "REGISTER t c\n");
    world.ok(2, "REGISTER u\n");
    while world.nsqlookupd.poll_event().is_some() {}
    // Another connection that announces the same address.
    world.connect(1);
    world.send(1, &identify(&node("a").replace("\"http_port\":2", "\"http_port\":7")));
    let came = Event::Identified { index: 1, listed: true };
    assert_eq!((world.nsqlookupd.poll_event(), world.nsqlookupd.poll_event()), (Some(came), None));
    world.ok(1, "REGISTER t d\n");
    world.ok(1, "REGISTER w\n");
    assert_eq!((0..3).map(|at| world.link(at)).collect::<Vec<_>>(), [Link::Up; 3]);
    let of = |world: &World<'_>| {
        world.nsqlookupd.topics().map(|(name, n)| format!("{name} {n}")).collect::<Vec<_>>()
    };
    assert_eq!(of(&world), ["t 2", "u 1", "w 1"]);
    for (topic, nodes) in [("t", "b a"), ("u", "a"), ("w", "a")] {
        assert_eq!(world.lookup(topic), nodes);
    }
    assert_eq!(world.ask("GET /channels?topic=t"), r#"{"channels":["c","d"]}"#);
    let nodes = world.ask("GET /nodes");
    assert_eq!(nodes.matches("\"broadcast_address\":\"a\"").count(), 1);
    assert!(nodes.ends_with(r#""topics":["t","u","w"],"tombstones":[false,false,false]}]}"#));
    let debug = world.ask("GET /debug");
    check_json(&debug);
    // client, t, u, w, t/c and t/d
    assert_eq!(debug.matches("\"broadcast_address\":\"a\"").count(), 6);

    // The entry shows the connection that sent something last, among those that are listed.
    let shows = |world: &mut World<'_>, what: &str| {
        let body = world.ask(what);
        let (_, a) = body.split_once("\"broadcast_address\":\"a\"").unwrap();
        a.split("\"http_port\":").nth(1).unwrap()[..1].to_owned()
    };
    let asked = ["GET /lookup?topic=t", "GET /nodes", "GET /lookup?topic=u"];
    assert_eq!(asked.map(|what| shows(&mut world, what)), ["7", "7", "2"]);
    world.after(1);
    world.ok(2, "PING\n");
    assert_eq!(asked.map(|what| shows(&mut world, what)), ["2", "2", "2"]);
    assert_eq!(shows(&mut world, "GET /lookup?topic=w"), "7");

    // A registration that one connection withdraws stays on the other.
    world.ok(2, "UNREGISTER t c\n");
    world.ok(2, "UNREGISTER t\n");
    assert_eq!((world.lookup("t"), shows(&mut world, asked[0])), ("b a".into(), "7".into()));
    world.ok(2, "REGISTER t\n");
    // A tombstone applies to the connections with its HTTP port.
    world.ask("POST /topic/tombstone?topic=t&node=a:2");
    assert_eq!((world.lookup("t"), shows(&mut world, asked[0])), ("b a".into(), "7".into()));
    assert!(!world.ask("GET /nodes").contains("true"));
    assert!(!world.ask("GET /debug").contains("\"tombstoned\":true"));
    world.ask("POST /topic/tombstone?topic=t&node=a:7");
    assert_eq!(world.lookup("t"), "b");
    let nodes = world.ask("GET /nodes");
    assert!(nodes.ends_with(r#""topics":["t","u","w"],"tombstones":[true,false,false]}]}"#));
    assert!(world.ask("GET /debug").contains("\"tombstoned\":true"));
    // The end of a connection ends its registrations and its tombstone.
    world.nsqlookupd.client(2).unwrap().closed(world.now, Closed::Peer);
    let left = Event::Left { index: 2, why: Closed::Peer, listed: true };
    assert_eq!(world.nsqlookupd.poll_event(), Some(left));
    assert_eq!((world.lookup("u"), world.lookup("w")), (String::new(), "a".into()));
    world.nsqlookupd.client(1).unwrap().closed(world.now, Closed::Peer);
    let left = Event::Left { index: 1, why: Closed::Peer, listed: false };
    assert_eq!(world.nsqlookupd.poll_event(), Some(left));
    assert_eq!((world.lookup("t"), world.lookup("w")), ("b".into(), String::new()));
    assert_eq!(world.nsqlookupd.counters().replaced, 0);
    // Another port is another nsqd, and so is another spelling of the address.
    for (at, json) in [(1, node("b").replace("\"tcp_port\":1", "\"tcp_port\":9")), (2, node("B"))] {
        world.connect(at);
        world.send(at, &identify(&json));
        world.ok(at, "REGISTER t\n");
    }
    assert_eq!(world.lookup("t"), "b b B");
}

#[test]
fn connections_of_one_address_may_begin_and_end_in_any_order() {
    let orders = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
    for (arrive, leave) in orders.iter().flat_map(|a| orders.iter().map(move |b| (a, b))) {
        let mut world = a_world(Storage::<4, 3, 1, 1>::new(), Config::new());
        world.arrive(3, "other");
        for at in arrive {
            world.arrive(*at, "a");
            world.ok(*at, &format!("REGISTER t{at}\n"));
        }
        for (n, at) in leave.iter().enumerate() {
            assert_eq!(check_nodes(&world.ask("GET /nodes")), 1);
            assert_eq!(world.ask("GET /nodes").matches("\"a\"").count(), 1);
            world.nsqlookupd.client(*at).unwrap().closed(world.now, Closed::Peer);
            for other in 0..3 {
                let here = leave[n + 1..].contains(&other);
                assert_eq!(world.lookup(&format!("t{other}")), if here { "a" } else { "" });
            }
        }
        assert_eq!(world.ask("GET /nodes").matches("\"a\"").count(), 0);
    }
}

#[test]
fn a_connection_without_ping_does_not_hide_one_with_ping() {
    let mut world = small();
    world.arrive(0, "a");
    world.ok(0, "REGISTER t\n");
    world.arrive(1, "a");
    world.ok(1, "REGISTER u\n");
    for _ in 0..10 {
        world.after(30);
        world.ok(1, "PING\n");
        // Connection 0 sends commands, and sends last, but no PING.
        world.ok(0, "REGISTER t\n");
        world.ok(0, "REGISTER u\n");
    }
    assert_eq!((world.lookup("t"), world.lookup("u")), ("a".into(), "a".into()));
    world.after(1);
    assert_eq!((world.lookup("t"), world.lookup("u")), (String::new(), "a".into()));
    assert!(world.ask("GET /nodes").ends_with(r#""topics":["u"],"tombstones":[false]}]}"#));
    assert!(world.ask("GET /lookup?topic=u").contains("127.0.0.1:1001"));
    assert!(world.ask("GET /debug").contains("topic:t:"));
}

#[test]
fn a_node_that_reconnects_replaces_a_connection_that_is_silent_for_long() {
    let mut world = small();
    world.arrive(0, "a");
    world.ok(0, "REGISTER t\n");
    world.arrive(1, "b");
    world.ok(1, "REGISTER t\n");
    world.after(45);
    world.ok(1, "PING\n");
    while world.nsqlookupd.poll_event().is_some() {}
    // Connection 0 has not been silent for more than 45 s yet.
    world.arrive(2, "a");
    assert_eq!((world.link(0), world.link(1)), (Link::Up, Link::Up));
    assert_eq!(world.lookup("t"), "a b");
    world.ok(2, "PING\n");
    assert_eq!(world.link(0), Link::Up);
    world.now = world.now.after(Span::from_millis(1));
    // REGISTER alone does not replace: it may be of a connection that is as old.
    world.ok(2, "REGISTER u\n");
    assert_eq!(world.link(0), Link::Up);
    let version = world.nsqlookupd.version();
    world.ok(2, "PING\n");
    assert_ne!(world.nsqlookupd.version(), version, "the driver of the replaced one is woken");
    assert_eq!((world.link(0), world.link(1)), (Link::Close, Link::Up));
    assert_eq!(world.lookup("t"), "b");
    let left = Event::Left { index: 0, why: Closed::Local, listed: true };
    let came = Event::Identified { index: 2, listed: true };
    assert_eq!([(); 2].map(|()| world.nsqlookupd.poll_event()), [Some(left), Some(came)]);
    assert_eq!(world.send(0, b"PING\nREGISTER t\n"), b"", "commands are ignored");
    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Local);
    assert_eq!((world.link(0), world.nsqlookupd.counters().replaced), (Link::Down, 1));

    // IDENTIFY replaces too, and replaces all silent connections.
    world.arrive(0, "a");
    world.after(46);
    world.ok(1, "PING\n");
    world.after(1);
    world.nsqlookupd.client(1).unwrap().closed(world.now, Closed::Peer);
    assert_eq!((world.link(0), world.link(2)), (Link::Up, Link::Up));
    world.arrive(1, "a");
    assert_eq!((world.link(0), world.link(1), world.link(2)), (Link::Close, Link::Up, Link::Close));
    assert_eq!(world.nsqlookupd.counters().replaced, 3);

    // An older connection does not replace a newer one, and any command ends the silence.
    let mut world = small();
    world.arrive(0, "a");
    world.arrive(1, "a");
    world.after(30);
    world.ok(0, "PING\n");
    world.after(30);
    world.ok(0, "PING\n");
    assert_eq!((world.link(0), world.link(1)), (Link::Up, Link::Up));
    world.ok(0, "REGISTER t\n");
    world.after(30);
    world.ok(1, "PING\n");
    assert_eq!((world.link(0), world.link(1)), (Link::Up, Link::Up));
}

#[test]
fn a_dead_connection_is_closed_after_a_caller_was_rejected() {
    let mut world = small();
    for (at, name) in ["a", "b", "c"].iter().enumerate() {
        world.arrive(at, name);
        world.after(1);
    }
    while world.nsqlookupd.poll_event().is_some() {}
    world.after(7);
    // No connection has been silent for long yet.
    let version = world.nsqlookupd.version();
    world.nsqlookupd.turned_away();
    assert_ne!(world.nsqlookupd.version(), version);
    world.ok(0, "PING\n");
    let due = world.nsqlookupd.client(1).unwrap().deadline();
    assert_eq!(due, Instant::from_millis(1001 + 45_000));
    world.after(35);
    assert_eq!(world.link(1), Link::Up);
    world.after(1);
    // Only the connection that was silent for longest is closed.
    assert_eq!(
        (0..3).map(|at| world.link(at)).collect::<Vec<_>>(),
        [Link::Up, Link::Close, Link::Up]
    );
    let why = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
    let left = Event::Left { index: 1, why, listed: false };
    assert_eq!(world.nsqlookupd.poll_event(), Some(left));
    assert_eq!(world.nsqlookupd.counters().timed_out, 1);
    world.after(5);
    assert_eq!(world.link(2), Link::Up);
    assert_eq!(world.nsqlookupd.client(2).unwrap().deadline(), Instant::from_millis(302_001));
    world.nsqlookupd.client(1).unwrap().closed(world.now, Closed::Local);
    world.arrive(1, "b");
    // A connection ends before another was silent for long: none is closed.
    world.nsqlookupd.turned_away();
    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
    world.after(44);
    assert_eq!((world.link(1), world.link(2)), (Link::Up, Link::Up));
}

#[test]
fn an_entry_does_not_move_to_a_slot_that_its_list_has_passed() {
    let long = "h".repeat(100);
    let json = |name: &str| node(name).replace("\"h\"", &format!("\"{long}\""));
    for path in ["/nodes", "/lookup?topic=t", "/debug"] {
        let mut world = a_world(Storage::<16, 1, 1, 1>::new(), Config::new());
        for at in 1..16 {
            world.connect(at);
            world.send(at, &identify(&json(&format!("n{at}"))));
            world.ok(at, "REGISTER t\n");
        }
        let mut session = world.nsqlookupd.http(0).unwrap();
        session.open(world.now);
        session.take(world.now, format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        let mut answer = Vec::new();
        for piece in 0.. {
            let mut session = world.nsqlookupd.http(0).unwrap();
            let lent = session.transmit(world.now);
            let bytes = [lent.head, lent.body].concat();
            session.sent(world.now, bytes.len());
            answer.extend(bytes);
            if session.link() == Link::Close {
                assert!(piece > 1);
                break;
            }
            if piece == 0 {
                // In a slot that the list has passed, with the address of one that follows.
                world.connect(0);
                world.send(0, &identify(&json("n15")));
                world.ok(0, "REGISTER t\n");
            }
        }
        let answer = String::from_utf8(answer).unwrap();
        let lists = if path == "/debug" { 2 } else { 1 };
        for at in 1..16 {
            let name = format!("\"broadcast_address\":\"n{at}\"");
            assert_eq!(answer.matches(&name).count(), lists, "{path} {name}");
        }
    }
}

#[test]
fn silent_connections_are_closed() {
    let config = Config { idle_timeout: Span::from_secs(600), ..Config::new() };
    let mut world = a_world(Small::new(), config);
    world.connect(0);
    world.ok(0, "PING\n");
    world.after(9);
    assert_eq!(world.link(0), Link::Up);
    world.after(1);
    assert_eq!(world.link(0), Link::Close, "no IDENTIFY in time");
    assert_eq!(world.nsqlookupd.poll_event(), None);
    world.after(1);
    let due = world.nsqlookupd.client(0).unwrap().deadline();
    assert_eq!(due, world.now, "due until the driver aborts");
    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Local);

    world.arrive(0, "a");
    world.ok(0, "REGISTER t\n");
    world.after(300);
    assert_eq!(world.lookup("t"), "a");
    world.after(1);
    world.ok(0, "REGISTER t c\n");
    assert_eq!(world.lookup("t"), "", "REGISTER is no PING");
    assert_eq!(world.ask("GET /nodes"), r#"{"producers":[]}"#);
    assert!(world.ask("GET /debug").contains("topic:t:"));
    world.ok(0, "PING\n");
    assert_eq!(world.lookup("t"), "a");
    world.after(599);
    assert_eq!(world.link(0), Link::Up);
    world.after(1);
    assert_eq!(world.link(0), Link::Close);
    let why = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));
    let events = [world.nsqlookupd.poll_event(), world.nsqlookupd.poll_event()];
    assert_eq!(events, [Some(Event::Left { index: 0, why, listed: false }), None]);
    assert_eq!(world.nsqlookupd.counters().timed_out, 2);
    assert_eq!(world.ask("GET /debug"), "{}");
}

#[test]
fn a_node_that_does_not_read_is_held_then_closed() {
    let mut world = small();
    world.arrive(0, "a");
    let commands = b"REGISTER t\n".repeat(2000);
    let mut session = world.nsqlookupd.client(0).unwrap();
    let taken = session.take(world.now, &commands);
    assert_eq!(taken, 1024 * 11);
    assert_eq!(session.take(world.now, &commands[taken..]), 0);
    assert_eq!(session.deadline(), world.now.after(Span::from_secs(5)));
    // Each read extends the deadline.
    world.after(4);
    let mut session = world.nsqlookupd.client(0).unwrap();
    session.sent(world.now, 7);
    assert_eq!(session.take(world.now, &commands[taken..]), 11);
    let rest = session.transmit(world.now).head;
    assert_eq!(rest[..5], *b"\0\0\x02OK");
    world.after(4);
    assert_eq!(world.link(0), Link::Up);
    world.after(1);
    assert_eq!(world.link(0), Link::Close);
    let mut session = world.nsqlookupd.client(0).unwrap();
    assert!(session.transmit(world.now).is_empty());

    // An nsqd that reads gets all 2000, however slowly.
    let mut world = small();
    world.arrive(0, "a");
    for write in [1, 5, 100, usize::MAX] {
        let mut session = world.nsqlookupd.client(0).unwrap();
        let output = exchange(&mut session, world.now, &commands, write);
        assert_eq!(output, b"\0\0\0\x02OK".repeat(2000));
        assert_eq!(session.deadline(), world.now.after(Span::from_secs(300)));
    }
}

#[test]
fn the_longest_texts_and_numbers_fit() {
    let mut world = a_world(Storage::<2, 1, 1, 1>::new(), Config::new());
    let long = "\\\"".repeat(300);
    let json = format!(
        r#"{{"broadcast_address":"{}","hostname":"{long}","http_port":65535,"tcp_port":65535,"version":"{long}","topology_zone":"{long}","topology_region":"{long}"}}"#,
        "\\\"".repeat(crate::address::HOST_MAX)
    );
    let config = Config { max_body: 8192, ..Config::new() };
    world.nsqlookupd.shared.config = Box::leak(Box::new(config));
    let from: SocketAddr = "[1111:2222:3333:4444:5555:6666:7777:8888]:65535".parse().unwrap();
    let name = "n".repeat(64);
    for at in [0, 1] {
        world.nsqlookupd.client(at).unwrap().accepted(world.now, from);
        world.send(at, b"  V1");
        let json = json.replace("\"tcp_port\":65535", &format!("\"tcp_port\":{}", 65535 - at));
        assert!(world.send(at, &identify(&json)).ends_with(b"}"));
        world.ok(at, &format!("REGISTER {name} {name}\n"));
    }
    world.nsqlookupd.set_unix_time(world.now, i64::MIN);
    for request in ["GET /nodes", "GET /debug", &format!("GET /lookup?topic={name}")] {
        let body = world.ask(request);
        check_json(&body);
        if request == "GET /nodes" {
            assert_eq!(check_nodes(&body), 2);
        }
        assert_eq!(
            body.matches("\"http_port\":65535").count(),
            if request == "GET /debug" { 6 } else { 2 }
        );
    }
    // The longest refusals.
    for (command, start) in [
        (format!("UNREGISTER t {}", "$".repeat(147)), "E_BAD_CHANNEL UNREGISTER channel name '"),
        (format!("UNREGISTER {}", "$".repeat(149)), "E_BAD_TOPIC UNREGISTER topic name '"),
        ("x".repeat(160), "E_INVALID invalid command "),
    ] {
        let mut world = small();
        world.arrive(0, "a");
        let answer = world.send(0, format!("{command}\n").as_bytes());
        let len = u32::from_be_bytes(answer[..4].try_into().unwrap());
        assert_eq!(len as usize, answer.len() - 4, "not cut off");
        let text = String::from_utf8(answer[4..].to_vec()).unwrap();
        assert!(
            text.starts_with(start) && (text.ends_with("' is not valid") || text.ends_with('x'))
        );
        assert_eq!(world.link(0), Link::Close);
        assert_eq!(world.nsqlookupd.counters().refused, 1);
    }
}

#[test]
fn tables_may_change_between_two_pieces() {
    // So many long topics that a list takes several pieces.
    let name = |at: u32| format!("{at}{}", "x".repeat(50));
    for seed in 0..60u32 {
        let mut world = a_world(Storage::<3, 40, 40, 1>::new(), Config::new());
        for (at, node) in [(0, "a"), (1, "b")] {
            world.arrive(at, node);
            for topic in 0..35 {
                world.ok(at, &format!("REGISTER {} c\n", name(topic)));
            }
        }
        let mut random = seed.wrapping_mul(0x9e37_79b9) | 1;
        let mut next = |below: u32| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 8) % below
        };
        let paths = ["/nodes", "/debug", "/topics", &format!("/lookup?topic={}", name(3))]
            .map(String::from);
        let path = &paths[seed as usize % 4];
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        let mut session = world.nsqlookupd.http(0).unwrap();
        session.open(world.now);
        session.take(world.now, request.as_bytes());
        let (mut answer, mut pieces) = (Vec::new(), 0);
        loop {
            let now = world.now;
            let mut session = world.nsqlookupd.http(0).unwrap();
            let lent = session.transmit(now);
            let piece = [lent.head, lent.body].concat();
            session.sent(now, piece.len());
            answer.extend(&piece);
            pieces += 1;
            if session.link() == Link::Close {
                break;
            }
            let topic = name(next(40));
            match next(6) {
                0 => world.ok(0, &format!("UNREGISTER {topic}\n")),
                1 => world.ok(1, &format!("REGISTER {topic}\n")),
                2 => {
                    let topic = TopicName::new(&topic).unwrap();
                    if let Some(at) = world.nsqlookupd.shared.tables.topic(&topic) {
                        world.nsqlookupd.shared.tables.remove_topic(at);
                    }
                }
                3 => {
                    // Another nsqd in the same slot.
                    world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
                    world.arrive(0, "c");
                    world.ok(0, &format!("REGISTER {topic}\n"));
                }
                4 => world.after(7),
                _ => {}
            }
        }
        let answer = String::from_utf8(answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        if path == "/nodes" {
            check_nodes(body);
        } else {
            check_json(body);
        }
        assert!(pieces > 1 || path.contains("lookup"), "{pieces}");
    }
}

#[test]
fn streams_may_be_cut_anywhere_and_contain_garbage() {
    let hello =
        [b"  V1".to_vec(), identify(NODE), b"REGISTER t c\nPING\nUNREGISTER t c\n".to_vec()];
    let script = hello.concat();
    let whole = {
        let mut world = small();
        world.nsqlookupd.client(0).unwrap().open(world.now);
        world.send(0, &script)
    };
    assert!(whole.ends_with(b"\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK"));
    for at in 0..=script.len() {
        let mut world = small();
        world.nsqlookupd.client(0).unwrap().open(world.now);
        let output = [world.send(0, &script[..at]), world.send(0, &script[at..])].concat();
        assert_eq!(output, whole, "split at {at}");
        // The connection ends there.
        let mut world = small();
        world.nsqlookupd.client(0).unwrap().open(world.now);
        world.send(0, &script[..at]);
        world.nsqlookupd.client(0).unwrap().closed(world.now, Closed::Peer);
        assert_eq!(world.ask("GET /debug"), "{}");
        world.arrive(0, "a");
    }
    let mut seed = 3u32;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    let mut world = small();
    for _ in 0..10_000 {
        let mut bytes = script.clone();
        for _ in 0..1 + random(3) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b" \n\r$\xff\0"[random(6)]),
            }
        }
        let at = random(3);
        world.nsqlookupd.client(at).unwrap().open(world.now);
        world.send(at, &bytes);
        if random(2) == 0 {
            world.after(1);
        }
        check_nodes(&world.ask("GET /nodes"));
    }
    for _ in 0..3 {
        world.after(301);
    }
    assert_eq!(world.ask("GET /debug"), "{}");
    assert!(world.nsqlookupd.counters().refused > 2000);
}

#[test]
fn a_length_that_crashes_nsqlookupd_is_refused() {
    for (len, text) in [
        (u32::MAX, &b"E_BAD_BODY IDENTIFY invalid body size -1"[..]),
        (1025, b"E_BAD_BODY IDENTIFY body too big 1025 > 1024"),
    ] {
        let mut world = small();
        world.connect(0);
        let answer = world.send(0, &[b"IDENTIFY\n", &len.to_be_bytes()[..]].concat());
        assert_eq!(&answer[4..], text);
        assert_eq!(world.link(0), Link::Close);
    }
    let mut world = small();
    world.connect(0);
    // The longest body, and an empty one.
    let padded = format!("{NODE}{}", " ".repeat(1024 - NODE.len()));
    assert!(world.send(0, &identify(&padded)).ends_with(b"}"));
    world.connect(1);
    assert!(
        world.send(1, &identify("")).ends_with(b"E_BAD_BODY IDENTIFY failed to decode JSON body")
    );
}

#[test]
fn more_than_32_nodes() {
    let mut world = a_world(Storage::<70, 2, 2, 1, 3>::new(), Config::new());
    for at in 0..70 {
        world.arrive(at, &format!("n{at}"));
        world.ok(at, if at % 2 == 0 { "REGISTER t c\n" } else { "REGISTER u\n" });
    }
    let of = |world: &World<'_>| world.nsqlookupd.topics().map(|(_, n)| n).collect::<Vec<_>>();
    assert_eq!(of(&world), [35, 35]);
    world.nsqlookupd.client(64).unwrap().closed(world.now, Closed::Peer);
    world.nsqlookupd.client(33).unwrap().closed(world.now, Closed::Peer);
    assert_eq!(of(&world), [34, 34]);
    assert_eq!(
        world.lookup("t").split(' ').filter(|name| *name == "n32" || *name == "n64").count(),
        1
    );
}

#[test]
fn ram() {
    type Large = Storage<9, 9, 9, 3, 2>;
    type One = Storage<1, 1, 1, 1>;
    let most = |producers, keys, http, bits| {
        producers * PRODUCER_RAM_MAX + keys * (KEY_RAM_MAX + bits) + http * HTTP_RAM_MAX
    };
    assert!(size_of::<One>() <= most(1, 2, 1, 4), "{}", size_of::<One>());
    assert!(size_of::<Large>() <= most(9, 18, 3, 8), "{}", size_of::<Large>());
    assert_eq!((size_of::<Producer>(), size_of::<Nsqlookupd<'_>>()), (PRODUCER_RAM_MAX, RAM_MAX));
}
