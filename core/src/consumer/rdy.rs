//! RDY: the distribution of max_in_flight over the connections.
//!
//! RDY is a window, not a credit: nsqd delivers while fewer than RDY messages are in flight, and
//! applies a new value when it arrives, without a confirmation. So a connection is *committed* to
//! the largest number of messages that it may have in flight: the maximum of its RDY, its messages
//! in flight, and for [`SETTLE`] after RDY was lowered the old value, because messages may still be
//! on their way. The sum of these never exceeds the limit: RDY of a connection is lowered at once,
//! and raised only by what is not committed to others.
//!
//! | connections | RDY of each |
//! |---|---|
//! | no more than the limit | an equal part, the remainder one by one from the first; the part above a `max_rdy_count` goes to the others |
//! | more than the limit | 1, or 0: connections take turns. An idle connection passes its turn on after [`QUIET_TURNS`] intervals, a busy one after [`BUSY_TURNS`] |

#[cfg(test)]
mod tests;

use crate::time::Span;

/// The time after RDY was lowered in which messages may still arrive because of the old value.
pub(super) const SETTLE: Span = Span::from_secs(1);

/// The number of intervals for which a connection without messages keeps its turn.
const QUIET_TURNS: u16 = 2;

/// The number of intervals for which a connection with messages keeps its turn.
const BUSY_TURNS: u16 = 6;

/// The share of one connection in max_in_flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// The RDY that was announced to nsqd last.
    rdy: u16,
    /// An older, larger RDY by which nsqd may still deliver.
    held: u16,
    /// The RDY that should be announced.
    target: u16,
    /// Messages delivered and not answered.
    in_flight: u16,
    /// The `max_rdy_count` of nsqd; 0 if the connection takes no part.
    // 32 bits, so that a share has 16 bytes: with another size the compiler divides to count
    // shares.
    cap: u32,
    /// Intervals since the last message.
    quiet: u16,
    /// Intervals since its turn began.
    turns: u16,
}

impl Share {
    pub(super) const NONE: Self =
        Self { rdy: 0, held: 0, target: 0, in_flight: 0, cap: 0, quiet: 0, turns: 0 };

    fn committed(&self) -> u16 {
        self.rdy.max(self.held).max(self.in_flight)
    }

    fn is_live(&self) -> bool {
        self.cap > 0
    }

    fn has_turn(&self) -> bool {
        self.target > 0 && self.rdy > 0
    }

    /// Returns a rank for passing the turn on, 0 if the turn is not over: the number of intervals
    /// of the turn, or for an idle connection a higher rank by its idle intervals.
    fn age(&self) -> u16 {
        if self.quiet >= QUIET_TURNS {
            self.quiet | 1 << 15
        } else if self.turns >= BUSY_TURNS {
            self.turns
        } else {
            0
        }
    }
}

/// The limit and the shares of the connections in it.
#[derive(Debug)]
pub(super) struct RdyTable<'a> {
    shares: &'a mut [Share],
    limit: u16,
    /// The connection at which the search for the next turn begins.
    cursor: u8,
}

impl<'a> RdyTable<'a> {
    /// Makes a table with a limit of 0. `shares` are at most 255, all of them [`Share::NONE`].
    pub(super) fn new(shares: &'a mut [Share]) -> Self {
        Self { shares, limit: 0, cursor: 0 }
    }

    /// Adds a connection, whose RDY is 0: it is new or has [left](Self::leave).
    pub(super) fn join(&mut self, id: u8, cap: u32) {
        if let Some(share) = self.get(id) {
            share.cap = cap.min(RDY_MAX);
        }
        self.spread();
    }

