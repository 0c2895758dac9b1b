//! Which wait is served, and which tasks are woken.

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_models::Wakes;

use super::*;

/// A quantity that waits take from. The version counts how often `give` added to it.
#[derive(Default)]
struct Room {
    left: u32,
    version: u32,
}

impl State for Room {
    type Version = u32;

    fn version(&self) -> u32 {
        self.version
    }
}

fn room() -> Shared<NoopRawMutex, Room> {
    Shared::new(Room::default())
}

fn give(shared: &Shared<NoopRawMutex, Room>, gift: u32) {
    shared.update(|room| {
        room.left += gift;
        room.version += 1;
    });
}

/// Polls a wait that takes `cost`. Returns true if it was served.
fn take(wait: &mut QueuedWait<'_, NoopRawMutex, Room>, waker: &Waker, cost: u32) -> bool {
    let taken = wait.poll(waker, |room| {
        let rest = room.left.checked_sub(cost);
        room.left = rest.unwrap_or(room.left);
        rest
    });
    taken.is_ready()
}

/// Runs `N` loops that each take their cost repeatedly, always polled in the same order. Returns
/// how often each loop was served.
fn shares<const N: usize>(
    one_task: bool,
    costs: [u32; N],
    gifts: impl Iterator<Item = u32>,
) -> [u32; N] {
    let shared = room();
    let tasks: [_; N] = std::array::from_fn(|at| match at == 0 || !one_task {
        true => Wakes::woken(),
        false => Wakes::new(),
    });
    let mut waits: [_; N] = std::array::from_fn(|_| QueuedWait::new(&shared));
    let mut taken = [0; N];
    for gift in gifts {
        give(&shared, gift);
        let mut polls = 0;
        while tasks.iter().any(|(wakes, _)| wakes.any()) {
            for at in 0..N {
                // In one task, all are polled whenever it is woken.
                let (wakes, waker) = &tasks[if one_task { 0 } else { at }];
                let polled = one_task && at > 0;
                if !polled && wakes.take() == 0 {
                    continue;
                }
                while take(&mut waits[at], waker, costs[at]) {
                    taken[at] += 1;
                    waits[at] = QueuedWait::new(&shared);
                }
                polls += 1;
                assert!(polls < 1000, "tasks wake each other without end");
            }
        }
        let most = costs.into_iter().max().unwrap();
        assert!(shared.read(|room| room.left).unwrap() < most, "room for any loop is left");
    }
    taken
}

#[test]
fn tasks_and_loops_in_one_task_take_turns() {
    for one_task in [false, true] {
        for gift in 1..9 {
            let [one, two] = shares(one_task, [1, 1], std::iter::repeat_n(gift, 100));
            assert_eq!(one + two, 100 * gift);
            assert!(one.abs_diff(two) <= 2 * gift, "{one} and {two} of {gift} each time");
        }
    }
}

#[test]
fn all_of_many_loops_get_equal_shares() {
    for one_task in [false, true] {
        for gift in 1..9 {
            let taken = shares(one_task, [1; 5], std::iter::repeat_n(gift, 300));
            let fair = 300 * gift / 5;
            assert!(taken.iter().all(|n| n.abs_diff(fair) <= 3 * gift), "{taken:?} of {gift}");
        }
    }
}

#[test]
fn a_wait_that_needs_more_is_not_starved_by_one_that_needs_less() {
    for gift in 1..9 {
        let [small, large] = shares(false, [1, 5], std::iter::repeat_n(gift, 600));
        assert!(large >= 600 * gift / 5 / 4, "{small} and {large} of {gift} each time");
        assert!(small >= 40, "{small} and {large} of {gift} each time");
    }
}

