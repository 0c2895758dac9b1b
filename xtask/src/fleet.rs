//! `cargo xtask fleet`: ten thousand nodes and an nsqlookupd that restarts.

use std::ffi::OsString;
use std::process::Command;

use anyhow::Result;
use clap::Args;

use crate::project;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// See `cargo xtask fleet --help`; without arguments, the picture in docs/ is updated
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let root = project::root();
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--profile=sim", "--package=nanonsq-fleet", "--manifest-path"]);
    command.arg(root.join("Cargo.toml")).arg("--").args(&options.rest);
    if options.rest.is_empty() {
        command.arg("--svg").arg(root.join("docs/src/fleet.svg"));
    }
    let status = command.status()?;
    // The program has printed the reason.
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}
