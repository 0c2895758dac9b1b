//! HTTP/1.1 for a server: one request after the other on one connection, in bounded memory.
//!
//! [`Connection`] is the state machine, which the HTTP of nsqd and of nsqlookupd share; a
//! [`Service`] decides which requests there are and answers them. A request's head is parsed as it
//! arrives: only the path and the parameters that the service uses are kept, at the front of the
//! connection's buffer. The body is passed on as it arrives. Then the same buffer holds the answer,
//! a piece at a time, so that an answer of any length needs no more.
//!
//! ```text
//!           accepted        first byte        head            body
//! Down ----------------> Idle ------> Head --------> [Body] -----> Answer
//!   ^                     ^ |           |               |            |
//!   |                     | | time      | refused       | refused    | written
//!   |                     | |           +----> Answer <-+            |
//!   |                     +-|----------------------------------------+ keep-alive
//!   |                       v                                        |
//!   +--------------------- Closing <---------- Linger <--------------+ "close", unread body
//! ```
//!
//! - Answers have a `Content-Length` if they fit into one piece, else they are chunked; for
//!   HTTP/1.0 they end with the connection.
//! - Requests may be pipelined: bytes that arrive while an answer is written are held
//!   ([`Session::take`](crate::session::Session::take)).
//! - `Expect: 100-continue` is answered once the service asks for the body.
//! - After a request that is refused before its body was read, the rest of the request is discarded
//!   for a short time ([`Config::linger`]) before the connection is closed: closing a connection
//!   with unread bytes would destroy the answer before the client reads it.
//! - Refusals have NSQ's form: `{"message":"CODE"}`.
//!
//! `docs/src/differences.md` has the differences to Go's server.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | a request's first line | [`LINE_MAX`] bytes | 414, closed |
//! | a head, in lines of any number and length | [`HEAD_MAX`] bytes | 431, closed |
//! | kept bytes of a path | [`PATH_MAX`] | no route matches |
//! | kept bytes of a parameter's value | [`VALUE_MAX`] | the value is neither a name nor a number |
//! | parameters that a service uses | [`PARAMS_MAX`] | does not compile |
//! | body that the service does not use | [`DISCARD_MAX`] bytes, discarded | 413, closed |
//! | body | chosen by the service | 413, closed |
//! | a chunk's first line; all trailers | [`CHUNK_LINE_MAX`] bytes | 400, closed |
//! | an element of an answer, which cannot be split | [`PIECE_MIN`] bytes | the connection is closed |
//! | silence between requests | [`Config::idle`] | closed |
//! | a head that has begun | [`Config::head`] | 408, closed |
//! | a body that has begun, or is held | [`Config::body`] | 408, or 503 if held; closed |
//! | a client that does not read | [`Config::write`] for each piece | closed |
//!
//! These bounds are for a server that has free slots. While another caller waits for a slot, a
//! connection may be closed earlier ([`Connection::evictable`]): if it has been silent for 500 ms
//! since it was accepted or for 100 ms since its last answer, or if the request, or the reading of
//! its answer, is 2 s slower than a byte a millisecond. A client that the service holds is not
//! slow.

mod answer;
mod chunk;
mod config;
pub(crate) mod emit;
mod head;
mod incoming;
#[cfg(feature = "metrics")]
pub(crate) mod metrics;
mod outgoing;
mod request;
mod route;
mod service;
#[cfg(test)]
mod tests;

use core::ops::Range;

use crate::macros::trace_state;
use crate::session::{Closed, Link, Transmit};
use crate::time::{Instant, Span};
use crate::wire::saturate;

use chunk::Chunks;

pub use answer::{Content, Piece, Refusal, Status};
pub use config::Config;
pub use request::{BadQuery, Method, Request, Value};
pub use route::{Route, find};
pub use service::{Body, End, Service};

/// The length of a connection's buffer in bytes.
pub const BUFFER: usize = 1024;

