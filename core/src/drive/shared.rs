//! A state machine that handles and a runner share.

use core::cell::RefCell;
use core::task::{Poll, Waker};

use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};
use embassy_sync::waitqueue::WakerRegistration;
use heapless::Vec;

/// How many tasks may wait on handles of one runner. With more, all get their answers, but while
/// they wait they wake each other without end: let one task wait for the others then.
pub const WAITERS_MAX: usize = 8;

pub(super) struct Shared<M: RawMutex, T> {
    inner: Mutex<M, RefCell<Inner<T>>>,
}

struct Inner<T> {
    state: T,
    runner: WakerRegistration,
    waiters: Waiters,
    queue: Queue,
}

impl<T> Inner<T> {
    /// There is news for those who wait.
    fn tell(&mut self) {
        self.queue.news = self.queue.news.wrapping_add(1);
        self.waiters.wake();
    }
}

impl<M: RawMutex, T> Shared<M, T> {
    pub(super) const fn new(state: T) -> Self {
        Self {
            inner: Mutex::new(RefCell::new(Inner {
                state,
                runner: WakerRegistration::new(),
                waiters: Waiters(Vec::new()),
                queue: Queue::new(),
            })),
        }
    }

    /// The state, while nobody else can have it.
    pub(super) fn get_mut(&mut self) -> &mut T {
        &mut self.inner.get_mut().get_mut().state
    }

    /// `f` must not come back here: then it is not run, and there is no answer.
    fn lock<R>(&self, f: impl FnOnce(&mut Inner<T>) -> R) -> Option<R> {
        self.inner.lock(|inner| inner.try_borrow_mut().ok().map(|mut inner| f(&mut inner)))
    }

    /// Looks at it.
    pub(super) fn peek<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| f(&mut inner.state))
    }

    /// The application changes it: the runner is to look. `f` says whether somebody who waits
    /// should, too.
    pub(super) fn change<R>(&self, f: impl FnOnce(&mut T) -> (R, bool)) -> Option<R> {
        self.lock(|inner| {
            let (result, news) = f(&mut inner.state);
            inner.runner.wake();
            if news {
                inner.tell();
            }
            result
        })
    }

    /// The runner changes it; `f` says whether somebody who waits should look.
    pub(super) fn drive<R>(&self, f: impl FnOnce(&mut T) -> (R, bool)) -> Option<R> {
        self.lock(|inner| {
            let (result, news) = f(&mut inner.state);
            if news {
                inner.tell();
            }
            result
        })
    }

    /// As [`drive`](Self::drive), for a state with several sessions: what one of them changes may
    /// concern the others, so the runner looks again.
    pub(super) fn change_if<R>(&self, f: impl FnOnce(&mut T) -> (R, bool)) -> Option<R> {
        self.lock(|inner| {
            let (result, news) = f(&mut inner.state);
            if news {
                inner.runner.wake();
                inner.tell();
            }
            result
        })
    }

    /// Has the runner's task woken at the next [`change`](Self::change).
    pub(super) fn register(&self, waker: &Waker) {
        self.lock(|inner| inner.runner.register(waker));
    }

    /// Asks `f` now and whenever there is news, until it has an answer; `f` also says whether it
    /// made news itself. Cancel-safe: `f` is asked only in a poll that returns its answer.
    ///
    /// `turn` is one wait's own.
    pub(super) fn poll_wait<R>(
        &self,
        waker: &Waker,
        turn: &mut Turn,
        f: impl FnOnce(&mut T) -> (Option<R>, bool),
    ) -> Poll<R> {
        self.lock(|inner| {
            if !inner.queue.is_turn(turn) {
                waker.wake_by_ref();
                return Poll::Pending;
            }
            let (answer, news) = f(&mut inner.state);
            if news {
                inner.runner.wake();
                inner.tell();
            }
            match answer {
                Some(answer) => {
                    inner.queue.leave(turn);
                    // It may have taken the answer out.
                    inner.runner.wake();
                    Poll::Ready(answer)
                }
                None => {
                    inner.waiters.register(waker);
                    Poll::Pending
                }
            }
        })
        .unwrap_or(Poll::Pending)
    }
}

