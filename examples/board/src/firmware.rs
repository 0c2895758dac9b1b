//! The sensor node on embassy: runs on a serial port, flash, a sensor and a network of the board.
//!
//! Everything runs on one executor. The console runs from the start, even if the network or nsqd
//! fails: it shows why no messages arrive.

mod log;
mod nsqd;
mod serve;
mod stats;
mod upstream;

use core::cell::{Cell, RefCell};
use core::convert::Infallible;
use core::fmt::Write as _;
use core::future::pending;
use core::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use embassy_executor::Spawner;
use embassy_futures::select::{Either, Either3, select, select3};
use embassy_net::{Ipv4Cidr, Stack, StackResources, StaticConfigV4};
use embassy_time::{Duration, Instant, Timer, with_timeout};
use embedded_storage::nor_flash::NorFlash;
use heapless::String;
use nanonsq_app::Sensor;
use nanonsq_embassy::Sockets;

use crate::console::{ANSWER_MAX, Action, Input, LINE_MAX, Session, TooLong};
use crate::crash::Crash;
use crate::life::{Life, Signs, Stalled};
use crate::light::Light;
use crate::settings::{Ip, LOOKUPDS_MAX, Medium, Mode, Settings};
use nsqd::Node;

#[cfg(all(feature = "log", not(feature = "defmt")))]
pub use self::log::Text;
pub(crate) use self::log::note;

/// The sockets of a device that is an nsqd itself. A device that publishes needs fewer: a publisher
/// in place of the listeners.
pub const SOCKETS: Sockets = Sockets { dhcp: true, ..Sockets::NONE }
    .with_node(serve::CLIENTS, serve::HTTP, LOOKUPDS_MAX)
    .with_consumer(nsqd::COMMAND_NSQDS, 0);

/// The network stack's memory.
pub type NetResources = StackResources<{ SOCKETS.count() }>;

/// Time limit for disconnecting from all servers before a reboot.
const STOP_LIMIT: Duration = Duration::from_secs(2);
/// Time for the last output to reach the terminal.
const LAST_OUTPUT: Duration = Duration::from_millis(100);

static LIGHT: AtomicU8 = AtomicU8::new(0);
static HERE: AtomicBool = AtomicBool::new(false);
static DRIVER_ROUNDS: AtomicU32 = AtomicU32::new(0);
static DRIVER_HANGS: AtomicBool = AtomicBool::new(false);
static PUBLISHER_HANGS: AtomicBool = AtomicBool::new(false);

/// Returns the state that the LED must show.
pub fn light() -> Light {
    if HERE.load(Ordering::Relaxed) {
        return Light::Here;
    }
    Light::from_byte(LIGHT.load(Ordering::Relaxed))
}

