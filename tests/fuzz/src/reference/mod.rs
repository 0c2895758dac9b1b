//! The expected results of decoders, obviously correct: computed from the whole stream with strings
//! and vectors, without any code of the core.
//!
//! Each returns the items of a [`Transcript`](crate::decode::Transcript) of the same stream. Where
//! the stream is refused there is a `!`, for servers with the error code; the texts of errors are
//! left to the core's own tests.

pub(crate) mod commands;
pub(crate) mod http;
pub(crate) mod json;
pub(crate) mod lookup;
pub(crate) mod names;

use std::fmt::Write as _;

/// Returns the first 4 bytes as a number, and the rest.
fn number(stream: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = stream.split_at_checked(4)?;
    Some((u32::from_be_bytes(number.try_into().expect("4 bytes")), rest))
}

/// The complete frames of nsqd.
pub(crate) fn frames(stream: &[u8], max: u32) -> String {
    let mut items = String::new();
    let mut rest = stream;
    while let Some((size, behind)) = number(rest)
        && let Some((kind, behind)) = number(behind)
    {
        if size < 4 || size - 4 > max || kind > 2 {
            return items + " !";
        }
        let Some((data, behind)) = behind.split_at_checked(size as usize - 4) else { break };
        let kind = ["Response", "Error", "Message"][kind as usize];
        let _ = write!(items, " {kind} {}", data.escape_ascii());
        rest = behind;
    }
    let _ = write!(items, " at boundary: {}", rest.is_empty());
    items
}

/// The complete replies of nsqlookupd.
pub(crate) fn replies(stream: &[u8], max: u32) -> String {
    let mut items = String::new();
    let mut rest = stream;
    while let Some((size, behind)) = number(rest) {
        if size > max {
            return items + " !";
        }
        let Some((data, behind)) = behind.split_at_checked(size as usize) else { break };
        let _ = write!(items, " reply {}", data.escape_ascii());
        rest = behind;
    }
    let _ = write!(items, " at boundary: {}", rest.is_empty());
    items
}
