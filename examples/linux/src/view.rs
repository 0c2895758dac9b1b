//! The demo's live view: a table that is redrawn below scrolling lines.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::time::{Duration, Instant};

use crate::output::is_closed;

/// Time between two draws on a terminal.
const INTERVAL: Duration = Duration::from_millis(500);
/// Time between two draws elsewhere, where each draw adds a table.
const INTERVAL_PLAIN: Duration = Duration::from_secs(5);

/// Lines of the window that are left for scrolling lines.
const SCROLLING: usize = 8;

/// Makes the terminal cut long lines.
const NO_WRAP: &str = "\x1b[?7l";
/// Makes the terminal wrap long lines.
const WRAP: &str = "\x1b[?7h";

/// The longest name shown whole, so that a line fits the terminal.
const NAME: usize = 14;

/// A channel of a topic at a node, or a topic without channels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) node: String,
    pub(crate) topic: String,
    pub(crate) channel: Option<String>,
    pub(crate) depth: u32,
    pub(crate) in_flight: u32,
    pub(crate) clients: u32,
    /// All messages that the channel or topic has received.
    pub(crate) messages: u64,
}

/// The table on standard output.
#[derive(Debug)]
pub(crate) struct View {
    live: bool,
    rows: Vec<Row>,
    drawn: Option<Instant>,
    table: String,
    /// Text below the table, if there is room for it.
    footer: String,
    /// Lines of table and footer on the screen.
    lines: usize,
    /// The first error of standard output.
    failed: Option<io::Error>,
}

impl View {
    /// Prints `header`. `footer` stays on the screen; without room for it, it is printed once.
    pub(crate) fn new(header: &str, footer: &str) -> Self {
        let mut view = Self {
            live: io::stdout().is_terminal(),
            rows: Vec::new(),
            drawn: None,
            table: String::new(),
            footer: String::new(),
            lines: 0,
            failed: None,
        };
        if view.live && has_room(window_lines(), footer.lines().count()) {
            view.print(header);
            view.footer = format!("\n{footer}");
        } else {
            view.print(&format!("{header}\n{footer}"));
        }
        view
    }

    /// Returns the time between two draws.
    pub(crate) fn interval(&self) -> Duration {
        if self.live { INTERVAL } else { INTERVAL_PLAIN }
    }

    /// Returns whether standard output has failed or was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.failed.is_some()
    }

    /// Returns the error of standard output, unless its reader has closed it, as `head` does.
    pub(crate) fn failed(&self) -> Option<&io::Error> {
        self.failed.as_ref().filter(|error| !is_closed(error))
    }

    /// Prints a line above the table.
    pub(crate) fn print(&mut self, line: &str) {
        let mut text = self.clear();
        let _ = writeln!(text, "{line}");
        if self.live {
            self.append_table(&mut text);
        }
        self.write_out(&text);
    }

    /// Redraws the table with new rows.
    pub(crate) fn draw(&mut self, rows: Vec<Row>) {
        let now = Instant::now();
        let seconds = self.drawn.map_or(0.0, |drawn| (now - drawn).as_secs_f64());
        self.table = table(&rows, &self.rows, seconds);
        (self.rows, self.drawn) = (rows, Some(now));
        let mut text = self.clear();
        self.append_table(&mut text);
        self.write_out(&text);
    }

    /// Draws the table for the last time, with rates over the whole time `took`. Later lines are
    /// printed below it.
    pub(crate) fn finish(&mut self, rows: &[Row], took: Duration) {
        let before: Vec<_> = rows.iter().map(|row| Row { messages: 0, ..row.clone() }).collect();
        self.table = table(rows, &before, took.as_secs_f64());
        self.footer.clear();
        let mut text = self.clear();
        self.append_table(&mut text);
        self.write_out(&text);
        self.lines = 0;
        self.table.clear();
    }

    fn append_table(&mut self, text: &mut String) {
        if !self.live {
            text.push_str(&self.table);
            return;
        }
        let drawn = text.len();
        // Cut long lines: wrapped lines would break the count of lines.
        text.push_str(NO_WRAP);
        text.push_str(&self.table);
        // The size of the window may have changed.
        let lines = self.table.lines().count() + self.footer.lines().count();
        if has_room(window_lines(), lines) {
            text.push_str(&self.footer);
        }
        text.push_str(WRAP);
        self.lines = text[drawn..].matches('\n').count();
    }

    /// Returns the text that moves to the table's first line and clears the screen from there.
    fn clear(&mut self) -> String {
        match std::mem::take(&mut self.lines) {
            0 => String::new(),
            lines => format!("\x1b[{lines}A\r\x1b[J"),
        }
    }

    fn write_out(&mut self, text: &str) {
        let mut stdout = io::stdout().lock();
        let written = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
        if let Err(error) = written {
            self.failed.get_or_insert(error);
        }
    }
}

