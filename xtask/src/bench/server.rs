//! A server of one measurement.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::project;

/// A running server; dropping it kills it.
pub(crate) struct Server {
    child: Child,
    /// Removed when the server has ended.
    _data: TempDir,
    pub(crate) tcp: SocketAddr,
    http: SocketAddr,
}

impl Server {
    /// Starts a server on free ports, and returns when it listens. It keeps its data in a directory
    /// of its own if `has_data`.
    pub(crate) fn start(mut command: Command, has_data: bool) -> Result<Self> {
        let data = TempDir::new()?;
        for flag in ["--tcp-address=127.0.0.1:0", "--http-address=127.0.0.1:0"] {
            command.arg(flag);
        }
        command.arg("--broadcast-address=127.0.0.1");
        if has_data {
            command.arg("--data-path").arg(data.path());
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
        let mut log = BufReader::new(child.stderr.take().context("stderr is piped")?);
        match listening_addresses(&mut log) {
            Ok((tcp, http)) => {
                // The rest of the log must not fill the pipe.
                thread::spawn(move || io::copy(&mut log, &mut io::sink()));
                Ok(Self { child, _data: data, tcp, http })
            }
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Returns the time that all threads of the server were on a core.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let mut nanos = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            let running = stat.split(' ').next().context("the time on a core")?;
            nanos += running.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Returns the memory of the server in KiB.
    pub(crate) fn memory(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next()).context("VmRSS")?;
        Ok(number.parse()?)
    }

    /// Connects to the HTTP port.
    pub(crate) fn connect_http(&self) -> Result<TcpStream> {
        let stream = TcpStream::connect(self.http)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Returns the body of the answer.
    pub(crate) fn request(&self, method: &str, path: &str, body: &[u8]) -> Result<String> {
        let mut stream = self.connect_http()?;
        let len = body.len();
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {len}\r\n\r\n")?;
        stream.write_all(body)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
        ensure!(head.contains(" 200 "), "{method} {path}: {answer}");
        Ok(body.to_owned())
    }

    /// Returns the parsed body of the answer.
    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.request("GET", path, &[])?)?)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the path of one of the real servers.
pub(crate) fn peer(name: &str) -> Result<PathBuf> {
    let program = project::peers_dir().join(name);
    ensure!(program.is_file(), "{} not found, run `cargo xtask peers` first", program.display());
    Ok(program)
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
    bail!("it does not start:\n{text}")
}
