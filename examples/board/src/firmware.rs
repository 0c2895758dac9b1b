//! The node itself: what a board's `main` runs when it has a serial port, flash, a sensor and a way
//! onto the network.
//!
//! Everything of one device runs on one executor. The console is there from the first moment and
//! stays, whatever becomes of the rest: that is where one sees why nothing arrives.

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

/// The sockets of a device that is an nsqd itself; one that is not has no listeners, and one
/// connection to an nsqd instead.
pub const SOCKETS: Sockets = Sockets { dhcp: true, ..Sockets::NONE }
    .with_node(serve::CLIENTS, serve::HTTP, LOOKUPDS_MAX)
    .with_consumer(nsqd::COMMAND_NSQDS, 0);

/// The network stack's memory.
pub type NetResources = StackResources<{ SOCKETS.count() }>;

/// How long it takes at most to leave the servers before a reboot.
const LEFT_IN: Duration = Duration::from_secs(2);
/// For the last words to get to the terminal.
const LAST_WORDS: Duration = Duration::from_millis(100);

static LIGHT: AtomicU8 = AtomicU8::new(0);
static HERE: AtomicBool = AtomicBool::new(false);
static DRIVER_ROUNDS: AtomicU32 = AtomicU32::new(0);
static DRIVER_HANGS: AtomicBool = AtomicBool::new(false);
static PUBLISHER_HANGS: AtomicBool = AtomicBool::new(false);

/// What the LED is to say.
pub fn light() -> Light {
    if HERE.load(Ordering::Relaxed) {
        return Light::Here;
    }
    Light::from_byte(LIGHT.load(Ordering::Relaxed))
}

/// The network's driver went round its loop, or showed in another way that it lives. The board is
/// reset if it does not say so for 20 s.
pub fn driver_round() {
    if driver_hangs() {
        return;
    }
    // Not `fetch_add`, which some cores have not; nobody else writes.
    DRIVER_ROUNDS.store(DRIVER_ROUNDS.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
}

/// Whether the driver was told to hang, to see what comes of it.
pub fn driver_hangs() -> bool {
    DRIVER_HANGS.load(Ordering::Relaxed)
}

/// Likewise what carries to nsqd.
fn publisher_hangs() -> bool {
    PUBLISHER_HANGS.load(Ordering::Relaxed)
}

/// Logs what a board has to say.
pub fn log_info(text: &str) {
    note!(info, "{}", text);
}

/// Logs what a board complains of.
pub fn log_warn(text: &str) {
    note!(warn, "{}", text);
}

/// A serial port with a terminal on it, or without.
pub trait Serial {
    /// Waits for what is typed. Dropped before it is ready, nothing is lost.
    fn read(&mut self, buf: &mut [u8]) -> impl Future<Output = SerialEvent>;

    /// Sends all of it, if there is a terminal.
    fn write_all(&mut self, bytes: &[u8]) -> impl Future<Output = ()>;
}

/// What a terminal did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SerialEvent {
    /// It was opened.
    Opened,
    /// It was closed.
    Closed,
    /// So many bytes were typed.
    Bytes(usize),
}

/// What only the board can do.
pub trait Machine {
    /// Feeds the watchdog, and keeps the time for a crash report.
    fn alive(&self, uptime_s: u32);

    /// Keeps the reason for a crash report, and starts anew.
    fn stalled(&self, uptime_s: u32, what: Stalled) -> !;

    /// Starts anew because it was told to.
    fn reboot(&self) -> !;

    /// Starts what takes a new image over USB, if the board has it.
    fn bootloader(&self);

    /// Bytes of the stack that were never in use, if the board knows.
    fn free_stack(&self) -> Option<usize>;
}

/// All that a board brings.
#[derive(Debug)]
pub struct Board<F, S, R, M> {
    /// The settings that are in its flash, and the console's end of them.
    pub session: Session<F>,
    /// The serial port of the console.
    pub serial: S,
    /// What is measured.
    pub sensor: R,
    /// The rest.
    pub machine: M,
    /// What became of the start before this one.
    pub crash: Option<Crash>,
    /// A random number.
    pub seed: u32,
}

/// The network's configuration as it is set.
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

/// Runs a device. `network` brings up the network, which may take as long as it likes, or says why
/// there is none.
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
        network: Cell::new(Network::Coming),
        node: RefCell::new(None),
    };
    let all = select3(
        converse(&device, session, serial),
        device.watch(),
        device.start(spawner, &mut sensor, seed, network),
    );
    match all.await {
        Either3::First(never) | Either3::Second(never) | Either3::Third(never) => match never {},
    }
}

