//! nanonsq on desktops: tokio's sockets, DNS and time for [`nanonsq_core::drive`].
//!
//! Nothing of NSQ is decided here. [`nanonsq_core`] says what it does and how to use it.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Dialer, Listener, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, ToSocketAddrs};

pub use embassy_sync::blocking_mutex::raw::{CriticalSectionRawMutex, NoopRawMutex};
pub use nanonsq_core as core;

/// Connects over TCP, with `TCP_NODELAY`.
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
            match connected.and_then(|stream| stream.set_nodelay(true).map(|()| stream)) {
                Ok(stream) => return Ok(TokioTransport(stream)),
                Err(error) => failed = dial_error(&error),
            }
        }
        Err(failed)
    }
}

/// Takes in TCP connections on a port, with `TCP_NODELAY`.
///
/// Its clones are accept slots of the same port: each takes one connection at a time. While all of
/// them have one, further callers wait in the operating system's queue; so have one clone more, for
/// [`refuse`](nanonsq_core::drive::refuse).
#[derive(Debug, Clone)]
pub struct TcpListener(Arc<tokio::net::TcpListener>);

impl TcpListener {
    /// Listens on the first of the addresses that is to be had; port 0 is any that is free.
    pub async fn bind(addresses: impl ToSocketAddrs) -> io::Result<Self> {
        Ok(Self(Arc::new(tokio::net::TcpListener::bind(addresses).await?)))
    }

    /// Where it listens.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

impl Listener for TcpListener {
    type Transport<'l> = TokioTransport<TcpStream>;

    async fn accept(&mut self) -> Result<(Self::Transport<'_>, SocketAddr), DialError> {
        loop {
            match self.0.accept().await {
                // If it hung up meanwhile, there is nothing to set.
                Ok((stream, from)) => {
                    if stream.set_nodelay(true).is_ok() {
                        return Ok((TokioTransport(stream), from));
                    }
                }
                // It hung up while it waited.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(dial_error(&error)),
            }
        }
    }
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
}

impl TokioSleep {
    /// Starts at 0.
    pub fn new() -> Self {
        Self { start: tokio::time::Instant::now(), timer: None }
    }
}

impl Default for TokioSleep {
    fn default() -> Self {
        Self::new()
    }
}

impl Clone for TokioSleep {
    fn clone(&self) -> Self {
        Self { start: self.start, timer: None }
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

fn transport_error(error: io::Error) -> TransportError {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            TransportError::Reset
        }
        ErrorKind::TimedOut => TransportError::TimedOut,
        _ => TransportError::Other,
    }
}
