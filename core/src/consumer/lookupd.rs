//! The session of one nsqlookupd: queries over HTTP, one request for each connection.
//!
//! The answer is scanned as it arrives, however long it is. Each producer is offered to the
//! discovery as soon as it is complete.

use super::discovery::Round;
use super::unusable::{self, BadProducer, Listed};
use super::{LookupdEvent, LookupdStatus, Shared, count, slower};
use crate::address::{Address, HOST_MAX};
use crate::session::dialed::PendingEvent;
use crate::session::lookupd_query::LookupdQuery;
use crate::session::{Closed, Fault, Link, LinkState, Session, Transmit};
use crate::time::{Backoff, Instant, Span};
use crate::wire::http::{BadAnswer, emit_get};
use crate::wire::json::Token;

/// The time from an answer to the next query in the first lap, while an nsqd fails and others wait.
const SOON: Span = Span::from_millis(500);

/// The maximum of that time is the usual interval, shifted right by this.
const SOON_SHIFT: u32 = 2;

/// The longest wait after the first failure; doubles with each further failure up to the usual
/// interval.
const RETRY: Span = Span::from_secs(1);

/// One nsqlookupd and the state of its answer.
#[derive(Debug)]
pub(super) struct Lookupd {
    query: LookupdQuery<HOST_MAX>,
    /// The earliest time of the next query, even if it should be soon.
    paced: Instant,
    producers: Producers,
    round: Round,
}

/// Finds producers in the answer's JSON.
#[derive(Debug)]
struct Producers {
    /// The meaning of the next value.
    field: Field,
    /// The depth of the list of producers while inside it, otherwise 0.
    depth: u8,
    /// True if the answer has a list of producers, or states that there are none.
    found: bool,
    /// The number of producers so far.
    count: u16,
    /// The number of unusable producers so far.
    unusable: u16,
    host: heapless::String<HOST_MAX, u8>,
    port: u16,
    listed: Listed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Other,
    Producers,
    Host,
    Port,
}

impl Producers {
    const NEW: Self = Self::with(Listed::NOTHING);

    /// All bytes are zero, for storage before use.
    const ZERO: Self = Self::with(Listed::ZERO);

    const fn with(listed: Listed) -> Self {
        Self {
            field: Field::Other,
            depth: 0,
            found: false,
            count: 0,
            unusable: 0,
            host: heapless::String::new(),
            port: 0,
            listed,
        }
    }

    /// Takes the next token, which is `depth` objects and lists deep. Returns whether it completes
    /// a producer.
    fn take(&mut self, token: Token<'_>, depth: usize) -> bool {
        let list = usize::from(self.depth);
        let inside = list > 0 && depth == list.saturating_add(1);
        let field = core::mem::replace(&mut self.field, Field::Other);
        match token {
            Token::Key(key) if key.truncated() => {}
            Token::Key(key) => match key.as_bytes() {
                // In nsqlookupds before 1.0 the list is one level deeper.
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
            // The nsqlookupd does not know the topic: no producers.
            Token::String(text) if text.as_bytes() == TOPIC_NOT_FOUND => self.found = true,
            Token::String(host) if field == Field::Host => {
                let whole = host.store_ascii(&mut self.host);
                self.listed.host(&host, whole);
            }
            _ if field == Field::Host => {
                self.host.clear();
                self.listed.host = Some(BadProducer::NoHost);
            }
            Token::Number(port) if field == Field::Port => self.port = self.listed.port(Some(port)),
            _ if field == Field::Port => self.port = self.listed.port(None),
            Token::ObjectEnd if inside => return true,
            _ => {}
        }
        false
    }

    /// Returns the address of the producer just read, if it is usable.
    fn address(&self) -> Option<Address> {
        match self.listed.host {
            None => Address::new(&self.host, self.port).ok(),
            Some(_) => None,
        }
    }

    /// Begins the next producer.
    fn next(&mut self) {
        self.host.clear();
        self.port = 0;
        self.listed = Listed::NOTHING;
    }
}

impl Lookupd {
    /// All bytes are zero, for storage before [`init`](Self::init).
    pub(super) const ZERO: Self = Self {
        query: LookupdQuery::ZERO,
        paced: Instant::ZERO,
        producers: Producers::ZERO,
        round: Round::NONE,
    };

