//! What is told of connections and messages: one line for each thing that happens, once.

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

/// Tells what happens to the connection and to messages.
#[derive(Debug)]
pub(crate) struct Reporter<'a> {
    publisher: Publishing<'a>,
    nsqds: &'a [Address],
    numbers: &'a Numbers,
    /// What was told of each nsqd since it was of use.
    told: Vec<Vec<String>>,
    /// Why asking each nsqd again cannot help.
    hopeless: Vec<Option<String>>,
    /// Since when there is a connection.
    connected: Option<Instant>,
    was_connected: bool,
    /// How many messages were acknowledged when it was last looked at.
    acknowledged: u64,
}

/// A connection that lasted so long is news, as is its end.
const LASTED: Duration = Duration::from_secs(10);

impl<'a> Reporter<'a> {
    pub(crate) fn new(
        publisher: Publishing<'a>,
        nsqds: &'a [Address],
        numbers: &'a Numbers,
    ) -> Self {
        let told = vec![Vec::new(); nsqds.len()];
        let hopeless = vec![None; nsqds.len()];
        Self {
            publisher,
            nsqds,
            numbers,
            told,
            hopeless,
            connected: None,
            was_connected: false,
            acknowledged: 0,
        }
    }

    /// Whether there ever was a connection that may be of use.
    pub(crate) fn was_connected(&self) -> bool {
        self.was_connected
    }

    /// Tells it; fails with the reason if trying on cannot help.
    pub(crate) fn tell(&mut self, event: Event) -> Result<(), String> {
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
                self.hear_of(nsqd);
                let why = self.explain(Closed::Fault(why), was_up);
                let line = format!("nsqd {}: {why}", self.nsqds[nsqd]);
                self.give_up(nsqd, &line)?;
                if self.acknowledged == 0 {
                    self.was_connected = false;
                }
                // Each time, which is not often.
                warn!("{line}; it is left out, and asked again in 5 minutes");
            }
            Event::Disconnected { nsqd, why } => {
                let why = end(why);
                let since = self.connected.take();
                let was_up = since.is_some();
                if since.is_some_and(|since| since.elapsed() >= LASTED) {
                    self.told[nsqd].clear();
                }
                self.hear_of(nsqd);
                if was_up && is_about_messages(why) {
                    // nsqd hangs up on a bad message. What is rejected is told by itself.
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

    /// Whether that was not told of an nsqd since it was of use.
    fn is_new(&mut self, nsqd: usize, line: &str) -> bool {
        let new = !self.told[nsqd].iter().any(|told| told == line);
        if new {
            self.told[nsqd].push(line.to_owned());
        }
        new
    }

    /// An nsqd that took messages was of use.
    fn hear_of(&mut self, nsqd: usize) {
        let acknowledged = self.publisher.counters().acknowledged;
        if std::mem::replace(&mut self.acknowledged, acknowledged) != acknowledged {
            self.told[nsqd].clear();
        }
    }

    /// Asking this nsqd again cannot help; fails if that is so of all of them.
    fn give_up(&mut self, nsqd: usize, line: &str) -> Result<(), String> {
        self.hopeless[nsqd] = Some(line.to_owned());
        let all: Option<Vec<_>> = self.hopeless.iter().map(Option::as_deref).collect();
        all.map_or(Ok(()), |lines| Err(lines.join("; ")))
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
        Fault::TlsRequired => "requires TLS, which nanonsq does not speak: give an nsqd without \
                               --tls-required, or a tunnel that speaks TLS (stunnel, socat)"
            .to_owned(),
        Fault::AuthRefused => format!(
            "refused: {}: check the secret, and what nsqd's --auth-http-address answers",
            said_or(said, "AUTH failed")
        ),
        Fault::IdentifyRefused => format!(
            "refused: {}: check --heartbeat-interval against its --max-heartbeat-interval",
            said_or(said, "IDENTIFY failed")
        ),
        Fault::Refused(code) => format!("refused: {}", words(code, said)),
        Fault::Decode(
            DecodeError::BadLength { .. }
            | DecodeError::UnknownFrame { .. }
            | DecodeError::BadIdentifyReply,
        )
        | Fault::UnexpectedReply
            if !was_up =>
        {
            "its answer is not nsqd's: is this the TCP port of an nsqd?".to_owned()
        }
        _ => fault.to_string(),
    }
}

/// Whether the other side closed or reset the connection is chance, and no news.
fn end(why: Closed) -> Closed {
    match why {
        Closed::Transport(TransportError::Reset) => Closed::Peer,
        why => why,
    }
}

/// A server's words, if there are any.
fn said_or<'s>(said: &'s str, else_: &'s str) -> &'s str {
    if said.is_empty() { else_ } else { said }
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
    registration: &drive::registration::Handle<
        '_,
        NoopRawMutex,
        TokioSleep,
        PEERS,
        TOPICS,
        CHANNELS,
    >,
) -> Infallible {
    // The line that holds, since when, and those that were told since it was registered for long.
    let mut now: [String; PEERS] = [const { String::new() }; PEERS];
    let mut since = [Instant::now(); PEERS];
    let mut told: [Vec<String>; PEERS] = [const { Vec::new() }; PEERS];
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
            told[peer].clear();
        }
        since[peer] = Instant::now();
        now[peer].clone_from(&line);
        if told[peer].contains(&line) {
            continue;
        }
        if good {
            info!("{line}");
        } else {
            warn!("{line}; trying again");
        }
        told[peer].push(line);
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
    fault == Fault::Decode(DecodeError::WrongPort) || fault.is_permanent()
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
