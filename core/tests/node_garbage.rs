//! An nsqd with hostile clients that send garbage: it does not panic, keeps nothing, and still
//! serves a well-behaved client.

mod support;

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{Config, Nsqd, Storage};
use nanonsq_core::session::{Closed, DRAINS_MAX, Link, Session};
use nanonsq_core::time::{Instant, Span};
use support::Random;

const TOTAL: usize = 10_000_000;
const CLIENTS: usize = 4;
/// The well-behaved client.
const GOOD: usize = 3;

/// Valid input that gets far into a session, before random changes.
const SEEDS: [&[u8]; 22] = [
    b"  V2",
    b"  V2SUB t c\nRDY 3\n",
    b"  V2SUB t#ephemeral c#ephemeral\nRDY 2\n",
    b"  V2IDENTIFY\n\0\0\0\x1c{\"feature_negotiation\":true}SUB t d\nRDY 1\n",
    b"IDENTIFY\n\0\0\0\x22{\"heartbeat_interval\":-1,\"a\":[{}]} ",
    b"AUTH\n\0\0\0\x02hi",
    b"SUB u e\n",
    b"RDY 0\n",
    b"RDY -1\n",
    b"RDY 3\n",
    b"FIN 0000000000000000\n",
    b"FIN 0000000000000003\n",
    b"REQ 0000000000000001 0\n",
    b"REQ 0000000000000002 5000\n",
    b"TOUCH 0000000000000004\n",
    b"CLS\n",
    b"NOP\n",
    b"PUB t\n\0\0\0\x02hi",
    b"PUB safe\n\0\0\x01\0",
    b"DPUB t 100\n\0\0\0\x02hi",
    b"MPUB t\n\0\0\0\x10\0\0\0\x02\0\0\0\x02hi\0\0\0\x02ho",
    b"GET /stats HTTP/1.1\r\nHost: x\r\n\r\n",
];

fn node(config: &'static Config<'static>) -> Nsqd<'static> {
    let storage = Box::leak(Box::new(Storage::<3, 5, CLIENTS, 3>::new()));
    Nsqd::new(config, storage, vec![0xff; 66 * 30].leak()).unwrap()
}

const CONFIG: Config<'_> = Config {
    publish_wait: Span::from_millis(100),
    heartbeat: Span::from_millis(1000),
    channels_per_topic: 3,
    ..Config::new()
};

fn piece(random: &mut Random) -> Vec<u8> {
    let mut below = |n: usize| random.below(n as u32) as usize;
    let mut bytes = Vec::new();
    for _ in 0..1 + below(4) {
        bytes.extend(SEEDS[below(SEEDS.len())]);
    }
    match below(4) {
        0 => {}
        1 => bytes = (0..1 + below(64)).map(|_| below(256) as u8).collect(),
        _ => {
            for _ in 0..1 + below(3) {
                let at = below(bytes.len());
                bytes[at] = below(256) as u8;
            }
        }
    }
    bytes.truncate(1 + below(bytes.len()));
    bytes
}

/// Reads some of a client's bytes, the well-behaved client's completely. Returns them.
fn read_some(node: &mut Nsqd<'_>, client: usize, now: Instant, random: &mut Random) -> Vec<u8> {
    let mut received = Vec::new();
    let mut idle = 0;
    loop {
        let mut session = node.client(client).unwrap();
        let transmit = session.transmit(now);
        let len = transmit.len();
        received.extend(transmit.head);
        received.extend(transmit.body);
        if len == 0 {
            return received;
        }
        let n = if client == GOOD { len } else { random.below(len as u32 + 1) as usize };
        session.sent(now, n);
        received.truncate(received.len() - (len - n));
        idle = if n == 0 { idle + 1 } else { 0 };
        if client != GOOD && random.one_in(4) {
            return received;
        }
        assert!(idle < DRAINS_MAX);
    }
}

fn send_good(node: &mut Nsqd<'_>, now: Instant, bytes: &[u8]) {
    assert_eq!(node.client(GOOD).unwrap().take(now, bytes), bytes.len());
}

#[test]
fn ten_million_bytes_of_garbage_do_no_harm() {
    let mut random = Random::new(1);
    let mut node = node(&CONFIG);
    let mut now = Instant::from_millis(1);
    let safe = TopicName::new("safe").unwrap();
    node.create(now, &safe, None).unwrap();
    node.create(now, &safe, Some(&ChannelName::new("c").unwrap())).unwrap();
    node.client(GOOD).unwrap().open(now);
    send_good(&mut node, now, b"  V2SUB safe c\nRDY 1\n");
    assert_eq!(read_some(&mut node, GOOD, now, &mut random), b"\0\0\0\x06\0\0\0\0OK");
    let (mut fed, mut rounds, mut served) = (0, 0u32, 0);
    while fed < TOTAL {
        rounds += 1;
        let client = random.below(GOOD as u32) as usize;
        let bytes = piece(&mut random);
        fed += bytes.len();
        let mut session = node.client(client).unwrap();
        match session.link() {
            Link::Down => session.open(now),
            Link::Close if random.one_in(2) => session.closed(now, Closed::Local),
            Link::Up | Link::Close => {
                let taken = session.take(now, &bytes);
                assert!(taken <= bytes.len());
                if taken < bytes.len() && random.one_in(20) {
                    // The connection may end while bytes are held.
                    session.closed(now, Closed::Peer);
                }
            }
            Link::Upgrade(_) => unreachable!("no client asks for TLS"),
        }
        read_some(&mut node, client, now, &mut random);
        now = Instant::from_micros(now.as_micros() + u64::from(random.below(3000)));
        for client in 0..CLIENTS {
            let mut session = node.client(client).unwrap();
            if session.deadline() <= now && session.link() == Link::Up {
                session.tick(now);
            }
        }
        if rounds % 16 == 0 {
            send_good(&mut node, now, b"NOP\n");
            read_some(&mut node, GOOD, now, &mut random);
        }
        if rounds % 400 == 0 {
            serve(&mut node, now, &mut random, &safe);
            served += 1;
        }
        assert_eq!(node.client(GOOD).unwrap().link(), Link::Up);
    }
    assert!(served > 300, "{served}");
    for client in 0..CLIENTS {
        node.client(client).unwrap().closed(now, Closed::Peer);
    }
    let topics: Vec<_> = node.topics().map(|topic| *topic.name).collect();
    for topic in topics {
        node.delete(now, &topic, None).unwrap();
    }
    let store = node.store();
    assert_eq!((store.free, store.promised), (store.blocks, 0));
}

