//! One direction of one connection: a reader that injects faults, a delay line, and a writer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::{Cut, Fault, Faults, Mode, Shared, Valve, lock};
use crate::random::Random;

const CHUNK: usize = 16 * 1024;
/// The capacity of a delay line in chunks: enough for 25 ms at 1 GB/s if they are full.
const DELAY_LINE: usize = 2048;
/// The time for the other direction to forward the last bytes of a receiver that is gone.
const LAST_BYTES: Duration = Duration::from_secs(1);

/// One direction of one connection.
pub(super) struct Line<'a> {
    pub(super) direction: Direction,
    pub(super) plan: Plan,
    pub(super) one_way: Duration,
    pub(super) recording: Option<usize>,
    pub(super) shared: &'a Shared,
}

impl Line<'_> {
    /// Forwards until this direction ends; `Err` ends the whole connection in that way. `_ends`
    /// is dropped at the end: it is the other direction's `other_ended`.
    pub(super) async fn run(
        mut self,
        from: ReadHalf<'_>,
        to: WriteHalf<'_>,
        _ends: oneshot::Sender<()>,
        other_ended: oneshot::Receiver<()>,
    ) -> Result<(), Cut> {
        let (sender, receiver) = mpsc::channel(DELAY_LINE);
        let writer = Writer {
            direction: self.direction,
            recording: self.recording,
            shared: self.shared,
            gate: self.shared.gate.subscribe(),
            other_ended,
        };
        let ((), ()) = tokio::try_join!(self.read(from, sender), writer.write(to, receiver))?;
        Ok(())
    }

    async fn read(
        &mut self,
        mut from: ReadHalf<'_>,
        line: mpsc::Sender<(Instant, Item)>,
    ) -> Result<(), Cut> {
        let mut gate = self.shared.gate.subscribe();
        let mut chunk = vec![0; CHUNK];
        loop {
            pass(&mut gate).await;
            let size = match from.read(&mut chunk).await {
                Ok(size) => size,
                // One side was reset, so the other is reset as well.
                Err(_) => return self.send(&line, Item::Cut(Cut::Reset)).await,
            };
            if size == 0 {
                return self.send(&line, Item::Eof).await;
            }
            let mut rest = &chunk[..size];
            while !rest.is_empty() {
                let due = self.plan.next.filter(|_| self.plan.left <= rest.len() as u64);
                let Some(fault) = due else {
                    self.plan.left -= if self.plan.next.is_some() { rest.len() as u64 } else { 0 };
                    self.send(&line, Item::Bytes(rest.to_vec())).await?;
                    break;
                };
                let (before, after) = rest.split_at(self.plan.left as usize);
                if !before.is_empty() {
                    self.send(&line, Item::Bytes(before.to_vec())).await?;
                }
                rest = after;
                if !self.shared.allows_fault() {
                    self.plan = Plan { faults: None, left: 0, next: None };
                    continue;
                }
                self.plan.draw();
                match fault {
                    Fault::Cut(how) => return self.send(&line, Item::Cut(how)).await,
                    Fault::HalfClose => {
                        self.send(&line, Item::Eof).await?;
                        return sink(from, chunk).await;
                    }
                    Fault::Stall(duration) => sleep(duration).await,
                }
            }
        }
    }

    async fn send(&self, line: &mpsc::Sender<(Instant, Item)>, item: Item) -> Result<(), Cut> {
        // The line is closed only when the connection ends anyway.
        line.send((Instant::now() + self.one_way, item)).await.map_err(|_| Cut::Reset)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    FromClient,
    FromServer,
}

/// The next fault of one direction.
pub(super) struct Plan {
    faults: Option<(Faults, Random)>,
    /// The number of bytes until the fault.
    left: u64,
    next: Option<Fault>,
}

impl Plan {
    pub(super) fn new(faults: Option<&Faults>, connection: usize, direction: Direction) -> Plan {
        let stream = |faults: &Faults| {
            let mut seeds = Random::new(faults.seed);
            Random::new(
                seeds.next() ^ Random::new((connection as u64) * 2 + direction as u64).next(),
            )
        };
        let faults = faults.map(|faults| (faults.clone(), stream(faults)));
        let mut plan = Plan { faults, left: 0, next: None };
        plan.draw();
        plan
    }

    fn draw(&mut self) {
        if let Some((faults, random)) = &mut self.faults {
            self.left = faults.every.start + random.below(faults.every.end - faults.every.start);
            self.next = Some(faults.kinds[random.below(faults.kinds.len() as u64) as usize]);
        }
    }
}

/// An element of the delay line.
enum Item {
    Bytes(Vec<u8>),
    /// This direction ends.
    Eof,
    /// The connection ends.
    Cut(Cut),
}

/// After a half close: reads and discards the rest, as a broken network would.
async fn sink(mut from: ReadHalf<'_>, mut chunk: Vec<u8>) -> Result<(), Cut> {
    while from.read(&mut chunk).await.map_err(|_| Cut::Reset)? > 0 {}
    Ok(())
}

/// The far end of a delay line.
struct Writer<'a> {
    direction: Direction,
    recording: Option<usize>,
    shared: &'a Shared,
    gate: watch::Receiver<Valve>,
    other_ended: oneshot::Receiver<()>,
}

impl Writer<'_> {
    async fn write(
        mut self,
        mut to: WriteHalf<'_>,
        mut line: mpsc::Receiver<(Instant, Item)>,
    ) -> Result<(), Cut> {
        while let Some((due, item)) = line.recv().await {
            if due > Instant::now() {
                sleep_until(due).await;
            }
            pass(&mut self.gate).await;
            let written = match item {
                Item::Bytes(bytes) => {
                    self.record(&bytes);
                    to.write_all(&bytes).await
                }
                Item::Eof => return to.shutdown().await.map_err(|_| Cut::Reset),
                Item::Cut(how) => return Err(how),
            };
            if written.is_err() {
                // The receiver is gone, but bytes that it sent before, such as an error frame, must
                // still arrive.
                let _ = timeout(LAST_BYTES, self.other_ended).await;
                return Err(Cut::Reset);
            }
        }
        Ok(())
    }

    /// Records before writing: the effect of bytes is never visible before their record.
    fn record(&self, bytes: &[u8]) {
        self.shared.counters.forwarded[self.direction as usize]
            .fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if let Some(index) = self.recording {
            let recording = &mut lock(&self.shared.recordings)[index];
            match self.direction {
                Direction::FromClient => recording.from_client.extend_from_slice(bytes),
                Direction::FromServer => recording.from_server.extend_from_slice(bytes),
            }
        }
    }
}

/// Waits until the gate is open.
pub(super) async fn pass(gate: &mut watch::Receiver<Valve>) {
    loop {
        let Valve { mode, stalled_until } = *gate.borrow_and_update();
        let until = stalled_until.filter(|&until| until > Instant::now());
        match (mode, until) {
            (Mode::Forward | Mode::Refuse, None) => return,
            (Mode::Forward | Mode::Refuse, Some(until)) => {
                tokio::select! {
                    () = sleep_until(until) => {}
                    _ = gate.changed() => {}
                }
            }
            (Mode::Blackhole, _) => {
                let _ = gate.changed().await;
            }
        }
    }
}
