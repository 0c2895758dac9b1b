//! Scenarios of sources, slots and turns.

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

    fn lists(&mut self, nsqds: &mut NsqdTable<'_>, secs: u64, ports: &[u16]) {
        let now = Instant::from_millis(secs * 1000);
        nsqds.begin(self.bit, &mut self.round);
        for port in ports {
            let address = Address::new("h", *port).unwrap();
            nsqds.offer(now, ROTATE, self.bit, &mut self.round, &address);
        }
        nsqds.end(now, ROTATE, GRACE, self.bit, &mut self.round);
    }
}

fn ports(nsqds: &NsqdTable<'_>) -> Vec<u16> {
    let ids = 0..nsqds.slots.len() as u8;
    ids.map(|id| nsqds.address(id).map_or(0, Address::port)).collect()
}

fn with(slots: usize, given: &[Address], scenario: impl FnOnce(&mut NsqdTable<'_>)) {
    let (mut table, mut found) = (vec![NsqdSlot::EMPTY; slots], vec![None; slots]);
    let mut nsqds = NsqdTable::new(&mut table, given);
    nsqds.assign_given();
    nsqds.find_into(&mut found);
    scenario(&mut nsqds);
}

fn leaving(nsqds: &NsqdTable<'_>) -> Vec<bool> {
    nsqds.slots.iter().map(|slot| slot.leaves != Instant::NEVER).collect()
}

#[test]
fn an_nsqd_keeps_its_slot_while_any_source_lists_it() {
    with(3, &[], |nsqds| {
        let (mut a, mut b) = (Source::new(1), Source::new(2));
        a.lists(nsqds, 0, &[1, 2]);
        b.lists(nsqds, 1, &[2, 3]);
        assert_eq!(ports(nsqds), [1, 2, 3]);
        // Each source withdraws only its own listing.
        a.lists(nsqds, 2, &[1]);
        assert_eq!(leaving(nsqds), [false, false, false]);
        b.lists(nsqds, 3, &[3]);
        assert_eq!(leaving(nsqds), [false, true, false]);
        assert_eq!(nsqds.slot(1).unwrap().leaves, Instant::from_millis(13_000));
        b.lists(nsqds, 4, &[3]);
        assert_eq!(nsqds.slot(1).unwrap().leaves, Instant::from_millis(13_000), "not later");
        a.lists(nsqds, 5, &[2, 1]);
        assert_eq!(leaving(nsqds), [false, false, false], "listed again in time");
    });
}

#[test]
fn a_source_withdraws_only_its_own_nsqds() {
    // There is no other source.
    with(2, &[], |nsqds| {
        let mut a = Source::new(1);
        a.lists(nsqds, 0, &[1, 2]);
        a.lists(nsqds, 1, &[1]);
        assert_eq!(leaving(nsqds), [false, true]);
    });
    // Another source answers meanwhile.
    with(2, &[], |nsqds| {
        let (mut a, mut b) = (Source::new(1), Source::new(2));
        let now = Instant::from_millis(1000);
        nsqds.begin(a.bit, &mut a.round);
        nsqds.offer(now, ROTATE, a.bit, &mut a.round, &Address::new("h", 1).unwrap());
        b.lists(nsqds, 1, &[2]);
        nsqds.end(now, ROTATE, GRACE, a.bit, &mut a.round);
        assert_eq!((ports(nsqds), leaving(nsqds)), (vec![1, 2], vec![false, false]));
    });
}

#[test]
fn a_freed_slot_goes_to_the_next_offered_nsqd() {
    with(2, &[], |nsqds| {
        let mut a = Source::new(1);
        a.lists(nsqds, 0, &[1, 2, 3]);
        assert_eq!((ports(nsqds), a.round.unserved), (vec![1, 2], 1));
        let serial = nsqds.slot(0).unwrap().serial;
        nsqds.retire(0);
        assert_ne!(nsqds.slot(0).unwrap().serial, serial);
        a.lists(nsqds, 1, &[2, 3]);
        assert_eq!((ports(nsqds), a.round.unserved), (vec![3, 2], 0));
    });
}

#[test]
fn each_of_many_nsqds_has_its_turn() {
    for slots in 1..5 {
        let (mut slots, mut found) = (vec![NsqdSlot::EMPTY; slots], vec![None; slots]);
        let mut nsqds = NsqdTable::new(&mut slots, &[]);
        nsqds.assign_given();
        nsqds.find_into(&mut found);
        let all: Vec<u16> = (1..=40).collect();
        // Two sources list overlapping halves.
        let (mut a, mut b) = (Source::new(1), Source::new(2));
        let mut served = [0; 41];
        for round in 0..400 {
            // Rounds are as frequent as turns.
            a.lists(&mut nsqds, round * 60, &all[..30]);
            b.lists(&mut nsqds, round * 60 + 30, &all[10..]);
            for port in ports(&nsqds) {
                served[usize::from(port)] += 1;
            }
        }
        let (least, most) = (served[1..].iter().min().unwrap(), served[1..].iter().max());
        assert!(*least > 0, "{served:?}");
        assert!(*most.unwrap() <= least * 4 + 10, "{served:?}");
    }
}

#[test]
fn a_failing_nsqd_is_replaced_before_a_working_one() {
    with(2, &[], |nsqds| {
        let mut a = Source::new(GIVEN);
        a.lists(nsqds, 0, &[1, 2, 3]);
        a.lists(nsqds, 1, &[1, 2, 3]);
        assert_eq!(ports(nsqds), [1, 2], "no turn is due");
        nsqds.slot_mut(1).unwrap().fails = true;
        a.lists(nsqds, 2, &[1, 2, 3]);
        assert_eq!(ports(nsqds), [1, 3]);
        a.lists(nsqds, 61, &[1, 2, 3, 4]);
        assert_eq!(ports(nsqds), [1, 3], "the turn is not over");
        a.lists(nsqds, 62, &[1, 2, 3, 4]);
        assert_eq!(ports(nsqds), [4, 3], "4 replaces the oldest; 2 failed and waits");
    });
}

/// Each nsqd with a slot connects if it is in `live`, and otherwise fails.
fn try_all(nsqds: &mut NsqdTable<'_>, live: &[u16]) {
    for (id, port) in ports(nsqds).into_iter().enumerate() {
        if live.contains(&port) {
            nsqds.succeed(id as u8);
        } else {
            nsqds.fail(id as u8);
        }
    }
}

fn have_slots(nsqds: &NsqdTable<'_>, live: &[u16]) -> bool {
    live.iter().all(|port| ports(nsqds).contains(port))
}

#[test]
fn all_failing_nsqds_are_replaced_in_one_round_and_tried_last() {
    with(4, &[], |nsqds| {
        let mut a = Source::new(1);
        let all: Vec<u16> = (1..=12).collect();
        a.lists(nsqds, 0, &all);
        assert_eq!((ports(nsqds), nsqds.soon), (vec![1, 2, 3, 4], 0));
        try_all(nsqds, &[2]);
        assert_eq!(nsqds.soon, a.bit, "the source must be queried soon");
        a.lists(nsqds, 1, &all);
        let mut tried = ports(nsqds);
        assert!(tried[1] == 2 && tried.iter().all(|port| ![1, 3, 4].contains(port)), "{tried:?}");
        assert_eq!((nsqds.soon, nsqds.level), (0, 0));
        for _ in 0..2 {
            try_all(nsqds, &[2]);
            a.lists(nsqds, 2, &all);
            tried.extend(ports(nsqds));
        }
        let missed = (5..=12).find(|port| !tried.contains(port));
        assert_eq!(missed, None, "eight others, in three rounds: {tried:?}");
        // No nsqd waits: failing nsqds keep their slots.
        try_all(nsqds, &[2]);
        a.lists(nsqds, 3, &[1, 2]);
        assert_eq!((a.round.unserved, nsqds.waiting, nsqds.soon), (0, 0, 0));
    });
}

#[test]
fn a_working_nsqd_is_found_among_any_number_of_failing_ones() {
    for (slots, dead) in [(1, 5), (2, 9), (4, 40), (16, 17), (16, 40), (16, 200), (3, 200)] {
        for at in [0, dead / 3, dead] {
            let mut all: Vec<u16> = (1..=dead).collect();
            all.insert(at.into(), 999);
            with(slots, &[], |nsqds| {
                let mut a = Source::new(1);
                let mut rounds = 1;
                a.lists(nsqds, 0, &all);
                while !have_slots(nsqds, &[999]) {
                    try_all(nsqds, &[999]);
                    rounds += 1;
                    a.lists(nsqds, rounds, &all);
                }
                let most = 3 + 2 * u64::from(dead) / slots as u64;
                assert!(rounds <= most, "{rounds} rounds, {slots} slots, {dead} dead, at {at}");
                for round in 0..20 {
                    try_all(nsqds, &[999]);
                    a.lists(nsqds, rounds + round, &all);
                    assert!(have_slots(nsqds, &[999]), "the working nsqd keeps its slot");
                }
            });
        }
    }
}

#[test]
fn no_source_keeps_out_the_nsqds_of_another() {
    // The first source always answers first, and only the last lists the working nsqd.
    for (slots, sources) in [(1, 2), (2, 2), (4, 3), (16, 2)] {
        for at in 0..30 {
            with(slots, &[], |nsqds| {
                let mut all: Vec<_> = (0..sources)
                    .map(|n| (Source::new(1 << n), (1..=30).map(|port| port + 100 * n).collect()))
                    .collect::<Vec<(Source, Vec<u16>)>>();
                all.last_mut().unwrap().1.insert(at, 999);
                let mut rounds = 0;
                while !have_slots(nsqds, &[999]) {
                    for (source, list) in &mut all {
                        source.lists(nsqds, rounds, list);
                        try_all(nsqds, &[999]);
                    }
                    rounds += 1;
                    assert!(rounds < 20 + 300 / slots as u64, "{slots} slots, {sources}, at {at}");
                }
            });
        }
    }
}

#[test]
fn as_many_working_nsqds_as_slots_are_found_and_kept() {
    with(4, &[], |nsqds| {
        let mut a = Source::new(1);
        let live = [5, 6, 7, 8];
        let all: Vec<u16> = (1..=8).collect();
        a.lists(nsqds, 0, &all);
        try_all(nsqds, &live);
        a.lists(nsqds, 1, &all);
        try_all(nsqds, &live);
        assert!(have_slots(nsqds, &live), "{:?}", ports(nsqds));
        // An hour with one query a minute, and one more after a failure.
        let mut turns = 0;
        for minute in 1..60 {
            a.lists(nsqds, minute * 60, &all);
            if !have_slots(nsqds, &live) {
                turns += 1;
                try_all(nsqds, &live);
                assert_eq!(nsqds.soon, a.bit);
                a.lists(nsqds, minute * 60 + 1, &all);
            }
            assert!(have_slots(nsqds, &live), "the slot is returned at once: {:?}", ports(nsqds));
            try_all(nsqds, &live);
        }
        // The failing nsqds are tried once in five turns.
        assert!((8..=12).contains(&turns), "{turns}");
    });
}

#[test]
fn an_nsqd_that_failed_has_turns_again_even_while_others_have_theirs() {
    with(2, &[], |nsqds| {
        let mut a = Source::new(1);
        let all: Vec<u16> = (1..=6).collect();
        a.lists(nsqds, 0, &all);
        nsqds.fail(0);
        a.lists(nsqds, 1, &all);
        assert!(!have_slots(nsqds, &[1]));
        // Now all nsqds work.
        let mut minutes = 0;
        while !have_slots(nsqds, &[1]) {
            minutes += 1;
            assert!(minutes < 15, "{:?}", ports(nsqds));
            try_all(nsqds, &all);
            a.lists(nsqds, minutes * 60, &all);
        }
    });
}

#[test]
fn an_nsqd_that_got_its_slot_back_and_fails_is_replaced() {
    with(1, &[], |nsqds| {
        let mut a = Source::new(1);
        let all = [1, 2, 3, 4, 5, 6];
        a.lists(nsqds, 0, &all);
        // The nsqd is still being dialed.
        a.lists(nsqds, 1, &all);
        a.lists(nsqds, 61, &all);
        assert_ne!(ports(nsqds), [1], "another nsqd has its turn");
        try_all(nsqds, &[]);
        a.lists(nsqds, 70, &all);
        assert_eq!(ports(nsqds), [1], "the other nsqd failed");
        let mut tried = Vec::new();
        for secs in 71..77 {
            try_all(nsqds, &[]);
            a.lists(nsqds, secs, &all);
            tried.extend(ports(nsqds));
        }
        tried.sort_unstable();
        tried.dedup();
        assert!(tried.len() >= 5, "all others are tried: {tried:?}");
    });
}

#[test]
fn laps_without_a_change_are_counted() {
    with(2, &[], |nsqds| {
        let mut a = Source::new(1);
        let all: Vec<u16> = (1..=8).collect();
        let mut levels = Vec::new();
        for round in 0..40 {
            a.lists(nsqds, round, &all);
            levels.push(nsqds.level);
            try_all(nsqds, &[]);
        }
        assert!(levels.is_sorted() && levels[5] <= 2, "{levels:?}");
        assert_eq!(levels.last(), Some(&LEVEL_MAX), "{levels:?}");
        nsqds.succeed(0);
        assert_eq!(nsqds.level, 1, "a connection was established");
        nsqds.level = 5;
        a.lists(nsqds, 50, &all);
        assert_eq!(nsqds.level, 5, "the source lists the same nsqds");
        a.lists(nsqds, 51, &[1, 2, 3, 4, 5, 6, 7, 9]);
        assert_eq!(nsqds.level, 0, "the source lists other nsqds");
    });
}

#[test]
fn the_nsqds_of_a_lost_source_do_not_wait() {
    with(1, &[], |nsqds| {
        let (mut a, mut b) = (Source::new(1), Source::new(2));
        b.lists(nsqds, 0, &[1, 2, 3]);
        a.lists(nsqds, 0, &[1, 4]);
        assert_eq!((ports(nsqds), nsqds.waiting), (vec![1], 3));
        nsqds.fail(0);
        b.lists(nsqds, 1, &[1, 2, 3]);
        assert_eq!(ports(nsqds), [1], "the slot was assigned by b");
        nsqds.lose(a.bit);
        assert_eq!((nsqds.waiting, nsqds.soon), (2, 2));
        b.lists(nsqds, 2, &[1, 2, 3]);
        assert_ne!(ports(nsqds), [1]);
    });
}

#[test]
fn no_nsqd_is_dialed_before_the_round_is_over() {
    with(1, &[], |nsqds| {
        let now = Instant::from_millis(0);
        let mut a = Source::new(1);
        let offer = |nsqds: &mut NsqdTable<'_>, round: &mut Round, port| {
            nsqds.offer(now, ROTATE, 1, round, &Address::new("h", port).unwrap());
        };
        nsqds.begin(a.bit, &mut a.round);
        offer(nsqds, &mut a.round, 1);
        assert!(nsqds.slot(0).unwrap().is_open());
        offer(nsqds, &mut a.round, 2);
        nsqds.end(now, ROTATE, GRACE, a.bit, &mut a.round);
        assert!(!nsqds.slot(0).unwrap().is_open());
        nsqds.fail(0);
        nsqds.begin(a.bit, &mut a.round);
        offer(nsqds, &mut a.round, 2);
        assert!(nsqds.slot(0).unwrap().is_open());
        // The answer is broken off.
        nsqds.lose(a.bit);
        assert!(!nsqds.slot(0).unwrap().is_open());
        assert_eq!(ports(nsqds), [2]);
    });
}

