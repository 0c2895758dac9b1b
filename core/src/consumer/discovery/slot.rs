//! What discovery knows of the nsqd of a connection, and of what a source lists.

use crate::time::Instant;

/// Whom one connection is for.
#[derive(Debug, Clone)]
pub(in crate::consumer) struct NsqdSlot {
    pub(in crate::consumer) nsqd: Nsqd,
    /// Not listed by anybody: when it is given up.
    pub(in crate::consumer) leaves: Instant,
    /// When it was taken, in the order of all.
    pub(in crate::consumer) order: u16,
    /// Counts changes of the address.
    pub(in crate::consumer) serial: u16,
    /// The sources that list it, and those that did in their current round.
    pub(in crate::consumer) listed: u8,
    pub(in crate::consumer) seen: u8,
    /// The source that it was given to.
    pub(in crate::consumer) by: u8,
    /// Its connection does not come up.
    pub(in crate::consumer) fails: bool,
    pub(in crate::consumer) given: Given,
    /// Its connection has not been idle since it was somebody's.
    pub(in crate::consumer) busy: bool,
    /// The hash of the last nsqd that failed here and made room.
    pub(in crate::consumer) failed: u32,
}

/// Whether a slot was given away in a round that is not over. Nobody is dialed yet: how long that
/// may take depends on whether others wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::consumer) enum Given {
    No,
    /// It was free.
    Free,
    // One that failed: to whom is not certain yet, those that are named first come first.
    /// Back to the one that had to leave for a turn, whose time is over.
    Back,
    /// To one that nothing is known of.
    First,
    /// Back to the one that had to leave, before that time is over.
    Early,
    /// To one that failed lately.
    Last,
}

/// An nsqd by where its address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::consumer) enum Nsqd {
    Nobody,
    /// Its place in the given addresses.
    Given(u8),
    /// The slot's own place in the found ones.
    Found,
}

impl NsqdSlot {
    // Zero, as a new `Connection`.
    pub(in crate::consumer) const EMPTY: Self = Self {
        nsqd: Nsqd::Nobody,
        leaves: Instant::ZERO,
        order: 0,
        serial: 0,
        listed: 0,
        seen: 0,
        by: 0,
        fails: false,
        given: Given::No,
        busy: false,
        failed: 0,
    };

    pub(in crate::consumer) fn is_empty(&self) -> bool {
        matches!(self.nsqd, Nsqd::Nobody)
    }

    pub(in crate::consumer) fn set(&mut self, nsqd: Nsqd, source: u8) {
        self.busy |= nsqd != Nsqd::Nobody;
        self.nsqd = nsqd;
        self.serial = self.serial.wrapping_add(1);
        self.leaves = Instant::NEVER;
        self.listed = source;
        self.seen = source;
        self.by = source;
        self.fails = false;
        self.given = Given::No;
    }

    /// Whether the round that gave it away is not over.
    pub(in crate::consumer) fn is_open(&self) -> bool {
        self.given != Given::No
    }
}

/// What one source offers.
#[derive(Debug, Clone)]
pub(in crate::consumer) struct Round {
    /// The hash of the nsqd without a slot that is next behind the cursor, so far.
    pub(in crate::consumer) nearest: Option<u32>,
    /// Offered without getting a slot, in this round and in the last whole one.
    pub(in crate::consumer) count: u16,
    pub(in crate::consumer) unserved: u16,
    /// The sum of all hashes, in this round and in the last whole one.
    pub(in crate::consumer) sum: u32,
    pub(in crate::consumer) whole: u32,
}

impl Round {
    pub(in crate::consumer) const NONE: Self =
        Self { nearest: None, count: 0, unserved: 0, sum: 0, whole: 0 };

    /// One that has no slot.
    pub(in crate::consumer) fn wait(&mut self, hash: u32, barred: bool, circle: Circle) {
        let is_nearer = |nearest| circle.distance(hash) < circle.distance(nearest);
        if !barred && self.nearest.is_none_or(is_nearer) {
            self.nearest = Some(hash);
        }
        self.count = self.count.saturating_add(1);
    }
}

/// The order in which nsqds without a slot are tried.
#[derive(Debug, Clone, Copy)]
pub(in crate::consumer) struct Circle {
    /// The hash of the last one.
    pub(in crate::consumer) cursor: u32,
    /// An odd number, another in each lap.
    pub(in crate::consumer) order: u32,
}

impl Circle {
    /// How far behind the cursor a hash is; the cursor's own place is the farthest.
    pub(in crate::consumer) fn distance(self, hash: u32) -> u32 {
        hash.wrapping_sub(self.cursor).wrapping_mul(self.order).wrapping_sub(1)
    }
}
