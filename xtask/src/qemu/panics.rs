//! Finds the places where a firmware can panic.
//!
//! Two searches of the linked image find the two kinds of panics that a source can cause:
//!
//! - Most panics report the place of their *caller*: an index, an `unwrap`, a borrow, a slice. Each
//!   such place is a `core::panic::Location` in the image, which points to the name of a file; the
//!   linker keeps it exactly as long as the code that passes it.
//! - Some panics report a place inside the standard library. These are found by the branches to
//!   panicking functions: the debug information has the source of each branch, through all inlined
//!   functions.
//!
//! Calls through pointers are not followed. If a search does not find a panic that is known to be
//! there, the check fails: the search would be blind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use addr2line::gimli::{self, EndianSlice, LittleEndian};
use anyhow::{Context, Result, bail, ensure};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

use crate::project;

/// The file of the firmware's own panic, with the path that cargo passes to the compiler.
const KNOWN: &str = "src/host.rs";
/// The function in which every panic ends.
const HANDLER: &str = "rust_begin_unwind";
/// Functions of the standard library that report the place of their caller: their panics are found
/// by the place.
const AT_CALLER: [&str; 7] = [
    "core::panicking::",
    "core::cell::panic_already",
    "core::option::",
    "core::result::",
    "core::slice::copy_from_slice_impl::",
    "core::slice::index::slice_",
    "core::str::slice_error_fail",
];
/// Functions of the standard library that index within bounds that they have checked, which the
/// compiler cannot prove, and that have no alternative.
const WITHIN_BOUNDS: [&str; 1] = ["<core::net::parser::Parser>::"];

/// Checks that nothing of the library can panic. Returns a short summary; the error lists the
/// panics.
pub(crate) fn check(image: &Path) -> Result<String> {
    let root = project::root();
    let library = Library([root.join("core/src"), root.join("adapters/embassy/src")]);
    let places = places(image)?;
    ensure!(
        places.iter().any(|place| place.file == KNOWN),
        "the panic in {KNOWN} was not found: the search is blind"
    );
    let (ends, own): (Vec<_>, Vec<_>) =
        places.iter().filter(|place| library.has(&place.file)).partition(|place| {
            fs::read_to_string(&place.file).is_ok_and(|text| place.is_async_body(&text))
        });
    ensure!(!ends.is_empty(), "no place of the library was found: the search is blind");
    let branches = branches(image)?;
    let inside: Vec<_> = branches.iter().filter(|branch| branch.blames(&library)).collect();
    let mut found: Vec<String> = own.iter().map(|place| place.to_string()).collect();
    found.extend(inside.iter().map(|branch| branch.to_string()));
    if found.is_empty() {
        return Ok(format!(
            "none of the library's among {} places and {} branches; {} async functions polled \
             after their end",
            places.len(),
            branches.len(),
            ends.len()
        ));
    }
    bail!("the library can panic in {}\n{}", image.display(), found.join("\n"))
}

/// The directories of sources that must not panic.
struct Library([PathBuf; 2]);

impl Library {
    fn has(&self, file: &str) -> bool {
        self.0.iter().any(|directory| Path::new(file).starts_with(directory))
    }
}

/// A place in a source file; line and column begin with 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    file: String,
    line: u32,
    column: u32,
}

impl Place {
    /// Returns whether the place is the whole body of an async function or block of `source`. The
    /// compiler puts one panic there, `async fn resumed after completion`, and our code cannot put
    /// another, since a body is not an operand. It means that a future was polled after its end,
    /// which the contract of `Future` forbids; `.await`, the executor and the combinators that are
    /// used here never do that.
    fn is_async_body(&self, source: &str) -> bool {
        let line_start: usize =
            source.split_inclusive('\n').take(self.line as usize - 1).map(str::len).sum();
        let at = line_start + self.column as usize - 1;
        let (Some(before), Some(after)) = (source.get(..at), source.get(at..)) else {
            return false;
        };
        if after.starts_with("async ") {
            return after.starts_with("async {") || after.starts_with("async move {");
        }
        // The text after the end of the previous item is the function's head.
        let head = before.rfind([';', '{', '}']).map_or(before, |end| &before[end + 1..]);
        after.starts_with('{') && head.contains("async fn ")
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "    {}:{}:{}", self.file, self.line, self.column)
    }
}

