//! The driver of one connection: runs a [`Session`] on one transport after the other.
//!
//! In each poll the driver writes everything that the session has to send before it reads. It lends
//! the session's bytes to the transport while it holds the session. See the session
//! [contract](crate::session::contract) for the order of calls.

mod access;

use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::ops::Range;
use core::pin::{Pin, pin};
use core::task::{Context, Poll};

use super::{Dialer, Sleep, Transport};
use crate::session::{Closed, DialError, Link, Session, TransportError};
use crate::time::Instant;
pub(super) use access::{Access, SessionAccess, Steps, shared_code};

/// The number of rounds of reading and writing in one poll before other tasks run.
const ROUNDS_MAX: u8 = 16;

/// Runs one session for ever: dials when the session asks for it, carries bytes and calls `tick`.
///
/// `rx` is the receive buffer, at least 16 bytes; a larger buffer saves calls.
// `W` is a parameter because a future that holds an `A::Whom` would not be `Send`.
pub(super) async fn run_dialed<A, W, D, S>(
    access: &mut A,
    dialer: &mut D,
    sleep: &mut S,
    rx: &mut [u8],
) -> !
where
    A: Steps<Whom = W>,
    D: Dialer,
    S: Sleep,
{
    let mut connection = Connection::new(access.steps(), sleep);
    loop {
        let dialed = {
            let mut whom: W = A::NOBODY;
            poll_fn(|cx| connection.poll_down(access.steps(), &mut whom, cx)).await;
            let Some(address) = A::address(&whom) else { continue };
            let mut dial = pin!(dialer.dial(address));
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
    pub(super) fn new<A: Access + ?Sized>(access: &mut A, sleep: &'d mut S) -> Self {
        let now = sleep.now();
        access.with(|session| {
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
    fn open<A: Access + ?Sized>(&mut self, access: &mut A) -> bool {
        self.io = Io::new(false);
        let now = self.sleep.now();
        let mut opened = false;
        access.with(|session| {
            if matches!(session.link(), Link::Up) {
                session.open(now);
                opened = true;
            }
        });
        opened
    }

    /// Reports to the session that a caller connected.
    pub(super) fn accepted<A: Access + ?Sized>(&mut self, access: &mut A, from: SocketAddr) {
        self.io = Io::new(true);
        let now = self.sleep.now();
        access.with(|session| session.accepted(now, from));
    }

    #[cold]
    #[inline(never)]
    fn closed<A: Access + ?Sized>(&mut self, access: &mut A, why: Closed) {
        let now = self.sleep.now();
        access.with(|session| session.closed(now, why));
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

    /// Ready when a dial is due; `whom` is then whom to dial.
    #[inline(never)]
    fn poll_down<A: Access + ?Sized>(
        &mut self,
        access: &mut A,
        whom: &mut A::Whom,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        access.register(cx.waker());
        let now = self.sleep.now();
        let mut deadline = Instant::NEVER;
        let mut due = false;
        access.with(|session| {
            due = A::dial(session, now, whom);
            if !due {
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
    fn poll_dialing<A: Access + ?Sized>(
        &mut self,
        access: &mut A,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        access.register(cx.waker());
        let now = self.sleep.now();
        let mut wanted = false;
        let mut deadline = Instant::NEVER;
        access.with(|session| {
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
    pub(super) fn poll_up<A: Access + ?Sized, T: Transport>(
        &mut self,
        access: &mut A,
        transport: &mut T,
        rx: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        access.register(cx.waker());
        for _ in 0..A::ROUNDS {
            let now = self.sleep.now();
            // Stays if the session no longer exists.
            let mut step = Step::Over(Closed::Local);
            let mut deadline = Instant::NEVER;
            let io = &mut self.io;
            access.with(|session| {
                for _ in 0..A::ROUNDS_AT_ONCE {
                    step = io.round(session, transport, rx, now, cx);
                    if !matches!(step, Step::Again) {
                        break;
                    }
                }
                deadline = session.deadline();
                if deadline <= now {
                    session.tick(now);
                }
            });
            match step {
                Step::Over(why) => {
                    self.closed(access, why);
                    return Poll::Ready(());
                }
                _ if access.is_changed() => return Poll::Pending,
                Step::Wait if deadline > now && !self.is_due(now, deadline, cx) => {
                    return Poll::Pending;
                }
                Step::Wait | Step::Again => {}
            }
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

    /// Writes, then reads and passes the bytes to the session.
    fn round<S: Session + ?Sized, T: Transport>(
        &mut self,
        session: &mut S,
        transport: &mut T,
        rx: &mut [u8],
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Step {
        let step = self.step(session, transport, now, cx);
        if matches!(step, Step::Over(_)) {
            return step;
        }
        if self.upgrading || !self.unread.is_empty() {
            transport.send_gathered(cx);
        } else {
            match transport.poll_read(cx, rx) {
                Poll::Ready(Ok(n)) if n > 0 => self.unread = 0..n,
                Poll::Ready(end) => return Step::Over(self.end(session, end.err())),
                Poll::Pending => return step,
            }
        }
        let bytes = rx.get(self.unread.clone()).unwrap_or_default();
        let taken = if bytes.is_empty() { 0 } else { session.take(now, bytes) };
        self.unread.start = self.unread.start.saturating_add(taken);
        if taken > 0 { Step::Again } else { step }
    }

    /// Returns why the connection is over at the end of the transport's input.
    #[cold]
    #[inline(never)]
    fn end<S: Session + ?Sized>(&self, session: &S, error: Option<TransportError>) -> Closed {
        // The peer may close first, in answer to a close that this side began.
        if self.closing != Closing::No || matches!(session.link(), Link::Close) {
            return Closed::Local;
        }
        error.or(self.write_error).map_or(Closed::Peer, Closed::Transport)
    }

    /// Performs the action on the transport that the session's link requires.
    fn step<S: Session + ?Sized, T: Transport>(
        &mut self,
        session: &mut S,
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
                Ok(Written::Nothing) => Step::Wait,
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
    fn step_closing<S: Session + ?Sized, T: Transport>(
        &mut self,
        session: &mut S,
        transport: &mut T,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Step {
        let closed = match self.closing {
            Closing::Done => Poll::Pending,
            Closing::Begun => transport.poll_close(cx),
            Closing::No => match poll_transmit(session, transport, now, cx) {
                Ok(Written::All | Written::Nothing) => {
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
fn tick<S: Session + ?Sized>(session: &mut S, now: Instant) -> Instant {
    if session.deadline() <= now {
        session.tick(now);
    }
    session.deadline()
}

/// The result of writing a session's bytes.
enum Written {
    /// There was nothing to write.
    Nothing,
    /// All bytes were written.
    All,
    /// The transport accepts no more for now.
    Blocked,
    /// Bytes may remain, but other tasks should run first.
    Some,
}

/// Writes the session's bytes, in at most [`ROUNDS_MAX`] writes.
fn poll_transmit<S: Session + ?Sized, T: Transport>(
    session: &mut S,
    transport: &mut T,
    now: Instant,
    cx: &mut Context<'_>,
) -> Result<Written, TransportError> {
    for round in 0..ROUNDS_MAX {
        let bytes = session.transmit(now);
        if bytes.is_empty() {
            return Ok(if round == 0 { Written::Nothing } else { Written::All });
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