/// Reports progress of the network driver. To be called by its loop; supervision resets the board
/// after 20 s without a call.
pub fn driver_round() {
    if driver_hangs() {
        return;
    }
    // Some cores have no `fetch_add`; there is no other writer.
    DRIVER_ROUNDS.store(DRIVER_ROUNDS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Returns whether the network driver must hang, after the console's `stall network`.
pub fn driver_hangs() -> bool {
    DRIVER_HANGS.load(Ordering::Relaxed)
}

/// Returns whether the publisher's runner must hang, after the console's `stall publisher`.
fn publisher_hangs() -> bool {
    PUBLISHER_HANGS.load(Ordering::Relaxed)
}

/// Logs information of a board.
pub fn log_info(text: &str) {
    note!(info, "{}", text);
}

/// Logs a warning of a board.
pub fn log_warn(text: &str) {
    note!(warn, "{}", text);
}

/// A serial port, with or without a terminal.
pub trait Serial {
    /// Waits for the next event; `buf` receives typed bytes. Cancel-safe.
    fn read(&mut self, buf: &mut [u8]) -> impl Future<Output = SerialEvent>;

    /// Sends all bytes if a terminal is open, otherwise discards them.
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = ()>;
}

/// An event of a serial port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SerialEvent {
    /// A terminal was opened.
    Opened,
    /// The terminal was closed.
    Closed,
    /// This number of bytes was typed.
    Bytes(usize),
}

/// Operations of the chip.
pub trait Machine {
    /// Feeds the watchdog and records the uptime: see [`alive`](crate::crash::alive).
    fn alive(&self, uptime_s: u32);

    /// Records a stall and resets the chip: see [`failed`](crate::crash::failed).
    fn stalled(&self, uptime_s: u32, what: Stalled) -> !;

    /// Records a reboot on request and resets the chip: see [`leaving`](crate::crash::leaving).
    fn reboot(&self) -> !;

    /// Starts the bootloader; returns if the board has none that software can start.
    fn bootloader(&self);

    /// Returns the bytes of the stack that were never used, if the board knows.
    fn free_stack(&self) -> Option<usize>;
}

/// The parts that a board provides.
#[derive(Debug)]
pub struct Board<F, S, R, M> {
    /// The console's session, with the settings from flash.
    pub session: Session<F>,
    /// The serial port of the console.
    pub serial: S,
    /// The sensor.
    pub sensor: R,
    /// The chip.
    pub machine: M,
    /// The crash of the previous run, if it crashed.
    pub crash: Option<Crash>,
    /// A random number.
    pub seed: u32,
}

/// Returns the network configuration of the settings.
pub fn net_config(settings: &Settings) -> embassy_net::Config {
    match settings.ip {
        Ip::Dhcp => {
            let mut dhcp = embassy_net::DhcpConfig::default();
            dhcp.hostname = String::try_from(settings.name.as_str()).ok();
            embassy_net::Config::dhcpv4(dhcp)
        }
        Ip::Static { address, prefix } => embassy_net::Config::ipv4_static(StaticConfigV4 {
            address: Ipv4Cidr::new(address, prefix),
            gateway: settings.gateway,
            dns_servers: settings.dns.into_iter().collect(),
        }),
    }
}

/// Runs a device. `network` brings up the network, for any length of time, or returns why that
/// failed.
pub async fn run<F, S, R, M>(
    spawner: Spawner,
    board: Board<F, S, R, M>,
    network: impl Future<Output = Result<Stack<'static>, &'static str>>,
) -> !
where
    F: NorFlash,
    S: Serial,
    R: Sensor,
    M: Machine,
{
    let Board { session, serial, mut sensor, machine, crash, seed } = board;
    let device = Device {
        machine,
        settings: session.saved().clone(),
        medium: session.identity().medium,
        crash,
        network: Cell::new(Network::Starting),
        node: RefCell::new(None),
    };
    let all = select3(
        run_console(&device, session, serial),
        device.watch(),
        device.start(spawner, &mut sensor, seed, network),
    );
    match all.await {
        Either3::First(never) | Either3::Second(never) | Either3::Third(never) => match never {},
    }
}

/// The state of the network.
#[derive(Clone, Copy)]
enum Network {
    Starting,
    Failed(&'static str),
    Started(Stack<'static>),
}

struct Device<M> {
    machine: M,
    /// The settings at the start.
    settings: Settings,
    medium: Medium,
    crash: Option<Crash>,
    network: Cell<Network>,
    node: RefCell<Option<Node>>,
}

impl<M: Machine> Device<M> {
    /// Brings up the network and runs the sensor node.
    async fn start<R: Sensor>(
        &self,
        spawner: Spawner,
        sensor: &mut R,
        seed: u32,
        network: impl Future<Output = Result<Stack<'static>, &'static str>>,
    ) -> Infallible {
        note!(info, "{} starts, version {}", self.settings.name.as_str(), VERSION);
        if let Some(crash) = &self.crash {
            note!(warn, "the previous run crashed: {}", crash.text.as_str());
        }
        if let Some(advice) = self.settings.advice(self.medium) {
            note!(warn, "{}", advice);
        }
        let stack = match network.await {
            Ok(stack) => stack,
            Err(why) => {
                note!(error, "no network: {}", why);
                self.network.set(Network::Failed(why));
                return pending().await;
            }
        };
        self.network.set(Network::Started(stack));
        stack.wait_config_up().await;
        let config = stack.config_v4();
        if let Some(config) = &config {
            note!(info, "address {}, after {} ms", config.address, Instant::now().as_millis());
        }
        if self.settings.mode == Mode::Publish && self.settings.nsqds.is_empty() {
            return pending().await;
        }
        let made = nsqd::start(spawner, &self.settings, stack, seed);
        let node = match made {
            Ok(node) => node,
            Err(why) => {
                note!(error, "{}", why);
                self.network.set(Network::Failed(why));
                return pending().await;
            }
        };
        *self.node.borrow_mut() = Some(node.clone());
        if let Some(crash) = &self.crash {
            node.report(crash).await;
        }
        let reboot = || async { self.reboot().await };
        node.run(sensor, reboot).await
    }

    /// Disconnects from all servers and reboots.
    async fn reboot(&self) -> Infallible {
        let node = self.node.borrow().clone();
        if let Some(node) = node {
            // The servers see the end of the connections now, not after missed heartbeats.
            let _ = with_timeout(STOP_LIMIT, node.stop()).await;
        }
        Timer::after(LAST_OUTPUT).await;
        self.machine.reboot()
    }

    /// Returns whether the device's address differs from the one that it announced.
    fn has_moved(&self) -> bool {
        let Network::Started(stack) = self.network.get() else { return false };
        let node = self.node.borrow();
        let announced = node.as_ref().and_then(Node::own_address);
        let now = stack.config_v4().map(|config| config.address.address());
        announced.zip(now).is_some_and(|(announced, now)| announced != now)
    }

    /// Feeds the watchdog while nothing hangs, and sets the state of the LED.
    async fn watch(&self) -> Infallible {
        let mut life = Life::new();
        let mut checked_s = None;
        loop {
            LIGHT.store(self.light().to_byte(), Ordering::Relaxed);
            let now_s = seconds();
            if checked_s != Some(now_s) {
                checked_s = Some(now_s);
                if let Some(what) = life.check(now_s, &self.signs()) {
                    note!(error, "reboots: stalled");
                    self.machine.stalled(now_s, what);
                }
                self.machine.alive(now_s);
                if self.has_moved() {
                    note!(warn, "reboots: the address has changed since it was announced");
                    match self.reboot().await {}
                }
            }
            Timer::after_millis(100).await;
        }
    }

    fn signs(&self) -> Signs {
        let driver = match self.network.get() {
            Network::Started(_) => Some(DRIVER_ROUNDS.load(Ordering::Relaxed)),
            // A start takes a second or two; after the driver's limit it counts as stalled.
            Network::Starting => Some(0),
            Network::Failed(_) => None,
        };
        let node = self.node.borrow();
        Signs { driver, ..node.as_ref().map(Node::signs).unwrap_or_default() }
    }

    fn light(&self) -> Light {
        let Network::Started(stack) = self.network.get() else { return Light::NoNetwork };
        if self.settings.advice(self.medium).is_some() && self.node.borrow().is_none() {
            return Light::Setup;
        }
        if !stack.is_link_up() || !stack.is_config_up() {
            return Light::NoNetwork;
        }
        let node = self.node.borrow();
        let is_well = node.as_ref().is_some_and(Node::is_well);
        if is_well { Light::Connected } else { Light::NoNsqd }
    }
}

/// Runs the console on the serial port.
async fn run_console<F, S, M>(
    device: &Device<M>,
    mut session: Session<F>,
    mut serial: S,
) -> Infallible
where
    F: NorFlash,
    S: Serial,
    M: Machine,
{
    let (mut input, mut answer) = (Input::new(), String::<ANSWER_MAX>::new());
    let (mut typed, mut logged) = ([0; 64], [0; 128]);
    let (mut is_open, mut is_line_begun) = (false, false);
    loop {
        // Without a terminal, keep the log for the next one.
        let log = async {
            if !is_open {
                pending::<()>().await;
            }
            log::next(&mut logged).await
        };
        let event = select(serial.read(&mut typed), log).await;
        answer.clear();
        let bytes = match event {
            Either::First(SerialEvent::Closed) => {
                is_open = false;
                continue;
            }
            Either::First(SerialEvent::Opened) => {
                is_open = true;
                let identity = session.identity();
                let _ = write!(
                    answer,
                    "\n{} on a {}, nanonsq {VERSION}; `help` lists the commands\n",
                    device.settings.name, identity.board
                );
                session.run("show", &mut answer);
                input.prompt(&mut answer);
                send(&mut serial, &answer).await;
                continue;
            }
            Either::First(SerialEvent::Bytes(count)) => typed.get(..count).unwrap_or_default(),
            Either::Second(count) => {
                // Overwrite the prompt and the unfinished line, which follow again below.
                if !is_line_begun {
                    serial.write_all(b"\r\x1b[K").await;
                }
                let bytes = logged.get(..count).unwrap_or_default();
                let text = core::str::from_utf8(bytes).unwrap_or("?");
                send(&mut serial, text).await;
                is_line_begun = !text.ends_with('\n');
                if !is_line_begun {
                    input.prompt(&mut answer);
                    send(&mut serial, &answer).await;
                }
                continue;
            }
        };
        for &byte in bytes {
            let Some(line) = input.push(byte, &mut answer) else { continue };
            let action = match line {
                Ok(line) => session.run(&line, &mut answer),
                Err(TooLong) => {
                    let _ =
                        writeln!(answer, "nothing changed: a line has at most {LINE_MAX} bytes");
                    None
                }
            };
            send(&mut serial, &answer).await;
            answer.clear();
            if let Some(action) = action {
                device.act(action, &mut answer).await;
            }
            input.prompt(&mut answer);
        }
        send(&mut serial, &answer).await;
    }
}

impl<M: Machine> Device<M> {
    async fn act(&self, action: Action, answer: &mut String<ANSWER_MAX>) {
        match action {
            Action::Stats => {
                // All fits in `ANSWER_MAX`.
                let _ = self.write_stats(answer);
            }
            Action::Reboot => match self.reboot().await {},
            Action::Bootloader => {
                Timer::after(LAST_OUTPUT).await;
                self.machine.bootloader();
                let _ = answer.write_str("not this board: hold its BOOT button while it starts\n");
            }
            Action::Panic => panic!("asked for on the console"),
            #[expect(clippy::empty_loop, reason = "hangs until the watchdog resets the chip")]
            Action::Stall => loop {},
            Action::StallPublisher if self.settings.mode == Mode::Node => {
                let _ = answer.write_str("there is no publisher: the device is an nsqd itself\n");
            }
            Action::StallPublisher => {
                PUBLISHER_HANGS.store(true, Ordering::Relaxed);
                let _ = answer.write_str("the publisher hangs from now on\n");
            }
            Action::StallNetwork => {
                DRIVER_HANGS.store(true, Ordering::Relaxed);
                let _ = answer.write_str("the network driver hangs from now on\n");
            }
        }
    }
}

/// Sends text, with CR LF at the end of each line.
async fn send(serial: &mut impl Serial, text: &str) {
    for line in text.split_inclusive('\n') {
        match line.strip_suffix('\n') {
            Some(line) => {
                serial.write_all(line.as_bytes()).await;
                serial.write_all(b"\r\n").await;
            }
            None => serial.write_all(line.as_bytes()).await,
        }
    }
}

/// Shows with the LED which device this is, for 2 s.
async fn blink() {
    HERE.store(true, Ordering::Relaxed);
    Timer::after_secs(2).await;
    HERE.store(false, Ordering::Relaxed);
}

/// Returns the uptime in seconds.
fn seconds() -> u32 {
    u32::try_from(Instant::now().as_secs()).unwrap_or(u32::MAX)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
