//! A node as its clients see it, in scenarios.

use super::*;
use crate::session::{Link, Session};
use crate::wire::v2::{FrameDecoder, FrameType, Message};

const CONFIG: Config<'_> = Config { boot: 0xb007, ..Config::new() };

/// A node with three clients, and a clock.
struct World {
    node: Node<'static>,
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
        let node = Node::new(config, storage, store).unwrap();
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
