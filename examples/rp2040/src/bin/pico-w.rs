//! The sensor node on a Raspberry Pi Pico W: Wi-Fi.
#![no_std]
#![no_main]
use nanonsq_rp2040 as _;
#[cortex_m_rt::entry]
fn main() -> ! {
    loop {}
}
