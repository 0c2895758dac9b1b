//! `cargo xtask panics`: checks that nothing in the core can panic.
//!
//! The core is compiled for a microcontroller with all its functions, called or not, and the call
//! graph is searched: no function of the core may reach a panicking function of the standard
//! library. The compiler omits calls that it proves impossible, so the result holds for the code of
//! this compiler at this optimization level.
//!
//! The check also runs with overflow checks, which a firmware may have: only functions in which the
//! standard library counts elements of a slice are excused.
//!
//! Generic functions are compiled where they are used: `cargo xtask qemu` searches those in the
//! linked firmware.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use clap::Args;
use object::read::archive::ArchiveFile;
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SymbolKind};

use crate::firmware::{self, Toolchain};
use crate::project;

const TARGET: &str = "thumbv6m-none-eabi";
const FEATURES: [&str; 2] = ["full", "full,async"];
/// Not `z`, which does not inline functions of the standard library, so that the compiler cannot
/// prove their checks.
const LEVELS: [&str; 2] = ["s", "3"];
/// A provided method of the standard library in every ordered type, which asserts its
/// precondition. Nothing in the core calls it.
const EXCUSED: &str = " as core::cmp::Ord>::clamp";

/// Functions excused with overflow checks: the standard library, inlined, counts positions in a
/// slice in them, which cannot overflow, and heapless changes the length of a vector. The
/// functions' own arithmetic is checked or saturating.
const COUNTING: [&str; 8] = [
    "heapless::vec::VecInner<",
    "core::iter::adapters::enumerate::Enumerate<",
    "core::iter::traits::iterator::Iterator::position::check<",
    "nanonsq_core::consumer::rdy::RdyTable>::live",
    "nanonsq_core::consumer::discovery::NsqdTable>::offer_as",
    "nanonsq_core::consumer::discovery::NsqdTable>::victim",
    "nanonsq_core::consumer::in_flight::InFlight>::run",
    "nanonsq_core::wire::line::Line<160>>::next",
];
const OVERFLOW: [&str; 2] = [
    "core::panicking::panic_const::panic_const_add_overflow",
    "core::panicking::panic_const::panic_const_sub_overflow",
];

#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    let toolchain = Toolchain::find(TARGET)?;
    for features in FEATURES {
        for level in LEVELS {
            // At 3 the counting functions are inlined and cannot be recognized.
            let checks: &[&str] = if level == "s" { &["off", "on"] } else { &["off"] };
            for checks in checks {
                let how = format!("features '{features}' at {level}, overflow checks {checks}");
                let calls = Calls::of(&library(&toolchain, features, level, checks)?)?;
                let (own, found) = calls.search();
                if !found.is_empty() {
                    bail!("with {how}:\n{}", found.join("\n"));
                }
                println!("{how}: none of {own} functions can panic");
            }
        }
    }
    Ok(())
}

/// Compiles the core and returns its library.
fn library(
    toolchain: &Toolchain,
    features: &str,
    level: &str,
    overflow_checks: &str,
) -> Result<Vec<u8>> {
    let mut command = toolchain.cargo("rustc");
    command.args(["--quiet", "--message-format=json-render-diagnostics", "--lib", "--release"]);
    command.args(["--package", "nanonsq-core", "--no-default-features", "--features", features]);
    command.arg("--target-dir").arg(project::root().join("target/panics"));
    command.current_dir(project::root());
    // Without LTO the library has machine code, which can be searched.
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    command.args(["--", "-Clink-dead-code"]).arg(format!("-Copt-level={level}"));
    command.arg(format!("-Coverflow-checks={overflow_checks}"));
    let library = firmware::artifacts(&mut command)?
        .into_iter()
        .find(|path| path.file_name().is_some_and(is_core))
        .context("cargo made no library")?;
    fs::read(&library).with_context(|| format!("cannot read {}", library.display()))
}

fn is_core(name: &std::ffi::OsStr) -> bool {
    let name = Path::new(name);
    name.extension().is_some_and(|extension| extension == "rlib")
        && name.to_string_lossy().starts_with("libnanonsq_core")
}

/// For each function, the functions to which it refers, by their demangled names.
#[derive(Default)]
struct Calls(BTreeMap<String, BTreeSet<String>>);

