//! `cargo xtask sim`: see `--help`.

use clap::Parser;
use nanonsq_sim::run;

/// Lives simulated worlds, and shows what failed
#[derive(Parser)]
#[command(bin_name = "cargo xtask sim")]
struct Options {
    /// How many seeds
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them
    #[arg(long, default_value_t = 0)]
    from: u64,
}

fn main() {
    let options = Options::parse();
    run::install();
    let started = std::time::Instant::now();
    let mut failed = 0;
    for seed in options.from..options.from + options.seeds {
        let report = run::live(seed, None, false);
        if let Some(failure) = report.failure {
            failed += 1;
            if failed < 30 { println!("seed {seed}: {} ({})", failure.message, failure.place); }
        }
    }
    println!("{} seeds, {failed} failed, {:?}", options.seeds, started.elapsed());
}
