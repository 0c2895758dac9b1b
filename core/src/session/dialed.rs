//! The life of a dialed connection: one state machine for publisher, registration, consumer and
//! queries to nsqlookupds. Each passes through the states that its protocol needs.
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
//! Only these calls change the state, each from the states that it is for; in any other state a
//! call changes nothing. So `Closing` has one way out: the driver reports that the transport is
//! gone. Every connection is closed on this path, whatever the reason.
//!
//! [`Backoff`] has the rule for when to dial again and which connections count as good.

use super::staging::Staging;
use super::{Awaited, Closed, DialError, Fault, Link, Upgrade};
use crate::macros::trace_state;
use crate::time::{Backoff, Instant, Jitter, LASTED, Span, expire};

/// The state of a dialed connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum LinkState {
    /// No connection, and none is wanted.
    Idle,
    /// No connection; the next dial is due at a time, or when there is something to query.
    Waiting,
    /// A dial is under way.
    Dialing,
    /// The transport is being wrapped: [`Link::Upgrade`].
    Upgrading,
    /// IDENTIFY is being sent, or its response is awaited.
    Identifying,
    /// AUTH is being sent, or its response is awaited.
    Authenticating,
    /// SUB is being sent, or its response is awaited.
    Subscribing,
    /// A query is being sent, or its answer is being read.
    Asking,
    /// The handshake is over: commands are sent and answered.
    Ready,
    /// A consumer leaves: CLS is sent; the application may still answer messages in flight.
    Draining,
    /// Last commands before the close: a consumer requeues the messages in flight, a registration
    /// unregisters its topics.
    Leaving,
    /// The driver has to close the connection.
    Closing,
}

impl LinkState {
    /// Returns whether the state is at or after `from` and before `to`.
    #[inline]
    const fn within(self, from: Self, to: Self) -> bool {
        (self as u8).wrapping_sub(from as u8) < (to as u8).wrapping_sub(from as u8)
    }

    /// Returns whether bytes of the server are read in this state.
    pub(crate) fn is_up(self) -> bool {
        self.within(Self::Identifying, Self::Closing)
    }

    /// Returns whether nsqd accepts FIN, REQ and TOUCH in this state.
    pub(crate) fn is_subscribed(self) -> bool {
        self.within(Self::Ready, Self::Closing)
    }

    /// Returns whether there is neither a connection nor a dial.
    pub(crate) fn is_down(self) -> bool {
        self as u8 <= Self::Waiting as u8
    }

    /// Returns whether a dial or a handshake is under way, or a query, which is over before Ready.
    pub(crate) fn is_coming_up(self) -> bool {
        self.within(Self::Dialing, Self::Ready)
    }

    /// Returns whether commands of the handshake are sent, each after the response to the last.
    pub(crate) fn is_handshake(self) -> bool {
        self.within(Self::Identifying, Self::Asking)
    }
}

/// The kind of session that owns the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Role {
    Consumer,
    Publisher,
    Registration,
    Query,
}

/// The event that the application has not received yet.
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
    /// When the state ends. Waiting: dial. Dialing to Asking: give up. Ready: give up, since nsqd
    /// was silent for too long. Draining and Leaving: close. Closing: abort.
    pub(crate) deadline: Instant,
    state: LinkState,
    role: Role,
    /// Its text is the current command of the handshake, or the query.
    pub(crate) staging: Staging,
    pub(crate) attempts: Backoff,
    /// The reason of the current or last close; valid if `has_why`.
    why: Closed,
    has_why: bool,
    pub(crate) pending_event: PendingEvent,
    /// The number of NOPs (answers to heartbeats) or PINGs to send.
    pub(crate) nops: u8,
    /// When the connection came up; never if it did not.
    opened: Instant,
}

impl Dialed {
    /// An unused connection of a consumer. All bytes are zero, so that flash holds no image of it.
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

    /// Creates an idle connection.
    pub(crate) const fn new(role: Role, attempts: Backoff) -> Self {
        Self { role, attempts, deadline: Instant::NEVER, opened: Instant::NEVER, ..Self::ZERO }
    }

    /// Creates a connection whose first dial is due at `deadline`.
    pub(crate) const fn due(role: Role, attempts: Backoff, deadline: Instant) -> Self {
        Self { deadline, state: LinkState::Waiting, ..Self::new(role, attempts) }
    }

    /// The connection of a publisher, which dials at once.
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

    /// Returns why the connection is closing, or was closed last.
    pub(crate) fn why(&self) -> Option<Closed> {
        self.has_why.then_some(self.why)
    }

    /// Forgets why the last connection was closed.
    pub(crate) fn forget_why(&mut self) {
        self.has_why = false;
    }

    fn set_why(&mut self, why: &Closed) {
        self.why = *why;
        self.has_why = true;
    }

    /// Takes the event that the application has not received yet.
    pub(crate) fn take_pending_event(&mut self) -> PendingEvent {
        core::mem::replace(&mut self.pending_event, PendingEvent::None)
    }

    /// Returns whether the deadline of the state has passed; true once per deadline.
    #[inline(never)]
    fn take_expired(&mut self, now: Instant) -> bool {
        expire(&mut self.deadline, now)
    }

