//! Handles without their runners: each method calls the state machine's, at the present time.

#![cfg(feature = "async")]

#[path = "support/sessions.rs"]
mod sessions;
#[path = "support/still.rs"]
mod still;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::consumer::{self, ConfigError, Exhausted};
use nanonsq_core::drive;
use nanonsq_core::drive::{Accept, AcceptError, AcceptSlot, Port, Ports, Sleep, Transport};
use nanonsq_core::drive::{nsqd, nsqlookupd, registration};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{NsqdError, PublishOptions};
use nanonsq_core::registration::TooManyPeers;
use nanonsq_core::session::{Session, Transmit, TransportError};
use nanonsq_core::time::Span;
use nanonsq_core::wire::nsqlookupd::NodeInfo;
use sessions::{frame, message, written};
use still::{Never, Still};

/// Accepts one connection, whose client sends its magic and a command, and waits.
#[derive(Debug, Clone)]
struct Caller(bool);

struct Silent(bool);

impl Transport for Silent {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        // A client that has sent a command is not closed for another.
        buf[..8].copy_from_slice(b"  V2NOP\n");
        Poll::Ready(Ok(8))
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }
}

impl Accept for Caller {
    type Transport = Silent;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<(Silent, SocketAddr), AcceptError>> {
        if std::mem::replace(&mut self.0, true) {
            return Poll::Pending;
        }
        Poll::Ready(Ok((Silent(false), ([10, 0, 0, 2], 5000).into())))
    }
}

/// One slot, for which two clients connect.
const CROWDED: Ports<AcceptSlot<Caller, Silent>, 1, 0> = {
    let slots = [AcceptSlot::new(Caller(false))];
    let spare = Some(AcceptSlot::new(Caller(false)));
    Ports { tcp: Port { slots, spare }, http: Port::NONE }
};

/// Polls the runner a few times.
fn run(runner: impl Future) {
    let mut runner = pin!(runner);
    for _ in 0..9 {
        assert!(runner.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    }
}

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn channel() -> ChannelName {
    ChannelName::new("c").unwrap()
}

#[track_caller]
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("the future is pending"),
    }
}

type Consumer<'a> = drive::consumer::Handle<'a, NoopRawMutex, Still>;

fn receive(handle: &Consumer<'_>, still: &Still, bytes: &[u8]) {
    let now = still.now();
    handle
        .inspect(|consumer| consumer.connection(0).unwrap().receive(now, bytes).unwrap())
        .unwrap();
}

fn writes(handle: &Consumer<'_>, still: &Still) -> String {
    let now = still.now();
    let bytes =
        handle.inspect(|consumer| written(&mut consumer.connection(0).unwrap(), now)).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// Runs `test` with a consumer whose connection has just been opened.
fn with_connection(config: &consumer::Config<'_>, test: impl FnOnce(&Consumer<'_>, &Still)) {
    let still = Still::default();
    let nsqds = ["nsqd:4150".parse().unwrap()];
    let mut ring = [0; 4 * 64];
    let mut resources = drive::consumer::Resources::<NoopRawMutex, 1, 4, 0, 0>::new();
    let (handle, _runner) = drive::consumer::new(
        &mut resources,
        config,
        drive::consumer::Sources { nsqds: &nsqds, lookupds: &[] },
        &mut ring,
        drive::consumer::Dialers { nsqds: [still.clone()], lookupds: [] },
        still.clone(),
    )
    .unwrap();
    let now = still.now();
    handle.inspect(|consumer| {
        let mut session = consumer.connection(0).unwrap();
        assert!(session.dial(now).is_some());
        session.open(now);
    });
    test(&handle, &still);
}

