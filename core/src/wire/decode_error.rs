//! Why bytes could not be decoded.

use core::fmt;

/// Bytes of a peer that make no sense. Nothing that follows them on the same connection can be
/// decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum DecodeError {
    /// A length that this side does not take, read as an unsigned number.
    BadLength {
        /// The announced length in bytes.
        len: u32,
        /// The longest taken here, in bytes.
        max: u32,
    },
    /// The peer speaks HTTP: the address has the HTTP port where the TCP port belongs.
    WrongPort,
    /// A frame type other than response, error or message.
    UnknownFrame {
        /// Its number.
        frame_type: u32,
    },
    /// A message frame shorter than a message's head.
    ShortMessage {
        /// Its length in bytes.
        len: u32,
    },
    /// The answer to IDENTIFY is not JSON, or lacks what is needed.
    BadIdentifyReply,
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadLength { len, max } => {
                write!(f, "the server announced {len} bytes where at most {max} make sense")
            }
            Self::WrongPort => f.write_str(
                "an HTTP server answered: this is the HTTP port, use the TCP port (4150 for nsqd, \
                 4160 for nsqlookupd)",
            ),
            Self::UnknownFrame { frame_type } => write!(f, "unknown frame type {frame_type}"),
            Self::ShortMessage { len } => {
                write!(f, "a message of {len} bytes, shorter than its head")
            }
            Self::BadIdentifyReply => f.write_str("the answer to IDENTIFY makes no sense"),
        }
    }
}

impl core::error::Error for DecodeError {}
