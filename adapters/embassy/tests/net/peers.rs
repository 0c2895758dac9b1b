//! Servers for the far end of the wire: the model nsqd and nsqlookupd, and a DNS server.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::future::poll_fn;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

use embassy_futures::select::{Either3, select3};
use embassy_net::Stack;
use embassy_net::tcp::TcpSocket;
use embassy_net::udp::{PacketMetadata, UdpSocket};
use embassy_time::{Duration, Instant, Timer, with_timeout};
use nanonsq_models::server::{ConnId, Kind, Out, Reply, Seen, Server};
use nanonsq_models::{nsqd, nsqlookupd};

use crate::world::World;

pub(crate) const NSQD: u16 = 4150;
pub(crate) const LOOKUPD: u16 = 4160;

/// How a model server ends a connection.
enum End {
    Close,
    Reset,
}

fn leak(len: usize) -> &'static mut [u8] {
    Box::leak(vec![0; len].into())
}

/// Serves one connection at a time with `session`.
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

/// A message that nsqd has stored.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stored {
    /// The connection that published the message, from 1.
    pub(crate) connection: ConnId,
    pub(crate) topic: String,
    pub(crate) body: String,
}

/// Makes a message's body from its number.
type Body = fn(u32) -> Vec<u8>;

/// A model server behind sockets, with a record of its commands and settings for its faults.
pub(crate) struct Peer<S> {
    model: RefCell<S>,
    /// Replies that are not written yet.
    replies: RefCell<VecDeque<(ConnId, Reply)>>,
    /// Wakers of connections that wait for replies.
    wakers: RefCell<Vec<Waker>>,
    pub(crate) connections: Cell<u32>,
    pub(crate) stored: RefCell<Vec<Stored>>,
    /// The numbers of finished messages, in the order of the FINs.
    pub(crate) finished: RefCell<Vec<u32>>,
    pub(crate) requeued: Cell<u32>,
    /// FIN, REQ and TOUCH of messages that were not in flight on the connection.
    pub(crate) refused: Cell<u32>,
    /// CLOSE_WAIT responses.
    pub(crate) close_waits: Cell<u32>,
    pub(crate) heartbeats: Cell<u32>,
    /// The times at which NOPs or PINGs arrived.
    pub(crate) alive: RefCell<Vec<Instant>>,
    /// Delay before each OK in microseconds.
    pub(crate) slowness: Cell<u64>,
    /// Resets the connection after so many more stored messages, before the answer; or after so
    /// many more FINs, at the next FIN.
    pub(crate) reset_after: Cell<Option<u32>>,
    /// True while the server resets a connection as soon as it receives bytes.
    pub(crate) broken: Cell<bool>,
    /// Makes the bodies; without, a body is the message's number.
    pub(crate) body: Cell<Option<Body>>,
}

pub(crate) type Nsqd = Peer<nsqd::Nsqd>;
pub(crate) type Lookupd = Peer<nsqlookupd::Nsqlookupd>;

