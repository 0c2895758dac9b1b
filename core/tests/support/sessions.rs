//! Helpers for tests that are the peer of a session.

use nanonsq_core::session::Session;
use nanonsq_core::time::Instant;

/// Sends all bytes of a session, and returns them.
pub(crate) fn written(session: &mut dyn Session, now: Instant) -> Vec<u8> {
    let mut all = Vec::new();
    while !session.transmit(now).is_empty() {
        let bytes = session.transmit(now);
        let n = bytes.len();
        all.extend([bytes.head, bytes.body].concat());
        session.sent(now, n);
    }
    all
}

/// Returns a frame of nsqd: a response (0), an error (1), or a message (2).
pub(crate) fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len() + 4).unwrap().to_be_bytes();
    [&size[..], &[0, 0, 0, kind], data].concat()
}

/// Returns the frame of a message with a count of attempts.
pub(crate) fn message(attempts: u8, body: &[u8]) -> Vec<u8> {
    frame(2, &[&[0; 9][..], &[attempts], b"0123456789abcdef", body].concat())
}
