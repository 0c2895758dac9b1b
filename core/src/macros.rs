//! Traces and warnings through the log that is enabled; payloads are never logged.

/// Traces a state change through `defmt` if enabled, else through `log` if enabled, else not at
/// all.
macro_rules! trace_state {
    ($what:expr, $old:expr, $new:expr) => {{
        #[cfg(feature = "defmt")]
        defmt::trace!("{=str}: {} -> {}", $what, $old, $new);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        log::trace!("{}: {:?} -> {:?}", $what, $old, $new);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        let _ = (&$what, &$old, &$new);
    }};
}

/// Warns through `defmt` if enabled, else through `log` if enabled, else not at all.
#[cfg(all(feature = "async", feature = "consumer"))]
macro_rules! warn_of {
    ($text:literal) => {{
        #[cfg(feature = "defmt")]
        defmt::warn!($text);
        // `log::warn!` keeps its place in the source as a panic does, of which the core has none.
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        if log::Level::Warn <= log::STATIC_MAX_LEVEL && log::Level::Warn <= log::max_level() {
            let record = log::Record::builder()
                .level(log::Level::Warn)
                .target(module_path!())
                .args(format_args!($text))
                .build();
            log::logger().log(&record);
        }
    }};
}

pub(crate) use trace_state;
#[cfg(all(feature = "async", feature = "consumer"))]
pub(crate) use warn_of;
