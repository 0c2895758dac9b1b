//! Asks nsqlookupds which channels a new topic has elsewhere, so that none of these misses the
//! topic's first messages; like `GetTopic` of nsqd (nsqd/nsqd.go).
//!
//! A new topic is held: its messages wait until each nsqlookupd was asked, or
//! [`Config::channels_wait`](super::Config::channels_wait) is over. One connection asks all
//! nsqlookupds, one after the other, and divides the remaining time among them. Those that did not
//! answer last time are asked last, so that they cannot keep the others from being asked.

use super::engine::Shared;
use super::table::{NONE, Origin};
use super::{Event, Index, Nsqd};
use crate::address::Address;
use crate::name::{ChannelName, NAME_MAX};
use crate::session::lookupd_query::LookupdQuery;
use crate::session::{Closed, Fault, Link, LinkState, Session, Transmit};
use crate::time::{Instant, Span};
use crate::wire::http::{BadAnswer, emit_get};
use crate::wire::json::Token;

/// The most nsqlookupds that are asked.
const LOOKUPDS_MAX: usize = u8::BITS as usize;

// Checked at compile time on every target.
const _: () = assert!(size_of::<ChannelQuery>() <= 352);

/// The `User-Agent` of requests.
const USER_AGENT: &str = concat!("nanonsq/", env!("CARGO_PKG_VERSION"));

/// The state of an nsqlookupd in the registration of the nsqd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookupd<'l> {
    /// Not configured, or unreachable at the last attempt: it is not asked.
    Absent,
    /// The first connection to it is being made: topics wait for the outcome. nsqd does not wait,
    /// but reads its topics from disk when it starts.
    Coming,
    /// It is asked at the host of this address and at this HTTP port, not 0, from its response to
    /// IDENTIFY. nsqd also uses the host of that response, which may not be reachable from here.
    At(&'l Address, u16),
}

/// The state of the query for channels, lent to [`Nsqd::ask_lookupds`].
///
/// RAM: at most 352 bytes.
#[derive(Debug)]
pub struct ChannelQuery {
    connection: LookupdQuery<NAME_MAX>,
    list: List,
    /// The index of the nsqlookupd being asked.
    source: u8,
    /// The nsqlookupds whose last query failed, one bit each.
    failed: u8,
    pending_event: Option<(u8, Closed)>,
    address: Address,
}

/// Finds the list of channels in an answer's JSON.
#[derive(Debug)]
struct List {
    /// The next token is the value of the key `channels`.
    named: bool,
    /// The depth of the list's elements; 0 outside the list.
    depth: u8,
    /// A list of channels was found.
    found: bool,
}

impl List {
    const NEW: Self = Self { named: false, depth: 0, found: false };

    /// Handles the next token, `depth` objects and lists deep. Returns the name of a channel if the
    /// token is one. Skips invalid names.
    fn take(&mut self, token: Token<'_>, depth: usize) -> Option<ChannelName> {
        let named = core::mem::take(&mut self.named);
        match token {
            // nsqlookupds before 1.0 have the list one level deeper.
            Token::Key(key) if !self.found && depth <= 2 && !key.truncated() => {
                self.named = key.as_bytes() == b"channels";
            }
            Token::ArrayStart if named => {
                self.depth = depth.saturating_add(1) as u8;
                self.found = true;
            }
            // `null` is an empty list.
            Token::Null if named => self.found = true,
            Token::ArrayEnd if depth == usize::from(self.depth) => self.depth = 0,
            Token::String(name) if depth == usize::from(self.depth) && !name.truncated() => {
                return ChannelName::from_bytes(name.as_bytes()).ok();
            }
            _ => {}
        }
        None
    }
}

impl ChannelQuery {
    /// Returns a value for [`Nsqd::ask_lookupds`], which initializes it. All bytes are zero, so a
    /// static needs no image in flash.
    pub const fn new() -> Self {
        Self {
            connection: LookupdQuery::ZERO,
            list: List::NEW,
            source: 0,
            failed: 0,
            pending_event: Some((0, Closed::ZERO)),
            address: Address::NONE,
        }
    }

    pub(super) fn poll_event(&mut self) -> Option<Event> {
        let (lookupd, why) = self.pending_event.take()?;
        Some(Event::AskFailed { lookupd: lookupd.into(), why })
    }
}

impl Default for ChannelQuery {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> Nsqd<'a> {
    /// Holds new topics until nsqlookupds were [asked](Self::asking) for their channels. That
    /// session must be driven, or else a topic's first messages wait for ever. Call once, before
    /// any session is driven.
    pub fn ask_lookupds(&mut self, query: &'a mut ChannelQuery) {
        query.connection.start(Instant::NEVER);
        (query.failed, query.pending_event) = (0, None);
        self.shared.asks = self.shared.config.channels_wait > Span::ZERO;
        self.channel_query = Some(query);
    }

