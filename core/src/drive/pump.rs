//! Connections over byte streams of `embedded-io-async` whose futures may *not* be dropped (feature
//! `embedded-io-async`), such as TLS.
//!
//! The core keeps no future of a stream across polls: that takes an allocation or `unsafe`. Here
//! the application does it, in a task that connects and then carries bytes between the stream and
//! two pipes. The driver has the other ends of the pipes as its transport. The task drops the
//! stream's futures only when the connection is over.
//!
//! ```
//! use embassy_sync::blocking_mutex::raw::NoopRawMutex;
//! use embedded_io_async::{Read, Write};
//! use nanonsq_core::drive::pump;
//! use nanonsq_core::session::DialError;
//!
//! # async fn connect(_: &str, _: u16) -> Result<(impl Read, impl Write), DialError> {
//! #     Err::<(&[u8], &mut [u8]), _>(DialError::Refused)
//! # }
//! # async fn node() {
//! let mut resources = pump::Resources::<NoopRawMutex, 512, 1024>::new();
//! let (dialer, mut runner) = pump::new(&mut resources);
//! // Give `dialer` to a publisher or a consumer, and run this beside its runner:
//! runner
//!     .run(async |address, carrier| {
//!         // Connects, and does the handshake of TLS.
//!         let (reader, writer) = connect(address.host(), address.port()).await?;
//!         carrier.carry(reader, writer).await;
//!         Ok(())
//!     })
//!     .await;
//! # }
//! ```

use core::cell::RefCell;
use core::fmt;
use core::future::{Future, pending, poll_fn};
use core::pin::pin;
use core::task::{Context, Poll};

use embassy_futures::select::{Either, select};
use embassy_sync::blocking_mutex::Mutex;
use embassy_sync::blocking_mutex::raw::RawMutex;
use embassy_sync::pipe::Pipe;
use embassy_sync::waitqueue::WakerRegistration;
use embedded_io_async::{Read, Write};

use super::stream::transport_error;
use super::{Dialer, Transport};
use crate::address::Address;
use crate::session::{DialError, Transmit, TransportError};

/// The bytes that a pump carries at once in each direction, in two buffers of its future.
const CHUNK: usize = 128;

/// The pipes between a [`PumpDialer`] and its [`Runner`]: `RX` bytes towards the driver, `TX` bytes
/// towards the stream.
pub struct Resources<M: RawMutex, const RX: usize, const TX: usize> {
    rx: Pipe<M, RX>,
    tx: Pipe<M, TX>,
    state: Mutex<M, RefCell<State>>,
}

struct State {
    /// Changes when the driver dials or hangs up, which ends what the runner serves.
    serial: u32,
    phase: Phase,
    /// The error of a failed write. The peer's last bytes are read first.
    broken: Option<TransportError>,
    /// The bytes of this connection that were written and flushed; wraps.
    sent: u32,
    driver: WakerRegistration,
    runner: WakerRegistration,
}

enum Phase {
    Idle,
    Wanted(Address),
    Connecting,
    Up,
    Failed(DialError),
    Over(Result<(), TransportError>),
}

impl<M: RawMutex, const RX: usize, const TX: usize> Resources<M, RX, TX> {
    /// Returns empty pipes.
    pub const fn new() -> Self {
        Self {
            rx: Pipe::new(),
            tx: Pipe::new(),
            state: Mutex::new(RefCell::new(State {
                serial: 0,
                phase: Phase::Idle,
                broken: None,
                sent: 0,
                driver: WakerRegistration::new(),
                runner: WakerRegistration::new(),
            })),
        }
    }

    /// Runs `f` on the state. `None` only from a waker that does so while it is woken.
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> Option<R> {
        self.state.lock(|state| state.try_borrow_mut().ok().map(|mut state| f(&mut state)))
    }

    /// Ends the connection and the dial, if there are any, and begins the next one.
    fn redial(&self, phase: Phase) {
        self.with(|state| {
            state.serial = state.serial.wrapping_add(1);
            state.phase = phase;
            state.broken = None;
            state.sent = 0;
            state.runner.wake();
        });
    }

    /// Runs `f` on the state and wakes the driver.
    fn report(&self, f: impl FnOnce(&mut State)) {
        self.with(|state| {
            f(state);
            state.driver.wake();
        });
    }

    async fn read(&self, mut reader: impl Read) {
        let mut buf = [0; CHUNK];
        let end = loop {
            match reader.read(&mut buf).await {
                Ok(0) => break Ok(()),
                Ok(n) => self.rx.write_all(buf.get(..n).unwrap_or_default()).await,
                Err(error) => break Err(transport_error(&error)),
            }
        };
        self.report(|state| state.phase = Phase::Over(state.broken.map_or(end, Err)));
    }

