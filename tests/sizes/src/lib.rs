//! The environment of the measured code in each of these firmwares: links, a work source, an
//! executor.
//!
//! Everything that belongs to the platform or to the other side is in functions named `bl_*`:
//! instructions and stack below them do not count. Nothing here can panic, so that a panic in a
//! linked image comes from the measured code.

#![cfg_attr(target_os = "none", no_std)]

#[cfg(not(feature = "peer"))]
#[path = "device.rs"]
mod bl;
#[cfg(feature = "peer")]
#[path = "peer.rs"]
mod bl;
pub mod clients;
pub mod executor;
pub mod platform;
#[cfg(feature = "nsqd")]
pub mod server;

use core::future::poll_fn;
use core::task::Poll;

/// Bytes of a message.
pub const MESSAGE: usize = 200;

/// Returns the next message to publish; pending for a while when the device rests.
pub async fn next_message() -> &'static [u8; MESSAGE] {
    poll_fn(|_| match bl::bl_message() {
        // The message is in a static.
        Some(message) => Poll::Ready(message),
        None => Poll::Pending,
    })
    .await
}

/// Reports whether the message was acknowledged.
pub fn done(acknowledged: bool) {
    bl::bl_done(acknowledged);
}

/// Reports the body of a command.
pub fn consumed(body: &[u8]) {
    bl::bl_consumed(body.as_ptr(), body.len());
}

/// Small, for a handler that is never called; with simulated peers it reports the file.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "peer")]
    bl::bl_panic(info.location().map_or("?", |location| location.file()));
    #[cfg(not(feature = "peer"))]
    let _ = info;
    loop {}
}
