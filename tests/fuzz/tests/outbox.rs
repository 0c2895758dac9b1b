//! The outbox over random sequences of operations, with the model of the fuzz target.

use nanonsq_fuzz::Input;
use nanonsq_fuzz::mutate::Random;
use nanonsq_fuzz::outbox::sequence;

#[test]
fn agrees_with_the_model_over_random_operations() {
    let mut seen = [0; 9];
    for seed in 0..400 {
        let mut random = Random::new(seed);
        let bytes: Vec<u8> = (0..10_000).map(|_| random.below(256) as u8).collect();
        for (total, n) in seen.iter_mut().zip(sequence(&mut Input::new(&bytes))) {
            *total += n;
        }
    }
    // Each kind happened often: accepted, refused, too large, batched, wrapped, skipped, expired,
    // dropped.
    assert!(seen.iter().all(|&n| n > 100), "{seen:?}");
}
