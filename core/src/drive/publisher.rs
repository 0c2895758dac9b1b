//! A [`Publisher`] with its connection: a [`Handle`] to publish with and a [`Runner`] to run, or a
//! [`OneTask`] that is both, for a program with one task.

mod one_task;

use core::fmt;
use core::future::{Future, poll_fn};
use core::pin::pin;
use core::task::Poll;

use embassy_sync::blocking_mutex::raw::RawMutex;

use super::client::ClientRef;
use super::connection::{poll_apart, run_dialed};
use super::shared::{OnceCell, QueuedWait, SessionLock, Shared};
use super::{Dialer, Sleep};
use crate::address::Address;
use crate::name::TopicName;
use crate::publisher::{
    Config, ConfigError, Counters, Event, Outcome, PublishError, PublishOptions, Publisher, State,
    Ticket,
};
use crate::session::Closed;
use crate::time::Span;

pub use one_task::OneTask;

/// The size of the receive buffer, which holds a dozen acknowledgements.
const RX_LEN: usize = 128;

/// The memory that a publisher's handles and its runner share. `M` is `NoopRawMutex` if all of them
/// run on one executor thread, otherwise `CriticalSectionRawMutex`.
///
/// Put this into a `static` cell on a microcontroller, on the stack or into a box on a desktop.
#[derive(Debug)]
pub struct Resources<'a, M: RawMutex> {
    // Set up in place: a move would pass through the stack.
    publisher: Publisher<'a>,
    shared: OnceCell<Shared<M, ClientRef<'a>>>,
}

impl<M: RawMutex> Resources<'_, M> {
    /// Returns idle resources; [`new`] sets them up.
    // See `OneTask::new`.
    #[inline(never)]
    pub const fn new() -> Self {
        Self { publisher: Publisher::idle(), shared: OnceCell::Empty }
    }
}

impl<M: RawMutex> Default for Resources<'_, M> {
    fn default() -> Self {
        Self::new()
    }
}

/// Sets up a publisher and returns its handle and its runner. `ring` is its outbox; see
/// [`Publisher::new`].
#[expect(clippy::type_complexity, reason = "two ends, each with its parameters")]
pub fn new<'a, M: RawMutex, D: Dialer, S: Sleep>(
    resources: &'a mut Resources<'a, M>,
    config: &'a Config<'a>,
    nsqds: &'a [Address],
    ring: &'a mut [u8],
    dialer: D,
    sleep: S,
) -> Result<(Handle<'a, M>, Runner<'a, M, D, S>), ConfigError> {
    let Resources { publisher, shared } = resources;
    publisher.set_up(config, nsqds, ring)?;
    let shared = &*shared.insert(Shared::new(publisher));
    Ok((Handle { shared }, Runner { shared, dialer, sleep }))
}

/// Publishing, for application code that publishes either to an nsqd or in its own nsqd
/// ([`nsqd::Handle`](super::nsqd::Handle)).
pub trait Publish {
    /// Identifies an accepted message.
    type Ticket: Copy + fmt::Debug;
    /// The reason why a message was not accepted.
    type Error: fmt::Debug + fmt::Display;

    /// Accepts a message; waits while there is no room. Cancel-safe: if the future is dropped
    /// before it is ready, the message is not accepted.
    fn publish(
        &self,
        topic: &TopicName,
        body: &[u8],
    ) -> impl Future<Output = Result<Self::Ticket, Self::Error>>;

    /// Accepts a message now, or returns an error.
    fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Self::Ticket, Self::Error>;

    /// Waits for the outcome of a message. Cancel-safe.
    fn outcome(&self, ticket: Self::Ticket) -> impl Future<Output = Outcome>;
}

/// Publishes messages. A copy may be used in each task.
#[derive(Debug)]
pub struct Handle<'a, M: RawMutex> {
    shared: &'a Shared<M, ClientRef<'a>>,
}

impl<M: RawMutex> Clone for Handle<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M: RawMutex> Copy for Handle<'_, M> {}

