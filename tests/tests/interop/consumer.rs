//! Consuming from real nsqds.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nanonsq_std::core::consumer::{
    AnswerError, Config, ConnectionEvent, Event, Exhausted, LookupdState, TooLarge,
};
use nanonsq_std::core::session::DecodeError;
use nanonsq_std::core::session::{Closed, DialError, Fault};
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

/// nsqd looks for what is due in a new channel only after this.
const NEW_CHANNEL: Duration = Duration::from_secs(5);

/// Notices everything soon; does not back off.
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

/// nsqd's entry of the channel `c`.
async fn stats(nsqd: &Nsqd) -> Value {
    nsqd.channel_stats("t", "c").await
}

/// Waits until nsqd says so of its channel `c`.
#[track_caller]
fn says<'a>(nsqd: &'a Nsqd, wanted: &'a [(&'a str, u64)]) -> impl Future<Output = ()> + 'a {
    let what = format!("nsqd says {wanted:?}");
    async move {
        let mut stats = Value::Null;
        let all = async {
            loop {
                stats = self::stats(nsqd).await;
                if wanted.iter().all(|(key, value)| number(&stats, key) == *value) {
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

/// One of the channel's numbers; those that nsqd has for clients only are theirs.
fn number(stats: &Value, key: &str) -> u64 {
    let of_clients = || {
        let clients = stats["clients"].as_array()?;
        Some(clients.iter().filter_map(|client| client[key].as_u64()).sum())
    };
    stats[key].as_u64().or_else(of_clients).unwrap_or(0)
}

/// Publishes numbers, by HTTP.
async fn publish_numbers(nsqd: &Nsqd, numbers: impl Iterator<Item = u32>) {
    let lines: Vec<_> = numbers.map(|number| number.to_string()).collect();
    nsqd.post("/mpub?topic=t", lines.join("\n").as_bytes()).await;
}

// Must hold: nothing is lost, and nothing that was finished comes again.

/// What the wire tells of one nsqd, over all its connections.
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
        // While nsqd is away the proxy takes connections that lead nowhere.
        let reached = recordings.iter().filter(|recording| !recording.from_server.is_empty());
        Self { connections: reached.map(read).collect() }
    }

    /// How often each message was finished, after it was justified:
    ///
    /// A FIN counts unless nsqd ended its connection before it read it. nsqd reads commands in
    /// order, so what it did not read is the end of what was sent, and all of that it delivers
    /// again. A message delivered again whose FIN it must have read is the defect looked for.
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
                assert!(here.contains(*id), "FIN of what was not delivered here: {id}");
                if at < read {
                    *finished.entry((*id).clone()).or_default() += 1;
                } else {
                    assert!(later.contains(*id), "{id} was read after one that was not");
                }
            }
            assert!(
                fins.len() - read <= IN_FLIGHT,
                "{} FIN unread: more than were in flight",
                fins.len() - read
            );
            // On one connection, a message comes again only when it was requeued.
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
                    "{id} came {times} times, requeued {requeued} times"
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
    // Each nsqd announces a proxy, which records.
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
    // Per number, how often the application was told that finishing it is fine.
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
                    // Each hundredth fails, the first time.
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

    // Nothing is left anywhere, says nsqd.
    let zero = [("depth", 0), ("in_flight_count", 0), ("deferred_count", 0), ("timeout_count", 0)];
    for nsqd in &nsqds {
        says(nsqd, &zero).await;
        assert_eq!(nsqd.depth("t").await, 0);
    }
    let wires: Vec<_> = proxies.iter().map(|proxy| Wire::of(&proxy.recordings())).collect();
    let lives: Vec<_> = wires.iter().map(|wire| wire.connections.len()).collect();
    assert_eq!(lives, [3, 1, 1]);
    let mut finished = 0;
    for (wire, nsqd) in wires.iter().zip(&nsqds) {
        let all = wire.finished();
        let twice: Vec<_> = all.iter().filter(|(_, times)| **times != 1).take(5).collect();
        assert!(twice.is_empty(), "delivered again although their FIN was read: {twice:?}");
        finished += all.len();
        // nsqd counts what it read since it started, as it was sent.
        let last = wire.connections.len() - 1;
        let (fins, reqs) = (
            wire.count(last, |command| matches!(command, V2::Fin(_))),
            wire.count(last, |command| matches!(command, V2::Req(..))),
        );
        says(nsqd, &[("finish_count", fins), ("requeue_count", reqs)]).await;
    }
    assert_eq!(finished, MANY as usize);
    // What the application was told agrees: twice only what nsqd did not read when it ended.
    let done = done.lock().unwrap();
    assert!(done.keys().copied().eq(0..MANY));
    let sent: u64 = wires
        .iter()
        .flat_map(|wire| {
            (0..wire.connections.len()).map(|at| wire.count(at, |c| matches!(c, V2::Fin(_))))
        })
        .sum();
    let told: u64 = done.values().map(|times| u64::from(*times)).sum();
    let counters = consumer.handle.counters();
    println!(
        "{} finished twice since nsqd had not read the first, {} late; {counters:?}",
        told - u64::from(MANY),
        late.lock().unwrap().len()
    );
    // An accepted answer that its connection did not live to send.
    assert!(told >= sent && told - sent <= 2 * IN_FLIGHT as u64, "{told} told, {sent} sent");
    assert!(told - u64::from(MANY) <= 2 * IN_FLIGHT as u64, "{told}");
    assert_eq!(counters.finished, told);
    assert!((MANY / 100 - 2 * 64..).contains(&(counters.requeued as u32)), "{counters:?}");
    assert_eq!((counters.timed_out, counters.no_room, counters.refused), (0, 0, 0), "{counters:?}");
    assert_eq!(counters.connections, 5, "{counters:?}");
    handlers.iter().for_each(|handler| handler.abort());
}

// Must hold: nsqds are found, and no nsqlookupd delays another.

/// Starts an nsqd that registers with `lookupd`, with a message, and says when that was listed.
async fn found(peers: &Peers, lookupd: &Nsqlookupd, body: &str) -> (Nsqd, Instant) {
    let options = ServerOptions::new().lookupd(lookupd.tcp_address());
    let nsqd = Nsqd::start(peers, options).await;
    nsqd.publish("t", body.as_bytes()).await;
    lookupd.wait_listed("t", nsqd.tcp_address(), SOON).await;
    (nsqd, Instant::now())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_nsqd_is_consumed_within_one_poll() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let config = Config { lookup_interval: Span::from_secs(2), ..config() };
    let consumer = Consumer::start(config, &[], &[lookupd.http_address()]);
    let mut nsqds = Vec::new();
    for body in ["one", "two", "three"] {
        let (nsqd, listed) = found(&peers, &lookupd, body).await;
        let message = consumer.next().await;
        let took = listed.elapsed();
        assert_eq!(text(&message), body);
        assert!(took < Duration::from_secs(3), "{took:?}");
        message.finish().unwrap();
        nsqds.push(nsqd);
    }
    for nsqd in &nsqds {
        says(nsqd, &[("finish_count", 1), ("depth", 0), ("in_flight_count", 0)]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqlookupd_that_hangs_delays_nothing() {
    let peers = require_peers!();
    let frozen = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let config = Config {
        lookup_interval: Span::from_secs(1),
        lookup_timeout: Span::from_secs(2),
        ..config()
    };
    frozen.freeze();
    let consumer = Consumer::start(config, &[], &[frozen.http_address(), lookupd.http_address()]);
    let (one, listed) = found(&peers, &lookupd, "first").await;
    consumer.next().await.finish().unwrap();
    assert!(listed.elapsed() < Duration::from_secs(2), "{:?}", listed.elapsed());
    // While it hangs, messages flow as ever.
    let mut slowest = Duration::ZERO;
    for n in 0..40 {
        let sent = Instant::now();
        one.publish("t", n.to_string().as_bytes()).await;
        let message = consumer.next().await;
        slowest = slowest.max(sent.elapsed());
        assert_eq!(text(&message), n.to_string());
        message.finish().unwrap();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // nsqd holds each back for up to 250 ms by itself; a request that hangs lasts 2 s.
    assert!(slowest < Duration::from_millis(1500), "{slowest:?}");
    let (_two, listed) = found(&peers, &lookupd, "second").await;
    consumer.next().await.finish().unwrap();
    assert!(listed.elapsed() < Duration::from_secs(2), "{:?}", listed.elapsed());
    eventually("its request times out", SOON, async || {
        consumer.handle.counters().lookups_failed > 0
    })
    .await;
    // nsqd that only it lists are found once it goes on.
    frozen.thaw();
    let (_three, listed) = found(&peers, &frozen, "third").await;
    consumer.next().await.finish().unwrap();
    // It may have been asked just before it went on.
    assert!(listed.elapsed() < Duration::from_secs(4), "{:?}", listed.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqlookupd_that_is_not_there_delays_nothing() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let nobody = ports::reserve();
    // Asked once within the test, both from the start.
    let config = Config { lookup_interval: Span::from_secs(60), ..config() };
    let (nsqd, _) = found(&peers, &lookupd, "x").await;
    let start = Instant::now();
    let consumer = Consumer::start(config, &[], &[nobody.address(), lookupd.http_address()]);
    consumer.next().await.finish().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    says(&nsqd, &[("finish_count", 1)]).await;
    let last = consumer.handle.look(|consumer| consumer.lookupd_status(0).unwrap().last);
    assert_eq!(last, Some(Some(Closed::Dial(DialError::Refused))));
}

/// A name that means something else in a URL.
#[tokio::test]
async fn an_ephemeral_topic_is_found() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let options = ServerOptions::new().lookupd(lookupd.tcp_address());
    let nsqd = Nsqd::start(&peers, options).await;
    nsqd.post("/pub?topic=t%23ephemeral", b"x").await;
    lookupd.wait_listed("t#ephemeral", nsqd.tcp_address(), SOON).await;
    let config = Config { topic: topic("t#ephemeral"), ..config() };
    let consumer = Consumer::start(config, &[], &[lookupd.http_address()]);
    let message = consumer.next().await;
    assert_eq!(text(&message), "x");
    message.finish().unwrap();
}

/// Six nsqds and four connections: two are counted as waiting, and each has its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_nsqds_than_connections_take_turns() {
    const EACH: usize = 20;
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let options = ServerOptions::new().lookupd(lookupd.tcp_address());
    let mut nsqds = Vec::new();
    for _ in 0..6 {
        let nsqd = Nsqd::start(&peers, options.clone()).await;
        nsqd.create_topic("t").await;
        lookupd.wait_listed("t", nsqd.tcp_address(), SOON).await;
        nsqds.push(nsqd);
    }
    let config = Config {
        lookup_interval: Span::from_millis(100),
        rotate: Span::from_millis(200),
        ..config()
    };
    let consumer = Consumer::start(config, &[], &[lookupd.http_address()]);
    consumer.connected(4).await;
    assert_eq!(consumer.handle.look(|consumer| consumer.unserved()), Some(2));
    let mut got = BTreeMap::<String, usize>::new();
    for round in 0..2 {
        for (at, nsqd) in nsqds.iter().enumerate() {
            let lines: Vec<_> = (0..EACH).map(|n| format!("{at}/{round}/{n}")).collect();
            nsqd.post("/mpub?topic=t", lines.join("\n").as_bytes()).await;
        }
        for _ in 0..nsqds.len() * EACH {
            let message = consumer.next().await;
            *got.entry(text(&message)).or_default() += 1;
            message.finish().unwrap();
        }
        // Each has a turn, though some are empty and others are not.
        let first = consumer.handle.counters().connections;
        eventually("all had another turn", 4 * SOON, async || {
            consumer.handle.counters().connections >= first + 6
        })
        .await;
    }
    assert!(got.len() == nsqds.len() * EACH * 2 && got.values().all(|&n| n == 1), "{got:?}");
    let counters = consumer.handle.counters();
    assert_eq!((counters.failures, counters.late, counters.timed_out), (0, 0, 0), "{counters:?}");
    for nsqd in &nsqds {
        says(nsqd, &[("depth", 0), ("in_flight_count", 0), ("timeout_count", 0)]).await;
    }
}

/// As when an administrator takes an nsqd out of service: it is up, and listed no longer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqd_that_is_listed_no_longer_is_left_after_the_grace_period() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let (stays, _) = found(&peers, &lookupd, "stays").await;
    let (goes, _) = found(&peers, &lookupd, "goes").await;
    let config = Config {
        lookup_interval: Span::from_millis(200),
        grace: Span::from_millis(1500),
        ..config()
    };
    let consumer = Consumer::start(config, &[], &[lookupd.http_address()]);
    consumer.connected(2).await;
    for _ in 0..2 {
        consumer.next().await.finish().unwrap();
    }
    let path = format!("/topic/tombstone?topic=t&node={}", goes.http_address());
    lookupd.post(&path, b"").await;
    let start = Instant::now();
    says(&goes, &[("client_count", 0)]).await;
    let took = start.elapsed();
    let range = Duration::from_millis(1400)..Duration::from_millis(3500);
    assert!(range.contains(&took), "{took:?}");
    says(&stays, &[("client_count", 1)]).await;
    // It took its leave: nothing is counted as having failed, and nothing comes from there.
    goes.publish("t", b"unread").await;
    stays.publish("t", b"read").await;
    let message = consumer.next().await;
    assert_eq!(text(&message), "read");
    message.finish().unwrap();
    says(&goes, &[("depth", 1), ("client_count", 0)]).await;
    assert_eq!(consumer.handle.counters().failures, 0);
}

/// An nsqlookupd that knows nothing any more, and one that is gone, take nothing away.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqlookupd_without_an_answer_empties_nothing() {
    let peers = require_peers!();
    let mut lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let (nsqd, _) = found(&peers, &lookupd, "before").await;
    let config = Config {
        lookup_interval: Span::from_millis(100),
        grace: Span::from_millis(200),
        ..config()
    };
    let consumer = Consumer::start(config, &[], &[lookupd.http_address()]);
    consumer.next().await.finish().unwrap();
    let lookups = || consumer.handle.counters().lookups;
    // It forgets the topic, until nsqd says so anew. 404 from now on.
    lookupd.post("/topic/delete?topic=t", b"").await;
    let before = lookups();
    eventually("asked in vain", SOON, async || lookups() > before + 5).await;
    lookupd.stop_sigterm().await;
    let failed = consumer.handle.counters().lookups_failed;
    eventually("not reached", SOON, async || {
        consumer.handle.counters().lookups_failed > failed + 3
    })
    .await;
    nsqd.publish("t", b"after").await;
    let message = consumer.next().await;
    assert_eq!(text(&message), "after");
    message.finish().unwrap();
    let counters = consumer.handle.counters();
    assert_eq!((counters.connections, counters.failures), (1, 0), "{counters:?}");
}

// Messages that are not simply finished.

#[tokio::test]
async fn a_message_longer_than_the_ring_is_skipped_and_the_stream_goes_on() {
    let peers = require_peers!();
    for too_large in [TooLarge::Finish, TooLarge::Requeue] {
        let nsqd = start_nsqd(&peers).await;
        for body in [&b"before"[..], &[b'x'; 2000], b"after"] {
            nsqd.publish("t", body).await;
        }
        let config =
            Config { too_large, requeue_base: Span::from_millis(10), max_attempts: 3, ..config() };
        let consumer = Consumer::start_with::<8>(config, &[nsqd.tcp_address()], &[], 1024);
        let mut got = Vec::new();
        for _ in 0..2 {
            let message = consumer.next().await;
            got.push(text(&message));
            message.finish().unwrap();
        }
        assert_eq!(got, ["before", "after"]);
        let (skipped, requeued) = match too_large {
            TooLarge::Finish => (1, 0),
            // Three times, then it is given up.
            TooLarge::Requeue => (4, 3),
        };
        eventually("skipped", NEW_CHANNEL + SOON, async || {
            consumer.handle.counters().too_large == skipped
        })
        .await;
        let all = [
            ("finish_count", 3),
            ("requeue_count", requeued),
            ("depth", 0),
            ("in_flight_count", 0),
            ("deferred_count", 0),
        ];
        // nsqd counts requeues for the channel and for the client.
        says(&nsqd, &all).await;
        let counters = consumer.handle.counters();
        assert_eq!(counters.given_up, u32::from(too_large == TooLarge::Requeue), "{counters:?}");
        assert_eq!((counters.connections, counters.unanswered, counters.received), (1, 0, 2));
    }
}

#[tokio::test]
async fn a_message_of_several_slots_arrives_whole() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    // 26 bytes of head: as long as the ring is.
    for len in [1, 102, 103, 500, 998, 999] {
        let body: Vec<u8> = (0..=255u8).cycle().take(len).collect();
        nsqd.publish("t", &body).await;
    }
    let config = Config { too_large: TooLarge::Finish, ..config() };
    let consumer = Consumer::start_with::<8>(config, &[nsqd.tcp_address()], &[], 1024);
    let mut lengths = BTreeSet::new();
    for _ in 0..5 {
        let message = consumer.next().await;
        let body = message.read(<[u8]>::to_vec).unwrap();
        assert!(body.iter().copied().eq((0..=255u8).cycle().take(body.len())));
        lengths.insert(body.len());
        message.finish().unwrap();
    }
    assert!(lengths.into_iter().eq([1, 102, 103, 500, 998]));
    says(&nsqd, &[("finish_count", 6), ("depth", 0), ("in_flight_count", 0)]).await;
    assert_eq!(consumer.handle.counters().too_large, 1);
}

#[tokio::test]
async fn what_fails_too_often_is_given_up_or_marked() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    nsqd.publish("t", b"poison").await;
    let config = Config { max_attempts: 2, ..config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    for attempt in 1..=2 {
        let message = consumer.next().await;
        assert_eq!((message.head().unwrap().attempts, message.is_exhausted()), (attempt, false));
        message.requeue(Some(Span::ZERO)).unwrap();
    }
    // It is looked at when it is asked for.
    let nothing = tokio::time::timeout(Duration::from_millis(500), consumer.handle.next()).await;
    assert!(nothing.is_err());
    says(&nsqd, &[("finish_count", 1), ("requeue_count", 2), ("depth", 0), ("in_flight_count", 0)])
        .await;
    assert_eq!(consumer.handle.counters().given_up, 1);
    let given_up = async {
        loop {
            if let Event::GivenUp { attempts, .. } = consumer.handle.event().await {
                return attempts;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, given_up).await, Ok(3));
    drop(consumer);
    // Else nsqd may give it to the one that is gone, and wait for the answer.
    says(&nsqd, &[("client_count", 0)]).await;

    nsqd.publish("t", b"poison").await;
    let config = Config { max_attempts: 1, exhausted: Exhausted::Deliver, ..self::config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    consumer.next().await.requeue(Some(Span::ZERO)).unwrap();
    let message = consumer.next().await;
    assert!(message.is_exhausted());
    message.finish().unwrap();
    assert_eq!(consumer.handle.counters().given_up, 0);
}

#[tokio::test]
async fn delays_are_told_and_kept() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    nsqd.publish("t", b"x").await;
    let config = Config { requeue_base: Span::from_millis(300), ..config() };
    let consumer = Consumer::start(config, &[proxy.address()], &[]);
    consumer.connected(1).await;
    // From now on nsqd looks at the channel ten times a second.
    tokio::time::sleep(NEW_CHANNEL).await;
    let mut message = consumer.next().await;
    // The third time its own, which grows with the attempts.
    for (delay, ms) in [(Some(1200), 1200), (Some(0), 0), (None, 900)] {
        let attempts = message.head().unwrap().attempts;
        message.requeue(delay.map(Span::from_millis)).unwrap();
        let start = Instant::now();
        message = consumer.next().await;
        let took = start.elapsed();
        assert_eq!(message.head().unwrap().attempts, attempts + 1);
        let least = Duration::from_millis(ms);
        assert!((least..least + Duration::from_millis(1500)).contains(&took), "{ms}: {took:?}");
    }
    message.finish().unwrap();
    says(&nsqd, &[("requeue_count", 3), ("finish_count", 1), ("timeout_count", 0)]).await;
    let commands = tap::nsqd(&proxy.client_bytes()[0]).unwrap().commands;
    let delays: Vec<_> = commands
        .iter()
        .filter_map(|command| if let V2::Req(_, delay) = command { Some(*delay) } else { None })
        .collect();
    assert_eq!(delays, [1200, 0, 900]);
}

#[tokio::test]
async fn a_message_dropped_unanswered_comes_again() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    nsqd.publish("t", b"x").await;
    let config = Config { requeue_base: Span::ZERO, backoff_base: Span::from_secs(60), ..config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    drop(consumer.next().await);
    says(&nsqd, &[("requeue_count", 1)]).await;
    // No failure: it does not back off.
    let message = consumer.next().await;
    assert_eq!(message.head().unwrap().attempts, 2);
    message.finish().unwrap();
    says(&nsqd, &[("finish_count", 1), ("in_flight_count", 0)]).await;
}

#[tokio::test]
async fn a_failure_stops_everything_for_a_while() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    publish_numbers(&nsqd, 0..100).await;
    let config = Config { backoff_base: Span::from_millis(800), ..config() };
    let consumer = Consumer::start_with::<4>(config, &[nsqd.tcp_address()], &[], 1024);
    let first = consumer.next().await;
    first.requeue(Some(Span::ZERO)).unwrap();
    assert_eq!(consumer.handle.look(|consumer| consumer.is_backing_off()), Some(true));
    says(&nsqd, &[("ready_count", 0)]).await;
    // What had been delivered comes at once, the rest after half of the time at least.
    let start = Instant::now();
    let mut gaps = Vec::new();
    for _ in 0..100 {
        let before = Instant::now();
        consumer.next().await.finish().unwrap();
        gaps.push(before.elapsed());
    }
    let longest = gaps.iter().max().unwrap();
    let range = Duration::from_millis(300)..Duration::from_millis(1500);
    assert!(range.contains(longest), "{longest:?} of {:?}", start.elapsed());
    assert_eq!(consumer.handle.look(|consumer| consumer.is_backing_off()), Some(false));
    says(&nsqd, &[("ready_count", 4), ("finish_count", 100), ("depth", 0)]).await;
}

// Time.

#[tokio::test]
async fn heartbeats_are_answered_whatever_the_application_does() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    nsqd.publish("t", b"x").await;
    let consumer = Consumer::start(config(), &[nsqd.tcp_address()], &[]);
    let message = consumer.next().await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let counters = consumer.handle.counters();
    assert!((3..=5).contains(&counters.heartbeats), "{counters:?}");
    message.finish().unwrap();
    says(&nsqd, &[("finish_count", 1), ("client_count", 1), ("timeout_count", 0)]).await;
    assert_eq!(consumer.handle.counters().connections, 1);
    let stats = stats(&nsqd).await;
    assert_eq!(stats["clients"][0]["client_id"], "nanonsq", "{stats}");
}

