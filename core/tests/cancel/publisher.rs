//! The futures of a publisher.

use std::collections::BTreeSet;
use std::pin::pin;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::{Sleep, publisher};
use nanonsq_core::publisher::{
    Config, Event, Full, Outcome, PublishError, PublishOptions, State, Ticket,
};
use nanonsq_core::time::Span;

use crate::servers::Server;
use crate::world::{Task, World, at_every_await, poll_times, runner_is_gone, topic};

const NSQD: u16 = 4150;

type Handle<'a> = publisher::Handle<'a, NoopRawMutex>;
type Runner<'a> = publisher::Runner<'a, NoopRawMutex, World, World>;

/// Runs `test` with a publisher whose outbox has `ring` bytes.
fn with_publisher(world: &World, ring: usize, test: impl FnOnce(Handle<'_>, Runner<'_>)) {
    world.serve(NSQD, Server::nsqd(0));
    let config = Config { full: Full::Refuse, ..Config::new() };
    let nsqds = ["nsqd:4150".parse().unwrap()];
    let mut ring = vec![0; ring];
    let mut resources = publisher::Resources::new();
    let (handle, runner) =
        publisher::new(&mut resources, &config, &nsqds, &mut ring, world.clone(), world.clone())
            .unwrap();
    test(handle, runner);
}

/// Fills the outbox except for a little room. Returns the bodies.
fn fill_but_one(handle: Handle<'_>) -> Vec<String> {
    let bodies: Vec<_> = (0..5).map(|n| format!("message {n}")).collect();
    for body in &bodies {
        let _ = handle.try_publish(&topic("t"), body.as_bytes()).unwrap();
    }
    bodies
}

/// Fills the outbox. Returns the bodies.
fn fill(handle: Handle<'_>) -> Vec<String> {
    let mut bodies = Vec::new();
    loop {
        let body = format!("message {}", bodies.len());
        if handle.try_publish(&topic(["t", "u"][bodies.len() % 3 / 2]), body.as_bytes()).is_err() {
            return bodies;
        }
        bodies.push(body);
    }
}

/// Checks that all accepted messages and one more arrive: at least once, in order on each
/// connection, and with no more duplicates than were counted.
fn assert_delivers(world: &World, handle: Handle<'_>, mut runner: Runner<'_>, bodies: &[String]) {
    let last = handle.counters().accepted;
    assert_eq!(last, bodies.len() as u64, "all accepted messages");
    let topic = topic("last");
    let mut all = pin!(async {
        let ticket = handle.publish(&topic, b"last").await.unwrap();
        assert_eq!(ticket.number(), last);
        assert_eq!(handle.outcome(ticket).await, Outcome::Acknowledged);
        handle.idle().await;
    });
    {
        let mut run = pin!(runner.run());
        world.run(&mut Task::new(all.as_mut()), &mut Task::new(run.as_mut()));
    }
    runner_is_gone(world);
    let counters = handle.counters();
    assert_eq!((counters.acknowledged, counters.pending), (last + 1, 0));
    let server = world.0.servers.borrow()[&NSQD].clone();
    let server = server.borrow();
    let Server::Nsqd(nsqd) = &*server else { unreachable!() };
    let stored = &nsqd.stored;
    let expected: BTreeSet<&str> = bodies.iter().map(String::as_str).chain(["last"]).collect();
    let got: BTreeSet<&str> = stored.iter().map(|(_, body)| body.as_str()).collect();
    assert_eq!(got, expected);
    let duplicates = (stored.len() - expected.len()) as u64;
    assert!(duplicates <= counters.possible_duplicates, "{duplicates} {counters:?}");
    let place = |body: &str| bodies.iter().position(|b| b == body).unwrap_or(bodies.len());
    for pair in stored.windows(2) {
        assert!(pair[0].0 != pair[1].0 || place(&pair[0].1) < place(&pair[1].1), "{pair:?}");
    }
}

#[test]
fn publishers_run_once() {
    at_every_await(|world, k| {
        let mut idle = false;
        with_publisher(world, 200, |handle, mut runner| {
            let bodies = fill(handle);
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let _ = poll_times(world, k, pin!(std::future::pending::<()>()), &mut run);
            }
            runner_is_gone(world);
            idle = handle.counters().pending == 0;
            assert_delivers(world, handle, runner, &bodies);
        });
        idle
    });
}

#[test]
fn publishers_run_twice() {
    for transport in [(0, 1000), (1, 7)] {
        for k in 1..80 {
            for again in 1..40 {
                let world = World::new(transport);
                with_publisher(&world, 200, |handle, mut runner| {
                    let bodies = fill(handle);
                    for polls in [k, again] {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(&world, polls, never, &mut run);
                    }
                    assert_delivers(&world, handle, runner, &bodies);
                });
            }
        }
    }
}

#[test]
fn publish() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let mut bodies = fill(handle);
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let topic = topic("t");
                let publish = pin!(handle.publish(&topic, b"the one that waits"));
                if let Some(taken) = poll_times(world, k, publish, &mut run) {
                    assert_eq!(taken.unwrap().number(), bodies.len() as u64);
                    bodies.push("the one that waits".into());
                    completed = true;
                }
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

#[test]
fn publish_with_a_deadline_that_passes() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let mut bodies = fill(handle);
            let deadline = Some(world.now().after(Span::from_secs(3600)));
            let options = PublishOptions { deadline, ..PublishOptions::default() };
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let topic = topic("t");
                let publish = pin!(handle.publish_with(&topic, b"in time", options));
                if let Some(taken) = poll_times(world, k, publish, &mut run) {
                    let _ = taken.unwrap();
                    bodies.push("in time".into());
                    completed = true;
                }
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

