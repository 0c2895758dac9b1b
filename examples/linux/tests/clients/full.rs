//! Full servers: errors of rejected clients, and their service once a slot is free.

use std::process::Command;
use std::time::Duration;

use nanonsq_tests::client::Library;
use nanonsq_tests::{Client, Nsqd, ServerOptions, eventually, peers};

use crate::pair::{Pair, SOON, Setting, tests_with};
use crate::raw::{Raw, Received, sized};

// nsqd and nsqlookupd have no such limit.
tests_with!([OurNode]: clients_of_a_full_node, topics_of_clients_that_left);
tests_with!([OurLookupd]: nsqd_and_a_full_directory);
tests_with!([OurNode, OurLookupd]: askers_of_a_full_http_port);

/// The slots of `nanonsq node`, as the tests start it.
const PLACES: usize = 250;
/// The slots of `nanonsq lookupd`, as the tests start it.
const NODES: usize = 256;
const HTTP_PLACES: usize = 64;

const REFUSAL: &str = "E_INVALID too many connections";

async fn clients_of_a_full_node(setting: Setting) {
    let find = |library| Client::find_or_skip(library, &setting.peers, setting.test);
    let (Some(go_nsq), Some(pynsq)) = (find(Library::GoNsq), find(Library::Pynsq)) else { return };
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["c"]).await;
    let (tcp, lookupd) = (pair.node.tcp_address(), pair.lookupd.http_address());
    let mut taken = Vec::new();
    for _ in 0..PLACES {
        taken.push(Raw::identify(tcp, 60_000).await.unwrap());
    }
    // A producer fails at once with the reason.
    let mut producer = go_nsq.publish(tcp, "t", "pub", &[("count", 1)]);
    assert!(!producer.wait(SOON).await.success());
    assert!(producer.stderr().contains(REFUSAL), "{}", producer.stderr());
    eventually("the node logs it", SOON, async || {
        pair.node.log().contains("callers turned away: all places are taken")
    })
    .await;
    // Consumers log why they wait, and receive the message once a client leaves.
    pair.node.publish("t", b"0").await;
    for client in [go_nsq, pynsq] {
        let mut consumer = client.consume(lookupd, "t", "c", &[]);
        let library = client.library;
        eventually(&format!("{library:?} logs the reason"), SOON, async || {
            consumer.stderr().contains(REFUSAL)
        })
        .await;
        assert_eq!(consumer.deliveries(), []);
        taken.pop().expect("one of many").close().await;
        let received = async || consumer.deliveries().len() == 1;
        eventually(&format!("{library:?} receives it"), SOON, received).await;
        consumer.stop().await;
        taken.push(Raw::identify(tcp, 60_000).await.unwrap());
        pair.node.publish("t", b"1").await;
    }
}

async fn nsqd_and_a_full_directory(setting: Setting) {
    // The pair's nsqd occupies one slot.
    let pair = setting.start(ServerOptions::new()).await;
    let mut taken = Vec::new();
    for port in 1..NODES {
        let mut raw = Raw::connect(pair.lookupd.tcp_address()).await.unwrap();
        let node = format!(
            r#"{{"broadcast_address":"taken","tcp_port":{port},"http_port":1,"version":"1"}}"#
        );
        raw.send(&[b"  V1", &*sized("IDENTIFY", node.as_bytes())].concat()).await.unwrap();
        taken.push(raw);
    }
    eventually("all are there", SOON, async || pair.lookupd.nodes().await.len() == NODES).await;
    let options = ServerOptions::new().lookupd(pair.lookupd.tcp_address());
    let nsqd = Nsqd::start(&setting.peers, options).await;
    eventually("nsqd logs the reason", SOON, async || nsqd.log().contains(REFUSAL)).await;
    eventually("the directory logs it", SOON, async || {
        pair.lookupd.log().contains("callers turned away: all places are taken")
    })
    .await;
    drop(taken.pop());
    // nsqd connects again with each new topic.
    nsqd.create_topic("t").await;
    pair.lookupd.wait_listed("t", nsqd.tcp_address(), SOON).await;
}

async fn askers_of_a_full_http_port(setting: Setting) {
    let Some(curl) = peers::installed_or_skip("curl", "curl", setting.test) else { return };
    let Pair { node, lookupd } = setting.start(ServerOptions::new()).await;
    let address =
        if setting.subject.is_our_node() { node.http_address() } else { lookupd.http_address() };
    let ask = || {
        let url = format!("http://{address}/ping");
        let args = ["--silent", "--max-time", "10", "--write-out", " %{http_code}", &url];
        let output = Command::new(&curl).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // More callers than slots that are silent, between two requests, or slow: other callers are
    // still answered.
    for (sent, pause) in
        [(&b""[..], false), (b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n", true), (b"GET", false)]
    {
        let mut taken = Vec::new();
        for _ in 0..HTTP_PLACES + 16 {
            let mut raw = Raw::connect(address).await.unwrap();
            raw.send(sent).await.unwrap();
            taken.push(raw);
        }
        if pause {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        for _ in 0..3 {
            assert_eq!(ask(), "OK 200", "beside callers that sent {}", sent.escape_ascii());
        }
    }
}

/// The topics of `nanonsq node`, as the tests start it.
const TOPICS: usize = 250;

/// Unused topics of clients that left are replaced, and topics in use are not.
async fn topics_of_clients_that_left(setting: Setting) {
    let Pair { node, .. } = setting.start(ServerOptions::new()).await;
    let tcp = node.tcp_address();
    // Topics in use: created over HTTP, and consumed from.
    node.create_topic("named").await;
    node.create_channel("named", "c").await;
    node.publish("used", b"0").await;
    let mut consumer = Raw::subscribe(tcp, "used", "c", 1).await.unwrap();
    let Received::Message(message) = consumer.next().await.unwrap() else { panic!("no message") };
    consumer.send(&[b"FIN ", &message.id[..], b"\n"].concat()).await.unwrap();
    consumer.close().await;
    for n in 0..2 * TOPICS {
        Raw::subscribe(tcp, &format!("x{n}"), "c", 0).await.unwrap().close().await;
    }
    let publish = async |topic: &str| {
        let mut producer = Raw::connect(tcp).await.unwrap();
        producer.send(&[b"  V2", &*sized(&format!("PUB {topic}"), b"1")].concat()).await.unwrap();
        producer.next().await.unwrap()
    };
    // The node may see the end of a client's connection late.
    eventually(
        "there is room",
        SOON,
        async || matches!(publish("readings").await, Received::Response(text) if text == "OK"),
    )
    .await;
    let topics = async || {
        let stats = node.get_json("/stats?format=json").await;
        let topics = stats["topics"].as_array().expect("a list").clone();
        topics
            .iter()
            .map(|it| it["topic_name"].as_str().expect("a name").to_owned())
            .collect::<Vec<_>>()
    };
    let all = topics().await;
    assert!(["named", "used", "readings"].iter().all(|name| all.contains(&(*name).to_owned())));
    assert_eq!((all.len(), node.log().contains("table full")), (TOPICS, false));
    // Without a topic that can be replaced, client and log get the reason.
    for n in 0..TOPICS {
        publish(&format!("y{n}")).await;
    }
    let refused = "E_PUB_FAILED PUB failed no room for another topic";
    assert!(matches!(publish("more").await, Received::Error(received) if received == refused));
    eventually("it is logged", SOON, async || {
        node.log().contains("table full: all 250 topics are in use (--max-topics)")
    })
    .await;
    assert!(topics().await.contains(&"used".to_owned()));
}
