//! A [`Consumer`] with its connections: a [`Handle`] to take messages with and a [`Runner`] to run.

use core::array;
use core::future::{Future, poll_fn};
use core::pin::pin;

use embassy_futures::select::{Either, select, select_array};
use embassy_sync::blocking_mutex::raw::RawMutex;

use super::client::ClientRef;
use super::connection::{poll_apart, run_dialed};
use super::shared::{OnceCell, QueuedWait, SessionLock, Shared};
use super::{Dialer, Sleep};
use crate::address::Address;
use crate::consumer::{
    AnswerError, Config, ConfigError, Consumer, Counters, Delivery, Discovery, Event, Storage,
};
use crate::macros::warn_of;
use crate::time::Span;
use crate::wire::nsqd::MessageHead;

/// The size of a connection's receive buffer in [`Runner::run`], which holds a few short messages.
const RX_LEN: usize = 256;

/// The size of the receive buffer of a connection to an nsqlookupd.
const LOOKUPD_RX_LEN: usize = 128;

/// The memory that a consumer's handles and its runner share: tables for `CONNECTIONS` connections
/// to nsqds, `MESSAGES` messages in flight, `LOOKUPDS` nsqlookupds and `NSQDS` listed nsqds (both 0
/// without nsqlookupds). See [`publisher::Resources`](super::publisher::Resources).
#[derive(Debug)]
pub struct Resources<
    'a,
    M: RawMutex,
    const CONNECTIONS: usize,
    const MESSAGES: usize,
    const LOOKUPDS: usize,
    const NSQDS: usize,
> {
    storage: Storage<CONNECTIONS, MESSAGES>,
    discovery: Discovery<LOOKUPDS, NSQDS>,
    consumer: OnceCell<Consumer<'a>>,
    shared: OnceCell<Shared<M, ClientRef<'a>>>,
}

impl<
    M: RawMutex,
    const CONNECTIONS: usize,
    const MESSAGES: usize,
    const LOOKUPDS: usize,
    const NSQDS: usize,
> Resources<'_, M, CONNECTIONS, MESSAGES, LOOKUPDS, NSQDS>
{
    /// Returns idle resources; [`new`] sets them up. All bytes are zero: a static needs no image in
    /// flash.
    pub const fn new() -> Self {
        const {
            Self {
                storage: Storage::new(),
                discovery: Discovery::new(),
                consumer: OnceCell::Empty,
                shared: OnceCell::Empty,
            }
        }
    }
}

impl<
    M: RawMutex,
    const CONNECTIONS: usize,
    const MESSAGES: usize,
    const LOOKUPDS: usize,
    const NSQDS: usize,
> Default for Resources<'_, M, CONNECTIONS, MESSAGES, LOOKUPDS, NSQDS>
{
    fn default() -> Self {
        Self::new()
    }
}

/// The nsqds to consume from: given nsqds, nsqds that nsqlookupds list, or both.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The TCP addresses (port 4150) of nsqds.
    pub nsqds: &'a [Address],
    /// The HTTP addresses (port 4161) of nsqlookupds.
    pub lookupds: &'a [Address],
}

/// The dialers, one for each connection.
#[derive(Debug, Clone, Copy)]
pub struct Dialers<D, const CONNECTIONS: usize, const LOOKUPDS: usize> {
    /// The dialers of the connections to nsqds.
    pub nsqds: [D; CONNECTIONS],
    /// The dialers of the connections to nsqlookupds.
    pub lookupds: [D; LOOKUPDS],
}

/// Sets up a consumer and returns its handle and its runner. `ring` holds its messages; see
/// [`Consumer::new`].
#[expect(clippy::type_complexity, reason = "two ends, each with its parameters")]
pub fn new<
    'a,
    M: RawMutex,
    D: Dialer,
    S: Sleep,
    const CONNECTIONS: usize,
    const MESSAGES: usize,
    const LOOKUPDS: usize,
    const NSQDS: usize,
