//! Consuming over a wire that loses, doubles and delays packets and breaks connections.

use std::cell::RefCell;
use std::collections::BTreeSet;

use embassy_futures::join::join;
use embassy_futures::select::{Either, select};
use embassy_net::Stack;
use embassy_net::driver::LinkState;
use embassy_time::{Duration, Instant, Timer};
use nanonsq_core::address::Address;
use nanonsq_core::consumer::{AnswerError, Config, ConnectionEvent, Event};
use nanonsq_core::drive::consumer::{self, Dialers, Handle, Message, Runner, Sources};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{Awaited, Closed, DialError, Fault, TransportError};
use nanonsq_core::time::Span;
use nanonsq_embassy::{EmbassySleep, NoopRawMutex, Sockets, TcpDialer, TcpStorage};

use crate::leak;
use crate::peers::{NSQD, Nsqd, serve_producers};
use crate::world::{DEVICE, Faults, World, both};

const TOPIC: TopicName = match TopicName::new("numbers") {
    Ok(topic) => topic,
    Err(_) => panic!(),
};
const CHANNEL: ChannelName = match ChannelName::new("device") {
    Ok(channel) => channel,
    Err(_) => panic!(),
};
const CONFIG: Config<'_> = Config { seed: 1, ..Config::new(TOPIC, CHANNEL) };
/// The configuration for tests of lost connections: the shortest heartbeat.
const LIVELY: Config<'_> = Config { heartbeat: Span::from_secs(1), ..CONFIG };

const NSQDS: &[&str] = &["10.0.0.2:4150"];
const MESSAGES: usize = 4;

type Consumer = Handle<'static, NoopRawMutex, EmbassySleep>;
type Received = Message<'static, NoopRawMutex, EmbassySleep>;
type ConsumerRunner<const CONNECTIONS: usize, const LOOKUPDS: usize> =
    Runner<'static, NoopRawMutex, TcpDialer<'static>, EmbassySleep, CONNECTIONS, LOOKUPDS>;

fn addresses(texts: &[&str]) -> &'static [Address] {
    texts.iter().map(|address| address.parse().unwrap()).collect::<Vec<_>>().leak()
}

/// A consumer whose sockets have buffers of `RX` and `TX` bytes.
fn consumer_of<
    const CONNECTIONS: usize,
    const LOOKUPDS: usize,
    const RX: usize,
    const TX: usize,
>(
    stack: Stack<'static>,
    config: Config<'static>,
    nsqds: &[&str],
    lookupds: &[&str],
) -> (Consumer, ConsumerRunner<CONNECTIONS, LOOKUPDS>) {
    let dialer = || TcpDialer::new(stack, leak(TcpStorage::<RX, TX>::new()));
    let dialers = Dialers {
        nsqds: core::array::from_fn(|_| dialer()),
        lookupds: core::array::from_fn(|_| dialer()),
    };
    consumer::new(
        leak(consumer::Resources::<_, CONNECTIONS, MESSAGES, LOOKUPDS, CONNECTIONS>::new()),
        leak(config),
        Sources { nsqds: addresses(nsqds), lookupds: addresses(lookupds) },
        vec![0; MESSAGES * 64].leak(),
        dialers,
        EmbassySleep,
    )
    .unwrap()
}

fn consumer(stack: Stack<'static>, config: Config<'static>) -> (Consumer, ConsumerRunner<1, 0>) {
    consumer_of::<1, 0, 512, 512>(stack, config, NSQDS, &[])
}

fn number(message: &Received) -> u32 {
    message.read(|body| std::str::from_utf8(body).unwrap().parse().unwrap()).unwrap()
}

/// Finishes messages until `channel` has `published` FINs; returns the received numbers in order.
async fn finish_all(consumer: &Consumer, channel: &Nsqd, published: usize) -> Vec<u32> {
    let taken = RefCell::new(Vec::new());
    let work = async {
        loop {
            let message = consumer.next().await;
            taken.borrow_mut().push(number(&message));
            let _ = message.finish();
        }
    };
    let done = async {
        while channel.finished.borrow().len() < published {
            Timer::after_millis(1).await;
        }
    };
    match select(work, done).await {
        Either::First(never) => never,
        Either::Second(()) => taken.take(),
    }
}

/// Waits until a connection is lost or a dial fails, and returns the reason.
async fn next_loss(consumer: &Consumer) -> Closed {
    loop {
        if let Event::Connection { event: ConnectionEvent::Disconnected(why), .. } =
            consumer.event().await
        {
            return why;
        }
    }
}

