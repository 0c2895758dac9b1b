//! What is told of connections and messages: one line for each thing that happens, once.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use log::{error, info, warn};
use nanonsq_core::address::Address;
use nanonsq_core::drive;
use nanonsq_core::lookup::PeerState;
use nanonsq_core::node::ChannelStatus;
use nanonsq_core::publish::{Event, Outcome, Ticket};
use nanonsq_core::session::{Closed, Fault};
use nanonsq_core::wire::http::BadAnswer;
use nanonsq_core::wire::v2::ErrorCode;
use nanonsq_std::{NoopRawMutex, TokioSleep};

pub(crate) type Publishing<'a> = drive::publisher::Handle<'a, NoopRawMutex>;

/// Tells what happens to the connection and to messages.
#[derive(Debug)]
pub(crate) struct Reporter<'a> {
    publisher: Publishing<'a>,
    nsqds: &'a [Address],
    numbers: &'a Numbers,
    /// What was told of each nsqd since its last connection.
    told: Vec<Vec<String>>,
    connected: bool,
    was_connected: bool,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(
        publisher: Publishing<'a>,
        nsqds: &'a [Address],
        numbers: &'a Numbers,
    ) -> Self {
        let told = vec![Vec::new(); nsqds.len()];
        Self { publisher, nsqds, numbers, told, connected: false, was_connected: false }
    }

    /// Whether there ever was a connection.
    pub(crate) fn was_connected(&self) -> bool {
        self.was_connected
    }

    /// Tells it; fails with the reason if trying on cannot help.
    pub(crate) fn tell(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Connected { nsqd, .. } => {
                self.connected = true;
                self.was_connected = true;
                let line = format!("connected to nsqd {}", self.nsqds[nsqd]);
                if self.told[nsqd].last() != Some(&line) {
                    info!("{line}");
                    self.told[nsqd] = vec![line];
                }
            }
            Event::Disconnected { nsqd, why } => {
                let was_up = std::mem::take(&mut self.connected);
                if was_up && is_about_messages(why) {
                    // nsqd hangs up on a bad message. What is rejected is told by itself.
                    return Ok(());
                }
                let line = format!("nsqd {}: {}", self.nsqds[nsqd], self.explain(why, was_up));
                if !self.was_connected && self.nsqds.len() == 1 && is_hopeless(why) {
                    return Err(line);
                }
                if !self.told[nsqd].contains(&line) {
                    warn!("{line}; trying again");
                    self.told[nsqd].push(line);
                }
            }
            Event::Failed { first, count, outcome } => {
                let messages = self.numbers.range(first, count);
                match outcome {
                    Outcome::Rejected(code) => {
                        error!("{messages}: rejected by nsqd: {}", self.words(code))
                    }
                    Outcome::Acknowledged
                    | Outcome::Expired
                    | Outcome::Dropped
                    | Outcome::Forgotten => error!("{messages}: {outcome}"),
                }
            }
            Event::Resolved { below } => self.numbers.forget(below),
            _ => {}
        }
        Ok(())
    }

    fn explain(&self, why: Closed, was_up: bool) -> String {
        explain(why, was_up, &self.said())
    }

    fn words(&self, code: ErrorCode) -> String {
        words(code, &self.said())
    }

    fn said(&self) -> String {
        self.publisher.look(|p| p.detail().to_owned()).unwrap_or_default()
    }
}

/// Why a connection ended, with what nsqd said.
pub(crate) fn explain(why: Closed, was_up: bool, said: &str) -> String {
    let Closed::Fault(fault) = why else { return why.to_string() };
    match fault {
        Fault::AuthRequired => "requires AUTH: give --auth-secret".to_owned(),
        Fault::Refused(code) => format!("refused: {}", words(code, said)),
        Fault::BadLength { .. }
        | Fault::UnknownFrame { .. }
        | Fault::UnexpectedReply
        | Fault::BadIdentifyReply
            if !was_up =>
        {
            "its answer is not nsqd's: is this the TCP port of an nsqd?".to_owned()
        }
        _ => fault.to_string(),
    }
}

/// Why asking an nsqlookupd failed.
pub(crate) fn explain_answer(why: Closed) -> String {
    match why {
        Closed::Fault(Fault::BadAnswer(
            BadAnswer::Status(404) | BadAnswer::Json(_) | BadAnswer::NoProducers,
        )) => format!("{why}: is this the HTTP port of an nsqlookupd (4161)?"),
        _ => why.to_string(),
    }
}

/// nsqd's own words for an error, if it still has them.
fn words(code: ErrorCode, said: &str) -> String {
    let is_it = ErrorCode::parse(said.as_bytes()).0 == code;
    if is_it { said.to_owned() } else { code.to_string() }
}

