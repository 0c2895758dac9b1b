//! Sessions that receive anything, at any time, in any pieces, and lose connections at any point.

use nanonsq_core::session::{
    Closed, DRAINS_MAX, DialError, Link, Session, Transmit, TransportError,
};
use nanonsq_core::time::{Instant, Span};

use crate::feature;
use crate::input::Input;

/// Something with sessions, its application, and its checks.
pub(crate) trait Machine {
    /// Returns the number of sessions.
    fn sessions(&self) -> usize;

    /// Passes one session to `f`.
    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session));

    /// Returns well-formed bytes that the other side may send.
    fn pieces(&self, index: usize) -> &'static [&'static [u8]];

    /// Does one action of the application.
    fn act(&mut self, now: Instant, input: &mut Input<'_>);

    /// A connection came up.
    fn opened(&mut self, index: usize);

    /// A session received these bytes.
    fn received(&mut self, index: usize, bytes: &[u8]) {
        let _ = (index, bytes);
    }

    /// A session wrote these bytes.
    fn wrote(&mut self, index: usize, bytes: &[u8]);

    /// Checks what must always hold.
    fn check(&mut self, now: Instant);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Connection {
    Down,
    Dialing,
    Open,
}

/// Plays the operations of an input.
pub(crate) fn play(machine: &mut impl Machine, input: &mut Input<'_>) {
    let mut stage = Stage { now: Instant::from_millis(1), connections: Vec::new() };
    stage.connections.resize(machine.sessions(), Connection::Down);
    stage.settle(machine, input);
    while !input.is_over() {
        let at = input.below(machine.sessions() as u32) as usize;
        let op = input.below(16);
        feature((at, op, stage.connections[at] as u8));
        match op {
            0..=2 => {
                let piece = input.pick(machine.pieces(at));
                let (one, two) = piece.split_at(usize::from(input.byte()) % (piece.len() + 1));
                stage.receive(machine, at, one);
                stage.receive(machine, at, two);
            }
            3 => {
                let len = input.below(40) as usize;
                stage.receive(machine, at, input.take(len));
            }
            4 | 5 => stage.drain(machine, at, usize::MAX),
            6 => {
                let most = usize::from(input.byte());
                stage.drain(machine, at, most);
            }
            7 => stage.now = stage.now.after(Span::from_millis(input.below(1000))),
            8 => {
                let jump = input.pick(&[10, 61, 3600, 100_000]);
                // Stay far from the largest instant.
                if stage.now < Instant::from_millis(1 << 50) {
                    stage.now = stage.now.after(Span::from_secs(jump));
                }
            }
            9 if stage.connections[at] == Connection::Open => {
                stage.closed(machine, at, Closed::Peer)
            }
            10 if stage.connections[at] == Connection::Open => {
                let why = Closed::Transport(TransportError::Reset);
                stage.closed(machine, at, why);
            }
            9..=11 => machine.with(at, &mut |session| session.tick(stage.now)),
            _ => machine.act(stage.now, input),
        }
        stage.settle(machine, input);
        machine.check(stage.now);
    }
}

struct Stage {
    now: Instant,
    connections: Vec<Connection>,
}

impl Stage {
    fn receive(&mut self, machine: &mut impl Machine, at: usize, bytes: &[u8]) {
        if self.connections[at] != Connection::Open {
            return;
        }
        let now = self.now;
        machine.with(at, &mut |session| {
            if let Err(fault) = session.receive(now, bytes) {
                feature((at, std::mem::discriminant(&fault)));
                assert!(!fault.to_string().is_empty());
                assert_eq!(session.link(), Link::Close, "{fault}");
                assert_eq!(session.receive(now, b"more"), Ok(()), "bytes after a fault");
                assert_eq!(session.link(), Link::Close, "{fault}");
            }
        });
    }

    /// Writes up to `most` bytes.
    fn drain(&mut self, machine: &mut impl Machine, at: usize, most: usize) {
        if self.connections[at] != Connection::Open {
            return;
        }
        let now = self.now;
        let mut left = most;
        for _ in 0..10_000 {
            let mut written = Vec::new();
            machine.with(at, &mut |session| {
                let offered = join(session.transmit(now));
                let again = join(session.transmit(now));
                assert!(
                    again.starts_with(&offered),
                    "offered bytes stay the same until they are sent"
                );
                let n = again.len().min(left);
                session.sent(now, n);
                written = again[..n].to_vec();
            });
            if written.is_empty() {
                return;
            }
            left -= written.len();
            machine.wrote(at, &written);
        }
        panic!("writes without end");
    }

    fn closed(&mut self, machine: &mut impl Machine, at: usize, why: Closed) {
        self.connections[at] = Connection::Down;
        let now = self.now;
        machine.with(at, &mut |session| session.closed(now, why));
    }

    /// Acts as a driver until nothing is left to do.
    fn settle(&mut self, machine: &mut impl Machine, input: &mut Input<'_>) {
        let now = self.now;
        for _ in 0..DRAINS_MAX {
            let mut progress = false;
            for at in 0..self.connections.len() {
                let mut link = Link::Down;
                let mut dials = false;
                machine.with(at, &mut |session| {
                    if session.deadline() <= now {
                        session.tick(now);
                    }
                    link = session.link();
                    if link == Link::Down {
                        dials = session.dial(now).is_some();
                    }
                });
                match (link, self.connections[at]) {
                    (Link::Down, connection) => {
                        assert_eq!(
                            connection,
                            Connection::Down,
                            "the session did not ask to close the transport"
                        );
                        if dials {
                            self.connections[at] = Connection::Dialing;
                            progress = true;
                        }
                    }
                    (Link::Up, Connection::Dialing) => match input.below(8) {
                        1 => {}
                        2 => {
                            self.closed(machine, at, Closed::Dial(DialError::Refused));
                            progress = true;
                        }
                        _ => {
                            self.connections[at] = Connection::Open;
                            machine.opened(at);
                            machine.with(at, &mut |session| session.open(now));
                            progress = true;
                        }
                    },
                    (Link::Up, Connection::Open) => {}
                    (Link::Up, Connection::Down) => panic!("up without a dial"),
                    (Link::Close, _) => {
                        let most = usize::from(input.byte());
                        self.drain(machine, at, most);
                        machine.with(at, &mut |session| {
                            session.open(now);
                            session.tick(now);
                            let received = session.receive(now, b"more");
                            let link = session.link();
                            assert_eq!(
                                (received, link),
                                (Ok(()), Link::Close),
                                "a closing session stays so"
                            );
                        });
                        self.closed(machine, at, Closed::Local);
                        progress = true;
                    }
                    (Link::Upgrade(upgrade), _) => {
                        panic!("an upgrade that was not requested: {upgrade:?}")
                    }
                }
                machine.with(at, &mut |session| progress |= session.deadline() <= now);
            }
            if !progress {
                return;
            }
        }
        panic!("never settles");
    }
}

pub(crate) fn join(transmit: Transmit<'_>) -> Vec<u8> {
    [transmit.head, transmit.body].concat()
}

/// Returns some operations to start from: connect, receive, and actions of the application.
pub(crate) fn seeds(sessions: u8, acts: u8) -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for act in 0..acts {
        let mut seed = vec![3; 2 * usize::from(sessions)];
        for at in 0..sessions {
            for piece in 0..4 {
                seed.extend([at, 4, at, 0, piece, 255]);
            }
            seed.extend([at, 12, act, 3, 1, 0, 9, at, 4, at, 0, 0, 255]);
            seed.extend([at, 12, act, 9, 2, 7, 1, at, 7, 200, at, 6, 20, at, 10]);
            seed.extend([at, 8, 0, 3, 3, at, 4, at, 0, 0, 0, at, 4, at, 3, 9, 1, 2, 3, 4]);
        }
        seeds.push(seed);
    }
    seeds
}
