//! A port: listeners, and the sessions that callers get.
//!
//! There is one listener more than sessions. The listener that accepts a caller takes a free session
//! for it; if there is none, that of a connection that may go ([`Session::evictable`]), the one
//! first that may go for the longest; if there is none either within [`WAIT`], the caller is told
//! that all are taken. So somebody listens nearly always, however many connections are idle or slow.
//!
//! A session that closes the connection is heard to the end: after its last bytes the transport is
//! closed, and what the caller still says is read, and given to the session, until it hangs up too
//! or the session's deadline has come.
//!
//! [`Session::evictable`]: crate::session::Session::evictable

use core::cell::RefCell;
use core::future::{Future, pending, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};

use embassy_futures::select::{Either, select, select_array};
use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};

use super::connection::{Connection, SessionAccess, shared_code};
use super::{Listener, Sleep};
use crate::session::Closed;
use crate::time::{Instant, Span};

/// How long a caller waits until a connection may go.
const WAIT: Span = Span::from_millis(2500);

/// The index of the session that rejects.
pub(super) const SPARE: usize = usize::MAX >> 1;

/// Bytes read at once of what a rejected caller says.
const SPARE_RX_LEN: usize = 32;

/// The receive buffers of some sessions.
pub(super) type Buffers<const SLOTS: usize, const RX: usize> = [[u8; RX]; SLOTS];

/// What a server listens on: a listener for each session, and a spare one, all of one port. While
/// all sessions are taken the spare one accepts callers: each gets the session of a connection that
/// is idle or slow ([`Session::evictable`]), if need be within 2.5 s, or is rejected. Without a
/// spare one callers wait, or are reset, as the platform has it.
#[derive(Debug, Clone, Copy)]
pub struct Port<L, const SLOTS: usize> {
    /// One for each connection at a time.
    pub slots: [L; SLOTS],
    /// For callers while all sessions are taken.
    pub spare: Option<L>,
}

impl<L, const SLOTS: usize> Port<L, SLOTS> {
    /// Makes as many listeners as it takes, a spare one among them.
    pub fn new(mut listener: impl FnMut() -> L) -> Self {
        Self { slots: core::array::from_fn(|_| listener()), spare: Some(listener()) }
    }
}

impl<L> Port<L, 0> {
    /// Nothing to listen on.
    pub const NONE: Self = Self { slots: [], spare: None };
}

/// Which listener has which session.
struct Table<'r, M: RawMutex, const SLOTS: usize>(Mutex<M, RefCell<Inner<'r, SLOTS>>>);

struct Inner<'r, const SLOTS: usize> {
    /// The listener that has the session, counted from one; 0 is none.
    owners: [u16; SLOTS],
    /// The session's receive buffer, if no listener has it.
    buffers: [Option<&'r mut [u8]>; SLOTS],
    /// A caller waits for a session. Until it has one nobody else is accepted.
    waiting: bool,
    /// Of the listeners that wait for callers from one queue, one was polled.
    polled: bool,
}

