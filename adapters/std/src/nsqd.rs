//! An nsqd for application programs: it owns its memory and runs in a task of its own.

mod role;

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Gathered, Port, Ports, nsqd as borrowed};
use nanonsq_core::name::{ChannelName, NameError, TopicName};
use nanonsq_core::nsqd::{Config, Counters, Full, HttpConfig, PublishError as Refusal};
use nanonsq_core::registration::{Config as LookupConfig, NodeInfo, PEERS_MAX};

use crate::client::{Calls, Client, Handle, Undelivered, wait};
use crate::setting::{Settings, StartError, apart, listening, random, unix_time};
use crate::{CriticalSectionRawMutex, TcpDialer, TcpListener, TokioSleep};

use role::{COUNT, Exchange, Locals, OFFER, Serving, TRY};

const TOPICS: usize = 64;
const CHANNELS: usize = 128;
const CLIENTS: usize = 64;
const HTTP: usize = 8;
/// Messages in flight in a channel.
const IN_FLIGHT: usize = 256;
const PEERS: usize = PEERS_MAX;

/// Bytes of the read and the write buffer of each connection.
const RX: usize = 1024;
const TX: usize = 1024;

/// A small nsqd in a program: it keeps messages of the program and of clients, and delivers them to
/// ordinary consumers.
///
/// It owns its memory, is cheap to clone, and can be used from any task and thread. Its connections
/// are run by a task that [`start`](NsqdBuilder::start) spawns on the current tokio runtime.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nanonsq_std::Nsqd;
///
/// let nsqd = Nsqd::builder("127.0.0.1:4150", "127.0.0.1:4151").lookupd("127.0.0.1:4160");
/// let nsqd = nsqd.start().await?;
/// nsqd.publish("readings", b"21.5").await?;
/// # Ok(())
/// # }
/// ```
///
/// Messages are in memory only. When the last clone is dropped, the task goes on until they are
/// consumed, for at most 5 s, and logs how many were not; [`shutdown`](Self::shutdown) returns that.
/// When the runtime shuts down, the task ends at once.
///
/// # Bounds
///
/// | what | bound | when full |
/// |---|---|---|
/// | messages | [`memory`](NsqdBuilder::memory), 64 MiB | `publish` waits, `try_publish` returns an error, clients wait and are refused after 5 s; or the oldest are dropped: [`when_full`](NsqdBuilder::when_full) |
/// | topics, channels of all together and of each | 64, 128, 8 | a new one is refused |
/// | clients, connections over HTTP | 64, 8 | an idle one makes room, or the caller is rejected |
/// | messages in flight in a channel | 256 | it delivers no more |
/// | nsqlookupds | 8 | [`StartError`] |
#[derive(Clone)]
pub struct Nsqd {
    handle: Handle<Serving>,
    /// Those that wait for room, in turn.
    turn: Arc<tokio::sync::Mutex<()>>,
    tcp: SocketAddr,
    http: SocketAddr,
}

/// The settings of an [`Nsqd`].
#[derive(Debug, Clone)]
#[must_use = "`start` starts the nsqd"]
pub struct NsqdBuilder {
    settings: Settings,
    tcp: String,
    http: String,
    broadcast_address: Option<String>,
    hostname: String,
    channels: Vec<(TopicName, ChannelName)>,
    lookupds: Vec<Address>,
    memory: usize,
    full: Full,
}

/// Why an [`Nsqd`] did not accept a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotAccepted {
    /// The topic is not a name.
    Topic(NameError),
    /// The nsqd did not take it.
    Refused(Refusal),
    /// The nsqd was shut down.
    Stopped,
}

impl Nsqd {
    /// Begins the settings of an nsqd that listens on these addresses, `host:port`, for clients and
    /// for HTTP. Port 0 is any free port.
    pub fn builder(tcp: impl Into<String>, http: impl Into<String>) -> NsqdBuilder {
        NsqdBuilder {
            settings: Settings::default(),
            tcp: tcp.into(),
            http: http.into(),
            broadcast_address: None,
            hostname: "nanonsq".to_owned(),
            channels: Vec::new(),
            lookupds: Vec::new(),
            memory: 64 << 20,
            full: Full::Refuse,
        }
    }

