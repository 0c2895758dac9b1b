//! A model of nsqlookupd 1.3.0 (`nsqlookupd/lookup_protocol_v1.go`). It shares no code with
//! nanonsq; the simulator's `tests/differential.rs` compares it with the real one.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::Value;

use crate::random::Random;
use crate::server::{ConnId, Kind, Out, Seen, Server, body, is_name};

/// See the [module](self).
#[derive(Debug)]
pub struct Nsqlookupd {
    /// The longest silence of a node in microseconds; then it is [`Seen::Overdue`].
    patience: u64,
    connections: BTreeMap<ConnId, Connection>,
    known: Known,
}

/// The channels that were registered, each as `topic/channel`. Only ephemeral ones are removed when
/// no node has them.
#[derive(Debug, Clone, Default)]
pub struct Known(Rc<RefCell<BTreeSet<String>>>);

impl Known {
    /// Returns a topic's channels as `/channels` lists them.
    pub fn channels(&self, topic: &str) -> Vec<String> {
        let prefix = format!("{topic}/");
        let known = self.0.borrow();
        known.iter().filter_map(|name| name.strip_prefix(&prefix)).map(str::to_owned).collect()
    }
}

/// A connection and what it registered.
#[derive(Debug, Default)]
struct Connection {
    inbox: Vec<u8>,
    greeted: bool,
    identified: bool,
    dead: bool,
    last_ping: u64,
    /// Registered names: `topic` and `topic/channel`.
    listed: BTreeSet<String>,
}

impl Nsqlookupd {
    /// Makes a server without connections.
    pub fn new(patience: u64) -> Self {
        Self { patience, connections: BTreeMap::new(), known: Known::default() }
    }

    /// Returns the registered channels, for the HTTP side.
    pub fn known(&self) -> Known {
        self.known.clone()
    }

    /// Adds the channels of all connections and removes ephemeral ones that no connection has.
    fn update_known(&mut self) {
        let all = || self.connections.values().flat_map(|it| &it.listed);
        let mut known = self.known.0.borrow_mut();
        known.extend(all().filter(|name| name.contains('/')).cloned());
        known.retain(|name| !name.ends_with("#ephemeral") || all().any(|listed| listed == name));
    }
}

impl Connection {
    /// Runs one command if it is complete, and returns whether it was.
    fn step(&mut self, conn: ConnId, out: &mut Out) -> bool {
        if self.dead {
            return false;
        }
        if !self.greeted {
            let Some(magic) = self.inbox.first_chunk::<4>() else { return false };
            if magic != b"  V1" {
                self.refuse(conn, "E_BAD_PROTOCOL".into(), out);
                return false;
            }
            self.inbox.drain(..4);
            self.greeted = true;
        }
        let Some(end) = self.inbox.iter().position(|&b| b == b'\n') else { return false };
        let line = self.inbox[..end].trim_ascii().to_vec();
        let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let mut used = end + 1;
        match words[0] {
            b"PING" => {
                self.last_ping = out.now;
                out.seen.push((conn, Seen::Alive));
            }
            b"IDENTIFY" => match self.identify(&self.inbox[used..]) {
                None => return false,
                Some(Ok(len)) => {
                    self.inbox.drain(..used + len);
                    self.identified = true;
                    self.last_ping = out.now;
                    out.say(conn, Kind::Identified, reply(INFO));
                    return true;
                }
                Some(Err(words)) => {
                    self.refuse(conn, words, out);
                    return false;
                }
            },
            verb @ (b"REGISTER" | b"UNREGISTER") => {
                let verb = String::from_utf8_lossy(verb).into_owned();
                if let Err(words) = self.register(&verb, &words[1..]) {
                    self.refuse(conn, words, out);
                    return false;
                }
            }
            other => {
                let other = String::from_utf8_lossy(other);
                self.refuse(conn, format!("E_INVALID invalid command {other}"), out);
                return false;
            }
        }
        self.inbox.drain(..std::mem::take(&mut used));
        out.say(conn, Kind::Ok, reply(b"OK"));
        true
    }

    /// Returns the length of the body behind the line, or `None` if it is not complete.
    fn identify(&self, rest: &[u8]) -> Option<Result<usize, String>> {
        if self.identified {
            return Some(Err("E_INVALID cannot IDENTIFY again".into()));
        }
        let (len, text) = body(rest)?;
        assert!(len >= 0, "this crashes the real nsqlookupd");
        let text = text?;
        let Ok(Value::Object(node)) = serde_json::from_slice(text) else {
            return Some(Err("E_BAD_BODY IDENTIFY failed to decode JSON body".into()));
        };
        let has_text = |key| node.get(key).and_then(Value::as_str).is_some_and(|s| !s.is_empty());
        let has_port = |key| node.get(key).and_then(Value::as_i64).is_some_and(|port| port != 0);
        let complete = has_text("broadcast_address")
            && has_text("version")
            && has_port("tcp_port")
            && has_port("http_port");
        if !complete {
            return Some(Err("E_BAD_BODY IDENTIFY missing fields".into()));
        }
        Some(Ok(4 + text.len()))
    }

