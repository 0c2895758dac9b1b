//! A connection to one nsqlookupd: what lookupPeer and connectCallback of nsqd do.

mod session;

use heapless::Vec;

use super::{Config, DETAIL_MAX, HttpPort, PeerEvent, PeerState, PeerStatus};
use crate::address::Address;
use crate::macros::trace_state;
use crate::session::staging::Staging;
use crate::session::{Closed, Fault};
use crate::time::{Backoff, Instant, Jitter, Span, TimerId, Timers};
use crate::wire::nsqlookupd::{HttpPortFinder, LINE_MAX, ReplyDecoder};

pub use session::PeerSession;

/// The longest reply that is read: an IDENTIFY answer with long names.
const REPLY_MAX: u32 = 4096;

/// Holds the longest command line.
const TX_BUFFER: usize = LINE_MAX + 3;

/// A connection to one nsqlookupd, and what is known of it.
// In this order for the reason given at `Publisher`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Peer {
    /// The text is IDENTIFY.
    staging: Staging,
    /// PINGs to send.
    pings: u8,
    state: PeerState,
    /// Commands whose reply is due.
    outstanding: u16,
    /// Where asserting again has come to; past the end when done.
    reassert: u16,
    replies: ReplyDecoder,
    /// Counts changes that may be worth waking somebody for.
    version: u32,
    connections: u32,
    failures: u32,
    timers: Timers<Timer, 4>,
    attempts: Backoff,
    jitter: Jitter,
    opened_at: Instant,
    /// Everything that was to be registered was answered on this connection.
    listed: bool,
    last: Option<Closed>,
    news: Option<PeerEvent>,
    http: Http,
    tx_buffer: [u8; TX_BUFFER],
    /// The start of the reply being read; that of an error stays until the next connection.
    detail: Vec<u8, DETAIL_MAX, u8>,
    /// The nsqlookupd to be connected to.
    address: Option<Address>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Waiting: dial. Dialing, Identifying: give up. Leaving: enough unregistered. Closing: abort.
    State,
    /// Commands outstanding: nsqlookupd neither answers nor takes more.
    Reply,
    /// Connected: send PING.
    Ping,
    /// Connected: assert everything again.
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
            staging: Staging::EMPTY,
            pings: 0,
            state: PeerState::Unused,
            outstanding: 0,
            reassert: u16::MAX,
            replies: ReplyDecoder::new(REPLY_MAX),
            version: 0,
            connections: 0,
            failures: 0,
            timers: Timers::new(),
            attempts: Backoff::NONE,
            jitter: Jitter::new(0),
            opened_at: Instant::NEVER,
            listed: false,
            last: None,
            news: None,
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

    pub(super) fn state(&self) -> PeerState {
        self.state
    }

    pub(super) fn status(&self, settled: bool) -> PeerStatus<'_> {
        PeerStatus {
            address: self.address.as_ref(),
            state: self.state,
            settled,
            last: self.last,
            detail: core::str::from_utf8(&self.detail).unwrap_or_default(),
            connections: self.connections,
            failures: self.failures,
        }
    }

    /// Connects to `address` from now on, once the connection that may still be closing is gone.
    pub(super) fn assign(&mut self, config: &Config<'_>, now: Instant, address: Address) {
        self.address = Some(address);
        self.attempts = Backoff::NONE;
        self.last = None;
        if !matches!(self.state, PeerState::Leaving) {
            // There it may hold the first half of an answer.
            self.detail.clear();
        }
        self.connections = 0;
        self.failures = 0;
        self.http.port = 0;
        if matches!(self.state, PeerState::Unused) {
            self.wait(config, now);
        }
    }

    /// There is no nsqlookupd to connect to any more: closes the connection.
    pub(super) fn retire(&mut self, config: &Config<'_>, now: Instant) {
        self.address = None;
        match self.state {
            PeerState::Unused => {}
            PeerState::Waiting => {
                self.timers.stop_all();
                self.set_state(PeerState::Unused);
            }
            PeerState::Dialing
            | PeerState::Identifying
            | PeerState::Connected
            | PeerState::Leaving
            | PeerState::Closing(_) => self.close(config, now, Closed::Local),
        }
    }

    /// Unregisters everything, which the registry no longer wants, then closes.
    pub(super) fn leave(&mut self, config: &Config<'_>, now: Instant, settled: bool) {
        // One that leaves already may have been given somebody to connect to afterwards.
        self.address = None;
        if matches!(self.state, PeerState::Connected) && !settled {
            self.timers.set(Timer::State, now.after(config.reply_timeout));
            self.set_state(PeerState::Leaving);
        } else if !matches!(self.state, PeerState::Leaving) {
            self.retire(config, now);
        }
    }

    /// Whether every command was written and answered.
    pub(super) fn is_quiet(&self) -> bool {
        self.outstanding == 0 && !self.staging.is_writing() && self.pings == 0
    }

    fn wait(&mut self, config: &Config<'_>, now: Instant) {
        let came_up = core::mem::replace(&mut self.opened_at, Instant::NEVER) != Instant::NEVER;
        let delay = self.attempts.delay(config.reconnect(), came_up, &mut self.jitter);
        self.timers.set(Timer::State, now.after(delay));
        self.set_state(PeerState::Waiting);
    }

    /// Starts a timer for about `every`; zero is never.
    fn repeat(&mut self, timer: Timer, now: Instant, every: Span) {
        if every > Span::ZERO {
            let every = self.jitter.around(every).max(Span::from_millis(1));
            self.timers.set(timer, now.after(every));
        }
    }

    fn set_state(&mut self, state: PeerState) {
        trace_state!("lookup peer", self.state, state);
        self.state = state;
        self.version = self.version.wrapping_add(1);
    }

    #[cold]
    #[inline(never)]
    fn close(&mut self, config: &Config<'_>, now: Instant, why: Closed) {
        self.timers.stop_all();
        // A peer that is silent would not take the last bytes either.
        let timeout = match why {
            Closed::Fault(Fault::TimedOut(_)) => Span::ZERO,
            _ => config.close_timeout,
        };
        self.timers.set(Timer::State, now.after(timeout));
        self.set_state(PeerState::Closing(why));
    }
}

/// Where nsqlookupd answers HTTP.
#[derive(Debug)]
pub(super) struct Http {
    /// Once it said so, until it is not to be reached; else 0.
    port: u16,
    finder: HttpPortFinder,
}

/// Looks for the port in what comes with the answer to IDENTIFY: [`Http::find`], by way of a pointer,
/// so that only who wants it has it in the program.
pub(super) type FindPort = fn(&mut Http, &[u8]);

impl Http {
    pub(super) fn find(&mut self, bytes: &[u8]) {
        self.finder.feed(bytes);
        self.port = self.finder.port().unwrap_or(self.port);
    }
}
