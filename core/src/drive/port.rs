//! A port: listeners, and the sessions that those who call get.
//!
//! There is one listener more than sessions. Whoever accepts a caller takes a free session for it;
//! if there is none, that of a connection that may go ([`Session::evictable`]), the one first that
//! may go for the longest; if there is none either within [`WAIT`], the caller is told that all are
//! taken. So somebody listens nearly always, however many connections are idle or slow.
//!
//! [`Session::evictable`]: crate::session::Session::evictable

use core::cell::RefCell;
use core::future::{Future, pending, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};

use embassy_futures::select::{Either, select, select_array};
use embassy_sync::blocking_mutex::{Mutex, raw::RawMutex};

use super::serve::{Port, pause};
use super::{Line, Listener, SessionCell, Sleep};
use crate::session::Closed;
use crate::time::{Instant, Span};

/// How long a caller waits until a connection may go.
const WAIT: Span = Span::from_millis(2500);

/// The index of the session that refuses.
pub(super) const SPARE: usize = usize::MAX >> 1;

/// Bytes read at once of what a refused caller says.
const SPARE_RX_LEN: usize = 32;

/// What each of some sessions reads into.
pub(super) type Buffers<const SLOTS: usize, const RX: usize> = [[u8; RX]; SLOTS];

/// Who has which session.
struct Table<'r, M: RawMutex, const SLOTS: usize>(Mutex<M, RefCell<Inner<'r, SLOTS>>>);

struct Inner<'r, const SLOTS: usize> {
    /// The listener that has the session, counted from one; 0 is none.
    owners: [u16; SLOTS],
    /// What the session reads into, if nobody has it.
    buffers: [Option<&'r mut [u8]>; SLOTS],
    /// A caller waits for a session. Until it has one nobody else is accepted.
    waiting: bool,
    /// Of those that wait for callers from one queue, one was polled.
    polled: bool,
}

impl<'r, M: RawMutex, const SLOTS: usize> Table<'r, M, SLOTS> {
    /// `f` does not come back here, so there always is an answer.
    fn with<R: Default>(&self, f: impl FnOnce(&mut Inner<'r, SLOTS>) -> R) -> R {
        self.0
            .lock(|inner| inner.try_borrow_mut().map_or_else(|_| R::default(), |mut it| f(&mut it)))
    }

    /// Whether a listener is to be polled for a caller.
    fn accepts(&self, one_queue: bool) -> bool {
        self.with(|inner| {
            let is_next = !(inner.waiting || (one_queue && inner.polled));
            inner.polled |= is_next;
            is_next
        })
    }

    fn has(&self, me: u16, index: usize) -> bool {
        self.with(|inner| inner.owners.get(index) == Some(&me))
    }

    /// Takes a session that nobody has, best the listener's own.
    fn take_free(&self, me: u16) -> Option<usize> {
        self.with(|inner| {
            let own = usize::from(me).wrapping_sub(1);
            let is_free = |at: &usize| inner.owners.get(*at) == Some(&0);
            let index = Some(own).filter(is_free).or_else(|| (0..SLOTS).find(is_free))?;
            *inner.owners.get_mut(index)? = me;
            Some(index)
        })
    }

    fn give(&self, me: u16, index: usize) {
        self.with(|inner| {
            if let Some(owner) = inner.owners.get_mut(index) {
                *owner = me;
            }
        });
    }

    /// Puts a session's buffer back, and the session if it still is this listener's.
    fn leave(&self, me: u16, index: usize, rx: &'r mut [u8]) {
        self.with(|inner| {
            if let Some(slot) = inner.buffers.get_mut(index) {
                *slot = Some(rx);
            }
            if let Some(owner) = inner.owners.get_mut(index)
                && *owner == me
            {
                *owner = 0;
            }
        });
    }
}

/// Serves a port for ever; [`SPARE`] is the session that refuses.
pub(super) async fn serve_port<M, L, C, S, const SLOTS: usize, const RX: usize>(
    port: &mut Port<L, SLOTS>,
    cell: impl Fn(usize) -> C,
    sleep: &S,
    rx: &mut Buffers<SLOTS, RX>,
) -> !
where
    M: RawMutex,
    L: Listener,
    C: SessionCell,
    S: Sleep,
{
    let buffers = rx.each_mut().map(|rx| Some(&mut rx[..]));
    let inner = Inner { owners: [0; SLOTS], buffers, waiting: false, polled: false };
    let table = &Table::<M, SLOTS>(Mutex::new(RefCell::new(inner)));
    let cell = &cell;
    let mut me = 0u16;
    let slots = port.slots.each_mut().map(|listener| {
        me = me.saturating_add(1);
        serve_listener(me, listener, table, cell, sleep)
    });
    let slots = select_array(slots);
    let spare = async {
        let Some(listener) = &mut port.spare else { return pending().await };
        serve_listener(u16::MAX, listener, table, cell, sleep).await
    };
    // The spare one is last: it is asked when the others had their turn.
    let mut all = pin!(select(slots, spare));
    let never = poll_fn(|cx| {
        table.with(|inner| inner.polled = false);
        all.as_mut().poll(cx)
    });
    match never.await {
        Either::First((never, _)) | Either::Second(never) => never,
    }
}

async fn serve_listener<'r, M, L, C, S, F, const SLOTS: usize>(
    me: u16,
    listener: &mut L,
    table: &Table<'r, M, SLOTS>,
    cell: &F,
    sleep: &S,
) -> !
where
    M: RawMutex,
    L: Listener,
    C: SessionCell,
    S: Sleep,
    F: Fn(usize) -> C,
{
    let mut sleep = sleep.clone();
    let own = usize::from(me).wrapping_sub(1);
    let mut line = Line::new(&cell(if own < SLOTS { own } else { SPARE }), &mut sleep);
    loop {
        let accepted = {
            let mut accept = pin!(listener.accept());
            poll_fn(|cx| {
                if !table.accepts(L::ONE_QUEUE) {
                    return Poll::Pending;
                }
                let polled = accept.as_mut().poll(cx);
                if polled.is_ready() {
                    // The next one waits in its place.
                    table.with(|inner| inner.polled = false);
                }
                polled
            })
            .await
        };
        let Ok((mut transport, from)) = accepted else {
            pause(&mut line).await;
            continue;
        };
        let end = line.sleep.now().after(WAIT);
        let Some(index) = poll_fn(|cx| poll_session(me, end, table, cell, &mut line, cx)).await
        else {
            let cell = cell(SPARE);
            let rx = &mut [0; SPARE_RX_LEN];
            line.accepted(&cell, from);
            poll_fn(|cx| line.poll_up(&cell, &mut transport, rx, cx)).await;
            continue;
        };
        // Who had the session gives its buffer back when it is polled next.
        let rx = poll_fn(|_| {
            let rx = table.with(|inner| inner.buffers.get_mut(index).and_then(Option::take));
            rx.map_or(Poll::Pending, Poll::Ready)
        })
        .await;
        let cell = cell(index);
        line.accepted(&cell, from);
        poll_fn(|cx| {
            if table.has(me, index) {
                return line.poll_up(&cell, &mut transport, rx, cx);
            }
            cx.waker().wake_by_ref();
            Poll::Ready(())
        })
        .await;
        table.leave(me, index, rx);
    }
}

