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

use crate::time::Span;

/// How long after RDY was lowered messages may still come as if it were not.
pub(super) const SETTLE: Span = Span::from_secs(1);

/// How many intervals without a message a connection keeps its turn.
const QUIET_TURNS: u16 = 2;

/// How many intervals a connection keeps its turn.
const BUSY_TURNS: u16 = 6;

/// What one connection has of the window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share {
    /// The RDY that nsqd was told last.
    rdy: u16,
    /// It may still deliver as if it were this.
    held: u16,
    /// What it is to be told.
    target: u16,
    /// Messages delivered and not answered.
    in_flight: u16,
    /// The server's `max_rdy_count`; 0 of one that takes no part.
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

    /// How long it has been time to pass the turn on; an idle one goes first, of several the one
    /// that is so for longest.
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

/// The window and its parts.
#[derive(Debug)]
pub(super) struct RdyTable<'a> {
    shares: &'a mut [Share],
    limit: u16,
    /// Who gets the next turn.
    cursor: u8,
}

impl<'a> RdyTable<'a> {
    /// Nothing to give yet. At most 255 shares, all of them [`Share::NONE`].
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

    /// It is gone, and with it what it was committed to.
    pub(super) fn leave(&mut self, id: u8) {
        if let Some(share) = self.get(id) {
            *share = Share::NONE;
        }
        self.spread();
    }

    /// It gets nothing more; what is in flight stays so.
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

    /// How many messages may be in flight in all.
    pub(super) fn set_limit(&mut self, limit: u16) {
        if self.limit != limit {
            self.limit = limit;
            self.spread();
        }
    }

    /// The RDY to tell nsqd now, if that changes anything.
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

    /// nsqd is told. Says whether it may still deliver as before for [`SETTLE`].
    pub(super) fn told(&mut self, id: u8, rdy: u16) -> bool {
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

    /// The RDY that nsqd was told last.
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
        // A turn begins when nsqd is told.
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

    /// Decides anew what each is to be told.
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Tells everybody what there is to tell, until nothing is; gives each RDY.
    fn tell(window: &mut RdyTable<'_>) -> Vec<u16> {
        let all = window.shares.len() as u8;
        for _ in 0..3 {
            for id in 0..all {
                if let Some(rdy) = window.next(id) {
                    assert_ne!(rdy, window.rdy(id), "changes nothing");
                    window.told(id, rdy);
                }
                let sum: u16 = (0..all).map(|id| window.rdy(id)).sum();
                assert!(sum <= window.limit, "{sum} of {}", window.limit);
            }
        }
        (0..all).map(|id| window.rdy(id)).collect()
    }

    fn settle(window: &mut RdyTable<'_>) {
        (0..window.shares.len() as u8).for_each(|id| window.settle(id));
    }

    /// All take part, and nobody is told yet.
    fn shared(shares: &mut [Share], limit: u16) -> RdyTable<'_> {
        let mut window = RdyTable::new(shares);
        window.set_limit(limit);
        (0..window.shares.len() as u8).for_each(|id| window.join(id, 9));
        window
    }

    /// Joined one after the other, each told before the next joins.
    fn joined(connections: usize, limit: u16, cap: u32) -> Vec<u16> {
        let mut shares = vec![Share::NONE; connections];
        let mut window = RdyTable::new(&mut shares);
        window.set_limit(limit);
        for id in 0..connections as u8 {
            window.join(id, cap);
            tell(&mut window);
        }
        settle(&mut window);
        tell(&mut window)
    }

    #[test]
    fn what_each_connection_gets() {
        // connections, max_in_flight, max_rdy_count, RDY of each
        for (connections, limit, cap, want) in [
            (1, 1, 2500, &[1][..]),
            (1, 4, 2500, &[4]),
            (1, 5000, 2500, &[2500]),
            (1, 0, 2500, &[0]),
            (2, 1, 2500, &[1, 0]),
            (2, 2, 2500, &[1, 1]),
            // go-nsq and pynsq lose the remainder (go-nsq#378).
            (2, 5, 2500, &[3, 2]),
            (3, 10, 2500, &[4, 3, 3]),
            (3, 11, 2500, &[4, 4, 3]),
            (4, 7, 2500, &[2, 2, 2, 1]),
            (3, 100, 2500, &[34, 33, 33]),
            (4, 3, 2500, &[1, 1, 1, 0]),
            (5, 2, 2500, &[1, 1, 0, 0, 0]),
            (3, 100, 10, &[10, 10, 10]),
            (3, 0, 2500, &[0, 0, 0]),
            (2, u16::MAX, u32::MAX, &[32768, 32767]),
            (1, u16::MAX, u32::MAX, &[RDY_MAX as u16]),
            (2, 7, 0, &[0, 0]),
        ] {
            assert_eq!(joined(connections, limit, cap), want, "{connections} share {limit}");
        }
    }

