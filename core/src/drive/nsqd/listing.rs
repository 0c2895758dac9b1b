//! Registration of an nsqd's topics and channels at nsqlookupds, and the queries for new topics.

use core::future::poll_fn;
use core::task::{Poll, Waker};

use embassy_sync::blocking_mutex::raw::RawMutex;

use crate::drive::connection::SessionAccess;
use crate::drive::server::SharedServer;
use crate::drive::{Sleep, registration};
use crate::nsqd::{Lookupd, Nsqd};
use crate::registration::{HttpPort, Registration};
use crate::session::Session;

/// Access to the session that queries nsqlookupds for the channels of new topics. The HTTP
/// addresses come from the registration.
pub(super) struct Asking<
    'r,
    'a,
    M: RawMutex,
    S,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
> {
    pub(super) shared: &'r SharedServer<M, Nsqd<'a>>,
    pub(super) lookup: &'r registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS>,
}

/// Runs the function on the session of the query, if there is one.
type WithQuery<'a> = fn(&mut Nsqd<'a>, &[Lookupd<'_>], &mut dyn FnMut(&mut dyn Session));

impl<'a, M: RawMutex, S, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>
    Asking<'_, 'a, M, S, PEERS, TOPICS, CHANNELS>
{
    /// A constant, so that an nsqd without nsqlookupds does not link the query.
    const WITH: WithQuery<'a> = if PEERS > 0 {
        |node, lookupds, f| {
            if let Some(mut session) = node.asking(lookupds) {
                f(&mut session);
            }
        }
    } else {
        |_, _, _| ()
    };
}

impl<M: RawMutex, S: Sleep, const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>
    SessionAccess for Asking<'_, '_, M, S, PEERS, TOPICS, CHANNELS>
{
    fn with(&mut self, f: &mut dyn FnMut(&mut dyn Session)) {
        self.shared.drive(|served| {
            let node = &mut served.engine;
            self.lookup.look(|lookup| {
                let mut lookupds = [Lookupd::Absent; PEERS];
                // Look up the addresses only for a query; usually there is none.
                if node.is_asking() {
                    for (at, lookupd) in lookupds.iter_mut().enumerate() {
                        *lookupd = match lookup.http(at) {
                            None | Some((_, HttpPort::Unknown)) => Lookupd::Absent,
                            Some((_, HttpPort::Coming)) => Lookupd::Coming,
                            Some((address, HttpPort::Known(port))) => Lookupd::At(address, port),
                        };
                    }
                }
                Self::WITH(node, &lookupds, f);
            });
            true
        });
    }

    fn register(&mut self, waker: &Waker) {
        self.shared.register_runner(waker);
        self.lookup.register_waker(waker);
    }
}

/// Updates the registration whenever a topic or channel of the nsqd is created or deleted, and
/// whenever other nsqlookupds are set over HTTP.
pub(super) async fn keep_listed<
    'a,
    M,
    S,
    const PEERS: usize,
    const TOPICS: usize,
    const CHANNELS: usize,
>(
    shared: &SharedServer<M, Nsqd<'a>>,
    lookup: &registration::Handle<'a, M, S, PEERS, TOPICS, CHANNELS>,
) -> !
where
    M: RawMutex,
    S: Sleep,
{
    let mut agreed = None;
    let mut lookupds = 0;
    poll_fn(|cx| {
        shared.register_runner(cx.waker());
        lookup.register_waker(cx.waker());
        shared.read(|served| {
            let node = &served.engine;
            if lookupds != node.lookupds_version() && lookup.configure(node.lookupds()).is_ok() {
                lookupds = node.lookupds_version();
            }
            let topology = Some(node.topology());
            if agreed == topology {
                return;
            }
            if let Some(done) = lookup.inspect(|lookup| agree(lookup, node)) {
                // Only for a change: waking this task for entries that do not fit would not end.
                if done.changed {
                    lookup.change(|_| ());
                }
                if done.all {
                    agreed = topology;
                }
            }
        });
        Poll::Pending
    })
    .await
}

/// The result of [`agree`].
struct Agreed {
    /// A topic or channel was added or removed.
    changed: bool,
    /// False if not everything fitted: a removed entry keeps its place until every nsqlookupd has
    /// confirmed the removal.
    all: bool,
}

/// Registers all topics and channels of the nsqd, and unregisters all others.
fn agree<const PEERS: usize, const TOPICS: usize, const CHANNELS: usize>(
    lookup: &mut Registration<'_, PEERS, TOPICS, CHANNELS>,
    node: &Nsqd<'_>,
) -> Agreed {
    let mut done = Agreed { changed: false, all: true };
    loop {
        let mut names = node.names();
        let gone = lookup.registered().find(|it| !has_next(&mut names, || node.names(), it));
        let gone = gone.map(|(topic, channel)| (*topic, channel.copied()));
        drop(names);
        let Some((topic, channel)) = gone else { break };
        done.changed |= lookup.unregister(&topic, channel.as_ref());
    }
    let mut all = node.names();
    loop {
        let mut registered = lookup.registered();
        let missing = all.find(|it| !has_next(&mut registered, || lookup.registered(), it));
        drop(registered);
        let Some((topic, channel)) = missing else { return done };
        match lookup.register(topic, channel) {
            Ok(()) => done.changed = true,
            Err(_) => done.all = false,
        }
    }
}

/// Returns whether one list has an entry of another. Both are in about the same order, so the search
/// goes on where the last one ended, and a walk through a list costs as much as the list is long.
fn has_next<T: PartialEq, I: Iterator<Item = T>>(
    rest: &mut I,
    restart: impl FnOnce() -> I,
    entry: &T,
) -> bool {
    if rest.any(|it| it == *entry) {
        return true;
    }
    *rest = restart();
    rest.any(|it| it == *entry)
}
