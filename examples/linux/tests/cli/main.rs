//! The built program as a process: its messages, output and exit status. Tests with a real nsqd
//! need `cargo xtask peers` and otherwise print that they are skipped.

mod edges;
mod options;
mod refused;
mod run;
mod servers;
mod topics;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nanonsq_tests::{
    Mode, Nsqd, Nsqlookupd, Peers, Proxy, ServerOptions, Until, auth, consume_all, eventually,
    ports, require_peers,
};
use run::{Ended, Run, SOON};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;

/// Runs `nanonsq pub` with `input` until it ends.
async fn publish(nsqd: SocketAddr, more: &[&str], input: impl AsRef<[u8]>) -> Ended {
    let mut run = Run::publish(nsqd, more);
    run.write(input).await;
    run.finish().await
}

async fn start_nsqd(peers: &Peers) -> Nsqd {
    Nsqd::start(peers, ServerOptions::new()).await
}

async fn arrived(nsqd: &Nsqd, count: usize) -> Vec<String> {
    let until = Until::distinct(count).linger(Duration::from_millis(200));
    consume_all(nsqd.tcp_address(), "t", "oracle", until).await.unwrap().texts()
}

fn numbers(count: usize) -> (String, Vec<String>) {
    let lines: Vec<String> = (0..count).map(|n| format!("message {n}")).collect();
    (lines.join("\n") + "\n", lines)
}

fn file(name: &str, contents: &[u8]) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, contents).unwrap();
    path
}

// Messages that arrive.

#[tokio::test]
async fn piped_lines_arrive_in_order() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let (input, lines) = numbers(5000);
    let ended = publish(nsqd.tcp_address(), &[], input).await;
    ended.expect(
        0,
        &[
            &format!("connected to nsqd {}", nsqd.tcp_address()),
            "5000 accepted, 5000 acknowledged, 0 rejected, 0 expired, 0 possible duplicates; ",
            ", 0 reconnects\n",
        ],
    );
    assert_eq!(arrived(&nsqd, 5000).await, lines);
}

#[tokio::test]
async fn lines_may_end_with_lf_crlf_or_the_input() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let ended = publish(nsqd.tcp_address(), &[], "unix\ndos\r\n\n\r\n two words \nlast").await;
    ended.expect(0, &["4 accepted, 4 acknowledged", "; 2 empty, skipped\n"]);
    assert_eq!(arrived(&nsqd, 4).await, ["unix", "dos", " two words ", "last"]);
}

#[tokio::test]
async fn records_of_a_file_arrive() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let bytes: Vec<u8> = (0..=255).cycle().take(1050).collect();
    let path = file("records", &bytes);
    let args = ["--file", path.to_str().unwrap(), "--binary-size", "100"];
    let ended = publish(nsqd.tcp_address(), &args, "not this").await;
    ended.expect(0, &["11 accepted, 11 acknowledged"]);
    let until = Until::distinct(11);
    let consumed = consume_all(nsqd.tcp_address(), "t", "oracle", until).await.unwrap();
    assert!(consumed.bodies().eq(bytes.chunks(100)), "{consumed:?}");
}

#[tokio::test]
async fn nothing_is_lost_when_nsqd_restarts_in_the_middle() {
    let peers = require_peers!();
    let mut nsqd = start_nsqd(&peers).await;
    let mut run =
        Run::publish(nsqd.tcp_address(), &["--outbox-size", "65536", "--max-msg-size", "100"]);
    let (_, lines) = numbers(20_000);
    let feeding = async {
        for some in lines.chunks(200) {
            run.write(some.join("\n") + "\n").await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        run.finish().await
    };
    let restarting = async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(200)).await;
            nsqd.restart().await;
        }
    };
    let (ended, ()) = tokio::join!(feeding, restarting);
    ended.expect(0, &["20000 accepted, 20000 acknowledged, 0 rejected", "trying again"]);
    let (before, _) = ended.stderr.split_once(" possible duplicates").unwrap();
    let possible: usize = before.rsplit(' ').next().unwrap().parse().unwrap();
    let until = Until::distinct(lines.len()).linger(Duration::from_millis(200));
    let consumed = consume_all(nsqd.tcp_address(), "t", "oracle", until).await.unwrap();
    assert_eq!(consumed.distinct().len(), lines.len());
    assert!(consumed.duplicates() <= possible, "{} > {possible}", consumed.duplicates());
}

