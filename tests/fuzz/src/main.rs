//! `cargo xtask fuzz`: see `--help`.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use nanonsq_fuzz::mutate::{Random, minimize, mutate};
use nanonsq_fuzz::{TARGETS, Target, read_hex, take_features, target, write_hex};

/// Run decoders, sessions and tables on generated inputs
#[derive(Parser)]
#[command(bin_name = "cargo xtask fuzz")]
struct Options {
    /// Only these targets; all if none is named
    targets: Vec<String>,
    /// Number of inputs per target
    #[arg(long, default_value_t = 100_000)]
    runs: u64,
    /// The longest time per target, in seconds
    #[arg(long, default_value_t = 3600)]
    seconds: u64,
    /// Seed of the generator
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The longest input, in bytes
    #[arg(long, default_value_t = 1500)]
    max_len: usize,
    /// Run one target with this file, or with its bytes as hexadecimal digits
    #[arg(long)]
    replay: Option<String>,
    /// Write the targets' starting inputs to files, one folder per target in this folder
    #[arg(long)]
    write_inputs: Option<PathBuf>,
    /// Make the targets' corpora from this folder, with one folder per target
    #[arg(long)]
    collect: Option<PathBuf>,
    /// List the targets
    #[arg(long)]
    list: bool,
}

/// The longest time for an input, after which it counts as endless.
const HANGS: Duration = Duration::from_secs(20);

fn main() -> Result<ExitCode> {
    let options = Options::parse();
    let mut targets: Vec<&Target> = Vec::new();
    for name in &options.targets {
        targets.push(target(name).with_context(|| format!("no target '{name}'; see --list"))?);
    }
    if options.list {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(input) = &options.replay {
        let [target] = targets[..] else { bail!("--replay is for one target: name it") };
        let bytes = read(input)?;
        println!("{}: {} bytes: {}", target.name, bytes.len(), bytes.escape_ascii());
        // Panics are not caught here, so that they show a backtrace.
        (target.run)(&bytes);
        println!("well");
        return Ok(ExitCode::SUCCESS);
    }
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    if let Some(dir) = &options.write_inputs {
        for target in targets {
            let dir = dir.join(target.name);
            fs::create_dir_all(&dir)?;
            for (at, input) in target.inputs().iter().enumerate() {
                fs::write(dir.join(format!("input-{at}")), input)?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(dir) = &options.collect {
        for target in targets {
            collect(target, &dir.join(target.name))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    panic::set_hook(Box::new(|_| {}));
    let failed = fuzz(&targets, &options);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn read(input: &str) -> Result<Vec<u8>> {
    if PathBuf::from(input).is_file() {
        return fs::read(input).with_context(|| format!("cannot read {input}"));
    }
    read_hex(input).context("neither a file nor hexadecimal digits")
}

/// The largest corpus of a target, in bytes of inputs: the longest inputs are left out.
const CORPUS_MAX: usize = 32 << 10;

/// Writes a target's corpus, the shortest inputs first.
fn collect(target: &Target, dir: &Path) -> Result<()> {
    let seeds = (target.seeds)();
    let mut inputs = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        inputs.push(fs::read(entry?.path())?);
    }
    inputs.retain(|input| !input.is_empty() && !seeds.contains(input));
    inputs.sort_by(|one, other| (one.len(), one).cmp(&(other.len(), other)));
    inputs.dedup();
    let all = inputs.len();
    let mut bytes = 0;
    inputs.retain(|input| {
        bytes += input.len();
        bytes <= CORPUS_MAX
    });
    let lines: String = inputs.iter().map(|input| write_hex(input) + "\n").collect();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("corpus/{}.txt", target.name));
    fs::write(&file, lines)?;
    println!("{}: {} of {all} inputs", file.display(), inputs.len());
    Ok(())
}

/// The current target and input of a thread, and when it started; read by the main thread.
type Current = Mutex<Option<(&'static str, Vec<u8>, Instant)>>;

fn fuzz(targets: &[&Target], options: &Options) -> bool {
    let jobs = std::thread::available_parallelism().map_or(1, Into::into).min(targets.len());
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let slots: Vec<Current> = (0..jobs).map(|_| Current::default()).collect();
    std::thread::scope(|scope| {
        let workers: Vec<_> = slots
            .iter()
            .map(|slot| {
                scope.spawn(|| {
                    while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                        if !explore(target, options, slot) {
                            failed.store(true, Ordering::Relaxed);
                        }
                    }
                })
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            std::thread::sleep(Duration::from_millis(50));
            for slot in &slots {
                let slot = slot.lock().expect("no panic");
                if let Some((name, input, since)) = slot.as_ref()
                    && since.elapsed() > HANGS
                {
                    println!(
                        "{name}: does not end: cargo xtask fuzz {name} --replay {}",
                        write_hex(input)
                    );
                    std::process::exit(1);
                }
            }
        }
    });
    failed.into_inner()
}

/// Runs one input and returns the message of a failure.
fn try_input(target: &Target, input: &[u8]) -> Option<String> {
    let result = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let payload = result.err()?;
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    Some(text.unwrap_or("?").to_owned())
}

/// Mutates inputs with new features; returns whether no input failed.
fn explore(target: &Target, options: &Options, slot: &Current) -> bool {
    let started = Instant::now();
    let limit = Duration::from_secs(options.seconds);
    let mut random = Random::new(options.seed);
    let mut corpus = Vec::new();
    let mut known = BTreeSet::new();
    let mut runs = 0;
    let mut queue = target.inputs();
    queue.push(Vec::new());
    let given = queue.len() as u64;
    // The starting inputs are run in any case.
    while runs < options.runs.max(given) && (runs < given || started.elapsed() < limit) {
        let input = queue.pop().unwrap_or_else(|| {
            let base: &Vec<u8> = &corpus[random.below(corpus.len())];
            let other = &corpus[random.below(corpus.len())];
            mutate(&mut random, base, other, options.max_len)
        });
        take_features();
        *slot.lock().expect("no panic") = Some((target.name, input.clone(), Instant::now()));
        let failure = try_input(target, &input);
        *slot.lock().expect("no panic") = None;
        runs += 1;
        if let Some(failure) = failure {
            let least = minimize(&input, |bytes| try_input(target, bytes).is_some());
            let why = try_input(target, &least).unwrap_or_default();
            println!("{}: {why}", target.name);
            println!("  run {runs} of seed {} failed: {failure}", options.seed);
            println!("  {} bytes are enough: {}", least.len(), least.escape_ascii());
            println!("  cargo xtask fuzz {} --replay {}", target.name, write_hex(&least));
            return false;
        }
        let features = take_features();
        let before = known.len();
        known.extend(features);
        if known.len() > before || runs <= given {
            corpus.push(input);
        }
    }
    let rate = runs as f64 / started.elapsed().as_secs_f64();
    println!(
        "{:<14} well: {runs} inputs, {rate:.0}/s, {} kept, {} features",
        target.name,
        corpus.len(),
        known.len()
    );
    true
}
