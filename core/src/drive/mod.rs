//! The async driver (feature `async`): runs any [`Session`](crate::session::Session) on any
//! transport.
//!
//! [`publisher`], [`consumer`], [`registration`], [`nsqd`] and [`nsqlookupd`] each give a *handle*
//! for the application and a *runner*: one future that never ends and does all input and output.
//! The driver spawns no task and chooses no executor. Dropping a runner's future drops its
//! transports.
//!
//! # Porting guide
//!
//! A port to a new platform needs only this file. Implement:
//!
//! | trait | for | needed by |
//! |---|---|---|
//! | [`Transport`] | a connected byte stream | everything |
//! | [`Dialer`] | connecting | publisher, consumer, registration |
//! | [`Listener`], or [`Accept`] in an [`AcceptSlot`] | accepting | nsqd, nsqlookupd |
//! | [`Sleep`] | the clock, one timer, optionally wakers | everything |
//!
//! A byte stream of `embedded-io-async` is a transport already, as [`Stream`] or through a [`pump`],
//! and a TCP stack of `embedded-nal-async` a dialer, [`NalDialer`]; they are behind the features
//! of these names.
//!
//! 1. *Poll, do not await.* `poll_read` and `poll_write` move bytes now, or arrange for `cx`'s
//!    waker to be woken and return `Pending`. The driver calls them while it holds the session's
//!    lock, so they must neither block nor call a handle. A transport whose own futures are not
//!    cancel-safe (TLS) must store their state in itself.
//! 2. *A write needs no flush.* The transport must send the bytes that `poll_write` accepted
//!    without a further call. Where a write is a system call, wrap the dialer in
//!    [`Gathering`] and the listener in [`Gathered`].
//! 3. *A partial write is normal*, and so is a partial read.
//! 4. *Dropping is always allowed.* The driver drops `dial` futures and transports at any await, and
//!    calls `release` on a listener in any state. Both must free the socket.
//! 5. *There are two ways to close.* `poll_close` ends the stream after all written bytes; `abort`
//!    gives up at once. The driver calls `abort` if `poll_close` takes too long.
//! 6. *Errors are few.* Map the platform's errors to [`DialError`], [`AcceptError`] and
//!    [`TransportError`]. The session decides when to dial again; the driver retries a listener
//!    that failed after one second.
//!
//! Examples: `adapters/std/src/lib.rs` (tokio), `adapters/embassy/src` (embassy-net). To try a port,
//! run `drive::publisher` on it against an nsqd, and `drive::nsqlookupd` for its listener.

#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
mod accept;
mod accept_slot;
#[cfg(any(feature = "publisher", feature = "consumer"))]
mod client;
mod connection;
#[cfg(feature = "consumer")]
pub mod consumer;
mod gathering;
#[cfg(feature = "embedded-nal-async")]
mod nal;
#[cfg(feature = "nsqd")]
pub mod nsqd;
#[cfg(feature = "nsqlookupd")]
pub mod nsqlookupd;
#[cfg(feature = "publisher")]
pub mod publisher;
#[cfg(feature = "embedded-io-async")]
pub mod pump;
#[cfg(feature = "registration")]
pub mod registration;
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
mod server;
mod shared;
#[cfg(feature = "embedded-io-async")]
mod stream;
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
pub use accept_slot::{Accept, AcceptSlot};
pub use gathering::{Gathered, Gathering};
#[cfg(feature = "embedded-nal-async")]
pub use nal::{NalDialer, NoDns};
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub use server::Ports;
#[cfg(feature = "embedded-io-async")]
pub use stream::Stream;
pub use waiters::WAITERS_MAX;

/// A connected byte stream.
pub trait Transport {
    /// Reads at least one byte into `buf` and returns the number of bytes; 0 is the end of the
    /// stream.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>>;

    /// Accepts at least one byte, the head before the body, and returns the number accepted. They
    /// are sent without a flush. `Pending` accepted none.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>>;

    /// Ends the stream towards the peer after all written bytes. Ready when dropping the transport
    /// no longer loses any of them. The transport can still be read from.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>>;

    /// Gives up the connection at once; unsent bytes may be lost. The driver drops the transport
    /// next.
    fn abort(&mut self) {}

    /// Sends the bytes that [`Gathered`] would hold back until the next read. Called while the
    /// driver does not read, because the session takes no more bytes or the stream is being
    /// wrapped.
    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        let _ = cx;
    }

    /// Wraps the stream in place, in TLS for example. The default fails with
    /// [`TransportError::Unsupported`].
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
    /// The transport, which may borrow the dialer's buffers.
    type Transport<'d>: Transport
    where
        Self: 'd;

    /// Resolves the address, anew for each call, and connects. The driver drops the future if it
    /// takes too long.
    fn dial(
        &mut self,
        address: &Address,
    ) -> impl Future<Output = Result<Self::Transport<'_>, DialError>>;
}

/// One accept slot: it listens, then it is the transport to one caller at a time. A port has one
/// listener for each connection and a spare one.
pub trait Listener: Transport {
    /// True if all listeners of a port accept callers from one queue: the driver then polls only
    /// one of the idle listeners. With the default, `false`, it polls each.
    const ONE_QUEUE: bool = false;

    /// Listens. Ready with the address of a caller that is connected: the listener is the transport
    /// to this caller until [`release`](Self::release).
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketAddr, AcceptError>>;

    /// Drops the connection, like dropping a transport, or stops listening. The driver may call it
    /// on a listener that does neither.
    fn release(&mut self);
}

/// Why a listener accepted no caller. An adapter maps the errors of its platform to these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AcceptError {
    /// The platform has no socket, port or memory left.
    NoSocket,
    /// The network is down.
    Unreachable,
    /// Any other error of the platform.
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

/// The clock and one timer, and wakers where the platform can make them. Each clone has its own
/// timer and wakers.
pub trait Sleep: Clone {
    /// Returns the time since the platform started. Must not return [`Instant::NEVER`], at which
    /// every deadline has passed.
    fn now(&self) -> Instant;

    /// Ready at `at` or later; before that, arranges that the task wakes at `at`. A later call
    /// replaces an earlier one. The driver calls this in every poll that waits, often with the same
    /// time: a platform may drop the alarm whenever the task runs (embassy-time keeps one for each
    /// task), or return early if nothing changed.
    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()>;

    /// Returns the waker of a server's slot: waking it wakes `task` and makes
    /// [`take_woken`](Self::take_woken) return `slot` once. A server then polls only the connections
    /// that have an event. With the default, `None`, it polls all of them whenever the task runs,
    /// which is good enough for a dozen.
    fn slot_waker(&mut self, slot: usize, task: &Waker) -> Option<&Waker> {
        let _ = (slot, task);
        None
    }

    /// Returns a slot whose waker was woken since this function last returned the slot.
    fn take_woken(&mut self) -> Option<usize> {
        None
    }
}
