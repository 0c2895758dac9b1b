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
macro_rules! warn_of {
    ($text:literal) => {{
        #[cfg(feature = "defmt")]
        defmt::warn!($text);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        log::warn!($text);
    }};
}

pub(crate) use {trace_state, warn_of};
