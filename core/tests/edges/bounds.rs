//! Settings and tables at their bounds: the last accepted value, and the first rejected one.

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{self, Consumer};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{self, Nsqd};
use nanonsq_core::nsqlookupd::{self, Nsqlookupd};
use nanonsq_core::publisher::{self, Publisher};
use nanonsq_core::session::Session;
use nanonsq_core::session::reject::{Protocol, Reject};
use nanonsq_core::time::Span;

use crate::{at, written};

fn addresses(count: usize) -> Vec<Address> {
    (0..count).map(|n| format!("nsqd{n}:4150").parse().unwrap()).collect()
}

fn ms(ms: u32) -> Span {
    Span::from_millis(ms)
}

#[test]
fn bounds_of_a_publishers_settings() {
    let made = |heartbeat, nsqds, ring| {
        let config = publisher::Config { heartbeat, ..publisher::Config::new() };
        let (nsqds, mut ring) = (addresses(nsqds), vec![0; ring]);
        Publisher::new(&config, &nsqds, &mut ring).map(|_| ())
    };
    let min = publisher::RING_MIN;
    for (heartbeat, taken) in [(999, false), (1000, true), (60_000, true), (60_001, false)] {
        let bad = Err(publisher::ConfigError::Heartbeat { ms: heartbeat });
        assert_eq!(made(ms(heartbeat), 1, min), if taken { Ok(()) } else { bad });
    }
    for (count, taken) in [(0, false), (1, true), (255, true), (256, false), (300, false)] {
        let bad = Err(publisher::ConfigError::Addresses { count });
        assert_eq!(made(ms(1000), count, min), if taken { Ok(()) } else { bad });
    }
    let len = min - 1;
    assert_eq!(made(ms(1000), 1, len), Err(publisher::ConfigError::RingTooSmall { len }));
}

fn consume_config() -> consumer::Config<'static> {
    consumer::Config::new(TopicName::new("t").unwrap(), ChannelName::new("c").unwrap())
}

fn consumer<const CONNECTIONS: usize>(
    config: &consumer::Config<'_>,
    nsqds: usize,
    ring: usize,
) -> Result<(), consumer::ConfigError> {
    let mut storage = Box::new(consumer::Storage::<CONNECTIONS, 2>::new());
    let (nsqds, mut ring) = (addresses(nsqds), vec![0; ring]);
    Consumer::new(config, &mut storage, &nsqds, &mut ring).map(|_| ())
}

#[test]
fn bounds_of_a_consumers_settings() {
    use consumer::ConfigError;
    let made = |change: &dyn Fn(&mut consumer::Config<'static>)| {
        let mut config = consume_config();
        change(&mut config);
        consumer::<1>(&config, 1, 1000)
    };
    for (heartbeat, taken) in [(999, false), (1000, true), (60_000, true), (60_001, false)] {
        let bad = Err(ConfigError::Heartbeat { ms: heartbeat });
        let result = made(&|config| config.heartbeat = ms(heartbeat));
        assert_eq!(result, if taken { Ok(()) } else { bad });
    }
    for (timeout, taken) in [(999, false), (1000, true)] {
        let bad = Err(ConfigError::MsgTimeout { ms: timeout });
        let result = made(&|config| config.msg_timeout = Some(ms(timeout)));
        assert_eq!(result, if taken { Ok(()) } else { bad });
    }
    for (rate, taken) in [(0, true), (99, true), (100, false)] {
        let bad = Err(ConfigError::SampleRate { percent: rate });
        let result = made(&|config| config.sample_rate = rate);
        assert_eq!(result, if taken { Ok(()) } else { bad });
    }
    for (held, taken) in [(0, true), (24, false), (25, true), (30_000, true), (30_001, false)] {
        let bad = Err(ConfigError::OutputBufferTimeout { ms: held });
        let result = made(&|config| config.output_buffer_timeout = Some(ms(held)));
        assert_eq!(result, if taken { Ok(()) } else { bad });
    }
}

#[test]
fn bounds_of_a_consumers_tables() {
    use consumer::ConfigError;
    let config = consume_config();
    assert_eq!(consumer::<0>(&config, 1, 1000), Err(ConfigError::Connections { count: 0 }));
    assert_eq!(consumer::<1>(&config, 1, 1000), Ok(()));
    assert_eq!(consumer::<255>(&config, 1, 1000), Ok(()));
    assert_eq!(consumer::<256>(&config, 1, 1000), Err(ConfigError::Connections { count: 256 }));
    assert_eq!(consumer::<300>(&config, 1, 1000), Err(ConfigError::Connections { count: 300 }));
    assert_eq!(consumer::<1>(&config, 255, 1000), Ok(()));
    assert_eq!(consumer::<1>(&config, 256, 1000), Err(ConfigError::Addresses { count: 256 }));
    assert_eq!(consumer::<1>(&config, 300, 1000), Err(ConfigError::Addresses { count: 300 }));
    let min = 2 * consumer::SLOT_MIN;
    assert_eq!(consumer::<1>(&config, 1, min), Ok(()));
    let short = Err(ConfigError::RingTooSmall { len: min - 1 });
    assert_eq!(consumer::<1>(&config, 1, min - 1), short);
    let nsqds = addresses(1);
    let mut storage = consumer::Storage::<1, 0>::new();
    let none = Consumer::new(&config, &mut storage, &nsqds, &mut []).map(|_| ());
    assert_eq!(none, Err(ConfigError::Messages { count: 0 }));
}

