use core::net::SocketAddr;

use nanonsq_models::prometheus;

use super::*;
use crate::name::{ChannelName, TopicName};
use crate::nsqd::{Config, PublishError, Storage};
use crate::wire::json::Scanner;
use crate::wire::nsqd::Limits;

type Tables = Storage<3, 4, 3, 4>;

/// An nsqd and its clock.
struct World {
    node: Nsqd<'static>,
    now: Instant,
}

const HTTP: HttpConfig<'_> = HttpConfig { hostname: "h", ..HttpConfig::new() };

fn world(store: usize, limits: Limits) -> World {
    with(store, Config { limits, ..Config::new() })
}

fn with(store: usize, config: Config<'static>) -> World {
    let config = Box::leak(Box::new(config));
    let tables = Box::leak(Box::new(Tables::new()));
    let store = Box::leak(vec![0; store].into_boxed_slice());
    let mut node = Nsqd::new(config, tables, store).unwrap();
    let storage = Box::leak(Box::new(HttpStorage::<2, 2>::new()));
    let first = ["127.0.0.1:4160".parse().unwrap()];
    node.answer_http(const { &HTTP }, storage, &first).unwrap();
    let now = Instant::from_millis(60_000);
    node.set_unix_time(now, 1_795_490_983_000_000_000);
    World { node, now }
}

