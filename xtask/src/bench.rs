//! `cargo xtask bench`: publishing and consuming rates of nanonsq, go-nsq and tokio-nsq against the
//! same real nsqd.
//!
//! To be comparable, each measurement gets a fresh nsqd. Published messages go to an ephemeral
//! topic without a channel, in an nsqd without a memory queue, so that each message takes the same
//! path: checked, counted, acknowledged, dropped. Nothing is written to disk and nothing piles up.
//! Afterwards nsqd must have counted exactly the messages that the client reports as acknowledged.
//! Messages to consume are in nsqd's memory before the client starts, and afterwards each must have
//! been delivered once and finished. Rounds are interleaved, so that a slow moment of the machine
//! affects all clients, and the median counts.
//!
//! `cargo xtask bench --node`: the CPU time of our servers beside that of the real ones; see [`node`].

mod contender;
mod directory;
mod node;
mod nsqd;
mod raw;
mod server;
mod table;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use contender::Contender;
use nsqd::Nsqd;

/// The client to which the ratios of the table refer.
const REFERENCE: &str = "go-nsq";

#[derive(Args)]
pub(crate) struct Options {
    /// One short round: shows that everything works, not how fast it is
    #[arg(long)]
    quick: bool,
    /// Compare the servers instead of the clients
    #[arg(long)]
    node: bool,
    /// Rounds [default: 3, of servers 5]
    #[arg(long)]
    rounds: Option<usize>,
    /// How long one measurement should take, at least 1
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Bytes per message
    #[arg(long, default_value_t = 200)]
    size: usize,
    /// Only clients, or rows of servers, whose name begins with this (and go-nsq); repeatable
    #[arg(long)]
    only: Vec<String>,
}

/// A way to publish.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    /// One message at a time, nsqd and client on one core.
    SyncOneCore,
    /// One message at a time.
    Sync,
    /// As fast as possible.
    Flood,
    /// Receiving and finishing messages as fast as possible.
    Consume,
}

impl Mode {
    const ALL: [Mode; 4] = [Mode::SyncOneCore, Mode::Sync, Mode::Flood, Mode::Consume];

