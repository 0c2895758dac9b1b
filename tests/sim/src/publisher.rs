//! A producer: a real publisher with its runner and handles, and checks of its messages.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::drive::publisher::{self, Handle};
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::outbox::{HEADER_OVERHEAD, RECORD_OVERHEAD};
use nanonsq_core::publisher::{
    Config, Event as Report, Full, Outcome, PublishError, PublishOptions, State, Ticket,
};
use nanonsq_core::session::Session as _;
use nanonsq_core::time::{Instant, Span};
use nanonsq_models::nsqd::Settings;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, RUNNER, favour, until};
use crate::exec::application;
use crate::watch::{self, Event, Session};
use crate::world::{Clock, Dials, World};

/// The longest message that the model nsqds accept.
pub(crate) const MESSAGE_MAX: i32 = 300;
/// The secret for nsqds that require AUTH.
pub(crate) const SECRET: &[u8] = b"open sesame";

/// If no nsqd has refused anything for so long, no such message is left: a publisher whose
/// connection was closed dials again within 18 s.
const HEARD: u64 = 45_000_000;

/// Deadlines are rounded up to a multiple of this, in microseconds.
const DEADLINE_STEP: u64 = 1 << 17;

const TOPICS: [&str; 3] =
    ["a", "b", "0123456789-0123456789-0123456789-0123456789-0123456789-012345678"];

/// Units of the process, after those of `actor`.
const EVENTS: usize = 2;
const WAITING: usize = 3;
const ASKING: usize = 4;
const STOPPING: usize = 5;

/// See the [module](self).
pub(crate) struct Producer {
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<RefCell<Ledger>>,
}

struct Setup {
    config: Config<'static>,
    nsqds: Vec<Address>,
    ring: usize,
    /// The most messages in a batch that nsqds accept.
    most: usize,
    /// The most frequent action of its application.
    favourite: u64,
}

/// The records about all messages, of this process and of earlier ones.
#[derive(Default)]
struct Ledger {
    lives: Vec<Life>,
    conns: BTreeMap<ConnId, Conn>,
    queue: VecDeque<Draft>,
    /// The ticket for whose outcome a task waits.
    asked: Option<Ticket>,
    stop: bool,
    /// The number of messages that the next stored command must have: the whole backlog.
    backlog: Option<u32>,
    /// When an nsqd last refused a command.
    refused: u64,
    /// When the newest connection came up, by the publisher's clock.
    up: Instant,
    /// True if the publisher is connected or stopped and has nothing to do.
    is_idle: bool,
}

#[derive(Default)]
struct Life {
    drafts: u32,
    /// Messages by ticket.
    accepted: Vec<Message>,
    /// Tickets by the number of the draft.
    tickets: BTreeMap<u32, u64>,
    /// Messages that failed, and when that was reported.
    failed: BTreeMap<u64, (Outcome, u64)>,
    resolved: u64,
    forgotten: u64,
    /// Tickets in the order in which they first reached an nsqd.
    arrived: Vec<u64>,
    /// Messages by the time at which they have to be final.
    expiring: BTreeSet<(Instant, u64)>,
    /// True once a message became final on the current connection.
    good: bool,
    done: u64,
    connections: u32,
}

struct Message {
    ticket: Ticket,
    copies: u64,
    expires: bool,
    too_long: bool,
    forbidden: bool,
}

/// A message that is not published yet.
struct Draft {
    number: u32,
    topic: TopicName,
    body: Vec<u8>,
    options: PublishOptions,
}

struct Conn {
    life: usize,
    opened: u64,
    resolved: u64,
    last: Option<u64>,
}

