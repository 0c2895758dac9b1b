//! One nsqlookupd as a consumer sees it: asked over HTTP, one request a connection.
//!
//! The answer is scanned as it arrives, however long it is: each producer is offered to the
//! directory as soon as it is whole.

use core::convert::Infallible;

use super::directory::Round;
use super::{LookupdEvent, LookupdState, LookupdStatus, Shared, count};
use crate::address::{Address, HOST_MAX};
use crate::macros::trace_state;
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, Transmit};
use crate::time::{Backoff, Instant, Span};
use crate::wire::Window;
use crate::wire::http::{BadAnswer, ResponseDecoder, emit_get};
use crate::wire::json::{Scanner, Token};

const STAGING: usize = 64;

/// After a failure, ask again after up to this, then up to double, up to the usual interval.
const RETRY: Span = Span::from_secs(1);

/// One nsqlookupd, and what its answer has said so far.
#[derive(Debug)]
pub(super) struct Lookupd {
    state: LookupdState,
    why: Option<Closed>,
    news: bool,
    staged: u8,
    written: u8,
    /// How much of the request was staged, and its length once known.
    request_at: u16,
    request_len: u16,
    /// Waiting: ask. Dialing, Asking: give up. Closing: abort.
    step: Instant,
    backoff: Backoff,
    http: ResponseDecoder,
    json: Scanner<HOST_MAX>,
    producers: Producers,
    round: Round,
    staging: [u8; STAGING],
}

/// Finds producers in the answer's JSON.
#[derive(Debug)]
struct Producers {
    /// What the value that comes next is.
    field: Field,
    /// How deep the list is that is being read; 0 before it.
    depth: u8,
    /// Whether there was one.
    found: bool,
    /// How many were in it.
    count: u16,
    host: heapless::String<HOST_MAX, u8>,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Other,
    Producers,
    Host,
    Port,
}

impl Producers {
    const NEW: Self = Self {
        field: Field::Other,
        depth: 0,
        found: false,
        count: 0,
        host: heapless::String::new(),
        port: 0,
    };

    /// Takes the next token, `depth` objects and lists deep; says whether a producer is whole.
    fn take(&mut self, token: Token<'_>, depth: usize) -> bool {
        let list = usize::from(self.depth);
        let inside = list > 0 && depth == list.saturating_add(1);
        let field = core::mem::replace(&mut self.field, Field::Other);
        match token {
            Token::Key(key) if key.truncated() => {}
            Token::Key(key) => match key.as_bytes() {
                // nsqlookupds before 1.0 have it one deeper.
                b"producers" if list == 0 && depth <= 2 => self.field = Field::Producers,
                b"broadcast_address" if inside => self.field = Field::Host,
                b"tcp_port" if inside => self.field = Field::Port,
                _ => {}
            },
            Token::ArrayStart if field == Field::Producers => {
                self.depth = depth.saturating_add(1) as u8;
                self.found = true;
            }
            Token::ArrayEnd if list > 0 && depth == list => self.depth = 0,
            Token::Null if field == Field::Producers => self.found = true,
            // It has none.
            Token::String(text) if text.as_bytes() == TOPIC_NOT_FOUND => self.found = true,
            Token::String(host) if field == Field::Host && !host.store_ascii(&mut self.host) => {
                self.host.clear();
            }
            Token::Number(port) if field == Field::Port && port.exact => {
                self.port = u16::try_from(port.integer).unwrap_or(0);
            }
            Token::ObjectEnd if inside => return true,
            _ => {}
        }
        false
    }

    /// The producer just read, if it is one.
    fn address(&mut self) -> Option<Address> {
        let address = Address::new(&self.host, self.port).ok();
        self.host.clear();
        self.port = 0;
        address
    }
}

impl Lookupd {
    /// For storage.
    pub(super) const NEW: Self = Self {
        state: LookupdState::Unused,
        why: None,
        news: false,
        staged: 0,
        written: 0,
        request_at: 0,
        request_len: 0,
        step: Instant::NEVER,
        backoff: Backoff::new(RETRY, RETRY),
        http: ResponseDecoder::new(),
        json: Scanner::new(),
        producers: Producers::NEW,
        round: Round::NONE,
        staging: [0; STAGING],
    };

    /// Asks from now on, at once.
    pub(super) fn start(&mut self, interval: Span) {
        *self = Self::NEW;
        self.backoff = Backoff::new(RETRY, interval);
        self.backoff.skip_immediate();
        self.step = Instant::ZERO;
        self.state = LookupdState::Waiting;
    }

    pub(super) fn state(&self) -> LookupdState {
        self.state
    }

    pub(super) fn unserved(&self) -> u16 {
        self.round.unserved
    }

