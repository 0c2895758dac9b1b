//! Helpers of the simulations.

/// A seeded random generator.
pub(crate) struct Random(u32);

impl Random {
    pub(crate) const fn new(seed: u32) -> Self {
        // xorshift needs a start other than 0; adjacent seeds should start differently.
        let mixed = seed.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// Returns any number.
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// Returns a number below `n`.
    #[allow(dead_code, reason = "not used by every test")]
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(n)) >> 32) as u32
    }

    /// Returns true with probability 1 in `n`.
    #[allow(dead_code, reason = "not used by every test")]
    pub(crate) fn one_in(&mut self, n: u32) -> bool {
        self.below(n) == 0
    }
}

/// Returns the number of lives to run: `SEEDS` of the environment, or `usual`.
#[allow(dead_code, reason = "not used by every test")]
pub(crate) fn seeds(usual: u32) -> u32 {
    std::env::var("SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(usual)
}
