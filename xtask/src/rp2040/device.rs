//! An emulated board, and its console.

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
/// What the console writes before it waits for a line.
const PROMPT: &str = "> ";

/// What the README says of the LED, as changes in two seconds.
pub(crate) const LED_ON: RangeInclusive<u64> = 0..=0;
pub(crate) const LED_ONE_FLASH: RangeInclusive<u64> = 3..=5;
pub(crate) const LED_TWO_FLASHES: RangeInclusive<u64> = 7..=9;
pub(crate) const LED_FIVE_FLASHES: RangeInclusive<u64> = 17..=23;

/// A board that runs. Dropping it pulls the plug for good.
pub(crate) struct Device {
    node: Child,
    input: ChildStdin,
    seen: Arc<Mutex<Seen>>,
}

/// What came from it so far.
#[derive(Default)]
struct Seen {
    /// Lines of its serial port, and when they got here.
    lines: Vec<(Instant, String)>,
    /// The line that has no end yet.
    partial: String,
    /// Answers of the emulator itself.
    messages: Vec<Value>,
    ended: bool,
}

impl Device {
    /// Switches it on, with nothing in its flash but the image. `args` are the emulator's.
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
        self.tell(&format!("type {line}"))
    }

    /// Has the emulator do something: its commands are in main.mjs.
    pub(crate) fn tell(&mut self, command: &str) -> Result<()> {
        writeln!(self.input, "{command}").context("the emulator is gone")
    }

    /// Types a line and waits for the answer, up to the next prompt.
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

    /// Waits for a line with `text` in it that came after `since`; when that was, and the line.
    pub(crate) async fn says(&self, text: &str, since: Instant) -> Result<(Instant, String)> {
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
            self.check(waiting, || format!("the board did not say {text:?}"))?;
            sleep(POLL).await;
        }
    }

    /// Waits until it has started, has a terminal and is ready for a line.
    pub(crate) async fn ready(&self, since: Instant) -> Result<()> {
        self.says("`help` lists the commands", since).await?;
        loop {
            if lock(&self.seen).partial == PROMPT {
                return Ok(());
            }
            self.check(since, || "no prompt".to_owned())?;
            sleep(POLL).await;
        }
    }

    /// Why it stopped, each time so far: `reset: watchdog`.
    pub(crate) fn stops(&self) -> Vec<String> {
        let seen = lock(&self.seen);
        let stops = seen.messages.iter().filter_map(|message| {
            let (what, why) = (message["stopped"].as_str()?, message["why"].as_str()?);
            Some(format!("{what}: {why}"))
        });
        stops.collect()
    }

    /// The numbers that `stats` says.
    pub(crate) async fn numbers(&mut self) -> Result<BTreeMap<String, u64>> {
        let said = self.ask("stats").await?;
        let numbers = said.split_whitespace().filter_map(|word| {
            let (name, number) = word.split_once('=')?;
            Some((name.to_owned(), number.parse().ok()?))
        });
        Ok(numbers.collect())
    }

    /// The emulator's own numbers.
    pub(crate) async fn counts(&mut self) -> Result<Value> {
        let before = lock(&self.seen).messages.len();
        self.tell("stats")?;
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

    /// Waits until the LED says this: whether it may be on when it does not change, and how often
    /// it changes in two seconds.
    pub(crate) async fn led(&mut self, changes: RangeInclusive<u64>) -> Result<()> {
        let since = Instant::now();
        loop {
            let led = &self.counts().await?["led"];
            let is_right = led["changes"].as_u64().is_some_and(|count| changes.contains(&count));
            // On all the time, if it does not change.
            if is_right && (changes != LED_ON || led["isOn"] == true) {
                return Ok(());
            }
            self.check(since, || format!("the LED has {led}, not {changes:?} changes"))?;
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// Fails if there is no use in waiting any longer.
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
            // A line that a reset cut off has no end any more.
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
            // What stood in the line was erased.
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
