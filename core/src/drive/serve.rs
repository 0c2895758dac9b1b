//! Serving: accept slots, and a spare one that refuses.

use core::cell::RefCell;
use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::task::{Context, Poll};

use embassy_futures::select::{Either, select};
use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};
use embassy_sync::waitqueue::WakerRegistration;

use super::{Line, Listener, SessionCell, Sleep, Transport};
use crate::session::{DialError, Transmit, TransportError, Upgrade};
use crate::time::{Instant, Span};

/// Serves one accept slot for ever: each connection in turn is a new life of the session.
///
/// `rx` as in [`drive`](super::drive). A listener that fails is asked again after a second.
///
/// A session that closes the connection is heard to the end: after its last bytes the transport is
/// closed, and what the other side still says is read, and given to the session, until it hangs up
/// too or the session's deadline has come.
pub async fn serve<C, L, S>(cell: &C, listener: &mut L, sleep: &mut S, rx: &mut [u8]) -> !
where
    C: SessionCell,
    L: Listener,
    S: Sleep,
{
    let mut line = Line::new(cell, sleep);
    loop {
        match listener.accept().await {
            Ok((mut transport, from)) => {
                line.accepted(cell, from);
                poll_fn(|cx| line.poll_up(cell, &mut transport, rx, cx)).await;
            }
            Err(_) => pause(&mut line).await,
        }
    }
}

/// Serves those who call while all slots behind the gate are taken, one after the other, for ever:
/// with a [`Reject`](crate::reject::Reject) each is told so.
///
/// Listens only as long as all are taken. `rx` is what is read, and not looked at, at once.
pub async fn refuse<M, C, L, S>(
    gate: &Gate<M>,
    cell: &C,
    listener: &mut L,
    sleep: &mut S,
    rx: &mut [u8],
) -> !
where
    M: RawMutex,
    C: SessionCell,
    L: Listener,
    S: Sleep,
{
    let mut line = Line::new(cell, sleep);
    loop {
        poll_fn(|cx| gate.poll(true, cx)).await;
        match select(listener.accept(), poll_fn(|cx| gate.poll(false, cx))).await {
            Either::First(Ok((mut transport, from))) => {
                line.accepted(cell, from);
                poll_fn(|cx| line.poll_up(cell, &mut transport, rx, cx)).await;
            }
            Either::First(Err(_)) => pause(&mut line).await,
            Either::Second(()) => {}
        }
    }
}

/// What a server listens on: a listener for each session, and a spare one. While all sessions are
/// taken the spare one accepts callers: each gets the session of a connection that is idle or slow
/// ([`Session::evictable`](crate::session::Session::evictable)), if need be within 2.5 s, or is
/// refused. Without a spare one callers wait, or are reset, as the platform has it.
///
/// All of them are listeners of one port.
#[derive(Debug, Clone, Copy)]
pub struct Port<L, const SLOTS: usize> {
    /// One for each connection at a time.
    pub slots: [L; SLOTS],
    /// For callers while all sessions are taken.
    pub spare: Option<L>,
}

impl<L, const SLOTS: usize> Port<L, SLOTS> {
    /// As many listeners as it takes, a spare one among them.
    pub fn new(mut listener: impl FnMut() -> L) -> Self {
        Self { slots: core::array::from_fn(|_| listener()), spare: Some(listener()) }
    }
}

impl<L> Port<L, 0> {
    /// Nothing to listen on.
    pub const NONE: Self = Self { slots: [], spare: None };
}

/// A listener failed: nothing is gained by asking it again at once.
pub(super) async fn pause<S: Sleep>(line: &mut Line<'_, S>) {
    let again = line.sleep.now().after(Span::from_secs(1));
    poll_fn(|cx| line.sleep.poll_until(cx, again)).await;
    line.alarm = Instant::NEVER;
}

/// Knows how many of a port's accept slots are taken, so that a spare one can refuse callers while
/// all are ([`refuse`]; one task at a time may do that).
pub struct Gate<M: RawMutex> {
    inner: Mutex<M, RefCell<Inner>>,
}

struct Inner {
    free: usize,
    waker: WakerRegistration,
}

impl<M: RawMutex> Gate<M> {
    /// For so many slots, all of them free.
    pub const fn new(slots: usize) -> Self {
        let inner = Inner { free: slots, waker: WakerRegistration::new() };
        Self { inner: Mutex::new(RefCell::new(inner)) }
    }

    /// One of the slots, counted as taken while there is a transport.
    pub const fn admit<L>(&self, listener: L) -> Admitting<'_, M, L> {
        Admitting { gate: self, listener }
    }

    fn poll(&self, full: bool, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|inner| {
            if (inner.free == 0) == full {
                return Poll::Ready(());
            }
            inner.waker.register(cx.waker());
            Poll::Pending
        })
        .unwrap_or(Poll::Pending)
    }

    fn change(&self, f: impl FnOnce(usize) -> usize) {
        self.with(|inner| {
            let was_full = inner.free == 0;
            inner.free = f(inner.free);
            if was_full != (inner.free == 0) {
                inner.waker.wake();
            }
        });
    }

    /// `f` does not come back here, so there always is an answer.
    fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> Option<R> {
        self.inner.lock(|inner| inner.try_borrow_mut().ok().map(|mut inner| f(&mut inner)))
    }
}

impl<M: RawMutex> core::fmt::Debug for Gate<M> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// A listener that is one of a [`Gate`]'s slots.
#[derive(Debug)]
pub struct Admitting<'g, M: RawMutex, L> {
    gate: &'g Gate<M>,
    listener: L,
}

impl<L: Listener> Listener for &mut L {
    const ONE_QUEUE: bool = L::ONE_QUEUE;

    type Transport<'l>
        = L::Transport<'l>
    where
        Self: 'l;

    fn accept(
        &mut self,
    ) -> impl Future<Output = Result<(Self::Transport<'_>, SocketAddr), DialError>> {
        (**self).accept()
    }
}

impl<'g, M: RawMutex, L: Listener> Listener for Admitting<'g, M, L> {
    const ONE_QUEUE: bool = L::ONE_QUEUE;

    type Transport<'l>
        = Admitted<'g, M, L::Transport<'l>>
    where
        Self: 'l;

    async fn accept(&mut self) -> Result<(Self::Transport<'_>, SocketAddr), DialError> {
        let (transport, from) = self.listener.accept().await?;
        self.gate.change(|free| free.saturating_sub(1));
        Ok((Admitted { gate: self.gate, transport }, from))
    }
}

/// A transport through a [`Gate`]. Dropped, its slot is free.
#[derive(Debug)]
pub struct Admitted<'g, M: RawMutex, T> {
    gate: &'g Gate<M>,
    transport: T,
}

impl<M: RawMutex, T> Drop for Admitted<'_, M, T> {
    fn drop(&mut self) {
        self.gate.change(|free| free.saturating_add(1));
    }
}

impl<M: RawMutex, T: Transport> Transport for Admitted<'_, M, T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.transport.poll_read(cx, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        self.transport.poll_write(cx, bytes)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.transport.poll_close(cx)
    }

    fn abort(&mut self) {
        self.transport.abort();
    }

    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        self.transport.send_gathered(cx);
    }

    fn poll_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        upgrade: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        self.transport.poll_upgrade(cx, upgrade)
    }
}
