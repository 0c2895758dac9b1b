//! Reads a node's V2 connections from outside: a model of each client, which knows its RDY and its
//! messages in flight.

use std::collections::{BTreeMap, BTreeSet};

use nanonsq_models::server::{ConnId, Seen, body};

use crate::watch::Event;

/// The number of offered bytes that are read: a message's frame up to its id.
pub(crate) const OFFERED: usize = 34;

/// The messages that a node accepted and delivered, and the FINs that it received, in one life.
#[derive(Default)]
pub(crate) struct Tap {
    /// The first half of all message ids.
    boot: u32,
    /// The default timeout of messages in flight, and the latest with TOUCH, in microseconds.
    msg_timeout: u64,
    max_msg_timeout: u64,
    clients: BTreeMap<ConnId, Client>,
    /// Accepted messages, by number.
    accepted: BTreeMap<u64, Vec<u8>>,
    delivered: BTreeSet<u64>,
    /// Messages whose FIN was processed; and those for which that is unknown.
    finished: BTreeSet<u64>,
    perhaps: BTreeSet<u64>,
}

#[derive(Default)]
struct Client {
    /// True if the client does not speak V2, or has not begun to.
    foreign: bool,
    /// True for clients other than consumers and for closing ones: nothing is known of them.
    blind: bool,
    greeted: bool,
    inbox: Vec<u8>,
    msg_timeout: u64,
    rdy: u64,
    /// RDYs that were read and perhaps not processed.
    rdys: Vec<u64>,
    /// FINs that were read and perhaps not processed: number, attempts, deadline.
    fins: Vec<(u64, u16, u64)>,
    in_flight: BTreeMap<u64, InFlight>,
    /// Messages whose timeout has passed.
    late: BTreeSet<u64>,
    /// Messages that the client answered though they are not in flight. By the time the node
    /// processes the answer, the message may be in flight again.
    early: BTreeSet<u64>,
    /// The written part of the current frame.
    frame: Vec<u8>,
    /// True once the current frame was checked, when it was first offered.
    checked: bool,
}

struct InFlight {
    attempts: u16,
    delivered: u64,
    deadline: u64,
    /// False if an answer read before the delivery and processed after it may have ended this.
    sure: bool,
}

impl Client {
    /// Removes and returns the messages whose timeout has passed.
    fn time_out(&mut self, now: u64) -> Vec<u64> {
        let late = self.in_flight.iter().filter(|(_, it)| it.deadline <= now);
        let late: Vec<_> = late.map(|(number, _)| *number).collect();
        self.in_flight.retain(|_, it| it.deadline > now);
        self.late.extend(&late);
        late
    }
}

impl Tap {
    pub(crate) fn new(boot: u32, msg_timeout: u64, max_msg_timeout: u64) -> Self {
        Self { boot, msg_timeout, max_msg_timeout, ..Self::default() }
    }

    /// Records a message that the node accepted.
    pub(crate) fn accept(&mut self, number: u64, body: &[u8]) {
        let before = self.accepted.insert(number, body.to_vec());
        assert!(before.is_none(), "two messages with the number {number}");
    }

    /// Returns the bodies of accepted messages that are not finished.
    pub(crate) fn unfinished(&self) -> Vec<Vec<u8>> {
        let is_left =
            |number: &&u64| !self.finished.contains(*number) && !self.perhaps.contains(*number);
        let left = self.accepted.keys().filter(is_left);
        left.map(|number| self.accepted[number].clone()).collect()
    }

    pub(crate) fn open(&mut self, conn: ConnId) {
        let client = Client { foreign: true, msg_timeout: self.msg_timeout, ..Client::default() };
        self.clients.insert(conn, client);
    }

    pub(crate) fn closed(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.remove(&conn) {
            // They were read; whether they were processed is unknown.
            self.perhaps.extend(client.fins.iter().map(|fin| fin.0));
        }
    }

