//! Servers that accept no messages: errors and end of `nanonsq pub` and `nanonsq sub`.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nanonsq_tests::{Nsqd, Peers, ServerOptions, auth, eventually, require_peers};
use rustix::process::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use crate::run::{Run, SOON};
use crate::{arrived, publish, start_nsqd};

/// Time limit for the program to end if no server can be used.
const HOPELESS: Duration = Duration::from_secs(5);

/// Starts a real nsqd with `--tls-required`; returns the directory of its certificate as well.
async fn start_with_tls(peers: &Peers) -> (Nsqd, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"])
        .args(["-keyout", &path("key"), "-out", &path("cert"), "-subj", "/CN=localhost"])
        .stderr(Stdio::null())
        .status()
        .await;
    assert!(made.expect("openssl").success());
    let options = ServerOptions::new()
        .flag(format!("--tls-cert={}", path("cert")))
        .flag(format!("--tls-key={}", path("key")))
        // Without it each such nsqd takes the same port for HTTPS.
        .flag("--https-address=127.0.0.1:0")
        // Except over HTTP, which the test uses.
        .flag("--tls-required=tcp-https");
    (Nsqd::start(peers, options).await, dir)
}

#[tokio::test]
async fn an_nsqd_that_requires_tls() {
    let peers = require_peers!();
    let (nsqd, _dir) = start_with_tls(&peers).await;
    let start = Instant::now();
    let ended = publish(nsqd.tcp_address(), &[], "a\nb\n").await;
    assert!(start.elapsed() < HOPELESS, "{:?}", start.elapsed());
    ended.expect(1, &["2 accepted, 0 acknowledged, 0 rejected"]);
    let text = format!("error: nsqd {}: requires TLS, which nanonsq does not", nsqd.tcp_address());
    assert_eq!(ended.lines("error").len(), 1, "{}", ended.stderr);
    assert!(ended.lines("error")[0].starts_with(&text), "{}", ended.stderr);
    assert!(!ended.stderr.contains("trying again"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_refused_secret_is_an_error() {
    let peers = require_peers!();
    let nobody = auth::start("t", ".*", &["publish"]).await;
    let nsqd =
        Nsqd::start(&peers, ServerOptions::new().flag(format!("--auth-http-address={nobody}")))
            .await;
    for (secret, text) in [
        (&[][..], "requires AUTH: give --auth-secret"),
        (&["--auth-secret=wrong"], "refused: E_AUTH_FAILED AUTH failed: check the secret"),
    ] {
        let start = Instant::now();
        let ended = publish(nsqd.tcp_address(), secret, "a\n").await;
        assert!(start.elapsed() < HOPELESS, "{:?}", start.elapsed());
        // Without a secret the program ends before it publishes, perhaps before it reads a line.
        ended.expect(1, &[text]);
        assert!(!ended.stderr.contains("1 acknowledged"), "{}", ended.stderr);
        assert!(!ended.stderr.contains("trying again"), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn one_of_several_nsqds_that_refuses_is_left_out() {
    let peers = require_peers!();
    let (tls, _dir) = start_with_tls(&peers).await;
    let good = start_nsqd(&peers).await;
    let other = good.tcp_address().to_string();
    let start = Instant::now();
    let ended = publish(tls.tcp_address(), &["--nsqd-tcp-address", &other], "a\nb\n").await;
    assert!(start.elapsed() < HOPELESS, "{:?}", start.elapsed());
    ended.expect(0, &["2 accepted, 2 acknowledged, 0 rejected, 0 expired, 0 possible duplicates"]);
    let warnings = ended.lines("warn");
    assert_eq!(warnings.len(), 1, "{}", ended.stderr);
    assert!(warnings[0].contains("requires TLS") && warnings[0].contains("left out"));
    assert_eq!(arrived(&good, 2).await, ["a", "b"]);
    // If the other one does not listen, the time to connect still has an end.
    drop(good);
    let more = ["--nsqd-tcp-address", &other, "--connect-timeout=2"];
    let start = Instant::now();
    let ended = publish(tls.tcp_address(), &more, "a\n").await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    ended.expect(1, &["no connection to nsqd", "requires TLS"]);
}

/// The behaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Manner {
    /// Reads and sends nothing.
    Hangs,
    /// Neither reads nor sends.
    Stopped,
    /// Closes at once.
    HangsUp,
    /// Answers IDENTIFY and closes.
    HangsUpLater,
    /// Answers IDENTIFY, then refuses each command with this error.
    Refuses(&'static str),
    /// Answers IDENTIFY, then sends one byte of OK a second.
    Trickles,
    /// Answers IDENTIFY, then heartbeats only.
    Beats,
}

fn frame(kind: u8, text: &str) -> Vec<u8> {
    let size = u32::try_from(text.len() + 4).unwrap().to_be_bytes();
    [&size[..], &[0, 0, 0, kind], text.as_bytes()].concat()
}

async fn behave(mut stream: TcpStream, manner: Manner) -> std::io::Result<()> {
    let mut bytes = vec![0; 1 << 16];
    match manner {
        Manner::HangsUp => return Ok(()),
        Manner::Stopped => std::future::pending().await,
        _ => stream.read(&mut bytes).await?,
    };
    if manner != Manner::Hangs {
        stream.write_all(&frame(0, "OK")).await?;
    }
    if manner == Manner::HangsUpLater {
        return Ok(());
    }
    loop {
        if stream.read(&mut bytes).await? == 0 {
            return Ok(());
        }
        match manner {
            Manner::Refuses(error) => return stream.write_all(&frame(1, error)).await,
            Manner::Trickles => {
                for byte in frame(0, "OK") {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    stream.write_all(&[byte]).await?;
                }
            }
            Manner::Beats => stream.write_all(&frame(0, "_heartbeat_")).await?,
            _ => {}
        }
    }
}

/// Starts such a server; returns its address and the count of its connections.
async fn server(manner: Manner) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicU32>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            tokio::spawn(behave(stream, manner));
        }
    });
    (address, count)
}

const MANNERS: [Manner; 9] = [
    Manner::Hangs,
    Manner::Stopped,
    Manner::HangsUp,
    Manner::HangsUpLater,
    Manner::Refuses("E_PUB_FAILED PUB failed no room"),
    Manner::Refuses("E_MPUB_FAILED MPUB failed disk"),
    Manner::Refuses("E_NEW"),
    Manner::Trickles,
    Manner::Beats,
];

/// The time counts from the end of the input, or from a signal while the input is open.
#[tokio::test(flavor = "multi_thread")]
async fn the_drain_timeout_holds_whatever_the_server_does() {
    let mut running = Vec::new();
    for manner in MANNERS {
        for open in [false, true] {
            running.push(tokio::spawn(async move {
                let (address, count) = server(manner).await;
                let mut run = Run::publish(address, &["--drain-timeout=3", "--connect-timeout=60"]);
                let lines: String = (0..2000).map(|line| format!("{line}\n")).collect();
                run.write(lines).await;
                let start = Instant::now();
                let ended = if open {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    run.signal(Signal::TERM);
                    run.end().await
                } else {
                    run.finish().await
                };
                let took = start.elapsed();
                assert!(took < Duration::from_secs(3 + 2 + 4), "{manner:?} {open}: {took:?}");
                let what = "2000 accepted, 0 acknowledged, 0 rejected";
                ended.expect(1, &["--drain-timeout 3 s", what]);
                let again = ended.stderr.matches("trying again").count();
                assert!(again <= 2, "{manner:?} {open}: {}", ended.stderr);
                // About 12 dials with ever smaller batches follow each other at once.
                let dials = count.load(std::sync::atomic::Ordering::Relaxed);
                assert!(dials <= 20, "{manner:?} {open}: {dials} dials");
            }));
        }
    }
    for run in running {
        run.await.unwrap();
    }
}

/// The input has ended, but its rest does not fit the outbox, so it is never read to its end.
#[tokio::test]
async fn the_drain_timeout_holds_for_an_input_that_is_longer_than_the_outbox() {
    let (address, _) = server(Manner::Stopped).await;
    let line = "x".repeat(1000) + "\n";
    let path = crate::file("long.txt", line.repeat(9000).as_bytes());
    let small = ["--max-msg-size=2000", "--outbox-size=20000", "--connect-timeout=60"];
    let more = [&small[..], &["--drain-timeout=2"]].concat();
    let start = Instant::now();
    let run = Run::publish(address, &[&more[..], &["--file", path.to_str().unwrap()]].concat());
    let ended = run.end().await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    ended
        .expect(1, &["acknowledged nothing within --drain-timeout 2 s", "was not read to its end"]);
    // A pipe whose writer has closed it.
    let start = Instant::now();
    let mut run = Run::publish(address, &more);
    run.write(line.repeat(30)).await;
    let ended = run.finish().await;
    assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
    ended.expect(1, &["acknowledged nothing within --drain-timeout 2 s"]);
    // While the writer may write more, the time does not count.
    let mut run = Run::publish(address, &more);
    run.write(line.repeat(30)).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!run.stderr().contains("--drain-timeout"), "{}", run.stderr());
    run.signal(Signal::INT);
    run.end().await.expect(1, &["--drain-timeout 2 s"]);
}

/// A load balancer without a backend, or a server that closes after IDENTIFY, as nsqd and as
/// nsqlookupd.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_accepts_and_closes_is_dialed_rarely() {
    let mut counts = Vec::new();
    let mut runs = Vec::new();
    for manner in [Manner::HangsUp, Manner::HangsUpLater] {
        let (nsqd, as_nsqd) = server(manner).await;
        let (lookupd, as_lookupd) = server(manner).await;
        let lookupd = lookupd.to_string();
        let more = ["--lookupd-tcp-address", &lookupd, "--connect-timeout=60"];
        let mut run = Run::publish(nsqd, &more);
        run.write("a\n").await;
        runs.push(run);
        counts.extend([(manner, "nsqd", as_nsqd), (manner, "nsqlookupd", as_lookupd)]);
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    for (manner, what, count) in counts {
        let dials = count.load(std::sync::atomic::Ordering::Relaxed);
        assert!((3..=7).contains(&dials), "{manner:?} as {what}: {dials} dials in 20 s");
    }
    for run in &runs {
        let again = run.stderr().matches("trying again").count();
        assert!(again <= 2, "{}", run.stderr());
    }
}

/// A server that rejects batches above a size with an error that does not name the reason.
#[tokio::test]
async fn batches_that_are_too_long_for_a_server_become_shorter() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stored = std::sync::Arc::new(std::sync::Mutex::new(Vec::<Vec<u8>>::new()));
    let store = stored.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let store = store.clone();
            tokio::spawn(async move { take_short_ones(stream, &store).await });
        }
    });
    let lines: Vec<String> = (0..5000).map(|line| line.to_string()).collect();
    let start = Instant::now();
    let ended = publish(address, &["--drain-timeout=20"], lines.join("\n")).await;
    ended.expect(0, &["5000 accepted, 5000 acknowledged, 0 rejected, 0 expired, 0 possible"]);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
    let stored = stored.lock().unwrap();
    assert!(stored.iter().map(Vec::as_slice).eq(lines.iter().map(String::as_bytes)));
}

