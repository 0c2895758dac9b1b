//! `cargo xtask qemu`: runs the firmware of `examples/qemu` in QEMU against real servers. Each
//! scenario has a device, two nsqlookupds and an nsqd; the messages in nsqd decide the result.

mod device;
mod examples;
mod hostile;
mod memory;
mod nsqd;
mod panics;
mod scenario;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use nanonsq_tests::{Peers, peers};
use tokio::runtime::Runtime;

use crate::firmware::{self, Build, Toolchain};
use crate::project;
use device::Device;
use scenario::Stage;

const PROGRAM: &str = "nanonsq-qemu";

#[derive(Args)]
pub(crate) struct Options {
    /// The scenarios to run [default: clean restarts]
    scenarios: Vec<Scenario>,
    /// The instruction set to build for [default: thumbv7m, and thumbv6m too for `all`]
    #[arg(long)]
    target: Option<Target>,
    /// Number of readings of `clean` and `restarts`; `node` has at least 20000
    #[arg(long, default_value_t = 10_000)]
    readings: u32,
    /// Time of each soak
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// For `own`: a setting of the firmware; examples/qemu/src/settings.rs lists all
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting)]
    set: Vec<(String, String)>,
    /// Log with defmt (needs `defmt-print`) instead of text
    #[arg(long)]
    defmt: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Target {
    /// ARMv7-M, as the board's Cortex-M3
    Thumbv7m,
    /// ARMv6-M, as the RP2040; a Cortex-M3 runs it as well
    Thumbv6m,
}

impl Target {
    fn triple(self) -> &'static str {
        match self {
            Self::Thumbv7m => "thumbv7m-none-eabi",
            Self::Thumbv6m => "thumbv6m-none-eabi",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Without faults, every reading arrives exactly once
    Clean,
    /// nsqd is stopped and restarted five times, an nsqlookupd killed and restarted once
    Restarts,
    /// nsqd is restarted five times while the device publishes as fast as possible
    Hurry,
    /// The network cable is pulled for longer than two heartbeats
    Unplugged,
    /// All frames are held back for longer than two heartbeats, while the link stays up
    Silence,
    /// Two publishing tasks, a slow network and a full outbox: heartbeats and PINGs are on time
    Crowd,
    /// The device consumes commands and reboots; nsqd is restarted meanwhile
    Command,
    /// The device is an nsqd, which go-nsq finds through nsqlookupd and consumes from
    Node,
    /// The device is an nsqd among hostile clients, and its application publishes within 2 s
    Hostile,
    /// The examples publish, and obey a command
    Examples,
    /// A soak with heartbeats only
    Idle,
    /// A soak as fast as possible
    Flood,
    /// All of these, and `clean` and `examples` as ARMv6-M
    All,
    /// Run the device with your servers at 127.0.0.1, on NSQ's ports, until Ctrl-C
    Own,
}

impl Scenario {
    /// All scenarios, the soaks last.
    const ALL: [(Option<Target>, Self); 14] = [
        (None, Self::Clean),
        (Some(Target::Thumbv6m), Self::Clean),
        (None, Self::Restarts),
        (None, Self::Hurry),
        (None, Self::Unplugged),
        (None, Self::Silence),
        (None, Self::Crowd),
        (None, Self::Command),
        (None, Self::Node),
        (None, Self::Hostile),
        (None, Self::Examples),
        (Some(Target::Thumbv6m), Self::Examples),
        (None, Self::Idle),
        (None, Self::Flood),
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Restarts => "restarts",
            Self::Hurry => "hurry",
            Self::Unplugged => "unplugged",
            Self::Silence => "silence",
            Self::Crowd => "crowd",
            Self::Command => "command",
            Self::Node => "node",
            Self::Hostile => "hostile",
            Self::Examples => "examples",
            Self::Idle => "idle",
            Self::Flood => "flood",
            Self::All => "all",
            Self::Own => "own",
        }
    }
}

/// A scenario on an instruction set.
type Play = (Target, Scenario);

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.readings > 0 && options.seconds > 0, "numbers must be positive");
    let plays = plays(options);
    let own_servers = options.scenarios.contains(&Scenario::Own);
    ensure!(!own_servers || plays.len() == 1, "`own` is played alone");
    // Check for missing programs first.
    firmware::qemu()?;
    let mut toolchains = BTreeMap::new();
    for &(target, _) in &plays {
        toolchains.insert(target, Toolchain::find(target.triple())?);
    }
    let mut kernels = BTreeMap::new();
    for (target, toolchain) in toolchains {
        kernels.insert(target, build(target, &toolchain, options.defmt)?);
    }
    let runtime = Runtime::new()?;
    if own_servers {
        return runtime.block_on(own(&kernels[&plays[0].0], options));
    }
    crate::peers::ensure(&crate::peers::Options::default())?;
    let peers = peers::find().map_err(|missing| anyhow!("{missing}"))?;

    let mut results = Results::default();
    for (target, kernel) in &kernels {
        results.add("no panics", *target, panics::check(kernel));
        results.add("memory", *target, memory::check(kernel));
    }
    for (target, scenario) in plays {
        println!("\n== {} on {}", scenario.name(), target.triple());
        // The test harness panics when an expectation fails.
        let play = || runtime.block_on(play(&peers, &kernels[&target], scenario, options));
        let result = catch_unwind(AssertUnwindSafe(play));
        results.add(
            scenario.name(),
            target,
            result.unwrap_or_else(|_| Err(anyhow!("it panicked, see above"))),
        );
    }
    results.sum()
}

