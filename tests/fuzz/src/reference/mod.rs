//! What decoders should say of a stream, obviously right: written for the whole of it, with strings
//! and vectors, and without a line of the core's.
//!
//! Each gives what a [`Transcript`](crate::decode::Transcript) holds of the same stream. Where the
//! stream is refused there is a `!`, for a server's with the code that it answers; the reasons in
//! words are for the core's own tests.

pub(crate) mod commands;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod lookup;
pub(crate) mod names;

use std::fmt::Write as _;

/// The first 4 bytes as a number, and the rest.
fn number(stream: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = stream.split_at_checked(4)?;
    Some((u32::from_be_bytes(number.try_into().expect("4 bytes")), rest))
}

/// nsqd's frames: those that are whole.
pub(crate) fn frames(stream: &[u8], max: u32) -> String {
    let mut said = String::new();
    let mut rest = stream;
    while let Some((size, behind)) = number(rest)
        && let Some((kind, behind)) = number(behind)
    {
        if size < 4 || size - 4 > max || kind > 2 {
            return said + " !";
        }
        let Some((data, behind)) = behind.split_at_checked(size as usize - 4) else { break };
        let kind = ["Response", "Error", "Message"][kind as usize];
        let _ = write!(said, " {kind} {}", data.escape_ascii());
        rest = behind;
    }
    let _ = write!(said, " at boundary: {}", rest.is_empty());
    said
}

/// nsqlookupd's replies: those that are whole.
pub(crate) fn replies(stream: &[u8], max: u32) -> String {
    let mut said = String::new();
    let mut rest = stream;
    while let Some((size, behind)) = number(rest) {
        if size > max {
            return said + " !";
        }
        let Some((data, behind)) = behind.split_at_checked(size as usize) else { break };
        let _ = write!(said, " reply {}", data.escape_ascii());
        rest = behind;
    }
    let _ = write!(said, " at boundary: {}", rest.is_empty());
    said
}
