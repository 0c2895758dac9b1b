//! `cargo xtask sizes`: measures nanonsq on a Cortex-M0.
//!
//! Firmwares of `tests/sizes` are built for `thumbv6m-none-eabi` with fat LTO: one that publishes,
//! others that also register or consume, and one without nanonsq (`pipe`) that has everything else:
//! the runtime, the links, the work source, the executor. The difference is reported. To count
//! instructions they are built again with simulated peers behind the same links, and run.

mod callgrind;
pub(crate) mod image;
mod table;
mod trace;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::firmware::{self, Build, Toolchain};
use crate::project;
use image::Image;
use trace::Trace;

const TARGET: &str = "thumbv6m-none-eabi";
/// The firmware without nanonsq.
const PIPE: &str = "pipe";
/// The firmware with the sizes of types as constants.
const TYPES: &str = "types";
const CLIENTS: [&str; 6] = [
    "publisher",
    "publisher_one_task",
    "publisher_lookup",
    "publisher_lookup_2",
    "publisher_consumer",
    "publisher_consumer_lookup",
];
/// The clients that `--json` and `--profile` print.
const CHIEF: [&str; 5] = [
    "publisher",
    "publisher_one_task",
    "publisher_lookup",
    "publisher_consumer",
    "publisher_consumer_lookup",
];

#[derive(Args)]
pub(crate) struct Options {
    /// Print one JSON object and nothing else
    #[arg(long)]
    json: bool,
    /// Also print the largest functions, where the instructions go and the deepest stack
    #[arg(long, conflicts_with = "json")]
    profile: bool,
    /// Measure only this client, and print one JSON object
    #[arg(long, value_name = "CLIENT", value_parser = CLIENTS)]
    only: Option<String>,
}

/// Firmwares with an nsqd, of which only sizes are reported: without HTTP and nsqlookupds; with
/// HTTP, an nsqlookupd and lookups of channels.
const NSQDS: [&str; 2] = ["node", "node_http"];
/// The firmware with storage in statics, which must take no flash.
const ZERO: &str = "zero";

/// An optimisation level of the compiler.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Z,
    S,
}

impl Level {
    const ALL: [Level; 2] = [Level::Z, Level::S];

    fn name(self) -> &'static str {
        match self {
            Level::Z => "z",
            Level::S => "s",
        }
    }

    fn profile(self) -> &'static str {
        match self {
            Level::Z => "size-z",
            Level::S => "size-s",
        }
    }
}

/// All measurements.
struct Measured {
    /// The images without simulated peers.
    images: BTreeMap<(Level, String), Image>,
    /// The runs of the images with simulated peers.
    traces: BTreeMap<(Level, String), Trace>,
    /// Instructions per message, answered at once and one wake later.
    x86: BTreeMap<String, [u64; 2]>,
    /// The compiler of the images, as it names itself.
    toolchain: String,
}

/// The measurements of a client: bytes, and instructions per message.
struct Row {
    flash_z: u64,
    flash_s: u64,
    static_ram: u64,
    /// The part of the RAM that is outbox and receive buffers.
    buffers: u64,
    peak_stack_z: u64,
    peak_stack_s: u64,
    m0_instr_s: u64,
    m0_instr_z: u64,
    /// `late`: the answer comes one wake later, as on any network.
    m0_instr_s_late: u64,
    m0_instr_z_late: u64,
    /// The message lies at an odd address.
    m0_instr_s_odd: u64,
    x86_instr_o3: u64,
    x86_instr_o3_late: u64,
    /// Calls per message.
    writes: u64,
    reads: u64,
}

