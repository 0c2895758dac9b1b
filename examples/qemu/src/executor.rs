//! An executor for one thread that sleeps with WFI.
//!
//! embassy-executor's own for Cortex-M sleeps with WFE, which QEMU takes for a NOP: an idle
//! firmware would keep a core of the host busy.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use embassy_executor::{Spawner, raw};

static WOKEN: AtomicBool = AtomicBool::new(false);
static WAKEUPS: AtomicU32 = AtomicU32::new(0);

/// How often the core woke up from sleep.
pub(crate) fn wakeups() -> u32 {
    WAKEUPS.load(Ordering::Relaxed)
}

#[unsafe(export_name = "__pender")]
fn pend(_: *mut ()) {
    WOKEN.store(true, Ordering::Release);
}

pub(crate) struct Executor {
    inner: raw::Executor,
    // It belongs to its thread.
    not_send: PhantomData<*mut ()>,
}

impl Executor {
    pub(crate) fn new() -> Self {
        Self { inner: raw::Executor::new(core::ptr::null_mut()), not_send: PhantomData }
    }

    pub(crate) fn run(&'static mut self, init: impl FnOnce(Spawner)) -> ! {
        init(self.inner.spawner());
        loop {
            WOKEN.store(false, Ordering::Relaxed);
            // SAFETY: only here, on one thread, and never from within itself.
            unsafe { self.inner.poll() };
            // An interrupt ends WFI also while it is masked, and is handled once it is not: none
            // can slip in between the question and the sleep.
            cortex_m::interrupt::disable();
            if !WOKEN.load(Ordering::Acquire) {
                cortex_m::asm::dsb();
                cortex_m::asm::wfi();
                // Not `fetch_add`, which ARMv6-M has not; nobody else writes.
                WAKEUPS.store(wakeups().wrapping_add(1), Ordering::Relaxed);
            }
            // SAFETY: this is no critical section of anybody's.
            unsafe { cortex_m::interrupt::enable() };
        }
    }
}
