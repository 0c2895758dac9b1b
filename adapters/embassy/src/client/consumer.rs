//! A consumer in one cell.

use embassy_futures::select::{Either, select};
use embassy_net::Stack;
use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Config, ConfigError};
use nanonsq_core::drive::consumer::{self, Dialers, Handle, Message, Resources, Runner, Sources};
use nanonsq_core::session::{Closed, LinkState};

use super::{Slot, note};
use crate::{EmbassySleep, NoopRawMutex, TcpDialer, TcpStorage};

/// Takes messages; a clone for each task of the executor.
pub type ConsumerHandle = Handle<'static, NoopRawMutex, EmbassySleep>;

/// A message that the application must answer.
pub type ConsumerMessage = Message<'static, NoopRawMutex, EmbassySleep>;

macro_rules! sizes {
    ($($(#[$doc:meta])* $name:ident)*) => {
        $(
            $(#[$doc])*
            #[derive(Debug)]
            pub struct $name<const N: usize>;
        )*
    };
}

sizes! {
    /// A size of a [`Consumer`]: connections to nsqds.
    Connections
    /// A size of a [`Consumer`]: messages in flight.
    Messages
    /// A size of a [`Consumer`]: bytes of each message in flight, its body and 26 more. A longer
    /// message takes the room of several.
    MessageBytes
    /// A size of a [`Consumer`]: nsqlookupds.
    Lookupds
    /// A size of a [`Consumer`]: nsqds that nsqlookupds list; at least as many as connections.
    Listed
}

/// The memory of a consumer, for a cell. Each size has its name, so that none can be mistaken for
/// another:
///
/// ```no_run
/// use embassy_net::Stack;
/// use nanonsq_core::consumer::{Config, ConfigError};
/// use nanonsq_core::{address, channel, topic};
/// use nanonsq_embassy::{
///     Connections, Consumer, ConsumerHandle, ConsumerRunner, MessageBytes, Messages,
/// };
/// use static_cell::ConstStaticCell;
///
/// type Commands = Consumer<Connections<1>, Messages<4>, MessageBytes<192>>;
/// static COMMANDS: ConstStaticCell<Commands> = ConstStaticCell::new(Commands::new());
///
/// fn start(stack: Stack<'static>) -> Result<(ConsumerHandle, ConsumerRunner<1>), ConfigError> {
///     let config = Config::new(topic!("commands"), channel!("greenhouse-7"));
///     COMMANDS.take().start(stack, [address!("10.0.0.1:4150")], config)
/// }
///
/// // The body of a task:
/// async fn carry(mut runner: ConsumerRunner<1>) -> ! {
///     runner.run().await
/// }
/// // The body of another:
/// async fn obey(commands: ConsumerHandle) {
///     let message = commands.next().await;
///     let _ = message.finish();
/// }
/// # fn main() {}
/// ```
///
/// ```compile_fail,E0599
/// use nanonsq_embassy::{Connections, Consumer, MessageBytes, Messages};
///
/// type Commands = Consumer<Messages<4>, Connections<1>, MessageBytes<192>>;
/// let commands = Commands::new();
/// ```
///
/// With nsqlookupds it is `Consumer<.., Lookupds<1>, Listed<4>>`, and
/// [`start_with_lookupds`](Self::start_with_lookupds).
///
/// RAM: at most 1,000 bytes, for each connection 2,000, for each message its bytes and 40, for each
/// nsqlookupd 1,500, for each listed nsqd 150.
#[derive(Debug)]
pub struct Consumer<C, M, B, L = Lookupds<0>, N = Listed<0>>(<(C, M, B, L, N) as Sizes>::Cells)
where
    (C, M, B, L, N): Sizes;

/// Sizes in the right order.
#[doc(hidden)]
pub trait Sizes {
    type Cells: core::fmt::Debug;
}

impl<const C: usize, const M: usize, const B: usize, const L: usize, const N: usize> Sizes
    for (Connections<C>, Messages<M>, MessageBytes<B>, Lookupds<L>, Listed<N>)
{
    type Cells = Cells<C, M, B, L, N>;
}

#[doc(hidden)]
#[derive(Debug)]
pub struct Cells<const C: usize, const M: usize, const B: usize, const L: usize, const N: usize> {
    config: Slot<Config<'static>>,
    nsqds: Slot<[Address; C]>,
    lookupds: Slot<[Address; L]>,
    resources: Resources<'static, NoopRawMutex, C, M, L, N>,
    tcp: [TcpStorage<1024, 512>; C],
    lookup_tcp: [TcpStorage<512, 256>; L],
    ring: [[u8; B]; M],
}

type Started<const C: usize, const L: usize> =
    Result<(ConsumerHandle, ConsumerRunner<C, L>), ConfigError>;

impl<const C: usize, const M: usize, const B: usize, const L: usize, const N: usize>
    Consumer<Connections<C>, Messages<M>, MessageBytes<B>, Lookupds<L>, Listed<N>>
{
    /// Returns the memory, all zeros.
    pub const fn new() -> Self {
        Self(Cells {
            config: Slot::Empty,
            nsqds: Slot::Empty,
            lookupds: Slot::Empty,
            resources: Resources::new(),
            tcp: [const { TcpStorage::new() }; C],
            lookup_tcp: [const { TcpStorage::new() }; L],
            ring: [[0; B]; M],
        })
    }

    /// Sets up the consumer of the nsqds that the nsqlookupds list; `lookupds` has their HTTP
    /// addresses (port 4161).
    ///
    /// # Panics
    ///
    /// As [`TcpDialer::new`], if the stack has no socket left.
    pub fn start_with_lookupds(
        &'static mut self,
        stack: Stack<'static>,
        lookupds: [Address; L],
        config: Config<'static>,
    ) -> Started<C, L> {
        let Cells { lookupds: slot, .. } = &mut self.0;
        slot.insert(lookupds);
        self.set_up(stack, config)
    }

    fn set_up(&'static mut self, stack: Stack<'static>, config: Config<'static>) -> Started<C, L> {
        let Cells { config: slot, nsqds, lookupds, resources, tcp, lookup_tcp, ring } = &mut self.0;
        let sources = Sources { nsqds: nsqds.as_slice(), lookupds: lookupds.as_slice() };
        let dialers = Dialers {
            nsqds: tcp.each_mut().map(|tcp| TcpDialer::new(stack, tcp)),
            lookupds: lookup_tcp.each_mut().map(|tcp| TcpDialer::new(stack, tcp)),
        };
        let ring = ring.as_flattened_mut();
        let config = slot.insert(config);
        let (handle, runner) =
            consumer::new(resources, config, sources, ring, dialers, EmbassySleep)?;
        Ok((handle.clone(), ConsumerRunner { handle, runner }))
    }
}

impl<const C: usize, const M: usize, const B: usize, const N: usize>
    Consumer<Connections<C>, Messages<M>, MessageBytes<B>, Lookupds<0>, Listed<N>>
{
    /// Sets up the consumer of given nsqds.
    ///
    /// # Panics
    ///
    /// As [`TcpDialer::new`], if the stack has no socket left.
    pub fn start(
        &'static mut self,
        stack: Stack<'static>,
        nsqds: [Address; C],
        config: Config<'static>,
    ) -> Started<C, 0> {
        self.0.nsqds.insert(nsqds);
        self.set_up(stack, config)
    }
}

impl<const C: usize, const M: usize, const B: usize, const L: usize, const N: usize> Default
    for Consumer<Connections<C>, Messages<M>, MessageBytes<B>, Lookupds<L>, Listed<N>>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Slot<[Address; N]> {
    fn as_slice(&self) -> &[Address] {
        match self {
            Self::Empty => &[],
            Self::Full(addresses) => addresses,
        }
    }
}

/// Connects and carries bytes: [`run`](Self::run) in a task.
#[derive(Debug)]
#[must_use = "nothing is received unless `run` is polled"]
pub struct ConsumerRunner<const CONNECTIONS: usize, const LOOKUPDS: usize = 0> {
    handle: ConsumerHandle,
    runner: Runner<'static, NoopRawMutex, TcpDialer<'static>, EmbassySleep, CONNECTIONS, LOOKUPDS>,
}

impl<const CONNECTIONS: usize, const LOOKUPDS: usize> ConsumerRunner<CONNECTIONS, LOOKUPDS> {
    /// Runs all connections for ever; see [`Runner::run`]. With the feature `defmt` or `log` it logs
    /// at level info when a connection is ready, lost or refused, and a failure of the same kind
    /// once. For that it waits as a task does.
    pub async fn run(&mut self) -> ! {
        if cfg!(any(feature = "defmt", feature = "log")) {
            match select(self.runner.run(), log::<CONNECTIONS>(&self.handle)).await {
                Either::First(never) | Either::Second(never) => never,
            }
        }
        self.runner.run().await
    }
}

async fn log<const CONNECTIONS: usize>(handle: &ConsumerHandle) -> ! {
    let mut seen = [(false, None); CONNECTIONS];
    loop {
        handle
            .wait(|consumer| {
                for (index, (was_ready, last)) in seen.iter_mut().enumerate() {
                    let Some(status) = consumer.status(index) else { continue };
                    let is_ready = status.state == LinkState::Ready;
                    if is_ready && !*was_ready {
                        if let Some(nsqd) = status.address {
                            note!("consumer: connected to {}", nsqd);
                        }
                    } else if !is_ready && (*was_ready || status.last != *last) {
                        match status.last {
                            Some(Closed::Local) => note!("consumer: closed"),
                            Some(why) if *was_ready => note!("consumer: lost: {}", why),
                            Some(why) => note!("consumer: no connection: {}", why),
                            None => {}
                        }
                    }
                    (*was_ready, *last) = (is_ready, status.last);
                }
                None
            })
            .await
    }
}
