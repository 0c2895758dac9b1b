//! nsqd and nsqlookupd processes on loopback: the real ones, or others with the same flags.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{self, encode};
use crate::peers::Peers;
use crate::ports::{self, Reserved};

const POLL: Duration = Duration::from_millis(2);
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(10);
const START_TRIES: usize = 5;
const LOG_TAIL: usize = 4_000;

/// A real nsqd.
pub type Nsqd = Server<NsqdProgram>;
/// A real nsqlookupd.
pub type Nsqlookupd = Server<NsqlookupdProgram>;

/// The options of a server, except for its ports and data directory.
#[derive(Debug, Clone, Default)]
pub struct ServerOptions {
    program: Option<PathBuf>,
    flags: Vec<String>,
}

impl ServerOptions {
    /// No extra flags.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a command line flag, such as `--msg-timeout=1s`.
    pub fn flag(mut self, flag: impl Into<String>) -> Self {
        self.flags.push(flag.into());
        self
    }

    /// Runs another program instead, such as `nanonsq`, with a command before the flags. It keeps
    /// no data.
    pub fn program(mut self, program: impl Into<PathBuf>, command: impl Into<String>) -> Self {
        self.program = Some(program.into());
        self.flags.insert(0, command.into());
        self
    }

    /// For nsqd: registers with this nsqlookupd (its TCP address). Repeatable.
    pub fn lookupd(self, address: SocketAddr) -> Self {
        self.flag(format!("--lookupd-tcp-address={address}"))
    }
}

/// The program that a [`Server`] runs.
pub trait Program {
    /// The file name.
    const NAME: &'static str;
    /// True if the program takes `--data-path`.
    const HAS_DATA: bool;
}

/// Marks a [`Server`] as nsqd.
#[derive(Debug)]
pub enum NsqdProgram {}

impl Program for NsqdProgram {
    const NAME: &'static str = "nsqd";
    const HAS_DATA: bool = true;
}

/// Marks a [`Server`] as nsqlookupd.
#[derive(Debug)]
pub enum NsqlookupdProgram {}

impl Program for NsqlookupdProgram {
    const NAME: &'static str = "nsqlookupd";
    const HAS_DATA: bool = false;
}

/// A server process with its ports, data directory and log. Dropping it kills the process and
/// deletes its files; while a test is panicking, it also prints the end of the log.
#[derive(Debug)]
pub struct Server<P: Program> {
    program: PathBuf,
    keeps_data: bool,
    flags: Vec<String>,
    tcp: Reserved,
    http: Reserved,
    dir: TempDir,
    child: Option<Child>,
    listening_since: Instant,
    kind: PhantomData<P>,
}

impl<P: Program> Server<P> {
    /// Starts the program on free ports; returns when it listens and its HTTP port answers.
    ///
    /// # Panics
    ///
    /// If the program ends or does not listen within 10 s.
    pub async fn start(peers: &Peers, options: ServerOptions) -> Self {
        let dir =
            tempfile::Builder::new().prefix(P::NAME).tempdir().expect("a temporary directory");
        let mut server = Server {
            keeps_data: P::HAS_DATA && options.program.is_none(),
            program: options.program.unwrap_or_else(|| peers.program(P::NAME)),
            flags: options.flags,
            tcp: ports::reserve(),
            http: ports::reserve(),
            dir,
            child: None,
            listening_since: Instant::now(),
            kind: PhantomData,
        };
        for _ in 0..START_TRIES {
            match server.spawn_and_wait().await {
                Ok(()) => return server,
                Err(StartError::PortTaken) => {
                    (server.tcp, server.http) = (ports::reserve(), ports::reserve())
                }
                Err(StartError::Other(why)) => {
                    panic!("{} does not start: {why}", P::NAME)
                }
            }
        }
        panic!("{} found its ports taken {START_TRIES} times", P::NAME);
    }

    /// Starts a stopped or killed server again, on the same ports and with the same data.
    ///
    /// # Panics
    ///
    /// If the server is running, or does not listen within 10 s.
    pub async fn start_again(&mut self) {
        assert!(self.child.is_none(), "{} is running", P::NAME);
        let mut result = self.spawn_and_wait().await;
        for _ in 1..START_TRIES {
            if !matches!(result, Err(StartError::PortTaken)) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            result = self.spawn_and_wait().await;
        }
        match result {
            Ok(()) => {}
            Err(StartError::PortTaken) => panic!("{}: its ports were taken meanwhile", P::NAME),
            Err(StartError::Other(why)) => panic!("{} does not start again: {why}", P::NAME),
        }
    }

    /// Stops the server with SIGTERM and starts it again at once.
    pub async fn restart(&mut self) {
        self.stop_sigterm().await;
        self.start_again().await;
    }

