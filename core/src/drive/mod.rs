//! The one async driver (feature `async`): runs any [`Session`] on any transport.
//!
//! A platform is three small traits: [`Dialer`] brings up a [`Transport`], [`Sleep`] tells and
//! waits for time. Everything else, from backoff to batching, is in the session. [`publisher`],
//! [`consumer`] and [`lookup`] give the two ends that applications use: a *handle*, cheap to copy, and a *runner*,
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

mod client;
pub mod consumer;
mod gather;
pub mod nsqd;
pub mod nsqlookupd;
mod port;
pub mod publisher;
pub mod registration;
mod serve;
mod server;
mod shared;

use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::ops::Range;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use crate::address::Address;
use crate::session::{Closed, DialError, Link, Session, Transmit, TransportError, Upgrade};
use crate::time::Instant;

pub use gather::{Gathered, Gathering};
pub use serve::{Admitted, Admitting, Gate, Port, refuse, serve};
pub use server::Ports;
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
    /// or done, as the platform needs before the transport may be dropped. It can be read from also
    /// after that.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>>;

    /// Gives up the connection at once; bytes under way may be lost. Dropped afterwards.
    fn abort(&mut self) {}

    /// Sends what it took and holds back until it is read from ([`Gathered`]): the session wants to
    /// read nothing for a while.
    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

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
    /// Whether all listeners of a port take callers from one queue, so that only one of those that
    /// wait has to be polled. Default `false`: each is polled whenever something happens.
    const ONE_QUEUE: bool = false;

    /// What it takes in; may borrow its buffers.
    type Transport<'l>: Transport
    where
        Self: 'l;

    /// Waits for the next connection, and says from whom it comes. Dropped, it stops listening.
    fn accept(
        &mut self,
    ) -> impl Future<Output = Result<(Self::Transport<'_>, SocketAddr), DialError>>;
}

/// Tells and waits for time. A clone is an independent timer.
pub trait Sleep: Clone {
    /// The time, from the platform's start; before [`Instant::NEVER`], which would always be due.
    fn now(&self) -> Instant;

    /// Ready at `at` or later; until then wakes the task by then. A later call replaces an earlier
    /// one. Called in every poll that waits, with the same time as long as it will do: a platform
    /// may forget it whenever the task runs (embassy-time keeps one time for all that a task
    /// holds), or may see that nothing changed.
    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()>;
}

/// A session that others may change while it is driven.
pub trait SessionCell {
    /// Runs `f` on the session, once; not at all if there is no such session.
    fn with(&self, f: &mut dyn FnMut(&mut dyn Session));

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
    let mut line = Line::new(cell, sleep);
    loop {
        let dialed = {
            let mut address = Address::NONE;
            poll_fn(|cx| line.poll_down(cell, &mut address, cx)).await;
            let mut dial = pin!(dialer.dial(&address));
            poll_fn(|cx| {
                if let Poll::Ready(dialed) = dial.as_mut().poll(cx) {
                    return Poll::Ready(dialed);
                }
                line.poll_dialing(cell, cx).map(|()| Err(DialError::TimedOut))
            })
            .await
        };
        match dialed {
            Err(error) => line.closed(cell, Closed::Dial(error)),
            Ok(mut transport) if line.open(cell) => {
                poll_fn(|cx| line.poll_up(cell, &mut transport, rx, cx)).await;
            }
            // It came up just as it was no longer wanted.
            Ok(_) => line.closed(cell, Closed::Local),
        }
    }
}

/// Polls a future in a function of its own: as a part of the application's, everything in it would be
/// reached by long offsets, with nearly no registers left.
#[inline(never)]
fn poll_apart<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(cx)
}

/// One connection after the other: what one poll leaves to the next.
///
/// The cell is not in here but handed in: as a `dyn` it would keep the drive from being `Send`.
struct Line<'d, S> {
    sleep: &'d mut S,
    /// When the task is to be woken at the latest.
    alarm: Instant,
    /// What a write said that failed. The other side may have said why before it hung up, so the
    /// transport is read to its end first, which follows at once.
    broken: Option<TransportError>,
    /// The transport is being wrapped: what there is to read is not the session's.
    wrapping: bool,
    /// Where in the receive buffer lies what the session has not taken yet.
    held: Range<usize>,
    ending: Ending,
}

/// How a transport is closed.
struct Ending {
    /// It is read to its end, within the session's deadline. Who called may still be writing, and
    /// a transport that is dropped with bytes unread is reset: the caller would lose what it was
    /// told last.
    reads_on: bool,
    closing: Closing,
}

/// How far closing a transport is. There is no way back: nothing more can be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// The end of the stream is not yet where it has to be before the transport may be dropped.
    Begun,
    /// What comes is read to its end.
    Done,
}

/// What is to be done after a session was looked at.
enum Step {
    /// Wait for the transport, the deadline or a change.
    Wait,
    /// Look again at once: something moved, and nobody would wake the task.
    Again,
    /// The transport is done with.
    Over(Closed),
}

