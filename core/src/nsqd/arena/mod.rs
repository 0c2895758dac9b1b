//! The store of messages, in blocks.
//!
//! The lent slice is divided into blocks of equal length and one link for each. A message is a
//! chain of blocks. Its first block begins with the message's head. Blocks are taken in ascending
//! order, so those of a message are usually adjacent, and its body is one slice.
//!
//! Blocks rather than a ring: messages are freed in any order, and a message that is deferred for
//! an hour, or requeued again and again, holds only its own blocks.
//!
//! ```text
//! lent slice   | block 0 | block 1 | ... | block n-1 | link 0 | ... | link n-1 | rest |
//! first block  | next 2 | refs 2 | length 4 | sequence 4 | time 8 | topic 1 | flags 1 | lanes | body
//! lane, each   | state 1 | attempts 2 | next 2 | due 4 | child 2 |   for each channel of the topic
//! ```
//!
//! With the feature `large` a link has 4 bytes, as have `next` and `child`, and `topic` has 2. The
//! links of free blocks then have no mark: which blocks are free is in a tree of bits behind
//! the links.
//!
//! `due` has the low 32 bits of a time in milliseconds. All stored times are less than 2^32 ms (49.7
//! days) after the *base*, which is advanced before a time would be later: see [`Arena::reaches`].
//! So the bits identify the time, however late a message is released. The longest deferral is
//! [`DELAY_MAX_MS`].
//!
//! `next` and `child` are the links of the channel's list of requeued messages, which uses `next`
//! only, and of its heap of deferred messages.
//!
//! A message that its topic holds is in no channel. Its first lane then has the deferral in `due`,
//! and the time since when the topic holds the message in `attempts` and `next`.

mod lane;
mod layout;
mod links;
#[cfg(feature = "large")]
mod tree;

use super::{Block, Index};
use crate::wire::copy;

use lane::LANE_LEN;
pub(super) use lane::{DELAY_MAX_MS, Lane};
pub(super) use layout::Layout;
use links::Links;

/// The smallest block in bytes.
pub(super) const BLOCK_MIN: usize = 64;

/// The number of no block and no message.
pub(super) const NIL: Block = Block::MAX;

/// The link of a block.
type Link = [u8; size_of::<Block>()];

// The offsets in a message's head.
const NEXT: usize = 0;
const REFS: usize = NEXT + size_of::<Block>();
const LEN: usize = REFS + 2;
const SEQUENCE: usize = LEN + 4;
const TIME: usize = SEQUENCE + 4;
const TOPIC: usize = TIME + 8;
const FLAGS: usize = TOPIC + size_of::<Index>();
/// The length of the head before its lanes.
const FIXED: usize = FLAGS + 1;

/// The message is in its topic's list.
const LISTED: u8 = 1;
/// The application published the message.
const OWN: u8 = 2;
/// The message's blocks count as those of its publisher.
const COUNTED: u8 = 4;
/// Some client has finished the message, or requeued it with a delay.
const ANSWERED: u8 = 8;

/// A position in a body that is being filled or read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cursor {
    block: Block,
    /// The offset in the block, in bytes.
    at: u32,
    /// The rest of the body, in bytes.
    pub(super) left: u32,
}

impl Cursor {
    pub(super) const NONE: Self = Self { block: NIL, ..Self::ZERO };

    /// Storage before its first use: all bytes are zero.
    pub(super) const ZERO: Self = Self { block: 0, at: 0, left: 0 };
}

/// The blocks of the store.
#[derive(Debug)]
pub(super) struct Arena<'a> {
    blocks: &'a mut [u8],
    links: Links<'a>,
    layout: Layout,
    free: Block,
    /// The number of free blocks that are reserved.
    reserved: Block,
    /// The block at which the search for a free one begins.
    rover: Block,
    /// A time in units of 65.536 s. No due time of a lane is before it.
    base: u32,
}

impl<'a> Arena<'a> {
    pub(super) fn new(slice: &'a mut [u8], layout: Layout) -> Self {
        let (blocks, rest) =
            slice.split_at_mut_checked(layout.start(layout.count)).unwrap_or_default();
        let links = Links::new(rest, &layout);
        Self { blocks, links, layout, free: layout.count, reserved: 0, rover: 0, base: 0 }
    }

