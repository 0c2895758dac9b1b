//! Inputs that once failed; and a check that cargo-fuzz can run each target.

use nanonsq_fuzz::TARGETS;

/// Each input with what was wrong.
#[test]
fn inputs_that_once_failed_pass() {
    let found: [(&str, &str); 7] = [
        // A response to IDENTIFY with a value of a wrong type was accepted if more of it followed.
        ("json", "007b226d61785f7264795f636f756e74223a22312e222c22223a747275652c22223a307d"),
        // A host `[` was accepted and dialed.
        (
            "consumer_lookupd",
            "00485454502f312e00203230300a0a7b2270726f647563657273223a5b7b2262726f6164636173745f616464\
             72657373223a225b222c227463705f706f7274223a337d5d7d",
        ),
        // A 404 whose body is no chunk was a failure or a response, depending on the split.
        (
            "consumer_lookupd",
            "00485454502f312e00203430340a5472616e736665722d456e636f64696e673a6368756e6b65640a0a0a",
        ),
        // A query after an invalid path was ignored, but the model parsed it.
        ("http_target", "743a3a2f2f3f25"),
        // A batch that was received as a whole and waited for room counted as announced.
        (
            "nsqd_model",
            "000a23be92b3008900001ec7ce0031332447630000711db2000054a3000000006a005366226700\
             0061a7000000000000005e5daa00004b2f4f00baa8000068890000000000001b2792003e39b300\
             0000000000003b000000640000c4004e8932d792be880000300000a99e000000dac72f00003fe7\
             87630000005d0000e00000e086000000000000578c9b00009b3f87f300003b31651d7d0000920a\
             00000000000eda9000003100b9000055a63957000092b30089cb0b001e00ceca0500069d005d4b\
             00759000f60022006d7ddebf0000005000f40021af",
        ),
        // The reference accepted a response's keys in any case, as in requests.
        ("json", "007b22223a747275652c224d73675f54696d656f7574223a307d"),
        // A message whose TOUCH left late was given up while still in flight at nsqd.
        (
            "rdy",
            "00b6000000005900230002000000010200030103000400040009010002000000020200000000320003\
             00030203000300040004000500000b0000ff00ff00ff000ac8000ac800080300010a00000ac8000ac8\
             000832000004000000010a00000ac8000ac8000832000003020300020003",
        ),
    ];
    for (name, digits) in found {
        let bytes = nanonsq_fuzz::read_hex(digits).expect("digits");
        (nanonsq_fuzz::target(name).expect("a target").run)(&bytes);
    }
}

#[test]
fn each_target_has_a_file_for_cargo_fuzz() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz");
    let manifest = std::fs::read_to_string(format!("{dir}/Cargo.toml")).expect("its manifest");
    for target in TARGETS {
        let file = format!("{dir}/fuzz_targets/{}.rs", target.name);
        let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(text.contains(&format!("\"{}\"", target.name)), "{file} runs another target");
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{}", target.name);
    }
}