    async fn write(&self, mut writer: impl Write) -> Result<(), TransportError> {
        let mut buf = [0; CHUNK];
        let mut unflushed = 0_u32;
        loop {
            let n = self.tx.read(&mut buf).await;
            let mut rest = buf.get(..n).unwrap_or_default();
            while !rest.is_empty() {
                match writer.write(rest).await {
                    Ok(0) => return Err(TransportError::Other),
                    Ok(taken) => rest = rest.get(taken..).unwrap_or_default(),
                    Err(error) => return Err(transport_error(&error)),
                }
            }
            unflushed = unflushed.wrapping_add(n as u32);
            if self.tx.is_empty() {
                writer.flush().await.map_err(|error| transport_error(&error))?;
                self.report(|state| state.sent = state.sent.wrapping_add(unflushed));
                unflushed = 0;
            }
        }
    }
}

impl<M: RawMutex, const RX: usize, const TX: usize> Default for Resources<M, RX, TX> {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns a dialer for a publisher or a consumer, and what runs its connections.
pub fn new<M: RawMutex, const RX: usize, const TX: usize>(
    resources: &mut Resources<M, RX, TX>,
) -> (PumpDialer<'_, M, RX, TX>, Runner<'_, M, RX, TX>) {
    (PumpDialer { pipes: resources }, Runner { pipes: resources })
}

/// Lets a [`Runner`] connect, one connection at a time.
pub struct PumpDialer<'a, M: RawMutex, const RX: usize, const TX: usize> {
    pipes: &'a Resources<M, RX, TX>,
}

impl<'a, M: RawMutex, const RX: usize, const TX: usize> Dialer for PumpDialer<'a, M, RX, TX> {
    type Transport<'d>
        = PumpTransport<'d, M, RX, TX>
    where
        Self: 'd;

    async fn dial(&mut self, address: &Address) -> Result<Self::Transport<'_>, DialError> {
        let pipes = self.pipes;
        pipes.redial(Phase::Wanted(address.clone()));
        // Hangs up if the future is dropped.
        let transport = PumpTransport { pipes, written: 0 };
        poll_fn(|cx| {
            let polled = pipes.with(|state| match state.phase {
                Phase::Up | Phase::Over(_) => Poll::Ready(Ok(())),
                Phase::Failed(error) => Poll::Ready(Err(error)),
                Phase::Idle | Phase::Wanted(_) | Phase::Connecting => {
                    state.driver.register(cx.waker());
                    Poll::Pending
                }
            });
            polled.unwrap_or(Poll::Pending)
        })
        .await?;
        Ok(transport)
    }
}

/// The driver's ends of the pipes. Dropping it ends the connection.
pub struct PumpTransport<'d, M: RawMutex, const RX: usize, const TX: usize> {
    pipes: &'d Resources<M, RX, TX>,
    /// The bytes that the pipe took; wraps.
    written: u32,
}

impl<M: RawMutex, const RX: usize, const TX: usize> PumpTransport<'_, M, RX, TX> {
    /// Returns how the stream ended, or arranges that the task wakes when it does.
    fn end(&self, cx: &mut Context<'_>) -> Option<Result<(), TransportError>> {
        let end = self.pipes.with(|state| {
            state.driver.register(cx.waker());
            match state.phase {
                Phase::Over(end) => Some(end),
                _ => None,
            }
        });
        end.flatten()
    }
}

impl<M: RawMutex, const RX: usize, const TX: usize> Transport for PumpTransport<'_, M, RX, TX> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<Result<usize, TransportError>> {
        // Asked first: what the pipe has then is all there is.
        let end = self.end(cx);
        match (pin!(self.pipes.rx.read(buf)).poll(cx), end) {
            (Poll::Ready(n), _) => Poll::Ready(Ok(n)),
            (Poll::Pending, Some(end)) => Poll::Ready(end.map(|()| 0)),
            (Poll::Pending, None) => Poll::Pending,
        }
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: Transmit<'_>,
    ) -> Poll<Result<usize, TransportError>> {
        let broken = self.pipes.with(|state| state.broken).flatten();
        if let Some(error) = broken.or(self.end(cx).and_then(Result::err)) {
            return Poll::Ready(Err(error));
        }
        let mut written = 0_usize;
        for part in [bytes.head, bytes.body] {
            if part.is_empty() {
                continue;
            }
            let Poll::Ready(taken) = pin!(self.pipes.tx.write(part)).poll(cx) else { break };
            written = written.saturating_add(taken);
            if taken < part.len() {
                break;
            }
        }
        self.written = self.written.wrapping_add(written as u32);
        if written == 0 { Poll::Pending } else { Poll::Ready(Ok(written)) }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), TransportError>> {
        let sent = self.pipes.with(|state| (state.sent, state.broken));
        match (self.end(cx), sent) {
            (Some(end), _) => Poll::Ready(end),
            (None, Some((_, Some(error)))) => Poll::Ready(Err(error)),
            (None, Some((sent, None))) if sent == self.written => Poll::Ready(Ok(())),
            (None, _) => Poll::Pending,
        }
    }

    fn abort(&mut self) {
        self.pipes.redial(Phase::Idle);
    }
}