/// Returns all places in the image.
fn places(image: &Path) -> Result<BTreeSet<Place>> {
    let bytes = fs::read(image).with_context(|| format!("cannot read {}", image.display()))?;
    let file = object::File::parse(&*bytes)?;
    let sections: Vec<(u64, &[u8])> = file
        .sections()
        .filter(|section| {
            matches!(section.kind(), SectionKind::Text | SectionKind::ReadOnlyData)
                || matches!(section.kind(), SectionKind::ReadOnlyString | SectionKind::Data)
        })
        .filter_map(|section| Some((section.address(), section.data().ok()?)))
        .collect();
    let at = |address: u32, len: u32| {
        let (start, bytes) = sections.iter().find(|(start, bytes)| {
            (*start..start + bytes.len() as u64).contains(&address.into())
        })?;
        let offset = usize::try_from(u64::from(address) - start).ok()?;
        bytes.get(offset..offset.checked_add(len as usize)?)
    };
    let mut places = BTreeSet::new();
    for (_, bytes) in &sections {
        // core::panic::Location on a 32-bit target: file (address, length), line, column.
        for window in bytes.windows(16).step_by(4) {
            let word = |n: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| window[4 * n + i]));
            let (line, column) = (word(2), word(3));
            if !(1..100_000).contains(&line) || !(1..1_000).contains(&column) || word(1) > 500 {
                continue;
            }
            let Some(name) = at(word(0), word(1)).and_then(|name| std::str::from_utf8(name).ok())
            else {
                continue;
            };
            if name.ends_with(".rs") {
                places.insert(Place { file: name.to_owned(), line, column });
            }
        }
    }
    Ok(places)
}

/// A branch from a source file to a function of the standard library that can panic.
#[derive(Debug)]
struct Branch {
    /// Functions and files, from the innermost inlined function outwards.
    frames: Vec<(String, String)>,
    callee: String,
}

impl Branch {
    /// Returns whether `library` causes the panic, and the panic is not found by its place.
    fn blames(&self, library: &Library) -> bool {
        let inlined = self.frames.iter().take_while(|(_, file)| is_std(file)).count();
        let blamed = self.frames.get(inlined).is_some_and(|(_, file)| library.has(file));
        let by_place = inlined == 0 && AT_CALLER.iter().any(|name| self.callee.starts_with(name));
        let within_bounds = self
            .frames
            .iter()
            .take(inlined)
            .any(|(function, _)| WITHIN_BOUNDS.iter().any(|name| function.starts_with(name)));
        blamed && !by_place && !within_bounds
    }
}

impl std::fmt::Display for Branch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "    {}, which can panic, called by", self.callee)?;
        for (function, file) in &self.frames {
            write!(f, "\n        {function} ({file})")?;
        }
        Ok(())
    }
}

