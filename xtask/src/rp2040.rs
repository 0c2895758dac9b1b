//! `cargo xtask rp2040`: runs the UF2 for a W5500-EVB-Pico in an emulated board against real
//! servers. The messages in nsqd and the listings of nsqlookupd decide the result.

mod device;
mod nsqd;
mod scenario;
mod tap;

use std::io::{BufRead, BufReader};
use std::num::NonZero;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, slice, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use nanonsq_tests::{Peers, peers};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::boards::{self, Board};
use crate::project;
use scenario::Stage;

#[derive(Args)]
pub(crate) struct Options {
    /// The scenarios to run [default: clean]
    scenarios: Vec<Scenario>,
    /// Number of readings that scenarios publish
    #[arg(long, default_value_t = 2000)]
    readings: u32,
    /// Number of saves of the settings that `power` cuts off
    #[arg(long, default_value_t = 12)]
    cuts: u32,
    /// For `own`: file that keeps the board's flash between runs
    #[arg(long)]
    flash: Option<PathBuf>,
    /// For `own`: forwards a port of this machine to a port of the board, as 14150:4150
    #[arg(long, value_name = "PORT:PORT")]
    forward: Vec<String>,
    /// For `own`: a TAP interface of this machine as the board's network
    #[arg(long, value_name = "NAME", conflicts_with = "forward")]
    tap: Option<String>,
    /// Run one scenario in this process; used to run several
    #[arg(long, hide = true)]
    alone: bool,
    /// Use this UF2 instead of building one
    #[arg(long)]
    image: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// After setup on the console the board publishes; every reading arrives exactly once
    Clean,
    /// The network cable is pulled for longer than two heartbeats
    Unplugged,
    /// nsqd is restarted, an nsqlookupd killed and started again
    Restarts,
    /// 2 % of all frames are lost, in each direction
    Loss,
    /// Power is cut while settings are saved, again and again
    Power,
    /// The board, its network or its publisher fails; the board restarts and reports the reason
    Crash,
    /// The board consumes commands, including `reboot`
    Command,
    /// The board is an nsqd, which go-nsq finds through nsqlookupds and consumes from
    Node,
    /// All of these
    All,
    /// On a TAP interface, with Linux's network instead of the emulator's. Needs Linux, and root
    /// or user namespaces
    Tap,
    /// Run a board with your servers at 127.0.0.1, with its console here, until Ctrl-C
    Own,
}

impl Scenario {
    /// All scenarios, the longest one first.
    const ALL: [Self; 8] = [
        Self::Crash,
        Self::Clean,
        Self::Unplugged,
        Self::Restarts,
        Self::Loss,
        Self::Node,
        Self::Power,
        Self::Command,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Unplugged => "unplugged",
            Self::Restarts => "restarts",
            Self::Loss => "loss",
            Self::Power => "power",
            Self::Crash => "crash",
            Self::Command => "command",
            Self::Node => "node",
            Self::Tap => "tap",
            Self::All => "all",
            Self::Own => "own",
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.readings > 0 && options.cuts > 0, "numbers must be positive");
    let is_own = options.scenarios.contains(&Scenario::Own);
    ensure!(!is_own || options.scenarios.len() == 1, "`own` is played alone");
    // Check for missing programs first.
    let emulator = emulator()?;
    let image = match &options.image {
        Some(image) => image.clone(),
        None => boards::build(Board::W5500EvbPico)?.file,
    };
    if is_own {
        return own(&emulator, &image, options);
    }
    crate::peers::ensure(&crate::peers::Options::default())?;
    let peers = peers::find().map_err(|missing| anyhow!("{missing}"))?;
    let plays: Vec<Scenario> = match &*options.scenarios {
        [] => vec![Scenario::Clean],
        chosen => chosen
            .iter()
            .flat_map(|scenario| match scenario {
                Scenario::All => &Scenario::ALL[..],
                one => slice::from_ref(one),
            })
            .copied()
            .collect(),
    };
    if options.alone {
        let [scenario] = *plays else { bail!("one play") };
        let runtime = Runtime::new()?;
        // The test harness panics when an expectation fails.
        let play = || runtime.block_on(play(&peers, &emulator, &image, scenario, options));
        let result = catch_unwind(AssertUnwindSafe(play))
            .unwrap_or_else(|_| Err(anyhow!("it panicked, see above")));
        println!("{RESULT}{}", result?);
        return Ok(());
    }
    let started = Instant::now();
    let (mut lines, mut failed) = (Vec::new(), 0);
    let mut results = vec![("emulator", self_test(&emulator))];
    results.extend(play_all(&plays, &image, options));
    for (name, result) in results {
        let (how, text) = match result {
            Ok(text) => ("ok", text),
            Err(why) => {
                failed += 1;
                ("FAILED", format!("{why:#}"))
            }
        };
        lines.push(format!("{name:<10} {how:<7} {}", text.lines().next().unwrap_or_default()));
    }
    println!("\n{}", lines.join("\n"));
    // In the format of `cargo test`, for scripts that add up results.
    println!(
        "\ntest result: {}. {} passed; {failed} failed; finished in {:.1} s",
        if failed == 0 { "ok" } else { "FAILED" },
        lines.len() - failed,
        started.elapsed().as_secs_f64()
    );
    ensure!(failed == 0, "test failed: see above");
    Ok(())
}