>(
    resources: &'a mut Resources<'a, M, CONNECTIONS, MESSAGES, LOOKUPDS, NSQDS>,
    config: &'a Config<'a>,
    sources: Sources<'a>,
    ring: &'a mut [u8],
    dialers: Dialers<D, CONNECTIONS, LOOKUPDS>,
    sleep: S,
) -> Result<(Handle<'a, M, S>, Runner<'a, M, D, S, CONNECTIONS, LOOKUPDS>), ConfigError> {
    let Resources { storage, discovery, consumer, shared } = resources;
    // Checked here, where the compiler knows most of the numbers.
    config.check(CONNECTIONS, sources.nsqds.len(), MESSAGES, ring.len())?;
    let consumer = set_up(config, storage, consumer, sources.nsqds, ring);
    // The compiler does not link options, turns and discovery where these conditions are constants.
    if config.has_options() {
        consumer.send_options();
    }
    if sources.nsqds.len() > CONNECTIONS {
        consumer.take_turns();
    }
    if LOOKUPDS > 0 {
        consumer.discover(discovery, sources.lookupds)?;
    } else if !sources.lookupds.is_empty() {
        return Err(ConfigError::Lookupds { count: sources.lookupds.len() });
    }
    let shared = &*shared.insert(Shared::new(consumer));
    Ok((Handle { shared, sleep: sleep.clone() }, Runner { shared, dialers, sleep }))
}

/// Sets up a consumer in place. Not inlined, so that not every poll needs the stack of this.
#[inline(never)]
fn set_up<'a, const CONNECTIONS: usize, const MESSAGES: usize>(
    config: &'a Config<'a>,
    storage: &'a mut Storage<CONNECTIONS, MESSAGES>,
    consumer: &'a mut OnceCell<Consumer<'a>>,
    nsqds: &'a [Address],
    ring: &'a mut [u8],
) -> &'a mut Consumer<'a> {
    let tables = storage.tables(ring.len());
    let consumer = consumer.insert(Consumer::unassigned(config, tables, nsqds, ring));
    consumer.assign_given();
    consumer
}

/// Takes messages. A clone may be used in each task.
#[derive(Debug)]
pub struct Handle<'a, M: RawMutex, S> {
    shared: &'a Shared<M, ClientRef<'a>>,
    sleep: S,
}

impl<M: RawMutex, S: Clone> Clone for Handle<'_, M, S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared, sleep: self.sleep.clone() }
    }
}

