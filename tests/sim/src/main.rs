//! `cargo xtask sim`: see `--help`.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use nanonsq_sim::run::{self, Failure};
use nanonsq_sim::shrink::shrink;
use nanonsq_sim::table;
use nanonsq_sim::watch::Coverage;

/// Run simulated worlds: virtual time, a network that fails, model servers
#[derive(Parser)]
#[command(
    bin_name = "cargo xtask sim",
    after_help = "cargo xtask sim --planted [FAULT]... plants the faults of tests/sim/planted, one \
                  at a time, into a copy of the tree and checks that each is found."
)]
struct Options {
    /// Number of seeds, each a world of ten minutes
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Step from one seed to the next: `--from 4 --every 8` runs all worlds with hostile clients
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Stop at the first failure and print only that
    #[arg(long)]
    first: bool,
    /// Only this seed
    #[arg(long)]
    seed: Option<u64>,
    /// With --seed: only these steps, as `3,7`, or `none`
    #[arg(long, requires = "seed")]
    steps: Option<String>,
    /// With --seed: print the trace
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Number of threads; as many as cores if not given
    #[arg(long)]
    jobs: Option<usize>,
}

/// The most kinds of failures that are explained.
const SHOWN: usize = 5;
/// The most lines of a trace that are shown, from its end.
const LINES: usize = 60;

fn main() -> ExitCode {
    let options = Options::parse();
    run::install();
    let well = match options.seed {
        Some(seed) => one(seed, options.steps.as_deref(), options.trace),
        None => many(&options),
    };
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn one(seed: u64, steps: Option<&str>, trace: bool) -> bool {
    let keep: Option<Vec<usize>> =
        steps.map(|steps| steps.split(',').filter_map(|step| step.parse().ok()).collect());
    let report = run::live(seed, keep.as_deref(), trace);
    for line in &report.trace {
        println!("{line}");
    }
    match &report.failure {
        None => println!("seed {seed}: well"),
        Some(failure) => println!("seed {seed}: {failure}"),
    }
    report.failure.is_none()
}

/// Failures by place: the first seed, its failure, and the number of seeds.
type Failures = BTreeMap<String, (u64, Failure, u64)>;

fn many(options: &Options) -> bool {
    let started = Instant::now();
    let jobs =
        options.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let next = AtomicU64::new(0);
    let done = AtomicU64::new(0);
    let all = Mutex::new((Coverage::default(), Failures::new()));
    let print_progress = || {
        let done = done.load(Ordering::Relaxed);
        let rate = done as f64 / started.elapsed().as_secs_f64();
        let failed: u64 = all.lock().expect("no panic").1.values().map(|(.., n)| n).sum();
        println!("{done} of {} seeds, {rate:.0}/s, {failed} failed", options.seeds);
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs)
            .map(|_| {
                scope.spawn(|| {
                    let mut coverage = Coverage::default();
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let enough = options.first && !all.lock().expect("no panic").1.is_empty();
                        if n >= options.seeds || enough {
                            break;
                        }
                        let seed = options.from + n * options.every;
                        let report = run::live(seed, None, false);
                        coverage.add(&report.coverage);
                        if let Some(failure) = report.failure {
                            let failures = &mut all.lock().expect("no panic").1;
                            if !options.first && !failures.contains_key(&failure.place) {
                                println!("seed {seed}: {failure}");
                            }
                            let place = failure.place.clone();
                            let known = failures.entry(place).or_insert((seed, failure, 0));
                            known.2 += 1;
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    }
                    all.lock().expect("no panic").0.add(&coverage);
                })
            })
            .collect();
        let mut printed = Instant::now();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            if printed.elapsed() > Duration::from_secs(10) {
                print_progress();
                printed = Instant::now();
            }
        }
    });
    if !options.first {
        print_progress();
    }
    let (coverage, failures) = all.into_inner().expect("no panic");
    if options.first {
        for (seed, failure, _) in failures.values() {
            println!("seed {seed}: {}", failure.to_string().replace('\n', " "));
        }
        return failures.is_empty();
    }
    for (seed, failure, times) in failures.values().take(SHOWN) {
        explain(*seed, failure, *times);
    }
    print!("{}", table::text(&coverage));
    let gaps = table::gaps(&coverage, options.seeds);
    for gap in &gaps {
        println!("{gap}");
    }
    failures.is_empty() && gaps.is_empty()
}

/// Prints a failure with the fewest steps that reproduce it.
fn explain(seed: u64, failure: &Failure, times: u64) {
    println!("\n{times} seeds, seed {seed} the first: {failure}");
    let steps = run::live(seed, None, false).steps;
    let keep = shrink(seed, steps.len(), failure);
    let report = run::live(seed, Some(&keep), true);
    println!("{} of its {} steps are enough:", keep.len(), steps.len());
    for &step in &keep {
        println!("  {}", steps[step]);
    }
    let hidden = report.trace.len().saturating_sub(LINES);
    println!("{hidden} lines, and then:");
    for line in &report.trace[hidden..] {
        println!("  {line}");
    }
    let list: Vec<_> = keep.iter().map(ToString::to_string).collect();
    let list = if list.is_empty() { "none".into() } else { list.join(",") };
    println!("cargo xtask sim --seed {seed} --steps {list} --trace\n");
}
