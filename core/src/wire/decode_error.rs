//! Why bytes could not be decoded.

use core::fmt;

/// Bytes of the peer that cannot be decoded. Nothing that follows them on the same connection can
/// be decoded either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DecodeError {
    /// A length that is not accepted, read as an unsigned number.
    BadLength {
        /// The announced length in bytes.
        len: u32,
        /// The longest that is accepted, in bytes.
        max: u32,
    },
    /// The peer is an HTTP server: the address has the HTTP port instead of the TCP port.
    WrongPort,
    /// A frame type other than response, error or message.
    UnknownFrame {
        /// The type's number.
        frame_type: u32,
    },
    /// A message frame shorter than the head of a message.
    ShortMessage {
        /// The frame's length in bytes.
        len: u32,
    },
    /// The response to IDENTIFY is not JSON, or lacks a required field.
    BadIdentifyReply,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLength { len, max } => {
                write!(f, "the server announced {len} bytes where at most {max} are valid")
            }
            Self::WrongPort => f.write_str(
                "an HTTP server answered: this is the HTTP port, use the TCP port (4150 for nsqd, \
                 4160 for nsqlookupd)",
            ),
            Self::UnknownFrame { frame_type } => write!(f, "unknown frame type {frame_type}"),
            Self::ShortMessage { len } => {
                write!(f, "a message of {len} bytes, shorter than its head")
            }
            Self::BadIdentifyReply => f.write_str("the response to IDENTIFY is not valid"),
        }
    }
}

impl core::error::Error for DecodeError {}
