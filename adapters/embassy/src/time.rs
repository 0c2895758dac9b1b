//! Time from embassy-time.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll};

use embassy_time::{TICK_HZ, Timer};
use nanonsq_core::drive::Sleep;
use nanonsq_core::time::Instant;

/// The clock and timers of embassy-time. No RAM; no 64-bit division if a tick is a microsecond.
///
/// embassy-time keeps one wake time per task, the earliest, and drops it once it has passed. So
/// poll the runners only in futures that poll all their parts on each wake (`join`, `select`), and
/// in a task of an Embassy executor, unless the firmware turns on a `generic-queue-*` feature of
/// embassy-time.
#[derive(Debug, Clone, Copy, Default)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EmbassySleep;

impl Sleep for EmbassySleep {
    fn now(&self) -> Instant {
        Instant::from_micros(embassy_time::Instant::now().as_micros())
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        if self.now() >= at {
            return Poll::Ready(());
        }
        let at = embassy_time::Instant::from_ticks(ticks(at.as_micros(), TICK_HZ));
        // The first poll of a timer is never ready: it only schedules the wake of the task.
        let _ = pin!(Timer::at(at)).poll(cx);
        Poll::Pending
    }
}

/// Returns the first tick that is not before `micros`. `u64::MAX` (never) stays `u64::MAX`.
const fn ticks(micros: u64, hz: u64) -> u64 {
    const MICROS: u64 = 1_000_000;
    if hz == MICROS {
        return micros;
    }
    let part = ((micros % MICROS) * hz).div_ceil(MICROS);
    (micros / MICROS).saturating_mul(hz).saturating_add(part)
}

const _: () = {
    assert!(ticks(1, 1_000_000) == 1);
    assert!(ticks(u64::MAX, 1_000_000) == u64::MAX);
    // Rounded up: a wake one tick early would be a busy loop until the deadline.
    assert!(ticks(1, 32_768) == 1 && ticks(30, 32_768) == 1 && ticks(31, 32_768) == 2);
    assert!(ticks(1_000_000, 32_768) == 32_768 && ticks(1_000_001, 32_768) == 32_769);
    assert!(ticks(2_500_000, 1000) == 2500 && ticks(2_500_001, 1000) == 2501);
    assert!(ticks(3, 10_000_000) == 30);
    assert!(ticks(u64::MAX, 10_000_000) == u64::MAX);
};
