//! The chip's USB serial port.
//!
//! The port does not report whether a terminal is open. A terminal that does not read within
//! [`PATIENCE`] counts as closed; the next typed byte then only opens it.

use embassy_time::{Duration, with_timeout};
use embedded_io_async::{Read, Write};
use esp_hal::Async;
use esp_hal::peripherals::USB_DEVICE;
use esp_hal::usb::usb_serial_jtag::UsbSerialJtag;
use nanonsq_board::firmware::{Serial, SerialEvent};

/// Time limit for a terminal to read one packet.
const PATIENCE: Duration = Duration::from_millis(200);
/// Bytes that the port can buffer.
const PACKET: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Terminal {
    /// Unknown: treated as open.
    New,
    There,
    /// Does not read; the console has yet to receive the event.
    Leaving,
    Gone,
}

pub(crate) struct UsbSerial {
    port: UsbSerialJtag<'static, Async>,
    terminal: Terminal,
}

impl UsbSerial {
    pub(crate) fn new(usb: USB_DEVICE<'static>) -> Self {
        Self { port: UsbSerialJtag::new(usb).into_async(), terminal: Terminal::New }
    }
}

impl Serial for UsbSerial {
    async fn read(&mut self, buf: &mut [u8]) -> SerialEvent {
        match self.terminal {
            Terminal::New => {
                self.terminal = Terminal::There;
                return SerialEvent::Opened;
            }
            Terminal::Leaving => {
                self.terminal = Terminal::Gone;
                return SerialEvent::Closed;
            }
            Terminal::There | Terminal::Gone => {}
        }
        let Ok(count) = Read::read(&mut self.port, buf).await;
        if self.terminal == Terminal::There {
            return SerialEvent::Bytes(count);
        }
        self.terminal = Terminal::There;
        SerialEvent::Opened
    }

    async fn write_all(&mut self, bytes: &[u8]) {
        for packet in bytes.chunks(PACKET) {
            if self.terminal != Terminal::There {
                return;
            }
            let written = async {
                let _ = Write::write_all(&mut self.port, packet).await;
                let _ = Write::flush(&mut self.port).await;
            };
            if with_timeout(PATIENCE, written).await.is_err() {
                self.terminal = Terminal::Leaving;
            }
        }
    }
}
