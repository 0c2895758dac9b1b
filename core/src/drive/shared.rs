//! The lock layer: a state machine that handles and a runner share.
//!
//! A handle's call and each step of the runner hold the lock while they run, never across an await.
//! If the state changed, the [`Waiters`] are woken.

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

    /// Returns a value that changes whenever a waiting task should check its condition again.
    fn version(&self) -> Self::Version;
}

/// A state machine with numbered sessions.
pub(super) trait WithSessions: State {
    /// Runs `f` on session `index`, if it exists. Returns whether the call may have created work
    /// for other sessions of this state.
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

    /// Returns the state without locking; `self` is borrowed exclusively.
    pub(super) fn get_mut(&mut self) -> &mut T {
        &mut self.inner.get_mut().get_mut().state
    }

    /// Runs `f` under the lock. Returns `None` without running `f` if called within another `f`.
    fn lock<R>(&self, f: impl FnOnce(&mut Inner<T>) -> R) -> Option<R> {
        self.inner.lock(|inner| inner.try_borrow_mut().ok().map(|mut inner| f(&mut inner)))
    }

    /// Runs `f` on the state and wakes no task.
    pub(super) fn read<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| f(&mut inner.state))
    }

    /// Registers the runner's waker for the next change.
    pub(super) fn register_runner(&self, waker: &Waker) {
        self.lock(|inner| inner.waiters.register_runner(waker));
    }
}

impl<M: RawMutex, T: State> Shared<M, T> {
    /// Runs `f` on the state for a handle and wakes the runner, and the waiting tasks if the
    /// [version](State::version) changed.
    pub(super) fn update<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| {
            let before = inner.state.version();
            let result = f(&mut inner.state);
            inner.waiters.on_handle_change(inner.state.version() != before);
            result
        })
    }

    /// As [`update`](Self::update), but always wakes the waiting tasks.
    pub(super) fn update_and_wake_tasks<R>(&self, f: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.lock(|inner| {
            let result = f(&mut inner.state);
            inner.waiters.on_handle_change(true);
            result
        })
    }

    /// Runs `f` on the state for the runner. `f` runs a session and returns whether that may have
    /// created work for other sessions.
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

    /// Checks `f`; ready with its answer. Otherwise wakes `task` at the next change. Cancel-safe if
    /// `f` takes nothing from the state when it returns `None`.
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

    /// Not generic over the answer: a program links one copy for all conditions.
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

/// A wait in the queue: waits are served in the order in which they were first polled. Dropping it
/// leaves the queue.
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

/// Access to one session of a state behind a lock.
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

/// An `Option` whose empty variant has the tag 0, so that empty resources in a static lie in zeroed
/// memory and need no image in flash.
#[derive(Debug)]
#[repr(u8)]
pub(super) enum OnceCell<T> {
    Empty,
    Full(T),
}

impl<T> OnceCell<T> {
    pub(super) fn insert(&mut self, value: T) -> &mut T {
        *self = Self::Full(value);
        // `self` is full, so the loop ends at once; the compiler sees that and links no panic.
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
