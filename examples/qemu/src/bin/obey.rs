//! Publishes readings, and obeys commands that set their interval: `5` for 5 s.

#![no_std]
#![no_main]

use core::str;

use embassy_executor::Spawner;
use embassy_net::StackResources;
use embassy_time::{Duration, with_timeout};
use nanonsq_embassy::core::{address, channel, consumer, publisher, topic};
use nanonsq_embassy::{Connections, Consumer, ConsumerRunner, MessageBytes, Messages};
use nanonsq_embassy::{Publisher, PublisherRunner, Sockets};
use nanonsq_qemu::say;
use static_cell::ConstStaticCell;

const SOCKETS: usize =
    Sockets { dhcp: true, publishers: 1, ..Sockets::NONE }.with_consumer(1, 0).count();
type Commands = Consumer<Connections<1>, Messages<2>, MessageBytes<64>>;

static STACK: ConstStaticCell<StackResources<SOCKETS>> =
    ConstStaticCell::new(StackResources::new());
static NSQ: ConstStaticCell<Publisher<4096>> = ConstStaticCell::new(Publisher::new());
static COMMANDS: ConstStaticCell<Commands> = ConstStaticCell::new(Commands::new());

#[embassy_executor::task]
async fn carry(mut runner: PublisherRunner) -> ! {
    runner.run().await
}

#[embassy_executor::task]
async fn carry_commands(mut runner: ConsumerRunner<1>) -> ! {
    runner.run().await
}

#[embassy_executor::main(executor = "nanonsq_qemu::Executor", entry = "cortex_m_rt::entry")]
async fn main(spawner: Spawner) {
    nanonsq_qemu::start();
    let stack = nanonsq_qemu::network(spawner, STACK.take(), 1);
    let nsqd = nanonsq_qemu::nsqd(address!("10.0.2.2:4150"));
    let config = publisher::Config::new();
    let (nsq, runner) = NSQ.take().start(stack, [nsqd.clone()], config).expect("a configuration");
    spawner.spawn(carry(runner).expect("one task"));
    let config = consumer::Config::new(topic!("commands"), channel!("greenhouse"));
    let (commands, runner) = COMMANDS.take().start(stack, [nsqd], config).expect("a configuration");
    spawner.spawn(carry_commands(runner).expect("one task"));

    let mut seconds = 60;
    loop {
        let _ = nsq.publish(&topic!("readings"), b"21.5").await;
        if let Ok(command) = with_timeout(Duration::from_secs(seconds), commands.next()).await {
            match command.read(|body| str::from_utf8(body).ok()?.parse().ok()).flatten() {
                Some(new) => seconds = new,
                None => say!("not a command"),
            }
            say!("a reading every {} s", seconds);
            let _ = command.finish();
        }
    }
}
