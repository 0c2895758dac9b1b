//! The adapter against model servers, on two embassy-net stacks joined by a wire in memory.

mod cells;
mod consumer;
mod dial;
mod listen;
mod peers;
mod publisher;
mod registration;
mod world;

use embassy_net::Stack;
use nanonsq_core::address::Address;
use nanonsq_core::drive::{self, publisher::Handle, publisher::Runner};
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Config, Event};
use nanonsq_core::session::Closed;
use nanonsq_core::time::Span;
use nanonsq_embassy::{EmbassySleep, NoopRawMutex, TcpDialer, TcpStorage};

type Publisher = Handle<'static, NoopRawMutex>;
type PublisherRunner = Runner<'static, NoopRawMutex, TcpDialer<'static>, EmbassySleep>;

/// Leaks a value that must be `'static`.
fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

/// The configuration for tests of lost connections: the shortest heartbeat.
const LIVELY: Config<'_> = Config { heartbeat: Span::from_secs(1), seed: 1, ..Config::new() };

fn dialer(stack: Stack<'static>) -> TcpDialer<'static> {
    TcpDialer::new(stack, leak(TcpStorage::<512, 1500>::new()))
}

fn publisher(
    stack: Stack<'static>,
    config: Config<'static>,
    nsqds: &[&str],
    ring: usize,
) -> (Publisher, PublisherRunner) {
    publisher_over(dialer(stack), config, nsqds, ring)
}

fn publisher_over(
    dialer: TcpDialer<'static>,
    config: Config<'static>,
    nsqds: &[&str],
    ring: usize,
) -> (Publisher, PublisherRunner) {
    let nsqds: Vec<Address> = nsqds.iter().map(|address| address.parse().unwrap()).collect();
    drive::publisher::new(
        leak(drive::publisher::Resources::new()),
        leak(config),
        nsqds.leak(),
        vec![0; ring].leak(),
        dialer,
        EmbassySleep,
    )
    .unwrap()
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

/// Waits until a connection is lost or a dial fails, and returns the reason.
async fn next_loss(publisher: Publisher) -> Closed {
    loop {
        if let Event::Disconnected { why, .. } = publisher.event().await {
            return why;
        }
    }
}