/// Runs `test` with a consumer that has subscribed and sent RDY.
fn with_consumer(test: impl FnOnce(&Consumer<'_>, &Still)) {
    let config = consumer::Config {
        max_attempts: 2,
        exhausted: Exhausted::Deliver,
        backoff_base: Span::ZERO,
        ..consumer::Config::new(topic(), channel())
    };
    with_connection(&config, |handle, still| {
        assert!(writes(handle, still).contains("IDENTIFY"));
        receive(handle, still, &frame(0, b"{\"max_rdy_count\":2500}"));
        assert_eq!(writes(handle, still), "SUB t c\n");
        receive(handle, still, &frame(0, b"OK"));
        assert_eq!(writes(handle, still), "RDY 4\n");
        test(handle, still);
    });
}

#[test]
fn only_configured_settings_are_in_identify() {
    let plain = consumer::Config::new(topic(), channel());
    for (config, setting) in [
        (plain, None),
        (consumer::Config { sample_rate: 10, ..plain }, Some("\"sample_rate\":10")),
        (
            consumer::Config { msg_timeout: Some(Span::from_secs(5)), ..plain },
            Some("\"msg_timeout\":5000"),
        ),
    ] {
        with_connection(&config, |handle, still| {
            let sent = handle
                .inspect(|consumer| written(&mut consumer.connection(0).unwrap(), still.now()));
            let sent = String::from_utf8_lossy(&sent.unwrap()).into_owned();
            assert!(sent.contains(setting.unwrap_or("IDENTIFY")), "{sent}");
            let others = ["\"sample_rate\"", "\"msg_timeout\""];
            let expected = usize::from(setting.is_some());
            assert_eq!(others.iter().filter(|key| sent.contains(*key)).count(), expected, "{sent}");
        });
    }
}

#[test]
fn pause_resume_and_max_in_flight_change_rdy() {
    with_consumer(|handle, still| {
        handle.pause();
        assert_eq!(handle.look(|consumer| consumer.is_paused()), Some(true));
        assert_eq!(writes(handle, still), "RDY 0\n");
        handle.resume();
        assert_eq!(writes(handle, still), "RDY 4\n");
        handle.set_max_in_flight(3);
        assert_eq!(writes(handle, still), "RDY 3\n");
    });
}

#[test]
fn a_message_can_be_read_and_answered_in_every_way() {
    with_consumer(|handle, still| {
        assert!(handle.try_next().is_none());
        receive(handle, still, &message(2, b"body"));
        let first = handle.try_next().unwrap();
        assert!(!first.is_exhausted());
        assert_eq!(first.read(<[u8]>::to_vec), Some(b"body".to_vec()));
        let head = first.head().unwrap();
        assert_eq!((head.attempts, head.id.to_string().as_str()), (2, "0123456789abcdef"));
        assert_eq!(handle.look(|_| first.head()), Some(None), "not available within `look`");
        assert_eq!(first.touch(), Ok(()));
        assert_eq!(writes(handle, still), "TOUCH 0123456789abcdef\n");
        assert_eq!(first.requeue(Some(Span::from_millis(7))), Ok(()));
        assert_eq!(writes(handle, still), "REQ 0123456789abcdef 7\n");
        receive(handle, still, &message(3, b"body"));
        let second = handle.try_next().unwrap();
        assert!(second.is_exhausted());
        assert_eq!(second.release(Some(Span::from_millis(8))), Ok(()));
        assert_eq!(writes(handle, still), "REQ 0123456789abcdef 8\n");
        let counters = handle.counters();
        // Only the first requeue is a failure.
        assert_eq!((counters.requeued, counters.touched, counters.finished), (2, 1, 0));
        receive(handle, still, &message(1, b"body"));
        // A dropped message is requeued with the delay of a first failure.
        drop(handle.try_next().unwrap());
        assert_eq!(writes(handle, still), "REQ 0123456789abcdef 90000\n");
    });
}

#[test]
fn a_consumer_without_room_for_nsqlookupds_rejects_them() {
    let config = consumer::Config::new(topic(), channel());
    let lookupds = ["lookupd:4161".parse().unwrap()];
    let still = Still::default();
    let mut ring = [0; 4 * 64];
    let mut resources = drive::consumer::Resources::<NoopRawMutex, 1, 4, 0, 0>::new();
    let made = drive::consumer::new(
        &mut resources,
        &config,
        drive::consumer::Sources { nsqds: &[], lookupds: &lookupds },
        &mut ring,
        drive::consumer::Dialers { nsqds: [still.clone()], lookupds: [] },
        still,
    );
    assert_eq!(made.err(), Some(ConfigError::Lookupds { count: 1 }));
}

fn info() -> NodeInfo<'static> {
    NodeInfo {
        broadcast_address: "node",
        hostname: "node",
        http_port: 4151,
        tcp_port: 4150,
        version: "1",
        ..NodeInfo::default()
    }
}

#[test]
fn topics_and_channels_are_registered_and_unregistered() {
    let config = nanonsq_core::registration::Config::new(info());
    let still = Still::default();
    let mut resources = registration::Resources::<NoopRawMutex, 1, 1, 1>::new();
    let (handle, _runner) =
        registration::new(&mut resources, &config, [still.clone()], still).unwrap();
    let listed = || {
        handle
            .look(|lookup| {
                let channels = lookup.registered().filter(|(_, channel)| channel.is_some()).count();
                (lookup.registered().count() - channels, channels)
            })
            .unwrap()
    };
    handle.register(&topic(), Some(&channel())).unwrap();
    assert_eq!(listed(), (1, 1));
    assert!(!handle.unregister(&topic(), Some(&ChannelName::new("other").unwrap())));
    assert!(handle.unregister(&topic(), Some(&channel())));
    assert!(!handle.unregister(&topic(), Some(&channel())));
    assert_eq!(listed(), (1, 0));
    assert!(handle.unregister(&topic(), None));
    assert!(!handle.unregister(&topic(), None));
    assert_eq!(listed(), (0, 0));
    let two = ["one:4160", "two:4160"].map(|address| address.parse().unwrap());
    assert_eq!(handle.configure(&two), Err(TooManyPeers { max: 1 }));
}

