//! The headers of the ring, and the last one before head, which is kept beside it.

use super::{DEAD, HEADER_OVERHEAD, NOT_DEFERRED, Outbox, PASSED, item_size};
use crate::time::Instant;

impl Outbox<'_> {
    pub(super) fn kill(&mut self, header: usize) {
        if header == PASSED {
            self.context.dead = true;
        } else if let Some(word) = self.word(header) {
            self.write(header, &(word | DEAD).to_be_bytes());
        }
    }

    pub(super) fn is_dead(&self, header: usize) -> bool {
        if header == PASSED {
            self.context.dead
        } else {
            self.word(header).is_some_and(|word| word & DEAD != 0)
        }
    }

    /// Returns whether a message for `topic` can follow the last one without a header.
    pub(super) fn is_last_context(&self, topic: &[u8], defer: u32, expiry: Instant) -> bool {
        let header = self.last_header;
        if header == PASSED {
            let context = &self.context;
            return topic == context.topic.as_bytes()
                && (context.defer, context.expiry, context.dead) == (defer, expiry, false);
        }
        let (one, two) = self.topic_at(header);
        topic.strip_prefix(one) == Some(two)
            && self.defer_at(header) == defer
            && self.expiry_at(header) == expiry
            && !self.is_dead(header)
    }

    pub(super) fn expiry_at(&self, header: usize) -> Instant {
        if header == PASSED {
            return self.context.expiry;
        }
        let high = self.word(header.wrapping_add(8)).unwrap_or_default();
        let low = self.word(header.wrapping_add(12)).unwrap_or_default();
        Instant::from_micros((u64::from(high) << 32) | u64::from(low))
    }

    pub(super) fn defer_at(&self, header: usize) -> u32 {
        if header == PASSED {
            return self.context.defer;
        }
        self.word(header.wrapping_add(4)).unwrap_or(NOT_DEFERRED)
    }

    pub(super) fn topic_at(&self, header: usize) -> (&[u8], &[u8]) {
        if header == PASSED {
            return (self.context.topic.as_bytes(), &[]);
        }
        let len = item_size(self.word(header).unwrap_or_default()).wrapping_sub(HEADER_OVERHEAD);
        let one = self.bytes(self.offset(header.wrapping_add(HEADER_OVERHEAD)), len);
        (one, self.bytes(0, len.wrapping_sub(one.len())))
    }
}
