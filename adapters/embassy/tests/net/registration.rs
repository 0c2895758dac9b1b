//! Registration with two nsqlookupds.

use embassy_time::{Duration, Instant, Timer};
use nanonsq_core::drive::registration::{self, Handle};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::registration::Config;
use nanonsq_core::registration::NodeInfo;
use nanonsq_embassy::{EmbassySleep, NoopRawMutex, Sockets};

use crate::peers::{LOOKUPD, Lookupd};
use crate::world::{DEVICE, World, both};
use crate::{dialer, leak};

const PEERS: usize = 2;
const SOCKETS: Sockets = Sockets { lookupds: PEERS, ..Sockets::NONE };

const CONFIG: Config<'_> = Config::new(NodeInfo {
    broadcast_address: "10.0.0.1",
    hostname: "device",
    http_port: 4151,
    tcp_port: 4150,
    topology_region: "",
    topology_zone: "",
    version: "1.3.0",
});

/// A node with two nsqlookupds on the host.
fn node(
    world: &World,
) -> (Handle<'static, NoopRawMutex, EmbassySleep, PEERS, 4, 4>, [std::rc::Rc<Lookupd>; 2]) {
    let device = world.stack::<{ SOCKETS.count() }>(DEVICE, both(DEVICE));
    let host = world.host();
    let lookupds = [Lookupd::start(world, host, LOOKUPD), Lookupd::start(world, host, LOOKUPD + 1)];
    let dialers = [dialer(device), dialer(device)];
    let (handle, mut runner) =
        registration::new(leak(registration::Resources::new()), &CONFIG, dialers, EmbassySleep)
            .unwrap();
    world.spawn(async move { runner.run().await });
    let addresses = ["10.0.0.2:4160", "[fd00::2]:4161"].map(|address| address.parse().unwrap());
    handle.configure(&addresses).unwrap();
    (handle, lookupds)
}

#[test]
fn two_nsqlookupds_list_the_node_and_forget_it() {
    let world = World::new(1);
    let (node, lookupds) = node(&world);
    let (t, u) = (TopicName::new("t").unwrap(), TopicName::new("u").unwrap());
    world.run(async {
        node.register(&t, Some(&ChannelName::new("c").unwrap())).unwrap();
        node.settled().await;
        assert!(lookupds.iter().all(|lookupd| lookupd.lists(&["t", "t/c"])));
        node.register(&u, None).unwrap();
        node.unregister(&t, None);
        node.settled().await;
        assert!(lookupds.iter().all(|lookupd| lookupd.lists(&["u"])));
        node.stop().await;
        assert!(lookupds.iter().all(|lookupd| lookupd.lists(&[])));
        Timer::after_secs(1).await;
        assert_eq!((world.wire.sent(DEVICE).fins, world.wire.sent(DEVICE).resets), (2, 0));
    });
}

/// embassy-time keeps one wake time per task, but both peers of one task are pinged in time.
#[test]
fn both_are_pinged_in_time() {
    let world = World::new(2);
    let (node, lookupds) = node(&world);
    world.run(async {
        node.settled().await;
        Timer::after_secs(600).await;
    });
    for lookupd in lookupds {
        let pings = lookupd.alive.borrow();
        assert!(pings.len() >= 600 / 17, "{} pings", pings.len());
        for pair in pings.windows(2) {
            let gap = pair[1] - pair[0];
            // 15 s plus or minus an eighth.
            assert!(gap < Duration::from_millis(16_900), "{gap}");
        }
    }
}

#[test]
fn a_peer_that_returns_lists_the_node_again_and_the_other_stays_connected() {
    let world = World::new(3);
    let (node, [a, b]) = node(&world);
    world.run(async {
        node.register(&TopicName::new("t").unwrap(), None).unwrap();
        node.settled().await;
        a.broken.set(true);
        // The next PING breaks the connection, and redials fail until the end of the 30 s.
        Timer::after_secs(30).await;
        assert!(a.lists(&[]) && b.lists(&["t"]));
        a.broken.set(false);
        let start = Instant::now();
        node.settled().await;
        // Redials of a peer that accepts and resets are up to 16 s apart.
        assert!(start.elapsed() < Duration::from_secs(17), "{}", start.elapsed());
        assert!(a.lists(&["t"]) && b.lists(&["t"]));
    });
    assert!((4..=8).contains(&a.connections.get()), "{}", a.connections.get());
    assert_eq!(b.connections.get(), 1);
}