    /// Removes a connection that is closed; nothing is committed to it any more.
    pub(super) fn leave(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            *share = Share::NONE;
        }
        self.spread();
    }

    /// Gives a connection no more messages; those in flight stay in flight.
    pub(super) fn retire(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            share.cap = 0;
            share.target = 0;
            // After CLS nsqd delivers no more messages, but some may be on their way.
            share.held = share.committed();
            share.rdy = 0;
        }
        self.spread();
    }

    /// Sets the number of messages that may be in flight on all connections together.
    pub(super) fn set_limit(&mut self, limit: u16) {
        if self.limit != limit {
            self.limit = limit;
            self.spread();
        }
    }

    /// Returns the RDY to announce to nsqd now, if it differs from the last.
    pub(super) fn next(&self, id: u8) -> Option<u16> {
        let share = self.shares.get(usize::from(id))?;
        if share.target <= share.rdy {
            return (share.target < share.rdy).then_some(share.target);
        }
        let others = self
            .shares
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != usize::from(id))
            .fold(0u16, |sum, (_, share)| sum.saturating_add(share.committed()));
        let rdy = share.target.min(self.limit.saturating_sub(others));
        (rdy > share.rdy).then_some(rdy)
    }

    /// Records that `rdy` is announced to nsqd. Returns whether RDY was lowered, so that the caller
    /// must [`settle`](Self::settle) after [`SETTLE`].
    pub(super) fn announced(&mut self, id: u8, rdy: u16) -> bool {
        let Some(share) = self.get(id) else { return false };
        let lowered = rdy < share.rdy;
        if lowered {
            share.held = share.held.max(share.rdy);
        }
        share.rdy = rdy;
        lowered
    }

    /// Ends the time in which messages may arrive because of an older RDY.
    pub(super) fn settle(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            share.held = 0;
        }
    }

    pub(super) fn delivered(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            share.in_flight = share.in_flight.saturating_add(1);
            share.quiet = 0;
        }
    }

    /// Records that messages are no longer in flight: answered, or requeued by nsqd.
    pub(super) fn answered(&mut self, id: u8, messages: u16) {
        if let Some(share) = self.get(id) {
            share.in_flight = share.in_flight.saturating_sub(messages);
        }
    }

    /// Returns the number of messages in flight on a connection.
    pub(super) fn in_flight(&self, id: u8) -> u16 {
        self.shares.get(usize::from(id)).map_or(0, |share| share.in_flight)
    }

    /// Returns the RDY that was announced to nsqd last.
    pub(super) fn rdy(&self, id: u8) -> u16 {
        self.shares.get(usize::from(id)).map_or(0, |share| share.rdy)
    }

    /// Returns whether a connection's RDY is below its target.
    pub(super) fn is_short(&self) -> bool {
        self.shares.iter().any(|share| share.target > share.rdy)
    }

    /// Returns whether the connections must take turns.
    pub(super) fn takes_turns(&self) -> bool {
        self.limit > 0 && self.live() > self.limit
    }

    /// Returns whether most of RDY is in flight on any connection: nsqd may be waiting for answers.
    pub(super) fn is_starved(&self) -> bool {
        self.shares.iter().any(|share| {
            // 85 percent, as in go-nsq.
            share.rdy > 0
                && u32::from(share.in_flight).saturating_mul(20)
                    >= u32::from(share.rdy).saturating_mul(17)
        })
    }

    /// Ends an interval: connections whose turn is over pass it on.
    pub(super) fn redistribute(&mut self) {
        if !self.takes_turns() {
            return;
        }
        let mut over = 0u16;
        // A turn begins when its RDY is announced.
        for share in self.shares.iter_mut().filter(|share| share.has_turn()) {
            share.quiet = share.quiet.saturating_add(1);
            share.turns = share.turns.saturating_add(1);
            over = over.wrapping_add((share.age() > 0).into());
        }
        if self.is_short() {
            // The RDY of an earlier turn is not announced yet. With two such connections, the first
            // to be polled would get the RDY, not the one that has waited for longest.
            return;
        }
        // Give all new turns before any turn is taken away, so that none returns at once.
        let waiting = self.live().saturating_sub(self.limit);
        let pass = over.min(waiting);
        for _ in 0..pass {
            self.give_turn();
        }
        for _ in 0..pass {
            // Less code than `max_by_key`.
            let (mut oldest, mut age) = (None, 0);
            for share in self.shares.iter_mut() {
                if share.has_turn() && share.age() >= age {
                    age = share.age();
                    oldest = Some(share);
                }
            }
            if let Some(oldest) = oldest {
                oldest.target = 0;
            }
        }
    }

    fn get(&mut self, id: u8) -> Option<&mut Share> {
        self.shares.get_mut(usize::from(id))
    }

    fn live(&self) -> u16 {
        self.shares.iter().filter(|share| share.is_live()).count() as u16
    }

    /// Gives the next waiting connection its turn. Returns false if no connection waits.
    fn give_turn(&mut self) -> bool {
        for _ in 0..self.shares.len() {
            if usize::from(self.cursor) >= self.shares.len() {
                self.cursor = 0;
            }
            let at = self.cursor;
            self.cursor = at.wrapping_add(1);
            if let Some(share) = self.get(at)
                && share.is_live()
                && share.target == 0
            {
                share.target = 1;
                share.turns = 0;
                share.quiet = 0;
                return true;
            }
        }
        false
    }

    /// Computes the target of each connection.
    fn spread(&mut self) {
        let mut left = self.limit;
        if self.live() > left {
            // A connection that has a turn keeps it.
            for share in self.shares.iter_mut() {
                let keeps = share.target > 0 && left > 0;
                left = left.wrapping_sub(keeps.into());
                share.target = keeps.into();
            }
            while left > 0 && self.give_turn() {
                left = left.wrapping_sub(1);
            }
            return;
        }
        // The largest equal part, limited by each cap, whose sum is within the limit. Found bit by
        // bit: a core without a divider would have to link a division function.
        let limit = u32::from(left);
        let mut part = 0;
        for bit in (0..16).rev() {
            let more = part | 1 << bit;
            if self.sum(more) <= limit {
                part = more;
            }
        }
        // The remainder goes to the first connections below their cap.
        let mut left = limit.wrapping_sub(self.sum(part));
        for share in self.shares.iter_mut() {
            let more = u32::from(left > 0 && share.cap > part);
            left = left.wrapping_sub(more);
            share.target = share.cap.min(part).wrapping_add(more) as u16;
        }
    }

    /// Returns the sum of the parts, each of which is `part` or the connection's cap if smaller.
    fn sum(&self, part: u32) -> u32 {
        self.shares.iter().fold(0, |sum: u32, share| sum.wrapping_add(share.cap.min(part)))
    }
}

/// The largest RDY.
const RDY_MAX: u32 = u16::MAX as u32 - 1;
