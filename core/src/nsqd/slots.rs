//! Tables whose cost follows what is in use.

use core::ops::{Deref, DerefMut};

/// The slots of a table. In a large nsqd only those up to the last used one are seen: whatever
/// visits all slots costs as much as is in use, and memory that a platform gives page by page is
/// used as far as slots are.
#[derive(Debug)]
pub(super) struct Slots<'a, T> {
    all: &'a mut [T],
    #[cfg(feature = "large")]
    end: usize,
}

#[cfg(not(feature = "large"))]
impl<'a, T> Slots<'a, T> {
    pub(super) fn new(all: &'a mut [T], free: impl Fn() -> T) -> Self {
        all.fill_with(free);
        Self { all }
    }

    /// Returns a slot that is not seen yet.
    pub(super) fn next(&self) -> Option<usize> {
        None
    }

    /// Makes the first `count` slots seen, at least.
    pub(super) fn show(&mut self, _count: usize, _free: impl Fn() -> T) {}

    /// Stops showing free slots at the end.
    pub(super) fn trim(&mut self, _is_used: impl Fn(&T) -> bool) {}
}

#[cfg(feature = "large")]
impl<'a, T> Slots<'a, T> {
    pub(super) fn new(all: &'a mut [T], _free: impl Fn() -> T) -> Self {
        Self { all, end: 0 }
    }

    /// Returns a slot that is not seen yet.
    pub(super) fn next(&self) -> Option<usize> {
        (self.end < self.all.len()).then_some(self.end)
    }

    /// Makes the first `count` slots seen, at least.
    pub(super) fn show(&mut self, count: usize, free: impl Fn() -> T) {
        let count = count.min(self.all.len());
        if let Some(more) = self.all.get_mut(self.end..count) {
            more.fill_with(free);
            self.end = count;
        }
    }

    /// Stops showing free slots at the end.
    pub(super) fn trim(&mut self, is_used: impl Fn(&T) -> bool) {
        self.end = self.iter().rposition(is_used).map_or(0, |last| last.saturating_add(1));
    }
}

impl<T> Deref for Slots<'_, T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        #[cfg(feature = "large")]
        return self.all.get(..self.end).unwrap_or_default();
        #[cfg(not(feature = "large"))]
        self.all
    }
}

impl<T> DerefMut for Slots<'_, T> {
    fn deref_mut(&mut self) -> &mut [T] {
        #[cfg(feature = "large")]
        return self.all.get_mut(..self.end).unwrap_or_default();
        #[cfg(not(feature = "large"))]
        self.all
    }
}
