//! The consumers' side of the model nsqd: channels, messages in flight, and the commands that
//! answer them.

use std::collections::BTreeMap;

use super::{Connection, Done, Nsqd, Phase, Refused, frame};
use crate::random::Random;
use crate::server::{ConnId, Kind, Out, Seen, is_name};

/// A topic and a channel.
pub(super) type Key = (String, String);

/// Messages by topic and channel.
#[derive(Debug, Default)]
pub(super) struct Channels {
    channels: BTreeMap<Key, Channel>,
    /// Messages of topics that never had a channel.
    backlog: BTreeMap<String, Vec<Message>>,
    last_number: u64,
    /// The most messages that were in flight at once.
    pub(super) most: usize,
}

#[derive(Debug, Default)]
struct Channel {
    /// Messages, each with the time from which it may be delivered.
    queue: Vec<(u64, Message)>,
    in_flight: Vec<InFlight>,
}

#[derive(Debug, Clone)]
struct Message {
    number: u64,
    body: Vec<u8>,
    attempts: u16,
}

#[derive(Debug)]
struct InFlight {
    message: Message,
    client: ConnId,
    delivered: u64,
    deadline: u64,
}

/// The longest that TOUCH can keep a message in flight, in microseconds: nsqd's 15 minutes.
const TIMEOUT_MAX: u64 = 900_000_000;
/// The longest delay of a `REQ`, in milliseconds.
const DELAY_MAX: u64 = 3_600_000;

impl Channels {
    /// Copies a message into every channel of the topic.
    pub(super) fn store(&mut self, topic: &str, body: &[u8], due: u64) {
        self.last_number += 1;
        let message = Message { number: self.last_number, body: body.to_vec(), attempts: 0 };
        let mut stored = false;
        for ((of, _), channel) in &mut self.channels {
            if of == topic {
                channel.queue.push((due, message.clone()));
                stored = true;
            }
        }
        if !stored {
            self.backlog.entry(topic.to_owned()).or_default().push(message);
        }
    }

    /// Creates a channel; the first channel of a topic gets all earlier messages.
    fn subscribe(&mut self, key: &Key) {
        let backlog = self.backlog.remove(&key.0).unwrap_or_default();
        let channel = self.channels.entry(key.clone()).or_default();
        channel.queue.extend(backlog.into_iter().map(|message| (0, message)));
    }

    /// Returns the next time at which a message may be delivered or its timeout passes.
    pub(super) fn deadline(&self, now: u64) -> u64 {
        let times = self.channels.values().flat_map(|channel| {
            let due = channel.queue.iter().map(|(due, _)| *due).filter(|due| *due > now);
            due.chain(channel.in_flight.iter().map(|in_flight| in_flight.deadline))
        });
        times.min().unwrap_or(u64::MAX)
    }

    /// Returns the bodies published to a topic that are not finished.
    pub(super) fn unfinished(&self, topic: &str) -> Vec<Vec<u8>> {
        let waiting = self.backlog.get(topic).into_iter().flatten().map(|it| it.body.clone());
        let channels = self.channels.iter().filter(|((of, _), _)| of == topic);
        let rest = channels.flat_map(|(_, channel)| {
            let queue = channel.queue.iter().map(|(_, message)| message.body.clone());
            queue.chain(channel.in_flight.iter().map(|in_flight| in_flight.message.body.clone()))
        });
        waiting.chain(rest).collect()
    }

    /// Empties a random channel, including messages in flight.
    pub(super) fn empty(&mut self, random: &mut Random) -> Option<(String, Vec<(ConnId, u64)>)> {
        let at = random.below(self.channels.len().max(1) as u64) as usize;
        let ((topic, name), channel) = self.channels.iter_mut().nth(at)?;
        channel.queue.clear();
        let gone = channel
            .in_flight
            .drain(..)
            .map(|in_flight| (in_flight.client, in_flight.message.number));
        Some((format!("the messages of {topic}/{name}"), gone.collect()))
    }

    /// Puts a connection's messages in flight at the front of their queues.
    pub(super) fn give_back(&mut self, conn: ConnId) {
        for channel in self.channels.values_mut() {
            let owned = channel.in_flight.extract_if(.., |in_flight| in_flight.client == conn);
            let owned: Vec<_> = owned.map(|in_flight| (0, in_flight.message)).collect();
            channel.queue.splice(..0, owned);
        }
    }

