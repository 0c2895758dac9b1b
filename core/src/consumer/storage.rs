//! The tables that a consumer borrows.

use super::connection::Connection;
use super::discovery::NsqdSlot;
use super::in_flight::Slot;
use super::lookupd::Lookupd;
use super::rdy::Share;
use super::{Counters, unusable};
use crate::address::Address;

/// The tables of a consumer, for `CONNECTIONS` connections to nsqds and `MESSAGES` messages in
/// flight.
///
/// RAM: at most 288 bytes for each connection, 32 for each message besides the ring, and the
/// [`Counters`].
#[derive(Debug)]
pub struct Storage<const CONNECTIONS: usize, const MESSAGES: usize> {
    pub(super) connections: [Connection; CONNECTIONS],
    pub(super) slots: [NsqdSlot; CONNECTIONS],
    pub(super) shares: [Share; CONNECTIONS],
    pub(super) messages: [Slot; MESSAGES],
    pub(super) tally: Counters,
}

/// The tables of a consumer that queries nsqlookupds, for `LOOKUPDS` nsqlookupds and `NSQDS` listed
/// nsqds. Only the first `NSQDS` connections of the consumer are used for listed nsqds.
///
/// RAM: at most 480 bytes for each nsqlookupd and 104 for each nsqd.
#[derive(Debug)]
pub struct Discovery<const LOOKUPDS: usize, const NSQDS: usize> {
    pub(super) lookupds: [Lookupd; LOOKUPDS],
    pub(super) unusable: [unusable::Entry; LOOKUPDS],
    pub(super) found: [Option<Address>; NSQDS],
}

impl<const CONNECTIONS: usize, const MESSAGES: usize> Storage<CONNECTIONS, MESSAGES> {
    /// Returns empty tables for [`Consumer::new`](super::Consumer::new).
    pub const fn new() -> Self {
        Self {
            connections: [const { Connection::NEW }; CONNECTIONS],
            slots: [const { NsqdSlot::EMPTY }; CONNECTIONS],
            shares: [Share::NONE; CONNECTIONS],
            messages: [Slot::FREE; MESSAGES],
            tally: Counters::NONE,
        }
    }

    // Table by table: a value of the whole would pass through the stack.
    pub(super) fn clear(&mut self) {
        self.connections.fill_with(|| Connection::NEW);
        self.slots.fill(NsqdSlot::EMPTY);
        self.shares.fill(Share::NONE);
        self.messages.fill(Slot::FREE);
        self.tally = Counters::NONE;
    }

    /// Returns the tables, for a ring of `ring` bytes. Inlined: with a constant length no division
    /// is linked.
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
    /// The bytes of a slot in the ring.
    pub(super) unit: usize,
}

impl<const CONNECTIONS: usize, const MESSAGES: usize> Default for Storage<CONNECTIONS, MESSAGES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const LOOKUPDS: usize, const NSQDS: usize> Discovery<LOOKUPDS, NSQDS> {
    /// Returns empty tables for [`Consumer::discover`](super::Consumer::discover).
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
