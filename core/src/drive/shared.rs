//! A state machine that handles and a runner share.

use core::cell::RefCell;
use core::task::{Poll, Waker};

use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};
use embassy_sync::waitqueue::WakerRegistration;
use heapless::Vec;

use super::SessionCell;
use crate::session::Session;

/// How many tasks may wait on handles of one runner. With more, all get their answers, but while
/// they wait they wake each other without end: let one task wait for the others then.
pub const WAITERS_MAX: usize = 8;

/// What handles and a runner share, beside the lock.
pub(super) trait State {
    /// Differs from an earlier one when somebody who waits should look.
    type Version: PartialEq;

    /// What of it those who wait look at.
    fn version(&self) -> Self::Version;

    /// Runs `f` on session `index`, if there is one. Says whether what it changes may concern other
    /// sessions of this state.
    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool;
}

pub(super) struct Shared<M: RawMutex, T> {
    inner: Mutex<M, RefCell<Inner<T>>>,
}

struct Inner<T> {
    hub: Hub,
    state: T,
}

impl<M: RawMutex, T> Shared<M, T> {
    pub(super) const fn new(state: T) -> Self {
        Self { inner: Mutex::new(RefCell::new(Inner { hub: Hub::new(), state })) }
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

    /// Has the runner's task woken at the next change.
    pub(super) fn register(&self, waker: &Waker) {
        self.lock(|inner| inner.hub.runner.register(waker));
    }

    /// A wait is over without an answer.
    fn leave(&self, place: Place) {
        self.lock(|inner| {
            if inner.hub.queue.leave(place) {
                inner.hub.tell();
            }
        });
    }
}

impl<M: RawMutex, T: State> Shared<M, T> {
    /// The application changes it: the runner is to look.
    pub(super) fn change<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| {
            let before = inner.state.version();
            let result = f(&mut inner.state);
            inner.hub.changed(inner.state.version() != before);
            result
        })
    }

    /// As [`change`](Self::change), and who waits is to look in any case.
    pub(super) fn change_and_tell<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| {
            let result = f(&mut inner.state);
            inner.hub.changed(true);
            result
        })
    }

    /// Runs `f`, which runs one of its sessions and says whether what that changes may concern
    /// others.
    pub(super) fn with(&self, f: impl FnOnce(&mut T) -> bool) {
        self.lock(|inner| {
            let before = inner.state.version();
            let concerns_others = f(&mut inner.state);
            if inner.state.version() != before {
                if concerns_others {
                    inner.hub.runner.wake();
                }
                inner.hub.tell();
            }
        });
    }

    /// Asks `f` now and whenever there is news, until it has an answer. Cancel-safe: `f` is asked
    /// only in a poll that returns its answer.
    pub(super) fn poll_wait<R>(
        &self,
        waker: &Waker,
        place: &mut Place,
        mut f: impl FnMut(&mut T) -> Option<R>,
    ) -> Poll<R> {
        let mut answer = None;
        self.ask(waker, place, &mut |state| {
            answer = f(state);
            answer.is_some()
        });
        answer.map_or(Poll::Pending, Poll::Ready)
    }

    /// Apart, and not generic: one copy of it, whatever is asked.
    #[inline(never)]
    fn ask(&self, waker: &Waker, place: &mut Place, f: &mut dyn FnMut(&mut T) -> bool) {
        self.lock(|inner| {
            if inner.hub.enter(place, waker) {
                let before = inner.state.version();
                let answered = f(&mut inner.state);
                let news = inner.state.version() != before;
                inner.hub.asked(place, waker, answered, news);
            }
        });
    }
}

/// One session of a state.
pub(super) struct Cell<'c, M: RawMutex, T> {
    pub(super) shared: &'c Shared<M, T>,
    pub(super) index: usize,
}

impl<M: RawMutex, T: State> SessionCell for Cell<'_, M, T> {
    fn with(&self, f: &mut dyn FnMut(&mut dyn Session)) {
        self.shared.with(|state| state.with(self.index, f));
    }

    fn register(&self, waker: &Waker) {
        self.shared.register(waker);
    }
}

/// Who is to be woken: the same for every state, so that there is one copy of it.
struct Hub {
    runner: WakerRegistration,
    waiters: Waiters,
    queue: Queue,
}

impl Hub {
    const fn new() -> Self {
        Self { runner: WakerRegistration::new(), waiters: Waiters(Vec::new()), queue: Queue::new() }
    }

