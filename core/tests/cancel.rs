//! Cancellation: each public future of `drive` is polled `k` times, dropped, and the world goes on,
//! for every `k` until the future completes.
//!
//! The transport is pending `n` times before it does anything, and then writes only a few bytes,
//! so that there is an await point everywhere. The servers are models that answer at once.

#![cfg(feature = "async")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::drive::{
    Dialer, Listener, SessionCell, Sleep, Transport, lookup, publisher, serve,
};
use nanonsq_core::lookup as core_lookup;
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::publish::{
    Config, Event, Full, Outcome, PublishError, PublishOptions, State, Ticket,
};
use nanonsq_core::session::{Closed, DialError, Fault, Link, Session, Transmit, TransportError};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::v1::{self, NodeInfo};
use nanonsq_core::wire::v2;

/// How often the transport is pending before it does something, and how much it takes at a time.
const TRANSPORTS: [(usize, usize); 4] = [(0, 1000), (1, 1000), (3, 7), (0, 3)];

// --- the world ---

#[derive(Default)]
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A future as a task: polled only if it was woken, but for its first time.
struct Task<'f, T> {
    future: Pin<&'f mut dyn Future<Output = T>>,
    flag: Arc<Flag>,
    done: Option<T>,
}

impl<'f, T> Task<'f, T> {
    fn new(future: Pin<&'f mut dyn Future<Output = T>>) -> Self {
        Self { future, flag: Arc::new(Flag(AtomicBool::new(true))), done: None }
    }

    /// Whether there was anything to do.
    fn poll(&mut self) -> bool {
        if self.done.is_some() || !self.flag.0.swap(false, Ordering::Relaxed) {
            return false;
        }
        let waker = Waker::from(self.flag.clone());
        if let Poll::Ready(done) = self.future.as_mut().poll(&mut Context::from_waker(&waker)) {
            self.done = Some(done);
        }
        true
    }
}

#[derive(Clone)]
struct World(Rc<Inner>);

struct Inner {
    pending: usize,
    bite: usize,
    now: Cell<u64>,
    alarms: RefCell<Vec<(Instant, Waker)>>,
    /// By port.
    servers: RefCell<BTreeMap<u16, Rc<RefCell<Server>>>>,
    open: Cell<usize>,
}

impl World {
    fn new((pending, bite): (usize, usize)) -> Self {
        Self(Rc::new(Inner {
            pending,
            bite,
            now: Cell::new(1_000_000),
            alarms: RefCell::default(),
            servers: RefCell::default(),
            open: Cell::new(0),
        }))
    }

    /// Time goes on to the next alarm.
    fn advance(&self) {
        let mut alarms = self.0.alarms.borrow_mut();
        let next = alarms.iter().map(|alarm| alarm.0).min().expect("nothing will happen again");
        self.0.now.set(self.0.now.get().max(next.as_micros()));
        let now = self.now();
        alarms.retain(|(at, waker)| {
            if *at <= now {
                waker.wake_by_ref();
            }
            *at > now
        });
    }

    /// Runs both until the first is done; time passes when neither has anything to do.
    #[track_caller]
    fn run<T, U>(&self, first: &mut Task<'_, T>, second: &mut Task<'_, U>) {
        for _ in 0..100_000 {
            if first.done.is_some() {
                return;
            }
            let woken = first.poll() | second.poll();
            if !woken {
                self.advance();
            }
        }
        panic!("it never ends");
    }

    /// Has a server listen.
    fn serve(&self, port: u16, server: Server) -> Rc<RefCell<Server>> {
        let server = Rc::new(RefCell::new(server));
        self.0.servers.borrow_mut().insert(port, server.clone());
        server
    }

    fn pipe(&self, port: u16) -> Pipe {
        self.0.open.set(self.0.open.get() + 1);
        let server = self.0.servers.borrow()[&port].clone();
        server.borrow_mut().connected();
        let slow = || Slow::new(self);
        Pipe {
            world: self.clone(),
            server,
            incoming: VecDeque::new(),
            reader: None,
            slow: [slow(), slow(), slow()],
        }
    }
}

