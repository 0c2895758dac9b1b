//! An nsqd that publishes to itself.

use core::net::SocketAddr;
use core::pin::pin;
use core::task::{Context, Poll, ready};

use embassy_futures::join::join;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use nanonsq_core::drive::nsqd::{Dialers, Resources, Settings, new};
use nanonsq_core::drive::{Accept, AcceptError, AcceptSlot, Port, Ports};
use nanonsq_core::nsqd::{Config, HttpConfig};

use crate::clients::{NODE, NSQLOOKUPDS, TOPIC};
use crate::platform::{Clock, Link, LinkDialer};
use crate::{done, next_message};

/// Clients of an nsqd.
pub const CLIENTS: usize = 2;
/// The receive buffer of each connection to an nsqd.
pub const NSQD_RX: usize = 128;
/// Bytes for an nsqd's messages.
pub const STORE: usize = 2048;

const NSQD: Config<'static> = Config::new();
const HTTP_CONFIG: HttpConfig<'static> = HttpConfig::new();

/// Accepts the caller on the link of a port.
#[derive(Debug, Clone, Copy)]
struct LinkListener(u16);

impl Accept for LinkListener {
    type Transport = Link;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<(Link, SocketAddr), AcceptError>> {
        let caller = SocketAddr::from(([10, 0, 0, 7], 40_000));
        let link = ready!(Link::poll_open(self.0));
        Poll::Ready(link.map(|link| (link, caller)).ok_or(AcceptError::Other))
    }
}

/// Runs an nsqd with `HTTP` connections over HTTP and `PEERS` nsqlookupds, and publishes to it.
pub async fn serve<const HTTP: usize, const PEERS: usize>() {
    let mut store = [0; STORE];
    let mut resources =
        Resources::<NoopRawMutex, 2, 2, { CLIENTS }, 4, HTTP, PEERS, { NSQD_RX }>::new();
    let settings = Settings {
        node: &NSQD,
        http: &HTTP_CONFIG,
        lookup: &NODE,
        lookupds: NSQLOOKUPDS.get(..PEERS).unwrap_or_default(),
    };
    let ports = Ports {
        tcp: Port { slots: [const { AcceptSlot::new(LinkListener(4150)) }; CLIENTS], spare: None },
        http: Port { slots: [const { AcceptSlot::new(LinkListener(4151)) }; HTTP], spare: None },
    };
    let channels = (PEERS > 0).then_some(LinkDialer);
    let dialers = Dialers { lookupds: [LinkDialer; PEERS], channels };
    let Ok((handle, mut runner)) =
        new(&mut resources, settings, &mut store, ports, dialers, Clock::new())
    else {
        return;
    };
    let work = async {
        loop {
            let message = next_message().await;
            done(handle.publish(&TOPIC, message).await.is_ok());
        }
    };
    join(pin!(work), pin!(runner.run())).await;
}
