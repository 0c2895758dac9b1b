//! nanonsq on desktops, on tokio.
//!
//! [`Publisher`], [`Consumer`], [`Nsqd`] and [`Nsqlookupd`] own their memory, and run in tasks of
//! their own. They are made of what programs with other needs use themselves:
//! [`nanonsq_core::drive`], which borrows its memory, and this crate's sockets, DNS and time for it.
//!
//! This crate has no NSQ logic: [`nanonsq_core`] documents behaviour. The roles are features:
//! `full` (default) or some of `publisher`, `consumer`, `registration`, `nsqd` and `nsqlookupd`.
//! `log` (default) turns on the log: connections at level info, each change of state at trace.
//!
//! # Connections
//!
//! Dialed and accepted connections have `TCP_NODELAY` and TCP keepalive with Go's defaults, like
//! those of nsqd and nsqlookupd: a probe after each 15 s without a packet, and the end after 9
//! probes without an answer. So an idle peer that vanishes frees its slot within 150 s, even
//! without heartbeats. If sent bytes are not acknowledged, the operating system does not probe but
//! retransmits until it gives up: about 15 minutes on Linux (`net.ipv4.tcp_retries2`).

#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(any(feature = "publisher", feature = "consumer", feature = "nsqd", feature = "nsqlookupd"))]
#[cfg_attr(not(feature = "full"), allow(dead_code, reason = "an nsqlookupd needs less"))]
mod client;
#[cfg(feature = "consumer")]
mod consumer;
#[cfg(feature = "nsqd")]
mod nsqd;
#[cfg(feature = "nsqlookupd")]
mod nsqlookupd;
#[cfg(feature = "publisher")]
mod publisher;
#[cfg(any(feature = "publisher", feature = "consumer", feature = "nsqd", feature = "nsqlookupd"))]
#[cfg_attr(not(feature = "full"), allow(dead_code, reason = "an nsqlookupd needs less"))]
mod role;
#[cfg(any(feature = "publisher", feature = "consumer", feature = "nsqd", feature = "nsqlookupd"))]
#[cfg_attr(not(feature = "full"), allow(dead_code, reason = "an nsqlookupd needs less"))]
mod setting;

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Accept, AcceptError, AcceptSlot, Dialer, Listener, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, ToSocketAddrs};

pub use embassy_sync::blocking_mutex::raw::{CriticalSectionRawMutex, NoopRawMutex};
pub use nanonsq_core as core;

#[cfg(any(
    feature = "publisher",
    feature = "consumer",
    feature = "nsqd",
    feature = "nsqlookupd"
))]
pub use client::Undelivered;
#[cfg(feature = "consumer")]
pub use consumer::{Consumer, ConsumerBuilder, Message};
#[cfg(feature = "nsqd")]
pub use nsqd::{NotAccepted, Nsqd, NsqdBuilder};
#[cfg(feature = "nsqlookupd")]
pub use nsqlookupd::{Nsqlookupd, NsqlookupdBuilder};
#[cfg(feature = "publisher")]
pub use publisher::{NotAcknowledged, Options, PublishError, Publisher, PublisherBuilder, Receipt};
#[cfg(any(
    feature = "publisher",
    feature = "consumer",
    feature = "nsqd",
    feature = "nsqlookupd"
))]
pub use setting::StartError;

/// TCP keepalive: time without a packet before the first probe, and between probes.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Probes without an answer before the operating system ends the connection.
const KEEPALIVE_PROBES: u32 = 9;

/// Callers that may wait in the operating system's queue.
const BACKLOG: u32 = 1024;

/// Connects over TCP.
///
/// Each dial resolves the name and tries all addresses in turn, all but the last for `per_address`.
/// The last has the rest of the session's connect timeout.
#[derive(Debug, Clone, Copy)]
pub struct TcpDialer {
    /// Time for each address but the last. Default 1 s.
    pub per_address: Duration,
}

impl TcpDialer {
    /// Creates a dialer with 1 s per address.
    pub const fn new() -> Self {
        Self { per_address: Duration::from_secs(1) }
    }
}

impl Default for TcpDialer {
    fn default() -> Self {
        Self::new()
    }
}

impl Dialer for TcpDialer {
    type Transport<'d> = TokioTransport<TcpStream>;

