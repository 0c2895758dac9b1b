//! An [`Nsqlookupd`] with the connections of nsqds and those over HTTP: a [`Handle`] to read it and
//! a [`Runner`] to run.

use core::future::{Future, pending, poll_fn};

use embassy_sync::blocking_mutex::raw::RawMutex;

use super::accept::Buffers;
use super::server::{Engine, Served, SharedServer, run_ports, stop, stop_asked};
use super::shared::{OnceCell, Shared};
use super::{Listener, Ports, Sleep};
use crate::nsqlookupd::{Config, Counters, Event, Nsqlookupd, Storage};
use crate::session::Session;
use crate::session::reject::Protocol;

/// The memory that an nsqlookupd's handles and its runner share: the tables of [`Storage`], and a
/// receive buffer of `RX` bytes, at least 16, for each of the `CLIENTS` connections of nsqds and
/// the `HTTP` connections over HTTP. See [`publisher::Resources`](super::publisher::Resources).
#[derive(Debug)]
pub struct Resources<
    'a,
    M: RawMutex,
    const CLIENTS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const RX: usize,
    const WORDS: usize = 1,
> {
    storage: Storage<CLIENTS, TOPICS, CHANNELS, HTTP, WORDS>,
    shared: OnceCell<SharedServer<M, Nsqlookupd<'a>>>,
    client_rx: Buffers<CLIENTS, RX>,
    http_rx: Buffers<HTTP, RX>,
}

impl<
    M: RawMutex,
    const CLIENTS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const RX: usize,
    const WORDS: usize,
> Resources<'_, M, CLIENTS, TOPICS, CHANNELS, HTTP, RX, WORDS>
{
    /// Returns empty resources, all bytes zero; [`new`] sets them up.
    pub const fn new() -> Self {
        Self {
            storage: Storage::new(),
            shared: OnceCell::Empty,
            client_rx: [[0; RX]; CLIENTS],
            http_rx: [[0; RX]; HTTP],
        }
    }
}

impl<
    M: RawMutex,
    const CLIENTS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const RX: usize,
    const WORDS: usize,
> Default for Resources<'_, M, CLIENTS, TOPICS, CHANNELS, HTTP, RX, WORDS>
{
    fn default() -> Self {
        Self::new()
    }
}

/// Sets up an nsqlookupd and returns its handle and its runner; see [`Nsqlookupd::new`].
pub fn new<
    'a,
    M: RawMutex,
    L: Listener,
    S: Sleep,
    const CLIENTS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
    const HTTP: usize,
    const RX: usize,
    const WORDS: usize,
>(
    resources: &'a mut Resources<'a, M, CLIENTS, TOPICS, CHANNELS, HTTP, RX, WORDS>,
    config: &'a Config<'a>,
    ports: Ports<L, CLIENTS, HTTP>,
    sleep: S,
) -> (Handle<'a, M, S>, Runner<'a, M, L, S, CLIENTS, HTTP, RX>) {
    let Resources { storage, shared, client_rx, http_rx } = resources;
    let directory = Nsqlookupd::new(config, storage);
    let shared: &'a SharedServer<M, Nsqlookupd<'a>> =
        shared.insert(Shared::new(Served::new(directory)));
    let runner = Runner { shared, ports, client_rx, http_rx, sleep: sleep.clone() };
    (Handle { shared, sleep }, runner)
}

/// Reads and stops an nsqlookupd. A clone may be used in each task.
#[derive(Debug)]
pub struct Handle<'a, M: RawMutex, S> {
    shared: &'a SharedServer<M, Nsqlookupd<'a>>,
    sleep: S,
}

impl<M: RawMutex, S: Clone> Clone for Handle<'_, M, S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared, sleep: self.sleep.clone() }
    }
}

impl<'a, M: RawMutex, S: Sleep> Handle<'a, M, S> {
    /// Sets the clock: Unix time in nanoseconds.
    pub fn set_unix_time(&self, nanoseconds: i64) {
        let now = self.sleep.now();
        self.shared.update(|served| served.engine.set_unix_time(now, nanoseconds));
    }

