//! Virtual time and the network: hosts, connections, dials, alarms, and all that can happen to
//! them.
//!
//! One queue of what is due moves the time; nothing else does. A connection is two flows of
//! segments, each with its own delays, so connections overtake each other and no flow does itself.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Dialer, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;

use crate::exec::{Cause, because};
use crate::random::Random;
use crate::schedule::{Cut, DialFault, Jump, What};
use crate::server::{ConnId, Mode, Out, Reply, Seen, Server};
use crate::watch::{self, Event, Session};

/// When the real one's kernel notices that a client is gone: Go's keepalive.
const KEEPALIVE: u64 = 150_000_000;

/// How long a segment takes at most where nothing is wrong, in microseconds.
pub(crate) const DELAY_MAX: u64 = 50_000;

/// How many bytes may be under way to a server: more than an outbox holds.
const WINDOW: usize = 6000;

/// A session that dials more often than this within a second hammers.
const DIALS_MAX: usize = 200;

/// The network as actors see it.
#[derive(Clone)]
pub(crate) struct World(Rc<RefCell<Inner>>);

/// What is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A step of the schedule.
    Step(usize),
    /// An actor's process starts.
    Start(usize),
    /// The schedule's last step was; later, everything has to be well; the end.
    Calm,
    Settled,
    End,
    /// Segments of a connection: to the server, to the client.
    Up(ConnId),
    Down(ConnId),
    Dial(u64),
    Alarm(Session, u64),
    Tick(usize),
    Keepalive(ConnId),
}

struct Inner {
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Due)>>,
    pushed: u64,
    random: Random,
    hosts: Vec<Host>,
    conns: BTreeMap<ConnId, Conn>,
    dials: BTreeMap<u64, Dial>,
    alarms: BTreeMap<Session, (u64, Waker)>,
    /// When each session dialed lately.
    dialed: BTreeMap<Session, VecDeque<u64>>,
    /// How far each actor's clock is ahead.
    clocks: Vec<u64>,
    /// How often each actor moved something.
    moves: Vec<u64>,
    named: u64,
    seen: Vec<(Session, ConnId, Seen)>,
}

struct Host {
    name: String,
    server: Box<dyn Server>,
    tick_at: u64,
    /// Until then, something is wrong with it; each with what it is.
    faulty: u64,
    down: u64,
    /// While down: silent, rather than refusing.
    gone: bool,
    frozen: u64,
    dials: (DialFault, u64),
    mode: (Mode, u64),
    slow: (u64, u64),
    squeezed: u64,
}

struct Dial {
    session: Session,
    host: Option<usize>,
    waker: Option<Waker>,
    result: Option<Result<ConnId, DialError>>,
}

struct Conn {
    session: Session,
    host: usize,
    /// It is not with whom it was meant to be.
    misled: bool,
    /// Nothing was ever wrong with it.
    clean: bool,
    /// The server says nothing more.
    mute: bool,
    /// Half open: nothing passes any more, and nobody is told.
    lost: bool,
    up: Flow,
    down: Flow,
    /// What arrived for the client, and how much of the first it has read.
    rx: VecDeque<(Event, Vec<u8>)>,
    read: usize,
    /// What the client reads after that.
    end: Option<Result<(), TransportError>>,
    /// How much may be under way to the server, and what is taken at once.
    window: usize,
    piece: u64,
    /// Closing waits until everything has arrived.
    patient: bool,
    has_server: bool,
    has_client: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The client has read a heartbeat and not begun to answer it; the last bytes that it wrote.
    owes: bool,
    wrote: [u8; 3],
    /// Commands that the server understood, answers that the client has read.
    commands: u32,
    answers: u32,
}

#[derive(Default)]
struct Flow {
    queue: VecDeque<(u64, Segment)>,
    bytes: usize,
    last: u64,
    stalled: u64,
}

enum Segment {
    Data(Event, Vec<u8>),
    End,
    Reset,
}

