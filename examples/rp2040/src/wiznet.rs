//! The W5500 as embassy-net-wiznet 0.3.0 needs it.
//!
//! That driver clears the chip's interrupt and then reads one frame. The chip raises it for the
//! next frame that *arrives*; those that are in it already wait until then. With each burst more of
//! them do, until TCP stands still. (Its next release reads until the chip is empty: when there is
//! a 0.4, give it the plain SPI and the plain `Input`, and this file can go.)
//!
//! So [`Watched`] looks on as the driver reads how many bytes the chip holds and says how many it
//! took, and [`Line`] tells it that the line is low while there are more. One more look follows,
//! for a frame that came just before the interrupt was cleared; and one now and then in any case.

use core::cell::Cell;
use core::convert::Infallible;

use embassy_futures::select::select;
use embassy_futures::yield_now;
use embassy_rp::gpio::Input;
use embassy_time::{Duration, Timer};
use embedded_hal::digital;
use embedded_hal_async::digital::Wait;
use embedded_hal_async::spi::{ErrorType, Operation, SpiDevice};
use nanonsq_board::firmware::{driver_hangs, driver_round};

/// How often the driver looks without any interrupt.
const TICK: Duration = Duration::from_millis(250);

/// Socket 0's registers, as the control byte names them; written.
const SOCKET_0: u8 = 0b0000_1000;
const WRITE: u8 = 0b0000_0100;
/// Bytes received that were not taken yet (datasheet, 4.2: Sn_RX_RSR).
const RECEIVED_SIZE: u16 = 0x0026;
/// Up to where they were taken (Sn_RX_RD).
const READ_POINTER: u16 = 0x0028;

/// What is known of the chip's receive buffer.
#[derive(Debug, Default)]
pub struct Receive {
    /// Bytes in it, when that was last read, less what was taken since.
    held: Cell<u16>,
    read_pointer: Cell<u16>,
    /// Something was taken, or the line was low: another look is due.
    look: Cell<bool>,
}

impl Receive {
    /// Nothing is known yet.
    pub const fn new() -> Self {
        Self { held: Cell::new(0), read_pointer: Cell::new(0), look: Cell::new(false) }
    }

    fn saw(&self, operations: &[Operation<'_, u8>]) {
        let [Operation::Write([high, low]), Operation::Write([control]), data] = operations else {
            return;
        };
        let value = match data {
            Operation::Write([high, low]) | Operation::TransferInPlace([high, low]) => {
                u16::from_be_bytes([*high, *low])
            }
            _ => return,
        };
        match (*control, u16::from_be_bytes([*high, *low])) {
            (SOCKET_0, RECEIVED_SIZE) => self.held.set(value),
            (SOCKET_0, READ_POINTER) => self.read_pointer.set(value),
            (control, READ_POINTER) if control == SOCKET_0 | WRITE => {
                let taken = value.wrapping_sub(self.read_pointer.get());
                self.held.set(self.held.get().saturating_sub(taken));
                self.look.set(true);
            }
            _ => {}
        }
    }
}

/// The SPI of a W5500, looked on.
pub struct Watched<S> {
    spi: S,
    receive: &'static Receive,
}

impl<S> Watched<S> {
    /// Tells `receive` what goes over `spi`.
    pub fn new(spi: S, receive: &'static Receive) -> Self {
        Self { spi, receive }
    }
}

impl<S: ErrorType> ErrorType for Watched<S> {
    type Error = S::Error;
}

impl<S: SpiDevice> SpiDevice for Watched<S> {
    async fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), S::Error> {
        self.spi.transaction(operations).await?;
        self.receive.saw(operations);
        Ok(())
    }
}

/// The interrupt line of a W5500, low as long as there is something to read.
pub struct Line {
    input: Input<'static>,
    receive: &'static Receive,
}

impl Line {
    /// Over this pin, which is low while the chip has something to say.
    pub fn new(input: Input<'static>, receive: &'static Receive) -> Self {
        Self { input, receive }
    }
}

impl digital::ErrorType for Line {
    type Error = Infallible;
}

impl Wait for Line {
    async fn wait_for_low(&mut self) -> Result<(), Infallible> {
        if driver_hangs() {
            return core::future::pending().await;
        }
        driver_round();
        if self.receive.held.get() > 0 || self.receive.look.take() || self.input.is_low() {
            // Others have their turn between two frames.
            yield_now().await;
        } else {
            select(self.input.wait_for_low(), Timer::after(TICK)).await;
        }
        Ok(())
    }

    async fn wait_for_high(&mut self) -> Result<(), Infallible> {
        self.input.wait_for_high().await;
        Ok(())
    }

    async fn wait_for_rising_edge(&mut self) -> Result<(), Infallible> {
        self.input.wait_for_rising_edge().await;
        Ok(())
    }

    async fn wait_for_falling_edge(&mut self) -> Result<(), Infallible> {
        self.input.wait_for_falling_edge().await;
        Ok(())
    }

    async fn wait_for_any_edge(&mut self) -> Result<(), Infallible> {
        self.input.wait_for_any_edge().await;
        Ok(())
    }
}
