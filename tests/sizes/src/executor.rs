//! Runs a fixed number of tasks in statics, as embassy's executor does.

use core::cell::UnsafeCell;
use core::future::Future;
use core::mem::MaybeUninit;
use core::pin::Pin;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::{Context, RawWaker, RawWakerVTable, Waker};

use crate::bl;

/// Memory for one task.
#[repr(C, align(8))]
pub struct Memory<const N: usize>(UnsafeCell<MaybeUninit<[u8; N]>>);

// SAFETY: `place` is called once, from the only thread.
unsafe impl<const N: usize> Sync for Memory<N> {}

/// Returns the size of a task's future.
pub const fn size_of_task<F: Future>(_: fn() -> F) -> usize {
    size_of::<F>()
}

impl<const N: usize> Memory<N> {
    /// Returns uninitialized memory, for [`tasks`](crate::tasks).
    #[expect(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        Self(UnsafeCell::new(MaybeUninit::uninit()))
    }

    /// Creates the task in this memory.
    ///
    /// # Safety
    ///
    /// Call it once, with a task of the size that `N` was made from.
    #[expect(clippy::mut_from_ref, reason = "the caller calls it once")]
    pub unsafe fn place<F: Future<Output = ()> + 'static>(
        &'static self,
        task: fn() -> F,
    ) -> Pin<&'static mut dyn Future<Output = ()>> {
        const { assert!(align_of::<F>() <= 8) };
        let at = self.0.get().cast::<F>();
        // SAFETY: large enough and aligned, and the caller promises exclusive use.
        unsafe {
            at.write(task());
            Pin::new_unchecked(&mut *at)
        }
    }
}

/// Runs tasks for ever; a task is polled after its waker was called or an interrupt ended the wait.
pub fn run<const N: usize>(mut tasks: [Pin<&'static mut dyn Future<Output = ()>>; N]) -> ! {
    static WOKEN: [AtomicBool; 4] = [const { AtomicBool::new(true) }; 4];
    loop {
        let mut idle = true;
        for (task, woken) in tasks.iter_mut().zip(&WOKEN) {
            // Not `swap`, which a Cortex-M0 lacks; interrupts only ever end the wait.
            if woken.load(Ordering::Relaxed) {
                woken.store(false, Ordering::Relaxed);
                idle = false;
                let waker = core::mem::ManuallyDrop::new(waker(woken));
                let _ = task.as_mut().poll(&mut Context::from_waker(&waker));
            }
        }
        if idle {
            bl::bl_wait();
            for woken in &WOKEN {
                woken.store(true, Ordering::Relaxed);
            }
        }
    }
}

fn waker(woken: &'static AtomicBool) -> Waker {
    fn clone(data: *const ()) -> RawWaker {
        RawWaker::new(data, &TABLE)
    }
    fn wake(data: *const ()) {
        // SAFETY: it was a `&'static AtomicBool`.
        unsafe { &*data.cast::<AtomicBool>() }.store(true, Ordering::Relaxed);
    }
    fn drop(_: *const ()) {}
    static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake, drop);
    // SAFETY: the functions fulfill the contract of `RawWakerVTable`.
    unsafe { Waker::from_raw(RawWaker::new(core::ptr::from_ref(woken).cast(), &TABLE)) }
}

/// Defines `main`, which runs these `async fn()`s.
#[macro_export]
macro_rules! tasks {
    ($($task:path),+) => {
        #[cfg_attr(target_os = "none", cortex_m_rt::entry)]
        fn main() -> ! {
            $crate::executor::run([$({
                static MEMORY: $crate::executor::Memory<{
                    $crate::executor::size_of_task($task)
                }> = $crate::executor::Memory::new();
                // SAFETY: `main` runs once, and the size is that of this task.
                unsafe { MEMORY.place($task) }
            }),+])
        }
    };
}
