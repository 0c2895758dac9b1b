//! The tables that a consumer borrows.

use super::connection::Connection;
use super::discovery::NsqdSlot;
use super::in_flight::Slot;
use super::lookupd::Lookupd;
use super::rdy::Share;
use super::{Counters, unusable};
use crate::address::Address;

/// The tables of a consumer: for so many connections to nsqds and messages in flight.
///
/// RAM: at most 288 bytes a connection, 32 a message beside the ring, and the [`Counters`].
#[derive(Debug)]
pub struct Storage<const CONNECTIONS: usize, const MESSAGES: usize> {
    pub(super) connections: [Connection; CONNECTIONS],
    pub(super) slots: [NsqdSlot; CONNECTIONS],
    pub(super) shares: [Share; CONNECTIONS],
    pub(super) messages: [Slot; MESSAGES],
    pub(super) tally: Counters,
}

/// The tables of a consumer that asks nsqlookupds: for so many of them, and so many nsqds that
/// they list. Only the first `NSQDS` connections of the consumer are used for found nsqds.
///
/// RAM: at most 480 bytes an nsqlookupd and 104 an nsqd.
#[derive(Debug)]
pub struct Discovery<const LOOKUPDS: usize, const NSQDS: usize> {
    pub(super) lookupds: [Lookupd; LOOKUPDS],
    pub(super) unusable: [unusable::Entry; LOOKUPDS],
    pub(super) found: [Option<Address>; NSQDS],
}

impl<const CONNECTIONS: usize, const MESSAGES: usize> Storage<CONNECTIONS, MESSAGES> {
    /// Empty; [`Consumer::new`](super::Consumer::new) fills it.
    pub const fn new() -> Self {
        Self {
            connections: [const { Connection::NEW }; CONNECTIONS],
            slots: [const { NsqdSlot::EMPTY }; CONNECTIONS],
            shares: [Share::NONE; CONNECTIONS],
            messages: [Slot::FREE; MESSAGES],
            tally: Counters::NONE,
        }
    }

    // One by one: as a whole, it would pass through the stack.
    pub(super) fn clear(&mut self) {
        self.connections.fill_with(|| Connection::NEW);
        self.slots.fill(NsqdSlot::EMPTY);
        self.shares.fill(Share::NONE);
        self.messages.fill(Slot::FREE);
        self.tally = Counters::NONE;
    }

    /// With a ring of so many bytes, which is usually known when it is compiled: no division then.
    #[inline]
    pub(crate) fn tables(&mut self, ring: usize) -> Tables<'_> {
        let Self { connections, slots, shares, messages, tally } = self;
        let unit = ring.checked_div(MESSAGES).unwrap_or_default();
        Tables { connections, slots, shares, messages, tally, unit }
    }
}

/// A [`Storage`] of any size.
pub(crate) struct Tables<'a> {
    pub(super) connections: &'a mut [Connection],
    pub(super) slots: &'a mut [NsqdSlot],
    pub(super) shares: &'a mut [Share],
    pub(super) messages: &'a mut [Slot],
    pub(super) tally: &'a mut Counters,
    /// Bytes of a slot.
    pub(super) unit: usize,
}

impl<const CONNECTIONS: usize, const MESSAGES: usize> Default for Storage<CONNECTIONS, MESSAGES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const LOOKUPDS: usize, const NSQDS: usize> Discovery<LOOKUPDS, NSQDS> {
    /// Empty; [`Consumer::discover`](super::Consumer::discover) fills it.
    pub const fn new() -> Self {
        Self {
            lookupds: [const { Lookupd::ZERO }; LOOKUPDS],
            unusable: [const { unusable::Entry::FREE }; LOOKUPDS],
            found: [const { None }; NSQDS],
        }
    }
}

impl<const LOOKUPDS: usize, const NSQDS: usize> Default for Discovery<LOOKUPDS, NSQDS> {
    fn default() -> Self {
        Self::new()
    }
}
