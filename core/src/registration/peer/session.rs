//! The session of one nsqlookupd: commands down, replies up.

use embedded_io::Write;

use super::{FindPort, HttpPortFinder, Peer, REPLY_MAX, Timer};
use crate::address::Address;
use crate::registration::registry::{PeerId, RegistryView};
use crate::registration::{Config, OUTSTANDING_MAX, PeerEvent, PeerState};
use crate::session::staging::{self, Staging};
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, Transmit};
use crate::time::{Instant, LASTED, Span};
use crate::wire::DecodeError;
use crate::wire::nsqd::ErrorCode;
use crate::wire::nsqlookupd::{self, Command, ReplyDecoder, ReplyPart};

/// Who was told everything, and has answered it, for so long has listed the node.
const LISTED: Span = Span::from_secs(1);

/// A peer with what it works on: the session of one nsqlookupd.
///
/// Made for each call by [`Registration::peer`](crate::registration::Registration::peer); the state is in the table.
#[derive(Debug)]
pub struct PeerSession<'s, 'a> {
    pub(in crate::registration) peer: &'s mut Peer,
    pub(in crate::registration) registry: RegistryView<'s>,
    pub(in crate::registration) id: PeerId,
    pub(in crate::registration) config: &'a Config<'a>,
    pub(in crate::registration) find_port: Option<FindPort>,
}

impl PeerSession<'_, '_> {
    /// The newest change of this peer that nobody polled yet.
    pub fn poll_event(&mut self) -> Option<PeerEvent> {
        self.peer.news.take()
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        self.peer.close(self.config, now, Closed::Fault(fault));
        Err(fault)
    }

    fn is_settled(&self) -> bool {
        self.peer.is_quiet() && self.registry.next_work(self.id).is_none()
    }

    /// Sends PING, or everything again, when it is due.
    fn keep_alive(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        if peer.timers.expired(Timer::Ping, now) {
            peer.pings = peer.pings.saturating_add(1);
            peer.repeat(Timer::Ping, now, self.config.ping);
        }
        if peer.timers.expired(Timer::Reassert, now) {
            // Not while an answer is due: the answers to what comes later would put off the end of
            // a connection on which one of them got lost, without end.
            if peer.outstanding == 0 {
                peer.reassert = 0;
            }
            peer.repeat(Timer::Reassert, now, self.config.reassert);
        }
    }

    fn expect_reply(&mut self, now: Instant) {
        if self.peer.outstanding == 0 {
            self.peer.timers.set(Timer::Reply, now.after(self.config.reply_timeout));
        }
        self.peer.outstanding = self.peer.outstanding.saturating_add(1);
    }

    #[inline(never)]
    fn stage(&mut self, now: Instant) {
        self.peer.staging.clear();
        match self.peer.state {
            PeerState::Identifying => self.stage_identify(),
            PeerState::Connected | PeerState::Leaving => self.stage_commands(now),
            PeerState::Unused | PeerState::Waiting | PeerState::Dialing | PeerState::Closing(_) => {
            }
        }
    }

    #[cold]
    #[inline(never)]
    fn stage_identify(&mut self) {
        let Peer { staging, tx_buffer, .. } = &mut *self.peer;
        staging.stage_text(tx_buffer, |w| {
            w.write_all(&nsqlookupd::MAGIC)?;
            Command::Identify(&self.config.node).emit(w)
        });
    }

    /// As many command lines as fit, pipelined: nsqlookupd answers in order.
    fn stage_commands(&mut self, now: Instant) {
        while self.peer.outstanding < OUTSTANDING_MAX {
            let room = self.peer.staging.room(&self.peer.tx_buffer);
            let (command, work) = if self.peer.pings > 0 {
                (Command::Ping, None)
            } else {
                let work = match self.registry.next_work(self.id) {
                    Some(work) => work,
                    None => {
                        let mut cursor = self.peer.reassert.into();
                        let Some(work) = self.registry.next_reassert(self.id, &mut cursor) else {
                            self.peer.reassert = u16::MAX;
                            return;
                        };
                        if self.registry.command(work).is_some_and(|c| c.encoded_len() <= room) {
                            self.peer.reassert = cursor as u16;
                        }
                        work
                    }
                };
                let Some(command) = self.registry.command(work) else { return };
                (command, Some(work))
            };
            if command.encoded_len() > room {
                return;
            }
            let Peer { staging, tx_buffer, .. } = &mut *self.peer;
            staging.append(tx_buffer, |w| command.emit(w));
            match work {
                Some(work) => self.registry.announced(self.id, work),
                None => self.peer.pings = self.peer.pings.saturating_sub(1),
            }
            self.expect_reply(now);
        }
    }

    fn on_part(&mut self, now: Instant, part: ReplyPart<'_>) -> Result<(), Fault> {
        let identifying = matches!(self.peer.state, PeerState::Identifying);
        if part.first {
            self.peer.detail.clear();
        }
        staging::append(&mut self.peer.detail, part.data);
        if !part.last {
            return Ok(());
        }
        if self.peer.detail.starts_with(b"E_") {
            let (code, _) = ErrorCode::parse(&self.peer.detail);
            return self.fail(now, Fault::Refused(code));
        }
        if identifying {
            return self.on_identified(now);
        }
        let Some(outstanding) = self.peer.outstanding.checked_sub(1) else {
            return self.fail(now, Fault::UnexpectedReply);
        };
        if self.peer.detail.as_slice() != b"OK" {
            return self.fail(now, Fault::UnexpectedReply);
        }
        self.peer.outstanding = outstanding;
        if outstanding > 0 {
            self.peer.timers.set(Timer::Reply, now.after(self.config.reply_timeout));
            return Ok(());
        }
        self.peer.timers.stop(Timer::Reply);
        // Also what it never had to register: then PING was answered.
        self.peer.listed |= self.is_settled();
        self.peer.version = self.peer.version.wrapping_add(1);
        if matches!(self.peer.state, PeerState::Leaving) && self.is_settled() {
            self.peer.close(self.config, now, Closed::Local);
        }
        Ok(())
    }

