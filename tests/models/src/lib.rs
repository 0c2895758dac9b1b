//! What the tests of all crates share: models of NSQ's servers, and what they are played on.
//!
//! They speak bytes and times, in microseconds, and know nothing of nanonsq, so that the core's
//! unit tests can use them as well.

pub mod nsqd;
pub mod nsqlookupd;
pub mod random;
pub mod server;
mod waker;

pub use waker::Wakes;
