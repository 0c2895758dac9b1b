//! Cancellation: each public future of `drive` is polled `k` times and dropped, for every `k` until
//! the future completes; everything else must still work.
//!
//! Each call of the transport is pending `n` times, then takes only a few bytes, so that there is
//! an await point everywhere. The servers are models that answer at once.

#![cfg(feature = "async")]

mod consumer;
mod nsqd;
mod nsqlookupd;
mod one_task;
mod publisher;
mod registration;
mod running;
mod servers;
mod streams;
mod world;
