//! An [`Nsqd`] with the connections of its clients and those to nsqlookupds: a [`Handle`] to
//! publish with and a [`Runner`] to run.
//!
//! The nsqlookupds list all topics and channels as long as they exist, whoever created them.

mod handle;
mod listing;

use core::fmt;
use core::future::pending;
use core::ops::Range;

use embassy_futures::select::select4;
use embassy_sync::blocking_mutex::raw::RawMutex;

use super::accept::Buffers;
use super::connection::run_dialed;
use super::server::{Engine, Served, SharedServer, run_ports, stop_asked};
use super::shared::{OnceCell, Shared};
use super::{Dialer, Listener, Ports, Sleep, registration};
use crate::address::Address;
use crate::nsqd::{
    ChannelQuery, Config, ConfigError, HttpConfig, HttpStorage, Nsqd, Storage, TooManyLookupds,
};
use crate::registration::{
    Config as LookupConfig, ConfigError as LookupError, Registration, TooManyPeers,
};
use crate::session::Session;
use crate::session::reject::Protocol;

pub use handle::Handle;

use listing::{Asking, keep_listed};

/// The memory that an nsqd's handles and its runner share: tables for `TOPICS` topics, `CHANNELS`
/// channels of all topics together, `CLIENTS` clients, `IN_FLIGHT` messages in flight in each
/// channel, `HTTP` connections over HTTP and `PEERS` nsqlookupds; and a receive buffer of `RX`
/// bytes, at least 16, for each client and each connection over HTTP. See
/// [`publisher::Resources`](super::publisher::Resources).
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
    shared: OnceCell<SharedServer<M, Nsqd<'a>>>,
    lookup: OnceCell<registration::Resources<'a, M, PEERS, TOPICS, CHANNELS>>,
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
    /// Returns empty resources, of which all bytes are zero. [`new`] sets them up.
    pub const fn new() -> Self {
        Self {
            storage: Storage::new(),
            http: HttpStorage::new(),
            asker: ChannelQuery::new(),
            shared: OnceCell::Empty,
            lookup: OnceCell::Empty,
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

/// The dialers for connections to nsqlookupds.
#[derive(Debug, Clone, Copy)]
pub struct Dialers<D, const PEERS: usize> {
    /// Dialers for the connections that register the nsqd, one for each nsqlookupd.
    pub lookupds: [D; PEERS],
    /// The dialer for queries over HTTP to the nsqlookupds, one after the other, which ask for the
    /// channels that a new topic has elsewhere. Messages of a new topic are held back from its
    /// channels until the answers arrive. With `None` no nsqlookupd is queried.
    pub channels: Option<D>,
}

/// The configuration of an nsqd and of its registration.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    /// The configuration of the nsqd.
    pub node: &'a Config<'a>,
    /// The configuration of its HTTP port; ignored without connections over HTTP.
    pub http: &'a HttpConfig<'a>,
    /// The configuration of its registration: the address and ports that nsqlookupds list.
    pub lookup: &'a LookupConfig<'a>,
    /// The TCP addresses (port 4160) of the nsqlookupds, until others are set over HTTP.
    pub lookupds: &'a [Address],
}

/// The error in an nsqd's settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum SettingsError {
    /// The configuration of the nsqd is wrong.
    Nsqd(ConfigError),
    /// The configuration of its registration is wrong.
    Registration(LookupError),
    /// The settings name more nsqlookupds than the resources have room for.
    Lookupds(TooManyPeers),
}

/// Sets up an nsqd and returns its handle and its runner. `store` holds its messages; see
/// [`Nsqd::new`].
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
    // A constant condition: without HTTP connections no HTTP code is linked.
    if HTTP > 0 {
        node.answer_http(settings.http, http, settings.lookupds)
            .map_err(|TooManyLookupds { max }| SettingsError::Lookupds(TooManyPeers { max }))?;
    }
    let (lookup, peers) = registration::new(
        lookup.insert(registration::Resources::new()),
        settings.lookup,
        dialers.lookupds,
        sleep.clone(),
    )
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

/// Listens, connects and carries bytes: exactly one [`run`](Self::run) must be polled.
#[derive(Debug)]
#[must_use = "nothing is sent or received unless `run` is polled"]
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
    /// Returns a handle of the nsqd's registration, which reports which nsqlookupds list the nsqd.
    pub fn lookup(&self) -> registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS> {
        self.lookup.clone()
    }

    /// Runs all connections until the nsqd is stopped, then waits for ever. Dropping the future
    /// ends the connections: nsqlookupds drop the nsqd, and messages in flight are requeued.
    /// Running again continues.
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
                Some(dialer) if PEERS > 0 => {
                    let (mut sleep, mut rx) = (sleep.clone(), [0; RX_LEN]);
                    run_dialed(&mut Asking { shared, lookup }, dialer, &mut sleep, &mut rx).await
                }
                _ => pending().await,
            }
        };
        // The query is polled after the connections that may start one, and the listing last, after
        // all changes of this poll.
        let listing = keep_listed::<_, _, PEERS, _, _>(shared, lookup);
        select4(serving, self.peers.run(), asking, listing).await;
        pending().await
    }
}

/// The size of the receive buffer for an nsqlookupd's answer to a query.
const RX_LEN: usize = 64;

impl Engine for Nsqd<'_> {
    const PROTOCOL: Protocol = Protocol::V2;

    fn version(&self) -> u32 {
        Nsqd::version(self)
    }

    fn is_idle(&self) -> bool {
        let store = self.store();
        store.free == store.blocks
    }

    fn clients(&self) -> usize {
        Nsqd::clients(self)
    }

    fn clients_in_use(&self) -> Range<usize> {
        Nsqd::clients_in_use(self)
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

    /// 2 topics with 2 channels each, 4 clients, 8 messages in flight in each channel, 2
    /// connections over HTTP, 1 nsqlookupd. Only the store, the sockets and the runner need more
    /// memory.
    #[test]
    fn memory_is_as_documented() {
        let resources = size_of::<Resources<'_, NoopRawMutex, 2, 4, 4, 8, 2, 1, 256>>();
        assert!(resources <= if cfg!(feature = "large") { 12_630 } else { 12_200 }, "{resources}");
    }
}
