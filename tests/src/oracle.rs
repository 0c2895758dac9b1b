//! A minimal V2 consumer that shares no code with nanonsq: it shows what really arrived in nsqd.

use std::collections::HashSet;
use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

/// With the shortest output buffer timeout that nsqd allows; the default delays the last messages
/// by 250 ms.
const IDENTIFY: &[u8] =
    br#"{"client_id":"oracle","user_agent":"oracle","output_buffer_timeout":25}"#;
const RDY: u32 = 25;
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);
const LARGEST_FRAME: usize = 16 << 20;

/// When [`consume_all`] ends.
#[derive(Debug, Clone)]
pub struct Until {
    distinct: usize,
    idle: Duration,
    linger: Duration,
    limit: Duration,
}

impl Until {
    /// Ends as soon as `count` different bodies have arrived, after 2 s without a message, or after
    /// 60 s.
    pub fn distinct(count: usize) -> Self {
        Until {
            distinct: count,
            idle: Duration::from_secs(2),
            linger: Duration::ZERO,
            limit: Duration::from_secs(60),
        }
    }

    /// Ends when nothing has arrived for `idle`.
    pub fn quiet_for(idle: Duration) -> Self {
        Until::distinct(usize::MAX).idle(idle)
    }

    /// Ends after nothing has arrived for `idle`.
    pub fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }

    /// Continues for so long after the count is reached: shows duplicates and unexpected messages.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Ends after `limit` in total.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }
}

/// A message as nsqd delivered it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// When nsqd received it, in nanoseconds since 1970.
    pub timestamp: i64,
    /// The number of deliveries, including this one.
    pub attempts: u16,
    /// nsqd's id of the message.
    pub id: [u8; 16],
    /// The body.
    pub body: Vec<u8>,
}

/// Why [`consume_all`] ended.
#[derive(Debug)]
pub enum Ended {
    /// The count was reached.
    Reached,
    /// Nothing more arrived.
    Idle,
    /// The limit passed.
    Limit,
    /// The connection failed, or nsqd sent an error.
    Failed(Error),
}

/// The deliveries of a channel, in order.
#[derive(Debug)]
pub struct Consumed {
    /// Every delivery; all were answered with FIN.
    pub messages: Vec<Message>,
    /// Why consuming ended.
    pub ended: Ended,
}

impl Consumed {
    /// Returns the bodies, in order of delivery.
    pub fn bodies(&self) -> impl Iterator<Item = &[u8]> {
        self.messages.iter().map(|message| message.body.as_slice())
    }

    /// Returns the bodies as text, in order of delivery.
    pub fn texts(&self) -> Vec<String> {
        self.bodies().map(|body| String::from_utf8_lossy(body).into_owned()).collect()
    }

    /// Returns the different bodies, in order of their first delivery.
    pub fn distinct(&self) -> Vec<&[u8]> {
        let mut seen = HashSet::new();
        self.bodies().filter(|&body| seen.insert(body)).collect()
    }

    /// Returns the number of deliveries with a body that was delivered before.
    pub fn duplicates(&self) -> usize {
        self.messages.len() - self.distinct().len()
    }
}

/// Consumes a channel, creating it if need be, until `until` is reached. Every message is answered
/// with FIN, heartbeats with NOP. Fails only if it cannot subscribe; a later failure is in
/// [`Consumed`].
pub async fn consume_all(
    nsqd: SocketAddr,
    topic: &str,
    channel: &str,
    until: Until,
) -> Result<Consumed> {
    let late = |_| {
        Error::new(
            ErrorKind::TimedOut,
            format!("{nsqd} did not accept the subscription within {HANDSHAKE_LIMIT:?}"),
        )
    };
    let mut stream =
        timeout(HANDSHAKE_LIMIT, subscribe(nsqd, topic, channel)).await.map_err(late)??;

    let limit = Instant::now() + until.limit;
    let mut messages = Vec::new();
    let mut seen = HashSet::new();
    let mut last_arrival = Instant::now();
    let mut reached: Option<Instant> = None;
    let mut buffer = Vec::new();
    let ended = loop {
        if seen.len() >= until.distinct && reached.is_none() {
            reached = Some(Instant::now());
        }
        let (deadline, otherwise) = match reached {
            Some(at) => (at + until.linger, Ended::Reached),
            None => (last_arrival + until.idle, Ended::Idle),
        };
        let (deadline, otherwise) =
            if deadline <= limit { (deadline, otherwise) } else { (limit, Ended::Limit) };
        if deadline <= Instant::now() {
            break otherwise;
        }
        // The buffer outlives the wait: a partial frame is not lost at the deadline.
        match timeout_at(deadline, stream.read_buf(&mut buffer)).await {
            Err(_) => break otherwise,
            Ok(Err(error)) => break Ended::Failed(error),
            Ok(Ok(0)) => break Ended::Failed(ErrorKind::UnexpectedEof.into()),
            Ok(Ok(_)) => {}
        }
        let mut answers = Vec::new();
        let handled = drain_frames(&mut buffer, |message| {
            answers.extend_from_slice(b"FIN ");
            answers.extend_from_slice(&message.id);
            answers.push(b'\n');
            seen.insert(message.body.clone());
            messages.push(message);
            last_arrival = Instant::now();
        });
        match handled {
            Ok(heartbeats) => answers.extend_from_slice(&b"NOP\n".repeat(heartbeats)),
            Err(error) => break Ended::Failed(error),
        }
        if let Err(error) = stream.write_all(&answers).await {
            break Ended::Failed(error);
        }
    };
    close_gracefully(stream).await;
    Ok(Consumed { messages, ended })
}

