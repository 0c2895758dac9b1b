//! The outbox: one byte ring that is its own retransmit buffer.
//!
//! The ring holds *items* in the order of publishing:
//!
//! ```text
//! message  [u32 size][body]                                    size < 2^30
//! header   [u32 2^31 | dead | 12 + t][u32 defer][u64 expiry][topic]
//!          t = topic length; dead = 2^30 if the messages behind it expired, else 0
//! ```
//!
//! A header sets topic, deferral and expiry for the messages behind it, and is written only when
//! one of them changes. Consecutive messages therefore lie in the ring exactly as the tail of an
//! MPUB, each as the tail of a PUB or DPUB, and are sent from the ring without a copy.
//!
//! Three cursors: *head* (every item before it is final), *sent* (every item before it is in a
//! frame on the wire) and the end. A lost connection moves *sent* back to *head*. The last header
//! before head is kept beside the ring; headers behind head are found in the ring.
//!
//! # Bounds
//!
//! The length of the ring is the only bound. A message takes [`RECORD_OVERHEAD`] bytes plus its
//! body; a change of topic, deferral or expiry takes [`HEADER_OVERHEAD`] plus the topic's length.

mod batch;
mod header;
mod ring;

use crate::name::TopicName;
use crate::time::{Instant, Span};

pub(super) use batch::Flights;
use batch::from_defer;
pub use batch::{Batch, Flight, PushError};
use ring::{copy, longest};

/// Ring bytes of a message beside its body.
pub const RECORD_OVERHEAD: usize = 4;

/// Ring bytes of a change of topic, deferral or expiry, beside the topic's name.
pub const HEADER_OVERHEAD: usize = 16;

/// Set in the first word of a header.
const MARK: u32 = 1 << 31;
/// Set in the first word of a header whose messages are resolved as expired: only their bytes
/// remain.
const DEAD: u32 = 1 << 30;
/// The bits of the size in the first word of an item.
const SIZE: u32 = DEAD - 1;

/// The longest ring that is used whole.
pub const RING_MAX: usize = SIZE as usize;

/// The deferral of a header whose messages are not deferred: PUB or MPUB.
const NOT_DEFERRED: u32 = u32::MAX;

/// The properties of a message beside its body.
#[derive(Debug)]
struct Context {
    /// The topic that the message is published to.
    topic: TopicName,
    /// How long nsqd holds the message back, in milliseconds, or [`NOT_DEFERRED`].
    defer: u32,
    /// When the message expires; [`Instant::NEVER`] for never.
    expiry: Instant,
    /// The messages were resolved as expired.
    dead: bool,
}

/// Pending messages, in a ring that the user lends. See the [module](self).
// All positions are at most the ring's length, 2^30, and the sum of two of them is exact.
#[derive(Debug)]
#[repr(C)]
pub struct Outbox<'a> {
    ring: &'a mut [u8],
    /// The index of the first item.
    head: usize,
    /// Bytes from head to the end.
    used: usize,
    /// Bytes from head to the first item that is in no frame yet.
    sent: usize,
    /// The last header before `sent`, in bytes from head; [`PASSED`] if head has passed it.
    sent_header: usize,
    /// The last header in the ring, likewise.
    last_header: usize,
    /// Messages from head to the end.
    messages: u32,
    /// Messages from head to `sent`.
    sent_messages: u32,
    /// The number of the first message at or behind head.
    first: u64,
    /// No live message expires before this time.
    next_expiry: Instant,
    /// The content of the last header before head.
    context: Context,
    /// A batch with the context of `sent_header` was given out.
    given: bool,
}

/// The position of a header that head has passed.
const PASSED: usize = usize::MAX;

