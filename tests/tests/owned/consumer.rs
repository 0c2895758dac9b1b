//! The consumer.

use std::collections::HashSet;
use std::future::poll_fn;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::time::{Duration, Instant};

use futures_core::Stream;
use nanonsq_std::core::consumer::AnswerError;
use nanonsq_std::{Consumer, ConsumerBuilder, Message, Publisher, StartError};
use nanonsq_tests::{Nsqd, Nsqlookupd, ServerOptions, require_peers};
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use crate::{collect_log, logged, until_logged};

const LIMIT: Duration = Duration::from_secs(60);

fn builder(nsqd: SocketAddr) -> ConsumerBuilder {
    Consumer::builder("t", "c").nsqd(nsqd.to_string().as_str())
}

fn number(message: &Message) -> u32 {
    std::str::from_utf8(message.body()).unwrap().parse().unwrap()
}

async fn publish(nsqd: SocketAddr, count: u32) {
    let nsq = Publisher::builder(nsqd.to_string().as_str()).start().unwrap();
    for number in 0..count {
        let _ = nsq.publish("t", number.to_string()).await.unwrap();
    }
    nsq.shutdown(LIMIT).await.unwrap();
}

async fn depths(nsqd: &Nsqd) -> (u64, u64) {
    let stats = nsqd.get_json("/stats?format=json&topic=t").await;
    let channel = &stats["topics"][0]["channels"][0];
    let count = |field: &str| channel[field].as_u64().unwrap();
    (count("depth") + count("deferred_count"), count("in_flight_count"))
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_share_the_messages_of_nsqds_that_are_found() {
    collect_log();
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let options = ServerOptions::new().lookupd(lookupd.tcp_address());
    let mut nsqd = Nsqd::start(&peers, options).await;
    let address = nsqd.tcp_address();
    publish(address, 10_000).await;

    let lookup = lookupd.http_address().to_string();
    let consumer = Consumer::builder("t", "c").lookupd(lookup.as_str());
    let consumer =
        consumer.lookup_interval(Duration::from_millis(100)).max_in_flight(200).start().unwrap();
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let consumer = consumer.clone();
        tasks.spawn(async move {
            let mut numbers = Vec::new();
            while let Some(message) = consumer.next().await {
                let last = number(&message);
                if message.finish().is_ok() {
                    numbers.push(last);
                }
                if consumer.counters().finished == 10_000 {
                    consumer.shutdown(LIMIT).await;
                }
            }
            numbers
        });
    }
    let all = tokio::time::timeout(LIMIT, tasks.join_all()).await.expect("in time");
    assert!(all.iter().all(|of_task| !of_task.is_empty()), "each task has some");
    let numbers: HashSet<u32> = all.into_iter().flatten().collect();
    assert_eq!(numbers.len(), 10_000);
    assert!(!logged(&format!("INFO consumer: nsqlookupd {lookup} lists 1 nsqd")).is_empty());
    until_logged(&format!("INFO consumer: connected to {address}")).await;
    nsqd.stop_sigterm().await;
}

#[tokio::test]
async fn a_message_is_answered_once_and_a_dropped_one_is_delivered_again() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    publish(nsqd.tcp_address(), 1).await;
    let delay = Duration::from_millis(50);
    let consumer = builder(nsqd.tcp_address()).requeue_delay(delay).start().unwrap();
    let mut stream = pin!(consumer.clone());

    let message = poll_fn(|cx| stream.as_mut().poll_next(cx)).await.unwrap();
    assert_eq!((message.body(), message.attempts()), (&b"0"[..], 1));
    assert!(message.timestamp() > 0 && message.id().len() == 16 && !message.is_exhausted());
    assert!(format!("{message:?}").contains("body: 0"), "{message:?}");
    message.touch().unwrap();
    assert!(consumer.try_next().is_none());
    drop(message);
    let message = consumer.next().await.unwrap();
    assert_eq!(message.attempts(), 2);
    message.requeue(Some(Duration::from_millis(50))).unwrap();
    let message = consumer.next().await.unwrap();
    assert_eq!(message.attempts(), 3);
    message.release(None).unwrap();
    let message = consumer.next().await.unwrap();
    message.finish().unwrap();
    // The end waits for what was taken, and takes nothing more.
    consumer.shutdown(LIMIT).await;
    assert!(consumer.next().await.is_none());
    assert!(poll_fn(|cx| stream.as_mut().poll_next(cx)).await.is_none());
    assert_eq!(depths(&nsqd).await, (0, 0));
    let counters = consumer.counters();
    assert_eq!((counters.received, counters.finished), (4, 1));
}

