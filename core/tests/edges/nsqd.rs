//! An nsqd's queues: when clients are woken, which client gets the last entries, and exact bounds.

use std::sync::Mutex;

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::nsqd::{
    ArenaStatus, Config, DEFER_MAX, Full, Nsqd, PublishError, PublishOptions, Storage, message_cost,
};
use nanonsq_core::session::{Closed, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::wire::nsqd::{FrameDecoder, FrameType, Message};

use crate::{at, written};

const NOW: Instant = at(1000);

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

/// An nsqd with three clients and four in-flight entries in each channel.
struct Rig {
    node: Nsqd<'static>,
}

impl Rig {
    fn new(config: Config<'static>, store: usize) -> Self {
        let config = Box::leak(Box::new(config));
        let storage = Box::leak(Box::new(Storage::<2, 4, 3, 4>::new()));
        let store = Box::leak(vec![0; store].into_boxed_slice());
        let mut rig = Self { node: Nsqd::new(config, storage, store).unwrap() };
        for index in 0..3 {
            rig.node.client(index).unwrap().open(NOW);
            rig.send(index, b"  V2");
        }
        rig
    }

    #[track_caller]
    fn send(&mut self, index: usize, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref();
        assert_eq!(self.node.client(index).unwrap().take(NOW, bytes), bytes.len());
    }

    /// Returns the data of the client's frames; for a message its body.
    fn frames(&mut self, index: usize) -> Vec<String> {
        let bytes = written(&mut self.node.client(index).unwrap(), NOW);
        let mut frames = FrameDecoder::new(1 << 20);
        let mut input = &bytes[..];
        let mut all = Vec::new();
        while let Some(part) = frames.next(&mut input).unwrap() {
            assert!(part.first && part.last);
            let data = match part.frame_type {
                FrameType::Message => Message::parse(part.data).unwrap().body,
                FrameType::Response | FrameType::Error => part.data,
            };
            all.push(String::from_utf8(data.to_vec()).unwrap());
        }
        all
    }

    /// Subscribes a client that finds no message.
    #[track_caller]
    fn subscribe(&mut self, index: usize, channel: &str, rdy: u32) {
        self.send(index, format!("SUB t {channel}\nRDY {rdy}\n"));
        assert_eq!(self.frames(index), ["OK"]);
        assert_eq!(self.frames(index), [""; 0]);
    }

    fn put(&mut self, body: &str) -> u64 {
        self.node.publish(NOW, &topic(), body.as_bytes()).unwrap().number()
    }

    fn id(&self, number: u32) -> String {
        format!("{:08x}{number:08x}", self.node.config().boot)
    }

    /// Returns whether `f` changes the version, which wakes clients.
    fn wakes(&mut self, f: impl FnOnce(&mut Self)) -> bool {
        let before = self.node.version();
        f(self);
        self.node.version() != before
    }

    /// Writes at most one message to a client. Returns the number of bytes.
    fn step(&mut self, index: usize) -> usize {
        let mut client = self.node.client(index).unwrap();
        let n = client.transmit(NOW).len();
        client.sent(NOW, n);
        n
    }
}

#[test]
fn a_delivery_wakes_nobody_without_another_client_of_the_channel() {
    let mut rig = Rig::new(Config::new(), 4096);
    rig.subscribe(0, "c", 4);
    for body in ["a", "b", "c"] {
        rig.put(body);
    }
    // The client is alone.
    assert!(!rig.wakes(|rig| assert!(rig.step(0) > 0)));
    rig.subscribe(1, "other", 4);
    assert!(!rig.wakes(|rig| assert!(rig.step(0) > 0)), "the other client reads another channel");
    assert_eq!(rig.frames(0), ["c"]);
}

#[test]
fn a_delivery_wakes_the_other_clients_for_the_next_message() {
    let mut rig = Rig::new(Config::new(), 4096);
    rig.subscribe(0, "c", 4);
    rig.subscribe(1, "c", 4);
    rig.put("a");
    rig.put("b");
    assert!(rig.wakes(|rig| assert!(rig.step(0) > 0)), "a message is left");
    assert_eq!(rig.step(0), 0, "the message is for the other client");
    assert!(!rig.wakes(|rig| assert!(rig.step(1) > 0)), "no message is left");
    // The same for requeued messages.
    let (a, b) = (rig.id(0), rig.id(1));
    rig.send(0, format!("REQ {a} 0\n"));
    rig.send(1, format!("REQ {b} 0\n"));
    // One client gets a message, and the other is woken for the second.
    let woken = [0, 1].into_iter().find_map(|index| {
        let before = rig.node.version();
        (rig.step(index) > 0).then(|| rig.node.version() != before)
    });
    assert_eq!(woken, Some(true));
    assert_eq!(rig.node.counters().delivered, 3);
}

/// The last entries are for clients with nothing in flight.
#[test]
fn an_entry_is_kept_for_a_client_with_nothing_in_flight() {
    let mut rig = Rig::new(Config::new(), 4096);
    rig.subscribe(0, "c", 4);
    rig.subscribe(1, "c", 1);
    for number in 0..6 {
        rig.put(&number.to_string());
    }
    let mut had = 0;
    for _ in 0..20 {
        had += rig.frames(0).len();
    }
    assert_eq!(had, 3, "of four entries");
    assert_eq!(rig.frames(1).len(), 1);
    assert_eq!(rig.frames(1).len(), 0);
    // A client with RDY 0, or of another channel, needs no entry.
    let mut rig = Rig::new(Config::new(), 4096);
    rig.subscribe(0, "c", 4);
    rig.subscribe(1, "c", 0);
    rig.subscribe(2, "other", 1);
    for number in 0..6 {
        rig.put(&number.to_string());
    }
    let mut had = 0;
    for _ in 0..20 {
        had += rig.frames(0).len();
    }
    assert_eq!(had, 4, "all entries");
}

#[test]
fn clients_without_an_entry_are_woken_when_one_is_free() {
    let mut rig = Rig::new(Config::new(), 1 << 14);
    // Another channel keeps the messages, so that a FIN frees no block of the store.
    rig.node.create(NOW, &topic(), None).unwrap();
    rig.node.create(NOW, &topic(), Some(&channel("archive"))).unwrap();
    rig.subscribe(0, "c", 4);
    rig.subscribe(1, "c", 4);
    for number in 0..9 {
        rig.put(&number.to_string());
    }
    let (mut first, mut second) = (0, 0);
    for _ in 0..20 {
        first += rig.frames(0).len();
        second += rig.frames(1).len();
    }
    assert_eq!(first + second, 4);
    assert!(first > 0 && second > 0);
    let id = rig.id(0);
    assert!(rig.wakes(|rig| rig.send(0, format!("FIN {id}\n"))), "both clients found no entry");
    // One client takes the free entry.
    assert_eq!(rig.frames(0).len() + rig.frames(1).len(), 1);
}

#[test]
fn a_deferral_is_an_hour_at_most() {
    let mut rig = Rig::new(Config::new(), 4096);
    let mut publish = |defer| {
        let options = PublishOptions { defer: Some(defer) };
        rig.node.publish_with(NOW, &topic(), b"x", options)
    };
    assert!(publish(DEFER_MAX).is_ok());
    let longer = Span::from_millis(DEFER_MAX.as_millis() + 1);
    assert_eq!(publish(longer), Err(PublishError::DeferTooLong));
}

/// The client asks for one percent.
#[test]
fn sampling_delivers_the_requested_percentage() {
    let mut rig = Rig::new(Config::new(), 1 << 14);
    let ask = br#"{"feature_negotiation":true,"sample_rate":1}"#;
    let len = u32::try_from(ask.len()).unwrap().to_be_bytes();
    rig.send(0, [b"IDENTIFY\n", &len[..], ask].concat());
    rig.frames(0);
    rig.subscribe(0, "c", 4);
    let mut had = 0;
    for number in 0..10_000 {
        rig.put("x");
        for _ in rig.frames(0) {
            had += 1;
            let id = rig.id(number);
            rig.send(0, format!("FIN {id}\n"));
        }
    }
    assert!((70..140).contains(&had), "{had}");
    assert_eq!(rig.node.counters().sampled_out + had, 10_000);
}

/// A client that is still being written to does not delay the others.
#[test]
fn a_client_that_is_still_being_written_to_is_skipped() {
    let mut rig = Rig::new(Config::new(), 4000);
    rig.subscribe(0, "c", 4);
    rig.subscribe(1, "c", 4);
    rig.put("first");
    let mut slow = rig.node.client(0).unwrap();
    let n = slow.transmit(NOW).len();
    slow.sent(NOW, n - 1);
    rig.put("a");
    assert_eq!(rig.frames(1), ["a"]);
    rig.put("b");
    assert_eq!(rig.frames(1), ["b"], "without a wait for the slow client");
}

#[test]
fn messages_due_at_the_same_time_are_delivered_in_the_order_of_publishing() {
    let mut rig = Rig::new(Config::new(), 4000);
    rig.subscribe(0, "c", 4);
    for (ms, body) in [(100, "a"), (100, "b"), (200, "z"), (100, "c")] {
        let options = PublishOptions { defer: Some(Span::from_millis(ms)) };
        rig.node.publish_with(NOW, &topic(), body.as_bytes(), options).unwrap();
    }
    let later = NOW.after(Span::from_millis(100));
    let mut client = rig.node.client(0).unwrap();
    client.tick(later);
    let text = String::from_utf8_lossy(&written(&mut client, later)).into_owned();
    let order: Vec<_> = text.chars().filter(|char| "abcz".contains(*char)).collect();
    assert_eq!(order, ['a', 'b', 'c']);
}

/// Returns a configuration without reserved or limited shares.
fn whole(full: Full) -> Config<'static> {
    Config {
        full,
        reserve_percent: 0,
        announced_percent: 100,
        unconsumed_percent: 100,
        ..Config::new()
    }
}

