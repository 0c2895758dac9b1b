//! The messages in flight, which are stored until they are answered.
//!
//! The ring is divided into slots of equal length, as many as there may be messages in flight. Each
//! message is stored as received, head and body, in one slot or in as many adjacent slots as
//! needed.
//!
//! The ring has slots, not records one after the other, because messages are answered in any order:
//! a record that stays would keep the space behind it from being reused. And nsqd does not confirm
//! RDY, so all messages that RDY allows may arrive, each of the longest length: a ring with room
//! for them has to keep that length free for each, which is a slot.

use super::AnswerError;
use crate::time::{Instant, Span};
use crate::wire::copy;
use crate::wire::nsqd::MessageHead;

/// The state of a slot and of its message.
///
/// RAM: 32 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// The time to touch the message, or at which nsqd requeues it.
    due: Instant,
    /// The time at which nsqd requeues the message in spite of TOUCH.
    end: Instant,
    /// The length of the message in bytes; in `Requeued`, the delay in milliseconds.
    len: u32,
    /// The number of messages that were in this slot before; wraps.
    serial: u32,
    /// The number of slots of the message.
    span: u16,
    /// The connection that received the message.
    owner: u8,
    state: SlotState,
    /// TOUCH must be sent.
    touch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    /// Part of the message in an earlier slot.
    Part,
    /// The message is being received.
    Filling,
    /// The message waits for the application to take it.
    Waiting,
    /// The application has the message.
    Taken,
    /// The application has the message; nsqd has requeued it.
    Lost,
    /// The application has the message; REQ must be sent all the same.
    Recalled,
    /// FIN must be sent.
    Finished,
    /// REQ must be sent.
    Requeued,
}

impl Slot {
    // All bytes are zero, as in `Connection::NEW`.
    pub(super) const FREE: Self = Self {
        due: Instant::ZERO,
        end: Instant::ZERO,
        len: 0,
        serial: 0,
        span: 0,
        owner: 0,
        state: SlotState::Free,
        touch: false,
    };

    /// Returns whether nsqd should have the message in flight and no answer was given.
    fn is_in_flight(&self) -> bool {
        matches!(self.state, SlotState::Waiting | SlotState::Taken)
    }
}

/// Identifies one delivered message until it is answered. Never identifies a later message in the
/// same slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Token {
    pub(super) slot: u16,
    serial: u32,
}

/// The reason why there is no room for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// Not enough adjacent slots are free.
    Now,
    /// The message is longer than the ring.
    Ever,
}

/// The answer to a message. `Requeue` has the delay in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Finish,
    Requeue(u32),
    Touch,
}

/// The slots and their bytes.
// All positions are at most the ring's length, and all counts at most the number of slots, so the
// arithmetic here never wraps.
#[derive(Debug)]
pub(super) struct InFlight<'a> {
    slots: &'a mut [Slot],
    ring: &'a mut [u8],
    /// The bytes of a slot.
    unit: usize,
    /// The start of the search for a free slot: behind the last one found, as in the next two
    /// fields, so that the oldest messages come first.
    free: u16,
    /// The start of the search for a message to take.
    take: u16,
    /// The start of the search for an answer to send.
    answer: u16,
    waiting: u16,
    /// The number of slots that are not counted as capacity: those of lost messages, and all but
    /// the first of long messages.
    withheld: u16,
}

impl<'a> InFlight<'a> {
    /// Makes a table of `slots`, all of them [`Slot::FREE`].
    pub(super) fn new(slots: &'a mut [Slot], ring: &'a mut [u8], unit: usize) -> Self {
        Self { slots, ring, unit, free: 0, take: 0, answer: 0, waiting: 0, withheld: 0 }
    }

    /// Returns the number of messages that may be in flight.
    pub(super) fn capacity(&self) -> u16 {
        (self.slots.len() as u16).wrapping_sub(self.withheld)
    }

    /// Returns the number of messages that wait for the application.
    pub(super) fn waiting(&self) -> u16 {
        self.waiting
    }

