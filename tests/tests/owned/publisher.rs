//! The publisher.

use std::collections::HashSet;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nanonsq_std::core::publisher::{Full, PublishError as Refusal};
use nanonsq_std::{NotAcknowledged, Options, PublishError, Publisher, StartError};
use nanonsq_tests::{Nsqd, ServerOptions, Until, consume_all, require_peers};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;

use crate::{collect_log, logged, until_logged};

const LIMIT: Duration = Duration::from_secs(60);

fn builder(nsqd: SocketAddr) -> nanonsq_std::PublisherBuilder {
    Publisher::builder(nsqd.to_string().as_str())
}

/// An address on which nothing listens.
fn closed() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

async fn arrived(nsqd: SocketAddr, topic: &str, until: Until) -> HashSet<u32> {
    // On a loaded machine nsqd pauses for seconds.
    let until = until.idle(LIMIT / 4).limit(LIMIT);
    let consumed = consume_all(nsqd, topic, "oracle", until).await.unwrap();
    consumed.texts().iter().map(|text| text.parse().unwrap()).collect()
}

fn threads() -> Runtime {
    Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

#[tokio::test]
async fn five_lines_publish_and_the_log_tells_of_the_connection() {
    collect_log();
    let peers = require_peers!();
    let mut nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let address = nsqd.tcp_address();

    let nsq = Publisher::builder(address.to_string().as_str()).start().unwrap();
    nsq.publish("readings", b"1").await.unwrap().acknowledged().await.unwrap();
    let counters = nsq.counters();
    assert_eq!((counters.accepted, counters.acknowledged), (1, 1));
    until_logged(&format!("INFO publisher: connected to {address}")).await;

    nsqd.restart().await;
    until_logged(&format!("WARN publisher: lost {address}: ")).await;
    nsq.publish("readings", "2").await.unwrap().acknowledged().await.unwrap();
    nsq.shutdown(LIMIT).await.unwrap();
    assert_eq!(arrived(address, "readings", Until::distinct(2)).await, HashSet::from([1, 2]));
    // Connected twice, lost once, and nothing of the end.
    assert!(logged(&format!("connected to {address}")).len() == 2, "{:?}", logged("publisher"));
    let after = nsq.publish("readings", b"3").await.unwrap_err();
    assert_eq!(after, PublishError::Refused(Refusal::Stopped));
    assert_eq!(nsq.counters().acknowledged, 2, "the counters outlive the end");
}

/// Also: handles that are dropped in every order, with and without the receipts.
#[test]
fn many_messages_of_many_tasks_are_delivered_when_all_handles_are_dropped() {
    const TASKS: u32 = 8;
    const EACH: u32 = 12_500;
    let peers = require_peers!();
    let runtime = threads();
    runtime.block_on(async {
        let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
        // Room for some hundred: tasks wait.
        let nsq = builder(nsqd.tcp_address()).outbox(8 * 1024).start().unwrap();
        let mut tasks = JoinSet::new();
        for task in 0..TASKS {
            let nsq = nsq.clone();
            tasks.spawn(async move {
                let mut last = None;
                for number in (0..EACH).map(|number| number * TASKS + task) {
                    let mut receipt = nsq.publish("many", number.to_string()).await.unwrap();
                    match (task % 4, number % 16 == task) {
                        (0, _) => last = Some(receipt),
                        (1, true) => receipt.acknowledged().await.unwrap(),
                        _ => drop(receipt),
                    }
                }
                // The receipt before the handle, after it, or by another task.
                if task % 2 == 0 {
                    drop(nsq);
                }
                last
            });
        }
        drop(nsq);
        let mut last = Vec::new();
        while let Some(receipt) = tasks.join_next().await {
            last.extend(receipt.unwrap());
        }
        // No handle is left, and receipts still learn the outcome.
        for mut receipt in last {
            receipt.acknowledged().await.unwrap();
        }
        let all = TASKS * EACH;
        let arrived = arrived(nsqd.tcp_address(), "many", Until::distinct(all as usize)).await;
        assert_eq!(arrived.len(), all as usize);
    });
}

#[test]
fn a_runtime_that_shuts_down_in_the_middle_loses_nothing_acknowledged_and_hangs_nobody() {
    let peers = require_peers!();
    let servers = threads();
    let nsqd = servers.block_on(Nsqd::start(&peers, ServerOptions::new()));
    for round in 0..5 {
        let topic = format!("middle{round}");
        let acknowledged = Arc::new(Mutex::new(Vec::new()));
        let runtime = threads();
        let nsq = {
            let _entered = runtime.enter();
            builder(nsqd.tcp_address()).outbox(4096).start().unwrap()
        };
        for task in 0..8 {
            let (nsq, acknowledged, topic) = (nsq.clone(), acknowledged.clone(), topic.clone());
            runtime.spawn(async move {
                for number in (0..).map(|number| number * 8 + task) {
                    let published = nsq.publish(topic.as_str(), number.to_string()).await;
                    let Ok(mut receipt) = published else { return };
                    if receipt.acknowledged().await.is_ok() {
                        acknowledged.lock().unwrap().push(number);
                    }
                }
            });
        }
        // Another thread than the runtime's waits when it shuts down.
        let waits = nsq.clone();
        let waiting = std::thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                loop {
                    match waits.publish("other", "1").await {
                        Ok(mut receipt) => match receipt.acknowledged().await {
                            Ok(()) => {}
                            Err(error) => return format!("{error:?}"),
                        },
                        Err(error) => return format!("{error:?}"),
                    }
                }
            })
        });
        while acknowledged.lock().unwrap().is_empty() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(100 + 37 * round));
        let start = Instant::now();
        runtime.shutdown_timeout(Duration::from_secs(10));
        let ended = waiting.join().unwrap();
        assert!(ended.contains("Ended") || ended.contains("Stopped"), "{ended}");
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());

        let after = nsq.try_publish("other", "1", Options::default()).unwrap_err();
        assert_eq!(after, PublishError::Refused(Refusal::Stopped));
        let known: HashSet<u32> = acknowledged.lock().unwrap().iter().copied().collect();
        let all = servers.block_on(nsqd.get_json(&format!("/stats?format=json&topic={topic}")));
        let all = all["topics"][0]["message_count"].as_u64().unwrap();
        // Others than those acknowledged may have arrived, some of them twice.
        let until = Until::distinct(all as usize);
        let arrived = servers.block_on(arrived(nsqd.tcp_address(), &topic, until));
        assert_eq!(known.difference(&arrived).count(), 0, "acknowledged, and not there");
    }
}

