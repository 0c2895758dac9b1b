//! One nsqd as a consumer sees it.

use core::convert::Infallible;

use embedded_io::Write;
use heapless::Vec;

use super::config::{Exhausted, TooLarge};
use super::store::{Answer, NoRoom};
use super::window::SETTLE;
use super::{Config, ConnectionEvent, ConnectionState, ConnectionStatus, DETAIL_MAX, Shared};
use crate::address::Address;
use crate::macros::trace_state;
use crate::session::{Awaited, Closed, DialError, Fault, Link, Session, Transmit, keep};
use crate::time::{Instant, Span, TimerId, Timers};
use crate::wire::Window;
use crate::wire::v2::hello;
use crate::wire::v2::{
    self, ErrorCode, FrameDecoder, FramePart, FrameType, GrantedScanner, MessageHead,
};

/// Longest answer to IDENTIFY or AUTH that is read; everything else but messages is far shorter.
const REPLY_MAX: u32 = 16 * 1024;

/// Takes two of the longest commands after the handshake, three FIN, and a NOP.
const STAGING: usize = 72;

/// The longest command after the handshake: a REQ.
const COMMAND_MAX: usize = 32;

/// How long a message waits that had no room. It was not to come.
const NO_ROOM_DELAY: u32 = 1000;

/// A connection to one nsqd.
#[derive(Debug)]
pub(super) struct Connection {
    state: ConnectionState,
    /// Why it is closing, or was closed last.
    why: Option<Closed>,
    news: Option<News>,
    /// The seat's, when it was followed last.
    serial: u16,
    /// A heartbeat is to be answered.
    nop: bool,
    cls: Cls,
    staged: u8,
    written: u8,
    timers: Timers<Timer, 3>,
    /// Attempts to connect since it was good.
    attempts: u8,
    frames: FrameDecoder,
    desk: Desk,
    /// What nsqd says in the frame being read, as far as it matters: of a message that is skipped
    /// its head. An error's stays.
    text: Vec<u8, DETAIL_MAX, u8>,
    /// How much of the handshake's current command was staged, and its length once known.
    handshake_at: u16,
    handshake_len: u16,
    /// The message being received: where to, and how much of it is there.
    filling: Filling,
    have: u32,
    msg_timeout: Span,
    max_msg_timeout: Span,
}

/// Where a message goes as it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Filling {
    Slot(u16),
    /// There is no room for it.
    Skip(NoRoom),
}

/// What is written, or the answer to IDENTIFY, which is read when nothing is.
#[derive(Debug)]
enum Desk {
    Writing([u8; STAGING]),
    Identifying(GrantedScanner),
}

impl Desk {
    fn staging(&mut self) -> &mut [u8] {
        if let Self::Identifying(_) = self {
            *self = Self::Writing([0; STAGING]);
        }
        match self {
            Self::Writing(staging) => staging,
            Self::Identifying(_) => &mut [],
        }
    }
}

/// How far leaving nsqd has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cls {
    Unsent,
    Sent,
    /// nsqd delivers nothing more.
    Confirmed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    Connected,
    Disconnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Waiting: dial. Dialing to Subscribing: give up. Ready: nothing heard. Draining: requeue the
    /// rest. Leaving, Closing: give up.
    Step,
    /// Ready to Leaving: a message is to be touched, or given up.
    Due,
    /// Ready to Leaving: what RDY allowed before has come.
    Settle,
}

impl TimerId for Timer {
    const ALL: &'static [Self] = &[Self::Step, Self::Due, Self::Settle];

    fn index(self) -> usize {
        self as usize
    }
}

impl Connection {
    /// For storage.
    pub(super) const NEW: Self = Self {
        state: ConnectionState::Unused,
        why: None,
        news: None,
        serial: 0,
        nop: false,
        cls: Cls::Unsent,
        staged: 0,
        written: 0,
        timers: Timers::new(),
        attempts: 0,
        frames: FrameDecoder::new(0),
        desk: Desk::Writing([0; STAGING]),
        text: Vec::new(),
        handshake_at: 0,
        handshake_len: 0,
        filling: Filling::Skip(NoRoom::Now),
        have: 0,
        msg_timeout: Span::ZERO,
        max_msg_timeout: Span::ZERO,
    };

