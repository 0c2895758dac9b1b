//! Clients that mean harm, beside one that behaves: it loses nothing, and waits for a bounded time.

use std::io::Result;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nanonsq_tests::oracle::Message;
use nanonsq_tests::random::Random;
use nanonsq_tests::{Nsqd, ServerOptions};

use crate::pair::{Setting, tests_with};
use crate::raw::{Raw, Said, sized};

tests_with!([Real, OurNode]:
    random_bytes,
    every_command_truncated_at_every_byte,
    bad_numbers,
    ids_of_others,
    a_million_subs,
    clients_that_never_read,
);

/// The longest that a well-behaved consumer waits for a message, on a busy machine.
const DELAY_LIMIT: Duration = Duration::from_secs(2);
/// How often it gets one.
const INTERVAL: Duration = Duration::from_millis(2);
/// How long a client may be silent before it is given up: twice its heartbeat interval, which is the
/// shortest that nsqd allows.
const SILENCE: Duration = Duration::from_secs(2);

/// A server and what there is to do harm to.
struct Target<'a> {
    address: SocketAddr,
    ours: bool,
    node: &'a Nsqd,
}

/// A well-behaved consumer gets every message once, within `delay` of its acknowledgement, while
/// `harm` is done; the server is alive after that, and has the memory that it had.
async fn beside(setting: &Setting, delay: Duration, harm: impl AsyncFnOnce(&Target<'_>)) {
    let options = ServerOptions::new().flag("--msg-timeout=2s");
    let node = setting.subject.start_node(&setting.peers, options).await;
    node.create_topic("good").await;
    node.create_channel("good", "c").await;
    let address = node.tcp_address();
    let ours = setting.subject.is_our_node();

    let start = Instant::now();
    let over = AtomicBool::new(false);
    let mut consumer = Raw::subscribe(address, "good", "c", 100).await.unwrap();
    let producer = async {
        let mut raw = Raw::identify(address, 30_000).await?;
        let mut sent = 0;
        // Until the harm is done and a moment longer.
        while !over.load(Relaxed) || sent < 500 {
            let now = start.elapsed().as_micros();
            raw.send(&sized("PUB good", format!("{sent} {now}").as_bytes())).await?;
            raw.expect("OK").await?;
            sent += 1;
            tokio::time::sleep(INTERVAL).await;
        }
        raw.send(&sized("PUB good", b"end")).await?;
        raw.expect("OK").await?;
        Result::Ok(sent)
    };
    let consumed = async {
        let mut arrived = Vec::new();
        let mut slowest = Duration::ZERO;
        let mut ended = false;
        loop {
            // Some may still be with a client that does not answer.
            let next = tokio::time::timeout(if ended { delay } else { LONG }, consumer.next());
            let message = match next.await {
                Ok(Ok(Said::Message(message))) => message,
                Err(_) if ended => break,
                other => panic!("{other:?}"),
            };
            consumer.send(&fin(&message)).await?;
            let body = String::from_utf8_lossy(&message.body);
            if body == "end" {
                ended = true;
                continue;
            }
            let (number, sent) = body.split_once(' ').unwrap();
            let sent = Duration::from_micros(sent.parse().unwrap());
            slowest = slowest.max(start.elapsed() - sent);
            arrived.push(number.parse::<usize>().unwrap());
        }
        Result::Ok((arrived, slowest))
    };
    let harm = async {
        // The well-behaved ones are at work.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let before = node.resident();
        harm(&Target { address, ours, node: &node }).await;
        over.store(true, Relaxed);
        (before, node.resident())
    };
    let (sent, consumed, (before, after)) = tokio::join!(producer, consumed, harm);
    let (mut arrived, slowest) = consumed.unwrap();
    arrived.sort_unstable();
    let expected: Vec<_> = (0..sent.unwrap()).collect();
    assert_eq!(arrived, expected, "each message once");
    println!("{} messages, slowest {slowest:?}, memory {before} to {after}", arrived.len());
    assert!(slowest < delay, "a message came after {slowest:?}");
    if ours {
        assert!(after <= before + (512 << 10), "memory grew from {before} to {after}");
    }
    // New clients are served as before.
    let mut late = Raw::subscribe(address, "good", "c", 1).await.unwrap();
    late.send(&sized("PUB good", b"late")).await.unwrap();
    late.expect("OK").await.unwrap();
}

/// Longer than anything takes.
const LONG: Duration = Duration::from_secs(60);

async fn random_bytes(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        let mut random = Random::new(1);
        for round in 0..1_000 {
            let mut raw = connect(target).await;
            // With the magic it gets further; with a command further still.
            let mut bytes = match round % 4 {
                0 => Vec::new(),
                1 => b"  V2".to_vec(),
                2 => b"  V2PUB evil#ephemeral\n".to_vec(),
                _ => b"  V2SUB evil#ephemeral e#ephemeral\nRDY 10\n".to_vec(),
            };
            let length = random.below(2_000);
            bytes.extend((0..length).map(|_| match random.below(8) {
                0 => b'\n',
                1 => b' ',
                _ => random.next() as u8,
            }));
            let _ = raw.send(&bytes).await;
            hang_up(raw, round).await;
        }
    })
    .await;
}

