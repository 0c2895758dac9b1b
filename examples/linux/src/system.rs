//! What the commands ask of the operating system.

use std::time::{SystemTime, UNIX_EPOCH};

use embassy_futures::select::select;
use log::info;
use nanonsq_std::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Waits for so many of Ctrl-C, or of what service managers send instead.
pub(crate) async fn interrupts(count: usize) {
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = signals else {
        // Without signals the program just cannot be interrupted gracefully.
        return std::future::pending().await;
    };
    for _ in 0..count {
        select(interrupt.recv(), terminate.recv()).await;
    }
}

pub(crate) fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Another number for each process.
pub(crate) fn seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}

/// Says, in nsqd's words, where it listens; the port.
pub(crate) fn listening(what: &str, listener: &TcpListener) -> Result<u16, String> {
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    info!("{what}: listening on {address}");
    Ok(address.port())
}

/// In nanoseconds.
pub(crate) fn unix_time() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
