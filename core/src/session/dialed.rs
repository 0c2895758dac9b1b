//! The life of a dialed connection: one machine for publisher, registration, consumer and queries to
//! nsqlookupds. Each takes the steps of it that its protocol has.
//!
//! ```text
//!          wait             dial            open               step               step
//! Idle <-------> Waiting ---------> Dialing ------> Upgrading ------> Identifying ------> Ready, ...
//!   ^     rest                         |                |                  |                |
//!   |                                  +----------------+------ close -----+----------------+
//!   |              closed                                         v
//!   +--------------------------------------------------------- Closing
//! ```
//!
//! Where a session is, only these calls change, each from the states that it is for; from another it
//! changes nothing. So `Closing` has one way out: the driver says that the transport is gone. A
//! connection that is not wanted any more is closed like any other, it is not a matter of who asks.
//!
//! When to dial again, and which connection was good, is the rule of [`Backoff`].

use super::staging::Staging;
use super::{Awaited, Closed, DialError, Fault, Link, Upgrade};
use crate::macros::trace_state;
use crate::time::{Backoff, Instant, Jitter, LASTED, Span, expire};

/// Where a dialed connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum LinkState {
    /// No connection, and none wanted.
    Idle,
    /// No connection; the next dial is due at a time, or when there is something to ask.
    Waiting,
    /// A dial is under way.
    Dialing,
    /// The transport is being wrapped: [`Link::Upgrade`].
    Upgrading,
    /// IDENTIFY is being sent, or its answer is due.
    Identifying,
    /// AUTH is being sent, or its answer is due.
    Authenticating,
    /// SUB is being sent, or its answer is due.
    Subscribing,
    /// A query is being sent, or the answer read.
    Asking,
    /// The handshake is over: commands are sent and answered.
    Ready,
    /// A consumer leaves: CLS is sent, the application may answer what it has.
    Draining,
    /// What is left is undone, then the connection closed: a consumer requeues messages, a node
    /// unregisters its topics.
    Leaving,
    /// The driver is to close the connection.
    Closing,
}

impl LinkState {
    /// Whether it is one from `from` on and before `to`.
    #[inline]
    const fn within(self, from: Self, to: Self) -> bool {
        (self as u8).wrapping_sub(from as u8) < (to as u8).wrapping_sub(from as u8)
    }

    /// Whether bytes of the server are read.
    pub(crate) fn is_up(self) -> bool {
        self.within(Self::Identifying, Self::Closing)
    }

    /// Whether nsqd takes FIN, REQ and TOUCH.
    pub(crate) fn is_subscribed(self) -> bool {
        self.within(Self::Ready, Self::Closing)
    }

    /// Whether there is no connection and no dial.
    pub(crate) fn is_down(self) -> bool {
        self as u8 <= Self::Waiting as u8
    }

    /// Whether the connection is being dialed, or what it is for has not begun or not ended.
    pub(crate) fn is_coming_up(self) -> bool {
        self.within(Self::Dialing, Self::Ready)
    }

    /// Whether the connection is in the handshake: a command is sent, then its answer awaited.
    pub(crate) fn is_handshake(self) -> bool {
        self.within(Self::Identifying, Self::Asking)
    }
}

/// Whose connection it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    Consumer,
    Publisher,
    Registration,
    Query,
}

/// What the application was not told yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum PendingEvent {
    None,
    /// The handshake is over.
    Up,
    /// The connection is gone or did not come up.
    Down,
}

/// A dialed connection.
// In this order because a Cortex-M0 reaches only the first 31 bytes, 62 half words and 124 bytes of
// a structure in one instruction.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Dialed {
    /// The end of the state. Waiting: dial. Dialing to Asking: give up. Ready: give up, since nsqd
    /// was silent for so long. Leaving and Draining: enough of that. Closing: abort.
    pub(crate) deadline: Instant,
    state: LinkState,
    role: Role,
    /// The text is the current command of the handshake, or the query.
    pub(crate) staging: Staging,
    pub(crate) attempts: Backoff,
    /// Why it is closing, or was closed last, if that is known.
    why: Closed,
    has_why: bool,
    pub(crate) pending_event: PendingEvent,
    /// Heartbeats to answer, or PINGs to send.
    pub(crate) nops: u8,
    /// When the connection came up; never while it has not.
    opened: Instant,
}

