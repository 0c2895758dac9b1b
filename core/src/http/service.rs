//! The interface between HTTP and the server that answers requests.

use super::{Config, Content, Piece, Refusal, Request, Status};
use crate::time::{Instant, Span};

/// A server that answers requests.
///
/// The calls for each request: [`wants`](Self::wants), [`begin`](Self::begin), [`body`](Self::body)
/// until the body ends, [`answer`](Self::answer), [`write`](Self::write) until the answer ends,
/// then [`end`](Self::end). The state of the server may change between any two calls.
pub trait Service {
    /// The state of a request until it is answered.
    type Task;

    /// The query parameters that the service uses, at most [`PARAMS_MAX`](super::PARAMS_MAX).
    /// Others are not kept.
    const PARAMS: &'static [&'static str];

    /// Returns the timeouts.
    fn config(&self) -> &Config;

    /// Returns how the body of a request is to be passed on, once the head was read. A refusal is
    /// sent as the answer.
    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal>;

    /// Begins the request: once its head was read, or, with [`Body::Ignore`], once its body was
    /// discarded, so that a request that is refused for its body has no effect. A refusal is sent
    /// as the answer.
    fn begin(&mut self, now: Instant, request: &Request<'_>) -> Result<Self::Task, Refusal>;

    /// Accepts the next bytes of the body, at least one. Returns how many bytes were accepted; if
    /// not all, the client is held, and the rest is offered again after each change. With
    /// [`Body::Lines`] `bytes` is a line, which is accepted as a whole or not at all; with
    /// [`Body::Whole`] `bytes` is the whole body.
    fn body(
        &mut self,
        now: Instant,
        task: &mut Self::Task,
        bytes: &[u8],
    ) -> Result<usize, Refusal> {
        let _ = (now, task);
        Ok(bytes.len())
    }

    /// Returns how long a client may be held at a time, before it is refused with 503. Default
    /// [`Config::body`], the bound of the whole body.
    fn patience(&self) -> Span {
        self.config().body
    }

    /// Executes the complete request and returns the type of its answer.
    fn answer(&mut self, now: Instant, task: &mut Self::Task) -> Result<Content, Refusal>;

    /// Writes as much of the answer's body as fits into the piece; returns whether the body is
    /// complete. Not called if there is no content.
    fn write(&mut self, now: Instant, task: &mut Self::Task, piece: &mut Piece<'_>) -> bool;

    /// Notes that a request ended: its answer was written, or it was refused or lost. `task` is
    /// `None` if the request was not begun.
    fn end(&mut self, now: Instant, task: Option<&mut Self::Task>, how: End) {
        let _ = (now, task, how);
    }
}

/// How the body of a request is passed to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Body {
    /// Not at all: discarded, [`DISCARD_MAX`](super::DISCARD_MAX) bytes at most.
    Ignore,
    /// In pieces as they arrive. A body of more bytes is refused with this code and 413.
    Pieces(u32, &'static str),
    /// A line at a time, without its line feed; empty lines are left out. A body of more bytes is
    /// refused with `BODY_TOO_BIG`, and a line of more than [`BUFFER`](super::BUFFER) bytes with
    /// this code and 413.
    Lines(u32, &'static str),
    /// As a whole; a body of more than [`BUFFER`](super::BUFFER) bytes is refused with this code
    /// and 413.
    Whole(&'static str),
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum End {
    /// The answer was written.
    Answered,
    /// The request was refused, by the service or before.
    Refused(Status),
    /// The client hung up, or did not read.
    Lost,
}