/// Serves a connection; accepts batches of at most 100 messages.
async fn take_short_ones(
    stream: TcpStream,
    store: &std::sync::Mutex<Vec<Vec<u8>>>,
) -> std::io::Result<()> {
    let mut stream = tokio::io::BufStream::new(stream);
    let mut magic = [0; 4];
    stream.read_exact(&mut magic).await?;
    loop {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            line.push(stream.read_u8().await?);
        }
        if line.starts_with(b"NOP") {
            continue;
        }
        let mut bodies = Vec::new();
        let len = stream.read_u32().await?;
        let count = if line.starts_with(b"MPUB") { stream.read_u32().await? } else { 1 };
        for at in 0..count {
            let one = at == 0 && !line.starts_with(b"MPUB");
            let len = if one { len } else { stream.read_u32().await? };
            let mut body = vec![0; len as usize];
            stream.read_exact(&mut body).await?;
            bodies.push(body);
        }
        if bodies.len() > 100 {
            stream.write_all(&frame(1, "E_SLOW please")).await?;
            return stream.flush().await;
        }
        if !line.starts_with(b"IDENTIFY") {
            store.lock().unwrap().extend(bodies);
        }
        stream.write_all(&frame(0, "OK")).await?;
        stream.flush().await?;
    }
}

/// An nsqd that refuses for good is left out, not given up: its fault may be repaired.
#[tokio::test]
async fn while_another_nsqd_accepts_messages_the_program_continues() {
    let peers = require_peers!();
    let good = start_nsqd(&peers).await;
    let (refuses, _) = server(Manner::Refuses("E_AUTH_FIRST AUTH required before PUB")).await;
    let other = good.tcp_address().to_string();
    let mut run = Run::publish(refuses, &["--nsqd-tcp-address", &other]);
    run.write("a\n").await;
    eventually("it arrives", SOON, async || good.message_count("t").await == 1).await;
    run.write("b\n").await;
    run.finish().await.expect(0, &["2 acknowledged, 0 rejected", "E_AUTH_FIRST", "left out"]);
}

