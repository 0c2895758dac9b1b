//! `nanonsq completions` and `nanonsq man`: what a package of the program has besides.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Command;
use clap_complete::Shell;

use crate::output::{cannot_print, has_output, is_closed};

#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    /// Shell to print completions for.
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Existing directory to write man pages to, one for each command.
    directory: PathBuf,
}

/// Prints completions for a shell.
pub(crate) fn completions(args: &Completions, mut command: Command) -> Result<ExitCode, String> {
    has_output()?;
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut command, "nanonsq", &mut text);
    let mut stdout = io::stdout().lock();
    match stdout.write_all(&text).and_then(|()| stdout.flush()) {
        Err(error) if !is_closed(&error) => Err(cannot_print(&error)),
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Writes man pages.
pub(crate) fn man(args: &Man, command: Command) -> Result<ExitCode, String> {
    let written = clap_mangen::generate_to(command, &args.directory);
    written.map_err(|error| format!("{}: {error}", args.directory.display()))?;
    Ok(ExitCode::SUCCESS)
}