#[tokio::test]
async fn another_nsqd_takes_over() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let dead = ports::reserve();
    let second = nsqd.tcp_address().to_string();
    let ended = publish(dead.address(), &["--nsqd-tcp-address", &second], "one\n").await;
    ended.expect(0, &["connection refused", &format!("connected to nsqd {second}")]);
    assert_eq!(arrived(&nsqd, 1).await, ["one"]);
}

// Messages that nsqd or the program rejects.

#[tokio::test]
async fn a_line_that_is_too_long_is_named_and_skipped() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let ended =
        publish(nsqd.tcp_address(), &["--max-msg-size", "5"], "a\n\n123456\n12345\r\nb").await;
    ended.expect(1, &["3 accepted, 3 acknowledged", "; 1 too long, skipped; 1 empty, skipped\n"]);
    assert_eq!(
        ended.lines("error"),
        ["error: line 3: skipped: 6 bytes, more than --max-msg-size 5"]
    );
    assert_eq!(arrived(&nsqd, 3).await, ["a", "12345", "b"]);
}

#[tokio::test]
async fn rejected_lines_are_named_and_the_rest_arrives() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag("--max-msg-size=10")).await;
    let start = Instant::now();
    let ended =
        publish(nsqd.tcp_address(), &[], "good\n\nfar too long\nbetter\nfar too long again").await;
    let took = start.elapsed();
    // nsqd closed after the last message: there is nothing to wait for.
    assert!(took < Duration::from_millis(1500), "{took:?}");
    ended.expect(1, &["4 accepted, 2 acknowledged, 2 rejected"]);
    assert_eq!(
        ended.lines("error"),
        [
            "error: line 3: rejected by nsqd: E_BAD_MESSAGE PUB message too big 12 > 10",
            "error: line 5: rejected by nsqd: E_BAD_MESSAGE PUB message too big 18 > 10",
        ]
    );
    // nsqd closes after a bad message, and its response to a good one before it may be lost.
    let until = Until::distinct(2).linger(Duration::from_millis(200));
    let consumed = consume_all(nsqd.tcp_address(), "t", "oracle", until).await.unwrap();
    assert_eq!(consumed.distinct(), [&b"good"[..], b"better"]);
}

#[tokio::test]
async fn messages_expire() {
    let dead = ports::reserve();
    let ended = publish(dead.address(), &["--expire", "100"], "a\nb\n").await;
    ended.expect(1, &["2 accepted, 0 acknowledged, 0 rejected, 2 expired"]);
    assert_eq!(ended.lines("error"), ["error: lines 1 to 2: expired before nsqd acknowledged it"]);
}

// Servers that are absent or of another kind.

#[tokio::test]
async fn a_refused_connection_is_logged_once() {
    let dead = ports::reserve();
    let start = Instant::now();
    let ended = publish(dead.address(), &["--connect-timeout", "1"], "a\n").await;
    let took = start.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&took), "{took:?}");
    let address = dead.address();
    ended.expect(1, &["1 accepted, 0 acknowledged", "; 1 not delivered\n"]);
    assert_eq!(
        ended.lines("warn"),
        [format!(
            "warn: nsqd {address}: connection refused: nothing listens on that port; trying again"
        )]
    );
    assert_eq!(
        ended.lines("error"),
        [format!("error: no connection to nsqd {address} within --connect-timeout 1 s")]
    );
}

#[tokio::test]
async fn the_http_port_is_an_error() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let ended = publish(nsqd.http_address(), &[], "a\n").await;
    ended.expect(1, &["this is the HTTP port, use the TCP port (4150 for nsqd"]);
    assert_eq!(ended.lines("error").len(), 1, "{}", ended.stderr);
}

#[tokio::test]
async fn a_server_of_another_protocol_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"SSH-2.0-OpenSSH_9.2p1\r\n").await;
        }
    });
    let ended = publish(address, &["--connect-timeout", "1"], "a\n").await;
    serving.abort();
    ended.expect(1, &["is this the TCP port of an nsqd?", "no connection to nsqd"]);
}

#[tokio::test]
async fn an_nsqd_that_never_answers_is_an_error() {
    let nobody = ports::reserve();
    let silent = Proxy::start(nobody.address()).await;
    silent.set_mode(Mode::Blackhole).await;
    let ended = publish(silent.address(), &["--drain-timeout", "1"], "a\nb\n").await;
    ended.expect(
        1,
        &[
            "2 accepted, 0 acknowledged",
            "; 2 not delivered\n",
            "error: nsqd did not acknowledge everything within --drain-timeout 1 s\n",
        ],
    );
}