    /// There is news for those who wait.
    fn tell(&mut self) {
        self.queue.news = self.queue.news.wrapping_add(1);
        self.waiters.wake();
    }

    /// A handle changed something.
    fn changed(&mut self, news: bool) {
        self.runner.wake();
        if news {
            self.tell();
        }
    }

    /// A wait is polled: whether it is to be asked.
    fn enter(&mut self, place: &mut Place, waker: &Waker) -> bool {
        match self.queue.enter(place) {
            Enter::Ask => return true,
            Enter::Return => waker.wake_by_ref(),
            Enter::Wait => self.waiters.register(waker),
        }
        false
    }

    /// A wait was asked, and has its answer or has not.
    fn asked(&mut self, place: &mut Place, waker: &Waker, answered: bool, news: bool) {
        if news {
            self.changed(true);
        }
        if answered {
            // There may be something for the next one as well, and it may have taken the answer out.
            let more = self.queue.served(place);
            self.changed(more);
        } else {
            self.queue.not_served(place);
            self.waiters.register(waker);
        }
    }
}

/// A wait for something that goes to one of those who wait, in the order in which they came.
///
/// Dropped, it leaves the queue.
pub(super) struct InTurn<'a, M: RawMutex, T> {
    shared: &'a Shared<M, T>,
    place: Place,
}

impl<'a, M: RawMutex, T: State> InTurn<'a, M, T> {
    pub(super) const fn new(shared: &'a Shared<M, T>) -> Self {
        Self { shared, place: Place::New }
    }

    /// See [`Shared::poll_wait`].
    pub(super) fn poll_wait<R>(
        &mut self,
        waker: &Waker,
        f: impl FnMut(&mut T) -> Option<R>,
    ) -> Poll<R> {
        self.shared.poll_wait(waker, &mut self.place, f)
    }
}

impl<M: RawMutex, T> Drop for InTurn<'_, M, T> {
    fn drop(&mut self) {
        self.shared.leave(self.place);
    }
}

/// Who waits for something that goes to one of them. The first in the queue is asked first; who
/// was just served goes on as long as there is more, so that the messages of one task stay
/// together, then waits at the end.
///
/// Others go before the first only if it is not even polled: at each news they step back once, and
/// look whether it was asked meanwhile. So a wait that nobody polls holds nobody up.
struct Queue {
    /// The first's number, if there is one, and the number that the next one gets.
    head: u8,
    tail: u8,
    /// Who was just served goes on.
    goes_on: bool,
    /// Counts how often the first was asked in vain.
    asked: u8,
    /// Counts the news.
    news: u8,
    /// Whose wait is not over: a bit for each number from `head` on.
    waiting: u32,
}

/// A wait's place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In none, now and later.
    None,
    /// Not in the queue yet.
    New,
    /// In the queue.
    At {
        number: u8,
        /// At which news it stepped back last, and how often the first had been asked by then.
        news: u8,
        asked: u8,
    },
}

/// What a wait that is polled does.
enum Enter {
    /// It is asked.
    Ask,
    /// It is polled again once others were.
    Return,
    /// It waits for news.
    Wait,
}

impl Queue {
    const fn new() -> Self {
        Self { head: 0, tail: 0, goes_on: false, asked: 0, news: 0, waiting: 0 }
    }

    fn is_empty(&self) -> bool {
        self.waiting == 0
    }

    fn enter(&mut self, place: &mut Place) -> Enter {
        match *place {
            Place::None => return Enter::Ask,
            Place::New if self.is_empty() || self.goes_on => return Enter::Ask,
            Place::New => self.join(place, self.news.wrapping_sub(1)),
            Place::At { .. } => {}
        }
        self.goes_on = false;
        let Place::At { number, news, asked } = place else { return Enter::Ask };
        if *number == self.head {
            Enter::Ask
        } else if *news != self.news {
            (*news, *asked) = (self.news, self.asked);
            Enter::Return
        } else if *asked != self.asked {
            Enter::Wait
        } else {
            Enter::Ask
        }
    }

    /// Goes to the end of the queue. With too many there it is asked whenever it is polled.
    fn join(&mut self, place: &mut Place, news: u8) {
        let bit = 1u32.unbounded_shl(self.tail.wrapping_sub(self.head).into());
        if bit == 0 {
            *place = Place::None;
            return;
        }
        *place = Place::At { number: self.tail, news, asked: self.asked };
        self.tail = self.tail.wrapping_add(1);
        self.waiting |= bit;
    }

