//! A consumer: a real one with its runner and handle, and checks of the messages that it receives
//! and of the RDY that it sends.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::consumer::{self, Config, ConnectionEvent, Exhausted, TooLarge};
use nanonsq_core::drive;
use nanonsq_core::drive::consumer::{Dialers, Handle, Message, Sources};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{Closed, Fault, LinkState, Session as _};
use nanonsq_core::time::Span;
use nanonsq_core::wire::http::BadAnswer;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, RUNNER, favour, until};
use crate::exec::application;
use crate::publisher::SECRET;
use crate::schedule::FAULTY;
use crate::watch::{self, Event, Session};
use crate::web::REFUSES;
use crate::world::{Clock, Dials, World};

pub(crate) const CONNECTIONS: usize = 2;
const MESSAGES: usize = 6;
const LOOKUPDS: usize = 2;
/// Bytes of the ring per message; a longer body takes several slots.
const SLOT: usize = 64;

/// Units of the process, after those of `actor`.
const EVENTS: usize = 2;
const TAKING: usize = 3;
const STOPPING: usize = 4;

/// See the [module](self).
pub(crate) struct Subscriber {
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<RefCell<Ledger>>,
}

struct Setup {
    config: Config<'static>,
    nsqds: Vec<Address>,
    lookupds: Vec<Address>,
    /// The number of nsqds, their RDY limit, and the nsqds that the consumer knows.
    hosts: usize,
    max_rdy_count: u16,
    reached: BTreeSet<usize>,
    /// The application never changes max_in_flight, so there are never more in flight.
    constant: bool,
    /// RDY moves between nsqds, and none of the time for it may be lost.
    rotates: bool,
    /// The application never answers late.
    prompt: bool,
    /// The application keeps all messages until it is ordered to answer.
    hoards: bool,
    /// The most frequent action of the application.
    favourite: u64,
    /// The number of nsqds in the lists that cannot be reached.
    dead: usize,
    /// The lists contain an nsqd that refuses everybody.
    refuses: bool,
}

/// The records about all messages, of this process and of earlier ones.
struct Ledger {
    /// Published messages, by nsqd and number.
    published: BTreeMap<Name, Published>,
    random: Random,
    /// The application asks for messages.
    receives: bool,
    /// Each message is finished as soon as it comes.
    diligent: bool,
    /// The latest max_in_flight.
    max: u16,
    stop: bool,
    stopped: bool,
    /// The RDY of each connection at the latest check.
    rdy: [u16; CONNECTIONS],
    /// The start of a process without faults but with many nsqds that cannot be reached, until the
    /// good ones are found.
    began: Option<u64>,
    /// The time of the latest connection to each nsqd, and of the latest permanent refusal.
    connected: BTreeMap<String, u64>,
    refused: Option<u64>,
    /// The connections that were last refused for good while other nsqds waited for a connection.
    keeps: [bool; CONNECTIONS],
}

/// An nsqd and the number of a message of it.
type Name = (usize, u32);

#[derive(Default)]
struct Published {
    /// The attempts with which the application received it.
    taken: BTreeSet<u16>,
    /// The application finished it, or the consumer was to do so.
    done: bool,
    /// The attempts with which it was finished.
    finished: Option<u16>,
    taken_back: bool,
}

/// The length of a body that does not fit into the ring; a consumer may requeue it several times.
const LARGE: usize = 500;
/// At most this many messages are left at the servers when more are published, and at most this
/// many large ones: a consumer can finish them before the world ends, also one at a time.
const BACKLOG_MAX: usize = 100;
const LARGE_MAX: usize = 5;

