//! An embassy-net driver of the board's Ethernet controller, an SMSC LAN9118: programmed I/O
//! through its FIFOs, one interrupt, one frame buffer each way. Each frame is copied once.
//!
//! Tested with QEMU's model. For a real chip the driver must also check the error bits of received
//! frames, and use an interrupt to wait for room to transmit.

use core::cell::Cell;
use core::sync::atomic::{AtomicBool, Ordering};
use core::task::Context;

use critical_section::Mutex;
use embassy_net_driver::{Capabilities, Driver, HardwareAddress, LinkState};
use embassy_sync::waitqueue::AtomicWaker;

use crate::board::{self, Interrupt, read, write};

const RX_DATA: usize = board::ETHERNET;
const TX_DATA: usize = board::ETHERNET + 0x20;
const RX_STATUS: usize = board::ETHERNET + 0x40;
const TX_STATUS: usize = board::ETHERNET + 0x48;
const IRQ_CFG: usize = board::ETHERNET + 0x54;
const INT_STS: usize = board::ETHERNET + 0x58;
const INT_EN: usize = board::ETHERNET + 0x5C;
const BYTE_TEST: usize = board::ETHERNET + 0x64;
const FIFO_INT: usize = board::ETHERNET + 0x68;
const RX_CFG: usize = board::ETHERNET + 0x6C;
const TX_CFG: usize = board::ETHERNET + 0x70;
const HW_CFG: usize = board::ETHERNET + 0x74;
const RX_FIFO_INF: usize = board::ETHERNET + 0x7C;
const TX_FIFO_INF: usize = board::ETHERNET + 0x80;
const GPT_CFG: usize = board::ETHERNET + 0x8C;
const GPT_CNT: usize = board::ETHERNET + 0x90;
const MAC_CSR_CMD: usize = board::ETHERNET + 0xA4;
const MAC_CSR_DATA: usize = board::ETHERNET + 0xA8;
const AFC_CFG: usize = board::ETHERNET + 0xAC;

/// The value of [`BYTE_TEST`].
const IT_IS_ONE: u32 = 0x8765_4321;
/// In [`HW_CFG`]: resets the chip; set until the reset is done.
const SOFT_RESET: u32 = 1;
/// In [`HW_CFG`]: 5 KiB for the transmit FIFO, which leaves 10,560 bytes for the receive FIFO, and
/// a bit that must be one.
const FIFO_SIZES: u32 = 0x0015_0000;
/// In [`AFC_CFG`]: the data sheet's levels for flow control.
const FLOW_CONTROL: u32 = 0x006E_3740;
/// In [`IRQ_CFG`]: enabled, active high, push-pull. Without the last two the line is inverted.
const IRQ_PUSH_PULL_HIGH: u32 = 1 << 8 | 1 << 4 | 1;
/// In [`FIFO_INT`]: interrupt from the first frame on.
const RX_LEVEL: u32 = 0x4800_0000;
/// In [`TX_CFG`]: transmit.
const TX_ON: u32 = 1 << 1;
/// In [`INT_EN`] and [`INT_STS`]: a frame was received.
const INT_RX: u32 = 1 << 3;
/// In [`INT_EN`] and [`INT_STS`]: an interrupt of the PHY.
const INT_PHY: u32 = 1 << 18;

/// Registers of the MAC, behind [`MAC_CSR_CMD`].
const MAC_CR: u32 = 1;
const MAC_ADDRH: u32 = 2;
const MAC_ADDRL: u32 = 3;
const MAC_MII_ACC: u32 = 6;
const MAC_MII_DATA: u32 = 7;
/// In [`MAC_CSR_CMD`].
const CSR_BUSY: u32 = 1 << 31;
const CSR_READ: u32 = 1 << 30;
/// In [`MAC_CR`]: full duplex, transmitter and receiver on.
const MAC_ON: u32 = 1 << 20 | 1 << 3 | 1 << 2;

/// Registers of the PHY, behind [`MAC_MII_ACC`].
const PHY_STATUS: u32 = 1;
const PHY_INTERRUPT: u32 = 29;
const PHY_INTERRUPT_MASK: u32 = 30;
/// In [`MAC_MII_ACC`].
const MII_BUSY: u32 = 1 << 0;
const MII_WRITE: u32 = 1 << 1;
const MII_PHY: u32 = 1 << 11;
/// In [`PHY_STATUS`].
const LINK_IS_UP: u32 = 1 << 2;
/// In [`PHY_INTERRUPT_MASK`]: energy, negotiated, link lost.
const PHY_LINK_CHANGES: u32 = 1 << 7 | 1 << 6 | 1 << 4;

