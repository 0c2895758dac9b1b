//! nsqd's side of nsqlookupd: registers the topics and channels of this node with every nsqlookupd.
//!
//! Does the work of nsqd's lookupLoop, connectCallback and lookupPeer (nsqd/lookup.go,
//! nsqd/lookup_peer.go), but from the desired state instead of a queue of changes: all that is
//! [registered](Registration::register). Each configured nsqlookupd has a peer of its own, which
//! sends the commands that turn the announced state into the desired one; no peer waits for
//! another.
//!
//! ```text
//!          assign           dial             open                  answered
//!  Idle -----------> Waiting ----> Dialing -------> Identifying ------------->   Ready
//!    ^                  ^             | refused         | fault, timeout          | stop
//!    |                  |             v                 v                         v
//!    |                  +---------------- Closing <--------------------------- Leaving
//!    +--- retired ---------------------------+
//! ```
//!
//! Beyond nsqd, a peer reconnects at once after the loss of a connection that was good (all
//! commands were answered and the connection stayed up for a second, or it lasted for 10 s), then
//! with jittered backoff; pipelines commands; checks every reply; jitters PING; registers
//! everything again at a slow interval, which restores what an administrator deleted; and
//! unregisters on [`Registration::stop`].
//!
//! # Bounds
//!
//! | what | bound | when full |
//! |---|---|---|
//! | topics, channels | the const parameters | [`RegistryFull`] |
//! | nsqlookupds | `PEERS`, at most [`PEERS_MAX`] | [`TooManyPeers`] |
//! | unanswered commands of a peer | 1,024 | later commands wait |
//! | an error's text | 64 bytes | cut off |

mod peer;
mod registry;
#[cfg(test)]
mod tests;

use core::fmt;

use crate::address::Address;
use crate::name::{ChannelName, TopicName};
use crate::session::{Closed, LinkState};
use crate::time::{Instant, Span};
pub use crate::wire::nsqlookupd::NodeInfo;
pub use peer::PeerSession;
use peer::{FindPort, Http, Peer};
use registry::PeerId;
use registry::Registry;
pub use registry::{PEERS_MAX, RegistryFull};

/// The most commands that a peer sends ahead of their replies.
const OUTSTANDING_MAX: u16 = 1024;

/// The most bytes of a reply's text that are kept.
const DETAIL_MAX: usize = 64;

/// The settings of a [`Registration`]. Borrowed, so that a constant one costs no RAM.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The description of this node in IDENTIFY.
    pub node: NodeInfo<'a>,
    /// How long a dial may take, and the reply to IDENTIFY. Default 5 s.
    pub connect_timeout: Span,
    /// How long any other reply may take. Default 5 s.
    pub reply_timeout: Span,
    /// How often to send PING, give or take an eighth; zero for never. nsqlookupd stops listing a
    /// node 300 s after its last PING. Default 15 s, as nsqd.
    pub ping: Span,
    /// How often to register everything again, give or take an eighth; zero for never. Default 60
    /// s.
    pub reassert: Span,
    /// Reconnecting: after the first failure wait up to this, then up to double. Default 50 ms.
    pub reconnect_base: Span,
    /// Reconnecting: the longest wait for an nsqlookupd that cannot be reached. Default 800 ms, so
    /// that a node is listed within a second of its return. Longer in a [`fleet`](Self::fleet). An
    /// nsqlookupd that accepts connections and closes them again is dialed after 1 s, then up to 2
    /// s, up to 16 s, or this if it is longer.
    pub reconnect_cap: Span,
    /// Reconnecting: spreads the first attempt after a loss over this time. Default none; see
    /// [`fleet`](Self::fleet).
    pub reconnect_spread: Span,
    /// How long closing may take. Default 1 s.
    pub close_timeout: Span,
    /// Makes the jitter of this device differ from that of others.
    pub seed: u32,
}

impl<'a> Config<'a> {
    /// Creates the default settings for a single node.
    pub const fn new(node: NodeInfo<'a>) -> Self {
        Self {
            node,
            connect_timeout: Span::from_secs(5),
            reply_timeout: Span::from_secs(5),
            ping: Span::from_secs(15),
            reassert: Span::from_secs(60),
            reconnect_base: Span::from_millis(50),
            reconnect_cap: Span::from_millis(800),
            reconnect_spread: Span::ZERO,
            close_timeout: Span::from_secs(1),
            seed: 0,
        }
    }

    /// Creates the default settings for each of many nodes, up to ten thousand: when an nsqlookupd
    /// restarts, they reconnect one after the other, at most a fifth of them within a second, and
    /// all are listed again within 20 s. A single node with [`new`](Self::new) is listed within a
    /// second.
    pub const fn fleet(node: NodeInfo<'a>) -> Self {
        Self {
            reconnect_base: Span::from_secs(12),
            reconnect_cap: Span::from_secs(16),
            reconnect_spread: Span::from_secs(15),
            ..Self::new(node)
        }
    }

