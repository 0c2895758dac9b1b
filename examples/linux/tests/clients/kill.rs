//! Consumers that are killed at random while they receive many messages.

use std::io::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nanonsq_tests::client::Library;
use nanonsq_tests::random::Random;
use nanonsq_tests::{Client, ServerOptions, eventually};
use tokio::task::JoinSet;

use crate::ledger::{Connection, Ledger};
use crate::pair::{SOON, Setting, tests_with};
use crate::raw::{Raw, Received, mpub};

tests_with!([Real, OurNode]: consumers_are_killed_at_random, go_nsq_is_killed);

const LIMIT: Duration = Duration::from_secs(300);
const CONSUMERS: u64 = 4;
/// Messages of one MPUB.
const BATCH: usize = 200;
/// Length of a message in bytes.
const SIZE: usize = 32;

/// A [`Ledger`] records every delivery and answer, and checks them.
async fn consumers_are_killed_at_random(setting: Setting) {
    let ours = setting.subject.is_our_node();
    // nsqd delivers the messages of a lost client again only after their timeout.
    let (messages, msg_timeout) = if ours { (1_000_000, "60s") } else { (100_000, "3s") };
    let options = ServerOptions::new().flag(format!("--msg-timeout={msg_timeout}"));
    let node = setting.subject.start_node(&setting.peers, options).await;
    node.create_topic("t").await;
    node.create_channel("t", "c").await;
    let address = node.tcp_address();

    let ledger = Arc::new(Ledger::new(messages));
    let over = Arc::new(AtomicBool::new(false));
    let start = Instant::now();
    let producer = tokio::spawn(publish(address, messages));
    let mut consumers = JoinSet::new();
    for seed in 1..=CONSUMERS {
        let (ledger, over) = (ledger.clone(), over.clone());
        consumers.spawn(async move {
            let mut random = Random::new(seed);
            let mut lives = 0;
            while !over.load(Relaxed) {
                live(address, &ledger, &over, &mut random).await?;
                lives += 1;
            }
            Result::Ok(lives)
        });
    }
    let mut memory = Vec::new();
    eventually("all messages were finished", LIMIT, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let finished = ledger.finished();
        if finished > messages / 5 {
            memory.push(node.resident());
        }
        // A consumer ends early only if it has found a fault.
        if let Some(ended) = consumers.try_join_next() {
            panic!("{ended:?}");
        }
        finished == messages
    })
    .await;
    let rate = messages as f64 / start.elapsed().as_secs_f64();
    over.store(true, Relaxed);
    producer.await.unwrap().unwrap();
    let lives: Vec<usize> = consumers.join_all().await.into_iter().map(Result::unwrap).collect();
    let lives: usize = lives.iter().sum();

    // The messages of the last killed consumers are delivered again to one that survives.
    let over = AtomicBool::new(false);
    let heir = async {
        let mut raw = Raw::subscribe(address, "t", "c", 100).await?;
        let mut connection = Connection::new(100);
        let mut random = Random::new(0);
        consume(&mut raw, &ledger, &over, usize::MAX, &mut connection, &mut random).await
    };
    let empty = async {
        eventually("nothing is left", SOON, async || {
            let stats = node.channel_stats("t", "c").await;
            ["depth", "in_flight_count", "deferred_count"].iter().all(|&key| stats[key] == 0)
        })
        .await;
        over.store(true, Relaxed);
    };
    let (heir, ()) = tokio::join!(heir, empty);
    heir.unwrap();
    ledger.check_end();

    let (low, high) = (memory.iter().min().unwrap_or(&0), memory.iter().max().unwrap_or(&0));
    println!("{rate:.0} messages a second, {lives} consumers killed, memory {low} to {high} bytes");
    assert!(lives > messages / 20_000, "only {lives} consumers were killed");
    if ours {
        assert!(high - low <= 128 << 10, "memory moved: {memory:?}");
    }
}

