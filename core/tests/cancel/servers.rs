//! Servers that answer at once.

use std::collections::{BTreeSet, VecDeque};

use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::wire::{nsqd, nsqlookupd};

pub(crate) enum Server {
    Nsqd(Box<Nsqd>),
    Lookupd(Box<Lookupd>),
    Source(Box<Source>),
    /// nsqlookupd's HTTP port, with what was asked so far.
    Directory(Vec<u8>),
    /// Calls, and says this; keeps what it hears.
    Talker {
        says: &'static [u8],
        heard: Vec<u8>,
    },
    /// Calls, subscribes, and finishes all that it gets.
    Subscriber(Box<Subscriber>),
}

pub(crate) struct Subscriber {
    frames: nsqd::FrameDecoder,
    frame: Vec<u8>,
    /// The bodies, in the order in which they came.
    pub(crate) finished: Vec<String>,
}

pub(crate) struct Nsqd {
    pub(crate) commands: nsqd::CommandDecoder,
    pub(crate) identified: bool,
    pub(crate) bodies: Vec<Vec<u8>>,
    /// With the number of the connection.
    pub(crate) stored: Vec<(usize, String)>,
    pub(crate) connections: usize,
}

/// An nsqd to consume from. Takes back what is in flight as soon as the connection is gone.
pub(crate) struct Source {
    commands: nsqd::CommandDecoder,
    identified: bool,
    rdy: usize,
    queue: VecDeque<usize>,
    in_flight: BTreeSet<usize>,
    /// How often each message was delivered.
    pub(crate) attempts: Vec<u16>,
    pub(crate) finished: BTreeSet<usize>,
    /// How many messages were requeued, and how many were in flight when a connection ended.
    pub(crate) requeued: usize,
    pub(crate) returned: usize,
    pub(crate) left: bool,
}

pub(crate) struct Lookupd {
    pub(crate) commands: nsqlookupd::CommandDecoder,
    pub(crate) listed: BTreeSet<String>,
}

impl Server {
    pub(crate) fn nsqd() -> Self {
        Self::Nsqd(Box::new(Nsqd {
            commands: nsqd::CommandDecoder::new(),
            identified: false,
            bodies: Vec::new(),
            stored: Vec::new(),
            connections: 0,
        }))
    }

    /// With messages that say their number, from 0.
    pub(crate) fn source(messages: usize) -> Self {
        Self::Source(Box::new(Source {
            commands: nsqd::CommandDecoder::new(),
            identified: false,
            rdy: 0,
            queue: (0..messages).collect(),
            in_flight: BTreeSet::new(),
            attempts: vec![0; messages],
            finished: BTreeSet::new(),
            requeued: 0,
            returned: 0,
            left: false,
        }))
    }

    pub(crate) fn subscriber() -> Self {
        Self::Subscriber(Box::new(Subscriber {
            frames: nsqd::FrameDecoder::new(1024),
            frame: Vec::new(),
            finished: Vec::new(),
        }))
    }

    pub(crate) fn lookupd() -> Self {
        let commands = nsqlookupd::CommandDecoder::new(4096);
        Self::Lookupd(Box::new(Lookupd { commands, listed: BTreeSet::new() }))
    }

    pub(crate) fn connected(&mut self) {
        match self {
            Self::Nsqd(nsqd) => {
                nsqd.commands = nsqd::CommandDecoder::new();
                nsqd.identified = false;
                nsqd.bodies.clear();
                nsqd.connections += 1;
            }
            Self::Lookupd(lookupd) => lookupd.commands = nsqlookupd::CommandDecoder::new(4096),
            Self::Source(source) => {
                source.commands = nsqd::CommandDecoder::new();
                source.identified = false;
                source.left = false;
            }
            Self::Directory(asked) => asked.clear(),
            Self::Subscriber(subscriber) => {
                subscriber.frames = nsqd::FrameDecoder::new(1024);
                subscriber.frame.clear();
            }
            Self::Talker { heard, .. } => heard.clear(),
        }
    }