    /// Makes the nsqlookupd usable. It is not queried before [`start`](Self::start).
    pub(super) fn init(&mut self) {
        self.query.init();
        self.paced = Instant::ZERO;
        self.producers = Producers::NEW;
        self.round = Round::NONE;
    }

    /// Begins queries, the first one at once. Call this after [`init`](Self::init).
    pub(super) fn start(&mut self) {
        self.query.start(Instant::ZERO);
    }

    pub(super) fn is_busy(&self) -> bool {
        self.query.is_busy()
    }

    pub(super) fn unserved(&self) -> u16 {
        self.round.unserved
    }

    pub(super) fn status(&self) -> LookupdStatus {
        LookupdStatus {
            state: self.query.state(),
            producers: self.producers.count,
            unusable: self.producers.unusable,
            unserved: self.round.unserved,
            last: self.query.dialed.why(),
        }
    }
}

/// The session that queries an nsqlookupd, with the state that its answers change.
///
/// Made for each call by [`Consumer::lookupd`](super::Consumer::lookupd); the state is in the
/// consumer.
#[derive(Debug)]
pub struct LookupdSession<'s, 'a> {
    pub(super) lookupd: &'s mut Lookupd,
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) address: &'a Address,
    /// The bit of the nsqlookupd.
    pub(super) source: u8,
}

impl LookupdSession<'_, '_> {
    /// Returns the result of the last query, if it was not polled yet.
    pub fn poll_event(&mut self) -> Option<LookupdEvent> {
        if self.lookupd.query.dialed.take_pending_event() == PendingEvent::None {
            return None;
        }
        Some(match self.lookupd.query.dialed.why() {
            None | Some(Closed::Local) => {
                LookupdEvent::Answered { producers: self.lookupd.producers.count }
            }
            Some(why) => LookupdEvent::Failed(why),
        })
    }

    /// Returns the time of the next step.
    fn step(&self) -> Instant {
        let step = self.lookupd.query.deadline(!self.shared.stopping);
        let waits = self.lookupd.query.state() == LinkState::Waiting;
        let soon = waits && self.shared.nsqds.soon & self.source != 0;
        if soon { step.min(self.lookupd.paced) } else { step }
    }

    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        let timeout = self.shared.config.close_timeout;
        self.lookupd.query.close(now, Closed::Fault(fault), timeout);
        Err(fault)
    }

    /// Fails because of a bad answer. A status other than 200 is reported instead of `why`, because
    /// any other HTTP server has its own pages for errors.
    fn bad(&mut self, now: Instant, why: BadAnswer) -> Result<(), Fault> {
        let why = match self.lookupd.query.http.status() {
            None | Some(200) => why,
            Some(status) => BadAnswer::Status(status),
        };
        self.fail(now, Fault::BadAnswer(why))
    }

    fn on_body(&mut self, now: Instant, body: &[u8]) -> Result<(), Fault> {
        let mut input = body;
        loop {
            let Lookupd { query: LookupdQuery { json, .. }, producers, .. } = &mut *self.lookupd;
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
                } else {
                    producers.unusable = producers.unusable.saturating_add(1);
                    let Producers { listed, host, .. } = &*producers;
                    if listed.enter(self.shared.unusable, self.source, host) {
                        self.shared.changed();
                    }
                }
                self.lookupd.producers.next();
            }
        }
    }

    /// Handles a complete answer.
    fn on_answer(&mut self, now: Instant) -> Result<(), Fault> {
        let lookupd = &mut *self.lookupd;
        if let Err(error) = lookupd.query.json.end() {
            return self.bad(now, BadAnswer::Json(error));
        }
        if !lookupd.producers.found {
            return self.bad(now, BadAnswer::NoProducers);
        }
        if lookupd.producers.count > 0 {
            let super::Config { rotate, grace, .. } = *self.shared.config;
            self.shared.nsqds.end(now, rotate, grace, self.source, &mut lookupd.round);
            self.shared.offer_and_leave();
        } else {
            self.shared.nsqds.lose(self.source);
            lookupd.round = Round::NONE;
        }
        self.shared.set_step_timeout();
        unusable::end(self.shared.unusable, self.source);
        count(&mut self.shared.tally.lookups);
        lookupd.query.close(now, Closed::Local, self.shared.config.close_timeout);
        self.shared.changed();
        Ok(())
    }
}

