//! Writing JSON.

use crate::wire::{Decimal, Write};

/// A writer of one object, field by field, compact and in the order of the calls.
///
/// ```
/// use nanonsq_core::wire::json::Object;
///
/// let mut buf = [0; 64];
/// let mut rest = &mut buf[..];
/// let mut object = Object::new(&mut rest);
/// object.string("hostname", "a\"b").unwrap();
/// object.number("tcp_port", 4150).unwrap();
/// object.end().unwrap();
/// let left = rest.len();
/// assert_eq!(&buf[..64 - left], br#"{"hostname":"a\"b","tcp_port":4150}"#);
/// ```
#[derive(Debug)]
pub struct Object<'w, W> {
    w: &'w mut W,
    // The byte before the next key.
    before: u8,
}

impl<'w, W: Write> Object<'w, W> {
    /// Creates an object without fields; nothing is written yet.
    pub const fn new(w: &'w mut W) -> Self {
        Self { w, before: b'{' }
    }

    /// Writes a string field; the value is escaped.
    pub fn string(&mut self, key: &str, value: &str) -> Result<(), W::Error> {
        emit_str(self.key(key)?, value)
    }

    /// Writes a field with an unsigned number.
    pub fn number(&mut self, key: &str, value: u32) -> Result<(), W::Error> {
        self.key(key)?.write_all(Decimal::unsigned(value).as_bytes())
    }

    /// Writes a field with a signed number.
    pub fn signed(&mut self, key: &str, value: i32) -> Result<(), W::Error> {
        self.key(key)?.write_all(Decimal::signed(value).as_bytes())
    }

    /// Writes a boolean field.
    pub fn bool(&mut self, key: &str, value: bool) -> Result<(), W::Error> {
        self.key(key)?.write_all(if value { b"true" } else { b"false" })
    }

    /// Writes a key and returns the writer, for a value (an array, an inner object) by the caller.
    pub fn key(&mut self, key: &str) -> Result<&mut W, W::Error> {
        self.w.write_all(&[self.before])?;
        self.before = b',';
        emit_str(self.w, key)?;
        self.w.write_all(b":")?;
        Ok(self.w)
    }

    /// Closes the object.
    pub fn end(self) -> Result<(), W::Error> {
        self.w.write_all(if self.before == b'{' { b"{}" } else { b"}" })
    }
}

/// Writes a string with its quotes. Escapes what JSON requires: quotes, backslashes and control
/// characters. All else passes as UTF-8.
pub fn emit_str<W: Write>(w: &mut W, text: &str) -> Result<(), W::Error> {
    w.write_all(b"\"")?;
    let mut rest = text.as_bytes();
    loop {
        let plain = rest.iter().position(|b| must_escape(*b)).unwrap_or(rest.len());
        let (run, tail) = rest.split_at_checked(plain).unwrap_or_default();
        w.write_all(run)?;
        let Some((&byte, tail)) = tail.split_first() else {
            break;
        };
        if byte < b' ' {
            w.write_all(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 0xf)])?;
        } else {
            w.write_all(&[b'\\', byte])?;
        }
        rest = tail;
    }
    w.write_all(b"\"")
}

const fn must_escape(byte: u8) -> bool {
    byte < b' ' || byte == b'"' || byte == b'\\'
}

/// Returns the lower-case hexadecimal digit of a number below 16.
pub(crate) const fn hex(digit: u8) -> u8 {
    if digit < 10 { b'0'.wrapping_add(digit) } else { b'a'.wrapping_sub(10).wrapping_add(digit) }
}
