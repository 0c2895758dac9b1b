//! A publisher and a model nsqd in virtual time, over a network that fails at random: thousands of
//! seeded lives, in each of which every message is checked.

mod support;

use std::collections::{HashMap, VecDeque};

use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{
    Config, Event, Full, Outcome, PublishError, PublishOptions, Publisher, Ticket,
};
use nanonsq_core::session::{Closed, DRAINS_MAX, DialError, Fault, Link, Session, TransportError};
use nanonsq_core::time::{Instant, Span};
use nanonsq_models::nsqd::{Nsqd, Settings};
use nanonsq_models::server::{ConnId, Out, Reply, Seen, Server};
use support::{Random, seeds};

/// The first byte of messages that are longer than `MESSAGE_MAX`, which nsqd refuses.
const BAD: u8 = b'!';
const MESSAGE_MAX: usize = 60;

/// A connection of the publisher.
struct Connection {
    id: ConnId,
    /// Bytes to the publisher with their arrival times; `None` is the end of the connection.
    outbox: VecDeque<(Instant, Option<Vec<u8>>)>,
    /// nsqd's bytes are lost, even heartbeats.
    mute: bool,
}

/// One model nsqd for all addresses, and the messages that it stored, in order.
struct Disk {
    nsqd: Nsqd,
    stored: Vec<(String, Vec<u8>)>,
}

impl Disk {
    /// Runs a call of nsqd; its replies arrive at `at`.
    fn play(
        &mut self,
        now: Instant,
        at: Instant,
        connection: &mut Connection,
        f: impl FnOnce(&mut Nsqd, &mut Out),
    ) {
        let mut out = Out::new(now.as_micros());
        f(&mut self.nsqd, &mut out);
        for (_, seen) in out.seen {
            if let Seen::Stored { topic, bodies, batch } = seen {
                assert_eq!(batch, bodies.len() > 1, "a single message is a PUB");
                self.stored.extend(bodies.into_iter().map(|body| (topic.clone(), body)));
            }
        }
        for (id, reply) in out.replies {
            // Replies on closed connections are lost.
            if id == connection.id && !connection.mute {
                let bytes = match reply {
                    Reply::Say(_, bytes) => Some(bytes),
                    Reply::Close => None,
                };
                connection.outbox.push_back((at, bytes));
            }
        }
    }
}

/// The settings of a life.
struct Life {
    config: Config<'static>,
    ring: usize,
    nsqds: usize,
    /// Milliseconds with faults. Afterwards every message must get its outcome.
    faulty: u64,
}

struct Accepted {
    ticket: Ticket,
    topic: String,
    body: Vec<u8>,
    expires: bool,
}

