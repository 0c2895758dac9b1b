//! A waker that counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Wake, Waker};

/// Counts how often a waker was used.
#[derive(Debug, Default)]
pub struct Wakes {
    count: AtomicUsize,
    /// Woken as well.
    next: Option<Waker>,
}

impl Wakes {
    /// Returns a counter of 0 and its waker.
    pub fn new() -> (Arc<Self>, Waker) {
        Self::of(None)
    }

    /// Returns a counter whose waker also wakes `next`.
    pub fn before(next: &Waker) -> (Arc<Self>, Waker) {
        Self::of(Some(next.clone()))
    }

    /// Returns a counter whose waker was used once, as that of a task that was not polled yet.
    pub fn woken() -> (Arc<Self>, Waker) {
        let (wakes, waker) = Self::new();
        waker.wake_by_ref();
        (wakes, waker)
    }

    fn of(next: Option<Waker>) -> (Arc<Self>, Waker) {
        let wakes = Arc::new(Self { count: AtomicUsize::new(0), next });
        (wakes.clone(), Waker::from(wakes))
    }

    /// Returns how often the waker was used since the last call.
    pub fn take(&self) -> usize {
        self.count.swap(0, Ordering::Relaxed)
    }

    /// Returns whether the waker was used since [`Wakes::take`].
    pub fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Returns whether the waker also wakes `next`.
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

/// The wakers of a server's slots, each made when it is first needed.
#[derive(Debug, Default)]
pub struct SlotWakes(Vec<Option<(Arc<Wakes>, Waker)>>);

impl SlotWakes {
    /// The waker of a slot, which wakes `task` as well.
    pub fn waker(&mut self, slot: usize, task: &Waker) -> &Waker {
        if self.0.len() <= slot {
            self.0.resize_with(slot + 1, || None);
        }
        let own = &mut self.0[slot];
        if !own.as_ref().is_some_and(|(wakes, _)| wakes.is_before(task)) {
            *own = None;
        }
        &own.get_or_insert_with(|| Wakes::before(task)).1
    }

    /// A slot whose waker was used since the slot was last returned.
    pub fn take(&mut self) -> Option<usize> {
        self.0.iter().position(|own| own.as_ref().is_some_and(|(wakes, _)| wakes.take() > 0))
    }
}