    /// Returns the session that asks nsqlookupds for channels; `None` without
    /// [`ask_lookupds`](Self::ask_lookupds). `lookupds` is the present state of the nsqlookupds, of
    /// which the first 8 are asked. The session may have work when the nsqd's
    /// [`version`](Self::version) or `lookupds` changed.
    pub fn asking<'s>(
        &'s mut self,
        lookupds: &'s [Lookupd<'s>],
    ) -> Option<ChannelQuerySession<'s, 'a>> {
        let query = self.channel_query.as_deref_mut()?;
        Some(ChannelQuerySession { query, shared: &mut self.shared, lookupds })
    }

    /// Returns whether any topic is held until nsqlookupds were asked for its channels.
    pub fn is_asking(&self) -> bool {
        self.shared.is_holding()
    }

    /// Returns the state of the connection that asks; [`LinkState::Idle`] without
    /// [`ask_lookupds`](Self::ask_lookupds).
    pub fn ask_state(&self) -> LinkState {
        self.channel_query.as_ref().map_or(LinkState::Idle, |query| query.connection.state())
    }
}

/// The session that asks nsqlookupds for the channels of new topics.
///
/// [`Nsqd::asking`] creates a new value for each call; the state is in the nsqd and its
/// [`ChannelQuery`].
#[derive(Debug)]
pub struct ChannelQuerySession<'s, 'a> {
    query: &'s mut ChannelQuery,
    shared: &'s mut Shared<'a>,
    lookupds: &'s [Lookupd<'s>],
}

impl ChannelQuerySession<'_, '_> {
    /// Returns the nsqlookupds that can be asked now or later, one bit each.
    fn present(&self) -> u8 {
        let bits = (0..u8::BITS).zip(self.lookupds);
        bits.fold(0, |present, (at, lookupd)| match lookupd {
            Lookupd::Absent | Lookupd::At(_, 0) => present,
            Lookupd::Coming | Lookupd::At(..) => present | 1u8.unbounded_shl(at),
        })
    }

    fn bit(&self) -> u8 {
        1u8.unbounded_shl(self.query.source.into())
    }

    /// Returns whether the query's answer is still needed.
    fn is_wanted(&self) -> bool {
        let topic = self.shared.topic(self.shared.asked);
        topic.is_some_and(|topic| topic.asking & self.bit() & self.present() != 0)
    }

    /// Releases held topics that have no nsqlookupd left to ask, or whose time is up.
    fn release_topics(&mut self, now: Instant) {
        if !self.shared.holds {
            return;
        }
        let present = self.present();
        for at in 0..self.shared.topics.len() as Index {
            self.shared.ask_only(now, at, present);
        }
        self.shared.holds = self.shared.is_holding();
    }

    /// Returns the next query: a topic and an nsqlookupd.
    fn next(&self) -> Option<(Index, u8)> {
        // First ask those whose last query succeeded, for all topics.
        for among in [!self.query.failed, u8::MAX] {
            for (at, topic) in (0..NONE).zip(&*self.shared.topics) {
                let left = topic.asking & among;
                let ready = (0..LOOKUPDS_MAX as u8).zip(self.lookupds).find(|(source, lookupd)| {
                    let bit = 1u8.unbounded_shl(u32::from(*source));
                    left & bit != 0 && matches!(lookupd, Lookupd::At(..))
                });
                if let Some((source, _)) = ready {
                    return Some((at, source));
                }
            }
        }
        None
    }

    /// Records that the query of one nsqlookupd for one topic ended.
    fn on_query_end(&mut self, now: Instant, failed: Option<Closed>) {
        let (at, bit) = (self.shared.asked, self.bit());
        self.shared.asked = NONE;
        match failed {
            None => {
                self.query.failed &= !bit;
                self.shared.counters.asked = self.shared.counters.asked.saturating_add(1);
            }
            Some(why) => {
                self.query.failed |= bit;
                self.query.pending_event = Some((self.query.source, why));
                let failures = &mut self.shared.counters.ask_failures;
                *failures = failures.saturating_add(1);
            }
        }
        self.shared.changed();
        self.shared.ask_only(now, at, !bit);
    }

    /// Closes the connection if the answer is no longer needed.
    fn leave(&mut self, now: Instant) {
        let wanted = self.is_wanted();
        if self.query.connection.leave(wanted, now, self.shared.config.close_timeout) {
            self.shared.asked = NONE;
        }
    }

    fn close(&mut self, now: Instant, why: Closed) {
        self.query.connection.close(now, why, self.shared.config.close_timeout);
    }

    fn fail(&mut self, now: Instant, why: BadAnswer) -> Result<(), Fault> {
        let fault = Fault::BadAnswer(why);
        self.close(now, Closed::Fault(fault));
        self.on_query_end(now, Some(Closed::Fault(fault)));
        Err(fault)
    }

