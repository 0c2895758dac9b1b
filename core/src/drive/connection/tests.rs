//! The driver, poll by poll, with a scripted transport and a clock that the test sets.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use nanonsq_models::Wakes;

use super::*;
use crate::address::Address;
use crate::drive::accept::{Sessions, serve_port};
use crate::drive::{Accept, AcceptError, AcceptSlot, Port};
use crate::session::{Fault, Transmit, Upgrade};
use crate::time::Span;

/// The script and the log of the transport.
#[derive(Debug, Default)]
struct Wire {
    reads: VecDeque<Result<Vec<u8>, TransportError>>,
    written: Vec<u8>,
    write_error: Option<TransportError>,
    upgrade: Option<Result<(), TransportError>>,
    never_closes: bool,
    log: Vec<&'static str>,
}

#[derive(Clone, Default)]
struct World {
    /// True while dials are held back.
    gate: Rc<Cell<bool>>,
    /// The number of callers that wait to be accepted.
    callers: Rc<Cell<usize>>,
    /// The number of calls of `accept`.
    accepts: Rc<Cell<usize>>,
    /// True while `accept` fails.
    broken: Rc<Cell<bool>>,
    wire: Rc<RefCell<Wire>>,
    now: Rc<Cell<u64>>,
    /// The time of the alarm.
    alarm: Rc<Cell<Instant>>,
    /// The number of changes of the alarm.
    armed: Rc<Cell<usize>>,
}

struct Pipe(World);

impl Transport for Pipe {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        match self.0.wire.borrow_mut().reads.pop_front() {
            None => Poll::Pending,
            Some(Err(error)) => Poll::Ready(Err(error)),
            Some(Ok(bytes)) => {
                buf[..bytes.len()].copy_from_slice(&bytes);
                Poll::Ready(Ok(bytes.len()))
            }
        }
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let mut wire = self.0.wire.borrow_mut();
        if let Some(error) = wire.write_error {
            return Poll::Ready(Err(error));
        }
        wire.written.extend(bytes.head);
        Poll::Ready(Ok(bytes.head.len()))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let mut wire = self.0.wire.borrow_mut();
        wire.log.push("close");
        if wire.never_closes { Poll::Pending } else { Poll::Ready(Ok(())) }
    }

    fn abort(&mut self) {
        self.0.wire.borrow_mut().log.push("abort");
    }

    fn poll_upgrade(
        &mut self,
        _: &mut Context<'_>,
        upgrade: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        assert_eq!(upgrade, Upgrade::Tls);
        match self.0.wire.borrow().upgrade {
            Some(result) => Poll::Ready(result),
            None => Poll::Pending,
        }
    }
}

impl Dialer for World {
    type Transport<'d> = Pipe;

    async fn dial(&mut self, _: &Address) -> Result<Pipe, DialError> {
        poll_fn(|_| if self.gate.get() { Poll::Pending } else { Poll::Ready(()) }).await;
        Ok(Pipe(self.clone()))
    }
}

impl Accept for World {
    type Transport = Pipe;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<(Pipe, SocketAddr), AcceptError>> {
        self.accepts.set(self.accepts.get() + 1);
        if self.broken.get() {
            return Poll::Ready(Err(AcceptError::Other));
        }
        let Some(left) = self.callers.get().checked_sub(1) else { return Poll::Pending };
        self.callers.set(left);
        Poll::Ready(Ok((Pipe(self.clone()), ([10, 0, 0, 2], 4000).into())))
    }
}

impl Sleep for World {
    fn now(&self) -> Instant {
        Instant::from_millis(self.now.get())
    }

    fn poll_until(&mut self, _: &mut Context<'_>, at: Instant) -> Poll<()> {
        if self.alarm.replace(at) != at {
            self.armed.set(self.armed.get() + 1);
        }
        if at <= self.now() { Poll::Ready(()) } else { Poll::Pending }
    }
}

static SERVER: Address = match Address::new("server", 1) {
    Ok(address) => address,
    Err(_) => panic!("invalid address"),
};

/// Sends `hello`; on `wrap` upgrades the transport, if `upgrade`, and sends `inside`; on `bye`
/// closes.
#[derive(Debug)]
struct Greeter {
    link: Link,
    text: &'static [u8],
    upgrade: bool,
    deadline: Option<Instant>,
    received: Vec<u8>,
    closed: Vec<Closed>,
    dialed: bool,
    /// The number of bytes that the session still takes.
    room: usize,
    /// The number of bytes by which `room` grows for each byte written.
    freed: usize,
    /// The session closes when all bytes are written.
    closes_when_sent: bool,
    ticks: Vec<Instant>,
}

