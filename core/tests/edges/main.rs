//! Edge cases that other tests do not reach by themselves: tables exactly full, deadlines exactly
//! due, bytes half written, or frames at the wrong moment.

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
use sessions::{frame, message, written};

const fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}
