//! `cargo xtask house`: checks limits of the tree: length of files, share of tests, words in names,
//! and that links and paths of documents exist.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::project;

/// The most lines of a file with code, without its unit tests.
const CODE_MAX: usize = 500;
/// The most lines of a file with tests.
const TESTS_MAX: usize = 800;
/// The most lines of tests for 100 lines of product.
const TESTS_PERCENT_MAX: usize = 150;
/// Names that no type, module or function may have: their meaning was private to this tree.
const PRIVATE_WORDS: [&str; 12] = [
    "busy", "desk", "gate", "hear", "heard", "hub", "late", "news", "seat", "seats", "talk", "told",
];

#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    let mut git = Command::new("git");
    git.current_dir(project::root()).args(["ls-files", "*.rs"]);
    let files = String::from_utf8(git.output().context("git")?.stdout)?;
    let (mut product, mut tests, mut faults) = (0, 0, Vec::new());
    for file in files.lines() {
        let text = fs::read_to_string(project::root().join(file)).context(file.to_owned())?;
        for (number, name) in names(&text) {
            if PRIVATE_WORDS.contains(&name.to_lowercase().as_str()) {
                faults.push(format!("{file}:{number}: `{name}` is not a word of the field's"));
            }
        }
        let (code, test) = lines(file, &text);
        if code > CODE_MAX {
            faults.push(format!("{file}: {code} lines of code, at most {CODE_MAX}"));
        }
        if code == 0 && test > TESTS_MAX {
            faults.push(format!("{file}: {test} lines of tests, at most {TESTS_MAX}"));
        }
        if !file.starts_with("xtask/") {
            product += code;
            tests += test;
        }
    }
    faults.extend(dead_links()?);
    let percent = tests * 100 / product.max(1);
    println!(
        "{product} lines of product, {tests} of tests: {percent} for 100, at most {TESTS_PERCENT_MAX}"
    );
    if percent > TESTS_PERCENT_MAX {
        faults.push("too many tests for the product: merge some".to_owned());
    }
    faults.iter().for_each(|fault| println!("{fault}"));
    ensure!(faults.is_empty(), "{} faults of the house", faults.len());
    Ok(())
}

/// Returns links and paths of documents whose targets do not exist.
fn dead_links() -> Result<Vec<String>> {
    let root = project::root();
    let mut git = Command::new("git");
    git.current_dir(&root).args(["ls-files", "*.md"]);
    let files = String::from_utf8(git.output().context("git")?.stdout)?;
    let mut dead = Vec::new();
    for file in files.lines() {
        let text = fs::read_to_string(root.join(file)).context(file.to_owned())?;
        let dir = root.join(file).parent().map_or_else(|| root.clone(), Into::into);
        let links = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let links = links.filter_map(|link| link.split('#').next());
        // rustdoc checks links to items.
        let links = links.filter(|link| !link.is_empty() && !link.contains(':'));
        let to_nowhere = |path: &str| format!("{file}: {path} does not exist");
        dead.extend(links.filter(|link| !dir.join(link).exists()).map(to_nowhere));
        let quoted = text.split('`').skip(1).step_by(2);
        let paths = quoted.filter(|quoted| {
            let top = ["core/src/", "adapters/", "examples/", "xtask/src/", "docs/"];
            let is_path = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
            top.iter().any(|top| quoted.starts_with(top)) && quoted.chars().all(is_path)
        });
        dead.extend(paths.filter(|path| !root.join(path).exists()).map(to_nowhere));
    }
    Ok(dead)
}

/// Returns the lines of product and of tests of a file.
fn lines(file: &str, text: &str) -> (usize, usize) {
    let all = text.lines().count();
    let is_test = file.starts_with("tests/")
        || file.starts_with("fuzz/")
        || file.contains("/tests/")
        || file.ends_with("/tests.rs");
    if is_test {
        return (0, all);
    }
    // Unit tests are at the end.
    let lines: Vec<_> = text.lines().collect();
    let begins = |pair: &[&str]| pair == ["#[cfg(test)]", "mod tests {"];
    let code = lines.windows(2).position(begins).unwrap_or(all);
    (code, all - code)
}

/// Returns the names of types, modules and functions, with their lines.
fn names(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let keywords = ["enum", "fn", "macro_rules!", "mod", "struct", "trait", "type"];
    text.lines().enumerate().flat_map(move |(at, line)| {
        let code = line.split("//").next().unwrap_or_default();
        let words: Vec<_> = code.split_whitespace().collect();
        let pairs: Vec<_> = words
            .windows(2)
            .filter(|pair| keywords.contains(&pair[0]))
            .map(|pair| {
                let end = pair[1].find(|c: char| !c.is_alphanumeric() && c != '_');
                (at + 1, &pair[1][..end.unwrap_or(pair[1].len())])
            })
            .collect();
        pairs
    })
}
