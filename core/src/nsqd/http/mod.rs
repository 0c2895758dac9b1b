//! nsqd's HTTP: publishing, topics and channels, `/stats` for nsqadmin and nsq_stat, settings.
//!
//! What nsqd 1.3.0 answers (`nsqd/http.go`), with these differences:
//!
//! - `/stats` has no `memory` and no latencies (`e2e_processing_latency` is there, and empty). All
//!   topics that a client published to are listed in its `pub_counts`, not one of them.
//! - A full nsqd holds who publishes for [`Config::publish_wait`](super::Config::publish_wait),
//!   then refuses with 503 `BUSY`; without room for another topic or channel it refuses with
//!   `TOO_MANY_TOPICS` or `TOO_MANY_CHANNELS`. A refused request makes no topic.
//! - A line of `/mpub` has [`BUFFER`](crate::http::BUFFER) bytes at most, else 413 `MSG_TOO_BIG`;
//!   with `binary=true` messages may be as long as everywhere.
//! - `/config` has what means something here, and `log_level` is not to be changed.
//! - There is no `/debug`.
//!
//! What of a list changes while it is written may be missing, or be of another client that came
//! into the same place; the text is well-formed all the same.

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

/// The settings of an nsqd's HTTP. Borrowed, so that constant settings cost no RAM.
#[derive(Debug, Clone, Copy)]
pub struct HttpConfig<'a> {
    /// Where others reach the nsqd: a name or an address without a port. Default `127.0.0.1`.
    pub broadcast_address: &'a str,
    /// The nsqd's host. Default none.
    pub hostname: &'a str,
    /// Where the nsqd takes clients. Default 4150.
    pub tcp_port: u16,
    /// Where it answers HTTP. Default 4151.
    pub http_port: u16,
    /// The timeouts of a connection.
    pub times: http::Config,
}

impl HttpConfig<'_> {
    /// The defaults.
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

/// The tables for HTTP: for so many connections, and so many nsqlookupds whose addresses can be
/// set over it.
///
/// RAM: at most 1,360 bytes a connection and 100 an address.
#[derive(Debug)]
pub struct HttpStorage<const HTTP: usize, const LOOKUPDS: usize> {
    connections: [Connection<Task>; HTTP],
    lookupds: [Address; LOOKUPDS],
}

// On every target that this is compiled for.
const _: () = {
    assert!(size_of::<Connection<Task>>() <= 1360);
    assert!(size_of::<Address>() == 100);
};

impl<const HTTP: usize, const LOOKUPDS: usize> HttpStorage<HTTP, LOOKUPDS> {
    /// For storage; [`Nsqd::answer_http`] makes it usable. All bytes are zero: a static of it
    /// needs no image in flash.
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

/// More addresses than there is room for. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TooManyLookupds {
    /// The number of addresses that fit.
    pub max: usize,
}

impl fmt::Display for TooManyLookupds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "more nsqlookupd addresses than the {} there is room for", self.max)
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
    /// The first `count` of them are meant.
    lookupds: &'a mut [Address],
    count: usize,
    version: u32,
}

impl Http<'_> {
    /// No HTTP connections.
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
    /// Answers HTTP as well, on so many connections as `storage` has room for. `lookupds` are the
    /// nsqlookupds that the nsqd is told to have, until somebody sets others; see
    /// [`lookupds`](Self::lookupds). Call it once, before anything is driven.
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

    /// How many HTTP connections there are, used or not.
    pub fn http_clients(&self) -> usize {
        self.http.connections.len()
    }

    /// The session of HTTP connection `index`, below [`http_clients`](Self::http_clients).
    pub fn http(&mut self, index: usize) -> Option<HttpSession<'_, 'a>> {
        let Http { connections, settings } = &mut self.http;
        let connection = connections.get_mut(index)?;
        let context = RequestContext { clients: self.clients, shared: &mut self.shared, settings };
        Some(HttpSession { connection, context })
    }

    /// The nsqlookupds that the nsqd is to be registered with, as set last: at the start, or by
    /// `PUT /config/nsqlookupd_tcp_addresses`. Whoever owns a
    /// [`Registration`](crate::registration::Registration) gives them to its `configure` when
    /// [`lookupds_version`](Self::lookupds_version) changed.
    pub fn lookupds(&self) -> &[Address] {
        self.http.settings.lookupds()
    }

    /// Changes whenever somebody sets the nsqlookupds.
    pub const fn lookupds_version(&self) -> u32 {
        self.http.settings.version
    }
}

/// A connection of somebody who asks over HTTP.
///
/// Made for each call by [`Nsqd::http`]; the state is in the nsqd.
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
            // Only a driver that offers the rest again can hold a client.
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
