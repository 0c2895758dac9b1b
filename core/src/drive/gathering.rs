//! Gathering of written bytes into fewer writes.

use core::net::SocketAddr;
use core::task::{Context, Poll, ready};

use super::{AcceptError, Dialer, Listener, Transport};
use crate::address::Address;
use crate::session::{DialError, Transmit, TransportError, Upgrade};
use crate::wire::copy;

/// A dialer whose transports gather up to `TX` bytes of a session into one write, for platforms
/// where a write is a system call. Without it a consumer sends three answers of 21 bytes in each
/// write, and an nsqd one message. [`Gathered`] does the same for a listener.
#[derive(Debug, Clone, Copy)]
pub struct Gathering<D, const TX: usize>(pub D);

impl<D: Dialer, const TX: usize> Dialer for Gathering<D, TX> {
    type Transport<'d>
        = Gathered<D::Transport<'d>, [u8; TX]>
    where
        Self: 'd;

    async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
        Ok(Gathered::new(self.0.dial(address).await?, [0; TX]))
    }
}

/// A transport, or a listener, that gathers what is written in a buffer.
///
/// Sends the gathered bytes when it is read from, closed or full. The driver reads after it has
/// written everything that the session has, in the same poll.
#[derive(Debug)]
pub struct Gathered<T, B> {
    transport: T,
    buf: B,
    written: usize,
    len: usize,
    /// The error of a failed write, which the next `poll_write` returns.
    broken: Option<TransportError>,
}

impl<T, B> Gathered<T, B> {
    /// Gathers in `buf`, as many bytes as it has: an array, or what the heap has.
    pub const fn new(transport: T, buf: B) -> Self {
        Self { transport, buf, written: 0, len: 0, broken: None }
    }
}

impl<L: Listener, B: AsRef<[u8]> + AsMut<[u8]>> Listener for Gathered<L, B> {
    const ONE_QUEUE: bool = L::ONE_QUEUE;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketAddr, AcceptError>> {
        self.transport.poll_accept(cx)
    }

    fn release(&mut self) {
        self.written = 0;
        self.len = 0;
        self.broken = None;
        self.transport.release();
    }
}

impl<T: Transport, B: AsRef<[u8]> + AsMut<[u8]>> Gathered<T, B> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        while self.written < self.len {
            if let Some(error) = self.broken {
                return Poll::Ready(Err(error));
            }
            let head = self.buf.as_ref().get(self.written..self.len).unwrap_or_default();
            let n = match ready!(self.transport.poll_write(cx, Transmit { head, body: &[] })) {
                Ok(0) => Err(TransportError::Other),
                other => other,
            };
            match n {
                Ok(n) => self.written = self.written.saturating_add(n),
                Err(error) => self.broken = Some(error),
            }
        }
        self.written = 0;
        self.len = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: Transport, B: AsRef<[u8]> + AsMut<[u8]>> Transport for Gathered<T, B> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        // After a failed write the bytes still to be read may contain the reason.
        let _ = self.poll_flush(cx);
        match ready!(self.transport.poll_read(cx, buf)) {
            Ok(0) => Poll::Ready(self.broken.map_or(Ok(0), Err)),
            other => Poll::Ready(other),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let size = self.buf.as_ref().len();
        if size.saturating_sub(self.len) < bytes.len() {
            ready!(self.poll_flush(cx))?;
        }
        if let Some(error) = self.broken {
            return Poll::Ready(Err(error));
        }
        if size < bytes.len() {
            return self.transport.poll_write(cx, bytes);
        }
        for part in [bytes.head, bytes.body] {
            let room = self.buf.as_mut().get_mut(self.len..).unwrap_or_default();
            self.len = self.len.saturating_add(copy(room, part));
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        ready!(self.poll_flush(cx))?;
        self.transport.poll_close(cx)
    }

    fn abort(&mut self) {
        self.transport.abort();
    }

    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        // The next write returns the error.
        let _ = self.poll_flush(cx);
        self.transport.send_gathered(cx);
    }

    fn poll_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        upgrade: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        ready!(self.poll_flush(cx))?;
        self.transport.poll_upgrade(cx, upgrade)
    }
}
