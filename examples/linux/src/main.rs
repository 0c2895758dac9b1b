//! The nanonsq desktop program.

mod demo;
mod flags;
mod input;
mod lookupd;
mod node;
mod progress;
mod publish;
mod report;
mod subscribe;
mod system;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// NSQ in bounded memory, on a desktop.
///
/// Without a command: a demo, a directory, two nodes and a consumer in one process.
#[derive(Debug, Parser)]
#[command(name = "nanonsq", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    demo: demo::Args,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish lines, or fixed-size records, to a topic.
    Pub(publish::Args),
    /// Consume a topic, and print its messages.
    Sub(subscribe::Args),
    /// Be a small nsqd, in bounded memory.
    Node(node::Args),
    /// Be a small nsqlookupd, in bounded memory.
    Lookupd(lookupd::Args),
}

/// The stack of the one thread. Tables are made on it before they are moved to where they stay: the
/// largest, a node's, have 16 MiB, and without optimization they are moved several times. What is
/// not used costs nothing.
const STACK: usize = 256 << 20;

fn main() -> ExitCode {
    let terminal = std::io::stderr().is_terminal();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("nanonsq=info"))
        .format(move |f, record| {
            // The progress line has no newline: clear it first.
            let clear = if terminal { progress::CLEAR } else { "" };
            writeln!(f, "{clear}{}: {}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
    let cli = Cli::parse();
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || run(&cli));
    let status = match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(status)) => status,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(format!("no thread: {error}")),
    };
    status.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let status = runtime.block_on(async {
                match &cli.command {
                    None => demo::run(&cli.demo).await,
                    Some(Command::Pub(args)) => publish::run(args).await,
                    Some(Command::Sub(args)) => subscribe::run(args).await,
                    Some(Command::Node(args)) => node::run(args).await,
                    Some(Command::Lookupd(args)) => lookupd::run(args).await,
                }
            });
            // A name that is still being resolved must not hold up the end.
            runtime.shutdown_background();
            status
        }
        Err(error) => Err(format!("no async runtime: {error}")),
    }
}
