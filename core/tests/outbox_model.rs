//! The outbox against an unbounded, obviously right model, over random sequences of operations.

mod support;

use std::collections::VecDeque;

use nanonsq_core::name::TopicName;
use nanonsq_core::publish::{Flight, HEADER_OVERHEAD, Outbox, PushError, RECORD_OVERHEAD};
use nanonsq_core::time::{Instant, Span};
use support::Random;

#[derive(Debug, Clone, PartialEq)]
struct Message {
    number: u64,
    topic: TopicName,
    defer: Option<Span>,
    expiry: Instant,
    body: Vec<u8>,
    expired: bool,
}

/// What the outbox promises, with vectors.
#[derive(Debug, Default)]
struct Model {
    /// Not final, or expired while on the wire, oldest first.
    messages: VecDeque<Message>,
    /// How many from the front each batch on the wire covers, skipped ones included.
    flights: VecDeque<(usize, usize)>,
    sent: usize,
    next: u64,
}

impl Model {
    fn first(&self) -> u64 {
        self.messages.front().map_or(self.next, |m| m.number)
    }

    /// What the next batch must be: skipped expired ones, then live ones of one kind.
    fn next_batch(&mut self, max_count: usize, max_bytes: usize, singly: usize) -> Vec<Message> {
        let rest: Vec<_> = self.messages.iter().skip(self.sent).cloned().collect();
        let skipped = rest.iter().take_while(|m| m.expired).count();
        let live = &rest[skipped..];
        let Some(first) = live.first() else { return Vec::new() };
        let max_count =
            if self.sent + skipped < singly || first.defer.is_some() { 1 } else { max_count };
        let mut bytes = 0;
        let batch: Vec<_> = live
            .iter()
            .enumerate()
            .take_while(|(at, m)| {
                bytes += m.body.len() + RECORD_OVERHEAD;
                let same = (m.topic, m.defer, m.expiry) == (first.topic, first.defer, first.expiry);
                same && !m.expired && *at < max_count.max(1) && (*at == 0 || bytes <= max_bytes)
            })
            .map(|(_, m)| m.clone())
            .collect();
        self.sent += skipped + batch.len();
        self.flights.push_back((skipped, batch.len()));
        batch
    }

    fn free_dead(&mut self) {
        while self.messages.front().is_some_and(|m| m.expired) {
            self.messages.pop_front();
        }
    }
}

fn random_sequence(seed: u32, steps: u32) -> [u32; 9] {
    let mut random = Random::new(seed);
    let mut below = move |n| random.below(n);
    let topics = ["a", "bb", &"t".repeat(64)].map(|t| TopicName::new(t).unwrap());
    let capacity = [90, 128, 333, 1024, 5000][below(5) as usize] as usize;
    let mut ring = vec![0xee; capacity];
    let mut outbox = Outbox::new(&mut ring);
    let mut model = Model::default();
    let mut flights: VecDeque<Flight> = VecDeque::new();
    let mut now = Instant::from_micros(1);
    let mut seen = [0; 9];
    // Topic and deferral of the last batch since a rewind.
    let mut last_kind = None;
    // Long stretches of one topic, then of many.
    let mut mixed = false;

    for step in 0..steps {
        let context = format!("seed {seed} step {step}");
        if below(100) == 0 {
            mixed = !mixed;
        }
        match below(if mixed { 10 } else { 8 }) {
            0..=3 => {
                let topic = topics[if mixed { below(3) as usize } else { 0 }];
                let defer = (mixed && below(4) == 0).then(|| Span::from_millis(below(3)));
                let expiry = if mixed && below(3) == 0 {
                    now.after(Span::from_millis(below(50)))
                } else {
                    Instant::NEVER
                };
                let len = 1 + below((capacity as u32 / 3).max(2)) as usize;
                let body: Vec<u8> = (0..len).map(|at| (at as u8) ^ (model.next as u8)).collect();
                let header = HEADER_OVERHEAD + topic.as_str().len();
                let need = RECORD_OVERHEAD + len;
                match outbox.push(&topic, &body, defer, expiry) {
                    Ok(number) => {
                        assert_eq!(number, model.next, "{context}");
                        model.messages.push_back(Message {
                            number,
                            topic,
                            defer,
                            expiry,
                            body,
                            expired: false,
                        });
                        model.next += 1;
                        seen[0] += 1;
                    }
                    Err(PushError::Full) => {
                        assert!(need + header > outbox.free(), "{context}: refused with room");
                        assert!(outbox.used() > 0, "{context}: empty and full");
                        seen[1] += 1;
                    }
                    Err(PushError::TooLarge { max }) => {
                        assert_eq!(max, capacity.saturating_sub(header + RECORD_OVERHEAD));
                        assert!(len > max, "{context}");
                        seen[2] += 1;
                    }
                }
            }
            4..=5 => {
                let (count, bytes, singly) = (1 + below(5), below(300), below(4) * below(2));
                let batch = outbox.next_batch(count, bytes, singly);
                let expected = model.next_batch(count as usize, bytes as usize, singly as usize);
                let Some(batch) = batch else {
                    assert_eq!(expected, [], "{context}");
                    continue;
                };
                assert_eq!(batch.count() as usize, expected.len(), "{context}");
                let (one, two) = outbox.batch_topic();
                assert_eq!([one, two].concat(), expected[0].topic.as_str().as_bytes());
                assert_eq!(batch.defer(), expected[0].defer, "{context}");
                let records: Vec<u8> = expected
                    .iter()
                    .flat_map(|m| {
                        let len = u32::try_from(m.body.len()).unwrap().to_be_bytes();
                        len.into_iter().chain(m.body.iter().copied())
                    })
                    .collect();
                let whole = batch.bytes() as usize;
                let one = outbox.bytes(batch.index(), whole);
                let rest = outbox.advance(batch.index(), one.len());
                let two = outbox.bytes(rest, whole - one.len());
                assert_eq!([one, two].concat(), records, "{context}");
                let kind = (expected[0].topic, expected[0].defer);
                assert!(!batch.same_context() || last_kind == Some(kind), "{context}");
                last_kind = Some(kind);
                seen[8] += u32::from(batch.same_context());
                seen[3] += u32::from(batch.count() > 1);
                seen[4] += u32::from(!two.is_empty());
                flights.push_back(batch.into());
            }
            6 => {
                let Some(flight) = flights.pop_front() else { continue };
                let (skipped, count) = model.flights.pop_front().unwrap();
                let (first, live) = outbox.resolve(&flight);
                model.messages.drain(..skipped);
                let done: Vec<_> = model.messages.drain(..count).collect();
                model.sent -= skipped + count;
                assert_eq!(first, done[0].number, "{context}");
                assert_eq!(live as usize, done.iter().filter(|m| !m.expired).count(), "{context}");
                if model.sent == 0 {
                    model.free_dead();
                }
                seen[5] += u32::from(skipped > 0);
            }
            7 => {
                flights.clear();
                outbox.rewind();
                last_kind = None;
                model.flights.clear();
                model.sent = 0;
                model.free_dead();
            }
            8 => {
                now = now.after(Span::from_millis(below(40)));
                let mut expired = Vec::new();
                outbox.expire(now, |first, count| {
                    expired.extend(first..first + u64::from(count));
                });
                let mut expected = Vec::new();
                for m in &mut model.messages {
                    if !m.expired && m.expiry <= now {
                        m.expired = true;
                        expected.push(m.number);
                    }
                }
                assert_eq!(expired, expected, "{context}");
                seen[6] += u32::from(!expired.is_empty());
                if model.sent == 0 {
                    model.free_dead();
                }
                let next = model.messages.iter().filter(|m| !m.expired).map(|m| m.expiry).min();
                assert!(outbox.next_expiry() <= next.unwrap_or(Instant::NEVER), "{context}");
                assert!(outbox.next_expiry() > now, "{context}: due again at once");
            }
            _ => {
                let dropped = outbox.drop_oldest();
                if model.sent > 0 {
                    assert_eq!(dropped, None, "{context}");
                    continue;
                }
                model.free_dead();
                let expected = model.messages.pop_front().map(|m| m.number);
                assert_eq!(dropped, expected, "{context}");
                model.free_dead();
                seen[7] += u32::from(dropped.is_some());
            }
        }
        assert_eq!(outbox.first(), model.first(), "{context}");
        assert_eq!(outbox.end(), model.next, "{context}");
        assert_eq!(outbox.messages() as usize, model.messages.len(), "{context}");
        assert!(outbox.used() <= outbox.capacity(), "{context}");
    }
    seen
}

