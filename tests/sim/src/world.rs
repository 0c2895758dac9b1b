//! Virtual time and the network: hosts, connections, dials, alarms, and all that can happen to
//! them.
//!
//! One queue of what is due moves the time; nothing else does. A connection is two flows of
//! segments, each with its own delays, so connections overtake each other and no flow does itself.

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
pub(crate) use port::{Listens, Port};
use table::Connections;

/// When the real one's kernel notices that a client is gone: Go's keepalive.
const KEEPALIVE: u64 = 150_000_000;

/// How long a segment takes at most where nothing is wrong, in microseconds.
pub(crate) const DELAY_MAX: u64 = 50_000;

/// How many bytes may be under way to a server: more than an outbox holds.
const WINDOW: usize = 6000;

/// A session that dials more often than this within a second hammers.
const DIALS_MAX: usize = 200;

/// So often within a minute a publisher, or a registration, may come back to a server that closes its
/// connections before it has done anything. Without restarts it is nine times.
const TURNED_AWAY_MAX: usize = 30;

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
    /// The server has all that a client said, and the client hears of that.
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
    /// When each session dialed lately.
    dialed: BTreeMap<Session, VecDeque<u64>>,
    /// When each session lately had a connection to each host that was closed before it was of use.
    turned_away: BTreeMap<(Session, usize), VecDeque<u64>>,
    /// How far each actor's clock is ahead.
    clocks: Vec<u64>,
    /// How often each actor moved something.
    moves: Vec<u64>,
    named: u64,
    /// Sessions that gave up a connection with which nothing was wrong.
    given_up: Vec<Session>,
    /// When a clock jumped last.
    disturbed: u64,
    seen: Vec<(Session, ConnId, Seen)>,
    /// Some connection's client may have a heartbeat to answer.
    owing: bool,
}

struct Host {
    name: String,
    server: Box<dyn Server>,
    /// How many commands a client may send ahead of their answers.
    unanswered_max: u32,
    /// The actor whose process it is, if it is one.
    owner: Option<usize>,
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
    rx: VecDeque<(Event, Chunk)>,
    read: usize,
    /// What the client reads after that.
    end: Option<Result<(), TransportError>>,
    /// How much may be under way to the server, and what is taken at once.
    window: usize,
    piece: u64,
    /// Closing waits until everything has arrived, and the client has heard of that.
    patient: bool,
    /// The client has ended its stream; all of it is acknowledged.
    ended: bool,
    acknowledged: bool,
    has_server: bool,
    has_client: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// The client has read a heartbeat and not begun to answer it; the last bytes that it wrote.
    owes: bool,
    wrote: [u8; 3],
    /// The client has read a lie: what comes may be a part of it.
    lied_to: bool,
    /// It was promised 16 KiB, which a client may wait for.
    promised: bool,
    /// Commands that the server understood, answers that the client has read.
    commands: u32,
    answers: u32,
}

#[derive(Default)]
struct Flow {
    queue: VecDeque<(u64, Segment)>,
    bytes: usize,
    last: u64,
    /// For when the last arrival is in the queue: what arrives together is one.
    due: u64,
    stalled: u64,
}

enum Segment {
    Data(Event, Chunk),
    End,
    Reset,
}

