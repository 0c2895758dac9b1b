//! The one async driver (feature `async`): runs any [`Session`] on any transport.
//!
//! A platform is three small traits: [`Dialer`] brings up a [`Transport`], [`Sleep`] tells and
//! waits for time. Everything else, from backoff to batching, is in the session. [`publisher`] and
//! [`lookup`] give the two ends that applications use: a *handle*, cheap to copy, and a *runner*,
//! the one background future. Nothing here spawns or picks an executor.
//!
//! Transports are polled, not awaited: bytes are written from where they lie, under a lock that is
//! never held across an await, and no half-done read or write future is ever dropped, so a
//! transport whose futures are not cancel-safe (TLS) can keep its state in itself. Nothing is
//! flushed: a transport sends what it took without being asked.
//!
//! # Cancellation
//!
//! Dropping a runner at any await drops its transport: the other side sees the connection end, the
//! session is told when it is driven again. Handles' futures say for themselves what dropping them
//! means.

pub mod lookup;
pub mod publisher;
mod shared;

use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll, Waker};

use crate::address::Address;
use crate::session::{Closed, DialError, Link, Session, Transmit, TransportError, Upgrade};
use crate::time::{Instant, Span};

pub use shared::WAITERS_MAX;

/// How many rounds of reading and writing one poll makes before it lets other tasks run.
const ROUNDS_MAX: u8 = 16;

/// A connected byte stream.
pub trait Transport {
    /// Reads what is there, at least one byte; 0 is the end of the stream.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>>;

    /// Takes some of the bytes, head first, and says how many, at least one. They leave without a
    /// flush. `Pending` took none.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>>;

    /// Ends the stream towards the other side after what was written. Ready when that is under way
    /// or done, as the platform needs before the transport may be dropped.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>>;

    /// Gives up the connection at once; bytes under way may be lost. Dropped afterwards.
    fn abort(&mut self) {}

    /// Wraps the stream in place.
    fn poll_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        upgrade: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        let _ = (cx, upgrade);
        Poll::Ready(Err(TransportError::Unsupported))
    }
}

/// Brings up transports.
pub trait Dialer {
    /// What it brings up; may borrow its buffers.
    type Transport<'d>: Transport
    where
        Self: 'd;

    /// Resolves the address, each time anew, and connects. Dropped when it takes too long.
    fn dial(
        &mut self,
        address: &Address,
    ) -> impl Future<Output = Result<Self::Transport<'_>, DialError>>;
}

/// Takes in transports that others bring up: one accept slot. Several of them on one port are as
/// many connections at a time.
pub trait Listener {
    /// What it takes in; may borrow its buffers.
    type Transport<'l>: Transport
    where
        Self: 'l;

    /// Waits for the next connection. Dropped, it stops listening.
    fn accept(&mut self) -> impl Future<Output = Result<Self::Transport<'_>, DialError>>;
}

/// Tells and waits for time. A clone is an independent timer.
pub trait Sleep: Clone {
    /// The time, from the platform's start.
    fn now(&self) -> Instant;

    /// Ready at `at` or later; until then wakes the task by then. A later call replaces an earlier
    /// one. Called in every poll that waits, with the same time as long as it will do: a platform
    /// may forget it whenever the task runs (embassy-time keeps one time for all that a task
    /// holds), or may see that nothing changed.
    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()>;
}

/// A session that others may change while it is driven.
pub trait SessionCell {
    /// The session, borrowed for one call.
    type Session<'s>: Session
    where
        Self: 's;