impl Producer {
    pub(crate) fn new(
        world: &World,
        me: usize,
        nsqds: usize,
        (auth, tls, most): (bool, bool, usize),
        random: &mut Random,
    ) -> Self {
        let ms = |random: &mut Random, from: &[u32]| Span::from_millis(random.pick(from));
        let config = Config {
            auth_secret: auth.then_some(SECRET),
            heartbeat: ms(random, &[1000, 5000, 30_000, 60_000]),
            connect_timeout: ms(random, &[1000, 5000]),
            reply_timeout: ms(random, &[1000, 3000, 10_000]),
            reconnect_spread: ms(random, &[0, 0, 0, 2000]),
            close_timeout: ms(random, &[0, 100, 1000, 20_000]),
            left_out_for: ms(random, &[1000, 10_000, 60_000]),
            batch_bytes: random.pick(&[1, 200, 1 << 20]),
            batch_messages: random.pick(&[1, 2, 10, 10_000]),
            full: random.pick(&[Full::Refuse, Full::Refuse, Full::DropOldest]),
            seed: random.below(1 << 32) as u32,
            ..Config::new()
        };
        let first = random.below(nsqds as u64) as usize;
        // The first nsqd may require TLS and accept nothing.
        let least = if tls { 2 } else { 1 };
        let count = random.between(least, nsqds as u64) as usize;
        let nsqds = (first..first + count)
            .map(|n| format!("nsqd{}:4150", n % nsqds).parse().expect("an address"))
            .collect();
        let ring = random.pick(&[85, 200, 500, 1000, 4096]);
        let favourite = random.below(10);
        let setup = Rc::new(Setup { config, nsqds, ring, most, favourite });
        watch::trace(|| {
            format!("node{me} publishes to {:?}: {config:?}, ring {ring}", setup.nsqds)
        });
        Self { world: world.clone(), me, setup, state: Rc::default() }
    }
}

/// Returns the settings that all nsqds of a simulation share.
pub(crate) fn nsqd_settings(auth: bool, max_rdy_count: u64, tls: bool, most: usize) -> Settings {
    Settings {
        max_msg_size: MESSAGE_MAX,
        max_rdy_count,
        secret: auth.then(|| SECRET.to_vec()),
        tls,
        most,
        ..Settings::default()
    }
}

impl Actor for Producer {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(6, 1);
        self.state.borrow_mut().lives.push(Life::default());
        watch::add((self.me, 0), 0);
        let process = run(
            self.world.clone(),
            self.me,
            self.setup.clone(),
            self.state.clone(),
            mailbox.clone(),
        );
        (Box::pin(process), mailbox)
    }

    fn seen(&mut self, _: Session, conn: ConnId, seen: Seen) {
        let now = self.world.now();
        let ledger = &mut *self.state.borrow_mut();
        match seen {
            Seen::Opened => {
                let life = ledger.lives.len() - 1;
                let resolved = ledger.lives[life].resolved;
                ledger.up = Instant::from_micros(self.world.clock(self.me));
                ledger.conns.insert(conn, Conn { life, opened: now, resolved, last: None });
            }
            Seen::Stored { topic, bodies, batch } => {
                let Config { batch_bytes, batch_messages, .. } = self.setup.config;
                let count = bodies.len() as u32;
                assert!(count <= batch_messages, "a batch of {count} messages");
                let bytes: usize = bodies.iter().map(|body| RECORD_OVERHEAD + body.len()).sum();
                assert!(count < 2 || bytes <= batch_bytes as usize, "a batch of {bytes} bytes");
                assert!(batch || count == 1, "only a batch has several");
                if let Some(backlog) = ledger.backlog.take() {
                    assert_eq!(count, backlog, "a backlog of one topic leaves as one batch");
                }
                for body in bodies {
                    ledger.arrives(conn, &topic, &body);
                }
            }
            Seen::Refused { words } => {
                watch::trace(|| format!("nsqd refuses: {words}"));
                ledger.refused = now;
            }
            Seen::Overdue(_)
            | Seen::Ready { .. }
            | Seen::Finished { .. }
            | Seen::TakenBack { .. }
            | Seen::Requeued { .. }
            | Seen::Alive => {}
        }
    }

    /// Each of several refused messages costs a connection, and more if the reset overtakes the
    /// error.
    fn is_settled(&self) -> bool {
        let ledger = self.state.borrow();
        ledger.is_idle || ledger.refused + HEARD <= self.world.now()
    }

    fn died(&mut self) {
        let ledger = &mut *self.state.borrow_mut();
        ledger.life().verify(&self.setup.config);
        ledger.queue.clear();
        ledger.asked = None;
        ledger.stop = false;
        ledger.backlog = None;
        ledger.up = Instant::NEVER;
    }
}