    /// Reserves slots for a message of `len` bytes, and returns the first.
    pub(super) fn reserve(&mut self, owner: u8, len: u32) -> Result<u16, NoRoom> {
        let bytes = usize::try_from(len).unwrap_or(usize::MAX);
        if bytes > self.unit.wrapping_mul(self.slots.len()) {
            return Err(NoRoom::Ever);
        }
        let mut span = 1usize;
        let mut room = self.unit;
        while room < bytes {
            room = room.wrapping_add(self.unit);
            span = span.wrapping_add(1);
        }
        let first = self.run(span).ok_or(NoRoom::Now)?;
        self.mark(first, span, SlotState::Part);
        if let Some(slot) = self.get_mut(first) {
            slot.state = SlotState::Filling;
            slot.owner = owner;
            slot.len = len;
            slot.span = span as u16;
            slot.touch = false;
        }
        self.withheld = self.withheld.wrapping_add(span.wrapping_sub(1) as u16);
        self.free = first.wrapping_add(span) as u16;
        Ok(first as u16)
    }

    /// Stores a piece of the message, `at` bytes from its start.
    pub(super) fn fill(&mut self, slot: u16, at: u32, data: &[u8]) {
        let start = self.start(slot.into()).wrapping_add(at as usize).min(self.ring.len());
        copy(self.ring.get_mut(start..).unwrap_or_default(), data);
    }

    /// Records that the message is complete. Returns whether an earlier delivery of the message was
    /// still in flight here, which nsqd has requeued.
    pub(super) fn arrived(&mut self, at: u16, due: Instant, end: Instant) -> bool {
        let superseded = self.supersede(at.into());
        if let Some(slot) = self.get_mut(at.into()) {
            slot.state = SlotState::Waiting;
            slot.due = due;
            slot.end = end;
            self.waiting = self.waiting.wrapping_add(1);
        }
        superseded
    }

    /// Gives up an earlier delivery of the message on the same connection, whose answer nsqd would
    /// take for the answer to the new delivery.
    fn supersede(&mut self, new: usize) -> bool {
        // The usual case: the first delivery.
        if self.attempts(new) < 2 {
            return false;
        }
        let id = self.id(new);
        let Some(owner) = self.slots.get(new).map(|slot| slot.owner) else { return false };
        let old = self
            .find(0, |at, slot| slot.owner == owner && slot.is_in_flight() && self.id(at) == id);
        if let Some(old) = old {
            self.give_up(old);
        }
        old.is_some()
    }

    /// Records that nsqd has requeued a message in flight.
    fn give_up(&mut self, at: usize) {
        let Some(slot) = self.get_mut(at) else { return };
        if slot.state == SlotState::Taken {
            self.lose(at);
        } else {
            self.free(at);
        }
    }

    /// Returns the next message for the application.
    pub(super) fn take(&mut self) -> Option<Token> {
        if self.waiting == 0 {
            return None;
        }
        let at = self.find(self.take, |_, slot| slot.state == SlotState::Waiting)?;
        self.take = at.wrapping_add(1) as u16;
        self.waiting = self.waiting.wrapping_sub(1);
        let slot = self.get_mut(at)?;
        slot.state = SlotState::Taken;
        Some(Token { slot: at as u16, serial: slot.serial })
    }

    /// Returns a message that the application has, head and body.
    pub(super) fn message(&self, token: Token) -> Option<&[u8]> {
        let slot = self.slots.get(usize::from(token.slot))?;
        let has = matches!(slot.state, SlotState::Taken | SlotState::Lost | SlotState::Recalled);
        if !has || slot.serial != token.serial {
            return None;
        }
        let start = self.start(token.slot.into());
        self.ring.get(start..start.wrapping_add(slot.len as usize))
    }

    /// Returns the connection of a message.
    pub(super) fn owner(&self, token: Token) -> u8 {
        self.slots.get(usize::from(token.slot)).map_or(0, |slot| slot.owner)
    }