async fn every_command_truncated_at_every_byte(setting: Setting) {
    const SUBSCRIBED: &[u8] = b"SUB evil#ephemeral e#ephemeral\n";
    let commands: Vec<(&[u8], Vec<u8>)> = vec![
        (b"", sized("IDENTIFY", br#"{"client_id":"evil","heartbeat_interval":1000}"#)),
        (b"", sized("AUTH", b"secret")),
        (b"", SUBSCRIBED.to_vec()),
        (b"", sized("PUB evil#ephemeral", b"body")),
        (b"", crate::raw::mpub("evil#ephemeral", [b"one".to_vec(), b"two".to_vec()])),
        (b"", sized("DPUB evil#ephemeral 10", b"body")),
        (b"", b"NOP\n".to_vec()),
        (SUBSCRIBED, b"RDY 10\n".to_vec()),
        (SUBSCRIBED, b"FIN 0123456789abcdef\n".to_vec()),
        (SUBSCRIBED, b"REQ 0123456789abcdef 100\n".to_vec()),
        (SUBSCRIBED, b"TOUCH 0123456789abcdef\n".to_vec()),
        (SUBSCRIBED, b"CLS\n".to_vec()),
    ];
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        let mut round = 0;
        for (before, command) in &commands {
            for end in 0..command.len() {
                let mut raw = connect(target).await;
                let _ = raw.send(&[b"  V2", *before, &command[..end]].concat()).await;
                hang_up(raw, round).await;
                round += 1;
            }
        }
        // And some that stop there without hanging up, until they are given up.
        let mut silent = Vec::new();
        for (before, command) in &commands {
            let mut raw = connect(target).await;
            let heartbeat = sized("IDENTIFY", br#"{"heartbeat_interval":1000}"#);
            let cut = &command[..command.len() - 1];
            raw.send(&[b"  V2", &*heartbeat, before, cut].concat()).await.unwrap();
            silent.push(raw);
        }
        let since = Instant::now();
        for mut raw in silent {
            raw.silent().await;
        }
        let gone = since.elapsed();
        assert!(gone < SILENCE + DELAY_LIMIT, "given up after {gone:?}");
    })
    .await;
}

async fn bad_numbers(setting: Setting) {
    const BAD: [(&str, &str); 12] = [
        ("RDY -1\n", "E_INVALID"),
        ("RDY 99999999999999999999\n", "E_INVALID"),
        ("RDY x\n", "E_INVALID"),
        ("REQ 0123456789abcdef -1\n", "E_INVALID"),
        ("REQ 0123456789abcdef\n", "E_INVALID"),
        ("FIN 0123\n", "E_INVALID"),
        ("TOUCH\n", "E_INVALID"),
        ("PUB evil#ephemeral\n\u{0}\u{0}\u{0}\u{0}", "E_BAD_MESSAGE"),
        ("PUB evil#ephemeral\n\u{7f}\u{7f}\u{7f}\u{7f}", "E_BAD_MESSAGE"),
        ("MPUB evil#ephemeral\n\u{0}\u{0}\u{0}\u{8}\u{7f}\u{7f}\u{7f}\u{7f}", "E_BAD_BODY"),
        ("DPUB evil#ephemeral -1\n\u{0}\u{0}\u{0}\u{1}x", "E_INVALID"),
        ("SUB evil e\n", "E_INVALID"),
    ];
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        for round in 0..20 {
            for (bad, code) in BAD {
                let mut raw = Raw::subscribe(target.address, "good", "evil#ephemeral", 0).await;
                // Its predecessor's place may not be free yet.
                while raw.is_err() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    raw = Raw::subscribe(target.address, "good", "evil#ephemeral", 0).await;
                }
                let mut raw = raw.unwrap();
                raw.send(bad.as_bytes()).await.unwrap();
                if round == 0 {
                    let said = raw.rest().await;
                    let is = matches!(&said[..], [Said::Error(text)] if text.starts_with(code));
                    assert!(is, "{bad:?}: {said:?}");
                }
            }
        }
    })
    .await;
}