/// Pending a few times, then ready, again and again.
struct Slow {
    times: usize,
    left: usize,
}

impl Slow {
    fn new(world: &World) -> Self {
        Self { times: world.0.pending, left: world.0.pending }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(left) = self.left.checked_sub(1) else {
            self.left = self.times;
            return Poll::Ready(());
        };
        self.left = left;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

struct Pipe {
    world: World,
    server: Rc<RefCell<Server>>,
    incoming: VecDeque<u8>,
    reader: Option<Waker>,
    slow: [Slow; 3],
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.world.0.open.set(self.world.0.open.get() - 1);
        self.server.borrow_mut().gone();
    }
}

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.reader = Some(cx.waker().clone());
        if self.incoming.is_empty() || self.slow[0].poll(cx).is_pending() {
            return Poll::Pending;
        }
        let n = self.incoming.len().min(buf.len()).min(self.world.0.bite);
        for (to, from) in buf.iter_mut().zip(self.incoming.drain(..n)) {
            *to = from;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        if self.slow[1].poll(cx).is_pending() {
            return Poll::Pending;
        }
        let all = [bytes.head, bytes.body].concat();
        let n = all.len().min(self.world.0.bite);
        let answer = self.server.borrow_mut().take(&all[..n]);
        if !answer.is_empty() {
            self.incoming.extend(answer);
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(n))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.slow[2].poll(cx).map(Ok)
    }
}

impl Dialer for World {
    type Transport<'d> = Pipe;

    async fn dial(&mut self, address: &Address) -> Result<Pipe, DialError> {
        let mut slow = Slow::new(self);
        poll_fn(|cx| slow.poll(cx)).await;
        Ok(self.pipe(address.port()))
    }
}

impl Sleep for World {
    fn now(&self) -> Instant {
        Instant::from_micros(self.0.now.get())
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        if at <= self.now() {
            return Poll::Ready(());
        }
        // One time for each task, the earliest, as embassy-time has it.
        let mut alarms = self.0.alarms.borrow_mut();
        match alarms.iter_mut().find(|(_, waker)| waker.will_wake(cx.waker())) {
            Some(alarm) => alarm.0 = alarm.0.min(at),
            None => alarms.push((at, cx.waker().clone())),
        }
        Poll::Pending
    }
}

// --- the servers ---

enum Server {
    Nsqd(Box<Nsqd>),
    Lookupd(Box<Lookupd>),
    /// Says this, and keeps what it hears.
    Caller(Vec<u8>),
}

struct Nsqd {
    commands: v2::CommandDecoder,
    identified: bool,
    bodies: Vec<Vec<u8>>,
    /// With the number of the connection.
    stored: Vec<(usize, String)>,
    connections: usize,
}

struct Lookupd {
    commands: v1::CommandDecoder,
    listed: BTreeSet<String>,
}

impl Server {
    fn nsqd() -> Self {
        Self::Nsqd(Box::new(Nsqd {
            commands: v2::CommandDecoder::new(),
            identified: false,
            bodies: Vec::new(),
            stored: Vec::new(),
            connections: 0,
        }))
    }

    fn lookupd() -> Self {
        let commands = v1::CommandDecoder::new(4096);
        Self::Lookupd(Box::new(Lookupd { commands, listed: BTreeSet::new() }))
    }

    fn connected(&mut self) {
        match self {
            Self::Nsqd(nsqd) => {
                nsqd.commands = v2::CommandDecoder::new();
                nsqd.identified = false;
                nsqd.bodies.clear();
                nsqd.connections += 1;
            }
            Self::Lookupd(lookupd) => lookupd.commands = v1::CommandDecoder::new(4096),
            Self::Caller(_) => {}
        }
    }

