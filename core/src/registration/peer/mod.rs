//! A connection to one nsqlookupd: the work of lookupPeer and connectCallback of nsqd.

mod session;

use heapless::Vec;

use super::{Config, DETAIL_MAX, HttpPort, PeerStatus};
use crate::address::Address;
use crate::session::dialed::{Dialed, Role};
use crate::session::{Closed, LinkState};
use crate::time::{Backoff, Instant, Jitter, Span, TimerId, Timers};
use crate::wire::nsqlookupd::{HttpPortFinder, LINE_MAX, ReplyDecoder};

pub use session::PeerSession;

/// The longest reply that is read, in bytes: a reply to IDENTIFY with long names.
const REPLY_MAX: u32 = 4096;

/// Bytes for the longest command line.
const TX_BUFFER: usize = LINE_MAX + 3;

/// A connection to one nsqlookupd, and its status.
// In this order for the reason given at `Publisher`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Peer {
    dialed: Dialed,
    /// How many commands were sent and not answered.
    outstanding: u16,
    /// The cursor of registering everything again; past the end when done.
    reassert: u16,
    replies: ReplyDecoder,
    /// Changes whenever a waiting task should check its condition again.
    version: u32,
    connections: u32,
    failures: u32,
    timers: Timers<Timer, 3>,
    jitter: Jitter,
    /// On this connection, all desired registrations were answered.
    listed: bool,
    http: Http,
    tx_buffer: [u8; TX_BUFFER],
    /// The start of the reply being read. The text of an error stays until the next connection.
    detail: Vec<u8, DETAIL_MAX, u8>,
    /// The nsqlookupd to connect to.
    address: Option<Address>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// With commands outstanding: nsqlookupd neither answers nor accepts more.
    Reply,
    /// Ready: send PING.
    Ping,
    /// Ready: register everything again.
    Reassert,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        self as usize
    }
}

impl Peer {
    pub(super) const fn new() -> Self {
        Self {
            dialed: Dialed::new(Role::Registration, Backoff::NONE),
            outstanding: 0,
            reassert: u16::MAX,
            replies: ReplyDecoder::new(REPLY_MAX),
            version: 0,
            connections: 0,
            failures: 0,
            timers: Timers::new(),
            jitter: Jitter::new(0),
            listed: false,
            http: Http { port: 0, finder: HttpPortFinder::new() },
            tx_buffer: [0; TX_BUFFER],
            detail: Vec::new(),
            address: None,
        }
    }

    pub(super) fn set_seed(&mut self, seed: u32) {
        self.jitter = Jitter::new(seed);
    }

    pub(super) fn address(&self) -> Option<&Address> {
        self.address.as_ref()
    }

    pub(super) fn http(&self) -> Option<(&Address, HttpPort)> {
        let port = match self.http.port {
            0 if self.connections == 0 && self.failures == 0 => HttpPort::Coming,
            0 => HttpPort::Unknown,
            port => HttpPort::Known(port),
        };
        Some((self.address.as_ref()?, port))
    }

    pub(super) fn version(&self) -> u32 {
        self.version
    }

    pub(super) fn state(&self) -> LinkState {
        self.dialed.state()
    }

    pub(super) fn status(&self, settled: bool) -> PeerStatus<'_> {
        PeerStatus {
            address: self.address.as_ref(),
            state: self.state(),
            settled,
            last: self.dialed.why(),
            detail: core::str::from_utf8(&self.detail).unwrap_or_default(),
            connections: self.connections,
            failures: self.failures,
        }
    }

    /// Connects to `address` from now on, once the connection that may still be closing is gone.
    pub(super) fn assign(&mut self, config: &Config<'_>, now: Instant, address: Address) {
        self.address = Some(address);
        self.dialed.attempts = Backoff::NONE;
        if self.state() != LinkState::Leaving {
            // A leaving peer may have received half of a reply.
            self.detail.clear();
        }
        self.connections = 0;
        self.failures = 0;
        self.http.port = 0;
        if self.state() == LinkState::Idle {
            self.dialed.forget_why();
            self.wait(config, now);
        }
    }

    /// Drops the address and closes the connection.
    pub(super) fn retire(&mut self, config: &Config<'_>, now: Instant) {
        self.address = None;
        match self.state() {
            LinkState::Idle => {}
            LinkState::Waiting => {
                self.dialed.rest();
                self.changed();
            }
            LinkState::Dialing
            | LinkState::Upgrading
            | LinkState::Identifying
            | LinkState::Authenticating
            | LinkState::Subscribing
            | LinkState::Asking
            | LinkState::Ready
            | LinkState::Draining
            | LinkState::Leaving
            | LinkState::Closing => self.close(config, now, Closed::Local),
        }
    }

    /// Unregisters everything, which the registry does not desire any more, then closes.
    pub(super) fn leave(&mut self, config: &Config<'_>, now: Instant, settled: bool) {
        // A peer that is leaving already may have been assigned another address meanwhile.
        self.address = None;
        if self.state() == LinkState::Ready && !settled {
            self.step(LinkState::Leaving, now.after(config.reply_timeout));
        } else if self.state() != LinkState::Leaving {
            self.retire(config, now);
        }
    }

    /// Returns whether every command was written and answered.
    pub(super) fn is_quiet(&self) -> bool {
        self.outstanding == 0 && !self.dialed.staging.is_writing() && self.dialed.nops == 0
    }

    fn wait(&mut self, config: &Config<'_>, now: Instant) {
        let delay = self.dialed.delay(config.reconnect(), now, &mut self.jitter);
        self.dialed.wait(now.after(delay));
        self.changed();
    }

    /// Starts a timer for about `every`; zero for never.
    fn repeat(&mut self, timer: Timer, now: Instant, every: Span) {
        if every > Span::ZERO {
            let every = self.jitter.around(every).max(Span::from_millis(1));
            self.timers.set(timer, now.after(every));
        }
    }

    fn step(&mut self, state: LinkState, until: Instant) {
        self.dialed.step(state, until);
        self.changed();
    }

    fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    #[cold]
    fn close(&mut self, config: &Config<'_>, now: Instant, why: Closed) {
        self.timers.stop_all();
        self.dialed.close(&why, config.close_timeout, now);
        self.changed();
    }
}

/// The HTTP port of an nsqlookupd.
#[derive(Debug)]
pub(super) struct Http {
    /// The port that the nsqlookupd reported, until a dial fails; else 0.
    port: u16,
    finder: HttpPortFinder,
}

/// Looks for the port in the reply to IDENTIFY: [`Http::find`], through a pointer, so that only
/// programs that need the port contain it.
pub(super) type FindPort = fn(&mut Http, &[u8]);

impl Http {
    pub(super) fn find(&mut self, bytes: &[u8]) {
        self.finder.feed(bytes);
        self.port = self.finder.port().unwrap_or(self.port);
    }
}