impl<'a> Outbox<'a> {
    /// Creates an empty outbox over `ring`. At most 1 GiB of the ring is used.
    pub const fn new(ring: &'a mut [u8]) -> Self {
        Self {
            ring: longest(ring),
            head: 0,
            used: 0,
            sent: 0,
            sent_header: PASSED,
            last_header: PASSED,
            messages: 0,
            sent_messages: 0,
            first: 0,
            next_expiry: Instant::NEVER,
            // No message is ever published with this context.
            context: Context {
                topic: TopicName::NONE,
                defer: NOT_DEFERRED,
                expiry: Instant::NEVER,
                dead: true,
            },
            given: false,
        }
    }

    /// Lends a ring to an outbox without one.
    pub(super) fn set_ring(&mut self, ring: &'a mut [u8]) {
        self.ring = longest(ring);
    }

    /// Appends a message and returns its number: 0, 1, 2, ...
    ///
    /// `body` must not be empty; the publisher ensures that.
    pub fn push(
        &mut self,
        topic: &TopicName,
        body: &[u8],
        defer: Option<Span>,
        expiry: Instant,
    ) -> Result<u64, PushError> {
        let name = topic.as_bytes();
        let header = HEADER_OVERHEAD.wrapping_add(name.len());
        // Always counts a header, so that the answer does not depend on the content of the ring.
        let max = self.ring.len().saturating_sub(header.wrapping_add(RECORD_OVERHEAD));
        if body.len() > max {
            return Err(PushError::TooLarge { max });
        }
        let record = RECORD_OVERHEAD.wrapping_add(body.len());
        let defer = from_defer(defer);
        let known = self.is_last_context(name, defer, expiry);
        let need = if known { record } else { record.wrapping_add(header) };
        if need > self.free() {
            return Err(PushError::Full);
        }
        if !known {
            self.last_header = self.used;
            let word = MARK | (header.wrapping_sub(4) as u32);
            self.append(&word.to_be_bytes());
            self.append(&defer.to_be_bytes());
            self.append(&expiry.as_micros().to_be_bytes());
            self.append(name);
            self.next_expiry = self.next_expiry.min(expiry);
        }
        // The length is below 2^30, as the ring's length is.
        let size = (body.len() as u32).to_be_bytes();
        let start = self.offset(self.used);
        let room = self.ring.get_mut(start..).unwrap_or_default();
        match room.split_at_mut_checked(record).and_then(|(to, _)| to.split_first_chunk_mut()) {
            Some((first, to)) => {
                *first = size;
                copy(to, body);
                self.used = self.used.wrapping_add(record);
            }
            // The record wraps at the end of the ring.
            None => {
                self.append(&size);
                self.append(body);
            }
        }
        let number = self.end();
        self.messages = self.messages.wrapping_add(1);
        Ok(number)
    }

    /// Returns the next messages that can leave as one command, and moves *sent* behind them: at
    /// most `max_count` messages and `max_bytes` of records (a single message may be longer).
    pub fn next_batch(&mut self, max_count: u32, max_bytes: u32) -> Option<Batch> {
        let mut at = self.sent;
        let mut header = self.sent_header;
        let mut dead = self.is_dead(header);
        let mut same_context = self.given;
        let mut skipped = 0u32;
        let first = loop {
            let word = self.word(at)?;
            let size = item_size(word);
            if word & MARK != 0 {
                header = at;
                dead = word & DEAD != 0;
                same_context = false;
            } else if dead {
                skipped = skipped.wrapping_add(1);
            } else {
                break size;
            }
            at = at.wrapping_add(size);
        };
        let defer = self.defer_at(header);
        let before = self.sent_messages.wrapping_add(skipped);
        let max_count = if defer != NOT_DEFERRED { 1 } else { max_count };
        let mut bytes = first;
        let mut count = 1u32;
        while count < max_count {
            let Some(word) = self.word(at.wrapping_add(bytes)) else { break };
            let longer = bytes.wrapping_add(item_size(word));
            if word & MARK != 0 || longer > max_bytes as usize {
                break;
            }
            bytes = longer;
            count = count.wrapping_add(1);
        }
        let skip = at.wrapping_sub(self.sent) as u32;
        self.sent = at.wrapping_add(bytes);
        self.sent_header = header;
        self.sent_messages = before.wrapping_add(count);
        self.given = true;
        let index = self.offset(at);
        Some(Batch { index, skip, bytes: bytes as u32, count, defer, same_context })
    }

