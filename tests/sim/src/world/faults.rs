//! Applies faults.

use nanonsq_models::random::Random;
use nanonsq_models::server::ConnId;

use super::link::{Way, wake};
use super::{Conn, Due, Inner, KEEPALIVE, Segment, WINDOW};
use crate::exec::application;
use crate::registrar::TOPICS;
use crate::schedule::{Cut, Jump, Mode, What};
use crate::watch::{self, Event};

impl Inner {
    /// Ends all faults for good; what is already lost stays lost.
    pub(super) fn heal(&mut self) {
        for host in &mut self.hosts {
            host.server.heal();
        }
        for (id, conn) in self.conns.iter_mut() {
            conn.window = conn.window.max(WINDOW);
            wake(&mut conn.writer);
            self.hosts[conn.host].server.writable(id);
        }
        // A connection with a backlog of one byte per second would last for hours, and so would
        // one that waits for 16 KiB: a heartbeat brings 19 bytes.
        let soon = self.now + 10_000_000;
        let odd = |conn: &Conn| conn.misled || conn.promised || conn.down.last > soon;
        let odd = self.conns.iter().filter(|(_, conn)| conn.has_client && odd(conn));
        for id in odd.map(|(id, _)| id).collect::<Vec<_>>() {
            self.cut(id, Cut::Reset);
        }
    }

    pub(super) fn fault(&mut self, what: &What) {
        let now = self.now;
        let until = |ms: u64| now + ms * 1000;
        let (at, ms) = match *what {
            What::Act(..) | What::Restart(..) => return,
            What::Clock(actor, jump) => {
                let clock = &mut self.clocks[actor];
                *clock = match jump {
                    Jump::By(ms) => clock.saturating_add(ms * 1000),
                    Jump::ToEdge(ms) => (u64::MAX - now).saturating_sub(ms * 1000),
                };
                let hosts = &self.hosts;
                let conns = self.conns.values_mut().filter(|conn| {
                    conn.session.0 == actor || hosts[conn.host].owner == Some(actor)
                });
                conns.for_each(|conn| conn.clean = false);
                self.disturbed = now;
                for (session, (_, waker)) in self.alarms.take_all(actor) {
                    watch::event(session, Event::ClockJump);
                    application(|| waker.wake());
                }
                return;
            }
            What::Cut(actor, at, cut) => {
                let hit = self.conns.iter().filter(|(_, conn)| {
                    conn.session.0 == actor && conn.host == at && conn.has_client
                });
                for id in hit.map(|(id, _)| id).collect::<Vec<_>>() {
                    self.cut(id, cut);
                }
                return;
            }
            What::Vandalize(at, dice) => {
                let host = &mut self.hosts[at];
                let what = host.server.vandalize(&mut Random::new(dice), &TOPICS);
                watch::trace(|| format!("an administrator deletes {what}"));
                return;
            }
            What::Crash(at, gone, ms) => {
                self.hosts[at].down = until(ms);
                self.hosts[at].gone = gone;
                let hit = self.conns.iter().filter(|(_, conn)| conn.host == at);
                for id in hit.map(|(id, _)| id).collect::<Vec<_>>() {
                    let cut = if gone {
                        Cut::HalfOpen
                    } else if self.random.one_in(2) {
                        Cut::Reset
                    } else {
                        Cut::End
                    };
                    self.cut(id, cut);
                    self.server_gone(id);
                }
                (at, ms)
            }
            What::Freeze(at, ms) => {
                self.hosts[at].frozen = until(ms);
                (at, ms)
            }
            What::Dials(at, fault, ms) => {
                self.hosts[at].dials = (fault, until(ms));
                return;
            }
            What::Mode(at, mode, ms) => {
                self.hosts[at].mode = (mode, until(ms));
                self.hosts[at].server.set_exiting(mode == Mode::Exiting);
                (at, ms)
            }
            What::Slow(at, delay, ms) => {
                self.hosts[at].slow = (delay * 1000, until(ms));
                (at, ms + delay)
            }
            What::Squeeze(at, ms) => {
                self.hosts[at].squeezed = until(ms);
                for conn in self.conns.values_mut().filter(|conn| conn.host == at) {
                    conn.window = self.random.between(1, 64) as usize;
                }
                (at, ms)
            }
            What::Stall(at, up, ms) => {
                for conn in self.conns.values_mut().filter(|conn| conn.host == at) {
                    let way = if up { Way::Up } else { Way::Down };
                    conn.flow(way).stalled = until(ms);
                }
                (at, ms)
            }
        };
        self.hosts[at].faulty = self.hosts[at].faulty.max(until(ms));
        for conn in self.conns.values_mut().filter(|conn| conn.host == at) {
            conn.clean = false;
        }
    }

    pub(super) fn cut(&mut self, id: ConnId, cut: Cut) {
        let Some(conn) = self.conns.get_mut(id) else { return };
        conn.clean = false;
        match cut {
            Cut::HalfOpen => {
                conn.lost = true;
                self.push(self.now + KEEPALIVE, Due::Keepalive(id));
            }
            Cut::End => {
                self.send(id, Way::Up, Segment::End);
                self.send(id, Way::Down, Segment::End);
            }
            Cut::Reset => {
                // Some bytes arrive all the same, but no response does.
                let keep = self.random.below(conn.up.queue.len() as u64 + 1) as usize;
                conn.up.queue.truncate(keep);
                if let Some((_, Segment::Data(_, bytes))) = conn.up.queue.back_mut() {
                    let keep = self.random.below(bytes.len() as u64 + 1) as usize;
                    bytes.truncate(keep);
                }
                let rest = std::mem::take(&mut conn.up.queue);
                conn.up.bytes = 0;
                // Bytes under way come just before the reset, or are lost.
                for (_, segment) in std::mem::take(&mut conn.down.queue) {
                    if let Segment::Data(kind, bytes) = segment {
                        conn.rx.push_back((kind, bytes));
                    }
                }
                let purge = self.random.one_in(2);
                conn.reset(purge);
                wake(&mut conn.reader);
                wake(&mut conn.writer);
                let at = conn.host;
                for (_, segment) in rest {
                    if let Segment::Data(_, bytes) = segment
                        && self.conns.get(id).is_some_and(|conn| conn.has_server)
                    {
                        self.serve(at, |server, out| server.receive(id, &bytes, out));
                    }
                }
                if let Some(conn) = self.conns.get_mut(id) {
                    conn.down.queue.clear();
                }
                self.server_gone(id);
            }
        }
    }
}
