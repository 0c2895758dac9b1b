//! One client as a node sees it.

mod commands;
mod tx_buffer;

use core::net::SocketAddr;

use super::ClientEvent;
use super::arena::{Cursor, NIL};
use super::engine::{Draft, NO_ROOM, Piece, Shared};
use super::status::{ClientState, ClientStatus};
use super::table::{NONE, Subscription};
use tx_buffer::TxBuffer;

use crate::macros::trace_state;
use crate::name::TopicName;
use crate::session::{Awaited, Closed, Fault, Link, Session, Transmit};
use crate::time::{Instant, Span, TimerId, Timers};
use crate::wire::nsqd::{
    self, CommandDecoder, ErrorCode, FrameType, Identification, IdentifyResponse, IdentifyScanner,
    Item, MessageHead, Phase, Refusal, Settings, Verb,
};
use crate::wire::{ChunkWriter, saturate};

/// How much is kept of what a client says of itself, each in bytes; the rest is cut off.
pub const TEXT_MAX: usize = 32;

/// Of a message frame, what stands before the body.
const HEAD: usize = 8 + MessageHead::LEN;

/// So many bytes of what is published have [`Config::body_timeout`](super::Config::body_timeout), and
/// so has what is left.
const BODY_STEP: u16 = 1024;

/// How long a client may take to give a command while another caller waits for a place.
const GREETING: Span = Span::from_secs(2);

/// The one client that never comes back after an error it does not know: it knows bare codes.
const BARE: &str = "tokio_nsq/";

/// A connection that was accepted, or room for one.
#[derive(Debug)]
pub(super) struct Client {
    state: State,
    news: Option<PendingEvent>,
    /// Why it is closing, or was closed last.
    why: Closed,
    from: Option<SocketAddr>,
    /// Unix time in seconds.
    since: i64,
    commands: CommandDecoder,
    /// What it said of itself, and what reads that.
    identify: IdentifyScanner<TEXT_MAX, TEXT_MAX>,
    identified: bool,
    /// It has given a command.
    is_known: bool,
    timers: Timers<Timer, 6>,
    /// Zero if it wants none.
    heartbeat: Span,
    msg_timeout: Span,
    heartbeat_due: bool,
    /// How much of IDENTIFY's answer was staged, and its length; 0 if none is due.
    answer_at: u16,
    answer_len: u16,
    desk: TxBuffer,
    /// The message being written: how much of its head is, and what is left of its body.
    message: u16,
    head_at: u8,
    head: [u8; HEAD],
    body: Cursor,
    /// The command whose body is being read.
    verb: Verb,
    topic: TopicName,
    defer_ms: u32,
    /// How much of it was read since that was last timed.
    step: u16,
    draft: Draft,
    /// What there is no room for yet.
    wants: Option<Want>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    Unused,
    Up,
    /// The driver is to write what is left, and to close the connection.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PendingEvent {
    Connected,
    Disconnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Room for a message of so many bytes.
    Message(u32),
    /// Room for so many blocks; the messages take so many bytes, if they are as announced and that
    /// is below the most.
    Batch { blocks: u16, len: u16 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Up: the client is to hear of the node.
    Heartbeat,
    /// Up: nothing heard.
    Silence,
    /// Up: nothing more was written.
    Write,
    /// Up: more is to come of what it publishes.
    Body,
    /// Up: there is no room for what it publishes.
    Room,
    /// Up: a message was in flight for too long.
    Due,
    /// Closing: give up. In the place of what is read no more.
    Close,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        let of = if self == Self::Close { Self::Body } else { self };
        of as usize
    }
}

