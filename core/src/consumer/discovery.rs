//! Whom to be connected to: the given nsqds and those that the nsqlookupds list, in a fixed number
//! of seats.
//!
//! Each source, the given addresses or one nsqlookupd, offers its nsqds in *rounds*. A seat is kept
//! as long as any source lists its nsqd; one that answers with others but not with it takes its
//! word back, one that fails or lists nobody does not.
//!
//! With more nsqds than seats, those without are not remembered, however many they are: a hash of
//! the address puts them all in a circle, and they are tried in that order, from a cursor on.
//!
//! # Seats whose nsqd fails
//!
//! A connection that fails before it is ready, while other nsqds wait, marks its seat, and each
//! source that has nsqds waiting is to be asked [soon](NsqdTable::soon). The next round gives all
//! marked seats away at once: while the source lists its nsqds, the seats go to those of them that are nearest
//! behind the cursor, and when it has listed all of them the cursor stands at the farthest that
//! got one. What failed last on each connection is remembered, by its hash, and tried when nobody
//! else waits. With several sources that have nsqds waiting, a seat goes from one source to another, so that one
//! that answers first does not keep the others' nsqds out.
//!
//! Once round the circle is a *lap*. Laps without a change are counted in
//! [`level`](NsqdTable::level): asking and trying get slower and more patient with it. The circle
//! has another order in each lap, so that no nsqd is passed over each time.
//!
//! # Turns
//!
//! Where no seat fails, the first nsqd behind the cursor (of all sources) gets the seat of the one that came
//! first, once in `rotate`; not one that just failed, but for once in five such times. If it does not come up, others that
//! nothing is known of are tried for an eighth of that time; then the one that had to leave gets the seat back. If that one fails then, it
//! makes room as others do.
//!
//! As many nsqds that work as there are seats are found soon among any number that do not: there is always a seat to try
//! with. When all seats are those of nsqds that work, and still more work, these wait for a turn: each has one within two
//! laps, and among many that do not work a turn may be the time of one of those. So with more nsqds that work than
//! connections, messages of some may wait for twice as many times [`Config::rotate`](super::Config::rotate) or
//! [`Config::lookup_interval`](super::Config::lookup_interval), whichever is longer, as nsqds are listed.
//!
//! | what is remembered | bound |
//! |---|---|
//! | nsqds that failed | a hash of 32 bits for each seat: the last one that failed there |
//! | who had to leave for a turn | a hash, the last one |
//! | whether a source lists others than before | the sum of the hashes of all that it lists |
//!
//! Of two addresses with the same hash of 32 bits one has the turns of both.

use crate::address::Address;
use crate::time::{Instant, Span};

/// The source that the given addresses are; nsqlookupds are the bits below.
pub(super) const GIVEN: u8 = 1 << LOOKUPDS_MAX;

/// The most nsqlookupds.
pub const LOOKUPDS_MAX: usize = 7;

/// Whom one connection is for.
#[derive(Debug, Clone)]
pub(super) struct NsqdSlot {
    nsqd: Nsqd,
    /// Not listed by anybody: when it is given up.
    pub(super) leaves: Instant,
    /// When it was taken, in the order of all.
    order: u16,
    /// Counts changes of the address.
    pub(super) serial: u16,
    /// The sources that list it, and those that did in their current round.
    listed: u8,
    seen: u8,
    /// The source that it was given to.
    by: u8,
    /// Its connection does not come up.
    pub(super) fails: bool,
    given: Given,
    /// Its connection has not been idle since it was somebody's.
    pub(super) busy: bool,
    /// The hash of the last nsqd that failed here and made room.
    failed: u32,
}

/// Whether a seat was given away in a round that is not over. Nobody is dialed yet: how long that
/// may take depends on whether others wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Given {
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
enum Nsqd {
    Nobody,
    /// Its place in the given addresses.
    Given(u8),
    /// The seat's own place in the found ones.
    Found,
}

