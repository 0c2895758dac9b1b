//! The participants of a simulation. Each kind of actor has its own file: an application on the
//! real handles and the real runner, and its own checks of what must be true.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::exec::Units;
use crate::watch::Session;
use crate::world::World;

/// The future of a process; it owns everything that ends with the process.
pub(crate) type Process = Pin<Box<dyn Future<Output = ()>>>;

/// See the [module](self).
pub(crate) trait Actor {
    /// Starts a new process; an earlier process of this actor has ended.
    fn start(&mut self) -> (Process, Rc<Mailbox>);

    /// Receives what a server parsed on a connection of this actor.
    fn seen(&mut self, session: Session, conn: ConnId, seen: Seen);

    /// Returns true if the actor's process must restart when the faults are over.
    fn begins_anew(&mut self) -> bool {
        false
    }

    /// Returns false while the actor needs more time; the run then waits, within bounds.
    fn is_settled(&self) -> bool {
        true
    }

    /// Called after the process was dropped.
    fn died(&mut self) {}
}

/// An instruction to a process.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// Do one action of the application.
    Act(Random),
    /// Drop the runner's future and run it again.
    Restart,
    /// No faults for a long time: check that everything works.
    Settled(Random),
    /// Nothing of the past is left: check everything exactly.
    End,
}

/// The units and the pending orders of a process.
pub(crate) struct Mailbox {
    pub(crate) units: Units,
    pub(crate) orders: RefCell<VecDeque<Order>>,
}

/// The unit that every process has: its runner.
pub(crate) const RUNNER: usize = 0;
/// The unit that carries out orders; every process has it as well.
pub(crate) const ORDERS: usize = 1;

impl Mailbox {
    pub(crate) fn new(units: usize, sessions: u32) -> Rc<Self> {
        let mailbox = Self { units: Units::new(units, sessions), orders: RefCell::default() };
        mailbox.units.wake_all();
        Rc::new(mailbox)
    }

    pub(crate) fn order(&self, order: Order) {
        self.orders.borrow_mut().push_back(order);
        self.units.wake(ORDERS);
    }

    /// Polls the units that are ready, each with its waker, for ever.
    pub(crate) async fn attend(
        &self,
        world: &World,
        mut poll: impl FnMut(usize, &mut Context<'_>),
    ) {
        poll_fn(|_| -> Poll<()> {
            while let Some((unit, _)) = self.units.take(world.now()) {
                let waker = self.units.waker(unit);
                poll(unit, &mut Context::from_waker(&waker));
            }
            Poll::Pending
        })
        .await;
    }

    pub(crate) fn next_order(&self) -> Option<Order> {
        self.orders.borrow_mut().pop_front()
    }
}

/// Waits until `next` returns a value; it is called whenever the unit is woken.
pub(crate) fn until<T>(mut next: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
    poll_fn(move |_| next().map_or(Poll::Pending, Poll::Ready))
}

/// Returns one of `n` actions: `favourite` half of the time.
pub(crate) fn favour(random: &mut Random, favourite: u64, n: u64) -> u64 {
    if random.one_in(2) { favourite } else { random.below(n) }
}
