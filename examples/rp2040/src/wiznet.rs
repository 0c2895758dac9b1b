//! Works around two faults of the W5500 driver embassy-net-wiznet 0.3.0.
//!
//! The driver clears the chip's interrupt and then reads one frame. The chip raises the interrupt
//! only for the next frame that *arrives*; frames already in its buffer wait until then. Each burst
//! leaves more of them, until TCP stalls. (The next release reads until the chip is empty: with
//! 0.4, use the plain SPI and the plain `Input`, and delete this file.)
//!
//! So [`Watched`] records how many bytes the chip holds and how many the driver has taken, and
//! [`Line`] reports a low interrupt line while bytes are left. One more read follows, for a frame
//! that arrived just before the interrupt was cleared; and one each `TICK` in any case.
//!
//! The driver also trusts the length of a frame that it reads from the chip, and panics if it has
//! no room for so many bytes: a frame with a VLAN tag is longer, and noise on the SPI may yield any
//! value. [`Watched`] presents a length that fits and lets the chip skip the rest.

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

/// The longest time between two reads of the driver, without an interrupt.
const TICK: Duration = Duration::from_millis(250);

/// Control bytes: the registers of socket 0, its receive buffer, and the bit for a write.
const SOCKET_0: u8 = 0b0000_1000;
const SOCKET_0_RECEIVED: u8 = 0b0001_1000;
const WRITE: u8 = 0b0000_0100;
/// Register with the number of received bytes that are not taken yet (datasheet, 4.2: Sn_RX_RSR).
const RECEIVED_SIZE: u16 = 0x0026;
/// Register with the position up to which bytes are taken (Sn_RX_RD).
const READ_POINTER: u16 = 0x0028;

/// Size of the length field before a frame, which includes itself; its value for the shortest frame
/// (addresses and type), and for the longest that the driver has room for.
const LENGTH: u16 = 2;
const LENGTH_MIN: u16 = LENGTH + 14;
const LENGTH_MAX: u16 = LENGTH + 1514;

/// The state of the chip's receive buffer, as observed on the SPI.
#[derive(Debug, Default)]
pub struct Receive {
    /// Bytes in the buffer when the driver last read that, less those taken since.
    held: Cell<u16>,
    read_pointer: Cell<u16>,
    /// True after bytes were taken: the driver must read once more.
    look: Cell<bool>,
    /// The frame's length less the length presented to the driver; wraps if that is negative.
    hidden: Cell<u16>,
}

impl Receive {
    /// Creates the state before the first transaction.
    pub const fn new() -> Self {
        Self {
            held: Cell::new(0),
            read_pointer: Cell::new(0),
            look: Cell::new(false),
            hidden: Cell::new(0),
        }
    }

    /// Returns the bytes to write in place of `value`: the read pointer after a hidden part.
    fn instead(&self, address: &[u8], control: &[u8], value: &[u8]) -> Option<[u8; 2]> {
        let (&[high, low], &[_, _]) = (value, address) else { return None };
        let is_read_pointer =
            control == [SOCKET_0 | WRITE] && *address == READ_POINTER.to_be_bytes();
        let hidden = if is_read_pointer { self.hidden.take() } else { 0 };
        (hidden != 0).then(|| u16::from_be_bytes([high, low]).wrapping_add(hidden).to_be_bytes())
    }

    /// Returns the length of the next frame to present to the driver.
    fn shown(&self, length: u16) -> u16 {
        let held = self.held.get();
        let (real, shown) = if (LENGTH_MIN..=held).contains(&length) {
            (length, length.min(LENGTH_MAX))
        } else {
            // The start of the next frame is unknown: skip the whole buffer.
            (held, LENGTH_MIN)
        };
        self.hidden.set(real.wrapping_sub(shown));
        shown
    }

    fn saw(&self, operations: &mut [Operation<'_, u8>]) {
        let [Operation::Write([high, low]), Operation::Write([control]), data] = operations else {
            return;
        };
        if let (SOCKET_0_RECEIVED, Operation::Read(length) | Operation::TransferInPlace(length)) =
            (*control, &mut *data)
        {
            if let [high, low] = *length {
                [*high, *low] = self.shown(u16::from_be_bytes([*high, *low])).to_be_bytes();
            }
            return;
        }
        let value = match data {
            Operation::Write([high, low]) => u16::from_be_bytes([*high, *low]),
            Operation::Read([high, low]) | Operation::TransferInPlace([high, low]) => {
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

/// The SPI of a W5500, with an observer.
pub struct Watched<S> {
    spi: S,
    receive: &'static Receive,
}

impl<S> Watched<S> {
    /// Records the transactions over `spi` in `receive`.
    pub fn new(spi: S, receive: &'static Receive) -> Self {
        Self { spi, receive }
    }
}

impl<S: ErrorType> ErrorType for Watched<S> {
    type Error = S::Error;
}

impl<S: SpiDevice> SpiDevice for Watched<S> {
    async fn transaction(&mut self, operations: &mut [Operation<'_, u8>]) -> Result<(), S::Error> {
        if let [Operation::Write(address), Operation::Write(control), Operation::Write(value)] =
            &*operations
            && let Some(value) = self.receive.instead(address, control, value)
        {
            let operations = &mut [
                Operation::Write(address),
                Operation::Write(control),
                Operation::Write(&value),
            ];
            self.spi.transaction(operations).await?;
            self.receive.saw(operations);
            return Ok(());
        }
        self.spi.transaction(operations).await?;
        self.receive.saw(operations);
        Ok(())
    }
}

/// The interrupt line of a W5500, low while the chip has bytes to read.
pub struct Line {
    input: Input<'static>,
    receive: &'static Receive,
}

impl Line {
    /// Creates the line over the chip's interrupt pin, which is active low.
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
            // Let other tasks run between two frames.
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