#[tokio::test]
async fn touched_by_itself_a_message_is_never_taken_back() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    nsqd.publish("t", b"x").await;
    let config = Config { auto_touch: true, msg_timeout: Some(Span::from_secs(1)), ..config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    let message = consumer.next().await;
    tokio::time::sleep(NEW_CHANNEL + Duration::from_secs(2)).await;
    message.finish().unwrap();
    says(&nsqd, &[("finish_count", 1), ("timeout_count", 0), ("in_flight_count", 0)]).await;
    let counters = consumer.handle.counters();
    assert!((12..=16).contains(&counters.touched), "{counters:?}");
}

#[tokio::test]
async fn an_answer_after_the_time_is_up_is_not_sent() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    nsqd.publish("t", b"x").await;
    let config = Config { msg_timeout: Some(Span::from_secs(1)), ..config() };
    let consumer = Consumer::start(config, &[proxy.address()], &[]);
    let message = consumer.next().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(text(&message), "x", "it stays where it is");
    assert_eq!(message.touch(), Err(AnswerError::Late));
    assert_eq!(message.finish(), Err(AnswerError::Late));
    let again = consumer.next().await;
    assert_eq!(again.head().unwrap().attempts, 2);
    again.finish().unwrap();
    says(&nsqd, &[("finish_count", 1), ("timeout_count", 1), ("in_flight_count", 0)]).await;
    let counters = consumer.handle.counters();
    // The touch and the answer.
    assert_eq!((counters.timed_out, counters.late, counters.refused), (1, 2, 0), "{counters:?}");
    assert_eq!(tap::nsqd(&proxy.client_bytes()[0]).unwrap().counts().fin, 1);
}

