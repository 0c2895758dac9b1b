//! Whom to be connected to: the given nsqds and those that the nsqlookupds list, in a fixed number
//! of slots.
//!
//! Each source, the given addresses or one nsqlookupd, offers its nsqds in *rounds*. A slot is kept
//! as long as any source lists its nsqd; one that answers with others but not with it takes its
//! word back, one that fails or lists nobody does not.
//!
//! With more nsqds than slots, those without are not remembered, however many they are: a hash of
//! the address puts them all in a circle, and they are tried in that order, from a cursor on.
//!
//! # Slots whose nsqd fails
//!
//! A connection that fails before it is ready, while other nsqds wait, marks its slot, and each
//! source that has nsqds waiting is to be asked [soon](NsqdTable::soon). The next round gives all
//! marked slots away at once: while the source lists its nsqds, the slots go to those of them that are nearest
//! behind the cursor, and when it has listed all of them the cursor stands at the farthest that
//! got one. What failed last on each connection is remembered, by its hash, and tried when nobody
//! else waits. With several sources that have nsqds waiting, a slot goes from one source to another, so that one
//! that answers first does not keep the others' nsqds out.
//!
//! Once round the circle is a *lap*. Laps without a change are counted in
//! [`level`](NsqdTable::level): asking and trying get slower and more patient with it. The circle
//! has another order in each lap, so that no nsqd is passed over each time.
//!
//! # Turns
//!
//! Where no slot fails, the first nsqd behind the cursor (of all sources) gets the slot of the one that came
//! first, once in `rotate`; not one that just failed, but for once in five such times. If it does not come up, others that
//! nothing is known of are tried for an eighth of that time; then the one that had to leave gets the slot back. If that one fails then, it
//! makes room as others do.
//!
//! As many nsqds that work as there are slots are found soon among any number that do not: there is always a slot to try
//! with. When all slots are those of nsqds that work, and still more work, these wait for a turn: each has one within two
//! laps, and among many that do not work a turn may be the time of one of those. So with more nsqds that work than
//! connections, messages of some may wait for twice as many times [`Config::rotate`](super::Config::rotate) or
//! [`Config::lookup_interval`](super::Config::lookup_interval), whichever is longer, as nsqds are listed.
//!
//! | what is remembered | bound |
//! |---|---|
//! | nsqds that failed | a hash of 32 bits for each slot: the last one that failed there |
//! | who had to leave for a turn | a hash, the last one |
//! | whether a source lists others than before | the sum of the hashes of all that it lists |
//!
//! Of two addresses with the same hash of 32 bits one has the turns of both.

mod slot;
#[cfg(test)]
mod tests;

use crate::address::Address;
use crate::time::{Instant, Span};

use slot::{Circle, Given, Nsqd};
pub(super) use slot::{NsqdSlot, Round};

/// The source that the given addresses are; nsqlookupds are the bits below.
pub(super) const GIVEN: u8 = 1 << LOOKUPDS_MAX;

/// The most nsqlookupds.
pub const LOOKUPDS_MAX: usize = 7;

/// The most that [`NsqdTable::level`] counts.
const LEVEL_MAX: u8 = 7;

#[derive(Debug)]
pub(super) struct NsqdTable<'a> {
    slots: &'a mut [NsqdSlot],
    given: &'a [Address],
    /// Of the first so many slots, those that are for an nsqd that was found.
    found: &'a mut [Option<Address>],
    circle: Circle,
    /// How much of the current lap is over, of 2^32.
    lap: u32,
    /// Laps without a change.
    pub(super) level: u8,
    /// The sources that list more nsqds than have slots, and those of them that are to be asked soon.
    pub(super) waiting: u8,
    pub(super) soon: u8,
    /// The hash of the nsqd that had to leave for a turn, and until when others are tried.
    back: u32,
    turn: Instant,
    /// Turns of those that had not failed.
    turns: u8,
    /// The hash of the one that is to be given a slot next, and the source that said so.
    next: Option<(u32, u8)>,
    order: u16,
    /// When the next one may replace one that works.
    pub(super) rotates: Instant,
}

impl<'a> NsqdTable<'a> {
    /// All slots are empty.
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

    /// Gives the given addresses slots, each one, as far as there are any.
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

    /// Where to keep the addresses of nsqds that are found.
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

    /// Gives up the slots whose time is over. Says whether there were any, and when the next is.
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

    pub(super) fn begin(&mut self, source: u8, round: &mut Round) {
        // The last round may not have come to its end.
        self.settle(source);
        self.soon &= !source;
        for slot in self.slots.iter_mut() {
            slot.seen &= !source;
        }
        round.nearest = None;
        round.count = 0;
        round.sum = 0;
    }

    /// A source is not to be had, or lists nobody: nobody waits for a slot because of it.
    pub(super) fn lose(&mut self, source: u8) {
        self.settle(source);
        self.waiting &= !source;
        self.soon &= !source;
    }

    /// A connection does not come up. Says whether others wait.
    pub(super) fn fail(&mut self, id: u8) -> bool {
        if self.hash_at(id.into()) == self.back {
            // It had its slot back, or has no more right to it than others.
            self.back = 0;
        }
        if let Some(slot) = self.slot_mut(id).filter(|slot| !slot.is_empty()) {
            slot.fails = true;
            self.soon |= self.waiting;
        }
        self.waiting != 0
    }

