//! Semihosting: arguments, log and exit.

use core::panic::PanicInfo;

use semihosting::experimental::env::Args;
use static_cell::StaticCell;

/// The longest command line, in bytes.
const ARGS_MAX: usize = 1024;

/// Returns the arguments of QEMU (`-semihosting-config arg=`) of the form `key=value`.
pub fn args() -> impl Iterator<Item = (&'static str, &'static str)> {
    static ARGS: StaticCell<Args<ARGS_MAX>> = StaticCell::new();
    let args = semihosting::experimental::env::args().ok().map(|args| &*ARGS.init(args));
    args.into_iter().flatten().filter_map(|arg| arg.ok()?.split_once('='))
}

/// Ends QEMU with an exit status.
pub fn exit(status: i32) -> ! {
    semihosting::process::exit(status)
}

/// Logs a line, or prints it if no log is on.
#[macro_export]
macro_rules! say {
    ($text:literal $(, $arg:expr)* $(,)?) => {{
        #[cfg(feature = "defmt")]
        defmt::info!($text $(, $arg)*);
        #[cfg(all(feature = "text", not(feature = "defmt")))]
        log::info!($text $(, $arg)*);
        #[cfg(not(any(feature = "text", feature = "defmt")))]
        semihosting::println!($text $(, $arg)*);
    }};
}

/// Logs an error of the configuration and ends QEMU.
#[macro_export]
macro_rules! give_up {
    ($text:literal $(, $arg:expr)* $(,)?) => {{
        $crate::say!($text $(, $arg)*);
        $crate::host::exit(2)
    }};
}

/// Installs the logger.
pub fn start_log() {
    #[cfg(all(feature = "text", not(feature = "defmt")))]
    {
        static LOG: text::Log = text::Log;
        // SAFETY: nothing else runs yet. `set_logger` requires compare-and-swap.
        let _ = unsafe { log::set_logger_racy(&LOG) };
        // SAFETY: as above.
        unsafe { log::set_max_level_racy(log::LevelFilter::Info) };
    }
}

#[cfg(all(feature = "text", not(feature = "defmt")))]
mod text {
    use embassy_time::Instant;
    use semihosting::println;

    pub(super) struct Log;

    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            true
        }

        fn log(&self, record: &log::Record<'_>) {
            let ms = Instant::now().as_millis();
            println!("{:>3}.{:03} {:5} {}", ms / 1000, ms % 1000, record.level(), record.args());
        }

        fn flush(&self) {}
    }
}

#[cfg(feature = "defmt")]
mod frames {
    use defmt_semihosting as _;

    defmt::timestamp!("{=u64:us}", embassy_time::Instant::now().as_micros());
}

#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    #[cfg(feature = "defmt")]
    defmt::error!("{}", defmt::Display2Format(info));
    #[cfg(not(feature = "defmt"))]
    semihosting::println!("{info}");
    exit(101)
}

#[cortex_m_rt::exception]
unsafe fn HardFault(frame: &cortex_m_rt::ExceptionFrame) -> ! {
    // The default handler waits for a debugger for ever.
    panic!("hard fault at {:#x}, called from {:#x}", frame.pc(), frame.lr());
}
