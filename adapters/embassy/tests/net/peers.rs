//! Model servers for the far end of the wire: an nsqd, an nsqlookupd and a DNS server.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::rc::Rc;

use embassy_futures::select::{Either, select};
use embassy_net::Stack;
use embassy_net::tcp::TcpSocket;
use embassy_net::udp::{PacketMetadata, UdpSocket};
use embassy_time::{Duration, Instant, Timer, with_timeout};
use nanonsq_core::wire::nsqd::{
    self, FrameType, IdentifyResponse, IdentifyScanner, Item, Limits, MessageHead, MessageId,
    emit_frame,
};
use nanonsq_core::wire::nsqlookupd::{self, IdentifyReply, NodeInfoScanner};

use crate::world::World;

pub(crate) const NSQD: u16 = 4150;
pub(crate) const LOOKUPD: u16 = 4160;

/// Why a model server is done with a connection.
enum End {
    /// It closes.
    Close,
    /// It resets.
    Reset,
}

fn leak(len: usize) -> &'static mut [u8] {
    Box::leak(vec![0; len].into())
}

/// Serves one connection after the other with `session`.
async fn serve(
    stack: Stack<'static>,
    port: u16,
    mut session: impl AsyncFnMut(&mut TcpSocket<'static>) -> End,
) {
    let mut socket = TcpSocket::new(stack, leak(4096), leak(4096));
    socket.set_nagle_enabled(false);
    loop {
        socket.accept(port).await.unwrap();
        if let End::Close = session(&mut socket).await {
            socket.close();
            let _ = with_timeout(Duration::from_secs(1), socket.flush()).await;
        }
        socket.abort();
        let _ = with_timeout(Duration::from_millis(100), socket.flush()).await;
    }
}

async fn write_all(socket: &mut TcpSocket<'_>, mut bytes: &[u8]) -> Result<(), End> {
    while !bytes.is_empty() {
        match socket.write(bytes).await {
            Ok(n) => bytes = &bytes[n..],
            Err(_) => return Err(End::Close),
        }
    }
    Ok(())
}

/// A message as nsqd has it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stored {
    /// Which connection brought it, from 1.
    pub(crate) connection: u32,
    pub(crate) topic: String,
    pub(crate) body: String,
}

/// An nsqd: what it got, and how it is to behave.
#[derive(Default)]
pub(crate) struct Nsqd {
    pub(crate) stored: RefCell<Vec<Stored>>,
    pub(crate) connections: Cell<u32>,
    pub(crate) heartbeats: Cell<u32>,
    pub(crate) nops: Cell<u32>,
    /// How long it takes to answer a publish.
    pub(crate) slowness: Cell<u64>,
    /// Resets the connection when it has stored so many more messages, before it answers.
    pub(crate) reset_after: Cell<Option<u32>>,
}

impl Nsqd {
    /// Runs one for up to four connections at a time.
    pub(crate) fn start(world: &World, stack: Stack<'static>) -> Rc<Self> {
        let nsqd = Rc::new(Self::default());
        for _ in 0..4 {
            let nsqd = nsqd.clone();
            world.spawn(serve(stack, NSQD, async move |socket| {
                nsqd.connections.set(nsqd.connections.get() + 1);
                nsqd.session(socket).await.unwrap_or_else(|end| end)
            }));
        }
        nsqd
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.stored.borrow().iter().map(|stored| stored.body.clone()).collect()
    }