/// Tells what happens to a registration. Never returns.
pub(crate) async fn watch_lookups<
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
>(
    registration: &drive::lookup::Handle<'_, NoopRawMutex, TokioSleep, PEERS, TOPICS, CHANNELS>,
) -> Infallible {
    let mut told: [String; PEERS] = [const { String::new() }; PEERS];
    loop {
        let (peer, line, good) = registration
            .wait(|lookup| {
                (0..PEERS).find_map(|peer| {
                    let status = lookup.status(peer)?;
                    let address = status.address?;
                    let (line, good) = match (status.state, status.last) {
                        (PeerState::Connected, _) if status.settled => {
                            (format!("registered with nsqlookupd {address}"), true)
                        }
                        (PeerState::Waiting, Some(Closed::Fault(Fault::Refused(_)))) => {
                            (format!("nsqlookupd {address}: refused: {}", status.detail), false)
                        }
                        (PeerState::Waiting, Some(why)) => {
                            (format!("nsqlookupd {address}: {why}"), false)
                        }
                        _ => return None,
                    };
                    (told[peer] != line).then_some((peer, line, good))
                })
            })
            .await;
        if good {
            info!("{line}");
        } else {
            warn!("{line}; trying again");
        }
        told[peer] = line;
    }
}

/// How often full tables are looked for; what is full is told once each time.
const LOOK: Duration = Duration::from_secs(1);

/// Tells how many callers a server has turned away, at its TCP port and over HTTP, those of a second in
/// one line each, and which places were taken. Never returns.
pub(crate) async fn watch_turned_away(
    places: [(&str, usize); 2],
    count: impl Fn() -> [u32; 2],
) -> Infallible {
    let mut told = [0; 2];
    loop {
        tokio::time::sleep(LOOK).await;
        let now = count();
        for ((what, places), (told, now)) in places.iter().zip(told.iter_mut().zip(now)) {
            if now != *told {
                let callers = now.wrapping_sub(*told);
                warn!("{callers} callers turned away: all places are taken: {places} {what}");
                *told = now;
            }
        }
    }
}

/// Tells which channels have as many messages in flight as there is room for, while others wait.
/// Never returns.
pub(crate) async fn watch_in_flight(
    room: usize,
    look: impl Fn(&mut dyn FnMut(&ChannelStatus<'_>)),
) -> Infallible {
    let mut full = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let mut now = BTreeSet::new();
        look(&mut |status| {
            // The last places are kept for clients that have nothing.
            let taken = status.in_flight as usize + usize::from(status.clients);
            if status.depth > 0 && taken > room {
                now.insert((status.topic.to_string(), status.name.to_string()));
            }
        });
        for (topic, channel) in now.difference(&full) {
            warn!(
                "channel {channel} of topic {topic}: all {room} messages that can be in flight are; \
                 the others wait until clients finish some"
            );
        }
        full = now;
    }
}

/// Which line, or record, of the input each message was. Skipped ones made no message.
///
/// Remembers only what messages that are not final need: no more than the outbox holds.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// `line` or `record`.
    pub(crate) what: &'static str,
    /// From a message on, how many were skipped before it.
    skipped: RefCell<VecDeque<(u64, u64)>>,
}

impl Numbers {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, skipped: RefCell::new(VecDeque::from([(0, 0)])) }
    }

    /// One was skipped before message `next`.
    pub(crate) fn skip(&self, next: u64) {
        let mut skipped = self.skipped.borrow_mut();
        match skipped.back_mut() {
            Some((message, count)) if *message == next => *count += 1,
            last => {
                let before = last.map_or(0, |(_, count)| *count);
                skipped.push_back((next, before + 1));
            }
        }
    }

    /// Messages before this one will not be asked for any more.
    fn forget(&self, below: Ticket) {
        let mut skipped = self.skipped.borrow_mut();
        while skipped.get(1).is_some_and(|&(message, _)| message <= below.number()) {
            skipped.pop_front();
        }
    }

    /// The number of a message, from 1.
    fn of(&self, message: u64) -> u64 {
        let skipped = self.skipped.borrow();
        let before = skipped.iter().rev().find(|&&(from, _)| from <= message);
        message + 1 + before.map_or(0, |&(_, count)| count)
    }

    /// `line 3`, `lines 3 to 5`.
    fn range(&self, first: Ticket, count: u32) -> String {
        let what = self.what;
        let from = self.of(first.number());
        match count {
            0 | 1 => format!("{what} {from}"),
            _ => format!("{what}s {from} to {}", self.of(first.number() + u64::from(count) - 1)),
        }
    }
}

/// Whether nsqd hung up because of a message and not for a reason of its own.
fn is_about_messages(why: Closed) -> bool {
    let Closed::Fault(Fault::Refused(code)) = why else { return false };
    matches!(
        code,
        ErrorCode::BadMessage | ErrorCode::BadBody | ErrorCode::BadTopic | ErrorCode::Unauthorized
    )
}

/// Whether trying the same again cannot help.
pub(crate) fn is_hopeless(why: Closed) -> bool {
    let Closed::Fault(fault) = why else { return false };
    matches!(
        fault,
        Fault::WrongPort
            | Fault::AuthRequired
            | Fault::Refused(ErrorCode::AuthFailed | ErrorCode::Unauthorized | ErrorCode::BadBody)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_named_by_their_place_in_the_input() {
        // Lines 1, 4 and 5 are empty.
        let numbers = Numbers::new("line");
        numbers.skip(0);
        numbers.skip(2);
        numbers.skip(2);
        assert_eq!([0, 1, 2, 3].map(|message| numbers.of(message)), [2, 3, 6, 7]);
    }
}
