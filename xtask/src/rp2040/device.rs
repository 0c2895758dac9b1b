//! An emulated board and its console.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::time::sleep;

use super::LIMIT;

const POLL: Duration = Duration::from_millis(5);
/// The prompt of the console.
const PROMPT: &str = "> ";

/// The LED's patterns of `docs/src/boards.md`, as numbers of changes in two seconds.
pub(crate) const LED_ON: RangeInclusive<u64> = 0..=0;
pub(crate) const LED_ONE_FLASH: RangeInclusive<u64> = 3..=5;
pub(crate) const LED_TWO_FLASHES: RangeInclusive<u64> = 7..=9;
pub(crate) const LED_FIVE_FLASHES: RangeInclusive<u64> = 17..=23;

/// A running board, killed on drop.
pub(crate) struct Device {
    node: Child,
    input: ChildStdin,
    seen: Arc<Mutex<Seen>>,
}

/// The output of the emulator so far.
#[derive(Default)]
struct Seen {
    /// Lines of the serial port, and the times at which they arrived.
    lines: Vec<(Instant, String)>,
    /// The unfinished line.
    partial: String,
    /// Messages of the emulator itself.
    messages: Vec<Value>,
    ended: bool,
}

impl Device {
    /// Boots a board with only the image in its flash. `args` are those of the emulator.
    pub(crate) fn boot(emulator: &Path, image: &Path, seed: u64, args: &[String]) -> Result<Self> {
        let mut command = Command::new("node");
        command.arg(emulator.join("main.mjs")).arg(image).args(["--json", "--seed"]);
        command.arg(seed.to_string()).args(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut node = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let input = node.stdin.take().context("stdin is piped")?;
        let output = node.stdout.take().context("stdout is piped")?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let writer = Arc::clone(&seen);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let Ok(message) = serde_json::from_str(&line) else {
                    println!("    ? {line}");
                    continue;
                };
                lock(&writer).take(message);
            }
            lock(&writer).ended = true;
        });
        Ok(Self { node, input, seen })
    }

    /// Types a line on the console.
    pub(crate) fn type_line(&mut self, line: &str) -> Result<()> {
        self.control(&format!("type {line}"))
    }

    /// Sends a command to the emulator: see main.mjs.
    pub(crate) fn control(&mut self, command: &str) -> Result<()> {
        writeln!(self.input, "{command}").context("the emulator is gone")
    }

    /// Types a line and returns the answer, up to the next prompt.
    pub(crate) async fn ask(&mut self, line: &str) -> Result<String> {
        let (from, at) = {
            let seen = lock(&self.seen);
            (seen.lines.len(), Instant::now())
        };
        self.type_line(line)?;
        let echo = format!("{PROMPT}{line}");
        loop {
            {
                let seen = lock(&self.seen);
                let mut rest = seen.lines[from..].iter().map(|(_, line)| line.as_str());
                if rest.any(|line| line == echo) {
                    let answer: Vec<_> = rest.collect();
                    if seen.partial == PROMPT {
                        return Ok(answer.join("\n"));
                    }
                }
            }
            self.check(at, || format!("no answer to {line:?}"))?;
            sleep(POLL).await;
        }
    }

    /// Waits for a line of the serial port with `text`, from `since` on; returns its time as well.
    pub(crate) async fn wait_for(&self, text: &str, since: Instant) -> Result<(Instant, String)> {
        let waiting = Instant::now();
        loop {
            let found = lock(&self.seen)
                .lines
                .iter()
                .find(|(at, line)| *at >= since && line.contains(text))
                .cloned();
            if let Some(found) = found {
                return Ok(found);
            }
            self.check(waiting, || format!("the board did not print {text:?}"))?;
            sleep(POLL).await;
        }
    }

    /// Waits until the board has started and its console shows the prompt.
    pub(crate) async fn ready(&self, since: Instant) -> Result<()> {
        self.wait_for("`help` lists the commands", since).await?;
        loop {
            if lock(&self.seen).partial == PROMPT {
                return Ok(());
            }
            self.check(since, || "no prompt".to_owned())?;
            sleep(POLL).await;
        }
    }

    /// Returns the stops of the board so far, with their reasons: `reset: watchdog`.
    pub(crate) fn stops(&self) -> Vec<String> {
        let seen = lock(&self.seen);
        let stops = seen.messages.iter().filter_map(|message| {
            let (what, why) = (message["stopped"].as_str()?, message["why"].as_str()?);
            Some(format!("{what}: {why}"))
        });
        stops.collect()
    }

    /// Returns the numbers of the console's `stats`.
    pub(crate) async fn numbers(&mut self) -> Result<BTreeMap<String, u64>> {
        let answer = self.ask("stats").await?;
        let numbers = answer.split_whitespace().filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((name.to_owned(), number.parse().ok()?))
        });
        Ok(numbers.collect())
    }

    /// Returns the counts of the emulator itself.
    pub(crate) async fn counts(&mut self) -> Result<Value> {
        let before = lock(&self.seen).messages.len();
        self.control("stats")?;
        let since = Instant::now();
        loop {
            let found = lock(&self.seen).messages[before..]
                .iter()
                .find(|message| message["stats"].is_object())
                .cloned();
            if let Some(found) = found {
                return Ok(found["stats"].clone());
            }
            self.check(since, || "the emulator does not answer".to_owned())?;
            sleep(POLL).await;
        }
    }

    /// Waits until the LED changes this often in two seconds; with [`LED_ON`] it must be on.
    pub(crate) async fn led(&mut self, changes: RangeInclusive<u64>) -> Result<()> {
        let since = Instant::now();
        loop {
            let led = &self.counts().await?["led"];
            let is_right = led["changes"].as_u64().is_some_and(|count| changes.contains(&count));
            // Without changes, it must be on.
            if is_right && (changes != LED_ON || led["isOn"] == true) {
                return Ok(());
            }
            self.check(since, || format!("the LED has {led}, not {changes:?} changes"))?;
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Fails if the emulator has ended or the time limit since `since` is over.
    fn check(&self, since: Instant, what: impl Fn() -> String) -> Result<()> {
        if lock(&self.seen).ended {
            bail!("{}: the emulator has ended", what());
        }
        ensure!(since.elapsed() < LIMIT, "{} in {LIMIT:?}", what());
        Ok(())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.node.kill();
        let _ = self.node.wait();
    }
}

impl Seen {
    fn take(&mut self, message: Value) {
        let Some(serial) = message["serial"].as_str() else {
            if message["stats"].is_null() {
                println!("    = {message}");
            }
            // A reset has cut the unfinished line.
            if message["stopped"].is_string() && !self.partial.is_empty() {
                self.end_line();
            }
            self.messages.push(message);
            return;
        };
        for c in serial.chars() {
            match c {
                '\n' => self.end_line(),
                '\r' => {}
                c => self.partial.push(c),
            }
            // The terminal has erased the line.
            if self.partial.ends_with("\x1b[K") {
                self.partial.clear();
            }
        }
    }

    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.partial);
        println!("    | {line}");
        self.lines.push((Instant::now(), line));
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
