//! Runs a firmware in QEMU one instruction at a time, and counts the instructions of a message and
//! the depth of the stack.
//!
//! Functions named `bl_*`, which are platform and peer, and all that they call do not count.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};

use super::image::Image;
use crate::firmware;

/// Prefix of functions of platform and peer.
const PLATFORM: &str = "bl_";
/// Messages at the start of each way that are not measured: the first one follows the connection.
const SKIP: usize = 2;
/// Messages that are measured.
const TAKE: usize = 9;
/// Messages of each way to be measured, as in `tests/sizes/src/peer.rs`.
const STEADY: usize = 12;

pub(crate) struct Trace {
    /// Instructions of one message, the median of nine, when the answer is there at once; when it
    /// comes one wake later; and at once, with the message at an odd address.
    pub(crate) per_message: u64,
    pub(crate) late: u64,
    pub(crate) odd: u64,
    /// Instructions of every message, in order, from boot.
    pub(crate) messages: Vec<u64>,
    /// Bytes of stack at its deepest.
    pub(crate) stack: u64,
    /// The functions on the deepest stack, with their bytes, outermost first.
    pub(crate) deepest: Vec<(String, u64)>,
    /// Instructions of one message by function.
    pub(crate) profile: Vec<(String, u64)>,
    /// Calls of the platform for one message.
    pub(crate) calls: BTreeMap<String, u64>,
}

/// Runs a firmware to its end, which must be successful.
pub(crate) fn run(image: &Image) -> Result<Trace> {
    let mut qemu = firmware::qemu()?;
    qemu.args(["-M", "microbit", "-display", "none", "-serial", "none", "-monitor", "none"]);
    qemu.args(["-semihosting-config", "enable=on,target=native", "-d", "cpu,nochain"]);
    if firmware::qemu_version()? < (8, 1) {
        qemu.arg("-singlestep");
    } else {
        qemu.args(["-accel", "tcg,one-insn-per-tb=on"]);
    }
    qemu.args(["-dfilter", &filter(image)]);
    qemu.arg("-kernel").arg(&image.path).stdin(Stdio::null()).stderr(Stdio::piped());
    let mut child = qemu.spawn().with_context(|| format!("cannot run {qemu:?}"))?;
    let lines = BufReader::new(child.stderr.take().context("stderr is piped")?).split(b'\n');

    let mut machine = Machine::new(image);
    let mut other = String::new();
    for line in lines {
        let line = line?;
        if let Some(registers) = Registers::parse(&line) {
            machine.step(registers);
        } else if !line.starts_with(b"R") && !line.starts_with(b"XPSR") {
            other.push_str(&String::from_utf8_lossy(&line));
        }
    }
    let status = child.wait()?;
    ensure!(status.success(), "{}: {status} {other}", image.path.display());
    machine.finish().with_context(|| format!("{} {other}", image.path.display()))
}

/// Returns the address ranges to log: all but the bodies of platform and peer, which are most of
/// the run.
fn filter(image: &Image) -> String {
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for function in image.functions() {
        let (start, end) = (function.address, function.address + function.size);
        let (start, end) = match &*function.name {
            // The first instruction shows the call.
            name if name.starts_with(PLATFORM) => (start, start + 1),
            name if name.contains("nanonsq_sizes::bl::") => continue,
            _ => (start, end),
        };
        match ranges.last_mut() {
            // Literals and padding lie between functions.
            Some(last) if start <= last.1 + 3 => last.1 = end,
            _ => ranges.push((start, end)),
        }
    }
    let ranges: Vec<_> =
        ranges.iter().map(|(start, end)| format!("{start:#x}..{:#x}", end - 1)).collect();
    ranges.join(",")
}

/// The registers of a line of QEMU's log.
struct Registers {
    sp: u64,
    lr: u64,
    pc: u64,
}

impl Registers {
    /// Parses a line such as `R12=00000000 R13=20003ff8 R14=000000c5 R15=00002ae6`.
    fn parse(line: &[u8]) -> Option<Self> {
        let line = std::str::from_utf8(line).ok()?;
        let mut words = line.strip_prefix("R12=")?.split_ascii_whitespace().skip(1);
        let mut register = |name| {
            let value = words.next()?.strip_prefix(name)?;
            u64::from_str_radix(value, 16).ok()
        };
        Some(Self { sp: register("R13=")?, lr: register("R14=")?, pc: register("R15=")? })
    }
}

struct Machine<'i> {
    image: &'i Image,
    /// The current calls.
    frames: Vec<Frame>,
    /// In a `bl_*` function: its return address and stack pointer.
    outside: Option<(u64, u64)>,
    top: u64,
    bottom: u64,
    deepest: Vec<(String, u64)>,
    /// The counts of the current message.
    now: Message,
    messages: Vec<Message>,
}

#[derive(Default)]
struct Message {
    instructions: u64,
    /// Instructions by function.
    profile: BTreeMap<usize, u64>,
    calls: BTreeMap<String, u64>,
}

struct Frame {
    function: usize,
    sp: u64,
    returns_to: u64,
}

impl<'i> Machine<'i> {
    fn new(image: &'i Image) -> Self {
        Self {
            image,
            frames: Vec::new(),
            outside: None,
            top: 0,
            bottom: u64::MAX,
            deepest: Vec::new(),
            now: Message::default(),
            messages: Vec::new(),
        }
    }

    fn step(&mut self, Registers { sp, lr, pc }: Registers) {
        match self.outside {
            Some(back) if back == (pc, sp) => self.outside = None,
            Some(_) => return,
            None => {}
        }
        while self.frames.last().is_some_and(|frame| (frame.returns_to, frame.sp) == (pc, sp)) {
            self.frames.pop();
        }
        let Some(index) = self.image.function_at(pc) else { return };
        let function = &self.image.functions()[index];
        if function.address == pc {
            if function.name.starts_with(PLATFORM) {
                *self.now.calls.entry(function.name.clone()).or_default() += 1;
                if function.name == "bl_done" {
                    self.messages.push(std::mem::take(&mut self.now));
                }
                self.outside = Some((lr & !1, sp));
                return;
            }
            self.frames.push(Frame { function: index, sp, returns_to: lr & !1 });
        }
        self.now.instructions += 1;
        *self.now.profile.entry(index).or_default() += 1;
        self.top = self.top.max(sp);
        if sp < self.bottom {
            self.bottom = sp;
            let ends = self.frames.iter().skip(1).map(|frame| frame.sp).chain([sp]);
            let frames = self.frames.iter().zip(ends);
            self.deepest =
                frames.map(|(frame, end)| (self.name(frame.function), frame.sp - end)).collect();
        }
    }

    fn finish(self) -> Result<Trace> {
        ensure!(self.messages.len() >= 3 * STEADY, "only {} messages", self.messages.len());
        let median = |from: usize| {
            let mut taken: Vec<&Message> = self.messages[from + SKIP..][..TAKE].iter().collect();
            taken.sort_by_key(|message| message.instructions);
            taken[TAKE / 2]
        };
        let (late, odd) = (median(STEADY).instructions, median(2 * STEADY).instructions);
        let median = median(0);
        let mut profile: Vec<_> =
            median.profile.iter().map(|(&index, &count)| (self.name(index), count)).collect();
        profile.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        Ok(Trace {
            per_message: median.instructions,
            late,
            odd,
            messages: self.messages.iter().map(|message| message.instructions).collect(),
            stack: self.top - self.bottom,
            profile,
            calls: median.calls.clone(),
            deepest: self.deepest,
        })
    }

    fn name(&self, function: usize) -> String {
        self.image.functions()[function].name.clone()
    }
}