impl Subscriber {
    pub(crate) fn new(
        world: &World,
        me: usize,
        nsqds: usize,
        webs: usize,
        (auth, max_rdy_count, served): (bool, u16, bool),
        random: &mut Random,
    ) -> Self {
        let ms = |random: &mut Random, from: &[u32]| Span::from_millis(random.pick(from));
        let (constant, prompt) = (random.one_in(2), random.one_in(2));
        // All nsqds from the lists, or some given ones.
        let given = if webs > 0 && random.one_in(2) { 0 } else { random.between(1, nsqds as u64) };
        let reached = if webs > 0 { nsqds } else { given as usize };
        // With more nsqds than connections they take turns, and no time of a turn may be lost.
        let rotates = reached > CONNECTIONS || (served && reached > 1);
        let max_attempts = random.pick(&[0, 0, 2, 3]);
        let exhausted = random.pick(&[Exhausted::Finish, Exhausted::Deliver]);
        // Without a limit of attempts a message that is too large would be requeued for ever.
        let endless = max_attempts == 0 || exhausted == Exhausted::Deliver;
        let mut config = Config {
            auth_secret: auth.then_some(SECRET),
            heartbeat: ms(random, &[1000, 5000, 30_000, 60_000]),
            msg_timeout: random
                .pick(&[None, Some(1000), Some(5000), Some(20_000)])
                .map(Span::from_millis),
            max_in_flight: random.pick(if rotates { &[4, u16::MAX] } else { &[1, 2, 4, u16::MAX] }),
            connect_timeout: ms(random, &[1000, 5000]),
            reconnect_spread: ms(random, &[0, 0, 2000]),
            left_out_for: ms(random, &[1000, 10_000]),
            drain_timeout: ms(random, &[500, 5000]),
            close_timeout: ms(random, &[200, 1000, 20_000]),
            lookup_interval: ms(random, &[4000, 8000]),
            lookup_timeout: ms(random, &[1000, 5000]),
            grace: ms(random, &[500, 60_000]),
            rotate: ms(random, &[3000, 6000]),
            redistribute: ms(random, &[300, 2000]),
            max_attempts,
            exhausted,
            too_large: if endless { TooLarge::Finish } else { TooLarge::Requeue },
            requeue_base: ms(random, &[0, 500]),
            requeue_cap: Span::from_millis(if rotates { 500 } else { 2000 }),
            backoff_base: if constant || rotates { Span::ZERO } else { ms(random, &[0, 100]) },
            backoff_cap: Span::from_millis(2000),
            auto_touch: random.one_in(3),
            seed: random.below(1 << 32) as u32,
            ..Config::new(
                TopicName::new("feed").expect("a name"),
                ChannelName::new("c").expect("a name"),
            )
        };
        // A message that a faulty server swallowed is delivered again after two heartbeats and the
        // message timeout. With the longest of both that takes the whole faultless phase.
        if config.heartbeat == Span::from_secs(60) && config.msg_timeout.is_none() {
            config.msg_timeout = Some(Span::from_secs(20));
        }
        let address = |name: String| name.parse::<Address>().expect("an address");
        let setup = Setup {
            config,
            nsqds: (0..given).map(|n| address(format!("nsqd{n}:4150"))).collect(),
            lookupds: (0..webs).map(|n| address(format!("web{n}:4161"))).collect(),
            hosts: nsqds,
            max_rdy_count,
            reached: (0..reached).collect(),
            constant,
            rotates,
            prompt,
            hoards: !prompt && random.one_in(3),
            favourite: random.below(10),
            dead: 0,
            refuses: false,
        };
        watch::trace(|| {
            format!("node{me} consumes from {:?}, {:?}: {config:?}", setup.nsqds, setup.lookupds)
        });
        let ledger = Ledger {
            published: BTreeMap::new(),
            random: random.fork(),
            receives: true,
            diligent: false,
            max: config.max_in_flight,
            stop: false,
            stopped: false,
            rdy: [0; CONNECTIONS],
            began: None,
            connected: BTreeMap::new(),
            refused: None,
            keeps: [false; CONNECTIONS],
        };
        Self {
            world: world.clone(),
            me,
            setup: Rc::new(setup),
            state: Rc::new(RefCell::new(ledger)),
        }
    }
}

impl Subscriber {
    /// Adds `dead` nsqds to the lists that cannot be reached, and if `refuses` one that refuses
    /// everybody.
    pub(crate) fn among(mut self, dead: usize, refuses: bool) -> Self {
        let setup = Rc::get_mut(&mut self.setup).expect("nobody else has it yet");
        setup.dead = dead;
        setup.refuses = refuses;
        if setup.is_crowded() {
            // So that each nsqd has its turn before the world ends.
            setup.config.lookup_interval = Span::from_secs(4);
        }
        self
    }
}

impl Setup {
    /// Returns whether good nsqds take turns while there are useless ones.
    fn is_crowded(&self) -> bool {
        self.reached.len() > CONNECTIONS && (self.dead > 0 || self.refuses)
    }

    /// Returns the number of listed nsqds that do not work.
    fn useless(&self) -> usize {
        self.dead + usize::from(self.refuses)
    }
}

