//! What the program says: its log and everything else on standard error, and the words of others
//! that are in it.
//!
//! - Standard error is a courtesy. If it is full, closed, or nobody reads it, nothing else fails.
//! - A server's words, or anybody else's, may have control characters in them, which would begin a
//!   line of their own or command the terminal. [`plain`] escapes them, in all that goes through here.
//!
//! Nothing is printed in another way: `println!` and its like panic when they fail.

use std::borrow::Cow;
use std::fmt::{Display, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use env_filter::Filter;
use log::{Log, Metadata, Record};

use crate::{progress, signals};

/// What is logged unless `RUST_LOG` says otherwise.
const LOGGED: &str = "nanonsq=info";

/// Says a line on standard error.
pub(crate) fn say(line: impl Display) {
    draw(&format!("{}\n", plain(&line.to_string())));
}

/// Writes to standard error what is to be there as it is.
pub(crate) fn draw(text: &str) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// The text with its control characters written out.
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

/// Whether it commands a terminal or an editor: also what ends a line in some of them, and what has a
/// line shown in another order than it has.
fn commands(char: char) -> bool {
    char.is_control()
        || matches!(char, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(char, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// The log: a line for each record.
struct Lines {
    filter: Filter,
    /// The progress line has no newline: it is cleared first.
    clear: &'static str,
}

impl Log for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if self.filter.matches(record) {
            let level = record.level().as_str().to_lowercase();
            let said = record.args().to_string();
            draw(&format!("{}{level}: {}\n", self.clear, plain(&said)));
        }
    }

    fn flush(&self) {}
}

/// Starts the log. What of it is wanted is in the variable `RUST_LOG`.
pub(crate) fn start_log() {
    let wanted = std::env::var("RUST_LOG");
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
        log::warn!("RUST_LOG: {bad}; not heeded");
    }
}

/// Prints what clap has to say: its help on standard output, an error on standard error.
pub(crate) fn usage(said: &clap::Error) -> ExitCode {
    let printed = said.print();
    if said.use_stderr() {
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

/// What stands at the end of a command's help: its exit status, its bounds, which are fixed, and more.
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
/// What is printed is lost then, and nothing fails: Rust opens `/dev/null` in its place, as Go does.
pub(crate) fn has_output() -> Result<(), String> {
    if WAS_CLOSED.load(Ordering::Relaxed) {
        return Err("standard output is closed".to_owned());
    }
    Ok(())
}

static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Called before Rust opens anything. Where it is not, nothing is known.
#[cfg_attr(not(target_os = "linux"), expect(dead_code))]
extern "C" fn look_at_output() {
    let closed = rustix::io::fcntl_getfd(rustix::stdio::stdout()).is_err();
    WAS_CLOSED.store(closed, Ordering::Relaxed);
}

// Safe: that section is a list of functions to call at the start, and this one needs nothing that is
// not there yet.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = look_at_output;

/// Whether nobody reads any more, as with `head`: no failure.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    error.kind() == ErrorKind::BrokenPipe
}

pub(crate) fn cannot_print(error: &io::Error) -> String {
    format!("cannot write to standard output: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_stay_in_their_line_and_command_no_terminal() {
        for (said, shown) in [
            ("E_INVALID x\ninfo: registered", r"E_INVALID x\ninfo: registered"),
            ("a\r\x1b[2Kinfo: b\u{7}", r"a\r\u{1b}[2Kinfo: b\u{7}"),
            ("\u{9b}2J\u{85}x\0\u{7f}", r"\u{9b}2J\u{85}x\u{0}\u{7f}"),
            ("a\u{2028}b\u{2029}c\u{b}\u{c}", r"a\u{2028}b\u{2029}c\u{b}\u{c}"),
            ("\u{202e}txt\u{2066}\u{2069}\u{200f}", r"\u{202e}txt\u{2066}\u{2069}\u{200f}"),
        ] {
            assert_eq!(plain(said), shown);
            assert_eq!(shown.lines().count(), 1);
        }
        for said in ["", "Grüße, 世界 🦀", r"C:\nsq"] {
            assert_eq!(plain(said), said);
        }
    }
}
