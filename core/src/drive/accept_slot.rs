//! A [`Listener`] for platforms whose connections are values.

use core::net::SocketAddr;
use core::task::{Context, Poll, ready};

use super::{AcceptError, Listener, Transport};
use crate::session::{Transmit, TransportError, Upgrade};

/// A source of callers whose connections are values, like the sockets of an operating system.
/// [`AcceptSlot`] makes it a [`Listener`].
pub trait Accept {
    /// See [`Listener::ONE_QUEUE`].
    const ONE_QUEUE: bool = false;

    /// The connection to one caller.
    type Transport: Transport;

    /// Listens. Ready with the connection to the next caller and the caller's address.
    fn poll_accept(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(Self::Transport, SocketAddr), AcceptError>>;

    /// Stops listening. The default does nothing.
    fn stop(&mut self) {}
}

/// A listener over a source of callers, with one connection at a time.
#[derive(Debug, Clone, Copy)]
pub struct AcceptSlot<A, T> {
    source: A,
    connection: Option<T>,
}

impl<A: Accept> AcceptSlot<A, A::Transport> {
    /// Creates a slot without a connection.
    pub const fn new(source: A) -> Self {
        Self { source, connection: None }
    }

    /// Returns the source of its callers.
    pub const fn source(&self) -> &A {
        &self.source
    }

    /// Returns the connection to the caller, if there is one.
    pub const fn connection(&self) -> Option<&A::Transport> {
        self.connection.as_ref()
    }

    fn connected(&mut self) -> Result<&mut A::Transport, TransportError> {
        self.connection.as_mut().ok_or(TransportError::Other)
    }
}

impl<A: Accept> Listener for AcceptSlot<A, A::Transport> {
    const ONE_QUEUE: bool = A::ONE_QUEUE;

    fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Result<SocketAddr, AcceptError>> {
        let (connection, from) = ready!(self.source.poll_accept(cx))?;
        self.connection = Some(connection);
        Poll::Ready(Ok(from))
    }

    fn release(&mut self) {
        self.source.stop();
        self.connection = None;
    }
}

impl<A: Accept> Transport for AcceptSlot<A, A::Transport> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.connected()?.poll_read(cx, buf)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        self.connected()?.poll_write(cx, bytes)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.connected()?.poll_close(cx)
    }

    fn abort(&mut self) {
        if let Some(connection) = &mut self.connection {
            connection.abort();
        }
    }

    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        if let Some(connection) = &mut self.connection {
            connection.send_gathered(cx);
        }
    }

    fn poll_upgrade(
        &mut self,
        cx: &mut Context<'_>,
        upgrade: Upgrade,
    ) -> Poll<Result<(), TransportError>> {
        self.connected()?.poll_upgrade(cx, upgrade)
    }
}