/// A store of three blocks.
const THREE: usize = 3 * message_cost(1, 2) + 4;

/// A batch as large as the store is accepted, even if other messages have to be dropped for it.
#[test]
fn the_largest_batch() {
    let mpub = |messages: u8| {
        let each = [0, 0, 0, 1, b'x'];
        let body = [&[0, 0, 0, messages][..], &each.repeat(messages.into())].concat();
        [b"MPUB t\n", &(body.len() as u32).to_be_bytes()[..], &body].concat()
    };
    for full in [Full::Refuse, Full::DropOldest] {
        let mut rig = Rig::new(whole(full), THREE);
        assert_eq!(rig.node.store().blocks, 3);
        rig.send(0, mpub(3));
        assert_eq!(rig.frames(0), ["OK"]);
        let mut client = rig.node.client(1).unwrap();
        client.take(NOW, &mpub(4));
        assert_eq!(rig.frames(1), ["E_BAD_BODY MPUB invalid message count 4"]);
    }
    let mut rig = Rig::new(whole(Full::DropOldest), THREE);
    for _ in 0..3 {
        rig.put("x");
    }
    rig.send(0, mpub(2));
    assert_eq!((rig.frames(0), rig.node.counters().dropped), (vec!["OK".into()], 2));
    // With `Full::Refuse` no message is taken before there is room for the whole batch.
    let mut rig = Rig::new(whole(Full::Refuse), THREE);
    for _ in 0..2 {
        rig.put("x");
    }
    let batch = mpub(2);
    let taken = rig.node.client(0).unwrap().take(NOW, &batch);
    assert!(taken < batch.len(), "{taken} bytes");
    assert_eq!((rig.frames(0).len(), rig.node.store().free), (0, 1));
}