    const fn check(&self) -> Result<(), ConfigError> {
        let node = &self.node;
        if node.broadcast_address.is_empty() || node.version.is_empty() {
            return Err(ConfigError::EmptyField);
        }
        if node.tcp_port == 0 || node.http_port == 0 {
            return Err(ConfigError::ZeroPort);
        }
        Ok(())
    }

    const fn reconnect(&self) -> [Span; 3] {
        [self.reconnect_base, self.reconnect_cap, self.reconnect_spread]
    }
}

/// A setting that nsqlookupd would refuse in IDENTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// `broadcast_address` or `version` is empty.
    EmptyField,
    /// `tcp_port` or `http_port` is 0. A node without HTTP sets `http_port` to any other port.
    ZeroPort,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EmptyField => "broadcast_address and version must not be empty",
            Self::ZeroPort => "tcp_port and http_port must not be 0; nsqlookupd refuses that",
        })
    }
}

impl core::error::Error for ConfigError {}

/// [`Registration::configure`] got more distinct addresses than there are peers, and changed
/// nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooManyPeers {
    /// The number of addresses that fit.
    pub max: usize,
}

impl fmt::Display for TooManyPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more nsqlookupd addresses than the {} that fit", self.max)
    }
}

impl core::error::Error for TooManyPeers {}

/// A change of a peer. A newer change replaces an older one that was not polled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PeerEvent {
    /// nsqlookupd accepted IDENTIFY.
    Connected,
    /// The connection is gone or did not come up; another attempt is due.
    Disconnected(Closed),
}

/// The HTTP port of an nsqlookupd, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum HttpPort {
    /// The last dial failed, or the nsqlookupd did not report its port.
    Unknown,
    /// The first connection is coming up, and may report the port at any moment.
    Coming,
    /// The port that the nsqlookupd reported last.
    Known(u16),
}

/// The status of a peer.
#[derive(Debug, Clone, Copy)]
pub struct PeerStatus<'s> {
    /// The nsqlookupd to connect to.
    pub address: Option<&'s Address>,
    /// The state of its connection.
    pub state: LinkState,
    /// True if nsqlookupd confirmed the desired state, and nothing else is announced.
    pub settled: bool,
    /// Why the last connection ended or failed.
    pub last: Option<Closed>,
    /// nsqlookupd's last reply, cut off at 64 bytes: after
    /// [`Fault::Refused`](crate::session::Fault::Refused) the text of its error.
    pub detail: &'s str,
    /// How many connections came up.
    pub connections: u32,
    /// How many connections broke or failed to come up.
    pub failures: u32,
}

/// The peers and the topics and channels that they keep registered: nsqd's lookupLoop.
///
/// RAM: at most 24 bytes, 464 a peer, 67 a topic and 70 a channel.
#[derive(Debug)]
pub struct Registration<'a, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize> {
    config: &'a Config<'a>,
    registry: Registry<TOPICS, CHANNELS>,
    peers: PeerTable<PEERS>,
    find_port: Option<FindPort>,
}

/// A fixed number of peers.
#[derive(Debug)]
struct PeerTable<const PEERS: usize>([Peer; PEERS]);

