//! A consumer: a real one with its runner and handle, and what must be true of what it is given
//! and of what it asks for.

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
/// Bytes of the ring for each message: one with a longer body takes several.
const SLOT: usize = 64;

/// Units of the process, beside those that all have.
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
    /// How many nsqds there are, how much they may be asked for, and those that it reaches.
    hosts: usize,
    max_rdy_count: u16,
    reached: BTreeSet<usize>,
    /// The application always wants as many messages, so there are never more in flight.
    constant: bool,
    /// There is much to do, and what it may have in flight goes from one nsqd to the other.
    turns: bool,
    /// It never answers late.
    quick: bool,
    /// It answers nothing by itself.
    hoards: bool,
    /// What its application does more than anything else.
    favourite: u64,
    /// The lists have so many that are never to be reached.
    dead: usize,
    /// They have one that takes nobody.
    refuses: bool,
}

/// What is known of all messages, of this process and of those before.
struct Ledger {
    /// By nsqd and number.
    fed: BTreeMap<Name, Fed>,
    random: Random,
    /// The application wants messages.
    hungry: bool,
    /// Everything is answered as soon as it comes, and well.
    diligent: bool,
    /// max_in_flight, as it was set last.
    max: u16,
    stop: bool,
    stopped: bool,
    /// The RDY of each connection when it was looked at last.
    rdy: [u16; CONNECTIONS],
    /// When it began, with nothing wrong but that many are never to be reached, and has not found
    /// those that are.
    began: Option<u64>,
    /// When it was connected to each nsqd, and refused for good by one, last.
    connected: BTreeMap<String, u64>,
    refused: Option<u64>,
    /// Each connection that was refused for good last, while others waited for its place.
    keeps: [bool; CONNECTIONS],
}

/// An nsqd and the number of a message there.
type Name = (usize, u32);

#[derive(Default)]
struct Fed {
    /// The application was given it, with these attempts.
    taken: BTreeSet<u16>,
    /// The application said that it is done, or the consumer was to say so.
    done: bool,
    /// With as many attempts.
    finished: Option<u16>,
    taken_back: bool,
}

/// A body for which a consumer has no room: it may requeue the message several times.
const LARGE: usize = 500;
/// No more messages than this are left at the servers when more are published, and no more of the
/// large ones: a consumer is through with them before the world ends, also one at a time.
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
        let (constant, quick) = (random.one_in(2), random.one_in(2));
        // All of them by the lists, or some that are given.
        let given = if webs > 0 && random.one_in(2) { 0 } else { random.between(1, nsqds as u64) };
        let reached = if webs > 0 { nsqds } else { given as usize };
        // With more nsqds than session_table each has its turn, and none of it is to be lost.
        let turns = reached > CONNECTIONS || (served && reached > 1);
        let max_attempts = random.pick(&[0, 0, 2, 3]);
        let exhausted = random.pick(&[Exhausted::Finish, Exhausted::Deliver]);
        // Without a limit of attempts one too large would be requeued for ever.
        let endless = max_attempts == 0 || exhausted == Exhausted::Deliver;
        let mut config = Config {
            auth_secret: auth.then_some(SECRET),
            heartbeat: ms(random, &[1000, 5000, 30_000, 60_000]),
            msg_timeout: random
                .pick(&[None, Some(1000), Some(5000), Some(20_000)])
                .map(Span::from_millis),
            max_in_flight: random.pick(if turns { &[4, u16::MAX] } else { &[1, 2, 4, u16::MAX] }),
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
            requeue_cap: Span::from_millis(if turns { 500 } else { 2000 }),
            backoff_base: if constant || turns { Span::ZERO } else { ms(random, &[0, 100]) },
            backoff_cap: Span::from_millis(2000),
            auto_touch: random.one_in(3),
            seed: random.below(1 << 32) as u32,
            ..Config::new(
                TopicName::new("feed").expect("a name"),
                ChannelName::new("c").expect("a name"),
            )
        };
        // What a server that lies swallowed is delivered again when two heartbeats and a timeout are
        // over. With the longest of both that is as long as a world goes on without faults.
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
            turns,
            quick,
            hoards: !quick && random.one_in(3),
            favourite: random.below(10),
            dead: 0,
            refuses: false,
        };
        watch::say(|| {
            format!("node{me} consumes from {:?}, {:?}: {config:?}", setup.nsqds, setup.lookupds)
        });
        let ledger = Ledger {
            fed: BTreeMap::new(),
            random: random.fork(),
            hungry: true,
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
    /// The lists have so many nsqds that are never to be reached, and maybe one that takes nobody,
    /// beside the others.
    pub(crate) fn among(mut self, dead: usize, refuses: bool) -> Self {
        let setup = Rc::get_mut(&mut self.setup).expect("nobody else has it yet");
        setup.dead = dead;
        setup.refuses = refuses;
        if setup.is_crowded() {
            // So that all have their turn before the world ends.
            setup.config.lookup_interval = Span::from_secs(4);
        }
        self
    }
}

