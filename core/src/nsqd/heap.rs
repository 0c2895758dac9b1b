//! The deferred messages of a channel, in a heap.
//!
//! It is a pairing heap: no message is due before its parent. The links are in the channel's lane
//! of each message: one to the first child, one to the next sibling. The last sibling has a link
//! to the parent instead. So walking through the heap and removing from the middle need no stack,
//! and the heap takes no RAM beside the lanes.
//!
//! | operation on `n` messages | comparisons of due times |
//! |---|---|
//! | insert | at most 1 |
//! | remove the earliest, or any other | amortised O(log `n`); at most `n` |
//! | walk | none; visits each message once |
//!
//! Messages that are due at the same time are in the order of publishing. Nothing recurses. Every
//! loop ends after at most 2 `n` rounds, even if links are wrong.

#[cfg(test)]
mod tests;

use super::Block;
use super::arena::{Arena, NIL};
use crate::time::Instant;

/// The deferred messages of a channel, the earliest due on top.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heap {
    /// The message that is due first.
    pub(super) top: Block,
    pub(super) len: Block,
}

impl Heap {
    pub(super) const EMPTY: Self = Self { top: NIL, len: 0 };

    /// All bytes are zero, for storage before its use.
    pub(super) const ZERO: Self = Self { top: 0, len: 0 };

    /// Inserts a message.
    pub(super) fn insert(&mut self, store: &mut Arena<'_>, message: Block, lane: u8, due: Instant) {
        store.set_due(message, lane, due);
        store.set_child(message, lane, NIL);
        self.top = meld(store, lane, self.top, message);
        store.set_sibling(self.top, lane, NIL, true);
        self.len = self.len.saturating_add(1);
    }

    /// Removes the message that is due first.
    pub(super) fn pop(&mut self, store: &mut Arena<'_>, lane: u8) -> Option<Block> {
        let message = self.top;
        if message == NIL {
            return None;
        }
        self.remove(store, message, lane);
        Some(message)
    }

    /// Removes a message of the heap. Its children and siblings are melded in pairs, and the pairs
    /// into one: so the next removal has few to meld.
    pub(super) fn remove(&mut self, store: &mut Arena<'_>, message: Block, lane: u8) {
        let parent = self.parent(store, message, lane);
        let mut pairs = self.meld_pairs(store, lane, store.child(message, lane), NIL, NIL);
        if parent != NIL {
            pairs = self.meld_pairs(store, lane, store.child(parent, lane), message, pairs);
        }
        let mut tree = NIL;
        for _ in 0..self.len {
            if pairs == NIL {
                break;
            }
            let (next, _) = store.sibling(pairs, lane);
            tree = meld(store, lane, tree, pairs);
            pairs = next;
        }
        if parent == NIL {
            self.top = tree;
        } else {
            store.set_child(parent, lane, tree);
        }
        if tree != NIL {
            store.set_sibling(tree, lane, parent, true);
        }
        self.len = self.len.saturating_sub(1);
        if self.len == 0 || self.top == NIL {
            *self = Self::EMPTY;
        }
    }

    /// Returns the message that is due first of those that `may_go`. Visits children only of
    /// messages that may not.
    pub(super) fn first(
        &self,
        store: &Arena<'_>,
        lane: u8,
        may_go: impl Fn(Block) -> bool,
    ) -> Option<Block> {
        let mut first = None;
        let mut walk = self.walk();
        while let Some(message) = walk.message() {
            let is_later = first.is_some_and(|first| is_before(store, lane, first, message));
            let ends = is_later || may_go(message);
            if ends && !is_later {
                first = Some(message);
            }
            walk.go_on(store, lane, !ends);
        }
        first
    }

    /// Returns a walk through all messages, parents first.
    pub(super) fn walk(&self) -> Walk {
        Walk { at: self.top, steps: u32::from(self.len).saturating_mul(2) }
    }

    /// Returns the parent of a message, or [`NIL`].
    fn parent(&self, store: &Arena<'_>, message: Block, lane: u8) -> Block {
        let mut at = message;
        for _ in 0..self.len {
            let (next, is_last) = store.sibling(at, lane);
            if is_last {
                return next;
            }
            at = next;
        }
        NIL
    }

    /// Melds the siblings from `first` on in pairs, without `except`. Returns the list of the pairs
    /// in reverse order, followed by `pairs`.
    fn meld_pairs(
        &self,
        store: &mut Arena<'_>,
        lane: u8,
        first: Block,
        except: Block,
        mut pairs: Block,
    ) -> Block {
        let (mut at, mut odd) = (first, NIL);
        for _ in 0..self.len {
            if at == NIL {
                break;
            }
            let (next, is_last) = store.sibling(at, lane);
            if at != except {
                let pair = meld(store, lane, odd, at);
                if odd == NIL {
                    odd = pair;
                } else {
                    odd = NIL;
                    store.set_sibling(pair, lane, pairs, false);
                    pairs = pair;
                }
            }
            at = if is_last { NIL } else { next };
        }
        if odd != NIL {
            store.set_sibling(odd, lane, pairs, false);
            pairs = odd;
        }
        pairs
    }
}

/// A walk through a [`Heap`], which must not change meanwhile.
#[derive(Debug)]
pub(super) struct Walk {
    at: Block,
    /// The steps that are left before the walk ends, whatever the links are.
    steps: u32,
}

impl Walk {
    /// Returns the message that the walk is at; `None` at the end.
    pub(super) fn message(&self) -> Option<Block> {
        (self.at != NIL).then_some(self.at)
    }

    /// Goes on to the next message; without `children` skips the descendants of this one.
    pub(super) fn go_on(&mut self, store: &Arena<'_>, lane: u8, children: bool) {
        if children && self.steps > 0 {
            let first = store.child(self.at, lane);
            if first != NIL {
                self.steps = self.steps.saturating_sub(1);
                self.at = first;
                return;
            }
        }
        while self.at != NIL {
            let Some(steps) = self.steps.checked_sub(1) else {
                self.at = NIL;
                return;
            };
            self.steps = steps;
            let (next, is_last) = store.sibling(self.at, lane);
            self.at = next;
            if !is_last {
                return;
            }
        }
    }
}

/// Makes the later of two heaps the first child of the other, and returns that. Its sibling is not
/// set.
fn meld(store: &mut Arena<'_>, lane: u8, one: Block, other: Block) -> Block {
    if one == NIL || other == NIL {
        return if one == NIL { other } else { one };
    }
    let (parent, child) =
        if is_before(store, lane, other, one) { (other, one) } else { (one, other) };
    let first = store.child(parent, lane);
    let is_last = first == NIL;
    store.set_sibling(child, lane, if is_last { parent } else { first }, is_last);
    store.set_child(parent, lane, child);
    parent
}

/// Returns whether one is due before the other or, at the same time, was published before it.
fn is_before(store: &Arena<'_>, lane: u8, one: Block, other: Block) -> bool {
    let (due, due_other) = (store.due_after_base(one, lane), store.due_after_base(other, lane));
    if due == due_other {
        return (store.sequence(one).wrapping_sub(store.sequence(other)) as i32) < 0;
    }
    due < due_other
}
