//! A port: its listeners, and the sessions that its callers get.
//!
//! There is one listener more than sessions. The listener that accepts a caller takes a free
//! session for the caller. If no session is free, the listener evicts the connection that has been
//! evictable for the longest ([`Session::evictable`]). If no connection becomes evictable within
//! [`WAIT`], the caller is rejected. So the port listens nearly always, however many connections
//! are idle or slow.
//!
//! If a session closes its connection, the peer is read to the end: the driver closes the transport
//! after the session's last bytes, then reads from the peer and passes the bytes to the session,
//! until the peer closes too or the session's deadline passes.
//!
//! The cost of an event does not grow with the number of connections: a listener is polled only if
//! its waker was woken ([`Sleep::own_waker`]), or if it is marked because another listener or
//! session created work for it. On a platform without such wakers all are polled whenever the task
//! runs.
//!
//! [`Session::evictable`]: crate::session::Session::evictable

use core::cell::RefCell;
use core::future::{Future, pending, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use embassy_futures::select::{Either, select, select_array};
use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};

use super::connection::{Connection, SessionAccess, shared_code};
use super::{Listener, Sleep};
use crate::session::Closed;
use crate::time::{Instant, Span};

/// The longest time that a caller waits for a connection to become evictable.
const WAIT: Span = Span::from_millis(2500);

/// The index of the session that rejects callers.
pub(super) const SPARE: usize = usize::MAX >> 1;

/// The number of the spare listener.
const SPARE_LISTENER: u16 = u16::MAX;

/// The size of the receive buffer for a rejected caller.
const SPARE_RX_LEN: usize = 32;

/// The receive buffers of the sessions of a port.
pub(super) type Buffers<const SLOTS: usize, const RX: usize> = [[u8; RX]; SLOTS];

/// The listeners of one port of a server: one for each session, and a spare one. While all sessions
/// are taken, the spare listener accepts callers. Each gets the session of a connection that is
/// idle or slow ([`Session::evictable`](crate::session::Session::evictable)), waiting up to 2.5 s
/// for such a connection, or is rejected. Without a spare listener such callers wait or are reset,
/// depending on the platform.
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

    /// Returns access to a session, or with [`SPARE`] to the one that rejects callers.
    fn access(&self, index: usize) -> Self::Access;

    /// Arranges that `task` wakes at the next change of the server. If the server changed since
    /// `seen`, calls `mark` with each session for which the change may have created work.
    fn poll_changed(&self, task: &Waker, seen: &mut Self::Seen, mark: &mut dyn FnMut(usize));
}

/// The assignment of sessions to listeners, and the marks of the listeners to poll.
///
/// Listeners are numbered from one; 0 is no listener.
struct Table<'t, 'r, M: RawMutex>(Mutex<M, RefCell<Inner<'t, 'r>>>);

struct Inner<'t, 'r> {
    /// For each session, the listener that has it.
    owners: &'t mut [u16],
    /// For each session, its receive buffer, unless a listener has taken it.
    buffers: &'t mut [Option<&'r mut [u8]>],
    slots: &'t mut [Slot],
    spare: Slot,
    /// The listener whose caller waits for a session. No other caller is accepted meanwhile.
    waiting: u16,
    /// The first idle listener: the one polled for the next caller if all listeners accept from one
    /// queue.
    acceptor: u16,
    /// A listener was marked during this poll of the port.
    marked: bool,
}

/// The state of a listener.
#[derive(Clone, Copy)]
struct Slot {
    /// The listener must be polled even if its waker was not woken.
    marked: bool,
    /// The listener waits for a caller.
    idle: bool,
}

impl Slot {
    const NEW: Self = Self { marked: true, idle: false };
}