impl Setup {
    /// Those that work take turns, and there are others that do not.
    fn is_crowded(&self) -> bool {
        self.reached.len() > CONNECTIONS && (self.dead > 0 || self.refuses)
    }

    /// How many are listed that do not work.
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
                let tired = max_attempts > 0 && attempts > max_attempts;
                let given_up = tired && exhausted == Exhausted::Finish;
                let skipped = body.len() > SLOT * MESSAGES - 26 && too_large == TooLarge::Finish;
                let fed = ledger.fed.get_mut(&name).expect("it was fed");
                assert!(fed.finished.is_none(), "{name:?} is finished twice");
                assert!(fed.done || given_up || skipped, "{name:?} is finished, and nobody had it");
                fed.finished = Some(attempts);
            }
            Seen::TakenBack { body } => {
                let name = name(&body).expect("a message of ours");
                ledger.fed.get_mut(&name).expect("it was fed").taken_back = true;
            }
            Seen::Ready { rdy } => {
                assert!(rdy <= MESSAGES as u64, "RDY {rdy}, with room for {MESSAGES}");
            }
            Seen::Refused { words } => {
                // Another kind of server may have been dialed, a connection may break anywhere,
                // and a server that exits takes nobody.
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
        ledger.hungry = true;
        ledger.max = self.setup.config.max_in_flight;
        ledger.rdy = [0; CONNECTIONS];
        ledger.refused = None;
        ledger.keeps = [false; CONNECTIONS];
    }
}

/// Which message a body is; none that somebody fed may have one like that.
fn name(body: &[u8]) -> Option<Name> {
    let mut words = body.split(|&b| b == b'/');
    let mut number = || std::str::from_utf8(words.next()?).ok()?.parse().ok();
    let (host, number): (u32, u32) = (number()?, number()?);
    let rest = words.next()?;
    let padding = b'a' + (number % 26) as u8;
    let whole = rest.iter().all(|&b| b == padding);
    assert!(whole, "what is read is not what was sent: {}", body.escape_ascii());
    Some((host as usize, number))
}

type Consumer<'a> = Handle<'a, NoopRawMutex, Clock>;
type Taken<'a> = Message<'a, NoopRawMutex, Clock>;

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
    // What the application has and has not answered.
    let held: RefCell<Vec<(Name, Taken<'_>)>> = RefCell::default();

    let mut events = pin!(async {
        loop {
            let event = handle.event().await;
            watch::tell((me, 0), || format!("tells {event:?}"));
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
            until(|| state.borrow().hungry.then_some(())).await;
            let message = handle.next().await;
            watch::tell((me, 0), || format!("is given {:?}", message.head()));
            let ledger = &mut *state.borrow_mut();
            let Some(name) = ledger.take(&message, &config) else {
                // A server made it up.
                let _ = message.finish();
                continue;
            };
            let patient =
                !ledger.diligent && !setup.quick && (setup.hoards || ledger.random.one_in(4));
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
        // Clones of the clock from here on are the sessions'.
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
                                // It is of no more use.
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
            let holds = held.borrow().len();
            check_quiet(&handle, &state.borrow(), &setup, &world, holds, me);
            Poll::Pending
        })
        .await;
        if !again {
            return;
        }
    }
}

/// Differs whenever the consumer changed.
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

/// The application changed states behind the runner's back, or they are what they are set up as.
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

/// A connection with which nothing is wrong is not given up.
fn check_given_up(handle: &Consumer<'_>, world: &World, me: usize) {
    for (_, session) in world.take_given_up(me) {
        let last = handle.look(|consumer| match session.checked_sub(CONNECTIONS) {
            None => consumer.status(session).expect("a connection").last,
            Some(n) => consumer.lookupd_status(n).expect("an nsqlookupd").last,
        });
        match last.flatten() {
            // What is right with the connection, its server said.
            Some(Closed::Fault(Fault::Refused(_) | Fault::BadAnswer(BadAnswer::Status(_)))) => {}
            Some(Closed::Fault(fault)) if fault.is_permanent() => {}
            Some(Closed::Fault(fault)) => panic!("gives up a healthy connection: {fault}"),
            _ => {}
        }
    }
}

