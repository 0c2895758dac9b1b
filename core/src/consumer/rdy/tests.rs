//! Scenarios of connections that share max_in_flight.

use super::*;

/// Announces RDY on all connections until nothing changes. Returns the RDY of each.
fn announce(table: &mut RdyTable<'_>) -> Vec<u16> {
    let all = table.shares.len() as u8;
    for _ in 0..3 {
        for id in 0..all {
            if let Some(rdy) = table.next(id) {
                assert_ne!(rdy, table.rdy(id), "RDY is announced without a change");
                table.announced(id, rdy);
            }
            let sum: u16 = (0..all).map(|id| table.rdy(id)).sum();
            assert!(sum <= table.limit, "{sum} of {}", table.limit);
        }
    }
    (0..all).map(|id| table.rdy(id)).collect()
}

fn settle(table: &mut RdyTable<'_>) {
    (0..table.shares.len() as u8).for_each(|id| table.settle(id));
}

/// Returns a table in which all connections take part and no RDY is announced yet.
fn shared(shares: &mut [Share], limit: u16) -> RdyTable<'_> {
    let mut table = RdyTable::new(shares);
    table.set_limit(limit);
    (0..table.shares.len() as u8).for_each(|id| table.join(id, 9));
    table
}

/// Returns the RDY of connections that join one after the other, with announcements between.
fn joined(connections: usize, limit: u16, cap: u32) -> Vec<u16> {
    let mut shares = vec![Share::NONE; connections];
    let mut table = RdyTable::new(&mut shares);
    table.set_limit(limit);
    for id in 0..connections as u8 {
        table.join(id, cap);
        announce(&mut table);
    }
    settle(&mut table);
    announce(&mut table)
}

#[test]
fn rdy_of_each_connection() {
    // connections, max_in_flight, max_rdy_count, RDY of each
    for (connections, limit, cap, want) in [
        (1, 1, 2500, &[1][..]),
        (1, 4, 2500, &[4]),
        (1, 5000, 2500, &[2500]),
        (1, 0, 2500, &[0]),
        (2, 1, 2500, &[1, 0]),
        (2, 2, 2500, &[1, 1]),
        // go-nsq and pynsq lose the remainder (go-nsq#378).
        (2, 5, 2500, &[3, 2]),
        (3, 10, 2500, &[4, 3, 3]),
        (3, 11, 2500, &[4, 4, 3]),
        (4, 7, 2500, &[2, 2, 2, 1]),
        (3, 100, 2500, &[34, 33, 33]),
        (4, 3, 2500, &[1, 1, 1, 0]),
        (5, 2, 2500, &[1, 1, 0, 0, 0]),
        (3, 100, 10, &[10, 10, 10]),
        (3, 0, 2500, &[0, 0, 0]),
        (2, u16::MAX, u32::MAX, &[32768, 32767]),
        (1, u16::MAX, u32::MAX, &[RDY_MAX as u16]),
        (2, 7, 0, &[0, 0]),
    ] {
        assert_eq!(joined(connections, limit, cap), want, "{connections} share {limit}");
    }
}

#[test]
fn the_part_above_a_max_rdy_count_goes_to_the_others() {
    let mut shares = [Share::NONE; 3];
    let mut table = RdyTable::new(&mut shares);
    table.set_limit(20);
    for (id, cap) in [(0, 100), (1, 3), (2, 100)] {
        table.join(id, cap);
    }
    assert_eq!(announce(&mut table), [9, 3, 8]);
    table.leave(0);
    assert_eq!(announce(&mut table), [0, 3, 17]);
}

#[test]
fn the_limit_is_distributed_as_if_one_by_one() {
    for limit in 0..=9u16 {
        for caps in (0..216u32).map(|n| [n % 6, n / 6 % 6, n / 36]) {
            let mut shares = [Share::NONE; 3];
            let mut table = RdyTable::new(&mut shares);
            table.set_limit(limit);
            (0..3).for_each(|id| table.join(id, caps[usize::from(id)]));
            if table.live() > limit {
                continue;
            }
            let (mut want, mut left) = ([0u32; 3], u32::from(limit));
            while left > 0 && want != caps {
                for at in 0..3 {
                    let more = u32::from(left > 0 && want[at] < caps[at]);
                    want[at] += more;
                    left -= more;
                }
            }
            let targets = table.shares.iter().map(|share| u32::from(share.target));
            assert_eq!(targets.collect::<Vec<_>>(), want, "{limit} over {caps:?}");
        }
    }
}

