//! The parts that the boards of the sensor node share.
//!
//! | module | |
//! |---|---|
//! | [`settings`] | the settings: parsing, checks, defaults |
//! | [`store`] | settings in two sectors of flash, safe against loss of power |
//! | [`console`] | lines from a serial port and their answers |
//! | [`crash`] | the reason of a reset, in RAM that a reset keeps |
//! | [`life`] | detects that the device hangs and must be reset |
//! | [`light`] | patterns of the LED |
//! | `firmware` (feature) | the sensor node on embassy, for the `main` of a board |
//!
//! All but the last are independent of hardware and tested on the host.

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
