//! Several registrations of one address, and a directory full of names without nodes.

use std::process::{ChildStdin, Command};

use nanonsq_tests::client::Library;
use nanonsq_tests::{Client, Nsqlookupd, ServerOptions, Tool, eventually, http};

use crate::pair::{Pair, SOON, Setting, tests_with};
use crate::raw::{Raw, sized};

tests_with!([Real, OurNode, OurLookupd, Ours]: publishers_that_announce_one_nsqd_and_that_nsqd);
tests_with!([Real, OurLookupd]: one_node_by_two_names);
// nsqlookupd has no bounds.
tests_with!([OurLookupd, Ours]: unused_names_do_not_block_a_topic);
tests_with!([OurLookupd, Ours]: full_tables_are_logged_once);

/// More than the tables of the program hold.
const TOPICS: usize = 1100;
const CHANNELS: usize = 4200;

/// Starts `nanonsq pub`, which registers a node with nsqd's address while its input is open.
fn publish(pair: &Pair, topic: &str) -> (Tool, ChildStdin) {
    let port = pair.node.tcp_address().port().to_string();
    let (nsqd, lookupd) =
        (pair.node.tcp_address().to_string(), pair.lookupd.tcp_address().to_string());
    let args = [
        "pub",
        "--topic",
        topic,
        "--nsqd-tcp-address",
        &nsqd,
        "--lookupd-tcp-address",
        &lookupd,
        "--broadcast-address",
        "127.0.0.1",
        "--broadcast-tcp-port",
        &port,
    ];
    let mut tool = Tool::start(env!("CARGO_BIN_EXE_nanonsq"), args);
    let stdin = tool.stdin();
    (tool, stdin)
}

/// Returns the sorted addresses of `/lookup` for a topic, with repetitions.
async fn listed(lookupd: &Nsqlookupd, topic: &str) -> Vec<String> {
    let mut listed = lookupd.lookup(topic).await;
    listed.sort();
    listed
}

