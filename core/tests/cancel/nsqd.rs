//! The futures of an nsqd.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::nsqd::{self, Dialers, Settings};
use nanonsq_core::drive::{Port, Ports};
use nanonsq_core::name::ChannelName;
use nanonsq_core::nsqd::{ClientEvent, Config, Event, HttpConfig, Nsqd, PublishError};
use nanonsq_core::registration;
use nanonsq_core::session::Closed;
use nanonsq_core::wire::nsqlookupd::NodeInfo;

use crate::servers::Server;
use crate::world::{Door, Doors, Task, World, at_every_await, poll_times, runner_is_gone, topic};

const LOOKUPD: u16 = 4160;
/// The HTTP port that lists the channel `c` for every topic.
const CHANNELS: u16 = 4161;
const SUBSCRIBER: u16 = 5000;

/// The number of short messages that fit into the store.
const ROOM: usize = 6;
const STORE: usize = ROOM * nanonsq_core::nsqd::message_cost(4, 2) + 8;

/// The number of all messages.
const ALL: usize = 20;

type Handle<'a> = nsqd::Handle<'a, NoopRawMutex, World>;
type Runner<'a> = nsqd::Runner<'a, NoopRawMutex, Doors, World, World, 2, 4, 2, 0, 1, 16>;

/// The description of the nsqd for nsqlookupds.
pub(crate) const INFO: NodeInfo<'static> = NodeInfo {
    broadcast_address: "node",
    hostname: "node",
    http_port: 4151,
    tcp_port: 4150,
    topology_region: "",
    topology_zone: "",
    version: "1",
};

/// The servers around the nsqd.
struct Others {
    lookupd: Rc<RefCell<Server>>,
    subscriber: Rc<RefCell<Server>>,
}

impl Others {
    #[track_caller]
    fn assert_listed(&self, names: &[&str]) {
        let Server::Lookupd(lookupd) = &*self.lookupd.borrow() else { unreachable!() };
        assert!(lookupd.listed.iter().eq(names), "{:?}", lookupd.listed);
    }

    fn has(&self, name: &str) -> bool {
        let Server::Lookupd(lookupd) = &*self.lookupd.borrow() else { unreachable!() };
        lookupd.listed.contains(name)
    }

    fn listed(&self) -> usize {
        let Server::Lookupd(lookupd) = &*self.lookupd.borrow() else { unreachable!() };
        lookupd.listed.len()
    }

    /// Returns the bodies that the subscriber finished.
    fn finished(&self) -> Vec<String> {
        let Server::Subscriber(subscriber) = &*self.subscriber.borrow() else { unreachable!() };
        subscriber.finished.clone()
    }
}

/// Runs `test` with an nsqd that registers at one nsqlookupd and has one subscriber.
fn with_node(world: &World, test: impl FnOnce(&Handle<'_>, Runner<'_>, &Others)) {
    let others = Others {
        lookupd: world.serve(LOOKUPD, Server::lookupd()),
        subscriber: world.serve(SUBSCRIBER, Server::subscriber()),
    };
    world.serve(CHANNELS, Server::Directory(Vec::new()));
    let config = Config::new();
    let http = HttpConfig::new();
    let lookup = registration::Config::new(INFO);
    let lookupds = ["lookupd:4160".parse().unwrap()];
    let mut store = [0; STORE];
    let mut resources = nsqd::Resources::<_, 2, 4, 2, 3, 0, 1, 16>::new();
    let door = |port| Door::new(world.clone(), port);
    let (handle, runner) = nsqd::new(
        &mut resources,
        Settings { node: &config, http: &http, lookup: &lookup, lookupds: &lookupds },
        &mut store,
        Ports {
            tcp: Port { slots: [door(Some(SUBSCRIBER)), door(None)], spare: Some(door(None)) },
            http: Port::NONE,
        },
        Dialers { lookupds: [world.clone()], channels: Some(world.clone()) },
        world.clone(),
    )
    .unwrap();
    test(&handle, runner, &others);
}

/// Publishes all messages, in order.
async fn publish_all(handle: &Handle<'_>, from: usize) {
    for number in from..ALL {
        handle.publish(&topic("t"), format!("{number:04}").as_bytes()).await.unwrap();
    }
}

