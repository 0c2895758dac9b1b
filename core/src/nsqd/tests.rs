//! A node as its clients see it, in scenarios.

use super::*;
use crate::session::{Link, Session};
use crate::wire::nsqd::{FrameDecoder, FrameType, Message};

mod tables;

const CONFIG: Config<'_> = Config { boot: 0xb007, ..Config::new() };

/// All of the store is for whoever comes first.
const WHOLE: Config<'_> =
    Config { reserve_percent: 0, announced_percent: 100, unconsumed_percent: 100, ..CONFIG };

/// A node with three clients, and a clock.
struct World {
    node: Nsqd<'static>,
    now: Instant,
    frames: Vec<FrameDecoder>,
}

/// A frame as a client reads it.
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
        let node = Nsqd::new(config, storage, store).unwrap();
        let mut world = Self { node, now: Instant::from_millis(1000), frames: Vec::new() };
        for index in 0..3 {
            world.frames.push(FrameDecoder::new(1 << 20));
            world.open(index);
        }
        world
    }

    fn client(&mut self, index: usize) -> ClientSession<'_, 'static> {
        self.node.client(index).unwrap()
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
    fn say(&mut self, index: usize, bytes: impl AsRef<[u8]>) -> &mut Self {
        let bytes = bytes.as_ref();
        assert_eq!(self.take(index, bytes), bytes.len(), "all is taken");
        self
    }

    /// All that a client is told now.
    fn hear(&mut self, index: usize) -> Vec<Frame> {
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
        assert_eq!(self.hear(index), frames);
        self
    }
}

#[test]
fn a_message_goes_from_a_producer_to_a_consumer() {
    let mut world = World::new();
    world.say(0, b"SUB t c\nRDY 2\n").expect(0, &[response("OK")]);
    world.say(1, b"PUB t\n\0\0\0\x02hi").expect(1, &[response("OK")]);
    let id = MessageId(*b"0000b00700000000");
    world.expect(0, &[Frame::Message { attempts: 1, id, body: "hi".into() }]);
    world.say(0, format!("FIN {id}\n")).expect(0, &[]);
    world.say(0, format!("FIN {id}\n"));
    world.expect(0, &[error("E_FIN_FAILED FIN 0000b00700000000 failed ID not in flight")]);
    assert_eq!(world.client(0).link(), Link::Up);
    let store = world.node.store();
    assert_eq!(store.blocks, store.free);
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
        self.node.publish(now, &topic(name), body.as_bytes()).unwrap();
        self
    }

    /// Subscribes a client to channel `c` of topic `t`.
    #[track_caller]
    fn subscribe(&mut self, index: usize, rdy: u32) -> &mut Self {
        self.say(index, format!("SUB t c\nRDY {rdy}\n"));
        assert_eq!(self.hear(index)[0], response("OK"));
        self
    }

    #[track_caller]
    fn expect_link(&mut self, index: usize, link: Link) -> &mut Self {
        assert_eq!(self.client(index).link(), link);
        self
    }

    #[track_caller]
    fn refused(&mut self, index: usize, bytes: impl AsRef<[u8]>, text: &str) {
        assert_eq!(self.say(index, bytes).hear(index).pop(), Some(error(text)));
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
        self.hear(index).into_iter().filter_map(body).collect()
    }

    fn channel_status(&self, name: &str) -> ChannelStatus<'_> {
        let found = self.node.channels(&topic("t")).find(|c| *c.name == channel(name));
        found.unwrap()
    }

    #[track_caller]
    fn expect_empty(&self) {
        let ArenaStatus { blocks, free, promised, announced } = self.node.store();
        assert_eq!((free, promised, announced), (blocks, 0, 0));
    }
}

#[test]
fn identify_is_answered_with_all_that_tokio_nsq_needs() {
    let answer = "{\"max_rdy_count\":4,\"version\":\"1.3.0\",\"max_msg_timeout\":900000,\
        \"msg_timeout\":60000,\"tls_v1\":false,\"deflate\":false,\"deflate_level\":6,\
        \"max_deflate_level\":6,\"snappy\":false,\"sample_rate\":0,\"auth_required\":false,\
        \"output_buffer_size\":16384,\"output_buffer_timeout\":250,\"topology_region\":\"\",\
        \"topology_zone\":\"\"}";
    let mut world = World::new();
    let ask = "{\"client_id\":null,\"sample_rate\":null,\"feature_negotiation\":true,\
        \"tls_v1\":true,\"snappy\":true,\"deflate\":true,\"user_agent\":\"tokio_nsq/0.14\"}";
    // Behind it comes what the client does not wait with.
    let mut bytes = identify(ask);
    bytes.extend(b"NOP\n");
    let taken = world.take(0, &bytes);
    assert_eq!(taken, bytes.len() - 4, "the answer comes first");
    world.expect(0, &[response(answer)]);
    world.say(0, "NOP\n").expect(0, &[]);
    let ask = "{\"feature_negotiation\":true,\"output_buffer_size\":-1,\"msg_timeout\":1000,\
        \"output_buffer_timeout\":100,\"sample_rate\":7}";
    world.say(1, identify(ask));
    let Some(Frame::Response(answer)) = world.hear(1).pop() else { panic!("no answer") };
    assert!(answer.contains("\"output_buffer_size\":1,\"output_buffer_timeout\":0,"), "{answer}");
    assert!(answer.contains("\"msg_timeout\":1000,"), "{answer}");
    assert!(answer.contains("\"sample_rate\":7,"), "{answer}");
    world.say(2, identify("{}")).expect(2, &[response("OK")]);
    // Again, until SUB.
    world.say(2, identify("{\"client_id\":\"b\"}")).expect(2, &[response("OK")]);
    assert_eq!(world.node.status(2).unwrap().client_id, "b");
}

#[test]
fn what_is_refused_is_refused_in_nsqds_words() {
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
    // Before its body comes.
    let max = world.node.limits().max_msg_size;
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
    assert_eq!(world.node.counters().refusals, 11);
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    world.client(1).open(now);
    world.say(1, "GET /ping HTTP/1.1\r\n\r\n").expect(1, &[error("E_BAD_PROTOCOL")]);
    world.expect_link(1, Link::Close);
    // All that was wrong with others did nothing to this one.
    world.say(2, publish("t", "x")).expect(2, &[response("OK")]);
}

#[test]
fn an_error_longer_than_its_room_is_cut_off() {
    let mut world = World::new();
    let line = "\u{1}".repeat(150);
    world.say(0, format!("SUB {line} c\n"));
    let [Frame::Error(text)] = &world.hear(0)[..] else { panic!("one error") };
    assert!(text.starts_with("E_BAD_TOPIC SUB topic name \"\\x01\\x01"), "{text}");
    assert_eq!(text.len(), 248);
}