#[test]
fn once_and_in_order_over_a_bad_wire() {
    for seed in 0..10 {
        let world = World::new(seed);
        let (device, host) = (world.device(), world.host());
        let channel = Nsqd::start(&world, host);
        channel.publish(0..500);
        let config = Config { connect_timeout: Span::from_secs(60), ..CONFIG };
        let (consumer, mut runner) = consumer(device, config);
        world.spawn(async move { runner.run().await });
        world.wire.set_faults(Faults::BAD);
        let taken = world.run(finish_all(&consumer, &channel, 500));
        assert!(taken.iter().copied().eq(0..500), "seed {seed}: {taken:?}");
        assert!(channel.finished.borrow().iter().copied().eq(0..500), "seed {seed}");
        assert_eq!((channel.connections.get(), channel.refused.get()), (1, 0), "seed {seed}");
        assert_eq!(channel.most_in_flight(), MESSAGES, "all slots were used, and no more");
        let counters = consumer.counters();
        assert_eq!((counters.received, counters.finished, counters.late), (500, 500, 0));
    }
}

/// The buffers are so small that heads, bodies and commands are cut at odd places. Some bodies fill
/// the whole ring.
#[test]
fn once_through_tiny_buffers() {
    fn body(number: u32) -> Vec<u8> {
        format!("{number}:{}", "abcdefghijklm".repeat(number as usize % 17)).into_bytes()
    }
    for seed in 0..10 {
        let world = World::new(seed);
        let (device, host) = (world.device(), world.host());
        let channel = Nsqd::start(&world, host);
        channel.body.set(Some(body));
        channel.publish(0..200);
        // Rare enough that the slow TCP connection does not time out.
        let heartbeat = Span::from_secs(5);
        let config = Config {
            heartbeat,
            connect_timeout: Span::from_secs(60),
            // Long bodies are requeued now and then for want of room.
            max_attempts: 0,
            ..CONFIG
        };
        let (consumer, mut runner) = consumer_of::<1, 0, 37, 61>(device, config, NSQDS, &[]);
        world.spawn(async move { runner.run_with::<16>().await });
        world.wire.set_faults(Faults { lost: 10, ..Faults::BAD });
        world.run(async {
            let work = async {
                loop {
                    let message = consumer.next().await;
                    message
                        .read(|bytes| {
                            let text = std::str::from_utf8(bytes).unwrap();
                            let number = text.split_once(':').unwrap().0.parse().unwrap();
                            assert!(bytes == body(number), "seed {seed}: {text}");
                        })
                        .unwrap();
                    message.finish().unwrap();
                }
            };
            let done = async {
                while channel.finished.borrow().len() < 200 {
                    Timer::after_millis(1).await;
                }
            };
            select(work, done).await;
        });
        let finished: BTreeSet<_> = channel.finished.borrow().iter().copied().collect();
        assert!(finished.into_iter().eq(0..200), "seed {seed}");
        assert_eq!((channel.connections.get(), channel.refused.get()), (1, 0), "seed {seed}");
        let counters = consumer.counters();
        assert_eq!(counters.no_room, channel.requeued.get(), "seed {seed}");
        assert!(counters.no_room > 0 && counters.too_large == 0, "seed {seed}: {counters:?}");
        let (heartbeats, nops) = (channel.heartbeats.get(), channel.alive.borrow().len() as u32);
        assert!(heartbeats >= 2 && nops + 1 >= heartbeats, "seed {seed}: {heartbeats} {nops}");
    }
}

#[test]
fn a_reset_is_followed_by_a_redial_at_once_and_a_late_answer_is_not_sent() {
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let channel = Nsqd::start(&world, host);
    channel.publish(0..4);
    channel.reset_after.set(Some(1));
    let (consumer, mut runner) = consumer(device, LIVELY);
    world.spawn(async move { runner.run().await });
    world.run(async {
        let kept = consumer.next().await;
        consumer.next().await.finish().unwrap();
        while channel.finished.borrow().is_empty() {
            Timer::after_millis(1).await;
        }
        let _connected = consumer.event().await;
        let start = Instant::now();
        consumer.next().await.finish().unwrap();
        assert_eq!(next_loss(&consumer).await, Closed::Transport(TransportError::Reset));
        assert_eq!(kept.finish(), Err(AnswerError::Late));
        let taken = finish_all(&consumer, &channel, 4).await;
        assert!(start.elapsed() < Duration::from_millis(30), "{}", start.elapsed());
        assert_eq!(taken.into_iter().collect::<BTreeSet<_>>(), [0, 2, 3].into());
    });
    assert_eq!((channel.connections.get(), channel.refused.get()), (2, 0));
    assert_eq!(consumer.counters().late, 1);
}

