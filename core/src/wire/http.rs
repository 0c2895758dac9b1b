//! HTTP/1.1 for a client, as far as a query to nsqlookupd needs it.
//!
//! [`emit_get`] writes a request. [`ResponseDecoder`] reads the answer in pieces: the status, and
//! the body by `Content-Length`, in chunks, or up to the end of the connection. nsqlookupd uses
//! Go's net/http: short answers have a length, those above 2 KiB come in chunks.
//!
//! The crate `httparse` is not used, because it needs the whole head in one slice, and the head of
//! a proxy is longer than the RAM that a device can spend on each nsqlookupd. Three lines of a head
//! matter, each shorter than 40 bytes; the others are skipped as they arrive.

#[cfg(test)]
mod tests;

use core::fmt;

use super::json::JsonError;
use super::{Decimal, Write, take};
use crate::address::Address;

/// The longest head that is read, and the longest line about a chunk, in bytes.
pub const HEAD_MAX: u16 = 8 * 1024;

/// How many bytes of a line are kept: enough for a length or coding and some white space.
const LINE: usize = 40;

/// Why an answer cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum HttpError {
    /// The answer does not start with HTTP/1: the port may be the TCP port.
    NotHttp,
    /// The head has more than [`HEAD_MAX`] bytes.
    HeadTooLong,
    /// `Content-Length` is not one number of at most 32 bits.
    Length,
    /// `Transfer-Encoding` is not `chunked`.
    Coding,
    /// A chunk begins or ends with other bytes than it should.
    Chunk,
    /// The connection ended before the answer.
    Truncated,
}

/// Why an nsqlookupd's answer cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum BadAnswer {
    /// The answer is not valid HTTP.
    Http(HttpError),
    /// The status is neither 200 nor nsqlookupd's 404 for a topic that no node has.
    Status(u16),
    /// The body is not JSON.
    Json(JsonError),
    /// The body has no list of producers.
    NoProducers,
    /// The body has no list of channels.
    NoChannels,
}

/// Decodes an answer that arrives split anywhere.
///
/// RAM: 52 bytes.
///
/// ```
/// use nanonsq_core::wire::http::ResponseDecoder;
///
/// let mut answer = ResponseDecoder::new();
/// let mut input = &b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"[..];
/// assert_eq!(answer.next(&mut input), Ok(Some(&b"{}"[..])));
/// assert_eq!((answer.status(), answer.is_complete()), (Some(200), true));
/// ```
#[derive(Debug, Clone)]
pub struct ResponseDecoder {
    place: Place,
    body: Body,
    status: u16,
    /// Bytes left of the body or of the chunk.
    left: u32,
    /// How many more bytes the head or line may have.
    room: u16,
    line: [u8; LINE],
    len: u8,
}

/// The part of an answer that comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Status,
    Header,
    Body,
    ChunkSize,
    ChunkEnd,
    Trailer,
    Complete,
}

/// How the body ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body {
    ToTheEnd,
    Length,
    Chunks,
}

impl ResponseDecoder {
    /// Creates a decoder for a new answer.
    pub const fn new() -> Self {
        Self { room: HEAD_MAX, ..Self::ZERO }
    }

    /// A value of zero bytes, for storage before its use.
    pub(crate) const ZERO: Self = Self {
        place: Place::Status,
        body: Body::ToTheEnd,
        status: 0,
        left: 0,
        room: 0,
        line: [0; LINE],
        len: 0,
    };