    pub(super) fn state(&self) -> ConnectionState {
        self.state
    }

    pub(super) fn status<'s>(&'s self, shared: &'s Shared<'_>, id: u8) -> ConnectionStatus<'s> {
        ConnectionStatus {
            address: shared.directory.address(id),
            state: self.state,
            rdy: shared.window.rdy(id),
            in_flight: shared.window.in_flight(id),
            last: self.why,
            detail: if self.text.starts_with(b"E_") {
                core::str::from_utf8(&self.text).unwrap_or_default()
            } else {
                ""
            },
        }
    }

    fn set_state(&mut self, state: ConnectionState) {
        trace_state!("consumer", self.state, state);
        self.state = state;
    }

    fn is_writing(&self) -> bool {
        self.written < self.staged
    }

    /// Whether the handshake's current command is wholly written: an answer is due only then.
    fn has_asked(&self) -> bool {
        self.handshake_len > 0 && self.handshake_at >= self.handshake_len && !self.is_writing()
    }

    /// Whether nsqd takes FIN, REQ and TOUCH.
    fn is_subscribed(&self) -> bool {
        match self.state {
            ConnectionState::Ready | ConnectionState::Draining | ConnectionState::Leaving => true,
            ConnectionState::Unused
            | ConnectionState::Waiting
            | ConnectionState::Dialing
            | ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing
            | ConnectionState::Closing => false,
        }
    }

    fn handshake(&mut self, now: Instant, config: &Config<'_>, state: ConnectionState) {
        self.handshake_at = 0;
        self.handshake_len = 0;
        self.timers.set(Timer::Step, now.after(config.connect_timeout));
        self.set_state(state);
    }

    /// The handshake's text is longer than the staging area: it is made again for each piece.
    // Apart, so that its frame is not under every poll.
    #[inline(never)]
    fn stage_handshake(&mut self, config: &Config<'_>) {
        let mut window = Window::new(self.desk.staging(), self.handshake_at.into());
        let Ok(()) = emit_handshake(&mut window, self.state, config);
        let staged = window.written();
        self.handshake_len = window.total() as u16;
        self.staged = staged as u8;
        self.handshake_at = self.handshake_at.saturating_add(staged as u16);
    }

    /// Puts one command behind what is staged.
    fn push(&mut self, emit: impl FnOnce(&mut Window<'_>) -> Result<(), Infallible>) {
        let staged = usize::from(self.staged);
        let room = self.desk.staging().get_mut(staged..).unwrap_or_default();
        let mut window = Window::new(room, 0);
        let Ok(()) = emit(&mut window);
        self.staged = self.staged.saturating_add(window.written() as u8);
    }

    fn has_room(&self) -> bool {
        usize::from(self.staged).saturating_add(COMMAND_MAX) <= STAGING
    }

    fn push_answer(&mut self, id: v2::MessageId, answer: Answer) {
        self.push(|window| match answer {
            Answer::Finish => v2::emit_fin(window, &id),
            Answer::Requeue(delay) => v2::emit_req(window, &id, delay),
            Answer::Touch => v2::emit_touch(window, &id),
        });
    }
}

/// The command that a state of the handshake sends.
fn emit_handshake(
    window: &mut Window<'_>,
    state: ConnectionState,
    config: &Config<'_>,
) -> Result<(), Infallible> {
    match state {
        ConnectionState::Identifying => config.emit_identify(window),
        ConnectionState::Authenticating => {
            hello::emit_auth(window, config.auth_secret.unwrap_or_default())
        }
        _ => v2::emit_sub(window, &config.topic, &config.channel),
    }
}

/// A connection with what it shares with the others: the session of one nsqd.
///
/// Made for each call by [`Consumer::connection`](super::Consumer::connection); the state is in
/// the consumer.
#[derive(Debug)]
pub struct ConnectionSession<'s, 'a> {
    pub(super) connection: &'s mut Connection,
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) id: u8,
}

