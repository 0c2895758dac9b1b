//! What goes over a node's V2 connections, read beside it: a model client for each, which knows its
//! RDY and what it has in flight.

use std::collections::{BTreeMap, BTreeSet};

use nanonsq_models::server::{ConnId, Seen, body};

use crate::watch::Event;

/// So many bytes of what is offered are looked at: a message's frame up to its id.
pub(crate) const OFFERED: usize = 34;

/// What a node accepted, delivered and was told to be finished, in one life.
#[derive(Default)]
pub(crate) struct Tap {
    /// The first half of all ids.
    boot: u32,
    /// When what is in flight is taken back if the client does not say, and at the latest.
    msg_timeout: u64,
    max_msg_timeout: u64,
    lines: BTreeMap<ConnId, Line>,
    /// By its number; `None` while it is not known yet which body that is.
    accepted: BTreeMap<u64, Vec<u8>>,
    delivered: BTreeSet<u64>,
    /// Those whose FIN was processed, and those of which that cannot be known.
    finished: BTreeSet<u64>,
    perhaps: BTreeSet<u64>,
}

#[derive(Default)]
struct Line {
    /// It does not speak V2, or has not begun to.
    foreign: bool,
    /// It is no consumer, or is passed over: nothing is known of it.
    blind: bool,
    greeted: bool,
    inbox: Vec<u8>,
    msg_timeout: u64,
    rdy: u64,
    /// Each RDY that was read and perhaps not processed.
    rdys: Vec<u64>,
    /// The same of FINs, each with when it would be too late.
    fins: Vec<(u64, u16, u64)>,
    flying: BTreeMap<u64, Flying>,
    /// What was in flight for too long.
    late: BTreeSet<u64>,
    /// What was answered and is not in flight, and perhaps the node has not come so far: by then it
    /// may be in flight again.
    early: BTreeSet<u64>,
    /// What of the frame under way was written.
    frame: Vec<u8>,
    /// It was looked at when it was offered first.
    known: bool,
}

struct Flying {
    attempts: u16,
    delivered: u64,
    deadline: u64,
    /// Nothing that was read before it was delivered, and processed after, may have answered it.
    sure: bool,
}

impl Line {
    /// What is in flight for too long.
    fn take_back(&mut self, now: u64) -> Vec<u64> {
        let late = self.flying.iter().filter(|(_, it)| it.deadline <= now);
        let late: Vec<_> = late.map(|(number, _)| *number).collect();
        self.flying.retain(|_, it| it.deadline > now);
        self.late.extend(&late);
        late
    }
}

impl Tap {
    pub(crate) fn new(boot: u32, msg_timeout: u64, max_msg_timeout: u64) -> Self {
        Self { boot, msg_timeout, max_msg_timeout, ..Self::default() }
    }

    /// The node took a message.
    pub(crate) fn accept(&mut self, number: u64, body: &[u8]) {
        let before = self.accepted.insert(number, body.to_vec());
        assert!(before.is_none(), "two messages with the number {number}");
    }

    /// The bodies of what the node took and that is not finished.
    pub(crate) fn unfinished(&self) -> Vec<Vec<u8>> {
        let is_left =
            |number: &&u64| !self.finished.contains(*number) && !self.perhaps.contains(*number);
        let left = self.accepted.keys().filter(is_left);
        left.map(|number| self.accepted[number].clone()).collect()
    }

    pub(crate) fn open(&mut self, conn: ConnId) {
        let line = Line { foreign: true, msg_timeout: self.msg_timeout, ..Line::default() };
        self.lines.insert(conn, line);
    }

    pub(crate) fn closed(&mut self, conn: ConnId) {
        if let Some(line) = self.lines.remove(&conn) {
            // They were read; whether they were processed nobody knows.
            self.perhaps.extend(line.fins.iter().map(|fin| fin.0));
        }
    }

    /// The node is about to close it: what it read just now it passes over, and what comes.
    pub(crate) fn closes(&mut self, conn: ConnId) {
        if let Some(line) = self.lines.get_mut(&conn) {
            line.blind = true;
            self.perhaps.extend(line.fins.drain(..).map(|fin| fin.0));
        }
    }