    /// Consumes bytes from the front of `input` and returns the next piece of the body; `None` once
    /// all bytes are consumed. Bytes after a complete answer are dropped.
    ///
    /// After an error the rest of the stream cannot be decoded.
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<&'b [u8]>, HttpError> {
        loop {
            match self.place {
                Place::Complete => {
                    *input = &[];
                    return Ok(None);
                }
                Place::Body => {
                    let counted = self.body != Body::ToTheEnd;
                    let data = take(input, if counted { self.left } else { u32::MAX });
                    if data.is_empty() {
                        return Ok(None);
                    }
                    if counted {
                        self.left = self.left.saturating_sub(data.len() as u32);
                        if self.left == 0 {
                            self.end_of_part();
                        }
                    }
                    return Ok(Some(data));
                }
                Place::Status
                | Place::Header
                | Place::ChunkSize
                | Place::ChunkEnd
                | Place::Trailer => {
                    if !self.fill(input)? {
                        return Ok(None);
                    }
                    self.on_line()?;
                    self.len = 0;
                }
            }
        }
    }

    /// Notes that the connection ended, and fails unless the answer is complete.
    pub fn finish(&mut self) -> Result<(), HttpError> {
        if self.place == Place::Complete
            || (self.place == Place::Body && self.body == Body::ToTheEnd)
        {
            self.place = Place::Complete;
            return Ok(());
        }
        Err(HttpError::Truncated)
    }

    /// Returns the status code once the head was read.
    pub const fn status(&self) -> Option<u16> {
        match self.place {
            Place::Status | Place::Header => None,
            _ => Some(self.status),
        }
    }

    /// Returns whether the answer was read to its end. An answer that ends with the connection is
    /// complete once [`finish`](Self::finish) was called.
    pub const fn is_complete(&self) -> bool {
        matches!(self.place, Place::Complete)
    }

    /// Appends to the line; returns whether the line is complete, its end excluded.
    fn fill(&mut self, input: &mut &[u8]) -> Result<bool, HttpError> {
        while let Some((&byte, rest)) = input.split_first() {
            *input = rest;
            if byte == b'\n' {
                if self.line().last() == Some(&b'\r') {
                    self.len = self.len.wrapping_sub(1);
                }
                return Ok(true);
            }
            self.room = self.room.checked_sub(1).ok_or(HttpError::HeadTooLong)?;
            // Checked byte by byte: nsqlookupd's TCP port answers without a line end.
            let wanted = VERSION.get(usize::from(self.len));
            if self.place == Place::Status && wanted.is_some_and(|wanted| *wanted != byte) {
                return Err(HttpError::NotHttp);
            }
            if let Some(slot) = self.line.get_mut(usize::from(self.len)) {
                *slot = byte;
                self.len = self.len.wrapping_add(1);
            }
        }
        Ok(false)
    }

    fn line(&self) -> &[u8] {
        self.line.get(..self.len.into()).unwrap_or_default()
    }

    fn on_line(&mut self) -> Result<(), HttpError> {
        match self.place {
            Place::Status => {
                self.status = status(self.line()).ok_or(HttpError::NotHttp)?;
                self.place = Place::Header;
            }
            Place::Header if self.len == 0 => self.end_of_head(),
            Place::Header => self.on_header()?,
            Place::ChunkSize => {
                self.left = chunk_size(self.line()).ok_or(HttpError::Chunk)?;
                self.place = if self.left == 0 { Place::Trailer } else { Place::Body };
            }
            Place::ChunkEnd if self.len > 0 => return Err(HttpError::Chunk),
            Place::ChunkEnd => {
                self.room = HEAD_MAX;
                self.place = Place::ChunkSize;
            }
            Place::Trailer if self.len == 0 => self.place = Place::Complete,
            Place::Trailer | Place::Body | Place::Complete => {}
        }
        Ok(())
    }

    fn on_header(&mut self) -> Result<(), HttpError> {
        let whole = usize::from(self.len) < LINE;
        let line = self.line();
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Ok(()) };
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let value = value.split_first().map_or(value, |(_, value)| value.trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let len = number(value, 10).filter(|_| whole).ok_or(HttpError::Length)?;
            match self.body {
                Body::Length if self.left != len => return Err(HttpError::Length),
                Body::Length | Body::ToTheEnd => {
                    self.left = len;
                    self.body = Body::Length;
                }
                // Chunks take precedence over a length (RFC 9112, 6.3).
                Body::Chunks => {}
            }
        } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err(HttpError::Coding);
            }
            self.body = Body::Chunks;
        }
        Ok(())
    }

    fn end_of_head(&mut self) {
        self.room = HEAD_MAX;
        self.place = match (self.status, self.body) {
            // The final answer follows.
            (100..=199, _) => {
                *self = Self::new();
                Place::Status
            }
            (204 | 304, _) => Place::Complete,
            (_, Body::Chunks) => Place::ChunkSize,
            (_, Body::Length) if self.left == 0 => Place::Complete,
            (_, Body::Length | Body::ToTheEnd) => Place::Body,
        };
    }

    fn end_of_part(&mut self) {
        self.place = if self.body == Body::Chunks { Place::ChunkEnd } else { Place::Complete };
    }
}

