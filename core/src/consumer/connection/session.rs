//! The session of one nsqd: its input, its output, and the next dial.

use core::convert::Infallible;

use super::{Connection, Filling, Timer};
use crate::address::Address;
use crate::consumer::config::{Exhausted, TooLarge};
use crate::consumer::engine::{count, count_long};
use crate::consumer::in_flight::{Answer, NoRoom};
use crate::consumer::leave::LeaveEvent;
use crate::consumer::rdy::SETTLE;
use crate::consumer::{Config, ConnectionEvent, Shared};
use crate::session::dialed::PendingEvent;
use crate::session::handshake::{Commands, REPLY_MAX, Received};
use crate::session::{Closed, Fault, Link, LinkState, Session, Transmit, staging};
use crate::time::{Backoff, Instant};
use crate::wire::nsqd::{self, ErrorCode, FramePart, FrameType, MessageHead};
use crate::wire::{ChunkWriter, DecodeError, Write};

/// The delay in milliseconds of a message that is requeued because it had no room.
const NO_ROOM_DELAY: u32 = 1000;

impl Commands for Shared<'_> {
    fn emit(&self, w: &mut ChunkWriter<'_>, state: LinkState) -> Result<(), Infallible> {
        let config = self.config;
        match state {
            LinkState::Identifying => {
                w.write_all(&nsqd::MAGIC)?;
                match self.identify {
                    Some(identify) => identify(config, w),
                    None => nsqd::emit_identify(w, &config.identify_request(), &[], &[]),
                }
            }
            LinkState::Authenticating => nsqd::emit_auth(w, config.auth_secret.unwrap_or_default()),
            _ => nsqd::emit_sub(w, &config.topic, &config.channel),
        }
    }
}

/// The session of one nsqd: a connection and the state that all connections share.
///
/// Made for each call by [`Consumer::connection`](crate::consumer::Consumer::connection); the state
/// is in the consumer.
#[derive(Debug)]
pub struct ConnectionSession<'s, 'a> {
    pub(in crate::consumer) connection: &'s mut Connection,
    pub(in crate::consumer) shared: &'s mut Shared<'a>,
    pub(in crate::consumer) id: u8,
}

