//! `nanonsq sub`: prints the messages of a channel to standard output.

use std::pin::Pin;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ArgGroup;
use embassy_futures::select::{Either3, select, select_slice, select3};
use log::{info, warn};
use nanonsq_core::address::{Address, HOST_MAX};
use nanonsq_core::consumer::{
    Config, ConnectionEvent, Counters, Event, LOOKUPDS_MAX, LookupdEvent, Unusable,
};
use nanonsq_core::drive::Gathering;
use nanonsq_core::drive::consumer::{self, Dialers, Resources, Sources};
use nanonsq_core::name::{ChannelName, NAME_MAX, TopicName};
use nanonsq_core::session::Closed;
use nanonsq_core::time::Span;
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};
use tokio::io::AsyncWriteExt;

use crate::flags::{SECRET_MAX, Secret};
use crate::output::{self, cannot_print, has_output, is_closed};
use crate::report::{explain, explain_answer, is_hopeless};
use crate::signals::interrupts;
use crate::system::{hostname, lend, seed};
use crate::topics::{Consuming, Handle, Message, next_of, stop, try_next_of};

/// Connections to nsqds at a time.
const CONNECTIONS: usize = 16;
/// nsqds found by nsqlookupds that are kept.
const NSQDS: usize = 64;

/// Messages in flight.
const MESSAGES: usize = 1024;
/// Bytes for all messages in flight; also the longest message.
const RING: usize = 8 << 20;

/// Bytes of the read and the write buffer of each connection. Without optimization the buffers of
/// all connections are moved over the stack several times.
const RX: usize = 4096;
const TX: usize = 1024;

/// Time that a stop may take before the program logs what it waits for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The most messages of one write.
const BATCH: usize = 64;

/// The flags of which one is required.
const SOURCES: [&str; 2] = ["lookupd_http_address", "nsqd_tcp_address"];

fn help() -> String {
    output::help(
        "0 after the messages of -n, after a signal without -n, or if the reader of its output has \
         closed\n  it; else 1; 2 for invalid flags",
        &[
            ("connections to nsqds at a time; more nsqds take turns", CONNECTIONS as u64),
            ("nsqds of --nsqd-tcp-address", u8::MAX.into()),
            ("nsqds that nsqlookupds list, remembered at a time", NSQDS as u64),
            ("nsqlookupds", LOOKUPDS_MAX as u64),
            ("messages in flight", MESSAGES as u64),
            ("bytes of a message, and of all in flight", RING as u64),
            ("bytes of a topic's or channel's name", NAME_MAX as u64),
            ("bytes of a host", HOST_MAX as u64),
            ("bytes of a secret", SECRET_MAX),
        ],
        "nanonsq sub --topic app --lookupd-http-address 127.0.0.1:4161 | grep error",
    )
}

#[derive(Debug, clap::Args)]
#[command(after_help = help(), allow_negative_numbers = true)]
#[command(group = ArgGroup::new("sources").args(SOURCES).required(true).multiple(true))]
pub(crate) struct Args {
    /// Topic to consume; repeatable.
    #[arg(long, required = true)]
    topic: Vec<TopicName>,

    /// Print the topic and " | " before each message.
    #[arg(long)]
    print_topic: bool,

    /// Channel to consume; by default an ephemeral one, which receives messages from now on.
    #[arg(long)]
    channel: Option<ChannelName>,

    /// nsqlookupd to find nsqds with, as host:port of its HTTP port; repeatable.
    #[arg(long, value_name = "ADDRESS")]
    lookupd_http_address: Vec<Address>,

    /// nsqd to consume from, as host:port; repeatable.
    #[arg(long, value_name = "ADDRESS")]
    nsqd_tcp_address: Vec<Address>,

    /// End after this number of messages, of all topics.
    #[arg(short = 'n', value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,

    /// Most messages in flight of a topic, over all nsqds.
    #[arg(long, value_name = "N", default_value_t = 200,
        value_parser = clap::value_parser!(u16).range(1..=MESSAGES as i64))]
    max_in_flight: u16,

    /// Requeue each Nth delivery instead of printing it, which also starts a backoff.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    requeue_every: Option<u64>,

    /// Delay of a requeued message.
    #[arg(long, value_name = "MS", default_value_t = 1000,
        value_parser = clap::value_parser!(u32).range(..=3_600_000))]
    requeue_delay: u32,

    /// Time between lookups at each nsqlookupd.
    #[arg(long, value_name = "MS", default_value_t = 60_000,
        value_parser = clap::value_parser!(u32).range(100..))]
    lookupd_poll_interval: u32,

    #[command(flatten)]
    secret: Secret,

    /// Interval of nsqd's heartbeats, 1000 to 60000; two missed ones end a connection.
    #[arg(long, value_name = "MS", default_value_t = 10_000,
        value_parser = clap::value_parser!(u32).range(1000..=60_000))]
    heartbeat_interval: u32,
}

