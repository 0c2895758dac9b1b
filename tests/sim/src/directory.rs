//! A directory: a real one with its runner, and checks of what it lists.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::nsqlookupd::{self, Handle};
use nanonsq_core::drive::{AcceptSlot, Port as Slots, Ports};
use nanonsq_core::nsqlookupd::{Config, Event as Report};
use nanonsq_core::session::{Closed, Link, Session as _};
use nanonsq_core::time::Span;
use nanonsq_core::wire::nsqlookupd::IdentifyReply;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, RUNNER, until};
use crate::exec::application;
use crate::watch::{self, Event, Session};
use crate::world::{Clock, HTTP_PORT, Listens, Port, Role, World};

/// As many as nodes and registrars at most, and one more: with old connections that are not yet
/// recognized as dead the slots are sometimes too few.
const NODES: usize = 6;
const TOPICS: usize = 10;
const CHANNELS: usize = 24;
const HTTP: usize = 3;
const FIRST_HTTP: usize = NODES + 1;
const SESSIONS: usize = FIRST_HTTP + HTTP + 1;

/// Units of the process, after those of `actor`.
const EVENTS: usize = 2;
const STOPPING: usize = 3;

/// See the [module](self).
pub(crate) struct Lists {
    world: World,
    me: usize,
    config: Rc<Config<'static>>,
    tcp: Port,
    http: Port,
}

impl Lists {
    pub(crate) fn new(
        world: &World,
        me: usize,
        (tcp, http): (Port, Port),
        random: &mut Random,
    ) -> Self {
        let info = IdentifyReply { http_port: HTTP_PORT, ..Config::new().info };
        let config = Config {
            info,
            idle_timeout: Span::from_secs(random.pick(&[40, 60])),
            inactive_timeout: Span::from_secs(60),
            replace_timeout: Span::from_secs(random.pick(&[20, 45])),
            greeting_timeout: Span::from_secs(random.pick(&[2, 10])),
            reply_timeout: Span::from_secs(random.pick(&[1, 5])),
            empty_timeout: Span::from_secs(random.pick(&[0, 5, 3600])),
            ..Config::new()
        };
        watch::trace(|| format!("node{me} is a directory: {config:?}"));
        Self { world: world.clone(), me, config: Rc::new(config), tcp, http }
    }
}