    async fn session(&self, socket: &mut TcpSocket<'_>) -> Result<End, End> {
        let connection = self.connections.get();
        let limits = Limits::NSQD;
        let mut commands = nsqd::CommandDecoder::new();
        let mut identify = IdentifyScanner::<64, 64>::new();
        // Of the publish being read; none while it is IDENTIFY.
        let mut topic = None;
        let mut bodies = vec![String::new()];
        let mut buf = [0; 700];
        let mut interval = Duration::from_secs(30);
        let mut heard = Instant::now();
        let mut beat = heard + interval;
        loop {
            if beat <= Instant::now() {
                if heard.elapsed() > interval * 2 {
                    return Ok(End::Close);
                }
                beat += interval;
                self.heartbeats.set(self.heartbeats.get() + 1);
                respond(socket, nsqd::HEARTBEAT).await?;
            }
            let n = match select(socket.read(&mut buf), Timer::at(beat)).await {
                Either::First(Ok(0) | Err(_)) => return Ok(End::Close),
                Either::First(Ok(n)) => n,
                Either::Second(()) => continue,
            };
            heard = Instant::now();
            let mut input = &buf[..n];
            while let Some(item) = commands.next(&limits, &mut input).expect("a command") {
                match item {
                    Item::Identify => topic = None,
                    Item::Pub { topic: name }
                    | Item::Mpub { topic: name }
                    | Item::Dpub { topic: name, .. } => topic = Some(name),
                    Item::Batch { .. } | Item::Body { .. } => {}
                    Item::Nop => self.nops.set(self.nops.get() + 1),
                    Item::Part { data, last, done } => {
                        let Some(topic) = &topic else {
                            identify.feed(data).unwrap();
                            if done {
                                let settings = identify.finish(&limits).unwrap().settings;
                                interval =
                                    Duration::from_millis(settings.heartbeat_interval as u64);
                                beat = Instant::now() + interval;
                                let mut json = Vec::new();
                                IdentifyResponse::default().emit(&mut json).unwrap();
                                respond(socket, &json).await?;
                            }
                            continue;
                        };
                        bodies.last_mut().unwrap().push_str(std::str::from_utf8(data).unwrap());
                        if last {
                            bodies.push(String::new());
                        }
                        if !done {
                            continue;
                        }
                        bodies.pop();
                        for body in bodies.drain(..) {
                            let topic = topic.as_str().into();
                            self.stored.borrow_mut().push(Stored { connection, topic, body });
                            match self.reset_after.get() {
                                Some(0) => {
                                    self.reset_after.set(None);
                                    return Ok(End::Reset);
                                }
                                left => self.reset_after.set(left.map(|left| left - 1)),
                            }
                        }
                        bodies.push(String::new());
                        Timer::after_micros(self.slowness.get()).await;
                        respond(socket, nsqd::OK).await?;
                    }
                    other => panic!("not for a publisher: {other:?}"),
                }
            }
        }
    }
}

async fn respond(socket: &mut TcpSocket<'_>, data: &[u8]) -> Result<(), End> {
    let mut frame = Vec::new();
    emit_frame(&mut frame, FrameType::Response, data).unwrap();
    write_all(socket, &frame).await
}

/// Makes a message's body from its number.
type Body = fn(u32) -> Vec<u8>;

/// An nsqd with one channel: what it is to deliver, and what became of it.
#[derive(Default)]
pub(crate) struct Channel {
    /// What nobody has: numbers, and how often each was delivered.
    waiting: RefCell<VecDeque<(u32, u16)>>,
    /// What was finished, in that order.
    pub(crate) finished: RefCell<Vec<u32>>,
    pub(crate) requeued: Cell<u32>,
    /// FIN, REQ and TOUCH of what the connection did not have.
    pub(crate) refused: Cell<u32>,
    pub(crate) connections: Cell<u32>,
    pub(crate) heartbeats: Cell<u32>,
    pub(crate) nops: Cell<u32>,
    /// CLS.
    pub(crate) left: Cell<u32>,
    /// Delivered and not answered, over all connections: now, and at most.
    pub(crate) in_flight: Cell<usize>,
    pub(crate) most_in_flight: Cell<usize>,
    /// Resets the connection when it has done so many more FINs, at the next.
    pub(crate) reset_after: Cell<Option<u32>>,
    /// The bodies; each is its number without.
    pub(crate) body: Cell<Option<Body>>,
}

