//! The core's example without `async`, with a real nsqd.

use nanonsq_core::publisher::Outcome;
use nanonsq_tests::{Nsqd, ServerOptions, require_peers};

#[path = "../../core/examples/blocking.rs"]
#[allow(dead_code)]
mod blocking;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_loop_publishes() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new()).await;
    let address = nsqd.tcp_address().to_string().parse().unwrap();
    let publish = move || blocking::publish(address, "readings", b"21.5").unwrap();
    assert_eq!(tokio::task::spawn_blocking(publish).await.unwrap(), Outcome::Acknowledged);
    let stats = nsqd.stats("readings").await;
    assert_eq!(stats["message_count"], 1, "{stats}");
}
