//! Which caller gets which session, and which listeners are polled.

use core::net::SocketAddr;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::pin::pin;
use std::rc::Rc;

use nanonsq_models::{SlotWakes, Wakes};

use super::*;
use crate::drive::{Accept, AcceptError, AcceptSlot, Transport};
use crate::session::{Fault, Link, Session, Transmit, TransportError};

/// The callers, which are numbers, and the state of their transports.
#[derive(Default)]
struct World {
    now: Cell<u64>,
    callers: RefCell<VecDeque<u16>>,
    /// The number of polls of a listener for a caller.
    asked: Cell<u32>,
    /// Callers whose transports exist.
    up: RefCell<Vec<u16>>,
    /// Callers that have closed.
    gone: RefCell<Vec<u16>>,
    /// The bytes that each caller has sent and the server has not read.
    input: RefCell<BTreeMap<u16, VecDeque<u8>>>,
    /// The bytes that the server has sent to each caller.
    output: RefCell<BTreeMap<u16, Vec<u8>>>,
    /// The number of reads from each caller's transport.
    reads: RefCell<BTreeMap<u16, u32>>,
    wakers: RefCell<Vec<(Event, Waker)>>,
}

/// An event that a task waits for.
#[derive(Clone, Copy, PartialEq)]
enum Event {
    Caller,
    Input(u16),
    Time(Instant),
}

impl World {
    fn wait(&self, event: Event, cx: &Context<'_>) {
        let mut wakers = self.wakers.borrow_mut();
        if !wakers.iter().any(|(it, waker)| *it == event && waker.will_wake(cx.waker())) {
            wakers.push((event, cx.waker().clone()));
        }
    }

    /// Wakes the tasks whose event has occurred.
    fn wake(&self) {
        let has = |event: &Event| match *event {
            Event::Caller => !self.callers.borrow().is_empty(),
            Event::Input(caller) => {
                let has_input = self.input.borrow().get(&caller).is_some_and(|it| !it.is_empty());
                has_input || self.gone.borrow().contains(&caller)
            }
            Event::Time(at) => at <= Instant::from_millis(self.now.get()),
        };
        let wakers = self.wakers.take();
        let (now, later): (Vec<_>, Vec<_>) = wakers.into_iter().partition(|(event, _)| has(event));
        self.wakers.borrow_mut().extend(later);
        now.into_iter().for_each(|(_, waker)| waker.wake());
    }

    fn send(&self, caller: u16, byte: u8) {
        self.input.borrow_mut().entry(caller).or_default().push_back(byte);
    }

    /// Returns the callers whose transports were read from since the last call.
    fn read_from(&self) -> Vec<u16> {
        self.reads.take().into_keys().collect()
    }
}

struct Listens<const ONE: bool>(Rc<World>);

impl<const ONE: bool> Accept for Listens<ONE> {
    const ONE_QUEUE: bool = ONE;

    type Transport = Wire;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Wire, SocketAddr), AcceptError>> {
        self.0.asked.set(self.0.asked.get() + 1);
        let Some(caller) = self.0.callers.borrow_mut().pop_front() else {
            self.0.wait(Event::Caller, cx);
            return Poll::Pending;
        };
        self.0.up.borrow_mut().push(caller);
        Poll::Ready(Ok((Wire(self.0.clone(), caller), SocketAddr::from(([10, 0, 0, 1], caller)))))
    }
}

struct Wire(Rc<World>, u16);

impl Transport for Wire {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        let Self(world, caller) = self;
        *world.reads.borrow_mut().entry(*caller).or_default() += 1;
        if let Some(byte) = world.input.borrow_mut().get_mut(caller).and_then(VecDeque::pop_front) {
            buf[0] = byte;
            return Poll::Ready(Ok(1));
        }
        if world.gone.borrow().contains(caller) {
            return Poll::Ready(Ok(0));
        }
        world.wait(Event::Input(*caller), cx);
        Poll::Pending
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        self.0.output.borrow_mut().entry(self.1).or_default().extend(bytes.head);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.0.up.borrow_mut().retain(|caller| *caller != self.1);
    }
}

/// The clock, with or without wakers of its own.
struct Clock {
    world: Rc<World>,
    has_wakers: bool,
    wakers: SlotWakes,
}

impl Clone for Clock {
    fn clone(&self) -> Self {
        Self {
            world: self.world.clone(),
            has_wakers: self.has_wakers,
            wakers: SlotWakes::default(),
        }
    }
}

impl Sleep for Clock {
    fn now(&self) -> Instant {
        Instant::from_millis(self.world.now.get())
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        if at <= self.now() {
            return Poll::Ready(());
        }
        self.world.wait(Event::Time(at), cx);
        Poll::Pending
    }