/// The longest frame, without its checksum.
const FRAME_MAX: usize = 1514;
/// Words of a frame buffer; the FIFOs consist of words.
const WORDS: usize = FRAME_MAX.div_ceil(4) + 1;
/// The limit of each TCP window in frames (by smoltcp): the receive FIFO drops frames beyond 6 full
/// ones.
const BURST: usize = 4;

static WAKER: AtomicWaker = AtomicWaker::new();
/// True if the PHY raised an interrupt that is not handled yet.
static PHY_CALLED: AtomicBool = AtomicBool::new(true);

/// Frames and bytes since the start.
#[derive(Debug, Clone, Copy, Default)]
pub struct Traffic {
    pub frames_in: u32,
    pub bytes_in: u32,
    pub frames_out: u32,
    pub bytes_out: u32,
}

static TRAFFIC: Mutex<Cell<Traffic>> =
    Mutex::new(Cell::new(Traffic { frames_in: 0, bytes_in: 0, frames_out: 0, bytes_out: 0 }));

/// Returns the counts so far.
pub fn traffic() -> Traffic {
    critical_section::with(|cs| TRAFFIC.borrow(cs).get())
}

fn count(change: impl FnOnce(&mut Traffic)) {
    critical_section::with(|cs| {
        let cell = TRAFFIC.borrow(cs);
        let mut traffic = cell.get();
        change(&mut traffic);
        cell.set(traffic);
    });
}

/// The controller. RAM: two frames.
pub struct Lan9118 {
    mac: [u8; 6],
    link: LinkState,
    rx: Frame,
    tx: Frame,
}

/// There is no controller at the address; has the value read in place of [`IT_IS_ONE`].
#[derive(Debug, Clone, Copy)]
pub struct NotFound(pub u32);

impl Lan9118 {
    /// Resets the controller and enables its interrupt. The MAC address is that of its EEPROM.
    pub fn new() -> Result<Self, NotFound> {
        let test = read(BYTE_TEST);
        if test != IT_IS_ONE {
            return Err(NotFound(test));
        }
        write(HW_CFG, SOFT_RESET);
        while read(HW_CFG) & SOFT_RESET != 0 {}
        write(HW_CFG, FIFO_SIZES);
        write(AFC_CFG, FLOW_CONTROL);
        let [a, b, c, d] = mac_read(MAC_ADDRL).to_le_bytes();
        let [e, f, _, _] = mac_read(MAC_ADDRH).to_le_bytes();
        write(INT_EN, 0);
        write(INT_STS, u32::MAX);
        write(IRQ_CFG, IRQ_PUSH_PULL_HIGH);
        write(FIFO_INT, RX_LEVEL);
        write(RX_CFG, 0);
        write(TX_CFG, TX_ON);
        mac_write(MAC_CR, MAC_ON);
        phy_write(PHY_INTERRUPT_MASK, PHY_LINK_CHANGES);
        write(INT_EN, INT_RX | INT_PHY);
        Interrupt::Ethernet.enable();
        let mac = [a, b, c, d, e, f];
        Ok(Self { mac, link: LinkState::Down, rx: Frame::EMPTY, tx: Frame::EMPTY })
    }

    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }
}

impl Driver for Lan9118 {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, cx: &mut Context<'_>) -> Option<(RxToken<'_>, TxToken<'_>)> {
        if frames_received() == 0 {
            WAKER.register(cx.waker());
            write(INT_STS, INT_RX);
            // A frame may have arrived before the interrupt was cleared.
            if frames_received() == 0 {
                unmask(INT_RX);
                return None;
            }
        }
        Some((RxToken(&mut self.rx), TxToken(&mut self.tx)))
    }

    fn transmit(&mut self, cx: &mut Context<'_>) -> Option<TxToken<'_>> {
        let room = read(TX_FIFO_INF) & 0xFFFF;
        if (room as usize) < FRAME_MAX + 16 {
            // Never in QEMU, where a written frame leaves at once.
            cx.waker().wake_by_ref();
            return None;
        }
        Some(TxToken(&mut self.tx))
    }

    fn link_state(&mut self, cx: &mut Context<'_>) -> LinkState {
        WAKER.register(cx.waker());
        if PHY_CALLED.load(Ordering::Acquire) {
            PHY_CALLED.store(false, Ordering::Relaxed);
            // A read clears the interrupt.
            let _ = phy_read(PHY_INTERRUPT);
            // A lost link stays in the status until it is read.
            let _ = phy_read(PHY_STATUS);
            let up = phy_read(PHY_STATUS) & LINK_IS_UP != 0;
            self.link = if up { LinkState::Up } else { LinkState::Down };
            write(INT_STS, INT_PHY);
            unmask(INT_PHY);
        }
        self.link
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.max_transmission_unit = FRAME_MAX;
        capabilities.max_burst_size = Some(BURST);
        capabilities
    }

    fn hardware_address(&self) -> HardwareAddress {
        HardwareAddress::Ethernet(self.mac)
    }
}

