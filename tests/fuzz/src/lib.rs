//! Fuzz targets: functions of some bytes that must not panic, whatever the bytes are.
//!
//! Each [`Target`] decodes its input into actions: a stream and where it is split, or a sequence of
//! operations. The code under test must agree with something simple: the same stream in one piece,
//! or an unbounded, obviously correct model.
//!
//! There are two ways to run them:
//!
//! - `cargo xtask fuzz`, on a stable toolchain: seeded and bounded, for CI. It keeps inputs with a
//!   new `feature` and continues from these.
//! - cargo-fuzz in `fuzz/`, with libFuzzer and its branch coverage.
//!
//! Both begin with the corpus in `corpus/`: of libFuzzer's inputs, the fewest that take all
//! branches. `cargo xtask fuzz --keep TARGET` rewrites it.
//!
//! To add a target, write its function, add it to [`TARGETS`] and `tests/targets.rs`, and files to
//! `corpus` and `fuzz/fuzz_targets`.

mod connection;
mod decode;
mod http;
mod input;
mod json;
pub mod mutate;
mod nsqd;
mod nsqlookupd;
pub mod outbox;
mod publisher;
mod reference;
mod registration;
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
    /// The name.
    pub name: &'static str,
    /// The function.
    pub run: fn(&[u8]),
    /// Handmade inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// More inputs with branches of their own, one per line in hexadecimal digits.
    corpus: &'static str,
}

impl Target {
    /// Returns the inputs to start from, each once.
    pub fn inputs(&self) -> Vec<Vec<u8>> {
        let corpus = self.corpus.lines().map(|line| read_hex(line).expect("hexadecimal digits"));
        let mut known = BTreeSet::new();
        (self.seeds)().into_iter().chain(corpus).filter(|it| known.insert(it.clone())).collect()
    }
}

/// Parses hexadecimal digits.
pub fn read_hex(digits: &str) -> Option<Vec<u8>> {
    let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok();
    let pairs = digits.as_bytes().chunks(2);
    pairs.map(|two| byte(two).filter(|_| two.len() == 2)).collect()
}

/// Formats bytes as hexadecimal digits.
pub fn write_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

macro_rules! target {
    ($name:literal, $run:path, $seeds:path) => {
        Target {
            name: $name,
            run: $run,
            seeds: $seeds,
            corpus: include_str!(concat!("../corpus/", $name, ".txt")),
        }
    };
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target!("nsqd_frames", decode::v2_frames, decode::v2_frames_seeds),
    target!("nsqd_commands", decode::v2_commands, decode::v2_commands_seeds),
    target!("nsqlookupd_replies", decode::v1_replies, decode::v1_replies_seeds),
    target!("nsqlookupd_commands", decode::v1_commands, decode::v1_commands_seeds),
    target!("http_response", decode::http_response, decode::http_seeds),
    target!("json", json::run, json::seeds),
    target!("names", decode::names, decode::names_seeds),
    target!("outbox", outbox::run, outbox::seeds),
    target!("publisher", publisher::run, publisher::seeds),
    target!("registration", registration::run, registration::seeds),
    target!("registry", registry::run, registry::seeds),
    target!("consumer", connection::run, connection::seeds),
    target!("consumer_lookupd", connection::poll, connection::poll_seeds),
    target!("rdy", window::run, window::seeds),
    target!("http", http::run, http::seeds),
    target!("http_target", http::target, http::target_seeds),
    target!("nsqd", nsqd::run, nsqd::seeds),
    target!("nsqd_http", nsqd::http, nsqd::http_seeds),
    target!("nsqd_model", nsqd::model, nsqd::model_seeds),
    target!("nsqlookupd", nsqlookupd::run, nsqlookupd::seeds),
    target!("nsqlookupd_tcp", nsqlookupd::nsqlookupd, nsqlookupd::v1_seeds),
    target!("nsqlookupd_http", nsqlookupd::http, nsqlookupd::http_seeds),
    target!("nsqlookupd_model", nsqlookupd::model, nsqlookupd::model_seeds),
];

/// Returns the target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

thread_local! {
    static FEATURES: RefCell<BTreeSet<u64>> = RefCell::default();
}

/// Records a feature of the current input. The stable runner keeps inputs with new features.
pub(crate) fn feature(what: impl Hash) {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    FEATURES.with_borrow_mut(|features| features.insert(hasher.finish()));
}

/// Returns the features since the last call.
pub fn take_features() -> BTreeSet<u64> {
    FEATURES.take()
}
