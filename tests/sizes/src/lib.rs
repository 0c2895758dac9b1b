//! What surrounds the measured code in each of these firmwares: links, a work source, an executor.
//!
//! Everything that belongs to the platform, or to the other side, is in functions named `bl_*`:
//! instructions and stack below one of them do not count. Nothing here can panic, so that a panic
//! in a linked image comes from what is measured.

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

/// The next message to publish. Never ready for a while when the device rests.
pub async fn next_message() -> &'static [u8; MESSAGE] {
    poll_fn(|_| match bl::bl_message() {
        // It lives in a static.
        Some(message) => Poll::Ready(message),
        None => Poll::Pending,
    })
    .await
}

/// The message was acknowledged, or not.
pub fn done(acknowledged: bool) {
    bl::bl_done(acknowledged);
}

/// A command came.
pub fn consumed(body: &[u8]) {
    bl::bl_consumed(body.as_ptr(), body.len());
}

/// Small, as one that is not needed should be; with simulated peers it says where it was.
#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    #[cfg(feature = "peer")]
    bl::bl_panic(info.location().map_or("?", |location| location.file()));
    #[cfg(not(feature = "peer"))]
    let _ = info;
    loop {}
}
