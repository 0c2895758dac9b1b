//! Runs the world of one seed and reports the result.

use std::cell::RefCell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::task::{Context, Waker};

use nanonsq_core::publisher::FLIGHTS_MAX;
use nanonsq_models::nsqd::Nsqd;
use nanonsq_models::nsqlookupd::{Known, Nsqlookupd};
use nanonsq_models::random::Random;

use crate::actor::{Actor, Mailbox, Order, Process};
use crate::board::{Board, Consumer, Ledger};
use crate::consumer::{CONNECTIONS, Subscriber};
use crate::directory::Lists;
use crate::exec::take_woken;
use crate::hostile::Hostile;
use crate::node::Daemon;
use crate::publisher::{Producer, nsqd_settings};
use crate::registrar::{PING_MAX, Registrar};
use crate::schedule::{self, END, FAULTY, LATEST, Restart, SETTLED, Step, What};
use crate::visitor::Visitor;
use crate::watch::{self, Coverage};
use crate::web::{REFUSES, Web};
use crate::world::{Due, World};

/// The most commands that a registration sends before their answers have come.
const OUTSTANDING_MAX: u32 = 1024;

/// The result of a world.
#[derive(Debug)]
pub struct Report {
    /// All steps that were scheduled.
    pub steps: Vec<Step>,
    /// The counts of pairs of state and event.
    pub coverage: Coverage,
    /// The trace, if it was requested.
    pub trace: Vec<String>,
    /// The first check that failed.
    pub failure: Option<Failure>,
}

/// A check that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The file and line of the check; failures at the same place count as the same failure.
    pub place: String,
    /// The message of the check.
    pub message: String,
}

/// One of this many seeds has a board and hostile clients.
const HOSTILE: u64 = 8;
/// The index of the first hostile client, behind the board and its consumer.
const FIRST_HOSTILE: usize = 2;

thread_local! {
    static FAILURE: RefCell<Option<Failure>> = const { RefCell::new(None) };
}

/// Installs the logger and a panic hook that keeps failures instead of printing them. Call once per
/// process, before the first world.
pub fn install() {
    watch::install();
    panic::set_hook(Box::new(|info| {
        let place = info.location().map(|at| format!("{}:{}", at.file(), at.line()));
        let payload = info.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let message = text.unwrap_or("?").to_owned();
        // Only the first: later panics are consequences.
        FAILURE.with_borrow_mut(|failure| {
            failure.get_or_insert(Failure { place: place.unwrap_or_default(), message });
        });
    }));
}

/// Runs a seed's world: all of its steps, or only those in `keep`.
pub fn live(seed: u64, keep: Option<&[usize]>, trace: bool) -> Report {
    watch::begin(trace);
    FAILURE.set(None);
    let mut random = Random::new(seed);
    let hostile = seed % HOSTILE == HOSTILE / 2;
    let mut stage = if hostile { Stage::hostile(&mut random) } else { Stage::new(&mut random) };
    let (actors, hosts) = (stage.slots.len(), stage.hosts);
    let dice = &mut random.fork();
    let (steps, end) = if hostile {
        schedule::hostile(dice, FIRST_HOSTILE..actors, hosts)
    } else {
        schedule::generate(dice, actors, hosts)
    };
    let kept = |at: &usize| keep.is_none_or(|keep| keep.contains(at));
    for at in (0..steps.len()).filter(kept) {
        stage.world.push(steps[at].at * 1000, Due::Step(at));
    }
    let result = panic::catch_unwind(AssertUnwindSafe(|| stage.play(&steps, end * 1000)));
    let failure = FAILURE.take().filter(|_| result.is_err());
    if let Some(failure) = &failure {
        watch::trace(|| format!("FAILED: {} ({})", failure.message, failure.place));
    }
    // Drop the remains without checking them.
    let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(stage)));
    let (coverage, trace) = watch::end();
    Report { steps, coverage, trace: trace.unwrap_or_default(), failure }
}

struct Stage {
    world: World,
    slots: Vec<Slot>,
    hosts: usize,
    random: Random,
}

struct Slot {
    actor: Box<dyn Actor>,
    process: Option<(Process, Rc<Mailbox>)>,
}

