//! `nanonsq lookupd`: a small nsqlookupd.

use std::convert::Infallible;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use embassy_futures::join::join;
use embassy_futures::select::{Either4, select4};
use log::{info, warn};
use nanonsq_core::address::HOST_MAX;
use nanonsq_core::drive::nsqlookupd::{self, Resources};
use nanonsq_core::drive::{Gathered, Port, Ports};
use nanonsq_core::name::NAME_MAX;
use nanonsq_core::nsqlookupd::{Config, Event, IdentifyReply, TOMBSTONES, TableFull};
use nanonsq_core::session::Closed;
use nanonsq_std::{NoopRawMutex, TokioSleep};

use crate::flags::{GoDuration, Listen, broadcast};
use crate::output;
use crate::report::watch_turned_away;
use crate::signals::{self, interrupts};
use crate::system::{
    Once, buffers, hostname, lend, listening, notify, open_files, port, unix_time,
};

/// Sizes of the tables. Each of the `WORDS` has a bit for each of 32 nodes.
const NODES: usize = 1000;
const WORDS: usize = NODES.div_ceil(32);
const TOPICS: usize = 10_000;
const CHANNELS: usize = 20_000;
const HTTP: usize = 64;

/// Time before a full table is logged again.
const FULL_AGAIN: Duration = Duration::from_secs(60);

/// Bytes of the read and the write buffer of each connection.
const RX: usize = 1024;
const TX: usize = 4096;

fn help() -> String {
    output::help(
        "0 after a signal; 1 if it cannot start; 2 for invalid flags",
        &[
            ("nodes, for --max-nodes", NODES as u64),
            ("topics, for --max-topics", TOPICS as u64),
            ("channels of all topics, for --max-channels", CHANNELS as u64),
            ("tombstones", TOMBSTONES as u64),
            ("HTTP connections", HTTP as u64),
            ("bytes of a topic's or channel's name", NAME_MAX as u64),
            ("bytes of a host", HOST_MAX as u64),
            ("milliseconds of a duration", u32::MAX.into()),
        ],
        "nanonsq lookupd --tcp-address 127.0.0.1:4160 --http-address 127.0.0.1:4161",
    )
}

#[derive(Debug, clap::Args)]
#[command(after_help = help(), allow_negative_numbers = true)]
pub(crate) struct Args {
    /// Address to listen on for nodes, as host:port; port 0 is any free port.
    #[arg(long, value_name = "ADDRESS", default_value = ":4160")]
    tcp_address: Listen,

    /// Address to listen on for HTTP, as host:port.
    #[arg(long, value_name = "ADDRESS", default_value = ":4161")]
    http_address: Listen,

    /// Host to announce to nodes [default: this machine's name].
    #[arg(long, value_name = "HOST")]
    broadcast_address: Option<String>,

    /// Most nodes connected at a time, 1 to 1000; further ones are turned away.
    #[arg(long, value_name = "N", default_value_t = NODES as u16,
        value_parser = clap::value_parser!(u16).range(1..=NODES as i64))]
    max_nodes: u16,

    /// Most topics, 1 to 10000. One connection may create as many less --max-nodes: one is left for
    /// each other node.
    #[arg(long, value_name = "N", default_value_t = TOPICS as u16,
        value_parser = clap::value_parser!(u16).range(1..=TOPICS as i64))]
    max_topics: u16,

    /// Most channels of all topics together, 1 to 20000. One connection may create as many less
    /// --max-nodes.
    #[arg(long, value_name = "N", default_value_t = CHANNELS as u16,
        value_parser = clap::value_parser!(u16).range(1..=CHANNELS as i64))]
    max_channels: u16,

    /// How long a node is listed after its last command.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "5m")]
    inactive_producer_timeout: GoDuration,

    /// How long a tombstoned node is not listed.
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, default_value = "45s")]
    tombstone_lifetime: GoDuration,
}

type Tables = Resources<'static, NoopRawMutex, NODES, TOPICS, CHANNELS, HTTP, RX, WORDS>;

/// All zeros, so that the system gives their memory page by page, as it is used.
static TABLES: Once<Tables> = Once::new(Tables::new());

