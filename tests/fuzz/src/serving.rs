//! Sessions of servers: clients that connect and disconnect, send anything in any pieces, are held
//! back, and read as slowly as they like.

use std::net::SocketAddr;

use nanonsq_core::session::{Closed, DRAINS_MAX, Link, Session, TransportError};
use nanonsq_core::time::{Instant, Span};

use crate::feature;
use crate::input::Input;
use crate::reference;
use crate::session::{Machine, join};

/// Plays the operations of an input.
pub(crate) fn play(machine: &mut impl Machine, input: &mut Input<'_>) {
    let connections = (0..machine.sessions()).map(|_| Connection::default()).collect();
    let mut stage = Stage { now: Instant::from_millis(1), connections };
    while !input.is_over() {
        let at = input.below(machine.sessions() as u32) as usize;
        let op = input.below(16);
        let Connection { open, held } = &stage.connections[at];
        feature((at, op, *open, held.is_empty()));
        match op {
            0..=11 if !*open => stage.accept(machine, at),
            0..=3 => {
                let piece = input.pick(machine.pieces(at));
                let (one, two) = piece.split_at(usize::from(input.byte()) % (piece.len() + 1));
                stage.send(machine, at, one);
                stage.send(machine, at, two);
            }
            4 => {
                let len = input.below(40) as usize;
                stage.send(machine, at, input.take(len));
            }
            5 | 6 => stage.drain(machine, at, usize::MAX),
            7 => {
                let most = usize::from(input.byte());
                stage.drain(machine, at, most);
            }
            8 => stage.now = stage.now.after(Span::from_millis(input.below(1000))),
            9 => {
                let jump = input.pick(&[6, 31, 61, 100_000]);
                // Stay far from the largest instant.
                if stage.now < Instant::from_millis(1 << 50) {
                    stage.now = stage.now.after(Span::from_secs(jump));
                }
            }
            10 => {
                let reset = Closed::Transport(TransportError::Reset);
                stage.closed(machine, at, input.pick(&[Closed::Peer, reset]));
            }
            11 => machine.with(at, &mut |session| session.tick(stage.now)),
            _ => machine.act(stage.now, input),
        }
        stage.settle(machine, input);
        machine.check(stage.now);
    }
    for at in 0..stage.connections.len() {
        if stage.connections[at].open {
            stage.closed(machine, at, Closed::Peer);
        }
    }
    machine.check(stage.now);
}

/// A connection.
#[derive(Default)]
struct Connection {
    open: bool,
    /// Bytes that the session has not consumed yet: until then no more is read.
    held: Vec<u8>,
}

struct Stage {
    now: Instant,
    connections: Vec<Connection>,
}

impl Stage {
    fn accept(&mut self, machine: &mut impl Machine, at: usize) {
        let now = self.now;
        let from = SocketAddr::from(([10, 0, 0, 1], 1000 + at as u16));
        machine.with(at, &mut |session| {
            assert_eq!(session.link(), Link::Down);
            session.accepted(now, from);
            assert_eq!(session.link(), Link::Up);
        });
        self.connections[at].open = true;
        machine.opened(at);
    }

    fn send(&mut self, machine: &mut impl Machine, at: usize, bytes: &[u8]) {
        let Connection { open, held } = &mut self.connections[at];
        if *open && held.is_empty() {
            held.extend_from_slice(bytes);
            self.offer(machine, at);
        }
    }

    /// Offers the bytes that were not consumed; returns whether any were.
    fn offer(&mut self, machine: &mut impl Machine, at: usize) -> bool {
        let now = self.now;
        let Connection { open, held } = &mut self.connections[at];
        if !*open || held.is_empty() {
            return false;
        }
        let mut consumed = 0;
        machine.with(at, &mut |session| {
            let link = session.link();
            consumed = session.take(now, held);
            assert!(consumed <= held.len());
            let all = consumed == held.len();
            // A driver reads the deadline after it asked for bytes to write.
            let _ = session.transmit(now);
            assert!(link != Link::Close || all, "bytes after the end are discarded");
            let due = session.deadline();
            assert!(all || due != Instant::NEVER, "held back without end");
        });
        let rest = held.split_off(consumed);
        let bytes = std::mem::replace(held, rest);
        machine.received(at, &bytes);
        consumed > 0
    }

