//! The state that all connections of a consumer share.

use core::convert::Infallible;

use super::backoff::ConsumerBackoff;
use super::discovery::{GIVEN, NsqdTable, Round};
use super::in_flight::{Answer, InFlight, Token};
use super::leave::Leave;
use super::rdy::RdyTable;
use super::{AnswerError, Config, Counters, unusable};
use crate::address::Address;
use crate::time::{Instant, Jitter, Span, TimerId, Timers};
use crate::wire::ChunkWriter;
use crate::wire::nsqd::MessageId;

/// A function that writes IDENTIFY.
type Identify = fn(&Config<'_>, &mut ChunkWriter<'_>) -> Result<(), Infallible>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// The wait of the backoff ends: try one message.
    Probe,
    /// The interval at which RDY is redistributed has passed.
    Redistribute,
    /// The given addresses must be offered, or a slot released.
    Slots,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        self as usize
    }
}

/// An event that may end or shorten a backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// A message was finished.
    Success,
    /// A deadline may have passed.
    Time,
}

/// The state that all connections share.
// The order of the fields matters for the same reason as in `Connection`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Shared<'a> {
    pub(super) stopping: bool,
    pub(super) backoff: ConsumerBackoff,
    pub(super) config: &'a Config<'a>,
    pub(super) version: u32,
    pub(super) tally: &'a mut Counters,
    /// The time of the current call. Not an argument of each function: it would take two of the
    /// four argument registers.
    pub(super) now: Instant,
    pub(super) jitter: Jitter,
    pub(super) rdy: RdyTable<'a>,
    pub(super) in_flight: InFlight<'a>,
    pub(super) timers: Timers<Timer, 3>,
    /// The time at which the given addresses are offered again.
    pub(super) offers: Instant,
    /// The earliest time for that.
    pub(super) paced: Instant,
    /// The timeout of each step of connecting.
    pub(super) step_timeout: Span,
    /// The function behind [`reassign_slots`](Self::reassign_slots). Set only if slots may be
    /// reassigned to other nsqds, and otherwise not linked.
    pub(super) reassign: Option<fn(&mut Self, Option<u8>)>,
    /// The handler of leaving, likewise.
    pub(super) leave: Option<Leave<'a>>,
    /// Writes IDENTIFY with optional fields. Set only if there are any.
    pub(super) identify: Option<Identify>,
    /// The handler of recovery from backoff. Set once a message was requeued.
    pub(super) recover: Option<fn(&mut Self, Recovery)>,
    pub(super) nsqds: NsqdTable<'a>,
    /// The round of the given addresses, which are a source.
    pub(super) given: Round,
    pub(super) given_up: Option<(MessageId, u16)>,
    /// The listed producers that cannot be used.
    pub(super) unusable: &'a mut [unusable::Entry],
}

/// The timeout of each step of connecting in the first lap, while other nsqds wait.
const STEP_TIMEOUT: Span = Span::from_secs(1);

/// Returns `span`, doubled `level` times.
pub(super) fn slower(span: Span, level: u8) -> Span {
    Span::from_millis(span.as_millis().saturating_mul(1 << u32::from(level.min(16))))
}

/// Increments a counter. Not inlined, because there are many calls.
#[inline(never)]
pub(super) fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