impl Stage {
    fn new(random: &mut Random) -> Self {
        if random.one_in(4) { Self::served(random) } else { Self::modeled(random) }
    }

    /// Nodes and directories of ours beside model nsqlookupds, and the actors that use them.
    fn served(random: &mut Random) -> Self {
        let (nodes, lookupds) = (random.pick(&[1, 1, 2, 3]), random.between(1, 2) as usize);
        let registrars = random.pick(&[0, 0, 1, 2]);
        let consumers = random.pick(&[0, 1, 1, 1]);
        let ours: Vec<bool> = (0..lookupds).map(|_| !random.one_in(3)).collect();
        let directories = ours.iter().filter(|ours| **ours).count();
        let first_node = registrars + consumers;
        let first_directory = first_node + nodes;
        let visitors = random.pick(&[0, 0, 1]);
        let actors = first_directory + directories + visitors;
        let clock = random.pick(&[0, 0, 1, 1 << 32, 1 << 62]);
        let world = World::new(random.below(u64::MAX), actors, clock);
        let rdy: u16 = random.pick(&[2, 2500]);
        let ports: Vec<_> =
            (0..nodes).map(|n| world.add_port(format!("nsqd{n}"), first_node + n)).collect();
        let mut listing = Vec::new();
        let mut known = Vec::new();
        let mut owner = first_directory;
        for (n, ours) in ours.iter().enumerate() {
            if *ours {
                listing.push(world.add_port(format!("lookup{n}"), owner));
                known.push(Known::default());
                owner += 1;
            } else {
                let lookupd = Nsqlookupd::new(PING_MAX);
                known.push(lookupd.known());
                world.add_host(format!("lookup{n}"), Box::new(lookupd), OUTSTANDING_MAX);
            }
        }
        let mut asked = Vec::new();
        let mut owner = first_directory;
        for (n, ours) in ours.iter().enumerate() {
            if *ours {
                asked.push(world.add_port(format!("web{n}"), owner));
                owner += 1;
            } else {
                let all = (0..nodes).map(|n| format!("nsqd{n}")).collect();
                world.add_host(format!("web{n}"), Box::new(Web::new(all, known[n].clone())), 1);
            }
        }
        let stats: Vec<_> =
            (0..nodes).map(|n| world.add_port(format!("stat{n}"), first_node + n)).collect();
        let mut all: Vec<Box<dyn Actor>> = Vec::new();
        for me in 0..registrars {
            all.push(Box::new(Registrar::new(&world, me, lookupds, random)));
        }
        for me in registrars..first_node {
            all.push(Box::new(Subscriber::new(
                &world,
                me,
                nodes,
                lookupds,
                (false, rdy, true),
                random,
            )));
        }
        for (n, ports) in ports.into_iter().zip(stats).enumerate() {
            let (me, name) = (first_node + n, format!("nsqd{n}"));
            all.push(Box::new(Daemon::new(&world, me, name, ports, (lookupds, rdy), random)));
        }
        for (n, ports) in listing.into_iter().zip(asked).enumerate() {
            all.push(Box::new(Lists::new(&world, first_directory + n, ports, random)));
        }
        let visited = ours.iter().enumerate().filter(|(_, ours)| **ours);
        let visited = visited.map(|(n, _)| (format!("web{n}"), false));
        let visited: Vec<_> =
            visited.chain((0..nodes).map(|n| (format!("stat{n}"), true))).collect();
        for n in 0..visitors {
            all.push(Box::new(Visitor::new(
                &world,
                first_directory + directories + n,
                visited.clone(),
            )));
        }
        for me in 0..actors {
            world.push(0, Due::Start(me));
        }
        let slots = all.into_iter().map(|actor| Slot { actor, process: None }).collect();
        Self { world, slots, hosts: 2 * nodes + 2 * lookupds, random: random.fork() }
    }