#[test]
fn a_free_slot_without_a_connection_is_assigned_before_one_that_still_closes() {
    with(2, &[], |nsqds| {
        let mut a = Source::new(1);
        a.lists(nsqds, 0, &[1, 2]);
        assert!(nsqds.slots.iter().all(|slot| slot.busy));
        (0..2).for_each(|id| nsqds.retire(id));
        assert!(nsqds.slots.iter().all(|slot| slot.busy), "busy until the connection is closed");
        nsqds.slot_mut(1).unwrap().busy = false;
        a.lists(nsqds, 1, &[3]);
        assert_eq!(ports(nsqds), [0, 3]);
        a.lists(nsqds, 2, &[3, 4]);
        assert_eq!(ports(nsqds), [4, 3], "no other slot is free");
    });
}

#[test]
fn given_nsqds_take_turns_too_and_found_ones_need_a_place_for_their_address() {
    let given: Vec<Address> = (1..=3).map(|port| Address::new("h", port).unwrap()).collect();
    let (mut slots, mut found) = ([NsqdSlot::EMPTY; 2], [None]);
    let mut nsqds = NsqdTable::new(&mut slots, &given);
    nsqds.assign_given();
    nsqds.find_into(&mut found);
    let mut round = Round::NONE;
    let mut served = [0; 10];
    for minute in 0..30 {
        let before = ports(&nsqds);
        let now = Instant::from_millis(minute * 60_000);
        let changed = nsqds.offer_given(now, ROTATE, &mut round);
        assert_eq!(changed, ports(&nsqds) != before, "in minute {minute}");
        ports(&nsqds).into_iter().for_each(|port| served[usize::from(port)] += 1);
    }
    assert_eq!((served[1], served[2], served[3]), (20, 20, 20), "{served:?}");
    let mut a = Source::new(1);
    // Even if the given nsqds, one of which is next, are no longer offered.
    for secs in [2000, 2001, 2060, 2061, 2120, 2121] {
        a.lists(&mut nsqds, secs, &[9]);
        assert!(ports(&nsqds)[1] != 9);
    }
    assert_eq!(ports(&nsqds)[0], 9);
}
