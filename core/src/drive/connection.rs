//! The driver of one connection: runs a [`Session`] on one transport after the other.
//!
//! In each poll the driver writes everything that the session has to send before it reads. It lends
//! the session's bytes to the transport while it holds the session. See the session
//! [contract](crate::session::contract) for the order of calls.

use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::ops::Range;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use super::{Dialer, Sleep, Transport};
use crate::address::Address;
use crate::session::{Closed, DialError, Link, Session, TransportError};
use crate::time::Instant;

/// The number of rounds of reading and writing in one poll before other tasks run.
const ROUNDS_MAX: u8 = 16;

/// A driver's access to its session, which may be owned, shared within a task, or behind a lock.
///
/// The driver's steps are generic over the access. With a `dyn`, all kinds of sessions share one
/// copy of the steps; a concrete type gets its own copy, in which the session's calls are direct.
pub(super) trait SessionAccess {
    /// Runs `f` once on the session, or not at all if there is no such session.
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session));

    /// Arranges that the task wakes when anything but the driver changes the session.
    fn register(&mut self, waker: &Waker);
}

/// The code of the driver's steps for an access: all kinds of accesses share one copy, except
/// those that implement this themselves.
pub(super) trait Steps {
    /// The access that the steps use.
    type Access<'s>: SessionAccess + ?Sized + 's
    where
        Self: 's;

    fn steps(&mut self) -> &mut Self::Access<'_>;
}

impl<A: SessionAccess> Steps for A {
    type Access<'s>
        = dyn SessionAccess + 's
    where
        A: 's;

    fn steps(&mut self) -> &mut Self::Access<'_> {
        shared_code(self)
    }
}

/// Runs one session for ever: dials when the session asks for it, carries bytes and calls `tick`.
///
/// `rx` is the receive buffer, at least 16 bytes; a larger buffer saves calls.
pub(super) async fn run_dialed<A, D, S>(
    access: &mut A,
    dialer: &mut D,
    sleep: &mut S,
    rx: &mut [u8],
) -> !
where
    A: Steps,
    D: Dialer,
    S: Sleep,
{
    let mut connection = Connection::new(access.steps(), sleep);
    loop {
        let dialed = {
            let mut address = Address::NONE;
            poll_fn(|cx| connection.poll_down(access.steps(), &mut address, cx)).await;
            let mut dial = pin!(dialer.dial(&address));
            poll_fn(|cx| {
                if let Poll::Ready(dialed) = dial.as_mut().poll(cx) {
                    return Poll::Ready(dialed);
                }
                connection.poll_dialing(access.steps(), cx).map(|()| Err(DialError::TimedOut))
            })
            .await
        };
        match dialed {
            Err(error) => connection.closed(access.steps(), Closed::Dial(error)),
            Ok(mut transport) if connection.open(access.steps()) => {
                poll_fn(|cx| connection.poll_up(access.steps(), &mut transport, rx, cx)).await;
            }
            // The session cancelled the dial in the moment in which it succeeded.
            Ok(_) => connection.closed(access.steps(), Closed::Local),
        }
    }
}

/// Returns the access as a `dyn`, so that the program has one copy of the steps that use it.
pub(super) fn shared_code<'s>(
    access: &'s mut impl SessionAccess,
) -> &'s mut (dyn SessionAccess + 's) {
    access
}

/// Polls a future in its own function. Inlined into the application's future, the code would access
/// its state at large offsets with few free registers, and need twice the flash.
#[inline(never)]
pub(super) fn poll_apart<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(cx)
}

/// The state of a driver, which drives one connection after the other.
///
/// The access is passed to each call: a `dyn` in this type would keep runners from being `Send`.
pub(super) struct Connection<'d, S> {
    sleep: &'d mut S,
    /// The latest time at which the timer wakes the task.
    alarm: Instant,
    io: Io,
}

/// The state of the current transport.
struct Io {
    /// The error of a failed write. The peer may have sent a reason before it closed, so the
    /// transport is read to its end before the session learns of the error.
    write_error: Option<TransportError>,
    /// The transport is being wrapped, so its bytes are not for the session.
    upgrading: bool,
    /// The range of the receive buffer that the session has not taken yet.
    unread: Range<usize>,
    /// After closing, the transport is read to its end, until the session's deadline at most. The
    /// peer may still be writing, and a transport dropped with unread bytes is reset, which would
    /// make the peer lose the answer.
    reads_to_end: bool,
    closing: Closing,
}

/// The progress of closing a transport. Once begun, nothing more can be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// The end of the stream is being sent; the transport must not be dropped yet.
    Begun,
    /// The end of the stream is sent; the peer is read to its end.
    Done,
}