#[tokio::test]
async fn a_shutdown_says_what_was_not_delivered_and_why() {
    collect_log();
    let address = closed();
    let nsq = builder(address).start().unwrap();
    let mut receipts = Vec::new();
    for number in 0..3 {
        receipts.push(nsq.publish("readings", number.to_string()).await.unwrap());
    }
    until_logged(&format!("WARN publisher: cannot connect to {address}: ")).await;
    let waiting = tokio::spawn(async move { receipts.remove(0).acknowledged().await });
    let left = nsq.shutdown(Duration::from_millis(300)).await.unwrap_err();
    assert_eq!(left.messages, 3);
    let text = left.to_string();
    assert!(text.starts_with("3 messages were not delivered: cannot connect to 127.0."), "{text}");
    assert_eq!(waiting.await.unwrap(), Err(NotAcknowledged::Ended));
    // One line for all attempts.
    assert_eq!(logged(&format!("cannot connect to {address}")).len(), 2, "the cause, the end");
}

#[tokio::test(start_paused = true)]
async fn a_dropped_publisher_gives_up_after_five_seconds_and_logs_what_it_had() {
    collect_log();
    let address = closed();
    let nsq = builder(address).start().unwrap();
    let mut receipt = nsq.publish("readings", b"21.5").await.unwrap();
    let start = tokio::time::Instant::now();
    drop(nsq);
    assert_eq!(receipt.acknowledged().await, Err(NotAcknowledged::Ended));
    let after = start.elapsed();
    assert!((5.0..7.0).contains(&after.as_secs_f64()), "{after:?}");
    let line = format!("1 message was not delivered: cannot connect to {address}");
    assert_eq!(logged(&line).len(), 1);
}

