//! `/metrics`: what `/stats` has, for Prometheus.

use super::{Client, Shared};
use crate::http::Piece;
use crate::http::metrics::{Family, Label, Progress, Sample};
use crate::nsqd::Index;
use crate::nsqd::status::{ClientState, ClientStatus, Counters};
use crate::nsqd::table::{Channel, Topic};

/// Of what a family has values.
enum Of {
    Node(fn(&Shared<'_>, &[Client]) -> u64),
    Counter(fn(&Counters) -> u64),
    Topic(fn(&Topic) -> u64),
    Channel(fn(&Channel) -> u64),
    Client(fn(&ClientStatus<'_>) -> u64),
}

const FAMILIES: &[Family<Of>] = &[
    Family::counter("nsqd_messages_total", "Accepted messages.", Of::Counter(|it| it.accepted)),
    Family::counter(
        "nsqd_deliveries_total",
        "Deliveries of messages to clients.",
        Of::Counter(|it| it.delivered),
    ),
    Family::counter("nsqd_finished_total", "Finished messages.", Of::Counter(|it| it.finished)),
    Family::counter("nsqd_requeued_total", "Requeued messages.", Of::Counter(|it| it.requeued)),
    Family::counter(
        "nsqd_timed_out_total",
        "Messages without an answer in time.",
        Of::Counter(|it| it.timed_out),
    ),
    Family::counter(
        "nsqd_dropped_total",
        "Messages dropped to make room.",
        Of::Counter(|it| it.dropped.saturating_add(it.expired)),
    ),
    Family::counter(
        "nsqd_waits_total",
        "Waits of clients for room.",
        Of::Counter(|it| it.waits.into()),
    ),
    Family::counter(
        "nsqd_connections_total",
        "Accepted connections of clients.",
        Of::Counter(|it| it.connections.into()),
    ),
    Family::gauge("nsqd_clients", "Connected clients.", Of::Node(connected)),
    Family::gauge(
        "nsqd_store_blocks",
        "Blocks of the memory for messages.",
        Of::Node(|shared, _| shared.store.capacity().into()),
    ),
    Family::gauge(
        "nsqd_store_free_blocks",
        "Free blocks of the memory for messages.",
        Of::Node(|shared, _| shared.store.free().into()),
    ),
    Family::counter(
        "nsqd_topic_messages_total",
        "Messages published to the topic.",
        Of::Topic(|topic| topic.messages),
    ),
    Family::counter(
        "nsqd_topic_bytes_total",
        "Bytes of the bodies of these messages.",
        Of::Topic(|topic| topic.bytes),
    ),
    Family::counter(
        "nsqd_topic_dropped_total",
        "Messages of the topic dropped to make room.",
        Of::Topic(|topic| topic.dropped),
    ),
    Family::gauge(
        "nsqd_topic_depth",
        "Messages of the topic that no channel has yet.",
        Of::Topic(|topic| topic.held.len.into()),
    ),
    Family::gauge("nsqd_topic_paused", "1 if paused.", Of::Topic(|topic| topic.paused.into())),
    Family::counter(
        "nsqd_channel_messages_total",
        "Messages that the channel got from its topic.",
        Of::Channel(|channel| channel.messages),
    ),
    Family::counter(
        "nsqd_channel_requeued_total",
        "Requeued messages of the channel.",
        Of::Channel(|channel| channel.requeues),
    ),
    Family::counter(
        "nsqd_channel_timed_out_total",
        "Messages of the channel without an answer in time.",
        Of::Channel(|channel| channel.timeouts),
    ),
    Family::counter(
        "nsqd_channel_dropped_total",
        "Messages of the channel dropped to make room.",
        Of::Channel(|channel| channel.dropped),
    ),
    Family::gauge(
        "nsqd_channel_depth",
        "Messages that wait for delivery.",
        Of::Channel(|channel| channel.depth().into()),
    ),
    Family::gauge(
        "nsqd_channel_in_flight",
        "Messages in flight.",
        Of::Channel(|channel| channel.in_flight.into()),
    ),
    Family::gauge(
        "nsqd_channel_deferred",
        "Deferred messages.",
        Of::Channel(|channel| channel.deferred.len.into()),
    ),
    Family::gauge(
        "nsqd_channel_clients",
        "Subscribed clients.",
        Of::Channel(|channel| channel.clients.into()),
    ),
    Family::gauge(
        "nsqd_channel_paused",
        "1 if paused.",
        Of::Channel(|channel| channel.paused.into()),
    ),
    Family::counter(
        "nsqd_client_messages_total",
        "Deliveries to the subscribed client.",
        Of::Client(|client| client.messages),
    ),
    Family::counter(
        "nsqd_client_finished_total",
        "Messages that the client finished.",
        Of::Client(|client| client.finished),
    ),
    Family::counter(
        "nsqd_client_requeued_total",
        "Messages that the client requeued.",
        Of::Client(|client| client.requeued),
    ),
    Family::gauge(
        "nsqd_client_in_flight",
        "Messages in flight to the client.",
        Of::Client(|client| client.in_flight.into()),
    ),
    Family::gauge("nsqd_client_ready", "RDY of the client.", Of::Client(|it| it.ready.into())),
];

/// Writes as much as fits; returns whether the answer is complete.
pub(super) fn write(
    progress: &mut Progress,
    clients: &[Client],
    shared: &Shared<'_>,
    piece: &mut Piece<'_>,
) -> bool {
    progress.write(FAMILIES, piece, |of, from| find(of, from, clients, shared))
}

fn connected(shared: &Shared<'_>, clients: &[Client]) -> u64 {
    let clients = (0..).zip(clients);
    clients.filter(|(at, client)| client.status(shared, *at).is_some()).count() as u64
}

/// Returns the first sample from a slot on.
fn find<'s>(
    of: &Of,
    from: usize,
    clients: &'s [Client],
    shared: &'s Shared<'_>,
) -> Option<Sample<'s>> {
    let text = |key, text| Some((key, Label::Text(text)));
    let of_topic = |at, topic: &'s Topic, channel: Option<&'s Channel>, value| {
        let channel = channel.and_then(|channel| text("channel", channel.name.as_str()));
        Sample { at, labels: [text("topic", topic.name.as_str()), channel, None, None], value }
    };
    let alone = |value| (from == 0).then_some(Sample { at: 0, labels: [None; 4], value });
    match of {
        Of::Node(value) => alone(value(shared, clients)),
        Of::Counter(value) => alone(value(&shared.counters)),
        Of::Topic(value) => {
            let mut topics = shared.topics.iter().enumerate().skip(from);
            let (at, topic) = topics.find(|(_, topic)| topic.is_used())?;
            Some(of_topic(at, topic, None, value(topic)))
        }
        Of::Channel(value) => {
            let channels = shared.channels.iter().enumerate().skip(from);
            let mut used = channels.filter(|(_, channel)| channel.is_used());
            used.find_map(|(at, channel)| {
                let topic = shared.topic(channel.topic)?;
                Some(of_topic(at, topic, Some(channel), value(channel)))
            })
        }
        Of::Client(value) => {
            let mut clients = clients.iter().enumerate().skip(from);
            clients.find_map(|(at, client)| {
                let client = client.status(shared, at as Index)?;
                let labels = [
                    text("topic", client.topic?.as_str()),
                    text("channel", client.channel?.as_str()),
                    text("client_id", client.client_id),
                    client.from.map(|from| ("address", Label::Remote(from))),
                ];
                let is_subscribed = client.state == ClientState::Subscribed;
                is_subscribed.then(|| Sample { at, labels, value: value(&client) })
            })
        }
    }
}