#[test]
fn tokio_nsq_gets_bare_codes_of_what_is_not_fatal() {
    let mut world = World::new();
    world.say(0, identify("{\"user_agent\":\"tokio_nsq/0.14.0\"}"));
    world.say(0, format!("SUB t c\nFIN {}\nTOUCH {}\nREQ {} 0\n", id(0), id(0), id(0)));
    let ok = response("OK");
    let bare = ["E_FIN_FAILED", "E_TOUCH_FAILED", "E_REQ_FAILED"].map(error);
    let [fin, touch, req] = bare;
    world.expect(0, &[ok.clone(), ok, fin, touch, req]);
    // Of what ends the connection it reads the text.
    world.refused(0, "RDY x\n", "E_INVALID RDY could not parse count x");
}

#[test]
fn sub_and_rdy_in_one_write_and_nothing_before_the_answer() {
    let mut world = World::new();
    world.put("t", "a").put("t", "b");
    // A heartbeat is due, and so are messages: the answer comes first.
    world.at(29_000).say(0, "NOP\n").at(31_000).say(0, "SUB t c\nRDY 1\n");
    world.expect(0, &[response("OK"), response("_heartbeat_"), message(0, 1, "a")]);
    // FIN makes room for the next without another RDY.
    world.say(0, format!("FIN {}\n", id(0))).expect(0, &[message(1, 1, "b")]);
    world.say(0, "CLS\n").expect(0, &[response("CLOSE_WAIT")]);
    world.say(0, format!("RDY 4\nFIN {}\n", id(1))).put("t", "c").expect(0, &[]);
    world.refused(0, "CLS\n", "E_INVALID cannot CLS in current state");
}

#[test]
fn heartbeats_come_whatever_else_and_silence_closes() {
    let mut world = World::new();
    world.say(0, identify("{\"heartbeat_interval\":1000}")).expect(0, &[response("OK")]);
    for second in 1..=5 {
        world.at(second * 1000 - 1).say(0, publish("t", "x")).expect(0, &[response("OK")]);
        world.at(second * 1000).expect(0, &[response("_heartbeat_")]);
    }
    // Heard last at 4,999: two intervals.
    world.at(6998).expect(0, &[response("_heartbeat_")]).expect_link(0, Link::Up);
    world.at(6999).expect_link(0, Link::Close).expect(0, &[]);
    let now = world.now;
    world.client(0).closed(now, Closed::Local);
    let gone = Closed::Fault(crate::session::Fault::TimedOut(crate::session::Awaited::Heartbeat));
    let event = Event::Client { index: 0, event: ClientEvent::Disconnected(gone) };
    assert_eq!(world.node.poll_event(), Some(event));
    // Without: none come, silence is fine, SUB is not.
    world.at(7000).open(0);
    world.say(0, identify("{\"heartbeat_interval\":-1}")).expect(0, &[response("OK")]);
    world.at(500_000).expect(0, &[]).expect_link(0, Link::Up);
    // But a body that never ends does not keep its room for ever.
    world.say(0, "PUB t\n\0\0\0\x09").at(504_999).expect_link(0, Link::Up);
    world.at(505_000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE PUB failed to read message body")]);
    let now = world.now;
    world.client(0).closed(now, Closed::Local);
    world.open(0);
    world.say(0, identify("{\"heartbeat_interval\":-1}")).expect(0, &[response("OK")]);
    world.refused(0, "SUB t c\n", "E_INVALID cannot SUB with heartbeats disabled");
}

#[test]
fn a_client_that_takes_nothing_is_closed_after_one_interval() {
    let mut world = World::new();
    world.say(0, identify("{\"heartbeat_interval\":1000}")).expect(0, &[response("OK")]);
    world.subscribe(0, 1).put("t", "stuck");
    let now = world.now;
    assert_eq!(world.client(0).transmit(now).len(), 39);
    world.client(0).sent(now, 10);
    let now = world.now;
    assert!(!world.client(0).transmit(now).is_empty());
    world.at(999).say(0, "NOP\n").expect_link(0, Link::Up);
    world.at(1000).expect_link(0, Link::Close).expect(0, &[]);
    // Somebody else has it at once.
    world.subscribe(1, 1).expect(1, &[]);
    assert_eq!(world.node.counters().returned, 1);
}

#[test]
fn a_message_comes_again_when_its_time_is_up() {
    let mut world = World::new();
    world.say(0, identify("{\"msg_timeout\":1000}")).expect(0, &[response("OK")]);
    world.subscribe(0, 1).put("t", "a").expect(0, &[message(0, 1, "a")]);
    world.at(999).expect(0, &[]);
    world.at(1000).expect(0, &[message(0, 2, "a")]);
    world.say(0, format!("TOUCH {}\n", id(0))).at(1999).expect(0, &[]);
    world.say(0, format!("TOUCH {}\n", id(0))).at(2500).expect(0, &[]);
    world.say(0, format!("FIN {}\n", id(0))).at(9000).expect(0, &[]);
    let status = world.channel_status("c");
    assert_eq!((status.timed_out, status.depth, status.in_flight), (1, 0, 0));
    world.expect_empty();
}

/// pynsq reads a number of 16 bits with a sign.
#[test]
fn attempts_stay_at_their_end() {
    let mut world = World::new();
    world.put("t", "a").say(0, "SUB t c\nRDY 1\n");
    world.expect(0, &[response("OK"), message(0, 1, "a")]);
    for attempts in 2..=32_769u16 {
        world.say(0, format!("REQ {} 0\n", id(0)));
        world.expect(0, &[message(0, attempts.min(32_767), "a")]);
    }
}

#[test]
fn touch_keeps_a_message_no_longer_than_max_msg_timeout() {
    const SHORT: Config<'_> = Config {
        limits: Limits { max_msg_timeout_ms: 2500, ..Limits::NSQD },
        msg_timeout: Span::from_millis(1000),
        ..CONFIG
    };
    let mut world = World::with(&SHORT, 4096);
    world.subscribe(0, 1).put("t", "a").expect(0, &[message(0, 1, "a")]);
    for ms in [900, 1800, 2400] {
        world.at(ms).say(0, format!("TOUCH {}\n", id(0))).expect(0, &[]);
    }
    world.at(2499).expect(0, &[]);
    world.at(2500).expect(0, &[message(0, 2, "a")]);
}

#[test]
fn a_deferred_message_keeps_nobody_waiting() {
    let mut world = World::new();
    world.subscribe(0, 4);
    // Four at a time may be in flight; a hundred times that are deferred.
    for n in 0..40 {
        world.put("t", &format!("m{n}"));
        assert_eq!(world.bodies(0), [format!("m{n}")]);
        // Clamped to an hour.
        world.say(0, format!("REQ {} 9999999\n", id(n)));
    }
    let status = world.channel_status("c");
    assert_eq!((status.deferred, status.in_flight, status.requeued), (40, 0, 40));
    world.at(3_599_999).expect_link(0, Link::Close);
    let now = world.now;
    world.client(1).closed(now, Closed::Local);
    world.open(1);
    world.subscribe(1, 4).expect(1, &[]);
    world.at(3_600_000);
    assert_eq!(world.bodies(1), ["m0", "m1", "m2", "m3"]);
}

