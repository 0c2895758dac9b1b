//! A TCP proxy between a client under test and a real server: a network that fails on purpose.
//!
//! ```text
//! client ──► │ gate ► faults at byte positions ► delay line ► gate ► record │ ──► server
//! client ◄── │ record ◄ gate ◄ delay line ◄ faults at byte positions ◄ gate │ ◄── server
//! ```
//!
//! Everything can be changed while the proxy runs. [`Mode::Blackhole`] and [`Proxy::stall`] shut
//! the gate: nothing moves, but nothing is lost, as in a network partition that ends.
//! [`Proxy::cut_all`] ends connections now; [`Faults`] ends or stalls them after a number of bytes
//! drawn from a seed, perhaps in the middle of a command. The same seed gives the same positions
//! for the n-th connection; the bytes at these positions depend on the client.

mod line;

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use self::line::{Direction, Line, Plan, pass};
use crate::ports::{self, Reserved};

/// The time for which a connection closed with FIN still reads from the other side.
const DRAIN: Duration = Duration::from_millis(100);

/// The proxy's handling of connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Bytes are forwarded.
    Forward,
    /// The port is closed: new connections are refused. Existing ones continue; see
    /// [`Proxy::cut_all`].
    Refuse,
    /// Connections are accepted, but no byte moves in any connection until the mode changes.
    Blackhole,
}

/// A way to end a connection on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// With RST: bytes under way are lost.
    Reset,
    /// With FIN.
    Fin,
}

/// A fault at a byte position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The connection ends after exactly this many bytes of this direction.
    Cut(Cut),
    /// This direction ends with FIN; the other continues.
    HalfClose,
    /// This direction stalls for a while.
    Stall(Duration),
}

/// A seeded schedule of faults, for each connection and direction.
#[derive(Debug, Clone)]
pub struct Faults {
    seed: u64,
    every: Range<u64>,
    kinds: Vec<Fault>,
    at_most: usize,
}

impl Faults {
    /// Makes faults of these kinds, in each direction separately, each after a number of bytes
    /// drawn from `every`; a cut ends the schedule of its connection.
    ///
    /// # Panics
    ///
    /// If `every` or `kinds` is empty.
    pub fn seeded(seed: u64, every: Range<u64>, kinds: impl Into<Vec<Fault>>) -> Self {
        let kinds = kinds.into();
        assert!(
            !every.is_empty() && !kinds.is_empty(),
            "a schedule needs positions and kinds of faults"
        );
        Faults { seed, every, kinds, at_most: usize::MAX }
    }

    /// Limits the total number of faults, so that a test comes to its end.
    pub fn at_most(mut self, count: usize) -> Self {
        self.at_most = count;
        self
    }
}

/// The bytes of one connection that was accepted while recording was on.
#[derive(Debug, Clone, Default)]
pub struct Recording {
    /// Bytes from the client to the server. [`crate::tap`] reads them.
    pub from_client: Vec<u8>,
    /// Bytes from the server to the client.
    pub from_server: Vec<u8>,
}

/// Counters since the proxy was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Connections that were accepted.
    pub accepted: usize,
    /// Connections that are open now.
    pub open: usize,
    /// Faults that a schedule caused.
    pub faults: usize,
    /// Bytes forwarded from clients to servers.
    pub from_client: u64,
    /// Bytes forwarded from servers to clients.
    pub from_server: u64,
}

