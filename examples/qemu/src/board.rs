//! What is where on the board, and its interrupts (ARM application note AN385).

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::interrupt::InterruptNumber;
use cortex_m::peripheral::NVIC;

/// CMSDK APB timer 0, at the system clock.
pub(crate) const TIMER0: usize = 0x4000_0000;
/// FPGA I/O, among it a counter at 1 MHz or so.
pub(crate) const FPGAIO: usize = 0x4002_8000;
/// The Ethernet controller, a LAN9118.
pub(crate) const ETHERNET: usize = 0x4020_0000;
/// The system clock.
pub(crate) const SYSTEM_MHZ: u32 = 25;

/// An interrupt's number. ARMv6-M has 32 of them, which is enough for this board.
#[derive(Clone, Copy)]
pub(crate) enum Interrupt {
    Timer0 = 8,
    Ethernet = 13,
}

// SAFETY: these are the board's.
unsafe impl InterruptNumber for Interrupt {
    fn number(self) -> u16 {
        self as u16
    }
}

impl Interrupt {
    /// Lets it interrupt from now on; it has a handler.
    pub(crate) fn enable(self) {
        // SAFETY: no critical section relies on the mask of a single interrupt.
        unsafe { NVIC::unmask(self) };
    }
}

/// Reads a register.
pub(crate) fn read(address: usize) -> u32 {
    // SAFETY: callers give addresses of registers that may be read at any time.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register.
pub(crate) fn write(address: usize, value: u32) {
    // SAFETY: callers give addresses of registers; none of them makes the board touch memory.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Has unaligned accesses fault, as they always do on ARMv6-M: the board's Cortex-M3 would let
/// them pass. Code for ARMv7-M uses them, and must not be run with this.
#[cfg(armv6m)]
pub(crate) fn trap_unaligned() {
    const CCR: usize = 0xE000_ED14;
    const UNALIGN_TRP: u32 = 1 << 3;
    write(CCR, read(CCR) | UNALIGN_TRP);
}

/// How often the board was started since it has power, this time not counted. In place of a random
/// number, which this board cannot make: without either, it would come back from a reset with the
/// ports of connections that others still have.
pub(crate) fn resets() -> u32 {
    // SAFETY: it stays as it is over a reset; without power it is what the RAM begins with, in QEMU
    // zero.
    #[unsafe(link_section = ".uninit.STARTS")]
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let starts = STARTS.load(Ordering::Relaxed);
    STARTS.store(starts.wrapping_add(1), Ordering::Relaxed);
    starts
}

/// How many bytes of the stack were ever in use.
pub(crate) fn stack_used() -> usize {
    unsafe extern "C" {
        static _stack_end: u32;
        static _stack_start: u32;
    }
    // cortex-m-rt's `paint-stack`.
    const PAINT: u32 = 0xCCCC_CCCC;
    let (mut lowest, top) = (&raw const _stack_end, &raw const _stack_start);
    // SAFETY: all between the two is the stack, whose words are initialised.
    unsafe {
        while lowest < top && lowest.read_volatile() == PAINT {
            lowest = lowest.add(1);
        }
    }
    (top as usize).saturating_sub(lowest as usize)
}

#[repr(C)]
#[derive(Clone, Copy)]
union Vector {
    handler: unsafe extern "C" fn(),
    reserved: usize,
}

// SAFETY: never written.
unsafe impl Sync for Vector {}

unsafe extern "C" {
    fn DefaultHandler();
    #[link_name = "TIMER0"]
    fn timer0();
    #[link_name = "ETHERNET"]
    fn ethernet();
}

const VECTORS: [Vector; 32] = {
    let mut vectors = [Vector { handler: DefaultHandler }; 32];
    vectors[Interrupt::Timer0 as usize].handler = timer0;
    vectors[Interrupt::Ethernet as usize].handler = ethernet;
    vectors
};

/// cortex-m-rt puts it behind the core's own vectors.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".vector_table.interrupts")]
static __INTERRUPTS: [Vector; 32] = VECTORS;
