//! Starts the application of `examples/app` over the device's network, with its settings.

use core::cell::Cell;
use core::convert::Infallible;
use core::fmt::{self, Write};
use core::future::{pending, poll_fn};
use core::net::Ipv4Addr;
use core::pin::pin;
use core::task::Poll;

use embassy_executor::{SpawnError, SpawnToken, Spawner};
use embassy_futures::join::join;
use embassy_futures::select::select;
use embassy_net::Stack;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_app::Sensor;
use nanonsq_core::address::Address;
use nanonsq_core::consumer;
use nanonsq_core::drive;
use nanonsq_core::drive::publisher::Publish as _;
use nanonsq_core::drive::{publisher, registration};
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::Config as PublishConfig;
use nanonsq_core::registration::{Config as LookupConfig, NodeInfo};
use nanonsq_core::session::Closed;
use nanonsq_embassy::{EmbassySleep, TcpDialer, TcpStorage};
use static_cell::{ConstStaticCell, StaticCell};

use super::upstream::{LookupHandle, PublishHandle, Publishing, TOPICS, Upstream};
use super::{blink, note, publisher_hangs, serve};
use crate::crash::{CRASH_REPORT_MAX, Crash};
use crate::life::Signs;
use crate::settings::{LOOKUPDS_MAX, Mode, Settings};

/// The publisher's outbox; in a device that is an nsqd, the store of its messages.
pub(super) type Messages = [u8; 32 * 1024];
/// The most nsqds from which commands are consumed at a time.
pub(super) const COMMAND_NSQDS: usize = 2;
/// Commands in flight: one runs, the others wait.
const COMMANDS: usize = 4;
/// Ring bytes for each command in flight. The ring also holds one longer message.
const COMMAND_SLOT: usize = 192;
/// Distance of nsqd's HTTP port from its TCP port.
pub(super) const HTTP_PORT_AFTER: u16 = 1;

/// Buffers of the connections to nsqlookupds.
pub(super) type LookupTcp = [TcpStorage<512, 512>; LOOKUPDS_MAX];
type PublishRunner = publisher::Runner<'static, NoopRawMutex, TcpDialer<'static>, EmbassySleep>;
type LookupRunner = registration::Runner<
    'static,
    NoopRawMutex,
    TcpDialer<'static>,
    EmbassySleep,
    LOOKUPDS_MAX,
    TOPICS,
    0,
>;
type CommandHandle = drive::consumer::Handle<'static, NoopRawMutex, EmbassySleep>;
type CommandRunner = drive::consumer::Runner<
    'static,
    NoopRawMutex,
    TcpDialer<'static>,
    EmbassySleep,
    COMMAND_NSQDS,
    0,
>;
type SensorNode = nanonsq_app::Node<'static, Upstream, EmbassySleep>;

/// A handle of the running node.
#[derive(Clone)]
pub(super) struct Node {
    upstream: Upstream,
    commands: Option<CommandHandle>,
    app: &'static SensorNode,
    settings: &'static Settings,
    is_done: &'static Cell<bool>,
}

#[embassy_executor::task]
async fn publish_to_nsqd(mut runner: PublishRunner) {
    let mut run = pin!(runner.run());
    poll_fn(|cx| if publisher_hangs() { Poll::Pending } else { run.as_mut().poll(cx) }).await
}

#[embassy_executor::task]
async fn register(mut runner: LookupRunner) {
    runner.run().await
}

#[embassy_executor::task]
async fn watch(handle: LookupHandle<TOPICS, 0>) {
    nanonsq_app::watch_lookups(&handle).await
}

#[embassy_executor::task]
async fn consume_from_nsqd(mut runner: CommandRunner) {
    runner.run().await
}

