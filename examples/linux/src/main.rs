//! The nanonsq desktop program.

// These macros panic if standard output or error fails: use `output` instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod flags;
mod input;
mod lookupd;
mod nsqd;
mod output;
mod progress;
mod publisher;
mod report;
mod signals;
mod subscribe;
mod system;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// NSQ in bounded memory, on a desktop.
///
/// Without a command: a demo with a directory, two nodes and a consumer in one process.
#[derive(Debug, Parser)]
#[command(name = "nanonsq", version, args_conflicts_with_subcommands = true,
    allow_negative_numbers = true, after_help = help())]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    demo: demo::Args,
}

/// Returns the end of the demo's help.
fn help() -> String {
    output::help(
        "0 if no reading was lost, else 1; 2 for invalid flags. Commands have their own",
        &[("seconds of --for", flags::SECONDS_MAX)],
        "",
    )
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish lines, or fixed-size records, to a topic.
    Pub(publisher::Args),
    /// Consume a topic, and print its messages.
    Sub(subscribe::Args),
    /// Be a small nsqd, in bounded memory.
    #[command(visible_alias = "nsqd")]
    Node(nsqd::Args),
    /// Be a small nsqlookupd, in bounded memory.
    #[command(visible_alias = "nsqlookupd")]
    Lookupd(lookupd::Args),
}

/// The stack of the one thread. Futures are made on it before they are moved to where they stay,
/// without optimization several times: 4 MiB of a node's are used so, 1 MiB with it.
const STACK: usize = 32 << 20;

fn main() -> ExitCode {
    output::start_log();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(usage) => return output::usage(&usage),
    };
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || run(&cli));
    let status = match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(status)) => status,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(format!("no thread: {error}")),
    };
    status.unwrap_or_else(|message| {
        output::say(format_args!("error: {message}"));
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            // Boxed, so that the future of one command is not as large as the largest.
            let status = runtime.block_on(async {
                match &cli.command {
                    None => Box::pin(demo::run(&cli.demo)).await,
                    Some(Command::Pub(args)) => Box::pin(publisher::run(args)).await,
                    Some(Command::Sub(args)) => Box::pin(subscribe::run(args)).await,
                    Some(Command::Node(args)) => Box::pin(nsqd::run(args)).await,
                    Some(Command::Lookupd(args)) => Box::pin(lookupd::run(args)).await,
                }
            });
            // Do not wait for names that are still being resolved.
            runtime.shutdown_background();
            status
        }
        Err(error) => Err(format!("no async runtime: {error}")),
    }
}
