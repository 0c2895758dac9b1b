//! The sizes and symbols of a linked firmware.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use object::{Object, ObjectSection, ObjectSymbol, SectionKind, SymbolKind};

/// A firmware image.
pub(crate) struct Image {
    pub(crate) path: PathBuf,
    /// Bytes of vectors, code and constants.
    pub(crate) flash: u64,
    /// Bytes of variables.
    pub(crate) ram: u64,
    /// Sorted by address.
    functions: Vec<Symbol>,
    variables: Vec<(Symbol, Vec<u8>)>,
}

/// A function or variable.
#[derive(Clone)]
pub(crate) struct Symbol {
    pub(crate) name: String,
    pub(crate) address: u64,
    pub(crate) size: u64,
}

impl Image {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = object::File::parse(&*bytes).with_context(|| path.display().to_string())?;
        let size_of = |names: &[&str]| {
            let sections = names.iter().filter_map(|name| file.section_by_name(name));
            sections.map(|section| section.size()).sum()
        };
        let mut functions = Vec::new();
        let mut variables = Vec::new();
        for symbol in file.symbols().filter(|symbol| symbol.size() > 0) {
            let is = Symbol {
                name: demangled(symbol.name().unwrap_or_default()),
                // The lowest bit marks Thumb code.
                address: symbol.address() & !1,
                size: symbol.size(),
            };
            let section = symbol.section_index().and_then(|at| file.section_by_index(at).ok());
            match (symbol.kind(), section) {
                (SymbolKind::Text, Some(section)) if section.kind() == SectionKind::Text => {
                    functions.push(is);
                }
                (SymbolKind::Data, Some(section)) => {
                    let value = section.data_range(symbol.address(), symbol.size()).ok().flatten();
                    variables.push((is, value.unwrap_or_default().to_vec()));
                }
                _ => {}
            }
        }
        functions.sort_by_key(|function| function.address);
        Ok(Self {
            path: path.to_owned(),
            flash: size_of(&[".vector_table", ".text", ".rodata"]),
            ram: size_of(&[".data", ".bss"]),
            functions,
            variables,
        })
    }

    /// Returns the index in [`functions`](Self::functions) of the function at an address.
    pub(crate) fn function_at(&self, address: u64) -> Option<usize> {
        let next = self.functions.partition_point(|function| function.address <= address);
        let index = next.checked_sub(1)?;
        let function = &self.functions[index];
        (address < function.address + function.size).then_some(index)
    }

    pub(crate) fn functions(&self) -> &[Symbol] {
        &self.functions
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = &Symbol> {
        self.variables.iter().map(|(symbol, _)| symbol)
    }

    /// Returns the variables whose name begins with `prefix` and that take flash, because they are
    /// not all zeros at the start.
    pub(crate) fn initialized(&self, prefix: &str) -> Vec<&str> {
        let is_initialized = |(symbol, value): &&(Symbol, Vec<u8>)| {
            symbol.name.starts_with(prefix) && value.iter().any(|byte| *byte != 0)
        };
        self.variables.iter().filter(is_initialized).map(|(symbol, _)| &*symbol.name).collect()
    }

    /// Returns the values of variables whose name begins with `prefix`, which must be
    /// little-endian words, with the rest of the name.
    pub(crate) fn words(&self, prefix: &str) -> Vec<(String, u32)> {
        let word = |(symbol, value): &(Symbol, Vec<u8>)| {
            let name = symbol.name.strip_prefix(prefix)?;
            Some((name.to_owned(), u32::from_le_bytes(value.as_slice().try_into().ok()?)))
        };
        let mut words: Vec<_> = self.variables.iter().filter_map(word).collect();
        words.sort();
        words
    }
}

fn demangled(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}