#[test]
fn rdy_of_one_connection_goes_to_another_only_once_nothing_is_committed() {
    let mut shares = [Share::NONE; 2];
    let mut table = RdyTable::new(&mut shares);
    table.set_limit(4);
    table.join(0, 9);
    assert_eq!(announce(&mut table), [4, 0]);
    // Idle: messages may be on their way to the first.
    table.join(1, 9);
    assert_eq!(announce(&mut table), [2, 0]);
    assert!(table.is_short());
    table.settle(0);
    assert_eq!(announce(&mut table), [2, 2]);
    assert!(!table.is_short());
    // Busy: messages in flight count.
    table.leave(1);
    assert_eq!(announce(&mut table), [4, 0]);
    (0..4).for_each(|_| table.delivered(0));
    table.join(1, 9);
    assert_eq!(table.next(0), Some(2));
    assert!(table.announced(0, 2));
    table.settle(0);
    assert_eq!(announce(&mut table), [2, 0]);
    table.answered(0, 1);
    assert_eq!(announce(&mut table), [2, 1]);
    table.answered(0, 1);
    table.answered(0, 1);
    assert_eq!(announce(&mut table), [2, 2]);
}

#[test]
fn a_lower_limit_is_announced_at_once_and_the_same_limit_never() {
    let mut shares = [Share::NONE; 2];
    let mut table = shared(&mut shares, 6);
    assert_eq!(announce(&mut table), [3, 3]);
    table.set_limit(6);
    assert_eq!((table.next(0), table.next(1)), (None, None));
    table.set_limit(0);
    assert_eq!((table.next(0), table.next(1)), (Some(0), Some(0)));
    // Changed back before the announcement: nothing to announce.
    table.set_limit(6);
    assert_eq!((table.next(0), table.next(1)), (None, None));
}

#[test]
fn idle_connections_pass_their_turn_on_and_busy_ones_later() {
    let mut shares = [Share::NONE; 3];
    let mut table = shared(&mut shares, 1);
    assert_eq!(announce(&mut table), [1, 0, 0]);
    let mut turns = Vec::new();
    for interval in 0..40 {
        // The second is busy.
        if table.rdy(1) == 1 {
            table.delivered(1);
            table.answered(1, 1);
        }
        table.redistribute();
        announce(&mut table);
        settle(&mut table);
        let rdy = announce(&mut table);
        assert_eq!(rdy.iter().sum::<u16>(), 1, "in interval {interval}");
        turns.push(rdy.iter().position(|&rdy| rdy == 1).unwrap());
    }
    let count = |id| turns.iter().filter(|&&turn| turn == id).count();
    // Two, six and two of ten intervals.
    assert_eq!((count(0), count(1), count(2)), (8, 24, 8), "{turns:?}");
}

#[test]
fn turns_of_idle_and_busy_connections() {
    // connections, max_in_flight, busy connections; for each, the intervals of 240 with RDY 1
    for (connections, limit, busy, want) in [
        (2, 1, &[][..], &[120, 120][..]),
        // Idle connections have two intervals, busy ones six.
        (2, 1, &[0], &[180, 60]),
        (2, 1, &[0, 1], &[120, 120]),
        (3, 1, &[], &[80, 80, 80]),
        (3, 1, &[1], &[48, 144, 48]),
        (3, 2, &[], &[161, 160, 159]),
        // One waits, so one of two passes its turn on: an idle one, if there is one.
        (3, 2, &[0], &[206, 138, 136]),
        (3, 2, &[0, 1], &[206, 206, 68]),
        (3, 2, &[0, 1, 2], &[162, 162, 156]),
        (4, 2, &[], &[120, 120, 120, 120]),
        (4, 2, &[3], &[120, 120, 60, 180]),
        (4, 2, &[0, 1], &[180, 180, 60, 60]),
        (5, 2, &[0, 1, 2, 3, 4], &[96, 96, 96, 96, 96]),
        (5, 4, &[2], &[181, 180, 240, 180, 179]),
    ] {
        let mut shares = vec![Share::NONE; connections];
        let mut table = shared(&mut shares, limit);
        let mut turns = vec![0u16; connections];
        for _ in 0..240 {
            announce(&mut table);
            settle(&mut table);
            for (id, rdy) in announce(&mut table).into_iter().enumerate() {
                turns[id] += rdy;
                if rdy == 1 && busy.contains(&id) {
                    table.delivered(id as u8);
                    table.answered(id as u8, 1);
                }
            }
            table.redistribute();
        }
        assert_eq!(turns, want, "{connections} connections, {limit} in flight, {busy:?} busy");
        assert_eq!(turns.iter().sum::<u16>(), 240 * limit, "the whole limit is used");
    }
}

