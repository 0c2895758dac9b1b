//! Deliveries and answers.

use super::*;

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
            // Requeued three times, then given up.
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
        expect_stats(&nsqd, &all).await;
        let counters = consumer.handle.counters();
        assert_eq!(counters.given_up, u32::from(too_large == TooLarge::Requeue), "{counters:?}");
        assert_eq!((counters.connections, counters.unanswered, counters.received), (1, 0, 2));
    }
}

#[tokio::test]
async fn a_message_of_several_slots_arrives_whole() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    // With 26 bytes of header, 998 bytes fill the ring.
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
    expect_stats(&nsqd, &[("finish_count", 6), ("depth", 0), ("in_flight_count", 0)]).await;
    assert_eq!(consumer.handle.counters().too_large, 1);
}

#[tokio::test]
async fn a_message_that_fails_too_often_is_given_up_or_marked() {
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
    // The message is given up when the application asks for it.
    let nothing = tokio::time::timeout(Duration::from_millis(500), consumer.handle.next()).await;
    assert!(nothing.is_err());
    expect_stats(
        &nsqd,
        &[("finish_count", 1), ("requeue_count", 2), ("depth", 0), ("in_flight_count", 0)],
    )
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
    // Otherwise nsqd may deliver to the client that is gone, and wait for the answer.
    expect_stats(&nsqd, &[("client_count", 0)]).await;

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
async fn requeue_delays_are_sent_and_kept() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    nsqd.publish("t", b"x").await;
    let config = Config { requeue_base: Span::from_millis(300), ..config() };
    let consumer = Consumer::start(config, &[proxy.address()], &[]);
    consumer.connected(1).await;
    // From now on nsqd checks the channel ten times a second.
    tokio::time::sleep(NEW_CHANNEL).await;
    let mut message = consumer.next().await;
    // The third delay is the consumer's own, which grows with the attempts.
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
    expect_stats(&nsqd, &[("requeue_count", 3), ("finish_count", 1), ("timeout_count", 0)]).await;
    let commands = tap::nsqd(&proxy.client_bytes()[0]).unwrap().commands;
    let delays: Vec<_> = commands
        .iter()
        .filter_map(|command| if let V2::Req(_, delay) = command { Some(*delay) } else { None })
        .collect();
    assert_eq!(delays, [1200, 0, 900]);
}

#[tokio::test]
async fn a_message_dropped_unanswered_is_delivered_again() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    nsqd.publish("t", b"x").await;
    let config = Config { requeue_base: Span::ZERO, backoff_base: Span::from_secs(60), ..config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    drop(consumer.next().await);
    expect_stats(&nsqd, &[("requeue_count", 1)]).await;
    // This is no failure: the consumer does not back off.
    let message = consumer.next().await;
    assert_eq!(message.head().unwrap().attempts, 2);
    message.finish().unwrap();
    expect_stats(&nsqd, &[("finish_count", 1), ("in_flight_count", 0)]).await;
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
    expect_stats(&nsqd, &[("ready_count", 0)]).await;
    // Messages in flight come at once, the rest after at least half of the time.
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
    expect_stats(&nsqd, &[("ready_count", 4), ("finish_count", 100), ("depth", 0)]).await;
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
    expect_stats(&nsqd, &[("finish_count", 1), ("client_count", 1), ("timeout_count", 0)]).await;
    assert_eq!(consumer.handle.counters().connections, 1);
    let stats = stats(&nsqd).await;
    assert_eq!(stats["clients"][0]["client_id"], "nanonsq", "{stats}");
}

#[tokio::test]
async fn a_message_touched_automatically_does_not_time_out() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    nsqd.publish("t", b"x").await;
    let config = Config { auto_touch: true, msg_timeout: Some(Span::from_secs(1)), ..config() };
    let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
    let message = consumer.next().await;
    tokio::time::sleep(NEW_CHANNEL + Duration::from_secs(2)).await;
    message.finish().unwrap();
    expect_stats(&nsqd, &[("finish_count", 1), ("timeout_count", 0), ("in_flight_count", 0)]).await;
    let counters = consumer.handle.counters();
    assert!((12..=16).contains(&counters.touched), "{counters:?}");
}

