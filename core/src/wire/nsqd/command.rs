//! The commands of a client; IDENTIFY is in [`identify`](super::identify).

use crate::name::{ChannelName, TopicName};
use crate::wire::{Write, emit_decimal, emit_len};

/// Writes `PUB topic\n`. The record `[u32be length][body]` is to follow.
///
/// `topic` is a valid name, which is not checked again. It is in two pieces, since it may wrap at
/// the end of a ring. At most 69 bytes.
#[inline]
pub fn emit_pub_head<W: Write>(w: &mut W, topic: (&[u8], &[u8])) -> Result<(), W::Error> {
    emit_topic(w, b"PUB ", topic.0)?;
    w.write_all(topic.1)?;
    w.write_all(b"\n")
}

/// Writes `MPUB topic\n`, the body's length and the number of messages. `count` records of
/// together `records_len` bytes are to follow.
///
/// `topic` is a valid name, which is not checked again. It is in two pieces, since it may wrap at
/// the end of a ring. At most 78 bytes.
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

/// Writes `DPUB topic ms\n`. The record `[u32be length][body]` is to follow.
///
/// `topic` is a valid name, which is not checked again. It is in two pieces, since it may wrap at
/// the end of a ring. `defer_ms` is in milliseconds. At most 81 bytes.
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

/// Writes AUTH with its secret, 9 bytes more than the secret.
pub fn emit_auth<W: Write>(w: &mut W, secret: &[u8]) -> Result<(), W::Error> {
    w.write_all(b"AUTH\n")?;
    emit_len(w, secret.len())?;
    w.write_all(secret)
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

/// Writes a command of one line: the verb, which ends with a space if an id follows, the id and,
/// after a space, the number. RDY is at most 15 bytes long, FIN 21, TOUCH 23, REQ 32.
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

/// Writes the last parameter and the line feed.
fn emit_number<W: Write>(w: &mut W, number: u32) -> Result<(), W::Error> {
    emit_decimal(w, number)?;
    w.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_of_one_line_are_those_of_nsqd() {
        let id = b"0e56cbb0bd1e8000";
        let commands: [(&[u8], &[u8], _, &str); 7] = [
            (b"RDY", b"", Some(0), "RDY 0\n"),
            (b"RDY", b"", Some(u32::MAX), "RDY 4294967295\n"),
            (b"FIN ", id, None, "FIN 0e56cbb0bd1e8000\n"),
            (b"REQ ", id, Some(90), "REQ 0e56cbb0bd1e8000 90\n"),
            (b"TOUCH ", id, None, "TOUCH 0e56cbb0bd1e8000\n"),
            (b"CLS", b"", None, "CLS\n"),
            (b"NOP", b"", None, "NOP\n"),
        ];
        for (verb, id, number, line) in commands {
            let mut written = Vec::new();
            emit_line(&mut written, verb, id, number).unwrap();
            assert_eq!(written, line.as_bytes());
            // A buffer that is too short is an error, not a panic.
            for len in 0..written.len() {
                assert!(emit_line(&mut &mut vec![0; len][..], verb, id, number).is_err());
            }
        }
    }
}
