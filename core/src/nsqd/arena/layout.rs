//! How the lent slice is cut into blocks, and how many of them a message takes.

use super::{BLOCK_MIN, FREE, at};

/// The most blocks: their numbers are below the two marks.
const BLOCKS_MAX: usize = FREE as usize;

/// How a lent slice is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nsqd) struct Layout {
    /// A block has `1 << shift` bytes.
    shift: u8,
    /// The length of a message's head.
    pub(in crate::nsqd) head: u16,
    /// Blocks in all.
    pub(in crate::nsqd) count: u16,
}

impl Layout {
    /// `None` if not even one block with one byte of a body fits.
    pub(in crate::nsqd) const fn new(len: usize, lanes: u8) -> Option<Self> {
        let head = at(lanes, 0);
        let mut shift = BLOCK_MIN.trailing_zeros() as u8;
        loop {
            let layout = Self { shift, head: head as u16, count: 0 };
            let count = len.wrapping_div(layout.stride());
            if count == 0 {
                return None;
            }
            // A block that is nearly all head would be a waste.
            if count <= BLOCKS_MAX && layout.unit() >= head.saturating_add(4) {
                return Some(Self { count: count as u16, ..layout });
            }
            shift = shift.saturating_add(1);
        }
    }

    /// The length of a block.
    pub(in crate::nsqd) const fn unit(&self) -> usize {
        1usize.wrapping_shl(self.shift as u32)
    }

    /// The length of a block and its link.
    pub(in crate::nsqd) const fn stride(&self) -> usize {
        self.unit().saturating_add(2)
    }

    /// The offset of a block. Blocks with numbers below `count` are in the lent slice.
    pub(in crate::nsqd) const fn start(&self, block: u16) -> usize {
        (block as usize).wrapping_shl(self.shift as u32)
    }

    /// How many blocks a message with a body of `len` bytes takes.
    pub(in crate::nsqd) const fn blocks(&self, len: u32) -> u32 {
        let bytes = (len as u64).saturating_add(self.head as u64);
        let before_next = bytes.saturating_add(self.unit() as u64).saturating_sub(1);
        before_next.wrapping_shr(self.shift as u32) as u32
    }

    /// The longest body that fits into an empty store.
    pub(in crate::nsqd) const fn longest(&self) -> u32 {
        self.longest_in(self.count)
    }

    /// The longest body that fits into so many blocks.
    pub(in crate::nsqd) const fn longest_in(&self, blocks: u16) -> u32 {
        let bytes = self.start(blocks).saturating_sub(self.head as usize) as u64;
        if bytes > u32::MAX as u64 { u32::MAX } else { bytes as u32 }
    }

    /// How many blocks messages take at least whose bodies have `len` bytes together.
    pub(in crate::nsqd) const fn blocks_of(&self, count: u32, len: u32) -> u32 {
        let heads = count.saturating_sub(1).saturating_mul(self.head as u32);
        let blocks = self.blocks(len.saturating_add(heads));
        if blocks > count { blocks } else { count }
    }

    /// Bytes of the lent slice that a message with a body of `len` bytes takes.
    pub(in crate::nsqd) const fn cost(&self, len: u32) -> usize {
        (self.blocks(len) as usize).saturating_mul(self.stride())
    }
}
