//! A node with the tables and the store of `examples/board`, an application that publishes like a
//! sensor, and an honest consumer. The clients in `hostile` work against them.
//!
//! Whatever hostile clients do, the application publishes within [`LIMIT`], and its messages reach
//! the consumer.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::Sleep as _;
use nanonsq_core::drive::nsqd::{self, Handle, Settings};
use nanonsq_core::name::TopicName;
use nanonsq_core::nsqd::{ArenaStatus, Config, Full, HttpConfig, TopicStatus};
use nanonsq_core::registration::Config as LookupConfig;
use nanonsq_core::time::Span;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, RUNNER};
use crate::exec::application;
use crate::process;
use crate::schedule::FAULTY;
use crate::script::{Part, pause, play};
use crate::watch::{self, Event, Session};
use crate::world::{Clock, Port, World};

/// The sizes of `examples/board`.
const TOPICS: usize = 4;
const CHANNELS: usize = 6;
const CLIENTS: usize = 4;
const IN_FLIGHT: usize = 25;
const HTTP: usize = 2;
const PEERS: usize = 2;
const RX: usize = 256;
const STORE: usize = 32 * 1024;

type Sessions = process::Sessions<CLIENTS, HTTP, PEERS>;
/// The session of the application's alarm, behind all others.
const ALARM: usize = Sessions::ASKER + 1;

/// The device's own topics: the one that is consumed, and those without a consumer.
pub(crate) const READINGS: &str = "readings";
pub(crate) const OTHERS: [&str; 2] = ["reports", "replies"];
/// The consumer's channel of `readings`.
pub(crate) const ARCHIVE: &str = "archive";

/// The longest message of the application: as many as may be in flight in both channels of its
/// topic fit into the store and leave some room.
const BODY_MAX: u64 = 60;

/// The number of blocks that such a message takes.
const READING_BLOCKS: u32 = 2;

/// The most messages in flight at the consumer.
const RDY: u32 = 20;

/// The longest that the application waits for room, in microseconds.
pub(crate) const LIMIT: u64 = 2_000_000;
/// The longest way of a message to the consumer in microseconds, unless its channel is shared.
const ARRIVES: u64 = 5_000_000;
/// The longest time for which the announced blocks stay the same, in microseconds: that of a body
/// that never comes, and of one over HTTP.
const ANNOUNCED: u64 = 30_000_000;

/// When the messages of hostile clients have expired, in milliseconds.
const OLD: u64 = FAULTY + 325_000;

/// The messages that the application published and the consumer received.
#[derive(Default)]
pub(crate) struct Ledger {
    /// Readings by number: when it was accepted, and how often it was received.
    sent: RefCell<BTreeMap<u32, (u64, u32)>>,
    /// True once a hostile client subscribed to the consumer's channel.
    pub(crate) shared: Cell<bool>,
    /// True once a hostile client created topics or channels over HTTP.
    pub(crate) named: Cell<bool>,
    /// A topic with messages and no channel that is not the application's.
    junk: RefCell<Option<String>>,
}

/// The use of the store.
#[derive(Default)]
struct Room {
    /// The blocks that were announced at the latest check, and since when.
    announced: (u32, u64),
    /// True once a client received messages of another topic than the readings.
    consumed: bool,
}

/// The node's tables at the latest check.
#[derive(Default)]
struct Tables {
    /// Channels that have delivered messages.
    used: BTreeSet<Names>,
    /// Channels, when each last had a client, and whether its topic had messages since.
    waits: BTreeMap<Names, (u64, bool)>,
    /// Topics that can be removed without loss.
    spare: BTreeSet<String>,
    topics_refused: u32,
}

/// The names of a topic and a channel.
type Names = (String, String);

/// See the [module](self).
pub(crate) struct Board {
    world: World,
    me: usize,
    ports: (Port, Port),
    setup: Rc<Setup>,
    ledger: Rc<Ledger>,
}

struct Setup {
    config: Config<'static>,
    /// The longest time between readings, in milliseconds.
    period: u64,
    dice: Random,
}

