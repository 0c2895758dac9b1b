//! Stages what an nsqd sends beside messages: answers, errors, heartbeats.

use core::convert::Infallible;

use crate::wire::nsqd::{self, FrameType, Refusal};
use crate::wire::{ChunkWriter, Write, saturate};

/// The length of the buffer. A longer error is cut off.
const STAGING: usize = 256;

/// With more unwritten bytes, no command is read. The rest of the buffer has room for the start of
/// any error.
const UNWRITTEN_MAX: usize = 150;

/// The answers, errors and heartbeats that wait to be written.
#[derive(Debug)]
pub(super) struct TxBuffer {
    staged: u16,
    written: u16,
    staging: [u8; STAGING],
}

impl TxBuffer {
    pub(super) const EMPTY: Self = Self { staged: 0, written: 0, staging: [0; STAGING] };

    pub(super) fn clear(&mut self) {
        self.staged = 0;
        self.written = 0;
    }

    /// Whether the answer to one more command has room.
    pub(super) fn has_room(&self) -> bool {
        self.unwritten() <= UNWRITTEN_MAX
    }

    pub(super) fn is_empty(&self) -> bool {
        self.written >= self.staged
    }

    fn unwritten(&self) -> usize {
        self.staged.saturating_sub(self.written).into()
    }

    pub(super) fn pending(&self) -> &[u8] {
        self.staging.get(self.written.into()..self.staged.into()).unwrap_or_default()
    }

    /// Consumes up to `n` written bytes and returns how many of them were not from this buffer.
    pub(super) fn sent(&mut self, n: usize) -> usize {
        let own = n.min(self.unwritten());
        self.written = self.written.saturating_add(own as u16);
        n.saturating_sub(own)
    }

    /// Moves the staged bytes to the front and returns the room behind them.
    fn room(&mut self) -> &mut [u8] {
        let (from, to) = (usize::from(self.written), usize::from(self.staged));
        if from > 0 {
            let mut at = 0usize;
            for index in from..to {
                let byte = self.staging.get(index).copied().unwrap_or_default();
                if let Some(slot) = self.staging.get_mut(at) {
                    *slot = byte;
                }
                at = at.saturating_add(1);
            }
            self.staged = at as u16;
            self.written = 0;
        }
        self.staging.get_mut(self.staged.into()..).unwrap_or_default()
    }

    /// Stages the part of a long text from byte `at` on. Returns how many bytes were staged, and
    /// the length of the text.
    pub(super) fn stage(
        &mut self,
        at: u16,
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) -> (u16, u16) {
        let mut writer = ChunkWriter::new(&mut self.staging, at.into());
        let Ok(()) = emit(&mut writer);
        self.written = 0;
        self.staged = writer.written() as u16;
        (self.staged, writer.total() as u16)
    }

    /// Puts one frame behind what is staged.
    pub(super) fn push(&mut self, frame_type: FrameType, data: &[u8]) {
        let mut writer = ChunkWriter::new(self.room(), 0);
        let Ok(()) = nsqd::emit_frame(&mut writer, frame_type, data);
        let len = writer.written() as u16;
        self.staged = self.staged.saturating_add(len);
    }

    /// Puts an error behind what is staged, cut off if it is too long: only its code if it is to
    /// be bare.
    pub(super) fn push_error(&mut self, refusal: &Refusal<'_>, bare: bool) {
        let Some((head, text)) = self.room().split_at_mut_checked(8) else { return };
        let mut writer = ChunkWriter::new(text, 0);
        let Ok(()) = if bare {
            writer.write_all(refusal.code().as_str().as_bytes())
        } else {
            refusal.emit(&mut writer)
        };
        let len = writer.written();
        let mut writer = ChunkWriter::new(head, 0);
        let Ok(()) = nsqd::emit_frame_head(&mut writer, FrameType::Error, saturate(len));
        self.staged = self.staged.saturating_add(8).saturating_add(len as u16);
    }
}