/// The answer of nsqlookupd, with status 404, for a topic that no nsqd has yet.
const TOPIC_NOT_FOUND: &[u8] = b"TOPIC_NOT_FOUND";

impl Session for LookupdSession<'_, '_> {
    fn link(&self) -> Link {
        self.lookupd.query.link()
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        let lookupd = &mut *self.lookupd;
        if lookupd.query.state() != LinkState::Waiting {
            return None;
        }
        if self.shared.stopping {
            lookupd.query.dialed.rest();
            self.shared.changed();
            return None;
        }
        if now < self.step() {
            return None;
        }
        let lookupd = &mut *self.lookupd;
        lookupd.query.dialed.dial_until(now.after(self.shared.config.connect_timeout));
        Some(self.address)
    }

    fn open(&mut self, now: Instant) {
        let lookupd = &mut *self.lookupd;
        lookupd.query.leave(!self.shared.stopping, now, self.shared.config.close_timeout);
        if lookupd.query.open(now, now.after(self.shared.config.lookup_timeout)) {
            lookupd.producers = Producers::NEW;
            self.shared.nsqds.begin(self.source, &mut lookupd.round);
            unusable::begin(self.shared.unusable, self.source);
        }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.shared.now = now;
        let mut input = bytes;
        while self.lookupd.query.state() == LinkState::Asking {
            let body = self.lookupd.query.http.next(&mut input);
            match (self.lookupd.query.http.status(), body) {
                (_, Err(error)) => return self.bad(now, BadAnswer::Http(error)),
                (Some(200 | 404), Ok(body)) => {
                    if let Some(body) = body {
                        self.on_body(now, body)?;
                    }
                    if self.lookupd.query.http.is_complete() {
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
        let (config, address) = (self.shared.config, self.address);
        self.lookupd.query.transmit(|request| {
            let topic = config.topic.as_str();
            emit_get(request, address, "/lookup?topic=", topic, config.user_agent)
        })
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.lookupd.query.sent(n);
    }

    fn deadline(&self) -> Instant {
        self.step()
    }

    fn tick(&mut self, now: Instant) {
        let timeout = self.shared.config.close_timeout;
        self.lookupd.query.leave(!self.shared.stopping, now, timeout);
        self.lookupd.query.tick(now, timeout);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        self.shared.now = now;
        if self.lookupd.query.state() == LinkState::Asking && why == Closed::Peer {
            let _ = match self.lookupd.query.http.finish() {
                Ok(()) => self.on_answer(now),
                Err(error) => self.bad(now, BadAnswer::Http(error)),
            };
        }
        let lookupd = &mut *self.lookupd;
        let Some(why) = lookupd.query.dialed.closed(why) else { return };
        let shared = &mut *self.shared;
        let longest = shared.config.lookup_interval.as_millis().max(1);
        let (delay, soon) = if why == Closed::Local {
            lookupd.query.dialed.attempts = Backoff::ONE;
            // Never longer than the interval, within which a new nsqd must be found.
            let shortest = longest.wrapping_sub(longest >> 2);
            let delay =
                shared.jitter.between(Span::from_millis(shortest), Span::from_millis(longest));
            let most = Span::from_millis(longest >> SOON_SHIFT).max(SOON);
            let soon = slower(SOON, shared.nsqds.level).min(most);
            (delay, shared.jitter.around(soon))
        } else {
            count(&mut shared.tally.lookups_failed);
            shared.nsqds.lose(self.source);
            let spans = [RETRY, shared.config.lookup_interval, Span::ZERO];
            let delay = lookupd.query.dialed.attempts.delay(spans, false, &mut shared.jitter);
            (delay, delay)
        };
        lookupd.paced = now.after(soon);
        lookupd.query.dialed.wait(now.after(delay));
        shared.changed();
    }
}
