//! Links, clock and work as registers of a device.

use core::ptr::{read_volatile, write_volatile};

use crate::MESSAGE;
use crate::platform::PENDING;

const BASE: usize = 0x4000_0000;
const TIME_LOW: usize = 0;
const TIME_HIGH: usize = 4;
const TIMER: usize = 8;
const WORK: usize = 12;
const DONE: usize = 16;
const CONSUMED: usize = 20;
const ALARM: usize = 0x20;
const STATE: usize = 0x100;
const READABLE: usize = 0x104;
const WRITABLE: usize = 0x108;
const DATA: usize = 0x10c;

static MESSAGES: [u8; MESSAGE] = [b'm'; MESSAGE];

fn get(register: usize) -> u32 {
    // SAFETY: the address of a register of the device.
    unsafe { read_volatile(BASE.wrapping_add(register) as *const u32) }
}

fn set(register: usize, value: u32) {
    // SAFETY: the address of a register of the device.
    unsafe { write_volatile(BASE.wrapping_add(register) as *mut u32, value) }
}

const fn of(port: u32, register: usize) -> usize {
    register.wrapping_add((port as usize) << 8)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_open(port: u32) -> u32 {
    get(of(port, STATE))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_close(port: u32) {
    set(of(port, STATE), 0);
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_read(port: u32, to: *mut u8, len: usize) -> i32 {
    let ready = get(of(port, READABLE));
    if ready == 0 {
        return if get(of(port, STATE)) == 1 { PENDING } else { 0 };
    }
    let n = len.min(ready as usize);
    for i in 0..n {
        // SAFETY: `i` is below `len`, the length of the caller's buffer.
        unsafe { to.add(i).write(get(of(port, DATA)) as u8) };
    }
    n as i32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_write(port: u32, from: *const u8, len: usize) -> i32 {
    let room = get(of(port, WRITABLE));
    if room == 0 {
        return if get(of(port, STATE)) == 1 { PENDING } else { -2 };
    }
    let n = len.min(room as usize);
    for i in 0..n {
        // SAFETY: `i` is below `len`, the length of the caller's buffer.
        set(of(port, DATA), unsafe { from.add(i).read() }.into());
    }
    n as i32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_now() -> u64 {
    u64::from(get(TIME_HIGH)) << 32 | u64::from(get(TIME_LOW))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_timer() -> u32 {
    get(TIMER)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_alarm(timer: u32, at: u64) -> bool {
    let timer = (timer as usize) << 3;
    set(ALARM.wrapping_add(timer), at as u32);
    set(ALARM.wrapping_add(timer).wrapping_add(4), (at >> 32) as u32);
    bl_now() >= at
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_message() -> Option<&'static [u8; MESSAGE]> {
    (get(WORK) != 0).then_some(&MESSAGES)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_done(acknowledged: bool) {
    set(DONE, acknowledged.into());
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_consumed(from: *const u8, len: usize) {
    for i in 0..len {
        // SAFETY: `i` is below `len`, the length of the caller's buffer.
        set(CONSUMED, unsafe { from.add(i).read() }.into());
    }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn bl_wait() {
    #[cfg(target_os = "none")]
    // SAFETY: waits for an interrupt.
    unsafe {
        core::arch::asm!("wfe");
    }
}