/// Returns all branches from the rest of the image to panicking functions of the standard library.
fn branches(image: &Path) -> Result<Vec<Branch>> {
    let bytes = fs::read(image)?;
    let file = object::File::parse(&*bytes)?;
    let mut functions = BTreeMap::new();
    // `$t` and `$d` mark the start of Thumb code and of data.
    let mut marks = BTreeMap::new();
    for symbol in file.symbols() {
        let (name, address) = (symbol.name().unwrap_or_default(), symbol.address() & !1);
        match name.get(..2) {
            Some("$t") => drop(marks.insert(address, true)),
            Some("$d") => drop(marks.insert(address, false)),
            _ if symbol.kind() == SymbolKind::Text => {
                functions.insert(address, format!("{:#}", rustc_demangle::demangle(name)));
            }
            _ => {}
        }
    }
    let text = file.section_by_name(".text").context("no .text in the image")?;
    let (start, code) = (text.address(), text.data()?);
    // For each function, the addresses of branches to its start.
    let mut callers: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
    for (&from, _) in marks.iter().filter(|&(_, &is_code)| is_code) {
        let end = marks.range(from + 1..).next().map_or(u64::MAX, |(&end, _)| end);
        let (Some(from), end) = (from.checked_sub(start), end - start) else { continue };
        let end = code.len().min(end as usize);
        for (offset, target) in thumb_branches(code.get(from as usize..end).unwrap_or_default()) {
            let site = start + from + offset;
            let target = site.wrapping_add_signed(target);
            if functions.contains_key(&target) {
                callers.entry(target).or_default().push(site);
            }
        }
    }
    // Release profiles keep the debug information in the image, uncompressed.
    let dwarf = gimli::Dwarf::load(|section| {
        let section = file.section_by_name(section.name());
        let data = section.and_then(|section| section.data().ok()).unwrap_or_default();
        Ok::<_, gimli::Error>(EndianSlice::new(data, LittleEndian))
    })?;
    let debug = DebugInfo::from_dwarf(dwarf)?;
    let handler = functions.iter().find(|(_, name)| name.contains(HANDLER));
    let mut panicking = vec![*handler.with_context(|| format!("no {HANDLER} in the image"))?.0];
    let mut branches = Vec::new();
    let mut next = 0;
    while let Some(&callee) = panicking.get(next) {
        next += 1;
        for &site in callers.get(&callee).into_iter().flatten() {
            let frames = frames(&debug, site)?;
            let caller = functions.range(..=site).next_back().map_or(0, |(&address, _)| address);
            if !frames.iter().all(|(_, file)| is_std(file)) {
                branches.push(Branch { frames, callee: functions[&callee].clone() });
            } else if !panicking.contains(&caller) {
                panicking.push(caller);
            }
        }
    }
    ensure!(!branches.is_empty(), "no branch to a panic was found: the search is blind");
    Ok(branches)
}

type DebugInfo<'a> = addr2line::Context<EndianSlice<'a, LittleEndian>>;

/// Returns the functions of the code at an address, from the innermost inlined one outwards.
fn frames(debug: &DebugInfo<'_>, address: u64) -> Result<Vec<(String, String)>> {
    let mut found = debug.find_frames(address).skip_all_loads()?;
    let mut frames = Vec::new();
    while let Some(frame) = found.next()? {
        let function = frame.function.as_ref().and_then(|name| Some(name.demangle().ok()?.into()));
        let file = frame.location.and_then(|location| location.file).unwrap_or_default();
        frames.push((function.unwrap_or_default(), file.to_owned()));
    }
    Ok(frames)
}

/// Returns whether a file is of the standard library, installed or as rustup's build names it.
fn is_std(file: &str) -> bool {
    file.contains("/library/core/src/") || file.contains("/library/alloc/src/")
}

