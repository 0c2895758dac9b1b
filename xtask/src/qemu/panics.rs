//! Where a firmware can panic.
//!
//! Every panic names its place: a `Location` in the image, which points to the name of a file. The
//! image has one for each panic that the linker kept.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use object::{Object, ObjectSection, SectionKind};

/// A place in a source file, from 1.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) line: u32,
    pub(crate) column: u32,
}

impl Place {
    /// Whether it is the body of an async function or block. The compiler puts a panic into each
    /// that ends, for an executor that polls it again afterwards.
    pub(crate) fn is_async_body(&self) -> bool {
        let Ok(source) = fs::read_to_string(&self.file) else { return false };
        let Some(line) = source.lines().nth(self.line as usize - 1) else { return false };
        let rest = line.get(self.column as usize - 1..).unwrap_or_default();
        rest.starts_with('{') || rest.starts_with("async")
    }
}

/// All places in files of these directories that the image knows.
pub(crate) fn find(image: &Path, directories: &[&Path]) -> Result<BTreeSet<Place>> {
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
            let ours = directories.iter().any(|directory| Path::new(name).starts_with(directory));
            if ours && name.ends_with(".rs") {
                places.insert(Place { file: name.to_owned(), line, column });
            }
        }
    }
    Ok(places)
}
