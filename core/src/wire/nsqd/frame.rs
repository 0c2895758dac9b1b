//! The frames that nsqd sends.

use crate::wire::{DecodeError, LEN_MAX, Write, bad_length, saturate, take};

/// The type of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u8)]
pub enum FrameType {
    /// 0: a response, or a heartbeat.
    Response = 0,
    /// 1: a refusal; it begins with an [`ErrorCode`](super::ErrorCode).
    Error = 1,
    /// 2: a [`Message`](super::Message).
    Message = 2,
}

/// A frame, or a part of a frame that arrived in parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FramePart<'b> {
    /// The type of the frame.
    pub frame_type: FrameType,
    /// The length of the whole frame's data in bytes.
    pub size: u32,
    /// The data of this part; empty only if the frame is.
    pub data: &'b [u8],
    /// True for the part that starts the frame.
    pub first: bool,
    /// True for the part that ends the frame.
    pub last: bool,
}

/// Splits the bytes of nsqd into frames, without copying.
///
/// A frame that lies in the input as a whole becomes one part; any other frame becomes the parts in
/// which it arrives.
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
    /// The longest data that is accepted, in bytes.
    max: u32,
    /// The length of the frame's data in bytes.
    size: u32,
    /// How many bytes of the data are still to come.
    left: u32,
    /// The beginning of a head that arrived in pieces.
    head: [u8; HEAD],
    /// How many bytes of the head were read; [`HEAD`] while in the data.
    have: u8,
    frame_type: FrameType,
}

/// The length of size and type in bytes.
const HEAD: usize = 8;

impl FrameDecoder {
    /// Creates a decoder for a new connection. `max` bounds a frame's data in bytes, at most 1 GiB.
    pub const fn new(max: u32) -> Self {
        let max = if max < LEN_MAX { max } else { LEN_MAX };
        Self { max, size: 0, left: 0, head: [0; HEAD], have: 0, frame_type: FrameType::Response }
    }

    /// Consumes bytes from the front of `input` and returns the next part; `None` once all bytes
    /// are consumed.
    ///
    /// The frame's size and type are checked before any of its data is consumed. After an error the
    /// rest of the stream cannot be decoded: use a new decoder for the next connection.
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<FramePart<'b>>, DecodeError> {
        if usize::from(self.have) < HEAD {
            let head = match input.split_first_chunk() {
                // The usual case: the input has the whole head.
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
        // `take` returns at most `left` bytes.
        self.left = self.left.wrapping_sub(data.len() as u32);
        let last = self.left == 0;
        if last {
            self.have = 0;
        }
        Ok(Some(FramePart { frame_type: self.frame_type, size: self.size, data, first, last }))
    }

    /// Returns whether a frame ended exactly here, so that the connection may end here as well.
    pub const fn at_boundary(&self) -> bool {
        self.have == 0
    }

    /// Appends to the head and returns whether the head is complete.
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
        // A size below 4 wraps to a huge length.
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

/// Writes the 8 bytes before the data of a frame, which has `len` bytes.
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
