//! Edges that nothing else comes to by itself: what is exactly full, exactly due, half written, or
//! said at the wrong moment.

mod bounds;
mod consumer;
mod http;
mod nsqd;
mod nsqlookupd;
mod outbox;
mod publisher;
mod rdy;
mod registration;
mod wire;

#[path = "../support/sessions.rs"]
mod sessions;

use nanonsq_core::time::Instant;
use sessions::{frame, message, said};

const fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}