/// Returns the offsets of branches in Thumb code, and their distances. Decodes only the length of
/// instructions, and direct branches with and without link.
fn thumb_branches(code: &[u8]) -> Vec<(u64, i64)> {
    let half =
        |at: usize| Some(u32::from(u16::from_le_bytes([*code.get(at)?, *code.get(at + 1)?])));
    let signed = |value: u32, bits: u32| i64::from((value << (32 - bits)) as i32 >> (32 - bits));
    let mut branches = Vec::new();
    let mut at = 0;
    while let Some(first) = half(at) {
        let is_wide = first >> 11 >= 0b11101;
        let distance = if is_wide {
            let Some(second) = half(at + 2) else { break };
            let (sign, j1, j2) = (first >> 10 & 1, second >> 13 & 1, second >> 11 & 1);
            let low = (second & 0x7FF) << 1;
            if first >> 11 != 0b11110 {
                None
            } else if second & 0xD000 == 0xD000 || second & 0xD000 == 0x9000 {
                // BL and B: 24 bits of half-words.
                let (i1, i2) = (!(j1 ^ sign) & 1, !(j2 ^ sign) & 1);
                let high = sign << 24 | i1 << 23 | i2 << 22 | (first & 0x3FF) << 12;
                Some(signed(high | low, 25))
            } else if second & 0xD000 == 0x8000 && first >> 7 & 7 != 7 {
                // B with a condition.
                let high = sign << 20 | j2 << 19 | j1 << 18 | (first & 0x3F) << 12;
                Some(signed(high | low, 21))
            } else {
                None
            }
        } else if first >> 11 == 0b11100 {
            Some(signed((first & 0x7FF) << 1, 12))
        } else if first >> 12 == 0b1101 && first >> 8 & 0xF < 0xE {
            Some(signed((first & 0xFF) << 1, 9))
        } else {
            None
        };
        // The program counter is 4 bytes ahead.
        branches.extend(distance.map(|distance| (at as u64, distance + 4)));
        at += if is_wide { 4 } else { 2 };
    }
    branches
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_decoded() {
        // As llvm-objdump prints: nop; bl +56728; b.w -8; beq -10; b -12; bne.w +4096; ldr r0.
        let code = [
            0x00, 0xBF, 0x0D, 0xF0, 0xCC, 0xFE, 0xFF, 0xF7, 0xFC, 0xBF, 0xFB, 0xD0, 0xFA, 0xE7,
            0x41, 0xF0, 0x00, 0x80, 0x0C, 0x48,
        ];
        assert_eq!(
            thumb_branches(&code),
            [(2, 56728 + 4), (6, -8 + 4), (10, -10 + 4), (12, -12 + 4), (14, 4096 + 4)]
        );
    }

    #[test]
    fn only_whole_async_bodies_are_excused() {
        let source = "fn f() { 1 }\nasync fn g<T>(\n    t: T,\n) -> T {\n    ({ t })\n}\n\
                      fn h() -> impl Future { async move { 1 } }\nasync_trait!(async {});\n";
        let place = |line, column| Place { file: String::new(), line, column };
        assert!(place(4, 8).is_async_body(source), "g's body");
        assert!(place(7, 25).is_async_body(source), "the block in h");
        for (line, column) in [(1, 8), (5, 6), (5, 8), (7, 23), (8, 1), (99, 1)] {
            assert!(!place(line, column).is_async_body(source), "{line}:{column}");
        }
    }

    #[test]
    fn blame_goes_to_the_innermost_source_that_is_not_the_standard_library() {
        let library = Library(["/n/core/src".into(), "/n/adapters/embassy/src".into()]);
        let std = "/rustc/0/library/core/src/slice/index.rs";
        let branch = |frames: &[(&str, &str)], callee: &str| Branch {
            frames: frames.iter().map(|&(f, file)| (f.to_owned(), file.to_owned())).collect(),
            callee: callee.to_owned(),
        };
        let memrchr = branch(&[("memrchr", std), ("f", "/n/core/src/a.rs")], "core::panicking::p");
        assert!(memrchr.blames(&library));
        let others = branch(
            &[("index", std), ("f", "/registry/smoltcp/a.rs"), ("g", "/n/core/src/a.rs")],
            "core::panicking::p",
        );
        assert!(!others.blames(&library));
        let by_place = branch(&[("f", "/n/core/src/a.rs")], "core::panicking::panic_bounds_check");
        assert!(!by_place.blames(&library));
        let inside = branch(&[("f", "/n/core/src/a.rs")], "<core::time::Duration as Add>::add");
        assert!(inside.blames(&library));
        let parser = "<core::net::parser::Parser>::read_ipv6_addr";
        let excused = branch(&[(parser, std), ("f", "/n/core/src/a.rs")], "core::panicking::p");
        assert!(!excused.blames(&library));
    }
}
