//! Time in the core: passed to each call, never read from a clock.
//!
//! [`Instant`] counts microseconds from an arbitrary start that the platform chooses (for example,
//! boot). All arithmetic saturates: if the clock jumps to the end of its range, deadlines become
//! due or never come, but nothing panics or wraps.

mod backoff;
#[cfg(test)]
mod tests;

use core::fmt;
use core::time::Duration;

pub(crate) use backoff::{Backoff, LASTED};

/// A point in time: microseconds since the platform's start. 64 bits last 584,000 years.
///
/// Microseconds are the tick of the common embedded time drivers: the conversion needs no 64-bit
/// division, which a Cortex-M0 has to do in software.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The start.
    pub const ZERO: Self = Self(0);
    /// Later than every other instant: a deadline that never comes.
    pub const NEVER: Self = Self(u64::MAX);

    /// Creates the instant `micros` microseconds after the start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Creates the instant `millis` milliseconds after the start; saturates.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Returns the microseconds since the start.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Returns the instant `span` later; saturates at [`Instant::NEVER`].
    #[must_use]
    pub const fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.as_micros()))
    }

    /// Returns the time from `earlier` to this instant: zero if `earlier` is later, and
    /// [`Span::MAX`] at most.
    pub const fn since(self, earlier: Self) -> Span {
        Span::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::NEVER => f.write_str("never"),
            Self(us) => write!(f, "{}.{:06}s", us / 1_000_000, us % 1_000_000),
        }
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Instant {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=u64:us}", self.0);
    }
}

/// A length of time in whole milliseconds, at most 49 days.
///
/// Half the size of [`core::time::Duration`], and without nanoseconds to normalise: settings and
/// the protocols use milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(u32);

impl Span {
    /// No time.
    pub const ZERO: Self = Self(0);
    /// The longest span: 2^32 - 1 ms, 49.7 days.
    pub const MAX: Self = Self(u32::MAX);

    /// Creates a span of `millis` milliseconds.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis)
    }

    /// Creates a span of `secs` seconds; saturates.
    pub const fn from_secs(secs: u32) -> Self {
        Self(secs.saturating_mul(1000))
    }

    const fn from_micros(micros: u64) -> Self {
        let millis = micros / 1000;
        if millis > u32::MAX as u64 { Self::MAX } else { Self(millis as u32) }
    }

    /// Returns the milliseconds.
    pub const fn as_millis(self) -> u32 {
        self.0
    }

    /// Doubles the span `times` times; saturates.
    fn doubled(self, times: u8) -> Self {
        // Not with a shift of 64 bits, a function of its own on a small core.
        Self((0..times).fold(self.0, |grown, _| grown.saturating_add(grown)))
    }

    /// Returns the microseconds, without overflow.
    pub const fn as_micros(self) -> u64 {
        // In halves: a core without 64-bit multiplication would call a function for it.
        let low = (self.0 & 0xffff) * 1000;
        let high = (self.0 >> 16) * 1000;
        low as u64 + ((high as u64) << 16)
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_millis(span.0.into())
    }
}

impl From<Duration> for Span {
    /// Rounds up to the next millisecond, so that a short wait does not become zero; saturates.
    fn from(duration: Duration) -> Self {
        let millis = duration.as_nanos().div_ceil(1_000_000);
        Self(u32::try_from(millis).unwrap_or(u32::MAX))
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ms", self.0)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for Span {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=u32} ms", self.0);
    }
}

/// A small generator of random numbers with a seed, for jitter (xorshift32). Not for secrets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jitter(u32);

