//! Tools that the tests of all crates share: models of NSQ's servers, a generator and a waker.
//!
//! They use bytes and microseconds, and know nothing of nanonsq, so that the core's unit tests can
//! use them as well.

pub mod nsqd;
pub mod nsqlookupd;
pub mod prometheus;
pub mod random;
pub mod server;
mod waker;

pub use waker::{SlotWakes, Wakes};
