//! When to dial again.

use super::{Jitter, Span};

/// The rule for when a dialed connection is dialed again, the same for all. Counts the failures
/// since the last good connection. A connection is good if it
///
/// - lasted for [`LASTED`], or
/// - was useful: a publisher's messages were acknowledged or rejected, a consumer received a
///   message, a query received its whole answer, or all registrations were answered and the
///   connection stayed up for a second.
///
/// | what ended | the next dial |
/// |---|---|
/// | a good connection | at once, or within the spread |
/// | a dial that failed, for the `n`th time | after `base / 2` to the lesser of `cap` and `base * 2^(n-1)` |
/// | a connection that came up and was not good | after half to all of 1 s, then 2 s, up to 16 s; with a longer base or cap, of these |
///
/// So a server that accepts connections and closes them again (a load balancer without a backend,
/// a server that refuses the handshake) is dialed at most seven times within 20 s, however short
/// the backoff is. Each delay is random, so that the nodes of a fleet that lost their server
/// together do not dial together; after a failure it is never zero, so that a closed port is not
/// dialed without a pause.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Backoff {
    /// Dials since the last good connection.
    dials: u8,
    /// Connections since then that came up and were not good.
    short: u8,
}

/// A connection that lasted this long is good, useful or not.
pub(crate) const LASTED: Span = Span::from_secs(10);

/// The longest delay after the first connection that came up and was not good, and after any.
const SHORT_BASE: Span = Span::from_secs(1);
const SHORT_CAP: Span = Span::from_secs(16);

impl Backoff {
    /// No dial was made since the last good connection: the next dial is due at once.
    pub(crate) const NONE: Self = Self { dials: 0, short: 0 };
    /// The first dial is due at once; after its failure there is a delay.
    pub(crate) const ONE: Self = Self { dials: 1, short: 0 };

    /// Creates the state after `dials` dials without a good connection.
    pub(crate) fn of(dials: u8) -> Self {
        Self { dials, short: 0 }
    }

    /// Notes that the connection was good.
    pub(crate) fn prove_good(&mut self) {
        *self = Self::NONE;
    }

    /// Returns whether no dial was made since the last good connection.
    pub(crate) fn is_good(self) -> bool {
        self.dials == 0
    }

    /// Returns whether a dial failed that was not the first after a good connection.
    pub(crate) fn is_failing(self) -> bool {
        self.dials > 1 || self.short > 0
    }

    /// Returns the delay before the next dial, and counts that dial. A `cap` below `base` counts as
    /// `base`, a `base` of zero as 1 ms; `spread` is the longest delay after a good connection.
    /// `short` is true if a connection came up and was not good since the last good one or the last
    /// delay.
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