impl<S: Server + 'static> Peer<S> {
    /// Serves up to `sockets` connections at a time.
    fn serve(world: &World, stack: Stack<'static>, port: u16, sockets: u32, model: S) -> Rc<Self> {
        let peer = Rc::new(Self {
            model: RefCell::new(model),
            replies: RefCell::default(),
            wakers: RefCell::default(),
            connections: Cell::default(),
            stored: RefCell::default(),
            finished: RefCell::default(),
            requeued: Cell::default(),
            refused: Cell::default(),
            close_waits: Cell::default(),
            heartbeats: Cell::default(),
            alive: RefCell::default(),
            slowness: Cell::default(),
            reset_after: Cell::default(),
            broken: Cell::default(),
            body: Cell::default(),
        });
        for _ in 0..sockets {
            let peer = peer.clone();
            world.spawn(serve(stack, port, async move |socket| {
                peer.connections.update(|connections| connections + 1);
                let conn = peer.connections.get().into();
                peer.play(|model, out| model.open(conn, out));
                let end = peer.carry(conn, socket).await.unwrap_or_else(|end| end);
                peer.replies.borrow_mut().retain(|(of, _)| *of != conn);
                peer.model.borrow_mut().closed(conn);
                peer.play(|model, out| model.tick(out));
                end
            }));
        }
        peer
    }

    async fn carry(&self, conn: ConnId, socket: &mut TcpSocket<'_>) -> Result<End, End> {
        let mut buf = [0; 700];
        loop {
            if self.model.borrow().deadline() <= Instant::now().as_micros() {
                self.play(|model, out| model.tick(out));
            }
            while let Some(reply) = self.next_reply(conn) {
                let Reply::Say(kind, bytes) = reply else { return Ok(End::Close) };
                match kind {
                    Kind::Ok => Timer::after_micros(self.slowness.get()).await,
                    Kind::Heartbeat => self.heartbeats.update(|n| n + 1),
                    Kind::CloseWait => self.close_waits.update(|n| n + 1),
                    Kind::Late => self.refused.update(|n| n + 1),
                    Kind::Refusal => panic!("{}", bytes.escape_ascii()),
                    Kind::Identified | Kind::Authorized | Kind::Message => {}
                }
                write_all(socket, &bytes).await?;
            }
            let deadline = Instant::from_micros(self.model.borrow().deadline());
            let others = poll_fn(|cx| {
                self.wakers.borrow_mut().push(cx.waker().clone());
                match self.replies.borrow().iter().any(|(of, _)| *of == conn) {
                    true => Poll::Ready(()),
                    false => Poll::Pending,
                }
            });
            let n = match select3(socket.read(&mut buf), Timer::at(deadline), others).await {
                Either3::First(Ok(0) | Err(_)) => return Ok(End::Close),
                Either3::First(Ok(n)) => n,
                Either3::Second(()) | Either3::Third(()) => continue,
            };
            let finishes = buf[..n].windows(4).any(|verb| verb == b"FIN ");
            let left = self.reset_after.get();
            if self.broken.get() || (left == Some(0) && finishes) {
                self.reset_after.set(None);
                return Ok(End::Reset);
            }
            self.play(|model, out| model.receive(conn, &buf[..n], out));
            if left.is_some() && self.reset_after.get().is_none() {
                return Ok(End::Reset);
            }
        }
    }

    fn next_reply(&self, conn: ConnId) -> Option<Reply> {
        let replies = &mut *self.replies.borrow_mut();
        let at = replies.iter().position(|(of, _)| *of == conn)?;
        replies.remove(at).map(|(_, reply)| reply)
    }

    /// Runs a step of the model, records what it saw and queues its replies.
    fn play(&self, f: impl FnOnce(&mut S, &mut Out)) {
        let mut out = Out::new(Instant::now().as_micros());
        f(&mut self.model.borrow_mut(), &mut out);
        self.replies.borrow_mut().extend(out.replies);
        out.seen.into_iter().for_each(|(conn, seen)| self.account(conn, seen));
        self.wakers.take().into_iter().for_each(Waker::wake);
    }

    fn account(&self, connection: ConnId, seen: Seen) {
        match seen {
            Seen::Stored { topic, bodies, .. } => {
                for body in bodies {
                    let (topic, body) = (topic.clone(), String::from_utf8(body).unwrap());
                    self.stored.borrow_mut().push(Stored { connection, topic, body });
                    self.count_down();
                }
            }
            Seen::Finished { body, .. } => {
                let text = std::str::from_utf8(&body).unwrap();
                let number = text.split(':').next().unwrap().parse().unwrap();
                self.finished.borrow_mut().push(number);
                self.count_down();
            }
            Seen::Requeued { .. } => self.requeued.update(|n| n + 1),
            Seen::Alive => self.alive.borrow_mut().push(Instant::now()),
            Seen::Opened
            | Seen::Ready { .. }
            | Seen::TakenBack { .. }
            | Seen::Refused { .. }
            | Seen::Overdue(_) => {}
        }
    }

    fn count_down(&self) {
        self.reset_after.update(|left| left.and_then(|left| left.checked_sub(1)));
    }
}

impl Nsqd {
    /// Starts an nsqd for up to four connections at a time.
    pub(crate) fn start(world: &World, stack: Stack<'static>) -> Rc<Self> {
        Self::at(world, stack, NSQD)
    }

    pub(crate) fn at(world: &World, stack: Stack<'static>, port: u16) -> Rc<Self> {
        let settings = nsqd::Settings { returns_at_once: true, ..nsqd::Settings::default() };
        Self::serve(world, stack, port, 4, nsqd::Nsqd::new(settings))
    }

    pub(crate) fn bodies(&self) -> Vec<String> {
        self.stored.borrow().iter().map(|stored| stored.body.clone()).collect()
    }

    /// Publishes messages with these numbers to the topic `numbers`.
    pub(crate) fn publish(&self, numbers: Range<u32>) {
        for number in numbers {
            let body = self.body.get().map(|body| body(number));
            let body = body.unwrap_or_else(|| number.to_string().into_bytes());
            self.play(|model, out| model.feed("numbers", &body, out));
        }
    }

    /// Returns the number of messages in flight over all connections.
    pub(crate) fn in_flight(&self) -> usize {
        self.model.borrow().in_flight()
    }

    pub(crate) fn most_in_flight(&self) -> usize {
        self.model.borrow().most_in_flight()
    }

    /// Returns the number of messages that are neither finished nor in flight.
    pub(crate) fn waiting(&self) -> usize {
        self.model.borrow().unfinished("numbers").len() - self.in_flight()
    }
}

/// Serves the HTTP API of an nsqlookupd that lists producers at these ports for `numbers`.
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

impl Lookupd {
    /// Starts an nsqlookupd for up to two connections at a time.
    pub(crate) fn start(world: &World, stack: Stack<'static>, port: u16) -> Rc<Self> {
        Self::serve(world, stack, port, 2, nsqlookupd::Nsqlookupd::new(60_000_000))
    }

    /// Returns whether the listings of all connections together are exactly `names`: sorted, each
    /// `topic` or `topic/channel`.
    pub(crate) fn lists(&self, names: &[&str]) -> bool {
        let conns = 1..=self.connections.get().into();
        let lists = conns.filter_map(|conn| self.model.borrow().listing(conn));
        let listed: BTreeSet<String> = lists.flatten().collect();
        listed.iter().map(String::as_str).eq(names.iter().copied())
    }
}

/// A DNS server: `v4.test`, `v6.test` and `both.test` are the host; the IPv4 address of
/// `stale.test` is unused. Queries for `mute.test` get no answer.
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
