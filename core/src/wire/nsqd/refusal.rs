//! The texts of nsqd's errors.

use core::fmt;

use super::{ErrorCode, MessageId};
use crate::wire::text::{Text, display};
use crate::wire::{Write, len_of};

/// The verb of a command: its first word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Verb {
    /// `IDENTIFY`
    Identify,
    /// `AUTH`
    Auth,
    /// `SUB`
    Sub,
    /// `RDY`
    Rdy,
    /// `FIN`
    Fin,
    /// `REQ`
    Req,
    /// `TOUCH`
    Touch,
    /// `CLS`
    Cls,
    /// `NOP`
    Nop,
    /// `PUB`
    Pub,
    /// `MPUB`
    Mpub,
    /// `DPUB`
    Dpub,
}

impl Verb {
    const ALL: [Self; 12] = [
        Self::Identify,
        Self::Auth,
        Self::Sub,
        Self::Rdy,
        Self::Fin,
        Self::Req,
        Self::Touch,
        Self::Cls,
        Self::Nop,
        Self::Pub,
        Self::Mpub,
        Self::Dpub,
    ];

    /// Returns the command with that name; names are case-sensitive.
    pub(super) fn parse(word: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|verb| verb.as_str().as_bytes() == word)
    }

    /// Returns the name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Identify => "IDENTIFY",
            Self::Auth => "AUTH",
            Self::Sub => "SUB",
            Self::Rdy => "RDY",
            Self::Fin => "FIN",
            Self::Req => "REQ",
            Self::Touch => "TOUCH",
            Self::Cls => "CLS",
            Self::Nop => "NOP",
            Self::Pub => "PUB",
            Self::Mpub => "MPUB",
            Self::Dpub => "DPUB",
        }
    }
}

/// A setting in IDENTIFY that has a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Setting {
    /// `heartbeat_interval`
    HeartbeatInterval,
    /// `output_buffer_timeout`
    OutputBufferTimeout,
    /// `output_buffer_size`
    OutputBufferSize,
    /// `sample_rate`
    SampleRate,
    /// `msg_timeout`
    MsgTimeout,
}

/// Why nsqd refuses a command. [`emit`](Self::emit) and `Display` write the data of the error
/// frame, `CODE description`, exactly as nsqd 1.3.0 (`nsqd/protocol_v2.go`).
///
/// All but [`NotInFlight`](Self::NotInFlight) and [`NotOwner`](Self::NotOwner) are fatal: send the
/// error frame and close. Texts borrow from the decoder's line: write the refusal out at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal<'a> {
    /// The magic is not [`MAGIC`](super::MAGIC).
    BadProtocol,
    /// There is no such command.
    UnknownCommand(&'a [u8]),
    /// A line longer than [`LINE_BUFFER`](super::LINE_BUFFER). nsqd accepts 16,384 bytes and then
    /// closes without an error frame.
    LineTooLong,
    /// The command is not allowed before SUB, after SUB, or after CLS.
    WrongState(Verb),
    /// SUB by a client that disabled heartbeats.
    HeartbeatsOff,
    /// A parameter is missing, or AUTH has a parameter.
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
        /// The name in the command.
        name: &'a [u8],
    },
    /// A message id does not have 16 bytes.
    BadMessageId,
    /// The count of RDY or the time of REQ or DPUB has other characters than decimal digits.
    BadNumber {
        /// The command.
        verb: Verb,
        /// The text in the command.
        text: &'a [u8],
    },
    /// The count of RDY or the time of DPUB is too large.
    OutOfRange {
        /// The command.
        verb: Verb,
        /// The number in the command: decimal digits.
        digits: &'a [u8],
        /// The largest number that is accepted.
        max: u32,
    },
    /// The length of a body, or of PUB's and DPUB's message, is not positive.
    BadLength {
        /// The command.
        verb: Verb,
        /// The announced length.
        len: i32,
    },
    /// A body, or a message, is too long.
    TooBig {
        /// The command.
        verb: Verb,
        /// The announced length.
        len: i32,
        /// The longest length that is accepted.
        max: u32,
    },
    /// MPUB's number of messages is not positive, or so many cannot fit into the longest body.
    BadCount(i32),
    /// The length of a message inside MPUB is not positive.
    BadMessageLength {
        /// The index of the message, from 0.
        index: u32,
        /// The announced length.
        len: i32,
    },
    /// A message inside MPUB is too long.
    MessageTooBig {
        /// The announced length.
        len: i32,
        /// The longest length that is accepted.
        max: u32,
    },
    /// The client stopped sending inside a command.
    Ended {
        /// The command.
        verb: Verb,
        /// Where the bytes ended.
        at: Within,
    },
    /// IDENTIFY's body is not a JSON object, or a value in it has the wrong type.
    BadJson,
    /// A setting in IDENTIFY is out of its range.
    BadSetting {
        /// The setting.
        setting: Setting,
        /// The value that the client sent.
        value: i32,
    },
    /// IDENTIFY requests deflate and snappy together.
    BothCompressions,
    /// AUTH, but the server has no authorization.
    AuthDisabled,
    /// FIN, REQ or TOUCH of a message that is not in flight. Not fatal.
    NotInFlight {
        /// The command.
        verb: Verb,
        /// The message.
        id: MessageId,
    },
    /// FIN, REQ or TOUCH of a message that is in flight to another client. Not fatal.
    NotOwner {
        /// The command.
        verb: Verb,
        /// The message.
        id: MessageId,
    },
    /// The server could not execute SUB, PUB, MPUB or DPUB.
    Failed {
        /// The command.
        verb: Verb,
        /// The reason, as the server words it.
        why: &'a str,
    },
}