/// Runs until Ctrl-C.
pub(crate) async fn run(args: &Args) -> Result<ExitCode, String> {
    open_files();
    let hostname = lend(hostname());
    let broadcast_address = lend(broadcast(args.broadcast_address.as_deref(), hostname)?);
    let tcp = args.tcp_address.bind().await?;
    let http = args.http_address.bind().await?;
    let (tcp_port, http_port) = (port(&tcp)?, port(&http)?);
    // One for each connection, and one for each port's caller that is turned away.
    let mut buffer = buffers(NODES + HTTP + 2, TX);

    let mut config = Config::new();
    config.info = IdentifyReply { broadcast_address, hostname, tcp_port, http_port, ..config.info };
    config.inactive_timeout = args.inactive_producer_timeout.0;
    config.tombstone_lifetime = args.tombstone_lifetime.0;
    config.max_nodes = args.max_nodes;
    config.max_topics = args.max_topics;
    config.max_channels = args.max_channels;
    config.topics_per_node = args.max_topics.saturating_sub(args.max_nodes).max(1);
    config.channels_per_node = args.max_channels.saturating_sub(args.max_nodes).max(1);
    let config = lend(config);
    let (directory, mut runner) = nsqlookupd::new(
        TABLES.take(),
        config,
        Ports {
            tcp: Port::new(|| Gathered::new(tcp.clone(), buffer())),
            http: Port::new(|| Gathered::new(http.clone(), buffer())),
        },
        TokioSleep::new(),
    );
    directory.set_unix_time(unix_time());
    signals::catch();
    listening("TCP", &tcp)?;
    listening("HTTP", &http)?;
    notify("READY=1");

    let stop = async {
        interrupts(1).await;
        notify("STOPPING=1");
        info!("stopping: closing connections");
        directory.stop().await;
    };
    let background = Box::pin(runner.run());
    let turned_away =
        watch_turned_away([("nodes", args.max_nodes.into()), ("HTTP connections", HTTP)], || {
            let http = directory.turned_away_http();
            [directory.turned_away().saturating_sub(http), http]
        });
    let watching = join(watch(&directory, config), turned_away);
    match select4(stop, background, watching, interrupts(2)).await {
        Either4::First(()) => {}
        Either4::Second(never) => never,
        Either4::Third((never, _)) => match never {},
        Either4::Fourth(()) => return Err("interrupted again: stopped at once".to_owned()),
    }
    let counters = directory.counters();
    output::summary(format_args!(
        "{} nodes registered, {} refused, {} timed out; {} HTTP requests, {} refused; {} without room; {} \
         callers turned away",
        counters.identified,
        counters.refused,
        counters.timed_out,
        counters.requests,
        counters.requests_refused,
        counters.full,
        directory.turned_away(),
    ));
    Ok(ExitCode::SUCCESS)
}

pub(crate) type Handle<'a> = nsqlookupd::Handle<'a, NoopRawMutex, TokioSleep>;

/// Logs nodes that register and leave, and full tables. Never returns.
async fn watch(directory: &Handle<'_>, config: &Config<'_>) -> Infallible {
    let mut names = vec![String::new(); NODES];
    let mut reported = Vec::<(TableFull, Instant)>::new();
    loop {
        match directory.event().await {
            Event::Identified { index, listed } => {
                let name = directory.look(|directory| {
                    let node = directory.producer(index)?.node;
                    Some(format!("{}:{}", node.broadcast_address, node.tcp_port))
                });
                names[index] = name.flatten().unwrap_or_default();
                let more = if listed { " on one more connection" } else { "" };
                info!("node {} registered{more}", names[index]);
            }
            Event::Left { index, why, listed } => {
                let name = std::mem::take(&mut names[index]);
                let more = if listed { "; it is listed by another connection" } else { "" };
                match why {
                    Closed::Peer => info!("node {name} left{more}"),
                    Closed::Local => info!("node {name} has connected again"),
                    why => warn!("node {name}: {why}{more}"),
                }
            }
            Event::TableFull(full) => {
                reported.retain(|(_, at)| at.elapsed() < FULL_AGAIN);
                if !reported.iter().any(|(is, _)| *is == full) {
                    reported.push((full, Instant::now()));
                    warn!("table full: {}: a new one was refused", explain(full, config));
                }
            }
            _ => {}
        }
    }
}

/// Describes a full table with its limit.
fn explain(full: TableFull, config: &Config<'_>) -> String {
    let registered = "by connected nodes";
    match full {
        TableFull::Topics => {
            format!("all {} topics (--max-topics) are registered {registered}", config.max_topics)
        }
        TableFull::Channels => {
            let count = config.max_channels;
            format!("all {count} channels (--max-channels) are registered {registered}")
        }
        TableFull::Tombstones => {
            format!("all {TOMBSTONES} tombstones, each for --tombstone-lifetime, are in use")
        }
        TableFull::Share => format!(
            "all {} topics or {} channels that one node's connection may make are made",
            config.topics_per_node, config.channels_per_node
        ),
    }
}
