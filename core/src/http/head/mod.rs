//! Parses heads of requests byte by byte.
//!
//! What matters is kept at the front of the connection's buffer: the path, then the parameters
//! that the service looks at. Behind that lies the word being read. All else passes by, so a head
//! may be much longer than the buffer.
//!
//! ```text
//! buffer | path | place, length, value | place, length, value | ... | word | free |
//! ```

mod header;
mod line;

use super::answer::{Refusal, Status};
use super::request::{Method, Request};
use super::{BUFFER, Exchange, HEAD_MAX, LINE_MAX, PARAMS_MAX, PATH_MAX, VALUE_MAX};

/// The longest word that means something: `transfer-encoding`.
const WORD_MAX: usize = 17;

// One byte more shows that something is too long.
const _: () = assert!(
    PATH_MAX + 1 + PARAMS_MAX * (VALUE_MAX + 3) + WORD_MAX < BUFFER
        && PATH_MAX < 255
        && VALUE_MAX < 255
);

/// The position in a head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Method,
    /// At the target's first byte.
    Target,
    /// Behind the target `*`.
    Star,
    /// In a target's scheme, behind its colon, behind a slash after that.
    Scheme,
    Colon,
    Slash,
    /// In what is no path, and has none behind it.
    Opaque,
    /// Between `http://` and the path.
    Authority,
    Path,
    Key,
    Value,
    Version,
    /// At a header line's first byte.
    Line,
    /// In a header's name, in its value.
    Name,
    Field,
}

/// The headers that the scanner knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Header {
    /// There was none yet.
    None,
    Host,
    ContentLength,
    TransferEncoding,
    Connection,
    Expect,
    Other,
}

/// An escape in path or query: none, behind its `%`, behind its first digit.
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
    /// A carriage return: a newline has to follow.
    cr: bool,
    /// Of a header's value nothing was read yet, or blanks since.
    gap: bool,
    bad_query: bool,
    has_host: bool,
    has_expect: bool,
    has_encoding: bool,
    is_chunked: bool,
    keeps_alive: bool,
    /// The first `Expect` has words that mean nothing.
    is_unmet: bool,
    /// How long the word being read is.
    word: u8,
    /// How long the path is.
    path: u8,
    /// How long what is kept is, the path included.
    kept: u16,
    /// How long the head is so far.
    total: u32,
    /// There is a `Content-Length`, and its value; a digit of another one, and that.
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

    /// All bytes are zero, for storage before its use.
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

    /// The parts of the head that decide how the request is answered.
    pub(super) const fn exchange(&self) -> Exchange {
        self.exchange
    }

    /// The length of the body; `None` if it is chunked.
    pub(super) const fn body_len(&self) -> Option<u32> {
        if self.is_chunked { None } else { Some(self.len) }
    }

    /// The request, for a service with the parameters `names`.
    pub(super) fn request<'r>(&self, buf: &'r [u8], names: &'r [&'r str]) -> Request<'r> {
        let kept = buf.get(..self.kept.into()).unwrap_or_default();
        let (path, params) = kept.split_at_checked(self.path.into()).unwrap_or_default();
        let (method, bad_query, body_len) = (self.method, self.bad_query, self.body_len());
        Request { method, path, names, params, bad_query, body_len }
    }

    /// Takes the next byte and returns whether the head is complete.
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
            // Only in front of a newline.
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

    /// Handles a newline and returns whether it ends the head.
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

    /// The head is whole.
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

    /// Appends to the word. A word that is too long keeps one byte too many, so that it is noticed.
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

/// Whether a method or a header's name may contain the byte.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
