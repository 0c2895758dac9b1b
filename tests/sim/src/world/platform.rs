//! The network as the driver sees it: clock, dialer and transports.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Dialer, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;
use nanonsq_models::SlotWakes;
use nanonsq_models::server::ConnId;

use super::{DELAY_MAX, DIALS_MAX, Dial, Due, World};
use crate::watch::{self, Event, Session};
use crate::web::HOLE;

#[derive(Clone, Copy)]
enum Owner {
    /// A session's clock.
    Session(Session),
    /// The clock of an actor's handle.
    Handle(usize),
}

/// [`Sleep`] in virtual time.
pub(crate) struct Clock {
    world: World,
    owner: Owner,
    /// The index of the next clone's session; without it clones belong to handles.
    next: Option<Rc<RefCell<usize>>>,
    /// The roles of the clones, in order; later clones belong to handles.
    plan: Option<Rc<RefCell<VecDeque<Role>>>>,
    /// The wakers of a port's slots.
    wakers: SlotWakes,
}

/// The owner of a clone of a clock.
#[derive(Clone)]
pub(crate) enum Role {
    /// A handle.
    Handle,
    /// The actor's session with this number.
    Session(usize),
    /// A runner, whose clones have their own roles.
    Runner(Rc<RefCell<VecDeque<Role>>>),
}

impl Role {
    /// The clones that a server's ports make: for each port one that has the wakers of its slots,
    /// then one for each session.
    pub(crate) fn of_ports(first_http: usize, sessions: usize) -> impl Iterator<Item = Self> {
        let port = |range: std::ops::Range<usize>| {
            std::iter::once(Self::Handle).chain(range.map(Self::Session))
        };
        port(0..first_http).chain(port(first_http..sessions))
    }
}

impl Clock {
    /// The clock of an actor's session.
    pub(crate) fn of_session(world: &World, session: Session) -> Self {
        Self {
            world: world.clone(),
            owner: Owner::Session(session),
            next: None,
            plan: None,
            wakers: SlotWakes::default(),
        }
    }

    /// The clock of an actor's handle.
    pub(crate) fn of_handle(world: &World, actor: usize) -> Self {
        Self {
            world: world.clone(),
            owner: Owner::Handle(actor),
            next: None,
            plan: None,
            wakers: SlotWakes::default(),
        }
    }

    /// The clock of a runner that clones it for each session; `next` is the index of the next
    /// clone.
    pub(crate) fn of_runner(world: &World, actor: usize, next: Rc<RefCell<usize>>) -> Self {
        Self {
            world: world.clone(),
            owner: Owner::Handle(actor),
            next: Some(next),
            plan: None,
            wakers: SlotWakes::default(),
        }
    }

    /// The clock of an actor's handle whose clones have the roles of `plan`.
    pub(crate) fn of_plan(world: &World, actor: usize, plan: Rc<RefCell<VecDeque<Role>>>) -> Self {
        Self { plan: Some(plan), ..Self::of_handle(world, actor) }
    }

    fn actor(&self) -> usize {
        match self.owner {
            Owner::Session((actor, _)) | Owner::Handle(actor) => actor,
        }
    }
}

impl Clone for Clock {
    fn clone(&self) -> Self {
        let actor = self.actor();
        if let Some(plan) = &self.plan {
            return match plan.borrow_mut().pop_front() {
                None | Some(Role::Handle) => Self::of_handle(&self.world, actor),
                Some(Role::Session(session)) => Self::of_session(&self.world, (actor, session)),
                Some(Role::Runner(plan)) => Self::of_plan(&self.world, actor, plan),
            };
        }
        if let Owner::Session(session) = self.owner {
            return Self::of_session(&self.world, session);
        }
        let owner = match &self.next {
            // The first clone belongs to the handle.
            Some(next) => {
                let machine = *next.borrow();
                *next.borrow_mut() += 1;
                machine.checked_sub(1).map_or(Owner::Handle(actor), |m| Owner::Session((actor, m)))
            }
            None => Owner::Handle(actor),
        };
        Self {
            world: self.world.clone(),
            owner,
            next: None,
            plan: None,
            wakers: SlotWakes::default(),
        }
    }
}

impl Sleep for Clock {
    fn now(&self) -> Instant {
        watch::enter(match self.owner {
            Owner::Session(session) => Some(session),
            Owner::Handle(_) => None,
        });
        Instant::from_micros(self.world.clock(self.actor()))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        let Owner::Session(session) = self.owner else { panic!("a handle does not sleep") };
        let inner = &mut *self.world.0.borrow_mut();
        let offset = inner.clocks[session.0];
        let real = at.as_micros().saturating_sub(offset);
        if real <= inner.now {
            return Poll::Ready(());
        }
        match inner.alarms.get_mut(session) {
            Some((at, waker)) if *at == real => waker.clone_from(cx.waker()),
            _ => {
                inner.alarms.insert(session, (real, cx.waker().clone()));
                inner.push(real, Due::Alarm(session, real));
            }
        }
        Poll::Pending
    }

    fn slot_waker(&mut self, slot: usize, task: &Waker) -> Option<&Waker> {
        Some(self.wakers.waker(slot, task))
    }

    fn take_woken(&mut self) -> Option<usize> {
        self.wakers.take()
    }
}

/// The port of nsqlookupd's HTTP side.
pub(crate) const HTTP_PORT: u16 = 4161;

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
            let name = match address.port() {
                // The two sides of an nsqlookupd are two hosts here, with faults of their own.
                HTTP_PORT => address.host().replace("lookup", "web"),
                _ => address.host().to_owned(),
            };
            let host = inner.hosts.iter().position(|host| host.name == name);
            let id = inner.name();
            inner.moves[session.0] += 1;
            let lately = inner.dialed.entry(*session).or_default();
            lately.retain(|at| at + 1_000_000 > inner.now);
            lately.push_back(inner.now);
            assert!(lately.len() <= DIALS_MAX, "dials too often within a second");
            let dial = Dial { session: *session, host, waker: None, result: None };
            inner.dials.insert(id, dial);
            let delay = inner.random.between(100, DELAY_MAX);
            if !name.starts_with(HOLE) {
                inner.push(inner.now + delay, Due::Dial(id));
            }
            id
        };
        watch::trace_session(*session, || format!("dials {address}"));
        /// Removes the dial, however its future ends.
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

impl Pipe {
    /// Returns whether the connection is with `host`; a faulty dial may have led elsewhere.
    pub(crate) fn is_of(&self, host: &str) -> bool {
        let inner = self.world.0.borrow();
        let conn = inner.conns.get(self.conn);
        conn.is_some_and(|conn| inner.hosts[conn.host].name == host)
    }

    /// Limits the bytes under way to the server to `window`.
    pub(crate) fn narrow(&self, window: usize) {
        let mut inner = self.world.0.borrow_mut();
        inner.conns.get_mut(self.conn).expect("a connection that is held").window = window;
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
