//! What the node needs of a network.

use embassy_sync::blocking_mutex::raw::RawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::drive::Sleep;
use nanonsq_core::drive::publisher::{Handle, Publish};
use nanonsq_core::drive::{nsqd, registration};
use nanonsq_core::nsqd::{ClientEvent, Event as NodeEvent};
use nanonsq_core::publisher::{Counters, Event};
use nanonsq_core::registration::{PeerEvent, RegistryFull, TooManyPeers};
use nanonsq_core::session::Closed;

use crate::Settings;
use crate::note::{Logged, note};
use crate::said::Said;

/// Publishes, and tells how that went. A publisher's handle, or that of a node of NSQ's; in tests, a
/// stand-in.
pub trait Network: Publish<Error: Logged> {
    /// What happened so far.
    fn counters(&self) -> Counters;

    /// The next event.
    fn event(&self) -> impl Future<Output = Event>;

    /// Waits until everything is final.
    fn settle(&self) -> impl Future<Output = ()>;
}

impl<M: RawMutex> Network for Handle<'_, M> {
    fn counters(&self) -> Counters {
        Handle::counters(self)
    }

    async fn event(&self) -> Event {
        Handle::event(self).await
    }

    async fn settle(&self) {
        self.idle().await;
    }
}

/// The device is an nsqd itself. What it has taken is acknowledged; it is final when every channel is
/// done with it.
impl<M: RawMutex, S: Sleep> Network for nsqd::Handle<'_, M, S> {
    fn counters(&self) -> Counters {
        let node = nsqd::Handle::counters(self);
        let mut counters = Counters::default();
        counters.accepted = node.accepted;
        counters.acknowledged = node.accepted;
        counters.dropped = node.dropped;
        counters.refused = node.refused;
        counters.connections = node.connections;
        counters.failures = node.refusals;
        counters
    }

    /// Never: those of its clients are [`watch_clients`]'s.
    async fn event(&self) -> Event {
        core::future::pending().await
    }

    async fn settle(&self) {
        self.idle().await;
    }
}

/// Logs for ever which clients come and go.
pub async fn watch_clients<M: RawMutex, S: Sleep>(node: &nsqd::Handle<'_, M, S>) -> ! {
    loop {
        match node.event().await {
            NodeEvent::Client { index, event: ClientEvent::Connected } => {
                note!(info, "client {}: connected", index);
            }
            NodeEvent::Client { index, event: ClientEvent::Disconnected(why) } => {
                note!(info, "client {}: {}", index, why);
            }
            NodeEvent::TableFull(full) => note!(warn, "table full: {}", full),
            NodeEvent::AskFailed { lookupd, why } => {
                note!(warn, "nsqlookupd {}: asked for a topic's channels: {}", lookupd, why);
            }
            _ => {}
        }
    }
}

/// Why the topics are not registered: there is not enough room for them, which is for the one to
/// mend who wrote the firmware.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RegisterError {
    /// More nsqlookupds than the lookup has peers.
    Peers(TooManyPeers),
    /// More topics than the lookup has room for: it needs 3.
    Topics(RegistryFull),
}

/// Has the topics that the node publishes to registered with these nsqlookupds from now on.
pub fn register<M, S, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>(
    lookup: &registration::Handle<'_, M, S, PEERS, TOPICS, CHANNELS>,
    settings: &Settings<'_>,
    lookupds: &[Address],
) -> Result<(), RegisterError>
where
    M: RawMutex,
    S: Sleep,
{
    lookup.configure(lookupds).map_err(RegisterError::Peers)?;
    for topic in [&settings.readings, &settings.reports, &settings.replies] {
        lookup.register(topic, None).map_err(RegisterError::Topics)?;
    }
    Ok(())
}

/// Logs for ever what happens to the connections to nsqlookupds.
pub async fn watch_lookups<M, S, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>(
    lookup: &registration::Handle<'_, M, S, PEERS, TOPICS, CHANNELS>,
) -> !
where
    M: RawMutex,
    S: Sleep,
{
    let mut said = Said::<PEERS>::new();
    loop {
        match lookup.event().await {
            (peer, PeerEvent::Connected) => {
                said.is_back(peer);
                note!(info, "nsqlookupd {}: connected", peer);
            }
            (peer, PeerEvent::Disconnected(Closed::Local)) => {
                note!(info, "nsqlookupd {}: {}", peer, Closed::Local);
            }
            (peer, PeerEvent::Disconnected(why)) if said.is_news(peer, why) => {
                note!(warn, "nsqlookupd {}: {}", peer, why);
            }
            _ => {}
        }
    }
}
