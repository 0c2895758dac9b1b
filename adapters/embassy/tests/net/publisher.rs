//! Publishing over a wire that loses, doubles and delays packets and breaks connections.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use embassy_futures::join::join;
use embassy_futures::select::{Either, select};
use embassy_net::ConfigV4;
use embassy_net::driver::LinkState;
use embassy_time::{Duration, Instant, Timer};
use nanonsq_core::publisher::{Config, Event, Outcome, PublishError, State};
use nanonsq_core::session::{Awaited, Closed, DialError, Fault, TransportError};
use nanonsq_core::time::Span;

use nanonsq_embassy::{EmbassySleep, TcpDialer, TcpStorage};

use crate::peers::Nsqd;
use crate::world::{DEVICE, Faults, World, ipv4};
use crate::{LIVELY, Publisher, leak, next_loss, publisher, publisher_over, topic};

const NSQD: &[&str] = &["10.0.0.2:4150"];

const HALF_OPEN: Closed = Closed::Fault(Fault::TimedOut(Awaited::Heartbeat));

fn numbers(n: usize) -> Vec<String> {
    (0..n).map(|n| n.to_string()).collect()
}

async fn publish_numbers(publisher: Publisher, n: usize) {
    for number in numbers(n) {
        let _ = publisher.publish(&topic("numbers"), number.as_bytes()).await.unwrap();
    }
    publisher.idle().await;
}

#[test]
fn once_and_in_order_over_a_bad_wire() {
    for seed in 0..10 {
        let world = World::new(seed);
        let (device, host) = (world.device(), world.host());
        let nsqd = Nsqd::start(&world, host);
        let config = Config { reply_timeout: Span::from_secs(60), ..Config::new() };
        let (publisher, mut runner) = publisher(device, config, NSQD, 3000);
        world.spawn(async move { runner.run().await });
        world.wire.set_faults(Faults::BAD);
        world.run(publish_numbers(publisher, 500));
        assert_eq!(nsqd.connections.get(), 1, "seed {seed}");
        assert_eq!(nsqd.bodies(), numbers(500), "seed {seed}");
        let counters = publisher.counters();
        assert_eq!((counters.acknowledged, counters.possible_duplicates), (500, 0));
    }
}

/// The buffers are so small that heads, bodies and responses are cut at odd places.
fn through_tiny_buffers(seed: u32, config: Config<'static>) {
    let world = World::new(seed);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let dialer = TcpDialer::new(device, leak(TcpStorage::<37, 61>::new()));
    let config = Config { reply_timeout: Span::from_secs(60), ..config };
    let (publisher, mut runner) = publisher_over(dialer, config, NSQD, 1100);
    world.spawn(async move { runner.run().await });
    world.wire.set_faults(Faults { lost: 10, ..Faults::BAD });
    let bodies: Vec<_> =
        (1..100).map(|n| format!("{n}:{}", "abcdefghijklm".repeat(n % 29))).collect();
    world.run(async {
        for body in &bodies {
            let _ = publisher.publish(&topic("t"), body.as_bytes()).await.unwrap();
        }
        publisher.idle().await;
    });
    assert_eq!(nsqd.connections.get(), 1, "seed {seed}");
    assert!(nsqd.bodies() == bodies, "seed {seed}");
}

#[test]
fn once_and_in_order_through_tiny_buffers() {
    for seed in 0..10 {
        let heartbeat = Span::from_secs(60);
        through_tiny_buffers(seed, Config { heartbeat, ..Config::new() });
    }
}

/// The response to a batch arrives while the NOP behind it still waits for room in the socket.
#[test]
fn heartbeats_through_tiny_buffers() {
    for seed in 0..10 {
        // Rare enough that the slow TCP connection does not time out.
        let heartbeat = Span::from_secs(5);
        through_tiny_buffers(seed, Config { heartbeat, ..Config::new() });
    }
}

#[test]
fn a_reset_is_followed_by_a_redial_at_once() {
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 3000);
    world.spawn(async move { runner.run().await });
    world.run(async {
        publish_numbers(publisher, 10).await;
        let _connected = publisher.event().await;
        nsqd.reset_after.set(Some(3));
        let start = Instant::now();
        let (why, ()) = join(next_loss(publisher), publish_numbers(publisher, 10)).await;
        assert_eq!(why, Closed::Transport(TransportError::Reset));
        assert!(start.elapsed() < Duration::from_millis(20), "{}", start.elapsed());
    });
    assert_eq!(nsqd.connections.get(), 2);
}