/// Who waits for something that goes to one of them, in the order in which they came.
///
/// A wait that is polled out of turn steps back once each time there is news, so that the one whose
/// turn it is comes first, and is then asked all the same. Nor does it step back again for one that
/// was not there meanwhile: a wait that was dropped, or that nobody polls, holds nobody up. One that
/// was passed over because of that has its turn as soon as it is polled.
struct Queue {
    /// Whose turn it is, if that one is still there.
    head: u8,
    /// The next number to give out.
    tail: u8,
    /// Counts the news.
    news: u8,
    /// At which news the head was polled last.
    seen: u8,
}

/// A wait's place in the queue.
#[derive(Clone, Copy)]
pub(super) enum Turn {
    /// Not in the queue: what it waits for is not only for one.
    Any,
    /// Not in the queue yet.
    Last,
    /// In the queue.
    Number(u8),
    /// In the queue, and has stepped back at these news.
    SteppedBack(u8, u8),
}

impl Queue {
    const fn new() -> Self {
        Self { head: 0, tail: 0, news: 0, seen: 0 }
    }

    /// Whether this wait is to be asked now; if not, it comes back.
    fn is_turn(&mut self, turn: &mut Turn) -> bool {
        let number = match *turn {
            Turn::Any => return true,
            Turn::Number(number) | Turn::SteppedBack(number, _) => number,
            Turn::Last => {
                let number = self.tail;
                self.tail = number.wrapping_add(1);
                *turn = Turn::Number(number);
                number
            }
        };
        // The numbers go round.
        let is_behind = (1..128).contains(&number.wrapping_sub(self.head));
        if !is_behind {
            self.head = number;
            self.seen = self.news;
            return true;
        }
        if let Turn::SteppedBack(_, at) = *turn {
            let was_there = self.news.wrapping_sub(self.seen) <= self.news.wrapping_sub(at);
            if at == self.news || !was_there {
                return true;
            }
        }
        *turn = Turn::SteppedBack(number, self.news);
        false
    }

    /// This wait has its answer.
    fn leave(&mut self, turn: &Turn) {
        if let Turn::Number(number) | Turn::SteppedBack(number, _) = *turn
            // Who is there keeps its turn when another was faster.
            && (number == self.head || self.seen != self.news)
        {
            self.head = number.wrapping_add(1);
            // Whether the next is there is not known.
            self.seen = self.news.wrapping_sub(1);
        }
    }
}

/// Wakers of tasks that wait. Like embassy-sync's `MultiWakerRegistration`, which the compiler
/// cannot see to be free of panics.
struct Waiters(Vec<Waker, WAITERS_MAX, u8>);

impl Waiters {
    fn register(&mut self, waker: &Waker) {
        if self.0.iter().any(|known| known.will_wake(waker)) {
            return;
        }
        if self.0.is_full() {
            // They look in vain and come back: busy, not wrong.
            self.wake();
        }
        let _ = self.0.push(waker.clone());
    }

    fn wake(&mut self) {
        while let Some(waker) = self.0.pop() {
            waker.wake();
        }
    }
}