#[tokio::test]
async fn an_nsqd_that_requires_auth() {
    let peers = require_peers!();
    let auth = auth::start("t", ".*", &["publish", "subscribe"]).await;
    let flag = format!("--auth-http-address={auth}");
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    let address = nsqd.tcp_address();

    let ended = publish(address, &[], "a\n").await;
    ended.expect(1, &[]);
    assert_eq!(
        ended.lines("error"),
        [format!("error: nsqd {address}: requires AUTH: give --auth-secret")]
    );
    let ended = publish(address, &["--auth-secret", "wrong"], "a\n").await;
    ended.expect(1, &["error: nsqd", "refused: E_AUTH_FAILED"]);
    let ended = publish(address, &["--auth-secret", "open-sesame"], "a\n").await;
    ended.expect(0, &["1 accepted, 1 acknowledged"]);

    // A topic for which the secret has no permission.
    let address = address.to_string();
    let other = ["pub", "--topic", "u", "--nsqd-tcp-address", &address];
    let mut run = Run::start(&[&other[..], &["--auth-secret", "open-sesame"]].concat());
    run.write("a\n").await;
    let ended = run.finish().await;
    ended.expect(1, &["error: line 1: rejected by nsqd: E_UNAUTHORIZED", "1 rejected"]);
}

// Registration.

#[tokio::test]
async fn the_node_is_listed_while_it_runs() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let one = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let two = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let (first, second) = (one.tcp_address().to_string(), two.tcp_address().to_string());
    let mut run = Run::publish(
        nsqd.tcp_address(),
        &[
            "--lookupd-tcp-address",
            &first,
            "--lookupd-tcp-address",
            &second,
            "--broadcast-address",
            "127.0.0.2",
            "--broadcast-tcp-port",
            "1234",
        ],
    );
    let node: SocketAddr = "127.0.0.2:1234".parse().unwrap();
    for lookupd in [&one, &two] {
        lookupd.wait_listed("t", node, SOON).await;
    }
    run.until_it_logs(&format!("registered with nsqlookupd {first}")).await;
    run.until_it_logs(&format!("registered with nsqlookupd {second}")).await;
    run.write("a\n").await;
    run.finish().await.expect(0, &["1 accepted, 1 acknowledged"]);
    for lookupd in [&one, &two] {
        eventually("unlisted", SOON, async || {
            lookupd.lookup("t").await.is_empty() && lookupd.nodes().await.is_empty()
        })
        .await;
    }
}

// Interrupts.

/// Starts the program, which has read three messages, over a link that has stopped forwarding.
async fn stuck(link: &Proxy) -> Run {
    let mut run = Run::publish(link.address(), &[]);
    run.until_it_logs("connected to nsqd").await;
    link.set_mode(Mode::Blackhole).await;
    run.write("a\nb\nc\n").await;
    // The program does not report when it has read them.
    tokio::time::sleep(Duration::from_secs(1)).await;
    run
}

#[tokio::test]
async fn after_an_interrupt_the_messages_read_are_delivered() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let link = Proxy::start(nsqd.tcp_address()).await;
    for signal in [Signal::INT, Signal::TERM] {
        let run = stuck(&link).await;
        run.signal(signal);
        run.until_it_logs("interrupted: delivering what was read").await;
        link.set_mode(Mode::Forward).await;
        let ended = run.end().await;
        // All that was accepted is acknowledged, and a pipe has no end.
        ended.expect(0, &["3 accepted, 3 acknowledged"]);
        assert_eq!(ended.lines("error"), [""; 0]);
    }
    assert_eq!(arrived(&nsqd, 6).await, ["a", "b", "c", "a", "b", "c"]);
    // A file has an end, which was not reached.
    let rest = file("rest", "line\n".repeat(50_000).as_bytes());
    let more = ["--outbox-size=65536", "--max-msg-size=100", "--file", rest.to_str().unwrap()];
    link.set_mode(Mode::Blackhole).await;
    let run = Run::publish(link.address(), &more);
    tokio::time::sleep(Duration::from_secs(1)).await;
    run.signal(Signal::INT);
    run.until_it_logs("interrupted: delivering what was read").await;
    link.set_mode(Mode::Forward).await;
    let ended = run.end().await;
    ended.expect(1, &["error: interrupted before the end of the file\n"]);
    assert!(!ended.stderr.contains("not delivered"), "{}", ended.stderr);
}