/// Always so.
fn check(handle: &Consumer<'_>, ledger: &mut Ledger) {
    handle.look(|consumer| {
        let status = |n| consumer.status(n).expect("a connection");
        let rdy: [u16; CONNECTIONS] = std::array::from_fn(|n| status(n).rdy);
        let raised = rdy.iter().zip(&ledger.rdy).any(|(now, before)| now > before);
        let (sum, most) = (rdy.iter().sum::<u16>(), ledger.max.min(MESSAGES as u16));
        assert!(!raised || sum <= most, "RDY is raised to {sum} in all, of {most}");
        ledger.rdy = rdy;
        assert!(consumer.waiting() <= MESSAGES, "as many as there are slots");
    });
}

/// How long finding those that work may take among so many that do not, in microseconds.
const FOUND: u64 = 45_000_000;

/// Those that work are found soon among those that do not.
fn check_found(handle: &Consumer<'_>, ledger: &mut Ledger, setup: &Setup, now: u64) {
    let Some(began) = ledger.began else { return };
    let counters = handle.counters();
    if ledger.stop || counters.connections as usize >= setup.reached.len().min(CONNECTIONS) {
        watch::count("found among dead ones");
        ledger.began = None;
        return;
    }
    assert!(now < began + FOUND, "{} found among the dead in time", counters.connections);
}

/// So when nothing more moves.
fn check_quiet(
    handle: &Consumer<'_>,
    ledger: &Ledger,
    setup: &Setup,
    world: &World,
    holds: usize,
    me: usize,
) {
    handle.inspect(|consumer| {
        assert_eq!(consumer.poll_event(), None, "nobody told who waits for events");
        let waits = ledger.hungry && consumer.waiting() > 0;
        assert!(!waits, "nobody told who waits for messages");
        let status = |n| consumer.status(n).expect("a connection");
        let in_flight: u16 = (0..CONNECTIONS).map(|n| status(n).in_flight).sum();
        if (0..CONNECTIONS).all(|n| world.is_free((me, n))) {
            // One of each connection may be there in part.
            let known = consumer.waiting() + holds + CONNECTIONS;
            assert!(usize::from(in_flight) <= known, "an answer waits, and could be sent");
        }
        let counters = consumer.counters();
        let late = counters.timed_out > 0 || counters.refused > 0;
        if setup.constant && setup.quick && !late && world.is_calm(30_000_000) {
            let most = setup.config.max_in_flight.min(MESSAGES as u16);
            assert!(in_flight <= most, "{in_flight} in flight, of {most}");
        }
        if ledger.stopped {
            assert!(consumer.is_stopped(), "it said that it has stopped");
            assert_eq!(in_flight, 0, "in flight without a connection");
        }
    });
}

