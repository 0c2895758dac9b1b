//! A small world in memory: virtual time, an executor, and a wire between two embassy-net stacks.
//!
//! Everything is deterministic: time advances only when all tasks wait, and only to the next timer;
//! the faults of the wire follow from its seed. The thread of each test has its own world.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use embassy_net::driver::{self, Capabilities, HardwareAddress, LinkState};
use embassy_net::{
    Config, ConfigV6, Ipv4Cidr, Ipv6Cidr, Stack, StackResources, StaticConfigV4, StaticConfigV6,
};
use embassy_time::{Duration, Instant, Timer};
use embassy_time_queue_utils::Queue;
use nanonsq_models::Wakes;
use nanonsq_models::random::Random;

/// Virtual time that one run may take.
const LIMIT: Duration = Duration::from_secs(3600);

/// Polls of tasks at one instant; more are a busy loop.
const POLLS_MAX: u32 = 100_000;

// --- time ---

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
    static QUEUE: RefCell<Queue> = const { RefCell::new(Queue::new()) };
}

struct VirtualTime;

impl embassy_time_driver::Driver for VirtualTime {
    fn now(&self) -> u64 {
        NOW.get()
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        QUEUE.with_borrow_mut(|queue| queue.schedule_wake(at, waker));
    }
}

embassy_time_driver::time_driver_impl!(static DRIVER: VirtualTime = VirtualTime);

// --- executor ---

type Task = Pin<Box<dyn Future<Output = ()>>>;

pub(crate) struct World {
    tasks: RefCell<Vec<(Arc<Wakes>, Waker, Task)>>,
    /// Polls of tasks so far.
    pub(crate) polls: Cell<u32>,
    pub(crate) wire: Wire,
    pub(crate) medium: HardwareAddress,
}

impl World {
    pub(crate) fn new(seed: u32) -> Self {
        // Nothing may rely on a clock that starts at zero.
        NOW.set(123_456_789);
        QUEUE.set(Queue::new());
        Self {
            tasks: RefCell::default(),
            polls: Cell::new(0),
            wire: Wire::new(seed),
            medium: HardwareAddress::Ip,
        }
    }

    pub(crate) fn spawn(&self, task: impl Future + 'static) {
        let (wakes, waker) = Wakes::woken();
        let task = Box::pin(async move {
            task.await;
        });
        self.tasks.borrow_mut().push((wakes, waker, task));
    }

    /// Runs `main` and the spawned tasks until `main` is done. The tasks continue in the next run.
    #[track_caller]
    pub(crate) fn run<T>(&self, main: impl Future<Output = T>) -> T {
        let end = Instant::now() + LIMIT;
        let mut main = pin!(main);
        let (main_wakes, main_waker) = Wakes::woken();
        let mut at_rest = self.polls.get();
        loop {
            let before = self.polls.get();
            if main_wakes.take() > 0 {
                self.polls.update(|polls| polls + 1);
                let mut cx = Context::from_waker(&main_waker);
                if let Poll::Ready(result) = main.as_mut().poll(&mut cx) {
                    return result;
                }
            }
            self.tasks.borrow_mut().retain_mut(|(wakes, waker, task)| {
                if wakes.take() == 0 {
                    return true;
                }
                self.polls.update(|polls| polls + 1);
                task.as_mut().poll(&mut Context::from_waker(waker)).is_pending()
            });
            let polls = self.polls.get();
            assert!(polls - at_rest < POLLS_MAX, "a busy loop of tasks at {}", Instant::now());
            if polls == before {
                let next = QUEUE.with_borrow_mut(|queue| queue.next_expiration(NOW.get()));
                let woken =
                    main_wakes.any() || self.tasks.borrow().iter().any(|(wakes, ..)| wakes.any());
                // Timers that have expired already run first.
                if !woken {
                    assert_ne!(next, u64::MAX, "deadlock: all tasks wait and no timer is set");
                    at_rest = polls;
                    NOW.set(next);
                    QUEUE.with_borrow_mut(|queue| queue.next_expiration(next));
                }
                assert!(Instant::now() < end, "still not done after an hour");
            }
        }
    }

