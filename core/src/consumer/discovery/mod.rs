//! The assignment of a fixed number of slots, one for each connection, to the given nsqds and to
//! those that the nsqlookupds list.
//!
//! Each source, the given addresses or one nsqlookupd, offers its nsqds in *rounds*. A slot is kept
//! as long as any source lists its nsqd. A source withdraws an nsqd by an answer that lists others
//! but not this nsqd; a failed query or an empty answer withdraws nothing.
//!
//! With more nsqds than slots, the nsqds without a slot are not stored, however many they are. A
//! hash of the address gives each a place on a circle, and they are tried in that order from a
//! cursor on.
//!
//! # Slots whose nsqd fails
//!
//! A connection that fails before it is ready, while other nsqds wait, marks its slot, and each
//! source with waiting nsqds must be queried [soon](NsqdTable::soon). The next round reassigns all
//! marked slots at once: they go to the nsqds of that source that are nearest behind the cursor,
//! and at the end of the round the cursor moves to the farthest of these. The last nsqd that failed
//! on each connection is stored by its hash, and tried again only when no other nsqd waits. If
//! several sources have waiting nsqds, a marked slot goes from one source to another, so that the
//! source that answers first does not keep out the nsqds of the others.
//!
//! One time round the circle is a *lap*. [`level`](NsqdTable::level) counts the laps without a
//! change; the higher it is, the longer are the timeouts and the times between queries and between
//! dials. The circle has another order in each lap, so that no nsqd is always passed over.
//!
//! # Turns
//!
//! If no slot is marked, then once in `rotate` the first nsqd behind the cursor, of all sources,
//! gets the slot that was assigned first. An nsqd that failed recently gets such a turn only once
//! in five such times. If the connection fails, untried nsqds are tried for an eighth of that time;
//! then the nsqd that had to leave gets the slot back. If that nsqd fails then, it is replaced like
//! any other.
//!
//! As many working nsqds as there are slots are found soon among any number of failing ones,
//! because there is always a slot to try with. If all slots have working nsqds, and more of them
//! work, these wait for a turn, which each has within two laps; among many failing nsqds a turn may
//! be spent on one of those. So with more working nsqds than connections, messages of some may wait
//! for twice as many times [`Config::rotate`](super::Config::rotate) or
//! [`Config::lookup_interval`](super::Config::lookup_interval), whichever is longer, as nsqds are
//! listed.
//!
//! | what is stored | how |
//! |---|---|
//! | the nsqds that failed | a hash of 32 bits for each slot: the last nsqd that failed there |
//! | the nsqd that had to leave for a turn | the hash of the last one |
//! | the nsqds of a source, to detect changes | the sum of all their hashes |
//!
//! Two addresses with the same hash of 32 bits share their turns: one of them has both.

mod slot;
#[cfg(test)]
mod tests;

use crate::address::Address;
use crate::time::{Instant, Span};

use slot::{Assigned, Circle, Nsqd};
pub(super) use slot::{NsqdSlot, Round};

/// The bit of the given addresses as a source; nsqlookupds have the bits below.
pub(super) const GIVEN: u8 = 1 << LOOKUPDS_MAX;

/// The maximum number of nsqlookupds.
pub const LOOKUPDS_MAX: usize = 7;

/// The maximum of [`NsqdTable::level`].
const LEVEL_MAX: u8 = 7;

/// The slots and the state of their assignment.
#[derive(Debug)]
pub(super) struct NsqdTable<'a> {
    slots: &'a mut [NsqdSlot],
    given: &'a [Address],
    /// The addresses of found nsqds, for as many of the first slots.
    found: &'a mut [Option<Address>],
    circle: Circle,
    /// The completed part of the current lap, of 2^32.
    lap: u32,
    /// The number of laps without a change.
    pub(super) level: u8,
    /// The sources that list nsqds without a slot.
    pub(super) waiting: u8,
    /// The sources that must be queried soon.
    pub(super) soon: u8,
    /// The hash of the nsqd that had to leave for a turn.
    back: u32,
    /// The time until which others are tried instead of that nsqd.
    turn: Instant,
    /// Counts the turns of nsqds that had not failed; wraps.
    turns: u8,
    /// The hash of the nsqd that gets the next turn, and the source that lists it.
    next: Option<(u32, u8)>,
    /// Counts the assignments; wraps.
    order: u16,
    /// The time from which on an nsqd may replace a working one.
    pub(super) rotates: Instant,
}

