//! Traits over publishers and nsqds; registration of the topics; logging of connections.

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
use crate::reported::Reported;

/// Publishes messages and reports their outcome. Implemented by the handles of publishers and
/// nsqds.
pub trait Network: Publish<Error: Logged> {
    /// Returns the counters since the start.
    fn counters(&self) -> Counters;

    /// Waits for the next event.
    fn event(&self) -> impl Future<Output = Event>;

    /// Waits until all messages are final.
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

/// For a device that is an nsqd itself. An accepted message counts as acknowledged, and is final
/// once every channel has finished it.
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

    /// Waits for ever: [`watch_clients`] takes the events of an nsqd.
    async fn event(&self) -> Event {
        core::future::pending().await
    }

    async fn settle(&self) {
        self.idle().await;
    }
}

/// Logs connections of clients, full tables and failed lookups for ever.
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
                note!(warn, "nsqlookupd {}: lookup of a topic's channels: {}", lookupd, why);
            }
            _ => {}
        }
    }
}

/// Why the topics are not registered: the firmware's registration is too small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum RegisterError {
    /// There are more nsqlookupds than the registration has peers.
    Peers(TooManyPeers),
    /// The registration has room for fewer than 3 topics.
    Topics(RegistryFull),
}

/// Keeps the topics of readings, reports and replies registered with these nsqlookupds.
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

/// Logs connections to nsqlookupds and their losses for ever.
pub async fn watch_lookups<M, S, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>(
    lookup: &registration::Handle<'_, M, S, PEERS, TOPICS, CHANNELS>,
) -> !
where
    M: RawMutex,
    S: Sleep,
{
    let mut reported = Reported::<PEERS>::new();
    loop {
        match lookup.event().await {
            (peer, PeerEvent::Connected) => {
                reported.forget(peer);
                note!(info, "nsqlookupd {}: connected", peer);
            }
            (peer, PeerEvent::Disconnected(Closed::Local)) => {
                note!(info, "nsqlookupd {}: {}", peer, Closed::Local);
            }
            (peer, PeerEvent::Disconnected(why)) if reported.is_new(peer, why) => {
                note!(warn, "nsqlookupd {}: {}", peer, why);
            }
            _ => {}
        }
    }
}
