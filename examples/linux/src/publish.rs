//! `nanonsq pub`: lines or records to a topic.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use embassy_futures::join::join;
use embassy_futures::select::{Either, Either3, select, select3};
use log::{error, info, warn};
use nanonsq_core::address::Address;
use nanonsq_core::drive::{self, Sleep as _, publisher::Handle};
use nanonsq_core::lookup::{self, PEERS_MAX, PeerState};
use nanonsq_core::name::TopicName;
use nanonsq_core::publish::{
    Config, Event, Outcome, PublishError, PublishOptions, Publisher, RING_MIN,
};
use nanonsq_core::session::{Closed, Fault};
use nanonsq_core::time::Span;
use nanonsq_core::wire::v2::ErrorCode;
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};

use crate::input::{Framing, Input, Record};
use crate::progress::{self, Progress, Skipped};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Topic to publish to.
    #[arg(long)]
    topic: TopicName,

    /// nsqd to publish to, as host:port; give it again for others to fail over to.
    #[arg(long, required = true, value_name = "ADDRESS")]
    nsqd_tcp_address: Vec<Address>,

    /// nsqlookupd to register a node with this topic at, while this runs; repeatable.
    #[arg(long, value_name = "ADDRESS")]
    lookupd_tcp_address: Vec<Address>,

    /// Address that the registered node announces.
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    broadcast_address: String,

    /// TCP port that the registered node announces.
    #[arg(long, value_name = "PORT", default_value_t = 4150)]
    broadcast_tcp_port: u16,

    /// HTTP port that the registered node announces.
    #[arg(long, value_name = "PORT", default_value_t = 4151)]
    broadcast_http_port: u16,

    /// File to read instead of standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,

    /// Publish records of N bytes instead of lines.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    binary_size: Option<u32>,

    /// Longest message; nsqd's flag of the same name and default.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20)]
    max_msg_size: usize,

    /// Bytes of messages that wait for nsqd at most; reading pauses when they do.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 22)]
    outbox_size: usize,

    /// Have nsqd hold each message back for so long (DPUB), up to one hour.
    #[arg(long, value_name = "MS")]
    defer: Option<u32>,

    /// Give a message up if nsqd has not acknowledged it after so long.
    #[arg(long, value_name = "MS")]
    expire: Option<u32>,

    /// Secret for an nsqd that requires AUTH.
    #[arg(long, value_name = "SECRET")]
    auth_secret: Option<String>,

    /// How often nsqd sends heartbeats, 1000 to 60000; two missed ones end a connection.
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    heartbeat_interval: u32,

    /// How long to try for a first connection before giving up.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    connect_timeout: u64,

    /// How long to go on delivering after the end of input or Ctrl-C.
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    drain_timeout: u64,
}