    /// Ends the server with SIGTERM and waits for the end.
    pub async fn stop_sigterm(&mut self) -> ExitStatus {
        self.end(Signal::TERM).await
    }

    /// Ends the server with SIGKILL, as a crash would, and waits for the end.
    pub async fn kill(&mut self) -> ExitStatus {
        self.end(Signal::KILL).await
    }

    /// Freezes the process with SIGSTOP: connections stay open and nothing is answered. Returns
    /// when all threads are stopped.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        let Some(child) = &self.child else { return };
        let deadline = Instant::now() + Duration::from_secs(2);
        while !is_stopped(child.id()) {
            assert!(Instant::now() < deadline, "{} does not stop", P::NAME);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Lets a frozen process continue.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Returns the address of the TCP protocol.
    pub fn tcp_address(&self) -> SocketAddr {
        self.tcp.address()
    }

    /// Returns the address of the HTTP API.
    pub fn http_address(&self) -> SocketAddr {
        self.http.address()
    }

    /// Returns the resident memory of the process in bytes; 0 where there is no /proc.
    pub fn resident(&self) -> u64 {
        let id = self.child.as_ref().map_or(0, Child::id);
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Returns whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Returns the directory of nsqd's data and of the log.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Returns when the process was first seen listening after its last start, at most a few
    /// milliseconds late.
    pub fn listening_since(&self) -> Instant {
        self.listening_since
    }

    /// Returns the whole log, over all starts.
    pub fn log(&self) -> String {
        fs::read(self.log_file())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Sends `GET path` to the HTTP API; the response must be JSON.
    pub async fn get_json(&self, path: &str) -> Value {
        expect(http::get_json(self.http_address(), path).await)
    }

    /// Sends `POST path` to the HTTP API; the response must be 200.
    pub async fn post(&self, path: &str, body: &[u8]) {
        let response = expect(http::post(self.http_address(), path, body).await);
        assert_eq!(response.status, 200, "POST {path}: {}", response.text());
    }

    /// Starts the process once and waits until it listens.
    async fn spawn_and_wait(&mut self) -> Result<(), StartError> {
        let log =
            OpenOptions::new().create(true).append(true).open(self.log_file()).expect("a log file");
        let from = log.metadata().map_or(0, |metadata| metadata.len());
        self.child =
            Some(self.command(log).spawn().map_err(|error| StartError::Other(error.to_string()))?);

        let deadline = Instant::now() + START_LIMIT;
        loop {
            // Read the log rather than dial the port: another program may have taken it.
            let log = self.log_from(from);
            if log.contains("TCP: listening on") && log.contains("HTTP: listening on") {
                self.listening_since = Instant::now();
                break;
            }
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().ok()?) {
                self.child = None;
                let log = self.log_from(from);
                return Err(match log.to_lowercase().contains("address already in use") {
                    true => StartError::PortTaken,
                    false => StartError::Other(status.to_string()),
                });
            }
            if Instant::now() > deadline {
                return Err(StartError::Other(format!("not listening after {START_LIMIT:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
        match http::get(self.http_address(), "/ping").await {
            Ok(response) if response.status == 200 => Ok(()),
            other => Err(StartError::Other(format!("/ping: {other:?}"))),
        }
    }

    fn command(&self, log: File) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.flags)
            .arg(format!("--tcp-address={}", self.tcp_address()))
            .arg(format!("--http-address={}", self.http_address()))
            .arg("--broadcast-address=127.0.0.1")
            .current_dir(self.dir())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log);
        if self.keeps_data {
            command.arg("--data-path").arg(self.dir());
        }
        command
    }

    async fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        let mut child = self.child.take().expect("signalled just now");
        let deadline = Instant::now() + STOP_LIMIT;
        loop {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                return status;
            }
            if Instant::now() > deadline {
                // Put the child back, so that dropping the server kills it.
                self.child = Some(child);
                panic!("{} still runs {STOP_LIMIT:?} after {signal:?}", P::NAME);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    fn signal(&self, signal: Signal) {
        let child = self.child.as_ref().unwrap_or_else(|| panic!("{} is not running", P::NAME));
        // The child was not waited for, so the id is still its own.
        kill_process(Pid::from_child(child), signal).expect("signalling a child of ours");
    }

    fn log_file(&self) -> PathBuf {
        self.dir().join("log.txt")
    }

    fn log_from(&self, start: u64) -> String {
        let read = || {
            let mut file = File::open(self.log_file())?;
            file.seek(SeekFrom::Start(start))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            std::io::Result::Ok(bytes)
        };
        read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn log_tail(&self) -> String {
        let length = fs::metadata(self.log_file()).map_or(0, |metadata| metadata.len());
        self.log_from(length.saturating_sub(LOG_TAIL as u64))
    }
}

impl Server<NsqdProgram> {
    /// Publishes one message over HTTP.
    pub async fn publish(&self, topic: &str, body: &[u8]) {
        self.post(&format!("/pub?topic={}", encode(topic)), body).await;
    }

    /// Creates a topic.
    pub async fn create_topic(&self, topic: &str) {
        self.post(&format!("/topic/create?topic={}", encode(topic)), b"").await;
    }

    /// Creates a channel of an existing topic.
    pub async fn create_channel(&self, topic: &str, channel: &str) {
        self.post(
            &format!("/channel/create?topic={}&channel={}", encode(topic), encode(channel)),
            b"",
        )
        .await;
    }

    /// Returns the entry of `topic` in `/stats`, or `Null` if there is none.
    pub async fn stats(&self, topic: &str) -> Value {
        let mut stats = self.get_json(&format!("/stats?format=json&topic={}", encode(topic))).await;
        // Null if there is no topic of that name.
        stats["topics"].get_mut(0).map(Value::take).unwrap_or_default()
    }

    /// Returns the number of messages of `topic` that are in no channel yet.
    pub async fn depth(&self, topic: &str) -> u64 {
        self.stats(topic).await["depth"].as_u64().unwrap_or(0)
    }

    /// Returns the number of messages published to `topic` since this nsqd started.
    pub async fn message_count(&self, topic: &str) -> u64 {
        self.stats(topic).await["message_count"].as_u64().unwrap_or(0)
    }

    /// Returns the entry of a channel in `/stats`, or `Null`.
    pub async fn channel_stats(&self, topic: &str, channel: &str) -> Value {
        let mut stats = self.stats(topic).await;
        let channels = stats["channels"].as_array_mut().map(std::mem::take).unwrap_or_default();
        channels.into_iter().find(|is| is["channel_name"] == channel).unwrap_or(Value::Null)
    }
}

impl Server<NsqlookupdProgram> {
    /// Returns the addresses of the producers of `topic`, as `host:tcp_port`; none also if
    /// nsqlookupd does not know the topic.
    pub async fn lookup(&self, topic: &str) -> Vec<String> {
        let path = format!("/lookup?topic={}", encode(topic));
        let response = expect(http::get(self.http_address(), &path).await);
        match response.status {
            200 => addresses(&expect(response.json())["producers"]),
            404 => Vec::new(),
            status => panic!("GET {path}: {status} {}", response.text()),
        }
    }

    /// Returns the addresses of all nodes, as `host:tcp_port`.
    pub async fn nodes(&self) -> Vec<String> {
        addresses(&self.get_json("/nodes").await["producers"])
    }

    /// Returns all topics, sorted.
    pub async fn topics(&self) -> Vec<String> {
        names(&self.get_json("/topics").await["topics"])
    }

    /// Returns all channels of a topic, sorted.
    pub async fn channels(&self, topic: &str) -> Vec<String> {
        names(&self.get_json(&format!("/channels?topic={}", encode(topic))).await["channels"])
    }

    /// Waits until `/lookup` lists `producer` for `topic`; panics after `limit`.
    pub async fn wait_listed(&self, topic: &str, producer: SocketAddr, limit: Duration) {
        let what = format!("{producer} listed for {topic}");
        let producer = producer.to_string();
        crate::eventually(&what, limit, async || self.lookup(topic).await.contains(&producer))
            .await;
    }
}

impl<P: Program> Drop for Server<P> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            eprintln!(
                "--- end of the log of {} {}:\n{}---",
                P::NAME,
                self.tcp_address(),
                self.log_tail()
            );
        }
    }
}

/// Returns whether every thread of a process is stopped. Without /proc, waits a moment and returns
/// true.
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        std::thread::sleep(Duration::from_millis(50));
        return true;
    };
    threads.flatten().all(|thread| {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        // The state follows the name in parentheses; there is none if the thread is gone.
        stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('T'))
    })
}

enum StartError {
    PortTaken,
    Other(String),
}

#[track_caller]
fn expect<T>(result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}

fn addresses(producers: &Value) -> Vec<String> {
    let of = |producer: &Value| {
        format!(
            "{}:{}",
            producer["broadcast_address"].as_str().unwrap_or("?"),
            producer["tcp_port"]
        )
    };
    sorted(producers, of)
}

fn names(list: &Value) -> Vec<String> {
    sorted(list, |name| name.as_str().unwrap_or("?").to_owned())
}

fn sorted(list: &Value, of: impl Fn(&Value) -> String) -> Vec<String> {
    let mut all: Vec<_> = list.as_array().into_iter().flatten().map(of).collect();
    all.sort();
    all
}
