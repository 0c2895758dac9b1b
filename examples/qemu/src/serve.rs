//! The device as an nsqd, which consumers find through nsqlookupds.

use core::cell::Cell;

use embassy_executor::Spawner;
use embassy_net::Stack;
use embassy_time::{Duration, Instant};
use nanonsq_app::{Network, Node, Simulated};
use nanonsq_embassy::core::drive::nsqd::{self, Dialers, Resources, Settings};
use nanonsq_embassy::core::drive::publisher::Publish;
use nanonsq_embassy::core::drive::{Port, Ports, registration as drive_lookup};
use nanonsq_embassy::core::name::TopicName;
use nanonsq_embassy::core::publisher::{Counters, Event, Outcome};
use nanonsq_embassy::core::{nsqd as core_node, registration};
use nanonsq_embassy::{EmbassySleep, NoopRawMutex, TcpDialer, TcpListener, TcpStorage};
use static_cell::{ConstStaticCell, StaticCell};

use crate::settings::{Firmware, LOOKUPDS_MAX};
use crate::{finish, spawn};
use nanonsq_qemu::{give_up, say};

/// Clients (consumers and producers) at a time; one more is rejected.
pub(crate) const CLIENTS: usize = 4;
/// HTTP connections at a time; one more is rejected.
pub(crate) const HTTP: usize = 2;
/// Topics: readings, reports, and two that clients create.
const TOPICS: usize = 4;
const CHANNELS: usize = 6;
/// Messages in flight in each channel.
const IN_FLIGHT: usize = 25;
/// Bytes of the store of messages.
const STORE: usize = 24 * 1024;
/// Bytes of the read buffer of each client.
const RX: usize = 256;

const TCP_PORT: u16 = 4150;
const HTTP_PORT: u16 = 4151;

type Tables =
    Resources<'static, NoopRawMutex, TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, HTTP, LOOKUPDS_MAX, RX>;
type Handle = nsqd::Handle<'static, NoopRawMutex, EmbassySleep>;
type Runner = nsqd::Runner<
    'static,
    NoopRawMutex,
    TcpListener<'static>,
    TcpDialer<'static>,
    EmbassySleep,
    TOPICS,
    CHANNELS,
    CLIENTS,
    HTTP,
    LOOKUPDS_MAX,
    RX,
>;

#[embassy_executor::task]
async fn serve(mut runner: Runner) {
    runner.run().await
}

#[embassy_executor::task]
async fn watch_clients(handle: Handle) {
    nanonsq_app::watch_clients(&handle).await
}

#[embassy_executor::task]
async fn watch_lookups(
    handle: drive_lookup::Handle<
        'static,
        NoopRawMutex,
        EmbassySleep,
        LOOKUPDS_MAX,
        TOPICS,
        CHANNELS,
    >,
) {
    nanonsq_app::watch_lookups(&handle).await
}

/// The nsqd, with the longest time that a publish of the application has waited.
struct Timed<'a> {
    node: Handle,
    longest: &'a Cell<Duration>,
}

impl Publish for Timed<'_> {
    type Ticket = <Handle as Publish>::Ticket;
    type Error = <Handle as Publish>::Error;

    async fn publish(&self, topic: &TopicName, body: &[u8]) -> Result<Self::Ticket, Self::Error> {
        let began = Instant::now();
        let taken = self.node.publish(topic, body).await;
        self.longest.set(self.longest.get().max(began.elapsed()));
        taken
    }

    fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Self::Ticket, Self::Error> {
        self.node.try_publish(topic, body)
    }

    async fn outcome(&self, ticket: Self::Ticket) -> Outcome {
        self.node.outcome(ticket).await
    }
}

impl Network for Timed<'_> {
    fn counters(&self) -> Counters {
        Network::counters(&self.node)
    }

    async fn event(&self) -> Event {
        Network::event(&self.node).await
    }

    async fn settle(&self) {
        self.node.settle().await;
    }
}