    /// It has its answer. Whether there are others.
    fn served(&mut self, place: &mut Place) -> bool {
        let was = core::mem::replace(place, Place::None);
        self.goes_on = was != Place::None;
        self.leave(was) || (self.goes_on && !self.is_empty())
    }

    /// It was asked in vain.
    fn not_served(&mut self, place: &mut Place) {
        if matches!(place, Place::New) {
            self.join(place, self.news);
        }
        if let Place::At { number, .. } = *place {
            self.goes_on = false;
            if number == self.head {
                self.asked = self.asked.wrapping_add(1);
            }
        }
    }

    /// It is over. Whether another one is the first now.
    fn leave(&mut self, place: Place) -> bool {
        let Place::At { number, .. } = place else { return false };
        let was = self.head;
        self.waiting &= !1u32.unbounded_shl(number.wrapping_sub(self.head).into());
        while self.head != self.tail && self.waiting & 1 == 0 {
            self.head = self.head.wrapping_add(1);
            self.waiting >>= 1;
        }
        self.head != was && !self.is_empty()
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

    /// What there is to take, and how often some was given.
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

        fn with(&mut self, _: usize, _: &mut dyn FnMut(&mut dyn Session)) -> bool {
            false
        }
    }

    fn room() -> Shared<NoopRawMutex, Room> {
        Shared::new(Room::default())
    }

    fn give(shared: &Shared<NoopRawMutex, Room>, gift: u32) {
        shared.change(|room| {
            room.left += gift;
            room.version += 1;
        });
    }

    /// Takes `cost` of what there is.
    fn take(wait: &mut InTurn<'_, NoopRawMutex, Room>, waker: &Waker, cost: u32) -> bool {
        let taken = wait.poll_wait(waker, |room| {
            let rest = room.left.checked_sub(cost);
            room.left = rest.unwrap_or(room.left);
            rest
        });
        taken.is_ready()
    }