#[test]
fn nothing_is_lost_and_order_kept_per_connection_whatever_breaks() {
    for seed in 0..6 {
        let world = World::new(seed);
        let (device, host) = (world.device(), world.host());
        let nsqd = Nsqd::start(&world, host);
        let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 1000);
        world.spawn(async move { runner.run().await });
        world.wire.set_faults(Faults { lost: 20, ..Faults::BAD });
        let breaking = nsqd.clone();
        world.spawn(async move {
            for after in [1, 50, 3, 120, 7, 20] {
                breaking.reset_after.set(Some(after));
                while breaking.reset_after.get().is_some() {
                    Timer::after_millis(10).await;
                }
            }
        });
        world.run(publish_numbers(publisher, 2000));
        let stored = nsqd.stored.borrow();
        let got: BTreeSet<_> = stored.iter().map(|stored| stored.body.clone()).collect();
        assert_eq!(got.len(), 2000, "seed {seed}");
        let duplicates = stored.len() as u64 - 2000;
        assert!(duplicates <= publisher.counters().possible_duplicates, "seed {seed}");
        assert!(nsqd.connections.get() >= 6, "seed {seed} {}", nsqd.connections.get());
        for pair in stored.windows(2) {
            let [a, b] = pair else { unreachable!() };
            let number = |body: &str| body.parse::<u32>().unwrap();
            let in_order = number(&a.body) < number(&b.body);
            assert!(a.connection != b.connection || in_order, "{a:?} {b:?}");
        }
    }
}

/// The cable is pulled for longer than two heartbeats and connected again. Once the network driver
/// reports that the link is down, once it does not.
#[test]
fn a_pulled_cable_is_detected_and_the_backlog_delivered() {
    for reported in [true, false] {
        let world = World::new(1);
        let (device, host) = (world.device(), world.host());
        let nsqd = Nsqd::start(&world, host);
        let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 8000);
        world.spawn(async move { runner.run().await });
        world.run(async {
            publish_numbers(publisher, 10).await;
            if reported {
                world.wire.set_link(LinkState::Down);
            } else {
                world.wire.set_faults(Faults::CUT);
            }
            let start = Instant::now();
            let noticed = async {
                let why = next_loss(publisher).await;
                // Two heartbeat intervals, and one close timeout.
                assert!(start.elapsed() < Duration::from_millis(3100), "{}", start.elapsed());
                // A redial that fails at the same instant replaces the first event.
                let (lost, error) = match reported {
                    true => (Closed::Dial(DialError::Unreachable), DialError::Unreachable),
                    false => (HALF_OPEN, DialError::TimedOut),
                };
                assert_eq!(why, lost);
                assert_eq!(next_loss(publisher).await, Closed::Dial(error));
            };
            let backlog = async {
                for _ in 0..100 {
                    let _ = publisher.publish(&topic("backlog"), b"reading").await.unwrap();
                    Timer::after_millis(100).await;
                }
            };
            join(noticed, backlog).await;
            assert_eq!(nsqd.stored.borrow().len(), 10);
            world.wire.set_link(LinkState::Up);
            let start = Instant::now();
            publisher.idle().await;
            // Bounded by the longest pause of the backoff if dials fail at once; otherwise by the
            // retransmission of a SYN after one second, then two.
            let within = if reported { 2100 } else { 5100 };
            assert!(start.elapsed() < Duration::from_millis(within), "{}", start.elapsed());
        });
        assert_eq!(nsqd.stored.borrow().len(), 110);
    }
}

/// Two tasks publish to an outbox that is always full, with a slow nsqd.
#[test]
fn two_tasks_and_a_full_outbox() {
    let world = World::new(2);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    // An OK takes 50 ms: the outbox of 600 bytes is always full.
    nsqd.slowness.set(50_000);
    let config = Config { batch_bytes: 200, ..LIVELY };
    let (publisher, mut runner) = publisher(device, config, NSQD, 600);
    world.spawn(async move { runner.run().await });
    let full = Rc::new(Cell::new(0));
    let done = Rc::new(Cell::new(0));
    for name in ["a", "b"] {
        let (full, done) = (full.clone(), done.clone());
        world.spawn(async move {
            for n in 0..400 {
                let body = format!("{name} {n} {}", "x".repeat(40));
                // One half is published with `publish`, which waits, the other with `try_publish`.
                if n % 2 == 0 {
                    let _ = publisher.publish(&topic(name), body.as_bytes()).await.unwrap();
                    continue;
                }
                while let Err(error) = publisher.try_publish(&topic(name), body.as_bytes()) {
                    assert_eq!(error, PublishError::Full);
                    full.set(full.get() + 1);
                    Timer::after_millis(5).await;
                }
            }
            done.set(done.get() + 1);
        });
    }
    world
        .run(publisher.wait(|publisher| {
            (done.get() == 2 && publisher.counters().pending == 0).then_some(())
        }));
    let stored = nsqd.stored.borrow();
    for name in ["a", "b"] {
        let of_topic: Vec<_> = stored.iter().filter(|stored| stored.topic == name).collect();
        assert_eq!(of_topic.len(), 400);
        for (n, stored) in of_topic.iter().enumerate() {
            assert!(stored.body.starts_with(&format!("{name} {n} ")), "{stored:?}");
        }
    }
    assert!(full.get() > 100, "the outbox was full only {} times", full.get());
    assert_eq!(nsqd.connections.get(), 1);
    // All heartbeats but perhaps the last were answered.
    let (heartbeats, nops) = (nsqd.heartbeats.get(), nsqd.alive.borrow().len() as u32);
    assert!(heartbeats >= 5 && nops + 1 >= heartbeats, "{heartbeats} {nops}");
}

