//! Heads of requests, read as they come.
//!
//! What matters is kept at the front of the connection's buffer: the path, then the parameters
//! that the service looks at. Behind that lies the word being read. All else passes by, so a head
//! may be much longer than the buffer.
//!
//! ```text
//! buffer | path | place, length, value | place, length, value | ... | word | free |
//! ```

use super::answer::{Refusal, Status};
use super::request::{Method, Request, find_param};
use super::{BUFFER, Exchange, HEAD_MAX, LINE_MAX, PARAMS_MAX, PATH_MAX, VALUE_MAX};

/// The longest word that means something: `transfer-encoding`.
const WORD_MAX: usize = 17;

// One byte more shows that something is too long.
const _: () = assert!(
    PATH_MAX + 1 + PARAMS_MAX * (VALUE_MAX + 3) + WORD_MAX < BUFFER
        && PATH_MAX < 255
        && VALUE_MAX < 255
);

/// Where in a head.
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

/// A header, by whether it matters.
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

const HEADERS: [(&[u8], Header); 5] = [
    (b"host", Header::Host),
    (b"content-length", Header::ContentLength),
    (b"transfer-encoding", Header::TransferEncoding),
    (b"connection", Header::Connection),
    (b"expect", Header::Expect),
];

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
        Self {
            at: At::Method,
            escape: Escape::No,
            header: Header::None,
            method: Method::Other,
            cr: false,
            gap: true,
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
        }
    }

    /// How the request is to be answered.
    pub(super) const fn exchange(&self) -> Exchange {
        self.exchange
    }

    /// How long the body is; `None` if it comes in chunks.
    pub(super) const fn body_len(&self) -> Option<u32> {
        if self.is_chunked { None } else { Some(self.len) }
    }

    /// What is asked for, of a service that looks at these parameters.
    pub(super) fn request<'r>(&self, buf: &'r [u8], names: &'r [&'r str]) -> Request<'r> {
        let kept = buf.get(..self.kept.into()).unwrap_or_default();
        let (path, params) = kept.split_at_checked(self.path.into()).unwrap_or_default();
        let (method, bad_query, body_len) = (self.method, self.bad_query, self.body_len());
        Request { method, path, names, params, bad_query, body_len }
    }

    /// Takes the next byte; whether it was the last.
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

    /// A byte of the request's line.
    fn line_byte(&mut self, byte: u8, buf: &mut [u8], names: &[&str]) -> Result<(), Refusal> {
        self.at = match (self.at, byte) {
            (At::Method, b' ') => {
                self.method = Method::parse(self.word(buf));
                if core::mem::take(&mut self.word) == 0 {
                    return Err(BAD);
                }
                At::Target
            }
            (At::Method, _) if !is_token(byte) => return Err(BAD),
            (At::Target | At::Authority, b'/') => {
                self.push(byte, buf);
                At::Path
            }
            (At::Target, b'*') => {
                self.push(byte, buf);
                self.end_path();
                At::Star
            }
            (At::Target, _) if byte.is_ascii_alphabetic() => At::Scheme,
            (At::Scheme, b':') => At::Colon,
            (At::Scheme, _) if byte.is_ascii_alphanumeric() || b"+-.".contains(&byte) => At::Scheme,
            (At::Colon, b'/') => At::Slash,
            (At::Slash, b'/') => At::Authority,
            (At::Slash, _) => {
                self.at = At::Path;
                self.push(b'/', buf);
                return self.target_byte(byte, buf, names);
            }
            (At::Star | At::Colon | At::Opaque | At::Authority, b' ') => At::Version,
            (At::Colon | At::Opaque | At::Authority, b'?') => At::Key,
            (At::Authority, _) => At::Authority,
            (At::Colon | At::Opaque, _) => At::Opaque,
            (At::Path | At::Key | At::Value, _) => return self.target_byte(byte, buf, names),
            (At::Method | At::Version, _) => {
                self.push(byte, buf);
                self.at
            }
            (At::Target | At::Star | At::Scheme | At::Line | At::Name | At::Field, _) => {
                return Err(BAD);
            }
        };
        Ok(())
    }

    /// A byte of path or query.
    fn target_byte(&mut self, byte: u8, buf: &mut [u8], names: &[&str]) -> Result<(), Refusal> {
        let in_query = self.at != At::Path;
        let digit = char::from(byte).to_digit(16).map(|digit| digit as u8);
        let decoded = match (self.escape, digit) {
            (Escape::Begun, Some(high)) => {
                self.escape = Escape::Digit(high);
                return Ok(());
            }
            (Escape::Digit(high), Some(low)) => {
                self.escape = Escape::No;
                high << 4 | low
            }
            (Escape::Begun | Escape::Digit(_), None) if !in_query => return Err(BAD),
            (Escape::Begun | Escape::Digit(_) | Escape::No, _) => {
                self.bad_query |= !matches!(self.escape, Escape::No);
                self.escape = Escape::No;
                let next = match byte {
                    b' ' => Some(At::Version),
                    b'?' if !in_query => Some(At::Key),
                    b'&' if in_query => Some(At::Key),
                    b'=' if self.at == At::Key => Some(At::Value),
                    _ => None,
                };
                if let Some(next) = next {
                    match self.at {
                        At::Path => self.end_path(),
                        At::Value => self.end_value(buf),
                        // A key alone is one with an empty value.
                        _ if self.word > 0 || next == At::Value => {
                            self.end_key(buf, names);
                            if next != At::Value {
                                self.end_value(buf);
                            }
                        }
                        _ => {}
                    }
                    self.at = next;
                    return Ok(());
                }
                self.bad_query |= in_query && byte == b';';
                match byte {
                    b'%' => {
                        self.escape = Escape::Begun;
                        return Ok(());
                    }
                    b'+' if in_query => b' ',
                    byte => byte,
                }
            }
        };
        self.push(decoded, buf);
        Ok(())
    }

    fn end_path(&mut self) {
        let len = core::mem::take(&mut self.word);
        // One that is too long is none.
        self.path = if usize::from(len) > PATH_MAX { 0 } else { len };
        self.kept = self.path.into();
    }

    /// A key is whole. The service's place for it is kept, and a place that is none for one that
    /// it does not look at, or not again.
    fn end_key(&mut self, buf: &mut [u8], names: &[&str]) {
        let key = self.word(buf);
        let params = buf.get(self.path.into()..self.kept.into()).unwrap_or_default();
        let place = names.iter().position(|name| name.as_bytes() == key);
        let place = place.filter(|place| find_param(params, *place).is_none());
        self.word = 0;
        self.kept = self.kept.saturating_add(2);
        if let Some(slot) = self.value_head(buf) {
            *slot = [place.map_or(u8::MAX, |place| place as u8), 0];
        }
    }

    fn end_value(&mut self, buf: &mut [u8]) {
        let len = core::mem::take(&mut self.word);
        match self.value_head(buf) {
            Some([u8::MAX, _]) | None => self.kept = self.kept.saturating_sub(2),
            Some([_, slot]) => {
                *slot = len;
                self.kept = self.kept.saturating_add(len.into());
            }
        }
    }

    /// What lies in front of the value that is being read.
    fn value_head<'b>(&self, buf: &'b mut [u8]) -> Option<&'b mut [u8; 2]> {
        let at = usize::from(self.kept).checked_sub(2)?;
        buf.get_mut(at..)?.first_chunk_mut()
    }

    /// A blank in a header line, or in front of one: then it goes on with the value before.
    fn blank(&mut self) -> Result<(), Refusal> {
        let folds = self.at == At::Line && self.header != Header::None;
        if !folds && self.at != At::Field {
            return Err(BAD);
        }
        self.at = At::Field;
        self.gap = true;
        Ok(())
    }

    /// A byte of a header line that is no blank.
    fn header_byte(&mut self, byte: u8, buf: &mut [u8]) -> Result<(), Refusal> {
        match self.at {
            At::Field => return self.field_byte(byte, buf),
            At::Name if byte == b':' && self.word > 0 => {
                let name = self.word(buf);
                let found = HEADERS.iter().find(|(is, _)| *is == name);
                self.header = found.map_or(Header::Other, |(_, header)| *header);
                self.word = 0;
                self.gap = true;
                self.at = At::Field;
                if self.header == Header::Host && core::mem::replace(&mut self.has_host, true) {
                    return Err(Refusal::bad_request("TOO_MANY_HOSTS"));
                }
                return Ok(());
            }
            At::Line => {
                self.end_header(buf)?;
                self.at = At::Name;
            }
            _ => {}
        }
        if !is_token(byte) {
            return Err(BAD);
        }
        self.push(byte.to_ascii_lowercase(), buf);
        Ok(())
    }

    /// A byte of a header's value.
    fn field_byte(&mut self, byte: u8, buf: &mut [u8]) -> Result<(), Refusal> {
        let gap = core::mem::take(&mut self.gap);
        match self.header {
            Header::None | Header::Other => {}
            Header::ContentLength => {
                let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10).ok_or(BAD)?;
                if gap && self.has_digit {
                    return Err(BAD);
                }
                self.has_digit = true;
                // Saturated, which is more than anybody takes.
                self.reading = self.reading.saturating_mul(10).saturating_add(digit.into());
            }
            Header::Connection | Header::Expect if byte == b',' => {
                self.end_word(buf);
                self.gap = true;
            }
            Header::Host if !is_of_host(byte) || (gap && self.word > 0) => {
                return Err(Refusal::bad_request("BAD_HOST"));
            }
            Header::Host | Header::TransferEncoding | Header::Connection | Header::Expect => {
                if gap && self.word > 0 {
                    self.push(b' ', buf);
                }
                self.push(byte.to_ascii_lowercase(), buf);
            }
        }
        Ok(())
    }

    /// A word of a list is whole.
    fn end_word(&mut self, buf: &[u8]) {
        let word = self.word(buf);
        match self.header {
            Header::Connection => {
                self.exchange.closes |= word == b"close";
                self.keeps_alive |= word == b"keep-alive";
            }
            Header::Expect if !self.has_expect => {
                self.exchange.expects |= word == b"100-continue";
                self.is_unmet |= !word.is_empty();
            }
            _ => {}
        }
        self.word = 0;
    }

    /// A header is whole.
    fn end_header(&mut self, buf: &[u8]) -> Result<(), Refusal> {
        match self.header {
            Header::ContentLength => {
                if self.has_len && self.len != self.reading {
                    return Err(BAD);
                }
                self.has_len = true;
                self.len = core::mem::take(&mut self.reading);
                self.has_digit = false;
            }
            // Nobody has heard of it in HTTP/1.0.
            Header::TransferEncoding if !self.exchange.is_old => {
                let is_known = self.word(buf) == b"chunked";
                if !is_known || core::mem::replace(&mut self.has_encoding, true) {
                    return Err(Refusal::new(
                        Status::NotImplemented,
                        "UNSUPPORTED_TRANSFER_ENCODING",
                    ));
                }
                self.is_chunked = true;
            }
            Header::Connection => self.end_word(buf),
            Header::Expect => {
                self.end_word(buf);
                // Of several the first counts.
                self.has_expect = true;
            }
            Header::TransferEncoding | Header::None | Header::Host | Header::Other => {}
        }
        self.word = 0;
        Ok(())
    }

    /// A newline; whether it ends the head.
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

    /// Adds to the word. Of one that is too long one byte too many is kept.
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

/// Whether a method or a header's name may have it.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Whether the value of `Host` may have it.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}
