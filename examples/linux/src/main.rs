//! The nanonsq desktop program.

// These macros panic if standard output or error fails: use `output` instead.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod demo;
mod flags;
mod generate;
mod input;
mod lookupd;
mod not_here;
mod nsqd;
mod output;
mod progress;
mod publisher;
mod report;
mod settings;
mod signals;
mod subscribe;
mod system;
mod topics;
mod view;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// What follows the commands in the help.
const START: &str = "\
Start here:
  nanonsq demo             see all of it at work, in one process
  nanonsq COMMAND --help   flags, bounds and exit status of a command";

/// NSQ in bounded memory, on a desktop.
#[derive(Debug, Parser)]
#[command(name = "nanonsq", version, propagate_version = true, arg_required_else_help = true,
    after_help = START)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    common: settings::Common,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show a directory, two nodes and a consumer at work, in one process.
    Demo(demo::Args),
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
    /// Print completions for a shell.
    #[command(hide = true)]
    Completions(generate::Completions),
    /// Write man pages.
    #[command(hide = true)]
    Man(generate::Man),
}

/// The stack of the one thread. Futures are made on it before they are moved to where they stay,
/// without optimization several times: 4 MiB of a node's are used so, 1 MiB with it.
const STACK: usize = 32 << 20;

fn main() -> ExitCode {
    let args = std::env::args_os().collect();
    let cli: Cli = match settings::parse(args, |name| std::env::var_os(name)) {
        Ok(cli) => cli,
        Err(usage) => return output::usage(&usage),
    };
    output::start_log(cli.common.level(), cli.common.quiet);
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(move || run(&cli));
    let status = match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(status)) => status,
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => Err(format!("no thread: {error}")),
    };
    status.unwrap_or_else(|message| {
        output::fail(&message);
        signals::failure()
    })
}

fn run(cli: &Cli) -> Result<ExitCode, String> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            // Boxed, so that the future of one command is not as large as the largest.
            let status = runtime.block_on(async {
                match &cli.command {
                    Command::Demo(args) => Box::pin(demo::run(args)).await,
                    Command::Pub(args) => Box::pin(publisher::run(args)).await,
                    Command::Sub(args) => Box::pin(subscribe::run(args)).await,
                    Command::Node(args) => Box::pin(nsqd::run(args)).await,
                    Command::Lookupd(args) => Box::pin(lookupd::run(args)).await,
                    Command::Completions(args) => generate::completions(args, Cli::command()),
                    Command::Man(args) => generate::man(args, Cli::command()),
                }
            });
            // Do not wait for names that are still being resolved.
            runtime.shutdown_background();
            status
        }
        Err(error) => Err(format!("no async runtime: {error}")),
    }
}
