//! One client, or one bad message, does not hold up others.

use nanonsq_core::name::TopicName;
use nanonsq_core::nsqd::{self, Nsqd};
use nanonsq_core::publisher::{self, Publisher};
use nanonsq_core::session::{Closed, Session};
use nanonsq_core::time::Instant;

const fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

/// Sends all bytes of a session, and returns them.
fn written(session: &mut impl Session, now: Instant) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let bytes = session.transmit(now);
        let len = bytes.len();
        all.extend(bytes.head);
        all.extend(bytes.body);
        if len == 0 {
            return all;
        }
        session.sent(now, len);
    }
}

#[test]
fn a_client_that_sends_no_body_does_not_keep_the_application_from_publishing() {
    let config = nsqd::Config::new();
    let mut storage = Box::new(nsqd::Storage::<3, 6, 4, 100>::new());
    let mut arena = vec![0; 32 * 1024];
    let mut nsqd = Nsqd::new(&config, &mut storage, &mut arena).unwrap();
    let readings = TopicName::new("readings").unwrap();
    nsqd.publish(at(1), &readings, b"21.5").unwrap();
    let free = nsqd.store().free;

    let mut client = nsqd.client(0).unwrap();
    client.open(at(2));
    let body = b"{\"heartbeat_interval\":60000}";
    let mut identify = b"  V2IDENTIFY\n".to_vec();
    identify.extend((body.len() as u32).to_be_bytes());
    identify.extend(body);
    client.take(at(2), &identify);
    written(&mut client, at(2));
    // The announced message would take nearly all that is free, and none of it arrives.
    let longest = free * 64 - 200;
    client.take(at(2), &[b"PUB junk\n", &longest.to_be_bytes()[..]].concat());

    for now in [at(1_000), at(30_000), at(119_000)] {
        nsqd.publish(now, &readings, &[b'x'; 200]).unwrap();
        let mut client = nsqd.client(0).unwrap();
        client.tick(now);
        written(&mut client, now);
    }
}

#[test]
fn expired_suspects_are_forgotten() {
    let config = publisher::Config::new();
    let nsqds = ["a:1".parse().unwrap()];
    let mut ring = [0; 1000];
    let mut publisher = Publisher::new(&config, &nsqds, &mut ring).unwrap();
    let topic = TopicName::new("t").unwrap();
    let ok = b"\0\0\0\x06\0\0\0\0OK";
    publisher.dial(at(1)).unwrap();
    publisher.open(at(1));
    written(&mut publisher, at(1));
    publisher.receive(at(1), ok).unwrap();
    let options = publisher::PublishOptions { defer: None, deadline: Some(at(1_000)) };
    for _ in 0..3 {
        let _ = publisher.publish_with(&topic, b"bad", options).unwrap();
    }
    assert!(written(&mut publisher, at(2)).starts_with(b"MPUB"));
    let error = b"E_BAD_MESSAGE MPUB invalid message";
    let len = (error.len() + 4) as u32;
    let frame = [&len.to_be_bytes()[..], &[0, 0, 0, 1], error].concat();
    let _ = publisher.receive(at(3), &frame);
    publisher.closed(at(3), Closed::Peer);
    publisher.tick(at(2_000));
    assert_eq!(publisher.counters().expired, 3);

    // The messages of the refused batch are gone: the next ones are sent as one batch.
    for _ in 0..3 {
        let _ = publisher.publish(&topic, b"good").unwrap();
    }
    publisher.dial(at(9_000)).unwrap();
    publisher.open(at(9_000));
    written(&mut publisher, at(9_000));
    publisher.receive(at(9_000), ok).unwrap();
    let batch = written(&mut publisher, at(9_001));
    assert!(batch.starts_with(b"MPUB"), "{}", batch.escape_ascii());
}
