//! Sessions: one side of one connection as a state machine without I/O.
//!
//! [`contract`] has the trait that every session implements and the loop that a driver runs; read
//! it first. `error` has the reasons for which a connection ends. The other modules hold parts
//! that several sessions share: the bytes to write, the life of a dialed connection, the handshake
//! of a client with nsqd, a query to an nsqlookupd, and the session that rejects a caller.

pub mod contract;
#[cfg(any(feature = "publisher", feature = "consumer", feature = "registration"))]
pub(crate) mod dialed;
mod error;
#[cfg(any(feature = "publisher", feature = "consumer"))]
pub(crate) mod handshake;
#[cfg(any(feature = "consumer", feature = "nsqd"))]
pub(crate) mod lookupd_query;
// Public for tests that compare the answer that a rejected caller receives; no part of the API.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
#[doc(hidden)]
pub mod reject;
pub(crate) mod staging;

pub use crate::wire::DecodeError;
pub use crate::wire::http::BadAnswer;
pub use crate::wire::nsqd::ErrorCode;
pub use contract::{DRAINS_MAX, Link, Session, Transmit, Upgrade};
#[cfg(any(feature = "publisher", feature = "consumer", feature = "registration"))]
pub use dialed::LinkState;
pub use error::{Awaited, Closed, DialError, Fault, TransportError};
