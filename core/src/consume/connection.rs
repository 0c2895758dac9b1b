//! One nsqd as a consumer sees it.

use core::convert::Infallible;

use heapless::Vec;

use super::config::{Exhausted, TooLarge};
use super::store::{Answer, NoRoom};
use super::window::SETTLE;
use super::{
    Config, ConnectionEvent, ConnectionState, ConnectionStatus, DETAIL_MAX, Shared, count,
};
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
// In this order because a Cortex-M0 reaches only the first 31 bytes, 62 half words and 124 bytes of
// a structure in one instruction.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Connection {
    state: ConnectionState,
    cls: Cls,
    /// A heartbeat is to be answered.
    nop: bool,
    staged: u8,
    written: u8,
    /// Attempts to connect since it was good.
    attempts: u8,
    /// The seat's, when it was followed last.
    serial: u16,
    /// How much of the handshake's current command was staged, and its length once known.
    handshake_at: u16,
    handshake_len: u16,
    /// The message being received: where to, and how much of it is there.
    filling: Filling,
    news: News,
    have: u32,
    timers: Timers<Timer, 3>,
    msg_timeout: Span,
    max_msg_timeout: Span,
    frames: FrameDecoder,
    /// Why it is closing, or was closed last.
    why: Why,
    /// What nsqd says in the frame being read, as far as it matters: of a message that is skipped
    /// its head. An error's stays.
    text: Vec<u8, DETAIL_MAX, u8>,
    desk: Desk,
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
#[repr(u8)]
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

/// An `Option<Closed>` of which `None` is zero.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Why {
    None,
    Closed(Closed),
}

