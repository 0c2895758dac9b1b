//! `cargo xtask fuzz`: the targets of `tests/fuzz` on a stable toolchain.
//!
//! With `--guided` it is libFuzzer that chooses the inputs, by the branches that they take: what
//! `cargo fuzz` does, but without its sanitizers, of which only these need a nightly toolchain.

use std::ffi::OsString;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::project;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// libFuzzer on one target, with its own options: `--guided json -max_total_time=60`
    #[arg(long)]
    guided: Option<String>,
    /// See `cargo xtask fuzz --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(target) = &options.guided {
        return guided(target, &options.rest);
    }
    let status = runner().args(&options.rest).status()?;
    // It has said why.
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

fn runner() -> Command {
    let mut command = Command::new(env!("CARGO"));
    // With the optimizer and with all checks.
    command.args(["run", "--quiet", "--profile=sim", "--package=nanonsq-fuzz", "--manifest-path"]);
    command.arg(project::root().join("Cargo.toml")).arg("--");
    command
}

/// What makes the compiler count branches and comparisons for libFuzzer.
const COUNTING: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

fn guided(target: &str, rest: &[OsString]) -> Result<()> {
    let dir = project::root().join("target/fuzz");
    let corpus = dir.join("corpus");
    project::run(runner().arg(target).arg("--write-seeds").arg(&corpus))?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--release", "--bin", target, "--manifest-path"]);
    command.arg(project::root().join("fuzz/Cargo.toml"));
    // With a target given, build scripts are not counted.
    command.args(["--target", &host()?, "--target-dir"]).arg(&dir).env("RUSTFLAGS", COUNTING);
    command.arg("--").arg(corpus.join(target)).args(rest).current_dir(&dir);
    project::run(&mut command)
}

fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not say what machine this is")
}
