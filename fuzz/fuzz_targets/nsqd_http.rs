//! See `tests/fuzz`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let target = nanonsq_fuzz::target("nsqd_http").expect("a target of that name");
    (target.run)(data);
});
