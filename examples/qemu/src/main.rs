//! The sensor node of `examples/app` as firmware for QEMU's board `mps2-an385` (a Cortex-M3 with
//! Ethernet), built for ARMv7-M or, from the same source, for ARMv6-M, the architecture of the
//! RP2040.
//!
//! ```text
//! cargo build --release --target thumbv7m-none-eabi
//! qemu-system-arm -M mps2-an385 -nographic -monitor none -serial none -nic user,model=lan9118 \
//!     -semihosting-config enable=on,target=native,arg=nanonsq,arg=period-ms=500 \
//!     -kernel target/thumbv7m-none-eabi/release/nanonsq-qemu
//! ```
//!
//! The firmware gets its address by DHCP and publishes to nsqd on the host, with the address
//! 10.0.2.2. `settings` lists the settings. `cargo xtask qemu` runs it against real servers and
//! checks the results. It consumes commands from the topic `qemu-commands`: see `examples/app`.
//!
//! Exit status: 0 if all messages are acknowledged, 1 if some are not, 2 if the settings are
//! invalid, 101 after a panic.

#![no_std]
#![no_main]

mod serve;
mod settings;

use core::convert::Infallible;
use core::fmt::Write as _;

use embassy_executor::{SpawnError, SpawnToken, Spawner};
use embassy_futures::join::join;
use embassy_net::{Stack, StackResources};
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Instant, Timer, with_timeout};
use nanonsq_app::{Node, Settings, Simulated};
use nanonsq_embassy::core::consumer;
use nanonsq_embassy::core::drive;
use nanonsq_embassy::core::drive::registration;
use nanonsq_embassy::core::publisher::{self, Counters};
use nanonsq_embassy::core::registration::Config as RegistrationConfig;
use nanonsq_embassy::{
    CriticalSectionRawMutex, EmbassySleep, NoopRawMutex, Sockets, TcpDialer, TcpStorage,
};
use nanonsq_qemu::{Executor, board, executor, give_up, host, lan9118, say};
use static_cell::{ConstStaticCell, StaticCell};

use settings::{COMMAND_LOOKUPDS_MAX, Firmware, LOOKUPDS_MAX};

/// Bytes of the publisher's outbox.
const OUTBOX: usize = 16 * 1024;
/// Topics of readings, reports and replies, and of the readings of a second sensor node.
const TOPICS: usize = 4;
/// The most nsqds from which commands are consumed at a time.
const COMMAND_NSQDS: usize = 2;
/// Commands in flight: one runs, the others wait.
const COMMANDS: usize = 4;
/// Ring bytes for each command in flight. The ring also holds one longer message.
const COMMAND_SLOT: usize = 192;
/// Time limit for disconnecting from all servers before a reboot.
const LEFT_IN: Duration = Duration::from_secs(2);
/// Time limit at the end of a run for registration with nsqlookupds that were not reachable.
const REGISTERED_IN: Duration = Duration::from_secs(5);
static SECOND_ENDED: Signal<CriticalSectionRawMutex, ()> = Signal::new();
/// The sockets of a publisher with a consumer, or of an nsqd, whichever are more.
const SOCKETS: usize = {
    let publisher = Sockets { dhcp: true, publishers: 1, lookupds: LOOKUPDS_MAX, ..Sockets::NONE }
        .with_consumer(COMMAND_NSQDS, COMMAND_LOOKUPDS_MAX);
    let node = Sockets { dhcp: true, ..Sockets::NONE }.with_node(
        serve::CLIENTS,
        serve::HTTP,
        LOOKUPDS_MAX,
    );
    if publisher.count() > node.count() { publisher.count() } else { node.count() }
};

type PublishHandle = drive::publisher::Handle<'static, NoopRawMutex>;
type PublishRunner =
    drive::publisher::Runner<'static, NoopRawMutex, TcpDialer<'static>, EmbassySleep>;
type LookupHandle =
    registration::Handle<'static, NoopRawMutex, EmbassySleep, LOOKUPDS_MAX, TOPICS, 0>;
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
    COMMAND_LOOKUPDS_MAX,
>;
type SensorNode = Node<'static, PublishHandle, EmbassySleep>;

#[cortex_m_rt::entry]
fn main() -> ! {
    nanonsq_qemu::start();
    static EXECUTOR: StaticCell<Executor> = StaticCell::new();
    EXECUTOR.init(Executor::new()).run(|spawner| spawn(spawner, node(spawner)))
}

#[embassy_executor::task]
async fn publish_to_nsqd(mut runner: PublishRunner) {
    runner.run().await
}

#[embassy_executor::task]
async fn register(mut runner: LookupRunner) {
    runner.run().await
}

#[embassy_executor::task]
async fn watch(handle: LookupHandle) {
    nanonsq_app::watch_lookups(&handle).await
}