    fn on_identified(&mut self, now: Instant) -> Result<(), Fault> {
        if !self.peer.staging.text_is_written() {
            // IDENTIFY is not even wholly written.
            return self.fail(now, Fault::UnexpectedReply);
        }
        // Only the port in the answer is used, which `find_port` has found.
        if self.peer.detail.first() != Some(&b'{') {
            return self.fail(now, Fault::Decode(DecodeError::BadIdentifyReply));
        }
        let peer = &mut *self.peer;
        peer.connections = peer.connections.saturating_add(1);
        peer.news = Some(PeerEvent::Connected);
        peer.timers.stop(Timer::State);
        peer.repeat(Timer::Ping, now, self.config.ping);
        peer.repeat(Timer::Reassert, now, self.config.reassert);
        peer.set_state(PeerState::Connected);
        Ok(())
    }
}

impl Session for PeerSession<'_, '_> {
    fn link(&self) -> Link {
        match self.peer.state {
            PeerState::Unused | PeerState::Waiting => Link::Down,
            PeerState::Dialing
            | PeerState::Identifying
            | PeerState::Connected
            | PeerState::Leaving => Link::Up,
            PeerState::Closing(_) => Link::Close,
        }
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        let peer = &mut *self.peer;
        if !matches!(peer.state, PeerState::Waiting) || !peer.timers.expired(Timer::State, now) {
            return None;
        }
        peer.timers.set(Timer::State, now.after(self.config.connect_timeout));
        peer.set_state(PeerState::Dialing);
        peer.address.as_ref()
    }

    fn open(&mut self, now: Instant) {
        self.registry.forget(self.id);
        let peer = &mut *self.peer;
        peer.replies = ReplyDecoder::new(REPLY_MAX);
        peer.http.finder = HttpPortFinder::new();
        peer.outstanding = 0;
        peer.pings = 0;
        peer.reassert = u16::MAX;
        peer.staging = Staging::EMPTY;
        peer.opened_at = now;
        peer.listed = false;
        peer.timers.stop_all();
        peer.timers.set(Timer::State, now.after(self.config.connect_timeout));
        peer.set_state(PeerState::Identifying);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        if let Some(find_port) = self.find_port
            && matches!(self.peer.state, PeerState::Identifying)
        {
            find_port(&mut self.peer.http, bytes);
        }
        let mut input = bytes;
        loop {
            match self.peer.state {
                PeerState::Identifying | PeerState::Connected | PeerState::Leaving => {}
                PeerState::Unused
                | PeerState::Waiting
                | PeerState::Dialing
                | PeerState::Closing(_) => return Ok(()),
            }
            match self.peer.replies.next(&mut input) {
                Ok(Some(part)) => self.on_part(now, part)?,
                Ok(None) => return Ok(()),
                Err(error) => return self.fail(now, error.into()),
            }
        }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        if !self.peer.staging.is_writing() {
            self.stage(now);
        }
        Transmit { head: self.peer.staging.pending(&self.peer.tx_buffer), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        // A transport that takes bytes proves nothing of nsqlookupd: only answers do.
        self.peer.staging.sent(n);
    }

    fn deadline(&self) -> Instant {
        self.peer.timers.next()
    }

    fn tick(&mut self, now: Instant) {
        let peer = &mut *self.peer;
        let why = match peer.state {
            // The redial and the end of closing are the driver's.
            PeerState::Unused | PeerState::Waiting | PeerState::Closing(_) => return,
            PeerState::Dialing | PeerState::Identifying | PeerState::Leaving
                if peer.timers.expired(Timer::State, now) =>
            {
                match peer.state {
                    PeerState::Dialing => Closed::Dial(DialError::TimedOut),
                    PeerState::Leaving => Closed::Local,
                    _ => Closed::Fault(Fault::TimedOut(Awaited::Handshake)),
                }
            }
            _ if peer.timers.expired(Timer::Reply, now) => {
                Closed::Fault(Fault::TimedOut(Awaited::Reply))
            }
            _ => {
                self.keep_alive(now);
                return;
            }
        };
        peer.close(self.config, now, why);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let peer = &mut *self.peer;
        let (why, replaced) = match peer.state {
            // What the session itself had against the connection is the better reason.
            PeerState::Closing(why) => (why, matches!(why, Closed::Local)),
            PeerState::Leaving => (why, true),
            PeerState::Unused | PeerState::Waiting => return,
            PeerState::Dialing | PeerState::Identifying | PeerState::Connected => (why, false),
        };
        self.registry.forget(self.id);
        peer.timers.stop_all();
        if matches!(why, Closed::Dial(_)) {
            peer.http.port = 0;
        }
        if !replaced {
            peer.failures = peer.failures.saturating_add(1);
            peer.last = Some(why);
            let enough = if peer.listed { LISTED } else { LASTED };
            if peer.opened_at.after(enough) <= now {
                peer.attempts.prove_good();
            }
        }
        peer.news = Some(PeerEvent::Disconnected(why));
        if peer.address.is_some() {
            peer.wait(self.config, now);
        } else {
            peer.set_state(PeerState::Unused);
        }
    }
}
