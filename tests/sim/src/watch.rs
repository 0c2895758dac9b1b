//! What is seen of a simulation: which state of a session met which event, and the trace for
//! people.
//!
//! States come from the core itself: it traces every change through `log`. Which session it is
//! about is known because the driver asks its clock before it does anything with its session
//! (`enter`). All of it is per thread, as is a simulation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use nanonsq_core::session::Link;
use nanonsq_models::server;

use crate::session_table::SessionTable;

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The application gave it work.
    Work,
    /// The application stopped it.
    Stop,
    /// The application said with whom to be connected.
    Configure,
    /// Its deadline came.
    Deadline,
    /// Its clock jumped.
    ClockJump,
    /// Its driver was dropped and runs again.
    Dropped,
    /// A dial came up.
    Up,
    /// A dial failed.
    DialFailed,
    /// The transport took all that was offered.
    Wrote,
    /// The transport took a part.
    WrotePart,
    /// The transport took nothing.
    Blocked,
    /// The transport is broken, said when written to.
    WriteError,
    /// The transport is broken, said when read from.
    ReadError,
    /// The other side ended the stream.
    End,
    /// The transport was closed, or aborted.
    Closed,
    /// The end of an answer to IDENTIFY.
    Identified,
    /// The end of an answer to AUTH.
    Authorized,
    /// The end of an OK.
    Ok,
    /// The end of a heartbeat.
    Heartbeat,
    /// The end of a refusal.
    Refusal,
    /// The end of a message.
    Message,
    /// The end of a CLOSE_WAIT.
    CloseWait,
    /// The end of an E_FIN_FAILED and its like: the connection stays.
    Late,
    /// A part of any of these.
    Part,
    /// Something that a server should not say.
    Lie,
    /// A server read something.
    Heard,
}

impl From<server::Kind> for Event {
    fn from(kind: server::Kind) -> Self {
        use server::Kind;
        match kind {
            Kind::Identified => Self::Identified,
            Kind::Authorized => Self::Authorized,
            Kind::Ok => Self::Ok,
            Kind::Heartbeat => Self::Heartbeat,
            Kind::Refusal => Self::Refusal,
            Kind::Message => Self::Message,
            Kind::CloseWait => Self::CloseWait,
            Kind::Late => Self::Late,
        }
    }
}

impl Event {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 26] = [
        Self::Work,
        Self::Stop,
        Self::Configure,
        Self::Deadline,
        Self::ClockJump,
        Self::Dropped,
        Self::Up,
        Self::DialFailed,
        Self::Wrote,
        Self::WrotePart,
        Self::Blocked,
        Self::WriteError,
        Self::ReadError,
        Self::End,
        Self::Closed,
        Self::Identified,
        Self::Authorized,
        Self::Ok,
        Self::Heartbeat,
        Self::Refusal,
        Self::Message,
        Self::CloseWait,
        Self::Late,
        Self::Part,
        Self::Lie,
        Self::Heard,
    ];
}

/// A kind of session: its states, as the core names them, the first one first.
#[derive(Debug)]
pub struct Machine {
    /// What the core's trace calls it.
    pub name: &'static str,
    /// The names of its states.
    pub states: &'static [&'static str],
}

impl Machine {
    fn state(&self, word: &str) -> Option<usize> {
        self.states.iter().position(|state| *state == word)
    }
}

/// The kinds of sessions there are.
pub const MACHINES: [Machine; 8] = [
    Machine {
        name: "publisher",
        states: &[
            "Waiting",
            "Dialing",
            "Identifying",
            "Authenticating",
            "Ready",
            "Closing",
            "Idle",
        ],
    },
    Machine {
        name: "lookup peer",
        states: &["Idle", "Waiting", "Dialing", "Identifying", "Ready", "Leaving", "Closing"],
    },
    Machine {
        name: "consumer",
        states: &[
            "Idle",
            "Waiting",
            "Dialing",
            "Identifying",
            "Authenticating",
            "Subscribing",
            "Ready",
            "Draining",
            "Leaving",
            "Closing",
        ],
    },
    Machine { name: "lookupd", states: &["Idle", "Waiting", "Dialing", "Asking", "Closing"] },
    Machine { name: "node", states: &["Unused", "Init", "Subscribed", "Closing"] },
    Machine { name: "producer", states: &["Free", "Greeting", "Identified", "Closing"] },
    Machine {
        name: "http",
        states: &["Down", "Idle", "Head", "Body", "Held", "Answer", "Linger", "Closing"],
    },
    Machine { name: "busy", states: &["Down", "Listening", "Answering"] },
];

/// The sessions of a lookup; those that ask nsqlookupds; of a node's clients; of a directory's nodes; of
/// both's HTTP; of those that both turn away.
pub(crate) const PEER: Kind = 1;
pub(crate) const LOOKUPD: Kind = 3;
pub(crate) const NODE: Kind = 4;
pub(crate) const PRODUCER: Kind = 5;
pub(crate) const HTTP: Kind = 6;
pub(crate) const BUSY: Kind = 7;