/// The longest head, in bytes; as in Go's net/http.
pub const HEAD_MAX: u32 = 1 << 20;

/// The longest first line of a request, in bytes, without its line end.
pub const LINE_MAX: u32 = 2048;

/// The longest path that a route may have, in bytes.
pub const PATH_MAX: usize = 63;

/// The longest valid value of a parameter, in bytes: a host, a colon and a port.
pub const VALUE_MAX: usize = crate::address::HOST_MAX + 6;

/// The most [parameters](Service::PARAMS) that a service can use, each of 17 bytes at most.
pub const PARAMS_MAX: usize = 6;

/// The longest line before a chunk, extensions included, and the most bytes of all trailers behind
/// the last chunk.
pub const CHUNK_LINE_MAX: u16 = 4096;

/// While another caller waits for a slot: how long a new connection may be silent.
const FRESH: Span = Span::from_millis(500);
/// Likewise: how long a connection may be silent after an answer.
const BETWEEN: Span = Span::from_millis(100);
/// Likewise: how much slower than a byte a millisecond a request or the reading of an answer may
/// be.
const SLOW: Span = Span::from_secs(2);

/// The longest body, in bytes, that is discarded if the service does not use it.
pub const DISCARD_MAX: u32 = 16 * 1024;

/// The length of the longest element that fits into every piece of an answer, in bytes.
pub const PIECE_MIN: usize = 768;

/// Bytes before a piece: for the answer's head and a chunk's length.
const FRONT: usize = 249;

/// The bytes behind a piece: the end of a chunk, then the end of the last chunk.
const TAIL: &[u8] = b"\r\n0\r\n\r\n";

const CONTINUE: &[u8; 25] = b"HTTP/1.1 100 Continue\r\n\r\n";

const _: () = assert!(FRONT + PIECE_MIN + TAIL.len() == BUFFER);

/// A connection and the request on it: the part of the session that does not depend on the service.
///
/// Its methods are those of [`Session`](crate::session::Session), with the service as a parameter.
///
/// RAM: [`BUFFER`] + 144 bytes and the task.
#[derive(Debug)]
pub struct Connection<T> {
    task: Option<T>,
    /// The refusal to send once the rest of the body is discarded.
    refusal: Option<Refusal>,
    state: State,
    /// Properties of the current request and its answer.
    exchange: Exchange,
    /// When the state has lasted too long.
    step: Instant,
    /// When the state has lasted too long while another caller waits for a slot. In `Held`: when
    /// the body will have lasted too long.
    evictable: Instant,
    /// How many bytes of [`CONTINUE`] are still to be written.
    continuing: u8,
    head: head::Scanner,
    /// Bytes collected of a line, or of a whole body.
    filled: u16,
    /// How many bytes of the body, or of its chunk, are still to come.
    left: u32,
    chunks: Chunks,
    /// How many more bytes chunks may have.
    room: u32,
    /// To be written first: a range of the buffer's front.
    front: Range<u16>,
    /// To be written next: a range of the buffer behind the front.
    body: Range<u16>,
    buf: [u8; BUFFER],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    /// No connection.
    Down,
    /// Between requests.
    Idle,
    Head,
    Body(Body),
    /// In a body of which the service accepts nothing at the moment.
    Held(Body),
    /// The answer is being written; `Rest` is not in the buffer yet.
    Answer(Rest),
    /// The answer was written; the rest of the request is discarded.
    Linger,
    Closing,
}

/// The part of an answer that is not in the buffer yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum Rest {
    /// More pieces.
    Chunks,
    /// More pieces, to the connection's end.
    Bytes,
    /// Nothing.
    Nothing,
}

#[derive(Debug, Clone, Copy)]
struct Exchange {
    /// The request has version 1.0.
    is_old: bool,
    /// The answer has no body, because the method is HEAD.
    is_head: bool,
    /// The connection is closed after the answer.
    closes: bool,
    /// The client waits for `100 Continue` before it sends the body.
    expects: bool,
}

