//! What a client sends: its commands, as far as there is room for what they publish.

use super::{Client, ClientSession, State, Timer, Want};
use crate::nsqd::engine::{NO_ROOM, Piece};
use crate::time::Instant;
use crate::wire::nsqd::{Item, Verb};

/// So many bytes of what is published have
/// [`Config::body_timeout`](crate::nsqd::Config::body_timeout), and so has what is left.
const BODY_STEP: u16 = 1024;

impl ClientSession<'_, '_> {
    /// Whether there is room for what the client publishes, or nothing is wanted.
    pub(super) fn has_room(&mut self, now: Instant) -> bool {
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
    pub(super) fn expect(&mut self, now: Instant) {
        self.client.step = 0;
        self.client.timers.set(Timer::Body, now.after(self.shared.config.body_timeout));
    }

    /// So much of it came.
    pub(super) fn progress(&mut self, now: Instant, len: usize) {
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

    /// Reads what there is room for; how much is left of it.
    pub(super) fn read(&mut self, now: Instant, bytes: &[u8]) -> usize {
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
