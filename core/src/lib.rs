#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
// A role uses a part of what the roles share.
#![cfg_attr(
    not(all(
        feature = "publisher",
        feature = "consumer",
        feature = "registration",
        feature = "nsqd",
        feature = "nsqlookupd"
    )),
    allow(dead_code, unused_imports, unused_macros)
)]

mod macros;

pub mod address;
#[cfg(feature = "consumer")]
pub mod consumer;
#[cfg(feature = "async")]
pub mod drive;
pub mod name;
#[cfg(feature = "nsqd")]
pub mod nsqd;
#[cfg(feature = "nsqlookupd")]
pub mod nsqlookupd;
#[cfg(feature = "publisher")]
pub mod publisher;
#[cfg(feature = "registration")]
pub mod registration;
pub mod session;
pub mod time;

// Parts of the above. Tests, models and fuzzers need them; no promise of SemVer's is given for them.
// What users meet of them is re-exported where they meet it.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
#[doc(hidden)]
pub mod http;
#[doc(hidden)]
pub mod wire;
