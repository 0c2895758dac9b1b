//! The executor: who is to be polled, and why.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Wake, Waker};

/// Why somebody is polled; a set of bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Cause {
    /// It woke itself, or those it shares its state with did.
    Own = 1,
    /// Its transport moved, or its dial was decided.
    Io = 2,
    /// The time came that it had asked for.
    Alarm = 4,
    /// It is new, the application did something, or its clock jumped.
    Application = 8,
}

thread_local! {
    static CAUSE: Cell<Cause> = const { Cell::new(Cause::Own) };
    static WOKEN: Cell<bool> = const { Cell::new(false) };
}

/// Whether anybody was woken since this was last asked.
pub(crate) fn take_woken() -> bool {
    WOKEN.replace(false)
}

/// Whoever `f` wakes is woken because of that.
pub(crate) fn because<R>(cause: Cause, f: impl FnOnce() -> R) -> R {
    /// Also if a world ends within `f`.
    struct Reset(Cause);
    impl Drop for Reset {
        fn drop(&mut self) {
            CAUSE.set(self.0);
        }
    }
    let _reset = Reset(CAUSE.replace(cause));
    f()
}

/// Whoever `f` wakes is woken by an application.
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

/// The futures of one process that are polled each by itself, and its accounts of the first, which
/// is the runner.
pub(crate) struct Units {
    flags: Vec<Arc<Flag>>,
    /// How many sessions the runner has, each with an alarm.
    sessions: u32,
    /// Polls in a row that changed nothing and came from an alarm.
    fruitless: Cell<u32>,
    /// The last poll changed something.
    fruitful: Cell<bool>,
    /// When it was polled last, how often then, and how often since something changed.
    polls: Cell<Polls>,
}

#[derive(Clone, Copy, Default)]
struct Polls {
    at: u64,
    all: u32,
    fruitless: u32,
}

/// No process polls its futures more often than this while the time stands still and its runner
/// changes nothing.
const FRUITLESS_MAX: u32 = 5000;

/// No process polls its futures more often than this while the time stands still, whatever comes
/// of it. After a jump of its clock much is due at once, and may be written a byte at a time.
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

    /// The next one to poll, and why.
    pub(crate) fn take(&self, now: u64) -> Option<(usize, u8)> {
        let unit = self.flags.iter().position(|flag| flag.ready.swap(false, Ordering::Relaxed))?;
        let Polls { at, all, fruitless } = self.polls.get();
        let (all, fruitless) = if at == now { (all + 1, fruitless + 1) } else { (1, 1) };
        self.polls.set(Polls { at: now, all, fruitless });
        let ends = all < POLLS_MAX && fruitless < FRUITLESS_MAX;
        assert!(ends, "polled without end while the time stands still");
        Some((unit, self.flags[unit].causes.swap(0, Ordering::Relaxed)))
    }

    /// Judges a poll of the runner: every wakeup has its reason.
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
            // After so many rounds it lets others run, and then may find that it was done.
            assert!(before, "the runner woke itself and did nothing");
            return;
        }
        // An alarm that is no longer due may come once for each session.
        self.fruitless.set(self.fruitless.get() + 1);
        assert!(self.fruitless.get() <= self.sessions, "woken by alarms that are for nothing");
    }
}
