//! A node: a real one with its runner and handle, an application that publishes and changes topics
//! and channels, and checks of what clients receive and what nsqlookupds list.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::drive::nsqd::{self, Handle, Settings};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{Config, HttpConfig, PublishError, PublishOptions, message_cost};
use nanonsq_core::registration::{Config as LookupConfig, NodeInfo};
use nanonsq_core::session::Session as _;
use nanonsq_core::time::Span;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, RUNNER, favour, until};
use crate::exec::application;
use crate::process;
use crate::tap::Tap;
use crate::watch::{self, Event, Session};
use crate::world::{Clock, Port, World};

const TOPICS: usize = 3;
const CHANNELS: usize = 5;
const CLIENTS: usize = 3;
const IN_FLIGHT: usize = 8;
const PEERS: usize = 2;
const HTTP: usize = 2;
type Sessions = process::Sessions<CLIENTS, HTTP, PEERS>;
const FIRST_PEER: usize = Sessions::FIRST_PEER;
const ASKER: usize = Sessions::ASKER;
const SESSIONS: usize = ASKER + 1;

const LANES: u8 = 2;

/// The topic that consumers subscribe to, and topics that come and go.
const FEED: &str = "feed";
const OTHERS: [&str; 3] = ["x", "y#ephemeral", "z"];

/// Units of the process, after those of `actor`.
const EVENTS: usize = 2;
const PUBLISHING: usize = 3;
const STOPPING: usize = 4;

/// See the [module](self).
pub(crate) struct Daemon {
    world: World,
    me: usize,
    setup: Rc<Setup>,
    ports: (Port, Port),
    state: Rc<State>,
}

struct Setup {
    /// The name of its host.
    name: String,
    config: Config<'static>,
    lookup: LookupConfig<'static>,
    lookupds: Vec<Address>,
    blocks: usize,
    /// The most frequent action of the application.
    favourite: u64,
}

#[derive(Default)]
struct State {
    lives: Cell<u32>,
    published: Cell<u32>,
    /// The length of the message that waits for room.
    waits: Cell<Option<usize>>,
    stop: Cell<bool>,
    stopped: Cell<bool>,
}

impl Daemon {
    pub(crate) fn new(
        world: &World,
        me: usize,
        name: String,
        ports: (Port, Port),
        (lookupds, max_rdy_count): (usize, u16),
        random: &mut Random,
    ) -> Self {
        let ms = |random: &mut Random, from: &[u32]| Span::from_millis(random.pick(from));
        let mut config = Config {
            heartbeat: ms(random, &[1000, 5000, 30_000]),
            msg_timeout: ms(random, &[2000, 60_000]),
            close_timeout: ms(random, &[100, 1000]),
            channels_wait: ms(random, &[0, 300, 5000, 5000]),
            channels_per_topic: LANES,
            seed: random.below(1 << 32) as u32,
            ..Config::new()
        };
        config.limits.max_rdy_count = max_rdy_count.into();
        let lookup = LookupConfig {
            ping: Span::from_secs(15),
            reply_timeout: ms(random, &[1000, 5000]),
            reassert: ms(random, &[2000, 20_000]),
            close_timeout: ms(random, &[100, 1000]),
            seed: random.below(1 << 32) as u32,
            ..LookupConfig::new(NodeInfo::default())
        };
        let lookupds =
            (0..lookupds).map(|n| format!("lookup{n}:4160").parse().expect("an address")).collect();
        let blocks = random.pick(&[12, 40, 200]);
        watch::trace(|| {
            format!("node{me} is {name}, {blocks} blocks, at {lookupds:?}: {config:?}")
        });
        let favourite = random.below(10);
        let setup = Rc::new(Setup { name, config, lookup, lookupds, blocks, favourite });
        Self { world: world.clone(), me, setup, ports, state: Rc::default() }
    }
}

