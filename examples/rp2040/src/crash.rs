//! The record of a crash, in RAM that a start does not clear.

use core::cell::UnsafeCell;
use core::fmt;
use core::mem::MaybeUninit;

use embassy_time::Instant;
use nanonsq_board::crash::{self, Crash, Reason, Record};

struct Kept(UnsafeCell<MaybeUninit<Record>>);

// SAFETY: `with` is the only access, within a critical section on a chip of which one core runs.
unsafe impl Sync for Kept {}

#[unsafe(link_section = ".uninit.CRASH")]
static KEPT: Kept = Kept(UnsafeCell::new(MaybeUninit::uninit()));

fn with<T>(f: impl FnOnce(&mut Record) -> T) -> T {
    critical_section::with(|_| {
        // SAFETY: the critical section excludes other accesses. Every bit pattern of RAM is a valid
        // array of integers, and the volatile read keeps the compiler from assuming that the memory
        // is uninitialized.
        let mut record = unsafe { KEPT.0.get().cast::<Record>().read_volatile() };
        let result = f(&mut record);
        // SAFETY: as above.
        unsafe { KEPT.0.get().cast::<Record>().write_volatile(record) };
        result
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

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "defmt")]
    defmt::error!("{}", defmt::Display2Format(info));
    match info.location() {
        Some(at) => failed(
            Reason::Panic,
            format_args!("{}:{}: {}", crash::short(at.file()), at.line(), info.message()),
        ),
        None => failed(Reason::Panic, format_args!("{}", info.message())),
    }
    cortex_m::peripheral::SCB::sys_reset()
}

#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    // The default handler waits for a debugger for ever.
    panic!("hard fault at {:#x}, called from {:#x}", frame.pc(), frame.lr());
}
