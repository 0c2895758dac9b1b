//! Consumers that find nodes through nsqlookupd: they receive each message once, unless it is
//! requeued or times out, with correct attempts.

use std::time::Duration;

use nanonsq_tests::client::{Action, Delivery, Library};
use nanonsq_tests::{Client, ClientConsumer, ServerOptions, Until, consume_all, eventually};

use crate::pair::{Pair, SOON, Setting, tests_with};

tests_with!([Real, OurNode, OurLookupd, Ours]:
    go_nsq_finishes,
    go_nsq_requeues,
    pynsq_finishes,
    pynsq_requeues,
    tokio_nsq_finishes,
    tokio_nsq_requeues,
    four_go_nsqs_share_two_channels,
    four_pynsqs_share_two_channels,
    four_tokio_nsqs_share_two_channels,
    deferred_messages_wait,
);

const LIMIT: Duration = Duration::from_secs(180);
/// Long enough that no message times out because the machine is busy.
const MSG_TIMEOUT: u64 = 3_000;

async fn go_nsq_finishes(setting: Setting) {
    play(&setting, Play::of(Library::GoNsq)).await;
}

async fn go_nsq_requeues(setting: Setting) {
    play(&setting, Play { again: Some(AGAIN), ..Play::of(Library::GoNsq) }).await;
}

async fn pynsq_finishes(setting: Setting) {
    play(&setting, Play { command: "mpub", ..Play::of(Library::Pynsq) }).await;
}

async fn pynsq_requeues(setting: Setting) {
    play(&setting, Play { again: Some(AGAIN), ..Play::of(Library::Pynsq) }).await;
}

async fn tokio_nsq_finishes(setting: Setting) {
    play(&setting, Play { command: "mpub", ..Play::of(Library::TokioNsq) }).await;
}

async fn tokio_nsq_requeues(setting: Setting) {
    play(&setting, Play { again: Some(AGAIN), ..Play::of(Library::TokioNsq) }).await;
}

async fn four_go_nsqs_share_two_channels(setting: Setting) {
    four_consumers_share_two_channels(&setting, Library::GoNsq).await;
}

async fn four_pynsqs_share_two_channels(setting: Setting) {
    four_consumers_share_two_channels(&setting, Library::Pynsq).await;
}

async fn four_tokio_nsqs_share_two_channels(setting: Setting) {
    four_consumers_share_two_channels(&setting, Library::TokioNsq).await;
}

/// Returns the number of messages: 100,000 for our node; fewer for the real nsqd, which only shows
/// that the test is right.
fn many(setting: &Setting) -> usize {
    if setting.subject.is_our_node() { 100_000 } else { 10_000 }
}

/// One producer and one consumer.
struct Play {
    library: Library,
    command: &'static str,
    again: Option<Again>,
}

/// Every how many messages one is requeued, times out or is touched.
struct Again {
    requeued: usize,
    timed_out: usize,
    touched: usize,
}

const AGAIN: Again = Again { requeued: 10, timed_out: 200, touched: 1000 };

impl Play {
    fn of(library: Library) -> Play {
        Play { library, command: "pub", again: None }
    }

    /// Returns the consumer's actions for the attempts of message `n`, in order.
    fn expected(&self, n: usize) -> &'static [Action] {
        let is = |remainder, every: fn(&Again) -> usize| {
            self.again.as_ref().is_some_and(|again| n % every(again) == remainder)
        };
        if is(1, |again| again.requeued) {
            &[Action::Req, Action::Fin]
        } else if is(2, |again| again.timed_out) {
            &[Action::Timeout, Action::Fin]
        } else if is(3, |again| again.touched) {
            &[Action::Touch]
        } else {
            &[Action::Fin]
        }
    }
}

async fn play(setting: &Setting, play: Play) {
    let Some(client) = Client::find_or_skip(play.library, &setting.peers, setting.test) else {
        return;
    };
    let messages = many(setting);
    // tokio-nsq cannot request a timeout, so the node has one.
    let options = ServerOptions::new().flag(format!("--msg-timeout={MSG_TIMEOUT}ms"));
    let pair = setting.start(options).await;
    pair.create("t", &["c"]).await;

    let mut options = vec![("max-in-flight", 1_000)];
    if let Some(again) = &play.again {
        options.extend([
            ("msg-timeout-ms", MSG_TIMEOUT),
            ("requeue-every", again.requeued as u64),
            ("timeout-every", again.timed_out as u64),
            ("touch-every", again.touched as u64),
        ]);
    }
    let mut consumer = client.consume(pair.lookupd.http_address(), "t", "c", &options);
    let count = [("count", messages as u64)];
    let mut producer = client.publish(pair.node.tcp_address(), "t", play.command, &count);
    assert!(producer.wait(LIMIT).await.success(), "{}", producer.stderr());

    let wanted: usize = (0..messages).map(|n| play.expected(n).len()).sum();
    eventually("all deliveries", LIMIT, async || {
        slowly().await;
        consumer.deliveries().len() >= wanted
    })
    .await;
    finished(&pair, "c", messages).await;
    // Wait for deliveries that must not happen.
    tokio::time::sleep(Duration::from_millis(500)).await;

    let mut got: Vec<Vec<Delivery>> = vec![Vec::new(); messages];
    for delivery in consumer.stop().await {
        got[delivery.number].push(delivery);
    }
    for (n, deliveries) in got.iter().enumerate() {
        let did: Vec<_> = deliveries.iter().map(|delivery| delivery.action).collect();
        assert_eq!(did, play.expected(n), "message {n}: {deliveries:?}");
        for (before, delivery) in deliveries.iter().enumerate() {
            assert_eq!(usize::from(delivery.attempts), before + 1, "message {n}: {deliveries:?}");
            assert_eq!(delivery.id, deliveries[0].id, "message {n}");
        }
    }
    let count = |action| got.iter().flatten().filter(|is| is.action == action).count() as u64;
    assert_eq!(pair.channel_stat("t", "c", "message_count").await, messages as u64);
    assert_eq!(pair.channel_stat("t", "c", "requeue_count").await, count(Action::Req));
    assert_eq!(pair.channel_stat("t", "c", "timeout_count").await, count(Action::Timeout));
    nothing_left(&pair, "c").await;
}