    fn gone(&mut self) {
        if let Self::Lookupd(lookupd) = self {
            lookupd.listed.clear();
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Nsqd(nsqd) => nsqd.take(bytes),
            Self::Lookupd(lookupd) => lookupd.take(bytes),
            Self::Caller(heard) => {
                heard.extend(bytes);
                Vec::new()
            }
        }
    }
}

impl Nsqd {
    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        while let Some(item) = self.commands.next(&v2::Limits::NSQD, &mut bytes).unwrap() {
            match item {
                v2::Item::Body { .. } => self.bodies.push(Vec::new()),
                v2::Item::Part { data, done, .. } => {
                    self.bodies.last_mut().unwrap().extend(data);
                    if !done {
                        continue;
                    }
                    let answer: &[u8] = if self.identified {
                        let bodies = self.bodies.iter().map(|body| String::from_utf8_lossy(body));
                        self.stored.extend(bodies.map(|body| (self.connections, body.into())));
                        v2::OK
                    } else {
                        b"{}"
                    };
                    self.identified = true;
                    self.bodies.clear();
                    v2::emit_frame(&mut answers, v2::FrameType::Response, answer).unwrap();
                }
                _ => {}
            }
        }
        answers
    }
}

impl Lookupd {
    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        while let Some(item) = self.commands.next(&mut bytes).unwrap() {
            let name = |topic: TopicName, channel: Option<ChannelName>| match channel {
                None => topic.as_str().to_owned(),
                Some(channel) => format!("{} {}", topic.as_str(), channel.as_str()),
            };
            let answer: &[u8] = match item {
                v1::Item::Identify | v1::Item::Body { .. } | v1::Item::Part { last: false, .. } => {
                    continue;
                }
                v1::Item::Part { .. } => b"{\"version\":\"1.3.0\"}",
                v1::Item::Ping => v1::OK,
                v1::Item::Register { topic, channel } => {
                    // A channel brings its topic.
                    self.listed.insert(name(topic, None));
                    self.listed.insert(name(topic, channel));
                    v1::OK
                }
                v1::Item::Unregister { topic, channel } => {
                    // A topic takes its channels with it.
                    let gone = name(topic, channel);
                    let of_gone = format!("{gone} ");
                    self.listed.retain(|name| *name != gone && !name.starts_with(&of_gone));
                    v1::OK
                }
            };
            v1::emit_reply(&mut answers, answer).unwrap();
        }
        answers
    }
}

// --- the publisher ---

const NSQD: u16 = 4150;

type Handle<'a> = publisher::Handle<'a, NoopRawMutex>;
type Runner<'a> = publisher::Runner<'a, NoopRawMutex, World, World>;