impl Actor for Lists {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(4, SESSIONS as u32);
        for session in 0..NODES {
            watch::add((self.me, session), watch::PRODUCER);
        }
        for n in 0..HTTP {
            watch::add((self.me, FIRST_HTTP + n), watch::HTTP);
        }
        for spare in [NODES, FIRST_HTTP + HTTP] {
            watch::add((self.me, spare), watch::BUSY);
        }
        self.tcp.set_up(&self.world, true);
        self.http.set_up(&self.world, true);
        let (world, config) = (self.world.clone(), self.config.clone());
        let ports = (self.tcp.clone(), self.http.clone());
        (Box::pin(run(world, self.me, config, ports, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, _: Seen) {}

    fn died(&mut self) {
        self.tcp.set_up(&self.world, false);
        self.http.set_up(&self.world, false);
    }
}

type Directory<'a> = Handle<'a, NoopRawMutex, Clock>;

async fn run(
    world: World,
    me: usize,
    config: Rc<Config<'static>>,
    (tcp, http): (Port, Port),
    mailbox: Rc<Mailbox>,
) {
    let units = &mailbox.units;
    let mut resources =
        nsqlookupd::Resources::<NoopRawMutex, NODES, TOPICS, CHANNELS, HTTP, 32>::new();
    let sessions = Rc::new(RefCell::new(VecDeque::new()));
    let plan = VecDeque::from([Role::Runner(sessions.clone())]);
    let clock = Clock::of_plan(&world, me, Rc::new(RefCell::new(plan)));
    let mut next = 0;
    let mut listens = |port: &Port| {
        next += 1;
        let (world, port) = (world.clone(), port.clone());
        AcceptSlot::new(Listens { world, port, session: (me, next - 1), tap: None })
    };
    let ports = Ports { tcp: Slots::new(|| listens(&tcp)), http: Slots::new(|| listens(&http)) };
    let (handle, mut runner) = nsqlookupd::new(&mut resources, &config, ports, clock);
    let mut events = pin!(async {
        loop {
            let event = handle.event().await;
            watch::trace_session((me, 0), || format!("reports {event:?}"));
            match event {
                Report::Left { why: Closed::Local, .. } => watch::count("replaced"),
                Report::TableFull(_) => watch::count("directory full"),
                _ => {}
            }
        }
    });
    let (stop, stopped) = (Cell::new(false), Cell::new(false));
    let mut stopping = pin!(async {
        until(|| stop.get().then_some(())).await;
        handle.stop().await;
        stopped.set(true);
        std::future::pending::<()>().await
    });
    let mut listed = None;
    loop {
        // The next clones of the runner's clock belong to the ports and their sessions.
        sessions.replace(Role::of_ports(FIRST_HTTP, SESSIONS).collect());
        let mut run = pin!(runner.run());
        let again = poll_fn(|_| {
            while let Some((unit, causes)) = units.take(world.now()) {
                let waker = units.waker(unit);
                let cx = &mut Context::from_waker(&waker);
                match unit {
                    RUNNER => {
                        // Rejecting callers shows only in the log.
                        let did = || (world.moves(me), watch::changes());
                        let (moves, before) = (did(), print(&handle));
                        let _ = run.as_mut().poll(cx);
                        let moved = moves != did();
                        let changed = moved || before != print(&handle);
                        // The progress of stopping does not show.
                        units.judge(causes, changed || stop.get());
                    }
                    ORDERS => {
                        while let Some(order) = mailbox.next_order() {
                            if matches!(order, Order::Restart) {
                                (0..SESSIONS).for_each(|n| watch::event((me, n), Event::Dropped));
                                units.wake(RUNNER);
                                return Poll::Ready(true);
                            }
                            // Actions of the application: seldom stop.
                            if matches!(order, Order::Act(random) if random.clone().one_in(20)) {
                                watch::trace_session((me, 0), || "stops".into());
                                (0..SESSIONS).for_each(|n| watch::event((me, n), Event::Stop));
                                stop.set(true);
                                units.wake(STOPPING);
                            }
                        }
                    }
                    EVENTS => drop(application(|| events.as_mut().poll(cx))),
                    _ => drop(application(|| stopping.as_mut().poll(cx))),
                }
                check(&handle);
                let version = handle.look(|directory| directory.version());
                if listed != version {
                    listed = version;
                    tcp.set_listings(listings(&handle));
                }
                read_states(&handle, me);
            }
            assert_eq!(handle.try_event(), None, "a task that waits for events was not woken");
            // A process that has stopped ends.
            if stopped.get() { Poll::Ready(false) } else { Poll::Pending }
        })
        .await;
        if !again {
            return;
        }
    }
}

/// Returns a value that differs whenever the directory changed.
fn print(handle: &Directory<'_>) -> impl PartialEq + use<> {
    handle.inspect(|directory| {
        let nodes: [_; NODES] = std::array::from_fn(|n| {
            directory.client(n).map(|session| (session.link(), session.deadline()))
        });
        let http: [_; HTTP] = std::array::from_fn(|n| {
            directory.http(n).map(|session| (session.link(), session.deadline()))
        });
        (directory.version(), directory.counters(), nodes, http)
    })
}

/// Reads the states that another session's driver changed.
fn read_states(handle: &Directory<'_>, me: usize) {
    handle.inspect(|directory| {
        for n in 0..NODES {
            let identified = directory.producer(n).is_some();
            let state = match directory.client(n).map(|session| session.link()) {
                Some(Link::Close) => "Closing",
                Some(Link::Up) if identified => "Identified",
                Some(Link::Up) => "Greeting",
                _ => "Free",
            };
            watch::set_word((me, n), state);
        }
        for n in 0..HTTP {
            let link = directory.http(n).map(|session| session.link());
            watch::set_http((me, FIRST_HTTP + n), link);
        }
    });
}

/// Checks what holds after every poll.
fn check(handle: &Directory<'_>) {
    handle.look(|directory| {
        let address = |n| directory.producer(n).map(|producer| producer.node.broadcast_address);
        for (name, count) in directory.topics() {
            let having = (0..NODES).filter(|n| directory.has_topic(*n, name)).map(address);
            let addresses: BTreeSet<_> = having.collect();
            assert_eq!(count, addresses.len(), "producers of {name}: {addresses:?}");
        }
        let shared = (0..NODES)
            .any(|n| address(n).is_some() && (0..n).any(|other| address(other) == address(n)));
        if shared {
            watch::count("one address twice");
        }
    });
}

/// Returns what each connection has registered; only open connections have an entry.
fn listings(handle: &Directory<'_>) -> BTreeMap<ConnId, BTreeSet<String>> {
    let all = handle.look(|directory| {
        let mut listings = BTreeMap::new();
        for n in 0..NODES {
            let Some(producer) = directory.producer(n) else { continue };
            let topics = directory.topics().filter(|(name, _)| directory.has_topic(n, name));
            let channels = directory
                .channels()
                .filter(|(topic, name)| directory.has_channel(n, topic, name))
                .map(|(topic, name)| format!("{topic}/{name}"));
            let list = topics.map(|(name, _)| name.to_string()).chain(channels).collect();
            listings.insert(Port::conn_of(producer.remote), list);
        }
        listings
    });
    all.expect("not within a look")
}
