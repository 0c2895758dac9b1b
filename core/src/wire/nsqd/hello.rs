//! What the sessions of clients begin with. By hand rather than by
//! [`IdentifyRequest`](super::IdentifyRequest), which knows every field there is: one copy of this
//! is all that a publisher and a consumer in the same program need.

use core::convert::Infallible;

use embedded_io::Write;

use super::MAGIC;
use crate::wire::json::emit_str;
use crate::wire::{ChunkWriter, emit_decimal, emit_len, len_of};

/// A client, as it introduces itself.
pub(crate) struct Hello<'a> {
    pub(crate) client_id: &'a str,
    pub(crate) hostname: &'a str,
    pub(crate) user_agent: &'a str,
    pub(crate) heartbeat_ms: u32,
}

/// What else a client says in IDENTIFY: `,"key":` and a number, unless it is 0. A list rather than a
/// closure, for the same reason; apart from [`Hello`], so that one that is always empty is seen.
pub(crate) type More<'a> = [(&'a str, u32)];

impl Hello<'_> {
    pub(crate) fn emit(&self, w: &mut ChunkWriter<'_>, more: &More<'_>) -> Result<(), Infallible> {
        w.write_all(&MAGIC)?;
        w.write_all(b"IDENTIFY\n")?;
        emit_len(w, len_of(|w| self.emit_body(w, more)))?;
        self.emit_body(w, more)
    }

    #[inline(never)]
    fn emit_body(&self, w: &mut ChunkWriter<'_>, more: &More<'_>) -> Result<(), Infallible> {
        w.write_all(b"{\"client_id\":")?;
        emit_str(w, self.client_id)?;
        w.write_all(b",\"hostname\":")?;
        emit_str(w, self.hostname)?;
        w.write_all(b",\"user_agent\":")?;
        emit_str(w, self.user_agent)?;
        w.write_all(b",\"feature_negotiation\":true,\"heartbeat_interval\":")?;
        emit_decimal(w, self.heartbeat_ms)?;
        for (key, number) in more {
            if *number > 0 {
                w.write_all(key.as_bytes())?;
                emit_decimal(w, *number)?;
            }
        }
        w.write_all(b"}")
    }
}

/// Writes AUTH.
pub(crate) fn emit_auth(w: &mut ChunkWriter<'_>, secret: &[u8]) -> Result<(), Infallible> {
    w.write_all(b"AUTH\n")?;
    emit_len(w, secret.len())?;
    w.write_all(secret)
}