impl<M: RawMutex, T> core::fmt::Debug for Shared<M, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::Wake;

    use embassy_sync::blocking_mutex::raw::NoopRawMutex;

    use super::*;

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    /// Takes one of what there is.
    fn take(shared: &Shared<NoopRawMutex, u32>, waker: &Waker, turn: &mut Turn) -> bool {
        let taken = shared.poll_wait(waker, turn, |room| {
            let taken = room.checked_sub(1);
            *room = taken.unwrap_or(0);
            (taken, false)
        });
        taken.is_ready()
    }

    /// Lets loops take whatever comes, always polled in the same order, and says how much each got.
    fn shares<const LOOPS: usize>(
        one_task: bool,
        gifts: impl Iterator<Item = u32>,
    ) -> [u32; LOOPS] {
        let shared = Shared::<NoopRawMutex, u32>::new(0);
        let flags: [_; LOOPS] =
            core::array::from_fn(|at| Arc::new(Flag(AtomicBool::new(at == 0 || !one_task))));
        let mut turns = [Turn::Last; LOOPS];
        let mut taken = [0; LOOPS];
        for gift in gifts {
            shared.drive(|room| {
                *room += gift;
                ((), true)
            });
            let mut polls = 0;
            while flags.iter().any(|flag| flag.0.load(Ordering::Relaxed)) {
                for at in 0..LOOPS {
                    // In one task, all are polled whenever it is woken.
                    let flag = &flags[if one_task { 0 } else { at }];
                    let later = one_task && at > 0;
                    if !later && !flag.0.swap(false, Ordering::Relaxed) {
                        continue;
                    }
                    let waker = Waker::from(flag.clone());
                    while take(&shared, &waker, &mut turns[at]) {
                        taken[at] += 1;
                        turns[at] = Turn::Last;
                    }
                    polls += 1;
                    assert!(polls < 1000, "they wake each other without end");
                }
            }
            assert_eq!(shared.peek(|room| *room), Some(0), "what there is, is taken");
        }
        taken
    }

    #[track_caller]
    fn assert_fair(taken: &[u32]) {
        let (least, most) = (taken.iter().min().unwrap(), taken.iter().max().unwrap());
        assert!((most - least) * 20 <= least + most, "{taken:?}");
    }

    #[test]
    fn takers_take_turns() {
        for gift in 1..9 {
            for one_task in [false, true] {
                let gifts = || std::iter::repeat_n(gift, 200);
                assert_fair(&shares::<2>(one_task, gifts()));
                assert_fair(&shares::<3>(one_task, gifts()));
                assert_fair(&shares::<7>(one_task, gifts()));
                // What comes late finds some of them waiting a second time.
                let late = (0..400).map(|n| if n % 3 == 0 { 0 } else { gift });
                assert_fair(&shares::<3>(one_task, late));
            }
        }
    }

    #[test]
    fn one_that_was_passed_over_is_the_first_again() {
        let shared = Shared::<NoopRawMutex, u32>::new(0);
        let give = |room| shared.drive(|state| (*state = room, true));
        let mut slow = Turn::Last;
        assert!(!take(&shared, Waker::noop(), &mut slow));
        // Another one is polled only when there is something, twice each time.
        give(2);
        for _ in 0..2 {
            let mut turn = Turn::Last;
            assert!((0..2).any(|_| take(&shared, Waker::noop(), &mut turn)));
        }
        let mut other = Turn::Last;
        assert!(!take(&shared, Waker::noop(), &mut other));
        assert!(!take(&shared, Waker::noop(), &mut slow), "it is here");
        give(1);
        assert!(!take(&shared, Waker::noop(), &mut other), "steps back");
        assert!(take(&shared, Waker::noop(), &mut slow));
    }

    #[test]
    fn waits_that_are_dropped_do_not_make_others_slow() {
        let shared = Shared::<NoopRawMutex, u32>::new(0);
        let mut polls = 0;
        for _ in 0..1000 {
            for _ in 0..3 {
                assert!(!take(&shared, Waker::noop(), &mut Turn::Last.clone()));
            }
            shared.drive(|room| (*room += 5, true));
            for _ in 0..5 {
                let mut turn = Turn::Last;
                polls += (1..).find(|_| take(&shared, Waker::noop(), &mut turn)).unwrap();
            }
        }
        // The first few after a dropped one step back.
        assert!(polls <= 5000 + 2 * 1000, "{polls}");
    }

    #[test]
    fn a_wait_that_is_never_polled_again_holds_nobody_up() {
        let shared = Shared::<NoopRawMutex, u32>::new(0);
        let mut parked = Turn::Last;
        assert!(!take(&shared, Waker::noop(), &mut parked));
        shared.drive(|room| {
            *room = 50;
            ((), true)
        });
        for _ in 0..50 {
            let mut turn = Turn::Last;
            assert!((0..2).any(|_| take(&shared, Waker::noop(), &mut turn)));
        }
    }
}
