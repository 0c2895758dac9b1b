//! The runner of a server: two ports, each with its accept slots and a spare one.

use core::future::{Future, pending, poll_fn};
use core::marker::PhantomData;
use core::ops::Range;
use core::task::{Poll, Waker};

use embassy_futures::select::{Either, select};
use embassy_sync::blocking_mutex::raw::RawMutex;

use super::accept::{Buffers, SPARE, Sessions, serve_port};
use super::connection::SessionAccess;
use super::shared::{Shared, State};
use super::{Listener, Port, Sleep};
use crate::session::Session;
use crate::session::reject::{Protocol, Reject};

/// The ports of a server.
#[derive(Debug, Clone, Copy)]
pub struct Ports<L, const CLIENTS: usize, const HTTP: usize> {
    /// The port of NSQ's own protocol.
    pub tcp: Port<L, CLIENTS>,
    /// The HTTP port.
    pub http: Port<L, HTTP>,
}

/// The state machine of a server; its sessions are views of the state machine.
pub(super) trait Engine {
    /// The protocol of the TCP port.
    const PROTOCOL: Protocol;

    /// See [`State::version`].
    fn version(&self) -> u32;

    /// Returns how many sessions the TCP port may have at a time.
    fn clients(&self) -> usize;

    /// Returns whether no messages are left. Tasks wait for changes of this.
    fn is_idle(&self) -> bool;

    /// Returns the sessions of the TCP port that may be connected.
    fn clients_in_use(&self) -> Range<usize> {
        0..self.clients()
    }

    /// Returns whether other sessions may have created work for a session of the TCP port, provided
    /// that it is connected.
    fn has_work_for_client(&self, index: usize) -> bool;

    /// Records that a caller at the TCP port was rejected.
    fn turned_away(&mut self) {}

    /// Runs `f` on a session of the TCP port, if that index exists.
    fn with_client(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session));

    /// Runs `f` on a session of the HTTP port, if that index exists.
    fn with_http(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session));
}

/// An engine with the sessions that reject callers and the progress of stopping.
#[derive(Debug)]
pub(super) struct Served<E> {
    pub(super) engine: E,
    tcp_reject: Reject,
    http_reject: Reject,
    stop: Stop,
}

/// The progress of stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    No,
    Asked,
    Done,
}

impl<E: Engine> Served<E> {
    pub(super) const fn new(engine: E) -> Self {
        let (tcp_reject, http_reject) = (Reject::new(E::PROTOCOL), Reject::new(Protocol::Http));
        Self { engine, tcp_reject, http_reject, stop: Stop::No }
    }

    /// Returns the number of callers rejected at both ports.
    pub(super) const fn refused(&self) -> u32 {
        self.tcp_reject.refused().saturating_add(self.http_reject.refused())
    }

    /// Returns the number of callers rejected at the HTTP port.
    pub(super) const fn refused_http(&self) -> u32 {
        self.http_reject.refused()
    }
}

impl<E: Engine> State for Served<E> {
    type Version = (u32, bool, u32, Stop);

    fn version(&self) -> Self::Version {
        (self.engine.version(), self.engine.is_idle(), self.refused(), self.stop)
    }
}

/// Runs the function on a session of one port, if that index exists.
type WithSession<E> = fn(&mut Served<E>, usize, &mut dyn FnMut(&mut dyn Session));

impl<E: Engine> Served<E> {
    fn with_client(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        if index != SPARE {
            return self.engine.with_client(index, f);
        }
        let before = self.tcp_reject.refused();
        f(&mut self.tcp_reject);
        if before != self.tcp_reject.refused() {
            self.engine.turned_away();
        }
    }

    fn with_http(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        match index {
            SPARE => f(&mut self.http_reject),
            _ => self.engine.with_http(index, f),
        }
    }
}

/// Selects how the sessions of an HTTP port with `SLOTS` of them are accessed.
struct HttpPort<E, const SLOTS: usize>(PhantomData<E>);

impl<E: Engine, const SLOTS: usize> HttpPort<E, SLOTS> {
    /// A constant, so that a server without HTTP connections does not link the HTTP sessions.
    const WITH: WithSession<E> = if SLOTS > 0 { Served::with_http } else { |_, _, _| () };
}

