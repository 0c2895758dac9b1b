//! Publishes messages over smoltcp: no executor, no `async`, no operating system's sockets.
//!
//! ```text
//! cargo run --package nanonsq-core --example smoltcp --features nsqd,publisher
//! ```
//!
//! The nsqd is nanonsq's own, in the same program: both ends are on a loopback device, so it runs
//! anywhere. On a board the device and the clock are the board's, and [`Nsqd`] is elsewhere.
//! [`Client::step`] and [`carry`] do all that [`Session`] requires of a driver.

use nanonsq_core::nsqd::{self, Nsqd};
use nanonsq_core::publisher::{self, Counters, Publisher};
use nanonsq_core::session::{Closed, DialError, Link, Session};
use nanonsq_core::time::{Instant, Span};
use nanonsq_core::{address, topic};
use smoltcp::iface::{Config, Context, Interface, SocketSet, SocketStorage};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Publishes `count` messages and returns the publisher's counters when all are final.
pub(crate) fn publish(count: usize) -> Result<Counters> {
    let (config, nsqds, mut outbox) =
        (publisher::Config::new(), [address!("127.0.0.1:4150")], [0; 2048]);
    let mut publisher = Publisher::new(&config, &nsqds, &mut outbox)?;
    let (config, mut storage, mut store) =
        (nsqd::Config::new(), nsqd::Storage::<1, 1, 1, 1>::new(), vec![0; 1 << 20]);
    let mut nsqd = Nsqd::new(&config, &mut storage, &mut store)?;

    let mut device = Loopback::new(Medium::Ip);
    let config = Config::new(HardwareAddress::Ip);
    let mut network = Interface::new(config, &mut device, smoltcp::time::Instant::ZERO);
    network.update_ip_addrs(|own| {
        let _ = own.push(IpCidr::new(IpAddress::v4(127, 0, 0, 1), 8));
    });
    // The buffers of both sockets.
    let (mut rx, mut tx, mut rx_nsqd, mut tx_nsqd) = ([0; 512], [0; 1536], [0; 1536], [0; 512]);
    let mut storage = [SocketStorage::EMPTY; 2];
    let mut sockets = SocketSet::new(&mut storage[..]);
    let mut add = |rx, tx| sockets.add(Socket::new(SocketBuffer::new(rx), SocketBuffer::new(tx)));
    let (ours, other) = (add(&mut rx[..], &mut tx[..]), add(&mut rx_nsqd[..], &mut tx_nsqd[..]));

    let (mut client, mut published, mut now) = (Client::default(), 0, Instant::ZERO);
    while now < Instant::from_millis(60_000) {
        // A board reads its clock, and sleeps until `poll_at` of the network or a deadline.
        now = now.after(Span::from_millis(1));
        let time = smoltcp::time::Instant::from_micros(now.as_micros() as i64);
        network.poll(time, &mut device, &mut sockets);

        let text = published.to_string();
        if published < count && publisher.publish(&topic!("readings"), text.as_bytes()).is_ok() {
            published += 1;
        }
        client.step(&mut publisher, sockets.get_mut(ours), network.context(), now);
        serve(&mut nsqd, sockets.get_mut(other), now)?;
        let counters = publisher.counters();
        if published == count && counters.pending == 0 {
            return Ok(counters);
        }
    }
    Err("not all messages are final after a minute".into())
}

/// The connection of a client.
#[derive(Default)]
struct Client {
    dialing: bool,
    /// Differs for each connection.
    dials: u16,
}

impl Client {
    /// Does now what the session wants.
    fn step(
        &mut self,
        session: &mut dyn Session,
        socket: &mut Socket<'_>,
        network: &mut Context,
        now: Instant,
    ) {
        match session.link() {
            Link::Down => {
                let Some(to) = session.dial(now) else { return tick(session, now) };
                // A name would be resolved here.
                let to = to.host().parse::<IpAddress>().ok().map(|ip| (ip, to.port()));
                self.dials = self.dials.wrapping_add(1);
                let from = 49152 + self.dials % 16384;
                self.dialing = true;
                if to.is_none_or(|to| socket.connect(network, to, from).is_err()) {
                    session.closed(now, Closed::Dial(DialError::Other));
                }
            }
            Link::Up if self.dialing && socket.may_send() => {
                self.dialing = false;
                socket.set_nagle_enabled(false);
                session.open(now);
            }
            Link::Up if self.dialing && !socket.is_active() => {
                session.closed(now, Closed::Dial(DialError::Refused));
            }
            Link::Up if self.dialing => {}
            Link::Up => carry(session, socket, now),
            Link::Close => {
                // The next connection needs the socket.
                socket.abort();
                session.closed(now, Closed::Local);
            }
            Link::Upgrade(_) => unreachable!("no TLS is configured"),
        }
        tick(session, now);
    }
}

/// Accepts one client at a time.
fn serve(nsqd: &mut Nsqd<'_>, socket: &mut Socket<'_>, now: Instant) -> Result<()> {
    nsqd.tick(now);
    let Some(mut session) = nsqd.client(0) else { return Err("no client fits".into()) };
    match (session.link(), socket.remote_endpoint()) {
        (Link::Down, Some(from)) if socket.may_send() => {
            session.accepted(now, (from.addr, from.port).into());
        }
        (Link::Down, _) if !socket.is_open() => {
            socket.listen(4150).map_err(|error| error.to_string())?
        }
        (Link::Down, _) => {}
        (Link::Close, _) => {
            socket.close();
            session.closed(now, Closed::Local);
        }
        (Link::Up | Link::Upgrade(_), _) => carry(&mut session, socket, now),
    }
    tick(&mut session, now);
    Ok(())
}

/// Moves the bytes that can be moved now, in both directions.
fn carry(session: &mut dyn Session, socket: &mut Socket<'_>, now: Instant) {
    loop {
        let bytes = session.transmit(now);
        let part = if bytes.head.is_empty() { bytes.body } else { bytes.head };
        match socket.send_slice(part) {
            Ok(0) | Err(_) => break,
            Ok(sent) => session.sent(now, sent),
        }
    }
    while socket.can_recv() {
        let taken = socket.recv(|bytes| {
            let taken = session.take(now, bytes);
            (taken, taken)
        });
        if !taken.is_ok_and(|taken| taken > 0) {
            return;
        }
    }
    if !socket.may_recv() {
        socket.close();
        session.closed(now, Closed::Peer);
    }
}

fn tick(session: &mut dyn Session, now: Instant) {
    if session.deadline() <= now {
        session.tick(now);
    }
}

fn main() -> Result<()> {
    let counters = publish(1000)?;
    println!("{} of {} messages acknowledged", counters.acknowledged, counters.accepted);
    Ok(())
}
