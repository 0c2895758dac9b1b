//! How a driver reaches its session: through a `dyn`, one copy of the driver for all kinds of
//! sessions, or as a type of its own.

use core::task::Waker;

use super::ROUNDS_MAX;
use crate::address::Address;
use crate::session::Session;
use crate::time::Instant;

/// An access to a session, which may be owned, shared within a task, or behind a lock.
pub(in crate::drive) trait SessionAccess {
    /// Runs `f` once on the session, or not at all if there is no such session.
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session));

    /// Arranges that the task wakes when anything but the driver changes the session.
    fn register(&mut self, waker: &Waker);
}

/// The driver's access to its session; see [`SessionAccess`].
///
/// The driver's steps are generic over it. With a `dyn`, all kinds of sessions share one copy of
/// the steps; an access to a session of one type has a copy of its own, with direct calls.
pub(in crate::drive) trait Access {
    /// The session's type, or `dyn Session`.
    type Session<'s>: Session + ?Sized;
    /// See [`Steps::Whom`].
    type Whom;

    /// The number of rounds in one poll before other tasks run.
    const ROUNDS: u8;
    /// The number of rounds for which the session is held without a break.
    const ROUNDS_AT_ONCE: u8;

    /// See [`SessionAccess::with`].
    fn with(&mut self, f: impl FnMut(&mut Self::Session<'_>));

    /// Starts a dial if one is due; `whom` is then whom to dial.
    fn dial(session: &mut Self::Session<'_>, now: Instant, whom: &mut Self::Whom) -> bool;

    /// See [`SessionAccess::register`].
    fn register(&mut self, waker: &Waker);

    /// Returns whether the poll ends here because the task polls again without a waker: the session
    /// has news for the application.
    fn is_changed(&self) -> bool {
        false
    }
}

impl Access for dyn SessionAccess + '_ {
    type Session<'s> = dyn Session + 's;
    type Whom = Address;

    const ROUNDS: u8 = ROUNDS_MAX;
    // An input is read, answered, and the next one awaited, under one lock.
    const ROUNDS_AT_ONCE: u8 = 2;

    fn with(&mut self, mut f: impl FnMut(&mut Self::Session<'_>)) {
        SessionAccess::with(self, &mut f);
    }

    fn dial(session: &mut Self::Session<'_>, now: Instant, whom: &mut Address) -> bool {
        let due = session.dial(now);
        if let Some(address) = due {
            whom.clone_from(address);
        }
        due.is_some()
    }

    fn register(&mut self, waker: &Waker) {
        SessionAccess::register(self, waker);
    }
}

/// The code of the driver's steps for an access: all kinds of accesses share one copy, except
/// those that implement this themselves.
pub(in crate::drive) trait Steps {
    /// The access that the steps use.
    type Access<'s>: Access<Whom = Self::Whom> + ?Sized + 's
    where
        Self: 's;
    /// The address to dial: a copy, or a reference if the session lends it for long enough.
    type Whom;

    /// No address.
    const NOBODY: Self::Whom;

    /// Returns the address to dial.
    fn address(whom: &Self::Whom) -> Option<&Address>;

    /// Returns the access.
    fn steps(&mut self) -> &mut Self::Access<'_>;
}

impl<A: SessionAccess> Steps for A {
    type Access<'s>
        = dyn SessionAccess + 's
    where
        A: 's;
    type Whom = Address;

    const NOBODY: Address = Address::NONE;

    fn address(whom: &Address) -> Option<&Address> {
        Some(whom)
    }

    fn steps(&mut self) -> &mut Self::Access<'_> {
        shared_code(self)
    }
}

/// Returns the access as a `dyn`, so that the program has one copy of the steps that use it.
pub(in crate::drive) fn shared_code<'s>(
    access: &'s mut impl SessionAccess,
) -> &'s mut (dyn SessionAccess + 's) {
    access
}