    /// Writes up to `most` bytes.
    fn drain(&mut self, machine: &mut impl Machine, at: usize, most: usize) {
        if !self.connections[at].open {
            return;
        }
        let now = self.now;
        let mut left = most;
        for _ in 0..100_000 {
            let mut consumed = Vec::new();
            machine.with(at, &mut |session| {
                let offered = join(session.transmit(now));
                let again = join(session.transmit(now));
                assert!(
                    again.starts_with(&offered),
                    "offered bytes stay the same until they are sent"
                );
                let n = again.len().min(left);
                session.sent(now, n);
                consumed = again[..n].to_vec();
            });
            if consumed.is_empty() {
                return;
            }
            left -= consumed.len();
            machine.wrote(at, &consumed);
        }
        panic!("writes without end");
    }

    fn closed(&mut self, machine: &mut impl Machine, at: usize, why: Closed) {
        self.connections[at] = Connection::default();
        let now = self.now;
        machine.with(at, &mut |session| {
            session.closed(now, why);
            assert_eq!((session.link(), session.deadline()), (Link::Down, Instant::NEVER));
        });
    }

    /// Acts as a driver until nothing is left to do.
    fn settle(&mut self, machine: &mut impl Machine, input: &mut Input<'_>) {
        let now = self.now;
        for _ in 0..DRAINS_MAX {
            let mut progress = false;
            for at in 0..self.connections.len() {
                let mut link = Link::Down;
                machine.with(at, &mut |session| {
                    link = session.link();
                    if link == Link::Up && session.deadline() <= now {
                        session.tick(now);
                        link = session.link();
                        progress = true;
                        let later = session.deadline() > now;
                        assert!(later || link == Link::Close, "the deadline stays");
                    }
                });
                match (link, self.connections[at].open) {
                    (Link::Down, open) => assert!(!open, "not closed"),
                    (Link::Up, true) => progress |= self.offer(machine, at),
                    (Link::Close, true) => {
                        // Further bytes are still accepted.
                        self.send(machine, at, b"more");
                        let most = usize::from(input.byte()) * 4;
                        self.drain(machine, at, most);
                        self.closed(machine, at, Closed::Local);
                        progress = true;
                    }
                    (link, open) => panic!("{link:?}, open: {open}"),
                }
            }
            if !progress {
                return;
            }
        }
        panic!("never settles");
    }
}

/// Returns some operations to start from: connect, send each of the pieces, read, act.
pub(crate) fn seeds(sessions: u8, pieces: u8, acts: u8) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for act in 0..acts {
        let mut seed = Vec::new();
        for at in 0..sessions {
            seed.extend([at, 0]);
            for piece in 0..4 {
                let piece = if piece == 0 { 0 } else { act * 3 + piece } % pieces;
                seed.extend([at, 0, piece, 255, at, 5]);
            }
            seed.extend([at, 12, act, 3, 1, 0, 9, at, 5]);
        }
        for at in 0..sessions {
            seed.extend([at, 0, (act + at) % pieces, 3, at, 7, 20, at, 8, 200]);
            seed.extend([at, 12, act, 9, 2, 7, 1, at, 5, at, 9, act % 4, at, 10, 0]);
        }
        seeds.push(seed);
    }
    seeds
}

/// HTTP responses of a connection: each must be well-formed and end at the length in its header.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    request: Vec<u8>,
    response: Vec<u8>,
    /// The form of later responses is unknown.
    blind: bool,
}

