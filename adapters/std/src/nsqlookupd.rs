//! An nsqlookupd for application programs: it owns its memory and runs in a task of its own.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::task::Waker;
use std::time::Duration;

use nanonsq_core::drive::{Gathered, Port, Ports, nsqlookupd as borrowed};
use nanonsq_core::nsqlookupd::{Config, Counters, Event, IdentifyReply};
use nanonsq_core::session::Closed;

use crate::client::{Call, Calls, Client, Handle, Report, Role};
use crate::role::Stop;
use crate::setting::{StartError, apart, listening, unix_time};
use crate::{CriticalSectionRawMutex, TcpListener, TokioSleep};

/// Connections of nsqds. Each of the `WORDS` has a bit for each of 32.
const CLIENTS: usize = 64;
const WORDS: usize = CLIENTS / 32;
const TOPICS: usize = 256;
const CHANNELS: usize = 1024;
const HTTP: usize = 8;

/// Bytes of the read and the write buffer of each connection.
const RX: usize = 1024;
const TX: usize = 1024;

/// A small nsqlookupd in a program: nsqds register with it, and consumers find them.
///
/// It owns its memory, is cheap to clone, and can be used from any task and thread. Its connections
/// are run by a task that [`start`](NsqlookupdBuilder::start) spawns on the current tokio runtime,
/// until the last clone is dropped.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use nanonsq_std::Nsqlookupd;
///
/// let lookupd = Nsqlookupd::builder("127.0.0.1:4160", "127.0.0.1:4161").start().await?;
/// # Ok(())
/// # }
/// ```
///
/// # Bounds
///
/// | what | bound | when full |
/// |---|---|---|
/// | nsqds, connections over HTTP | 64, 8 | an idle one makes room, or the caller is rejected |
/// | topics, channels of all together | 256, 1,024; one is left for each other nsqd | a new one is refused |
#[derive(Clone)]
pub struct Nsqlookupd {
    handle: Handle<Listing>,
    tcp: SocketAddr,
    http: SocketAddr,
}

/// The settings of an [`Nsqlookupd`].
#[derive(Debug, Clone)]
#[must_use = "`start` starts the nsqlookupd"]
pub struct NsqlookupdBuilder {
    tcp: String,
    http: String,
    broadcast_address: Option<String>,
    hostname: String,
}

impl Nsqlookupd {
    /// Begins the settings of an nsqlookupd that listens on these addresses, `host:port`, for nsqds
    /// and for HTTP. Port 0 is any free port.
    pub fn builder(tcp: impl Into<String>, http: impl Into<String>) -> NsqlookupdBuilder {
        NsqlookupdBuilder {
            tcp: tcp.into(),
            http: http.into(),
            broadcast_address: None,
            hostname: "nanonsq".to_owned(),
        }
    }

    /// Returns the counters since the start.
    pub fn counters(&self) -> Counters {
        let count: Call<Listing> = |locals, exchange| exchange.counters = locals.handle.counters();
        self.handle.client().call(|_| (), count, |exchange| exchange.counters).unwrap_or_default()
    }

    /// Returns the address on which it listens for nsqds.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp
    }

    /// Returns the address on which it listens for HTTP.
    pub fn http_addr(&self) -> SocketAddr {
        self.http
    }

    /// Closes all connections, which takes at most 1.5 s, and returns when that is done. Dropping
    /// the future does not cancel the shutdown.
    pub async fn shutdown(&self) {
        // It has no messages.
        let _ = self.handle.shutdown(Duration::ZERO).await;
    }
}

impl NsqlookupdBuilder {
    /// Sets the host or IP address by which nsqds reach its HTTP port. Default: the IP address on
    /// which it listens for nsqds.
    pub fn broadcast_address(mut self, host: impl Into<String>) -> Self {
        self.broadcast_address = Some(host.into());
        self
    }

    /// Sets the name of this host in nsqadmin. Default `nanonsq`.
    pub fn hostname(mut self, hostname: impl Into<String>) -> Self {
        self.hostname = hostname.into();
        self
    }