impl Actor for Subscriber {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let sessions = CONNECTIONS + LOOKUPDS;
        let mailbox = Mailbox::new(5, sessions as u32);
        for session in 0..CONNECTIONS {
            watch::add((self.me, session), 2);
        }
        for session in CONNECTIONS..sessions {
            watch::add((self.me, session), 3);
        }
        let (world, setup, state) = (self.world.clone(), self.setup.clone(), self.state.clone());
        (Box::pin(run(world, self.me, setup, state, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, seen: Seen) {
        let ledger = &mut *self.state.borrow_mut();
        match seen {
            Seen::Finished { body, attempts } => {
                let name = name(&body).expect("a message of ours");
                let Config { max_attempts, exhausted, too_large, .. } = self.setup.config;
                let over_limit = max_attempts > 0 && attempts > max_attempts;
                let given_up = over_limit && exhausted == Exhausted::Finish;
                let skipped = body.len() > SLOT * MESSAGES - 26 && too_large == TooLarge::Finish;
                let sent = ledger.published.get_mut(&name).expect("it was published");
                assert!(sent.finished.is_none(), "{name:?} was finished twice");
                let expected = sent.done || given_up || skipped;
                assert!(expected, "{name:?} was finished, but not by the application");
                sent.finished = Some(attempts);
            }
            Seen::TakenBack { body } => {
                let name = name(&body).expect("a message of ours");
                ledger.published.get_mut(&name).expect("it was published").taken_back = true;
            }
            Seen::Ready { rdy } => {
                assert!(rdy <= MESSAGES as u64, "RDY {rdy}, with room for {MESSAGES}");
            }
            Seen::Refused { words } => {
                // Another kind of server may have been dialed, a connection may break anywhere, and
                // an exiting server refuses everybody.
                let fair = [
                    "E_BAD_PROTOCOL",
                    "E_SUB_FAILED",
                    "E_AUTH_FAILED",
                    "failed to read",
                    "TLS required",
                ];
                assert!(fair.iter().any(|fair| words.contains(fair)), "nsqd refuses: {words}");
            }
            Seen::Opened
            | Seen::Stored { .. }
            | Seen::Requeued { .. }
            | Seen::Overdue(_)
            | Seen::Alive => {}
        }
    }

    fn begins_anew(&mut self) -> bool {
        let began = (self.setup.useless() > 0).then(|| self.world.now());
        self.state.borrow_mut().began = began;
        began.is_some()
    }

    fn died(&mut self) {
        let ledger = &mut *self.state.borrow_mut();
        ledger.stop = false;
        ledger.stopped = false;
        ledger.receives = true;
        ledger.max = self.setup.config.max_in_flight;
        ledger.rdy = [0; CONNECTIONS];
        ledger.refused = None;
        ledger.keeps = [false; CONNECTIONS];
    }
}

/// Returns the name of a message, or `None` if a faulty server made up the body.
fn name(body: &[u8]) -> Option<Name> {
    let mut words = body.split(|&b| b == b'/');
    let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
    let (host, number): (u32, u32) = (number()?, number()?);
    let rest = words.next()?;
    let padding = b'a' + (number % 26) as u8;
    let whole = rest.iter().all(|&b| b == padding);
    assert!(whole, "the body is not what was published: {}", body.escape_ascii());
    Some((host as usize, number))
}

type Consumer<'a> = Handle<'a, NoopRawMutex, Clock>;
type Received<'a> = Message<'a, NoopRawMutex, Clock>;

async fn run(
    world: World,
    me: usize,
    setup: Rc<Setup>,
    state: Rc<RefCell<Ledger>>,
    mailbox: Rc<Mailbox>,
) {
    let units = &mailbox.units;
    let (config, nsqds, lookupds) = (setup.config, setup.nsqds.clone(), setup.lookupds.clone());
    let mut ring = vec![0; SLOT * MESSAGES];
    let mut resources = drive::consumer::Resources::<
        NoopRawMutex,
        CONNECTIONS,
        MESSAGES,
        LOOKUPDS,
        CONNECTIONS,
    >::new();
    let next = Rc::new(RefCell::new(0));
    let clock = Clock::of_runner(&world, me, next.clone());
    let dialers = Dialers {
        nsqds: std::array::from_fn(|n| Dials(world.clone(), (me, n))),
        lookupds: std::array::from_fn::<_, LOOKUPDS, _>(|n| {
            Dials(world.clone(), (me, CONNECTIONS + n))
        }),
    };
    let sources = Sources { nsqds: &nsqds, lookupds: &lookupds };
    let (handle, mut runner) =
        drive::consumer::new(&mut resources, &config, sources, &mut ring, dialers, clock)
            .expect("a good configuration");
    read_states(&handle, me);
    // The messages that the application has not answered.
    let held: RefCell<Vec<(Name, Received<'_>)>> = RefCell::default();

    let mut events = pin!(async {
        loop {
            let event = handle.event().await;
            watch::trace_session((me, 0), || format!("reports {event:?}"));
            if let consumer::Event::Connection { index, event } = event {
                let address =
                    handle.look(|consumer| consumer.status(index)?.address.cloned()).flatten();
                let host = address.map(|address| address.host().to_owned()).unwrap_or_default();
                let waiting = handle.look(|consumer| consumer.unserved()).unwrap_or(0);
                let ledger = &mut *state.borrow_mut();
                ledger.on_event(index, event, host, waiting, &setup, &world);
            }
        }
    });
    let mut taking = pin!(async {
        loop {
            until(|| state.borrow().receives.then_some(())).await;
            let message = handle.next().await;
            watch::trace_session((me, 0), || format!("receives {:?}", message.head()));
            let ledger = &mut *state.borrow_mut();
            let Some(name) = ledger.take(&message, &config) else {
                // A faulty server made it up.
                let _ = message.finish();
                continue;
            };
            let patient =
                !ledger.diligent && !setup.prompt && (setup.hoards || ledger.random.one_in(4));
            if patient {
                held.borrow_mut().push((name, message));
            } else {
                ledger.answer(name, message);
            }
        }
    });
    let mut stopping = pin!(async {
        until(|| state.borrow().stop.then_some(())).await;
        handle.stop().await;
        state.borrow_mut().stopped = true;
        std::future::pending::<()>().await
    });

    loop {
        // The next clones of the clock belong to the sessions.
        next.replace(1);
        let mut run = pin!(runner.run_with::<64>());
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
                        check_given_up(&handle, &world, me);
                    }
                    ORDERS => {
                        while let Some(order) = mailbox.next_order() {
                            if matches!(order, Order::Restart) {
                                for session in 0..CONNECTIONS + LOOKUPDS {
                                    watch::event((me, session), Event::Dropped);
                                }
                                units.wake(RUNNER);
                                return Poll::Ready(true);
                            }
                            let ledger = &mut *state.borrow_mut();
                            if ledger.stopped
                                && matches!(&order, Order::Act(r) if r.clone().one_in(2))
                            {
                                // A stopped consumer has no further use.
                                return Poll::Ready(false);
                            }
                            let held = &mut *held.borrow_mut();
                            application(|| {
                                obey(order, &handle, &world, &setup, ledger, held, &mailbox, me)
                            });
                        }
                    }
                    EVENTS => drop(application(|| events.as_mut().poll(cx))),
                    TAKING => drop(application(|| taking.as_mut().poll(cx))),
                    _ => drop(application(|| stopping.as_mut().poll(cx))),
                }
                check(&handle, &mut state.borrow_mut());
                check_found(&handle, &mut state.borrow_mut(), &setup, world.now());
            }
            let held_count = held.borrow().len();
            check_quiet(&handle, &state.borrow(), &setup, &world, held_count, me);
            Poll::Pending
        })
        .await;
        if !again {
            return;
        }
    }
}