/// The number of a [`Machine`]'s sessions: an index into [`MACHINES`].
pub type Kind = usize;

/// The most states that a machine has.
const STATES_MAX: usize = 10;

/// What was exercised.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// How often, by machine, state and event.
    events: [[[u64; Event::ALL.len()]; STATES_MAX]; MACHINES.len()],
    /// How often a machine went from one state into another.
    changes: [[[u64; STATES_MAX]; STATES_MAX]; MACHINES.len()],
    /// How often something else happened: faults and what they were.
    counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Adds another's numbers.
    pub fn add(&mut self, other: &Self) {
        for (sum, n) in
            self.events.iter_mut().flatten().flatten().zip(other.events.iter().flatten().flatten())
        {
            *sum += n;
        }
        for (sum, n) in self
            .changes
            .iter_mut()
            .flatten()
            .flatten()
            .zip(other.changes.iter().flatten().flatten())
        {
            *sum += n;
        }
        for (what, n) in &other.counts {
            *self.counts.entry(what).or_default() += n;
        }
    }

    /// How often a machine in that state met that event.
    pub fn events(&self, kind: Kind, state: usize, event: Event) -> u64 {
        self.events[kind][state][event as usize]
    }

    /// How often a machine went from one state to another.
    pub fn changes(&self, kind: Kind, from: usize, to: usize) -> u64 {
        self.changes[kind][from][to]
    }

    /// What else happened.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}

/// One session of one actor: the actor's number and, of those with several, which.
pub(crate) type Session = (usize, usize);

#[derive(Default)]
struct Watch {
    sessions: SessionTable<WatchedSession>,
    coverage: Coverage,
    trace: Option<Vec<String>>,
}

struct WatchedSession {
    kind: Kind,
    state: usize,
    /// Others change it as well: what it was may be news.
    shared: bool,
    /// What it holds against its connection, if that is a fault of the other side.
    fault: Option<String>,
}

impl WatchedSession {
    fn change(&mut self, new: usize, coverage: &mut Coverage) {
        if new != self.state {
            coverage.changes[self.kind][self.state][new] += 1;
            self.state = new;
        }
    }
}

