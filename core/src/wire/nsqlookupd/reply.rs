//! The replies that nsqlookupd sends.

use super::Refusal;
use crate::wire::{DecodeError, LEN_MAX, Write, bad_length, emit_len, take};

/// A reply, or a part of a reply that arrived in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyPart<'b> {
    /// The data of this part; empty only if the reply is.
    pub data: &'b [u8],
    /// True for the part that starts the reply.
    pub first: bool,
    /// True for the part that ends the reply.
    pub last: bool,
}

/// Splits the bytes of nsqlookupd into replies, without copying.
///
/// A reply that lies in the input as a whole becomes one part; any other reply becomes the parts in
/// which it arrives. RAM: 16 bytes.
///
/// ```
/// use nanonsq_core::wire::nsqlookupd::{OK, ReplyDecoder};
///
/// let mut replies = ReplyDecoder::new(1024);
/// let mut input = &b"\0\0\0\x02OK"[..];
/// let part = replies.next(&mut input).unwrap().unwrap();
/// assert!(part.first && part.last);
/// assert_eq!(part.data, OK);
/// assert_eq!(replies.next(&mut input), Ok(None));
/// ```
#[derive(Debug, Clone)]
pub struct ReplyDecoder {
    /// The longest reply that is accepted, in bytes.
    max: u32,
    /// The reply's length, as far as it was read.
    size: u32,
    /// How many bytes of the reply are still to come.
    left: u32,
    /// How many bytes of the length were read, 0 to 4.
    head: u8,
}

impl ReplyDecoder {
    /// Creates a decoder for a new connection. `max` bounds a reply in bytes, at most 1 GiB.
    pub const fn new(max: u32) -> Self {
        let max = if max < LEN_MAX { max } else { LEN_MAX };
        Self { max, size: 0, left: 0, head: 0 }
    }

    /// Consumes bytes from the front of `input` and returns the next part; `None` once all bytes
    /// are consumed.
    ///
    /// Lengths are unsigned: a length that nsqd would take for negative is just too large. After an
    /// error the rest of the stream cannot be decoded: use a new decoder for the next connection.
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<ReplyPart<'b>>, DecodeError> {
        while self.head < 4 {
            let Some((&byte, rest)) = input.split_first() else {
                return Ok(None);
            };
            *input = rest;
            self.head = self.head.wrapping_add(1);
            self.size = self.size << 8 | u32::from(byte);
            self.left = self.size;
        }
        if self.size > self.max {
            return Err(bad_length(self.size, self.max));
        }
        let first = self.left == self.size;
        let data = take(input, self.left);
        if data.is_empty() && self.left != 0 {
            return Ok(None);
        }
        // `take` returns at most `left` bytes.
        self.left = self.left.wrapping_sub(data.len() as u32);
        let last = self.left == 0;
        if last {
            self.head = 0;
            self.size = 0;
        }
        Ok(Some(ReplyPart { data, first, last }))
    }

    /// Returns whether a reply ended exactly here, so that the connection may end here as well.
    pub const fn at_boundary(&self) -> bool {
        self.head == 0
    }
}

/// Writes a reply, 4 bytes more than its text.
pub fn emit_reply<W: Write>(w: &mut W, text: &[u8]) -> Result<(), W::Error> {
    emit_len(w, text.len())?;
    w.write_all(text)
}

/// Writes the reply with which nsqlookupd refuses a command.
pub fn emit_refusal<W: Write>(w: &mut W, refusal: &Refusal<'_>) -> Result<(), W::Error> {
    emit_len(w, refusal.encoded_len())?;
    refusal.emit(w)
}
