//! A failing world with as few steps as it takes.

use crate::run::{Failure, live};

/// The steps without which the same failure does not come, found by leaving out ever smaller
/// parts.
pub fn shrink(seed: u64, steps: usize, failure: &Failure) -> Vec<usize> {
    let fails = |keep: &[usize]| {
        live(seed, Some(keep), false).failure.is_some_and(|other| other.place == failure.place)
    };
    let mut keep: Vec<usize> = (0..steps).collect();
    let mut part = keep.len();
    while part > 0 {
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
        part /= 2;
    }
    keep
}