async fn four_consumers_share_two_channels(setting: &Setting, library: Library) {
    let Some(client) = Client::find_or_skip(library, &setting.peers, setting.test) else {
        return;
    };
    let messages = many(setting);
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["a", "b"]).await;
    // tokio-nsq answers four times a second.
    let in_flight = if library == Library::TokioNsq { 1_000 } else { 200 };
    let start = |channel| {
        let options = [("max-in-flight", in_flight)];
        client.consume(pair.lookupd.http_address(), "t", channel, &options)
    };
    let mut consumers: [(&str, [ClientConsumer; 2]); 2] =
        ["a", "b"].map(|channel| (channel, [start(channel), start(channel)]));
    for (channel, _) in &consumers {
        eventually("two clients", SOON, async || {
            pair.channel_stat("t", channel, "client_count").await == 2
        })
        .await;
    }
    let options = [("count", messages as u64)];
    let mut producer = client.publish(pair.node.tcp_address(), "t", "mpub", &options);
    assert!(producer.wait(LIMIT).await.success(), "{}", producer.stderr());

    for (channel, both) in &mut consumers {
        eventually("all deliveries", LIMIT, async || {
            slowly().await;
            both.iter_mut().map(|consumer| consumer.deliveries().len()).sum::<usize>() >= messages
        })
        .await;
        finished(&pair, channel, messages).await;
    }
    for (channel, both) in consumers {
        let mut seen = vec![0; messages];
        for consumer in both {
            let deliveries = consumer.stop().await;
            let share = deliveries.len();
            assert!(share > messages / 100, "a consumer of {channel} got {share} of {messages}");
            for delivery in deliveries {
                assert_eq!((delivery.attempts, delivery.action), (1, Action::Fin), "{delivery:?}");
                seen[delivery.number] += 1;
            }
        }
        let wrong = seen.iter().position(|&times| times != 1);
        assert_eq!(wrong, None, "{channel} got a message more than once or never");
        nothing_left(&pair, channel).await;
    }
}

async fn deferred_messages_wait(setting: Setting) {
    const MESSAGES: u64 = 50;
    const DELAY: Duration = Duration::from_millis(1_500);
    let Some(client) = Client::find_or_skip(Library::GoNsq, &setting.peers, setting.test) else {
        return;
    };
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["c"]).await;
    let mut consumer = client.consume(pair.lookupd.http_address(), "t", "c", &[]);
    eventually("a client", SOON, async || pair.channel_stat("t", "c", "client_count").await == 1)
        .await;
    let since = std::time::Instant::now();
    let options = [("count", MESSAGES), ("delay-ms", DELAY.as_millis() as u64)];
    let mut producer = client.publish(pair.node.tcp_address(), "t", "dpub", &options);
    assert!(producer.wait(LIMIT).await.success(), "{}", producer.stderr());
    eventually("all deliveries", LIMIT, async || {
        let arrived = consumer.deliveries().len();
        let early = since.elapsed() < DELAY;
        assert!(!early || arrived == 0, "{arrived} arrived after {:?}", since.elapsed());
        arrived == MESSAGES as usize
    })
    .await;
    finished(&pair, "c", MESSAGES as usize).await;
    assert!(consumer.stop().await.iter().all(|delivery| delivery.attempts == 1));
}

/// Waits until a channel has finished `messages` messages.
async fn finished(pair: &Pair, channel: &str, messages: usize) {
    eventually("everything is finished", SOON, async || {
        let stats = pair.node.channel_stats("t", channel).await;
        let is = |key: &str, value: usize| stats[key].as_u64() == Some(value as u64);
        is("message_count", messages)
            && ["depth", "in_flight_count", "deferred_count"].iter().all(|key| is(key, 0))
    })
    .await;
}

/// Asserts that the channel delivers nothing more.
async fn nothing_left(pair: &Pair, channel: &str) {
    let until = Until::quiet_for(Duration::from_millis(500));
    let consumed = consume_all(pair.node.tcp_address(), "t", channel, until).await.unwrap();
    assert_eq!(consumed.texts(), Vec::<String>::new());
}

/// Waits between two checks, because reading a consumer's deliveries is expensive.
async fn slowly() {
    tokio::time::sleep(Duration::from_millis(100)).await;
}