impl World {
    pub(crate) fn new(seed: u64, actors: usize, clock: u64) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            now: 0,
            queue: BinaryHeap::new(),
            pushed: 0,
            random: Random::new(seed),
            hosts: Vec::new(),
            conns: BTreeMap::new(),
            dials: BTreeMap::new(),
            alarms: BTreeMap::new(),
            dialed: BTreeMap::new(),
            clocks: vec![clock; actors],
            moves: vec![0; actors],
            named: 0,
            seen: Vec::new(),
        })))
    }

    /// A host that dials reach by its name.
    pub(crate) fn add_host(&self, name: String, server: Box<dyn Server>) {
        self.0.borrow_mut().hosts.push(Host {
            name,
            server,
            tick_at: u64::MAX,
            faulty: 0,
            down: 0,
            gone: false,
            frozen: 0,
            dials: (DialFault::Refused, 0),
            mode: (Mode::Mute, 0),
            slow: (0, 0),
            squeezed: 0,
        });
    }

    pub(crate) fn push(&self, at: u64, due: Due) {
        self.0.borrow_mut().push(at, due);
    }

    /// The next thing that is due; the time is then. Those of the network are done.
    pub(crate) fn next(&self) -> Option<(u64, Due)> {
        let inner = &mut *self.0.borrow_mut();
        let Reverse((at, _, due)) = inner.queue.pop()?;
        inner.now = at;
        watch::set_now(at);
        match due {
            Due::Step(_) | Due::Start(_) | Due::Calm | Due::Settled | Due::End => {}
            Due::Up(conn) => inner.arrive_up(conn),
            Due::Down(conn) => inner.arrive_down(conn),
            Due::Dial(id) => inner.dialed(id),
            Due::Alarm(session, at) => {
                if inner.alarms.get(&session).is_some_and(|alarm| alarm.0 == at) {
                    watch::event(session, Event::Deadline);
                    let (_, waker) = inner.alarms.remove(&session).expect("the alarm");
                    because(Cause::Alarm, || waker.wake());
                }
            }
            Due::Tick(host) => inner.tick(host),
            Due::Keepalive(conn) => inner.server_gone(conn),
        }
        Some((at, due))
    }

    /// What servers understood since this was last asked.
    pub(crate) fn take_seen(&self) -> Vec<(Session, ConnId, Seen)> {
        std::mem::take(&mut self.0.borrow_mut().seen)
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.borrow().now
    }

    /// So when nothing more moves: control bytes wait for nothing but their transport.
    pub(crate) fn check_quiet(&self) {
        let inner = self.0.borrow();
        for conn in inner.conns.values().filter(|conn| conn.owes && conn.has_client) {
            let can = conn.end.is_none() && conn.writer.is_none();
            let ready = watch::is_in(conn.session, "Ready");
            assert!(!can || !ready, "a heartbeat is read and not answered");
        }
    }

    /// How often an actor moved bytes, dialed or closed.
    pub(crate) fn moves(&self, actor: usize) -> u64 {
        self.0.borrow().moves[actor]
    }

    pub(crate) fn clock(&self, actor: usize) -> u64 {
        let inner = self.0.borrow();
        // As `Sleep::now` promises, never `Instant::NEVER`.
        inner.now.saturating_add(inner.clocks[actor]).min(u64::MAX - 1)
    }

    pub(crate) fn fault(&self, what: &What) {
        self.0.borrow_mut().fault(what);
    }

    /// All that was wrong is right again, for good, except what is already lost.
    pub(crate) fn heal(&self) {
        let inner = &mut *self.0.borrow_mut();
        for host in &mut inner.hosts {
            host.server.set_exiting(false);
        }
        for conn in inner.conns.values_mut() {
            conn.window = conn.window.max(WINDOW);
            wake(&mut conn.writer);
        }
        let misled = inner.conns.iter().filter(|(_, conn)| conn.misled && conn.has_client);
        for id in misled.map(|(id, _)| *id).collect::<Vec<_>>() {
            inner.cut(id, Cut::Reset);
        }
    }

    /// All that a host has listed for an actor's process, and through how many connections.
    pub(crate) fn listing(&self, host: &str, actor: usize) -> (Vec<String>, usize) {
        let inner = self.0.borrow();
        let conns = inner.conns.iter().filter(|(_, conn)| {
            conn.session.0 == actor && inner.hosts[conn.host].name == host && conn.has_server
        });
        let lists: Vec<_> =
            conns.filter_map(|(id, conn)| inner.hosts[conn.host].server.listing(*id)).collect();
        let mut names: Vec<_> = lists.iter().copied().flatten().cloned().collect();
        names.sort();
        (names, lists.len())
    }
}

