//! The log: `defmt` if that feature is on, else text on the console if `log` is on, else none.

macro_rules! note {
    ($level:ident, $text:literal $(, $arg:expr)* $(,)?) => {{
        #[cfg(feature = "defmt")]
        defmt::$level!($text $(, $arg)*);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        ::log::$level!($text $(, $arg)*);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        let _ = ($(&$arg,)*);
    }};
}

pub(crate) use note;

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex;
use embassy_sync::pipe::Pipe;

/// Log lines for the console. When it is full, new lines are dropped and counted: the first lines
/// tell why there is no network.
static LINES: Pipe<CriticalSectionRawMutex, 2048> = Pipe::new();

/// Waits for bytes of the log, copies them to `buf` and returns their number.
pub(super) async fn next(buf: &mut [u8]) -> usize {
    LINES.read(buf).await
}

#[cfg(all(feature = "log", not(feature = "defmt")))]
pub use text::Text;

#[cfg(all(feature = "log", not(feature = "defmt")))]
mod text {
    use core::fmt::Write as _;
    use core::sync::atomic::{AtomicU32, Ordering};

    use embassy_time::Instant;
    use heapless::String;

    use super::LINES;

    /// The longest line in bytes; the rest is cut.
    const LINE: usize = 200;
    /// Bytes for the end of a line and for the number of lines left out.
    const SLACK: usize = 48;

    /// The logger of the console. The board installs it, since on cores without compare-and-swap
    /// that is `unsafe`.
    #[derive(Debug)]
    pub struct Text;

    impl log::Log for Text {
        fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
            metadata.level() <= log::Level::Info
        }

        fn log(&self, record: &log::Record<'_>) {
            static LEFT_OUT: AtomicU32 = AtomicU32::new(0);
            if !self.enabled(record.metadata()) {
                return;
            }
            let mut line = String::<{ LINE + SLACK }>::new();
            let left_out = LEFT_OUT.load(Ordering::Relaxed);
            if left_out > 0 {
                let _ = writeln!(line, "({left_out} lines left out)");
            }
            let ms = Instant::now().as_millis();
            let level = record.level();
            let _ = write!(line, "{:>3}.{:03} {level:5} {}", ms / 1000, ms % 1000, record.args());
            while line.len() >= LINE + SLACK {
                line.pop();
            }
            let _ = line.push('\n');
            // The capacity cannot shrink before the write: one executor, and no interrupt logs.
            if LINES.free_capacity() < line.len() {
                LEFT_OUT.store(left_out.wrapping_add(1), Ordering::Relaxed);
                return;
            }
            LEFT_OUT.store(0, Ordering::Relaxed);
            let mut rest = line.as_bytes();
            while let Ok(count @ 1..) = LINES.try_write(rest) {
                rest = rest.get(count..).unwrap_or_default();
                if rest.is_empty() {
                    break;
                }
            }
        }

        fn flush(&self) {}
    }
}
