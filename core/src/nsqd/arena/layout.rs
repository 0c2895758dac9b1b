//! Divides the lent slice into blocks, and computes how many of them a message takes.

use super::{BLOCK_MIN, Block, Link, NIL, at};

/// The most blocks: their numbers are below `NIL` and the mark of a free block.
const BLOCKS_MAX: usize = NIL as usize - 1;

/// The division of a lent slice into blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::nsqd) struct Layout {
    /// A block has `1 << shift` bytes.
    shift: u8,
    /// The length of a message's head in bytes.
    pub(in crate::nsqd) head: u16,
    /// The number of blocks.
    pub(in crate::nsqd) count: Block,
}

impl Layout {
    /// Returns the layout of a slice of `len` bytes for messages with `lanes` lanes; `None` if not
    /// even one message of one byte fits.
    pub(in crate::nsqd) const fn new(len: usize, lanes: u8) -> Option<Self> {
        let head = at(lanes, 0);
        let mut shift = BLOCK_MIN.trailing_zeros() as u8;
        loop {
            let layout = Self { shift, head: head as u16, count: 0 };
            let count = layout.fitting(len);
            if count == 0 {
                return None;
            }
            // The head must leave at least 4 bytes of a block for the body.
            if count <= BLOCKS_MAX && layout.unit() >= head.saturating_add(4) {
                return Some(Self { count: count as Block, ..layout });
            }
            shift = shift.saturating_add(1);
        }
    }

    /// Returns how many blocks fit into `len` bytes.
    #[cfg(not(feature = "large"))]
    const fn fitting(&self, len: usize) -> usize {
        len.wrapping_div(self.stride())
    }

    /// Returns how many blocks fit into `len` bytes, with the tree of the free ones.
    #[cfg(feature = "large")]
    const fn fitting(&self, len: usize) -> usize {
        let mut count = len.wrapping_div(self.stride());
        loop {
            let most = if count > BLOCKS_MAX { BLOCKS_MAX } else { count };
            let tree = size_of::<Link>().saturating_mul(super::tree::len(most as u32));
            let all = count.saturating_mul(self.stride()).saturating_add(tree);
            if all <= len {
                return count;
            }
            count = count.saturating_sub(all.saturating_sub(len).div_ceil(self.stride()));
        }
    }

    /// Returns the length of a block in bytes.
    pub(in crate::nsqd) const fn unit(&self) -> usize {
        1usize.wrapping_shl(self.shift as u32)
    }

    /// Returns the length of a block and its link in bytes.
    pub(in crate::nsqd) const fn stride(&self) -> usize {
        self.unit().saturating_add(size_of::<Link>())
    }

    /// Returns the offset of a block. Blocks with numbers below `count` are in the lent slice.
    pub(in crate::nsqd) const fn start(&self, block: Block) -> usize {
        (block as usize).wrapping_shl(self.shift as u32)
    }

    /// Returns how many blocks a message with a body of `len` bytes takes.
    pub(in crate::nsqd) const fn blocks(&self, len: u32) -> u32 {
        let bytes = (len as u64).saturating_add(self.head as u64);
        let before_next = bytes.saturating_add(self.unit() as u64).saturating_sub(1);
        before_next.wrapping_shr(self.shift as u32) as u32
    }

    /// Returns the longest body that fits into an empty store.
    pub(in crate::nsqd) const fn longest(&self) -> u32 {
        self.longest_in(self.count)
    }

    /// Returns the longest body that fits into `blocks` blocks.
    pub(in crate::nsqd) const fn longest_in(&self, blocks: Block) -> u32 {
        let bytes = self.start(blocks).saturating_sub(self.head as usize) as u64;
        if bytes > u32::MAX as u64 { u32::MAX } else { bytes as u32 }
    }

    /// Returns the fewest blocks that `count` messages can take whose bodies have `len` bytes
    /// together.
    pub(in crate::nsqd) const fn blocks_of(&self, count: u32, len: u32) -> u32 {
        let heads = count.saturating_sub(1).saturating_mul(self.head as u32);
        let blocks = self.blocks(len.saturating_add(heads));
        if blocks > count { blocks } else { count }
    }

    /// Returns how many bytes of the lent slice a message with a body of `len` bytes takes.
    pub(in crate::nsqd) const fn cost(&self, len: u32) -> usize {
        (self.blocks(len) as usize).saturating_mul(self.stride())
    }
}
