//! What is kept over a reset about why it came: a few words of RAM that a start does not clear.
//!
//! Without power they are garbage, which the checksum tells.

use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc, NoTable};
use heapless::String;
use serde::Serialize;

/// How many words a [`Record`] takes.
pub const WORDS: usize = 4 + TEXT_WORDS + 1;
/// Bytes of a panic's message that are kept.
pub const CRASH_TEXT_MAX: usize = TEXT_WORDS * 4;
/// Room for a crash report as JSON: every character of the text may be escaped.
pub const CRASH_REPORT_MAX: usize = 160 + 6 * CRASH_TEXT_MAX;

const TEXT_WORDS: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"NSQC");
const CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// The words, wherever the board keeps them.
pub type Record = [u32; WORDS];

/// Why the device started anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A panic or a fault; the text says where.
    Panic,
    /// A loop made no progress; the text says which.
    Stall,
    /// Nobody fed the watchdog.
    Watchdog,
}

/// What became of the start before this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// Why it ended.
    pub reason: Reason,
    /// How many ended so since the device has power, this one too.
    pub count: u32,
    /// When, since it had started; after [`Reason::Watchdog`] when it was last seen alive.
    pub uptime_s: u32,
    /// What is known.
    pub text: String<CRASH_TEXT_MAX>,
}

/// [`Crash`] as it is published.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CrashReport<'a> {
    /// Which device.
    pub device: &'a str,
    /// Why it started anew.
    pub crash: Reason,
    /// How often that happened since it has power.
    pub crashes: u32,
    /// When it happened, since the start before.
    pub crash_uptime_s: u32,
    /// What is known.
    pub text: &'a str,
}

impl Crash {
    /// As it is published.
    pub fn report<'a>(&'a self, device: &'a str) -> CrashReport<'a> {
        CrashReport {
            device,
            crash: self.reason,
            crashes: self.count,
            crash_uptime_s: self.uptime_s,
            text: &self.text,
        }
    }
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.reason {
            Reason::Panic => "panic",
            Reason::Stall => "stall",
            Reason::Watchdog => "watchdog",
        };
        write!(f, "{what} after {} s, number {}: {}", self.uptime_s, self.count, self.text)
    }
}

/// What a record can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The device runs, or was reset from outside while it did.
    Running = 1,
    /// It was told to start anew.
    Leaving = 2,
    Panicked = 3,
    Stalled = 4,
}

/// At the start: what became of the one before, and a record for this one. `by_watchdog` says
/// whether the chip was reset by its watchdog.
pub fn start(record: &mut Record, by_watchdog: bool) -> Option<Crash> {
    let before = read(record);
    let count = before.as_ref().map_or(0, |(_, crash)| crash.count);
    let crash = match before {
        Some((State::Running, crash)) if by_watchdog => Some(Crash {
            reason: Reason::Watchdog,
            count: count.saturating_add(1),
            text: String::try_from("nobody fed the watchdog").unwrap_or_default(),
            ..crash
        }),
        Some((State::Panicked | State::Stalled, crash)) => Some(crash),
        Some((State::Running | State::Leaving, _)) | None => None,
    };
    let count = crash.as_ref().map_or(count, |crash| crash.count);
    write(record, State::Running, count, 0, "");
    crash
}

/// The device is alive.
pub fn alive(record: &mut Record, uptime_s: u32) {
    let count = read(record).map_or(0, |(_, crash)| crash.count);
    write(record, State::Running, count, uptime_s, "");
}

/// The device is about to start anew because it was told to.
pub fn leaving(record: &mut Record) {
    let count = read(record).map_or(0, |(_, crash)| crash.count);
    write(record, State::Leaving, count, 0, "");
}

/// The device is about to start anew because of this.
pub fn failed(record: &mut Record, reason: Reason, uptime_s: u32, what: fmt::Arguments<'_>) {
    let count = read(record).map_or(0, |(_, crash)| crash.count).saturating_add(1);
    let mut text = Cut(String::new());
    // Cut off where it does not fit.
    let _ = fmt::write(&mut text, what);
    let state = match reason {
        Reason::Panic => State::Panicked,
        Reason::Stall => State::Stalled,
        Reason::Watchdog => State::Running,
    };
    write(record, state, count, uptime_s, &text.0);
}

/// The name of a source file without where its crate lies on the machine that built it.
pub fn short(file: &str) -> &str {
    let crates = file.rfind("/src/").and_then(|src| file.get(..src)?.rfind('/'));
    crates.and_then(|at| file.get(at + 1..)).unwrap_or(file)
}

/// Takes what fits, and what is plain text.
struct Cut(String<CRASH_TEXT_MAX>);

impl fmt::Write for Cut {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            self.0.push(if c.is_control() { ' ' } else { c }).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

fn write(record: &mut Record, state: State, count: u32, uptime_s: u32, text: &str) {
    *record = [0; WORDS];
    record[0] = MAGIC;
    record[1] = state as u32 | (text.len() as u32) << 8;
    record[2] = count;
    record[3] = uptime_s;
    for (word, bytes) in record[4..4 + TEXT_WORDS].iter_mut().zip(text.as_bytes().chunks(4)) {
        let mut four = [0; 4];
        four[..bytes.len()].copy_from_slice(bytes);
        *word = u32::from_le_bytes(four);
    }
    record[WORDS - 1] = checksum(record);
}

fn read(record: &Record) -> Option<(State, Crash)> {
    if record[0] != MAGIC || record[WORDS - 1] != checksum(record) {
        return None;
    }
    let (state, reason) = match record[1] & 0xFF {
        1 => (State::Running, Reason::Watchdog),
        2 => (State::Leaving, Reason::Watchdog),
        3 => (State::Panicked, Reason::Panic),
        4 => (State::Stalled, Reason::Stall),
        _ => return None,
    };
    let length = (record[1] >> 8) as usize;
    let mut bytes = heapless::Vec::<u8, CRASH_TEXT_MAX>::new();
    for word in &record[4..4 + TEXT_WORDS] {
        // They are exactly as many.
        let _ = bytes.extend_from_slice(&word.to_le_bytes());
    }
    let text = core::str::from_utf8(bytes.get(..length)?).ok()?;
    let text = String::try_from(text).ok()?;
    Some((state, Crash { reason, count: record[2], uptime_s: record[3], text }))
}

fn checksum(record: &Record) -> u32 {
    let mut digest = CRC.digest();
    for word in &record[..WORDS - 1] {
        digest.update(&word.to_le_bytes());
    }
    digest.finalize()
}
