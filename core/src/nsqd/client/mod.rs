//! The connection of one client to an nsqd.

mod commands;
mod receive;
mod session;
mod transmit;
mod tx_buffer;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::arena::{Cursor, NIL};
use super::engine::{Draft, Shared};
use super::status::{ClientState, ClientStatus};
use super::table::{NONE, Subscription};
use super::{Block, ClientEvent, Index};
use tx_buffer::TxBuffer;

use crate::macros::trace_state;
use crate::name::TopicName;
use crate::session::{Closed, Fault};
use crate::time::{Instant, Span, TimerId, Timers};
use crate::wire::nsqd::{
    CommandDecoder, ErrorCode, FrameType, Identification, IdentifyScanner, MessageHead, Phase,
    Refusal, Settings, Verb,
};

/// The longest kept text of IDENTIFY in bytes; longer texts are cut off.
const TEXT_MAX: usize = 32;

/// The bytes of a message frame before its body.
const HEAD_LEN: usize = 8 + MessageHead::LEN;

/// The user agent of the client library that does not reconnect after an unknown error text. It
/// knows codes without a text.
const NEEDS_BARE_CODES: &str = "tokio_nsq/";

/// A slot for one accepted connection.
#[derive(Debug)]
pub(super) struct Client {
    state: State,
    pending_event: Option<PendingEvent>,
    /// The reason why the connection is closing, or was last closed.
    why: Closed,
    from: Option<SocketAddr>,
    /// The Unix time in seconds at which the client connected.
    since: i64,
    commands: CommandDecoder,
    /// Reads IDENTIFY and keeps the client's texts and settings.
    identify: IdentifyScanner<TEXT_MAX, TEXT_MAX>,
    identified: bool,
    /// Set once the client has sent a command other than IDENTIFY.
    is_known: bool,
    timers: Timers<Timer, 6>,
    /// Zero if the client has disabled heartbeats.
    heartbeat: Span,
    msg_timeout: Span,
    heartbeat_due: bool,
    tx_buffer: TxBuffer,
    /// The message being written, the written bytes of its head, the head, and the rest of its
    /// body.
    message: Block,
    head_at: u8,
    head: [u8; HEAD_LEN],
    body: Cursor,
    /// The command whose body is being read.
    verb: Verb,
    topic: TopicName,
    defer_ms: u32,
    /// The bytes of the body that were read since the body timer was last restarted.
    step: u16,
    draft: Draft,
    /// The room that the next part of a body needs before the part is read.
    room_request: Option<RoomRequest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
enum State {
    Unused,
    Up,
    /// The driver writes the staged bytes, then closes the connection.
    Closing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PendingEvent {
    Connected,
    Disconnected,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RoomRequest {
    /// Room for a message of this many bytes.
    Message(u32),
    /// Room for `blocks` blocks. The rest of the batch has `len` bytes; `u16::MAX` if longer, or if
    /// the announced length cannot be true.
    Batch { blocks: Block, len: u16 },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Timer {
    /// Up: a heartbeat is due.
    Heartbeat,
    /// Up: the client was silent for too long.
    Silence,
    /// Up: the client reads too slowly.
    Write,
    /// Up: the rest of a body did not arrive in time.
    Body,
    /// Up: the store had no room for a body for too long.
    Room,
    /// Up: a message was in flight for too long.
    Due,
    /// Closing: close the connection even if it is not drained. It shares a slot with `Body`,
    /// because a closing connection reads nothing.
    Close,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        let of = if self == Self::Close { Self::Body } else { self };
        of as usize
    }
}

impl Client {
    /// Storage before [`init`](Self::init): all bytes are zero.
    pub(super) const ZERO: Self = Self {
        state: State::Unused,
        pending_event: Some(PendingEvent::Connected),
        why: Closed::ZERO,
        from: Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)),
        since: 0,
        commands: CommandDecoder::ZERO,
        identify: IdentifyScanner::ZERO,
        identified: false,
        is_known: false,
        timers: Timers::ZERO,
        heartbeat: Span::ZERO,
        msg_timeout: Span::ZERO,
        heartbeat_due: false,
        tx_buffer: TxBuffer::ZERO,
        message: 0,
        head_at: 0,
        head: [0; HEAD_LEN],
        body: Cursor::ZERO,
        verb: Verb::Identify,
        topic: TopicName::NONE,
        defer_ms: 0,
        step: 0,
        draft: Draft::ZERO,
        room_request: Some(RoomRequest::Message(0)),
    };

    /// Initializes a slot without a client.
    pub(super) fn init(&mut self) {
        self.state = State::Unused;
        self.pending_event = None;
        self.reset();
    }

    /// Resets the client in place, because a whole new value would be built on the stack.
    fn reset(&mut self) {
        let Self {
            state: _,
            pending_event: _,
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
            tx_buffer,
            message,
            head_at: _,
            head: _,
            body: _,
            verb,
            topic: _,
            defer_ms: _,
            step: _,
            draft,
            room_request,
        } = self;
        *why = Closed::Local;
        *from = None;
        *commands = CommandDecoder::new();
        *identify = IdentifyScanner::new();
        *identified = false;
        *is_known = false;
        timers.stop_all();
        *heartbeat_due = false;
        tx_buffer.clear();
        *message = NIL;
        *verb = Verb::Nop;
        *draft = Draft::NONE;
        *room_request = None;
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state != State::Unused
    }