    /// Returns the topic of the last [`next_batch`](Self::next_batch), in two pieces, since the
    /// name may wrap at the end of the ring.
    pub fn batch_topic(&self) -> (&[u8], &[u8]) {
        self.topic_at(self.sent_header)
    }

    /// Returns the bytes from `index` on, at most `len` and at most to the end of the ring.
    pub fn bytes(&self, index: usize, len: usize) -> &[u8] {
        let rest = self.ring.get(index..).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }

    /// Returns the index `n` bytes behind `index`, round the end of the ring.
    pub fn advance(&self, index: usize, n: usize) -> usize {
        let index = index.wrapping_add(n);
        if index < self.ring.len() { index } else { index.wrapping_sub(self.ring.len()) }
    }

    /// Moves head past the oldest batch: its messages are final, its bytes free.
    ///
    /// Returns the number of its first message, and how many of its messages were live; the others
    /// were resolved as expired before.
    pub fn resolve(&mut self, batch: &Flight) -> (u64, u32) {
        let mut skip = batch.skip as usize;
        while skip > 0 {
            let Some(size) = self.pass_item() else { break };
            skip = skip.saturating_sub(size);
        }
        let first = self.first;
        self.pass(batch.bytes as usize, batch.count);
        let live = if self.context.dead { 0 } else { batch.count };
        if self.sent == 0 {
            self.free_dead();
        }
        (first, live)
    }

    /// Moves *sent* back to head, as nothing is on the wire any more. Frees expired messages at
    /// head.
    pub fn rewind(&mut self) {
        self.sent = 0;
        self.sent_messages = 0;
        self.sent_header = PASSED;
        self.given = false;
        self.free_dead();
    }

    /// Drops the oldest message and returns its number, unless the message is on the wire.
    pub fn drop_oldest(&mut self) -> Option<u64> {
        if self.sent > 0 {
            return None;
        }
        // Passes headers and expired messages in front of it.
        self.free_dead();
        let number = self.first;
        self.pass_item()?;
        self.free_dead();
        Some(number)
    }

    /// Resolves the messages that expire at `now`, and calls `expired(first number, count)` for
    /// each run of them, oldest first. Their bytes are freed as head reaches them.
    pub fn expire(&mut self, now: Instant, mut expired: impl FnMut(u64, u32)) {
        if now < self.next_expiry || self.next_expiry == Instant::NEVER {
            return;
        }
        self.next_expiry = Instant::NEVER;
        let mut at = 0;
        let mut number = self.first;
        let mut header = PASSED;
        loop {
            // One header and the messages behind it.
            let begin = number;
            let end = loop {
                let Some(word) = self.word(at) else { break None };
                if word & MARK != 0 {
                    break Some((at, item_size(word)));
                }
                number = number.wrapping_add(1);
                at = at.wrapping_add(item_size(word));
            };
            if !self.is_dead(header) {
                let expiry = self.expiry_at(header);
                if expiry <= now && expiry != Instant::NEVER {
                    self.kill(header);
                    let count = number.wrapping_sub(begin) as u32;
                    if count > 0 {
                        expired(begin, count);
                    }
                } else {
                    self.next_expiry = self.next_expiry.min(expiry);
                }
            }
            let Some((next, size)) = end else { break };
            header = next;
            at = next.wrapping_add(size);
        }
        if self.sent == 0 {
            self.free_dead();
        }
    }

    /// Returns when [`expire`](Self::expire) is due; [`Instant::NEVER`] for never.
    pub fn next_expiry(&self) -> Instant {
        if self.messages == 0 { Instant::NEVER } else { self.next_expiry }
    }