impl Channel {
    /// Runs one for up to two connections at a time.
    pub(crate) fn start(world: &World, stack: Stack<'static>, port: u16) -> Rc<Self> {
        let channel = Rc::new(Self::default());
        for _ in 0..2 {
            let channel = channel.clone();
            world.spawn(serve(stack, port, async move |socket| {
                channel.connections.update(|connections| connections + 1);
                let mut in_flight = BTreeMap::new();
                let end = channel.session(socket, &mut in_flight).await.unwrap_or_else(|end| end);
                // It queues again what was not answered.
                channel.in_flight.update(|all| all - in_flight.len());
                channel.waiting.borrow_mut().extend(in_flight.into_values());
                end
            }));
        }
        channel
    }

    pub(crate) fn publish(&self, numbers: Range<u32>) {
        self.waiting.borrow_mut().extend(numbers.map(|number| (number, 0)));
    }

    pub(crate) fn waiting(&self) -> usize {
        self.waiting.borrow().len()
    }

    async fn session(
        &self,
        socket: &mut TcpSocket<'_>,
        in_flight: &mut BTreeMap<MessageId, (u32, u16)>,
    ) -> Result<End, End> {
        let limits = Limits::NSQD;
        let mut commands = nsqd::CommandDecoder::new();
        let mut identify = IdentifyScanner::<64, 64>::new();
        let mut buf = [0; 700];
        let mut interval = Duration::from_secs(30);
        let mut heard = Instant::now();
        let mut beat = heard + interval;
        let (mut rdy, mut deliveries) = (0, 0u64);
        loop {
            if beat <= Instant::now() {
                if heard.elapsed() > interval * 2 {
                    return Ok(End::Close);
                }
                beat += interval;
                self.heartbeats.update(|heartbeats| heartbeats + 1);
                respond(socket, nsqd::HEARTBEAT).await?;
            }
            while in_flight.len() < rdy {
                let Some((number, attempts)) = self.waiting.borrow_mut().pop_front() else { break };
                deliveries += 1;
                let id = format!("{number:08}{deliveries:08}").into_bytes();
                let id = MessageId(id.try_into().unwrap());
                in_flight.insert(id, (number, attempts + 1));
                self.in_flight.update(|all| all + 1);
                self.most_in_flight.update(|most| most.max(self.in_flight.get()));
                let head = MessageHead { timestamp: 0, attempts: attempts + 1, id };
                let body = self.body.get().map(|body| body(number));
                let body = body.unwrap_or_else(|| number.to_string().into_bytes());
                let mut frame = Vec::new();
                nsqd::emit_message_head(&mut frame, &head, body.len() as u32).unwrap();
                frame.extend(&body);
                write_all(socket, &frame).await?;
            }
            // Now and then, for what was published or queued again.
            let look = beat.min(Instant::now() + Duration::from_millis(2));
            let n = match select(socket.read(&mut buf), Timer::at(look)).await {
                Either::First(Ok(0) | Err(_)) => return Ok(End::Close),
                Either::First(Ok(n)) => n,
                Either::Second(()) => continue,
            };
            heard = Instant::now();
            let mut input = &buf[..n];
            while let Some(item) = commands.next(&limits, &mut input).expect("a command") {
                let answered = match item {
                    Item::Identify | Item::Body { .. } => continue,
                    Item::Part { data, done, .. } => {
                        identify.feed(data).unwrap();
                        if done {
                            let settings = identify.finish(&limits).unwrap().settings;
                            interval = Duration::from_millis(settings.heartbeat_interval as u64);
                            beat = Instant::now() + interval;
                            let mut json = Vec::new();
                            IdentifyResponse::default().emit(&mut json).unwrap();
                            respond(socket, &json).await?;
                        }
                        continue;
                    }
                    Item::Sub { .. } => {
                        respond(socket, nsqd::OK).await?;
                        continue;
                    }
                    Item::Rdy(n) => {
                        rdy = n as usize;
                        continue;
                    }
                    Item::Nop => {
                        self.nops.update(|nops| nops + 1);
                        continue;
                    }
                    Item::Cls => {
                        rdy = 0;
                        self.left.update(|left| left + 1);
                        respond(socket, nsqd::CLOSE_WAIT).await?;
                        continue;
                    }
                    Item::Touch(id) => {
                        self.refused.update(|n| n + u32::from(!in_flight.contains_key(&id)));
                        continue;
                    }
                    Item::Fin(id) => {
                        match self.reset_after.get() {
                            Some(0) => {
                                self.reset_after.set(None);
                                return Ok(End::Reset);
                            }
                            left => self.reset_after.set(left.map(|left| left - 1)),
                        }
                        let message = in_flight.remove(&id);
                        self.finished.borrow_mut().extend(message.map(|(number, _)| number));
                        message
                    }
                    Item::Req { id, .. } => {
                        self.requeued.update(|requeued| requeued + 1);
                        let message = in_flight.remove(&id);
                        self.waiting.borrow_mut().extend(message);
                        message
                    }
                    other => panic!("not for a consumer: {other:?}"),
                };
                match answered {
                    Some(_) => self.in_flight.update(|all| all - 1),
                    None => self.refused.update(|refused| refused + 1),
                }
            }
        }
    }
}

