//! Consuming from real nsqds.

mod discovery;
mod messages;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nanonsq_std::core::consumer::{
    AnswerError, Config, ConnectionEvent, Event, Exhausted, TooLarge,
};
use nanonsq_std::core::session::{Closed, DecodeError, DialError, Fault, LinkState};
use nanonsq_std::core::time::Span;
use nanonsq_tests::proxy::{Mode, Recording};
use nanonsq_tests::tap::V2;
use nanonsq_tests::{
    Cut, Nsqd, Nsqlookupd, Peers, Proxy, ServerOptions, Until, auth, consume_all, eventually,
    oracle, ports, require_peers, tap,
};
use serde_json::Value;

use crate::support::{Consumer, channel, text, topic};

const SOON: Duration = Duration::from_secs(5);

/// The time after which nsqd looks for due messages in a new channel.
const NEW_CHANNEL: Duration = Duration::from_secs(5);

/// A configuration that notices everything soon and does not back off.
fn config() -> Config<'static> {
    Config {
        heartbeat: Span::from_secs(1),
        connect_timeout: Span::from_millis(500),
        reconnect_base: Span::from_millis(10),
        reconnect_cap: Span::from_millis(100),
        lookup_interval: Span::from_millis(500),
        backoff_base: Span::ZERO,
        max_attempts: 0,
        ..Config::new(topic("t"), channel("c"))
    }
}

async fn start_nsqd(peers: &Peers) -> Nsqd {
    Nsqd::start(peers, ServerOptions::new()).await
}

/// Returns nsqd's statistics of the channel `c`.
async fn stats(nsqd: &Nsqd) -> Value {
    nsqd.channel_stats("t", "c").await
}

