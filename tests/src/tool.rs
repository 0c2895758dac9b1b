//! Runs any other program: nsq_tail, nsq_to_file, nsqadmin, or nanonsq's own.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const POLL: Duration = Duration::from_millis(2);

/// A running program whose output is collected. Dropping it kills the program.
#[derive(Debug)]
pub struct Tool {
    name: String,
    child: Child,
    dir: TempDir,
}

impl Tool {
    /// Starts `program` with `args`, in a temporary directory of its own.
    pub fn start(
        program: impl AsRef<Path>,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Tool {
        let program = program.as_ref();
        let dir = tempfile::tempdir().expect("a temporary directory");
        let file = |name| File::create(dir.path().join(name)).expect("a file for the output");
        let child = Command::new(program)
            .args(args)
            .current_dir(dir.path())
            .stdin(Stdio::piped())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));
        Tool { name: program.display().to_string(), child, dir }
    }

    /// Returns the program's standard input; may be called once. Drop it to signal the end.
    pub fn stdin(&mut self) -> std::process::ChildStdin {
        self.child.stdin.take().expect("standard input was taken already")
    }

    /// Returns the directory in which the program runs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns the standard output so far.
    pub fn stdout(&self) -> String {
        self.read("stdout")
    }

    /// Returns the standard output so far, after its first `start` bytes.
    pub fn stdout_from(&self, start: u64) -> Vec<u8> {
        let read = || {
            let mut file = File::open(self.dir.path().join("stdout"))?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        read().unwrap_or_default()
    }

    /// Returns the standard error so far.
    pub fn stderr(&self) -> String {
        self.read("stderr")
    }

    /// Sends SIGTERM if the program still runs.
    pub fn terminate(&mut self) {
        // After it was waited for, the id may belong to another program.
        if self.child.try_wait().expect("a child of ours").is_none() {
            kill_process(Pid::from_child(&self.child), Signal::TERM)
                .expect("signalling a child of ours");
        }
    }

    /// Kills the program, as a crash would.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Returns whether the program still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child of ours").is_none()
    }

    /// Waits until the program ends; panics after `limit`.
    pub async fn wait(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(Instant::now() < deadline, "{} still runs after {limit:?}", self.name);
            tokio::time::sleep(POLL).await;
        }
    }

    fn read(&self, name: &str) -> String {
        let bytes = std::fs::read(self.dir.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {}:\n{}{}---", self.name, self.stdout(), self.stderr());
        }
    }
}