impl ConnectionSession<'_, '_> {
    /// The newest change of this connection that nobody polled yet.
    pub fn poll_event(&mut self) -> Option<ConnectionEvent> {
        Some(match self.connection.news.take()? {
            News::Connected => ConnectionEvent::Connected,
            News::Disconnected => {
                ConnectionEvent::Disconnected(self.connection.why.unwrap_or(Closed::Local))
            }
        })
    }

    fn fail(&mut self, now: Instant, fault: Fault) -> Result<(), Fault> {
        self.close(now, Closed::Fault(fault));
        Err(fault)
    }

    /// Asks the driver to close the connection.
    fn close(&mut self, now: Instant, why: Closed) {
        self.connection.why = Some(why);
        self.connection.nop = false;
        if why != Closed::Local {
            self.connection.staged = self.connection.written;
        }
        self.connection.timers.stop_all();
        let deadline = now.after(self.shared.config.close_timeout);
        self.connection.timers.set(Timer::Step, deadline);
        self.connection.set_state(ConnectionState::Closing);
        self.land(now);
    }

    /// Nothing is in flight any more.
    fn land(&mut self, now: Instant) {
        self.shared.store.forget(self.id);
        self.shared.window.leave(self.id);
        self.shared.adjust(now);
    }

    /// Whether the seat is, or was, for somebody else.
    fn is_stale(&self) -> bool {
        let serial = self.shared.directory.seat(self.id).map(|seat| seat.serial);
        serial != Some(self.connection.serial)
    }

    /// Makes the connection follow its seat.
    fn follow(&mut self, now: Instant) {
        if !self.is_stale() {
            return;
        }
        let Some(seat) = self.shared.directory.seat(self.id) else { return };
        match self.connection.state {
            ConnectionState::Unused | ConnectionState::Waiting => {
                self.connection.serial = seat.serial;
                let wanted = !seat.is_empty();
                // A wait after a failure goes on, and grows: else several nsqds that are down would
                // be dialed in turn without a pause.
                if !wanted || !self.connection.timers.is_set(Timer::Step) {
                    // Nothing is known of it yet: the first failure is followed by a wait.
                    self.connection.attempts = 1;
                    self.connection.timers.stop_all();
                    if wanted {
                        self.connection.timers.set(Timer::Step, now);
                    }
                }
                let state =
                    if wanted { ConnectionState::Waiting } else { ConnectionState::Unused };
                self.connection.set_state(state);
                self.set_busy(false);
                self.shared.changed();
            }
            ConnectionState::Ready => {
                self.shared.window.retire(self.id);
                self.shared.adjust(now);
                if self.shared.stopping {
                    self.shared.store.recall(self.id, false);
                }
                let drain = now.after(self.shared.config.drain_timeout);
                self.connection.timers.set(Timer::Step, drain);
                self.connection.timers.set(Timer::Settle, now.after(SETTLE));
                self.connection.set_state(ConnectionState::Draining);
            }
            // The link says that they are to be closed.
            ConnectionState::Dialing
            | ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing
            // They are about to be.
            | ConnectionState::Draining
            | ConnectionState::Leaving
            | ConnectionState::Closing => {}
        }
    }

    fn set_busy(&mut self, busy: bool) {
        if let Some(seat) = self.shared.directory.seat_mut(self.id) {
            seat.busy = busy;
        }
    }

    fn stage(&mut self, now: Instant) {
        self.connection.staged = 0;
        self.connection.written = 0;
        match self.connection.state {
            ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing => {
                // Once all of it is written, the desk may hold a part of the answer.
                if !self.connection.has_asked() {
                    self.connection.stage_handshake(self.shared.config);
                }
            }
            ConnectionState::Ready | ConnectionState::Draining | ConnectionState::Leaving => {
                self.stage_commands(now);
            }
            ConnectionState::Unused
            | ConnectionState::Waiting
            | ConnectionState::Dialing
            | ConnectionState::Closing => {}
        }
    }

