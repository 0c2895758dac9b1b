//! Cancellation: each public future of `drive` is polled `k` times, dropped, and the world goes on,
//! for every `k` until the future completes.
//!
//! The transport is pending `n` times before it does anything, and then writes only a few bytes,
//! so that there is an await point everywhere. The servers are models that answer at once.

#![cfg(feature = "async")]

mod consumer;
mod nsqd;
mod nsqlookupd;
mod publisher;
mod registration;
mod running;
mod servers;
mod world;
