//! A node and a real nsqd answer and deliver the same: the same scripts of commands go to both, and
//! the frames are compared byte by byte.
//!
//! Ids differ, so each side numbers its messages; timestamps are not compared.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nanonsq_std::core::nsqd::{Config, Nsqd, Storage};
use nanonsq_std::core::session::{Link, Session};
use nanonsq_std::core::time;
use nanonsq_tests::{Nsqd as RealNsqd, Peers, ServerOptions, require_peers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The number of clients; no script has more.
const CLIENTS: usize = 3;
/// Limits of both nsqd and the node.
const MAX_RDY: usize = 4;
const MAX_MSG_SIZE: u32 = 300;
/// The limit for expected frames. nsqd looks for due messages in a new channel only after 5 s.
const PATIENCE: Duration = Duration::from_secs(10);
/// The silence that must follow the expected frames.
const QUIET: Duration = Duration::from_millis(150);

/// One step of a script.
enum Step {
    /// A client sends this; `{n}` stands for the id of the n-th message.
    Send(usize, &'static [u8]),
    /// Wait.
    Wait(Duration),
}

use Step::{Send, Wait};

/// A frame, with the message's number in place of its id.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Frame {
    Response(String),
    Error(String),
    Message { number: usize, attempts: u16, body: String },
}

/// Ids in the order of the first deliveries.
#[derive(Default)]
struct Ids(Vec<[u8; 16]>);

impl Ids {
    fn number(&mut self, id: [u8; 16]) -> usize {
        self.0.iter().position(|other| *other == id).unwrap_or_else(|| {
            self.0.push(id);
            self.0.len() - 1
        })
    }

    /// Returns the bytes with each `{n}` replaced by an id.
    fn fill(&self, bytes: &[u8]) -> Vec<u8> {
        let mut filled = bytes.to_vec();
        for (number, id) in self.0.iter().enumerate() {
            let name = format!("{{{number}}}").into_bytes();
            while let Some(at) = filled.windows(3).position(|window| window == name) {
                filled.splice(at..at + 3, *id);
            }
        }
        filled
    }

    fn name(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (number, id) in self.0.iter().enumerate() {
            text = text.replace(std::str::from_utf8(id).unwrap(), &format!("{{{number}}}"));
        }
        text
    }

    /// Removes the complete frames from the front and returns them.
    fn frames(&mut self, bytes: &mut Vec<u8>) -> Vec<Frame> {
        let mut frames = Vec::new();
        while let Some((size, rest)) = bytes.split_first_chunk() {
            let size = u32::from_be_bytes(*size) as usize;
            if rest.len() < size {
                break;
            }
            let frame: Vec<u8> = bytes.drain(..4 + size).collect();
            let data = &frame[8..];
            let text = |data: &[u8]| String::from_utf8_lossy(data).into_owned();
            frames.push(match frame[7] {
                // nsqd 1.3.0 does not have these.
                0 => Frame::Response(
                    text(data).replace(",\"topology_region\":\"\",\"topology_zone\":\"\"", ""),
                ),
                1 => Frame::Error(self.name(&text(data))),
                _ => Frame::Message {
                    number: self.number(data[10..26].try_into().unwrap()),
                    attempts: u16::from_be_bytes([data[8], data[9]]),
                    body: text(&data[26..]),
                },
            });
        }
        frames
    }
}

/// A node of ours, with real time.
struct Ours {
    node: Nsqd<'static>,
    start: Instant,
    ids: Ids,
    bytes: [Vec<u8>; CLIENTS],
}

impl Ours {
    fn new() -> Self {
        let mut config = Config { boot: 0xabc, channels_per_topic: 3, ..Config::new() };
        config.limits.max_msg_size = MAX_MSG_SIZE;
        let config = Box::leak(Box::new(config));
        let storage = Box::leak(Box::new(Storage::<8, 16, CLIENTS, MAX_RDY>::new()));
        let node = Nsqd::new(config, storage, vec![0; 100_000].leak()).unwrap();
        let mut ours =
            Self { node, start: Instant::now(), ids: Ids::default(), bytes: Default::default() };
        let now = ours.now();
        for client in 0..CLIENTS {
            ours.node.client(client).unwrap().open(now);
        }
        ours
    }

    fn now(&self) -> time::Instant {
        time::Instant::from_micros(self.start.elapsed().as_micros() as u64)
    }

    fn send(&mut self, client: usize, bytes: &[u8]) {
        let now = self.now();
        let bytes = self.ids.fill(bytes);
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let taken = self.node.client(client).unwrap().take(now, rest);
            rest = &rest[taken..];
            // The node consumes no more than it has room to answer.
            assert!(rest.is_empty() || self.write(client) > 0);
        }
    }

    /// Moves what the node transmits to the client's buffer and returns its length.
    fn write(&mut self, client: usize) -> usize {
        let now = self.now();
        let mut session = self.node.client(client).unwrap();
        let mut written = 0;
        loop {
            let transmit = session.transmit(now);
            let len = transmit.len();
            if len == 0 {
                return written;
            }
            self.bytes[client].extend(transmit.head);
            self.bytes[client].extend(transmit.body);
            session.sent(now, len);
            written += len;
        }
    }

    /// Returns the frames for all clients, and which of them the node closes.
    fn receive(&mut self) -> [(Vec<Frame>, bool); CLIENTS] {
        let now = self.now();
        let mut received: [Vec<Frame>; CLIENTS] = Default::default();
        loop {
            let version = self.node.version();
            for (client, frames) in received.iter_mut().enumerate() {
                let mut session = self.node.client(client).unwrap();
                if session.deadline() <= now {
                    session.tick(now);
                }
                self.write(client);
                frames.extend(self.ids.frames(&mut self.bytes[client]));
            }
            if self.node.version() == version {
                break;
            }
        }
        let mut client = 0;
        received.map(|frames| {
            let closed = self.node.client(client).unwrap().link() == Link::Close;
            client += 1;
            (frames, closed)
        })
    }
}

