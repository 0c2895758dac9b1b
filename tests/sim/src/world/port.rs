//! A host that is an actor's process: its listeners and its ends of connections. Arriving bytes
//! wait here until the process reads them.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nanonsq_core::drive::{Accept, AcceptError, Transport};
use nanonsq_core::session::{Transmit, TransportError};
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Out, Seen, Server};

use super::link::{Way, take, wake};
use super::{Chunk, Inner, Segment, WINDOW, World};
use crate::tap::{OFFERED, Tap};
use crate::watch::{self, Event, Session};

/// The most connections that wait to be accepted; the next one is reset.
const BACKLOG: usize = 4;

/// A port on which a process listens.
#[derive(Clone, Default)]
pub(crate) struct Port(Rc<RefCell<Mailbox>>);

#[derive(Default)]
struct Mailbox {
    /// True while a process runs.
    up: bool,
    backlog: VecDeque<ConnId>,
    accepting: BTreeMap<Session, Waker>,
    ends: BTreeMap<ConnId, End>,
    listings: BTreeMap<ConnId, BTreeSet<String>>,
    /// The number of connections that listeners hold.
    held: usize,
    /// True from when the spare listener accepted a connection until no connection is left: a
    /// listener may then serve another session than its own.
    mixed: bool,
    /// Messages that others publish through this node, and the waker of the task that publishes
    /// them.
    fed: VecDeque<(String, Vec<u8>)>,
    feeder: Option<Waker>,
    /// Records which published messages are not finished.
    tap: Option<Rc<RefCell<Tap>>>,
}