#[tokio::test]
async fn a_second_interrupt_stops_at_once() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let link = Proxy::start(nsqd.tcp_address()).await;
    let run = stuck(&link).await;
    run.signal(Signal::INT);
    run.until_it_logs("interrupted: delivering what was read").await;
    // Within 500 ms it would be the same request.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let start = Instant::now();
    run.signal(Signal::INT);
    let ended = run.end().await;
    let took = start.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    ended.expect(130, &["; 3 not delivered\n", "error: interrupted again: stopped at once\n"]);
}

// Printed messages.

async fn publish_numbers(nsqd: &Nsqd, count: usize) -> Vec<String> {
    let (input, lines) = numbers(count);
    nsqd.post("/mpub?topic=t", input.trim_end().as_bytes()).await;
    lines
}

/// Waits until nsqd's channel `c` has `depth` messages, and none in flight.
async fn left_in(nsqd: &Nsqd, depth: usize) {
    left_in_channel(nsqd, "c", depth).await;
}

/// As [`left_in`], with another channel.
async fn left_in_channel(nsqd: &Nsqd, channel: &str, depth: usize) {
    eventually(&format!("{depth} messages left"), SOON, async || {
        let stats = nsqd.channel_stats("t", channel).await;
        let is = |key: &str| stats[key].as_u64();
        (is("depth"), is("in_flight_count")) == (Some(depth as u64), Some(0))
    })
    .await;
}

#[tokio::test]
async fn n_messages_are_printed_and_the_rest_is_left() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let lines = publish_numbers(&nsqd, 1000).await;
    let ended = Run::subscribe(nsqd.tcp_address(), &["-n", "700"]).end().await;
    ended.expect(0, &[&format!("connected to nsqd {}", nsqd.tcp_address()), " 700 finished, "]);
    assert_eq!(ended.printed, lines[..700]);
    left_in(&nsqd, 300).await;
    let rest =
        Run::subscribe(nsqd.tcp_address(), &["-n", "300", "--max-in-flight", "1"]).end().await;
    rest.expect(0, &[" 300 finished, "]);
    let all: std::collections::BTreeSet<_> = ended.printed.iter().chain(&rest.printed).collect();
    assert_eq!(all.len(), 1000);
    left_in(&nsqd, 0).await;
}

#[tokio::test]
async fn a_tail_of_what_nsqlookupd_lists() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let address = lookupd.http_address().to_string();
    let flags = ["--lookupd-http-address", &address, "--lookupd-poll-interval", "200"];
    let run = Run::start(&[&["sub", "--topic", "t"][..], &flags].concat());
    run.until_it_logs(&format!("nsqlookupd {address} lists 0 nsqd for t")).await;
    let options = ServerOptions::new().lookupd(lookupd.tcp_address());
    let nsqd = Nsqd::start(&peers, options).await;
    nsqd.create_topic("t").await;
    run.until_it_logs(&format!("connected to nsqd {}", nsqd.tcp_address())).await;
    let stats = nsqd.stats("t").await;
    let channel = stats["channels"][0]["channel_name"].as_str().unwrap().to_owned();
    assert!(channel.starts_with("tail") && channel.ends_with("#ephemeral"), "{channel}");
    for n in 0..3 {
        // A message is printed as soon as it arrives.
        nsqd.publish("t", format!("live {n}").as_bytes()).await;
        run.until_it_prints(n + 1).await;
    }
    // A printed message is finished a moment later; interrupted before, it is delivered again.
    left_in_channel(&nsqd, &channel, 0).await;
    run.signal(Signal::INT);
    let ended = run.end().await;
    ended.expect(0, &[&channel, "3 received, 3 finished, 0 requeued, 0 too late; "]);
    assert_eq!(ended.printed, ["live 0", "live 1", "live 2"]);
    eventually("the channel is gone", SOON, async || {
        nsqd.stats("t").await["channels"].as_array().is_some_and(Vec::is_empty)
    })
    .await;
}