    /// A node of a board's size, its honest consumer, and hostile clients.
    fn hostile(random: &mut Random) -> Self {
        let actors = FIRST_HOSTILE + random.between(1, 3) as usize;
        let clock = random.pick(&[0, 0, 1, 1 << 32, 1 << 62]);
        let world = World::new(random.below(u64::MAX), actors, clock);
        let ports = (world.add_port("nsqd0".into(), 0), world.add_port("stat0".into(), 0));
        let ledger = Rc::new(Ledger::default());
        let mut all: Vec<Box<dyn Actor>> = vec![
            Box::new(Board::new(&world, 0, ports, &ledger, random)),
            Box::new(Consumer::new(&world, 1, &ledger)),
        ];
        for me in FIRST_HOSTILE..actors {
            all.push(Box::new(Hostile::new(&world, me, &ledger, random)));
        }
        // Honest actors start first.
        for me in 0..actors {
            world.push(1000 * me as u64, Due::Start(me));
        }
        let slots = all.into_iter().map(|actor| Slot { actor, process: None }).collect();
        Self { world, slots, hosts: 2, random: random.fork() }
    }

    /// Model servers, and the actors that use them.
    fn modeled(random: &mut Random) -> Self {
        // Worlds with consumers have mostly no other actors.
        let consumers = random.pick(&[0, 0, 0, 1, 1]);
        let others = consumers == 0 || random.one_in(3);
        let publishers = if others { random.pick(&[0, 1, 1, 1, 2]) } else { 0 };
        let registrars = match publishers {
            _ if !others => 0,
            0 => 1,
            _ => random.pick(&[0, 1, 1, 2]),
        };
        let (nsqds, lookupds) = (random.between(1, 3) as usize, random.between(1, 4) as usize);
        let auth = random.one_in(4);
        let clock = random.pick(&[0, 0, 1, 1 << 32, 1 << 62]);
        let webs = if consumers > 0 { random.below(3) as usize } else { 0 };
        let actors = publishers + registrars + consumers;
        let world = World::new(random.below(u64::MAX), actors, clock);
        let with = |any: bool, n: usize| if any { n } else { 0 };
        let hosts = [with(publishers + consumers > 0, nsqds), with(registrars > 0, lookupds)];
        let rdy: u16 = random.pick(&[2, 2500]);
        let tls = consumers == 0 && hosts[0] > 1 && random.one_in(3);
        let most = if random.one_in(6) { random.pick(&[1, 3]) } else { usize::MAX };
        for n in 0..hosts[0] {
            let settings = nsqd_settings(auth, rdy.into(), tls && n == 0, most);
            world.add_host(format!("nsqd{n}"), Box::new(Nsqd::new(settings)), FLIGHTS_MAX as u32);
        }
        for n in 0..hosts[1] {
            world.add_host(
                format!("lookup{n}"),
                Box::new(Nsqlookupd::new(PING_MAX)),
                OUTSTANDING_MAX,
            );
        }
        // Some lists contain many nsqds that are gone, different ones in each list, or one that
        // refuses everybody.
        let dead = if webs > 0 { random.pick(&[0, 0, 8, 20]) } else { 0 };
        let dead = if nsqds > CONNECTIONS { dead.min(8) } else { dead };
        let refuses = webs > 0 && random.one_in(2);
        for n in 0..webs {
            let all = (0..nsqds).map(|n| format!("nsqd{n}")).collect();
            let mut web = Web::new(all, Known::default()).with_dead(n * dead, dead / webs, random);
            if refuses {
                web = web.with(REFUSES);
            }
            world.add_host(format!("web{n}"), Box::new(web), 1);
        }
        if refuses {
            let settings = nsqd_settings(auth, rdy.into(), true, most);
            world.add_host(REFUSES.into(), Box::new(Nsqd::new(settings)), FLIGHTS_MAX as u32);
        }
        let mut slots = Vec::new();
        for me in 0..actors {
            let actor: Box<dyn Actor> = if me < publishers {
                Box::new(Producer::new(&world, me, nsqds, (auth, tls, most), random))
            } else if me < publishers + registrars {
                Box::new(Registrar::new(&world, me, lookupds, random))
            } else {
                let subscriber =
                    Subscriber::new(&world, me, nsqds, webs, (auth, rdy, false), random);
                Box::new(subscriber.among(dead, refuses))
            };
            slots.push(Slot { actor, process: None });
            world.push(0, Due::Start(me));
        }
        Self { world, slots, hosts: hosts.iter().sum::<usize>() + webs, random: random.fork() }
    }

