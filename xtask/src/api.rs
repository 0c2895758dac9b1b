//! `cargo xtask api`: bounds the number of public items of nanonsq-core with all features, from
//! rustdoc's JSON, and compares them with the committed listing.
//!
//! Modules, types, traits, functions, methods, constants and re-exports of items of other crates
//! count; fields, variants and implementations of traits do not.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Map, Value};

use crate::project;

/// The most items. A new item should replace an old one. 450, and 25 for what application programmers
/// need: names checked at compile time, and transports over any byte stream.
const ITEMS_MAX: usize = 475;

/// The committed listing.
const LISTING: &str = "docs/api.txt";

#[derive(Args)]
pub(crate) struct Options {
    /// Write the listing instead of comparing it.
    #[arg(long)]
    write: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(project::root())
        // rustdoc's JSON is unstable. It is parsed leniently, and only here.
        .env("RUSTC_BOOTSTRAP", "1")
        .args(["rustdoc", "--quiet", "--locked", "--package", "nanonsq-core", "--lib"])
        .args(["--all-features", "--", "-Zunstable-options", "--output-format", "json"]);
    ensure!(cargo.status()?.success(), "rustdoc failed");
    let target = std::env::var_os("CARGO_TARGET_DIR");
    let target = target.map_or_else(|| project::root().join("target"), Into::into);
    let json = target.join("doc/nanonsq_core.json");
    let json = fs::read(&json).with_context(|| json.display().to_string())?;
    let items = Items::of(&serde_json::from_slice(&json)?)?;

    let listing: String = items.iter().map(|item| format!("{item}\n")).collect();
    println!("{} public items, at most {ITEMS_MAX}", items.len());
    let path = project::root().join(LISTING);
    if options.write {
        fs::write(&path, &listing)?;
    } else {
        let committed = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let committed: BTreeSet<_> = committed.lines().map(str::to_owned).collect();
        let added: Vec<_> = items.difference(&committed).collect();
        let removed: Vec<_> = committed.difference(&items).collect();
        for (sign, lines) in [('+', &added), ('-', &removed)] {
            lines.iter().for_each(|line| println!("{sign} {line}"));
        }
        ensure!(
            added.is_empty() && removed.is_empty(),
            "the public API is not that of {LISTING}: if it should be, run `cargo xtask api --write`"
        );
    }
    ensure!(items.len() <= ITEMS_MAX, "more public items than {ITEMS_MAX}");
    Ok(())
}

/// Collects the items that a user can name.
struct Items<'j> {
    index: &'j Map<String, Value>,
    seen: BTreeSet<String>,
    found: BTreeSet<String>,
}

impl<'j> Items<'j> {
    fn of(json: &'j Value) -> Result<BTreeSet<String>> {
        let index = json["index"].as_object().context("no index in rustdoc's JSON")?;
        let mut items = Items { index, seen: BTreeSet::new(), found: BTreeSet::new() };
        items.children(&json["root"], "nanonsq_core");
        // Without functions, the format of the JSON has changed.
        if !items.found.iter().any(|item| item.starts_with("function ")) {
            bail!("nothing found: has rustdoc's JSON changed?");
        }
        Ok(items.found)
    }

    fn get(&self, id: &Value) -> Option<(&'j str, &'j Value, &'j Value)> {
        let item = self.index.get(&id.to_string())?;
        let (kind, inner) = item["inner"].as_object()?.iter().next()?;
        Some((kind.as_str(), inner, item))
    }

    fn visit(&mut self, id: &Value, path: &str) {
        let Some((kind, inner, item)) = self.get(id) else { return };
        // Items of traits and enums are as visible as these ("default").
        if item["visibility"] != "public" && item["visibility"] != "default" {
            return;
        }
        if kind == "use" {
            let target = &inner["id"];
            match self.get(target) {
                Some(_) if inner["is_glob"] == true => self.children(target, path),
                Some((_, _, item)) if item["crate_id"] == 0 => self.visit(target, path),
                _ => {
                    let name = inner["name"].as_str().unwrap_or("*");
                    self.found.insert(format!("use {path}::{name}"));
                }
            }
            return;
        }
        if !self.seen.insert(id.to_string()) {
            return;
        }
        let path = format!("{path}::{}", item["name"].as_str().unwrap_or_default());
        if !matches!(kind, "struct_field" | "variant") {
            self.found.insert(format!("{kind} {path}"));
        }
        self.children(id, &path);
    }

    fn children(&mut self, id: &Value, path: &str) {
        let Some((_, inner, _)) = self.get(id) else { return };
        let mut children: Vec<Value> = inner["items"].as_array().cloned().unwrap_or_default();
        for implementation in inner["impls"].as_array().cloned().unwrap_or_default() {
            let Some((_, inner, _)) = self.get(&implementation) else { continue };
            if inner["trait"].is_null() {
                children.extend(inner["items"].as_array().cloned().unwrap_or_default());
            }
        }
        children.iter().for_each(|child| self.visit(child, path));
    }
}
