//! nanonsq on microcontrollers: embassy-net's sockets and DNS and embassy-time for
//! [`nanonsq_core::drive`].
//!
//! This crate has no NSQ logic: the [core] documents behaviour and use.
//! It works on every executor and board that embassy-net and embassy-time support.
//!
//! ```no_run
//! use embassy_futures::join::join3;
//! use embassy_net::StackResources;
//! use embassy_net::driver::Driver;
//! use embassy_time::Timer;
//! use nanonsq_core::publisher::Config;
//! use nanonsq_core::{address, topic};
//! use nanonsq_embassy::{Publisher, Sockets};
//! use static_cell::{ConstStaticCell, StaticCell};
//!
//! const SOCKETS: usize = Sockets { dhcp: true, publishers: 1, ..Sockets::NONE }.count();
//! static RESOURCES: StaticCell<StackResources<SOCKETS>> = StaticCell::new();
//! // An outbox of 4,096 bytes, and all else that the publisher needs.
//! static PUBLISHER: ConstStaticCell<Publisher<4096>> = ConstStaticCell::new(Publisher::new());
//!
//! async fn node(driver: impl Driver + 'static, seed: u64) {
//!     let network = embassy_net::Config::dhcpv4(Default::default());
//!     let resources = RESOURCES.init_with(StackResources::new);
//!     let (stack, mut net) = embassy_net::new(driver, network, resources, seed);
//!
//!     let config = Config { client_id: "greenhouse-7", seed: seed as u32, ..Config::new() };
//!     let (nsq, mut runner) = PUBLISHER
//!         .take()
//!         .start(stack, [address!("nsqd.example:4150")], config)
//!         .expect("a valid configuration");
//!
//!     let readings = async {
//!         loop {
//!             // Waits only while the outbox is full, connected or not.
//!             let _ = nsq.publish(&topic!("readings"), b"21.5").await;
//!             Timer::after_secs(1).await;
//!         }
//!     };
//!     join3(net.run(), runner.run(), readings).await;
//! }
//! # fn main() {}
//! ```
//!
//! Usually the three futures are tasks of their own. A handle is `Copy`: give one to each task that
//! publishes. [`Consumer`] has a consumer in a cell. The runners of both log at level info when a
//! connection is ready, lost or refused, with the feature `defmt` or `log`.
//!
//! Both are for tasks of one executor thread. For other ways (memory of one's own, other sizes of
//! buffers, a node or a registration, handles in an interrupt executor or on another core) use
//! [`drive`](nanonsq_core::drive) with [`TcpDialer`], [`TcpListener`] and [`EmbassySleep`]. There
//! [`NoopRawMutex`] is for tasks of one executor thread; the runner must stay on the thread of its
//! [`Stack`](embassy_net::Stack) in any case. Only handles used from an interrupt executor or
//! another core need [`CriticalSectionRawMutex`]; the runner then copies into the socket with
//! interrupts off.
//!
//! # Resources
//!
//! | | sockets of the stack | RAM on a 32-bit core, IPv4 (both families) |
//! |---|---|---|
//! | [`TcpDialer`], one for each publisher, each lookup peer, each connection of a consumer, and one for a node that looks up channels | 1 | [`TcpStorage`] + 352 (408) in `StackResources` + 12 |
//! | [`TcpListener`], one for each simultaneous connection, and a spare one for each port | 1 | the same |
//! | DNS (feature `dns`), DHCP | 1 each | 352 (408) each in `StackResources` |
//! | a dial, in the runner's future | | 152 (208) |
//! | [`EmbassySleep`] | | 0 |
//!
//! A stack with too few sockets panics at start: [`Sockets`] counts them.
//!
//! # Features
//!
//! nanonsq-core has the roles: `publisher` and `consumer` (default), `registration`, `nsqd`,
//! `nsqlookupd`, `full`. embassy-net has `medium-ethernet` (default), `medium-ip`,
//! `medium-ieee802154`, `proto-ipv4` (default), `proto-ipv6`, `dhcpv4` and `dns`. `defmt` turns on
//! the traces of all crates below, `log` those of nanonsq only, because embassy-net cannot have
//! both: turn on `embassy-net/log` for its traces.
//! The crate needs no allocator, no `static_cell` and no `generic-queue-*` of embassy-time.
//!
//! # Notes
//!
//! - There is no need to wait for the network: a dial without link or address fails at once and
//!   the session repeats it. Only one task may wait in `Stack::wait_config_up`: several wake each
//!   other without end.
//! - Give the stack a random seed. With a constant seed a board that was reset reuses the port of
//!   a connection that the server still has, and loses a second.
//! - All connections have TCP keepalive: each idle connection wakes the board every 15 s, and a
//!   peer that vanishes is detected within 150 s even without heartbeats.
//! - embassy-net keeps one address per name, or `SMOLTCP_DNS_MAX_RESULT_COUNT`. It sends one
//!   neighbour request (ARP, NDP) a second, so connections to several servers of one subnet come up
//!   one after the other.
//! - A dialer or listener dropped while it has a connection drops the socket: nothing more leaves,
//!   not even a RST. To disconnect, drop the runner's future, not the runner.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "publisher", feature = "consumer"))]
mod client;
mod tcp;
mod time;