    fn play(&mut self, steps: &[Step], end: u64) {
        self.world.push(FAULTY * 1000, Due::Calm);
        self.world.push(SETTLED * 1000, Due::Settled);
        self.world.push(end, Due::End);
        let mut settled = None;
        while let Some((at, due)) = self.world.next() {
            match due {
                Due::Settled | Due::End if self.must_wait(at, due, settled) => {
                    self.world.push(at + 1_000_000, due);
                    continue;
                }
                Due::Step(step) => self.step(&steps[step]),
                Due::Start(actor) => self.start(actor),
                Due::Calm => {
                    watch::trace(|| "no more faults".into());
                    self.world.heal();
                    for slot in &mut self.slots {
                        if slot.process.is_some() && slot.actor.begins_anew() {
                            slot.process = None;
                            slot.actor.died();
                            slot.process = Some(slot.actor.start());
                        }
                    }
                }
                Due::Settled => {
                    settled = Some(at);
                    watch::trace(|| "everything should be well".into());
                    let order = Order::Settled(self.random.fork());
                    self.order_all(&order);
                }
                Due::End if at > SETTLED * 1000 => self.order_all(&Order::End),
                _ => {}
            }
            // Most arriving segments wake nobody and complete no command.
            if take_woken() || self.world.has_seen() {
                self.settle();
            }
            self.world.check_quiet();
            if due == Due::End {
                break;
            }
        }
        for slot in &mut self.slots {
            slot.process = None;
            slot.actor.died();
        }
    }

    /// Returns whether the event comes before its planned time or an actor needs more time.
    fn must_wait(&self, at: u64, due: Due, settled: Option<u64>) -> bool {
        let planned = match due {
            Due::End => settled.map(|settled| settled + (END - SETTLED) * 1000),
            _ => Some(at),
        };
        // Earlier ends belong to worlds that end while faults still happen.
        (SETTLED * 1000..LATEST * 1000).contains(&at)
            && (planned.is_none_or(|planned| at < planned)
                || self.slots.iter().any(|slot| !slot.actor.is_settled()))
    }

    fn step(&mut self, step: &Step) {
        watch::count(step.what.kind());
        if !matches!(step.what, What::Act(..)) {
            watch::trace(|| format!("-- {:?}", step.what));
        }
        let slots = &mut self.slots;
        let order = |actor: usize, order: Order| {
            if let Some((_, mailbox)) = &slots[actor].process {
                mailbox.order(order);
            }
        };
        match step.what {
            What::Act(actor, dice) => order(actor, Order::Act(Random::new(dice))),
            What::Restart(actor, Restart::Driver) => order(actor, Order::Restart),
            What::Restart(actor, Restart::Process(ms)) => {
                if slots[actor].process.take().is_some() {
                    slots[actor].actor.died();
                    self.world.push((step.at + ms) * 1000, Due::Start(actor));
                }
            }
            _ => self.world.fault(&step.what),
        }
    }

    fn start(&mut self, actor: usize) {
        let slot = &mut self.slots[actor];
        slot.process = Some(slot.actor.start());
        watch::trace(|| format!("node{actor} starts"));
    }

    fn order_all(&self, order: &Order) {
        for (_, mailbox) in self.slots.iter().filter_map(|slot| slot.process.as_ref()) {
            mailbox.order(order.clone());
        }
    }

    /// Polls the processes that are ready until none is.
    fn settle(&mut self) {
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            for (session, conn, seen) in self.world.take_seen() {
                self.slots[session.0].actor.seen(session, conn, seen);
            }
            let ready = |slot: &&mut Slot| {
                slot.process.as_ref().is_some_and(|(_, mailbox)| mailbox.units.is_ready())
            };
            let Some(slot) = self.slots.iter_mut().find(ready) else { break };
            if let Some((process, _)) = &mut slot.process
                && process.as_mut().poll(cx).is_ready()
            {
                // The process ended by itself: restart.
                slot.process = None;
                slot.actor.died();
                slot.process = Some(slot.actor.start());
            }
        }
        take_woken();
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.place)
    }
}