/// The process's end of a connection.
#[derive(Default)]
struct End {
    rx: VecDeque<u8>,
    /// When the connection came up.
    since: u64,
    /// The client closed its stream; the connection is gone.
    ended: bool,
    gone: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Port {
    /// Opens the port for a new process, or closes it.
    pub(crate) fn set_up(&self, world: &World, up: bool) {
        let waiting: Vec<_> = {
            let mailbox = &mut *self.0.borrow_mut();
            mailbox.up = up;
            mailbox.listings.clear();
            mailbox.tap = None;
            mailbox.fed.clear();
            if up { Vec::new() } else { mailbox.backlog.drain(..).collect() }
        };
        for id in waiting {
            world.0.borrow_mut().hang_up(id, true);
            self.0.borrow_mut().ends.remove(&id);
        }
    }

    /// Polls for a message that others publish through this node.
    pub(crate) fn poll_fed(&self, cx: &Context<'_>) -> Poll<(String, Vec<u8>)> {
        let mailbox = &mut *self.0.borrow_mut();
        match mailbox.fed.pop_front() {
            Some(fed) => Poll::Ready(fed),
            None => {
                mailbox.feeder = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    /// Sets the tap that records which messages are not finished.
    pub(crate) fn set_tap(&self, tap: Rc<RefCell<Tap>>) {
        self.0.borrow_mut().tap = Some(tap);
    }

    /// Sets what each connection has registered.
    pub(crate) fn set_listings(&self, listings: BTreeMap<ConnId, BTreeSet<String>>) {
        self.0.borrow_mut().listings = listings;
    }

    /// Returns the connection with this source address.
    pub(crate) fn conn_of(from: SocketAddr) -> ConnId {
        let SocketAddr::V4(from) = from else { panic!("not one of ours") };
        u64::from(u32::from(*from.ip())) << 16 | u64::from(from.port())
    }
}

impl Mailbox {
    /// Counts an event of a listener or its connection, unless it is unknown to which session the
    /// connection belongs.
    fn event(&self, session: Session, event: Event) {
        if !self.mixed || watch::is_spare(session) {
            watch::event_of_listener(session, event);
        }
    }
}

fn address_of(id: ConnId) -> SocketAddr {
    SocketAddr::from((
        (id >> 16).to_be_bytes()[4..].first_chunk::<4>().copied().unwrap(),
        id as u16,
    ))
}

/// The port as the network sees it.
impl Server for Port {
    fn open(&mut self, conn: ConnId, out: &mut Out) {
        let mailbox = &mut *self.0.borrow_mut();
        if mailbox.backlog.len() >= BACKLOG {
            out.close(conn);
            return;
        }
        mailbox.ends.insert(conn, End { since: out.now, ..End::default() });
        mailbox.backlog.push_back(conn);
        for (_, waker) in std::mem::take(&mut mailbox.accepting) {
            wake(&mut Some(waker));
        }
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], _: &mut Out) {
        if let Some(end) = self.0.borrow_mut().ends.get_mut(&conn) {
            end.rx.extend(bytes);
            wake(&mut end.reader);
        }
    }

    fn ended(&mut self, conn: ConnId, _: &mut Out) {
        if let Some(end) = self.0.borrow_mut().ends.get_mut(&conn) {
            end.ended = true;
            wake(&mut end.reader);
        }
    }

    fn closed(&mut self, conn: ConnId) {
        if let Some(end) = self.0.borrow_mut().ends.get_mut(&conn) {
            end.gone = true;
            wake(&mut end.reader);
            wake(&mut end.writer);
        }
    }

    fn deadline(&self) -> u64 {
        u64::MAX
    }

    fn tick(&mut self, _: &mut Out) {}

    fn lie(&self, _: &mut Random) -> Vec<u8> {
        Vec::new()
    }

    fn set_exiting(&mut self, _: bool) {}

    fn vandalize(&mut self, _: &mut Random, _: &[&str]) -> String {
        "nothing".into()
    }

    fn feed(&mut self, topic: &str, body: &[u8], _: &mut Out) {
        let mailbox = &mut *self.0.borrow_mut();
        if mailbox.up {
            mailbox.fed.push_back((topic.to_owned(), body.to_vec()));
            if let Some(waker) = mailbox.feeder.take() {
                crate::exec::application(|| waker.wake());
            }
        }
    }

    fn unfinished(&self, _: &str) -> Vec<Vec<u8>> {
        let mailbox = self.0.borrow();
        let accepted =
            mailbox.tap.as_ref().map(|tap| tap.borrow().unfinished()).unwrap_or_default();
        accepted.into_iter().chain(mailbox.fed.iter().map(|fed| fed.1.clone())).collect()
    }

    fn listing(&self, conn: ConnId) -> Option<BTreeSet<String>> {
        self.0.borrow().listings.get(&conn).cloned()
    }

    fn is_up(&self) -> bool {
        self.0.borrow().up
    }

    fn waits(&self, conn: ConnId) -> bool {
        self.0.borrow().backlog.contains(&conn)
    }

    fn unread(&self, conn: ConnId) -> usize {
        self.0.borrow().ends.get(&conn).map_or(0, |end| end.rx.len())
    }

    fn writable(&mut self, conn: ConnId) {
        if let Some(end) = self.0.borrow_mut().ends.get_mut(&conn) {
            wake(&mut end.writer);
        }
    }
}

/// One accept slot of a session.
pub(crate) struct Listens {
    pub(crate) world: World,
    pub(crate) port: Port,
    pub(crate) session: Session,
    /// Checks the connections, if they are V2.
    pub(crate) tap: Option<Rc<RefCell<Tap>>>,
}

impl Accept for Listens {
    const ONE_QUEUE: bool = true;

    type Transport = Socket;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Socket, SocketAddr), AcceptError>> {
        let Self { world, port, session, tap } = self;
        let mailbox = &mut *port.0.borrow_mut();
        let Some(&id) = mailbox.backlog.front() else {
            mailbox.accepting.insert(*session, cx.waker().clone());
            return Poll::Pending;
        };
        mailbox.accepting.remove(session);
        let inner = &mut *world.0.borrow_mut();
        if inner.random.one_in(60) {
            // As when there are no file descriptors left: what waits, waits.
            if let Some(conn) = inner.conns.get_mut(id) {
                conn.clean = false;
            }
            inner.moves[session.0] += 1;
            mailbox.event(*session, Event::DialFailed);
            return Poll::Ready(Err(AcceptError::NoSocket));
        }
        mailbox.backlog.pop_front();
        mailbox.held += 1;
        mailbox.mixed |= watch::is_spare(*session);
        mailbox.event(*session, Event::Up);
        inner.moves[session.0] += 1;
        // All places were taken for a while: it may be answered late.
        let waited = mailbox.ends.get(&id).is_some_and(|end| end.since < inner.now);
        if let Some(conn) = inner.conns.get_mut(id).filter(|_| waited) {
            conn.clean = false;
        }
        watch::trace_session(*session, || format!("accepts connection {id}"));
        if let Some(tap) = tap {
            tap.borrow_mut().open(id);
        }
        let (world, port, session, tap) = (world.clone(), port.clone(), *session, tap.clone());
        let socket = Socket { world, port, id, session, tap, closed: false };
        Poll::Ready(Ok((socket, address_of(id))))
    }

    fn stop(&mut self) {
        self.port.0.borrow_mut().accepting.remove(&self.session);
    }
}

/// [`Transport`] of a connection that was accepted.
pub(crate) struct Socket {
    world: World,
    port: Port,
    id: ConnId,
    session: Session,
    tap: Option<Rc<RefCell<Tap>>>,
    closed: bool,
}

impl Socket {
    fn tap(&self, inner: &mut Inner, f: impl FnOnce(&mut Tap, u64) -> Vec<(ConnId, Seen)>) {
        let Some(tap) = &self.tap else { return };
        let clock = inner.now.saturating_add(inner.clocks[self.session.0]);
        let seen = f(&mut tap.borrow_mut(), clock);
        for (id, seen) in seen {
            if let Some(client) = inner.conns.get(id).map(|conn| conn.session) {
                inner.seen.push((client, id, seen));
            }
        }
    }
}

impl Transport for Socket {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        let inner = &mut *self.world.0.borrow_mut();
        // Reading again means that everything read before was processed.
        self.tap(inner, |tap, now| tap.read_again(self.id, now));
        let mailbox = &mut *self.port.0.borrow_mut();
        let end = mailbox.ends.get_mut(&self.id).expect("an end that is held");
        if end.rx.is_empty() {
            end.reader = Some(cx.waker().clone());
            if !end.gone && !end.ended {
                return Poll::Pending;
            }
            inner.moves[self.session.0] += 1;
            let gone = end.gone;
            mailbox.event(self.session, if gone { Event::ReadError } else { Event::End });
            let reset = Poll::Ready(Err(TransportError::Reset));
            return if gone { reset } else { Poll::Ready(Ok(0)) };
        }
        let piece = inner.conns.get(self.id).map_or(10_000, |conn| conn.piece);
        let most = inner.random.between(1, piece) as usize;
        let n = end.rx.len().min(buf.len()).min(most);
        for (to, from) in buf.iter_mut().zip(end.rx.drain(..n)) {
            *to = from;
        }
        mailbox.event(self.session, Event::Heard);
        watch::trace_session(self.session, || format!("reads {}", buf[..n].escape_ascii()));
        inner.moves[self.session.0] += 1;
        self.tap(inner, |tap, now| tap.read(self.id, &buf[..n], now));
        if let Some(conn) = inner.conns.get_mut(self.id) {
            wake(&mut conn.writer);
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        assert!(!self.closed, "written to after it was closed");
        let inner = &mut *self.world.0.borrow_mut();
        // The tap reads no more than this.
        let first = take(bytes, bytes.len().min(OFFERED));
        self.tap(inner, |tap, now| tap.offer(self.id, &first, now));
        let mailbox = &mut *self.port.0.borrow_mut();
        let end = mailbox.ends.get_mut(&self.id).expect("an end that is held");
        let conn = inner.conns.get_mut(self.id).filter(|_| !end.gone);
        let Some(conn) = conn else {
            mailbox.event(self.session, Event::WriteError);
            return Poll::Ready(Err(TransportError::Reset));
        };
        let unread: usize = conn.rx.iter().map(|(_, bytes)| bytes.len()).sum();
        let room = conn
            .window
            .min(WINDOW)
            .saturating_sub(conn.down.bytes + unread.saturating_sub(conn.read));
        if room == 0 {
            end.writer = Some(cx.waker().clone());
            mailbox.event(self.session, Event::Blocked);
            return Poll::Pending;
        }
        let most = inner.random.between(1, conn.piece) as usize;
        let n = bytes.len().min(room).min(most);
        let event = if n < bytes.len() { Event::WrotePart } else { Event::Wrote };
        let taken = take(bytes, n);
        mailbox.event(self.session, event);
        watch::trace_session(self.session, || format!("writes {}", taken.escape_ascii()));
        inner.moves[self.session.0] += 1;
        let Some(tap) = &self.tap else {
            inner.send(self.id, Way::Down, Segment::Data(Event::Part, taken));
            return Poll::Ready(Ok(n));
        };
        let mut rest = &*taken;
        for (kind, len) in tap.borrow_mut().wrote(self.id, &taken) {
            let (part, others) = rest.split_at(len);
            inner.send(self.id, Way::Down, Segment::Data(kind, Chunk::new(part)));
            rest = others;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if let Some(tap) = &self.tap {
            tap.borrow_mut().closes(self.id);
        }
        let inner = &mut *self.world.0.borrow_mut();
        inner.moves[self.session.0] += 1;
        if !std::mem::replace(&mut self.closed, true) {
            watch::trace_session(self.session, || "closes".into());
            inner.send(self.id, Way::Down, Segment::End);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        watch::event(self.session, Event::Closed);
        watch::trace_session(self.session, || "is done with the connection".into());
        if let Some(tap) = &self.tap {
            tap.borrow_mut().closed(self.id);
        }
        let inner = &mut *self.world.0.borrow_mut();
        inner.moves[self.session.0] += 1;
        let end = {
            let mailbox = &mut *self.port.0.borrow_mut();
            mailbox.held -= 1;
            mailbox.mixed &= mailbox.held > 0;
            mailbox.ends.remove(&self.id)
        };
        let unread = end.is_none_or(|end| !end.rx.is_empty());
        inner.hang_up(self.id, !self.closed || unread);
    }
}

impl Inner {
    /// A process drops its end of a connection.
    fn hang_up(&mut self, id: ConnId, reset: bool) {
        if reset {
            self.send(id, Way::Down, Segment::Reset);
        }
        self.server_gone(id);
    }
}
