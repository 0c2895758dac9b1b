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
pub mod consumer;
#[cfg(feature = "async")]
pub mod drive;
mod handshake;
pub mod http;
mod lookupd_query;
pub mod name;
pub mod nsqd;
pub mod nsqlookupd;
pub mod publisher;
pub mod registration;
pub mod reject;
pub mod session;
pub mod time;
pub mod wire;
