//! `nanonsq node`, `nanonsq lookupd`, and the demo, which has both.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nanonsq_models::prometheus;
use nanonsq_tests::{Nsqd, Nsqlookupd, ServerOptions, eventually, http, require_peers};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::run::{Run, SOON};

/// A server of ours with its addresses.
pub(crate) struct Server {
    pub(crate) run: Run,
    pub(crate) tcp: SocketAddr,
    pub(crate) http: SocketAddr,
}

impl Server {
    pub(crate) async fn start(command: &str, more: &[&str]) -> Self {
        let mut args =
            vec![command, "--tcp-address", "127.0.0.1:0", "--http-address", "127.0.0.1:0"];
        args.extend(["--broadcast-address", "127.0.0.1"]);
        args.extend(more);
        let run = Run::start(&args);
        run.until_it_logs("HTTP: listening on ").await;
        let bound = |what: &str| {
            let text = run.stderr();
            let (_, rest) = text.split_once(&format!("{what}: listening on ")).unwrap();
            rest.lines().next().unwrap().parse().unwrap()
        };
        let (tcp, http) = (bound("TCP"), bound("HTTP"));
        Self { run, tcp, http }
    }

    async fn node(lookupd: SocketAddr, more: &[&str]) -> Self {
        let lookupd = lookupd.to_string();
        let mut args = vec!["--lookupd-tcp-address", &lookupd];
        args.extend(more);
        Self::start("node", &args).await
    }
}

/// Returns the TCP ports of the nodes that have topic `t`.
async fn listed(lookupd: SocketAddr) -> Vec<u64> {
    // 404 while no node has the topic.
    let found = http::get_json(lookupd, "/lookup?topic=t").await.unwrap_or_default();
    let producers = found["producers"].as_array().cloned().unwrap_or_default();
    producers.iter().map(|producer| producer["tcp_port"].as_u64().unwrap()).collect()
}