/// Futures that only wait: after one is dropped, another call works.
fn waiting<T: PartialEq + std::fmt::Debug>(
    wait: impl AsyncFn(Handle<'_>, Ticket) -> T,
    expected: &T,
) {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let mut bodies = fill_but_one(handle);
            let ticket = handle.try_publish(&topic("t"), b"x").unwrap();
            bodies.push("x".into());
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let result = poll_times(world, k, pin!(wait(handle, ticket)), &mut run);
                completed = result.is_some();
                assert!(result.is_none_or(|result| result == *expected));
                let mut again = pin!(wait(handle, ticket));
                let mut again = Task::new(again.as_mut());
                world.run(&mut again, &mut run);
                assert_eq!(again.done.as_ref(), Some(expected));
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

#[test]
fn outcome() {
    let outcome = async |handle: Handle<'_>, ticket| handle.outcome(ticket).await;
    waiting(outcome, &Outcome::Acknowledged);
}

#[test]
fn idle() {
    waiting(async |handle, _| handle.idle().await, &());
}

#[test]
fn wait() {
    let ready = async |handle: Handle<'_>, _| {
        handle.wait(|publisher| (publisher.state() == State::Ready).then_some(1)).await
    };
    waiting(ready, &1);
}

#[test]
fn event() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let bodies = fill_but_one(handle);
            let all = bodies.len() as u64;
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let mut events = Vec::new();
                let event = poll_times(world, k, pin!(handle.event()), &mut run);
                completed = event.is_some();
                events.extend(event);
                let resolved = |event: &Event| match event {
                    Event::Resolved { below } => below.number(),
                    Event::Connected { .. } => 0,
                    other => panic!("{other:?}"),
                };
                while events.last().map_or(0, resolved) < all {
                    let mut event = pin!(handle.event());
                    let mut event = Task::new(event.as_mut());
                    world.run(&mut event, &mut run);
                    events.extend(event.done);
                }
                assert!(matches!(events[0], Event::Connected { .. }), "{events:?}");
                assert!(events[1..].iter().map(resolved).is_sorted_by(|a, b| a < b), "{events:?}");
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

/// A dropped `stop` that was polled still closes the connection, even if the runner is dropped as
/// well and run again.
#[test]
fn publishers_stop() {
    for before in [0, 1, 5, 20, 60] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_publisher(world, 200, |handle, mut runner| {
                    fill(handle);
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        let stop = pin!(handle.stop(world));
                        completed = poll_times(world, k, stop, &mut run).is_some();
                        if k == 0 {
                            assert_ne!(
                                handle.look(|publisher| publisher.state()),
                                Some(State::Stopped)
                            );
                        } else if !runs_again {
                            assert_stops(world, handle, &mut run);
                        }
                    }
                    runner_is_gone(world);
                    if k > 0 && runs_again {
                        let mut run = pin!(runner.run());
                        assert_stops(world, handle, &mut Task::new(run.as_mut()));
                    }
                });
                completed
            });
        }
    }
}

fn assert_stops<T>(world: &World, handle: Handle<'_>, run: &mut Task<'_, T>) {
    let stopped = handle.wait(|publisher| (publisher.state() == State::Stopped).then_some(()));
    let mut stopped = pin!(stopped);
    world.run(&mut Task::new(stopped.as_mut()), run);
    while run.poll() {}
    runner_is_gone(world);
    assert_eq!(handle.try_publish(&topic("t"), b"x"), Err(PublishError::Stopped));
    let counters = handle.counters();
    assert_eq!(counters.accepted, counters.acknowledged + counters.pending);
}

#[test]
fn publishers_drain_and_resume() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_publisher(world, 200, |handle, mut runner| {
            let bodies = fill_but_one(handle);
            {
                let drain = async || {
                    let left = handle.drain(world, Span::from_secs(3600)).await;
                    assert_eq!((left, handle.counters().pending), (0, 0));
                    assert_eq!(handle.try_publish(&topic("t"), b"x"), Err(PublishError::Stopped));
                    handle.resume().await;
                };
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                completed = poll_times(world, k, pin!(drain()), &mut run).is_some();
                // Wherever that was dropped.
                let mut resume = pin!(handle.resume());
                world.run(&mut Task::new(resume.as_mut()), &mut run);
                let mut again = pin!(drain());
                world.run(&mut Task::new(again.as_mut()), &mut run);
            }
            assert_delivers(world, handle, runner, &bodies);
        });
        completed
    });
}

#[test]
fn what_is_not_drained_in_time_is_sent_after_resuming() {
    for transport in [(0, 1000), (1, 7)] {
        let world = World::new(transport);
        world.0.clogged.set(true);
        with_publisher(&world, 200, |handle, mut runner| {
            let bodies = fill_but_one(handle);
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let (begun, limit) = (world.now(), Span::from_secs(3));
                let mut drain = pin!(handle.drain(&world, limit));
                let mut drain = Task::new(drain.as_mut());
                world.run(&mut drain, &mut run);
                assert_eq!(drain.done, Some(bodies.len() as u64));
                assert!((limit..Span::from_secs(5)).contains(&world.now().since(begun)));
                let mut resume = pin!(handle.resume());
                world.unclog();
                world.run(&mut Task::new(resume.as_mut()), &mut run);
            }
            assert_delivers(&world, handle, runner, &bodies);
        });
    }
}
