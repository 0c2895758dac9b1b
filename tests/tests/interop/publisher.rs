//! Publishing to real nsqds through networks that fail.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use nanonsq_std::core::publisher::{Config, Counters, Event, Outcome, PublishOptions};
use nanonsq_std::core::session::DecodeError;
use nanonsq_std::core::session::ErrorCode;
use nanonsq_std::core::session::{Closed, Fault as SessionFault};
use nanonsq_std::core::time::Span;
use nanonsq_tests::{
    Cut, Fault, Faults, Nsqd, Proxy, ServerOptions, Until, auth, consume_all, require_peers, tap,
};

use crate::support::{Publisher, topic};

/// The number of messages in the acceptance tests.
const MANY: u32 = 100_000;
const OUTBOX: usize = 64 * 1024;
const LIMIT: Duration = Duration::from_secs(60);

/// A configuration that notices a stalled or half-closed connection soon.
fn impatient() -> Config<'static> {
    Config {
        heartbeat: Span::from_secs(1),
        reply_timeout: Span::from_millis(300),
        connect_timeout: Span::from_millis(500),
        reconnect_base: Span::from_millis(10),
        reconnect_cap: Span::from_millis(100),
        close_timeout: Span::from_millis(100),
        ..Config::new()
    }
}

async fn nsqd(peers: &nanonsq_tests::Peers) -> Nsqd {
    Nsqd::start(peers, ServerOptions::new()).await
}

async fn publish_numbers(publisher: &Publisher, name: &str, numbers: Range<u32>) {
    for number in numbers {
        let _ = publisher.publish(name, number.to_string().as_bytes()).await;
    }
}

/// Returns how often each number is in the channels, which are created here and take the topic's
/// whole backlog.
async fn arrived(nsqds: &[SocketAddr], name: &str, expected: u32) -> HashMap<u32, u32> {
    let mut counts = HashMap::new();
    for &nsqd in nsqds {
        let until = if nsqds.len() == 1 {
            Until::distinct(expected as usize).linger(Duration::from_millis(500)).limit(LIMIT)
        } else {
            Until::quiet_for(Duration::from_secs(2)).limit(LIMIT)
        };
        let consumed = consume_all(nsqd, name, "oracle", until).await.unwrap();
        for body in consumed.bodies() {
            let number = std::str::from_utf8(body).unwrap().parse().unwrap();
            *counts.entry(number).or_default() += 1;
        }
    }
    counts
}