fn small() -> World {
    world(1 << 14, Limits::NSQD)
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

impl World {
    #[track_caller]
    fn take(&mut self, at: usize, bytes: &[u8]) -> usize {
        self.node.http(at).unwrap().take(self.now, bytes)
    }

    /// Returns the next piece of an answer, as sent.
    fn piece(&mut self, at: usize) -> Vec<u8> {
        let mut session = self.node.http(at).unwrap();
        let lent = session.transmit(self.now);
        let piece = [lent.head, lent.body].concat();
        session.sent(self.now, piece.len());
        piece
    }

    /// Returns everything that the connection writes now.
    fn written(&mut self, at: usize) -> String {
        let mut written = Vec::new();
        loop {
            let piece = self.piece(at);
            if piece.is_empty() {
                return String::from_utf8(written).unwrap();
            }
            written.extend(piece);
        }
    }

    fn open(&mut self, at: usize) {
        self.node.http(at).unwrap().open(self.now);
    }

    /// Sends a request on a new connection. Returns the answer's body, after the status unless 200.
    #[track_caller]
    fn ask(&mut self, request: &str, body: &[u8]) -> String {
        let len = body.len();
        let head = format!("{request} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n");
        self.open(0);
        let all = [head.as_bytes(), body].concat();
        assert_eq!(self.take(0, &all), all.len(), "the request is held");
        let answer = self.written(0);
        let why = Closed::Local;
        self.node.http(0).unwrap().closed(self.now, why);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.strip_prefix("HTTP/1.0 ").unwrap().split(' ').next().unwrap();
        if status == "200" { body.to_owned() } else { format!("{status} {body}") }
    }

    fn after(&mut self, seconds: u32) {
        self.now = self.now.after(Span::from_secs(seconds));
        for at in 0..self.node.http_clients() {
            self.node.http(at).unwrap().tick(self.now);
        }
    }

    fn free(&self) -> (u32, u32) {
        let status = self.node.store();
        (status.free, status.promised)
    }

    /// Connects a client that sends `bytes` after its magic.
    fn client(&mut self, at: usize, bytes: &[u8]) {
        let mut session = self.node.client(at).unwrap();
        session.accepted(self.now, SocketAddr::from(([10, 0, 0, 1], 50_000 + at as u16)));
        session.take(self.now, &[b"  V2", bytes].concat());
        while !session.transmit(self.now).is_empty() {
            let len = session.transmit(self.now).len();
            session.sent(self.now, len);
        }
    }
}

#[track_caller]
fn check_json(json: &str) {
    let mut scanner = Scanner::<8>::new();
    let mut input = json.as_bytes();
    while scanner.next(&mut input).unwrap().is_some() {}
    assert!(scanner.finished(), "{json}");
}

/// Each client's object in `/stats` describes one client, even if another takes the slot meanwhile.
#[test]
fn stats_do_not_mix_a_client_with_its_successor_in_the_slot() {
    let mut replaced = 0;
    // The length of the names decides at which byte one piece ends and the next begins.
    for len in 1..=64 {
        for after in 0..3 {
            let mut world = small();
            let mine = "t".repeat(len);
            let clients = world.node.clients();
            for at in 0..clients {
                world.client(at, format!("PUB {mine}\n\0\0\0\x02hi").as_bytes());
            }
            world.open(0);
            world.take(0, b"GET /stats?format=json HTTP/1.0\r\n\r\n");
            let first: Vec<u8> = (0..=after).flat_map(|_| world.piece(0)).collect();
            for at in 0..clients {
                let from = SocketAddr::from(([10, 0, 0, 2], 60_000 + at as u16));
                let mut session = world.node.client(at).unwrap();
                session.closed(world.now, Closed::Local);
                session.accepted(world.now, from);
                session.take(world.now, b"  V2PUB other\n\0\0\0\x02hi");
            }
            let rest = world.written(0);
            replaced += u32::from(!rest.is_empty());
            let text = String::from_utf8(first).unwrap() + &rest;
            for client in text.split("remote_address").skip(1) {
                let is_first = client.starts_with("\":\"10.0.0.1");
                let has_other = client.contains("\"topic\":\"other\"");
                assert!(!(is_first && has_other), "{len}, after {after} pieces: {text}");
            }
        }
    }
    assert!(replaced > 100, "{replaced}");
}

#[test]
fn info_and_stats() {
    let mut world = small();
    assert_eq!(
        world.ask("GET /info", b""),
        r#"{"version":"1.3.0","broadcast_address":"127.0.0.1","hostname":"h","http_port":4151,"tcp_port":4150,"start_time":1795490923,"max_heartbeat_interval":60000000000,"max_output_buffer_size":65536,"max_output_buffer_timeout":30000000000,"max_deflate_level":6}"#
    );
    let head = r#"{"version":"1.3.0","health":"OK","start_time":1795490923,"topics":"#;
    let json = |world: &mut World, query| world.ask(&format!("GET /stats?format=json{query}"), b"");
    assert_eq!(json(&mut world, ""), format!(r#"{head}[],"producers":null}}"#));
    assert_eq!(json(&mut world, "&topic=t"), format!(r#"{head}null,"producers":null}}"#));
    world.client(0, b"SUB t c\nRDY 3\n");
    world.client(1, b"PUB t\n\0\0\0\x02hiPUB u#ephemeral\n\0\0\0\x03heyPUB t\n\0\0\0\x02hi");
    world.node.pause(world.now, &topic("u#ephemeral"), None).unwrap();
    let tail = r#""tls":false,"tls_cipher_suite":"","tls_version":"","tls_negotiated_protocol":"","tls_negotiated_protocol_is_mutual":false}"#;
    let latency = r#""e2e_processing_latency":{"count":0,"percentiles":null}}"#;
    let client = |port, state, rdy| {
        format!(
            r#"{{"client_id":"10.0.0.1","hostname":"10.0.0.1","version":"V2","remote_address":"10.0.0.1:{port}","state":{state},"ready_count":{rdy},"in_flight_count":0,"message_count":0,"finish_count":0,"requeue_count":0,"connect_ts":1795490983,"sample_rate":0,"deflate":false,"snappy":false,"user_agent":"","#
        )
    };
    let t = format!(
        r#"{{"topic_name":"t","channels":[{{"channel_name":"c","depth":2,"backend_depth":0,"in_flight_count":0,"deferred_count":0,"message_count":2,"requeue_count":0,"timeout_count":0,"client_count":1,"clients":[{}{tail}],"paused":false,{latency}],"depth":0,"backend_depth":0,"message_count":2,"message_bytes":4,"paused":false,{latency}"#,
        client(50_000, 3, 3),
    );
    let u = format!(
        r#"{{"topic_name":"u#ephemeral","channels":[],"depth":1,"backend_depth":0,"message_count":1,"message_bytes":3,"paused":true,{latency}"#
    );
    let producer =
        |counts: &str| format!(r#"{}"pub_counts":[{counts}],{tail}"#, client(50_001, 0, 0));
    let both = producer(r#"{"topic":"t","count":2},{"topic":"u#ephemeral","count":1}"#);
    assert_eq!(json(&mut world, ""), format!(r#"{head}[{t},{u}],"producers":[{both}]}}"#));
    let one = producer(r#"{"topic":"t","count":2}"#);
    assert_eq!(json(&mut world, "&topic=t"), format!(r#"{head}[{t}],"producers":[{one}]}}"#));
    assert_eq!(json(&mut world, "&channel=d"), format!(r#"{head}[],"producers":[{both}]}}"#));
    let text = world.ask("GET /stats", b"");
    let version = env!("CARGO_PKG_VERSION");
    world.now = world.now.after(Span::from_secs(3723));
    assert_eq!(
        text,
        format!(
            "nsqd v1.3.0 (nanonsq {version})\nstart_time 2026-11-24T03:28:43Z\nuptime 1m0s\n\n\
             Health: OK\n\nTopics:\n   \
             [t              ] depth: 0     be-depth: 0     msgs: 2        e2e%: \n      \
             [c                        ] depth: 2     be-depth: 0     inflt: 0    def: 0    re-q: 0     timeout: 0     msgs: 2        e2e%: \n        \
             [V2 10.0.0.1:50000       ] state: 3 inflt: 0    rdy: 3    fin: 0        re-q: 0        msgs: 0        connected: 0s\n\n\
             *P [u#ephemeral    ] depth: 1     be-depth: 0     msgs: 1        e2e%: \n\n\
             Producers:\n   \
             [V2 10.0.0.1:50001       ] msgs: 3        topics: t=2,u#ephemeral=1 connected: 0s\n"
        )
    );
    assert!(world.ask("GET /stats", b"").ends_with("connected: 1h2m3s\n"));
}

#[test]
fn a_publisher_waits_for_room() {
    // No part of the store is reserved.
    let whole = Config {
        reserve_percent: 0,
        announced_percent: 100,
        unconsumed_percent: 100,
        ..Config::new()
    };
    let mut world = with(1 << 10, whole);
    let body = [b'x'; 300];
    let mut count = 0;
    while world.node.publish(world.now, &topic("t"), &body).is_ok() {
        count += 1;
    }
    assert!(count > 1);
    let free = world.free();
    let head = "POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 300\r\n\r\n";
    world.open(0);
    assert_eq!(world.take(0, head.as_bytes()), head.len());
    assert_eq!(world.take(0, &body), 0);
    let version = world.node.version();
    assert_eq!(world.written(0), "");
    world.after(4);
    // Emptying the topic frees room and changes the version.
    world.node.empty(world.now, &topic("t"), None).unwrap();
    assert_ne!(world.node.version(), version);
    assert_eq!(world.take(0, &body), 300);
    assert!(world.written(0).ends_with("\r\n\r\nOK"));
    assert_eq!(world.node.counters().waits, 1);

    // Without room, the request is refused after `publish_wait`.
    while world.node.publish(world.now, &topic("t"), &body).is_ok() {}
    assert_eq!(world.take(0, head.as_bytes()), head.len());
    assert_eq!(world.take(0, &body), 0);
    world.after(5);
    let answer = world.written(0);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.ends_with(r#"{"message":"BUSY"}"#), "{answer}");
    assert_eq!(world.free(), free);
    world.node.http(0).unwrap().closed(world.now, Closed::Local);

    // A batch of which only a part fits leaves no message and creates no topic.
    world.node.delete(world.now, &topic("t"), None).unwrap();
    let before = world.free();
    for (path, body) in [
        ("/mpub?topic=many", b"some words that fill a line\n".repeat(100)),
        (
            "/mpub?topic=many&binary=true",
            [&100u32.to_be_bytes()[..], &b"\0\0\0\x01a".repeat(100)].concat(),
        ),
    ] {
        world.open(0);
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        world.take(0, head.as_bytes());
        let taken = world.take(0, &body);
        world.take(0, &body[taken..]);
        world.after(5);
        assert!(world.written(0).starts_with("HTTP/1.1 "), "{path}");
        assert_eq!(world.free(), before, "{path}");
        world.node.http(0).unwrap().closed(world.now, Closed::Local);
        assert_eq!(world.node.topics().count(), 0);
    }
}

#[test]
fn a_request_that_breaks_off_leaves_nothing() {
    let mut world = small();
    let before = world.free();
    let scripts = [
        ("/pub?topic=t", b"hello".to_vec()),
        ("/mpub?topic=t", b"one\ntwo\nthree".to_vec()),
        ("/mpub?topic=t&binary=true", b"\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc".to_vec()),
    ];
    for (path, body) in scripts {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let request = [head.as_bytes(), &body].concat();
        for at in 0..request.len() {
            world.open(0);
            world.take(0, &request[..at]);
            world.node.http(0).unwrap().closed(world.now, Closed::Peer);
            assert_eq!(world.free(), before, "{path} cut at {at}");
            assert_eq!(world.node.topics().count(), 0);
        }
        // The whole request, in two pieces.
        for at in 0..=request.len() {
            world.open(0);
            world.take(0, &request[..at]);
            world.take(0, &request[at..]);
            assert!(world.written(0).ends_with("\r\n\r\nOK"), "{path} split at {at}");
            let count = world.node.topics().next().unwrap().messages;
            assert_eq!(
                count,
                if path == "/pub?topic=t" {
                    1
                } else if path.ends_with("true") {
                    2
                } else {
                    3
                }
            );
            world.node.delete(world.now, &topic("t"), None).unwrap();
            assert_eq!(world.free(), before);
        }
    }
}

#[test]
fn a_request_over_a_limit_is_refused_and_creates_nothing() {
    let limits = Limits { max_msg_size: 10, max_body_size: 40, ..Limits::NSQD };
    let mut world = world(1 << 14, limits);
    let too_big = r#"413 {"message":"MSG_TOO_BIG"}"#;
    assert_eq!(world.ask("POST /pub?topic=t", &[b'x'; 10]), "OK");
    assert_eq!(world.ask("POST /pub?topic=u", &[b'x'; 11]), too_big);
    assert_eq!(world.ask("POST /mpub?topic=u", b"ok\n12345678901\nok"), too_big);
    assert_eq!(world.ask("POST /mpub?topic=u", &[b'\n'; 41]), r#"413 {"message":"BODY_TOO_BIG"}"#);
    let bad = r#"400 {"message":"INVALID_DEFER"}"#;
    assert_eq!(world.ask("POST /pub?topic=u&defer=3600001", b"x"), bad);
    assert_eq!(world.ask("POST /pub?topic=t&defer=3600000", b"x"), "OK");
    assert_eq!(world.node.topics().count(), 1);
    for name in ["u", "v"] {
        assert_eq!(world.ask(&format!("POST /topic/create?topic={name}"), b""), "");
    }
    let full = r#"503 {"message":"TOO_MANY_TOPICS"}"#;
    assert_eq!(world.ask("POST /topic/create?topic=w", b""), full);
    // Empty topics made over HTTP are evicted for a publisher, not for another `/topic/create`.
    assert_eq!(world.ask("POST /pub?topic=w", b"x"), "OK");
    assert_eq!(world.ask("POST /topic/create?topic=u", b""), full);
    assert_eq!(world.ask("POST /channel/create?topic=v&channel=a", b""), "");
    let with_channel = world.ask("POST /pub?topic=u", b"x");
    assert_eq!(with_channel, full, "a topic with a channel made over HTTP stays");
    world.node.delete(world.now, &topic("w"), None).unwrap();
    assert_eq!(world.ask("POST /topic/create?topic=u", b""), "");
    assert_eq!(world.ask("POST /channel/create?topic=u&channel=a", b""), "");
    assert_eq!(world.ask("POST /pub?topic=w", b"x"), full);
    assert_eq!(world.ask("POST /mpub?topic=w", b"x"), full);
    // A topic has room for two channels.
    for name in ["a", "b"] {
        assert_eq!(world.ask(&format!("POST /channel/create?topic=t&channel={name}"), b""), "");
    }
    let full = r#"503 {"message":"TOO_MANY_CHANNELS_OF_TOPIC"}"#;
    assert_eq!(world.ask("POST /channel/create?topic=t&channel=c", b""), full);
    assert_eq!(world.node.channels(&topic("t")).count(), 2);
    // The configured limit is announced.
    let announced = world.node.limits().max_msg_size;
    assert_eq!(announced, 10);
}

#[test]
fn nsqlookupds_are_set_as_a_whole_or_not_at_all() {
    let mut world = small();
    let show = |world: &mut World| world.ask("GET /config/nsqlookupd_tcp_addresses", b"");
    assert_eq!(show(&mut world), r#"["127.0.0.1:4160"]"#);
    let set = "PUT /config/nsqlookupd_tcp_addresses";
    let (version, topology) = (world.node.lookupds_version(), world.node.topology());
    for (body, status) in [
        (r#"["a:1","b"]"#, "400"),
        (r#"["a:1","b:0"]"#, "400"),
        (r#"["a:1",["b:1"]]"#, "400"),
        (r#"["a:1""#, "400"),
        (r#"["a:1"]]"#, "400"),
        (r#""a:1""#, "400"),
        (r#"["a:1","b:1","c:1"]"#, "413"),
        ("", "413"),
        (&" ".repeat(1025), "413"),
    ] {
        assert!(world.ask(set, body.as_bytes()).starts_with(status), "{body}");
        assert_eq!(show(&mut world), r#"["127.0.0.1:4160"]"#);
    }
    assert_eq!(world.node.lookupds_version(), version);
    let before = world.node.version();
    assert_eq!(world.ask(set, br#"["a:1","[::1]:2"]"#), r#"["a:1","[::1]:2"]"#);
    assert_ne!(world.node.lookupds_version(), version);
    assert_ne!(world.node.version(), before);
    assert_eq!(world.node.topology(), topology);
    assert_eq!(world.node.lookupds(), ["a:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
    assert_eq!(world.ask(set, b"null"), "[]");
    assert_eq!(world.node.lookupds(), []);
    assert_eq!(world.ask("PUT /config/msg_timeout", b"1"), r#"400 {"message":"INVALID_OPTION"}"#);
    let three = ["a:1".parse().unwrap(), "b:1".parse().unwrap(), "c:1".parse().unwrap()];
    let storage = Box::leak(Box::new(HttpStorage::<1, 2>::new()));
    let set = world.node.answer_http(const { &HTTP }, storage, &three);
    assert_eq!(set, Err(TooManyLookupds { max: 2 }));
}

#[test]
fn stats_stay_well_formed_while_the_tables_change() {
    let mut seed = 5u32;
    let mut random = move |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    let mut most = 0;
    for round in 0..200 {
        let mut world = small();
        let name = |at: u32| topic(&format!("{at}{}", "n".repeat(60)));
        let channel = |at: u32| ChannelName::new(&format!("{at}{}", "c".repeat(60))).unwrap();
        for at in 0..3 {
            world.node.create(world.now, &name(at), None).unwrap();
            let _ = world.node.create(world.now, &name(at), Some(&channel(at)));
        }
        let long = "\\\"".repeat(40);
        let identify = format!(
            r#"{{"client_id":"{long}","hostname":"{long}","user_agent":"{long}","topology_region":"{long}","topology_zone":"{long}"}}"#
        );
        let len = (identify.len() as u32).to_be_bytes();
        let hello = [b"IDENTIFY\n", &len[..], identify.as_bytes()].concat();
        let publish = |topics: &[u32]| -> Vec<u8> {
            topics
                .iter()
                .flat_map(|at| format!("PUB {}\n\0\0\0\x01x", name(*at)).into_bytes())
                .collect()
        };
        let arrive = |world: &mut World, at: usize, random: &mut dyn FnMut(u32) -> u32| {
            world.node.client(at).unwrap().closed(world.now, Closed::Peer);
            let sub = format!("SUB {} {}\n", name(random(3)), channel(random(2)));
            let then = if at == 0 { sub.into_bytes() } else { Vec::new() };
            world.client(at, &[&hello[..], &then, &publish(&[0, 1, 2])].concat());
        };
        for at in 0..3 {
            arrive(&mut world, at, &mut random);
        }
        let format = if round % 2 == 0 { "json" } else { "text" };
        let request = format!("GET /stats?format={format} HTTP/1.0\r\n\r\n");
        world.open(0);
        world.take(0, request.as_bytes());
        let (mut answer, mut pieces) = (Vec::new(), 0);
        loop {
            let mut session = world.node.http(0).unwrap();
            let lent = session.transmit(world.now);
            let piece = [lent.head, lent.body].concat();
            session.sent(world.now, piece.len());
            answer.extend(&piece);
            pieces += 1;
            if session.link() == Link::Close {
                break;
            }
            match random(4) {
                0 => {
                    let _ = world.node.delete(world.now, &name(random(3)), None);
                }
                1 => {
                    let _ = world.node.create(world.now, &name(random(4)), None);
                    let _ =
                        world.node.create(world.now, &name(random(4)), Some(&channel(random(2))));
                }
                2 => arrive(&mut world, random(3) as usize, &mut random),
                _ => {}
            }
        }
        most = most.max(pieces);
        let answer = String::from_utf8(answer).unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        if format == "json" {
            check_json(body);
            let (all, latencies) = ("_name\":", "\"e2e_processing_latency\":{");
            assert_eq!(body.matches(all).count(), body.matches(latencies).count());
            assert_eq!(
                body.matches("\"client_id\"").count(),
                body.matches("\"tls\":false").count()
            );
        } else {
            assert!(body.contains("\nProducers:") && body.ends_with('\n'), "{body}");
        }
    }
    assert!(most > 4, "{most}");
}

#[test]
fn garbage_leaves_no_blocks_taken() {
    let good = b"POST /mpub?topic=t&binary=true HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\n\r\n\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc...\
                 PUT /config/nsqlookupd_tcp_addresses HTTP/1.1\r\nHost: x\r\nContent-Length: 7\r\n\r\n[\"a:1\"]\
                 POST /mpub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na\nb\
                 GET /stats?format=json&topic=t HTTP/1.1\r\nHost: x\r\n\r\nPOST /topic/delete?topic=t HTTP/1.1\r\nHost: x\r\n\r\n";
    let mut world = small();
    let before = world.free();
    let mut seed = 11u32;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    for _ in 0..10_000 {
        let mut bytes = good.to_vec();
        for _ in 0..random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b" %\n\r:;?&/0\""[random(11)]),
            }
        }
        world.open(0);
        let mut rest = &bytes[..];
        for _ in 0..40 {
            let piece = &rest[..rest.len().min(1 + random(60))];
            let taken = world.take(0, piece);
            rest = &rest[taken..];
            let _ = world.written(0);
        }
        world.node.http(0).unwrap().closed(world.now, Closed::Peer);
        let topics: Vec<_> = world.node.topics().map(|topic| *topic.name).collect();
        for name in topics {
            world.node.delete(world.now, &name, None).unwrap();
        }
        assert_eq!(world.free(), before, "{}", bytes.escape_ascii());
    }
}

#[test]
fn a_store_that_is_full_for_the_application_is_full_for_http() {
    let mut world = world(256, Limits::NSQD);
    while world.node.publish(world.now, &topic("t"), b"x").is_ok() {}
    assert_eq!(world.node.publish(world.now, &topic("t"), b"x"), Err(PublishError::Full));
    world.open(0);
    let head = "POST /pub?topic=t HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx";
    assert_eq!(world.take(0, head.as_bytes()), head.len() - 1);
}

#[test]
fn metrics_have_what_stats_have() {
    let mut world = small();
    let (t, u, c) = (topic("t"), topic("u"), ChannelName::new("c").unwrap());
    for (topic, channel) in [(&t, None), (&t, Some(&c)), (&u, None)] {
        world.node.create(world.now, topic, channel).unwrap();
    }
    assert_eq!(world.ask("POST /pub?topic=t", b"hello"), "OK");
    assert_eq!(world.ask("POST /pub?topic=u", b"hi"), "OK");
    // The longest client's name, of which each character is escaped.
    let identify = format!(r#"{{"client_id":"{}"}}"#, "\\\"".repeat(40));
    let len = (identify.len() as u32).to_be_bytes();
    let sub = [b"IDENTIFY\n", &len[..], identify.as_bytes(), b"SUB t c\nRDY 3\n"].concat();
    world.client(0, &sub);
    let series = prometheus::parse(&world.ask("GET /metrics", b""));
    let client = format!(
        r#"{{topic="t",channel="c",client_id="{}",address="10.0.0.1:50000"}}"#,
        "\\\"".repeat(32)
    );
    for (name, labels, value) in [
        ("nsqd_messages_total", "", 2.0),
        ("nsqd_deliveries_total", "", 1.0),
        ("nsqd_clients", "", 1.0),
        ("nsqd_topic_depth", r#"{topic="u"}"#, 1.0),
        ("nsqd_topic_bytes_total", r#"{topic="t"}"#, 5.0),
        ("nsqd_channel_in_flight", r#"{topic="t",channel="c"}"#, 1.0),
        ("nsqd_channel_clients", r#"{topic="t",channel="c"}"#, 1.0),
        ("nsqd_client_ready", &client, 3.0),
        ("nsqd_client_messages_total", &client, 1.0),
    ] {
        assert_eq!(series.get(&format!("{name}{labels}")), Some(&value), "{name}: {series:?}");
    }
    // 11 of the node, 5 of each topic, 9 of each channel, 5 of each client.
    assert_eq!(series.len(), 11 + 2 * 5 + 9 + 5);
}

/// Every sample fits a piece, whatever the names are.
#[test]
fn the_longest_names_fit_metrics() {
    let mut world = small();
    let client = |at: u32| {
        let identify = format!(r#"{{"client_id":"{}"}}"#, "\\\"".repeat(40));
        let (topic, channel) = (format!("{at}{}", "t".repeat(63)), "c".repeat(64));
        let len = (identify.len() as u32).to_be_bytes();
        let sub = format!("SUB {topic} {channel}\n");
        [b"IDENTIFY\n", &len[..], identify.as_bytes(), sub.as_bytes()].concat()
    };
    for at in 0..3 {
        world.client(at, &client(at as u32));
    }
    let series = prometheus::parse(&world.ask("GET /metrics", b""));
    assert_eq!(series.len(), 11 + 3 * (5 + 9 + 5));
}
