//! An executor for one thread that sleeps with WFI.
//!
//! The executor of embassy-executor for Cortex-M sleeps with WFE, which QEMU treats as a NOP: an
//! idle firmware would keep a core of the host busy.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use embassy_executor::{Spawner, raw};

static WOKEN: AtomicBool = AtomicBool::new(false);
static WAKEUPS: AtomicU32 = AtomicU32::new(0);

/// Returns the number of wakes from sleep.
pub fn wakeups() -> u32 {
    WAKEUPS.load(Ordering::Relaxed)
}

#[unsafe(export_name = "__pender")]
fn pend(_: *mut ()) {
    WOKEN.store(true, Ordering::Release);
}

pub struct Executor {
    inner: raw::Executor,
    // The executor must stay on its thread.
    not_send: PhantomData<*mut ()>,
}

impl Executor {
    pub fn new() -> Self {
        Self { inner: raw::Executor::new(core::ptr::null_mut()), not_send: PhantomData }
    }

    pub fn run(&'static mut self, init: impl FnOnce(Spawner)) -> ! {
        init(self.inner.spawner());
        loop {
            WOKEN.store(false, Ordering::Relaxed);
            // SAFETY: called only here, on one thread, and never recursively.
            unsafe { self.inner.poll() };
            // A masked interrupt also ends WFI and is handled once unmasked, so no wake is lost
            // between the check and the sleep.
            cortex_m::interrupt::disable();
            if !WOKEN.load(Ordering::Acquire) {
                cortex_m::asm::dsb();
                cortex_m::asm::wfi();
                // ARMv6-M has no `fetch_add`; there is no other writer.
                WAKEUPS.store(wakeups().wrapping_add(1), Ordering::Relaxed);
            }
            // SAFETY: this is not within a critical section.
            unsafe { cortex_m::interrupt::enable() };
        }
    }
}