async fn publishers_that_announce_one_nsqd_and_that_nsqd(setting: Setting) {
    let Some(client) = Client::find_or_skip(Library::GoNsq, &setting.peers, setting.test) else {
        return;
    };
    let pair = setting.start(ServerOptions::new()).await;
    let node = pair.node.tcp_address().to_string();
    pair.create("own", &["c"]).await;
    let publishers = [publish(&pair, "a"), publish(&pair, "b")];
    for topic in ["a", "b"] {
        eventually("registered", SOON, async || listed(&pair.lookupd, topic).await == [&*node])
            .await;
    }
    // They stay listed; a registration that replaces another would show within a second.
    for _ in 0..30 {
        for topic in ["own", "a", "b"] {
            assert_eq!(listed(&pair.lookupd, topic).await, [&*node], "{topic}");
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    let nodes = pair.lookupd.nodes().await;
    assert_eq!(nodes.len(), if setting.subject.is_our_lookupd() { 1 } else { 3 }, "{nodes:?}");
    let http = pair.lookupd.http_address();
    let stat = setting.peers.program("nsq_stat");
    let output = Command::new(stat)
        .args(["--topic=own", "--channel=c", "--interval=100ms", "--count=1"])
        .arg(format!("--lookupd-http-address={http}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    // A consumer finds the nsqd by a topic that only a publisher registered.
    let mut consumer = client.consume(http, "a", "c", &[]);
    pair.node.publish("a", b"1").await;
    eventually("delivered", SOON, async || consumer.deliveries().len() == 1).await;
    // When a publisher ends, only its registration ends.
    let [(mut a, stdin), b] = publishers;
    drop(stdin);
    assert!(a.wait(SOON).await.success(), "{}", a.stderr());
    eventually("its registration has ended", SOON, async || {
        let listed = listed(&pair.lookupd, "a").await;
        // The node may have registered the topic itself by now.
        listed == [&*node] || listed.is_empty()
    })
    .await;
    for topic in ["own", "b"] {
        assert_eq!(listed(&pair.lookupd, topic).await, [&*node], "{topic}");
    }
    if setting.subject.is_our_lookupd() {
        let log = pair.lookupd.log();
        assert!(log.contains("registered on one more connection"), "{log}");
        assert!(!log.contains("has connected again"), "{log}");
    }
    drop(b);
}

async fn one_node_by_two_names(setting: Setting) {
    let pair = setting.start(ServerOptions::new()).await;
    let port = pair.lookupd.tcp_address().port();
    let args = [
        "node".to_owned(),
        "--tcp-address=127.0.0.1:0".to_owned(),
        "--http-address=127.0.0.1:0".to_owned(),
        "--broadcast-address=two.names".to_owned(),
        format!("--lookupd-tcp-address=127.0.0.1:{port}"),
        format!("--lookupd-tcp-address=localhost:{port}"),
    ];
    let node = Tool::start(env!("CARGO_BIN_EXE_nanonsq"), args);
    let of_it = async || {
        let nodes = pair.lookupd.nodes().await;
        nodes.iter().filter(|node| node.starts_with("two.names:")).count()
    };
    let connections = if setting.subject.is_our_lookupd() { 1 } else { 2 };
    let registered = |node: &Tool| node.stderr().matches("registered with nsqlookupd").count();
    eventually("registered with both", SOON, async || {
        of_it().await == connections && registered(&node) == 2
    })
    .await;
    for _ in 0..20 {
        assert_eq!(of_it().await, connections);
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert_eq!(registered(&node), 2, "no connection was lost: {}", node.stderr());
}

async fn unused_names_do_not_block_a_topic(setting: Setting) {
    let pair = setting.start(ServerOptions::new()).await;
    let node = pair.node.tcp_address().to_string();
    pair.create("before", &["c"]).await;
    let post = async |path: String| {
        let answer = http::post(pair.lookupd.http_address(), &path, b"").await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    };
    for n in 0..TOPICS {
        post(format!("/topic/create?topic=junk{n}")).await;
    }
    pair.create("readings", &["c"]).await;
    for n in 0..CHANNELS {
        post(format!("/channel/create?topic=junk&channel=c{n}")).await;
    }
    pair.create("later", &["c"]).await;
    // The topic is registered a moment before its channel.
    let registered = async || pair.lookupd.channels("later").await == ["c"];
    eventually("its channel as well", SOON, registered).await;
    for topic in ["before", "readings", "later"] {
        assert_eq!(pair.lookupd.lookup(topic).await, [&*node], "{topic}");
        assert_eq!(pair.lookupd.channels(topic).await, ["c"], "{topic}");
    }
    let log = pair.lookupd.log();
    assert!(!log.contains("table full"), "{log}");
}

async fn full_tables_are_logged_once(setting: Setting) {
    let pair = setting.start(ServerOptions::new()).await;
    let node = pair.node.tcp_address().to_string();
    // Each connection registers as many topics as it may, and stays open.
    let mut greedy = Vec::new();
    for who in 0..2 {
        let mut raw = Raw::connect(pair.lookupd.tcp_address()).await.unwrap();
        let json = format!(
            r#"{{"broadcast_address":"greedy{who}","tcp_port":1,"http_port":2,"version":"1"}}"#
        );
        raw.send(&[b"  V1", &*sized("IDENTIFY", json.as_bytes())].concat()).await.unwrap();
        let more: String = (0..TOPICS).map(|n| format!("REGISTER {who}x{n}\n")).collect();
        raw.send(more.as_bytes()).await.unwrap();
        greedy.push(raw);
        if who == 0 {
            eventually("logged", SOON, async || {
                pair.lookupd.log().contains("that one node's connection")
            })
            .await;
            pair.create("readings", &["c"]).await;
        }
    }
    let line = "table full: all 1024 topics";
    eventually("logged", SOON, async || pair.lookupd.log().contains(line)).await;
    assert_eq!(pair.lookupd.lookup("readings").await, [&*node]);
    // Each of the two limits is logged once.
    let log = pair.lookupd.log();
    assert_eq!(log.matches("table full").count(), 2, "{log}");
    // Once they have left, there is room again.
    drop(greedy);
    eventually("gone", SOON, async || pair.lookupd.nodes().await == [&*node]).await;
    pair.create("later", &["c"]).await;
    assert_eq!(pair.lookupd.lookup("later").await, [&*node]);
}
