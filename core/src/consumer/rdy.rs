//! RDY: how max_in_flight is spread over the connections.
//!
//! RDY is a window, not a credit: nsqd delivers while fewer messages than that are in flight, and
//! takes a new value whenever it comes. It confirms none. So a connection is *committed* to the
//! most that it may have in flight: its RDY, what is in flight, and for [`SETTLE`] after RDY was
//! lowered the old value, since messages may be on their way. The sum of that never passes the
//! limit: a connection is lowered at once and raised only by what is not committed elsewhere.
//!
//! | connections | what each gets |
//! |---|---|
//! | no more than the limit | an equal part, the remainder one by one from the first; what one cannot take (`max_rdy_count`) goes to the others |
//! | more than the limit | 1, or 0: turns are taken. An idle connection passes its turn on after [`QUIET_TURNS`] intervals, a busy one after [`BUSY_TURNS`] |

#[cfg(test)]
mod tests;

use crate::time::Span;

/// How long after RDY was lowered messages may still come as if it were not.
pub(super) const SETTLE: Span = Span::from_secs(1);

/// For how many intervals a connection without messages keeps its turn.
const QUIET_TURNS: u16 = 2;

/// For how many intervals a connection with messages keeps its turn.
const BUSY_TURNS: u16 = 6;

/// The part that one connection has of max_in_flight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// The RDY that was announced to nsqd last.
    rdy: u16,
    /// A larger RDY by which nsqd may still deliver.
    held: u16,
    /// The RDY that is to be announced.
    target: u16,
    /// Messages delivered and not answered.
    in_flight: u16,
    /// The server's `max_rdy_count`; 0 if the connection takes no part.
    // 32 bits, which makes it 16 bytes: of others, the compiler counts them by a division.
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

    /// For how many intervals the turn has been overdue, 0 if it is not. An idle connection ranks
    /// above a busy one, whichever is overdue for longer.
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

/// max_in_flight and the parts of it that connections have.
#[derive(Debug)]
pub(super) struct RdyTable<'a> {
    shares: &'a mut [Share],
    limit: u16,
    /// The connection from which on the next turn is given.
    cursor: u8,
}

impl<'a> RdyTable<'a> {
    /// Without a limit, so that nothing is given yet. At most 255 shares, all of them [`Share::NONE`].
    pub(super) fn new(shares: &'a mut [Share]) -> Self {
        Self { shares, limit: 0, cursor: 0 }
    }

    /// A connection takes part from now on, with an RDY of 0: it is new, or has
    /// [left](Self::leave).
    pub(super) fn join(&mut self, id: u8, cap: u32) {
        if let Some(share) = self.get(id) {
            share.cap = cap.min(RDY_MAX);
        }
        self.spread();
    }

    /// A connection is gone, and with it what it was committed to.
    pub(super) fn leave(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            *share = Share::NONE;
        }
        self.spread();
    }

    /// A connection gets nothing more; its messages in flight stay so.
    pub(super) fn retire(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            share.cap = 0;
            share.target = 0;
            // nsqd delivers nothing after CLS, but for what is on its way.
            share.held = share.committed();
            share.rdy = 0;
        }
        self.spread();
    }

    /// Sets how many messages may be in flight on all connections together.
    pub(super) fn set_limit(&mut self, limit: u16) {
        if self.limit != limit {
            self.limit = limit;
            self.spread();
        }
    }

    /// The RDY to announce to nsqd now, if it differs from the last.
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

    /// `rdy` is announced to nsqd. Returns whether nsqd may still deliver by the RDY before for
    /// [`SETTLE`].
    pub(super) fn announced(&mut self, id: u8, rdy: u16) -> bool {
        let Some(share) = self.get(id) else { return false };
        let lowered = rdy < share.rdy;
        if lowered {
            share.held = share.held.max(share.rdy);
        }
        share.rdy = rdy;
        lowered
    }

    /// What was on its way has come.
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

    /// Answered, or no longer in flight for another reason.
    pub(super) fn answered(&mut self, id: u8, messages: u16) {
        if let Some(share) = self.get(id) {
            share.in_flight = share.in_flight.saturating_sub(messages);
        }
    }

    /// Messages in flight on a connection.
    pub(super) fn in_flight(&self, id: u8) -> u16 {
        self.shares.get(usize::from(id)).map_or(0, |share| share.in_flight)
    }

    /// The RDY that was announced to nsqd last.
    pub(super) fn rdy(&self, id: u8) -> u16 {
        self.shares.get(usize::from(id)).map_or(0, |share| share.rdy)
    }

    /// Whether a connection waits for what others are committed to.
    pub(super) fn is_short(&self) -> bool {
        self.shares.iter().any(|share| share.target > share.rdy)
    }

    /// Whether turns have to be taken.
    pub(super) fn takes_turns(&self) -> bool {
        self.limit > 0 && self.live() > self.limit
    }

    /// Whether the messages in flight are most of what nsqd may deliver, somewhere: it may be
    /// waiting for answers, so who collects a batch should not wait for more.
    pub(super) fn is_starved(&self) -> bool {
        self.shares.iter().any(|share| {
            // 85 percent, as go-nsq.
            share.rdy > 0
                && u32::from(share.in_flight).saturating_mul(20)
                    >= u32::from(share.rdy).saturating_mul(17)
        })
    }

    /// An interval is over: who has had its turn passes it on.
    #[inline(never)]
    pub(super) fn turn(&mut self) {
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
            // Who was given a turn last does not have it yet; with two it would be the first that
            // gets it, not the one that waits longest.
            return;
        }
        // As many as wait, before any of them is one that just had its turn.
        let waiting = self.live().saturating_sub(self.limit);
        let pass = over.min(waiting);
        for _ in 0..pass {
            self.give_turn();
        }
        for _ in 0..pass {
            // By hand: less code than `max_by_key`.
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

    /// Gives the next waiting connection its turn; says whether there was one.
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

    /// Decides anew which RDY each connection is to have.
    fn spread(&mut self) {
        let mut left = self.limit;
        if self.live() > left {
            // Who has one keeps it.
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
        // All get the same, as far as each can take it: as much as goes round. Bit by bit, without a
        // division: a core without a divider would link a function for it.
        let limit = u32::from(left);
        let mut part = 0;
        for bit in (0..16).rev() {
            let more = part | 1 << bit;
            if self.sum(more) <= limit {
                part = more;
            }
        }
        // What is left goes to the first of those that can take more.
        let mut left = limit.wrapping_sub(self.sum(part));
        for share in self.shares.iter_mut() {
            let more = u32::from(left > 0 && share.cap > part);
            left = left.wrapping_sub(more);
            share.target = share.cap.min(part).wrapping_add(more) as u16;
        }
    }

    /// How much all have if each gets `part`, as far as it can take that.
    fn sum(&self, part: u32) -> u32 {
        self.shares.iter().fold(0, |sum: u32, share| sum.wrapping_add(share.cap.min(part)))
    }
}

/// The largest RDY.
const RDY_MAX: u32 = u16::MAX as u32 - 1;