    pub(super) fn status(&self) -> LookupdStatus {
        LookupdStatus {
            state: self.state,
            producers: self.producers.count,
            unserved: self.round.unserved,
            last: self.why,
        }
    }

    fn set_state(&mut self, state: LookupdState) {
        trace_state!("lookupd", self.state, state);
        self.state = state;
    }

    fn close(&mut self, now: Instant, why: Closed, timeout: Span) {
        self.why = Some(why);
        self.staged = self.written;
        self.step = now.after(timeout);
        self.set_state(LookupdState::Closing);
    }

    /// The request is longer than the staging area: it is made again for each piece.
    #[inline(never)]
    fn stage(&mut self, shared: &Shared<'_>, host: &Address) {
        let mut window = Window::new(&mut self.staging, self.request_at.into());
        let config = shared.config;
        let topic = config.topic.as_str();
        let done: Result<(), Infallible> =
            emit_get(&mut window, host, "/lookup?topic=", topic, config.user_agent);
        let Ok(()) = done;
        let staged = window.written();
        self.request_len = window.total() as u16;
        self.staged = staged as u8;
        self.written = 0;
        self.request_at = self.request_at.saturating_add(staged as u16);
    }
}

/// An nsqlookupd with what its answers change: the session that asks it.
///
/// Made for each call by [`Consumer::lookupd`](super::Consumer::lookupd); the state is in the
/// consumer.
#[derive(Debug)]
pub struct LookupdSession<'s, 'a> {
    pub(super) lookupd: &'s mut Lookupd,
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) address: &'a Address,
    /// Its bit.
    pub(super) source: u8,
}

impl LookupdSession<'_, '_> {
    /// What came of asking last, if nobody polled it yet.
    pub fn poll_event(&mut self) -> Option<LookupdEvent> {
        if !core::mem::take(&mut self.lookupd.news) {
            return None;
        }
        Some(match self.lookupd.why {
            None | Some(Closed::Local) => {
                LookupdEvent::Answered { producers: self.lookupd.producers.count }
            }
            Some(why) => LookupdEvent::Failed(why),
        })
    }

    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        let timeout = self.shared.config.close_timeout;
        self.lookupd.close(now, Closed::Fault(fault), timeout);
        Err(fault)
    }

    /// With another status than 200 it is that: something else than nsqlookupd has pages of its own
    /// for what it does not find.
    fn bad(&mut self, now: Instant, why: BadAnswer) -> Result<(), Fault> {
        let why = match self.lookupd.http.status() {
            None | Some(200) => why,
            Some(status) => BadAnswer::Status(status),
        };
        self.fail(now, Fault::BadAnswer(why))
    }

    fn on_body(&mut self, now: Instant, body: &[u8]) -> Result<(), Fault> {
        let mut input = body;
        loop {
            let Lookupd { json, producers, .. } = &mut *self.lookupd;
            let depth = json.depth();
            let whole = match json.next(&mut input) {
                Ok(Some(token)) => producers.take(token, depth),
                Ok(None) => return Ok(()),
                Err(error) => return self.bad(now, BadAnswer::Json(error)),
            };
            if whole {
                producers.count = producers.count.saturating_add(1);
                if let Some(address) = producers.address() {
                    self.shared.offer(self.source, &mut self.lookupd.round, &address);
                }
            }
        }
    }

    /// The answer is whole.
    fn on_answer(&mut self, now: Instant) -> Result<(), Fault> {
        let lookupd = &mut *self.lookupd;
        if let Err(error) = lookupd.json.end() {
            return self.bad(now, BadAnswer::Json(error));
        }
        if !lookupd.producers.found {
            return self.bad(now, BadAnswer::NoProducers);
        }
        if lookupd.producers.count > 0 {
            let super::Config { rotate, grace, .. } = *self.shared.config;
            self.shared.directory.end(now, rotate, grace, self.source, &mut lookupd.round);
            self.shared.offer_and_leave();
        } else {
            lookupd.round = Round::NONE;
        }
        count(&mut self.shared.tally.lookups);
        lookupd.backoff.skip_immediate();
        lookupd.close(now, Closed::Local, self.shared.config.close_timeout);
        self.shared.changed();
        Ok(())
    }
}

/// What nsqlookupd says, with the status 404, of a topic that is in no nsqd yet.
const TOPIC_NOT_FOUND: &[u8] = b"TOPIC_NOT_FOUND";

