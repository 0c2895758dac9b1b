//! Measures how fast tokio-nsq publishes to one nsqd or consumes from it, and prints the result as
//! a line of JSON.
//!
//! sync publishes one message and waits for its acknowledgement before the next; flood makes one
//! publish call per message and reads acknowledgements as they come. The clock runs from the first
//! call to the last acknowledgement, without the connection. consume receives messages and finishes
//! them; the clock runs from the first to the last.
//!
//! tokio-nsq writes into a buffer that it flushes when it is full (8 KiB) and every
//! `--flush-interval-ms`, 250 ms by default, but not when it has nothing more to write. That
//! interval bounds synchronous publishing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use futures_util::FutureExt;
use tokio_nsq::{
    NSQChannel, NSQConfigShared, NSQConsumerConfig, NSQConsumerConfigSources, NSQEvent,
    NSQProducer, NSQProducerConfig, NSQTopic,
};

/// tokio-nsq queues 10000 commands and 10000 events; with fewer unacknowledged messages neither is
/// ever full.
const OUTSTANDING: usize = 9_000;
/// tokio-nsq never reports a lost connection (its event is created but not sent), so silence must
/// be an error.
const SILENCE: Duration = Duration::from_secs(10);

#[derive(Parser)]
#[command(name = "bench-tokio-nsq", version)]
struct Options {
    /// TCP address of nsqd
    #[arg(long, default_value = "127.0.0.1:4150")]
    nsqd: String,
    /// Topic to publish to
    #[arg(long, default_value = "bench#ephemeral")]
    topic: String,
    #[arg(long, default_value = "sync")]
    mode: Mode,
    /// Number of messages
    #[arg(long, default_value_t = 10_000)]
    count: usize,
    /// Bytes per message
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// tokio-nsq's flush interval
    #[arg(long, default_value_t = 250)]
    flush_interval_ms: u64,
    /// Consuming: messages in flight
    #[arg(long, default_value_t = 1000)]
    max_in_flight: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Sync,
    Flood,
    Consume,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    ensure!(
        options.count > 0 && options.size > 0 && options.flush_interval_ms > 0,
        "numbers must be positive"
    );
    let topic = NSQTopic::new(&options.topic).context("bad topic name")?;
    let shared =
        NSQConfigShared::new().set_flush_interval(Duration::from_millis(options.flush_interval_ms));
    let (mode, seconds) = match options.mode {
        Mode::Sync => ("sync", publish(&options, &topic, shared).await?),
        Mode::Flood => ("flood", publish(&options, &topic, shared).await?),
        Mode::Consume => ("consume", consume(&options, topic, shared).await?),
    };

    let (messages, rate) = (options.count, options.count as f64 / seconds);
    let timing = format!(r#""seconds":{seconds:.6},"rate":{rate:.1}"#);
    println!(r#"{{"client":"tokio-nsq","mode":"{mode}","messages":{messages},{timing}}}"#);
    Ok(())
}

async fn publish(options: &Options, topic: &Arc<NSQTopic>, shared: NSQConfigShared) -> Result<f64> {
    let mut producer = NSQProducerConfig::new(&options.nsqd).set_shared(shared).build();
    match tokio::time::timeout(SILENCE, producer.consume()).await {
        Ok(Some(NSQEvent::Healthy())) => {}
        other => bail!("no connection to {}: {other:?}", options.nsqd),
    }
    let body = vec![0; options.size];
    let start = Instant::now();
    match options.mode {
        Mode::Flood => flood(&mut producer, topic, &body, options.count).await?,
        Mode::Sync | Mode::Consume => sync(&mut producer, topic, &body, options.count).await?,
    }
    Ok(start.elapsed().as_secs_f64())
}

async fn consume(options: &Options, topic: Arc<NSQTopic>, shared: NSQConfigShared) -> Result<f64> {
    let channel = NSQChannel::new("bench").context("bad channel name")?;
    let mut consumer = NSQConsumerConfig::new(topic, channel)
        .set_max_in_flight(options.max_in_flight)
        .set_sources(NSQConsumerConfigSources::Daemons(vec![options.nsqd.clone()]))
        .set_shared(shared)
        .build();
    let mut start = None;
    for _ in 0..options.count {
        let message = tokio::time::timeout(SILENCE, consumer.consume_filtered()).await;
        let message = message.ok().flatten().context("no message")?;
        start.get_or_insert_with(Instant::now);
        ensure!(message.body.len() == options.size, "a message of {} bytes", message.body.len());
        message.finish().await;
    }
    let seconds = start.context("no message")?.elapsed().as_secs_f64();
    // There is no way to wait until the last FINs have left.
    tokio::time::sleep(Duration::from_millis(options.flush_interval_ms + 500)).await;
    Ok(seconds)
}

async fn sync(
    producer: &mut NSQProducer,
    topic: &Arc<NSQTopic>,
    body: &[u8],
    count: usize,
) -> Result<()> {
    for _ in 0..count {
        producer.publish(topic, body.to_vec()).await?;
        acknowledged(producer).await?;
    }
    Ok(())
}

async fn flood(
    producer: &mut NSQProducer,
    topic: &Arc<NSQTopic>,
    body: &[u8],
    count: usize,
) -> Result<()> {
    let (mut sent, mut acked) = (0, 0);
    while acked < count {
        if sent < count && sent - acked < OUTSTANDING {
            producer.publish(topic, body.to_vec()).await?;
            sent += 1;
            while let Some(event) = producer.consume().now_or_never() {
                check(event)?;
                acked += 1;
            }
        } else {
            acknowledged(producer).await?;
            acked += 1;
        }
    }
    Ok(())
}

async fn acknowledged(producer: &mut NSQProducer) -> Result<()> {
    let event = tokio::time::timeout(SILENCE, producer.consume()).await;
    check(event.context("no acknowledgement: the connection was lost")?)
}

fn check(event: Option<NSQEvent>) -> Result<()> {
    match event {
        Some(NSQEvent::Ok()) => Ok(()),
        other => bail!("not an acknowledgement: {other:?}"),
    }
}