    pub(super) fn poll_event(&mut self) -> Option<ClientEvent> {
        Some(match self.pending_event.take()? {
            PendingEvent::Connected => ClientEvent::Connected,
            PendingEvent::Disconnected => ClientEvent::Disconnected(self.why),
        })
    }

    pub(super) fn status<'s>(
        &'s self,
        shared: &'s Shared<'_>,
        id: Index,
    ) -> Option<ClientStatus<'s>> {
        let subscription = shared.subscription(id)?;
        let channel = shared.channel(subscription.channel);
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
            ready: subscription.ready,
            in_flight: subscription.in_flight,
            messages: subscription.delivered,
            finished: subscription.finished,
            requeued: subscription.requeued,
            pubs: &subscription.pubs,
            topics: &shared.topics,
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
        !self.tx_buffer.is_empty() || self.is_writing_message()
    }

    /// Returns whether a body waits for room in the store.
    #[cfg(feature = "async")]
    pub(super) const fn waits_for_room(&self) -> bool {
        self.room_request.is_some()
    }

    /// Returns whether there is room for the response to one more command.
    fn can_answer(&self) -> bool {
        self.tx_buffer.has_room()
    }

    /// Returns whether non-fatal errors are sent without a text, because the client would not
    /// reconnect after an unknown one.
    fn needs_bare_codes(&self) -> bool {
        self.identify.identification().user_agent.starts_with(NEEDS_BARE_CODES)
    }

    fn write_deadline(&self, now: Instant, default: Span) -> Instant {
        let span = if self.heartbeat == Span::ZERO { default } else { self.heartbeat };
        now.after(span)
    }
}

/// The session of one accepted client.
///
/// [`Nsqd::client`](super::Nsqd::client) creates a new value for each call; the state is in the
/// nsqd.
#[derive(Debug)]
pub struct ClientSession<'s, 'a> {
    pub(super) client: &'s mut Client,
    pub(super) shared: &'s mut Shared<'a>,
    pub(super) id: Index,
}

impl ClientSession<'_, '_> {
    /// Returns the newest change of this connection that was not polled yet.
    pub fn poll_event(&mut self) -> Option<ClientEvent> {
        self.client.poll_event()
    }

    fn subscription(&mut self) -> Option<&mut Subscription> {
        self.shared.subscription_mut(self.id)
    }

    /// Updates whether the client could be sent a message at once.
    fn update_idle(&mut self) {
        let idle = self.client.state == State::Up
            && !self.client.has_unwritten()
            && !self.client.tx_buffer.has_text();
        if let Some(subscription) = self.subscription() {
            subscription.idle = idle;
        }
    }

    /// Restarts the silence timer after bytes were received.
    fn restart_silence_timer(&mut self, now: Instant) {
        let span = if self.client.heartbeat == Span::ZERO {
            // nsqd waits for ever. Here an unfinished body would keep its room for ever.
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

    /// Asks the driver to close the connection: at once, or with `drain` once all staged bytes were
    /// written.
    fn close(&mut self, now: Instant, why: Closed, drain: bool) {
        if self.client.state != State::Up {
            return;
        }
        self.client.why = why;
        self.client.timers.stop_all();
        self.client.timers.set(Timer::Close, now.after(self.shared.config.close_timeout));
        self.client.set_state(State::Closing);
        if !drain {
            self.client.tx_buffer.clear();
            self.drop_message();
        }
        self.client.room_request = None;
        self.shared.discard(&mut self.client.draft);
        self.shared.leave(now, self.id);
        // Wake the other clients: they may get the messages and the room of this client.
        self.shared.changed();
    }

    /// Releases the message being written.
    fn drop_message(&mut self) {
        if self.client.is_writing_message() {
            let message = self.client.message;
            self.client.message = NIL;
            self.shared.release(message);
        }
    }

    fn reject(&mut self, now: Instant, refusal: Refusal<'_>) {
        let bare = !refusal.is_fatal() && self.client.needs_bare_codes();
        self.client.tx_buffer.push_error(&refusal, bare);
        if refusal.is_fatal() {
            self.close_rejected(now, refusal.code());
        }
    }

    /// Closes the connection after a fatal error was staged.
    fn close_rejected(&mut self, now: Instant, code: ErrorCode) {
        self.shared.counters.refusals = self.shared.counters.refusals.saturating_add(1);
        self.close(now, Closed::Fault(Fault::Refused(code)), true);
    }

    fn fail(&mut self, now: Instant, why: &'static str) {
        let verb = self.client.verb;
        self.reject(now, Refusal::Failed { verb, why });
    }

    /// Rejects a command whose body did not arrive in time, with nsqd's error.
    fn on_body_timeout(&mut self, now: Instant) {
        let timeouts = &mut self.shared.counters.body_timeouts;
        *timeouts = timeouts.saturating_add(1);
        if let Err(refusal) = self.client.commands.end() {
            self.reject(now, refusal);
        }
    }

    fn answer(&mut self, data: &[u8]) {
        self.client.tx_buffer.push(FrameType::Response, data);
    }

    /// Returns whether the client's channel was deleted.
    fn is_kicked(&self) -> bool {
        self.shared.subscription(self.id).is_some_and(|subscription| subscription.kicked)
    }

    fn close_if_kicked(&mut self, now: Instant) {
        if self.client.state == State::Up && self.is_kicked() {
            self.close(now, Closed::Local, false);
        }
    }

    fn channel(&self) -> Index {
        self.shared.subscription(self.id).map_or(NONE, |subscription| subscription.channel)
    }
}