/// Runs `test` with a publisher whose outbox has `ring` bytes.
fn with_publisher(world: &World, ring: usize, test: impl FnOnce(Handle<'_>, Runner<'_>)) {
    world.serve(NSQD, Server::nsqd());
    let config = Config { full: Full::Refuse, ..Config::new() };
    let nsqds = ["nsqd:4150".parse().unwrap()];
    let mut ring = vec![0; ring];
    let mut resources = publisher::Resources::new();
    let (handle, runner) =
        publisher::new(&mut resources, &config, &nsqds, &mut ring, world.clone(), world.clone())
            .unwrap();
    test(handle, runner);
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// Fills the outbox but for a little, and says with what.
fn fill_but_one(handle: Handle<'_>) -> Vec<String> {
    let bodies: Vec<_> = (0..5).map(|n| format!("message {n}")).collect();
    for body in &bodies {
        handle.try_publish(&topic("t"), body.as_bytes()).unwrap();
    }
    bodies
}

/// Fills the outbox, and says with what.
fn fill(handle: Handle<'_>) -> Vec<String> {
    let mut bodies = Vec::new();
    loop {
        let body = format!("message {}", bodies.len());
        if handle.try_publish(&topic(["t", "u"][bodies.len() % 3 / 2]), body.as_bytes()).is_err() {
            return bodies;
        }
        bodies.push(body);
    }
}

/// The publisher still does what it is there for: everything accepted, and one more, arrives.
/// At least once, in order on each connection, with duplicates only where they were counted.
fn assert_delivers(world: &World, handle: Handle<'_>, mut runner: Runner<'_>, bodies: &[String]) {
    let last = handle.counters().accepted;
    assert_eq!(last, bodies.len() as u64, "what was accepted");
    let topic = topic("last");
    let mut all = pin!(async {
        let ticket = handle.publish(&topic, b"last").await.unwrap();
        assert_eq!(ticket.number(), last);
        assert_eq!(handle.outcome(ticket).await, Outcome::Acknowledged);
        handle.idle().await;
    });
    {
        let mut run = pin!(runner.run());
        world.run(&mut Task::new(all.as_mut()), &mut Task::new(run.as_mut()));
    }
    runner_is_gone(world);
    let counters = handle.counters();
    assert_eq!((counters.acknowledged, counters.pending), (last + 1, 0));
    let server = world.0.servers.borrow()[&NSQD].clone();
    let server = server.borrow();
    let Server::Nsqd(nsqd) = &*server else { unreachable!() };
    let stored = &nsqd.stored;
    let wanted: BTreeSet<&str> = bodies.iter().map(String::as_str).chain(["last"]).collect();
    let got: BTreeSet<&str> = stored.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(got, wanted);
    let duplicates = (stored.len() - wanted.len()) as u64;
    assert!(duplicates <= counters.possible_duplicates, "{duplicates} {counters:?}");
    let place = |body: &str| bodies.iter().position(|b| b == body).unwrap_or(bodies.len());
    for pair in stored.windows(2) {
        assert!(pair[0].0 != pair[1].0 || place(&pair[0].1) < place(&pair[1].1), "{pair:?}");
    }
}

/// The other side sees it.
fn runner_is_gone(world: &World) {
    assert_eq!(world.0.open.get(), 0, "a transport outlives its runner");
}

/// Polls `future` at most `k` times, whether woken or not, and the runner once in between; time
/// passes when the runner has nothing to do. Says whether the future completed.
fn poll_times<T>(
    world: &World,
    k: usize,
    mut future: Pin<&mut impl Future<Output = T>>,
    runner: &mut Task<'_, impl Sized>,
) -> Option<T> {
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(flag);
    for _ in 0..k {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(done);
        }
        if !runner.poll() {
            world.advance();
        }
    }
    None
}

/// Calls `test` with every number of polls until it says that the future completed.
fn at_every_await(mut test: impl FnMut(&World, usize) -> bool) {
    for transport in TRANSPORTS {
        let completed = (0..2000).any(|k| test(&World::new(transport), k));
        assert!(completed, "never completes with {transport:?}");
    }
}

#[test]
fn publishers_run_once() {
    at_every_await(|world, k| {
        let mut idle = false;
        with_publisher(world, 200, |handle, mut runner| {
            let bodies = fill(handle);
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let _ = poll_times(world, k, pin!(std::future::pending::<()>()), &mut run);
            }
            runner_is_gone(world);
            idle = handle.counters().pending == 0;
            assert_delivers(world, handle, runner, &bodies);
        });
        idle
    });
}

#[test]
fn publishers_run_twice() {
    for transport in [(0, 1000), (1, 7)] {
        for k in 1..80 {
            for again in 1..40 {
                let world = World::new(transport);
                with_publisher(&world, 200, |handle, mut runner| {
                    let bodies = fill(handle);
                    for polls in [k, again] {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(&world, polls, never, &mut run);
                    }
                    assert_delivers(&world, handle, runner, &bodies);
                });
            }
        }
    }
}

#[test]
fn publish() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let mut bodies = fill(handle);
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let topic = topic("t");
                let publish = pin!(handle.publish(&topic, b"the one that waits"));
                if let Some(taken) = poll_times(world, k, publish, &mut run) {
                    assert_eq!(taken.unwrap().number(), bodies.len() as u64);
                    bodies.push("the one that waits".into());
                    completed = true;
                }
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