impl Client {
    /// For storage.
    pub(super) const NEW: Self = Self {
        state: State::Unused,
        news: None,
        why: Closed::Local,
        from: None,
        since: 0,
        commands: CommandDecoder::new(),
        identify: IdentifyScanner::new(),
        identified: false,
        is_known: false,
        timers: Timers::new(),
        heartbeat: Span::ZERO,
        msg_timeout: Span::ZERO,
        heartbeat_due: false,
        answer_at: 0,
        answer_len: 0,
        desk: TxBuffer::EMPTY,
        message: NIL,
        head_at: 0,
        head: [0; HEAD],
        body: Cursor::NONE,
        verb: Verb::Nop,
        topic: TopicName::NONE,
        defer_ms: 0,
        step: 0,
        draft: Draft::NONE,
        wants: None,
    };

    /// As new, where it lies: as a whole it would pass through the stack.
    fn reset(&mut self) {
        let Self {
            state: _,
            news: _,
            why,
            from,
            since: _,
            commands,
            identify,
            identified,
            is_known,
            timers,
            heartbeat: _,
            msg_timeout: _,
            heartbeat_due,
            answer_at: _,
            answer_len,
            desk,
            message,
            head_at: _,
            head: _,
            body: _,
            verb,
            topic: _,
            defer_ms: _,
            step: _,
            draft,
            wants,
        } = self;
        *why = Closed::Local;
        *from = None;
        *commands = CommandDecoder::new();
        *identify = IdentifyScanner::new();
        *identified = false;
        *is_known = false;
        timers.stop_all();
        *heartbeat_due = false;
        *answer_len = 0;
        desk.clear();
        *message = NIL;
        *verb = Verb::Nop;
        *draft = Draft::NONE;
        *wants = None;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state != State::Unused
    }

    pub(super) fn poll_event(&mut self) -> Option<ClientEvent> {
        Some(match self.news.take()? {
            PendingEvent::Connected => ClientEvent::Connected,
            PendingEvent::Disconnected => ClientEvent::Disconnected(self.why),
        })
    }

    pub(super) fn status<'s>(&'s self, shared: &'s Shared<'_>, id: u8) -> Option<ClientStatus<'s>> {
        let seat = shared.seat(id)?;
        let channel = shared.channel(seat.channel);
        let Identification {
            client_id,
            hostname,
            user_agent,
            topology_region,
            topology_zone,
            settings,
        } = self.identify.identification();
        Some(ClientStatus {
            index: usize::from(id),
            state: match (self.state, self.commands.phase()) {
                (State::Unused, _) => return None,
                (State::Up, Phase::Init) => ClientState::Init,
                (State::Up, Phase::Subscribed) => ClientState::Subscribed,
                (State::Up, Phase::Closing) | (State::Closing, _) => ClientState::Closing,
            },
            from: self.from,
            since: self.since,
            identified: self.identified,
            client_id,
            hostname,
            user_agent,
            topology_region,
            topology_zone,
            sample_rate: settings.sample_rate as u8,
            topic: channel.and_then(|channel| Some(&shared.topic(channel.topic)?.name)),
            channel: channel.map(|channel| &channel.name),
            ready: seat.ready,
            in_flight: seat.in_flight,
            messages: seat.delivered,
            finished: seat.finished,
            requeued: seat.requeued,
            pubs: &seat.pubs,
            topics: shared.topics,
        })
    }

    fn set_state(&mut self, state: State) {
        trace_state!("node", self.state, state);
        self.state = state;
    }

    fn settings(&self) -> &Settings {
        &self.identify.identification().settings
    }

    fn is_writing_message(&self) -> bool {
        self.message != NIL
    }

    fn has_unwritten(&self) -> bool {
        !self.desk.is_empty() || self.is_writing_message()
    }

    /// Whether what it publishes waits for room in the store.
    #[cfg(feature = "async")]
    pub(super) const fn waits_for_room(&self) -> bool {
        self.wants.is_some()
    }

    /// Whether the answer to one more command has room.
    fn can_answer(&self) -> bool {
        self.answer_len == 0 && self.desk.has_room()
    }

    /// Whether it is the client that takes an error it does not know for the end, and of errors that
    /// are none knows the codes.
    fn wants_bare_codes(&self) -> bool {
        self.identify.identification().user_agent.starts_with(BARE)
    }

    fn write_deadline(&self, now: Instant, default: Span) -> Instant {
        let span = if self.heartbeat == Span::ZERO { default } else { self.heartbeat };
        now.after(span)
    }
}

