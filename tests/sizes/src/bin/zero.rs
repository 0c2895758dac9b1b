//! Storage in statics, which is all zeros and takes no flash; the program is never run, only its
//! image is read.

#![cfg_attr(target_os = "none", no_std, no_main)]

use embassy_sync::blocking_mutex::raw::CriticalSectionRawMutex as M;
use nanonsq_core::drive;
use nanonsq_sizes as _;

macro_rules! zeros {
    ($($name:ident: $type:ty = $new:expr,)+) => {$(
        #[used]
        #[unsafe(no_mangle)]
        static mut $name: $type = $new;
    )+};
}
zeros! {
    ZERO_nsqd: drive::nsqd::Resources<'static, M, 2, 2, 2, 2, 1, 1, 64> = drive::nsqd::Resources::new(),
    ZERO_nsqlookupd: drive::nsqlookupd::Resources<'static, M, 2, 2, 2, 1, 64> = drive::nsqlookupd::Resources::new(),
    ZERO_consumer: drive::consumer::Resources<'static, M, 2, 4, 1, 1> = drive::consumer::Resources::new(),
}

#[cfg_attr(target_os = "none", cortex_m_rt::entry)]
fn main() -> ! {
    loop {
        core::hint::spin_loop();
    }
}
