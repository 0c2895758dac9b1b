#![doc = include_str!("../README.md")]
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]
// A program with some of the roles uses only some of the shared code.
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

// Parts of the modules above, public for tests, models and fuzzers; not covered by SemVer. The
// items that users need are re-exported from the modules above.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
#[doc(hidden)]
pub mod http;
#[doc(hidden)]
pub mod wire;
