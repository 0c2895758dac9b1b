//! The outbox with an unbounded, obviously correct model.

use std::collections::VecDeque;

use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::outbox::{
    Flight, HEADER_OVERHEAD, Outbox, PushError, RECORD_OVERHEAD,
};
use nanonsq_core::time::{Instant, Span};

use crate::feature;
use crate::input::Input;

#[derive(Debug, Clone, PartialEq)]
struct Message {
    number: u64,
    topic: TopicName,
    defer: Option<Span>,
    expiry: Instant,
    body: Vec<u8>,
    expired: bool,
}

/// The outbox's contract, with vectors.
#[derive(Debug, Default)]
struct Model {
    /// Messages that are not final or expired while on the wire, oldest first.
    messages: VecDeque<Message>,
    /// The skipped and the live messages of each batch on the wire.
    flights: VecDeque<(usize, usize)>,
    sent: usize,
    next: u64,
}

impl Model {
    fn first(&self) -> u64 {
        self.messages.front().map_or(self.next, |m| m.number)
    }

    /// Returns what the next batch must be: after skipping expired messages, live ones of one kind.
    fn next_batch(&mut self, max_count: usize, max_bytes: usize) -> Vec<Message> {
        let rest: Vec<_> = self.messages.iter().skip(self.sent).cloned().collect();
        let skipped = rest.iter().take_while(|m| m.expired).count();
        let live = &rest[skipped..];
        let Some(first) = live.first() else { return Vec::new() };
        let max_count = if first.defer.is_some() { 1 } else { max_count };
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

/// Runs the input's operations on both. Returns how often each kind happened: accepted, refused,
/// too large, batched, wrapped, skipped, expired, dropped, of the previous batch's kind.
pub fn sequence(input: &mut Input<'_>) -> [u32; 9] {
    let topics = ["a", "bb", &"t".repeat(64)].map(|t| TopicName::new(t).expect("a name"));
    let capacity = [90, 128, 333, 1024, 5000][input.below(5) as usize] as usize;
    let mut ring = vec![0xee; capacity];
    let mut outbox = Outbox::new(&mut ring);
    let mut model = Model::default();
    let mut flights: VecDeque<Flight> = VecDeque::new();
    let mut now = Instant::from_micros(1);
    let mut seen = [0; 9];
    // Topic and deferral of the latest batch since a rewind.
    let mut last_kind = None;
    // Long phases with one topic, then with many.
    let mut mixed = false;

    let mut step = 0;
    while !input.is_over() {
        step += 1;
        let context = format!("step {step}");
        if input.below(100) == 0 {
            mixed = !mixed;
        }
        match input.below(if mixed { 10 } else { 8 }) {
            0..=3 => {
                let topic = topics[if mixed { input.below(3) as usize } else { 0 }];
                let defer =
                    (mixed && input.below(4) == 0).then(|| Span::from_millis(input.below(3)));
                let expiry = if mixed && input.below(3) == 0 {
                    now.after(Span::from_millis(input.below(50)))
                } else {
                    Instant::NEVER
                };
                let len = 1 + input.below((capacity as u32 / 3).max(2)) as usize;
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
                let (count, bytes) = (1 + input.below(5), input.below(300));
                let batch = outbox.next_batch(count, bytes);
                let expected = model.next_batch(count as usize, bytes as usize);
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
                        let len = u32::try_from(m.body.len()).expect("a short one").to_be_bytes();
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
                let (skipped, count) = model.flights.pop_front().expect("as many");
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
                now = now.after(Span::from_millis(input.below(40)));
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
        feature((seen.map(|n| n.min(1)), model.messages.len().min(5), flights.len().min(3)));
    }
    seen
}

pub(crate) fn run(data: &[u8]) {
    sequence(&mut Input::new(data));
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for capacity in 0..5 {
        let mut seed = vec![capacity];
        for step in 0..30 {
            // Push, mixed or not; a batch; its acknowledgement; time; a rewind; a drop.
            seed.extend([u8::from(step % 10 > 0), 0, 20, 1, 1, 1, 9, 1, 5, 20, 1, 4, 3, 100, 0, 1]);
            seed.extend([1, 6, 1, 8, 30, 1, 7, 1, 9]);
        }
        seeds.push(seed);
    }
    seeds
}
