//! The timeouts of a connection.

use crate::time::Span;

/// The timeouts of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// The silence between two requests, and before the first. Default 15 s: there are few
    /// connections, and a client that loses an idle one opens another by itself.
    pub idle: Span,
    /// The time from the first byte of a head to its last. Default 10 s.
    pub head: Span,
    /// The time for a whole body, including the time in which the service holds it. Default 30 s.
    pub body: Span,
    /// The time for the client to read one piece of an answer, at most 1 KiB. Default 10 s.
    pub write: Span,
    /// How long to discard the rest of a refused request. Default 1 s.
    pub linger: Span,
    /// The time for closing. Default 1 s.
    pub close: Span,
}

impl Config {
    /// Creates the default timeouts.
    pub const fn new() -> Self {
        Self {
            idle: Span::from_secs(15),
            head: Span::from_secs(10),
            body: Span::from_secs(30),
            write: Span::from_secs(10),
            linger: Span::from_secs(1),
            close: Span::from_secs(1),
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::new()
    }
}