/// Waits until nsqd's statistics of the channel `c` have these values.
#[track_caller]
fn expect_stats<'a>(
    nsqd: &'a Nsqd,
    expected: &'a [(&'a str, u64)],
) -> impl Future<Output = ()> + 'a {
    let what = format!("nsqd's statistics are {expected:?}");
    async move {
        let mut stats = Value::Null;
        let all = async {
            loop {
                stats = self::stats(nsqd).await;
                if expected.iter().all(|(key, value)| number(&stats, key) == *value) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(SOON, all).await.is_err() {
            panic!("not within {SOON:?}: {what}: {stats}");
        }
    }
}

/// Returns a number of the channel, or the sum over its clients where nsqd counts only for clients.
fn number(stats: &Value, key: &str) -> u64 {
    let of_clients = || {
        let clients = stats["clients"].as_array()?;
        Some(clients.iter().filter_map(|client| client[key].as_u64()).sum())
    };
    stats[key].as_u64().or_else(of_clients).unwrap_or(0)
}

/// Publishes numbers over HTTP.
async fn publish_numbers(nsqd: &Nsqd, numbers: impl Iterator<Item = u32>) {
    let lines: Vec<_> = numbers.map(|number| number.to_string()).collect();
    nsqd.post("/mpub?topic=t", lines.join("\n").as_bytes()).await;
}

// Nothing is lost, and no finished message is delivered again.

/// The recorded commands and deliveries of one nsqd, over all its connections.
struct Wire {
    connections: Vec<(Vec<V2>, Vec<oracle::Message>)>,
}

impl Wire {
    fn of(recordings: &[Recording]) -> Self {
        let read = |recording: &Recording| {
            let (deliveries, errors) = oracle::deliveries(&recording.from_server).unwrap();
            assert_eq!(errors, [""; 0]);
            (tap::nsqd(&recording.from_client).unwrap().commands, deliveries)
        };
        // While nsqd is down the proxy accepts connections that lead nowhere.
        let reached = recordings.iter().filter(|recording| !recording.from_server.is_empty());
        Self { connections: reached.map(read).collect() }
    }

    /// Counts how often each message was finished, and checks every delivery:
    ///
    /// A FIN counts unless nsqd ended its connection before reading it. nsqd reads commands in
    /// order, so the unread ones are the last that were sent, and their messages are delivered
    /// again. A message that is delivered again though its FIN was read is an error.
    fn finished(&self) -> HashMap<String, u32> {
        let mut finished = HashMap::new();
        for (index, (commands, delivered)) in self.connections.iter().enumerate() {
            let here: HashSet<String> = delivered.iter().map(id).collect();
            let later: HashSet<String> = self.connections[index + 1..]
                .iter()
                .flat_map(|(_, all)| all.iter().map(id))
                .collect();
            let fins: Vec<&String> = commands
                .iter()
                .filter_map(|command| match command {
                    V2::Fin(id) => Some(id),
                    _ => None,
                })
                .collect();
            let read = fins.iter().take_while(|id| !later.contains(**id)).count();
            for (at, id) in fins.iter().enumerate() {
                assert!(here.contains(*id), "FIN of a message that was not delivered here: {id}");
                if at < read {
                    *finished.entry((*id).clone()).or_default() += 1;
                } else {
                    assert!(later.contains(*id), "the FIN of {id} was read after an unread one");
                }
            }
            assert!(
                fins.len() - read <= IN_FLIGHT,
                "{} FIN unread: more than were in flight",
                fins.len() - read
            );
            // On one connection a message is delivered again only if it was requeued.
            let mut requeued: HashMap<&String, usize> = HashMap::new();
            for command in commands {
                if let V2::Req(id, _) = command {
                    *requeued.entry(id).or_default() += 1;
                }
            }
            let mut times: HashMap<String, usize> = HashMap::new();
            for message in delivered {
                *times.entry(id(message)).or_default() += 1;
            }
            for (id, times) in &times {
                let requeued = requeued.get(id).copied().unwrap_or(0);
                assert!(
                    *times <= requeued + 1,
                    "{id} was delivered {times} times and requeued {requeued} times"
                );
            }
        }
        finished
    }

    fn count(&self, connection: usize, is: impl Fn(&V2) -> bool) -> u64 {
        self.connections[connection].0.iter().filter(|command| is(command)).count() as u64
    }
}

fn id(message: &oracle::Message) -> String {
    String::from_utf8_lossy(&message.id).into_owned()
}

const MANY: u32 = 100_000;
const IN_FLIGHT: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_is_finished_once_while_servers_restart() {
    let peers = require_peers!();
    let mut lookupds = Vec::new();
    for _ in 0..2 {
        lookupds.push(Nsqlookupd::start(&peers, ServerOptions::new()).await);
    }
    // Each nsqd announces a proxy, which records the bytes.
    let mut nsqds = Vec::new();
    let mut proxies = Vec::new();
    for _ in 0..3 {
        let proxy = Proxy::start(ports::reserve().address()).await;
        let mut options =
            ServerOptions::new().flag(format!("--broadcast-tcp-port={}", proxy.address().port()));
        for lookupd in &lookupds {
            options = options.lookupd(lookupd.tcp_address());
        }
        let nsqd = Nsqd::start(&peers, options).await;
        proxy.set_target(nsqd.tcp_address());
        proxy.set_recording(true);
        nsqds.push(nsqd);
        proxies.push(proxy);
    }
    let mut published = 0;
    let publish = async |nsqds: &[Nsqd], published: &mut u32, chunks: u32| {
        for _ in 0..chunks {
            let at = (*published / 1000) as usize % nsqds.len();
            publish_numbers(&nsqds[at], *published..*published + 1000).await;
            *published += 1000;
        }
    };
    publish(&nsqds, &mut published, 45).await;

    let lookupd_addresses: Vec<_> = lookupds.iter().map(Nsqlookupd::http_address).collect();
    let consumer = Consumer::start(config(), &[], &lookupd_addresses);
    // By number, how often finish() succeeded.
    let done = Arc::new(Mutex::new(BTreeMap::<u32, u32>::new()));
    let late = Arc::new(Mutex::new(BTreeSet::<u32>::new()));
    let handlers: Vec<_> = (0..4)
        .map(|handler| {
            let (handle, done, late) = (consumer.handle.clone(), done.clone(), late.clone());
            tokio::spawn(async move {
                for turn in 0u32.. {
                    let message = handle.next().await;
                    let number: u32 = text(&message).parse().unwrap();
                    if turn % 4 == handler {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                    // One of a hundred fails at its first attempt.
                    if number % 100 == 7 && message.head().unwrap().attempts == 1 {
                        let _ =
                            message.requeue(Some(Span::from_millis(u32::from(number % 2 == 1))));
                    } else if message.finish().is_ok() {
                        *done.lock().unwrap().entry(number).or_default() += 1;
                    } else {
                        late.lock().unwrap().insert(number);
                    }
                }
            })
        })
        .collect();
    let finished = async |count: u32| {
        let what = format!("{count} finished");
        eventually(&what, Duration::from_secs(60), async || {
            done.lock().unwrap().len() >= count as usize
        })
        .await;
    };

    finished(10_000).await;
    nsqds[0].stop_sigterm().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    nsqds[0].start_again().await;
    finished(20_000).await;
    lookupds[0].stop_sigterm().await;
    publish(&nsqds, &mut published, 25).await;
    finished(40_000).await;
    lookupds[0].start_again().await;
    publish(&nsqds, &mut published, MANY / 1000 - 70).await;
    finished(80_000).await;
    assert!(published == MANY && done.lock().unwrap().len() < MANY as usize, "too fast");
    nsqds[0].stop_sigterm().await;
    nsqds[0].start_again().await;
    finished(MANY).await;

    // nsqd has no message left.
    let zero = [("depth", 0), ("in_flight_count", 0), ("deferred_count", 0), ("timeout_count", 0)];
    for nsqd in &nsqds {
        expect_stats(nsqd, &zero).await;
        assert_eq!(nsqd.depth("t").await, 0);
    }
    let wires: Vec<_> = proxies.iter().map(|proxy| Wire::of(&proxy.recordings())).collect();
    let lives: Vec<_> = wires.iter().map(|wire| wire.connections.len()).collect();
    assert_eq!(lives, [3, 1, 1]);
    let mut finished = 0;
    for (wire, nsqd) in wires.iter().zip(&nsqds) {
        let all = wire.finished();
        let twice: Vec<_> = all.iter().filter(|(_, times)| **times != 1).take(5).collect();
        assert!(twice.is_empty(), "delivered again though their FIN was read: {twice:?}");
        finished += all.len();
        // nsqd counts the commands that it has read since it started: all of the last connection.
        let last = wire.connections.len() - 1;
        let (fins, reqs) = (
            wire.count(last, |command| matches!(command, V2::Fin(_))),
            wire.count(last, |command| matches!(command, V2::Req(..))),
        );
        expect_stats(nsqd, &[("finish_count", fins), ("requeue_count", reqs)]).await;
    }
    assert_eq!(finished, MANY as usize);
    // The application's counts agree: only FINs that an ending nsqd did not read are duplicates.
    let done = done.lock().unwrap();
    assert!(done.keys().copied().eq(0..MANY));
    let sent: u64 = wires
        .iter()
        .flat_map(|wire| {
            (0..wire.connections.len()).map(|at| wire.count(at, |c| matches!(c, V2::Fin(_))))
        })
        .sum();
    let succeeded: u64 = done.values().map(|times| u64::from(*times)).sum();
    let counters = consumer.handle.counters();
    println!(
        "{} finished twice because nsqd did not read the first FIN, {} late; {counters:?}",
        succeeded - u64::from(MANY),
        late.lock().unwrap().len()
    );
    // Some accepted answers were not sent before their connection ended.
    assert!(
        succeeded >= sent && succeeded - sent <= 2 * IN_FLIGHT as u64,
        "{succeeded} succeeded, {sent} sent"
    );
    assert!(succeeded - u64::from(MANY) <= 2 * IN_FLIGHT as u64, "{succeeded}");
    assert_eq!(counters.finished, succeeded);
    assert!((MANY / 100 - 2 * 64..).contains(&(counters.requeued as u32)), "{counters:?}");
    assert_eq!((counters.timed_out, counters.no_room, counters.refused), (0, 0, 0), "{counters:?}");
    assert_eq!(counters.connections, 5, "{counters:?}");
    handlers.iter().for_each(|handler| handler.abort());
}

// nsqds are found, and no nsqlookupd delays another.

#[tokio::test]
async fn a_frozen_nsqd_is_noticed() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let consumer = Consumer::start(config(), &[nsqd.tcp_address()], &[]);
    consumer.connected(1).await;
    nsqd.freeze();
    let why = tokio::time::timeout(Duration::from_secs(4), disconnected(&consumer)).await;
    nsqd.thaw();
    assert!(matches!(why, Ok(Closed::Fault(Fault::TimedOut(_)))), "{why:?}");
    nsqd.publish("t", b"after").await;
    consumer.next().await.finish().unwrap();
}

async fn disconnected(consumer: &Consumer) -> Closed {
    loop {
        if let Event::Connection { event: ConnectionEvent::Disconnected(why), .. } =
            consumer.handle.event().await
        {
            return why;
        }
    }
}

// Control by the application.

#[tokio::test]
async fn stopping_requeues_everything() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    publish_numbers(&nsqd, 0..100).await;
    let config = Config { drain_timeout: Span::from_millis(800), ..config() };
    let consumer = Consumer::start_with::<16>(config, &[proxy.address()], &[], 4096);
    for _ in 0..10 {
        consumer.next().await.finish().unwrap();
    }
    let answered = consumer.next().await;
    let kept = consumer.next().await;
    let start = Instant::now();
    let stopping = async {
        consumer.handle.stop().await;
        start.elapsed()
    };
    let answering = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        // There is still time for this answer.
        answered.finish().unwrap();
    };
    let (took, ()) = tokio::join!(stopping, answering);
    let range = Duration::from_millis(700)..Duration::from_millis(2500);
    assert!(range.contains(&took), "{took:?}");
    assert_eq!(kept.finish(), Err(AnswerError::Late));
    // The other 89 messages are queued again at once.
    expect_stats(
        &nsqd,
        &[("depth", 89), ("in_flight_count", 0), ("deferred_count", 0), ("client_count", 0)],
    )
    .await;
    assert_eq!(tap::nsqd(&proxy.client_bytes()[0]).unwrap().counts().cls, 1);
    let rest = consume_all(nsqd.tcp_address(), "t", "c", Until::distinct(89)).await.unwrap();
    assert_eq!((rest.messages.len(), rest.distinct().len()), (89, 89));
    expect_stats(&nsqd, &[("depth", 0), ("timeout_count", 0)]).await;
    // The consumer stays stopped.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((proxy.totals().accepted, proxy.totals().open), (1, 0));
}