impl<'a> NsqdTable<'a> {
    /// Makes a table of empty slots.
    pub(super) fn new(slots: &'a mut [NsqdSlot], given: &'a [Address]) -> Self {
        Self {
            slots,
            given,
            found: &mut [],
            circle: Circle { cursor: 0, order: 1 },
            lap: 0,
            level: 0,
            waiting: 0,
            soon: 0,
            back: 0,
            turn: Instant::ZERO,
            turns: 0,
            next: None,
            order: 0,
            rotates: Instant::NEVER,
        }
    }

    /// Assigns a slot to each given address, as long as slots are free.
    pub(super) fn assign_given(&mut self) {
        let Self { slots, given, order, .. } = self;
        let mut free = slots.iter_mut();
        for (at, address) in given.iter().enumerate() {
            let first = given.iter().position(|other| other == address);
            if first == Some(at)
                && let Some(slot) = free.next()
            {
                slot.set(Nsqd::Given(at as u8), GIVEN);
                slot.order = at as u16;
            }
        }
        *order = given.len() as u16;
    }

    pub(super) fn slot(&self, id: u8) -> Option<&NsqdSlot> {
        self.slots.get(usize::from(id))
    }

    pub(super) fn slot_mut(&mut self, id: u8) -> Option<&mut NsqdSlot> {
        self.slots.get_mut(usize::from(id))
    }

    /// Sets the storage for the addresses of found nsqds.
    pub(super) fn find_into(&mut self, found: &'a mut [Option<Address>]) {
        self.found = found;
    }

    pub(super) fn address(&self, id: u8) -> Option<&Address> {
        match self.slot(id)?.nsqd {
            Nsqd::Nobody => None,
            Nsqd::Given(at) => self.given.get(usize::from(at)),
            Nsqd::Found => self.found.get(usize::from(id))?.as_ref(),
        }
    }

    pub(super) fn retire(&mut self, id: u8) {
        if let Some(slot) = self.slot_mut(id) {
            slot.set(Nsqd::Nobody, 0);
        }
    }

