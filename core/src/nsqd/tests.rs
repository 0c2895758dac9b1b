//! Scenarios of an nsqd and its clients, in terms of the bytes that clients send and receive.

use super::arena::Layout;
use super::storage::{CHANNEL_RAM_MAX, CLIENT_RAM_MAX, ENTRY_RAM, RAM_MAX, TOPIC_RAM_MAX};
use super::table::{Entry, Subscription, Topic};
use super::*;
use crate::name::ChannelName;
use crate::session::{Closed, Link, Session};
use crate::wire::nsqd::{FrameDecoder, FrameType, Message, MessageId};

mod delivery;
mod entries;
mod room;
mod tables;

const CONFIG: Config<'_> = Config { boot: 0xb007, ..Config::new() };

/// No part of the store is reserved or limited.
const WHOLE: Config<'_> =
    Config { reserve_percent: 0, announced_percent: 100, unconsumed_percent: 100, ..CONFIG };

/// An nsqd with three clients and a clock.
struct World {
    nsqd: Nsqd<'static>,
    now: Instant,
    frames: Vec<FrameDecoder>,
}

/// A frame that a client reads.
#[derive(Debug, Clone, PartialEq)]
enum Frame {
    Response(String),
    Error(String),
    Message { attempts: u16, id: MessageId, body: String },
}

fn response(text: &str) -> Frame {
    Frame::Response(text.into())
}

fn error(text: &str) -> Frame {
    Frame::Error(text.into())
}

impl World {
    fn new() -> Self {
        Self::with(&CONFIG, 4096)
    }

    fn with(config: &'static Config<'static>, store: usize) -> Self {
        let storage = Box::leak(Box::new(Storage::<2, 4, 3, 4>::new()));
        let store = Box::leak(vec![0xaa; store].into_boxed_slice());
        let nsqd = Nsqd::new(config, storage, store).unwrap();
        let mut world = Self { nsqd, now: Instant::from_millis(1000), frames: Vec::new() };
        for index in 0..3 {
            world.frames.push(FrameDecoder::new(1 << 20));
            world.open(index);
        }
        world
    }

    fn client(&mut self, index: usize) -> ClientSession<'_, 'static> {
        self.nsqd.client(index).unwrap()
    }

    fn open(&mut self, index: usize) {
        let now = self.now;
        self.frames[index] = FrameDecoder::new(1 << 20);
        self.client(index).open(now);
        assert_eq!(self.take(index, b"  V2"), 4);
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        self.now = Instant::from_millis(1000 + ms);
        let now = self.now;
        for index in 0..3 {
            let mut client = self.client(index);
            if client.deadline() <= now {
                client.tick(now);
            }
        }
        self
    }

    fn take(&mut self, index: usize, bytes: &[u8]) -> usize {
        let now = self.now;
        self.client(index).take(now, bytes)
    }

    #[track_caller]
    fn send(&mut self, index: usize, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        assert_eq!(self.take(index, bytes), bytes.len(), "the nsqd takes all bytes");
        self
    }

    /// Returns all frames that a client gets now.
    fn receive(&mut self, index: usize) -> Vec<Frame> {
        let now = self.now;
        let mut bytes = Vec::new();
        loop {
            let mut client = self.client(index);
            let transmit = client.transmit(now);
            let n = transmit.len();
            if n == 0 {
                break;
            }
            bytes.extend(transmit.head);
            bytes.extend(transmit.body);
            client.sent(now, n);
        }
        let mut input = &bytes[..];
        let mut frames = Vec::new();
        while let Some(part) = self.frames[index].next(&mut input).unwrap() {
            assert!(part.first && part.last);
            let text = || String::from_utf8(part.data.into()).unwrap();
            frames.push(match part.frame_type {
                FrameType::Response => Frame::Response(text()),
                FrameType::Error => Frame::Error(text()),
                FrameType::Message => {
                    let Message { head, body } = Message::parse(part.data).unwrap();
                    let body = String::from_utf8(body.into()).unwrap();
                    Frame::Message { attempts: head.attempts, id: head.id, body }
                }
            });
        }
        frames
    }

