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
        assert_eq!(directory.seat(1).unwrap().leaves, Instant::from_millis(13_000), "not later");
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
        assert!(tried[1] == 2 && tried.iter().all(|port| ![1, 3, 4].contains(port)), "{tried:?}");
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
                    .map(|n| (Source::new(1 << n), (1..=30).map(|port| port + 100 * n).collect()))
                    .collect::<Vec<(Source, Vec<u16>)>>();
                all.last_mut().unwrap().1.insert(at, 999);
                let mut rounds = 0;
                while !have_seats(directory, &[999]) {
                    for (source, list) in &mut all {
                        source.lists(directory, rounds, list);
                        try_all(directory, &[999]);
                    }
                    rounds += 1;
                    assert!(rounds < 20 + 300 / seats as u64, "{seats} seats, {sources}, at {at}");
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
