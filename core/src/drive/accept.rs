//! A port: accept slots, and the sessions that callers get.
//!
//! There is at least one slot more than sessions. The slot that accepts a caller takes a free
//! session for it; if there is none, that of a connection that may go ([`Session::evictable`]), the
//! one that may go for the longest; if there is none either within [`WAIT`], the caller is rejected.
//! So one slot listens nearly always, however many connections are idle or slow.
//!
//! A connection that its session closes is read to its end: after the last bytes the transport is
//! closed, and what the caller still sends is given to the session, until the caller closes too or
//! the session's deadline has come.
//!
//! An event costs what happened, not what is configured: a slot is polled only if it is marked,
//! because its waker was woken ([`Sleep::slot_waker`]), or because another slot or another session
//! left it something to do. On a platform without such wakers every poll of the task polls all slots.
//!
//! [`Session::evictable`]: crate::session::Session::evictable

use core::future::poll_fn;
use core::net::SocketAddr;
use core::task::{Context, Poll, Waker, ready};

use super::connection::{Connection, SessionAccess, shared_code};
use super::{Listener, Sleep};
use crate::session::Closed;
use crate::time::{Instant, Span};

/// The longest time that a caller waits for a connection to become evictable.
const WAIT: Span = Span::from_millis(2500);

/// How long a slot whose listener failed waits before it listens again.
const RETRY: Span = Span::from_secs(1);

/// The index of the session that rejects.
pub(super) const SPARE: usize = usize::MAX >> 1;

/// Bytes read at once of what a rejected caller sends.
const SPARE_RX_LEN: usize = 32;

/// The absence of a slot.
const NONE: u16 = u16::MAX;

/// The receive buffers of some sessions.
pub(super) type Buffers<const SLOTS: usize, const RX: usize> = [[u8; RX]; SLOTS];

/// What a server listens on: a listener for each session, and a spare one, all of one port. While
/// all sessions are taken the spare one accepts callers: each gets the session of a connection that
/// is idle or slow ([`Session::evictable`](crate::session::Session::evictable)), if need be within
/// 2.5 s, or is rejected. Without a spare one callers wait, or are reset, as the platform has it.
#[derive(Debug, Clone, Copy)]
pub struct Port<L, const SLOTS: usize> {
    /// The listeners of the sessions; each serves one connection at a time.
    pub slots: [L; SLOTS],
    /// The listener for callers that arrive while all sessions are taken.
    pub spare: Option<L>,
}

impl<L, const SLOTS: usize> Port<L, SLOTS> {
    /// Makes all listeners with `listener`, including a spare one.
    pub fn new(mut listener: impl FnMut() -> L) -> Self {
        Self { slots: core::array::from_fn(|_| listener()), spare: Some(listener()) }
    }
}

impl<L> Port<L, 0> {
    /// A port without listeners.
    pub const NONE: Self = Self { slots: [], spare: None };
}

/// The sessions of a port.
pub(super) trait Sessions {
    /// See [`access`](Self::access).
    type Access: SessionAccess;

    /// The state of the server at the last [`poll_changed`](Self::poll_changed).
    type Seen: Default;

    /// Returns how many sessions there are, at most as many as slots.
    fn count(&self) -> usize;

    /// Returns access to a session, or with [`SPARE`] to the one that rejects callers.
    fn access(&self, index: usize) -> Self::Access;

    /// Arranges that `task` wakes at the next change of the server. If the server changed since
    /// `seen`, calls `mark` with each session for which the change may have created work.
    fn poll_changed(&self, task: &Waker, seen: &mut Self::Seen, mark: &mut dyn FnMut(usize));
}

/// Where an accept slot is.
#[derive(Clone, Copy)]
enum State {
    /// It waits for a caller.
    Accepting,
    /// Its listener failed: it listens again at this time.
    Resting(Instant),
    /// Its caller waits for a session until this time.
    Waiting(SocketAddr, Instant),
    /// Its caller has this session, or is rejected ([`SPARE`]).
    Up(usize),
}