    /// A connection came up.
    pub(super) fn succeed(&mut self, id: u8) {
        if let Some(slot) = self.slot_mut(id) {
            slot.fails = false;
        }
        self.level = self.level.min(1);
    }

    /// The given addresses are a source as well. Says whether a slot changed.
    pub(super) fn offer_given(&mut self, now: Instant, rotate: Span, round: &mut Round) -> bool {
        let mut changed = false;
        // The first time finds who is next, the second puts it in.
        for _ in 0..2 {
            self.begin(GIVEN, round);
            let given = self.given;
            for (at, address) in given.iter().enumerate() {
                changed |= self.offer_as(now, rotate, GIVEN, round, address, Nsqd::Given(at as u8));
            }
            // They are never taken back.
            self.end(now, rotate, Span::MAX, GIVEN, round);
        }
        changed
    }

    /// A source lists an nsqd. Says whether a slot changed.
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

    #[inline(never)]
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
        // The slots that it may have.
        let len = if matches!(nsqd, Nsqd::Found) { self.found.len() } else { self.slots.len() };
        let slots = self.slots.iter().take(len);
        let down = |slot: &NsqdSlot| slot.is_empty() && !slot.busy;
        let free =
            slots.clone().position(down).or_else(|| slots.clone().position(NsqdSlot::is_empty));
        if let Some(at) = free {
            self.assign(at, source, nsqd, address);
            if let Some(slot) = self.slots.get_mut(at) {
                slot.given = Given::Free;
            }
            return true;
        }
        let given = self.kind(now, hash);
        if let Some(at) = self.failing(len, source, hash, given) {
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
                slot.given = given;
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
                    // They are to have their turn again, however many others have theirs.
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

    /// The source has listed all that it has, at least one.
    #[inline(never)]
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
        // It had its time to be offered again: its source may be gone.
        let overdue = now >= self.rotates.after(rotate).after(rotate);
        match (self.next, nearest) {
            // What this source said before holds no longer.
            (Some((_, by)), _) if by == source || overdue => self.next = nearest,
            (Some((next, _)), Some((hash, _))) if self.distance(hash) >= self.distance(next) => {}
            (Some(_), None) => {}
            (None | Some(_), _) => self.next = nearest,
        }
    }

    fn distance(&self, hash: u32) -> u32 {
        self.circle.distance(hash)
    }

    /// The hash of whom a slot is for.
    fn hash_at(&self, at: usize) -> u32 {
        self.address(at as u8).map_or(0, hash)
    }

    /// Whether it is one of those that failed last.
    fn has_failed(&self, hash: u32) -> bool {
        self.slots.iter().any(|slot| slot.failed == hash)
    }

    /// When it is an nsqd's turn to be tried.
    fn kind(&self, now: Instant, hash: u32) -> Given {
        match (hash == self.back, self.has_failed(hash)) {
            (true, _) if now >= self.turn => Given::Back,
            (true, _) => Given::Early,
            (_, true) => Given::Last,
            (_, false) => Given::First,
        }
    }

    /// A slot whose nsqd fails, for one that a source lists; or the one that was just given to one that is
    /// to be tried later than it.
    fn failing(&self, len: usize, source: u8, hash: u32, given: Given) -> Option<usize> {
        let alone = self.waiting & !source == 0 || given == Given::Back;
        let (mut last, mut rank) = (None, (given, self.distance(hash)));
        for (at, slot) in self.slots.iter().take(len).enumerate() {
            if !slot.is_open() {
                if slot.fails && (alone || slot.by != source) {
                    return Some(at);
                }
            } else if slot.by == source && slot.given != Given::Free {
                let other = (slot.given, self.distance(self.hash_at(at)));
                if other > rank {
                    (last, rank) = (Some(at), other);
                }
            }
        }
        last
    }

    /// A source's round is over, whether it came to its end or not: what it gave away is given.
    fn settle(&mut self, source: u8) {
        let mut far = None;
        for at in 0..self.slots.len() {
            let hash = self.hash_at(at);
            let distance = self.distance(hash);
            if let Some(slot) = self.slots.get_mut(at)
                && slot.is_open()
                && slot.by == source
            {
                let counts = matches!(slot.given, Given::First | Given::Last);
                slot.given = Given::No;
                if counts && far.is_none_or(|(farthest, _)| farthest < distance) {
                    far = Some((distance, hash));
                }
            }
        }
        let Some((distance, hash)) = far else { return };
        self.circle.cursor = hash;
        // Several sources have a part of the circle each.
        let part = distance >> u32::from(self.waiting & !source != 0);
        let (lap, over) = self.lap.overflowing_add(part);
        self.lap = lap;
        if over {
            self.circle.order = self.circle.order.wrapping_mul(ORDER);
            self.level = self.level.saturating_add(1).min(LEVEL_MAX);
        }
    }

    #[inline(never)]
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

    /// Whose turn is over: who came first.
    fn oldest(&self, len: usize) -> Option<usize> {
        let slots = self.slots.iter().take(len).enumerate();
        slots.max_by_key(|(_, slot)| self.order.wrapping_sub(slot.order)).map(|(at, _)| at)
    }
}

/// An odd number with bits all over: what the circle's order is multiplied with after a lap.
const ORDER: u32 = 0x9e37_79b1;

/// FNV-1a.
fn hash(address: &Address) -> u32 {
    let host = address.host_bytes().iter();
    host.chain(&address.port().to_be_bytes())
        .fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193))
}