#[test]
fn a_connection_keeps_its_turn_while_others_leave_and_join() {
    let mut shares = [Share::NONE; 3];
    let mut table = shared(&mut shares, 1);
    while announce(&mut table) != [0, 1, 0] {
        table.redistribute();
        settle(&mut table);
    }
    table.leave(0);
    table.join(0, 9);
    assert_eq!(announce(&mut table), [0, 1, 0]);
}

#[test]
fn a_turn_begins_when_rdy_is_announced() {
    let mut shares = [Share::NONE; 2];
    let mut table = shared(&mut shares, 1);
    assert_eq!(announce(&mut table), [1, 0]);
    table.delivered(0);
    (0..BUSY_TURNS).for_each(|_| table.redistribute());
    assert_eq!(announce(&mut table), [0, 0]);
    // The message is answered late.
    (0..BUSY_TURNS).for_each(|_| table.redistribute());
    settle(&mut table);
    table.answered(0, 1);
    assert_eq!(announce(&mut table), [0, 1]);
    for _ in 1..QUIET_TURNS {
        table.redistribute();
        assert_eq!(announce(&mut table), [0, 1], "the whole turn");
    }
    table.redistribute();
    assert_eq!(table.next(1), Some(0));
}

#[test]
fn connections_take_turns_only_if_the_limit_is_less_than_one_for_each() {
    let mut shares = [Share::NONE; 2];
    let mut table = shared(&mut shares, 0);
    for (limit, takes) in [(0, false), (1, true), (2, false), (3, false)] {
        table.set_limit(limit);
        assert_eq!(table.takes_turns(), takes, "{limit} for two");
    }
}

#[test]
fn no_connection_waits_for_ever() {
    for (connections, limit) in [(2, 1), (5, 2), (7, 6), (20, 3)] {
        let mut shares = vec![Share::NONE; connections];
        let mut table = shared(&mut shares, limit);
        let mut seen = vec![0; connections];
        for _ in 0..600 {
            for (id, rdy) in announce(&mut table).into_iter().enumerate() {
                seen[id] += rdy;
                (0..rdy).for_each(|_| {
                    table.delivered(id as u8);
                    table.answered(id as u8, 1);
                });
            }
            settle(&mut table);
            table.redistribute();
        }
        let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
        assert!(*least > 0 && most - least <= 18, "{connections}, {limit}: {seen:?}");
    }
}

#[test]
fn a_retired_connection_counts_until_it_has_left() {
    let mut shares = [Share::NONE; 2];
    let mut table = RdyTable::new(&mut shares);
    table.set_limit(4);
    table.join(0, 9);
    announce(&mut table);
    table.delivered(0);
    table.retire(0);
    table.join(1, 9);
    assert_eq!(announce(&mut table), [0, 0]);
    table.settle(0);
    assert_eq!(announce(&mut table), [0, 3]);
    table.leave(0);
    assert_eq!(announce(&mut table), [0, 4]);
}

#[test]
fn starved_when_most_of_rdy_is_in_flight() {
    let mut shares = [Share::NONE; 1];
    let mut table = RdyTable::new(&mut shares);
    table.set_limit(20);
    table.join(0, 100);
    announce(&mut table);
    (0..16).for_each(|_| table.delivered(0));
    assert!(!table.is_starved());
    table.delivered(0);
    assert!(table.is_starved());
}

#[test]
fn ram() {
    assert_eq!(size_of::<Share>(), 16);
}
