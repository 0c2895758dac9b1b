//! Parses heads of requests byte by byte.
//!
//! The path, then the parameters that the service uses, are kept at the front of the connection's
//! buffer. Behind them lies the word being read. All other bytes are dropped, so a head may be much
//! longer than the buffer.
//!
//! ```text
//! buffer | path | index, length, value | index, length, value | ... | word | free |
//! ```

mod header;
mod line;

use super::answer::{Refusal, Status};
use super::request::{Method, Request};
use super::{BUFFER, Exchange, HEAD_MAX, LINE_MAX, PARAMS_MAX, PATH_MAX, VALUE_MAX};

/// The length of the longest known word: `transfer-encoding`.
const WORD_MAX: usize = 17;

// One byte more than each bound is kept, which shows that a text was too long.
const _: () = assert!(
    PATH_MAX + 1 + PARAMS_MAX * (VALUE_MAX + 3) + WORD_MAX < BUFFER
        && PATH_MAX < 255
        && VALUE_MAX < 255
);

/// The position in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Method,
    /// At the first byte of the target.
    Target,
    /// Behind the target `*`.
    Star,
    /// In the scheme of a target, behind its colon, behind the first slash after that.
    Scheme,
    Colon,
    Slash,
    /// In a target that is no path and has none.
    Opaque,
    /// Between `http://` and the path.
    Authority,
    Path,
    Key,
    Value,
    Version,
    /// At the first byte of a header line.
    Line,
    /// In the name of a header, in its value.
    Name,
    Field,
}

/// The known headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    /// No header was read yet.
    None,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Expect,
    Other,
}

/// The position in an escape in path or query: outside, behind `%`, behind the first digit.
#[derive(Debug, Clone, Copy)]
enum Escape {
    No,
    Begun,
    Digit(u8),
}

/// Reads one head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scanner {
    at: At,
    escape: Escape,
    header: Header,
    method: Method,
    /// The last byte was a carriage return: a line feed has to follow.
    cr: bool,
    /// Nothing of the header's value was read yet, or blanks since its last byte.
    gap: bool,
    bad_query: bool,
    has_host: bool,
    has_expect: bool,
    has_encoding: bool,
    is_chunked: bool,
    keeps_alive: bool,
    /// The first `Expect` has unknown words.
    is_unmet: bool,
    /// The length of the word being read.
    word: u8,
    /// The length of the path.
    path: u8,
    /// The length of everything kept, the path included.
    kept: u16,
    /// The length of the head so far.
    total: u32,
    /// The value of a `Content-Length`, if any; then the digits of the one being read, if any.
    has_len: bool,
    len: u32,
    has_digit: bool,
    reading: u32,
    exchange: Exchange,
}

const BAD: Refusal = Refusal::bad_request("BAD_REQUEST");

impl Scanner {
    pub(super) const fn new() -> Self {
        Self { method: Method::Other, gap: true, ..Self::ZERO }
    }

    /// A value of zero bytes, for storage before its use.
    pub(super) const ZERO: Self = Self {
        at: At::Method,
        escape: Escape::No,
        header: Header::None,
        method: Method::Get,
        cr: false,
        gap: false,
        bad_query: false,
        has_host: false,
        has_expect: false,
        has_encoding: false,
        is_chunked: false,
        keeps_alive: false,
        is_unmet: false,
        word: 0,
        path: 0,
        kept: 0,
        total: 0,
        has_len: false,
        len: 0,
        has_digit: false,
        reading: 0,
        exchange: Exchange::NEW,
    };

    /// Returns the properties of the request that decide how it is answered.
    pub(super) const fn exchange(&self) -> Exchange {
        self.exchange
    }

    /// Returns the length of the body; `None` if it is chunked.
    pub(super) const fn body_len(&self) -> Option<u32> {
        if self.is_chunked { None } else { Some(self.len) }
    }

