//! The driver of one connection: runs a [`Session`] on one transport after the other.
//!
//! It reads only after it has written everything that there was to write, in the same poll, and
//! lends the session's bytes to the transport while it holds the session. See the session
//! [contract](crate::session) for the order of calls.

use core::future::{Future, poll_fn};
use core::net::SocketAddr;
use core::ops::Range;
use core::pin::{Pin, pin};
use core::task::{Context, Poll, Waker};

use super::{Dialer, Sleep, Transport};
use crate::address::Address;
use crate::session::{Closed, DialError, Link, Session, TransportError};
use crate::time::{Instant, Span};

/// How many rounds of reading and writing one poll makes before it lets other tasks run.
const ROUNDS_MAX: u8 = 16;

/// How long a slot whose listener failed waits before it listens again.
const ACCEPT_RETRY: Span = Span::from_secs(1);

/// How a driver reaches the session that it runs: owned, shared within a task, or behind a lock.
///
/// The driver's steps are generic over it. As a `dyn`, all kinds of sessions share one copy of the
/// steps; a type that is known gets a copy of its own, in which the session's calls are direct.
pub(super) trait SessionAccess {
    /// Runs `f` on the session, once; not at all if there is no such session.
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session));

    /// Wakes the task when somebody else changes the session.
    fn register(&mut self, waker: &Waker);
}

/// Runs one session for ever: dials when it wants, carries bytes, tells the time.
///
/// `rx` is the receive buffer, at least 16 bytes; a larger one saves calls.
pub(super) async fn run_dialed<A, D, S>(
    access: &mut A,
    dialer: &mut D,
    sleep: &mut S,
    rx: &mut [u8],
) -> !
where
    A: SessionAccess,
    D: Dialer,
    S: Sleep,
{
    let mut connection = Connection::new(shared_code(access), sleep);
    loop {
        let dialed = {
            let mut address = Address::NONE;
            poll_fn(|cx| connection.poll_down(shared_code(access), &mut address, cx)).await;
            let mut dial = pin!(dialer.dial(&address));
            poll_fn(|cx| {
                if let Poll::Ready(dialed) = dial.as_mut().poll(cx) {
                    return Poll::Ready(dialed);
                }
                connection.poll_dialing(shared_code(access), cx).map(|()| Err(DialError::TimedOut))
            })
            .await
        };
        match dialed {
            Err(error) => connection.closed(shared_code(access), Closed::Dial(error)),
            Ok(mut transport) if connection.open(shared_code(access)) => {
                poll_fn(|cx| connection.poll_up(shared_code(access), &mut transport, rx, cx)).await;
            }
            // The dial succeeded just when the session wanted no connection any more.
            Ok(_) => connection.closed(shared_code(access), Closed::Local),
        }
    }
}

/// The access as a `dyn`, for steps of which the program has one copy.
pub(super) fn shared_code<'s>(
    access: &'s mut impl SessionAccess,
) -> &'s mut (dyn SessionAccess + 's) {
    access
}

/// Polls a future in a function of its own. Inlined into the application's future, everything in it
/// would be reached by long offsets, with nearly no registers left: twice the flash.
#[inline(never)]
pub(super) fn poll_apart<F: Future>(future: Pin<&mut F>, cx: &mut Context<'_>) -> Poll<F::Output> {
    future.poll(cx)
}

/// Drives one connection after the other: what one poll leaves to the next.
///
/// The access is handed in, not held: a `dyn` in here would keep runners from being `Send`.
pub(super) struct Connection<'d, S> {
    sleep: &'d mut S,
    /// When the timer wakes the task at the latest.
    alarm: Instant,
    io: Io,
}

/// The state of the current transport.
struct Io {
    /// The error of a write that failed. The peer may have said why before it hung up, so the
    /// transport is read to its end before the session is told.
    write_error: Option<TransportError>,
    /// The transport is being wrapped, so what can be read is not the session's.
    upgrading: bool,
    /// Where in the receive buffer the bytes lie that the session has not taken yet.
    unread: Range<usize>,
    /// After closing, the transport is read to its end, within the session's deadline. A caller may
    /// still be writing, and a transport that is dropped with bytes unread is reset: the caller
    /// would lose the answer.
    reads_to_end: bool,
    closing: Closing,
}