/// Checks that the subscriber gets all messages, and the nsqlookupd lists the topic and channel.
#[track_caller]
fn assert_delivers<T>(
    world: &World,
    handle: &Handle<'_>,
    others: &Others,
    from: usize,
    run: &mut Task<'_, T>,
) {
    let all = async {
        publish_all(handle, from).await;
        handle.idle().await;
    };
    let mut all = pin!(all);
    world.run(&mut Task::new(all.as_mut()), run);
    let mut distinct = others.finished();
    distinct.sort();
    distinct.dedup();
    assert!(distinct.into_iter().eq((0..ALL).map(|number| format!("{number:04}"))));
    for _ in 0..1000 {
        if others.listed() == 2 {
            break;
        }
        if !run.poll() {
            world.advance();
        }
    }
    others.assert_listed(&["t", "t c"]);
}

#[test]
fn nodes_run_once() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |handle, mut runner, others| {
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let all = async {
                    publish_all(handle, 0).await;
                    handle.idle().await;
                };
                completed = poll_times(world, k, pin!(all), &mut run).is_some();
            }
            runner_is_gone(world);
            others.assert_listed(&[]);
            let from = handle.counters().accepted as usize;
            let mut run = pin!(runner.run());
            assert_delivers(world, handle, others, from, &mut Task::new(run.as_mut()));
            // Only messages in flight were delivered again.
            let counters = handle.counters();
            assert_eq!(counters.finished, ALL as u64);
            assert_eq!(counters.delivered, counters.finished + counters.returned);
        });
        completed
    });
}

/// Wherever the runner is dropped while it connects and asks, and then run again: the topic gets
/// its channel of elsewhere, or the query failed, and is not held for ever. The next topic gets it.
#[test]
fn channels_are_asked_for() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |handle, mut runner, others| {
            let u = topic("u");
            handle.try_publish(&u, b"0000").unwrap();
            let has = |depth| {
                let look = handle.look(|node| {
                    let held = node.topics().find(|it| *it.name == u && it.asking);
                    assert!(held.is_none_or(|it| it.depth == 1), "a held topic flows");
                    node.channels(&u).map(|channel| channel.depth).eq([depth])
                });
                look.unwrap()
            };
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let has_channel = |node: &Nsqd<'_>| {
                    (node.channels(&u).next().is_some() && !node.is_asking()).then_some(())
                };
                completed =
                    poll_times(world, k, pin!(handle.wait(has_channel)), &mut run).is_some();
                assert!(!completed || has(1));
            }
            runner_is_gone(world);
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            until(world, &mut run, || handle.look(|node| !node.is_asking()).unwrap());
            assert!(has(1) || handle.look(|node| node.channels(&u).next().is_none()).unwrap());
            until(world, &mut run, || others.has("u"));
            handle.delete(&u, None).unwrap();
            handle.try_publish(&u, b"0001").unwrap();
            until(world, &mut run, || has(1));
        });
        completed
    });
}

/// A `publish` that is dropped while it waits for room publishes nothing, and does not hold up
/// later messages.
#[test]
fn publish() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |handle, mut runner, others| {
            for number in 0..ROOM {
                let body = format!("{number:04}");
                handle.try_publish(&topic("t"), body.as_bytes()).unwrap();
            }
            let full = handle.try_publish(&topic("t"), b"0006");
            assert_eq!(full, Err(PublishError::Full));
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            let ticket = {
                let topic = topic("t");
                let waiting = pin!(handle.publish(&topic, b"0006"));
                poll_times(world, k, waiting, &mut run)
            };
            completed = ticket.is_some();
            let accepted = handle.counters().accepted as usize;
            assert_eq!(accepted, ROOM + usize::from(completed));
            assert_delivers(world, handle, others, accepted, &mut run);
            assert!(others.finished().is_sorted(), "{:?}", others.finished());
        });
        completed
    });
}

/// A dropped `stop` that was polled still unregisters and closes the nsqd, even if the runner is
/// dropped as well and run again.
#[test]
fn nodes_stop() {
    for before in [0, 1, 5, 12, 20, 30, 60] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_node(world, |handle, mut runner, others| {
                    handle.create(&topic("t"), None).unwrap();
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        completed = poll_times(world, k, pin!(handle.stop()), &mut run).is_some();
                        if k > 0 && !runs_again {
                            assert_stops(world, handle, others, &mut run);
                        }
                    }
                    runner_is_gone(world);
                    let mut run = pin!(runner.run());
                    let mut run = Task::new(run.as_mut());
                    if k > 0 {
                        assert_stops(world, handle, others, &mut run);
                    } else {
                        assert_delivers(world, handle, others, 0, &mut run);
                    }
                });
                completed
            });
        }
    }
}

