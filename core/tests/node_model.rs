//! An nsqd against a model without bounds: see `support/nsqd_world/mod.rs`.

mod support;
#[path = "support/nsqd_world/mod.rs"]
mod world;

use nanonsq_core::nsqd::Full;
use support::{Random, seeds};
use world::{Dice, live};

impl Dice for Random {
    fn below(&mut self, n: u32) -> u32 {
        Random::below(self, n)
    }

    fn is_over(&self) -> bool {
        false
    }
}

/// Runs `SEEDS` lives of 2,000 steps each, from `SEED` on.
#[test]
fn an_nsqd_agrees_with_the_model() {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    let lives = seeds(60);
    let (mut delivered, mut holds) = (0, 0);
    for seed in first..first + lives {
        let full = [Full::Refuse, Full::DropOldest, Full::DropAnswered][seed as usize % 3];
        let lived = std::panic::catch_unwind(|| live(Random::new(seed), full, 2000));
        let Ok((some, held)) = lived else { panic!("seed {seed}") };
        delivered += some;
        holds += held;
    }
    println!("{delivered} deliveries, {holds} holds");
    assert!(delivered > u64::from(lives) * 20 && holds > u64::from(lives));
}
