//! `cargo xtask rp2040`: the very UF2 that one copies to a W5500-EVB-Pico, in an emulated one
//! against real servers. What arrived in nsqd decides, and what nsqlookupd lists.

mod device;
mod scenario;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io};

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
    /// What to play [default: clean]
    scenarios: Vec<Scenario>,
    /// How many readings a play about them publishes
    #[arg(long, default_value_t = 2000)]
    readings: u32,
    /// How many saves of the settings `power` cuts off
    #[arg(long, default_value_t = 12)]
    cuts: u32,
    /// Where `own` keeps the board's flash from one time to the next
    #[arg(long)]
    flash: Option<PathBuf>,
    /// Use this UF2 instead of building one
    #[arg(long)]
    image: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Set up on its console, the board publishes; every reading arrives exactly once
    Clean,
    /// The network cable is pulled for longer than two heartbeats
    Unplugged,
    /// nsqd is restarted, an nsqlookupd killed and started again
    Restarts,
    /// 2 % of all frames are lost, in each direction
    Loss,
    /// Power is cut while settings are saved, again and again
    Power,
    /// It panics, hangs, and its network hangs: it comes back and says why
    Crash,
    /// It does what comes as a command, reboots too
    Command,
    /// All of these
    All,
    /// A board for servers of your own at 127.0.0.1, with its console here, until Ctrl-C
    Own,
}

impl Scenario {
    const ALL: [Self; 7] = [
        Self::Clean,
        Self::Unplugged,
        Self::Restarts,
        Self::Loss,
        Self::Power,
        Self::Crash,
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
            Self::All => "all",
            Self::Own => "own",
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.readings > 0 && options.cuts > 0, "numbers must be positive");
    let is_own = options.scenarios.contains(&Scenario::Own);
    ensure!(!is_own || options.scenarios.len() == 1, "`own` is played alone");
    // What may be missing comes first.
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
    let runtime = Runtime::new()?;

    let plays: &[Scenario] = match &*options.scenarios {
        [] => &[Scenario::Clean],
        all if all.contains(&Scenario::All) => &Scenario::ALL,
        chosen => chosen,
    };
    let started = Instant::now();
    let (mut lines, mut failed) = (Vec::new(), 0);
    let tested = self_test(&emulator);
    let mut results = vec![("emulator", tested)];
    for &scenario in plays {
        println!("\n== {}", scenario.name());
        // What the harness expects in vain is a panic.
        let play = || runtime.block_on(play(&peers, &emulator, &image, scenario, options));
        let result = catch_unwind(AssertUnwindSafe(play))
            .unwrap_or_else(|_| Err(anyhow!("it panicked, see above")));
        if let Err(why) = &result {
            println!("FAILED: {why:#}");
        }
        results.push((scenario.name(), result));
    }
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
    // As `cargo test` has it, for whoever adds them up.
    println!(
        "\ntest result: {}. {} passed; {failed} failed; finished in {:.1} s",
        if failed == 0 { "ok" } else { "FAILED" },
        lines.len() - failed,
        started.elapsed().as_secs_f64()
    );
    ensure!(failed == 0, "test failed: see above");
    Ok(())
}

async fn play(
    peers: &Peers,
    emulator: &Path,
    image: &Path,
    scenario: Scenario,
    options: &Options,
) -> Result<String> {
    let mut stage = Stage::set(peers, emulator, image).await;
    match scenario {
        Scenario::Clean => stage.clean(options.readings).await,
        Scenario::Unplugged => stage.unplugged(options.readings).await,
        Scenario::Restarts => stage.restarts(options.readings).await,
        Scenario::Loss => stage.loss(options.readings).await,
        Scenario::Power => stage.power(options.cuts).await,
        Scenario::Crash => stage.crash().await,
        Scenario::Command => stage.command().await,
        Scenario::All | Scenario::Own => bail!("not a play"),
    }
}

/// A board in this terminal.
fn own(emulator: &Path, image: &Path, options: &Options) -> Result<()> {
    println!(
        "The board's network sees this machine as 10.0.2.2. For servers on NSQ's ports:\n\
         \n    set nsqd 10.0.2.2:4150\n    set lookupd 10.0.2.2:4160\n    set broadcast \
         127.0.0.1:4150\n    save\n    reboot\n\nCtrl-C ends it.\n"
    );
    let mut node = Command::new("node");
    node.arg(emulator.join("main.mjs")).arg(image);
    if let Some(flash) = &options.flash {
        node.arg("--flash").arg(flash);
    }
    project::run(&mut node)
}

/// Where the emulator is, with what it needs.
fn emulator() -> Result<PathBuf> {
    for (program, package) in [("node", "nodejs"), ("npm", "npm")] {
        match Command::new(program).arg("--version").output() {
            Ok(output) if output.status.success() => {}
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot run `{program}`"));
            }
            _ => bail!(
                "`{program}` was not found: the emulated board runs in Node.js 18 or newer \
                 (https://nodejs.org, or the package {package})"
            ),
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

/// The one package that the emulator needs, as a lock file has it.
fn package(lock: &Path) -> Result<Value> {
    let text = fs::read(lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let lock: Value = serde_json::from_slice(&text)?;
    let package = &lock["packages"]["node_modules/rp2040js"];
    ensure!(package["integrity"].is_string(), "the lock file has no rp2040js");
    Ok(package["integrity"].clone())
}

/// The emulator's own tests.
fn self_test(emulator: &Path) -> Result<String> {
    println!("\n== emulator");
    let output = Command::new("node")
        .args(["--test", "--test-reporter=tap"])
        .current_dir(emulator)
        .output()
        .context("cannot run `node`")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        println!("{said}{}", String::from_utf8_lossy(&output.stderr));
        bail!("the emulator's own tests failed");
    }
    let passed = said.lines().find_map(|line| line.strip_prefix("# pass "));
    let passed: u32 = passed.and_then(|number| number.parse().ok()).unwrap_or(0);
    ensure!(passed > 0, "the emulator has no tests: {said}");
    Ok(format!("{passed} tests of its own"))
}

/// So long may take what takes no time, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(60);
