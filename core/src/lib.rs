#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod macros;

/// The examples of the book and the front page, compiled.
#[cfg(doctest)]
mod book {
    #[doc = include_str!("../../README.md")]
    mod readme {}
    #[doc = include_str!("../../docs/src/library.md")]
    mod library {}
}

pub mod address;
pub mod busy;
pub mod consume;
pub mod directory;
#[cfg(feature = "async")]
pub mod drive;
mod get;
pub mod http;
pub mod lookup;
pub mod name;
pub mod node;
pub mod publish;
pub mod session;
mod talk;
pub mod time;
pub mod wire;