    /// Returns the number of the first message that is not final.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// Returns the number that the next message will get.
    pub fn end(&self) -> u64 {
        self.first.wrapping_add(self.messages.into())
    }

    /// Returns how many messages are in the ring, including expired ones whose bytes are not free
    /// yet.
    pub fn messages(&self) -> u32 {
        self.messages
    }

    /// Returns whether all items are in frames on the wire.
    pub fn all_sent(&self) -> bool {
        self.sent >= self.used
    }

    /// Returns the number of bytes in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Returns the number of free bytes.
    pub fn free(&self) -> usize {
        self.ring.len().wrapping_sub(self.used)
    }

    /// Returns the length of the ring in bytes.
    pub fn capacity(&self) -> usize {
        self.ring.len()
    }

    fn free_dead(&mut self) {
        while let Some(word) = self.word(0) {
            if word & MARK == 0 && !self.context.dead {
                break;
            }
            let _ = self.pass_item();
        }
    }

    /// Moves head past one item; a header becomes the context.
    fn pass_item(&mut self) -> Option<usize> {
        let word = self.word(0)?;
        let size = item_size(word);
        if word & MARK != 0 {
            self.context.defer = self.defer_at(0);
            self.context.expiry = self.expiry_at(0);
            self.context.dead = word & DEAD != 0;
            let start = self.offset(HEADER_OVERHEAD);
            let name = self.ring.get(start..).unwrap_or_default().iter().chain(&*self.ring);
            self.context.topic.set(name.take(size.wrapping_sub(HEADER_OVERHEAD)));
            if self.sent == 0 {
                self.given = false;
            }
            self.pass(size, 0);
        } else {
            self.pass(size, 1);
        }
        Some(size)
    }

    /// Moves head past `bytes` bytes of items, which hold `messages` messages.
    fn pass(&mut self, bytes: usize, messages: u32) {
        self.head = self.offset(bytes);
        self.used = self.used.wrapping_sub(bytes);
        self.sent = self.sent.saturating_sub(bytes);
        for header in [&mut self.sent_header, &mut self.last_header] {
            *header = if *header != PASSED && *header >= bytes {
                header.wrapping_sub(bytes)
            } else {
                PASSED
            };
        }
        self.first = self.first.wrapping_add(messages.into());
        self.messages = self.messages.wrapping_sub(messages);
        self.sent_messages = self.sent_messages.saturating_sub(messages);
        if self.used == 0 {
            // So that the next message does not wrap.
            self.head = 0;
        }
    }

    /// Returns the big-endian word at `at` bytes from head, if that is before the end.
    fn word(&self, at: usize) -> Option<u32> {
        if at >= self.used {
            return None;
        }
        let start = self.offset(at);
        let rest = self.ring.get(start..)?;
        if let Some(word) = rest.first_chunk::<4>() {
            return Some(u32::from_be_bytes(*word));
        }
        let mut word = 0u32;
        for &byte in rest.iter().chain(self.ring.iter()).take(4) {
            word = (word << 8) | u32::from(byte);
        }
        Some(word)
    }

    #[inline(never)]
    fn append(&mut self, bytes: &[u8]) {
        self.write(self.used, bytes);
        self.used = self.used.wrapping_add(bytes.len());
    }

    fn write(&mut self, at: usize, bytes: &[u8]) {
        let start = self.offset(at);
        let room = self.ring.len().saturating_sub(start);
        let (one, two) = bytes.split_at_checked(room).unwrap_or((bytes, &[]));
        copy(self.ring.get_mut(start..).unwrap_or_default(), one);
        copy(self.ring, two);
    }

    /// Returns the index in the ring of the byte `at` bytes from head.
    fn offset(&self, at: usize) -> usize {
        self.advance(self.head, at)
    }
}

const fn item_size(word: u32) -> usize {
    RECORD_OVERHEAD.wrapping_add((word & SIZE) as usize)
}