    #[track_caller]
    fn expect(&mut self, index: usize, frames: &[Frame]) -> &mut Self {
        assert_eq!(self.receive(index), frames);
        self
    }
}

#[test]
fn a_message_goes_from_a_producer_to_a_consumer() {
    let mut world = World::new();
    world.send(0, b"SUB t c\nRDY 2\n").expect(0, &[response("OK")]);
    world.send(1, b"PUB t\n\0\0\0\x02hi").expect(1, &[response("OK")]);
    let id = MessageId(*b"0000b00700000000");
    world.expect(0, &[Frame::Message { attempts: 1, id, body: "hi".into() }]);
    world.send(0, format!("FIN {id}\n")).expect(0, &[]);
    world.send(0, format!("FIN {id}\n"));
    world.expect(0, &[error("E_FIN_FAILED FIN 0000b00700000000 failed ID not in flight")]);
    assert_eq!(world.client(0).link(), Link::Up);
    let store = world.nsqd.store();
    assert_eq!(store.blocks, store.free);
}

/// The bytes of a body in the first block of a message, with two channels.
const FIRST: usize = if cfg!(feature = "large") { 9 } else { 20 };

/// Returns the length of a store of so many blocks of 64 bytes, with two channels.
pub(super) fn blocks(count: usize) -> usize {
    let has = |len: &usize| Layout::new(*len, 2).is_some_and(|it| it.count as usize == count);
    (64 * count..).find(has).unwrap()
}

fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}

fn channel(name: &str) -> ChannelName {
    ChannelName::new(name).unwrap()
}

fn id(number: u32) -> MessageId {
    MessageId(format!("0000b007{number:08x}").into_bytes().try_into().unwrap())
}

fn message(number: u32, attempts: u16, body: &str) -> Frame {
    Frame::Message { attempts, id: id(number), body: body.into() }
}

fn identify(json: &str) -> Vec<u8> {
    let mut bytes = b"IDENTIFY\n".to_vec();
    bytes.extend((json.len() as u32).to_be_bytes());
    bytes.extend(json.as_bytes());
    bytes
}

fn publish(name: &str, body: &str) -> Vec<u8> {
    let mut bytes = format!("PUB {name}\n").into_bytes();
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body.as_bytes());
    bytes
}

fn mpub(name: &str, bodies: &[&str]) -> Vec<u8> {
    let mut batch = (bodies.len() as u32).to_be_bytes().to_vec();
    for body in bodies {
        batch.extend((body.len() as u32).to_be_bytes());
        batch.extend(body.as_bytes());
    }
    let mut bytes = format!("MPUB {name}\n").into_bytes();
    bytes.extend((batch.len() as u32).to_be_bytes());
    bytes.extend(batch);
    bytes
}

impl World {
    #[track_caller]
    fn put(&mut self, name: &str, body: &str) -> &mut Self {
        let now = self.now;
        self.nsqd.publish(now, &topic(name), body.as_bytes()).unwrap();
        self
    }

    /// Subscribes a client to channel `c` of topic `t`.
    #[track_caller]
    fn subscribe(&mut self, index: usize, rdy: u32) -> &mut Self {
        self.send(index, format!("SUB t c\nRDY {rdy}\n"));
        assert_eq!(self.receive(index)[0], response("OK"));
        self
    }

    #[track_caller]
    fn expect_link(&mut self, index: usize, link: Link) -> &mut Self {
        assert_eq!(self.client(index).link(), link);
        self
    }

    #[track_caller]
    fn refused(&mut self, index: usize, bytes: impl AsRef<[u8]>, text: &str) {
        assert_eq!(self.send(index, bytes).receive(index).pop(), Some(error(text)));
        self.expect_link(index, Link::Close);
        let now = self.now;
        self.client(index).closed(now, Closed::Local);
        self.open(index);
    }

