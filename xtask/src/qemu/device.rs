//! QEMU with the firmware in it.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::time::sleep;

use crate::firmware;

const POLL: Duration = Duration::from_millis(5);
/// QEMU's name of the network cable.
const CABLE: &str = "cable";
/// And of what can hold back what is on it.
const HOLD: &str = "hold";

/// A device that runs. Dropping it pulls the plug.
pub(crate) struct Device {
    qemu: Child,
    decoder: Option<Child>,
    log: Arc<Mutex<Vec<Line>>>,
    dir: TempDir,
    reader: JoinHandle<()>,
    booted: Instant,
}

/// What it logged, and when it got here.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) text: String,
}

impl Device {
    /// Boots it. `args` are its settings; `defmt`: its log is frames for `defmt-print`.
    pub(crate) fn boot(kernel: &Path, args: &[(&str, String)], defmt: bool) -> Result<Self> {
        Self::boot_reachable(kernel, args, &[], defmt)
    }

    /// Boots it where this machine reaches it: its ports by addresses on loopback.
    pub(crate) fn boot_reachable(
        kernel: &Path,
        args: &[(&str, String)],
        forwards: &[(SocketAddr, u16)],
        defmt: bool,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mut command = firmware::qemu()?;
        command.args(["-M", "mps2-an385", "-display", "none", "-serial", "none"]);
        command.args(["-monitor", "none"]);
        let forwards: String =
            forwards.iter().map(|(from, to)| format!(",hostfwd=tcp:{from}-:{to}")).collect();
        command.arg("-nic").arg(format!("user,id={CABLE},model=lan9118{forwards}"));
        command.arg("-object").arg(format!(
            "filter-buffer,id={HOLD},netdev={CABLE},queue=all,interval={},status=off",
            u32::MAX
        ));
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", monitor(&dir)));
        let mut semihosting = "enable=on,target=native,arg=nanonsq".to_owned();
        for (key, value) in args {
            // A comma is QEMU's own, unless there are two.
            semihosting += &format!(",arg={key}={}", value.replace(',', ",,"));
        }
        command.arg("-semihosting-config").arg(semihosting).arg("-kernel").arg(kernel);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut qemu = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let output = qemu.stdout.take().context("stdout is piped")?;

        let log = Arc::new(Mutex::new(Vec::new()));
        let (decoder, reader) = if defmt {
            let mut print = Command::new("defmt-print");
            print.arg("-e").arg(kernel).stdin(output).stdout(Stdio::piped());
            let Ok(mut print) = print.spawn() else {
                let _ = qemu.kill();
                bail!("`defmt-print` was not found: run `cargo install defmt-print`");
            };
            let output = print.stdout.take().context("stdout is piped")?;
            (Some(print), follow(output, &log))
        } else {
            (None, follow(output, &log))
        };
        Ok(Self { qemu, decoder, log, dir, reader, booted: Instant::now() })
    }

    /// Waits for its end; everything it logged is there then.
    pub(crate) async fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let waiting = Instant::now();
        while self.runs()? {
            ensure!(waiting.elapsed() < limit, "the device still runs after {limit:?}");
            sleep(POLL).await;
        }
        // The readers end when they have read everything.
        if let Some(decoder) = &mut self.decoder {
            decoder.wait()?;
        }
        while !self.reader.is_finished() {
            sleep(POLL).await;
        }
        Ok(self.qemu.wait()?)
    }

    pub(crate) fn runs(&mut self) -> Result<bool> {
        Ok(self.qemu.try_wait()?.is_none())
    }

    /// When it was switched on.
    pub(crate) fn booted(&self) -> Instant {
        self.booted
    }

    /// Waits for a line with `text` in it that came after `since`.
    pub(crate) async fn says(&self, text: &str, since: Instant, limit: Duration) -> Result<Line> {
        let waiting = Instant::now();
        loop {
            let found = |line: &&Line| line.at >= since && line.text.contains(text);
            if let Some(line) = self.lines().iter().find(found) {
                return Ok(line.clone());
            }
            ensure!(waiting.elapsed() < limit, "the device did not say {text:?} in {limit:?}");
            sleep(POLL).await;
        }
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// The numbers that it said at its end, as `name=number`.
    pub(crate) fn numbers(&self) -> BTreeMap<String, u64> {
        let lines = self.lines();
        let words = lines.iter().flat_map(|line| line.text.split_whitespace());
        words
            .filter_map(|word| {
                let (name, number) = word.split_once('=')?;
                Some((name.to_owned(), number.parse().ok()?))
            })
            .collect()
    }

    /// Puts the network cable in or pulls it.
    pub(crate) fn set_cable(&self, plugged: bool) -> Result<()> {
        let arguments = json!({"name": CABLE, "up": plugged});
        self.command(json!({"execute": "set_link", "arguments": arguments}))
    }

    /// Keeps all frames in between, as a switch might that hangs: the link is up, but nothing
    /// comes. Lets them pass in the end.
    pub(crate) fn hold_frames(&self, hold: bool) -> Result<()> {
        let status = if hold { "on" } else { "off" };
        let path = format!("/objects/{HOLD}");
        let arguments = json!({"path": path, "property": "status", "value": status});
        self.command(json!({"execute": "qom-set", "arguments": arguments}))
    }

    /// Has QEMU's monitor do something.
    fn command(&self, command: Value) -> Result<()> {
        let stream = UnixStream::connect(monitor(&self.dir)).context("QEMU's monitor")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut replies = BufReader::new(stream.try_clone()?).lines();
        let mut next = || -> Result<Value> {
            let line = replies.next().context("QEMU's monitor hung up")??;
            Ok(serde_json::from_str(&line)?)
        };
        // It greets first.
        next()?;
        for command in [json!({"execute": "qmp_capabilities"}), command] {
            writeln!(&stream, "{command}")?;
            let mut reply = next()?;
            // What happens meanwhile comes in between.
            while reply.get("event").is_some() {
                reply = next()?;
            }
            ensure!(reply.get("return").is_some(), "{command}: {reply}");
        }
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if let Some(decoder) = &mut self.decoder {
            let _ = decoder.kill();
            let _ = decoder.wait();
        }
    }
}

fn monitor(dir: &TempDir) -> String {
    dir.path().join("monitor").display().to_string()
}

/// Prints and keeps what is read.
fn follow(output: impl Read + Send + 'static, log: &Arc<Mutex<Vec<Line>>>) -> JoinHandle<()> {
    let log = Arc::clone(log);
    thread::spawn(move || {
        for text in BufReader::new(output).lines().map_while(Result::ok) {
            println!("    | {text}");
            let line = Line { at: Instant::now(), text };
            log.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(line);
        }
    })
}
