//! A node and nsqd give the same HTTP responses: scripts of requests, with clients that come and
//! go, are sent to both, and every response is compared.
//!
//! `SEEDS=5000 cargo test --release -p nanonsq-sim --test node_http` replays more of them.

mod exchange;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use exchange::{Answer, LIMIT, ask, exchange, in_order, is_address};
use nanonsq_core::nsqd::{Config, HttpConfig, HttpStorage, Nsqd, Storage};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::Instant;
use nanonsq_core::wire::nsqd::Limits;
use nanonsq_models::random::Random;
use nanonsq_tests::{Nsqd as RealNsqd, ServerOptions, eventually, require_peers};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The number of scripts, and the steps of each.
const SCRIPTS: u64 = 100;
const STEPS: u64 = 25;

/// Small limits, so that requests reach them; nsqd is started with the same.
const MESSAGE_MAX: u32 = 300;
const BODY_MAX: u32 = 400;
const RDY_MAX: usize = 16;

/// A subscriber and a producer.
const CLIENTS: usize = 2;

/// The most attempts while nsqd moves and counts messages in the background.
const PATIENCE: usize = 100;

const REQUESTS: &[(&str, &str)] = &[
    ("GET /ping", ""),
    ("GET /info", ""),
    ("GET /stats?format=json&include_mem=false", ""),
    ("GET /stats?format=json&include_mem=false", ""),
    ("GET /stats?format=json&include_mem=false&include_clients=false", ""),
    ("GET /stats?format=json&include_mem=false&topic=t", ""),
    ("GET /stats?format=json&include_mem=false&topic=u", ""),
    ("GET /stats?format=json&include_mem=false&topic=t&channel=c", ""),
    ("GET /stats?format=json&include_mem=false&channel=c&include_clients=0", ""),
    ("GET /stats?format=json&include_mem=false&channel=never", ""),
    ("GET /stats?format=json&include_mem=false&topic=never", ""),
    ("GET /stats?format=json&include_mem=false&topic=&include_clients=x", ""),
    ("GET /stats?format=json&include_mem=false&topic=%", ""),
    ("GET /stats?include_mem=false", ""),
    ("GET /stats?include_mem=false", ""),
    ("GET /stats?format=text&include_mem=false&topic=t", ""),
    ("GET /stats?include_mem=false&channel=c&include_clients=false", ""),
    ("GET /stats?include_mem=false&topic=never", ""),
    ("POST /pub?topic=t", "hello"),
    ("POST /pub?topic=u", "hello"),
    ("POST /pub?topic=t&defer=100000", "later"),
    ("POST /pub?topic=t&defer=0", "now"),
    ("POST /pub?topic=t&defer=3600001", "never"),
    ("POST /pub?topic=t&defer=-1", "never"),
    ("POST /pub?topic=t&defer=x", "never"),
    ("POST /pub?topic=t", ""),
    ("POST /pub", "hello"),
    ("POST /pub", ""),
    ("POST /pub?topic=$", "hello"),
    ("POST /pub?topic=%zz", "hello"),
    ("POST /pub?topic=t", "*300"),
    ("POST /pub?topic=t", "*301"),
    ("POST /mpub?topic=t", "one\ntwo\n\nthree"),
    ("POST /mpub?topic=t", "one\n"),
    ("POST /mpub?topic=u", "\n\n"),
    ("POST /mpub?topic=t&binary=false", "one\r\ntwo"),
    ("POST /mpub?topic=t", "one\n*301"),
    ("POST /mpub?topic=t", "*401"),
    ("POST /mpub", "one"),
    ("POST /mpub?topic=$", "one"),
    ("POST /mpub?topic=t&binary=true", "\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc"),
    ("POST /mpub?topic=t&binary=1", "\0\0\0\x01\0\0\0\x01a and more"),
    ("POST /mpub?topic=t&binary=yes", "\0\0\0\x02\0\0\0\x01a\0\0\0\x02b"),
    ("POST /mpub?topic=t&binary=true", "\0\0\0\x02\0\0\0\x01a\0\0\0"),
    ("POST /mpub?topic=t&binary=true", "\0\0\0\x02\0\0\0\x01a\0\0\0\0"),
    ("POST /mpub?topic=t&binary=true", "\0\0\0\x02\0\0\0\x01a\0\0\x01\x2dx"),
    ("POST /mpub?topic=t&binary=true", "\0\0\0\0\0"),
    ("POST /mpub?topic=t&binary=true", "\0\0\0\x50\0"),
    ("POST /mpub?topic=t&binary=true", "\0\0"),
    ("POST /topic/create?topic=u", ""),
    ("POST /topic/create?topic=w%23ephemeral", ""),
    ("POST /topic/create?topic=$", ""),
    ("POST /topic/create", ""),
    ("POST /topic/delete?topic=u", ""),
    ("POST /topic/delete?topic=never", ""),
    ("POST /topic/delete?topic=$", ""),
    ("POST /topic/delete", ""),
    ("POST /topic/empty?topic=t", ""),
    ("POST /topic/empty?topic=u", ""),
    ("POST /topic/empty?topic=$", ""),
    ("POST /topic/empty?topic=never", ""),
    ("POST /topic/empty", ""),
    ("POST /topic/pause?topic=t", ""),
    ("POST /topic/pause?topic=u", ""),
    ("POST /topic/pause?topic=$", ""),
    ("POST /topic/pause?topic=never", ""),
    ("POST /topic/pause", ""),
    ("POST /topic/unpause?topic=t", ""),
    ("POST /topic/unpause?topic=never", ""),
    ("POST /topic/unpause", ""),
    ("POST /channel/create?topic=t&channel=c", ""),
    ("POST /channel/create?topic=t&channel=a", "a body that nobody wants"),
    ("POST /channel/create?topic=u&channel=c", ""),
    ("POST /channel/create?topic=never&channel=c", ""),
    ("POST /channel/create?topic=t&channel=$", ""),
    ("POST /channel/create?topic=$&channel=c", ""),
    ("POST /channel/create?topic=t", ""),
    ("POST /channel/create?channel=c", ""),
    ("POST /channel/create?topic=%&channel=c", ""),
    ("POST /channel/delete?topic=t&channel=a", ""),
    ("POST /channel/delete?topic=t&channel=never", ""),
    ("POST /channel/delete?topic=never&channel=a", ""),
    ("POST /channel/empty?topic=t&channel=c", ""),
    ("POST /channel/empty?topic=t&channel=never", ""),
    ("POST /channel/empty?topic=t&channel=", ""),
    ("POST /channel/pause?topic=t&channel=c", ""),
    ("POST /channel/pause?topic=u&channel=c", ""),
    ("POST /channel/pause?topic=t", ""),
    ("POST /channel/unpause?topic=t&channel=c", ""),
    ("POST /channel/unpause?topic=t&channel=never", ""),
    ("GET /config/nsqlookupd_tcp_addresses", ""),
    ("PUT /config/nsqlookupd_tcp_addresses", "[]"),
    ("PUT /config/nsqlookupd_tcp_addresses", "[\"127.0.0.1:1\"]"),
    ("PUT /config/nsqlookupd_tcp_addresses", " [ \"127.0.0.1:1\" , \"[::1]:2\" ] "),
    ("PUT /config/nsqlookupd_tcp_addresses", "{}"),
    ("PUT /config/nsqlookupd_tcp_addresses", "[1]"),
    ("PUT /config/nsqlookupd_tcp_addresses", "[\"127.0.0.1:1\"] x"),
    ("PUT /config/nsqlookupd_tcp_addresses", "[\"127.0.0.1:1\""),
    ("PUT /config/nsqlookupd_tcp_addresses", ""),
    ("PUT /config/never", "[]"),
    ("GET /config/never", ""),
    ("GET /config/", ""),
    ("GET /config/broadcast_address", ""),
    ("GET /config/msg_timeout", ""),
    ("GET /config/max_msg_timeout", ""),
    ("GET /config/max_msg_size", ""),
    ("GET /config/max_req_timeout", ""),
    ("GET /config/max_body_size", ""),
    ("GET /config/max_heartbeat_interval", ""),
    ("GET /config/max_rdy_count", ""),
    ("GET /config/max_output_buffer_size", ""),
    ("GET /config/max_output_buffer_timeout", ""),
    ("GET /config/min_output_buffer_timeout", ""),
    ("GET /config/max_channel_consumers", ""),
    ("GET /config/e2e_processing_latency_percentiles", ""),
    ("GET /config/tls_required", ""),
    ("GET /config/deflate", ""),
    ("GET /config/snappy", ""),
    ("POST /config/deflate", ""),
    ("GET /pub?topic=t", ""),
    ("HEAD /stats", ""),
    ("OPTIONS /pub", ""),
    ("GET /never", ""),
];