/// The proxy. Dropping it resets nothing: its connections close as those of an ending process do.
#[derive(Debug)]
pub struct Proxy {
    port: Reserved,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl Proxy {
    /// Listens on a free loopback port and forwards to `target`.
    pub async fn start(target: SocketAddr) -> Proxy {
        let port = ports::reserve();
        let settings = Settings { target, one_way: Duration::ZERO, faults: None, recording: false };
        let shared = Arc::new(Shared {
            settings: Mutex::new(settings),
            recordings: Mutex::default(),
            counters: Counters::default(),
            gate: watch::Sender::new(Valve { mode: Mode::Forward, stalled_until: None }),
            applied: watch::Sender::new(Mode::Refuse),
            cut: watch::Sender::new(Cut::Reset),
        });
        let mut applied = shared.applied.subscribe();
        let accepting = tokio::spawn(accept_loop(port.address(), Arc::clone(&shared)));
        let listening = applied.wait_for(|&mode| mode == Mode::Forward).await;
        listening.expect("the accept loop runs");
        Proxy { port, shared, accepting }
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        self.port.address()
    }

    /// Forwards new connections to another server.
    pub fn set_target(&self, target: SocketAddr) {
        self.shared.settings().target = target;
    }

    /// Delays each byte of new connections by `one_way` in each direction, without limiting
    /// throughput.
    pub fn set_delay(&self, one_way: Duration) {
        self.shared.settings().one_way = one_way;
    }

    /// Sets the faults of new connections; `None` ends the faults of existing ones as well.
    pub fn set_faults(&self, faults: Option<Faults>) {
        self.shared.settings().faults = faults;
    }

    /// Sets whether new connections are recorded.
    pub fn set_recording(&self, on: bool) {
        self.shared.settings().recording = on;
    }

    /// Changes the mode; returns when it is in effect.
    pub async fn set_mode(&self, mode: Mode) {
        let mut applied = self.shared.applied.subscribe();
        self.shared.gate.send_modify(|gate| gate.mode = mode);
        applied.wait_for(|&is| is == mode).await.expect("the accept loop runs");
    }

    /// Ends all connections that are open now.
    pub fn cut_all(&self, how: Cut) {
        self.shared.cut.send_replace(how);
    }

    /// Stops all forwarding for a while.
    pub fn stall(&self, duration: Duration) {
        self.shared.gate.send_modify(|gate| gate.stalled_until = Some(Instant::now() + duration));
    }

    /// Returns the recordings so far, in the order in which the connections were accepted.
    pub fn recordings(&self) -> Vec<Recording> {
        lock(&self.shared.recordings).clone()
    }

    /// Returns the client's bytes recorded so far, per connection.
    pub fn client_bytes(&self) -> Vec<Vec<u8>> {
        lock(&self.shared.recordings)
            .iter()
            .map(|recording| recording.from_client.clone())
            .collect()
    }

    /// Returns the counters.
    pub fn totals(&self) -> Totals {
        let counters = &self.shared.counters;
        Totals {
            accepted: counters.accepted.load(Ordering::Relaxed),
            open: counters.open.load(Ordering::Relaxed),
            faults: counters.faults.load(Ordering::Relaxed),
            from_client: counters.forwarded[0].load(Ordering::Relaxed),
            from_server: counters.forwarded[1].load(Ordering::Relaxed),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[derive(Debug)]
struct Settings {
    target: SocketAddr,
    one_way: Duration,
    faults: Option<Faults>,
    recording: bool,
}

#[derive(Debug, Clone, Copy)]
struct Valve {
    mode: Mode,
    stalled_until: Option<Instant>,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicUsize,
    open: AtomicUsize,
    faults: AtomicUsize,
    forwarded: [AtomicU64; 2],
}

#[derive(Debug)]
struct Shared {
    settings: Mutex<Settings>,
    recordings: Mutex<Vec<Recording>>,
    counters: Counters,
    gate: watch::Sender<Valve>,
    /// The mode that is in effect in the accept loop.
    applied: watch::Sender<Mode>,
    cut: watch::Sender<Cut>,
}

impl Shared {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        lock(&self.settings)
    }

    /// Takes a fault from the budget; returns false if none is left or faults were switched off.
    fn allows_fault(&self) -> bool {
        let settings = self.settings();
        let Some(faults) = &settings.faults else {
            return false;
        };
        // Under the lock, so that the budget is exact.
        let allowed = self.counters.faults.load(Ordering::Relaxed) < faults.at_most;
        if allowed {
            self.counters.faults.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept_loop(address: SocketAddr, shared: Arc<Shared>) {
    let mut gate = shared.gate.subscribe();
    // Ends its connections when the loop is aborted.
    let mut connections = JoinSet::new();
    let mut listener = None;
    loop {
        let mode = gate.borrow_and_update().mode;
        if mode == Mode::Refuse {
            listener = None;
        } else if listener.is_none() {
            let bound = TcpListener::bind(address).await;
            listener =
                Some(bound.unwrap_or_else(|error| {
                    panic!("the proxy cannot listen on {address}: {error}")
                }));
        }
        shared.applied.send_replace(mode);

        tokio::select! {
            changed = gate.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            client = accept(listener.as_ref()) => {
                let number = shared.counters.accepted.fetch_add(1, Ordering::Relaxed);
                // Subscribe first, so that any later cut reaches this connection.
                let cut = shared.cut.subscribe();
                connections.spawn(serve(client, number, Arc::clone(&shared), cut));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            // Probably out of file descriptors: do not spin.
            Err(_) => sleep(Duration::from_millis(10)).await,
        }
    }
}

async fn serve(
    mut client: TcpStream,
    number: usize,
    shared: Arc<Shared>,
    mut cut: watch::Receiver<Cut>,
) {
    struct Open<'a>(&'a AtomicUsize);
    impl Drop for Open<'_> {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
    shared.counters.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(&shared.counters.open);

    let (target, one_way, recording) = {
        let settings = shared.settings();
        (settings.target, settings.one_way, settings.recording)
    };
    let recording = recording.then(|| {
        let mut recordings = lock(&shared.recordings);
        recordings.push(Recording::default());
        recordings.len() - 1
    });
    let plan = |direction| Plan::new(shared.settings().faults.as_ref(), number, direction);
    let plans = [plan(Direction::FromClient), plan(Direction::FromServer)];

    let connect = async {
        pass(&mut shared.gate.subscribe()).await;
        let server = TcpStream::connect(target).await?;
        server.set_nodelay(true)?;
        client.set_nodelay(true)?;
        io::Result::Ok(server)
    };
    let mut server = tokio::select! {
        server = connect => match server {
            Ok(server) => server,
            Err(_) => return reset(&client),
        },
        _ = cut.changed() => return reset(&client),
    };

    let how = {
        let (client_rx, client_tx) = client.split();
        let (server_rx, server_tx) = server.split();
        let [client_plan, server_plan] = plans;
        let (client_ends, client_ended) = oneshot::channel();
        let (server_ends, server_ended) = oneshot::channel();
        let line = |direction, plan| Line { direction, plan, one_way, recording, shared: &shared };
        let both = async {
            tokio::try_join!(
                line(Direction::FromClient, client_plan).run(
                    client_rx,
                    server_tx,
                    client_ends,
                    server_ended
                ),
                line(Direction::FromServer, server_plan).run(
                    server_rx,
                    client_tx,
                    server_ends,
                    client_ended
                ),
            )
        };
        tokio::select! {
            ended = both => match ended {
                Ok(_) => return,
                Err(how) => how,
            },
            _ = cut.changed() => *cut.borrow(),
        }
    };
    match how {
        Cut::Reset => {
            reset(&client);
            reset(&server);
        }
        Cut::Fin => {
            tokio::join!(finish(&mut client), finish(&mut server));
        }
    }
}

/// Makes closing `stream` send an RST.
fn reset(stream: &TcpStream) {
    let _ = stream.set_zero_linger();
}

/// Closes with a FIN: unread bytes would turn it into an RST.
async fn finish(stream: &mut TcpStream) {
    let end = async {
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = timeout(DRAIN, end).await;
}
