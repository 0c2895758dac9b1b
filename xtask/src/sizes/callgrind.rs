//! Instructions on x86-64, counted by valgrind.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// Messages of a short and a long run; their difference gives the instructions of a message.
const SHORT: u64 = 200;
const LONG: u64 = 1200;

/// Counts the instructions per message, outside functions named `bl_*`. If `late`, the answers come
/// one wake later.
pub(crate) fn per_message(program: &Path, late: bool) -> Result<u64> {
    let short = instructions(program, SHORT, late)?;
    let long = instructions(program, LONG, late)?;
    let messages = LONG - SHORT;
    let difference = long.checked_sub(short).context("more messages took fewer instructions")?;
    Ok((difference + messages / 2) / messages)
}

fn instructions(program: &Path, messages: u64, late: bool) -> Result<u64> {
    let mut command = Command::new("valgrind");
    // With `--toggle-collect`, counting is off at the start by default.
    command.args(["--tool=callgrind", "--toggle-collect=bl_*", "--collect-atstart=yes"]);
    command.arg("--callgrind-out-file=/dev/null").arg(program).arg(messages.to_string());
    command.args(late.then_some("late"));
    let Ok(output) = command.stdin(Stdio::null()).output() else {
        bail!("`valgrind` was not found: install it (Debian: `apt-get install valgrind`)");
    };
    let printed = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{printed}", output.status);
    printed
        .lines()
        .find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
        .with_context(|| format!("{command:?} counted nothing:\n{printed}"))
}
