//! A device: QEMU with the firmware.

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
/// QEMU's id of the network cable.
const CABLE: &str = "cable";
/// QEMU's id of the filter that can hold back frames.
const HOLD: &str = "hold";

/// A running device, killed on drop.
pub(crate) struct Device {
    qemu: Child,
    decoder: Option<Child>,
    log: Arc<Mutex<Vec<Line>>>,
    dir: TempDir,
    reader: JoinHandle<()>,
    booted: Instant,
}

/// A line of the device's log, and the time at which it arrived.
#[derive(Clone)]
pub(crate) struct Line {
    pub(crate) at: Instant,
    pub(crate) text: String,
}

impl Device {
    /// Boots a device. `args` are its settings; with `defmt` its log is decoded by `defmt-print`.
    pub(crate) fn boot(kernel: &Path, args: &[(&str, String)], defmt: bool) -> Result<Self> {
        Self::boot_reachable(kernel, args, &[], defmt)
    }

    /// Boots a device whose ports are forwarded from addresses on loopback.
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
            // QEMU needs a comma doubled.
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

    /// Waits until the device has ended and its log is complete.
    pub(crate) async fn end(&mut self, limit: Duration) -> Result<ExitStatus> {
        let waiting = Instant::now();
        while self.runs()? {
            ensure!(waiting.elapsed() < limit, "the device still runs after {limit:?}");
            sleep(POLL).await;
        }
        // Decoder and reader end once they have read the whole log.
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

    /// Returns the time at which the device was booted.
    pub(crate) fn booted(&self) -> Instant {
        self.booted
    }

    /// Waits for a line of the log with `text`, from `since` on.
    pub(crate) async fn wait_for(
        &self,
        text: &str,
        since: Instant,
        limit: Duration,
    ) -> Result<Line> {
        let waiting = Instant::now();
        loop {
            let found = |line: &&Line| line.at >= since && line.text.contains(text);
            if let Some(line) = self.lines().iter().find(found) {
                return Ok(line.clone());
            }
            ensure!(waiting.elapsed() < limit, "the device did not log {text:?} in {limit:?}");
            sleep(POLL).await;
        }
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        self.log.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// Returns the numbers of the log with the form `name=number`.
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

    /// Plugs in the network cable or pulls it.
    pub(crate) fn set_cable(&self, plugged: bool) -> Result<()> {
        let arguments = json!({"name": CABLE, "up": plugged});
        self.command(json!({"execute": "set_link", "arguments": arguments}))
    }

    /// Holds back all frames while the link stays up, as a hanging switch might, or releases them.
    pub(crate) fn hold_frames(&self, hold: bool) -> Result<()> {
        let status = if hold { "on" } else { "off" };
        let path = format!("/objects/{HOLD}");
        let arguments = json!({"path": path, "property": "status", "value": status});
        self.command(json!({"execute": "qom-set", "arguments": arguments}))
    }

    /// Runs a command in QEMU's monitor.
    fn command(&self, command: Value) -> Result<()> {
        let stream = UnixStream::connect(monitor(&self.dir)).context("QEMU's monitor")?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut replies = BufReader::new(stream.try_clone()?).lines();
        let mut next = || -> Result<Value> {
            let line = replies.next().context("QEMU's monitor closed the connection")??;
            Ok(serde_json::from_str(&line)?)
        };
        // The monitor sends a greeting first.
        next()?;
        for command in [json!({"execute": "qmp_capabilities"}), command] {
            writeln!(&stream, "{command}")?;
            let mut reply = next()?;
            // Events may come before the reply.
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

/// Prints and records the lines of an output.
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