impl Life {
    /// Checks the outcomes of the messages.
    fn verify(&self, config: &Config<'_>) {
        let mut unnamed = 0;
        for (ticket, message) in (0..self.resolved).zip(&self.accepted) {
            let outcome = self.failed.get(&ticket).map_or(Outcome::Acknowledged, |failed| failed.0);
            match outcome {
                Outcome::Acknowledged => unnamed += u64::from(message.copies == 0),
                Outcome::Rejected(code) => {
                    let why = message.too_long || message.forbidden;
                    assert!(why, "{ticket} was rejected with {code} without a reason");
                    let stored = message.copies > 0 && !message.forbidden;
                    assert!(!stored, "{ticket} was rejected and stored");
                }
                Outcome::Expired => assert!(message.expires, "{ticket} had no deadline"),
                Outcome::Dropped => {
                    assert_eq!(
                        config.full,
                        Full::DropOldest,
                        "{ticket} was dropped, against the configuration"
                    );
                }
                Outcome::Forgotten => panic!("{ticket}: an event reports Forgotten"),
            }
        }
        assert!(unnamed <= self.forgotten, "{unnamed} messages were acknowledged and lost");
        // Messages that were never given up arrived in the order of publishing.
        let kept = self.arrived.iter().filter(|ticket| !self.failed.contains_key(*ticket));
        assert!(self.forgotten > 0 || kept.is_sorted(), "messages overtook each other");
    }
}

impl Ledger {
    fn life(&mut self) -> &mut Life {
        self.lives.last_mut().expect("a life")
    }

    /// Records a message that an nsqd stored.
    fn arrives(&mut self, conn: ConnId, topic: &str, body: &[u8]) {
        let mut words = body.split(|&b| b == b'/').map(String::from_utf8_lossy);
        let mut number = || words.next().and_then(|word| word.parse::<u32>().ok());
        let (Some(life), Some(draft)) = (number(), number()) else {
            panic!("nobody published {}", body.escape_ascii())
        };
        assert_eq!(words.next().as_deref(), Some(topic), "the topic it was published to");
        let conn = self.conns.get_mut(&conn).expect("an open connection");
        assert_eq!(conn.life, life as usize, "a process publishes only its own messages");
        let life = &mut self.lives[conn.life];
        let ticket = life.tickets[&draft];
        assert!(conn.last < Some(ticket), "out of order on one connection: {ticket}");
        conn.last = Some(ticket);
        assert!(ticket >= conn.resolved, "{ticket} was final when the connection came up");
        if let Some((outcome, told)) = life.failed.get(&ticket) {
            assert!(*told >= conn.opened, "{ticket} was {outcome} when the connection came up");
        }
        let message = &mut life.accepted[ticket as usize];
        if message.copies == 0 {
            life.arrived.push(ticket);
        }
        message.copies += 1;
    }

    /// Makes a message.
    fn draft(&mut self, random: &mut Random, now: Instant) -> Draft {
        let topic = if random.one_in(30) { "forbidden" } else { random.pick(&TOPICS) };
        let mut draft = self.plain_draft(topic);
        let body = &mut draft.body;
        let len = if random.one_in(40) { 301 } else { random.between(1, 60) as usize };
        body.resize(len.max(body.len()), b'x');
        let defer = random.one_in(20).then_some(Span::from_millis(random.below(9000) as u32));
        let ttl = Span::from_millis(random.pick(&[0, 100, 1000, 20_000]));
        let deadline = random.one_in(8).then(|| now.after(ttl));
        draft.options = PublishOptions { defer, deadline };
        draft
    }

    /// Makes a short message without options.
    fn plain_draft(&mut self, topic: &str) -> Draft {
        let life = self.lives.len() - 1;
        let number = self.life().drafts;
        self.life().drafts += 1;
        let topic = TopicName::new(topic).expect("a name");
        let body = format!("{life}/{number}/{topic}/").into_bytes();
        Draft { number, topic, body, options: PublishOptions::default() }
    }

    /// Publishes a message at once; returns false if there was no room.
    fn publish(
        &mut self,
        random: &mut Random,
        now: Instant,
        handle: &Publisher<'_>,
        setup: &Setup,
        session: Session,
    ) -> bool {
        let draft = self.draft(random, now);
        watch::event(session, Event::Work);
        let free = handle.look(|p| setup.ring - p.outbox_used()).unwrap_or_default();
        let result = handle.try_publish_with(&draft.topic, &draft.body, draft.options);
        let full = result == Err(PublishError::Full);
        let most = HEADER_OVERHEAD + RECORD_OVERHEAD + draft.topic.as_str().len();
        assert!(!full || free < most + draft.body.len(), "rejected, though there is room");
        self.answered(&draft, result, setup.ring);
        !full
    }

