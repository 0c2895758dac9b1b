//! TCP over embassy-net: each dialer and each accept slot owns one socket for its whole life.
//!
//! A socket is in the stack's set from `new` to drop, so connections open and close without
//! changing the set. After a transport is dropped, the stack still sends the end of its connection
//! (a FIN that is not acknowledged, a RST) until the next connection needs the socket.

use core::fmt;
use core::future::Future;
use core::net::{IpAddr, SocketAddr};
use core::pin::pin;
use core::task::{Context, Poll};

#[cfg(feature = "dns")]
use embassy_net::dns::DnsQueryType;
use embassy_net::tcp::{ConnectError, State, TcpSocket};
use embassy_net::{IpAddress, Stack};
use embassy_time::{Duration, Instant, Timer, with_deadline, with_timeout};
use heapless::Vec;
use nanonsq_core::address::Address;
use nanonsq_core::drive::{AcceptError, Dialer, Listener, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};

/// Addresses of one name that a dial tries.
const ADDRESSES_MAX: usize = 4;

/// Time for each address but the last, and for each DNS query after the first that found addresses.
const PER_ADDRESS: Duration = Duration::from_secs(1);

/// Time for the RST of the previous connection to leave. The RST needs one poll of the stack;
/// without a link it never leaves.
const RST_WAIT: Duration = Duration::from_millis(20);

/// Time for the TCP handshake of a caller. Without a bound one lost caller occupies its accept slot
/// for ever.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);

/// TCP keepalive: the stack sends a probe after this time without a packet from the other side.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// The stack resets a connection after this time without a packet from the other side, or with sent
/// bytes that are not acknowledged.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// The buffers of one connection, for a `static` cell.
///
/// RAM: `RX + TX` bytes. At most `TX` bytes are on the wire without an ACK, so a connection sends
/// at most `TX` bytes a round trip. `RX` holds received bytes: 512 is plenty for a publisher or a
/// lookup peer.
#[derive(Debug)]
pub struct TcpStorage<const RX: usize, const TX: usize> {
    rx: [u8; RX],
    tx: [u8; TX],
}

impl<const RX: usize, const TX: usize> TcpStorage<RX, TX> {
    /// Creates empty buffers.
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
/// Each dial resolves the name (feature `dns`) in each family of which the stack has an address,
/// IPv4 first, and tries up to 4 addresses in turn, all but the last for one second each. A literal
/// address needs no DNS.
///
/// | cause | [`DialError`] |
/// |---|---|
/// | answered with RST | `Refused` |
/// | no link, no address of that family, or neither its subnet nor a gateway to it | `Unreachable` |
/// | no such name, no DNS server, no feature `dns` | `NameNotFound` |
/// | no answer to SYN, ARP, neighbour solicitation or DNS query | `TimedOut`, when the session's connect timeout is over |
#[derive(Debug)]
pub struct TcpDialer<'a>(Socket<'a>);

impl<'a> TcpDialer<'a> {
    /// Takes one socket of the stack and returns it on drop.
    ///
    /// # Panics
    ///
    /// smoltcp panics if the stack has no socket left: count them with
    /// [`Sockets::count`](crate::Sockets::count). A dial takes no further socket.
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
/// A listener does not listen while its connection is open, nor until the driver calls
/// `poll_accept` again. A [`Port`](nanonsq_core::drive::Port) has one listener for each simultaneous connection
/// and a spare one, which rejects a caller when all slots are occupied. While the spare listener is
/// busy too, the stack resets further callers: connection refused.
#[derive(Debug)]
pub struct TcpListener<'a> {
    port: u16,
    socket: Socket<'a>,
    step: Step,
}

impl<'a> TcpListener<'a> {
    /// Takes one socket of the stack and returns it on drop. With port 0, accepting fails.
    ///
    /// # Panics
    ///
    /// As [`TcpDialer::new`].
    pub fn new<const RX: usize, const TX: usize>(
        stack: Stack<'a>,
        port: u16,
        storage: &'a mut TcpStorage<RX, TX>,
    ) -> Self {
        Self { port, socket: Socket::new(stack, storage), step: Step::Released }
    }
}

impl Listener for TcpListener<'_> {
    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketAddr, AcceptError>> {
        let Self { port, socket, step } = self;
        loop {
            match *step {
                Step::Released => {
                    socket.reset();
                    *step = Step::Vacating(Instant::now().saturating_add(RST_WAIT));
                }
                Step::Vacating(until) => {
                    let flushed = pin!(socket.tcp.flush()).poll(cx).is_ready();
                    if !flushed && pin!(Timer::at(until)).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    socket.tcp.set_timeout(Some(HANDSHAKE_MAX));
                    // The socket listens from this poll on; the future itself has no state.
                    if let Poll::Ready(Err(_)) = pin!(socket.tcp.accept(*port)).poll(cx) {
                        return Poll::Ready(Err(AcceptError::Other));
                    }
                    *step = Step::Listening;
                }
                Step::Listening => {
                    let state = socket.tcp.state();
                    if matches!(state, State::Listen | State::SynReceived) {
                        // The socket becomes writable when the caller is connected, and the waker
                        // is also woken when the handshake fails.
                        let _ = pin!(socket.tcp.wait_write_ready()).poll(cx);
                        return Poll::Pending;
                    }
                    *step = Step::Released;
                    // Skip a caller that is already gone.
                    if socket.tcp.may_send()
                        && let Some(from) = socket.tcp.remote_endpoint()
                    {
                        socket.tcp.set_timeout(Some(SILENCE_MAX));
                        return Poll::Ready(Ok(SocketAddr::new(from.addr.into(), from.port)));
                    }
                }
            }
        }
    }

    fn release(&mut self) {
        self.socket.tcp.close();
        self.step = Step::Released;
    }
}