impl<M: RawMutex, const RX: usize, const TX: usize> Drop for PumpTransport<'_, M, RX, TX> {
    fn drop(&mut self) {
        self.pipes.redial(Phase::Idle);
    }
}

/// Connects and carries bytes: [`run`](Self::run) must be polled.
#[must_use = "nothing is connected unless `run` is polled"]
pub struct Runner<'a, M: RawMutex, const RX: usize, const TX: usize> {
    pipes: &'a Resources<M, RX, TX>,
}

impl<M: RawMutex, const RX: usize, const TX: usize> Runner<'_, M, RX, TX> {
    /// Calls `serve` for each connection, for ever. It connects to the address, and then gives the
    /// two halves of the stream to [`Carrier::carry`]; an error is that of the dial. Its future is
    /// dropped when the driver gives up the dial or drops the transport. Dropping the future of
    /// this function ends the connection.
    pub async fn run(
        &mut self,
        mut serve: impl AsyncFnMut(&Address, Carrier<'_, M, RX, TX>) -> Result<(), DialError>,
    ) -> ! {
        let pipes = self.pipes;
        loop {
            let (serial, address) = poll_fn(|cx| {
                let wanted = pipes.with(|state| {
                    state.runner.register(cx.waker());
                    let wanted = match &state.phase {
                        Phase::Wanted(address) => (state.serial, address.clone()),
                        _ => return None,
                    };
                    state.phase = Phase::Connecting;
                    Some(wanted)
                });
                wanted.flatten().map_or(Poll::Pending, Poll::Ready)
            })
            .await;
            // What is left of the last connection. The driver uses the pipes again in `Phase::Up`.
            pipes.rx.clear();
            pipes.tx.clear();
            let mut serving = Serving { pipes, serial, error: DialError::Other };
            let given_up = poll_fn(|cx| {
                let serial_now = pipes.with(|state| {
                    state.runner.register(cx.waker());
                    state.serial
                });
                if serial_now == Some(serial) { Poll::Pending } else { Poll::Ready(()) }
            });
            // Asked first, so that an old connection takes nothing from the pipes.
            if let Either::Second(Err(error)) =
                select(given_up, serve(&address, Carrier { pipes })).await
            {
                serving.error = error;
            }
        }
    }
}

/// What the runner serves. Its drop reports the end to the driver.
struct Serving<'a, M: RawMutex, const RX: usize, const TX: usize> {
    pipes: &'a Resources<M, RX, TX>,
    serial: u32,
    error: DialError,
}

impl<M: RawMutex, const RX: usize, const TX: usize> Drop for Serving<'_, M, RX, TX> {
    fn drop(&mut self) {
        self.pipes.report(|state| {
            if state.serial == self.serial {
                match state.phase {
                    Phase::Connecting => state.phase = Phase::Failed(self.error),
                    Phase::Up => state.phase = Phase::Over(Err(TransportError::Reset)),
                    Phase::Idle | Phase::Wanted(_) | Phase::Failed(_) | Phase::Over(_) => {}
                }
            }
        });
    }
}

/// The stream's ends of the pipes of one connection.
pub struct Carrier<'a, M: RawMutex, const RX: usize, const TX: usize> {
    pipes: &'a Resources<M, RX, TX>,
}

impl<M: RawMutex, const RX: usize, const TX: usize> Carrier<'_, M, RX, TX> {
    /// Reports that the stream is connected and carries bytes until it ends. The writer is flushed
    /// whenever all bytes are written.
    pub async fn carry(self, reader: impl Read, writer: impl Write) {
        self.pipes.report(|state| state.phase = Phase::Up);
        let write = async {
            let Err(error) = self.pipes.write(writer).await else { return };
            self.pipes.report(|state| state.broken = Some(error));
            // The peer's last bytes may have the reason.
            pending().await
        };
        select(self.pipes.read(reader), write).await;
    }
}

macro_rules! opaque {
    ($($type:ty)*) => {
        $(impl<M: RawMutex, const RX: usize, const TX: usize> fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("Pump")
            }
        })*
    };
}

opaque! {
    Resources<M, RX, TX> PumpDialer<'_, M, RX, TX> PumpTransport<'_, M, RX, TX>
    Runner<'_, M, RX, TX> Carrier<'_, M, RX, TX>
}
