//! What is a client of nsqd, publisher or consumer, as one type: so a program that is both has one
//! copy of the driver, of the lock and of what its connections do with them.

use super::shared::State;
use crate::consumer::Consumer;
use crate::publisher::Publisher;
use crate::session::Session;

/// An `Option` of which `None` is zero: resources that are empty are memory that is cleared, not a
/// copy of an image in flash.
#[derive(Debug)]
#[repr(u8)]
pub(super) enum Late<T> {
    Empty,
    Full(T),
}

impl<T> Late<T> {
    /// Puts it there.
    pub(super) fn insert(&mut self, value: T) -> &mut T {
        *self = Self::Full(value);
        // It is full now, so this ends at once; the compiler sees that, and links no panic.
        loop {
            if let Self::Full(value) = self {
                return value;
            }
        }
    }
}

/// A client, where it lies.
///
/// By a reference rather than in the lock: embassy-sync locks sized types only. `Send`, so that the
/// runner of a lock that threads may share can go to another thread.
pub(super) struct Client<'a>(&'a mut (dyn Machine<'a> + Send));

/// One of the kinds of clients.
pub(super) trait Machine<'a> {
    /// See [`State::version`].
    fn version(&self) -> u32;

    /// See [`State::with`].
    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool;

    /// It, if it is one.
    fn as_publisher(&mut self) -> Option<&mut Publisher<'a>> {
        None
    }

    /// It, if it is one.
    fn as_consumer(&mut self) -> Option<&mut Consumer<'a>> {
        None
    }
}

impl<'a> Client<'a> {
    pub(super) fn new(machine: &'a mut (dyn Machine<'a> + Send)) -> Self {
        Self(machine)
    }

    pub(super) fn as_publisher(&mut self) -> Option<&mut Publisher<'a>> {
        self.0.as_publisher()
    }

    pub(super) fn as_consumer(&mut self) -> Option<&mut Consumer<'a>> {
        self.0.as_consumer()
    }
}

impl State for Client<'_> {
    type Version = u32;

    fn version(&self) -> u32 {
        self.0.version()
    }

    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool {
        self.0.with(index, f)
    }
}