/// Real client programs, killed with SIGKILL.
async fn go_nsq_is_killed(setting: Setting) {
    const MESSAGES: usize = 20_000;
    let Some(client) = Client::find_or_skip(Library::GoNsq, &setting.peers, setting.test) else {
        return;
    };
    let pair = setting.start(ServerOptions::new().flag("--msg-timeout=3s")).await;
    pair.create("t", &["c"]).await;
    let lookupd = pair.lookupd.http_address();
    let start = |die_after| {
        let options = [("max-in-flight", 200), ("msg-timeout-ms", 3_000), ("die-after", die_after)];
        client.consume(lookupd, "t", "c", &options)
    };
    let mortal: Vec<_> = (1..=4).map(|n| start(n * 500)).collect();
    eventually("they are subscribed", SOON, async || {
        pair.channel_stat("t", "c", "client_count").await == 4
    })
    .await;
    let options = [("count", MESSAGES as u64)];
    let mut producer = client.publish(pair.node.tcp_address(), "t", "pub", &options);
    let mut seen = vec![0; MESSAGES];
    for consumer in mortal {
        for delivery in consumer.killed(LIMIT).await {
            seen[delivery.number] += 1;
        }
    }
    let mut heir = start(0);
    assert!(producer.wait(LIMIT).await.success(), "{}", producer.stderr());
    let before: usize = seen.iter().sum();
    assert!(before >= 500 + 1_000 + 1_500 + 2_000, "{before}");
    eventually("all are finished", LIMIT, async || {
        tokio::time::sleep(Duration::from_millis(100)).await;
        heir.deliveries();
        let stats = pair.node.channel_stats("t", "c").await;
        let is = |key: &str, value: usize| stats[key].as_u64() == Some(value as u64);
        is("message_count", MESSAGES) && is("depth", 0) && is("in_flight_count", 0)
    })
    .await;
    for delivery in heir.stop().await {
        seen[delivery.number] += 1;
    }
    assert_eq!(seen.iter().position(|&times| times == 0), None, "a message was lost");
}

/// Publishes messages 0 to `messages`, a few batches ahead of their acknowledgement.
async fn publish(node: SocketAddr, messages: usize) -> Result<()> {
    let mut raw = Raw::identify(node, 30_000).await?;
    let mut ahead = 0;
    for first in (0..messages).step_by(BATCH) {
        let body = |n: usize| format!("{n:.<SIZE$}").into_bytes();
        let batch = first..messages.min(first + BATCH);
        raw.send(&mpub("t", batch.map(body))).await?;
        ahead += 1;
        if ahead == 4 {
            raw.expect("OK").await?;
            ahead -= 1;
        }
    }
    for _ in 0..ahead {
        raw.expect("OK").await?;
    }
    raw.close().await;
    Ok(())
}

/// Runs one connection, from its subscription to its end.
async fn live(
    node: SocketAddr,
    ledger: &Ledger,
    over: &AtomicBool,
    random: &mut Random,
) -> Result<()> {
    let rdy = 1 + random.below(200) as usize;
    let age = random.below(4_000) as usize;
    let mut raw = Raw::subscribe(node, "t", "c", rdy).await?;
    let mut connection = Connection::new(rdy);
    consume(&mut raw, ledger, over, age, &mut connection, random).await?;
    match random.below(3) {
        0 => raw.reset(),
        // Unread bytes make this a reset, too.
        1 => drop(raw),
        _ => {
            raw.close().await;
            ledger.all_processed(&mut connection);
        }
    }
    Ok(())
}

/// Answers messages, some of them later, until it has sent about `age` answers or `over` is set.
/// The rest stays unanswered.
async fn consume(
    raw: &mut Raw,
    ledger: &Ledger,
    over: &AtomicBool,
    age: usize,
    connection: &mut Connection,
    random: &mut Random,
) -> Result<()> {
    // Every other connection requeues as well.
    let requeues = random.below(2) == 0;
    let mut held = Vec::new();
    let mut answered = 0;
    // Now and then it lets its RDY fill, to detect one message too many.
    let mut fills = true;
    while !over.load(Relaxed) {
        // Answer all held messages when no more arrive.
        let next = tokio::time::timeout(Duration::from_millis(20), raw.next()).await;
        let mut answer = held.len();
        if let Ok(received) = next {
            let mut received = Some(received?);
            while let Some(Received::Message(message)) = received {
                held.push(ledger.delivered(connection, &message));
                received = raw.buffered()?;
            }
            assert_eq!(received, None, "the consumer did nothing wrong");
            answer = match random.below(4) {
                _ if fills => 0,
                0 => held.len().div_ceil(2),
                _ => held.len(),
            };
        } else {
            fills = false;
        }
        if answered + answer >= age {
            break;
        }
        answered += answer;
        fills |= random.below(200) == 0;
        let mut answers = Vec::new();
        for delivered in held.drain(..answer) {
            let again = requeues && random.below(100) == 0;
            answers.extend(delivered.answer(again));
            ledger.answered(connection, &delivered, again);
        }
        raw.send(&answers).await?;
    }
    Ok(())
}