#[track_caller]
fn assert_stops<T>(world: &World, handle: &Handle<'_>, others: &Others, run: &mut Task<'_, T>) {
    let mut stop = pin!(handle.stop());
    world.run(&mut Task::new(stop.as_mut()), run);
    others.assert_listed(&[]);
    runner_is_gone(world);
    // The nsqd stays stopped.
    run.poll();
    runner_is_gone(world);
}

#[test]
fn event() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |handle, mut runner, others| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            let mut event = poll_times(world, k, pin!(handle.event()), &mut run);
            completed = event.is_some();
            if !completed {
                let mut again = pin!(handle.event());
                let mut again = Task::new(again.as_mut());
                world.run(&mut again, &mut run);
                event = again.done;
            }
            assert_eq!(event, Some(Event::Client { index: 0, event: ClientEvent::Connected }));
            assert_delivers(world, handle, others, 0, &mut run);
        });
        completed
    });
}

/// Topics and channels are listed while they exist, whoever creates and deletes them.
#[test]
fn topics_and_channels_are_listed_while_they_exist() {
    let world = World::new((1, 7));
    with_node(&world, |handle, mut runner, others| {
        let mut run = pin!(runner.run());
        let mut run = Task::new(run.as_mut());
        assert_delivers(&world, handle, others, 0, &mut run);
        let channel = |name| ChannelName::new(name).unwrap();
        for round in 0..5 {
            // Together more topics than the registration has room for.
            let name = format!("u{round}");
            let other = topic(&name);
            handle.create(&other, None).unwrap();
            handle.create(&other, Some(&channel("d"))).unwrap();
            handle.create(&topic("t"), Some(&channel("e"))).unwrap();
            let (found, created) = (format!("{name} c"), format!("{name} d"));
            let listed = ["t", "t c", "t e", &name, &found, &created];
            until(&world, &mut run, || others.listed() == listed.len());
            others.assert_listed(&listed);
            handle.delete(&other, None).unwrap();
            handle.delete(&topic("t"), Some(&channel("e"))).unwrap();
            until(&world, &mut run, || others.listed() == 2);
            others.assert_listed(&["t", "t c"]);
        }
        // The topic's subscriber is closed, and creates the topic again.
        while handle.try_event().is_some() {}
        handle.delete(&topic("t"), None).unwrap();
        let mut next = pin!(handle.event());
        let mut next = Task::new(next.as_mut());
        world.run(&mut next, &mut run);
        let gone = ClientEvent::Disconnected(Closed::Local);
        assert_eq!(next.done, Some(Event::Client { index: 0, event: gone }));
        until(&world, &mut run, || others.listed() == 2);
    });
}

#[track_caller]
fn until<T>(world: &World, run: &mut Task<'_, T>, done: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if done() {
            return;
        }
        if !run.poll() {
            world.advance();
        }
    }
    panic!("the condition is never met");
}

/// The registration has room for two topics, and a removed one keeps its slot until it is
/// unregistered: the third waits for that, and the runner sleeps meanwhile.
#[test]
fn the_runner_sleeps_while_a_topic_waits_to_be_registered() {
    let world = World::new((0, 1000));
    with_node(&world, |handle, mut runner, others| {
        let mut run = pin!(runner.run());
        let mut run = Task::new(run.as_mut());
        let until_quiet = |run: &mut Task<'_, _>| (0..100).take_while(|_| run.poll()).count();
        // The client subscribes to the other topic.
        handle.create(&topic("a"), None).unwrap();
        while others.listed() < 4 {
            if !run.poll() {
                world.advance();
            }
        }
        until_quiet(&mut run);
        world.0.clogged.set(true);
        // This command is on its way, and all others wait behind it.
        handle.create(&topic("t"), Some(&ChannelName::new("d").unwrap())).unwrap();
        until_quiet(&mut run);
        handle.delete(&topic("a"), None).unwrap();
        handle.create(&topic("b"), None).unwrap();
        let polls = until_quiet(&mut run);
        assert!(polls < 10, "woken at least {polls} times while nothing can be done");
        others.assert_listed(&["a", "a c", "t", "t c"]);
        world.unclog();
        until_quiet(&mut run);
        others.assert_listed(&["b", "b c", "t", "t c", "t d"]);
    });
}