/// Some bytes; so few of them as most writes take are no allocation.
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

    /// A host that dials reach by its name, and how many commands its clients may send ahead of their
    /// answers.
    pub(crate) fn add_host(&self, name: String, server: Box<dyn Server>, unanswered_max: u32) {
        self.add(name, server, unanswered_max, None);
    }

    /// A host that is an actor's process.
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

    /// What servers understood since this was last asked.
    pub(crate) fn take_seen(&self) -> Vec<(Session, ConnId, Seen)> {
        std::mem::take(&mut self.0.borrow_mut().seen)
    }

    /// Whether [`Self::take_seen`] has something.
    pub(crate) fn has_seen(&self) -> bool {
        !self.0.borrow().seen.is_empty()
    }

    pub(crate) fn now(&self) -> u64 {
        self.0.borrow().now
    }

    /// So when nothing more moves: control bytes wait for nothing but their transport.
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
        self.0.borrow_mut().heal();
    }

    /// Somebody publishes a message to a host, if it is up.
    pub(crate) fn feed(&self, host: usize, topic: &str, body: &[u8]) -> bool {
        let inner = &mut *self.0.borrow_mut();
        let up = inner.hosts[host].down <= inner.now;
        if up {
            inner.serve(host, |server, out| server.feed(topic, body, out));
        }
        up
    }

    /// What a host has of a topic, and nobody has finished.
    pub(crate) fn unfinished(&self, host: usize, topic: &str) -> Vec<Vec<u8>> {
        self.0.borrow().hosts[host].server.unfinished(topic)
    }

    /// Whether what a session writes is taken.
    pub(crate) fn is_free(&self, session: Session) -> bool {
        let inner = self.0.borrow();
        let mut conns = inner.conns.values().filter(|it| it.session == session && it.has_client);
        conns.all(|conn| conn.end.is_none() && conn.writer.is_none())
    }

    /// The sessions of an actor that gave up a connection with which nothing was wrong.
    pub(crate) fn take_given_up(&self, actor: usize) -> Vec<Session> {
        let inner = &mut *self.0.borrow_mut();
        inner.given_up.extract_if(.., |session| session.0 == actor).collect()
    }

    /// Whether nothing was wrong with anything for so long, in microseconds.
    pub(crate) fn is_calm(&self, long: u64) -> bool {
        let inner = self.0.borrow();
        let faulty = inner.hosts.iter().map(|host| host.faulty.max(host.down)).max();
        faulty.unwrap_or(0).max(inner.disturbed) + long < inner.now
    }

    /// All that a host has listed for an actor's process, and through how many connections.
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
        // Byte by byte is what takes a simulation most of its time, and over HTTP it is always the
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
            // At the end of all time there is no later.
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

    /// A connection that came up is of no use.
    fn turn_away(&mut self, session: Session, at: usize) {
        let now = self.now;
        let lately = self.turned_away.entry((session, at)).or_default();
        lately.retain(|then| then + 60_000_000 > now);
        lately.push_back(now);
        let backs_off = lately.len() <= TURNED_AWAY_MAX || !watch::backs_off(session);
        assert!(backs_off, "dials who turns it away");
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
            let Some(conn) = self.conns.get_mut(id) else { continue };
            match &seen {
                Seen::Opened
                | Seen::Stored { .. }
                | Seen::Ready { .. }
                | Seen::Finished { .. }
                | Seen::TakenBack { .. }
                | Seen::Refused { .. } => {}
                // Nobody's actor looks at these.
                Seen::Requeued { .. } | Seen::Alive => continue,
                Seen::Overdue(what) => {
                    // A visitor was led here, and owes nobody anything.
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

    /// A server says something, in its way.
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
            self.say(id, kind.into(), bytes);
            return;
        }
        // One who leaves out an answer and then goes on could not be told from one who is late.
        conn.mute = matches!(mode, Mode::Mute | Mode::Wrong);
        let mut random = self.random.fork();
        watch::tell(conn.session, || format!("hears of a server that is {mode:?}"));
        match mode {
            Mode::Exiting | Mode::Shut => self.say(id, kind.into(), bytes),
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
                let sizes = [0xffff_ffff, 0x7fff_ffff, 0x8000_0000, 0x4005, 0x4854_5450];
                let size: u32 = random.pick(&sizes);
                huge[..4].copy_from_slice(&size.to_be_bytes());
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.promised |= size == 0x4005;
                }
                self.say(id, Event::Lie, huge);
            }
            Mode::Trickle => {
                let last = bytes.len() - 1;
                for (n, byte) in bytes.into_iter().enumerate() {
                    let conn = self.conns.get_mut(id).expect("the connection");
                    conn.down.last = conn.down.last.max(self.now) + 1_000_000;
                    self.say(id, if n == last { kind.into() } else { Event::Part }, vec![byte]);
                }
            }
            Mode::Hasty => {
                if kind == Kind::Identified {
                    let (session, at) = (conn.session, conn.host);
                    self.turn_away(session, at);
                }
                self.say(id, kind.into(), bytes);
                self.server_closes(id);
            }
        }
    }

    /// Bytes leave a server.
    fn say(&mut self, id: ConnId, kind: Event, bytes: Vec<u8>) {
        self.send(id, Way::Down, Segment::Data(kind, Chunk::Long(bytes)));
    }

    fn server_closes(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get(id) else { return };
        // It closes with a reset if there is something that it has not read; that may overtake
        // what it said before.
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

    /// The server's end of a connection is no more.
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