/// Starts the node; to be called once.
pub(super) fn start(
    spawner: Spawner,
    settings: &Settings,
    stack: Stack<'static>,
    seed: u32,
) -> Result<Node, &'static str> {
    static SETTINGS: StaticCell<Settings> = StaticCell::new();
    static APP_SETTINGS: StaticCell<nanonsq_app::Settings<'static>> = StaticCell::new();
    static APP: StaticCell<SensorNode> = StaticCell::new();
    static DONE: StaticCell<Cell<bool>> = StaticCell::new();
    static MESSAGES: ConstStaticCell<Messages> = ConstStaticCell::new([0; size_of::<Messages>()]);
    static LOOKUP_TCP: ConstStaticCell<LookupTcp> =
        ConstStaticCell::new([const { TcpStorage::new() }; LOOKUPDS_MAX]);
    let settings: &'static Settings = SETTINGS.init(settings.clone());
    let app_settings: &'static _ = APP_SETTINGS.init(nanonsq_app::Settings {
        device: &settings.name,
        readings: settings.topic,
        reports: settings.reports,
        replies: settings.replies,
        period: settings.interval,
        report_period: settings.report_interval,
        count: (settings.count > 0).then_some(settings.count),
        duration: None,
    });
    let (messages, lookup_tcp) = (MESSAGES.take(), LOOKUP_TCP.take());
    let upstream = match settings.mode {
        Mode::Publish => {
            let handle = start_publisher(spawner, settings, stack, messages, seed)?;
            let registry = start_lookup(spawner, settings, stack, lookup_tcp, seed)?;
            nanonsq_app::register(&registry, app_settings, &settings.lookupds)
                .map_err(|_| "no room to register")?;
            static LAST: StaticCell<Cell<Option<Closed>>> = StaticCell::new();
            Upstream::Nsqd(Publishing { handle, registry, last: LAST.init(Cell::new(None)) })
        }
        Mode::Node => {
            Upstream::Own(serve::start(spawner, settings, stack, messages, lookup_tcp, seed)?)
        }
    };
    let commands = match settings.commands {
        Some(topic) if !settings.nsqds.is_empty() => {
            Some(start_commands(spawner, settings, topic, stack, seed)?)
        }
        // Commands need an nsqd, which in mode `node` need not be set.
        _ => None,
    };
    let app = APP.init(nanonsq_app::Node::new(app_settings, upstream.clone(), EmbassySleep));
    let is_done = DONE.init(Cell::new(false));
    Ok(Node { upstream, commands, app, settings, is_done })
}

impl Node {
    /// Reads the sensor, publishes and runs commands. `reboot` reboots the device.
    pub(super) async fn run<R, L>(&self, sensor: &mut R, reboot: impl Fn() -> L) -> Infallible
    where
        R: Sensor,
        L: Future<Output = Infallible>,
    {
        let publish = async {
            self.app.run(sensor).await;
            self.is_done.set(true);
            note!(info, "all {} readings are published", self.app.readings());
            pending::<Infallible>().await
        };
        let obey = async {
            let mut board = CommandBoard(reboot);
            match &self.commands {
                Some(commands) => self.app.obey(commands, &mut board).await,
                None => pending().await,
            }
        };
        match select(publish, obey).await {
            embassy_futures::select::Either::First(never)
            | embassy_futures::select::Either::Second(never) => never,
        }
    }

    /// Publishes the crash of the previous run.
    pub(super) async fn report(&self, crash: &Crash) {
        let mut buf = [0; CRASH_REPORT_MAX];
        let report = crash.report(&self.settings.name);
        // Every report fits: see the test of the longest one.
        let Ok(length) = serde_json_core::to_slice(&report, &mut buf) else { return };
        let body = buf.get(..length).unwrap_or_default();
        if let Err(why) = self.upstream.publish(&self.settings.reports, body).await {
            note!(warn, "crash not reported: {}", why);
        }
    }

    /// Disconnects from all servers and clients.
    pub(super) async fn stop(&self) {
        let commands = async {
            if let Some(commands) = &self.commands {
                commands.stop().await;
            }
        };
        join(commands, self.upstream.stop()).await;
    }

    /// Returns the progress of publishing and readings, without that of the network driver.
    pub(super) fn signs(&self) -> Signs {
        let heartbeat_s = self.settings.heartbeat.as_millis() / 1000;
        let publish = self.upstream.sign().map(|sign| (sign, heartbeat_s));
        // Commands may change the interval, so readings are supervised only without commands.
        let interval_s = self.settings.interval.as_millis() / 1000;
        let is_expected = !self.is_done.get() && self.commands.is_none() && self.upstream.is_free();
        let readings = is_expected.then(|| (self.app.readings(), interval_s));
        Signs { driver: None, publish, readings }
    }

    /// Returns the address that the device announced to nsqlookupds, if it is its own address.
    pub(super) fn own_address(&self) -> Option<Ipv4Addr> {
        match &self.upstream {
            Upstream::Own(own) => own.address,
            Upstream::Nsqd(_) => None,
        }
    }

    /// Returns whether messages reach nsqd, or consumers can find this nsqd.
    pub(super) fn is_well(&self) -> bool {
        self.upstream.is_well()
    }

    /// Writes its lines of `stats`.
    pub(super) fn write(&self, out: &mut impl Write) -> fmt::Result {
        self.upstream.write(self.app.readings(), out)
    }
}

/// The board's actions for commands.
struct CommandBoard<L>(L);

