//! Servers that answer at once.

use std::collections::BTreeSet;

use nanonsq_core::wire::nsqd as wire;
use nanonsq_models::server::{ConnId, Kind, Out, Reply, Seen, Server as _};
use nanonsq_models::{nsqd, nsqlookupd};

pub(crate) enum Server {
    Nsqd(Box<Nsqd>),
    Lookupd(Box<Lookupd>),
    /// The HTTP port of an nsqlookupd, with the request so far.
    Directory(Vec<u8>),
    /// Connects, sends `bytes`, and keeps the received bytes.
    Talker {
        bytes: &'static [u8],
        received: Vec<u8>,
    },
    /// Connects, subscribes, and finishes all messages.
    Subscriber(Box<Subscriber>),
}

pub(crate) struct Subscriber {
    frames: wire::FrameDecoder,
    frame: Vec<u8>,
    /// The bodies in the order of delivery.
    pub(crate) finished: Vec<String>,
}

/// An nsqd that requeues messages in flight as soon as their connection is gone.
pub(crate) struct Nsqd {
    model: nsqd::Nsqd,
    /// The present or last connection.
    connection: ConnId,
    /// The published messages with their connections.
    pub(crate) stored: Vec<(ConnId, String)>,
    /// The number of deliveries of each message.
    pub(crate) attempts: Vec<u16>,
    pub(crate) finished: BTreeSet<usize>,
    /// The numbers of messages that were requeued, and that were in flight when a connection ended.
    pub(crate) requeued: usize,
    pub(crate) returned: usize,
}

pub(crate) struct Lookupd {
    model: nsqlookupd::Nsqlookupd,
    connection: ConnId,
    /// `topic` and `topic channel`.
    pub(crate) listed: BTreeSet<String>,
}

/// The constant time of all servers.
const NOW: u64 = 1;

impl Server {
    /// Returns an nsqd with messages whose bodies are their numbers, from 0.
    pub(crate) fn nsqd(messages: usize) -> Self {
        let settings = nsqd::Settings { returns_at_once: true, ..nsqd::Settings::default() };
        let mut model = nsqd::Nsqd::new(settings);
        for number in 0..messages {
            model.feed("t", number.to_string().as_bytes(), &mut Out::new(NOW));
        }
        Self::Nsqd(Box::new(Nsqd {
            model,
            connection: 0,
            stored: Vec::new(),
            attempts: vec![0; messages],
            finished: BTreeSet::new(),
            requeued: 0,
            returned: 0,
        }))
    }

    pub(crate) fn subscriber() -> Self {
        Self::Subscriber(Box::new(Subscriber {
            frames: wire::FrameDecoder::new(1024),
            frame: Vec::new(),
            finished: Vec::new(),
        }))
    }

    pub(crate) fn lookupd() -> Self {
        let model = nsqlookupd::Nsqlookupd::new(u64::MAX / 2);
        Self::Lookupd(Box::new(Lookupd { model, connection: 0, listed: BTreeSet::new() }))
    }

    pub(crate) fn connected(&mut self) {
        let out = &mut Out::new(NOW);
        match self {
            Self::Nsqd(it) => {
                it.connection += 1;
                it.model.open(it.connection, out);
            }
            Self::Lookupd(it) => {
                it.connection += 1;
                it.model.open(it.connection, out);
            }
            Self::Directory(asked) => asked.clear(),
            Self::Subscriber(subscriber) => {
                subscriber.frames = wire::FrameDecoder::new(1024);
                subscriber.frame.clear();
            }
            Self::Talker { received, .. } => received.clear(),
        }
    }