impl<'a, M: RawMutex, S: Sleep> Handle<'a, M, S> {
    /// Waits for the next message. Cancel-safe: if the future is dropped before it is ready, no
    /// message is taken. Tasks that wait get messages in the order in which they began to wait.
    // Not an `async fn`, which would wrap this future in another state machine.
    pub fn next<'h>(&'h self) -> impl Future<Output = Message<'a, M, S>> + use<'h, 'a, M, S> {
        let (shared, sleep) = (self.shared, &self.sleep);
        let mut wait = QueuedWait::new(shared);
        poll_fn(move |cx| {
            wait.poll(cx.waker(), |client| client.as_consumer()?.take(sleep.now()))
                .map(|delivery| Message { shared, sleep: sleep.clone(), delivery, answered: false })
        })
    }

    /// Returns the next message, if there is one now.
    pub fn try_next(&self) -> Option<Message<'a, M, S>> {
        let delivery = self.change(|consumer| consumer.take(self.sleep.now()))??;
        let (shared, sleep) = (self.shared, self.sleep.clone());
        Some(Message { shared, sleep, delivery, answered: false })
    }

    /// Waits for the next event. Cancel-safe. With several tasks waiting, each event goes to one.
    pub fn event(&self) -> impl Future<Output = Event> + use<'a, M, S> {
        self.wait_mut(Consumer::poll_event)
    }

    /// Returns the next event, if there is one now.
    pub fn try_event(&self) -> Option<Event> {
        self.shared.read(|client| client.as_consumer()?.poll_event())?
    }

    /// See [`Consumer::pause`].
    pub fn pause(&self) {
        let now = self.sleep.now();
        self.change(|consumer| consumer.pause(now));
    }

    /// See [`Consumer::resume`].
    pub fn resume(&self) {
        let now = self.sleep.now();
        self.change(|consumer| consumer.resume(now));
    }

    /// See [`Consumer::set_max_in_flight`].
    pub fn set_max_in_flight(&self, max: u16) {
        let now = self.sleep.now();
        self.change(|consumer| consumer.set_max_in_flight(now, max));
    }

    /// Leaves all nsqds for good and returns when that is done. Messages that the application has
    /// not taken are requeued at once; the consumer waits for the answers to all others, until
    /// [`Config::drain_timeout`] at most. Dropping the future does not cancel the leaving.
    pub async fn stop(&self) {
        self.change(Consumer::stop);
        self.wait(|consumer| consumer.is_stopped().then_some(())).await;
    }

    /// Returns the consumer's counters.
    pub fn counters(&self) -> Counters {
        self.look(|consumer| consumer.counters()).unwrap_or_default()
    }

    /// Runs `f` on the consumer. Returns `None` only if called within another `look`.
    pub fn look<R>(&self, f: impl FnOnce(&Consumer<'a>) -> R) -> Option<R> {
        self.shared.read(|client| client.as_consumer().map(|it| f(it)))?
    }

    /// For tests and the simulator, which inspect sessions; not part of the API. Wakes no task.
    #[doc(hidden)]
    pub fn inspect<R>(&self, f: impl FnOnce(&mut Consumer<'a>) -> R) -> Option<R> {
        self.shared.read(|client| client.as_consumer().map(f))?
    }

    /// Checks `f` now and after each change of the consumer, until `f` returns an answer.
    /// Cancel-safe.
    pub fn wait<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&Consumer<'a>) -> Option<R>,
    {
        self.wait_mut(move |it| f(it))
    }

    fn wait_mut<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&mut Consumer<'a>) -> Option<R>,
    {
        let shared = self.shared;
        // Not an `async fn`, which would wrap this future in another state machine.
        poll_fn(move |cx| shared.poll_wait(cx.waker(), |client| f(client.as_consumer()?)))
    }

    fn change<R>(&self, f: impl FnOnce(&mut Consumer<'a>) -> R) -> Option<R> {
        self.shared.update(|client| client.as_consumer().map(f))?
    }
}

/// A message that the application must answer. Dropping it unanswered requeues it, as
/// [`release`](Self::release) does, and warns in the log.
///
/// Do not answer or drop a message within [`Handle::look`]: no answer would be sent. A forgotten
/// message (`mem::forget`) is not answered either: nsqd requeues it after its timeout, but it keeps
/// its room in the ring.
#[derive(Debug)]
#[must_use = "a message that is dropped unanswered is requeued"]
pub struct Message<'a, M: RawMutex, S: Sleep> {
    shared: &'a Shared<M, ClientRef<'a>>,
    sleep: S,
    delivery: Delivery,
    answered: bool,
}

impl<'a, M: RawMutex, S: Sleep> Message<'a, M, S> {
    /// Returns the message's id, timestamp and number of attempts. `None` only within
    /// [`Handle::look`].
    pub fn head(&self) -> Option<MessageHead> {
        let token = self.delivery.token;
        self.shared.read(|client| Some(client.as_consumer()?.message(token)?.head))?
    }

    /// Returns whether nsqd delivered the message more than [`Config::max_attempts`] times. Such
    /// messages reach the application only with
    /// [`Exhausted::Deliver`](crate::consumer::Exhausted::Deliver).
    pub fn is_exhausted(&self) -> bool {
        self.delivery.exhausted
    }

    /// Runs `f` on the body in place. `f` should be brief, because all connections wait meanwhile.
    /// `None` only within [`Handle::look`].
    pub fn read<R>(&self, f: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.shared.read(|client| Some(f(client.as_consumer()?.body(self.delivery.token)?)))?
    }

    /// Finishes the message: nsqd will not deliver it again; see [`Consumer::finish`].
    pub fn finish(mut self) -> Result<(), AnswerError> {
        let now = self.sleep.now();
        self.answer(|consumer, delivery| consumer.finish(now, delivery.token))
    }

    /// Requeues the message as failed; see [`Consumer::requeue`].
    pub fn requeue(mut self, delay: Option<Span>) -> Result<(), AnswerError> {
        let now = self.sleep.now();
        self.answer(|consumer, delivery| consumer.requeue(now, delivery.token, delay))
    }

    /// Requeues the message without counting a failure; see [`Consumer::release`].
    pub fn release(mut self, delay: Option<Span>) -> Result<(), AnswerError> {
        let now = self.sleep.now();
        self.answer(|consumer, delivery| consumer.release(now, delivery.token, delay))
    }

    /// Restarts the message's timeout at nsqd; see [`Consumer::touch`].
    pub fn touch(&self) -> Result<(), AnswerError> {
        let now = self.sleep.now();
        let touched = self
            .shared
            .update(|client| Some(client.as_consumer()?.touch(now, self.delivery.token)));
        touched.flatten().unwrap_or(Err(AnswerError::Unknown))
    }

    fn answer(
        &mut self,
        f: impl FnOnce(&mut Consumer<'a>, &Delivery) -> Result<(), AnswerError>,
    ) -> Result<(), AnswerError> {
        self.answered = true;
        let delivery = self.delivery;
        let answered = self.shared.update(|client| Some(f(client.as_consumer()?, &delivery)));
        answered.flatten().unwrap_or(Err(AnswerError::Unknown))
    }
}

impl<M: RawMutex, S: Sleep> Drop for Message<'_, M, S> {
    fn drop(&mut self) {
        if !self.answered {
            warn_of!("a message was dropped unanswered: it is requeued");
            let now = self.sleep.now();
            let _ = self.answer(|consumer, delivery| consumer.release(now, delivery.token, None));
        }
    }
}

/// Connects and carries bytes: exactly one [`run`](Self::run) must be polled.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless `run` is polled"]
pub struct Runner<'a, M: RawMutex, D, S, const CONNECTIONS: usize, const LOOKUPDS: usize> {
    shared: &'a Shared<M, ClientRef<'a>>,
    dialers: Dialers<D, CONNECTIONS, LOOKUPDS>,
    sleep: S,
}