    /// The node reads on: what it had read is processed.
    pub(crate) fn read_again(&mut self, conn: ConnId, now: u64) -> Vec<(ConnId, Seen)> {
        let mut seen = Vec::new();
        let Some(line) = self.lines.get_mut(&conn) else { return seen };
        if let Some(rdy) = line.rdys.drain(..).next_back() {
            line.rdy = rdy;
        }
        line.early.clear();
        for (number, attempts, deadline) in line.fins.drain(..) {
            if now >= deadline {
                self.perhaps.insert(number);
                continue;
            }
            assert!(self.delivered.contains(&number), "{number} is finished, and never delivered");
            self.finished.insert(number);
            let body = &self.accepted[&number];
            if is_fed(body) {
                seen.push((conn, Seen::Finished { body: body.clone(), attempts }));
            }
        }
        seen
    }

    /// The node read this.
    pub(crate) fn read(&mut self, conn: ConnId, bytes: &[u8], now: u64) -> Vec<(ConnId, Seen)> {
        let mut seen = Vec::new();
        let Some(line) = self.lines.get_mut(&conn) else { return seen };
        for number in line.take_back(now) {
            let body = &self.accepted[&number];
            if is_fed(body) {
                seen.push((conn, Seen::TakenBack { body: body.clone() }));
            }
        }
        line.inbox.extend_from_slice(bytes);
        if !line.greeted && line.inbox.len() >= 4 {
            line.greeted = true;
            line.foreign = !line.inbox.starts_with(b"  V2");
            line.blind = line.foreign;
            line.inbox.drain(..4);
        }
        while line.greeted
            && !line.blind
            && let Some(end) = line.inbox.iter().position(|&b| b == b'\n')
        {
            let text = String::from_utf8_lossy(&line.inbox[..end]).into_owned();
            let words: Vec<_> = text.split(' ').collect();
            let mut used = end + 1;
            let number = |at: usize| {
                let id = words.get(at).filter(|id| id.len() == 16)?;
                u64::from_str_radix(id.get(8..)?, 16).ok()
            };
            match words[0] {
                "IDENTIFY" => {
                    let Some((len, Some(text))) = body(&line.inbox[used..]) else { break };
                    let json: serde_json::Value = serde_json::from_slice(text).unwrap_or_default();
                    if let Some(ms) = json["msg_timeout"].as_u64().filter(|ms| *ms > 0) {
                        line.msg_timeout = ms * 1000;
                    }
                    used += 4 + len as usize;
                }
                "RDY" => {
                    let rdy = words.get(1).and_then(|rdy| rdy.parse().ok()).unwrap_or(0);
                    line.rdys.push(rdy);
                    seen.push((conn, Seen::Ready { rdy }));
                }
                "CLS" => line.rdys.push(0),
                "FIN" => match number(1) {
                    Some(number) if line.late.remove(&number) => {
                        // Just before it was taken back, perhaps.
                        self.perhaps.insert(number);
                        line.early.insert(number);
                    }
                    Some(number) => match line.flying.remove(&number) {
                        Some(it) if it.sure => line.fins.push((number, it.attempts, it.deadline)),
                        Some(_) => drop(self.perhaps.insert(number)),
                        None => {}
                    },
                    None => {}
                },
                "REQ" => {
                    if let Some(number) = number(1)
                        && line.flying.remove(&number).is_none()
                    {
                        line.early.insert(number);
                    }
                }
                "TOUCH" => {
                    if let Some(it) = number(1).and_then(|number| line.flying.get_mut(&number)) {
                        let last = it.delivered.saturating_add(self.max_msg_timeout);
                        it.deadline = now.saturating_add(line.msg_timeout).min(last);
                    }
                }
                "SUB" | "NOP" => {}
                _ => line.blind = true,
            }
            line.inbox.drain(..used);
        }
        seen
    }

