//! A directory responds as nsqlookupd does: scripts of nodes' commands and HTTP requests are sent
//! to both, and every response is compared.
//!
//! `SEEDS=5000 cargo test --release -p nanonsq-sim --test directory` replays more of them.

mod exchange;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use exchange::{Answer, LIMIT, ask, exchange, in_order, is_address};

use nanonsq_core::nsqlookupd::{Config, Nsqlookupd, Storage};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqlookupd::IdentifyReply;
use nanonsq_models::random::Random;
use nanonsq_tests::{Nsqlookupd as RealNsqlookupd, ServerOptions, eventually, require_peers};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The number of scripts, and the steps of each.
const SCRIPTS: u64 = 150;
const STEPS: u64 = 25;
/// The number of nodes.
const NODES: usize = 3;

const COMMANDS: &[&str] = &[
    "PING\n",
    "REGISTER t\n",
    "REGISTER t c\n",
    "REGISTER t c\n",
    "REGISTER t d#ephemeral\n",
    "REGISTER u c more\n",
    "REGISTER u d\r\n",
    "REGISTER e#ephemeral\n",
    "UNREGISTER t\n",
    "UNREGISTER t c\n",
    "UNREGISTER t d#ephemeral\n",
    "UNREGISTER u\n",
    "UNREGISTER u c\n",
    "UNREGISTER e#ephemeral\n",
    "UNREGISTER t  c\n",
    "UNREGISTER never c#ephemeral\n",
];

/// Commands that end the connection.
const REFUSED: &[&str] =
    &["REGISTER\n", "REGISTER $ c\n", "REGISTER t $\n", "register t\n", "IDENTIFY\n", "\n"];

const REQUESTS: &[&str] = &[
    "GET /ping",
    "GET /info",
    "GET /topics",
    "GET /topics?topic=%",
    "GET /nodes",
    "GET /nodes",
    "GET /debug",
    "GET /lookup",
    "GET /lookup?topic=t",
    "GET /lookup?topic=t&topic=u",
    "GET /lookup?channel=c&topic=u",
    "GET /lookup?topic=e%23ephemeral",
    "GET /lookup?topic=e#ephemeral",
    "GET /lookup?topic=",
    "GET /lookup?topic=$",
    "GET /lookup?topic=%zz",
    "GET /lookup?topic=t;u",
    "GET /channels",
    "GET /channels?topic=t",
    "GET /channels?topic=never",
    "GET /channels?topic=",
    "POST /topic/create?topic=t",
    "POST /topic/create?topic=v",
    "POST /topic/create?topic=v+w",
    "POST /topic/create?topic=",
    "POST /topic/create",
    "POST /topic/delete?topic=t",
    "POST /topic/delete?topic=u",
    "POST /topic/delete?topic=never",
    "POST /topic/delete?topic=$",
    "POST /topic/delete",
    "POST /channel/create?topic=t&channel=x",
    "POST /channel/create?topic=w&channel=x%23ephemeral",
    "POST /channel/create?topic=w",
    "POST /channel/create?topic=$&channel=x",
    "POST /channel/create?topic=w&channel=",
    "POST /channel/create?channel=x",
    "POST /channel/delete?topic=t&channel=c",
    "POST /channel/delete?topic=t&channel=x",
    "POST /channel/delete?topic=never&channel=x",
    "POST /channel/delete?topic=t&channel=%",
    "POST /channel/delete?topic=t&channel=$",
    "POST /channel/delete?topic=t",
    "POST /topic/tombstone?topic=t&node=node0:2",
    "POST /topic/tombstone?topic=t&node=node1%3A3",
    "POST /topic/tombstone?topic=u&node=node2:4",
    "POST /topic/tombstone?topic=t&node=node0%3A3",
    "POST /topic/tombstone?topic=t&node=node0:4",
    "POST /topic/tombstone?topic=t&node=node9:2",
    "POST /topic/tombstone?topic=t&node=",
    "POST /topic/tombstone?topic=$&node=node0:2",
    "POST /topic/tombstone?topic=t",
    "POST /topic/tombstone?node=node0:2",
    "GET /topic/create?topic=t",
    "POST /lookup?topic=t",
    "PUT /nodes",
    "HEAD /topics",
    "OPTIONS /topics",
    "OPTIONS /channel/delete",
    "OPTIONS /never",
    "DELETE /topics",
    "GET /never",
    "GET /",
    "GET /%74opics",
    "GET http://elsewhere/topics",
];