/// The progress of a listener towards its next caller.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The socket has a connection, or the rest of one.
    Released,
    /// The RST of the last connection leaves, at most until this time.
    Vacating(Instant),
    Listening,
}

/// A connection over the socket of a dialer or listener.
///
/// TCP keepalive probes the other side after each 15 s without a packet and resets the connection
/// after 150 s. So a caller that vanishes frees its slot within 150 s, even without heartbeats and
/// with sent bytes that are not acknowledged.
///
/// On drop the connection closes as in an operating system: the written bytes, then a FIN leave in
/// the background. If the socket is needed before they are acknowledged, the connection is reset.
#[derive(Debug)]
pub struct TcpTransport<'d, 'a>(&'d mut Socket<'a>);

/// Implements [`Transport`] by the socket within.
macro_rules! transport_over_socket {
    ($type:ty, $socket:tt) => {
        impl Transport for $type {
            fn poll_read(
                &mut self,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<Result<usize, TransportError>> {
                self.$socket.poll_read(cx, buf)
            }

            fn poll_write(
                &mut self,
                cx: &mut Context<'_>,
                bytes: Transmit<'_>,
            ) -> Poll<Result<usize, TransportError>> {
                self.$socket.poll_write(cx, bytes)
            }

            fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
                self.$socket.poll_close(cx)
            }

            fn abort(&mut self) {
                // The RST leaves when the stack runs next.
                self.$socket.tcp.abort();
            }
        }
    };
}

transport_over_socket!(TcpTransport<'_, '_>, 0);
transport_over_socket!(TcpListener<'_>, socket);

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
        // The core fills segments itself; its writes must not wait for an ACK.
        tcp.set_nagle_enabled(false);
        // Applies to every connection of the socket.
        tcp.set_keep_alive(Some(KEEPALIVE));
        Self { stack, tcp }
    }

    async fn connect(&mut self, ip: IpAddress, port: u16) -> Result<(), DialError> {
        if !has_route(self.stack, ip) {
            return Err(DialError::Unreachable);
        }
        self.vacate().await;
        // The session's connect timeout is the limit.
        self.tcp.set_timeout(None);
        self.tcp.connect((ip, port)).await.map_err(|error| match error {
            // The stack also resets a connection whose local address it has lost.
            ConnectError::ConnectionReset if has_route(self.stack, ip) => DialError::Refused,
            ConnectError::ConnectionReset | ConnectError::NoRoute => DialError::Unreachable,
            ConnectError::TimedOut => DialError::TimedOut,
            ConnectError::InvalidState => DialError::Other,
        })?;
        self.tcp.set_timeout(Some(SILENCE_MAX));
        Ok(())
    }

    /// Resets the connection unless it is over.
    fn reset(&mut self) {
        if !matches!(self.tcp.state(), State::Closed | State::TimeWait) {
            self.tcp.abort();
        }
    }

    /// Prepares the socket for another connection: resets the previous one unless it is over, and
    /// waits up to [`RST_WAIT`] for the RST to leave.
    async fn vacate(&mut self) {
        self.reset();
        let _ = with_timeout(RST_WAIT, self.tcp.flush()).await;
    }
}

impl Socket<'_> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        // embassy-net's futures hold no state: dropping one after a poll loses nothing.
        pin!(self.tcp.read(buf)).poll(cx).map_err(transport_error)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        // Both parts enter the transmit buffer before the stack runs, so they leave in one segment.
        let mut written = 0usize;
        for part in [bytes.head, bytes.body] {
            if part.is_empty() {
                continue;
            }
            let taken = match pin!(self.tcp.write(part)).poll(cx) {
                Poll::Ready(Ok(taken)) => taken,
                // Report the bytes written so far; the driver offers the rest again.
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
        self.tcp.close();
        // Ready when the other side has acknowledged everything, the FIN too.
        pin!(self.tcp.flush()).poll(cx).map_err(transport_error)
    }
}

impl fmt::Debug for Socket<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.tcp.state(), f)
    }
}

/// Returns the addresses of a host: at least one.
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

/// Returns whether the stack has an address of the family, so that it can use the query's answer.
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

/// Returns the deadline of one attempt: never for the last.
fn patience(last: bool) -> Instant {
    if last { Instant::MAX } else { Instant::now().saturating_add(PER_ADDRESS) }
}

/// Converts a literal address if its family is compiled in.
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

/// Returns whether a packet to `ip` could leave. Without this check embassy-net's `connect` waits
/// for ever.
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