/// A real nsqd and its clients.
struct Theirs {
    sockets: Vec<TcpStream>,
    ids: Ids,
    bytes: [Vec<u8>; CLIENTS],
    ready: [VecDeque<Frame>; CLIENTS],
}

impl Theirs {
    async fn new(nsqd: &RealNsqd) -> Self {
        let mut sockets = Vec::new();
        for _ in 0..CLIENTS {
            let socket = TcpStream::connect(nsqd.tcp_address()).await.unwrap();
            socket.set_nodelay(true).unwrap();
            sockets.push(socket);
        }
        Self { sockets, ids: Ids::default(), bytes: Default::default(), ready: Default::default() }
    }

    async fn send(&mut self, client: usize, bytes: &[u8]) {
        let bytes = self.ids.fill(bytes);
        let _ = self.sockets[client].write_all(&bytes).await;
    }

    /// Waits for as many frames as the node has sent; if `last`, also checks that nothing more or
    /// only the end comes.
    async fn receive(&mut self, client: usize, count: usize, last: bool) -> (Vec<Frame>, bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut ended = false;
        loop {
            let enough = self.ready[client].len() >= count;
            if enough && !last {
                break;
            }
            let wait = if enough { QUIET } else { deadline - Instant::now().min(deadline) };
            let mut buf = [0; 4096];
            match tokio::time::timeout(wait, self.sockets[client].read(&mut buf)).await {
                Err(_) => break,
                Ok(Ok(0) | Err(_)) => {
                    ended = true;
                    break;
                }
                Ok(Ok(n)) => {
                    self.bytes[client].extend(&buf[..n]);
                    let frames = self.ids.frames(&mut self.bytes[client]);
                    self.ready[client].extend(frames);
                }
            }
        }
        (self.ready[client].drain(..).collect(), ended)
    }
}