impl<'r> Inner<'_, 'r> {
    fn slot(&mut self, listener: u16) -> Option<&mut Slot> {
        match listener {
            SPARE_LISTENER => Some(&mut self.spare),
            _ => self.slots.get_mut(usize::from(listener).wrapping_sub(1)),
        }
    }

    fn all_slots(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().chain([&mut self.spare])
    }

    fn mark(&mut self, listener: u16) {
        if let Some(slot) = self.slot(listener) {
            slot.marked = true;
            self.marked = true;
        }
    }

    /// Marks listener `me` idle. Returns true if it should be polled for a caller.
    fn accepts(&mut self, me: u16, one_queue: bool) -> bool {
        if let Some(slot) = self.slot(me) {
            slot.idle = true;
        }
        if self.acceptor == 0 || me < self.acceptor {
            self.acceptor = me;
        }
        self.waiting == 0 && (!one_queue || self.acceptor == me)
    }

    /// Marks listener `me` busy after it accepted a caller or failed; the next idle listener
    /// accepts in its place.
    fn accepted(&mut self, me: u16) {
        if let Some(slot) = self.slot(me) {
            slot.idle = false;
        }
        if self.acceptor == me {
            let next = self.slots.iter().position(|slot| slot.idle);
            let spare = if self.spare.idle { SPARE_LISTENER } else { 0 };
            self.acceptor = next.map_or(spare, |at| (at as u16).saturating_add(1));
            self.mark(self.acceptor);
        }
    }

    /// Takes a free session, preferably that with the listener's own number.
    fn take_free(&mut self, me: u16) -> Option<usize> {
        let own = usize::from(me).wrapping_sub(1);
        let is_free = |at: &usize| self.owners.get(*at) == Some(&0);
        let index = Some(own)
            .filter(is_free)
            .or_else(|| self.owners.iter().position(|owner| *owner == 0))?;
        *self.owners.get_mut(index)? = me;
        Some(index)
    }

    /// Takes session `index` from the listener that has it, and marks that listener.
    fn take_from(&mut self, me: u16, index: usize) {
        if let Some(owner) = self.owners.get_mut(index) {
            let old = core::mem::replace(owner, me);
            self.mark(old);
        }
    }

    /// Returns the session's buffer, and frees the session unless another listener has taken it.
    fn leave(&mut self, me: u16, index: usize, rx: &'r mut [u8]) {
        if let Some(slot) = self.buffers.get_mut(index) {
            *slot = Some(rx);
        }
        if let Some(owner) = self.owners.get_mut(index) {
            let next = *owner;
            if next == me {
                *owner = 0;
            } else {
                // The new owner waits for the buffer.
                self.mark(next);
            }
        }
        self.mark(self.waiting);
    }

    /// Ends the wait of a caller, which has a session or is rejected: all idle listeners are polled
    /// again.
    fn wait_is_over(&mut self) {
        if core::mem::replace(&mut self.waiting, 0) != 0 {
            for slot in self.all_slots().filter(|slot| slot.idle) {
                slot.marked = true;
            }
            self.marked = true;
        }
    }
}

impl<'t, 'r, M: RawMutex> Table<'t, 'r, M> {
    /// Runs `f` under the lock. `f` must not call this again: it would get the default answer.
    fn with<R: Default>(&self, f: impl FnOnce(&mut Inner<'t, 'r>) -> R) -> R {
        self.0
            .lock(|inner| inner.try_borrow_mut().map_or_else(|_| R::default(), |mut it| f(&mut it)))
    }
}

/// Serves a port for ever. A listener that fails accepts again after a second.
pub(super) async fn serve_port<M, L, X, S, const SLOTS: usize, const RX: usize>(
    port: &mut Port<L, SLOTS>,
    sessions: &X,
    sleep: &S,
    rx: &mut Buffers<SLOTS, RX>,
) -> !
where
    M: RawMutex,
    L: Listener,
    X: Sessions,
    S: Sleep,
{
    let owners = &mut [0; SLOTS];
    let buffers = &mut rx.each_mut().map(|rx| Some(&mut rx[..]));
    let slots = &mut [Slot::NEW; SLOTS];
    let table = &Table::<M>(Mutex::new(RefCell::new(Inner {
        owners,
        buffers,
        slots,
        spare: Slot::NEW,
        waiting: 0,
        acceptor: 0,
        marked: false,
    })));
    let mut me = 0u16;
    let slots = port.slots.each_mut().map(|listener| {
        me = me.saturating_add(1);
        serve_when_woken(me, listener, table, sessions, sleep)
    });
    let slots = select_array(slots);
    let spare = async {
        let Some(listener) = &mut port.spare else { return pending().await };
        serve_when_woken(SPARE_LISTENER, listener, table, sessions, sleep).await
    };
    // The spare listener is polled last, after all others.
    let mut all = pin!(select(slots, spare));
    let mut task: Option<Waker> = None;
    let mut seen = X::Seen::default();
    let never = poll_fn(|cx| {
        if !task.as_ref().is_some_and(|task| task.will_wake(cx.waker())) {
            task = Some(cx.waker().clone());
            // The listeners' wakers still wake the previous task; polling each updates them.
            table.with(|inner| inner.all_slots().for_each(|slot| slot.marked = true));
        }
        sessions.poll_changed(cx.waker(), &mut seen, &mut |index| {
            table.with(|inner| {
                let owner = inner.owners.get(index).copied().unwrap_or_default();
                inner.mark(owner);
            });
        });
        table.with(|inner| {
            // The waiting listener looks for an evictable connection in every poll.
            inner.mark(inner.waiting);
            inner.marked = false;
        });
        let polled = all.as_mut().poll(cx);
        if table.with(|inner| inner.marked) {
            // The marked listener may have been polled before it was marked.
            cx.waker().wake_by_ref();
        }
        polled
    });
    match never.await {
        Either::First((never, _)) | Either::Second(never) => never,
    }
}

