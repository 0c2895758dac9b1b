//! `cargo xtask package`: checks what would be published, as its users get it.
//!
//! cargo packages and verifies the crates. Then they are unpacked outside the tree, with a program
//! for a desktop and one for a microcontroller that depend on them, and nothing else: their
//! documentation is built as docs.rs builds it, and both programs are built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::firmware::Toolchain;
use crate::project;

/// The crates to publish, in the order in which they are.
const CRATES: [&str; 4] = ["nanonsq-core", "nanonsq-std", "nanonsq-embassy", "nanonsq"];
/// What each package has.
const FILES: [&str; 5] = ["Cargo.toml", "Cargo.lock", "LICENSE-APACHE", "LICENSE-MIT", "README.md"];
/// What is of no use without the repository.
const NO_FILES: [&str; 1] = ["tests"];

const DEVICE_TARGET: &str = "thumbv6m-none-eabi";

/// A program without a board: it links, and does nothing.
const DEVICE: &str = r#"#![no_std]
#![no_main]

use nanonsq_embassy::TcpStorage;
use nanonsq_embassy::core::{name::TopicName, publisher::{Config, Publisher}, session::Session, time::Instant};

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(no_mangle)]
extern "C" fn _start() -> ! {
    let (config, Ok(nsqd)) = (Config::new(), "192.0.2.1:4150".parse()) else { loop {} };
    let (nsqds, mut outbox) = ([nsqd], [0; 1024]);
    core::hint::black_box(&mut TcpStorage::<512, 1536>::new());
    if let (Ok(mut publisher), Ok(topic)) = (Publisher::new(&config, &nsqds, &mut outbox), TopicName::new("readings")) {
        let _ = publisher.publish(&topic, b"21.5");
        core::hint::black_box(publisher.transmit(Instant::ZERO));
    }
    loop {}
}
"#;

#[derive(Args)]
pub(crate) struct Options {
    /// Package files that are not committed, too.
    #[arg(long)]
    allow_dirty: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| project::root().join("target"), PathBuf::from);
    fs::create_dir_all(&target)?;
    // cargo keeps what it unpacked, by the path and the version: at the same path, it would verify
    // against the sources of an earlier run.
    let packages = tempfile::tempdir_in(&target)?;
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(project::root()).args(["package", "--locked", "--quiet"]);
    cargo.arg("--target-dir").arg(packages.path());
    cargo.args(CRATES.iter().flat_map(|name| ["--package", name]));
    if options.allow_dirty {
        cargo.arg("--allow-dirty");
    }
    project::run(&mut cargo)?;

    let dir = tempfile::tempdir()?;
    let mut members = Vec::new();
    for name in CRATES {
        let (file, member) = newest(&packages.path().join("package"), name)?;
        unpack(&file, dir.path(), &member)?;
        println!("{member}: {} KiB", fs::metadata(&file)?.len().div_ceil(1024));
        members.push(member);
    }
    let scratch = Scratch::new(dir.path(), &members)?;
    scratch.document(&target)?;
    scratch.build_desktop(&target)?;
    scratch.link_device(&target)
}

/// Returns the newest package of a crate, and its name with the version.
fn newest(dir: &Path, name: &str) -> Result<(PathBuf, String)> {
    let mut found = None;
    for entry in fs::read_dir(dir).with_context(|| dir.display().to_string())? {
        let path = entry?.path();
        let member = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let version = member.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
        let is_it = version
            .is_some_and(|version| version.starts_with(|c: char| c.is_ascii_digit()))
            && path.extension().is_some_and(|extension| extension == "crate");
        if is_it {
            let written = fs::metadata(&path)?.modified()?;
            found = found.max(Some((written, path, member)));
        }
    }
    let (_, path, member) = found.with_context(|| format!("no package of {name}"))?;
    Ok((path, member))
}

