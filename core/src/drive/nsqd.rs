//! A [`Nsqd`] with its connections, those of its clients and those to nsqlookupds: a [`Handle`] to
//! publish with and a [`Runner`] to run.
//!
//! Topics and channels, whoever made them, are listed by the nsqlookupds as long as they are there.

use core::fmt;
use core::future::{Future, pending, poll_fn};
use core::task::{Poll, Waker};

use embassy_futures::select::select4;
use embassy_sync::blocking_mutex::raw::RawMutex;

use super::accept::Buffers;
use super::connection::{SessionAccess, run_dialed};
#[cfg(feature = "publisher")]
use super::publisher::Publish;
use super::server::{Engine, Served, SharedServer, run_ports, stop, stop_asked};
use super::shared::{QueuedWait, Shared};
use super::{Dialer, Listener, Ports, Sleep, registration};
use crate::address::Address;
use crate::name::{ChannelName, TopicName};
use crate::nsqd::{
    ChannelQuery, Config, ConfigError, Counters, Event, HttpConfig, HttpStorage, Lookupd, Nsqd,
    NsqdError, PublishError, PublishOptions, Storage, Ticket, TooManyLookupds,
};
#[cfg(feature = "publisher")]
use crate::publisher::Outcome;
use crate::registration::{
    Config as LookupConfig, ConfigError as LookupError, HttpPort, Registration, Registry,
    RegistryFull, TooManyPeers,
};
use crate::session::Session;
use crate::session::reject::Protocol;
use crate::time::Instant;

/// What a node's handles and its runner share: tables for so many topics, channels of all topics
/// together, clients, messages in flight in each channel, connections over HTTP and nsqlookupds;
/// and for each client and connection over HTTP a buffer of `RX` bytes to read into, at least 16.
/// See [`publisher::Resources`](super::publisher::Resources).
#[derive(Debug)]
pub struct Resources<
    'a,
    M: RawMutex,
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const IN_FLIGHT: usize,
    const HTTP: usize,
    const PEERS: usize,
    const RX: usize,
> {
    storage: Storage<TOPICS, CHANNELS, CLIENTS, IN_FLIGHT>,
    http: HttpStorage<HTTP, PEERS>,
    asker: ChannelQuery,
    shared: Option<SharedServer<M, Nsqd<'a>>>,
    lookup: registration::Resources<'a, M, PEERS, TOPICS, CHANNELS>,
    client_rx: Buffers<CLIENTS, RX>,
    http_rx: Buffers<HTTP, RX>,
}

impl<
    M: RawMutex,
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const IN_FLIGHT: usize,
    const HTTP: usize,
    const PEERS: usize,
    const RX: usize,
> Resources<'_, M, TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, HTTP, PEERS, RX>
{
    /// Empty; [`new`] fills it.
    pub const fn new() -> Self {
        Self {
            storage: Storage::new(),
            http: HttpStorage::new(),
            asker: ChannelQuery::new(),
            shared: None,
            lookup: registration::Resources::new(),
            client_rx: [[0; RX]; CLIENTS],
            http_rx: [[0; RX]; HTTP],
        }
    }
}

impl<
    M: RawMutex,
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const IN_FLIGHT: usize,
    const HTTP: usize,
    const PEERS: usize,
    const RX: usize,
> Default for Resources<'_, M, TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, HTTP, PEERS, RX>
{
    fn default() -> Self {
        Self::new()
    }
}

/// What connections to nsqlookupds are dialed with.
#[derive(Debug, Clone, Copy)]
pub struct Dialers<D, const PEERS: usize> {
    /// Those on which the node is registered, one for each.
    pub lookupds: [D; PEERS],
    /// The one on which they are asked, over HTTP, which channels a new topic has elsewhere: one
    /// after the other. Without it they are not asked. With it, a new topic's messages go on to its
    /// channels when the runner has seen to that.
    pub channels: Option<D>,
}

