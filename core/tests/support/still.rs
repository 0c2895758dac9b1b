//! A platform without network and timers.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Accept, AcceptError, Dialer, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;

/// No connection succeeds, and the time only changes when it is set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Still(pub(crate) Rc<Cell<u64>>);

impl Sleep for Still {
    fn now(&self) -> Instant {
        Instant::from_millis(1000 + self.0.get())
    }

    fn poll_until(&mut self, _: &mut Context<'_>, _: Instant) -> Poll<()> {
        Poll::Pending
    }
}

pub(crate) enum Never {}

impl Transport for Never {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        _: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        match *self {}
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        _: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        match *self {}
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        match *self {}
    }
}

impl Dialer for Still {
    type Transport<'d> = Never;

    async fn dial(&mut self, _: &Address) -> Result<Never, DialError> {
        std::future::pending().await
    }
}

impl Accept for Still {
    type Transport = Never;

    fn poll_accept(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Result<(Never, SocketAddr), AcceptError>> {
        Poll::Pending
    }
}