    #[test]
    fn what_one_cannot_take_goes_to_the_others() {
        let mut shares = [Share::NONE; 3];
        let mut window = RdyTable::new(&mut shares);
        window.set_limit(20);
        for (id, cap) in [(0, 100), (1, 3), (2, 100)] {
            window.join(id, cap);
        }
        assert_eq!(tell(&mut window), [9, 3, 8]);
        window.leave(0);
        assert_eq!(tell(&mut window), [0, 3, 17]);
    }

    #[test]
    fn it_is_spread_as_if_given_one_by_one() {
        for limit in 0..=9u16 {
            for caps in (0..216u32).map(|n| [n % 6, n / 6 % 6, n / 36]) {
                let mut shares = [Share::NONE; 3];
                let mut window = RdyTable::new(&mut shares);
                window.set_limit(limit);
                (0..3).for_each(|id| window.join(id, caps[usize::from(id)]));
                if window.live() > limit {
                    continue;
                }
                let (mut want, mut left) = ([0u32; 3], u32::from(limit));
                while left > 0 && want != caps {
                    for at in 0..3 {
                        let more = u32::from(left > 0 && want[at] < caps[at]);
                        want[at] += more;
                        left -= more;
                    }
                }
                let targets = window.shares.iter().map(|share| u32::from(share.target));
                assert_eq!(targets.collect::<Vec<_>>(), want, "{limit} over {caps:?}");
            }
        }
    }

    #[test]
    fn what_is_taken_from_one_is_given_to_another_only_once_it_is_free() {
        let mut shares = [Share::NONE; 2];
        let mut window = RdyTable::new(&mut shares);
        window.set_limit(4);
        window.join(0, 9);
        assert_eq!(tell(&mut window), [4, 0]);
        // Idle: what is on its way from the first is not known.
        window.join(1, 9);
        assert_eq!(tell(&mut window), [2, 0]);
        assert!(window.is_short());
        window.settle(0);
        assert_eq!(tell(&mut window), [2, 2]);
        assert!(!window.is_short());
        // Busy: what it has in flight counts.
        window.leave(1);
        assert_eq!(tell(&mut window), [4, 0]);
        (0..4).for_each(|_| window.delivered(0));
        window.join(1, 9);
        assert_eq!(window.next(0), Some(2));
        assert!(window.told(0, 2));
        window.settle(0);
        assert_eq!(tell(&mut window), [2, 0]);
        window.answered(0, 1);
        assert_eq!(tell(&mut window), [2, 1]);
        window.answered(0, 1);
        window.answered(0, 1);
        assert_eq!(tell(&mut window), [2, 2]);
    }

    #[test]
    fn a_lower_limit_is_told_at_once_and_the_same_one_never() {
        let mut shares = [Share::NONE; 2];
        let mut window = shared(&mut shares, 6);
        assert_eq!(tell(&mut window), [3, 3]);
        window.set_limit(6);
        assert_eq!((window.next(0), window.next(1)), (None, None));
        window.set_limit(0);
        assert_eq!((window.next(0), window.next(1)), (Some(0), Some(0)));
        // Changed back before it was told: nothing to tell.
        window.set_limit(6);
        assert_eq!((window.next(0), window.next(1)), (None, None));
    }

    #[test]
    fn idle_connections_pass_their_turn_on_and_busy_ones_later() {
        let mut shares = [Share::NONE; 3];
        let mut window = shared(&mut shares, 1);
        assert_eq!(tell(&mut window), [1, 0, 0]);
        let mut turns = Vec::new();
        for interval in 0..40 {
            // The second is busy.
            if window.rdy(1) == 1 {
                window.delivered(1);
                window.answered(1, 1);
            }
            window.turn();
            tell(&mut window);
            settle(&mut window);
            let rdy = tell(&mut window);
            assert_eq!(rdy.iter().sum::<u16>(), 1, "in interval {interval}");
            turns.push(rdy.iter().position(|&rdy| rdy == 1).unwrap());
        }
        let count = |id| turns.iter().filter(|&&turn| turn == id).count();
        // Of ten intervals two, six and two.
        assert_eq!((count(0), count(1), count(2)), (8, 24, 8), "{turns:?}");
    }

