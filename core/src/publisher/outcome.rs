//! The outcome of each message: tickets and the log of exceptions.

use core::fmt;

use crate::wire::nsqd::ErrorCode;

/// How many ranges of messages that were *not* acknowledged are kept.
const EXCEPTIONS_MAX: usize = 4;

/// Identifies an accepted message for good: tickets count up from 0 and survive reconnects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "only the ticket tells whether the message was acknowledged; ignore it with `let _ =`"]
pub struct Ticket(pub(super) u64);

impl Ticket {
    /// Returns the message's number, from 0, in the order of publishing.
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// The final outcome of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Outcome {
    /// nsqd accepted the message.
    Acknowledged,
    /// nsqd refused the message, and would refuse it again. It is in no channel.
    Rejected(ErrorCode),
    /// The deadline passed first. If the message was in flight by then, nsqd may have it
    /// nevertheless.
    Expired,
    /// The message made room for a newer one ([`Full::DropOldest`](super::Full)). If it was in
    /// flight before a connection broke, nsqd may have it nevertheless.
    Dropped,
    /// The message is final, but its outcome is forgotten, since more than 4 later ranges of
    /// messages were not acknowledged. The counters are still right.
    Forgotten,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Acknowledged => f.write_str("acknowledged"),
            Self::Rejected(code) => write!(f, "rejected by nsqd with {code}"),
            Self::Expired => f.write_str("expired before nsqd acknowledged it"),
            Self::Dropped => f.write_str("dropped to make room"),
            Self::Forgotten => f.write_str("final, outcome forgotten"),
        }
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Exception {
    pub(super) first: u64,
    pub(super) count: u32,
    pub(super) outcome: Outcome,
}

impl Exception {
    fn end(&self) -> u64 {
        self.first.wrapping_add(self.count.into())
    }
}

/// The ranges of messages that were not acknowledged.
#[derive(Debug)]
pub(super) struct Exceptions {
    /// Newest last; ranges of no messages are not in use.
    // A ring of four would cost more in indices than moving three.
    ranges: [Exception; EXCEPTIONS_MAX],
    /// How many of the newest ranges were not polled yet.
    unpolled: u8,
    /// The outcome of an earlier message is unknown, unless a range has it.
    forgotten: u64,
    /// Messages in ranges that were forgotten before they were polled.
    overlooked: u32,
}

impl Exceptions {
    pub(super) const fn new() -> Self {
        // Of zeros; no messages have this outcome.
        let none = Exception { first: 0, count: 0, outcome: Outcome::Rejected(ErrorCode::Invalid) };
        Self { ranges: [none; EXCEPTIONS_MAX], unpolled: 0, forgotten: 0, overlooked: 0 }
    }

    /// Adds `count` messages from `first` on; at least one.
    pub(super) fn add(&mut self, first: u64, count: u32, outcome: Outcome) {
        let [oldest, second, third, newest] = &mut self.ranges;
        if self.unpolled > 0 && newest.end() == first && newest.outcome == outcome {
            newest.count = newest.count.saturating_add(count);
            return;
        }
        if oldest.count > 0 {
            self.forgotten = self.forgotten.max(oldest.end());
            if usize::from(self.unpolled) == EXCEPTIONS_MAX {
                self.overlooked = self.overlooked.saturating_add(oldest.count);
            }
        }
        (*oldest, *second, *third) = (*second, *third, *newest);
        *newest = Exception { first, count, outcome };
        self.unpolled = self.unpolled.wrapping_add(1).min(EXCEPTIONS_MAX as u8);
    }

    /// Returns the outcome of message `number`, if all messages before `resolved` are final.
    pub(super) fn outcome(&self, number: u64, resolved: u64) -> Option<Outcome> {
        for range in self.ranges.iter().rev().take_while(|range| range.count > 0) {
            if range.first <= number && number < range.end() {
                return Some(range.outcome);
            }
        }
        if number >= resolved {
            None
        } else if number < self.forgotten {
            Some(Outcome::Forgotten)
        } else {
            Some(Outcome::Acknowledged)
        }
    }

    /// Takes the number of failed messages that were forgotten unpolled since the last call.
    pub(super) fn take_overlooked(&mut self) -> u32 {
        core::mem::take(&mut self.overlooked)
    }

    pub(super) fn poll(&mut self) -> Option<Exception> {
        let next = EXCEPTIONS_MAX.wrapping_sub(self.unpolled.into());
        let range = *self.ranges.get(next)?;
        self.unpolled = self.unpolled.wrapping_sub(1);
        Some(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_merge_until_they_are_polled() {
        let mut log = Exceptions::new();
        log.add(3, 1, Outcome::Expired);
        log.add(4, 2, Outcome::Expired);
        let range = log.poll().unwrap();
        assert_eq!((range.first, range.count), (3, 3));
        assert!(log.poll().is_none());
        log.add(6, 1, Outcome::Expired);
        assert_eq!(log.poll().unwrap().first, 6);
    }

    #[test]
    fn outcomes_are_known_until_they_are_forgotten() {
        let mut log = Exceptions::new();
        assert_eq!(log.outcome(0, 0), None);
        assert_eq!(log.outcome(0, 1), Some(Outcome::Acknowledged));
        // Expired out of order, before the messages in front of it are final.
        log.add(5, 1, Outcome::Expired);
        assert_eq!(log.outcome(5, 0), Some(Outcome::Expired));
        assert_eq!(log.outcome(4, 0), None);
        for n in 0..EXCEPTIONS_MAX as u64 {
            log.add(10 + 2 * n, 1, Outcome::Dropped);
        }
        assert_eq!(log.outcome(5, 30), Some(Outcome::Forgotten));
        assert_eq!(log.outcome(2, 30), Some(Outcome::Forgotten));
        assert_eq!(log.outcome(6, 30), Some(Outcome::Acknowledged));
        assert_eq!(log.outcome(10, 30), Some(Outcome::Dropped));
        assert_eq!(log.outcome(11, 30), Some(Outcome::Acknowledged));
        let polled = core::iter::from_fn(|| log.poll()).map(|r| r.first);
        assert!(polled.eq([10, 12, 14, 16]));
        assert_eq!(log.take_overlooked(), 1, "message 5 was never polled");
        log.add(30, 1, Outcome::Dropped);
        assert_eq!(log.take_overlooked(), 0, "the range displaced now was polled");
    }
}