/// One step of a script.
#[derive(Debug)]
enum Step {
    /// A node connects and sends IDENTIFY.
    Arrive(usize, String),
    /// A node sends a command; true if that ends its connection.
    Send(usize, String, bool),
    /// A node disconnects.
    Leave(usize),
    Ask(String),
}

fn script(random: &mut Random) -> Vec<Step> {
    let mut present = [false; NODES];
    let mut next = || {
        let pick = |random: &mut Random, from: &[&str]| {
            from[random.below(from.len() as u64) as usize].to_owned()
        };
        let node = random.below(NODES as u64) as usize;
        if random.one_in(2) {
            return Step::Ask(pick(random, REQUESTS));
        }
        if !present[node] {
            present[node] = true;
            return Step::Arrive(node, identify(random, node));
        }
        if random.one_in(15) {
            present[node] = false;
            return Step::Leave(node);
        }
        if random.one_in(15) {
            present[node] = false;
            return Step::Send(node, pick(random, REFUSED), true);
        }
        Step::Send(node, pick(random, COMMANDS), false)
    };
    (0..STEPS).map(|_| next()).collect()
}

fn identify(random: &mut Random, node: usize) -> String {
    let hostname = ["h", "", "a\\\"b", "\\u00e9 \\\\"][random.below(4) as usize];
    // Some announce the address of another node.
    let address = if random.one_in(3) { 0 } else { node };
    let body = format!(
        "{{\"broadcast_address\":\"node{address}\",\"hostname\":\"{hostname}\",\"tcp_port\":1,\
         \"http_port\":{},\"version\":\"1.{node}.0\",\"more\":[{{}},null]}}",
        node + 2
    );
    let len = (body.len() as u32).to_be_bytes();
    // A length below 256 is valid text.
    format!("  V1IDENTIFY\n{}{body}", String::from_utf8(len.to_vec()).expect("short"))
}

#[tokio::test]
async fn the_directory_responds_as_nsqlookupd() {
    let peers = require_peers!();
    let real = RealNsqlookupd::start(&peers, ServerOptions::new()).await;
    let scripts = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SCRIPTS);
    let mut seen = BTreeMap::<String, u64>::new();
    for seed in 0..scripts {
        let mut random = Random::new(seed);
        let mut ours = Ours::new();
        let mut theirs = Theirs::new(real.tcp_address(), real.http_address()).await;
        let mut done = String::new();
        // Nodes in the order of their latest commands.
        let mut recent = Vec::new();
        for step in script(&mut random) {
            done.push_str(&format!("{step:?}\n"));
            if let Step::Arrive(node, _) | Step::Send(node, ..) = &step {
                recent.retain(|other| other != node);
                recent.push(*node);
            }
            let (our, their) = match &step {
                Step::Arrive(node, hello) => {
                    (ours.arrive(*node, hello.as_bytes()), theirs.arrive(*node, hello).await)
                }
                Step::Send(node, command, is_end) => (
                    ours.send(*node, command.as_bytes()),
                    theirs.send(*node, command, *is_end).await,
                ),
                Step::Leave(node) => {
                    ours.leave(*node);
                    theirs.leave(*node).await;
                    (String::new(), String::new())
                }
                Step::Ask(request) => {
                    let request =
                        format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
                    let our = scrub(&ours.ask(request.as_bytes()), &[]);
                    (our, scrub(&theirs.ask(&request).await, &recent))
                }
            };
            assert_eq!(our, their, "directory and nsqlookupd, seed {seed}, after\n{done}");
            let kind = our.split('\n').next().unwrap_or_default().to_owned();
            *seen.entry(kind).or_default() += 1;
            *seen.entry("shared addresses".into()).or_default() += u64::from(theirs.shared());
        }
        theirs.clear().await;
    }
    println!("{seen:#?}");
    assert!(seen["shared addresses"] > scripts, "{seen:?}");
    let lines = ["200 OK", "400 Bad Request", "404 Not Found", "405 Method Not Allowed"];
    for line in lines {
        assert!(seen.get(&format!("HTTP/1.1 {line}")).is_some_and(|&n| n > scripts / 10), "{line}");
    }
}

/// A directory that the test drives.
struct Ours {
    directory: Nsqlookupd<'static>,
    /// The session of each node.
    nodes: [Option<usize>; NODES],
    now: Instant,
}

