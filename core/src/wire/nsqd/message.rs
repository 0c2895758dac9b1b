//! Messages: the data of frames of type 2.

use core::fmt;

use super::FrameType;
use super::frame::emit_frame_head;
use crate::wire::Write;

/// The id of a message: 16 opaque bytes. nsqd uses hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub [u8; 16]);

impl MessageId {
    /// Reads an id from a command's parameter, which must have exactly 16 bytes.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }
}

impl fmt::Display for MessageId {
    /// Writes the id as text; bytes that are not printable ASCII become `.`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        self.0.iter().try_for_each(|&byte| {
            f.write_char(if byte.is_ascii_graphic() { char::from(byte) } else { '.' })
        })
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for MessageId {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=[u8]:a}", self.0.as_slice());
    }
}

/// The fields before the body of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct MessageHead {
    /// When the message was published, in nanoseconds of Unix time as the server knows it.
    pub timestamp: i64,
    /// How often the message was delivered, this time included. Wraps. Keep it at 32,767 at most,
    /// since pynsq reads a signed number.
    pub attempts: u16,
    /// The id, for FIN, REQ and TOUCH.
    pub id: MessageId,
}

impl MessageHead {
    /// The length of the head in bytes.
    pub const LEN: usize = 26;

    /// Splits the data of a message frame into head and body; `None` if it is shorter than a head.
    pub fn parse(data: &[u8]) -> Option<(Self, &[u8])> {
        let (timestamp, data) = data.split_first_chunk::<8>()?;
        let (attempts, data) = data.split_first_chunk()?;
        let (id, body) = data.split_first_chunk()?;
        let head = Self {
            // In a loop: the bytes may be unaligned, so a small core has to load them one by one.
            timestamp: timestamp.iter().fold(0, |sum, byte| (sum << 8) | i64::from(*byte)),
            attempts: u16::from_be_bytes(*attempts),
            id: MessageId(*id),
        };
        Some((head, body))
    }

    /// Returns attempts and id from the data of a message frame: all that a consumer itself needs.
    pub(crate) fn parse_brief(data: &[u8]) -> Option<(u16, MessageId)> {
        let (attempts, data) = data.get(8..)?.split_first_chunk()?;
        Some((u16::from_be_bytes(*attempts), MessageId(*data.first_chunk()?)))
    }

    /// Writes the 26 bytes of the head.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        w.write_all(&self.timestamp.to_be_bytes())?;
        w.write_all(&self.attempts.to_be_bytes())?;
        w.write_all(&self.id.0)
    }
}

/// The data of a message frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message<'a> {
    /// The fields before the body.
    pub head: MessageHead,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> Message<'a> {
    /// Reads the data of a message frame; `None` if it is shorter than 26 bytes.
    pub fn parse(data: &'a [u8]) -> Option<Self> {
        let (head, body) = MessageHead::parse(data)?;
        Some(Self { head, body })
    }
}

/// Writes the 34 bytes of a message frame before the body, which has `body_len` bytes and is to
/// follow.
pub fn emit_message_head<W: Write>(
    w: &mut W,
    head: &MessageHead,
    body_len: u32,
) -> Result<(), W::Error> {
    emit_frame_head(w, FrameType::Message, body_len.saturating_add(MessageHead::LEN as u32))?;
    head.emit(w)
}
