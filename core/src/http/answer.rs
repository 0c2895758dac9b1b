//! The head of an answer, and the pieces in which an answer leaves.

use core::convert::Infallible;

use super::route::Methods;
use crate::wire::json::hex;
use crate::wire::{Decimal, ErrorType, Write, copy, saturate};

/// An answer's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Status {
    /// 200
    // From 1 on, so that `None` of an `Option<Status>` is zero.
    Ok = 1,
    /// 400: the request is invalid.
    BadRequest,
    /// 403: the client may not do this.
    Forbidden,
    /// 404: there is no such path, topic or channel.
    NotFound,
    /// 405: the path does not have this method.
    MethodNotAllowed,
    /// 408: the request took too long to arrive.
    RequestTimeout,
    /// 413: the body is too long.
    ContentTooLarge,
    /// 414: the request's first line is too long.
    UriTooLong,
    /// 417: the expectation in `Expect` is unknown.
    ExpectationFailed,
    /// 431: the head is too long.
    HeadTooLarge,
    /// 500: an error of the server.
    InternalError,
    /// 501: a `Transfer-Encoding` other than `chunked`.
    NotImplemented,
    /// 503: try again later.
    Unavailable,
    /// 505: neither HTTP/1.1 nor 1.0.
    VersionNotSupported,
}

impl Status {
    /// Returns the code and the reason.
    const fn line(self) -> &'static str {
        match self {
            Self::Ok => "200 OK",
            Self::BadRequest => "400 Bad Request",
            Self::Forbidden => "403 Forbidden",
            Self::NotFound => "404 Not Found",
            Self::MethodNotAllowed => "405 Method Not Allowed",
            Self::RequestTimeout => "408 Request Timeout",
            Self::ContentTooLarge => "413 Request Entity Too Large",
            Self::UriTooLong => "414 Request URI Too Long",
            Self::ExpectationFailed => "417 Expectation Failed",
            Self::HeadTooLarge => "431 Request Header Fields Too Large",
            Self::InternalError => "500 Internal Server Error",
            Self::NotImplemented => "501 Not Implemented",
            Self::Unavailable => "503 Service Unavailable",
            Self::VersionNotSupported => "505 HTTP Version Not Supported",
        }
    }
}

/// The content type of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Content {
    /// No body.
    Nothing,
    /// Text of the server itself (`/ping`): without `X-NSQ-Content-Type`.
    Plain,
    /// Text.
    Text,
    /// JSON. Clients of NSQ ignore it without `X-NSQ-Content-Type`.
    Json,
}

/// A refusal, with the body `{"message":"CODE"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Refusal {
    /// The status.
    pub status: Status,
    /// The code, which needs no escaping.
    pub code: &'static str,
    /// The methods of the path, if the request's method is the reason.
    pub(super) allow: Methods,
}

impl Refusal {
    /// Creates a refusal with a status and NSQ's code for the reason, such as `TOPIC_NOT_FOUND`.
    pub const fn new(status: Status, code: &'static str) -> Self {
        Self { status, code, allow: Methods::NONE }
    }

    /// Creates a refusal with status 400.
    pub const fn bad_request(code: &'static str) -> Self {
        Self::new(Status::BadRequest, code)
    }

    /// Creates a refusal with status 404.
    pub const fn not_found(code: &'static str) -> Self {
        Self::new(Status::NotFound, code)
    }

    pub(super) fn emit(&self, piece: &mut Piece<'_>) {
        piece.put(|w| {
            w.write_all(b"{\"message\":\"")?;
            w.write_all(self.code.as_bytes())?;
            w.write_all(b"\"}")
        });
    }
}

/// How the end of an answer is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// By its length in bytes.
    Length(usize),
    /// By chunks.
    Chunked,
    /// By the end of the connection.
    ToTheEnd,
}

/// The head of an answer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    pub(super) status: Status,
    pub(super) content: Content,
    pub(super) allow: Methods,
    /// The request has version 1.0.
    pub(super) is_old: bool,
    /// The connection is closed after the answer.
    pub(super) closes: bool,
    pub(super) framing: Framing,
}

impl Head {
    /// Writes the header lines in the order of Go's net/http; without a date, as there is no clock.
    fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        w.write_all(if self.is_old { b"HTTP/1.0 " } else { b"HTTP/1.1 " })?;
        w.write_all(self.status.line().as_bytes())?;
        w.write_all(b"\r\n")?;
        self.allow.emit(w)?;
        match self.content {
            Content::Nothing => {}
            Content::Plain | Content::Text => {
                w.write_all(b"Content-Type: text/plain; charset=utf-8\r\n")?;
            }
            Content::Json => {
                w.write_all(b"Content-Type: application/json; charset=utf-8\r\n")?;
            }
        }
        let is_options = self.content == Content::Nothing && self.allow != Methods::NONE;
        if self.content != Content::Plain && !is_options {
            w.write_all(b"X-NSQ-Content-Type: nsq; version=1.0\r\n")?;
        }
        match self.framing {
            Framing::Length(len) => {
                w.write_all(b"Content-Length: ")?;
                w.write_all(Decimal::unsigned(saturate(len)).as_bytes())?;
                w.write_all(b"\r\n")?;
            }
            Framing::Chunked => w.write_all(b"Transfer-Encoding: chunked\r\n")?,
            Framing::ToTheEnd => {}
        }
        if self.closes {
            w.write_all(b"Connection: close\r\n")?;
        } else if self.is_old {
            w.write_all(b"Connection: keep-alive\r\n")?;
        }
        w.write_all(b"\r\n")
    }

    /// Writes the head into a piece.
    pub(super) fn put(&self, piece: &mut Piece<'_>) {
        piece.put(|w| self.emit(w));
    }
}

/// Writes the line before a chunk of `len` bytes, at most 4095.
pub(super) fn put_chunk_len(piece: &mut Piece<'_>, len: usize) {
    let digit = |shift: u32| hex((len.unbounded_shr(shift) & 0xf) as u8);
    piece.put(|w| w.write_all(&[digit(8), digit(4), digit(0), b'\r', b'\n']));
}

/// A buffer for the next piece of an answer. An element that does not fit goes into the next piece.
#[derive(Debug)]
pub struct Piece<'p> {
    buf: &'p mut [u8],
    len: usize,
    over: bool,
}

impl<'p> Piece<'p> {
    /// Creates an empty piece over all of `buf`.
    pub const fn new(buf: &'p mut [u8]) -> Self {
        Self { buf, len: 0, over: false }
    }

    /// Writes the output of `emit` if all of it fits and returns true; else writes nothing and
    /// returns false. [`super::PIECE_MIN`] bytes always fit into an empty piece.
    pub fn put(&mut self, emit: impl FnOnce(&mut Self) -> Result<(), Infallible>) -> bool {
        let before = self.len;
        let Ok(()) = emit(self);
        if core::mem::take(&mut self.over) {
            self.len = before;
            return false;
        }
        true
    }

    /// Returns the number of bytes written.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether nothing was written.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl ErrorType for Piece<'_> {
    type Error = Infallible;
}

impl Write for Piece<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        let room = self.buf.get_mut(self.len..).unwrap_or_default();
        let kept = copy(room, bytes);
        self.over |= kept < bytes.len();
        self.len = self.len.saturating_add(kept);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}