#[tokio::test]
async fn an_answer_that_comes_when_nsqd_has_taken_the_message_back_is_only_counted() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    let config = Config {
        heartbeat: Span::from_secs(30),
        msg_timeout: Some(Span::from_secs(1)),
        ..config()
    };
    let consumer = Consumer::start(config, &[proxy.address()], &[]);
    consumer.connected(1).await;
    tokio::time::sleep(NEW_CHANNEL).await;
    nsqd.publish("t", b"x").await;
    let message = consumer.next().await;
    // It is not to be delivered again at once: then the answer would count for that.
    consumer.handle.pause();
    says(&nsqd, &[("ready_count", 0), ("in_flight_count", 1)]).await;
    proxy.set_mode(Mode::Blackhole).await;
    message.finish().expect("nsqd has it in flight still");
    says(&nsqd, &[("timeout_count", 1), ("in_flight_count", 0), ("finish_count", 0)]).await;
    proxy.set_mode(Mode::Forward).await;
    eventually("refused", SOON, async || consumer.handle.counters().refused == 1).await;
    consumer.handle.resume();
    let again = consumer.next().await;
    assert_eq!(again.head().unwrap().attempts, 2);
    again.finish().unwrap();
    says(&nsqd, &[("finish_count", 1), ("in_flight_count", 0), ("depth", 0)]).await;
    let counters = consumer.handle.counters();
    assert_eq!((counters.connections, counters.failures), (1, 0), "it goes on: {counters:?}");
    assert_eq!((counters.refused, counters.late, counters.timed_out), (1, 0, 0), "{counters:?}");
}

