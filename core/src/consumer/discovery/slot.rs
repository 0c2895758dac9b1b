//! The assignment of a connection to an nsqd, and the state of a source's round.

use crate::time::Instant;

/// The slot of one connection: the nsqd that the connection is for.
#[derive(Debug, Clone)]
pub(in crate::consumer) struct NsqdSlot {
    pub(in crate::consumer) nsqd: Nsqd,
    /// The time at which the slot is released, because no source lists the nsqd; otherwise never.
    pub(in crate::consumer) leaves: Instant,
    /// The value of the table's `order` when the slot was assigned.
    pub(in crate::consumer) order: u16,
    /// Counts the changes of the nsqd; wraps.
    pub(in crate::consumer) serial: u16,
    /// The sources that list the nsqd.
    pub(in crate::consumer) listed: u8,
    /// The sources that have listed the nsqd in their current round.
    pub(in crate::consumer) seen: u8,
    /// The source in whose round the slot was assigned.
    pub(in crate::consumer) by: u8,
    /// The connection could not be established.
    pub(in crate::consumer) fails: bool,
    pub(in crate::consumer) assigned: Assigned,
    /// The connection has not been idle since the slot was first assigned.
    pub(in crate::consumer) busy: bool,
    /// The hash of the last nsqd that failed here and was replaced.
    pub(in crate::consumer) failed: u32,
}

/// The kind of an assignment in a round that is not over. Such an nsqd is not dialed yet, because
/// the timeout depends on whether others wait.
///
/// The kinds from `Back` on replace an nsqd that failed. Until the round is over, an nsqd of an
/// earlier kind may still replace one of a later kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::consumer) enum Assigned {
    /// The slot was not assigned in a round that is not over.
    No,
    /// The slot was free.
    Free,
    /// To the nsqd that had to leave for a turn, once the time to try others has passed.
    Back,
    /// To an untried nsqd.
    First,
    /// To the nsqd that had to leave for a turn, before that time has passed.
    Early,
    /// To an nsqd that failed recently.
    Last,
}

/// The place of an nsqd's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::consumer) enum Nsqd {
    /// No nsqd.
    Nobody,
    /// The index in the given addresses.
    Given(u8),
    /// The slot's own index in the found addresses.
    Found,
}

impl NsqdSlot {
    // All bytes are zero, as in `Connection::NEW`.
    pub(in crate::consumer) const EMPTY: Self = Self {
        nsqd: Nsqd::Nobody,
        leaves: Instant::ZERO,
        order: 0,
        serial: 0,
        listed: 0,
        seen: 0,
        by: 0,
        fails: false,
        assigned: Assigned::No,
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
        self.assigned = Assigned::No;
    }

    /// Returns whether the slot was assigned in a round that is not over.
    pub(in crate::consumer) fn is_open(&self) -> bool {
        self.assigned != Assigned::No
    }
}

/// The state of a source's current and last round.
#[derive(Debug, Clone)]
pub(in crate::consumer) struct Round {
    /// The hash of the nsqd without a slot that is nearest behind the cursor, so far.
    pub(in crate::consumer) nearest: Option<u32>,
    /// The number of nsqds without a slot in the current round, so far.
    pub(in crate::consumer) count: u16,
    /// The number of nsqds without a slot in the last complete round.
    pub(in crate::consumer) unserved: u16,
    /// The sum of all hashes in the current round, so far.
    pub(in crate::consumer) sum: u32,
    /// The sum of all hashes in the last complete round.
    pub(in crate::consumer) whole: u32,
}

impl Round {
    pub(in crate::consumer) const NONE: Self =
        Self { nearest: None, count: 0, unserved: 0, sum: 0, whole: 0 };

    /// Records an nsqd without a slot. A `barred` nsqd does not become the next to get a slot.
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
    /// The hash of the last nsqd tried.
    pub(in crate::consumer) cursor: u32,
    /// The factor of distances, an odd number that changes with each lap.
    pub(in crate::consumer) order: u32,
}

impl Circle {
    /// Returns the distance of a hash behind the cursor; the cursor itself is the farthest.
    pub(in crate::consumer) fn distance(self, hash: u32) -> u32 {
        hash.wrapping_sub(self.cursor).wrapping_mul(self.order).wrapping_sub(1)
    }
}