impl Greeter {
    fn new(upgrade: bool) -> Self {
        Self {
            link: Link::Down,
            text: b"",
            upgrade,
            deadline: None,
            received: Vec::new(),
            closed: Vec::new(),
            dialed: false,
            room: usize::MAX,
            freed: 0,
            closes_when_sent: false,
            ticks: Vec::new(),
        }
    }
}

impl Session for Greeter {
    fn link(&self) -> Link {
        self.link
    }

    fn dial(&mut self, _: Instant) -> Option<&Address> {
        (!std::mem::replace(&mut self.dialed, true)).then(|| {
            self.link = Link::Up;
            &SERVER
        })
    }

    fn open(&mut self, now: Instant) {
        self.text = b"hello";
        self.deadline = Some(now.after(Span::from_secs(10)));
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.received.extend(bytes);
        self.deadline = Some(now.after(Span::from_secs(10)));
        if self.received.ends_with(b"wrap") && self.upgrade {
            self.link = Link::Upgrade(Upgrade::Tls);
        }
        if self.received.ends_with(b"bye") {
            self.link = Link::Close;
            self.deadline = Some(now.after(Span::from_secs(1)));
            self.text = b"goodbye";
        }
        Ok(())
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.room);
        self.room -= n;
        self.receive(now, &bytes[..n]).unwrap();
        n
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        Transmit { head: self.text, body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.text = &self.text[n..];
        self.room = self.room.saturating_add(n * self.freed);
        if self.closes_when_sent && self.text.is_empty() {
            self.link = Link::Close;
        }
    }

    fn deadline(&self) -> Instant {
        self.deadline.unwrap_or(Instant::NEVER)
    }

    fn tick(&mut self, now: Instant) {
        self.ticks.push(now);
        if self.link == Link::Up {
            self.deadline = Some(now.after(Span::from_secs(10)));
        }
    }

    fn upgraded(&mut self, _: Instant) {
        self.link = Link::Up;
        self.text = b"inside";
    }

    fn closed(&mut self, _: Instant, why: Closed) {
        self.link = Link::Down;
        self.deadline = None;
        self.closed.push(why);
    }
}

/// A session that the test can access beside the driver.
struct Shared<T>(RefCell<T>);

impl<T: Session> SessionAccess for &Shared<T> {
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        f(&mut *self.0.borrow_mut());
    }

    fn register(&mut self, _: &Waker) {}
}

