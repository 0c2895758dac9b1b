//! Handles a client's commands.

use super::{Client, ClientSession, RoomRequest, Timer};
use crate::name::TopicName;
use crate::nsqd::engine::{NO_ROOM_UNCONSUMED, NotYours};
use crate::nsqd::table::Origin;
use crate::time::{Instant, Span};
use crate::wire::nsqd::{self, IdentifyScanner, Item, MessageId, Refusal, Verb};

impl ClientSession<'_, '_> {
    pub(super) fn on_item(&mut self, now: Instant, item: Item<'_>) {
        self.client.is_known |= !matches!(item, Item::Identify);
        match item {
            Item::Identify => {
                self.client.verb = Verb::Identify;
                self.client.identify = IdentifyScanner::new();
            }
            Item::Auth => self.client.verb = Verb::Auth,
            Item::Sub { topic, channel } => {
                self.client.verb = Verb::Sub;
                match self.shared.channel_of(now, &topic, &channel) {
                    Ok(at) => {
                        self.shared.join(self.id, at);
                        self.answer(nsqd::OK);
                    }
                    Err(full) => self.fail(now, full.text()),
                }
            }
            Item::Rdy(count) => {
                self.set_ready(u16::try_from(count).unwrap_or(u16::MAX));
            }
            Item::Fin(id) => {
                let done = self.shared.finish(now, self.id, &id);
                self.check(now, Verb::Fin, id, done);
            }
            Item::Req { id, delay_ms } => {
                let done = self.shared.requeue(now, self.id, &id, delay_ms);
                self.check(now, Verb::Req, id, done);
            }
            Item::Touch(id) => {
                let done = self.shared.touch(now, self.id, &id, self.client.msg_timeout);
                self.check(now, Verb::Touch, id, done.map(|_| ()));
            }
            Item::Cls => {
                self.set_ready(0);
                self.answer(nsqd::CLOSE_WAIT);
            }
            Item::Nop => {}
            Item::Pub { topic } => self.on_publish(now, Verb::Pub, topic, 0),
            Item::Mpub { topic } => self.on_publish(now, Verb::Mpub, topic, 0),
            Item::Dpub { topic, defer_ms } => self.on_publish(now, Verb::Dpub, topic, defer_ms),
            Item::Batch { len, count } => match self.shared.batch_blocks(len, count) {
                Some(blocks) => {
                    let rest = len.saturating_sub(4);
                    // Each message takes at least five bytes; otherwise the announced length is
                    // false.
                    let is_true = rest >= count.saturating_mul(5);
                    let len = if is_true { rest } else { u32::MAX };
                    let len = u16::try_from(len).unwrap_or(u16::MAX);
                    self.client.room_request = Some(RoomRequest::Batch { blocks, len });
                }
                None => self.never_fits(now, len, count),
            },
            Item::Body { len } => match self.client.verb {
                Verb::Pub | Verb::Mpub | Verb::Dpub => {
                    self.on_body_bytes(now, 4);
                    if self.shared.never_fits(&self.client.draft, len) {
                        let count = self.client.draft.count().saturating_add(1);
                        self.never_fits(now, 0, count);
                    } else {
                        self.client.room_request = Some(RoomRequest::Message(len));
                    }
                }
                _ => {}
            },
            Item::Part { data, done, .. } => self.on_part(now, data, done),
        }
    }

    fn set_ready(&mut self, ready: u16) {
        if let Some(subscription) = self.subscription() {
            subscription.ready = ready;
        }
        if ready == 0 {
            // Others may take the in-flight entry that was kept for this client.
            self.shared.changed();
        }
    }

    /// Rejects a batch that is too long or has too many messages, with a permanent error: a retry
    /// does not help.
    fn never_fits(&mut self, now: Instant, len: u32, count: u32) {
        // The count of a batch and the length of a message take four bytes each.
        let max = self.shared.limits.max_msg_size.saturating_add(8);
        let refusal = if len > max {
            Refusal::TooBig { verb: Verb::Mpub, len: len as i32, max }
        } else {
            Refusal::BadCount(count as i32)
        };
        self.reject(now, refusal);
    }

    fn on_publish(&mut self, now: Instant, verb: Verb, topic: TopicName, defer_ms: u32) {
        self.client.verb = verb;
        self.client.topic = topic;
        self.client.defer_ms = defer_ms;
        if let Err(full) = self.shared.has_slot_for(now, &topic, Origin::Client) {
            return self.fail(now, full.text());
        }
        self.restart_body_timer(now);
    }

    fn on_part(&mut self, now: Instant, data: &[u8], done: bool) {
        match self.client.verb {
            Verb::Identify => {
                if let Err(refusal) = self.client.identify.feed(data) {
                    self.reject(now, refusal);
                } else if done {
                    self.on_identified(now);
                }
            }
            Verb::Auth => {
                if done {
                    self.reject(now, Refusal::AuthDisabled);
                }
            }
            _ => {
                self.shared.fill(&mut self.client.draft, data);
                if done {
                    self.client.timers.stop(Timer::Body);
                    self.on_published(now);
                } else {
                    self.on_body_bytes(now, data.len());
                }
            }
        }
    }

    fn on_published(&mut self, now: Instant) {
        let Client { topic, draft, .. } = &*self.client;
        if !self.shared.may_commit(now, topic, draft) {
            return self.fail(now, NO_ROOM_UNCONSUMED);
        }
        match self.shared.topic_for(now, &self.client.topic, Origin::Client) {
            Ok(at) => {
                let defer_ms = self.client.defer_ms;
                let (_, count) = self.shared.commit(now, at, &mut self.client.draft, defer_ms);
                if let Some(subscription) = self.subscription() {
                    subscription.count_pubs(at, count);
                }
                self.answer(nsqd::OK);
            }
            Err(full) => self.fail(now, full.text()),
        }
    }

    fn on_identified(&mut self, now: Instant) {
        let settings = match self.client.identify.finish(&self.shared.limits) {
            Ok(identification) => identification.settings,
            Err(refusal) => return self.reject(now, refusal),
        };
        self.client.identified = true;
        self.client.heartbeat = match settings.heartbeat_interval {
            // Unchanged: the default, or the interval of an earlier IDENTIFY.
            0 => self.client.heartbeat,
            // Already checked to be -1, which disables heartbeats, or within the limits.
            ms => Span::from_millis(u32::try_from(ms).unwrap_or(0)),
        };
        self.client.msg_timeout = match settings.msg_timeout {
            0 => self.client.msg_timeout,
            ms => Span::from_millis(ms.unsigned_abs()),
        };
        let beats = self.client.heartbeat != Span::ZERO;
        self.client.commands.set_heartbeats(beats);
        self.client.heartbeat_due = false;
        self.client.timers.stop(Timer::Heartbeat);
        if beats {
            self.client.timers.set(Timer::Heartbeat, now.after(self.client.heartbeat));
        }
        self.restart_silence_timer(now);
        if settings.feature_negotiation {
            self.client.tx_buffer.start_text();
        } else {
            self.answer(nsqd::OK);
        }
    }

    /// Rejects FIN, REQ or TOUCH if it failed; a success has no response.
    fn check(&mut self, now: Instant, verb: Verb, id: MessageId, done: Result<(), NotYours>) {
        match done {
            Ok(()) => {}
            Err(NotYours::NotInFlight) => self.reject(now, Refusal::NotInFlight { verb, id }),
            Err(NotYours::NotOwner) => self.reject(now, Refusal::NotOwner { verb, id }),
        }
    }
}
