//! What once failed; and that each target can be run by cargo-fuzz. That all of them take their
//! seeds and their corpus is among the core's own tests (`core/tests/targets.rs`).

use nanonsq_fuzz::TARGETS;

/// What was found, each with what it was.
#[test]
fn what_once_failed_is_well() {
    let found: [(&str, &str); 3] = [
        // An answer to IDENTIFY with a wrong type in it was taken after all, if more of it came.
        ("json", "007b226d61785f7264795f636f756e74223a22312e222c22223a747275652c22223a307d"),
        // A host `[` was taken, and dialed.
        (
            "lookupd_poll",
            "00485454502f312e00203230300a0a7b2270726f647563657273223a5b7b2262726f6164636173745f616464\
             72657373223a225b222c227463705f706f7274223a337d5d7d",
        ),
        // A 404 whose body is no chunk was a failure or an answer, by where it was split.
        (
            "lookupd_poll",
            "00485454502f312e00203430340a5472616e736665722d456e636f64696e673a6368756e6b65640a0a0a",
        ),
    ];
    for (name, digits) in found {
        let bytes = nanonsq_fuzz::read_hex(digits).expect("digits");
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
