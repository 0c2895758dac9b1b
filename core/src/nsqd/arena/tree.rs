//! A set of blocks in which the next one is found in a few steps, however many there are.
//!
//! It is a tree of bits. Each block has a bit in the words of level 0, and each word of a level has
//! one in the words of the next level, which is set unless the word is zero. The last level has one
//! word.

use super::{Block, Link};

/// The bits of a word, and the levels that 2^32 blocks take.
const BITS: u32 = u32::BITS;
const LEVELS_MAX: usize = 7;

/// A set of blocks.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    words: &'a mut [Link],
    /// Where each level starts in the words, and where the last one ends.
    starts: [u32; LEVELS_MAX + 1],
    levels: usize,
}

/// Returns how many words the level above `count` blocks or words has.
const fn words_of(count: u32) -> u32 {
    count.div_ceil(BITS)
}

/// Returns how many words the tree of `count` blocks has.
pub(super) const fn len(count: u32) -> usize {
    let mut level = words_of(count);
    let mut sum = level as usize;
    while level > 1 {
        level = words_of(level);
        sum = sum.saturating_add(level as usize);
    }
    sum
}

impl<'a> Tree<'a> {
    /// Returns a set of all `count` blocks.
    pub(super) fn new(words: &'a mut [Link], count: u32) -> Self {
        let mut tree = Self { words, starts: [0; LEVELS_MAX + 1], levels: 0 };
        let (mut start, mut bits) = (0u32, count);
        for slot in tree.starts.iter_mut().skip(1) {
            let end = start.saturating_add(words_of(bits));
            *slot = end;
            let level = tree.words.get_mut(start as usize..end as usize).unwrap_or_default();
            level.fill(u32::MAX.to_ne_bytes());
            if let Some(last) = level.last_mut() {
                let unused = (BITS - bits % BITS) % BITS;
                *last = (u32::MAX >> unused).to_ne_bytes();
            }
            tree.levels = tree.levels.saturating_add(1);
            (start, bits) = (end, words_of(bits));
            if bits <= 1 {
                break;
            }
        }
        tree
    }

    pub(super) fn has(&self, block: Block) -> bool {
        self.word(0, block / BITS) & bit(block) != 0
    }

    pub(super) fn insert(&mut self, block: Block) {
        let mut at = block;
        for level in 0..self.levels {
            let word = self.word(level, at / BITS);
            self.set_word(level, at / BITS, word | bit(at));
            if word != 0 {
                return;
            }
            at /= BITS;
        }
    }

    pub(super) fn remove(&mut self, block: Block) {
        let mut at = block;
        for level in 0..self.levels {
            let word = self.word(level, at / BITS) & !bit(at);
            self.set_word(level, at / BITS, word);
            if word != 0 {
                return;
            }
            at /= BITS;
        }
    }

    /// Returns the first block of the set from `from` on.
    pub(super) fn first(&self, from: Block) -> Option<Block> {
        let mut at = from;
        for level in 0..self.levels {
            // The bits from `at` on.
            let word = self.word(level, at / BITS) & u32::MAX.wrapping_shl(at % BITS);
            if word != 0 {
                at = at & !(BITS - 1) | word.trailing_zeros();
                for below in (0..level).rev() {
                    at = at.wrapping_mul(BITS).wrapping_add(self.word(below, at).trailing_zeros());
                }
                return Some(at);
            }
            at = (at / BITS).saturating_add(1);
        }
        None
    }

    /// Where a word of a level lies, if the level has it.
    fn place(&self, level: usize, word: u32) -> Option<usize> {
        let (&start, ends) = self.starts.get(level..)?.split_first()?;
        let place = start.saturating_add(word);
        (place < *ends.first()?).then_some(place as usize)
    }

    fn word(&self, level: usize, word: u32) -> u32 {
        let found = self.place(level, word).and_then(|place| self.words.get(place));
        found.map_or(0, |word| u32::from_ne_bytes(*word))
    }

    fn set_word(&mut self, level: usize, word: u32, to: u32) {
        if let Some(word) = self.place(level, word).and_then(|place| self.words.get_mut(place)) {
            *word = to.to_ne_bytes();
        }
    }
}

const fn bit(at: u32) -> u32 {
    1u32.wrapping_shl(at % BITS)
}

#[cfg(test)]
mod tests;
