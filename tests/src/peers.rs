//! Finds the real NSQ programs, or reports visibly that they are missing.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::{env, fmt};

/// The directory with the NSQ programs that `cargo xtask peers` built.
#[derive(Debug, Clone)]
pub struct Peers {
    dir: PathBuf,
}

impl Peers {
    /// Returns the path of one program, such as `nsqd` or `nsq_to_file`.
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns the path of a program that `cargo xtask peers` leaves out where it cannot be built;
    /// if the program is missing, prints that `test` is skipped.
    ///
    /// # Panics
    ///
    /// As [`find_or_skip`].
    pub fn program_or_skip(&self, name: &str, test: &str) -> Option<PathBuf> {
        let file = self.program(name);
        file.is_file().then_some(file).or_else(|| {
            skip(test, &format!("{name} is missing; `cargo xtask peers` prints the reason"))
        })
    }
}

/// The programs are missing; `Display` names the file and the remedy.
#[derive(Debug, Clone)]
pub struct Missing {
    /// The first file that was not found.
    pub file: PathBuf,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} not found, run `cargo xtask peers` (needs Go)", self.file.display())
    }
}

impl std::error::Error for Missing {}

/// Looks for the programs in `target/peers` of this repository, or in `NANONSQ_PEERS`.
pub fn find() -> Result<Peers, Missing> {
    let root = root();
    let dir = env::var_os("NANONSQ_PEERS").map_or_else(|| root.join("target/peers"), PathBuf::from);
    for program in ["nsqd", "nsqlookupd"] {
        let file = dir.join(program);
        if !file.is_file() {
            return Err(Missing {
                file: file.strip_prefix(&root).map(Path::to_owned).unwrap_or(file),
            });
        }
    }
    Ok(Peers { dir })
}

/// Like [`find`]; if the programs are missing, prints on the terminal that `test` is skipped.
///
/// # Panics
///
/// If they are missing although `NANONSQ_REQUIRE_PEERS=1` or `CI=true` is set: CI must not pass by
/// skipping.
pub fn find_or_skip(test: &str) -> Option<Peers> {
    match find() {
        Ok(peers) => Some(peers),
        Err(missing) => skip(test, &missing),
    }
}

/// Returns the path of an installed program; if it is missing, prints that `test` is skipped and
/// names the `package`.
///
/// # Panics
///
/// As [`find_or_skip`].
pub fn installed_or_skip(name: &str, package: &str, test: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.or_else(|| skip(test, &format!("{name} is not installed (package {package})")))
}

fn skip<T>(test: &str, why: &dyn fmt::Display) -> Option<T> {
    let is = |name, value| env::var_os(name).is_some_and(|is| is == value);
    if is("NANONSQ_REQUIRE_PEERS", "1") || is("CI", "true") {
        panic!("{test} must not be skipped here: {why}");
    }
    // Not eprintln: the test runner captures that and shows it only for failing tests.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    None
}

/// Returns the root of the repository, for a test of any of its packages.
pub(crate) fn root() -> PathBuf {
    // First cargo's value at run time: a cached build may come from another directory.
    let running = env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).unwrap_or_default();
    let is_root = |dir: &&Path| dir.join("tests/peers/go.mod").is_file();
    let built = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = running.ancestors().find(is_root).or(built.parent());
    root.expect("tests/ lies in the root of the repository").to_owned()
}

/// Returns the name of the function in which `probe` was defined.
#[doc(hidden)]
pub fn test_name<F>(_probe: F) -> &'static str {
    let name =
        std::any::type_name::<F>().trim_end_matches("::__probe").trim_end_matches("::{{closure}}");
    name.rsplit("::").next().unwrap_or(name)
}

/// The first line of a test that needs the real NSQ programs: returns [`Peers`], or skips the test
/// visibly.
///
/// ```
/// #[tokio::test]
/// async fn registers() {
///     let peers = nanonsq_tests::require_peers!();
///     // ...
/// }
/// ```
#[macro_export]
macro_rules! require_peers {
    () => {{
        fn __probe() {}
        match $crate::peers::find_or_skip($crate::peers::test_name(__probe)) {
            Some(peers) => peers,
            None => return,
        }
    }};
}
