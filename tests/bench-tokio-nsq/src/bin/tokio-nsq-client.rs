//! An ordinary program on tokio-nsq, for tests: the counterpart of go-nsq-client
//! (`tests/peers/cmd`), as far as tokio-nsq supports it.
//!
//! The program consumes a channel or publishes to a topic, and reports what it did in lines of JSON
//! on standard output. The bodies begin with a number, which decides what the consumer does with
//! the first delivery of a message.
//!
//! tokio-nsq cannot request a message timeout: the server's default must be `--msg-timeout-ms`. It
//! does not survive an error frame such as `E_FIN_FAILED …`, so no message is finished too late.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, ValueEnum};
use futures_util::FutureExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_nsq::{
    NSQChannel, NSQConsumerConfig, NSQConsumerConfigSources, NSQConsumerLookupConfig, NSQEvent,
    NSQMessage, NSQProducerConfig, NSQRequeueDelay, NSQTopic,
};

/// tokio-nsq never reports a lost connection, so silence must be an error.
const SILENCE: Duration = Duration::from_secs(10);
/// tokio-nsq writes every 250 ms.
const FLUSHED: Duration = Duration::from_millis(600);

#[derive(Parser)]
#[command(name = "tokio-nsq-client", version)]
struct Options {
    mode: Mode,
    /// TCP address of nsqd
    #[arg(long)]
    nsqd: Option<String>,
    /// Consume: HTTP address of nsqlookupd, instead of --nsqd
    #[arg(long)]
    lookupd: Option<String>,
    #[arg(long)]
    topic: String,
    #[arg(long, default_value = "")]
    channel: String,
    #[arg(long, default_value_t = 100)]
    max_in_flight: u32,
    /// Consume: the server's default
    #[arg(long, default_value_t = 60_000)]
    msg_timeout_ms: u64,
    /// Consume: requeue each message whose number is 1 modulo this, once
    #[arg(long, default_value_t = 0)]
    requeue_every: u64,
    #[arg(long, default_value_t = 0)]
    requeue_delay_ms: u64,
    /// Consume: never answer the first delivery of each message whose number is 2 modulo this
    #[arg(long, default_value_t = 0)]
    timeout_every: u64,
    /// Consume: keep each message whose number is 3 modulo this for two timeouts, with TOUCH
    #[arg(long, default_value_t = 0)]
    touch_every: u64,
    #[arg(long, default_value = "pub")]
    command: Command,
    #[arg(long, default_value_t = 1000)]
    count: u64,
    #[arg(long, default_value_t = 0)]
    first: u64,
    #[arg(long, default_value_t = 16)]
    size: usize,
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Consume,
    Publish,
}

#[derive(Clone, Copy, ValueEnum)]
enum Command {
    Pub,
    Mpub,
    Dpub,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    match options.mode {
        Mode::Consume => consume(&options).await,
        Mode::Publish => publish(&options).await,
    }
}

/// Runs until SIGTERM.
async fn consume(options: &Options) -> Result<()> {
    let topic = NSQTopic::new(&options.topic).context("bad topic name")?;
    let channel = NSQChannel::new(&options.channel).context("bad channel name")?;
    let sources = match (&options.lookupd, &options.nsqd) {
        (Some(lookupd), None) => NSQConsumerConfigSources::Lookup(
            NSQConsumerLookupConfig::new()
                .set_poll_interval(Duration::from_millis(500))
                .set_addresses([format!("http://{lookupd}")].into()),
        ),
        (None, Some(nsqd)) => NSQConsumerConfigSources::Daemons(vec![nsqd.clone()]),
        _ => bail!("either --lookupd or --nsqd"),
    };
    let mut consumer = NSQConsumerConfig::new(topic, channel)
        .set_max_in_flight(options.max_in_flight)
        .set_sources(sources)
        .build();
    let mut terminated = signal(SignalKind::terminate())?;
    // Dropping an unanswered message has no effect; keeping it is clearer.
    let mut kept = Vec::new();
    loop {
        let message = tokio::select! {
            message = consumer.consume_filtered() => message.context("no more messages")?,
            _ = terminated.recv() => break,
        };
        let first = message.attempt == 1;
        let n = number(&message.body)?;
        let is = |remainder, every| first && every > 0 && n % every == remainder;
        if is(1, options.requeue_every) {
            report(&message, "req");
            let delay = match options.requeue_delay_ms {
                0 => NSQRequeueDelay::NoDelay,
                delay => NSQRequeueDelay::CustomDelay(Duration::from_millis(delay)),
            };
            message.requeue(delay).await;
        } else if is(2, options.timeout_every) {
            report(&message, "timeout");
            kept.push(message);
        } else if is(3, options.touch_every) {
            report(&message, "touch");
            tokio::spawn(hold(message, Duration::from_millis(options.msg_timeout_ms / 3)));
        } else {
            report(&message, "fin");
            message.finish().await;
        }
    }
    // tokio-nsq has no CLS, and no way to wait until answers have been written.
    tokio::time::sleep(FLUSHED).await;
    Ok(())
}

