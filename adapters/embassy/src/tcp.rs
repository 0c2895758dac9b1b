//! TCP over embassy-net: one socket for each dialer and each accept slot, kept for its life.
//!
//! A socket is in the stack's set from `new` to drop, so connections come and go without touching
//! the set, and what a connection leaves behind (a FIN not acknowledged yet, a RST not sent yet)
//! goes on leaving after its transport was dropped, until the next connection needs the socket.

use core::fmt;
use core::future::Future;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::task::{Context, Poll};

#[cfg(feature = "dns")]
use embassy_net::dns::DnsQueryType;
use embassy_net::tcp::{ConnectError, State, TcpSocket};
use embassy_net::{IpAddress, Stack};
use embassy_time::{Duration, Instant, with_deadline, with_timeout};
use heapless::Vec;
use nanonsq_core::address::Address;
use nanonsq_core::drive::{AcceptError, Dialer, Listener, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};

/// How many addresses of one name are tried.
const ADDRESSES_MAX: usize = 4;

/// How long one of several addresses may take before the next is tried, and a query for further
/// ones.
const PER_ADDRESS: Duration = Duration::from_secs(1);

/// How long the RST of the connection before may take to leave the board. It needs one poll of
/// the stack; without a link it never leaves.
const RST_WAIT: Duration = Duration::from_millis(20);

/// How long a caller may take to finish a handshake; without a bound one lost caller keeps an
/// accept slot for ever.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// TCP keepalive, as on desktops: an acknowledgement is asked for after so long without a packet from
/// the other side, and the connection is reset after so long without one. It also bounds how long
/// something sent waits for its acknowledgement.
const KEEPALIVE: Duration = Duration::from_secs(15);
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// The buffers of one connection, for a `static` cell.
///
/// RAM: `RX + TX` bytes. `TX` is what may be on the wire without an ACK, so a connection carries
/// at most `TX` bytes a round trip; `RX` takes nsqd's answers: 512 is plenty for a publisher or a
/// lookup peer.
#[derive(Debug)]
pub struct TcpStorage<const RX: usize, const TX: usize> {
    rx: [u8; RX],
    tx: [u8; TX],
}

impl<const RX: usize, const TX: usize> TcpStorage<RX, TX> {
    /// Empty.
    pub const fn new() -> Self {
        Self { rx: [0; RX], tx: [0; TX] }
    }
}

impl<const RX: usize, const TX: usize> Default for TcpStorage<RX, TX> {
    fn default() -> Self {
        Self::new()
    }
}

/// Connects over TCP, one connection at a time.
///
/// A literal address is dialed as it is. A name is resolved at each dial (feature `dns`), in each
/// family that the stack has an address of, IPv4 first, and up to 4 addresses are tried in turn:
/// all but the last for one second each.
///
/// | what happened | [`DialError`] |
/// |---|---|
/// | answered with RST | `Refused` |
/// | no link, no address of that family, or neither its subnet nor a gateway to it | `Unreachable` |
/// | no such name, no DNS server, no feature `dns` | `NameNotFound` |
/// | no answer to SYN, ARP, neighbour solicitation or DNS query | `TimedOut`, when the session's connect timeout is over |
#[derive(Debug)]
pub struct TcpDialer<'a>(Socket<'a>);

impl<'a> TcpDialer<'a> {
    /// Takes one socket of the stack's and gives it back when dropped.
    ///
    /// # Panics
    ///
    /// In smoltcp, if the stack has no socket left: count them with
    /// [`Sockets::count`](crate::Sockets::count). Dialing never takes another one.
    pub fn new<const RX: usize, const TX: usize>(
        stack: Stack<'a>,
        storage: &'a mut TcpStorage<RX, TX>,
    ) -> Self {
        Self(Socket::new(stack, storage))
    }
}

impl<'a> Dialer for TcpDialer<'a> {
    type Transport<'d>
        = TcpTransport<'d, 'a>
    where
        Self: 'd;

    async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
        let transport = TcpTransport(&mut self.0);
        let found = resolve(transport.0.stack, address.host()).await?;
        let mut failed = DialError::NameNotFound;
        let mut rest = found.iter();
        while let Some(&ip) = rest.next() {
            let connect = transport.0.connect(ip, address.port());
            let connected = with_deadline(patience(rest.len() == 0), connect).await;
            match connected.unwrap_or(Err(DialError::TimedOut)) {
                Ok(()) => return Ok(transport),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }
}

/// Accepts TCP connections on a port, of all families, one at a time.
///
/// While its connection lives, and for the moment until the driver asks again, it does not listen.
/// A [`Port`](nanonsq_core::drive::Port) has as many listeners as there may be connections at a
/// time, and a spare one, on which a caller is told that all are taken. While that one is taken as
/// well, further callers are reset: connection refused.
#[derive(Debug)]
pub struct TcpListener<'a> {
    port: u16,
    socket: Socket<'a>,
}