impl Dialed {
    /// A consumer's, in no use yet. All of it is zero, so that flash holds no image of it.
    pub(crate) const ZERO: Self = Self {
        deadline: Instant::ZERO,
        state: LinkState::Idle,
        role: Role::Consumer,
        staging: Staging::EMPTY,
        attempts: Backoff::NONE,
        why: Closed::ZERO,
        has_why: false,
        pending_event: PendingEvent::None,
        nops: 0,
        opened: Instant::ZERO,
    };

    /// None is wanted yet.
    pub(crate) const fn new(role: Role, attempts: Backoff) -> Self {
        Self { role, attempts, deadline: Instant::NEVER, opened: Instant::NEVER, ..Self::ZERO }
    }

    /// The first dial is due at a time.
    pub(crate) const fn due(role: Role, attempts: Backoff, deadline: Instant) -> Self {
        Self { deadline, state: LinkState::Waiting, ..Self::new(role, attempts) }
    }

    /// A publisher's, which dials at once.
    pub(crate) const PUBLISHER: Self = Self::due(Role::Publisher, Backoff::ONE, Instant::ZERO);

    pub(crate) fn state(&self) -> LinkState {
        self.state
    }

    pub(crate) fn publishes(&self) -> bool {
        self.role == Role::Publisher
    }

    fn set_state(&mut self, state: LinkState) {
        let who = match self.role {
            Role::Consumer => "consumer",
            Role::Publisher => "publisher",
            Role::Registration => "lookup peer",
            Role::Query => "lookupd",
        };
        trace_state!(who, self.shown(self.state), self.shown(state));
        self.state = state;
    }

    pub(crate) fn link(&self) -> Link {
        match self.state {
            LinkState::Idle | LinkState::Waiting => Link::Down,
            LinkState::Upgrading => Link::Upgrade(Upgrade::Tls),
            LinkState::Closing => Link::Close,
            LinkState::Dialing
            | LinkState::Identifying
            | LinkState::Authenticating
            | LinkState::Subscribing
            | LinkState::Asking
            | LinkState::Ready
            | LinkState::Draining
            | LinkState::Leaving => Link::Up,
        }
    }

    /// Why it is closing, or was closed last.
    pub(crate) fn why(&self) -> Option<Closed> {
        self.has_why.then_some(self.why)
    }

    /// What was wrong with the last connection is of no interest any more.
    pub(crate) fn forget_why(&mut self) {
        self.has_why = false;
    }

    fn set_why(&mut self, why: &Closed) {
        self.why = *why;
        self.has_why = true;
    }

    /// What the application was not told yet; says so once.
    pub(crate) fn take_pending_event(&mut self) -> PendingEvent {
        core::mem::replace(&mut self.pending_event, PendingEvent::None)
    }

    /// Whether the deadline of the state has passed; says so once.
    #[inline(never)]
    fn take_expired(&mut self, now: Instant) -> bool {
        expire(&mut self.deadline, now)
    }

    /// The next dial is due at `until`.
    pub(crate) fn wait(&mut self, until: Instant) {
        self.deadline = until;
        self.set_state(LinkState::Waiting);
    }

    /// No connection is wanted any more; there is none.
    pub(crate) fn rest(&mut self) {
        self.deadline = Instant::NEVER;
        self.set_state(LinkState::Idle);
    }

    /// Begins a dial if one is due, which is given up after `timeout`.
    pub(crate) fn dial(&mut self, timeout: Span, now: Instant) -> bool {
        let due = self.state == LinkState::Waiting && self.take_expired(now);
        if due {
            self.dial_until(now.after(timeout));
        }
        due
    }

    /// A dial begins, which is given up at `until`.
    pub(crate) fn dial_until(&mut self, until: Instant) {
        self.opened = Instant::NEVER;
        self.deadline = until;
        self.set_state(LinkState::Dialing);
    }

    /// The transport is up: a dial succeeded, or a driver that was dropped without a word has a
    /// successor. Not if there was no dial, nor if the connection is to be closed.
    pub(crate) fn come_up(&mut self, now: Instant) -> bool {
        let wanted = self.state.within(LinkState::Dialing, LinkState::Closing);
        if wanted {
            self.opened = now;
            self.nops = 0;
            self.staging.clear();
        }
        wanted
    }

