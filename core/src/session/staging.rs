//! Bytes that a session has made and its transport has not taken yet.

use core::convert::Infallible;

use heapless::VecView;

use crate::wire::ChunkWriter;

/// Counts how much of a buffer is staged for writing, and how much of that is written.
///
/// The buffer lies elsewhere: each session chooses its length, at most 255 bytes, and its place in
/// the session. A text longer than the buffer is made again for each piece of it; there is one such
/// text at a time.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Staging {
    staged: u8,
    written: u8,
    /// How many bytes of the text were staged, or [`WHOLE`].
    text: u16,
}

/// The value of `text` once all of the text was staged.
const WHOLE: u16 = u16::MAX;

impl Staging {
    /// Nothing is staged, and the text is to be staged from its start.
    pub(crate) const EMPTY: Self = Self { staged: 0, written: 0, text: 0 };

    /// Nothing is staged, and there is no text to stage.
    pub(crate) const NO_TEXT: Self = Self { text: WHOLE, ..Self::EMPTY };

    /// Returns whether some of the staged bytes are not written.
    pub(crate) fn is_writing(self) -> bool {
        self.written < self.staged
    }

    /// Returns the bytes of `buffer` that are staged and not written.
    pub(crate) fn pending(self, buffer: &[u8]) -> &[u8] {
        buffer.get(self.written.into()..self.staged.into()).unwrap_or_default()
    }

    /// Notes that the transport took `n` bytes. Returns how many of them were staged here; the
    /// others belong to the body that follows.
    pub(crate) fn sent(&mut self, n: usize) -> usize {
        let staged = n.min(self.staged.saturating_sub(self.written).into());
        self.written = self.written.wrapping_add(staged as u8);
        staged
    }

    /// Forgets all staged bytes, written or not.
    pub(crate) fn clear(&mut self) {
        self.staged = 0;
        self.written = 0;
    }

    /// Forgets the staged bytes that are not written.
    pub(crate) fn truncate(&mut self) {
        self.staged = self.written;
    }

    /// Makes the bytes that were staged last pending once more.
    pub(crate) fn rewind(&mut self) {
        self.written = 0;
    }

    /// Returns how many bytes of `buffer` are free behind the staged ones.
    pub(crate) fn room(self, buffer: &[u8]) -> usize {
        buffer.len().saturating_sub(self.staged.into())
    }

    /// Moves the bytes that are not written to the front of `buffer`, to make room behind them.
    pub(crate) fn compact(&mut self, buffer: &mut [u8]) {
        // Not with `copy_within`, which can panic.
        for (to, from) in (self.written..self.staged).enumerate() {
            let byte = buffer.get(usize::from(from)).copied().unwrap_or_default();
            if let Some(slot) = buffer.get_mut(to) {
                *slot = byte;
            }
        }
        self.staged = self.staged.saturating_sub(self.written);
        self.written = 0;
    }

    /// Stages what `emit` writes behind the bytes staged so far; what does not fit is lost.
    #[inline]
    pub(crate) fn append(
        &mut self,
        buffer: &mut [u8],
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) {
        let room = buffer.get_mut(self.staged.into()..).unwrap_or_default();
        let mut window = ChunkWriter::new(room, 0);
        let Ok(()) = emit(&mut window);
        self.staged = self.staged.saturating_add(window.written() as u8);
    }

    /// Starts a text of any length, to be staged from its start.
    pub(crate) fn start_text(&mut self) {
        self.text = 0;
    }

    /// Stages the next piece of the text, all of which `emit` writes; after its end, nothing.
    #[inline]
    pub(crate) fn stage_text(
        &mut self,
        buffer: &mut [u8],
        emit: impl FnOnce(&mut ChunkWriter<'_>) -> Result<(), Infallible>,
    ) {
        self.clear();
        if self.text == WHOLE {
            return;
        }
        let mut window = ChunkWriter::new(buffer, self.text.into());
        let Ok(()) = emit(&mut window);
        self.staged = window.written() as u8;
        let text = self.text.saturating_add(self.staged.into());
        self.text = if usize::from(text) >= window.total() { WHOLE } else { text };
    }

    /// Returns whether some of the text is not staged yet.
    pub(crate) fn has_text(self) -> bool {
        self.text != WHOLE
    }

    /// Returns whether all of the text is written, so that its answer may arrive.
    pub(crate) fn text_is_written(self) -> bool {
        !self.has_text() && !self.is_writing()
    }
}

/// Appends as much of `data` to `text` as fits.
pub(crate) fn append(text: &mut VecView<u8, u8>, data: &[u8]) {
    let room = text.capacity().saturating_sub(text.len());
    let _ = text.extend_from_slice(data.get(..room).unwrap_or(data));
}

#[cfg(test)]
mod tests {
    use embedded_io::Write;

    use super::*;

    #[test]
    fn a_text_longer_than_the_buffer_is_staged_in_pieces() {
        for len in [1, 3, 4, 5, 8, 9, 300] {
            let text: Vec<u8> = (0..len).map(|n| n as u8).collect();
            let mut staging = Staging::EMPTY;
            let mut buffer = [0; 4];
            let mut written = Vec::new();
            for _ in 0..len {
                assert!(!staging.text_is_written());
                staging.stage_text(&mut buffer, |w| w.write_all(&text));
                while staging.is_writing() {
                    assert!(!staging.text_is_written());
                    // Calling it again returns the same bytes.
                    assert_eq!(staging.pending(&buffer), staging.pending(&buffer));
                    written.push(staging.pending(&buffer)[0]);
                    assert_eq!(staging.sent(1), 1);
                }
                if staging.text_is_written() {
                    break;
                }
            }
            assert_eq!(written, text);
            staging.stage_text(&mut buffer, |_| unreachable!("no text is left"));
            assert!(staging.text_is_written() && !staging.is_writing());
            staging.start_text();
            assert!(!staging.text_is_written());
        }
    }

    #[test]
    fn appended_bytes_are_written_in_order_and_those_without_room_are_lost() {
        let mut staging = Staging::EMPTY;
        let mut buffer = [0; 4];
        staging.append(&mut buffer, |w| w.write_all(b"ab"));
        assert_eq!((staging.room(&buffer), staging.sent(1)), (2, 1));
        staging.append(&mut buffer, |w| w.write_all(b"cde"));
        assert_eq!((staging.pending(&buffer), staging.room(&buffer)), (&b"bcd"[..], 0));
        // Only bytes that were staged here count.
        assert_eq!(staging.sent(9), 3);
        assert!(!staging.is_writing());
        staging.rewind();
        assert_eq!(staging.pending(&buffer), b"abcd");
        staging.sent(2);
        staging.truncate();
        assert_eq!((staging.is_writing(), staging.room(&buffer)), (false, 2));
        staging.clear();
        assert_eq!(staging.room(&buffer), 4);
        staging.append(&mut buffer, |w| w.write_all(b"abcd"));
        staging.sent(3);
        staging.compact(&mut buffer);
        assert_eq!((staging.pending(&buffer), staging.room(&buffer)), (&b"d"[..], 3));
        staging.clear();
        let mut longest = [0; 255];
        staging.append(&mut longest, |w| w.write_all(&[1; 300]));
        assert_eq!(staging.pending(&longest).len(), 255);
    }

    #[test]
    fn a_bounded_text_keeps_its_start() {
        let mut text = heapless::Vec::<u8, 4, u8>::new();
        for data in [&b"ab"[..], b"", b"cde", b"f"] {
            append(&mut text, data);
        }
        assert_eq!(text, b"abcd");
    }
}
