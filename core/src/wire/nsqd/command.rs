//! Commands: what a client sends.

use super::{IdentifyRequest, MessageId};
use crate::name::{ChannelName, TopicName};
use crate::wire::{Write, emit_decimal, emit_len, len_of, saturate};

/// A command, ready to be written. All of them are defined in `nsqd/protocol_v2.go`.
#[derive(Debug, Clone, Copy)]
pub enum Command<'a> {
    /// IDENTIFY: who the client is and what it wants. Answer: JSON, or `OK` without
    /// `feature_negotiation`.
    Identify(&'a IdentifyRequest<'a>),
    /// AUTH, after IDENTIFY said that it is required. Answer: JSON ([`super::AuthScanner`]).
    Auth {
        /// What the authorization server knows the client by; not empty.
        secret: &'a [u8],
    },
    /// SUB: becomes a consumer, once per connection. Answer: `OK`.
    Sub {
        /// The topic; created if need be.
        topic: &'a TopicName,
        /// The channel; created if need be.
        channel: &'a ChannelName,
    },
    /// PUB: publishes a message. Answer: `OK`.
    Pub {
        /// The topic; created if need be.
        topic: &'a TopicName,
        /// The message; empty ones are refused.
        body: &'a [u8],
    },
    /// MPUB: publishes messages together. Answer: one `OK`.
    Mpub {
        /// The topic; created if need be.
        topic: &'a TopicName,
        /// The messages; an empty one, or none at all, is refused.
        bodies: &'a [&'a [u8]],
    },
    /// DPUB: publishes a message for later. Answer: `OK`.
    Dpub {
        /// The topic; created if need be.
        topic: &'a TopicName,
        /// How much later, in milliseconds; nsqd's `-max-req-timeout` (one hour) at most.
        defer_ms: u32,
        /// The message; empty ones are refused.
        body: &'a [u8],
    },
    /// RDY: how many messages may be in flight to this client. No answer.
    Rdy(u32),
    /// FIN: a message is done. No answer unless it fails.
    Fin(MessageId),
    /// REQ: a message is to be delivered again. No answer unless it fails.
    Req {
        /// Which one.
        id: MessageId,
        /// After how many milliseconds; nsqd clamps it to its `-max-req-timeout` (one hour).
        delay_ms: u32,
    },
    /// TOUCH: a message takes longer. No answer unless it fails.
    Touch(MessageId),
    /// CLS: no more messages. Answer: `CLOSE_WAIT`.
    Cls,
    /// NOP: the answer to a heartbeat. No answer.
    Nop,
}

impl Command<'_> {
    /// Writes the command.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        match *self {
            Self::Identify(request) => emit_identify(w, request),
            Self::Auth { secret } => emit_auth(w, secret),
            Self::Sub { topic, channel } => emit_sub(w, topic, channel),
            Self::Pub { topic, body } => {
                emit_pub_head(w, (topic.as_bytes(), &[]))?;
                emit_body(w, body)
            }
            Self::Mpub { topic, bodies } => {
                let records = bodies
                    .iter()
                    .fold(0usize, |sum, body| sum.saturating_add(4).saturating_add(body.len()));
                let count = bodies.len();
                emit_mpub_head(w, (topic.as_bytes(), &[]), saturate(records), saturate(count))?;
                bodies.iter().try_for_each(|body| emit_body(w, body))
            }
            Self::Dpub { topic, defer_ms, body } => {
                emit_dpub_head(w, (topic.as_bytes(), &[]), defer_ms)?;
                emit_body(w, body)
            }
            Self::Rdy(count) => emit_rdy(w, count),
            Self::Fin(id) => emit_fin(w, &id),
            Self::Req { id, delay_ms } => emit_req(w, &id, delay_ms),
            Self::Touch(id) => emit_touch(w, &id),
            Self::Cls => w.write_all(b"CLS\n"),
            Self::Nop => w.write_all(super::NOP),
        }
    }

    /// How many bytes that is.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

/// Writes `PUB topic\n`; the record `[u32be length][body]` follows from where it lies.
///
/// `topic` is a valid name, in two pieces since a ring may wrap in it; it is not checked again.
/// At most 69 bytes.
#[inline]
pub fn emit_pub_head<W: Write>(w: &mut W, topic: (&[u8], &[u8])) -> Result<(), W::Error> {
    emit_topic(w, b"PUB ", topic.0)?;
    w.write_all(topic.1)?;
    w.write_all(b"\n")
}

