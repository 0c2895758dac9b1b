//! The driver of embassy-time: the FPGA's counter at 1 MHz is the clock, timer 0 the alarm. There
//! is no periodic tick.

use core::cell::RefCell;
use core::task::Waker;

use critical_section::Mutex;
use embassy_time_queue_utils::Queue;

use crate::board::{self, Interrupt, SYSTEM_MHZ, read, write};

const COUNTER: usize = board::FPGAIO + 0x18;
const PRESCALE: usize = board::FPGAIO + 0x1C;
const PRESCALE_COUNTER: usize = board::FPGAIO + 0x20;

const CONTROL: usize = board::TIMER0;
const RELOAD: usize = board::TIMER0 + 0x8;
const INTERRUPT_CLEAR: usize = board::TIMER0 + 0xC;
const ENABLE: u32 = 1 << 0;
const INTERRUPT_ENABLE: u32 = 1 << 3;

/// The longest alarm of the timer, in microseconds: 171 s. The counter wraps after 71 minutes, so
/// no wrap is missed.
const ALARM_MAX: u64 = (u32::MAX / SYSTEM_MHZ) as u64;

struct Clock(Mutex<RefCell<State>>);

struct State {
    queue: Queue,
    /// The upper half of the time, and the counter when last read.
    high: u32,
    low: u32,
}

embassy_time_driver::time_driver_impl!(static CLOCK: Clock = Clock(Mutex::new(RefCell::new(
    State { queue: Queue::new(), high: 0, low: 0 }
))));

impl State {
    fn now(&mut self) -> u64 {
        let low = read(COUNTER);
        if low < self.low {
            self.high = self.high.wrapping_add(1);
        }
        self.low = low;
        u64::from(self.high) << 32 | u64::from(low)
    }

    /// Wakes expired timers and sets the alarm for the next. An alarm is always set.
    fn arm(&mut self) {
        let now = self.now();
        let next = self.queue.next_expiration(now);
        let wait = next.saturating_sub(now).clamp(1, ALARM_MAX);
        write(CONTROL, 0);
        write(INTERRUPT_CLEAR, 1);
        write(RELOAD, wait as u32 * SYSTEM_MHZ);
        write(CONTROL, ENABLE | INTERRUPT_ENABLE);
    }
}

impl embassy_time_driver::Driver for Clock {
    fn now(&self) -> u64 {
        critical_section::with(|cs| self.0.borrow_ref_mut(cs).now())
    }

    fn schedule_wake(&self, at: u64, waker: &Waker) {
        critical_section::with(|cs| {
            let mut state = self.0.borrow_ref_mut(cs);
            if state.queue.schedule_wake(at, waker) {
                state.arm();
            }
        });
    }
}

#[unsafe(export_name = "TIMER0")]
extern "C" fn on_alarm() {
    critical_section::with(|cs| CLOCK.0.borrow_ref_mut(cs).arm());
}

/// Starts the clock. To be called once, before any use of embassy-time.
pub fn start() {
    write(PRESCALE, SYSTEM_MHZ - 1);
    write(PRESCALE_COUNTER, SYSTEM_MHZ - 1);
    write(COUNTER, 0);
    critical_section::with(|cs| CLOCK.0.borrow_ref_mut(cs).arm());
    Interrupt::Timer0.enable();
}