/// A client with what it shares with the others: the session of one accepted connection.
///
/// Made for each call by [`Nsqd::client`](super::Nsqd::client); the state is in the node.
#[derive(Debug)]
pub struct ClientSession<'s, 'a> {
    pub(super) client: &'s mut Client,
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) id: u8,
}

impl ClientSession<'_, '_> {
    /// The newest change of this connection that nobody polled yet.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.client.poll_event()
    }

    fn seat(&mut self) -> Option<&mut Subscription> {
        self.shared.seat_mut(self.id)
    }

    /// Says whether the client would take a message at once.
    fn settle(&mut self) {
        let idle = self.client.state == State::Up
            && !self.client.has_unwritten()
            && self.client.answer_len == 0;
        if let Some(seat) = self.seat() {
            seat.idle = idle;
        }
    }

    /// Something was heard.
    fn hear(&mut self, now: Instant) {
        let span = if self.client.heartbeat == Span::ZERO {
            // nsqd would wait for ever; in a body, that would keep its room for ever.
            if self.client.commands.at_boundary() {
                Span::MAX
            } else {
                self.shared.config.heartbeat
            }
        } else {
            self.client.heartbeat
        };
        let at = if span == Span::MAX {
            Instant::NEVER
        } else {
            now.after(Span::from_millis(span.as_millis().saturating_mul(2)))
        };
        self.client.timers.set(Timer::Silence, at);
    }

    /// Asks the driver to close the connection: at once, or once what is staged was written.
    fn close(&mut self, now: Instant, why: Closed, drain: bool) {
        if self.client.state != State::Up {
            return;
        }
        self.client.why = why;
        self.client.timers.stop_all();
        self.client.timers.set(Timer::Close, now.after(self.shared.config.close_timeout));
        self.client.set_state(State::Closing);
        if !drain {
            self.client.desk.clear();
            self.drop_message();
        }
        self.client.wants = None;
        self.shared.discard(&mut self.client.draft);
        self.shared.leave(now, self.id);
        // Others may have what it had.
        self.shared.changed();
    }

    /// What is left of the message being written is not written any more.
    fn drop_message(&mut self) {
        if self.client.is_writing_message() {
            let message = self.client.message;
            self.client.message = NIL;
            self.shared.release(message);
        }
    }

    fn refuse(&mut self, now: Instant, refusal: Refusal<'_>) {
        let bare = !refusal.is_fatal() && self.client.wants_bare_codes();
        self.client.desk.push_error(&refusal, bare);
        if refusal.is_fatal() {
            self.refused(now, refusal.code());
        }
    }

    /// A fatal error is staged.
    fn refused(&mut self, now: Instant, code: ErrorCode) {
        self.shared.counters.refusals = self.shared.counters.refusals.saturating_add(1);
        self.close(now, Closed::Fault(Fault::Refused(code)), true);
    }

    fn fail(&mut self, now: Instant, why: &'static str) {
        let verb = self.client.verb;
        self.refuse(now, Refusal::Failed { verb, why });
    }

    /// The rest of a body did not come: what nsqd says then.
    fn on_body_timeout(&mut self, now: Instant) {
        let timeouts = &mut self.shared.counters.body_timeouts;
        *timeouts = timeouts.saturating_add(1);
        if let Err(refusal) = self.client.commands.end() {
            self.refuse(now, refusal);
        }
    }

    fn answer(&mut self, data: &[u8]) {
        self.client.desk.push(FrameType::Response, data);
    }

    /// Whether there is room for what the client publishes, or nothing is wanted.
    fn has_room(&mut self, now: Instant) -> bool {
        let Client { topic, draft, wants, .. } = &mut *self.client;
        let has = match *wants {
            None => return true,
            Some(Want::Message(len)) => self.shared.take(now, topic, draft, Piece::First(len)),
            Some(Want::Batch { blocks, .. }) => self.shared.promise(now, topic, draft, blocks),
        };
        if has {
            self.client.wants = None;
            if self.client.timers.is_set(Timer::Room) {
                self.client.timers.stop(Timer::Room);
                self.hear(now);
                self.expect(now);
            }
        } else {
            self.shared.wanted = true;
            if !self.client.timers.is_set(Timer::Room) {
                let at = now.after(self.shared.config.publish_wait);
                self.client.timers.set(Timer::Room, at);
                // Nothing is read meanwhile.
                self.client.timers.stop(Timer::Silence);
                self.client.timers.stop(Timer::Body);
                self.shared.counters.waits = self.shared.counters.waits.saturating_add(1);
            }
        }
        has
    }

    /// More is to come of what the client publishes.
    fn expect(&mut self, now: Instant) {
        self.client.step = 0;
        self.client.timers.set(Timer::Body, now.after(self.shared.config.body_timeout));
    }

    /// So much of it came.
    fn progress(&mut self, now: Instant, len: usize) {
        self.client.step = self.client.step.saturating_add(u16::try_from(len).unwrap_or(u16::MAX));
        if self.client.step >= BODY_STEP {
            self.hear(now);
            self.expect(now);
        }
    }

    /// Says whether all that the client wants room for is among so many bytes; false if it may not
    /// have what it got since it seemed so.
    fn look_at(&mut self, here: usize) -> bool {
        let draft = &mut self.client.draft;
        match self.client.wants {
            Some(Want::Batch { len, .. }) => {
                draft.here = len < u16::MAX && usize::from(len) <= here;
            }
            Some(Want::Message(len)) if self.client.verb != Verb::Mpub => {
                draft.here = len as usize <= here;
            }
            Some(Want::Message(len)) if len as usize <= here => {}
            Some(Want::Message(_)) | None if draft.here => return self.shared.is_not_here(draft),
            Some(Want::Message(_)) | None => {}
        }
        true
    }

    /// Decides what to write next, once nothing is left of the last.
    fn stage(&mut self, now: Instant) {
        self.client.desk.clear();
        if self.client.answer_len > 0 {
            self.stage_answer();
        } else if self.client.heartbeat_due {
            self.client.heartbeat_due = false;
            self.answer(nsqd::HEARTBEAT);
        } else {
            self.stage_message(now);
        }
    }

    /// IDENTIFY's answer is longer than the staging area: it is made again for each piece.
    #[inline(never)]
    fn stage_answer(&mut self) {
        let client = &mut *self.client;
        let (config, limits) = (self.shared.config, &self.shared.limits);
        let settings = client.settings();
        let (size, timeout) = (settings.output_buffer_size, settings.output_buffer_timeout);
        let or = |value: i32, default: u32| match value {
            0 => default,
            value => u32::try_from(value).unwrap_or(0),
        };
        let response = IdentifyResponse {
            max_rdy_count: limits.max_rdy_count,
            version: config.version,
            max_msg_timeout: limits.max_msg_timeout_ms,
            msg_timeout: client.msg_timeout.as_millis(),
            sample_rate: settings.sample_rate.unsigned_abs(),
            // As nsqd: without a buffer there is nothing to wait for.
            output_buffer_size: if size == -1 { 1 } else { or(size, 16_384) },
            output_buffer_timeout: if size == -1 { 0 } else { or(timeout, 250) },
            ..IdentifyResponse::default()
        };
        let len = saturate(response.encoded_len());
        let (staged, total) = client.desk.stage(client.answer_at, |w| {
            nsqd::emit_frame_head(w, FrameType::Response, len)?;
            response.emit(w)
        });
        client.answer_at = client.answer_at.saturating_add(staged);
        client.answer_len = total;
        if client.answer_at >= client.answer_len {
            client.answer_len = 0;
        }
    }

    fn stage_message(&mut self, now: Instant) {
        let sample_rate = self.client.settings().sample_rate as u8;
        let client = &mut *self.client;
        let Some(delivery) = self.shared.deliver(now, self.id, client.msg_timeout, sample_rate)
        else {
            return;
        };
        let store = &self.shared.store;
        let head = MessageHead {
            timestamp: store.timestamp(delivery.message),
            attempts: delivery.attempts,
            id: self.shared.id_of(store.sequence(delivery.message)),
        };
        client.message = delivery.message;
        client.head_at = 0;
        client.body = store.body(delivery.message);
        let mut window = ChunkWriter::new(&mut client.head, 0);
        let Ok(()) = nsqd::emit_message_head(&mut window, &head, client.body.left);
        let due = now.after(client.msg_timeout).min(client.timers.get(Timer::Due));
        client.timers.set(Timer::Due, due);
    }

    /// The channel is gone.
    fn is_kicked(&self) -> bool {
        self.shared.seat(self.id).is_some_and(|seat| seat.kicked)
    }

    fn follow(&mut self, now: Instant) {
        if self.client.state == State::Up && self.is_kicked() {
            self.close(now, Closed::Local, false);
        }
    }

    fn channel(&self) -> u8 {
        self.shared.seat(self.id).map_or(NONE, |seat| seat.channel)
    }

    /// Reads what there is room for; how much is left of it.
    fn read(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let mut input = bytes;
        loop {
            if self.client.state != State::Up {
                return 0;
            }
            if self.client.wants.is_some() {
                if !self.look_at(input.len()) {
                    self.fail(now, NO_ROOM);
                    return 0;
                }
                // Room is for what comes.
                if input.is_empty() {
                    return 0;
                }
            }
            if !self.client.can_answer() || !self.has_room(now) {
                return input.len();
            }
            let client = &mut *self.client;
            let item = match client.commands.next(&self.shared.limits, &mut input) {
                Ok(None) => {
                    if !self.look_at(0) {
                        self.fail(now, NO_ROOM);
                    }
                    return 0;
                }
                Ok(Some(item)) => item,
                Err(refusal) => {
                    // Its texts are the decoder's: written out at once.
                    client.desk.push_error(&refusal, false);
                    let code = refusal.code();
                    self.refused(now, code);
                    return 0;
                }
            };
            if !matches!(item, Item::Part { done: false, .. }) {
                self.hear(now);
            }
            self.on_item(now, item);
        }
    }
}