    fn stage_commands(&mut self, now: Instant) {
        let Self { connection, shared, id } = self;
        if connection.nop {
            connection.nop = false;
            connection.push(|window| window.write_all(b"NOP\n"));
        }
        if connection.state == ConnectionState::Ready {
            if let Some(rdy) = shared.window.next(*id) {
                connection.push(|window| v2::emit_rdy(window, rdy.into()));
                if shared.window.told(*id, rdy) {
                    connection.timers.set(Timer::Settle, now.after(SETTLE));
                }
            }
        } else if connection.cls == Cls::Unsent {
            connection.cls = Cls::Sent;
            connection.push(|window| window.write_all(b"CLS\n"));
        }
        while connection.has_room()
            && let Some((message, answer)) = shared.store.next_answer(*id)
        {
            connection.push_answer(message, answer);
            if answer == Answer::Touch {
                shared.tally.touched = shared.tally.touched.saturating_add(1);
            } else {
                shared.answered(now, *id);
            }
        }
        self.leave_if_done(now);
    }

    /// Closes once nothing is in flight any more and nsqd has confirmed that nothing comes.
    fn leave_if_done(&mut self, now: Instant) {
        let left = self.shared.window.in_flight(self.id) == 0;
        let done = match self.connection.state {
            ConnectionState::Draining => left && self.connection.cls == Cls::Confirmed,
            ConnectionState::Leaving => left,
            _ => false,
        };
        if done {
            self.close(now, Closed::Local);
        }
    }

    fn on_part(&mut self, now: Instant, part: FramePart<'_>) -> Result<(), Fault> {
        if part.frame_type == FrameType::Message {
            return self.on_message(now, part);
        }
        if part.first {
            if part.size > REPLY_MAX {
                return self.fail(now, Fault::BadLength { len: part.size, max: REPLY_MAX });
            }
            self.connection.text.clear();
            if part.frame_type == FrameType::Response
                && self.connection.state == ConnectionState::Identifying
            {
                if !self.connection.has_asked() {
                    return self.fail(now, Fault::UnexpectedReply);
                }
                self.connection.desk = Desk::Identifying(GrantedScanner::new());
            }
        }
        keep(&mut self.connection.text, part.data);
        if part.frame_type == FrameType::Response
            && let Desk::Identifying(negotiated) = &mut self.connection.desk
        {
            negotiated.feed(part.data);
        }
        if !part.last {
            return Ok(());
        }
        if part.frame_type == FrameType::Error {
            return self.on_error(now);
        }
        if self.connection.text.as_slice() == v2::HEARTBEAT {
            self.shared.tally.heartbeats = self.shared.tally.heartbeats.saturating_add(1);
            self.connection.nop = true;
            self.prove_good();
            return Ok(());
        }
        self.on_response(now)
    }

    fn on_response(&mut self, now: Instant) -> Result<(), Fault> {
        let config = self.shared.config;
        let asked = self.connection.has_asked();
        match self.connection.state {
            ConnectionState::Identifying if asked => {
                let answer = match &mut self.connection.desk {
                    Desk::Identifying(negotiated) => negotiated.finish(),
                    Desk::Writing(_) => Err(Fault::BadIdentifyReply),
                };
                let Ok(negotiated) = answer else {
                    return self.fail(now, Fault::BadIdentifyReply);
                };
                self.connection.msg_timeout = Span::from_millis(negotiated.msg_timeout_ms.max(1));
                self.connection.max_msg_timeout =
                    Span::from_millis(negotiated.max_msg_timeout_ms.max(1));
                self.connection.have = negotiated.max_rdy_count;
                let next = match (negotiated.auth_required, config.auth_secret) {
                    (false, _) => ConnectionState::Subscribing,
                    (true, Some(_)) => ConnectionState::Authenticating,
                    (true, None) => return self.fail(now, Fault::AuthRequired),
                };
                self.connection.handshake(now, config, next);
            }
            ConnectionState::Authenticating if asked => {
                self.connection.handshake(now, config, ConnectionState::Subscribing);
            }
            ConnectionState::Subscribing if asked && self.connection.text.as_slice() == v2::OK => {
                self.on_ready(now);
            }
            ConnectionState::Draining | ConnectionState::Leaving
                if self.connection.cls == Cls::Sent
                    && self.connection.text.as_slice() == v2::CLOSE_WAIT =>
            {
                self.connection.cls = Cls::Confirmed;
                self.leave_if_done(now);
            }
            _ => return self.fail(now, Fault::UnexpectedReply),
        }
        Ok(())
    }