thread_local! {
    static WATCH: RefCell<Watch> = RefCell::default();
    static NOW: Cell<u64> = const { Cell::new(0) };
    static ACTIVE: Cell<Option<Session>> = const { Cell::new(None) };
    /// How often a machine of the core went to another state.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    static TRACED: Cell<bool> = const { Cell::new(false) };
    /// What was formatted last: there is much of it, and mostly only its first word is read.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// What something is as text.
fn with_text<R>(what: fmt::Arguments<'_>, read: impl FnOnce(&str) -> R) -> R {
    TEXT.with_borrow_mut(|text| {
        text.clear();
        text.write_fmt(what).expect("room for it");
        read(text)
    })
}

/// The word before what a state holds.
fn word(state: &str) -> &str {
    state.split(['(', ' ']).next().unwrap_or_default()
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    /// The core's trace: `machine: Old(..) -> New(..)`.
    fn log(&self, record: &log::Record<'_>) {
        let Some(session) = ACTIVE.get() else { return };
        with_text(*record.args(), |text| {
            let Some((name, states)) = text.split_once(": ") else { return };
            let Some((old, new)) = states.split_once(" -> ") else { return };
            let (old, new) = (word(old), word(new));
            CHANGES.set(CHANGES.get() + u64::from(old != new));
            WATCH.with_borrow_mut(|watch| {
                let Some(seat) = watch.sessions.get_mut(session) else { return };
                let machine = &MACHINES[seat.kind];
                if seat.kind >= NODE {
                    // What one client does may change another, and not all of its state is traced:
                    // the rest is read when everybody was polled.
                    let new = if new == "Up" { "Init" } else { new };
                    let other = seat.kind == PRODUCER && old == "Identified";
                    if machine.name == name && !other {
                        let new = machine.state(new).expect("a state that is in the table");
                        seat.change(new, &mut watch.coverage);
                    }
                    return;
                }
                assert_eq!(machine.name, name, "the session that asked for the time last");
                if seat.shared {
                    seat.state = machine.state(old).expect("a state that is in the table");
                }
                assert_eq!(machine.state(old), Some(seat.state), "{session:?}: {text}");
                let new = machine.state(new).expect("a state that is in the table");
                watch.coverage.changes[seat.kind][seat.state][new] += 1;
                seat.state = new;
                match machine.states[new] {
                    // A query has no heartbeats: one that takes long is given up.
                    "Closing"
                        if seat.kind != LOOKUPD
                            && states.contains("Fault(")
                            && !["Refused", "Required"]
                                .iter()
                                .any(|word| states.contains(word)) =>
                    {
                        seat.fault = Some(states.to_owned());
                    }
                    "Identifying" => seat.fault = None,
                    _ => {}
                }
            });
            say(|| format!("{}: {states}", label(session)));
        });
    }

    fn flush(&self) {}
}

/// How the trace calls a session.
fn label((actor, machine): Session) -> String {
    format!("node{actor}.{machine}")
}

/// Once a process.
pub(crate) fn install() {
    static LOGGER: Logger = Logger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
}

/// A new simulation.
pub(crate) fn begin(trace: bool) {
    NOW.set(0);
    ACTIVE.set(None);
    TRACED.set(trace);
    WATCH.set(Watch { trace: trace.then(Vec::new), ..Watch::default() });
}

/// What was seen since [`begin`].
pub(crate) fn end() -> (Coverage, Option<Vec<String>>) {
    let watch = WATCH.take();
    (watch.coverage, watch.trace)
}

pub(crate) fn set_now(now: u64) {
    NOW.set(now);
}

/// The state of a new session.
pub(crate) fn add(session: Session, kind: Kind) {
    insert(session, WatchedSession { kind, state: 0, shared: false, fault: None });
}

/// The state of a new session that is stopped and configured from within its own runner.
pub(crate) fn add_shared(session: Session, kind: Kind) {
    insert(session, WatchedSession { kind, state: 0, shared: true, fault: None });
}

fn insert(session: Session, seat: WatchedSession) {
    WATCH.with_borrow_mut(|watch| watch.sessions.insert(session, seat));
}

/// What the core traces from now on is about this session.
pub(crate) fn enter(session: Option<Session>) {
    ACTIVE.set(session);
}

/// Its state, if it changed without a driver.
pub(crate) fn set_state(session: Session, state: &impl fmt::Debug) {
    with_text(format_args!("{state:?}"), |text| set_word(session, word(text)));
}

/// As [`set_state`], by its name.
pub(crate) fn set_word(session: Session, word: &str) {
    WATCH.with_borrow_mut(|watch| {
        let Some(seat) = watch.sessions.get_mut(session) else { return };
        let new = MACHINES[seat.kind].state(word).expect("in the table");
        seat.change(new, &mut watch.coverage);
    });
}

/// The state of an HTTP session, as far as its link shows that another's driver changed it.
pub(crate) fn set_http(session: Session, link: Option<Link>) {
    match link {
        Some(Link::Up) => {}
        Some(Link::Close) => set_word(session, "Closing"),
        _ => set_word(session, "Down"),
    }
}

/// How often a machine of the core has gone to another state.
pub(crate) fn changes() -> u64 {
    CHANGES.get()
}

/// Whether a session is one of the core's.
pub(crate) fn knows(session: Session) -> bool {
    WATCH.with_borrow(|watch| watch.sessions.get(session).is_some())
}

/// Whether a session is a publisher or a registration: it begins anew with its process only.
pub(crate) fn backs_off(session: Session) -> bool {
    WATCH.with_borrow(|watch| watch.sessions.get(session).is_some_and(|seat| seat.kind <= PEER))
}

/// What a session holds against its connection, other than that the server refused something.
pub(crate) fn fault(session: Session) -> Option<String> {
    WATCH.with_borrow(|watch| watch.sessions.get(session)?.fault.clone())
}

/// Whether a session is in that state.
pub(crate) fn is_in(session: Session, state: &str) -> bool {
    WATCH.with_borrow(|watch| {
        let seat = watch.sessions.get(session);
        seat.is_some_and(|seat| MACHINES[seat.kind].states[seat.state] == state)
    })
}

/// Something happens to a session, in the state in which it is.
pub(crate) fn event(session: Session, event: Event) {
    WATCH.with_borrow_mut(|watch| {
        if let Some(seat) = watch.sessions.get(session) {
            watch.coverage.events[seat.kind][seat.state][event as usize] += 1;
        }
    });
}

/// Whether it is the session of a listener that has none of its own.
pub(crate) fn is_spare(session: Session) -> bool {
    WATCH.with_borrow(|watch| watch.sessions.get(session).is_some_and(|it| it.kind == BUSY))
}

/// Something happens on a connection that was accepted. The spare listener serves another session
/// than its own if it can; while its own has no connection its state says nothing.
pub(crate) fn event_of_listener(session: Session, what: Event) {
    let up = WATCH.with_borrow(|watch| watch.sessions.get(session).is_some_and(|it| it.state > 0));
    // A caller comes when there is no connection, all else happens when there is one.
    let comes = matches!(what, Event::Up | Event::DialFailed);
    if up != comes {
        event(session, what);
    }
}

/// Something else happens.
pub(crate) fn count(what: &'static str) {
    WATCH.with_borrow_mut(|watch| *watch.coverage.counts.entry(what).or_default() += 1);
}

/// A line of the trace.
pub(crate) fn say(line: impl FnOnce() -> String) {
    if !TRACED.get() {
        return;
    }
    let now = NOW.get();
    let line = format!("{:>4}.{:06} {}", now / 1_000_000, now % 1_000_000, line());
    WATCH.with_borrow_mut(|watch| watch.trace.get_or_insert_default().push(line));
}

/// As [`say`], about a session.
pub(crate) fn tell(session: Session, line: impl FnOnce() -> String) {
    say(|| format!("{} {}", label(session), line()));
}