    /// Returns the number of messages in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.channels.values().map(|channel| channel.in_flight.len()).sum()
    }

    fn in_flight_of(&self, key: &Key, conn: ConnId) -> usize {
        let in_flight = self.channels.get(key).into_iter().flat_map(|channel| &channel.in_flight);
        in_flight.filter(|in_flight| in_flight.client == conn).count()
    }
}

/// Returns the id of a message.
fn id(number: u64) -> String {
    format!("{number:016x}")
}

impl Nsqd {
    /// SUB.
    pub(super) fn subscribe(&mut self, conn: ConnId, words: &[&[u8]], out: &mut Out) -> Outcome {
        let it = self.connections.get_mut(&conn).expect("an open connection");
        if it.phase != Phase::Init {
            return Err(Refused("E_INVALID cannot SUB in current state".into()));
        }
        if it.heartbeat.is_none() {
            return Err(Refused("E_INVALID cannot SUB with heartbeats disabled".into()));
        }
        let &[_, topic, channel, ..] = words else {
            return Err(Refused("E_INVALID SUB insufficient number of parameters".into()));
        };
        let [topic_text, channel_text] =
            [topic, channel].map(|name| String::from_utf8_lossy(name).into_owned());
        if !is_name(topic) {
            let text = format!("E_BAD_TOPIC SUB topic name {topic_text:?} is not valid");
            return Err(Refused(text));
        }
        if !is_name(channel) {
            let text = format!("E_BAD_CHANNEL SUB channel name {channel_text:?} is not valid");
            return Err(Refused(text));
        }
        self.may(conn, "SUB", &topic_text, &channel_text)?;
        if self.exiting {
            return Err(Refused("E_SUB_FAILED SUB failed exiting".into()));
        }
        let key = (topic_text, channel_text);
        self.channels.subscribe(&key);
        let it = self.connections.get_mut(&conn).expect("an open connection");
        it.phase = Phase::Subscribed;
        it.subscription = Some(key);
        out.say(conn, Kind::Ok, frame(0, b"OK"));
        Ok(Done::Used(0))
    }

    /// RDY.
    pub(super) fn ready(&mut self, conn: ConnId, words: &[&[u8]], out: &mut Out) -> Outcome {
        let most = self.settings.max_rdy_count;
        let it = self.connections.get_mut(&conn).expect("an open connection");
        match it.phase {
            Phase::Init => return Err(Refused("E_INVALID cannot RDY in current state".into())),
            Phase::Closing => return Ok(Done::Used(0)),
            Phase::Subscribed => {}
        }
        let digits = words.get(1).copied().unwrap_or(b"1");
        let Some(rdy) = number(digits) else {
            let text = String::from_utf8_lossy(digits).into_owned();
            return Err(Refused(format!("E_INVALID RDY could not parse count {text}")));
        };
        if rdy > most {
            return Err(Refused(format!("E_INVALID RDY count {rdy} out of range 0-{most}")));
        }
        it.rdy = rdy;
        out.seen.push((conn, Seen::Ready { rdy }));
        Ok(Done::Used(0))
    }

