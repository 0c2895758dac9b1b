//! The interface between HTTP and the server behind it.

use super::{Config, Content, Piece, Refusal, Request, Status};
use crate::time::{Instant, Span};

/// The requests that a server answers.
///
/// For each request: [`wants`](Self::wants), [`begin`](Self::begin), then [`body`](Self::body) for
/// as long as it lasts, then [`answer`](Self::answer) and [`write`](Self::write) until all is
/// written, then [`end`](Self::end). Anything may happen to what is served between two calls.
pub trait Service {
    /// A request until it is answered.
    type Task;

    /// The parameters of queries that it looks at, at most [`PARAMS_MAX`](super::PARAMS_MAX).
    /// Others are not kept.
    const PARAMS: &'static [&'static str];

    /// The times.
    fn config(&self) -> &Config;

    /// A request's head is read: what is wanted of its body. A refusal is its answer.
    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal>;

    /// Begins the request: once its head is read, or, with [`Body::Ignore`], once its body was
    /// passed over, so that nothing is done for a request that is refused for its body. A refusal
    /// is its answer.
    fn begin(&mut self, now: Instant, request: &Request<'_>) -> Result<Self::Task, Refusal>;

    /// The next bytes of the body, never none. Gives how many were taken; if not all, the client
    /// is held, and the rest comes again whenever something changed. [`Body::Lines`]: a line, of
    /// which all or nothing is taken. [`Body::Whole`]: all of it, once.
    fn body(
        &mut self,
        now: Instant,
        task: &mut Self::Task,
        bytes: &[u8],
    ) -> Result<usize, Refusal> {
        let _ = (now, task);
        Ok(bytes.len())
    }

    /// How long a client may be held at a time; then it is refused with 503. Default
    /// [`Config::body`], which no request is held longer than anyway.
    fn patience(&self) -> Span {
        self.config().body
    }

    /// The request is whole: does what was asked for, and says what the answer is.
    fn answer(&mut self, now: Instant, task: &mut Self::Task) -> Result<Content, Refusal>;

    /// Writes as much of the answer's body as the piece has room for; whether that is the end of
    /// it. Not asked if there is no content.
    fn write(&mut self, now: Instant, task: &mut Self::Task, piece: &mut Piece<'_>) -> bool;

    /// A request is over: its answer was written, or it was refused. The task is there if it was
    /// begun.
    fn end(&mut self, now: Instant, task: Option<&mut Self::Task>, how: End) {
        let _ = (now, task, how);
    }
}

/// How a service takes a request's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Body {
    /// Nothing: it is passed over, [`DISCARD_MAX`](super::DISCARD_MAX) bytes at most.
    Ignore,
    /// All of it, in pieces as they arrive. More bytes are refused with this code and 413.
    Pieces(u32, &'static str),
    /// All of it, a line at a time, without its end; empty ones are left out. More bytes are
    /// refused with `BODY_TOO_BIG`, and a line of more than [`BUFFER`](super::BUFFER) bytes with
    /// this code and 413.
    Lines(u32, &'static str),
    /// All of it at once; [`BUFFER`](super::BUFFER) bytes at most, more are refused with this code
    /// and 413.
    Whole(&'static str),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum End {
    /// Its answer was written.
    Answered,
    /// It was refused, by the service or before it came so far.
    Refused(Status),
    /// The client went away, or did not read.
    Lost,
}