    fn on_ready(&mut self, now: Instant) {
        self.shared.tally.connections = self.shared.tally.connections.saturating_add(1);
        self.connection.news = Some(News::Connected);
        self.connection.why = None;
        self.hear(now);
        self.connection.set_state(ConnectionState::Ready);
        // Above what a share counts there is nothing to want.
        let cap = u16::try_from(self.connection.have).unwrap_or(u16::MAX);
        self.shared.window.join(self.id, cap);
        self.shared.adjust(now);
        // Also if nothing is wanted of it: who waits for events is to hear of it.
        self.shared.changed();
    }

    /// Two intervals: nsqd's own rule for its clients.
    fn hear(&mut self, now: Instant) {
        let silence = self.shared.config.heartbeat.as_millis().saturating_mul(2);
        self.connection.timers.set(Timer::Step, now.after(Span::from_millis(silence)));
    }

    /// nsqd does what it is there for: the next loss is followed by an immediate redial.
    fn prove_good(&mut self) {
        self.connection.attempts = 0;
        if let Some(seat) = self.shared.directory.seat_mut(self.id) {
            seat.fails = false;
        }
    }

    fn on_error(&mut self, now: Instant) -> Result<(), Fault> {
        let (code, _) = ErrorCode::parse(&self.connection.text);
        if code.is_fatal() || !self.connection.is_subscribed() {
            return self.fail(now, Fault::Refused(code));
        }
        // nsqd took the message back before the answer came.
        self.shared.tally.refused = self.shared.tally.refused.saturating_add(1);
        Ok(())
    }

    fn on_message(&mut self, now: Instant, part: FramePart<'_>) -> Result<(), Fault> {
        if part.first {
            if !self.connection.is_subscribed() {
                return self.fail(now, Fault::UnexpectedReply);
            }
            if part.size < MessageHead::LEN as u32 {
                return self.fail(now, Fault::ShortMessage { len: part.size });
            }
            self.connection.have = 0;
            self.connection.text.clear();
            self.connection.filling = match self.shared.store.reserve(self.id, part.size) {
                Ok(slot) => Filling::Slot(slot),
                Err(why) => Filling::Skip(why),
            };
            self.shared.window.delivered(self.id);
            self.prove_good();
        }
        match self.connection.filling {
            Filling::Slot(slot) => {
                self.shared.store.fill(slot, self.connection.have, part.data);
                self.connection.have = self.connection.have.saturating_add(part.data.len() as u32);
            }
            Filling::Skip(_) => keep(&mut self.connection.text, part.data),
        }
        if part.last {
            match self.connection.filling {
                Filling::Slot(slot) => self.on_arrived(now, slot),
                Filling::Skip(why) => self.on_skipped(now, why),
            }
        }
        Ok(())
    }

    fn on_arrived(&mut self, now: Instant, slot: u16) {
        let shared = &mut *self.shared;
        shared.tally.received = shared.tally.received.saturating_add(1);
        let end = now.after(self.connection.max_msg_timeout);
        let due = now.after(self.connection.due_after(shared.config)).min(end);
        if shared.store.arrived(slot, due, end) {
            shared.tally.timed_out = shared.tally.timed_out.saturating_add(1);
            shared.window.answered(self.id);
        }
        self.connection.due_by(due);
        if shared.stopping {
            shared.store.recall(self.id, false);
        }
        // It may have taken more than its part.
        shared.adjust(now);
        shared.changed();
    }

