//! `nanonsq pub`: lines or records to a topic.

use std::convert::Infallible;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use embassy_futures::join::join;
use embassy_futures::select::{Either, Either3, Either4, select, select3, select4};
use log::{error, info, warn};
use nanonsq_core::address::{Address, HOST_MAX};
use nanonsq_core::drive::{self, Sleep as _};
use nanonsq_core::name::{NAME_MAX, TopicName};
use nanonsq_core::publisher::{
    Config, FLIGHTS_MAX, PublishError, PublishOptions, RING_MAX, RING_MIN,
};
use nanonsq_core::registration::{self, PEERS_MAX};
use nanonsq_core::time::Span;
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};

use crate::flags::{SECONDS_MAX, SECRET_MAX, Secret};
use crate::input::{Framing, Input, Record};
use crate::output;
use crate::progress::{self, Progress, Skipped};
use crate::report::{Numbers, Publishing, Reporter, watch_lookups};
use crate::signals::interrupts;
use crate::system::{hostname, memory, seed};

/// Default bytes of the outbox, if the longest message fits.
const OUTBOX: usize = 4 << 20;

/// The longest message that fits an outbox.
const MESSAGE_MAX: u32 = (RING_MAX - RING_MIN) as u32;

/// Time limit for disconnecting at the end.
const GOODBYE: Duration = Duration::from_secs(2);

fn help() -> String {
    output::help(
        "0 if nsqd acknowledged every message of the input, or of what was read before a signal ended it;\n  \
         else 1, also if a signal left part of a file; 2 for invalid flags",
        &[
            ("nsqds", u8::MAX.into()),
            ("nsqlookupds", PEERS_MAX as u64),
            ("bytes of a message", MESSAGE_MAX.into()),
            ("bytes of --outbox-size", RING_MAX as u64),
            ("commands that await nsqd's answer", FLIGHTS_MAX as u64),
            ("bytes of a topic's name", NAME_MAX as u64),
            ("bytes of a host", HOST_MAX as u64),
            ("bytes of a secret", SECRET_MAX),
            ("seconds of a timeout", SECONDS_MAX),
        ],
        "tail -F app.log | nanonsq pub --topic app --nsqd-tcp-address 127.0.0.1:4150",
    )
}

#[derive(Debug, clap::Args)]
#[command(after_help = help(), allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Topic to publish to.
    #[arg(long)]
    topic: TopicName,

    /// nsqd to publish to, as host:port; repeatable, for others to fail over to.
    #[arg(long, required = true, value_name = "ADDRESS")]
    nsqd_tcp_address: Vec<Address>,

    /// nsqlookupd to register a node with this topic at, as host:port, while this runs; repeatable.
    #[arg(long, value_name = "ADDRESS")]
    lookupd_tcp_address: Vec<Address>,

    /// Address that the registered node announces.
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    broadcast_address: String,

    /// TCP port that the registered node announces.
    #[arg(long, value_name = "PORT", default_value_t = 4150,
        value_parser = clap::value_parser!(u16).range(1..))]
    broadcast_tcp_port: u16,

    /// HTTP port that the registered node announces.
    #[arg(long, value_name = "PORT", default_value_t = 4151,
        value_parser = clap::value_parser!(u16).range(1..))]
    broadcast_http_port: u16,

    /// File to read instead of standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Publish records of N bytes instead of lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    binary_size: Option<u32>,

    /// Longest message; nsqd's flag of the same name and default.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20,
        value_parser = clap::value_parser!(u32).range(1..=MESSAGE_MAX.into()))]
    max_msg_size: u32,

    /// Most bytes of messages that wait for nsqd; more input waits until they fit [default: 4 MiB].
    #[arg(long, value_name = "BYTES",
        value_parser = clap::value_parser!(u32).range(..=RING_MAX as i64))]
    outbox_size: Option<u32>,

    /// Defer each message by this time (DPUB), up to one hour.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(..=3_600_000))]
    defer: Option<u32>,

    /// Give up a message that nsqd has not acknowledged after this time.
    #[arg(long, value_name = "MS")]
    expire: Option<u32>,

    #[command(flatten)]
    secret: Secret,

    /// Interval of nsqd's heartbeats, 1000 to 60000; two missed ones end a connection.
    #[arg(long, value_name = "MS", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1000..=60_000))]
    heartbeat_interval: u32,

    /// Time limit for the first connection.
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(..=SECONDS_MAX))]
    connect_timeout: u64,

    /// Time limit for delivery after the end of the input or Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value_t = 30,
        value_parser = clap::value_parser!(u64).range(..=SECONDS_MAX))]
    drain_timeout: u64,
}

impl Args {
    fn framing(&self) -> Framing {
        self.binary_size.map_or(Framing::Lines, |size| Framing::Records(size as usize))
    }

