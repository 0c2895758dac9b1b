//! The interface of a model server to the network.

use std::collections::BTreeSet;

use crate::random::Random;

/// The number of a connection; never used again.
pub type ConnId = u64;

/// The effects of a call to a server.
#[derive(Debug)]
pub struct Out {
    /// The time, in microseconds.
    pub now: u64,
    /// Replies in order, each with its connection.
    pub replies: Vec<(ConnId, Reply)>,
    /// Parsed commands and events, for those who check them.
    pub seen: Vec<(ConnId, Seen)>,
}

/// A reply on a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// Sends a response of this kind.
    Say(Kind, Vec<u8>),
    /// Closes the connection.
    Close,
}

/// The kind of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The response to IDENTIFY.
    Identified,
    /// The response to AUTH.
    Authorized,
    /// OK.
    Ok,
    /// A heartbeat.
    Heartbeat,
    /// A refusal, after which the connection ends.
    Refusal,
    /// A message.
    Message,
    /// CLOSE_WAIT.
    CloseWait,
    /// E_FIN_FAILED or similar, after which the connection stays.
    Late,
}

/// An event on a connection.
#[derive(Debug)]
pub enum Seen {
    /// The connection came up.
    Opened,
    /// nsqd stored these messages, all of one command.
    Stored {
        /// The topic.
        topic: String,
        /// The bodies.
        bodies: Vec<Vec<u8>>,
        /// True for an MPUB.
        batch: bool,
    },
    /// RDY: the client accepts this many messages in flight.
    Ready {
        /// The count.
        rdy: u64,
    },
    /// nsqd finished this message.
    Finished {
        /// The body.
        body: Vec<u8>,
        /// The number of deliveries.
        attempts: u16,
    },
    /// nsqd requeued this message on request.
    Requeued {
        /// The body.
        body: Vec<u8>,
    },
    /// The client sent NOP or PING.
    Alive,
    /// nsqd requeued this message because its timeout passed.
    TakenBack {
        /// The body.
        body: Vec<u8>,
    },
    /// nsqd refused a command.
    Refused {
        /// The text of the error.
        words: String,
    },
    /// The client has owed this for too long.
    Overdue(&'static str),
}

/// A server on the network.
pub trait Server {
    /// A connection came up.
    fn open(&mut self, conn: ConnId, out: &mut Out);

    /// Bytes arrived.
    fn receive(&mut self, conn: ConnId, bytes: &[u8], out: &mut Out);

    /// The client ended its stream.
    fn ended(&mut self, conn: ConnId, out: &mut Out);

    /// The connection is gone.
    fn closed(&mut self, conn: ConnId);

    /// Returns the time of the next tick in microseconds; `u64::MAX` is never.
    fn deadline(&self) -> u64;

    /// Time passed.
    fn tick(&mut self, out: &mut Out);

    /// Returns something well-formed that a correct server would not send now.
    fn lie(&self, random: &mut Random) -> Vec<u8>;

    /// Sets whether the server is about to exit and refuses work.
    fn set_exiting(&mut self, exiting: bool);

    /// Deletes something, perhaps of one of these topics, as an administrator; returns a
    /// description.
    fn vandalize(&mut self, random: &mut Random, topics: &[&str]) -> String;

    /// Ends the server's own faults.
    fn heal(&mut self) {
        self.set_exiting(false);
    }

    /// Publishes a message as another client.
    fn feed(&mut self, topic: &str, body: &[u8], out: &mut Out) {
        let _ = (topic, body, out);
    }

    /// Returns the bodies published to a topic that are not finished.
    fn unfinished(&self, topic: &str) -> Vec<Vec<u8>> {
        let _ = topic;
        Vec::new()
    }

    /// Returns the names that a connection has registered.
    fn listing(&self, conn: ConnId) -> Option<BTreeSet<String>>;

    /// Returns whether the server listens.
    fn is_up(&self) -> bool {
        true
    }

    /// Returns whether a connection waits to be accepted.
    fn waits(&self, conn: ConnId) -> bool {
        let _ = conn;
        false
    }

    /// Returns the number of bytes that arrived on a connection and were not read.
    fn unread(&self, conn: ConnId) -> usize {
        let _ = conn;
        0
    }

    /// A client has read bytes, so that there is room for more.
    fn writable(&mut self, conn: ConnId) {
        let _ = conn;
    }
}

impl Out {
    /// Returns no effects yet.
    pub fn new(now: u64) -> Self {
        Self { now, replies: Vec::new(), seen: Vec::new() }
    }

    /// Sends a response.
    pub fn say(&mut self, conn: ConnId, kind: Kind, bytes: Vec<u8>) {
        self.replies.push((conn, Reply::Say(kind, bytes)));
    }

    /// Closes a connection.
    pub fn close(&mut self, conn: ConnId) {
        self.replies.push((conn, Reply::Close));
    }
}

/// Splits a length and its body: returns the length, and the body if all of it is there.
pub fn body(bytes: &[u8]) -> Option<(i32, Option<&[u8]>)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = i32::from_be_bytes(*len);
    Some((len, usize::try_from(len).ok().and_then(|len| rest.get(..len))))
}

/// Returns whether nsqd and nsqlookupd accept this name.
pub fn is_name(name: &[u8]) -> bool {
    let bare = name.strip_suffix(b"#ephemeral").unwrap_or(name);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b".-_".contains(b);
    (1..=64).contains(&name.len()) && !bare.is_empty() && bare.iter().all(plain)
}