    /// Records the publisher's result for a draft.
    fn answered(&mut self, draft: &Draft, result: Result<Ticket, PublishError>, ring: usize) {
        let life = self.life();
        match result {
            Ok(ticket) => {
                assert_eq!(ticket.number(), life.accepted.len() as u64, "tickets count up");
                if let Some(deadline) = draft.options.deadline {
                    let at = Instant::from_micros(deadline.as_micros() | (DEADLINE_STEP - 1));
                    life.expiring.insert((at, ticket.number()));
                }
                life.tickets.insert(draft.number, ticket.number());
                life.accepted.push(Message {
                    ticket,
                    copies: 0,
                    expires: draft.options.deadline.is_some(),
                    too_long: draft.body.len() > MESSAGE_MAX as usize,
                    forbidden: draft.topic.as_str() == "forbidden",
                });
            }
            Err(PublishError::Full) => watch::count("outbox full"),
            Err(PublishError::TooLarge { .. }) => {
                let need = HEADER_OVERHEAD + RECORD_OVERHEAD + draft.topic.as_str().len();
                assert!(need + draft.body.len() > ring, "it would fit");
            }
            Err(PublishError::Stopped) => assert!(self.stop, "Stopped, but nobody called stop"),
            Err(error) => panic!("{error}"),
        }
    }

    /// Records an event of the publisher.
    fn on_event(&mut self, event: Report, now: u64) {
        let life = self.life();
        match event {
            Report::Failed { first, count, outcome } => {
                for ticket in first.number()..first.number() + u64::from(count) {
                    let before = life.failed.insert(ticket, (outcome, now));
                    assert!(before.is_none(), "{ticket} has two outcomes");
                }
            }
            Report::Forgotten { count } => life.forgotten += u64::from(count),
            Report::Resolved { below } => {
                assert!(below.number() > life.resolved, "final once");
                life.resolved = below.number();
            }
            Report::Connected { .. } | Report::Disconnected { .. } | Report::LeftOut { .. } => {}
            _ => panic!("a new kind of event"),
        }
    }
}

type Publisher<'a> = Handle<'a, NoopRawMutex>;

async fn run(
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<RefCell<Ledger>>,
    mailbox: Rc<Mailbox>,
) {
    let session = (me, 0);
    let units = &mailbox.units;
    let (config, nsqds, mut ring) = (setup.config, setup.nsqds.clone(), vec![0; setup.ring]);
    let mut resources = publisher::Resources::<NoopRawMutex>::new();
    let dials = Dials(world.clone(), session);
    let clock = Clock::of_session(&world, session);
    let (handle, mut runner) =
        publisher::new(&mut resources, &config, &nsqds, &mut ring, dials, clock)
            .expect("a good configuration");

    let mut events = pin!(async {
        loop {
            let event = handle.event().await;
            state.borrow_mut().on_event(event, world.now());
        }
    });
    let mut waiting = pin!(async {
        loop {
            let draft = until(|| state.borrow_mut().queue.pop_front()).await;
            let result = handle.publish_with(&draft.topic, &draft.body, draft.options).await;
            state.borrow_mut().answered(&draft, result, setup.ring);
        }
    });
    let mut asking = pin!(async {
        loop {
            let ticket = until(|| state.borrow().asked).await;
            let outcome = handle.outcome(ticket).await;
            assert_eq!(
                handle.look(|p| p.outcome(ticket)),
                Some(Some(outcome)),
                "a final outcome stays"
            );
            state.borrow_mut().asked = None;
        }
    });
    let mut stopping = pin!(async {
        until(|| state.borrow().stop.then_some(())).await;
        handle.stop(&Clock::of_handle(&world, me)).await;
        std::future::pending::<()>().await
    });

    loop {
        let mut run = pin!(runner.run());
        let again = poll_fn(|_| {
            while let Some((unit, causes)) = units.take(world.now()) {
                let waker = units.waker(unit);
                let cx = &mut Context::from_waker(&waker);
                match unit {
                    RUNNER => {
                        let (moves, before) = (world.moves(me), print(&handle));
                        let _ = run.as_mut().poll(cx);
                        let moved = moves != world.moves(me);
                        units.judge(causes, moved || before != print(&handle));
                        let now = Instant::from_micros(world.clock(me));
                        check_redial(&handle, state.borrow_mut().life(), now, &config);
                    }
                    ORDERS => {
                        while let Some(order) = mailbox.next_order() {
                            if matches!(order, Order::Restart) {
                                watch::event(session, Event::Dropped);
                                units.wake(RUNNER);
                                return Poll::Ready(true);
                            }
                            let stopped = handle.look(|p| p.state()) == Some(State::Stopped);
                            if stopped && matches!(&order, Order::Act(r) if r.clone().one_in(2)) {
                                // A stopped publisher has no further use.
                                return Poll::Ready(false);
                            }
                            let now = Instant::from_micros(world.clock(me));
                            application(|| {
                                obey(order, &handle, now, &setup, &state, &mailbox, session)
                            });
                        }
                    }
                    EVENTS => drop(application(|| events.as_mut().poll(cx))),
                    WAITING => drop(application(|| waiting.as_mut().poll(cx))),
                    ASKING => drop(application(|| asking.as_mut().poll(cx))),
                    _ => {
                        let _ = application(|| stopping.as_mut().poll(cx));
                        let now = handle.look(|p| p.state()).expect("not within a look");
                        if now == State::Stopped {
                            watch::set_word(session, "Idle");
                        } else {
                            watch::set_state(session, &now);
                        }
                    }
                }
                check(&handle, setup.ring);
            }
            let now = Instant::from_micros(world.clock(me));
            let ledger = &mut state.borrow_mut();
            ledger.is_idle = ledger.stop || is_idle(&handle);
            check_quiet(&handle, ledger, now);
            Poll::Pending
        })
        .await;
        if !again {
            return;
        }
    }
}