/// A message in flight is never dropped, however old it is.
#[test]
fn messages_in_flight_make_no_room() {
    let mut rig = Rig::new(Config { full: Full::DropOldest, ..Config::new() }, 600);
    rig.subscribe(0, "c", 1);
    rig.put("flying");
    assert_eq!(rig.frames(0), ["flying"]);
    for number in 0..50 {
        rig.put(&number.to_string());
    }
    assert!(rig.node.counters().dropped > 30);
    let id = rig.id(0);
    rig.send(0, format!("FIN {id}\n"));
    let left = rig.frames(0);
    assert_eq!(left.len(), 1, "the FIN is accepted, and the next message is delivered");
    let oldest: u64 = left[0].parse().unwrap();
    assert_eq!(oldest, rig.node.counters().dropped, "the oldest were dropped");
}

/// A message that waits in several channels makes room once. Without enough room none is dropped.
#[test]
fn a_message_that_waits_twice_makes_room_once() {
    let mut rig = Rig::new(Config { full: Full::DropOldest, ..Config::new() }, THREE);
    rig.subscribe(0, "c", 3);
    rig.subscribe(1, "d", 3);
    for _ in 0..3 {
        rig.put("x");
    }
    assert_eq!((rig.frames(0).len(), rig.frames(1).len()), (3, 3));
    let (twice, once) = (rig.id(0), rig.id(1));
    rig.send(0, format!("REQ {twice} 5000\n"));
    rig.send(1, format!("REQ {twice} 5000\n"));
    let two_blocks = [b'y'; 40];
    assert_eq!(rig.node.publish(NOW, &topic(), &two_blocks), Err(PublishError::Full));
    assert_eq!(rig.node.counters().dropped, 0, "not enough room");
    // The second message waits in one channel, and is in flight in the other.
    rig.send(0, format!("REQ {once} 5000\n"));
    assert_eq!(rig.node.publish(NOW, &topic(), &two_blocks), Err(PublishError::Full));
    assert_eq!(rig.node.counters().dropped, 0, "in flight, or not enough room");
    rig.send(1, format!("FIN {once}\n"));
    rig.node.publish(NOW, &topic(), &two_blocks).unwrap();
    assert_eq!(rig.node.counters().dropped, 2);
}

