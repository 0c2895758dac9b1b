//! A fuzzer's bytes as a source of decisions.

/// A source of decisions. Once the bytes are used up, every decision is the first choice.
#[derive(Debug, Clone)]
pub struct Input<'b> {
    bytes: &'b [u8],
}

impl<'b> Input<'b> {
    /// Decides by `bytes`.
    pub const fn new(bytes: &'b [u8]) -> Self {
        Self { bytes }
    }

    /// Returns whether the bytes are used up.
    pub const fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns one byte.
    pub fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else { return 0 };
        self.bytes = rest;
        first
    }

    /// Returns a number below `n`, from one byte if that is enough.
    pub fn below(&mut self, n: u32) -> u32 {
        let mut number = u32::from(self.byte());
        if n > 256 {
            number = number << 8 | u32::from(self.byte());
        }
        if n > 1 << 16 {
            number = number << 8 | u32::from(self.byte());
        }
        number % n.max(1)
    }

    /// Returns one of these values.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u32) as usize]
    }

    /// Returns up to `n` bytes.
    pub fn take(&mut self, n: usize) -> &'b [u8] {
        let (taken, rest) = self.bytes.split_at(n.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    /// Returns all remaining bytes.
    pub fn rest(&mut self) -> &'b [u8] {
        self.take(usize::MAX)
    }
}

/// Cuts a stream into pieces, the same ones for the same `seed`; seed 0 gives single bytes.
pub(crate) fn pieces(stream: &[u8], seed: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = stream;
    let mut state = u32::from(seed);
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        state = state.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        let most = [1, 2, 7, 40, 1000][usize::from(seed) % 5];
        let len = 1 + (state >> 16) as usize % most;
        let (piece, behind) = rest.split_at(len.min(rest.len()));
        rest = behind;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_whole() {
        let stream: Vec<u8> = (0..=255).collect();
        for seed in 0..=255 {
            assert_eq!(pieces(&stream, seed).collect::<Vec<_>>().concat(), stream);
        }
        assert!(pieces(&stream, 0).all(|piece| piece.len() == 1));
        assert!(pieces(&stream, 4).any(|piece| piece.len() > 1));
    }

    #[test]
    fn an_input_that_is_over_still_decides() {
        let mut input = Input::new(&[7, 1, 2]);
        assert_eq!((input.below(5), input.below(257), input.is_over()), (2, 258 % 257, true));
        assert_eq!((input.byte(), input.below(9), input.rest()), (0, 0, &[][..]));
    }
}
