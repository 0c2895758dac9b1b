//! What the process of every node has, whatever it is for: its sessions and their numbers, what they
//! listen on and dial with, whose clock is whose, and what is seen of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use nanonsq_core::drive::nsqd::Dialers;
use nanonsq_core::drive::{Port as Slots, Ports};
use nanonsq_core::nsqd::{ClientState, Nsqd};
use nanonsq_core::registration::NodeInfo;
use nanonsq_core::session::Session as _;

use crate::tap::Tap;
use crate::watch;
use crate::world::{Clock, Dials, Listens, Port, Role, World};

/// Its sessions in their order: those of its clients and the one that refuses, those over HTTP
/// likewise, those with nsqlookupds, and the one that asks these.
pub(crate) struct Sessions<const CLIENTS: usize, const HTTP: usize, const PEERS: usize> {
    world: World,
    me: usize,
    /// What the clones of the runners' clocks are for.
    serving: Rc<RefCell<VecDeque<Role>>>,
    peers: Rc<RefCell<VecDeque<Role>>>,
}

impl<const CLIENTS: usize, const HTTP: usize, const PEERS: usize> Sessions<CLIENTS, HTTP, PEERS> {
    const FIRST_HTTP: usize = CLIENTS + 1;
    pub(crate) const FIRST_PEER: usize = Self::FIRST_HTTP + HTTP + 1;
    pub(crate) const ASKER: usize = Self::FIRST_PEER + PEERS;

    /// Those at the ports are there, and the ports are open.
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

    /// With the clock that the node is made with.
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
    ) -> Ports<Listens, CLIENTS, HTTP> {
        let listens = |port: &Port, session: usize, tap: Option<&Rc<RefCell<Tap>>>| Listens {
            world: self.world.clone(),
            port: port.clone(),
            session: (self.me, session),
            tap: tap.cloned(),
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

    /// Clones of the runners' clocks from here on are the sessions'.
    pub(crate) fn run(&self) {
        let served = (0..Self::FIRST_PEER).chain([Self::ASKER]);
        self.serving.replace(served.map(Role::Session).collect());
        self.peers.replace((Self::FIRST_PEER..Self::ASKER).map(Role::Session).collect());
    }

    /// States that the core does not trace, or that another session's driver changed.
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

/// What a node says of itself.
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