    /// Returns the first bytes that the server sends.
    pub(crate) fn greeting(&self) -> &'static [u8] {
        match self {
            Self::Talker { bytes, .. } => bytes,
            Self::Subscriber(_) => b"  V2SUB t c\nRDY 2\n",
            Self::Nsqd(_) | Self::Lookupd(_) | Self::Directory(_) => b"",
        }
    }

    pub(crate) fn gone(&mut self) {
        match self {
            Self::Nsqd(it) => {
                it.returned += it.model.in_flight();
                it.model.closed(it.connection);
            }
            Self::Lookupd(it) => {
                it.model.closed(it.connection);
                it.listed.clear();
            }
            Self::Directory(_) | Self::Talker { .. } | Self::Subscriber(_) => {}
        }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Nsqd(it) => it.take(bytes),
            Self::Lookupd(it) => it.take(bytes),
            Self::Directory(asked) => {
                asked.extend(bytes);
                if asked.ends_with(b"\r\n\r\n") { LISTING.into() } else { Vec::new() }
            }
            Self::Talker { received, .. } => {
                received.extend(bytes);
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
                wire::FrameType::Response if frame == wire::HEARTBEAT => answers.extend(b"NOP\n"),
                wire::FrameType::Response => assert_eq!(frame, wire::OK),
                wire::FrameType::Error => panic!("{}", String::from_utf8_lossy(&frame)),
                wire::FrameType::Message => {
                    let message = wire::Message::parse(&frame).unwrap();
                    self.finished.push(String::from_utf8_lossy(message.body).into());
                    answers.extend([b"FIN ", &message.head.id.0[..], b"\n"].concat());
                }
            }
        }
        answers
    }
}

fn number(body: &[u8]) -> usize {
    std::str::from_utf8(body).unwrap().parse().unwrap()
}

/// Returns the bytes that a model sends. Panics if it refuses or closes.
fn sent(out: Out) -> Vec<u8> {
    let bytes = out.replies.into_iter().map(|(_, reply)| match reply {
        Reply::Say(Kind::Refusal | Kind::Late, error) => panic!("{}", error.escape_ascii()),
        Reply::Say(_, bytes) => bytes,
        Reply::Close => panic!("the server closes the connection"),
    });
    bytes.flatten().collect()
}

impl Nsqd {
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Out::new(NOW);
        self.model.receive(self.connection, bytes, &mut out);
        for (connection, seen) in std::mem::take(&mut out.seen) {
            match seen {
                Seen::Stored { bodies, .. } => {
                    let bodies = bodies.into_iter().map(|body| String::from_utf8(body).unwrap());
                    self.stored.extend(bodies.map(|body| (connection, body)));
                }
                Seen::Finished { body, .. } => assert!(self.finished.insert(number(&body))),
                Seen::Requeued { .. } => self.requeued += 1,
                _ => {}
            }
        }
        for (_, reply) in &out.replies {
            // The body follows a frame's head, a timestamp, the attempts and an id.
            if let Reply::Say(Kind::Message, frame) = reply {
                self.attempts[number(&frame[34..])] += 1;
            }
        }
        sent(out)
    }

    /// Checks that each delivery has its reason and no message is lost.
    #[track_caller]
    pub(crate) fn assert_consistent(&self) {
        let deliveries: usize = self.attempts.iter().copied().map(usize::from).sum();
        let ended = self.finished.len() + self.requeued + self.returned;
        assert_eq!(deliveries, ended + self.in_flight());
        let all = self.finished.len() + self.model.unfinished("t").len();
        assert_eq!(all, self.attempts.len());
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.model.in_flight()
    }
}

/// The answer of nsqlookupd 1.3.0 with one producer.
const LISTING: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n\
    X-Nsq-Content-Type: nsq; version=1.0\r\nContent-Length: 183\r\n\r\n\
    {\"channels\":[\"c\"],\"producers\":[{\"remote_address\":\"127.0.0.1:5000\",\
    \"hostname\":\"nsqd\",\"broadcast_address\":\"nsqd\",\"tcp_port\":4150,\"http_port\":4151,\
    \"version\":\"1.3.0\",\"topology_zone\":\"\"}]}";

impl Lookupd {
    fn take(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut out = Out::new(NOW);
        self.model.receive(self.connection, bytes, &mut out);
        let listed = self.model.listing(self.connection).unwrap_or_default();
        self.listed = listed.into_iter().map(|name| name.replace('/', " ")).collect();
        sent(out)
    }
}