impl Ledger {
    /// It is connected to an nsqd, or not.
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
        // By then every source was asked who waits, if nothing is wrong.
        let long = setup.config.left_out_for > setup.config.lookup_interval;
        let gives = refused && waiting > 1 && long && now > FAULTY * 1000;
        let kept = std::mem::replace(&mut self.keeps[index], gives);
        assert!(!(kept && refused), "keeps its place, though others wait");
        match event {
            ConnectionEvent::Connected => drop(self.connected.insert(host, now)),
            ConnectionEvent::LeftOut(_) if host == REFUSES => {
                watch::count("refused for good");
                let before = self.refused.replace(now);
                // Nobody waits for its place, and clocks do not jump.
                let alone = setup.dead == 0 && setup.reached.len() < CONNECTIONS;
                if let Some(before) = before.filter(|at| alone && *at > FAULTY * 1000) {
                    let pause = u64::from(setup.config.left_out_for.as_millis()) * 1000;
                    assert!(now >= before + pause, "asked again after {} us", now - before);
                }
            }
            _ => {}
        }
    }

    /// The application is given a message; none if a server made it up.
    fn take(&mut self, message: &Taken<'_>, config: &Config<'_>) -> Option<Name> {
        let attempts = message.head().expect("not within a look").attempts;
        let name = message.read(name).expect("not within a look")?;
        let fed = self.fed.get_mut(&name).expect("it was fed");
        assert!(fed.taken.insert(attempts), "{name:?} is handed out twice with {attempts}");
        // What was delivered before may have been on its way when that connection ended.
        let may = fed.finished.is_none_or(|finished| attempts < finished) || fed.taken_back;
        assert!(may, "{name:?} is handed out after its FIN");
        let tired = config.max_attempts > 0 && attempts > config.max_attempts;
        assert_eq!(message.is_exhausted(), tired, "{name:?} was delivered {attempts} times");
        assert!(!tired || config.exhausted == Exhausted::Deliver, "{name:?} is handed out");
        Some(name)
    }

    /// The application answers a message.
    fn answer(&mut self, name: Name, message: Taken<'_>) {
        let soon = Some(Span::from_millis(self.random.below(500) as u32));
        let what = if self.diligent { 9 } else { self.random.below(12) };
        let fed = self.fed.get_mut(&name).expect("it was fed");
        let answered = match what {
            0 => message.requeue(None),
            1 => message.release(soon),
            2 => {
                drop(message);
                Ok(())
            }
            _ => {
                // Late or not: once it was said, nsqd may have been told.
                fed.done = true;
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
    held: &mut Vec<(Name, Taken<'_>)>,
    mailbox: &Mailbox,
    me: usize,
) {
    let session = (me, 0);
    let say = |what: &str| watch::tell(session, || what.to_owned());
    let each = |event| (0..CONNECTIONS + LOOKUPDS).for_each(|n| watch::event((me, n), event));
    match order {
        Order::Act(mut random) => {
            each(Event::Work);
            match favour(&mut random, setup.favourite, 10) {
                0 if random.one_in(3) => {
                    say("stops");
                    each(Event::Stop);
                    ledger.stop = true;
                    mailbox.units.wake(STOPPING);
                }
                1 if !setup.constant => {
                    ledger.max = random.below(8) as u16;
                    watch::tell(session, || format!("wants {} in flight", ledger.max));
                    handle.set_max_in_flight(ledger.max);
                }
                2 if !setup.constant => {
                    let paused = handle.look(|consumer| consumer.is_paused());
                    say(if paused == Some(true) { "resumes" } else { "pauses" });
                    if paused == Some(true) { handle.resume() } else { handle.pause() }
                }
                3 if !setup.quick => {
                    ledger.hungry = !ledger.hungry;
                    say(if ledger.hungry { "is hungry" } else { "is not hungry" });
                    mailbox.units.wake(TAKING);
                }
                4 | 5 if !held.is_empty() => {
                    say("answers what it has");
                    let keep = random.below(held.len() as u64) as usize;
                    for (name, message) in held.drain(keep..).rev() {
                        ledger.answer(name, message);
                    }
                }
                6 if !held.is_empty() => {
                    say("touches what it has");
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
            ledger.hungry = true;
            mailbox.units.wake(TAKING);
            ledger.max = ledger.max.max(if setup.turns { 4 } else { 1 });
            handle.set_max_in_flight(ledger.max);
            handle.resume();
            ledger.feed(&mut random, world, setup, session);
        }
        Order::End => finish(handle, world, setup, ledger),
        Order::Restart => {}
    }
}

impl Ledger {
    /// Somebody publishes messages for it.
    fn feed(&mut self, random: &mut Random, world: &World, setup: &Setup, session: Session) {
        let host = random.below(setup.hosts as u64) as usize;
        let count = random.pick(&[1, 1, 3, 20]);
        watch::tell(session, || format!("nsqd{host} is fed with {count} messages"));
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
            let number = self.fed.len() as u32;
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
            // Before it is there: it may be delivered at once.
            self.fed.insert((host, number), Fed::default());
            if !world.feed(host, "feed", &body) {
                self.fed.entry((host, number)).or_default().done = true;
            }
        }
    }
}

/// No faults since long, and nothing left to do.
fn finish(handle: &Consumer<'_>, world: &World, setup: &Setup, ledger: &Ledger) {
    if ledger.stop {
        assert!(ledger.stopped, "not stopped, though nothing is wrong");
        return;
    }
    for &host in &setup.reached {
        if setup.is_crowded() {
            // With more that work than connections, among others that do not, messages wait for
            // a turn: each has one.
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
        let session_table = setup.reached.len().min(CONNECTIONS);
        let is_ready = |n: &usize| status(*n).state == LinkState::Ready;
        let ready = (0..CONNECTIONS).filter(is_ready).count();
        // With more nsqds than session_table one may just be on its way.
        let turns = setup.reached.len() + setup.useless() > CONNECTIONS;
        assert!(
            ready == session_table || turns,
            "{ready} connected of {session_table}, though nothing is wrong"
        );
        assert_eq!(consumer.waiting(), 0, "messages wait, though nothing is wrong");
        if !turns && !consumer.is_backing_off() {
            let cap = setup.max_rdy_count.saturating_mul(ready as u16);
            let most = ledger.max.min(MESSAGES as u16).min(cap);
            let sum: u16 = (0..CONNECTIONS).map(|n| status(n).rdy).sum();
            // One that passes its turn on is waited for.
            let passing = ready > most.into() && sum < most;
            assert!(sum == most || passing, "RDY {sum} in all, of {most}");
        }
    });
}
