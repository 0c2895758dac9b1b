//! Paths of this repository, and running commands.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    // Prefer the variable at run time: a cached build may come from another directory.
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().expect("xtask lies in the root of the repository").to_owned()
}

/// Returns the directory of the NSQ programs. The tests use the same one, regardless of
/// CARGO_TARGET_DIR.
pub(crate) fn peers_dir() -> PathBuf {
    root().join("target/peers")
}

/// Runs a command to its end, with inherited output.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}

/// Builds a binary of a package in release mode, and returns its path.
pub(crate) fn build_release(
    manifest: &Path,
    binary: &str,
    target: Option<&Path>,
) -> Result<PathBuf> {
    let mut command = Command::new(env!("CARGO"));
    command.args([
        "build",
        "--release",
        "--message-format=json-render-diagnostics",
        "--bin",
        binary,
    ]);
    command.arg("--manifest-path").arg(manifest);
    if let Some(target) = target {
        command.arg("--target-dir").arg(target);
    }
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    let executable = |line: &[u8]| {
        let message: Value = serde_json::from_slice(line).ok()?;
        let is_it = message["reason"] == "compiler-artifact" && message["target"]["name"] == binary;
        is_it.then(|| message["executable"].as_str().map(PathBuf::from)).flatten()
    };
    output
        .stdout
        .split(|&byte| byte == b'\n')
        .find_map(executable)
        .context("cargo named no executable")
}
