//! Makes inputs from inputs: similar ones, and smaller ones.

use nanonsq_models::random;

/// A seeded generator.
#[derive(Debug, Clone)]
pub struct Random(random::Random);

impl Random {
    /// Makes a generator from a seed.
    pub fn new(seed: u64) -> Self {
        Self(random::Random::new(seed))
    }

    /// Returns a number below `n`, which must not be 0.
    pub fn below(&mut self, n: usize) -> usize {
        self.0.below(n as u64) as usize
    }
}

/// Bytes with a meaning in one of the protocols.
const WORDS: &[&[u8]] = &[
    b"\0\0\0\0",
    b"\0\0\0\x04",
    b"\0\0\x03\xe8",
    b"\xff\xff\xff\xff",
    b"\x80\0\0\0",
    b"\n",
    b"\r\n",
    b" ",
    b"\"",
    b"\\",
    b"\\u00e9",
    b"\\ud83d\\ude00",
    b"{}",
    b"[]",
    b"{",
    b"}",
    b",",
    b":",
    b"-1",
    b"1e9",
    b"null",
    b"true",
    b"0",
    b"65536",
    b"4294967296",
    b"0\r\n\r\n",
    b"\xff",
    b"\x7f",
    b"Content-Length: ",
    b"Transfer-Encoding: chunked",
    b"\"tcp_port\":",
    b"\"producers\":[",
    b"  V1",
    b"  V2",
    b" HTTP/1.1\r\nHost: x\r\n\r\n",
    b"Expect: 100-continue\r\n",
    b"Connection: close\r\n",
];

/// Returns an input similar to `base`, perhaps with parts of `other`, no longer than `max`.
pub fn mutate(random: &mut Random, base: &[u8], other: &[u8], max: usize) -> Vec<u8> {
    let mut bytes = base.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(9) {
            0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
            2 if at < bytes.len() => {
                bytes[at] = bytes[at].wrapping_add([1, 255, 16][random.below(3)]);
            }
            3 => {
                let end = (at + 1 + random.below(16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + 1 + random.below(40)).min(bytes.len());
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len() + 1);
                bytes.splice(to..to, part);
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())];
                bytes.splice(at..at, word.iter().copied());
            }
            6 if !other.is_empty() => {
                let from = random.below(other.len());
                let end = (from + 1 + random.below(60)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            7 => {
                for _ in 0..1 + random.below(8) {
                    bytes.insert(at, random.below(256) as u8);
                }
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
    bytes.truncate(max);
    bytes
}

/// Returns the smallest failing input found by leaving out parts and making bytes 0.
pub fn minimize(input: &[u8], fails: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut least = input.to_vec();
    let mut part = least.len().div_ceil(2);
    while part > 0 {
        let before = least.len();
        let mut at = 0;
        while at < least.len() {
            let mut fewer = least.clone();
            fewer.drain(at..(at + part).min(least.len()));
            if fails(&fewer) {
                least = fewer;
            } else {
                at += part;
            }
        }
        if part > 1 || least.len() == before {
            part /= 2;
        }
    }
    for at in 0..least.len() {
        let mut simpler = least.clone();
        simpler[at] = 0;
        if least[at] != 0 && fails(&simpler) {
            least = simpler;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_needed_bytes_stay() {
        let input: Vec<u8> = (0..200).collect();
        let fails = |bytes: &[u8]| bytes.contains(&7) && bytes.iter().any(|&b| b > 150);
        let least = minimize(&input, fails);
        assert_eq!(least.len(), 2, "{least:?}");
        assert!(fails(&least));
    }

    #[test]
    fn mutants_are_bounded_and_differ() {
        let mut random = Random::new(1);
        let base = b"a base";
        let mutants: Vec<_> = (0..500).map(|_| mutate(&mut random, base, b"other", 20)).collect();
        assert!(mutants.iter().all(|mutant| mutant.len() <= 20));
        assert!(mutants.iter().filter(|mutant| mutant[..] != base[..]).count() > 450);
    }
}
