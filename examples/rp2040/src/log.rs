//! The destination of the log.

#[cfg(feature = "defmt")]
mod frames {
    use defmt_rtt as _;

    defmt::timestamp!("{=u64:us}", embassy_time::Instant::now().as_micros());
}

/// Installs the logger.
pub(crate) fn start() {
    #[cfg(all(feature = "text", not(feature = "defmt")))]
    {
        static LOG: nanonsq_board::firmware::Text = nanonsq_board::firmware::Text;
        // SAFETY: nothing else runs yet. `set_logger` requires compare-and-swap.
        let _ = unsafe { log::set_logger_racy(&LOG) };
        // SAFETY: as above.
        unsafe { log::set_max_level_racy(log::LevelFilter::Info) };
    }
}
