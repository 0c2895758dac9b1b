//! One trace for whichever log is on; payloads are never logged.

/// Traces a state change through `defmt` if on, else through `log` if on, else not at all.
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

pub(crate) use trace_state;