    pub(super) const fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) const fn capacity(&self) -> Block {
        self.layout.count
    }

    pub(super) const fn free(&self) -> Block {
        self.free
    }

    pub(super) const fn reserved(&self) -> Block {
        self.reserved
    }

    /// Reserves `blocks` blocks. Returns false if fewer are free, not counting `kept` ones.
    pub(super) fn reserve(&mut self, blocks: Block, kept: Block) -> bool {
        let fits = blocks <= self.free.saturating_sub(self.reserved).saturating_sub(kept);
        if fits {
            self.reserved = self.reserved.saturating_add(blocks);
        }
        fits
    }

    /// Releases reserved blocks.
    pub(super) fn release(&mut self, promised: &mut Block) {
        self.reserved = self.reserved.saturating_sub(*promised);
        *promised = 0;
    }

    /// Takes blocks for a message with a body of `len` bytes, first from the `promised` ones.
    /// Returns the message's first block and the start of its body. `None` if too few blocks are
    /// free, not counting `kept` ones.
    pub(super) fn take(
        &mut self,
        len: u32,
        promised: &mut Block,
        kept: Block,
    ) -> Option<(Block, Cursor)> {
        let count = Block::try_from(self.layout.blocks(len)).ok()?;
        let unpromised = self.free.saturating_sub(self.reserved).saturating_sub(kept);
        let free = unpromised.saturating_add(*promised);
        if count == 0 || count > free {
            return None;
        }
        let drawn = count.min(*promised);
        *promised = promised.saturating_sub(drawn);
        self.reserved = self.reserved.saturating_sub(drawn);
        self.free = self.free.saturating_sub(count);
        let mut first = NIL;
        let mut last = NIL;
        for _ in 0..count {
            let block = self.links.take(&mut self.rover)?;
            if first == NIL {
                first = block;
            } else {
                self.links.set(last, block);
            }
            last = block;
        }
        let start = self.layout.start(first);
        let head = start..start.saturating_add(self.layout.head.into());
        self.blocks.get_mut(head).unwrap_or_default().fill(0);
        self.put(first, LEN, len.to_ne_bytes());
        self.set_next(first, NIL);
        Some((first, self.body(first)))
    }

    /// Returns how many more blocks a message takes with a body that is `more` bytes longer.
    pub(super) fn missing(&self, message: Block, more: u32) -> u32 {
        let len = self.len(message);
        let after = self.layout.blocks(len.saturating_add(more));
        after.saturating_sub(self.layout.blocks(len))
    }

    /// Takes blocks for `more` bytes of a body that is filled to its end. Returns false if too few
    /// blocks are free, not counting `kept` ones.
    pub(super) fn grow(&mut self, message: Block, to: &mut Cursor, more: u32, kept: Block) -> bool {
        let count = self.missing(message, more);
        let unpromised = self.free.saturating_sub(self.reserved).saturating_sub(kept);
        if count > unpromised.into() {
            return false;
        }
        let mut last = to.block;
        for _ in 0..count {
            let Some(block) = self.links.take(&mut self.rover) else { return false };
            self.free = self.free.saturating_sub(1);
            self.links.set(last, block);
            last = block;
        }
        self.put(message, LEN, self.len(message).saturating_add(more).to_ne_bytes());
        to.left = more;
        // The cursor may be at the end of a block.
        self.advance(to, 0);
        true
    }

    /// Frees a message's blocks.
    pub(super) fn give(&mut self, message: Block) {
        let mut block = message;
        // The bound holds even if the links are wrong.
        for _ in 0..self.layout.count {
            if self.links.is_free(block) {
                break;
            }
            let next = self.links.get(block);
            self.links.give(block);
            self.free = self.free.saturating_add(1).min(self.layout.count);
            if next == NIL {
                break;
            }
            block = next;
        }
        if cfg!(feature = "large") && self.free == self.layout.count {
            // Few blocks that are used in turn stay in the processor's cache.
            self.rover = 0;
        }
    }

    /// Appends `data` to a body.
    pub(super) fn fill(&mut self, to: &mut Cursor, data: &[u8]) {
        let mut data = data;
        while !data.is_empty() && to.left > 0 {
            let unit = self.layout.unit();
            let start = self.layout.start(to.block).saturating_add(to.at as usize);
            let room = unit.saturating_sub(to.at as usize).min(to.left as usize);
            let end = start.saturating_add(room);
            let n = copy(self.blocks.get_mut(start..end).unwrap_or_default(), data);
            if n == 0 {
                return;
            }
            data = data.get(n..).unwrap_or_default();
            self.advance(to, n);
        }
    }

    /// Returns the contiguous part of a body from the cursor on.
    pub(super) fn piece(&self, from: &Cursor) -> &[u8] {
        let start = self.layout.start(from.block).saturating_add(from.at as usize);
        let left = from.left as usize;
        let mut len = self.layout.unit().saturating_sub(from.at as usize);
        let mut block = from.block;
        while len < left {
            let next = self.links.get(block);
            if next != block.wrapping_add(1) {
                break;
            }
            len = len.saturating_add(self.layout.unit());
            block = next;
        }
        self.blocks.get(start..start.saturating_add(len.min(left))).unwrap_or_default()
    }

    /// Advances a cursor by `n` bytes, or to the end of the body.
    pub(super) fn advance(&self, cursor: &mut Cursor, n: usize) {
        let n = n.min(cursor.left as usize);
        cursor.left = cursor.left.wrapping_sub(n as u32);
        let mut at = (cursor.at as usize).saturating_add(n);
        let unit = self.layout.unit();
        while at >= unit && cursor.left > 0 {
            cursor.block = self.links.get(cursor.block);
            at = at.wrapping_sub(unit);
        }
        cursor.at = at as u32;
    }

    /// Returns a cursor at the start of a message's body.
    pub(super) fn body(&self, message: Block) -> Cursor {
        Cursor { block: message, at: self.layout.head.into(), left: self.len(message) }
    }

    pub(super) fn len(&self, message: Block) -> u32 {
        u32::from_ne_bytes(self.get(message, LEN))
    }

    /// Returns the next message of the same list.
    pub(super) fn next(&self, message: Block) -> Block {
        Block::from_ne_bytes(self.get(message, NEXT))
    }

    pub(super) fn set_next(&mut self, message: Block, next: Block) {
        self.put(message, NEXT, next.to_ne_bytes());
    }

    /// Returns the number of references: channels that are not done with the message, clients to
    /// which it is being written, and the topic while it holds the message.
    pub(super) fn refs(&self, message: Block) -> u16 {
        u16::from_ne_bytes(self.get(message, REFS))
    }

    pub(super) fn set_refs(&mut self, message: Block, refs: u16) {
        self.put(message, REFS, refs.to_ne_bytes());
    }

    pub(super) fn sequence(&self, message: Block) -> u32 {
        u32::from_ne_bytes(self.get(message, SEQUENCE))
    }

    pub(super) fn timestamp(&self, message: Block) -> i64 {
        i64::from_ne_bytes(self.get(message, TIME))
    }

    pub(super) fn topic(&self, message: Block) -> Index {
        Index::from_ne_bytes(self.get(message, TOPIC))
    }

    /// Sets the fields of a message, whose blocks count as those of its publisher from here on.
    pub(super) fn label(
        &mut self,
        message: Block,
        topic: Index,
        sequence: u32,
        timestamp: i64,
        own: bool,
    ) {
        self.put(message, FLAGS, [if own { COUNTED | OWN } else { COUNTED }]);
        self.put(message, TOPIC, topic.to_ne_bytes());
        self.put(message, SEQUENCE, sequence.to_ne_bytes());
        self.put(message, TIME, timestamp.to_ne_bytes());
    }

    /// Returns whether the message is in its topic's list.
    pub(super) fn is_listed(&self, message: Block) -> bool {
        self.has(message, LISTED)
    }

    pub(super) fn set_listed(&mut self, message: Block, listed: bool) {
        self.set(message, LISTED, listed);
    }

    /// Returns whether the application published the message, not a client.
    pub(super) fn is_own(&self, message: Block) -> bool {
        self.has(message, OWN)
    }

    /// Returns whether some client has finished the message, or requeued it with a delay.
    pub(super) fn is_answered(&self, message: Block) -> bool {
        self.has(message, ANSWERED)
    }

    pub(super) fn set_answered(&mut self, message: Block) {
        self.set(message, ANSWERED, true);
    }

    /// Stops counting the message's blocks and returns how many were counted.
    pub(super) fn uncount(&mut self, message: Block) -> Block {
        if !self.has(message, COUNTED) {
            return 0;
        }
        self.set(message, COUNTED, false);
        self.layout.blocks(self.len(message)) as Block
    }

    fn has(&self, message: Block, flag: u8) -> bool {
        let [flags] = self.get(message, FLAGS);
        flags & flag != 0
    }

    fn set(&mut self, message: Block, flag: u8, on: bool) {
        let [flags] = self.get(message, FLAGS);
        self.put(message, FLAGS, [if on { flags | flag } else { flags & !flag }]);
    }

    fn get<const N: usize>(&self, message: Block, at: usize) -> [u8; N] {
        let start = self.layout.start(message).saturating_add(at);
        self.blocks.get(start..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
    }

    fn put<const N: usize>(&mut self, message: Block, at: usize, bytes: [u8; N]) {
        let start = self.layout.start(message).saturating_add(at);
        if let Some(to) = self.blocks.get_mut(start..).and_then(|to| to.first_chunk_mut()) {
            *to = bytes;
        }
    }
}

/// Returns the offset of a lane's field in the head.
const fn at(lane: u8, field: usize) -> usize {
    LANE_LEN.wrapping_mul(lane as usize).wrapping_add(FIXED).wrapping_add(field)
}