/// As [`count`], for a counter of 64 bits.
#[inline(never)]
pub(super) fn count_long(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

impl Shared<'_> {
    /// Changes the version, so that waiting tasks and other sessions are polled.
    pub(super) fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Applies the current limit of messages in flight to RDY.
    pub(super) fn adjust(&mut self) {
        self.rdy.set_limit(self.backoff.limit(self.in_flight.capacity()));
        if !self.rdy.takes_turns() {
            self.timers.stop(Timer::Redistribute);
        } else if !self.timers.is_set(Timer::Redistribute) {
            let interval = self.jitter.around(self.config.redistribute).max(Span::from_millis(1));
            self.timers.set(Timer::Redistribute, self.after(interval));
        }
        if self.rdy.is_short() {
            self.changed();
        }
    }

    /// Records that a message of connection `id` is no longer in flight.
    pub(super) fn answered(&mut self, id: u8) {
        self.rdy.answered(id, 1);
        self.adjust();
    }

    pub(super) fn answer(&mut self, token: Token, answer: Answer) -> Result<(), AnswerError> {
        let answered = self.in_flight.answer(token, answer);
        if answered == Err(AnswerError::Late) {
            count(&mut self.tally.late);
        }
        // The message's slot may be free now.
        self.adjust();
        self.changed();
        answered
    }

    pub(super) fn back_off(&mut self, wait: Option<Span>) {
        if let Some(wait) = wait {
            self.timers.set(Timer::Probe, self.after(wait));
        }
    }

    /// Handles an event of a backoff, if there was a failure.
    pub(super) fn recover(&mut self, by: Recovery) {
        if let Some(recover) = self.recover {
            recover(self, by);
        }
    }

    pub(super) fn recover_by(&mut self, by: Recovery) {
        match by {
            Recovery::Success => {
                let Config { backoff_base, backoff_cap, .. } = *self.config;
                let wait = self.backoff.succeeded(backoff_base, backoff_cap, &mut self.jitter);
                self.back_off(wait);
                self.adjust();
            }
            Recovery::Time => {
                if self.timers.expired(Timer::Probe, self.now) {
                    self.backoff.probe();
                    self.adjust();
                    self.changed();
                }
            }
        }
    }

    pub(super) fn give_up(&mut self, id: MessageId, attempts: u16) {
        count(&mut self.tally.given_up);
        self.given_up = Some((id, attempts));
        self.changed();
    }

    /// Offers an nsqd that a source lists.
    pub(super) fn offer(&mut self, source: u8, round: &mut Round, address: &Address) {
        if !self.stopping && self.nsqds.offer(self.now, self.config.rotate, source, round, address)
        {
            self.changed();
        }
    }

    /// Assigns slots to other nsqds where necessary. `failed` is a connection that could not be
    /// established.
    pub(super) fn reassign_slots(&mut self, failed: Option<u8>) {
        if let Some(reassign) = self.reassign {
            reassign(self, failed);
        }
    }

    /// Reassigns slots if a connection failed or the timer is due.
    pub(super) fn reassign_if_due(&mut self, failed: Option<u8>) {
        let fails = failed.is_some_and(|id| self.nsqds.fail(id));
        if fails && self.nsqds.soon & GIVEN != 0 {
            // Only after a pause, so that tasks that wait for events see the failure first.
            let pause = self.pause();
            let pause = self.after(pause);
            self.offers = self.offers.min(self.paced.max(pause));
        }
        if fails || self.timers.expired(Timer::Slots, self.now) {
            self.offer_and_leave();
        }
    }

    /// Offers the given addresses if that is due, and releases the slots whose grace has passed.
    pub(super) fn offer_and_leave(&mut self) {
        if self.offers <= self.now {
            self.offer_given();
        }
        let (left, next) = self.nsqds.leave(self.now);
        if left {
            self.changed();
        }
        self.timers.set(Timer::Slots, next.min(self.offers));
        self.set_step_timeout();
    }

    /// Offers the given addresses, and sets the time at which they are offered again.
    pub(super) fn offer_given(&mut self) {
        let pause = self.pause();
        let Self { nsqds, given, config, now, .. } = self;
        let soon = nsqds.soon;
        let mut changed = !self.stopping && nsqds.offer_given(*now, config.rotate, given);
        changed |= nsqds.soon & !soon != 0;
        self.offers = if given.unserved == 0 || self.stopping {
            Instant::NEVER
        } else if nsqds.soon & GIVEN != 0 {
            Instant::ZERO
        } else {
            // When the next nsqd may have a slot; if that time has passed, the next nsqd is of
            // another source.
            let soon = now.after(Span::from_millis((config.rotate.as_millis() >> 2).max(1)));
            nsqds.rotates.max(soon)
        };
        if changed || nsqds.soon & GIVEN != 0 {
            self.paced = now.after(pause);
        }
        self.offers = self.offers.max(self.paced);
        if changed {
            self.changed();
        }
    }

    /// Returns the time after which the next given address is tried.
    pub(super) fn pause(&mut self) -> Span {
        let Config { reconnect_base, reconnect_cap, .. } = *self.config;
        let pause = slower(reconnect_base, self.nsqds.level).min(reconnect_cap);
        self.jitter.around(Span::from_millis(pause.as_millis() >> 1)).max(Span::from_millis(1))
    }

    /// Sets the timeout of each step of connecting, which is shorter while other nsqds wait.
    pub(super) fn set_step_timeout(&mut self) {
        let longest = self.config.connect_timeout;
        self.step_timeout = if self.nsqds.waiting == 0 {
            longest
        } else {
            slower(STEP_TIMEOUT, self.nsqds.level).min(longest)
        };
    }

    /// Returns the time `span` from now.
    pub(super) fn after(&self, span: Span) -> Instant {
        self.now.after(span)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.timers.next()
    }

    /// Handles the deadlines of the whole consumer that have passed.
    pub(super) fn tick(&mut self) {
        self.recover(Recovery::Time);
        if self.timers.expired(Timer::Redistribute, self.now) {
            self.rdy.redistribute();
            self.adjust();
            self.changed();
        }
        self.reassign_slots(None);
    }
}
