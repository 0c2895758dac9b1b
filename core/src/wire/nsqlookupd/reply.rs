//! Replies: what nsqlookupd sends.

use super::Refusal;
use crate::wire::{DecodeError, LEN_MAX, Write, bad_length, emit_len, take};

/// A reply, or a part of one that arrived in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplyPart<'b> {
    /// The bytes of this part; empty only if the reply is.
    pub data: &'b [u8],
    /// It starts the reply.
    pub first: bool,
    /// It ends the reply.
    pub last: bool,
}

/// Splits what nsqlookupd sends into replies, without copying.
///
/// A reply that lies in the input as a whole comes as one part; one that does not comes in the
/// parts in which it arrives. RAM: 16 bytes.
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
    /// The longest reply taken.
    max: u32,
    /// The reply's length, as far as it is read.
    size: u32,
    /// How much of the reply is still to come.
    left: u32,
    /// How many bytes of the length are read, 0 to 4.
    head: u8,
}

impl ReplyDecoder {
    /// Before the first byte. `max` bounds a reply in bytes, itself at most 1 GiB.
    pub const fn new(max: u32) -> Self {
        let max = if max < LEN_MAX { max } else { LEN_MAX };
        Self { max, size: 0, left: 0, head: 0 }
    }

    /// Takes bytes from the front of `input` and gives the next part; `None` once all are taken.
    ///
    /// A length is an unsigned number: one that nsqd would take for negative is just too large.
    /// After an error the stream has no meaning any more: start the next one with a new decoder.
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
        // `take` gives at most `left`.
        self.left = self.left.wrapping_sub(data.len() as u32);
        let last = self.left == 0;
        if last {
            self.head = 0;
            self.size = 0;
        }
        Ok(Some(ReplyPart { data, first, last }))
    }

    /// Whether a reply ended exactly here, so that the connection may end here as well.
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