#[test]
fn nothing_is_lost_whatever_breaks() {
    for seed in 0..6 {
        let world = World::new(seed);
        let (device, host) = (world.device(), world.host());
        let channel = Nsqd::start(&world, host);
        channel.publish(0..1000);
        let config = Config { max_attempts: 0, ..LIVELY };
        let (consumer, mut runner) = consumer(device, config);
        world.spawn(async move { runner.run().await });
        world.wire.set_faults(Faults { lost: 20, ..Faults::BAD });
        let breaking = channel.clone();
        world.spawn(async move {
            for after in [1, 50, 3, 120, 7, 20] {
                breaking.reset_after.set(Some(after));
                while breaking.reset_after.get().is_some() {
                    Timer::after_millis(10).await;
                }
            }
        });
        let taken = world.run(finish_all(&consumer, &channel, 1000));
        let finished: BTreeSet<_> = channel.finished.borrow().iter().copied().collect();
        assert_eq!(channel.finished.borrow().len(), finished.len(), "each is finished once");
        assert!(finished.into_iter().eq(0..1000), "seed {seed}");
        // A message is delivered again only if it was in flight when a connection broke.
        let connections = channel.connections.get() as usize;
        assert!(connections >= 7, "seed {seed}: {connections}");
        let again = taken.len() - 1000;
        assert!(again <= (connections - 1) * MESSAGES, "seed {seed}: {again} in {connections}");
        assert_eq!(channel.refused.get(), 0, "no answer was sent on the wrong connection");
    }
}

/// The cable is pulled for longer than two heartbeats and connected again. Once the network driver
/// reports that the link is down, once it does not.
#[test]
fn a_pulled_cable_is_detected_and_messages_arrive_after_it() {
    for reported in [true, false] {
        let world = World::new(1);
        let (device, host) = (world.device(), world.host());
        let channel = Nsqd::start(&world, host);
        channel.publish(0..10);
        let (consumer, mut runner) = consumer(device, LIVELY);
        world.spawn(async move { runner.run().await });
        world.run(async {
            finish_all(&consumer, &channel, 10).await;
            if reported {
                world.wire.set_link(LinkState::Down);
            } else {
                world.wire.set_faults(Faults::CUT);
            }
            let start = Instant::now();
            let why = next_loss(&consumer).await;
            // Two heartbeat intervals, and one close timeout.
            assert!(start.elapsed() < Duration::from_millis(3100), "{}", start.elapsed());
            // A redial that fails at the same instant replaces the first event.
            let lost = match reported {
                true => Closed::Dial(DialError::Unreachable),
                false => Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)),
            };
            assert_eq!(why, lost);
            channel.publish(10..20);
            Timer::after_secs(10).await;
            assert_eq!(channel.finished.borrow().len(), 10);
            if reported {
                world.wire.set_link(LinkState::Up);
            } else {
                world.wire.set_faults(Faults::NONE);
            }
            let start = Instant::now();
            finish_all(&consumer, &channel, 20).await;
            // Bounded by the longest pause of the backoff.
            assert!(start.elapsed() < Duration::from_millis(12_000), "{}", start.elapsed());
        });
        assert_eq!(channel.finished.borrow().len(), 20);
    }
}

/// The stack has exactly as many sockets as [`Sockets`] counts; with fewer, a dialer would panic.
#[test]
fn two_nsqds_found_by_nsqlookupd_in_as_many_sockets_as_counted() {
    const SOCKETS: Sockets = Sockets::NONE.with_consumer(2, 1);
    assert_eq!(SOCKETS.count(), Sockets::NONE.count() + 3);
    let world = World::new(6);
    let device = world.stack::<{ SOCKETS.count() }>(DEVICE, both(DEVICE));
    let host = world.host();
    let channels = [4150, 4250].map(|port| Nsqd::at(&world, host, port));
    serve_producers(&world, host, 4161, &[4150, 4250]);
    channels[0].publish(0..100);
    channels[1].publish(100..200);
    let (consumer, mut runner) =
        consumer_of::<2, 1, 512, 512>(device, LIVELY, &[], &["10.0.0.2:4161"]);
    world.spawn(async move { runner.run().await });
    world.run(async {
        for _ in 0..200 {
            // Each nsqd has half of the slots, even while one message of each is held.
            let (a, b) = (consumer.next().await, consumer.next().await);
            a.finish().unwrap();
            b.finish().unwrap();
            if channels.iter().map(|channel| channel.finished.borrow().len()).sum::<usize>() >= 196
            {
                break;
            }
        }
        for (channel, numbers) in channels.iter().zip([0..100, 100..200]) {
            finish_rest(&consumer, channel, 100).await;
            assert!(channel.finished.borrow().iter().copied().eq(numbers));
            assert_eq!((channel.connections.get(), channel.most_in_flight()), (1, 2));
        }
    });
    assert!(consumer.counters().lookups >= 1);
}