impl Ours {
    fn new() -> Self {
        let storage = Box::leak(Box::new(Storage::<4, 8, 16, 1>::new()));
        let info = IdentifyReply {
            broadcast_address: "127.0.0.1",
            hostname: "h",
            http_port: 1,
            tcp_port: 2,
            version: "1.3.0",
        };
        let config = Box::leak(Box::new(Config { info, ..Config::new() }));
        let directory = Nsqlookupd::new(config, storage);
        Self { directory, nodes: [None; NODES], now: Instant::from_millis(1_000) }
    }

    fn arrive(&mut self, node: usize, hello: &[u8]) -> String {
        let is_free = |directory: &mut Nsqlookupd<'_>, at| {
            directory.client(at).is_some_and(|session| session.link() == Link::Down)
        };
        let at = (0..4).find(|&at| is_free(&mut self.directory, at)).expect("a free slot");
        let from = SocketAddr::from(([127, 0, 0, 1], 1000));
        self.directory.client(at).expect("a slot").accepted(self.now, from);
        self.nodes[node] = Some(at);
        without_names(&self.exchange(at, hello))
    }

    fn send(&mut self, node: usize, command: &[u8]) -> String {
        let at = self.nodes[node].expect("arrived");
        let response = self.exchange(at, command);
        let mut session = self.directory.client(at).expect("a slot");
        if session.link() == Link::Close {
            session.closed(self.now, Closed::Local);
            self.nodes[node] = None;
        }
        without_names(&response)
    }

    fn exchange(&mut self, at: usize, bytes: &[u8]) -> Vec<u8> {
        self.now = self.now.after(Span::from_millis(1));
        let now = self.now;
        exchange(&mut self.directory.client(at).expect("a slot"), now, bytes)
    }

    fn leave(&mut self, node: usize) {
        let at = self.nodes[node].take().expect("arrived");
        self.directory.client(at).expect("a slot").closed(self.now, Closed::Peer);
    }

    fn ask(&mut self, request: &[u8]) -> Vec<u8> {
        let now = self.now;
        let mut session = self.directory.http(0).expect("a slot");
        session.open(now);
        let answer = exchange(&mut session, now, request);
        assert_eq!(session.link(), Link::Close, "the request asks to close");
        session.closed(now, Closed::Local);
        answer
    }
}

/// A real nsqlookupd, and connections to it.
struct Theirs {
    tcp: SocketAddr,
    http: SocketAddr,
    nodes: [Option<TcpStream>; NODES],
    /// The address that each node announced.
    addresses: [String; NODES],
}

impl Theirs {
    async fn new(tcp: SocketAddr, http: SocketAddr) -> Self {
        Self { tcp, http, nodes: [const { None }; NODES], addresses: Default::default() }
    }

    async fn arrive(&mut self, node: usize, hello: &str) -> String {
        let stream = TcpStream::connect(self.tcp).await.expect("a server that listens");
        self.nodes[node] = Some(stream);
        let address = hello.split('"').nth(3).expect("an address");
        self.addresses[node] = address.to_owned();
        self.send(node, hello, false).await
    }

    /// Returns whether several nodes announced the same address.
    fn shared(&self) -> bool {
        let here = (0..NODES).filter(|node| self.nodes[*node].is_some());
        let addresses: BTreeSet<_> = here.clone().map(|node| &self.addresses[node]).collect();
        addresses.len() < here.count()
    }

    /// Sends a command and returns its response.
    async fn send(&mut self, node: usize, command: &str, is_end: bool) -> String {
        let stream = self.nodes[node].as_mut().expect("arrived");
        stream.write_all(command.as_bytes()).await.expect("a server that reads");
        let mut reply = vec![0; 4];
        let read = async {
            stream.read_exact(&mut reply).await?;
            let len = u32::from_be_bytes(reply[..4].try_into().expect("four bytes"));
            reply.resize(4 + len as usize, 0);
            stream.read_exact(&mut reply[4..]).await
        };
        tokio::time::timeout(LIMIT, read).await.expect("a reply").expect("a whole reply");
        if is_end {
            self.leave(node).await;
        }
        without_names(&reply)
    }

