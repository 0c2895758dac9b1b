//! Discovery of nsqds through nsqlookupd.

use super::*;

/// Starts an nsqd that registers with `lookupd`, publishes a message, and returns when it is
/// listed.
async fn start_listed(peers: &Peers, lookupd: &Nsqlookupd, body: &str) -> (Nsqd, Instant) {
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
        let (nsqd, listed) = start_listed(&peers, &lookupd, body).await;
        let message = consumer.next().await;
        let took = listed.elapsed();
        assert_eq!(text(&message), body);
        assert!(took < Duration::from_secs(3), "{took:?}");
        message.finish().unwrap();
        nsqds.push(nsqd);
    }
    for nsqd in &nsqds {
        expect_stats(nsqd, &[("finish_count", 1), ("depth", 0), ("in_flight_count", 0)]).await;
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
    let (one, listed) = start_listed(&peers, &lookupd, "first").await;
    consumer.next().await.finish().unwrap();
    assert!(listed.elapsed() < Duration::from_secs(2), "{:?}", listed.elapsed());
    // While the nsqlookupd hangs, messages flow as usual.
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
    // nsqd itself delays each message by up to 250 ms; a request that hangs lasts 2 s.
    assert!(slowest < Duration::from_millis(1500), "{slowest:?}");
    let (_two, listed) = start_listed(&peers, &lookupd, "second").await;
    consumer.next().await.finish().unwrap();
    assert!(listed.elapsed() < Duration::from_secs(2), "{:?}", listed.elapsed());
    eventually("the request times out", SOON, async || {
        consumer.handle.counters().lookups_failed > 0
    })
    .await;
    // An nsqd that only this nsqlookupd lists is found once it continues.
    frozen.thaw();
    let (_three, listed) = start_listed(&peers, &frozen, "third").await;
    consumer.next().await.finish().unwrap();
    // The latest request may have been just before that.
    assert!(listed.elapsed() < Duration::from_secs(4), "{:?}", listed.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqlookupd_that_is_not_there_delays_nothing() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let nobody = ports::reserve();
    // Each nsqlookupd is asked once within the test, at its start.
    let config = Config { lookup_interval: Span::from_secs(60), ..config() };
    let (nsqd, _) = start_listed(&peers, &lookupd, "x").await;
    let start = Instant::now();
    let consumer = Consumer::start(config, &[], &[nobody.address(), lookupd.http_address()]);
    consumer.next().await.finish().unwrap();
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    expect_stats(&nsqd, &[("finish_count", 1)]).await;
    let last = consumer.handle.look(|consumer| consumer.lookupd_status(0).unwrap().last);
    assert_eq!(last, Some(Some(Closed::Dial(DialError::Refused))));
}

/// The `#` of the name means something else in a URL.
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

/// Six nsqds and four connections: two nsqds are counted as waiting, and each has its turn.
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
        // Each nsqd has a turn, though some are empty and others are not.
        let first = consumer.handle.counters().connections;
        eventually("all nsqds had another turn", 4 * SOON, async || {
            consumer.handle.counters().connections >= first + 6
        })
        .await;
    }
    assert!(got.len() == nsqds.len() * EACH * 2 && got.values().all(|&n| n == 1), "{got:?}");
    let counters = consumer.handle.counters();
    assert_eq!((counters.failures, counters.late, counters.timed_out), (0, 0, 0), "{counters:?}");
    for nsqd in &nsqds {
        expect_stats(nsqd, &[("depth", 0), ("in_flight_count", 0), ("timeout_count", 0)]).await;
    }
}

/// An administrator takes an nsqd out of service: it runs but is no longer listed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqd_that_is_listed_no_longer_is_left_after_the_grace_period() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let (stays, _) = start_listed(&peers, &lookupd, "stays").await;
    let (goes, _) = start_listed(&peers, &lookupd, "goes").await;
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
    expect_stats(&goes, &[("client_count", 0)]).await;
    let took = start.elapsed();
    let range = Duration::from_millis(1400)..Duration::from_millis(3500);
    assert!(range.contains(&took), "{took:?}");
    expect_stats(&stays, &[("client_count", 1)]).await;
    // The consumer left regularly: no failure is counted, and nothing is consumed from there.
    goes.publish("t", b"unread").await;
    stays.publish("t", b"read").await;
    let message = consumer.next().await;
    assert_eq!(text(&message), "read");
    message.finish().unwrap();
    expect_stats(&goes, &[("depth", 1), ("client_count", 0)]).await;
    assert_eq!(consumer.handle.counters().failures, 0);
}

/// An nsqlookupd that has forgotten everything, and one that is gone, remove no nsqd.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_nsqlookupd_without_an_answer_removes_no_nsqd() {
    let peers = require_peers!();
    let mut lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let (nsqd, _) = start_listed(&peers, &lookupd, "before").await;
    let config = Config {
        lookup_interval: Span::from_millis(100),
        grace: Span::from_millis(200),
        ..config()
    };
    let consumer = Consumer::start(config, &[], &[lookupd.http_address()]);
    consumer.next().await.finish().unwrap();
    let lookups = || consumer.handle.counters().lookups;
    // nsqlookupd forgets the topic until nsqd registers it again: 404 from now on.
    lookupd.post("/topic/delete?topic=t", b"").await;
    let before = lookups();
    eventually("lookups without a result", SOON, async || lookups() > before + 5).await;
    lookupd.stop_sigterm().await;
    let failed = consumer.handle.counters().lookups_failed;
    eventually("lookups that fail", SOON, async || {
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
