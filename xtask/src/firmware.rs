//! Builds for microcontrollers with the installed toolchains.
//!
//! A toolchain either has the target's `core` library (`rustup target add`), or its source, and can
//! build it (`-Zbuild-std`; Debian's `rust-src` packages, `rustup component add rust-src`). No
//! committed configuration depends on that, so that a plain `cargo build --target` works wherever
//! the library is installed.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// A cargo that can build for a target, with its environment.
pub(crate) struct Toolchain {
    target: &'static str,
    cargo: PathBuf,
    env: Vec<(String, String)>,
}

/// A package and how to build it.
pub(crate) struct Build<'a> {
    pub(crate) manifest: &'a Path,
    pub(crate) target_dir: &'a Path,
    pub(crate) profile: &'a str,
    /// The binaries to build; empty: all.
    pub(crate) bins: &'a [&'a str],
    pub(crate) features: &'a [&'a str],
    pub(crate) no_default_features: bool,
    pub(crate) env: &'a [(&'a str, &'a str)],
}

impl Toolchain {
    /// Finds a toolchain for a target.
    pub(crate) fn find(target: &'static str) -> Result<Self> {
        let ours = (PathBuf::from(env!("CARGO")), rustc());
        let system = (PathBuf::from("/usr/bin/cargo"), PathBuf::from("/usr/bin/rustc"));
        let candidates = [ours, system];
        for (cargo, rustc) in &candidates {
            if print(rustc, &["--print", "target-libdir", "--target", target])
                .is_some_and(|dir| has_core(Path::new(&dir)))
            {
                let env = vec![("RUSTC".to_owned(), rustc.display().to_string())];
                return Ok(Self { target, cargo: cargo.clone(), env });
            }
        }
        for (cargo, rustc) in &candidates {
            let Some(sysroot) = print(rustc, &["--print", "sysroot"]) else { continue };
            let sysroot = PathBuf::from(sysroot);
            let Some(linker) = linker(&sysroot) else { continue };
            if sysroot.join("lib/rustlib/src/rust/library/core").is_dir() && cargo.is_file() {
                let linker_key =
                    format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
                let env = vec![
                    ("RUSTC".to_owned(), rustc.display().to_string()),
                    ("RUSTC_BOOTSTRAP".to_owned(), "1".to_owned()),
                    // `alloc` is for firmware with a heap.
                    ("CARGO_UNSTABLE_BUILD_STD".to_owned(), "core,alloc".to_owned()),
                    (linker_key, linker),
                ];
                return Ok(Self { target, cargo: cargo.clone(), env });
            }
        }
        bail!(
            "no Rust toolchain here builds for {target}: run `rustup target add {target}`. Without \
             rustup, on Debian: `apt-get install rustc-web cargo-web rust-web-src lld-19`."
        )
    }

    /// Returns the compiler's version, as it names itself.
    pub(crate) fn version(&self) -> Result<String> {
        let rustc =
            self.env.iter().find(|(key, _)| key == "RUSTC").map(|(_, path)| Path::new(path));
        let version = rustc.and_then(|rustc| print(rustc, &["--version"]));
        Ok(version.context("`rustc --version` failed")?.trim().to_owned())
    }

    /// Returns a cargo command for the target.
    pub(crate) fn cargo(&self, subcommand: &str) -> Command {
        let mut command = Command::new(&self.cargo);
        command.args([subcommand, "--target", self.target]);
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Builds the binaries of a package; returns their names and paths.
    pub(crate) fn build(&self, build: &Build<'_>) -> Result<Vec<(String, PathBuf)>> {
        let mut command = self.cargo("build");
        command.args(["--quiet", "--message-format=json-render-diagnostics"]);
        for bin in build.bins {
            command.args(["--bin", bin]);
        }
        if build.bins.is_empty() {
            command.arg("--bins");
        }
        command.args(["--profile", build.profile]);
        command.arg("--manifest-path").arg(build.manifest);
        command.arg("--target-dir").arg(build.target_dir);
        if build.no_default_features {
            command.arg("--no-default-features");
        }
        for feature in build.features {
            command.args(["--features", feature]);
        }
        command.envs(build.env.iter().map(|(key, value)| (key, value)));
        // Build scripts of the package expect its directory.
        command.current_dir(build.manifest.parent().context("a manifest lies in a directory")?);
        executables(&mut command)
    }
}

/// Runs a cargo that prints messages as JSON; returns names and paths of the binaries.
pub(crate) fn executables(command: &mut Command) -> Result<Vec<(String, PathBuf)>> {
    let executable = |message: Value| {
        let name = message["target"]["name"].as_str()?.to_owned();
        Some((name, PathBuf::from(message["executable"].as_str()?)))
    };
    Ok(messages(command)?.into_iter().filter_map(executable).collect())
}

/// Runs a cargo that prints messages as JSON; returns the files that it made.
pub(crate) fn artifacts(command: &mut Command) -> Result<Vec<PathBuf>> {
    let messages = messages(command)?;
    let names = messages.iter().filter_map(|message| message["filenames"].as_array()).flatten();
    Ok(names.filter_map(|name| name.as_str().map(PathBuf::from)).collect())
}

fn messages(command: &mut Command) -> Result<Vec<Value>> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", output.status);
    }
    let lines = output.stdout.split(|&byte| byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

fn rustc() -> PathBuf {
    env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from)
}

fn print(rustc: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new(rustc).args(args).stderr(Stdio::null()).output().ok()?;
    let printed = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| printed.trim().to_owned())
}

fn has_core(dir: &Path) -> bool {
    let is_core = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    };
    fs::read_dir(dir).is_ok_and(|mut entries| entries.any(is_core))
}

/// Finds LLVM's linker: that of the compiler, or else of the system. The compiler derives the
/// linker's flavor from its name.
fn linker(sysroot: &Path) -> Option<String> {
    let own = fs::read_dir(sysroot.join("lib/rustlib")).ok()?;
    let own = own.flatten().map(|host| host.path().join("bin/rust-lld")).find(|lld| lld.is_file());
    if let Some(own) = own {
        return Some(own.display().to_string());
    }
    let path = env::var_os("PATH")?;
    let mut found: Vec<String> = env::split_paths(&path)
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flat_map(|entries| entries.flatten())
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.strip_prefix("ld.lld").is_some_and(|version| {
                version.chars().all(|c| c == '-' || c == '.' || c.is_ascii_digit())
            })
        })
        .collect();
    found.sort();
    found.pop()
}

/// Returns the command `qemu-system-arm`; the error names the package to install.
pub(crate) fn qemu() -> Result<Command> {
    let version = Command::new("qemu-system-arm").arg("--version").output();
    if version.is_ok_and(|output| output.status.success()) {
        return Ok(Command::new("qemu-system-arm"));
    }
    bail!(
        "`qemu-system-arm` was not found: install QEMU (Debian: `apt-get install qemu-system-arm`, \
         macOS: `brew install qemu`)"
    )
}

/// Returns QEMU's version: major and minor.
pub(crate) fn qemu_version() -> Result<(u32, u32)> {
    let output = qemu()?.arg("--version").output()?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = || {
        let mut numbers = printed.split("version ").nth(1)?.split('.');
        Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
    };
    version().with_context(|| format!("no version in {printed:?}"))
}
