//! The call graph and the stack frames of functions, from compiled libraries.
//!
//! A function calls everything that it refers to, directly or through constants: so a function that
//! is called through a pointer counts as called by all functions that can have the pointer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use object::read::archive::ArchiveFile;
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationTarget, SectionIndex,
    SymbolKind, SymbolSection,
};

/// `R_ARM_THM_CALL`: a call, rather than a jump.
const CALL: u32 = 10;

/// The call graph; functions and constants have the names of their symbols.
#[derive(Default)]
pub(crate) struct Graph {
    pub(crate) refers: BTreeMap<String, BTreeSet<String>>,
    /// Bytes of the stack frames of functions.
    pub(crate) frames: BTreeMap<String, u64>,
    files: usize,
}

/// Separates section and file in the names of constants without a symbol.
const CONSTANT: &str = " in file ";

impl Graph {
    pub(crate) fn of(libraries: &[PathBuf]) -> Result<Self> {
        let mut graph = Self::default();
        for path in libraries {
            let library =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            for member in ArchiveFile::parse(&*library)?.members() {
                let member = member?;
                if member.name().ends_with(b".o") {
                    graph.add(&object::File::parse(member.data(&*library)?)?)?;
                }
            }
        }
        Ok(graph)
    }

    /// Adds an object file, in which each function and each constant has its own section.
    fn add(&mut self, file: &object::File<'_>) -> Result<()> {
        let mut names: HashMap<SectionIndex, String> = HashMap::new();
        self.files += 1;
        for section in file.sections() {
            // A constant without a symbol gets the name of its section, unique in the file.
            if section.name()?.starts_with(".rodata") || section.name()?.starts_with(".data") {
                let name = format!("{}{CONSTANT}{}", section.name()?, self.files);
                names.insert(section.index(), name);
            }
        }
        for symbol in file.symbols() {
            if let (SymbolKind::Text | SymbolKind::Data, SymbolSection::Section(section)) =
                (symbol.kind(), symbol.section())
                && !symbol.name()?.is_empty()
            {
                names.insert(section, symbol.name()?.to_owned());
            }
        }
        let target = |target: RelocationTarget| -> Result<Option<String>> {
            let RelocationTarget::Symbol(index) = target else { return Ok(None) };
            let symbol = file.symbol_by_index(index)?;
            let local = symbol.section_index().and_then(|section| names.get(&section));
            Ok(Some(match local {
                Some(name) => name.clone(),
                None => symbol.name()?.to_owned(),
            }))
        };
        for section in file.sections() {
            if section.name()? == ".stack_sizes" {
                for (offset, relocation) in section.relocations() {
                    let Some(function) = target(relocation.target())? else { continue };
                    let size = section.data()?.get(offset as usize + 4..).and_then(uleb);
                    let size = size.with_context(|| format!("no stack size for {function}"))?;
                    let frame = self.frames.entry(function).or_default();
                    *frame = size.max(*frame);
                }
                continue;
            }
            let Some(name) = names.get(&section.index()) else { continue };
            let refers = self.refers.entry(name.clone()).or_default();
            for (_, relocation) in section.relocations() {
                let to = target(relocation.target())?;
                // Jump tables of a function refer to the function itself, without a call.
                let calls = matches!(relocation.flags(), RelocationFlags::Elf { r_type: CALL });
                if calls || to.as_ref() != Some(name) {
                    refers.extend(to);
                }
            }
        }
        Ok(())
    }
}

fn uleb(bytes: &[u8]) -> Option<u64> {
    let mut number = 0;
    for (at, byte) in bytes.iter().take(9).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::uleb;

    #[test]
    fn numbers_are_read() {
        assert_eq!(uleb(&[5]), Some(5));
        assert_eq!(uleb(&[0xe5, 0x8e, 0x26]), Some(624_485));
        assert_eq!(uleb(&[0x80]), None);
    }
}