impl ConnectionSession<'_, '_> {
    /// Returns the newest change of this connection that was not polled yet.
    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        match self.connection.handshake.take_pending_event() {
            PendingEvent::None => None,
            PendingEvent::Up => Some(ConnectionEvent::Connected),
            PendingEvent::Down => {
                let why = self.connection.handshake.why().unwrap_or(Closed::Local);
                if self.is_stale() && why != Closed::Local {
                    // The event would be taken for an event of the next nsqd.
                    return None;
                }
                Some(match why {
                    Closed::Fault(fault) if is_final(fault) => ConnectionEvent::LeftOut(fault),
                    _ => ConnectionEvent::Disconnected(why),
                })
            }
        }
    }

    /// Closes the connection because of a fault, which [`receive`](Session::receive) returns.
    pub(in crate::consumer) fn fail(&mut self, fault: Fault) {
        self.close(Closed::Fault(fault));
    }

    /// Asks the driver to close the connection.
    pub(in crate::consumer) fn close(&mut self, why: Closed) {
        self.connection.handshake.close(&why, self.shared.config.close_timeout, self.shared.now);
        self.abort_in_flight();
    }

    /// Removes the messages in flight, which nsqd delivers again.
    fn abort_in_flight(&mut self) {
        self.connection.timers.stop_all();
        self.shared.in_flight.forget(self.id);
        self.shared.rdy.leave(self.id);
        self.shared.adjust();
    }

    /// Returns whether the slot was assigned to another nsqd than that of the connection.
    fn is_stale(&self) -> bool {
        let serial = self.shared.nsqds.slot(self.id).map(|slot| slot.serial);
        serial != Some(self.connection.serial)
    }

    /// Makes the connection follow its slot to another nsqd, now or once it is closed.
    fn follow(&mut self) {
        let Some(slot) = self.shared.nsqds.slot_mut(self.id) else { return };
        if slot.serial == self.connection.serial {
            return;
        }
        match self.connection.handshake.state() {
            LinkState::Idle | LinkState::Waiting => {
                let handshake = &mut self.connection.handshake;
                if slot.is_open() {
                    handshake.deadline = Instant::NEVER;
                    return;
                }
                self.connection.serial = slot.serial;
                if handshake.why() != Some(Closed::Local) {
                    // The event would be taken for an event of the new nsqd.
                    handshake.pending_event = PendingEvent::None;
                }
                let wanted = !slot.is_empty();
                slot.busy = wanted;
                // The nsqd is untried: its first failure is followed by a wait, as long as the time
                // until another nsqd gets the slot.
                let level = self.shared.nsqds.level;
                handshake.attempts = Backoff::of(level.wrapping_add(1));
                if wanted {
                    handshake.wait(self.shared.now);
                } else {
                    handshake.rest();
                }
                self.shared.changed();
            }
            LinkState::Ready => self.leave(LeaveEvent::Unassigned),
            LinkState::Draining | LinkState::Leaving | LinkState::Closing => {}
            // The connection being established is no longer needed.
            LinkState::Dialing
            | LinkState::Upgrading
            | LinkState::Identifying
            | LinkState::Authenticating
            | LinkState::Subscribing
            | LinkState::Asking => self.close(Closed::Local),
        }
    }

    /// Handles an event that matters to leaving the connection.
    #[inline(never)]
    fn leave(&mut self, event: LeaveEvent) {
        if let Some(leave) = self.shared.leave {
            leave(self, event);
        }
    }

    fn stage(&mut self) {
        let Connection { handshake, tx_buffer, .. } = &mut *self.connection;
        handshake.staging.clear();
        if handshake.state().is_handshake() {
            handshake.stage_command(tx_buffer, self.shared);
        } else if handshake.state().is_subscribed() {
            self.stage_commands();
        }
    }

    fn stage_commands(&mut self) {
        if self.connection.handshake.nops > 0 {
            self.connection.handshake.nops = 0;
            self.connection.push(b"NOP", &[], None);
        }
        let is_ready = self.connection.handshake.state() == LinkState::Ready;
        if !is_ready {
            self.leave(LeaveEvent::Room);
        }
        let Self { connection, shared, id } = self;
        if is_ready && let Some(rdy) = shared.rdy.next(*id) {
            connection.push(b"RDY", &[], Some(rdy.into()));
            if shared.rdy.announced(*id, rdy) {
                connection.timers.set(Timer::Settle, shared.after(SETTLE));
            }
        }
        while connection.has_room()
            && let Some((at, answer)) = shared.in_flight.next_answer(*id)
            && let Some(message) = shared.in_flight.id(at)
        {
            connection.push_answer(message, answer);
            if answer == Answer::Touch {
                count(&mut shared.tally.touched);
                // nsqd's timeout restarts when TOUCH arrives, not when the application called.
                let due = shared.after(connection.due_after(shared.config));
                shared.in_flight.prolong(at, due);
            } else {
                shared.answered(*id);
            }
        }
        self.leave(LeaveEvent::Answered);
    }

    #[inline(never)]
    fn on_part(&mut self, part: FramePart<'_>) {
        if part.frame_type == FrameType::Message {
            return self.on_message(part);
        }
        if part.size > REPLY_MAX {
            return self
                .fail(Fault::Decode(DecodeError::BadLength { len: part.size, max: REPLY_MAX }));
        }
        let until = self.shared.after(self.shared.step_timeout);
        let has_secret = self.shared.config.auth_secret.is_some();
        let Connection { handshake, text, .. } = &mut *self.connection;
        match handshake.on_part(&part, text.as_mut_view(), has_secret, until) {
            Received::Nothing => {}
            Received::Heartbeat => {
                count(&mut self.shared.tally.heartbeats);
                if self.connection.handshake.lasted(self.shared.now) {
                    self.prove_good();
                }
            }
            Received::Ready => self.on_ready(),
            Received::Response if self.connection.handshake.state() == LinkState::Ready => {
                self.fail(Fault::UnexpectedReply);
            }
            Received::Response => self.leave(LeaveEvent::Response),
            Received::Refusal => self.on_error(),
            Received::Fault(fault) => self.fail(fault),
        }
    }

    fn on_ready(&mut self) {
        count(&mut self.shared.tally.connections);
        self.connection.handshake.pending_event = PendingEvent::Up;
        self.connection.handshake.forget_why();
        self.shared.nsqds.succeed(self.id);
        self.on_bytes();
        self.shared.rdy.join(self.id, self.connection.handshake.granted.max_rdy_count());
        self.shared.adjust();
        // Even if RDY stays 0: a task that waits for events must be woken.
        self.shared.changed();
    }

    fn on_bytes(&mut self) {
        self.connection.handshake.on_receive(self.shared.now, self.shared.config.heartbeat);
    }

    /// Records that the connection works: its loss is followed by an immediate dial.
    fn prove_good(&mut self) {
        self.connection.handshake.attempts.prove_good();
    }

    fn on_error(&mut self) {
        let (code, _) = ErrorCode::parse(&self.connection.text);
        if code.is_fatal() || !self.connection.handshake.state().is_subscribed() {
            return self.fail(self.connection.handshake.refusal(&self.connection.text));
        }
        // nsqd had requeued the message before the answer arrived.
        count(&mut self.shared.tally.refused);
    }

    fn on_message(&mut self, part: FramePart<'_>) {
        if part.first {
            if !self.connection.handshake.state().is_subscribed() {
                return self.fail(Fault::UnexpectedReply);
            }
            if part.size < MessageHead::LEN as u32 {
                return self.fail(Fault::Decode(DecodeError::ShortMessage { len: part.size }));
            }
            self.connection.have = 0;
            self.connection.text.clear();
            self.connection.filling = match self.shared.in_flight.reserve(self.id, part.size) {
                Ok(slot) => Filling::Slot(slot),
                Err(why) => Filling::Skip(why),
            };
            self.shared.rdy.delivered(self.id);
            self.prove_good();
        }
        match self.connection.filling {
            Filling::Slot(slot) => {
                self.shared.in_flight.fill(slot, self.connection.have, part.data);
                self.connection.have = self.connection.have.wrapping_add(part.data.len() as u32);
            }
            Filling::Skip(_) => staging::append(&mut self.connection.text, part.data),
        }
        if part.last {
            match self.connection.filling {
                Filling::Slot(slot) => self.on_arrived(slot),
                Filling::Skip(why) => self.on_skipped(why),
            }
        }
    }

    fn on_arrived(&mut self, slot: u16) {
        let shared = &mut *self.shared;
        count_long(&mut shared.tally.received);
        let end = shared.after(self.connection.max_msg_timeout());
        let due = shared.after(self.connection.due_after(shared.config)).min(end);
        if shared.in_flight.arrived(slot, due, end) {
            count(&mut shared.tally.timed_out);
            shared.rdy.answered(self.id, 1);
        }
        self.connection.due_by(due);
        self.leave(LeaveEvent::Arrived);
        // A long message takes several slots, which lowers the limit.
        self.shared.adjust();
        self.shared.changed();
    }

    /// Answers a message that had no room at once, if there is room for the answer.
    fn on_skipped(&mut self, why: NoRoom) {
        let shared = &mut *self.shared;
        let Some((attempts, id)) = MessageHead::parse_brief(&self.connection.text) else { return };
        let config = shared.config;
        let mut answer = Answer::Requeue(NO_ROOM_DELAY);
        match why {
            NoRoom::Now => count(&mut shared.tally.no_room),
            NoRoom::Ever => {
                count(&mut shared.tally.too_large);
                let exhausted =
                    config.is_exhausted(attempts) && config.exhausted == Exhausted::Finish;
                if exhausted {
                    shared.give_up(id, attempts);
                }
                answer = if exhausted || config.too_large == TooLarge::Finish {
                    Answer::Finish
                } else {
                    Answer::Requeue(config.requeue_delay(attempts))
                };
            }
        }
        if self.connection.has_room() {
            self.connection.push_answer(&id.0, answer);
        } else {
            // nsqd requeues the message after its timeout.
            count(&mut shared.tally.unanswered);
        }
        shared.answered(self.id);
        self.leave(LeaveEvent::Answered);
    }

    /// Sets the time of the next dial after the connection failed or broke.
    fn wait(&mut self, why: Closed) {
        let Config { reconnect_base, reconnect_cap, reconnect_spread, .. } = *self.shared.config;
        let spans = [reconnect_base, reconnect_cap, reconnect_spread];
        let now = self.shared.now;
        let mut delay = self.connection.handshake.delay(spans, now, &mut self.shared.jitter);
        let left_out = matches!(why, Closed::Fault(fault) if is_final(fault));
        if left_out {
            delay = self.shared.config.left_out_for;
        }
        self.connection.handshake.wait(now.after(delay));
        if left_out || self.connection.handshake.attempts.is_failing() {
            self.shared.reassign_slots(Some(self.id));
        }
    }
}