#[tokio::test]
async fn nsqd_holds_messages_back_no_longer_than_it_is_told() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let mut took = Vec::new();
    for output_buffer_timeout in [None, Some(Span::from_millis(25)), Some(Span::ZERO)] {
        let config = Config { output_buffer_timeout, ..config() };
        let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
        consumer.connected(1).await;
        says(&nsqd, &[("ready_count", 64)]).await;
        // One by one. The first shows when nsqd looks, the others follow directly behind that.
        let mut start = Instant::now();
        for number in 0..6 {
            nsqd.publish("t", b"x").await;
            consumer.next().await.finish().unwrap();
            if number == 0 {
                start = Instant::now();
            }
        }
        took.push(start.elapsed());
        consumer.handle.stop().await;
        says(&nsqd, &[("client_count", 0)]).await;
    }
    let [own, short, none] = took.try_into().unwrap();
    // 250 ms each, 25 ms each, and only what it takes.
    assert!(own > Duration::from_millis(1000), "{own:?}");
    assert!(short < own / 2, "{short:?} of {own:?}");
    assert!(none < own / 4, "{none:?} of {own:?}");
}

#[tokio::test]
async fn an_answer_after_the_connection_was_cut_is_not_sent() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    publish_numbers(&nsqd, 0..3).await;
    let config = Config { msg_timeout: Some(Span::from_secs(2)), ..config() };
    let consumer = Consumer::start(config, &[proxy.address()], &[]);
    let taken = [consumer.next().await, consumer.next().await, consumer.next().await];
    proxy.cut_all(Cut::Reset);
    let cut = consumer.handle.wait(|consumer| (consumer.counters().failures > 0).then_some(()));
    tokio::time::timeout(SOON, cut).await.unwrap();
    consumer.connected(1).await;
    let [finished, requeued, dropped] = taken;
    assert_eq!(finished.finish(), Err(AnswerError::Late));
    assert_eq!(requeued.requeue(None), Err(AnswerError::Late));
    drop(dropped);
    assert_eq!(consumer.handle.counters().late, 3);
    // nsqd delivers them again when their time is up.
    for _ in 0..3 {
        let message = consumer.next().await;
        assert_eq!(message.head().unwrap().attempts, 2);
        message.finish().unwrap();
    }
    says(&nsqd, &[("depth", 0), ("in_flight_count", 0), ("timeout_count", 3), ("finish_count", 3)])
        .await;
    let sent: Vec<_> =
        proxy.client_bytes().iter().map(|b| tap::nsqd(b).unwrap().counts()).collect();
    assert_eq!(
        sent.iter().map(|counts| (counts.fin, counts.req)).collect::<Vec<_>>(),
        [(0, 0), (3, 0)]
    );
}

