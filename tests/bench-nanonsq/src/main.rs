//! Publishes to one nsqd with nanonsq or consumes from it, as the benchmarks of the Go and Rust
//! clients do; see `cargo xtask bench`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Parser, ValueEnum};
use embassy_futures::select::{Either, select};
use nanonsq_std::core::address::Address;
use nanonsq_std::core::consumer;
use nanonsq_std::core::drive;
use nanonsq_std::core::drive::Gathering;
use nanonsq_std::core::drive::publisher::{self, Handle};
use nanonsq_std::core::name::{ChannelName, TopicName};
use nanonsq_std::core::publisher::{Config, Outcome, State};
use nanonsq_std::core::wire::nsqd::{OK, emit_pub_head};
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};

/// As large as the queues of the others: go-nsq's benchmark allows 10,000 outstanding messages.
const OUTBOX: usize = 2 << 20;

/// The most messages in flight, the ring's bytes per message, and the read and write buffers.
const MESSAGES: usize = 1000;
const SLOT: usize = 256;
const RX: usize = 64 * 1024;
const TX: usize = 4096;

#[derive(Debug, Parser)]
struct Options {
    /// nsqd's TCP address.
    #[arg(long)]
    nsqd: Address,
    /// Topic to publish to or consume from.
    #[arg(long)]
    topic: TopicName,
    /// Measurement.
    #[arg(long)]
    mode: Mode,
    /// Number of messages.
    #[arg(long)]
    count: u64,
    /// Bytes of a message.
    #[arg(long)]
    size: usize,
    /// Consume: messages in flight.
    #[arg(long, default_value_t = MESSAGES as u16)]
    max_in_flight: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Mode {
    /// Publishes one message at a time and waits for its acknowledgement.
    Sync,
    /// Publishes as fast as possible and waits for the last acknowledgement.
    Flood,
    /// Receives messages and finishes each before the next.
    Consume,
    /// As sync, with a blocking socket and nothing else: a bound for every client.
    Bare,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let (mode, elapsed) = match options.mode {
        Mode::Sync => ("sync", publish(&options).await?),
        Mode::Flood => ("flood", publish(&options).await?),
        Mode::Consume => ("consume", consume(&options).await?),
        Mode::Bare => ("bare", bare(&options)?),
    };
    let seconds = elapsed.as_secs_f64();
    let line = serde_json::json!({
        "client": "nanonsq",
        "mode": mode,
        "messages": options.count,
        "seconds": seconds,
        "rate": options.count as f64 / seconds,
    });
    println!("{line}");
    Ok(())
}

async fn publish(options: &Options) -> anyhow::Result<Duration> {
    let config = Config::new();
    let nsqds = [options.nsqd.clone()];
    let mut ring = vec![0; OUTBOX];
    let mut resources = publisher::Resources::<NoopRawMutex>::new();
    let (handle, mut runner) = publisher::new(
        &mut resources,
        &config,
        &nsqds,
        &mut ring,
        TcpDialer::new(),
        TokioSleep::new(),
    )?;
    // The runner comes first: the application sees an acknowledgement in the poll that read it.
    match select(runner.run(), run(options, handle)).await {
        Either::First(never) => never,
        Either::Second(elapsed) => elapsed,
    }
}

async fn run(options: &Options, handle: Handle<'_, NoopRawMutex>) -> anyhow::Result<Duration> {
    let connected = handle.wait(|p| (p.state() == State::Ready).then_some(()));
    tokio::time::timeout(Duration::from_secs(5), connected).await.context("no connection")?;
    let body = vec![b'x'; options.size];
    let start = Instant::now();
    for _ in 0..options.count {
        let ticket = handle.publish(&options.topic, &body).await?;
        match options.mode {
            Mode::Flood | Mode::Consume | Mode::Bare => {}
            Mode::Sync => {
                let outcome = handle.outcome(ticket).await;
                ensure!(outcome == Outcome::Acknowledged, "a message was {outcome}");
            }
        }
    }
    handle.idle().await;
    let elapsed = start.elapsed();
    let counters = handle.counters();
    if counters.acknowledged != options.count || counters.connections != 1 {
        bail!("not a clean run: {counters:?}");
    }
    Ok(elapsed)
}

async fn consume(options: &Options) -> anyhow::Result<Duration> {
    let config = consumer::Config {
        max_in_flight: options.max_in_flight,
        ..consumer::Config::new(options.topic, ChannelName::new("bench")?)
    };
    let nsqds = [options.nsqd.clone()];
    let mut ring = vec![0; MESSAGES * SLOT];
    let mut resources = drive::consumer::Resources::<NoopRawMutex, 1, MESSAGES, 0, 0>::new();
    let (handle, mut runner) = drive::consumer::new(
        &mut resources,
        &config,
        drive::consumer::Sources { nsqds: &nsqds, lookupds: &[] },
        &mut ring,
        drive::consumer::Dialers { nsqds: [Gathering::<_, TX>(TcpDialer::new())], lookupds: [] },
        TokioSleep::new(),
    )?;
    let app = async {
        let mut start = None;
        for _ in 0..options.count {
            let message = handle.next().await;
            start.get_or_insert_with(Instant::now);
            let len = message.read(<[u8]>::len);
            ensure!(len == Some(options.size), "a message of {len:?} bytes");
            message.finish()?;
        }
        let elapsed = start.context("no message")?.elapsed();
        handle.stop().await;
        let counters = handle.counters();
        if counters.finished != options.count || counters.connections != 1 {
            bail!("not a clean run: {counters:?}");
        }
        Ok(elapsed)
    };
    match select(runner.run_with::<RX>(), app).await {
        Either::First(never) => never,
        Either::Second(elapsed) => elapsed,
    }
}

fn bare(options: &Options) -> anyhow::Result<Duration> {
    let mut socket = TcpStream::connect((options.nsqd.host(), options.nsqd.port()))?;
    socket.set_nodelay(true)?;
    socket.write_all(b"  V2")?;
    let mut head = [0; 69];
    let mut rest = &mut head[..];
    emit_pub_head(&mut rest, (options.topic.as_str().as_bytes(), b""))
        .map_err(|error| anyhow!("PUB: {error:?}"))?;
    let left = rest.len();
    let len = u32::try_from(options.size)?.to_be_bytes();
    let command = [&head[..head.len() - left], &len[..], &vec![b'x'; options.size]].concat();
    let mut answer = [0; 10];
    let start = Instant::now();
    for _ in 0..options.count {
        socket.write_all(&command)?;
        socket.read_exact(&mut answer)?;
        ensure!(answer.ends_with(OK), "nsqd answered {answer:?}");
    }
    Ok(start.elapsed())
}