/// Runs until everything is delivered or there is no hope; the status is success only if every
/// message of the input was acknowledged.
pub(crate) async fn run(args: Args) -> Result<ExitCode, String> {
    // So that the longest message fits.
    let room = args.max_msg_size.saturating_add(RING_MIN);
    if args.outbox_size < room {
        return Err(format!(
            "--outbox-size {} is too small for a message of --max-msg-size {}; give {room} or more",
            args.outbox_size, args.max_msg_size
        ));
    }
    let framing = args.binary_size.map_or(Framing::Lines, |size| Framing::Records(size as usize));
    if let Framing::Records(size) = framing
        && size > args.max_msg_size
    {
        return Err(format!(
            "--binary-size {size} is longer than --max-msg-size {}",
            args.max_msg_size
        ));
    }
    let mut input = Input::open(args.file.as_deref(), framing, args.max_msg_size)
        .map_err(|error| match &args.file {
            Some(path) => format!("cannot open {}: {error}", path.display()),
            None => format!("cannot read standard input: {error}"),
        })?;

    let hostname = hostname();
    let seed = seed();
    let config = Config {
        client_id: hostname.split('.').next().unwrap_or_default(),
        hostname: &hostname,
        heartbeat: Span::from_millis(args.heartbeat_interval),
        auth_secret: args.auth_secret.as_deref().map(str::as_bytes),
        seed,
        ..Config::new()
    };
    let sleep = TokioSleep::new();
    let mut ring = vec![0; args.outbox_size];
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

    let node = lookup::NodeInfo {
        broadcast_address: &args.broadcast_address,
        hostname: &hostname,
        tcp_port: args.broadcast_tcp_port,
        http_port: args.broadcast_http_port,
        version: env!("CARGO_PKG_VERSION"),
        ..lookup::NodeInfo::default()
    };
    let lookup_config = lookup::Config { seed, ..lookup::Config::new(node) };
    let mut lookup_resources = drive::lookup::Resources::<NoopRawMutex, PEERS_MAX, 1, 0>::new();
    let (registration, mut lookup_runner) = drive::lookup::new(
        &mut lookup_resources,
        &lookup_config,
        [TcpDialer::new(); PEERS_MAX],
        sleep.clone(),
    )
    .map_err(|error| error.to_string())?;
    registration.add_topic(&args.topic).map_err(|error| error.to_string())?;
    registration.configure(&args.lookupd_tcp_address).map_err(|error| error.to_string())?;

    let mut skipped = Skipped::default();
    let mut progress = Progress::new();
    let app = async {
        let watched = select3(
            feed(&args, publisher, &sleep, &mut input, &mut skipped),
            watch(&args, publisher),
            async {
                loop {
                    tokio::time::sleep(progress::INTERVAL).await;
                    let outbox = |p: &mut Publisher<'_>| (p.outbox().used(), p.outbox().capacity());
                    let (used, capacity) = publisher.look(outbox).unwrap_or_default();
                    progress.draw(&publisher.counters(), used, capacity);
                }
            },
        );
        let ended = match watched.await {
            Either3::First(ended) | Either3::Second(ended) => ended,
            Either3::Third(never) => never,
        };
        // Graceful, but nobody waits long for a server that is gone.
        let goodbye = join(publisher.stop(&sleep), registration.stop());
        let _ = tokio::time::timeout(Duration::from_secs(2), goodbye).await;
        ended
    };
    let peers = watch_peers(&registration);
    let ended =
        match select3(app, join(runner.run(), lookup_runner.run()), peers).await {
            Either3::First(ended) => ended,
            Either3::Second((never, _)) => never,
            Either3::Third(never) => match never {},
        };

    let counters = publisher.counters();
    progress.finish(&counters, &skipped);
    ended?;
    let complete = counters.acknowledged == counters.accepted && skipped.too_long == 0;
    Ok(if complete { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

type Publishing<'a> = Handle<'a, NoopRawMutex>;

/// Publishes the input, then waits until it is delivered.
async fn feed(
    args: &Args,
    publisher: Publishing<'_>,
    sleep: &TokioSleep,
    input: &mut Input,
    skipped: &mut Skipped,
) -> Result<(), String> {
    let interrupted =
        match select(publish_all(args, publisher, sleep, input, skipped), ctrl_c()).await {
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
    let drained = select(tokio::time::timeout(limit, publisher.idle()), ctrl_c()).await;
    let pending = publisher.counters().pending;
    match drained {
        Either::First(Ok(())) if interrupted => Err("interrupted; all that was read is delivered".into()),
        Either::First(Ok(())) => Ok(()),
        Either::First(Err(_)) => Err(format!(
            "{pending} messages not delivered after --drain-timeout {} s",
            args.drain_timeout
        )),
        Either::Second(()) => Err(format!("interrupted; {pending} messages not delivered")),
    }
}

async fn publish_all(
    args: &Args,
    publisher: Publishing<'_>,
    sleep: &TokioSleep,
    input: &mut Input,
    skipped: &mut Skipped,
) -> Result<(), String> {
    let what = if args.binary_size.is_some() { "record" } else { "line" };
    let mut number = 0u64;
    while let Some(record) = input.next().await.map_err(|e| format!("cannot read input: {e}"))? {
        number += 1;
        let body = match record {
            Record::Message(body) => body,
            Record::TooLong(len) => {
                error!(
                    "{what} {number} has {len} bytes, more than --max-msg-size {}: skipped",
                    args.max_msg_size
                );
                skipped.too_long += 1;
                continue;
            }
        };
        let options = PublishOptions {
            defer: args.defer.map(Span::from_millis),
            deadline: args.expire.map(|ms| sleep.now().after(Span::from_millis(ms))),
        };
        match publisher.publish_with(&args.topic, &body, options).await {
            Ok(_) => {}
            Err(PublishError::Empty) => skipped.empty += 1,
            Err(error) => return Err(format!("{what} {number}: {error}")),
        }
    }
    Ok(())
}

/// Tells what happens to the connection; returns only if there is no hope.
async fn watch(args: &Args, publisher: Publishing<'_>) -> Result<(), String> {
    let limit = Duration::from_secs(args.connect_timeout);
    let started = tokio::time::Instant::now();
    let mut connected = false;
    let mut last = None;
    loop {
        let event = if connected {
            publisher.event().await
        } else {
            match tokio::time::timeout_at(started + limit, publisher.event()).await {
                Ok(event) => event,
                Err(_) => {
                    let last = last.unwrap_or_else(|| "no connection".to_owned());
                    let limit = args.connect_timeout;
                    return Err(format!("{last}; gave up after --connect-timeout {limit} s"));
                }
            }
        };
        match event {
            Event::Connected { nsqd, .. } => {
                let address = args.nsqd_tcp_address.get(nsqd);
                info!("connected to nsqd {}", address.map(ToString::to_string).unwrap_or_default());
                connected = true;
                last = None;
            }
            Event::Disconnected { nsqd, why } => {
                let address = args.nsqd_tcp_address.get(nsqd);
                let address = address.map(ToString::to_string).unwrap_or_default();
                let message = explain(&address, why, publisher);
                if !connected && args.nsqd_tcp_address.len() == 1 && is_hopeless(why) {
                    return Err(message);
                }
                // The same failure again and again is one line.
                if last.as_ref() != Some(&message) {
                    warn!("{message}; trying again");
                    last = Some(message);
                }
            }
            Event::Failed { first, count, outcome } => {
                let last = first.number() + u64::from(count);
                let detail = match outcome {
                    Outcome::Rejected(_) => detail(publisher),
                    Outcome::Acknowledged
                    | Outcome::Expired
                    | Outcome::Dropped
                    | Outcome::Forgotten => String::new(),
                };
                let messages = if count == 1 {
                    format!("message {last}")
                } else {
                    format!("messages {} to {last}", first.number() + 1)
                };
                error!("{messages}: {outcome}{detail}");
            }
            _ => {}
        }
    }
}

/// Tells what happens to the registration. Never returns.
async fn watch_peers(
    registration: &drive::lookup::Handle<'_, NoopRawMutex, TokioSleep, PEERS_MAX, 1, 0>,
) -> std::convert::Infallible {
    let mut told: [Option<String>; PEERS_MAX] = Default::default();
    loop {
        let (peer, line, good) = registration
            .wait(|lookup| {
                (0..PEERS_MAX).find_map(|peer| {
                    let status = lookup.status(peer)?;
                    let address = status.address?;
                    let (line, good) = match (status.state, status.last) {
                        (PeerState::Connected, _) if status.settled => {
                            (format!("registered with nsqlookupd {address}"), true)
                        }
                        (PeerState::Waiting, Some(why)) => {
                            let detail = match why {
                                Closed::Fault(Fault::Refused(_)) => {
                                    format!(" ({})", status.detail)
                                }
                                _ => String::new(),
                            };
                            (format!("nsqlookupd {address}: {why}{detail}; trying again"), false)
                        }
                        _ => return None,
                    };
                    (told[peer].as_ref() != Some(&line)).then_some((peer, line, good))
                })
            })
            .await;
        if good {
            info!("{line}");
        } else {
            warn!("{line}");
        }
        told[peer] = Some(line);
    }
}

fn explain(address: &str, why: Closed, publisher: Publishing<'_>) -> String {
    match why {
        Closed::Fault(Fault::AuthRequired) => {
            format!("nsqd {address} requires AUTH: give --auth-secret")
        }
        Closed::Fault(Fault::Refused(_)) => format!("nsqd {address}: {why}{}", detail(publisher)),
        _ => format!("nsqd {address}: {why}"),
    }
}

fn detail(publisher: Publishing<'_>) -> String {
    publisher.look(|p| format!(" ({})", p.detail())).unwrap_or_default()
}

/// Whether trying the same again cannot help.
fn is_hopeless(why: Closed) -> bool {
    match why {
        Closed::Fault(fault) => match fault {
            Fault::WrongPort | Fault::AuthRequired => true,
            Fault::Refused(code) => matches!(
                code,
                ErrorCode::AuthFailed | ErrorCode::Unauthorized | ErrorCode::BadBody
            ),
            _ => false,
        },
        _ => false,
    }
}

async fn ctrl_c() {
    if tokio::signal::ctrl_c().await.is_err() {
        // Without signals the program just cannot be interrupted gracefully.
        std::future::pending::<()>().await;
    }
}

fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// Another number for each process.
fn seed() -> u32 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish() as u32
}
