//! The publisher's handle without a runner: the effects of waiting and of dropped futures.

#![cfg(feature = "async")]

#[path = "support/still.rs"]
mod still;

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::WAITERS_MAX;
use nanonsq_core::drive::publisher::{self, Handle};
use nanonsq_core::name::TopicName;
use nanonsq_core::publisher::{Config, Full, Outcome, PublishError};
use nanonsq_core::session::Session;
use nanonsq_core::time::Instant;
use nanonsq_models::Wakes;
use still::Still;

const OK: &[u8] = b"\0\0\0\x06\0\0\0\0OK";
const NOW: Instant = Instant::from_millis(1);

/// Runs `test` with a handle whose outbox has 100 bytes.
fn with_handle(full: Full, test: impl FnOnce(Handle<'_, NoopRawMutex>, &Wakes, &Waker)) {
    let config = Config { full, ..Config::new() };
    let nsqds = ["one:1".parse().unwrap()];
    let mut ring = [0; 100];
    let mut resources = publisher::Resources::<NoopRawMutex>::new();
    let (handle, _runner) = publisher::new(
        &mut resources,
        &config,
        &nsqds,
        &mut ring,
        Still::default(),
        Still::default(),
    )
    .unwrap();
    let (wakes, waker) = Wakes::new();
    test(handle, &wakes, &waker);
}

fn topic() -> TopicName {
    TopicName::new("t").unwrap()
}

fn fill(handle: Handle<'_, NoopRawMutex>) -> u64 {
    while handle.try_publish(&topic(), &[b'x'; 20]).is_ok() {}
    assert_eq!(handle.try_publish(&topic(), &[b'x'; 20]), Err(PublishError::Full));
    handle.counters().accepted
}

/// Does the work of a runner: connects, writes, and receives nsqd's answers.
fn acknowledge(handle: Handle<'_, NoopRawMutex>) {
    handle.inspect(|publisher| {
        publisher.dial(NOW).unwrap();
        publisher.open(NOW);
        for _ in 0..2 {
            while !publisher.transmit(NOW).is_empty() {
                let n = publisher.transmit(NOW).len();
                publisher.sent(NOW, n);
            }
            publisher.receive(NOW, OK).unwrap();
        }
    });
}

macro_rules! poll {
    ($future:expr, $waker:expr) => {
        $future.as_mut().poll(&mut Context::from_waker($waker))
    };
}

#[test]
fn a_waiting_publish_takes_no_room_and_can_be_dropped() {
    with_handle(Full::Refuse, |handle, _, waker| {
        let accepted = fill(handle);
        let (topic, refused) = (topic(), handle.counters().refused);
        for polls in 1..5 {
            let mut waiting = pin!(handle.publish(&topic, &[b'y'; 20]));
            for _ in 0..polls {
                assert_eq!(poll!(waiting, waker), Poll::Pending);
            }
        }
        let counters = handle.counters();
        assert_eq!(
            (counters.accepted, counters.refused),
            (accepted, refused),
            "nothing was published"
        );

        let mut waiting = pin!(handle.publish(&topic, &[b'y'; 20]));
        assert_eq!(poll!(waiting, waker), Poll::Pending);
        acknowledge(handle);
        let Poll::Ready(Ok(ticket)) = poll!(waiting, waker) else { panic!("there is room") };
        assert_eq!(ticket.number(), accepted, "the dropped ones left no trace");
        assert_eq!(handle.counters().pending, 1);
    });
}

#[test]
fn bad_messages_are_refused_without_waiting() {
    with_handle(Full::Refuse, |handle, _, waker| {
        fill(handle);
        let topic = topic();
        for (len, error) in [(0, PublishError::Empty), (80, PublishError::TooLarge { max: 79 })] {
            let body = vec![0; len];
            assert_eq!(poll!(pin!(handle.publish(&topic, &body)), waker), Poll::Ready(Err(error)));
        }
    });
}

#[test]
fn outcomes_wait_for_their_own_message_and_can_be_dropped() {
    with_handle(Full::Refuse, |handle, _, waker| {
        let ticket = handle.try_publish(&topic(), b"x").unwrap();
        let mut dropped = Box::pin(handle.outcome(ticket));
        assert_eq!(poll!(dropped, waker), Poll::Pending);
        drop(dropped);
        let mut outcome = pin!(handle.outcome(ticket));
        assert_eq!(poll!(outcome, waker), Poll::Pending);
        acknowledge(handle);
        assert_eq!(poll!(outcome, waker), Poll::Ready(Outcome::Acknowledged));
        // The outcome is still known for another call.
        assert_eq!(poll!(pin!(handle.outcome(ticket)), waker), Poll::Ready(Outcome::Acknowledged));
    });
}

#[test]
fn a_dropped_message_wakes_its_waiting_outcome() {
    with_handle(Full::DropOldest, |handle, wakes, waker| {
        let first = handle.try_publish(&topic(), &[b'x'; 40]).unwrap();
        let mut outcome = pin!(handle.outcome(first));
        assert_eq!(poll!(outcome, waker), Poll::Pending);
        let _ = handle.try_publish(&topic(), &[b'x'; 40]).unwrap();
        assert_eq!(wakes.take(), 1);
        assert_eq!(poll!(outcome, waker), Poll::Ready(Outcome::Dropped));
        assert_eq!(handle.counters().dropped, 1);
    });
}

#[test]
fn waiters_within_the_slots_do_not_wake_each_other() {
    with_handle(Full::Refuse, |handle, _, _| {
        let ticket = handle.try_publish(&topic(), b"x").unwrap();
        let tasks: Vec<_> = (0..WAITERS_MAX).map(|_| Wakes::new()).collect();
        let mut waiting: Vec<_> = tasks.iter().map(|_| Box::pin(handle.outcome(ticket))).collect();
        for _ in 0..3 {
            for (future, (_, waker)) in waiting.iter_mut().zip(&tasks) {
                assert_eq!(poll!(future, waker), Poll::Pending);
            }
        }
        assert!(tasks.iter().all(|(wakes, _)| wakes.take() == 0));
    });
}

#[test]
fn more_waiters_than_slots_all_get_their_outcome() {
    with_handle(Full::Refuse, |handle, _, _| {
        let ticket = handle.try_publish(&topic(), b"x").unwrap();
        let tasks: Vec<_> = (0..20).map(|_| Wakes::new()).collect();
        let mut waiting: Vec<_> = tasks.iter().map(|_| Box::pin(handle.outcome(ticket))).collect();
        for (future, (_, waker)) in waiting.iter_mut().zip(&tasks) {
            assert_eq!(poll!(future, waker), Poll::Pending);
        }
        // A displaced waiter is woken, so that it registers again; none is forgotten.
        let displaced = tasks.iter().filter(|(wakes, _)| wakes.take() > 0).count();
        assert!(displaced >= 20 - WAITERS_MAX, "{displaced}");
        acknowledge(handle);
        for (future, (_, waker)) in waiting.iter_mut().zip(&tasks) {
            let outcome = poll!(future, waker);
            assert_eq!(outcome, Poll::Ready(Outcome::Acknowledged));
        }
    });
}

#[test]
fn a_publish_that_drops_the_oldest_wakes_its_waiting_outcome() {
    with_handle(Full::DropOldest, |handle, wakes, waker| {
        let first = handle.try_publish(&topic(), &[b'x'; 40]).unwrap();
        let mut outcome = pin!(handle.outcome(first));
        assert_eq!(poll!(outcome, waker), Poll::Pending);
        assert!(poll!(pin!(handle.publish(&topic(), &[b'x'; 40])), Waker::noop()).is_ready());
        assert_eq!(wakes.take(), 1);
        assert_eq!(poll!(outcome, waker), Poll::Ready(Outcome::Dropped));
    });
}
