//! A node, a publisher and a consumer of nanonsq that run on tokio.

use std::net::SocketAddr;

use nanonsq_std::core::address::Address;
use nanonsq_std::core::drive::{self, Dialer, Gathering};
use nanonsq_std::core::name::{ChannelName, TopicName};
use nanonsq_std::core::session::LinkState;
use nanonsq_std::core::{consumer, publisher, registration};
use nanonsq_std::{CriticalSectionRawMutex, TcpDialer, TokioSleep};
use tokio::task::JoinHandle;

/// Enough for every test.
const PEERS: usize = 4;
const TOPICS: usize = 256;
const CHANNELS: usize = 512;

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

pub(crate) fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

pub(crate) fn address(at: SocketAddr) -> Address {
    Address::new(&at.ip().to_string(), at.port()).unwrap()
}

pub(crate) fn addresses(at: &[SocketAddr]) -> Vec<Address> {
    at.iter().copied().map(address).collect()
}

/// Makes a value live for ever: the tests are short and few.
fn leak<T>(value: T) -> &'static mut T {
    Box::leak(Box::new(value))
}

pub(crate) type LookupHandle = drive::registration::Handle<
    'static,
    CriticalSectionRawMutex,
    TokioSleep,
    PEERS,
    TOPICS,
    CHANNELS,
>;

/// A node that registers itself. Dropping it breaks its connections.
pub(crate) struct Node {
    pub(crate) handle: LookupHandle,
    task: JoinHandle<()>,
}

