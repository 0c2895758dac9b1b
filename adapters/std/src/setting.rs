//! What builders share: settings are collected, and what is wrong is said at the start.

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
use std::net::SocketAddr;
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
use std::time::{SystemTime, UNIX_EPOCH};

use nanonsq_core::address::Address;

/// Why a client did not start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is wrong; the text says which and why.
    Setting(String),
    /// A port cannot be listened on.
    Listen {
        /// The address that was given.
        address: String,
        /// The operating system's error.
        why: std::io::Error,
    },
    /// This is not called on a tokio runtime.
    NoRuntime,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setting(what) => f.write_str(what),
            Self::Listen { address, why } => write!(f, "cannot listen on {address}: {why}"),
            Self::NoRuntime => f.write_str("there is no tokio runtime here: call this in a task"),
        }
    }
}

impl std::error::Error for StartError {}

/// The first setting that is wrong.
#[derive(Debug, Clone, Default)]
pub(crate) struct Settings(Option<String>);

impl Settings {
    pub(crate) fn wrong(&mut self, what: String) {
        self.0.get_or_insert(what);
    }

    /// Adds an address to `addresses`.
    pub(crate) fn address<A>(&mut self, of: &str, address: A, addresses: &mut Vec<Address>)
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        match address.try_into() {
            Ok(address) => addresses.push(address),
            Err(why) => self.wrong(format!("address {} of {of}: {why}", addresses.len() + 1)),
        }
    }

    pub(crate) fn check(&self) -> Result<(), StartError> {
        self.0.clone().map_or(Ok(()), |what| Err(StartError::Setting(what)))
    }
}

/// Returns a time in milliseconds, the longest that there is if it is longer.
#[cfg(any(feature = "publisher", feature = "consumer"))]
pub(crate) fn span(time: std::time::Duration) -> nanonsq_core::time::Span {
    nanonsq_core::time::Span::from_millis(u32::try_from(time.as_millis()).unwrap_or(u32::MAX))
}

/// Returns a number that differs from process to process and from call to call.
pub(crate) fn random() -> u32 {
    RandomState::new().build_hasher().finish() as u32
}

/// Listens on `address`, and returns the address with its port.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub(crate) async fn listening(
    address: &str,
) -> Result<(crate::TcpListener, SocketAddr), StartError> {
    tokio::runtime::Handle::try_current().map_err(|_| StartError::NoRuntime)?;
    let listener = crate::TcpListener::bind(address).await;
    let bound = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
    match bound {
        Ok((at, listener)) => Ok((listener, at)),
        Err(why) => Err(StartError::Listen { address: address.to_owned(), why }),
    }
}

/// Returns the Unix time in nanoseconds.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub(crate) fn unix_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// Makes tables on a stack of their own: an unoptimized build moves them through it.
#[cfg(any(feature = "nsqd", feature = "nsqlookupd"))]
pub(crate) fn apart<T: Send>(make: fn() -> T) -> Result<Box<T>, String> {
    let stack = 4 * size_of::<T>() + (1 << 20);
    let made = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(stack);
        Ok(thread.spawn_scoped(scope, || Box::new(make()))?.join())
    });
    let made =
        made.map_err(|error: std::io::Error| format!("no memory for the tables: {error}"))?;
    made.map_err(|_| "no memory for the tables".to_owned())
}
