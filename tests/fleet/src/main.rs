//! `cargo xtask fleet`: see `--help`.
//!
//! | module | contents |
//! |---|---|
//! | `simulated` | all nodes and a model nsqlookupd in virtual time |
//! | `real` | all nodes in this process, each with a connection to a real nsqlookupd |
//! | `plot` | a picture of the simulated runs |

mod plot;
mod real;
mod simulated;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Parser;
use nanonsq_std::core::registration::{Config, NodeInfo};

use simulated::{Jitter, Scenario};

/// Measure how a fleet returns to an nsqlookupd that restarts
#[derive(Parser)]
#[command(bin_name = "cargo xtask fleet")]
struct Options {
    /// Number of nodes
    #[arg(long, default_value_t = 10_000)]
    nodes: usize,
    /// Run only the simulation
    #[arg(long)]
    simulated: bool,
    /// Write the picture to this file
    #[arg(long)]
    svg: Option<PathBuf>,
}

/// The most seconds until all nodes must be listed again.
const LISTED: f64 = 30.0;
/// One of this many nodes may connect within any second.
const SHARE: usize = 5;

/// The description of each node in IDENTIFY.
pub(crate) const NODE: NodeInfo<'_> = NodeInfo {
    broadcast_address: "10.0.0.1",
    hostname: "node",
    tcp_port: 4150,
    http_port: 4151,
    version: "1.3.0",
    topology_region: "",
    topology_zone: "",
};

/// When nodes connected, and when the last of them was listed again.
#[derive(Debug)]
pub(crate) struct Return {
    /// Connections in each tenth of a second, from when nsqlookupd was up again.
    pub(crate) tenths: Vec<usize>,
    /// Seconds until all were listed.
    pub(crate) listed: f64,
}

impl Return {
    /// The most connections within a second.
    pub(crate) fn peak(&self) -> usize {
        self.tenths.windows(10).map(|second| second.iter().sum()).max().unwrap_or(0)
    }

    fn check(&self, nodes: usize) -> Result<()> {
        let (peak, most) = (self.peak(), nodes / SHARE);
        ensure!(peak <= most, "{peak} connections within a second, more than {most}");
        ensure!(self.listed <= LISTED, "listed after {:.1} s, more than {LISTED} s", self.listed);
        Ok(())
    }
}

fn main() -> Result<()> {
    let options = Options::parse();
    let nodes = options.nodes;
    if nodes < 100 {
        bail!("a fleet has a hundred nodes at least");
    }
    println!("{nodes} simulated nodes, back after an nsqlookupd was down:\n");
    println!("settings         jitter  down for  all listed after  most in 1 s  most in 0.1 s");
    let mut series = Vec::new();
    // The configuration for a few nodes is there for comparison only.
    for (name, config, jitter, downs) in [
        ("Config::new", Config::new(NODE), Jitter::None, &[plot::DOWN][..]),
        ("Config::new", Config::new(NODE), Jitter::Each, &[plot::DOWN]),
        ("Config::fleet", Config::fleet(NODE), Jitter::Each, &[0.1, 1.0, plot::DOWN, 30.0]),
    ] {
        for &down in downs {
            let result = simulated::run(&Scenario { nodes, config, jitter, down });
            let jittered = if jitter == Jitter::Each { "yes" } else { "no" };
            println!(
                "{name:<16} {jittered:<6} {down:>7.1} s {:>14.1} s {:>12} {:>14}",
                result.listed,
                result.peak(),
                result.tenths.iter().max().unwrap_or(&0)
            );
            if name == "Config::fleet" {
                result.check(nodes)?;
            }
            if down == plot::DOWN {
                series.push(result);
            }
        }
    }
    if let Some(path) = &options.svg {
        std::fs::write(path, plot::svg(nodes, &series))?;
        println!("\nwrote {}", path.display());
    }
    if options.simulated {
        return Ok(());
    }
    real::run(nodes)
}
