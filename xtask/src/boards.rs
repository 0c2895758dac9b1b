//! `cargo xtask boards`: builds the images for boards and checks their sizes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use object::{Object, ObjectSection, ObjectSegment, SectionKind};

use crate::firmware::{Build, Toolchain};
use crate::{project, uf2};

const KIB: u64 = 1024;

#[derive(Args)]
pub(crate) struct Options {
    /// Which boards [default: all]
    boards: Vec<Board>,
    /// Also build the images that log to a debug probe, with defmt
    #[arg(long)]
    probe: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Board {
    /// WIZnet's W5500-EVB-Pico: an RP2040 with Ethernet
    W5500EvbPico,
    /// Raspberry Pi's Pico W: an RP2040 with Wi-Fi
    PicoW,
    /// An ESP32-C3, with Wi-Fi
    Esp32c3,
}

/// The limits of an image: its size plus some reserve, so that growth is detected. Every board has
/// far more flash; the rest of the RAM is for the application.
struct Budget {
    flash: u64,
    ram: u64,
}

/// A built image.
pub(crate) struct Image {
    /// The file that is copied or written to the board.
    pub(crate) file: PathBuf,
    /// Bytes of flash.
    flash: u64,
    /// Bytes of RAM of variables, including the heap if there is one.
    ram: u64,
    /// Bytes of free RAM, including the stack.
    free: u64,
}

impl Board {
    const ALL: [Self; 3] = [Self::W5500EvbPico, Self::PicoW, Self::Esp32c3];

    fn name(self) -> &'static str {
        match self {
            Self::W5500EvbPico => "w5500-evb-pico",
            Self::PicoW => "pico-w",
            Self::Esp32c3 => "esp32c3",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::W5500EvbPico | Self::PicoW => "rp2040",
            Self::Esp32c3 => "esp32c3",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::W5500EvbPico | Self::PicoW => "thumbv6m-none-eabi",
            Self::Esp32c3 => "riscv32imc-unknown-none-elf",
        }
    }

    /// Returns the bytes of RAM, if all of it is for data.
    fn ram(self) -> Option<u64> {
        match self {
            Self::W5500EvbPico | Self::PicoW => Some(264 * KIB),
            // RAM also has code and caches; the linker gives the rest to the stack.
            Self::Esp32c3 => None,
        }
    }

    fn budget(self) -> Budget {
        match self {
            Self::W5500EvbPico => Budget { flash: 336 * KIB, ram: 168 * KIB },
            Self::PicoW => Budget { flash: 620 * KIB, ram: 168 * KIB },
            Self::Esp32c3 => Budget { flash: 800 * KIB, ram: 272 * KIB },
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let boards = if options.boards.is_empty() { &Board::ALL[..] } else { &options.boards };
    let mut images = build_all(boards, options.probe)?;
    images.sort_by_key(|&(board, _)| boards.iter().position(|&other| other == board));
    println!(
        "{:<16} {:>16} {:>16} {:>16} {:>10}  image",
        "board", "flash, bytes", "RAM, bytes", "of", "free RAM"
    );
    let mut over = Vec::new();
    for (board, image) in &images {
        let budget = board.budget();
        println!(
            "{:<16} {:>16} {:>16} {:>16} {:>10}  {}",
            board.name(),
            format!("{} ({} %)", image.flash, percent(image.flash, budget.flash)),
            format!("{} ({} %)", image.ram, percent(image.ram, budget.ram)),
            format!("{}/{}", budget.flash, budget.ram),
            image.free,
            image.file.strip_prefix(project::root()).unwrap_or(&image.file).display()
        );
        if image.flash > budget.flash || image.ram > budget.ram {
            over.push(board.name());
        }
    }
    println!("(percent of the budget in xtask/src/boards.rs)");
    ensure!(over.is_empty(), "over the budget: {}", over.join(", "));
    Ok(())
}

fn percent(part: u64, whole: u64) -> u64 {
    part * 100 / whole
}

/// Builds the images of boards, and with `probe` also those that log to a probe: chips in parallel,
/// and all boards of a chip in one build, since most of the time is the link step on one core.
fn build_all(boards: &[Board], probe: bool) -> Result<Vec<(Board, Image)>> {
    let (rp2040, esp32c3): (Vec<_>, Vec<_>) =
        boards.iter().partition(|board| board.package() == "rp2040");
    let build = |boards: Vec<Board>, probe: bool| -> Result<Vec<(Board, Image)>> {
        let mut images = Vec::new();
        if !boards.is_empty() {
            for (board, elf) in link(&boards, &["text"])? {
                images.push((board, image(board, &elf)?));
            }
            if probe {
                link(&boards, &["defmt"])?;
            }
        }
        Ok(images)
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| build(esp32c3, false));
        let mut images = build(rp2040, probe)?;
        images.extend(other.join().map_err(|_| anyhow!("building for the ESP32-C3 panicked"))??);
        Ok(images)
    })
}

