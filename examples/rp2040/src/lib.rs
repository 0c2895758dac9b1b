//! The parts that the sensor node's two RP2040 boards share: USB serial, flash, watchdog,
//! temperature, the record of a crash.
//!
//! `src/bin` has the boards, `examples/board` the node and its console, `examples/app` the
//! application. `docs/src/boards.md` describes how to flash a board.

#![no_std]

mod crash;
mod log;
mod machine;
mod sensor;
mod usb;
pub mod wiznet;

use embassy_executor::Spawner;
use embassy_rp::clocks::RoscRng;
use embassy_rp::flash::{Blocking, Flash};
use embassy_rp::peripherals::{ADC, ADC_TEMP_SENSOR, FLASH, USB, WATCHDOG};
use embassy_rp::{Peri, bind_interrupts};
use nanonsq_board::console::Session;
use nanonsq_board::firmware::Board;
use nanonsq_board::settings::{Identity, Medium};
use nanonsq_board::store::Store;

pub use machine::Rp2040;
pub use sensor::Thermometer;
pub use usb::UsbSerial;

bind_interrupts!(struct Irqs {
    USBCTRL_IRQ => embassy_rp::usb::InterruptHandler<USB>;
});

/// Bytes of flash on both boards.
pub const FLASH_SIZE: usize = 2 * 1024 * 1024;
/// Offset of the settings: the last two sectors, which `memory.x` excludes.
const SETTINGS_AT: u32 = (FLASH_SIZE - 2 * embassy_rp::flash::ERASE_SIZE) as u32;

type Storage = Flash<'static, FLASH, Blocking, FLASH_SIZE>;

/// The peripherals of the chip that the node needs on any board.
pub struct Parts {
    /// For the settings.
    pub flash: Peri<'static, FLASH>,
    /// For the console.
    pub usb: Peri<'static, USB>,
    /// For the watchdog.
    pub watchdog: Peri<'static, WATCHDOG>,
    /// For readings.
    pub adc: Peri<'static, ADC>,
    /// For readings.
    pub temperature: Peri<'static, ADC_TEMP_SENSOR>,
}

/// Starts log, watchdog, console, settings and sensor of the board with the name `board`.
///
/// Also returns the unique number of the flash chip.
pub fn start(
    spawner: Spawner,
    parts: Parts,
    board: &'static str,
    medium: Medium,
) -> (Board<Storage, UsbSerial, Thermometer, Rp2040>, [u8; 8]) {
    log::start();
    let (machine, by_watchdog) = Rp2040::new(parts.watchdog);
    let crash = crash::start(by_watchdog);
    let mut flash = Flash::new_blocking(parts.flash);
    let mut unique = [0; 8];
    // Without the number all devices have the same default name; `set name` changes it.
    let _ = flash.blocking_unique_id(&mut unique);
    let identity = Identity::new(board, medium, "pico", &unique);

    static SERIAL_NUMBER: static_cell::StaticCell<heapless::String<32>> =
        static_cell::StaticCell::new();
    let serial_number = SERIAL_NUMBER.init(identity.name.clone());
    let serial = UsbSerial::start(spawner, parts.usb, board, serial_number);
    let session = Session::load(identity, Store::new(flash, SETTINGS_AT));
    let sensor = Thermometer::new(parts.adc, parts.temperature);
    let seed = RoscRng.next_u32();
    (Board { session, serial, sensor, machine, crash, seed }, unique)
}
