//! A client that sends exactly the bytes that a test passes.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_tests::ServerOptions;
use nanonsq_tests::oracle::{Frame, Message};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pair::{Setting, tests_with};

tests_with!([Real, Ours]: odd_identifications);

/// Time limit for each read and write.
const LIMIT: Duration = Duration::from_secs(20);

/// A frame of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Received {
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
    /// Connects, and sends nothing.
    pub(crate) async fn connect(server: SocketAddr) -> Result<Raw> {
        let stream = timeout(LIMIT, TcpStream::connect(server)).await.map_err(timed_out)??;
        stream.set_nodelay(true)?;
        Ok(Raw { stream, buffer: Vec::new(), taken: 0 })
    }

    /// Connects and sends IDENTIFY, with a heartbeat interval in milliseconds.
    pub(crate) async fn identify(server: SocketAddr, heartbeat: u32) -> Result<Raw> {
        let mut raw = Raw::connect(server).await?;
        // The shortest timeout that nsqd allows; by default it buffers messages for 250 ms.
        let json = format!(r#"{{"output_buffer_timeout":25,"heartbeat_interval":{heartbeat}}}"#);
        let mut hello = b"  V2".to_vec();
        hello.extend(sized("IDENTIFY", json.as_bytes()));
        raw.send(&hello).await?;
        raw.expect("OK").await?;
        Ok(raw)
    }

    /// Connects, sends IDENTIFY and SUB, and sets RDY.
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
        timeout(LIMIT, self.stream.write_all(bytes)).await.map_err(timed_out)?
    }

    /// Waits for the next frame, and answers heartbeats.
    pub(crate) async fn next(&mut self) -> Result<Received> {
        loop {
            if let Some(received) = self.buffered()? {
                return Ok(received);
            }
            if self.read().await? {
                self.send(b"NOP\n").await?;
            }
        }
    }

    /// Returns the next frame of the bytes read so far, without heartbeats.
    pub(crate) fn buffered(&mut self) -> Result<Option<Received>> {
        while let Some((frame, size)) = Frame::parse(&self.buffer[self.taken..])? {
            self.taken += size;
            let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
            return Ok(Some(match frame {
                Frame::Response(b"_heartbeat_") => continue,
                Frame::Response(bytes) => Received::Response(text(bytes)),
                Frame::Error(bytes) => Received::Error(text(bytes)),
                Frame::Message(message) => Received::Message(message),
            }));
        }
        Ok(None)
    }

    /// Waits for bytes and reads them; returns whether they contain a heartbeat.
    async fn read(&mut self) -> Result<bool> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let from = self.buffer.len();
        match timeout(LIMIT, self.stream.read_buf(&mut self.buffer)).await.map_err(timed_out)?? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(self.buffer[from..].windows(11).any(|window| window == b"_heartbeat_")),
        }
    }

    /// Waits for the next frame, which must be this response.
    pub(crate) async fn expect(&mut self, response: &str) -> Result<()> {
        match self.next().await? {
            Received::Response(received) if received == response => Ok(()),
            other => Err(Error::other(format!("{other:?} instead of {response}"))),
        }
    }

    /// Returns all frames until the server closes.
    pub(crate) async fn rest(&mut self) -> Vec<Received> {
        let mut all = Vec::new();
        while let Ok(received) = self.next().await {
            all.push(received);
        }
        all
    }

    /// Sends nothing, not even answers to heartbeats, until the server closes.
    pub(crate) async fn silent(&mut self) {
        while self.read().await.is_ok() {
            self.taken = self.buffer.len();
        }
    }

    /// Reads until no bytes arrive for 20 ms.
    pub(crate) async fn receive(&mut self) {
        let wait = Duration::from_millis(20);
        while let Ok(Ok(_)) = timeout(wait, self.read()).await {
            self.taken = self.buffer.len();
        }
    }

    /// Closes, so that the server reads all sent bytes.
    pub(crate) async fn close(mut self) {
        let _ = self.stream.shutdown().await;
        let _ = timeout(LIMIT, async { while self.read().await.is_ok() {} }).await;
    }

    /// Resets the connection; bytes that the server has not read are lost.
    pub(crate) fn reset(self) {
        let _ = self.stream.set_zero_linger();
    }
}

/// Returns a command with a body.
pub(crate) fn sized(line: &str, body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).expect("short").to_be_bytes();
    [line.as_bytes(), b"\n", &size, body].concat()
}

/// Returns an MPUB command.
pub(crate) fn mpub(topic: &str, bodies: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let (mut count, mut messages) = (0u32, Vec::new());
    for body in bodies {
        count += 1;
        messages.extend(u32::try_from(body.len()).expect("short").to_be_bytes());
        messages.extend(body);
    }
    sized(&format!("MPUB {topic}"), &[&count.to_be_bytes(), &*messages].concat())
}

fn timed_out<E>(_: E) -> Error {
    Error::new(ErrorKind::TimedOut, format!("nothing for {LIMIT:?}"))
}