    /// A step of the way up, or of the way down, begins: its command, if it has one, is to be sent,
    /// and it is given up at `until`.
    pub(crate) fn step(&mut self, state: LinkState, until: Instant) {
        if self.state.within(LinkState::Dialing, LinkState::Closing) {
            self.staging.start_text();
            self.deadline = until;
            self.set_state(state);
        }
    }

    /// Whether the last dial succeeded.
    pub(crate) fn came_up(&self) -> bool {
        self.opened != Instant::NEVER
    }

    /// Whether the connection came up `span` ago, or before.
    pub(crate) fn is_old(&self, span: Span, now: Instant) -> bool {
        self.came_up() && self.opened.after(span) <= now
    }

    /// Whether the connection has lasted long enough to have been good: see [`Backoff`].
    #[inline(never)]
    pub(crate) fn lasted(&self, now: Instant) -> bool {
        self.is_old(LASTED, now)
    }

    /// How long to wait before the next dial: see [`Backoff`].
    pub(crate) fn delay(&mut self, spans: [Span; 3], now: Instant, jitter: &mut Jitter) -> Span {
        if self.lasted(now) {
            self.attempts.prove_good();
        }
        self.attempts.delay(spans, self.came_up(), jitter)
    }

    /// The reason to close the connection, if the deadline of its state has passed.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Closed> {
        // Waiting and Closing stay due until the driver dials or aborts.
        if !self.state.within(LinkState::Dialing, LinkState::Closing) || !self.take_expired(now) {
            return None;
        }
        Some(match self.state {
            LinkState::Dialing => Closed::Dial(DialError::TimedOut),
            LinkState::Asking => Closed::Fault(Fault::TimedOut(Awaited::Reply)),
            LinkState::Ready => Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)),
            LinkState::Draining | LinkState::Leaving => Closed::Local,
            _ => Closed::Fault(Fault::TimedOut(Awaited::Handshake)),
        })
    }

    /// Asks the driver to close the connection, or to give up the dial, within `timeout`.
    #[inline(never)]
    pub(crate) fn close(&mut self, why: &Closed, timeout: Span, now: Instant) {
        self.set_why(why);
        if !matches!(why, Closed::Local) {
            self.staging.truncate();
        }
        // A peer that is silent would not take the last bytes either.
        let silent = matches!(why, Closed::Fault(Fault::TimedOut(_)));
        self.deadline = if silent { now } else { now.after(timeout) };
        self.set_state(LinkState::Closing);
    }

    /// The connection is gone, or its dial failed. Gives the reason, unless there was neither.
    pub(crate) fn closed(&mut self, why: Closed) -> Option<Closed> {
        // The reason for which the session closed it explains more than how it ended.
        if self.state.is_down() {
            return None;
        }
        if self.state != LinkState::Closing || !self.has_why {
            self.set_why(&why);
        }
        self.pending_event = PendingEvent::Down;
        self.staging.clear();
        self.rest();
        Some(self.why)
    }

    /// The state, with the reason to close, for traces.
    #[cfg(any(feature = "defmt", feature = "log"))]
    fn shown(&self, state: LinkState) -> Shown {
        Shown { state, why: self.why() }
    }

    /// Nothing is traced.
    #[cfg(not(any(feature = "defmt", feature = "log")))]
    fn shown(&self, state: LinkState) -> LinkState {
        state
    }
}

/// A state, with the reason to close.
#[cfg(any(feature = "defmt", feature = "log"))]
struct Shown {
    state: LinkState,
    why: Option<Closed>,
}

