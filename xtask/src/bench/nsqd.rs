//! The nsqd of one measurement.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Mode;
use crate::project;

/// Ephemeral: nsqd keeps nothing of it on disk.
pub(crate) const TOPIC: &str = "bench#ephemeral";

/// A running nsqd; dropping it kills it.
pub(crate) struct Nsqd {
    child: Child,
    data: PathBuf,
    pub(crate) tcp: SocketAddr,
    http: SocketAddr,
}

impl Nsqd {
    /// Starts it on ports that it chooses, and returns when it listens.
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
        command.args(["--mem-queue-size=0", "--data-path"]).arg(&data);
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;

        let mut log = BufReader::new(child.stderr.take().context("stderr is piped")?);
        match listening_addresses(&mut log) {
            Ok((tcp, http)) => {
                // Whatever else it has to say must not fill the pipe.
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

    /// How many messages it has taken.
    pub(crate) fn message_count(&self) -> Result<u64> {
        let mut stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let topic = TOPIC.replace('#', "%23");
        write!(stream, "GET /stats?format=json&include_mem=false&topic={topic} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        let stats: Value = serde_json::from_str(body)?;
        stats["topics"][0]["message_count"]
            .as_u64()
            .with_context(|| format!("no message_count in {stats}"))
    }
}

impl Drop for Nsqd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.data);
    }
}

/// Reads the log until it has told both addresses.
fn listening_addresses(log: &mut impl BufRead) -> Result<(SocketAddr, SocketAddr)> {
    let (mut tcp, mut http) = (None, None);
    let mut said = String::new();
    for line in log.lines() {
        let line = line?;
        let address = |what: &str| line.split_once(what)?.1.trim().parse().ok();
        tcp = tcp.or_else(|| address("TCP: listening on "));
        http = http.or_else(|| address("HTTP: listening on "));
        if let (Some(tcp), Some(http)) = (tcp, http) {
            return Ok((tcp, http));
        }
        said.push_str(&line);
        said.push('\n');
    }
    bail!("nsqd does not start:\n{said}")
}