/// One step of a script.
#[derive(Debug)]
enum Step {
    /// A client connects and sends these bytes.
    Arrive(usize, Vec<u8>),
    Leave(usize),
    Ask(&'static str, String),
}

fn script(random: &mut Random) -> Vec<Step> {
    let mut present = [false; CLIENTS];
    let mut steps = vec![Step::Ask("POST /topic/create?topic=t", String::new())];
    steps.extend((1..STEPS).map(|_| {
        if !random.one_in(5) {
            let (request, body) = REQUESTS[random.below(REQUESTS.len() as u64) as usize];
            let (front, long) = body.split_once('*').unwrap_or((body, "0"));
            let long = "x".repeat(long.parse().expect("a length"));
            return Step::Ask(request, format!("{front}{long}"));
        }
        let client = random.below(CLIENTS as u64) as usize;
        present[client] = !present[client];
        if !present[client] {
            return Step::Leave(client);
        }
        let identify = br#"{"client_id":"i","hostname":"h\\","user_agent":"ua/1","sample_rate":7}"#;
        let len = (identify.len() as u32).to_be_bytes();
        let hello = [b"IDENTIFY\n", &len[..], identify].concat();
        let hello = if random.one_in(2) { hello } else { Vec::new() };
        let then: &[u8] = if client == 0 { b"SUB t s\n" } else { b"PUB t\n\0\0\0\x02hi" };
        Step::Arrive(client, [b"  V2", &hello[..], then].concat())
    }));
    steps
}

#[tokio::test]
async fn a_node_and_nsqd_give_the_same_http_responses() {
    let peers = require_peers!();
    let options = ServerOptions::new()
        .flag(format!("--max-msg-size={MESSAGE_MAX}"))
        .flag(format!("--max-body-size={BODY_MAX}"))
        .flag(format!("--max-rdy-count={RDY_MAX}"))
        .flag("--deflate=false")
        .flag("--snappy=false");
    let real = RealNsqd::start(&peers, options).await;
    let scripts = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SCRIPTS);
    let mut seen = BTreeMap::<String, u64>::new();
    for seed in 0..scripts {
        let mut random = Random::new(seed);
        let mut ours = Ours::new();
        let mut theirs = Theirs::new(real.tcp_address(), real.http_address());
        let mut done = String::new();
        for step in script(&mut random) {
            done.push_str(&format!("{step:?}\n"));
            match step {
                Step::Arrive(client, hello) => {
                    let response = ours.arrive(client, &hello);
                    theirs.arrive(client, &hello, response.len()).await;
                }
                Step::Leave(client) => {
                    ours.leave(client);
                    theirs.leave(client).await;
                }
                Step::Ask(line, body) => {
                    let len = body.len();
                    let request = format!(
                        "{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                         Content-Length: {len}\r\n\r\n{body}"
                    );
                    let our = scrub(&ours.ask(request.as_bytes()));
                    let is_stats = line.starts_with("GET /stats");
                    let mut their = String::new();
                    for _ in 0..if is_stats { PATIENCE } else { 1 } {
                        their = scrub(&ask(real.http_address(), request.as_bytes()).await);
                        if our == their {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(5)).await;
                    }
                    assert_eq!(our, their, "node and nsqd, seed {seed}, after\n{done}");
                    let kind = our.split('\n').next().unwrap_or_default().to_owned();
                    *seen.entry(kind).or_default() += 1;
                }
            }
            theirs.settle(&mut ours).await;
        }
        theirs.clear().await;
    }
    println!("{seen:#?}");
    let lines = ["200 OK", "400 Bad Request", "404 Not Found", "413 "];
    for line in lines {
        let line = format!("HTTP/1.1 {line}");
        let count: u64 = seen.iter().filter(|(is, _)| is.starts_with(&line)).map(|(_, n)| n).sum();
        assert!(count > scripts, "{line} {count}");
    }
}

