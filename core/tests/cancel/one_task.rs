//! A publisher held by one task.

use std::cell::Cell;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;

use nanonsq_core::drive::publisher::{OneTask, Publish};
use nanonsq_core::publisher::{Config, Full, Outcome, PublishError, State};

use crate::servers::Server;
use crate::world::{Task, World, at_every_await, runner_is_gone, topic};

const NSQD: u16 = 4150;

/// Runs `test` with a publisher whose outbox has `ring` bytes.
fn with_publisher(world: &World, ring: usize, test: impl FnOnce(&mut OneTask<'_>)) {
    world.serve(NSQD, Server::nsqd(0));
    let config = Config { full: Full::Refuse, ..Config::new() };
    let nsqds = ["nsqd:4150".parse().unwrap()];
    let mut ring = vec![0; ring];
    let mut publisher = OneTask::new();
    publisher.set_up(&config, &nsqds, &mut ring).unwrap();
    test(&mut publisher);
}

/// Runs a future to its end, polled only when woken.
#[track_caller]
fn run<T>(world: &World, future: Pin<&mut dyn Future<Output = T>>) -> T {
    let mut never = pin!(pending::<()>());
    let mut task = Task::new(future);
    world.run(&mut task, &mut Task::new(never.as_mut()));
    runner_is_there_at_most_once(world);
    task.done.unwrap()
}

fn runner_is_there_at_most_once(world: &World) {
    assert!(world.0.open.get() <= 1, "two connections");
}

fn stored(world: &World) -> Vec<String> {
    let server = Rc::clone(&world.0.servers.borrow()[&NSQD]);
    let Server::Nsqd(nsqd) = &*server.borrow() else { unreachable!() };
    nsqd.stored.iter().map(|(_, body)| body.clone()).collect()
}

/// Fills the outbox before anything is connected. Returns how many messages there are.
fn fill(publisher: &OneTask<'_>) -> u64 {
    let mut count = 0;
    while publisher.try_publish(&topic("t"), format!("message {count}").as_bytes()).is_ok() {
        count += 1;
    }
    count
}

#[test]
fn a_loop_publishes_one_message_after_the_other() {
    for transport in [(0, 1000), (1, 7), (3, 3)] {
        let world = World::new(transport);
        with_publisher(&world, 200, |publisher| {
            {
                let (mut dialer, mut sleep) = (world.clone(), world.clone());
                let work = async |publisher: &OneTask<'_>| {
                    for n in 0..100 {
                        let body = n.to_string();
                        let ticket = publisher.publish(&topic("t"), body.as_bytes()).await.unwrap();
                        assert_eq!(publisher.outcome(ticket).await, Outcome::Acknowledged);
                    }
                };
                run(&world, pin!(publisher.run_until(&mut dialer, &mut sleep, work)));
            }
            runner_is_gone(&world);
            let all: Vec<_> = (0..100).map(|n| n.to_string()).collect();
            assert_eq!(stored(&world), all);
        });
    }
}

/// A task that always has work gives way after 16 rounds, and is woken to go on.
#[test]
fn a_busy_task_lets_others_run() {
    let world = World::new((0, 1000));
    with_publisher(&world, 200, |publisher| {
        let done = Cell::new(0);
        let (mut dialer, mut sleep) = (world.clone(), world.clone());
        let work = async |publisher: &OneTask<'_>| loop {
            let ticket = publisher.publish(&topic("t"), b"one more").await.unwrap();
            assert_eq!(publisher.outcome(ticket).await, Outcome::Acknowledged);
            done.set(done.get() + 1);
        };
        let mut future = pin!(publisher.run_until(&mut dialer, &mut sleep, work));
        let mut task: Task<'_, ()> = Task::new(future.as_mut());
        while done.get() == 0 {
            if !task.poll() {
                world.advance();
            }
        }
        for _ in 0..3 {
            let before = done.get();
            assert!(task.poll(), "not woken");
            assert_eq!(done.get() - before, 16);
        }
    });
}