#[test]
fn a_wait_that_is_dropped_or_never_polled_again_blocks_no_other() {
    for dropped in [false, true] {
        let shared = room();
        let mut parked = Some(QueuedWait::new(&shared));
        let mut next = QueuedWait::new(&shared);
        assert!(!take(parked.as_mut().unwrap(), Waker::noop(), 1));
        assert!(!take(&mut next, Waker::noop(), 1));
        let (wakes, waker) = Wakes::new();
        assert!(!take(&mut next, &waker, 1));
        if dropped {
            parked = None;
            assert!(wakes.any(), "the next wait is now the first");
        }
        give(&shared, 50);
        for _ in 0..50 {
            assert!((0..2).any(|_| take(&mut next, Waker::noop(), 1)));
            next = QueuedWait::new(&shared);
        }
        drop(parked);
    }
}

/// Returns a waker and a function that returns whether the waker was woken since its last call.
fn task() -> (Waker, impl Fn() -> bool) {
    let (wakes, waker) = Wakes::new();
    (waker, move || wakes.take() > 0)
}

/// Queues a wait. Needs two polls: the first poll while others wait only yields.
fn queued(wait: &mut QueuedWait<'_, NoopRawMutex, Room>, waker: &Waker, cost: u32) {
    assert!(!take(wait, waker, cost));
    assert!(!take(wait, waker, cost));
}

#[test]
fn the_wait_that_queued_first_is_served_first() {
    let shared = room();
    let [mut first, mut second, mut third] = [(); 3].map(|()| QueuedWait::new(&shared));
    queued(&mut first, Waker::noop(), 1);
    queued(&mut second, Waker::noop(), 1);
    give(&shared, 1);
    for late in [&mut third, &mut second] {
        let (waker, woken) = task();
        assert!(!take(late, &waker, 1));
        assert!(woken(), "a wait behind the first yields once");
    }
    assert!(take(&mut first, Waker::noop(), 1));
}

#[test]
fn a_task_that_was_served_is_served_again_while_room_is_left() {
    let shared = room();
    let [mut wait, mut other] = [(); 2].map(|()| QueuedWait::new(&shared));
    queued(&mut wait, Waker::noop(), 1);
    let (waker, woken) = task();
    queued(&mut other, &waker, 1);
    woken();
    give(&shared, 3);
    for left in (0..3).rev() {
        assert!(take(&mut wait, Waker::noop(), 1));
        assert_eq!(shared.read(|room| room.left), Some(left));
        wait = QueuedWait::new(&shared);
    }
    assert!(woken());
    assert!(!take(&mut wait, Waker::noop(), 1), "no room is left");
    // Now `wait` is queued behind `other`.
    give(&shared, 1);
    assert!(!take(&mut wait, Waker::noop(), 1));
    assert!(take(&mut other, Waker::noop(), 1));
}

#[test]
fn a_task_with_another_condition_is_not_woken_when_a_wait_takes() {
    let shared = room();
    let (waker, woken) = task();
    let other = shared.poll_wait(&waker, |room| (room.left > 9).then_some(()));
    assert!(other.is_pending());
    shared.read(|room| room.left = 2);
    for _ in 0..2 {
        assert!(take(&mut QueuedWait::new(&shared), Waker::noop(), 1));
        assert!(!woken());
    }
}

#[test]
fn a_dropped_wait_wakes_others_only_if_it_was_the_first() {
    let shared = room();
    let [mut first, mut second, mut third] = [(); 3].map(|()| QueuedWait::new(&shared));
    let (waker, woken) = task();
    queued(&mut first, &waker, 1);
    queued(&mut second, Waker::noop(), 1);
    queued(&mut third, &waker, 1);
    woken();
    drop(second);
    assert!(!woken(), "the second wait was not the first");
    drop(first);
    assert!(woken(), "the third wait is now the first");
    drop(third);
    assert!(!woken(), "no wait is left");
}

#[test]
fn a_wait_that_finds_the_queue_full_checks_in_each_poll() {
    let shared = room();
    let mut waits: Vec<_> = (0..40).map(|_| QueuedWait::new(&shared)).collect();
    for _ in 0..3 {
        for wait in &mut waits {
            assert!(!take(wait, Waker::noop(), 1));
        }
    }
    give(&shared, 40);
    for wait in &mut waits {
        assert!((0..2).any(|_| take(wait, Waker::noop(), 1)));
    }
    assert_eq!(shared.read(|room| room.left), Some(0));
}