/// Deletes what hostile clients made. The well-behaved client then publishes and gets a message.
fn serve(node: &mut Nsqd<'_>, now: Instant, random: &mut Random, safe: &TopicName) {
    let topics: Vec<_> = node.topics().map(|topic| *topic.name).collect();
    for topic in topics.into_iter().filter(|topic| topic != safe) {
        node.delete(now, &topic, None).unwrap();
    }
    for client in 0..GOOD {
        node.client(client).unwrap().closed(now, Closed::Peer);
    }
    let others: Vec<_> = node.channels(safe).map(|channel| *channel.name).collect();
    for channel in others.into_iter().filter(|channel| channel.as_str() != "c") {
        node.delete(now, safe, Some(&channel)).unwrap();
    }
    // Drop messages of hostile clients.
    node.empty(now, safe, Some(&ChannelName::new("c").unwrap())).unwrap();
    read_some(node, GOOD, now, random);
    send_good(node, now, b"PUB safe\n\0\0\0\x04good");
    let received = read_some(node, GOOD, now, random);
    assert!(
        received.starts_with(b"\0\0\0\x06\0\0\0\0OK"),
        "{:?}",
        String::from_utf8_lossy(&received)
    );
    assert!(received.ends_with(b"good"), "{:?}", String::from_utf8_lossy(&received));
    let id = received[received.len() - 20..received.len() - 4].to_vec();
    send_good(node, now, &[b"FIN ", &id[..], b"\n"].concat());
    assert!(read_some(node, GOOD, now, random).is_empty());
}

#[test]
fn a_connection_that_ends_at_any_byte_leaves_nothing() {
    let mut random = Random::new(2);
    let mut node = node(&CONFIG);
    let now = Instant::from_millis(5);
    let all = SEEDS.concat();
    let starts = [&b"  V2"[..], b"  V2SUB t c\nRDY 2\n", b"  V2SUB x#ephemeral c#ephemeral\n"];
    for start in starts {
        for seed in SEEDS.iter().copied().chain([&all[..]]) {
            let bytes = [start, seed].concat();
            for len in 0..=bytes.len() {
                let mut session = node.client(0).unwrap();
                session.open(now);
                // In two pieces.
                let at = random.below(len as u32 + 1) as usize;
                let taken = session.take(now, &bytes[..at]);
                if taken == at {
                    session.take(now, &bytes[at..len]);
                }
                read_some(&mut node, 0, now, &mut random);
                let mut session = node.client(0).unwrap();
                session.closed(now, Closed::Peer);
                assert_eq!((session.link(), session.deadline()), (Link::Down, Instant::NEVER));
                let topics: Vec<_> = node.topics().map(|topic| *topic.name).collect();
                assert!(!topics.iter().any(|topic| topic.as_str() == "x#ephemeral"));
                for topic in topics {
                    node.delete(now, &topic, None).unwrap();
                }
                let store = node.store();
                assert_eq!((store.free, store.promised), (store.blocks, 0));
            }
        }
    }
}

/// Each SUB has a topic and channel of its own: once the tables are full, the oldest are evicted.
#[test]
fn a_million_subs_take_no_more_than_the_tables() {
    let mut node = node(&CONFIG);
    let now = Instant::from_millis(5);
    let mut refused = 0;
    let mut sub = |node: &mut Nsqd<'_>, n: u32, name: &str| {
        let mut session = node.client(0).unwrap();
        session.open(now);
        let line = format!("  V2SUB {name}{n} c{n}\n");
        assert_eq!(session.take(now, line.as_bytes()), line.len());
        refused += u32::from(session.link() == Link::Close);
        session.closed(now, Closed::Peer);
        refused
    };
    for n in 0..1_000_000 {
        sub(&mut node, n, "t");
    }
    assert_eq!((node.topics().count(), sub(&mut node, 0, "u")), (3, 0));
    assert_eq!(node.counters().topics_given_back, 1_000_001 - 3);
    // Topics of the application stay, and SUB to others is refused.
    for topic in node.topics().map(|topic| *topic.name).collect::<Vec<_>>() {
        node.create(now, &topic, None).unwrap();
    }
    for n in 0..1_000 {
        assert_eq!(sub(&mut node, n, "v"), n + 1);
    }
    assert_eq!((node.topics().count(), node.counters().topics_refused), (3, 1_000));
    // An existing topic is still usable.
    let mut session = node.client(0).unwrap();
    session.open(now);
    session.take(now, b"  V2SUB u0 c0\nPUB u0\n\0\0\0\x01x");
    assert_eq!(session.transmit(now).head, b"\0\0\0\x06\0\0\0\0OK".repeat(2));
}