impl<'a> TcpListener<'a> {
    /// Takes one socket of the stack's and gives it back when dropped. Port 0 is none: accepting
    /// fails.
    ///
    /// # Panics
    ///
    /// As [`TcpDialer::new`].
    pub fn new<const RX: usize, const TX: usize>(
        stack: Stack<'a>,
        port: u16,
        storage: &'a mut TcpStorage<RX, TX>,
    ) -> Self {
        Self { port, socket: Socket::new(stack, storage) }
    }
}

impl<'a> Listener for TcpListener<'a> {
    type Transport<'l>
        = TcpTransport<'l, 'a>
    where
        Self: 'l;

    async fn accept(&mut self) -> Result<(Self::Transport<'_>, SocketAddr), AcceptError> {
        let transport = TcpTransport(&mut self.socket);
        loop {
            transport.0.vacate().await;
            let tcp = &mut transport.0.tcp;
            tcp.set_timeout(Some(HANDSHAKE_MAX));
            tcp.accept(self.port).await.map_err(|_| AcceptError::Other)?;
            tcp.set_timeout(Some(SILENCE_MAX));
            // Not if the caller is gone already.
            if tcp.may_send()
                && let Some(from) = tcp.remote_endpoint()
            {
                return Ok((transport, SocketAddr::new(from.addr.into(), from.port)));
            }
        }
    }
}

/// A connection over a dialer's or listener's socket.
///
/// It has TCP keepalive: after 15 s without a packet from the other side it asks for one, every 15 s,
/// and after 150 s without one it is reset. So a caller that vanishes without a word, and has no
/// heartbeats, gives its slot back within 150 s, also one that has not acknowledged something.
///
/// Dropped, it closes as an operating system would: what was written still leaves, then a FIN, in
/// the background; what is left of that when the socket is needed again is reset.
#[derive(Debug)]
pub struct TcpTransport<'d, 'a>(&'d mut Socket<'a>);

impl Transport for TcpTransport<'_, '_> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        // embassy-net's futures hold no state: dropping one after a poll loses nothing.
        pin!(self.0.tcp.read(buf)).poll(cx).map_err(transport_error)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        // Both go into the transmit buffer before the stack runs: they leave in one segment.
        let mut written = 0usize;
        for part in [bytes.head, bytes.body] {
            if part.is_empty() {
                continue;
            }
            let taken = match pin!(self.0.tcp.write(part)).poll(cx) {
                Poll::Ready(Ok(taken)) => taken,
                // What was taken before counts; the rest comes again.
                Poll::Pending | Poll::Ready(Err(_)) if written > 0 => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(transport_error(error))),
            };
            written = written.saturating_add(taken);
            if taken < part.len() {
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.0.tcp.close();
        // Ready when the other side has acknowledged everything, the FIN too.
        pin!(self.0.tcp.flush()).poll(cx).map_err(transport_error)
    }

    fn abort(&mut self) {
        // The RST leaves when the stack runs next, also if this is dropped by then.
        self.0.tcp.abort();
    }
}

impl Drop for TcpTransport<'_, '_> {
    fn drop(&mut self) {
        self.0.tcp.close();
    }
}

struct Socket<'a> {
    stack: Stack<'a>,
    tcp: TcpSocket<'a>,
}

impl<'a> Socket<'a> {
    fn new<const RX: usize, const TX: usize>(
        stack: Stack<'a>,
        storage: &'a mut TcpStorage<RX, TX>,
    ) -> Self {
        let mut tcp = TcpSocket::new(stack, &mut storage.rx, &mut storage.tx);
        // The core fills segments by itself; what it writes is not to wait for an ACK.
        tcp.set_nagle_enabled(false);
        // For good: it comes into effect with each connection.
        tcp.set_keep_alive(Some(KEEPALIVE));
        Self { stack, tcp }
    }