impl Answers {
    /// The client sent these bytes.
    pub(crate) fn received(&mut self, bytes: &[u8]) {
        self.request.extend_from_slice(bytes);
        // A response to HEAD has no body in spite of its header.
        self.blind |= self.request.windows(4).any(|word| word == b"HEAD");
    }

    /// The server sent these bytes.
    pub(crate) fn wrote(&mut self, bytes: &[u8]) {
        self.response.extend_from_slice(bytes);
        while !self.blind
            && let Some(used) = self.whole()
        {
            self.response.drain(..used);
        }
    }

    /// Returns the length of the first response, if it is complete.
    fn whole(&mut self) -> Option<usize> {
        let end = self.response.windows(4).position(|line| line == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&self.response[..end]).expect("a head is text");
        let (status, connections) = head.split_once("\r\n").expect("a line");
        let code = status.strip_prefix("HTTP/1.").expect("HTTP").get(2..5).expect("a status");
        feature(("status", code));
        if code == "100" {
            return Some(end);
        }
        let line = |name: &str| connections.split("\r\n").find_map(|line| line.strip_prefix(name));
        if let Some(len) = line("Content-Length: ") {
            let len: usize = len.parse().expect("a length");
            let body = self.response[end..].get(..len)?;
            check_body(head, body);
            return Some(end + len);
        }
        if line("Transfer-Encoding: ").is_none() {
            // Up to the end of the connection.
            assert!(
                line("Connection: close").is_some() || status.starts_with("HTTP/1.0"),
                "{head}"
            );
            self.blind = true;
            return None;
        }
        let mut at = end;
        let mut body = Vec::new();
        loop {
            let rest = &self.response[at..];
            let digits = rest.windows(2).position(|line| line == b"\r\n")?;
            let len = std::str::from_utf8(&rest[..digits]).expect("digits");
            let len = usize::from_str_radix(len, 16).expect("a chunk's length");
            let chunk = rest.get(digits + 2..digits + len + 4)?;
            assert!(chunk.ends_with(b"\r\n"), "a chunk's end");
            body.extend(&chunk[..len]);
            at += digits + len + 4;
            if len == 0 {
                check_body(head, &body);
                feature("chunks");
                return Some(at);
            }
        }
    }
}

/// Checks that a body announced as JSON is JSON.
fn check_body(head: &str, body: &[u8]) {
    if head.contains("\r\nContent-Type: application/json") {
        let (value, _) = reference::json::read(body, 0);
        assert!(value.is_some(), "not JSON: {}", body.escape_ascii());
        feature(("JSON", body.len().min(2000) / 50));
    }
}

/// A use of a session.
pub(crate) type Use<'u> = &'u mut dyn FnMut(&mut dyn Session);

/// Returns all that a session sends in response to a stream in pieces. Neither splits nor waiting
/// show in the result; the client does not wait.
pub(crate) fn converse(
    with: &mut dyn FnMut(Use<'_>),
    now: Instant,
    pieces: &mut dyn Iterator<Item = &[u8]>,
) -> Vec<u8> {
    let mut response = Vec::new();
    with(&mut |session| session.accepted(now, SocketAddr::from(([10, 0, 0, 1], 1000))));
    for piece in pieces {
        let mut rest = piece;
        loop {
            let (mut consumed, mut written) = (0, 0);
            with(&mut |session| {
                consumed = session.take(now, rest);
                let lent = join(session.transmit(now));
                session.sent(now, lent.len());
                written = lent.len();
                response.extend(lent);
            });
            rest = &rest[consumed..];
            if consumed == 0 && written == 0 {
                break;
            }
        }
        if !rest.is_empty() {
            // Held back until something happens that never does here.
            break;
        }
    }
    with(&mut |session| session.closed(now, Closed::Peer));
    // A session sends this only if the body was not there already.
    let continue_line = b"HTTP/1.1 100 Continue\r\n\r\n";
    while let Some(at) =
        response.windows(continue_line.len()).position(|line| line == continue_line)
    {
        response.drain(at..at + continue_line.len());
    }
    response
}
