//! A message that the application has taken.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use nanonsq_core::consumer::AnswerError;
use nanonsq_core::drive::consumer as borrowed;

use super::role::{Answer, Consuming, Exchange};
use crate::client::{Call, Client, State};
use crate::setting::span;

/// A message that must be answered. Dropping it unanswered requeues it, as
/// [`release`](Self::release) does. Holding it does not keep the consumer running.
#[must_use = "a message that is dropped unanswered is requeued"]
pub struct Message {
    pub(super) client: Arc<Client<Consuming>>,
    /// Its place among the messages that the application has.
    pub(super) slot: usize,
    pub(super) taken: Taken,
    pub(super) answered: bool,
}

#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) body: Vec<u8>,
    pub(super) attempts: u16,
    pub(super) timestamp: i64,
    pub(super) id: [u8; 16],
    pub(super) exhausted: bool,
}

impl Message {
    /// Returns the body.
    pub fn body(&self) -> &[u8] {
        &self.taken.body
    }

    /// Returns how often the message was delivered, this time included.
    pub fn attempts(&self) -> u16 {
        self.taken.attempts
    }

    /// Returns when the message was published, in nanoseconds of Unix time, by nsqd's clock.
    pub fn timestamp(&self) -> i64 {
        self.taken.timestamp
    }

    /// Returns nsqd's id of the message, 16 characters.
    pub fn id(&self) -> &str {
        str::from_utf8(&self.taken.id).unwrap_or_default()
    }

    /// Returns whether the message was delivered more than `max_attempts` times; only with
    /// [`Exhausted::Deliver`](nanonsq_core::consumer::Exhausted::Deliver).
    pub fn is_exhausted(&self) -> bool {
        self.taken.exhausted
    }

    /// Finishes the message: nsqd will not deliver it again.
    ///
    /// # Errors
    ///
    /// It is too late: the connection is lost, the message timed out or the consumer has ended, and
    /// nsqd delivers it again.
    pub fn finish(mut self) -> Result<(), AnswerError> {
        self.answer(None, |message, _| message.finish())
    }

    /// Requeues the message as failed, after `delay` or, with `None`, after one that grows with the
    /// attempts. Failures let the consumer back off.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn requeue(mut self, delay: Option<Duration>) -> Result<(), AnswerError> {
        self.answer(delay, |message, delay| message.requeue(delay))
    }

    /// Requeues the message without counting a failure.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn release(mut self, delay: Option<Duration>) -> Result<(), AnswerError> {
        self.answer(delay, |message, delay| message.release(delay))
    }

    /// Restarts the message's timeout at nsqd.
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn touch(&self) -> Result<(), AnswerError> {
        let touched = self.client.with(|state| call(state, self.slot, None, None, TOUCH));
        touched.unwrap_or(Err(AnswerError::Unknown))
    }

    fn answer(&mut self, delay: Option<Duration>, answer: Answer) -> Result<(), AnswerError> {
        let slot = self.slot;
        let answered = self.client.with(|state| call(state, slot, delay, Some(answer), ANSWER));
        self.answered = answered.is_some();
        answered.unwrap_or(Err(AnswerError::Unknown))
    }
}

const ANSWER: Call<Consuming> = |locals, exchange| {
    let message = locals.messages.get_mut(exchange.slot).and_then(Option::take);
    let (Some(message), Some(answer)) = (message, exchange.answer) else { return };
    locals.free.push(exchange.slot);
    exchange.answered = Some(answer(message, exchange.delay));
};

const TOUCH: Call<Consuming> = |locals, exchange| {
    let message = locals.messages.get(exchange.slot).and_then(Option::as_ref);
    exchange.answered = message.map(borrowed::Message::touch);
};

fn call(
    state: &mut State<Consuming>,
    slot: usize,
    delay: Option<Duration>,
    answer: Option<Answer>,
    call: Call<Consuming>,
) -> Result<(), AnswerError> {
    let fill = |exchange: &mut Exchange| {
        (exchange.slot, exchange.answer) = (slot, answer);
        (exchange.delay, exchange.answered) = (delay.map(span), None);
    };
    let answered = state.call(fill, call, |exchange| exchange.answered.take());
    // After the end nothing is sent any more; before it, others are requeued.
    let answered = answered.filter(|_| !state.is_ended());
    answered.unwrap_or(Err(AnswerError::Late))
}

impl Drop for Message {
    fn drop(&mut self) {
        if !self.answered {
            let (slot, answer): (_, Answer) = (self.slot, |message, delay| message.release(delay));
            self.client.with_soon(move |state| {
                let _ = call(state, slot, None, Some(answer), ANSWER);
            });
        }
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Taken { body, attempts, .. } = &self.taken;
        let body = body.escape_ascii();
        f.debug_struct("Message")
            .field("id", &self.id())
            .field("attempts", attempts)
            .field("body", &format_args!("{body}"))
            .finish_non_exhaustive()
    }
}