#[tokio::test]
async fn subscribing_at_an_nsqd_that_requires_tls() {
    let peers = require_peers!();
    let (tls, _dir) = start_with_tls(&peers).await;
    let start = Instant::now();
    let ended = Run::subscribe(tls.tcp_address(), &[]).end().await;
    assert!(start.elapsed() < HOPELESS, "{:?}", start.elapsed());
    let text = format!("error: nsqd {}: requires TLS", tls.tcp_address());
    ended.expect(1, &[&text]);
    assert!(!ended.stderr.contains("trying again"), "{}", ended.stderr);
    // With a second nsqd, the first one is left out.
    let good = start_nsqd(&peers).await;
    good.post("/pub?topic=t", b"a").await;
    let other = good.tcp_address().to_string();
    let more = ["--nsqd-tcp-address", &other];
    let run = Run::subscribe(tls.tcp_address(), &more);
    run.until_it_prints(1).await;
    run.until_it_logs("left out").await;
    run.signal(Signal::INT);
    let ended = run.end().await;
    ended.expect(0, &["1 received, 1 finished"]);
    assert_eq!(ended.printed, ["a"]);
    let warnings = ended.lines("warn");
    assert_eq!(warnings.len(), 1, "{}", ended.stderr);
    assert!(warnings[0].contains("requires TLS") && warnings[0].contains("left out"));
}