/// An nsqlookupd's HTTP side: lists these producers, by their ports, of whatever topic.
pub(crate) fn serve_producers(world: &World, stack: Stack<'static>, port: u16, nsqds: &[u16]) {
    let producers: Vec<_> = nsqds
        .iter()
        .map(|nsqd| format!(r#"{{"broadcast_address":"10.0.0.2","tcp_port":{nsqd}}}"#))
        .collect();
    let body = format!(r#"{{"channels":[],"producers":[{}]}}"#, producers.join(","));
    let answer =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes();
    world.spawn(serve(stack, port, async move |socket| {
        let (mut request, mut buf) = (Vec::new(), [0; 100]);
        while !request.ends_with(b"\r\n\r\n") {
            match socket.read(&mut buf).await {
                Ok(0) | Err(_) => return End::Close,
                Ok(n) => request.extend_from_slice(&buf[..n]),
            }
        }
        assert!(request.starts_with(b"GET /lookup?topic=numbers "), "{}", request.escape_ascii());
        let _ = write_all(socket, &answer).await;
        End::Close
    }));
}

/// An nsqlookupd: who is registered, and when it was last heard of.
#[derive(Default)]
pub(crate) struct Lookupd {
    /// `topic` or `topic channel` of whoever is connected.
    pub(crate) listed: RefCell<BTreeSet<String>>,
    pub(crate) connections: Cell<u32>,
    pub(crate) pings: RefCell<Vec<Instant>>,
    /// Resets the connection as soon as it hears something.
    pub(crate) broken: Cell<bool>,
}

impl Lookupd {
    pub(crate) fn start(world: &World, stack: Stack<'static>, port: u16) -> Rc<Self> {
        let lookupd = Rc::new(Self::default());
        for _ in 0..2 {
            let lookupd = lookupd.clone();
            world.spawn(serve(stack, port, async move |socket| {
                lookupd.connections.set(lookupd.connections.get() + 1);
                let end = lookupd.session(socket).await.unwrap_or_else(|end| end);
                // It forgets with the connection.
                lookupd.listed.borrow_mut().clear();
                end
            }));
        }
        lookupd
    }

    pub(crate) fn lists(&self, names: &[&str]) -> bool {
        self.listed.borrow().iter().map(String::as_str).eq(names.iter().copied())
    }

    async fn session(&self, socket: &mut TcpSocket<'_>) -> Result<End, End> {
        let mut commands = nsqlookupd::CommandDecoder::new(4096);
        let mut node = NodeInfoScanner::new();
        let mut buf = [0; 300];
        loop {
            let n = match socket.read(&mut buf).await {
                Ok(0) | Err(_) => return Ok(End::Close),
                Ok(_) if self.broken.get() => return Ok(End::Reset),
                Ok(n) => n,
            };
            let mut input = &buf[..n];
            while let Some(item) = commands.next(&mut input).expect("a command") {
                let mut answer = Vec::new();
                let name =
                    |topic: nanonsq_core::name::TopicName,
                     channel: Option<nanonsq_core::name::ChannelName>| {
                        match channel {
                            Some(channel) => format!("{} {}", topic.as_str(), channel.as_str()),
                            None => topic.as_str().to_owned(),
                        }
                    };
                match item {
                    nsqlookupd::Item::Identify | nsqlookupd::Item::Body { .. } => continue,
                    nsqlookupd::Item::Part { data, last } => {
                        node.feed(data).unwrap();
                        if !last {
                            continue;
                        }
                        node.finish().unwrap();
                        let reply = IdentifyReply {
                            broadcast_address: "lookupd",
                            hostname: "lookupd",
                            http_port: 4161,
                            tcp_port: LOOKUPD,
                            version: "1.3.0",
                        };
                        reply.emit(&mut answer).unwrap();
                    }
                    nsqlookupd::Item::Ping => self.pings.borrow_mut().push(Instant::now()),
                    nsqlookupd::Item::Register { topic, channel } => {
                        // A channel brings its topic.
                        let mut listed = self.listed.borrow_mut();
                        listed.insert(name(topic, None));
                        listed.insert(name(topic, channel));
                    }
                    nsqlookupd::Item::Unregister { topic, channel } => {
                        // A topic takes its channels with it.
                        let gone = name(topic, channel);
                        let of_gone = format!("{gone} ");
                        self.listed
                            .borrow_mut()
                            .retain(|name| *name != gone && !name.starts_with(&of_gone));
                    }
                }
                if answer.is_empty() {
                    answer = nsqlookupd::OK.to_vec();
                }
                let mut reply = Vec::new();
                nsqlookupd::emit_reply(&mut reply, &answer).unwrap();
                write_all(socket, &reply).await?;
            }
        }
    }
}

/// A DNS server that knows three names: `v4.test`, `v6.test` and `both.test`, all the host's; the
/// IPv4 address of `stale.test` is nobody's. It gives no answer at all about `mute.test`.
pub(crate) async fn dns_server(stack: Stack<'static>) {
    let meta: &'static mut [_] = Box::leak(Box::new([PacketMetadata::EMPTY; 8]));
    let (rx_meta, tx_meta) = meta.split_at_mut(4);
    let mut socket = UdpSocket::new(stack, rx_meta, leak(1024), tx_meta, leak(1024));
    socket.bind(53).unwrap();
    let mut buf = [0; 512];
    loop {
        let (n, from) = socket.recv_from(&mut buf).await.unwrap();
        let query = &buf[..n];
        let (mut at, mut name) = (12, String::new());
        while query[at] != 0 {
            let label = &query[at + 1..][..usize::from(query[at])];
            name += std::str::from_utf8(label).unwrap();
            name.push('.');
            at += 1 + label.len();
        }
        let question = &query[12..at + 5];
        let v6 = query[at + 2] == 28;
        let data: Option<Vec<u8>> = match (name.as_str(), v6) {
            ("v4.test." | "both.test.", false) => Some(vec![10, 0, 0, 2]),
            ("stale.test.", false) => Some(vec![10, 0, 0, 77]),
            ("v6.test." | "both.test." | "stale.test.", true) => {
                Some([&[0xfd][..], &[0; 14], &[2]].concat())
            }
            ("mute.test.", _) => continue,
            _ => None,
        };
        let known = name != "unknown.test.";
        let flags = if known { [0x81, 0x80] } else { [0x81, 0x83] };
        let answers = u8::from(data.is_some());
        let mut reply = [&query[..2], &flags, &[0, 1, 0, answers, 0, 0, 0, 0], question].concat();
        if let Some(data) = data {
            let kind = if v6 { 28 } else { 1 };
            reply.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0, data.len() as u8]);
            reply.extend(data);
        }
        socket.send_to(&reply, from).await.unwrap();
    }
}