/// Returns a value that differs whenever the consumer changed.
fn print(handle: &Consumer<'_>) -> impl PartialEq + use<> {
    handle.inspect(|consumer| {
        let connections: [_; CONNECTIONS] = std::array::from_fn(|n| {
            let status = consumer.status(n).map(|it| (it.state, it.rdy, it.in_flight));
            (status, consumer.connection(n).map(|it| it.deadline()))
        });
        let lookupds: [_; LOOKUPDS] = std::array::from_fn(|n| {
            (consumer.lookupd_status(n), consumer.lookupd(n).map(|it| it.deadline()))
        });
        (consumer.version(), consumer.counters(), connections, lookupds)
    })
}

/// Reads the states that the application changed outside the runner, or the initial ones.
fn read_states(handle: &Consumer<'_>, me: usize) {
    handle.look(|consumer| {
        for n in 0..CONNECTIONS {
            watch::set_state((me, n), &consumer.status(n).expect("a connection").state);
        }
        for n in 0..LOOKUPDS {
            let status = consumer.lookupd_status(n).expect("an nsqlookupd");
            watch::set_state((me, CONNECTIONS + n), &status.state);
        }
    });
}

/// Checks that no healthy connection was given up.
fn check_given_up(handle: &Consumer<'_>, world: &World, me: usize) {
    for (_, session) in world.take_given_up(me) {
        let last = handle.look(|consumer| match session.checked_sub(CONNECTIONS) {
            None => consumer.status(session).expect("a connection").last,
            Some(n) => consumer.lookupd_status(n).expect("an nsqlookupd").last,
        });
        match last.flatten() {
            // The server itself refused: that is no fault of the connection.
            Some(Closed::Fault(Fault::Refused(_) | Fault::BadAnswer(BadAnswer::Status(_)))) => {}
            Some(Closed::Fault(fault)) if fault.is_permanent() => {}
            Some(Closed::Fault(fault)) => panic!("gave up a healthy connection: {fault}"),
            _ => {}
        }
    }
}

