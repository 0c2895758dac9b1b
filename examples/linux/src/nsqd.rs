//! `nanonsq node`: a small nsqd.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use embassy_futures::join::{join, join3};
use embassy_futures::select::{Either4, select4};
use log::{debug, info, warn};
use nanonsq_core::address::{Address, HOST_MAX};
use nanonsq_core::drive::nsqd::{self, Dialers, Resources, Settings, SettingsError};
use nanonsq_core::drive::{Gathered, Port, Ports};
use nanonsq_core::name::NAME_MAX;
use nanonsq_core::nsqd::{
    ClientEvent, Config, ConfigError, Event, Full, HttpConfig, LANES_MAX, Limits, Nsqd, TableFull,
};
use nanonsq_core::registration::{self, NodeInfo};
use nanonsq_core::session::Closed;
use nanonsq_std::{NoopRawMutex, TcpDialer, TokioSleep};

use crate::flags::{GoDuration, Listen, broadcast};
use crate::output;
use crate::report::{watch_in_flight, watch_lookups, watch_turned_away};
use crate::signals::{self, interrupts};
use crate::system::{
    Once, buffers, hostname, lend, listening, memory, notify, open_files, port, seed, unix_time,
};

/// Sizes of the tables.
const TOPICS: usize = 1000;
const CHANNELS: usize = 4000;
const CLIENTS: usize = 1000;
const HTTP: usize = 64;
const IN_FLIGHT: usize = 2500;
const PEERS: usize = registration::PEERS_MAX;

/// Bytes of the read and the write buffer of each connection.
const RX: usize = 4096;
const TX: usize = 4096;

fn help() -> String {
    output::help(
        "0 after a signal; 1 if it cannot start; 2 for invalid flags",
        &[
            ("topics, for --max-topics", TOPICS as u64),
            ("channels of all topics, for --max-channels", CHANNELS as u64),
            ("channels of a topic, for --channels-per-topic", LANES_MAX as u64),
            ("clients, for --max-clients", CLIENTS as u64),
            ("HTTP connections", HTTP as u64),
            ("messages in flight in a channel", IN_FLIGHT as u64),
            ("nsqlookupds", PEERS as u64),
            ("bytes of a topic's or channel's name", NAME_MAX as u64),
            ("bytes of a host", HOST_MAX as u64),
            ("milliseconds of a duration", u32::MAX.into()),
        ],
        "nanonsq node --lookupd-tcp-address 127.0.0.1:4160 --broadcast-address 127.0.0.1",
    )
}

