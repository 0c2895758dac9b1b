//! A [`Registration`] with its connections: a [`Handle`] to register with and a [`Runner`] to run.

use core::future::poll_fn;
use core::task::Waker;

use embassy_futures::select::select_array;
use embassy_sync::blocking_mutex::raw::RawMutex;

use super::connection::run_dialed;
use super::shared::{self, SessionLock, Shared};
use super::{Dialer, Sleep};
use crate::address::Address;
use crate::name::{ChannelName, TopicName};
use crate::registration::{
    Config, ConfigError, PeerEvent, Registration, RegistryFull, TooManyPeers,
};
use crate::session::Session;

/// The size of the receive buffer of a peer, which holds ten responses.
const RX_LEN: usize = 64;

/// The memory that a registration's handles and its runner share; see
/// [`publisher::Resources`](super::publisher::Resources).
#[derive(Debug)]
pub struct Resources<
    'a,
    M: RawMutex,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
> {
    // Set up in place, as in `publisher::Resources`.
    shared: Shared<M, Registration<'a, PEERS, TOPICS, CHANNELS>>,
}

impl<M: RawMutex, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>
    Resources<'_, M, PEERS, TOPICS, CHANNELS>
{
    /// Returns idle resources; [`new`] sets them up.
    pub const fn new() -> Self {
        const { Self { shared: Shared::new(Registration::idle()) } }
    }
}

impl<M: RawMutex, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize> Default
    for Resources<'_, M, PEERS, TOPICS, CHANNELS>
{
    fn default() -> Self {
        Self::new()
    }
}

/// Sets up a registration and returns its handle and its runner. Nothing is registered and no peer
/// is configured yet. Each peer has its own dialer.
#[expect(clippy::type_complexity, reason = "two ends, each with its parameters")]
pub fn new<
    'a,
    M: RawMutex,
    D: Dialer,
    S: Sleep,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
>(
    resources: &'a mut Resources<'a, M, PEERS, TOPICS, CHANNELS>,
    config: &'a Config<'a>,
    dialers: [D; PEERS],
    sleep: S,
) -> Result<
    (Handle<'a, M, S, PEERS, TOPICS, CHANNELS>, Runner<'a, M, D, S, PEERS, TOPICS, CHANNELS>),
    ConfigError,
> {
    resources.shared.get_mut().set_up(config)?;
    let shared = &resources.shared;
    Ok((Handle { shared, sleep: sleep.clone() }, Runner { shared, dialers, sleep }))
}

/// Changes the registered topics and channels, and the nsqlookupds. A clone may be used in each
/// task.
#[derive(Debug)]
pub struct Handle<
    'a,
    M: RawMutex,
    S,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
> {
    shared: &'a Shared<M, Registration<'a, PEERS, TOPICS, CHANNELS>>,
    sleep: S,
}

impl<M: RawMutex, S: Clone, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize> Clone
    for Handle<'_, M, S, PEERS, TOPICS, CHANNELS>
{
    fn clone(&self) -> Self {
        Self { shared: self.shared, sleep: self.sleep.clone() }
    }
}

