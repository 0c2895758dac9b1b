//! The network as the driver sees it: its clock, its dialer and its transports.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Dialer, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;
use nanonsq_models::Wakes;
use nanonsq_models::server::ConnId;

use super::{DELAY_MAX, DIALS_MAX, Dial, Due, World};
use crate::watch::{self, Event, Session};
use crate::web::HOLE;

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
    /// What its clones are for, in their order; then for handles.
    plan: Option<Rc<RefCell<VecDeque<Role>>>>,
    /// A session's waker, with how often it was used.
    own: Option<(Arc<Wakes>, Waker)>,
}

/// What a clone of a clock is for.
#[derive(Clone)]
pub(crate) enum Role {
    /// A handle.
    Handle,
    /// This one of the actor's sessions.
    Session(usize),
    /// A runner, whose clones have roles of their own.
    Runner(Rc<RefCell<VecDeque<Role>>>),
}

impl Clock {
    /// Of an actor's one session.
    pub(crate) fn of_session(world: &World, session: Session) -> Self {
        Self {
            world: world.clone(),
            whose: Whose::Session(session),
            next: None,
            plan: None,
            own: None,
        }
    }

    /// Of an actor's application.
    pub(crate) fn of_handle(world: &World, actor: usize) -> Self {
        Self {
            world: world.clone(),
            whose: Whose::Handle(actor),
            next: None,
            plan: None,
            own: None,
        }
    }

    /// Of an actor's runner that clones it for each of its sessions; `next` is which comes next.
    pub(crate) fn of_runner(world: &World, actor: usize, next: Rc<RefCell<usize>>) -> Self {
        Self {
            world: world.clone(),
            whose: Whose::Handle(actor),
            next: Some(next),
            plan: None,
            own: None,
        }
    }

    /// Of an actor's handle, whose clones have these roles.
    pub(crate) fn of_plan(world: &World, actor: usize, plan: Rc<RefCell<VecDeque<Role>>>) -> Self {
        Self { plan: Some(plan), ..Self::of_handle(world, actor) }
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
        if let Some(plan) = &self.plan {
            return match plan.borrow_mut().pop_front() {
                None | Some(Role::Handle) => Self::of_handle(&self.world, actor),
                Some(Role::Session(session)) => Self::of_session(&self.world, (actor, session)),
                Some(Role::Runner(plan)) => Self::of_plan(&self.world, actor, plan),
            };
        }
        if let Whose::Session(session) = self.whose {
            return Self::of_session(&self.world, session);
        }
        let whose = match &self.next {
            // The first clone of all is the handle's.
            Some(next) => {
                let machine = *next.borrow();
                *next.borrow_mut() += 1;
                machine.checked_sub(1).map_or(Whose::Handle(actor), |m| Whose::Session((actor, m)))
            }
            None => Whose::Handle(actor),
        };
        Self { world: self.world.clone(), whose, next: None, plan: None, own: None }
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
        match inner.alarms.get_mut(session) {
            Some((at, waker)) if *at == real => waker.clone_from(cx.waker()),
            _ => {
                inner.alarms.insert(session, (real, cx.waker().clone()));
                inner.push(real, Due::Alarm(session, real));
            }
        }
        Poll::Pending
    }

    fn own_waker(&mut self, task: &Waker) -> Option<&Waker> {
        let Whose::Session(_) = self.whose else { return None };
        if !self.own.as_ref().is_some_and(|(wakes, _)| wakes.is_before(task)) {
            self.own = Some(Wakes::before(task));
        }
        self.own.as_ref().map(|(_, waker)| waker)
    }

    fn take_woken(&mut self) -> bool {
        match (self.whose, &self.own) {
            (Whose::Handle(_), _) => true,
            (Whose::Session(_), None) => false,
            (Whose::Session(_), Some((wakes, _))) => wakes.take() > 0,
        }
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
                // nsqlookupd's two sides are two hosts here: each fails by itself.
                HTTP_PORT => address.host().replace("lookup", "web"),
                _ => address.host().to_owned(),
            };
            let host = inner.hosts.iter().position(|host| host.name == name);
            let id = inner.name();
            inner.moves[session.0] += 1;
            let lately = inner.dialed.entry(*session).or_default();
            lately.retain(|at| at + 1_000_000 > inner.now);
            lately.push_back(inner.now);
            assert!(lately.len() <= DIALS_MAX, "dials without end");
            let dial = Dial { session: *session, host, waker: None, result: None };
            inner.dials.insert(id, dial);
            let delay = inner.random.between(100, DELAY_MAX);
            if !name.starts_with(HOLE) {
                inner.push(inner.now + delay, Due::Dial(id));
            }
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

impl Pipe {
    /// Whether it leads to that host: another one may have been dialed.
    pub(crate) fn is_of(&self, host: &str) -> bool {
        let inner = self.world.0.borrow();
        let conn = inner.conns.get(self.conn);
        conn.is_some_and(|conn| inner.hosts[conn.host].name == host)
    }

    /// No more bytes than that are under way in one direction.
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
