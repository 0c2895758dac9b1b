//! The lock layer: a state machine that handles and a runner share.
//!
//! A handle's call and a poll of the runner each take the lock once, for as long as they run and
//! never across an await. When a call changed the state, the [`Waiters`] are told.

use core::cell::RefCell;
use core::task::{Poll, Waker};

use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};

use super::connection::SessionAccess;
use super::waiters::{QueueTicket, Waiters};
use crate::session::Session;

/// A state machine that handles and a runner share.
pub(super) trait State {
    /// See [`version`](Self::version).
    type Version: PartialEq;

    /// A value that changes whenever a waiting task should check its condition again.
    fn version(&self) -> Self::Version;
}

/// A state machine whose sessions have numbers.
pub(super) trait WithSessions: State {
    /// Runs `f` on session `index`, if there is one. Returns whether the call may have given other
    /// sessions of this state something to do.
    fn with_session(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool;
}

/// A state behind a lock.
pub(super) struct Shared<M: RawMutex, T> {
    inner: Mutex<M, RefCell<Inner<T>>>,
}

struct Inner<T> {
    waiters: Waiters,
    state: T,
}

impl<M: RawMutex, T> Shared<M, T> {
    pub(super) const fn new(state: T) -> Self {
        let waiters = Waiters::new();
        Self { inner: Mutex::new(RefCell::new(Inner { waiters, state })) }
    }

    /// The state, while nobody else can have it.
    pub(super) fn get_mut(&mut self) -> &mut T {
        &mut self.inner.get_mut().get_mut().state
    }

    /// Runs `f` under the lock. `None`, and `f` is not run, from within another `f`.
    fn lock<R>(&self, f: impl FnOnce(&mut Inner<T>) -> R) -> Option<R> {
        self.inner.lock(|inner| inner.try_borrow_mut().ok().map(|mut inner| f(&mut inner)))
    }

    /// Runs `f` on the state and wakes nobody.
    pub(super) fn read<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| f(&mut inner.state))
    }

    /// Wakes the runner's task at the next change.
    pub(super) fn register_runner(&self, waker: &Waker) {
        self.lock(|inner| inner.waiters.register_runner(waker));
    }
}

impl<M: RawMutex, T: State> Shared<M, T> {
    /// Runs `f` on the state for a handle and wakes the runner.
    pub(super) fn update<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| {
            let before = inner.state.version();
            let result = f(&mut inner.state);
            inner.waiters.on_handle_change(inner.state.version() != before);
            result
        })
    }

    /// As [`update`](Self::update), and wakes waiting tasks in any case.
    pub(super) fn update_and_wake_tasks<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| {
            let result = f(&mut inner.state);
            inner.waiters.on_handle_change(true);
            result
        })
    }

    /// Runs `f` on the state for the runner. `f` runs a session and returns whether that may have
    /// given other sessions something to do.
    pub(super) fn drive(&self, f: impl FnOnce(&mut T) -> bool) {
        self.lock(|inner| {
            let before = inner.state.version();
            let concerns_others = f(&mut inner.state);
            if inner.state.version() != before {
                if concerns_others {
                    inner.waiters.wake_runner();
                }
                inner.waiters.wake_tasks();
            }
        });
    }

    /// Checks `f` now and after each change, until it has an answer. Cancel-safe: `f` takes nothing
    /// in a poll that does not return its answer.
    pub(super) fn poll_wait<R>(&self, task: &Waker, f: impl FnMut(&mut T) -> Option<R>) -> Poll<R> {
        self.poll_ticket(task, &mut QueueTicket::Unqueued, f)
    }

    fn poll_ticket<R>(
        &self,
        task: &Waker,
        ticket: &mut QueueTicket,
        mut f: impl FnMut(&mut T) -> Option<R>,
    ) -> Poll<R> {
        let mut answer = None;
        self.check(task, ticket, &mut |state| {
            answer = f(state);
            answer.is_some()
        });
        answer.map_or(Poll::Pending, Poll::Ready)
    }

    /// Apart, and not generic over the answer: one copy of it for all conditions.
    #[inline(never)]
    fn check(&self, task: &Waker, ticket: &mut QueueTicket, f: &mut dyn FnMut(&mut T) -> bool) {
        self.lock(|inner| {
            if inner.waiters.enter(ticket, task) {
                let before = inner.state.version();
                let answered = f(&mut inner.state);
                let changed = inner.state.version() != before;
                inner.waiters.checked(ticket, task, answered, changed);
            }
        });
    }
}

/// A wait for something that only one of those who wait gets, in the order in which they came.
/// Dropped, it leaves the queue.
pub(super) struct QueuedWait<'a, M: RawMutex, T> {
    shared: &'a Shared<M, T>,
    ticket: QueueTicket,
}

impl<'a, M: RawMutex, T: State> QueuedWait<'a, M, T> {
    pub(super) const fn new(shared: &'a Shared<M, T>) -> Self {
        Self { shared, ticket: QueueTicket::New }
    }

    /// See [`Shared::poll_wait`].
    pub(super) fn poll<R>(&mut self, task: &Waker, f: impl FnMut(&mut T) -> Option<R>) -> Poll<R> {
        self.shared.poll_ticket(task, &mut self.ticket, f)
    }
}

impl<M: RawMutex, T> Drop for QueuedWait<'_, M, T> {
    fn drop(&mut self) {
        self.shared.lock(|inner| inner.waiters.leave(self.ticket));
    }
}

/// The access to one session of a state behind a lock.
pub(super) struct SessionLock<'c, M: RawMutex, T> {
    pub(super) shared: &'c Shared<M, T>,
    pub(super) index: usize,
}

impl<M: RawMutex, T: WithSessions> SessionAccess for SessionLock<'_, M, T> {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        self.shared.drive(|state| state.with_session(self.index, f));
    }

    fn register(&mut self, waker: &Waker) {
        self.shared.register_runner(waker);
    }
}

/// An `Option` of which `None` is zero: resources that are empty are memory that is cleared, not a
/// copy of an image in flash.
#[derive(Debug)]
#[repr(u8)]
pub(super) enum OnceCell<T> {
    Empty,
    Full(T),
}

impl<T> OnceCell<T> {
    pub(super) fn insert(&mut self, value: T) -> &mut T {
        *self = Self::Full(value);
        // It is full now, so this ends at once; the compiler sees that, and links no panic.
        loop {
            if let Self::Full(value) = self {
                return value;
            }
        }
    }
}

impl<M: RawMutex, T> core::fmt::Debug for Shared<M, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