impl Inner {
    fn push(&mut self, at: u64, due: Due) {
        self.pushed += 1;
        self.queue.push(Reverse((at.max(self.now), self.pushed, due)));
    }

    fn name(&mut self) -> u64 {
        self.named += 1;
        self.named
    }

    // Dials.

    fn dialed(&mut self, id: u64) {
        let Some(dial) = self.dials.get(&id) else { return };
        let session = dial.session;
        let mut target = dial.host;
        let result = match target {
            None => Err(DialError::NameNotFound),
            Some(at) => {
                let host = &self.hosts[at];
                let refused = if host.gone { None } else { Some(DialError::Refused) };
                match host.dials {
                    (fault, until) if until > self.now => match fault {
                        DialFault::Refused => Err(DialError::Refused),
                        DialFault::Hangs => return,
                        DialFault::TimedOut => Err(DialError::TimedOut),
                        DialFault::Unreachable => Err(DialError::Unreachable),
                        DialFault::NameNotFound => Err(DialError::NameNotFound),
                        DialFault::NoSocket => Err(DialError::NoSocket),
                        DialFault::Other => Err(DialError::Other),
                        DialFault::Elsewhere => {
                            target = Some((at + 1) % self.hosts.len());
                            Ok(())
                        }
                    },
                    _ if host.down > self.now => match refused {
                        None => return,
                        Some(error) => Err(error),
                    },
                    _ => Ok(()),
                }
            }
        };
        let misled = target != dial.host;
        let result =
            result.map(|()| self.connect(session, target.expect("it was reached"), misled));
        watch::tell(session, || match result {
            Ok(_) => format!("is connected to {}", self.hosts[target.unwrap_or(0)].name),
            Err(error) => format!("cannot connect: {error}"),
        });
        let dial = self.dials.get_mut(&id).expect("the dial");
        dial.result = Some(result);
        if let Some(waker) = dial.waker.take() {
            because(Cause::Io, || waker.wake());
        }
    }

    fn connect(&mut self, session: Session, at: usize, misled: bool) -> ConnId {
        let id = self.name();
        let mut random = self.random.fork();
        let host = &self.hosts[at];
        let squeezed = host.squeezed > self.now;
        let conn = Conn {
            session,
            host: at,
            misled,
            // At the end of all time there is no later.
            clean: !misled && host.faulty <= self.now && self.clocks[session.0] < 1 << 63,
            mute: false,
            lost: false,
            up: Flow::default(),
            down: Flow::default(),
            rx: VecDeque::new(),
            read: 0,
            end: None,
            window: if squeezed { random.between(1, 64) as usize } else { WINDOW },
            piece: random.pick(&[1, 7, 100, 10_000, 10_000]),
            patient: random.one_in(2),
            has_server: true,
            has_client: true,
            reader: None,
            writer: None,
            owes: false,
            wrote: [0; 3],
            commands: 0,
            answers: 0,
        };
        self.conns.insert(id, conn);
        self.seen.push((session, id, Seen::Opened));
        self.serve(at, |server, out| server.open(id, out));
        id
    }

    // Servers.

    /// Has a server do something, then does what it says.
    fn serve(&mut self, at: usize, f: impl FnOnce(&mut dyn Server, &mut Out)) {
        let mut out = Out::new(self.now);
        let host = &mut self.hosts[at];
        f(&mut *host.server, &mut out);
        let deadline = host.server.deadline();
        if deadline < host.tick_at {
            host.tick_at = deadline;
            self.push(deadline, Due::Tick(at));
        }
        for (id, seen) in out.seen {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            match &seen {
                Seen::Opened | Seen::Stored { .. } | Seen::Refused { .. } => {}
                Seen::Overdue(what) => {
                    assert!(!conn.clean || conn.lost, "a healthy client owes {what}");
                    continue;
                }
            }
            self.seen.push((conn.session, id, seen));
        }
        for (id, reply) in out.replies {
            if matches!(reply, Reply::Say(Event::Ok | Event::Refusal, _))
                && let Some(conn) = self.conns.get_mut(&id)
            {
                conn.commands += 1;
                let most = self.hosts[at].server.unanswered_max();
                assert!(conn.commands - conn.answers <= most, "more than {most} commands ahead");
            }
            match reply {
                Reply::Say(kind, bytes) => self.reply(id, kind, bytes),
                Reply::Close => self.server_closes(id),
            }
        }
    }

