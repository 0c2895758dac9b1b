//! The record of a crash, in the memory of the RTC, which a start does not clear.

use core::fmt;

use embassy_time::Instant;
use esp_hal::ram;
use nanonsq_board::crash::{self, Crash, Reason, Record, WORDS};

#[ram(unstable(rtc_fast, persistent))]
static mut KEPT: Record = [0; WORDS];

fn with<T>(f: impl FnOnce(&mut Record) -> T) -> T {
    critical_section::with(|_| {
        // SAFETY: the critical section excludes other accesses on this single core.
        f(unsafe { &mut *(&raw mut KEPT) })
    })
}

/// See [`crash::start`].
pub(crate) fn start(by_watchdog: bool) -> Option<Crash> {
    with(|record| crash::start(record, by_watchdog))
}

/// See [`crash::alive`].
pub(crate) fn alive(uptime_s: u32) {
    with(|record| crash::alive(record, uptime_s));
}

/// See [`crash::leaving`].
pub(crate) fn leaving() {
    with(crash::leaving);
}

/// See [`crash::failed`].
pub(crate) fn failed(reason: Reason, what: fmt::Arguments<'_>) {
    let uptime_s = u32::try_from(Instant::now().as_secs()).unwrap_or(u32::MAX);
    with(|record| crash::failed(record, reason, uptime_s, what));
}

/// Also handles exceptions of the core, which esp-hal turns into panics.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => failed(
            Reason::Panic,
            format_args!("{}:{}: {}", crash::short(at.file()), at.line(), info.message()),
        ),
        None => failed(Reason::Panic, format_args!("{}", info.message())),
    }
    esp_hal::system::software_reset()
}