/// How a node behaves, and who is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The node.
    pub node: &'a Config<'a>,
    /// What it says over HTTP; does not matter without.
    pub http: &'a HttpConfig<'a>,
    /// What nsqlookupds are told of it: the address and ports at which others reach what it
    /// listens on.
    pub lookup: &'a LookupConfig<'a>,
    /// nsqlookupds, at their TCP ports (4160), until others are set over HTTP.
    pub lookupds: &'a [Address],
}

/// What is wrong with a node's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SettingsError {
    /// The node's own.
    Nsqd(ConfigError),
    /// What nsqlookupds are told.
    Registration(LookupError),
    /// There are more nsqlookupds than the resources have room for.
    Lookupds(TooManyPeers),
}

/// A node's two ends. Its messages lie in `store`; see [`Nsqd::new`].
#[expect(clippy::type_complexity, reason = "two ends, each with its parameters")]
pub fn new<
    'a,
    M: RawMutex,
    L: Listener,
    D: Dialer,
    S: Sleep,
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const IN_FLIGHT: usize,
    const HTTP: usize,
    const PEERS: usize,
    const RX: usize,
>(
    resources: &'a mut Resources<'a, M, TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, HTTP, PEERS, RX>,
    settings: Settings<'a>,
    store: &'a mut [u8],
    ports: Ports<L, CLIENTS, HTTP>,
    dialers: Dialers<D, PEERS>,
    sleep: S,
) -> Result<
    (Handle<'a, M, S>, Runner<'a, M, L, D, S, TOPICS, CHANNELS, CLIENTS, HTTP, PEERS, RX>),
    SettingsError,
> {
    let Resources { storage, http, asker, shared, lookup, client_rx, http_rx } = resources;
    let mut node = Nsqd::new(settings.node, storage, store).map_err(SettingsError::Nsqd)?;
    // Without any there is to be nothing of it in the program.
    if HTTP > 0 {
        node.answer_http(settings.http, http, settings.lookupds)
            .map_err(|TooManyLookupds { max }| SettingsError::Lookupds(TooManyPeers { max }))?;
    }
    let (lookup, peers) =
        registration::new(lookup, settings.lookup, dialers.lookupds, sleep.clone())
            .map_err(SettingsError::Registration)?;
    if PEERS > 0 && dialers.channels.is_some() {
        lookup.change(Registration::find_http_ports);
        node.ask_lookupds(asker);
    }
    lookup.configure(settings.lookupds).map_err(SettingsError::Lookupds)?;
    let shared: &'a SharedServer<M, Nsqd<'a>> = shared.insert(Shared::new(Served::new(node)));
    let (channels, own_sleep) = (dialers.channels, sleep.clone());
    let runner =
        Runner { shared, ports, client_rx, http_rx, lookup, peers, channels, sleep: own_sleep };
    Ok((Handle { shared, sleep }, runner))
}

/// Publishes, and looks after topics and channels. Clone it to wherever it is needed.
#[derive(Debug)]
pub struct Handle<'a, M: RawMutex, S> {
    shared: &'a SharedServer<M, Nsqd<'a>>,
    sleep: S,
}

impl<M: RawMutex, S: Clone> Clone for Handle<'_, M, S> {
    fn clone(&self) -> Self {
        Self { shared: self.shared, sleep: self.sleep.clone() }
    }
}

impl<'a, M: RawMutex, S: Sleep> Handle<'a, M, S> {
    /// Takes a message now or refuses it; see [`Nsqd::publish`].
    pub fn try_publish(&self, topic: &TopicName, body: &[u8]) -> Result<Ticket, PublishError> {
        self.try_publish_with(topic, body, PublishOptions::default())
    }

    /// Takes a message with a deferral now, or refuses it.
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

    /// Takes a message; waits while the store is full.
    ///
    /// Cancel-safe: dropped before it is ready, the message was not taken. Tasks that wait get room
    /// in the order in which they came, each as much as there is. With no channel, or nobody who
    /// consumes, room may never come.
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

    /// See [`Nsqd::create_topic`].
    pub fn create_topic(&self, topic: &TopicName) -> Result<(), NsqdError> {
        self.manage(NsqdError::TooManyTopics, |node, now| node.create_topic(now, topic))
    }

