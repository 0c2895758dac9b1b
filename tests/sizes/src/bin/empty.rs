//! An empty program.

#![cfg_attr(target_os = "none", no_std, no_main)]

use nanonsq_sizes as _;

#[cfg_attr(target_os = "none", cortex_m_rt::entry)]
fn main() -> ! {
    loop {
        core::hint::black_box(());
    }
}