impl Why {
    fn get(self) -> Option<Closed> {
        match self {
            Self::None => None,
            Self::Closed(why) => Some(why),
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
    None,
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
    /// For storage, before [`set_up`](Self::set_up): all of it is zero, so that no image of it is in
    /// flash.
    pub(super) const NEW: Self = Self {
        state: ConnectionState::Unused,
        why: Why::None,
        news: News::None,
        serial: 0,
        nop: false,
        cls: Cls::Unsent,
        staged: 0,
        written: 0,
        timers: Timers::ZERO,
        attempts: 0,
        frames: FrameDecoder::new(0),
        desk: Desk::Writing([0; STAGING]),
        text: Vec::new(),
        handshake_at: 0,
        handshake_len: 0,
        filling: Filling::Slot(0),
        have: 0,
        msg_timeout: Span::ZERO,
        max_msg_timeout: Span::ZERO,
    };

    pub(super) fn set_up(&mut self) {
        self.timers.stop_all();
    }

    pub(super) fn state(&self) -> ConnectionState {
        self.state
    }

    pub(super) fn status<'s>(&'s self, shared: &'s Shared<'_>, id: u8) -> ConnectionStatus<'s> {
        ConnectionStatus {
            address: shared.directory.address(id),
            state: self.state,
            rdy: shared.window.rdy(id),
            in_flight: shared.window.in_flight(id),
            last: self.why.get(),
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

    /// Whether what nsqd says is of interest.
    fn is_up(&self) -> bool {
        match self.state {
            ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing
            | ConnectionState::Ready
            | ConnectionState::Draining
            | ConnectionState::Leaving => true,
            ConnectionState::Unused
            | ConnectionState::Waiting
            | ConnectionState::Dialing
            | ConnectionState::Closing => false,
        }
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

    fn handshake(&mut self, shared: &Shared<'_>, state: ConnectionState) {
        self.handshake_at = 0;
        self.handshake_len = 0;
        self.timers.set(Timer::Step, shared.after(shared.config.connect_timeout));
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

    /// Puts a command behind what is staged: one shape for all of them, so one piece of code.
    fn push(&mut self, verb: &[u8], id: &[u8], number: Option<u32>) {
        let staged = usize::from(self.staged);
        let room = self.desk.staging().get_mut(staged..).unwrap_or_default();
        let mut window = Window::new(room, 0);
        let Ok(()) = v2::emit_line(&mut window, verb, id, number);
        self.staged = self.staged.wrapping_add(window.written() as u8);
    }

    fn has_room(&self) -> bool {
        usize::from(self.staged).saturating_add(COMMAND_MAX) <= STAGING
    }

    fn push_answer(&mut self, id: &[u8], answer: Answer) {
        let (verb, delay): (&[u8], _) = match answer {
            Answer::Finish => (b"FIN ", None),
            Answer::Requeue(delay) => (b"REQ ", Some(delay)),
            Answer::Touch => (b"TOUCH ", None),
        };
        self.push(verb, id, delay);
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
        match core::mem::replace(&mut self.connection.news, News::None) {
            News::None => None,
            News::Connected => Some(ConnectionEvent::Connected),
            News::Disconnected => {
                let why = self.connection.why.get().unwrap_or(Closed::Local);
                Some(ConnectionEvent::Disconnected(why))
            }
        }
    }

    /// Closes; [`receive`](Session::receive) says why.
    fn fail(&mut self, fault: Fault) {
        self.close(Closed::Fault(fault));
    }

    /// Asks the driver to close the connection.
    fn close(&mut self, why: Closed) {
        self.connection.why = Why::Closed(why);
        self.connection.nop = false;
        if why != Closed::Local {
            self.connection.staged = self.connection.written;
        }
        self.connection.timers.stop_all();
        let deadline = self.shared.after(self.shared.config.close_timeout);
        self.connection.timers.set(Timer::Step, deadline);
        self.connection.set_state(ConnectionState::Closing);
        self.land();
    }

    /// Nothing is in flight any more.
    fn land(&mut self) {
        self.shared.store.forget(self.id);
        self.shared.window.leave(self.id);
        self.shared.adjust();
    }

    /// Whether the seat is, or was, for somebody else.
    fn is_stale(&self) -> bool {
        let serial = self.shared.directory.seat(self.id).map(|seat| seat.serial);
        serial != Some(self.connection.serial)
    }

    /// Makes the connection follow its seat.
    fn follow(&mut self) {
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
                        self.connection.timers.set(Timer::Step, self.shared.now);
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
                self.shared.adjust();
                if self.shared.stopping {
                    self.shared.store.recall(self.id, false);
                }
                let drain = self.shared.after(self.shared.config.drain_timeout);
                self.connection.timers.set(Timer::Step, drain);
                self.connection.timers.set(Timer::Settle, self.shared.after(SETTLE));
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

    fn stage(&mut self) {
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
                self.stage_commands();
            }
            ConnectionState::Unused
            | ConnectionState::Waiting
            | ConnectionState::Dialing
            | ConnectionState::Closing => {}
        }
    }

    fn stage_commands(&mut self) {
        let Self { connection, shared, id } = self;
        if connection.nop {
            connection.nop = false;
            connection.push(b"NOP", &[], None);
        }
        if connection.state == ConnectionState::Ready {
            if let Some(rdy) = shared.window.next(*id) {
                connection.push(b"RDY", &[], Some(rdy.into()));
                if shared.window.told(*id, rdy) {
                    connection.timers.set(Timer::Settle, shared.after(SETTLE));
                }
            }
        } else if connection.cls == Cls::Unsent {
            connection.cls = Cls::Sent;
            connection.push(b"CLS", &[], None);
        }
        while connection.has_room()
            && let Some((message, answer)) = shared.store.next_answer(*id)
        {
            connection.push_answer(&message, answer);
            if answer == Answer::Touch {
                count(&mut shared.tally.touched);
            } else {
                shared.answered(*id);
            }
        }
        self.leave_if_done();
    }

    /// Closes once nothing is in flight any more and nsqd has confirmed that nothing comes.
    fn leave_if_done(&mut self) {
        let left = self.shared.window.in_flight(self.id) == 0;
        let done = match self.connection.state {
            ConnectionState::Draining => left && self.connection.cls == Cls::Confirmed,
            ConnectionState::Leaving => left,
            _ => false,
        };
        if done {
            self.close(Closed::Local);
        }
    }

    #[inline(never)]
    fn on_part(&mut self, part: FramePart<'_>) {
        if part.frame_type == FrameType::Message {
            return self.on_message(part);
        }
        if part.first {
            if part.size > REPLY_MAX {
                return self.fail(Fault::BadLength { len: part.size, max: REPLY_MAX });
            }
            self.connection.text.clear();
            if part.frame_type == FrameType::Response
                && self.connection.state == ConnectionState::Identifying
            {
                if !self.connection.has_asked() {
                    return self.fail(Fault::UnexpectedReply);
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
            return;
        }
        if part.frame_type == FrameType::Error {
            return self.on_error();
        }
        if self.connection.text.as_slice() == v2::HEARTBEAT {
            count(&mut self.shared.tally.heartbeats);
            self.connection.nop = true;
            self.prove_good();
            return;
        }
        self.on_response()
    }

    fn on_response(&mut self) {
        let config = self.shared.config;
        let asked = self.connection.has_asked();
        match self.connection.state {
            ConnectionState::Identifying if asked => {
                let answer = match &mut self.connection.desk {
                    Desk::Identifying(negotiated) => negotiated.finish(),
                    Desk::Writing(_) => Err(Fault::BadIdentifyReply),
                };
                let Ok(negotiated) = answer else {
                    return self.fail(Fault::BadIdentifyReply);
                };
                self.connection.msg_timeout = Span::from_millis(negotiated.msg_timeout_ms.max(1));
                self.connection.max_msg_timeout =
                    Span::from_millis(negotiated.max_msg_timeout_ms.max(1));
                self.connection.have = negotiated.max_rdy_count;
                let next = match (negotiated.auth_required, config.auth_secret) {
                    (false, _) => ConnectionState::Subscribing,
                    (true, Some(_)) => ConnectionState::Authenticating,
                    (true, None) => return self.fail(Fault::AuthRequired),
                };
                self.connection.handshake(self.shared, next);
            }
            ConnectionState::Authenticating if asked => {
                self.connection.handshake(self.shared, ConnectionState::Subscribing);
            }
            ConnectionState::Subscribing if asked && self.connection.text.as_slice() == v2::OK => {
                self.on_ready();
            }
            ConnectionState::Draining | ConnectionState::Leaving
                if self.connection.cls == Cls::Sent
                    && self.connection.text.as_slice() == v2::CLOSE_WAIT =>
            {
                self.connection.cls = Cls::Confirmed;
                self.leave_if_done();
            }
            _ => self.fail(Fault::UnexpectedReply),
        }
    }

    fn on_ready(&mut self) {
        count(&mut self.shared.tally.connections);
        self.connection.news = News::Connected;
        self.connection.why = Why::None;
        self.hear();
        self.connection.set_state(ConnectionState::Ready);
        // Above what a share counts there is nothing to want.
        let cap = u16::try_from(self.connection.have).unwrap_or(u16::MAX);
        self.shared.window.join(self.id, cap);
        self.shared.adjust();
        // Also if nothing is wanted of it: who waits for events is to hear of it.
        self.shared.changed();
    }

    /// Two intervals: nsqd's own rule for its clients.
    fn hear(&mut self) {
        let silence = self.shared.config.heartbeat.as_millis().saturating_mul(2);
        self.connection.timers.set(Timer::Step, self.shared.after(Span::from_millis(silence)));
    }

    /// nsqd does what it is there for: the next loss is followed by an immediate redial.
    fn prove_good(&mut self) {
        self.connection.attempts = 0;
        if let Some(seat) = self.shared.directory.seat_mut(self.id) {
            seat.fails = false;
        }
    }

    fn on_error(&mut self) {
        let (code, _) = ErrorCode::parse(&self.connection.text);
        if code.is_fatal() || !self.connection.is_subscribed() {
            return self.fail(Fault::Refused(code));
        }
        // nsqd took the message back before the answer came.
        count(&mut self.shared.tally.refused);
    }

    fn on_message(&mut self, part: FramePart<'_>) {
        if part.first {
            if !self.connection.is_subscribed() {
                return self.fail(Fault::UnexpectedReply);
            }
            if part.size < MessageHead::LEN as u32 {
                return self.fail(Fault::ShortMessage { len: part.size });
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
                self.connection.have = self.connection.have.wrapping_add(part.data.len() as u32);
            }
            Filling::Skip(_) => keep(&mut self.connection.text, part.data),
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
        shared.tally.received = shared.tally.received.saturating_add(1);
        let end = shared.after(self.connection.max_msg_timeout);
        let due = shared.after(self.connection.due_after(shared.config)).min(end);
        if shared.store.arrived(slot, due, end) {
            count(&mut shared.tally.timed_out);
            shared.window.answered(self.id, 1);
        }
        self.connection.due_by(due);
        if shared.stopping {
            shared.store.recall(self.id, false);
        }
        // It may have taken more than its part.
        shared.adjust();
        shared.changed();
    }

    /// A message had no room: it is answered at once, if there is room for that.
    fn on_skipped(&mut self, why: NoRoom) {
        let shared = &mut *self.shared;
        let Some((head, _)) = MessageHead::parse(&self.connection.text) else { return };
        let config = shared.config;
        let mut answer = Answer::Requeue(NO_ROOM_DELAY);
        match why {
            NoRoom::Now => count(&mut shared.tally.no_room),
            NoRoom::Ever => {
                count(&mut shared.tally.too_large);
                let exhausted =
                    config.is_exhausted(head.attempts) && config.exhausted == Exhausted::Finish;
                if exhausted {
                    shared.give_up(&head);
                }
                answer = if exhausted || config.too_large == TooLarge::Finish {
                    Answer::Finish
                } else {
                    Answer::Requeue(config.requeue_delay(head.attempts))
                };
            }
        }
        if self.connection.has_room() {
            self.connection.push_answer(&head.id.0, answer);
        } else {
            // nsqd takes it back when its time is up.
            count(&mut shared.tally.unanswered);
        }
        shared.answered(self.id);
        self.leave_if_done();
    }

    /// The seat's nsqd did not come up, or broke.
    fn wait(&mut self) {
        let mut backoff = self.shared.config.backoff().resume(self.connection.attempts);
        let delay = backoff.next_delay(&mut self.shared.jitter);
        self.connection.attempts = backoff.attempts();
        let fails = self.connection.attempts > 2;
        self.connection.timers.set(Timer::Step, self.shared.after(delay));
        self.connection.set_state(ConnectionState::Waiting);
        if let Some(seat) = self.shared.directory.seat_mut(self.id) {
            seat.busy = false;
            if fails && !seat.fails {
                seat.fails = true;
                self.shared.offers = self.shared.now;
                self.shared.go_round();
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
        self.shared.now = now;
        self.follow();
        if self.connection.state != ConnectionState::Waiting
            || !self.connection.timers.expired(Timer::Step, now)
        {
            return None;
        }
        self.shared.directory.address(self.id)?;
        self.set_busy(true);
        self.connection.handshake(self.shared, ConnectionState::Dialing);
        self.shared.directory.address(self.id)
    }

    fn open(&mut self, now: Instant) {
        self.shared.now = now;
        self.land();
        let connection = &mut *self.connection;
        connection.frames = FrameDecoder::new(u32::MAX);
        connection.text.clear();
        connection.nop = false;
        connection.cls = Cls::Unsent;
        connection.staged = 0;
        connection.written = 0;
        connection.timers.stop_all();
        connection.handshake(self.shared, ConnectionState::Identifying);
        self.set_busy(true);
    }

    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        self.shared.now = now;
        let mut input = bytes;
        if self.connection.state == ConnectionState::Ready {
            self.hear();
        }
        if !self.connection.is_up() {
            return Ok(());
        }
        while self.connection.is_up() {
            match self.connection.frames.next(&mut input) {
                Ok(Some(part)) => self.on_part(part),
                Ok(None) => return Ok(()),
                Err(fault) => self.fail(fault),
            }
        }
        match self.connection.why {
            Why::Closed(Closed::Fault(fault))
                if self.connection.state == ConnectionState::Closing =>
            {
                Err(fault)
            }
            _ => Ok(()),
        }
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.shared.now = now;
        if !self.connection.is_writing() {
            self.follow();
            self.stage();
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
        let n = n.min(connection.staged.wrapping_sub(connection.written).into());
        connection.written = connection.written.wrapping_add(n as u8);
    }

    fn deadline(&self) -> Instant {
        let common = match self.connection.state {
            ConnectionState::Unused => Instant::NEVER,
            _ => self.shared.deadline(),
        };
        self.connection.timers.next().min(common)
    }

    fn tick(&mut self, now: Instant) {
        self.shared.now = now;
        self.shared.tick();
        self.follow();
        if self.connection.timers.expired(Timer::Settle, now) {
            self.shared.window.settle(self.id);
            self.shared.changed();
        }
        if self.connection.timers.expired(Timer::Due, now) {
            let Self { connection, shared, id } = self;
            let touch = shared.config.auto_touch.then(|| connection.due_after(shared.config));
            let (expired, next) = shared.store.expire(*id, now, touch);
            shared.tally.timed_out = shared.tally.timed_out.saturating_add(expired.into());
            shared.window.answered(*id, expired);
            connection.timers.set(Timer::Due, next);
            shared.adjust();
            shared.changed();
        }
        match self.connection.state {
            // It stays due until it is dialed, or aborted.
            ConnectionState::Waiting | ConnectionState::Closing => return,
            _ if !self.connection.timers.expired(Timer::Step, now) => return,
            _ => {}
        }
        match self.connection.state {
            ConnectionState::Dialing => self.close(Closed::Dial(DialError::TimedOut)),
            ConnectionState::Identifying
            | ConnectionState::Authenticating
            | ConnectionState::Subscribing => {
                self.close(Closed::Fault(Fault::TimedOut(Awaited::Handshake)));
            }
            ConnectionState::Ready => {
                self.close(Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)));
            }
            ConnectionState::Draining => {
                self.shared.store.recall(self.id, true);
                let leave = self.shared.after(self.shared.config.close_timeout);
                self.connection.timers.set(Timer::Step, leave);
                self.connection.set_state(ConnectionState::Leaving);
                self.shared.changed();
            }
            ConnectionState::Leaving => self.close(Closed::Local),
            ConnectionState::Closing | ConnectionState::Unused | ConnectionState::Waiting => {}
        }
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        self.shared.now = now;
        let why = match self.connection.state {
            ConnectionState::Unused | ConnectionState::Waiting => return,
            // What the session itself had against the connection is the better reason.
            ConnectionState::Closing => self.connection.why.get().unwrap_or(why),
            _ if self.is_stale() => Closed::Local,
            _ => why,
        };
        self.connection.why = Why::Closed(why);
        self.connection.staged = 0;
        self.connection.written = 0;
        self.connection.timers.stop_all();
        self.connection.news = News::Disconnected;
        self.land();
        if why != Closed::Local {
            count(&mut self.shared.tally.failures);
        }
        if self.is_stale() {
            self.connection.set_state(ConnectionState::Waiting);
            self.follow();
        } else {
            self.wait();
        }
        self.shared.changed();
    }
}