    fn bodies(&mut self, index: usize) -> Vec<String> {
        let body = |frame| match frame {
            Frame::Message { body, .. } => Some(body),
            Frame::Response(_) | Frame::Error(_) => None,
        };
        self.receive(index).into_iter().filter_map(body).collect()
    }

    fn channel_status(&self, name: &str) -> ChannelStatus<'_> {
        let found = self.nsqd.channels(&topic("t")).find(|c| *c.name == channel(name));
        found.unwrap()
    }

    #[track_caller]
    fn expect_empty(&self) {
        let ArenaStatus { blocks, free, promised, announced } = self.nsqd.store();
        assert_eq!((free, promised, announced), (blocks, 0, 0));
    }
}

#[test]
fn the_identify_response_has_all_fields_that_tokio_nsq_needs() {
    let answer = "{\"max_rdy_count\":4,\"version\":\"1.3.0\",\"max_msg_timeout\":900000,\
        \"msg_timeout\":60000,\"tls_v1\":false,\"deflate\":false,\"deflate_level\":6,\
        \"max_deflate_level\":6,\"snappy\":false,\"sample_rate\":0,\"auth_required\":false,\
        \"output_buffer_size\":16384,\"output_buffer_timeout\":250,\"topology_region\":\"\",\
        \"topology_zone\":\"\"}";
    let mut world = World::new();
    let ask = "{\"client_id\":null,\"sample_rate\":null,\"feature_negotiation\":true,\
        \"tls_v1\":true,\"snappy\":true,\"deflate\":true,\"user_agent\":\"tokio_nsq/0.14\"}";
    // The client does not wait for the response before it sends NOP.
    let mut bytes = identify(ask);
    bytes.extend(b"NOP\n");
    let taken = world.take(0, &bytes);
    assert_eq!(taken, bytes.len() - 4, "NOP is read after the response");
    world.expect(0, &[response(answer)]);
    world.send(0, "NOP\n").expect(0, &[]);
    let ask = "{\"feature_negotiation\":true,\"output_buffer_size\":-1,\"msg_timeout\":1000,\
        \"output_buffer_timeout\":100,\"sample_rate\":7}";
    world.send(1, identify(ask));
    let Some(Frame::Response(answer)) = world.receive(1).pop() else { panic!("no answer") };
    assert!(answer.contains("\"output_buffer_size\":1,\"output_buffer_timeout\":0,"), "{answer}");
    assert!(answer.contains("\"msg_timeout\":1000,"), "{answer}");
    assert!(answer.contains("\"sample_rate\":7,"), "{answer}");
    world.send(2, identify("{}")).expect(2, &[response("OK")]);
    // IDENTIFY is allowed again until SUB.
    world.send(2, identify("{\"client_id\":\"b\"}")).expect(2, &[response("OK")]);
    assert_eq!(world.nsqd.status(2).unwrap().client_id, "b");
}

#[test]
fn refusals_have_the_texts_of_nsqd() {
    let mut world = World::new();
    let ask = identify("{\"heartbeat_interval\":100}");
    world.refused(0, ask, "E_BAD_BODY IDENTIFY heartbeat interval (100) is invalid");
    world.refused(0, identify("[1]"), "E_BAD_BODY IDENTIFY failed to decode JSON body");
    world.refused(0, "AUTH\n\0\0\0\x01x", "E_AUTH_DISABLED AUTH disabled");
    world.refused(0, "RDY 1\n", "E_INVALID cannot RDY in current state");
    world.refused(0, "SUB t c\nSUB t c\n", "E_INVALID cannot SUB in current state");
    world.refused(0, "SUB t c\nRDY 5\n", "E_INVALID RDY count 5 out of range 0-4");
    world.refused(0, "SUB t c\nRDY -1\n", "E_INVALID RDY could not parse count -1");
    world.refused(0, "PUB t\n\0\0\0\0", "E_BAD_MESSAGE PUB invalid message body size 0");
    // Refused before the body arrives.
    let max = world.nsqd.limits().max_msg_size;
    let text = format!("E_BAD_MESSAGE PUB message too big {} > {max}", max + 1);
    let mut ask = b"PUB t\n".to_vec();
    ask.extend((max + 1).to_be_bytes());
    world.refused(0, ask, &text);
    world.refused(
        0,
        b"MPUB t\n\0\0\x10\0\0\0\0\x64\0\0\0\x01",
        &format!("E_BAD_BODY MPUB body too big 4096 > {}", max + 8),
    );
    let ask = b"MPUB t\n\0\0\x03\0\0\0\0\x64\0\0\0\x01";
    world.refused(0, ask, "E_BAD_BODY MPUB invalid message count 100");
    assert_eq!(world.nsqd.counters().refusals, 11);
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    world.client(1).open(now);
    world.send(1, "GET /ping HTTP/1.1\r\n\r\n").expect(1, &[error("E_BAD_PROTOCOL")]);
    world.expect_link(1, Link::Close);
    // The errors of other clients do not affect this one.
    world.send(2, publish("t", "x")).expect(2, &[response("OK")]);
}