impl NsqdSlot {
    // Zero, as a new `Connection`.
    pub(super) const EMPTY: Self = Self {
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

    pub(super) fn is_empty(&self) -> bool {
        matches!(self.nsqd, Nsqd::Nobody)
    }

    fn set(&mut self, nsqd: Nsqd, source: u8) {
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
    pub(super) fn is_open(&self) -> bool {
        self.given != Given::No
    }
}

/// What one source offers.
#[derive(Debug, Clone)]
pub(super) struct Round {
    /// The hash of the nsqd without a seat that is next behind the cursor, so far.
    nearest: Option<u32>,
    /// Offered without getting a seat, in this round and in the last whole one.
    count: u16,
    pub(super) unserved: u16,
    /// The sum of all hashes, in this round and in the last whole one.
    sum: u32,
    whole: u32,
}

impl Round {
    pub(super) const NONE: Self = Self { nearest: None, count: 0, unserved: 0, sum: 0, whole: 0 };

    /// One that has no seat.
    fn wait(&mut self, hash: u32, barred: bool, circle: Circle) {
        let is_nearer = |nearest| circle.distance(hash) < circle.distance(nearest);
        if !barred && self.nearest.is_none_or(is_nearer) {
            self.nearest = Some(hash);
        }
        self.count = self.count.saturating_add(1);
    }
}

/// The order in which nsqds without a seat are tried.
#[derive(Debug, Clone, Copy)]
struct Circle {
    /// The hash of the last one.
    cursor: u32,
    /// An odd number, another in each lap.
    order: u32,
}

impl Circle {
    /// How far behind the cursor a hash is; the cursor's own place is the farthest.
    fn distance(self, hash: u32) -> u32 {
        hash.wrapping_sub(self.cursor).wrapping_mul(self.order).wrapping_sub(1)
    }
}

/// The most that [`NsqdTable::level`] counts.
const LEVEL_MAX: u8 = 7;

#[derive(Debug)]
pub(super) struct NsqdTable<'a> {
    seats: &'a mut [NsqdSlot],
    given: &'a [Address],
    /// Of the first so many seats, those that are for an nsqd that was found.
    found: &'a mut [Option<Address>],
    circle: Circle,
    /// How much of the current lap is over, of 2^32.
    lap: u32,
    /// Laps without a change.
    pub(super) level: u8,
    /// The sources that list more nsqds than have seats, and those of them that are to be asked soon.
    pub(super) waiting: u8,
    pub(super) soon: u8,
    /// The hash of the nsqd that had to leave for a turn, and until when others are tried.
    back: u32,
    turn: Instant,
    /// Turns of those that had not failed.
    turns: u8,
    /// The hash of the one that is to be given a seat next, and the source that said so.
    next: Option<(u32, u8)>,
    order: u16,
    /// When the next one may replace one that works.
    pub(super) rotates: Instant,
}

impl<'a> NsqdTable<'a> {
    /// All seats are empty.
    pub(super) fn new(seats: &'a mut [NsqdSlot], given: &'a [Address]) -> Self {
        Self {
            seats,
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

    /// Gives the given addresses seats, each one, as far as there are any.
    pub(super) fn seat_given(&mut self) {
        let Self { seats, given, order, .. } = self;
        let mut free = seats.iter_mut();
        for (at, address) in given.iter().enumerate() {
            let first = given.iter().position(|other| other == address);
            if first == Some(at)
                && let Some(seat) = free.next()
            {
                seat.set(Nsqd::Given(at as u8), GIVEN);
                seat.order = at as u16;
            }
        }
        *order = given.len() as u16;
    }

    pub(super) fn seat(&self, id: u8) -> Option<&NsqdSlot> {
        self.seats.get(usize::from(id))
    }

    pub(super) fn seat_mut(&mut self, id: u8) -> Option<&mut NsqdSlot> {
        self.seats.get_mut(usize::from(id))
    }

    /// Where to keep the addresses of nsqds that are found.
    pub(super) fn find_into(&mut self, found: &'a mut [Option<Address>]) {
        self.found = found;
    }

    pub(super) fn address(&self, id: u8) -> Option<&Address> {
        match self.seat(id)?.nsqd {
            Nsqd::Nobody => None,
            Nsqd::Given(at) => self.given.get(usize::from(at)),
            Nsqd::Found => self.found.get(usize::from(id))?.as_ref(),
        }
    }

    pub(super) fn retire(&mut self, id: u8) {
        if let Some(seat) = self.seat_mut(id) {
            seat.set(Nsqd::Nobody, 0);
        }
    }

    /// Gives up the seats whose time is over. Says whether there were any, and when the next is.
    pub(super) fn leave(&mut self, now: Instant) -> (bool, Instant) {
        let mut left = false;
        let mut next = Instant::NEVER;
        for seat in self.seats.iter_mut().filter(|seat| !seat.is_empty()) {
            if seat.leaves <= now {
                seat.set(Nsqd::Nobody, 0);
                left = true;
            }
            next = next.min(seat.leaves);
        }
        (left, next)
    }

    pub(super) fn begin(&mut self, source: u8, round: &mut Round) {
        // The last round may not have come to its end.
        self.settle(source);
        self.soon &= !source;
        for seat in self.seats.iter_mut() {
            seat.seen &= !source;
        }
        round.nearest = None;
        round.count = 0;
        round.sum = 0;
    }

    /// A source is not to be had, or lists nobody: nobody waits for a seat because of it.
    pub(super) fn lose(&mut self, source: u8) {
        self.settle(source);
        self.waiting &= !source;
        self.soon &= !source;
    }

    /// A connection does not come up. Says whether others wait.
    pub(super) fn fail(&mut self, id: u8) -> bool {
        if self.hash_at(id.into()) == self.back {
            // It had its seat back, or has no more right to it than others.
            self.back = 0;
        }
        if let Some(seat) = self.seat_mut(id).filter(|seat| !seat.is_empty()) {
            seat.fails = true;
            self.soon |= self.waiting;
        }
        self.waiting != 0
    }

    /// A connection came up.
    pub(super) fn succeed(&mut self, id: u8) {
        if let Some(seat) = self.seat_mut(id) {
            seat.fails = false;
        }
        self.level = self.level.min(1);
    }

    /// The given addresses are a source as well. Says whether a seat changed.
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

    /// A source lists an nsqd. Says whether a seat changed.
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
        let known = (0..self.seats.len() as u8).find(|id| self.address(*id) == Some(address));
        if let Some(seat) = known.and_then(|id| self.seat_mut(id)) {
            seat.listed |= source;
            seat.seen |= source;
            seat.leaves = Instant::NEVER;
            return false;
        }
        // The seats that it may have.
        let len = if matches!(nsqd, Nsqd::Found) { self.found.len() } else { self.seats.len() };
        let seats = self.seats.iter().take(len);
        let down = |seat: &NsqdSlot| seat.is_empty() && !seat.busy;
        let free =
            seats.clone().position(down).or_else(|| seats.clone().position(NsqdSlot::is_empty));
        if let Some(at) = free {
            self.assign(at, source, nsqd, address);
            if let Some(seat) = self.seats.get_mut(at) {
                seat.given = Given::Free;
            }
            return true;
        }
        let given = self.kind(now, hash);
        if let Some(at) = self.failing(len, source, hash, given) {
            let old = self.hash_at(at);
            let known = self.has_failed(old);
            if let Some(seat) = self.seats.get_mut(at) {
                if seat.fails && !known {
                    seat.failed = old;
                }
                if seat.seen & source != 0 {
                    round.wait(old, seat.fails, self.circle);
                }
            }
            self.rotates = now.after(rotate);
            self.assign(at, source, nsqd, address);
            if let Some(seat) = self.seats.get_mut(at) {
                seat.given = given;
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
                    self.seats.iter_mut().for_each(|seat| seat.failed = 0);
                }
            }
            self.back = self.hash_at(at);
            self.turn = now.after(Span::from_millis(rotate.as_millis() >> 3));
            if self.seats.get(at).is_some_and(|seat| seat.seen & source != 0) {
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
        for seat in self.seats.iter_mut().filter(|seat| !seat.is_empty()) {
            if seat.seen & source == 0 {
                seat.listed &= !source;
            }
            if seat.listed == 0 && seat.leaves == Instant::NEVER {
                seat.leaves = now.after(grace);
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
        if self.seats.iter().any(|seat| seat.fails) {
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

    /// The hash of whom a seat is for.
    fn hash_at(&self, at: usize) -> u32 {
        self.address(at as u8).map_or(0, hash)
    }

    /// Whether it is one of those that failed last.
    fn has_failed(&self, hash: u32) -> bool {
        self.seats.iter().any(|seat| seat.failed == hash)
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

    /// A seat whose nsqd fails, for one that a source lists; or the one that was just given to one that is
    /// to be tried later than it.
    fn failing(&self, len: usize, source: u8, hash: u32, given: Given) -> Option<usize> {
        let alone = self.waiting & !source == 0 || given == Given::Back;
        let (mut last, mut rank) = (None, (given, self.distance(hash)));
        for (at, seat) in self.seats.iter().take(len).enumerate() {
            if !seat.is_open() {
                if seat.fails && (alone || seat.by != source) {
                    return Some(at);
                }
            } else if seat.by == source && seat.given != Given::Free {
                let other = (seat.given, self.distance(self.hash_at(at)));
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
        for at in 0..self.seats.len() {
            let hash = self.hash_at(at);
            let distance = self.distance(hash);
            if let Some(seat) = self.seats.get_mut(at)
                && seat.is_open()
                && seat.by == source
            {
                let counts = matches!(seat.given, Given::First | Given::Last);
                seat.given = Given::No;
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
        if let Some(seat) = self.seats.get_mut(at) {
            seat.set(nsqd, source);
            seat.order = self.order;
        }
    }

    /// Whose turn is over: who came first.
    fn oldest(&self, len: usize) -> Option<usize> {
        let seats = self.seats.iter().take(len).enumerate();
        seats.max_by_key(|(_, seat)| self.order.wrapping_sub(seat.order)).map(|(at, _)| at)
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

#[cfg(test)]
mod tests {
    use super::*;

    const ROTATE: Span = Span::from_secs(60);
    const GRACE: Span = Span::from_secs(10);

    struct Source {
        bit: u8,
        round: Round,
    }

    impl Source {
        fn new(bit: u8) -> Self {
            Self { bit, round: Round::NONE }
        }

        fn lists(&mut self, directory: &mut NsqdTable<'_>, secs: u64, ports: &[u16]) {
            let now = Instant::from_millis(secs * 1000);
            directory.begin(self.bit, &mut self.round);
            for port in ports {
                let address = Address::new("h", *port).unwrap();
                directory.offer(now, ROTATE, self.bit, &mut self.round, &address);
            }
            directory.end(now, ROTATE, GRACE, self.bit, &mut self.round);
        }
    }

    fn ports(directory: &NsqdTable<'_>) -> Vec<u16> {
        let ids = 0..directory.seats.len() as u8;
        ids.map(|id| directory.address(id).map_or(0, Address::port)).collect()
    }

    fn with(seats: usize, given: &[Address], scenario: impl FnOnce(&mut NsqdTable<'_>)) {
        let (mut table, mut found) = (vec![NsqdSlot::EMPTY; seats], vec![None; seats]);
        let mut directory = NsqdTable::new(&mut table, given);
        directory.seat_given();
        directory.find_into(&mut found);
        scenario(&mut directory);
    }

    fn leaving(directory: &NsqdTable<'_>) -> Vec<bool> {
        directory.seats.iter().map(|seat| seat.leaves != Instant::NEVER).collect()
    }

    #[test]
    fn the_union_counts() {
        with(3, &[], |directory| {
            let (mut a, mut b) = (Source::new(1), Source::new(2));
            a.lists(directory, 0, &[1, 2]);
            b.lists(directory, 1, &[2, 3]);
            assert_eq!(ports(directory), [1, 2, 3]);
            // Each takes back its own word only.
            a.lists(directory, 2, &[1]);
            assert_eq!(leaving(directory), [false, false, false]);
            b.lists(directory, 3, &[3]);
            assert_eq!(leaving(directory), [false, true, false]);
            assert_eq!(directory.seat(1).unwrap().leaves, Instant::from_millis(13_000));
            b.lists(directory, 4, &[3]);
            assert_eq!(
                directory.seat(1).unwrap().leaves,
                Instant::from_millis(13_000),
                "not later"
            );
            a.lists(directory, 5, &[2, 1]);
            assert_eq!(leaving(directory), [false, false, false], "it came back in time");
        });
    }

    #[test]
    fn what_a_source_takes_back_is_its_own() {
        // There is no other.
        with(2, &[], |directory| {
            let mut a = Source::new(1);
            a.lists(directory, 0, &[1, 2]);
            a.lists(directory, 1, &[1]);
            assert_eq!(leaving(directory), [false, true]);
        });
        // Another one answers meanwhile.
        with(2, &[], |directory| {
            let (mut a, mut b) = (Source::new(1), Source::new(2));
            let now = Instant::from_millis(1000);
            directory.begin(a.bit, &mut a.round);
            directory.offer(now, ROTATE, a.bit, &mut a.round, &Address::new("h", 1).unwrap());
            b.lists(directory, 1, &[2]);
            directory.end(now, ROTATE, GRACE, a.bit, &mut a.round);
            assert_eq!((ports(directory), leaving(directory)), (vec![1, 2], vec![false, false]));
        });
    }

    #[test]
    fn a_freed_seat_goes_to_the_next_offered() {
        with(2, &[], |directory| {
            let mut a = Source::new(1);
            a.lists(directory, 0, &[1, 2, 3]);
            assert_eq!((ports(directory), a.round.unserved), (vec![1, 2], 1));
            let serial = directory.seat(0).unwrap().serial;
            directory.retire(0);
            assert_ne!(directory.seat(0).unwrap().serial, serial);
            a.lists(directory, 1, &[2, 3]);
            assert_eq!((ports(directory), a.round.unserved), (vec![3, 2], 0));
        });
    }

    #[test]
    fn each_of_many_has_its_turn() {
        for seats in 1..5 {
            let (mut seats, mut found) = (vec![NsqdSlot::EMPTY; seats], vec![None; seats]);
            let mut directory = NsqdTable::new(&mut seats, &[]);
            directory.seat_given();
            directory.find_into(&mut found);
            let all: Vec<u16> = (1..=40).collect();
            // Two sources list overlapping halves.
            let (mut a, mut b) = (Source::new(1), Source::new(2));
            let mut served = [0; 41];
            for round in 0..400 {
                // Rounds come as often as turns.
                a.lists(&mut directory, round * 60, &all[..30]);
                b.lists(&mut directory, round * 60 + 30, &all[10..]);
                for port in ports(&directory) {
                    served[usize::from(port)] += 1;
                }
            }
            let (least, most) = (served[1..].iter().min().unwrap(), served[1..].iter().max());
            assert!(*least > 0, "{served:?}");
            assert!(*most.unwrap() <= least * 4 + 10, "{served:?}");
        }
    }

    #[test]
    fn who_does_not_work_makes_room_first() {
        with(2, &[], |directory| {
            let mut a = Source::new(GIVEN);
            a.lists(directory, 0, &[1, 2, 3]);
            a.lists(directory, 1, &[1, 2, 3]);
            assert_eq!(ports(directory), [1, 2], "it is not time");
            directory.seat_mut(1).unwrap().fails = true;
            a.lists(directory, 2, &[1, 2, 3]);
            assert_eq!(ports(directory), [1, 3]);
            a.lists(directory, 61, &[1, 2, 3, 4]);
            assert_eq!(ports(directory), [1, 3], "its time is not over");
            a.lists(directory, 62, &[1, 2, 3, 4]);
            assert_eq!(ports(directory), [4, 3], "the oldest; 2 failed, and waits");
        });
    }

    /// Each nsqd that has a seat comes up, or does not.
    fn try_all(directory: &mut NsqdTable<'_>, live: &[u16]) {
        for (id, port) in ports(directory).into_iter().enumerate() {
            if live.contains(&port) {
                directory.succeed(id as u8);
            } else {
                directory.fail(id as u8);
            }
        }
    }

    fn have_seats(directory: &NsqdTable<'_>, live: &[u16]) -> bool {
        live.iter().all(|port| ports(directory).contains(port))
    }

    #[test]
    fn all_that_fail_make_room_in_one_round_and_are_tried_last() {
        with(4, &[], |directory| {
            let mut a = Source::new(1);
            let all: Vec<u16> = (1..=12).collect();
            a.lists(directory, 0, &all);
            assert_eq!((ports(directory), directory.soon), (vec![1, 2, 3, 4], 0));
            try_all(directory, &[2]);
            assert_eq!(directory.soon, a.bit, "to be asked soon");
            a.lists(directory, 1, &all);
            let mut tried = ports(directory);
            assert!(
                tried[1] == 2 && tried.iter().all(|port| ![1, 3, 4].contains(port)),
                "{tried:?}"
            );
            assert_eq!((directory.soon, directory.level), (0, 0));
            for _ in 0..2 {
                try_all(directory, &[2]);
                a.lists(directory, 2, &all);
                tried.extend(ports(directory));
            }
            let missed = (5..=12).find(|port| !tried.contains(port));
            assert_eq!(missed, None, "eight others, in three rounds: {tried:?}");
            // Nobody waits: who fails keeps its seat.
            try_all(directory, &[2]);
            a.lists(directory, 3, &[1, 2]);
            assert_eq!((a.round.unserved, directory.waiting, directory.soon), (0, 0, 0));
        });
    }

    #[test]
    fn one_that_works_is_found_among_any_number_that_do_not() {
        for (seats, dead) in [(1, 5), (2, 9), (4, 40), (16, 17), (16, 40), (16, 200), (3, 200)] {
            for at in [0, dead / 3, dead] {
                let mut all: Vec<u16> = (1..=dead).collect();
                all.insert(at.into(), 999);
                with(seats, &[], |directory| {
                    let mut a = Source::new(1);
                    let mut rounds = 1;
                    a.lists(directory, 0, &all);
                    while !have_seats(directory, &[999]) {
                        try_all(directory, &[999]);
                        rounds += 1;
                        a.lists(directory, rounds, &all);
                    }
                    let most = 3 + 2 * u64::from(dead) / seats as u64;
                    assert!(rounds <= most, "{rounds} rounds, {seats} seats, {dead} dead, at {at}");
                    for round in 0..20 {
                        try_all(directory, &[999]);
                        a.lists(directory, rounds + round, &all);
                        assert!(have_seats(directory, &[999]), "it stays");
                    }
                });
            }
        }
    }

    #[test]
    fn no_source_keeps_out_what_another_one_lists() {
        // The first always answers first, and the one that works is in another's list.
        for (seats, sources) in [(1, 2), (2, 2), (4, 3), (16, 2)] {
            for at in 0..30 {
                with(seats, &[], |directory| {
                    let mut all: Vec<_> = (0..sources)
                        .map(|n| {
                            (Source::new(1 << n), (1..=30).map(|port| port + 100 * n).collect())
                        })
                        .collect::<Vec<(Source, Vec<u16>)>>();
                    all.last_mut().unwrap().1.insert(at, 999);
                    let mut rounds = 0;
                    while !have_seats(directory, &[999]) {
                        for (source, list) in &mut all {
                            source.lists(directory, rounds, list);
                            try_all(directory, &[999]);
                        }
                        rounds += 1;
                        assert!(
                            rounds < 20 + 300 / seats as u64,
                            "{seats} seats, {sources}, at {at}"
                        );
                    }
                });
            }
        }
    }

    #[test]
    fn as_many_that_work_as_there_are_seats_are_found_and_kept() {
        with(4, &[], |directory| {
            let mut a = Source::new(1);
            let live = [5, 6, 7, 8];
            let all: Vec<u16> = (1..=8).collect();
            a.lists(directory, 0, &all);
            try_all(directory, &live);
            a.lists(directory, 1, &all);
            try_all(directory, &live);
            assert!(have_seats(directory, &live), "{:?}", ports(directory));
            // An hour, asked once a minute and once more after a failure.
            let mut turns = 0;
            for minute in 1..60 {
                a.lists(directory, minute * 60, &all);
                if !have_seats(directory, &live) {
                    turns += 1;
                    try_all(directory, &live);
                    assert_eq!(directory.soon, a.bit);
                    a.lists(directory, minute * 60 + 1, &all);
                }
                assert!(have_seats(directory, &live), "back at once: {:?}", ports(directory));
                try_all(directory, &live);
            }
            // The others are tried once in five turns.
            assert!((8..=12).contains(&turns), "{turns}");
        });
    }

    #[test]
    fn one_that_failed_has_turns_again_also_while_others_take_theirs() {
        with(2, &[], |directory| {
            let mut a = Source::new(1);
            let all: Vec<u16> = (1..=6).collect();
            a.lists(directory, 0, &all);
            directory.fail(0);
            a.lists(directory, 1, &all);
            assert!(!have_seats(directory, &[1]));
            // It works again, and all others do.
            let mut minutes = 0;
            while !have_seats(directory, &[1]) {
                minutes += 1;
                assert!(minutes < 15, "{:?}", ports(directory));
                try_all(directory, &all);
                a.lists(directory, minutes * 60, &all);
            }
        });
    }

    #[test]
    fn one_that_got_its_seat_back_and_fails_makes_room() {
        with(1, &[], |directory| {
            let mut a = Source::new(1);
            let all = [1, 2, 3, 4, 5, 6];
            a.lists(directory, 0, &all);
            // It is still being dialed.
            a.lists(directory, 1, &all);
            a.lists(directory, 61, &all);
            assert_ne!(ports(directory), [1], "the turn of another one");
            try_all(directory, &[]);
            a.lists(directory, 70, &all);
            assert_eq!(ports(directory), [1], "that one does not work");
            let mut tried = Vec::new();
            for secs in 71..77 {
                try_all(directory, &[]);
                a.lists(directory, secs, &all);
                tried.extend(ports(directory));
            }
            tried.sort_unstable();
            tried.dedup();
            assert!(tried.len() >= 5, "each one is tried: {tried:?}");
        });
    }

    #[test]
    fn laps_without_a_change_are_counted() {
        with(2, &[], |directory| {
            let mut a = Source::new(1);
            let all: Vec<u16> = (1..=8).collect();
            let mut levels = Vec::new();
            for round in 0..40 {
                a.lists(directory, round, &all);
                levels.push(directory.level);
                try_all(directory, &[]);
            }
            assert!(levels.is_sorted() && levels[5] <= 2, "{levels:?}");
            assert_eq!(levels.last(), Some(&LEVEL_MAX), "{levels:?}");
            directory.succeed(0);
            assert_eq!(directory.level, 1, "one came up");
            directory.level = 5;
            a.lists(directory, 50, &all);
            assert_eq!(directory.level, 5, "the same as before");
            a.lists(directory, 51, &[1, 2, 3, 4, 5, 6, 7, 9]);
            assert_eq!(directory.level, 0, "others than before");
        });
    }

    #[test]
    fn what_a_source_lists_that_is_lost_is_not_waited_for() {
        with(1, &[], |directory| {
            let (mut a, mut b) = (Source::new(1), Source::new(2));
            b.lists(directory, 0, &[1, 2, 3]);
            a.lists(directory, 0, &[1, 4]);
            assert_eq!((ports(directory), directory.waiting), (vec![1], 3));
            directory.fail(0);
            b.lists(directory, 1, &[1, 2, 3]);
            assert_eq!(ports(directory), [1], "it was given to what b lists");
            directory.lose(a.bit);
            assert_eq!((directory.waiting, directory.soon), (2, 2));
            b.lists(directory, 2, &[1, 2, 3]);
            assert_ne!(ports(directory), [1]);
        });
    }

    #[test]
    fn nobody_is_dialed_before_a_round_is_over() {
        with(1, &[], |directory| {
            let now = Instant::from_millis(0);
            let mut a = Source::new(1);
            let offer = |directory: &mut NsqdTable<'_>, round: &mut Round, port| {
                directory.offer(now, ROTATE, 1, round, &Address::new("h", port).unwrap());
            };
            directory.begin(a.bit, &mut a.round);
            offer(directory, &mut a.round, 1);
            assert!(directory.seat(0).unwrap().is_open());
            offer(directory, &mut a.round, 2);
            directory.end(now, ROTATE, GRACE, a.bit, &mut a.round);
            assert!(!directory.seat(0).unwrap().is_open());
            directory.fail(0);
            directory.begin(a.bit, &mut a.round);
            offer(directory, &mut a.round, 2);
            assert!(directory.seat(0).unwrap().is_open());
            // The answer breaks off.
            directory.lose(a.bit);
            assert!(!directory.seat(0).unwrap().is_open());
            assert_eq!(ports(directory), [2]);
        });
    }

    #[test]
    fn a_seat_whose_connection_is_down_is_taken_before_one_that_is_still_left() {
        with(2, &[], |directory| {
            let mut a = Source::new(1);
            a.lists(directory, 0, &[1, 2]);
            assert!(directory.seats.iter().all(|seat| seat.busy));
            (0..2).for_each(|id| directory.retire(id));
            assert!(directory.seats.iter().all(|seat| seat.busy), "until it is down");
            directory.seat_mut(1).unwrap().busy = false;
            a.lists(directory, 1, &[3]);
            assert_eq!(ports(directory), [0, 3]);
            a.lists(directory, 2, &[3, 4]);
            assert_eq!(ports(directory), [4, 3], "if there is no other");
        });
    }

    #[test]
    fn given_ones_take_turns_too_and_found_ones_sit_where_there_is_room_for_their_address() {
        let given: Vec<Address> = (1..=3).map(|port| Address::new("h", port).unwrap()).collect();
        let (mut seats, mut found) = ([NsqdSlot::EMPTY; 2], [None]);
        let mut directory = NsqdTable::new(&mut seats, &given);
        directory.seat_given();
        directory.find_into(&mut found);
        let mut round = Round::NONE;
        let mut served = [0; 10];
        for minute in 0..30 {
            let before = ports(&directory);
            let now = Instant::from_millis(minute * 60_000);
            let changed = directory.offer_given(now, ROTATE, &mut round);
            assert_eq!(changed, ports(&directory) != before, "in minute {minute}");
            ports(&directory).into_iter().for_each(|port| served[usize::from(port)] += 1);
        }
        assert_eq!((served[1], served[2], served[3]), (20, 20, 20), "{served:?}");
        let mut a = Source::new(1);
        // Even where the given ones, one of which is next, are offered no more.
        for secs in [2000, 2001, 2060, 2061, 2120, 2121] {
            a.lists(&mut directory, secs, &[9]);
            assert!(ports(&directory)[1] != 9);
        }
        assert_eq!(ports(&directory)[0], 9);
    }
}
