//! A client of nsqd, publisher or consumer, as one type: a program with both links one copy of the
//! driver and of the lock.

use super::shared::{State, WithSessions};
#[cfg(feature = "consumer")]
use crate::consumer::Consumer;
#[cfg(feature = "publisher")]
use crate::publisher::Publisher;
use crate::session::Session;

/// A reference to a client.
///
/// The lock holds a reference because embassy-sync locks only sized types. The client is `Send`, so
/// that a runner whose lock threads may share can move to another thread.
pub(super) type ClientRef<'a> = &'a mut (dyn Client<'a> + Send);

/// A publisher or a consumer.
pub(super) trait Client<'a> {
    /// See [`State::version`].
    fn version(&self) -> u32;

    /// See [`WithSessions::with_session`].
    fn with_session(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool;

    /// Returns the publisher, if the client is one.
    #[cfg(feature = "publisher")]
    fn as_publisher(&mut self) -> Option<&mut Publisher<'a>> {
        None
    }

    /// Returns the consumer, if the client is one.
    #[cfg(feature = "consumer")]
    fn as_consumer(&mut self) -> Option<&mut Consumer<'a>> {
        None
    }
}

impl State for ClientRef<'_> {
    type Version = u32;

    fn version(&self) -> u32 {
        (**self).version()
    }
}

impl WithSessions for ClientRef<'_> {
    fn with_session(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool {
        (**self).with_session(index, f)
    }
}

#[cfg(feature = "publisher")]
impl<'a> Client<'a> for Publisher<'a> {
    fn version(&self) -> u32 {
        self.version()
    }

    fn with_session(&mut self, _: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool {
        f(self);
        false
    }

    fn as_publisher(&mut self) -> Option<&mut Publisher<'a>> {
        Some(self)
    }
}

#[cfg(feature = "consumer")]
impl<'a> Client<'a> for Consumer<'a> {
    fn version(&self) -> u32 {
        self.version()
    }

    fn with_session(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) -> bool {
        self.with_session(index, f);
        // Input of one connection may create output for another.
        true
    }

    fn as_consumer(&mut self) -> Option<&mut Consumer<'a>> {
        Some(self)
    }
}