impl Calls {
    fn of(library: &[u8]) -> Result<Self> {
        let mut calls = Self::default();
        for member in ArchiveFile::parse(library)?.members() {
            let member = member?;
            if member.name().ends_with(b".o") {
                calls.add(&object::File::parse(member.data(library)?)?)?;
            }
        }
        Ok(calls)
    }

    /// Adds an object file, in which each function has its own section.
    fn add(&mut self, file: &object::File<'_>) -> Result<()> {
        let name_of = |name: &str| format!("{:#}", rustc_demangle::demangle(name));
        let mut functions = HashMap::new();
        for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
            if let Some(section) = symbol.section_index() {
                functions.insert(section, name_of(symbol.name()?));
            }
        }
        for section in file.sections() {
            let Some(function) = functions.get(&section.index()) else { continue };
            let callees = self.0.entry(function.clone()).or_default();
            for (_, relocation) in section.relocations() {
                let RelocationTarget::Symbol(index) = relocation.target() else { continue };
                let symbol = file.symbol_by_index(index)?;
                // References to functions of the same file may be to their sections.
                let local = symbol.section_index().and_then(|section| functions.get(&section));
                callees.insert(local.cloned().map_or_else(|| symbol.name().map(name_of), Ok)?);
            }
        }
        Ok(())
    }

    /// Returns the number of functions of the core, and their paths to panics: the shortest one for
    /// each function that calls a panicking function.
    fn search(&self) -> (usize, Vec<String>) {
        let own: Vec<_> = self.0.keys().filter(|name| is_own(name)).collect();
        let mut ways = BTreeMap::<_, Vec<_>>::new();
        for way in own.iter().filter_map(|name| self.way_to_panic(name)) {
            let last = way[way.len().saturating_sub(2)..].to_vec();
            let known = ways.entry(last).or_insert_with(|| way.clone());
            if way.len() < known.len() {
                *known = way;
            }
        }
        let paths = ways.values().map(|way| format!("    {}", way.join("\n        calls ")));
        (own.len(), paths.collect())
    }

    fn way_to_panic(&self, from: &str) -> Option<Vec<String>> {
        let mut came_from: BTreeMap<&str, Option<&str>> = BTreeMap::from([(from, None)]);
        let mut next = vec![from];
        while let Some(name) = next.pop() {
            let Some(callees) = self.0.get(name) else {
                if !panics(name) {
                    continue;
                }
                let mut way = vec![name.to_owned()];
                let mut at = came_from[name];
                while let Some(caller) = at {
                    way.push(caller.to_owned());
                    at = came_from[caller];
                }
                way.reverse();
                return Some(way);
            };
            if name.ends_with(EXCUSED) {
                continue;
            }
            let counts = COUNTING.iter().any(|counting| name.contains(counting));
            for callee in
                callees.iter().filter(|callee| !counts || !OVERFLOW.contains(&callee.as_str()))
            {
                came_from.entry(callee).or_insert_with(|| {
                    next.push(callee);
                    Some(name)
                });
            }
        }
        None
    }
}

fn is_own(name: &str) -> bool {
    name.trim_start_matches(['<', '&', '*']).starts_with("nanonsq_core::")
}

/// Returns whether an external function is a panicking function of the standard library.
fn panics(name: &str) -> bool {
    let name = name.trim_start_matches('<');
    (name.starts_with("core::") || name.starts_with("alloc::") || name.starts_with("rust_begin"))
        && ["panic", "_fail", "rust_begin_unwind"].iter().any(|word| name.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_found_through_other_crates() {
        let calls = Calls(BTreeMap::from(
            [
                ("nanonsq_core::a", "heapless::b"),
                ("heapless::b", "core::option::unwrap_failed"),
                ("nanonsq_core::c", "nanonsq_core::d"),
                ("nanonsq_core::d", "nanonsq_core::c"),
                ("<nanonsq_core::E as core::cmp::Ord>::clamp", "core::panicking::panic"),
            ]
            .map(|(caller, callee)| (caller.to_owned(), BTreeSet::from([callee.to_owned()]))),
        ));
        let (own, found) = calls.search();
        assert_eq!(own, 4);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("heapless::b"), "{found:?}");
    }
}
