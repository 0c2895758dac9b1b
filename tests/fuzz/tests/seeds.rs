//! What the targets start from, and a little further, with every `cargo test`; `cargo xtask fuzz`
//! goes on from there.

use nanonsq_fuzz::mutate::{Random, mutate};
use nanonsq_fuzz::{TARGETS, take_features};

#[test]
fn every_target_takes_its_seeds_and_what_is_like_them() {
    for target in TARGETS {
        let seeds = (target.seeds)();
        let mut random = Random::new(1);
        take_features();
        for seed in &seeds {
            (target.run)(seed);
        }
        // A target that does nothing with its seeds would fuzz nothing.
        let features = take_features().len();
        assert!(features > 5, "{}: {features} features", target.name);
        for at in 0..300 {
            let other = &seeds[random.below(seeds.len())];
            (target.run)(&mutate(&mut random, &seeds[at % seeds.len()], other, 400));
        }
    }
}

/// What was found, each with what it was.
#[test]
fn what_once_failed_is_well() {
    let found: [(&str, &str); 2] = [
        // An answer to IDENTIFY with a wrong type in it was taken after all, if more of it came.
        ("json", "007b226d61785f7264795f636f756e74223a22312e222c22223a747275652c22223a307d"),
        // A 404 whose body is no chunk was a failure or an answer, by where it was split.
        (
            "lookupd_poll",
            "00485454502f312e00203430340a5472616e736665722d456e636f64696e673a6368756e6b65640a0a0a",
        ),
    ];
    for (name, digits) in found {
        let byte = |at| u8::from_str_radix(&digits[at..at + 2], 16).expect("digits");
        let bytes: Vec<u8> = (0..digits.len()).step_by(2).map(byte).collect();
        (nanonsq_fuzz::target(name).expect("a target").run)(&bytes);
    }
}

#[test]
fn each_has_a_file_for_cargo_fuzz() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
    let manifest = std::fs::read_to_string(format!("{dir}/Cargo.toml")).expect("its manifest");
    for target in TARGETS {
        let file = format!("{dir}/fuzz_targets/{}.rs", target.name);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("\"{}\"", target.name)), "{file} runs another");
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}
