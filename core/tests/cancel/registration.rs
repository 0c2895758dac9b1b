//! The futures of a registration.

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;

use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::address::Address;
use nanonsq_core::drive::registration;
use nanonsq_core::name::ChannelName;
use nanonsq_core::registration as core_lookup;
use nanonsq_core::wire::nsqlookupd::NodeInfo;

use crate::servers::Server;
use crate::world::{Task, World, at_every_await, poll_times, runner_is_gone, topic};

const LOOKUPDS: [u16; 2] = [4160, 4260];

type Node<'a> = registration::Handle<'a, NoopRawMutex, World, 2, 4, 4>;
type NodeRunner<'a> = registration::Runner<'a, NoopRawMutex, World, World, 2, 4, 4>;

/// Runs `test` with a registration at two nsqlookupds.
fn with_node(world: &World, test: impl FnOnce(&Node<'_>, NodeRunner<'_>, &Listed)) {
    let listed = Listed(LOOKUPDS.map(|port| world.serve(port, Server::lookupd())));
    let config = core_lookup::Config::new(NodeInfo {
        broadcast_address: "node",
        hostname: "node",
        http_port: 4151,
        tcp_port: 4150,
        topology_region: "",
        topology_zone: "",
        version: "1",
    });
    let mut resources = registration::Resources::new();
    let dialers = [world.clone(), world.clone()];
    let (node, runner) =
        registration::new(&mut resources, &config, dialers, world.clone()).unwrap();
    node.configure(&LOOKUPDS.map(|port| Address::new("lookupd", port).unwrap())).unwrap();
    node.register(&topic("t"), Some(&ChannelName::new("c").unwrap())).unwrap();
    node.register(&topic("u"), None).unwrap();
    test(&node, runner, &listed);
}

struct Listed([Rc<RefCell<Server>>; 2]);

impl Listed {
    #[track_caller]
    fn assert(&self, names: &[&str]) {
        for server in &self.0 {
            let Server::Lookupd(lookupd) = &*server.borrow() else { unreachable!() };
            assert!(lookupd.listed.iter().eq(names), "{:?}", lookupd.listed);
        }
    }
}

/// Checks that both nsqlookupds come to list what is registered, also after a change.
fn assert_lists<T>(world: &World, node: &Node<'_>, listed: &Listed, run: &mut Task<'_, T>) {
    // The first poll notifies the peers that the previous runner is gone.
    run.poll();
    for names in [&["t", "t c", "u"][..], &["u", "v"]] {
        let mut settled = pin!(node.settled());
        world.run(&mut Task::new(settled.as_mut()), run);
        listed.assert(names);
        node.unregister(&topic("t"), None);
        node.register(&topic("v"), None).unwrap();
    }
}

#[test]
fn lookups_run() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |node, mut runner, listed| {
            {
                let mut run = pin!(runner.run());
                let mut run = Task::new(run.as_mut());
                let settled = pin!(node.settled());
                completed = poll_times(world, k, settled, &mut run).is_some();
            }
            runner_is_gone(world);
            listed.assert(&[]);
            let mut run = pin!(runner.run());
            assert_lists(world, node, listed, &mut Task::new(run.as_mut()));
        });
        completed
    });
}

#[test]
fn settled() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |node, mut runner, listed| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            completed = poll_times(world, k, pin!(node.settled()), &mut run).is_some();
            assert_lists(world, node, listed, &mut run);
        });
        completed
    });
}

#[test]
fn lookups_wait() {
    at_every_await(|world, k| {
        let mut completed = false;
        with_node(world, |node, mut runner, listed| {
            let mut run = pin!(runner.run());
            let mut run = Task::new(run.as_mut());
            let second =
                node.wait(|lookup| lookup.status(1).filter(|status| status.settled).map(drop));
            completed = poll_times(world, k, pin!(second), &mut run).is_some();
            assert_lists(world, node, listed, &mut run);
        });
        completed
    });
}

/// A dropped `stop` that was polled still unregisters everything, even if the runner is dropped as
/// well and run again. After `configure` the node is registered again.
#[test]
fn lookups_stop() {
    for before in [0, 1, 7, 30, 100] {
        for runs_again in [false, true] {
            at_every_await(|world, k| {
                let mut completed = false;
                with_node(world, |node, mut runner, listed| {
                    {
                        let mut run = pin!(runner.run());
                        let mut run = Task::new(run.as_mut());
                        let never = pin!(std::future::pending::<()>());
                        let _ = poll_times(world, before, never, &mut run);
                        completed = poll_times(world, k, pin!(node.stop()), &mut run).is_some();
                        if k > 0 && !runs_again {
                            assert_leaves(world, node, listed, &mut run);
                        }
                    }
                    runner_is_gone(world);
                    let mut run = pin!(runner.run());
                    let mut run = Task::new(run.as_mut());
                    if k > 0 {
                        assert_leaves(world, node, listed, &mut run);
                        node.configure(
                            &LOOKUPDS.map(|port| Address::new("lookupd", port).unwrap()),
                        )
                        .unwrap();
                        node.register(&topic("t"), Some(&ChannelName::new("c").unwrap())).unwrap();
                        node.register(&topic("u"), None).unwrap();
                    }
                    assert_lists(world, node, listed, &mut run);
                });
                completed
            });
        }
    }
}

fn assert_leaves<T>(world: &World, node: &Node<'_>, listed: &Listed, run: &mut Task<'_, T>) {
    run.poll();
    let mut stopped = pin!(node.wait(|lookup| lookup.is_stopped().then_some(())));
    world.run(&mut Task::new(stopped.as_mut()), run);
    listed.assert(&[]);
    runner_is_gone(world);
}
