//! Addresses and interrupts of the board (ARM application note AN385).

use core::sync::atomic::{AtomicU32, Ordering};

use cortex_m::interrupt::InterruptNumber;
use cortex_m::peripheral::NVIC;

/// CMSDK APB timer 0, at the system clock.
pub const TIMER0: usize = 0x4000_0000;
/// FPGA I/O, with a counter that can run at 1 MHz.
pub const FPGAIO: usize = 0x4002_8000;
/// The Ethernet controller, a LAN9118.
pub const ETHERNET: usize = 0x4020_0000;
/// The frequency of the system clock.
pub const SYSTEM_MHZ: u32 = 25;

/// Interrupt numbers. ARMv6-M has 32, enough for this board.
#[derive(Clone, Copy)]
pub enum Interrupt {
    Timer0 = 8,
    Ethernet = 13,
}

// SAFETY: the numbers are those of the board.
unsafe impl InterruptNumber for Interrupt {
    fn number(self) -> u16 {
        self as u16
    }
}

impl Interrupt {
    /// Enables the interrupt, which has a handler.
    pub fn enable(self) {
        // SAFETY: no critical section relies on the mask of a single interrupt.
        unsafe { NVIC::unmask(self) };
    }
}

/// Reads a register.
pub fn read(address: usize) -> u32 {
    // SAFETY: callers pass addresses of registers that may be read at any time.
    unsafe { (address as *const u32).read_volatile() }
}

/// Writes a register.
pub fn write(address: usize, value: u32) {
    // SAFETY: callers pass addresses of registers; no write makes the board access memory.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// Makes unaligned accesses fault, as on ARMv6-M; the board's Cortex-M3 allows them. Not for code
/// for ARMv7-M, which uses unaligned accesses.
#[cfg(armv6m)]
pub fn trap_unaligned() {
    const CCR: usize = 0xE000_ED14;
    const UNALIGN_TRP: u32 = 1 << 3;
    write(CCR, read(CCR) | UNALIGN_TRP);
}

/// Returns the number of resets since power-on, and counts this start. It replaces a random number,
/// which this board cannot make: with a constant seed, a reset board would reuse the ports of
/// connections that servers still have.
pub fn resets() -> u32 {
    // SAFETY: an integer needs no initialization. A reset keeps it; QEMU starts with zeroed RAM.
    #[unsafe(link_section = ".uninit.STARTS")]
    static STARTS: AtomicU32 = AtomicU32::new(0);
    let starts = STARTS.load(Ordering::Relaxed);
    STARTS.store(starts.wrapping_add(1), Ordering::Relaxed);
    starts
}

/// Returns the most bytes of the stack ever in use.
pub fn stack_used() -> usize {
    unsafe extern "C" {
        static _stack_end: u32;
        static _stack_start: u32;
    }
    // cortex-m-rt's `paint-stack`.
    const PAINT: u32 = 0xCCCC_CCCC;
    let (mut lowest, top) = (&raw const _stack_end, &raw const _stack_start);
    // SAFETY: the memory between the two symbols is the stack, whose words are initialized.
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

/// The vectors of the board. cortex-m-rt places them behind those of the core.
#[unsafe(no_mangle)]
#[unsafe(link_section = ".vector_table.interrupts")]
static __INTERRUPTS: [Vector; 32] = VECTORS;