    /// Records the application's answer.
    pub(super) fn answer(&mut self, token: Token, answer: Answer) -> Result<(), AnswerError> {
        let Some(slot) = self.get_mut(token.slot.into()) else { return Err(AnswerError::Unknown) };
        if slot.serial != token.serial {
            return Err(AnswerError::Unknown);
        }
        match (slot.state, answer) {
            (SlotState::Taken, Answer::Touch) => slot.touch = true,
            (SlotState::Lost | SlotState::Recalled, Answer::Touch) => {
                return Err(AnswerError::Late);
            }
            (SlotState::Taken | SlotState::Recalled, Answer::Finish) => {
                slot.state = SlotState::Finished;
            }
            (SlotState::Taken | SlotState::Recalled, Answer::Requeue(delay)) => {
                slot.state = SlotState::Requeued;
                slot.len = delay;
            }
            (SlotState::Lost, Answer::Finish | Answer::Requeue(_)) => {
                self.free(token.slot.into());
                return Err(AnswerError::Late);
            }
            (
                SlotState::Free
                | SlotState::Part
                | SlotState::Filling
                | SlotState::Waiting
                | SlotState::Finished
                | SlotState::Requeued,
                _,
            ) => return Err(AnswerError::Unknown),
        }
        Ok(())
    }

    /// Requeues the messages of connection `owner` without a delay: those that the application has
    /// not taken, and with `taken` the others too.
    pub(super) fn recall(&mut self, owner: u8, taken: bool) {
        for at in 0..self.slots.len() {
            let Some(slot) = self.get_mut(at).filter(|slot| slot.owner == owner) else { continue };
            match slot.state {
                SlotState::Waiting => {
                    slot.state = SlotState::Requeued;
                    slot.len = 0;
                    self.waiting = self.waiting.wrapping_sub(1);
                }
                SlotState::Taken if taken => slot.state = SlotState::Recalled,
                SlotState::Taken
                | SlotState::Free
                | SlotState::Part
                | SlotState::Filling
                | SlotState::Lost
                | SlotState::Recalled
                | SlotState::Finished
                | SlotState::Requeued => {}
            }
        }
    }

    /// Returns the next answer for the nsqd of connection `owner`, and its slot, in which the id of
    /// the message stays until another message arrives.
    // Not inlined, because the function needs all registers.
    pub(super) fn next_answer(&mut self, owner: u8) -> Option<(usize, Answer)> {
        let at = self.find(self.answer, |_, slot| {
            let answered = matches!(
                slot.state,
                SlotState::Finished | SlotState::Requeued | SlotState::Recalled
            );
            slot.owner == owner && (answered || (slot.touch && slot.is_in_flight()))
        })?;
        self.answer = at.wrapping_add(1) as u16;
        let slot = self.get_mut(at)?;
        let answer = match slot.state {
            SlotState::Finished => {
                self.free(at);
                Answer::Finish
            }
            SlotState::Requeued => {
                let delay = slot.len;
                self.free(at);
                Answer::Requeue(delay)
            }
            SlotState::Recalled => {
                self.lose(at);
                Answer::Requeue(0)
            }
            SlotState::Free
            | SlotState::Part
            | SlotState::Filling
            | SlotState::Waiting
            | SlotState::Taken
            | SlotState::Lost => {
                slot.touch = false;
                Answer::Touch
            }
        };
        Some((at, answer))
    }

    /// Removes the messages of connection `owner`, which is closed: nsqd requeues them.
    pub(super) fn forget(&mut self, owner: u8) {
        for at in 0..self.slots.len() {
            let Some(slot) = self.get_mut(at).filter(|slot| slot.owner == owner) else { continue };
            match slot.state {
                SlotState::Taken | SlotState::Recalled => self.lose(at),
                SlotState::Free | SlotState::Part | SlotState::Lost => {}
                SlotState::Filling
                | SlotState::Waiting
                | SlotState::Finished
                | SlotState::Requeued => self.free(at),
            }
        }
    }

