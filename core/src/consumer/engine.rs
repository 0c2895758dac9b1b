//! What all connections of a consumer share, and what one of them changes for the others.

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

/// Writes IDENTIFY.
type Identify = fn(&Config<'_>, &mut ChunkWriter<'_>) -> Result<(), Infallible>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Timer {
    /// Backoff: try one message.
    Probe,
    /// See whose turn it is.
    Turn,
    /// The given addresses are to be offered, or a slot given up.
    Slots,
}

impl TimerId for Timer {
    fn index(self) -> usize {
        self as usize
    }
}

/// What may end or ease a backoff.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recovery {
    /// A message is done.
    Success,
    /// A deadline may have passed.
    Time,
}

/// What all connections share.
// In this order for the same reason as a `Connection`.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Shared<'a> {
    pub(super) stopping: bool,
    pub(super) backoff: ConsumerBackoff,
    pub(super) config: &'a Config<'a>,
    pub(super) version: u32,
    pub(super) tally: &'a mut Counters,
    /// The time of the call. Here rather than handed on: it takes two registers of the four that
    /// there are for arguments.
    pub(super) now: Instant,
    pub(super) jitter: Jitter,
    pub(super) rdy: RdyTable<'a>,
    pub(super) in_flight: InFlight<'a>,
    pub(super) timers: Timers<Timer, 3>,
    /// When the given addresses are offered again, and when that may be at the earliest.
    pub(super) offers: Instant,
    pub(super) paced: Instant,
    /// How long a connection may take to come up, each step of it.
    pub(super) patience: Span,
    /// What [`go_round`](Self::go_round) does. Behind a pointer that is set only if the nsqds may be
    /// others than those that have a slot from the start: what is not used is not linked.
    pub(super) rounds: Option<fn(&mut Self, Option<u8>)>,
    /// What is done as a connection is left: likewise.
    pub(super) leave: Option<Leave<'a>>,
    /// Writes IDENTIFY with what else there is to say, if there is any.
    pub(super) identify: Option<Identify>,
    /// What is done after failures: nothing until a message was requeued.
    pub(super) recover: Option<fn(&mut Self, Recovery)>,
    pub(super) nsqds: NsqdTable<'a>,
    /// The given addresses, as a source.
    pub(super) given: Round,
    pub(super) given_up: Option<(MessageId, u16)>,
    /// What nsqlookupds list and nobody can use.
    pub(super) unusable: &'a mut [unusable::Entry],
}

/// While others wait: how long a connection may take to come up, each step of it, in the first lap.
const PATIENCE: Span = Span::from_secs(1);

/// A time that doubles with each lap.
pub(super) fn slower(span: Span, level: u8) -> Span {
    Span::from_millis(span.as_millis().saturating_mul(1 << u32::from(level.min(16))))
}

/// Counts one more: a function of its own, since there are so many of them.
#[inline(never)]
pub(super) fn count(counter: &mut u32) {
    *counter = counter.saturating_add(1);
}

/// Likewise.
#[inline(never)]
pub(super) fn count_long(counter: &mut u64) {
    *counter = counter.saturating_add(1);
}

impl Shared<'_> {
    pub(super) fn changed(&mut self) {
        self.version = self.version.wrapping_add(1);
    }

    /// Makes the window as large as it is to be now.
    pub(super) fn adjust(&mut self) {
        self.rdy.set_limit(self.backoff.limit(self.in_flight.capacity()));
        if !self.rdy.takes_turns() {
            self.timers.stop(Timer::Turn);
        } else if !self.timers.is_set(Timer::Turn) {
            let interval = self.jitter.around(self.config.redistribute).max(Span::from_millis(1));
            self.timers.set(Timer::Turn, self.after(interval));
        }
        if self.rdy.is_short() {
            self.changed();
        }
    }

    /// A message is no longer in flight.
    pub(super) fn answered(&mut self, id: u8) {
        self.rdy.answered(id, 1);
        self.adjust();
    }

    pub(super) fn answer(&mut self, token: Token, answer: Answer) -> Result<(), AnswerError> {
        let answered = self.in_flight.answer(token, answer);
        if answered == Err(AnswerError::Late) {
            count(&mut self.tally.late);
        }
        // Its slot may be free now.
        self.adjust();
        self.changed();
        answered
    }

    pub(super) fn back_off(&mut self, wait: Option<Span>) {
        if let Some(wait) = wait {
            self.timers.set(Timer::Probe, self.after(wait));
        }
    }

    /// Goes on after failures, if there were any.
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

    /// Somebody lists an nsqd.
    pub(super) fn offer(&mut self, source: u8, round: &mut Round, address: &Address) {
        if !self.stopping && self.nsqds.offer(self.now, self.config.rotate, source, round, address)
        {
            self.changed();
        }
    }

    /// Looks whether a slot is to be somebody else's. There may be a connection that does not come
    /// up.
    pub(super) fn go_round(&mut self, failed: Option<u8>) {
        if let Some(rounds) = self.rounds {
            rounds(self, failed);
        }
    }

    /// Looks if there is a reason to.
    pub(super) fn look_round(&mut self, failed: Option<u8>) {
        let fails = failed.is_some_and(|id| self.nsqds.fail(id));
        if fails && self.nsqds.soon & GIVEN != 0 {
            // Not in this moment: who waits for events is to hear of it first.
            let pause = self.pause();
            let pause = self.after(pause);
            self.offers = self.offers.min(self.paced.max(pause));
        }
        if fails || self.timers.expired(Timer::Slots, self.now) {
            self.offer_and_leave();
        }
    }

    /// Offers the given addresses if it is time, and gives up the slots whose time is over.
    pub(super) fn offer_and_leave(&mut self) {
        if self.offers <= self.now {
            self.offer_given();
        }
        let (left, next) = self.nsqds.leave(self.now);
        if left {
            self.changed();
        }
        self.timers.set(Timer::Slots, next.min(self.offers));
        self.be_patient();
    }

    /// Offers the given addresses.
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
            // When the next may have a slot; if it is time already, another source's turn is it.
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

    /// How long after one the next of the given ones is tried.
    pub(super) fn pause(&mut self) -> Span {
        let Config { reconnect_base, reconnect_cap, .. } = *self.config;
        let pause = slower(reconnect_base, self.nsqds.level).min(reconnect_cap);
        self.jitter.around(Span::from_millis(pause.as_millis() >> 1)).max(Span::from_millis(1))
    }

    /// While others wait, nobody may take long to come up.
    pub(super) fn be_patient(&mut self) {
        let longest = self.config.connect_timeout;
        self.patience = if self.nsqds.waiting == 0 {
            longest
        } else {
            slower(PATIENCE, self.nsqds.level).min(longest)
        };
    }

    /// A time from now.
    pub(super) fn after(&self, span: Span) -> Instant {
        self.now.after(span)
    }

    pub(super) fn deadline(&self) -> Instant {
        self.timers.next()
    }

    /// Applies the deadlines of the consumer as a whole that have passed.
    pub(super) fn tick(&mut self) {
        self.recover(Recovery::Time);
        if self.timers.expired(Timer::Turn, self.now) {
            self.rdy.turn();
            self.adjust();
            self.changed();
        }
        self.go_round(None);
    }
}
