//! What the boards of the sensor node share.
//!
//! | module | |
//! |---|---|
//! | [`settings`] | what can be set, checked as it is typed |
//! | [`store`] | two sectors of flash: whenever power goes away, the old settings are there or the new |
//! | [`console`] | lines from a serial port and what is answered |
//! | [`crash`] | what is kept over a reset about why it came |
//! | [`life`] | whether the device still gets anywhere, or has to be reset |
//! | [`light`] | what the LED says |
//! | `firmware` (feature) | the node itself, on embassy: what a board's `main` runs |
//!
//! All but the last know no hardware and are tested on the host.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

pub mod console;
pub mod crash;
#[cfg(feature = "firmware")]
pub mod firmware;
pub mod life;
pub mod light;
pub mod settings;
pub mod store;
#[cfg(test)]
mod tests;
