//! Edge cases: signals, failing outputs, numbers, text of others, secrets, addresses.

use std::fs::File;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nanonsq_tests::{Mode, Nsqd, Proxy, ServerOptions, auth, eventually, http, require_peers};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};

use crate::run::{Run, SOON, without_time};
use crate::servers::Server;
use crate::{file, left_in, numbers, publish_numbers, start_nsqd, stuck};

const NANONSQ: &str = env!("CARGO_BIN_EXE_nanonsq");

/// Longer than the time in which another signal is the same request.
const LATER: Duration = Duration::from_millis(600);

pub(crate) fn nanonsq(args: &[&str]) -> Command {
    let mut command = Command::new(NANONSQ);
    command.args(args).env_remove("RUST_LOG").stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A file on which every write fails, as on a full disk.
fn full() -> File {
    File::options().write(true).open("/dev/full").unwrap()
}

pub(crate) fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_raw(child.id().unwrap() as i32).unwrap(), signal).unwrap();
}

pub(crate) async fn code(child: &mut Child) -> Option<i32> {
    tokio::time::timeout(SOON, child.wait()).await.expect("it ends").unwrap().code()
}

// Signals.

/// `timeout` sends its signal to the process and to its group.
#[tokio::test]
async fn two_signals_at_once_are_one_request() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    let link = Proxy::start(nsqd.tcp_address()).await;
    for (first, second) in
        [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM), (Signal::HUP, Signal::HUP)]
    {
        let run = stuck(&link).await;
        run.signal(first);
        tokio::time::sleep(Duration::from_millis(20)).await;
        run.signal(second);
        run.until_it_logs("interrupted: delivering what was read").await;
        tokio::time::sleep(LATER).await;
        link.set_mode(Mode::Forward).await;
        let ended = run.end().await;
        ended.expect(0, &["3 accepted, 3 acknowledged"]);
        assert_eq!(ended.lines("error"), [""; 0]);
    }
}

#[tokio::test]
async fn a_hangup_is_a_request_to_stop() {
    for command in ["node", "lookupd"] {
        let server = Server::start(command, &[]).await;
        server.run.signal(Signal::HUP);
        server.run.end().await.expect(0, &["stopping"]);
    }
    let demo = Run::start(&["demo"]);
    demo.until_it_prints(20).await;
    demo.signal(Signal::HUP);
    demo.end().await.expect(0, &[]);
    let node = Server::start("node", &[]).await;
    let sub = Run::subscribe(node.tcp, &[]);
    sub.until_it_logs("connected to nsqd").await;
    sub.signal(Signal::HUP);
    sub.end().await.expect(0, &["0 received"]);
}

/// As under nohup.
#[tokio::test]
async fn an_ignored_hangup_stays_ignored() {
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh", NANONSQ, "node"])
        .args(["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"])
        .args(["--broadcast-address=127.0.0.1"])
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut text = String::new();
    while !text.contains("HTTP: listening on") {
        let mut some = [0; 1024];
        let read = stderr.read(&mut some).await.unwrap();
        text += std::str::from_utf8(&some[..read]).unwrap();
    }
    for _ in 0..3 {
        signal(&child, Signal::HUP);
        tokio::time::sleep(LATER).await;
    }
    assert!(child.try_wait().unwrap().is_none());
    signal(&child, Signal::TERM);
    assert_eq!(code(&mut child).await, Some(0));
}

