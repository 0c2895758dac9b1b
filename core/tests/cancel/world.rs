//! Tasks, a clock, and a network of model servers.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Accept, AcceptError, AcceptSlot, Dialer, Sleep, Transport};
use nanonsq_core::name::TopicName;
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;
use nanonsq_models::Wakes;

use crate::servers::Server;

/// How often each call of the transport is pending, and how many bytes it then takes at most.
const TRANSPORTS: [(usize, usize); 4] = [(0, 1000), (1, 1000), (3, 7), (0, 3)];

/// A future as a task: polled once, and then only after it was woken.
pub(crate) struct Task<'f, T> {
    pub(crate) future: Pin<&'f mut dyn Future<Output = T>>,
    pub(crate) waker: (Arc<Wakes>, Waker),
    pub(crate) done: Option<T>,
}

impl<'f, T> Task<'f, T> {
    pub(crate) fn new(future: Pin<&'f mut dyn Future<Output = T>>) -> Self {
        Self { future, waker: Wakes::woken(), done: None }
    }

    /// Polls the future if it was woken. Returns whether it was polled.
    pub(crate) fn poll(&mut self) -> bool {
        if self.done.is_some() || self.waker.0.take() == 0 {
            return false;
        }
        let mut cx = Context::from_waker(&self.waker.1);
        if let Poll::Ready(done) = self.future.as_mut().poll(&mut cx) {
            self.done = Some(done);
        }
        true
    }
}

#[derive(Clone)]
pub(crate) struct World(pub(crate) Rc<Inner>);

pub(crate) struct Inner {
    pub(crate) pending: usize,
    pub(crate) bite: usize,
    pub(crate) now: Cell<u64>,
    pub(crate) alarms: RefCell<Vec<(Instant, Waker)>>,
    /// The servers by port.
    pub(crate) servers: RefCell<BTreeMap<u16, Rc<RefCell<Server>>>>,
    pub(crate) open: Cell<usize>,
    /// True while no transport takes bytes.
    pub(crate) clogged: Cell<bool>,
    writers: RefCell<Vec<Waker>>,
}

impl World {
    pub(crate) fn new((pending, bite): (usize, usize)) -> Self {
        Self(Rc::new(Inner {
            pending,
            bite,
            now: Cell::new(1_000_000),
            alarms: RefCell::default(),
            servers: RefCell::default(),
            open: Cell::new(0),
            clogged: Cell::new(false),
            writers: RefCell::default(),
        }))
    }

    /// Lets transports take bytes again.
    pub(crate) fn unclog(&self) {
        self.0.clogged.set(false);
        self.0.writers.take().into_iter().for_each(Waker::wake);
    }

    /// Advances the time to the next alarm.
    pub(crate) fn advance(&self) {
        let mut alarms = self.0.alarms.borrow_mut();
        let next = alarms.iter().map(|alarm| alarm.0).min().expect("no alarm is set");
        self.0.now.set(self.0.now.get().max(next.as_micros()));
        let now = self.now();
        alarms.retain(|(at, waker)| {
            if *at <= now {
                waker.wake_by_ref();
            }
            *at > now
        });
    }

    /// Runs both tasks until the first is done. Advances the time when neither was woken.
    #[track_caller]
    pub(crate) fn run<T, U>(&self, first: &mut Task<'_, T>, second: &mut Task<'_, U>) {
        for _ in 0..100_000 {
            if first.done.is_some() {
                return;
            }
            let woken = first.poll() | second.poll();
            if !woken {
                self.advance();
            }
        }
        panic!("the task never completes");
    }

    /// Adds a server that listens at a port.
    pub(crate) fn serve(&self, port: u16, server: Server) -> Rc<RefCell<Server>> {
        let server = Rc::new(RefCell::new(server));
        self.0.servers.borrow_mut().insert(port, server.clone());
        server
    }

    pub(crate) fn pipe(&self, port: u16) -> Pipe {
        self.0.open.set(self.0.open.get() + 1);
        let server = self.0.servers.borrow()[&port].clone();
        server.borrow_mut().connected();
        let slow = || Slow::new(self);
        let incoming = server.borrow().greeting().iter().copied().collect();
        Pipe {
            world: self.clone(),
            server,
            incoming,
            reader: None,
            slow: [slow(), slow(), slow()],
            closed: false,
        }
    }
}

/// Pending a few times, then ready, repeatedly.
pub(crate) struct Slow {
    pub(crate) times: usize,
    pub(crate) left: usize,
}

