//! A waker that counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

/// How often a waker was used.
#[derive(Debug, Default)]
pub struct Wakes {
    count: AtomicUsize,
    /// Whom it wakes in turn.
    next: Option<Waker>,
}

impl Wakes {
    /// Not woken yet, and its waker.
    pub fn new() -> (Arc<Self>, Waker) {
        Self::of(None)
    }

    /// Whose waker wakes `next` as well.
    pub fn before(next: &Waker) -> (Arc<Self>, Waker) {
        Self::of(Some(next.clone()))
    }

    /// Whose waker was used once, as that of a task which has not been polled yet.
    pub fn woken() -> (Arc<Self>, Waker) {
        let (wakes, waker) = Self::new();
        waker.wake_by_ref();
        (wakes, waker)
    }

    fn of(next: Option<Waker>) -> (Arc<Self>, Waker) {
        let wakes = Arc::new(Self { count: AtomicUsize::new(0), next });
        (wakes.clone(), Waker::from(wakes))
    }

    /// How often it was used since this was last asked.
    pub fn take(&self) -> usize {
        self.count.swap(0, Ordering::Relaxed)
    }

    /// Whether it was used since [`Wakes::take`].
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether it wakes this one in turn.
    pub fn is_before(&self, next: &Waker) -> bool {
        self.next.as_ref().is_some_and(|own| own.will_wake(next))
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.count.fetch_add(1, Ordering::Relaxed);
        if let Some(next) = &self.next {
            next.wake_by_ref();
        }
    }
}