#[test]
fn dpub_waits_its_time_in_each_channel() {
    let mut world = World::new();
    let now = world.now;
    world.subscribe(0, 1);
    world.node.create_channel(now, &topic("t"), &channel("d")).unwrap();
    world.say(1, "DPUB t 2000\n\0\0\0\x05later").expect(1, &[response("OK")]);
    world.put("t", "now").expect(0, &[message(1, 1, "now")]);
    world.say(0, format!("FIN {}\n", id(1)));
    assert_eq!(world.channel_status("d").deferred, 1);
    assert_eq!(world.client(0).deadline(), Instant::from_millis(3000));
    world.at(1999).expect(0, &[]);
    world.at(2000).expect(0, &[message(0, 1, "later")]);
    assert_eq!(world.channel_status("d").depth, 1, "the other one has it, too");
    world.node.tick(Instant::from_millis(3000));
    assert_eq!((world.channel_status("d").depth, world.channel_status("d").deferred), (2, 0));
    world.refused(1, "DPUB t 3600001\n", "E_INVALID DPUB timeout 3600001 out of range 0-3600000");
}

#[test]
fn what_a_client_had_is_given_to_the_next_at_once() {
    let mut world = World::new();
    world.subscribe(0, 3).put("t", "a").put("t", "b");
    assert_eq!(world.bodies(0), ["a", "b"]);
    let now = world.now;
    let version = world.node.version();
    world.client(0).closed(now, Closed::Peer);
    assert_ne!(world.node.version(), version);
    world.subscribe(1, 3);
    world.expect(1, &[]);
    let mut world = World::new();
    world.subscribe(0, 3).subscribe(1, 3).put("t", "a").put("t", "b");
    assert_eq!(world.bodies(0).len() + world.bodies(1).len() + world.bodies(0).len(), 2);
    world.client(0).closed(now, Closed::Peer);
    let again = world.hear(1);
    assert!(matches!(again[..], [Frame::Message { attempts: 2, .. }]), "{again:?}");
}

#[test]
fn clients_that_wait_are_served_in_turn() {
    let mut world = World::new();
    for index in 0..3 {
        world.subscribe(index, 1);
    }
    let mut got = [0; 3];
    for n in 0..30 {
        world.put("t", "x");
        let mut served = None;
        // Always asked in the same order.
        for index in [0, 1, 2, 0, 1, 2] {
            if !world.hear(index).is_empty() {
                assert_eq!(served.replace(index), None, "one gets it");
            }
        }
        let index = served.unwrap();
        got[index] += 1;
        world.say(index, format!("FIN {}\n", id(n)));
    }
    assert_eq!(got, [10; 3]);
}

#[test]
fn one_client_does_not_take_all_entries() {
    let mut world = World::new();
    world.subscribe(0, 4).subscribe(1, 4);
    for _ in 0..6 {
        world.put("t", "x");
    }
    // Of four entries the last is for the other one, however late it reads.
    assert_eq!(world.bodies(0).len() + world.bodies(0).len() + world.bodies(0).len(), 3);
    assert_eq!(world.bodies(1).len(), 1);
    // Who wants none any more is not waited for.
    world.subscribe(2, 1);
    let version = world.node.version();
    world.say(2, "RDY 0\n");
    assert_ne!(world.node.version(), version, "those that wait are told");
    // When one is finished, either may have it: the other has got something.
    let version = world.node.version();
    world.say(0, format!("FIN {}\n", id(0)));
    assert_ne!(world.node.version(), version, "those that wait are told");
    assert_eq!(world.bodies(0).len() + world.bodies(1).len() + world.bodies(0).len(), 1);
}

#[test]
fn the_first_channel_gets_what_the_topic_has_and_later_ones_what_comes() {
    let mut world = World::new();
    world.put("t", "a").put("t", "b");
    assert_eq!(world.node.topics().next().unwrap().depth, 2);
    world.subscribe(0, 4);
    world.say(1, "SUB t d\nRDY 4\n").put("t", "c");
    assert_eq!(world.bodies(1), ["c"]);
    assert_eq!(world.bodies(0), ["c"]);
    let messages = |name| world.channel_status(name).messages;
    assert_eq!((messages("c"), messages("d")), (3, 1));
    world
        .say(
            0,
            format!(
                "FIN {}
FIN {}
FIN {}
",
                id(0),
                id(1),
                id(2)
            ),
        )
        .expect(0, &[]);
    let ArenaStatus { blocks, free, .. } = world.node.store();
    assert_eq!(blocks - free, 1, "the other one has it still");
    world
        .say(
            1,
            format!(
                "FIN {}
",
                id(2)
            ),
        )
        .expect(1, &[]);
    world.expect_empty();
}

#[test]
fn a_paused_topic_gives_all_its_channels_everything_later() {
    let mut world = World::new();
    let now = world.now;
    let (t, c, d) = (topic("t"), channel("c"), channel("d"));
    world.node.create_topic(now, &t).unwrap();
    world.node.pause_topic(now, &t).unwrap();
    world.put("t", "a");
    world.node.create_channel(now, &t, &c).unwrap();
    world.node.create_channel(now, &t, &d).unwrap();
    let full = world.node.create_channel(now, &t, &channel("e"));
    assert_eq!(full, Err(NsqdError::TooManyChannels), "a topic has two");
    world.put("t", "b").subscribe(0, 4);
    world.say(1, "SUB t d\nRDY 4\n").expect(1, &[response("OK")]);
    assert_eq!(world.node.topics().next().unwrap().depth, 2);
    world.node.unpause_topic(now, &t).unwrap();
    assert_eq!(
        (world.bodies(0), world.bodies(1)),
        (vec!["a".into(), "b".into()], vec!["a".into(), "b".into()])
    );
    // A paused channel keeps its messages to itself.
    world.node.pause_channel(now, &t, &c).unwrap();
    world.put("t", "c");
    assert_eq!((world.bodies(0).len(), world.bodies(1).len()), (0, 1));
    world.node.unpause_channel(now, &t, &c).unwrap();
    assert_eq!(world.bodies(0), ["c"]);
}

#[test]
fn tables_that_are_full_say_so() {
    let mut world = World::new();
    world.put("t", "x").put("u", "x");
    let now = world.now;
    let third = world.node.publish(now, &topic("v"), b"x");
    assert_eq!(third, Err(PublishError::TooManyTopics));
    assert_eq!(world.node.create_topic(now, &topic("v")), Err(NsqdError::TooManyTopics));
    world.refused(0, publish("v", "x"), "E_PUB_FAILED PUB failed no room for another topic");
    world.refused(0, "SUB v c\n", "E_SUB_FAILED SUB failed no room for another topic");
    for name in ["a", "b"] {
        world.node.create_channel(now, &topic("t"), &channel(name)).unwrap();
    }
    let text = "E_SUB_FAILED SUB failed no room for another channel of this topic";
    world.refused(0, "SUB t c\n", text);
    world.node.delete_topic(now, &topic("u")).unwrap();
    world.put("v", "x");
}

#[test]
fn ephemeral_ones_go_with_the_last_that_uses_them() {
    let mut world = World::new();
    world.say(0, "SUB x#ephemeral c#ephemeral\nRDY 1\n").say(1, "SUB x#ephemeral c#ephemeral\n");
    world.put("x#ephemeral", "m");
    let topology = world.node.topology();
    let now = world.now;
    world.client(0).closed(now, Closed::Peer);
    assert_eq!((world.node.topology(), world.node.topics().count()), (topology, 1));
    world.client(1).closed(now, Closed::Peer);
    assert_ne!(world.node.topology(), topology);
    assert_eq!(world.node.topics().count(), 0);
    world.expect_empty();
}

