//! The nanonsq desktop program.

mod input;
mod progress;
mod publish;
mod report;
mod subscribe;
mod system;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// NSQ in bounded memory, on a desktop.
#[derive(Debug, Parser)]
#[command(name = "nanonsq", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Publish lines, or fixed-size records, to a topic.
    Pub(publish::Args),
    /// Consume a topic, and print its messages.
    Sub(subscribe::Args),
}

fn main() -> ExitCode {
    let terminal = std::io::stderr().is_terminal();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("nanonsq=info"))
        .format(move |f, record| {
            // The progress line has no newline: clear it first.
            let clear = if terminal { progress::CLEAR } else { "" };
            writeln!(f, "{clear}{}: {}", record.level().as_str().to_lowercase(), record.args())
        })
        .init();
    let command = Cli::parse().command;
    let status = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            let status = runtime.block_on(async {
                match &command {
                    Command::Pub(args) => publish::run(args).await,
                    Command::Sub(args) => subscribe::run(args).await,
                }
            });
            // A name that is still being resolved must not hold up the end.
            runtime.shutdown_background();
            status
        }
        Err(error) => Err(format!("no async runtime: {error}")),
    };
    status.unwrap_or_else(|message| {
        eprintln!("error: {message}");
        ExitCode::FAILURE
    })
}