/// Unpacks a package and checks its list of files.
fn unpack(file: &Path, dir: &Path, member: &str) -> Result<()> {
    project::run(Command::new("tar").arg("xzf").arg(file).arg("-C").arg(dir))?;
    let root = dir.join(member);
    for name in FILES {
        let text =
            fs::read_to_string(root.join(name)).with_context(|| format!("{member}/{name}"))?;
        ensure!(text.lines().count() > 1, "{member}/{name} is not the file itself");
    }
    for name in NO_FILES {
        ensure!(!root.join(name).exists(), "{member} contains {name}");
    }
    Ok(())
}

/// A workspace outside the tree, with the unpacked crates in place of those of the registry.
struct Scratch<'a> {
    dir: &'a Path,
}

impl<'a> Scratch<'a> {
    fn new(dir: &'a Path, members: &[String]) -> Result<Self> {
        let mut manifest =
            "[workspace]\nresolver = \"3\"\nmembers = [\"desktop\", \"device\"".to_owned();
        members.iter().for_each(|member| manifest.push_str(&format!(", \"{member}\"")));
        manifest.push_str("]\n\n[profile.release]\npanic = \"abort\"\n\n[patch.crates-io]\n");
        for (name, member) in CRATES.iter().zip(members) {
            manifest.push_str(&format!("{name} = {{ path = \"{member}\" }}\n"));
        }
        fs::write(dir.join("Cargo.toml"), manifest)?;
        // The versions of dependencies that CI has tested.
        fs::copy(project::root().join("Cargo.lock"), dir.join("Cargo.lock"))?;

        let std = members.iter().find(|member| member.starts_with("nanonsq-std"));
        let readme = dir.join(std.context("nanonsq-std")?).join("README.md");
        let readme = fs::read_to_string(readme)?;
        let program = readme.split("```rust").nth(1).and_then(|rest| rest.split("```").next());
        let program = program.and_then(|block| block.split_once('\n'));
        let (_, program) = program.context("the README of nanonsq-std has no program")?;
        let tokio = "tokio = { version = \"1\", features = [\"macros\", \"rt-multi-thread\"] }";
        write_package(dir, "desktop", &format!("nanonsq-std = \"*\"\n{tokio}"), program)?;
        write_package(dir, "device", "nanonsq-embassy = \"*\"", DEVICE)?;
        Ok(Self { dir })
    }

    /// Builds the documentation as docs.rs does, which has a nightly toolchain; a broken link is an
    /// error.
    fn document(&self, target: &Path) -> Result<()> {
        let mut cargo = self.cargo(env!("CARGO"), "doc", target);
        cargo.args(["--no-deps", "--all-features"]);
        cargo.args(CRATES.iter().flat_map(|name| ["--package", name]));
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.env("RUSTDOCFLAGS", "-Dwarnings --cfg docsrs");
        project::run(&mut cargo)?;
        println!("the documentation has no broken link");
        Ok(())
    }

    fn build_desktop(&self, target: &Path) -> Result<()> {
        let mut cargo = self.cargo(env!("CARGO"), "build", target);
        project::run(cargo.args(["--package", "desktop"]))?;
        println!("the README's program builds outside the tree");
        Ok(())
    }

    fn link_device(&self, target: &Path) -> Result<()> {
        let toolchain = Toolchain::find(DEVICE_TARGET)?;
        let mut cargo = toolchain.cargo("build");
        cargo.current_dir(self.dir).args(["--quiet", "--release", "--package", "device"]);
        cargo.arg("--target-dir").arg(target.join("package/scratch-device"));
        project::run(&mut cargo)?;
        println!("a program links for {DEVICE_TARGET} outside the tree");
        Ok(())
    }

    fn cargo(&self, program: &str, subcommand: &str, target: &Path) -> Command {
        let mut cargo = Command::new(program);
        cargo.current_dir(self.dir).args([subcommand, "--quiet"]);
        cargo.arg("--target-dir").arg(target.join("package/scratch"));
        cargo
    }
}

fn write_package(dir: &Path, name: &str, dependencies: &str, main: &str) -> Result<()> {
    let root = dir.join(name);
    fs::create_dir_all(root.join("src"))?;
    let manifest = format!(
        "[package]\nname = \"{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n{dependencies}\n"
    );
    fs::write(root.join("Cargo.toml"), manifest)?;
    fs::write(root.join("src/main.rs"), main)?;
    Ok(())
}