/// Runs each scenario in its own process, several at a time, since a scenario mostly waits. Prints
/// the output of each at its end, or at once if only one runs at a time.
fn play_all(
    plays: &[Scenario],
    image: &Path,
    options: &Options,
) -> Vec<(&'static str, Result<String>)> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get).min(plays.len());
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Some(&scenario) = plays.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = play_elsewhere(scenario, image, options, at_once == 1);
                    results
                        .lock()
                        .expect("no thread panics while it holds the lock")
                        .push((scenario, result));
                }
            });
        }
    });
    let mut results = results.into_inner().expect("no thread panics while it holds the lock");
    results.sort_by_key(|&(scenario, _)| plays.iter().position(|&play| play == scenario));
    results.into_iter().map(|(scenario, result)| (scenario.name(), result)).collect()
}

fn play_elsewhere(
    scenario: Scenario,
    image: &Path,
    options: &Options,
    is_shown: bool,
) -> Result<String> {
    let itself = env::current_exe().context("what is this program?")?;
    let mut command = match scenario {
        Scenario::Tap => tap::in_namespace(&itself),
        _ => Command::new(&itself),
    };
    command.args(["rp2040", scenario.name(), "--alone", "--image"]).arg(image);
    command.args(["--readings", &options.readings.to_string()]);
    command.args(["--cuts", &options.cuts.to_string()]);
    let head = format!("\n== {}\n", scenario.name());
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(if is_shown { Stdio::inherit() } else { Stdio::piped() })
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    if is_shown {
        print!("{head}");
    }
    let mut lines = Vec::new();
    for line in BufReader::new(child.stdout.take().context("stdout is piped")?).lines() {
        let line = line?;
        if is_shown {
            println!("{line}");
        }
        lines.push(line);
    }
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    let took = started.elapsed().as_secs();
    if !is_shown {
        println!("{head}{}\n{stderr}({} took {took} s)", lines.join("\n"), scenario.name());
    }
    let result = lines.iter().find_map(|line| line.strip_prefix(RESULT));
    match result {
        Some(result) if output.status.success() => Ok(format!("{result}; {took} s")),
        _ => {
            let why = stderr.lines().rev().find_map(|line| line.strip_prefix("error: "));
            bail!("{}", why.unwrap_or("see above"))
        }
    }
}

async fn play(
    peers: &Peers,
    emulator: &Path,
    image: &Path,
    scenario: Scenario,
    options: &Options,
) -> Result<String> {
    if scenario == Scenario::Tap {
        return tap::play(peers, emulator, image).await;
    }
    let mut stage = Stage::set(peers, emulator, image).await;
    match scenario {
        Scenario::Clean => stage.clean(options.readings).await,
        Scenario::Unplugged => stage.unplugged(options.readings).await,
        Scenario::Restarts => stage.restarts(options.readings).await,
        Scenario::Loss => stage.loss(options.readings).await,
        Scenario::Power => stage.power(options.cuts).await,
        Scenario::Crash => stage.crash().await,
        Scenario::Command => stage.command().await,
        Scenario::Node => stage.node(peers, options.readings).await,
        Scenario::All | Scenario::Own | Scenario::Tap => bail!("not a play"),
    }
}

