//! See `tests/fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = nanonsq_fuzz::target("nsqlookupd_commands").expect("a target of that name");
    (target.run)(data);
});
