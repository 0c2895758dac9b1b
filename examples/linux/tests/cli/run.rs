//! The program as a process.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nanonsq_tests::eventually;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, ChildStdin, Command};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A running program, killed on drop.
pub(crate) struct Run {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    stderr: Arc<Mutex<String>>,
    stdout: Arc<Mutex<String>>,
    readers: [tokio::task::JoinHandle<()>; 2],
}

/// Collects the output of a program in a task.
fn collect(
    mut from: impl tokio::io::AsyncRead + Unpin + Send + 'static,
) -> (Arc<Mutex<String>>, tokio::task::JoinHandle<()>) {
    let text = Arc::new(Mutex::new(String::new()));
    let to = text.clone();
    let reading = tokio::spawn(async move {
        let mut bytes = [0; 4096];
        while let Ok(n @ 1..) = from.read(&mut bytes).await {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    });
    (text, reading)
}

impl Run {
    pub(crate) fn start(args: &[&str]) -> Run {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nanonsq"))
            .args(args)
            .env_remove("RUST_LOG")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let stdin = child.stdin.take();
        let (stderr, stderr_reader) = collect(child.stderr.take().unwrap());
        let (stdout, stdout_reader) = collect(child.stdout.take().unwrap());
        Run { child, stdin, stderr, stdout, readers: [stderr_reader, stdout_reader] }
    }

    /// Starts `nanonsq pub --topic t --nsqd-tcp-address ADDRESS` with more arguments.
    pub(crate) fn publish(nsqd: SocketAddr, more: &[&str]) -> Run {
        let nsqd = nsqd.to_string();
        let mut args = vec!["pub", "--topic", "t", "--nsqd-tcp-address", &nsqd];
        args.extend(more);
        Run::start(&args)
    }

    /// Starts `nanonsq sub --topic t --channel c --nsqd-tcp-address ADDRESS` with more arguments.
    pub(crate) fn subscribe(nsqd: SocketAddr, more: &[&str]) -> Run {
        let nsqd = nsqd.to_string();
        let mut args = vec!["sub", "--topic", "t", "--channel", "c", "--nsqd-tcp-address", &nsqd];
        args.extend(more);
        Run::start(&args)
    }

    pub(crate) async fn write(&mut self, input: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().unwrap();
        // The program may end before it has read the whole input.
        let _ = stdin.write_all(input.as_ref()).await;
        let _ = stdin.flush().await;
    }

    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// Returns the lines of standard output.
    pub(crate) fn printed(&self) -> Vec<String> {
        self.stdout.lock().unwrap().lines().map(str::to_owned).collect()
    }

    /// Waits for a number of lines on standard output.
    pub(crate) async fn until_it_prints(&self, lines: usize) {
        let what = format!("{lines} lines");
        eventually(&what, LIMIT, async || self.printed().len() >= lines).await;
    }

    /// Waits for a text on standard error.
    pub(crate) async fn until_it_logs(&self, text: &str) {
        eventually(text, SOON, async || self.stderr().contains(text)).await;
    }

    /// A number of what Linux tells of the process.
    pub(crate) fn status(&self, key: &str) -> u64 {
        let id = self.child.id().expect("still running");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(key)).expect("it is there");
        line.split_whitespace().next().and_then(|number| number.parse().ok()).expect("a number")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("still running");
        kill_process(Pid::from_raw(id as i32).unwrap(), signal).unwrap();
    }

    /// Closes the input and waits for the end of the program.
    pub(crate) async fn finish(mut self) -> Ended {
        drop(self.stdin.take());
        self.end().await
    }

    /// Waits for the end of the program.
    pub(crate) async fn end(mut self) -> Ended {
        let Ok(status) = tokio::time::timeout(LIMIT, self.child.wait()).await else {
            panic!("still running after {LIMIT:?}: {}", self.stderr());
        };
        for reader in &mut self.readers {
            reader.await.unwrap();
        }
        Ended { code: status.unwrap().code(), stderr: self.stderr(), printed: self.printed() }
    }
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
    /// The lines of standard output.
    pub(crate) printed: Vec<String>,
}

impl Ended {
    /// Asserts the exit status and that each of `texts` is on standard error.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for text in texts {
            assert!(self.stderr.contains(text), "{text:?} is not in:\n{}", self.stderr);
        }
    }

    /// Returns the lines of the log, which have a time, that go on with `start`.
    pub(crate) fn lines(&self, start: &str) -> Vec<&str> {
        let logged = self.stderr.lines().filter_map(without_time);
        logged.filter(|line| line.starts_with(start)).collect()
    }
}

/// Returns a line of the log without the time before it; `None` if there is none.
pub(crate) fn without_time(line: &str) -> Option<&str> {
    let (time, rest) = line.split_once(' ')?;
    let shape = time.chars().map(|char| if char.is_ascii_digit() { '0' } else { char });
    shape.eq("0000-00-00T00:00:00.000Z".chars()).then_some(rest)
}
