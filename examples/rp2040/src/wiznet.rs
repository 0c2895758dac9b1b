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
//!
//! That driver also believes the length of a frame that it reads from the chip, and panics if it
//! has no room for so many bytes: a tagged frame of a VLAN is longer, and a line with noise says
//! anything. [`Watched`] shows it one that it has room for and has the chip skip the rest.

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

/// Socket 0's registers, as the control byte names them; its receive buffer; written.
const SOCKET_0: u8 = 0b0000_1000;
const SOCKET_0_RECEIVED: u8 = 0b0001_1000;
const WRITE: u8 = 0b0000_0100;
/// Bytes received that were not taken yet (datasheet, 4.2: Sn_RX_RSR).
const RECEIVED_SIZE: u16 = 0x0026;
/// Up to where they were taken (Sn_RX_RD).
const READ_POINTER: u16 = 0x0028;

/// The length before a frame, which counts itself; that of a frame of nothing but addresses and
/// type, and of the longest that the driver has room for.
const LENGTH: u16 = 2;
const LENGTH_MIN: u16 = LENGTH + 14;
const LENGTH_MAX: u16 = LENGTH + 1514;

/// What is known of the chip's receive buffer.
#[derive(Debug, Default)]
pub struct Receive {
    /// Bytes in it, when that was last read, less what was taken since.
    held: Cell<u16>,
    read_pointer: Cell<u16>,
    /// Something was taken, or the line was low: another look is due.
    look: Cell<bool>,
    /// Bytes of a frame that the driver was not shown; wraps where it was shown more.
    hidden: Cell<u16>,
}

impl Receive {
    /// Nothing is known yet.
    pub const fn new() -> Self {
        Self {
            held: Cell::new(0),
            read_pointer: Cell::new(0),
            look: Cell::new(false),
            hidden: Cell::new(0),
        }
    }

    /// What is to be written instead, if something is.
    fn instead(&self, address: &[u8], control: &[u8], value: &[u8]) -> Option<[u8; 2]> {
        let (&[high, low], &[_, _]) = (value, address) else { return None };
        let is_read_pointer =
            control == [SOCKET_0 | WRITE] && *address == READ_POINTER.to_be_bytes();
        let hidden = if is_read_pointer { self.hidden.take() } else { 0 };
        (hidden != 0).then(|| u16::from_be_bytes([high, low]).wrapping_add(hidden).to_be_bytes())
    }

    /// The length of the next frame, as the driver is to see it.
    fn shown(&self, length: u16) -> u16 {
        let held = self.held.get();
        let (real, shown) = if (LENGTH_MIN..=held).contains(&length) {
            (length, length.min(LENGTH_MAX))
        } else {
            // Nobody knows where the next one begins: all that is there is skipped.
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