#[test]
fn an_error_longer_than_its_room_is_cut_off() {
    let mut world = World::new();
    let line = "\u{1}".repeat(150);
    world.send(0, format!("SUB {line} c\n"));
    let [Frame::Error(text)] = &world.receive(0)[..] else { panic!("one error") };
    assert!(text.starts_with("E_BAD_TOPIC SUB topic name \"\\x01\\x01"), "{text}");
    assert_eq!(text.len(), 247);
}

#[test]
fn tokio_nsq_gets_bare_codes_of_nonfatal_errors() {
    let mut world = World::new();
    world.send(0, identify("{\"user_agent\":\"tokio_nsq/0.14.0\"}"));
    world.send(0, format!("SUB t c\nFIN {}\nTOUCH {}\nREQ {} 0\n", id(0), id(0), id(0)));
    let ok = response("OK");
    let bare = ["E_FIN_FAILED", "E_TOUCH_FAILED", "E_REQ_FAILED"].map(error);
    let [fin, touch, req] = bare;
    world.expect(0, &[ok.clone(), ok, fin, touch, req]);
    // A fatal error has its text.
    world.refused(0, "RDY x\n", "E_INVALID RDY could not parse count x");
}

#[test]
fn the_response_to_sub_comes_before_heartbeats_and_messages() {
    let mut world = World::new();
    world.put("t", "a").put("t", "b");
    // A heartbeat and messages are due as well.
    world.at(29_000).send(0, "NOP\n").at(31_000).send(0, "SUB t c\nRDY 1\n");
    world.expect(0, &[response("OK"), response("_heartbeat_"), message(0, 1, "a")]);
    // FIN allows the next message without another RDY.
    world.send(0, format!("FIN {}\n", id(0))).expect(0, &[message(1, 1, "b")]);
    world.send(0, "CLS\n").expect(0, &[response("CLOSE_WAIT")]);
    world.send(0, format!("RDY 4\nFIN {}\n", id(1))).put("t", "c").expect(0, &[]);
    world.refused(0, "CLS\n", "E_INVALID cannot CLS in current state");
}

