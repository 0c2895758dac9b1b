//! nsqd's HTTP: publishing, topics and channels, `/stats` for nsqadmin and nsq_stat, `/config`.
//!
//! The answers are those of nsqd 1.3.0 (`nsqd/http.go`), with these differences:
//!
//! - `/stats` has no `memory` and no latencies (`e2e_processing_latency` is present but empty). A
//!   client's `pub_counts` lists up to 4 topics that the client published to; nsqd lists one.
//! - A full nsqd holds a publishing request for
//!   [`Config::publish_wait`](super::Config::publish_wait), then refuses it with 503 `BUSY`.
//!   Without room for another topic or channel, nsqd refuses with `TOO_MANY_TOPICS`,
//!   `TOO_MANY_CHANNELS` or `TOO_MANY_CHANNELS_OF_TOPIC`. A refused request creates no topic.
//! - A line of `/mpub` has [`BUFFER`](crate::http::BUFFER) bytes at most, else 413 `MSG_TOO_BIG`;
//!   with `binary=true` only `max_msg_size` limits a message.
//! - `/config` has only options with a meaning here, and `log_level` cannot be changed.
//! - There is no `/debug`.
//! - With the feature `metrics`, `GET /metrics` has counters, depths and clients for Prometheus.
//!
//! Topics, channels and clients that change while `/stats` is written may be missing. The answer
//! stays well-formed.

#[cfg(feature = "metrics")]
mod metrics;
mod options;
mod publish;
mod service;
mod stats;
#[cfg(test)]
mod tests;
mod text;

use core::fmt;

use super::Nsqd;
use super::client::Client;
use super::engine::Shared;
use crate::address::Address;
use crate::http::{self, Connection};
use crate::session::{Awaited, Closed, Fault, Link, Session, Transmit};
use crate::time::{Instant, Span};

use service::{RequestContext, Task};

/// The settings of an nsqd's HTTP. The nsqd borrows them, so constant settings take no RAM.
#[derive(Debug, Clone, Copy)]
pub struct HttpConfig<'a> {
    /// The name or address, without a port, by which others reach the nsqd. Default `127.0.0.1`.
    pub broadcast_address: &'a str,
    /// The host name of the nsqd. Default empty.
    pub hostname: &'a str,
    /// The TCP port for clients. Default 4150.
    pub tcp_port: u16,
    /// The TCP port for HTTP. Default 4151.
    pub http_port: u16,
    /// The timeouts of an HTTP connection.
    pub times: http::Config,
}

impl HttpConfig<'_> {
    /// Returns the default settings.
    pub const fn new() -> Self {
        Self {
            broadcast_address: "127.0.0.1",
            hostname: "",
            tcp_port: 4150,
            http_port: 4151,
            times: http::Config::new(),
        }
    }
}

impl Default for HttpConfig<'_> {
    fn default() -> Self {
        Self::new()
    }
}

/// The tables for HTTP: for `HTTP` connections, and the addresses of up to `LOOKUPDS` nsqlookupds.
///
/// RAM: at most 1,360 bytes for each connection and 100 bytes for each address.
#[derive(Debug)]
pub struct HttpStorage<const HTTP: usize, const LOOKUPDS: usize> {
    connections: [Connection<Task>; HTTP],
    lookupds: [Address; LOOKUPDS],
}

// Checked at compile time on every target.
const _: () = {
    assert!(size_of::<Connection<Task>>() <= 1360);
    assert!(size_of::<Address>() == 100);
};

impl<const HTTP: usize, const LOOKUPDS: usize> HttpStorage<HTTP, LOOKUPDS> {
    /// Returns tables for [`Nsqd::answer_http`], which initializes them. All bytes are zero, so a
    /// static needs no image in flash.
    pub const fn new() -> Self {
        Self {
            connections: [const { Connection::zero(Task::Done) }; HTTP],
            lookupds: [const { Address::NONE }; LOOKUPDS],
        }
    }
}

impl<const HTTP: usize, const LOOKUPDS: usize> Default for HttpStorage<HTTP, LOOKUPDS> {
    fn default() -> Self {
        Self::new()
    }
}

/// [`Nsqd::answer_http`] got more addresses than the storage has room for, and changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooManyLookupds {
    /// The number of addresses that fit.
    pub max: usize,
}

impl fmt::Display for TooManyLookupds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more nsqlookupd addresses than the {} that fit", self.max)
    }
}

impl core::error::Error for TooManyLookupds {}