    /// Runs `f` on the session; `None` if there is no such session.
    fn with<R>(&self, f: impl FnOnce(&mut Self::Session<'_>) -> R) -> Option<R>;

    /// Has the task woken when somebody else changes the session.
    fn register(&self, waker: &Waker);
}

/// Drives one session for ever: dials when it wants, carries bytes, tells the time.
///
/// `rx` is what bytes are read into, at least 16 of them; a larger one saves calls.
pub async fn drive<C, D, S>(cell: &C, dialer: &mut D, sleep: &mut S, rx: &mut [u8]) -> !
where
    C: SessionCell,
    D: Dialer,
    S: Sleep,
{
    let mut alarm = Alarm::new();
    forget_last(cell, sleep);
    loop {
        let address = poll_fn(|cx| poll_down(cell, sleep, &mut alarm, cx)).await;
        let why = {
            let mut dial = pin!(dialer.dial(&address));
            match poll_fn(|cx| {
                if let Poll::Ready(dialed) = dial.as_mut().poll(cx) {
                    return Poll::Ready(dialed);
                }
                poll_dialing(cell, sleep, &mut alarm, cx).map(Err)
            })
            .await
            {
                Err(error) => Closed::Dial(error),
                // It may have come up just as it was no longer wanted.
                Ok(_) if cell.with(|session| session.link()) != Some(Link::Up) => Closed::Local,
                Ok(mut transport) => carry(cell, &mut transport, sleep, &mut alarm, rx).await,
            }
        };
        let now = sleep.now();
        cell.with(|session| session.closed(now, why));
    }
}

/// Serves one accept slot for ever: each connection in turn is a new life of the session.
///
/// `rx` as in [`drive`]. A listener that fails is asked again after a second.
pub async fn serve<C, L, S>(cell: &C, listener: &mut L, sleep: &mut S, rx: &mut [u8]) -> !
where
    C: SessionCell,
    L: Listener,
    S: Sleep,
{
    let mut alarm = Alarm::new();
    forget_last(cell, sleep);
    loop {
        match listener.accept().await {
            Ok(mut transport) => {
                let why = carry(cell, &mut transport, sleep, &mut alarm, rx).await;
                let now = sleep.now();
                cell.with(|session| session.closed(now, why));
            }
            Err(_) => {
                let again = sleep.now().after(Span::from_secs(1));
                poll_fn(|cx| sleep.poll_until(cx, again)).await;
                alarm = Alarm::new();
            }
        }
    }
}

/// Tells the session that the connection is gone that an earlier drive, dropped, had.
fn forget_last<C: SessionCell, S: Sleep>(cell: &C, sleep: &S) {
    let now = sleep.now();
    cell.with(|session| {
        if session.link() != Link::Down {
            session.closed(now, Closed::Transport(TransportError::Other));
        }
    });
}

/// Runs a session on a transport that is up, until one of them ends.
async fn carry<C, T, S>(
    cell: &C,
    transport: &mut T,
    sleep: &mut S,
    alarm: &mut Alarm,
    rx: &mut [u8],
) -> Closed
where
    C: SessionCell,
    T: Transport,
    S: Sleep,
{
    let now = sleep.now();
    cell.with(|session| session.open(now));
    let mut broken = None;
    let why = poll_fn(|cx| poll_up(cell, transport, sleep, alarm, rx, &mut broken, cx)).await;
    if why == Closed::Local {
        poll_fn(|cx| poll_closing(cell, transport, sleep, alarm, cx)).await;
    }
    why
}

/// When one drive is to be woken. A deadline that moved later costs one early wakeup when the old
/// one comes, not a new timer for each message.
#[derive(Debug)]
struct Alarm(Instant);

impl Alarm {
    const fn new() -> Self {
        Self(Instant::NEVER)
    }

    /// Sees to it that the task wakes by `deadline`. Ready if that is now.
    fn poll<S: Sleep>(
        &mut self,
        sleep: &mut S,
        now: Instant,
        deadline: Option<Instant>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let Some(deadline) = deadline else { return Poll::Pending };
        if self.0 > deadline || self.0 <= now {
            self.0 = deadline;
        }
        // In every poll: see `Sleep::poll_until`.
        sleep.poll_until(cx, self.0)
    }
}

/// Ticks if the deadline has come; says when to tick next.
fn tick<T: Session>(session: &mut T, now: Instant) -> Option<Instant> {
    if session.deadline().is_some_and(|at| at <= now) {
        session.tick(now);
    }
    session.deadline()
}

#[inline(never)]
fn poll_down<C: SessionCell, S: Sleep>(
    cell: &C,
    sleep: &mut S,
    alarm: &mut Alarm,
    cx: &mut Context<'_>,
) -> Poll<Address> {
    cell.register(cx.waker());
    let now = sleep.now();
    let step = cell.with(|session| match session.dial(now) {
        Some(address) => Ok(address),
        None => Err(tick(session, now)),
    });
    match step {
        Some(Ok(address)) => return Poll::Ready(address),
        Some(Err(deadline)) if alarm.poll(sleep, now, deadline, cx).is_ready() => {
            cx.waker().wake_by_ref();
        }
        Some(Err(_)) | None => {}
    }
    Poll::Pending
}

/// Ready when the session no longer wants the dial that is under way.
#[inline(never)]
fn poll_dialing<C: SessionCell, S: Sleep>(
    cell: &C,
    sleep: &mut S,
    alarm: &mut Alarm,
    cx: &mut Context<'_>,
) -> Poll<DialError> {
    cell.register(cx.waker());
    let now = sleep.now();
    let step = cell.with(|session| {
        let deadline = tick(session, now);
        (session.link() == Link::Up).then_some(deadline)
    });
    match step.flatten() {
        None => return Poll::Ready(DialError::TimedOut),
        Some(deadline) if alarm.poll(sleep, now, deadline, cx).is_ready() => {
            cx.waker().wake_by_ref();
        }
        Some(_) => {}
    }
    Poll::Pending
}

/// Ready when the connection is over; [`Closed::Local`] if the session wants it closed.
///
/// A write that fails does not end it: the other side may have said why before it hung up, so
/// it is read to its end, which follows at once. `broken` is what the write said.
fn poll_up<C: SessionCell, T: Transport, S: Sleep>(
    cell: &C,
    transport: &mut T,
    sleep: &mut S,
    alarm: &mut Alarm,
    rx: &mut [u8],
    broken: &mut Option<TransportError>,
    cx: &mut Context<'_>,
) -> Poll<Closed> {
    cell.register(cx.waker());
    for _ in 0..ROUNDS_MAX {
        let now = sleep.now();
        let received = match transport.poll_read(cx, rx) {
            Poll::Pending => None,
            Poll::Ready(Ok(0)) => {
                return Poll::Ready(broken.map_or(Closed::Peer, Closed::Transport));
            }
            Poll::Ready(Ok(n)) => rx.get(..n),
            Poll::Ready(Err(error)) => return Poll::Ready(Closed::Transport(error)),
        };
        // Whether to look again at once: a read that was not pending wakes nobody.
        let mut again = received.is_some();
        let step = cell.with(|session| {
            if let Some(bytes) = received {
                // A fault shows as `Link::Close`.
                let _ = session.receive(now, bytes);
            }
            match session.link() {
                Link::Up if broken.is_some() => {}
                Link::Up => match poll_transmit(session, transport, now, cx) {
                    Ok(more) => again |= more,
                    Err(error) => {
                        *broken = Some(error);
                        again = true;
                    }
                },
                Link::Down | Link::Close => return Err(Closed::Local),
                Link::Upgrade(upgrade) => match transport.poll_upgrade(cx, upgrade) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(())) => {
                        session.upgraded(now);
                        again = true;
                    }
                    Poll::Ready(Err(error)) => return Err(Closed::Transport(error)),
                },
            }
            if again {
                return Ok(None);
            }
            let deadline = session.deadline();
            if deadline.is_some_and(|at| at <= now) {
                session.tick(now);
                again = true;
            }
            Ok(deadline)
        });
        match step {
            None => return Poll::Ready(Closed::Local),
            Some(Err(why)) => return Poll::Ready(why),
            Some(Ok(_)) if again => {}
            Some(Ok(deadline)) => {
                if alarm.poll(sleep, now, deadline, cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }
    }
    // However much there is to read, time passes.
    let now = sleep.now();
    cell.with(|session| tick(session, now));
    cx.waker().wake_by_ref();
    Poll::Pending
}

/// Writes until there is nothing to write or the transport is full; true if there may be more.
fn poll_transmit<N: Session, T: Transport>(
    session: &mut N,
    transport: &mut T,
    now: Instant,
    cx: &mut Context<'_>,
) -> Result<bool, TransportError> {
    for _ in 0..ROUNDS_MAX {
        let bytes = session.transmit(now);
        if bytes.is_empty() {
            return Ok(false);
        }
        match transport.poll_write(cx, bytes) {
            Poll::Ready(Ok(0)) => return Err(TransportError::Other),
            Poll::Ready(Ok(n)) => session.sent(now, n),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(false),
        }
    }
    Ok(true)
}

/// Writes what is left, then closes; past the deadline, aborts.
#[inline(never)]
fn poll_closing<C: SessionCell, T: Transport, S: Sleep>(
    cell: &C,
    transport: &mut T,
    sleep: &mut S,
    alarm: &mut Alarm,
    cx: &mut Context<'_>,
) -> Poll<()> {
    let now = sleep.now();
    let step = cell.with(|session| {
        while poll_transmit(session, transport, now, cx)? {}
        let drained = session.transmit(now).is_empty();
        let deadline = tick(session, now);
        Ok::<_, TransportError>((drained, deadline))
    });
    if let Some(Ok((drained, deadline))) = step {
        if drained && let Poll::Ready(Ok(())) = transport.poll_close(cx) {
            return Poll::Ready(());
        }
        // What is still due after the tick is the end of closing itself.
        if deadline.is_some_and(|at| at > now) {
            if alarm.poll(sleep, now, deadline, cx).is_ready() {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
    }
    transport.abort();
    Poll::Ready(())
}
