//! One nsqlookupd as a consumer sees it: asked over HTTP, one request a connection.
//!
//! The answer is scanned as it arrives, however long it is: each producer is offered to the
//! discovery as soon as it is whole.

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

/// While an nsqd fails and others wait: how long after an answer the next question comes, in the first
/// lap, and of the usual interval at most how much.
const SOON: Span = Span::from_millis(500);
const SOON_SHIFT: u32 = 2;

/// After a failure, ask again after up to this, then up to double, up to the usual interval.
const RETRY: Span = Span::from_secs(1);

/// One nsqlookupd, and what its answer has said so far.
#[derive(Debug)]
pub(super) struct Lookupd {
    query: LookupdQuery<HOST_MAX>,
    /// Not to be asked before, however much there is to find out.
    paced: Instant,
    producers: Producers,
    round: Round,
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
    /// How many of them nobody can use.
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

    /// All bytes are zero, for storage before its use.
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

    /// The producer just read, if it is one.
    fn address(&self) -> Option<Address> {
        match self.listed.host {
            None => Address::new(&self.host, self.port).ok(),
            Some(_) => None,
        }
    }

    /// The next one begins.
    fn next(&mut self) {
        self.host.clear();
        self.port = 0;
        self.listed = Listed::NOTHING;
    }
}

impl Lookupd {
    /// All bytes are zero, for storage: [`init`](Self::init) makes it usable.
    pub(super) const ZERO: Self = Self {
        query: LookupdQuery::ZERO,
        paced: Instant::ZERO,
        producers: Producers::ZERO,
        round: Round::NONE,
    };

    /// Not started; never asked.
    pub(super) fn init(&mut self) {
        self.query.init();
        self.paced = Instant::ZERO;
        self.producers = Producers::NEW;
        self.round = Round::NONE;
    }

    /// Asks from now on, at once: after [`init`](Self::init).
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

    /// When to do the next thing.
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

    /// With another status than 200 it is that: something else than nsqlookupd has pages of its own
    /// for what it does not find.
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

    /// The answer is whole.
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
        self.shared.be_patient();
        unusable::end(self.shared.unusable, self.source);
        count(&mut self.shared.tally.lookups);
        lookupd.query.close(now, Closed::Local, self.shared.config.close_timeout);
        self.shared.changed();
        Ok(())
    }
}

/// What nsqlookupd says, with the status 404, of a topic that is in no nsqd yet.
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
            // Never longer: that is how long a new nsqd may go unseen.
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
