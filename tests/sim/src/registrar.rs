//! A node that is listed: a real registration with its runner and handle, and checks of what the
//! nsqlookupds list.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::drive::registration::{self, Handle};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::registration::{Config, NodeInfo, RegistryFull};
use nanonsq_core::session::{LinkState, Session as _};
use nanonsq_core::time::Span;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, RUNNER, favour, until};
use crate::exec::application;
use crate::watch::{self, Event, Session};
use crate::world::{Clock, Dials, World};

/// The interval of a registration's PINGs.
const PING: Span = Span::from_secs(15);
/// The time in microseconds that an nsqlookupd waits for it: an eighth later, and the delay.
pub(crate) const PING_MAX: u64 = 18_000_000;

const PEERS: usize = 3;
const TOPIC_SLOTS: usize = 4;
const CHANNEL_SLOTS: usize = 5;

/// More topics than there are slots for.
pub(crate) const TOPICS: [&str; 6] = ["t0", "t1", "t2", "t3", "t4", "t5"];
const CHANNELS: [&str; 2] = ["c", "d#ephemeral"];

/// Units of the process, after those of `actor`.
const SETTLING: usize = 2;
const STOPPING: usize = 3;

/// See the [module](self).
pub(crate) struct Registrar {
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<RefCell<Desired>>,
}

struct Setup {
    config: Config<'static>,
    /// All nsqlookupds of the world.
    lookupds: Vec<Address>,
    /// The most frequent action of the application.
    favourite: u64,
}

/// The requests of the application.
#[derive(Default)]
struct Desired {
    /// `topic` and `topic/channel`.
    names: BTreeSet<String>,
    configured: Vec<Address>,
    /// A task waits until all peers are settled.
    settling: bool,
    /// A task waits until all peers are stopped; whether stopping has begun.
    stop: bool,
    begun: bool,
}

impl Registrar {
    pub(crate) fn new(world: &World, me: usize, lookupds: usize, random: &mut Random) -> Self {
        let node = NodeInfo {
            broadcast_address: ["node0", "node1", "node2", "node3"][me % 4],
            hostname: ["host0", "host1", "host2", "host3"][me % 4],
            tcp_port: 4150,
            http_port: 4151,
            version: "1.3.0",
            ..NodeInfo::default()
        };
        let mut config = Config {
            connect_timeout: Span::from_millis(random.pick(&[1000, 5000])),
            // Less than the interval of PING: otherwise a server that leaves out a response and
            // continues looks like a slow one.
            reply_timeout: Span::from_millis(random.pick(&[1000, 5000, 12_000])),
            ping: PING,
            reassert: Span::from_millis(random.pick(&[2000, 20_000, 60_000])),
            reconnect_spread: Span::from_millis(random.pick(&[0, 0, 3000])),
            close_timeout: Span::from_millis(random.pick(&[0, 1000, 20_000])),
            seed: random.below(1 << 32) as u32,
            ..Config::new(node)
        };
        // Some announce the address of another node or registrar.
        match config.seed % 4 {
            0 => config.node.broadcast_address = "node0",
            1 => config.node.broadcast_address = "nsqd0",
            _ => {}
        }
        let lookupds =
            (0..lookupds).map(|n| format!("lookup{n}:4160").parse().expect("an address")).collect();
        watch::trace(|| format!("node{me} registers: {config:?}"));
        Self {
            world: world.clone(),
            me,
            setup: Rc::new(Setup { config, lookupds, favourite: random.below(16) }),
            state: Rc::default(),
        }
    }
}

