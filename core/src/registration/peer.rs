//! One nsqlookupd as nsqd sees it: what lookupPeer and connectCallback do, as a state machine.

use embedded_io::Write;
use heapless::Vec;

use super::registry::{PeerId, RegistryView};
use super::{Config, DETAIL_MAX, HttpPort, OUTSTANDING_MAX, PeerEvent, PeerState, PeerStatus};
use crate::address::Address;
use crate::macros::trace_state;
use crate::session::staging::{self, Staging};
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, Transmit};
use crate::time::{Attempts, Instant, Jitter, LASTED, Span, TimerId, Timers};
use crate::wire::DecodeError;
use crate::wire::nsqd::ErrorCode;
use crate::wire::nsqlookupd::{self, Command, HttpPortFinder, LINE_MAX, ReplyDecoder, ReplyPart};

/// The longest reply that is read: an IDENTIFY answer with long names.
const REPLY_MAX: u32 = 4096;

/// Holds the longest command line.
const TX_BUFFER: usize = LINE_MAX + 3;

/// Who was told everything, and has answered it, for so long has listed the node.
const LISTED: Span = Span::from_secs(1);

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
    attempts: Attempts,
    jitter: Jitter,
    opened_at: Instant,
    /// All that was to be registered was answered on this connection.
    listed: bool,
    last: Option<Closed>,
    news: Option<PeerEvent>,
    http: Http,
    tx_buffer: [u8; TX_BUFFER],
    /// What nsqlookupd says in the reply being read; an error's stays until the next connection.
    detail: Vec<u8, DETAIL_MAX, u8>,
    /// Whom to be connected to; `None` is nobody.
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
            attempts: Attempts::NONE,
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
        self.attempts = Attempts::NONE;
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

    /// Nobody to connect to any more: closes what there is.
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
        // A peer that is silent takes no farewell either.
        let patience = match why {
            Closed::Fault(Fault::TimedOut(_)) => Span::ZERO,
            _ => config.close_timeout,
        };
        self.timers.set(Timer::State, now.after(patience));
        self.set_state(PeerState::Closing(why));
    }
}

/// A peer with what it works on: the session of one nsqlookupd.
///
/// Made for each call by [`Registration::peer`](super::Registration::peer); the state is in the table.
#[derive(Debug)]
pub struct PeerSession<'s, 'a> {
    pub(super) peer: &'s mut Peer,
    pub(super) registry: RegistryView<'s>,
    pub(super) id: PeerId,
    pub(super) config: &'a Config<'a>,
    pub(super) find_port: Option<FindPort>,
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

impl PeerSession<'_, '_> {
    /// The newest change of this peer that nobody polled yet.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.peer.news.take()
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        self.peer.close(self.config, now, Closed::Fault(fault));
        Err(fault)
    }

    fn is_settled(&self) -> bool {
        self.peer.is_quiet() && self.registry.next_work(self.id).is_none()
    }

    /// Says PING, or everything again, when it is time.
    fn keep_alive(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        if peer.timers.expired(Timer::Ping, now) {
            peer.pings = peer.pings.saturating_add(1);
            peer.repeat(Timer::Ping, now, self.config.ping);
        }
        if peer.timers.expired(Timer::Reassert, now) {
            // Not while an answer is due: the answers to what comes later would put off the end of
            // a connection on which one of them got lost, without end.
            if peer.outstanding == 0 {
                peer.reassert = 0;
            }
            peer.repeat(Timer::Reassert, now, self.config.reassert);
        }
    }

    fn expect_reply(&mut self, now: Instant) {
        if self.peer.outstanding == 0 {
            self.peer.timers.set(Timer::Reply, now.after(self.config.reply_timeout));
        }
        self.peer.outstanding = self.peer.outstanding.saturating_add(1);
    }