    /// Schedules the next dial for `until`.
    pub(crate) fn wait(&mut self, until: Instant) {
        self.deadline = until;
        self.set_state(LinkState::Waiting);
    }

    /// Stays without a connection until [`wait`](Self::wait).
    pub(crate) fn rest(&mut self) {
        self.deadline = Instant::NEVER;
        self.set_state(LinkState::Idle);
    }

    /// Begins a dial if one is due, and returns whether it did. The dial is given up after
    /// `timeout`.
    pub(crate) fn dial(&mut self, timeout: Span, now: Instant) -> bool {
        let due = self.state == LinkState::Waiting && self.take_expired(now);
        if due {
            self.dial_until(now.after(timeout));
        }
        due
    }

    /// Begins a dial that is given up at `until`.
    pub(crate) fn dial_until(&mut self, until: Instant) {
        self.opened = Instant::NEVER;
        self.deadline = until;
        self.set_state(LinkState::Dialing);
    }

    /// Notes that the transport is up: a dial succeeded, or a new driver replaced one that was
    /// dropped. Returns false, and changes nothing, if no connection is wanted.
    pub(crate) fn come_up(&mut self, now: Instant) -> bool {
        let wanted = self.state.within(LinkState::Dialing, LinkState::Closing);
        if wanted {
            self.opened = now;
            self.nops = 0;
            self.staging.clear();
        }
        wanted
    }

    /// Enters a state on the way up or down, which is given up at `until`. Its command, if it has
    /// one, is sent from its start.
    pub(crate) fn step(&mut self, state: LinkState, until: Instant) {
        if self.state.within(LinkState::Dialing, LinkState::Closing) {
            self.staging.start_text();
            self.deadline = until;
            self.set_state(state);
        }
    }

    /// Returns whether the last dial succeeded.
    pub(crate) fn came_up(&self) -> bool {
        self.opened != Instant::NEVER
    }

    /// Returns whether the connection came up at least `span` ago.
    pub(crate) fn is_old(&self, span: Span, now: Instant) -> bool {
        self.came_up() && self.opened.after(span) <= now
    }

    /// Returns whether the connection has lasted long enough to count as good: see [`Backoff`].
    #[inline(never)]
    pub(crate) fn lasted(&self, now: Instant) -> bool {
        self.is_old(LASTED, now)
    }

    /// Returns how long to wait before the next dial: see [`Backoff`].
    pub(crate) fn delay(&mut self, spans: [Span; 3], now: Instant, jitter: &mut Jitter) -> Span {
        if self.lasted(now) {
            self.attempts.prove_good();
        }
        self.attempts.delay(spans, self.came_up(), jitter)
    }

    /// Returns the reason to close the connection, if the deadline of its state has passed.
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
        // A silent peer would not take the last bytes either.
        let silent = matches!(why, Closed::Fault(Fault::TimedOut(_)));
        self.deadline = if silent { now } else { now.after(timeout) };
        self.set_state(LinkState::Closing);
    }

    /// Notes that the connection is gone, or that its dial failed. Returns the reason, or `None` if
    /// there was neither a connection nor a dial.
    pub(crate) fn closed(&mut self, why: Closed) -> Option<Closed> {
        // The session's own reason to close explains more than how the transport ended.
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

    /// Returns the state, with the reason to close, for traces.
    #[cfg(any(feature = "defmt", feature = "log"))]
    fn shown(&self, state: LinkState) -> Shown {
        Shown { state, why: self.why() }
    }

    /// Returns the state: nothing is traced.
    #[cfg(not(any(feature = "defmt", feature = "log")))]
    fn shown(&self, state: LinkState) -> LinkState {
        state
    }
}

/// A state, with the reason to close, as traces show it.
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
        // Before IDENTIFY, or after nsqd has answered that it speaks TLS.
        for next in [LinkState::Identifying, LinkState::Authenticating] {
            dialed.step(LinkState::Upgrading, NOW.after(SECOND));
            assert_eq!(dialed.link(), Link::Upgrade(Upgrade::Tls));
            assert!(!dialed.state().is_up(), "no bytes are read during the upgrade");
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
        assert_eq!(changed(&|dialed| _ = dialed.tick(NOW)), open, "a deadline expires once");
        assert_eq!(changed(&|dialed| _ = dialed.closed(Closed::Peer)), ALL[2..]);
        for state in ALL {
            assert_eq!(in_state(state).come_up(NOW), open.contains(&state));
        }
    }

    #[test]
    fn the_reason_of_the_session_is_kept_when_the_peer_closes_afterwards() {
        let why = Closed::Fault(Fault::UnexpectedReply);
        let mut dialed = in_state(LinkState::Ready);
        dialed.close(&why, SECOND, NOW);
        assert_eq!((dialed.link(), dialed.deadline), (Link::Close, NOW.after(SECOND)));
        assert_eq!(dialed.closed(Closed::Peer), Some(why));
        assert_eq!((dialed.why(), dialed.closed(Closed::Peer)), (Some(why), None));
        // A silent peer would not take the last bytes either.
        let mut dialed = in_state(LinkState::Ready);
        dialed.close(&Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)), SECOND, NOW);
        assert_eq!(dialed.deadline, NOW);
        dialed.forget_why();
        assert_eq!(dialed.closed(Closed::Local), Some(Closed::Local));
    }
}