impl<'a, M: RawMutex> Handle<'a, M> {
    /// Accepts a message now, or returns an error. The runner sends the message when it is next
    /// polled.
    pub fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        self.accept(|publisher| publisher.publish(topic, body))
    }

    /// Accepts a message with a deferral or a deadline now, or returns an error.
    pub fn try_publish_with(
        &self,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        self.accept(|publisher| publisher.publish_with(topic, body, options))
    }

    /// Accepts a message; waits while the outbox is full.
    ///
    /// Cancel-safe: if the future is dropped before it is ready, the message is not accepted. Tasks
    /// that wait get room in the order in which they began to wait; a task may use all room there
    /// is.
    pub fn publish<'t, 'b>(
        &self,
        topic: &'t TopicName,
        body: &'b [u8],
    ) -> impl Future<Output = Result<Ticket, PublishError>> + use<'a, 't, 'b, M> {
        self.publish_with(topic, body, PublishOptions::default())
    }

    /// As [`publish`](Self::publish), with a deferral or a deadline.
    pub fn publish_with<'t, 'b>(
        &self,
        topic: &'t TopicName,
        body: &'b [u8],
        options: PublishOptions,
    ) -> impl Future<Output = Result<Ticket, PublishError>> + use<'a, 't, 'b, M> {
        let mut wait = QueuedWait::new(self.shared);
        poll_fn(move |cx| {
            wait.poll(cx.waker(), |client| {
                match client.as_publisher()?.offer(topic, body, options) {
                    Err(PublishError::Full) => None,
                    taken => Some(taken),
                }
            })
        })
    }

    /// Waits for the outcome of a message. Cancel-safe. After [`stop`](Self::stop) a pending
    /// message stays pending, and this waits for ever.
    pub fn outcome(&self, ticket: Ticket) -> impl Future<Output = Outcome> + use<'a, M> {
        self.wait(move |publisher| publisher.outcome(ticket))
    }

    /// Waits until no message is pending. Cancel-safe. After [`stop`](Self::stop) with messages
    /// pending, it waits for ever.
    pub fn idle(&self) -> impl Future<Output = ()> + use<'a, M> {
        self.wait(|publisher| (publisher.counters().pending == 0).then_some(()))
    }

    /// Waits for the next event. Cancel-safe. With several tasks waiting, each event goes to one.
    pub fn event(&self) -> impl Future<Output = Event> + use<'a, M> {
        self.wait_mut(Publisher::poll_event)
    }

    /// Returns the next event, if there is one now.
    pub fn try_event(&self) -> Option<Event> {
        self.shared.read(|client| client.as_publisher()?.poll_event())?
    }

    /// Waits until no message is pending, for at most `timeout`, then closes the connection and
    /// returns how many messages are pending: 0 if all are final. Until [`resume`](Self::resume)
    /// nothing is sent and no message is accepted, so a device may switch its network off and
    /// sleep. Cancel-safe before the closing begins; after that, dropping the future does not
    /// cancel it.
    pub async fn drain(&self, sleep: &impl Sleep, timeout: Span) -> u64 {
        let mut timer = sleep.clone();
        let end = timer.now().after(timeout);
        let mut idle = pin!(self.idle());
        poll_fn(|cx| match idle.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => timer.poll_until(cx, end),
        })
        .await;
        self.stop(sleep).await;
        self.counters().pending
    }

    /// Connects again after [`drain`](Self::drain) or [`stop`](Self::stop), and waits for the end
    /// of a closing that is under way. Pending messages are sent.
    pub async fn resume(&self) {
        self.wait(|publisher| {
            let closing = matches!(publisher.state(), State::Closing(Closed::Local));
            (!closing).then_some(())
        })
        .await;
        self.shared.update(|client| client.as_publisher().map(Publisher::resume));
    }

    /// Closes the connection, until [`resume`](Self::resume), and waits until it is closed. Messages
    /// that are not acknowledged by then stay pending: wait for [`idle`](Self::idle) first. Dropping
    /// the future does not cancel the closing.
    pub async fn stop(&self, sleep: &impl Sleep) {
        let now = sleep.now();
        self.shared.update_and_wake_tasks(|client| {
            if let Some(publisher) = client.as_publisher() {
                publisher.stop(now);
            }
        });
        self.wait(|publisher| matches!(publisher.state(), State::Stopped).then_some(())).await;
    }

    /// Returns the publisher's counters.
    pub fn counters(&self) -> Counters {
        self.look(|publisher| publisher.counters()).unwrap_or_default()
    }

    /// Runs `f` on the publisher. Returns `None` only if called within another `look`.
    pub fn look<R>(&self, f: impl FnOnce(&Publisher<'a>) -> R) -> Option<R> {
        self.shared.read(|client| client.as_publisher().map(|it| f(it)))?
    }

    /// For tests and the simulator, which inspect sessions; not part of the API. Wakes no task.
    #[doc(hidden)]
    pub fn inspect<R>(&self, f: impl FnOnce(&mut Publisher<'a>) -> R) -> Option<R> {
        self.shared.read(|client| client.as_publisher().map(f))?
    }

    /// Checks `f` now and whenever a message is resolved or the connection opens or closes, until
    /// `f` returns an answer. Cancel-safe.
    pub fn wait<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, R, F>
    where
        F: FnMut(&Publisher<'a>) -> Option<R>,
    {
        self.wait_mut(move |it| f(it))
    }

    fn wait_mut<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, R, F>
    where
        F: FnMut(&mut Publisher<'a>) -> Option<R>,
    {
        let shared = self.shared;
        // Not an `async fn`, which would wrap this future in another state machine.
        poll_fn(move |cx| shared.poll_wait(cx.waker(), |client| f(client.as_publisher()?)))
    }

    fn accept(
        &self,
        publish: impl FnOnce(&mut Publisher<'a>) -> Result<Ticket, PublishError>,
    ) -> Result<Ticket, PublishError> {
        let taken = self.shared.update(|client| client.as_publisher().map(publish));
        taken.flatten().unwrap_or(Err(PublishError::Full))
    }
}

impl<M: RawMutex> Publish for Handle<'_, M> {
    type Ticket = Ticket;
    type Error = PublishError;

    fn publish(
        &self,
        topic: &TopicName,
        body: &[u8],
    ) -> impl Future<Output = Result<Ticket, PublishError>> {
        Handle::publish(self, topic, body)
    }

    fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        Handle::try_publish(self, topic, body)
    }

    fn outcome(&self, ticket: Ticket) -> impl Future<Output = Outcome> {
        Handle::outcome(self, ticket)
    }
}

/// Connects and carries bytes: exactly one [`run`](Self::run) must be polled.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless `run` is polled"]
pub struct Runner<'a, M: RawMutex, D, S> {
    shared: &'a Shared<M, ClientRef<'a>>,
    dialer: D,
    sleep: S,
}

impl<M: RawMutex, D: Dialer, S: Sleep> Runner<'_, M, D, S> {
    /// Runs the connection for ever. Dropping the future ends the connection; messages stay in the
    /// outbox until this is called again.
    pub async fn run(&mut self) -> ! {
        let mut rx = [0; RX_LEN];
        let mut access = SessionLock { shared: self.shared, index: 0 };
        let (dialer, sleep) = (&mut self.dialer, &mut self.sleep);
        let mut drive = pin!(run_dialed(&mut access, dialer, sleep, &mut rx));
        poll_fn(|cx| poll_apart(drive.as_mut(), cx)).await
    }
}