/// An accept slot. Dropped, it has no connection and does not listen.
struct Slot<'p, L: Listener, S> {
    listener: &'p mut L,
    connection: Connection<'p, S>,
    state: State,
    /// It is to be polled, and in the list of those.
    marked: bool,
    /// The next one of that list.
    next: u16,
}

impl<'p, L: Listener, S: Sleep> Slot<'p, L, S> {
    fn new<X: Sessions>(
        listener: &'p mut L,
        sleep: &'p mut S,
        sessions: &X,
        session: usize,
    ) -> Self {
        let mut access = sessions.access(session);
        let connection = Connection::new(shared_code(&mut access), sleep);
        Self { listener, connection, state: State::Accepting, marked: false, next: NONE }
    }

    /// The connection is gone.
    fn release(&mut self) {
        self.listener.release();
        self.state = State::Accepting;
    }
}

impl<L: Listener, S> Drop for Slot<'_, L, S> {
    fn drop(&mut self) {
        self.listener.release();
    }
}

/// The slots of a port, counted from zero, the spare one last, and which of them has which session.
struct Slots<'s, 'p, L: Listener, S, const RX: usize> {
    slots: &'s mut [Slot<'p, L, S>],
    spare: Option<Slot<'p, L, S>>,
    /// The slot that has the session.
    owners: &'s mut [u16],
    rx: &'s mut [[u8; RX]],
    spare_rx: [u8; SPARE_RX_LEN],
    /// Has the wakers of the slots.
    wakers: S,
    /// The first and the last slot of the list of those that are to be polled.
    first: u16,
    last: u16,
    /// The slot whose caller waits for a session. Until it has one nobody else is accepted.
    waiting: u16,
    /// Of the slots that take callers from one queue, the one that is polled for the next: the first
    /// that is idle.
    acceptor: u16,
}

