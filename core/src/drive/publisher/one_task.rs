//! A [`Publisher`] held by one task: without a lock, wakers and a second task.

use core::cell::{Cell, RefCell};
use core::future::poll_fn;
use core::pin::pin;
use core::task::{Poll, Waker};

use super::{Publish, RX_LEN};
use crate::address::Address;
use crate::drive::connection::{Access, Steps, poll_apart, run_dialed};
use crate::drive::{Dialer, Sleep};
use crate::name::TopicName;
use crate::publisher::{
    Config, ConfigError, Outcome, PublishError, PublishOptions, Publisher, Ticket,
};
use crate::session::Session;
use crate::time::Instant;

/// The number of rounds of application and connection in one poll before other tasks run.
const ROUNDS_MAX: u8 = 16;

/// A publisher and its connection for a program with one task, smaller and faster than
/// [`Resources`](super::Resources) with its handles: [`run_until`](Self::run_until) runs the
/// application's code, and carries what that publishes whenever it waits.
#[derive(Debug)]
pub struct OneTask<'a> {
    publisher: RefCell<Publisher<'a>>,
    /// The publisher's version that the task has seen.
    seen: Cell<u32>,
}

impl Default for OneTask<'_> {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> OneTask<'a> {
    /// Returns an idle publisher; [`set_up`](Self::set_up) makes it work.
    // Not a `const` block, whose image in flash is larger than the code; out of line, so that the
    // caller's stack has no copy.
    #[inline(never)]
    pub const fn new() -> Self {
        Self { publisher: RefCell::new(Publisher::idle()), seen: Cell::new(0) }
    }

    /// Gives an idle publisher its settings, in place. `ring` is its outbox; see
    /// [`Publisher::new`]. Call it once.
    pub fn set_up(
        &mut self,
        config: &'a Config<'a>,
        nsqds: &'a [Address],
        ring: &'a mut [u8],
    ) -> Result<(), ConfigError> {
        self.publisher.get_mut().set_up(config, nsqds, ring)
    }

    /// Runs `task` to its end and returns its result. While the task waits, for whatever, the
    /// connection is driven: dialed, written, read, and dialed again when it is lost.
    ///
    /// When the task ends, the connection ends: before that, wait for the
    /// [`outcome`](Self::outcome) of the last message. Dropping the future drops the task and ends
    /// the connection. Messages stay in the outbox, and the next call sends them.
    ///
    /// The waits of [`publish`](Self::publish) and [`outcome`](Self::outcome) register no waker.
    /// They must be polled whenever the task is, which `await`, `join` and `select` do; a
    /// collection that polls only woken futures, such as `FuturesUnordered`, does not.
    pub async fn run_until<D, S, R>(
        &mut self,
        dialer: &mut D,
        sleep: &mut S,
        task: impl AsyncFnOnce(&Self) -> R,
    ) -> R
    where
        D: Dialer,
        S: Sleep,
    {
        let this = &*self;
        let mut rx = [0; RX_LEN];
        let mut access = Owner(this);
        let mut task = pin!(task(this));
        let mut drive = pin!(run_dialed(&mut access, dialer, sleep, &mut rx));
        poll_fn(|cx| {
            for _ in 0..ROUNDS_MAX {
                if let Poll::Ready(result) = poll_apart(task.as_mut(), cx) {
                    return Poll::Ready(result);
                }
                let before = this.version();
                this.seen.set(before);
                // Never ready.
                let _ = poll_apart(drive.as_mut(), cx);
                if this.version() == before {
                    return Poll::Pending;
                }
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await
    }

    /// Accepts a message now, or returns an error. It is sent when the task waits next. Within
    /// [`with`](Self::with) this returns [`PublishError::Full`].
    pub fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        self.with(|publisher| publisher.publish(topic, body)).unwrap_or(Err(PublishError::Full))
    }

    /// Accepts a message; waits while the outbox is full, within [`run_until`](Self::run_until).
    ///
    /// Cancel-safe: if the future is dropped before it is ready, the message is not accepted.
    pub fn publish(
        &self,
        topic: &TopicName,
        body: &[u8],
    ) -> impl Future<Output = Result<Ticket, PublishError>> {
        // Not an `async fn`, which would wrap this future in another state machine.
        poll_fn(move |_| {
            let options = PublishOptions { defer: None, deadline: None };
            match self.with(|publisher| publisher.offer(topic, body, options)) {
                None | Some(Err(PublishError::Full)) => Poll::Pending,
                Some(taken) => Poll::Ready(taken),
            }
        })
    }

    /// Waits for the outcome of a message, within [`run_until`](Self::run_until). Cancel-safe.
    /// After [`Publisher::stop`] a pending message stays pending, and this waits for ever.
    pub fn outcome(&self, ticket: Ticket) -> impl Future<Output = Outcome> {
        poll_fn(move |_| {
            let outcome = self.with(|publisher| publisher.outcome(ticket)).flatten();
            outcome.map_or(Poll::Pending, Poll::Ready)
        })
    }

    /// Runs `f` on the publisher: for its counters, events and state, for publishing with a
    /// deferral or a deadline, and for [`Publisher::stop`]. Returns `None` only if called within
    /// another `with`.
    pub fn with<R>(&self, f: impl FnOnce(&mut Publisher<'a>) -> R) -> Option<R> {
        self.publisher.try_borrow_mut().ok().map(|mut publisher| f(&mut publisher))
    }

    /// Returns the publisher's [version](Publisher::version).
    fn version(&self) -> u32 {
        self.publisher.try_borrow().map_or(0, |publisher| publisher.version())
    }
}

impl Publish for OneTask<'_> {
    type Ticket = Ticket;
    type Error = PublishError;

    fn publish(
        &self,
        topic: &TopicName,
        body: &[u8],
    ) -> impl Future<Output = Result<Ticket, PublishError>> {
        OneTask::publish(self, topic, body)
    }

    fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        OneTask::try_publish(self, topic, body)
    }

    fn outcome(&self, ticket: Ticket) -> impl Future<Output = Outcome> {
        OneTask::outcome(self, ticket)
    }
}

/// The driver's access to a publisher of its own task.
struct Owner<'c, 'a>(&'c OneTask<'a>);

impl<'a> Steps for Owner<'_, 'a> {
    type Access<'s>
        = Self
    where
        Self: 's;
    type Whom = Option<&'a Address>;

    const NOBODY: Self::Whom = None;

    fn address<'w>(whom: &'w Option<&'a Address>) -> Option<&'w Address> {
        *whom
    }

    fn steps(&mut self) -> &mut Self {
        self
    }
}

impl<'a> Access for Owner<'_, 'a> {
    type Session<'s> = Publisher<'a>;
    type Whom = Option<&'a Address>;

    // `run_until` has the rounds.
    const ROUNDS: u8 = 1;
    const ROUNDS_AT_ONCE: u8 = 1;

    fn with(&mut self, f: impl FnMut(&mut Publisher<'a>)) {
        self.0.with(f);
    }

    fn dial(session: &mut Publisher<'a>, now: Instant, whom: &mut Self::Whom) -> bool {
        let due = session.dial(now).is_some();
        *whom = session.nsqd();
        due
    }

    /// Needs no waker: the task polls the driver after each poll of the application.
    fn register(&mut self, _: &Waker) {}

    fn is_changed(&self) -> bool {
        self.0.version() != self.0.seen.get()
    }
}
