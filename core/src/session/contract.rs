//! The contract that every connection implements and that one driver runs.
//!
//! A [`Session`] is one side of one connection as a state machine without I/O: it is given bytes
//! and the time, and gives back bytes and its next deadline. It is durable: it outlives
//! its transports, decides when to dial and where, and forgets everything that belonged to a
//! connection in [`Session::open`], so that dropping a transport at any point is a legal path.
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
//! That loop, written once, is `drive` (feature `async`); it knows sessions as `dyn Session`, so
//! that all kinds of them share one copy of it. What a session has to tell the application is not
//! in the contract: each kind has a `poll_event` of its own. Between two calls that make progress
//! (bytes moved, the link changed, a deadline later than before) a session needs at most
//! [`DRAINS_MAX`] drains; the tests hold it to that.

use core::net::SocketAddr;

use super::{Closed, Fault};
use crate::address::Address;
use crate::time::Instant;

/// How often a driver may have to drain a session with nothing new from outside before it settles.
pub const DRAINS_MAX: usize = 64;

/// One side of one connection, without I/O. See the [module](self) for the order of calls.
pub trait Session {
    /// What the driver should do with the transport now. Level-triggered: ask after every call.
    fn link(&self) -> Link;

    /// Starts a dial if one is due: the address to dial. Call it while [`Link::Down`].
    ///
    /// After `Some`, the driver owes either [`open`](Self::open) or [`closed`](Self::closed), and
    /// gives up the dial when [`link`](Self::link) says [`Link::Close`] (its deadline passed, or
    /// the address is no longer wanted). Sessions of accepted connections never dial.
    fn dial(&mut self, now: Instant) -> Option<&Address> {
        let _ = now;
        None
    }

    /// The transport is up: resets all that belongs to a connection. A session that dials does so only
    /// while it is, and else says what to do with the transport by its [`link`](Self::link).
    fn open(&mut self, now: Instant);

    /// As [`open`](Self::open), for a connection that was accepted: from whom it comes.
    fn accepted(&mut self, now: Instant, from: SocketAddr) {
        let _ = from;
        self.open(now);
    }

    /// Takes everything that arrived, split anywhere.
    ///
    /// After a fault the session ignores further bytes, and its link is [`Link::Close`] until
    /// [`closed`](Self::closed).
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault>;

    /// Takes of what arrived as much as there is room for, and says how many bytes that was.
    ///
    /// A session that takes fewer *holds* the other side: the driver reads no more, and offers the
    /// rest again after each change, deadline or write. So a server lets a client wait whose
    /// message it has no room for. It has to have a deadline until when it does that: meanwhile
    /// nobody sees that the other side hung up. Sessions that never hold
    /// [`receive`](Self::receive) all.
    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        // A fault shows as `Link::Close`.
        let _ = self.receive(now, bytes);
        bytes.len()
    }

    /// What to write next; empty if there is nothing.
    ///
    /// Borrowed from where it lies. Nothing counts as written before [`sent`](Self::sent) says so:
    /// calling this again gives the same bytes, perhaps more of them.
    fn transmit(&mut self, now: Instant) -> Transmit<'_>;

    /// The transport took the first `n` bytes of what [`transmit`](Self::transmit) gave.
    fn sent(&mut self, now: Instant, n: usize);

    /// When to call [`tick`](Self::tick) next; [`Instant::NEVER`] is never.
    fn deadline(&self) -> Instant;

    /// Time passed. Calling it early, late or twice is harmless.
    fn tick(&mut self, now: Instant);

    /// From when on a server may close the connection to make room for another caller, because its
    /// client is idle, or slow, or has not said who it is. [`Instant::NEVER`], the default, is not
    /// at all.
    fn evictable(&self) -> Instant {
        Instant::NEVER
    }

    /// The transport is wrapped as [`Link::Upgrade`] asked.
    fn upgraded(&mut self, now: Instant) {
        let _ = now;
    }

    /// The transport is gone, or a dial failed.
    fn closed(&mut self, now: Instant, why: Closed);
}

/// What a driver should do with a session's transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Link {
    /// Have none. Ask [`Session::dial`].
    Down,
    /// Dial, or keep the one there is.
    Up,
    /// Wrap the transport in place, then call [`Session::upgraded`]. Write nothing meanwhile.
    Upgrade(Upgrade),
    /// Write what is left to write, within the deadline, then close it, and say [`Closed::Local`]. It
    /// stays so until [`Session::closed`], whatever is called before.
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

/// Bytes to write, in order: a head that the session made and a body where it lies.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// First.
    pub head: &'a [u8],
    /// Then this.
    pub body: &'a [u8],
}

impl Transmit<'_> {
    /// Whether there is nothing to write.
    pub const fn is_empty(&self) -> bool {
        self.head.is_empty() && self.body.is_empty()
    }

    /// How many bytes there are.
    pub const fn len(&self) -> usize {
        self.head.len().saturating_add(self.body.len())
    }
}
