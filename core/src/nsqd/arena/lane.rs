//! The lanes of a message: its state in each channel of its topic.

use super::{Arena, Block, at};
use crate::time::{Instant, Span};

/// The base counts units of `1 << BASE_SHIFT` ms, 65.536 s. It saturates after 8,900 years.
const BASE_SHIFT: u32 = 16;

/// The longest deferral in milliseconds: 2^32 less the unit of the base, 49.7 days.
pub(in crate::nsqd) const DELAY_MAX_MS: u32 = u32::MAX - ((1 << BASE_SHIFT) - 1);

/// Marks in the state of a lane that the message is the last of its siblings in the channel's heap:
/// its link is to its parent.
const LAST: u8 = 1 << 7;

// The offsets in a lane.
const STATE: usize = 0;
const ATTEMPTS: usize = 1;
const NEXT: usize = ATTEMPTS + 2;
const DUE: usize = NEXT + size_of::<Block>();
const CHILD: usize = DUE + 4;

/// The length of a lane.
pub(super) const LANE_LEN: usize = CHILD + size_of::<Block>();

/// The state of a message in one channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::nsqd) enum Lane {
    /// The channel does not need the message: the channel is newer, or done with the message.
    Done = 0,
    /// The channel's cursor has not passed the message.
    Queued = 1,
    /// The message is in the channel's list of requeued messages.
    Requeued = 2,
    /// The message is in the channel's heap of deferred messages.
    Deferred = 3,
    /// The message is in one of the channel's in-flight entries.
    InFlight = 4,
}

impl Arena<'_> {
    pub(in crate::nsqd) fn lane(&self, message: Block, lane: u8) -> Lane {
        let [state] = self.get(message, at(lane, STATE));
        match state & !LAST {
            1 => Lane::Queued,
            2 => Lane::Requeued,
            3 => Lane::Deferred,
            4 => Lane::InFlight,
            _ => Lane::Done,
        }
    }

    pub(in crate::nsqd) fn set_lane(&mut self, message: Block, lane: u8, state: Lane) {
        self.put(message, at(lane, STATE), [state as u8]);
    }

    /// Returns since when a topic holds a message. Stored in the first lane's attempts and next.
    pub(in crate::nsqd) fn held_since(&self, message: Block) -> u32 {
        u32::from_ne_bytes(self.get(message, at(0, ATTEMPTS)))
    }

    pub(in crate::nsqd) fn set_held_since(&mut self, message: Block, since: u32) {
        self.put(message, at(0, ATTEMPTS), since.to_ne_bytes());
    }

    /// Returns how often the channel has delivered the message.
    pub(in crate::nsqd) fn attempts(&self, message: Block, lane: u8) -> u16 {
        u16::from_ne_bytes(self.get(message, at(lane, ATTEMPTS)))
    }

    pub(in crate::nsqd) fn set_attempts(&mut self, message: Block, lane: u8, attempts: u16) {
        self.put(message, at(lane, ATTEMPTS), attempts.to_ne_bytes());
    }

    /// Returns the deferral of a message that its topic holds. Stored in the first lane's due time.
    pub(in crate::nsqd) fn delay(&self, message: Block) -> Span {
        Span::from_millis(u32::from_ne_bytes(self.get(message, at(0, DUE))))
    }

    pub(in crate::nsqd) fn set_delay(&mut self, message: Block, delay_ms: u32) {
        self.put(message, at(0, DUE), delay_ms.to_ne_bytes());
    }

    /// Returns the next message of the channel's requeued list.
    pub(in crate::nsqd) fn lane_next(&self, message: Block, lane: u8) -> Block {
        Block::from_ne_bytes(self.get(message, at(lane, NEXT)))
    }

    pub(in crate::nsqd) fn set_lane_next(&mut self, message: Block, lane: u8, next: Block) {
        self.put(message, at(lane, NEXT), next.to_ne_bytes());
    }

    /// Returns the next sibling of a message in the channel's heap, and false. For the last sibling
    /// returns the parent, and true.
    pub(in crate::nsqd) fn sibling(&self, message: Block, lane: u8) -> (Block, bool) {
        let [state] = self.get(message, at(lane, STATE));
        (self.lane_next(message, lane), state & LAST != 0)
    }

    pub(in crate::nsqd) fn set_sibling(
        &mut self,
        message: Block,
        lane: u8,
        next: Block,
        is_last: bool,
    ) {
        let [state] = self.get(message, at(lane, STATE));
        self.put(message, at(lane, STATE), [if is_last { state | LAST } else { state & !LAST }]);
        self.set_lane_next(message, lane, next);
    }

    /// Returns the first child of a message in the channel's heap.
    pub(in crate::nsqd) fn child(&self, message: Block, lane: u8) -> Block {
        Block::from_ne_bytes(self.get(message, at(lane, CHILD)))
    }

    pub(in crate::nsqd) fn set_child(&mut self, message: Block, lane: u8, first: Block) {
        self.put(message, at(lane, CHILD), first.to_ne_bytes());
    }

    /// Returns when a deferred message is due, rounded up to milliseconds.
    pub(in crate::nsqd) fn due(&self, message: Block, lane: u8) -> Instant {
        self.after_base(self.due_after_base(message, lane))
    }

    /// Returns when a deferred message is due, in milliseconds after the base.
    pub(in crate::nsqd) fn due_after_base(&self, message: Block, lane: u8) -> u32 {
        let due = u32::from_ne_bytes(self.get(message, at(lane, DUE)));
        due.wrapping_sub(self.base << BASE_SHIFT)
    }

    /// Sets when a message is due. A time out of range becomes the nearest in range: a clock that
    /// goes back makes messages late.
    pub(in crate::nsqd) fn set_due(&mut self, message: Block, lane: u8, due: Instant) {
        let due = due.max(self.after_base(0)).min(self.after_base(u32::MAX));
        let millis = due.as_micros().div_ceil(1000) as u32;
        self.put(message, at(lane, DUE), millis.to_ne_bytes());
    }

    /// Returns whether a lane can have that due time. If not, release all messages that are due,
    /// then [advance the base](Self::set_base).
    pub(in crate::nsqd) fn reaches(&self, due: Instant) -> bool {
        due <= self.after_base(u32::MAX)
    }

    /// Advances the base, so that lanes can have all due times up to [`DELAY_MAX_MS`] from now.
    /// No lane may have one before now.
    pub(in crate::nsqd) fn set_base(&mut self, now: Instant) {
        let millis = now.as_micros().div_ceil(1000);
        self.base = u32::try_from(millis >> BASE_SHIFT).unwrap_or(u32::MAX);
    }

    fn after_base(&self, millis: u32) -> Instant {
        let base = u64::from(self.base) << BASE_SHIFT;
        Instant::from_millis(base.saturating_add(millis.into()))
    }
}