    /// Waits for the next event. Cancel-safe. With several tasks waiting, each event goes to one.
    pub fn event(&self) -> impl Future<Output = Event> + use<'a, M, S> {
        self.wait_mut(Nsqlookupd::poll_event)
    }

    /// Returns the next event, if there is one now.
    pub fn try_event(&self) -> Option<Event> {
        self.shared.read(|served| served.engine.poll_event())?
    }

    /// Closes all connections for good and returns when that is done. Dropping the future does not
    /// cancel the stop.
    pub async fn stop(&self) {
        stop(self.shared).await;
    }

    /// Returns the nsqlookupd's counters.
    pub fn counters(&self) -> Counters {
        self.look(|directory| directory.counters()).unwrap_or_default()
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

    /// Runs `f` on the nsqlookupd. Returns `None` only if called within another `look`.
    pub fn look<R>(&self, f: impl FnOnce(&Nsqlookupd<'a>) -> R) -> Option<R> {
        self.shared.read(|served| f(&served.engine))
    }

    /// For tests and the simulator, which inspect sessions; not part of the API. Wakes no task.
    #[doc(hidden)]
    pub fn inspect<R>(&self, f: impl FnOnce(&mut Nsqlookupd<'a>) -> R) -> Option<R> {
        self.shared.read(|served| f(&mut served.engine))
    }

    /// Checks `f` now and after each change of the nsqlookupd, until `f` returns an answer.
    /// Cancel-safe.
    pub fn wait<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&Nsqlookupd<'a>) -> Option<R>,
    {
        self.wait_mut(move |it| f(it))
    }

    fn wait_mut<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&mut Nsqlookupd<'a>) -> Option<R>,
    {
        let shared = self.shared;
        // Not an `async fn`, which would wrap this future in another state machine.
        poll_fn(move |cx| shared.poll_wait(cx.waker(), |served| f(&mut served.engine)))
    }
}

/// Listens and carries bytes: exactly one [`run`](Self::run) must be polled.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless `run` is polled"]
pub struct Runner<'a, M: RawMutex, L, S, const CLIENTS: usize, const HTTP: usize, const RX: usize> {
    shared: &'a SharedServer<M, Nsqlookupd<'a>>,
    ports: Ports<L, CLIENTS, HTTP>,
    client_rx: &'a mut Buffers<CLIENTS, RX>,
    http_rx: &'a mut Buffers<HTTP, RX>,
    sleep: S,
}

impl<M: RawMutex, L: Listener, S: Sleep, const CLIENTS: usize, const HTTP: usize, const RX: usize>
    Runner<'_, M, L, S, CLIENTS, HTTP, RX>
{
    /// Runs all connections until the nsqlookupd is stopped, then waits for ever. Dropping the
    /// future ends the connections and drops the registrations of their nsqds. Running again
    /// continues.
    pub async fn run(&mut self) -> ! {
        let shared = self.shared;
        run_ports(
            shared,
            &mut self.ports,
            (self.client_rx, self.http_rx),
            &self.sleep,
            stop_asked(shared),
        )
        .await;
        pending().await
    }
}

impl Engine for Nsqlookupd<'_> {
    const PROTOCOL: Protocol = Protocol::V1;

    fn version(&self) -> u32 {
        Nsqlookupd::version(self)
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn turned_away(&mut self) {
        Nsqlookupd::turned_away(self);
    }

    fn clients(&self) -> usize {
        Nsqlookupd::clients(self)
    }

    fn has_work_for_client(&self, index: usize) -> bool {
        self.has_work_for(index)
    }

    fn with_client(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        if let Some(mut session) = self.client(index) {
            f(&mut session);
        }
    }

    fn with_http(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        if let Some(mut session) = self.http(index) {
            f(&mut session);
        }
    }
}
