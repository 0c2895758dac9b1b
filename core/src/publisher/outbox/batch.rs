//! Messages that leave as one command, before and after they have left.

use super::NOT_DEFERRED;
use crate::publisher::FLIGHTS_MAX;
use crate::time::Span;

/// Consecutive messages of one context that leave as one command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    /// Where in the ring its records start.
    pub(super) index: usize,
    /// Ring bytes before it that belong to no batch: headers and expired messages.
    pub(super) skip: u32,
    /// Ring bytes of its records.
    pub(super) bytes: u32,
    /// How many messages.
    pub(super) count: u32,
    /// How it is deferred.
    pub(super) defer: u32,
    pub(super) same_context: bool,
}

impl Batch {
    /// How many messages it has, at least 1.
    pub const fn count(&self) -> u32 {
        self.count
    }

    /// Where its records start, for [`Outbox::bytes`](super::Outbox::bytes).
    pub const fn index(&self) -> usize {
        self.index
    }

    /// How many bytes its `[u32 size][body]` records take.
    pub const fn bytes(&self) -> u32 {
        self.bytes
    }

    /// How it is deferred. A deferred batch has one message.
    pub const fn defer(&self) -> Option<Span> {
        to_defer(self.defer)
    }

    /// It has the topic and the deferral of the batch before it; none was before the first since
    /// [`Outbox::rewind`](super::Outbox::rewind).
    pub const fn same_context(&self) -> bool {
        self.same_context
    }
}

/// Why the outbox did not take a message; it is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PushError {
    /// It fits once others have left.
    Full,
    /// It never fits; `max` is the longest body for this topic.
    TooLarge {
        /// In bytes.
        max: usize,
    },
}

/// What stays of a [`Batch`] while its answer is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flight {
    pub(super) skip: u32,
    pub(super) bytes: u32,
    pub(super) count: u32,
}

impl Flight {
    /// How many messages are in it.
    pub const fn count(&self) -> u32 {
        self.count
    }
}

impl From<Batch> for Flight {
    fn from(batch: Batch) -> Self {
        Self { skip: batch.skip, bytes: batch.bytes, count: batch.count }
    }
}

/// Batches whose answer is due, oldest first: at most [`FLIGHTS_MAX`].
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

    /// Nothing if it is full.
    pub(in crate::publisher) fn push(&mut self, flight: Flight) {
        if let Some(slot) = self.flights.get_mut(usize::from(self.len)) {
            *slot = flight;
            self.len = self.len.wrapping_add(1);
        }
    }

    pub(in crate::publisher) fn pop(&mut self) -> Option<Flight> {
        let first = self.first()?;
        let [a, b, c, d] = &mut self.flights;
        (*a, *b, *c) = (*b, *c, *d);
        self.len = self.len.wrapping_sub(1);
        Some(first)
    }
}

/// As a header has it.
pub(super) fn from_defer(defer: Option<Span>) -> u32 {
    defer.map_or(NOT_DEFERRED, Span::as_millis)
}

/// As the caller gives it.
const fn to_defer(word: u32) -> Option<Span> {
    if word == NOT_DEFERRED { None } else { Some(Span::from_millis(word)) }
}
