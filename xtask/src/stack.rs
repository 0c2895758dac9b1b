//! `cargo xtask stack`: bounds the depth of the core's stack.
//!
//! The compiler emits the size of each function's stack frame; the call graph is read from the
//! compiled libraries of the core and its dependencies, including the standard library's `core`.
//! The frames on the deepest path from each function are added up. Recursion has no bound: there
//! must be none.
//!
//! As with `cargo xtask panics`, the result holds for the code of this compiler, and not for
//! generic functions, which are compiled where they are used: `cargo xtask sizes` measures a whole
//! client, with the driver and an application's loop.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use clap::Args;

use crate::firmware::{self, Toolchain};
use crate::graph::Graph;
use crate::project;

const TARGET: &str = "thumbv6m-none-eabi";

/// The deepest stack of a function, in bytes.
const MOST: u64 = 1024;

/// The deepest stack of a server's function, whose HTTP answers are written from nested tables.
const MOST_OF_SERVERS: u64 = 2560;

/// The modules of servers.
const SERVERS: [&str; 3] = ["nsqd::", "nsqlookupd::", "http::"];

/// Functions shown without `--all`.
const SHOWN: usize = 12;

/// Panicking functions of the standard library, which are not followed: they end the program.
const PANICS: [&str; 4] = ["core::panicking::", "_fail", "do_panic", "_failed"];

/// Formatting functions, which do not count: only applications that print call them.
const FORMATTING: &str = " as core::fmt::";

#[derive(Args)]
pub(crate) struct Options {
    /// Show all functions
    #[arg(long)]
    all: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let toolchain = Toolchain::find(TARGET)?;
    let mut command = toolchain.cargo("rustc");
    command.args(["--quiet", "--message-format=json-render-diagnostics", "--lib", "--release"]);
    command.args([
        "--package",
        "nanonsq-core",
        "--no-default-features",
        "--features",
        "async,full",
    ]);
    command.arg("--target-dir").arg(project::root().join("target/stack"));
    command.current_dir(project::root());
    command.env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    // For `-Zemit-stack-sizes`, even if the target's library is not built from source.
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zemit-stack-sizes -Copt-level=s");
    command.args(["--", "-Clink-dead-code"]);
    let libraries: Vec<_> = firmware::artifacts(&mut command)?
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rlib"))
        .filter(|path| path.to_string_lossy().contains(TARGET))
        .collect();
    let graph = Graph::of(&libraries)?;
    let mut depths = Depths { graph: &graph, known: BTreeMap::new(), way: Vec::new() };
    let own: Vec<&String> = graph.frames.keys().filter(|name| is_own(&demangle(name))).collect();
    ensure!(!own.is_empty(), "the compiler has emitted no stack sizes");
    let mut found: Vec<(u64, String, Vec<String>)> = Vec::new();
    for &name in &own {
        let (depth, way) = depths.of(name)?;
        found.push((depth, demangle(name), way.iter().map(|name| demangle(name)).collect()));
    }
    found.sort_by(|a, b| (b.0, &a.1).cmp(&(a.0, &b.1)));
    let called: BTreeSet<&String> = graph.refers.values().flatten().collect();
    println!("{} functions of the core; the deepest stack from each, in bytes:", own.len());
    let shown = if options.all { found.len() } else { SHOWN };
    for (depth, name, _) in found.iter().take(shown) {
        println!("{depth:>6}  {name}");
    }
    let Some((_, _, way)) = found.first() else { return Ok(()) };
    println!("the deepest way:");
    for name in way {
        println!("        {name}");
    }
    let unknown: BTreeSet<_> = called
        .iter()
        .filter(|name| !graph.refers.contains_key(**name))
        .map(|name| demangle(name))
        .collect();
    println!(
        "{} symbols are elsewhere: {:?}",
        unknown.len(),
        unknown.iter().take(9).collect::<Vec<_>>()
    );
    for (depth, name, _) in &found {
        let is_server = SERVERS.iter().any(|server| name.contains(server));
        let most = if is_server { MOST_OF_SERVERS } else { MOST };
        ensure!(*depth <= most, "{name} takes {depth} bytes of stack, {most} at most");
    }
    Ok(())
}