    /// See [`Nsqd::delete_topic`].
    pub fn delete_topic(&self, topic: &TopicName) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.delete_topic(now, topic))
    }

    /// See [`Nsqd::empty_topic`].
    pub fn empty_topic(&self, topic: &TopicName) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.empty_topic(now, topic))
    }

    /// See [`Nsqd::pause_topic`].
    pub fn pause_topic(&self, topic: &TopicName) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.pause_topic(now, topic))
    }

    /// See [`Nsqd::unpause_topic`].
    pub fn unpause_topic(&self, topic: &TopicName) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.unpause_topic(now, topic))
    }

    /// See [`Nsqd::create_channel`].
    pub fn create_channel(
        &self,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.create_channel(now, topic, channel))
    }

    /// See [`Nsqd::delete_channel`].
    pub fn delete_channel(
        &self,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.delete_channel(now, topic, channel))
    }

    /// See [`Nsqd::empty_channel`].
    pub fn empty_channel(&self, topic: &TopicName, channel: &ChannelName) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.empty_channel(now, topic, channel))
    }

    /// See [`Nsqd::pause_channel`].
    pub fn pause_channel(&self, topic: &TopicName, channel: &ChannelName) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.pause_channel(now, topic, channel))
    }

    /// See [`Nsqd::unpause_channel`].
    pub fn unpause_channel(
        &self,
        topic: &TopicName,
        channel: &ChannelName,
    ) -> Result<(), NsqdError> {
        self.manage(NsqdError::NoTopic, |node, now| node.unpause_channel(now, topic, channel))
    }

    /// Says what time it is: Unix time in nanoseconds.
    pub fn set_unix_time(&self, nanoseconds: i64) {
        let now = self.sleep.now();
        self.change(|node| node.set_unix_time(now, nanoseconds));
    }

    /// Waits until the store is empty: every channel is done with every message. Cancel-safe.
    pub fn idle(&self) -> impl Future<Output = ()> + use<'a, M, S> {
        self.wait(|node| node.is_idle().then_some(()))
    }

    /// The next thing to tell. Cancel-safe. With several tasks asking, each event goes to one.
    pub fn event(&self) -> impl Future<Output = Event> + use<'a, M, S> {
        self.wait(Nsqd::poll_event)
    }

    /// Unregisters everything at the nsqlookupds, then closes all connections, for good; returns
    /// when that is done, at most the lookup's reply timeout and close timeout later. Messages
    /// stay in the store. Dropped earlier, it goes on all the same.
    pub async fn stop(&self) {
        stop(self.shared).await;
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.look(|node| node.counters()).unwrap_or_default()
    }

    /// How many callers were told that there are too many connections, of clients and over HTTP.
    pub fn turned_away(&self) -> u32 {
        self.shared.read(|served| served.refused()).unwrap_or_default()
    }

    /// How many of these called the HTTP port.
    pub fn turned_away_http(&self) -> u32 {
        self.shared.read(|served| served.refused_http()).unwrap_or_default()
    }

    /// Looks at the node. `None` only from within another look.
    pub fn look<R>(&self, f: impl FnOnce(&mut Nsqd<'a>) -> R) -> Option<R> {
        self.shared.read(|served| f(&mut served.engine))
    }

    /// Asks `f` now and whenever something changed, until it has an answer. Cancel-safe.
    pub fn wait<R, F>(&self, mut f: F) -> impl Future<Output = R> + use<'a, M, S, R, F>
    where
        F: FnMut(&mut Nsqd<'a>) -> Option<R>,
    {
        let shared = self.shared;
        poll_fn(move |cx| shared.poll_wait(cx.waker(), |served| f(&mut served.engine)))
    }

    fn change<R>(&self, f: impl FnOnce(&mut Nsqd<'a>) -> R) -> Option<R> {
        self.shared.update(|served| f(&mut served.engine))
    }

    /// `busy` is the answer from within another look.
    fn manage(
        &self,
        busy: NsqdError,
        f: impl FnOnce(&mut Nsqd<'a>, Instant) -> Result<(), NsqdError>,
    ) -> Result<(), NsqdError> {
        let now = self.sleep.now();
        self.change(|node| f(node, now)).unwrap_or(Err(busy))
    }
}

/// A message that a node has taken is acknowledged: more than that nsqd's `OK` does not say.
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

/// Listens, connects and carries. Run exactly one.
#[derive(Debug)]
pub struct Runner<
    'a,
    M: RawMutex,
    L,
    D,
    S,
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const HTTP: usize,
    const PEERS: usize,
    const RX: usize,
> {
    shared: &'a SharedServer<M, Nsqd<'a>>,
    ports: Ports<L, CLIENTS, HTTP>,
    client_rx: &'a mut Buffers<CLIENTS, RX>,
    http_rx: &'a mut Buffers<HTTP, RX>,
    lookup: registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS>,
    peers: registration::Runner<'a, M, D, S, PEERS, TOPICS, CHANNELS>,
    channels: Option<D>,
    sleep: S,
}

impl<
    'a,
    M: RawMutex,
    L: Listener,
    D: Dialer,
    S: Sleep,
    const TOPICS: usize,
    const CHANNELS: usize,
    const CLIENTS: usize,
    const HTTP: usize,
    const PEERS: usize,
    const RX: usize,
> Runner<'a, M, L, D, S, TOPICS, CHANNELS, CLIENTS, HTTP, PEERS, RX>
{
    /// The node's registration, to look at: which nsqlookupds have it.
    pub fn lookup(&self) -> registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS> {
        self.lookup.clone()
    }

    /// Runs all connections for ever, until the node is stopped; then it does nothing. Dropped,
    /// they end, nsqlookupds forget, and what clients had in flight is requeued; run again, it goes
    /// on.
    pub async fn run(&mut self) -> ! {
        let (shared, lookup) = (self.shared, &self.lookup);
        let leave = async {
            stop_asked(shared).await;
            lookup.stop().await;
        };
        let serving =
            run_ports(shared, &mut self.ports, (self.client_rx, self.http_rx), &self.sleep, leave);
        let (channels, sleep) = (&mut self.channels, &self.sleep);
        let asking = async {
            match channels {
                // As above: known when it is compiled.
                Some(dialer) if PEERS > 0 => {
                    let (mut sleep, mut rx) = (sleep.clone(), [0; RX_LEN]);
                    run_dialed(&mut Asking { shared, lookup }, dialer, &mut sleep, &mut rx).await
                }
                _ => pending().await,
            }
        };
        // Asking comes after who may say whom, and the registry last: by then all that happened has
        // happened.
        let listing = keep_listed::<_, _, PEERS, _, _>(shared, lookup);
        select4(serving, self.peers.run(), asking, listing).await;
        pending().await
    }
}

/// Bytes that are read at once of what an nsqlookupd says of a topic.
const RX_LEN: usize = 64;

/// The session that asks nsqlookupds for the channels of new topics, with what their connections
/// know of them.
struct Asking<
    'r,
    'a,
    M: RawMutex,
    S,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
> {
    shared: &'r SharedServer<M, Nsqd<'a>>,
    lookup: &'r registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS>,
}

impl<M: RawMutex, S: Sleep, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>
    SessionAccess for Asking<'_, '_, M, S, PEERS, TOPICS, CHANNELS>
{
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        self.shared.drive(|served| {
            let node = &mut served.engine;
            self.lookup.look(|lookup| {
                let mut lookupds = [Lookupd::Absent; PEERS];
                // Mostly there is nothing to ask.
                if node.is_asking() {
                    for (at, lookupd) in lookupds.iter_mut().enumerate() {
                        *lookupd = match lookup.http(at) {
                            None | Some((_, HttpPort::Unknown)) => Lookupd::Absent,
                            Some((_, HttpPort::Coming)) => Lookupd::Coming,
                            Some((address, HttpPort::Known(port))) => Lookupd::At(address, port),
                        };
                    }
                }
                if let Some(mut session) = node.asking(&lookupds) {
                    f(&mut session);
                }
            });
            true
        });
    }

    fn register(&mut self, waker: &Waker) {
        self.shared.register_runner(waker);
        self.lookup.register(waker);
    }
}

/// Brings the registry into agreement with the node whenever a topic or channel came or went, and the
/// nsqlookupds whenever others are set over HTTP.
async fn keep_listed<'a, M, S, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>(
    shared: &SharedServer<M, Nsqd<'a>>,
    lookup: &registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS>,
) -> !
where
    M: RawMutex,
    S: Sleep,
{
    let mut agreed = None;
    let mut lookupds = 0;
    poll_fn(|cx| {
        shared.register_runner(cx.waker());
        lookup.register(cx.waker());
        shared.read(|served| {
            let node = &served.engine;
            if lookupds != node.lookupds_version() && lookup.configure(node.lookupds()).is_ok() {
                lookupds = node.lookupds_version();
            }
            let topology = Some(node.topology());
            if agreed == topology {
                return;
            }
            if let Some(done) = lookup.look(|lookup| agree(lookup.registry(), node)) {
                // Waking oneself for what does not fit yet would go on until it does.
                if done.changed {
                    lookup.change(|_| ());
                }
                if done.all {
                    agreed = topology;
                }
            }
        });
        Poll::Pending
    })
    .await
}

/// What came of it.
struct Agreed {
    /// Something was added or removed.
    changed: bool,
    /// False if not everything fitted: what was removed keeps its place until every nsqlookupd
    /// knows.
    all: bool,
}

/// Wants listed what the node has, and nothing else.
fn agree<const TOPICS: usize, const CHANNELS: usize>(
    registry: &mut Registry<TOPICS, CHANNELS>,
    node: &Nsqd<'_>,
) -> Agreed {
    let mut done = Agreed { changed: false, all: true };
    loop {
        let gone = registry.topics().find(|name| !node.topics().any(|topic| topic.name == *name));
        let Some(topic) = gone.copied() else { break };
        done.changed |= registry.remove_topic(&topic);
    }
    loop {
        let gone = registry
            .channels()
            .find(|(topic, name)| !node.channels(topic).any(|channel| channel.name == *name));
        let Some((topic, channel)) = gone.map(|(topic, channel)| (*topic, *channel)) else { break };
        done.changed |= registry.remove_channel(&topic, &channel);
    }
    let mut add = |result: Result<(), RegistryFull>| match result {
        Ok(()) => done.changed = true,
        Err(_) => done.all = false,
    };
    for topic in node.topics() {
        if !registry.topics().any(|name| name == topic.name) {
            add(registry.add_topic(topic.name));
        }
        for channel in node.channels(topic.name) {
            if !registry.channels().any(|it| it == (topic.name, channel.name)) {
                add(registry.add_channel(topic.name, channel.name));
            }
        }
    }
    done
}

impl Engine for Nsqd<'_> {
    const PROTOCOL: Protocol = Protocol::V2;

    fn version(&self) -> u32 {
        Nsqd::version(self)
    }

    fn is_idle(&self) -> bool {
        let store = self.store();
        store.free == store.blocks
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

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nsqd(why) => why.fmt(f),
            Self::Registration(why) => why.fmt(f),
            Self::Lookupds(why) => why.fmt(f),
        }
    }
}

impl core::error::Error for SettingsError {}

#[cfg(test)]
mod tests {
    use embassy_sync::blocking_mutex::raw::NoopRawMutex;

    use super::Resources;

    /// 2 topics with 2 channels each, 4 clients, 8 messages in flight a channel, 2 connections over
    /// HTTP, 1 nsqlookupd: beside a store, sockets and the runner, that is all.
    #[test]
    fn memory_is_as_documented() {
        let resources = size_of::<Resources<'_, NoopRawMutex, 2, 4, 4, 8, 2, 1, 256>>();
        assert!(resources <= 12_200, "{resources}");
    }
}