    #[test]
    fn whose_turn_it_is() {
        // connections, max_in_flight, which are busy; of 240 intervals those with an RDY of 1
        for (connections, limit, busy, want) in [
            (2, 1, &[][..], &[120, 120][..]),
            // Idle ones have two intervals, busy ones six.
            (2, 1, &[0], &[180, 60]),
            (2, 1, &[0, 1], &[120, 120]),
            (3, 1, &[], &[80, 80, 80]),
            (3, 1, &[1], &[48, 144, 48]),
            (3, 2, &[], &[161, 160, 159]),
            // As many as wait: one of two passes its turn on, the idle one if there is such a one.
            (3, 2, &[0], &[206, 138, 136]),
            (3, 2, &[0, 1], &[206, 206, 68]),
            (3, 2, &[0, 1, 2], &[162, 162, 156]),
            (4, 2, &[], &[120, 120, 120, 120]),
            (4, 2, &[3], &[120, 120, 60, 180]),
            (4, 2, &[0, 1], &[180, 180, 60, 60]),
            (5, 2, &[0, 1, 2, 3, 4], &[96, 96, 96, 96, 96]),
            (5, 4, &[2], &[181, 180, 240, 180, 179]),
        ] {
            let mut shares = vec![Share::NONE; connections];
            let mut window = shared(&mut shares, limit);
            let mut turns = vec![0u16; connections];
            for _ in 0..240 {
                tell(&mut window);
                settle(&mut window);
                for (id, rdy) in tell(&mut window).into_iter().enumerate() {
                    turns[id] += rdy;
                    if rdy == 1 && busy.contains(&id) {
                        window.delivered(id as u8);
                        window.answered(id as u8, 1);
                    }
                }
                window.turn();
            }
            assert_eq!(turns, want, "{connections} connections, {limit} in flight, {busy:?} busy");
            assert_eq!(turns.iter().sum::<u16>(), 240 * limit, "all of it, always");
        }
    }

    #[test]
    fn who_has_a_turn_keeps_it_whoever_comes_and_goes() {
        let mut shares = [Share::NONE; 3];
        let mut window = shared(&mut shares, 1);
        while tell(&mut window) != [0, 1, 0] {
            window.turn();
            settle(&mut window);
        }
        window.leave(0);
        window.join(0, 9);
        assert_eq!(tell(&mut window), [0, 1, 0]);
    }

    #[test]
    fn a_turn_begins_when_nsqd_is_told() {
        let mut shares = [Share::NONE; 2];
        let mut window = shared(&mut shares, 1);
        assert_eq!(tell(&mut window), [1, 0]);
        window.delivered(0);
        (0..BUSY_TURNS).for_each(|_| window.turn());
        assert_eq!(tell(&mut window), [0, 0]);
        // The message is answered late.
        (0..BUSY_TURNS).for_each(|_| window.turn());
        settle(&mut window);
        window.answered(0, 1);
        assert_eq!(tell(&mut window), [0, 1]);
        for _ in 1..QUIET_TURNS {
            window.turn();
            assert_eq!(tell(&mut window), [0, 1], "all of its time");
        }
        window.turn();
        assert_eq!(window.next(1), Some(0));
    }

    #[test]
    fn turns_are_taken_only_where_there_is_not_one_for_each() {
        let mut shares = [Share::NONE; 2];
        let mut window = shared(&mut shares, 0);
        for (limit, takes) in [(0, false), (1, true), (2, false), (3, false)] {
            window.set_limit(limit);
            assert_eq!(window.takes_turns(), takes, "{limit} for two");
        }
    }

    #[test]
    fn nobody_waits_for_ever() {
        for (connections, limit) in [(2, 1), (5, 2), (7, 6), (20, 3)] {
            let mut shares = vec![Share::NONE; connections];
            let mut window = shared(&mut shares, limit);
            let mut seen = vec![0; connections];
            for _ in 0..600 {
                for (id, rdy) in tell(&mut window).into_iter().enumerate() {
                    seen[id] += rdy;
                    (0..rdy).for_each(|_| {
                        window.delivered(id as u8);
                        window.answered(id as u8, 1);
                    });
                }
                settle(&mut window);
                window.turn();
            }
            let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
            assert!(*least > 0 && most - least <= 18, "{connections}, {limit}: {seen:?}");
        }
    }

    #[test]
    fn a_retired_connection_is_counted_until_it_is_gone() {
        let mut shares = [Share::NONE; 2];
        let mut window = RdyTable::new(&mut shares);
        window.set_limit(4);
        window.join(0, 9);
        tell(&mut window);
        window.delivered(0);
        window.retire(0);
        window.join(1, 9);
        assert_eq!(tell(&mut window), [0, 0]);
        window.settle(0);
        assert_eq!(tell(&mut window), [0, 3]);
        window.leave(0);
        assert_eq!(tell(&mut window), [0, 4]);
    }

    #[test]
    fn starved_when_most_of_the_window_is_in_flight() {
        let mut shares = [Share::NONE; 1];
        let mut window = RdyTable::new(&mut shares);
        window.set_limit(20);
        window.join(0, 100);
        tell(&mut window);
        (0..16).for_each(|_| window.delivered(0));
        assert!(!window.is_starved());
        window.delivered(0);
        assert!(window.is_starved());
    }

    #[test]
    fn ram() {
        assert_eq!(size_of::<Share>(), 16);
    }
}