    fn tick(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        if host.frozen > self.now {
            let thaw = host.frozen;
            self.push(thaw, Due::Tick(at));
            return;
        }
        host.tick_at = u64::MAX;
        self.serve(at, |server, out| server.tick(out));
    }

    /// A server says something, in its way.
    fn reply(&mut self, id: ConnId, kind: Event, bytes: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let host = &self.hosts[conn.host];
        if host.faulty > self.now {
            conn.clean = false;
        }
        let (mode, until) = host.mode;
        if conn.mute {
            return;
        }
        if until <= self.now {
            self.say(id, kind, bytes);
            return;
        }
        // One who leaves out an answer and then goes on could not be told from one who is late.
        conn.mute = matches!(mode, Mode::Mute | Mode::Wrong);
        let mut random = self.random.fork();
        watch::tell(conn.session, || format!("hears of a server that is {mode:?}"));
        match mode {
            Mode::Exiting => self.say(id, kind, bytes),
            Mode::Mute => {}
            Mode::Garbage => {
                let mut noise: Vec<u8> =
                    (0..random.between(1, 40)).map(|_| random.below(256) as u8).collect();
                noise[0] |= 0x80;
                self.say(id, Event::Lie, noise);
            }
            Mode::Wrong => {
                let lie = host.server.lie(&mut random);
                self.say(id, Event::Lie, lie);
            }
            Mode::Huge => {
                let mut huge = bytes;
                huge[..4].copy_from_slice(random.pick(&[
                    b"\xff\xff\xff\xff",
                    b"\x7f\xff\xff\xff",
                    b"\x80\0\0\0",
                    b"\0\0\x40\x05",
                    b"HTTP",
                ]));
                self.say(id, Event::Lie, huge);
            }
            Mode::Trickle => {
                let last = bytes.len() - 1;
                for (n, byte) in bytes.into_iter().enumerate() {
                    let conn = self.conns.get_mut(&id).expect("the connection");
                    conn.down.last = conn.down.last.max(self.now) + 1_000_000;
                    self.say(id, if n == last { kind } else { Event::Part }, vec![byte]);
                }
            }
            Mode::Hasty => {
                self.say(id, kind, bytes);
                self.server_closes(id);
            }
        }
    }

    /// Bytes leave a server.
    fn say(&mut self, id: ConnId, kind: Event, bytes: Vec<u8>) {
        self.send(id, Way::Down, Segment::Data(kind, bytes));
    }

    fn server_closes(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(&id) else { return };
        // It closes with a reset if there is something that it has not read; that may overtake
        // what it said before.
        let unread = !conn.up.queue.is_empty();
        if unread && self.random.one_in(2) {
            let conn = self.conns.get_mut(&id).expect("the connection");
            let keep = self.random.below(conn.down.queue.len() as u64 + 1) as usize;
            conn.down.queue.truncate(keep);
            self.send(id, Way::Down, Segment::Reset);
        } else {
            self.send(id, Way::Down, Segment::End);
        }
        self.server_gone(id);
    }

    /// The server's end of a connection is no more.
    fn server_gone(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if std::mem::take(&mut conn.has_server) {
            self.hosts[conn.host].server.closed(id);
        }
        self.sweep(id);
    }

    fn sweep(&mut self, id: ConnId) {
        if self.conns.get(&id).is_some_and(|conn| !conn.has_client && !conn.has_server) {
            self.conns.remove(&id);
        }
    }

    // Segments.

