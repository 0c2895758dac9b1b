//! The parts that every node's process shares: its sessions and their numbers, its listeners and
//! dialers, which clock belongs to which session, and the states that are read for the coverage.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use nanonsq_core::drive::nsqd::Dialers;
use nanonsq_core::drive::{AcceptSlot, Port as Slots, Ports};
use nanonsq_core::nsqd::{ClientState, Nsqd};
use nanonsq_core::registration::NodeInfo;
use nanonsq_core::session::Session as _;

use crate::tap::Tap;
use crate::watch;
use crate::world::{Clock, Dials, Listens, Port, Role, Socket, World};

/// The sessions in order: clients and their spare listener, HTTP and its spare listener,
/// nsqlookupds, and the session that asks nsqlookupds for channels.
pub(crate) struct Sessions<const CLIENTS: usize, const HTTP: usize, const PEERS: usize> {
    world: World,
    me: usize,
    /// The roles of the next clones of the runners' clocks.
    serving: Rc<RefCell<VecDeque<Role>>>,
    peers: Rc<RefCell<VecDeque<Role>>>,
}

impl<const CLIENTS: usize, const HTTP: usize, const PEERS: usize> Sessions<CLIENTS, HTTP, PEERS> {
    const FIRST_HTTP: usize = CLIENTS + 1;
    pub(crate) const FIRST_PEER: usize = Self::FIRST_HTTP + HTTP + 1;
    pub(crate) const ASKER: usize = Self::FIRST_PEER + PEERS;

    /// Adds the sessions at the ports to the watch and opens the ports.
    pub(crate) fn set_up(world: &World, me: usize, ports: &(Port, Port)) {
        for session in 0..CLIENTS {
            watch::add((me, session), watch::NODE);
        }
        for n in 0..HTTP {
            watch::add((me, Self::FIRST_HTTP + n), watch::HTTP);
        }
        for spare in [CLIENTS, Self::FIRST_HTTP + HTTP] {
            watch::add((me, spare), watch::BUSY);
        }
        ports.0.set_up(world, true);
        ports.1.set_up(world, true);
    }

    /// Returns the sessions and the clock for the node.
    pub(crate) fn new(world: &World, me: usize) -> (Self, Clock) {
        let (serving, peers) = (Rc::default(), Rc::new(RefCell::new([Role::Handle].into())));
        let plan = [Role::Runner(Rc::clone(&peers)), Role::Runner(Rc::clone(&serving))];
        let clock = Clock::of_plan(world, me, Rc::new(RefCell::new(plan.into())));
        (Self { world: world.clone(), me, serving, peers }, clock)
    }

    pub(crate) fn ports(
        &self,
        (tcp, http): &(Port, Port),
        tap: Option<&Rc<RefCell<Tap>>>,
    ) -> Ports<AcceptSlot<Listens, Socket>, CLIENTS, HTTP> {
        let listens = |port: &Port, session: usize, tap: Option<&Rc<RefCell<Tap>>>| {
            AcceptSlot::new(Listens {
                world: self.world.clone(),
                port: port.clone(),
                session: (self.me, session),
                tap: tap.cloned(),
            })
        };
        let (mut clients, mut visitors) = (0.., Self::FIRST_HTTP..);
        let next = |sessions: &mut std::ops::RangeFrom<usize>| sessions.next().unwrap_or(0);
        Ports {
            tcp: Slots::new(|| listens(tcp, next(&mut clients), tap)),
            http: Slots::new(|| listens(http, next(&mut visitors), None)),
        }
    }

    pub(crate) fn dialers(&self) -> Dialers<Dials, PEERS> {
        let dials = |session| Dials(self.world.clone(), (self.me, session));
        Dialers {
            lookupds: std::array::from_fn(|n| dials(Self::FIRST_PEER + n)),
            channels: Some(dials(Self::ASKER)),
        }
    }

    /// Assigns the next clones of the runners' clocks to the sessions.
    pub(crate) fn run(&self) {
        let served = Role::of_ports(Self::FIRST_HTTP, Self::FIRST_PEER);
        self.serving.replace(served.chain([Role::Session(Self::ASKER)]).collect());
        self.peers.replace((Self::FIRST_PEER..Self::ASKER).map(Role::Session).collect());
    }

    /// Reads the states that the core does not trace or that another session's driver changed.
    pub(crate) fn read_states(&self, node: &mut Nsqd<'_>) {
        for n in 0..CLIENTS {
            let state = match node.status(n).map(|status| status.state) {
                None => "Unused",
                Some(ClientState::Init) => "Init",
                Some(ClientState::Subscribed) => "Subscribed",
                Some(ClientState::Closing) => "Closing",
            };
            watch::set_word((self.me, n), state);
        }
        for n in 0..HTTP {
            let link = node.http(n).map(|session| session.link());
            watch::set_http((self.me, Self::FIRST_HTTP + n), link);
        }
    }
}

/// The node's description in IDENTIFY.
pub(crate) fn info(name: &str) -> NodeInfo<'_> {
    NodeInfo {
        broadcast_address: name,
        hostname: name,
        tcp_port: 4150,
        http_port: 4151,
        version: "1.3.0",
        ..NodeInfo::default()
    }
}
