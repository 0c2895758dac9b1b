//! A client that costs little: it writes what it is told, and reads frames.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// The longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(30);

const RESPONSE: u32 = 0;
const MESSAGE: u32 = 2;

/// A connection to a TCP or HTTP port.
pub(crate) struct Raw(BufReader<TcpStream>);

/// A message's id and its number of attempts.
pub(crate) struct Message {
    pub(crate) id: [u8; 16],
    pub(crate) attempts: u16,
}

impl Raw {
    /// Connects and announces the protocol.
    pub(crate) fn connect(to: SocketAddr, magic: &[u8]) -> Result<Self> {
        let raw = Self::new(TcpStream::connect(to)?)?;
        raw.send(magic)?;
        Ok(raw)
    }

    pub(crate) fn new(stream: TcpStream) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Self(BufReader::with_capacity(64 << 10, stream)))
    }

    /// Connects to nsqd and subscribes.
    pub(crate) fn subscribe(to: SocketAddr, topic: &str, channel: &str) -> Result<Self> {
        let mut raw = Self::connect(to, b"  V2")?;
        raw.send(format!("SUB {topic} {channel}\n").as_bytes())?;
        raw.expect_ok()?;
        Ok(raw)
    }

    pub(crate) fn set_timeout(&self, timeout: Duration) -> Result<()> {
        Ok(self.0.get_ref().set_read_timeout(Some(timeout))?)
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> Result<()> {
        Ok(self.0.get_ref().write_all(bytes)?)
    }

    /// Reads a response that must be OK.
    pub(crate) fn expect_ok(&mut self) -> Result<()> {
        loop {
            match self.frame()? {
                (RESPONSE, body) if body == b"OK" => return Ok(()),
                (RESPONSE, body) if body == b"_heartbeat_" => self.send(b"NOP\n")?,
                (_, body) => bail!("answered {}", String::from_utf8_lossy(&body)),
            }
        }
    }

    /// Reads a message; `None` if there is none within the timeout.
    pub(crate) fn message(&mut self) -> Result<Option<Message>> {
        loop {
            match self.0.fill_buf() {
                Ok([]) => bail!("the connection ended"),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) => return Err(error.into()),
            }
            match self.frame()? {
                (MESSAGE, body) => {
                    let attempts = *body.get(8..).and_then(|b| b.first_chunk()).context("short")?;
                    let id = *body.get(10..).and_then(|b| b.first_chunk()).context("short")?;
                    return Ok(Some(Message { id, attempts: u16::from_be_bytes(attempts) }));
                }
                (RESPONSE, body) if body == b"_heartbeat_" => self.send(b"NOP\n")?,
                (_, body) => bail!("answered {}", String::from_utf8_lossy(&body)),
            }
        }
    }

    /// Returns whether nothing more was read.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.buffer().is_empty()
    }

    fn frame(&mut self) -> Result<(u32, Vec<u8>)> {
        let mut body = self.sized()?;
        ensure!(body.len() >= 4, "a frame of {} bytes", body.len());
        let rest = body.split_off(4);
        Ok((u32::from_be_bytes(*body.first_chunk().context("a type")?), rest))
    }

    /// Reads an answer of nsqlookupd, which is a frame without a type.
    pub(crate) fn sized(&mut self) -> Result<Vec<u8>> {
        let mut len = [0; 4];
        self.read_exact(&mut len)?;
        let mut body = vec![0; u32::from_be_bytes(len) as usize];
        self.read_exact(&mut body)?;
        Ok(body)
    }

    /// Reads all of it, however short the timeout is.
    fn read_exact(&mut self, mut buf: &mut [u8]) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        while !buf.is_empty() {
            match self.0.read(buf) {
                Ok(0) => bail!("the connection ended"),
                Ok(n) => buf = &mut buf[n..],
                Err(error)
                    if error.kind() == ErrorKind::WouldBlock && Instant::now() < deadline => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends a request over a connection that stays, and reads the answer.
    pub(crate) fn request(&mut self, request: &[u8]) -> Result<()> {
        self.send(request)?;
        let (mut length, mut line, mut first) = (0, String::new(), true);
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let line = line.trim().to_ascii_lowercase();
            ensure!(!first || line.contains(" 200"), "answered {line}");
            first = false;
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.is_empty() {
                break;
            }
        }
        self.read_exact(&mut vec![0; length])?;
        Ok(())
    }
}

/// A command with a body.
pub(crate) fn command(line: &str, body: &[u8]) -> Vec<u8> {
    let len = (body.len() as u32).to_be_bytes();
    [line.as_bytes(), b"\n", &len, body].concat()
}

/// The body of MPUB.
pub(crate) fn batch(count: usize, body: &[u8]) -> Vec<u8> {
    let mut batch = (count as u32).to_be_bytes().to_vec();
    for _ in 0..count {
        batch.extend((body.len() as u32).to_be_bytes());
        batch.extend(body);
    }
    batch
}
