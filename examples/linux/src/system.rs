//! What both commands ask of the operating system.

use embassy_futures::select::select;
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