    /// A stack at one end of the wire, with room for `SOCKETS` sockets.
    pub(crate) fn stack<const SOCKETS: usize>(&self, end: usize, config: Config) -> Stack<'static> {
        let resources = Box::leak(Box::new(StackResources::<SOCKETS>::new()));
        let medium = match self.medium {
            HardwareAddress::Ethernet(_) => HardwareAddress::Ethernet([2, 0, 0, 0, 0, end as u8]),
            other => other,
        };
        let port = Port { wire: self.wire.clone(), end, medium };
        let seed = 0x1234_5678_9abc_def0 ^ end as u64;
        let (stack, mut runner) = embassy_net::new(port, config, resources, seed);
        self.spawn(async move { runner.run().await });
        // The link is up once the stack has run.
        self.run(Timer::after_millis(1));
        stack
    }

    /// A device with an IPv4 and an IPv6 address and 8 sockets.
    pub(crate) fn device(&self) -> Stack<'static> {
        self.stack::<8>(DEVICE, both(DEVICE))
    }

    pub(crate) fn host(&self) -> Stack<'static> {
        self.stack::<16>(HOST, both(HOST))
    }
}

// --- addresses ---

/// The end of the wire with nanonsq: 10.0.0.1, fd00::1.
pub(crate) const DEVICE: usize = 0;
/// The end of the wire with the model servers or the callers: 10.0.0.2, fd00::2.
pub(crate) const HOST: usize = 1;

pub(crate) fn ipv4(end: usize) -> StaticConfigV4 {
    let mut dns_servers = heapless::Vec::new();
    dns_servers.push([10, 0, 0, 2].into()).unwrap();
    StaticConfigV4 {
        address: Ipv4Cidr::new([10, 0, 0, 1 + end as u8].into(), 24),
        gateway: None,
        dns_servers,
    }
}

pub(crate) fn ipv6(end: usize) -> StaticConfigV6 {
    StaticConfigV6 {
        address: Ipv6Cidr::new([0xfd00, 0, 0, 0, 0, 0, 0, 1 + end as u16].into(), 64),
        gateway: None,
        dns_servers: heapless::Vec::new(),
    }
}

pub(crate) fn both(end: usize) -> Config {
    let mut config = Config::ipv4_static(ipv4(end));
    config.ipv6 = ConfigV6::Static(ipv6(end));
    config
}

// --- wire ---

/// The faults of one direction of the wire.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Faults {
    /// Packets lost, per thousand.
    pub(crate) lost: u32,
    /// Packets doubled, per thousand.
    pub(crate) doubled: u32,
    /// The least and the greatest delay of a packet in microseconds. Packets may overtake others.
    pub(crate) delay: (u32, u32),
}

impl Faults {
    /// Half a millisecond each way, no faults.
    pub(crate) const NONE: Self = Self { lost: 0, doubled: 0, delay: (500, 500) };
    pub(crate) const BAD: Self = Self { lost: 50, doubled: 50, delay: (200, 20_000) };
    /// Every packet is lost.
    pub(crate) const CUT: Self = Self { lost: 1000, doubled: 0, delay: (0, 0) };
}

#[derive(Clone)]
pub(crate) struct Wire(Rc<RefCell<WireState>>);

struct WireState {
    random: Random,
    sequence: u64,
    ends: [End; 2],
}

struct End {
    /// The faults of packets that this end sends.
    faults: Faults,
    link: LinkState,
    inbox: BTreeMap<(u64, u64), Vec<u8>>,
    waker: Option<Waker>,
    sent: Sent,
}

/// Counts of packets that an end sent, lost ones included.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) packets: u32,
    pub(crate) fins: u32,
    pub(crate) resets: u32,
}

impl Wire {
    fn new(seed: u32) -> Self {
        let end = || End {
            faults: Faults::NONE,
            link: LinkState::Up,
            inbox: BTreeMap::new(),
            waker: None,
            sent: Sent::default(),
        };
        Self(Rc::new(RefCell::new(WireState {
            random: Random::new(seed.into()),
            sequence: 0,
            ends: [end(), end()],
        })))
    }

