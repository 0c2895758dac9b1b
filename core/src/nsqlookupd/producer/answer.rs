//! The answers to an nsqd that wait to be written.

use core::convert::Infallible;

use crate::session::staging::Staging;
use crate::wire::nsqlookupd::IdentifyReply;
use crate::wire::{ChunkWriter, emit_len};

/// The number of answers that may wait before the nsqd's commands are held back.
const ANSWERS_MAX: u16 = 1024;

/// The length of the longest refusal: the longest REGISTER or UNREGISTER line with the text around
/// it.
const BUFFER: usize = 216;

/// The frames of `OK` in one write, at most.
const OKS: &[u8] = b"\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\
\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK";

/// The length of one `OK` frame.
const OK_LEN: usize = 6;

/// The answers that wait to be written.
#[derive(Debug)]
pub(super) struct Answer {
    /// The number of `OK` frames that wait.
    oks: u16,
    /// The number of bytes of the first `OK` frame that were written.
    ok_at: u8,
    /// The answer behind these frames that is not `OK`. Its text is the answer to IDENTIFY.
    staging: Staging,
    buffer: [u8; BUFFER],
}

impl Answer {
    pub(super) const NONE: Self = Self { staging: Staging::NO_TEXT, ..Self::ZERO };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self =
        Self { oks: 0, ok_at: 0, staging: Staging::EMPTY, buffer: [0; BUFFER] };

    /// Returns whether there is room for another answer.
    pub(super) fn has_room(&self) -> bool {
        !self.has_special() && self.oks < ANSWERS_MAX
    }

    pub(super) fn is_none(&self) -> bool {
        !self.has_special() && self.oks == 0
    }

    /// Returns whether an answer that is not `OK` waits.
    fn has_special(&self) -> bool {
        self.staging.is_writing() || self.staging.has_text()
    }

    pub(super) fn ok(&mut self) {
        self.oks = self.oks.saturating_add(1);
    }

    pub(super) fn stage(
        &mut self,
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) {
        self.staging.clear();
        self.staging.append(&mut self.buffer, emit);
    }

    pub(super) fn identify(&mut self) {
        self.staging.start_text();
    }

    pub(super) fn next(&mut self, info: &IdentifyReply<'_>) -> &[u8] {
        if self.oks > 0 {
            let end = usize::from(self.oks).saturating_mul(OK_LEN).min(OKS.len());
            return OKS.get(self.ok_at.into()..end).unwrap_or_default();
        }
        if !self.staging.is_writing() {
            self.staging.stage_text(&mut self.buffer, |w| {
                emit_len(w, info.encoded_len())?;
                info.emit(w)
            });
        }
        self.staging.pending(&self.buffer)
    }

    pub(super) fn sent(&mut self, n: usize) {
        if self.oks == 0 {
            self.staging.sent(n);
            return;
        }
        let mut at = usize::from(self.ok_at).saturating_add(n);
        while at >= OK_LEN {
            at = at.saturating_sub(OK_LEN);
            self.oks = self.oks.saturating_sub(1);
        }
        self.ok_at = at as u8;
    }
}