/// The next action of the driver.
enum Step {
    /// Wait for the transport, the deadline or a change.
    Wait,
    /// Begin another round at once: there was progress, and nothing would wake the task.
    Again,
    /// Drop the transport.
    Over(Closed),
}

impl<'d, S: Sleep> Connection<'d, S> {
    /// Makes a driver. If an earlier driver was dropped with a connection, reports to the session
    /// that the connection is lost.
    pub(super) fn new<A: SessionAccess + ?Sized>(access: &mut A, sleep: &'d mut S) -> Self {
        let now = sleep.now();
        access.with(&mut |session| {
            if !matches!(session.link(), Link::Down) {
                session.closed(now, Closed::Transport(TransportError::Other));
            }
        });
        Self { sleep, alarm: Instant::NEVER, io: Io::new(false) }
    }

    pub(super) fn now(&self) -> Instant {
        self.sleep.now()
    }

    /// Reports to the session that the transport is connected. Returns false without a report if
    /// the session has cancelled the dial.
    fn open<A: SessionAccess + ?Sized>(&mut self, access: &mut A) -> bool {
        self.io = Io::new(false);
        let now = self.sleep.now();
        let mut opened = false;
        access.with(&mut |session| {
            if matches!(session.link(), Link::Up) {
                session.open(now);
                opened = true;
            }
        });
        opened
    }

    /// Reports to the session that a caller connected.
    pub(super) fn accepted<A: SessionAccess + ?Sized>(&mut self, access: &mut A, from: SocketAddr) {
        self.io = Io::new(true);
        let now = self.sleep.now();
        access.with(&mut |session| session.accepted(now, from));
    }

    #[cold]
    #[inline(never)]
    fn closed<A: SessionAccess + ?Sized>(&mut self, access: &mut A, why: Closed) {
        let now = self.sleep.now();
        access.with(&mut |session| session.closed(now, why));
    }

    /// Reports the end of the transport's input to the session.
    #[cold]
    #[inline(never)]
    fn ended<A: SessionAccess + ?Sized>(&mut self, access: &mut A, why: Closed) {
        let now = self.sleep.now();
        let closing = self.io.closing != Closing::No;
        access.with(&mut |session| {
            // The peer may close first, in answer to a close that this side began.
            let local = closing || matches!(session.link(), Link::Close);
            session.closed(now, if local { Closed::Local } else { why });
        });
    }

    /// Arranges that the task wakes by `deadline`. Returns true if the timer is due, possibly
    /// early: a deadline that moves later costs one early wakeup, not a new timer for each message.
    #[inline(never)]
    pub(super) fn is_due(&mut self, now: Instant, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if deadline == Instant::NEVER {
            return false;
        }
        if self.alarm > deadline || self.alarm <= now {
            self.alarm = deadline;
        }
        // Called in every poll that waits; see `Sleep::poll_until`.
        self.sleep.poll_until(cx, self.alarm).is_ready()
    }

    /// Ready at `until`: how long a slot waits whose listener failed.
    pub(super) fn poll_rest(&mut self, until: Instant, cx: &mut Context<'_>) -> Poll<()> {
        self.alarm = Instant::NEVER;
        self.sleep.poll_until(cx, until)
    }