    /// Releases the slots whose grace has passed. Returns whether there were any, and the next time
    /// at which a slot must be released.
    pub(super) fn leave(&mut self, now: Instant) -> (bool, Instant) {
        let mut left = false;
        let mut next = Instant::NEVER;
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_empty()) {
            if slot.leaves <= now {
                slot.set(Nsqd::Nobody, 0);
                left = true;
            }
            next = next.min(slot.leaves);
        }
        (left, next)
    }

    /// Begins a round of a source.
    pub(super) fn begin(&mut self, source: u8, round: &mut Round) {
        // The last round may have been broken off.
        self.settle(source);
        self.soon &= !source;
        for slot in self.slots.iter_mut() {
            slot.seen &= !source;
        }
        round.nearest = None;
        round.count = 0;
        round.sum = 0;
    }

    /// Records that a source failed or listed no nsqd: none of its nsqds waits for a slot.
    pub(super) fn lose(&mut self, source: u8) {
        self.settle(source);
        self.waiting &= !source;
        self.soon &= !source;
    }

    /// Records that a connection could not be established. Returns whether other nsqds wait.
    pub(super) fn fail(&mut self, id: u8) -> bool {
        if self.hash_at(id.into()) == self.back {
            // The nsqd has got its slot back; from now on it competes like others.
            self.back = 0;
        }
        if let Some(slot) = self.slot_mut(id).filter(|slot| !slot.is_empty()) {
            slot.fails = true;
            self.soon |= self.waiting;
        }
        self.waiting != 0
    }

    /// Records that a connection was established.
    pub(super) fn succeed(&mut self, id: u8) {
        if let Some(slot) = self.slot_mut(id) {
            slot.fails = false;
        }
        self.level = self.level.min(1);
    }

    /// Runs a round of the given addresses. Returns whether a slot changed.
    pub(super) fn offer_given(&mut self, now: Instant, rotate: Span, round: &mut Round) -> bool {
        let mut changed = false;
        // The first pass finds the nsqd that is next, the second assigns the slot to it.
        for _ in 0..2 {
            self.begin(GIVEN, round);
            let given = self.given;
            for (at, address) in given.iter().enumerate() {
                changed |= self.offer_as(now, rotate, GIVEN, round, address, Nsqd::Given(at as u8));
            }
            // Given addresses are never withdrawn.
            self.end(now, rotate, Span::MAX, GIVEN, round);
        }
        changed
    }

    /// Offers an nsqd that a source lists. Returns whether a slot changed.
    pub(super) fn offer(
        &mut self,
        now: Instant,
        rotate: Span,
        source: u8,
        round: &mut Round,
        address: &Address,
    ) -> bool {
        self.offer_as(now, rotate, source, round, address, Nsqd::Found)
    }

    fn offer_as(
        &mut self,
        now: Instant,
        rotate: Span,
        source: u8,
        round: &mut Round,
        address: &Address,
        nsqd: Nsqd,
    ) -> bool {
        let hash = hash(address);
        round.sum = round.sum.wrapping_add(hash);
        let known = (0..self.slots.len() as u8).find(|id| self.address(*id) == Some(address));
        if let Some(slot) = known.and_then(|id| self.slot_mut(id)) {
            slot.listed |= source;
            slot.seen |= source;
            slot.leaves = Instant::NEVER;
            return false;
        }
        // The number of slots that the nsqd may have.
        let len = if matches!(nsqd, Nsqd::Found) { self.found.len() } else { self.slots.len() };
        let slots = self.slots.iter().take(len);
        let down = |slot: &NsqdSlot| slot.is_empty() && !slot.busy;
        let free =
            slots.clone().position(down).or_else(|| slots.clone().position(NsqdSlot::is_empty));
        if let Some(at) = free {
            self.assign(at, source, nsqd, address);
            if let Some(slot) = self.slots.get_mut(at) {
                slot.assigned = Assigned::Free;
            }
            return true;
        }
        let kind = self.kind(now, hash);
        if let Some(at) = self.failing(len, source, hash, kind) {
            let old = self.hash_at(at);
            let known = self.has_failed(old);
            if let Some(slot) = self.slots.get_mut(at) {
                if slot.fails && !known {
                    slot.failed = old;
                }
                if slot.seen & source != 0 {
                    round.wait(old, slot.fails, self.circle);
                }
            }
            self.rotates = now.after(rotate);
            self.assign(at, source, nsqd, address);
            if let Some(slot) = self.slots.get_mut(at) {
                slot.assigned = kind;
            }
            return true;
        }
        if self.next.is_some_and(|(next, _)| next == hash)
            && now >= self.rotates
            && let Some(at) = self.oldest(len)
        {
            if !self.has_failed(hash) {
                self.turns = self.turns.wrapping_add(1);
                if self.turns & 3 == 0 {
                    // Nsqds that failed may have a turn again, however many others wait.
                    self.slots.iter_mut().for_each(|slot| slot.failed = 0);
                }
            }
            self.back = self.hash_at(at);
            self.turn = now.after(Span::from_millis(rotate.as_millis() >> 3));
            if self.slots.get(at).is_some_and(|slot| slot.seen & source != 0) {
                round.wait(self.back, false, self.circle);
            }
            self.circle.cursor = hash;
            self.next = None;
            self.rotates = now.after(rotate);
            self.assign(at, source, nsqd, address);
            return true;
        }
        if self.rotates == Instant::NEVER {
            self.rotates = now.after(rotate);
        }
        let long = Span::from_millis(rotate.as_millis().saturating_mul(4));
        let barred = self.has_failed(hash) && now < self.rotates.after(long);
        round.wait(hash, barred, self.circle);
        false
    }

    /// Ends a round in which the source has listed all its nsqds, at least one.
    pub(super) fn end(
        &mut self,
        now: Instant,
        rotate: Span,
        grace: Span,
        source: u8,
        round: &mut Round,
    ) {
        for slot in self.slots.iter_mut().filter(|slot| !slot.is_empty()) {
            if slot.seen & source == 0 {
                slot.listed &= !source;
            }
            if slot.listed == 0 && slot.leaves == Instant::NEVER {
                slot.leaves = now.after(grace);
            }
        }
        self.settle(source);
        round.unserved = round.count;
        if round.sum != round.whole {
            round.whole = round.sum;
            self.level = 0;
        }
        self.waiting &= !source;
        if round.unserved > 0 {
            self.waiting |= source;
        }
        if self.slots.iter().any(|slot| slot.fails) {
            self.soon |= self.waiting;
        }
        let nearest = round.nearest.map(|hash| (hash, source));
        // The next nsqd was not offered again in time: its source may be gone.
        let overdue = now >= self.rotates.after(rotate).after(rotate);
        match (self.next, nearest) {
            // This round replaces the earlier nsqd of the same source.
            (Some((_, by)), _) if by == source || overdue => self.next = nearest,
            (Some((next, _)), Some((hash, _))) if self.distance(hash) >= self.distance(next) => {}
            (Some(_), None) => {}
            (None | Some(_), _) => self.next = nearest,
        }
    }

    fn distance(&self, hash: u32) -> u32 {
        self.circle.distance(hash)
    }

    /// Returns the hash of the slot's nsqd, 0 if it has none.
    fn hash_at(&self, at: usize) -> u32 {
        self.address(at as u8).map_or(0, hash)
    }

    /// Returns whether the nsqd is the last that failed in any slot.
    fn has_failed(&self, hash: u32) -> bool {
        self.slots.iter().any(|slot| slot.failed == hash)
    }

    /// Returns the kind of an assignment to the nsqd, which ranks it among others.
    fn kind(&self, now: Instant, hash: u32) -> Assigned {
        match (hash == self.back, self.has_failed(hash)) {
            (true, _) if now >= self.turn => Assigned::Back,
            (true, _) => Assigned::Early,
            (_, true) => Assigned::Last,
            (_, false) => Assigned::First,
        }
    }

    /// Returns a slot for an offered nsqd: one whose nsqd failed, else the one that this round
    /// assigned to the nsqd of the lowest rank, if that ranks below the offered one.
    fn failing(&self, len: usize, source: u8, hash: u32, kind: Assigned) -> Option<usize> {
        let alone = self.waiting & !source == 0 || kind == Assigned::Back;
        let (mut last, mut rank) = (None, (kind, self.distance(hash)));
        for (at, slot) in self.slots.iter().take(len).enumerate() {
            if !slot.is_open() {
                if slot.fails && (alone || slot.by != source) {
                    return Some(at);
                }
            } else if slot.by == source && slot.assigned != Assigned::Free {
                let other = (slot.assigned, self.distance(self.hash_at(at)));
                if other > rank {
                    (last, rank) = (Some(at), other);
                }
            }
        }
        last
    }

    /// Makes the assignments of a source's round final, even if the round was broken off, and moves
    /// the cursor.
    fn settle(&mut self, source: u8) {
        let mut far = None;
        for at in 0..self.slots.len() {
            let hash = self.hash_at(at);
            let distance = self.distance(hash);
            if let Some(slot) = self.slots.get_mut(at)
                && slot.is_open()
                && slot.by == source
            {
                let counts = matches!(slot.assigned, Assigned::First | Assigned::Last);
                slot.assigned = Assigned::No;
                if counts && far.is_none_or(|(farthest, _)| farthest < distance) {
                    far = Some((distance, hash));
                }
            }
        }
        let Some((distance, hash)) = far else { return };
        self.circle.cursor = hash;
        // With several sources each covers only a part of the circle.
        let part = distance >> u32::from(self.waiting & !source != 0);
        let (lap, over) = self.lap.overflowing_add(part);
        self.lap = lap;
        if over {
            self.circle.order = self.circle.order.wrapping_mul(ORDER);
            self.level = self.level.saturating_add(1).min(LEVEL_MAX);
        }
    }

    fn assign(&mut self, at: usize, source: u8, nsqd: Nsqd, address: &Address) {
        self.order = self.order.wrapping_add(1);
        if matches!(nsqd, Nsqd::Found)
            && let Some(found) = self.found.get_mut(at)
        {
            *found = Some(address.clone());
        }
        if let Some(slot) = self.slots.get_mut(at) {
            slot.set(nsqd, source);
            slot.order = self.order;
        }
    }

    /// Returns the slot that was assigned first.
    fn oldest(&self, len: usize) -> Option<usize> {
        let slots = self.slots.iter().take(len).enumerate();
        slots.max_by_key(|(_, slot)| self.order.wrapping_sub(slot.order)).map(|(at, _)| at)
    }
}

/// The factor of the circle's order after each lap: an odd number with well spread bits.
const ORDER: u32 = 0x9e37_79b1;

/// Returns the FNV-1a hash of an address.
fn hash(address: &Address) -> u32 {
    let host = address.host_bytes().iter();
    host.chain(&address.port().to_be_bytes())
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