impl<'a, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>
    Registration<'a, PEERS, TOPICS, CHANNELS>
{
    const LIMITS: () = assert!(PEERS <= PEERS_MAX, "at most PEERS_MAX nsqlookupds");

    /// Creates a registration without topics and nsqlookupds: see [`configure`](Self::configure).
    pub fn new(config: &'a Config<'a>) -> Result<Self, ConfigError> {
        let mut lookup = Self::idle();
        lookup.set_up(config)?;
        Ok(lookup)
    }

    /// Creates a registration without settings, for [`set_up`](Self::set_up).
    pub(crate) const fn idle() -> Self {
        const NONE: Config<'_> = Config::new(NodeInfo::NONE);
        let () = Self::LIMITS;
        Self {
            config: &NONE,
            registry: Registry::new(),
            peers: PeerTable([const { Peer::new() }; PEERS]),
            find_port: None,
        }
    }

    /// Gives an idle registration its settings; see [`new`](Self::new).
    pub(crate) fn set_up(&mut self, config: &'a Config<'a>) -> Result<(), ConfigError> {
        config.check()?;
        self.config = config;
        for (index, peer) in (0..).zip(&mut self.peers.0) {
            peer.set_seed(config.seed.wrapping_add(index));
        }
        Ok(())
    }

    /// Sets the nsqlookupds to connect to, each once: keeps the connections to those in the list,
    /// closes the others, and adds the new ones (nsqd: `PUT /config/nsqlookupd_tcp_addresses`).
    pub fn configure(&mut self, now: Instant, addresses: &[Address]) -> Result<(), TooManyPeers> {
        let is_first = |at: usize, address: &Address| {
            !addresses.iter().take(at).any(|earlier| earlier == address)
        };
        let distinct = addresses.iter().enumerate().filter(|&(at, address)| is_first(at, address));
        if distinct.clone().count() > PEERS {
            return Err(TooManyPeers { max: PEERS });
        }
        let peers = &mut self.peers.0;
        for peer in peers.iter_mut() {
            if peer.address().is_some_and(|address| !addresses.contains(address)) {
                peer.retire(self.config, now);
            }
        }
        for (_, address) in distinct {
            if peers.iter().any(|peer| peer.address() == Some(address)) {
                continue;
            }
            // An idle peer, or else a peer whose old connection is closing.
            let free = peers
                .iter()
                .position(|peer| peer.state() == LinkState::Idle)
                .or_else(|| peers.iter().position(|peer| peer.address().is_none()));
            if let Some(peer) = free.and_then(|index| peers.get_mut(index)) {
                peer.assign(self.config, now, address.clone());
            }
        }
        Ok(())
    }

    /// Unregisters everything everywhere, then closes; peers without a connection just stop. Over
    /// when [`is_stopped`](Self::is_stopped); a peer that has not replied to everything by the
    /// reply timeout is closed. [`configure`](Self::configure) starts afresh.
    pub fn stop(&mut self, now: Instant) {
        self.registry.remove_all();
        for (index, peer) in self.peers.0.iter_mut().enumerate() {
            let settled = peer.is_quiet() && self.registry.is_settled(PeerId::new(index));
            peer.leave(self.config, now, settled);
        }
    }

    /// Returns whether no peer has a connection or wants one.
    pub fn is_stopped(&self) -> bool {
        self.peers.0.iter().all(|peer| peer.state() == LinkState::Idle)
    }

    /// Returns a value that changes when a connection changes, or all announced commands of a peer
    /// were confirmed, so that a waiting task should check its condition again.
    pub fn version(&self) -> u32 {
        self.peers.0.iter().fold(0, |sum, peer| sum.wrapping_add(peer.version()))
    }

    /// Registers a topic, or a channel and its topic, with all nsqlookupds. Does nothing if it is
    /// registered. Wake the driver afterwards.
    pub fn register(
        &mut self,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), RegistryFull> {
        match channel {
            None => self.registry.add_topic(topic),
            Some(channel) => self.registry.add_channel(topic, channel),
        }
    }

    /// Unregisters a topic and its channels, or a channel; returns whether it was registered. Its
    /// slot is free once no connected nsqlookupd lists it any more. Wake the driver afterwards.
    pub fn unregister(&mut self, topic: &TopicName, channel: Option<&ChannelName>) -> bool {
        match channel {
            None => self.registry.remove_topic(topic),
            Some(channel) => self.registry.remove_channel(topic, channel),
        }
    }

    /// Returns what is registered, in no order: each topic alone, and each channel with its topic.
    pub fn registered(&self) -> impl Iterator<Item = (&TopicName, Option<&ChannelName>)> {
        let topics = self.registry.topics().map(|topic| (topic, None));
        topics.chain(self.registry.channels().map(|(topic, channel)| (topic, Some(channel))))
    }

    /// Returns the session of peer `index`, below `PEERS`.
    pub fn peer(&mut self, index: usize) -> Option<PeerSession<'_, 'a>> {
        Some(PeerSession {
            peer: self.peers.0.get_mut(index)?,
            registry: self.registry.view(),
            id: PeerId::new(index),
            config: self.config,
            find_port: self.find_port,
        })
    }

    /// Enables the search for HTTP ports in the replies to IDENTIFY. Call it before anything is
    /// driven.
    pub fn find_http_ports(&mut self) {
        self.find_port = Some(Http::find);
    }

    /// Returns the configured address of peer `index`, below `PEERS`, and the HTTP port of that
    /// nsqlookupd; `None` without an address. See [`find_http_ports`](Self::find_http_ports).
    pub fn http(&self, index: usize) -> Option<(&Address, HttpPort)> {
        self.peers.0.get(index)?.http()
    }

    /// Returns the status of peer `index`, below `PEERS`.
    pub fn status(&self, index: usize) -> Option<PeerStatus<'_>> {
        let peer = self.peers.0.get(index)?;
        let settled = peer.state() == LinkState::Ready
            && peer.is_quiet()
            && self.registry.is_settled(PeerId::new(index));
        Some(peer.status(settled))
    }
}
