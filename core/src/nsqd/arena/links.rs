//! The links of the blocks, and the search for free ones.

use super::{Block, Layout, Link, NIL};

#[cfg(feature = "large")]
use super::tree::Tree;

/// Marks a free block in its link.
#[cfg(not(feature = "large"))]
const FREE: Block = Block::MAX - 1;

/// A link for each block, to the next one of the same message.
#[derive(Debug)]
pub(super) struct Links<'a> {
    links: &'a mut [Link],
    /// The free blocks. Without it a search for one passes those that are taken.
    #[cfg(feature = "large")]
    free: Tree<'a>,
}

impl<'a> Links<'a> {
    /// Returns the links of blocks that are all free, in the part of the lent slice behind the
    /// blocks.
    pub(super) fn new(slice: &'a mut [u8], layout: &Layout) -> Self {
        let (links, _) = slice.as_chunks_mut();
        let count = layout.count as usize;
        #[cfg(not(feature = "large"))]
        {
            let links = links.get_mut(..count).unwrap_or_default();
            links.fill(FREE.to_ne_bytes());
            Self { links }
        }
        #[cfg(feature = "large")]
        {
            // Links are written before they are read: memory that a platform gives page by page is
            // used as far as blocks are.
            let (links, words) = links.split_at_mut_checked(count).unwrap_or_default();
            Self { links, free: Tree::new(words, layout.count) }
        }
    }

    pub(super) fn get(&self, block: Block) -> Block {
        self.links.get(block as usize).map_or(NIL, |link| Block::from_ne_bytes(*link))
    }

    pub(super) fn set(&mut self, block: Block, to: Block) {
        if let Some(link) = self.links.get_mut(block as usize) {
            *link = to.to_ne_bytes();
        }
    }

    /// Takes the first free block from the rover on, or else the first one, and advances the rover.
    pub(super) fn take(&mut self, rover: &mut Block) -> Option<Block> {
        let block = self.next_free(*rover)?;
        #[cfg(feature = "large")]
        self.free.remove(block);
        let next = block.wrapping_add(1);
        *rover = if (next as usize) < self.links.len() { next } else { 0 };
        self.set(block, NIL);
        Some(block)
    }
}

#[cfg(not(feature = "large"))]
impl Links<'_> {
    pub(super) fn is_free(&self, block: Block) -> bool {
        self.get(block) == FREE
    }

    pub(super) fn give(&mut self, block: Block) {
        self.set(block, FREE);
    }

    fn next_free(&self, rover: Block) -> Option<Block> {
        let (front, back) = self.links.split_at_checked(rover.into())?;
        let is_free = |link: &Link| *link == FREE.to_ne_bytes();
        let block = match back.iter().position(is_free) {
            Some(at) => usize::from(rover).saturating_add(at),
            None => front.iter().position(is_free)?,
        };
        Some(block as Block)
    }
}

#[cfg(feature = "large")]
impl Links<'_> {
    pub(super) fn is_free(&self, block: Block) -> bool {
        self.free.has(block)
    }

    pub(super) fn give(&mut self, block: Block) {
        self.free.insert(block);
    }

    fn next_free(&self, rover: Block) -> Option<Block> {
        self.free.first(rover).or_else(|| self.free.first(0))
    }
}
