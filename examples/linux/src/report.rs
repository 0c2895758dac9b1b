//! Logs events of connections and messages, without repetitions.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::{Duration, Instant};

use log::{error, info, warn};
use nanonsq_core::address::Address;
use nanonsq_core::drive;
use nanonsq_core::nsqd::ChannelStatus;
use nanonsq_core::publisher::{Event, Outcome, Ticket};
use nanonsq_core::session::{
    BadAnswer, Closed, DecodeError, ErrorCode, Fault, LinkState, TransportError,
};
use nanonsq_std::{NoopRawMutex, TokioSleep};

pub(crate) type Publishing<'a> = drive::publisher::Handle<'a, NoopRawMutex>;

/// Logs the events of a publisher.
#[derive(Debug)]
pub(crate) struct Reporter<'a> {
    publisher: Publishing<'a>,
    nsqds: &'a [Address],
    numbers: &'a Numbers,
    /// The lines logged about each nsqd since it last acknowledged messages.
    reported: Vec<Vec<String>>,
    /// For each nsqd, the reason if a redial cannot help.
    hopeless: Vec<Option<String>>,
    /// The time at which the connection was established, while there is one.
    connected: Option<Instant>,
    was_connected: bool,
    /// Acknowledged messages at the last event.
    acknowledged: u64,
}

/// After a connection of this length, lines about the nsqd are logged again.
const LASTED: Duration = Duration::from_secs(10);

impl<'a> Reporter<'a> {
    pub(crate) fn new(
        publisher: Publishing<'a>,
        nsqds: &'a [Address],
        numbers: &'a Numbers,
    ) -> Self {
        let reported = vec![Vec::new(); nsqds.len()];
        let hopeless = vec![None; nsqds.len()];
        Self {
            publisher,
            nsqds,
            numbers,
            reported,
            hopeless,
            connected: None,
            was_connected: false,
            acknowledged: 0,
        }
    }

    /// Returns whether there was a connection to an nsqd that is not left out.
    pub(crate) fn was_connected(&self) -> bool {
        self.was_connected
    }

