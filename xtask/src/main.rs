//! Development tasks of nanonsq. `cargo xtask` lists them; each task is one module with an
//! `Options` and a `run`.

mod api;
mod bench;
mod boards;
mod demo;
mod firmware;
mod fleet;
mod fuzz;
mod graph;
mod house;
mod judge;
mod package;
mod panics;
mod peers;
mod project;
mod qemu;
mod rp2040;
mod sim;
mod sizes;
mod stack;
mod uf2;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(
    bin_name = "cargo xtask",
    about = "Development tasks of nanonsq",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the NSQ programs that tests and benchmarks run against into target/peers/ (needs Go)
    Peers(peers::Options),
    /// Demonstrate `nanonsq pub`: real servers, piped lines, a restart of nsqd (needs Go)
    Demo(demo::Options),
    /// Count the public items of the core, and compare them with the committed listing
    Api(api::Options),
    /// Compare publishing rates with go-nsq and tokio-nsq against a real nsqd (needs the peers)
    Bench(bench::Options),
    /// Check the tree: length of files, share of tests, words in names, links of documents
    House(house::Options),
    /// Package the crates to publish, and build programs outside the tree that depend on them
    Package(package::Options),
    /// Run the firmware of examples/qemu against real servers (needs QEMU and Go)
    Qemu(qemu::Options),
    /// Build the images for boards, and check their sizes
    Boards(boards::Options),
    /// Run the UF2 of the W5500-EVB-Pico in an emulated one against real servers (needs Node, Go)
    Rp2040(rp2040::Options),
    /// Convert an RP2040 image to a UF2 file for its USB drive
    Uf2(uf2::Options),
    /// Show that nothing in the core can panic
    Panics(panics::Options),
    /// Check the stack of functions of the core
    Stack(stack::Options),
    /// Measure nanonsq on a Cortex-M0: flash, RAM, stack, instructions (needs QEMU)
    Sizes(sizes::Options),
    /// Simulate: virtual time, a network that fails, model servers, thousands of seeded worlds
    Sim(sim::Options),
    /// Ten thousand nodes and an nsqlookupd that restarts, simulated and real (needs the peers)
    Fleet(fleet::Options),
    /// Fuzz decoders, sessions and tables on a stable toolchain
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let cli = Cli::try_parse().unwrap_or_else(|error| {
        // The error does not list the tasks.
        if error.kind() == ErrorKind::InvalidSubcommand {
            let _ = Cli::command().print_help();
            eprintln!();
        }
        error.exit()
    });
    let done = match cli.task {
        Task::Peers(options) => peers::run(&options),
        Task::Demo(options) => demo::run(&options),
        Task::Api(options) => api::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::House(options) => house::run(&options),
        Task::Package(options) => package::run(&options),
        Task::Qemu(options) => qemu::run(&options),
        Task::Boards(options) => boards::run(&options),
        Task::Rp2040(options) => rp2040::run(&options),
        Task::Uf2(options) => uf2::run(&options),
        Task::Panics(options) => panics::run(&options),
        Task::Stack(options) => stack::run(&options),
        Task::Sizes(options) => sizes::run(&options),
        Task::Sim(options) => sim::run(&options),
        Task::Fleet(options) => fleet::run(&options),
        Task::Fuzz(options) => fuzz::run(&options),
    };
    // Not with `{:?}`: most errors advise the user, for whom a backtrace is of no use.
    done.map_or_else(
        |error| {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        },
        |()| ExitCode::SUCCESS,
    )
}
