//! Bytes: what goes over NSQ's TCP connections, both ways, both sides.
//!
//! | module | protocol | client writes / reads | server reads / writes |
//! |---|---|---|---|
//! | [`nsqlookupd`] | nsqd to nsqlookupd | [`nsqlookupd::Command`] / [`nsqlookupd::ReplyDecoder`] | [`nsqlookupd::CommandDecoder`], [`nsqlookupd::NodeInfoScanner`] / [`nsqlookupd::emit_reply`] |
//! | [`nsqd`] | client to nsqd | [`nsqd::emit_identify`], [`nsqd::emit_pub_head`] and others / [`nsqd::FrameDecoder`], [`nsqd::GrantedScanner`] | [`nsqd::CommandDecoder`], [`nsqd::IdentifyScanner`] / [`nsqd::emit_frame`] |
//! | [`http`] | nsqlookupd's HTTP | [`http::emit_get`] / [`http::ResponseDecoder`] | |
//! | [`json`] | the bodies of all | [`json::Object`] | [`json::Scanner`] |
//!
//! *Encoders* have `emit`, generic over [`Write`], and `encoded_len`. Any `&mut [u8]` is a writer;
//! [`ChunkWriter`] gives a text piece by piece through a buffer smaller than the text; [`Count`] counts.
//! *Decoders* take bytes split anywhere, keep only what they must, and hand on payload where it
//! lies in the input. Splitting the input elsewhere never changes what is decoded.
//!
//! # Panics
//!
//! None. No input, length or order of calls makes anything in here panic, and every loop consumes
//! input or a bounded count.
//!
//! # Bounds
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | frame, reply | the decoder's `max` | [`DecodeError::BadLength`], before any of its bytes is taken |
//! | command line read by a server | [`nsqlookupd::LINE_BUFFER`], [`nsqd::LINE_BUFFER`] bytes | refused, connection to be closed |
//! | command body read by a server | [`nsqlookupd::CommandDecoder`]'s `max`, [`nsqd::Limits`] | refused as nsqd does, before the body is read |
//! | HTTP head, a chunk's line | [`http::HEAD_MAX`] | [`http::HttpError::HeadTooLong`] |
//! | HTTP body | none: it is handed on as it arrives | |
//! | JSON nesting | [`json::DEPTH_MAX`] | [`json::Problem::TooDeep`] |
//! | JSON string, key | the scanner's `N` bytes | kept up to `N` and flagged |
//! | JSON integer | `i32` | kept at its end and flagged |
//! | JSON document | 4 GiB for the error's position only | the position stays at its end |
//!
//! RAM: [`nsqd::FrameDecoder`] 24 bytes, [`nsqlookupd::ReplyDecoder`] 16, a scanner its `N` + 20, a server's
//! command decoder its line buffer + 24 at most. Tests hold each to its figure.

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

/// Counts bytes and keeps none of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count(usize);

impl Count {
    /// Nothing counted yet.
    pub const fn new() -> Self {
        Self(0)
    }

    /// How many bytes were written.
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

/// Keeps one window of what is written: a long text, made again from its start each time, passes
/// through a small buffer without ever existing as a whole.
///
/// Drops the first `skip` bytes, keeps as many as the buffer holds, drops the rest. Never fails.
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
    /// A window over what follows the first `skip` bytes.
    pub const fn new(buf: &'a mut [u8], skip: usize) -> Self {
        Self { buf, skip, written: 0, total: 0 }
    }

    /// How many bytes of the buffer are filled, from its start.
    pub const fn written(&self) -> usize {
        self.written
    }

    /// How many bytes were offered: the length of the text.
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

/// Copies as much as fits and says how much that is.
#[inline]
pub(crate) fn copy(to: &mut [u8], from: &[u8]) -> usize {
    let len = to.len().min(from.len());
    for (slot, byte) in to.iter_mut().zip(from) {
        *slot = *byte;
    }
    len
}

/// Splits off the longest prefix of at most `len` bytes.
#[inline]
pub(crate) fn take<'b>(input: &mut &'b [u8], len: u32) -> &'b [u8] {
    let bytes = *input;
    let len = usize::try_from(len).unwrap_or(usize::MAX).min(bytes.len());
    let (taken, rest) = bytes.split_at_checked(len).unwrap_or_default();
    *input = rest;
    taken
}

/// The length of what `emit` writes.
pub(crate) fn len_of(emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>) -> usize {
    // A window rather than a count: the encoder then exists once, not twice, in flash.
    let mut window = ChunkWriter::new(&mut [], 0);
    let Ok(()) = emit(&mut window);
    window.total()
}

/// Writes a length as the wire has it.
pub(crate) fn emit_len<W: Write>(w: &mut W, len: usize) -> Result<(), W::Error> {
    w.write_all(&saturate(len).to_be_bytes())
}

/// Writes a number as text.
pub(crate) fn emit_decimal<W: Write>(w: &mut W, number: u32) -> Result<(), W::Error> {
    w.write_all(Decimal::unsigned(number).as_bytes())
}

/// A length as the wire counts it.
pub(crate) fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// The error for a length that is not taken.
#[cold]
pub(crate) fn bad_length(len: u32, max: u32) -> DecodeError {
    if len == HTTP { DecodeError::WrongPort } else { DecodeError::BadLength { len, max } }
}

/// Length bytes that spell this are an HTTP server's answer.
const HTTP: u32 = u32::from_be_bytes(*b"HTTP");

/// The largest maximum that a decoder takes: above it, [`HTTP`] would be a length.
pub(crate) const LEN_MAX: u32 = 1 << 30;