/// Why printing ended.
enum End {
    /// The messages of `-n` are printed.
    Count,
    /// The reader of standard output has closed it, as `head` does.
    Closed,
    Interrupted,
}

type Tables<'a> = Resources<'a, NoopRawMutex, CONNECTIONS, MESSAGES, LOOKUPDS_MAX, NSQDS>;

/// Makes the tables in a function of its own, so that they do not enlarge the stack frame of `run`.
#[inline(never)]
fn tables<'a>() -> Box<Tables<'a>> {
    Box::new(Tables::new())
}

/// Runs until the messages of `-n` are printed, Ctrl-C, or no nsqd can be used.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, String> {
    has_output()?;
    let secret = args.secret.read()?;
    let seed = seed();
    let channel = match args.channel {
        Some(channel) => channel,
        None => ChannelName::new(&format!("tail{:06}#ephemeral", seed % 1_000_000))
            .map_err(|error| error.to_string())?,
    };
    let mut topics = Vec::new();
    for topic in &args.topic {
        if !topics.contains(topic) {
            topics.push(*topic);
        }
    }
    let hostname = lend(hostname());
    let secret = lend(secret);
    let sources = lend((args.nsqd_tcp_address.clone(), args.lookupd_http_address.clone()));
    // Do not request more messages than `-n`: other consumers can have them.
    let limit = args.count.map_or(u16::MAX, |count| u16::try_from(count).unwrap_or(u16::MAX));
    let (mut consumers, mut runners) = (Vec::new(), Vec::new());
    for topic in topics {
        let config = lend(Config {
            client_id: hostname.split('.').next().unwrap_or_default(),
            hostname,
            auth_secret: secret.as_deref(),
            heartbeat: Span::from_millis(args.heartbeat_interval),
            lookup_interval: Span::from_millis(args.lookupd_poll_interval),
            max_in_flight: args.max_in_flight.min(limit),
            max_attempts: 0,
            seed,
            ..Config::new(topic, channel)
        });
        let (handle, runner) = consumer::new(
            Box::leak(tables()),
            config,
            Sources { nsqds: &sources.0, lookupds: &sources.1 },
            vec![0; RING].leak(),
            Dialers {
                nsqds: [Gathering::<_, TX>(TcpDialer::new()); CONNECTIONS],
                lookupds: [Gathering(TcpDialer::new()); LOOKUPDS_MAX],
            },
            TokioSleep::new(),
        )
        .map_err(|error| error.to_string())?;
        consumers.push(Consuming { topic, handle });
        // Boxed because of its large buffers.
        runners.push(Box::pin(Box::leak(Box::new(runner)).run_with::<RX>()));
    }
    info!("channel {}", channel.as_str());

    let start = Instant::now();
    let app = async {
        let mut batch = Vec::with_capacity(BATCH);
        let printing = print(args, &consumers, &mut batch);
        let mut watching: Vec<_> = consumers.iter().map(|it| Box::pin(watch(args, it))).collect();
        let watching = select_slice(Pin::new(&mut watching[..]));
        let ended = match select3(printing, watching, interrupts(1)).await {
            Either3::First(ended) => ended,
            Either3::Second((hopeless, _)) => Err(hopeless),
            Either3::Third(()) => Ok(End::Interrupted),
        };
        // These may or may not have been printed: let another consumer have them.
        for message in batch {
            let _ = message.release(Some(Span::ZERO));
        }
        // A stop is immediate unless an nsqd does not answer.
        let patience = async {
            tokio::time::sleep(PATIENCE).await;
            info!("waiting for nsqd to take back what is in flight; interrupt to stop at once");
            std::future::pending::<()>().await
        };
        select(stop(&consumers), patience).await;
        ended
    };
    let background = select_slice(Pin::new(&mut runners[..]));
    let ended = match select3(app, background, interrupts(2)).await {
        Either3::First(ended) => ended,
        Either3::Second((never, _)) => never,
        Either3::Third(()) => Err("interrupted again: stopped at once".to_owned()),
    };

    let counters: Vec<_> = consumers.iter().map(|it| it.handle.counters()).collect();
    if ended.is_ok() || counters.iter().any(|of| of.received > 0) {
        output::summary(summary(&counters, start.elapsed().as_secs_f64()));
    }
    match (ended?, args.count) {
        (End::Interrupted, Some(count)) => Err(format!("interrupted before message {count}")),
        (End::Count | End::Closed | End::Interrupted, _) => Ok(ExitCode::SUCCESS),
    }
}

