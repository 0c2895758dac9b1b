//! Virtual time and the network: hosts, connections, dials, alarms, and every fault that can happen
//! to them.
//!
//! One queue of due events advances the time; nothing else does. A connection is two flows of
//! segments with delays of their own: connections overtake each other, segments of a flow do not.

mod faults;
mod link;
mod platform;
mod port;
mod table;

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::ops::Deref;
use std::rc::Rc;
use std::task::Waker;

use nanonsq_core::session::{DialError, TransportError};
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Kind, Out, Reply, Seen, Server};

use crate::exec::{Cause, because};
use crate::schedule::{DialFault, Mode, What};
use crate::session_table::SessionTable;
use crate::watch::{self, Event, Session};
use link::Way;
pub(crate) use platform::{Clock, Dials, HTTP_PORT, Role};
pub(crate) use port::{Listens, Port, Socket};
use table::Connections;

/// When the kernel of a real server notices that a client is gone: Go's keepalive.
const KEEPALIVE: u64 = 150_000_000;

/// The longest delay of a segment without faults, in microseconds.
pub(crate) const DELAY_MAX: u64 = 50_000;

/// The most bytes under way to a server: more than an outbox holds.
const WINDOW: usize = 6000;

/// The most dials of a session per second.
const DIALS_MAX: usize = 200;

/// The most connections per minute that a publisher or a registration may open to one server that
/// closes each before it is of use. Without restarts nine are possible.
const TURNED_AWAY_MAX: usize = 30;

/// The network as actors see it.
#[derive(Clone)]
pub(crate) struct World(Rc<RefCell<Inner>>);

/// An event in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Due {
    /// A step of the schedule.
    Step(usize),
    /// An actor's process starts.
    Start(usize),
    /// The faults end; later, everything has to work; the end of the world.
    Calm,
    Settled,
    End,
    /// Segments of a connection arrive: at the server, at the client.
    Up(ConnId),
    Down(ConnId),
    Dial(u64),
    Alarm(Session, u64),
    Tick(usize),
    Keepalive(ConnId),
    /// The client learns that the server has received all that it wrote.
    Acknowledged(ConnId),
}

struct Inner {
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Due)>>,
    pushed: u64,
    random: Random,
    hosts: Vec<Host>,
    conns: Connections,
    dials: BTreeMap<u64, Dial>,
    alarms: SessionTable<(u64, Waker)>,
    /// The times of each session's latest dials.
    dialed: BTreeMap<Session, VecDeque<u64>>,
    /// The times of each session's latest connections to each host that were closed before use.
    turned_away: BTreeMap<(Session, usize), VecDeque<u64>>,
    /// The offset of each actor's clock, in microseconds.
    clocks: Vec<u64>,
    /// The number of each actor's reads, writes, dials, accepts and closes.
    moves: Vec<u64>,
    named: u64,
    /// Sessions that gave up a healthy connection.
    given_up: Vec<Session>,
    /// The time of the latest clock jump.
    disturbed: u64,
    seen: Vec<(Session, ConnId, Seen)>,
    /// True if some client may have an unanswered heartbeat.
    owing: bool,
}

struct Host {
    name: String,
    server: Box<dyn Server>,
    /// The most commands that a client may send before their answers have come.
    unanswered_max: u32,
    /// The actor whose process this host is, if any.
    owner: Option<usize>,
    tick_at: u64,
    /// The end of each fault of this host, and the fault.
    faulty: u64,
    down: u64,
    /// While down: true if it does not respond at all, false if it refuses dials.
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
    /// The dial led to another host than was meant.
    misled: bool,
    /// The connection never had a fault.
    clean: bool,
    /// The server sends nothing more.
    mute: bool,
    /// Half open: nothing passes any more, and neither side notices.
    lost: bool,
    up: Flow,
    down: Flow,
    /// The data that arrived for the client, and how much of the first chunk was read.
    rx: VecDeque<(Event, Chunk)>,
    read: usize,
    /// The end of the stream, read after the data.
    end: Option<Result<(), TransportError>>,
    /// The most bytes under way to the server, and the most that one call moves.
    window: usize,
    piece: u64,
    /// Closing waits until the client's kernel knows that everything has arrived.
    patient: bool,
    /// The client has closed its stream; all of it was acknowledged.
    ended: bool,
    acknowledged: bool,
    has_server: bool,
    has_client: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The client has read a heartbeat and not begun to answer it; the last bytes that it wrote.
    owes: bool,
    wrote: [u8; 3],
    /// The client has read a wrong response: later bytes may be taken as part of it.
    lied_to: bool,
    /// The server announced 16 KiB, for which a client may wait.
    promised: bool,
    /// The number of commands that the server answered, and of those answers that the client read.
    commands: u32,
    answers: u32,
}