    async fn connect(&mut self, ip: IpAddress, port: u16) -> Result<(), DialError> {
        if !has_route(self.stack, ip) {
            return Err(DialError::Unreachable);
        }
        self.vacate().await;
        // The session has a limit of its own for this.
        self.tcp.set_timeout(None);
        self.tcp.connect((ip, port)).await.map_err(|error| match error {
            // The stack also resets what it has lost the address for.
            ConnectError::ConnectionReset if has_route(self.stack, ip) => DialError::Refused,
            ConnectError::ConnectionReset | ConnectError::NoRoute => DialError::Unreachable,
            ConnectError::TimedOut => DialError::TimedOut,
            ConnectError::InvalidState => DialError::Other,
        })?;
        self.tcp.set_timeout(Some(SILENCE_MAX));
        Ok(())
    }

    /// Makes it ready for another connection: resets what is left of the last one and lets the
    /// RST leave.
    async fn vacate(&mut self) {
        if !matches!(self.tcp.state(), State::Closed | State::TimeWait) {
            self.tcp.abort();
        }
        let _ = with_timeout(RST_WAIT, self.tcp.flush()).await;
    }
}

impl fmt::Debug for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.tcp.state(), f)
    }
}

/// The addresses of a host.
async fn resolve(stack: Stack<'_>, host: &str) -> Result<Vec<IpAddress, ADDRESSES_MAX>, DialError> {
    let mut found = Vec::new();
    if let Ok(ip) = host.parse() {
        let _ = found.push(literal(ip).ok_or(DialError::Unreachable)?);
        return Ok(found);
    }
    if !stack.is_link_up() || !stack.is_config_up() {
        return Err(DialError::Unreachable);
    }
    #[cfg(feature = "dns")]
    for kind in [
        #[cfg(feature = "proto-ipv4")]
        DnsQueryType::A,
        #[cfg(feature = "proto-ipv6")]
        DnsQueryType::Aaaa,
    ] {
        if !is_of_use(stack, kind) {
            continue;
        }
        let query = with_deadline(patience(found.is_empty()), stack.dns_query(host, kind));
        if let Ok(Ok(ips)) = query.await {
            for &ip in ips.iter().take(ADDRESSES_MAX / 2) {
                let _ = found.push(ip);
            }
        }
    }
    if found.is_empty() { Err(DialError::NameNotFound) } else { Ok(found) }
}

/// Whether the stack has an address of the family, so that asking for one makes sense.
#[cfg(feature = "dns")]
fn is_of_use(stack: Stack<'_>, kind: DnsQueryType) -> bool {
    match kind {
        #[cfg(feature = "proto-ipv4")]
        DnsQueryType::A => stack.config_v4().is_some(),
        #[cfg(feature = "proto-ipv6")]
        DnsQueryType::Aaaa => stack.config_v6().is_some(),
        _ => false,
    }
}

/// Until when to wait: for ever if there is nothing else to try.
fn patience(last: bool) -> Instant {
    if last { Instant::MAX } else { Instant::now().saturating_add(PER_ADDRESS) }
}

/// A literal address, if its family is compiled in.
fn literal(ip: IpAddr) -> Option<IpAddress> {
    match ip {
        #[cfg(feature = "proto-ipv4")]
        IpAddr::V4(ip) => Some(IpAddress::Ipv4(ip)),
        #[cfg(feature = "proto-ipv6")]
        IpAddr::V6(ip) => Some(IpAddress::Ipv6(ip)),
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

/// Whether a packet to `ip` could leave. embassy-net itself would wait for ever instead of saying
/// that it cannot.
fn has_route(stack: Stack<'_>, ip: IpAddress) -> bool {
    let routed = match stack.hardware_address() {
        #[cfg(feature = "medium-ethernet")]
        embassy_net::HardwareAddress::Ethernet(_) => true,
        // Point to point: all packets leave.
        #[allow(unreachable_patterns)]
        _ => false,
    };
    let configured = match ip {
        #[cfg(feature = "proto-ipv4")]
        IpAddress::Ipv4(ip) => stack.config_v4().is_some_and(|config| {
            !routed || config.gateway.is_some() || config.address.contains_addr(&ip)
        }),
        #[cfg(feature = "proto-ipv6")]
        IpAddress::Ipv6(ip) => {
            ip.is_unicast_link_local()
                || stack.config_v6().is_some_and(|config| {
                    !routed || config.gateway.is_some() || config.address.contains_addr(&ip)
                })
        }
        #[allow(unreachable_patterns)]
        _ => true,
    };
    stack.is_link_up() && configured
}

fn transport_error(error: embassy_net::tcp::Error) -> TransportError {
    match error {
        embassy_net::tcp::Error::ConnectionReset => TransportError::Reset,
    }
}