    async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
        let mut addresses = tokio::net::lookup_host((address.host(), address.port()))
            .await
            .map_err(|_| DialError::NameNotFound)?
            .peekable();
        let mut failed = DialError::NameNotFound;
        while let Some(next) = addresses.next() {
            let connect = TcpStream::connect(next);
            let connected = if addresses.peek().is_some() {
                match tokio::time::timeout(self.per_address, connect).await {
                    Ok(connected) => connected,
                    Err(_) => Err(ErrorKind::TimedOut.into()),
                }
            } else {
                connect.await
            };
            match connected.and_then(|stream| set_up(&stream).map(|()| stream)) {
                Ok(stream) => return Ok(TokioTransport(stream)),
                Err(error) => failed = dial_error(&error),
            }
        }
        Err(failed)
    }
}

/// Accepts TCP connections on a port.
///
/// Clones are accept slots of the same port, with one connection each. While all have a connection,
/// further callers wait in the operating system's queue. So a [`Port`](nanonsq_core::drive::Port)
/// has a spare clone, which rejects a caller when all slots are occupied.
#[derive(Debug)]
pub struct TcpListener(AcceptSlot<Queue, TokioTransport<TcpStream>>);

/// The queue of a port's callers.
#[derive(Debug, Clone)]
struct Queue(Arc<tokio::net::TcpListener>);

impl Clone for TcpListener {
    /// Another accept slot of the same port, without a connection.
    fn clone(&self) -> Self {
        Self(AcceptSlot::new(self.0.source().clone()))
    }
}

impl TcpListener {
    /// Listens on the first of the addresses that is available. Port 0 selects any free port.
    ///
    /// `[::]` accepts callers over IPv4 as well, whatever the operating system's default is;
    /// `poll_accept` returns their IPv4 addresses.
    ///
    /// # Errors
    ///
    /// The error of the last address, or `NotFound` if there is none.
    pub async fn bind(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        let mut failed = io::Error::new(ErrorKind::NotFound, "no such host");
        for address in tokio::net::lookup_host(addresses).await? {
            match listen(address) {
                Ok(listener) => return Ok(Self(AcceptSlot::new(Queue(Arc::new(listener))))),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Returns the stream of the connection, if there is one.
    pub fn stream(&self) -> Option<&TcpStream> {
        self.0.connection().map(|transport| &transport.0)
    }

    /// Returns the address and port on which the listener listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.source().0.local_addr()
    }
}

impl Accept for Queue {
    const ONE_QUEUE: bool = true;

    type Transport = TokioTransport<TcpStream>;

    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Self::Transport, SocketAddr), AcceptError>> {
        loop {
            match ready!(self.0.poll_accept(cx)) {
                // `set_up` fails if the caller has already hung up: skip it.
                Ok((stream, from)) => {
                    if set_up(&stream).is_ok() {
                        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                        return Poll::Ready(Ok((TokioTransport(stream), from)));
                    }
                }
                // The caller hung up while it waited in the queue.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Poll::Ready(Err(accept_error(&error))),
            }
        }
    }
}

impl Listener for TcpListener {
    const ONE_QUEUE: bool = true;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketAddr, AcceptError>> {
        self.0.poll_accept(cx)
    }

    fn release(&mut self) {
        self.0.release();
    }
}

impl Transport for TcpListener {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.0.poll_read(cx, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        self.0.poll_write(cx, bytes)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.0.poll_close(cx)
    }
}

/// Listens as tokio's `TcpListener::bind` does, but on `[::]` for IPv4 as well.
fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // Allows a new bind soon after a close. On Windows it would let two sockets share the port.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Sets the options that all connections have.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    #[cfg(not(target_os = "openbsd"))]
    let keepalive = keepalive.with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Makes any tokio stream a transport, TLS streams included.
#[derive(Debug)]
pub struct TokioTransport<T>(pub T);

impl<T: AsyncRead + AsyncWrite + Unpin> Transport for TokioTransport<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        let mut buf = ReadBuf::new(buf);
        let read = ready!(Pin::new(&mut self.0).poll_read(cx, &mut buf));
        Poll::Ready(read.map(|()| buf.filled().len()).map_err(transport_error))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let stream = Pin::new(&mut self.0);
        let written = if bytes.body.is_empty() {
            stream.poll_write(cx, bytes.head)
        } else if bytes.head.is_empty() {
            stream.poll_write(cx, bytes.body)
        } else {
            stream.poll_write_vectored(cx, &[IoSlice::new(bytes.head), IoSlice::new(bytes.body)])
        };
        written.map_err(transport_error)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Pin::new(&mut self.0).poll_shutdown(cx).map_err(transport_error)
    }
}

