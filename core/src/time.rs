//! Time as the core sees it: given, never read.
//!
//! [`Instant`] counts microseconds from an arbitrary start that the platform chooses (boot, say).
//! All arithmetic saturates: a clock that jumps to the end of its range makes deadlines due or
//! never, it does not panic or wrap.

mod backoff;
#[cfg(test)]
mod tests;

use core::fmt;
use core::time::Duration;

pub(crate) use backoff::{Backoff, LASTED};

/// A point in time: microseconds since the platform's start. 64 bits last 584,000 years.
///
/// Microseconds, because that is the tick of the common embedded time drivers: converting from it
/// costs no 64-bit division, which a Cortex-M0 does in software.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The platform's start.
    pub const ZERO: Self = Self(0);
    /// Later than everything: a deadline here is "never".
    pub const NEVER: Self = Self(u64::MAX);

    /// `micros` after the start.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// `millis` after the start; saturates.
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1000))
    }

    /// Microseconds since the start.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// This point plus a time span; saturates at [`Instant::NEVER`].
    #[must_use]
    pub const fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.as_micros()))
    }

    /// The time from `earlier` to this point, or zero if it lies after; a gap of more than
    /// [`Span::MAX`] is that.
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
/// Half the size of [`core::time::Duration`] and no nanoseconds to normalise: configuration and
/// the wire speak milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Span(u32);

impl Span {
    /// No time.
    pub const ZERO: Self = Self(0);
    /// The longest span: 2^32 - 1 ms, 49.7 days.
    pub const MAX: Self = Self(u32::MAX);

    /// `millis` milliseconds.
    pub const fn from_millis(millis: u32) -> Self {
        Self(millis)
    }

    /// `secs` seconds; saturates.
    pub const fn from_secs(secs: u32) -> Self {
        Self(secs.saturating_mul(1000))
    }

    const fn from_micros(micros: u64) -> Self {
        let millis = micros / 1000;
        if millis > u32::MAX as u64 { Self::MAX } else { Self(millis as u32) }
    }

    /// Milliseconds.
    pub const fn as_millis(self) -> u32 {
        self.0
    }

    /// Twice as long, so many times; saturates.
    fn doubled(self, times: u8) -> Self {
        let grown = u64::from(self.0) << times.min(32);
        Self(u32::try_from(grown).unwrap_or(u32::MAX))
    }

    /// Microseconds; always fits.
    pub const fn as_micros(self) -> u64 {
        // In halves: a core without a 64-bit multiplication would call a function for it.
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
    /// Rounds up to the next millisecond, so that a short wait is not none; saturates.
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

/// A small seeded generator for jitter (xorshift32). Not for secrets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jitter(u32);

impl Jitter {
    /// Give every device another seed (its MAC or chip id), else a fleet moves in step.
    pub(crate) const fn new(seed: u32) -> Self {
        // Two devices with neighbouring seeds must not start alike; xorshift needs non-zero.
        let mixed = seed.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// The next number.
    pub(crate) fn next_u32(&mut self) -> u32 {
        let mut x = self.0;
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        self.0 = x;
        x
    }

    /// A span from `low` to `high`, both included; `low` if they are out of order.
    pub(crate) fn between(&mut self, low: Span, high: Span) -> Span {
        let width = u64::from(high.0.saturating_sub(low.0)) + 1;
        // Multiply and shift: no division.
        let offset = (u64::from(self.next_u32()) * width) >> 32;
        Span(low.0.saturating_add(offset as u32))
    }

    /// `span` plus or minus an eighth.
    pub(crate) fn around(&mut self, span: Span) -> Span {
        let eighth = span.0 >> 3;
        self.between(Span(span.0.saturating_sub(eighth)), Span(span.0.saturating_add(eighth)))
    }
}

/// A fieldless enum that names the timers of one state machine.
pub(crate) trait TimerId: Copy + fmt::Debug + 'static {
    /// Its index in [`Timers`], below their `N`.
    fn index(self) -> usize;
}

/// One deadline per timer of `T`; the earliest is when to tick next.
///
/// RAM: 8 bytes a timer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timers<T, const N: usize> {
    // `NEVER` is "not running": half the size of an `Option`.
    deadlines: [Instant; N],
    _ids: core::marker::PhantomData<T>,
}

impl<T: TimerId, const N: usize> Timers<T, N> {
    /// None running.
    pub(crate) const fn new() -> Self {
        Self { deadlines: [Instant::NEVER; N], _ids: core::marker::PhantomData }
    }

    /// As memory comes; for [`stop_all`](Self::stop_all) to make something of.
    pub(crate) const ZERO: Self =
        Self { deadlines: [Instant::ZERO; N], _ids: core::marker::PhantomData };

    /// Starts or moves a timer.
    pub(crate) fn set(&mut self, timer: T, at: Instant) {
        if let Some(slot) = self.deadlines.get_mut(timer.index()) {
            *slot = at;
        }
    }

    /// Stops a timer.
    pub(crate) fn stop(&mut self, timer: T) {
        self.set(timer, Instant::NEVER);
    }

    /// Stops them all.
    pub(crate) fn stop_all(&mut self) {
        self.deadlines = [Instant::NEVER; N];
    }

    /// Whether a timer runs.
    pub(crate) fn is_set(&self, timer: T) -> bool {
        self.get(timer) != Instant::NEVER
    }

    /// Stops the timer and says true if it is due.
    pub(crate) fn expired(&mut self, timer: T, now: Instant) -> bool {
        self.deadlines.get_mut(timer.index()).is_some_and(|at| expire(at, now))
    }

    /// The earliest deadline; [`Instant::NEVER`] if none runs.
    pub(crate) fn next(&self) -> Instant {
        earliest(&self.deadlines)
    }

    /// When a timer is due; [`Instant::NEVER`] if it does not run.
    #[inline]
    pub(crate) fn get(&self, timer: T) -> Instant {
        self.deadlines.get(timer.index()).copied().unwrap_or(Instant::NEVER)
    }
}

/// One copy, whoever asks.
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

/// Makes a deadline that has come "never" and says true. One copy: 64 bits are compared in several
/// steps on a small core.
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
