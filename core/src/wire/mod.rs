//! The bytes on NSQ's TCP connections, in both directions, for clients and servers.
//!
//! | module | protocol | client writes / reads | server reads / writes |
//! |---|---|---|---|
//! | [`nsqlookupd`] | nsqd to nsqlookupd | [`nsqlookupd::Command`] / [`nsqlookupd::ReplyDecoder`] | [`nsqlookupd::CommandDecoder`], [`nsqlookupd::NodeInfoScanner`] / [`nsqlookupd::emit_reply`] |
//! | [`nsqd`] | client to nsqd | [`nsqd::emit_identify`], [`nsqd::emit_pub_head`] and others / [`nsqd::FrameDecoder`], [`nsqd::GrantedScanner`] | [`nsqd::CommandDecoder`], [`nsqd::IdentifyScanner`] / [`nsqd::emit_frame`] |
//! | [`http`] | nsqlookupd's HTTP | [`http::emit_get`] / [`http::ResponseDecoder`] | |
//! | [`json`] | the bodies of all | [`json::Object`] | [`json::Scanner`] |
//!
//! *Encoders* have `emit`, generic over [`Write`], and `encoded_len`. Any `&mut [u8]` is a writer;
//! [`ChunkWriter`] passes a text piece by piece through a buffer smaller than the text; [`Count`]
//! counts. *Decoders* consume bytes split anywhere, keep only what they must, and return payload
//! borrowed from the input. Splitting the input elsewhere never changes the result.
//!
//! # Panics
//!
//! None. No input, length or order of calls makes anything in this module panic, and every loop
//! consumes input or has a bounded count.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | frame, reply | the decoder's `max` | [`DecodeError::BadLength`], before any of its bytes is read |
//! | command line read by a server | [`nsqlookupd::LINE_BUFFER`], [`nsqd::LINE_BUFFER`] bytes | refused; the connection has to be closed |
//! | command body read by a server | [`nsqlookupd::CommandDecoder`]'s `max`, [`nsqd::Limits`] | refused as nsqd does, before the body is read |
//! | HTTP head, a chunk's line | [`http::HEAD_MAX`] | [`http::HttpError::HeadTooLong`] |
//! | HTTP body | none: returned as it arrives | |
//! | JSON nesting | [`json::DEPTH_MAX`] | [`json::Problem::TooDeep`] |
//! | JSON string, key | the scanner's `N` bytes | kept up to `N` and flagged |
//! | JSON integer | `i32` | clamped and flagged |
//! | JSON document | 4 GiB, for an error's position only | the position stays at its end |
//!
//! RAM: [`nsqd::FrameDecoder`] 24 bytes, [`nsqlookupd::ReplyDecoder`] 16, a scanner its `N` + 20, a
//! server's command decoder its line buffer + 24 at most. Tests enforce each figure.

mod decode_error;
pub mod http;
pub mod json;
mod line;
pub mod nsqd;
pub mod nsqlookupd;
mod text;

use core::convert::Infallible;

pub use decode_error::DecodeError;
pub use embedded_io::{ErrorType, Write};
pub use text::Decimal;

/// A writer that counts bytes and keeps none of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count(usize);

impl Count {
    /// Creates a count of 0.
    pub const fn new() -> Self {
        Self(0)
    }

    /// Returns the number of bytes written.
    pub const fn get(self) -> usize {
        self.0
    }
}

impl ErrorType for Count {
    type Error = Infallible;
}

impl Write for Count {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.0 = self.0.saturating_add(bytes.len());
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.write(bytes).map(|_| ())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// A writer that keeps one window of the text written: a long text, made again from its start each
/// time, passes through a small buffer without ever existing as a whole.
///
/// Drops the first `skip` bytes, keeps as many as the buffer holds, and drops the rest. Never
/// fails.
///
/// ```
/// use nanonsq_core::wire::{ChunkWriter, Write};
///
/// let mut buf = [0; 4];
/// let mut window = ChunkWriter::new(&mut buf, 6);
/// window.write_all(b"hello world").unwrap();
/// assert_eq!((window.written(), window.total()), (4, 11));
/// assert_eq!(&buf, b"worl");
/// ```
#[derive(Debug)]
pub struct ChunkWriter<'a> {
    buf: &'a mut [u8],
    skip: usize,
    written: usize,
    total: usize,
}

impl<'a> ChunkWriter<'a> {
    /// Creates a window over the text behind its first `skip` bytes.
    pub const fn new(buf: &'a mut [u8], skip: usize) -> Self {
        Self { buf, skip, written: 0, total: 0 }
    }

    /// Returns how many bytes of the buffer are filled, from its start.
    pub const fn written(&self) -> usize {
        self.written
    }

    /// Returns how many bytes were offered: the length of the text.
    pub const fn total(&self) -> usize {
        self.total
    }
}

impl ErrorType for ChunkWriter<'_> {
    type Error = Infallible;
}

impl Write for ChunkWriter<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<usize, Infallible> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Infallible> {
        self.total = self.total.saturating_add(bytes.len());
        let skipped = self.skip.min(bytes.len());
        self.skip = self.skip.saturating_sub(skipped);
        let room = self.buf.get_mut(self.written.min(self.buf.len())..).unwrap_or_default();
        let kept = copy(room, bytes.get(skipped..).unwrap_or_default());
        self.written = self.written.saturating_add(kept);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Copies as many bytes as fit and returns how many were copied.
#[inline]
pub(crate) fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    for (slot, byte) in to.iter_mut().zip(from) {
        *slot = *byte;
    }
    len
}

/// Returns the first `most` slots of a table, or all.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub(crate) fn first<T>(slots: &mut [T], most: u16) -> &mut [T] {
    let count = slots.len().min(most.into());
    slots.get_mut(..count).unwrap_or_default()
}

/// Splits off the longest prefix of at most `len` bytes and returns it.
#[inline]
pub(crate) fn take<'b>(input: &mut &'b [u8], len: u32) -> &'b [u8] {
    let bytes = *input;
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    let (taken, rest) = bytes.split_at_checked(len).unwrap_or_default();
    *input = rest;
    taken
}

/// Returns the length of the text that `emit` writes.
pub(crate) fn len_of(emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>) -> usize {
    // A window rather than a count, so that the encoder exists once, not twice, in flash.
    let mut window = ChunkWriter::new(&mut [], 0);
    let Ok(()) = emit(&mut window);
    window.total()
}

/// Writes a length as 4 bytes, big endian.
pub(crate) fn emit_len<W: Write>(w: &mut W, len: usize) -> Result<(), W::Error> {
    w.write_all(&saturate(len).to_be_bytes())
}

/// Writes a number in decimal.
pub(crate) fn emit_decimal<W: Write>(w: &mut W, number: u32) -> Result<(), W::Error> {
    w.write_all(Decimal::unsigned(number).as_bytes())
}

/// Converts a length to 32 bits; a longer one becomes the largest number.
pub(crate) fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Returns the error for a length that is not accepted.
#[cold]
pub(crate) fn bad_length(len: u32, max: u32) -> DecodeError {
    if len == HTTP { DecodeError::WrongPort } else { DecodeError::BadLength { len, max } }
}

/// The length whose bytes spell `HTTP`: an HTTP server answered.
const HTTP: u32 = u32::from_be_bytes(*b"HTTP");

/// The largest maximum of a decoder: above it, [`HTTP`] would be a valid length.
pub(crate) const LEN_MAX: u32 = 1 << 30;