impl<'p, L: Listener, S: Sleep, const RX: usize> Slots<'_, 'p, L, S, RX> {
    fn slot(&mut self, at: u16) -> Option<&mut Slot<'p, L, S>> {
        let at = usize::from(at);
        if at == self.slots.len() { self.spare.as_mut() } else { self.slots.get_mut(at) }
    }

    /// The number of the spare slot.
    fn spare(&self) -> u16 {
        self.slots.len() as u16
    }

    fn is_idle(&mut self, at: u16) -> bool {
        self.slot(at).is_some_and(|slot| matches!(slot.state, State::Accepting))
    }

    /// Has a slot polled, in this poll of the task or the next. Slots with a connection come first:
    /// one that ends leaves its session to a caller.
    fn mark(&mut self, at: u16) {
        let first = self.first;
        let Some(slot) = self.slot(at) else { return };
        if core::mem::replace(&mut slot.marked, true) {
            return;
        }
        if matches!(slot.state, State::Up(_)) {
            slot.next = first;
            self.first = at;
            if first == NONE {
                self.last = at;
            }
            return;
        }
        slot.next = NONE;
        match self.slot(self.last) {
            Some(last) => last.next = at,
            None => self.first = at,
        }
        self.last = at;
    }

    fn mark_all(&mut self) {
        (0..=self.spare()).for_each(|at| self.mark(at));
    }

    /// Takes the first slot that is to be polled.
    fn take_marked(&mut self) -> Option<u16> {
        let at = self.first;
        let slot = self.slot(at)?;
        slot.marked = false;
        self.first = slot.next;
        if self.first == NONE {
            self.last = NONE;
        }
        Some(at)
    }

    /// Marks the slots whose wakers were woken; all of them on a platform without wakers.
    fn mark_woken(&mut self, task: &Waker) {
        if self.wakers.slot_waker(0, task).is_none() {
            return self.mark_all();
        }
        while let Some(at) = self.wakers.take_woken() {
            self.mark(at as u16);
        }
    }

    /// Polls what is marked.
    fn poll<X: Sessions>(&mut self, sessions: &X, seen: &mut X::Seen, cx: &mut Context<'_>) {
        sessions.poll_changed(cx.waker(), seen, &mut |index| {
            let owner = self.owners.get(index).copied().unwrap_or(NONE);
            self.mark(owner);
        });
        self.mark_woken(cx.waker());
        // It looks for a connection that may go.
        self.mark(self.waiting);
        // A slot whose connection ends has a second turn.
        for _ in 0..=self.slots.len().saturating_mul(2) {
            let Some(at) = self.take_marked() else { return };
            match self.wakers.slot_waker(at.into(), cx.waker()).cloned() {
                Some(waker) => self.poll_slot(at, sessions, &mut Context::from_waker(&waker)),
                None => self.poll_slot(at, sessions, cx),
            }
        }
        if self.first != NONE {
            // It may have had its turn before.
            cx.waker().wake_by_ref();
        }
    }

    fn poll_slot<X: Sessions>(&mut self, at: u16, sessions: &X, cx: &mut Context<'_>) {
        while let Some(slot) = self.slot(at)
            && let Poll::Ready(next) = match slot.state {
                State::Accepting => self.poll_accept(at, cx),
                State::Resting(until) => {
                    slot.connection.poll_rest(until, cx).map(|()| State::Accepting)
                }
                State::Waiting(from, end) => self.poll_session(at, from, end, sessions, cx),
                State::Up(index) => self.poll_up(at, index, sessions, cx),
            }
        {
            if let Some(slot) = self.slot(at) {
                slot.state = next;
            }
            if matches!(next, State::Accepting) {
                // After those whose connections may end as well.
                return self.mark(at);
            }
        }
    }

    fn poll_accept(&mut self, at: u16, cx: &mut Context<'_>) -> Poll<State> {
        // The spare number is the largest: the spare slot accepts when no other one is idle.
        if at < self.acceptor {
            self.acceptor = at;
        }
        if self.waiting != NONE || (L::ONE_QUEUE && self.acceptor != at) {
            return Poll::Pending;
        }
        let Some(slot) = self.slot(at) else { return Poll::Pending };
        let accepted = ready!(slot.listener.poll_accept(cx));
        let now = slot.connection.now();
        slot.state = match accepted {
            Ok(from) => State::Waiting(from, now.after(WAIT)),
            Err(_) => State::Resting(now.after(RETRY)),
        };
        let state = slot.state;
        if self.acceptor == at {
            let next = (0..=self.spare()).find(|at| self.is_idle(*at));
            self.acceptor = next.unwrap_or(NONE);
            self.mark(self.acceptor);
        }
        Poll::Ready(state)
    }

    /// Ready when a caller has a session, or is to be rejected.
    fn poll_session<X: Sessions>(
        &mut self,
        at: u16,
        from: SocketAddr,
        end: Instant,
        sessions: &X,
        cx: &mut Context<'_>,
    ) -> Poll<State> {
        let index = match self.take_free(at) {
            Some(index) => index,
            None => ready!(self.poll_evict(at, end, sessions, cx)),
        };
        self.wait_is_over();
        if let Some(slot) = self.slot(at) {
            slot.connection.accepted(shared_code(&mut sessions.access(index)), from);
        }
        Poll::Ready(State::Up(index))
    }

    /// Takes a session that no slot has, best the slot's own.
    fn take_free(&mut self, at: u16) -> Option<usize> {
        let is_free = |index: &usize| self.owners.get(*index) == Some(&NONE);
        let own = Some(usize::from(at)).filter(is_free);
        let index = own.or_else(|| self.owners.iter().position(|owner| *owner == NONE))?;
        *self.owners.get_mut(index)? = at;
        Some(index)
    }

    /// Takes the session of the connection that may go for the longest.
    fn poll_evict<X: Sessions>(
        &mut self,
        at: u16,
        end: Instant,
        sessions: &X,
        cx: &mut Context<'_>,
    ) -> Poll<usize> {
        let mut first = Instant::NEVER;
        let mut found = 0;
        for index in 0..self.owners.len() {
            sessions.access(index).with(&mut |session| {
                let evictable = session.evictable();
                if evictable < first {
                    (first, found) = (evictable, index);
                }
            });
        }
        let Some(slot) = self.slot(at) else { return Poll::Pending };
        let now = slot.connection.now();
        if first <= now {
            sessions.access(found).with(&mut |session| session.closed(now, Closed::Local));
            if let Some(owner) = self.owners.get_mut(found) {
                let old = core::mem::replace(owner, at);
                if let Some(old) = self.slot(old) {
                    old.release();
                }
                self.mark(old);
            }
            return Poll::Ready(found);
        }
        if first > end {
            return Poll::Ready(SPARE);
        }
        if slot.connection.is_due(now, first, cx) {
            cx.waker().wake_by_ref();
        }
        self.waiting = at;
        Poll::Pending
    }

    /// The caller that waited has a session, or is rejected: all idle slots listen again.
    fn wait_is_over(&mut self) {
        if core::mem::replace(&mut self.waiting, NONE) != NONE {
            for at in 0..=self.spare() {
                if self.is_idle(at) {
                    self.mark(at);
                }
            }
        }
    }

    /// Ready when the connection is over.
    fn poll_up<X: Sessions>(
        &mut self,
        at: u16,
        index: usize,
        sessions: &X,
        cx: &mut Context<'_>,
    ) -> Poll<State> {
        let Self { slots, spare, rx, spare_rx, .. } = self;
        let slot = if usize::from(at) == slots.len() {
            spare.as_mut()
        } else {
            slots.get_mut(usize::from(at))
        };
        let Some(Slot { connection, listener, .. }) = slot else { return Poll::Pending };
        // The session that rejects takes all that is read at once, so that several slots can share
        // the buffer.
        let rx = rx.get_mut(index).map_or(&mut spare_rx[..], |rx| &mut rx[..]);
        let mut session = sessions.access(index);
        ready!(connection.poll_up(shared_code(&mut session), *listener, rx, cx));
        listener.release();
        if let Some(owner) = self.owners.get_mut(index) {
            *owner = NONE;
        }
        self.mark(self.waiting);
        Poll::Ready(State::Accepting)
    }
}