fn ports<const CLIENTS: usize, const HTTP: usize>(
    still: &Still,
) -> Ports<AcceptSlot<Still, Never>, CLIENTS, HTTP> {
    let slot = || AcceptSlot::new(still.clone());
    Ports { tcp: Port::new(slot), http: Port::new(slot) }
}

#[test]
fn an_nsqlookupds_tables_and_http_are_accessible() {
    let config = nanonsq_core::nsqlookupd::Config::new();
    let still = Still::default();
    let mut resources = nsqlookupd::Resources::<NoopRawMutex, 1, 1, 1, 1, 16>::new();
    let (handle, _runner) = nsqlookupd::new(&mut resources, &config, ports(&still), still.clone());
    assert_eq!(handle.turned_away(), 0);
    let commands = b"  V1IDENTIFY\n\0\0\0\x4f{\"broadcast_address\":\"node\",\
        \"tcp_port\":4150,\"http_port\":4151,\"version\":\"1.3.0\"}REGISTER t c\n";
    handle.set_unix_time(1_700_000_000_000_000_000);
    handle.inspect(|directory| {
        let mut client = directory.client(0).unwrap();
        client.accepted(still.now(), ([10, 0, 0, 2], 5000).into());
        client.open(still.now());
        let mut left = &commands[..];
        while !left.is_empty() {
            left = &left[client.take(still.now(), left)..];
            assert!(!written(&mut client, still.now()).is_empty(), "a response to each command");
        }
    });
    let (topics, channels) =
        handle.look(|all| (all.topics().count(), all.channels().count())).unwrap();
    assert_eq!((topics, channels), (1, 1));
    let has = |name| {
        let channel = ChannelName::new(name).unwrap();
        handle.look(|all| all.has_channel(0, &topic(), &channel)).unwrap()
    };
    assert!(has("c"));
    assert!(!has("other"));
    assert_eq!(handle.look(|all| all.http_clients()), Some(1));
    let debug = handle.inspect(|all| {
        let mut session = all.http(0).unwrap();
        session.accepted(still.now(), ([10, 0, 0, 3], 5000).into());
        session.take(still.now(), b"GET /debug HTTP/1.1\r\nHost: directory\r\n\r\n");
        String::from_utf8(written(&mut session, still.now())).unwrap()
    });
    assert!(debug.unwrap().contains("\"last_update\":1700000000000000000"), "the time of day");
    assert_eq!(handle.counters(), handle.look(|all| all.counters()).unwrap());
    assert_ne!(handle.counters(), nanonsq_core::nsqlookupd::Counters::default());
}

#[test]
fn an_nsqlookupd_counts_rejected_clients() {
    let config = nanonsq_core::nsqlookupd::Config::new();
    let still = Still::default();
    let mut resources = nsqlookupd::Resources::<NoopRawMutex, 1, 1, 1, 0, 16>::new();
    let (handle, mut runner) = nsqlookupd::new(&mut resources, &config, CROWDED, still);
    run(runner.run());
    assert_eq!(handle.turned_away(), 1);
}

#[test]
fn an_nsqd_counts_rejected_clients() {
    let still = Still::default();
    let config = nanonsq_core::nsqd::Config::new();
    let http = nanonsq_core::nsqd::HttpConfig::new();
    let lookup = nanonsq_core::registration::Config::new(info());
    let settings = nsqd::Settings { node: &config, http: &http, lookup: &lookup, lookupds: &[] };
    let mut store = [0; 4096];
    let mut resources = nsqd::Resources::<NoopRawMutex, 1, 1, 1, 4, 0, 1, 16>::new();
    let dialers = nsqd::Dialers { lookupds: [still.clone()], channels: None };
    let (handle, mut runner) =
        nsqd::new(&mut resources, settings, &mut store, CROWDED, dialers, still).unwrap();
    run(runner.run());
    assert_eq!(handle.turned_away(), 1);
}

type Node<'a> = nsqd::Handle<'a, NoopRawMutex, Still>;