    /// Ready when a dial is due; `address` is then the address to dial.
    #[inline(never)]
    fn poll_down<A: SessionAccess + ?Sized>(
        &mut self,
        access: &mut A,
        address: &mut Address,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        access.register(cx.waker());
        let now = self.sleep.now();
        let mut deadline = Instant::NEVER;
        let mut due = false;
        access.with(&mut |session| {
            if let Some(nsqd) = session.dial(now) {
                address.clone_from(nsqd);
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

    /// Ready when the session has cancelled the dial in progress.
    #[inline(never)]
    fn poll_dialing<A: SessionAccess + ?Sized>(
        &mut self,
        access: &mut A,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        access.register(cx.waker());
        let now = self.sleep.now();
        let mut wanted = false;
        let mut deadline = Instant::NEVER;
        access.with(&mut |session| {
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

    /// Carries bytes. Ready when the connection has ended and that was reported to the session.
    #[inline(never)]
    pub(super) fn poll_up<A: SessionAccess + ?Sized, T: Transport>(
        &mut self,
        access: &mut A,
        transport: &mut T,
        rx: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        access.register(cx.waker());
        let mut now = Instant::ZERO;
        let mut deadline = Instant::NEVER;
        // True if a round is due even if nothing was read.
        let mut again = true;
        for _ in 0..ROUNDS_MAX {
            let read = if self.io.upgrading || !self.io.unread.is_empty() {
                transport.send_gathered(cx);
                Poll::Pending
            } else {
                transport.poll_read(cx, rx)
            };
            match read {
                Poll::Ready(Ok(n)) if n > 0 => self.io.unread = 0..n,
                Poll::Ready(end) => {
                    let error = end.err().or(self.io.write_error);
                    self.ended(access, error.map_or(Closed::Peer, Closed::Transport));
                    return Poll::Ready(());
                }
                Poll::Pending if again || self.is_due(now, deadline, cx) => {}
                Poll::Pending => return Poll::Pending,
            }
            now = self.sleep.now();
            // Stays if the session no longer exists.
            let mut step = Step::Over(Closed::Local);
            let io = &mut self.io;
            let mut took = false;
            access.with(&mut |session| {
                io.offer(session, now, rx);
                step = io.step(session, transport, now, cx);
                // Writing may have made room in the session.
                took = io.offer(session, now, rx);
                deadline = session.deadline();
                if deadline <= now {
                    session.tick(now);
                }
            });
            again = match step {
                Step::Wait => took || deadline <= now,
                Step::Again => true,
                Step::Over(why) => {
                    self.closed(access, why);
                    return Poll::Ready(());
                }
            };
        }
        // Let other tasks run, however much there is to read.
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Io {
    const fn new(reads_to_end: bool) -> Self {
        Self {
            write_error: None,
            upgrading: false,
            unread: 0..0,
            reads_to_end,
            closing: Closing::No,
        }
    }

    /// Offers the unread bytes to the session. Returns true if the session took some of them.
    fn offer(&mut self, session: &mut dyn Session, now: Instant, rx: &[u8]) -> bool {
        let bytes = rx.get(self.unread.clone()).unwrap_or_default();
        let taken = if bytes.is_empty() { 0 } else { session.take(now, bytes) };
        self.unread.start = self.unread.start.saturating_add(taken);
        taken > 0
    }

    /// Performs the action on the transport that the session's link requires.
    fn step<T: Transport>(
        &mut self,
        session: &mut dyn Session,
        transport: &mut T,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Step {
        match session.link() {
            Link::Down => Step::Over(Closed::Local),
            // Even if the session's link is up again: that needs another transport.
            _ if self.closing != Closing::No => self.step_closing(session, transport, now, cx),
            Link::Up if self.write_error.is_some() => Step::Wait,
            Link::Up => match poll_transmit(session, transport, now, cx) {
                // The session may have closed its link after these bytes.
                Ok(Written::All | Written::Blocked) if matches!(session.link(), Link::Up) => {
                    Step::Wait
                }
                Ok(Written::All | Written::Blocked | Written::Some) => Step::Again,
                Err(error) => {
                    self.write_error = Some(error);
                    Step::Again
                }
            },
            Link::Close => self.step_closing(session, transport, now, cx),
            Link::Upgrade(upgrade) => match transport.poll_upgrade(cx, upgrade) {
                Poll::Pending => {
                    self.upgrading = true;
                    Step::Wait
                }
                Poll::Ready(Ok(())) => {
                    self.upgrading = false;
                    session.upgraded(now);
                    Step::Again
                }
                Poll::Ready(Err(error)) => Step::Over(Closed::Transport(error)),
            },
        }
    }

    /// Writes the remaining bytes, then closes; aborts after the deadline.
    #[cold]
    #[inline(never)]
    fn step_closing<T: Transport>(
        &mut self,
        session: &mut dyn Session,
        transport: &mut T,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Step {
        let closed = match self.closing {
            Closing::Done => Poll::Pending,
            Closing::Begun => transport.poll_close(cx),
            Closing::No => match poll_transmit(session, transport, now, cx) {
                Ok(Written::All) => {
                    self.closing = Closing::Begun;
                    transport.poll_close(cx)
                }
                Ok(Written::Blocked) => Poll::Pending,
                Ok(Written::Some) => return Step::Again,
                Err(error) => Poll::Ready(Err(error)),
            },
        };
        match closed {
            Poll::Ready(Ok(())) if self.reads_to_end => {
                self.closing = Closing::Done;
                return Step::Again;
            }
            Poll::Ready(Ok(())) => return Step::Over(Closed::Local),
            // A deadline that is still due after the tick is that of closing itself.
            Poll::Pending if tick(session, now) > now => return Step::Wait,
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
        transport.abort();
        Step::Over(Closed::Local)
    }
}

/// Calls `tick` if the deadline has passed. Returns the next deadline.
fn tick(session: &mut dyn Session, now: Instant) -> Instant {
    if session.deadline() <= now {
        session.tick(now);
    }
    session.deadline()
}

/// The result of writing a session's bytes.
enum Written {
    /// All bytes were written.
    All,
    /// The transport accepts no more for now.
    Blocked,
    /// Bytes may remain, but other tasks should run first.
    Some,
}

/// Writes the session's bytes, in at most [`ROUNDS_MAX`] writes.
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

#[cfg(test)]
mod tests;
