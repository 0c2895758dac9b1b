//! Clients that hold all their memory in one cell.

use std::cell::RefCell;

use embassy_net::driver::LinkState;
use embassy_time::Timer;
use log::{Level, LevelFilter, Log, Metadata, Record};
use nanonsq_core::publisher::PublishError;
use nanonsq_core::time::Span;
use nanonsq_core::{address, channel, consumer, publisher, topic};
use nanonsq_embassy::{
    Connections, Consumer, EmbassySleep, Listed, Lookupds, MessageBytes, Messages, Publisher,
};

use crate::leak;
use crate::peers::{Nsqd, serve_producers};
use crate::world::World;

thread_local! {
    static LOG: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what the adapter logs, and warnings of the core, in the thread of each test.
struct Lines;

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("nanonsq_embassy") || metadata.level() == Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            LOG.with_borrow_mut(|log| log.push(record.args().to_string()));
        }
    }

    fn flush(&self) {}
}

fn logs() {
    let _ = log::set_logger(&Lines);
    log::set_max_level(LevelFilter::Info);
}

#[test]
fn a_device_publishes_sleeps_and_publishes_again() {
    logs();
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    let cell = leak(Publisher::<2048>::new());
    let nsqds = [address!("10.0.0.2:4150")];
    let (nsq, mut runner) = cell.start(device, nsqds, publisher::Config::new()).unwrap();
    world.spawn(async move { runner.run().await });
    world.run(async {
        let topic = topic!("readings");
        for day in 0..3 {
            let _ = nsq.publish(&topic, day.to_string().as_bytes()).await.unwrap();
            assert_eq!(nsq.drain(&EmbassySleep, Span::from_secs(5)).await, 0);
            assert_eq!(nsq.publish(&topic, b"asleep").await, Err(PublishError::Stopped));
            world.wire.set_link(LinkState::Down);
            Timer::after_secs(600).await;
            world.wire.set_link(LinkState::Up);
            nsq.resume().await;
        }
        Timer::after_secs(1).await;
    });
    assert_eq!(
        (nsqd.bodies(), nsqd.connections.get()),
        (vec!["0".into(), "1".into(), "2".into()], 4)
    );
    let day = ["publisher: connected to 10.0.0.2:4150", "publisher: closed"];
    assert_eq!(
        LOG.take(),
        [day, day, day].concat().into_iter().chain([day[0]]).collect::<Vec<_>>()
    );
}

#[test]
fn a_failure_is_logged_once() {
    logs();
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let cell = leak(Publisher::<2048, 2>::new());
    let nsqds = [address!("10.0.0.2:4150"), address!("10.0.0.2:4151")];
    let (nsq, mut runner) = cell.start(device, nsqds, publisher::Config::new()).unwrap();
    world.spawn(async move { runner.run().await });
    world.run(Timer::after_secs(60));
    assert!(nsq.counters().failures > 5);
    let nsqd = Nsqd::at(&world, host, 4151);
    world.run(async {
        let _ = nsq.publish(&topic!("t"), b"x").await.unwrap();
        nsq.idle().await;
        nsqd.reset_after.set(Some(0));
        let _ = nsq.publish(&topic!("t"), b"y").await.unwrap();
        nsq.idle().await;
    });
    let log = [
        "publisher: no connection: connection refused: nothing listens on that port",
        "publisher: connected to 10.0.0.2:4151",
        "publisher: lost: connection reset",
        "publisher: connected to 10.0.0.2:4151",
    ];
    assert_eq!(LOG.take(), log);
}

#[test]
fn a_cell_consumes_from_given_and_from_listed_nsqds() {
    logs();
    let world = World::new(1);
    let (device, host) = (world.device(), world.host());
    let nsqd = Nsqd::start(&world, host);
    serve_producers(&world, host, 4161, &[4150]);
    let config = || consumer::Config::new(topic!("numbers"), channel!("device"));
    let given = leak(Consumer::<Connections<1>, Messages<4>, MessageBytes<64>>::new());
    let (given, mut runner) = given.start(device, [address!("10.0.0.2:4150")], config()).unwrap();
    world.spawn(async move { runner.run().await });
    let listed =
        leak(
            Consumer::<Connections<2>, Messages<4>, MessageBytes<64>, Lookupds<1>, Listed<2>>::new(
            ),
        );
    let lookupds = [address!("10.0.0.2:4161")];
    let (listed, mut runner) = listed.start_with_lookupds(device, lookupds, config()).unwrap();
    world.spawn(async move { runner.run().await });
    world.run(async {
        Timer::after_secs(5).await;
        nsqd.publish(0..20);
        for consumer in [&given, &listed] {
            for _ in 0..4 {
                consumer.next().await.finish().unwrap();
            }
        }
        drop(listed.next().await);
        Timer::after_secs(1).await;
    });
    assert_eq!(nsqd.finished.borrow().len(), 8);
    let connected = "consumer: connected to 10.0.0.2:4150";
    let dropped = "a message was dropped unanswered: it is requeued";
    assert_eq!(LOG.take(), [connected, connected, dropped]);
}

#[test]
fn ram() {
    // Pointers take twice as much here.
    assert!(size_of::<Publisher<4096>>() <= 4096 + 100 + 3400);
    type Commands = Consumer<Connections<1>, Messages<4>, MessageBytes<192>>;
    assert!(size_of::<Commands>() <= 2000 + 4 * (192 + 40) + 1000);
}