    /// Sets the faults of both directions.
    pub(crate) fn set_faults(&self, faults: Faults) {
        self.set_faults_from(DEVICE, faults);
        self.set_faults_from(HOST, faults);
    }

    pub(crate) fn set_faults_from(&self, end: usize, faults: Faults) {
        self.0.borrow_mut().ends[end].faults = faults;
    }

    /// Pulls the cable of the device, or connects it again; the network driver reports the link.
    pub(crate) fn set_link(&self, link: LinkState) {
        let mut state = self.0.borrow_mut();
        let end = &mut state.ends[DEVICE];
        end.link = link;
        if let Some(waker) = end.waker.take() {
            waker.wake();
        }
        drop(state);
        self.set_faults(if link == LinkState::Up { Faults::NONE } else { Faults::CUT });
    }

    pub(crate) fn sent(&self, end: usize) -> Sent {
        self.0.borrow().ends[end].sent
    }

    fn send(&self, from: usize, packet: Vec<u8>) {
        let mut state = self.0.borrow_mut();
        let WireState { random, sequence, ends } = &mut *state;
        ends[from].sent = count(ends[from].sent, &packet);
        let Faults { lost, doubled, delay } = ends[from].faults;
        let mut chance = |of_thousand: u32| random.below(1000) < of_thousand.into();
        let copies = if chance(lost) { 0 } else { 1 + u32::from(chance(doubled)) };
        let to = &mut ends[1 - from];
        for _ in 0..copies {
            let delay = random.between(delay.0.into(), delay.1.into());
            *sequence += 1;
            to.inbox.insert((NOW.get() + delay, *sequence), packet.clone());
            if let Some(waker) = to.waker.take() {
                waker.wake();
            }
        }
    }

    fn receive(&self, end: usize, waker: &Waker) -> Option<Vec<u8>> {
        let mut state = self.0.borrow_mut();
        let end = &mut state.ends[end];
        end.waker = Some(waker.clone());
        let entry = end.inbox.first_entry()?;
        let at = entry.key().0;
        if at <= NOW.get() {
            return Some(entry.remove());
        }
        embassy_time_driver::schedule_wake(at, waker);
        None
    }
}

/// Counts a packet and its TCP flags: an IP packet, or an Ethernet frame with IPv4.
fn count(sent: Sent, packet: &[u8]) -> Sent {
    let ip = match packet[0] >> 4 {
        4 | 6 => packet,
        _ => packet.get(14..).unwrap_or_default(),
    };
    let tcp = match ip.first() {
        Some(first) if first >> 4 == 4 && ip[9] == 6 => &ip[usize::from(first & 15) * 4..],
        Some(first) if first >> 4 == 6 && ip[6] == 6 => &ip[40..],
        _ => &[],
    };
    let flags = tcp.get(13).copied().unwrap_or(0);
    Sent {
        packets: sent.packets + 1,
        fins: sent.fins + u32::from(flags & 1 != 0),
        resets: sent.resets + u32::from(flags & 4 != 0),
    }
}

/// An end of the wire as a network device.
struct Port {
    wire: Wire,
    end: usize,
    medium: HardwareAddress,
}

struct RxToken(Vec<u8>);
struct TxToken(Wire, usize);

impl driver::RxToken for RxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, f: F) -> R {
        f(&mut self.0)
    }
}

impl driver::TxToken for TxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.send(self.1, packet);
        result
    }
}

impl driver::Driver for Port {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken;

    fn receive(&mut self, cx: &mut Context<'_>) -> Option<(RxToken, TxToken)> {
        let packet = self.wire.receive(self.end, cx.waker())?;
        Some((RxToken(packet), TxToken(self.wire.clone(), self.end)))
    }

    fn transmit(&mut self, _: &mut Context<'_>) -> Option<TxToken> {
        Some(TxToken(self.wire.clone(), self.end))
    }

    fn link_state(&mut self, cx: &mut Context<'_>) -> LinkState {
        let mut state = self.wire.0.borrow_mut();
        let end = &mut state.ends[self.end];
        end.waker = Some(cx.waker().clone());
        end.link
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = 1514;
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        self.medium
    }
}