impl Row {
    /// Returns the bytes of RAM and stack besides buffers.
    fn ram_z(&self) -> u64 {
        (self.static_ram + self.peak_stack_z).saturating_sub(self.buffers)
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let measured = Measured::measure(options.only.as_deref())?;
    if let Some(client) = &options.only {
        let json = table::json(&measured.row(client)?, &measured.toolchain);
        println!("{:#}", serde_json::json!({ client: json }));
        if options.profile {
            measured.print_profiles(client);
        }
        return Ok(());
    }
    if options.json {
        let mut object: serde_json::Map<_, _> = CHIEF
            .into_iter()
            .map(|client| {
                Ok((client.to_owned(), table::json(&measured.row(client)?, &measured.toolchain)))
            })
            .collect::<Result<_>>()?;
        let nsqds = NSQDS
            .into_iter()
            .map(|nsqd| {
                Ok((nsqd.to_owned(), table::nsqd_json(measured.nsqd(nsqd)?, &measured.toolchain)))
            })
            .collect::<Result<serde_json::Map<_, _>>>()?;
        object.extend(nsqds);
        println!("{:#}", serde_json::Value::Object(object));
        return Ok(());
    }
    let rows = CLIENTS.map(|client| measured.row(client));
    let [publisher, one_task, lookup, lookup_2, consumer, consumer_lookup] = rows;
    table::print(
        [&publisher?, &one_task?, &lookup?, &lookup_2?, &consumer?, &consumer_lookup?],
        &measured.toolchain,
    );
    table::print_nsqds([measured.nsqd(NSQDS[0])?, measured.nsqd(NSQDS[1])?]);
    table::print_types(measured.image(Level::Z, TYPES)?);
    if options.profile {
        for client in CHIEF {
            measured.print_profiles(client);
        }
    }
    Ok(())
}

impl Measured {
    fn measure(only: Option<&str>) -> Result<Self> {
        let toolchain = Toolchain::find(TARGET)?;
        firmware::qemu()?;
        let manifest = project::root().join("tests/sizes/Cargo.toml");
        // Under the root's target directory, where `cargo clean` finds it.
        let target_dir = project::root().join("target/sizes");
        let bins: Vec<&str> = only.map(|client| vec![client, PIPE, TYPES]).unwrap_or_default();
        let mut images = BTreeMap::new();
        let mut traces = BTreeMap::new();
        for level in Level::ALL {
            let build = |features| {
                let profile = level.profile();
                eprintln!("building {profile} {features:?} ...");
                toolchain.build(&Build {
                    bins: &bins,
                    manifest: &manifest,
                    target_dir: &target_dir,
                    profile,
                    features,
                    no_default_features: false,
                    env: &[],
                })
            };
            for (name, path) in build(&[])? {
                images.insert((level, name), Image::read(&path)?);
            }
            let nsqds = if only.is_none() { build(&["nsqd"])? } else { Vec::new() };
            for (name, path) in nsqds {
                if NSQDS.contains(&&*name) || name == ZERO {
                    images.insert((level, name), Image::read(&path)?);
                }
            }
            for (name, path) in build(&["peer"])? {
                if name == PIPE || CLIENTS.contains(&&*name) {
                    eprintln!("running {name} ...");
                    traces.insert((level, name), trace::run(&Image::read(&path)?)?);
                }
            }
        }
        if let Some(zero) = images.get(&(Level::Z, ZERO.to_owned())) {
            let initialized = zero.initialized("ZERO_");
            ensure!(
                initialized.is_empty(),
                "storage that is not all zeros takes flash when it is a static: {initialized:?}"
            );
        }
        let toolchain = toolchain.version()?;
        Ok(Self { images, traces, x86: on_x86(&manifest, &target_dir, only)?, toolchain })
    }

    fn image(&self, level: Level, name: &str) -> Result<&Image> {
        self.images.get(&(level, name.to_owned())).with_context(|| format!("no firmware {name}"))
    }

    /// Returns what a program adds to the one without nanonsq.
    fn added(&self, level: Level, program: &str, of: fn(&Image) -> u64) -> Result<u64> {
        let (with, without) = (self.image(level, program)?, self.image(level, PIPE)?);
        Ok(of(with).saturating_sub(of(without)))
    }