    fn outbox_size(&self) -> Result<usize, String> {
        let max = self.max_msg_size;
        if let Some(size) = self.binary_size
            && size > max
        {
            return Err(format!("--binary-size {size} is more than --max-msg-size {max}"));
        }
        // Room for the longest message.
        let room = RING_MIN.saturating_add(max as usize);
        match self.outbox_size.map(|size| size as usize) {
            None => Ok(OUTBOX.max(room)),
            Some(size) if size < room => Err(format!(
                "--outbox-size {size} is too small for --max-msg-size {max}; give {room} or more"
            )),
            Some(size) => Ok(size),
        }
    }

    fn input_name(&self) -> String {
        self.file.as_ref().map_or("standard input".to_owned(), |path| path.display().to_string())
    }
}

/// Runs until all messages are acknowledged or delivery fails. The status is a success only if
/// every message of the input was acknowledged: up to a signal, if the input has no end, as a pipe.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, String> {
    let secret = args.secret.read()?;
    let outbox_size = args.outbox_size()?;
    let mut ring = memory("--outbox-size", outbox_size)?;
    let mut input = Input::open(args.file.as_deref(), args.framing(), args.max_msg_size as usize)
        .map_err(|error| format!("cannot open {}: {error}", args.input_name()))?;
    let typed = args.file.is_none() && std::io::stdin().is_terminal();
    if typed {
        info!("reading lines from the terminal until Ctrl-D");
    }

    let hostname = hostname();
    let seed = seed();
    let config = Config {
        client_id: hostname.split('.').next().unwrap_or_default(),
        hostname: &hostname,
        heartbeat: Span::from_millis(args.heartbeat_interval),
        auth_secret: secret.as_deref(),
        seed,
        ..Config::new()
    };
    let sleep = TokioSleep::new();
    let mut resources = drive::publisher::Resources::<NoopRawMutex>::new();
    let (publisher, mut runner) = drive::publisher::new(
        &mut resources,
        &config,
        &args.nsqd_tcp_address,
        &mut ring,
        TcpDialer::new(),
        sleep.clone(),
    )
    .map_err(|error| error.to_string())?;

    let node = registration::NodeInfo {
        broadcast_address: &args.broadcast_address,
        hostname: &hostname,
        tcp_port: args.broadcast_tcp_port,
        http_port: args.broadcast_http_port,
        version: env!("CARGO_PKG_VERSION"),
        ..registration::NodeInfo::default()
    };
    let lookup_config = registration::Config { seed, ..registration::Config::new(node) };
    let mut lookup_resources =
        drive::registration::Resources::<NoopRawMutex, PEERS_MAX, 1, 0>::new();
    let (registration, mut lookup_runner) = drive::registration::new(
        &mut lookup_resources,
        &lookup_config,
        [TcpDialer::new(); PEERS_MAX],
        sleep.clone(),
    )
    .map_err(|error| error.to_string())?;
    registration.register(&args.topic, None).map_err(|error| error.to_string())?;
    registration.configure(&args.lookupd_tcp_address).map_err(|error| error.to_string())?;

    let numbers = Numbers::new(if args.binary_size.is_some() { "record" } else { "line" });
    let mut reporter = Reporter::new(publisher, &args.nsqd_tcp_address, &numbers);
    let mut skipped = Skipped::default();
    let mut progress = Progress::new(typed);
    let app = async {
        let watched = select3(
            feed(args, publisher, &sleep, &mut input, &numbers, &mut skipped),
            watch(args, publisher, &mut reporter),
            draw(publisher, outbox_size, &mut progress),
        );
        let ended = match watched.await {
            Either3::First(ended) => ended,
            Either3::Second(hopeless) => Err(hopeless),
            Either3::Third(never) => match never {},
        };
        while let Some(event) = publisher.try_event() {
            // At the end, a permanent failure of an nsqd is of no interest.
            let _ = reporter.report(event);
        }
        // Graceful, but bounded: a server may not answer.
        let goodbye = join(publisher.stop(&sleep), registration.stop());
        let _ = tokio::time::timeout(GOODBYE, goodbye).await;
        ended
    };
    let background = join(runner.run(), lookup_runner.run());
    let ended = match select4(app, background, watch_lookups(&registration), interrupts(2)).await {
        Either4::First(ended) => ended,
        Either4::Second((never, _)) => never,
        Either4::Third(never) => match never {},
        Either4::Fourth(()) => Err("interrupted again: stopped at once".to_owned()),
    };

    let counters = publisher.counters();
    if ended.is_ok() || counters.accepted > 0 {
        progress.finish(&counters, &skipped);
    }
    ended?;
    let complete = counters.acknowledged == counters.accepted && skipped.too_long == 0;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Publishes the input, then waits until it is delivered.