/// The sessions of a server's TCP port, or of its HTTP port.
struct PortSessions<'s, M: RawMutex, E: Engine> {
    shared: &'s SharedServer<M, E>,
    with: WithSession<E>,
    http: bool,
    slots: usize,
}

impl<'s, M: RawMutex, E: Engine> Sessions for PortSessions<'s, M, E> {
    type Access = ServerSession<'s, M, E>;
    type Seen = Option<<Served<E> as State>::Version>;

    fn access(&self, index: usize) -> Self::Access {
        ServerSession { shared: self.shared, with: self.with, index }
    }

    fn count(&self) -> usize {
        self.slots
    }

    fn poll_changed(&self, task: &Waker, seen: &mut Self::Seen, mark: &mut dyn FnMut(usize)) {
        self.shared.register_runner(task);
        self.shared.read(|served| {
            let version = Some(served.version());
            if *seen != version {
                *seen = version;
                if self.http {
                    return (0..self.slots).for_each(mark);
                }
                let engine = &served.engine;
                let marked = |index: &usize| engine.has_work_for_client(*index);
                engine.clients_in_use().filter(marked).for_each(mark);
            }
        });
    }
}

/// Access to one session of a server. The port registers the waker.
struct ServerSession<'s, M: RawMutex, E> {
    shared: &'s SharedServer<M, E>,
    with: WithSession<E>,
    index: usize,
}

impl<M: RawMutex, E: Engine> SessionAccess for ServerSession<'_, M, E> {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        self.shared.drive(|served| {
            (self.with)(served, self.index, f);
            // One client's command may produce output for another.
            true
        });
    }

    fn register(&mut self, _: &Waker) {}
}

/// A server behind a lock.
pub(super) type SharedServer<M, E> = Shared<M, Served<E>>;

/// Asks the runner to stop, and waits until it has stopped.
pub(super) async fn stop<M: RawMutex, E: Engine>(shared: &SharedServer<M, E>) {
    shared.update(|served| {
        if served.stop == Stop::No {
            served.stop = Stop::Asked;
        }
    });
    poll_fn(|cx| {
        let done = |served: &mut Served<E>| (served.stop == Stop::Done).then_some(());
        shared.poll_wait(cx.waker(), done)
    })
    .await;
}

/// Serves both ports until `leave` ends, then closes all connections.
pub(super) async fn run_ports<
    M,
    E,
    L,
    S,
    F,
    const CLIENTS: usize,
    const HTTP: usize,
    const RX: usize,
>(
    shared: &SharedServer<M, E>,
    ports: &mut Ports<L, CLIENTS, HTTP>,
    rx: (&mut Buffers<CLIENTS, RX>, &mut Buffers<HTTP, RX>),
    sleep: &S,
    leave: F,
) where
    M: RawMutex,
    E: Engine,
    L: Listener,
    S: Sleep,
    F: Future<Output = ()>,
{
    if shared.read(|served| served.stop == Stop::Done) == Some(true) {
        return;
    }
    let slots = shared.read(|served| served.engine.clients()).unwrap_or(CLIENTS);
    let tcp = &PortSessions { shared, with: Served::with_client, http: false, slots };
    let with = HttpPort::<E, HTTP>::WITH;
    let http = &PortSessions { shared, with, http: true, slots: HTTP };
    let lines = select(serve_port(&mut ports.tcp, tcp, sleep, rx.0), async {
        if HTTP == 0 {
            return pending().await;
        }
        serve_port(&mut ports.http, http, sleep, rx.1).await
    });
    match select(lines, leave).await {
        Either::First(Either::First(never) | Either::Second(never)) => never,
        Either::Second(()) => {}
    }
    shared.update(|served| served.stop = Stop::Done);
}

/// Waits until the runner is asked to stop.
pub(super) async fn stop_asked<M: RawMutex, E: Engine>(shared: &SharedServer<M, E>) {
    poll_fn(|cx| {
        shared.register_runner(cx.waker());
        match shared.read(|served| served.stop) {
            Some(Stop::Asked | Stop::Done) => Poll::Ready(()),
            Some(Stop::No) | None => Poll::Pending,
        }
    })
    .await;
}
