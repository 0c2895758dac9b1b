//! The handle with which an application uses its own nsqd.

use core::future::{Future, poll_fn};

use embassy_sync::blocking_mutex::raw::RawMutex;

use crate::drive::Sleep;
#[cfg(feature = "publisher")]
use crate::drive::publisher::Publish;
use crate::drive::server::{Engine as _, SharedServer, stop};
use crate::drive::shared::QueuedWait;
use crate::name::{ChannelName, TopicName};
use crate::nsqd::{Counters, Event, Nsqd, NsqdError, PublishError, PublishOptions, Ticket};
#[cfg(feature = "publisher")]
use crate::publisher::Outcome;
use crate::time::Instant;

/// Publishes messages, and manages topics and channels. A clone may be used in each task.
#[derive(Debug)]
pub struct Handle<'a, M: RawMutex, S> {
    pub(super) shared: &'a SharedServer<M, Nsqd<'a>>,
    pub(super) sleep: S,
}

impl<M: RawMutex, S: Clone> Clone for Handle<'_, M, S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared, sleep: self.sleep.clone() }
    }
}

impl<'a, M: RawMutex, S: Sleep> Handle<'a, M, S> {
    /// Accepts a message now, or returns an error; see [`Nsqd::publish`].
    pub fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        self.try_publish_with(topic, body, PublishOptions::default())
    }

    /// Accepts a message with a deferral now, or returns an error.
    pub fn try_publish_with(
        &self,
        topic: &TopicName,
        body: &[u8],
        options: PublishOptions,
    ) -> Result<Ticket, PublishError> {
        let now = self.sleep.now();
        self.change(|node| node.publish_with(now, topic, body, options))
            .unwrap_or(Err(PublishError::Full))
    }

    /// Accepts a message; waits while the store is full. Without a channel or a consumer, the store
    /// may stay full for ever.
    ///
    /// Cancel-safe: if the future is dropped before it is ready, the message is not accepted. Tasks
    /// that wait get room in the order in which they began to wait; a task may use all room there
    /// is.
    pub fn publish<'t, 'b>(
        &self,
        topic: &'t TopicName,
        body: &'b [u8],
    ) -> impl Future<Output = Result<Ticket, PublishError>> + use<'a, 't, 'b, M, S> {
        self.publish_with(topic, body, PublishOptions::default())
    }

    /// As [`publish`](Self::publish), with a deferral.
    pub fn publish_with<'t, 'b>(
        &self,
        topic: &'t TopicName,
        body: &'b [u8],
        options: PublishOptions,
    ) -> impl Future<Output = Result<Ticket, PublishError>> + use<'a, 't, 'b, M, S> {
        let mut wait = QueuedWait::new(self.shared);
        let sleep = self.sleep.clone();
        poll_fn(move |cx| {
            let now = sleep.now();
            wait.poll(cx.waker(), |served| match served.engine.offer(now, topic, body, options) {
                Err(PublishError::Full) => None,
                taken => Some(taken),
            })
        })
    }

    /// See [`Nsqd::create`].
    pub fn create(
        &self,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        self.manage(|node, now| node.create(now, topic, channel))
    }

    /// See [`Nsqd::delete`].
    pub fn delete(
        &self,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        self.manage(|node, now| node.delete(now, topic, channel))
    }

    /// See [`Nsqd::empty`].
    pub fn empty(&self, topic: &TopicName, channel: Option<&ChannelName>) -> Result<(), NsqdError> {
        self.manage(|node, now| node.empty(now, topic, channel))
    }

    /// See [`Nsqd::pause`].
    pub fn pause(&self, topic: &TopicName, channel: Option<&ChannelName>) -> Result<(), NsqdError> {
        self.manage(|node, now| node.pause(now, topic, channel))
    }

    /// See [`Nsqd::unpause`].
    pub fn unpause(
        &self,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), NsqdError> {
        self.manage(|node, now| node.unpause(now, topic, channel))
    }

    /// Sets the clock: Unix time in nanoseconds.
    pub fn set_unix_time(&self, nanoseconds: i64) {
        let now = self.sleep.now();
        self.change(|node| node.set_unix_time(now, nanoseconds));
    }

    /// Waits until the store is empty: every channel has finished every message. Cancel-safe.
    pub fn idle(&self) -> impl Future<Output = ()> + use<'a, M, S> {
        self.wait(|node| node.is_idle().then_some(()))
    }

    /// Waits for the next event. Cancel-safe. With several tasks waiting, each event goes to one.
    pub fn event(&self) -> impl Future<Output = Event> + use<'a, M, S> {
        self.wait_mut(Nsqd::poll_event)
    }

    /// Returns the next event, if there is one now.
    pub fn try_event(&self) -> Option<Event> {
        self.shared.read(|served| served.engine.poll_event())?
    }

    /// Unregisters everything at the nsqlookupds, then closes all connections for good. Returns
    /// when that is done, at most the lookup's reply timeout and close timeout later. Messages stay
    /// in the store. Dropping the future does not cancel the stop.
    pub async fn stop(&self) {
        stop(self.shared).await;
    }

    /// Returns the nsqd's counters.
    pub fn counters(&self) -> Counters {
        self.look(|node| node.counters()).unwrap_or_default()
    }

    /// Returns the number of callers that were rejected at both ports because all connections were
    /// taken.
    pub fn turned_away(&self) -> u32 {
        self.shared.read(|served| served.refused()).unwrap_or_default()
    }

    /// Returns the number of callers that were rejected at the HTTP port.
    pub fn turned_away_http(&self) -> u32 {
        self.shared.read(|served| served.refused_http()).unwrap_or_default()
    }

    /// Runs `f` on the nsqd. Returns `None` only if called within another `look`.
    pub fn look<R>(&self, f: impl FnOnce(&Nsqd<'a>) -> R) -> Option<R> {
        self.shared.read(|served| f(&served.engine))
    }

    /// For tests and the simulator, which inspect sessions; not part of the API. Wakes no task.
    #[doc(hidden)]
    pub fn inspect<R>(&self, f: impl FnOnce(&mut Nsqd<'a>) -> R) -> Option<R> {
        self.shared.read(|served| f(&mut served.engine))
    }

    /// Checks `f` now and after each change of the nsqd, until `f` returns an answer. Cancel-safe.
    pub fn wait<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&Nsqd<'a>) -> Option<R>,
    {
        self.wait_mut(move |it| f(it))
    }

    fn wait_mut<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&mut Nsqd<'a>) -> Option<R>,
    {
        let shared = self.shared;
        // Not an `async fn`, which would wrap this future in another state machine.
        poll_fn(move |cx| shared.poll_wait(cx.waker(), |served| f(&mut served.engine)))
    }

    fn change<R>(&self, f: impl FnOnce(&mut Nsqd<'a>) -> R) -> Option<R> {
        self.shared.update(|served| f(&mut served.engine))
    }

    fn manage(
        &self,
        f: impl FnOnce(&mut Nsqd<'a>, Instant) -> Result<(), NsqdError>,
    ) -> Result<(), NsqdError> {
        let now = self.sleep.now();
        // Within a `look` the nsqd cannot be changed.
        self.change(|node| f(node, now)).unwrap_or(Err(NsqdError::NoTopic))
    }
}

/// A message that the nsqd accepted counts as acknowledged: the `OK` of nsqd means the same.
#[cfg(feature = "publisher")]
impl<M: RawMutex, S: Sleep> Publish for Handle<'_, M, S> {
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

    async fn outcome(&self, _: Ticket) -> Outcome {
        Outcome::Acknowledged
    }
}
