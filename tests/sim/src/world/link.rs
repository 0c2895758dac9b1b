//! A connection: segments under way, arrivals, and the client's end.

use std::task::{Context, Poll, Waker};

use nanonsq_core::session::{Transmit, TransportError};
use nanonsq_models::server::ConnId;

use super::{Chunk, Conn, DELAY_MAX, Due, Flow, Inner, Segment};
use crate::exec::{Cause, because};
use crate::watch::{self, Event};

impl Inner {
    pub(super) fn send(&mut self, id: ConnId, way: Way, segment: Segment) {
        let now = self.now;
        let delay = self.random.between(100, DELAY_MAX);
        let Some(conn) = self.conns.get_mut(id) else { return };
        let (slow, until) = self.hosts[conn.host].slow;
        let delay = if until > now { delay + slow } else { delay };
        let flow = conn.flow(way);
        flow.last = flow.last.max(now + delay);
        let at = flow.last;
        flow.bytes += segment.len();
        flow.queue.push_back((at, segment));
        // An arrival at that time is still in the queue: the time has not reached it.
        if std::mem::replace(&mut flow.due, at) != at {
            self.push(at, way.due(id));
        }
    }

    /// Returns the next segment that has arrived, or schedules a later attempt if a fault holds it.
    fn arrived(&mut self, id: ConnId, way: Way) -> Option<Segment> {
        let now = self.now;
        let conn = self.conns.get_mut(id)?;
        let frozen = if way == Way::Up { self.hosts[conn.host].frozen } else { 0 };
        let lost = conn.lost;
        let flow = conn.flow(way);
        let held = flow.stalled.max(frozen);
        if flow.queue.front()?.0 > now || lost {
            return None;
        }
        if held > now {
            self.push(held, way.due(id));
            return None;
        }
        let (_, segment) = flow.queue.pop_front()?;
        flow.bytes -= segment.len();
        Some(segment)
    }

    pub(super) fn arrive_up(&mut self, id: ConnId) {
        while let Some(segment) = self.arrived(id, Way::Up) {
            let conn = self.conns.get_mut(id).expect("the connection");
            wake(&mut conn.writer);
            let (at, has_server) = (conn.host, conn.has_server);
            match segment {
                Segment::Data(_, bytes) if has_server => {
                    if self.hosts[at].faulty > self.now {
                        conn.clean = false;
                    }
                    self.serve(at, |server, out| server.receive(id, &bytes, out));
                }
                // No process: the kernel sends a reset.
                Segment::Data(..) => self.send(id, Way::Down, Segment::Reset),
                Segment::End => {
                    let way_back = self.random.between(100, DELAY_MAX);
                    self.push(self.now + way_back, Due::Acknowledged(id));
                    if has_server {
                        self.serve(at, |server, out| server.ended(id, out));
                    }
                }
                Segment::Reset => self.server_gone(id),
            }
        }
    }

    pub(super) fn arrive_down(&mut self, id: ConnId) {
        while let Some(segment) = self.arrived(id, Way::Down) {
            let purge = self.random.one_in(2);
            let conn = self.conns.get_mut(id).expect("the connection");
            match segment {
                Segment::Data(kind, bytes) => conn.rx.push_back((kind, bytes)),
                Segment::End => conn.end = conn.end.or(Some(Ok(()))),
                Segment::Reset => conn.reset(purge),
            }
            wake(&mut conn.reader);
            if conn.end.is_some() {
                wake(&mut conn.writer);
            }
        }
    }

