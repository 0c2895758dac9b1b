//! What all firmware for the board `mps2-an385` shares: its clock, executor, Ethernet and log.

#![no_std]

pub mod board;
pub mod clock;
pub mod executor;
pub mod host;
pub mod lan9118;

use embassy_executor::Spawner;
use embassy_net::{Runner, Stack, StackResources};
use nanonsq_embassy::core::address::Address;
use static_cell::StaticCell;

use lan9118::{Lan9118, NotFound};

pub use executor::Executor;

/// Starts the clock and the log. To be called once, first.
pub fn start() {
    #[cfg(armv6m)]
    board::trap_unaligned();
    clock::start();
    host::start_log();
}

/// Starts the network, with an address by DHCP. `seed` should differ between boards.
pub fn network<const SOCKETS: usize>(
    spawner: Spawner,
    resources: &'static mut StackResources<SOCKETS>,
    seed: u32,
) -> Stack<'static> {
    static DEVICE: StaticCell<Lan9118> = StaticCell::new();
    let device = match Lan9118::new() {
        Ok(device) => DEVICE.init(device),
        Err(NotFound(test)) => give_up!("no LAN9118: its test register has {:x}", test),
    };
    let [_, _, c, d, e, f] = device.mac();
    let seed = seed.wrapping_add(board::resets());
    let seed = u64::from(seed) << 32 | u64::from(u32::from_be_bytes([c, d, e, f]));
    let config = embassy_net::Config::dhcpv4(embassy_net::DhcpConfig::default());
    let (stack, runner) = embassy_net::new(device, config, resources, seed);
    match carry_frames(runner) {
        Ok(task) => spawner.spawn(task),
        Err(_) => give_up!("the network is started twice"),
    }
    stack
}

#[embassy_executor::task]
async fn carry_frames(mut runner: Runner<'static, &'static mut Lan9118>) {
    runner.run().await
}

/// Returns the address that QEMU was given as `arg=nsqd=HOST:PORT`, or `usual`.
pub fn nsqd(usual: Address) -> Address {
    let given = host::args().find(|(key, _)| *key == "nsqd");
    given.and_then(|(_, address)| address.parse().ok()).unwrap_or(usual)
}