impl Actor for Registrar {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(4, PEERS as u32);
        self.state.replace(Desired::default());
        for peer in 0..PEERS {
            watch::add((self.me, peer), 1);
        }
        // An application begins with an action.
        mailbox.order(Order::Act(Random::new(self.world.now())));
        let (world, setup, state) = (self.world.clone(), self.setup.clone(), self.state.clone());
        (Box::pin(run(world, self.me, setup, state, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, seen: Seen) {
        if let Seen::Refused { words } = seen {
            // Another kind of server may have been dialed, and a connection may break anywhere.
            let fair = words == "E_BAD_PROTOCOL" || words.contains("failed to read");
            assert!(fair, "nsqlookupd refuses: {words}");
        }
    }
}

type Lookup<'a> = Handle<'a, NoopRawMutex, Clock, PEERS, TOPIC_SLOTS, CHANNEL_SLOTS>;

async fn run(
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<RefCell<Desired>>,
    mailbox: Rc<Mailbox>,
) {
    let units = &mailbox.units;
    let mut resources = registration::Resources::new();
    let next = Rc::new(RefCell::new(0));
    let clock = Clock::of_runner(&world, me, next.clone());
    let dials = std::array::from_fn(|peer| Dials(world.clone(), (me, peer)));
    let (handle, mut runner): (Lookup<'_>, _) =
        registration::new(&mut resources, &setup.config, dials, clock)
            .expect("a good configuration");

    let mut settling = pin!(async {
        loop {
            until(|| state.borrow().settling.then_some(())).await;
            handle.settled().await;
            state.borrow_mut().settling = false;
        }
    });
    let mut stopping = pin!(async {
        loop {
            until(|| state.borrow().stop.then_some(())).await;
            // Until all peers are stopped, or a new configuration cancels that.
            let mut stop = pin!(handle.stop());
            poll_fn(|cx| match state.borrow().stop {
                true => stop.as_mut().poll(cx),
                false => Poll::Ready(()),
            })
            .await;
            state.borrow_mut().stop = false;
        }
    });

    loop {
        // The next clones of the clock belong to the peers.
        next.replace(1);
        let mut run = pin!(runner.run());
        poll_fn(|_| {
            while let Some((unit, causes)) = units.take(world.now()) {
                let waker = units.waker(unit);
                let cx = &mut Context::from_waker(&waker);
                match unit {
                    RUNNER => {
                        let (moves, before) = (world.moves(me), print(&handle));
                        let _ = run.as_mut().poll(cx);
                        let moved = moves != world.moves(me);
                        units.judge(causes, moved || before != print(&handle));
                    }
                    ORDERS => {
                        while let Some(order) = mailbox.next_order() {
                            if matches!(order, Order::Restart) {
                                (0..PEERS)
                                    .for_each(|peer| watch::event((me, peer), Event::Dropped));
                                units.wake(RUNNER);
                                return Poll::Ready(());
                            }
                            let desired = &mut state.borrow_mut();
                            application(|| {
                                obey(order, &handle, &world, &setup, desired, &mailbox, me)
                            });
                            read_states(&handle, me);
                        }
                    }
                    SETTLING => drop(application(|| settling.as_mut().poll(cx))),
                    _ => {
                        let _ = application(|| stopping.as_mut().poll(cx));
                        state.borrow_mut().begun = true;
                        read_states(&handle, me);
                    }
                }
                check(&handle, &state.borrow());
            }
            if state.borrow().settling {
                assert!(!is_settled(&handle), "a task that waits for settled() was not woken");
            }
            Poll::Pending
        })
        .await;
    }
}

/// Returns a value that differs whenever the registration changed.
fn print(handle: &Lookup<'_>) -> impl PartialEq + use<> {
    handle.inspect(|lookup| {
        let deadlines: [_; PEERS] =
            std::array::from_fn(|peer| lookup.peer(peer).map(|peer| peer.deadline()));
        (lookup.version(), deadlines)
    })
}

/// Reads the states that the application changed outside the runner.
fn read_states(handle: &Lookup<'_>, me: usize) {
    for peer in 0..PEERS {
        let state = handle.look(|lookup| lookup.status(peer).map(|status| status.state));
        watch::set_state((me, peer), &state.flatten().expect("a peer"));
    }
}

/// Returns whether the registry has exactly these names.
fn has_exactly(handle: &Lookup<'_>, names: &BTreeSet<String>) -> bool {
    let all = handle.look(|lookup| {
        let has = |name: &String| {
            lookup.registered().any(|(topic, channel)| match channel {
                None => topic.as_str() == name,
                Some(channel) => name.split_once('/') == Some((topic.as_str(), channel.as_str())),
            })
        };
        lookup.registered().count() == names.len() && names.iter().all(has)
    });
    all.expect("not within a look")
}

fn is_settled(handle: &Lookup<'_>) -> bool {
    let settled = handle.look(|lookup| {
        (0..PEERS).all(|n| lookup.status(n).is_none_or(|s| s.settled || s.address.is_none()))
    });
    settled.expect("not within a look")
}

fn assert_connected(handle: &Lookup<'_>) {
    let connected = handle.look(|lookup| {
        (0..PEERS).all(|peer| {
            lookup.status(peer).is_some_and(|status| match status.address {
                Some(_) => status.state == LinkState::Ready,
                None => status.state == LinkState::Idle,
            })
        })
    });
    assert_eq!(connected, Some(true), "not connected, though nothing is wrong");
}

/// Checks what holds after every poll.
fn check(handle: &Lookup<'_>, desired: &Desired) {
    if !desired.stop || desired.begun {
        let names = &desired.names;
        assert!(
            has_exactly(handle, names),
            "the registry differs from what was registered: {names:?}"
        );
    }
}

fn obey(
    order: Order,
    handle: &Lookup<'_>,
    world: &World,
    setup: &Setup,
    desired: &mut Desired,
    mailbox: &Mailbox,
    me: usize,
) {
    let session = (me, 0);
    let each = |event| (0..PEERS).for_each(|peer| watch::event((me, peer), event));
    match order {
        Order::Act(mut random) => match favour(&mut random, setup.favourite, 16) {
            0..4 => {
                desired.stop = false;
                mailbox.units.wake(STOPPING);
                configure(handle, setup, desired, &mut random, me);
            }
            _ if desired.configured.is_empty() && !desired.stop => {
                configure(handle, setup, desired, &mut random, me);
            }
            4 => {
                watch::trace_session(session, || "waits until all peers are settled".into());
                desired.settling = true;
                mailbox.units.wake(SETTLING);
            }
            5 => {
                watch::trace_session(session, || "stops".into());
                each(Event::Stop);
                if desired.stop {
                    // Stop again, without waiting.
                    let cx = &mut Context::from_waker(Waker::noop());
                    let _ = pin!(handle.stop()).poll(cx);
                } else {
                    desired.stop = true;
                    desired.begun = false;
                    mailbox.units.wake(STOPPING);
                }
                desired.names.clear();
                desired.configured.clear();
            }
            _ => {
                each(Event::Work);
                for _ in 0..random.between(1, 3) {
                    desired.change(handle, &mut random, session);
                }
            }
        },
        Order::Settled(mut random) if !desired.stop => {
            assert_connected(handle);
            assert!(!desired.settling, "not settled, though nothing is wrong");
            // The tables accept exactly as many names as they have slots.
            for channels in [true, false] {
                for topic in TOPICS {
                    if channels {
                        for channel in CHANNELS {
                            desired.add(handle, topic, Some(channel), true);
                        }
                    } else {
                        desired.add(handle, topic, None, true);
                    }
                }
            }
            desired.change(handle, &mut random, session);
            desired.settling = true;
            mailbox.units.wake(SETTLING);
        }
        Order::End => {
            assert!(!desired.stop, "not stopped, though nothing is wrong");
            assert_connected(handle);
            assert!(!desired.settling, "not settled, though nothing is wrong");
            for address in &setup.lookupds {
                let (names, conns) = world.listing(address.host(), me);
                let is_configured = desired.configured.contains(address);
                assert_eq!(conns, usize::from(is_configured), "one connection to {address}");
                if is_configured {
                    assert!(names.iter().eq(&desired.names), "{address} lists {names:?}");
                }
            }
        }
        Order::Settled(_) | Order::Restart => {}
    }
}

fn configure(
    handle: &Lookup<'_>,
    setup: &Setup,
    desired: &mut Desired,
    random: &mut Random,
    me: usize,
) {
    let start = random.below(setup.lookupds.len() as u64) as usize;
    let count = random.below(PEERS as u64 + 2) as usize;
    let mut addresses: Vec<_> =
        setup.lookupds.iter().cycle().skip(start).take(count).cloned().collect();
    watch::trace_session((me, 0), || format!("configures {addresses:?}"));
    (0..PEERS).for_each(|peer| watch::event((me, peer), Event::Configure));
    let configured = handle.configure(&addresses);
    addresses.sort_by_key(ToString::to_string);
    addresses.dedup();
    assert_eq!(
        configured.is_ok(),
        addresses.len() <= PEERS,
        "at most as many nsqlookupds as peers"
    );
    if configured.is_ok() {
        desired.configured = addresses;
    }
}

impl Desired {
    /// Registers or unregisters a topic or a channel.
    fn change(&mut self, handle: &Lookup<'_>, random: &mut Random, session: Session) {
        let name = random.pick(&TOPICS);
        let topic = TopicName::new(name).expect("a name");
        let channel = random.pick(&CHANNELS);
        let both = format!("{name}/{channel}");
        let what = random.below(6);
        watch::trace_session(session, || {
            let verb = if what < 4 { "adds" } else { "removes" };
            format!("{verb} {}", if what.is_multiple_of(2) { name } else { &both })
        });
        match what {
            0 | 2 => self.add(handle, name, None, false),
            1 | 3 => self.add(handle, name, Some(channel), false),
            4 => {
                let was = self.names.remove(name);
                self.names.retain(|other| !other.starts_with(&format!("{name}/")));
                assert_eq!(handle.unregister(&topic, None), was, "whether {name} was registered");
            }
            _ => {
                let channel = ChannelName::new(channel).expect("a name");
                let was = self.names.remove(&both);
                assert_eq!(
                    handle.unregister(&topic, Some(&channel)),
                    was,
                    "whether {both} was registered"
                );
            }
        }
    }

    /// Registers a topic, or a channel. `free`: no slot is still held by a removed name.
    fn add(&mut self, handle: &Lookup<'_>, topic: &str, channel: Option<&str>, free: bool) {
        let both = channel.map(|channel| format!("{topic}/{channel}"));
        let name = TopicName::new(topic).expect("a name");
        let channels = self.names.iter().filter(|name| name.contains('/')).count();
        let topics = self.names.len() - channels;
        let needs_topic = !self.names.contains(topic);
        let needs_channel = both.as_ref().is_some_and(|both| !self.names.contains(both));
        let fits =
            (!needs_topic || topics < TOPIC_SLOTS) && (!needs_channel || channels < CHANNEL_SLOTS);
        let channel = channel.map(|channel| ChannelName::new(channel).expect("a name"));
        let added = handle.register(&name, channel.as_ref());
        match added {
            Ok(()) => {
                assert!(fits, "registered more names than there are slots");
                self.names.insert(topic.into());
                self.names.extend(both);
            }
            Err(RegistryFull::Topics { max }) => assert_eq!(max, TOPIC_SLOTS),
            Err(RegistryFull::Channels { max }) => assert_eq!(max, CHANNEL_SLOTS),
        }
        if added.is_err() {
            watch::count("registry full");
            assert!(needs_topic || needs_channel, "rejected a name that is registered already");
            assert!(!free || !fits, "rejected, though a slot is free");
        }
    }
}