/// embassy-time keeps one wake time per task: other timers of the runner's task must not delay
/// those of the runner.
#[test]
fn the_runner_may_share_its_task_with_other_timers() {
    let world = World::new(3);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 2000);
    let start = Instant::now();
    let lost = world.run(async {
        let script = async {
            publish_numbers(publisher, 1).await;
            world.wire.set_faults(Faults::CUT);
            // Only this timer wakes the task between the loss and its detection.
            Timer::after_millis(1100).await;
            next_loss(publisher).await
        };
        match select(runner.run(), script).await {
            Either::First(never) => never,
            Either::Second(why) => why,
        }
    });
    assert_eq!(lost, HALF_OPEN);
    assert!(start.elapsed() < Duration::from_millis(3100), "{}", start.elapsed());
    assert_eq!(nsqd.connections.get(), 1);
}

#[test]
fn a_dropped_runner_goes_on_when_it_is_run_again() {
    let world = World::new(4);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 2000);
    world.run(async {
        for (n, number) in numbers(40).into_iter().enumerate() {
            let _ = publisher.publish(&topic("numbers"), number.as_bytes()).await.unwrap();
            // Each round drops the runner at a later stage of a connection.
            select(runner.run(), Timer::after_micros(n as u64 * 150)).await;
        }
        select(runner.run(), publisher.idle()).await;
    });
    let got: BTreeSet<_> = nsqd.bodies().into_iter().collect();
    assert_eq!(got.len(), 40);
}

#[test]
fn another_nsqd_takes_over() {
    let world = World::new(5);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let (publisher, mut runner) =
        publisher(device, LIVELY, &["10.0.0.2:4151", "[fd00::2]:4150"], 2000);
    world.spawn(async move { runner.run().await });
    world.run(async {
        let ticket = publisher.publish(&topic("t"), b"hello").await.unwrap();
        assert_eq!(publisher.outcome(ticket).await, Outcome::Acknowledged);
        assert!(matches!(publisher.event().await, Event::Connected { nsqd: 1, .. }));
    });
    assert_eq!(nsqd.bodies(), ["hello"]);
}

/// The network changes the address of the device: the publisher reconnects from the new one.
#[test]
fn a_new_address_is_a_new_connection() {
    let world = World::new(7);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 2000);
    world.spawn(async move { runner.run().await });
    world.run(async {
        publish_numbers(publisher, 1).await;
        let mut config = ipv4(DEVICE);
        config.address = embassy_net::Ipv4Cidr::new([10, 0, 0, 9].into(), 24);
        device.set_config_v4(ConfigV4::Static(config));
        let start = Instant::now();
        publish_numbers(publisher, 1).await;
        assert!(start.elapsed() < Duration::from_millis(20), "{}", start.elapsed());
    });
    assert_eq!(nsqd.connections.get(), 2);
}

#[test]
fn an_idle_connection_costs_a_few_polls_a_heartbeat() {
    let world = World::new(8);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, Config::new(), NSQD, 2000);
    world.spawn(async move { runner.run().await });
    world.run(async {
        publish_numbers(publisher, 1).await;
        let (polls, sent) = (world.polls.get(), world.wire.sent(DEVICE));
        Timer::after_secs(3000).await;
        assert_eq!(nsqd.heartbeats.get(), 100);
        assert_eq!(nsqd.alive.borrow().len(), 100);
        // Per heartbeat a NOP, and a TCP keepalive probe before the next. The polls include those
        // of both stacks and of nsqd.
        let packets = world.wire.sent(DEVICE).packets - sent.packets;
        assert!(packets <= 205, "{packets} packets");
        let polls = world.polls.get() - polls;
        assert!(polls <= 25 * 100, "{polls} polls");
    });
}

/// For metered links: after `stop` the publisher sends nothing.
#[test]
fn a_stopped_publisher_is_silent() {
    let world = World::new(6);
    let (device, host) = (world.device(), world.host());
    Nsqd::start(&world, host);
    let (publisher, mut runner) = publisher(device, LIVELY, NSQD, 2000);
    world.run(async {
        let script = async {
            publish_numbers(publisher, 5).await;
            publisher.stop(&EmbassySleep).await;
            assert_eq!(publisher.look(|publisher| publisher.state()), Some(State::Stopped));
            Timer::after_secs(1).await;
            let before = world.wire.sent(DEVICE).packets;
            Timer::after_secs(600).await;
            assert_eq!(world.wire.sent(DEVICE).packets, before);
        };
        select(runner.run(), script).await;
    });
}
