//! Stages the frames that an nsqd sends besides messages: responses, errors, heartbeats.

use core::convert::Infallible;

use crate::session::staging::Staging;
use crate::wire::nsqd::{self, FrameType, Refusal};
use crate::wire::{ChunkWriter, Write, len_of, saturate};

/// The length of the buffer in bytes. A longer error is cut off.
const LEN: usize = 255;

/// The most unwritten bytes with which another command is read. The rest of the buffer has room for
/// the start of any error.
const UNWRITTEN_MAX: usize = 150;

/// The responses, errors and heartbeats that wait to be written.
#[derive(Debug)]
pub(super) struct TxBuffer {
    /// Its text is the response to IDENTIFY.
    staging: Staging,
    buffer: [u8; LEN],
}

impl TxBuffer {
    /// Storage before [`clear`](Self::clear): all bytes are zero.
    pub(super) const ZERO: Self = Self { staging: Staging::EMPTY, buffer: [0; LEN] };

    pub(super) fn clear(&mut self) {
        self.staging = Staging::NO_TEXT;
    }

    /// Returns whether there is room for the response to one more command.
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

    /// Begins staging the response to IDENTIFY, a piece at a time.
    pub(super) fn start_text(&mut self) {
        self.staging.start_text();
    }

    /// Returns whether part of the response to IDENTIFY is not staged yet.
    pub(super) fn has_text(&self) -> bool {
        self.staging.has_text()
    }

    /// Stages the next piece of the response to IDENTIFY. `emit` writes the whole response.
    pub(super) fn stage_text(
        &mut self,
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) {
        self.staging.stage_text(&mut self.buffer, emit);
    }

    /// Appends one frame to the staged bytes.
    pub(super) fn push(&mut self, frame_type: FrameType, data: &[u8]) {
        self.staging.compact(&mut self.buffer);
        self.staging.append(&mut self.buffer, |w| nsqd::emit_frame(w, frame_type, data));
    }

    /// Appends an error to the staged bytes, cut off if it is too long; with `bare`, only its code.
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