#[derive(Debug, clap::Args)]
#[command(after_help = help(), allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Address to listen on for clients, as host:port; port 0 is any free port.
    #[arg(long, value_name = "ADDRESS", default_value = ":4150")]
    tcp_address: Listen,

    /// Address to listen on for HTTP, as host:port.
    #[arg(long, value_name = "ADDRESS", default_value = ":4151")]
    http_address: Listen,

    /// Host to announce to nsqlookupds [default: this machine's name].
    #[arg(long, value_name = "HOST")]
    broadcast_address: Option<String>,

    /// TCP port to announce to nsqlookupds [default: the one listened on].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    broadcast_tcp_port: Option<u16>,

    /// HTTP port to announce to nsqlookupds [default: the one listened on].
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    broadcast_http_port: Option<u16>,

    /// nsqlookupd to register with, as host:port; repeatable.
    #[arg(long, value_name = "ADDRESS")]
    lookupd_tcp_address: Vec<Address>,

    /// Memory for messages, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 64 << 20)]
    mem: usize,

    /// When --mem is full, drop the oldest messages instead of letting producers wait.
    #[arg(long)]
    drop_oldest: bool,

    /// Share of --mem, in percent, for messages that producers have begun to send; also the bound
    /// of the longest message and batch. Further producers wait.
    #[arg(long, value_name = "PERCENT", default_value_t = 30,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    max_announced: u8,

    /// Time limit for each KiB of a message, and for the rest at its end.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "5s")]
    body_timeout: GoDuration,

    /// Share of --mem, in percent, for all topics without a finished message in the last minute, of
    /// which one topic can take 7/8; 100 sets no bound. Not with --drop-oldest.
    #[arg(long, value_name = "PERCENT", default_value_t = 50,
        value_parser = clap::value_parser!(u8).range(1..=100))]
    max_unconsumed: u8,

    /// Age from which messages in topics without a channel may be dropped, the oldest first, when
    /// others need their memory; 0 keeps them. Not with --drop-oldest.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "5m")]
    unconsumed_age: GoDuration,

    /// Most topics, 1 to 1000.
    #[arg(long, value_name = "N", default_value_t = TOPICS as u16,
        value_parser = clap::value_parser!(u16).range(1..=TOPICS as i64))]
    max_topics: u16,

    /// Most channels of all topics together, 1 to 4000.
    #[arg(long, value_name = "N", default_value_t = CHANNELS as u16,
        value_parser = clap::value_parser!(u16).range(1..=CHANNELS as i64))]
    max_channels: u16,

    /// Most clients at a time, 1 to 1000; further ones are turned away.
    #[arg(long, value_name = "N", default_value_t = CLIENTS as u16,
        value_parser = clap::value_parser!(u16).range(1..=CLIENTS as i64))]
    max_clients: u16,

    /// Most channels of a topic. Each costs 15 bytes of every message.
    #[arg(long, value_name = "N", default_value_t = 8,
        value_parser = clap::value_parser!(u8).range(1..=LANES_MAX as i64))]
    channels_per_topic: u8,

    /// Longest message, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 1 << 20,
        value_parser = clap::value_parser!(u32).range(1..))]
    max_msg_size: u32,

    /// Longest body of a command, in bytes.
    #[arg(long, value_name = "BYTES", default_value_t = 5 << 20,
        value_parser = clap::value_parser!(u32).range(1..))]
    max_body_size: u32,

    /// Time before a message without an answer is delivered again, unless the client sets one.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "60s")]
    msg_timeout: GoDuration,

    /// Longest time that a client may keep a message.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "15m")]
    max_msg_timeout: GoDuration,

    /// Longest delay of a requeued or deferred message.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "1h")]
    max_req_timeout: GoDuration,

    /// Longest interval of heartbeats that a client may request.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "60s")]
    max_heartbeat_interval: GoDuration,

    /// Most messages in flight that a client may request.
    #[arg(long, value_name = "N", default_value_t = IN_FLIGHT as u32,
        value_parser = clap::value_parser!(u32).range(1..=IN_FLIGHT as i64))]
    max_rdy_count: u32,
}

impl Args {
    fn config(&self, seed: u32) -> Config<'static> {
        let default = Config::new();
        Config {
            limits: Limits {
                max_msg_size: self.max_msg_size,
                max_body_size: self.max_body_size,
                max_rdy_count: self.max_rdy_count,
                max_req_timeout_ms: self.max_req_timeout.0.as_millis(),
                max_msg_timeout_ms: self.max_msg_timeout.0.as_millis(),
                max_heartbeat_interval_ms: self.max_heartbeat_interval.0.as_millis(),
                ..Limits::NSQD
            },
            heartbeat: default.heartbeat.min(self.max_heartbeat_interval.0),
            msg_timeout: self.msg_timeout.0,
            full: if self.drop_oldest { Full::DropOldest } else { Full::Refuse },
            // No reserve: the program itself publishes nothing.
            reserve_percent: 0,
            announced_percent: self.max_announced,
            body_timeout: self.body_timeout.0,
            unconsumed_percent: self.max_unconsumed,
            unconsumed_age: self.unconsumed_age.0,
            max_topics: self.max_topics,
            max_channels: self.max_channels,
            max_clients: self.max_clients,
            channels_per_topic: self.channels_per_topic,
            boot: seed,
            seed,
            ..default
        }
    }
}

