//! nanonsq on microcontrollers: embassy-net's sockets and DNS and embassy-time for
//! [`nanonsq_core::drive`].
//!
//! Nothing of NSQ is decided here. See the [core] for what it does and how to use it.
//! Everything here works on any executor and board that embassy-net and embassy-time run on.
//!
//! ```no_run
//! use embassy_futures::join::join3;
//! use embassy_net::StackResources;
//! use embassy_net::driver::Driver;
//! use embassy_time::Timer;
//! use nanonsq_core::drive::publisher;
//! use nanonsq_core::name::TopicName;
//! use nanonsq_core::publisher::Config;
//! use nanonsq_embassy::{EmbassySleep, NoopRawMutex, Sockets, TcpDialer, TcpStorage};
//!
//! const SOCKETS: usize = Sockets { dhcp: true, publishers: 1, ..Sockets::NONE }.count();
//! const TOPIC: TopicName = match TopicName::new("readings") {
//!     Ok(topic) => topic,
//!     Err(_) => panic!(),
//! };
//!
//! async fn node(driver: impl Driver, seed: u64) {
//!     let mut resources = StackResources::<SOCKETS>::new();
//!     let network = embassy_net::Config::dhcpv4(Default::default());
//!     let (stack, mut net) = embassy_net::new(driver, network, &mut resources, seed);
//!
//!     let config = Config { client_id: "greenhouse-7", seed: seed as u32, ..Config::new() };
//!     let nsqds = ["nsqd.example:4150".parse().expect("host:port")];
//!     let mut tcp = TcpStorage::<512, 1536>::new();
//!     let mut outbox = [0; 4096];
//!     let mut shared = publisher::Resources::<NoopRawMutex>::new();
//!     let dialer = TcpDialer::new(stack, &mut tcp);
//!     let (nsq, mut runner) =
//!         publisher::new(&mut shared, &config, &nsqds, &mut outbox, dialer, EmbassySleep)
//!             .expect("a valid configuration");
//!
//!     let readings = async {
//!         loop {
//!             // Waits while the outbox is full; connected or not, it takes the message.
//!             let _ = nsq.publish(&TOPIC, b"21.5").await;
//!             Timer::after_secs(1).await;
//!         }
//!     };
//!     join3(net.run(), runner.run(), readings).await;
//! }
//! # fn main() {}
//! ```
//!
//! Usually the three futures are tasks of their own and the storage is in `static` cells. A handle
//! is `Copy`: give one to each task that publishes. [`NoopRawMutex`] is for tasks of one executor
//! thread, where the runner has to be anyway, since a [`Stack`](embassy_net::Stack) cannot leave
//! it; only handles used from an interrupt executor or another core need
//! [`CriticalSectionRawMutex`], at the price that the runner copies into the socket with interrupts
//! off.
//!
//! # What it takes
//!
//! | | sockets of the stack | RAM on a 32-bit core, IPv4 (both families) |
//! |---|---|---|
//! | [`TcpDialer`], one for each publisher, each lookup peer, each of a consumer's connections, and one for a node that asks for channels | 1 | [`TcpStorage`] + 352 (408) in `StackResources` + 12 |
//! | [`TcpListener`], one for each connection at a time, and a spare one for each port | 1 | the same |
//! | DNS (feature `dns`), DHCP | 1 each | 352 (408) each in `StackResources` |
//! | dialing, in the runner's future | | 152 (208) |
//! | [`EmbassySleep`] | | 0 |
//!
//! Too few sockets are a panic at start: [`Sockets`] counts them.
//!
//! # Features
//!
//! The roles are nanonsq-core's: `publisher` and `consumer` (default), `registration`, `nsqd`,
//! `nsqlookupd`, `full`. `medium-ethernet` (default), `medium-ip`, `medium-ieee802154`, `proto-ipv4` (default),
//! `proto-ipv6`, `dhcpv4` and `dns` are embassy-net's. `defmt` is for all crates below; `log` for
//! nanonsq alone, because embassy-net cannot have both: turn on `embassy-net/log` for its own.
//! Nothing here needs an allocator, `static_cell`, or a `generic-queue-*` of embassy-time.
//!
//! # Good to know
//!
//! - There is no need to wait for the network: a dial without link or address fails at once and is
//!   repeated by the session. Tasks that do wait in `Stack::wait_config_up` must be one: several
//!   wake each other in circles.
//! - Give the stack a random seed. With a constant one a board comes back from a reset with the
//!   port of the connection that the server still has, and loses a second.
//! - All connections have TCP keepalive, so each wakes the board every 15 s while nothing is said on
//!   it; what vanishes without a word is noticed within 150 s, without heartbeats.
//! - embassy-net keeps one address of a name, or `SMOLTCP_DNS_MAX_RESULT_COUNT` of them. It asks
//!   for the hardware address of one neighbour a second: connections to several servers of the
//!   same subnet come up one after the other.
//! - A dialer or listener dropped while it has a connection takes the socket along: nothing more
//!   leaves, not even a RST. Drop the runner's future, not the runner, to disconnect.
#![no_std]
#![forbid(unsafe_code)]