impl<'r, M: RawMutex, const SLOTS: usize> Table<'r, M, SLOTS> {
    /// `f` does not come back here, so there always is an answer.
    fn with<R: Default>(&self, f: impl FnOnce(&mut Inner<'r, SLOTS>) -> R) -> R {
        self.0
            .lock(|inner| inner.try_borrow_mut().map_or_else(|_| R::default(), |mut it| f(&mut it)))
    }

    /// Whether a listener is to be polled for a caller.
    fn accepts(&self, one_queue: bool) -> bool {
        self.with(|inner| {
            let is_next = !(inner.waiting || (one_queue && inner.polled));
            inner.polled |= is_next;
            is_next
        })
    }

    fn has(&self, me: u16, index: usize) -> bool {
        self.with(|inner| inner.owners.get(index) == Some(&me))
    }

    /// Takes a session that nobody has, best the listener's own.
    fn take_free(&self, me: u16) -> Option<usize> {
        self.with(|inner| {
            let own = usize::from(me).wrapping_sub(1);
            let is_free = |at: &usize| inner.owners.get(*at) == Some(&0);
            let index = Some(own).filter(is_free).or_else(|| (0..SLOTS).find(is_free))?;
            *inner.owners.get_mut(index)? = me;
            Some(index)
        })
    }

    fn give(&self, me: u16, index: usize) {
        self.with(|inner| {
            if let Some(owner) = inner.owners.get_mut(index) {
                *owner = me;
            }
        });
    }

    /// Puts a session's buffer back, and the session if it still is this listener's.
    fn leave(&self, me: u16, index: usize, rx: &'r mut [u8]) {
        self.with(|inner| {
            if let Some(slot) = inner.buffers.get_mut(index) {
                *slot = Some(rx);
            }
            if let Some(owner) = inner.owners.get_mut(index)
                && *owner == me
            {
                *owner = 0;
            }
        });
    }
}

/// Serves a port for ever; [`SPARE`] is the session that rejects. A listener that fails is asked again
/// after a second.
pub(super) async fn serve_port<M, L, A, S, const SLOTS: usize, const RX: usize>(
    port: &mut Port<L, SLOTS>,
    access: impl Fn(usize) -> A,
    sleep: &S,
    rx: &mut Buffers<SLOTS, RX>,
) -> !
where
    M: RawMutex,
    L: Listener,
    A: SessionAccess,
    S: Sleep,
{
    let buffers = rx.each_mut().map(|rx| Some(&mut rx[..]));
    let inner = Inner { owners: [0; SLOTS], buffers, waiting: false, polled: false };
    let table = &Table::<M, SLOTS>(Mutex::new(RefCell::new(inner)));
    let access = &access;
    let mut me = 0u16;
    let slots = port.slots.each_mut().map(|listener| {
        me = me.saturating_add(1);
        serve_listener(me, listener, table, access, sleep)
    });
    let slots = select_array(slots);
    let spare = async {
        let Some(listener) = &mut port.spare else { return pending().await };
        serve_listener(u16::MAX, listener, table, access, sleep).await
    };
    // The spare one is last: it is asked when the others had their turn.
    let mut all = pin!(select(slots, spare));
    let never = poll_fn(|cx| {
        table.with(|inner| inner.polled = false);
        all.as_mut().poll(cx)
    });
    match never.await {
        Either::First((never, _)) | Either::Second(never) => never,
    }
}

async fn serve_listener<'r, M, L, A, S, F, const SLOTS: usize>(
    me: u16,
    listener: &mut L,
    table: &Table<'r, M, SLOTS>,
    access: &F,
    sleep: &S,
) -> !
where
    M: RawMutex,
    L: Listener,
    A: SessionAccess,
    S: Sleep,
    F: Fn(usize) -> A,
{
    let mut sleep = sleep.clone();
    let own = usize::from(me).wrapping_sub(1);
    let own = if own < SLOTS { own } else { SPARE };
    let mut connection = Connection::new(shared_code(&mut access(own)), &mut sleep);
    loop {
        let accepted = {
            let mut accept = pin!(listener.accept());
            poll_fn(|cx| {
                if !table.accepts(L::ONE_QUEUE) {
                    return Poll::Pending;
                }
                let polled = accept.as_mut().poll(cx);
                if polled.is_ready() {
                    // The next one waits in its place.
                    table.with(|inner| inner.polled = false);
                }
                polled
            })
            .await
        };
        let Ok((mut transport, from)) = accepted else {
            connection.wait_to_listen().await;
            continue;
        };
        let end = connection.now().after(WAIT);
        let Some(index) =
            poll_fn(|cx| poll_session(me, end, table, access, &mut connection, cx)).await
        else {
            let mut session = access(SPARE);
            let rx = &mut [0; SPARE_RX_LEN];
            connection.accepted(shared_code(&mut session), from);
            poll_fn(|cx| connection.poll_up(shared_code(&mut session), &mut transport, rx, cx))
                .await;
            continue;
        };
        // The listener that had the session gives its buffer back when it is polled next.
        let rx = poll_fn(|_| {
            let rx = table.with(|inner| inner.buffers.get_mut(index).and_then(Option::take));
            rx.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let mut session = access(index);
        connection.accepted(shared_code(&mut session), from);
        poll_fn(|cx| {
            if table.has(me, index) {
                return connection.poll_up(shared_code(&mut session), &mut transport, rx, cx);
            }
            cx.waker().wake_by_ref();
            Poll::Ready(())
        })
        .await;
        table.leave(me, index, rx);
    }
}

/// Ready when a caller has a session, or is to be rejected.
fn poll_session<M, A, S, const SLOTS: usize>(
    me: u16,
    end: Instant,
    table: &Table<'_, M, SLOTS>,
    access: &impl Fn(usize) -> A,
    connection: &mut Connection<'_, S>,
    cx: &mut Context<'_>,
) -> Poll<Option<usize>>
where
    M: RawMutex,
    A: SessionAccess,
    S: Sleep,
{
    let mut index = table.take_free(me);
    if index.is_none() {
        let now = connection.now();
        let mut first = Instant::NEVER;
        let mut found = 0;
        for at in 0..SLOTS {
            access(at).with(&mut |session| {
                let evictable = session.evictable();
                if evictable < first {
                    (first, found) = (evictable, at);
                }
            });
        }
        if first > now && first <= end {
            table.with(|inner| inner.waiting = true);
            access(found).register(cx.waker());
            if connection.is_due(now, first, cx) {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        if first <= now {
            access(found).with(&mut |session| session.closed(now, Closed::Local));
            table.give(me, found);
            index = Some(found);
        }
    }
    // The listener that had the session, and those that listen, may have been polled before.
    cx.waker().wake_by_ref();
    table.with(|inner| inner.waiting = false);
    Poll::Ready(index)
}

#[cfg(test)]
mod tests;