/// Prints messages, and finishes each after it was written. `batch` has those not finished yet.
async fn print(
    args: &Args,
    consumers: &[Consuming],
    batch: &mut Vec<Message>,
) -> Result<End, String> {
    let mut stdout = tokio::io::stdout();
    let mut lines = Vec::new();
    let (mut delivered, mut printed, mut turn) = (0u64, 0u64, 0);
    loop {
        let mut next = Some(next_of(consumers, turn).await);
        while let Some((message, at)) = next {
            turn = at + 1;
            delivered += 1;
            if args.requeue_every.is_some_and(|every| delivered % every == 0) {
                let _ = message.requeue(Some(Span::from_millis(args.requeue_delay)));
            } else {
                if args.print_topic {
                    lines.extend_from_slice(consumers[at].topic.as_str().as_bytes());
                    lines.extend_from_slice(b" | ");
                }
                message.read(|body| lines.extend_from_slice(body));
                lines.push(b'\n');
                batch.push(message);
                printed += 1;
            }
            let is_full = batch.len() == BATCH || Some(printed) == args.count;
            next = if is_full { None } else { try_next_of(consumers, turn) };
        }
        // Does not block, so that heartbeats are answered while the output is not read.
        let written = async {
            stdout.write_all(&lines).await?;
            stdout.flush().await
        };
        match written.await {
            Ok(()) => {}
            Err(error) if is_closed(&error) => return Ok(End::Closed),
            Err(error) => return Err(cannot_print(&error)),
        }
        lines.clear();
        for message in batch.drain(..) {
            // A late message is delivered and printed again; the summary counts them.
            let _ = message.finish();
        }
        if Some(printed) == args.count {
            return Ok(End::Count);
        }
    }
}

/// Logs events. Returns, with the reason, only if no nsqd can be used.
async fn watch(args: &Args, consuming: &Consuming) -> String {
    let Consuming { topic, handle: consumer } = consuming;
    let mut nsqds: Vec<Nsqd> = (0..CONNECTIONS).map(|_| Nsqd::default()).collect();
    let mut lookupds = vec![String::new(); args.lookupd_http_address.len()];
    let mut was_connected = false;
    // The nsqds of which a redial cannot help, with the reasons.
    let mut hopeless: Vec<(Address, String)> = Vec::new();
    let mut reported_all = false;
    loop {
        match consumer.event().await {
            Event::Connection { index, event } => {
                let known = consumer.look(|consumer| {
                    let status = consumer.status(index)?;
                    Some((status.address.cloned(), status.detail.to_owned()))
                });
                let (address, detail) = known.flatten().unwrap_or_default();
                let nsqd = &mut nsqds[index];
                // If the nsqd is no longer listed, another one may have its slot already.
                let is_up = matches!(event, ConnectionEvent::Connected);
                if is_up || !nsqd.is_up {
                    nsqd.set_address(address);
                }
                let name = nsqd.address.as_ref().map(Address::to_string).unwrap_or_default();
                match event {
                    ConnectionEvent::Disconnected(Closed::Local) => {
                        info!("left nsqd {name}");
                        *nsqd = Nsqd::default();
                    }
                    ConnectionEvent::Disconnected(_) | ConnectionEvent::LeftOut(_) => {
                        let (why, left_out) = match event {
                            ConnectionEvent::LeftOut(fault) => (Closed::Fault(fault), true),
                            ConnectionEvent::Disconnected(why) => (why, false),
                            _ => continue,
                        };
                        let why_text = explain(why, nsqd.is_up, &detail);
                        nsqd.is_up = false;
                        let line = format!("nsqd {name}: {why_text}");
                        if (left_out || is_hopeless(why))
                            && let Some(address) = &nsqd.address
                            && !hopeless.iter().any(|(known, _)| known == address)
                        {
                            hopeless.push((address.clone(), line.clone()));
                        }
                        let is_in = |given| hopeless.iter().any(|(known, _)| known == given);
                        let all = args.nsqd_tcp_address.iter().all(is_in);
                        if !was_connected && lookupds.is_empty() && all {
                            let lines: Vec<_> = hopeless.into_iter().map(|(_, why)| why).collect();
                            return lines.join("; ");
                        }
                        if !nsqd.reported.contains(&line) {
                            if left_out {
                                warn!("{line}; it is left out, and retried in 5 minutes");
                            } else {
                                warn!("{line}; trying again");
                            }
                            nsqd.reported.push(line);
                        }
                        // An nsqlookupd may list others later.
                        if left_out && !reported_all && are_all(&hopeless, consumer) {
                            warn!("all nsqds refuse for good; waiting for others to be listed");
                            reported_all = true;
                        }
                    }
                    _ => {
                        info!("connected to nsqd {name}");
                        was_connected = true;
                        hopeless.clear();
                        reported_all = false;
                        nsqd.is_up = true;
                        nsqd.reported.clear();
                    }
                }
            }
            Event::Lookupd { index, event } => {
                let address = &args.lookupd_http_address[index];
                let topic = topic.as_str();
                let line = match event {
                    LookupdEvent::Answered { producers } => {
                        let unusable = consumer
                            .look(|consumer| Some(consumer.lookupd_status(index)?.unusable))
                            .flatten()
                            .unwrap_or_default();
                        let mut line =
                            format!("nsqlookupd {address} lists {producers} nsqd for {topic}");
                        if unusable > 0 {
                            line.push_str(&format!(", {unusable} of them with a bad address"));
                        }
                        line
                    }
                    LookupdEvent::Failed(why) => {
                        format!("nsqlookupd {address}: {}", explain_answer(why))
                    }
                    _ => continue,
                };
                if lookupds[index] != line {
                    match event {
                        LookupdEvent::Failed(_) => warn!("{line}; trying again"),
                        _ => info!("{line}"),
                    }
                    lookupds[index] = line;
                }
            }
            Event::Unusable { index } => {
                let line = consumer.look(|consumer| {
                    let bad = consumer.unusable(index)?;
                    let address = args.lookupd_http_address.get(bad.lookupd)?;
                    Some(format!("nsqlookupd {address} lists {}", unusable(&bad)))
                });
                if let Some(line) = line.flatten() {
                    warn!("{line}");
                }
            }
            _ => {}
        }
    }
}

