//! Consumers of several topics, as one.

use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::task::Poll;

use embassy_futures::select::select_slice;
use nanonsq_core::drive::consumer;
use nanonsq_core::name::TopicName;
use nanonsq_std::{NoopRawMutex, TokioSleep};

pub(crate) type Handle = consumer::Handle<'static, NoopRawMutex, TokioSleep>;
pub(crate) type Message = consumer::Message<'static, NoopRawMutex, TokioSleep>;

/// The consumer of a topic.
pub(crate) struct Consuming {
    pub(crate) topic: TopicName,
    pub(crate) handle: Handle,
}

/// Stops all consumers at the same time.
pub(crate) async fn stop(consumers: &[Consuming]) {
    let mut all: Vec<_> = consumers.iter().map(|it| Box::pin(it.handle.stop())).collect();
    poll_fn(|cx| {
        all.retain_mut(|stopping| stopping.as_mut().poll(cx).is_pending());
        if all.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Waits for the next message of any consumer, and returns the consumer's index with it. They are
/// asked from index `turn` on: with the one behind the last index, none waits for as long as others
/// have messages.
pub(crate) async fn next_of(consumers: &[Consuming], turn: usize) -> (Message, usize) {
    let in_turn = (0..consumers.len()).map(|at| (turn + at) % consumers.len());
    let mut all: Vec<_> = in_turn.map(|at| Box::pin(consumers[at].handle.next())).collect();
    let (message, at) = select_slice(Pin::new(&mut all[..])).await;
    (message, (turn + at) % consumers.len())
}

/// As [`next_of`], if there is a message now.
pub(crate) fn try_next_of(consumers: &[Consuming], turn: usize) -> Option<(Message, usize)> {
    let mut in_turn = (0..consumers.len()).map(|at| (turn + at) % consumers.len());
    in_turn.find_map(|at| Some((consumers[at].handle.try_next()?, at)))
}
