//! Functions of the operating system.

#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use log::{info, warn};
use nanonsq_std::TcpListener;

pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Returns a random number.
pub(crate) fn seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}

/// Logs in nsqd's format where a server listens.
pub(crate) fn listening(what: &str, listener: &TcpListener) -> Result<(), String> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    info!("{what}: listening on {address}");
    Ok(())
}

/// Tells systemd the state of a server, if it asked for that (`Type=notify`): `READY=1`,
/// `STOPPING=1`. Does what sd_notify(3) does.
pub(crate) fn notify(state: &str) {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        #[cfg(target_os = "linux")]
        Some(name) => SocketAddr::from_abstract_name(name),
        _ => SocketAddr::from_pathname(&socket),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        warn!("NOTIFY_SOCKET {}: {error}", socket.display());
    }
}

/// Returns the port on which a server listens.
pub(crate) fn port(listener: &TcpListener) -> Result<u16, String> {
    listener.local_addr().map(|address| address.port()).map_err(|error| error.to_string())
}

/// Allows as many open files as the system lets this process have: a server has a socket for each
/// client.
pub(crate) fn open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Allocates zeroed memory of the size that a flag sets. Unused memory takes no RAM.
pub(crate) fn memory(flag: &str, bytes: usize) -> Result<Vec<u8>, String> {
    // There is no fallible allocation of zeroed memory: try memory of that size first.
    match Vec::<u8>::new().try_reserve_exact(bytes) {
        Ok(()) => Ok(vec![0; bytes]),
        Err(error) => Err(format!("{flag} {bytes}: {error}")),
    }
}

/// Returns a function that lends `count` buffers of `len` bytes. They are one piece of zeroed memory,
/// so that one which is not used takes no RAM.
pub(crate) fn buffers(count: usize, len: usize) -> impl FnMut() -> &'static mut [u8] {
    let mut buffers = vec![0; count * len].leak().chunks_exact_mut(len);
    move || buffers.next().unwrap_or_default()
}

/// A static that is lent once, for the rest of the program.
pub(crate) struct Once<T>(Mutex<T>);

impl<T> Once<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Mutex::new(value))
    }

    /// The second time it waits for ever.
    pub(crate) fn take(&'static self) -> &'static mut T {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lent: &'static mut MutexGuard<'static, T> = Box::leak(Box::new(guard));
        lent
    }
}

/// Lends a value for the rest of the program: what tables in a static borrow.
pub(crate) fn lend<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Returns the Unix time in nanoseconds.
pub(crate) fn unix_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