/// Returns whether nsqd would refuse every further attempt.
fn is_final(fault: Fault) -> bool {
    let named = matches!(fault, Fault::Refused(ErrorCode::BadTopic | ErrorCode::BadChannel));
    named || fault.is_permanent()
}

impl Session for ConnectionSession<'_, '_> {
    fn link(&self) -> Link {
        self.connection.handshake.link()
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        self.shared.now = now;
        self.follow();
        if !self.connection.handshake.dial(self.shared.step_timeout, now) {
            return None;
        }
        self.shared.nsqds.address(self.id)
    }

    fn open(&mut self, now: Instant) {
        self.shared.now = now;
        self.follow();
        if self.connection.handshake.open(self.shared.step_timeout, now) {
            self.abort_in_flight();
        }
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.shared.now = now;
        let mut input = bytes;
        if !self.connection.handshake.state().is_up() {
            return Ok(());
        }
        self.on_bytes();
        while self.connection.handshake.state().is_up() {
            match self.connection.handshake.frames.next(&mut input) {
                Ok(Some(part)) => self.on_part(part),
                Ok(None) => return Ok(()),
                Err(error) => self.fail(error.into()),
            }
        }
        match self.connection.handshake.why() {
            Some(Closed::Fault(fault)) => Err(fault),
            _ => Ok(()),
        }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.shared.now = now;
        if !self.connection.handshake.staging.is_writing() {
            self.follow();
            self.stage();
        }
        Transmit {
            head: self.connection.handshake.staging.pending(&self.connection.tx_buffer),
            body: &[],
        }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        self.connection.handshake.staging.sent(n);
    }