    fn on_body(&mut self, now: Instant, body: &[u8]) -> Result<(), Fault> {
        let mut input = body;
        loop {
            let ChannelQuery { connection, list, .. } = &mut *self.query;
            let depth = connection.json.depth();
            let channel = match connection.json.next(&mut input) {
                Ok(Some(token)) => list.take(token, depth),
                Ok(None) => return Ok(()),
                Err(error) => return self.fail(now, BadAnswer::Json(error)),
            };
            let Some(channel) = channel.filter(|channel| !channel.is_ephemeral()) else { continue };
            let asked = self.shared.asked;
            if self.shared.channel_for(now, asked, &channel, Origin::Lookupd).is_err() {
                let left_out = &mut self.shared.counters.channels_left_out;
                *left_out = left_out.saturating_add(1);
            }
        }
    }

    /// Handles a complete answer.
    fn on_answer(&mut self, now: Instant) -> Result<(), Fault> {
        let ChannelQuery { connection, list, .. } = &mut *self.query;
        if let Err(error) = connection.json.end() {
            return self.fail(now, BadAnswer::Json(error));
        }
        if !list.found {
            return self.fail(now, BadAnswer::NoChannels);
        }
        self.close(now, Closed::Local);
        self.on_query_end(now, None);
        Ok(())
    }
}

impl Session for ChannelQuerySession<'_, '_> {
    fn link(&self) -> Link {
        self.query.connection.link()
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        if self.query.connection.state() != LinkState::Waiting || !self.shared.holds {
            return None;
        }
        self.release_topics(now);
        let (at, source) = self.next()?;
        let topic = self.shared.topic(at)?;
        let Some(Lookupd::At(address, port)) = self.lookupds.get(usize::from(source)) else {
            return None;
        };
        let others = topic.asking.count_ones().saturating_sub(1);
        let until = if others == 0 {
            topic.ask_until
        } else {
            // Halve the time until each gets a part, which needs no division.
            let halvings = u32::BITS.saturating_sub(others.leading_zeros());
            let left = topic.ask_until.since(now).as_millis();
            now.after(Span::from_millis(left.unbounded_shr(halvings)))
        };
        self.query.address.clone_from(address);
        self.query.address.set_port(*port);
        self.query.source = source;
        self.shared.asked = at;
        self.query.connection.dialed.dial_until(until);
        Some(&self.query.address)
    }

    fn open(&mut self, now: Instant) {
        self.leave(now);
        let until = self.query.connection.dialed.deadline;
        if self.query.connection.open(now, until) {
            self.query.list = List::NEW;
        }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        while self.query.connection.state() == LinkState::Asking && self.is_wanted() {
            let body = match self.query.connection.http.next(&mut input) {
                Ok(body) => body,
                Err(error) => return self.fail(now, BadAnswer::Http(error)),
            };
            match self.query.connection.http.status() {
                None => {}
                Some(200) => {
                    self.on_body(now, body.unwrap_or_default())?;
                    if self.query.connection.http.is_complete() {
                        return self.on_answer(now);
                    }
                }
                // Including 404: for an unknown topic an nsqlookupd returns 200 and an empty list.
                Some(status) => return self.fail(now, BadAnswer::Status(status)),
            }
            if body.is_none() {
                break;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.leave(now);
        let (shared, query) = (&*self.shared, &mut *self.query);
        let topic = shared.topic(shared.asked).map_or("", |topic| topic.name.as_str());
        let address = &query.address;
        query
            .connection
            .transmit(|request| emit_get(request, address, "/channels?topic=", topic, USER_AGENT))
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.query.connection.sent(n);
    }

    fn deadline(&self) -> Instant {
        let own = self.query.connection.deadline(self.is_wanted());
        if !self.shared.holds {
            return own;
        }
        let held = self.shared.topics.iter().filter(|topic| topic.asking != 0);
        held.fold(own, |first, topic| first.min(topic.ask_until))
    }

    fn tick(&mut self, now: Instant) {
        self.leave(now);
        if self.query.connection.tick(now, self.shared.config.close_timeout) {
            self.on_query_end(now, self.query.connection.dialed.why());
        }
        self.release_topics(now);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        if self.query.connection.state() == LinkState::Asking
            && why == Closed::Peer
            && self.is_wanted()
        {
            // The end of the connection may be the end of the answer.
            let _ = match self.query.connection.http.finish() {
                Ok(()) => self.on_answer(now),
                Err(error) => self.fail(now, BadAnswer::Http(error)),
            };
        }
        let Some(why) = self.query.connection.dialed.closed(why) else { return };
        if self.is_wanted() {
            self.on_query_end(now, Some(why));
        }
        self.shared.asked = NONE;
        self.query.connection.dialed.wait(Instant::NEVER);
        self.release_topics(now);
        self.shared.changed();
    }
}

#[cfg(test)]
mod tests;