    fn name(self) -> &'static str {
        match self {
            Mode::SyncOneCore => "sync, one core",
            Mode::Sync => "sync",
            Mode::Flood => "flood",
            Mode::Consume => "consume",
        }
    }

    /// Returns a command, confined to the first core in the mode for one core.
    fn command(self, program: &std::path::Path) -> Command {
        match self {
            Mode::SyncOneCore => {
                let mut command = Command::new("taskset");
                command.args(["-c", "0"]).arg(program);
                command
            }
            Mode::Sync | Mode::Flood | Mode::Consume => Command::new(program),
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.node {
        let rounds = if options.quick { 1 } else { options.rounds.unwrap_or(5) };
        return node::run(rounds, options.quick, &options.only);
    }
    let (rounds, seconds) =
        if options.quick { (1, 1.0) } else { (options.rounds.unwrap_or(3), options.seconds) };
    ensure!(rounds > 0 && options.size > 0, "numbers must be positive");
    ensure!(seconds >= 1.0, "in less than a second, a client's flush interval is all there is");
    let contenders = contender::build(&options.only)?;
    let mut modes = Mode::ALL.to_vec();
    if Command::new("taskset").arg("--version").output().is_err() {
        eprintln!("`taskset` (util-linux) was not found: skipping {:?}", Mode::SyncOneCore.name());
        modes.retain(|&mode| mode != Mode::SyncOneCore);
    }

    let mut counts = BTreeMap::new();
    let mut rates: BTreeMap<_, Vec<f64>> = BTreeMap::new();
    for round in 1..=rounds {
        for &mode in &modes {
            for (index, contender) in contenders.iter().enumerate() {
                let key = (index, mode);
                let Some(client_mode) = contender.client_mode(mode) else {
                    continue;
                };
                let count = match counts.get(&key) {
                    Some(&count) => count,
                    None => *counts.entry(key).or_insert(calibrate(
                        contender,
                        mode,
                        client_mode,
                        options,
                        seconds,
                    )?),
                };
                let result = measure(contender, mode, client_mode, count, options.size)?;
                eprintln!(
                    "round {round}/{rounds}  {:<15} {:<25} {:>10.0} msg/s  ({count} in {:.2} s)",
                    mode.name(),
                    contender.name,
                    result.rate,
                    result.seconds
                );
                rates.entry(key).or_default().push(result.rate);
            }
        }
    }
    print_table(&contenders, &modes, rates, options.size, rounds);
    Ok(())
}

/// Finds the number of messages that take about `seconds`, in growing steps, because a short run
/// measures mostly the warm-up.
fn calibrate(
    contender: &Contender,
    mode: Mode,
    client_mode: &str,
    options: &Options,
    seconds: f64,
) -> Result<u64> {
    // Filling nsqd takes time, and it keeps all messages in memory.
    let most = if mode == Mode::Consume { 1_000_000 } else { u64::MAX };
    // With less than a full window, only the first delivery would be measured.
    let mut count = if mode == Mode::Consume { 10_000 } else { 10 };
    for _ in 0..12 {
        let result = measure(contender, mode, client_mode, count, options.size)?;
        let factor = seconds / result.seconds;
        if factor <= 2.0 {
            return Ok(((count as f64 * factor).max(10.0) as u64).min(most));
        }
        if count == most {
            return Ok(count);
        }
        count = ((count as f64 * factor.min(10.0)) as u64).min(most);
    }
    bail!("{}: {count} messages in no time", contender.name);
}

/// Runs a client against a fresh nsqd.
fn measure(
    contender: &Contender,
    mode: Mode,
    client_mode: &str,
    count: u64,
    size: usize,
) -> Result<contender::Measurement> {
    const LIMIT: Duration = Duration::from_secs(120);
    let nsqd = Nsqd::start(mode)?;
    if mode == Mode::Consume {
        nsqd.fill(count, size).context("filling nsqd")?;
    }
    let result = contender.run(
        mode.command(&contender.program),
        &nsqd,
        client_mode,
        (count, size),
        LIMIT,
    )?;
    ensure!(
        result.messages >= count,
        "{} published {} of {count} messages",
        contender.name,
        result.messages
    );
    if mode == Mode::Consume {
        nsqd.expect_consumed().with_context(|| contender.name)?;
    }
    let counted = nsqd.message_count()?;
    ensure!(
        counted == result.messages,
        "{} says that {} messages were acknowledged, but nsqd has counted {counted}",
        contender.name,
        result.messages
    );
    Ok(result)
}

fn print_table(
    contenders: &[Contender],
    modes: &[Mode],
    mut rates: BTreeMap<(usize, Mode), Vec<f64>>,
    size: usize,
    rounds: usize,
) {
    rates.values_mut().for_each(|rates| rates.sort_by(f64::total_cmp));
    let median = |key| rates.get(&key).map(|rates| rates[rates.len() / 2]);
    let reference = contenders.iter().position(|contender| contender.name == REFERENCE);

    println!(
        "Messages of {size} bytes per second: median of {rounds}, its ratio to {REFERENCE}, range\n"
    );
    let row = |name: &str, cells: Vec<String>| {
        let cells: Vec<_> = cells.iter().map(|cell| format!(" {cell:>35} |")).collect();
        println!("| {name:<22} |{}", cells.concat());
    };
    row("client", modes.iter().map(|mode| mode.name().to_owned()).collect());
    println!("|:{:-<23}|{}", "", format!("{:-<36}:|", "").repeat(modes.len()));
    for (index, contender) in contenders.iter().enumerate() {
        let cell = |&mode: &Mode| {
            let (Some(rates), Some(rate)) = (rates.get(&(index, mode)), median((index, mode)))
            else {
                return String::new();
            };
            let ratio = reference
                .and_then(|reference| median((reference, mode)))
                .map_or_else(String::new, |reference| format!("{:.2} x", rate / reference));
            let range = format!("{:.0}..{:.0}", rates[0], rates[rates.len() - 1]);
            format!("{rate:.0}  {ratio:>7}  {range:>16}")
        };
        row(contender.name, modes.iter().map(cell).collect());
    }
}