/// Dropped at every await, and run again: all accepted messages arrive, and the one that waited for
/// room was accepted or not.
#[test]
fn run_until_can_be_dropped() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |publisher| {
            let count = fill(publisher);
            {
                let (mut dialer, mut sleep) = (world.clone(), world.clone());
                let work = async |publisher: &OneTask<'_>| {
                    let ticket = Publish::publish(publisher, &topic("t"), b"waits").await.unwrap();
                    assert_eq!(ticket.number(), count);
                    Publish::outcome(publisher, ticket).await
                };
                let mut future = pin!(publisher.run_until(&mut dialer, &mut sleep, work));
                let mut task = Task::new(future.as_mut());
                for _ in 0..k {
                    if !task.poll() && task.done.is_none() {
                        world.advance();
                    }
                }
                completed = task.done == Some(Outcome::Acknowledged);
                assert!(completed || task.done.is_none());
            }
            runner_is_gone(world);
            let accepted = publisher.with(|it| it.counters().accepted).unwrap();
            assert!(accepted == count || accepted == count + 1);
            {
                let (mut dialer, mut sleep) = (world.clone(), world.clone());
                let work = async |publisher: &OneTask<'_>| {
                    let ticket = publisher.publish(&topic("t"), b"last").await.unwrap();
                    assert_eq!(ticket.number(), accepted);
                    publisher.outcome(ticket).await
                };
                let outcome = run(world, pin!(publisher.run_until(&mut dialer, &mut sleep, work)));
                assert_eq!(outcome, Outcome::Acknowledged);
            }
            runner_is_gone(world);
            let counters = publisher.with(|it| it.counters()).unwrap();
            assert_eq!((counters.acknowledged, counters.pending), (accepted + 1, 0));
            let stored = stored(world);
            let mut unique = stored.clone();
            unique.sort();
            unique.dedup();
            assert_eq!(unique.len() as u64, accepted + 1);
            let duplicates = (stored.len() - unique.len()) as u64;
            assert!(duplicates <= counters.possible_duplicates);
        });
        completed
    });
}

/// A wait that is dropped within the task takes no room.
#[test]
fn a_dropped_publish_accepts_nothing() {
    let world = World::new((1, 7));
    with_publisher(&world, 200, |publisher| {
        let count = fill(publisher);
        let (mut dialer, mut sleep) = (world.clone(), world.clone());
        let work = async |publisher: &OneTask<'_>| {
            let topic = topic("t");
            {
                let mut waits = pin!(publisher.publish(&topic, b"never sent"));
                let polled = std::future::poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx))).await;
                assert_eq!(polled, Poll::Pending);
            }
            let ticket = publisher.publish(&topic, b"sent").await.unwrap();
            assert_eq!(ticket.number(), count);
            publisher.outcome(ticket).await
        };
        let outcome = run(&world, pin!(publisher.run_until(&mut dialer, &mut sleep, work)));
        assert_eq!(outcome, Outcome::Acknowledged);
        assert!(!stored(&world).contains(&"never sent".to_owned()));
    });
}

#[test]
fn with_does_not_nest_and_stops() {
    let world = World::new((0, 1000));
    with_publisher(&world, 200, |publisher| {
        let (mut dialer, mut sleep) = (world.clone(), world.clone());
        let work = async |publisher: &OneTask<'_>| {
            let ticket = publisher.try_publish(&topic("t"), b"x").unwrap();
            let inner = publisher.with(|_| {
                assert!(publisher.with(|_| ()).is_none());
                publisher.try_publish(&topic("t"), b"y")
            });
            assert_eq!(inner, Some(Err(PublishError::Full)));
            assert_eq!(publisher.outcome(ticket).await, Outcome::Acknowledged);
            let now = nanonsq_core::drive::Sleep::now(&world);
            publisher.with(|it| it.stop(now));
            std::future::poll_fn(|_| match publisher.with(|it| it.state()) {
                Some(State::Stopped) => Poll::Ready(()),
                _ => Poll::Pending,
            })
            .await;
            publisher.publish(&topic("t"), b"z").await
        };
        let after = run(&world, pin!(publisher.run_until(&mut dialer, &mut sleep, work)));
        assert_eq!(after, Err(PublishError::Stopped));
    });
}

#[test]
fn bad_settings_are_refused() {
    let config = Config::new();
    let mut publisher = OneTask::default();
    assert!(publisher.set_up(&config, &[], &mut []).is_err());
}
