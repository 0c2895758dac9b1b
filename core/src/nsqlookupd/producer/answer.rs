//! The answers that wait to be written to an nsqd.

use core::convert::Infallible;

use crate::wire::nsqlookupd::IdentifyReply;
use crate::wire::{ChunkWriter, emit_len};

/// How many answers may wait to be written before the nsqd is held.
const ANSWERS_MAX: u16 = 1024;

/// The longest refusal: a REGISTER or UNREGISTER line of the longest kind, and the words around it.
const TEXT: usize = 216;

/// `OK` as many times as one write takes at most.
const OKS: &[u8] = b"\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\
\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK\0\0\0\x02OK";

/// The length of one `OK` frame.
const OK_LEN: usize = 6;

/// The answers that wait to be written.
#[derive(Debug)]
pub(super) struct Answer {
    /// How many `OK`s wait, and how much of the first was written.
    oks: u16,
    ok_at: u8,
    /// The answer after them that is not `OK`.
    special: Special,
    /// How many bytes are staged in `text`, and how many of them were written.
    staged: u8,
    written: u8,
    text: [u8; TEXT],
}

/// An answer that is not `OK`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    None,
    /// The staged text.
    Text,
    /// The answer to IDENTIFY, of which the text holds what follows the first `at` bytes.
    Identify {
        at: u16,
    },
}

impl Answer {
    pub(super) const NONE: Self =
        Self { oks: 0, ok_at: 0, special: Special::None, staged: 0, written: 0, text: [0; TEXT] };

    /// Whether there is room for another answer.
    pub(super) fn has_room(&self) -> bool {
        self.special == Special::None && self.oks < ANSWERS_MAX
    }

    pub(super) fn is_none(&self) -> bool {
        self.oks == 0 && self.special == Special::None
    }

    pub(super) fn ok(&mut self) {
        self.oks = self.oks.saturating_add(1);
    }

    pub(super) fn stage(
        &mut self,
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) {
        let mut writer = ChunkWriter::new(&mut self.text, 0);
        let Ok(()) = emit(&mut writer);
        self.staged = writer.written() as u8;
        self.written = 0;
        self.special = Special::Text;
    }

    pub(super) fn identify(&mut self) {
        self.special = Special::Identify { at: 0 };
        self.staged = 0;
        self.written = 0;
    }

    pub(super) fn next(&mut self, info: &IdentifyReply<'_>) -> &[u8] {
        if self.oks > 0 {
            let end = usize::from(self.oks).saturating_mul(OK_LEN).min(OKS.len());
            return OKS.get(self.ok_at.into()..end).unwrap_or_default();
        }
        if let Special::Identify { at } = self.special
            && self.written >= self.staged
        {
            let mut writer = ChunkWriter::new(&mut self.text, at.into());
            let Ok(()) = emit_len(&mut writer, info.encoded_len());
            let Ok(()) = info.emit(&mut writer);
            self.staged = writer.written() as u8;
            self.written = 0;
        }
        self.text.get(self.written.into()..self.staged.into()).unwrap_or_default()
    }

    pub(super) fn sent(&mut self, n: usize, info: &IdentifyReply<'_>) {
        if self.oks > 0 {
            let mut at = usize::from(self.ok_at).saturating_add(n);
            while at >= OK_LEN {
                at = at.saturating_sub(OK_LEN);
                self.oks = self.oks.saturating_sub(1);
            }
            self.ok_at = at as u8;
            return;
        }
        let n = n.min(self.staged.saturating_sub(self.written).into());
        self.written = self.written.saturating_add(n as u8);
        let is_over = match &mut self.special {
            Special::None => return,
            Special::Text => self.written >= self.staged,
            Special::Identify { at } => {
                *at = at.saturating_add(n as u16);
                usize::from(*at) >= info.encoded_len().saturating_add(4)
            }
        };
        if is_over {
            self.special = Special::None;
            self.staged = 0;
            self.written = 0;
        }
    }
}
