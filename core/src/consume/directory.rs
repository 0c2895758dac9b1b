//! Whom to be connected to: the given nsqds and those that the nsqlookupds list, in a fixed number
//! of seats.
//!
//! Each source, the given addresses or one nsqlookupd, offers its nsqds in *rounds*. A seat is kept
//! as long as any source lists its nsqd; one that answers with others but not with it takes its
//! word back, one that fails or lists nobody does not.
//!
//! With more nsqds than seats, those without are not remembered, however many they are: a hash of
//! the address puts them all in a circle, rounds find the first one behind the last that was given
//! another's seat, and that one gets the next when a source offers it again. So each has its turn,
//! unless two addresses have the same hash of 32 bits: then one of them has both.

use crate::address::Address;
use crate::time::{Instant, Span};

/// The source that the given addresses are; nsqlookupds are the bits below.
pub(super) const GIVEN: u8 = 1 << LOOKUPDS_MAX;

/// The most nsqlookupds.
pub const LOOKUPDS_MAX: usize = 7;

/// Whom one connection is for.
#[derive(Debug, Clone)]
pub(super) struct Seat {
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
    /// Its connection does not come up.
    pub(super) fails: bool,
    /// Its connection has not been idle since it was somebody's.
    pub(super) busy: bool,
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

impl Seat {
    // Zero, as a new `Connection`.
    pub(super) const EMPTY: Self = Self {
        nsqd: Nsqd::Nobody,
        leaves: Instant::ZERO,
        order: 0,
        serial: 0,
        listed: 0,
        seen: 0,
        fails: false,
        busy: false,
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
        self.fails = false;
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
}

impl Round {
    pub(super) const NONE: Self = Self { nearest: None, count: 0, unserved: 0 };
}

#[derive(Debug)]
pub(super) struct Directory<'a> {
    seats: &'a mut [Seat],
    given: &'a [Address],
    /// Of the first so many seats, those that are for an nsqd that was found.
    found: &'a mut [Option<Address>],
    /// The hash of the last nsqd that replaced another one.
    cursor: u32,
    /// The hash of the one that is to be given a seat next, and the source that said so.
    next: Option<(u32, u8)>,
    order: u16,
    /// When the next one may replace one that works.
    pub(super) rotates: Instant,
}

impl<'a> Directory<'a> {
    /// All seats are empty.
    pub(super) fn new(seats: &'a mut [Seat], given: &'a [Address]) -> Self {
        Self {
            seats,
            given,
            found: &mut [],
            cursor: 0,
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

    pub(super) fn seat(&self, id: u8) -> Option<&Seat> {
        self.seats.get(usize::from(id))
    }

    pub(super) fn seat_mut(&mut self, id: u8) -> Option<&mut Seat> {
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
        for seat in self.seats.iter_mut() {
            seat.seen &= !source;
        }
        round.nearest = None;
        round.count = 0;
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
        let down = |seat: &Seat| seat.is_empty() && !seat.busy;
        let free = seats.clone().position(down).or_else(|| seats.clone().position(Seat::is_empty));
        if let Some(at) = free {
            self.assign(at, source, nsqd, address);
            return true;
        }
        let hash = hash(address);
        if self.next.is_some_and(|(next, _)| next == hash)
            && let Some(at) = self.victim(now, len)
        {
            self.cursor = hash;
            self.next = None;
            self.rotates = now.after(rotate);
            self.assign(at, source, nsqd, address);
            return true;
        }
        if round.nearest.is_none_or(|nearest| self.distance(hash) < self.distance(nearest)) {
            round.nearest = Some(hash);
        }
        round.count = round.count.saturating_add(1);
        if self.rotates == Instant::NEVER {
            self.rotates = now.after(rotate);
        }
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
        round.unserved = round.count;
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

    /// How far behind the cursor a hash is; the cursor's own place is the farthest.
    fn distance(&self, hash: u32) -> u32 {
        hash.wrapping_sub(self.cursor).wrapping_sub(1)
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

    /// Who has to make room: one that does not work, else, if it is time, who came first.
    fn victim(&self, now: Instant, len: usize) -> Option<usize> {
        let seats = self.seats.iter().take(len).enumerate();
        if let Some((at, _)) = seats.clone().find(|(_, seat)| seat.fails) {
            return Some(at);
        }
        if now < self.rotates {
            return None;
        }
        seats.max_by_key(|(_, seat)| self.order.wrapping_sub(seat.order)).map(|(at, _)| at)
    }
}

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

        fn lists(&mut self, directory: &mut Directory<'_>, secs: u64, ports: &[u16]) {
            let now = Instant::from_millis(secs * 1000);
            directory.begin(self.bit, &mut self.round);
            for port in ports {
                let address = Address::new("h", *port).unwrap();
                directory.offer(now, ROTATE, self.bit, &mut self.round, &address);
            }
            directory.end(now, ROTATE, GRACE, self.bit, &mut self.round);
        }
    }

    fn ports(directory: &Directory<'_>) -> Vec<u16> {
        let ids = 0..directory.seats.len() as u8;
        ids.map(|id| directory.address(id).map_or(0, Address::port)).collect()
    }

    fn with(seats: usize, given: &[Address], scenario: impl FnOnce(&mut Directory<'_>)) {
        let (mut table, mut found) = (vec![Seat::EMPTY; seats], vec![None; seats]);
        let mut directory = Directory::new(&mut table, given);
        directory.seat_given();
        directory.find_into(&mut found);
        scenario(&mut directory);
    }

    fn leaving(directory: &Directory<'_>) -> Vec<bool> {
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
            let (mut seats, mut found) = (vec![Seat::EMPTY; seats], vec![None; seats]);
            let mut directory = Directory::new(&mut seats, &[]);
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
            a.lists(directory, 61, &[1, 2, 3]);
            assert_eq!(ports(directory), [1, 3], "its time is not over");
            a.lists(directory, 62, &[1, 2, 3]);
            assert_eq!(ports(directory), [2, 3], "the oldest");
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
        let (mut seats, mut found) = ([Seat::EMPTY; 2], [None]);
        let mut directory = Directory::new(&mut seats, &given);
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
