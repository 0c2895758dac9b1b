//! The futures of a consumer.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::pin::pin;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::consumer::{AnswerError, Config, ConnectionEvent, Event};
use nanonsq_core::drive::{Dialer, Gathering, WAITERS_MAX, consumer};
use nanonsq_core::name::ChannelName;
use nanonsq_core::session::LinkState;
use nanonsq_core::time::Span;

use crate::servers::{self, Server};
use crate::world::{Task, World, at_every_await, poll_times, runner_is_gone, topic};

const NSQD: u16 = 4150;
const LOOKUPD: u16 = 4161;

/// The number of nsqd's messages, and of those that may be in flight.
const ALL: usize = 20;
const SLOTS: usize = 4;

type Handle<'a> = consumer::Handle<'a, NoopRawMutex, World>;
type Runner<'a, D = World> = consumer::Runner<'a, NoopRawMutex, D, World, 2, 1>;

/// The nsqd that has all messages.
struct Nsqd(Rc<RefCell<Server>>);

impl Nsqd {
    fn look<R>(&self, f: impl FnOnce(&servers::Nsqd) -> R) -> R {
        let Server::Nsqd(source) = &*self.0.borrow() else { unreachable!() };
        f(source)
    }

    fn is_empty(&self) -> bool {
        self.look(|source| source.finished.len() == source.attempts.len())
    }
}

/// Runs `test` with a consumer that finds an nsqd with `messages` through an nsqlookupd.
fn with_consumer(
    world: &World,
    messages: usize,
    test: impl FnOnce(&Handle<'_>, Runner<'_>, &Nsqd),
) {
    with_dialer(world, &|world| world, messages, test);
}

fn with_dialer<D: Dialer>(
    world: &World,
    dialer: &impl Fn(World) -> D,
    messages: usize,
    test: impl FnOnce(&Handle<'_>, Runner<'_, D>, &Nsqd),
) {
    let nsqd = Nsqd(world.serve(NSQD, Server::nsqd(messages)));
    world.serve(LOOKUPD, Server::Directory(Vec::new()));
    let config = Config {
        heartbeat: Span::from_secs(60),
        backoff_base: Span::ZERO,
        // The model nsqd has a constant time.
        requeue_base: Span::ZERO,
        max_attempts: 0,
        ..Config::new(topic("t"), ChannelName::new("c").unwrap())
    };
    let lookupds = ["lookupd:4161".parse().unwrap()];
    let mut ring = [0; SLOTS * 40];
    let mut resources = consumer::Resources::<_, 2, SLOTS, 1, 2>::new();
    let (handle, runner) = consumer::new(
        &mut resources,
        &config,
        consumer::Sources { nsqds: &[], lookupds: &lookupds },
        &mut ring,
        consumer::Dialers {
            nsqds: [dialer(world.clone()), dialer(world.clone())],
            lookupds: [dialer(world.clone())],
        },
        world.clone(),
    )
    .unwrap();
    test(&handle, runner, &nsqd);
    nsqd.look(servers::Nsqd::assert_consistent);
}

/// Finishes and counts all messages.
async fn finish_all(handle: &Handle<'_>, count: &Cell<usize>) -> Infallible {
    loop {
        let message = handle.next().await;
        let _ = message.finish();
        count.set(count.get() + 1);
    }
}

/// Runs all tasks until `done`. Advances the time when none was woken.
#[track_caller]
fn run_until<T, U>(
    world: &World,
    done: impl Fn() -> bool,
    tasks: &mut [Task<'_, T>],
    run: &mut Task<'_, U>,
) {
    for _ in 0..100_000 {
        if done() {
            return;
        }
        let woken = tasks.iter_mut().fold(run.poll(), |woken, task| task.poll() | woken);
        if !woken {
            world.advance();
        }
    }
    panic!("the condition is never met");
}

/// Checks that the consumer still finishes all messages.
#[track_caller]
fn assert_consumes<T>(world: &World, handle: &Handle<'_>, nsqd: &Nsqd, run: &mut Task<'_, T>) {
    let count = Cell::new(0);
    let mut all = pin!(finish_all(handle, &count));
    run_until(world, || nsqd.is_empty(), &mut [Task::new(all.as_mut())], run);
}

#[test]
fn consumers_run_once() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_consumer(world, ALL, |handle, mut runner, nsqd| {
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let _ = poll_times(world, k, pin!(std::future::pending::<()>()), &mut run);
            }
            runner_is_gone(world);
            assert_eq!(nsqd.look(servers::Nsqd::in_flight), 0);
            completed = handle.look(|consumer| consumer.waiting()) == Some(SLOTS);
            let mut run = pin!(runner.run());
            assert_consumes(world, handle, nsqd, &mut Task::new(run.as_mut()));
        });
        completed
    });
}

/// The runner is dropped while answers are being sent, too.
#[test]
fn consumers_run_twice() {
    run_twice(|world| world);
}

/// The same with a transport that gathers answers.
#[test]
fn consumers_run_buffered_twice() {
    run_twice(Gathering::<_, 50>);
}

fn run_twice<D: Dialer>(dialer: impl Fn(World) -> D) {
    for transport in [(0, 1000), (1, 7)] {
        for k in 1..60 {
            for again in 1..40 {
                let world = World::new(transport);
                with_dialer(&world, &dialer, ALL, |handle, mut runner, nsqd| {
                    for polls in [k, again] {
                        let mut running = pin!(runner.run());
                        let mut run = Task::new(running.as_mut());
                        let count = Cell::new(0);
                        let _ =
                            poll_times(&world, polls, pin!(finish_all(handle, &count)), &mut run);
                    }
                    let mut running = pin!(runner.run());
                    assert_consumes(&world, handle, nsqd, &mut Task::new(running.as_mut()));
                });
            }
        }
    }
}

