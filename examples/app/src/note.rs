//! Logs through `defmt` if that feature is on, else through `log` if that is on, else not at all.

macro_rules! note {
    ($level:ident, $text:literal $(, $arg:expr)* $(,)?) => {{
        #[cfg(feature = "defmt")]
        defmt::$level!($text $(, $arg)*);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        log::$level!($text $(, $arg)*);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        let _ = ($(&$arg,)*);
    }};
}

pub(crate) use note;

/// A value that `defmt` and `log` can log.
#[cfg(feature = "defmt")]
pub trait Logged: core::fmt::Display + defmt::Format {}
#[cfg(feature = "defmt")]
impl<T: core::fmt::Display + defmt::Format> Logged for T {}

/// A value that `log` can log.
#[cfg(not(feature = "defmt"))]
pub trait Logged: core::fmt::Display {}
#[cfg(not(feature = "defmt"))]
impl<T: core::fmt::Display> Logged for T {}
