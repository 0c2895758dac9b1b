//! The coverage of a simulation: which state of a session met which event; and the trace for
//! people.
//!
//! States come from the core, which logs every change with `log`. The log does not name the
//! session: the last one whose clock was asked (`enter`) is meant, because a driver asks its clock
//! before it calls its session. Everything here is per thread, as is a simulation.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use nanonsq_core::session::Link;
use nanonsq_models::server;

use crate::session_table::SessionTable;

/// An event that a session meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The application queued work.
    Work,
    /// The application stopped it.
    Stop,
    /// The application set the servers to connect to.
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
    /// The transport accepted everything that was offered.
    Wrote,
    /// The transport accepted a part.
    WrotePart,
    /// The transport accepted nothing.
    Blocked,
    /// Writing failed.
    WriteError,
    /// Reading failed.
    ReadError,
    /// The other side ended the stream.
    End,
    /// The transport was closed, or aborted.
    Closed,
    /// The last byte of a response to IDENTIFY.
    Identified,
    /// The last byte of a response to AUTH.
    Authorized,
    /// The last byte of an OK.
    Ok,
    /// The last byte of a heartbeat.
    Heartbeat,
    /// The last byte of a refusal.
    Refusal,
    /// The last byte of a message.
    Message,
    /// The last byte of a CLOSE_WAIT.
    CloseWait,
    /// The last byte of an E_FIN_FAILED or similar, after which the connection stays.
    Late,
    /// A part of any of these.
    Part,
    /// Something that a server must not send.
    Lie,
    /// A server read bytes.
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
    /// All events, in the order of their numbers.
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

/// A kind of session: its states by the names of the core, the initial state first.
#[derive(Debug)]
pub struct Machine {
    /// Its name in the core's log.
    pub name: &'static str,
    /// The names of its states.
    pub states: &'static [&'static str],
}