impl<'d, S: Sleep> Line<'d, S> {
    fn new(cell: &dyn SessionCell, sleep: &'d mut S) -> Self {
        let now = sleep.now();
        // An earlier drive, dropped, may have had a connection: it is gone.
        cell.with(&mut |session| {
            if !matches!(session.link(), Link::Down) {
                session.closed(now, Closed::Transport(TransportError::Other));
            }
        });
        Self {
            sleep,
            alarm: Instant::NEVER,
            broken: None,
            wrapping: false,
            held: 0..0,
            ending: Ending { reads_on: false, closing: Closing::No },
        }
    }

    /// The transport is up. False if the session wants none any more.
    fn open(&mut self, cell: &dyn SessionCell) -> bool {
        let now = self.afresh();
        let mut opened = false;
        cell.with(&mut |session| {
            if matches!(session.link(), Link::Up) {
                session.open(now);
                opened = true;
            }
        });
        opened
    }

    /// Somebody connected.
    fn accepted(&mut self, cell: &dyn SessionCell, from: SocketAddr) {
        let now = self.afresh();
        self.ending.reads_on = true;
        cell.with(&mut |session| session.accepted(now, from));
    }

    /// Forgets what belonged to the last transport.
    fn afresh(&mut self) -> Instant {
        self.broken = None;
        self.wrapping = false;
        self.held = 0..0;
        self.ending.closing = Closing::No;
        self.sleep.now()
    }

    #[cold]
    #[inline(never)]
    fn closed(&mut self, cell: &dyn SessionCell, why: Closed) {
        let now = self.sleep.now();
        cell.with(&mut |session| session.closed(now, why));
    }

    /// There is nothing more to read.
    #[cold]
    #[inline(never)]
    fn ended(&mut self, cell: &dyn SessionCell, why: Closed) {
        let now = self.sleep.now();
        let closing = self.ending.closing != Closing::No;
        cell.with(&mut |session| {
            // The other side may close first once it has heard that this one does.
            let local = closing || matches!(session.link(), Link::Close);
            session.closed(now, if local { Closed::Local } else { why });
        });
    }

    /// Sees to it that the task wakes by `deadline`; true if that is now. A deadline that moved
    /// later costs one early wakeup when the old one comes, not a new timer for each message.
    #[inline(never)]
    fn is_due(&mut self, now: Instant, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if deadline == Instant::NEVER {
            return false;
        }
        if self.alarm > deadline || self.alarm <= now {
            self.alarm = deadline;
        }
        // In every poll that waits: see `Sleep::poll_until`.
        self.sleep.poll_until(cx, self.alarm).is_ready()
    }

