//! One log for whichever is on: `defmt`, else `log`, else none.

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

/// What can be logged, by whichever it is.
#[cfg(feature = "defmt")]
pub trait Logged: core::fmt::Display + defmt::Format {}
#[cfg(feature = "defmt")]
impl<T: core::fmt::Display + defmt::Format> Logged for T {}

/// What can be logged, by whichever it is.
#[cfg(not(feature = "defmt"))]
pub trait Logged: core::fmt::Display {}
#[cfg(not(feature = "defmt"))]
impl<T: core::fmt::Display> Logged for T {}
