//! The header lines of a request.

use super::{At, BAD, Header, Scanner, is_token};
use crate::http::answer::{Refusal, Status};

const HEADERS: [(&[u8], Header); 5] = [
    (b"host", Header::Host),
    (b"content-length", Header::ContentLength),
    (b"transfer-encoding", Header::TransferEncoding),
    (b"connection", Header::Connection),
    (b"expect", Header::Expect),
];

impl Scanner {
    /// Handles a blank in a header line, or before one, where it continues the value of the last
    /// line.
    pub(super) fn blank(&mut self) -> Result<(), Refusal> {
        let folds = self.at == At::Line && self.header != Header::None;
        if !folds && self.at != At::Field {
            return Err(BAD);
        }
        self.at = At::Field;
        self.gap = true;
        Ok(())
    }

    /// Handles a byte of a header line that is not a blank.
    pub(super) fn header_byte(&mut self, byte: u8, buf: &mut [u8]) -> Result<(), Refusal> {
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

    /// Handles a byte of a header's value.
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
                // A saturated length is above every bound.
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

    /// Handles the end of a word of a list.
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

    /// Handles the end of a header.
    pub(super) fn end_header(&mut self, buf: &[u8]) -> Result<(), Refusal> {
        match self.header {
            Header::ContentLength => {
                if self.has_len && self.len != self.reading {
                    return Err(BAD);
                }
                self.has_len = true;
                self.len = core::mem::take(&mut self.reading);
                self.has_digit = false;
            }
            // HTTP/1.0 does not have this header.
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
                // The first of several `Expect` headers counts.
                self.has_expect = true;
            }
            Header::TransferEncoding | Header::None | Header::Host | Header::Other => {}
        }
        self.word = 0;
        Ok(())
    }
}

/// Returns whether the value of `Host` may contain the byte.
fn is_of_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(&byte)
}
