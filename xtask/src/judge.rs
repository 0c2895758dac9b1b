//! Checks of the readings that arrived from a device.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Checks that a number of the device's output is in a range.
pub(crate) fn expect(
    numbers: &BTreeMap<String, u64>,
    name: &str,
    range: std::ops::RangeInclusive<u64>,
) -> Result<()> {
    let number = *numbers.get(name).with_context(|| format!("the device did not report {name}"))?;
    ensure!(range.contains(&number), "{name} is {number}, not in {range:?}");
    Ok(())
}

/// Checks that each reading arrived exactly once.
pub(crate) fn exactly_once(arrived: &[u32], readings: u32) -> Result<()> {
    let mut sorted = arrived.to_vec();
    sorted.sort_unstable();
    ensure!(sorted.iter().copied().eq(0..readings), "not each of {readings} readings once");
    Ok(())
}

/// Checks that each reading arrived, in order, except that after a lost connection the next one
/// begins with the first reading without acknowledgement. Returns the number of duplicates, at most
/// as many as the device reported.
pub(crate) fn at_least_once(
    arrived: &[u32],
    readings: u32,
    numbers: &BTreeMap<String, u64>,
) -> Result<u64> {
    let number = |name: &str| numbers.get(name).copied().unwrap_or_default();
    let (mut next, mut expected, mut steps_back) = (0, 0, 0);
    for &number in arrived {
        if number != expected {
            ensure!(number < expected, "{number} came after {expected}: one is missing or late");
            steps_back += 1;
        }
        expected = number + 1;
        next = next.max(expected);
    }
    ensure!(next == readings, "{next} of {readings} readings arrived");
    let connections = number("connections");
    ensure!(steps_back < connections, "{steps_back} repetitions in {connections} connections");
    let (duplicates, possible) =
        (arrived.len() as u64 - u64::from(readings), number("possible_duplicates"));
    ensure!(duplicates <= possible, "{duplicates} duplicates, {possible} were announced");
    Ok(duplicates)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(connections: u64, possible_duplicates: u64) -> BTreeMap<String, u64> {
        [("connections", connections), ("possible_duplicates", possible_duplicates)]
            .map(|(name, number)| (name.to_owned(), number))
            .into()
    }

    #[test]
    fn missing_and_repeated_readings_are_detected() {
        assert!(exactly_once(&[0, 2, 1], 3).is_ok());
        assert!(exactly_once(&[0, 1], 3).is_err());
        assert!(exactly_once(&[0, 1, 2, 2], 3).is_err());
        assert!(exactly_once(&[0, 1, 1], 3).is_err());
    }

    #[test]
    fn a_repetition_needs_another_connection() {
        assert_eq!(at_least_once(&[0, 1, 2], 3, &numbers(1, 0)).unwrap(), 0);
        assert_eq!(at_least_once(&[0, 1, 0, 1, 2], 3, &numbers(2, 2)).unwrap(), 2);
        assert!(at_least_once(&[0, 1, 0, 1, 2], 3, &numbers(1, 2)).is_err());
        assert!(at_least_once(&[0, 1, 0, 1, 2], 3, &numbers(2, 1)).is_err(), "not announced");
    }

    #[test]
    fn missing_and_late_readings_are_detected() {
        let all = numbers(9, 9);
        for arrived in [&[0, 2, 1][..], &[1, 2], &[0, 1], &[0, 1, 2, 3], &[0, 1, 0, 2], &[]] {
            assert!(at_least_once(arrived, 3, &all).is_err(), "{arrived:?}");
        }
    }
}