#[test]
fn deleting_closes_subscribers_without_a_word_and_publishing_makes_it_anew() {
    let mut world = World::new();
    world.subscribe(0, 4).put("t", "a").expect(0, &[message(0, 1, "a")]);
    world.say(1, "SUB t d\n").expect(1, &[response("OK")]);
    let now = world.now;
    world.node.delete_channel(now, &topic("t"), &channel("c")).unwrap();
    world.expect_link(0, Link::Close).expect(0, &[]).expect_link(1, Link::Up);
    assert_eq!(world.client(0).link(), Link::Close);
    world.node.delete_topic(now, &topic("t")).unwrap();
    assert!(world.client(1).deadline() <= now, "it is to be looked at");
    world.expect_link(1, Link::Close).expect(1, &[]);
    world.expect_empty();
    assert_eq!(world.node.delete_topic(now, &topic("t")), Err(NsqdError::NoTopic));
    world.put("t", "b");
    let status = world.node.topics().next().unwrap();
    assert_eq!((status.depth, status.messages, status.channels), (1, 1, 0));
}

#[test]
fn a_message_half_written_stays_whole_whatever_happens_to_it() {
    let body = "0123456789".repeat(30);
    for what in 0..5 {
        let mut world = World::new();
        world.subscribe(0, 1).put("t", &body);
        let now = world.now;
        let mut bytes: Vec<u8> = Vec::new();
        let mut client = world.client(0);
        let transmit = client.transmit(now);
        bytes.extend(transmit.head);
        bytes.extend(&transmit.body[..100]);
        client.sent(now, 134);
        match what {
            0 => drop(world.say(0, format!("FIN {}\n", id(0)))),
            1 => world.node.empty_channel(now, &topic("t"), &channel("c")).unwrap(),
            2 => {
                // Its time is up, and somebody else is quicker.
                world.say(1, "SUB t c\nRDY 1\n").at(29_000).say(0, "NOP\n").say(1, "NOP\n");
                world.now = Instant::from_millis(62_000);
                let now = world.now;
                world.client(0).tick(now);
                continue;
            }
            3 => {
                world.node.delete_topic(now, &topic("t")).unwrap();
                world.expect(0, &[]);
                world.expect_empty();
                continue;
            }
            _ => world.refused_half_way(),
        }
        // Whatever comes now does not lie in its place.
        for _ in 0..200 {
            let now = world.now;
            let _ = world.node.publish(now, &topic("u"), &[b'!'; 50]);
        }
        loop {
            let mut client = world.client(0);
            let transmit = client.transmit(now);
            let n = transmit.len().min(7);
            if n == 0 || bytes.len() == 34 + body.len() {
                break;
            }
            bytes.extend(transmit.head.iter().chain(transmit.body).take(n));
            client.sent(now, n);
        }
        assert_eq!(&bytes[34..], body.as_bytes(), "{what}");
    }
}

impl World {
    fn refused_half_way(&mut self) {
        self.say(0, "nonsense\n").expect_link(0, Link::Close);
    }
}

#[test]
fn what_is_not_read_keeps_nobody_else_waiting() {
    let mut world = World::with(&WHOLE, 4096);
    world.subscribe(2, 4);
    let many = publish("t", "x").repeat(100);
    let taken = world.take(0, &many);
    assert!(taken < many.len(), "its answers have no room");
    let accepted = world.node.counters().accepted;
    assert!((14..=20).contains(&accepted), "{accepted}");
    world.say(1, publish("t", "y")).expect(1, &[response("OK")]);
    assert_eq!(world.hear(0).len() as u64, accepted);
    assert_eq!(world.take(0, &many[taken..]), taken, "as many again");
}

#[test]
fn a_producer_waits_for_room_and_is_told_when_there_is_none() {
    let mut world = World::with(&WHOLE, 66 * 4);
    world.subscribe(0, 4);
    world.say(1, publish("t", &"a".repeat(200))).expect(1, &[response("OK")]);
    assert_eq!(world.bodies(0).len(), 1);
    // The application is refused at once, a client waits.
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"b"), Err(PublishError::Full));
    assert_eq!(world.node.counters().refused, 1);
    let wait = publish("t", "bb");
    assert_eq!(world.take(1, &wait), wait.len() - 2);
    assert_eq!(world.take(1, b"bb"), 0);
    assert_eq!(world.client(1).deadline(), world.now.after(CONFIG.publish_wait));
    world.at(4000).expect(1, &[]);
    let version = world.node.version();
    world.say(0, format!("FIN {}\n", id(0)));
    assert_ne!(world.node.version(), version, "the waiting one is to look");
    world.say(1, "bb").expect(1, &[response("OK")]);
    // It does not wait for ever.
    world.say(1, publish("t", &"c".repeat(80))).expect(1, &[response("OK")]);
    world.say(1, publish("t", "d")).expect(1, &[response("OK")]);
    let wait = publish("t", "dd");
    assert_eq!(world.take(1, &wait), wait.len() - 2);
    world.at(8999).expect(1, &[]).expect_link(1, Link::Up);
    world.at(9000).expect(1, &[error("E_PUB_FAILED PUB failed no room")]);
    world.expect_link(1, Link::Close);
    assert_eq!(world.node.counters().waits, 2);
    assert_eq!(
        world.client(2).receive(now, &wait),
        Err(crate::session::Fault::Refused(crate::wire::nsqd::ErrorCode::Pub))
    );
}

#[test]
fn waiting_for_room_is_not_silence() {
    let mut world = World::with(&CONFIG, 66);
    world.say(1, identify("{\"heartbeat_interval\":1000}")).expect(1, &[response("OK")]);
    world.put("t", "a");
    assert_eq!(world.take(1, &publish("t", "b")), publish("t", "b").len() - 1);
    for second in 1..5 {
        world.at(second * 1000).expect(1, &[response("_heartbeat_")]).expect_link(1, Link::Up);
    }
    let now = world.now;
    world.node.empty_topic(now, &topic("t")).unwrap();
    world.say(1, "b").expect(1, &[response("OK")]);
    // From now on it is.
    world.at(5900).expect_link(1, Link::Up).at(6000).expect_link(1, Link::Close);
}

#[test]
fn room_that_came_in_time_counts_even_if_nobody_asked_again() {
    let mut world = World::with(&CONFIG, 66 * 2);
    world.put("t", "a").put("t", "b");
    let wait = publish("t", "cc");
    assert_eq!(world.take(1, &wait[..wait.len() - 1]), wait.len() - 2);
    let now = world.now;
    world.node.empty_topic(now, &topic("t")).unwrap();
    world.at(5000).expect_link(1, Link::Up);
    world.say(1, "cc").expect(1, &[response("OK")]);
}