    /// A message had no room: it is answered at once, if there is room for that.
    fn on_skipped(&mut self, now: Instant, why: NoRoom) {
        let shared = &mut *self.shared;
        let Some((head, _)) = MessageHead::parse(&self.connection.text) else { return };
        let config = shared.config;
        let answer = match why {
            NoRoom::Now => {
                shared.tally.no_room = shared.tally.no_room.saturating_add(1);
                Answer::Requeue(NO_ROOM_DELAY)
            }
            NoRoom::Ever => {
                shared.tally.too_large = shared.tally.too_large.saturating_add(1);
                let exhausted =
                    config.is_exhausted(head.attempts) && config.exhausted == Exhausted::Finish;
                if exhausted {
                    shared.give_up(&head);
                }
                if exhausted || config.too_large == TooLarge::Finish {
                    Answer::Finish
                } else {
                    Answer::Requeue(config.requeue_delay(head.attempts))
                }
            }
        };
        if self.connection.has_room() {
            self.connection.push_answer(head.id, answer);
        } else {
            // nsqd takes it back when its time is up.
            shared.tally.unanswered = shared.tally.unanswered.saturating_add(1);
        }
        shared.answered(now, self.id);
        self.leave_if_done(now);
    }

    /// The seat's nsqd did not come up, or broke.
    fn wait(&mut self, now: Instant) {
        let mut backoff = self.shared.config.backoff().resume(self.connection.attempts);
        let delay = backoff.next_delay(&mut self.shared.jitter);
        self.connection.attempts = backoff.attempts();
        let fails = self.connection.attempts > 2;
        self.connection.timers.set(Timer::Step, now.after(delay));
        self.connection.set_state(ConnectionState::Waiting);
        if let Some(seat) = self.shared.directory.seat_mut(self.id) {
            seat.busy = false;
            if fails && !seat.fails {
                seat.fails = true;
                self.shared.offer_given(now);
            }
        }
    }
}

impl Connection {
    /// How long after a message came it is to be touched, or given up.
    pub(super) fn due_after(&self, config: &Config<'_>) -> Span {
        if config.auto_touch {
            Span::from_millis(self.msg_timeout.as_millis() >> 1)
        } else {
            self.msg_timeout
        }
    }

    pub(super) fn due_by(&mut self, due: Instant) {
        if self.timers.get(Timer::Due) > due {
            self.timers.set(Timer::Due, due);
        }
    }
}

impl Session for ConnectionSession<'_, '_> {
    fn link(&self) -> Link {
        match self.connection.state {
            ConnectionState::Unused | ConnectionState::Waiting => Link::Down,
            ConnectionState::Dialing
            | ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing => {
                if self.is_stale() {
                    Link::Close
                } else {
                    Link::Up
                }
            }
            ConnectionState::Ready | ConnectionState::Draining | ConnectionState::Leaving => {
                Link::Up
            }
            ConnectionState::Closing => Link::Close,
        }
    }

    fn dial(&mut self, now: Instant) -> Option<&Address> {
        self.follow(now);
        if self.connection.state != ConnectionState::Waiting
            || !self.connection.timers.expired(Timer::Step, now)
        {
            return None;
        }
        self.shared.directory.address(self.id)?;
        self.set_busy(true);
        self.connection.handshake(now, self.shared.config, ConnectionState::Dialing);
        self.shared.directory.address(self.id)
    }

