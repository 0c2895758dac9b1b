//! What is common to all commands: help, the log, a file and variables, flags of NSQ's programs.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::Stdio;

use rustix::process::Signal;

use crate::edges::{code, nanonsq, signal};
use crate::file;
use crate::run::{Ended, Run, SOON, without_time};

/// A command that fails, because nothing listens there, and what it takes for that.
const FAILS: [&str; 4] =
    ["pub", "--topic=t", "--nsqd-tcp-address=127.0.0.1:1", "--connect-timeout=1"];

async fn failing(more: &[&str]) -> Ended {
    Run::start(&[&FAILS, more].concat()).end().await
}

#[tokio::test]
async fn without_a_command_the_help_says_how_to_start() {
    let bare = Run::start(&[]).end().await;
    bare.expect(2, &["Usage: nanonsq", "nanonsq demo ", "nanonsq COMMAND --help"]);
    assert_eq!(bare.printed, [""; 0]);
    let asked = Run::start(&["--help"]).end().await;
    asked.expect(0, &[]);
    assert_eq!(asked.printed.join("\n"), bare.stderr.trim_end());
}

#[tokio::test]
async fn every_command_has_the_version() {
    for command in ["demo", "pub", "sub", "node", "nsqd", "lookupd", "nsqlookupd"] {
        let ended = Run::start(&[command, "--version"]).end().await;
        ended.expect(0, &[]);
        assert!(ended.printed.join("").ends_with(env!("CARGO_PKG_VERSION")), "{ended:?}");
    }
}

/// Returns what a server logs from its start to its end.
async fn log_of(more: &[&str]) -> Ended {
    let server = ["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"];
    let run = Run::start(&[&["lookupd"], more, &server].concat());
    // Nothing may be logged of that it listens.
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    run.signal(Signal::TERM);
    run.end().await
}

#[tokio::test]
async fn the_log_has_times_and_the_level_that_is_asked_for() {
    let ended = log_of(&[]).await;
    assert_eq!(ended.lines("info: ").len(), 3, "{}", ended.stderr);
    assert_eq!(ended.stderr.lines().count(), 4, "the last one is the summary: {}", ended.stderr);
    for (flags, lines) in
        [(&["--log-level=WARN"][..], 1), (&["--log-level", "fatal"], 1), (&["-q"], 0)]
    {
        let ended = log_of(flags).await;
        ended.expect(0, &[]);
        assert_eq!(ended.stderr.lines().count(), lines, "{flags:?}: {}", ended.stderr);
    }
    failing(&["-vv"]).await.expect(1, &["trace: publisher: Waiting -> Dialing"]);
    // The error that ends the program is always there.
    let ended = failing(&["-q"]).await;
    ended.expect(1, &[]);
    assert_eq!(ended.stderr.lines().count(), ended.lines("error: no connection").len());
    failing(&["--log-level=loud"]).await.expect(2, &["write off, error, warn"]);
}

#[tokio::test]
async fn a_flag_outranks_a_variable_and_that_a_file() {
    let config = file("rank.toml", b"max_msg_size = 3\n[pub]\nexpire = 5\n");
    let config = config.to_str().unwrap();
    for (variable, flag, max) in
        [(None, None, 3), (Some("4"), None, 4), (Some("4"), Some("--max-msg-size=5"), 5)]
    {
        let mut run = nanonsq(&FAILS);
        run.env("NANONSQ_CONFIG", config).env("NANONSQ_BINARY_SIZE", "9").args(flag);
        if let Some(variable) = variable {
            run.env("NANONSQ_MAX_MSG_SIZE", variable);
        }
        let output = run.stdout(Stdio::null()).stderr(Stdio::piped()).output().await.unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        let says = format!("error: --binary-size 9 is more than --max-msg-size {max}\n");
        assert_eq!(without_time(&text), Some(&*says), "{text}");
    }
}

/// With a socket of a path and with an abstract one, as systemd may give it.
#[tokio::test]
async fn a_server_tells_systemd_when_it_is_ready() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notify");
    let name = format!("nanonsq-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    for (socket, given) in [
        (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned()),
        (UnixDatagram::bind_addr(&address).unwrap(), format!("@{name}")),
    ] {
        socket.set_nonblocking(true).unwrap();
        let socket = tokio::net::UnixDatagram::from_std(socket).unwrap();
        let told = async || {
            let mut bytes = [0; 64];
            let len = tokio::time::timeout(SOON, socket.recv(&mut bytes)).await.unwrap().unwrap();
            String::from_utf8(bytes[..len].to_vec()).unwrap()
        };
        for command in ["node", "lookupd"] {
            let mut server = nanonsq(&[command, "--tcp-address=127.0.0.1:0"]);
            server.arg("--http-address=127.0.0.1:0").env("NOTIFY_SOCKET", &given);
            let mut server = server.stderr(Stdio::null()).spawn().unwrap();
            assert_eq!(told().await, "READY=1", "{command}");
            signal(&server, Signal::TERM);
            assert_eq!(told().await, "STOPPING=1", "{command}");
            assert_eq!(code(&mut server).await, Some(0));
        }
    }
}

#[tokio::test]
async fn completions_and_man_pages_have_all_commands() {
    let commands = ["demo", "pub", "sub", "node", "lookupd"];
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ended = Run::start(&["completions", shell]).end().await;
        ended.expect(0, &[]);
        let text = ended.printed.join("\n");
        assert!(text.contains("max-unconsumed") && commands.iter().all(|name| text.contains(name)));
    }
    let directory = tempfile::tempdir().unwrap();
    Run::start(&["man", directory.path().to_str().unwrap()]).end().await.expect(0, &[]);
    let of = |command| directory.path().join(format!("nanonsq{command}.1"));
    let page = |command| std::fs::read_to_string(of(command)).unwrap();
    assert!(commands.iter().all(|name| page("").contains(&format!("nanonsq\\-{name}(1)"))));
    assert!(page("-node").contains("max\\-unconsumed"), "{}", page("-node"));
    assert!(!of("-man").exists());
    Run::start(&["man", "/no/such"]).end().await.expect(1, &["error: /no/such: No such file"]);
}

#[tokio::test]
async fn flags_of_nsqd_that_do_not_apply_are_one_error() {
    let args = ["nsqd", "-data-path=/tmp", "--tls-cert", "x", "-mem-queue-size", "5", "-mem=9"];
    let ended = Run::start(&args).end().await;
    ended.expect(
        2,
        &[
            "do not apply to nanonsq node",
            "--data-path, --mem-queue-size: messages are kept in memory only: --mem sets how much",
            "--tls-cert: there is no TLS",
        ],
    );
    assert_eq!(ended.stderr.matches("error: ").count(), 1, "{}", ended.stderr);
}