/// A frame in the receive FIFO.
pub struct RxToken<'a>(&'a mut Frame);

impl embassy_net_driver::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, f: F) -> R {
        // The length includes the checksum of 4 bytes.
        let len = (read(RX_STATUS) >> 16 & 0x3FFF) as usize;
        for at in 0..len.div_ceil(4) {
            // The whole frame must leave the FIFO, even if it is too long.
            let word = read(RX_DATA);
            if let Some(slot) = self.0.0.get_mut(at) {
                *slot = word;
            }
        }
        let len = len.saturating_sub(4);
        count(|traffic| {
            traffic.frames_in = traffic.frames_in.wrapping_add(1);
            traffic.bytes_in = traffic.bytes_in.wrapping_add(len as u32);
        });
        f(self.0.bytes(len))
    }
}

/// Permission to transmit one frame.
pub struct TxToken<'a>(&'a mut Frame);

impl embassy_net_driver::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        const FIRST_AND_LAST: u32 = 1 << 13 | 1 << 12;
        let len = len.min(FRAME_MAX);
        let result = f(self.0.bytes(len));
        write(TX_DATA, FIRST_AND_LAST | len as u32);
        write(TX_DATA, len as u32);
        for word in self.0.0.iter().take(len.div_ceil(4)) {
            write(TX_DATA, *word);
        }
        // Take the frame's status, so that the status FIFO does not fill.
        if read(TX_FIFO_INF) >> 16 & 0xFF != 0 {
            let _ = read(TX_STATUS);
        }
        count(|traffic| {
            traffic.frames_out = traffic.frames_out.wrapping_add(1);
            traffic.bytes_out = traffic.bytes_out.wrapping_add(len as u32);
        });
        nudge_qemu();
        result
    }
}

/// Memory for one frame, as words.
pub struct Frame([u32; WORDS]);

impl Frame {
    const EMPTY: Self = Self([0; WORDS]);

    /// Returns the first `len` bytes, or all if there are fewer.
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        let words = self.0.as_mut_slice();
        // SAFETY: words are aligned for bytes, and every byte is valid. The byte order of a
        // little-endian Cortex-M is that of the wire.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(words.as_mut_ptr().cast::<u8>(), size_of_val(words))
        };
        let len = len.min(bytes.len());
        &mut bytes[..len]
    }
}

#[unsafe(export_name = "ETHERNET")]
extern "C" fn on_interrupt() {
    let causes = read(INT_STS) & (INT_RX | INT_PHY);
    if causes & INT_PHY != 0 {
        PHY_CALLED.store(true, Ordering::Release);
    }
    // The causes stay set until the task handles them: mask them until then.
    write(INT_EN, read(INT_EN) & !causes);
    WAKER.wake();
}

fn unmask(causes: u32) {
    critical_section::with(|_| write(INT_EN, read(INT_EN) | causes));
}

fn frames_received() -> u32 {
    read(RX_FIFO_INF) >> 16 & 0xFF
}

fn mac_read(register: u32) -> u32 {
    write(MAC_CSR_CMD, CSR_BUSY | CSR_READ | register);
    while read(MAC_CSR_CMD) & CSR_BUSY != 0 {}
    read(MAC_CSR_DATA)
}

fn mac_write(register: u32, value: u32) {
    write(MAC_CSR_DATA, value);
    write(MAC_CSR_CMD, CSR_BUSY | register);
    while read(MAC_CSR_CMD) & CSR_BUSY != 0 {}
}

fn phy_read(register: u32) -> u32 {
    mac_write(MAC_MII_ACC, MII_PHY | register << 6 | MII_BUSY);
    while mac_read(MAC_MII_ACC) & MII_BUSY != 0 {}
    mac_read(MAC_MII_DATA) & 0xFFFF
}

fn phy_write(register: u32, value: u32) {
    mac_write(MAC_MII_DATA, value);
    mac_write(MAC_MII_ACC, MII_PHY | register << 6 | MII_WRITE | MII_BUSY);
    while mac_read(MAC_MII_ACC) & MII_BUSY != 0 {}
}

/// Makes QEMU poll its sockets. A written frame does not make it poll: it would receive the answer
/// half a second later. The start of any timer does, such as the controller's, which has no other
/// use. At most once a millisecond.
fn nudge_qemu() {
    const TICKS: u32 = 10; // of 100 us
    const RUN: u32 = 1 << 29;
    if read(GPT_CNT) > TICKS {
        write(GPT_CFG, 0xFFFF);
        write(GPT_CFG, RUN | TICKS);
    }
}