impl Machine {
    fn state(&self, state_name: &str) -> Option<usize> {
        self.states.iter().position(|state| *state == state_name)
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

/// Indices into [`MACHINES`]: peers of registrations; lookup sessions of consumers; clients of a
/// node; clients of a directory; HTTP of both; spare listeners of both, which reject callers.
pub(crate) const PEER: Kind = 1;
pub(crate) const LOOKUPD: Kind = 3;
pub(crate) const NODE: Kind = 4;
pub(crate) const PRODUCER: Kind = 5;
pub(crate) const HTTP: Kind = 6;
pub(crate) const BUSY: Kind = 7;

/// An index into [`MACHINES`].
pub type Kind = usize;

/// The most states of any machine.
const STATES_MAX: usize = 10;

/// The counts of events, changes of state and everything else that is counted.
#[derive(Debug, Clone, Default)]
pub struct Coverage {
    /// Counts by machine, state and event.
    events: [[[u64; Event::ALL.len()]; STATES_MAX]; MACHINES.len()],
    /// Counts by machine, old state and new state.
    changes: [[[u64; STATES_MAX]; STATES_MAX]; MACHINES.len()],
    /// Counts by name: faults, and everything that is counted with [`count`].
    counts: BTreeMap<&'static str, u64>,
}

impl Coverage {
    /// Adds the counts of another run.
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

    /// Returns how often a machine met `event` in this state.
    pub fn events(&self, kind: Kind, state: usize, event: Event) -> u64 {
        self.events[kind][state][event as usize]
    }

    /// Returns how often a machine went from one state to another.
    pub fn changes(&self, kind: Kind, from: usize, to: usize) -> u64 {
        self.changes[kind][from][to]
    }

    /// Returns the counts by name.
    pub fn counts(&self) -> &BTreeMap<&'static str, u64> {
        &self.counts
    }
}

/// An actor's number, and the number of its session.
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
    /// True if the state also changes without a driver: the known state may be outdated.
    shared: bool,
    /// The fault of the other side for which the session gave up its connection.
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
    /// The number of state changes in the core.
    static CHANGES: Cell<u64> = const { Cell::new(0) };
    static TRACED: Cell<bool> = const { Cell::new(false) };
    /// The text that was formatted last; reused, because only the first word of most is read.
    static TEXT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// Formats `what` and passes the text to `read`.
fn with_text<R>(what: fmt::Arguments<'_>, read: impl FnOnce(&str) -> R) -> R {
    TEXT.with_borrow_mut(|text| {
        text.clear();
        text.write_fmt(what).expect("room for it");
        read(text)
    })
}

/// Returns the name of a state without its fields.
fn state_name(state: &str) -> &str {
    state.split(['(', ' ']).next().unwrap_or_default()
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    /// Reads the core's log: `machine: Old(..) -> New(..)`.
    fn log(&self, record: &log::Record<'_>) {
        let Some(session) = ACTIVE.get() else { return };
        with_text(*record.args(), |text| {
            let Some((name, states)) = text.split_once(": ") else { return };
            let Some((old, new)) = states.split_once(" -> ") else { return };
            let (old, new) = (state_name(old), state_name(new));
            CHANGES.set(CHANGES.get() + u64::from(old != new));
            WATCH.with_borrow_mut(|watch| {
                let Some(watched) = watch.sessions.get_mut(session) else { return };
                let machine = &MACHINES[watched.kind];
                if watched.kind >= NODE {
                    // One client may change another, and not all of its state is logged: the rest
                    // is read after all were polled.
                    let new = if new == "Up" { "Init" } else { new };
                    let other = watched.kind == PRODUCER && old == "Identified";
                    if machine.name == name && !other {
                        let new = machine.state(new).expect("a state that is in the table");
                        watched.change(new, &mut watch.coverage);
                    }
                    return;
                }
                assert_eq!(machine.name, name, "the session that asked for the time last");
                if watched.shared {
                    watched.state = machine.state(old).expect("a state that is in the table");
                }
                assert_eq!(machine.state(old), Some(watched.state), "{session:?}: {text}");
                let new = machine.state(new).expect("a state that is in the table");
                watch.coverage.changes[watched.kind][watched.state][new] += 1;
                watched.state = new;
                match machine.states[new] {
                    // A query has no heartbeats: a slow one is given up without a fault.
                    "Closing"
                        if watched.kind != LOOKUPD
                            && states.contains("Fault(")
                            && !["Refused", "Required"]
                                .iter()
                                .any(|state_name| states.contains(state_name)) =>
                    {
                        watched.fault = Some(states.to_owned());
                    }
                    "Identifying" => watched.fault = None,
                    _ => {}
                }
            });
            trace(|| format!("{}: {states}", label(session)));
        });
    }

    fn flush(&self) {}
}

/// Returns the name of a session in the trace.
fn label((actor, machine): Session) -> String {
    format!("node{actor}.{machine}")
}

/// Installs the logger. Call once per process.
pub(crate) fn install() {
    static LOGGER: Logger = Logger;
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(log::LevelFilter::Trace);
    }
}

/// Begins a new simulation.
pub(crate) fn begin(trace: bool) {
    NOW.set(0);
    ACTIVE.set(None);
    TRACED.set(trace);
    WATCH.set(Watch { trace: trace.then(Vec::new), ..Watch::default() });
}

/// Returns what was recorded since [`begin`].
pub(crate) fn end() -> (Coverage, Option<Vec<String>>) {
    let watch = WATCH.take();
    (watch.coverage, watch.trace)
}

pub(crate) fn set_now(now: u64) {
    NOW.set(now);
}

/// Adds a session, in its initial state.
pub(crate) fn add(session: Session, kind: Kind) {
    insert(session, WatchedSession { kind, state: 0, shared: false, fault: None });
}

/// Adds a session that its own runner stops and configures.
pub(crate) fn add_shared(session: Session, kind: Kind) {
    insert(session, WatchedSession { kind, state: 0, shared: true, fault: None });
}

fn insert(session: Session, watched: WatchedSession) {
    WATCH.with_borrow_mut(|watch| watch.sessions.insert(session, watched));
}

