//! The destination of the device's messages: an nsqd, or the device itself as an nsqd.

use core::cell::Cell;
use core::fmt::{self, Write};
use core::net::Ipv4Addr;

use embassy_futures::join::join;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_app::Network as _;
use nanonsq_core::drive;
use nanonsq_core::drive::publisher::Publish;
use nanonsq_core::drive::{nsqd, registration};
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{self, Counters, Event, Outcome, State};
use nanonsq_core::session::{Closed, LinkState};
use nanonsq_embassy::EmbassySleep;

use super::serve;
use crate::settings::LOOKUPDS_MAX;

/// The topics of readings, reports and replies.
pub(super) const TOPICS: usize = 3;
/// Free blocks of the store below which a reading may have to wait for room.
const BLOCKS_FREE: u32 = 16;

pub(super) type PublishHandle = drive::publisher::Handle<'static, NoopRawMutex>;
pub(super) type LookupHandle<const TOPICS: usize, const CHANNELS: usize> =
    registration::Handle<'static, NoopRawMutex, EmbassySleep, LOOKUPDS_MAX, TOPICS, CHANNELS>;
pub(super) type NodeHandle = nsqd::Handle<'static, NoopRawMutex, EmbassySleep>;

/// A handle of the publisher or of the device's own nsqd.
#[derive(Clone)]
pub(super) enum Upstream {
    /// The device publishes to an nsqd.
    Nsqd(Publishing),
    /// The device is an nsqd.
    Own(Serving),
}

#[derive(Clone)]
pub(super) struct Publishing {
    pub(super) handle: PublishHandle,
    pub(super) registry: LookupHandle<TOPICS, 0>,
    /// Why the last connection ended.
    pub(super) last: &'static Cell<Option<Closed>>,
}

#[derive(Clone)]
pub(super) struct Serving {
    pub(super) handle: NodeHandle,
    pub(super) registry: LookupHandle<{ serve::TOPICS }, { serve::CHANNELS }>,
    /// The device's own address, if it was announced to nsqlookupds.
    pub(super) address: Option<Ipv4Addr>,
}

/// The ticket of a message; `None` in a device that is an nsqd.
pub(super) type Ticket = Option<publisher::Ticket>;

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub(super) enum Refused {
    ByPublisher(publisher::PublishError),
    ByNode(nanonsq_core::nsqd::PublishError),
}

impl Upstream {
    /// Returns whether the publisher is connected, or the nsqd is registered with at least one
    /// nsqlookupd if any is set.
    pub(super) fn is_well(&self) -> bool {
        match self {
            Self::Nsqd(nsqd) => nsqd.state() == State::Ready,
            Self::Own(own) => {
                let states = own.registry.look(|lookup| {
                    [(); LOOKUPDS_MAX].iter().enumerate().fold((0, 0), |(all, ready), (n, ())| {
                        match lookup.status(n) {
                            Some(peer) if peer.address.is_some() => {
                                (all + 1, ready + u32::from(peer.state == LinkState::Ready))
                            }
                            _ => (all, ready),
                        }
                    })
                });
                // Without nsqlookupds, consumers are configured with the device's address.
                states.is_some_and(|(all, ready)| all == 0 || ready > 0)
            }
        }
    }

    /// Returns a number that changes while the publisher makes progress: see
    /// [`Signs`](crate::life::Signs).
    pub(super) fn sign(&self) -> Option<u32> {
        let Self::Nsqd(nsqd) = self else { return None };
        let counters = nsqd.handle.counters();
        let all = counters.connections.wrapping_add(counters.failures);
        Some(all.wrapping_add(counters.heartbeats).wrapping_add(counters.acknowledged as u32))
    }

    /// Returns whether a reading would be accepted at once.
    pub(super) fn is_free(&self) -> bool {
        match self {
            Self::Nsqd(nsqd) => nsqd.state() == State::Ready && nsqd.handle.counters().pending == 0,
            Self::Own(own) => {
                own.handle.look(|node| node.store().free).is_some_and(|free| free > BLOCKS_FREE)
            }
        }
    }

    /// Disconnects from all servers and clients.
    pub(super) async fn stop(&self) {
        match self {
            Self::Nsqd(nsqd) => {
                join(nsqd.registry.stop(), nsqd.handle.stop(&EmbassySleep)).await;
            }
            Self::Own(own) => own.handle.stop().await,
        }
    }

