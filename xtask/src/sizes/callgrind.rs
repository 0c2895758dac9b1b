//! Instructions on x86-64, counted by valgrind.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// The difference between a long and a short run is what messages take.
const SHORT: u64 = 200;
const LONG: u64 = 1200;

/// Instructions per message, outside functions named `bl_*`.
pub(crate) fn per_message(program: &Path) -> Result<u64> {
    let short = instructions(program, SHORT)?;
    let long = instructions(program, LONG)?;
    let messages = LONG - SHORT;
    let difference = long.checked_sub(short).context("more messages took fewer instructions")?;
    Ok((difference + messages / 2) / messages)
}

fn instructions(program: &Path, messages: u64) -> Result<u64> {
    let mut command = Command::new("valgrind");
    // It stops counting where it begins toggling, unless told not to.
    command.args(["--tool=callgrind", "--toggle-collect=bl_*", "--collect-atstart=yes"]);
    command.arg("--callgrind-out-file=/dev/null").arg(program).arg(messages.to_string());
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        bail!("`valgrind` was not found: install it (Debian: `apt-get install valgrind`)");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    said.lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
        .with_context(|| format!("{command:?} counted nothing:\n{said}"))
}