/// A place in a command's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Within {
    /// In the length of the body.
    Length,
    /// In the body itself.
    Body,
    /// In MPUB's number of messages.
    Count,
    /// In the length of MPUB's message of this index, from 0.
    MessageLength(u32),
}

impl Refusal<'_> {
    /// Returns the error code.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BadProtocol => ErrorCode::BadProtocol,
            Self::UnknownCommand(_)
            | Self::LineTooLong
            | Self::WrongState(_)
            | Self::HeartbeatsOff
            | Self::Parameters(_)
            | Self::BadMessageId
            | Self::BadNumber { .. }
            | Self::OutOfRange { .. } => ErrorCode::Invalid,
            Self::BadTopic { .. } => ErrorCode::BadTopic,
            Self::BadChannel { .. } => ErrorCode::BadChannel,
            Self::BadLength { verb, .. } | Self::TooBig { verb, .. } => body_code(*verb),
            Self::Ended { verb: Verb::Mpub, at: Within::Body | Within::MessageLength(_) } => {
                ErrorCode::BadMessage
            }
            Self::Ended { verb, .. } => body_code(*verb),
            Self::BadMessageLength { .. } | Self::MessageTooBig { .. } => ErrorCode::BadMessage,
            Self::BadCount(_) | Self::BadJson | Self::BadSetting { .. } => ErrorCode::BadBody,
            Self::BothCompressions => ErrorCode::IdentifyFailed,
            Self::AuthDisabled => ErrorCode::AuthDisabled,
            Self::NotInFlight { verb, .. }
            | Self::NotOwner { verb, .. }
            | Self::Failed { verb, .. } => match verb {
                Verb::Sub => ErrorCode::Sub,
                Verb::Pub => ErrorCode::Pub,
                Verb::Mpub => ErrorCode::Mpub,
                Verb::Dpub => ErrorCode::Dpub,
                Verb::Fin => ErrorCode::Fin,
                Verb::Req => ErrorCode::Req,
                Verb::Touch => ErrorCode::Touch,
                Verb::Identify => ErrorCode::IdentifyFailed,
                Verb::Auth => ErrorCode::AuthFailed,
                Verb::Rdy | Verb::Cls | Verb::Nop => ErrorCode::Invalid,
            },
        }
    }

    /// Returns whether nsqd closes the connection after the refusal.
    pub const fn is_fatal(&self) -> bool {
        self.code().is_fatal()
    }

    /// Writes the data of the error frame; [`emit_frame_head`](super::emit_frame_head) writes its
    /// head.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        w.write_all(self.code().as_str().as_bytes())?;
        if matches!(self, Self::BadProtocol) {
            return Ok(());
        }
        w.write_all(b" ")?;
        self.emit_description(w)
    }

    /// Returns the length of the data in bytes.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }

    fn emit_description<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut out = Text(w);
        match *self {
            Self::BadProtocol => Ok(()),
            Self::UnknownCommand(word) => out.text("invalid command ")?.raw(word),
            Self::LineTooLong => out
                .text("line longer than ")?
                .unsigned(super::LINE_BUFFER as u32)?
                .text(" bytes")?
                .done(),
            Self::WrongState(verb) => {
                out.text("cannot ")?.text(verb.as_str())?.text(" in current state")?.done()
            }
            Self::HeartbeatsOff => out.text("cannot SUB with heartbeats disabled")?.done(),
            Self::Parameters(verb) => out
                .text(verb.as_str())?
                .text(match verb {
                    Verb::Fin | Verb::Req | Verb::Touch => " insufficient number of params",
                    Verb::Auth => " invalid number of parameters",
                    _ => " insufficient number of parameters",
                })?
                .done(),
            Self::BadTopic { verb, name } => {
                if verb == Verb::Mpub {
                    // nsqd repeats the code in this text.
                    out.text("E_BAD_TOPIC ")?;
                }
                out.text(verb.as_str())?
                    .text(" topic name ")?
                    .quoted(name)?
                    .text(" is not valid")?
                    .done()
            }
            Self::BadChannel { name } => {
                out.text("SUB channel name ")?.quoted(name)?.text(" is not valid")?.done()
            }
            Self::BadMessageId => out.text("invalid message ID")?.done(),
            Self::BadNumber { verb, text } => {
                let what = if verb == Verb::Rdy { "count " } else { "timeout " };
                out.text(verb.as_str())?.text(" could not parse ")?.text(what)?.raw(text)
            }
            Self::OutOfRange { verb, digits, max } => {
                let what = if verb == Verb::Rdy { " count " } else { " timeout " };
                out.text(verb.as_str())?.text(what)?.raw(significant(digits))?;
                out.text(" out of range 0-")?.unsigned(max)?.done()
            }
            Self::BadLength { verb, len } => {
                out.text(verb.as_str())?
                    .text(" invalid ")?
                    .text(message(verb))?
                    .text("body size ")?;
                out.signed(len)?.done()
            }
            Self::TooBig { verb, len, max } => {
                let what = if message(verb).is_empty() { " body" } else { " message" };
                out.text(verb.as_str())?.text(what)?.too_big(len, max)
            }
            Self::BadCount(count) => out.text("MPUB invalid message count ")?.signed(count)?.done(),
            Self::BadMessageLength { index, len } => {
                out.text("MPUB invalid message(")?.unsigned(index)?.text(") body size ")?;
                out.signed(len)?.done()
            }
            Self::MessageTooBig { len, max } => out.text("MPUB message")?.too_big(len, max),
            Self::Ended { verb, at } => {
                out.text(verb.as_str())?.text(" failed to read ")?;
                match at {
                    Within::Length => out.text(message(verb))?.text("body size")?.done(),
                    Within::Body if verb == Verb::Mpub => out.text("message body")?.done(),
                    Within::Body => out.text(message(verb))?.text("body")?.done(),
                    Within::Count => out.text("message count")?.done(),
                    Within::MessageLength(index) => {
                        out.text("message(")?.unsigned(index)?.text(") body size")?.done()
                    }
                }
            }
            Self::BadJson => out.text("IDENTIFY failed to decode JSON body")?.done(),
            Self::BadSetting { setting, value } => {
                let name = match setting {
                    Setting::HeartbeatInterval => "heartbeat interval",
                    Setting::OutputBufferTimeout => "output buffer timeout",
                    Setting::OutputBufferSize => "output buffer size",
                    Setting::SampleRate => "sample rate",
                    Setting::MsgTimeout => "msg timeout",
                };
                out.text("IDENTIFY ")?.text(name)?.text(" (")?.signed(value)?;
                out.text(") is invalid")?.done()
            }
            Self::BothCompressions => {
                out.text("cannot enable both deflate and snappy compression")?.done()
            }
            Self::AuthDisabled => out.text("AUTH disabled")?.done(),
            Self::NotInFlight { verb, id } => {
                out.text(verb.as_str())?.text(" ")?.raw(&id.0)?;
                out.text(" failed ID not in flight")?.done()
            }
            Self::NotOwner { verb, id } => {
                out.text(verb.as_str())?.text(" ")?.raw(&id.0)?;
                out.text(" failed client does not own message")?.done()
            }
            Self::Failed { verb, why } => {
                out.text(verb.as_str())?.text(" failed ")?.text(why)?.done()
            }
        }
    }
}

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        display(f, |w| self.emit(w))
    }
}

impl core::error::Error for Refusal<'_> {}

/// Returns the code of a refusal because of the command's body.
const fn body_code(verb: Verb) -> ErrorCode {
    match verb {
        Verb::Pub | Verb::Dpub => ErrorCode::BadMessage,
        _ => ErrorCode::BadBody,
    }
}

/// Returns the noun before "body": PUB and DPUB have a message where other commands have a body.
const fn message(verb: Verb) -> &'static str {
    match verb {
        Verb::Pub | Verb::Dpub => "message ",
        _ => "",
    }
}

/// Removes leading zeros, since nsqd prints the parsed number.
fn significant(digits: &[u8]) -> &[u8] {
    let mut digits = digits;
    while let Some((b'0', rest)) = digits.split_first()
        && !rest.is_empty()
    {
        digits = rest;
    }
    if digits.is_empty() { b"0" } else { digits }
}
