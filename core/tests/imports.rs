//! Modules of the core import only from lower layers, so there is no cycle.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The modules, from the lowest layer up. A module imports only from lower layers.
const LAYERS: [&[&str]; 7] = [
    &["macros", "name", "address", "time"],
    &["wire"],
    &["session"],
    &["publisher", "registration", "consumer", "http"],
    &["nsqd", "nsqlookupd"],
    &["drive"],
    &["lib"],
];

fn layer(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|modules| modules.contains(&module))
        .unwrap_or_else(|| panic!("{module} is in no layer: add it to LAYERS and ARCHITECTURE.md"))
}

/// Calls `found` for each Rust file that is not only for tests.
fn each_file(directory: &Path, found: &mut dyn FnMut(&Path, &str)) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        if stem == "tests" {
            continue;
        }
        if path.is_dir() {
            each_file(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found(&path, &fs::read_to_string(&path).unwrap());
        }
    }
}

/// Returns the modules named after `crate::` in a line of code.
fn named(line: &str) -> impl Iterator<Item = &str> {
    line.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|char: char| !char.is_alphanumeric() && char != '_');
        &rest[..end.unwrap_or(rest.len())]
    })
}

#[test]
fn imports_go_down_only() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut wrong = Vec::new();
    let mut imports = BTreeMap::<String, usize>::new();
    each_file(&source, &mut |path, text| {
        let inside = path.strip_prefix(&source).unwrap();
        let module = inside.iter().next().unwrap().to_string_lossy();
        let module = module.trim_end_matches(".rs");
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        for line in code.lines().map(str::trim).filter(|line| !line.starts_with("//")) {
            assert!(
                !line.starts_with("use crate::{"),
                "{}: write one `use` for each module",
                inside.display()
            );
            for other in named(line).filter(|other| *other != module) {
                // Exported macros are named like functions.
                let is_macro = line.contains(&format!("crate::{other}!"));
                *imports.entry(module.to_owned()).or_default() += 1;
                if !is_macro && layer(other) >= layer(module) {
                    wrong.push(format!("{}: {line}", inside.display()));
                }
            }
        }
    });
    assert!(wrong.is_empty(), "imports from the same or a higher layer:\n{}", wrong.join("\n"));
    assert!(imports["consumer"] > 10, "too few imports were found: {imports:?}");
    for module in LAYERS.concat() {
        assert!(
            source.join(module).is_dir() || source.join(format!("{module}.rs")).is_file(),
            "there is no {module}"
        );
    }
}
