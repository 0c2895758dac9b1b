//! Receipts of accepted messages, and why a message was not accepted or not acknowledged.

use std::convert::Infallible;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use nanonsq_core::name::NameError;
use nanonsq_core::publisher::{Outcome, PublishError as Refusal, Ticket};
use nanonsq_core::session::ErrorCode;

use super::role::{ASK, Exchange, Publishing};
use crate::client::Client;

/// A message that is in the outbox. Dropping the receipt does not affect the message, and holding
/// it does not keep the publisher running.
#[must_use = "the message is not acknowledged yet; drop the receipt if that is of no interest"]
pub struct Receipt {
    pub(super) client: Arc<Client<Publishing>>,
    pub(super) ticket: Ticket,
    pub(super) waits: bool,
}

/// Why a message was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic is not a name.
    Topic(NameError),
    /// The publisher did not take it.
    Refused(Refusal),
}

/// Why a message is not acknowledged, and will not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotAcknowledged {
    /// nsqd refused the message, and would refuse it again.
    Rejected(ErrorCode),
    /// Its time passed first; nsqd may have it nevertheless.
    Expired,
    /// It made room for a newer message.
    Dropped,
    /// It is final, but its outcome is forgotten: more than 4 later ranges of messages failed
    /// before this receipt was asked.
    Forgotten,
    /// The publisher ended first; nsqd may have it nevertheless.
    Ended,
}

impl Receipt {
    /// Waits until nsqd has acknowledged the message. Cancel-safe.
    ///
    /// # Errors
    ///
    /// It is final without an acknowledgement, or the publisher has ended.
    pub async fn acknowledged(&mut self) -> Result<(), NotAcknowledged> {
        let Self { client, ticket, waits } = self;
        let outcome = poll_fn(|cx| {
            client.poll_with(cx, |state, cx| {
                let fill = |exchange: &mut Exchange| exchange.ticket = Some(*ticket);
                let outcome = state.call(fill, ASK, |exchange| exchange.outcome.take());
                *waits = outcome.is_none() && !state.is_ended();
                if *waits {
                    state.waits.outcomes.insert(*ticket, cx.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(outcome)
            })
        })
        .await;
        match outcome {
            Some(Outcome::Acknowledged) => Ok(()),
            Some(Outcome::Rejected(code)) => Err(NotAcknowledged::Rejected(code)),
            Some(Outcome::Expired) => Err(NotAcknowledged::Expired),
            Some(Outcome::Dropped) => Err(NotAcknowledged::Dropped),
            Some(Outcome::Forgotten) => Err(NotAcknowledged::Forgotten),
            None => Err(NotAcknowledged::Ended),
        }
    }

    /// Returns the message's number, from 0, in the order of publishing.
    pub fn number(&self) -> u64 {
        self.ticket.number()
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if self.waits {
            let ticket = self.ticket;
            self.client.with_soon(move |state| drop(state.waits.outcomes.remove(&ticket)));
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

impl From<NameError> for PublishError {
    fn from(error: NameError) -> Self {
        Self::Topic(error)
    }
}

impl From<Infallible> for PublishError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Topic(why) => write!(f, "topic: {why}"),
            Self::Refused(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for PublishError {}

impl fmt::Display for NotAcknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(code) => Outcome::Rejected(*code).fmt(f),
            Self::Expired => Outcome::Expired.fmt(f),
            Self::Dropped => Outcome::Dropped.fmt(f),
            Self::Forgotten => Outcome::Forgotten.fmt(f),
            Self::Ended => f.write_str("the publisher ended before nsqd acknowledged the message"),
        }
    }
}

impl std::error::Error for NotAcknowledged {}