/// Returns the scenarios and their targets in order.
fn plays(options: &Options) -> Vec<Play> {
    let target = options.target.unwrap_or(Target::Thumbv7m);
    if options.scenarios.contains(&Scenario::All) {
        let all = Scenario::ALL.into_iter();
        // With a target given, no other is used.
        return all
            .filter(|(other, _)| options.target.is_none() || other.is_none())
            .map(|(other, scenario)| (other.unwrap_or(target), scenario))
            .collect();
    }
    let chosen: &[Scenario] = match &*options.scenarios {
        [] => &[Scenario::Clean, Scenario::Restarts],
        chosen => chosen,
    };
    chosen.iter().map(|&scenario| (target, scenario)).collect()
}

/// Runs a scenario; returns a short summary.
async fn play(
    peers: &Peers,
    kernel: &Path,
    scenario: Scenario,
    options: &Options,
) -> Result<String> {
    if scenario == Scenario::Node {
        return nsqd::play(peers, kernel, options.defmt, options.readings.max(20_000)).await;
    }
    if scenario == Scenario::Hostile {
        return hostile::play(kernel, options.defmt).await;
    }
    if scenario == Scenario::Examples {
        return examples::play(peers, kernel, options.defmt).await;
    }
    let mut stage = Stage::set(peers, kernel, options.defmt, scenario).await;
    let soak = Duration::from_secs(options.seconds.into());
    match scenario {
        Scenario::Clean => stage.clean(options.readings).await,
        Scenario::Restarts => stage.restarts(options.readings).await,
        Scenario::Hurry => stage.hurry().await,
        Scenario::Unplugged => stage.unplugged().await,
        Scenario::Silence => stage.silence().await,
        Scenario::Crowd => stage.crowd().await,
        Scenario::Command => stage.command().await,
        Scenario::Idle => stage.idle(soak).await,
        Scenario::Flood => stage.flood(soak).await,
        Scenario::Node | Scenario::Hostile | Scenario::Examples | Scenario::All | Scenario::Own => {
            bail!("not a play")
        }
    }
}

/// Runs a device with servers of the user.
async fn own(kernel: &Path, options: &Options) -> Result<()> {
    println!(
        "nsqd is expected on 127.0.0.1:4150, nsqlookupd on 127.0.0.1:4160; see what arrives with\n\
         `nsq_tail --topic=readings --nsqd-tcp-address=127.0.0.1:4150`; send commands with\n`curl -d \
         'set interval 5s' 'http://127.0.0.1:4151/pub?topic=qemu-commands'`; the device replies \
         to the topic replies; Ctrl-C ends it"
    );
    // The device's own address is reachable only within QEMU.
    let mut args = vec![("broadcast", "127.0.0.1".to_owned())];
    args.extend(options.set.iter().map(|(key, value)| (&**key, value.clone())));
    let status = Device::boot(kernel, &args, options.defmt)?.end(Duration::MAX).await?;
    ensure!(status.success(), "the device ended with {status}");
    Ok(())
}

/// The results of all scenarios.
#[derive(Default)]
struct Results {
    lines: Vec<String>,
    failed: usize,
    started: Option<Instant>,
}

impl Results {
    fn add(&mut self, what: &str, target: Target, result: Result<String>) {
        self.started.get_or_insert_with(Instant::now);
        let (how, text) = match result {
            Ok(text) => ("ok", text),
            Err(why) => {
                self.failed += 1;
                println!("FAILED: {why:#}");
                ("FAILED", format!("{why:#}"))
            }
        };
        let target = target.triple().split('-').next().unwrap_or_default();
        let first = text.lines().next().unwrap_or_default();
        self.lines.push(format!("{what:<10}{target:<10}{how:<8}{first}"));
    }

    fn sum(self) -> Result<()> {
        println!();
        for line in &self.lines {
            println!("{line}");
        }
        let seconds = self.started.map_or(0.0, |started| started.elapsed().as_secs_f64());
        // In the format of `cargo test`, for scripts that add up results.
        println!(
            "\ntest result: {}. {} passed; {} failed; finished in {seconds:.1} s",
            if self.failed == 0 { "ok" } else { "FAILED" },
            self.lines.len() - self.failed,
            self.failed
        );
        ensure!(self.failed == 0, "test failed: see above");
        Ok(())
    }
}

fn build(target: Target, toolchain: &Toolchain, defmt: bool) -> Result<PathBuf> {
    eprintln!("building the firmware for {} ...", target.triple());
    let build = Build {
        manifest: &project::root().join("examples/qemu/Cargo.toml"),
        // Under the root's target directory, where `cargo clean` finds it.
        target_dir: &project::root().join("target/qemu"),
        profile: "release",
        bins: &[],
        features: if defmt { &["defmt"] } else { &["text"] },
        no_default_features: true,
        env: if defmt { &[("DEFMT_LOG", "info")] } else { &[] },
    };
    let programs = toolchain.build(&build)?;
    let program = programs.into_iter().find(|(name, _)| name == PROGRAM);
    Ok(program.context("cargo named no executable")?.1)
}

fn setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