#[test]
fn a_batch_comes_whole_or_not_at_all() {
    let mut world = World::with(&WHOLE, 66 * 8);
    let batch = mpub("t", &["a", "b", "c", "d", "e"]);
    // Room for all of them is promised to the batch before its messages come.
    let (head, rest) = batch.split_at(b"MPUB t\n".len() + 4 + 4 + 4);
    world.say(0, head);
    assert_eq!(world.node.store().promised, 5);
    world.put("t", "x").put("t", "y").put("t", "z");
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"no"), Err(PublishError::Full));
    let (some, last) = rest.split_at(rest.len() - 1);
    world.say(0, some);
    assert_eq!(world.node.topics().next().unwrap().messages, 3, "not yet");
    world.say(0, last).expect(0, &[response("OK")]);
    assert_eq!(world.node.topics().next().unwrap().messages, 8);
    // One that is broken off leaves nothing.
    world.node.empty_topic(now, &topic("t")).unwrap();
    world.say(0, &batch[..batch.len() - 1]);
    let ArenaStatus { free, promised, .. } = world.node.store();
    assert_eq!((free, promised), (4, 1), "what has not begun to come is only promised");
    world.client(0).closed(now, Closed::Peer);
    world.expect_empty();
}

#[test]
fn a_batch_that_never_fits_is_refused_for_good() {
    // Clients can announce 30 blocks.
    let batch = |count: usize, len: usize| mpub("t", &vec![&*"x".repeat(len); count]);
    let with_last = |last: &str| {
        let long = "x".repeat(21);
        let mut bodies = vec![&*long; 15];
        bodies.push(last);
        mpub("t", &bodies)
    };
    // One that just fits: short messages, and such as take two blocks.
    for fits in [batch(30, 1), batch(15, 21)] {
        let mut world = World::with(&CONFIG, 66 * 100);
        world.say(0, fits).expect(0, &[response("OK")]);
        assert_eq!(world.node.store().free, 70);
    }
    // Its numbers say so; they do not, but its messages; also if there is no room now.
    for (never, count) in [(batch(31, 1), 31), (with_last("xxxxx"), 16)] {
        for others in [0, 40] {
            let mut world = World::with(&CONFIG, 66 * 100);
            for _ in 0..others {
                world.put("t", "x");
            }
            let text = format!("E_BAD_BODY MPUB invalid message count {count}");
            world.refused(0, &never, &text);
            let ArenaStatus { free, promised, announced, .. } = world.node.store();
            assert_eq!((free, promised, announced), (100 - others, 0, 0));
        }
    }
}

/// A command whose body is announced, and does not come.
fn announce(verb: &str, topic: &str, len: u32) -> Vec<u8> {
    [format!("{verb} {topic}\n").as_bytes(), &len.to_be_bytes()].concat()
}

#[test]
fn a_client_that_sends_no_body_does_not_keep_the_application_from_publishing() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let now = world.now;
    world.node.publish(now, &topic("readings"), b"21.5").unwrap();
    world.say(0, identify("{\"heartbeat_interval\":60000}")).expect(0, &[response("OK")]);
    // The longest that is taken, of which one byte comes.
    let longest = world.node.limits().max_msg_size;
    assert_eq!(longest, 30 * 64 - 44);
    world.say(0, announce("PUB", "junk", longest)).say(0, "x");
    let ArenaStatus { free, announced, .. } = world.node.store();
    assert_eq!((free, announced), (69, 30));
    // The others of its kind wait.
    assert_eq!(world.take(1, &[&announce("PUB", "junk", 20)[..], b"x"].concat()), 13);
    // The application and small messages that are here as a whole do not.
    world.node.publish(now, &topic("readings"), &[b'x'; 200]).unwrap();
    world.say(2, publish("readings", &"x".repeat(200))).expect(2, &[response("OK")]);
    world.say(2, mpub("readings", &["a", "b", "c"])).expect(2, &[response("OK")]);
    assert_eq!(world.node.store().announced, 30);
    // Not for long.
    world.at(4999).expect_link(0, Link::Up);
    world.at(5000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE PUB failed to read message body")]);
    assert_eq!((world.node.counters().body_timeouts, world.node.store().announced), (1, 1));
}

#[test]
fn a_body_that_comes_slowly_is_taken_and_one_that_trickles_is_not() {
    let mut world = World::with(&CONFIG, 66 * 400);
    let body = "x".repeat(3000);
    let whole = publish("t", &body);
    let (mut rest, mut now) = (&whole[..], 0);
    // A KiB each time, a moment before the last.
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(1024));
        world.at(now).say(0, piece);
        (rest, now) = (after, now + 4990);
    }
    world.expect(0, &[response("OK")]);
    for client in [0, 1] {
        world.open(client);
    }
    // A byte a second; a body that has all but its last byte.
    let begun = world.now.as_micros() / 1000 - 1000;
    world.say(0, &whole[..20]).say(1, &whole[..whole.len() - 1]);
    for second in 1..5 {
        world.at(begun + second * 1000).say(0, "x").expect_link(0, Link::Up);
    }
    world.at(begun + 4999).expect_link(0, Link::Up).expect_link(1, Link::Up);
    world.at(begun + 5000).expect_link(0, Link::Close).expect_link(1, Link::Close);
    assert_eq!(world.node.counters().body_timeouts, 2);
    let used = world.node.store().blocks - world.node.store().free;
    assert_eq!(usize::from(used), message_cost(3000, 2) / 66, "theirs is free");
}

#[test]
fn a_trickled_batch_has_the_same_deadline() {
    let mut world = World::with(&CONFIG, 66 * 100);
    // Whole messages, one a second, each of which may seem to be all there is.
    let one = [&1u32.to_be_bytes()[..], b"x"].concat();
    let head = [&announce("MPUB", "t", 4 + 30 * 5)[..], &30u32.to_be_bytes()].concat();
    world.say(0, [head, one.clone()].concat());
    for second in 1..5 {
        world.at(second * 1000).say(0, &one);
        assert_eq!(world.node.store().announced, 30);
    }
    world.at(5000).expect_link(0, Link::Close);
    world.expect(0, &[error("E_BAD_MESSAGE MPUB failed to read message(5) body size")]);
    world.expect_empty();
}

#[test]
fn who_lies_about_a_batch_holds_no_more_than_its_share() {
    let mut world = World::with(&CONFIG, 66 * 100);
    // Another one has all of it.
    let hold = world.node.limits().max_msg_size;
    world.say(0, [announce("PUB", "t", hold), vec![b'x']].concat());
    let count = 20u32.to_be_bytes();
    let body = [&count[..], &[&1u32.to_be_bytes()[..], b"x"].concat().repeat(20)].concat();
    let truth = [&announce("MPUB", "t", body.len() as u32)[..], &body].concat();
    // All of it is here, if it is as long as it says: but its first message is longer.
    let mut lie = truth.clone();
    lie[b"MPUB t\n".len() + 4 + 4 + 3] = 200;
    world.say(1, lie).expect(1, &[error("E_MPUB_FAILED MPUB failed no room")]);
    // Or there is more of it than it says.
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    world.open(1);
    let mut lie = truth.clone();
    lie[b"MPUB t\n".len() + 4 + 3] = 21;
    lie[b"MPUB t\n".len() + 3] += 5;
    lie.extend([0, 0, 0]);
    assert_eq!(world.take(1, &lie), 15, "not all that it announces is here: it waits");
    world.client(1).closed(now, Closed::Peer);
    world.open(1);
    lie[b"MPUB t\n".len() + 4 + 3] = 20;
    lie[b"MPUB t\n".len() + 3] -= 5;
    world.say(1, &lie).expect(1, &[response("OK")]);
    assert_eq!(world.node.store().announced, 30);
}