impl Jitter {
    /// Creates a generator. Each device needs another seed (its MAC or chip id), or a fleet acts in
    /// step.
    pub(crate) const fn new(seed: u32) -> Self {
        // Mixed, so that neighbouring seeds do not start alike; xorshift needs a state other than
        // 0.
        let mixed = seed.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// Returns the next number.
    pub(crate) fn next_u32(&mut self) -> u32 {
        let mut x = self.0;
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.0 = x;
        x
    }

    /// Returns a span from `low` to `high`, both included; `low` if `high` is lower.
    pub(crate) fn between(&mut self, low: Span, high: Span) -> Span {
        let width = u64::from(high.0.saturating_sub(low.0)) + 1;
        // Multiply and shift: no division.
        let offset = (u64::from(self.next_u32()) * width) >> 32;
        Span(low.0.saturating_add(offset as u32))
    }

    /// Returns `span` plus or minus at most an eighth.
    pub(crate) fn around(&mut self, span: Span) -> Span {
        let eighth = span.0 >> 3;
        self.between(Span(span.0.saturating_sub(eighth)), Span(span.0.saturating_add(eighth)))
    }
}

/// A fieldless enum that names the timers of one state machine.
pub(crate) trait TimerId: Copy + fmt::Debug + 'static {
    /// Returns the timer's index in [`Timers`], below their `N`.
    fn index(self) -> usize;
}

/// One deadline for each timer of `T`. The earliest is the next deadline of the state machine.
///
/// RAM: 8 bytes a timer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timers<T, const N: usize> {
    // `NEVER` stands for "not running": half the size of an `Option`.
    deadlines: [Instant; N],
    _ids: core::marker::PhantomData<T>,
}

impl<T: TimerId, const N: usize> Timers<T, N> {
    /// Creates timers that do not run.
    pub(crate) const fn new() -> Self {
        Self { deadlines: [Instant::NEVER; N], _ids: core::marker::PhantomData }
    }

    /// A value of zero bytes, for storage; [`stop_all`](Self::stop_all) makes it usable.
    pub(crate) const ZERO: Self =
        Self { deadlines: [Instant::ZERO; N], _ids: core::marker::PhantomData };

    /// Starts a timer, or moves its deadline.
    pub(crate) fn set(&mut self, timer: T, at: Instant) {
        if let Some(slot) = self.deadlines.get_mut(timer.index()) {
            *slot = at;
        }
    }

    /// Stops a timer.
    pub(crate) fn stop(&mut self, timer: T) {
        self.set(timer, Instant::NEVER);
    }

    /// Stops all timers.
    pub(crate) fn stop_all(&mut self) {
        self.deadlines = [Instant::NEVER; N];
    }

    /// Returns whether a timer runs.
    pub(crate) fn is_set(&self, timer: T) -> bool {
        self.get(timer) != Instant::NEVER
    }

    /// Stops the timer if it is due, and returns whether it was due.
    pub(crate) fn expired(&mut self, timer: T, now: Instant) -> bool {
        self.deadlines.get_mut(timer.index()).is_some_and(|at| expire(at, now))
    }

    /// Returns the earliest deadline; [`Instant::NEVER`] if no timer runs.
    pub(crate) fn next(&self) -> Instant {
        earliest(&self.deadlines)
    }

    /// Returns when a timer is due; [`Instant::NEVER`] if it does not run.
    #[inline]
    pub(crate) fn get(&self, timer: T) -> Instant {
        self.deadlines.get(timer.index()).copied().unwrap_or(Instant::NEVER)
    }
}

/// Returns the earliest of all deadlines. Not inlined, so that all callers share one copy.
#[inline(never)]
fn earliest(deadlines: &[Instant]) -> Instant {
    let mut next = Instant::NEVER;
    for at in deadlines {
        if *at < next {
            next = *at;
        }
    }
    next
}

/// Resets a deadline that has passed to "never", and returns whether it had passed. Not inlined:
/// a small core compares 64 bits in several steps.
#[inline(never)]
pub(crate) fn expire(at: &mut Instant, now: Instant) -> bool {
    let due = *at != Instant::NEVER && *at <= now;
    if due {
        *at = Instant::NEVER;
    }
    due
}

impl<T: TimerId, const N: usize> Default for Timers<T, N> {
    fn default() -> Self {
        Self::new()
    }
}
