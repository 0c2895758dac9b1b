//! The connection that empties the outbox: commands to nsqd, its responses, and the next dial.

use embedded_io::Write;

use super::outbox::{Batch, Flight};
use super::{Config, Outcome, PendingEvent, Publisher};
use crate::address::Address;
use crate::session::dialed::Dialed;
use crate::session::handshake::{Received, is_cut_off, is_nothing_stored};
use crate::session::{Awaited, Closed, Fault, Link, LinkState, Session, Transmit};
use crate::time::{Instant, Span, expire};
use crate::wire::nsqd::{self, ErrorCode, FramePart, FrameType, Meaning};

impl Publisher<'_> {
    pub(super) fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Asks the driver to close the connection.
    #[cold]
    #[inline(never)]
    pub(super) fn close(&mut self, now: Instant, why: Closed) {
        if !matches!(why, Closed::Local) {
            self.abort_in_flight(why);
        }
        self.reply = Instant::NEVER;
        self.handshake.close(&why, self.config.close_timeout, now);
        self.changed();
    }

    #[cold]
    #[inline(never)]
    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        self.close(now, Closed::Fault(fault));
        Err(fault)
    }

    /// Forgets the commands in flight: their messages are to be sent again.
    fn abort_in_flight(&mut self, why: Closed) {
        let half_written = self.is_half_written();
        // nsqd executes no command after a refused one.
        let refused = match why {
            Closed::Fault(fault) => fault.is_permanent() || matches!(fault, Fault::Refused(_)),
            _ => false,
        };
        if !refused {
            let whole = self.flights.len().saturating_sub(half_written.into());
            for flight in self.flights.iter().take(whole) {
                let count = u64::from(flight.count());
                self.counters.possible_duplicates =
                    self.counters.possible_duplicates.wrapping_add(count);
            }
        }
        self.flights.clear();
        let before = self.outbox.first() as u32;
        self.outbox.rewind();
        self.clear_suspects(before);
        self.handshake.staging.clear();
        self.staged_pub = false;
        self.body_left = 0;
    }

    /// Returns whether the newest batch is half written: its records leave last. A NOP has none.
    fn is_half_written(&self) -> bool {
        self.body_left > 0
    }

    fn is_writing(&self) -> bool {
        self.handshake.staging.is_writing() || self.body_left > 0
    }

    /// Stages the head of the next command.
    fn stage(&mut self, now: Instant) {
        match self.handshake.state() {
            LinkState::Ready => self.stage_batch(now),
            LinkState::Identifying | LinkState::Authenticating => {
                self.handshake.stage_command(&mut self.tx_buffer, self.config);
            }
            _ => self.handshake.staging.clear(),
        }
    }

    // Out of line, so that a call that finds nothing to do is short.
    #[inline(never)]
    fn stage_batch(&mut self, now: Instant) {
        let batch = if self.flights.is_full() {
            None
        } else {
            let Config { batch_messages, batch_bytes, .. } = *self.config;
            self.outbox.next_batch(batch_messages.min(self.most), batch_bytes)
        };
        let nop = self.handshake.nops > 0;
        let Some(batch) = batch else {
            if nop {
                self.stage_head(None);
            }
            return;
        };
        let is_pub = !nop && batch.count() == 1 && batch.defer().is_none();
        if is_pub && self.staged_pub && batch.same_context() {
            // The head of a PUB to the same topic is staged already.
            self.handshake.staging.rewind();
        } else {
            self.stage_head(Some(&batch));
            self.staged_pub = is_pub;
        }
        let commands =
            if batch.count() == 1 { &mut self.counters.pubs } else { &mut self.counters.mpubs };
        *commands = commands.wrapping_add(1);
        self.body_index = batch.index();
        self.body_left = batch.bytes() as usize;
        if self.flights.is_empty() {
            self.expect(now);
        }
        self.flights.push(batch.into());
    }

    #[inline(never)]
    fn stage_head(&mut self, batch: Option<&Batch>) {
        let Self { handshake, tx_buffer, outbox, .. } = self;
        let Dialed { staging, nops, .. } = &mut **handshake;
        staging.clear();
        staging.append(tx_buffer, |w| {
            if let Some(left) = nops.checked_sub(1) {
                // A NOP goes first.
                *nops = left;
                w.write_all(nsqd::NOP)?;
            }
            let Some(batch) = batch else { return Ok(()) };
            let topic = outbox.batch_topic();
            match batch.defer() {
                Some(defer) => nsqd::emit_dpub_head(w, topic, defer.as_millis()),
                None if batch.count() == 1 => nsqd::emit_pub_head(w, topic),
                None => nsqd::emit_mpub_head(w, topic, batch.bytes(), batch.count()),
            }
        });
        self.staged_pub = false;
    }

    #[inline(never)]
    fn on_part(&mut self, now: Instant, part: FramePart<'_>) -> Result<(), Fault> {
        let text = match part.frame_type {
            FrameType::Message => return self.fail(now, Fault::UnexpectedReply),
            FrameType::Error => self.detail.as_mut_view(),
            FrameType::Response => self.word.as_mut_view(),
        };
        let until = now.after(self.config.connect_timeout);
        match self.handshake.on_part(&part, text, self.config.auth_secret.is_some(), until) {
            Received::Nothing => Ok(()),
            Received::Heartbeat => {
                self.counters.heartbeats = self.counters.heartbeats.saturating_add(1);
                if self.handshake.lasted(now) {
                    self.lift();
                }
                Ok(())
            }
            Received::Ready => {
                self.on_ready(now);
                Ok(())
            }
            Received::Response if self.word.as_slice() == nsqd::OK => self.on_ok(now),
            Received::Response => self.fail(now, Fault::UnexpectedReply),
            Received::Refusal => self.on_error(now),
            Received::Fault(fault) => self.fail(now, fault),
        }
    }

    fn on_ready(&mut self, now: Instant) {
        self.handshake.on_receive(now, self.config.heartbeat);
        self.counters.connections = self.counters.connections.saturating_add(1);
        self.pending_event = Some(PendingEvent::Connected);
        self.changed();
    }

    /// Restarts the time in which the oldest batch has to be answered.
    fn expect(&mut self, now: Instant) {
        self.reply = now.after(self.config.reply_timeout);
    }

    /// Notes that the connection was useful: the next loss is followed by an immediate redial.
    fn prove_good(&mut self) {
        self.handshake.attempts.prove_good();
    }

    fn on_ok(&mut self, now: Instant) -> Result<(), Fault> {
        if self.flights.len() == 1 && self.is_half_written() {
            return self.fail(now, Fault::UnexpectedReply);
        }
        let Some(flight) = self.flights.pop() else {
            return self.fail(now, Fault::UnexpectedReply);
        };
        let (_, live) = self.resolve(&flight);
        self.counters.acknowledged = self.counters.acknowledged.wrapping_add(live.into());
        if live < flight.count() {
            let late = flight.count().wrapping_sub(live);
            self.counters.late = self.counters.late.wrapping_add(late.into());
        }
        self.prove_good();
        self.grow(flight.count());
        if self.flights.is_empty() {
            self.reply = Instant::NEVER;
        } else {
            self.expect(now);
        }
        Ok(())
    }

    /// Resolves the oldest batch. Returns the number of its first message, and how many of its
    /// messages were not final already.
    fn resolve(&mut self, flight: &Flight) -> (u64, u32) {
        let before = self.outbox.first() as u32;
        let resolved = self.outbox.resolve(flight);
        let _ = self.pass_suspects(before);
        self.refusals = 0;
        self.version = self.version.wrapping_add(1);
        resolved
    }

    /// Notes that head moved from message `before`, modulo 2^32, on. Returns whether the last suspect was passed.
    fn pass_suspects(&mut self, before: u32) -> bool {
        let (passed, were) = ((self.outbox.first() as u32).wrapping_sub(before), self.suspects);
        self.suspects = were.saturating_sub(passed);
        were > 0 && self.suspects == 0
    }

    /// Notes that head moved from message `before` on without success: once the messages of the
    /// refused batches are gone, the length of batches is not bounded by them any more.
    pub(super) fn clear_suspects(&mut self, before: u32) {
        if self.pass_suspects(before) {
            self.lift();
        }
    }

    /// Removes all bounds of the length of batches but the configured one.
    fn lift(&mut self) {
        (self.most, self.too_many, self.refusals) = (u32::MAX, u32::MAX, 0);
    }

    /// nsqd refused a batch of `count` messages: batches have at most half as many from now on.
    fn shrink(&mut self, count: u32) {
        self.suspects = self.suspects.max(count);
        (self.most, self.too_many) = (count >> 1, count);
        self.shrunk = true;
    }

    /// nsqd accepted a batch of `count` messages: the next may have twice as many.
    fn grow(&mut self, count: u32) {
        if count < self.most {
            return;
        }
        let twice = self.most.saturating_add(self.most);
        if twice < self.too_many {
            self.most = if twice < self.config.batch_messages { twice } else { u32::MAX };
        }
    }

    /// Handles an error frame. The error is about the oldest command in flight, if any, and nsqd
    /// closes the connection after it.
    #[cold]
    #[inline(never)]
    fn on_error(&mut self, now: Instant) -> Result<(), Fault> {
        let fault = self.handshake.refusal(&self.detail);
        let (code, text) = ErrorCode::parse(&self.detail);
        let about_deferral = text.starts_with(b"DPUB timeout");
        // The command was cut off on its way: the error is not about its messages.
        let cut_off = is_cut_off(text);
        let in_part = !is_nothing_stored(text);
        let Some(flight) = self.flights.first() else {
            return self.fail(now, fault);
        };
        if fault.is_permanent() {
            // The refusal is not about the messages.
            return self.fail(now, fault);
        }
        let meaning = code.meaning();
        let about_body = meaning == Meaning::Message && !cut_off;
        // True if nsqd would refuse these messages again.
        let refused = match meaning {
            Meaning::Topic => true,
            Meaning::Message => about_body && flight.count() == 1,
            Meaning::Command => about_deferral,
            Meaning::Channel
            | Meaning::Connection
            | Meaning::Auth
            | Meaning::Temporary
            | Meaning::InFlight => false,
        };
        if refused {
            let _ = self.flights.pop();
            let (first, live) = self.resolve(&flight);
            if live > 0 {
                self.exceptions.add(first, live, Outcome::Rejected(code));
            }
            self.counters.rejected = self.counters.rejected.wrapping_add(live.into());
            self.prove_good();
            // This message may have been the reason for which batches were refused.
            self.too_many = u32::MAX;
        } else if flight.count() > 1 && !cut_off {
            self.refusals = self.refusals.saturating_add(1);
            if about_body || self.refusals > 1 || self.most < u32::MAX {
                self.shrink(flight.count());
            }
            if code == ErrorCode::Mpub && in_part {
                self.counters.possible_duplicates =
                    self.counters.possible_duplicates.wrapping_add(flight.count().into());
            }
        }
        self.fail(now, fault)
    }

    /// Selects the nsqd to dial next and returns when.
    fn next_attempt(&mut self, now: Instant, refused: bool) -> Instant {
        if expire(&mut self.again, now) {
            self.left_out = [0; 32];
        }
        let current = usize::from(self.current);
        if refused {
            if let Some(bits) = self.left_out.get_mut(current >> 3) {
                *bits |= bit(current);
            }
            if self.again == Instant::NEVER {
                self.again = now.after(self.config.left_out_for.max(Span::from_secs(1)));
            }
        } else {
            self.failed = self.failed.saturating_add(1);
        }
        let at_once = core::mem::take(&mut self.shrunk) || refused;
        if !refused && self.handshake.attempts.is_good() {
            // The connection was good: dial the same nsqd again at once.
        } else {
            let count = self.nsqds.len();
            let left = (0..count).filter(|nsqd| !self.is_left_out(*nsqd));
            let left = left.fold(0usize, |count, _| count.saturating_add(1));
            loop {
                let next = usize::from(self.current).saturating_add(1);
                self.current = if next < count { next as u8 } else { 0 };
                if left == 0 || !self.is_left_out(self.current.into()) {
                    break;
                }
            }
            if left == 0 {
                return self.again;
            }
            if at_once || usize::from(self.failed) < left {
                return now;
            }
        }
        self.failed = 0;
        let Config { reconnect_base, reconnect_cap, reconnect_spread, .. } = *self.config;
        let spans = [reconnect_base, reconnect_cap, reconnect_spread];
        let short = core::mem::take(&mut self.short);
        now.after(self.handshake.attempts.delay(spans, short, &mut self.jitter))
    }
}

