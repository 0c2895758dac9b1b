//! Requests to stop, by signals.
//!
//! SIGINT (Ctrl-C), SIGTERM and SIGHUP are the same request. The first signal requests an orderly
//! end, the second one an end at once. A signal within [`SAME`] after the first repeats it, because
//! terminals and `timeout` signal the process and its group. If SIGHUP was ignored at the start, as
//! under `nohup`, it stays ignored.
//!
//! A separate thread waits for signals, so that it sees their times even if the program is busy,
//! and the second signal ends the program even if it hangs, for example in a blocked write to
//! standard error.

use std::future::pending;
use std::io;
use std::process::{ExitCode, exit};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use embassy_futures::select::select3;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Time after the first signal in which another one is the same request.
const SAME: Duration = Duration::from_millis(500);

/// Time for the program's last output after the second signal.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

/// The exit status after the second signal, that of a program which SIGINT kills.
const STOPPED: u8 = 130;

/// The part of the help of all commands about signals.
pub(crate) const HELP: &str = "\
Signals:
  SIGINT (Ctrl-C), SIGTERM or SIGHUP ends it in order, another one at least 500 ms later at once, with
  status 130. Under nohup SIGHUP is ignored.";

/// Makes signals requests from now on; they no longer kill the process.
pub(crate) fn catch() {
    let _ = requests();
}

/// Returns the status of a failure: another one if a second request has stopped the program.
pub(crate) fn failure() -> ExitCode {
    match requests() {
        Some(requests) if *requests.borrow() >= 2 => ExitCode::from(STOPPED),
        _ => ExitCode::FAILURE,
    }
}

/// Waits for `count` requests: 1 to stop in order, 2 to stop at once.
pub(crate) async fn interrupts(count: u8) {
    let waited = match requests() {
        Some(mut requests) => requests.wait_for(|seen| *seen >= count).await.is_ok(),
        // Without signal handlers the program cannot be interrupted gracefully.
        None => false,
    };
    if !waited {
        pending().await
    }
}

fn requests() -> Option<watch::Receiver<u8>> {
    static REQUESTS: OnceLock<Option<watch::Receiver<u8>>> = OnceLock::new();
    REQUESTS.get_or_init(|| start().ok()).clone()
}

/// Starts the thread and waits until it catches signals.
fn start() -> io::Result<watch::Receiver<u8>> {
    let (requested, requests) = watch::channel(0);
    let (started, starting) = std::sync::mpsc::channel();
    thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let caught = runtime.and_then(|runtime| {
            let caught = runtime.block_on(async { Caught::new() })?;
            Ok((caught, runtime))
        });
        match caught {
            Ok((mut caught, runtime)) => {
                let _ = started.send(Ok(()));
                runtime.block_on(wait(&mut caught, &requested));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    starting.recv().unwrap_or_else(|gone| Err(io::Error::other(gone)))?;
    Ok(requests)
}

struct Caught {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Caught {
    fn new() -> io::Result<Self> {
        let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup,
        })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        select3(self.interrupt.recv(), self.terminate.recv(), hangup).await;
    }
}

async fn wait(caught: &mut Caught, requested: &watch::Sender<u8>) {
    caught.next().await;
    let first = Instant::now();
    let _ = requested.send(1);
    loop {
        caught.next().await;
        if first.elapsed() >= SAME {
            break;
        }
    }
    let _ = requested.send(2);
    sleep(LAST_OUTPUT).await;
    // Without output, in which the program may hang.
    exit(STOPPED.into());
}

/// Returns whether SIGHUP was ignored when the program was started.
fn is_hangup_ignored() -> bool {
    const HANGUP: u64 = 1 << (rustix::process::Signal::HUP.as_raw() - 1);
    // Only Linux offers this without `unsafe`.
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    ignored.is_some_and(|mask| mask & HANGUP != 0)
}
