//! The clients that are compared. Each is a program with the same command line; see
//! `tests/peers/cmd/go-nsq-bench`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::nsqd::{Nsqd, TOPIC};
use super::{Mode, REFERENCE, server};
use crate::project;

pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) program: PathBuf,
    args: &'static [&'static str],
    kind: Kind,
}

/// The kind of a contender, which determines its modes.
#[derive(Clone, Copy)]
enum Kind {
    /// A client: all modes.
    Client,
    /// A client whose caller makes the batches: flood only.
    ByHand,
    /// The lower bound without a client, with one write and one read a message: sync only.
    BareSocket,
}

/// The result that a client printed.
pub(crate) struct Measurement {
    pub(crate) messages: u64,
    pub(crate) seconds: f64,
    pub(crate) rate: f64,
}

/// Builds all clients that `only` does not exclude.
pub(crate) fn build(only: &[String]) -> Result<Vec<Contender>> {
    let wanted =
        |name: &str| only.is_empty() || only.iter().any(|start| name.starts_with(start.as_str()));
    let client = |name, program: &Path| Contender {
        name,
        program: program.to_owned(),
        args: &[],
        kind: Kind::Client,
    };
    let tests = project::root().join("tests");
    let mut contenders = Vec::new();

    let nanonsq = tests.join("bench-nanonsq/Cargo.toml");
    if !nanonsq.exists() {
        eprintln!("{} does not exist: measuring without nanonsq", nanonsq.display());
    } else if wanted("nanonsq") {
        let program = project::build_release(&nanonsq, "nanonsq-bench", None)?;
        contenders.push(client("nanonsq", &program));
        contenders.push(Contender { kind: Kind::BareSocket, ..client("a bare socket", &program) });
    }

    let go_nsq = server::peer("go-nsq-bench")?;
    contenders.push(client(REFERENCE, &go_nsq));
    contenders.push(Contender { kind: Kind::ByHand, ..client("go-nsq, MPUB of 100", &go_nsq) });

    if wanted("tokio-nsq") {
        let manifest = tests.join("bench-tokio-nsq/Cargo.toml");
        // Under the root's target directory, where `cargo clean` finds it.
        let target = project::root().join("target/bench-tokio-nsq");
        let program = project::build_release(&manifest, "bench-tokio-nsq", Some(&target))?;
        contenders.push(client("tokio-nsq", &program));
        // By default it flushes every 250 ms, which dominates synchronous publishing.
        let args = &["--flush-interval-ms", "1"];
        contenders.push(Contender { args, ..client("tokio-nsq, flush 1 ms", &program) });
    }
    Ok(contenders)
}

impl Contender {
    /// Returns the client's name of `mode`, if the client takes part in it.
    pub(crate) fn client_mode(&self, mode: Mode) -> Option<&'static str> {
        match (self.kind, mode) {
            (Kind::Client, Mode::SyncOneCore | Mode::Sync) => Some("sync"),
            (Kind::Client, Mode::Flood) => Some("flood"),
            (Kind::Client, Mode::Consume) => Some("consume"),
            (Kind::ByHand, Mode::Flood) => Some("batch"),
            (Kind::BareSocket, Mode::SyncOneCore | Mode::Sync) => Some("bare"),
            (Kind::ByHand, Mode::SyncOneCore | Mode::Sync | Mode::Consume)
            | (Kind::BareSocket, Mode::Flood | Mode::Consume) => None,
        }
    }

    pub(crate) fn run(
        &self,
        mut command: Command,
        nsqd: &Nsqd,
        mode: &str,
        (count, size): (u64, usize),
        limit: Duration,
    ) -> Result<Measurement> {
        command.args(["--topic", TOPIC, "--mode", mode, "--nsqd"]).arg(nsqd.0.tcp.to_string());
        command.args(["--count", &count.to_string(), "--size", &size.to_string()]).args(self.args);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let deadline = Instant::now() + limit;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{command:?} still ran after {limit:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{command:?}: {}", output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        let printed: Value =
            serde_json::from_str(&text).with_context(|| format!("{command:?} printed {text:?}"))?;
        let measurement = || {
            Some(Measurement {
                messages: printed["messages"].as_u64()?,
                seconds: printed["seconds"].as_f64()?,
                rate: printed["rate"].as_f64()?,
            })
        };
        measurement().with_context(|| format!("{command:?} printed {text:?}"))
    }
}