#[tokio::test]
async fn a_frozen_nsqd_is_noticed_by_its_silence() {
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

// Control.

#[tokio::test]
async fn stopping_gives_everything_back() {
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
        // There is still time for this one.
        answered.finish().unwrap();
    };
    let (took, ()) = tokio::join!(stopping, answering);
    let range = Duration::from_millis(700)..Duration::from_millis(2500);
    assert!(range.contains(&took), "{took:?}");
    assert_eq!(kept.finish(), Err(AnswerError::Late));
    // All but the eleven are in the queue, at once.
    says(
        &nsqd,
        &[("depth", 89), ("in_flight_count", 0), ("deferred_count", 0), ("client_count", 0)],
    )
    .await;
    assert_eq!(tap::nsqd(&proxy.client_bytes()[0]).unwrap().counts().cls, 1);
    let rest = consume_all(nsqd.tcp_address(), "t", "c", Until::distinct(89)).await.unwrap();
    assert_eq!((rest.messages.len(), rest.distinct().len()), (89, 89));
    says(&nsqd, &[("depth", 0), ("timeout_count", 0)]).await;
    // It stays stopped.
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
        .wait(|consumer| (consumer.lookupd_status(1)?.state == LookupdState::Asking).then_some(()));
    tokio::time::timeout(SOON, asking).await.unwrap();
    let start = Instant::now();
    consumer.handle.stop().await;
    assert!(start.elapsed() < Duration::from_millis(300), "{:?}", start.elapsed());
    says(&nsqd, &[("client_count", 0)]).await;
}

