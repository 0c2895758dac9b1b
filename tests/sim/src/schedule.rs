//! The schedule of a simulation: a list of steps, made from the seed. Steps do not depend on each
//! other, so that any of them can be left out.

use std::fmt;
use std::ops::Range;

use nanonsq_models::random::Random;

/// The end of the faults, in milliseconds.
pub(crate) const FAULTY: u64 = 420_000;
/// When everything has to work again, in milliseconds: a half-open connection is noticed after
/// two heartbeats of a minute.
pub(crate) const SETTLED: u64 = FAULTY + 135_000;
/// The planned end in milliseconds, when nothing of the past is left anywhere.
pub(crate) const END: u64 = 600_000;
/// The latest end in milliseconds, if it is postponed.
pub(crate) const LATEST: u64 = 3_600_000;
/// The end of a world with hostile clients in milliseconds, when their messages have expired.
const HOSTILE_END: u64 = FAULTY + 360_000;
/// The rest of a world after a clock jumped to its edge, in milliseconds.
const EDGE: u64 = 40_000;

/// A way in which a server misbehaves for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sends nothing.
    Mute,
    /// Sends random bytes instead of each response.
    Garbage,
    /// Sends something well-formed and wrong instead of each response.
    Wrong,
    /// Sends one byte per second.
    Trickle,
    /// Sends a huge length, or HTTP, before each response.
    Huge,
    /// Closes after each response.
    Hasty,
    /// Refuses every command, as an exiting server does.
    Exiting,
    /// Closes each connection at once, as a load balancer without a backend does.
    Shut,
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 8] = [
        Self::Mute,
        Self::Garbage,
        Self::Wrong,
        Self::Trickle,
        Self::Huge,
        Self::Hasty,
        Self::Exiting,
        Self::Shut,
    ];
}

/// One scheduled event.
#[derive(Debug, Clone)]
pub struct Step {
    /// The time in milliseconds.
    pub at: u64,
    /// The event.
    pub what: What,
}

/// An event; actors and hosts by their numbers, durations in milliseconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The application does something, with this seed for its dice.
    Act(usize, u64),
    /// A process restarts, or only its runner.
    Restart(usize, Restart),
    /// Connections between an actor and a host break.
    Cut(usize, usize, Cut),
    /// No bytes get through on a host's connections: towards the host if true, else from it.
    Stall(usize, bool, u64),
    /// A host's segments take longer, by the first number.
    Slow(usize, u64, u64),
    /// Connections to a host accept only a few bytes at once.
    Squeeze(usize, u64),
    /// Dials to a host fail.
    Dials(usize, DialFault, u64),
    /// A host is down; its connections break, or if true the host vanishes silently.
    Crash(usize, bool, u64),
    /// A host's process stands still.
    Freeze(usize, u64),
    /// A host misbehaves.
    Mode(usize, Mode, u64),
    /// An actor's clock jumps.
    Clock(usize, Jump),
    /// An administrator deletes something at a host, with this seed for the dice.
    Vandalize(usize, u64),
}

/// The part that restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// The runner's future is dropped and run again.
    Driver,
    /// The process dies and comes back after this many milliseconds.
    Process(u64),
}

/// A way in which a connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Both sides see a reset.
    Reset,
    /// Both sides see the end of the stream.
    End,
    /// Neither side sees anything.
    HalfOpen,
}

/// A way in which a dial fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialFault {
    /// Nothing listens.
    Refused,
    /// No response ever.
    Hangs,
    /// The transport gives up.
    TimedOut,
    /// No route.
    Unreachable,
    /// The name does not resolve.
    NameNotFound,
    /// No socket is left.
    NoSocket,
    /// Anything else.
    Other,
    /// The name resolves to another host.
    Elsewhere,
}

impl DialFault {
    const ALL: [Self; 8] = [
        Self::Refused,
        Self::Hangs,
        Self::TimedOut,
        Self::Unreachable,
        Self::NameNotFound,
        Self::NoSocket,
        Self::Other,
        Self::Elsewhere,
    ];
}

/// The target of a clock jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// This many milliseconds ahead.
    By(u64),
    /// To this many milliseconds before the largest instant.
    ToEdge(u64),
}

impl What {
    /// Returns the name under which the table counts this event.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Act(..) => "application",
            Self::Restart(_, Restart::Driver) => "driver dropped",
            Self::Restart(_, Restart::Process(_)) => "process restart",
            Self::Cut(_, _, Cut::Reset) => "reset",
            Self::Cut(_, _, Cut::End) => "end of stream",
            Self::Cut(_, _, Cut::HalfOpen) => "half open",
            Self::Stall(..) => "stall",
            Self::Slow(..) => "slow",
            Self::Squeeze(..) => "small window",
            Self::Dials(_, fault, _) => match fault {
                DialFault::Refused => "dial refused",
                DialFault::Hangs => "dial hangs",
                DialFault::TimedOut => "dial timed out",
                DialFault::Unreachable => "dial unreachable",
                DialFault::NameNotFound => "dial name not found",
                DialFault::NoSocket => "dial no socket",
                DialFault::Other => "dial other",
                DialFault::Elsewhere => "dial elsewhere",
            },
            Self::Crash(_, false, _) => "crash",
            Self::Crash(_, true, _) => "power loss",
            Self::Freeze(..) => "freeze",
            Self::Mode(_, mode, _) => match mode {
                Mode::Mute => "server mute",
                Mode::Garbage => "server garbage",
                Mode::Wrong => "server wrong",
                Mode::Trickle => "server trickle",
                Mode::Huge => "server huge",
                Mode::Hasty => "server hasty",
                Mode::Exiting => "server exiting",
                Mode::Shut => "server shut",
            },
            Self::Clock(_, Jump::By(_)) => "clock jump",
            Self::Clock(_, Jump::ToEdge(_)) => "clock to edge",
            Self::Vandalize(..) => "administrator",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:>4}.{:03} s {:?}", self.at / 1000, self.at % 1000, self.what)
    }
}

