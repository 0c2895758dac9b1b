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

/// The program while it runs. Dropping it kills it.
pub(crate) struct Run {
    child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    said: Arc<Mutex<String>>,
    printed: Arc<Mutex<String>>,
    reading: [tokio::task::JoinHandle<()>; 2],
}

/// Collects what a program writes.
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
        let (said, saying) = collect(child.stderr.take().unwrap());
        let (printed, printing) = collect(child.stdout.take().unwrap());
        Run { child, stdin, said, printed, reading: [saying, printing] }
    }

    /// `nanonsq pub --topic t --nsqd-tcp-address ADDRESS` and more.
    pub(crate) fn publish(nsqd: SocketAddr, more: &[&str]) -> Run {
        let nsqd = nsqd.to_string();
        let mut args = vec!["pub", "--topic", "t", "--nsqd-tcp-address", &nsqd];
        args.extend(more);
        Run::start(&args)
    }

    /// `nanonsq sub --topic t --channel c --nsqd-tcp-address ADDRESS` and more.
    pub(crate) fn subscribe(nsqd: SocketAddr, more: &[&str]) -> Run {
        let nsqd = nsqd.to_string();
        let mut args = vec!["sub", "--topic", "t", "--channel", "c", "--nsqd-tcp-address", &nsqd];
        args.extend(more);
        Run::start(&args)
    }

    pub(crate) async fn write(&mut self, input: impl AsRef<[u8]>) {
        let stdin = self.stdin.as_mut().unwrap();
        // It may end without reading everything.
        let _ = stdin.write_all(input.as_ref()).await;
        let _ = stdin.flush().await;
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }

    pub(crate) fn printed(&self) -> Vec<String> {
        self.printed.lock().unwrap().lines().map(str::to_owned).collect()
    }

    pub(crate) async fn until_it_prints(&self, lines: usize) {
        let what = format!("{lines} lines");
        eventually(&what, LIMIT, async || self.printed().len() >= lines).await;
    }

    pub(crate) async fn until_it_says(&self, text: &str) {
        eventually(text, SOON, async || self.said().contains(text)).await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.id().expect("still running");
        kill_process(Pid::from_raw(id as i32).unwrap(), signal).unwrap();
    }

    /// Ends its input, and waits for its end.
    pub(crate) async fn finish(mut self) -> Ended {
        drop(self.stdin.take());
        self.end().await
    }

    /// Waits for its end.
    pub(crate) async fn end(mut self) -> Ended {
        let Ok(status) = tokio::time::timeout(LIMIT, self.child.wait()).await else {
            panic!("still running after {LIMIT:?}: {}", self.said());
        };
        for reading in &mut self.reading {
            reading.await.unwrap();
        }
        Ended { code: status.unwrap().code(), said: self.said(), printed: self.printed() }
    }
}

#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) said: String,
    pub(crate) printed: Vec<String>,
}

impl Ended {
    /// Ended with `code` and said each of `texts`.
    #[track_caller]
    pub(crate) fn expect(&self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, Some(code), "{}", self.said);
        for text in texts {
            assert!(self.said.contains(text), "{text:?} is not in:\n{}", self.said);
        }
    }

    /// The lines that begin with `start`.
    pub(crate) fn lines(&self, start: &str) -> Vec<&str> {
        self.said.lines().filter(|line| line.starts_with(start)).collect()
    }
}