impl Exchange {
    const NEW: Self = Self { is_old: false, is_head: false, closes: false, expects: false };
}

impl<T> Connection<T> {
    /// Creates a connection for storage; [`init`](Self::init) makes it usable. All bytes are zero
    /// if those of `task` are, so that a static needs no image in flash.
    pub const fn zero(task: T) -> Self {
        Self {
            task: Some(task),
            refusal: None,
            state: State::Down,
            exchange: Exchange::NEW,
            step: Instant::ZERO,
            evictable: Instant::ZERO,
            continuing: 0,
            head: head::Scanner::ZERO,
            filled: 0,
            left: 0,
            chunks: Chunks::NONE,
            room: 0,
            front: 0..0,
            body: 0..0,
            buf: [0; BUFFER],
        }
    }

    /// Initializes the connection as not connected.
    pub fn init(&mut self) {
        self.task = None;
        self.refusal = None;
        self.state = State::Down;
        self.step = Instant::NEVER;
        self.evictable = Instant::NEVER;
        self.clear_staged();
    }

    /// As [`Session::open`](crate::session::Session::open).
    pub fn open<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        self.closed(now, Closed::Local, service);
        self.await_request(now, service);
        self.evictable = now.after(FRESH);
    }

    /// As [`Session::take`](crate::session::Session::take).
    pub fn take<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        bytes: &[u8],
        service: &mut S,
    ) -> usize {
        let mut input = bytes;
        while let Some((&byte, rest)) = input.split_first() {
            match self.state {
                State::Down | State::Linger | State::Closing => return bytes.len(),
                State::Idle | State::Head => {
                    input = rest;
                    self.on_head_byte(now, byte, service);
                }
                State::Body(wanted) => {
                    let taken = self.on_body(now, wanted, input, service);
                    input = input.get(taken..).unwrap_or_default();
                    if matches!(self.state, State::Held(_)) {
                        break;
                    }
                }
                State::Held(wanted) => {
                    let taken = self.on_body(now, wanted, input, service);
                    input = input.get(taken..).unwrap_or_default();
                    if taken == 0 && self.state == State::Held(wanted) {
                        break;
                    }
                }
                State::Answer(_) => break,
            }
        }
        let taken = bytes.len().saturating_sub(input.len());
        self.on_progress(now, taken);
        taken
    }

    /// As [`Session::transmit`](crate::session::Session::transmit).
    pub fn transmit<S: Service<Task = T>>(
        &mut self,
        now: Instant,
        service: &mut S,
    ) -> Transmit<'_> {
        if self.continuing > 0 {
            let written = CONTINUE.len().saturating_sub(self.continuing.into());
            return Transmit { head: CONTINUE.get(written..).unwrap_or_default(), body: &[] };
        }
        if self.front.is_empty() && self.body.is_empty() {
            self.stage_more(now, service);
        }
        let (front, behind) = self.buf.split_at_checked(FRONT).unwrap_or_default();
        Transmit { head: part(front, &self.front), body: part(behind, &self.body) }
    }

    /// As [`Session::sent`](crate::session::Session::sent).
    pub fn sent<S: Service<Task = T>>(&mut self, now: Instant, n: usize, service: &mut S) {
        self.on_progress(now, n);
        // At most the bytes lent, which are fewer than 64 KiB.
        let n = n as u16;
        let leave = n.min(self.continuing.into());
        self.continuing = self.continuing.saturating_sub(leave as u8);
        let n = n.saturating_sub(leave);
        let front = n.min(self.front.end.saturating_sub(self.front.start));
        self.front.start = self.front.start.saturating_add(front);
        let body = n.saturating_sub(front);
        self.body.start = self.body.start.saturating_add(body).min(self.body.end);
        if self.front.is_empty()
            && self.body.is_empty()
            && self.state == State::Answer(Rest::Nothing)
        {
            self.end(now, service, End::Answered);
            if !self.exchange.closes {
                self.await_request(now, service);
            } else if self.left > 0 {
                self.step = now.after(service.config().linger);
                self.set_state(State::Linger);
            } else {
                self.close(now, service);
            }
        }
    }

    /// As [`Session::tick`](crate::session::Session::tick).
    pub fn tick<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        if now < self.step {
            return;
        }
        match self.state {
            State::Down => self.step = Instant::NEVER,
            // The deadline stays due until the driver aborts.
            State::Closing => {}
            State::Idle | State::Linger => self.close(now, service),
            State::Head => self.reject_and_close(now, Status::RequestTimeout, "TIMEOUT", service),
            State::Held(_) => self.reject_and_close(now, Status::Unavailable, "BUSY", service),
            State::Body(_) => {
                self.reject_and_close(now, Status::RequestTimeout, "TIMEOUT", service)
            }
            State::Answer(_) => self.abort(now, service),
        }
    }

    /// Closes the connection at once, whatever is in progress.
    pub fn abort<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S) {
        self.end(now, service, End::Lost);
        self.clear_staged();
        self.continuing = 0;
        self.close(now, service);
    }

    /// As [`Session::closed`](crate::session::Session::closed).
    pub fn closed<S: Service<Task = T>>(&mut self, now: Instant, _: Closed, service: &mut S) {
        self.end(now, service, End::Lost);
        self.clear_staged();
        self.continuing = 0;
        self.step = Instant::NEVER;
        self.set_state(State::Down);
    }

    /// As [`Session::link`](crate::session::Session::link).
    pub const fn link(&self) -> Link {
        match self.state {
            State::Down => Link::Down,
            State::Idle
            | State::Head
            | State::Body(_)
            | State::Held(_)
            | State::Answer(_)
            | State::Linger => Link::Up,
            State::Closing => Link::Close,
        }
    }

    /// As [`Session::deadline`](crate::session::Session::deadline).
    pub const fn deadline(&self) -> Instant {
        self.step
    }

    /// As [`Session::evictable`](crate::session::Session::evictable): between two requests, or when
    /// the client is slow.
    pub const fn evictable(&self) -> Instant {
        match self.state {
            State::Down | State::Held(_) => Instant::NEVER,
            State::Idle | State::Head | State::Body(_) | State::Answer(_) => self.evictable,
            State::Linger | State::Closing => Instant::ZERO,
        }
    }

    /// Notes that `n` bytes arrived or were read by the client; each gives it a millisecond more.
    fn on_progress(&mut self, now: Instant, n: usize) {
        if !matches!(self.state, State::Idle | State::Held(_)) {
            let more = Span::from_millis(saturate(n));
            self.evictable = self.evictable.after(more).min(now.after(SLOW));
        }
    }

    fn set_state(&mut self, state: State) {
        trace_state!("http", self.state, state);
        self.state = state;
    }

    fn await_request<S: Service<Task = T>>(&mut self, now: Instant, service: &S) {
        self.exchange = Exchange::NEW;
        self.head = head::Scanner::new();
        self.left = 0;
        self.step = now.after(service.config().idle);
        self.evictable = now.after(BETWEEN);
        self.set_state(State::Idle);
    }

    fn close<S: Service<Task = T>>(&mut self, now: Instant, service: &S) {
        self.step = now.after(service.config().close);
        self.set_state(State::Closing);
    }

    fn clear_staged(&mut self) {
        self.front = 0..0;
        self.body = 0..0;
    }

    /// Ends the current request, if there is one.
    fn end<S: Service<Task = T>>(&mut self, now: Instant, service: &mut S, how: End) {
        if let Some(task) = &mut self.task {
            service.end(now, Some(task), how);
        }
        self.task = None;
        self.refusal = None;
    }
}

/// Returns the bytes in `range`.
fn part<'b>(bytes: &'b [u8], range: &Range<u16>) -> &'b [u8] {
    bytes.get(range.start.into()..range.end.into()).unwrap_or_default()
}