    fn deadline(&self) -> Instant {
        let own = self.connection.timers.next().min(self.connection.handshake.deadline);
        match self.connection.handshake.state() {
            LinkState::Idle => own,
            // The slot was reassigned: close at once.
            state if state.is_coming_up() && self.is_stale() => Instant::ZERO,
            _ => own.min(self.shared.deadline()),
        }
    }

    fn tick(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.tick();
        self.follow();
        if self.connection.timers.expired(Timer::Settle, now) {
            self.shared.rdy.settle(self.id);
            self.shared.changed();
        }
        if self.connection.timers.expired(Timer::Due, now) {
            let Self { connection, shared, id } = self;
            let touch = shared.config.auto_touch.then(|| connection.due_after(shared.config));
            let (expired, next) = shared.in_flight.expire(*id, now, touch);
            shared.tally.timed_out = shared.tally.timed_out.saturating_add(expired.into());
            shared.rdy.answered(*id, expired);
            connection.timers.set(Timer::Due, next);
            shared.adjust();
            shared.changed();
        }
        if let Some(why) = self.connection.handshake.tick(now) {
            if self.connection.handshake.state() > LinkState::Ready {
                self.leave(LeaveEvent::Late);
            } else {
                self.close(why);
            }
        }
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        self.shared.now = now;
        let stale = self.is_stale();
        let why = if stale { Closed::Local } else { why };
        let Some(why) = self.connection.handshake.closed(why) else { return };
        self.abort_in_flight();
        if why != Closed::Local {
            count(&mut self.shared.tally.failures);
        }
        if stale {
            self.connection.handshake.wait(Instant::NEVER);
            self.follow();
        } else {
            self.wait(why);
        }
        self.shared.changed();
    }
}