    /// Writes the lines of `stats` about connections and messages.
    pub(super) fn write(&self, readings: u32, out: &mut impl Write) -> fmt::Result {
        match self {
            Self::Nsqd(nsqd) => {
                nsqd.write(out)?;
                write_registry(&nsqd.registry, out)?;
                let counters = nsqd.handle.counters();
                write_counters(readings, &counters, out)?;
                writeln!(
                    out,
                    " pending={} rejected={} dropped={} expired={} refused={} \
                     possible_duplicates={} connections={} failures={} heartbeats={}",
                    counters.pending,
                    counters.rejected,
                    counters.dropped,
                    counters.expired,
                    counters.refused,
                    counters.possible_duplicates,
                    counters.connections,
                    counters.failures,
                    counters.heartbeats
                )
            }
            Self::Own(own) => {
                let clients = own.handle.look(|node| node.statuses().count()).unwrap_or(0);
                writeln!(out, "nsqd       is this device, with {clients} clients")?;
                write_registry(&own.registry, out)?;
                write_counters(readings, &self.counters(), out)?;
                let counters = own.handle.counters();
                writeln!(
                    out,
                    " delivered={} finished={} requeued={} timed_out={} returned={} refused={} \
                     connections={} turned_away={} given_back={} abandoned={} tables_full={}",
                    counters.delivered,
                    counters.finished,
                    counters.requeued,
                    counters.timed_out,
                    counters.returned,
                    counters.refused,
                    counters.connections,
                    own.handle.turned_away(),
                    counters.topics_given_back.saturating_add(counters.channels_given_back),
                    counters.abandoned,
                    counters
                        .topics_refused
                        .saturating_add(counters.channels_refused)
                        .saturating_add(counters.channels_of_topic_refused)
                )
            }
        }
    }
}

impl Publishing {
    fn state(&self) -> State {
        self.handle.look(|publisher| publisher.state()).unwrap_or(State::Stopped)
    }

    fn write(&self, out: &mut impl Write) -> fmt::Result {
        out.write_str("nsqd       ")?;
        if let Some(nsqd) = self.handle.look(|publisher| publisher.nsqd().cloned()).flatten() {
            write!(out, "{nsqd} ")?;
        }
        out.write_str(match self.state() {
            State::Waiting => "will be dialed again",
            State::LeftOut(_) => "refused for good, and is dialed again every few minutes",
            State::Dialing => "is being dialed",
            State::Upgrading | State::Identifying | State::Authenticating => "is handshaking",
            State::Ready => "is connected",
            State::Closing(_) => "is being disconnected",
            State::Stopped => "is disconnected",
        })?;
        match self.last.get() {
            Some(why) => writeln!(out, "; last time it ended: {why}"),
            None => writeln!(out),
        }
    }
}

fn write_counters(readings: u32, counters: &Counters, out: &mut impl Write) -> fmt::Result {
    let (accepted, acknowledged) = (counters.accepted, counters.acknowledged);
    write!(out, "messages   readings={readings} accepted={accepted} acknowledged={acknowledged}")
}

fn write_registry<const TOPICS: usize, const CHANNELS: usize>(
    registry: &LookupHandle<TOPICS, CHANNELS>,
    out: &mut impl Write,
) -> fmt::Result {
    for index in 0..LOOKUPDS_MAX {
        let written = registry.look(|lookup| {
            let Some(status) = lookup.status(index) else { return Ok(()) };
            let Some(address) = status.address else { return Ok(()) };
            let how = match (status.state, status.settled) {
                (LinkState::Ready, true) => "has all topics",
                (LinkState::Ready, false) => "is receiving the topics",
                _ => "is not connected",
            };
            write!(out, "nsqlookupd {address} {how}")?;
            match status.last {
                Some(why) => writeln!(out, "; last time it ended: {why}"),
                None => writeln!(out),
            }
        });
        written.unwrap_or(Ok(()))?;
    }
    Ok(())
}

impl Publish for Upstream {
    type Ticket = Ticket;
    type Error = Refused;

    async fn publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, Refused> {
        match self {
            Self::Nsqd(nsqd) => {
                nsqd.handle.publish(topic, body).await.map(Some).map_err(Refused::ByPublisher)
            }
            Self::Own(own) => {
                own.handle.publish(topic, body).await.map(|_| None).map_err(Refused::ByNode)
            }
        }
    }

    fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, Refused> {
        match self {
            Self::Nsqd(nsqd) => {
                nsqd.handle.try_publish(topic, body).map(Some).map_err(Refused::ByPublisher)
            }
            Self::Own(own) => {
                own.handle.try_publish(topic, body).map(|_| None).map_err(Refused::ByNode)
            }
        }
    }

    async fn outcome(&self, ticket: Ticket) -> Outcome {
        match (self, ticket) {
            (Self::Nsqd(nsqd), Some(ticket)) => nsqd.handle.outcome(ticket).await,
            // An accepted message is in the store.
            _ => Outcome::Acknowledged,
        }
    }
}

impl nanonsq_app::Network for Upstream {
    fn counters(&self) -> Counters {
        match self {
            Self::Nsqd(nsqd) => nsqd.handle.counters(),
            Self::Own(own) => nanonsq_app::Network::counters(&own.handle),
        }
    }

    async fn event(&self) -> Event {
        match self {
            Self::Nsqd(nsqd) => {
                let event = nsqd.handle.event().await;
                if let Event::Disconnected { why, .. } = &event {
                    nsqd.last.set(Some(*why));
                }
                event
            }
            Self::Own(own) => nanonsq_app::Network::event(&own.handle).await,
        }
    }

    async fn settle(&self) {
        match self {
            Self::Nsqd(nsqd) => nsqd.handle.idle().await,
            Self::Own(own) => own.handle.idle().await,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ByPublisher(why) => why.fmt(f),
            Self::ByNode(why) => why.fmt(f),
        }
    }
}