#[test]
fn publish_with_a_deadline_that_passes() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let mut bodies = fill(handle);
            let deadline = Some(world.now().after(Span::from_secs(3600)));
            let options = PublishOptions { deadline, ..PublishOptions::default() };
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let topic = topic("t");
                let publish = pin!(handle.publish_with(&topic, b"in time", options));
                if let Some(taken) = poll_times(world, k, publish, &mut run) {
                    taken.unwrap();
                    bodies.push("in time".into());
                    completed = true;
                }
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

/// Futures that only wait: dropped, they may be asked again.
fn waiting<T: PartialEq + std::fmt::Debug>(
    wait: impl AsyncFn(Handle<'_>, Ticket) -> T,
    expected: &T,
) {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let mut bodies = fill_but_one(handle);
            let ticket = handle.try_publish(&topic("t"), b"x").unwrap();
            bodies.push("x".into());
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let result = poll_times(world, k, pin!(wait(handle, ticket)), &mut run);
                completed = result.is_some();
                assert!(result.is_none_or(|result| result == *expected));
                let mut again = pin!(wait(handle, ticket));
                let mut again = Task::new(again.as_mut());
                world.run(&mut again, &mut run);
                assert_eq!(again.done.as_ref(), Some(expected));
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

#[test]
fn outcome() {
    let outcome = async |handle: Handle<'_>, ticket| handle.outcome(ticket).await;
    waiting(outcome, &Outcome::Acknowledged);
}

#[test]
fn idle() {
    waiting(async |handle, _| handle.idle().await, &());
}

#[test]
fn wait() {
    let ready = async |handle: Handle<'_>, _| {
        handle.wait(|publisher| (publisher.state() == State::Ready).then_some(1)).await
    };
    waiting(ready, &1);
}

#[test]
fn event() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let bodies = fill_but_one(handle);
            let all = bodies.len() as u64;
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let mut events = Vec::new();
                let event = poll_times(world, k, pin!(handle.event()), &mut run);
                completed = event.is_some();
                events.extend(event);
                let resolved = |event: &Event| match event {
                    Event::Resolved { below } => below.number(),
                    Event::Connected { .. } => 0,
                    other => panic!("{other:?}"),
                };
                while events.last().map_or(0, resolved) < all {
                    let mut event = pin!(handle.event());
                    let mut event = Task::new(event.as_mut());
                    world.run(&mut event, &mut run);
                    events.extend(event.done);
                }
                assert!(matches!(events[0], Event::Connected { .. }), "{events:?}");
                assert!(events[1..].iter().map(resolved).is_sorted_by(|a, b| a < b), "{events:?}");
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

/// Dropped once it has begun, the connection closes all the same; also if the runner is dropped as
/// well and run again.
#[test]
fn publishers_stop() {
    for before in [0, 1, 5, 20, 60] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_publisher(world, 200, |handle, mut runner| {
                    fill(handle);
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        let stop = pin!(handle.stop(world));
                        completed = poll_times(world, k, stop, &mut run).is_some();
                        if k == 0 {
                            assert_ne!(
                                handle.look(|publisher| publisher.state()),
                                Some(State::Stopped)
                            );
                        } else if !runs_again {
                            assert_stops(world, handle, &mut run);
                        }
                    }
                    runner_is_gone(world);
                    if k > 0 && runs_again {
                        let mut run = pin!(runner.run());
                        assert_stops(world, handle, &mut Task::new(run.as_mut()));
                    }
                });
                completed
            });
        }
    }
}

fn assert_stops<T>(world: &World, handle: Handle<'_>, run: &mut Task<'_, T>) {
    let stopped = handle.wait(|publisher| (publisher.state() == State::Stopped).then_some(()));
    let mut stopped = pin!(stopped);
    world.run(&mut Task::new(stopped.as_mut()), run);
    while run.poll() {}
    runner_is_gone(world);
    assert_eq!(handle.try_publish(&topic("t"), b"x"), Err(PublishError::Stopped));
    let counters = handle.counters();
    assert_eq!(counters.accepted, counters.acknowledged + counters.pending);
}

