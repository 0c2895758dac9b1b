//! A publisher in one cell.

use embassy_futures::select::{Either, select};
use embassy_net::Stack;
use nanonsq_core::address::Address;
use nanonsq_core::drive::publisher::{self, Handle, Resources, Runner};
use nanonsq_core::publisher::{Config, ConfigError, State};
use nanonsq_core::session::Closed;

use super::{Slot, note};
use crate::{EmbassySleep, NoopRawMutex, TcpDialer, TcpStorage};

/// Publishes; a copy for each task of the executor.
pub type PublisherHandle = Handle<'static, NoopRawMutex>;

/// The memory of a publisher, for a cell: an outbox of `OUTBOX` bytes, the addresses of `NSQDS`
/// nsqds, the configuration and the buffers of its connection.
///
/// ```no_run
/// use embassy_net::Stack;
/// use nanonsq_core::publisher::{Config, ConfigError};
/// use nanonsq_core::{address, topic};
/// use nanonsq_embassy::{Publisher, PublisherHandle, PublisherRunner};
/// use static_cell::ConstStaticCell;
///
/// static PUBLISHER: ConstStaticCell<Publisher<4096>> = ConstStaticCell::new(Publisher::new());
///
/// fn start(stack: Stack<'static>) -> Result<(PublisherHandle, PublisherRunner), ConfigError> {
///     let config = Config { client_id: "greenhouse-7", ..Config::new() };
///     PUBLISHER.take().start(stack, [address!("10.0.0.1:4150")], config)
/// }
///
/// // The body of a task:
/// async fn carry(mut runner: PublisherRunner) -> ! {
///     runner.run().await
/// }
/// // The body of another:
/// async fn measure(nsq: PublisherHandle) {
///     let _ = nsq.publish(&topic!("readings"), b"21.5").await;
/// }
/// # fn main() {}
/// ```
///
/// A device that sleeps publishes, calls [`drain`](Handle::drain), switches its network off, and
/// calls [`resume`](Handle::resume) when it wakes.
///
/// RAM: at most 3,400 bytes, the outbox, and 100 for each nsqd.
#[derive(Debug)]
pub struct Publisher<const OUTBOX: usize, const NSQDS: usize = 1> {
    config: Slot<Config<'static>>,
    nsqds: Slot<[Address; NSQDS]>,
    resources: Slot<Resources<'static, NoopRawMutex>>,
    tcp: TcpStorage<512, 1536>,
    outbox: [u8; OUTBOX],
}

impl<const OUTBOX: usize, const NSQDS: usize> Publisher<OUTBOX, NSQDS> {
    /// Returns the memory, all zeros.
    pub const fn new() -> Self {
        Self {
            config: Slot::Empty,
            nsqds: Slot::Empty,
            resources: Slot::Empty,
            tcp: TcpStorage::new(),
            outbox: [0; OUTBOX],
        }
    }

    /// Sets up the publisher; it dials the first nsqd when its runner runs, and the others when
    /// that fails.
    ///
    /// # Panics
    ///
    /// As [`TcpDialer::new`], if the stack has no socket left.
    pub fn start(
        &'static mut self,
        stack: Stack<'static>,
        nsqds: [Address; NSQDS],
        config: Config<'static>,
    ) -> Result<(PublisherHandle, PublisherRunner), ConfigError> {
        let (handle, runner) = publisher::new(
            self.resources.insert(Resources::new()),
            self.config.insert(config),
            self.nsqds.insert(nsqds),
            &mut self.outbox,
            TcpDialer::new(stack, &mut self.tcp),
            EmbassySleep,
        )?;
        Ok((handle, PublisherRunner { handle, runner }))
    }
}

impl<const OUTBOX: usize, const NSQDS: usize> Default for Publisher<OUTBOX, NSQDS> {
    fn default() -> Self {
        Self::new()
    }
}

/// Connects and carries bytes: [`run`](Self::run) in a task.
#[derive(Debug)]
#[must_use = "nothing is sent unless `run` is polled"]
pub struct PublisherRunner {
    handle: PublisherHandle,
    runner: Runner<'static, NoopRawMutex, TcpDialer<'static>, EmbassySleep>,
}

impl PublisherRunner {
    /// Runs the connection for ever; see [`Runner::run`]. With the feature `defmt` or `log` it logs
    /// at level info when the connection is ready, lost or refused, and a failure of the same kind
    /// once. For that it waits as a task does.
    pub async fn run(&mut self) -> ! {
        if cfg!(any(feature = "defmt", feature = "log")) {
            match select(self.runner.run(), log(self.handle)).await {
                Either::First(never) | Either::Second(never) => never,
            }
        }
        self.runner.run().await
    }
}

async fn log(handle: PublisherHandle) -> ! {
    let (mut was_ready, mut last) = (false, None);
    loop {
        handle
            .wait(|publisher| {
                let state = publisher.state();
                let is_ready = state == State::Ready;
                if is_ready && !was_ready {
                    if let Some(nsqd) = publisher.nsqd() {
                        note!("publisher: connected to {}", nsqd);
                    }
                    last = None;
                } else if !is_ready && (was_ready || publisher.last_closed() != last) {
                    last = publisher.last_closed();
                    match (last, state) {
                        (_, State::LeftOut(why)) => {
                            note!("publisher: refused: {} {}", why, publisher.detail());
                        }
                        (Some(Closed::Local), _) => note!("publisher: closed"),
                        (Some(why), _) if was_ready => note!("publisher: lost: {}", why),
                        (Some(why), _) => note!("publisher: no connection: {}", why),
                        (None, _) => {}
                    }
                }
                was_ready = is_ready;
                None
            })
            .await
    }
}