impl Slow {
    pub(crate) fn new(world: &World) -> Self {
        Self { times: world.0.pending, left: world.0.pending }
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(left) = self.left.checked_sub(1) else {
            self.left = self.times;
            return Poll::Ready(());
        };
        self.left = left;
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

pub(crate) struct Pipe {
    pub(crate) world: World,
    pub(crate) server: Rc<RefCell<Server>>,
    pub(crate) incoming: VecDeque<u8>,
    pub(crate) reader: Option<Waker>,
    pub(crate) slow: [Slow; 3],
    /// Closed by this side; the other side then closes as well.
    pub(crate) closed: bool,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.world.0.open.set(self.world.0.open.get() - 1);
        self.server.borrow_mut().gone();
    }
}

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.reader = Some(cx.waker().clone());
        if self.closed && self.incoming.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.incoming.is_empty() || self.slow[0].poll(cx).is_pending() {
            return Poll::Pending;
        }
        let n = self.incoming.len().min(buf.len()).min(self.world.0.bite);
        for (to, from) in buf.iter_mut().zip(self.incoming.drain(..n)) {
            *to = from;
        }
        Poll::Ready(Ok(n))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        if self.world.0.clogged.get() {
            self.world.0.writers.borrow_mut().push(cx.waker().clone());
            return Poll::Pending;
        }
        if self.slow[1].poll(cx).is_pending() {
            return Poll::Pending;
        }
        let all = [bytes.head, bytes.body].concat();
        let n = all.len().min(self.world.0.bite);
        let answer = self.server.borrow_mut().take(&all[..n]);
        if !answer.is_empty() {
            self.incoming.extend(answer);
            if let Some(reader) = self.reader.take() {
                reader.wake();
            }
        }
        Poll::Ready(Ok(n))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.slow[2].poll(cx).map(|()| {
            self.closed = true;
            Ok(())
        })
    }
}

impl Dialer for World {
    type Transport<'d> = Pipe;

    async fn dial(&mut self, address: &Address) -> Result<Pipe, DialError> {
        let mut slow = Slow::new(self);
        poll_fn(|cx| slow.poll(cx)).await;
        Ok(self.pipe(address.port()))
    }
}

/// An accept slot to which the server of a port connects.
pub(crate) type Doors = AcceptSlot<Door, Pipe>;

/// A source of callers: the server of a port connects whenever it is not connected; with `None` no
/// server connects.
pub(crate) struct Door {
    world: World,
    port: Option<u16>,
    /// How often accepting is pending before the next call.
    slow: Option<Slow>,
}

impl Door {
    pub(crate) fn new(world: World, port: Option<u16>) -> Doors {
        AcceptSlot::new(Self { world, port, slow: None })
    }
}

impl Accept for Door {
    type Transport = Pipe;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Pipe, SocketAddr), AcceptError>> {
        let Some(port) = self.port else { return Poll::Pending };
        let left = self.world.0.pending.max(1);
        ready!(self.slow.get_or_insert(Slow { times: 0, left }).poll(cx));
        self.slow = None;
        Poll::Ready(Ok((self.world.pipe(port), ([10, 0, 0, 2], port).into())))
    }

    fn stop(&mut self) {
        self.slow = None;
    }
}

impl Sleep for World {
    fn now(&self) -> Instant {
        Instant::from_micros(self.0.now.get())
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        if at <= self.now() {
            return Poll::Ready(());
        }
        // One alarm for each task, the earliest, like embassy-time.
        let mut alarms = self.0.alarms.borrow_mut();
        match alarms.iter_mut().find(|(_, waker)| waker.will_wake(cx.waker())) {
            Some(alarm) => alarm.0 = alarm.0.min(at),
            None => alarms.push((at, cx.waker().clone())),
        }
        Poll::Pending
    }
}

/// Checks that no transport is left open.
pub(crate) fn runner_is_gone(world: &World) {
    assert_eq!(world.0.open.get(), 0, "a transport outlives its runner");
}

/// Polls `future` at most `k` times, whether woken or not, and the runner in between. Advances the
/// time when the runner was not woken. Returns the future's output if it completed.
pub(crate) fn poll_times<T>(
    world: &World,
    k: usize,
    mut future: Pin<&mut impl Future<Output = T>>,
    runner: &mut Task<'_, impl Sized>,
) -> Option<T> {
    // A waker of its own, by which state machines distinguish tasks.
    let (_, waker) = Wakes::new();
    for _ in 0..k {
        if let Poll::Ready(done) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(done);
        }
        if !runner.poll() {
            world.advance();
        }
    }
    None
}

/// Calls `test` with every number of polls until it returns that the future completed.
pub(crate) fn at_every_await(mut test: impl FnMut(&World, usize) -> bool) {
    for transport in TRANSPORTS {
        let completed = (0..2000).any(|k| test(&World::new(transport), k));
        assert!(completed, "the future never completes with {transport:?}");
    }
}

pub(crate) fn topic(name: &str) -> TopicName {
    TopicName::new(name).unwrap()
}
