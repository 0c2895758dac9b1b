//! Splits a stream that arrives in pieces into lines.

/// Collects a line of at most `N` bytes, its line feed not counted. RAM: `N` + 1 bytes.
#[derive(Debug, Clone)]
pub(super) struct Line<const N: usize> {
    /// The beginning of a line that arrived in pieces.
    bytes: [u8; N],
    len: u8,
}

/// An error: the line has more than `N` bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct TooLong;

impl<const N: usize> Line<N> {
    pub(super) const fn new() -> Self {
        const { assert!(N < u8::MAX as usize) }
        Self { bytes: [0; N], len: 0 }
    }

    /// Consumes bytes up to and including the next line feed and returns the line before it; `None`
    /// if the line has not ended yet. A line that lies in the input as a whole is not copied.
    pub(super) fn next<'s, 'b: 's>(
        &'s mut self,
        input: &mut &'b [u8],
    ) -> Result<Option<&'s [u8]>, TooLong> {
        let bytes = *input;
        let have = usize::from(self.len);
        let room = N.saturating_sub(have);
        let end = bytes.iter().take(room.saturating_add(1)).position(|byte| *byte == b'\n');
        let Some(end) = end else {
            if bytes.len() > room {
                return Err(TooLong);
            }
            self.append(bytes);
            *input = &[];
            return Ok(None);
        };
        let (line, rest) = bytes.split_at_checked(end).unwrap_or_default();
        *input = rest.split_first().map_or(rest, |(_, rest)| rest);
        if have == 0 {
            return Ok(Some(line));
        }
        self.append(line);
        let len = usize::from(self.len);
        self.len = 0;
        Ok(self.bytes.get(..len))
    }

    /// Returns whether no line has begun.
    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn append(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(usize::from(self.len)..).unwrap_or_default();
        let copied = super::copy(room, bytes);
        // At most N, below 255.
        self.len = self.len.wrapping_add(copied as u8);
    }
}
