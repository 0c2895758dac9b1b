//! What the simulations share.

use nanonsq_core::time::Jitter;

/// Seeded decisions.
pub(crate) struct Random(Jitter);

impl Random {
    pub(crate) const fn new(seed: u32) -> Self {
        Self(Jitter::new(seed))
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.0.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// True once in `n` times.
    #[allow(dead_code, reason = "not every simulation draws lots")]
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

/// How many lives to live: `SEEDS`, or `usual`.
#[allow(dead_code, reason = "not every simulation lives many lives")]
pub(crate) fn seeds(usual: u32) -> u32 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}