    #[inline(never)]
    fn stage(&mut self, now: Instant) {
        self.peer.staging.clear();
        match self.peer.state {
            PeerState::Identifying => self.stage_identify(),
            PeerState::Connected | PeerState::Leaving => self.stage_commands(now),
            PeerState::Unused | PeerState::Waiting | PeerState::Dialing | PeerState::Closing(_) => {
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn stage_identify(&mut self) {
        let Peer { staging, tx_buffer, .. } = &mut *self.peer;
        staging.stage_text(tx_buffer, |w| {
            w.write_all(&nsqlookupd::MAGIC)?;
            Command::Identify(&self.config.node).emit(w)
        });
    }

    /// As many command lines as fit, pipelined: nsqlookupd answers in order.
    fn stage_commands(&mut self, now: Instant) {
        while self.peer.outstanding < OUTSTANDING_MAX {
            let room = self.peer.staging.room(&self.peer.tx_buffer);
            let (command, work) = if self.peer.pings > 0 {
                (Command::Ping, None)
            } else {
                let work = match self.registry.next_work(self.id) {
                    Some(work) => work,
                    None => {
                        let mut cursor = self.peer.reassert.into();
                        let Some(work) = self.registry.next_reassert(self.id, &mut cursor) else {
                            self.peer.reassert = u16::MAX;
                            return;
                        };
                        if self.registry.command(work).is_some_and(|c| c.encoded_len() <= room) {
                            self.peer.reassert = cursor as u16;
                        }
                        work
                    }
                };
                let Some(command) = self.registry.command(work) else { return };
                (command, Some(work))
            };
            if command.encoded_len() > room {
                return;
            }
            let Peer { staging, tx_buffer, .. } = &mut *self.peer;
            staging.append(tx_buffer, |w| command.emit(w));
            match work {
                Some(work) => self.registry.told(self.id, work),
                None => self.peer.pings = self.peer.pings.saturating_sub(1),
            }
            self.expect_reply(now);
        }
    }

    fn on_part(&mut self, now: Instant, part: ReplyPart<'_>) -> Result<(), Fault> {
        let identifying = matches!(self.peer.state, PeerState::Identifying);
        if part.first {
            self.peer.detail.clear();
        }
        staging::append(&mut self.peer.detail, part.data);
        if !part.last {
            return Ok(());
        }
        if self.peer.detail.starts_with(b"E_") {
            let (code, _) = ErrorCode::parse(&self.peer.detail);
            return self.fail(now, Fault::Refused(code));
        }
        if identifying {
            return self.on_identified(now);
        }
        let Some(outstanding) = self.peer.outstanding.checked_sub(1) else {
            return self.fail(now, Fault::UnexpectedReply);
        };
        if self.peer.detail.as_slice() != b"OK" {
            return self.fail(now, Fault::UnexpectedReply);
        }
        self.peer.outstanding = outstanding;
        if outstanding > 0 {
            self.peer.timers.set(Timer::Reply, now.after(self.config.reply_timeout));
            return Ok(());
        }
        self.peer.timers.stop(Timer::Reply);
        // Also what it never had to register: then PING was answered.
        self.peer.listed |= self.is_settled();
        self.peer.version = self.peer.version.wrapping_add(1);
        if matches!(self.peer.state, PeerState::Leaving) && self.is_settled() {
            self.peer.close(self.config, now, Closed::Local);
        }
        Ok(())
    }

    fn on_identified(&mut self, now: Instant) -> Result<(), Fault> {
        if !self.peer.staging.text_is_written() {
            // An answer to half a question.
            return self.fail(now, Fault::UnexpectedReply);
        }
        // Of what nsqlookupd says of itself only the port matters to anybody.
        if self.peer.detail.first() != Some(&b'{') {
            return self.fail(now, Fault::Decode(DecodeError::BadIdentifyReply));
        }
        let peer = &mut *self.peer;
        peer.connections = peer.connections.saturating_add(1);
        peer.news = Some(PeerEvent::Connected);
        peer.timers.stop(Timer::State);
        peer.repeat(Timer::Ping, now, self.config.ping);
        peer.repeat(Timer::Reassert, now, self.config.reassert);
        peer.set_state(PeerState::Connected);
        Ok(())
    }
}

impl Session for PeerSession<'_, '_> {
    fn link(&self) -> Link {
        match self.peer.state {
            PeerState::Unused | PeerState::Waiting => Link::Down,
            PeerState::Dialing
            | PeerState::Identifying
            | PeerState::Connected
            | PeerState::Leaving => Link::Up,
            PeerState::Closing(_) => Link::Close,
        }
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        let peer = &mut *self.peer;
        if !matches!(peer.state, PeerState::Waiting) || !peer.timers.expired(Timer::State, now) {
            return None;
        }
        peer.timers.set(Timer::State, now.after(self.config.connect_timeout));
        peer.set_state(PeerState::Dialing);
        peer.address.as_ref()
    }

    fn open(&mut self, now: Instant) {
        self.registry.forget(self.id);
        let peer = &mut *self.peer;
        peer.replies = ReplyDecoder::new(REPLY_MAX);
        peer.http.finder = HttpPortFinder::new();
        peer.outstanding = 0;
        peer.pings = 0;
        peer.reassert = u16::MAX;
        peer.staging = Staging::EMPTY;
        peer.opened_at = now;
        peer.listed = false;
        peer.timers.stop_all();
        peer.timers.set(Timer::State, now.after(self.config.connect_timeout));
        peer.set_state(PeerState::Identifying);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if let Some(find_port) = self.find_port
            && matches!(self.peer.state, PeerState::Identifying)
        {
            find_port(&mut self.peer.http, bytes);
        }
        let mut input = bytes;
        loop {
            match self.peer.state {
                PeerState::Identifying | PeerState::Connected | PeerState::Leaving => {}
                PeerState::Unused
                | PeerState::Waiting
                | PeerState::Dialing
                | PeerState::Closing(_) => return Ok(()),
            }
            match self.peer.replies.next(&mut input) {
                Ok(Some(part)) => self.on_part(now, part)?,
                Ok(None) => return Ok(()),
                Err(error) => return self.fail(now, error.into()),
            }
        }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        if !self.peer.staging.is_writing() {
            self.stage(now);
        }
        Transmit { head: self.peer.staging.pending(&self.peer.tx_buffer), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        // A transport that takes bytes proves nothing of nsqlookupd: only answers do.
        self.peer.staging.sent(n);
    }

    fn deadline(&self) -> Instant {
        self.peer.timers.next()
    }

    fn tick(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        let why = match peer.state {
            // The redial and the end of closing are the driver's.
            PeerState::Unused | PeerState::Waiting | PeerState::Closing(_) => return,
            PeerState::Dialing | PeerState::Identifying | PeerState::Leaving
                if peer.timers.expired(Timer::State, now) =>
            {
                match peer.state {
                    PeerState::Dialing => Closed::Dial(DialError::TimedOut),
                    PeerState::Leaving => Closed::Local,
                    _ => Closed::Fault(Fault::TimedOut(Awaited::Handshake)),
                }
            }
            _ if peer.timers.expired(Timer::Reply, now) => {
                Closed::Fault(Fault::TimedOut(Awaited::Reply))
            }
            _ => {
                self.keep_alive(now);
                return;
            }
        };
        peer.close(self.config, now, why);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let peer = &mut *self.peer;
        let (why, replaced) = match peer.state {
            // What the session itself had against the connection is the better reason.
            PeerState::Closing(why) => (why, matches!(why, Closed::Local)),
            PeerState::Leaving => (why, true),
            PeerState::Unused | PeerState::Waiting => return,
            PeerState::Dialing | PeerState::Identifying | PeerState::Connected => (why, false),
        };
        self.registry.forget(self.id);
        peer.timers.stop_all();
        if matches!(why, Closed::Dial(_)) {
            peer.http.port = 0;
        }
        if !replaced {
            peer.failures = peer.failures.saturating_add(1);
            peer.last = Some(why);
            let enough = if peer.listed { LISTED } else { LASTED };
            if peer.opened_at.after(enough) <= now {
                peer.attempts.prove_good();
            }
        }
        peer.news = Some(PeerEvent::Disconnected(why));
        if peer.address.is_some() {
            peer.wait(self.config, now);
        } else {
            peer.set_state(PeerState::Unused);
        }
    }
}