/// Returns a value that differs whenever the publisher changed.
fn print(handle: &Publisher<'_>) -> impl PartialEq + use<> {
    handle.look(|p| (p.version(), p.counters(), p.deadline(), p.outbox_used()))
}

/// Returns whether the publisher is connected and has nothing to publish.
fn is_idle(handle: &Publisher<'_>) -> bool {
    handle.look(|p| p.state() == State::Ready && p.counters().pending == 0) == Some(true)
}

/// Checks what holds after every poll.
fn check(handle: &Publisher<'_>, ring: usize) {
    handle.inspect(|p| {
        let c = p.counters();
        let settled = c.acknowledged + c.rejected + c.expired + c.dropped;
        assert_eq!(c.accepted, settled + c.pending, "each message has one outcome");
        assert!(p.outbox_used() <= ring, "the ring is not overfull");
    });
}

/// Checks, when all futures are pending, that no waiting task and no deadline was forgotten.
fn check_quiet(handle: &Publisher<'_>, ledger: &mut Ledger, now: Instant) {
    handle.inspect(|p| {
        if let Some(ticket) = ledger.asked {
            assert_eq!(p.outcome(ticket), None, "a task that waits for an outcome was not woken");
        }
        assert_eq!(p.poll_event(), None, "a task that waits for events was not woken");
        let life = ledger.life();
        while let Some(&(at, ticket)) = life.expiring.first().filter(|(at, _)| *at <= now) {
            // The publisher may have forgotten an outcome that it reported.
            let told = life.forgotten > 0 || life.failed.contains_key(&ticket);
            let known = p.outcome(life.accepted[ticket as usize].ticket).is_some();
            assert!(told || known, "{ticket} is not final at its deadline {at:?}");
            life.expiring.pop_first();
        }
    });
}

/// The longest wait after connections that came up and were of no use (`time::Backoff`).
const SHORT: Span = Span::from_secs(16);

/// Checks that the publisher dials at once after a connection that was good.
fn check_redial(handle: &Publisher<'_>, life: &mut Life, now: Instant, config: &Config<'_>) {
    handle.inspect(|p| {
        let c = p.counters();
        let done = c.acknowledged + c.late + c.rejected;
        life.good &= life.connections == c.connections;
        life.good |= life.done != done;
        (life.connections, life.done) = (c.connections, done);
        match p.state() {
            State::Ready | State::Closing(_) => {}
            State::Waiting if life.good => {
                let at_once = now.after(config.reconnect_spread);
                assert!(p.deadline() <= at_once, "waits after a good connection");
                life.good = false;
            }
            // Only if all nsqds refused may the wait be longer.
            State::Waiting => {
                let soon = config.reconnect_cap.max(SHORT).max(config.reconnect_spread);
                assert!(
                    p.deadline() <= now.after(soon),
                    "waits, though another nsqd could be tried"
                );
                life.good = false;
            }
            _ => life.good = false,
        }
    });
}

