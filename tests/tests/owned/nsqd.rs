//! An owned nsqd: what its consumers get, what is left at its end, and which settings are refused.

use std::time::Duration;

use nanonsq_std::core::nsqd::PublishError as Refusal;
use nanonsq_std::{Consumer, NotAccepted, Nsqd, NsqdBuilder, Publisher, StartError};
use nanonsq_tests::{Nsqlookupd, ServerOptions, Until, consume_all, eventually, require_peers};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::{collect_log, until_logged};

const LIMIT: Duration = Duration::from_secs(60);
const ANY: &str = "127.0.0.1:0";

#[tokio::test(flavor = "multi_thread")]
async fn consumers_find_it_and_get_what_tasks_and_clients_publish() {
    collect_log();
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let lookupd_tcp = lookupd.tcp_address().to_string();
    let nsqd = Nsqd::builder(ANY, ANY).lookupd(lookupd_tcp.as_str()).channel("t", "c");
    // Room for some hundred: tasks wait.
    let nsqd = nsqd.memory(16 * 1024).start().await.unwrap();
    until_logged(&format!("INFO nsqd: connected to nsqlookupd {lookupd_tcp}")).await;
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let nsqd = nsqd.clone();
        tasks.spawn(async move {
            for _ in 0..500 {
                nsqd.publish("t", b"1").await.unwrap();
            }
        });
    }
    let client = Publisher::builder(nsqd.tcp_addr().to_string().as_str()).start().unwrap();
    for _ in 0..1000 {
        let _ = client.publish("t", b"2").await.unwrap();
    }
    let lookup = lookupd.http_address().to_string();
    let consumer = Consumer::builder("t", "c").lookupd(lookup.as_str());
    let consumer = consumer.lookup_interval(Duration::from_millis(100)).start().unwrap();
    let (mut own, mut clients) = (0, 0);
    while own < 4000 || clients < 1000 {
        let message = tokio::time::timeout(LIMIT, consumer.next()).await.unwrap().unwrap();
        match message.body() {
            b"1" => own += 1,
            _ => clients += 1,
        }
        let _ = message.finish();
    }
    tasks.join_all().await;
    nsqd.idle().await;
    client.shutdown(LIMIT).await.unwrap();
    nsqd.shutdown(LIMIT).await.unwrap();
    assert_eq!((own, clients, nsqd.counters().accepted), (4000, 1000, 5000));
    eventually("not listed any more", LIMIT, async || {
        lookupd.get_json("/lookup?topic=t").await["producers"] == serde_json::json!([])
    })
    .await;
    consumer.shutdown(LIMIT).await;
}

#[test]
fn what_is_not_consumed_is_counted_at_the_end_whatever_ends_it() {
    collect_log();
    let servers = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let nsqd = servers.block_on(Nsqd::builder(ANY, ANY).channel("t", "c").start()).unwrap();
    let idle = servers.spawn({
        let nsqd = nsqd.clone();
        async move { nsqd.idle().await }
    });
    let address = nsqd.tcp_addr();
    for _ in 0..3 {
        nsqd.try_publish("t", b"1").unwrap();
    }
    // Not within the program's runtime.
    let until = Until::distinct(1);
    let consumed = servers.block_on(consume_all(address, "t", "c", until)).unwrap();
    assert!(!consumed.messages.is_empty());
    nsqd.try_publish("t", b"1").unwrap();
    let left = servers.block_on(nsqd.shutdown(Duration::from_millis(50))).unwrap_err();
    assert!(left.messages > 0, "{left}");
    servers.block_on(idle).unwrap();
    assert_eq!(nsqd.try_publish("t", b"1"), Err(NotAccepted::Stopped));
    assert!(std::net::TcpStream::connect(address).is_err(), "the port is closed");

    let nsqd = servers.block_on(Nsqd::builder(ANY, ANY).channel("t", "c").start()).unwrap();
    for _ in 0..7 {
        nsqd.try_publish("t", b"1").unwrap();
    }
    drop(servers);
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(until_logged("WARN nsqd: 7 messages were not delivered"));
    assert_eq!(runtime.block_on(nsqd.publish("t", b"1")), Err(NotAccepted::Stopped));
}

#[tokio::test]
async fn wrong_settings_and_names_are_named() {
    async fn wrong(builder: NsqdBuilder) -> String {
        builder.start().await.unwrap_err().to_string()
    }
    let text = wrong(Nsqd::builder(ANY, ANY).channel("t", "a channel")).await;
    assert!(text.starts_with("channel: byte 0x20 at position 1"), "{text}");
    let text = wrong(Nsqd::builder(ANY, ANY).lookupd("a")).await;
    assert!(text.starts_with("address 1 of nsqlookupd: no port"), "{text}");
    let text = wrong(Nsqd::builder("0.0.0.0:0", ANY).lookupd("a:1")).await;
    assert!(text.starts_with("no broadcast_address, and it listens on 0.0.0.0:"), "{text}");
    let text = wrong(Nsqd::builder(ANY, ANY).memory(10)).await;
    assert!(text.contains("store"), "{text}");
    let nsqd = Nsqd::builder(ANY, ANY).memory(4096).start().await.unwrap();
    let taken = Nsqd::builder(nsqd.tcp_addr().to_string(), ANY).start().await.unwrap_err();
    assert!(matches!(taken, StartError::Listen { .. }), "{taken}");
    let error = nsqd.publish("a topic", b"1").await.unwrap_err();
    assert!(error.to_string().starts_with("topic: byte 0x20 at position 1"), "{error}");
    let error = nsqd.publish("t", [0; 5000]).await.unwrap_err();
    assert!(matches!(error, NotAccepted::Refused(Refusal::TooLarge { .. })), "{error}");
}
