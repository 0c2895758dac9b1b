//! The contract that every session implements and that one driver runs.
//!
//! A [`Session`] is one side of one connection as a state machine without I/O: the driver passes
//! received bytes and the time, and reads the bytes to write and the next deadline. A session is
//! durable: it outlives its transports, decides when to dial and which address, and forgets in
//! [`Session::open`] everything that belonged to the last connection. So a driver may drop a
//! transport at any point.
//!
//! # The canonical loop
//!
//! *One mutation, then drain [`transmit`](Session::transmit) to empty, then read
//! [`link`](Session::link) and [`deadline`](Session::deadline).*
//!
//! ```text
//! loop {
//!     match session.link() {
//!         Link::Down => {
//!             if let Some(address) = session.dial(now) {
//!                 match dial(address) {               // bounded by session.deadline()
//!                     Ok(t) => { transport = t; session.open(now) }
//!                     Err(e) => session.closed(now, Closed::Dial(e)),
//!                 }
//!             } else { wait for session.deadline() or a change }
//!         }
//!         Link::Up => {
//!             wait for readable, writable (if transmit() is not empty), deadline() or a change:
//!             readable  => n = session.take(now, bytes), the rest again after the next change
//!             writable  => n = transport.write(session.transmit(now)); session.sent(now, n)
//!         }
//!         Link::Upgrade(kind) => wrap the transport; session.upgraded(now)
//!         Link::Close => drain transmit() within deadline(), close the transport,
//!                        session.closed(now, Closed::Local)
//!     }
//!     if session.deadline() <= now { session.tick(now) }
//! }
//! ```
//!
//! That loop, written once, is `drive` (feature `async`). It takes sessions as `dyn Session`, so
//! that all kinds of session share one copy of it. Events for the application are not part of the
//! contract: each kind of session has a `poll_event` of its own. Between two calls that make
//! progress (bytes moved, the link changed, the deadline became later) a session needs at most
//! [`DRAINS_MAX`] drains; the tests enforce that.

use core::net::SocketAddr;

use super::{Closed, Fault};
use crate::address::Address;
use crate::time::Instant;

/// The most drains that a session may need before it settles, while nothing new comes from outside.
pub const DRAINS_MAX: usize = 64;

/// One side of one connection, without I/O. See the [module](self) for the order of calls.
pub trait Session {
    /// Returns what the driver should do with the transport now. Read it again after every call.
    fn link(&self) -> Link;

    /// Starts a dial if one is due, and returns the address to dial. Called while [`Link::Down`].
    ///
    /// After `Some`, the driver must call [`open`](Self::open) or [`closed`](Self::closed). It
    /// gives up the dial when [`link`](Self::link) returns [`Link::Close`] (the dial's deadline
    /// passed, or the connection is no longer wanted). Sessions of accepted connections never dial.
    fn dial(&mut self, now: Instant) -> Option<&Address> {
        let _ = now;
        None
    }

    /// Notes that the transport is up, and resets all that belonged to the last connection. A
    /// session that dials ignores the call unless a connection is wanted; its
    /// [`link`](Self::link) is then what to do with the transport.
    fn open(&mut self, now: Instant);

    /// As [`open`](Self::open), for a connection that was accepted from the address `from`.
    fn accepted(&mut self, now: Instant, from: SocketAddr) {
        let _ = from;
        self.open(now);
    }

    /// Consumes all bytes that arrived, split anywhere.
    ///
    /// After a fault the session ignores further bytes, and its link is [`Link::Close`] until
    /// [`closed`](Self::closed).
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault>;

    /// Consumes as much of `bytes` as fits and returns how many bytes were consumed.
    ///
    /// A session that consumes fewer *holds* the peer: the driver reads no more, and offers the
    /// rest again after each change, deadline or write. So a server makes a client wait while it
    /// has no room for the client's message. The session must set a deadline that ends the hold:
    /// until then nothing notices that the peer hung up. Sessions that never hold
    /// [`receive`](Self::receive) everything.
    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        // A fault shows as `Link::Close`.
        let _ = self.receive(now, bytes);
        bytes.len()
    }

    /// Returns the bytes to write next; empty if there are none.
    ///
    /// The bytes are borrowed from where they lie. They count as written only after
    /// [`sent`](Self::sent): until then, this returns the same bytes again, perhaps more of them.
    fn transmit(&mut self, now: Instant) -> Transmit<'_>;

    /// Notes that the transport took the first `n` bytes of the last [`transmit`](Self::transmit).
    fn sent(&mut self, now: Instant, n: usize);

    /// Returns when to call [`tick`](Self::tick) next; [`Instant::NEVER`] for never.
    fn deadline(&self) -> Instant;

    /// Handles a deadline that has passed. Calling it early, late or twice is harmless.
    fn tick(&mut self, now: Instant);

    /// Returns from when on a server may close the connection to make room for another caller:
    /// because the client is idle, or slow, or has sent no command yet. [`Instant::NEVER`], the
    /// default, protects the connection.
    fn evictable(&self) -> Instant {
        Instant::NEVER
    }

    /// Notes that the transport is wrapped as [`Link::Upgrade`] asked.
    fn upgraded(&mut self, now: Instant) {
        let _ = now;
    }

    /// Notes that the transport is gone, or that a dial failed.
    fn closed(&mut self, now: Instant, why: Closed);
}

/// What a driver should do with a session's transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Link {
    /// Hold no transport. Call [`Session::dial`].
    Down,
    /// Dial, or keep the transport that is up.
    Up,
    /// Wrap the transport in place, then call [`Session::upgraded`]. Write nothing until then.
    Upgrade(Upgrade),
    /// Write the remaining bytes, within the deadline, then close the transport and call
    /// [`Session::closed`] with [`Closed::Local`]. Whatever else is called, the link stays `Close`
    /// until then.
    Close,
}

/// A way to wrap a transport that is already up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Upgrade {
    /// A TLS handshake as client (`tls_v1` in IDENTIFY).
    Tls,
}

/// Bytes to write, in order: a head that the session made, then a body, borrowed from storage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Written first.
    pub head: &'a [u8],
    /// Written after the head.
    pub body: &'a [u8],
}

impl Transmit<'_> {
    /// Returns whether there is nothing to write.
    pub const fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body.is_empty()
    }

    /// Returns the number of bytes in head and body.
    pub const fn len(&self) -> usize {
        self.head.len().saturating_add(self.body.len())
    }
}