#[test]
fn what_is_here_as_a_whole_does_not_count_as_announced() {
    const ANY: Config<'_> = Config { unconsumed_percent: 100, ..CONFIG };
    let mut world = World::with(&ANY, 66 * 100);
    world.say(0, "SUB t c\nRDY 1\n").expect(0, &[response("OK")]);
    for _ in 0..63 {
        world.say(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    // 20 messages of one block each on average: in fact 30, of which 25 are free.
    let bodies: Vec<_> = (0u32..20).map(|n| vec![b'x'; 19 + 2 * (n as usize % 2)]).collect();
    let mut body = 20u32.to_be_bytes().to_vec();
    for one in &bodies {
        body.extend((one.len() as u32).to_be_bytes());
        body.extend(one);
    }
    let batch = [announce("MPUB", "t", body.len() as u32), body].concat();
    let taken = world.take(1, &batch);
    assert!(taken < batch.len(), "it waits for room");
    let ArenaStatus { free, announced, .. } = world.node.store();
    assert!(free < 20 && announced == 0, "{free} free, {announced} announced");
    for number in 0..10 {
        assert_eq!(world.hear(0).len(), 1);
        world.say(0, format!("FIN {}\n", id(number)));
    }
    world.say(1, &batch[taken..]).expect(1, &[response("OK")]);
    let ArenaStatus { promised, announced, .. } = world.node.store();
    assert_eq!((promised, announced), (0, 0));
}

#[test]
fn the_last_blocks_are_the_applications() {
    // 12 of 100.
    const ANY: Config<'_> = Config { unconsumed_percent: 100, ..CONFIG };
    let mut world = World::with(&ANY, 66 * 100);
    world.say(0, "SUB t c\n").expect(0, &[response("OK")]);
    for _ in 0..88 {
        world.say(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    let wait = publish("t", "xx");
    assert_eq!(world.take(1, &wait), wait.len() - 2);
    for _ in 0..12 {
        world.put("t", "x");
    }
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"x"), Err(PublishError::Full));
    // What is free is first the application's again.
    world.say(0, "RDY 1\n");
    for number in 0..12 {
        assert_eq!(world.hear(0).len(), 1);
        world.say(0, format!("FIN {}\n", id(number)));
        assert_eq!(world.take(1, b"xx"), 0);
    }
    assert_eq!(world.hear(0).len(), 1);
    world.say(0, format!("FIN {}\n", id(12)));
    world.say(1, "xx").expect(1, &[response("OK")]);
}

#[test]
fn of_the_applications_messages_clients_have_none_dropped_that_its_reserve_has_room_for() {
    const DROP: Config<'_> = Config { full: Full::DropOldest, ..CONFIG };
    let mut world = World::with(&DROP, 66 * 100);
    for _ in 0..20 {
        world.put("t", "own");
    }
    for _ in 0..500 {
        world.say(1, publish("u", "x")).expect(1, &[response("OK")]);
    }
    let depth =
        |world: &World, name| world.node.topics().find(|it| *it.name == topic(name)).unwrap().depth;
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (12, 88));
    assert_eq!(world.node.counters().dropped, 8 + 412);
    // The application's own are not spared for the application.
    for _ in 0..100 {
        world.put("t", "own");
    }
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (100, 0));
    // What it has beyond the reserve makes room for others.
    for _ in 0..88 {
        world.say(1, publish("u", "x")).expect(1, &[response("OK")]);
    }
    assert_eq!((depth(&world, "t"), depth(&world, "u")), (12, 88));
}

#[test]
fn a_client_that_is_full_of_what_others_hold_leaves_nothing_behind() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let now = world.now;
    for _ in 0..3 {
        for verb in ["PUB", "DPUB"] {
            let topic = if verb == "PUB" { "t" } else { "t 100" };
            let longest = world.node.limits().max_msg_size;
            world.say(0, [announce(verb, topic, longest), vec![b'x']].concat());
            world.client(0).closed(now, Closed::Peer);
            world.expect_empty();
            world.open(0);
        }
    }
}

