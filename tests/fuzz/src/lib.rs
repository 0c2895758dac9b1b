//! Fuzz targets: functions of some bytes that must not panic, whatever the bytes are.
//!
//! Each [`Target`] decodes its input into what it does: a stream and where it is split, or a
//! sequence of operations. Beside the code under test each has something simple that must agree
//! with it: the same stream in one piece, or an unbounded, obviously right model.
//!
//! Two ways to run them:
//!
//! - `cargo xtask fuzz`, on a stable toolchain: seeded, bounded, what CI runs. It keeps inputs that
//!   show something new (`feature`) and goes on from these.
//! - cargo-fuzz in `fuzz/`, with libFuzzer and its view of which branches were taken.
//!
//! To add a target, write its function, add it to [`TARGETS`] and a file to `fuzz/fuzz_targets`.

mod connection;
mod decode;
mod directory;
mod http;
mod input;
mod lookup;
pub mod mutate;
mod node;
pub mod outbox;
mod publisher;
mod registry;
mod serving;
mod session;
mod window;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};

pub use input::Input;

/// A function of some bytes that must not panic.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// What it is called.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "v2_frames", run: decode::v2_frames, seeds: decode::v2_frames_seeds },
    Target { name: "v2_commands", run: decode::v2_commands, seeds: decode::v2_commands_seeds },
    Target { name: "v1_replies", run: decode::v1_replies, seeds: decode::v1_replies_seeds },
    Target { name: "v1_commands", run: decode::v1_commands, seeds: decode::v1_commands_seeds },
    Target { name: "http_response", run: decode::http_response, seeds: decode::http_seeds },
    Target { name: "json", run: decode::json, seeds: decode::json_seeds },
    Target { name: "outbox", run: outbox::run, seeds: outbox::seeds },
    Target { name: "publisher", run: publisher::run, seeds: publisher::seeds },
    Target { name: "lookup", run: lookup::run, seeds: lookup::seeds },
    Target { name: "registry", run: registry::run, seeds: registry::seeds },
    Target { name: "consumer", run: connection::run, seeds: connection::seeds },
    Target { name: "lookupd_poll", run: connection::poll, seeds: decode::http_seeds },
    Target { name: "window", run: window::run, seeds: window::seeds },
    Target { name: "http", run: http::run, seeds: http::seeds },
    Target { name: "node", run: node::run, seeds: node::seeds },
    Target { name: "node_http", run: node::http, seeds: node::http_seeds },
    Target { name: "node_model", run: node::model, seeds: node::model_seeds },
    Target { name: "directory", run: directory::run, seeds: directory::seeds },
    Target { name: "directory_http", run: directory::http, seeds: directory::http_seeds },
    Target { name: "directory_model", run: directory::model, seeds: directory::model_seeds },
];

/// The target of that name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

thread_local! {
    static FEATURES: RefCell<BTreeSet<u64>> = RefCell::default();
}

/// An input showed something. The stable runner keeps inputs that show something new.
pub(crate) fn feature(what: impl Hash) {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    FEATURES.with_borrow_mut(|features| features.insert(hasher.finish()));
}

/// What was shown since this was last asked.
pub fn take_features() -> BTreeSet<u64> {
    FEATURES.take()
}