#[tokio::test]
async fn an_answer_after_the_timeout_is_not_sent() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let proxy = Proxy::start(nsqd.tcp_address()).await;
    proxy.set_recording(true);
    nsqd.publish("t", b"x").await;
    let config = Config { msg_timeout: Some(Span::from_secs(1)), ..config() };
    let consumer = Consumer::start(config, &[proxy.address()], &[]);
    let message = consumer.next().await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(text(&message), "x", "the body stays readable");
    assert_eq!(message.touch(), Err(AnswerError::Late));
    assert_eq!(message.finish(), Err(AnswerError::Late));
    let again = consumer.next().await;
    assert_eq!(again.head().unwrap().attempts, 2);
    again.finish().unwrap();
    expect_stats(&nsqd, &[("finish_count", 1), ("timeout_count", 1), ("in_flight_count", 0)]).await;
    let counters = consumer.handle.counters();
    // The TOUCH and the FIN.
    assert_eq!((counters.timed_out, counters.late, counters.refused), (1, 2, 0), "{counters:?}");
    assert_eq!(tap::nsqd(&proxy.client_bytes()[0]).unwrap().counts().fin, 1);
}

#[tokio::test]
async fn an_answer_that_arrives_after_the_timeout_is_only_counted() {
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
    // Prevent a new delivery at once: the answer would count for that.
    consumer.handle.pause();
    expect_stats(&nsqd, &[("ready_count", 0), ("in_flight_count", 1)]).await;
    proxy.set_mode(Mode::Blackhole).await;
    message.finish().expect("still in flight at nsqd");
    expect_stats(&nsqd, &[("timeout_count", 1), ("in_flight_count", 0), ("finish_count", 0)]).await;
    proxy.set_mode(Mode::Forward).await;
    eventually("nsqd refuses the FIN", SOON, async || consumer.handle.counters().refused == 1)
        .await;
    consumer.handle.resume();
    let again = consumer.next().await;
    assert_eq!(again.head().unwrap().attempts, 2);
    again.finish().unwrap();
    expect_stats(&nsqd, &[("finish_count", 1), ("in_flight_count", 0), ("depth", 0)]).await;
    let counters = consumer.handle.counters();
    assert_eq!(
        (counters.connections, counters.failures),
        (1, 0),
        "the connection stays: {counters:?}"
    );
    assert_eq!((counters.refused, counters.late, counters.timed_out), (1, 0, 0), "{counters:?}");
}

#[tokio::test]
async fn nsqd_buffers_messages_no_longer_than_configured() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let mut took = Vec::new();
    for output_buffer_timeout in [None, Some(Span::from_millis(25)), Some(Span::ZERO)] {
        let config = Config { output_buffer_timeout, ..config() };
        let consumer = Consumer::start(config, &[nsqd.tcp_address()], &[]);
        consumer.connected(1).await;
        expect_stats(&nsqd, &[("ready_count", 64)]).await;
        // One by one. The first is delivered when nsqd checks the channel, the others directly
        // after.
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
        expect_stats(&nsqd, &[("client_count", 0)]).await;
    }
    let [own, short, none] = took.try_into().unwrap();
    // 250 ms each, 25 ms each, and no added delay.
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
    // nsqd delivers them again when their timeout passes.
    for _ in 0..3 {
        let message = consumer.next().await;
        assert_eq!(message.head().unwrap().attempts, 2);
        message.finish().unwrap();
    }
    expect_stats(
        &nsqd,
        &[("depth", 0), ("in_flight_count", 0), ("timeout_count", 3), ("finish_count", 3)],
    )
    .await;
    let sent: Vec<_> =
        proxy.client_bytes().iter().map(|b| tap::nsqd(b).unwrap().counts()).collect();
    assert_eq!(
        sent.iter().map(|counts| (counts.fin, counts.req)).collect::<Vec<_>>(),
        [(0, 0), (3, 0)]
    );
}