/// Starts an nsqlookupd that answers every request with these producers.
async fn listing(producers: &[String]) -> String {
    let body = format!("{{\"channels\":[\"c\"],\"producers\":[{}]}}", producers.join(","));
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address.to_string()
}

fn producer(host: &str, port: impl std::fmt::Display) -> String {
    format!("{{\"broadcast_address\":\"{host}\",\"tcp_port\":{port}}}")
}

fn at(address: SocketAddr) -> String {
    producer(&address.ip().to_string(), address.port())
}

/// Starts `nanonsq sub` with an nsqlookupd.
fn find(lookupd: &str, more: &[&str]) -> Run {
    let args = ["sub", "--topic", "t", "--channel", "c", "--lookupd-http-address", lookupd];
    Run::start(&[&args[..], more].concat())
}

#[tokio::test]
async fn an_unusable_producer_of_an_nsqlookupd_is_named_once() {
    let peers = require_peers!();
    let good = start_nsqd(&peers).await;
    good.post("/pub?topic=t", b"a").await;
    let bad = [
        (producer("127.0.0.1", 0), "tcp_port is not a number from 1 to 65535"),
        (producer("127.0.0.2", "\"4150\""), "tcp_port is not a number from 1 to 65535"),
        (producer("[::1]", 4150), "IPv6 addresses have no brackets"),
        (producer(&"h".repeat(97), 4150), "broadcast_address is too long"),
    ];
    for (bad, says) in bad {
        let lookupd = listing(&[bad, at(good.tcp_address())]).await;
        let run = find(&lookupd, &["--lookupd-poll-interval=200"]);
        let lists =
            format!("nsqlookupd {lookupd} lists 2 nsqd for t, 1 of them with a bad address");
        run.until_it_logs(&lists).await;
        run.until_it_logs("connected to nsqd").await;
        // Time for five lookups.
        tokio::time::sleep(Duration::from_secs(1)).await;
        run.signal(Signal::INT);
        let ended = run.end().await;
        let named = ended.stderr.matches(says).count();
        assert_eq!((ended.code, named), (Some(0), 1), "{says}: {}", ended.stderr);
        assert_eq!(ended.lines("warn").len(), 1, "{says}: {}", ended.stderr);
    }
}

#[tokio::test]
async fn a_working_nsqd_is_found_among_dead_ones() {
    let peers = require_peers!();
    let good = start_nsqd(&peers).await;
    good.post("/pub?topic=t", b"a").await;
    // Ports that are bound, so that no other program listens on them.
    let dead: Vec<_> = (0..40).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let mut all: Vec<_> = dead.iter().map(|dead| at(dead.local_addr().unwrap())).collect();
    all.insert(20, at(good.tcp_address()));
    let lookupd = listing(&all).await;
    let start = Instant::now();
    let ended = find(&lookupd, &["-n", "1"]).end().await;
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    ended.expect(0, &["1 received, 1 finished"]);
    assert_eq!(ended.printed, ["a"]);
}

/// The program continues: the nsqlookupd may list others later.
#[tokio::test]
async fn that_all_listed_nsqds_refuse_for_good_is_logged_once() {
    let peers = require_peers!();
    let (tls, _dir) = start_with_tls(&peers).await;
    let lookupd = listing(&[at(tls.tcp_address())]).await;
    let run = find(&lookupd, &["--lookupd-poll-interval=200"]);
    let text = "all nsqds refuse for good; waiting for others to be listed";
    run.until_it_logs(text).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    run.signal(Signal::INT);
    let ended = run.end().await;
    ended.expect(0, &["requires TLS", "left out"]);
    assert_eq!(ended.stderr.matches(text).count(), 1, "{}", ended.stderr);
}
