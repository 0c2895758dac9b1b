//! The futures of an nsqlookupd.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::nsqlookupd;
use nanonsq_core::drive::{Port, Ports};
use nanonsq_core::nsqlookupd::Config;

use crate::servers::Server;
use crate::world::{Door, Doors, Task, World, at_every_await, poll_times, runner_is_gone, topic};

const NODE: u16 = 5000;
const HTTP_CLIENT: u16 = 5001;

const REGISTRATION: &[u8] = b"  V1IDENTIFY\n\0\0\0\x4f{\"broadcast_address\":\"node\",\
    \"tcp_port\":4150,\"http_port\":4151,\"version\":\"1.3.0\"}REGISTER t c\n";
const REQUEST: &[u8] = b"GET /ping HTTP/1.1\r\nHost: directory\r\n\r\n";

type Handle<'a> = nsqlookupd::Handle<'a, NoopRawMutex, World>;
type Runner<'a> = nsqlookupd::Runner<'a, NoopRawMutex, Doors, World, 2, 1, 16>;

/// Runs `test` with an nsqlookupd to which a node and an HTTP client connect.
fn with_directory(world: &World, test: impl FnOnce(&Handle<'_>, Runner<'_>, &Rc<RefCell<Server>>)) {
    world.serve(NODE, Server::Talker { bytes: REGISTRATION, received: Vec::new() });
    let http_client =
        world.serve(HTTP_CLIENT, Server::Talker { bytes: REQUEST, received: Vec::new() });
    let config = Config::new();
    let mut resources = nsqlookupd::Resources::<_, 2, 4, 4, 1, 16>::new();
    let door = |port| Door::new(world.clone(), port);
    let ports = Ports {
        tcp: Port { slots: [door(Some(NODE)), door(None)], spare: Some(door(None)) },
        http: Port { slots: [door(Some(HTTP_CLIENT))], spare: None },
    };
    let (handle, runner) = nsqlookupd::new(&mut resources, &config, ports, world.clone());
    test(&handle, runner, &http_client);
}

/// Checks that the node becomes listed, and the HTTP client gets its answer.
#[track_caller]
fn assert_serves<T>(
    world: &World,
    handle: &Handle<'_>,
    http_client: &Rc<RefCell<Server>>,
    run: &mut Task<'_, T>,
) {
    // The first poll notifies the sessions that the previous runner is gone.
    run.poll();
    let mut listed = pin!(listed(handle));
    world.run(&mut Task::new(listed.as_mut()), run);
    for _ in 0..1000 {
        let Server::Talker { received, .. } = &*http_client.borrow() else { unreachable!() };
        if received.ends_with(b"\r\n\r\nOK") {
            return;
        }
        if !run.poll() {
            world.advance();
        }
    }
    panic!("no answer");
}

async fn listed(handle: &Handle<'_>) {
    handle
        .wait(|directory| {
            let node = directory.producer(0)?.node.broadcast_address == "node";
            (node && directory.has_topic(0, &topic("t"))).then_some(())
        })
        .await;
}

#[test]
fn directories_run() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_directory(world, |handle, mut runner, http_client| {
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                completed = poll_times(world, k, pin!(listed(handle)), &mut run).is_some();
            }
            runner_is_gone(world);
            let mut run = pin!(runner.run());
            assert_serves(world, handle, http_client, &mut Task::new(run.as_mut()));
        });
        completed
    });
}

#[test]
fn directories_stop() {
    for before in [0, 1, 5, 12, 20, 30, 60] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_directory(world, |handle, mut runner, http_client| {
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        completed = poll_times(world, k, pin!(handle.stop()), &mut run).is_some();
                        if k > 0 && !runs_again {
                            assert_stops(world, handle, &mut run);
                        }
                    }
                    runner_is_gone(world);
                    let mut run = pin!(runner.run());
                    let mut run = Task::new(run.as_mut());
                    if k > 0 {
                        assert_stops(world, handle, &mut run);
                    } else {
                        assert_serves(world, handle, http_client, &mut run);
                    }
                });
                completed
            });
        }
    }
}

#[track_caller]
fn assert_stops<T>(world: &World, handle: &Handle<'_>, run: &mut Task<'_, T>) {
    let mut stop = pin!(handle.stop());
    world.run(&mut Task::new(stop.as_mut()), run);
    runner_is_gone(world);
    run.poll();
    runner_is_gone(world);
}