#[test]
fn heartbeats_come_among_other_frames_and_silence_closes() {
    let mut world = World::new();
    world.send(0, identify("{\"heartbeat_interval\":1000}")).expect(0, &[response("OK")]);
    for second in 1..=5 {
        world.at(second * 1000 - 1).send(0, publish("t", "x")).expect(0, &[response("OK")]);
        world.at(second * 1000).expect(0, &[response("_heartbeat_")]);
    }
    // The last bytes arrived at 4,999: two intervals later the client is closed.
    world.at(6998).expect(0, &[response("_heartbeat_")]).expect_link(0, Link::Up);
    world.at(6999).expect_link(0, Link::Close).expect(0, &[]);
    let now = world.now;
    world.client(0).closed(now, Closed::Local);
    let gone = Closed::Fault(crate::session::Fault::TimedOut(crate::session::Awaited::Heartbeat));
    let event = Event::Client { index: 0, event: ClientEvent::Disconnected(gone) };
    assert_eq!(world.nsqd.poll_event(), Some(event));
    // With heartbeats disabled, silence is allowed and SUB is not.
    world.at(7000).open(0);
    world.send(0, identify("{\"heartbeat_interval\":-1}")).expect(0, &[response("OK")]);
    world.at(500_000).expect(0, &[]).expect_link(0, Link::Up);
    // But an incomplete body still times out.
    world.send(0, "PUB t\n\0\0\0\x09").at(504_999).expect_link(0, Link::Up);
    world.at(505_000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE PUB failed to read message body")]);
    let now = world.now;
    world.client(0).closed(now, Closed::Local);
    world.open(0);
    world.send(0, identify("{\"heartbeat_interval\":-1}")).expect(0, &[response("OK")]);
    world.refused(0, "SUB t c\n", "E_INVALID cannot SUB with heartbeats disabled");
}

#[test]
fn a_client_that_reads_nothing_is_closed_after_one_interval() {
    let mut world = World::new();
    world.send(0, identify("{\"heartbeat_interval\":1000}")).expect(0, &[response("OK")]);
    world.subscribe(0, 1).put("t", "stuck");
    let now = world.now;
    assert_eq!(world.client(0).transmit(now).len(), 39);
    world.client(0).sent(now, 10);
    let now = world.now;
    assert!(!world.client(0).transmit(now).is_empty());
    world.at(999).send(0, "NOP\n").expect_link(0, Link::Up);
    world.at(1000).expect_link(0, Link::Close).expect(0, &[]);
    // Its message is delivered to another client at once.
    world.subscribe(1, 1).expect(1, &[]);
    assert_eq!(world.nsqd.counters().returned, 1);
}

#[test]
fn sampling_delivers_about_the_requested_percentage() {
    let mut world = World::with(&CONFIG, blocks(1000));
    world.send(0, identify("{\"sample_rate\":25}")).expect(0, &[response("OK")]);
    world.subscribe(0, 4);
    let mut got = 0;
    for _ in 0..10 {
        for _ in 0..400 {
            world.put("t", "x");
        }
        loop {
            let frames = world.receive(0);
            for frame in &frames {
                let Frame::Message { id, .. } = frame else { panic!("{frame:?}") };
                world.send(0, format!("FIN {id}\n"));
                got += 1;
            }
            if frames.is_empty() && world.channel_status("c").depth == 0 {
                break;
            }
        }
    }
    assert!((880..1120).contains(&got), "{got}");
    assert_eq!(world.nsqd.counters().sampled_out, 4000 - got);
    world.expect_empty();
}

#[test]
fn bodies_of_every_length_around_a_block_are_delivered_unchanged() {
    let mut world = World::with(&WHOLE, blocks(62));
    world.subscribe(0, 1);
    let max = world.nsqd.limits().max_msg_size as usize;
    assert_eq!(max, 61 * 64 + FIRST);
    let lens = (1..300).chain([max - 1, max]);
    for (n, len) in lens.enumerate() {
        let body: String = (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        // Received in pieces of different lengths.
        let bytes = publish("t", &body);
        for piece in bytes.chunks(1 + n % 70) {
            world.send(1, piece);
        }
        world.expect(1, &[response("OK")]).expect(0, &[message(n as u32, 1, &body)]);
        let cost = message_cost(len as u32, 2) / message_cost(1, 2);
        let ArenaStatus { blocks, free, .. } = world.nsqd.store();
        assert_eq!((blocks - free) as usize, cost);
        world.send(0, format!("FIN {}\n", id(n as u32)));
        world.expect_empty();
    }
    let now = world.now;
    let long = world.nsqd.publish(now, &topic("t"), &vec![b'x'; max + 1]);
    assert_eq!(long, Err(PublishError::TooLarge { max }));
    assert_eq!(world.nsqd.publish(now, &topic("t"), b""), Err(PublishError::Empty));
    let options = PublishOptions { defer: Some(Span::from_millis(3_600_001)) };
    let late = world.nsqd.publish_with(now, &topic("t"), b"x", options);
    assert_eq!(late, Err(PublishError::DeferTooLong));
}

#[test]
fn the_status_has_the_values_of_nsqds_stats() {
    let mut world = World::new();
    let now = world.now;
    world.nsqd.set_unix_time(now, 1_700_000_000_000_000_000);
    world.client(0).closed(now, Closed::Peer);
    let from = "10.0.0.7:52926".parse().unwrap();
    world.client(0).accepted(now, from);
    world.send(0, "  V2");
    world.send(0, identify("{\"client_id\":\"me\",\"hostname\":\"h\",\"user_agent\":\"go-nsq/1.1\",\"topology_zone\":\"z\"}"));
    assert_eq!(world.receive(0), [response("OK")]);
    world.subscribe(0, 3).put("t", "a");
    world.send(0, publish("u", "bb")).send(0, mpub("t", &["c", "d"]));
    let frames = world.receive(0);
    assert_eq!(frames.len(), 5, "{frames:?}");
    world.send(0, format!("FIN {}\nREQ {} 0\nCLS\n", id(0), id(2)));
    let status = world.nsqd.status(0).unwrap();
    assert_eq!((status.client_id, status.hostname, status.user_agent), ("me", "h", "go-nsq/1.1"));
    assert_eq!((status.from, status.since, status.identified), (Some(from), 1_700_000_000, true));
    assert_eq!((status.topology_zone, status.state.number()), ("z", 4));
    assert_eq!((status.ready, status.in_flight, status.messages), (0, 1, 3));
    assert_eq!((status.finished, status.requeued), (1, 1));
    assert_eq!((status.topic, status.channel), (Some(&topic("t")), Some(&channel("c"))));
    let published: Vec<_> = status.published().collect();
    assert_eq!(published, [(&topic("u"), 1), (&topic("t"), 2)]);
    let status = world.nsqd.topics().find(|t| *t.name == topic("t")).unwrap();
    assert_eq!((status.messages, status.bytes, status.depth, status.channels), (3, 3, 0, 1));
    assert_eq!(world.nsqd.status(1).unwrap().state, ClientState::Init);
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    assert!(world.nsqd.status(1).is_none() && world.nsqd.statuses().count() == 2);
}

#[test]
fn a_saturated_clock_delays_without_errors() {
    let mut world = World::new();
    world.subscribe(0, 2).put("t", "a");
    assert_eq!(world.bodies(0), ["a"]);
    world.send(0, format!("REQ {} 5\n", id(0)));
    world.now = Instant::from_micros(u64::MAX - 1);
    let now = world.now;
    world.nsqd.set_unix_time(now, i64::MAX);
    world.client(0).tick(now);
    world.expect_link(0, Link::Close);
    world.client(0).closed(now, Closed::Local);
    world.open(0);
    world.subscribe(0, 2).put("t", "b");
    assert_eq!(world.nsqd.counters().accepted, 2);
    assert!(world.client(0).deadline() <= Instant::NEVER);
    world.send(0, format!("REQ {} 5\n", id(0)));
}

#[test]
fn invalid_settings_are_reported() {
    fn refused(config: Config<'static>, store: usize) -> ConfigError {
        let storage = Box::leak(Box::new(Storage::<1, 1, 1, 1>::new()));
        let config = Box::leak(Box::new(config));
        Nsqd::new(config, storage, vec![0; store].leak()).unwrap_err()
    }
    let with = |config: Config<'static>| refused(config, 1024);
    let ms = Span::from_millis;
    assert_eq!(with(Config { heartbeat: ms(999), ..CONFIG }), ConfigError::Heartbeat { ms: 999 });
    let long = Config { heartbeat: ms(60_001), ..CONFIG };
    assert_eq!(with(long), ConfigError::Heartbeat { ms: 60_001 });
    let long = Config { msg_timeout: ms(900_001), ..CONFIG };
    assert_eq!(with(long), ConfigError::MsgTimeout { ms: 900_001 });
    for (reserve, announced, good) in
        [(90, 10, true), (91, 1, false), (0, 0, false), (0, 100, true), (12, 89, false)]
    {
        let shares = Config { reserve_percent: reserve, announced_percent: announced, ..CONFIG };
        let wrong = ConfigError::Shares { reserve, announced };
        assert_eq!(shares.check([2, 4, 3], 4, 4096).err(), (!good).then_some(wrong));
    }
    assert_eq!(with(Config { body_timeout: Span::ZERO, ..CONFIG }), ConfigError::BodyTimeout);
    for percent in [0, 101] {
        let share = Config { unconsumed_percent: percent, ..CONFIG };
        let wrong = ConfigError::Unconsumed { percent };
        assert_eq!(share.check([2, 4, 3], 4, 4096).err(), Some(wrong));
    }
    let none = Config { channels_per_topic: 0, ..CONFIG };
    assert_eq!(with(none), ConfigError::ChannelsPerTopic { count: 0 });
    let many = Config { channels_per_topic: 33, ..CONFIG };
    assert_eq!(with(many), ConfigError::ChannelsPerTopic { count: 33 });
    assert_eq!(refused(CONFIG, 65), ConfigError::StoreTooSmall { len: 65 });
    let most = Config { channels_per_topic: 32, ..CONFIG };
    assert_eq!(refused(most, 513), ConfigError::StoreTooSmall { len: 513 });
    assert!(format!("{}", refused(CONFIG, 65)).contains("65 bytes"));
    let config = Box::leak(Box::new(CONFIG));
    let storage = Box::leak(Box::new(Storage::<0, 1, 1, 1>::new()));
    let error = Nsqd::new(config, storage, &mut []).unwrap_err();
    assert_eq!(error, ConfigError::Tables { count: 0 });
    let storage = Box::leak(Box::new(Storage::<1, 1, 1, 0>::new()));
    let error = Nsqd::new(config, storage, &mut []).unwrap_err();
    assert_eq!(error, ConfigError::InFlight { count: 0 });
}

#[test]
fn the_smallest_nsqd_works() {
    let storage = Box::leak(Box::new(Storage::<1, 1, 1, 1>::new()));
    let store = vec![0; blocks(1)].leak();
    let mut nsqd = Nsqd::new(&CONFIG, storage, store).unwrap();
    let now = Instant::ZERO;
    assert_eq!(nsqd.limits().max_msg_size as usize, FIRST);
    for _ in 0..100 {
        nsqd.publish(now, &topic("t"), &[b'x'; FIRST]).unwrap();
        assert_eq!(nsqd.publish(now, &topic("t"), b"y"), Err(PublishError::Full));
        nsqd.empty(now, &topic("t"), None).unwrap();
    }
}

#[test]
fn large_stores_have_longer_blocks_or_more_of_them() {
    let store = vec![0; 20 << 20].leak();
    let storage = Box::leak(Box::new(Storage::<1, 1, 1, 1>::new()));
    let nsqd = Nsqd::new(&CONFIG, storage, store).unwrap();
    let count = if cfg!(feature = "large") { 307_819 } else { 40_800 };
    assert_eq!(nsqd.store().blocks, count);
    assert_eq!(nsqd.limits().max_msg_size, 1 << 20);
}

#[test]
fn memory_is_as_documented() {
    assert_eq!(size_of::<Nsqd<'_>>(), RAM_MAX);
    assert_eq!(size_of::<Topic>(), TOPIC_RAM_MAX);
    assert_eq!(size_of::<Channel>(), CHANNEL_RAM_MAX);
    assert_eq!(size_of::<Client>() + size_of::<Subscription>(), CLIENT_RAM_MAX);
    assert_eq!(size_of::<Entry>(), ENTRY_RAM);
    let storage = size_of::<Storage<2, 4, 4, 8>>();
    assert!(
        storage <= 2 * TOPIC_RAM_MAX + 4 * CHANNEL_RAM_MAX + 4 * CLIENT_RAM_MAX + 32 * ENTRY_RAM
    );
    assert_eq!(storage, if cfg!(feature = "large") { 6176 } else { 5792 });
}
