//! Stages what an nsqd sends beside messages: answers, errors, heartbeats.

use core::convert::Infallible;

use crate::session::staging::Staging;
use crate::wire::nsqd::{self, FrameType, Refusal};
use crate::wire::{ChunkWriter, Write, len_of, saturate};

/// The length of the buffer. A longer error is cut off.
const LEN: usize = 255;

/// With more unwritten bytes, no command is read. The rest of the buffer has room for the start of
/// any error.
const UNWRITTEN_MAX: usize = 150;

/// The answers, errors and heartbeats that wait to be written.
#[derive(Debug)]
pub(super) struct TxBuffer {
    /// The text is the answer to IDENTIFY.
    staging: Staging,
    buffer: [u8; LEN],
}

impl TxBuffer {
    /// All bytes are zero, for storage: [`clear`](Self::clear) makes it usable.
    pub(super) const ZERO: Self = Self { staging: Staging::EMPTY, buffer: [0; LEN] };

    pub(super) fn clear(&mut self) {
        self.staging = Staging::NO_TEXT;
    }

    /// Whether the answer to one more command has room.
    pub(super) fn has_room(&self) -> bool {
        !self.has_text() && self.pending().len() <= UNWRITTEN_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        !self.staging.is_writing()
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.staging.pending(&self.buffer)
    }

    pub(super) fn sent(&mut self, n: usize) {
        self.staging.sent(n);
    }

    /// The answer to IDENTIFY is to be staged, a piece at a time.
    pub(super) fn start_text(&mut self) {
        self.staging.start_text();
    }

    /// Whether some of that is not staged.
    pub(super) fn has_text(&self) -> bool {
        self.staging.has_text()
    }

    /// Stages the next piece of the answer to IDENTIFY, all of which `emit` writes.
    pub(super) fn stage_text(
        &mut self,
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) {
        self.staging.stage_text(&mut self.buffer, emit);
    }

    /// Puts one frame behind what is staged.
    pub(super) fn push(&mut self, frame_type: FrameType, data: &[u8]) {
        self.staging.compact(&mut self.buffer);
        self.staging.append(&mut self.buffer, |w| nsqd::emit_frame(w, frame_type, data));
    }

    /// Puts an error behind what is staged, cut off if it is too long: only its code if it is to
    /// be bare.
    pub(super) fn push_error(&mut self, refusal: &Refusal<'_>, bare: bool) {
        let emit = |w: &mut ChunkWriter<'_>| {
            if bare { w.write_all(refusal.code().as_str().as_bytes()) } else { refusal.emit(w) }
        };
        let len = len_of(emit);
        self.staging.compact(&mut self.buffer);
        let Some(room) = self.staging.room(&self.buffer).checked_sub(8) else { return };
        let len = saturate(len.min(room));
        self.staging.append(&mut self.buffer, |w| {
            nsqd::emit_frame_head(w, FrameType::Error, len)?;
            emit(w)
        });
    }
}
