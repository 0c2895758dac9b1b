//! The times of a connection.

use crate::time::Span;

/// The timeouts of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// Between two requests, and before the first. Default 15 s: there are few connections, and a
    /// client that keeps one opens another without a word.
    pub idle: Span,
    /// From the first byte of a head to its last. Default 10 s.
    pub head: Span,
    /// For a whole body, the time included in which the service takes none of it. Default 30 s.
    pub body: Span,
    /// For one piece of an answer, 1 KiB at most, to be taken by the transport. Default 10 s.
    pub write: Span,
    /// How long to pass over what a refused request still sends. Default 1 s.
    pub linger: Span,
    /// For closing. Default 1 s.
    pub close: Span,
}

impl Config {
    /// The defaults.
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