/// Reads the sensor and keeps its readings until they are consumed.
pub(crate) async fn run(
    spawner: Spawner,
    firmware: &'static Firmware,
    own: &'static str,
    stack: Stack<'static>,
) -> ! {
    let node = start(spawner, firmware, own, stack);
    // Consumers find the topics before the first reading.
    for topic in [&firmware.node.readings, &firmware.node.reports] {
        if let Err(why) = node.create(topic, None) {
            give_up!("topic {}: {}", topic.as_str(), why);
        }
    }
    let longest = Cell::new(Duration::MIN);
    let timed = Timed { node: node.clone(), longest: &longest };
    let app = Node::new(&firmware.node, timed, EmbassySleep);
    app.run(&mut Simulated::new()).await;
    let counters = node.counters();
    say!(
        "readings={} delivered={} finished={} returned={} timed_out={} turned_away={} \
         longest_publish_ms={}",
        app.readings(),
        counters.delivered,
        counters.finished,
        counters.returned,
        counters.timed_out,
        node.turned_away(),
        longest.get().as_millis()
    );
    node.stop().await;
    finish(&nanonsq_app::Network::counters(&node))
}

fn start(
    spawner: Spawner,
    firmware: &'static Firmware,
    own: &'static str,
    stack: Stack<'static>,
) -> Handle {
    static CONFIG: StaticCell<core_node::Config<'static>> = StaticCell::new();
    static HTTP_CONFIG: StaticCell<core_node::HttpConfig<'static>> = StaticCell::new();
    static LOOKUP: StaticCell<registration::Config<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<Tables> = ConstStaticCell::new(Resources::new());
    static MESSAGES: ConstStaticCell<[u8; STORE]> = ConstStaticCell::new([0; STORE]);
    static TCP: ConstStaticCell<[TcpStorage<512, 4096>; CLIENTS]> =
        ConstStaticCell::new([const { TcpStorage::new() }; CLIENTS]);
    static HTTP_TCP: ConstStaticCell<[TcpStorage<512, 1024>; HTTP]> =
        ConstStaticCell::new([const { TcpStorage::new() }; HTTP]);
    static SPARE_TCP: ConstStaticCell<[TcpStorage<256, 256>; 2]> =
        ConstStaticCell::new([const { TcpStorage::new() }; 2]);
    static LOOKUP_TCP: ConstStaticCell<[TcpStorage<512, 512>; LOOKUPDS_MAX]> =
        ConstStaticCell::new([const { TcpStorage::new() }; LOOKUPDS_MAX]);
    static CHANNELS_TCP: ConstStaticCell<TcpStorage<256, 512>> =
        ConstStaticCell::new(TcpStorage::new());

    let [tcp_spare, http_spare] = SPARE_TCP.take();
    let ports = Ports {
        tcp: Port {
            slots: TCP.take().each_mut().map(|tcp| TcpListener::new(stack, TCP_PORT, tcp)),
            spare: Some(TcpListener::new(stack, TCP_PORT, tcp_spare)),
        },
        http: Port {
            slots: HTTP_TCP.take().each_mut().map(|tcp| TcpListener::new(stack, HTTP_PORT, tcp)),
            spare: Some(TcpListener::new(stack, HTTP_PORT, http_spare)),
        },
    };
    let dialers = Dialers {
        lookupds: LOOKUP_TCP.take().each_mut().map(|tcp| TcpDialer::new(stack, tcp)),
        channels: Some(TcpDialer::new(stack, CHANNELS_TCP.take())),
    };
    let settings = Settings {
        node: CONFIG.init(core_node::Config {
            boot: firmware.seed,
            seed: firmware.seed,
            full: core_node::Full::DropAnswered,
            ..core_node::Config::new()
        }),
        http: HTTP_CONFIG.init(firmware.http_config(own)),
        lookup: LOOKUP.init(firmware.lookup_config(own)),
        lookupds: &firmware.lookupds,
    };
    let made = nsqd::new(RESOURCES.take(), settings, MESSAGES.take(), ports, dialers, EmbassySleep);
    match made {
        Ok((handle, runner)) => {
            spawn(spawner, watch_lookups(runner.lookup()));
            spawn(spawner, serve(runner));
            spawn(spawner, watch_clients(handle.clone()));
            handle
        }
        Err(why) => give_up!("node: {}", why),
    }
}