#[cfg(any(feature = "publisher", feature = "consumer"))]
pub use client::*;

pub use embassy_sync::blocking_mutex::raw::{CriticalSectionRawMutex, NoopRawMutex};
pub use nanonsq_core as core;
pub use tcp::{TcpDialer, TcpListener, TcpStorage, TcpTransport};
pub use time::EmbassySleep;

/// The sockets that an application takes from its network stack, to size `StackResources`.
///
/// With fewer, smoltcp panics ("adding a socket to a full SocketSet") when the last socket is made.
/// All sockets are made at start.
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
    /// True if the address comes by DHCP: 1 socket.
    pub dhcp: bool,
    /// True if any crate turns on `dns` of embassy-net: 1 socket, even if no name is resolved.
    pub dns: bool,
    /// Number of publishers: 1 socket each, for any number of nsqds.
    pub publishers: usize,
    /// Number of nsqlookupds that a lookup may have at a time (its `PEERS`): 1 socket each. For
    /// those of a node see [`with_node`](Self::with_node).
    pub lookupds: usize,
    /// Number of connections of consumers: see [`with_consumer`](Self::with_consumer).
    pub consumers: usize,
    /// Number of accept slots, including spare slots: 1 socket each. See
    /// [`with_node`](Self::with_node).
    pub listeners: usize,
    /// Number of sockets that the application makes itself.
    pub other: usize,
}

impl Sockets {
    /// No sockets, except that of the DNS client if the feature `dns` is on.
    pub const NONE: Self = Self {
        dhcp: false,
        dns: cfg!(feature = "dns"),
        publishers: 0,
        lookupds: 0,
        consumers: 0,
        listeners: 0,
        other: 0,
    };

    /// Adds the sockets of a consumer: one for each connection to an nsqd, one for each nsqlookupd.
    /// The arguments are the parameters of its
    /// [`Resources`](nanonsq_core::drive::consumer::Resources).
    ///
    /// ```
    /// # use nanonsq_embassy::Sockets;
    /// // 1 publisher; 1 consumer with up to 2 nsqds at a time, found by 1 nsqlookupd.
    /// const SOCKETS: Sockets = Sockets { publishers: 1, ..Sockets::NONE }.with_consumer(2, 1);
    /// # assert_eq!(SOCKETS.count() - Sockets::NONE.count(), 4);
    /// ```
    #[must_use]
    pub const fn with_consumer(mut self, connections: usize, lookupds: usize) -> Self {
        self.consumers += connections + lookupds;
        self
    }

    /// Adds the sockets of a node: one for each client, each HTTP connection and each nsqlookupd, a
    /// spare one for each port, and one to look up the channels of new topics. The arguments are
    /// the parameters of its [`Resources`](nanonsq_core::drive::nsqd::Resources).
    ///
    /// ```
    /// # use nanonsq_embassy::Sockets;
    /// // 4 clients, 2 HTTP connections, 1 nsqlookupd.
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

    /// Returns the number of sockets: the parameter of `StackResources`.
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