impl Node {
    /// The address that the node announces; nobody connects to it.
    pub(crate) const ANNOUNCED: SocketAddr =
        SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    pub(crate) fn config() -> registration::Config<'static> {
        registration::Config::new(registration::NodeInfo {
            broadcast_address: "127.0.0.1",
            hostname: "node",
            tcp_port: Self::ANNOUNCED.port(),
            http_port: 2,
            version: "1.3.0",
            ..Default::default()
        })
    }

    pub(crate) fn start(lookupds: &[SocketAddr]) -> Self {
        Self::start_with(Self::config(), TcpDialer::new(), lookupds)
    }

    pub(crate) fn start_with<D: Dialer + Clone + Send + 'static>(
        config: registration::Config<'static>,
        dialer: D,
        lookupds: &[SocketAddr],
    ) -> Self {
        let dialers = std::array::from_fn(|_| dialer.clone());
        let (handle, mut runner) = drive::registration::new(
            leak(drive::registration::Resources::new()),
            leak(config),
            dialers,
            TokioSleep::new(),
        )
        .unwrap();
        handle.configure(&addresses(lookupds)).unwrap();
        let task = tokio::task::spawn_local(async move {
            runner.run().await;
        });
        Self { handle, task }
    }

    pub(crate) fn register(&self, names: &[&str]) {
        for name in names {
            match name.split_once('/') {
                None => self.handle.register(&topic(name), None).unwrap(),
                Some((t, c)) => self.handle.register(&topic(t), Some(&channel(c))).unwrap(),
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) type PublishHandle = drive::publisher::Handle<'static, CriticalSectionRawMutex>;

/// A running publisher. Dropping it breaks its connection.
pub(crate) struct Publisher {
    pub(crate) handle: PublishHandle,
    task: JoinHandle<()>,
}

impl Publisher {
    /// Starts the runner as a task of its own, so that a busy test does not delay it.
    pub(crate) fn start(
        config: publisher::Config<'static>,
        nsqds: &[SocketAddr],
        outbox: usize,
    ) -> Self {
        let (handle, mut runner) = drive::publisher::new(
            leak(drive::publisher::Resources::new()),
            leak(config),
            addresses(nsqds).leak(),
            vec![0; outbox].leak(),
            TcpDialer::new(),
            TokioSleep::new(),
        )
        .unwrap();
        let task = tokio::spawn(async move {
            runner.run().await;
        });
        Self { handle, task }
    }

    /// Waits for room, publishes, and returns the ticket.
    pub(crate) async fn publish(&self, name: &str, body: &[u8]) -> publisher::Ticket {
        self.handle.publish(&topic(name), body).await.unwrap()
    }

    /// Waits until nothing is pending; panics with the counters if that takes too long.
    pub(crate) async fn drained(&self, limit: std::time::Duration) -> publisher::Counters {
        if tokio::time::timeout(limit, self.handle.idle()).await.is_err() {
            panic!("not drained after {limit:?}: {:?}", self.handle.counters());
        }
        self.handle.counters()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) type ConsumeHandle =
    drive::consumer::Handle<'static, CriticalSectionRawMutex, TokioSleep>;
pub(crate) type Message = drive::consumer::Message<'static, CriticalSectionRawMutex, TokioSleep>;

/// Enough for every test, except those that count messages in flight.
const CONNECTIONS: usize = 4;
const LOOKUPDS: usize = 2;
const NSQDS: usize = 8;

/// A running consumer. Dropping it breaks its connections.
pub(crate) struct Consumer {
    pub(crate) handle: ConsumeHandle,
    task: JoinHandle<()>,
}

impl Consumer {
    /// Starts a consumer with room for 64 messages in flight, of 230 bytes each.
    pub(crate) fn start(
        config: consumer::Config<'static>,
        nsqds: &[SocketAddr],
        lookupds: &[SocketAddr],
    ) -> Self {
        Self::start_with::<64>(config, nsqds, lookupds, 64 * 256)
    }

    /// Starts a consumer with room for `MESSAGES` messages in flight, in a ring of `ring` bytes.
    pub(crate) fn start_with<const MESSAGES: usize>(
        config: consumer::Config<'static>,
        nsqds: &[SocketAddr],
        lookupds: &[SocketAddr],
        ring: usize,
    ) -> Self {
        let sources = drive::consumer::Sources {
            nsqds: addresses(nsqds).leak(),
            lookupds: addresses(lookupds).leak(),
        };
        let dialers = drive::consumer::Dialers {
            nsqds: [Gathering::<_, 1024>(TcpDialer::new()); CONNECTIONS],
            lookupds: [Gathering(TcpDialer::new()); LOOKUPDS],
        };
        let resources =
            drive::consumer::Resources::<_, CONNECTIONS, MESSAGES, LOOKUPDS, NSQDS>::new();
        let (handle, mut runner) = drive::consumer::new(
            leak(resources),
            leak(config),
            sources,
            vec![0; ring].leak(),
            dialers,
            TokioSleep::new(),
        )
        .unwrap();
        let task = tokio::spawn(async move {
            runner.run().await;
        });
        Self { handle, task }
    }

    /// Returns the next message; panics with the counters if none comes within 20 s.
    pub(crate) async fn next(&self) -> Message {
        self.next_within(std::time::Duration::from_secs(20)).await
    }

    pub(crate) async fn next_within(&self, limit: std::time::Duration) -> Message {
        let next = tokio::time::timeout(limit, self.handle.next()).await;
        next.unwrap_or_else(|_| panic!("no message in {limit:?}: {:?}", self.handle.counters()))
    }

    /// Waits until `count` connections are subscribed.
    pub(crate) async fn connected(&self, count: usize) {
        let ready = self.handle.wait(move |consumer| {
            let is_ready =
                |&at: &usize| consumer.status(at).is_some_and(|s| s.state == LinkState::Ready);
            ((0..consumer.connections()).filter(is_ready).count() >= count).then_some(())
        });
        let limit = std::time::Duration::from_secs(10);
        if tokio::time::timeout(limit, ready).await.is_err() {
            panic!("not connected: {:?}", self.handle.counters());
        }
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn text(message: &Message) -> String {
    message.read(|body| String::from_utf8_lossy(body).into_owned()).unwrap()
}

/// Runs a test that may use `spawn_local`.
pub(crate) async fn local<F: Future>(test: F) -> F::Output {
    tokio::task::LocalSet::new().run_until(test).await
}
