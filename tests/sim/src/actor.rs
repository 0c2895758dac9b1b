//! What takes part in a simulation. Each kind of actor is a file of its own: an application on the
//! real handles and the real runner, and its own idea of what must be true.

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

/// A process: owns all that dies with it.
pub(crate) type Process = Pin<Box<dyn Future<Output = ()>>>;

/// See the [module](self).
pub(crate) trait Actor {
    /// A new process. Another one of this actor, if there was one, is dead.
    fn start(&mut self) -> (Process, Rc<Mailbox>);

    /// A server understood something on a connection of this actor's.
    fn seen(&mut self, session: Session, conn: ConnId, seen: Seen);

    /// Whether its process is to begin anew when the faults are over.
    fn begins_anew(&mut self) -> bool {
        false
    }

    /// Whether all should be well. If not it is waited for, within bounds.
    fn is_settled(&self) -> bool {
        true
    }

    /// The process is dead.
    fn died(&mut self) {}
}

/// What a process is told.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// To do something.
    Act(Random),
    /// To drop its runner's future and run it anew.
    Restart,
    /// No faults happen since long: everything is well.
    Settled(Random),
    /// Nothing of the past is left: everything is exactly as it should be.
    End,
}

/// Where a process is reached.
pub(crate) struct Mailbox {
    pub(crate) units: Units,
    pub(crate) orders: RefCell<VecDeque<Order>>,
}

/// The units that every process has.
pub(crate) const RUNNER: usize = 0;
/// Carries out orders.
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

    /// Polls those that are ready, each with its waker, for ever.
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

/// Waits until there is something; asked whenever its unit is woken.
pub(crate) fn until<T>(mut next: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
    poll_fn(move |_| next().map_or(Poll::Pending, Poll::Ready))
}

/// One of `n` actions, half of the time the favourite.
pub(crate) fn favour(random: &mut Random, favourite: u64, n: u64) -> u64 {
    if random.one_in(2) { favourite } else { random.below(n) }
}