    async fn leave(&mut self, node: usize) {
        drop(self.nodes[node].take().expect("arrived"));
        let name = format!("\"1.{node}.0\"");
        let what = format!("nsqlookupd to forget {name}");
        let address = self.http;
        let request = "GET /debug HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        eventually(&what, LIMIT, async || {
            !String::from_utf8_lossy(&ask(address, request.as_bytes()).await).contains(&name)
        })
        .await;
    }

    async fn ask(&self, request: &str) -> Vec<u8> {
        ask(self.http, request.as_bytes()).await
    }

    /// Disconnects all nodes and deletes all topics.
    async fn clear(&mut self) {
        for node in 0..NODES {
            if self.nodes[node].is_some() {
                self.leave(node).await;
            }
        }
        let all = "POST /topic/delete?topic=* HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        self.ask(all).await;
    }
}

/// Returns responses without the server's own names and ports.
fn without_names(replies: &[u8]) -> String {
    let mut rest = replies;
    let mut kept = String::new();
    while let Some((size, data)) = rest.split_first_chunk::<4>() {
        let (reply, behind) = data.split_at(u32::from_be_bytes(*size) as usize);
        rest = behind;
        match serde_json::from_slice::<Value>(reply) {
            Ok(Value::Object(info)) => {
                for (key, value) in &info {
                    let kind = if value.is_string() { "text" } else { "number" };
                    let value = if key == "version" { value.to_string() } else { kind.into() };
                    kept.push_str(&format!("{key}={value};"));
                }
            }
            _ => kept.push_str(&format!("{} {}\n", reply.len(), reply.escape_ascii())),
        }
    }
    assert!(rest.is_empty(), "half a reply");
    kept
}

/// Returns a response without what must differ: times, the source of connections, and the order of
/// unordered lists. Of several nodes with one address the last one in `recent` is shown.
fn scrub(answer: &[u8], recent: &[usize]) -> String {
    let mut answer = Answer::new(answer);
    let Some(json) = answer.json() else { return answer.show(&answer.body) };
    if json.get("message").is_none() {
        answer.forget_length();
    }
    let json = in_order(with_tombstones(one_entry_each(json, recent)), &|key, value| match key {
        "remote_address" | "id" => is_address(&value),
        "last_update" => Value::from(value.is_i64()),
        "tombstoned_at" if value != -6_795_364_578_871_345_152_i64 => Value::from(value.is_i64()),
        _ => value,
    });
    answer.show(&json.to_string())
}

/// Merges the entries of nsqlookupd's lists that have the same address.
fn one_entry_each(mut json: Value, recent: &[usize]) -> Value {
    let lists = json.as_object_mut().into_iter().flat_map(|lists| lists.values_mut());
    for list in lists.filter_map(Value::as_array_mut) {
        if !list.iter().all(|entry| entry.get("broadcast_address").is_some()) {
            continue;
        }
        let mut entries = BTreeMap::<String, Vec<Value>>::new();
        for entry in list.drain(..) {
            let address = format!("{}:{}", entry["broadcast_address"], entry["tcp_port"]);
            entries.entry(address).or_default().push(entry);
        }
        for mut same in entries.into_values() {
            // In `/debug` an entry that `/lookup` shows comes before one that it hides.
            let rank = |entry: &Value| {
                let node: usize =
                    entry["version"].as_str().expect("one")[2..3].parse().expect("one");
                (entry["tombstoned"] != true, recent.iter().position(|other| *other == node))
            };
            same.sort_by_key(rank);
            let mut topics = BTreeMap::<String, bool>::new();
            for entry in &same {
                let list = |key: &str| entry[key].as_array().cloned().unwrap_or_default();
                for (topic, flag) in list("topics").iter().zip(list("tombstones")) {
                    let topic = topic.as_str().expect("a name").to_owned();
                    *topics.entry(topic).or_insert(true) &= flag == true;
                }
            }
            let mut shown = same.pop().expect("at least one");
            if shown.get("topics").is_some() {
                shown["topics"] = topics.keys().cloned().collect();
                shown["tombstones"] = topics.values().copied().collect();
            }
            list.push(shown);
        }
    }
    json
}

/// Joins the tombstones of nodes with their topics.
fn with_tombstones(mut json: Value) -> Value {
    let nodes = json.get_mut("producers").and_then(Value::as_array_mut);
    for node in nodes.into_iter().flatten() {
        let Some(node) = node.as_object_mut() else { continue };
        if let (Some(Value::Array(flags)), Some(Value::Array(topics))) =
            (node.remove("tombstones"), node.get_mut("topics"))
        {
            assert_eq!(flags.len(), topics.len(), "nsqadmin would crash");
            for (topic, flag) in topics.iter_mut().zip(flags) {
                *topic = Value::from(format!("{topic} {flag}"));
            }
        }
    }
    json
}