fn with_node(test: impl FnOnce(&Node<'_>, &Still)) {
    let still = Still::default();
    let config = nanonsq_core::nsqd::Config::new();
    let http = nanonsq_core::nsqd::HttpConfig::new();
    let lookup = nanonsq_core::registration::Config::new(info());
    let settings = nsqd::Settings { node: &config, http: &http, lookup: &lookup, lookupds: &[] };
    let mut store = [0; 4096];
    let mut resources = nsqd::Resources::<NoopRawMutex, 1, 1, 3, 4, 1, 1, 16>::new();
    let (handle, _runner) = nsqd::new(
        &mut resources,
        settings,
        &mut store,
        ports(&still),
        nsqd::Dialers { lookupds: [still.clone()], channels: None },
        still.clone(),
    )
    .unwrap();
    test(&handle, &still);
}

/// Returns whether the topic is paused, its depth, and the same of the channel.
fn depths(handle: &Node<'_>) -> (bool, u32, bool, u32) {
    handle
        .look(|node| {
            let topic_status = node.topics().next().map(|t| (t.paused, t.depth)).unwrap();
            let channel = node.channels(&topic()).next().map(|c| (c.paused, c.depth));
            let (paused, depth) = channel.unwrap_or_default();
            (topic_status.0, topic_status.1, paused, depth)
        })
        .unwrap()
}

#[test]
fn topics_and_channels_are_administered() {
    with_node(|handle, _| {
        let (topic, channel) = (topic(), channel());
        assert_eq!(handle.turned_away(), 0);
        assert_eq!(handle.look(|node| node.clients()), Some(3));
        handle.create(&topic, None).unwrap();
        handle.try_publish(&topic, b"x").unwrap();
        assert_eq!(depths(handle), (false, 1, false, 0));
        handle.empty(&topic, None).unwrap();
        assert_eq!(depths(handle), (false, 0, false, 0));
        handle.pause(&topic, None).unwrap();
        handle.create(&topic, Some(&channel)).unwrap();
        handle.try_publish(&topic, b"x").unwrap();
        assert_eq!(depths(handle), (true, 1, false, 0));
        handle.unpause(&topic, None).unwrap();
        handle.pause(&topic, Some(&channel)).unwrap();
        assert_eq!(depths(handle), (false, 0, true, 1));
        handle.unpause(&topic, Some(&channel)).unwrap();
        assert_eq!(depths(handle), (false, 0, false, 1));
        handle.empty(&topic, Some(&channel)).unwrap();
        assert_eq!(depths(handle), (false, 0, false, 0));
        handle.delete(&topic, Some(&channel)).unwrap();
        assert_eq!(handle.look(|node| node.channels(&topic).count()), Some(0));
        handle.delete(&topic, None).unwrap();
        let gone = Err(NsqdError::NoTopic);
        for refused in [
            handle.empty(&topic, None),
            handle.pause(&topic, None),
            handle.unpause(&topic, None),
            handle.empty(&topic, Some(&channel)),
            handle.pause(&topic, Some(&channel)),
            handle.unpause(&topic, Some(&channel)),
            handle.delete(&topic, Some(&channel)),
            handle.delete(&topic, None),
        ] {
            assert_eq!(refused, gone);
        }
    });
}

/// Timestamps continue from the Unix time that was set.
#[test]
fn messages_have_the_unix_time_of_their_publishing() {
    with_node(|handle, still| {
        handle.set_unix_time(1_700_000_000_000_000_000);
        still.0.set(5);
        handle.create(&topic(), None).unwrap();
        handle.create(&topic(), Some(&channel())).unwrap();
        handle.try_publish(&topic(), b"x").unwrap();
        let bytes = handle.inspect(|node| {
            let mut client = node.client(0).unwrap();
            client.open(still.now());
            assert_eq!(client.take(still.now(), b"  V2SUB t c\nRDY 1\n"), 18);
            written(&mut client, still.now())
        });
        let bytes = bytes.unwrap();
        // The response to SUB has 10 bytes, and the frame's head 8.
        let time = i64::from_be_bytes(bytes[18..26].try_into().unwrap());
        assert_eq!(time, 1_700_000_000_005_000_000);
    });
}

#[test]
fn futures_of_an_nsqd_are_ready_at_once_without_a_reason_to_wait() {
    with_node(|handle, _| {
        ready(handle.idle());
        ready(handle.publish(&topic(), b"x")).unwrap();
        let options = PublishOptions::default();
        let ticket = ready(handle.publish_with(&topic(), b"x", options)).unwrap();
        assert_eq!(ticket.number(), 1);
        assert_eq!(handle.counters().accepted, 2);
        assert!(pin!(handle.idle()).poll(&mut Context::from_waker(Waker::noop())).is_pending());
    });
}