/// Polls the future, and again as long as it wakes itself.
fn settle<T>(mut future: Pin<&mut impl Future<Output = T>>) {
    let (wakes, waker) = Wakes::new();
    for _ in 0..100 {
        wakes.take();
        assert!(future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        if !wakes.any() {
            return;
        }
    }
    panic!("the future wakes itself for ever");
}

/// Sets up a driver and polls it. Defines `$poll`, which polls it until it no longer wakes itself.
macro_rules! driven {
    ($world:ident, $shared:ident, $poll:ident, $greeter:expr) => {
        driven!($world, $shared, $poll, $greeter, false);
    };
    ($world:ident, $shared:ident, $poll:ident, $greeter:expr, $gate:expr) => {
        let $world = World::default();
        $world.gate.set($gate);
        let $shared = Shared(RefCell::new($greeter));
        let (mut dialer, mut sleep, mut rx) = ($world.clone(), $world.clone(), [0; 16]);
        let mut access = &$shared;
        let mut driver = pin!(run_dialed(&mut access, &mut dialer, &mut sleep, &mut rx));
        let mut $poll = || settle(driver.as_mut());
        $poll();
    };
}

fn peer_sends(world: &World, text: &str) {
    world.wire.borrow_mut().reads.push_back(Ok(text.into()));
}

fn written(world: &World) -> String {
    String::from_utf8(std::mem::take(&mut world.wire.borrow_mut().written)).unwrap()
}

#[test]
fn a_transport_is_wrapped_in_place_and_goes_on() {
    driven!(world, shared, poll, Greeter::new(true));
    assert_eq!(written(&world), "hello");
    peer_sends(&world, "wrap");
    poll();
    assert_eq!(shared.0.borrow().link, Link::Upgrade(Upgrade::Tls));
    assert_eq!(written(&world), "", "nothing is written meanwhile");
    world.wire.borrow_mut().upgrade = Some(Ok(()));
    poll();
    assert_eq!(written(&world), "inside");
    peer_sends(&world, "more");
    poll();
    assert_eq!(shared.0.borrow().received, b"wrapmore");
}

#[test]
fn a_transport_that_cannot_be_wrapped_is_closed() {
    driven!(world, shared, poll, Greeter::new(true));
    world.wire.borrow_mut().upgrade = Some(Err(TransportError::Unsupported));
    peer_sends(&world, "wrap");
    poll();
    assert_eq!(shared.0.borrow().closed, [Closed::Transport(TransportError::Unsupported)]);
}

#[test]
fn a_dial_that_succeeds_just_as_it_is_cancelled_is_not_opened() {
    driven!(world, shared, poll, Greeter::new(false), true);
    assert_eq!(shared.0.borrow().link, Link::Up);
    shared.0.borrow_mut().link = Link::Close;
    world.gate.set(false);
    poll();
    assert_eq!(shared.0.borrow().closed, [Closed::Local]);
    assert_eq!(written(&world), "");
}

#[test]
fn a_closing_session_is_drained_before_the_transport_closes() {
    driven!(world, shared, poll, Greeter::new(false));
    peer_sends(&world, "bye");
    poll();
    assert_eq!(written(&world), "hellogoodbye");
    assert_eq!(world.wire.borrow().log, ["close"]);
    assert_eq!(shared.0.borrow().closed, [Closed::Local]);
}

#[test]
fn a_close_that_takes_too_long_is_aborted() {
    driven!(world, shared, poll, Greeter::new(false));
    world.wire.borrow_mut().never_closes = true;
    peer_sends(&world, "bye");
    poll();
    assert_eq!(shared.0.borrow().closed, []);
    world.now.set(1000);
    poll();
    assert_eq!(world.wire.borrow().log.last(), Some(&"abort"));
    assert_eq!(shared.0.borrow().closed, [Closed::Local]);
}

/// While closing waits for the peer, the session's link is up again.
#[test]
fn a_close_that_has_begun_is_completed() {
    for (end, why) in [(false, "acknowledged"), (true, "ended")] {
        driven!(world, shared, poll, Greeter::new(false));
        world.wire.borrow_mut().never_closes = true;
        peer_sends(&world, "bye");
        poll();
        assert_eq!(written(&world), "hellogoodbye", "{why}");
        shared.0.borrow_mut().link = Link::Up;
        shared.0.borrow_mut().text = b"more";
        peer_sends(&world, "late");
        poll();
        assert_eq!(written(&world), "", "{why}: nothing can be written any more");
        assert_eq!(shared.0.borrow().received, b"byelate", "{why}");
        assert_eq!(shared.0.borrow().closed, [], "{why}");
        if end {
            world.wire.borrow_mut().reads.push_back(Ok(Vec::new()));
        } else {
            world.wire.borrow_mut().never_closes = false;
        }
        poll();
        assert_eq!(shared.0.borrow().closed, [Closed::Local], "{why}");
        assert_eq!(written(&world), "", "{why}");
        assert!(!world.wire.borrow().log.contains(&"abort"), "{why}");
    }
}

#[test]
fn a_session_that_closes_after_its_last_byte_is_closed_at_once() {
    driven!(world, shared, _poll, Greeter { closes_when_sent: true, ..Greeter::new(false) });
    assert_eq!(written(&world), "hello");
    assert_eq!(world.wire.borrow().log, ["close"]);
    assert_eq!(shared.0.borrow().closed, [Closed::Local]);
}

#[test]
fn a_session_ticks_when_it_is_due_and_not_before() {
    driven!(world, shared, poll, Greeter::new(false));
    for (ms, ticks) in [(0, 0), (9999, 0), (10_000, 1), (10_001, 1), (19_999, 1), (25_000, 2)] {
        world.now.set(ms);
        poll();
        assert_eq!(shared.0.borrow().ticks.len(), ticks, "{ms}");
    }
    assert_eq!(shared.0.borrow().ticks, [10_000, 25_000].map(Instant::from_millis));
}

#[test]
fn a_session_also_ticks_during_a_dial() {
    driven!(world, shared, poll, Greeter::new(false), true);
    shared.0.borrow_mut().deadline = Some(Instant::from_millis(500));
    for (ms, ticks) in [(1, 0), (499, 0), (500, 1), (501, 1)] {
        world.now.set(ms);
        poll();
        assert_eq!(shared.0.borrow().ticks.len(), ticks, "{ms}");
    }
}

#[test]
fn bytes_that_arrived_before_a_reset_reach_the_session() {
    driven!(world, shared, poll, Greeter::new(false));
    world.wire.borrow_mut().write_error = Some(TransportError::Reset);
    shared.0.borrow_mut().text = b"too late";
    poll();
    assert_eq!(shared.0.borrow().closed, [], "the transport is read to its end first");
    peer_sends(&world, "because");
    poll();
    peer_sends(&world, "");
    poll();
    assert_eq!(shared.0.borrow().received, b"because");
    assert_eq!(shared.0.borrow().closed, [Closed::Transport(TransportError::Reset)]);
}

#[test]
fn a_deadline_that_moves_later_arms_no_new_timer() {
    driven!(world, shared, poll, Greeter::new(false));
    let armed = world.armed.get();
    for ms in 1..100 {
        world.now.set(ms);
        peer_sends(&world, "x");
        poll();
    }
    assert_eq!(world.armed.get(), armed, "{:?}", shared.0.borrow().deadline);
    // The old alarm is due early, once, and is armed again.
    world.now.set(10_000);
    poll();
    assert_eq!(world.armed.get(), armed + 1);
}

#[test]
fn bytes_that_a_session_does_not_take_are_offered_again_before_more_is_read() {
    driven!(world, shared, poll, Greeter::new(false));
    shared.0.borrow_mut().room = 3;
    peer_sends(&world, "abcdef");
    peer_sends(&world, "ghi");
    poll();
    assert_eq!(shared.0.borrow().received, b"abc");
    assert_eq!(world.wire.borrow().reads.len(), 1, "no more is read");
    // A change of the session, which wakes the task.
    shared.0.borrow_mut().room = 2;
    poll();
    assert_eq!(shared.0.borrow().received, b"abcde");
    // Each written byte makes room for one more.
    (shared.0.borrow_mut().text, shared.0.borrow_mut().freed) = (b"1234", 1);
    poll();
    assert_eq!(shared.0.borrow().received, b"abcdefghi");
    assert_eq!(world.wire.borrow().reads.len(), 0);
}

#[test]
fn bytes_for_which_a_write_made_room_are_acted_on_at_once() {
    driven!(world, shared, poll, Greeter::new(false));
    shared.0.borrow_mut().room = 3;
    peer_sends(&world, "abcbye");
    poll();
    assert_eq!(shared.0.borrow().received, b"abc");
    (shared.0.borrow_mut().text, shared.0.borrow_mut().freed) = (b"123", 1);
    // Nothing else would wake the task.
    poll();
    assert_eq!(shared.0.borrow().received, b"abcbye");
    assert_eq!(written(&world), "hello123goodbye");
    assert_eq!(shared.0.borrow().closed, [Closed::Local]);
}

#[test]
fn unread_bytes_of_one_connection_are_not_offered_to_the_next() {
    driven!(world, shared, poll, Greeter::new(false));
    shared.0.borrow_mut().room = 1;
    peer_sends(&world, "abc");
    poll();
    {
        let mut greeter = shared.0.borrow_mut();
        (greeter.link, greeter.room, greeter.dialed) = (Link::Close, 0, false);
    }
    poll();
    assert_eq!(shared.0.borrow().closed, [Closed::Local]);
    shared.0.borrow_mut().room = usize::MAX;
    peer_sends(&world, "next");
    poll();
    assert_eq!(shared.0.borrow().received, b"anext");
}

// --- ways to access a session ---

/// A session that only the driver accesses.
struct Owned<'s, T>(&'s mut T);