    /// The node has this to write, the first of it; it may have had before.
    pub(crate) fn offer(&mut self, conn: ConnId, bytes: &[u8], now: u64) -> Vec<(ConnId, Seen)> {
        let mut seen = Vec::new();
        // Of all: what is offered here may be what another did not answer in time.
        for (whose, line) in &mut self.lines {
            for number in line.take_back(now) {
                let body = &self.accepted[&number];
                if is_fed(body) {
                    seen.push((*whose, Seen::TakenBack { body: body.clone() }));
                }
            }
        }
        let Some(line) = self.lines.get_mut(&conn) else { return seen };
        if line.known || !line.frame.is_empty() || bytes.len() < 8 {
            return seen;
        }
        line.known = true;
        if kind_of(bytes) == Event::Refusal {
            self.closes(conn);
        }
        if bytes[7] != 2 {
            return seen;
        }
        let Some(line) = self.lines.get_mut(&conn) else { return seen };
        let id = std::str::from_utf8(&bytes[18..34]).expect("an id is text");
        let (boot, number) = id.split_at(8);
        assert_eq!(boot, format!("{:08x}", self.boot), "an id of this life");
        let number = u64::from_str_radix(number, 16).expect("digits");
        let attempts = u16::from_be_bytes([bytes[16], bytes[17]]);
        assert!(self.accepted.contains_key(&number), "nobody published {id}");
        assert!(!self.finished.contains(&number), "{id} is delivered after its FIN");
        let rdy = line.rdys.iter().copied().fold(line.rdy, u64::max);
        let flying = line.flying.values().filter(|it| it.sure).count() as u64;
        assert!(flying < rdy, "one more than {flying} in flight, and RDY is {rdy}");
        let deadline = now.saturating_add(line.msg_timeout);
        line.late.remove(&number);
        let sure = !line.early.contains(&number);
        let flying = Flying { attempts, delivered: now, deadline, sure };
        let before = line.flying.insert(number, flying);
        assert!(before.is_none_or(|it| !it.sure), "{id} is in flight here already");
        self.delivered.insert(number);
        seen
    }

    /// The node wrote this: frames, or parts of them, with how long each is.
    pub(crate) fn wrote(&mut self, conn: ConnId, bytes: &[u8]) -> Vec<(Event, usize)> {
        let Some(line) = self.lines.get_mut(&conn) else { return vec![(Event::Part, bytes.len())] };
        let mut parts = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let have = line.frame.len();
            let size = match line.frame.first_chunk() {
                Some(size) => 4 + u32::from_be_bytes(*size) as usize,
                None => 4,
            };
            let n = rest.len().min(size - have);
            let (part, others) = rest.split_at(n);
            rest = others;
            line.frame.extend_from_slice(part);
            let whole = line
                .frame
                .first_chunk()
                .is_some_and(|size| line.frame.len() == 4 + u32::from_be_bytes(*size) as usize);
            if !whole {
                parts.push((Event::Part, n));
                continue;
            }
            let frame = std::mem::take(&mut line.frame);
            line.known = false;
            // To who speaks something else it says nothing that has a name.
            let kind = if line.foreign { Event::Part } else { kind_of(&frame) };
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

/// It was published for a consumer that knows it, not by the node's own application.
fn is_fed(body: &[u8]) -> bool {
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

    /// A node delivers a message, if it may.
    fn deliver(tap: &mut Tap, number: u64, attempts: u16, now: u64) {
        let frame = frame(number, attempts, b"0/0/a");
        tap.offer(7, &frame[..OFFERED], now);
        tap.wrote(7, &frame);
    }

    /// Three messages, RDY 2, and the first in flight for too long.
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
    fn an_answer_that_is_held_back_may_be_for_what_is_delivered_meanwhile() {
        let mut tap = with_one_late();
        tap.read(7, b"REQ 00000001", 2000);
        tap.read(7, b"00000001 0\n", 2000);
        deliver(&mut tap, 1, 2, 2000);
        // Now the node comes to the REQ: it has nothing in flight.
        deliver(&mut tap, 2, 1, 2000);
        deliver(&mut tap, 3, 1, 2000);
    }

    #[test]
    fn what_a_held_answer_may_have_taken_back_is_not_finished_for_sure() {
        let mut tap = with_one_late();
        tap.read(7, b"REQ 0000000100000001 0\n", 2000);
        deliver(&mut tap, 1, 2, 2000);
        // Now the node comes to the REQ, and the FIN is too late.
        tap.read_again(7, 2000);
        tap.read(7, b"FIN 0000000100000001\n", 2000);
        tap.read_again(7, 2000);
        deliver(&mut tap, 1, 3, 2000);
    }

    #[test]
    #[should_panic(expected = "is delivered after its FIN")]
    fn what_was_finished_is_not_delivered_again() {
        let mut tap = with_one_late();
        tap.read(7, b"FIN 0000000100000001\n", 500);
        tap.read_again(7, 500);
        deliver(&mut tap, 1, 2, 600);
    }

    #[test]
    #[should_panic(expected = "one more than 2 in flight, and RDY is 2")]
    fn an_answer_that_was_processed_is_for_what_was_delivered_before() {
        let mut tap = with_one_late();
        tap.read(7, b"REQ 0000000100000001 0\n", 2000);
        tap.read_again(7, 2000);
        deliver(&mut tap, 1, 2, 2000);
        deliver(&mut tap, 2, 1, 2000);
        deliver(&mut tap, 3, 1, 2000);
    }
}
