//! When to dial again.

use super::{Jitter, Span};

/// When to dial again: the one rule of every dialed connection. It counts what failed since a
/// connection was good, which is one that
///
/// - lasted for [`LASTED`], or
/// - did its work: a publisher's messages were acknowledged or finally refused, a consumer was
///   delivered a message, a query has its whole answer, a registration was all answered and stayed
///   so for a second.
///
/// | what ended | the next dial |
/// |---|---|
/// | a good connection | at once, or within the spread |
/// | a dial that failed, for the `n`th time | after `base / 2` to the lesser of `cap` and `base * 2^(n-1)` |
/// | a connection that came up and was not good | after half to all of 1 s, then 2 s, up to 16 s; with a longer base or cap, of these |
///
/// Whoever accepts connections and closes them again (a load balancer without a backend, a server
/// that refuses the handshake) is thus dialed at most seven times within 20 s, however short the
/// backoff is. Each delay is random, so that a fleet that lost its server together does not come
/// back together, and never nothing, so that a closed port is not hammered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// Dials since a connection was good.
    dials: u8,
    /// Connections since then that came up.
    short: u8,
}

/// A connection that lasted so long was good, whatever came of it.
pub(crate) const LASTED: Span = Span::from_secs(10);

/// How long to wait at most after the first connection that came up and was not good, and after any.
const SHORT_BASE: Span = Span::from_secs(1);
const SHORT_CAP: Span = Span::from_secs(16);

impl Backoff {
    /// No dial was made since a connection was good: the next is due at once.
    pub(crate) const NONE: Self = Self { dials: 0, short: 0 };
    /// The first dial is due at once, and its failure is followed by a delay.
    pub(crate) const ONE: Self = Self { dials: 1, short: 0 };

    /// As if `dials` dials had failed.
    pub(crate) fn of(dials: u8) -> Self {
        Self { dials, short: 0 }
    }

    /// The connection did its work, or lasted.
    pub(crate) fn prove_good(&mut self) {
        *self = Self::NONE;
    }

    /// Whether no dial failed since a connection was good.
    pub(crate) fn is_good(self) -> bool {
        self.dials == 0
    }

    /// Whether a dial failed that was not the first after a good connection.
    pub(crate) fn is_failing(self) -> bool {
        self.dials > 1 || self.short > 0
    }

    /// The delay before the next dial; counts it. A `cap` below `base` counts as `base`, a `base` of
    /// zero as one millisecond; `spread` is the longest delay after a good connection. `short`:
    /// since a connection was good, or since the last delay, one came up and was not good.
    #[inline(never)]
    pub(crate) fn delay(
        &mut self,
        [base, cap, spread]: [Span; 3],
        short: bool,
        jitter: &mut Jitter,
    ) -> Span {
        let Some(failed) = self.dials.checked_sub(1) else {
            self.dials = 1;
            return jitter.between(Span::ZERO, spread);
        };
        if short {
            let high = base.max(SHORT_BASE).doubled(self.short).min(cap.max(SHORT_CAP));
            self.short = self.short.saturating_add(1);
            return jitter.between(Span(high.0 / 2), high);
        }
        self.dials = self.dials.saturating_add(1);
        let base = base.max(Span(1));
        jitter.between(Span(base.0 / 2), base.doubled(failed).min(cap.max(base)))
    }
}