    /// FIN, REQ and TOUCH.
    pub(super) fn answer(
        &mut self,
        conn: ConnId,
        verb: &'static str,
        words: &[&[u8]],
        out: &mut Out,
    ) -> Outcome {
        let it = self.connections.get_mut(&conn).expect("an open connection");
        if it.phase == Phase::Init {
            return Err(Refused(format!("E_INVALID cannot {verb} in current state")));
        }
        if words.len() < if verb == "REQ" { 3 } else { 2 } {
            return Err(Refused(format!("E_INVALID {verb} insufficient number of params")));
        }
        let text = words[1];
        if text.len() != 16 {
            return Err(Refused("E_INVALID invalid message ID".into()));
        }
        let mut delay = 0;
        if verb == "REQ" {
            let Some(ms) = number(words[2]) else {
                let text = String::from_utf8_lossy(words[2]).into_owned();
                return Err(Refused(format!("E_INVALID REQ could not parse timeout {text}")));
            };
            delay = ms.min(DELAY_MAX) * 1000;
        }
        let key = it.subscription.clone().expect("it is subscribed");
        let channel = self.channels.channels.get_mut(&key).expect("a subscription has a channel");
        let is_named = |in_flight: &InFlight| id(in_flight.message.number).as_bytes() == text;
        let at = channel.in_flight.iter().position(is_named);
        let owned = at.filter(|at| channel.in_flight[*at].client == conn);
        let Some(at) = owned else {
            let known = it.taken_back.iter().any(|number| id(*number).as_bytes() == text);
            if !known {
                let what = "an explanation: it answered a message that it did not receive";
                out.seen.push((conn, Seen::Overdue(what)));
            }
            let why = if at.is_some() { "client does not own message" } else { "ID not in flight" };
            let id = String::from_utf8_lossy(text).into_owned();
            let words = format!("E_{verb}_FAILED {verb} {id} failed {why}");
            out.say(conn, Kind::Late, frame(1, words.as_bytes()));
            return Ok(Done::Used(0));
        };
        if verb == "TOUCH" {
            let in_flight = &mut channel.in_flight[at];
            in_flight.deadline = (out.now + it.msg_timeout).min(in_flight.delivered + TIMEOUT_MAX);
            return Ok(Done::Used(0));
        }
        let in_flight = channel.in_flight.remove(at);
        let body = in_flight.message.body.clone();
        let attempts = in_flight.message.attempts;
        if verb == "REQ" {
            channel.queue.push((out.now + delay, in_flight.message));
            out.seen.push((conn, Seen::Requeued { body }));
        } else {
            out.seen.push((conn, Seen::Finished { body, attempts }));
        }
        Ok(Done::Used(0))
    }

    /// CLS.
    pub(super) fn leave(&mut self, conn: ConnId, out: &mut Out) -> Outcome {
        let it = self.connections.get_mut(&conn).expect("an open connection");
        if it.phase != Phase::Subscribed {
            return Err(Refused("E_INVALID cannot CLS in current state".into()));
        }
        it.phase = Phase::Closing;
        out.say(conn, Kind::CloseWait, frame(0, b"CLOSE_WAIT"));
        Ok(Done::Used(0))
    }

    /// Requeues messages whose timeout passed, and delivers what may be delivered.
    pub(super) fn pump(&mut self, out: &mut Out) {
        let Self { channels, connections, .. } = self;
        for channel in channels.channels.values_mut() {
            let late = |in_flight: &mut InFlight| in_flight.deadline <= out.now;
            for in_flight in channel.in_flight.extract_if(.., late) {
                if let Some(it) = connections.get_mut(&in_flight.client) {
                    it.taken_back.insert(in_flight.message.number);
                    let body = in_flight.message.body.clone();
                    out.seen.push((in_flight.client, Seen::TakenBack { body }));
                }
                channel.queue.push((out.now, in_flight.message));
            }
        }
        for (&conn, it) in connections.iter_mut() {
            let Connection {
                subscription: Some(key), phase: Phase::Subscribed, dead: false, ..
            } = it
            else {
                continue;
            };
            let mut room = it.rdy.saturating_sub(channels.in_flight_of(key, conn) as u64);
            let channel = channels.channels.get_mut(key).expect("a subscription has a channel");
            while room > 0 {
                let due = channel.queue.iter().position(|(due, _)| *due <= out.now);
                let Some(at) = due else { break };
                let (_, mut message) = channel.queue.remove(at);
                message.attempts += 1;
                let head = [&[0; 8][..], &message.attempts.to_be_bytes()].concat();
                let data = [&head, id(message.number).as_bytes(), &message.body].concat();
                out.say(conn, Kind::Message, frame(2, &data));
                let deadline = out.now + it.msg_timeout;
                channel.in_flight.push(InFlight {
                    message,
                    client: conn,
                    delivered: out.now,
                    deadline,
                });
                room -= 1;
            }
        }
        channels.most = channels.most.max(channels.in_flight());
    }
}

type Outcome = Result<Done, Refused>;

/// Parses a number as nsqd does: digits, perhaps none.
fn number(digits: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(digits).ok()?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    if text.is_empty() { Some(0) } else { text.parse().ok() }
}
