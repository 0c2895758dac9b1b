//! The first line of a request: method, target and version.

use super::{At, BAD, Escape, Scanner, is_token};
use crate::http::PATH_MAX;
use crate::http::answer::Refusal;
use crate::http::request::{Method, find_param};

impl Scanner {
    /// Handles a byte of the request's first line.
    pub(super) fn line_byte(
        &mut self,
        byte: u8,
        buf: &mut [u8],
        names: &[&str],
    ) -> Result<(), Refusal> {
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

    /// Handles a byte of path or query.
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
                        // A key without `=` has an empty value.
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
        // A path that is too long matches no route.
        self.path = if usize::from(len) > PATH_MAX { 0 } else { len };
        self.kept = self.path.into();
    }

    /// Handles the end of a key. Keeps the index of the parameter; an index that is none for an
    /// unknown parameter, and for one that was given before.
    fn end_key(&mut self, buf: &mut [u8], names: &[&str]) {
        let key = self.word(buf);
        let params = buf.get(self.path.into()..self.kept.into()).unwrap_or_default();
        let index = names.iter().position(|name| name.as_bytes() == key);
        let index = index.filter(|index| find_param(params, *index).is_none());
        self.word = 0;
        self.kept = self.kept.saturating_add(2);
        if let Some(slot) = self.value_head(buf) {
            *slot = [index.map_or(u8::MAX, |index| index as u8), 0];
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

    /// Returns the index and length in front of the value that is being read.
    fn value_head<'b>(&self, buf: &'b mut [u8]) -> Option<&'b mut [u8; 2]> {
        let at = usize::from(self.kept).checked_sub(2)?;
        buf.get_mut(at..)?.first_chunk_mut()
    }
}
