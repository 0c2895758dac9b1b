//! Runners with several connections, each with its own session.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::pin::pin;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::consumer;
use nanonsq_core::drive;
use nanonsq_core::drive::nsqd::{self, Settings};
use nanonsq_core::drive::{Port, Ports};
use nanonsq_core::name::ChannelName;
use nanonsq_core::nsqd::{Config, HttpConfig, message_cost};
use nanonsq_core::registration;
use nanonsq_core::time::Span;

use crate::nsqd::INFO;
use crate::servers::Server;
use crate::world::{Door, Doors, Task, World, topic};

const SUBSCRIBERS: [u16; 2] = [5000, 5001];
const HTTP_CLIENT: u16 = 5002;
const LOOKUPD: u16 = 4160;
const REQUEST: &[u8] = b"GET /stats?topic=t&format=json HTTP/1.1\r\nHost: node\r\n\r\n";
const MESSAGES: usize = 40;

type Node<'a> = nsqd::Handle<'a, NoopRawMutex, World>;
type NodeRunner<'a> = nsqd::Runner<'a, NoopRawMutex, Doors, World, World, 2, 4, 2, 1, 1, 16>;

fn finished(server: &Rc<RefCell<Server>>) -> Vec<String> {
    let Server::Subscriber(subscriber) = &*server.borrow() else { unreachable!() };
    subscriber.finished.clone()
}

fn listed(server: &Rc<RefCell<Server>>) -> BTreeSet<String> {
    let Server::Lookupd(lookupd) = &*server.borrow() else { unreachable!() };
    lookupd.listed.clone()
}

/// Runs until `done`. Returns how many milliseconds that took.
#[track_caller]
fn run_until<T>(world: &World, run: &mut Task<'_, T>, done: impl Fn() -> bool) -> u64 {
    let started = world.0.now.get();
    for _ in 0..100_000 {
        if done() {
            return (world.0.now.get() - started) / 1000;
        }
        if !run.poll() {
            world.advance();
        }
    }
    panic!("the condition is never met");
}

/// Runs `test` with an nsqd that has room for two clients and one HTTP client, which connect from
/// these ports.
fn with_node(
    world: &World,
    callers: [Option<u16>; 2],
    http_client: Option<u16>,
    test: impl FnOnce(&Node<'_>, NodeRunner<'_>),
) {
    world.serve(LOOKUPD, Server::lookupd());
    let (config, http) = (Config::new(), HttpConfig::new());
    let lookup = registration::Config::new(INFO);
    let lookupds = ["lookupd:4160".parse().unwrap()];
    let mut store = [0; 10 * message_cost(4, 2) + 8];
    let mut resources = nsqd::Resources::<_, 2, 4, 2, 3, 1, 1, 16>::new();
    let door = |port| Door::new(world.clone(), port);
    let (handle, runner) = nsqd::new(
        &mut resources,
        Settings { node: &config, http: &http, lookup: &lookup, lookupds: &lookupds },
        &mut store,
        Ports {
            tcp: Port { slots: callers.map(door), spare: Some(door(None)) },
            http: Port { slots: [door(http_client)], spare: Some(door(None)) },
        },
        nsqd::Dialers { lookupds: [world.clone()], channels: None },
        world.clone(),
    )
    .unwrap();
    test(&handle, runner);
}

#[test]
fn an_nsqd_serves_its_clients_and_its_http_port_at_once() {
    let world = World::new((1, 7));
    let subscribers = SUBSCRIBERS.map(|port| world.serve(port, Server::subscriber()));
    let http_client =
        world.serve(HTTP_CLIENT, Server::Talker { bytes: REQUEST, received: Vec::new() });
    with_node(&world, SUBSCRIBERS.map(Some), Some(HTTP_CLIENT), |handle, mut runner| {
        let mut run = pin!(runner.run());
        let mut run = Task::new(run.as_mut());
        let publishes = async {
            for number in 0..MESSAGES {
                handle.publish(&topic("t"), format!("{number:04}").as_bytes()).await.unwrap();
            }
            handle.idle().await;
        };
        let mut publishes = pin!(publishes);
        world.run(&mut Task::new(publishes.as_mut()), &mut run);
        let [one, two] = subscribers.each_ref().map(finished);
        assert!(one.len() > MESSAGES / 4 && two.len() > MESSAGES / 4, "{one:?} and {two:?}");
        let mut all = [one, two].concat();
        all.sort();
        assert!(all.into_iter().eq((0..MESSAGES).map(|number| format!("{number:04}"))));

        let received = || {
            let Server::Talker { received, .. } = &*http_client.borrow() else { unreachable!() };
            String::from_utf8(received.clone()).unwrap()
        };
        run_until(&world, &mut run, || received().contains("\"client_count\":2"));
        assert!(received().contains("\"topic_name\":\"t\""), "{}", received());
    });
}

