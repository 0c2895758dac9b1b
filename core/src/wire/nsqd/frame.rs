//! Frames: what nsqd sends.

use crate::wire::{DecodeError, LEN_MAX, Write, bad_length, saturate, take};

/// The number after a frame's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum FrameType {
    /// 0: an answer, or a heartbeat.
    Response = 0,
    /// 1: a refusal; its first word is an [`ErrorCode`](super::ErrorCode).
    Error = 1,
    /// 2: a [`Message`](super::Message).
    Message = 2,
}

/// A frame, or a part of one that arrived in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePart<'b> {
    /// What kind of frame it is.
    pub frame_type: FrameType,
    /// How many bytes of data the whole frame has.
    pub size: u32,
    /// The bytes of this part; empty only if the frame is.
    pub data: &'b [u8],
    /// It starts the frame.
    pub first: bool,
    /// It ends the frame.
    pub last: bool,
}

/// Splits what nsqd sends into frames, without copying.
///
/// A frame that lies in the input as a whole comes as one part; one that does not comes in the
/// parts in which it arrives.
///
/// RAM: 24 bytes.
///
/// ```
/// use nanonsq_core::wire::nsqd::{FrameDecoder, FrameType, OK};
///
/// let mut frames = FrameDecoder::new(1024);
/// let mut input = &b"\0\0\0\x06\0\0\0\0OK"[..];
/// let part = frames.next(&mut input).unwrap().unwrap();
/// assert!(part.frame_type == FrameType::Response && part.first && part.last);
/// assert_eq!(part.data, OK);
/// assert_eq!(frames.next(&mut input), Ok(None));
/// ```
#[derive(Debug, Clone)]
pub struct FrameDecoder {
    /// The longest data taken.
    max: u32,
    /// How much data the frame has.
    size: u32,
    /// How much of it is still to come.
    left: u32,
    /// The beginning of a head that arrived in pieces.
    head: [u8; HEAD],
    /// How much of the head was read; [`HEAD`] while in the data.
    have: u8,
    frame_type: FrameType,
}

/// Size and type.
const HEAD: usize = 8;

impl FrameDecoder {
    /// Before the first byte. `max` bounds a frame's data in bytes, itself at most 1 GiB.
    pub const fn new(max: u32) -> Self {
        let max = if max < LEN_MAX { max } else { LEN_MAX };
        Self { max, size: 0, left: 0, head: [0; HEAD], have: 0, frame_type: FrameType::Response }
    }

    /// Takes bytes from the front of `input` and gives the next part; `None` once all are taken.
    ///
    /// The frame's size and type are checked before any of its data is taken. After an error the
    /// stream has no meaning any more: start the next one with a new decoder.
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<FramePart<'b>>, DecodeError> {
        if usize::from(self.have) < HEAD {
            let head = match input.split_first_chunk() {
                // The usual case: the whole head is there.
                Some((head, rest)) if self.have == 0 => {
                    *input = rest;
                    *head
                }
                _ if self.fill(input) => self.head,
                _ => return Ok(None),
            };
            self.start(head)?;
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
            self.have = 0;
        }
        Ok(Some(FramePart { frame_type: self.frame_type, size: self.size, data, first, last }))
    }

    /// Whether a frame ended exactly here, so that the connection may end here as well.
    pub const fn at_boundary(&self) -> bool {
        self.have == 0
    }

    /// Adds to the head; whether it is whole.
    #[cold]
    fn fill(&mut self, input: &mut &[u8]) -> bool {
        while let Some(slot) = self.head.get_mut(usize::from(self.have)) {
            let Some((&byte, rest)) = input.split_first() else { return false };
            *slot = byte;
            self.have = self.have.wrapping_add(1);
            *input = rest;
        }
        true
    }

    fn start(&mut self, head: [u8; HEAD]) -> Result<(), DecodeError> {
        self.have = 0;
        let [a, b, c, d, e, f, g, h] = head;
        let size = u32::from_be_bytes([a, b, c, d]);
        // Below 4 it wraps to a huge length.
        let len = size.wrapping_sub(4);
        if len > self.max {
            return Err(bad_length(size, self.max.wrapping_add(4)));
        }
        self.frame_type = match u32::from_be_bytes([e, f, g, h]) {
            0 => FrameType::Response,
            1 => FrameType::Error,
            2 => FrameType::Message,
            frame_type => return Err(DecodeError::UnknownFrame { frame_type }),
        };
        self.size = len;
        self.left = len;
        self.have = HEAD as u8;
        Ok(())
    }
}

/// Writes the 8 bytes before a frame's data of `len` bytes.
pub fn emit_frame_head<W: Write>(
    w: &mut W,
    frame_type: FrameType,
    len: u32,
) -> Result<(), W::Error> {
    w.write_all(&len.saturating_add(4).to_be_bytes())?;
    w.write_all(&[0, 0, 0, frame_type as u8])
}

/// Writes a whole frame, 8 bytes more than its data.
pub fn emit_frame<W: Write>(w: &mut W, frame_type: FrameType, data: &[u8]) -> Result<(), W::Error> {
    emit_frame_head(w, frame_type, saturate(data.len()))?;
    w.write_all(data)
}
