//! The registrations: a bit for each pair of a topic or channel and a producer.

/// A row of bits for each key, one for each producer.
#[derive(Debug)]
pub(in crate::nsqlookupd) struct Bits<'a> {
    pub(super) bits: &'a mut [u32],
    /// The length of a row.
    words: usize,
}

impl<'a> Bits<'a> {
    pub(in crate::nsqlookupd) const fn new(bits: &'a mut [u32], words: usize) -> Self {
        Self { bits, words }
    }

    fn row(&self, key: usize) -> &[u32] {
        let start = key.saturating_mul(self.words);
        self.bits.get(start..start.saturating_add(self.words)).unwrap_or_default()
    }

    fn position(&self, key: usize, producer: usize) -> (usize, u32) {
        let word = key.saturating_mul(self.words).saturating_add(producer / 32);
        (word, 1u32.unbounded_shl((producer % 32) as u32))
    }

    pub(super) fn has(&self, key: usize, producer: usize) -> bool {
        let (word, mask) = self.position(key, producer);
        self.bits.get(word).is_some_and(|word| word & mask != 0)
    }

    /// Sets or clears a bit. Returns whether it changed.
    pub(super) fn put(&mut self, key: usize, producer: usize, has: bool) -> bool {
        let (word, mask) = self.position(key, producer);
        let Some(word) = self.bits.get_mut(word) else { return false };
        let before = *word;
        *word = if has { before | mask } else { before & !mask };
        *word != before
    }

    pub(super) fn is_empty(&self, key: usize) -> bool {
        self.row(key).iter().all(|word| *word == 0)
    }

    /// Counts the keys that a producer has registered.
    pub(super) fn count_of(&self, keys: usize, producer: usize) -> usize {
        let held = (0..keys).filter(|key| self.has(*key, producer));
        held.fold(0usize, |count, _| count.saturating_add(1))
    }

    pub(super) fn clear(&mut self, key: usize) {
        let start = key.saturating_mul(self.words);
        let end = start.saturating_add(self.words);
        self.bits.get_mut(start..end).unwrap_or_default().fill(0);
    }
}