    fn send(&mut self, id: ConnId, way: Way, segment: Segment) {
        let now = self.now;
        let delay = self.random.between(100, DELAY_MAX);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let (slow, until) = self.hosts[conn.host].slow;
        let delay = if until > now { delay + slow } else { delay };
        let flow = conn.flow(way);
        flow.last = flow.last.max(now + delay);
        let at = flow.last;
        flow.bytes += segment.len();
        flow.queue.push_back((at, segment));
        self.push(at, way.due(id));
    }

    /// The next segment that has arrived; later, if something holds it up.
    fn arrived(&mut self, id: ConnId, way: Way) -> Option<Segment> {
        let now = self.now;
        let conn = self.conns.get_mut(&id)?;
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

    fn arrive_up(&mut self, id: ConnId) {
        while let Some(segment) = self.arrived(id, Way::Up) {
            let conn = self.conns.get_mut(&id).expect("the connection");
            wake(&mut conn.writer);
            let (at, has_server) = (conn.host, conn.has_server);
            match segment {
                Segment::Data(_, bytes) if has_server => {
                    if self.hosts[at].faulty > self.now {
                        conn.clean = false;
                    }
                    self.serve(at, |server, out| server.receive(id, &bytes, out));
                }
                // Nobody is there any more: the kernel says so.
                Segment::Data(..) => self.send(id, Way::Down, Segment::Reset),
                Segment::End if has_server => {
                    self.serve(at, |server, out| server.ended(id, out));
                }
                Segment::End => {}
                Segment::Reset => self.server_gone(id),
            }
        }
    }

    fn arrive_down(&mut self, id: ConnId) {
        while let Some(segment) = self.arrived(id, Way::Down) {
            let purge = self.random.one_in(2);
            let conn = self.conns.get_mut(&id).expect("the connection");
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

    // The client's end.

    fn write(
        &mut self,
        id: ConnId,
        bytes: Transmit<'_>,
        cx: &Context<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let conn = self.conns.get_mut(&id).expect("a connection that is held");
        let session = conn.session;
        if !conn.has_server && !conn.lost && self.random.one_in(3) {
            // What ends it arrives between a read and this write.
            conn.reset(false);
        }
        if let Some(Err(error)) = conn.end {
            watch::event(session, Event::WriteError);
            return Poll::Ready(Err(error));
        }
        let room = conn.window.saturating_sub(conn.up.bytes);
        if room == 0 {
            watch::event(session, Event::Blocked);
            conn.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let most = self.random.between(1, conn.piece) as usize;
        let n = bytes.len().min(room).min(most);
        watch::event(session, if n < bytes.len() { Event::WrotePart } else { Event::Wrote });
        let taken: Vec<u8> = bytes.head.iter().chain(bytes.body).take(n).copied().collect();
        watch::tell(session, || format!("writes {}", short(&taken)));
        for &byte in &taken {
            let [_, a, b] = conn.wrote;
            conn.wrote = [a, b, byte];
            conn.owes &= conn.wrote != *b"NOP";
        }
        self.moves[session.0] += 1;
        self.send(id, Way::Up, Segment::Data(Event::Wrote, taken));
        Poll::Ready(Ok(n))
    }

    fn read(
        &mut self,
        id: ConnId,
        buf: &mut [u8],
        cx: &Context<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let conn = self.conns.get_mut(&id).expect("a connection that is held");
        let session = conn.session;
        let Some((kind, bytes)) = conn.rx.front() else {
            conn.reader = Some(cx.waker().clone());
            let Some(end) = conn.end else { return Poll::Pending };
            self.moves[session.0] += 1;
            watch::event(session, if end.is_ok() { Event::End } else { Event::ReadError });
            watch::tell(session, || format!("reads the end: {end:?}"));
            return Poll::Ready(end.map(|()| 0));
        };
        let most = self.random.between(1, conn.piece) as usize;
        let rest = &bytes[conn.read..];
        let n = rest.len().min(buf.len()).min(most);
        buf[..n].copy_from_slice(&rest[..n]);
        let whole = n == rest.len();
        let event = if whole || *kind == Event::Lie { *kind } else { Event::Part };
        watch::event(session, event);
        watch::tell(session, || format!("reads {event:?} {}", short(&buf[..n])));
        if whole {
            match kind {
                Event::Ok | Event::Refusal => conn.answers += 1,
                Event::Heartbeat => conn.owes = true,
                _ => {}
            }
            conn.rx.pop_front();
            conn.read = 0;
        } else {
            conn.read += n;
        }
        self.moves[session.0] += 1;
        Poll::Ready(Ok(n))
    }

    fn close(&mut self, id: ConnId, cx: &Context<'_>) -> Poll<Result<(), TransportError>> {
        let conn = self.conns.get_mut(&id).expect("a connection that is held");
        if let Some(Err(error)) = conn.end {
            return Poll::Ready(Err(error));
        }
        if conn.patient && conn.up.bytes > 0 {
            conn.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        self.moves[conn.session.0] += 1;
        Poll::Ready(Ok(()))
    }

    /// The client drops its end: after it closed it, or not.
    fn drop_client(&mut self, id: ConnId, closed: bool) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let session = conn.session;
        watch::event(session, Event::Closed);
        watch::tell(session, || if closed { "closes" } else { "aborts" }.into());
        if conn.clean
            && let Some(fault) = watch::fault(session)
        {
            panic!("gives up a healthy connection: {fault}");
        }
        conn.has_client = false;
        conn.rx.clear();
        if conn.lost || !conn.has_server {
            self.sweep(id);
        } else if closed {
            self.send(id, Way::Up, Segment::End);
        } else {
            // The reset may overtake what was written.
            let keep = self.random.below(conn.up.queue.len() as u64 + 1) as usize;
            conn.up.queue.truncate(keep);
            self.send(id, Way::Up, Segment::Reset);
        }
    }

    // What happens to all of it.

    fn fault(&mut self, what: &What) {
        let now = self.now;
        let until = |ms: u64| now + ms * 1000;
        let (at, ms) = match *what {
            What::Act(..) | What::Restart(..) => return,
            What::Clock(actor, jump) => {
                let clock = &mut self.clocks[actor];
                *clock = match jump {
                    Jump::By(ms) => clock.saturating_add(ms * 1000),
                    Jump::ToEdge(ms) => (u64::MAX - now).saturating_sub(ms * 1000),
                };
                let conns = self.conns.values_mut().filter(|conn| conn.session.0 == actor);
                conns.for_each(|conn| conn.clean = false);
                let mut alarms = std::mem::take(&mut self.alarms);
                alarms.retain(|session, (_, waker)| {
                    if session.0 == actor {
                        watch::event(*session, Event::ClockJump);
                        because(Cause::Application, || waker.wake_by_ref());
                    }
                    session.0 != actor
                });
                self.alarms = alarms;
                return;
            }
            What::Cut(actor, at, cut) => {
                let hit = self.conns.iter().filter(|(_, conn)| {
                    conn.session.0 == actor && conn.host == at && conn.has_client
                });
                for id in hit.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.cut(id, cut);
                }
                return;
            }
            What::Vandalize(at, dice) => {
                let host = &mut self.hosts[at];
                let what = host.server.vandalize(&mut Random::new(dice));
                watch::say(|| format!("an administrator deletes {what}"));
                return;
            }
            What::Crash(at, gone, ms) => {
                self.hosts[at].down = until(ms);
                self.hosts[at].gone = gone;
                let hit = self.conns.iter().filter(|(_, conn)| conn.host == at);
                for id in hit.map(|(id, _)| *id).collect::<Vec<_>>() {
                    let cut = if gone {
                        Cut::HalfOpen
                    } else if self.random.one_in(2) {
                        Cut::Reset
                    } else {
                        Cut::End
                    };
                    self.cut(id, cut);
                    self.server_gone(id);
                }
                (at, ms)
            }
            What::Freeze(at, ms) => {
                self.hosts[at].frozen = until(ms);
                (at, ms)
            }
            What::Dials(at, fault, ms) => {
                self.hosts[at].dials = (fault, until(ms));
                return;
            }
            What::Mode(at, mode, ms) => {
                self.hosts[at].mode = (mode, until(ms));
                self.hosts[at].server.set_exiting(mode == Mode::Exiting);
                (at, ms)
            }
            What::Slow(at, delay, ms) => {
                self.hosts[at].slow = (delay * 1000, until(ms));
                (at, ms + delay)
            }
            What::Squeeze(at, ms) => {
                self.hosts[at].squeezed = until(ms);
                for conn in self.conns.values_mut().filter(|conn| conn.host == at) {
                    conn.window = self.random.between(1, 64) as usize;
                }
                (at, ms)
            }
            What::Stall(at, up, ms) => {
                for conn in self.conns.values_mut().filter(|conn| conn.host == at) {
                    let way = if up { Way::Up } else { Way::Down };
                    conn.flow(way).stalled = until(ms);
                }
                (at, ms)
            }
        };
        self.hosts[at].faulty = self.hosts[at].faulty.max(until(ms));
        for conn in self.conns.values_mut().filter(|conn| conn.host == at) {
            conn.clean = false;
        }
    }

    fn cut(&mut self, id: ConnId, cut: Cut) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.clean = false;
        match cut {
            Cut::HalfOpen => {
                conn.lost = true;
                self.push(self.now + KEEPALIVE, Due::Keepalive(id));
            }
            Cut::End => {
                self.send(id, Way::Up, Segment::End);
                self.send(id, Way::Down, Segment::End);
            }
            Cut::Reset => {
                // Some of it arrives all the same, but no answer does.
                let keep = self.random.below(conn.up.queue.len() as u64 + 1) as usize;
                conn.up.queue.truncate(keep);
                if let Some((_, Segment::Data(_, bytes))) = conn.up.queue.back_mut() {
                    let keep = self.random.below(bytes.len() as u64 + 1) as usize;
                    bytes.truncate(keep);
                }
                let rest = std::mem::take(&mut conn.up.queue);
                conn.up.bytes = 0;
                // What was under way comes just before the reset, or is lost.
                for (_, segment) in std::mem::take(&mut conn.down.queue) {
                    if let Segment::Data(kind, bytes) = segment {
                        conn.rx.push_back((kind, bytes));
                    }
                }
                let purge = self.random.one_in(2);
                conn.reset(purge);
                wake(&mut conn.reader);
                wake(&mut conn.writer);
                let at = conn.host;
                for (_, segment) in rest {
                    if let Segment::Data(_, bytes) = segment
                        && self.conns.get(&id).is_some_and(|conn| conn.has_server)
                    {
                        self.serve(at, |server, out| server.receive(id, &bytes, out));
                    }
                }
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.down.queue.clear();
                }
                self.server_gone(id);
            }
        }
    }
}

/// Towards the server, or the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

impl Way {
    fn due(self, id: ConnId) -> Due {
        match self {
            Self::Up => Due::Up(id),
            Self::Down => Due::Down(id),
        }
    }
}

impl Conn {
    fn flow(&mut self, way: Way) -> &mut Flow {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }

    fn reset(&mut self, purge: bool) {
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

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        because(Cause::Io, || waker.wake());
    }
}

/// As much of some bytes as a trace needs.
fn short(bytes: &[u8]) -> String {
    const MAX: usize = 60;
    let text = bytes[..bytes.len().min(MAX)].escape_ascii();
    format!("{} bytes: {text}{}", bytes.len(), if bytes.len() > MAX { "..." } else { "" })
}

/// Whose clock it is.
#[derive(Clone, Copy)]
enum Whose {
    /// Of this session.
    Session(Session),
    /// Of a handle.
    Handle(usize),
}

/// [`Sleep`] in virtual time.
pub(crate) struct Clock {
    world: World,
    whose: Whose,
    /// The sessions that clones are for, in their order; without, clones are for handles.
    next: Option<Rc<RefCell<usize>>>,
}

impl Clock {
    /// Of an actor's one session.
    pub(crate) fn of_session(world: &World, session: Session) -> Self {
        Self { world: world.clone(), whose: Whose::Session(session), next: None }
    }

    /// Of an actor's application.
    pub(crate) fn of_handle(world: &World, actor: usize) -> Self {
        Self { world: world.clone(), whose: Whose::Handle(actor), next: None }
    }

    /// Of an actor's runner that clones it for each of its sessions; `next` is which comes next.
    pub(crate) fn of_runner(world: &World, actor: usize, next: Rc<RefCell<usize>>) -> Self {
        Self { world: world.clone(), whose: Whose::Handle(actor), next: Some(next) }
    }

