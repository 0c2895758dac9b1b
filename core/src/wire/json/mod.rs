//! The little JSON that NSQ speaks: IDENTIFY bodies, their answers, HTTP answers.
//!
//! [`Object`] writes an object to any [`Write`](super::Write). [`Scanner`] reads a document of any
//! length in constant memory, split anywhere; [`Fields`] runs it over one flat object.
//!
//! Bounds: see [`Scanner`]. Nothing here panics, allocates or recurses.

mod emit;
mod fields;
mod machine;
mod scan;

use core::fmt;

pub(crate) use emit::hex;
pub use emit::{Object, emit_str};
pub use fields::Fields;
pub(in crate::wire) use fields::fields;
pub use machine::DEPTH_MAX;
pub use scan::Scanner;

/// One piece of a JSON document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Token<'s> {
    /// `{`
    ObjectStart,
    /// `}`
    ObjectEnd,
    /// `[`
    ArrayStart,
    /// `]`
    ArrayEnd,
    /// The key of the value that follows.
    Key(Text<'s>),
    /// A string.
    String(Text<'s>),
    /// A number.
    Number(Number),
    /// `true` or `false`.
    Bool(bool),
    /// `null`
    Null,
}

impl<'s> Token<'s> {
    /// The boolean, if it is one.
    pub const fn as_bool(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// The number's integer part, if it is a number; saturated.
    pub const fn as_i32(self) -> Option<i32> {
        match self {
            Self::Number(number) => Some(number.integer),
            _ => None,
        }
    }

    /// The number, if it is one and an integer that fits.
    pub const fn as_exact(self) -> Option<i32> {
        match self {
            Self::Number(Number { integer, exact: true }) => Some(integer),
            _ => None,
        }
    }

    /// The string, if it is one.
    pub const fn as_text(self) -> Option<Text<'s>> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// A string or key, unescaped; the first bytes of it if it is longer than the scanner's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'s> {
    bytes: &'s [u8],
    truncated: bool,
}

impl<'s> Text<'s> {
    /// The bytes, as they came, and so not necessarily UTF-8. A lone surrogate (`\ud800`) reads as
    /// U+FFFD.
    pub const fn as_bytes(&self) -> &'s [u8] {
        self.bytes
    }

    /// The text, if it is UTF-8. If it was cut, then between two characters.
    pub fn as_str(&self) -> Option<&'s str> {
        match core::str::from_utf8(self.bytes) {
            Ok(text) => Some(text),
            // Only the last character is cut.
            Err(error) if self.truncated && error.error_len().is_none() => {
                let whole = self.bytes.get(..error.valid_up_to()).unwrap_or_default();
                core::str::from_utf8(whole).ok()
            }
            Err(_) => None,
        }
    }

    /// Whether the rest was dropped.
    pub const fn truncated(&self) -> bool {
        self.truncated
    }
}

impl Text<'_> {
    /// Puts as much of the text into `to` as fits, whole characters only; U+FFFD where it is not
    /// UTF-8, as Go does.
    pub(crate) fn store<const N: usize>(&self, to: &mut heapless::String<N, u8>) {
        to.clear();
        let mut mark = "";
        for chunk in self.bytes.utf8_chunks() {
            for char in mark.chars().chain(chunk.valid().chars()) {
                if to.push(char).is_err() {
                    return;
                }
            }
            mark = if chunk.invalid().is_empty() { "" } else { "\u{fffd}" };
        }
        if !self.truncated {
            // No room for it is as good as room.
            let _ = to.push_str(mark);
        }
    }

    /// As [`store`](Self::store), up to the first byte that is not ASCII, without the code for
    /// UTF-8; whether that is all of it.
    pub(crate) fn store_ascii<const N: usize>(&self, to: &mut heapless::String<N, u8>) -> bool {
        to.clear();
        let whole = self.bytes.iter().all(|&byte| byte.is_ascii() && to.push(byte.into()).is_ok());
        whole && !self.truncated
    }
}

/// A number as an integer: every number in NSQ's protocols is a small one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Number {
    /// The digits before any `.`, `e` or `E`; `i32::MIN` or `i32::MAX` if it lies beyond.
    pub integer: i32,
    /// Whether that is the number: not saturated, without fraction and exponent.
    pub exact: bool,
}

/// Why a document is not taken, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct JsonError {
    at: u32,
    // The state it happened in, from which `problem` tells what was missing: on a
    // microcontroller that never asks, that costs nothing.
    mode: machine::Mode,
    allowed: u8,
}

impl JsonError {
    /// The offending byte's place in the document, from 0; stays at `u32::MAX`.
    pub const fn at(&self) -> u32 {
        self.at
    }

    /// What is wrong with it.
    pub const fn problem(&self) -> Problem {
        match self.mode {
            machine::Mode::Structure => match self.allowed {
                0 => Problem::Trailing,
                machine::COLON => Problem::Colon,
                allowed if allowed & machine::KEY != 0 => Problem::Key,
                allowed if allowed & machine::VALUE != 0 => Problem::Value,
                _ => Problem::CommaOrEnd,
            },
            machine::Mode::Text => Problem::Control,
            machine::Mode::Escape | machine::Mode::Hex | machine::Mode::Half => Problem::Escape,
            machine::Mode::Number => Problem::Number,
            machine::Mode::Literal => Problem::Literal,
            machine::Mode::TooDeep => Problem::TooDeep,
            machine::Mode::Incomplete => Problem::Incomplete,
            machine::Mode::NotAnObject => Problem::NotAnObject,
            machine::Mode::WrongType => Problem::WrongType,
        }
    }
}

/// What is wrong with a document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Problem {
    /// No value where one belongs.
    Value,
    /// No key in quotes where one belongs.
    Key,
    /// No `:` after a key.
    Colon,
    /// Neither `,` nor the end of the object or array after a value.
    CommaOrEnd,
    /// Neither `true`, `false` nor `null`.
    Literal,
    /// Not a number as JSON writes it.
    Number,
    /// A control character inside a string.
    Control,
    /// A `\` followed by something unknown.
    Escape,
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// Something after the document's end.
    Trailing,
    /// The document ends too early.
    Incomplete,
    /// [`Fields`]: the document is neither an object nor `null`.
    NotAnObject,
    /// [`Fields`]: a field has a value of another type than it should.
    WrongType,
}

impl fmt::Display for JsonError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}", self.problem(), self.at)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Value => "a JSON value is missing",
            Self::Key => "a key in quotes is missing",
            Self::Colon => "no ':' after a key",
            Self::CommaOrEnd => "neither ',' nor a closing bracket after a value",
            Self::Literal => "neither true, false nor null",
            Self::Number => "not a JSON number",
            Self::Control => "a control character in a string",
            Self::Escape => "an unknown escape in a string",
            Self::TooDeep => "nested too deep",
            Self::Trailing => "more text after the end",
            Self::Incomplete => "the text ends too early",
            Self::NotAnObject => "not a JSON object",
            Self::WrongType => "a value of the wrong type",
        })
    }
}

impl core::error::Error for JsonError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_of_a_text() {
        // A character that was cut off is left out, one that is broken is marked.
        for (bytes, truncated, stored) in [
            (&b"a\xe2\x82"[..], false, "a\u{fffd}"),
            (b"a\xe2\x82", true, "a"),
            (b"\xffa", true, "\u{fffd}a"),
            (b"abcdef", false, "abcd"),
            (b"ab\xff", false, "ab"),
        ] {
            let mut to = heapless::String::<4, u8>::new();
            Text { bytes, truncated }.store(&mut to);
            assert_eq!(to, stored, "{bytes:?}");
        }
    }
}
