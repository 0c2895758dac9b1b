//! Hostile clients beside a well-behaved producer and consumer, which lose nothing and, at our
//! node, wait for a bounded time. For nsqd the time is only printed.

use std::io::Result;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use nanonsq_tests::oracle::Message;
use nanonsq_tests::{Nsqd, ServerOptions, http};

use crate::harm;
use crate::pair::{Setting, tests_with};
use crate::raw::{Raw, Received, mpub, sized};

tests_with!([Real, OurNode]:
    random_bytes,
    every_command_truncated_at_every_byte,
    bad_numbers,
    ids_of_others,
    a_million_subs,
    clients_that_never_read,
    bodies_that_never_come,
    messages_without_consumers,
    names_of_clients_that_left,
    consumers_that_keep_their_messages,
    bad_http,
);

/// The longest that our node makes a well-behaved consumer wait for a message, and a well-behaved
/// producer for an answer, on a busy machine.
const DELAY_LIMIT: Duration = Duration::from_secs(3);
/// Pause between two messages of the producer.
const INTERVAL: Duration = Duration::from_millis(2);
/// Time after which a server closes the connection of a silent client: twice the heartbeat
/// interval, which is the shortest that nsqd allows.
const SILENCE: Duration = Duration::from_secs(2);

/// Bytes of our node's store.
const STORE: usize = 1 << 20;

/// Time limit for an answer over HTTP while all slots are occupied.
const HTTP_LIMIT: Duration = Duration::from_secs(40);

/// The server under attack.
struct Target<'a> {
    address: SocketAddr,
    ours: bool,
    node: &'a Nsqd,
}

/// Asserts that while `harm` runs, a well-behaved producer is answered and a well-behaved consumer
/// receives every message once, and that the server runs after that. Our node answers within
/// [`DELAY_LIMIT`], delivers each message within `delay`, and uses no more memory than before.
async fn beside(setting: &Setting, delay: Duration, harm: impl AsyncFnOnce(&Target<'_>)) {
    let mut options = ServerOptions::new().flag("--msg-timeout=2s");
    if setting.subject.is_our_node() {
        options = options.flag(format!("--mem={STORE}"));
    }
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
        let (mut sent, mut slowest) = (0, Duration::ZERO);
        // Until `harm` is over, but at least 500 messages.
        while !over.load(Relaxed) || sent < 500 {
            let now = start.elapsed().as_micros();
            raw.send(&sized("PUB good", format!("{sent} {now}").as_bytes())).await?;
            raw.expect("OK").await?;
            slowest = slowest.max(start.elapsed() - Duration::from_micros(now as u64));
            sent += 1;
            tokio::time::sleep(INTERVAL).await;
        }
        raw.send(&sized("PUB good", format!("end {sent}").as_bytes())).await?;
        raw.expect("OK").await?;
        Result::Ok((sent, slowest))
    };
    let consumed = async {
        let mut arrived = Vec::new();
        let mut slowest = Duration::ZERO;
        let mut sent = usize::MAX;
        loop {
            // Hostile clients may still hold messages. Once all have arrived, none is repeated.
            let all = arrived.len() >= sent;
            let next = tokio::time::timeout(if all { delay } else { LONG }, consumer.next());
            let message = match next.await {
                Ok(Ok(Received::Message(message))) => message,
                Err(_) if all => break,
                other => panic!("{} of {sent} arrived, then {other:?}", arrived.len()),
            };
            consumer.send(&fin(&message)).await?;
            let body = String::from_utf8_lossy(&message.body);
            let (number, at) = body.split_once(' ').unwrap();
            if number == "end" {
                sent = at.parse().unwrap();
                continue;
            }
            let at = Duration::from_micros(at.parse().unwrap());
            slowest = slowest.max(start.elapsed() - at);
            arrived.push(number.parse::<usize>().unwrap());
        }
        Result::Ok((arrived, slowest))
    };
    let harm = async {
        // Producer and consumer run by then.
        tokio::time::sleep(Duration::from_millis(200)).await;
        crowd(&node).await;
        let before = node.resident();
        harm(&Target { address, ours, node: &node }).await;
        over.store(true, Relaxed);
        (before, node.resident())
    };
    let (sent, consumed, (before, after)) = tokio::join!(producer, consumed, harm);
    let (mut arrived, slowest) = consumed.unwrap();
    arrived.sort_unstable();
    let (sent, answered) = sent.unwrap();
    let expected: Vec<_> = (0..sent).collect();
    assert_eq!(arrived, expected, "each message once");
    println!(
        "{sent} messages, slowest {slowest:?}, its answer {answered:?}, memory {before} to {after}"
    );
    if ours {
        assert!(answered < DELAY_LIMIT, "the producer waited for {answered:?}");
        assert!(slowest < delay, "a message arrived after {slowest:?}");
        assert!(after <= before + (128 << 10), "memory grew from {before} to {after}");
    }
    // New clients are served as before.
    let mut late = Raw::subscribe(address, "good", "c", 1).await.unwrap();
    late.send(&sized("PUB good", b"late")).await.unwrap();
    late.expect("OK").await.unwrap();
}

