//! `cargo xtask demo`: publishes lines with `nanonsq pub` to real servers on this machine, restarts
//! nsqd meanwhile, and shows with nsq_tail that all lines arrived.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use clap::Args;
use nanonsq_tests::{Nsqd, Nsqlookupd, Peers, ServerOptions, Tool, peers};
use tokio::time::sleep;

use crate::project;

const TOPIC: &str = "readings";

#[derive(Args)]
pub(crate) struct Options {
    /// Number of lines to publish.
    #[arg(long, default_value_t = 300)]
    lines: u32,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    crate::peers::run(&crate::peers::Options::default())?;
    let manifest = project::root().join("examples/linux/Cargo.toml");
    let program = project::build_release(&manifest, "nanonsq", None)?;
    let peers = peers::find().map_err(|missing| anyhow::anyhow!("{missing}"))?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(show(options, &peers, &program))
}

async fn show(options: &Options, peers: &Peers, program: &std::path::Path) -> Result<()> {
    let lookupd = Nsqlookupd::start(peers, ServerOptions::new()).await;
    let mut nsqd = Nsqd::start(peers, ServerOptions::new()).await;
    println!("\nnsqlookupd on {}, nsqd on {}", lookupd.tcp_address(), nsqd.tcp_address());
    let args = [
        "pub".to_owned(),
        format!("--topic={TOPIC}"),
        format!("--nsqd-tcp-address={}", nsqd.tcp_address()),
        format!("--lookupd-tcp-address={}", lookupd.tcp_address()),
        "--broadcast-address=127.0.0.1".to_owned(),
        format!("--broadcast-tcp-port={}", nsqd.tcp_address().port()),
        format!("--broadcast-http-port={}", nsqd.http_address().port()),
    ];
    println!("$ seq {} | nanonsq {}", options.lines, args.join(" "));
    let mut publishing = Tool::start(program, &args);
    let mut input = publishing.stdin();
    for line in 1..=options.lines {
        writeln!(input, "{line}")?;
        sleep(Duration::from_millis(10)).await;
        if line == options.lines / 3 {
            println!("nsqlookupd lists {TOPIC} at {:?}", lookupd.lookup(TOPIC).await);
        }
        if line == options.lines / 2 {
            println!("restarting nsqd ...");
            nsqd.restart().await;
        }
    }
    drop(input);
    let status = publishing.wait(Duration::from_secs(60)).await;
    print!("{}", publishing.stderr());
    ensure!(status.success(), "nanonsq pub: {status}");
    println!("nsqlookupd lists {TOPIC} at {:?} now", lookupd.lookup(TOPIC).await);

    println!("$ nsq_tail --topic={TOPIC}");
    let mut tail = Tool::start(
        peers.program("nsq_tail"),
        [
            format!("--topic={TOPIC}"),
            "--channel=demo".to_owned(),
            format!("--n={}", options.lines),
            format!("--nsqd-tcp-address={}", nsqd.tcp_address()),
        ],
    );
    let status = tail.wait(Duration::from_secs(60)).await;
    ensure!(status.success(), "nsq_tail: {status}");
    let arrived = tail.stdout();
    let mut numbers: Vec<u32> = arrived.lines().filter_map(|line| line.parse().ok()).collect();
    numbers.sort_unstable();
    numbers.dedup();
    println!("{} ... {}", head(&arrived), arrived.lines().next_back().unwrap_or_default());
    ensure!(
        numbers.iter().copied().eq(1..=options.lines),
        "{} of {} lines arrived",
        numbers.len(),
        options.lines
    );
    println!("all {} lines arrived, across the restart", options.lines);
    Ok(())
}

fn head(text: &str) -> String {
    text.lines().take(5).collect::<Vec<_>>().join(" ")
}