    /// The node is about to close: it ignores what it read last and everything that follows.
    pub(crate) fn closes(&mut self, conn: ConnId) {
        if let Some(client) = self.clients.get_mut(&conn) {
            client.blind = true;
            self.perhaps.extend(client.fins.drain(..).map(|fin| fin.0));
        }
    }

    /// The node reads again: what it had read before is processed.
    pub(crate) fn read_again(&mut self, conn: ConnId, now: u64) -> Vec<(ConnId, Seen)> {
        let mut seen = Vec::new();
        let Some(client) = self.clients.get_mut(&conn) else { return seen };
        if let Some(rdy) = client.rdys.drain(..).next_back() {
            client.rdy = rdy;
        }
        client.early.clear();
        for (number, attempts, deadline) in client.fins.drain(..) {
            if now >= deadline {
                self.perhaps.insert(number);
                continue;
            }
            assert!(self.delivered.contains(&number), "{number} is finished, and never delivered");
            self.finished.insert(number);
            let body = &self.accepted[&number];
            if is_for_consumers(body) {
                seen.push((conn, Seen::Finished { body: body.clone(), attempts }));
            }
        }
        seen
    }

    /// The node read these bytes.
    pub(crate) fn read(&mut self, conn: ConnId, bytes: &[u8], now: u64) -> Vec<(ConnId, Seen)> {
        let mut seen = Vec::new();
        let Some(client) = self.clients.get_mut(&conn) else { return seen };
        for number in client.time_out(now) {
            let body = &self.accepted[&number];
            if is_for_consumers(body) {
                seen.push((conn, Seen::TakenBack { body: body.clone() }));
            }
        }
        client.inbox.extend_from_slice(bytes);
        if !client.greeted && client.inbox.len() >= 4 {
            client.greeted = true;
            client.foreign = !client.inbox.starts_with(b"  V2");
            client.blind = client.foreign;
            client.inbox.drain(..4);
        }
        while client.greeted
            && !client.blind
            && let Some(end) = client.inbox.iter().position(|&b| b == b'\n')
        {
            let text = String::from_utf8_lossy(&client.inbox[..end]).into_owned();
            let words: Vec<_> = text.split(' ').collect();
            let mut used = end + 1;
            let number = |at: usize| {
                let id = words.get(at).filter(|id| id.len() == 16)?;
                u64::from_str_radix(id.get(8..)?, 16).ok()
            };
            match words[0] {
                "IDENTIFY" => {
                    let Some((len, Some(text))) = body(&client.inbox[used..]) else { break };
                    let json: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
                    if let Some(ms) = json["msg_timeout"].as_u64().filter(|ms| *ms > 0) {
                        client.msg_timeout = ms * 1000;
                    }
                    used += 4 + len as usize;
                }
                "RDY" => {
                    let rdy = words.get(1).and_then(|rdy| rdy.parse().ok()).unwrap_or(0);
                    client.rdys.push(rdy);
                    seen.push((conn, Seen::Ready { rdy }));
                }
                "CLS" => client.rdys.push(0),
                "FIN" => match number(1) {
                    Some(number) if client.late.remove(&number) => {
                        // Perhaps the FIN came just before the timeout.
                        self.perhaps.insert(number);
                        client.early.insert(number);
                    }
                    Some(number) => match client.in_flight.remove(&number) {
                        Some(it) if it.sure => client.fins.push((number, it.attempts, it.deadline)),
                        Some(_) => drop(self.perhaps.insert(number)),
                        None => {}
                    },
                    None => {}
                },
                "REQ" => {
                    if let Some(number) = number(1)
                        && client.in_flight.remove(&number).is_none()
                    {
                        client.early.insert(number);
                    }
                }
                "TOUCH" => {
                    if let Some(it) = number(1).and_then(|number| client.in_flight.get_mut(&number))
                    {
                        let last = it.delivered.saturating_add(self.max_msg_timeout);
                        it.deadline = now.saturating_add(client.msg_timeout).min(last);
                    }
                }
                "SUB" | "NOP" => {}
                _ => client.blind = true,
            }
            client.inbox.drain(..used);
        }
        seen
    }