    /// Logs an event. Fails, with the reasons, if a redial of any nsqd cannot help.
    pub(crate) fn report(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Connected { nsqd, .. } => {
                self.connected = Some(Instant::now());
                self.was_connected = true;
                self.hopeless[nsqd] = None;
                let line = format!("connected to nsqd {}", self.nsqds[nsqd]);
                if self.is_new(nsqd, &line) {
                    info!("{line}");
                }
            }
            Event::LeftOut { nsqd, why } => {
                let was_up = self.connected.take().is_some();
                self.clear_if_used(nsqd);
                let why = self.explain(Closed::Fault(why), was_up);
                let line = format!("nsqd {}: {why}", self.nsqds[nsqd]);
                self.give_up(nsqd, &line)?;
                if self.acknowledged == 0 {
                    self.was_connected = false;
                }
                // Logged each time, since it is rare.
                warn!("{line}; it is left out, and retried in 5 minutes");
            }
            Event::Disconnected { nsqd, why } => {
                let why = end(why);
                let since = self.connected.take();
                let was_up = since.is_some();
                if since.is_some_and(|since| since.elapsed() >= LASTED) {
                    self.reported[nsqd].clear();
                }
                self.clear_if_used(nsqd);
                if was_up && is_about_messages(why) {
                    // nsqd closes after a bad message; the rejection has an event of its own.
                    return Ok(());
                }
                let line = format!("nsqd {}: {}", self.nsqds[nsqd], self.explain(why, was_up));
                if is_hopeless(why) && !self.was_connected {
                    self.give_up(nsqd, &line)?;
                }
                if self.is_new(nsqd, &line) {
                    warn!("{line}; trying again");
                }
            }
            Event::Failed { first, count, outcome } => {
                let messages = self.numbers.range(first, count);
                match outcome {
                    Outcome::Rejected(code) => {
                        error!("{messages}: rejected by nsqd: {}", self.describe(code))
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

    /// Records a line and returns whether it was not logged since the nsqd was last used.
    fn is_new(&mut self, nsqd: usize, line: &str) -> bool {
        let new = !self.reported[nsqd].iter().any(|reported| reported == line);
        if new {
            self.reported[nsqd].push(line.to_owned());
        }
        new
    }

    /// Forgets the lines about an nsqd that has acknowledged messages since the last event.
    fn clear_if_used(&mut self, nsqd: usize) {
        let acknowledged = self.publisher.counters().acknowledged;
        if std::mem::replace(&mut self.acknowledged, acknowledged) != acknowledged {
            self.reported[nsqd].clear();
        }
    }

    /// Records that a redial of this nsqd cannot help; fails if that holds for all of them.
    fn give_up(&mut self, nsqd: usize, line: &str) -> Result<(), String> {
        self.hopeless[nsqd] = Some(line.to_owned());
        let all: Option<Vec<_>> = self.hopeless.iter().map(Option::as_deref).collect();
        all.map_or(Ok(()), |lines| Err(lines.join("; ")))
    }

    fn explain(&self, why: Closed, was_up: bool) -> String {
        explain(why, was_up, &self.detail())
    }

    fn describe(&self, code: ErrorCode) -> String {
        describe(code, &self.detail())
    }

    fn detail(&self) -> String {
        self.publisher.look(|p| p.detail().to_owned()).unwrap_or_default()
    }
}

/// Describes why a connection ended, with nsqd's error text `detail`.
pub(crate) fn explain(why: Closed, was_up: bool, detail: &str) -> String {
    let Closed::Fault(fault) = why else { return why.to_string() };
    match fault {
        Fault::AuthRequired => "requires AUTH: give --auth-secret".to_owned(),
        Fault::TlsRequired => "requires TLS, which nanonsq does not support: give an nsqd without \
                               --tls-required, or a TLS tunnel (stunnel, socat)"
            .to_owned(),
        Fault::AuthRefused => format!(
            "refused: {}: check the secret, and what nsqd's --auth-http-address answers",
            detail_or(detail, "AUTH failed")
        ),
        Fault::IdentifyRefused => format!(
            "refused: {}: check --heartbeat-interval against its --max-heartbeat-interval",
            detail_or(detail, "IDENTIFY failed")
        ),
        Fault::Refused(code) => format!("refused: {}", describe(code, detail)),
        Fault::Decode(
            DecodeError::BadLength { .. }
            | DecodeError::UnknownFrame { .. }
            | DecodeError::BadIdentifyReply,
        )
        | Fault::UnexpectedReply
            if !was_up =>
        {
            "its answer is not that of an nsqd: is this the TCP port of an nsqd?".to_owned()
        }
        _ => fault.to_string(),
    }
}

/// Makes a reset a close: which of the two happens is chance, and must not be logged as new.
fn end(why: Closed) -> Closed {
    match why {
        Closed::Transport(TransportError::Reset) => Closed::Peer,
        why => why,
    }
}

/// Returns a server's error text, or `else_` if it is empty.
fn detail_or<'s>(detail: &'s str, else_: &'s str) -> &'s str {
    if detail.is_empty() { else_ } else { detail }
}

/// Describes why a lookup failed.
pub(crate) fn explain_answer(why: Closed) -> String {
    match why {
        Closed::Fault(Fault::BadAnswer(
            BadAnswer::Status(404) | BadAnswer::Json(_) | BadAnswer::NoProducers,
        )) => format!("{why}: is this the HTTP port of an nsqlookupd (4161)?"),
        _ => why.to_string(),
    }
}

/// Returns nsqd's text for an error, if `detail` is still of that error.
fn describe(code: ErrorCode, detail: &str) -> String {
    let is_same = ErrorCode::parse(detail.as_bytes()).0 == code;
    if is_same { detail.to_owned() } else { code.to_string() }
}

/// Logs the state of registration with each nsqlookupd. Never returns.
pub(crate) async fn watch_lookups<
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
>(
    registration: &drive::registration::Handle<
        '_,
        NoopRawMutex,
        TokioSleep,
        PEERS,
        TOPICS,
        CHANNELS,
    >,
) -> Infallible {
    // The current line of each peer, its start, and the lines logged since a long registration.
    let mut now: [String; PEERS] = [const { String::new() }; PEERS];
    let mut since = [Instant::now(); PEERS];
    let mut reported: [Vec<String>; PEERS] = [const { Vec::new() }; PEERS];
    loop {
        let (peer, line, good) = registration
            .wait(|lookup| {
                (0..PEERS).find_map(|peer| {
                    let status = lookup.status(peer)?;
                    let address = status.address?;
                    let (line, good) = match (status.state, status.last) {
                        (LinkState::Ready, _) if status.settled => {
                            (format!("registered with nsqlookupd {address}"), true)
                        }
                        (LinkState::Waiting, Some(Closed::Fault(Fault::Refused(_)))) => {
                            (format!("nsqlookupd {address}: refused: {}", status.detail), false)
                        }
                        (LinkState::Waiting, Some(why)) => {
                            (format!("nsqlookupd {address}: {}", end(why)), false)
                        }
                        _ => return None,
                    };
                    (now[peer] != line).then_some((peer, line, good))
                })
            })
            .await;
        if now[peer].starts_with("registered") && since[peer].elapsed() >= LASTED {
            reported[peer].clear();
        }
        since[peer] = Instant::now();
        now[peer].clone_from(&line);
        if reported[peer].contains(&line) {
            continue;
        }
        if good {
            info!("{line}");
        } else {
            warn!("{line}; trying again");
        }
        reported[peer].push(line);
    }
}

/// Time between checks for full tables.
const LOOK: Duration = Duration::from_secs(1);

/// Logs how many callers a server has rejected at its TCP and HTTP ports: at most one line a second
/// for each port. Never returns.
pub(crate) async fn watch_turned_away(
    places: [(&str, usize); 2],
    count: impl Fn() -> [u32; 2],
) -> Infallible {
    let mut last = [0; 2];
    loop {
        tokio::time::sleep(LOOK).await;
        let now = count();
        for ((what, places), (last, now)) in places.iter().zip(last.iter_mut().zip(now)) {
            if now != *last {
                let callers = now.wrapping_sub(*last);
                warn!("{callers} callers turned away: all places are taken: {places} {what}");
                *last = now;
            }
        }
    }
}

/// Logs channels in which messages wait because `room` messages are in flight. Never returns.
pub(crate) async fn watch_in_flight(
    room: usize,
    look: impl Fn(&mut dyn FnMut(&ChannelStatus<'_>)),
) -> Infallible {
    let mut full = BTreeSet::new();
    loop {
        tokio::time::sleep(LOOK).await;
        let mut now = BTreeSet::new();
        look(&mut |status| {
            // The last slots are reserved for clients with nothing in flight.
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

/// Maps messages to lines or records of the input, some of which were skipped.
///
/// Keeps entries only for messages that are not final: no more than the outbox holds.
#[derive(Debug)]
pub(crate) struct Numbers {
    /// `line` or `record`.
    pub(crate) what: &'static str,
    /// The number of a message, and of lines skipped before it and the next messages.
    skipped: RefCell<VecDeque<(u64, u64)>>,
}

impl Numbers {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, skipped: RefCell::new(VecDeque::from([(0, 0)])) }
    }

    /// Records that a line was skipped before message `next`.
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

    /// Forgets messages before this one, which are final.
    fn forget(&self, below: Ticket) {
        let mut skipped = self.skipped.borrow_mut();
        while skipped.get(1).is_some_and(|&(message, _)| message <= below.number()) {
            skipped.pop_front();
        }
    }

    /// Returns the number of a message's line, from 1.
    fn of(&self, message: u64) -> u64 {
        let skipped = self.skipped.borrow();
        let before = skipped.iter().rev().find(|&&(from, _)| from <= message);
        message + 1 + before.map_or(0, |&(_, count)| count)
    }

    /// Returns the lines of messages as text: `line 3`, `lines 3 to 5`.
    fn range(&self, first: Ticket, count: u32) -> String {
        let what = self.what;
        let from = self.of(first.number());
        match count {
            0 | 1 => format!("{what} {from}"),
            _ => format!("{what}s {from} to {}", self.of(first.number() + u64::from(count) - 1)),
        }
    }
}

/// Returns whether nsqd closed the connection because of a message.
fn is_about_messages(why: Closed) -> bool {
    let Closed::Fault(Fault::Refused(code)) = why else { return false };
    matches!(
        code,
        ErrorCode::BadMessage | ErrorCode::BadBody | ErrorCode::BadTopic | ErrorCode::Unauthorized
    )
}

/// Returns whether a redial cannot help.
pub(crate) fn is_hopeless(why: Closed) -> bool {
    let Closed::Fault(fault) = why else { return false };
    fault == Fault::Decode(DecodeError::WrongPort) || fault.is_permanent()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_named_by_their_line_of_the_input() {
        // Lines 1, 4 and 5 are empty.
        let numbers = Numbers::new("line");
        numbers.skip(0);
        numbers.skip(2);
        numbers.skip(2);
        assert_eq!([0, 1, 2, 3].map(|message| numbers.of(message)), [2, 3, 6, 7]);
    }
}
