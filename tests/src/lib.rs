//! What the interoperability tests of nanonsq stand on: real NSQ programs as peers, a network that
//! fails on purpose, and observers that share no code with nanonsq.
//!
//! | part | what it is |
//! |---|---|
//! | [`require_peers!`] | programs of `cargo xtask peers`; without them a test skips, visibly |
//! | [`Nsqd`], [`Nsqlookupd`] | servers, the real ones or others with their flags: stop, kill, start again on the same ports and data |
//! | [`Tool`] | any other program, with its output collected |
//! | [`Client`] | ordinary programs on go-nsq, pynsq and tokio-nsq, which say what they did |
//! | [`Browser`] | a headless Chromium |
//! | [`Proxy`] | a TCP proxy that delays, stalls, cuts and records |
//! | [`oracle`] | a minimal consumer: what really arrived in nsqd |
//! | [`tap`] | reads recorded client bytes back as commands |
//! | [`auth`] | what nsqd asks whether a secret is good |
//! | [`http`] | GET and POST |
//!
//! The harness panics where a test could not go on, with a message that says what was expected.
//! Every wait in it is bounded.

pub mod auth;
mod browser;
pub mod client;
pub mod http;
pub mod oracle;
pub mod peers;
pub mod ports;
pub mod proxy;
pub mod server;
pub mod tap;
mod tool;

pub use browser::Browser;
pub use client::{Client, ClientConsumer};
pub use nanonsq_models::random;
pub use oracle::{Consumed, Until, consume_all};
pub use peers::Peers;
pub use proxy::{Cut, Fault, Faults, Mode, Proxy};
pub use server::{Nsqd, Nsqlookupd, ServerOptions};
pub use tool::Tool;

use std::time::Duration;

/// Polls `condition` every 2 ms until it holds; panics with `what` after `limit`.
pub async fn eventually(what: &str, limit: Duration, mut condition: impl AsyncFnMut() -> bool) {
    let all = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(limit, all).await.is_err() {
        panic!("not within {limit:?}: {what}");
    }
}