#[test]
fn the_configured_version_is_in_the_identify_response() {
    let mut rig = Rig::new(Config { version: "9.8.7", ..Config::new() }, 4096);
    rig.send(0, b"IDENTIFY\n\0\0\0\x1c{\"feature_negotiation\":true}");
    let answer = rig.frames(0).concat();
    assert!(answer.contains("\"version\":\"9.8.7\""), "{answer}");
}

#[test]
fn an_empty_store_is_free() {
    let mut rig = Rig::new(Config::new(), 4096);
    let ArenaStatus { blocks, free, promised, announced } = rig.node.store();
    assert_eq!((free, promised, announced), (blocks, 0, 0));
    rig.put("x");
    assert_eq!(rig.node.store().free, blocks - 1);
    assert!(rig.node.client(0).unwrap().poll_event().is_some(), "connected");
    assert!(rig.node.client(0).unwrap().poll_event().is_none(), "reported once");
}

#[test]
fn a_deferred_message_sets_the_deadline_of_its_channels_clients_only() {
    let mut rig = Rig::new(Config::new(), 4000);
    rig.subscribe(0, "c", 1);
    rig.subscribe(1, "d", 1);
    let number = rig.put("x");
    assert_eq!((rig.frames(0), rig.frames(1)), (vec!["x".into()], vec!["x".into()]));
    let id = rig.id(number as u32);
    rig.send(0, format!("FIN {id}\n"));
    rig.send(1, format!("REQ {id} 5000\n"));
    let deadline = |rig: &mut Rig, index| rig.node.client(index).unwrap().deadline();
    assert_eq!(deadline(&mut rig, 1), NOW.after(Span::from_secs(5)));
    assert!(
        deadline(&mut rig, 0) > NOW.after(Span::from_secs(5)),
        "the other channel's client has no earlier deadline"
    );
}