    /// Accepts a message; waits while there is no room, without a consumer for ever.
    ///
    /// Cancel-safe: if the future is dropped before it is ready, the message is not accepted. Those
    /// that wait get room in the order in which they began to, so a future that waits and is not
    /// polled any more keeps the others waiting: drop it.
    ///
    /// # Errors
    ///
    /// The topic is not a name, the message is empty or never fits, there is no room for another
    /// topic, or the nsqd was shut down.
    pub async fn publish<T>(&self, topic: T, body: impl AsRef<[u8]>) -> Result<(), NotAccepted>
    where
        T: TryInto<TopicName, Error: Into<NotAccepted>>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.as_ref();
        let _turn = self.turn.lock().await;
        poll_fn(|cx| {
            self.handle.client().poll_with(cx, |state, cx| {
                if state.is_closing() {
                    return Poll::Ready(Err(NotAccepted::Stopped));
                }
                let fill = |exchange: &mut Exchange| exchange.fill(topic, body);
                match state.call(fill, OFFER, |exchange| exchange.accepted.take()) {
                    Some(taken) => Poll::Ready(taken.map_err(NotAccepted::Refused)),
                    None => {
                        state.waits.room = Some(cx.waker().clone());
                        Poll::Pending
                    }
                }
            })
        })
        .await
    }

    /// Accepts a message now, or returns an error.
    pub fn try_publish<T>(&self, topic: T, body: impl AsRef<[u8]>) -> Result<(), NotAccepted>
    where
        T: TryInto<TopicName, Error: Into<NotAccepted>>,
    {
        let topic = topic.try_into().map_err(Into::into)?;
        let body = body.as_ref();
        let taken = self.handle.client().with(|state| {
            if state.is_closing() {
                return Some(Err(NotAccepted::Stopped));
            }
            let fill = |exchange: &mut Exchange| exchange.fill(topic, body);
            let taken = state.call(fill, TRY, |exchange| exchange.accepted.take());
            taken.map(|taken| taken.map_err(NotAccepted::Refused))
        });
        taken.flatten().unwrap_or(Err(NotAccepted::Refused(Refusal::Full)))
    }

    /// Waits until every channel has finished every message, or the nsqd has ended. Cancel-safe.
    pub async fn idle(&self) {
        poll_fn(|cx| {
            self.handle.client().poll_with(cx, |state, cx| {
                if state.is_ended() || state.call(|_| (), COUNT, |exchange| exchange.idle) {
                    return Poll::Ready(());
                }
                wait(&mut state.waits.idle, cx);
                Poll::Pending
            })
        })
        .await;
    }

    /// Returns the counters since the start.
    pub fn counters(&self) -> Counters {
        let counters = self.handle.client().call(|_| (), COUNT, |exchange| exchange.counters);
        counters.unwrap_or_default()
    }

    /// Returns the address on which it listens for clients.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp
    }

    /// Returns the address on which it listens for HTTP.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Accepts no more messages from the program, waits until those that it has are consumed, at
    /// most `timeout`, unregisters at the nsqlookupds and closes all connections, which takes at
    /// most 1.5 s more.
    ///
    /// Dropping the future does not cancel the shutdown.
    ///
    /// # Errors
    ///
    /// How many messages were not consumed, counted in each channel; they are lost.
    pub async fn shutdown(&self, timeout: Duration) -> Result<(), Undelivered> {
        self.handle.shutdown(timeout).await
    }
}

impl NsqdBuilder {
    /// Adds an nsqlookupd to register with: `host:port` of its TCP port.
    pub fn lookupd<A>(mut self, lookupd: A) -> Self
    where
        A: TryInto<Address, Error: fmt::Display>,
    {
        self.settings.address("nsqlookupd", lookupd, &mut self.lookupds);
        self
    }

    /// Creates a topic and a channel at the start: the channel gets all messages, also those that
    /// come before its first client.
    pub fn channel<T, C>(mut self, topic: T, channel: C) -> Self
    where
        T: TryInto<TopicName, Error: fmt::Display>,
        C: TryInto<ChannelName, Error: fmt::Display>,
    {
        match (topic.try_into(), channel.try_into()) {
            (Ok(topic), Ok(channel)) => self.channels.push((topic, channel)),
            (Err(why), _) => self.settings.wrong(format!("topic: {why}")),
            (_, Err(why)) => self.settings.wrong(format!("channel: {why}")),
        }
        self
    }