    /// What it says first.
    pub(crate) fn greeting(&self) -> &'static [u8] {
        match self {
            Self::Talker { says, .. } => says,
            Self::Subscriber(_) => b"  V2SUB t c\nRDY 2\n",
            Self::Nsqd(_) | Self::Lookupd(_) | Self::Source(_) | Self::Directory(_) => b"",
        }
    }

    pub(crate) fn gone(&mut self) {
        match self {
            Self::Lookupd(lookupd) => lookupd.listed.clear(),
            Self::Source(source) => source.gone(),
            Self::Nsqd(_) | Self::Directory(_) | Self::Talker { .. } | Self::Subscriber(_) => {}
        }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Nsqd(nsqd) => nsqd.take(bytes),
            Self::Lookupd(lookupd) => lookupd.take(bytes),
            Self::Source(source) => source.take(bytes),
            Self::Directory(asked) => {
                asked.extend(bytes);
                if asked.ends_with(b"\r\n\r\n") { LISTING.into() } else { Vec::new() }
            }
            Self::Talker { heard, .. } => {
                heard.extend(bytes);
                Vec::new()
            }
            Self::Subscriber(subscriber) => subscriber.take(bytes),
        }
    }
}

impl Subscriber {
    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        while let Some(part) = self.frames.next(&mut bytes).unwrap() {
            self.frame.extend(part.data);
            if !part.last {
                continue;
            }
            let frame = std::mem::take(&mut self.frame);
            match part.frame_type {
                nsqd::FrameType::Response if frame == nsqd::HEARTBEAT => answers.extend(b"NOP\n"),
                nsqd::FrameType::Response => assert_eq!(frame, nsqd::OK),
                nsqd::FrameType::Error => panic!("{}", String::from_utf8_lossy(&frame)),
                nsqd::FrameType::Message => {
                    let message = nsqd::Message::parse(&frame).unwrap();
                    self.finished.push(String::from_utf8_lossy(message.body).into());
                    answers.extend([b"FIN ", &message.head.id.0[..], b"\n"].concat());
                }
            }
        }
        answers
    }
}

impl Nsqd {
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        while let Some(item) = self.commands.next(&nsqd::Limits::NSQD, &mut bytes).unwrap() {
            match item {
                nsqd::Item::Body { .. } => self.bodies.push(Vec::new()),
                nsqd::Item::Part { data, done, .. } => {
                    self.bodies.last_mut().unwrap().extend(data);
                    if !done {
                        continue;
                    }
                    let answer: &[u8] = if self.identified {
                        let bodies = self.bodies.iter().map(|body| String::from_utf8_lossy(body));
                        self.stored.extend(bodies.map(|body| (self.connections, body.into())));
                        nsqd::OK
                    } else {
                        b"{}"
                    };
                    self.identified = true;
                    self.bodies.clear();
                    nsqd::emit_frame(&mut answers, nsqd::FrameType::Response, answer).unwrap();
                }
                _ => {}
            }
        }
        answers
    }
}