/// Ready when a caller has a session, or is to be refused.
fn poll_session<M, C, S, const SLOTS: usize>(
    me: u16,
    end: Instant,
    table: &Table<'_, M, SLOTS>,
    cell: &impl Fn(usize) -> C,
    line: &mut Line<'_, S>,
    cx: &mut Context<'_>,
) -> Poll<Option<usize>>
where
    M: RawMutex,
    C: SessionCell,
    S: Sleep,
{
    let mut index = table.take_free(me);
    if index.is_none() {
        let now = line.sleep.now();
        let mut first = Instant::NEVER;
        let mut found = 0;
        for at in 0..SLOTS {
            cell(at).with(&mut |session| {
                let evictable = session.evictable();
                if evictable < first {
                    (first, found) = (evictable, at);
                }
            });
        }
        if first > now && first <= end {
            table.with(|inner| inner.waiting = true);
            cell(found).register(cx.waker());
            if line.is_due(now, first, cx) {
                cx.waker().wake_by_ref();
            }
            return Poll::Pending;
        }
        if first <= now {
            cell(found).with(&mut |session| session.closed(now, Closed::Local));
            table.give(me, found);
            index = Some(found);
        }
    }
    // Whoever had the session, and whoever listens, may have been polled before.
    cx.waker().wake_by_ref();
    table.with(|inner| inner.waiting = false);
    Poll::Ready(index)
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;
    use core::task::Waker;
    use std::cell::Cell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use embassy_sync::blocking_mutex::raw::NoopRawMutex;

    use super::*;
    use crate::drive::Transport;
    use crate::session::{DialError, Fault, Link, Session, Transmit, TransportError};

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

        async fn accept(&mut self) -> Result<(Wire, SocketAddr), DialError> {
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

    impl SessionCell for One {
        fn with(&self, f: &mut dyn FnMut(&mut dyn Session)) {
            f(&mut self.0.borrow_mut()[self.1]);
        }

        fn register(&self, _: &Waker) {}
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
            for (session, at) in sessions.borrow_mut().iter_mut().zip([Some(900), Some(800), None])
            {
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
}
