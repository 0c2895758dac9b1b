//! `cargo xtask peers`: builds the NSQ programs from the module that pins them (`tests/peers`), and
//! other clients: pynsq in a virtual environment, and a program on tokio-nsq.

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs};

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::project;

/// Programs of the `nsq` module.
const NSQ: [&str; 8] = [
    "nsqd",
    "nsqlookupd",
    "nsqadmin",
    "nsq_tail",
    "nsq_to_file",
    "nsq_to_http",
    "nsq_stat",
    "to_nsq",
];
/// Programs of our own, in `tests/peers/cmd`.
const OURS: [&str; 2] = ["go-nsq-bench", "go-nsq-client"];
/// The program on tokio-nsq, in `tests/bench-tokio-nsq`.
const TOKIO_NSQ: &str = "tokio-nsq-client";

#[derive(Args, Default)]
pub(crate) struct Options {
    /// Build even if everything is up to date
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure(options)?;
    let (module, dir) = (module(), project::peers_dir());
    let left_out =
        [("pynsq", pynsq(options, &module, &dir)), (TOKIO_NSQ, tokio_nsq(options, &dir))];
    report(&module, &dir)?;
    for (client, made) in left_out {
        match made {
            Ok(version) => println!("  {client} {version}"),
            // Only some tests need it, and these print that it is missing.
            Err(why) => eprintln!("  {client} IS LEFT OUT: {why:#}"),
        }
    }
    Ok(())
}

/// Builds the NSQ programs that are missing or out of date, and prints nothing if there are none.
pub(crate) fn ensure(options: &Options) -> Result<()> {
    let (module, dir) = (module(), project::peers_dir());
    let stamp = dir.join(".built-from");
    // Contents, not times: a checkout touches every file, but must not invalidate a cached
    // target/peers.
    let inputs = fingerprint(&module)?;

    let present = NSQ.iter().chain(&OURS).all(|program| dir.join(program).is_file());
    if options.force || !present || !is(&stamp, &inputs) {
        build(&module, &dir)?;
        fs::write(&stamp, inputs)?;
    }
    Ok(())
}

fn module() -> PathBuf {
    project::root().join("tests/peers")
}

fn build(module: &Path, dir: &Path) -> Result<()> {
    match Command::new("go").arg("version").output() {
        Err(error) if error.kind() == ErrorKind::NotFound => bail!(
            "`go` was not found. The NSQ programs are written in Go: install Go 1.19 or newer \
             (https://go.dev/dl, or the package golang-go), then run `cargo xtask peers` again."
        ),
        other => drop(other.context("cannot run `go version`")?),
    }
    eprintln!("building the NSQ programs into {} ...", dir.display());
    fs::create_dir_all(dir)?;

    // The trailing separator tells go that this is a directory.
    let mut out = dir.as_os_str().to_owned();
    out.push("/");
    let mut go = Command::new("go");
    go.current_dir(module).env("CGO_ENABLED", "0");
    go.args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        .arg(out);
    go.args(NSQ.map(|program| format!("github.com/nsqio/nsq/apps/{program}")));
    go.args(OURS.map(|program| format!("./cmd/{program}")));
    project::run(&mut go)
}

/// Installs pynsq in `target/peers/pynsq`; returns its version.
fn pynsq(options: &Options, module: &Path, dir: &Path) -> Result<String> {
    let requirements = module.join("pynsq/requirements.txt");
    let wanted = fs::read_to_string(&requirements)?;
    let venv = dir.join("pynsq");
    let stamp = venv.join(".built-from");
    if options.force || !is(&stamp, &wanted) {
        eprintln!("installing pynsq into {} ...", venv.display());
        let mut make = Command::new("python3");
        make.args(["-m", "venv", "--clear"]).arg(&venv);
        project::run(&mut make).context("is Python 3 here, with venv (python3-venv)?")?;
        let mut install = Command::new(venv.join("bin/pip"));
        install.args(["install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]);
        install.args(["--timeout=20", "--retries=2", "--requirement"]).arg(requirements);
        project::run(&mut install)?;
        fs::write(&stamp, &wanted)?;
    }
    let version = wanted.lines().find_map(|line| line.strip_prefix("pynsq=="));
    Ok(version.context("requirements.txt does not pin pynsq")?.to_owned())
}

/// Builds the program on tokio-nsq; returns the version of tokio-nsq.
fn tokio_nsq(options: &Options, dir: &Path) -> Result<String> {
    let package = project::root().join("tests/bench-tokio-nsq");
    let files = ["Cargo.toml", "Cargo.lock", "src/bin/tokio-nsq-client.rs"];
    let inputs = fingerprint_of(files.map(|file| package.join(file)))?;
    let (program, stamp) = (dir.join(TOKIO_NSQ), dir.join(".tokio-nsq-built-from"));
    if options.force || !program.is_file() || !is(&stamp, &inputs) {
        eprintln!("building {} ...", program.display());
        let target = project::root().join("target/bench-tokio-nsq");
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--quiet", "--bin", TOKIO_NSQ]).stdin(Stdio::null());
        build.arg("--manifest-path").arg(package.join("Cargo.toml"));
        build.arg("--target-dir").arg(&target);
        project::run(&mut build)?;
        fs::copy(target.join("debug").join(TOKIO_NSQ), &program)?;
        fs::write(&stamp, inputs)?;
    }
    let manifest = fs::read_to_string(package.join("Cargo.toml"))?;
    let version = manifest.lines().find_map(|line| line.strip_prefix("tokio-nsq = \"="));
    Ok(version.context("Cargo.toml does not pin tokio-nsq")?.trim_end_matches('"').to_owned())
}

/// Returns whether a stamp has the fingerprint of the current inputs.
fn is(stamp: &Path, inputs: &str) -> bool {
    fs::read_to_string(stamp).is_ok_and(|is| is == inputs)
}

fn report(module: &Path, dir: &Path) -> Result<()> {
    let go_mod = fs::read_to_string(module.join("go.mod"))?;
    let nsq = go_mod
        .lines()
        .find_map(|line| line.trim().strip_prefix("github.com/nsqio/nsq "))
        .context("go.mod does not require github.com/nsqio/nsq")?;
    println!("{}:", dir.display());
    for program in NSQ.iter().chain(&OURS) {
        let output = Command::new(dir.join(program)).arg("--version").output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        match printed.lines().next().filter(|_| output.status.success()) {
            Some(version) => println!("  {version}"),
            // Not every program has the flag.
            None => println!("  {program} {nsq}"),
        }
    }
    Ok(())
}

/// Returns a hash of the sources of the programs and of the platform.
fn fingerprint(module: &Path) -> Result<String> {
    let mut files = vec![module.join("go.mod"), module.join("go.sum")];
    for program in OURS {
        let dir = module.join("cmd").join(program);
        let entries =
            fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))?;
        for entry in entries {
            files.push(entry?.path());
        }
    }
    files.retain(|path| {
        ["go", "mod", "sum"].iter().any(|&kind| path.extension() == Some(OsStr::new(kind)))
    });
    files.sort();
    fingerprint_of(files)
}

fn fingerprint_of(files: impl IntoIterator<Item = PathBuf>) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    (NSQ, OURS, env::consts::OS, env::consts::ARCH).hash(&mut hasher);
    for path in files {
        contents(&path)?.hash(&mut hasher);
    }
    Ok(format!("{:016x}\n", hasher.finish()))
}

fn contents(path: &PathBuf) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
