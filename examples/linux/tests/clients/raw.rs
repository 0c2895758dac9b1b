//! A client that does what it is told: nothing by itself, and nothing that it must.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_tests::oracle::{Frame, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// The longest that anything is waited for.
const LIMIT: Duration = Duration::from_secs(20);

/// What the server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Response(String),
    Error(String),
    Message(Message),
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    taken: usize,
}

impl Raw {
    /// Connects, and says nothing.
    pub(crate) async fn connect(server: SocketAddr) -> Result<Raw> {
        let stream = timeout(LIMIT, TcpStream::connect(server)).await.map_err(late)??;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, buffer: Vec::new(), taken: 0 })
    }

    /// Connects and says who it is, with a heartbeat interval in milliseconds.
    pub(crate) async fn identify(server: SocketAddr, heartbeat: u32) -> Result<Raw> {
        let mut raw = Raw::connect(server).await?;
        // The shortest that nsqd allows: it would hold messages back for 250 ms.
        let json = format!(r#"{{"output_buffer_timeout":25,"heartbeat_interval":{heartbeat}}}"#);
        let mut hello = b"  V2".to_vec();
        hello.extend(sized("IDENTIFY", json.as_bytes()));
        raw.send(&hello).await?;
        raw.expect("OK").await?;
        Ok(raw)
    }

    /// Identifies itself, subscribes, and asks for `rdy` messages.
    pub(crate) async fn subscribe(
        server: SocketAddr,
        topic: &str,
        channel: &str,
        rdy: usize,
    ) -> Result<Raw> {
        let mut raw = Raw::identify(server, 30_000).await?;
        raw.send(format!("SUB {topic} {channel}\n").as_bytes()).await?;
        raw.expect("OK").await?;
        raw.send(format!("RDY {rdy}\n").as_bytes()).await?;
        Ok(raw)
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        timeout(LIMIT, self.stream.write_all(bytes)).await.map_err(late)?
    }

    /// The next thing that the server says, but for heartbeats, which are answered.
    pub(crate) async fn next(&mut self) -> Result<Said> {
        loop {
            if let Some(said) = self.buffered()? {
                return Ok(said);
            }
            if self.read().await? {
                self.send(b"NOP\n").await?;
            }
        }
    }

    /// The next thing of what was read already.
    pub(crate) fn buffered(&mut self) -> Result<Option<Said>> {
        while let Some((frame, size)) = Frame::parse(&self.buffer[self.taken..])? {
            self.taken += size;
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            return Ok(Some(match frame {
                Frame::Response(b"_heartbeat_") => continue,
                Frame::Response(bytes) => Said::Response(text(bytes)),
                Frame::Error(bytes) => Said::Error(text(bytes)),
                Frame::Message(message) => Said::Message(message),
            }));
        }
        Ok(None)
    }

    /// Reads what is there, waiting for it; gives whether a heartbeat is among it.
    async fn read(&mut self) -> Result<bool> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let from = self.buffer.len();
        match timeout(LIMIT, self.stream.read_buf(&mut self.buffer)).await.map_err(late)?? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(self.buffer[from..].windows(11).any(|window| window == b"_heartbeat_")),
        }
    }

    /// The next thing that the server says must be this response.
    pub(crate) async fn expect(&mut self, response: &str) -> Result<()> {
        match self.next().await? {
            Said::Response(said) if said == response => Ok(()),
            other => Err(Error::other(format!("{other:?} instead of {response}"))),
        }
    }

    /// Everything that the server still says before it hangs up.
    pub(crate) async fn rest(&mut self) -> Vec<Said> {
        let mut all = Vec::new();
        while let Ok(said) = self.next().await {
            all.push(said);
        }
        all
    }

    /// Says nothing, also to heartbeats, until the server hangs up.
    pub(crate) async fn silent(&mut self) {
        while self.read().await.is_ok() {
            self.taken = self.buffer.len();
        }
    }

    /// Hangs up so that the server reads all that was sent.
    pub(crate) async fn close(mut self) {
        let _ = self.stream.shutdown().await;
        let _ = timeout(LIMIT, async { while self.read().await.is_ok() {} }).await;
    }

    /// Breaks the connection: what the server has not read is lost.
    pub(crate) fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }
}

/// A command with a body.
pub(crate) fn sized(line: &str, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).expect("short").to_be_bytes();
    [line.as_bytes(), b"\n", &size, body].concat()
}

/// `MPUB`.
pub(crate) fn mpub(topic: &str, bodies: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let (mut count, mut messages) = (0u32, Vec::new());
    for body in bodies {
        count += 1;
        messages.extend(u32::try_from(body.len()).expect("short").to_be_bytes());
        messages.extend(body);
    }
    sized(&format!("MPUB {topic}"), &[&count.to_be_bytes(), &*messages].concat())
}

fn late<E>(_: E) -> Error {
    Error::new(ErrorKind::TimedOut, format!("nothing for {LIMIT:?}"))
}