// --- the lookup ---

const LOOKUPDS: [u16; 2] = [4160, 4260];

type Node<'a> = lookup::Handle<'a, NoopRawMutex, World, 2, 4, 4>;
type NodeRunner<'a> = lookup::Runner<'a, NoopRawMutex, World, World, 2, 4, 4>;

/// Runs `test` with a node that is to be listed by two nsqlookupds.
fn with_node(world: &World, test: impl FnOnce(&Node<'_>, NodeRunner<'_>, &Listed)) {
    let listed = Listed(LOOKUPDS.map(|port| world.serve(port, Server::lookupd())));
    let config = core_lookup::Config::new(NodeInfo {
        broadcast_address: "node",
        hostname: "node",
        http_port: 4151,
        tcp_port: 4150,
        topology_region: "",
        topology_zone: "",
        version: "1",
    });
    let mut resources = lookup::Resources::new();
    let dialers = [world.clone(), world.clone()];
    let (node, runner) = lookup::new(&mut resources, &config, dialers, world.clone()).unwrap();
    node.configure(&LOOKUPDS.map(|port| Address::new("lookupd", port).unwrap())).unwrap();
    node.add_channel(&topic("t"), &ChannelName::new("c").unwrap()).unwrap();
    node.add_topic(&topic("u")).unwrap();
    test(&node, runner, &listed);
}

struct Listed([Rc<RefCell<Server>>; 2]);

impl Listed {
    #[track_caller]
    fn assert(&self, names: &[&str]) {
        for server in &self.0 {
            let Server::Lookupd(lookupd) = &*server.borrow() else { unreachable!() };
            assert!(lookupd.listed.iter().eq(names), "{:?}", lookupd.listed);
        }
    }
}

/// Both nsqlookupds come to list what is wanted, also after a change.
fn assert_lists<T>(world: &World, node: &Node<'_>, listed: &Listed, run: &mut Task<'_, T>) {
    // Only now the peers learn that a runner before this one is gone.
    run.poll();
    for names in [&["t", "t c", "u"][..], &["u", "v"]] {
        let mut settled = pin!(node.settled());
        world.run(&mut Task::new(settled.as_mut()), run);
        listed.assert(names);
        node.remove_topic(&topic("t"));
        node.add_topic(&topic("v")).unwrap();
    }
}

#[test]
fn lookups_run() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |node, mut runner, listed| {
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let settled = pin!(node.settled());
                completed = poll_times(world, k, settled, &mut run).is_some();
            }
            runner_is_gone(world);
            listed.assert(&[]);
            let mut run = pin!(runner.run());
            assert_lists(world, node, listed, &mut Task::new(run.as_mut()));
        });
        completed
    });
}

#[test]
fn settled() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |node, mut runner, listed| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            completed = poll_times(world, k, pin!(node.settled()), &mut run).is_some();
            assert_lists(world, node, listed, &mut run);
        });
        completed
    });
}

#[test]
fn lookups_wait() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |node, mut runner, listed| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            let second =
                node.wait(|lookup| lookup.status(1).filter(|status| status.settled).map(drop));
            completed = poll_times(world, k, pin!(second), &mut run).is_some();
            assert_lists(world, node, listed, &mut run);
        });
        completed
    });
}