/// Builds the image for a board without a debug probe.
pub(crate) fn build(board: Board) -> Result<Image> {
    let (_, elf) = link(&[board], &["text"])?.pop().context("nothing was built")?;
    image(board, &elf)
}

/// Makes the file to flash from a linked image.
fn image(board: Board, elf: &Path) -> Result<Image> {
    let (ram, stack) = ram(elf)?;
    let free = board.ram().map_or(stack, |all| all.saturating_sub(ram));
    let (file, flash) = match board {
        Board::W5500EvbPico | Board::PicoW => {
            let file = elf.with_extension("uf2");
            uf2::convert(elf, &file)?;
            let flash = loaded(elf)?;
            (file, flash)
        }
        Board::Esp32c3 => {
            let file = elf.with_extension("bin");
            esp_image(elf, &file)?;
            let flash = fs::metadata(&file)?.len();
            (file, flash)
        }
    };
    Ok(Image { file, flash, ram, free })
}

/// Links the images of boards that have the same chip.
fn link(boards: &[Board], features: &[&str]) -> Result<Vec<(Board, PathBuf)>> {
    let names: Vec<_> = boards.iter().map(|board| board.name()).collect();
    let chip = boards.first().context("no board")?;
    eprintln!("building the image of {} for {} ...", features.join(","), names.join(", "));
    let root = project::root();
    let toolchain = Toolchain::find(chip.target())?;
    let build = Build {
        manifest: &root.join("examples").join(chip.package()).join("Cargo.toml"),
        // Under the root's target directory, where `cargo clean` finds it.
        target_dir: &root.join("target").join(chip.package()),
        profile: "release",
        bins: &names,
        features,
        no_default_features: true,
        env: &[],
    };
    let programs = toolchain.build(&build)?;
    let elf = |board: &Board| {
        let program = programs.iter().find(|(name, _)| name == board.name());
        Ok((*board, program.context("cargo named no executable")?.1.clone()))
    };
    boards.iter().map(elf).collect()
}

/// Returns the bytes of flash of a linked image.
fn loaded(elf: &Path) -> Result<u64> {
    let bytes = fs::read(elf)?;
    let file = object::File::parse(&*bytes)?;
    let lengths = file.segments().map(|segment| segment.data().map_or(0, |data| data.len() as u64));
    Ok(lengths.sum())
}

/// Returns the bytes of variables, and of a section for the stack.
pub(crate) fn ram(elf: &Path) -> Result<(u64, u64)> {
    let bytes = fs::read(elf)?;
    let file = object::File::parse(&*bytes)?;
    let (mut variables, mut stack) = (0, 0);
    for section in file.sections() {
        let name = section.name().unwrap_or_default();
        // If code that runs in RAM is in `.data`, the whole section counts as code.
        let is_data = name == ".data"
            || [SectionKind::Data, SectionKind::UninitializedData].contains(&section.kind());
        if name == ".stack" {
            stack += section.size();
        } else if (is_data || name.starts_with(".uninit")) && !name.contains("dummy") {
            // Dummy sections only reserve addresses of code that is on the other bus.
            variables += section.size();
        }
    }
    Ok((variables, stack))
}

/// Makes an application image for the boot loader of the ESP32-C3.
fn esp_image(elf: &Path, image: &Path) -> Result<()> {
    let tools = [
        ("espflash", &["save-image", "--chip", "esp32c3"][..], false),
        ("esptool", &["--chip", "esp32c3", "elf2image", "--flash-mode", "dio", "-o"], true),
    ];
    for (tool, args, is_image_first) in tools {
        let program = env::var_os("NANONSQ_ESPTOOL").filter(|_| tool == "esptool");
        let mut command = Command::new(program.unwrap_or(tool.into()));
        command.args(args);
        let (one, other) = if is_image_first { (image, elf) } else { (elf, image) };
        command.arg(one).arg(other);
        match command.output() {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => {
                bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())
            }
            Err(_) => {}
        }
    }
    bail!(
        "neither `espflash` (cargo install espflash) nor `esptool` (pip install esptool) is there"
    )
}
