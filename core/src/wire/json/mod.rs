//! The JSON that NSQ uses: bodies of IDENTIFY, the replies to it, answers over HTTP.
//!
//! [`Object`] writes an object to any [`Write`](super::Write). [`Scanner`] reads a document of any
//! length in constant memory, split anywhere; [`Fields`] reads one flat object with it.
//!
//! Bounds: see [`Scanner`]. Nothing in this module panics, allocates or recurses.

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

/// A token of a JSON document.
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
    /// Returns the value of a boolean.
    pub const fn as_bool(self) -> Option<bool> {
        match self {
            Self::Bool(value) => Some(value),
            _ => None,
        }
    }

    /// Returns the integer part of a number, clamped to `i32`.
    pub const fn as_i32(self) -> Option<i32> {
        match self {
            Self::Number(number) => Some(number.integer),
            _ => None,
        }
    }

    /// Returns the value of a number that is an integer and fits.
    pub const fn as_exact(self) -> Option<i32> {
        match self {
            Self::Number(Number { integer, exact: true }) => Some(integer),
            _ => None,
        }
    }

    /// Returns the text of a string.
    pub const fn as_text(self) -> Option<Text<'s>> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }
}

/// A string or key, unescaped; cut if it is longer than the scanner's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Text<'s> {
    bytes: &'s [u8],
    truncated: bool,
}

impl<'s> Text<'s> {
    /// Returns the bytes as they arrived, not necessarily UTF-8. A lone surrogate (`\ud800`) reads
    /// as U+FFFD.
    pub const fn as_bytes(&self) -> &'s [u8] {
        self.bytes
    }

    /// Returns the text if it is UTF-8. A text that was cut ends between two characters.
    pub fn as_str(&self) -> Option<&'s str> {
        match core::str::from_utf8(self.bytes) {
            Ok(text) => Some(text),
            // Only the last character is incomplete.
            Err(error) if self.truncated && error.error_len().is_none() => {
                let whole = self.bytes.get(..error.valid_up_to()).unwrap_or_default();
                core::str::from_utf8(whole).ok()
            }
            Err(_) => None,
        }
    }

    /// Returns whether the text was cut.
    pub const fn truncated(&self) -> bool {
        self.truncated
    }
}

impl Text<'_> {
    /// Stores as much of the text in `to` as fits, whole characters only. Bytes that are not UTF-8
    /// become U+FFFD, as in Go.
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
            // The mark is left out if it does not fit.
            let _ = to.push_str(mark);
        }
    }

    /// Stores the text up to the first byte that is not ASCII, and returns whether that is all of
    /// it. Unlike [`store`](Self::store), it needs no code for UTF-8.
    pub(crate) fn store_ascii<const N: usize>(&self, to: &mut heapless::String<N, u8>) -> bool {
        to.clear();
        let whole = self.bytes.iter().all(|&byte| byte.is_ascii() && to.push(byte.into()).is_ok());
        whole && !self.truncated
    }
}

/// A number as an integer: all numbers in NSQ's protocols are small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Number {
    /// The digits before any `.`, `e` or `E`, clamped to `i32`.
    pub integer: i32,
    /// True if `integer` is the number: not clamped, without fraction and exponent.
    pub exact: bool,
}

/// Why a document is invalid, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct JsonError {
    at: u32,
    // The state in which it happened, from which `problem` derives the reason: a program that never
    // calls `problem` does not contain that code.
    mode: machine::Mode,
    allowed: u8,
}

impl JsonError {
    /// Returns the offset of the offending byte in the document, at most `u32::MAX`.
    pub const fn at(&self) -> u32 {
        self.at
    }

    /// Returns what is wrong at that byte.
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
    /// No value where a value is due.
    Value,
    /// No key in quotes where a key is due.
    Key,
    /// No `:` after a key.
    Colon,
    /// Neither `,` nor the end of the object or array after a value.
    CommaOrEnd,
    /// A word other than `true`, `false` and `null`.
    Literal,
    /// An invalid number.
    Number,
    /// A control character inside a string.
    Control,
    /// A `\` before a character that cannot be escaped.
    Escape,
    /// Nested deeper than [`DEPTH_MAX`].
    TooDeep,
    /// More text after the end of the document.
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
    fn a_text_is_stored_as_far_as_it_fits() {
        // A character that was cut is left out; an invalid one is marked.
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
