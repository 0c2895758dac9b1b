//! Stages responses, heartbeats and messages for a client.

use super::{ClientSession, Timer};
use crate::time::Instant;
use crate::wire::nsqd::{self, FrameType, IdentifyResponse, MessageHead};
use crate::wire::{ChunkWriter, saturate};

impl ClientSession<'_, '_> {
    /// Stages the next frame, once the previous one was written.
    pub(super) fn stage(&mut self, now: Instant) {
        if self.client.tx_buffer.has_text() {
            self.stage_answer();
        } else if self.client.heartbeat_due {
            self.client.heartbeat_due = false;
            self.answer(nsqd::HEARTBEAT);
        } else {
            self.stage_message(now);
        }
    }

    /// Stages the next piece of the response to IDENTIFY, which is longer than the buffer and is
    /// therefore encoded again for each piece.
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
            // As in nsqd, no buffer means no timeout.
            output_buffer_size: if size == -1 { 1 } else { or(size, 16_384) },
            output_buffer_timeout: if size == -1 { 0 } else { or(timeout, 250) },
            ..IdentifyResponse::default()
        };
        let len = saturate(response.encoded_len());
        client.tx_buffer.stage_text(|w| {
            nsqd::emit_frame_head(w, FrameType::Response, len)?;
            response.emit(w)
        });
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
        let mut writer = ChunkWriter::new(&mut client.head, 0);
        let Ok(()) = nsqd::emit_message_head(&mut writer, &head, client.body.left);
        let due = now.after(client.msg_timeout).min(client.timers.get(Timer::Due));
        client.timers.set(Timer::Due, due);
    }
}