    pub(super) fn acknowledged(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id).filter(|conn| !conn.lost) else { return };
        conn.acknowledged = true;
        wake(&mut conn.writer);
    }

    // The client's end.

    pub(super) fn write(
        &mut self,
        id: ConnId,
        bytes: Transmit<'_>,
        cx: &Context<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let conn = self.conns.get_mut(id).expect("a connection that is held");
        let session = conn.session;
        assert!(!conn.ended, "written to after it was closed");
        if !conn.has_server && !conn.lost && self.random.one_in(3) {
            // The end arrives between a read and this write.
            conn.reset(false);
        }
        if let Some(Err(error)) = conn.end {
            watch::event(session, Event::WriteError);
            return Poll::Ready(Err(error));
        }
        let unread = self.hosts[conn.host].server.unread(id);
        let room = conn.window.saturating_sub(conn.up.bytes + unread);
        if room == 0 {
            watch::event(session, Event::Blocked);
            conn.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = self.random.between(1, conn.piece) as usize;
        let n = bytes.len().min(room).min(most);
        watch::event(session, if n < bytes.len() { Event::WrotePart } else { Event::Wrote });
        let taken = take(bytes, n);
        watch::trace_session(session, || format!("writes {}", short(&taken)));
        // Only bytes after the heartbeat answer it, but the NOP may have begun before.
        let looked_at = if conn.owes { taken.len() } else { taken.len().min(3) };
        for &byte in &taken[taken.len() - looked_at..] {
            let [_, a, b] = conn.wrote;
            conn.wrote = [a, b, byte];
            conn.owes &= conn.wrote != *b"NOP";
        }
        self.moves[session.0] += 1;
        self.send(id, Way::Up, Segment::Data(Event::Wrote, taken));
        Poll::Ready(Ok(n))
    }

    pub(super) fn read(
        &mut self,
        id: ConnId,
        buf: &mut [u8],
        cx: &Context<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let conn = self.conns.get_mut(id).expect("a connection that is held");
        let session = conn.session;
        let Some((kind, bytes)) = conn.rx.front() else {
            conn.reader = Some(cx.waker().clone());
            let Some(end) = conn.end else { return Poll::Pending };
            self.moves[session.0] += 1;
            watch::event(session, if end.is_ok() { Event::End } else { Event::ReadError });
            watch::trace_session(session, || format!("reads the end: {end:?}"));
            return Poll::Ready(end.map(|()| 0));
        };
        let most = self.random.between(1, conn.piece) as usize;
        let rest = &bytes[conn.read..];
        let n = rest.len().min(buf.len()).min(most);
        buf[..n].copy_from_slice(&rest[..n]);
        let whole = n == rest.len();
        let event = if whole || *kind == Event::Lie { *kind } else { Event::Part };
        watch::event(session, event);
        watch::trace_session(session, || format!("reads {event:?} {}", short(&buf[..n])));
        if whole {
            match kind {
                Event::Ok | Event::Refusal => conn.answers += 1,
                Event::Heartbeat => {
                    conn.owes = !conn.lied_to;
                    self.owing = true;
                }
                Event::Lie => conn.lied_to = true,
                _ => {}
            }
            conn.rx.pop_front();
            conn.read = 0;
        } else {
            conn.read += n;
        }
        self.moves[session.0] += 1;
        let at = conn.host;
        self.hosts[at].server.writable(id);
        Poll::Ready(Ok(n))
    }

    pub(super) fn close(
        &mut self,
        id: ConnId,
        cx: &Context<'_>,
    ) -> Poll<Result<(), TransportError>> {
        let conn = self.conns.get_mut(id).expect("a connection that is held");
        if let Some(Err(error)) = conn.end {
            return Poll::Ready(Err(error));
        }
        if !std::mem::replace(&mut conn.ended, true) {
            self.send(id, Way::Up, Segment::End);
        }
        let conn = self.conns.get_mut(id).expect("a connection that is held");
        if conn.patient && !conn.acknowledged {
            conn.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.moves[conn.session.0] += 1;
        Poll::Ready(Ok(()))
    }

    /// Drops the client's end, with or without closing it.
    pub(super) fn drop_client(&mut self, id: ConnId, closed: bool) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let session = conn.session;
        watch::event(session, Event::Closed);
        watch::trace_session(session, || if closed { "closes" } else { "aborts" }.into());
        // If the connection still waits to be accepted, no session may have served it.
        conn.clean &= !self.hosts[conn.host].server.waits(id);
        if conn.clean
            && let Some(fault) = watch::fault(session)
        {
            panic!("a session gave up a healthy connection: {fault}");
        }
        let gives_up = conn.clean && watch::is_in(session, "Closing");
        conn.has_client = false;
        conn.rx.clear();
        if gives_up {
            self.given_up.push(session);
        }
        let conn = self.conns.get_mut(id).expect("the connection");
        if conn.lost || !conn.has_server {
            self.sweep(id);
        } else if !closed {
            // The reset may overtake written bytes.
            let keep = self.random.below(conn.up.queue.len() as u64 + 1) as usize;
            conn.up.queue.truncate(keep);
            self.send(id, Way::Up, Segment::Reset);
        }
    }
}

/// The direction of a flow: up to the server, or down to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

impl Way {
    pub(super) fn due(self, id: ConnId) -> Due {
        match self {
            Self::Up => Due::Up(id),
            Self::Down => Due::Down(id),
        }
    }
}

impl Conn {
    pub(super) fn flow(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    pub(super) fn reset(&mut self, purge: bool) {
        if purge {
            self.rx.clear();
            self.read = 0;
        }
        self.end = Some(Err(TransportError::Reset));
    }
}

impl Segment {
    fn len(&self) -> usize {
        match self {
            Self::Data(_, bytes) => bytes.len(),
            Self::End | Self::Reset => 0,
        }
    }
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        because(Cause::Io, || waker.wake());
    }
}

/// Copies the first `n` bytes of what is offered.
pub(super) fn take(bytes: Transmit<'_>, n: usize) -> Chunk {
    match bytes.head.get(..n) {
        Some(head) => Chunk::new(head),
        None if bytes.head.is_empty() => Chunk::new(&bytes.body[..n]),
        None => Chunk::new(&[bytes.head, &bytes.body[..n - bytes.head.len()]].concat()),
    }
}

/// Formats some bytes for the trace, at most 60.
fn short(bytes: &[u8]) -> String {
    const MAX: usize = 60;
    let text = bytes[..bytes.len().min(MAX)].escape_ascii();
    format!("{} bytes: {text}{}", bytes.len(), if bytes.len() > MAX { "..." } else { "" })
}