impl<M: RawMutex, D: Dialer, S: Sleep, const CONNECTIONS: usize, const LOOKUPDS: usize>
    Runner<'_, M, D, S, CONNECTIONS, LOOKUPDS>
{
    /// Runs all connections for ever, each with a receive buffer of 256 bytes. Dropping the future
    /// ends the connections, and nsqd delivers the messages in flight again. Running again
    /// continues.
    pub async fn run(&mut self) -> ! {
        self.run_with::<RX_LEN>().await
    }

    /// As [`run`](Self::run), with a receive buffer of `RX` bytes, at least 16, for each connection
    /// to an nsqd: a larger buffer is faster if many short messages arrive at once. The buffers are
    /// part of the future, which an unoptimized build moves through the stack.
    pub async fn run_with<const RX: usize>(&mut self) -> ! {
        let (shared, sleep) = (self.shared, &self.sleep);
        let connections = each(&mut self.dialers.nsqds, |dialer, index| {
            let mut access = SessionLock { shared, index };
            async move {
                let mut sleep = sleep.clone();
                let mut rx = [0; RX];
                let mut drive = pin!(run_dialed(&mut access, dialer, &mut sleep, &mut rx));
                poll_fn(|cx| poll_apart(drive.as_mut(), cx)).await
            }
        });
        let lookupds = each(&mut self.dialers.lookupds, |dialer, index| {
            let mut access = SessionLock { shared, index: CONNECTIONS.saturating_add(index) };
            async move {
                let mut sleep = sleep.clone();
                let mut rx = [0; LOOKUPD_RX_LEN];
                let mut drive = pin!(run_dialed(&mut access, dialer, &mut sleep, &mut rx));
                poll_fn(|cx| poll_apart(drive.as_mut(), cx)).await
            }
        });
        // No connection ever ends; without connections this waits for ever.
        match select(select_array(connections), select_array(lookupds)).await {
            Either::First((never, _)) | Either::Second((never, _)) => never,
        }
    }
}

/// Calls `f` with each dialer and its index, in less code than `each_mut` and `map`.
fn each<'d, D, F, const N: usize>(
    dialers: &'d mut [D; N],
    mut f: impl FnMut(&'d mut D, usize) -> F,
) -> [F; N] {
    let mut dialers = dialers.iter_mut();
    array::from_fn(|index| {
        // There is a dialer for each index, so the loop ends at once.
        let dialer = loop {
            if let Some(dialer) = dialers.next() {
                break dialer;
            }
        };
        f(dialer, index)
    })
}
