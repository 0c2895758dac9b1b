//! Output: the log and other lines on standard error, checks of standard output, help.
//!
//! - Errors of standard error are ignored: nothing else fails because of them.
//! - Text from servers and others may contain control characters, which could fake a line or
//!   control the terminal. [`plain`] escapes them in all lines of this module.
//!
//! The program uses no other output functions: `println!` and `eprintln!` panic when they fail.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use env_filter::Filter;
use humantime::format_rfc3339_millis as rfc_3339;
use log::{LevelFilter, Log, Metadata, Record};

use crate::{progress, signals};

/// The filter of the log without `RUST_LOG`.
const LOGGED: &str = "nanonsq=info";

/// Writes a line to standard error.
pub(crate) fn say(line: impl Display) {
    draw(&format!("{}\n", plain(&line.to_string())));
}

/// Writes text to standard error without escapes.
pub(crate) fn draw(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// Escapes the control characters of a text.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.contains(commands) {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    for char in text.chars() {
        if commands(char) { plain.extend(char.escape_default()) } else { plain.push(char) }
    }
    Cow::Owned(plain)
}

/// Returns whether a terminal or an editor may interpret the character: control characters, line
/// separators, and marks that change the direction of text.
fn commands(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The logger: writes a line for each record.
struct Lines {
    filter: Filter,
    /// Clears the progress line, which has no newline, before each record.
    clear: &'static str,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            let level = record.level().as_str().to_lowercase();
            draw(&format!("{}{}", self.clear, log_line(&level, &record.args().to_string())));
        }
    }

    fn flush(&self) {}
}

fn log_line(level: &str, text: &str) -> String {
    let time = if *HAS_TIME { format!("{} ", rfc_3339(SystemTime::now())) } else { String::new() };
    format!("{time}{level}: {}\n", plain(text))
}

/// Logs the error that ends the program, whatever is logged.
pub(crate) fn fail(error: &str) {
    draw(&log_line("error", error));
}

/// Prints what a command has done, unless `--quiet` is given.
pub(crate) fn summary(line: impl Display) {
    if !is_quiet() {
        say(line);
    }
}

pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether lines of the log begin with the time: not on a terminal, nor in systemd's journal, which
/// has it.
static HAS_TIME: LazyLock<bool> = LazyLock::new(|| {
    let stderr = io::stderr();
    let is_journal = rustix::fs::fstat(&stderr).is_ok_and(|stat| {
        let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
        journal == format!("{}:{}", stat.st_dev, stat.st_ino)
    });
    !stderr.is_terminal() && !is_journal
});

/// Starts the log at a level, or with the filter of the environment variable `RUST_LOG`.
pub(crate) fn start_log(level: Option<LevelFilter>, quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
    let wanted = match level {
        Some(level) => Ok(format!("nanonsq={level}")),
        None => std::env::var("RUST_LOG"),
    };
    let mut filter = env_filter::Builder::new();
    let bad = filter.try_parse(wanted.as_deref().unwrap_or(LOGGED)).err();
    if bad.is_some() {
        filter = env_filter::Builder::new();
        filter.parse(LOGGED);
    }
    let filter = filter.build();
    let level = filter.filter();
    let clear = if io::stderr().is_terminal() { progress::CLEAR } else { "" };
    if log::set_boxed_logger(Box::new(Lines { filter, clear })).is_ok() {
        log::set_max_level(level);
    }
    if let Some(bad) = bad {
        log::warn!("RUST_LOG: {bad}; ignored");
    }
}

/// Prints clap's help to standard output, or its error to standard error.
pub(crate) fn usage(usage: &clap::Error) -> ExitCode {
    let printed = usage.print();
    if usage.use_stderr() {
        return ExitCode::from(2);
    }
    if let Err(closed) = has_output() {
        say(format_args!("error: {closed}"));
        return ExitCode::FAILURE;
    }
    match printed.and_then(|()| io::stdout().flush()) {
        Err(error) if !is_closed(&error) => {
            say(format_args!("error: {}", cannot_print(&error)));
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Returns the end of a command's help: signals, exit status, fixed bounds and an example.
pub(crate) fn help(status: &str, bounds: &[(&str, u64)], example: &str) -> String {
    let mut text = format!("{}\n\nExit status:\n  {status}\n", signals::HELP);
    if !bounds.is_empty() {
        text.push_str("\nBounds:\n");
    }
    for (what, bound) in bounds {
        let _ = writeln!(text, "  {what:<60} {bound}");
    }
    if !example.is_empty() {
        let _ = write!(text, "\nExample:\n  {example}");
    }
    text
}

/// Fails if standard output was closed when the program was started (`>&-`).
///
/// Rust, like Go, opens `/dev/null` in its place, so that writes succeed and the output is lost.
pub(crate) fn has_output() -> Result<(), String> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err("standard output is closed".to_owned());
    }
    Ok(())
}

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Checks standard output before Rust opens anything. Called on Linux only.
#[cfg_attr(not(target_os = "linux"), expect(dead_code))]
extern "C" fn check_output() {
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err();
    WAS_CLOSED.store(closed, Ordering::Relaxed);
}

// Safe: the section is a list of functions to call at the start, and this function needs nothing
// that is initialized later.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static CHECK: extern "C" fn() = check_output;

/// Returns whether the reader of standard output has closed it, as `head` does: no failure.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

pub(crate) fn cannot_print(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn times_are_written_as_in_rfc_3339() {
        // As `date --utc --iso-8601=seconds --date @...` has them.
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399_999, "2000-02-28T23:59:59.999Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (951_868_800_000, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599_001, "2024-12-31T23:59:59.001Z"),
            (4_107_542_400_050, "2100-03-01T00:00:00.050Z"),
        ] {
            assert_eq!(rfc_3339(UNIX_EPOCH + Duration::from_millis(ms)).to_string(), text);
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in [
            ("E_INVALID x\ninfo: registered", r"E_INVALID x\ninfo: registered"),
            ("a\r\x1b[2Kinfo: b\u{7}", r"a\r\u{1b}[2Kinfo: b\u{7}"),
            ("\u{9b}2J\u{85}x\0\u{7f}", r"\u{9b}2J\u{85}x\u{0}\u{7f}"),
            ("a\u{2028}b\u{2029}c\u{b}\u{c}", r"a\u{2028}b\u{2029}c\u{b}\u{c}"),
            ("\u{202e}txt\u{2066}\u{2069}\u{200f}", r"\u{202e}txt\u{2066}\u{2069}\u{200f}"),
        ] {
            assert_eq!(plain(text), shown);
            assert_eq!(shown.lines().count(), 1);
        }
        for text in ["", "Grüße, 世界 🦀", r"C:\nsq"] {
            assert_eq!(plain(text), text);
        }
    }
}