#[tokio::test]
async fn stopping_with_nothing_in_flight_is_immediate() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let hangs = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    hangs.freeze();
    let nsqd = start_nsqd(&peers).await;
    let consumer = Consumer::start(
        config(),
        &[nsqd.tcp_address()],
        &[lookupd.http_address(), hangs.http_address()],
    );
    consumer.connected(1).await;
    let asking = consumer
        .handle
        .wait(|consumer| (consumer.lookupd_status(1)?.state == LinkState::Asking).then_some(()));
    tokio::time::timeout(SOON, asking).await.unwrap();
    let start = Instant::now();
    consumer.handle.stop().await;
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    expect_stats(&nsqd, &[("client_count", 0)]).await;
}

#[tokio::test]
async fn a_pause_stops_the_flow_and_nothing_else() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let consumer = Consumer::start_with::<8>(config(), &[nsqd.tcp_address()], &[], 4096);
    consumer.connected(1).await;
    expect_stats(&nsqd, &[("ready_count", 8)]).await;
    consumer.handle.pause();
    expect_stats(&nsqd, &[("ready_count", 0)]).await;
    publish_numbers(&nsqd, 0..20).await;
    // Longer than two heartbeats.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(consumer.handle.try_next().is_none());
    expect_stats(&nsqd, &[("depth", 20), ("in_flight_count", 0), ("client_count", 1)]).await;
    consumer.handle.resume();
    for _ in 0..20 {
        consumer.next().await.finish().unwrap();
    }
    expect_stats(&nsqd, &[("ready_count", 8), ("finish_count", 20), ("depth", 0)]).await;
    consumer.handle.set_max_in_flight(3);
    expect_stats(&nsqd, &[("ready_count", 3)]).await;
    assert_eq!(consumer.handle.counters().connections, 1);
}