#[embassy_executor::task]
async fn consume_from_nsqd(mut runner: CommandRunner) {
    runner.run().await
}

#[embassy_executor::task]
async fn obey(
    node: &'static SensorNode,
    commands: CommandHandle,
    publisher: PublishHandle,
    registry: LookupHandle,
) {
    let mut board = Board { publisher, registry };
    match node.obey(&commands, &mut board).await {}
}

/// A second sensor node, in its own task, that publishes through the same connection.
#[embassy_executor::task]
async fn second(settings: &'static Settings<'static>, publisher: PublishHandle) {
    let readings = run(settings, publisher).await;
    say!("second={}", readings);
    SECOND_ENDED.signal(());
}

#[embassy_executor::task]
async fn node(spawner: Spawner) {
    static FIRMWARE: StaticCell<Firmware> = StaticCell::new();
    static OWN_ADDRESS: StaticCell<heapless::String<16>> = StaticCell::new();
    let firmware: &'static Firmware = FIRMWARE.init(Firmware::read());

    static STACK: ConstStaticCell<StackResources<SOCKETS>> =
        ConstStaticCell::new(StackResources::new());
    let stack = nanonsq_qemu::network(spawner, STACK.take(), firmware.seed);
    stack.wait_config_up().await;
    let own = OWN_ADDRESS.init(heapless::String::new());
    if let Some(config) = stack.config_v4() {
        let _ = write!(own, "{}", config.address.address());
    }
    say!("address {} after {} ms", own.as_str(), Instant::now().as_millis());

    if firmware.is_node {
        serve::run(spawner, firmware, own, stack).await
    }
    let publisher = start_publisher(spawner, firmware, stack);
    let registry = start_lookup(spawner, firmware, own, stack);
    if let Err(why) = nanonsq_app::register(&registry, &firmware.node, &firmware.lookupds) {
        give_up!("cannot register: {:?}", why);
    }

    if let Some(settings) = &firmware.second {
        if registry.register(&settings.readings, None).is_err() {
            give_up!("no room to register a third topic");
        }
        spawn(spawner, second(settings, publisher));
    } else {
        SECOND_ENDED.signal(());
    }
    static NODE: StaticCell<SensorNode> = StaticCell::new();
    let node: &'static _ = NODE.init(Node::new(&firmware.node, publisher, EmbassySleep));
    if let Some(config) = firmware.command_config() {
        let commands = start_commands(spawner, firmware, config, stack);
        spawn(spawner, obey(node, commands, publisher, registry.clone()));
    }
    node.run(&mut Simulated::new()).await;
    say!("readings={}", node.readings());
    SECOND_ENDED.wait().await;
    let counters = publisher.counters();
    // A short run may end before every nsqlookupd was reached.
    let _ = with_timeout(REGISTERED_IN, registry.settled()).await;
    join(registry.stop(), publisher.stop(&EmbassySleep)).await;
    finish(&counters)
}

fn start_publisher(
    spawner: Spawner,
    firmware: &'static Firmware,
    stack: Stack<'static>,
) -> PublishHandle {
    static CONFIG: StaticCell<publisher::Config<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<drive::publisher::Resources<'static, NoopRawMutex>> =
        ConstStaticCell::new(drive::publisher::Resources::new());
    static RING: ConstStaticCell<[u8; OUTBOX]> = ConstStaticCell::new([0; OUTBOX]);
    static TCP: ConstStaticCell<TcpStorage<512, 4096>> = ConstStaticCell::new(TcpStorage::new());
    let made = drive::publisher::new(
        RESOURCES.take(),
        CONFIG.init(firmware.publish_config()),
        &firmware.nsqds,
        RING.take(),
        TcpDialer::new(stack, TCP.take()),
        EmbassySleep,
    );
    match made {
        Ok((handle, runner)) => {
            spawn(spawner, publish_to_nsqd(runner));
            handle
        }
        Err(why) => give_up!("publisher: {}", why),
    }
}

fn start_lookup(
    spawner: Spawner,
    firmware: &'static Firmware,
    own: &'static str,
    stack: Stack<'static>,
) -> LookupHandle {
    static CONFIG: StaticCell<RegistrationConfig<'static>> = StaticCell::new();
    static RESOURCES: ConstStaticCell<
        registration::Resources<'static, NoopRawMutex, LOOKUPDS_MAX, TOPICS, 0>,
    > = ConstStaticCell::new(registration::Resources::new());
    static TCP: ConstStaticCell<[TcpStorage<512, 512>; LOOKUPDS_MAX]> =
        ConstStaticCell::new([const { TcpStorage::new() }; LOOKUPDS_MAX]);
    let dialers = TCP.take().each_mut().map(|storage| TcpDialer::new(stack, storage));
    let config = CONFIG.init(firmware.lookup_config(own));
    match registration::new(RESOURCES.take(), config, dialers, EmbassySleep) {
        Ok((handle, runner)) => {
            spawn(spawner, register(runner));
            spawn(spawner, watch(handle.clone()));
            handle
        }
        Err(why) => give_up!("lookup: {}", why),
    }
}