/// Handles and messages dropped in every order; the messages not answered are there again.
#[test]
fn what_is_not_finished_at_the_end_is_delivered_again() {
    let peers = require_peers!();
    let servers = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let nsqd = servers.block_on(Nsqd::start(&peers, ServerOptions::new()));
    servers.block_on(publish(nsqd.tcp_address(), 1000));
    let mut finished = 0;
    for round in 0..6 {
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (consumer, held) = runtime.block_on(async {
            let consumer = builder(nsqd.tcp_address()).max_in_flight(50);
            let consumer =
                consumer.msg_timeout(Duration::from_secs(2)).requeue_delay(Duration::ZERO);
            let consumer = consumer.start().unwrap();
            let mut held = Vec::new();
            for _ in 0..20 {
                held.push(consumer.next().await.unwrap());
            }
            for message in held.drain(..10) {
                message.finish().unwrap();
                finished += 1;
            }
            (consumer, held)
        });
        let start = Instant::now();
        // The answers have left before the connection ends: otherwise they are delivered again.
        runtime.block_on(async {
            match round % 3 {
                0 => consumer.shutdown(Duration::from_millis(200)).await,
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        });
        match round % 3 {
            0 => drop((held, consumer, runtime)),
            1 => drop((consumer, runtime, held)),
            _ => {
                drop(runtime);
                assert!(consumer.try_next().is_none());
                for message in held {
                    assert_eq!(message.finish(), Err(AnswerError::Late), "nothing is sent");
                }
            }
        }
        assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
        let all = async {
            while depths(&nsqd).await != (1000 - finished, 0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let all = servers.block_on(async { tokio::time::timeout(LIMIT, all).await });
        assert!(all.is_ok(), "round {round}: {:?}", servers.block_on(depths(&nsqd)));
    }
}

#[tokio::test]
async fn wrong_settings_are_named_and_a_refusal_is_logged_with_its_cause() {
    collect_log();
    let wrong = |builder: ConsumerBuilder| match builder.start() {
        Err(StartError::Setting(what)) => what,
        other => panic!("{other:?}"),
    };
    let text = wrong(Consumer::builder("t", "c"));
    assert_eq!(text, "no source; give an nsqd or an nsqlookupd");
    let text = wrong(Consumer::builder("t", "a channel").nsqd("a:1"));
    assert!(text.starts_with("channel: byte 0x20 at position 1"), "{text}");
    let text = wrong(Consumer::builder("", "c").nsqd("a:1"));
    assert!(text.starts_with("topic: the name is empty"), "{text}");
    let text = wrong(Consumer::builder("t", "c").lookupd("a"));
    assert!(text.starts_with("address 1 of nsqlookupd: no port"), "{text}");
    let text = wrong(Consumer::builder("t", "c").nsqd("a:1").max_in_flight(2000));
    assert_eq!(text, "2000 messages in flight; give 1 to 1024");
    let text = wrong(Consumer::builder("t", "c").nsqd("a:1").memory(1000));
    assert!(text.contains("1000 bytes"), "{text}");

    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let consumer = builder(closed).start().unwrap();
    until_logged(&format!("WARN consumer: cannot connect to {closed}: ")).await;
    let start = Instant::now();
    let waiting = consumer.clone();
    let waiting = tokio::spawn(async move { waiting.next().await.is_none() });
    tokio::task::yield_now().await;
    consumer.shutdown(LIMIT).await;
    assert!(waiting.await.unwrap() && start.elapsed() < Duration::from_secs(3));
}