#[tokio::test]
async fn requeued_messages_are_delivered_again() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let lines = publish_numbers(&nsqd, 10).await;
    let flags = ["-n", "10", "--requeue-every", "4", "--requeue-delay", "0"];
    let ended = Run::subscribe(nsqd.tcp_address(), &flags).end().await;
    // The 4th, 8th and 12th delivery.
    ended.expect(0, &["13 received, 10 finished, 3 requeued, 0 too late; "]);
    let mut printed = ended.printed;
    printed.sort();
    assert_eq!(printed, lines);
    left_in(&nsqd, 0).await;
}

#[tokio::test]
async fn sub_continues_when_nsqd_restarts() {
    let peers = require_peers!();
    let mut nsqd = start_nsqd(&peers).await;
    let mut lines = publish_numbers(&nsqd, 10).await;
    let run = Run::subscribe(nsqd.tcp_address(), &[]);
    run.until_it_prints(10).await;
    left_in(&nsqd, 0).await;
    nsqd.restart().await;
    nsqd.publish("t", b"after").await;
    lines.push("after".to_owned());
    run.until_it_prints(11).await;
    left_in(&nsqd, 0).await;
    run.signal(Signal::TERM);
    let ended = run.end().await;
    ended.expect(0, &["trying again", "11 finished", "2 connections"]);
    assert_eq!(ended.printed, lines);
}

#[tokio::test]
async fn messages_that_cannot_be_printed_are_released() {
    let peers = require_peers!();
    // The reader has closed standard output, or does not read it.
    for closed in [true, false] {
        let nsqd = start_nsqd(&peers).await;
        // Each message is longer than a pipe's buffer, so none is printed before it is read.
        for n in 0..100 {
            nsqd.publish("t", n.to_string().repeat(100_000).as_bytes()).await;
        }
        let address = nsqd.tcp_address().to_string();
        let mut child = Command::new(env!("CARGO_BIN_EXE_nanonsq"))
            .args(["sub", "--topic", "t", "--channel", "c", "--nsqd-tcp-address", &address])
            .args(["--heartbeat-interval", "1000"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdout = child.stdout.take();
        if closed {
            drop(stdout);
            let status = tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
            assert_eq!(status.code(), Some(0));
            left_in(&nsqd, 100).await;
            continue;
        }
        // Longer than nsqd waits for the response to a heartbeat.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        let stats = nsqd.channel_stats("t", "c").await;
        assert_eq!(stats["client_count"], 1, "{stats}");
        let pid = Pid::from_raw(child.id().unwrap() as i32).unwrap();
        let start = Instant::now();
        kill_process(pid, Signal::INT).unwrap();
        let status = tokio::time::timeout(SOON, child.wait()).await.unwrap().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        left_in(&nsqd, 100).await;
    }
}

#[tokio::test]
async fn an_interrupt_before_the_count_is_a_failure() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    publish_numbers(&nsqd, 2).await;
    let run = Run::subscribe(nsqd.tcp_address(), &["-n", "3"]);
    run.until_it_prints(2).await;
    left_in(&nsqd, 0).await;
    run.signal(Signal::INT);
    let ended = run.end().await;
    ended.expect(1, &["2 received, 2 finished", "error: interrupted before message 3\n"]);
}

#[tokio::test]
async fn nsqds_that_cannot_be_used_are_errors() {
    let peers = require_peers!();
    let auth = auth::start("t", ".*", &["publish", "subscribe"]).await;
    let flag = format!("--auth-http-address={auth}");
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    let address = nsqd.tcp_address();
    let ended = Run::subscribe(nsqd.http_address(), &[]).end().await;
    ended.expect(1, &["error: ", "this is the HTTP port, use the TCP port (4150 for nsqd"]);
    let ended = Run::subscribe(address, &[]).end().await;
    ended.expect(1, &[&format!("error: nsqd {address}: requires AUTH: give --auth-secret")]);
    let ended = Run::subscribe(address, &["--auth-secret", "wrong"]).end().await;
    ended.expect(1, &["error: nsqd", "refused: E_AUTH_FAILED"]);
    nsqd.publish("t", b"x").await;
    let ended = Run::subscribe(address, &["--auth-secret", "open-sesame", "-n", "1"]).end().await;
    ended.expect(0, &[]);
    assert_eq!(ended.printed, ["x"]);
}

/// Other ports of nsqlookupd and nsqd, and a closed port, in place of nsqlookupd's HTTP port.
#[tokio::test]
async fn a_wrong_port_of_nsqlookupd_is_logged() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let nsqd = start_nsqd(&peers).await;
    let wrong = "not an answer in HTTP; use nsqlookupd's HTTP port (4161), not its TCP port";
    for (address, says) in [
        (lookupd.tcp_address(), wrong),
        (nsqd.tcp_address(), wrong),
        (
            nsqd.http_address(),
            "answered with HTTP status 404: is this the HTTP port of an nsqlookupd (4161)?",
        ),
        (ports::reserve().address(), "connection refused: nothing listens on that port"),
    ] {
        let address = address.to_string();
        let run = Run::start(&["sub", "--topic", "t", "--lookupd-http-address", &address]);
        run.until_it_logs(&format!("nsqlookupd {address}: ")).await;
        run.signal(Signal::INT);
        let ended = run.end().await;
        ended.expect(0, &[says, "; trying again\n"]);
        assert!(!ended.stderr.contains("lists"), "{}", ended.stderr);
    }
}