/// Checks what holds after every poll.
fn check(handle: &Consumer<'_>, ledger: &mut Ledger) {
    handle.look(|consumer| {
        let status = |n| consumer.status(n).expect("a connection");
        let rdy: [u16; CONNECTIONS] = std::array::from_fn(|n| status(n).rdy);
        let raised = rdy.iter().zip(&ledger.rdy).any(|(now, before)| now > before);
        let (sum, most) = (rdy.iter().sum::<u16>(), ledger.max.min(MESSAGES as u16));
        assert!(!raised || sum <= most, "RDY was raised to {sum} in total, more than {most}");
        ledger.rdy = rdy;
        assert!(consumer.waiting() <= MESSAGES, "more messages than slots");
    });
}

/// The most time for finding the good nsqds among the useless, in microseconds.
const FOUND: u64 = 45_000_000;

/// Checks that the good nsqds are found in time among the useless.
fn check_found(handle: &Consumer<'_>, ledger: &mut Ledger, setup: &Setup, now: u64) {
    let Some(began) = ledger.began else { return };
    let counters = handle.counters();
    if ledger.stop || counters.connections as usize >= setup.reached.len().min(CONNECTIONS) {
        watch::count("found among dead ones");
        ledger.began = None;
        return;
    }
    assert!(now < began + FOUND, "only {} nsqds found in time", counters.connections);
}

/// Checks what holds when all futures are pending.
fn check_quiet(
    handle: &Consumer<'_>,
    ledger: &Ledger,
    setup: &Setup,
    world: &World,
    held_count: usize,
    me: usize,
) {
    handle.inspect(|consumer| {
        assert_eq!(consumer.poll_event(), None, "a task that waits for events was not woken");
        let waits = ledger.receives && consumer.waiting() > 0;
        assert!(!waits, "a task that waits for messages was not woken");
        let status = |n| consumer.status(n).expect("a connection");
        let in_flight: u16 = (0..CONNECTIONS).map(|n| status(n).in_flight).sum();
        if (0..CONNECTIONS).all(|n| world.is_free((me, n))) {
            // Each connection may have received one message partly.
            let known = consumer.waiting() + held_count + CONNECTIONS;
            assert!(usize::from(in_flight) <= known, "an answer waits though it could be sent");
        }
        let counters = consumer.counters();
        let late = counters.timed_out > 0 || counters.refused > 0;
        if setup.constant && setup.prompt && !late && world.is_calm(30_000_000) {
            let most = setup.config.max_in_flight.min(MESSAGES as u16);
            assert!(in_flight <= most, "{in_flight} in flight, more than {most}");
        }
        if ledger.stopped {
            assert!(consumer.is_stopped(), "stop completed, but the consumer has not stopped");
            assert_eq!(in_flight, 0, "in flight without a connection");
        }
    });
}