    /// Returns the request, for a service with the parameters `names`.
    pub(super) fn request<'r>(&self, buf: &'r [u8], names: &'r [&'r str]) -> Request<'r> {
        let kept = buf.get(..self.kept.into()).unwrap_or_default();
        let (path, params) = kept.split_at_checked(self.path.into()).unwrap_or_default();
        let (method, bad_query, body_len) = (self.method, self.bad_query, self.body_len());
        Request { method, path, names, params, bad_query, body_len }
    }

    /// Consumes the next byte and returns whether the head is complete.
    pub(super) fn take(
        &mut self,
        byte: u8,
        buf: &mut [u8],
        names: &[&str],
    ) -> Result<bool, Refusal> {
        self.total = self.total.saturating_add(1);
        if self.total > HEAD_MAX {
            return Err(Refusal::new(Status::HeadTooLarge, "HEADER_TOO_LARGE"));
        }
        let in_line = !matches!(self.at, At::Line | At::Name | At::Field);
        match byte {
            b'\n' => {
                self.cr = false;
                return self.end_line(buf);
            }
            // A carriage return is valid only before a line feed.
            _ if self.cr => return Err(BAD),
            b'\r' => self.cr = true,
            b'\t' if self.at == At::Line || self.at == At::Field => self.blank()?,
            0..b' ' | 0x7f => return Err(BAD),
            _ if in_line => {
                if self.total > LINE_MAX {
                    return Err(Refusal::new(Status::UriTooLong, "URI_TOO_LONG"));
                }
                self.line_byte(byte, buf, names)?;
            }
            b' ' => self.blank()?,
            _ => self.header_byte(byte, buf)?,
        }
        Ok(false)
    }

    /// Handles a line feed and returns whether it ends the head.
    fn end_line(&mut self, buf: &[u8]) -> Result<bool, Refusal> {
        match self.at {
            At::Version => {
                let [b'H', b'T', b'T', b'P', b'/', major, b'.', minor] = self.word(buf) else {
                    return Err(BAD);
                };
                if !major.is_ascii_digit() || !minor.is_ascii_digit() {
                    return Err(BAD);
                }
                if *major != b'1' {
                    let status = Status::VersionNotSupported;
                    return Err(Refusal::new(status, "VERSION_NOT_SUPPORTED"));
                }
                self.exchange.is_old = *minor == b'0';
                self.exchange.is_head = self.method == Method::Head;
                self.word = 0;
                self.at = At::Line;
            }
            At::Field => self.at = At::Line,
            At::Line => {
                self.end_header(buf)?;
                return self.end().map(|()| true);
            }
            _ => return Err(BAD),
        }
        Ok(false)
    }

    /// Handles the end of the head.
    fn end(&mut self) -> Result<(), Refusal> {
        let exchange = &mut self.exchange;
        if !self.has_host && !exchange.is_old {
            return Err(Refusal::bad_request("MISSING_HOST"));
        }
        if self.is_unmet && !exchange.expects {
            return Err(Refusal::new(Status::ExpectationFailed, "EXPECTATION_FAILED"));
        }
        exchange.expects &= !exchange.is_old;
        exchange.closes |= exchange.is_old && !self.keeps_alive;
        Ok(())
    }

    fn word<'b>(&self, buf: &'b [u8]) -> &'b [u8] {
        let behind = buf.get(self.kept.into()..).unwrap_or_default();
        behind.get(..self.word.into()).unwrap_or_default()
    }

    /// Appends to the word. A word that is too long keeps one byte too many, which shows that.
    fn push(&mut self, byte: u8, buf: &mut [u8]) {
        let most = match self.at {
            At::Path => PATH_MAX,
            At::Value => VALUE_MAX,
            _ => WORD_MAX,
        };
        let at = usize::from(self.kept).saturating_add(self.word.into());
        if usize::from(self.word) <= most
            && let Some(slot) = buf.get_mut(at)
        {
            *slot = byte;
            self.word = self.word.saturating_add(1);
        }
    }
}

/// Returns whether a method or the name of a header may contain the byte.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
