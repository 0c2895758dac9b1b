//! What a model server is to the network.

use std::collections::BTreeSet;

use crate::random::Random;

/// Names a connection, for good.
pub type ConnId = u64;

/// What a server does when something reached it.
#[derive(Debug)]
pub struct Out {
    /// The time, in microseconds.
    pub now: u64,
    /// What it says and to whom, in order.
    pub replies: Vec<(ConnId, Reply)>,
    /// What it understood, for those who check it.
    pub seen: Vec<(ConnId, Seen)>,
}

/// One thing that a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// An answer of that kind.
    Say(Kind, Vec<u8>),
    /// It closes the connection.
    Close,
}

/// What kind of answer it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To IDENTIFY.
    Identified,
    /// To AUTH.
    Authorized,
    /// An OK.
    Ok,
    /// A heartbeat.
    Heartbeat,
    /// A refusal, after which the connection ends.
    Refusal,
    /// A message.
    Message,
    /// CLOSE_WAIT.
    CloseWait,
    /// E_FIN_FAILED and its like: the connection stays.
    Late,
}

/// What a server understood on a connection.
#[derive(Debug)]
pub enum Seen {
    /// The connection came up.
    Opened,
    /// nsqd stored these messages, all of one command.
    Stored {
        /// Where.
        topic: String,
        /// The messages.
        bodies: Vec<Vec<u8>>,
        /// It came as an MPUB.
        batch: bool,
    },
    /// The client may have so many messages in flight.
    Ready {
        /// How many.
        rdy: u64,
    },
    /// nsqd has finished this message.
    Finished {
        /// The message.
        body: Vec<u8>,
        /// How often it was delivered.
        attempts: u16,
    },
    /// nsqd was asked to deliver this message again.
    Requeued {
        /// The message.
        body: Vec<u8>,
    },
    /// The client says that it is there: NOP or PING.
    Alive,
    /// nsqd has taken this message back: it was not answered in time.
    TakenBack {
        /// The message.
        body: Vec<u8>,
    },
    /// nsqd refused this command, with these words.
    Refused {
        /// The words.
        words: String,
    },
    /// The client owes this since long.
    Overdue(&'static str),
}

/// A server of the network: what reaches it and what it says.
pub trait Server {
    /// A connection came up.
    fn open(&mut self, conn: ConnId, out: &mut Out);

    /// Bytes arrived.
    fn receive(&mut self, conn: ConnId, bytes: &[u8], out: &mut Out);

    /// The client ended its stream.
    fn ended(&mut self, conn: ConnId, out: &mut Out);

    /// The connection is gone.
    fn closed(&mut self, conn: ConnId);

    /// When to tick next; `u64::MAX` is never.
    fn deadline(&self) -> u64;

    /// Time passed.
    fn tick(&mut self, out: &mut Out);

    /// Something well-formed that a sane server would not say now.
    fn lie(&self, random: &mut Random) -> Vec<u8>;

    /// It is about to exit, or not: it refuses work.
    fn set_exiting(&mut self, exiting: bool);

    /// An administrator deletes something, of one of these topics perhaps; what it was.
    fn vandalize(&mut self, random: &mut Random, topics: &[&str]) -> String;

    /// All that was wrong with it is right again.
    fn heal(&mut self) {
        self.set_exiting(false);
    }

    /// Somebody else publishes a message.
    fn feed(&mut self, topic: &str, body: &[u8], out: &mut Out) {
        let _ = (topic, body, out);
    }

    /// What was published to a topic and is not finished.
    fn unfinished(&self, topic: &str) -> Vec<Vec<u8>> {
        let _ = topic;
        Vec::new()
    }

    /// What a connection has registered.
    fn listing(&self, conn: ConnId) -> Option<BTreeSet<String>>;

    /// Whether it listens.
    fn is_up(&self) -> bool {
        true
    }

    /// Whether a connection waits to be accepted.
    fn waits(&self, conn: ConnId) -> bool {
        let _ = conn;
        false
    }

    /// How much arrived on a connection that it has not read.
    fn unread(&self, conn: ConnId) -> usize {
        let _ = conn;
        0
    }

    /// A client read something, so that there is room for more.
    fn writable(&mut self, conn: ConnId) {
        let _ = conn;
    }
}

impl Out {
    /// Nothing yet.
    pub fn new(now: u64) -> Self {
        Self { now, replies: Vec::new(), seen: Vec::new() }
    }

    /// Says something.
    pub fn say(&mut self, conn: ConnId, kind: Kind, bytes: Vec<u8>) {
        self.replies.push((conn, Reply::Say(kind, bytes)));
    }

    /// Closes.
    pub fn close(&mut self, conn: ConnId) {
        self.replies.push((conn, Reply::Close));
    }
}

/// A body behind its length, if all of it is there: how many bytes that is, and the body.
pub fn body(bytes: &[u8]) -> Option<(i32, Option<&[u8]>)> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    let len = i32::from_be_bytes(*len);
    Some((len, usize::try_from(len).ok().and_then(|len| rest.get(..len))))
}

/// nsqd's and nsqlookupd's rule for names.
pub fn is_name(name: &[u8]) -> bool {
    let bare = name.strip_suffix(b"#ephemeral").unwrap_or(name);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b".-_".contains(b);
    (1..=64).contains(&name.len()) && !bare.is_empty() && bare.iter().all(plain)
}
