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
}

impl<M: RawMutex, T> Shared<M, T> {
    pub(super) const fn new(state: T) -> Self {
        Self {
            inner: Mutex::new(RefCell::new(Inner {
                state,
                runner: WakerRegistration::new(),
                waiters: Waiters(Vec::new()),
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
                inner.waiters.wake();
            }
            result
        })
    }

    /// The runner changes it; `f` says whether somebody who waits should look.
    pub(super) fn drive<R>(&self, f: impl FnOnce(&mut T) -> (R, bool)) -> Option<R> {
        self.lock(|inner| {
            let (result, news) = f(&mut inner.state);
            if news {
                inner.waiters.wake();
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
    pub(super) fn poll_wait<R>(
        &self,
        waker: &Waker,
        f: impl FnOnce(&mut T) -> (Option<R>, bool),
    ) -> Poll<R> {
        self.lock(|inner| {
            let (answer, news) = f(&mut inner.state);
            if news {
                inner.waiters.wake();
            }
            match answer {
                Some(answer) => {
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