type Tables =
    Resources<'static, NoopRawMutex, TOPICS, CHANNELS, CLIENTS, IN_FLIGHT, HTTP, PEERS, RX>;

/// All zeros, so that the system gives their memory page by page, as it is used.
static TABLES: Once<Tables> = Once::new(Tables::new());

/// Describes an error with the flag that causes it.
fn explain(error: SettingsError) -> String {
    match error {
        SettingsError::Nsqd(why @ ConfigError::MsgTimeout { .. }) => {
            format!("--msg-timeout: {why}, --max-msg-timeout")
        }
        SettingsError::Nsqd(why @ ConfigError::Heartbeat { .. }) => {
            format!("--max-heartbeat-interval: {why}")
        }
        SettingsError::Nsqd(why @ ConfigError::ReqTimeout { .. }) => {
            format!("--max-req-timeout: {why}")
        }
        SettingsError::Nsqd(why @ ConfigError::BodyTimeout) => format!("--body-timeout: {why}"),
        SettingsError::Nsqd(why @ ConfigError::StoreTooSmall { .. }) => format!("--mem: {why}"),
        other => other.to_string(),
    }
}

/// Runs until Ctrl-C.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, String> {
    open_files();
    let hostname = lend(hostname());
    let broadcast_address = lend(broadcast(args.broadcast_address.as_deref(), hostname)?);
    let tcp = args.tcp_address.bind().await?;
    let http = args.http_address.bind().await?;
    let (tcp_port, http_port) = (port(&tcp)?, port(&http)?);
    // One for each connection, and one for each port's caller that is turned away.
    let mut buffer = buffers(CLIENTS + HTTP + 2, TX);

    let seed = seed();
    let config = lend(args.config(seed));
    let info = NodeInfo {
        broadcast_address,
        hostname,
        tcp_port: args.broadcast_tcp_port.unwrap_or(tcp_port),
        http_port: args.broadcast_http_port.unwrap_or(http_port),
        version: config.version,
        ..NodeInfo::default()
    };
    let http_config = lend(HttpConfig {
        broadcast_address,
        hostname,
        tcp_port: info.tcp_port,
        http_port: info.http_port,
        ..HttpConfig::new()
    });
    let lookup_config = lend(registration::Config { seed, ..registration::Config::new(info) });
    let store = memory("--mem", args.mem)?.leak();
    let (node, mut runner) = nsqd::new(
        TABLES.take(),
        Settings {
            node: config,
            http: http_config,
            lookup: lookup_config,
            lookupds: lend(args.lookupd_tcp_address.clone()),
        },
        store,
        Ports {
            tcp: Port::new(|| Gathered::new(tcp.clone(), buffer())),
            http: Port::new(|| Gathered::new(http.clone(), buffer())),
        },
        Dialers { lookupds: [TcpDialer::new(); PEERS], channels: Some(TcpDialer::new()) },
        TokioSleep::new(),
    )
    .map_err(explain)?;
    node.set_unix_time(unix_time());
    signals::catch();
    listening("TCP", &tcp)?;
    listening("HTTP", &http)?;
    notify("READY=1");

    let registration = runner.lookup();
    let stop = async {
        interrupts(1).await;
        notify("STOPPING=1");
        info!("stopping: leaving nsqlookupds, closing connections");
        node.stop().await;
    };
    let watching = join3(
        watch_clients(&node, config),
        watch_lookups(&registration),
        join(
            watch_turned_away(
                [("clients", args.max_clients.into()), ("HTTP connections", HTTP)],
                || {
                    let http = node.turned_away_http();
                    [node.turned_away().saturating_sub(http), http]
                },
            ),
            watch_in_flight(IN_FLIGHT, |visit| {
                let _ = node.look(|node| {
                    let topics = node.topics();
                    topics.for_each(|topic| node.channels(topic.name).for_each(|c| visit(&c)));
                });
            }),
        ),
    );
    let background = Box::pin(runner.run());
    match select4(stop, background, watching, interrupts(2)).await {
        Either4::First(()) => {}
        Either4::Second(never) => never,
        Either4::Third((never, ..)) => match never {},
        Either4::Fourth(()) => return Err("interrupted again: stopped at once".to_owned()),
    }
    if let Some(left @ 1..) = node.look(|node| left(node)) {
        warn!("unfinished messages, which were in memory only: {left}");
    }
    let counters = node.counters();
    output::summary(format_args!(
        "{} messages taken, {} delivered, {} finished, {} requeued, {} timed out, {} dropped; \
         {} connections, {} turned away",
        counters.accepted,
        counters.delivered,
        counters.finished,
        counters.requeued,
        counters.timed_out,
        counters.dropped.saturating_add(counters.expired),
        counters.connections,
        node.turned_away(),
    ));
    Ok(ExitCode::SUCCESS)
}

