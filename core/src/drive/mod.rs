//! The async driver (feature `async`): runs any [`Session`](crate::session::Session) on any
//! transport.
//!
//! [`publisher`], [`consumer`], [`registration`], [`nsqd`] and [`nsqlookupd`] each give a *handle*
//! for the application and a *runner*, one future that never ends and carries all bytes. Nothing
//! here spawns a task or chooses an executor. Dropping a runner's future drops its transports.
//!
//! # Porting guide
//!
//! This file is all that a new platform has to read. Implement:
//!
//! | trait | for | needed by |
//! |---|---|---|
//! | [`Transport`] | a connected byte stream | everything |
//! | [`Dialer`] | connecting | publisher, consumer, registration |
//! | [`Listener`] | accepting | nsqd, nsqlookupd |
//! | [`Sleep`] | the clock, one timer, perhaps one waker | everything |
//!
//! 1. *Poll, do not await.* `poll_read` and `poll_write` move bytes now or return `Pending` after
//!    they arranged for `cx`'s waker to be woken. The driver calls them while it holds the session's
//!    lock, so they must neither block nor call a handle. A transport whose own futures are not
//!    cancel-safe (TLS) keeps their state in itself.
//! 2. *A write needs no flush.* What `poll_write` took must leave by itself. Where a write is a
//!    system call, wrap the dialer or listener in [`Gathering`].
//! 3. *A partial write is normal*, and so is a partial read.
//! 4. *Dropping is always allowed.* The driver drops `dial` and `accept` futures and transports at
//!    any await. Dropping must free the socket.
//! 5. *Closing has two ways.* `poll_close` sends the end of the stream after all that was written;
//!    `abort` gives up at once. The driver bounds the first in time and falls back on the second.
//! 6. *Errors are few.* Map the platform's errors to [`DialError`], [`AcceptError`] and
//!    [`TransportError`]. The session decides when to try again; a listener that failed is asked
//!    again after a second.
//!
//! Examples: `adapters/std/src/lib.rs` (tokio), `adapters/embassy/src` (embassy-net). To try a port,
//! run `drive::publisher` on it against an nsqd, and `drive::nsqlookupd` for its listener.

#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
mod accept;
#[cfg(any(feature = "publisher", feature = "consumer"))]
mod client;
mod connection;
#[cfg(feature = "consumer")]
pub mod consumer;
mod gathering;
#[cfg(feature = "nsqd")]
pub mod nsqd;
#[cfg(feature = "nsqlookupd")]
pub mod nsqlookupd;
#[cfg(feature = "publisher")]
pub mod publisher;
#[cfg(feature = "registration")]
pub mod registration;
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
mod server;
mod shared;
mod waiters;

use core::fmt;
use core::future::Future;
use core::net::SocketAddr;
use core::task::{Context, Poll, Waker};

use crate::address::Address;
use crate::session::{DialError, Transmit, TransportError, Upgrade};
use crate::time::Instant;

#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub use accept::Port;
pub use gathering::{Gathered, Gathering};
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub use server::Ports;
pub use waiters::WAITERS_MAX;

/// A connected byte stream.
pub trait Transport {
    /// Reads at least one byte into `buf` and returns how many; 0 is the end of the stream.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>>;

    /// Takes at least one of the bytes, the head before the body, and returns how many it took.
    /// They leave without a flush. `Pending` took none.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>>;

    /// Ends the stream towards the peer after all that was written. Ready when the transport may be
    /// dropped without losing that. The transport can still be read from.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>>;

    /// Gives up the connection at once; bytes under way may be lost. The transport is dropped next.
    fn abort(&mut self) {}

    /// Sends what [`Gathered`] holds back until the next read, because the session reads nothing for
    /// a while.
    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// Wraps the stream in place, in TLS for example. The default cannot.
    fn poll_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        upgrade: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        let _ = (cx, upgrade);
        Poll::Ready(Err(TransportError::Unsupported))
    }
}

/// Connects transports.
pub trait Dialer {
    /// The transport; may borrow the dialer's buffers.
    type Transport<'d>: Transport
    where
        Self: 'd;

    /// Resolves the address, each time anew, and connects. The driver drops the future when it
    /// takes too long.
    fn dial(
        &mut self,
        address: &Address,
    ) -> impl Future<Output = Result<Self::Transport<'_>, DialError>>;
}

/// Accepts transports: one accept slot, which holds one connection at a time. A port has as many
/// listeners as connections, and one more.
pub trait Listener {
    /// Whether all listeners of a port take callers from one queue, so that the driver need poll
    /// only one of those that are idle. The default, `false`, polls each.
    const ONE_QUEUE: bool = false;

    /// The transport; may borrow the listener's buffers.
    type Transport<'l>: Transport
    where
        Self: 'l;

    /// Waits for the next caller and returns its transport and address. Dropping the future stops
    /// listening.
    fn accept(
        &mut self,
    ) -> impl Future<Output = Result<(Self::Transport<'_>, SocketAddr), AcceptError>>;
}

/// Why a listener accepted nobody. The same for every platform; an adapter maps its own errors to
/// these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AcceptError {
    /// The platform has no socket, port or memory left.
    NoSocket,
    /// The network is down.
    Unreachable,
    /// The platform gave another reason.
    Other,
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoSocket => "no socket left to accept with",
            Self::Unreachable => "the network is down",
            Self::Other => "accepting failed",
        })
    }
}

impl core::error::Error for AcceptError {}

/// The clock and one timer; where the platform can make wakers, one waker as well. A clone has a
/// timer and a waker of its own.
pub trait Sleep: Clone {
    /// The time since the platform started. Never [`Instant::NEVER`], which would always be due.
    fn now(&self) -> Instant;

    /// Ready at `at` or later; until then it wakes the task by `at`. A later call replaces an
    /// earlier one. The driver calls it in every poll that waits, often with the same time: a
    /// platform may forget the time whenever the task runs (embassy-time keeps one for each task),
    /// or return early when nothing changed.
    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()>;

    /// The waker of this clone: waking it wakes `task` and makes [`take_woken`](Self::take_woken)
    /// true once. A server then polls only those of its connections to which something happened.
    /// The default, `None`, polls all of them whenever the task runs: good for a dozen.
    fn own_waker(&mut self, task: &Waker) -> Option<&Waker> {
        let _ = task;
        None
    }

    /// Whether the waker was woken since this was last asked; always, if there is none.
    fn take_woken(&mut self) -> bool {
        true
    }
}