#[tokio::test]
async fn wrong_settings_and_names_are_named() {
    let wrong = |builder: nanonsq_std::PublisherBuilder| match builder.start() {
        Err(StartError::Setting(what)) => what,
        other => panic!("{other:?}"),
    };
    let text = wrong(Publisher::builder("127.0.0.1"));
    assert_eq!(text, "address 1 of nsqd: no port; write host:port, as in 127.0.0.1:4150");
    let text = wrong(Publisher::builder("a:1").nsqd("http://b:4151"));
    assert!(text.starts_with("address 2 of nsqd: not a host"), "{text}");
    let text = wrong(Publisher::builder("a:1").outbox(10));
    assert!(text.starts_with("the outbox ring has 10 bytes"), "{text}");
    let text = wrong(Publisher::builder("a:1").heartbeat(Duration::from_millis(10)));
    assert!(text.starts_with("heartbeat interval 10 ms"), "{text}");

    let nsq = builder(closed()).outbox(1024).start().unwrap();
    let text = nsq.publish("a topic", b"1").await.unwrap_err().to_string();
    assert!(text.starts_with("topic: byte 0x20 at position 1 is not allowed"), "{text}");
    let error = nsq.publish("t", [0; 2000]).await.unwrap_err();
    assert!(matches!(error, PublishError::Refused(Refusal::TooLarge { .. })), "{error}");
    let error = nsq.publish("t", b"").await.unwrap_err();
    assert_eq!(error, PublishError::Refused(Refusal::Empty));
}

#[test]
fn without_a_runtime_there_is_an_error() {
    let error = builder(closed()).start().unwrap_err();
    assert!(matches!(error, StartError::NoRuntime), "{error}");
}

/// More tasks wait than the core has places for wakers.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_tasks_wait_for_room_in_turn_and_can_give_up() {
    let peers = require_peers!();
    let mut nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let nsq = builder(nsqd.tcp_address()).outbox(256).start().unwrap();
    nsq.publish("t", b"0").await.unwrap().acknowledged().await.unwrap();
    nsqd.stop_sigterm().await;
    let full = async { while nsq.try_publish("t", b"0", Options::default()).is_ok() {} };
    full.await;
    let mut tasks = JoinSet::new();
    for number in 1..=100 {
        let nsq = nsq.clone();
        tasks.spawn(async move {
            let published = nsq.publish("t", number.to_string());
            if number % 10 == 0 {
                // Cancelled while it waits.
                let waited = tokio::time::timeout(Duration::from_millis(10), published).await;
                return waited.is_ok();
            }
            published.await.unwrap().acknowledged().await.unwrap();
            true
        });
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let refused = nsq.counters().refused;
    assert_eq!(refused, 1, "waiting is no refusal");
    nsqd.start_again().await;
    let done = tokio::time::timeout(LIMIT, tasks.join_all()).await.expect("in time");
    assert_eq!(done.into_iter().filter(|done| *done).count(), 90);
    nsq.flush().await;
    assert_eq!(nsq.counters().pending, 0);
}

#[tokio::test]
async fn the_oldest_make_room_if_asked_for_and_receipts_say_so() {
    let nsq = builder(closed()).outbox(256).when_full(Full::DropOldest).start().unwrap();
    let mut first = nsq.publish("t", [1; 100]).await.unwrap();
    for _ in 0..3 {
        let _ = nsq.publish("t", [2; 100]).await.unwrap();
    }
    assert_eq!(first.acknowledged().await, Err(NotAcknowledged::Dropped));

    // Those before it would have to be final first.
    let nsq = builder(closed()).start().unwrap();
    let expire = Options { expire: Some(Duration::ZERO), ..Options::default() };
    let mut expired = nsq.publish_with("t", b"3", expire).await.unwrap();
    assert_eq!(expired.acknowledged().await, Err(NotAcknowledged::Expired));
    assert_eq!(expired.number(), 0);
}