/// The dashboard of the documentation shows what there is.
#[tokio::test]
async fn metrics_are_in_the_format_of_prometheus_and_on_the_dashboard() {
    let lookupd = Server::start("lookupd", &[]).await;
    let node = Server::node(lookupd.tcp, &[]).await;
    http::post(node.http, "/pub?topic=t", b"hello").await.unwrap();
    let consumer = Run::subscribe(node.tcp, &[]);
    consumer.until_it_prints(1).await;
    eventually("it is listed", SOON, async || !listed(lookupd.http).await.is_empty()).await;
    let mut series = Vec::new();
    for server in [&node, &lookupd] {
        let answer = http::get(server.http, "/metrics").await.unwrap();
        assert_eq!((answer.status, answer.header("x-nsq-content-type")), (200, None));
        assert_eq!(answer.header("content-type"), Some("text/plain; charset=utf-8"));
        series.extend(prometheus::parse(&answer.text()));
    }
    let value = |name: &str| series.iter().find(|(is, _)| is == name).map(|(_, value)| *value);
    assert_eq!(value(r#"nsqd_channel_messages_total{topic="t",channel="c"}"#), Some(1.0));
    assert_eq!(value(r#"nsqlookupd_topic_nodes{topic="t"}"#), Some(1.0));
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/grafana.json");
    let dashboard: serde_json::Value =
        serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let text = dashboard.to_string();
    let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
    let shown: Vec<_> =
        words.filter(|word| word.starts_with("nsq") && word.contains('_')).collect();
    assert!(shown.len() > 10, "{shown:?}");
    for name in shown {
        let is_of = |(is, _): &(String, f64)| is.split('{').next() == Some(name);
        assert!(series.iter().any(is_of), "{name} is not there: {series:?}");
    }
}

#[tokio::test]
async fn a_node_accepts_messages_is_listed_and_consumed_and_leaves() {
    let lookupd = Server::start("lookupd", &[]).await;
    let node = Server::node(lookupd.tcp, &["--msg-timeout=1m30s", "--mem=1000000"]).await;
    node.run.until_it_logs(&format!("registered with nsqlookupd {}", lookupd.tcp)).await;
    let mut publishing = Run::publish(node.tcp, &[]);
    let lines: Vec<String> = (0..1000).map(|line| line.to_string()).collect();
    publishing.write(lines.join("\n")).await;
    publishing.finish().await.expect(0, &["1000 accepted, 1000 acknowledged"]);
    eventually("it is listed", SOON, async || {
        listed(lookupd.http).await == [u64::from(node.tcp.port())]
    })
    .await;
    let at = lookupd.http.to_string();
    let consuming = Run::start(&[
        "sub",
        "--topic",
        "t",
        "--channel",
        "c",
        "-n",
        "1000",
        "--lookupd-http-address",
        &at,
    ]);
    let consumed = consuming.end().await;
    consumed.expect(0, &["1000 received, 1000 finished"]);
    assert_eq!(consumed.printed, lines, "in order, since there is one of each");

    let stats = http::get_json(node.http, "/stats?format=json").await.unwrap();
    assert_eq!(stats["topics"][0]["channels"][0]["message_count"], 1000, "{stats}");
    let info = http::get_json(node.http, "/info").await.unwrap();
    assert_eq!(info["tcp_port"], node.tcp.port(), "{info}");
    node.run.signal(Signal::TERM);
    node.run.end().await.expect(0, &["stopping", "1000 messages taken, 1000 delivered"]);
    assert!(listed(lookupd.http).await.is_empty(), "it has unregistered");
    lookupd.run.signal(Signal::INT);
    lookupd.run.end().await.expect(0, &["stopping", "1 nodes registered, 0 refused"]);
}

/// As on nsqd: `PUT /config/nsqlookupd_tcp_addresses`.
#[tokio::test]
async fn the_nsqlookupds_of_a_node_can_be_changed() {
    let lookupds = [Server::start("lookupd", &[]).await, Server::start("lookupd", &[]).await];
    let node = Server::node(lookupds[0].tcp, &[]).await;
    http::post(node.http, "/topic/create?topic=t", b"").await.unwrap();
    let port = [u64::from(node.tcp.port())];
    eventually("it is listed", SOON, async || listed(lookupds[0].http).await == port).await;
    let addresses = format!("[\"{}\"]", lookupds[1].tcp);
    let path = "/config/nsqlookupd_tcp_addresses";
    let set = http::request(node.http, "PUT", path, addresses.as_bytes()).await.unwrap();
    assert_eq!(set.status, 200, "{}", set.text());
    eventually("it is listed there", SOON, async || listed(lookupds[1].http).await == port).await;
    eventually("and only there", SOON, async || listed(lookupds[0].http).await.is_empty()).await;
}

#[tokio::test]
async fn real_servers_next_to_ours() {
    let peers = require_peers!();
    // A real nsqlookupd lists our node, with its announced ports.
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let node = Server::node(lookupd.tcp_address(), &["--broadcast-tcp-port=1234"]).await;
    let mut publishing = Run::publish(node.tcp, &[]);
    publishing.write("one\n").await;
    publishing.finish().await.expect(0, &["1 accepted, 1 acknowledged"]);
    eventually("it is listed", SOON, async || listed(lookupd.http_address()).await == [1234]).await;
    node.run.signal(Signal::INT);
    node.run.end().await.expect(0, &["stopping"]);
    assert!(listed(lookupd.http_address()).await.is_empty());
    // Our directory lists a real nsqd, and forgets one that is killed.
    let directory = Server::start("lookupd", &[]).await;
    let options = ServerOptions::new().lookupd(directory.tcp);
    let mut nsqd = Nsqd::start(&peers, options.flag("--broadcast-address=127.0.0.1")).await;
    nsqd.create_topic("t").await;
    let port = u64::from(nsqd.tcp_address().port());
    eventually("it is listed", SOON, async || listed(directory.http).await == [port]).await;
    nsqd.kill().await;
    eventually("it is gone", SOON, async || listed(directory.http).await.is_empty()).await;
    let left = format!("node 127.0.0.1:{port} left");
    eventually("it is logged", SOON, async || {
        let text = directory.run.stderr();
        text.contains(&left) || text.contains(&format!("node 127.0.0.1:{port}: connection reset"))
    })
    .await;
}

#[tokio::test]
async fn a_client_beyond_the_limit_is_rejected_with_the_reason() {
    let lookupd = Server::start("lookupd", &["--max-nodes=256"]).await;
    let node = Server::node(lookupd.tcp, &["--max-clients=250"]).await;
    let me =
        br#"{"broadcast_address":"h","hostname":"h","tcp_port":1,"http_port":1,"version":"1"}"#;
    for (server, magic, refusal, known) in [
        (&node, b"  V2", &b"\0\0\0\x22\0\0\0\x01E_INVALID too many connections"[..], &b"{}"[..]),
        (&lookupd, b"  V1", b"\0\0\0\x1eE_INVALID too many connections", me),
    ] {
        // Our node occupies one slot of the directory.
        let room = if server.tcp == node.tcp { 250 } else { 255 };
        let mut clients = Vec::new();
        for _ in 0..room {
            let mut client = TcpStream::connect(server.tcp).await.unwrap();
            client.write_all(magic).await.unwrap();
            // A client that sends nothing more would lose its slot to another caller.
            client.write_all(b"IDENTIFY\n").await.unwrap();
            client.write_all(&(known.len() as u32).to_be_bytes()).await.unwrap();
            client.write_all(known).await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
            clients.push(client);
        }
        let mut heard = Vec::new();
        let mut more = TcpStream::connect(server.tcp).await.unwrap();
        more.write_all(magic).await.unwrap();
        more.write_all(b"IDENTIFY\n\0\0\0\x02{}").await.unwrap();
        more.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, refusal);
        let what = if server.tcp == node.tcp { "250 clients" } else { "256 nodes" };
        let says = format!("warn: 1 callers turned away: all places are taken: {what}\n");
        server.run.until_it_logs(&says).await;
        // Once a client leaves, the next one is served.
        drop(clients.pop());
        eventually("there is room", SOON, async || {
            let mut next = TcpStream::connect(server.tcp).await.unwrap();
            next.write_all(magic).await.unwrap();
            next.write_all(b"NONSENSE\n").await.unwrap();
            let mut heard = Vec::new();
            next.read_to_end(&mut heard).await.unwrap();
            String::from_utf8_lossy(&heard).ends_with("E_INVALID invalid command NONSENSE")
        })
        .await;
    }
}

#[tokio::test]
async fn the_tables_of_a_node_have_the_size_that_flags_give_them() {
    let limits = ["--max-topics=2", "--max-channels=3", "--max-clients=1"];
    let node = Server::start("node", &limits).await;
    let post = async |path: &str| http::post(node.http, path, b"x").await.unwrap();
    for (path, status) in [
        ("/topic/create?topic=a", 200),
        ("/topic/create?topic=b", 200),
        ("/topic/create?topic=c", 503),
        ("/channel/create?topic=a&channel=c", 200),
        ("/channel/create?topic=a&channel=d", 200),
        ("/channel/create?topic=b&channel=c", 200),
        ("/channel/create?topic=b&channel=d", 503),
    ] {
        assert_eq!(post(path).await.status, status, "{path}");
    }
    node.run.until_it_logs("warn: table full: all 2 topics are in use (--max-topics)").await;
    node.run.until_it_logs("warn: table full: all 3 channels are in use (--max-channels)").await;
}

/// A block for each, and more than 65,535 of them.
#[tokio::test]
async fn a_topic_holds_more_messages_than_16_bits_count() {
    const COUNT: usize = 70_001;
    let node = Server::start("node", &[]).await;
    let mut publishing = Run::publish(node.tcp, &[]);
    let lines: Vec<String> = (0..COUNT).map(|line| line.to_string()).collect();
    publishing.write(lines.join("\n")).await;
    publishing.finish().await.expect(0, &["70001 accepted, 70001 acknowledged"]);
    let stats = http::get_json(node.http, "/stats?format=json").await.unwrap();
    assert_eq!(stats["topics"][0]["depth"], COUNT, "{stats}");
    let (at, count) = (node.tcp.to_string(), COUNT.to_string());
    let consuming =
        Run::start(&["sub", "--topic=t", "--channel=c", "-n", &count, "--nsqd-tcp-address", &at]);
    assert_eq!(consuming.end().await.printed, lines, "in order, since there is one of each");
}

/// Tables and buffers for all that there is room for take memory once they are used.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn an_idle_server_has_little_in_memory() {
    for command in ["node", "lookupd"] {
        let server = Server::start(command, &[]).await;
        // Not what it shares with others of its program, which is larger without optimization.
        let own = server.run.status("RssAnon:");
        assert!(own <= 8_000, "{command}: {own} kB");
    }
}

#[tokio::test]
async fn an_address_in_use_is_an_error() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for command in ["node", "lookupd"] {
        let run = Run::start(&[command, "--tcp-address", &address]);
        run.end().await.expect(1, &[&format!("cannot listen on {address}: ")]);
    }
}

#[tokio::test]
async fn invalid_flags_are_errors() {
    for args in [
        ["node", "--msg-timeout=60"],
        ["node", "--max-rdy-count=0"],
        ["node", "--max-topics=0"],
        ["node", "--max-topics=1001"],
        ["node", "--max-channels=4001"],
        ["node", "--max-clients=1001"],
        ["lookupd", "--max-nodes=1001"],
        ["lookupd", "--max-topics=10001"],
        ["lookupd", "--max-channels=0"],
        ["node", "--tcp-address=4150"],
        ["lookupd", "--tombstone-lifetime=-1s"],
        ["demo", "--for=0"],
        ["--for=5", "demo"],
    ] {
        assert_eq!(Run::start(&args).end().await.code, Some(2), "{args:?}");
    }
    for (flag, says) in [
        ("--msg-timeout=0.5s", "--msg-timeout: message timeout 500 ms; give 1000 ms"),
        ("--max-heartbeat-interval=0.5s", "--max-heartbeat-interval: heartbeat interval 500 ms;"),
        ("--mem=10", "--mem: the store has 10 bytes; it needs 72 at least"),
        ("--mem=99999999999999", "--mem 99999999999999: memory allocation failed"),
        ("--broadcast-address=", "--broadcast-address is empty"),
    ] {
        let run =
            Run::start(&["node", flag, "--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"]);
        run.end().await.expect(1, &[&format!("error: {says}")]);
    }
}

#[tokio::test]
async fn a_stopped_node_logs_the_number_of_lost_messages() {
    let node = Server::start("node", &["--max-heartbeat-interval=10s"]).await;
    for topic in ["t", "u"] {
        http::post(node.http, &format!("/pub?topic={topic}"), b"x").await.unwrap();
    }
    let create = async |channel| {
        let path = format!("/channel/create?topic=t&channel={channel}");
        assert_eq!(http::post(node.http, &path, b"").await.unwrap().status, 200);
    };
    create("c").await;
    let consumed = Run::subscribe(node.tcp, &["-n", "1"]).end().await;
    consumed.expect(0, &["1 finished"]);
    // Created earlier, the channel could have the first message as well, as with nsqd.
    create("d").await;
    http::post(node.http, "/pub?topic=t&defer=60000", b"later").await.unwrap();
    node.run.signal(Signal::TERM);
    // The message of u, and the deferred message of both channels.
    node.run.end().await.expect(0, &["warn: unfinished messages, which were in memory only: 3"]);
}

/// Two demos at a time: for one of them NSQ's ports are in use.
#[tokio::test]
async fn the_demo_ends_after_its_time_and_nothing_is_lost() {
    let runs = [(); 2].map(|()| Run::start(&["demo", "--for", "3"]));
    for run in runs {
        let ended = run.end().await;
        ended.expect(0, &[]);
        let printed = ended.printed.join("\n");
        assert!(printed.contains(" 0 lost, 0 twice; 0 messages of others"), "{printed}");
        assert!(printed.contains("curl 'http://127.0.0.1:"), "{printed}");
        for device in ["greenhouse", "cellar"] {
            let first = format!(r#"{{"device":"{device}","number":0,"#);
            assert_eq!(printed.matches(&first).count(), 1, "{printed}");
        }
    }
}

/// As with `| head`.
#[tokio::test]
async fn the_demo_ends_when_its_output_is_closed() {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_nanonsq"))
        .arg("demo")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = demo.stdout.take().unwrap();
    stdout.read_exact(&mut [0; 10]).await.unwrap();
    drop(stdout);
    let ended = tokio::time::timeout(SOON, demo.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
    assert_ne!(ended.status.code(), None, "{}", ended.status);
}

#[tokio::test]
async fn the_demo_ends_on_ctrl_c() {
    let run = Run::start(&["demo"]);
    run.until_it_prints(20).await;
    let start = Instant::now();
    run.signal(Signal::INT);
    let ended = run.end().await;
    ended.expect(0, &[]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert!(ended.printed.last().unwrap().contains(" 0 lost, 0 twice;"), "{:?}", ended.printed);
}
