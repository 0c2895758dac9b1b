//! Which caller gets which session.

use core::net::SocketAddr;
use core::task::Waker;
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;

use super::*;
use crate::drive::{AcceptError, Transport};
use crate::session::{Fault, Link, Session, Transmit, TransportError};

/// A caller is a number; what it is doing is its transport.
#[derive(Default)]
struct World {
    now: Cell<u64>,
    callers: RefCell<VecDeque<u16>>,
    /// How often a listener was asked for a caller.
    asked: Cell<u32>,
    /// Callers whose transports are there, and those who hung up.
    up: RefCell<Vec<u16>>,
    gone: RefCell<Vec<u16>>,
}

struct Listens<const ONE: bool>(Rc<World>);

impl<const ONE: bool> Listener for Listens<ONE> {
    type Transport<'l> = Wire;

    const ONE_QUEUE: bool = ONE;

    async fn accept(&mut self) -> Result<(Wire, SocketAddr), AcceptError> {
        let caller = poll_fn(|_| {
            self.0.asked.set(self.0.asked.get() + 1);
            self.0.callers.borrow_mut().pop_front().map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        self.0.up.borrow_mut().push(caller);
        Ok((Wire(self.0.clone(), caller), SocketAddr::from(([10, 0, 0, 1], caller))))
    }
}

struct Wire(Rc<World>, u16);

impl Transport for Wire {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        assert!(!buf.is_empty());
        let gone = self.0.gone.borrow().contains(&self.1);
        if gone { Poll::Ready(Ok(0)) } else { Poll::Pending }
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
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

#[derive(Clone)]
struct Clock(Rc<World>);

impl Sleep for Clock {
    fn now(&self) -> Instant {
        Instant::from_millis(self.0.now.get())
    }

    fn poll_until(&mut self, _: &mut Context<'_>, at: Instant) -> Poll<()> {
        if at <= self.now() { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// Whom it serves, and from when on it may go.
#[derive(Default)]
struct Serving {
    caller: Option<u16>,
    evictable: Option<u64>,
}

impl Session for Serving {
    fn link(&self) -> Link {
        if self.caller.is_some() { Link::Up } else { Link::Down }
    }

    fn open(&mut self, _: Instant) {}

    fn accepted(&mut self, _: Instant, from: SocketAddr) {
        assert_eq!(self.caller, None, "one at a time");
        self.caller = Some(from.port());
        self.evictable = None;
    }

    fn receive(&mut self, _: Instant, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit::default()
    }

    fn sent(&mut self, _: Instant, _: usize) {}

    fn deadline(&self) -> Instant {
        Instant::NEVER
    }

    fn evictable(&self) -> Instant {
        self.evictable.map_or(Instant::NEVER, Instant::from_millis)
    }

    fn tick(&mut self, _: Instant) {}

    fn closed(&mut self, _: Instant, _: Closed) {
        self.caller = None;
        self.evictable = None;
    }
}

type Sessions = Rc<RefCell<[Serving; 4]>>;

struct One(Sessions, usize);

impl SessionAccess for One {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut self.0.borrow_mut()[self.1]);
    }

    fn register(&mut self, _: &Waker) {}
}

/// Three sessions, and the one that refuses.
fn play<const ONE: bool>(f: impl FnOnce(&World, &Sessions, &mut dyn FnMut())) {
    let world = Rc::new(World::default());
    let sessions = Sessions::default();
    let mut port = Port::<Listens<ONE>, 3>::new(|| Listens(world.clone()));
    let cell = |index: usize| One(sessions.clone(), index.min(3));
    let (clock, mut rx) = (Clock(world.clone()), [[0; 16]; 3]);
    let serving = serve_port::<NoopRawMutex, _, _, _, 3, 16>(&mut port, cell, &clock, &mut rx);
    let mut serving = pin!(serving);
    // As often as somebody could have woken it in between.
    let mut poll = || {
        for _ in 0..4 {
            let cx = &mut Context::from_waker(Waker::noop());
            assert!(serving.as_mut().poll(cx).is_pending());
        }
    };
    f(&world, &sessions, &mut poll);
}

fn callers(sessions: &Sessions) -> [Option<u16>; 4] {
    sessions.borrow().each_ref().map(|it| it.caller)
}

#[test]
fn of_the_listeners_that_wait_one_is_polled() {
    play::<true>(|world, sessions, poll| {
        poll();
        assert_eq!(world.asked.take(), 4, "one of four, each time");
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        assert_eq!(callers(sessions), [Some(1), Some(2), Some(3), None]);
        world.gone.borrow_mut().push(2);
        poll();
        assert_eq!(callers(sessions), [Some(1), None, Some(3), None]);
        world.asked.set(0);
        poll();
        assert_eq!(world.asked.take(), 4);
    });
    play::<false>(|world, _, poll| {
        poll();
        assert_eq!(world.asked.take(), 16, "each may have a caller of its own");
    });
}

#[test]
fn another_caller_gets_the_place_of_who_may_go_for_longest() {
    play::<true>(|world, sessions, poll| {
        world.now.set(1000);
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        for (session, at) in sessions.borrow_mut().iter_mut().zip([Some(900), Some(800), None]) {
            session.evictable = at;
        }
        for caller in [4, 5] {
            world.callers.borrow_mut().push_back(caller);
            poll();
        }
        assert_eq!(callers(sessions), [Some(5), Some(4), Some(3), None]);
        let mut up = world.up.borrow().clone();
        up.sort();
        assert_eq!(up, [3, 4, 5], "what the others had is closed");
        // And so on, with whichever listeners.
        for caller in 6..20 {
            sessions.borrow_mut()[usize::from(caller) % 3].evictable = Some(1000);
            world.callers.borrow_mut().push_back(caller);
            poll();
            assert_eq!(callers(sessions)[usize::from(caller) % 3], Some(caller));
            assert_eq!(world.up.borrow().len(), 3);
        }
    });
}

#[test]
fn a_caller_waits_for_one_that_may_go_soon_and_is_refused_otherwise() {
    play::<true>(|world, sessions, poll| {
        world.callers.borrow_mut().extend([1, 2, 3]);
        poll();
        // Nobody may go.
        world.callers.borrow_mut().push_back(4);
        poll();
        assert_eq!(callers(sessions), [Some(1), Some(2), Some(3), Some(4)]);
        world.gone.borrow_mut().push(4);
        poll();
        // Somebody may in time, or would later.
        for (evictable, waits) in [(2501, false), (2500, true)] {
            sessions.borrow_mut()[1].evictable = Some(evictable);
            world.callers.borrow_mut().extend([5, 6]);
            poll();
            let refused = (!waits).then_some(5);
            assert_eq!(callers(sessions), [Some(1), Some(2), Some(3), refused]);
            assert_eq!(world.callers.borrow().len(), 1, "nobody listens meanwhile");
            world.callers.borrow_mut().clear();
            if !waits {
                world.gone.borrow_mut().push(5);
                poll();
                world.gone.borrow_mut().clear();
            }
        }
        world.now.set(2499);
        poll();
        assert_eq!(callers(sessions), [Some(1), Some(2), Some(3), None]);
        world.now.set(2500);
        poll();
        assert_eq!(callers(sessions), [Some(1), Some(5), Some(3), None]);
        // Whoever goes by itself makes room first for who waits.
        sessions.borrow_mut()[1].evictable = Some(4000);
        world.callers.borrow_mut().extend([7, 8]);
        poll();
        world.gone.borrow_mut().push(1);
        poll();
        assert_eq!(callers(sessions)[0], Some(7));
        assert_eq!(callers(sessions)[1], Some(5));
        world.now.set(4000);
        poll();
        assert_eq!(callers(sessions), [Some(7), Some(8), Some(3), None]);
    });
}