#[test]
fn what_nobody_consumes_does_not_refuse_others() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let wait = publish("junk", "xx");
    let full = error("E_PUB_FAILED PUB failed no room for what nobody consumes");
    // One topic has 7/8 of 50 blocks, and all of them 50 together.
    for _ in 0..44 {
        world.say(0, publish("junk", "x")).expect(0, &[response("OK")]);
    }
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    for _ in 0..6 {
        world.say(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    let other = publish("t", "xx");
    assert_eq!(world.take(1, &other), other.len() - 2);
    world.at(4999).expect_link(0, Link::Up);
    world.at(5000).expect_link(0, Link::Close).expect(0, &[full]);
    // The application is not bound by that, and who consumes makes room.
    for _ in 0..20 {
        world.put("t", "own");
    }
    world.open(0);
    world.open(1);
    world.subscribe(2, 1);
    world.say(2, format!("FIN {}\n", id(44)));
    for _ in 0..10 {
        world.say(1, publish("t", "x")).expect(1, &[response("OK")]);
    }
    // For a minute.
    world.at(5000 + 59_900).say(1, publish("t", "x")).expect_link(1, Link::Up);
    world.hear(1);
    world.at(5000 + 60_100);
    assert_eq!(world.take(1, &other), other.len() - 2);
}

#[test]
fn what_nobody_consumes_goes_after_an_age_if_others_need_the_room() {
    let mut world = World::with(&CONFIG, 66 * 100);
    let begun = world.now.as_micros() >> 16;
    for _ in 0..44 {
        world.say(0, publish("junk", "x")).expect(0, &[response("OK")]);
    }
    let wait = publish("junk", "xx");
    let age = 300_000_000 >> 16;
    // The unit's last moment before, and its first.
    world.now = Instant::from_micros(((begun + age) << 16) - 1);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    assert_eq!(world.node.counters().expired, 0);
    world.now = Instant::from_micros((begun + age) << 16);
    world.say(0, "xx").expect(0, &[response("OK")]);
    assert_eq!(world.node.counters().expired, 1);
    let junk = |world: &World| {
        let it = world.node.topics().find(|it| *it.name == topic("junk")).unwrap();
        (it.depth, it.dropped)
    };
    assert_eq!(junk(&world), (44, 1));
    let is_expired = |event: &Event| matches!(event, Event::Expired { .. });
    let events: Vec<_> = core::iter::from_fn(|| world.node.poll_event()).collect();
    let said: Vec<_> = events.into_iter().filter(is_expired).collect();
    assert_eq!(said, [Event::Expired { count: 1 }]);
    // Also for the application; as many as it needs.
    for _ in 0..56 {
        world.put("t", "x");
    }
    assert_eq!((world.node.store().free, junk(&world)), (0, (44, 1)));
    world.put("t", &"x".repeat(100));
    assert_eq!(junk(&world), (41, 4));
    // What the application has made is kept, whoever publishes there; so is what has a channel.
    let now = world.now;
    world.node.create_topic(now, &topic("junk")).unwrap();
    assert_eq!(world.node.publish(now, &topic("t"), b"x"), Err(PublishError::Full));
    let mut world = World::with(&CONFIG, 66 * 100);
    world.say(2, "SUB junk c\nCLS\n");
    for _ in 0..44 {
        world.say(0, publish("junk", "x"));
        world.hear(0);
    }
    world.now = Instant::from_millis(10_000_000);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
    // Zero keeps all.
    const KEEP: Config<'_> = Config { unconsumed_age: Span::ZERO, ..CONFIG };
    let mut world = World::with(&KEEP, 66 * 100);
    for _ in 0..44 {
        world.say(0, publish("junk", "x"));
        world.hear(0);
    }
    world.now = Instant::from_millis(10_000_000);
    assert_eq!(world.take(0, &wait), wait.len() - 2);
}

#[test]
fn who_comes_second_to_the_last_room_for_what_nobody_consumes_is_refused() {
    let mut world = World::with(&CONFIG, 66 * 100);
    for _ in 0..43 {
        world.say(0, publish("t", "x")).expect(0, &[response("OK")]);
    }
    world.say(0, announce("PUB", "t", 2)).say(0, "x");
    world.say(1, announce("PUB", "t", 2)).say(1, "x");
    world.say(1, "y").expect(1, &[response("OK")]);
    world.say(0, "y");
    world.expect(0, &[error("E_PUB_FAILED PUB failed no room for what nobody consumes")]);
    let ArenaStatus { free, announced, .. } = world.node.store();
    assert_eq!((free, announced), (56, 0));
}

#[test]
fn two_batches_do_not_starve_each_other() {
    let mut world = World::with(&WHOLE, 66 * 8);
    let batch = mpub("t", &["a", "b", "c", "d", "e"]);
    let half = batch.len() / 2;
    world.say(0, &batch[..half]);
    let taken = world.take(1, &batch);
    assert!(taken < batch.len());
    world.say(0, &batch[half..]).expect(0, &[response("OK")]);
    let now = world.now;
    world.node.empty_topic(now, &topic("t")).unwrap();
    world.say(1, &batch[taken..]).expect(1, &[response("OK")]);
}

#[test]
fn the_oldest_makes_room_if_so_configured() {
    const DROP: Config<'_> = Config { full: Full::DropOldest, ..CONFIG };
    let mut world = World::with(&DROP, 66 * 4);
    world.subscribe(0, 1).put("t", "a").put("t", "b").put("u", "c").put("t", "d");
    assert_eq!(world.bodies(0), ["a"]);
    // "a" is in flight: the next oldest goes.
    world.put("t", "e").put("t", "f");
    assert_eq!(world.node.counters().dropped, 2);
    assert_eq!(world.node.poll_event(), Some(Event::Dropped { count: 2 }));
    let dropped = |name| world.node.topics().find(|t| *t.name == topic(name)).unwrap().dropped;
    assert_eq!((dropped("t"), dropped("u")), (1, 1));
    world.say(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["d", "e", "f"]);
    // All are in flight.
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"g"), Err(PublishError::Full));
    // Deferred ones go as well.
    world.say(0, format!("REQ {} 5000\n", id(3))).put("t", "g");
    assert_eq!(world.channel_status("c").deferred, 0);
    assert_eq!(world.channel_status("c").dropped, 2);
}

/// As a board has it.
const DROP_ANSWERED: Config<'_> = Config { full: Full::DropAnswered, ..CONFIG };

#[test]
fn what_one_channel_is_done_with_makes_room_for_the_application() {
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 1);
    world.say(1, "SUB t d\n").expect(1, &[response("OK")]);
    // Nobody consumes `d`.
    for number in 0..150 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.say(0, format!("FIN {}\n", id(number)));
    }
    assert_eq!(world.node.counters().dropped, 50);
    let dropped = |world: &World, name| world.channel_status(name).dropped;
    assert_eq!((dropped(&world, "c"), dropped(&world, "d")), (0, 50));
    // Clients wait all the same, and what nobody has answered stays.
    let wait = publish("t", "x");
    assert!(world.take(2, &wait) < wait.len());
    world.say(0, "RDY 0\n");
    for _ in 0..100 {
        world.put("t", "y");
    }
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
    assert_eq!(world.node.counters().dropped, 150);
    assert_eq!(world.channel_status("c").depth, 100);
}

#[test]
fn who_does_not_answer_leaves_room_of_the_reserve_to_the_application() {
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 0);
    // No more than the reserve is free: each of three clients may have a sixth of it in flight.
    for _ in 0..88 {
        world.put("t", "x");
    }
    world.say(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["x", "x"]);
    // Who has nothing gets one.
    world.say(1, "SUB t c\nRDY 4\n").expect(1, &[response("OK"), message(2, 1, "x")]);
    assert_eq!(world.bodies(0), [""; 0]);
    assert_eq!(world.channel_status("c").in_flight, 3);
    // Once more is free they get all that they ask for.
    world.say(1, format!("FIN {}\n", id(2)));
    for client in [0, 1, 0, 1] {
        world.hear(client);
    }
    assert_eq!(world.channel_status("c").in_flight, 4);

    // A node that refuses gives all at once.
    let mut world = World::with(&CONFIG, 66 * 100);
    world.subscribe(0, 0);
    for _ in 0..88 {
        world.put("t", "x");
    }
    world.say(0, "RDY 4\n");
    assert_eq!(world.bodies(0), ["x"; 4]);
}

#[test]
fn a_node_that_refuses_drops_nothing_that_a_channel_still_needs() {
    let mut world = World::with(&CONFIG, 66 * 100);
    world.subscribe(0, 1);
    world.say(1, "SUB t d\n").expect(1, &[response("OK")]);
    for number in 0..100 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.say(0, format!("FIN {}\n", id(number)));
    }
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
    assert_eq!(world.channel_status("d").depth, 100);
    assert_eq!(world.node.counters().dropped, 0);
}

#[test]
fn what_is_sent_back_for_later_makes_room_for_the_application() {
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 1);
    for number in 0..150 {
        world.put("t", "x");
        assert_eq!(world.bodies(0), ["x"]);
        world.say(0, format!("REQ {} 5000\n", id(number)));
    }
    assert_eq!(world.node.counters().dropped, 50);
    assert_eq!(world.channel_status("c").deferred, 100);
    // Sent back to be delivered at once, or taken back, it stays.
    let mut world = World::with(&DROP_ANSWERED, 66 * 100);
    world.subscribe(0, 1).put("t", "x");
    assert_eq!(world.bodies(0), ["x"]);
    world.say(0, format!("RDY 0\nREQ {} 0\n", id(0)));
    for _ in 1..100 {
        world.put("t", "y");
    }
    let now = world.now;
    assert_eq!(world.node.publish(now, &topic("t"), b"z"), Err(PublishError::Full));
}