/// Returns the number of messages in topics without a channel, plus those that each channel has not
/// finished.
fn left(node: &Nsqd<'_>) -> u32 {
    let of_channels = |topic| {
        node.channels(topic).map(|channel| channel.depth + channel.in_flight + channel.deferred)
    };
    node.topics().map(|topic| topic.depth + of_channels(topic.name).sum::<u32>()).sum()
}

type Handle<'a> = nsqd::Handle<'a, NoopRawMutex, TokioSleep>;

/// Time before a full table is logged again.
const FULL_AGAIN: Duration = Duration::from_secs(60);

/// Describes a full table with its limit.
fn explain_full(full: TableFull, config: &Config<'_>) -> String {
    let (count, what) = match full {
        TableFull::Topics => (config.max_topics, "topics are in use (--max-topics)"),
        TableFull::Channels => (config.max_channels, "channels are in use (--max-channels)"),
        TableFull::ChannelsOfTopic => {
            let count = config.channels_per_topic.into();
            (count, "channels of a topic are in use (--channels-per-topic)")
        }
    };
    format!("all {count} {what}")
}

/// Logs connections of clients, dropped messages and full tables. Never returns.
async fn watch_clients(node: &Handle<'_>, config: &Config<'_>) -> std::convert::Infallible {
    let mut reported: Vec<(TableFull, Instant)> = Vec::new();
    let mut abandoned = 0;
    loop {
        match node.event().await {
            Event::TableFull(full) => {
                reported.retain(|(_, when)| when.elapsed() < FULL_AGAIN);
                if reported.iter().any(|(other, _)| *other == full) {
                    continue;
                }
                reported.push((full, Instant::now()));
                let why = explain_full(full, config);
                warn!("table full: {why}: a new one was refused");
            }
            Event::Dropped { .. } => {
                let all = node.counters().abandoned;
                if all > abandoned {
                    warn!(
                        "messages dropped with channels that delivered nothing and had no client \
                         for 60 s, whose room was needed: {}",
                        all - abandoned
                    );
                    abandoned = all;
                }
            }
            Event::Expired { count } => {
                warn!(
                    "messages dropped that waited in a topic without a channel for {}, whose room \
                     was needed: {count}",
                    node.look(|node| node.config().unconsumed_age).unwrap_or_default()
                );
            }
            Event::Client { index, event } => match event {
                ClientEvent::Connected => debug!("client {index}: connected"),
                ClientEvent::Disconnected(Closed::Peer) => debug!("client {index}: left"),
                ClientEvent::Disconnected(why) => info!("client {index}: {why}"),
                _ => {}
            },
            Event::AskFailed { lookupd, why } => {
                warn!("nsqlookupd {lookupd}: lookup of the channels of a new topic: {why}");
            }
            _ => {}
        }
    }
}