/// The part of an nsqd that answers HTTP.
#[derive(Debug)]
pub(super) struct Http<'a> {
    connections: &'a mut [Connection<Task>],
    settings: Settings<'a>,
}

/// The settings that HTTP shows and changes.
#[derive(Debug)]
struct Settings<'a> {
    config: &'a HttpConfig<'a>,
    /// The first `count` are set.
    lookupds: &'a mut [Address],
    count: usize,
    version: u32,
}

impl Http<'_> {
    /// Returns a part without HTTP connections.
    pub(super) const fn none() -> Self {
        const DEFAULT: &HttpConfig<'_> = &HttpConfig::new();
        let settings = Settings { config: DEFAULT, lookupds: &mut [], count: 0, version: 0 };
        Self { connections: &mut [], settings }
    }
}

impl Settings<'_> {
    fn lookupds(&self) -> &[Address] {
        self.lookupds.get(..self.count).unwrap_or_default()
    }
}

impl<'a> Nsqd<'a> {
    /// Enables HTTP, on as many connections as `storage` has room for. `lookupds` are the
    /// nsqlookupds until a request sets others; see [`lookupds`](Self::lookupds). Call once,
    /// before any session is driven.
    pub fn answer_http<const HTTP: usize, const LOOKUPDS: usize>(
        &mut self,
        config: &'a HttpConfig<'a>,
        storage: &'a mut HttpStorage<HTTP, LOOKUPDS>,
        lookupds: &[Address],
    ) -> Result<(), TooManyLookupds> {
        if lookupds.len() > LOOKUPDS {
            return Err(TooManyLookupds { max: LOOKUPDS });
        }
        let HttpStorage { connections, lookupds: room } = storage;
        connections.iter_mut().for_each(Connection::init);
        for (slot, address) in room.iter_mut().zip(lookupds) {
            slot.clone_from(address);
        }
        let settings = Settings { config, lookupds: room, count: lookupds.len(), version: 0 };
        self.http = Http { connections, settings };
        Ok(())
    }

    /// Returns the number of HTTP connections that the storage has room for.
    pub fn http_clients(&self) -> usize {
        self.http.connections.len()
    }

    /// Returns the session of HTTP connection `index`; `None` from
    /// [`http_clients`](Self::http_clients) on.
    pub fn http(&mut self, index: usize) -> Option<HttpSession<'_, 'a>> {
        let Http { connections, settings } = &mut self.http;
        let connection = connections.get_mut(index)?;
        let context = RequestContext { clients: self.clients, shared: &mut self.shared, settings };
        Some(HttpSession { connection, context })
    }

    /// Returns the nsqlookupds to register the nsqd with: those of
    /// [`answer_http`](Self::answer_http), or those last set by
    /// `PUT /config/nsqlookupd_tcp_addresses`. The owner of a
    /// [`Registration`](crate::registration::Registration) passes them to `configure` when
    /// [`lookupds_version`](Self::lookupds_version) changed.
    pub fn lookupds(&self) -> &[Address] {
        self.http.settings.lookupds()
    }

    /// Returns a number that changes whenever a request sets the nsqlookupds.
    pub const fn lookupds_version(&self) -> u32 {
        self.http.settings.version
    }
}

/// The session of one HTTP connection.
///
/// [`Nsqd::http`] creates a new value for each call; the state is in the nsqd.
#[derive(Debug)]
pub struct HttpSession<'s, 'a> {
    connection: &'s mut Connection<Task>,
    context: RequestContext<'s, 'a>,
}

impl Session for HttpSession<'_, '_> {
    fn link(&self) -> Link {
        self.connection.link()
    }

    fn open(&mut self, now: Instant) {
        self.connection.open(now, &mut self.context);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if self.take(now, bytes) < bytes.len() {
            // To hold a client, a driver must call `take` and offer the rest again.
            self.connection.abort(now, &mut self.context);
            return Err(Fault::TimedOut(Awaited::Drain));
        }
        Ok(())
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.connection.take(now, bytes, &mut self.context)
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.connection.transmit(now, &mut self.context)
    }

    fn sent(&mut self, now: Instant, n: usize) {
        self.connection.sent(now, n, &mut self.context);
    }

    fn deadline(&self) -> Instant {
        self.connection.deadline()
    }

    fn evictable(&self) -> Instant {
        self.connection.evictable()
    }

    fn tick(&mut self, now: Instant) {
        self.connection.tick(now, &mut self.context);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        self.connection.closed(now, why, &mut self.context);
    }
}