    /// Returns what an nsqd adds: bytes of flash at z and s, and of static RAM.
    fn nsqd(&self, nsqd: &str) -> Result<[u64; 3]> {
        Ok([
            self.added(Level::Z, nsqd, |image| image.flash)?,
            self.added(Level::S, nsqd, |image| image.flash)?,
            self.added(Level::Z, nsqd, |image| image.ram)?,
        ])
    }

    fn print_profiles(&self, client: &str) {
        for level in Level::ALL {
            let key = (level, client.to_owned());
            let title = format!("{client} at {}", level.name());
            table::print_profile(&title, &self.images[&key], &self.traces[&key]);
        }
    }

    fn trace(&self, level: Level, name: &str) -> Result<&Trace> {
        self.traces.get(&(level, name.to_owned())).with_context(|| format!("{name} did not run"))
    }

    fn row(&self, client: &str) -> Result<Row> {
        let stack = |level| {
            let (with, without) = (self.trace(level, client)?, self.trace(level, PIPE)?);
            anyhow::Ok(with.stack.saturating_sub(without.stack))
        };
        let types: BTreeMap<_, _> =
            self.image(Level::Z, TYPES)?.words(table::SIZE_OF).into_iter().collect();
        let buffer = |name: &str| {
            types.get(name).map(|&n| u64::from(n)).with_context(|| format!("no size of {name}"))
        };
        let sum = |buffers: &[&str]| buffers.iter().map(|name| buffer(name)).sum::<Result<u64>>();
        let more = match client {
            "publisher_lookup" => sum(&["lookup_rx"])?,
            "publisher_lookup_2" => sum(&["lookup_rx"; 2])?,
            "publisher_consumer" => sum(&["consumer_ring", "consumer_rx", "consumer_rx"])?,
            "publisher_consumer_lookup" => {
                sum(&["consumer_ring", "consumer_rx", "consumer_rx", "consumer_lookup_rx"])?
            }
            _ => 0,
        };
        let at_s = self.trace(Level::S, client)?;
        let at_z = self.trace(Level::Z, client)?;
        let [x86_instr_o3, x86_instr_o3_late] = *self.x86.get(client).context("not counted")?;
        let calls = |name: &str| at_s.calls.get(name).copied().unwrap_or_default();
        Ok(Row {
            flash_z: self.added(Level::Z, client, |image| image.flash)?,
            flash_s: self.added(Level::S, client, |image| image.flash)?,
            static_ram: self.added(Level::Z, client, |image| image.ram)?,
            buffers: sum(&["outbox", "publisher_rx"])? + more,
            peak_stack_z: stack(Level::Z)?,
            peak_stack_s: stack(Level::S)?,
            m0_instr_s: at_s.per_message,
            m0_instr_z: at_z.per_message,
            m0_instr_s_late: at_s.late,
            m0_instr_z_late: at_z.late,
            m0_instr_s_odd: at_s.odd,
            x86_instr_o3,
            x86_instr_o3_late,
            writes: calls("bl_write"),
            reads: calls("bl_read"),
        })
    }
}

/// Counts the instructions per message of each client, built for this machine.
fn on_x86(
    manifest: &Path,
    target_dir: &Path,
    only: Option<&str>,
) -> Result<BTreeMap<String, [u64; 2]>> {
    ensure!(cfg!(target_arch = "x86_64"), "x86-64 instructions can be counted on x86-64 only");
    eprintln!("building for x86-64 ...");
    let mut command = Command::new(env!("CARGO"));
    command.args(["build", "--quiet", "--message-format=json-render-diagnostics"]);
    match only {
        Some(client) => command.args(["--bin", client]),
        None => command.arg("--bins"),
    };
    command.args(["--release", "--features", "peer", "--manifest-path"]).arg(manifest);
    command.arg("--target-dir").arg(target_dir);
    let mut counts = BTreeMap::new();
    for (name, program) in firmware::executables(&mut command)? {
        if CLIENTS.contains(&&*name) {
            eprintln!("counting {name} ...");
            let [at_once, late] = [false, true].map(|late| callgrind::per_message(&program, late));
            counts.insert(name, [at_once?, late?]);
        }
    }
    Ok(counts)
}
