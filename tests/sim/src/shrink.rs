//! A failing world with as few steps as it takes.

use crate::run::{Failure, live};

/// The steps without which a world does not fail so.
pub fn shrink(seed: u64, steps: usize, failure: &Failure) -> Vec<usize> {
    least(steps, |keep| {
        live(seed, Some(keep), false).failure.is_some_and(|other| other.place == failure.place)
    })
}

/// Of `count` things those without which it does not fail, found by leaving out ever smaller
/// parts. None of them can be left out alone.
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
        // Once more with single ones, as long as that helps.
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
    fn what_is_needed_stays_and_nothing_else() {
        for needed in [&[][..], &[0], &[99], &[3, 4, 50], &[0, 25, 26, 77, 99]] {
            let fails = |keep: &[usize]| needed.iter().all(|n| keep.contains(n));
            assert_eq!(least(100, fails), needed);
        }
        // Two ways to fail: one of them is found.
        let either = |keep: &[usize]| keep.contains(&7) || (keep.contains(&1) && keep.len() > 20);
        assert_eq!(least(100, either), vec![7]);
        assert!(least(0, |_| true).is_empty());
    }
}
