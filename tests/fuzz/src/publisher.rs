//! A publisher that receives anything.

use nanonsq_core::address::Address;
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Config, Event, Full, Outcome, PublishOptions, Publisher, Ticket};
use nanonsq_core::session::Session;
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqd::{CommandDecoder, Limits};

use crate::decode::FRAMES;
use crate::feature;
use crate::input::Input;
use crate::session::{self, Machine, play};

const RING: usize = 300;

struct Producer<'a> {
    publisher: Publisher<'a>,
    topics: [TopicName; 2],
    tickets: Vec<Ticket>,
    failed: Vec<(u64, Outcome)>,
    forgotten: u64,
    resolved: u64,
    stopped: bool,
    /// Parses the commands of the current connection.
    nsqd: CommandDecoder,
}

impl Producer<'_> {
    fn on_event(&mut self, event: Event) {
        match event {
            Event::Failed { first, count, outcome } => {
                for number in first.number()..first.number() + u64::from(count) {
                    assert!(
                        self.failed.iter().all(|(other, _)| *other != number),
                        "reported twice"
                    );
                    self.failed.push((number, outcome));
                }
            }
            Event::Forgotten { count } => self.forgotten += u64::from(count),
            Event::Resolved { below } => {
                assert!(below.number() > self.resolved, "final once");
                self.resolved = below.number();
            }
            _ => {}
        }
    }
}

impl Machine for Producer<'_> {
    fn sessions(&self) -> usize {
        1
    }

    fn with(&mut self, _: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut self.publisher);
    }

    fn pieces(&self, _: usize) -> &'static [&'static [u8]] {
        FRAMES
    }

    fn act(&mut self, now: Instant, input: &mut Input<'_>) {
        match input.below(8) {
            0 if input.byte() > 250 => {
                self.publisher.stop(now);
                self.stopped = true;
            }
            0 | 1 => {
                while let Some(event) = self.publisher.poll_event() {
                    self.on_event(event);
                }
            }
            2 => {
                let at = input.below(self.tickets.len() as u32 + 1) as usize;
                if let Some(ticket) = self.tickets.get(at) {
                    feature(self.publisher.outcome(*ticket).map(|o| std::mem::discriminant(&o)));
                }
            }
            _ => {
                let topic = input.pick(&self.topics);
                let len = input.below(120) as usize;
                let options = PublishOptions {
                    defer: (input.byte() > 200).then(|| Span::from_millis(input.below(5000))),
                    deadline: (input.byte() > 200)
                        .then(|| now.after(Span::from_millis(input.below(5000)))),
                };
                let body = vec![b'x'; len];
                match self.publisher.publish_with(&topic, &body, options) {
                    Ok(ticket) => {
                        assert!(!self.stopped);
                        assert_eq!(ticket.number(), self.tickets.len() as u64, "tickets count up");
                        self.tickets.push(ticket);
                    }
                    Err(error) => feature(error.to_string()),
                }
            }
        }
    }

    fn opened(&mut self, _: usize) {
        self.nsqd = CommandDecoder::new();
    }

    fn wrote(&mut self, _: usize, bytes: &[u8]) {
        let mut input = bytes;
        loop {
            match self.nsqd.next(&Limits::NSQD, &mut input) {
                Ok(Some(_)) => {}
                Ok(None) => return,
                Err(refusal) => panic!("nsqd refuses a command: {refusal}"),
            }
        }
    }

    fn check(&mut self, _: Instant) {
        let counters = self.publisher.counters();
        feature(format!("{:?}", self.publisher.state()).split('(').next());
        let settled =
            counters.acknowledged + counters.rejected + counters.expired + counters.dropped;
        assert_eq!(counters.accepted, settled + counters.pending, "each message has one outcome");
        assert_eq!(counters.accepted, self.tickets.len() as u64);
        assert!(self.publisher.outbox_used() <= RING);
        let finals = self.tickets.iter().filter(|t| self.publisher.outcome(**t).is_some());
        assert!(finals.count() as u64 >= settled - counters.expired, "final outcomes are known");
    }
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let dice = input.byte();
    let config = Config {
        auth_secret: (dice & 1 > 0).then_some(b"s3"),
        reconnect_spread: Span::from_millis(if dice & 2 > 0 { 500 } else { 0 }),
        close_timeout: Span::from_millis(if dice & 4 > 0 { 1000 } else { 0 }),
        full: if dice & 8 > 0 { Full::DropOldest } else { Full::Refuse },
        batch_messages: if dice & 16 > 0 { 2 } else { 10_000 },
        seed: u32::from(dice >> 5),
        ..Config::new()
    };
    let nsqds: [Address; 2] = ["one:1", "two:1"].map(|a| a.parse().expect("an address"));
    let topics = ["a", "bb#ephemeral"].map(|topic| TopicName::new(topic).expect("a name"));
    let mut ring = [0; RING];
    let publisher = Publisher::new(&config, &nsqds, &mut ring).expect("a good configuration");
    let mut producer = Producer {
        publisher,
        topics,
        tickets: Vec::new(),
        failed: Vec::new(),
        forgotten: 0,
        resolved: 0,
        stopped: false,
        nsqd: CommandDecoder::new(),
    };
    play(&mut producer, &mut input);
    // The remaining events complete the counts.
    while let Some(event) = producer.publisher.poll_event() {
        producer.on_event(event);
    }
    let counters = producer.publisher.counters();
    let failures = counters.rejected + counters.expired + counters.dropped;
    assert_eq!(producer.failed.len() as u64 + producer.forgotten, failures, "each failure once");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = session::seeds(1, 8);
    plain.iter().zip(0..).map(|(seed, dice)| [&[dice * 5], &seed[..]].concat()).collect()
}