impl<T: Session> Access for Owned<'_, T> {
    type Session<'s> = T;
    type Whom = Address;

    const ROUNDS: u8 = ROUNDS_MAX;
    const ROUNDS_AT_ONCE: u8 = 1;

    fn dial(session: &mut T, now: Instant, whom: &mut Address) -> bool {
        session.dial(now).map(|address| whom.clone_from(address)).is_some()
    }

    fn with(&mut self, mut f: impl FnMut(&mut T)) {
        f(self.0);
    }

    fn register(&mut self, _: &Waker) {}
}

/// Calls the steps of the driver without its loop and without a `dyn` access.
#[test]
fn a_session_that_is_owned_is_driven_step_by_step() {
    let world = World::default();
    let mut greeter = Greeter::new(false);
    let mut sleep = world.clone();
    let cx = &mut Context::from_waker(Waker::noop());
    let mut transport = Pipe(world.clone());
    {
        let mut access = Owned(&mut greeter);
        let mut connection = Connection::new(&mut access, &mut sleep);
        let mut address = Address::NONE;
        assert!(connection.poll_down(&mut access, &mut address, cx).is_ready());
        assert_eq!(address, SERVER);
        assert!(connection.open(&mut access));
        let rx = &mut [0; 16];
        assert!(connection.poll_up(&mut access, &mut transport, rx, cx).is_pending());
        assert_eq!(written(&world), "hello");
        peer_sends(&world, "bye");
        assert!(connection.poll_up(&mut access, &mut transport, rx, cx).is_ready());
    }
    assert_eq!(written(&world), "goodbye");
    assert_eq!(greeter.received, b"bye");
    assert_eq!(greeter.closed, [Closed::Local]);
}