/// How far closing a transport is. There is no way back: nothing more can be written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// The end of the stream is not yet where it has to be before the transport may be dropped.
    Begun,
    /// The end is sent; the peer is read to its end.
    Done,
}

/// What the driver does next.
enum Step {
    /// Wait for the transport, the deadline or a change.
    Wait,
    /// Go round again at once: something moved, and nobody would wake the task.
    Again,
    /// Drop the transport.
    Over(Closed),
}

impl<'d, S: Sleep> Connection<'d, S> {
    /// Tells the session that a connection of an earlier driver, which was dropped, is gone.
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

    /// Tells the session that the transport is up. False if the session wants none any more.
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

    /// Tells the session that somebody connected.
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

    /// There is nothing more to read.
    #[cold]
    #[inline(never)]
    fn ended<A: SessionAccess + ?Sized>(&mut self, access: &mut A, why: Closed) {
        let now = self.sleep.now();
        let closing = self.io.closing != Closing::No;
        access.with(&mut |session| {
            // The peer may close first once it has heard that this side does.
            let local = closing || matches!(session.link(), Link::Close);
            session.closed(now, if local { Closed::Local } else { why });
        });
    }

    /// Arranges that the task wakes by `deadline`; true if that is now. A deadline that moved later
    /// costs one early wakeup when the old one comes, not a new timer for each message.
    #[inline(never)]
    pub(super) fn is_due(&mut self, now: Instant, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if deadline == Instant::NEVER {
            return false;
        }
        if self.alarm > deadline || self.alarm <= now {
            self.alarm = deadline;
        }
        // In every poll that waits: see `Sleep::poll_until`.
        self.sleep.poll_until(cx, self.alarm).is_ready()
    }

    /// Waits after a listener failed: asking it again at once would gain nothing.
    pub(super) async fn wait_to_listen(&mut self) {
        let again = self.sleep.now().after(ACCEPT_RETRY);
        poll_fn(|cx| self.sleep.poll_until(cx, again)).await;
        self.alarm = Instant::NEVER;
    }

    /// Ready when a dial is due; `address` is then whom to dial.
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

    /// Ready when the session no longer wants the dial that is under way.
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

    /// Ready when the connection is over, closed as it should be, and the session knows.
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
        // Whether to go round even if there is nothing to read.
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
            // Over if there is no such session any more.
            let mut step = Step::Over(Closed::Local);
            let io = &mut self.io;
            let mut took = false;
            access.with(&mut |session| {
                io.offer(session, now, rx);
                step = io.step(session, transport, now, cx);
                // What was written may have made room.
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
        // However much there is to read, other tasks run.
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

    /// Offers the session what was read. True if it took some of it.
    fn offer(&mut self, session: &mut dyn Session, now: Instant, rx: &[u8]) -> bool {
        let bytes = rx.get(self.unread.clone()).unwrap_or_default();
        let taken = if bytes.is_empty() { 0 } else { session.take(now, bytes) };
        self.unread.start = self.unread.start.saturating_add(taken);
        taken > 0
    }

    /// Does with the transport what the session's link says.
    fn step<T: Transport>(
        &mut self,
        session: &mut dyn Session,
        transport: &mut T,
        now: Instant,
        cx: &mut Context<'_>,
    ) -> Step {
        match session.link() {
            Link::Down => Step::Over(Closed::Local),
            // Also if the session wants to be up again: its next transport is.
            _ if self.closing != Closing::No => self.step_closing(session, transport, now, cx),
            Link::Up if self.write_error.is_some() => Step::Wait,
            Link::Up => match poll_transmit(session, transport, now, cx) {
                // What was written may have been the session's last word.
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

    /// Writes what is left, then closes; aborts past the deadline.
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
            // What is still due after the tick is the deadline of closing itself.
            Poll::Pending if tick(session, now) > now => return Step::Wait,
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
        transport.abort();
        Step::Over(Closed::Local)
    }
}

/// Ticks if the deadline has come; returns when to tick next.
fn tick(session: &mut dyn Session, now: Instant) -> Instant {
    if session.deadline() <= now {
        session.tick(now);
    }
    session.deadline()
}

/// How much of what a session has to say was written.
enum Written {
    /// All of it.
    All,
    /// The transport takes no more for now.
    Blocked,
    /// So much that other tasks should run first.
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

#[cfg(test)]
mod tests;