#[test]
fn a_client_that_sends_any_command_is_not_silent() {
    let heartbeat = Span::from_secs(10);
    let config = Config { heartbeat, ..Config::new() };
    for sends in [true, false] {
        let mut rig = Rig::new(config, 4000);
        let mut client = rig.node.client(0).unwrap();
        for second in 1..60 {
            let now = NOW.after(Span::from_secs(second));
            if client.deadline() <= now {
                client.tick(now);
            }
            written(&mut client, now);
            if sends && second % 9 == 0 {
                client.take(now, b"NOP\n");
            }
        }
        assert_eq!(client.link(), if sends { Link::Up } else { Link::Close });
    }
}

#[test]
fn several_commands_at_once_are_taken_at_once() {
    let mut rig = Rig::new(Config::new(), 4000);
    let mut client = rig.node.client(0).unwrap();
    assert_eq!(client.receive(NOW, b"SUB t c\nRDY 1\nNOP\n"), Ok(()));
    assert_eq!(client.link(), Link::Up);
}

/// Writes of no byte do not count.
#[test]
fn a_client_that_reads_nothing_is_closed() {
    let mut rig = Rig::new(Config { heartbeat: Span::from_secs(10), ..Config::new() }, 4000);
    let mut client = rig.node.client(0).unwrap();
    client.take(NOW, b"SUB t c\n");
    for second in 1..60 {
        let now = NOW.after(Span::from_secs(second));
        if client.deadline() <= now {
            client.tick(now);
        }
        if client.link() == Link::Up {
            assert!(!client.transmit(now).is_empty(), "in second {second}");
            let due = client.deadline();
            client.sent(now, 0);
            assert_eq!(client.deadline(), due);
            client.take(now, b"NOP\n");
        }
    }
    assert_eq!(client.link(), Link::Close);
}

#[test]
fn closed_without_a_connection_has_no_effect() {
    let mut rig = Rig::new(Config::new(), 4000);
    let mut client = rig.node.client(0).unwrap();
    client.closed(NOW, Closed::Peer);
    while client.poll_event().is_some() {}
    client.closed(NOW, Closed::Peer);
    assert_eq!(client.poll_event(), None);
    assert_eq!((client.link(), client.deadline()), (Link::Down, Instant::NEVER));
}

#[test]
fn the_identify_response_has_all_limits() {
    let mut config = Config::new();
    config.limits.max_msg_timeout_ms = 700_000;
    let mut rig = Rig::new(config, 4000);
    let ask = "{\"feature_negotiation\":true}";
    rig.send(0, [b"IDENTIFY\n\0\0\0\x1c", ask.as_bytes()].concat());
    let [answer] = &rig.frames(0)[..] else { panic!("one answer") };
    for part in [
        "\"max_rdy_count\":4,",
        "\"max_msg_timeout\":700000,",
        "\"msg_timeout\":60000,",
        "\"auth_required\":false,",
    ] {
        assert!(answer.contains(part), "{answer}");
    }
}

static HUGE: Mutex<Storage<1, 1, 1, 65_536>> = Mutex::new(Storage::new());
static LARGE: Mutex<Storage<1, 1, 1, 65_535>> = Mutex::new(Storage::new());

#[test]
fn at_most_65535_entries_are_accepted() {
    let config = Config::new();
    let mut store = [0; 4000];
    assert!(Nsqd::new(&config, &mut *LARGE.lock().unwrap(), &mut store).is_ok());
    assert!(Nsqd::new(&config, &mut *HUGE.lock().unwrap(), &mut store).is_err());
}