impl Session for LookupdSession<'_, '_> {
    fn link(&self) -> Link {
        match self.lookupd.state {
            LookupdState::Unused | LookupdState::Waiting => Link::Down,
            LookupdState::Dialing | LookupdState::Asking if self.shared.stopping => Link::Close,
            LookupdState::Dialing | LookupdState::Asking => Link::Up,
            LookupdState::Closing => Link::Close,
        }
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        let lookupd = &mut *self.lookupd;
        if lookupd.state != LookupdState::Waiting {
            return None;
        }
        if self.shared.stopping {
            lookupd.step = Instant::NEVER;
            lookupd.set_state(LookupdState::Unused);
            self.shared.changed();
            return None;
        }
        if now < lookupd.step {
            return None;
        }
        lookupd.step = now.after(self.shared.config.connect_timeout);
        lookupd.set_state(LookupdState::Dialing);
        Some(self.address)
    }

    fn open(&mut self, now: Instant) {
        let lookupd = &mut *self.lookupd;
        lookupd.http = ResponseDecoder::new();
        lookupd.json = Scanner::new();
        lookupd.producers = Producers::NEW;
        lookupd.staged = 0;
        lookupd.written = 0;
        lookupd.request_at = 0;
        lookupd.request_len = 0;
        lookupd.step = now.after(self.shared.config.lookup_timeout);
        self.shared.directory.begin(self.source, &mut lookupd.round);
        lookupd.set_state(LookupdState::Asking);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.shared.now = now;
        let mut input = bytes;
        while self.lookupd.state == LookupdState::Asking {
            let body = self.lookupd.http.next(&mut input);
            match (self.lookupd.http.status(), body) {
                (_, Err(error)) => return self.bad(now, BadAnswer::Http(error)),
                (Some(200 | 404), Ok(body)) => {
                    if let Some(body) = body {
                        self.on_body(now, body)?;
                    }
                    if self.lookupd.http.is_complete() {
                        return self.on_answer(now);
                    }
                    if body.is_none() {
                        return Ok(());
                    }
                }
                (Some(status), Ok(_)) => return self.bad(now, BadAnswer::Status(status)),
                (None, Ok(Some(_))) => {}
                (None, Ok(None)) => return Ok(()),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, _: Instant) -> Transmit<'_> {
        let lookupd = &mut *self.lookupd;
        if lookupd.written >= lookupd.staged
            && lookupd.state == LookupdState::Asking
            && (lookupd.request_len == 0 || lookupd.request_at < lookupd.request_len)
        {
            lookupd.stage(self.shared, self.address);
        }
        let pending = lookupd.written.into()..lookupd.staged.into();
        Transmit { head: lookupd.staging.get(pending).unwrap_or_default(), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        let lookupd = &mut *self.lookupd;
        let n = n.min(lookupd.staged.saturating_sub(lookupd.written).into());
        lookupd.written = lookupd.written.saturating_add(n as u8);
    }

    fn deadline(&self) -> Instant {
        self.lookupd.step
    }

    fn tick(&mut self, now: Instant) {
        if now < self.lookupd.step {
            return;
        }
        let timeout = self.shared.config.close_timeout;
        match self.lookupd.state {
            LookupdState::Dialing => {
                self.lookupd.close(now, Closed::Dial(DialError::TimedOut), timeout);
            }
            LookupdState::Asking => {
                let why = Closed::Fault(Fault::TimedOut(Awaited::Reply));
                self.lookupd.close(now, why, timeout);
            }
            LookupdState::Unused | LookupdState::Waiting | LookupdState::Closing => {}
        }
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        self.shared.now = now;
        if self.lookupd.state == LookupdState::Asking && why == Closed::Peer {
            // That may be the end of the answer.
            let _ = match self.lookupd.http.finish() {
                Ok(()) => self.on_answer(now),
                Err(error) => self.bad(now, BadAnswer::Http(error)),
            };
        }
        let lookupd = &mut *self.lookupd;
        let why = match lookupd.state {
            LookupdState::Unused | LookupdState::Waiting => return,
            LookupdState::Closing => lookupd.why.unwrap_or(why),
            LookupdState::Dialing | LookupdState::Asking => why,
        };
        lookupd.why = Some(why);
        lookupd.news = true;
        lookupd.staged = 0;
        lookupd.written = 0;
        let shared = &mut *self.shared;
        let delay = if why == Closed::Local {
            lookupd.backoff.reset();
            lookupd.backoff.skip_immediate();
            // Never longer: that is how long a new nsqd may go unseen.
            let longest = shared.config.lookup_interval.as_millis().max(1);
            let shortest = longest.wrapping_sub(longest >> 2);
            shared.jitter.between(Span::from_millis(shortest), Span::from_millis(longest))
        } else {
            count(&mut shared.tally.lookups_failed);
            lookupd.backoff.next_delay(&mut shared.jitter)
        };
        lookupd.step = now.after(delay);
        lookupd.set_state(LookupdState::Waiting);
        shared.changed();
    }
}