#[tokio::test]
async fn a_pause_stops_the_flow_and_nothing_else() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let consumer = Consumer::start_with::<8>(config(), &[nsqd.tcp_address()], &[], 4096);
    consumer.connected(1).await;
    says(&nsqd, &[("ready_count", 8)]).await;
    consumer.handle.pause();
    says(&nsqd, &[("ready_count", 0)]).await;
    publish_numbers(&nsqd, 0..20).await;
    // Longer than two heartbeats.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(consumer.handle.try_next().is_none());
    says(&nsqd, &[("depth", 20), ("in_flight_count", 0), ("client_count", 1)]).await;
    consumer.handle.resume();
    for _ in 0..20 {
        consumer.next().await.finish().unwrap();
    }
    says(&nsqd, &[("ready_count", 8), ("finish_count", 20), ("depth", 0)]).await;
    consumer.handle.set_max_in_flight(3);
    says(&nsqd, &[("ready_count", 3)]).await;
    assert_eq!(consumer.handle.counters().connections, 1);
}

/// nsqd drops the others of this consumer's turn: they are nobody's.
#[tokio::test]
async fn a_sample_is_as_large_as_was_asked() {
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
    // nsqd gives 21 of 100 (it compares `rand.Int31n(100) > sampleRate`): 630, give or take 22.
    assert!((470..=790).contains(&got.len()), "{}", got.len());
    let finished = got.len() as u64;
    says(&nsqd, &[("finish_count", finished), ("depth", 0), ("in_flight_count", 0)]).await;
}

// Permission.

#[tokio::test]
async fn auth_is_spoken_with_an_nsqd_that_requires_it() {
    let peers = require_peers!();
    let auth = auth::start("t", "c", &["subscribe"]).await;
    let flag = format!("--auth-http-address={auth}");
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    nsqd.publish("t", b"x").await;
    let with = |auth_secret| Config { auth_secret, ..config() };
    let consumer = Consumer::start(with(Some(b"open-sesame")), &[nsqd.tcp_address()], &[]);
    consumer.next().await.finish().unwrap();
    says(&nsqd, &[("finish_count", 1)]).await;
    drop(consumer);
    let forbidden = Config { channel: channel("d"), ..with(Some(b"open-sesame")) };
    for (config, expected) in [
        (with(None), Fault::AuthRequired),
        (with(Some(b"wrong")), Fault::AuthRefused),
        (forbidden, Fault::AuthRefused),
    ] {
        let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
        let event = tokio::time::timeout(SOON, consumer.handle.event()).await;
        let event = event.expect("the consumer tells");
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