    fn open(&mut self, now: Instant) {
        self.land(now);
        let connection = &mut *self.connection;
        connection.frames = FrameDecoder::new(u32::MAX);
        connection.text.clear();
        connection.nop = false;
        connection.cls = Cls::Unsent;
        connection.staged = 0;
        connection.written = 0;
        connection.timers.stop_all();
        connection.handshake(now, self.shared.config, ConnectionState::Identifying);
        self.set_busy(true);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        if self.connection.state == ConnectionState::Ready {
            self.hear(now);
        }
        loop {
            match self.connection.state {
                ConnectionState::Identifying
                | ConnectionState::Authenticating
                | ConnectionState::Subscribing
                | ConnectionState::Ready
                | ConnectionState::Draining
                | ConnectionState::Leaving => {}
                ConnectionState::Unused
                | ConnectionState::Waiting
                | ConnectionState::Dialing
                | ConnectionState::Closing => return Ok(()),
            }
            match self.connection.frames.next(&mut input) {
                Ok(Some(part)) => self.on_part(now, part)?,
                Ok(None) => return Ok(()),
                Err(fault) => return self.fail(now, fault),
            }
        }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        if !self.connection.is_writing() {
            self.follow(now);
            self.stage(now);
        }
        let pending = self.connection.written.into()..self.connection.staged.into();
        let head = match &self.connection.desk {
            Desk::Writing(staging) => staging.get(pending).unwrap_or_default(),
            Desk::Identifying(_) => &[],
        };
        Transmit { head, body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        let connection = &mut *self.connection;
        let n = n.min(connection.staged.saturating_sub(connection.written).into());
        connection.written = connection.written.saturating_add(n as u8);
    }

    fn deadline(&self) -> Instant {
        let seat = self.shared.directory.seat(self.id).map(|seat| seat.leaves);
        let common = match self.connection.state {
            ConnectionState::Unused => Instant::NEVER,
            _ => self.shared.deadline(),
        };
        let own = self.connection.timers.next();
        own.min(seat.unwrap_or(Instant::NEVER)).min(common)
    }

    fn tick(&mut self, now: Instant) {
        self.shared.tick(now, self.id);
        self.follow(now);
        if self.connection.timers.expired(Timer::Settle, now) {
            self.shared.window.settle(self.id);
            self.shared.changed();
        }
        if self.connection.timers.expired(Timer::Due, now) {
            let Self { connection, shared, id } = self;
            let touch = shared.config.auto_touch.then(|| connection.due_after(shared.config));
            let window = &mut shared.window;
            let tally = &mut shared.tally;
            let next = shared.store.expire(*id, now, touch, || {
                window.answered(*id);
                tally.timed_out = tally.timed_out.saturating_add(1);
            });
            connection.timers.set(Timer::Due, next);
            shared.adjust(now);
            shared.changed();
        }
        match self.connection.state {
            // It stays due until it is dialed, or aborted.
            ConnectionState::Waiting | ConnectionState::Closing => return,
            _ if !self.connection.timers.expired(Timer::Step, now) => return,
            _ => {}
        }
        match self.connection.state {
            ConnectionState::Dialing => self.close(now, Closed::Dial(DialError::TimedOut)),
            ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing => {
                self.close(now, Closed::Fault(Fault::TimedOut(Awaited::Handshake)));
            }
            ConnectionState::Ready => {
                self.close(now, Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)));
            }
            ConnectionState::Draining => {
                self.shared.store.recall(self.id, true);
                let leave = now.after(self.shared.config.close_timeout);
                self.connection.timers.set(Timer::Step, leave);
                self.connection.set_state(ConnectionState::Leaving);
                self.shared.changed();
            }
            ConnectionState::Leaving => self.close(now, Closed::Local),
            ConnectionState::Closing | ConnectionState::Unused | ConnectionState::Waiting => {}
        }
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        let why = match self.connection.state {
            ConnectionState::Unused | ConnectionState::Waiting => return,
            // What the session itself had against the connection is the better reason.
            ConnectionState::Closing => self.connection.why.unwrap_or(why),
            _ if self.is_stale() => Closed::Local,
            _ => why,
        };
        self.connection.why = Some(why);
        self.connection.staged = 0;
        self.connection.written = 0;
        self.connection.timers.stop_all();
        self.connection.news = Some(News::Disconnected);
        self.land(now);
        if why != Closed::Local {
            self.shared.tally.failures = self.shared.tally.failures.saturating_add(1);
        }
        if self.is_stale() {
            self.connection.set_state(ConnectionState::Waiting);
            self.follow(now);
        } else {
            self.wait(now);
        }
        self.shared.changed();
    }
}
