//! What the simulations share.

/// Seeded decisions.
pub(crate) struct Random(u32);

impl Random {
    pub(crate) const fn new(seed: u32) -> Self {
        // xorshift needs a start that is not 0; neighbouring seeds are not to start alike.
        let mixed = seed.wrapping_mul(0x9e37_79b9) ^ 0x85eb_ca6b;
        Self(if mixed == 0 { 1 } else { mixed })
    }

    /// Any number.
    pub(crate) fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    /// A number below `n`.
    #[allow(dead_code, reason = "not every test draws them so")]
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next()) * u64::from(n)) >> 32) as u32
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