    /// Handles the messages of connection `owner` that are due: touches each, if `touch` is the
    /// interval (never zero) and nsqd still allows it, else gives it up. Returns the number of
    /// messages given up, and when the next message is due.
    pub(super) fn expire(
        &mut self,
        owner: u8,
        now: Instant,
        touch: Option<Span>,
    ) -> (u16, Instant) {
        let mut expired = 0u16;
        let mut next = Instant::NEVER;
        for at in 0..self.slots.len() {
            let Some(slot) = self.get_mut(at) else { continue };
            if slot.owner != owner || !slot.is_in_flight() {
                continue;
            }
            if slot.due <= now {
                match touch {
                    Some(every) if now < slot.end => {
                        slot.touch = true;
                        slot.due = now.after(every).min(slot.end);
                    }
                    Some(_) | None => {
                        expired = expired.wrapping_add(1);
                        self.give_up(at);
                        continue;
                    }
                }
            }
            next = next.min(slot.due);
        }
        (expired, next)
    }

    /// Makes the message in slot `at` due at `due`, or at the latest time that nsqd allows if that
    /// is earlier.
    pub(super) fn prolong(&mut self, at: usize, due: Instant) {
        if let Some(slot) = self.get_mut(at) {
            slot.due = due.min(slot.end);
        }
    }

    fn lose(&mut self, at: usize) {
        if let Some(slot) = self.get_mut(at) {
            slot.state = SlotState::Lost;
            self.withheld = self.withheld.wrapping_add(1);
        }
    }

    fn free(&mut self, at: usize) {
        let Some(slot) = self.get_mut(at) else { return };
        let lost = slot.state == SlotState::Lost;
        let waited = slot.state == SlotState::Waiting;
        let span = slot.span;
        slot.serial = slot.serial.wrapping_add(1);
        self.mark(at, span.into(), SlotState::Free);
        let withheld = span.wrapping_sub(1).wrapping_add(lost.into());
        self.withheld = self.withheld.wrapping_sub(withheld);
        self.waiting = self.waiting.wrapping_sub(waited.into());
    }

    /// Sets the state of all slots of a message.
    fn mark(&mut self, at: usize, span: usize, state: SlotState) {
        for slot in self.slots.iter_mut().skip(at).take(span) {
            slot.state = state;
        }
    }

    /// Returns the number of deliveries of the message.
    pub(super) fn attempts(&self, at: usize) -> u16 {
        let Some([_, _, _, _, _, _, _, _, high, low, ..]) = self.head(at) else { return 0 };
        u16::from_be_bytes([*high, *low])
    }

    /// Returns the id of the message.
    pub(super) fn id(&self, at: usize) -> Option<&[u8; 16]> {
        self.head(at)?.last_chunk()
    }

    /// Returns the head of the message, which precedes the body.
    fn head(&self, at: usize) -> Option<&[u8; MessageHead::LEN]> {
        self.ring.get(self.start(at)..)?.first_chunk()
    }

    fn start(&self, at: usize) -> usize {
        self.unit.wrapping_mul(at)
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Slot> {
        self.slots.get_mut(at)
    }

    /// Returns the first slot from `start` on, wrapping at the end, for which `is` holds.
    fn find(&self, start: u16, is: impl Fn(usize, &Slot) -> bool) -> Option<usize> {
        let mut at = usize::from(start);
        for _ in 0..self.slots.len() {
            if at >= self.slots.len() {
                at = 0;
            }
            if self.slots.get(at).is_some_and(|slot| is(at, slot)) {
                return Some(at);
            }
            at = at.wrapping_add(1);
        }
        None
    }

    /// Returns the first of `span` adjacent free slots: the first such run behind the newest
    /// message, else from the first slot on.
    fn run(&self, span: usize) -> Option<usize> {
        let len = self.slots.len();
        let mut free = 0usize;
        let mut at = usize::from(self.free);
        for _ in 0..len.wrapping_mul(2) {
            if at >= len {
                (at, free) = (0, 0);
            }
            let is_free = self.slots.get(at).is_some_and(|slot| slot.state == SlotState::Free);
            free = if is_free { free.wrapping_add(1) } else { 0 };
            at = at.wrapping_add(1);
            if free == span {
                return Some(at.wrapping_sub(span));
            }
        }
        None
    }
}