fn start_commands(
    spawner: Spawner,
    firmware: &'static Firmware,
    config: consumer::Config<'static>,
    stack: Stack<'static>,
) -> CommandHandle {
    static CONFIG: StaticCell<consumer::Config<'static>> = StaticCell::new();
    // As many slots for nsqds that are found as connections.
    static RESOURCES: ConstStaticCell<
        drive::consumer::Resources<
            'static,
            NoopRawMutex,
            COMMAND_NSQDS,
            COMMANDS,
            COMMAND_LOOKUPDS_MAX,
            COMMAND_NSQDS,
        >,
    > = ConstStaticCell::new(drive::consumer::Resources::new());
    static RING: ConstStaticCell<[u8; COMMANDS * COMMAND_SLOT]> =
        ConstStaticCell::new([0; COMMANDS * COMMAND_SLOT]);
    static TCP: ConstStaticCell<[TcpStorage<1024, 512>; COMMAND_NSQDS]> =
        ConstStaticCell::new([const { TcpStorage::new() }; COMMAND_NSQDS]);
    static LOOKUP_TCP: ConstStaticCell<[TcpStorage<512, 256>; COMMAND_LOOKUPDS_MAX]> =
        ConstStaticCell::new([const { TcpStorage::new() }; COMMAND_LOOKUPDS_MAX]);
    let dialers = drive::consumer::Dialers {
        nsqds: TCP.take().each_mut().map(|storage| TcpDialer::new(stack, storage)),
        lookupds: LOOKUP_TCP.take().each_mut().map(|storage| TcpDialer::new(stack, storage)),
    };
    let sources = drive::consumer::Sources {
        nsqds: &firmware.command_nsqds,
        lookupds: &firmware.command_lookupds,
    };
    let config = CONFIG.init(config);
    match drive::consumer::new(
        RESOURCES.take(),
        config,
        sources,
        RING.take(),
        dialers,
        EmbassySleep,
    ) {
        Ok((handle, runner)) => {
            spawn(spawner, consume_from_nsqd(runner));
            handle
        }
        Err(why) => give_up!("commands: {}", why),
    }
}

/// The board's actions for commands.
struct Board {
    publisher: PublishHandle,
    registry: LookupHandle,
}

impl nanonsq_app::Board for Board {
    async fn blink(&mut self) {
        for _ in 0..3 {
            say!("the LED is on");
            Timer::after_millis(100).await;
            say!("the LED is off");
            Timer::after_millis(100).await;
        }
    }

    async fn reboot(&mut self) -> Infallible {
        // The servers see the end of the connections now, not after missed heartbeats.
        let leave = join(self.registry.stop(), self.publisher.stop(&EmbassySleep));
        let _ = with_timeout(LEFT_IN, leave).await;
        cortex_m::peripheral::SCB::sys_reset()
    }
}

/// Publishes up to the limits of the settings; returns the number of readings.
async fn run(settings: &Settings<'_>, publisher: PublishHandle) -> u32 {
    let node = Node::new(settings, publisher, EmbassySleep);
    node.run(&mut Simulated::new()).await;
    node.readings()
}

/// Logs the counters and ends QEMU.
fn finish(counters: &Counters) -> ! {
    let traffic = lan9118::traffic();
    say!(
        "accepted={} acknowledged={} rejected={} dropped={} expired={} pending={} refused={} \
         possible_duplicates={} connections={} failures={} heartbeats={}",
        counters.accepted,
        counters.acknowledged,
        counters.rejected,
        counters.dropped,
        counters.expired,
        counters.pending,
        counters.refused,
        counters.possible_duplicates,
        counters.connections,
        counters.failures,
        counters.heartbeats
    );
    say!(
        "uptime_ms={} wakeups={} frames_in={} bytes_in={} frames_out={} bytes_out={} stack={}",
        Instant::now().as_millis(),
        executor::wakeups(),
        traffic.frames_in,
        traffic.bytes_in,
        traffic.frames_out,
        traffic.bytes_out,
        board::stack_used()
    );
    host::exit(if counters.acknowledged == counters.accepted { 0 } else { 1 })
}

fn spawn<S>(spawner: Spawner, task: Result<SpawnToken<S>, SpawnError>) {
    match task {
        Ok(task) => spawner.spawn(task),
        Err(_) => give_up!("a task is spawned twice"),
    }
}
