//! Hostile clients of a directory, beside a well-behaved client whose lookups are answered in
//! bounded time.
//!
//! There is no such test for nsqlookupd, which four bytes crash.

use std::cell::Cell;
use std::time::{Duration, Instant};

use nanonsq_tests::{ServerOptions, http};

use crate::harm;
use crate::hostile::harm_http;
use crate::pair::{Pair, SOON, Setting, tests_with};
use crate::raw::{Raw, sized};

tests_with!([OurLookupd]: hostile_nodes, hostile_askers);

/// Time limit for an answer on a busy machine.
const DELAY_LIMIT: Duration = Duration::from_secs(3);
/// Time limit while silent connections occupy all HTTP slots, until the server closes the first.
const FULL_LIMIT: Duration = Duration::from_secs(40);
const IDENTIFY: &[u8] = br#"{"broadcast_address":"evil","tcp_port":1,"http_port":2,"version":"1"}"#;

async fn hostile_nodes(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |pair: &Pair| {
        let tcp = pair.lookupd.tcp_address();
        let known = [b"  V1", &*sized("IDENTIFY", IDENTIFY)].concat();
        let lengths = [b"  V1IDENTIFY\n\xff\xff\xff\xff", b"  V1IDENTIFY\n\x7f\xff\xff\xff"];
        let registers = [&*known, b"REGISTER evil e\nREGISTER "].concat();
        let openings: [&[u8]; 6] =
            [b"", b"  V1", lengths[0], lengths[1], b"  V1REGISTER ", &registers];
        harm::random_after(tcp, &openings, 1_000).await;
        let commands: [(&[u8], Vec<u8>); 5] = [
            (b"", b"  V1".to_vec()),
            (b"  V1", sized("IDENTIFY", IDENTIFY)),
            (&known, b"REGISTER evil e\n".to_vec()),
            (&known, b"UNREGISTER evil e\n".to_vec()),
            (&known, b"PING\n".to_vec()),
        ];
        harm::truncated(tcp, &commands).await;
        // More topics than the tables hold, from a client that does not read the responses.
        let mut raw = Raw::connect(tcp).await.unwrap();
        raw.send(&known).await.unwrap();
        for n in 0..20_000 {
            if raw.send(format!("REGISTER evil{n} e\n").as_bytes()).await.is_err() {
                break;
            }
        }
        drop(raw);
        // More nodes than slots.
        drop(harm::silent_after(tcp, &[known, b"  V1".to_vec()], 300).await);
    })
    .await;
}

async fn hostile_askers(setting: Setting) {
    beside(&setting, FULL_LIMIT, async |pair: &Pair| {
        harm_http(pair.lookupd.http_address(), "/topic/create?topic=evil").await;
    })
    .await;
}

/// Asserts that lookups are answered within `delay` while `harm` runs.
async fn beside(setting: &Setting, delay: Duration, harm: impl AsyncFnOnce(&Pair)) {
    let mut pair = setting.start(ServerOptions::new()).await;
    pair.create("good", &["c"]).await;
    let node = pair.node.tcp_address().to_string();
    let over = Cell::new(false);
    let before = pair.lookupd.resident();
    let asking = async {
        let (mut asked, mut slowest) = (0, Duration::ZERO);
        while !over.get() {
            let since = Instant::now();
            loop {
                let answer = http::get(pair.lookupd.http_address(), "/lookup?topic=good").await;
                if answer.is_ok_and(|answer| answer.status == 200) {
                    break;
                }
                assert!(since.elapsed() < delay, "no answer for {:?}", since.elapsed());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            slowest = slowest.max(since.elapsed());
            asked += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (asked, slowest)
    };
    let harm = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        harm(&pair).await;
        over.set(true);
    };
    let ((asked, slowest), ()) = tokio::join!(asking, harm);
    println!("{asked} answers, slowest {slowest:?}");
    assert!(slowest < delay, "an answer took {slowest:?}");
    // The registered node still is, and its new channel is listed.
    assert_eq!(pair.lookupd.lookup("good").await, [node]);
    pair.node.create_channel("good", "later").await;
    nanonsq_tests::eventually("the new channel is listed", SOON, async || {
        pair.lookupd.channels("good").await == ["c", "later"]
    })
    .await;
    let after = pair.lookupd.resident();
    println!("memory {before} to {after}");
    // The tables and the buffers of all 256 nodes, which are used page by page.
    assert!(after <= before + (2 << 20), "memory grew from {before} to {after}");
    assert!(pair.lookupd.is_running());
}