impl Default for ResponseDecoder {
    fn default() -> Self {
        Self::new()
    }
}

/// The start of every answer.
const VERSION: &[u8] = b"HTTP/1.";

/// Parses the code in `HTTP/1.x code reason`.
fn status(line: &[u8]) -> Option<u16> {
    let rest = line.strip_prefix(VERSION)?;
    let code = rest.get(1..5)?.strip_prefix(b" ")?;
    number(code, 10).map(|code| code as u16)
}

/// Parses the size in `size [;extension]`.
fn chunk_size(line: &[u8]) -> Option<u32> {
    let end = line.iter().position(|byte| *byte == b';').unwrap_or(line.len());
    number(line.get(..end)?.trim_ascii(), 16)
}

/// Parses a whole text as a number.
fn number(digits: &[u8], radix: u32) -> Option<u32> {
    let first = digits.first().map(|_| 0);
    digits.iter().fold(first, |number: Option<u32>, byte| {
        // Not `char::to_digit`, which panics for a radix above 36.
        let digit = match byte {
            b'0'..=b'9' => byte.wrapping_sub(b'0'),
            _ => byte.to_ascii_lowercase().wrapping_sub(b'a').checked_add(10)?,
        };
        let digit = Some(u32::from(digit)).filter(|&digit| digit < radix)?;
        number?.checked_mul(radix)?.checked_add(digit)
    })
}

/// Writes a GET of `path`, which ends with `key=`, and `value`. The server closes after its answer.
///
/// The value is a name, in which only `#` has to be escaped.
pub fn emit_get<W: Write>(
    w: &mut W,
    host: &Address,
    path: &str,
    value: &str,
    user_agent: &str,
) -> Result<(), W::Error> {
    w.write_all(b"GET ")?;
    w.write_all(path.as_bytes())?;
    let mut value = value.as_bytes();
    while let Some(at) = value.iter().position(|byte| *byte == b'#') {
        let (plain, rest) = value.split_at_checked(at).unwrap_or_default();
        w.write_all(plain)?;
        w.write_all(b"%23")?;
        value = rest.split_first().map_or(rest, |(_, rest)| rest);
    }
    w.write_all(value)?;
    w.write_all(b" HTTP/1.1\r\nHost: ")?;
    let literal = host.host().bytes().any(|byte| byte == b':');
    if literal {
        w.write_all(b"[")?;
    }
    w.write_all(host.host().as_bytes())?;
    w.write_all(if literal { b"]:" } else { b":" })?;
    w.write_all(Decimal::unsigned(host.port().into()).as_bytes())?;
    w.write_all(b"\r\nUser-Agent: ")?;
    w.write_all(user_agent.as_bytes())?;
    // Without it, an nsqlookupd before 1.0 wraps its answer in another object.
    w.write_all(b"\r\nAccept: application/vnd.nsq; version=1.0\r\nConnection: close\r\n\r\n")
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotHttp => {
                "not an answer in HTTP; use nsqlookupd's HTTP port (4161), not its TCP port"
            }
            Self::HeadTooLong => "an HTTP head longer than 8 KiB",
            Self::Length => "an HTTP answer with an invalid Content-Length",
            Self::Coding => "an HTTP answer in a Transfer-Encoding other than chunked",
            Self::Chunk => "an HTTP answer with an invalid chunk",
            Self::Truncated => "the connection ended within the HTTP answer",
        })
    }
}

impl core::error::Error for HttpError {}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(error) => error.fmt(f),
            Self::Status(status) => write!(f, "nsqlookupd answered with HTTP status {status}"),
            Self::Json(error) => write!(f, "nsqlookupd's answer is not JSON: {error}"),
            Self::NoProducers => f.write_str("nsqlookupd's answer has no list of producers"),
            Self::NoChannels => f.write_str("nsqlookupd's answer has no list of channels"),
        }
    }
}

impl core::error::Error for BadAnswer {}
