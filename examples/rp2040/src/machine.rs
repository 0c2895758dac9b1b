//! Resets, watchdog and stack.

use core::cell::RefCell;

use embassy_rp::Peri;
use embassy_rp::peripherals::WATCHDOG;
use embassy_rp::watchdog::Watchdog;
use embassy_time::Duration;
use nanonsq_board::crash::Reason;
use nanonsq_board::firmware::Machine;
use nanonsq_board::life::Stalled;

use crate::crash;

/// The watchdog's timeout: at most 8.3 s. A start of the radio or an erase of flash takes a second.
const PATIENCE: Duration = Duration::from_secs(8);

/// The chip.
pub struct Rp2040 {
    watchdog: RefCell<Watchdog>,
}

impl Rp2040 {
    /// Starts the watchdog. Also returns whether the watchdog has reset the chip.
    pub(crate) fn new(watchdog: Peri<'static, WATCHDOG>) -> (Self, bool) {
        let mut watchdog = Watchdog::new(watchdog);
        let barked = watchdog.reset_reason().is_some();
        watchdog.pause_on_debug(true);
        watchdog.start(PATIENCE);
        (Self { watchdog: RefCell::new(watchdog) }, barked)
    }
}

impl Machine for Rp2040 {
    fn alive(&self, uptime_s: u32) {
        crash::alive(uptime_s);
        self.watchdog.borrow_mut().feed(PATIENCE);
    }

    fn stalled(&self, _uptime_s: u32, what: Stalled) -> ! {
        crash::failed(Reason::Stall, format_args!("{what}"));
        cortex_m::peripheral::SCB::sys_reset()
    }

    fn reboot(&self) -> ! {
        crash::leaving();
        cortex_m::peripheral::SCB::sys_reset()
    }

    fn bootloader(&self) {
        crash::leaving();
        // With both interfaces of the bootloader, and without an activity LED.
        embassy_rp::rom_data::reset_to_usb_boot(0, 0);
    }

    fn free_stack(&self) -> Option<usize> {
        unsafe extern "C" {
            static _stack_end: u32;
            static _stack_start: u32;
        }
        // cortex-m-rt's `paint-stack`.
        const PAINT: u32 = 0xCCCC_CCCC;
        let (lowest, top) = (&raw const _stack_end, &raw const _stack_start);
        let mut free = lowest;
        // SAFETY: the memory between the two symbols is the stack, whose words are initialized.
        unsafe {
            while free < top && free.read_volatile() == PAINT {
                free = free.add(1);
            }
        }
        Some(free as usize - lowest as usize)
    }
}