// --- accepted connections ---

/// As [`Greeter`], for accepted connections, which are up without a dial.
struct Caller(Greeter);

impl Session for Caller {
    fn link(&self) -> Link {
        self.0.link
    }

    fn open(&mut self, now: Instant) {
        self.0.link = Link::Up;
        self.0.open(now);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if self.0.link == Link::Up { self.0.receive(now, bytes) } else { Ok(()) }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.0.transmit(now)
    }

    fn sent(&mut self, now: Instant, n: usize) {
        self.0.sent(now, n);
    }

    fn deadline(&self) -> Instant {
        self.0.deadline()
    }

    fn tick(&mut self, _: Instant) {}

    fn closed(&mut self, now: Instant, why: Closed) {
        self.0.closed(now, why);
    }
}

impl<'s, T: Session> Sessions for &'s Shared<T> {
    type Access = &'s Shared<T>;
    type Seen = ();

    fn count(&self) -> usize {
        1
    }

    fn access(&self, _: usize) -> Self::Access {
        self
    }

    fn poll_changed(&self, _: &Waker, (): &mut (), _: &mut dyn FnMut(usize)) {}
}

/// Serves a port of one slot.
macro_rules! serving {
    ($world:ident, $cell:ident, $serving:ident) => {
        let $world = World::default();
        let $cell = Shared(RefCell::new(Caller(Greeter::new(false))));
        let mut port = Port { slots: [AcceptSlot::new($world.clone())], spare: None };
        let sessions = &$cell;
        let (sleep, mut rx) = ($world.clone(), [[0; 16]]);
        let serving = serve_port(&mut port, &sessions, &sleep, &mut rx);
        let mut $serving = pin!(serving);
    };
}

#[test]
fn a_caller_is_read_to_the_end_before_its_transport_is_dropped() {
    for ends in [Ok(Vec::new()), Err(TransportError::Reset)] {
        serving!(world, cell, serving);
        world.callers.set(1);
        settle(serving.as_mut());
        peer_sends(&world, "bye");
        settle(serving.as_mut());
        assert_eq!(written(&world), "hellogoodbye");
        assert_eq!(world.wire.borrow().log, ["close"], "closed once");
        assert_eq!(cell.0.borrow().0.closed, [], "the caller may still be writing");
        peer_sends(&world, "more");
        settle(serving.as_mut());
        assert_eq!((&*cell.0.borrow().0.received, written(&world)), (&b"bye"[..], String::new()));
        world.wire.borrow_mut().reads.push_back(ends);
        settle(serving.as_mut());
        assert_eq!(world.wire.borrow().log, ["close"]);
        assert_eq!(cell.0.borrow().0.closed, [Closed::Local]);
        assert_eq!(world.accepts.get(), 2, "the slot listens again");
    }
}

#[test]
fn a_caller_that_does_not_close_is_read_until_the_deadline() {
    serving!(world, cell, serving);
    world.callers.set(1);
    peer_sends(&world, "bye");
    for ms in 0..999 {
        world.now.set(ms);
        peer_sends(&world, "more and more");
        settle(serving.as_mut());
        assert_eq!(cell.0.borrow().0.closed, []);
    }
    world.now.set(1000);
    settle(serving.as_mut());
    assert_eq!(world.wire.borrow().log, ["close", "abort"]);
    assert_eq!(cell.0.borrow().0.closed, [Closed::Local]);
    assert_eq!(world.accepts.get(), 2);
}

#[test]
fn a_listener_that_fails_accepts_again_after_a_second() {
    serving!(world, cell, serving);
    world.broken.set(true);
    for second in 0..3 {
        for ms in [0, 1, 999] {
            world.now.set(1000 * second + ms);
            settle(serving.as_mut());
            assert_eq!(world.accepts.get() as u64, 1 + second);
        }
    }
    world.broken.set(false);
    world.callers.set(1);
    world.now.set(3000);
    settle(serving.as_mut());
    assert_eq!(written(&world), "hello");
}