impl Session for ClientSession<'_, '_> {
    fn link(&self) -> Link {
        match self.client.state {
            State::Unused => Link::Down,
            State::Up if self.is_kicked() => Link::Close,
            State::Up => Link::Up,
            State::Closing => Link::Close,
        }
    }

    fn open(&mut self, now: Instant) {
        if self.client.is_connected() {
            self.closed(now, Closed::Local);
        }
        let config = self.shared.config;
        self.client.reset();
        self.client.since = self.shared.unix(now).checked_div(1_000_000_000).unwrap_or_default();
        self.client.heartbeat = config.heartbeat;
        self.client.msg_timeout = config.msg_timeout;
        self.client.set_state(State::Up);
        self.client.news = Some(PendingEvent::Connected);
        if let Some(seat) = self.seat() {
            *seat = Subscription::EMPTY;
        }
        self.client.timers.set(Timer::Heartbeat, now.after(config.heartbeat));
        self.hear(now);
        self.shared.counters.connections = self.shared.counters.connections.saturating_add(1);
        // Somebody may wait for the event.
        self.shared.changed();
    }

    fn accepted(&mut self, now: Instant, from: SocketAddr) {
        self.open(now);
        self.client.from = Some(from);
    }

    /// As [`take`](Self::take), but what there is no room for is refused at once.
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        loop {
            let taken = self.take(now, input);
            input = input.get(taken..).unwrap_or_default();
            if input.is_empty() || self.client.state != State::Up {
                break;
            }
            self.fail(now, self.shared.lack);
        }
        match (self.client.state, self.client.why) {
            (State::Closing, Closed::Fault(fault)) => Err(fault),
            _ => Ok(()),
        }
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.follow(now);
        let left = self.read(now, bytes);
        self.settle();
        bytes.len().saturating_sub(left)
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.follow(now);
        if self.client.state == State::Up && !self.client.has_unwritten() {
            self.settle();
            self.stage(now);
        }
        self.settle();
        if self.client.has_unwritten() && !self.client.timers.is_set(Timer::Write) {
            let at = self.client.write_deadline(now, self.shared.config.heartbeat);
            if self.client.state == State::Up {
                self.client.timers.set(Timer::Write, at);
            }
        }
        let client = &*self.client;
        if client.is_writing_message() {
            let head = client.head.get(client.head_at.into()..).unwrap_or_default();
            return Transmit { head, body: self.shared.store.piece(&client.body) };
        }
        Transmit { head: client.desk.pending(), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        let client = &mut *self.client;
        if client.is_writing_message() {
            let head = n.min(HEAD.saturating_sub(client.head_at.into()));
            client.head_at = client.head_at.saturating_add(head as u8);
            self.shared.store.advance(&mut client.body, n.saturating_sub(head));
            if usize::from(client.head_at) == HEAD && client.body.left == 0 {
                self.drop_message();
            }
        } else {
            let _ = client.desk.sent(n);
        }
        if n > 0 {
            // What is left has its full time again.
            self.client.timers.stop(Timer::Write);
        }
    }