/// nsqlookupd 1.3.0 knows one producer.
const LISTING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n\
    X-Nsq-Content-Type: nsq; version=1.0\r\nContent-Length: 183\r\n\r\n\
    {\"channels\":[\"c\"],\"producers\":[{\"remote_address\":\"127.0.0.1:5000\",\
    \"hostname\":\"nsqd\",\"broadcast_address\":\"nsqd\",\"tcp_port\":4150,\"http_port\":4151,\
    \"version\":\"1.3.0\",\"topology_zone\":\"\"}]}";

impl Source {
    fn gone(&mut self) {
        self.rdy = 0;
        self.returned += self.in_flight.len();
        for number in std::mem::take(&mut self.in_flight).into_iter().rev() {
            self.queue.push_front(number);
        }
    }

    fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        let mut answer =
            |text| nsqd::emit_frame(&mut answers, nsqd::FrameType::Response, text).unwrap();
        while let Some(item) = self.commands.next(&nsqd::Limits::NSQD, &mut bytes).unwrap() {
            match item {
                nsqd::Item::Part { done: true, .. } => {
                    self.identified = true;
                    answer(b"{\"max_rdy_count\":2500,\"msg_timeout\":60000}");
                }
                nsqd::Item::Sub { .. } => answer(nsqd::OK),
                nsqd::Item::Rdy(rdy) => self.rdy = rdy as usize,
                nsqd::Item::Fin(id) => {
                    let number = self.answered(&id);
                    self.finished.insert(number);
                }
                nsqd::Item::Req { id, .. } => {
                    let number = self.answered(&id);
                    self.requeued += 1;
                    self.queue.push_back(number);
                }
                nsqd::Item::Cls => {
                    self.rdy = 0;
                    self.left = true;
                    answer(nsqd::CLOSE_WAIT);
                }
                _ => {}
            }
        }
        while self.in_flight.len() < self.rdy
            && let Some(number) = self.queue.pop_front()
        {
            self.in_flight.insert(number);
            self.attempts[number] += 1;
            let id = nsqd::MessageId(format!("{number:016x}").as_bytes().try_into().unwrap());
            let head = nsqd::MessageHead { timestamp: 0, attempts: self.attempts[number], id };
            let body = number.to_string();
            nsqd::emit_message_head(&mut answers, &head, body.len() as u32).unwrap();
            answers.extend(body.as_bytes());
        }
        answers
    }

    /// Only what is in flight on this connection may be answered.
    fn answered(&mut self, id: &nsqd::MessageId) -> usize {
        let text = std::str::from_utf8(&id.0).unwrap();
        let number = usize::from_str_radix(text, 16).unwrap();
        assert!(self.in_flight.remove(&number), "{number} is not in flight");
        number
    }

    /// Each delivery had its reason, and everything is somewhere.
    #[track_caller]
    pub(crate) fn assert_consistent(&self) {
        let deliveries: usize = self.attempts.iter().copied().map(usize::from).sum();
        let ended = self.finished.len() + self.requeued + self.returned;
        assert_eq!(deliveries, ended + self.in_flight.len());
        let all = self.finished.len() + self.queue.len() + self.in_flight.len();
        assert_eq!(all, self.attempts.len());
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }
}

impl Lookupd {
    pub(crate) fn take(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let mut answers = Vec::new();
        while let Some(item) = self.commands.next(&mut bytes).unwrap() {
            let name = |topic: TopicName, channel: Option<ChannelName>| match channel {
                None => topic.as_str().to_owned(),
                Some(channel) => format!("{} {}", topic.as_str(), channel.as_str()),
            };
            let answer: &[u8] = match item {
                nsqlookupd::Item::Identify
                | nsqlookupd::Item::Body { .. }
                | nsqlookupd::Item::Part { last: false, .. } => {
                    continue;
                }
                nsqlookupd::Item::Part { .. } => b"{\"http_port\":4161,\"version\":\"1.3.0\"}",
                nsqlookupd::Item::Ping => nsqlookupd::OK,
                nsqlookupd::Item::Register { topic, channel } => {
                    // A channel brings its topic.
                    self.listed.insert(name(topic, None));
                    self.listed.insert(name(topic, channel));
                    nsqlookupd::OK
                }
                nsqlookupd::Item::Unregister { topic, channel } => {
                    // A topic takes its channels with it.
                    let gone = name(topic, channel);
                    let of_gone = format!("{gone} ");
                    self.listed.retain(|name| *name != gone && !name.starts_with(&of_gone));
                    nsqlookupd::OK
                }
            };
            nsqlookupd::emit_reply(&mut answers, answer).unwrap();
        }
        answers
    }
}