/// A stop is bounded, and the program logs what it waits for.
#[tokio::test]
async fn an_interrupt_while_nsqd_hangs() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    publish_numbers(&nsqd, 3).await;
    for twice in [false, true] {
        let run = Run::subscribe(nsqd.tcp_address(), &[]);
        run.until_it_logs("connected to nsqd").await;
        if !twice {
            run.until_it_prints(3).await;
        }
        nsqd.freeze();
        let start = Instant::now();
        run.signal(Signal::INT);
        run.until_it_logs("waiting for nsqd to take back what is in flight").await;
        if twice {
            run.signal(Signal::INT);
        }
        let ended = run.end().await;
        let took = start.elapsed();
        nsqd.thaw();
        if twice {
            assert!(took < Duration::from_secs(3), "{took:?}");
            ended.expect(130, &["error: interrupted again: stopped at once\n"]);
        } else {
            assert!(took < Duration::from_secs(8), "{took:?}");
            ended.expect(0, &["3 received, 3 finished, 0 requeued"]);
        }
    }
}

// Command lines.

#[tokio::test]
async fn invalid_command_lines_are_errors() {
    let missing = std::env::temp_dir().join("nanonsq-no-such-file");
    let missing = missing.to_str().unwrap();
    let good = "127.0.0.1:4150";
    for (args, code, says) in [
        (&["--topic", "a b", "--nsqd-tcp-address", good][..], 2, "position 1 is not allowed"),
        (&["--topic", "t", "--nsqd-tcp-address", "http://h:4150"], 2, "without http://"),
        (&["--topic", "t", "--nsqd-tcp-address", "localhost"], 2, "no port; write host:port"),
        (&["--topic", "t", "--nsqd-tcp-address", "h:70000"], 2, "not a number from 1 to 65535"),
        (&["--topic", "t"], 2, "--nsqd-tcp-address <ADDRESS>"),
        (&["--nsqd-tcp-address", good], 2, "--topic <TOPIC>"),
        (
            &[
                "--topic",
                "t",
                "--nsqd-tcp-address",
                good,
                "--binary-size",
                "9",
                "--max-msg-size",
                "8",
            ],
            1,
            "--binary-size 9 is more than --max-msg-size 8",
        ),
        (
            &["--topic", "t", "--nsqd-tcp-address", good, "--outbox-size", "1000"],
            1,
            "--outbox-size 1000 is too small",
        ),
        (&["--topic", "t", "--nsqd-tcp-address", good, "--file", missing], 1, "cannot open"),
    ] {
        let ended = Run::start(&[&["pub"], args].concat()).finish().await;
        ended.expect(code, &["error: ", says]);
        assert!(!ended.stderr.contains("accepted"), "{}", ended.stderr);
    }
    for (args, says) in [
        (&["--topic", "t"][..], "<--lookupd-http-address <ADDRESS>|--nsqd-tcp-address <ADDRESS>>"),
        (&["--topic", "t", "--nsqd-tcp-address", good, "--channel", "a b"], "is not allowed"),
        (&["--topic", "t", "--nsqd-tcp-address", good, "-n", "0"], "0 is not in 1.."),
        (&["--topic", "t", "--nsqd-tcp-address", good, "--max-in-flight", "9999"], "1..=1024"),
    ] {
        let ended = Run::start(&[&["sub"], args].concat()).finish().await;
        ended.expect(2, &["error: ", says]);
    }
}