/// Parses the deliveries and errors in the bytes that an nsqd sent on one connection, as a
/// [`Proxy`](crate::Proxy) recorded them. A frame that is cut off at the end is left out.
pub fn deliveries(mut bytes: &[u8]) -> Result<(Vec<Message>, Vec<String>)> {
    let (mut messages, mut errors) = (Vec::new(), Vec::new());
    while let Some((frame, size)) = Frame::parse(bytes)? {
        bytes = &bytes[size..];
        match frame {
            Frame::Message(message) => messages.push(message),
            Frame::Error(text) => errors.push(String::from_utf8_lossy(text).into_owned()),
            Frame::Response(_) => {}
        }
    }
    Ok((messages, errors))
}

/// Removes all complete frames from the buffer and returns the number of heartbeats among them.
fn drain_frames(buffer: &mut Vec<u8>, mut on_message: impl FnMut(Message)) -> Result<usize> {
    let mut heartbeats = 0;
    let mut at = 0;
    while let Some((frame, size)) = Frame::parse(&buffer[at..])? {
        at += size;
        match frame {
            Frame::Message(message) => on_message(message),
            Frame::Response(b"_heartbeat_") => heartbeats += 1,
            Frame::Response(_) => {}
            // No error of the connection: the message timed out and was delivered again.
            Frame::Error(text) if text.starts_with(b"E_FIN_FAILED") => {}
            Frame::Error(text) => {
                return Err(Error::other(String::from_utf8_lossy(text).into_owned()));
            }
        }
    }
    buffer.drain(..at);
    Ok(heartbeats)
}

async fn subscribe(nsqd: SocketAddr, topic: &str, channel: &str) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(nsqd).await?;
    stream.set_nodelay(true)?;
    let mut hello = b"  V2IDENTIFY\n".to_vec();
    hello.extend_from_slice(&u32::try_from(IDENTIFY.len()).expect("short").to_be_bytes());
    hello.extend_from_slice(IDENTIFY);
    hello.extend_from_slice(format!("SUB {topic} {channel}\n").as_bytes());
    stream.write_all(&hello).await?;
    for command in ["IDENTIFY", "SUB"] {
        let mut head = [0; 8];
        stream.read_exact(&mut head).await?;
        let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let mut body = vec![0; size.saturating_sub(4).min(LARGEST_FRAME)];
        stream.read_exact(&mut body).await?;
        if head[4..] != [0; 4] || body != b"OK" {
            return Err(Error::other(format!("{command}: {}", String::from_utf8_lossy(&body))));
        }
    }
    stream.write_all(format!("RDY {RDY}\n").as_bytes()).await?;
    Ok(stream)
}

/// Closes so that nsqd reads the last FINs: a plain close with unread messages would reset the
/// connection.
async fn close_gracefully(mut stream: TcpStream) {
    let end = async {
        stream.shutdown().await?;
        let mut sink = [0; 4096];
        while stream.read(&mut sink).await? > 0 {}
        Result::Ok(())
    };
    let _ = timeout(Duration::from_millis(500), end).await;
}

/// A frame from nsqd.
#[derive(Debug)]
pub enum Frame<'a> {
    /// A response, or a heartbeat.
    Response(&'a [u8]),
    /// An error.
    Error(&'a [u8]),
    /// A delivery.
    Message(Message),
}

impl<'a> Frame<'a> {
    /// Parses the first frame, if it is complete, and returns it with its size.
    pub fn parse(bytes: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>> {
        let bad = |why: String| Error::new(ErrorKind::InvalidData, why);
        let Some((size, rest)) = bytes.split_first_chunk() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(*size) as usize;
        if !(4..=LARGEST_FRAME).contains(&size) {
            return Err(bad(format!("frame of {size} bytes")));
        }
        let Some(frame) = rest.get(..size) else {
            return Ok(None);
        };
        let (kind, data) = frame.split_first_chunk().expect("at least 4 bytes");
        let frame = match u32::from_be_bytes(*kind) {
            0 => Frame::Response(data),
            1 => Frame::Error(data),
            2 => Frame::Message(Message::parse(data).ok_or_else(|| bad("short message".into()))?),
            other => return Err(bad(format!("frame type {other}"))),
        };
        Ok(Some((frame, 4 + size)))
    }
}

impl Message {
    fn parse(data: &[u8]) -> Option<Message> {
        let (timestamp, data) = data.split_first_chunk()?;
        let (attempts, data) = data.split_first_chunk()?;
        let (id, body) = data.split_first_chunk()?;
        Some(Message {
            timestamp: i64::from_be_bytes(*timestamp),
            attempts: u16::from_be_bytes(*attempts),
            id: *id,
            body: body.to_vec(),
        })
    }
}