/// Writes `MPUB topic\n`, the body's length and the number of messages; `count` records of
/// together `records_len` bytes follow from where they lie.
///
/// `topic` is a valid name, in two pieces since a ring may wrap in it; it is not checked again.
/// At most 78 bytes.
#[inline]
pub fn emit_mpub_head<W: Write>(
    w: &mut W,
    topic: (&[u8], &[u8]),
    records_len: u32,
    count: u32,
) -> Result<(), W::Error> {
    emit_topic(w, b"MPUB ", topic.0)?;
    w.write_all(topic.1)?;
    w.write_all(b"\n")?;
    w.write_all(&records_len.saturating_add(4).to_be_bytes())?;
    w.write_all(&count.to_be_bytes())
}

/// Writes `DPUB topic ms\n`; the record `[u32be length][body]` follows from where it lies.
///
/// `topic` is a valid name, in two pieces since a ring may wrap in it; it is not checked again.
/// `defer_ms` is in milliseconds. At most 81 bytes.
#[inline]
pub fn emit_dpub_head<W: Write>(
    w: &mut W,
    topic: (&[u8], &[u8]),
    defer_ms: u32,
) -> Result<(), W::Error> {
    emit_topic(w, b"DPUB ", topic.0)?;
    w.write_all(topic.1)?;
    w.write_all(b" ")?;
    emit_number(w, defer_ms)
}

/// Writes IDENTIFY. Alone, where the others of [`Command`] are not to be linked; likewise the rest.
pub fn emit_identify<W: Write>(w: &mut W, request: &IdentifyRequest<'_>) -> Result<(), W::Error> {
    w.write_all(b"IDENTIFY\n")?;
    emit_len(w, request.encoded_len())?;
    request.emit(w)
}

/// Writes AUTH.
pub fn emit_auth<W: Write>(w: &mut W, secret: &[u8]) -> Result<(), W::Error> {
    w.write_all(b"AUTH\n")?;
    emit_body(w, secret)
}

/// Writes SUB, at most [`LINE_MAX`](super::LINE_MAX) bytes.
pub fn emit_sub<W: Write>(
    w: &mut W,
    topic: &TopicName,
    channel: &ChannelName,
) -> Result<(), W::Error> {
    emit_topic(w, b"SUB ", topic.as_bytes())?;
    emit_topic(w, b" ", channel.as_bytes())?;
    w.write_all(b"\n")
}

/// Writes RDY, at most 15 bytes.
pub fn emit_rdy<W: Write>(w: &mut W, count: u32) -> Result<(), W::Error> {
    w.write_all(b"RDY ")?;
    emit_number(w, count)
}

/// Writes FIN, 21 bytes.
pub fn emit_fin<W: Write>(w: &mut W, id: &MessageId) -> Result<(), W::Error> {
    emit_topic(w, b"FIN ", &id.0)?;
    w.write_all(b"\n")
}

/// Writes REQ, at most 32 bytes; `delay_ms` is in milliseconds.
pub fn emit_req<W: Write>(w: &mut W, id: &MessageId, delay_ms: u32) -> Result<(), W::Error> {
    emit_topic(w, b"REQ ", &id.0)?;
    w.write_all(b" ")?;
    emit_number(w, delay_ms)
}

/// Writes TOUCH, 23 bytes.
pub fn emit_touch<W: Write>(w: &mut W, id: &MessageId) -> Result<(), W::Error> {
    emit_topic(w, b"TOUCH ", &id.0)?;
    w.write_all(b"\n")
}

/// Writes a command that is one line: a verb, which ends with a space if an id follows, the id, and
/// a number.
pub(crate) fn emit_line<W: Write>(
    w: &mut W,
    verb: &[u8],
    id: &[u8],
    number: Option<u32>,
) -> Result<(), W::Error> {
    w.write_all(verb)?;
    w.write_all(id)?;
    match number {
        Some(number) => {
            w.write_all(b" ")?;
            emit_number(w, number)
        }
        None => w.write_all(b"\n"),
    }
}

#[inline]
fn emit_topic<W: Write>(w: &mut W, verb: &[u8], name: &[u8]) -> Result<(), W::Error> {
    w.write_all(verb)?;
    w.write_all(name)
}

/// The last parameter and the line's end.
fn emit_number<W: Write>(w: &mut W, number: u32) -> Result<(), W::Error> {
    emit_decimal(w, number)?;
    w.write_all(b"\n")
}

fn emit_body<W: Write>(w: &mut W, body: &[u8]) -> Result<(), W::Error> {
    emit_len(w, body.len())?;
    w.write_all(body)
}
