//! Publishes a reading, waits until nsqd has it, and sleeps: a device on a battery.

#![no_std]
#![no_main]

use embassy_executor::Spawner;
use embassy_net::StackResources;
use embassy_time::Timer;
use nanonsq_embassy::core::publisher::Config;
use nanonsq_embassy::core::time::Span;
use nanonsq_embassy::core::{address, topic};
use nanonsq_embassy::{EmbassySleep, Publisher, PublisherRunner, Sockets};
use nanonsq_qemu::say;
use static_cell::ConstStaticCell;

const SOCKETS: usize = Sockets { dhcp: true, publishers: 1, ..Sockets::NONE }.count();
static STACK: ConstStaticCell<StackResources<SOCKETS>> =
    ConstStaticCell::new(StackResources::new());
static NSQ: ConstStaticCell<Publisher<4096>> = ConstStaticCell::new(Publisher::new());

#[embassy_executor::task]
async fn carry(mut runner: PublisherRunner) -> ! {
    runner.run().await
}

#[embassy_executor::main(executor = "nanonsq_qemu::Executor", entry = "cortex_m_rt::entry")]
async fn main(spawner: Spawner) {
    nanonsq_qemu::start();
    let stack = nanonsq_qemu::network(spawner, STACK.take(), 1);
    let nsqd = nanonsq_qemu::nsqd(address!("10.0.2.2:4150"));
    let config = Config { client_id: "greenhouse", ..Config::new() };
    let (nsq, runner) = NSQ.take().start(stack, [nsqd], config).expect("a configuration");
    spawner.spawn(carry(runner).expect("one task"));

    loop {
        if let Err(error) = nsq.publish(&topic!("readings"), b"21.5").await {
            say!("not published: {}", error);
        }
        let pending = nsq.drain(&EmbassySleep, Span::from_secs(10)).await;
        say!("{} acknowledged, {} pending", nsq.counters().acknowledged, pending);
        // The radio is switched off here.
        Timer::after_secs(1).await;
        nsq.resume().await;
    }
}