mod tcp;
mod time;

pub use embassy_sync::blocking_mutex::raw::{CriticalSectionRawMutex, NoopRawMutex};
pub use nanonsq_core as core;
pub use tcp::{TcpDialer, TcpListener, TcpStorage, TcpTransport};
pub use time::EmbassySleep;

/// Which sockets an application takes from its network stack, to size `StackResources`.
///
/// A stack with fewer panics in smoltcp ("adding a socket to a full SocketSet") when the last one
/// is made, which is at start: nothing here makes one later.
///
/// ```
/// use nanonsq_embassy::Sockets;
///
/// const SOCKETS: Sockets = Sockets { dhcp: true, publishers: 1, lookupds: 2, ..Sockets::NONE };
/// type StackResources = embassy_net::StackResources<{ SOCKETS.count() }>;
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Sockets {
    /// The address comes by DHCP: one.
    pub dhcp: bool,
    /// embassy-net has its feature `dns`, by whichever crate: one, used or not.
    pub dns: bool,
    /// Publishers: one each, however many nsqds they choose from.
    pub publishers: usize,
    /// nsqlookupds that a lookup may have at a time (its `PEERS`): one each. For a node's see
    /// [`with_node`](Self::with_node).
    pub lookupds: usize,
    /// Connections of consumers: see [`with_consumer`](Self::with_consumer).
    pub consumers: usize,
    /// Accept slots, spare ones too: one each. See [`with_node`](Self::with_node).
    pub listeners: usize,
    /// The application's own.
    pub other: usize,
}

impl Sockets {
    /// None but the DNS client's, if the feature `dns` is on.
    pub const NONE: Self = Self {
        dhcp: false,
        dns: cfg!(feature = "dns"),
        publishers: 0,
        lookupds: 0,
        consumers: 0,
        listeners: 0,
        other: 0,
    };

    /// These, and those of a consumer with the same parameters as its
    /// [`Resources`](nanonsq_core::drive::consumer::Resources): one for each connection to an nsqd,
    /// one for each nsqlookupd that it asks.
    ///
    /// ```
    /// # use nanonsq_embassy::Sockets;
    /// // Commands from 2 nsqds at a time, that 1 nsqlookupd lists.
    /// const SOCKETS: Sockets = Sockets { publishers: 1, ..Sockets::NONE }.with_consumer(2, 1);
    /// # assert_eq!(SOCKETS.count() - Sockets::NONE.count(), 4);
    /// ```
    #[must_use]
    pub const fn with_consumer(mut self, connections: usize, lookupds: usize) -> Self {
        self.consumers += connections + lookupds;
        self
    }

    /// These, and those of a node with the same parameters as its
    /// [`Resources`](nanonsq_core::drive::nsqd::Resources), with a spare one for each port: one for
    /// each client and each connection over HTTP, one for each nsqlookupd, and one to ask them for
    /// the channels of new topics.
    ///
    /// ```
    /// # use nanonsq_embassy::Sockets;
    /// // 4 clients, 2 connections over HTTP, 1 nsqlookupd.
    /// const SOCKETS: Sockets = Sockets::NONE.with_node(4, 2, 1);
    /// # assert_eq!(SOCKETS.count() - Sockets::NONE.count(), 5 + 3 + 1 + 1);
    /// ```
    #[must_use]
    pub const fn with_node(mut self, clients: usize, http: usize, lookupds: usize) -> Self {
        self.listeners += clients + 1;
        if http > 0 {
            self.listeners += http + 1;
        }
        if lookupds > 0 {
            self.lookupds += lookupds + 1;
        }
        self
    }

    /// How many there are: the parameter of `StackResources`.
    pub const fn count(&self) -> usize {
        self.dhcp as usize
            + self.dns as usize
            + self.publishers
            + self.lookupds
            + self.consumers
            + self.listeners
            + self.other
    }
}
