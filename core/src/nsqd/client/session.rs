//! Implements [`Session`] for accepted clients.

use core::net::SocketAddr;

use super::{ClientSession, HEAD_LEN, PendingEvent, State, Timer};
use crate::nsqd::engine::CLIENT_EVENT;
use crate::nsqd::table::Subscription;
use crate::session::{Awaited, Closed, Fault, Link, Session, Transmit};
use crate::time::{Instant, Span};

/// The time after which a client that has sent no command may be closed for another caller.
const GREETING: Span = Span::from_secs(2);

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
        self.client.pending_event = Some(PendingEvent::Connected);
        self.shared.pending |= CLIENT_EVENT;
        let count = usize::from(self.id).saturating_add(1);
        self.shared.subscriptions.show(count, || Subscription::EMPTY);
        if let Some(subscription) = self.subscription() {
            *subscription = Subscription { connected: true, ..Subscription::EMPTY };
        }
        self.client.timers.set(Timer::Heartbeat, now.after(config.heartbeat));
        self.restart_silence_timer(now);
        self.shared.counters.connections = self.shared.counters.connections.saturating_add(1);
        // Wake the task that waits for the event.
        self.shared.changed();
    }

    fn accepted(&mut self, now: Instant, from: SocketAddr) {
        self.open(now);
        self.client.from = Some(from);
    }

    /// Like [`take`](Self::take), but rejects bytes for which there is no room at once.
    fn receive(&mut self, now: Instant, bytes: &[u8]) -> Result<(), Fault> {
        let mut input = bytes;
        loop {
            let taken = self.take(now, input);
            input = input.get(taken..).unwrap_or_default();
            if input.is_empty() || self.client.state != State::Up {
                break;
            }
            self.fail(now, self.shared.reject_reason);
        }
        match (self.client.state, self.client.why) {
            (State::Closing, Closed::Fault(fault)) => Err(fault),
            _ => Ok(()),
        }
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.close_if_kicked(now);
        let left = self.read(now, bytes);
        self.update_idle();
        bytes.len().saturating_sub(left)
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.close_if_kicked(now);
        if self.client.state == State::Up && !self.client.has_unwritten() {
            self.update_idle();
            self.stage(now);
        }
        self.update_idle();
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
        Transmit { head: client.tx_buffer.pending(), body: &[] }
    }

    fn sent(&mut self, _: Instant, n: usize) {
        let client = &mut *self.client;
        if client.is_writing_message() {
            let head = n.min(HEAD_LEN.saturating_sub(client.head_at.into()));
            client.head_at = client.head_at.saturating_add(head as u8);
            self.shared.store.advance(&mut client.body, n.saturating_sub(head));
            if usize::from(client.head_at) == HEAD_LEN && client.body.left == 0 {
                self.drop_message();
            }
        } else {
            client.tx_buffer.sent(n);
        }
        if n > 0 {
            // Give the rest the full write timeout again.
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

    /// Returns the time from which the client may be closed for another caller: 2 s after it
    /// connected while it has sent no command, else never.
    fn evictable(&self) -> Instant {
        if self.client.state == State::Up && !self.client.is_known {
            // The first heartbeat is due one interval after the client connected.
            let heartbeat = self.client.timers.get(Timer::Heartbeat).as_micros();
            let connected = heartbeat.saturating_sub(self.client.heartbeat.as_micros());
            return Instant::from_micros(connected).after(GREETING);
        }
        Instant::NEVER
    }

    fn tick(&mut self, now: Instant) {
        self.close_if_kicked(now);
        if self.client.state != State::Up {
            // The deadline of a closing connection stays due until the driver closes it.
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
            self.fail(now, self.shared.reject_reason);
        } else if self.client.timers.expired(Timer::Body, now) {
            self.on_body_timeout(now);
        } else if self.client.timers.expired(Timer::Silence, now) {
            self.close(now, Closed::Fault(Fault::TimedOut(Awaited::Heartbeat)), false);
        } else if self.client.timers.expired(Timer::Write, now) {
            self.close(now, Closed::Fault(Fault::TimedOut(Awaited::Drain)), false);
        }
        self.update_idle();
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        if !self.client.is_connected() {
            return;
        }
        self.close(now, why, false);
        self.drop_message();
        self.client.tx_buffer.clear();
        self.client.timers.stop_all();
        self.client.pending_event = Some(PendingEvent::Disconnected);
        self.shared.pending |= CLIENT_EVENT;
        self.client.set_state(State::Unused);
        if let Some(subscription) = self.subscription() {
            *subscription = Subscription::EMPTY;
        }
        self.shared.subscriptions.trim(|subscription| subscription.connected);
        self.shared.changed();
    }
}