    fn deadline(&self) -> Instant {
        match self.client.state {
            State::Unused => Instant::NEVER,
            State::Up if self.is_kicked() => Instant::ZERO,
            State::Up => self.client.timers.next().min(self.shared.next_due(self.channel())),
            State::Closing => self.client.timers.next(),
        }
    }

    /// Who has not given a command may go 2 s after it came.
    fn evictable(&self) -> Instant {
        if self.client.state == State::Up && !self.client.is_known {
            // The first one is due so long after that.
            let heartbeat = self.client.timers.get(Timer::Heartbeat).as_micros();
            let came = heartbeat.saturating_sub(self.client.heartbeat.as_micros());
            return Instant::from_micros(came).after(GREETING);
        }
        Instant::NEVER
    }

    fn tick(&mut self, now: Instant) {
        self.follow(now);
        if self.client.state != State::Up {
            // A closing one stays due until it is closed.
            return;
        }
        self.shared.release_due(now, self.channel());
        if self.client.timers.expired(Timer::Due, now) {
            let next = self.shared.expire(now, self.id);
            self.client.timers.set(Timer::Due, next);
        }
        if self.client.timers.expired(Timer::Heartbeat, now) {
            self.client.heartbeat_due = true;
            self.client.timers.set(Timer::Heartbeat, now.after(self.client.heartbeat));
        }
        if self.client.timers.get(Timer::Room) <= now && !self.has_room(now) {
            self.fail(now, self.shared.lack);
        } else if self.client.timers.expired(Timer::Body, now) {
            self.on_body_timeout(now);
        } else if self.client.timers.expired(Timer::Silence, now) {
            self.close(now, Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)), false);
        } else if self.client.timers.expired(Timer::Write, now) {
            self.close(now, Closed::Fault(Fault::TimedOut(Awaited::Drain)), false);
        }
        self.settle();
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        if !self.client.is_connected() {
            return;
        }
        self.close(now, why, false);
        self.drop_message();
        self.client.desk.clear();
        self.client.timers.stop_all();
        self.client.news = Some(PendingEvent::Disconnected);
        self.client.set_state(State::Unused);
        if let Some(seat) = self.seat() {
            *seat = Subscription::EMPTY;
        }
        self.shared.changed();
    }
}
