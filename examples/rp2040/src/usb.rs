//! A serial port over USB (CDC-ACM), which current operating systems support without a driver.

use embassy_executor::Spawner;
use embassy_futures::select::{Either, select};
use embassy_rp::Peri;
use embassy_rp::peripherals::USB;
use embassy_rp::usb::Driver;
use embassy_time::Timer;
use embassy_usb::class::cdc_acm::{CdcAcmClass, ControlChanged, Receiver, Sender, State};
use embassy_usb::{Builder, Config, UsbDevice};
use nanonsq_board::firmware::{Serial, SerialEvent};
use static_cell::StaticCell;

use crate::Irqs;

/// Bytes of one packet of a full-speed device.
const PACKET: usize = 64;

type UsbDriver = Driver<'static, USB>;

/// The serial port.
pub struct UsbSerial {
    sender: Sender<'static, UsbDriver>,
    receiver: Receiver<'static, UsbDriver>,
    changed: ControlChanged<'static>,
    is_open: bool,
}

#[embassy_executor::task]
async fn run(mut usb: UsbDevice<'static, UsbDriver>) {
    usb.run().await
}

impl UsbSerial {
    /// Starts the USB device; to be called once.
    pub(crate) fn start(
        spawner: Spawner,
        usb: Peri<'static, USB>,
        product: &'static str,
        serial_number: &'static str,
    ) -> Self {
        static CONFIGURATION: StaticCell<[u8; 128]> = StaticCell::new();
        static BOS: StaticCell<[u8; 16]> = StaticCell::new();
        static CONTROL: StaticCell<[u8; 64]> = StaticCell::new();
        static STATE: StaticCell<State<'static>> = StaticCell::new();
        // The number of pid.codes for tests and examples; a product needs its own.
        let mut config = Config::new(0x1209, 0x0001);
        config.manufacturer = Some("nanonsq");
        config.product = Some(product);
        config.serial_number = Some(serial_number);
        config.max_power = 250;
        let mut builder = Builder::new(
            Driver::new(usb, Irqs),
            config,
            CONFIGURATION.init([0; 128]),
            BOS.init([0; 16]),
            &mut [],
            CONTROL.init([0; 64]),
        );
        let state = STATE.init(State::new());
        let class = CdcAcmClass::new(&mut builder, state, PACKET as u16);
        let (sender, receiver, changed) = class.split_with_control();
        if let Ok(task) = run(builder.build()) {
            spawner.spawn(task);
        }
        Self { sender, receiver, changed, is_open: false }
    }
}

impl Serial for UsbSerial {
    async fn read(&mut self, buf: &mut [u8]) -> SerialEvent {
        loop {
            if !self.is_open {
                self.receiver.wait_connection().await;
                while !self.receiver.dtr() {
                    self.changed.control_changed().await;
                }
                // A terminal that was just opened may not show the first bytes.
                Timer::after_millis(50).await;
                self.is_open = true;
                return SerialEvent::Opened;
            }
            match select(self.receiver.read_packet(buf), self.changed.control_changed()).await {
                Either::First(Ok(count)) if count > 0 => return SerialEvent::Bytes(count),
                Either::First(Ok(_)) => {}
                Either::First(Err(_)) => self.is_open = false,
                Either::Second(()) => self.is_open = self.receiver.dtr(),
            }
            if !self.is_open {
                return SerialEvent::Closed;
            }
        }
    }

    async fn write_all(&mut self, bytes: &[u8]) {
        for packet in bytes.chunks(PACKET - 1) {
            // Give up when the terminal is closed or the cable is pulled.
            let closed = async {
                while self.receiver.dtr() {
                    self.changed.control_changed().await;
                }
            };
            if !self.is_open {
                return;
            }
            if let Either::Second(()) = select(self.sender.write_packet(packet), closed).await {
                self.is_open = false;
            }
        }
    }
}
