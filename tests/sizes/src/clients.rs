//! The measured clients.

use core::pin::pin;

use embassy_futures::join::join;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::consumer;
use nanonsq_core::drive;
use nanonsq_core::drive::registration;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{self, Outcome};
use nanonsq_core::registration::{Config, NodeInfo};
use nanonsq_core::{address, channel, topic};

use crate::platform::{Clock, LinkDialer};
use crate::{consumed, done, next_message};

/// Bytes of the outbox: two messages and their topic.
pub const OUTBOX: usize = 512;
/// The receive buffer in [`drive::publisher::Runner::run`].
pub const PUBLISHER_RX: usize = 128;
/// The receive buffer of each peer in [`registration::Runner::run`].
pub const LOOKUP_RX: usize = 64;

/// The receive buffer of each of a consumer's connections, passed to
/// [`drive::consumer::Runner::run_with`]: as large as the publisher's.
pub const CONSUMER_RX: usize = 128;
/// The receive buffer for each nsqlookupd in [`drive::consumer::Runner::run`].
pub const CONSUMER_LOOKUP_RX: usize = 128;
/// Connections of the consumer.
pub const CONNECTIONS: usize = 2;
/// Messages in flight.
pub const MESSAGES: usize = 4;
/// Bytes of the ring for these messages.
pub const RING: usize = MESSAGES * 64;
/// The most nsqds from an nsqlookupd.
pub const FOUND: usize = CONNECTIONS;

pub(crate) const TOPIC: TopicName = topic!("sensors-temp");
static NSQDS: [Address; 1] = [address!("10.0.0.1:4150")];
static COMMAND_NSQDS: [Address; CONNECTIONS] =
    [address!("10.0.0.1:4250"), address!("10.0.0.1:4251")];
static COMMAND_LOOKUPDS: [Address; 1] = [address!("10.0.0.2:4261")];
pub(crate) static NSQLOOKUPDS: [Address; 2] =
    [address!("10.0.0.2:4160"), address!("10.0.0.2:4161")];

const CONFIG: publisher::Config<'static> = publisher::Config::new();
const COMMANDS: consumer::Config<'static> =
    consumer::Config::new(topic!("commands"), channel!("device"));
pub(crate) const NODE: Config<'static> = Config::new(NodeInfo {
    broadcast_address: "10.0.0.9",
    hostname: "device",
    tcp_port: 4150,
    http_port: 4151,
    topology_region: "",
    topology_zone: "",
    version: "1.3.0",
});

/// Publishes the messages of the work source, for ever.
pub async fn publish() {
    let mut ring = [0; OUTBOX];
    let mut resources = drive::publisher::Resources::<NoopRawMutex>::new();
    let Ok((handle, mut runner)) =
        drive::publisher::new(&mut resources, &CONFIG, &NSQDS, &mut ring, LinkDialer, Clock::new())
    else {
        return;
    };
    let work = async {
        loop {
            let message = next_message().await;
            let acknowledged = match handle.publish(&TOPIC, message).await {
                Ok(ticket) => handle.outcome(ticket).await == Outcome::Acknowledged,
                Err(_) => false,
            };
            done(acknowledged);
        }
    };
    // Pinned in place: moved into the join, the futures would pass through the stack.
    join(pin!(work), pin!(runner.run())).await;
}

/// As [`publish`], from one task.
pub async fn publish_from_one_task() {
    let mut ring = [0; OUTBOX];
    let mut publisher = drive::publisher::OneTask::new();
    if publisher.set_up(&CONFIG, &NSQDS, &mut ring).is_err() {
        return;
    }
    let work = async |publisher: &drive::publisher::OneTask<'_>| loop {
        let message = next_message().await;
        let acknowledged = match publisher.publish(&TOPIC, message).await {
            Ok(ticket) => publisher.outcome(ticket).await == Outcome::Acknowledged,
            Err(_) => false,
        };
        done(acknowledged);
    };
    publisher.run_until(&mut LinkDialer, &mut Clock::new(), work).await
}

/// Keeps the topic registered with `PEERS` nsqlookupds, for ever.
pub async fn register<const PEERS: usize>() {
    let mut resources = registration::Resources::<NoopRawMutex, PEERS, 1, 0>::new();
    let dialers = [LinkDialer; PEERS];
    let Ok((handle, mut runner)) = registration::new(&mut resources, &NODE, dialers, Clock::new())
    else {
        return;
    };
    let addresses = NSQLOOKUPDS.get(..PEERS).unwrap_or_default();
    if handle.configure(addresses).is_err() || handle.register(&TOPIC, None).is_err() {
        return;
    }
    runner.run().await;
}

/// Consumes commands for ever, from configured nsqds if there are no `LOOKUPDS`, else from those
/// that nsqlookupds list.
pub async fn consume<const LOOKUPDS: usize, const NSQDS: usize>() {
    let mut ring = [0; RING];
    let mut resources =
        drive::consumer::Resources::<NoopRawMutex, CONNECTIONS, MESSAGES, LOOKUPDS, NSQDS>::new();
    let sources = if LOOKUPDS == 0 {
        drive::consumer::Sources { nsqds: &COMMAND_NSQDS, lookupds: &[] }
    } else {
        drive::consumer::Sources { nsqds: &[], lookupds: &COMMAND_LOOKUPDS }
    };
    let dialers = drive::consumer::Dialers {
        nsqds: [LinkDialer; CONNECTIONS],
        lookupds: [LinkDialer; LOOKUPDS],
    };
    let Ok((handle, mut runner)) =
        drive::consumer::new(&mut resources, &COMMANDS, sources, &mut ring, dialers, Clock::new())
    else {
        return;
    };
    let work = async {
        loop {
            let command = handle.next().await;
            command.read(consumed);
            let _ = command.finish();
        }
    };
    join(pin!(work), pin!(runner.run_with::<CONSUMER_RX>())).await;
}
