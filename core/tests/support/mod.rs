//! Helpers of the simulations.

/// The random generator of the models, for numbers of 32 bits.
pub(crate) struct Random(nanonsq_models::random::Random);

impl Random {
    pub(crate) fn new(seed: u32) -> Self {
        Self(nanonsq_models::random::Random::new(seed.into()))
    }

    /// Returns any number.
    #[allow(dead_code, reason = "not used by every test")]
    pub(crate) fn next(&mut self) -> u32 {
        (self.0.next() >> 32) as u32
    }

    /// Returns a number below `n`.
    #[allow(dead_code, reason = "not used by every test")]
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.0.below(n.into()) as u32
    }

    /// Returns true with probability 1 in `n`.
    #[allow(dead_code, reason = "not used by every test")]
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.0.one_in(n.into())
    }
}

/// Returns the number of lives to run: `SEEDS` of the environment, or `usual`.
#[allow(dead_code, reason = "not used by every test")]
pub(crate) fn seeds(usual: u32) -> u32 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}