/// A dropped `next` takes no message with it: none has to be delivered again.
#[test]
fn next() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_consumer(world, ALL, |handle, mut runner, nsqd| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            for _ in 0..3 {
                if let Some(message) = poll_times(world, k, pin!(handle.next()), &mut run) {
                    message.finish().unwrap();
                    completed = true;
                }
            }
            assert_consumes(world, handle, nsqd, &mut run);
            nsqd.look(|source| assert_eq!(source.attempts, [1; ALL]));
        });
        completed
    });
}

/// A message that is dropped with its task is delivered again.
#[test]
fn messages_dropped_unanswered_are_requeued() {
    let world = World::new((1, 7));
    with_consumer(&world, ALL, |handle, mut runner, nsqd| {
        let mut run = pin!(runner.run());
        let mut run = Task::new(run.as_mut());
        for _ in 0..SLOTS {
            let task = async { drop(handle.next().await) };
            assert!(poll_times(&world, 200, pin!(task), &mut run).is_some());
        }
        assert_consumes(&world, handle, nsqd, &mut run);
        nsqd.look(|source| assert_eq!((source.requeued, source.returned), (SLOTS, 0)));
        assert_eq!(handle.counters().requeued, SLOTS as u64);
    });
}

#[test]
fn tasks_get_messages_in_turn() {
    // The last number is more than there are slots for waiters.
    for tasks in [2, 3, WAITERS_MAX, WAITERS_MAX + 4] {
        let world = World::new((1, 100));
        with_consumer(&world, 600, |handle, mut runner, nsqd| {
            let mut run = pin!(runner.run());
            let counts = vec![Cell::new(0); tasks];
            let mut all: Vec<_> =
                counts.iter().map(|count| Box::pin(finish_all(handle, count))).collect();
            let mut all: Vec<_> = all.iter_mut().map(|task| Task::new(task.as_mut())).collect();
            run_until(&world, || nsqd.is_empty(), &mut all, &mut Task::new(run.as_mut()));
            let counts: Vec<_> = counts.iter().map(Cell::get).collect();
            let part = 600 / tasks;
            let fair = |count: &usize| (part / 2..=part * 2).contains(count);
            assert!(counts.iter().all(fair), "{counts:?}");
        });
    }
}

#[test]
fn wait() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_consumer(world, ALL, |handle, mut runner, nsqd| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            let ready = || {
                handle.wait(|consumer| {
                    let state = consumer.status(0)?.state;
                    (state == LinkState::Ready).then_some(())
                })
            };
            completed = poll_times(world, k, pin!(ready()), &mut run).is_some();
            let mut again = pin!(ready());
            world.run(&mut Task::new(again.as_mut()), &mut run);
            assert_consumes(world, handle, nsqd, &mut run);
            nsqd.look(|source| assert_eq!(source.attempts, [1; ALL]));
        });
        completed
    });
}

#[test]
fn event() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_consumer(world, ALL, |handle, mut runner, nsqd| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            let mut events = Vec::new();
            let event = poll_times(world, k, pin!(handle.event()), &mut run);
            completed = event.is_some();
            events.extend(event);
            while events.len() < 2 {
                let mut event = pin!(handle.event());
                let mut event = Task::new(event.as_mut());
                world.run(&mut event, &mut run);
                events.extend(event.done);
            }
            let connected = Event::Connection { index: 0, event: ConnectionEvent::Connected };
            assert!(matches!(events[0], Event::Lookupd { .. }), "{events:?}");
            assert_eq!(events[1], connected);
            assert_consumes(world, handle, nsqd, &mut run);
        });
        completed
    });
}

/// A dropped `stop` that was polled still stops the consumer, even if the runner is dropped as well
/// and run again. Its messages go back to nsqd; late answers fail.
#[test]
fn consumers_stop() {
    for before in [0, 1, 5, 12, 20, 30, 60] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_consumer(world, ALL, |handle, mut runner, nsqd| {
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        let message = handle.try_next();
                        completed = poll_times(world, k, pin!(handle.stop()), &mut run).is_some();
                        if k > 0 && !runs_again {
                            assert_stops(world, handle, nsqd, &mut run);
                            if let Some(message) = message {
                                assert_eq!(message.finish(), Err(AnswerError::Late));
                            }
                        }
                    }
                    runner_is_gone(world);
                    let mut run = pin!(runner.run());
                    let mut run = Task::new(run.as_mut());
                    if k > 0 {
                        assert_stops(world, handle, nsqd, &mut run);
                        nsqd.look(|source| assert_eq!(source.finished.len(), 0));
                    } else {
                        assert_consumes(world, handle, nsqd, &mut run);
                    }
                });
                completed
            });
        }
    }
}

fn assert_stops<T>(world: &World, handle: &Handle<'_>, nsqd: &Nsqd, run: &mut Task<'_, T>) {
    run.poll();
    let mut stopped = pin!(handle.stop());
    world.run(&mut Task::new(stopped.as_mut()), run);
    runner_is_gone(world);
    assert!(handle.try_next().is_none());
    assert_eq!(nsqd.look(servers::Nsqd::in_flight), 0);
}