async fn ids_of_others(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        target.node.create_topic("held").await;
        target.node.create_channel("held", "c").await;
        let mut owner = Raw::subscribe(target.address, "held", "c", 1).await.unwrap();
        target.node.publish("held", b"x").await;
        let Said::Message(message) = owner.next().await.unwrap() else { panic!("no message") };
        let id = std::str::from_utf8(&message.id).unwrap();
        // In the same channel, and in another one.
        for channel in ["c", "d#ephemeral"] {
            let mut evil = Raw::subscribe(target.address, "held", channel, 0).await.unwrap();
            let known = std::str::from_utf8(&message.id).unwrap();
            for id in [known, "0000000000000000", "\u{1}\u{2}\u{3}56789abcdef\u{7f}x"] {
                for (command, code) in [
                    (format!("FIN {id}\n"), "E_FIN_FAILED"),
                    (format!("REQ {id} 0\n"), "E_REQ_FAILED"),
                    (format!("TOUCH {id}\n"), "E_TOUCH_FAILED"),
                ] {
                    for _ in 0..200 {
                        evil.send(command.as_bytes()).await.unwrap();
                        match evil.next().await.unwrap() {
                            Said::Error(text) if text.starts_with(code) => {}
                            other => panic!("{command:?} in {channel}: {other:?}"),
                        }
                    }
                }
            }
            evil.close().await;
        }
        let stats = target.node.channel_stats("held", "c").await;
        assert_eq!((&stats["in_flight_count"], &stats["requeue_count"]), (&1.into(), &0.into()));
        // It is still its owner's.
        owner.send(format!("FIN {id}\n").as_bytes()).await.unwrap();
        owner.close().await;
        assert_eq!(target.node.channel_stats("held", "c").await["in_flight_count"], 0);
    })
    .await;
}

async fn a_million_subs(setting: Setting) {
    // Of one connection: the first one counts, the second is an error, and the rest is not read.
    const AT_ONCE: usize = 100;
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        let connections = if target.ours { 10_000 } else { 1_000 };
        for round in 0..connections {
            let mut raw = connect(target).await;
            let mut subs = b"  V2".to_vec();
            for n in 0..AT_ONCE {
                // Each another one, as long as that is not for ever.
                let kind = if target.ours && round % 2 == 0 { "" } else { "#ephemeral" };
                subs.extend(format!("SUB evil{round}{kind} c{n}{kind}\n").bytes());
            }
            let _ = raw.send(&subs).await;
            hang_up(raw, round).await;
        }
    })
    .await;
}

async fn clients_that_never_read(setting: Setting) {
    // What it holds comes back when it is given up, or when the time of its messages is up.
    beside(&setting, 2 * SILENCE + DELAY_LIMIT, async |target: &Target<'_>| {
        let mut evil = Vec::new();
        // Some want messages, and neither read nor answer them.
        for _ in 0..4 {
            let mut raw = Raw::identify(target.address, 1_000).await.unwrap();
            raw.send(b"SUB good c\nRDY 20\n").await.unwrap();
            evil.push(raw);
        }
        // Others ask and ask, and never listen.
        let asking = async {
            let mut raw = Raw::identify(target.address, 1_000).await.unwrap();
            raw.send(b"SUB good evil#ephemeral\n").await.unwrap();
            let questions = b"FIN 0123456789abcdef\n".repeat(1_000);
            let since = Instant::now();
            while since.elapsed() < 2 * SILENCE && raw.send(&questions).await.is_ok() {}
        };
        asking.await;
        let since = Instant::now();
        for mut raw in evil {
            raw.silent().await;
        }
        let gone = since.elapsed();
        assert!(gone < SILENCE + DELAY_LIMIT, "given up after {gone:?}");
    })
    .await;
}

/// As soon as there is room for it.
async fn connect(target: &Target<'_>) -> Raw {
    Raw::connect(target.address).await.unwrap()
}

/// In one of the ways there are.
async fn hang_up(mut raw: Raw, round: usize) {
    match round % 3 {
        0 => raw.reset(),
        1 => {
            let _ = tokio::time::timeout(Duration::from_millis(10), raw.rest()).await;
        }
        _ => drop(raw),
    }
}

fn fin(message: &Message) -> Vec<u8> {
    [b"FIN ", &message.id[..], b"\n"].concat()
}
