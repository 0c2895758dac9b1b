//! The reason of a reset, in a few words of RAM that a start does not clear.
//!
//! After a loss of power the words are garbage, which the checksum detects.

use core::fmt;

use crc::{CRC_32_ISO_HDLC, Crc, NoTable};
use heapless::String;
use serde::Serialize;

/// Length of a [`Record`] in words.
pub const WORDS: usize = 4 + TEXT_WORDS + 1;
/// Bytes of a panic message that are kept.
pub const CRASH_TEXT_MAX: usize = TEXT_WORDS * 4;
/// The longest crash report as JSON, in bytes: every character of the text may be escaped.
pub const CRASH_REPORT_MAX: usize = 160 + 6 * CRASH_TEXT_MAX;

const TEXT_WORDS: usize = 32;
const MAGIC: u32 = u32::from_le_bytes(*b"NSQC");
const CRC: Crc<u32, NoTable> = Crc::<u32, NoTable>::new(&CRC_32_ISO_HDLC);

/// The record. The board keeps it in RAM that a start does not clear.
pub type Record = [u32; WORDS];

/// Why the device was reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    /// A panic or a fault; the text has the place.
    Panic,
    /// A part made no progress; the text names it.
    Stall,
    /// The whole device hung, and the watchdog expired.
    Watchdog,
}

/// How the previous run of the device ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Crash {
    /// Why the device was reset.
    pub reason: Reason,
    /// Number of crashes since power-on, including this one.
    pub count: u32,
    /// Uptime of the crash in seconds; for [`Reason::Watchdog`] that of the last [`alive`].
    pub uptime_s: u32,
    /// The details.
    pub text: String<CRASH_TEXT_MAX>,
}

/// [`Crash`] as it is published.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct CrashReport<'a> {
    /// The device's name.
    pub device: &'a str,
    /// Why the device was reset.
    pub crash: Reason,
    /// Number of crashes since power-on.
    pub crashes: u32,
    /// Uptime of the crash in seconds.
    pub crash_uptime_s: u32,
    /// The details.
    pub text: &'a str,
}

impl Crash {
    /// Returns the crash report of the device with this name.
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

/// The state of the device in a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Running, or reset from outside while running.
    Running = 1,
    /// Rebooting on request.
    Leaving = 2,
    Panicked = 3,
    Stalled = 4,
}

/// Returns how the previous run crashed, if it did, and begins the record of this run. To be called
/// first. `by_watchdog` is true if the watchdog reset the chip.
pub fn start(record: &mut Record, by_watchdog: bool) -> Option<Crash> {
    let before = read(record);
    let count = before.as_ref().map_or(0, |(_, crash)| crash.count);
    let crash = match before {
        Some((State::Running, crash)) if by_watchdog => Some(Crash {
            reason: Reason::Watchdog,
            count: count.saturating_add(1),
            text: String::try_from("the watchdog was not fed").unwrap_or_default(),
            ..crash
        }),
        Some((State::Panicked | State::Stalled, crash)) => Some(crash),
        Some((State::Running | State::Leaving, _)) | None => None,
    };
    let count = crash.as_ref().map_or(count, |crash| crash.count);
    write(record, State::Running, count, 0, "");
    crash
}

/// Records the uptime of a running device.
pub fn alive(record: &mut Record, uptime_s: u32) {
    let count = read(record).map_or(0, |(_, crash)| crash.count);
    write(record, State::Running, count, uptime_s, "");
}

/// Records that the device reboots on request.
pub fn leaving(record: &mut Record) {
    let count = read(record).map_or(0, |(_, crash)| crash.count);
    write(record, State::Leaving, count, 0, "");
}

/// Records a failure before the reset; counts as a crash.
pub fn failed(record: &mut Record, reason: Reason, uptime_s: u32, what: fmt::Arguments<'_>) {
    let count = read(record).map_or(0, |(_, crash)| crash.count).saturating_add(1);
    let mut text = Cut(String::new());
    // A long text is cut.
    let _ = fmt::write(&mut text, what);
    let state = match reason {
        Reason::Panic => State::Panicked,
        Reason::Stall => State::Stalled,
        Reason::Watchdog => State::Running,
    };
    write(record, state, count, uptime_s, &text.0);
}

/// Returns the path of a source file from the directory of its crate on.
pub fn short(file: &str) -> &str {
    let crates = file.rfind("/src/").and_then(|src| file.get(..src)?.rfind('/'));
    crates.and_then(|at| file.get(at + 1..)).unwrap_or(file)
}

/// Keeps the start of a text, with spaces for control characters.
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
        // The vector has exactly the room.
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