    fn slot_waker(&mut self, slot: usize, task: &Waker) -> Option<&Waker> {
        if self.has_wakers { Some(self.wakers.waker(slot, task)) } else { None }
    }

    fn take_woken(&mut self) -> Option<usize> {
        self.wakers.take()
    }
}

/// A session that echoes its caller's bytes. A byte that is the index of a session makes that
/// session send `!` to its caller. An `e` makes the session evictable.
#[derive(Default)]
struct Serving {
    caller: Option<u16>,
    /// The time in milliseconds from which on the session is evictable.
    evictable: Option<u64>,
    deadline: Option<Instant>,
    out: Vec<u8>,
}

/// Sessions that change each other; the last one rejects its callers.
struct Server {
    sessions: Vec<Serving>,
    version: u32,
    task: Option<Waker>,
}

struct View<'s>(&'s mut Server, usize);

impl View<'_> {
    fn it(&mut self) -> &mut Serving {
        &mut self.0.sessions[self.1]
    }
}

impl Session for View<'_> {
    fn link(&self) -> Link {
        if self.0.sessions[self.1].caller.is_some() { Link::Up } else { Link::Down }
    }

    fn open(&mut self, _: Instant) {}

    fn accepted(&mut self, _: Instant, from: SocketAddr) {
        assert_eq!(self.it().caller, None, "a session has one caller at a time");
        *self.it() = Serving { caller: Some(from.port()), ..Serving::default() };
    }

    fn receive(&mut self, _: Instant, bytes: &[u8]) -> Result<(), Fault> {
        for &byte in bytes {
            match self.0.sessions.get_mut(usize::from(byte)) {
                Some(other) => {
                    other.out.push(b'!');
                    self.0.version += 1;
                }
                None if byte == b'e' => self.it().evictable = Some(0),
                None => self.it().out.push(byte),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit { head: &self.0.sessions[self.1].out, body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.it().out.drain(..n);
    }

    fn deadline(&self) -> Instant {
        self.0.sessions[self.1].deadline.unwrap_or(Instant::NEVER)
    }

    fn evictable(&self) -> Instant {
        self.0.sessions[self.1].evictable.map_or(Instant::NEVER, Instant::from_millis)
    }

    fn tick(&mut self, _: Instant) {
        self.it().deadline = None;
        self.it().out.push(b'T');
    }

    fn closed(&mut self, _: Instant, _: Closed) {
        *self.it() = Serving::default();
    }
}

type Shared = Rc<RefCell<Server>>;

struct One(Shared, usize);

impl SessionAccess for One {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        let server = &mut *self.0.borrow_mut();
        let before = server.version;
        f(&mut View(server, self.1));
        if server.version != before
            && let Some(task) = &server.task
        {
            task.wake_by_ref();
        }
    }

    fn register(&mut self, _: &Waker) {}
}

impl Sessions for Shared {
    type Access = One;
    type Seen = u32;

    fn count(&self) -> usize {
        self.borrow().sessions.len() - 1
    }

    fn access(&self, index: usize) -> One {
        let spare = self.borrow().sessions.len() - 1;
        One(self.clone(), index.min(spare))
    }

    fn poll_changed(&self, task: &Waker, seen: &mut u32, mark: &mut dyn FnMut(usize)) {
        let server = &mut *self.borrow_mut();
        server.task = Some(task.clone());
        if *seen != server.version {
            *seen = server.version;
            let sessions = server.sessions.iter().enumerate();
            sessions.filter(|(_, it)| !it.out.is_empty()).for_each(|(index, _)| mark(index));
        }
    }
}

/// Runs `f` with a port of `SLOTS` sessions and the one that rejects. The function that `f` gets
/// polls the port: with wakers, as long as the port is woken; without wakers, four times.
fn play<const ONE: bool, const SLOTS: usize>(
    has_wakers: bool,
    f: impl FnOnce(&World, &Shared, &mut dyn FnMut()),
) {
    let world = Rc::new(World::default());
    let sessions = (0..=SLOTS).map(|_| Serving::default()).collect();
    let server = Rc::new(RefCell::new(Server { sessions, version: 0, task: None }));
    let mut port = Port::<_, SLOTS>::new(|| AcceptSlot::new(Listens::<ONE>(world.clone())));
    let clock = Clock { world: world.clone(), has_wakers, wakers: SlotWakes::default() };
    let mut rx = [[0; 16]; SLOTS];
    let serving = serve_port(&mut port, &server, &clock, &mut rx);
    let mut serving = pin!(serving);
    let (wakes, waker) = Wakes::woken();
    let mut poll = || {
        let mut polls = 0;
        loop {
            world.wake();
            let woken = wakes.take() > 0;
            if if has_wakers { !woken } else { polls == 4 } {
                break;
            }
            assert!(serving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            polls += 1;
            assert!(polls < 1000, "the port wakes itself for ever");
        }
    };
    f(&world, &server, &mut poll);
}

/// Runs `f` with a port of three sessions, on platforms with and without wakers.
fn play_three<const ONE: bool>(f: impl Fn(&World, &Shared, &mut dyn FnMut())) {
    for has_wakers in [false, true] {
        play::<ONE, 3>(has_wakers, &f);
    }
}

fn callers(server: &Shared) -> Vec<Option<u16>> {
    server.borrow().sessions.iter().map(|it| it.caller).collect()
}

#[test]
fn of_the_idle_listeners_with_one_queue_only_one_is_polled() {
    play::<true, 3>(false, |world, server, poll| {
        poll();
        assert_eq!(world.asked.take(), 4, "one of four listeners in each of four polls");
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        assert_eq!(callers(server), [Some(1), Some(2), Some(3), None]);
        world.gone.borrow_mut().push(2);
        poll();
        assert_eq!(callers(server), [Some(1), None, Some(3), None]);
        world.asked.set(0);
        poll();
        assert_eq!(world.asked.take(), 4);
    });
    play::<false, 3>(false, |world, _, poll| {
        poll();
        assert_eq!(world.asked.take(), 16, "each listener has its own queue");
    });
}

/// A hundred connections of which one has traffic: the others are not polled.
#[test]
fn an_event_polls_only_the_connections_that_it_concerns() {
    play::<true, 100>(true, |world, server, poll| {
        world.callers.borrow_mut().extend(1000..1100);
        poll();
        assert_eq!(callers(server), (1000..1100).map(Some).chain([None]).collect::<Vec<_>>());
        world.read_from();
        poll();
        assert!(world.read_from().is_empty(), "no event occurred");
        world.send(1007, b'p');
        poll();
        assert_eq!(world.output.take(), BTreeMap::from([(1007, b"p".to_vec())]));
        assert_eq!(world.read_from(), [1007]);
        // Input of one client creates output for another.
        world.send(1007, 42);
        poll();
        assert_eq!(world.output.take(), BTreeMap::from([(1042, b"!".to_vec())]));
        assert_eq!(world.read_from(), [1007, 1042]);
        world.send(1042, 7);
        poll();
        assert_eq!(world.output.take(), BTreeMap::from([(1007, b"!".to_vec())]));
        assert_eq!(world.read_from(), [1007, 1042]);
        // A deadline of the connection.
        server.borrow_mut().sessions[3].deadline = Some(Instant::from_millis(5));
        world.send(1003, b'p');
        poll();
        world.read_from();
        world.now.set(5);
        poll();
        assert_eq!(world.output.take(), BTreeMap::from([(1003, b"pT".to_vec())]));
        assert_eq!(world.read_from(), [1003]);
        // One caller closes and another one connects.
        world.gone.borrow_mut().push(1050);
        poll();
        assert_eq!(world.read_from(), [1050]);
        world.asked.set(0);
        world.callers.borrow_mut().push_back(2000);
        poll();
        assert_eq!(callers(server)[50], Some(2000));
        assert_eq!(world.read_from(), [2000]);
        assert!(world.asked.get() <= 4, "{}", world.asked.get());
    });
}

/// Idle listeners accept in their order, the spare one last.
#[test]
fn the_next_listener_accepts_the_next_caller() {
    play::<true, 3>(true, |world, server, poll| {
        poll();
        for caller in 1..=4 {
            world.asked.set(0);
            world.callers.borrow_mut().push_back(caller);
            poll();
            assert_eq!(callers(server)[usize::from(caller) - 1], Some(caller));
            assert!(world.asked.get() <= 2, "{}", world.asked.get());
        }
        // After a caller was rejected and another one closed, the next caller is accepted.
        world.gone.borrow_mut().push(2);
        poll();
        world.callers.borrow_mut().push_back(5);
        poll();
        assert_eq!(callers(server), [Some(1), Some(5), Some(3), Some(4)]);
    });
}

/// The waiting caller's listener is polled before the one whose session becomes free.
#[test]
fn a_caller_that_waits_gets_a_session_that_becomes_free() {
    play::<true, 3>(true, |world, server, poll| {
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        server.borrow_mut().sessions[0].evictable = Some(0);
        world.callers.borrow_mut().push_back(4);
        poll();
        assert_eq!(callers(server), [Some(4), Some(2), Some(3), None], "spare listener accepted");
        server.borrow_mut().sessions[1].evictable = Some(2000);
        world.callers.borrow_mut().push_back(5);
        poll();
        assert_eq!(callers(server), [Some(4), Some(2), Some(3), None], "the first listener waits");
        world.gone.borrow_mut().push(3);
        poll();
        assert_eq!(callers(server), [Some(4), Some(2), Some(5), None]);
    });
}

#[test]
fn a_caller_that_waits_gets_a_session_that_becomes_evictable_meanwhile() {
    play::<true, 3>(true, |world, server, poll| {
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        server.borrow_mut().sessions[1].evictable = Some(2000);
        world.callers.borrow_mut().push_back(4);
        poll();
        assert_eq!(callers(server), [Some(1), Some(2), Some(3), None], "the caller waits");
        world.send(3, b'e');
        poll();
        assert_eq!(callers(server), [Some(1), Some(2), Some(4), None]);
    });
}

/// A runner moves to another task: the wakers of the first task no longer work.
#[test]
fn a_poll_by_another_task_polls_all_connections_once() {
    let world = Rc::new(World::default());
    let sessions = (0..3).map(|_| Serving::default()).collect();
    let server = Rc::new(RefCell::new(Server { sessions, version: 0, task: None }));
    let mut port = Port::<_, 2>::new(|| AcceptSlot::new(Listens::<false>(world.clone())));
    let clock = Clock { world: world.clone(), has_wakers: true, wakers: SlotWakes::default() };
    let mut rx = [[0; 16]; 2];
    let serving = serve_port(&mut port, &server, &clock, &mut rx);
    let mut serving = pin!(serving);
    world.callers.borrow_mut().push_back(1);
    for byte in b"abc" {
        let (wakes, waker) = Wakes::new();
        for _ in 0..3 {
            assert!(serving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        wakes.take();
        world.send(1, *byte);
        world.wake();
        assert!(wakes.any(), "the task that polled last is woken");
        assert!(serving.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(world.output.take(), BTreeMap::from([(1, vec![*byte])]));
    }
}

#[test]
fn a_caller_gets_the_session_that_has_been_evictable_for_longest() {
    play_three::<true>(|world, server, poll| {
        world.now.set(1000);
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        for (session, at) in
            server.borrow_mut().sessions.iter_mut().zip([Some(900), Some(800), None])
        {
            session.evictable = at;
        }
        for caller in [4, 5] {
            world.callers.borrow_mut().push_back(caller);
            poll();
        }
        assert_eq!(callers(server), [Some(5), Some(4), Some(3), None]);
        let mut up = world.up.borrow().clone();
        up.sort();
        assert_eq!(up, [3, 4, 5], "the transports of evicted callers are dropped");
        // More evictions, which involve all listeners.
        for caller in 6..20 {
            server.borrow_mut().sessions[usize::from(caller) % 3].evictable = Some(1000);
            world.callers.borrow_mut().push_back(caller);
            poll();
            assert_eq!(callers(server)[usize::from(caller) % 3], Some(caller));
            assert_eq!(world.up.borrow().len(), 3);
        }
    });
}

#[test]
fn a_caller_waits_for_a_session_that_is_evictable_soon_and_is_rejected_otherwise() {
    play_three::<true>(|world, server, poll| {
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        // No session is evictable.
        world.callers.borrow_mut().push_back(4);
        poll();
        assert_eq!(callers(server), [Some(1), Some(2), Some(3), Some(4)]);
        world.gone.borrow_mut().push(4);
        poll();
        // A session becomes evictable too late, or just in time.
        for (evictable, waits) in [(2501, false), (2500, true)] {
            server.borrow_mut().sessions[1].evictable = Some(evictable);
            world.callers.borrow_mut().extend([5, 6]);
            poll();
            let rejected = (!waits).then_some(5);
            assert_eq!(callers(server), [Some(1), Some(2), Some(3), rejected]);
            assert_eq!(world.callers.borrow().len(), 1, "no listener accepts meanwhile");
            world.callers.borrow_mut().clear();
            if !waits {
                world.gone.borrow_mut().push(5);
                poll();
                world.gone.borrow_mut().clear();
            }
        }
        world.now.set(2499);
        poll();
        assert_eq!(callers(server), [Some(1), Some(2), Some(3), None]);
        world.now.set(2500);
        poll();
        assert_eq!(callers(server), [Some(1), Some(5), Some(3), None]);
        // A session that becomes free goes to the caller that waits.
        server.borrow_mut().sessions[1].evictable = Some(4000);
        world.callers.borrow_mut().extend([7, 8]);
        poll();
        world.gone.borrow_mut().push(1);
        poll();
        assert_eq!(callers(server)[0], Some(7));
        assert_eq!(callers(server)[1], Some(5));
        world.now.set(4000);
        poll();
        assert_eq!(callers(server), [Some(7), Some(8), Some(3), None]);
    });
}
