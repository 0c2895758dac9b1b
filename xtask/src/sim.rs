//! `cargo xtask sim`: runs the simulator of `tests/sim`, and checks that it finds planted faults.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use crate::project;

#[derive(Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// Plant each fault of tests/sim/planted into a copy of this repository, and check that the
    /// simulator finds it; further arguments select faults by name
    #[arg(long)]
    planted: bool,
    /// For the simulator: see `cargo xtask sim --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    rest: Vec<OsString>,
}

/// The seeds within which every planted fault must be found.
const SEEDS: &str = "1000";

pub(crate) fn run(options: &Options) -> Result<()> {
    if options.planted {
        return planted(&options.rest);
    }
    let status = simulator(&project::root(), "sim").args(&options.rest).status()?;
    // The simulator has printed the reason.
    if !status.success() {
        std::process::exit(status.code().unwrap_or(1));
    }
    Ok(())
}

/// Returns the command that runs the simulator of a tree.
fn simulator(root: &Path, profile: &str) -> Command {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--quiet", "--package=nanonsq-sim", "--profile", profile]);
    command.arg("--manifest-path").arg(root.join("Cargo.toml"));
    command.arg("--");
    command
}

/// A planted fault: a replacement in a file.
struct Fault {
    name: String,
    what: String,
    file: String,
    was: String,
    is: String,
}

fn planted(names: &[OsString]) -> Result<()> {
    let root = project::root();
    let mut faults = all_faults(&root)?;
    faults.retain(|fault| names.is_empty() || names.iter().any(|name| **name == *fault.name));
    ensure!(!faults.is_empty(), "no fault of such a name in tests/sim/planted");

    let copy = root.join("target/planted/tree");
    copy_tree(&root, &copy)?;
    // Check all first: a fault that no longer fits is an error of this repository.
    for fault in &faults {
        fault.plant(&copy)?;
    }
    let planted = || {
        let mut command = simulator(&copy, "planted");
        command.env("CARGO_TARGET_DIR", root.join("target/planted/target"));
        command.arg("--first");
        command
    };
    let well = planted().arg("--seeds=100").output()?;
    ensure!(well.status.success(), "it fails without any fault:\n{}", text(&well));
    let mut missed = Vec::new();
    for fault in &faults {
        let path = copy.join(&fault.file);
        let before = fs::read_to_string(&path)?;
        fs::write(&path, fault.plant(&copy)?)?;
        let output = planted().args(["--seeds", SEEDS]).output();
        fs::write(&path, before)?;
        let output = output?;
        let printed = text(&output);
        let last = printed.lines().last().unwrap_or_default();
        match output.status.code() {
            Some(1) if last.starts_with("seed ") => println!("found   {}: {last}", fault.name),
            Some(0) => {
                println!("MISSED  {}: {}", fault.name, fault.what);
                missed.push(&*fault.name);
            }
            _ => bail!("{}: {}\n{printed}", fault.name, output.status),
        }
    }
    ensure!(missed.is_empty(), "not found within {SEEDS} seeds: {}", missed.join(", "));
    println!("all {} planted faults are found within {SEEDS} seeds", faults.len());
    Ok(())
}

/// Reads all planted faults, in the order of their names.
fn all_faults(root: &Path) -> Result<Vec<Fault>> {
    let mut paths = fs::read_dir(root.join("tests/sim/planted"))?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    paths.iter().map(|path| Fault::read(path)).collect()
}

fn text(output: &std::process::Output) -> String {
    let all = [&*output.stderr, &*output.stdout].concat();
    String::from_utf8_lossy(&all).into_owned()
}

impl Fault {
    /// Reads a description after `# `, the file's name, and two texts between conflict marks.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let parse = || {
            let (what, rest) = text.strip_prefix("# ")?.split_once('\n')?;
            let (file, rest) = rest.split_once("\n<<<<<<<\n")?;
            let (was, rest) = rest.split_once("=======\n")?;
            let is = rest.strip_suffix(">>>>>>>\n")?;
            Some((what.to_owned(), file.to_owned(), was.to_owned(), is.to_owned()))
        };
        let (what, file, was, is) =
            parse().with_context(|| format!("{}: not a planted fault", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, what, file, was, is })
    }

    /// Returns the file's text with the fault.
    fn plant(&self, tree: &Path) -> Result<String> {
        let text = fs::read_to_string(tree.join(&self.file))?;
        let times = text.matches(&self.was).count();
        ensure!(
            times == 1,
            "planted fault {}: its text is {times} times in {}: adapt it to the code of today",
            self.name,
            self.file
        );
        Ok(text.replacen(&self.was, &self.is, 1))
    }
}

/// Copies the files that git tracks, and removes other files from the copy. Unchanged files keep
/// their time, so that little is rebuilt.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    let output = Command::new("git").arg("-C").arg(from).args(["ls-files", "-z"]).output()?;
    ensure!(output.status.success(), "git ls-files: {}", text(&output));
    let mut known = BTreeSet::new();
    for name in String::from_utf8(output.stdout)?.split_terminator('\0') {
        let (source, copy) = (from.join(name), to.join(name));
        let Ok(bytes) = fs::read(&source) else { continue };
        known.insert(copy.clone());
        if fs::read(&copy).is_ok_and(|known| known == bytes) {
            continue;
        }
        fs::create_dir_all(copy.parent().context("a file has a directory")?)?;
        fs::write(&copy, bytes)?;
    }
    remove_others(to, &known)
}

/// Removes files that are not in `known`, such as the old copy of a moved file.
fn remove_others(dir: &Path, known: &BTreeSet<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_others(&entry.path(), known)?;
        } else if !known.contains(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In a second, what `cargo xtask sim --planted` would say after its build.
    #[test]
    fn every_planted_fault_fits_the_code() {
        let root = project::root();
        let faults = all_faults(&root).unwrap();
        assert!(!faults.is_empty());
        let misfits: Vec<_> = faults.iter().filter_map(|fault| fault.plant(&root).err()).collect();
        assert!(misfits.is_empty(), "{misfits:#?}");
    }
}