/// How far the network has come.
#[derive(Clone, Copy)]
enum Network {
    Coming,
    Failed(&'static str),
    There(Stack<'static>),
}

struct Device<M> {
    machine: M,
    /// As it was started with.
    settings: Settings,
    medium: Medium,
    crash: Option<Crash>,
    network: Cell<Network>,
    node: RefCell<Option<Node>>,
}

impl<M: Machine> Device<M> {
    /// Brings up the network, then the node, and does what it is there for.
    async fn start<R: Sensor>(
        &self,
        spawner: Spawner,
        sensor: &mut R,
        seed: u32,
        network: impl Future<Output = Result<Stack<'static>, &'static str>>,
    ) -> Infallible {
        note!(info, "{} starts, version {}", self.settings.name.as_str(), VERSION);
        if let Some(crash) = &self.crash {
            note!(warn, "it crashed: {}", crash.text.as_str());
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
        self.network.set(Network::There(stack));
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
        let leave = || async { self.leave().await };
        node.run(sensor, leave).await
    }

    /// Leaves the servers and starts anew.
    async fn leave(&self) -> Infallible {
        let node = self.node.borrow().clone();
        if let Some(node) = node {
            // A server that is left learns of it now, not when its heartbeats are missed.
            let _ = with_timeout(LEFT_IN, node.stop()).await;
        }
        Timer::after(LAST_WORDS).await;
        self.machine.reboot()
    }

    /// Whether the device has another address than the one that it told everybody.
    fn has_moved(&self) -> bool {
        let Network::There(stack) = self.network.get() else { return false };
        let node = self.node.borrow();
        let told = node.as_ref().and_then(Node::own_address);
        let now = stack.config_v4().map(|config| config.address.address());
        told.zip(now).is_some_and(|(told, now)| told != now)
    }

    /// Feeds the watchdog as long as all is well, and has the LED say how it is.
    async fn watch(&self) -> Infallible {
        let mut life = Life::new();
        let mut checked_s = None;
        loop {
            LIGHT.store(self.light().to_byte(), Ordering::Relaxed);
            let now_s = seconds();
            if checked_s != Some(now_s) {
                checked_s = Some(now_s);
                if let Some(what) = life.check(now_s, &self.signs()) {
                    note!(error, "starts anew: stalled");
                    self.machine.stalled(now_s, what);
                }
                self.machine.alive(now_s);
                if self.has_moved() {
                    note!(warn, "starts anew: it has another address than it told");
                    match self.leave().await {}
                }
            }
            Timer::after_millis(100).await;
        }
    }

    fn signs(&self) -> Signs {
        let driver = match self.network.get() {
            Network::There(_) => Some(DRIVER_ROUNDS.load(Ordering::Relaxed)),
            // It takes a second or two.
            Network::Coming => Some(0),
            Network::Failed(_) => None,
        };
        let node = self.node.borrow();
        Signs { driver, ..node.as_ref().map(Node::signs).unwrap_or_default() }
    }

    fn light(&self) -> Light {
        let Network::There(stack) = self.network.get() else { return Light::NoNetwork };
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

/// Talks to whoever is at the terminal.
async fn converse<F, S, M>(device: &Device<M>, mut session: Session<F>, mut serial: S) -> Infallible
where
    F: NorFlash,
    S: Serial,
    M: Machine,
{
    let (mut input, mut answer) = (Input::new(), String::<ANSWER_MAX>::new());
    let (mut typed, mut logged) = ([0; 64], [0; 128]);
    let (mut is_open, mut is_line_begun) = (false, false);
    loop {
        // Without a terminal the log waits for one.
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
                    "\n{} on a {}, nanonsq {VERSION}; `help` says what there is\n",
                    device.settings.name, identity.board
                );
                session.run("show", &mut answer);
                input.prompt(&mut answer);
                send(&mut serial, &answer).await;
                continue;
            }
            Either::First(SerialEvent::Bytes(count)) => typed.get(..count).unwrap_or_default(),
            Either::Second(count) => {
                // In place of what is typed, which comes again below.
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
                // It fits.
                let _ = self.write_stats(answer);
            }
            Action::Reboot => match self.leave().await {},
            Action::Bootloader => {
                Timer::after(LAST_WORDS).await;
                self.machine.bootloader();
                let _ = answer.write_str("not this board: hold its BOOT button while it starts\n");
            }
            Action::Panic => panic!("asked for on the console"),
            #[expect(clippy::empty_loop, reason = "nothing is to happen, until the watchdog barks")]
            Action::Stall => loop {},
            Action::StallPublisher if self.settings.mode == Mode::Node => {
                let _ = answer.write_str("there is none: the device is an nsqd itself\n");
            }
            Action::StallPublisher => {
                PUBLISHER_HANGS.store(true, Ordering::Relaxed);
                let _ = answer.write_str("what carries to nsqd stands still from now on\n");
            }
            Action::StallNetwork => {
                DRIVER_HANGS.store(true, Ordering::Relaxed);
                let _ = answer.write_str("the network's driver stands still from now on\n");
            }
        }
    }
}

/// Sends text; a line ends as a terminal wants it.
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

/// Shows a human being which device this is.
async fn blink() {
    HERE.store(true, Ordering::Relaxed);
    Timer::after_secs(2).await;
    HERE.store(false, Ordering::Relaxed);
}

/// Since the start.
fn seconds() -> u32 {
    u32::try_from(Instant::now().as_secs()).unwrap_or(u32::MAX)
}

const VERSION: &str = env!("CARGO_PKG_VERSION");
