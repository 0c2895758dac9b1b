//! Resets and watchdog.

use core::cell::RefCell;

use esp_hal::peripherals::RTC_TIMER;
use esp_hal::rtc_cntl::{Rtc, RwdtStage, RwdtStageAction, SocResetReason, reset_reason};
use esp_hal::system::Cpu;
use esp_hal::time::Duration;
use nanonsq_board::crash::Reason;
use nanonsq_board::firmware::Machine;
use nanonsq_board::life::Stalled;

use crate::crash;

/// The watchdog's timeout.
const PATIENCE: Duration = Duration::from_secs(8);

/// The chip.
pub(crate) struct Esp32c3 {
    rtc: RefCell<Rtc<'static>>,
}

impl Esp32c3 {
    /// Starts the watchdog. Also returns whether a watchdog has reset the chip.
    pub(crate) fn new(timer: RTC_TIMER<'static>) -> (Self, bool) {
        let barked = matches!(
            reset_reason(Cpu::ProCpu),
            Some(
                SocResetReason::CoreRtcWdt
                    | SocResetReason::SysRtcWdt
                    | SocResetReason::Cpu0RtcWdt
                    | SocResetReason::CoreMwdt0
                    | SocResetReason::CoreMwdt1
                    | SocResetReason::SysSuperWdt
            )
        );
        let mut rtc = Rtc::new(timer);
        rtc.rwdt.set_timeout(RwdtStage::Stage0, PATIENCE);
        // Reset the core only: the RTC keeps the record of the crash.
        rtc.rwdt.set_stage_action(RwdtStage::Stage0, RwdtStageAction::ResetCore);
        rtc.rwdt.enable();
        (Self { rtc: RefCell::new(rtc) }, barked)
    }
}

impl Machine for Esp32c3 {
    fn alive(&self, uptime_s: u32) {
        crash::alive(uptime_s);
        self.rtc.borrow_mut().rwdt.feed();
    }

    fn stalled(&self, _uptime_s: u32, what: Stalled) -> ! {
        crash::failed(Reason::Stall, format_args!("{what}"));
        esp_hal::system::software_reset()
    }

    fn reboot(&self) -> ! {
        crash::leaving();
        esp_hal::system::software_reset()
    }

    // Not needed: `espflash` resets the chip over USB and writes an image at any time.
    fn bootloader(&self) {}

    fn free_stack(&self) -> Option<usize> {
        None
    }
}