impl Actor for Daemon {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(5, SESSIONS as u32);
        Sessions::set_up(&self.world, self.me, &self.ports);
        for session in FIRST_PEER..ASKER {
            watch::add_shared((self.me, session), watch::PEER);
        }
        watch::add((self.me, ASKER), watch::LOOKUPD);
        self.state.lives.set(self.state.lives.get() + 1);
        let (world, setup, state) = (self.world.clone(), self.setup.clone(), self.state.clone());
        let ports = self.ports.clone();
        (Box::pin(run(world, self.me, setup, state, ports, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, seen: Seen) {
        if let Seen::Refused { words } = seen {
            // Another kind of server may have been dialed, and a connection may break anywhere.
            let fair = words == "E_BAD_PROTOCOL" || words.contains("failed to read");
            assert!(fair, "nsqlookupd refuses: {words}");
        }
    }

    fn died(&mut self) {
        self.ports.0.set_up(&self.world, false);
        self.ports.1.set_up(&self.world, false);
        self.state.waits.set(None);
        self.state.stop.set(false);
        self.state.stopped.set(false);
    }
}

type Node<'a> = Handle<'a, NoopRawMutex, Clock>;

async fn run(
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<State>,
    ports: (Port, Port),
    mailbox: Rc<Mailbox>,
) {
    let units = &mailbox.units;
    let config = Config { boot: state.lives.get(), ..setup.config };
    let lookup = LookupConfig { node: process::info(&setup.name), ..setup.lookup };
    let micros = |ms: u32| u64::from(ms) * 1000;
    let tap = Rc::new(RefCell::new(Tap::new(
        config.boot,
        micros(config.msg_timeout.as_millis()),
        micros(config.limits.max_msg_timeout_ms),
    )));
    let port = &ports.0;
    port.set_tap(tap.clone());
    let mut store = vec![0xee; setup.blocks * message_cost(1, LANES)];
    let mut resources = nsqd::Resources::<
        NoopRawMutex,
        TOPICS,
        CHANNELS,
        CLIENTS,
        IN_FLIGHT,
        HTTP,
        PEERS,
        64,
    >::new();
    let (sessions, clock) = Sessions::new(&world, me);
    let http = HttpConfig::new();
    let settings =
        Settings { node: &config, http: &http, lookup: &lookup, lookupds: &setup.lookupds };
    let (handle, mut runner) = nsqd::new(
        &mut resources,
        settings,
        &mut store,
        sessions.ports(&ports, Some(&tap)),
        sessions.dialers(),
        clock,
    )
    .expect("a good configuration");
    let listed = runner.lookup();
    let feed = TopicName::new(FEED).expect("a name");
    // So that consumers find the node.
    handle.create(&feed, None).expect("room for the first");
    read_states(&sessions, &handle, &listed, me);

    let mut events = pin!(async {
        loop {
            let event = handle.event().await;
            watch::trace_session((me, 0), || format!("reports {event:?}"));
        }
    });
    let mut publishing = pin!(async {
        loop {
            let (_, body) = poll_fn(|cx| port.poll_fed(cx)).await;
            state.waits.set(Some(body.len()));
            let taken = handle.publish(&feed, &body).await;
            state.waits.set(None);
            match taken {
                Ok(ticket) => tap.borrow_mut().accept(ticket.number(), &body),
                Err(PublishError::TooLarge { .. }) => watch::count("larger than the store"),
                Err(error) => panic!("{error}"),
            }
        }
    });
    let mut held = Held::new();
    let mut stopping = pin!(async {
        until(|| state.stop.get().then_some(())).await;
        handle.stop().await;
        state.stopped.set(true);
        std::future::pending::<()>().await
    });

    loop {
        sessions.run();
        let mut run = pin!(runner.run());
        let mut begins = true;
        let again = poll_fn(|_| {
            while let Some((unit, causes)) = units.take(world.now()) {
                let waker = units.waker(unit);
                let cx = &mut Context::from_waker(&waker);
                match unit {
                    RUNNER => {
                        // Rejecting callers shows only in the log.
                        let did = || (world.moves(me), watch::changes());
                        let (moves, before) = (did(), print(&handle, &listed));
                        let _ = run.as_mut().poll(cx);
                        let moved = moves != did();
                        let changed = moved || before != print(&handle, &listed);
                        // The progress of stopping does not show; a new run synchronizes the
                        // registry once more.
                        units.judge(causes, changed || state.stop.get() || begins);
                        begins = false;
                    }
                    ORDERS => {
                        while let Some(order) = mailbox.next_order() {
                            if matches!(order, Order::Restart) {
                                (0..SESSIONS).for_each(|n| watch::event((me, n), Event::Dropped));
                                units.wake(RUNNER);
                                return Poll::Ready(true);
                            }
                            application(|| {
                                obey(order, &handle, &world, &setup, &state, &tap, &mailbox, me)
                            });
                            check_held(&handle, world.clock(me), &mut held);
                        }
                    }
                    EVENTS => drop(application(|| events.as_mut().poll(cx))),
                    PUBLISHING => drop(application(|| publishing.as_mut().poll(cx))),
                    _ => drop(application(|| stopping.as_mut().poll(cx))),
                }
                read_states(&sessions, &handle, &listed, me);
                check(&handle);
                check_held(&handle, world.clock(me), &mut held);
            }
            let wait = micros(config.channels_wait.as_millis());
            for (topic, since) in &held {
                let until = since.saturating_add(wait);
                assert!(world.clock(me) <= until, "{topic} was held for too long");
            }
            check_quiet(&handle, &state);
            // A process that has stopped ends.
            if state.stopped.get() { Poll::Ready(false) } else { Poll::Pending }
        })
        .await;
        if !again {
            return;
        }
    }
}

type Listed<'a> =
    nanonsq_core::drive::registration::Handle<'a, NoopRawMutex, Clock, PEERS, TOPICS, CHANNELS>;

/// Returns a value that differs whenever the node or its registration changed.
fn print(handle: &Node<'_>, listed: &Listed<'_>) -> impl PartialEq + use<> {
    let node = handle.inspect(|node| {
        let sessions: [_; CLIENTS] = std::array::from_fn(|n| {
            let client = node.status(n).map(|it| (it.state, it.ready, it.in_flight, it.messages));
            (client, node.client(n).map(|session| (session.link(), session.deadline())))
        });
        let http: [_; HTTP] = std::array::from_fn(|n| {
            node.http(n).map(|session| (session.link(), session.deadline()))
        });
        let asking = node.asking(&[]).map(|session| session.deadline());
        let held = node.topics().map(|topic| topic.asking).collect::<Vec<_>>();
        let asker = (node.ask_state(), asking, held);
        (node.version(), node.topology(), node.counters(), node.store(), sessions, http, asker)
    });
    let lookup = listed.inspect(|lookup| {
        let deadlines: [_; PEERS] =
            std::array::from_fn(|n| lookup.peer(n).map(|peer| peer.deadline()));
        // With a full table one name may replace another.
        let names: Vec<_> =
            lookup.registered().map(|(topic, channel)| (*topic, channel.copied())).collect();
        (lookup.version(), deadlines, names)
    });
    (node, lookup, handle.turned_away())
}

/// Reads the states that the core does not trace or that another session's driver changed.
fn read_states(sessions: &Sessions, handle: &Node<'_>, listed: &Listed<'_>, me: usize) {
    handle.inspect(|node| {
        sessions.read_states(node);
        watch::set_state((me, ASKER), &node.ask_state());
    });
    for n in 0..PEERS {
        let state = listed.look(|lookup| lookup.status(n).map(|status| status.state));
        watch::set_state((me, FIRST_PEER + n), &state.flatten().expect("a peer"));
    }
}

/// The topics that are held, with the time since when.
type Held = BTreeMap<String, u64>;

/// Checks that a topic gives nothing to its channels while nsqlookupds are asked for more channels.
fn check_held(handle: &Node<'_>, now: u64, held: &mut Held) {
    handle.look(|node| {
        let asking = |name: &str| node.topics().any(|it| it.asking && it.name.as_str() == name);
        held.retain(|name, _| {
            let still = asking(name);
            if !still {
                watch::count("topic no longer held");
            }
            still
        });
        for topic in node.topics().filter(|topic| topic.asking) {
            held.entry(topic.name.to_string()).or_insert(now);
            let got: u64 = node.channels(topic.name).map(|channel| channel.messages).sum();
            assert_eq!(got, 0, "{} is held, but messages flow", topic.name);
        }
    });
}

/// Checks what holds after every poll.
fn check(handle: &Node<'_>) {
    handle.look(|node| {
        let store = node.store();
        assert!(store.promised <= store.free && store.free <= store.blocks, "{store:?}");
        let mut in_flight = 0;
        for topic in node.topics() {
            for channel in node.channels(topic.name) {
                assert!(channel.in_flight <= IN_FLIGHT as u32, "{channel:?}");
                in_flight += channel.in_flight;
            }
        }
        let theirs: u32 = node.statuses().map(|status| u32::from(status.in_flight)).sum();
        assert_eq!(in_flight, theirs, "in flight in channels and at clients");
    });
}

/// Checks what holds when all futures are pending.
fn check_quiet(handle: &Node<'_>, state: &State) {
    handle.inspect(|node| {
        assert_eq!(node.poll_event(), None, "a task that waits for events was not woken");
        if let Some(len) = state.waits.get() {
            let store = node.store();
            let need = message_cost(len as u32, LANES) / message_cost(1, LANES);
            let free = (store.free - store.promised) as usize;
            assert!(free < need, "a task that waits for room was not woken");
        }
    });
}

#[expect(clippy::too_many_arguments, reason = "an application and all that it knows")]
fn obey(
    order: Order,
    handle: &Node<'_>,
    world: &World,
    setup: &Setup,
    state: &State,
    tap: &Rc<RefCell<Tap>>,
    mailbox: &Mailbox,
    me: usize,
) {
    let feed = TopicName::new(FEED).expect("a name");
    let channel = ChannelName::new("c").expect("a name");
    let each = |event| (0..SESSIONS).for_each(|n| watch::event((me, n), event));
    let trace = |what: &str| watch::trace_session((me, 0), || what.to_owned());
    match order {
        Order::Act(mut random) => {
            each(Event::Work);
            let topic = TopicName::new(random.pick(&OTHERS)).expect("a name");
            let other = ChannelName::new(random.pick(&["c", "d", "e#ephemeral"])).expect("a name");
            let what = favour(&mut random, setup.favourite, 10);
            watch::trace_session((me, 0), || format!("does {what} with {topic} {other}"));
            match what {
                0 => drop(handle.create(&topic, None)),
                1 | 2 => drop(handle.create(&topic, Some(&other))),
                3 => drop(handle.delete(&topic, None)),
                4 => drop(handle.delete(&topic, Some(&other))),
                5 if random.one_in(4) => {
                    trace("stops");
                    each(Event::Stop);
                    state.stop.set(true);
                    mailbox.units.wake(STOPPING);
                }
                5 => match random.below(4) {
                    0 => drop(handle.pause(&feed, None)),
                    1 => drop(handle.unpause(&feed, None)),
                    2 => drop(handle.pause(&feed, Some(&channel))),
                    _ => drop(handle.unpause(&feed, Some(&channel))),
                },
                _ => {
                    for _ in 0..random.between(1, 8) {
                        publish(&mut random, handle, state, tap, &feed);
                    }
                }
            }
        }
        Order::Settled(mut random) => {
            // Nobody consumes what was published over HTTP.
            for topic in OTHERS {
                let _ = handle.delete(&TopicName::new(topic).expect("a name"), None);
            }
            handle.unpause(&feed, None).expect("the topic exists");
            // The channel may not exist yet.
            let _ = handle.unpause(&feed, Some(&channel));
            publish(&mut random, handle, state, tap, &feed);
        }
        Order::End => finish(handle, world, setup, state, tap, me),
        Order::Restart => {}
    }
}

/// Publishes one of the node's own messages at once.
fn publish(
    random: &mut Random,
    handle: &Node<'_>,
    state: &State,
    tap: &Rc<RefCell<Tap>>,
    feed: &TopicName,
) {
    let number = state.published.get();
    state.published.set(number + 1);
    let mut body = format!("own/{number}/").into_bytes();
    let len = if random.one_in(10) { 200 } else { random.between(10, 38) as usize };
    body.resize(len.max(body.len()), b'o');
    let defer = random.one_in(5).then_some(Span::from_millis(random.below(6000) as u32));
    let before = handle.look(|node| node.store()).expect("not within a look");
    match handle.try_publish_with(feed, &body, PublishOptions { defer }) {
        Ok(ticket) => tap.borrow_mut().accept(ticket.number(), &body),
        Err(PublishError::Full) => {
            watch::count("node full");
            let need = message_cost(body.len() as u32, LANES) / message_cost(1, LANES);
            let free = (before.free - before.promised) as usize;
            // Waiting publishers come first.
            assert!(free < need || state.waits.get().is_some(), "rejected, though there is room");
        }
        Err(PublishError::TooLarge { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Checks the node long after the last fault.
fn finish(
    handle: &Node<'_>,
    world: &World,
    setup: &Setup,
    state: &State,
    tap: &Rc<RefCell<Tap>>,
    me: usize,
) {
    let mut names = handle
        .look(|node| {
            let mut names = Vec::new();
            for topic in node.topics() {
                names.push(topic.name.to_string());
                let channels = node.channels(topic.name);
                names.extend(channels.map(|channel| format!("{}/{}", topic.name, channel.name)));
            }
            names
        })
        .expect("not within a look");
    names.sort();
    for address in &setup.lookupds {
        let (listed, conns) = world.listing(address.host(), me);
        assert_eq!(conns, 1, "one connection to {address}");
        assert_eq!(listed, names, "{address} does not list the node's topics");
    }
    handle.look(|node| {
        let feed = TopicName::new(FEED).expect("a name");
        let served = node.statuses().any(|status| status.ready > 0);
        let store = node.store();
        if served {
            watch::count("node empty in the end");
            let left = tap.borrow().unfinished().len();
            assert_eq!(left, 0, "messages are left though a client consumes");
            assert_eq!((store.free, store.promised), (store.blocks, 0), "{store:?}");
            assert_eq!(state.waits.get(), None, "a publisher waits for room");
            let depth: u32 = node.channels(&feed).map(|it| it.depth + it.in_flight).sum();
            assert_eq!(depth, 0, "messages wait");
        }
    });
}
