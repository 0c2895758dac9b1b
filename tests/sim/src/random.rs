//! The harness's generator, with what a simulation asks of it.

#[path = "../../src/random.rs"]
#[allow(unreachable_pub, reason = "the harness shows it to its own tests")]
mod generator;

/// Numbers that depend on nothing but the seed.
#[derive(Debug, Clone)]
pub struct Random(generator::Random);

impl Random {
    /// Seeded.
    pub fn new(seed: u64) -> Self {
        Self(generator::Random::new(seed))
    }

    /// A number in `0..bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0.below(bound)
    }

    /// A number from `low` to `high`, both included.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Another generator: what it gives does not depend on how often this one is asked later.
    pub fn fork(&mut self) -> Self {
        Self::new(self.0.next())
    }
}
