//! Transports over the byte streams of `embedded-io-async` whose futures may be dropped.

use core::future::Future;
use core::pin::pin;
use core::task::{Context, Poll, ready};

use embedded_io_async::{Error, ErrorKind, Read, Write};

use super::Transport;
use crate::session::{Transmit, TransportError};

/// A transport over a byte stream (feature `embedded-io-async`): a TCP socket, a modem, a UART.
///
/// Each poll makes a future of the stream, polls it once and drops it. So the futures of `read`,
/// `write` and `flush` must be side-effect-free when they are dropped before they are ready, as
/// embedded-io-async recommends, and register their waker in each poll. For other streams, such as
/// TLS, there is [`pump`](super::pump).
///
/// The stream is flushed after the last write of each poll. The end of the stream is sent when the
/// transport is dropped, because embedded-io-async cannot end one direction.
#[derive(Debug)]
pub struct Stream<T> {
    stream: T,
    unflushed: bool,
}

impl<T> Stream<T> {
    /// Wraps a connected stream.
    pub const fn new(stream: T) -> Self {
        Self { stream, unflushed: false }
    }
}

impl<T: Write> Stream<T> {
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        if self.unflushed {
            ready!(pin!(self.stream.flush()).poll(cx)).map_err(|e| transport_error(&e))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: Read + Write> Transport for Stream<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        let flushed = self.poll_flush(cx);
        // If the flush failed, the bytes still to be read may contain the reason.
        match (pin!(self.stream.read(buf)).poll(cx), flushed) {
            (Poll::Pending, Poll::Ready(Err(error))) => Poll::Ready(Err(error)),
            (read, _) => read.map_err(|error| transport_error(&error)),
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let mut written = 0_usize;
        for part in [bytes.head, bytes.body] {
            if part.is_empty() {
                continue;
            }
            let taken = match pin!(self.stream.write(part)).poll(cx) {
                // The driver offers the rest again.
                Poll::Pending | Poll::Ready(Err(_) | Ok(0)) if written > 0 => break,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(TransportError::Other)),
                Poll::Ready(Ok(taken)) => taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(transport_error(&error))),
            };
            self.unflushed = true;
            written = written.saturating_add(taken);
            if taken < part.len() {
                break;
            }
        }
        Poll::Ready(Ok(written))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        self.poll_flush(cx)
    }

    fn send_gathered(&mut self, cx: &mut Context<'_>) {
        // The next read returns the error.
        let _ = self.poll_flush(cx);
    }
}

pub(super) fn transport_error(error: &impl Error) -> TransportError {
    match error.kind() {
        ErrorKind::BrokenPipe
        | ErrorKind::ConnectionAborted
        | ErrorKind::ConnectionReset
        | ErrorKind::NotConnected => TransportError::Reset,
        ErrorKind::TimedOut => TransportError::TimedOut,
        _ => TransportError::Other,
    }
}