    /// The node offers these bytes, perhaps not for the first time; they begin a frame.
    pub(crate) fn offer(&mut self, conn: ConnId, bytes: &[u8], now: u64) -> Vec<(ConnId, Seen)> {
        let mut seen = Vec::new();
        // Check all clients: this message may be one that another did not answer in time.
        for (conn_of, client) in &mut self.clients {
            for number in client.time_out(now) {
                let body = &self.accepted[&number];
                if is_for_consumers(body) {
                    seen.push((*conn_of, Seen::TakenBack { body: body.clone() }));
                }
            }
        }
        let Some(client) = self.clients.get_mut(&conn) else { return seen };
        if client.checked || !client.frame.is_empty() || bytes.len() < 8 {
            return seen;
        }
        client.checked = true;
        if kind_of(bytes) == Event::Refusal {
            self.closes(conn);
        }
        if bytes[7] != 2 {
            return seen;
        }
        let Some(client) = self.clients.get_mut(&conn) else { return seen };
        let id = std::str::from_utf8(&bytes[18..34]).expect("an id is text");
        let (boot, number) = id.split_at(8);
        assert_eq!(boot, format!("{:08x}", self.boot), "an id of this life");
        let number = u64::from_str_radix(number, 16).expect("digits");
        let attempts = u16::from_be_bytes([bytes[16], bytes[17]]);
        assert!(self.accepted.contains_key(&number), "nobody published {id}");
        assert!(!self.finished.contains(&number), "{id} is delivered after its FIN");
        let rdy = client.rdys.iter().copied().fold(client.rdy, u64::max);
        let in_flight = client.in_flight.values().filter(|it| it.sure).count() as u64;
        assert!(in_flight < rdy, "one more than {in_flight} in flight, and RDY is {rdy}");
        let deadline = now.saturating_add(client.msg_timeout);
        client.late.remove(&number);
        let sure = !client.early.contains(&number);
        let in_flight = InFlight { attempts, delivered: now, deadline, sure };
        let before = client.in_flight.insert(number, in_flight);
        assert!(before.is_none_or(|it| !it.sure), "{id} is in flight here already");
        self.delivered.insert(number);
        seen
    }

    /// The node wrote these bytes; returns the frames and parts of frames, each with its length.
    pub(crate) fn wrote(&mut self, conn: ConnId, bytes: &[u8]) -> Vec<(Event, usize)> {
        let Some(client) = self.clients.get_mut(&conn) else {
            return vec![(Event::Part, bytes.len())];
        };
        let mut parts = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let have = client.frame.len();
            let size = match client.frame.first_chunk() {
                Some(size) => 4 + u32::from_be_bytes(*size) as usize,
                None => 4,
            };
            let n = rest.len().min(size - have);
            let (part, others) = rest.split_at(n);
            rest = others;
            client.frame.extend_from_slice(part);
            let whole = client
                .frame
                .first_chunk()
                .is_some_and(|size| client.frame.len() == 4 + u32::from_be_bytes(*size) as usize);
            if !whole {
                parts.push((Event::Part, n));
                continue;
            }
            let frame = std::mem::take(&mut client.frame);
            client.checked = false;
            // Bytes for a client that does not speak V2 have no kind.
            let kind = if client.foreign { Event::Part } else { kind_of(&frame) };
            parts.push((kind, n));
            if frame[7] == 2 {
                let number = std::str::from_utf8(&frame[26..34]).expect("text");
                let number = u64::from_str_radix(number, 16).expect("digits");
                assert_eq!(&frame[34..], &self.accepted[&number][..], "what was published");
            }
        }
        parts
    }
}

