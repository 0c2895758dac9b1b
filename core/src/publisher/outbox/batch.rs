//! Messages that leave as one command, before and after they were sent.

use super::NOT_DEFERRED;
use crate::publisher::FLIGHTS_MAX;
use crate::time::Span;

/// Consecutive messages of one context that leave as one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// The index in the ring of the first record.
    pub(super) index: usize,
    /// Ring bytes before the records that belong to no batch: headers and expired messages.
    pub(super) skip: u32,
    /// Ring bytes of the records.
    pub(super) bytes: u32,
    /// The number of messages.
    pub(super) count: u32,
    /// The deferral in milliseconds, or [`NOT_DEFERRED`].
    pub(super) defer: u32,
    pub(super) same_context: bool,
}

impl Batch {
    /// Returns the number of messages, at least 1.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Returns the index of the first record, for [`Outbox::bytes`](super::Outbox::bytes).
    pub const fn index(&self) -> usize {
        self.index
    }

    /// Returns the length of all `[u32 size][body]` records in bytes.
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Returns the deferral. A deferred batch has one message.
    pub const fn defer(&self) -> Option<Span> {
        to_defer(self.defer)
    }

    /// Returns whether topic and deferral are those of the batch before; false for the first batch
    /// after [`Outbox::rewind`](super::Outbox::rewind).
    pub const fn same_context(&self) -> bool {
        self.same_context
    }
}

/// Why the outbox rejected a message. The outbox is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// The message fits once others have left.
    Full,
    /// The message never fits; `max` is the longest body for this topic.
    TooLarge {
        /// In bytes.
        max: usize,
    },
}

/// The part of a [`Batch`] that is kept until the batch is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    pub(super) skip: u32,
    pub(super) bytes: u32,
    pub(super) count: u32,
}

impl Flight {
    /// Returns the number of messages.
    pub const fn count(&self) -> u32 {
        self.count
    }
}

impl From<Batch> for Flight {
    fn from(batch: Batch) -> Self {
        Self { skip: batch.skip, bytes: batch.bytes, count: batch.count }
    }
}

/// Batches in flight, oldest first: at most [`FLIGHTS_MAX`].
// A ring of four would cost more in indices than moving three.
#[derive(Debug)]
pub(in crate::publisher) struct Flights {
    len: u8,
    flights: [Flight; FLIGHTS_MAX],
}

impl Flights {
    pub(in crate::publisher) const fn new() -> Self {
        Self { len: 0, flights: [Flight { skip: 0, bytes: 0, count: 0 }; FLIGHTS_MAX] }
    }

    pub(in crate::publisher) fn len(&self) -> usize {
        self.len.into()
    }

    pub(in crate::publisher) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(in crate::publisher) fn is_full(&self) -> bool {
        self.len() == FLIGHTS_MAX
    }

    pub(in crate::publisher) fn clear(&mut self) {
        self.len = 0;
    }

    pub(in crate::publisher) fn first(&self) -> Option<Flight> {
        self.iter().next().copied()
    }

    pub(in crate::publisher) fn iter(&self) -> impl Iterator<Item = &Flight> {
        self.flights.iter().take(self.len())
    }

    /// Appends a batch; does nothing if there are [`FLIGHTS_MAX`] already.
    pub(in crate::publisher) fn push(&mut self, flight: Flight) {
        if let Some(slot) = self.flights.get_mut(usize::from(self.len)) {
            *slot = flight;
            self.len = self.len.wrapping_add(1);
        }
    }

    pub(in crate::publisher) fn pop(&mut self) -> Option<Flight> {
        let first = self.first()?;
        if self.len > 1 {
            let [a, b, c, d] = &mut self.flights;
            (*a, *b, *c) = (*b, *c, *d);
        }
        self.len = self.len.wrapping_sub(1);
        Some(first)
    }
}

/// Converts a deferral to its form in a header.
pub(super) fn from_defer(defer: Option<Span>) -> u32 {
    defer.map_or(NOT_DEFERRED, Span::as_millis)
}

/// Converts a deferral from its form in a header.
const fn to_defer(word: u32) -> Option<Span> {
    if word == NOT_DEFERRED { None } else { Some(Span::from_millis(word)) }
}