fn is_own(name: &str) -> bool {
    name.contains("nanonsq_core::") && !name.contains(FORMATTING)
}

fn demangle(name: &str) -> String {
    format!("{:#}", rustc_demangle::demangle(name))
}

struct Depths<'g> {
    graph: &'g Graph,
    known: BTreeMap<&'g str, (u64, Option<&'g str>)>,
    /// The current path, the outermost caller first.
    way: Vec<&'g str>,
}

impl<'g> Depths<'g> {
    /// Returns the depth of a function, and its deepest path.
    fn of(&mut self, name: &'g str) -> Result<(u64, Vec<&'g str>)> {
        let depth = self.depth(name)?;
        let mut way = vec![name];
        let mut at = name;
        while let Some((_, Some(next))) = self.known.get(at) {
            if self.graph.frames.contains_key(*next) {
                way.push(next);
            }
            at = next;
        }
        Ok((depth, way))
    }

    fn depth(&mut self, name: &'g str) -> Result<u64> {
        if let Some((depth, _)) = self.known.get(name) {
            return Ok(*depth);
        }
        if let Some(at) = self.way.iter().position(|other| *other == name) {
            let round = &self.way[at..];
            // A table of methods also refers to the method that uses the table, so a cycle through
            // a constant need not be recursion.
            let calls = round.iter().all(|name| self.graph.frames.contains_key(*name));
            let names: Vec<_> = round.iter().map(|name| demangle(name)).collect();
            let own = names.iter().any(|name| name.contains("nanonsq_core::"));
            ensure!(!calls || !own, "a function calls itself:\n    {}", names.join("\n    "));
            return Ok(0);
        }
        self.way.push(name);
        let mut deepest = (0, None);
        for next in self.graph.refers.get(name).into_iter().flatten() {
            let called = demangle(next);
            if PANICS.iter().any(|word| called.contains(word)) {
                continue;
            }
            let depth = self.depth(next)?;
            if depth > deepest.0 {
                deepest = (depth, Some(next.as_str()));
            }
        }
        self.way.pop();
        let own = self.graph.frames.get(name).copied().unwrap_or(0);
        self.known.insert(name, (own + deepest.0, deepest.1));
        Ok(own + deepest.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(refers: &[(&str, &str)], frames: &[(&str, u64)]) -> Graph {
        let mut graph = Graph::default();
        for (from, to) in refers {
            graph.refers.entry((*from).into()).or_default().insert((*to).into());
        }
        graph.frames = frames.iter().map(|(name, size)| ((*name).into(), *size)).collect();
        graph
    }

    #[test]
    fn the_deepest_path_counts() {
        let graph = graph(
            &[("a", "b"), ("a", "c"), ("b", "table"), ("table", "d"), ("c", "core::panicking::x")],
            &[("a", 8), ("b", 16), ("c", 30), ("d", 20), ("core::panicking::x", 1000)],
        );
        let mut depths = Depths { graph: &graph, known: BTreeMap::new(), way: Vec::new() };
        let (depth, way) = depths.of("a").expect("no recursion");
        assert_eq!((depth, way), (44, vec!["a", "b", "d"]));
    }

    #[test]
    fn a_function_that_calls_itself_has_no_bound() {
        let graph = graph(
            &[("nanonsq_core::a", "b"), ("b", "nanonsq_core::a")],
            &[("nanonsq_core::a", 8), ("b", 16)],
        );
        let mut depths = Depths { graph: &graph, known: BTreeMap::new(), way: Vec::new() };
        let error = depths.of("nanonsq_core::a").expect_err("recursion").to_string();
        assert!(error.contains("calls itself"), "{error}");
    }
}