impl Ledger {
    /// Records an event of a connection.
    fn on_event(
        &mut self,
        index: usize,
        event: ConnectionEvent,
        host: String,
        waiting: u16,
        setup: &Setup,
        world: &World,
    ) {
        let now = world.now();
        let refused = host == REFUSES && matches!(event, ConnectionEvent::LeftOut(_));
        // By then every lookup source was asked for waiting nsqds, if nothing is wrong.
        let long = setup.config.left_out_for > setup.config.lookup_interval;
        let gives = refused && waiting > 1 && long && now > FAULTY * 1000;
        let kept = std::mem::replace(&mut self.keeps[index], gives);
        assert!(!(kept && refused), "keeps its connection, though other nsqds wait");
        match event {
            ConnectionEvent::Connected => drop(self.connected.insert(host, now)),
            ConnectionEvent::LeftOut(_) if host == REFUSES => {
                watch::count("refused for good");
                let before = self.refused.replace(now);
                // No nsqd waits for its connection, and clocks do not jump.
                let alone = setup.dead == 0 && setup.reached.len() < CONNECTIONS;
                if let Some(before) = before.filter(|at| alone && *at > FAULTY * 1000) {
                    let pause = u64::from(setup.config.left_out_for.as_millis()) * 1000;
                    assert!(now >= before + pause, "dialed again after {} us", now - before);
                }
            }
            _ => {}
        }
    }

    /// Records a message that the application received; returns `None` if a server made it up.
    fn take(&mut self, message: &Received<'_>, config: &Config<'_>) -> Option<Name> {
        let attempts = message.head().expect("not within a look").attempts;
        let name = message.read(name).expect("not within a look")?;
        let sent = self.published.get_mut(&name).expect("it was published");
        assert!(sent.taken.insert(attempts), "{name:?} was delivered twice as {attempts}");
        // A message delivered before may have been on its way when that connection ended.
        let may = sent.finished.is_none_or(|finished| attempts < finished) || sent.taken_back;
        assert!(may, "{name:?} was delivered after its FIN");
        let over_limit = config.max_attempts > 0 && attempts > config.max_attempts;
        assert_eq!(message.is_exhausted(), over_limit, "{name:?} was delivered {attempts} times");
        let may = !over_limit || config.exhausted == Exhausted::Deliver;
        assert!(may, "{name:?} was delivered in spite of max_attempts");
        Some(name)
    }

    /// Answers a message.
    fn answer(&mut self, name: Name, message: Received<'_>) {
        let soon = Some(Span::from_millis(self.random.below(500) as u32));
        let what = if self.diligent { 9 } else { self.random.below(12) };
        let sent = self.published.get_mut(&name).expect("it was published");
        let answered = match what {
            0 => message.requeue(None),
            1 => message.release(soon),
            2 => {
                drop(message);
                Ok(())
            }
            _ => {
                // Late or not: from now on the FIN may have reached nsqd.
                sent.done = true;
                message.finish()
            }
        };
        watch::count(if answered.is_ok() { "answered" } else { "answered late" });
    }
}

