//! Reads a client's commands, as far as there is room for published bodies and responses.

use super::{Client, ClientSession, RoomRequest, State, Timer};
use crate::nsqd::engine::{NO_ROOM, Piece};
use crate::time::Instant;
use crate::wire::nsqd::{Item, Verb};

/// The bytes of a body that must arrive within
/// [`Config::body_timeout`](crate::nsqd::Config::body_timeout), as must the rest of the body.
const BODY_STEP: u16 = 1024;

impl ClientSession<'_, '_> {
    /// Takes the room that the next part of a body needs. Returns true if that succeeded, or no
    /// room is needed. Otherwise starts the wait for room.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
        let Client { topic, draft, room_request, .. } = &mut *self.client;
        let has = match *room_request {
            None => return true,
            Some(RoomRequest::Message(len)) => {
                self.shared.take(now, topic, draft, Piece::First(len))
            }
            Some(RoomRequest::Batch { blocks, .. }) => {
                self.shared.promise(now, topic, draft, blocks)
            }
        };
        if has {
            self.client.room_request = None;
            if self.client.timers.is_set(Timer::Room) {
                self.client.timers.stop(Timer::Room);
                self.restart_silence_timer(now);
                self.restart_body_timer(now);
            }
        } else {
            self.shared.wanted = true;
            if !self.client.timers.is_set(Timer::Room) {
                let at = now.after(self.shared.config.publish_wait);
                self.client.timers.set(Timer::Room, at);
                // No bytes are read during the wait.
                self.client.timers.stop(Timer::Silence);
                self.client.timers.stop(Timer::Body);
                self.shared.counters.waits = self.shared.counters.waits.saturating_add(1);
            }
        }
        has
    }

    /// Restarts the body timer.
    pub(super) fn restart_body_timer(&mut self, now: Instant) {
        self.client.step = 0;
        self.client.timers.set(Timer::Body, now.after(self.shared.config.body_timeout));
    }

    /// Counts received bytes of a body and restarts its timer after each [`BODY_STEP`].
    pub(super) fn on_body_bytes(&mut self, now: Instant, len: usize) {
        self.client.step = self.client.step.saturating_add(u16::try_from(len).unwrap_or(u16::MAX));
        if self.client.step >= BODY_STEP {
            self.restart_silence_timer(now);
            self.restart_body_timer(now);
        }
    }

    /// Updates whether the next `here` bytes complete the draft. Returns false if they no longer
    /// do, and the draft's blocks exceed what clients may announce.
    fn update_complete(&mut self, here: usize) -> bool {
        let draft = &mut self.client.draft;
        match self.client.room_request {
            Some(RoomRequest::Batch { len, .. }) => {
                draft.is_complete = len < u16::MAX && usize::from(len) <= here;
            }
            Some(RoomRequest::Message(len)) if self.client.verb != Verb::Mpub => {
                draft.is_complete = len as usize <= here;
            }
            Some(RoomRequest::Message(len)) if len as usize <= here => {}
            Some(RoomRequest::Message(_)) | None if draft.is_complete => {
                return self.shared.is_incomplete(draft);
            }
            Some(RoomRequest::Message(_)) | None => {}
        }
        true
    }

    /// Reads commands as far as there is room. Returns how many bytes are left.
    pub(super) fn read(&mut self, now: Instant, bytes: &[u8]) -> usize {
        let mut input = bytes;
        loop {
            if self.client.state != State::Up {
                return 0;
            }
            if self.client.room_request.is_some() {
                if !self.update_complete(input.len()) {
                    self.fail(now, NO_ROOM);
                    return 0;
                }
                // Take room only when bytes of the body have arrived.
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
                    if !self.update_complete(0) {
                        self.fail(now, NO_ROOM);
                    }
                    return 0;
                }
                Ok(Some(item)) => item,
                Err(refusal) => {
                    // The refusal borrows from the decoder, so stage it at once.
                    client.tx_buffer.push_error(&refusal, false);
                    let code = refusal.code();
                    self.close_rejected(now, code);
                    return 0;
                }
            };
            if !matches!(item, Item::Part { done: false, .. }) {
                self.restart_silence_timer(now);
            }
            self.on_item(now, item);
        }
    }
}