impl Session for Publisher<'_> {
    fn link(&self) -> Link {
        self.handshake.link()
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        if !self.handshake.dial(self.config.connect_timeout, now) {
            return None;
        }
        if expire(&mut self.again, now) {
            self.left_out = [0; 32];
        }
        self.changed();
        self.nsqd()
    }

    fn open(&mut self, now: Instant) {
        if self.handshake.open(self.config.connect_timeout, now) {
            self.abort_in_flight(Closed::Local);
            self.reply = Instant::NEVER;
            self.changed();
        }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        if !self.handshake.state().is_up() {
            return Ok(());
        }
        self.handshake.on_receive(now, self.config.heartbeat);
        while !input.is_empty() {
            // Nearly every frame; looked at first.
            if let Some(([0, 0, 0, 6, 0, 0, 0, 0, b'O', b'K'], rest)) = input.split_first_chunk()
                && self.handshake.frames.at_boundary()
                && self.handshake.state() == LinkState::Ready
            {
                self.on_ok(now)?;
                input = rest;
                continue;
            }
            match self.handshake.frames.next(&mut input) {
                Ok(Some(part)) => self.on_part(now, part)?,
                Ok(None) => {}
                Err(error) => return self.fail(now, error.into()),
            }
        }
        Ok(())
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        if !self.is_writing() {
            let idle = self.handshake.nops == 0 && self.outbox.all_sent();
            if idle && matches!(self.handshake.state(), LinkState::Ready) {
                // Nearly every call ends here.
                return Transmit::default();
            }
            self.stage(now);
        }
        Transmit {
            head: self.handshake.staging.pending(&self.tx_buffer),
            body: self.outbox.bytes(self.body_index, self.body_left),
        }
    }

    fn sent(&mut self, now: Instant, n: usize) {
        let batch = self.is_half_written();
        let head = self.handshake.staging.sent(n);
        let body = n.saturating_sub(head).min(self.body_left);
        self.body_left = self.body_left.saturating_sub(body);
        self.body_index = self.outbox.advance(self.body_index, body);
        if batch && n > 0 {
            // nsqd still accepts the batch; accepting a NOP shows nothing.
            self.expect(now);
        }
    }

    fn deadline(&self) -> Instant {
        self.handshake.deadline.min(self.reply).min(self.outbox.next_expiry())
    }

    fn tick(&mut self, now: Instant) {
        let before = self.outbox.first() as u32;
        let Self { exceptions, counters, version, .. } = self;
        self.outbox.expire(now, |first, count| {
            exceptions.add(first, count, Outcome::Expired);
            *version = version.wrapping_add(1);
            counters.expired = counters.expired.wrapping_add(count.into());
        });
        self.clear_suspects(before);
        let why = if expire(&mut self.reply, now) {
            Closed::Fault(Fault::TimedOut(Awaited::Reply))
        } else if let Some(why) = self.handshake.tick(now) {
            why
        } else {
            return;
        };
        self.close(now, why);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let Some(why) = self.handshake.closed(why) else { return };
        self.abort_in_flight(why);
        self.reply = Instant::NEVER;
        self.changed();
        if matches!(why, Closed::Local) {
            return;
        }
        self.counters.failures = self.counters.failures.saturating_add(1);
        self.pending_event = Some(PendingEvent::Disconnected(self.current, why));
        if self.handshake.lasted(now) {
            self.prove_good();
        }
        if self.handshake.attempts.is_good() {
            // A new round of nsqds begins.
            self.failed = 0;
            self.short = false;
        }
        let refused = matches!(why, Closed::Fault(fault) if fault.is_permanent());
        self.short |= self.handshake.came_up() && !refused;
        let until = self.next_attempt(now, refused);
        self.handshake.wait(until);
    }
}

/// Returns the bit of an nsqd in its byte of `left_out`.
pub(super) fn bit(nsqd: usize) -> u8 {
    1u8.unbounded_shl((nsqd & 7) as u32)
}
