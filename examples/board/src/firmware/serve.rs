//! The device as an nsqd, which consumers find through nsqlookupds.

use core::fmt::Write as _;

use embassy_executor::Spawner;
use embassy_net::Stack;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use heapless::String;
use nanonsq_core::address::Address;
use nanonsq_core::drive::nsqd::{self, Dialers, Resources};
use nanonsq_core::drive::{Port, Ports};
use nanonsq_core::nsqd::{Config, Full, HttpConfig};
use nanonsq_core::registration::{Config as LookupConfig, NodeInfo};
use nanonsq_embassy::{EmbassySleep, TcpDialer, TcpListener, TcpStorage};
use static_cell::{ConstStaticCell, StaticCell};

use super::VERSION;
use super::nsqd::{HTTP_PORT_AFTER, LookupTcp, Messages, spawn};
use super::upstream::{LookupHandle, NodeHandle, Serving};
use crate::settings::{LOOKUPDS_MAX, Settings};

/// Clients (consumers and producers) at a time; one more is rejected.
pub(super) const CLIENTS: usize = 4;
/// HTTP connections at a time; one more is rejected.
pub(super) const HTTP: usize = 2;
/// The topics of the device, and one that clients create.
pub(super) const TOPICS: usize = super::upstream::TOPICS + 1;
pub(super) const CHANNELS: usize = 6;
/// Messages in flight in each channel.
const IN_FLIGHT: usize = 25;
/// Bytes of the read buffer of each client.
const RX: usize = 256;
/// nsqd's ports.
const TCP_PORT: u16 = 4150;
const HTTP_PORT: u16 = TCP_PORT + HTTP_PORT_AFTER;

type Tables =
    Resources<'static, NoopRawMutex, TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, HTTP, LOOKUPDS_MAX, RX>;
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
async fn watch_clients(handle: NodeHandle) {
    nanonsq_app::watch_clients(&handle).await
}

#[embassy_executor::task]
async fn watch_lookups(handle: LookupHandle<TOPICS, CHANNELS>) {
    nanonsq_app::watch_lookups(&handle).await
}

/// Starts the nsqd; to be called once. `store` holds messages that are not consumed yet.
pub(super) fn start(
    spawner: Spawner,
    settings: &'static Settings,
    stack: Stack<'static>,
    store: &'static mut Messages,
    lookup_tcp: &'static mut LookupTcp,
    seed: u32,
) -> Result<Serving, &'static str> {
    static OWN: StaticCell<String<15>> = StaticCell::new();
    static CONFIG: StaticCell<Config<'static>> = StaticCell::new();
    static HTTP_CONFIG: StaticCell<HttpConfig<'static>> = StaticCell::new();
    static LOOKUP: StaticCell<LookupConfig<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<Tables> = ConstStaticCell::new(Resources::new());
    static TCP: ConstStaticCell<[TcpStorage<512, 2048>; CLIENTS]> =
        ConstStaticCell::new([const { TcpStorage::new() }; CLIENTS]);
    static HTTP_TCP: ConstStaticCell<[TcpStorage<512, 1024>; HTTP]> =
        ConstStaticCell::new([const { TcpStorage::new() }; HTTP]);
    static SPARE_TCP: ConstStaticCell<[TcpStorage<256, 256>; 2]> =
        ConstStaticCell::new([const { TcpStorage::new() }; 2]);
    static CHANNELS_TCP: ConstStaticCell<TcpStorage<256, 512>> =
        ConstStaticCell::new(TcpStorage::new());

    let address = stack.config_v4().ok_or("the address is lost")?.address.address();
    let own = OWN.init(String::new());
    // 15 bytes hold every IPv4 address.
    let _ = write!(own, "{address}");
    let announced = settings.broadcast.as_ref();
    let tcp_port = announced.map_or(TCP_PORT, Address::port);
    let info = NodeInfo {
        broadcast_address: announced.map_or(own.as_str(), Address::host),
        hostname: &settings.name,
        tcp_port,
        http_port: tcp_port.saturating_add(HTTP_PORT_AFTER),
        version: VERSION,
        ..NodeInfo::default()
    };
    let http = HttpConfig {
        broadcast_address: info.broadcast_address,
        hostname: info.hostname,
        tcp_port: info.tcp_port,
        http_port: info.http_port,
        ..HttpConfig::new()
    };
    let config = Config {
        boot: seed,
        seed,
        heartbeat: settings.heartbeat,
        full: Full::DropAnswered,
        ..Config::new()
    };
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
        lookupds: lookup_tcp.each_mut().map(|tcp| TcpDialer::new(stack, tcp)),
        channels: Some(TcpDialer::new(stack, CHANNELS_TCP.take())),
    };
    let parts = nsqd::Settings {
        node: CONFIG.init(config),
        http: HTTP_CONFIG.init(http),
        lookup: LOOKUP.init(LookupConfig { seed, ..LookupConfig::new(info) }),
        lookupds: &settings.lookupds,
    };
    let (handle, runner) = nsqd::new(RESOURCES.take(), parts, store, ports, dialers, EmbassySleep)
        .map_err(|_| "the node's configuration")?;
    let registry = runner.lookup();
    // Created now, so that consumers find the topics before the first reading.
    let topics = [&settings.topic, &settings.reports];
    for topic in topics.into_iter().chain(settings.commands.is_some().then_some(&settings.replies))
    {
        handle.create(topic, None).map_err(|_| "no room for the topics")?;
    }
    spawn(spawner, watch_lookups(registry.clone()))?;
    spawn(spawner, watch_clients(handle.clone()))?;
    spawn(spawner, serve(runner))?;
    let address = announced.is_none().then_some(address);
    Ok(Serving { handle, registry, address })
}
