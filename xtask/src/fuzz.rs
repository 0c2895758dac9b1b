//! `cargo xtask fuzz`: the targets of `tests/fuzz` on a stable toolchain.
//!
//! With `--guided` libFuzzer chooses the inputs by the branches that they take, as `cargo fuzz`
//! does, but without sanitizers, which need a nightly toolchain.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;

use crate::project;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Run libFuzzer on one target, with its options: `--guided json -max_total_time=60`
    #[arg(long)]
    guided: Option<String>,
    /// Keep in the corpus those inputs of libFuzzer for these targets that add coverage
    #[arg(long, num_args = 1.., conflicts_with = "guided")]
    keep: Vec<String>,
    /// See `cargo xtask fuzz --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(target) = &options.guided {
        return guided(target, &options.rest);
    }
    if !options.keep.is_empty() {
        return keep(&options.keep);
    }
    let status = runner().args(&options.rest).status()?;
    // The program has printed the reason.
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

fn runner() -> Command {
    let mut command = Command::new(env!("CARGO"));
    // Optimized, with all checks.
    command.args(["run", "--quiet", "--profile=sim", "--package=nanonsq-fuzz", "--manifest-path"]);
    command.arg(project::root().join("Cargo.toml")).arg("--");
    command
}

/// Compiler flags that count branches and comparisons for libFuzzer.
const COUNTING: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Ccodegen-units=1 --cfg fuzzing";

fn guided(target: &str, rest: &[OsString]) -> Result<()> {
    let corpus = dir().join("corpus").join(target);
    project::run(lib_fuzzer(target)?.arg(corpus).args(rest))
}

/// Keeps the fewest and shortest inputs with the same coverage.
fn keep(targets: &[String]) -> Result<()> {
    let least = dir().join("least");
    for target in targets {
        let least = least.join(target);
        if least.exists() {
            std::fs::remove_dir_all(&least)?;
        }
        std::fs::create_dir_all(&least)?;
        let corpus = dir().join("corpus").join(target);
        let merge = ["-merge=1", "-max_len=1500"];
        project::run(lib_fuzzer(target)?.args(merge).arg(&least).arg(corpus))?;
    }
    // Last, because the corpus is a part of the program.
    project::run(runner().args(targets).arg("--collect").arg(least))
}

fn dir() -> PathBuf {
    project::root().join("target/fuzz")
}

/// Returns the command for libFuzzer with one target, and writes the target's inputs to
/// `target/fuzz/corpus`.
fn lib_fuzzer(target: &str) -> Result<Command> {
    let dir = dir();
    project::run(runner().arg(target).arg("--write-inputs").arg(dir.join("corpus")))?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--release", "--bin", target, "--manifest-path"]);
    command.arg(project::root().join("fuzz/Cargo.toml"));
    // With `--target`, build scripts are not instrumented.
    command.args(["--target", &host()?, "--target-dir"]).arg(&dir).env("RUSTFLAGS", COUNTING);
    command.arg("--").current_dir(&dir);
    Ok(command)
}

fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output().context("cannot run rustc")?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc does not print the host")
}