    /// Listens, and starts the nsqlookupd in a task on the current tokio runtime, which must have
    /// I/O and time.
    ///
    /// # Errors
    ///
    /// An address cannot be listened on, or there is no runtime.
    pub async fn start(mut self) -> Result<Nsqlookupd, StartError> {
        let (listener, tcp) = listening(&self.tcp).await?;
        let (http_listener, http) = listening(&self.http).await?;
        self.broadcast_address.get_or_insert(tcp.ip().to_string());
        let ports = (tcp.port(), http.port());
        let handle = Client::start(|calls| self.run(calls, (listener, http_listener), ports))?;
        Ok(Nsqlookupd { handle, tcp, http })
    }

    async fn run(
        self,
        calls: Calls<Listing>,
        (tcp, http): (TcpListener, TcpListener),
        (tcp_port, http_port): (u16, u16),
    ) -> Result<Infallible, String> {
        let default = Config::new();
        let broadcast_address = self.broadcast_address.as_deref().unwrap_or_default();
        let hostname = self.hostname.as_str();
        let config = Config {
            info: IdentifyReply {
                broadcast_address,
                hostname,
                tcp_port,
                http_port,
                ..default.info
            },
            topics_per_node: (TOPICS - CLIENTS) as u16,
            channels_per_node: (CHANNELS - CLIENTS) as u16,
            ..default
        };
        let mut resources = apart(Tables::new)?;
        let (handle, mut runner) = borrowed::new(
            &mut resources,
            &config,
            Ports {
                tcp: Port::new(|| Gathered::new(tcp.clone(), vec![0; TX])),
                http: Port::new(|| Gathered::new(http.clone(), vec![0; TX])),
            },
            TokioSleep::new(),
        );
        // The runner has the others, which go at the end.
        drop((tcp, http));
        handle.set_unix_time(unix_time());
        let locals = Locals { handle, names: vec![String::new(); CLIENTS], stop: Stop::default() };
        Ok(calls.serve(locals, async move { runner.run().await }).await)
    }
}

type Tables<'a> =
    borrowed::Resources<'a, CriticalSectionRawMutex, CLIENTS, TOPICS, CHANNELS, HTTP, RX, WORDS>;

impl fmt::Debug for Nsqlookupd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Nsqlookupd").field("tcp", &self.tcp).finish_non_exhaustive()
    }
}

pub(crate) struct Listing;

pub(crate) struct Locals<'a> {
    handle: borrowed::Handle<'a, CriticalSectionRawMutex, TokioSleep>,
    /// The nsqds, by their connections.
    names: Vec<String>,
    stop: Stop<'a>,
}

#[derive(Default)]
pub(crate) struct Exchange {
    report: Report,
    counters: Counters,
}

impl Role for Listing {
    const NAME: &'static str = "nsqlookupd";

    type Locals<'a> = Locals<'a>;
    type Exchange = Exchange;
    type Waits = ();

    const REPORT: Call<Self> = |locals, exchange| {
        while let Some(event) = locals.handle.try_event() {
            exchange.report.lines.extend(locals.line(event));
        }
        exchange.report.is_stopped = locals.stop.is_done();
    };

    const STOP: Call<Self> = |locals, _| {
        let handle = locals.handle.clone();
        locals.stop.begin(async move { handle.stop().await });
    };

    fn wake(_: &mut (), _: &mut Exchange, _: bool, _: &mut Vec<Waker>) {}
}

impl Locals<'_> {
    /// Makes the line of an event, if it is for the log.
    fn line(&mut self, event: Event) -> Option<(bool, String)> {
        Some(match event {
            Event::Identified { index, .. } => {
                let name = self.handle.look(|directory| {
                    let node = directory.producer(index)?.node;
                    Some(format!("{}:{}", node.broadcast_address, node.tcp_port))
                });
                let name = name.flatten().unwrap_or_default();
                let line = format!("connected: nsqd {name}");
                *self.names.get_mut(index)? = name;
                (false, line)
            }
            Event::Left { why: Closed::Local, .. } => return None,
            Event::Left { index, why, .. } => {
                (true, format!("lost nsqd {}: {why}", self.names.get(index)?))
            }
            Event::TableFull(_) => (true, "refused a registration: there is no room".to_owned()),
            _ => return None,
        })
    }
}

impl AsMut<Report> for Exchange {
    fn as_mut(&mut self) -> &mut Report {
        &mut self.report
    }
}