    fn actor(&self) -> usize {
        match self.whose {
            Whose::Session((actor, _)) | Whose::Handle(actor) => actor,
        }
    }
}

impl Clone for Clock {
    fn clone(&self) -> Self {
        let actor = self.actor();
        let whose = match &self.next {
            // The first clone of all is the handle's.
            Some(next) => {
                let machine = *next.borrow();
                *next.borrow_mut() += 1;
                machine.checked_sub(1).map_or(Whose::Handle(actor), |m| Whose::Session((actor, m)))
            }
            None => Whose::Handle(actor),
        };
        Self { world: self.world.clone(), whose, next: None }
    }
}

impl Sleep for Clock {
    fn now(&self) -> Instant {
        watch::enter(match self.whose {
            Whose::Session(session) => Some(session),
            Whose::Handle(_) => None,
        });
        Instant::from_micros(self.world.clock(self.actor()))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let Whose::Session(session) = self.whose else { panic!("a handle does not sleep") };
        let inner = &mut *self.world.0.borrow_mut();
        let offset = inner.clocks[session.0];
        let real = at.as_micros().saturating_sub(offset);
        if real <= inner.now {
            return Poll::Ready(());
        }
        let alarm = inner.alarms.insert(session, (real, cx.waker().clone()));
        if alarm.is_none_or(|(at, _)| at != real) {
            inner.push(real, Due::Alarm(session, real));
        }
        Poll::Pending
    }
}

/// [`Dialer`] on the simulated network, for one session.
pub(crate) struct Dials(pub(crate) World, pub(crate) Session);

/// [`Transport`] on the simulated network.
pub(crate) struct Pipe {
    world: World,
    conn: ConnId,
    closed: bool,
}

impl Dialer for Dials {
    type Transport<'d> = Pipe;

