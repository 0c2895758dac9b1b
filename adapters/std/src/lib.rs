//! nanonsq on desktops: tokio's sockets, DNS and time for [`nanonsq_core::drive`].
//!
//! Nothing of NSQ is decided here. [`nanonsq_core`] says what it does and how to use it. Its roles
//! are features: `full` (default) or some of `publisher`, `consumer`, `registration`, `nsqd` and
//! `nsqlookupd`. `log` (default) traces.
//!
//! # Connections
//!
//! Dialed and accepted ones have `TCP_NODELAY`, and TCP keepalive with Go's defaults, as nsqd's and
//! nsqlookupd's have: after 15 s of silence a probe every 15 s, and the end after 9 that are not
//! answered. So whoever vanishes without a word, and has no heartbeats, gives its slot back within
//! 150 s. What it had not acknowledged by then is not probed but sent again, until the operating
//! system gives up: about 15 minutes on Linux (`net.ipv4.tcp_retries2`).

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use nanonsq_core::address::Address;
use nanonsq_core::drive::{AcceptError, Dialer, Listener, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, ToSocketAddrs};

pub use embassy_sync::blocking_mutex::raw::{CriticalSectionRawMutex, NoopRawMutex};
pub use nanonsq_core as core;

/// TCP keepalive: how long a connection is silent before it is probed, and how long a probe waits.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Probes without an answer that end a connection.
const KEEPALIVE_PROBES: u32 = 9;

/// Callers that the operating system keeps waiting.
const BACKLOG: u32 = 1024;

/// Connects over TCP.
///
/// Resolves a name at each dial and tries all its addresses in turn; each but the last gets
/// `per_address`, the last what is left of the session's connect timeout.
#[derive(Debug, Clone, Copy)]
pub struct TcpDialer {
    /// How long one of several addresses may take before the next is tried. Default 1 s.
    pub per_address: Duration,
}

impl TcpDialer {
    /// The default.
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
/// Its clones are accept slots of the same port: each has one connection at a time. While all of
/// them have one, further callers wait in the operating system's queue; so a
/// [`Port`](nanonsq_core::drive::Port) has one clone more, on which a caller is told that all are
/// taken.
#[derive(Debug, Clone)]
pub struct TcpListener(Arc<tokio::net::TcpListener>);

impl TcpListener {
    /// Listens on the first of the addresses that is to be had; port 0 is any that is free.
    ///
    /// `[::]` takes callers over IPv4 as well, whatever the operating system's default is; they are
    /// told by their IPv4 addresses.
    pub async fn bind(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        let mut failed = io::Error::new(ErrorKind::NotFound, "no such host");
        for address in tokio::net::lookup_host(addresses).await? {
            match listen(address) {
                Ok(listener) => return Ok(Self(Arc::new(listener))),
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Listener for TcpListener {
    const ONE_QUEUE: bool = true;

    type Transport<'l> = TokioTransport<TcpStream>;

    async fn accept(&mut self) -> Result<(Self::Transport<'_>, SocketAddr), AcceptError> {
        loop {
            match self.0.accept().await {
                // If it hung up meanwhile, there is nothing to set.
                Ok((stream, from)) => {
                    if set_up(&stream).is_ok() {
                        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
                        return Ok((TokioTransport(stream), from));
                    }
                }
                // It hung up while it waited.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(accept_error(&error)),
            }
        }
    }
}

/// As tokio's own, but for [`TcpListener::bind`]'s promise.
fn listen(address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
        SockRef::from(&socket).set_only_v6(false)?;
    }
    // Where it means that a port can be taken again soon, and not that two can have it.
    #[cfg(not(windows))]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What all connections have.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
    #[cfg(not(target_os = "openbsd"))]
    let keepalive = keepalive.with_interval(KEEPALIVE).with_retries(KEEPALIVE_PROBES);
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// Any stream of tokio's, a TLS stream among them, as a transport.
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

/// Time as tokio tells it, also when a test has paused it. Starts at 0 where it is made; its
/// clones tell the same time.
#[derive(Debug)]
pub struct TokioSleep {
    start: tokio::time::Instant,
    timer: Option<Pin<Box<tokio::time::Sleep>>>,
    own: Option<OwnWaker>,
}

/// A waker that wakes a task and leaves a mark.
#[derive(Debug)]
struct OwnWaker {
    mark: Arc<Mark>,
    waker: Waker,
}

#[derive(Debug)]
struct Mark {
    woken: AtomicBool,
    task: Mutex<Waker>,
}

impl Mark {
    fn task(&self) -> MutexGuard<'_, Waker> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Mark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // With the mark set already, the task was woken and has not yet looked.
        if !self.woken.swap(true, Ordering::AcqRel) {
            let task = self.task().clone();
            task.wake();
        }
    }
}

impl TokioSleep {
    /// Starts at 0.
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now(), timer: None, own: None }
    }
}

impl Default for TokioSleep {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for TokioSleep {
    fn clone(&self) -> Self {
        Self { start: self.start, timer: None, own: None }
    }
}

impl Sleep for TokioSleep {
    fn now(&self) -> Instant {
        let micros = self.start.elapsed().as_micros();
        Instant::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn poll_until(&mut self, cx: &mut Context<'_>, at: Instant) -> Poll<()> {
        // tokio's own "never", should the sum be out of its range.
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

    fn own_waker(&mut self, task: &Waker) -> Option<&Waker> {
        let own = self.own.get_or_insert_with(|| {
            let mark = Mark { woken: AtomicBool::new(false), task: Mutex::new(task.clone()) };
            let mark = Arc::new(mark);
            OwnWaker { waker: Waker::from(mark.clone()), mark }
        });
        own.mark.task().clone_from(task);
        Some(&own.waker)
    }

    fn take_woken(&mut self) -> bool {
        self.own.as_ref().is_some_and(|own| own.mark.woken.swap(false, Ordering::AcqRel))
    }
}

fn dial_error(error: &io::Error) -> DialError {
    // EMFILE, ENFILE and ENOBUFS have no kind of their own; the numbers are Linux's and macOS's.
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