/// Returns whether the body was published for a consumer that checks it, not by the node's own
/// application.
fn is_for_consumers(body: &[u8]) -> bool {
    body.first().is_some_and(u8::is_ascii_digit)
}

fn kind_of(frame: &[u8]) -> Event {
    match (frame[7], &frame[8..]) {
        (2, _) => Event::Message,
        (1, data) => {
            let late = ["E_FIN_FAILED", "E_REQ_FAILED", "E_TOUCH_FAILED"];
            let late = late.iter().any(|code| data.starts_with(code.as_bytes()));
            if late { Event::Late } else { Event::Refusal }
        }
        (_, b"OK") => Event::Ok,
        (_, b"_heartbeat_") => Event::Heartbeat,
        (_, b"CLOSE_WAIT") => Event::CloseWait,
        _ => Event::Identified,
    }
}

#[cfg(test)]
mod tests {
    use super::{OFFERED, Tap};

    fn frame(number: u64, attempts: u16, body: &[u8]) -> Vec<u8> {
        let mut frame = (30 + body.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&[0, 0, 0, 2]);
        frame.extend_from_slice(&[0; 8]);
        frame.extend_from_slice(&attempts.to_be_bytes());
        frame.extend_from_slice(format!("{:08x}{number:08x}", 1).as_bytes());
        frame.extend_from_slice(body);
        frame
    }

    /// Delivers a message; the tap checks that RDY allows that.
    fn deliver(tap: &mut Tap, number: u64, attempts: u16, now: u64) {
        let frame = frame(number, attempts, b"0/0/a");
        tap.offer(7, &frame[..OFFERED], now);
        tap.wrote(7, &frame);
    }

    /// Returns a tap after four messages were published, RDY 2, and the first is in flight.
    fn with_one_late() -> Tap {
        let mut tap = Tap::new(1, 1000, 1_000_000);
        (1..=4).for_each(|number| tap.accept(number, b"0/0/a"));
        tap.open(7);
        tap.read(7, b"  V2RDY 2\n", 0);
        tap.read_again(7, 0);
        deliver(&mut tap, 1, 1, 0);
        tap
    }

    #[test]
    fn a_held_answer_may_be_for_a_message_delivered_meanwhile() {
        let mut tap = with_one_late();
        tap.read(7, b"REQ 00000001", 2000);
        tap.read(7, b"00000001 0\n", 2000);
        deliver(&mut tap, 1, 2, 2000);
        // Now the node processes the REQ, with nothing in flight.
        deliver(&mut tap, 2, 1, 2000);
        deliver(&mut tap, 3, 1, 2000);
    }

    #[test]
    fn a_message_that_a_held_answer_may_have_requeued_is_not_surely_finished() {
        let mut tap = with_one_late();
        tap.read(7, b"REQ 0000000100000001 0\n", 2000);
        deliver(&mut tap, 1, 2, 2000);
        // Now the node processes the REQ; the FIN is too late.
        tap.read_again(7, 2000);
        tap.read(7, b"FIN 0000000100000001\n", 2000);
        tap.read_again(7, 2000);
        deliver(&mut tap, 1, 3, 2000);
    }

    #[test]
    #[should_panic(expected = "is delivered after its FIN")]
    fn a_finished_message_is_not_delivered_again() {
        let mut tap = with_one_late();
        tap.read(7, b"FIN 0000000100000001\n", 500);
        tap.read_again(7, 500);
        deliver(&mut tap, 1, 2, 600);
    }

    #[test]
    #[should_panic(expected = "one more than 2 in flight, and RDY is 2")]
    fn a_processed_answer_is_for_the_earlier_delivery() {
        let mut tap = with_one_late();
        tap.read(7, b"REQ 0000000100000001 0\n", 2000);
        tap.read_again(7, 2000);
        deliver(&mut tap, 1, 2, 2000);
        deliver(&mut tap, 2, 1, 2000);
        deliver(&mut tap, 3, 1, 2000);
    }
}