#[test]
fn a_sample_is_about_as_large_as_it_should_be() {
    let mut world = World::with(&CONFIG, 66 * 1000);
    world.say(0, identify("{\"sample_rate\":25}")).expect(0, &[response("OK")]);
    world.subscribe(0, 4);
    let mut got = 0;
    for _ in 0..10 {
        for _ in 0..400 {
            world.put("t", "x");
        }
        loop {
            let frames = world.hear(0);
            for frame in &frames {
                let Frame::Message { id, .. } = frame else { panic!("{frame:?}") };
                world.say(0, format!("FIN {id}\n"));
                got += 1;
            }
            if frames.is_empty() && world.channel_status("c").depth == 0 {
                break;
            }
        }
    }
    assert!((880..1120).contains(&got), "{got}");
    assert_eq!(world.node.counters().sampled_out, 4000 - got);
    world.expect_empty();
}

#[test]
fn every_length_around_a_block_comes_out_as_it_went_in() {
    let mut world = World::with(&WHOLE, 4096);
    world.subscribe(0, 1);
    let max = world.node.limits().max_msg_size as usize;
    assert_eq!(max, 62 * 64 - 44);
    let lens = (1..300).chain([max - 1, max]);
    for (n, len) in lens.enumerate() {
        let body: String = (0..len).map(|at| char::from(b'a' + (at % 26) as u8)).collect();
        // In pieces of every length.
        let bytes = publish("t", &body);
        for piece in bytes.chunks(1 + n % 70) {
            world.say(1, piece);
        }
        world.expect(1, &[response("OK")]).expect(0, &[message(n as u32, 1, &body)]);
        let cost = message_cost(len as u32, 2) / 66;
        let ArenaStatus { blocks, free, .. } = world.node.store();
        assert_eq!(usize::from(blocks - free), cost);
        world.say(0, format!("FIN {}\n", id(n as u32)));
        world.expect_empty();
    }
    let now = world.now;
    let long = world.node.publish(now, &topic("t"), &vec![b'x'; max + 1]);
    assert_eq!(long, Err(PublishError::TooLarge { max }));
    assert_eq!(world.node.publish(now, &topic("t"), b""), Err(PublishError::Empty));
    let options = PublishOptions { defer: Some(Span::from_millis(3_600_001)) };
    let late = world.node.publish_with(now, &topic("t"), b"x", options);
    assert_eq!(late, Err(PublishError::DeferTooLong));
}

#[test]
fn statistics_are_nsqds() {
    let mut world = World::new();
    let now = world.now;
    world.node.set_unix_time(now, 1_700_000_000_000_000_000);
    world.client(0).closed(now, Closed::Peer);
    let from = "10.0.0.7:52926".parse().unwrap();
    world.client(0).accepted(now, from);
    world.say(0, "  V2");
    world.say(0, identify("{\"client_id\":\"me\",\"hostname\":\"h\",\"user_agent\":\"go-nsq/1.1\",\"topology_zone\":\"z\"}"));
    assert_eq!(world.hear(0), [response("OK")]);
    world.subscribe(0, 3).put("t", "a");
    world.say(0, publish("u", "bb")).say(0, mpub("t", &["c", "d"]));
    let frames = world.hear(0);
    assert_eq!(frames.len(), 5, "{frames:?}");
    world.say(0, format!("FIN {}\nREQ {} 0\nCLS\n", id(0), id(2)));
    let status = world.node.status(0).unwrap();
    assert_eq!((status.client_id, status.hostname, status.user_agent), ("me", "h", "go-nsq/1.1"));
    assert_eq!((status.from, status.since, status.identified), (Some(from), 1_700_000_000, true));
    assert_eq!((status.topology_zone, status.state.number()), ("z", 4));
    assert_eq!((status.ready, status.in_flight, status.messages), (0, 1, 3));
    assert_eq!((status.finished, status.requeued), (1, 1));
    assert_eq!((status.topic, status.channel), (Some(&topic("t")), Some(&channel("c"))));
    let published: Vec<_> = status.published().collect();
    assert_eq!(published, [(&topic("u"), 1), (&topic("t"), 2)]);
    let status = world.node.topics().find(|t| *t.name == topic("t")).unwrap();
    assert_eq!((status.messages, status.bytes, status.depth, status.channels), (3, 3, 0, 1));
    assert_eq!(world.node.status(1).unwrap().state, ClientState::Init);
    let now = world.now;
    world.client(1).closed(now, Closed::Peer);
    assert!(world.node.status(1).is_none() && world.node.statuses().count() == 2);
}

#[test]
fn a_clock_at_its_end_makes_things_late_not_wrong() {
    let mut world = World::new();
    world.subscribe(0, 2).put("t", "a");
    assert_eq!(world.bodies(0), ["a"]);
    world.say(0, format!("REQ {} 5\n", id(0)));
    world.now = Instant::from_micros(u64::MAX - 1);
    let now = world.now;
    world.node.set_unix_time(now, i64::MAX);
    world.client(0).tick(now);
    world.expect_link(0, Link::Close);
    world.client(0).closed(now, Closed::Local);
    world.open(0);
    world.subscribe(0, 2).put("t", "b");
    assert_eq!(world.node.counters().accepted, 2);
    assert!(world.client(0).deadline() <= Instant::NEVER);
    world.say(0, format!("REQ {} 5\n", id(0)));
}

#[test]
fn settings_that_cannot_work_are_named() {
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
        assert_eq!(shares.check(2, 4, 3, 4, 4096).err(), (!good).then_some(wrong));
    }
    assert_eq!(with(Config { body_timeout: Span::ZERO, ..CONFIG }), ConfigError::BodyTimeout);
    for percent in [0, 101] {
        let share = Config { unconsumed_percent: percent, ..CONFIG };
        let wrong = ConfigError::Unconsumed { percent };
        assert_eq!(share.check(2, 4, 3, 4, 4096).err(), Some(wrong));
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
fn the_smallest_node_works() {
    let storage = Box::leak(Box::new(Storage::<1, 1, 1, 1>::new()));
    let store = Box::leak(Box::new([0; 66]));
    let mut node = Nsqd::new(&CONFIG, storage, store).unwrap();
    let now = Instant::ZERO;
    assert_eq!(node.limits().max_msg_size, 20);
    for _ in 0..100 {
        node.publish(now, &topic("t"), &[b'x'; 20]).unwrap();
        assert_eq!(node.publish(now, &topic("t"), b"y"), Err(PublishError::Full));
        node.empty_topic(now, &topic("t")).unwrap();
    }
}

#[test]
fn large_stores_have_longer_blocks() {
    let store = vec![0; 20 << 20].leak();
    let storage = Box::leak(Box::new(Storage::<1, 1, 1, 1>::new()));
    let node = Nsqd::new(&CONFIG, storage, store).unwrap();
    assert_eq!(node.store().blocks, ((20 << 20) / 514) as u16);
    assert_eq!(node.limits().max_msg_size, 1 << 20);
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
    assert_eq!(storage, 5792);
}