#[derive(Default)]
struct Flow {
    queue: VecDeque<(u64, Segment)>,
    bytes: usize,
    last: u64,
    /// The time for which the latest arrival is queued: segments that arrive together need only
    /// one.
    due: u64,
    stalled: u64,
}

enum Segment {
    Data(Event, Chunk),
    End,
    Reset,
}

/// Some bytes; short ones, as of most writes, need no allocation.
enum Chunk {
    Short(u8, [u8; 22]),
    Long(Vec<u8>),
}

impl Chunk {
    fn new(bytes: &[u8]) -> Self {
        let mut short = [0; 22];
        match short.get_mut(..bytes.len()) {
            Some(room) => {
                room.copy_from_slice(bytes);
                Self::Short(bytes.len() as u8, short)
            }
            None => Self::Long(bytes.to_vec()),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Short(all, _) => *all = len.min((*all).into()) as u8,
            Self::Long(bytes) => bytes.truncate(len),
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Short(len, bytes) => &bytes[..usize::from(*len)],
            Self::Long(bytes) => bytes,
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64, actors: usize, clock: u64) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            now: 0,
            queue: BinaryHeap::new(),
            pushed: 0,
            random: Random::new(seed),
            hosts: Vec::new(),
            conns: Connections::default(),
            dials: BTreeMap::new(),
            alarms: SessionTable::default(),
            dialed: BTreeMap::new(),
            turned_away: BTreeMap::new(),
            clocks: vec![clock; actors],
            moves: vec![0; actors],
            named: 0,
            given_up: Vec::new(),
            disturbed: 0,
            seen: Vec::new(),
            owing: false,
        })))
    }

    /// Adds a host that dials reach by its name; its clients may send `unanswered_max` commands
    /// before their answers have come.
    pub(crate) fn add_host(&self, name: String, server: Box<dyn Server>, unanswered_max: u32) {
        self.add(name, server, unanswered_max, None);
    }

    /// Adds a host that is an actor's process.
    pub(crate) fn add_port(&self, name: String, owner: usize) -> Port {
        let port = Port::default();
        self.add(name, Box::new(port.clone()), u32::MAX, Some(owner));
        port
    }

    fn add(
        &self,
        name: String,
        server: Box<dyn Server>,
        unanswered_max: u32,
        owner: Option<usize>,
    ) {
        self.0.borrow_mut().hosts.push(Host {
            name,
            server,
            unanswered_max,
            owner,
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

    /// Advances the time to the next due event and returns it; events of the network are handled.
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
                if inner.alarms.get(session).is_some_and(|alarm| alarm.0 == at) {
                    watch::event(session, Event::Deadline);
                    let (_, waker) = inner.alarms.remove(session).expect("the alarm");
                    because(Cause::Alarm, || waker.wake());
                }
            }
            Due::Tick(host) => inner.tick(host),
            Due::Keepalive(conn) => inner.server_gone(conn),
            Due::Acknowledged(conn) => inner.acknowledged(conn),
        }
        Some((at, due))
    }

    /// Returns what servers parsed since the last call.
    pub(crate) fn take_seen(&self) -> Vec<(Session, ConnId, Seen)> {
        std::mem::take(&mut self.0.borrow_mut().seen)
    }

    /// Returns whether [`Self::take_seen`] has something.
    pub(crate) fn has_seen(&self) -> bool {
        !self.0.borrow().seen.is_empty()
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.borrow().now
    }

    /// Checks, when all futures are pending, that heartbeats are answered unless the transport is
    /// full.
    pub(crate) fn check_quiet(&self) {
        let inner = &mut *self.0.borrow_mut();
        if !std::mem::take(&mut inner.owing) {
            return;
        }
        for conn in inner.conns.values().filter(|conn| conn.owes && conn.has_client) {
            inner.owing = true;
            let can = conn.end.is_none() && conn.writer.is_none();
            let ready = ["Ready", "Draining", "Leaving"];
            let ready = ready.iter().any(|state| watch::is_in(conn.session, state));
            assert!(!can || !ready, "a heartbeat was read and not answered");
        }
    }

    /// Returns how often an actor moved bytes, dialed, accepted or closed.
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

    /// Ends all faults for good; what is already lost stays lost.
    pub(crate) fn heal(&self) {
        self.0.borrow_mut().heal();
    }

    /// Publishes a message at a host; returns false if the host is down.
    pub(crate) fn feed(&self, host: usize, topic: &str, body: &[u8]) -> bool {
        let inner = &mut *self.0.borrow_mut();
        let up = inner.hosts[host].down <= inner.now;
        if up {
            inner.serve(host, |server, out| server.feed(topic, body, out));
        }
        up
    }

    /// Returns the bodies of a topic at a host that are not finished.
    pub(crate) fn unfinished(&self, host: usize, topic: &str) -> Vec<Vec<u8>> {
        self.0.borrow().hosts[host].server.unfinished(topic)
    }

    /// Returns whether the session's connections accept bytes.
    pub(crate) fn is_free(&self, session: Session) -> bool {
        let inner = self.0.borrow();
        let mut conns = inner.conns.values().filter(|it| it.session == session && it.has_client);
        conns.all(|conn| conn.end.is_none() && conn.writer.is_none())
    }

    /// Returns the actor's sessions that gave up a healthy connection since the last call.
    pub(crate) fn take_given_up(&self, actor: usize) -> Vec<Session> {
        let inner = &mut *self.0.borrow_mut();
        inner.given_up.extract_if(.., |session| session.0 == actor).collect()
    }

    /// Returns whether there were no faults for `long` microseconds.
    pub(crate) fn is_calm(&self, long: u64) -> bool {
        let inner = self.0.borrow();
        let faulty = inner.hosts.iter().map(|host| host.faulty.max(host.down)).max();
        faulty.unwrap_or(0).max(inner.disturbed) + long < inner.now
    }

    /// Returns all that a host lists for an actor's process, and the number of connections with
    /// that host.
    pub(crate) fn listing(&self, host: &str, actor: usize) -> (Vec<String>, usize) {
        let inner = self.0.borrow();
        let conns = inner.conns.iter().filter(|(_, conn)| {
            conn.session.0 == actor && inner.hosts[conn.host].name == host && conn.has_server
        });
        let lists: Vec<_> =
            conns.filter_map(|(id, conn)| inner.hosts[conn.host].server.listing(id)).collect();
        let mut names: Vec<_> = lists.iter().flatten().cloned().collect();
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
        let is_up = |at: usize| self.hosts[at].server.is_up();
        let result =
            if target.is_some_and(is_up) { result } else { result.and(Err(DialError::Refused)) };
        let result =
            result.map(|()| self.connect(session, target.expect("it was reached"), misled));
        watch::trace_session(session, || match result {
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
        // Moving single bytes takes most of a simulation's time, and HTTP always carries the
        // same bytes.
        let asked = ["web", "stat"].iter().any(|kind| host.name.starts_with(kind));
        let piece = match random.below(if asked { 80 } else { 12 }) {
            0 => 1,
            1 => 7,
            2..5 => 100,
            _ => 10_000,
        };
        let conn = Conn {
            session,
            host: at,
            misled,
            // Near the largest instant deadlines cannot be later.
            clean: !misled
                && host.faulty <= self.now
                && [Some(session.0), host.owner]
                    .into_iter()
                    .flatten()
                    .all(|actor| self.clocks[actor] < 1 << 63),
            mute: false,
            lost: false,
            up: Flow::default(),
            down: Flow::default(),
            rx: VecDeque::new(),
            read: 0,
            end: None,
            window: if squeezed { random.between(1, 64) as usize } else { WINDOW },
            piece,
            patient: random.one_in(2),
            ended: false,
            acknowledged: false,
            has_server: true,
            has_client: true,
            reader: None,
            writer: None,
            owes: false,
            wrote: [0; 3],
            lied_to: false,
            promised: false,
            commands: 0,
            answers: 0,
        };
        self.conns.insert(id, conn);
        self.seen.push((session, id, Seen::Opened));
        self.serve(at, |server, out| server.open(id, out));
        let (mode, until) = self.hosts[at].mode;
        if mode == Mode::Shut && until > self.now {
            self.turn_away(session, at);
            self.server_closes(id);
        }
        id
    }

    /// Counts a connection that came up and was closed before it was of use.
    fn turn_away(&mut self, session: Session, at: usize) {
        let now = self.now;
        let lately = self.turned_away.entry((session, at)).or_default();
        lately.retain(|then| then + 60_000_000 > now);
        lately.push_back(now);
        let backs_off = lately.len() <= TURNED_AWAY_MAX || !watch::backs_off(session);
        assert!(backs_off, "dials too often a server that closes its connections at once");
    }

    // Servers.

    /// Calls a server, then carries out its replies.
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
            let Some(conn) = self.conns.get_mut(id) else { continue };
            match &seen {
                Seen::Opened
                | Seen::Stored { .. }
                | Seen::Ready { .. }
                | Seen::Finished { .. }
                | Seen::TakenBack { .. }
                | Seen::Refused { .. } => {}
                // No actor checks these.
                Seen::Requeued { .. } | Seen::Alive => continue,
                Seen::Overdue(what) => {
                    // A visitor may have been led here, and need not answer anything.
                    let owes = watch::knows(conn.session) && conn.clean && !conn.lost;
                    assert!(!owes, "a healthy client owes {what}");
                    continue;
                }
            }
            self.seen.push((conn.session, id, seen));
        }
        for (id, reply) in out.replies {
            if matches!(reply, Reply::Say(Kind::Ok | Kind::Refusal, _))
                && let Some(conn) = self.conns.get_mut(id)
            {
                conn.commands += 1;
                let most = self.hosts[at].unanswered_max;
                let ahead = conn.commands - conn.answers > most && watch::knows(conn.session);
                assert!(!ahead, "more than {most} commands ahead");
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

    /// Sends a server's response, altered by the server's mode.
    fn reply(&mut self, id: ConnId, kind: Kind, bytes: Vec<u8>) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        let host = &self.hosts[conn.host];
        if host.faulty > self.now {
            conn.clean = false;
        }
        let (mode, until) = host.mode;
        if conn.mute {
            return;
        }
        if until <= self.now {
            self.send_down(id, kind.into(), bytes);
            return;
        }
        // A server that leaves out a response and continues would look like a slow one.
        conn.mute = matches!(mode, Mode::Mute | Mode::Wrong);
        let mut random = self.random.fork();
        watch::trace_session(conn.session, || format!("is answered by a server that is {mode:?}"));
        match mode {
            Mode::Exiting | Mode::Shut => self.send_down(id, kind.into(), bytes),
            Mode::Mute => {}
            Mode::Garbage => {
                let mut noise: Vec<u8> =
                    (0..random.between(1, 40)).map(|_| random.below(256) as u8).collect();
                noise[0] |= 0x80;
                self.send_down(id, Event::Lie, noise);
            }
            Mode::Wrong => {
                let lie = host.server.lie(&mut random);
                self.send_down(id, Event::Lie, lie);
            }
            Mode::Huge => {
                let mut huge = bytes;
                let sizes = [0xffff_ffff, 0x7fff_ffff, 0x8000_0000, 0x4005, 0x4854_5450];
                let size: u32 = random.pick(&sizes);
                huge[..4].copy_from_slice(&size.to_be_bytes());
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.promised |= size == 0x4005;
                }
                self.send_down(id, Event::Lie, huge);
            }
            Mode::Trickle => {
                let last = bytes.len() - 1;
                for (n, byte) in bytes.into_iter().enumerate() {
                    let conn = self.conns.get_mut(id).expect("the connection");
                    conn.down.last = conn.down.last.max(self.now) + 1_000_000;
                    self.send_down(
                        id,
                        if n == last { kind.into() } else { Event::Part },
                        vec![byte],
                    );
                }
            }
            Mode::Hasty => {
                if kind == Kind::Identified {
                    let (session, at) = (conn.session, conn.host);
                    self.turn_away(session, at);
                }
                self.send_down(id, kind.into(), bytes);
                self.server_closes(id);
            }
        }
    }

    /// Sends bytes to the client.
    fn send_down(&mut self, id: ConnId, kind: Event, bytes: Vec<u8>) {
        self.send(id, Way::Down, Segment::Data(kind, Chunk::Long(bytes)));
    }

    fn server_closes(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        // Unread bytes make the kernel close with a reset, which may overtake earlier
        // responses.
        let unread = conn.up.bytes > 0;
        if unread && self.random.one_in(2) {
            let conn = self.conns.get_mut(id).expect("the connection");
            let keep = self.random.below(conn.down.queue.len() as u64 + 1) as usize;
            conn.down.queue.truncate(keep);
            self.send(id, Way::Down, Segment::Reset);
        } else {
            self.send(id, Way::Down, Segment::End);
        }
        self.server_gone(id);
    }

    /// Removes the server's end of a connection.
    fn server_gone(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        if std::mem::take(&mut conn.has_server) {
            self.hosts[conn.host].server.closed(id);
        }
        self.sweep(id);
    }

    fn sweep(&mut self, id: ConnId) {
        if self.conns.get(id).is_some_and(|conn| !conn.has_client && !conn.has_server) {
            self.conns.remove(id);
        }
    }
}
