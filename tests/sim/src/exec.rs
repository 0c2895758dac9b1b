//! The executor: which futures have to be polled, and why.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Wake, Waker};

/// Why a future is polled: one bit of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    /// The future woke itself, or another future with the same shared state woke it.
    Own = 1,
    /// Its transport has news, or its dial was decided.
    Io = 2,
    /// The deadline that it asked for has come.
    Alarm = 4,
    /// It is new, the application called the handle, or its clock jumped.
    Application = 8,
}

thread_local! {
    static CAUSE: Cell<Cause> = const { Cell::new(Cause::Own) };
    static WOKEN: Cell<bool> = const { Cell::new(false) };
}

/// Returns whether any future was woken since the last call.
pub(crate) fn take_woken() -> bool {
    WOKEN.replace(false)
}

/// Runs `f`; futures that it wakes are woken for this cause.
pub(crate) fn because<R>(cause: Cause, f: impl FnOnce() -> R) -> R {
    /// Restores the cause, also if `f` panics.
    struct Reset(Cause);
    impl Drop for Reset {
        fn drop(&mut self) {
            CAUSE.set(self.0);
        }
    }
    let _reset = Reset(CAUSE.replace(cause));
    f()
}

/// Runs `f`; futures that it wakes are woken by the application.
pub(crate) fn application<R>(f: impl FnOnce() -> R) -> R {
    because(Cause::Application, f)
}

#[derive(Default)]
struct Flag {
    ready: AtomicBool,
    causes: AtomicU8,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.causes.fetch_or(CAUSE.get() as u8, Ordering::Relaxed);
        self.ready.store(true, Ordering::Relaxed);
        WOKEN.set(true);
    }
}

/// The futures of one process, each polled on its own, and counters about the first, which is the
/// runner.
pub(crate) struct Units {
    flags: Vec<Arc<Flag>>,
    /// The number of the runner's sessions, each with an alarm.
    sessions: u32,
    /// Successive polls that came from an alarm and changed nothing.
    fruitless: Cell<u32>,
    /// True if the last poll changed something.
    fruitful: Cell<bool>,
    /// The time of the last poll, the polls at that time, and those since something changed.
    polls: Cell<Polls>,
}

#[derive(Clone, Copy, Default)]
struct Polls {
    at: u64,
    all: u32,
    fruitless: u32,
}

/// The most polls of a process at one point in virtual time while its runner changes nothing.
const FRUITLESS_MAX: u32 = 5000;

/// The most polls of a process at one point in virtual time, whatever they change. After a clock
/// jump much is due at once, and may be written byte by byte.
const POLLS_MAX: u32 = 100_000;

impl Units {
    pub(crate) fn new(units: usize, sessions: u32) -> Self {
        let flags = (0..units).map(|_| Arc::default()).collect();
        Self {
            flags,
            sessions,
            fruitless: Cell::new(0),
            fruitful: Cell::new(false),
            polls: Cell::default(),
        }
    }

    pub(crate) fn wake(&self, unit: usize) {
        application(|| self.flags[unit].wake_by_ref());
    }

    pub(crate) fn wake_all(&self) {
        (0..self.flags.len()).for_each(|unit| self.wake(unit));
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.flags.iter().any(|flag| flag.ready.load(Ordering::Relaxed))
    }

    pub(crate) fn waker(&self, unit: usize) -> Waker {
        Waker::from(self.flags[unit].clone())
    }

    /// Returns the next unit to poll and its causes.
    pub(crate) fn take(&self, now: u64) -> Option<(usize, u8)> {
        let unit = self.flags.iter().position(|flag| flag.ready.swap(false, Ordering::Relaxed))?;
        let Polls { at, all, fruitless } = self.polls.get();
        let (all, fruitless) = if at == now { (all + 1, fruitless + 1) } else { (1, 1) };
        self.polls.set(Polls { at: now, all, fruitless });
        let ends = all < POLLS_MAX && fruitless < FRUITLESS_MAX;
        assert!(ends, "polled without end while the time stands still");
        Some((unit, self.flags[unit].causes.swap(0, Ordering::Relaxed)))
    }

    /// Checks a poll of the runner: every wakeup must have a reason.
    pub(crate) fn judge(&self, causes: u8, changed: bool) {
        let before = self.fruitful.replace(changed);
        if changed {
            self.polls.set(Polls { fruitless: 0, ..self.polls.get() });
        }
        if changed || causes & (Cause::Io as u8 | Cause::Application as u8) != 0 {
            self.fruitless.set(0);
            return;
        }
        if causes & Cause::Alarm as u8 == 0 {
            // The runner yields after a number of rounds; its next poll may find nothing left.
            assert!(before, "the runner woke itself and changed nothing");
            return;
        }
        // An alarm that is no longer due may fire once per session.
        self.fruitless.set(self.fruitless.get() + 1);
        assert!(self.fruitless.get() <= self.sessions, "too many alarms changed nothing");
    }
}
