//! What is particular to an nsqd: its calls, and its lines for the log.

use std::task::{Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{nsqd as borrowed, registration};
use nanonsq_core::name::TopicName;
use nanonsq_core::nsqd::{ClientEvent, Counters, Event, Nsqd, PublishError as Refusal, TableFull};
use nanonsq_core::registration::PeerEvent;
use nanonsq_core::session::Closed;

use super::{CHANNELS, PEERS, TOPICS};
use crate::client::{Call, Report, Role};
use crate::role::{Lines, Peer, Stop, poll_once};
use crate::{CriticalSectionRawMutex, TokioSleep};

pub(crate) struct Serving;

type Node<'a> = borrowed::Handle<'a, CriticalSectionRawMutex, TokioSleep>;
type Lookup<'a> =
    registration::Handle<'a, CriticalSectionRawMutex, TokioSleep, PEERS, TOPICS, CHANNELS>;

pub(crate) struct Locals<'a> {
    node: Node<'a>,
    lookup: Lookup<'a>,
    lookupds: &'a [Address],
    peers: Vec<Peer>,
    is_closing: bool,
    stop: Stop<'a>,
}

#[derive(Default)]
pub(crate) struct Exchange {
    report: Report,
    topic: Option<TopicName>,
    /// Kept, with its capacity, for the next message.
    body: Vec<u8>,
    pub(super) accepted: Option<Result<(), Refusal>>,
    pub(super) counters: Counters,
    /// No message is left.
    pub(super) idle: bool,
    /// The nsqd's version at this report and at the one before.
    versions: (u32, u32),
}

/// The tasks that wait.
#[derive(Default)]
pub(crate) struct Waits {
    /// For room; the others wait for their turn.
    pub(super) room: Option<Waker>,
    pub(super) idle: Vec<Waker>,
}

/// Offers the message; `accepted` stays empty while there is no room.
pub(super) const OFFER: Call<Serving> = |locals, exchange| {
    let Some(topic) = exchange.topic else { return };
    if let Poll::Ready(taken) = poll_once(locals.node.publish(&topic, &exchange.body)) {
        exchange.accepted = Some(taken.map(|_| ()));
    }
};

pub(super) const TRY: Call<Serving> = |locals, exchange| {
    let Some(topic) = exchange.topic else { return };
    exchange.accepted = Some(locals.node.try_publish(&topic, &exchange.body).map(|_| ()));
};

pub(super) const COUNT: Call<Serving> = |locals, exchange| {
    exchange.counters = locals.node.counters();
    exchange.idle = locals.node.look(is_idle).unwrap_or_default();
};

impl Role for Serving {
    const NAME: &'static str = "nsqd";

    type Locals<'a> = Locals<'a>;
    type Exchange = Exchange;
    type Waits = Waits;

    const REPORT: Call<Self> = |locals, exchange| {
        while let Some(event) = locals.node.try_event() {
            exchange.report.lines.extend(line(event));
        }
        locals.tell_of_lookupds(&mut exchange.report.lines);
        let version = locals.node.look(|node| {
            exchange.idle = is_idle(node);
            if locals.is_closing {
                exchange.report.left = left(node);
            }
            node.version()
        });
        exchange.versions = (version.unwrap_or_default(), exchange.versions.0);
        exchange.report.is_stopped = locals.stop.is_done();
    };

    const CLOSE: Call<Self> = |locals, _| locals.is_closing = true;

    const STOP: Call<Self> = |locals, _| {
        let node = locals.node.clone();
        locals.stop.begin(async move { node.stop().await });
    };

    fn wake(waits: &mut Waits, exchange: &mut Exchange, over: bool, to_wake: &mut Vec<Waker>) {
        if over || exchange.versions.0 != exchange.versions.1 {
            to_wake.extend(waits.room.take());
        }
        if over || exchange.idle {
            to_wake.append(&mut waits.idle);
        }
    }
}

impl<'a> Locals<'a> {
    pub(super) fn new(node: Node<'a>, lookup: Lookup<'a>, lookupds: &'a [Address]) -> Self {
        let peers = vec![Peer::default(); lookupds.len()];
        Self { node, lookup, lookupds, peers, is_closing: false, stop: Stop::default() }
    }

    fn tell_of_lookupds(&mut self, lines: &mut Lines) {
        while let Poll::Ready((index, event)) = poll_once(self.lookup.event()) {
            let (Some(address), Some(peer)) = (self.lookupds.get(index), self.peers.get_mut(index))
            else {
                continue;
            };
            match event {
                PeerEvent::Connected => {
                    peer.connected(format!("connected to nsqlookupd {address}"), lines);
                }
                PeerEvent::Disconnected(why) if why != Closed::Local => {
                    peer.lost(format!("{} nsqlookupd {address}: {why}", peer.failed()), lines);
                }
                _ => {}
            }
        }
    }
}

impl Exchange {
    pub(super) fn fill(&mut self, topic: TopicName, body: &[u8]) {
        self.topic = Some(topic);
        self.body.clear();
        self.body.extend_from_slice(body);
    }
}

impl AsMut<Report> for Exchange {
    fn as_mut(&mut self) -> &mut Report {
        &mut self.report
    }
}

/// Makes the line of an event, if it is for the log.
fn line(event: Event) -> Option<(bool, String)> {
    Some(match event {
        Event::Client { index, event: ClientEvent::Connected } => {
            (false, format!("client {index}: connected"))
        }
        Event::Client { event: ClientEvent::Disconnected(Closed::Local), .. } => return None,
        Event::Client { index, event: ClientEvent::Disconnected(why) } => {
            (false, format!("client {index}: lost: {why}"))
        }
        Event::TableFull(full) => {
            let what = match full {
                TableFull::Topics => "topic",
                TableFull::Channels => "channel",
                TableFull::ChannelsOfTopic => "channel of a topic",
            };
            (true, format!("refused another {what}: there is no room"))
        }
        Event::Dropped { count } | Event::Expired { count } => {
            (true, format!("dropped messages, whose room was needed: {count}"))
        }
        _ => return None,
    })
}

fn is_idle(node: &Nsqd<'_>) -> bool {
    let store = node.store();
    store.free == store.blocks
}

/// Returns the number of messages in topics without a channel, plus those that each channel has not
/// finished.
fn left(node: &Nsqd<'_>) -> u64 {
    let of_channels = |topic| {
        node.channels(topic).map(|channel| channel.depth + channel.in_flight + channel.deferred)
    };
    let all = node.topics().map(|topic| topic.depth + of_channels(topic.name).sum::<u32>());
    all.map(u64::from).sum()
}
