//! Where messages lie until they are answered.
//!
//! The ring is divided into as many slots of equal length as there are messages at a time, and each
//! message lies as it came, head and body, in one slot, or in as many neighbouring ones as it needs.
//!
//! Slots rather than one record behind the other: messages are answered in any order, and a record
//! that stays would keep all behind it from being reused. And RDY is a window that nsqd does not
//! confirm: of the most that may come, every message may be as long as the longest. A ring that
//! promises room for that has to keep the longest length free for each, which is a slot.

use super::AnswerError;
use crate::time::{Instant, Span};
use crate::wire::copy;
use crate::wire::nsqd::MessageHead;

/// What is known of a slot's message.
///
/// RAM: 32 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    /// When to touch it, or when nsqd no longer has it in flight.
    due: Instant,
    /// When even TOUCH does not keep it in flight.
    end: Instant,
    /// How long the message is; once it is to be requeued, after how many milliseconds.
    len: u32,
    /// Counts the messages that were here.
    serial: u32,
    /// How many slots it takes.
    span: u16,
    /// The connection it came from.
    owner: u8,
    state: SlotState,
    /// TOUCH is to be sent.
    touch: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    /// Belongs to the message in a slot before it.
    Part,
    /// Being received.
    Filling,
    /// For the application to take.
    Waiting,
    /// The application has it.
    Taken,
    /// The application has it, nsqd has taken it back.
    Lost,
    /// The application has it; it is to be requeued all the same.
    Recalled,
    /// FIN is to be sent.
    Finished,
    /// REQ is to be sent.
    Requeued,
}

impl Slot {
    // Zero, as a new `Connection`.
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

    /// Whether nsqd counts it as in flight, as far as is known.
    fn is_in_flight(&self) -> bool {
        matches!(self.state, SlotState::Waiting | SlotState::Taken)
    }
}

/// Names one delivered message until it is answered. It does not name the next one in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Token {
    pub(super) slot: u16,
    serial: u32,
}

/// Why there is no room for a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// There is none now.
    Now,
    /// There never is.
    Ever,
}

/// What to tell nsqd of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Finish,
    Requeue(u32),
    Touch,
}

/// The slots and their bytes.
// All positions are at most the ring's length, and all counts at most that of the slots: what is
// added, taken away and multiplied here is exact.
#[derive(Debug)]
pub(super) struct InFlight<'a> {
    slots: &'a mut [Slot],
    ring: &'a mut [u8],
    /// Bytes of a slot.
    unit: usize,
    /// Where to look for a free slot, for a message to hand out, for an answer to send: each right
    /// behind the last one found, so that the oldest come first.
    free: u16,
    take: u16,
    answer: u16,
    waiting: u16,
    /// Slots that no message that may come can be promised: of lost messages, and all but the
    /// first of long ones.
    withheld: u16,
}

impl<'a> InFlight<'a> {
    /// All slots are [`Slot::FREE`].
    pub(super) fn new(slots: &'a mut [Slot], ring: &'a mut [u8], unit: usize) -> Self {
        Self { slots, ring, unit, free: 0, take: 0, answer: 0, waiting: 0, withheld: 0 }
    }

    /// How many messages may be in flight.
    pub(super) fn capacity(&self) -> u16 {
        (self.slots.len() as u16).wrapping_sub(self.withheld)
    }

    /// How many messages wait for the application.
    pub(super) fn waiting(&self) -> u16 {
        self.waiting
    }

    /// Takes slots for a message of `len` bytes.
    #[inline(never)]
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

    /// Adds a piece of the message, `at` bytes from its start.
    pub(super) fn fill(&mut self, slot: u16, at: u32, data: &[u8]) {
        let start = self.start(slot.into()).wrapping_add(at as usize).min(self.ring.len());
        copy(self.ring.get_mut(start..).unwrap_or_default(), data);
    }

    /// The message is whole. Says whether nsqd has taken an earlier delivery of it back: then what
    /// is still here of that does not count any more.
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

    /// Gives up an earlier delivery of a message on the same connection. Its answer would be taken
    /// for that of the new one.
    #[inline(never)]
    fn supersede(&mut self, new: usize) -> bool {
        // What nearly every message is: delivered for the first time.
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

    /// nsqd has taken a message in flight back.
    fn give_up(&mut self, at: usize) {
        let Some(slot) = self.get_mut(at) else { return };
        if slot.state == SlotState::Taken {
            self.lose(at);
        } else {
            self.free(at);
        }
    }

    /// The next message for the application.
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

    /// The message that the application has, head and body.
    pub(super) fn message(&self, token: Token) -> Option<&[u8]> {
        let slot = self.slots.get(usize::from(token.slot))?;
        let has = matches!(slot.state, SlotState::Taken | SlotState::Lost | SlotState::Recalled);
        if !has || slot.serial != token.serial {
            return None;
        }
        let start = self.start(token.slot.into());
        self.ring.get(start..start.wrapping_add(slot.len as usize))
    }

    /// Whose message it is.
    pub(super) fn owner(&self, token: Token) -> u8 {
        self.slots.get(usize::from(token.slot)).map_or(0, |slot| slot.owner)
    }

    /// The application's answer.
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

    /// Requeues, at once, what connection `owner` has delivered: all of it, or what nobody took.
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

    /// The next thing to tell the nsqd of connection `owner`, and of which message: its id is in place
    /// until another one comes.
    // Apart: it needs all registers.
    #[inline(never)]
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

    /// Connection `owner` is gone: nsqd takes back what it delivered.
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

    /// Touches what is due on connection `owner`, for a time that is not zero, or gives it up: says how many of the latter, and
    /// when the next is due.
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

    /// The message in slot `at` takes longer: nsqd has it in flight until `due`, or as long as it
    /// ever does.
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

    /// The slots of one message are all in a state.
    fn mark(&mut self, at: usize, span: usize, state: SlotState) {
        for slot in self.slots.iter_mut().skip(at).take(span) {
            slot.state = state;
        }
    }

    /// How often the message was delivered.
    pub(super) fn attempts(&self, at: usize) -> u16 {
        let Some([_, _, _, _, _, _, _, _, high, low, ..]) = self.head(at) else { return 0 };
        u16::from_be_bytes([*high, *low])
    }

    /// Its id.
    pub(super) fn id(&self, at: usize) -> Option<&[u8; 16]> {
        self.head(at)?.last_chunk()
    }

    /// What stands before its body.
    #[inline(never)]
    fn head(&self, at: usize) -> Option<&[u8; MessageHead::LEN]> {
        self.ring.get(self.start(at)..)?.first_chunk()
    }

    fn start(&self, at: usize) -> usize {
        self.unit.wrapping_mul(at)
    }

    fn get_mut(&mut self, at: usize) -> Option<&mut Slot> {
        self.slots.get_mut(at)
    }

    /// The first slot from `start` on, round the end, of which `is` holds.
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

    /// The first `span` free slots in a row behind the message that came last, else from the first
    /// slot on.
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