/// Unusual IDENTIFY bodies, which the real servers and ours answer in the same way.
async fn odd_identifications(setting: Setting) {
    let mut options = ServerOptions::new();
    if !setting.subject.is_our_node() {
        // Our node has no compression.
        options = options.flag("--snappy=false").flag("--deflate=false");
    }
    let pair = setting.start(options).await;
    const BAD_JSON: &str = "E_BAD_BODY IDENTIFY failed to decode JSON body";
    const BAD_INTERVAL: &str = "E_BAD_BODY IDENTIFY heartbeat interval (100) is invalid";
    for (body, answer) in [
        ("{}", "OK"),
        ("null", "OK"),
        (" null\n", "OK"),
        ("{}\r\n\t ", "OK"),
        ("[]", BAD_JSON),
        (r#""{}""#, BAD_JSON),
        ("1", BAD_JSON),
        (" ", BAD_JSON),
        ("{} x", BAD_JSON),
        ("{}{}", BAD_JSON),
        ("{}\0", BAD_JSON),
        ("\u{feff}{}", BAD_JSON),
        (r#"{"snappy":true,}"#, BAD_JSON),
        (r#"{"snappy":true"#, BAD_JSON),
        // Keys.
        (r#"{"Heartbeat_Interval":100}"#, BAD_INTERVAL),
        (r#"{"\u0068eartbeat_interval":100}"#, BAD_INTERVAL),
        (r#"{"\u0048EARTBEAT_INTERVAL":100}"#, BAD_INTERVAL),
        (r#"{"heartbeat_interval":1000,"Heartbeat_interval":100}"#, BAD_INTERVAL),
        (r#"{"Heartbeat_interval":100,"heartbeat_interval":1000}"#, "OK"),
        (r#"{"heartbeat_interval":100,"heartbeat_interval":null}"#, BAD_INTERVAL),
        (r#"{"heartbeat_interval":"x","heartbeat_interval":1000}"#, BAD_JSON),
        (r#"{"heartbeat":100,"heartbeat_interval_":100}"#, "OK"),
        // Values.
        (r#"{"x":{"heartbeat_interval":100,"y":[1,{"snappy":3}]},"z":[[],{},1e999]}"#, "OK"),
        (r#"{"client_id":null,"HOSTNAME":null,"user_agent":null,"tls_v1":null}"#, "OK"),
        (r#"{"heartbeat_interval":null,"sample_rate":null,"deflate_level":null}"#, "OK"),
        (r#"{"heartbeat_interval":-0}"#, "OK"),
        (r#"{"heartbeat_interval":1e3}"#, BAD_JSON),
        (r#"{"heartbeat_interval":1000.0}"#, BAD_JSON),
        (r#"{"heartbeat_interval":"1000"}"#, BAD_JSON),
        (r#"{"heartbeat_interval":true}"#, BAD_JSON),
        (r#"{"msg_timeout":[1000]}"#, BAD_JSON),
        (r#"{"sample_rate":3000000000}"#, BAD_JSON),
        (r#"{"snappy":1}"#, BAD_JSON),
        (r#"{"snappy":"true"}"#, BAD_JSON),
        (r#"{"client_id":{"a":1}}"#, BAD_JSON),
        (r#"{"hostname":5}"#, BAD_JSON),
        (r#"{"client_id":"\ud800"}"#, "OK"),
        (r#"{"client_id":"\x"}"#, BAD_JSON),
        ("{\"client_id\":\"\t\"}", BAD_JSON),
        (r#"{"snappy":true,"deflate":true}"#, "OK"),
    ] {
        let mut raw = Raw::connect(pair.node.tcp_address()).await.unwrap();
        raw.send(&[b"  V2", &*sized("IDENTIFY", body.as_bytes())].concat()).await.unwrap();
        let received = match raw.next().await.unwrap() {
            Received::Response(received) | Received::Error(received) => received,
            Received::Message(message) => panic!("{message:?} to {body}"),
        };
        assert_eq!(received, answer, "{body}");
    }
    // Both compressions are requested, and neither is available.
    let mut raw = Raw::connect(pair.node.tcp_address()).await.unwrap();
    let both = br#"{"Feature_Negotiation":true,"snappy":true,"deflate":true}"#;
    raw.send(&[b"  V2", &*sized("IDENTIFY", both)].concat()).await.unwrap();
    match raw.next().await.unwrap() {
        Received::Response(received) => {
            assert!(
                received.contains(r#""deflate":false"#) && received.contains(r#""snappy":false"#)
            )
        }
        other => panic!("{other:?}"),
    }

    const MISSING: &str = "E_BAD_BODY IDENTIFY missing fields";
    const INFO: &str = r#"{"broadcast_address":"#;
    let node = r#""broadcast_address":"h","tcp_port":1,"http_port":2,"version":"v""#;
    let with = |more: &str| format!("{{{node}{more}}}");
    for (body, answer) in [
        (with(""), INFO),
        (with("").replace("tcp_p", "TCP_P").replace("ver", "Ver"), INFO),
        (with("").replace("broad", "\\u0042road"), INFO),
        (with(r#","x":{"tcp_port":"z"},"y":[{}],"id":5"#), INFO),
        (with(r#","tcp_port":null,"broadcast_address":null,"hostname":null"#), INFO),
        (with(r#","remote_address":"q""#), INFO),
        ("null".to_owned(), MISSING),
        ("{}".to_owned(), MISSING),
        (with(r#","Tcp_Port":0"#), MISSING),
        (with(r#","version":"""#), MISSING),
        ("[]".to_owned(), BAD_JSON),
        (r#""h""#.to_owned(), BAD_JSON),
        (with("") + " x", BAD_JSON),
        (with(r#","tcp_port":1e3"#), BAD_JSON),
        (with(r#","tcp_port":1.0"#), BAD_JSON),
        (with(r#","tcp_port":"1""#), BAD_JSON),
        (with(r#","hostname":5"#), BAD_JSON),
        (with(r#","Remote_Address":{}"#), BAD_JSON),
    ] {
        let mut raw = Raw::connect(pair.lookupd.tcp_address()).await.unwrap();
        raw.send(&[b"  V1", &*sized("IDENTIFY", body.as_bytes())].concat()).await.unwrap();
        while raw.buffer.len() < 4 + answer.len() {
            raw.read().await.unwrap();
        }
        assert_eq!(String::from_utf8_lossy(&raw.buffer[4..4 + answer.len()]), answer, "{body}");
    }
}