#[expect(clippy::too_many_arguments, reason = "an application and all that it knows")]
fn obey(
    order: Order,
    handle: &Consumer<'_>,
    world: &World,
    setup: &Setup,
    ledger: &mut Ledger,
    held: &mut Vec<(Name, Received<'_>)>,
    mailbox: &Mailbox,
    me: usize,
) {
    let session = (me, 0);
    let trace = |what: &str| watch::trace_session(session, || what.to_owned());
    let each = |event| (0..CONNECTIONS + LOOKUPDS).for_each(|n| watch::event((me, n), event));
    match order {
        Order::Act(mut random) => {
            each(Event::Work);
            match favour(&mut random, setup.favourite, 10) {
                0 if random.one_in(3) => {
                    trace("stops");
                    each(Event::Stop);
                    ledger.stop = true;
                    mailbox.units.wake(STOPPING);
                }
                1 if !setup.constant => {
                    ledger.max = random.below(8) as u16;
                    watch::trace_session(session, || format!("sets max_in_flight {}", ledger.max));
                    handle.set_max_in_flight(ledger.max);
                }
                2 if !setup.constant => {
                    let paused = handle.look(|consumer| consumer.is_paused());
                    trace(if paused == Some(true) { "resumes" } else { "pauses" });
                    if paused == Some(true) { handle.resume() } else { handle.pause() }
                }
                3 if !setup.prompt => {
                    ledger.receives = !ledger.receives;
                    trace(if ledger.receives { "takes messages" } else { "takes no messages" });
                    mailbox.units.wake(TAKING);
                }
                4 | 5 if !held.is_empty() => {
                    trace("answers what it has");
                    let keep = random.below(held.len() as u64) as usize;
                    for (name, message) in held.drain(keep..).rev() {
                        ledger.answer(name, message);
                    }
                }
                6 if !held.is_empty() => {
                    trace("touches what it has");
                    for (_, message) in held.iter() {
                        let _ = message.touch();
                    }
                }
                _ => ledger.feed(&mut random, world, setup, session),
            }
        }
        Order::Settled(mut random) => {
            if ledger.stop {
                assert!(ledger.stopped, "not stopped, though nothing is wrong");
                return;
            }
            ledger.diligent = true;
            for (name, message) in held.drain(..) {
                ledger.answer(name, message);
            }
            ledger.receives = true;
            mailbox.units.wake(TAKING);
            ledger.max = ledger.max.max(if setup.rotates { 4 } else { 1 });
            handle.set_max_in_flight(ledger.max);
            handle.resume();
            ledger.feed(&mut random, world, setup, session);
        }
        Order::End => finish(handle, world, setup, ledger),
        Order::Restart => {}
    }
}

impl Ledger {
    /// Publishes messages at one of the nsqds.
    fn feed(&mut self, random: &mut Random, world: &World, setup: &Setup, session: Session) {
        let host = random.below(setup.hosts as u64) as usize;
        let count = random.pick(&[1, 1, 3, 20]);
        watch::trace_session(session, || format!("{count} messages are published at nsqd{host}"));
        let backlog = (0..setup.hosts).flat_map(|host| world.unfinished(host, "feed"));
        let (mut all, mut large) = (0, 0);
        for body in backlog {
            all += 1;
            large += usize::from(body.len() >= LARGE);
        }
        if all >= BACKLOG_MAX {
            watch::count("a backlog as long as may be");
            return;
        }
        for _ in 0..count {
            let number = self.published.len() as u32;
            let mut body = format!("{host}/{number}/").into_bytes();
            let len = match random.below(30) {
                0 if large < LARGE_MAX => {
                    large += 1;
                    LARGE
                }
                1..4 => random.between(40, 200) as usize,
                _ => random.between(10, 38) as usize,
            };
            body.resize(len.max(body.len()), b'a' + (number % 26) as u8);
            // Insert first: the message may be delivered at once.
            self.published.insert((host, number), Published::default());
            if !world.feed(host, "feed", &body) {
                self.published.entry((host, number)).or_default().done = true;
            }
        }
    }
}

/// Checks the messages and connections long after the last fault.
fn finish(handle: &Consumer<'_>, world: &World, setup: &Setup, ledger: &Ledger) {
    if ledger.stop {
        assert!(ledger.stopped, "not stopped, though nothing is wrong");
        return;
    }
    for &host in &setup.reached {
        if setup.is_crowded() {
            // With more good nsqds than connections, among useless ones, messages wait for the turn
            // of their nsqd. Each must have had one.
            let last = ledger.connected.get(&format!("nsqd{host}"));
            let had = last.is_some_and(|at| *at > FAULTY * 1000);
            assert!(had, "nsqd{host} had no turn: {:?}", ledger.connected);
            continue;
        }
        let left = world.unfinished(host, "feed");
        let shown = left.first().map(|body| body.escape_ascii().to_string());
        assert!(left.is_empty(), "{} messages are left at nsqd{host}: {shown:?}", left.len());
    }
    handle.look(|consumer| {
        let status = |n| consumer.status(n).expect("a connection");
        let expected = setup.reached.len().min(CONNECTIONS);
        let is_ready = |n: &usize| status(*n).state == LinkState::Ready;
        let ready = (0..CONNECTIONS).filter(is_ready).count();
        // With more nsqds than connections one may just be dialed.
        let rotates = setup.reached.len() + setup.useless() > CONNECTIONS;
        assert!(
            ready == expected || rotates,
            "{ready} connected of {expected}, though nothing is wrong"
        );
        assert_eq!(consumer.waiting(), 0, "messages wait, though nothing is wrong");
        if !rotates && !consumer.is_backing_off() {
            let cap = setup.max_rdy_count.saturating_mul(ready as u16);
            let most = ledger.max.min(MESSAGES as u16).min(cap);
            let sum: u16 = (0..CONNECTIONS).map(|n| status(n).rdy).sum();
            // A connection that passes on its share of RDY is waited for.
            let passing = ready > most.into() && sum < most;
            assert!(sum == most || passing, "RDY is {sum} in total instead of {most}");
        }
    });
}