/// Returns the lines of the terminal's window; 0 if unknown.
fn window_lines() -> usize {
    rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| size.ws_row.into())
}

/// Returns whether `lines` lines leave enough room for scrolling lines.
fn has_room(window: usize, lines: usize) -> bool {
    window >= lines + SCROLLING
}

/// Returns the table as text. `old` are the rows of `seconds` ago, for the rates.
fn table(rows: &[Row], old: &[Row], seconds: f64) -> String {
    let mut text = format!(
        "{:<NAME$} {:<NAME$} {:<NAME$} {:>5} {:>6} {:>6} {:>7} {:>6}\n",
        "node", "topic", "channel", "conns", "depth", "flying", "in all", "/s"
    );
    for row in rows {
        let key = |row: &Row| (row.node.clone(), row.topic.clone(), row.channel.clone());
        let before = old.iter().find(|other| key(other) == key(row)).map(|row| row.messages);
        let rate = match before {
            Some(before) if seconds > 0.0 => {
                format!("{:.1}", row.messages.saturating_sub(before) as f64 / seconds)
            }
            _ => "-".to_owned(),
        };
        let channel = row.channel.as_deref().map_or("-".to_owned(), short);
        let _ = writeln!(
            text,
            "{:<NAME$} {:<NAME$} {channel:<NAME$} {:>5} {:>6} {:>6} {:>7} {rate:>6}",
            short(&row.node),
            short(&row.topic),
            row.clients,
            row.depth,
            row.in_flight,
            row.messages,
        );
    }
    text
}

fn short(name: &str) -> String {
    match name.char_indices().nth(NAME) {
        None => name.to_owned(),
        Some(_) => name.chars().take(NAME - 1).chain(['~']).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(node: &str, channel: Option<&str>, clients: u32, messages: u64) -> Row {
        Row {
            node: node.to_owned(),
            topic: "readings".to_owned(),
            channel: channel.map(str::to_owned),
            depth: 3,
            in_flight: 1,
            clients,
            messages,
        }
    }

    #[test]
    fn a_row_has_a_rate_from_its_second_draw_on() {
        let old = [row("cellar", Some("demo"), 1, 100)];
        let new = [row("cellar", Some("demo"), 1, 150), row("cellar", None, 0, 7)];
        let text = table(&new, &old, 2.0);
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["cellar", "readings", "demo", "1", "3", "1", "150", "25.0"]);
        assert_eq!(lines[2], ["cellar", "readings", "-", "0", "3", "1", "7", "-"]);
        assert!(table(&new, &new, 0.0).contains(" -\n"), "no time passed");
    }

    #[test]
    fn the_footer_leaves_room_for_scrolling_lines() {
        assert!(has_room(24, 16) && !has_room(24, 17));
        // The size is unknown.
        assert!(!has_room(0, 1));
    }

    #[test]
    fn no_line_is_wider_than_a_terminal() {
        let long = "x".repeat(64);
        let mut row = row(&long, Some(&long), 0, 9_999_999);
        row.topic = long;
        for line in table(&[row], &[], 0.0).lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
    }
}