    /// Ready when it is due to dial, and with whom.
    #[inline(never)]
    fn poll_down(
        &mut self,
        cell: &dyn SessionCell,
        whom: &mut Address,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        cell.register(cx.waker());
        let now = self.sleep.now();
        let mut deadline = Instant::NEVER;
        let mut due = false;
        cell.with(&mut |session| {
            if let Some(address) = session.dial(now) {
                whom.clone_from(address);
                due = true;
            } else {
                deadline = tick(session, now);
            }
        });
        if due {
            return Poll::Ready(());
        }
        if self.is_due(now, deadline, cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Ready when the session no longer wants the dial that is under way.
    #[inline(never)]
    fn poll_dialing(&mut self, cell: &dyn SessionCell, cx: &mut Context<'_>) -> Poll<()> {
        cell.register(cx.waker());
        let now = self.sleep.now();
        let mut wanted = false;
        let mut deadline = Instant::NEVER;
        cell.with(&mut |session| {
            deadline = tick(session, now);
            wanted = matches!(session.link(), Link::Up);
        });
        if !wanted {
            return Poll::Ready(());
        }
        if self.is_due(now, deadline, cx) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// Ready when the connection is over, closed as it should be, and the session knows.
    #[inline(never)]
    fn poll_up<T: Transport>(
        &mut self,
        cell: &dyn SessionCell,
        transport: &mut T,
        rx: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        cell.register(cx.waker());
        let mut now = Instant::ZERO;
        let mut deadline = Instant::NEVER;
        // Whether the session is to be looked at even if there is nothing to read.
        let mut look = true;
        for _ in 0..ROUNDS_MAX {
            let read = if self.wrapping || !self.held.is_empty() {
                transport.send_gathered(cx);
                Poll::Pending
            } else {
                transport.poll_read(cx, rx)
            };
            match read {
                Poll::Ready(Ok(n)) if n > 0 => self.held = 0..n,
                Poll::Ready(end) => {
                    let why = end.err().or(self.broken).map_or(Closed::Peer, Closed::Transport);
                    self.ended(cell, why);
                    return Poll::Ready(());
                }
                Poll::Pending if look || self.is_due(now, deadline, cx) => {}
                Poll::Pending => return Poll::Pending,
            }
            now = self.sleep.now();
            // Over if there is no such session any more.
            let mut step = Step::Over(Closed::Local);
            let (broken, wrapping, held) = (&mut self.broken, &mut self.wrapping, &mut self.held);
            let ending = &mut self.ending;
            let mut more = false;
            cell.with(&mut |session| {
                give(session, now, rx, held);
                step = step_up(session, transport, broken, wrapping, ending, now, cx);
                // What was written may have made room.
                more = give(session, now, rx, held);
                deadline = session.deadline();
                if deadline <= now {
                    session.tick(now);
                }
            });
            look = match step {
                Step::Wait => more || deadline <= now,
                Step::Again => true,
                Step::Over(why) => {
                    self.closed(cell, why);
                    return Poll::Ready(());
                }
            };
        }
        // However much there is to read, other tasks run.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Offers what was read, until it is taken. True if some of it was.
fn give(session: &mut dyn Session, now: Instant, rx: &[u8], held: &mut Range<usize>) -> bool {
    let bytes = rx.get(held.clone()).unwrap_or_default();
    let taken = if bytes.is_empty() { 0 } else { session.take(now, bytes) };
    held.start = held.start.saturating_add(taken);
    taken > 0
}

/// Ticks if the deadline has come; says when to tick next.
fn tick(session: &mut dyn Session, now: Instant) -> Instant {
    if session.deadline() <= now {
        session.tick(now);
    }
    session.deadline()
}

/// Does what the session wants of its transport.
fn step_up<T: Transport>(
    session: &mut dyn Session,
    transport: &mut T,
    broken: &mut Option<TransportError>,
    wrapping: &mut bool,
    ending: &mut Ending,
    now: Instant,
    cx: &mut Context<'_>,
) -> Step {
    match session.link() {
        Link::Down => Step::Over(Closed::Local),
        // Also if it is wanted again: the next one is then.
        _ if ending.closing != Closing::No => step_closing(session, transport, ending, now, cx),
        Link::Up if broken.is_some() => Step::Wait,
        Link::Up => match poll_transmit(session, transport, now, cx) {
            // It may have had its last word.
            Ok(Written::All | Written::Blocked) if matches!(session.link(), Link::Up) => Step::Wait,
            Ok(Written::All | Written::Blocked | Written::Some) => Step::Again,
            Err(error) => {
                *broken = Some(error);
                Step::Again
            }
        },
        Link::Close => step_closing(session, transport, ending, now, cx),
        Link::Upgrade(upgrade) => match transport.poll_upgrade(cx, upgrade) {
            Poll::Pending => {
                *wrapping = true;
                Step::Wait
            }
            Poll::Ready(Ok(())) => {
                *wrapping = false;
                session.upgraded(now);
                Step::Again
            }
            Poll::Ready(Err(error)) => Step::Over(Closed::Transport(error)),
        },
    }
}

/// Writes what is left, then closes; past the deadline, aborts.
#[cold]
#[inline(never)]
fn step_closing<T: Transport>(
    session: &mut dyn Session,
    transport: &mut T,
    ending: &mut Ending,
    now: Instant,
    cx: &mut Context<'_>,
) -> Step {
    let closed = match ending.closing {
        Closing::Done => Poll::Pending,
        Closing::Begun => transport.poll_close(cx),
        Closing::No => match poll_transmit(session, transport, now, cx) {
            Ok(Written::All) => {
                ending.closing = Closing::Begun;
                transport.poll_close(cx)
            }
            Ok(Written::Blocked) => Poll::Pending,
            Ok(Written::Some) => return Step::Again,
            Err(error) => Poll::Ready(Err(error)),
        },
    };
    match closed {
        Poll::Ready(Ok(())) if ending.reads_on => {
            ending.closing = Closing::Done;
            return Step::Again;
        }
        Poll::Ready(Ok(())) => return Step::Over(Closed::Local),
        // What is still due after the tick is the end of closing itself.
        Poll::Pending if tick(session, now) > now => return Step::Wait,
        Poll::Pending | Poll::Ready(Err(_)) => {}
    }
    transport.abort();
    Step::Over(Closed::Local)
}

/// How much of what a session has to say was written.
enum Written {
    /// All of it.
    All,
    /// The transport takes no more for now.
    Blocked,
    /// So much that it is somebody else's turn.
    Some,
}

fn poll_transmit<T: Transport>(
    session: &mut dyn Session,
    transport: &mut T,
    now: Instant,
    cx: &mut Context<'_>,
) -> Result<Written, TransportError> {
    for _ in 0..ROUNDS_MAX {
        let bytes = session.transmit(now);
        if bytes.is_empty() {
            return Ok(Written::All);
        }
        match transport.poll_write(cx, bytes) {
            Poll::Ready(Ok(0)) => return Err(TransportError::Other),
            Poll::Ready(Ok(n)) => session.sent(now, n),
            Poll::Ready(Err(error)) => return Err(error),
            Poll::Pending => return Ok(Written::Blocked),
        }
    }
    Ok(Written::Some)
}
