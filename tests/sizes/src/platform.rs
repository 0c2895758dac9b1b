//! The links and the clock as a platform of `nanonsq_core::drive`.

use core::task::{Context, Poll};

use nanonsq_core::address::Address;
use nanonsq_core::drive::{Dialer, Sleep, Transport};
use nanonsq_core::session::{DialError, Transmit, TransportError};
use nanonsq_core::time::Instant;

use crate::bl;

/// Opens the link to an address's port.
#[derive(Debug, Clone, Copy)]
pub struct LinkDialer;

/// An open link.
#[derive(Debug)]
pub struct Link(u32);

/// A negative result of [`bl::bl_read`] and [`bl::bl_write`]: nothing could be moved.
pub(crate) const PENDING: i32 = -1;

impl Link {
    /// Ready with the open link, or with `None` if it does not open.
    pub fn poll_open(port: u16) -> Poll<Option<Self>> {
        match bl::bl_open(port.into()) {
            0 => Poll::Pending,
            1 => Poll::Ready(Some(Self(port.into()))),
            _ => Poll::Ready(None),
        }
    }

    /// Reads available bytes; 0 is the end of the stream.
    pub fn poll_read(&mut self, buf: &mut [u8]) -> Poll<Option<usize>> {
        result(bl::bl_read(self.0, buf.as_mut_ptr(), buf.len()))
    }

    /// Writes some of the bytes.
    pub fn poll_write(&mut self, bytes: &[u8]) -> Poll<Option<usize>> {
        result(bl::bl_write(self.0, bytes.as_ptr(), bytes.len()))
    }
}

fn result(n: i32) -> Poll<Option<usize>> {
    match n {
        PENDING => Poll::Pending,
        n => Poll::Ready(usize::try_from(n).ok()),
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        bl::bl_close(self.0);
    }
}

impl Transport for Link {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        self.poll_read(buf).map(|n| n.ok_or(TransportError::Reset))
    }

    fn poll_write(
        &mut self,
        _: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let mut written = 0usize;
        for piece in [bytes.head, bytes.body] {
            if piece.is_empty() {
                continue;
            }
            match self.poll_write(piece) {
                Poll::Ready(Some(n)) => written = written.wrapping_add(n),
                Poll::Ready(None) => return Poll::Ready(Err(TransportError::Reset)),
                Poll::Pending if written == 0 => return Poll::Pending,
                Poll::Pending => break,
            }
            if written < piece.len() {
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        Poll::Ready(Ok(()))
    }
}

impl Dialer for LinkDialer {
    type Transport<'d> = Link;

    async fn dial(&mut self, address: &Address) -> Result<Link, DialError> {
        core::future::poll_fn(|_| Link::poll_open(address.port())).await.ok_or(DialError::Refused)
    }
}

/// The clock with one of its timers.
#[derive(Debug)]
pub struct Clock(u32);

impl Clock {
    /// Takes a timer of its own.
    #[expect(clippy::new_without_default, reason = "it takes a timer")]
    pub fn new() -> Self {
        Self(bl::bl_timer())
    }
}

impl Clone for Clock {
    fn clone(&self) -> Self {
        Self::new()
    }
}

impl Sleep for Clock {
    fn now(&self) -> Instant {
        Instant::from_micros(bl::bl_now())
    }

    fn poll_until(&mut self, _: &mut Context<'_>, at: Instant) -> Poll<()> {
        match bl::bl_alarm(self.0, at.as_micros()) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }
}