/// The clock and timers of tokio, paused or not. The clock starts at 0 when it is created; clones
/// share it.
#[derive(Debug)]
pub struct TokioSleep {
    start: tokio::time::Instant,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    wakers: SlotWakers,
}

/// The wakers of a server's slots. Each wakes the server's task and records that it did.
#[derive(Debug, Default)]
struct SlotWakers {
    woken: Arc<Woken>,
    slots: Vec<Option<(Arc<SlotWaker>, Waker)>>,
}

/// The slots whose wakers were woken, each at most once.
#[derive(Debug, Default)]
struct Woken {
    slots: Mutex<Vec<usize>>,
    task: Mutex<Option<Waker>>,
}

#[derive(Debug)]
struct SlotWaker {
    slot: usize,
    is_woken: AtomicBool,
    woken: Arc<Woken>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Wake for SlotWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // If the mark is set, the task was woken already and has not yet taken the mark.
        if !self.is_woken.swap(true, Ordering::AcqRel) {
            lock(&self.woken.slots).push(self.slot);
            let task = lock(&self.woken.task).clone();
            if let Some(task) = task {
                task.wake();
            }
        }
    }
}

impl TokioSleep {
    /// Creates a clock that starts at 0.
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now(), timer: None, wakers: SlotWakers::default() }
    }
}

impl Default for TokioSleep {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for TokioSleep {
    fn clone(&self) -> Self {
        Self { start: self.start, timer: None, wakers: SlotWakers::default() }
    }
}

impl Sleep for TokioSleep {
    fn now(&self) -> Instant {
        let micros = self.start.elapsed().as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        // 30 years, tokio's own "never", if the sum is out of range.
        let far = self.start + Duration::from_secs(86400 * 365 * 30);
        let at = self.start.checked_add(Duration::from_micros(at.as_micros())).unwrap_or(far);
        let timer = match &mut self.timer {
            Some(timer) => {
                if timer.deadline() != at {
                    timer.as_mut().reset(at);
                }
                timer
            }
            None => self.timer.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        pin!(timer).poll(cx)
    }

    fn slot_waker(&mut self, slot: usize, task: &Waker) -> Option<&Waker> {
        let SlotWakers { woken, slots } = &mut self.wakers;
        let mut known = lock(&woken.task);
        if !known.as_ref().is_some_and(|known| known.will_wake(task)) {
            *known = Some(task.clone());
        }
        if slots.len() <= slot {
            slots.resize_with(slot + 1, || None);
        }
        let (_, waker) = slots[slot].get_or_insert_with(|| {
            let is_woken = AtomicBool::new(false);
            let own = Arc::new(SlotWaker { slot, is_woken, woken: woken.clone() });
            (own.clone(), Waker::from(own))
        });
        Some(waker)
    }

    fn take_woken(&mut self) -> Option<usize> {
        let slot = lock(&self.wakers.woken.slots).pop()?;
        if let Some(Some((own, _))) = self.wakers.slots.get(slot) {
            own.is_woken.store(false, Ordering::Release);
        }
        Some(slot)
    }
}

fn dial_error(error: &io::Error) -> DialError {
    // EMFILE, ENFILE and ENOBUFS have no `ErrorKind`; the numbers are those of Linux and macOS.
    if matches!(error.raw_os_error(), Some(23 | 24 | 55 | 105)) {
        return DialError::NoSocket;
    }
    match error.kind() {
        ErrorKind::ConnectionRefused => DialError::Refused,
        ErrorKind::TimedOut => DialError::TimedOut,
        ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable
        | ErrorKind::NetworkDown
        | ErrorKind::AddrNotAvailable => DialError::Unreachable,
        ErrorKind::OutOfMemory | ErrorKind::AddrInUse => DialError::NoSocket,
        _ => DialError::Other,
    }
}

fn accept_error(error: &io::Error) -> AcceptError {
    match dial_error(error) {
        DialError::NoSocket => AcceptError::NoSocket,
        DialError::Unreachable => AcceptError::Unreachable,
        _ => AcceptError::Other,
    }
}

fn transport_error(error: io::Error) -> TransportError {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            TransportError::Reset
        }
        ErrorKind::TimedOut => TransportError::TimedOut,
        _ => TransportError::Other,
    }
}