fn live(seed: u32) -> [u64; 6] {
    let mut random = Random::new(seed);
    let life = Life {
        config: Config {
            heartbeat: Span::from_secs(1),
            reply_timeout: Span::from_millis(500 + random.below(2000)),
            connect_timeout: Span::from_millis(500),
            batch_messages: 1 + random.below(40),
            batch_bytes: 1 + random.below(2000),
            full: if random.one_in(3) { Full::DropOldest } else { Full::Refuse },
            seed,
            ..Config::new()
        },
        ring: 90 + random.below(3000) as usize,
        nsqds: 1 + random.below(3) as usize,
        faulty: 1000 + u64::from(random.below(60_000)),
    };
    let nsqds: Vec<Address> =
        (0..life.nsqds).map(|n| format!("nsqd{n}:1").parse().unwrap()).collect();
    let mut ring = vec![0; life.ring];
    let mut publisher = Publisher::new(&life.config, &nsqds, &mut ring).unwrap();
    let settings = Settings { max_msg_size: MESSAGE_MAX as i32, ..Settings::default() };
    let mut disk = Disk { nsqd: Nsqd::new(settings), stored: Vec::new() };
    let mut connections = 0;
    let mut connection: Option<Connection> = None;
    let mut accepted: Vec<Accepted> = Vec::new();
    let mut failed: HashMap<u64, Outcome> = HashMap::new();
    let mut now = Instant::from_millis(5);
    let end_of_faults = now.after(Span::from_millis(life.faulty as u32));
    let (mut dialing, mut resolved, mut forgotten) = (false, 0, 0);
    let context = format!("seed {seed}");

    loop {
        let faulty = now < end_of_faults;
        // The application.
        for _ in 0..random.below(4) {
            if !faulty {
                break;
            }
            let topic = ["a", "b"][usize::from(random.one_in(10))];
            let number = accepted.len();
            let first = if random.one_in(60) { BAD } else { b'.' };
            let mut text = vec![first];
            text.extend(format!("{number}").bytes());
            let rest = random.below(40) as usize;
            text.resize(if first == BAD { MESSAGE_MAX + 1 } else { text.len() } + rest, b'x');
            let expires = random.one_in(8);
            let options = PublishOptions {
                defer: random.one_in(20).then_some(Span::from_millis(7)),
                deadline: expires.then(|| now.after(Span::from_millis(random.below(3000)))),
            };
            match publisher.publish_with(&TopicName::new(topic).unwrap(), &text, options) {
                Ok(ticket) => {
                    assert_eq!(ticket.number(), number as u64, "{context}");
                    accepted.push(Accepted { ticket, topic: topic.into(), body: text, expires });
                }
                Err(PublishError::Full | PublishError::TooLarge { .. }) => {}
                Err(error) => panic!("{context}: {error}"),
            }
        }

        // The driver.
        let mut drains = 0;
        loop {
            drains += 1;
            assert!(drains < DRAINS_MAX, "{context}: never settles");
            if publisher.deadline() <= now {
                publisher.tick(now);
            }
            let mut progress = false;
            match publisher.link() {
                Link::Down => {
                    connection = None;
                    if publisher.dial(now).is_some() {
                        dialing = true;
                        progress = true;
                    }
                }
                Link::Up if dialing => {
                    if faulty && random.one_in(20) {
                        break; // no answer yet
                    }
                    dialing = false;
                    if faulty && random.one_in(3) {
                        publisher.closed(now, Closed::Dial(DialError::Refused));
                    } else {
                        publisher.open(now);
                        connections += 1;
                        let mute = faulty && random.one_in(10);
                        let outbox = VecDeque::new();
                        let it = connection.insert(Connection { id: connections, outbox, mute });
                        disk.play(now, now, it, |nsqd, out| nsqd.open(connections, out));
                    }
                    progress = true;
                }
                Link::Up => {
                    let transmit = publisher.transmit(now);
                    let bytes = [transmit.head, transmit.body].concat();
                    let n = if !faulty || random.one_in(2) {
                        bytes.len()
                    } else {
                        random.below(bytes.len() as u32 + 1) as usize
                    };
                    if n > 0 {
                        publisher.sent(now, n);
                        let peer = connection.as_mut().expect("a connection");
                        // Sometimes the connection is lost then: the message is stored and not
                        // acknowledged.
                        let latency = if faulty { random.below(300) } else { 1 };
                        let (at, id) = (now.after(Span::from_millis(latency)), peer.id);
                        disk.play(now, at, peer, |nsqd, out| nsqd.receive(id, &bytes[..n], out));
                        progress = true;
                    }
                }
                Link::Close => {
                    dialing = false;
                    publisher.closed(now, Closed::Local);
                    connection = None;
                    progress = true;
                }
                Link::Upgrade(_) => unreachable!(),
            }
            if !progress || faulty && random.one_in(3) {
                break;
            }
        }

        // The network.
        if let Some(peer) = &mut connection {
            if disk.nsqd.deadline() <= now.as_micros() {
                disk.play(now, now, peer, |nsqd, out| nsqd.tick(out));
            }
            let (mut arrived, mut hung_up) = (Vec::new(), false);
            while peer.outbox.front().is_some_and(|(at, _)| *at <= now) {
                match peer.outbox.pop_front().unwrap().1 {
                    Some(bytes) => arrived.extend(bytes),
                    None => hung_up = true,
                }
            }
            let cut = random.below(arrived.len() as u32 + 1) as usize;
            for piece in [&arrived[..cut], &arrived[cut..]] {
                match publisher.receive(now, piece) {
                    Ok(()) | Err(Fault::Refused(_)) => {}
                    Err(fault) => panic!("{context}: nsqd did nothing wrong: {fault}"),
                }
            }
            if hung_up || faulty && random.one_in(40) {
                let why = if random.one_in(2) {
                    Closed::Peer
                } else {
                    Closed::Transport(TransportError::Reset)
                };
                publisher.closed(now, why);
                connection = None;
            }
        }

        // The events for the application.
        while let Some(event) = publisher.poll_event() {
            match event {
                Event::Failed { first, count, outcome } => {
                    for number in first.number()..first.number() + u64::from(count) {
                        let before = failed.insert(number, outcome);
                        assert_eq!(
                            before, None,
                            "{context}: {number} failed twice, with {outcome} of {first:?} {count}"
                        );
                    }
                }
                Event::Forgotten { count } => forgotten += u64::from(count),
                Event::Resolved { below } => {
                    assert!(below.number() > resolved, "{context}");
                    resolved = below.number();
                }
                _ => {}
            }
        }
        let counters = publisher.counters();
        assert_eq!(
            counters.accepted,
            counters.acknowledged
                + counters.rejected
                + counters.expired
                + counters.dropped
                + counters.pending,
            "{context}"
        );
        if !faulty && counters.pending == 0 && publisher.outbox_used() == 0 {
            break;
        }
        // Time may jump past an answer that is on its way, which ends the connection. A wait of up
        // to 16 s follows.
        let stuck = now >= end_of_faults.after(Span::from_secs(240));
        assert!(!stuck, "{context}: stuck: {:?} {:?}", publisher.state(), publisher.counters());
        // Mostly short steps, sometimes right to the next deadline.
        now = match publisher.deadline() {
            at if at > now && random.one_in(10) => at.min(now.after(Span::from_secs(2))),
            _ => now.after(Span::from_millis(random.below(20))),
        };
    }

    // The end: every outcome must be true.
    let counters = publisher.counters();
    let mut stored: HashMap<(&str, &[u8]), u64> = HashMap::new();
    for (topic, body) in &disk.stored {
        *stored.entry((topic, body)).or_default() += 1;
    }
    let (mut counts, mut unnamed) = ([0; 5], 0);
    for message in &accepted {
        let number = message.ticket.number();
        let copies = stored.remove(&(&*message.topic, &*message.body)).unwrap_or(0);
        let outcome = failed.get(&number).copied().unwrap_or(Outcome::Acknowledged);
        let known = publisher.outcome(message.ticket);
        assert!(
            known == Some(outcome) || known == Some(Outcome::Forgotten),
            "{context}: {known:?}"
        );
        match outcome {
            Outcome::Acknowledged if known == Some(Outcome::Forgotten) && copies == 0 => {
                unnamed += 1;
            }
            Outcome::Acknowledged => {
                assert!(copies > 0, "{context}: {number} is acknowledged and lost");
                counts[0] += 1;
            }
            Outcome::Rejected(_) => {
                assert_eq!((message.body[0], copies), (BAD, 0), "{context}: {number}");
                counts[1] += 1;
            }
            Outcome::Expired => {
                assert!(message.expires, "{context}: {number} had no deadline");
                counts[2] += 1;
            }
            Outcome::Dropped => {
                assert_eq!(life.config.full, Full::DropOldest, "{context}");
                counts[3] += 1;
            }
            Outcome::Forgotten => panic!("{context}: an event reports a forgotten outcome"),
        }
        counts[4] += copies.saturating_sub(1);
    }
    assert!(stored.is_empty(), "{context}: stored and not published: {stored:?}");
    // Each failure was reported once: by its number, or in the count of forgotten ones.
    let failures = counters.rejected + counters.expired + counters.dropped;
    assert_eq!(failures, failed.len() as u64 + forgotten, "{context}");
    assert!(unnamed <= forgotten, "{context}: {unnamed} failures are not reported");
    if forgotten == 0 {
        let all = [counters.acknowledged, counters.rejected, counters.expired, counters.dropped];
        assert_eq!(counts[..4], all, "{context}");
    }
    assert!(counts[4] <= counters.possible_duplicates, "{context}: {} {counters:?}", counts[4]);
    // The first arrivals of a topic's messages are in the order of publishing.
    for topic in ["a", "b"] {
        let mut last = None;
        let mut seen = std::collections::HashSet::new();
        for (_, body) in disk.stored.iter().filter(|(t, _)| t == topic) {
            let digits = std::str::from_utf8(&body[1..]).unwrap().trim_end_matches('x');
            let number: u64 = digits.parse().unwrap();
            if seen.insert(number) {
                assert!(last.is_none_or(|last| last < number), "{context}: {number} overtook");
                last = Some(number);
            }
        }
    }
    [counts[0], counts[1], counts[2], counts[3], counts[4], counters.connections.into()]
}

#[test]
fn two_thousand_lives_end_well() {
    let mut sums = [0; 6];
    for seed in 0..seeds(2000) {
        for (sum, n) in sums.iter_mut().zip(live(seed)) {
            *sum += n;
        }
    }
    println!("acknowledged, rejected, expired, dropped, duplicates, connections: {sums:?}");
    assert!(sums.iter().all(|&n| n > u64::from(seeds(1000)) / 10), "{sums:?}");
}
