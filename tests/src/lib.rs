//! The base of nanonsq's interoperability tests: real NSQ programs as peers, a network that fails
//! on purpose, and observers that share no code with nanonsq.
//!
//! | part | contents |
//! |---|---|
//! | [`require_peers!`] | the programs of `cargo xtask peers`; without them a test skips, visibly |
//! | [`Nsqd`], [`Nsqlookupd`] | servers, real ones or others with the same flags: stop, kill, start again on the same ports and data |
//! | [`Tool`] | any other program, with its output collected |
//! | [`Client`] | ordinary programs on go-nsq, pynsq and tokio-nsq that report what they did |
//! | [`Browser`] | a headless Chromium |
//! | [`Proxy`] | a TCP proxy that delays, stalls, cuts and records |
//! | [`oracle`] | a minimal consumer: shows what really arrived in nsqd |
//! | [`tap`] | reads recorded client bytes back as commands |
//! | [`auth`] | the server that nsqd asks whether a secret is valid |
//! | [`http`] | GET and POST |
//!
//! The harness panics where a test cannot go on; the message names what was expected. Every wait is
//! bounded.
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