#[test]
fn agrees_with_the_model_over_random_operations() {
    let mut seen = [0; 9];
    for seed in 0..400 {
        for (total, n) in seen.iter_mut().zip(random_sequence(seed, 2000)) {
            *total += n;
        }
    }
    // Each kind of thing happened often: taken, refused, too large, batched, wrapped, skipped,
    // expired, dropped.
    assert!(seen.iter().all(|&n| n > 100), "{seen:?}");
}

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

#[test]
fn full_to_the_last_byte_and_one_over() {
    let overhead = HEADER_OVERHEAD + 1 + RECORD_OVERHEAD;
    let mut ring = [0; 64];
    let mut outbox = Outbox::new(&mut ring);
    let longest = 64 - overhead;
    assert_eq!(
        outbox.push(&topic(), &[0; 64], None, Instant::NEVER),
        Err(PushError::TooLarge { max: longest })
    );
    assert!(outbox.push(&topic(), &vec![0; longest + 1], None, Instant::NEVER).is_err());
    assert_eq!(outbox.used(), 0, "a refusal changes nothing");
    outbox.push(&topic(), &vec![0; longest], None, Instant::NEVER).unwrap();
    assert_eq!(outbox.free(), 0);
    assert_eq!(outbox.push(&topic(), &[0], None, Instant::NEVER), Err(PushError::Full));
    assert_eq!((outbox.used(), outbox.messages()), (64, 1));
}

#[test]
fn a_topic_costs_its_header_once() {
    let mut ring = [0; 200];
    let mut outbox = Outbox::new(&mut ring);
    let mut push = |name: &str| {
        let before = outbox.used();
        outbox.push(&TopicName::new(name).unwrap(), &[1], None, Instant::NEVER).unwrap();
        outbox.used() - before
    };
    let header = HEADER_OVERHEAD + 1;
    assert_eq!(
        [push("a"), push("a"), push("b"), push("a")],
        [header + 5, 5, header + 5, header + 5]
    );
}

#[test]
fn an_emptied_outbox_starts_at_the_front_again() {
    let mut ring = [0; 100];
    let mut outbox = Outbox::new(&mut ring);
    for n in 0..50 {
        outbox.push(&topic(), &[n; 30], None, Instant::NEVER).unwrap();
        let batch = outbox.next_batch(9, 999, 0).unwrap();
        assert_eq!(outbox.bytes(batch.index(), 34).len(), 34, "in one piece");
        outbox.resolve(&batch.into());
    }
}

#[test]
fn no_ring_at_all_takes_nothing_and_does_not_panic() {
    let mut outbox = Outbox::new(&mut []);
    assert_eq!(
        outbox.push(&topic(), &[0], None, Instant::NEVER),
        Err(PushError::TooLarge { max: 0 })
    );
    assert_eq!(outbox.next_batch(1, 1, 0), None);
    outbox.rewind();
    assert_eq!(outbox.drop_oldest(), None);
}