impl Board {
    pub(crate) fn new(
        world: &World,
        me: usize,
        ports: (Port, Port),
        ledger: &Rc<Ledger>,
        random: &mut Random,
    ) -> Self {
        let seed = random.below(1 << 32) as u32;
        let config = Config { boot: 1, seed, full: Full::DropAnswered, ..Config::new() };
        let period = random.pick(&[200, 1000, 5000]);
        watch::trace(|| format!("node{me} is a board, with a reading each {period} ms"));
        let setup = Rc::new(Setup { config, period, dice: random.fork() });
        Self { world: world.clone(), me, ports, setup, ledger: ledger.clone() }
    }
}

impl Actor for Board {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        // The last unit publishes.
        let mailbox = Mailbox::new(3, Sessions::ASKER as u32);
        Sessions::set_up(&self.world, self.me, &self.ports);
        let ports = self.ports.clone();
        let (world, setup, ledger) = (self.world.clone(), self.setup.clone(), self.ledger.clone());
        (Box::pin(run(world, self.me, setup, ledger, ports, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, _: Seen) {}
}

type Node<'a> = Handle<'a, NoopRawMutex, Clock>;

async fn run(
    world: World,
    me: usize,
    setup: Rc<Setup>,
    ledger: Rc<Ledger>,
    ports: (Port, Port),
    mailbox: Rc<Mailbox>,
) {
    let mut store = vec![0xee; STORE];
    let mut resources = nsqd::Resources::<
        NoopRawMutex,
        TOPICS,
        CHANNELS,
        CLIENTS,
        IN_FLIGHT,
        HTTP,
        PEERS,
        RX,
    >::new();
    let (sessions, clock) = Sessions::new(&world, me);
    let lookup = LookupConfig::new(process::info("nsqd0"));
    let settings =
        Settings { node: &setup.config, http: &HttpConfig::new(), lookup: &lookup, lookupds: &[] };
    let (ports, dialers) = (sessions.ports(&ports, None), sessions.dialers());
    let (handle, mut runner) =
        nsqd::new(&mut resources, settings, &mut store, ports, dialers, clock)
            .expect("a good configuration");
    let topic = |name| TopicName::new(name).expect("a name");
    let readings = topic(READINGS);
    for own in [READINGS].into_iter().chain(OTHERS) {
        handle.create(&topic(own), None).expect("room for the device's own");
    }
    sessions.run();
    let mut run = pin!(runner.run());
    let (mut tables, mut room) = (Tables::default(), Room::default());
    let mut publishing = pin!(publish(&world, me, &setup, &ledger, &handle, &readings));
    mailbox
        .attend(&world, |unit, cx| {
            match unit {
                RUNNER => drop(run.as_mut().poll(cx)),
                ORDERS => {
                    while let Some(order) = mailbox.next_order() {
                        if matches!(order, Order::End) {
                            finish(&handle, &world, &ledger);
                        }
                    }
                }
                _ => drop(application(|| publishing.as_mut().poll(cx))),
            }
            handle.inspect(|node| sessions.read_states(node));
            check(&handle);
            tables.check(&handle, &ledger, world.now());
            room.check(&handle, &ledger, world.now());
        })
        .await;
}

/// Publishes readings for ever; checks that each call completes within the limit.
async fn publish(
    world: &World,
    me: usize,
    setup: &Setup,
    ledger: &Ledger,
    handle: &Node<'_>,
    readings: &TopicName,
) {
    let mut random = setup.dice.clone();
    let mut clock = Clock::of_session(world, (me, ALARM));
    for number in 0.. {
        // Now and then several without a pause.
        if !random.one_in(8) {
            let ms = 1 + random.below(setup.period);
            pause(&mut clock, Span::from_millis(ms as u32)).await;
        }
        let mut body = format!("{number}/").into_bytes();
        body.resize(random.between(10, BODY_MAX) as usize, b'r');
        (0..Sessions::FIRST_PEER).for_each(|n| watch::event((me, n), Event::Work));
        let (began, alarm) = (world.now(), clock.now().after(Span::from_millis(2000)));
        let mut published = pin!(handle.publish(readings, &body));
        let published = poll_fn(|cx| {
            let published = published.as_mut().poll(cx);
            if published.is_pending() {
                watch::count("application waits");
                let _ = clock.poll_until(cx, alarm);
                let waited = world.now() - began;
                assert!(waited < LIMIT, "the application waits for {waited} us: {}", seen(handle));
            }
            published
        });
        published.await.expect("a message that fits, in a topic that is there");
        ledger.sent.borrow_mut().entry(number).or_insert((world.now(), 0));
    }
}

/// Returns the state of the node's tables and store, for a failure.
fn seen(handle: &Node<'_>) -> String {
    let seen = handle.look(|node| {
        let topics: Vec<_> = node
            .topics()
            .map(|topic| (topic, node.channels(topic.name).collect::<Vec<_>>()))
            .collect();
        format!("{:?} {topics:?}", node.store())
    });
    seen.unwrap_or_default()
}

/// Checks what holds after every poll.
fn check(handle: &Node<'_>) {
    handle.look(|node| {
        let store = node.store();
        assert!(store.promised <= store.free && store.free <= store.blocks, "{store:?}");
        for own in [READINGS].into_iter().chain(OTHERS) {
            let kept = node.topics().any(|topic| topic.name.as_str() == own);
            assert!(kept, "the application's topic {own} was removed");
        }
    });
}

impl Room {
    /// Checks that no client takes room that is not for it, or keeps what it announced and never
    /// sends.
    fn check(&mut self, handle: &Node<'_>, ledger: &Ledger, now: u64) {
        handle.look(|node| {
            let ArenaStatus { blocks, free, promised, announced } = node.store();
            let config = node.config();
            let share = |percent: u8| (blocks * u32::from(percent)).div_ceil(100);

            let most = share(config.announced_percent);
            assert!(announced <= most, "{announced} blocks are announced, more than {most}");
            if self.announced.0 != announced {
                self.announced = (announced, now);
            }
            let unchanged = now - self.announced.1;
            let may_stay = announced == 0 || unchanged < ANNOUNCED;
            assert!(may_stay, "{announced} blocks were announced for {unchanged} us");

            // An upper bound of the application's blocks.
            let mut own = 2 * CLIENTS as u32;
            for topic in node.topics() {
                let is_readings = topic.name.as_str() == READINGS;
                let mut messages = topic.depth;
                for channel in node.channels(topic.name) {
                    messages += channel.depth + channel.in_flight + channel.deferred;
                    self.consumed |= !is_readings && channel.in_flight > 0;
                }
                if is_readings {
                    own += READING_BLOCKS * messages;
                }
            }
            // If as many blocks of it are dropped, there is room for another message.
            let is_junk =
                |it: &TopicStatus<'_>| !is_own(it.name) && it.channels == 0 && it.depth > own;
            let junk = node.topics().find(is_junk).map(|it| it.name.to_string());
            ledger.junk.replace(junk);

            let left = (free - promised) + own;
            let reserve = share(config.reserve_percent) - 1;
            assert!(left >= reserve, "clients left only {left} of {blocks} blocks");
            let most = share(config.unconsumed_percent);
            let foreign = (blocks - free).saturating_sub(own + announced);
            let fair = self.consumed || foreign <= most;
            assert!(fair, "unconsumed messages take {foreign} blocks, more than {most}");
        });
    }
}

impl Tables {
    /// Checks that channels in use stay, and that no topic is refused while others are unused.
    fn check(&mut self, handle: &Node<'_>, ledger: &Ledger, now: u64) {
        handle.look(|node| {
            let mut there = BTreeSet::new();
            let mut spare = BTreeSet::new();
            let mut waits = BTreeMap::new();
            for topic in node.topics() {
                let mut is_spare = topic.depth == 0 && !is_own(topic.name);
                for channel in node.channels(topic.name) {
                    let names = (topic.name.to_string(), channel.name.to_string());
                    if channel.in_flight > 0 && !channel.name.is_ephemeral() {
                        self.used.insert(names.clone());
                    }
                    is_spare &=
                        channel.clients == 0 && topic.messages == 0 && !self.used.contains(&names);
                    if !channel.name.is_ephemeral() {
                        let before = self.waits.get(&names).filter(|_| channel.clients == 0);
                        let since = before.map_or(now, |(since, _)| *since);
                        waits.insert(names.clone(), (since, topic.messages > 0));
                    }
                    there.insert(names);
                }
                if is_spare {
                    spare.insert(topic.name.to_string());
                }
            }
            let gone: Vec<_> = self.used.difference(&there).collect();
            assert!(gone.is_empty(), "channels that delivered messages were removed: {gone:?}");
            for (names, (since, misses)) in &self.waits {
                let absent = now - since;
                let may_go = !misses || absent > 59_000_000;
                assert!(
                    there.contains(names) || may_go,
                    "{names:?} was removed {absent} us after its client left"
                );
            }
            let refused = node.counters().topics_refused;
            if refused > self.topics_refused {
                watch::count("topic refused");
                // A topic created over HTTP is removed only for clients.
                let kept: Vec<_> = spare.intersection(&self.spare).collect();
                let fair = ledger.named.get() || kept.is_empty();
                assert!(fair, "a topic was refused though {kept:?} are unused");
            }
            *self = Self {
                used: std::mem::take(&mut self.used),
                waits,
                spare,
                topics_refused: refused,
            };
        });
    }
}

/// Returns whether the topic is the application's.
fn is_own(topic: &TopicName) -> bool {
    [READINGS].into_iter().chain(OTHERS).any(|own| own == topic.as_str())
}

/// Checks messages and tables long after the hostile clients left.
fn finish(handle: &Node<'_>, world: &World, ledger: &Ledger) {
    let sent = ledger.sent.borrow();
    let old = sent.iter().filter(|(_, (at, _))| at + ARRIVES < world.now());
    let lost: Vec<_> =
        old.filter(|(_, (_, times))| *times == 0).map(|(number, _)| number).collect();
    handle.look(|node| {
        // Messages that another consumer of the channel requeues make room for new ones.
        let readings = TopicName::new(READINGS).expect("a name");
        let archive = node.channels(&readings).find(|it| it.name.as_str() == ARCHIVE);
        let dropped = archive.map_or(0, |archive| archive.dropped);
        assert!(dropped == 0 || ledger.shared.get(), "{dropped} readings were dropped");
        let counted = lost.len() as u64 <= dropped;
        assert!(
            counted,
            "the consumer did not receive {lost:?} of {}, {dropped} dropped",
            sent.len()
        );
        assert_eq!(node.store().promised, 0, "room is promised without a client");
        for channel in node.topics().flat_map(|topic| node.channels(topic.name)) {
            let most = if channel.name.as_str() == ARCHIVE { RDY } else { 0 };
            assert!(channel.in_flight <= most, "in flight without a client: {channel:?}");
        }
    });
}

/// An honest consumer that subscribes first; long after the hostile clients, also a producer.
pub(crate) struct Consumer {
    world: World,
    me: usize,
    ledger: Rc<Ledger>,
}

impl Consumer {
    pub(crate) fn new(world: &World, me: usize, ledger: &Rc<Ledger>) -> Self {
        Self { world: world.clone(), me, ledger: ledger.clone() }
    }
}

impl Actor for Consumer {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(3, 2);
        let (world, ledger) = (self.world.clone(), self.ledger.clone());
        (Box::pin(consume(world, self.me, ledger, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, _: Seen) {}
}

async fn consume(world: World, me: usize, ledger: Rc<Ledger>, mailbox: Rc<Mailbox>) {
    let mut frames = Frames::default();
    let script = VecDeque::from([
        Part::Send(b"  V2".to_vec()),
        Part::Send(format!("SUB {READINGS} {ARCHIVE}\nRDY {RDY}\n").into_bytes()),
    ]);
    let mut consuming = pin!(play(&world, (me, 0), "nsqd0", script, Span::MAX, |bytes| {
        let mut replies = Vec::new();
        for frame in frames.read(bytes) {
            match frame {
                Frame::Heartbeat => replies.extend(b"NOP\n"),
                Frame::Response(response) => {
                    assert_eq!(response, "OK", "the honest consumer was refused")
                }
                Frame::Message { id, body } => {
                    receive(&world, &ledger, &body);
                    replies.extend([b"FIN ", &id[..], b"\n"].concat());
                }
            }
        }
        replies
    }));
    let mut producing = pin!(async {
        produce(&world, (me, 1), &ledger).await;
        std::future::pending::<()>().await
    });
    mailbox
        .attend(&world, |unit, cx| match unit {
            ORDERS => while mailbox.next_order().is_some() {},
            RUNNER => {
                let over = application(|| consuming.as_mut().poll(cx)).is_ready();
                assert!(!over, "the honest consumer's connection ended");
            }
            _ => drop(application(|| producing.as_mut().poll(cx))),
        })
        .await;
}

/// Publishes to a topic that hostile clients filled: the old messages must make room.
async fn produce(world: &World, session: Session, ledger: &Ledger) {
    let left = Span::from_millis((OLD - world.now() / 1000) as u32);
    pause(&mut Clock::of_session(world, session), left).await;
    let Some(topic) = ledger.junk.borrow().clone() else { return };
    watch::count("publishes beside junk");
    let command = [b"  V2PUB ", topic.as_bytes(), b"\n\0\0\0\x01x"].concat();
    let (mut frames, mut received) = (Frames::default(), Vec::new());
    let script = VecDeque::from([Part::Send(command)]);
    play(world, session, "nsqd0", script, Span::from_secs(10), |bytes| {
        received.extend(frames.read(bytes));
        Vec::new()
    })
    .await;
    let is_taken = matches!(&received[..], [Frame::Response(response)] if response == "OK");
    assert!(is_taken, "old messages in {topic} keep out new ones");
}

/// Records a message that the consumer received.
fn receive(world: &World, ledger: &Ledger, body: &[u8]) {
    // Other clients may publish to any topic.
    let Some(number) = number(body) else { return };
    let sent = &mut *ledger.sent.borrow_mut();
    // The message may arrive before the application's call completes.
    let (at, times) = sent.entry(number).or_insert((world.now(), 0));
    *times += 1;
    let late = world.now() - *at;
    assert_eq!(*times, 1, "reading {number} was delivered twice");
    assert!(ledger.shared.get() || late < ARRIVES, "reading {number} took {late} us");
}

/// Returns the number of a reading, or `None` for any other message.
fn number(body: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(body).ok()?;
    let (number, rest) = text.split_once('/')?;
    rest.bytes().all(|b| b == b'r').then_some(())?;
    number.parse().ok()
}

/// A frame from a server to a V2 client.
pub(crate) enum Frame {
    Heartbeat,
    Response(String),
    Message { id: [u8; 16], body: Vec<u8> },
}

/// Parses frames from the bytes of a connection.
#[derive(Default)]
pub(crate) struct Frames(Vec<u8>);

impl Frames {
    pub(crate) fn read(&mut self, bytes: &[u8]) -> Vec<Frame> {
        self.0.extend_from_slice(bytes);
        let mut frames = Vec::new();
        while let Some(size) = self.0.first_chunk() {
            let size = 4 + u32::from_be_bytes(*size) as usize;
            let Some(frame) = self.0.get(8..size) else { break };
            frames.push(match (self.0[7], frame) {
                (2, frame) => Frame::Message {
                    id: *frame[10..].first_chunk().expect("a message has an id"),
                    body: frame[26..].to_vec(),
                },
                (_, b"_heartbeat_") => Frame::Heartbeat,
                (_, response) => Frame::Response(String::from_utf8_lossy(response).into_owned()),
            });
            self.0.drain(..size);
        }
        frames
    }
}
