//! Reduces a failing world to few steps.

use crate::run::{Failure, live};

/// Returns the steps that are needed for the same failure at the same place.
pub fn shrink(seed: u64, steps: usize, failure: &Failure) -> Vec<usize> {
    least(steps, |keep| {
        live(seed, Some(keep), false).failure.is_some_and(|other| other.place == failure.place)
    })
}

/// Returns a subset of `0..count` that still fails, found by leaving out ever smaller parts. No
/// single element of it can be left out.
fn least(count: usize, fails: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let mut keep: Vec<usize> = (0..count).collect();
    let mut part = keep.len().div_ceil(2);
    while part > 0 {
        let before = keep.len();
        let mut at = 0;
        while at < keep.len() {
            let mut fewer = keep.clone();
            fewer.drain(at..keep.len().min(at + part));
            if fails(&fewer) {
                keep = fewer;
            } else {
                at += part;
            }
        }
        // Repeat with single elements as long as that removes any.
        if part > 1 || keep.len() == before {
            part /= 2;
        }
    }
    keep
}

#[cfg(test)]
mod tests {
    use super::least;

    #[test]
    fn only_the_needed_steps_stay() {
        for needed in [&[][..], &[0], &[99], &[3, 4, 50], &[0, 25, 26, 77, 99]] {
            let fails = |keep: &[usize]| needed.iter().all(|n| keep.contains(n));
            assert_eq!(least(100, fails), needed);
        }
        // Two subsets fail: one of them is found.
        let either = |keep: &[usize]| keep.contains(&7) || (keep.contains(&1) && keep.len() > 20);
        assert_eq!(least(100, either), vec![7]);
        assert!(least(0, |_| true).is_empty());
    }
}