async fn feed(
    args: &Args,
    publisher: Publishing<'_>,
    sleep: &TokioSleep,
    input: &mut Input,
    numbers: &Numbers,
    skipped: &mut Skipped,
) -> Result<(), String> {
    let publishing = publish_all(args, publisher, sleep, input, numbers, skipped);
    let interrupted = match select(publishing, interrupts(1)).await {
        Either::First(published) => {
            published?;
            false
        }
        Either::Second(()) => {
            warn!("interrupted: delivering what was read; press Ctrl-C again to stop at once");
            true
        }
    };
    let limit = Duration::from_secs(args.drain_timeout);
    match tokio::time::timeout(limit, publisher.idle()).await {
        Ok(()) if interrupted && input.is_file() => {
            Err("interrupted before the end of the file".to_owned())
        }
        Ok(()) => Ok(()),
        Err(_) => Err(format!(
            "nsqd did not acknowledge everything within --drain-timeout {} s",
            args.drain_timeout
        )),
    }
}

async fn publish_all(
    args: &Args,
    publisher: Publishing<'_>,
    sleep: &TokioSleep,
    input: &mut Input,
    numbers: &Numbers,
    skipped: &mut Skipped,
) -> Result<(), String> {
    let what = numbers.what;
    let mut number = 0u64;
    loop {
        let record = input.next().await;
        let record = record.map_err(|e| format!("cannot read {}: {e}", args.input_name()))?;
        let Some(record) = record else { return Ok(()) };
        number += 1;
        match record {
            Record::Message(body) if body.is_empty() => skipped.empty += 1,
            Record::Message(body) => {
                let options = PublishOptions {
                    defer: args.defer.map(Span::from_millis),
                    deadline: args.expire.map(|ms| sleep.now().after(Span::from_millis(ms))),
                };
                let taken = publisher.publish_with(&args.topic, &body, options);
                let taken = select(taken, stalled(args, publisher, input)).await;
                let Either::First(taken) = taken else {
                    return Err(format!(
                        "nsqd acknowledged nothing within --drain-timeout {} s, so {} was not read \
                         to its end",
                        args.drain_timeout,
                        args.input_name()
                    ));
                };
                let _ = taken.map_err(|error: PublishError| format!("{what} {number}: {error}"))?;
                continue;
            }
            Record::TooLong(len) => {
                let max = args.max_msg_size;
                error!("{what} {number}: skipped: {len} bytes, more than --max-msg-size {max}");
                skipped.too_long += 1;
            }
        }
        numbers.skip(publisher.counters().accepted);
    }
}

/// Watches for a stall while a message waits for room: returns if no message became final for
/// `--drain-timeout` while no more input can come.
async fn stalled(args: &Args, publisher: Publishing<'_>, input: &Input) {
    let limit = Duration::from_secs(args.drain_timeout).max(Duration::from_millis(1));
    loop {
        let is_final = || publisher.counters().accepted - publisher.counters().pending;
        let before = is_final();
        // While more input can come, the time does not count.
        let mut since = tokio::time::Instant::now();
        while is_final() == before && since.elapsed() < limit {
            tokio::time::sleep(limit.min(Duration::from_millis(100))).await;
            if !input.is_at_its_end() {
                since = tokio::time::Instant::now();
            }
        }
        if is_final() == before {
            return;
        }
    }
}

/// Logs events. Returns, with the reason, only if no nsqd can be used.
async fn watch(args: &Args, publisher: Publishing<'_>, reporter: &mut Reporter<'_>) -> String {
    let patience = Duration::from_secs(args.connect_timeout);
    let mut limit = tokio::time::Instant::now() + patience;
    loop {
        let event = if reporter.was_connected() {
            publisher.event().await
        } else {
            match tokio::time::timeout_at(limit, publisher.event()).await {
                Ok(event) => event,
                Err(_) => {
                    let nsqds: Vec<_> =
                        args.nsqd_tcp_address.iter().map(ToString::to_string).collect();
                    return format!(
                        "no connection to nsqd {} within --connect-timeout {} s",
                        nsqds.join(" or "),
                        args.connect_timeout
                    );
                }
            }
        };
        let was_connected = reporter.was_connected();
        if let Err(hopeless) = reporter.report(event) {
            return hopeless;
        }
        if was_connected && !reporter.was_connected() {
            // The only connection was to an nsqd that accepts nothing: restart the time limit.
            limit = tokio::time::Instant::now() + patience;
        }
    }
}

/// Draws the progress line. Never returns.
async fn draw(
    publisher: Publishing<'_>,
    outbox_size: usize,
    progress: &mut Progress,
) -> Infallible {
    loop {
        tokio::time::sleep(progress::INTERVAL).await;
        let used = publisher.look(|publisher| publisher.outbox_used()).unwrap_or_default();
        progress.draw(&publisher.counters(), used, outbox_size);
    }
}
