//! The texts of nsqlookupd's errors.

use core::fmt;

use crate::address::HOST_MAX;
use crate::wire::nsqd::ErrorCode;
use crate::wire::text::{Text, display};
use crate::wire::{Write, len_of};

/// A command that takes names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Verb {
    /// `REGISTER`
    Register,
    /// `UNREGISTER`
    Unregister,
}

impl Verb {
    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Register => "REGISTER",
            Self::Unregister => "UNREGISTER",
        }
    }
}

/// Why nsqlookupd refuses a command. [`emit`](Self::emit) and `Display` write its reply, exactly as
/// nsqlookupd 1.3.0 (`nsqlookupd/lookup_protocol_v1.go`) unless noted.
///
/// All are fatal: send the reply and close. Texts borrow from the decoder's line: write the refusal
/// out at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal<'a> {
    /// The magic is not [`MAGIC`](super::MAGIC).
    BadProtocol,
    /// There is no such command.
    UnknownCommand(&'a [u8]),
    /// A line longer than [`LINE_BUFFER`](super::LINE_BUFFER); nsqlookupd has no bound.
    LineTooLong,
    /// REGISTER or UNREGISTER before IDENTIFY.
    NotIdentified,
    /// IDENTIFY again.
    IdentifiedAlready,
    /// The topic is missing.
    Parameters(Verb),
    /// The topic name is invalid.
    BadTopic {
        /// The command.
        verb: Verb,
        /// The name in the command.
        name: &'a [u8],
    },
    /// The channel name is invalid.
    BadChannel {
        /// The command.
        verb: Verb,
        /// The name in the command.
        name: &'a [u8],
    },
    /// IDENTIFY's body is too long, or has a negative length, which makes nsqlookupd crash; the
    /// text is that of nsqd.
    BadLength {
        /// The announced length.
        len: i32,
        /// The longest length that is accepted.
        max: u32,
    },
    /// nsqd stopped sending inside IDENTIFY's length.
    EndedInLength,
    /// nsqd stopped sending inside IDENTIFY's body.
    EndedInBody,
    /// IDENTIFY's body is not a JSON object, or a value in it has the wrong type.
    BadJson,
    /// IDENTIFY has no broadcast address, no version, or lacks a port.
    MissingFields,
    /// IDENTIFY's broadcast address has more than [`HOST_MAX`] bytes; nsqlookupd has no bound.
    AddressTooLong,
}

impl Refusal<'_> {
    /// Returns the error code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BadProtocol => ErrorCode::BadProtocol,
            Self::UnknownCommand(_)
            | Self::LineTooLong
            | Self::NotIdentified
            | Self::IdentifiedAlready
            | Self::Parameters(_) => ErrorCode::Invalid,
            Self::BadTopic { .. } => ErrorCode::BadTopic,
            Self::BadChannel { .. } => ErrorCode::BadChannel,
            Self::BadLength { .. }
            | Self::EndedInLength
            | Self::EndedInBody
            | Self::BadJson
            | Self::MissingFields
            | Self::AddressTooLong => ErrorCode::BadBody,
        }
    }

    /// Writes the text of the reply; [`emit_refusal`](super::emit_refusal) writes the whole reply.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut out = Text(w);
        out.text(self.code().as_str())?;
        let fixed = match *self {
            Self::BadProtocol => return Ok(()),
            Self::UnknownCommand(word) => return out.text(" invalid command ")?.raw(word),
            Self::LineTooLong => {
                out.text(" line longer than ")?.unsigned(super::LINE_BUFFER as u32)?;
                " bytes"
            }
            Self::NotIdentified => " client must IDENTIFY",
            Self::IdentifiedAlready => " cannot IDENTIFY again",
            Self::Parameters(verb) => {
                out.text(" ")?.text(verb.as_str())?;
                " insufficient number of params"
            }
            Self::BadTopic { verb, name } => {
                out.text(" ")?.text(verb.as_str())?.text(" topic name '")?.raw(name)?;
                "' is not valid"
            }
            Self::BadChannel { verb, name } => {
                out.text(" ")?.text(verb.as_str())?.text(" channel name '")?.raw(name)?;
                "' is not valid"
            }
            Self::BadLength { len, .. } if len < 0 => {
                return out.text(" IDENTIFY invalid body size ")?.signed(len)?.done();
            }
            Self::BadLength { len, max } => {
                return out.text(" IDENTIFY body")?.too_big(len, max);
            }
            Self::EndedInLength => " IDENTIFY failed to read body size",
            Self::EndedInBody => " IDENTIFY failed to read body",
            Self::BadJson => " IDENTIFY failed to decode JSON body",
            Self::MissingFields => " IDENTIFY missing fields",
            Self::AddressTooLong => {
                out.text(" IDENTIFY broadcast_address longer than ")?.unsigned(HOST_MAX as u32)?;
                " bytes"
            }
        };
        out.text(fixed)?.done()
    }

    /// Returns the length of the text in bytes.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, |w| self.emit(w))
    }
}

impl core::error::Error for Refusal<'_> {}