fn obey(
    order: Order,
    handle: &Publisher<'_>,
    now: Instant,
    setup: &Setup,
    state: &RefCell<Ledger>,
    mailbox: &Mailbox,
    session: Session,
) {
    let trace = |what: &str| watch::trace_session(session, || what.to_owned());
    let ledger = &mut *state.borrow_mut();
    match order {
        Order::Act(mut random) => match favour(&mut random, setup.favourite, 10) {
            0 if ledger.asked.is_none() && !ledger.life().accepted.is_empty() => {
                trace("waits for an outcome");
                let last = ledger.life().accepted.len() as u64 - 1;
                let first = ledger.life().resolved.saturating_sub(3).min(last);
                let ticket = random.between(first, last) as usize;
                ledger.asked = Some(ledger.life().accepted[ticket].ticket);
                mailbox.units.wake(ASKING);
            }
            1 if random.one_in(2) => {
                trace("publishes, and stops");
                for _ in 0..random.pick(&[0, 10, 30]) {
                    ledger.publish(&mut random, now, handle, setup, session);
                }
                watch::event(session, Event::Stop);
                ledger.stop = true;
                mailbox.units.wake(STOPPING);
            }
            2 | 3 => {
                trace("publishes, and waits for room");
                for _ in 0..random.between(1, 30) {
                    let draft = ledger.draft(&mut random, now);
                    ledger.queue.push_back(draft);
                }
                mailbox.units.wake(WAITING);
            }
            _ => {
                trace("publishes");
                for _ in 0..random.pick(&[1, 1, 1, 2, 5, 30]) {
                    ledger.publish(&mut random, now, handle, setup, session);
                }
            }
        },
        Order::Settled(mut random) => {
            finish(handle, ledger, &setup.config);
            let Config { batch_messages, batch_bytes, heartbeat, .. } = setup.config;
            let whole = batch_messages.min(batch_bytes) > 1000 && setup.most > 5;
            // A batch size that a refusal reduced grows back by the second heartbeat of a
            // connection.
            let up = ledger.up.after(heartbeat).after(heartbeat);
            let grown = ledger.up != Instant::NEVER && up <= now;
            if !ledger.stop && whole && grown && setup.ring > 200 {
                watch::count("a backlog that is one batch");
                ledger.backlog = Some(5);
                // The last message has another topic and keeps others from joining.
                for topic in [TOPICS[0]; 5].into_iter().chain([TOPICS[1]]) {
                    let draft = ledger.plain_draft(topic);
                    let result = handle.try_publish(&draft.topic, &draft.body);
                    ledger.answered(&draft, result, setup.ring);
                }
            }
            // The ring accepts exactly as much as fits, and drains again until the end.
            if !ledger.stop && setup.config.full == Full::Refuse {
                while ledger.publish(&mut random, now, handle, setup, session) {}
            }
        }
        Order::End => finish(handle, ledger, &setup.config),
        Order::Restart => {}
    }
}

/// Checks the messages long after the last fault.
fn finish(handle: &Publisher<'_>, ledger: &mut Ledger, config: &Config<'_>) {
    let stopped = ledger.stop;
    let life = ledger.life();
    let counters = handle.counters();
    if !stopped {
        let state = handle.look(|p| p.state());
        assert_eq!(state, Some(State::Ready), "not connected, though nothing is wrong");
        assert_eq!(counters.pending, 0, "messages wait, though nothing is wrong");
        assert_eq!(handle.look(|p| p.outbox_used()), Some(0), "final messages take room");
        let failures = counters.rejected + counters.expired + counters.dropped;
        let told = life.failed.len() as u64 + life.forgotten;
        assert_eq!(failures, told, "a failure was not reported exactly once");
    }
    let extra: u64 = life.accepted.iter().map(|message| message.copies.saturating_sub(1)).sum();
    assert!(extra <= counters.possible_duplicates, "{extra} duplicates, more than counted");
    life.verify(config);
}