impl<'a, M: RawMutex, S: Sleep, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>
    Handle<'a, M, S, PEERS, TOPICS, CHANNELS>
{
    /// See [`Registration::configure`].
    pub fn configure(&self, addresses: &[Address]) -> Result<(), TooManyPeers> {
        let now = self.sleep.now();
        self.change(|lookup| lookup.configure(now, addresses)).unwrap_or(Ok(()))
    }

    /// See [`Registration::register`].
    pub fn register(
        &self,
        topic: &TopicName,
        channel: Option<&ChannelName>,
    ) -> Result<(), RegistryFull> {
        self.change(|lookup| lookup.register(topic, channel)).unwrap_or(Ok(()))
    }

    /// See [`Registration::unregister`].
    pub fn unregister(&self, topic: &TopicName, channel: Option<&ChannelName>) -> bool {
        self.change(|lookup| lookup.unregister(topic, channel)).unwrap_or_default()
    }

    /// Unregisters everything, closes all connections and returns when that is done, at most the
    /// reply timeout and the close timeout later. Dropping the future does not cancel the closing.
    pub async fn stop(&self) {
        let now = self.sleep.now();
        self.change(|lookup| lookup.stop(now));
        self.wait(|lookup| lookup.is_stopped().then_some(())).await;
    }

    /// Waits until every configured nsqlookupd has confirmed all registrations. Cancel-safe.
    pub async fn settled(&self) {
        self.wait(|lookup| {
            (0..PEERS)
                .all(|peer| lookup.status(peer).is_none_or(|s| s.settled || s.address.is_none()))
                .then_some(())
        })
        .await;
    }

    /// Waits for the next event and returns it with its peer's index. Cancel-safe. With several
    /// tasks waiting, each event goes to one.
    pub async fn event(&self) -> (usize, PeerEvent) {
        poll_fn(|cx| {
            self.shared.poll_wait(cx.waker(), |lookup| {
                (0..PEERS).find_map(|peer| Some((peer, lookup.peer(peer)?.poll_event()?)))
            })
        })
        .await
    }

    /// Runs `f` on the registration. Returns `None` only if called within another `look`.
    pub fn look<R>(
        &self,
        f: impl FnOnce(&Registration<'a, PEERS, TOPICS, CHANNELS>) -> R,
    ) -> Option<R> {
        self.shared.read(|lookup| f(lookup))
    }

    /// Checks `f` now and whenever the state of a peer changes, until `f` returns an answer.
    /// Cancel-safe.
    pub async fn wait<R>(
        &self,
        mut f: impl FnMut(&Registration<'a, PEERS, TOPICS, CHANNELS>) -> Option<R>,
    ) -> R {
        poll_fn(|cx| self.shared.poll_wait(cx.waker(), |lookup| f(lookup))).await
    }

    /// For tests and the simulator, which inspect sessions; not part of the API. Wakes no task.
    #[doc(hidden)]
    pub fn inspect<R>(
        &self,
        f: impl FnOnce(&mut Registration<'a, PEERS, TOPICS, CHANNELS>) -> R,
    ) -> Option<R> {
        self.shared.read(f)
    }

    /// Registers the runner's waker for the next change of the registration.
    pub(super) fn register_waker(&self, waker: &Waker) {
        self.shared.register_runner(waker);
    }

    pub(super) fn change<R>(
        &self,
        f: impl FnOnce(&mut Registration<'a, PEERS, TOPICS, CHANNELS>) -> R,
    ) -> Option<R> {
        self.shared.update_and_wake_tasks(f)
    }
}

/// Connects and carries bytes: exactly one [`run`](Self::run) must be polled.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless `run` is polled"]
pub struct Runner<
    'a,
    M: RawMutex,
    D,
    S,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
> {
    shared: &'a Shared<M, Registration<'a, PEERS, TOPICS, CHANNELS>>,
    dialers: [D; PEERS],
    sleep: S,
}

impl<
    M: RawMutex,
    D: Dialer,
    S: Sleep,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
> Runner<'_, M, D, S, PEERS, TOPICS, CHANNELS>
{
    /// Runs the connections of all peers for ever. Dropping the future ends them, and the
    /// nsqlookupds drop all registrations; running again registers everything again.
    pub async fn run(&mut self) -> ! {
        let shared = self.shared;
        let sleep = &self.sleep;
        let mut index = 0;
        let peers = self.dialers.each_mut().map(|dialer| {
            let mut access = SessionLock { shared, index };
            index += 1;
            async move {
                let mut sleep = sleep.clone();
                let mut rx = [0; RX_LEN];
                run_dialed(&mut access, dialer, &mut sleep, &mut rx).await
            }
        });
        // No peer ever ends; without peers this waits for ever.
        select_array(peers).await.0
    }
}

impl<const PEERS: usize, const TOPICS: usize, const CHANNELS: usize> shared::State
    for Registration<'_, PEERS, TOPICS, CHANNELS>
{
    type Version = u32;

    fn version(&self) -> u32 {
        self.version()
    }
}

impl<const PEERS: usize, const TOPICS: usize, const CHANNELS: usize> shared::WithSessions
    for Registration<'_, PEERS, TOPICS, CHANNELS>
{
    fn with_session(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool {
        if let Some(mut peer) = self.peer(index) {
            f(&mut peer);
        }
        false
    }
}
