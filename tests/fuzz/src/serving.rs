//! Sessions of servers: clients that come and go, say anything in any pieces, are held, and read
//! as slowly as they like.

use std::net::SocketAddr;

use nanonsq_core::session::{Closed, DRAINS_MAX, Link, Session, TransportError};
use nanonsq_core::time::{Instant, Span};

use crate::feature;
use crate::input::Input;
use crate::reference;
use crate::session::{Machine, join};

/// Plays the operations that an input says.
pub(crate) fn play(machine: &mut impl Machine, input: &mut Input<'_>) {
    let lines = (0..machine.sessions()).map(|_| Line::default()).collect();
    let mut stage = Stage { now: Instant::from_millis(1), lines };
    while !input.is_over() {
        let at = input.below(machine.sessions() as u32) as usize;
        let op = input.below(16);
        let Line { open, held } = &stage.lines[at];
        feature((at, op, *open, held.is_empty()));
        match op {
            0..=11 if !*open => stage.accept(machine, at),
            0..=3 => {
                let piece = input.pick(machine.pieces(at));
                let (one, two) = piece.split_at(usize::from(input.byte()) % (piece.len() + 1));
                stage.say(machine, at, one);
                stage.say(machine, at, two);
            }
            4 => {
                let len = input.below(40) as usize;
                stage.say(machine, at, input.take(len));
            }
            5 | 6 => stage.drain(machine, at, usize::MAX),
            7 => {
                let most = usize::from(input.byte());
                stage.drain(machine, at, most);
            }
            8 => stage.now = stage.now.after(Span::from_millis(input.below(1000))),
            9 => {
                let jump = input.pick(&[6, 31, 61, 100_000]);
                // Far from the end of all time.
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
    for at in 0..stage.lines.len() {
        if stage.lines[at].open {
            stage.closed(machine, at, Closed::Peer);
        }
    }
    machine.check(stage.now);
}

/// One connection.
#[derive(Default)]
struct Line {
    open: bool,
    /// What the session did not take yet: meanwhile no more is read.
    held: Vec<u8>,
}

struct Stage {
    now: Instant,
    lines: Vec<Line>,
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
        self.lines[at].open = true;
        machine.opened(at);
    }

    fn say(&mut self, machine: &mut impl Machine, at: usize, bytes: &[u8]) {
        let Line { open, held } = &mut self.lines[at];
        if *open && held.is_empty() {
            held.extend_from_slice(bytes);
            self.offer(machine, at);
        }
    }

    /// Offers what was not taken; says whether any of it was.
    fn offer(&mut self, machine: &mut impl Machine, at: usize) -> bool {
        let now = self.now;
        let Line { open, held } = &mut self.lines[at];
        if !*open || held.is_empty() {
            return false;
        }
        let mut taken = 0;
        machine.with(at, &mut |session| {
            let link = session.link();
            taken = session.take(now, held);
            assert!(taken <= held.len());
            let all = taken == held.len();
            // Deadlines are read after what there is to write.
            let _ = session.transmit(now);
            assert!(link != Link::Close || all, "what comes after the end is passed over");
            let due = session.deadline();
            assert!(all || due != Instant::NEVER, "held without end");
        });
        let rest = held.split_off(taken);
        let bytes = std::mem::replace(held, rest);
        machine.received(at, &bytes);
        taken > 0
    }

    /// Writes up to so many bytes.
    fn drain(&mut self, machine: &mut impl Machine, at: usize, most: usize) {
        if !self.lines[at].open {
            return;
        }
        let now = self.now;
        let mut left = most;
        for _ in 0..100_000 {
            let mut taken = Vec::new();
            machine.with(at, &mut |session| {
                let offered = join(session.transmit(now));
                let again = join(session.transmit(now));
                assert!(again.starts_with(&offered), "what is offered stays so until it is sent");
                let n = again.len().min(left);
                session.sent(now, n);
                taken = again[..n].to_vec();
            });
            if taken.is_empty() {
                return;
            }
            left -= taken.len();
            machine.wrote(at, &taken);
        }
        panic!("writes without end");
    }

    fn closed(&mut self, machine: &mut impl Machine, at: usize, why: Closed) {
        self.lines[at] = Line::default();
        let now = self.now;
        machine.with(at, &mut |session| {
            session.closed(now, why);
            assert_eq!((session.link(), session.deadline()), (Link::Down, Instant::NEVER));
        });
    }

    /// What a driver does, until nothing is left to do.
    fn settle(&mut self, machine: &mut impl Machine, input: &mut Input<'_>) {
        let now = self.now;
        for _ in 0..DRAINS_MAX {
            let mut progress = false;
            for at in 0..self.lines.len() {
                let mut link = Link::Down;
                machine.with(at, &mut |session| {
                    link = session.link();
                    if link == Link::Up && session.deadline() <= now {
                        session.tick(now);
                        link = session.link();
                        progress = true;
                        let later = session.deadline() > now;
                        assert!(later || link == Link::Close, "its deadline stays");
                    }
                });
                match (link, self.lines[at].open) {
                    (Link::Down, open) => assert!(!open, "nobody closed it"),
                    (Link::Up, true) => progress |= self.offer(machine, at),
                    (Link::Close, true) => {
                        // What is still said is listened to.
                        self.say(machine, at, b"more");
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

/// Some operations to start from: connect, say each of the pieces, read, do what is done else.
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

/// Answers over HTTP: each is well-formed, and ends where its head says.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    asked: Vec<u8>,
    said: Vec<u8>,
    /// What is said from here on has no form that can be known.
    blind: bool,
}

impl Answers {
    /// The client said something.
    pub(crate) fn received(&mut self, bytes: &[u8]) {
        self.asked.extend_from_slice(bytes);
        // An answer without the body that its head tells of.
        self.blind |= self.asked.windows(4).any(|word| word == b"HEAD");
    }

    /// The server said something.
    pub(crate) fn wrote(&mut self, bytes: &[u8]) {
        self.said.extend_from_slice(bytes);
        while !self.blind
            && let Some(used) = self.whole()
        {
            self.said.drain(..used);
        }
    }

    /// The length of the first answer, if it is whole.
    fn whole(&mut self) -> Option<usize> {
        let end = self.said.windows(4).position(|line| line == b"\r\n\r\n")? + 4;
        let head = std::str::from_utf8(&self.said[..end]).expect("a head is text");
        let (status, lines) = head.split_once("\r\n").expect("a line");
        let code = status.strip_prefix("HTTP/1.").expect("HTTP").get(2..5).expect("a status");
        feature(("status", code));
        if code == "100" {
            return Some(end);
        }
        let line = |name: &str| lines.split("\r\n").find_map(|line| line.strip_prefix(name));
        if let Some(len) = line("Content-Length: ") {
            let len: usize = len.parse().expect("a length");
            let body = self.said[end..].get(..len)?;
            check_body(head, body);
            return Some(end + len);
        }
        if line("Transfer-Encoding: ").is_none() {
            // To the connection's end.
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
            let rest = &self.said[at..];
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

/// What is said to be JSON is that, however it was put together.
fn check_body(head: &str, body: &[u8]) {
    if head.contains("\r\nContent-Type: application/json") {
        let (value, _) = reference::json::read(body, 0);
        assert!(value.is_some(), "no JSON: {}", body.escape_ascii());
        feature(("JSON", body.len().min(2000) / 50));
    }
}

/// What is done with a session.
pub(crate) type Use<'u> = &'u mut dyn FnMut(&mut dyn Session);

/// All that a session says to a stream that comes in pieces, in which
/// neither splits nor waiting show; its client waits for nothing.
pub(crate) fn converse(
    with: &mut dyn FnMut(Use<'_>),
    now: Instant,
    pieces: &mut dyn Iterator<Item = &[u8]>,
) -> Vec<u8> {
    let mut said = Vec::new();
    with(&mut |session| session.accepted(now, SocketAddr::from(([10, 0, 0, 1], 1000))));
    for piece in pieces {
        let mut rest = piece;
        loop {
            let (mut taken, mut written) = (0, 0);
            with(&mut |session| {
                taken = session.take(now, rest);
                let lent = join(session.transmit(now));
                session.sent(now, lent.len());
                written = lent.len();
                said.extend(lent);
            });
            rest = &rest[taken..];
            if taken == 0 && written == 0 {
                break;
            }
        }
        if !rest.is_empty() {
            // Held for what nobody brings.
            break;
        }
    }
    with(&mut |session| session.closed(now, Closed::Peer));
    // Whether it is said depends on whether the body was there already.
    let go_on = b"HTTP/1.1 100 Continue\r\n\r\n";
    while let Some(at) = said.windows(go_on.len()).position(|line| line == go_on) {
        said.drain(at..at + go_on.len());
    }
    said
}