async fn compare(peers: &Peers, name: &str, script: &[Step]) {
    let options = ServerOptions::new()
        .flag(format!("--max-rdy-count={MAX_RDY}"))
        .flag(format!("--max-msg-size={MAX_MSG_SIZE}"));
    let nsqd = RealNsqd::start(peers, options).await;
    let mut ours = Ours::new();
    let mut theirs = Theirs::new(&nsqd).await;
    for client in 0..CLIENTS {
        ours.send(client, b"  V2");
        theirs.send(client, b"  V2").await;
    }
    for (at, step) in script.iter().enumerate() {
        match step {
            Send(client, bytes) => {
                ours.send(*client, bytes);
                theirs.send(*client, bytes).await;
            }
            Wait(time) => tokio::time::sleep(*time).await,
        }
        let last = at + 1 == script.len();
        let received = ours.receive();
        for (client, (frames, closed)) in received.into_iter().enumerate() {
            let (real, ended) = theirs.receive(client, frames.len(), last || closed).await;
            assert_eq!(frames, real, "{name}, step {at}, client {client}: ours, nsqd's");
            if last || closed {
                assert_eq!(closed, ended, "{name}, step {at}, client {client}: closed");
            }
        }
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_node_answers_and_delivers_as_nsqd() {
    let peers = require_peers!();
    let scripts: &[(&str, &[Step])] = &[
        (
            "publish, deliver, finish, finish again",
            &[
                Send(0, b"SUB t c\nRDY 2\n"),
                Send(1, b"PUB t\n\0\0\0\x02hi"),
                Send(0, b"FIN {0}\n"),
                Send(0, b"FIN {0}\nREQ {0} 0\nTOUCH {0}\n"),
                Send(0, b"FIN 0123456789abcdef\n"),
            ],
        ),
        (
            "the window",
            &[
                Send(0, b"SUB t c\n"),
                Send(1, b"MPUB t\n\0\0\0\x18\0\0\0\x04\0\0\0\x01a\0\0\0\x01b\0\0\0\x01c\0\0\0\x01d"),
                Send(0, b"RDY 1\n"),
                Send(0, b"FIN {0}\n"),
                Send(0, b"RDY 2\n"),
                Send(0, b"RDY 0\nFIN {1}\nFIN {2}\n"),
                Send(0, b"RDY\n"),
                Send(0, b"RDY 5\n"),
            ],
        ),
        (
            "requeue",
            &[
                Send(0, b"SUB t c\nRDY 1\n"),
                Send(1, b"PUB t\n\0\0\0\x01a"),
                Send(0, b"REQ {0} 0\n"),
                Send(0, b"REQ {0} 0\n"),
                Send(0, b"REQ {0} 300\n"),
                Wait(SECOND),
                Send(0, b"FIN {0}\nFIN {0}\n"),
            ],
        ),
        (
            "another's message",
            &[
                Send(0, b"SUB t c\nRDY 1\n"),
                Send(1, b"SUB t c\n"),
                Send(2, b"PUB t\n\0\0\0\x01a"),
                Send(1, b"FIN {0}\nREQ {0} 0\nTOUCH {0}\n"),
                Send(0, b"TOUCH {0}\nFIN {0}\n"),
            ],
        ),
        (
            "the message timeout passes",
            &[
                Send(0, b"IDENTIFY\n\0\0\0\x14{\"msg_timeout\":1000}"),
                Send(0, b"SUB t c\nRDY 1\n"),
                Send(1, b"PUB t\n\0\0\0\x01a"),
                Wait(Duration::from_millis(1100)),
                Send(0, b"FIN {0}\n"),
            ],
        ),
        (
            "two channels, and a message published before",
            &[
                Send(2, b"PUB t\n\0\0\0\x01a"),
                Send(0, b"SUB t c\nRDY 4\n"),
                Send(1, b"SUB t d\nRDY 4\n"),
                Send(2, b"PUB t\n\0\0\0\x01b"),
                Send(0, b"FIN {0}\nFIN {1}\n"),
                Send(1, b"FIN {1}\nFIN {0}\n"),
            ],
        ),
        (
            "CLS",
            &[
                Send(0, b"SUB t c\nRDY 1\n"),
                Send(1, b"PUB t\n\0\0\0\x01a"),
                Send(0, b"CLS\n"),
                Send(1, b"PUB t\n\0\0\0\x01b"),
                Send(0, b"RDY 4\nTOUCH {0}\nFIN {0}\nPUB u\n\0\0\0\x01x"),
                Send(0, b"CLS\n"),
            ],
        ),
        (
            "a subscriber publishes as well",
            &[
                Send(0, b"SUB t c\n"),
                Send(0, b"PUB t\n\0\0\0\x04self"),
                Send(0, b"RDY 1\n"),
                Send(0, b"FIN {0}\nSUB t d\n"),
            ],
        ),
        (
            "deferred",
            &[
                Send(0, b"SUB t c\nRDY 4\n"),
                Send(1, b"DPUB t 0\n\0\0\0\x01a"),
                Send(1, b"DPUB t 400\n\0\0\0\x01b"),
                Send(1, b"PUB t\n\0\0\0\x01c"),
                Wait(SECOND),
                Send(1, b"DPUB t 3600001\n"),
            ],
        ),
        (
            "IDENTIFY",
            &[
                Send(0, b"IDENTIFY\n\0\0\0\x02{}"),
                Send(0, b"IDENTIFY\n\0\0\0\x1c{\"feature_negotiation\":true}"),
                Send(1, b"IDENTIFY\n\0\0\0\x33{\"feature_negotiation\":true,\"output_buffer_size\":-1}"),
                Send(
                    2,
                    b"IDENTIFY\n\0\0\0\x65{\"feature_negotiation\":true,\"output_buffer_timeout\":-1,\
                        \"sample_rate\":9,\"msg_timeout\":5000,\"a\":0}",
                ),
                Send(0, b"SUB t c\n"),
                Send(0, b"IDENTIFY\n\0\0\0\x02{}"),
                Send(1, b"IDENTIFY\n\0\0\0\x1a{\"heartbeat_interval\":-1}  "),
                // The settings of the first IDENTIFY stay.
                Send(1, b"IDENTIFY\n\0\0\0\x02{}"),
                Send(1, b"SUB t c\n"),
                Send(2, b"AUTH\n\0\0\0\x01x"),
            ],
        ),
        (
            "too long or empty",
            &[
                Send(0, b"PUB t\n\0\0\x01\x2d"),
                Send(1, b"MPUB t\n\0\0\x01\x90\0\0\0\x01\0\0\x01\x2d"),
                Send(2, b"PUB t\n\0\0\0\0"),
            ],
        ),
        ("not NSQ", &[Send(0, b"NOP\n"), Send(1, b"\r\n"), Send(2, b"XYZZY 1 2\n")]),
    ];
    for (name, script) in scripts {
        compare(&peers, name, script).await;
    }
    // Another protocol from the start.
    let nsqd = RealNsqd::start(&peers, ServerOptions::new()).await;
    let mut socket = TcpStream::connect(nsqd.tcp_address()).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut real = [0; 22];
    socket.read_exact(&mut real).await.unwrap();
    let mut ours = Ours::new();
    ours.send(0, b"GET / HTTP/1.1\r\n\r\n");
    let now = ours.now();
    assert_eq!(ours.node.client(0).unwrap().transmit(now).head, real);
}