/// Runs a board in this terminal.
fn own(emulator: &Path, image: &Path, options: &Options) -> Result<()> {
    println!(
        "The board's network sees this machine as 10.0.2.2. For servers on NSQ's ports:\n\
         \n    set nsqd 10.0.2.2:4150\n    set lookupd 10.0.2.2:4160\n    set broadcast \
         127.0.0.1:4150\n    save\n    reboot\n\nA line that begins with ~ is for the emulator: \
         ~cable out, ~cable in, ~loss 0.02, ~delay 50, ~reset, ~power.\nCtrl-C ends it.\n"
    );
    let mut node = Command::new("node");
    node.arg(emulator.join("main.mjs")).arg(image);
    if let Some(flash) = &options.flash {
        node.arg("--flash").arg(flash);
    }
    for ports in &options.forward {
        node.arg("--forward").arg(ports);
    }
    if let Some(tap) = &options.tap {
        node.arg("--tap").arg(tap);
    }
    project::run(&mut node)
}

/// Returns the directory of the emulator, and installs its packages.
fn emulator() -> Result<PathBuf> {
    for (program, package) in [("node", "nodejs"), ("npm", "npm")] {
        let wanted = format!(
            "the emulated board runs in Node.js {NODE} or newer (https://nodejs.org, or the \
             package {package})"
        );
        match Command::new(program).arg("--version").output() {
            Ok(output) if output.status.success() => {
                let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
                let is_old = program == "node" && major(&version).is_none_or(|major| major < NODE);
                ensure!(!is_old, "`node` is {version}: {wanted}");
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot run `{program}`"));
            }
            _ => bail!("`{program}` was not found: {wanted}"),
        }
    }
    let emulator = project::root().join("tests/emulator");
    let installed = emulator.join("node_modules/.package-lock.json");
    if package(&installed).ok() != Some(package(&emulator.join("package-lock.json"))?) {
        eprintln!("installing what the emulator needs ...");
        let mut npm = Command::new("npm");
        npm.args(["ci", "--no-audit", "--no-fund"]).current_dir(&emulator);
        project::run(&mut npm)?;
    }
    Ok(emulator)
}

/// Returns the major number of a version such as `v18.19.0`.
fn major(version: &str) -> Option<u32> {
    version.strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// Returns the checksum of the emulator's only package from a lock file.
fn package(lock: &Path) -> Result<Value> {
    let text = fs::read(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let lock: Value = serde_json::from_slice(&text)?;
    let package = &lock["packages"]["node_modules/rp2040js"];
    ensure!(package["integrity"].is_string(), "the lock file has no rp2040js");
    Ok(package["integrity"].clone())
}

/// Runs the emulator's own tests; returns a short summary.
fn self_test(emulator: &Path) -> Result<String> {
    println!("\n== emulator");
    let output = Command::new("node")
        .args(["--test", "--test-reporter=tap"])
        .current_dir(emulator)
        .output()
        .context("cannot run `node`")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        println!("{printed}{}", String::from_utf8_lossy(&output.stderr));
        bail!("the emulator's own tests failed");
    }
    let passed = printed.lines().find_map(|line| line.strip_prefix("# pass "));
    let passed: u32 = passed.and_then(|number| number.parse().ok()).unwrap_or(0);
    ensure!(passed > 0, "the emulator has no tests: {printed}");
    Ok(format!("{passed} tests of its own"))
}

/// The oldest Node.js with which the emulator is tested.
const NODE: u32 = 18;

/// Prefix of the last line of a scenario's output.
const RESULT: &str = "result: ";

/// Time limit for events that should happen at once, on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
