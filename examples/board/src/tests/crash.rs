use crate::crash::{
    CRASH_REPORT_MAX, CRASH_TEXT_MAX, Reason, Record, WORDS, alive, failed, leaving, short, start,
};

/// The contents of RAM after power-on.
fn garbage(seed: u32) -> Record {
    let mut state = seed;
    core::array::from_fn(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state
    })
}

#[test]
fn the_first_start_reports_no_crash() {
    for seed in 0..1000 {
        assert_eq!(start(&mut garbage(seed), false), None);
        assert_eq!(start(&mut garbage(seed), true), None);
    }
    assert_eq!(start(&mut [0; WORDS], true), None);
    assert_eq!(start(&mut [u32::MAX; WORDS], true), None);
}

#[test]
fn a_panic_is_reported_once() {
    let mut record = garbage(1);
    start(&mut record, false);
    alive(&mut record, 41);
    failed(&mut record, Reason::Panic, 42, format_args!("main.rs:{}: {}", 7, "oops\n"));
    let crash = start(&mut record, false).expect("it panicked");
    assert_eq!((crash.reason, crash.count, crash.uptime_s), (Reason::Panic, 1, 42));
    assert_eq!(crash.text, "main.rs:7: oops ", "no control characters");
    assert_eq!(start(&mut record, false), None, "already reported");
    failed(&mut record, Reason::Stall, 3, format_args!("stuck"));
    let crash = start(&mut record, false).expect("it stalled");
    assert_eq!((crash.reason, crash.count, &*crash.text), (Reason::Stall, 2, "stuck"));
}

#[test]
fn a_watchdog_crash_has_the_last_recorded_uptime() {
    let mut record = garbage(2);
    start(&mut record, false);
    alive(&mut record, 99);
    let crash = start(&mut record, true).expect("the watchdog reset it");
    assert_eq!((crash.reason, crash.count, crash.uptime_s), (Reason::Watchdog, 1, 99));
    alive(&mut record, 5);
    assert_eq!(start(&mut record, true).map(|crash| crash.count), Some(2));
}

#[test]
fn a_reset_on_request_is_no_crash() {
    let mut record = garbage(3);
    start(&mut record, false);
    alive(&mut record, 9);
    assert_eq!(start(&mut record, false), None, "the button");
    leaving(&mut record);
    assert_eq!(start(&mut record, false), None, "a command");
    leaving(&mut record);
    assert_eq!(start(&mut record, true), None, "a reset by the watchdog's trigger");
}

#[test]
fn the_count_survives_a_reboot() {
    let mut record = garbage(4);
    start(&mut record, false);
    failed(&mut record, Reason::Panic, 1, format_args!("one"));
    start(&mut record, false);
    leaving(&mut record);
    start(&mut record, false);
    failed(&mut record, Reason::Panic, 1, format_args!("two"));
    assert_eq!(start(&mut record, false).map(|crash| crash.count), Some(2));
}

#[test]
fn any_flipped_bit_invalidates_the_record() {
    let mut record = garbage(5);
    start(&mut record, false);
    failed(&mut record, Reason::Panic, 1, format_args!("one"));
    for bit in 0..WORDS * 32 {
        let mut broken = record;
        broken[bit / 32] ^= 1 << (bit % 32);
        assert_eq!(start(&mut broken, false), None, "bit {bit}");
    }
}

#[test]
fn a_long_text_is_cut_off_at_a_character() {
    let mut record = garbage(6);
    start(&mut record, false);
    let text = "\u{e4}".repeat(200);
    failed(&mut record, Reason::Panic, 1, format_args!("{text}"));
    let crash = start(&mut record, false).expect("it panicked");
    assert_eq!(crash.text.len(), CRASH_TEXT_MAX);
    failed(&mut record, Reason::Panic, 1, format_args!("x{text}"));
    let crash = start(&mut record, false).expect("it panicked");
    assert_eq!(crash.text.len(), CRASH_TEXT_MAX - 1);
}

#[test]
fn the_longest_report_fits() {
    let mut record = garbage(7);
    start(&mut record, false);
    failed(&mut record, Reason::Watchdog, u32::MAX, format_args!(""));
    failed(&mut record, Reason::Panic, u32::MAX, format_args!("{}", "\"".repeat(200)));
    let crash = start(&mut record, false).expect("it panicked");
    let mut buf = [0; CRASH_REPORT_MAX];
    let length = serde_json_core::to_slice(&crash.report(&"n".repeat(32)), &mut buf);
    let report: serde_json::Value =
        serde_json::from_slice(&buf[..length.expect("it fits")]).expect("it is JSON");
    assert_eq!(report["crash"], "panic");
    assert_eq!(report["crashes"], 2);
    assert_eq!(report["crash_uptime_s"], u32::MAX);
    assert_eq!(report["text"].as_str().map(str::len), Some(CRASH_TEXT_MAX));
}

#[test]
fn a_crash_is_displayed_with_its_reason() {
    let mut record = garbage(8);
    start(&mut record, false);
    failed(&mut record, Reason::Stall, 7, format_args!("no more readings are taken"));
    let crash = start(&mut record, false).expect("it stalled");
    assert_eq!(crash.to_string(), "stall after 7 s, number 1: no more readings are taken");
}

#[test]
fn short_paths_begin_at_the_crate() {
    assert_eq!(
        short("/home/a/.cargo/registry/src/b/embassy-net-0.9.1/src/tcp.rs"),
        "embassy-net-0.9.1/src/tcp.rs"
    );
    assert_eq!(short("/src/main.rs"), "/src/main.rs", "the crate is unknown");
    assert_eq!(short("src/main.rs"), "src/main.rs");
    assert_eq!(short("main.rs"), "main.rs");
}