/// Makes the steps, ordered by time, and the end of the world in milliseconds.
pub(crate) fn generate(random: &mut Random, actors: usize, hosts: usize) -> (Vec<Step>, u64) {
    let mut steps = Vec::new();
    for actor in 0..actors {
        let mut at = 0;
        for _ in 0..random.between(2, 60) {
            // Some in quick succession.
            at = if random.one_in(3) { at + random.below(200) } else { random.below(FAULTY) };
            at = at.min(FAULTY - 1);
            steps.push(Step { at, what: What::Act(actor, random.below(u64::MAX)) });
        }
    }
    // Each seed has favourite faults: what is rare in one seed is common in another.
    let palette: Vec<u64> = (0..random.pick(&[1, 2, 3, 16])).map(|_| random.below(16)).collect();
    // Faults come in storms: few or many, spread or at about the same time, some exactly when an
    // application does something.
    for _ in 0..random.between(1, 6) {
        let work = steps[random.below(steps.len() as u64) as usize].at;
        let from = if random.one_in(2) { work } else { random.below(FAULTY) };
        let width = random.pick(&[100, 1000, 30_000, FAULTY]);
        for _ in 0..random.between(1, 15) {
            let at = (from + random.below(width)).min(FAULTY - 1);
            // Every fault ends before the faultless phase.
            let longest = random.pick(&[300, 5000, 30_000, 120_000]);
            let ms = (1 + random.below(longest)).min(FAULTY - at);
            let kind = random.pick(&palette);
            let what = fault(random, kind, actors, hosts, ms);
            steps.push(Step { at, what });
        }
    }
    let mut end = END;
    if random.one_in(40) {
        let at = random.below(FAULTY);
        for actor in 0..actors {
            let jump = Jump::ToEdge(random.pick(&[0, 1, 100, 10_000, EDGE / 2, 2 * EDGE]));
            steps.push(Step { at, what: What::Clock(actor, jump) });
        }
        end = at + EDGE;
        steps.retain(|step| step.at < end);
    }
    steps.sort_by_key(|step| step.at);
    (steps, end)
}

/// When the first hostile client may connect, in milliseconds; the honest actors run by then.
const HOSTILE: u64 = 5000;

/// Makes the actions of hostile clients and the faults of their connections; the honest actors
/// have no other faults.
pub(crate) fn hostile(random: &mut Random, actors: Range<usize>, hosts: usize) -> (Vec<Step>, u64) {
    let mut steps = Vec::new();
    for actor in actors {
        for _ in 0..random.between(1, 12) {
            let at = random.between(HOSTILE, FAULTY - 1);
            steps.push(Step { at, what: What::Act(actor, random.below(u64::MAX)) });
        }
        for _ in 0..random.pick(&[0, 0, 1, 6]) {
            let at = random.between(HOSTILE, FAULTY - 1);
            let host = random.below(hosts as u64) as usize;
            let cut = random.pick(&[Cut::Reset, Cut::End, Cut::HalfOpen, Cut::HalfOpen]);
            let ms = random.between(1, 5000);
            let what = match random.below(3) {
                0 => What::Restart(actor, Restart::Process(ms)),
                _ => What::Cut(actor, host, cut),
            };
            steps.push(Step { at, what });
        }
    }
    steps.sort_by_key(|step| step.at);
    (steps, HOSTILE_END)
}

/// Makes a fault of this kind, 0 to 15.
fn fault(random: &mut Random, kind: u64, actors: usize, hosts: usize, ms: u64) -> What {
    let actor = random.below(actors as u64) as usize;
    let host = random.below(hosts as u64) as usize;
    match kind {
        0 => What::Restart(actor, Restart::Process(ms)),
        1 => What::Restart(actor, Restart::Driver),
        2..5 => {
            What::Cut(actor, host, random.pick(&[Cut::Reset, Cut::Reset, Cut::End, Cut::HalfOpen]))
        }
        5 => What::Stall(host, random.one_in(2), ms),
        6 => What::Slow(host, random.pick(&[100, 1000, 8000]), ms),
        7 => What::Squeeze(host, ms),
        8 => What::Dials(host, random.pick(&DialFault::ALL), ms),
        9 => What::Dials(host, DialFault::Elsewhere, ms),
        10 => What::Crash(host, random.one_in(2), ms),
        11 => What::Freeze(host, ms),
        12 | 13 => What::Mode(host, random.pick(&Mode::ALL), ms),
        14 => What::Clock(actor, Jump::By(random.pick(&[1, 500, 20_000, 3_600_000, 1 << 33]))),
        _ => What::Vandalize(host, random.below(u64::MAX)),
    }
}