/// Serves a port for ever. A listener that fails is asked again after a second. Dropped, the future
/// ends all connections.
pub(super) async fn serve_port<L, X, S, const SLOTS: usize, const RX: usize>(
    port: &mut Port<L, SLOTS>,
    sessions: &X,
    sleep: &S,
    rx: &mut Buffers<SLOTS, RX>,
) -> !
where
    L: Listener,
    X: Sessions,
    S: Sleep,
{
    let wakers = sleep.clone();
    let mut sleeps: [S; SLOTS] = core::array::from_fn(|_| sleep.clone());
    let mut spare_sleep = sleep.clone();
    let mut slots = heapless::Vec::<_, SLOTS>::new();
    for (index, (listener, sleep)) in port.slots.iter_mut().zip(&mut sleeps).enumerate() {
        let _ = slots.push(Slot::new(listener, sleep, sessions, index));
    }
    let mut owners = [NONE; SLOTS];
    let spare = port.spare.as_mut();
    let mut slots = Slots {
        slots: &mut slots,
        spare: spare.map(|listener| Slot::new(listener, &mut spare_sleep, sessions, SPARE)),
        owners: owners.get_mut(..sessions.count()).unwrap_or_default(),
        rx,
        spare_rx: [0; SPARE_RX_LEN],
        wakers,
        first: NONE,
        last: NONE,
        waiting: NONE,
        acceptor: NONE,
    };
    let mut task: Option<Waker> = None;
    let mut seen = X::Seen::default();
    poll_fn(|cx| {
        if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            task = Some(cx.waker().clone());
            // The slots' wakers wake the task that polled them last.
            slots.mark_all();
        }
        slots.poll(sessions, &mut seen, cx);
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests;