async fn finish_rest(consumer: &Consumer, channel: &Nsqd, published: usize) {
    while channel.finished.borrow().len() < published {
        if let Some(message) = consumer.try_next() {
            message.finish().unwrap();
        }
        Timer::after_millis(1).await;
    }
}

#[test]
fn a_stop_sends_all_answers_and_leaves_the_rest_to_nsqd() {
    let world = World::new(7);
    let (device, host) = (world.device(), world.host());
    let channel = Nsqd::start(&world, host);
    channel.publish(0..10);
    let (consumer, mut runner) = consumer(device, LIVELY);
    world.spawn(async move { runner.run().await });
    world.run(async {
        let (kept, done) = (consumer.next().await, consumer.next().await);
        done.finish().unwrap();
        let slow = async {
            Timer::after_millis(500).await;
            kept.finish().unwrap();
        };
        let start = Instant::now();
        join(consumer.stop(), slow).await;
        assert!((500..600).contains(&start.elapsed().as_millis()), "{}", start.elapsed());
        assert!(consumer.try_next().is_none());
        // nsqd runs commands in order: both FINs were done when it answered CLS.
        assert_eq!(*channel.finished.borrow(), [1, 0]);
        assert_eq!((channel.close_waits.get(), channel.refused.get()), (1, 0));
        Timer::after_secs(60).await;
    });
    assert_eq!((channel.waiting(), channel.in_flight()), (8, 0));
    assert_eq!(channel.connections.get(), 1);
    let sent = world.wire.sent(DEVICE);
    assert_eq!((sent.fins, sent.resets), (1, 0));
}

#[test]
fn a_dropped_runner_goes_on_when_it_is_run_again() {
    let world = World::new(4);
    let (device, host) = (world.device(), world.host());
    let channel = Nsqd::start(&world, host);
    channel.publish(0..40);
    let (consumer, mut runner) = consumer(device, Config { max_attempts: 0, ..LIVELY });
    world.run(async {
        for n in 0..40 {
            // Each round drops the runner at a later stage of a connection.
            select(runner.run(), Timer::after_millis(n * 5)).await;
            if let Some(message) = consumer.try_next() {
                let _ = message.finish();
            }
        }
        select(runner.run(), finish_all(&consumer, &channel, 40)).await;
    });
    let finished: BTreeSet<_> = channel.finished.borrow().iter().copied().collect();
    assert!(finished.into_iter().eq(0..40));
    assert!(channel.connections.get() > 10, "{}", channel.connections.get());
    assert_eq!(channel.refused.get(), 0);
}

/// embassy-time keeps one wake time per task: other timers of the runner's task must not delay the
/// timers of its two connections and its lookup.
#[test]
fn the_runner_may_share_its_task_with_other_timers() {
    let world = World::new(3);
    let device = world.device();
    let host = world.host();
    let channel = Nsqd::start(&world, host);
    serve_producers(&world, host, 4161, &[NSQD]);
    channel.publish(0..1);
    let (consumer, mut runner) =
        consumer_of::<2, 1, 512, 512>(device, LIVELY, &[], &["10.0.0.2:4161"]);
    let start = Instant::now();
    let lost = world.run(async {
        let script = async {
            finish_all(&consumer, &channel, 1).await;
            world.wire.set_faults(Faults::CUT);
            // Only this timer wakes the task between the loss and its detection.
            Timer::after_millis(1100).await;
            next_loss(&consumer).await
        };
        match select(runner.run(), script).await {
            Either::First(never) => never,
            Either::Second(why) => why,
        }
    });
    assert_eq!(lost, Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)));
    assert!(start.elapsed() < Duration::from_millis(3200), "{}", start.elapsed());
    assert_eq!(channel.connections.get(), 1);
}