/// Fills all slots and buffers, and passes more messages than fit the store, because memory of the
/// server is in RAM only once it was used.
async fn crowd(node: &Nsqd) {
    node.create_topic("crowd").await;
    let mut consumer = Raw::subscribe(node.tcp_address(), "crowd", "c", 2_500).await.unwrap();
    let mut producer = Raw::identify(node.tcp_address(), 30_000).await.unwrap();
    // An empty store begins at its start again: with one message in it, all of it gets used.
    let mut kept = false;
    for _ in 0..2 * STORE / 50_000 {
        producer.send(&mpub("crowd", (0..50).map(|_| vec![b'x'; 1_000]))).await.unwrap();
        producer.expect("OK").await.unwrap();
        let mut answers = Vec::new();
        for _ in 0..50 {
            let Received::Message(message) = consumer.next().await.unwrap() else { panic!() };
            if std::mem::replace(&mut kept, true) {
                answers.extend(fin(&message));
            }
        }
        consumer.send(&answers).await.unwrap();
    }
    consumer.close().await;
    node.post("/topic/delete?topic=crowd", b"").await;

    let identify = sized("IDENTIFY", br#"{"feature_negotiation":true}"#);
    let commands = [b"  V2", &*identify.repeat(40), &*b"NOP\n".repeat(2_000)].concat();
    let question = format!("GET /stats?format=json HTTP/1.1\r\nHost: {:x<800}\r\n\r\n", "");
    for (address, bytes, connections) in [
        (node.tcp_address(), &*commands, 252),
        (node.http_address(), question.repeat(10).as_bytes(), 66),
    ] {
        let mut crowd = harm::silent_after(address, &[bytes.to_vec()], connections).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        for raw in &mut crowd {
            raw.receive().await;
        }
    }
    // Let the server see the end of all connections.
    tokio::time::sleep(Duration::from_secs(1)).await;
}

/// Time limit for any message.
const LONG: Duration = Duration::from_secs(60);

async fn random_bytes(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        // With a magic and a command the random bytes get further.
        let openings: [&[u8]; 4] = [
            b"",
            b"  V2",
            b"  V2PUB evil#ephemeral\n",
            b"  V2SUB evil#ephemeral e#ephemeral\nRDY 10\n",
        ];
        harm::random_after(target.address, &openings, 1_000).await;
    })
    .await;
}