#[test]
fn deleted_topics_and_channels_are_unregistered_at_once() {
    let world = World::new((0, 1000));
    with_node(&world, [None; 2], None, |handle, mut runner| {
        let server = world.0.servers.borrow()[&LOOKUPD].clone();
        let mut run = pin!(runner.run());
        let mut run = Task::new(run.as_mut());
        let channel = ChannelName::new("c").unwrap();
        handle.create(&topic("t"), None).unwrap();
        handle.create(&topic("t"), Some(&channel)).unwrap();
        handle.create(&topic("u"), None).unwrap();
        run_until(&world, &mut run, || listed(&server).len() == 3);
        handle.delete(&topic("u"), None).unwrap();
        let took = run_until(&world, &mut run, || listed(&server).len() == 2);
        assert_eq!(took, 0, "a topic");
        handle.delete(&topic("t"), Some(&channel)).unwrap();
        let took = run_until(&world, &mut run, || listed(&server).len() == 1);
        assert_eq!(took, 0, "a channel");
        // A new topic takes the free slot.
        handle.create(&topic("v"), None).unwrap();
        let took = run_until(&world, &mut run, || listed(&server).contains("v"));
        assert_eq!(took, 0, "another topic");
    });
}

#[test]
fn a_consumer_connects_to_each_of_its_nsqds_in_turn() {
    let world = World::new((0, 1000));
    const NSQDS: [u16; 3] = [4150, 4152, 4154];
    let servers = NSQDS.map(|port| world.serve(port, Server::nsqd(3)));
    let config = consumer::Config {
        rotate: Span::from_secs(5),
        ..consumer::Config::new(topic("t"), ChannelName::new("c").unwrap())
    };
    let nsqds = NSQDS.map(|port| format!("nsqd:{port}").parse().unwrap());
    let mut ring = [0; 4 * 40];
    let mut resources = drive::consumer::Resources::<NoopRawMutex, 2, 4, 0, 0>::new();
    let (handle, mut runner) = drive::consumer::new(
        &mut resources,
        &config,
        drive::consumer::Sources { nsqds: &nsqds, lookupds: &[] },
        &mut ring,
        drive::consumer::Dialers { nsqds: [world.clone(), world.clone()], lookupds: [] },
        world.clone(),
    )
    .unwrap();
    let mut run = pin!(runner.run());
    let mut run = Task::new(run.as_mut());
    let finishes = async {
        for _ in 0..9 {
            handle.next().await.finish().unwrap();
        }
    };
    let mut finishes = pin!(finishes);
    world.run(&mut Task::new(finishes.as_mut()), &mut run);
    run_until(&world, &mut run, || {
        servers.iter().all(|server| {
            let Server::Nsqd(source) = &*server.borrow() else { unreachable!() };
            source.finished.len() == 3
        })
    });
}

#[test]
fn a_consumer_asks_each_of_its_nsqlookupds() {
    let world = World::new((0, 1000));
    world.serve(4150, Server::nsqd(0));
    let lookupds = [4161, 4163].map(|port| world.serve(port, Server::Directory(Vec::new())));
    let config = consumer::Config::new(topic("t"), ChannelName::new("c").unwrap());
    let addresses = [4161, 4163].map(|port| format!("lookupd:{port}").parse().unwrap());
    let mut ring = [0; 4 * 40];
    let mut resources = drive::consumer::Resources::<NoopRawMutex, 2, 4, 2, 2>::new();
    let (handle, mut runner) = drive::consumer::new(
        &mut resources,
        &config,
        drive::consumer::Sources { nsqds: &[], lookupds: &addresses },
        &mut ring,
        drive::consumer::Dialers {
            nsqds: [world.clone(), world.clone()],
            lookupds: [world.clone(), world.clone()],
        },
        world.clone(),
    )
    .unwrap();
    let mut run = pin!(runner.run());
    let mut run = Task::new(run.as_mut());
    run_until(&world, &mut run, || handle.counters().lookups == 2);
    for (index, server) in lookupds.iter().enumerate() {
        let Server::Directory(asked) = &*server.borrow() else { unreachable!() };
        assert!(asked.starts_with(b"GET /lookup?topic=t "), "{index}");
        let producers = handle.wait(|consumer| {
            let status = consumer.lookupd_status(index)?;
            (status.producers > 0).then_some(status.producers)
        });
        let mut producers = pin!(producers);
        let mut task = Task::new(producers.as_mut());
        task.poll();
        assert_eq!(task.done, Some(1), "{index}");
    }
}
