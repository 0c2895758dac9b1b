//! Writing text without `core::fmt`.

use core::convert::Infallible;
use core::fmt;

use super::json::hex;
use super::{ErrorType, Write};

/// An integer as decimal text, without a division and without `core::fmt`.
#[derive(Debug, Clone, Copy)]
pub struct Decimal {
    // A sign and the 10 digits of the largest number.
    text: [u8; 11],
    len: u8,
}

impl Decimal {
    /// Formats an unsigned number, 1 to 10 digits.
    pub fn unsigned(number: u32) -> Self {
        let mut decimal = Self { text: [0; 11], len: 0 };
        decimal.digits(number);
        decimal
    }

    /// Formats a signed number.
    pub fn signed(number: i32) -> Self {
        let mut decimal = Self { text: [0; 11], len: 0 };
        if number < 0 {
            decimal.push(b'-');
        }
        decimal.digits(number.unsigned_abs());
        decimal
    }

    /// Returns the text.
    pub fn as_bytes(&self) -> &[u8] {
        self.text.get(..usize::from(self.len).min(self.text.len())).unwrap_or_default()
    }

    fn digits(&mut self, number: u32) {
        const POWERS: [u32; 9] =
            [1_000_000_000, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10];
        let mut rest = number;
        let mut leading = true;
        for &power in &POWERS {
            let mut digit = b'0';
            // At most 9 rounds, cheaper than a division on a core without a divider.
            while let Some(less) = rest.checked_sub(power) {
                rest = less;
                digit = digit.wrapping_add(1);
            }
            if !leading || digit != b'0' {
                leading = false;
                self.push(digit);
            }
        }
        self.push(b'0'.wrapping_add(rest as u8));
    }

    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.text.get_mut(usize::from(self.len)) {
            *slot = byte;
            self.len = self.len.wrapping_add(1);
        }
    }
}

/// A writer with methods that can be chained for the pieces of a text.
pub(super) struct Text<'w, W>(pub(super) &'w mut W);

impl<W: Write> Text<'_, W> {
    pub(super) fn text(&mut self, text: &str) -> Result<&mut Self, W::Error> {
        self.raw(text.as_bytes())?;
        Ok(self)
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) -> Result<(), W::Error> {
        self.0.write_all(bytes)
    }

    pub(super) fn unsigned(&mut self, number: u32) -> Result<&mut Self, W::Error> {
        self.raw(Decimal::unsigned(number).as_bytes())?;
        Ok(self)
    }

    pub(super) fn signed(&mut self, number: i32) -> Result<&mut Self, W::Error> {
        self.raw(Decimal::signed(number).as_bytes())?;
        Ok(self)
    }

    pub(super) fn too_big(&mut self, len: i32, max: u32) -> Result<(), W::Error> {
        self.text(" too big ")?.signed(len)?.text(" > ")?.unsigned(max)?.done()
    }

    /// Writes bytes as Go's `%q`. Go also escapes characters that are not printable in Unicode;
    /// here all UTF-8 beyond ASCII passes unchanged.
    pub(super) fn quoted(&mut self, bytes: &[u8]) -> Result<&mut Self, W::Error> {
        self.raw(b"\"")?;
        for chunk in bytes.utf8_chunks() {
            let mut rest = chunk.valid().as_bytes();
            loop {
                let is_plain = |byte: &u8| !matches!(byte, b'"' | b'\\' | 0..b' ' | 0x7f);
                let end = rest.iter().take_while(|byte| is_plain(byte)).count();
                let (run, tail) = rest.split_at_checked(end).unwrap_or_default();
                self.raw(run)?;
                let Some((&byte, tail)) = tail.split_first() else {
                    break;
                };
                rest = tail;
                let letter = match byte {
                    b'"' | b'\\' => byte,
                    7 => b'a',
                    8 => b'b',
                    9 => b't',
                    10 => b'n',
                    11 => b'v',
                    12 => b'f',
                    13 => b'r',
                    _ => {
                        self.escaped(byte)?;
                        continue;
                    }
                };
                self.raw(&[b'\\', letter])?;
            }
            chunk.invalid().iter().try_for_each(|byte| self.escaped(*byte))?;
        }
        self.raw(b"\"")?;
        Ok(self)
    }

    fn escaped(&mut self, byte: u8) -> Result<(), W::Error> {
        self.raw(&[b'\\', b'x', hex(byte >> 4), hex(byte & 0xf)])
    }

    pub(super) fn done(&self) -> Result<(), W::Error> {
        Ok(())
    }
}

/// Writes the output of `emit` to a formatter; bytes that are not UTF-8 become U+FFFD.
pub(super) fn display(
    f: &mut fmt::Formatter<'_>,
    emit: impl FnOnce(&mut Shown<'_, '_>) -> Result<(), Infallible>,
) -> fmt::Result {
    let mut shown = Shown { f, result: Ok(()) };
    let Ok(()) = emit(&mut shown);
    shown.result
}

pub(super) struct Shown<'f, 'a> {
    f: &'f mut fmt::Formatter<'a>,
    result: fmt::Result,
}

impl ErrorType for Shown<'_, '_> {
    type Error = Infallible;
}

impl Write for Shown<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        for chunk in bytes.utf8_chunks() {
            let mark = if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
            self.result = self
                .result
                .and_then(|()| self.f.write_str(chunk.valid()))
                .and_then(|()| self.f.write_str(mark));
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}
