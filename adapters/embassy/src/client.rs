//! Clients that hold all their memory in one cell each.

#[cfg(feature = "consumer")]
mod consumer;
#[cfg(feature = "publisher")]
mod publisher;

#[cfg(feature = "consumer")]
pub use consumer::{
    Connections, Consumer, ConsumerHandle, ConsumerMessage, ConsumerRunner, Listed, Lookupds,
    MessageBytes, Messages,
};
#[cfg(feature = "publisher")]
pub use publisher::{Publisher, PublisherHandle, PublisherRunner};

/// A value that is set at start. All bytes are zero before: a static needs no image in flash.
#[derive(Debug)]
#[repr(u8)]
enum Slot<T> {
    Empty = 0,
    Full(T),
}

impl<T> Slot<T> {
    fn insert(&mut self, value: T) -> &mut T {
        *self = Self::Full(value);
        loop {
            if let Self::Full(value) = self {
                break value;
            }
        }
    }
}

/// Logs at level info through `defmt` if that feature is on, else through `log` if that is on,
/// else not at all.
macro_rules! note {
    ($text:literal $(, $arg:expr)* $(,)?) => {{
        #[cfg(feature = "defmt")]
        defmt::info!($text $(, $arg)*);
        #[cfg(all(feature = "log", not(feature = "defmt")))]
        log::info!($text $(, $arg)*);
        #[cfg(not(any(feature = "defmt", feature = "log")))]
        let _ = ($(&$arg,)*);
    }};
}

use note;
