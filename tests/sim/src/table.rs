//! Which pairs of state and event were exercised.

use std::fmt::Write as _;

use crate::watch::{Coverage, Event, MACHINES};

/// The tables, for a person to read.
pub fn text(coverage: &Coverage) -> String {
    let mut text = String::new();
    for (kind, machine) in MACHINES.iter().enumerate() {
        let _ = write!(text, "\n{:<14}", machine.name);
        for state in machine.states {
            let _ = write!(text, "{state:>15}");
        }
        for event in Event::ALL {
            let _ = write!(text, "\n{:<14}", format!("{event:?}"));
            for state in 0..machine.states.len() {
                match coverage.events(kind, state, event) {
                    0 => text.push_str("              ."),
                    n => drop(write!(text, "{n:>15}")),
                }
            }
        }
        text.push('\n');
    }
    let _ = writeln!(text);
    for (what, n) in coverage.counts() {
        let _ = writeln!(text, "{what:<22}{n:>12}");
    }
    text
}

/// What should have been exercised.
pub fn gaps(_: &Coverage, _: u64) -> Vec<String> {
    Vec::new()
}
