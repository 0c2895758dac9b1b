//! The limit of messages in flight under pause and backoff.
//!
//! As in nsq's client guide: a failure stops all deliveries (RDY 0) for a time that doubles with
//! each further failure; then one message at a time is tried. Each success of such a message halves
//! the time, and the last one ends the backoff.
//!
//! ```text
//!          failure              time has passed
//! Open ---------------> Blocked -------------> Probing
//!   ^                      ^     failure, or      |
//!   |                      +---- success, but ----+
//!   |                            not the last     |
//!   +---------------------------------------------+
//!                   the last success
//! ```

use crate::time::{Jitter, Span};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Blocked,
    Probing,
}

#[derive(Debug)]
pub(super) struct ConsumerBackoff {
    phase: Phase,
    /// The number of failures less the number of later successes.
    level: u8,
    paused: bool,
    /// The configured max_in_flight.
    max: u16,
}

impl ConsumerBackoff {
    pub(super) const fn new(max: u16) -> Self {
        Self { phase: Phase::Open, level: 0, paused: false, max }
    }

    /// Returns the number of messages that may be in flight, at most `capacity`.
    pub(super) fn limit(&self, capacity: u16) -> u16 {
        let max = match self.phase {
            Phase::Blocked => 0,
            Phase::Probing => self.max.min(1),
            Phase::Open => self.max,
        };
        if self.paused { 0 } else { max.min(capacity) }
    }

    pub(super) fn set_max(&mut self, max: u16) {
        self.max = max;
    }

    pub(super) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Records a failure of the application. Returns the time to wait, if a wait begins now.
    pub(super) fn failed(&mut self, base: Span, cap: Span, jitter: &mut Jitter) -> Option<Span> {
        if base == Span::ZERO || self.phase == Phase::Blocked {
            // The message was delivered before the wait began, whose failure is counted.
            return None;
        }
        self.level = self.level.saturating_add(1);
        Some(self.block(base, cap, jitter))
    }

    /// Records a success of the application. Returns the time to wait, if a wait begins now.
    pub(super) fn succeeded(&mut self, base: Span, cap: Span, jitter: &mut Jitter) -> Option<Span> {
        if self.phase != Phase::Probing {
            return None;
        }
        self.level = self.level.saturating_sub(1);
        if self.level == 0 {
            self.phase = Phase::Open;
            return None;
        }
        Some(self.block(base, cap, jitter))
    }

    /// Ends the wait: one message is tried.
    pub(super) fn probe(&mut self) {
        if self.phase == Phase::Blocked {
            self.phase = Phase::Probing;
        }
    }

    fn block(&mut self, base: Span, cap: Span, jitter: &mut Jitter) -> Span {
        self.phase = Phase::Blocked;
        // The level stops where the cap is reached, which bounds the time to recover.
        let doublings = u32::from(self.level.saturating_sub(1));
        let mut high = base.as_millis();
        for _ in 0..doublings {
            if high >= cap.as_millis() {
                self.level = self.level.saturating_sub(1);
            } else {
                high = high.saturating_mul(2);
            }
        }
        let high = high.min(cap.as_millis().max(1));
        jitter.between(Span::from_millis(high.div_ceil(2)), Span::from_millis(high))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Span = Span::from_millis(100);
    const CAP: Span = Span::from_millis(1000);

    #[test]
    fn failures_double_the_wait_and_successes_halve_it() {
        let mut jitter = Jitter::new(1);
        let mut backoff = ConsumerBackoff::new(9);
        assert_eq!(backoff.limit(100), 9);
        assert_eq!(backoff.limit(5), 5);
        assert_eq!(backoff.succeeded(BASE, CAP, &mut jitter), None);
        for high in [100, 200, 400, 800, 1000, 1000] {
            let wait = backoff.failed(BASE, CAP, &mut jitter).unwrap().as_millis();
            assert!((high / 2..=high).contains(&wait), "{wait} of {high}");
            assert_eq!(backoff.limit(100), 0);
            assert_eq!(backoff.failed(BASE, CAP, &mut jitter), None, "a wait has begun");
            assert_eq!(backoff.succeeded(BASE, CAP, &mut jitter), None, "delivered before");
            backoff.probe();
            assert_eq!(backoff.limit(100), 1);
        }
        for high in [800, 400, 200, 100] {
            let wait = backoff.succeeded(BASE, CAP, &mut jitter).unwrap().as_millis();
            assert!((high / 2..=high).contains(&wait), "{wait} of {high}");
            assert!(!backoff.is_open());
            backoff.probe();
        }
        assert_eq!(backoff.succeeded(BASE, CAP, &mut jitter), None);
        assert_eq!((backoff.limit(100), backoff.is_open()), (9, true));
    }

    #[test]
    fn pause_sets_the_limit_to_zero_in_every_phase() {
        let mut jitter = Jitter::new(1);
        let mut backoff = ConsumerBackoff::new(9);
        backoff.set_paused(true);
        assert_eq!((backoff.limit(9), backoff.is_paused()), (0, true));
        let _ = backoff.failed(BASE, CAP, &mut jitter);
        backoff.probe();
        assert_eq!(backoff.limit(9), 0);
        backoff.set_paused(false);
        assert_eq!(backoff.limit(9), 1);
        backoff.set_max(0);
        assert_eq!(backoff.limit(9), 0);
    }

    #[test]
    fn a_base_of_zero_disables_backoff() {
        let mut backoff = ConsumerBackoff::new(9);
        assert_eq!(backoff.failed(Span::ZERO, CAP, &mut Jitter::new(1)), None);
        assert!(backoff.is_open());
    }
}
