//! `cargo xtask qemu`: the firmware of `examples/qemu` in QEMU against real servers. Each scenario
//! is a play for a device, two nsqlookupds and an nsqd; what arrived in nsqd decides.

mod device;
mod panics;
mod scenario;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use nanonsq_tests::peers;

use crate::firmware::{Build, Toolchain};
use crate::project;
use scenario::Stage;

const PROGRAM: &str = "nanonsq-qemu";

#[derive(Args)]
pub(crate) struct Options {
    /// What to play
    #[arg(default_value = "clean")]
    scenarios: Vec<Scenario>,
    /// The instruction set to build for
    #[arg(long, default_value = "thumbv7m")]
    target: Target,
    /// Readings to publish
    #[arg(long, default_value_t = 10_000)]
    readings: u32,
    /// How long the soaks take
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// Log with defmt (needs `defmt-print`) instead of text
    #[arg(long)]
    defmt: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    /// ARMv7-M, what the board's Cortex-M3 is
    Thumbv7m,
    /// ARMv6-M, the RP2040's
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

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Scenario {
    /// Nothing breaks: every reading arrives exactly once
    Clean,
    /// nsqd is stopped and restarted five times, an nsqlookupd killed and restarted once
    Restarts,
    /// nsqd is restarted five times while the device publishes as fast as it goes
    Hurry,
    /// The network cable is pulled for longer than two heartbeats
    Unplugged,
    /// All frames are held back for longer than two heartbeats: the link stays up
    Silence,
    /// Two publishing tasks and a full outbox: nothing is lost, heartbeats are answered
    Crowd,
    /// A soak: nothing but heartbeats
    Idle,
    /// A soak: as fast as it goes
    Flood,
    /// All of these
    All,
}

impl Scenario {
    const PLAYS: [Self; 8] = [
        Self::Clean,
        Self::Restarts,
        Self::Hurry,
        Self::Unplugged,
        Self::Silence,
        Self::Crowd,
        Self::Idle,
        Self::Flood,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Restarts => "restarts",
            Self::Hurry => "hurry",
            Self::Unplugged => "unplugged",
            Self::Silence => "silence",
            Self::Crowd => "crowd",
            Self::Idle => "idle",
            Self::Flood => "flood",
            Self::All => "all",
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.readings > 0 && options.seconds > 0, "numbers must be positive");
    crate::peers::run(&crate::peers::Options::default())?;
    let peers = peers::find().map_err(|missing| anyhow::anyhow!("{missing}"))?;
    crate::firmware::qemu()?;
    let kernel = build(options)?;
    check_panics(&kernel)?;

    let scenarios: &[Scenario] = if options.scenarios.contains(&Scenario::All) {
        &Scenario::PLAYS
    } else {
        &options.scenarios
    };
    let runtime = tokio::runtime::Runtime::new()?;
    for &scenario in scenarios {
        println!("\n== {} on {}", scenario.name(), options.target.triple());
        runtime.block_on(async {
            let mut stage = Stage::set(&peers, &kernel, options.defmt, scenario).await;
            match scenario {
                Scenario::Clean | Scenario::All => stage.clean(options.readings).await,
                Scenario::Restarts => stage.restarts(options.readings).await,
                Scenario::Hurry => stage.hurry().await,
                Scenario::Unplugged => stage.unplugged().await,
                Scenario::Silence => stage.silence().await,
                Scenario::Crowd => stage.crowd().await,
                Scenario::Idle => stage.idle(soak(options)).await,
                Scenario::Flood => stage.flood(soak(options)).await,
            }
            .with_context(|| format!("scenario {:?}", scenario.name()))
        })?;
    }
    println!("\nall as it should be");
    Ok(())
}

fn soak(options: &Options) -> Duration {
    Duration::from_secs(options.seconds.into())
}

fn build(options: &Options) -> Result<PathBuf> {
    let target = options.target.triple();
    eprintln!("building the firmware for {target} ...");
    let build = Build {
        manifest: &project::root().join("examples/qemu/Cargo.toml"),
        // Under the root's target directory, where `cargo clean` finds it.
        target_dir: &project::root().join("target/qemu"),
        profile: "release",
        features: if options.defmt { &["defmt"] } else { &["text"] },
        no_default_features: true,
        env: if options.defmt { &[("DEFMT_LOG", "info")] } else { &[] },
    };
    let programs = Toolchain::find(target)?.build(&build)?;
    let program = programs.into_iter().find(|(name, _)| name == PROGRAM);
    Ok(program.context("cargo named no executable")?.1)
}

/// Nothing of the library panics: says what in the image could, and fails if there is anything.
fn check_panics(kernel: &Path) -> Result<()> {
    let root = project::root();
    let library = [&*root.join("core/src"), &*root.join("adapters/embassy/src")];
    let (ends, others): (Vec<_>, Vec<_>) =
        panics::find(kernel, &library)?.into_iter().partition(panics::Place::is_async_body);
    println!(
        "panics of the library in the image: {}, and {} for async functions polled after their end",
        others.len(),
        ends.len()
    );
    for place in &others {
        println!("    {}:{}:{}", place.file, place.line, place.column);
    }
    ensure!(others.is_empty(), "the library can panic");
    Ok(())
}