#[cfg(any(feature = "defmt", feature = "log"))]
impl core::fmt::Debug for Shown {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match (self.state, self.why) {
            (LinkState::Closing, Some(why)) => f.debug_tuple("Closing").field(&why).finish(),
            (state, _) => state.fmt(f),
        }
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Shown {
    fn format(&self, f: defmt::Formatter<'_>) {
        match (self.state, self.why) {
            (LinkState::Closing, Some(why)) => defmt::write!(f, "Closing({})", why),
            (state, _) => defmt::write!(f, "{}", state),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::from_millis(1000);
    const SECOND: Span = Span::from_secs(1);

    const ALL: [LinkState; 12] = [
        LinkState::Idle,
        LinkState::Waiting,
        LinkState::Dialing,
        LinkState::Upgrading,
        LinkState::Identifying,
        LinkState::Authenticating,
        LinkState::Subscribing,
        LinkState::Asking,
        LinkState::Ready,
        LinkState::Draining,
        LinkState::Leaving,
        LinkState::Closing,
    ];

    fn in_state(state: LinkState) -> Dialed {
        Dialed { state, ..Dialed::new(Role::Publisher, Backoff::ONE) }
    }

    #[test]
    fn states_are_of_these_kinds() {
        let those = |is: fn(LinkState) -> bool| ALL.into_iter().filter(|state| is(*state)).count();
        assert_eq!(ALL.map(LinkState::is_down)[..3], [true, true, false]);
        assert_eq!((those(LinkState::is_down), those(LinkState::is_coming_up)), (2, 6));
        assert_eq!(
            ALL.map(LinkState::is_coming_up)[1..9],
            [false, true, true, true, true, true, true, false]
        );
        assert_eq!((those(LinkState::is_up), those(LinkState::is_handshake)), (7, 3));
        assert_eq!(ALL.map(LinkState::is_handshake)[3..8], [false, true, true, true, false]);
        assert_eq!(ALL.map(LinkState::is_subscribed)[7..], [false, true, true, true, false]);
        assert_eq!(those(LinkState::is_subscribed), 3);
    }

    #[test]
    fn a_transport_is_wrapped_on_the_way_up() {
        let mut dialed = Dialed::PUBLISHER;
        assert!(dialed.dial(SECOND, NOW) && dialed.come_up(NOW));
        // Before the first word, or after nsqd has said that it speaks TLS.
        for next in [LinkState::Identifying, LinkState::Authenticating] {
            dialed.step(LinkState::Upgrading, NOW.after(SECOND));
            assert_eq!(dialed.link(), Link::Upgrade(Upgrade::Tls));
            assert!(!dialed.state().is_up(), "nothing is read meanwhile");
            dialed.step(next, NOW.after(SECOND));
            assert_eq!(dialed.link(), Link::Up);
        }
        dialed.step(LinkState::Upgrading, NOW.after(SECOND));
        let late = Closed::Fault(Fault::TimedOut(Awaited::Handshake));
        assert_eq!((dialed.tick(NOW), dialed.tick(NOW.after(SECOND))), (None, Some(late)));
        assert_eq!(dialed.closed(Closed::Peer), Some(Closed::Peer));
        assert_eq!(dialed.link(), Link::Down);
    }

    #[test]
    fn each_call_is_for_some_states_and_changes_nothing_in_others() {
        let changed = |change: &dyn Fn(&mut Dialed)| {
            let is_changed = |state: &LinkState| {
                let mut dialed = in_state(*state);
                dialed.deadline = NOW;
                change(&mut dialed);
                (dialed.state, dialed.deadline) != (*state, NOW)
            };
            ALL.into_iter().filter(is_changed).collect::<Vec<_>>()
        };
        let open = &ALL[2..11];
        assert_eq!(changed(&|dialed| _ = dialed.dial(SECOND, NOW)), [LinkState::Waiting]);
        assert_eq!(changed(&|dialed| dialed.step(LinkState::Ready, Instant::NEVER)), open);
        assert_eq!(changed(&|dialed| _ = dialed.tick(NOW)), open, "once");
        assert_eq!(changed(&|dialed| _ = dialed.closed(Closed::Peer)), ALL[2..]);
        for state in ALL {
            assert_eq!(in_state(state).come_up(NOW), open.contains(&state));
        }
    }

    #[test]
    fn why_it_closed_is_what_the_session_had_against_it() {
        let why = Closed::Fault(Fault::UnexpectedReply);
        let mut dialed = in_state(LinkState::Ready);
        dialed.close(&why, SECOND, NOW);
        assert_eq!((dialed.link(), dialed.deadline), (Link::Close, NOW.after(SECOND)));
        assert_eq!(dialed.closed(Closed::Peer), Some(why));
        assert_eq!((dialed.why(), dialed.closed(Closed::Peer)), (Some(why), None));
        // Who is silent would not take the last bytes either.
        let mut dialed = in_state(LinkState::Ready);
        dialed.close(&Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)), SECOND, NOW);
        assert_eq!(dialed.deadline, NOW);
        dialed.forget_why();
        assert_eq!(dialed.closed(Closed::Local), Some(Closed::Local));
    }
}