    fn register(&mut self, verb: &str, names: &[&[u8]]) -> Result<(), String> {
        if !self.identified {
            return Err("E_INVALID client must IDENTIFY".into());
        }
        let Some(topic) = names.first() else {
            return Err(format!("E_INVALID {verb} insufficient number of params"));
        };
        let channel = names.get(1).filter(|channel| !channel.is_empty());
        let text = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
        if !is_name(topic) {
            let topic = text(topic);
            return Err(format!("E_BAD_TOPIC {verb} topic name '{topic}' is not valid"));
        }
        if let Some(channel) = channel
            && !is_name(channel)
        {
            let channel = text(channel);
            return Err(format!("E_BAD_CHANNEL {verb} channel name '{channel}' is not valid"));
        }
        let topic = text(topic);
        let both = channel.map(|channel| format!("{topic}/{}", text(channel)));
        match (verb, both) {
            ("REGISTER", both) => {
                self.listed.extend(both);
                self.listed.insert(topic);
            }
            (_, Some(both)) => drop(self.listed.remove(&both)),
            (_, None) => {
                let channels = format!("{topic}/");
                self.listed.retain(|name| *name != topic && !name.starts_with(&channels));
            }
        }
        Ok(())
    }

    fn refuse(&mut self, conn: ConnId, words: String, out: &mut Out) {
        self.dead = true;
        out.seen.push((conn, Seen::Refused { words: words.clone() }));
        out.say(conn, Kind::Refusal, reply(words.as_bytes()));
        out.close(conn);
    }
}

impl Server for Nsqlookupd {
    fn open(&mut self, conn: ConnId, out: &mut Out) {
        self.connections.insert(conn, Connection { last_ping: out.now, ..Connection::default() });
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], out: &mut Out) {
        if let Some(it) = self.connections.get_mut(&conn) {
            it.inbox.extend_from_slice(bytes);
            while it.step(conn, out) {}
        }
        self.update_known();
    }

    fn ended(&mut self, conn: ConnId, out: &mut Out) {
        let Some(it) = self.connections.get_mut(&conn) else { return };
        if it.dead {
            return;
        }
        let end = it.inbox.iter().position(|&b| b == b'\n');
        match end.map(|end| it.inbox.len() - end - 1) {
            Some(0..4) => {
                it.refuse(conn, "E_BAD_BODY IDENTIFY failed to read body size".into(), out);
            }
            Some(_) => it.refuse(conn, "E_BAD_BODY IDENTIFY failed to read body".into(), out),
            None => {
                it.dead = true;
                out.close(conn);
            }
        }
    }

    fn closed(&mut self, conn: ConnId) {
        self.connections.remove(&conn);
        self.update_known();
    }

    fn deadline(&self) -> u64 {
        let live = self.connections.values().filter(|it| it.identified && !it.dead);
        live.map(|it| it.last_ping + self.patience).min().unwrap_or(u64::MAX)
    }

    fn tick(&mut self, out: &mut Out) {
        for (&conn, it) in &mut self.connections {
            if it.identified && !it.dead && it.last_ping + self.patience <= out.now {
                it.last_ping = out.now;
                out.seen.push((conn, Seen::Overdue("a PING")));
            }
        }
    }

    fn lie(&self, random: &mut Random) -> Vec<u8> {
        match random.below(5) {
            0 => reply(b"NOPE"),
            1 => reply(b""),
            2 => reply(b"E_INVALID client must IDENTIFY"),
            3 => reply(b"[1]"),
            _ => [reply(b"OK"), reply(b"OK")].concat(),
        }
    }

    fn set_exiting(&mut self, _: bool) {}

    fn vandalize(&mut self, random: &mut Random, topics: &[&str]) -> String {
        let topic = random.pick(topics);
        let channels = format!("{topic}/");
        for it in self.connections.values_mut() {
            it.listed.retain(|name| name != topic && !name.starts_with(&channels));
        }
        self.known.0.borrow_mut().retain(|name| !name.starts_with(&channels));
        format!("topic {topic}")
    }

    fn listing(&self, conn: ConnId) -> Option<BTreeSet<String>> {
        self.connections.get(&conn).map(|it| it.listed.clone())
    }
}

/// The response to IDENTIFY; the ports and names of a real one differ.
const INFO: &[u8] = br#"{"broadcast_address":"lookup","hostname":"lookup","http_port":4161,"tcp_port":4160,"version":"1.3.0"}"#;

fn reply(text: &[u8]) -> Vec<u8> {
    [&u32::try_from(text.len()).expect("a short reply").to_be_bytes(), text].concat()
}