/// nsqd drops the messages outside the sample; no consumer receives them.
#[tokio::test]
async fn a_sample_is_as_large_as_configured() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let config = Config { sample_rate: 20, ..config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    consumer.connected(1).await;
    publish_numbers(&nsqd, 0..3000).await;
    let mut got = BTreeSet::new();
    let next = async || tokio::time::timeout(Duration::from_secs(1), consumer.handle.next()).await;
    while let Ok(message) = next().await {
        got.insert(text(&message).parse::<u32>().unwrap());
        message.finish().unwrap();
    }
    // nsqd delivers 21 of 100 (it compares `rand.Int31n(100) > sampleRate`): 630, give or take 22.
    assert!((470..=790).contains(&got.len()), "{}", got.len());
    let finished = got.len() as u64;
    expect_stats(&nsqd, &[("finish_count", finished), ("depth", 0), ("in_flight_count", 0)]).await;
}

// AUTH.

#[tokio::test]
async fn auth_is_sent_to_an_nsqd_that_requires_it() {
    let peers = require_peers!();
    let auth = auth::start("t", "c", &["subscribe"]).await;
    let flag = format!("--auth-http-address={auth}");
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    nsqd.publish("t", b"x").await;
    let with = |auth_secret| Config { auth_secret, ..config() };
    let consumer = Consumer::start(with(Some(b"open-sesame")), &[nsqd.tcp_address()], &[]);
    consumer.next().await.finish().unwrap();
    expect_stats(&nsqd, &[("finish_count", 1)]).await;
    drop(consumer);
    let forbidden = Config { channel: channel("d"), ..with(Some(b"open-sesame")) };
    for (config, expected) in [
        (with(None), Fault::AuthRequired),
        (with(Some(b"wrong")), Fault::AuthRefused),
        (forbidden, Fault::AuthRefused),
    ] {
        let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
        let event = tokio::time::timeout(SOON, consumer.handle.event()).await;
        let event = event.expect("an event of the consumer");
        assert_eq!(
            event,
            Event::Connection { index: 0, event: ConnectionEvent::LeftOut(expected) }
        );
    }
}

#[tokio::test]
async fn the_http_port_is_recognised() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let consumer = Consumer::start(config(), &[nsqd.http_address()], &[]);
    let why = tokio::time::timeout(SOON, disconnected(&consumer)).await;
    assert_eq!(why, Ok(Closed::Fault(Fault::Decode(DecodeError::WrongPort))));
}