async fn every_command_truncated_at_every_byte(setting: Setting) {
    const SUBSCRIBED: &[u8] = b"  V2SUB evil#ephemeral e#ephemeral\n";
    let new = b"  V2";
    let commands: [(&[u8], Vec<u8>); 13] = [
        (b"", b"  V2".to_vec()),
        (new, sized("IDENTIFY", br#"{"client_id":"evil","heartbeat_interval":1000}"#)),
        (new, sized("AUTH", b"secret")),
        (new, b"SUB evil#ephemeral e#ephemeral\n".to_vec()),
        (new, sized("PUB evil#ephemeral", b"body")),
        (new, mpub("evil#ephemeral", [b"one".to_vec(), b"two".to_vec()])),
        (new, sized("DPUB evil#ephemeral 10", b"body")),
        (new, b"NOP\n".to_vec()),
        (SUBSCRIBED, b"RDY 10\n".to_vec()),
        (SUBSCRIBED, b"FIN 0123456789abcdef\n".to_vec()),
        (SUBSCRIBED, b"REQ 0123456789abcdef 100\n".to_vec()),
        (SUBSCRIBED, b"TOUCH 0123456789abcdef\n".to_vec()),
        (SUBSCRIBED, b"CLS\n".to_vec()),
    ];
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        harm::truncated(target.address, &commands).await;
        // Others stop there without a close, until the server closes.
        let hello = [b"  V2", &*sized("IDENTIFY", br#"{"heartbeat_interval":1000}"#)].concat();
        let cut =
            |(_, command): &(&[u8], Vec<u8>)| [&*hello, &command[..command.len() - 1]].concat();
        let openings: Vec<_> = commands[2..].iter().map(cut).collect();
        let silent = harm::silent_after(target.address, &openings, openings.len()).await;
        given_up(silent, target.ours).await;
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
            for (n, (bad, code)) in BAD.into_iter().enumerate() {
                // Each in its own channel: an ephemeral one is deleted with its last client, and a
                // SUB at that moment is refused.
                let channel = format!("evil{n}-{round}#ephemeral");
                let mut raw = Raw::subscribe(target.address, "good", &channel, 0).await.unwrap();
                raw.send(bad.as_bytes()).await.unwrap();
                if round == 0 {
                    let received = raw.rest().await;
                    let is =
                        matches!(&received[..], [Received::Error(text)] if text.starts_with(code));
                    assert!(is, "{bad:?}: {received:?}");
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
        let Received::Message(message) = owner.next().await.unwrap() else { panic!("no message") };
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
                            Received::Error(text) if text.starts_with(code) => {}
                            other => panic!("{command:?} in {channel}: {other:?}"),
                        }
                    }
                }
            }
            evil.close().await;
        }
        let stats = target.node.channel_stats("held", "c").await;
        assert_eq!((&stats["in_flight_count"], &stats["requeue_count"]), (&1.into(), &0.into()));
        // The message is still in flight at its owner.
        owner.send(format!("FIN {id}\n").as_bytes()).await.unwrap();
        owner.close().await;
        assert_eq!(target.node.channel_stats("held", "c").await["in_flight_count"], 0);
    })
    .await;
}

async fn a_million_subs(setting: Setting) {
    // SUBs of each connection: the first one counts, the second is an error, the rest is not read.
    const AT_ONCE: usize = 100;
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        let connections = if target.ours { 10_000 } else { 1_000 };
        for round in 0..connections {
            let mut subs = b"  V2".to_vec();
            for n in 0..AT_ONCE {
                // A new name each time; for nsqd only ephemeral ones, which it deletes.
                let kind = if target.ours && round % 2 == 0 { "" } else { "#ephemeral" };
                subs.extend(format!("SUB evil{round}{kind} c{n}{kind}\n").bytes());
            }
            harm::send(target.address, &subs, round).await;
        }
    })
    .await;
}

async fn clients_that_never_read(setting: Setting) {
    // A hostile client's messages are delivered again when the server closes its connection, or
    // when they time out.
    beside(&setting, 2 * SILENCE + DELAY_LIMIT, async |target: &Target<'_>| {
        let mut evil = Vec::new();
        // Some request messages, and neither read nor answer them.
        for _ in 0..4 {
            let mut raw = Raw::identify(target.address, 1_000).await.unwrap();
            raw.send(b"SUB good c\nRDY 20\n").await.unwrap();
            evil.push(raw);
        }
        // Another sends commands without end and never reads.
        let asking = async {
            let mut raw = Raw::identify(target.address, 1_000).await.unwrap();
            raw.send(b"SUB good evil#ephemeral\n").await.unwrap();
            let questions = b"FIN 0123456789abcdef\n".repeat(1_000);
            let since = Instant::now();
            while since.elapsed() < 2 * SILENCE && raw.send(&questions).await.is_ok() {}
        };
        asking.await;
        given_up(evil, target.ours).await;
    })
    .await;
}

/// The time for which [`harm::again`] runs.
const LASTING: Duration = Duration::from_secs(8);

fn hello() -> Vec<u8> {
    [b"  V2", &*sized("IDENTIFY", br#"{"heartbeat_interval":60000}"#)].concat()
}

async fn bodies_that_never_come(setting: Setting) {
    let announced = |line: String, len: u32| [line.as_bytes(), &len.to_be_bytes()].concat();
    let batch = |len: u32, count: u32| {
        let numbers = [count, 1].map(u32::to_be_bytes).concat();
        [announced("MPUB evil\n".into(), len), numbers].concat()
    };
    // Long bodies first, then shorter ones for the memory that these leave.
    let mut openings = vec![[hello(), batch(5_000_000, 1_000_000)].concat()];
    for len in [700_000, 300_000, 100_000, 30_000, 10_000, 3_000, 1_000, 300, 100, 1] {
        for command in ["PUB evil\n", "DPUB evil 1000\n", "PUB evil\n", "PUB evil\n"] {
            openings.push([hello(), announced(command.into(), len)].concat());
        }
        openings.push([hello(), batch(len + 8, len / 5 + 1)].concat());
        openings.push([hello(), batch(len + 8, 1)].concat());
    }
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        harm::again(target.address, &openings, b"", false, LASTING).await;
        harm::again(target.address, &openings, &[0; 100], false, LASTING).await;
    })
    .await;
}