/// Dropped once it has begun, everything is unregistered all the same; also if the runner is
/// dropped as well and run again. Configured again, the node is back.
#[test]
fn lookups_stop() {
    for before in [0, 1, 7, 30, 100] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_node(world, |node, mut runner, listed| {
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        completed = poll_times(world, k, pin!(node.stop()), &mut run).is_some();
                        if k > 0 && !runs_again {
                            assert_leaves(world, node, listed, &mut run);
                        }
                    }
                    runner_is_gone(world);
                    let mut run = pin!(runner.run());
                    let mut run = Task::new(run.as_mut());
                    if k > 0 {
                        assert_leaves(world, node, listed, &mut run);
                        node.configure(
                            &LOOKUPDS.map(|port| Address::new("lookupd", port).unwrap()),
                        )
                        .unwrap();
                        node.add_channel(&topic("t"), &ChannelName::new("c").unwrap()).unwrap();
                        node.add_topic(&topic("u")).unwrap();
                    }
                    assert_lists(world, node, listed, &mut run);
                });
                completed
            });
        }
    }
}

fn assert_leaves<T>(world: &World, node: &Node<'_>, listed: &Listed, run: &mut Task<'_, T>) {
    run.poll();
    let mut stopped = pin!(node.wait(|lookup| lookup.is_stopped().then_some(())));
    world.run(&mut Task::new(stopped.as_mut()), run);
    listed.assert(&[]);
    runner_is_gone(world);
}

// --- accepting ---

/// Sends everything back, and hangs up after a full stop.
#[derive(Default)]
struct Echo {
    up: bool,
    closing: bool,
    back: Vec<u8>,
    lives: usize,
    ended: usize,
}

impl Session for Echo {
    fn link(&self) -> Link {
        match (self.up, self.closing) {
            (_, true) => Link::Close,
            (true, false) => Link::Up,
            (false, false) => Link::Down,
        }
    }

    fn open(&mut self, _: Instant) {
        assert!(!self.up, "two lives at a time");
        self.lives += 1;
        self.back.clear();
        (self.up, self.closing) = (true, false);
    }

    fn receive(&mut self, _: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.back.extend(bytes);
        self.closing |= bytes.contains(&b'.');
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit { head: &self.back, body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.back.drain(..n);
    }

    fn deadline(&self) -> Instant {
        Instant::NEVER
    }

    fn tick(&mut self, _: Instant) {}

    fn closed(&mut self, _: Instant, _: Closed) {
        (self.up, self.closing) = (false, false);
        self.ended += 1;
    }
}

struct EchoCell(RefCell<Echo>);

impl SessionCell for EchoCell {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut *self.0.borrow_mut());
    }

    fn register(&self, _: &Waker) {}
}

/// Calls `hello.` again and again.
impl Listener for World {
    type Transport<'l> = Pipe;

    async fn accept(&mut self) -> Result<Pipe, DialError> {
        // Nobody is always there already.
        let mut slow = Slow { times: 0, left: self.0.pending.max(1) };
        poll_fn(|cx| slow.poll(cx)).await;
        let mut pipe = self.pipe(0);
        pipe.incoming.extend(b"hello.");
        Ok(pipe)
    }
}

#[test]
fn serving() {
    at_every_await(|world, k| {
        let heard = |world: &World| match &*world.0.servers.borrow()[&0].borrow() {
            Server::Caller(heard) => heard.clone(),
            _ => unreachable!(),
        };
        world.serve(0, Server::Caller(Vec::new()));
        let cell = EchoCell(RefCell::default());
        let run =
            async |sleep: &mut World| serve(&cell, &mut world.clone(), sleep, &mut [0; 16]).await;
        let mut sleep = world.clone();
        {
            let mut run = pin!(run(&mut sleep));
            let mut run = Task::new(run.as_mut());
            for _ in 0..k {
                run.poll();
            }
        }
        runner_is_gone(world);
        let completed = cell.0.borrow().ended > 2;
        world.serve(0, Server::Caller(Vec::new()));
        let mut run = pin!(run(&mut sleep));
        let mut run = Task::new(run.as_mut());
        while heard(world).len() < 12 {
            assert!(run.poll(), "stuck");
        }
        assert_eq!(&heard(world)[..12], b"hello.hello.");
        // Every life ends but the one that is.
        let Echo { lives, ended, up, .. } = &*cell.0.borrow();
        assert_eq!(*lives, ended + usize::from(*up));
        completed
    });
}