/// Checks that everything arrived, with no more duplicates than counted as possible.
#[track_caller]
fn assert_complete(arrived: &HashMap<u32, u32>, numbers: Range<u32>, counters: &Counters) {
    let missing: Vec<u32> =
        numbers.clone().filter(|number| !arrived.contains_key(number)).take(10).collect();
    assert!(missing.is_empty(), "lost {missing:?}...: {counters:?}");
    assert_eq!(arrived.len(), numbers.len());
    let duplicates: u64 = arrived.values().map(|&n| u64::from(n) - 1).sum();
    println!(
        "{duplicates} duplicates of {} possible, {} connections",
        counters.possible_duplicates, counters.connections
    );
    assert!(duplicates <= counters.possible_duplicates, "{duplicates}: {counters:?}");
    assert_eq!(counters.accepted, u64::from(numbers.end - numbers.start));
    assert_eq!(counters.acknowledged, counters.accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_through_a_network_that_breaks_200_times() {
    let peers = require_peers!();
    let nsqd = nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    let kinds = [
        Fault::Cut(Cut::Reset),
        Fault::Cut(Cut::Fin),
        Fault::HalfClose,
        Fault::Stall(Duration::from_millis(30)),
        Fault::Stall(Duration::from_millis(600)),
    ];
    // nsqd's responses are few bytes, so their positions are drawn from the same small range.
    proxy.set_faults(Some(Faults::seeded(42, 100..6000, kinds).at_most(200)));
    // After a connection without an acknowledged batch the next attempt waits for seconds: batches
    // are short enough that most connections carry some.
    let config = Config { batch_bytes: 1000, ..impatient() };
    let publisher = Publisher::start(config, &[proxy.address()], OUTBOX);
    publish_numbers(&publisher, "t", 0..MANY).await;
    let counters = publisher.drained(LIMIT).await;
    let totals = proxy.totals();
    assert_eq!(totals.faults, 200, "{totals:?} {counters:?}");
    let arrived = arrived(&[nsqd.tcp_address()], "t", MANY).await;
    assert_complete(&arrived, 0..MANY, &counters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_nsqd_restarts_20_times() {
    let peers = require_peers!();
    let mut nsqd = nsqd(&peers).await;
    let publisher = Publisher::start(impatient(), &[nsqd.tcp_address()], OUTBOX);
    let publishing = async {
        for start in (0..MANY).step_by(100) {
            publish_numbers(&publisher, "t", start..start + 100).await;
            // Spread over the restarts.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let restarting = async {
        for _ in 0..20 {
            tokio::time::sleep(Duration::from_millis(150)).await;
            nsqd.stop_sigterm().await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            nsqd.start_again().await;
        }
    };
    tokio::join!(publishing, restarting);
    let counters = publisher.drained(LIMIT).await;
    assert!(counters.connections >= 20, "{counters:?}");
    let arrived = arrived(&[nsqd.tcp_address()], "t", MANY).await;
    assert_complete(&arrived, 0..MANY, &counters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_either_of_two_nsqds_is_down() {
    let peers = require_peers!();
    let (mut one, mut two) = (nsqd(&peers).await, nsqd(&peers).await);
    let publisher = Publisher::start(impatient(), &[one.tcp_address(), two.tcp_address()], OUTBOX);
    two.stop_sigterm().await;
    let publishing = async {
        for start in (0..MANY).step_by(100) {
            publish_numbers(&publisher, "t", start..start + 100).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let alternating = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            two.start_again().await;
            one.stop_sigterm().await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            one.start_again().await;
            two.stop_sigterm().await;
        }
        two.start_again().await;
    };
    tokio::join!(publishing, alternating);
    let counters = publisher.drained(LIMIT).await;
    assert!(counters.connections >= 10, "{counters:?}");
    let arrived = arrived(&[one.tcp_address(), two.tcp_address()], "t", MANY).await;
    assert_complete(&arrived, 0..MANY, &counters);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_publisher_goes_on_after_nsqd_was_killed() {
    let peers = require_peers!();
    let mut nsqd = nsqd(&peers).await;
    let publisher = Publisher::start(impatient(), &[nsqd.tcp_address()], OUTBOX);
    for round in 0..5 {
        publish_numbers(&publisher, "t", round * 1000..(round + 1) * 1000).await;
        nsqd.kill().await;
        // Messages that nsqd acknowledged in memory died with it; the others are sent again.
        nsqd.start_again().await;
        let after = publisher.publish(&format!("after{round}"), b"x").await;
        let outcome = tokio::time::timeout(LIMIT, publisher.handle.outcome(after)).await;
        assert_eq!(outcome, Ok(Outcome::Acknowledged), "round {round}");
        let name = format!("after{round}");
        let seen = consume_all(nsqd.tcp_address(), &name, "c", Until::distinct(1)).await;
        assert_eq!(seen.unwrap().texts(), ["x"]);
    }
    let counters = publisher.drained(LIMIT).await;
    assert_eq!(counters.acknowledged, counters.accepted);
}

#[tokio::test]
async fn a_single_message_is_a_pub_and_a_backlog_an_mpub() {
    let peers = require_peers!();
    let nsqd = nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    let publisher = Publisher::start(Config::new(), &[proxy.address()], OUTBOX);
    // Not connected yet: this is a backlog.
    for n in 0..100 {
        let _ = publisher.publish("t", format!("backlog {n}").as_bytes()).await;
    }
    publisher.drained(LIMIT).await;
    for n in 0..3 {
        let ticket = publisher.publish("t", format!("single {n}").as_bytes()).await;
        assert_eq!(publisher.handle.outcome(ticket).await, Outcome::Acknowledged);
    }
    let later = PublishOptions { defer: Some(Span::from_millis(1)), deadline: None };
    let _ = publisher.handle.publish_with(&topic("t"), b"deferred", later).await.unwrap();
    publisher.drained(LIMIT).await;

    let recorded = proxy.client_bytes();
    assert_eq!(recorded.len(), 1);
    let tapped = tap::nsqd(&recorded[0]).unwrap();
    let counts = tapped.counts();
    assert_eq!(
        (counts.mpub, counts.publish, counts.dpub, tapped.published().len()),
        (1, 3, 1, 104),
        "{counts:?}"
    );
    // nsqd looks for deferred messages in a new channel only after some seconds.
    let until = Until::distinct(104).idle(Duration::from_secs(8));
    let consumed = consume_all(nsqd.tcp_address(), "t", "c", until).await.unwrap();
    assert_eq!(consumed.distinct().len(), 104);
}

#[tokio::test]
async fn one_bad_message_fails_alone() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag("--max-msg-size=100")).await;
    let publisher = Publisher::start(impatient(), &[nsqd.tcp_address()], OUTBOX);
    let mut bad = Vec::new();
    let mut good = Vec::new();
    for n in 0..50 {
        if n % 20 == 7 {
            bad.push(publisher.publish("t", &[b'x'; 101]).await);
        }
        good.push(publisher.publish("t", n.to_string().as_bytes()).await);
    }
    let counters = publisher.drained(LIMIT).await;
    for ticket in bad {
        let outcome = publisher.handle.outcome(ticket).await;
        assert!(
            matches!(outcome, Outcome::Rejected(ErrorCode::BadMessage) | Outcome::Forgotten),
            "{outcome}"
        );
    }
    assert_eq!((counters.rejected, counters.acknowledged), (3, 50), "{counters:?}");
    let consumed = consume_all(nsqd.tcp_address(), "t", "c", Until::distinct(50)).await.unwrap();
    let expected: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let distinct: Vec<_> = consumed.distinct().iter().map(|b| String::from_utf8_lossy(b)).collect();
    assert_eq!(distinct, expected, "all good messages, in order");
    // nsqd closes with the bad message unread, and the reset may overtake an earlier OK.
    let duplicates = consumed.duplicates() as u64;
    assert!(duplicates <= counters.possible_duplicates, "{duplicates}: {counters:?}");
}

#[tokio::test]
async fn heartbeats_keep_an_idle_publisher_connected() {
    let peers = require_peers!();
    let nsqd = nsqd(&peers).await;
    let config = Config { heartbeat: Span::from_secs(1), ..Config::new() };
    let publisher = Publisher::start(config, &[nsqd.tcp_address()], OUTBOX);
    let _ = publisher.publish("t", b"x").await;
    publisher.drained(LIMIT).await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    let counters = publisher.handle.counters();
    assert!((3..=5).contains(&counters.heartbeats), "{counters:?}");
    assert_eq!(counters.connections, 1);
    let stats = nsqd.get_json("/stats?format=json").await;
    let producer = &stats["producers"][0];
    assert_eq!(producer["client_id"], "nanonsq", "{stats}");
    assert!(producer["user_agent"].as_str().unwrap().starts_with("nanonsq/"), "{stats}");
}

#[tokio::test]
async fn a_frozen_nsqd_is_noticed() {
    let peers = require_peers!();
    let nsqd = nsqd(&peers).await;
    let config = Config { heartbeat: Span::from_secs(1), ..Config::new() };
    let publisher = Publisher::start(config, &[nsqd.tcp_address()], OUTBOX);
    let _ = publisher.publish("t", b"before").await;
    publisher.drained(LIMIT).await;
    nsqd.freeze();
    let noticed = async {
        loop {
            if let Event::Disconnected { why, .. } = publisher.handle.event().await {
                return why;
            }
        }
    };
    let why = tokio::time::timeout(Duration::from_secs(4), noticed).await;
    nsqd.thaw();
    assert!(matches!(why, Ok(Closed::Fault(SessionFault::TimedOut(_)))), "{why:?}");
    let _ = publisher.publish("t", b"after").await;
    publisher.drained(LIMIT).await;
}

#[tokio::test]
async fn auth_is_sent_to_an_nsqd_that_requires_it() {
    let peers = require_peers!();
    let auth = auth::start("allowed", ".*", &["publish"]).await;
    let flag = format!("--auth-http-address={auth}");
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    let with = |auth_secret| Config { auth_secret, ..impatient() };

    let publisher = Publisher::start(with(Some(b"open-sesame")), &[nsqd.tcp_address()], OUTBOX);
    let allowed = publisher.publish("allowed", b"x").await;
    let forbidden = publisher.publish("forbidden", b"x").await;
    assert_eq!(publisher.handle.outcome(allowed).await, Outcome::Acknowledged);
    assert_eq!(
        publisher.handle.outcome(forbidden).await,
        Outcome::Rejected(ErrorCode::Unauthorized)
    );

    for (secret, why) in
        [(None, SessionFault::AuthRequired), (Some(&b"wrong"[..]), SessionFault::AuthRefused)]
    {
        let publisher = Publisher::start(with(secret), &[nsqd.tcp_address()], OUTBOX);
        let event = publisher.handle.event().await;
        assert_eq!(event, Event::LeftOut { nsqd: 0, why });
    }
}

#[tokio::test]
async fn the_http_port_is_recognised() {
    let peers = require_peers!();
    let nsqd = nsqd(&peers).await;
    let publisher = Publisher::start(impatient(), &[nsqd.http_address()], OUTBOX);
    let why = Closed::Fault(SessionFault::Decode(DecodeError::WrongPort));
    assert_eq!(publisher.handle.event().await, Event::Disconnected { nsqd: 0, why });
}