/// Attributes what the core logs from now on to this session.
pub(crate) fn enter(session: Option<Session>) {
    ACTIVE.set(session);
}

/// Sets a state that changed without a driver.
pub(crate) fn set_state(session: Session, state: &impl fmt::Debug) {
    with_text(format_args!("{state:?}"), |text| set_word(session, state_name(text)));
}

/// As [`set_state`], by the name of the state.
pub(crate) fn set_word(session: Session, state_name: &str) {
    WATCH.with_borrow_mut(|watch| {
        let Some(watched) = watch.sessions.get_mut(session) else { return };
        let new = MACHINES[watched.kind].state(state_name).expect("in the table");
        watched.change(new, &mut watch.coverage);
    });
}

/// Sets the state of an HTTP session if its link shows that another session's driver changed it.
pub(crate) fn set_http(session: Session, link: Option<Link>) {
    match link {
        Some(Link::Up) => {}
        Some(Link::Close) => set_word(session, "Closing"),
        _ => set_word(session, "Down"),
    }
}

/// Returns how often a machine of the core changed its state.
pub(crate) fn changes() -> u64 {
    CHANGES.get()
}

/// Returns whether the session was added.
pub(crate) fn knows(session: Session) -> bool {
    WATCH.with_borrow(|watch| watch.sessions.get(session).is_some())
}

/// Returns whether the session is a publisher or a registration, whose backoff lasts as long as
/// its process.
pub(crate) fn backs_off(session: Session) -> bool {
    WATCH.with_borrow(|watch| {
        watch.sessions.get(session).is_some_and(|watched| watched.kind <= PEER)
    })
}

/// Returns the fault of the other side for which the session gave up its connection.
pub(crate) fn fault(session: Session) -> Option<String> {
    WATCH.with_borrow(|watch| watch.sessions.get(session)?.fault.clone())
}

/// Returns whether the session is in this state.
pub(crate) fn is_in(session: Session, state: &str) -> bool {
    WATCH.with_borrow(|watch| {
        let watched = watch.sessions.get(session);
        watched.is_some_and(|watched| MACHINES[watched.kind].states[watched.state] == state)
    })
}

/// Counts an event in the session's current state.
pub(crate) fn event(session: Session, event: Event) {
    WATCH.with_borrow_mut(|watch| {
        if let Some(watched) = watch.sessions.get(session) {
            watch.coverage.events[watched.kind][watched.state][event as usize] += 1;
        }
    });
}

/// Returns whether the session is that of a spare listener.
pub(crate) fn is_spare(session: Session) -> bool {
    WATCH.with_borrow(|watch| watch.sessions.get(session).is_some_and(|it| it.kind == BUSY))
}

/// Counts an event of an accepted connection. The spare listener serves another session than its
/// own if it can; while its own has no connection its state is irrelevant.
pub(crate) fn event_of_listener(session: Session, what: Event) {
    let up = WATCH.with_borrow(|watch| watch.sessions.get(session).is_some_and(|it| it.state > 0));
    // A caller comes while there is no connection; all else happens while there is one.
    let comes = matches!(what, Event::Up | Event::DialFailed);
    if up != comes {
        event(session, what);
    }
}

/// Counts an event by name.
pub(crate) fn count(what: &'static str) {
    WATCH.with_borrow_mut(|watch| *watch.coverage.counts.entry(what).or_default() += 1);
}

/// Adds a line to the trace.
pub(crate) fn trace(line: impl FnOnce() -> String) {
    if !TRACED.get() {
        return;
    }
    let now = NOW.get();
    let line = format!("{:>4}.{:06} {}", now / 1_000_000, now % 1_000_000, line());
    WATCH.with_borrow_mut(|watch| watch.trace.get_or_insert_default().push(line));
}

/// As [`trace`], about a session.
pub(crate) fn trace_session(session: Session, line: impl FnOnce() -> String) {
    trace(|| format!("{} {}", label(session), line()));
}