async fn messages_without_consumers(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        // Short messages fill the memory that long ones leave.
        let junk = |topic: &str| {
            let line = format!("PUB {topic}");
            [sized(&line, &[b'j'; 1_000]).repeat(1_000), sized(&line, b"j").repeat(10_000)].concat()
        };
        let openings = [
            [hello(), junk("evil0")].concat(),
            [hello(), b"SUB evil1 c\n".to_vec(), junk("evil1")].concat(),
            [hello(), junk("evil2"), b"SUB evil2 c#ephemeral\n".to_vec()].concat(),
            [hello(), sized("DPUB evil3 3600000", &[b'j'; 1_000]).repeat(1_000)].concat(),
        ];
        harm::again(target.address, &openings, b"", false, LASTING).await;
    })
    .await;
}

async fn names_of_clients_that_left(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        for n in 0..300 {
            let sub = format!("  V2SUB evil{n} c{n}\n");
            harm::send(target.address, sub.as_bytes(), n).await;
        }
        // A new client still gets a topic and a channel.
        let mut new = Raw::identify(target.address, 30_000).await.unwrap();
        new.send(&sized("PUB new", b"1")).await.unwrap();
        new.expect("OK").await.unwrap();
        new.send(b"SUB new c\n").await.unwrap();
        new.expect("OK").await.unwrap();
    })
    .await;
}

async fn consumers_that_keep_their_messages(setting: Setting) {
    // Their messages are delivered again once they leave.
    beside(&setting, LASTING + DELAY_LIMIT, async |target: &Target<'_>| {
        let sub = |channel: &str| format!("SUB good {channel}\nRDY 2500\n").into_bytes();
        let mine = [hello(), sub("evil#ephemeral")].concat();
        let theirs = [hello(), sub("c")].concat();
        let openings = [mine.clone(), mine, theirs];
        harm::again(target.address, &openings, b"", false, LASTING).await;
        harm::again(target.address, &openings, b"", true, LASTING / 2).await;
    })
    .await;
}

/// Requests that a browser or a careless script may send, and worse.
async fn bad_http(setting: Setting) {
    beside(&setting, DELAY_LIMIT, async |target: &Target<'_>| {
        harm_http(target.node.http_address(), "/pub?topic=evil%23ephemeral").await;
    })
    .await;
}

/// Attacks an HTTP port, and asserts that it answers after that.
pub(crate) async fn harm_http(http: SocketAddr, post: &str) {
    let get = "GET /stats?format=json HTTP/1.1\r\nHost: x\r\n\r\n".to_owned();
    let post = |length: i64| {
        format!("POST {post} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\nbody")
    };
    let no_end = get.trim_end().to_owned();
    let openings = [String::new(), no_end.clone(), post(1_000_000), post(-1), post(1)];
    let openings: Vec<_> = openings.iter().map(|opening| opening.as_bytes()).collect();
    harm::random_after(http, &openings, 300).await;
    let commands: [(&[u8], Vec<u8>); 2] = [(b"", get.into_bytes()), (b"", post(4).into_bytes())];
    harm::truncated(http, &commands).await;
    // More connections than slots: they occupy all slots until the server closes them.
    let openings = [Vec::new(), no_end.into_bytes(), post(10).into_bytes()];
    let silent = harm::silent_after(http, &openings, 100).await;
    let since = Instant::now();
    while !http::get(http, "/ping").await.is_ok_and(|answer| answer.status == 200) {
        assert!(since.elapsed() < HTTP_LIMIT, "no answer for {:?}", since.elapsed());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(silent);
}

/// Waits until the server has closed the connections of clients that do not answer heartbeats, and
/// asserts that our node does so in time.
async fn given_up(clients: Vec<Raw>, ours: bool) {
    let since = Instant::now();
    for mut raw in clients {
        raw.silent().await;
    }
    let gone = since.elapsed();
    println!("given up after {gone:?}");
    assert!(!ours || gone < SILENCE + DELAY_LIMIT, "given up after {gone:?}");
}

fn fin(message: &Message) -> Vec<u8> {
    [b"FIN ", &message.id[..], b"\n"].concat()
}