/// A node that the test drives.
struct Ours {
    node: Nsqd<'static>,
    now: Instant,
}

impl Ours {
    fn new() -> Self {
        let limits = Limits { max_msg_size: MESSAGE_MAX, max_body_size: BODY_MAX, ..Limits::NSQD };
        let config = Config { limits, channels_per_topic: 8, ..Config::new() };
        let config = Box::leak(Box::new(config));
        let storage = Box::leak(Box::new(Storage::<8, 16, CLIENTS, RDY_MAX>::new()));
        let store = Box::leak(vec![0; 1 << 18].into_boxed_slice());
        let mut node = Nsqd::new(config, storage, store).expect("settings that are right");
        let http = Box::leak(Box::new(HttpStorage::<1, 2>::new()));
        const HTTP: &HttpConfig<'_> = &HttpConfig::new();
        node.answer_http(HTTP, http, &[]).expect("none is not too many");
        let now = Instant::from_millis(1_000);
        node.set_unix_time(now, 1_795_490_983_000_000_000);
        Self { node, now }
    }

    fn arrive(&mut self, client: usize, hello: &[u8]) -> Vec<u8> {
        let mut session = self.node.client(client).expect("a slot");
        session.accepted(self.now, SocketAddr::from(([127, 0, 0, 1], 40_000)));
        exchange(&mut session, self.now, hello)
    }

    fn leave(&mut self, client: usize) {
        self.node.client(client).expect("a slot").closed(self.now, Closed::Peer);
    }

    fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        let mut session = self.node.http(0).expect("a slot");
        session.open(self.now);
        let answer = exchange(&mut session, self.now, request);
        assert_eq!(session.link(), Link::Close, "the request asks to close");
        session.closed(self.now, Closed::Local);
        answer
    }
}

/// A real nsqd, and connections to it.
struct Theirs {
    tcp: SocketAddr,
    http: SocketAddr,
    clients: [Option<TcpStream>; CLIENTS],
}

const STATS: &str = "GET /stats?format=json&include_mem=false HTTP/1.1\r\nHost: x\r\n\
                     Connection: close\r\nContent-Length: 0\r\n\r\n";

impl Theirs {
    fn new(tcp: SocketAddr, http: SocketAddr) -> Self {
        Self { tcp, http, clients: [const { None }; CLIENTS] }
    }

    /// Waits for a response as long as the node's: nsqd has then processed everything.
    async fn arrive(&mut self, client: usize, hello: &[u8], len: usize) {
        let conversation = async {
            let mut stream = TcpStream::connect(self.tcp).await?;
            stream.write_all(hello).await?;
            let mut answer = vec![0; len];
            stream.read_exact(&mut answer).await?;
            std::io::Result::Ok(stream)
        };
        let stream = tokio::time::timeout(LIMIT, conversation).await.expect("an answer");
        self.clients[client] = Some(stream.expect("a whole answer"));
    }

    async fn leave(&mut self, client: usize) {
        self.clients[client] = None;
    }

    /// Waits until nsqd has finished its background work.
    async fn settle(&mut self, ours: &mut Ours) {
        let our = scrub(&ours.ask(STATS.as_bytes()));
        let mut their = String::new();
        for _ in 0..PATIENCE {
            their = scrub(&ask(self.http, STATS.as_bytes()).await);
            if our == their {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(our, their, "nsqd's stats stay different");
    }

    /// Disconnects all clients and deletes all topics.
    async fn clear(&mut self) {
        self.clients = [const { None }; CLIENTS];
        for topic in ["t", "u", "w%23ephemeral"] {
            let request = format!(
                "POST /topic/delete?topic={topic} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            );
            ask(self.http, request.as_bytes()).await;
        }
        let none = "PUT /config/nsqlookupd_tcp_addresses HTTP/1.1\r\nHost: x\r\n\
                    Connection: close\r\nContent-Length: 2\r\n\r\n[]";
        ask(self.http, none.as_bytes()).await;
        eventually("an empty nsqd", LIMIT, async || {
            let stats = Answer::new(&ask(self.http, STATS.as_bytes()).await).json();
            stats.is_some_and(|stats| {
                stats["topics"].as_array().is_some_and(Vec::is_empty)
                    && stats["producers"].is_null()
            })
        })
        .await;
    }
}

/// Returns a response without what may differ: times, ports and the server's own names.
fn scrub(answer: &[u8]) -> String {
    let mut answer = Answer::new(answer);
    if answer.line.contains("200") {
        answer.forget_length();
    }
    if answer.body.starts_with("nsqd v") {
        return answer.show(&scrub_text(&answer.body));
    }
    let Some(json) = answer.json() else { return answer.show(&answer.body) };
    let json = in_order(json, &|key, value| match key {
        "remote_address" => is_address(&value),
        "start_time" | "connect_ts" => Value::from(value.as_i64() > Some(1_700_000_000)),
        "http_port" | "tcp_port" => Value::from(value.is_u64()),
        "hostname" if value.as_str().is_some_and(|name| !name.contains(['h', '.'])) => {
            Value::from("its own")
        }
        _ => value,
    });
    answer.show(&json.to_string())
}

/// Returns the text of `/stats` without times, and with the same port everywhere.
fn scrub_text(text: &str) -> String {
    let mut lines = text.lines();
    let head: Vec<_> = lines.by_ref().take(3).collect();
    assert!(head[0].starts_with("nsqd v1.3.0 (") && head[0].ends_with(')'), "{}", head[0]);
    let date = head[1].strip_prefix("start_time 20").expect("a date");
    assert!(date.len() == 18 && date.ends_with('Z'), "{date}");
    assert!(head[2].starts_with("uptime ") && head[2].ends_with('s'), "{}", head[2]);
    let scrub = |line: &str| {
        let Some((front, time)) = line.split_once(" connected: ") else { return line.to_owned() };
        assert!(time.ends_with('s'), "{time}");
        let (name, rest) = front.split_once(':').expect("a port");
        let port = rest.split(' ').next().expect("a port");
        assert_eq!(port.len(), 5, "ports of five digits keep the columns");
        format!("{name}:#####{}", &rest[5..])
    };
    let mut scrubbed: String = lines.map(|line| scrub(line) + "\n").collect();
    if !text.ends_with('\n') {
        scrubbed.pop();
    }
    scrubbed
}
