//! Sessions that hear anything, at any time, in any pieces, and lose connections at any point.

use nanonsq_core::session::{
    Closed, DRAINS_MAX, DialError, Link, Session, Transmit, TransportError,
};
use nanonsq_core::time::{Instant, Span};

use crate::feature;
use crate::input::Input;

/// Something with sessions: what its application does and what must be true of it.
pub(crate) trait Machine {
    /// How many sessions it has.
    fn sessions(&self) -> usize;

    /// Lends one of them.
    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session));

    /// What the other side may say to it, well-formed.
    fn pieces(&self, index: usize) -> &'static [&'static [u8]];

    /// The application does something.
    fn act(&mut self, now: Instant, input: &mut Input<'_>);

    /// A connection came up.
    fn opened(&mut self, index: usize);

    /// A session took these bytes.
    fn received(&mut self, index: usize, bytes: &[u8]) {
        let _ = (index, bytes);
    }

    /// A session wrote these bytes.
    fn wrote(&mut self, index: usize, bytes: &[u8]);

    /// What is always true.
    fn check(&mut self, now: Instant);
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Line {
    Down,
    Dialing,
    Open,
}

/// Plays the operations that an input says.
pub(crate) fn play(machine: &mut impl Machine, input: &mut Input<'_>) {
    let mut stage = Stage { now: Instant::from_millis(1), lines: Vec::new() };
    stage.lines.resize(machine.sessions(), Line::Down);
    stage.settle(machine, input);
    while !input.is_over() {
        let at = input.below(machine.sessions() as u32) as usize;
        let op = input.below(16);
        feature((at, op, stage.lines[at] as u8));
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
                // Far from the end of all time.
                if stage.now < Instant::from_millis(1 << 50) {
                    stage.now = stage.now.after(Span::from_secs(jump));
                }
            }
            9 if stage.lines[at] == Line::Open => stage.closed(machine, at, Closed::Peer),
            10 if stage.lines[at] == Line::Open => {
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
    lines: Vec<Line>,
}

impl Stage {
    fn receive(&mut self, machine: &mut impl Machine, at: usize, bytes: &[u8]) {
        if self.lines[at] != Line::Open {
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

    /// Writes up to so many bytes.
    fn drain(&mut self, machine: &mut impl Machine, at: usize, most: usize) {
        if self.lines[at] != Line::Open {
            return;
        }
        let now = self.now;
        let mut left = most;
        for _ in 0..10_000 {
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
        self.lines[at] = Line::Down;
        let now = self.now;
        machine.with(at, &mut |session| session.closed(now, why));
    }

    /// What a driver does, until nothing is left to do.
    fn settle(&mut self, machine: &mut impl Machine, input: &mut Input<'_>) {
        let now = self.now;
        for _ in 0..DRAINS_MAX {
            let mut progress = false;
            for at in 0..self.lines.len() {
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
                match (link, self.lines[at]) {
                    (Link::Down, line) => {
                        assert_eq!(line, Line::Down, "the transport was not asked to be closed");
                        if dials {
                            self.lines[at] = Line::Dialing;
                            progress = true;
                        }
                    }
                    (Link::Up, Line::Dialing) => match input.below(8) {
                        1 => {}
                        2 => {
                            self.closed(machine, at, Closed::Dial(DialError::Refused));
                            progress = true;
                        }
                        _ => {
                            self.lines[at] = Line::Open;
                            machine.opened(at);
                            machine.with(at, &mut |session| session.open(now));
                            progress = true;
                        }
                    },
                    (Link::Up, Line::Open) => {}
                    (Link::Up, Line::Down) => panic!("up without a dial"),
                    (Link::Close, _) => {
                        let most = usize::from(input.byte());
                        self.drain(machine, at, most);
                        machine.with(at, &mut |session| {
                            session.open(now);
                            session.tick(now);
                            let heard = session.receive(now, b"more");
                            let link = session.link();
                            assert_eq!((heard, link), (Ok(()), Link::Close), "no way back up");
                        });
                        self.closed(machine, at, Closed::Local);
                        progress = true;
                    }
                    (Link::Upgrade(upgrade), _) => panic!("nobody asked for {upgrade:?}"),
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

/// Some operations to start from: connect, be answered, and what an application does.
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