/// Serves a listener with its own waker; polls it only if that was woken or the listener is marked.
async fn serve_when_woken<M, L, X, S>(
    me: u16,
    listener: &mut L,
    table: &Table<'_, '_, M>,
    sessions: &X,
    sleep: &S,
) -> !
where
    M: RawMutex,
    L: Listener,
    X: Sessions,
    S: Sleep,
{
    let sleep = sleep.clone();
    let mut wakes = sleep.clone();
    let mut serving = pin!(serve_listener(me, listener, table, sessions, sleep));
    poll_fn(|cx| {
        let woken = wakes.take_woken();
        let marked = table.with(|inner| {
            inner.slot(me).is_some_and(|slot| core::mem::replace(&mut slot.marked, false))
        });
        if !woken && !marked {
            return Poll::Pending;
        }
        match wakes.own_waker(cx.waker()) {
            Some(waker) => serving.as_mut().poll(&mut Context::from_waker(waker)),
            None => serving.as_mut().poll(cx),
        }
    })
    .await
}

/// Accepts callers on one listener and serves each, one after the other.
async fn serve_listener<M, L, X, S>(
    me: u16,
    listener: &mut L,
    table: &Table<'_, '_, M>,
    sessions: &X,
    mut sleep: S,
) -> !
where
    M: RawMutex,
    L: Listener,
    X: Sessions,
    S: Sleep,
{
    let own = usize::from(me).wrapping_sub(1);
    let own = if me == SPARE_LISTENER { SPARE } else { own };
    let mut connection = Connection::new(shared_code(&mut sessions.access(own)), &mut sleep);
    loop {
        let accepted = {
            let mut accept = pin!(listener.accept());
            poll_fn(|cx| {
                if !table.with(|inner| inner.accepts(me, L::ONE_QUEUE)) {
                    return Poll::Pending;
                }
                accept.as_mut().poll(cx)
            })
            .await
        };
        table.with(|inner| inner.accepted(me));
        let Ok((mut transport, from)) = accepted else {
            connection.wait_to_listen().await;
            continue;
        };
        let end = connection.now().after(WAIT);
        let index = poll_fn(|cx| poll_session(me, end, table, sessions, &mut connection, cx)).await;
        table.with(Inner::wait_is_over);
        let Some(index) = index else {
            let mut session = sessions.access(SPARE);
            let rx = &mut [0; SPARE_RX_LEN];
            connection.accepted(shared_code(&mut session), from);
            poll_fn(|cx| connection.poll_up(shared_code(&mut session), &mut transport, rx, cx))
                .await;
            continue;
        };
        // A listener that had the session returns the buffer when it is next polled.
        let rx = poll_fn(|_| {
            let rx = table.with(|inner| inner.buffers.get_mut(index).and_then(Option::take));
            rx.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let mut session = sessions.access(index);
        connection.accepted(shared_code(&mut session), from);
        poll_fn(|cx| {
            if table.with(|inner| inner.owners.get(index) == Some(&me)) {
                return connection.poll_up(shared_code(&mut session), &mut transport, rx, cx);
            }
            Poll::Ready(())
        })
        .await;
        table.with(|inner| inner.leave(me, index, rx));
    }
}

/// Ready when the caller of listener `me` has a session, or with `None` when it must be rejected.
/// Waits until `end` at most.
fn poll_session<M, X, S>(
    me: u16,
    end: Instant,
    table: &Table<'_, '_, M>,
    sessions: &X,
    connection: &mut Connection<'_, S>,
    cx: &mut Context<'_>,
) -> Poll<Option<usize>>
where
    M: RawMutex,
    X: Sessions,
    S: Sleep,
{
    let index = table.with(|inner| inner.take_free(me));
    if index.is_some() {
        return Poll::Ready(index);
    }
    let now = connection.now();
    let mut first = Instant::NEVER;
    let mut found = 0;
    for at in 0..table.with(|inner| inner.owners.len()) {
        sessions.access(at).with(&mut |session| {
            let evictable = session.evictable();
            if evictable < first {
                (first, found) = (evictable, at);
            }
        });
    }
    if first <= now {
        sessions.access(found).with(&mut |session| session.closed(now, Closed::Local));
        table.with(|inner| inner.take_from(me, found));
        return Poll::Ready(Some(found));
    }
    if first > end {
        return Poll::Ready(None);
    }
    table.with(|inner| inner.waiting = me);
    if connection.is_due(now, first, cx) {
        cx.waker().wake_by_ref();
    }
    Poll::Pending
}

#[cfg(test)]
mod tests;