/// Returns whether every listed nsqd is in `hopeless`.
fn are_all(hopeless: &[(Address, String)], consumer: &Handle) -> bool {
    let others = consumer.look(|consumer| {
        let mut listed = (0..CONNECTIONS).filter_map(|index| consumer.status(index)?.address);
        let is_in = |listed| hopeless.iter().any(|(known, _)| known == listed);
        consumer.unserved() > 0 || listed.any(|listed| !is_in(listed))
    });
    others == Some(false)
}

/// Describes a producer with an invalid address, as it is listed.
fn unusable(bad: &Unusable<'_>) -> String {
    let port = match bad.port {
        Some(i32::MAX) => format!("{} or above", i32::MAX),
        Some(port) => port.to_string(),
        None => "none".to_owned(),
    };
    let Unusable { host, why, .. } = bad;
    format!("an nsqd that cannot be used, broadcast_address \"{host}\", tcp_port {port}: {why}")
}

/// The nsqd of a connection.
#[derive(Debug, Default)]
struct Nsqd {
    address: Option<Address>,
    is_up: bool,
    /// The lines logged since it was last connected.
    reported: Vec<String>,
}

impl Nsqd {
    fn set_address(&mut self, address: Option<Address>) {
        if address.is_some() && self.address != address {
            *self = Self { address, ..Self::default() };
        }
    }
}

/// Describes what the consumers of all topics did.
fn summary(counters: &[Counters], seconds: f64) -> String {
    let sum = |of: fn(&Counters) -> u64| counters.iter().map(of).sum::<u64>();
    let finished = sum(|it| it.finished);
    let rate = finished as f64 / seconds.max(1e-3);
    let mut text = format!(
        "{} received, {finished} finished, {} requeued, {} too late; {seconds:.1} s, {rate:.0}/s, \
         {} connections",
        sum(|it| it.received),
        sum(|it| it.requeued),
        sum(|it| it.late.into()),
        sum(|it| it.connections.into()),
    );
    for (count, what) in [
        (sum(|it| it.too_large.into()), "longer than 8 MiB, skipped"),
        (sum(|it| it.no_room.into()), "put off for want of room"),
    ] {
        if count > 0 {
            text.push_str(&format!("; {count} {what}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_names_only_failures_that_happened() {
        let mut counters = Counters::default();
        counters.received = 10;
        counters.finished = 9;
        counters.requeued = 1;
        counters.connections = 2;
        let text = "10 received, 9 finished, 1 requeued, 0 too late; 3.0 s, 3/s, 2 connections";
        assert_eq!(summary(&[counters], 3.0), text);
        counters.too_large = 2;
        let more = summary(&[counters, counters], 3.0);
        let sum = "20 received, 18 finished, 2 requeued, 0 too late; 3.0 s, 6/s, 4 connections";
        assert_eq!(more, format!("{sum}; 4 longer than 8 MiB, skipped"));
    }
}