    /// Lets loops take whatever comes, the first of them polled first always, and says how often
    /// each took its cost.
    fn shares<const N: usize>(
        one_task: bool,
        costs: [u32; N],
        gifts: impl Iterator<Item = u32>,
    ) -> [u32; N] {
        let shared = room();
        let flags: [_; N] =
            std::array::from_fn(|at| Arc::new(Flag(AtomicBool::new(at == 0 || !one_task))));
        let mut waits: [_; N] = std::array::from_fn(|_| InTurn::new(&shared));
        let mut taken = [0; N];
        for gift in gifts {
            give(&shared, gift);
            let mut polls = 0;
            while flags.iter().any(|flag| flag.0.load(Ordering::Relaxed)) {
                for at in 0..N {
                    // In one task, all are polled whenever it is woken.
                    let flag = &flags[if one_task { 0 } else { at }];
                    let polled = one_task && at > 0;
                    if !polled && !flag.0.swap(false, Ordering::Relaxed) {
                        continue;
                    }
                    let waker = Waker::from(flag.clone());
                    while take(&mut waits[at], &waker, costs[at]) {
                        taken[at] += 1;
                        waits[at] = InTurn::new(&shared);
                    }
                    polls += 1;
                    assert!(polls < 1000, "they wake each other without end");
                }
            }
            let most = costs.into_iter().max().unwrap();
            assert!(shared.peek(|room| room.left).unwrap() < most, "somebody could take more");
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
    fn of_many_none_is_passed_over() {
        for one_task in [false, true] {
            for gift in 1..9 {
                let taken = shares(one_task, [1; 5], std::iter::repeat_n(gift, 300));
                let fair = 300 * gift / 5;
                assert!(taken.iter().all(|n| n.abs_diff(fair) <= 3 * gift), "{taken:?} of {gift}");
            }
        }
    }

    #[test]
    fn who_needs_more_is_not_starved_by_who_needs_less() {
        for gift in 1..9 {
            let [small, large] = shares(false, [1, 5], std::iter::repeat_n(gift, 600));
            assert!(large >= 600 * gift / 5 / 4, "{small} and {large} of {gift} each time");
            assert!(small >= 40, "{small} and {large} of {gift} each time");
        }
    }

    #[test]
    fn a_wait_that_is_dropped_or_never_polled_again_holds_nobody_up() {
        for dropped in [false, true] {
            let shared = room();
            let mut parked = Some(InTurn::new(&shared));
            let mut next = InTurn::new(&shared);
            assert!(!take(parked.as_mut().unwrap(), Waker::noop(), 1));
            assert!(!take(&mut next, Waker::noop(), 1));
            let flag = Arc::new(Flag(AtomicBool::new(false)));
            assert!(!take(&mut next, &Waker::from(flag.clone()), 1));
            if dropped {
                parked = None;
                assert!(flag.0.load(Ordering::Relaxed), "its turn has come");
            }
            give(&shared, 50);
            for _ in 0..50 {
                assert!((0..2).any(|_| take(&mut next, Waker::noop(), 1)));
                next = InTurn::new(&shared);
            }
            drop(parked);
        }
    }

    /// A task that counts nothing but whether it was woken since this was last asked.
    fn task() -> (Waker, impl Fn() -> bool) {
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        (Waker::from(flag.clone()), move || flag.0.swap(false, Ordering::Relaxed))
    }

    /// Polled for the first time while others wait, it steps back once.
    fn queued(wait: &mut InTurn<'_, NoopRawMutex, Room>, waker: &Waker, cost: u32) {
        assert!(!take(wait, waker, cost));
        assert!(!take(wait, waker, cost));
    }

    #[test]
    fn who_came_first_is_asked_first() {
        let shared = room();
        let [mut first, mut second, mut third] = [(); 3].map(|()| InTurn::new(&shared));
        queued(&mut first, Waker::noop(), 1);
        queued(&mut second, Waker::noop(), 1);
        give(&shared, 1);
        for late in [&mut third, &mut second] {
            let (waker, woken) = task();
            assert!(!take(late, &waker, 1));
            assert!(woken(), "it comes back when others were asked");
        }
        assert!(take(&mut first, Waker::noop(), 1));
    }

    #[test]
    fn who_was_served_goes_on_as_long_as_there_is_more() {
        let shared = room();
        let [mut wait, mut other] = [(); 2].map(|()| InTurn::new(&shared));
        queued(&mut wait, Waker::noop(), 1);
        let (waker, woken) = task();
        queued(&mut other, &waker, 1);
        woken();
        give(&shared, 3);
        for left in (0..3).rev() {
            assert!(take(&mut wait, Waker::noop(), 1));
            assert_eq!(shared.peek(|room| room.left), Some(left));
            wait = InTurn::new(&shared);
        }
        assert!(woken());
        assert!(!take(&mut wait, Waker::noop(), 1), "no more");
        // Now it is behind the other.
        give(&shared, 1);
        assert!(!take(&mut wait, Waker::noop(), 1));
        assert!(take(&mut other, Waker::noop(), 1));
    }

    #[test]
    fn who_waits_for_something_else_is_not_woken_by_what_is_taken() {
        let shared = room();
        let (waker, woken) = task();
        let other =
            shared.poll_wait(&waker, &mut Place::None, |room| (room.left > 9).then_some(()));
        assert!(other.is_pending());
        shared.peek(|room| room.left = 2);
        for _ in 0..2 {
            assert!(take(&mut InTurn::new(&shared), Waker::noop(), 1));
            assert!(!woken());
        }
    }

    #[test]
    fn who_gives_up_wakes_others_only_if_it_was_the_first() {
        let shared = room();
        let [mut first, mut second, mut third] = [(); 3].map(|()| InTurn::new(&shared));
        let (waker, woken) = task();
        queued(&mut first, &waker, 1);
        queued(&mut second, Waker::noop(), 1);
        queued(&mut third, &waker, 1);
        woken();
        drop(second);
        assert!(!woken(), "one in the middle");
        drop(first);
        assert!(woken(), "the third is the first");
        drop(third);
        assert!(!woken(), "nobody is left");
    }

    #[test]
    fn a_full_queue_asks_whoever_comes() {
        let shared = room();
        let mut waits: Vec<_, 40> = (0..40).map(|_| InTurn::new(&shared)).collect();
        for _ in 0..3 {
            for wait in &mut waits {
                assert!(!take(wait, Waker::noop(), 1));
            }
        }
        give(&shared, 40);
        for wait in &mut waits {
            assert!((0..2).any(|_| take(wait, Waker::noop(), 1)));
        }
        assert_eq!(shared.peek(|room| room.left), Some(0));
    }
}