async fn hold(message: NSQMessage, pause: Duration) {
    for _ in 0..6 {
        tokio::time::sleep(pause).await;
        message.touch().await;
    }
    message.finish().await;
}

/// Returns when all messages are acknowledged.
async fn publish(options: &Options) -> Result<()> {
    let topic = NSQTopic::new(&options.topic).context("bad topic name")?;
    let nsqd = options.nsqd.as_ref().context("--nsqd is missing")?;
    let mut producer = NSQProducerConfig::new(nsqd).build();
    match tokio::time::timeout(SILENCE, producer.consume()).await {
        Ok(Some(NSQEvent::Healthy())) => {}
        other => bail!("no connection to {nsqd}: {other:?}"),
    }
    let body = |n: u64| format!("{:.<1$}", options.first + n, options.size).into_bytes();
    let (mut sent, mut outstanding) = (0, 0);
    while sent < options.count || outstanding > 0 {
        if sent == options.count || outstanding == 1000 {
            let event = tokio::time::timeout(SILENCE, producer.consume()).await;
            check(event.context("no acknowledgement: the connection was lost")?)?;
            outstanding -= 1;
            continue;
        }
        match options.command {
            Command::Pub => producer.publish(&topic, body(sent)).await?,
            Command::Dpub => {
                let delay = Duration::from_millis(options.delay_ms);
                producer.publish_deferred(&topic, body(sent), delay.as_millis() as u32).await?
            }
            Command::Mpub => {
                let end = options.count.min(sent + 100);
                producer.publish_multiple(&topic, (sent..end).map(body).collect()).await?;
                sent = end - 1;
            }
        }
        sent += 1;
        outstanding += 1;
        while let Some(event) = producer.consume().now_or_never() {
            check(event)?;
            outstanding -= 1;
        }
    }
    println!(r#"{{"acknowledged":{}}}"#, options.count);
    Ok(())
}

fn check(event: Option<NSQEvent>) -> Result<()> {
    match event {
        Some(NSQEvent::Ok()) => Ok(()),
        other => bail!("not an acknowledgement: {other:?}"),
    }
}

fn number(body: &[u8]) -> Result<u64> {
    let digits = body.iter().take_while(|byte| byte.is_ascii_digit()).count();
    ensure!(digits > 0, "a body without a number: {:?}", String::from_utf8_lossy(body));
    Ok(std::str::from_utf8(&body[..digits])?.parse()?)
}

/// Prints a line of JSON. Ids are hexadecimal and bodies digits and dots: nothing to escape.
fn report(message: &NSQMessage, action: &str) {
    let (id, body) = (String::from_utf8_lossy(&message.id), String::from_utf8_lossy(&message.body));
    let attempts = message.attempt;
    // Written at once: Rust's standard output flushes at the end of a line.
    let line = format!(
        "{{\"id\":\"{id}\",\"body\":\"{body}\",\"attempts\":{attempts},\"action\":\"{action}\"}}\n"
    );
    let _ = std::io::stdout().write_all(line.as_bytes());
}