    /// Sets the bytes for messages. Default 64 MiB; unused memory takes no RAM.
    pub fn memory(mut self, bytes: usize) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets what to do with a message for which there is no room. Default: wait, or refuse it.
    pub fn when_full(mut self, full: Full) -> Self {
        self.full = full;
        self
    }

    /// Sets the host or IP address that nsqlookupds list. Default: the IP address on which it
    /// listens for clients.
    pub fn broadcast_address(mut self, host: impl Into<String>) -> Self {
        self.broadcast_address = Some(host.into());
        self
    }

    /// Sets the name of this host in nsqadmin. Default `nanonsq`.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// Listens, and starts the nsqd in a task on the current tokio runtime, which must have I/O and
    /// time.
    ///
    /// # Errors
    ///
    /// A setting is wrong, an address cannot be listened on, or there is no runtime.
    pub async fn start(mut self) -> Result<Nsqd, StartError> {
        self.settings.check()?;
        let (listener, tcp) = listening(&self.tcp).await?;
        let (http_listener, http) = listening(&self.http).await?;
        if self.broadcast_address.is_none() {
            if tcp.ip().is_unspecified() && !self.lookupds.is_empty() {
                self.settings.wrong(format!("no broadcast_address, and it listens on {tcp}"));
            }
            self.broadcast_address = Some(tcp.ip().to_string());
        }
        self.settings.check()?;
        let ports = (tcp.port(), http.port());
        let listeners = (listener, http_listener);
        let handle = Client::start(|calls| self.run(calls, listeners, ports))?;
        Ok(Nsqd { handle, turn: Arc::default(), tcp, http })
    }

    async fn run(
        self,
        calls: Calls<Serving>,
        (tcp, http): (TcpListener, TcpListener),
        (tcp_port, http_port): (u16, u16),
    ) -> Result<Infallible, String> {
        let seed = random();
        let config =
            Config { full: self.full, channels_per_topic: 8, boot: seed, seed, ..Config::new() };
        let broadcast_address = self.broadcast_address.as_deref().unwrap_or_default();
        let hostname = self.hostname.as_str();
        let version = config.version;
        let info = NodeInfo {
            broadcast_address,
            hostname,
            tcp_port,
            http_port,
            version,
            ..NodeInfo::default()
        };
        let http_config =
            HttpConfig { broadcast_address, hostname, tcp_port, http_port, ..HttpConfig::new() };
        let lookup = LookupConfig { seed, ..LookupConfig::new(info) };
        let mut store = vec![0; self.memory];
        let mut resources = apart(Tables::new)?;
        let (node, mut runner) = borrowed::new(
            &mut resources,
            borrowed::Settings {
                node: &config,
                http: &http_config,
                lookup: &lookup,
                lookupds: &self.lookupds,
            },
            &mut store,
            Ports {
                tcp: Port::new(|| Gathered::new(tcp.clone(), vec![0; TX])),
                http: Port::new(|| Gathered::new(http.clone(), vec![0; TX])),
            },
            borrowed::Dialers {
                lookupds: [TcpDialer::new(); PEERS],
                channels: Some(TcpDialer::new()),
            },
            TokioSleep::new(),
        )
        .map_err(|error| error.to_string())?;
        // The runner has the others, which go at the end.
        drop((tcp, http));
        node.set_unix_time(unix_time());
        for (topic, channel) in &self.channels {
            node.create(topic, None)
                .and_then(|()| node.create(topic, Some(channel)))
                .map_err(|why| format!("channel {channel} of topic {topic}: {why}"))?;
        }
        let locals = Locals::new(node, runner.lookup(), &self.lookupds);
        Ok(calls.serve(locals, async move { runner.run().await }).await)
    }
}

type Tables<'a> = borrowed::Resources<
    'a,
    CriticalSectionRawMutex,
    TOPICS,
    CHANNELS,
    CLIENTS,
    IN_FLIGHT,
    HTTP,
    PEERS,
    RX,
>;

impl fmt::Debug for Nsqd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nsqd").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

impl From<NameError> for NotAccepted {
    fn from(error: NameError) -> Self {
        Self::Topic(error)
    }
}

impl From<Infallible> for NotAccepted {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for NotAccepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(why) => write!(f, "topic: {why}"),
            Self::Refused(why) => why.fmt(f),
            Self::Stopped => f.write_str("the nsqd was shut down"),
        }
    }
}

impl std::error::Error for NotAccepted {}