impl<L: Fn() -> F, F: Future<Output = Infallible>> nanonsq_app::Board for CommandBoard<L> {
    async fn blink(&mut self) {
        blink().await;
    }

    async fn reboot(&mut self) -> Infallible {
        self.0().await
    }
}

fn start_publisher(
    spawner: Spawner,
    settings: &'static Settings,
    stack: Stack<'static>,
    ring: &'static mut Messages,
    seed: u32,
) -> Result<PublishHandle, &'static str> {
    static CONFIG: StaticCell<PublishConfig<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<publisher::Resources<'static, NoopRawMutex>> =
        ConstStaticCell::new(publisher::Resources::new());
    static TCP: ConstStaticCell<TcpStorage<512, 4096>> = ConstStaticCell::new(TcpStorage::new());
    let config = CONFIG.init(PublishConfig {
        client_id: &settings.name,
        hostname: &settings.name,
        heartbeat: settings.heartbeat,
        seed,
        ..PublishConfig::new()
    });
    let (handle, runner) = publisher::new(
        RESOURCES.take(),
        config,
        &settings.nsqds,
        ring,
        TcpDialer::new(stack, TCP.take()),
        EmbassySleep,
    )
    .map_err(|_| "the publisher's configuration")?;
    spawn(spawner, publish_to_nsqd(runner))?;
    Ok(handle)
}

fn start_lookup(
    spawner: Spawner,
    settings: &'static Settings,
    stack: Stack<'static>,
    tcp: &'static mut LookupTcp,
    seed: u32,
) -> Result<LookupHandle<TOPICS, 0>, &'static str> {
    static CONFIG: StaticCell<LookupConfig<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<
        registration::Resources<'static, NoopRawMutex, LOOKUPDS_MAX, TOPICS, 0>,
    > = ConstStaticCell::new(registration::Resources::new());
    // Announce the address of nsqd, which has the messages.
    let announced = settings.broadcast.as_ref().or(settings.nsqds.first());
    let node = NodeInfo {
        broadcast_address: announced.map_or("", Address::host),
        hostname: &settings.name,
        tcp_port: announced.map_or(0, Address::port),
        http_port: announced.map_or(0, |at| at.port().saturating_add(HTTP_PORT_AFTER)),
        version: super::VERSION,
        ..NodeInfo::default()
    };
    let config = CONFIG.init(LookupConfig { seed, ..LookupConfig::new(node) });
    let dialers = tcp.each_mut().map(|storage| TcpDialer::new(stack, storage));
    let (handle, runner) = registration::new(RESOURCES.take(), config, dialers, EmbassySleep)
        .map_err(|_| "the configuration of registration")?;
    spawn(spawner, register(runner))?;
    spawn(spawner, watch(handle.clone()))?;
    Ok(handle)
}

fn start_commands(
    spawner: Spawner,
    settings: &'static Settings,
    topic: TopicName,
    stack: Stack<'static>,
    seed: u32,
) -> Result<CommandHandle, &'static str> {
    static CONFIG: StaticCell<consumer::Config<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<
        drive::consumer::Resources<
            'static,
            NoopRawMutex,
            COMMAND_NSQDS,
            COMMANDS,
            0,
            COMMAND_NSQDS,
        >,
    > = ConstStaticCell::new(drive::consumer::Resources::new());
    static RING: ConstStaticCell<[u8; COMMANDS * COMMAND_SLOT]> =
        ConstStaticCell::new([0; COMMANDS * COMMAND_SLOT]);
    static TCP: ConstStaticCell<[TcpStorage<1024, 512>; COMMAND_NSQDS]> =
        ConstStaticCell::new([const { TcpStorage::new() }; COMMAND_NSQDS]);
    let dialers = drive::consumer::Dialers {
        nsqds: TCP.take().each_mut().map(|storage| TcpDialer::new(stack, storage)),
        lookupds: [],
    };
    let sources = drive::consumer::Sources { nsqds: &settings.nsqds, lookupds: &[] };
    let config = CONFIG.init(consumer::Config {
        heartbeat: settings.heartbeat,
        seed,
        ..nanonsq_app::commands(topic, &settings.name)
    });
    let (handle, runner) =
        drive::consumer::new(RESOURCES.take(), config, sources, RING.take(), dialers, EmbassySleep)
            .map_err(|_| "the configuration of commands")?;
    spawn(spawner, consume_from_nsqd(runner))?;
    Ok(handle)
}

pub(super) fn spawn<S>(
    spawner: Spawner,
    task: Result<SpawnToken<S>, SpawnError>,
) -> Result<(), &'static str> {
    spawner.spawn(task.map_err(|_| "a task is started twice")?);
    Ok(())
}