/// The program hangs in a write to a pipe that is not read.
#[tokio::test]
async fn the_second_signal_ends_a_program_that_hangs() {
    let mut child = nanonsq(&["pub", "--topic=t", "--nsqd-tcp-address=127.0.0.1:1"])
        .args(["--max-msg-size=1", "--connect-timeout=100"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // Each line is too long and makes a line of the log.
    let (input, _) = numbers(5000);
    tokio::spawn(async move {
        let _ = stdin.write_all(input.as_bytes()).await;
        tokio::time::sleep(SOON).await;
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let start = Instant::now();
    signal(&child, Signal::INT);
    tokio::time::sleep(LATER).await;
    signal(&child, Signal::INT);
    assert_eq!(code(&mut child).await, Some(130));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

// Failing outputs.

#[tokio::test]
async fn a_full_standard_error_is_no_failure() {
    let node = Server::start("node", &[]).await;
    let address = node.tcp.to_string();
    // The invalid filter is one more line of the log.
    let mut publishing = nanonsq(&["pub", "--topic=t", "--nsqd-tcp-address", &address])
        .env("RUST_LOG", "nanonsq=loud")
        .stdin(Stdio::piped())
        .stderr(full())
        .spawn()
        .unwrap();
    let mut stdin = publishing.stdin.take().unwrap();
    stdin.write_all(b"1\n2\n3\n").await.unwrap();
    drop(stdin);
    assert_eq!(code(&mut publishing).await, Some(0));
    let subscribing =
        nanonsq(&["sub", "--topic=t", "--channel=c", "-n3", "--nsqd-tcp-address", &address])
            .stdout(Stdio::piped())
            .stderr(full())
            .spawn()
            .unwrap();
    let output = tokio::time::timeout(SOON, subscribing.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"1\n2\n3\n"[..]));
    for command in ["node", "lookupd"] {
        let mut server = nanonsq(&[command, "--tcp-address=127.0.0.1:0"])
            .arg("--http-address=127.0.0.1:0")
            .stderr(full())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        signal(&server, Signal::TERM);
        assert_eq!(code(&mut server).await, Some(0), "{command}");
    }
    let mut demo =
        nanonsq(&["demo", "--for=1"]).stdout(Stdio::null()).stderr(full()).spawn().unwrap();
    assert_eq!(code(&mut demo).await, Some(0));
    // Other failures keep their status.
    for (args, status) in [(&["sub"][..], 2), (&["node", "--mem=1"], 1), (&["--help"], 1)] {
        let mut child = nanonsq(args).stdout(full()).stderr(full()).spawn().unwrap();
        assert_eq!(code(&mut child).await, Some(status), "{args:?}");
    }
}

/// A closed reader is no failure; a full disk is a failure, but loses no message.
#[tokio::test]
async fn a_full_standard_output_is_a_failure_that_loses_no_message() {
    let peers = require_peers!();
    let nsqd = start_nsqd(&peers).await;
    publish_numbers(&nsqd, 100).await;
    let address = nsqd.tcp_address().to_string();
    let sub = ["sub", "--topic=t", "--channel=c", "--nsqd-tcp-address", &address];
    for args in [&sub[..], &["demo", "--for=9"], &["--help"], &["node", "--help"], &["--version"]] {
        let run = nanonsq(args).stdout(full()).stderr(Stdio::piped()).spawn().unwrap();
        let output = tokio::time::timeout(SOON, run.wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("error: cannot write to standard output: No space left"), "{text}");
    }
    // Standard output closed before the start: writes succeed, so the program must check for that.
    for args in [&sub[..], &["demo", "--for=9"], &["--version"]] {
        let mut run = Command::new("sh");
        run.args(["-c", "exec \"$0\" \"$@\" >&-", NANONSQ]).args(args);
        let output = tokio::time::timeout(SOON, run.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        // Where there is a log, it has times.
        let line = if args.len() == 1 { Some(&*text) } else { without_time(&text) };
        let says = "error: standard output is closed\n";
        assert_eq!((output.status.code(), line), (Some(1), Some(says)));
    }
    left_in(&nsqd, 100).await;
    // `--help | head -0`, and files that were closed before: `>&-`, `2>&-`.
    for script in
        ["{ \"$0\" --help; echo $? >&2; } | head -0", "\"$0\" --version 2>&-; echo $? >&2"]
    {
        let run = Command::new("sh").args(["-c", script, NANONSQ]).output();
        let output = tokio::time::timeout(SOON, run).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stderr), "0\n", "{script}");
    }
}

// Numbers.

/// Returns the flags of a command that take a number, by their value names in the help.
async fn numeric_flags(command: &str) -> Vec<String> {
    let output = nanonsq(&[command, "--help"]).output().await.unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let numeric = ["N", "BYTES", "MS", "SECONDS", "PORT", "COUNT", "DURATION"];
    let flags = help.lines().filter_map(|line| {
        let (flag, name) = line.trim().split_once(" <")?;
        let (name, _) = name.split_once('>')?;
        (flag.starts_with('-') && numeric.contains(&name)).then(|| flag.to_owned())
    });
    flags.collect()
}

const NUMBERS: [&str; 16] = [
    "0",
    "-1",
    "1",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "99999999999999",
    "9223372036854775807",
    "18446744073709551615",
    "18446744073709551616",
    "340282366920938463463374607431768211456",
    "99999999999999999999999h",
    "-9999999999999999999999",
    "1e9",
    "",
];

/// Asserts that the program runs, or ends with an error that names the flag.
async fn try_number(args: Vec<String>, flag: String) {
    let args: Vec<_> = args.iter().map(|arg| &**arg).collect();
    let mut child = nanonsq(&args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let mut text = String::new();
    let reading = stderr.read_to_string(&mut text);
    let ended = tokio::time::timeout(Duration::from_millis(400), reading).await;
    if ended.is_ok() {
        let code = code(&mut child).await;
        assert!(matches!(code, Some(1 | 2)), "{args:?}: {code:?}: {text}");
        assert!(text.contains(&flag), "{args:?}: {text}");
    } else {
        assert!(child.try_wait().unwrap().is_none(), "{args:?}: {text}");
    }
    assert!(!text.contains("panicked"), "{args:?}: {text}");
}

/// Tries every flag of every command with every number.
#[tokio::test]
async fn an_invalid_number_is_an_error_that_names_the_flag() {
    let publish = ["--topic=t", "--nsqd-tcp-address=127.0.0.1:1"];
    let serve = ["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"];
    let mut flags = 0;
    for (command, more) in [("pub", publish), ("sub", publish), ("node", serve), ("lookupd", serve)]
    {
        for flag in numeric_flags(command).await {
            let mut trying = tokio::task::JoinSet::new();
            for number in NUMBERS {
                let args = [&[command], &more[..], &[&flag, number]].concat();
                let args = args.into_iter().map(str::to_owned).collect();
                trying.spawn(try_number(args, flag.clone()));
            }
            trying.join_all().await;
            flags += 1;
        }
    }
    for number in NUMBERS {
        try_number(["demo", "--for", number].map(str::to_owned).to_vec(), "--for".to_owned()).await;
    }
    assert!(flags >= 29, "{flags}");
}

// Text of others.

/// Control characters and forged lines of the log.
const FORGED: &str =
    "E_INVALID x\ninfo: forged\r\x1b[2Kwarn: forged\u{85}error: forged\u{2028}\u{202e}";

#[tokio::test]
async fn the_text_of_a_server_cannot_forge_a_line_of_the_log() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let mut frame = (FORGED.len() as u32 + 4).to_be_bytes().to_vec();
            frame.extend(1u32.to_be_bytes());
            frame.extend(FORGED.as_bytes());
            let _ = stream.write_all(&frame).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    let mut publishing = Run::publish(address, &["--connect-timeout=1"]);
    publishing.write("1\n").await;
    let subscribing = Run::subscribe(address, &[]);
    subscribing.until_it_logs("E_INVALID").await;
    subscribing.signal(Signal::INT);
    for ended in [publishing.finish().await, subscribing.end().await] {
        assert!(ended.stderr.contains(r"E_INVALID x\ninfo: forged"), "{}", ended.stderr);
        for line in ended.stderr.lines() {
            assert!(!line.contains(|char: char| char.is_control()), "{line:?}");
            assert!(
                !line.split(": forged").next().unwrap().ends_with("info") || line.contains('\\')
            );
        }
        let forged = |line: &str| ["info", "warn", "error"].iter().any(|l| line.starts_with(l));
        assert!(!ended.stderr.lines().any(forged), "{}", ended.stderr);
    }
    serving.abort();
}

/// The demo prints messages that anybody publishes.
#[tokio::test]
async fn the_demo_escapes_control_characters() {
    let demo = Run::start(&["demo"]);
    demo.until_it_prints(20).await;
    let printed = demo.printed().join("\n");
    let (_, rest) = printed.split_once("curl -d 'hello' 'http://").unwrap();
    let node = rest.split('/').next().unwrap().parse().unwrap();
    http::post(node, "/pub?topic=readings", "a\x1b[2J\nb\u{85}".as_bytes()).await.unwrap();
    eventually("it is printed", SOON, async || demo.printed().join("\n").contains("[2J")).await;
    demo.signal(Signal::INT);
    let ended = demo.end().await;
    assert!(ended.printed.iter().any(|line| line == r"a\u{1b}[2J\nb\u{85}"), "{:?}", ended.printed);
}

// Secrets.

#[tokio::test]
async fn a_secret_comes_from_a_flag_a_file_or_a_variable() {
    let peers = require_peers!();
    let auth = auth::start("t", ".*", &["publish", "subscribe"]).await;
    let flag = format!("--auth-http-address={auth}");
    let nsqd = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    let address = nsqd.tcp_address().to_string();
    let good = file("secret", b"open-sesame\n");
    let good = good.to_str().unwrap();
    let dos = file("secret-dos", b"open-sesame\r\n");
    let dos = dos.to_str().unwrap();
    for (args, variable, status) in [
        (&["--auth-secret-file", good][..], None, 0),
        (&["--auth-secret-file", dos], None, 0),
        (&[], Some("open-sesame"), 0),
        (&[], Some("wrong"), 1),
        // An empty variable counts as not set.
        (&[], Some(""), 1),
        // Flags have priority.
        (&["--auth-secret-file", good], Some("wrong"), 0),
        (&["--auth-secret", "wrong"], Some("open-sesame"), 1),
    ] {
        let mut command = nanonsq(&["pub", "--topic=t", "--nsqd-tcp-address", &address]);
        command.args(args).stdin(Stdio::piped()).stderr(Stdio::piped());
        if let Some(variable) = variable {
            command.env("NANONSQ_AUTH_SECRET", variable);
        }
        let mut child = command.spawn().unwrap();
        let _ = child.stdin.take().unwrap().write_all(b"x\n").await;
        let output = tokio::time::timeout(SOON, child.wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?} {variable:?}: {text}");
        assert!(!text.contains("sesame") && !text.contains("wrong"), "{text}");
    }
    let subscribing =
        nanonsq(&["sub", "--topic=t", "-n1", "--channel=c", "--nsqd-tcp-address", &address])
            .args(["--auth-secret-file", good])
            .output();
    let output = tokio::time::timeout(SOON, subscribing).await.unwrap().unwrap();
    assert_eq!(output.stdout, b"x\n");
    // The help shows the variable's name, not its value.
    let help = nanonsq(&["pub", "--help"]).env("NANONSQ_AUTH_SECRET", "open-sesame").output();
    let help = String::from_utf8(help.await.unwrap().stdout).unwrap();
    assert!(help.contains("NANONSQ_AUTH_SECRET") && !help.contains("sesame"), "{help}");
}

#[tokio::test]
async fn files_without_a_valid_secret_are_errors() {
    let empty = file("secret-empty", b"\n");
    let long = file("secret-long", &[b'x'; 70_000]);
    let (empty, long) = (empty.to_str().unwrap(), long.to_str().unwrap());
    for (args, status, says) in [
        (
            &["--auth-secret-file=/no/such/file"][..],
            1,
            "--auth-secret-file /no/such/file: No such file",
        ),
        (&["--auth-secret-file=/"], 1, "--auth-secret-file /: Is a directory"),
        (&["--auth-secret-file=-"], 1, "--auth-secret-file -: "),
        (&["--auth-secret-file", empty], 1, "is empty"),
        (&["--auth-secret-file", long], 1, "more than 65536 bytes"),
        (&["--auth-secret-file=/dev/zero"], 1, "more than 65536 bytes"),
        (&["--auth-secret="], 1, "--auth-secret is empty"),
        (&["--auth-secret=a", "--auth-secret-file=b"], 2, "cannot be used with"),
    ] {
        for command in ["pub", "sub"] {
            let more = [command, "--topic=t", "--nsqd-tcp-address=127.0.0.1:1"];
            let ended = Run::start(&[&more[..], args].concat()).finish().await;
            ended.expect(status, &["error: ", says]);
        }
    }
}

// Addresses to listen on.

#[tokio::test]
async fn servers_listen_on_the_addresses_of_both_families() {
    for (address, hosts) in [
        (":0", &["127.0.0.1", "[::1]"][..]),
        ("[::]:0", &["127.0.0.1", "[::1]"]),
        ("0.0.0.0:0", &["127.0.0.1"]),
        ("[::1]:0", &["[::1]"]),
        ("localhost:0", &["127.0.0.1"]),
    ] {
        for command in ["node", "lookupd"] {
            let run = Run::start(&[command, "--tcp-address", address, "--http-address", address]);
            run.until_it_logs("HTTP: listening on ").await;
            for what in ["TCP", "HTTP"] {
                let text = run.stderr();
                let (_, rest) = text.split_once(&format!("{what}: listening on ")).unwrap();
                let port = rest.lines().next().unwrap().rsplit_once(':').unwrap().1;
                for host in ["127.0.0.1", "[::1]"] {
                    let reached = TcpStream::connect(format!("{host}:{port}")).await.is_ok();
                    assert_eq!(reached, hosts.contains(&host), "{command} {address}: {host}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_client_over_ipv4_is_shown_with_its_ipv4_address() {
    let run = Run::start(&["node", "--tcp-address=:0", "--http-address=:0"]);
    run.until_it_logs("HTTP: listening on ").await;
    let port = |what: &str| -> u16 {
        let text = run.stderr();
        let (_, rest) = text.split_once(&format!("{what}: listening on [::]:")).unwrap();
        rest.lines().next().unwrap().parse().unwrap()
    };
    let mut client = TcpStream::connect(("127.0.0.1", port("TCP"))).await.unwrap();
    client.write_all(b"  V2SUB t c\n").await.unwrap();
    let _ = client.read(&mut [0; 64]).await;
    let http = ([127, 0, 0, 1], port("HTTP")).into();
    let stats = http::get_json(http, "/stats?format=json").await.unwrap().to_string();
    let from = client.local_addr().unwrap();
    assert!(stats.contains(&format!("\"{from}\"")), "{stats}");
}

/// A server that ends because of its flags does not log that it listens.
#[tokio::test]
async fn a_server_that_does_not_start_does_not_listen() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = format!("--http-address={}", taken.local_addr().unwrap());
    for more in ["--mem=10", "--msg-timeout=0.5s", "--mem=99999999999999", &taken] {
        let run = Run::start(&["node", "--tcp-address=127.0.0.1:0", more]);
        let ended = run.end().await;
        ended.expect(1, &["error: "]);
        assert!(!ended.stderr.contains("listening"), "{}", ended.stderr);
    }
}

// Full tables.

#[tokio::test]
async fn a_channel_with_all_messages_in_flight_is_logged() {
    let node = Server::start("node", &[]).await;
    let (input, _) = numbers(2600);
    let mut publishing = Run::publish(node.tcp, &[]);
    publishing.write(input).await;
    publishing.finish().await.expect(0, &["2600 acknowledged"]);
    let mut client = TcpStream::connect(node.tcp).await.unwrap();
    client.write_all(b"  V2SUB t c\nRDY 2499\n").await.unwrap();
    // One slot is reserved for other clients.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(!node.run.stderr().contains("in flight"), "{}", node.run.stderr());
    client.write_all(b"RDY 2500\n").await.unwrap();
    let says =
        "warn: channel c of topic t: all 2500 messages that can be in flight are; the others wait";
    let reading = async {
        loop {
            let read = client.read(&mut [0; 4096]).await.unwrap();
            assert_ne!(read, 0, "the node closed the connection");
        }
    };
    tokio::select! {
        never = reading => never,
        () = node.run.until_it_logs(says) => {}
    }
}

// Help.

/// `servers` fills the tables to these bounds.
#[tokio::test]
async fn every_bound_is_in_the_help() {
    for (command, bounds) in [
        ("pub", &["nsqds  255", "nsqlookupds  8", "bytes of a secret  65536"][..]),
        (
            "sub",
            &[
                "nsqlookupds  7",
                "messages in flight  1024",
                "bytes of a message, and of all in flight  8388608",
            ],
        ),
        ("node", &["topics  1000", "channels  4000", "clients  1000", "HTTP connections  64"]),
        ("lookupd", &["nodes  1000", "topics  10000", "channels  20000", "HTTP connections  64"]),
    ] {
        let output = nanonsq(&[command, "--help"]).output().await.unwrap();
        let help = String::from_utf8(output.stdout).unwrap();
        let words: Vec<String> = help
            .lines()
            .map(|line| line.trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect();
        for bound in bounds {
            let (what, number) = bound.split_once("  ").unwrap();
            let is =
                |line: &&String| line.starts_with(what) && line.ends_with(&format!(" {number}"));
            assert!(words.iter().any(|line| is(&line)), "{command}: {bound} is not in:\n{help}");
        }
        assert!(help.contains("SIGHUP"), "{command}: {help}");
    }
}

#[tokio::test]
async fn servers_have_the_names_of_the_real_ones_as_well() {
    for (command, alias) in [("node", "nsqd"), ("lookupd", "nsqlookupd")] {
        let of = |command| async move {
            let output = nanonsq(&[command, "--help"]).output().await.unwrap();
            assert!(output.status.success(), "{command}: {output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        assert_eq!(of(alias).await, of(command).await);
    }
}