    async fn dial(&mut self, address: &Address) -> Result<Pipe, DialError> {
        let Self(world, session) = self;
        let id = {
            let inner = &mut *world.0.borrow_mut();
            let host = inner.hosts.iter().position(|host| host.name == address.host());
            let id = inner.name();
            inner.moves[session.0] += 1;
            let lately = inner.dialed.entry(*session).or_default();
            lately.retain(|at| at + 1_000_000 > inner.now);
            lately.push_back(inner.now);
            assert!(lately.len() <= DIALS_MAX, "dials without end");
            let dial = Dial { session: *session, host, waker: None, result: None };
            inner.dials.insert(id, dial);
            let delay = inner.random.between(100, DELAY_MAX);
            inner.push(inner.now + delay, Due::Dial(id));
            id
        };
        watch::tell(*session, || format!("dials {address}"));
        /// Forgets the dial, however it ends.
        struct Guard(World, u64);
        impl Drop for Guard {
            fn drop(&mut self) {
                let inner = &mut *self.0.0.borrow_mut();
                let dial = inner.dials.remove(&self.1);
                if let Some(Ok(conn)) = dial.and_then(|dial| dial.result) {
                    inner.drop_client(conn, false);
                }
            }
        }
        let guard = Guard(world.clone(), id);
        let result = std::future::poll_fn(|cx| {
            let inner = &mut *guard.0.0.borrow_mut();
            let dial = inner.dials.get_mut(&id).expect("the dial");
            match dial.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    dial.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        let session = *session;
        world.0.borrow_mut().moves[session.0] += 1;
        watch::event(session, if result.is_ok() { Event::Up } else { Event::DialFailed });
        result.map(|conn| Pipe { world: world.clone(), conn, closed: false })
    }
}

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.world.0.borrow_mut().read(self.conn, buf, cx)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        assert!(!self.closed, "written to after it was closed");
        self.world.0.borrow_mut().write(self.conn, bytes, cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let closed = self.world.0.borrow_mut().close(self.conn, cx);
        self.closed = matches!(closed, Poll::Ready(Ok(())));
        closed
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.world.0.borrow_mut().drop_client(self.conn, self.closed);
    }
}
