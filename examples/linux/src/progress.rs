//! The progress line on a terminal, and the summary at the end.

use std::fmt::Write as _;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use nanonsq_core::publisher::Counters;

use crate::output;

/// Moves the cursor to the start of the line and clears the line.
pub(crate) const CLEAR: &str = "\r\x1b[2K";

/// Time between two updates of the line.
pub(crate) const INTERVAL: Duration = Duration::from_millis(200);

/// The progress line; none if standard error is not a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    live: bool,
    start: Instant,
    drawn: (Instant, u64),
}

impl Progress {
    /// Creates the progress line. `typed`: the input is typed on the terminal, so draw no line.
    pub(crate) fn new(typed: bool) -> Self {
        let now = Instant::now();
        let live = std::io::stderr().is_terminal() && !typed && !output::is_quiet();
        Self { live, start: now, drawn: (now, 0) }
    }

    /// Updates the line.
    pub(crate) fn draw(&mut self, counters: &Counters, used: usize, capacity: usize) {
        if !self.live {
            return;
        }
        let now = Instant::now();
        let (before, acknowledged) = self.drawn;
        let seconds = now.duration_since(before).as_secs_f64().max(1e-3);
        let rate = (counters.acknowledged - acknowledged) as f64 / seconds;
        self.drawn = (now, counters.acknowledged);
        let fill = 100.0 * used as f64 / capacity.max(1) as f64;
        output::draw(&format!(
            "{CLEAR}{} acknowledged, {} pending, {rate:.0}/s, outbox {fill:.0} %, {} reconnects",
            counters.acknowledged,
            counters.pending,
            counters.connections.saturating_sub(1),
        ));
    }

    /// Clears the line and prints the summary.
    pub(crate) fn finish(&self, counters: &Counters, skipped: &Skipped) {
        if self.live {
            output::draw(CLEAR);
        }
        output::summary(summary(counters, skipped, self.start.elapsed()));
    }
}

/// Input that was not published.
#[derive(Debug, Default)]
pub(crate) struct Skipped {
    /// Empty lines, which nsqd rejects.
    pub(crate) empty: u64,
    /// Lines or records longer than allowed.
    pub(crate) too_long: u64,
}

fn summary(counters: &Counters, skipped: &Skipped, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let rate = counters.acknowledged as f64 / seconds.max(1e-3);
    let mut text = format!(
        "{} accepted, {} acknowledged, {} rejected, {} expired, {} possible duplicates; \
         {seconds:.1} s, {rate:.0}/s, {} reconnects",
        counters.accepted,
        counters.acknowledged,
        counters.rejected,
        counters.expired,
        counters.possible_duplicates,
        counters.connections.saturating_sub(1),
    );
    for (count, what) in [
        (counters.pending, "not delivered"),
        (skipped.too_long, "too long, skipped"),
        (skipped.empty, "empty, skipped"),
    ] {
        if count > 0 {
            let _ = write!(text, "; {count} {what}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_only_failures_that_happened() {
        let mut counters = Counters::default();
        counters.accepted = 10;
        counters.acknowledged = 10;
        let clean = summary(&counters, &Skipped::default(), Duration::from_secs(2));
        assert_eq!(
            clean,
            "10 accepted, 10 acknowledged, 0 rejected, 0 expired, 0 possible duplicates; 2.0 s, \
             5/s, 0 reconnects"
        );
        counters.pending = 3;
        let skipped = Skipped { empty: 1, too_long: 2 };
        let bad = summary(&counters, &skipped, Duration::from_secs(2));
        assert!(bad.ends_with("; 3 not delivered; 2 too long, skipped; 1 empty, skipped"), "{bad}");
    }
}
