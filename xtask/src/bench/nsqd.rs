//! The nsqd of one measurement.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Mode;
use crate::project;

/// Ephemeral, so that nsqd writes nothing to disk.
pub(crate) const TOPIC: &str = "bench#ephemeral";

/// A running nsqd; dropping it kills it.
pub(crate) struct Nsqd {
    child: Child,
    data: PathBuf,
    pub(crate) tcp: SocketAddr,
    http: SocketAddr,
}

impl Nsqd {
    /// Starts nsqd on free ports, and returns when it listens.
    pub(crate) fn start(mode: Mode) -> Result<Nsqd> {
        let program = project::peers_dir().join("nsqd");
        ensure!(
            program.is_file(),
            "{} not found, run `cargo xtask peers` first",
            program.display()
        );
        let data = std::env::temp_dir().join(format!("nanonsq-bench-{}", std::process::id()));
        fs::create_dir_all(&data)?;

        let mut command = mode.command(&program);
        command.args([
            "--tcp-address=127.0.0.1:0",
            "--http-address=127.0.0.1:0",
            "--broadcast-address=127.0.0.1",
        ]);
        // Published messages are dropped; messages to consume are kept in memory.
        let queue = if mode == Mode::Consume { 10_000_000 } else { 0 };
        command.arg(format!("--mem-queue-size={queue}")).arg("--data-path").arg(&data);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;

        let mut log = BufReader::new(child.stderr.take().context("stderr is piped")?);
        match listening_addresses(&mut log) {
            Ok((tcp, http)) => {
                // The rest of the log must not fill the pipe.
                thread::spawn(move || io::copy(&mut log, &mut io::sink()));
                Ok(Nsqd { child, data, tcp, http })
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Publishes `count` messages to the channel that clients consume.
    pub(crate) fn fill(&self, count: u64, size: usize) -> Result<()> {
        const BATCH: u64 = 1000;
        let topic = TOPIC.replace('#', "%23");
        self.request("POST", &format!("/topic/create?topic={topic}"), &[])?;
        self.request("POST", &format!("/channel/create?topic={topic}&channel=bench"), &[])?;
        let body = vec![b'x'; size];
        let mut left = count;
        while left > 0 {
            let some = left.min(BATCH);
            let mut batch = Vec::with_capacity(4 + some as usize * (4 + size));
            batch.extend((some as u32).to_be_bytes());
            for _ in 0..some {
                batch.extend((size as u32).to_be_bytes());
                batch.extend(&body);
            }
            self.request("POST", &format!("/mpub?topic={topic}&binary=true"), &batch)?;
            left -= some;
        }
        // Wait until all messages are in the channel.
        let deadline = Instant::now() + Duration::from_secs(60);
        while self.channel()?["depth"].as_u64() != Some(count) {
            ensure!(Instant::now() < deadline, "{}", self.stats()?);
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Waits until all messages are finished; fails if one was delivered more than once.
    pub(crate) fn expect_consumed(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let channel = self.channel()?;
            let left =
                ["depth", "in_flight_count", "deferred_count", "requeue_count", "timeout_count"]
                    .map(|key| channel[key].as_u64());
            if left == [Some(0); 5] {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "not consumed: {channel}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns the number of messages that nsqd has accepted.
    pub(crate) fn message_count(&self) -> Result<u64> {
        let stats = self.stats()?;
        stats["topics"][0]["message_count"]
            .as_u64()
            .with_context(|| format!("no message_count in {stats}"))
    }

    fn channel(&self) -> Result<Value> {
        Ok(self.stats()?["topics"][0]["channels"][0].take())
    }

    fn stats(&self) -> Result<Value> {
        let topic = TOPIC.replace('#', "%23");
        let path = format!("/stats?format=json&include_mem=false&topic={topic}");
        Ok(serde_json::from_str(&self.request("GET", &path, &[])?)?)
    }

    fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let len = body.len();
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n")?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        ensure!(head.contains(" 200 "), "{method} {path}: {answer}");
        Ok(body.to_owned())
    }
}

impl Drop for Nsqd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// Reads the log up to the lines with both addresses.
fn listening_addresses(log: &mut impl BufRead) -> Result<(SocketAddr, SocketAddr)> {
    let (mut tcp, mut http) = (None, None);
    let mut text = String::new();
    for line in log.lines() {
        let line = line?;
        let address = |what: &str| line.split_once(what)?.1.trim().parse().ok();
        tcp = tcp.or_else(|| address("TCP: listening on "));
        http = http.or_else(|| address("HTTP: listening on "));
        if let (Some(tcp), Some(http)) = (tcp, http) {
            return Ok((tcp, http));
        }
        text.push_str(&line);
        text.push('\n');
    }
    bail!("nsqd does not start:\n{text}")
}