#[test]
fn bounds_of_an_nsqds_settings() {
    let limits = nsqd::Config::new().limits;
    let made = |config: &nsqd::Config<'_>| {
        let mut storage = nsqd::Storage::<1, 1, 2, 1>::new();
        Nsqd::new(config, &mut storage, &mut [0; 1000]).map(|_| ())
    };
    let most = limits.max_heartbeat_interval_ms;
    for (heartbeat, taken) in [(999, false), (1000, true), (most, true), (most + 1, false)] {
        let bad = Err(nsqd::ConfigError::Heartbeat { ms: heartbeat });
        let config = nsqd::Config { heartbeat: ms(heartbeat), ..nsqd::Config::new() };
        assert_eq!(made(&config), if taken { Ok(()) } else { bad });
    }
    let most = limits.max_msg_timeout_ms;
    for (timeout, taken) in [(999, false), (1000, true), (most, true), (most + 1, false)] {
        let bad = Err(nsqd::ConfigError::MsgTimeout { ms: timeout });
        let config = nsqd::Config { msg_timeout: ms(timeout), ..nsqd::Config::new() };
        assert_eq!(made(&config), if taken { Ok(()) } else { bad });
    }
    // 2^32 - 2^16.
    for (delay, taken) in [(4_294_901_760, true), (4_294_901_761, false), (u32::MAX, false)] {
        let bad = Err(nsqd::ConfigError::ReqTimeout { ms: delay });
        let mut config = nsqd::Config::new();
        config.limits.max_req_timeout_ms = delay;
        assert_eq!(made(&config), if taken { Ok(()) } else { bad });
    }
}

#[test]
fn indexes_end_with_the_tables() {
    let config = nsqlookupd::Config::new();
    let mut storage = nsqlookupd::Storage::<3, 1, 1, 2>::new();
    let mut directory = Nsqlookupd::new(&config, &mut storage);
    assert_eq!((directory.clients(), directory.http_clients()), (3, 2));
    assert!(directory.client(2).is_some() && directory.client(3).is_none());
    assert!(directory.http(1).is_some() && directory.http(2).is_none());
    let config = nsqd::Config::new();
    let mut storage = nsqd::Storage::<1, 1, 2, 1>::new();
    let mut store = [0; 1000];
    let mut node = Nsqd::new(&config, &mut storage, &mut store).unwrap();
    let (topic, now) = (TopicName::new("t").unwrap(), at(1));
    for number in [0, 1, 2] {
        assert_eq!(node.publish(now, &topic, b"x").unwrap().number(), number);
    }
}

/// Only a driver that calls `take` and offers the rest again can hold a client.
#[test]
fn receive_of_an_nsqlookupd_fails_if_it_cannot_take_all_bytes() {
    let config = nsqlookupd::Config::new();
    let mut storage = nsqlookupd::Storage::<1, 1, 1, 1>::new();
    let mut directory = Nsqlookupd::new(&config, &mut storage);
    let mut client = directory.client(0).unwrap();
    client.open(at(1));
    assert_eq!(client.receive(at(1), b"  V1PING\n"), Ok(()));
    // The response to IDENTIFY has to be written first.
    let identify = b"IDENTIFY\n\0\0\0\x4f{\"broadcast_address\":\"node\",\
        \"tcp_port\":4150,\"http_port\":4151,\"version\":\"1.3.0\"}PING\n";
    written(&mut client, at(1));
    assert!(client.receive(at(1), identify).is_err());
    let mut session = directory.http(0).unwrap();
    session.open(at(1));
    let ask = b"GET /ping HTTP/1.1\r\nHost: h\r\n\r\n";
    assert_eq!(session.receive(at(1), ask), Ok(()));
    assert!(session.receive(at(1), &ask.repeat(9)).is_err());
}

#[test]
fn an_nsqlookupd_knows_the_registrations_of_each_client() {
    let config = nsqlookupd::Config::new();
    let mut storage = nsqlookupd::Storage::<2, 2, 4, 1>::new();
    let mut directory = Nsqlookupd::new(&config, &mut storage);
    for (index, channel) in ["one", "two"].into_iter().enumerate() {
        let commands = format!(
            "  V1IDENTIFY\n\0\0\0\x4f{{\"broadcast_address\":\"nod{index}\",\
            \"tcp_port\":4150,\"http_port\":4151,\"version\":\"1.3.0\"}}REGISTER t {channel}\n"
        );
        let mut client = directory.client(index).unwrap();
        client.accepted(at(1), ([10, 0, 0, index as u8], 5000).into());
        let mut left = commands.as_bytes();
        while !left.is_empty() {
            left = &left[client.take(at(1), left)..];
            written(&mut client, at(1));
        }
    }
    let topic = TopicName::new("t").unwrap();
    for (index, name, expected) in
        [(0, "one", true), (0, "two", false), (1, "one", false), (1, "two", true)]
    {
        let channel = ChannelName::new(name).unwrap();
        assert_eq!(directory.has_channel(index, &topic, &channel), expected, "{index} {name}");
        assert!(directory.has_topic(index, &topic));
    }
}

/// go-nsq writes its magic separately: an answer before the magic would be too early.
#[test]
fn a_rejected_client_gets_its_answer_after_its_magic() {
    for protocol in [Protocol::V1, Protocol::V2] {
        let mut busy = Reject::new(protocol);
        busy.open(at(1000));
        for bytes in [b"  ", b"V"] as [&[u8]; 2] {
            busy.receive(at(1000), bytes).unwrap();
            assert!(busy.transmit(at(1000)).is_empty(), "{protocol:?}");
        }
        busy.receive(at(1000), b"2").unwrap();
        assert_eq!(written(&mut busy, at(1000)), protocol.refusal());
    }
    let mut busy = Reject::new(Protocol::Http);
    busy.open(at(1000));
    assert!(busy.transmit(at(1000)).is_empty(), "not before the request");
    busy.receive(at(1000), b"G").unwrap();
    assert_eq!(written(&mut busy, at(1000)), Protocol::Http.refusal());
}
