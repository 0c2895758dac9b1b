//! A model of nsqd 1.3.0 (`nsqd/protocol_v2.go`). It shares no code with nanonsq; the simulator's
//! `tests/differential.rs` compares it with the real one.

mod channel;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::random::Random;
use crate::server::{ConnId, Kind, Out, Seen, Server, body, is_name};
use channel::{Channels, Key};

/// Limits and requirements.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `--max-msg-size`
    pub max_msg_size: i32,
    /// `--max-body-size`
    pub max_body_size: i32,
    /// `--max-rdy-count`
    pub max_rdy_count: u64,
    /// The secret that AUTH requires; nobody may publish to the topic `forbidden`.
    pub secret: Option<Vec<u8>>,
    /// `--tls-required`; no client here supports TLS.
    pub tls: bool,
    /// The most messages in an MPUB; more are refused for want of room, as a node of ours does.
    pub most: usize,
    /// Requeues a connection's messages in flight when it ends, as a node of ours does; nsqd waits
    /// for their timeout.
    pub returns_at_once: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_msg_size: 1 << 20,
            max_body_size: 5 << 20,
            max_rdy_count: 2500,
            secret: None,
            tls: false,
            most: usize::MAX,
            returns_at_once: false,
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Nsqd {
    settings: Settings,
    exiting: bool,
    connections: BTreeMap<ConnId, Connection>,
    channels: Channels,
    /// The time of the latest call.
    now: u64,
    /// The latest result of [`Server::deadline`], and whether it is still valid.
    next: Cell<u64>,
    same: Cell<bool>,
}

#[derive(Debug)]
struct Connection {
    /// Bytes that are not parsed yet, and the length at which parsing can continue.
    inbox: Vec<u8>,
    need: usize,
    greeted: bool,
    authorized: bool,
    /// Refused fatally, or ended: nothing more is read.
    dead: bool,
    /// In microseconds; `None` is off.
    heartbeat: Option<u64>,
    next_heartbeat: u64,
    /// nsqd's read deadline: the next command must be complete by then.
    patience: u64,
    /// No command has come since the last heartbeat.
    unanswered: bool,
    phase: Phase,
    subscription: Option<Key>,
    rdy: u64,
    /// In microseconds.
    msg_timeout: u64,
    /// Messages whose timeout passed here: an answer to that delivery may still come, and be taken
    /// for one to a later delivery.
    taken_back: BTreeSet<u64>,
}

/// nsqd's `client.State`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Init,
    Subscribed,
    Closing,
}

const SECOND: u64 = 1_000_000;

/// The error of a refused command; all are fatal.
struct Refused(String);

/// The result of a command.
enum Done {
    /// The command is not complete.
    Wait,
    /// The length of its body behind the line.
    Used(usize),
}

impl Nsqd {
    /// Makes a server without connections.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            exiting: false,
            connections: BTreeMap::new(),
            channels: Channels::default(),
            now: 0,
            next: Cell::new(u64::MAX),
            same: Cell::new(false),
        }
    }

    /// Returns the number of messages in flight.
    pub fn in_flight(&self) -> usize {
        self.channels.in_flight()
    }

    /// Returns the most messages that were in flight at once.
    pub fn most_in_flight(&self) -> usize {
        self.channels.most
    }

    /// Runs one command if it is complete, and returns whether it was.
    fn step(&mut self, conn: ConnId, out: &mut Out) -> bool {
        let Some(it) = self.connections.get_mut(&conn) else { return false };
        if it.dead {
            return false;
        }
        if !it.greeted {
            let Some(magic) = it.inbox.first_chunk::<4>() else { return false };
            if magic != b"  V2" {
                refuse(it, conn, "E_BAD_PROTOCOL".into(), out);
                return false;
            }
            it.inbox.drain(..4);
            it.greeted = true;
            it.need = 0;
        }
        let Some(end) = it.inbox.iter().position(|&b| b == b'\n') else { return false };
        it.need = 0;
        let line = it.inbox[..end].strip_suffix(b"\r").unwrap_or(&it.inbox[..end]).to_vec();
        let inbox = std::mem::take(&mut it.inbox);
        let done = self.run(conn, &line, &inbox[end + 1..], out);
        let it = self.connections.get_mut(&conn).expect("the same connection");
        it.inbox = inbox;
        match done {
            Ok(Done::Wait) => {
                let rest = &it.inbox[end + 1..];
                it.need = match body(rest) {
                    Some((len, None)) if !line.starts_with(b"MPUB") => end + 5 + len as usize,
                    _ => it.inbox.len() + 1,
                };
                false
            }
            Ok(Done::Used(used)) => {
                it.inbox.drain(..end + 1 + used);
                it.patience = out.now + 2 * it.heartbeat.unwrap_or(u64::MAX >> 2);
                it.unanswered = false;
                true
            }
            Err(Refused(words)) => {
                out.seen.push((conn, Seen::Refused { words: words.clone() }));
                refuse(it, conn, words, out);
                false
            }
        }
    }

    fn run(
        &mut self,
        conn: ConnId,
        line: &[u8],
        rest: &[u8],
        out: &mut Out,
    ) -> Result<Done, Refused> {
        let words: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
        let verb = words[0];
        if self.settings.tls && verb != b"IDENTIFY" {
            let verb = String::from_utf8_lossy(verb);
            let words = format!("E_INVALID cannot {verb} in current state (TLS required)");
            return Err(Refused(words));
        }
        match verb {
            b"NOP" => {
                out.seen.push((conn, Seen::Alive));
                Ok(Done::Used(0))
            }
            b"IDENTIFY" => self.identify(conn, rest, out),
            b"AUTH" => self.auth(conn, words.len(), rest, out),
            b"PUB" | b"MPUB" | b"DPUB" => self.publish(conn, &words, rest, out),
            b"SUB" => self.subscribe(conn, &words, out),
            b"RDY" => self.ready(conn, &words, out),
            b"FIN" => self.answer(conn, "FIN", &words, out),
            b"REQ" => self.answer(conn, "REQ", &words, out),
            b"TOUCH" => self.answer(conn, "TOUCH", &words, out),
            b"CLS" => self.leave(conn, out),
            _ => {
                Err(Refused(format!("E_INVALID invalid command {}", String::from_utf8_lossy(verb))))
            }
        }
    }

    fn identify(&mut self, conn: ConnId, rest: &[u8], out: &mut Out) -> Result<Done, Refused> {
        if self.connections[&conn].phase != Phase::Init {
            return Err(Refused("E_INVALID cannot IDENTIFY in current state".into()));
        }
        let max = self.settings.max_body_size;
        let Some((len, text)) = body(rest) else { return Ok(Done::Wait) };
        if len <= 0 {
            return Err(Refused(format!("E_BAD_BODY IDENTIFY invalid body size {len}")));
        }
        if len > max {
            return Err(Refused(format!("E_BAD_BODY IDENTIFY body too big {len} > {max}")));
        }
        let Some(text) = text else { return Ok(Done::Wait) };
        let bad = |what: String| Refused(format!("E_BAD_BODY IDENTIFY {what}"));
        let request: Value =
            serde_json::from_slice(text).map_err(|_| bad("failed to decode JSON body".into()))?;
        let heartbeat = match request["heartbeat_interval"].as_i64().unwrap_or(0) {
            0 => Some(30_000),
            -1 => None,
            ms @ 1000..=60_000 => Some(ms),
            ms => return Err(bad(format!("heartbeat interval ({ms}) is invalid"))),
        };
        let msg_timeout = match request["msg_timeout"].as_u64().unwrap_or(0) {
            0 => 60_000,
            ms @ 1000..=900_000 => ms,
            ms => return Err(bad(format!("msg timeout ({ms}) is invalid"))),
        };
        let it = self.connections.get_mut(&conn).expect("an open connection");
        it.msg_timeout = msg_timeout * 1000;
        it.heartbeat = heartbeat.map(|ms| ms.unsigned_abs() * 1000);
        it.next_heartbeat = it.heartbeat.map_or(u64::MAX, |every| out.now + every);
        let reply = if request["feature_negotiation"] == json!(true) {
            let required = self.settings.secret.is_some();
            let rdy = self.settings.max_rdy_count;
            format!(
                "{{\"max_rdy_count\":{rdy},\"version\":\"1.3.0\",\"max_msg_timeout\":900000,\
                 \"msg_timeout\":{msg_timeout},\"tls_v1\":false,\"deflate\":false,\"deflate_level\":6,\
                 \"max_deflate_level\":6,\"snappy\":false,\"sample_rate\":0,\
                 \"auth_required\":{required},\"output_buffer_size\":16384,\
                 \"output_buffer_timeout\":250}}"
            )
        } else {
            "OK".to_owned()
        };
        out.say(conn, Kind::Identified, frame(0, reply.as_bytes()));
        Ok(Done::Used(4 + text.len()))
    }

    fn auth(
        &mut self,
        conn: ConnId,
        words: usize,
        rest: &[u8],
        out: &mut Out,
    ) -> Result<Done, Refused> {
        if self.connections[&conn].phase != Phase::Init {
            return Err(Refused("E_INVALID cannot AUTH in current state".into()));
        }
        if words != 1 {
            return Err(Refused("E_INVALID AUTH invalid number of parameters".into()));
        }
        let max = self.settings.max_body_size;
        let Some((len, secret)) = body(rest) else { return Ok(Done::Wait) };
        if len > max {
            return Err(Refused(format!("E_BAD_BODY AUTH body too big {len} > {max}")));
        }
        if len <= 0 {
            return Err(Refused(format!("E_BAD_BODY AUTH invalid body size {len}")));
        }
        let Some(secret) = secret else { return Ok(Done::Wait) };
        let it = self.connections.get_mut(&conn).expect("an open connection");
        if it.authorized {
            return Err(Refused("E_INVALID AUTH already set".into()));
        }
        match &self.settings.secret {
            None => return Err(Refused("E_AUTH_DISABLED AUTH disabled".into())),
            // nsqd asks another server, which may not know the secret, or not respond.
            Some(known) if known != secret || self.exiting => {
                return Err(Refused("E_AUTH_FAILED AUTH failed".into()));
            }
            Some(_) => it.authorized = true,
        }
        let reply = br#"{"identity":"","identity_url":"","permission_count":1}"#;
        out.say(conn, Kind::Authorized, frame(0, reply));
        Ok(Done::Used(4 + secret.len()))
    }

    /// PUB, MPUB and DPUB.
    fn publish(
        &mut self,
        conn: ConnId,
        words: &[&[u8]],
        rest: &[u8],
        out: &mut Out,
    ) -> Result<Done, Refused> {
        let verb = std::str::from_utf8(words[0]).expect("a verb of ours");
        let least = if verb == "DPUB" { 3 } else { 2 };
        if words.len() < least {
            let text = format!("E_INVALID {verb} insufficient number of parameters");
            return Err(Refused(text));
        }
        let topic = String::from_utf8_lossy(words[1]).into_owned();
        if !is_name(words[1]) {
            let again = if verb == "MPUB" { "E_BAD_TOPIC " } else { "" };
            let text = format!("E_BAD_TOPIC {again}{verb} topic name {topic:?} is not valid");
            return Err(Refused(text));
        }
        let mut due = 0;
        if verb == "DPUB" {
            let digits = String::from_utf8_lossy(words[2]).into_owned();
            let Ok(ms) = digits.parse::<u64>() else {
                return Err(Refused(format!("E_INVALID DPUB could not parse timeout {digits}")));
            };
            if ms > 3_600_000 {
                return Err(Refused(format!("E_INVALID DPUB timeout {ms} out of range 0-3600000")));
            }
            due = out.now + ms * 1000;
        }
        if verb == "MPUB" {
            self.may(conn, verb, &topic, "")?;
        }
        let (used, bodies) = match verb {
            "MPUB" => match self.batch(rest)? {
                Some(batch) => batch,
                None => return Ok(Done::Wait),
            },
            _ => {
                let max = self.settings.max_msg_size;
                let Some((len, text)) = body(rest) else { return Ok(Done::Wait) };
                let bad = |what: String| Refused(format!("E_BAD_MESSAGE {verb} {what}"));
                if len <= 0 {
                    return Err(bad(format!("invalid message body size {len}")));
                }
                if len > max {
                    return Err(bad(format!("message too big {len} > {max}")));
                }
                let Some(text) = text else { return Ok(Done::Wait) };
                (4 + text.len(), vec![text.to_vec()])
            }
        };
        if verb != "MPUB" {
            self.may(conn, verb, &topic, "")?;
        }
        let batch = verb == "MPUB";
        if bodies.len() > self.settings.most {
            return Err(Refused("E_MPUB_FAILED MPUB failed no room".into()));
        }
        if self.exiting {
            // A part of a batch may be stored.
            let part = bodies[..bodies.len() / 2].to_vec();
            if !part.is_empty() {
                out.seen.push((conn, Seen::Stored { topic, bodies: part, batch }));
            }
            return Err(Refused(format!("E_{verb}_FAILED {verb} failed exiting")));
        }
        for body in &bodies {
            self.channels.store(&topic, body, due);
        }
        out.seen.push((conn, Seen::Stored { topic, bodies, batch }));
        out.say(conn, Kind::Ok, frame(0, b"OK"));
        Ok(Done::Used(used))
    }

    /// Parses the messages of an MPUB. As in nsqd, its length is checked but not used.
    #[expect(clippy::type_complexity, reason = "a length and what it is of")]
    fn batch(&self, rest: &[u8]) -> Result<Option<(usize, Vec<Vec<u8>>)>, Refused> {
        let Settings { max_msg_size, max_body_size, .. } = self.settings;
        let Some((len, _)) = body(rest) else { return Ok(None) };
        if len <= 0 {
            return Err(Refused(format!("E_BAD_BODY MPUB invalid body size {len}")));
        }
        if len > max_body_size {
            let text = format!("E_BAD_BODY MPUB body too big {len} > {max_body_size}");
            return Err(Refused(text));
        }
        let Some((count, _)) = body(&rest[4..]) else { return Ok(None) };
        if count <= 0 || count > (max_body_size - 4) / 5 {
            return Err(Refused(format!("E_BAD_BODY MPUB invalid message count {count}")));
        }
        let mut at = 8;
        let mut bodies = Vec::new();
        for index in 0..count {
            let Some((len, text)) = body(&rest[at..]) else { return Ok(None) };
            let bad = |what: String| Refused(format!("E_BAD_MESSAGE MPUB {what}"));
            if len <= 0 {
                return Err(bad(format!("invalid message({index}) body size {len}")));
            }
            if len > max_msg_size {
                return Err(bad(format!("message too big {len} > {max_msg_size}")));
            }
            let Some(text) = text else { return Ok(None) };
            at += 4 + text.len();
            bodies.push(text.to_vec());
        }
        Ok(Some((at, bodies)))
    }

    fn may(&self, conn: ConnId, verb: &str, topic: &str, channel: &str) -> Result<(), Refused> {
        if self.settings.secret.is_none() {
            return Ok(());
        }
        if !self.connections[&conn].authorized {
            return Err(Refused(format!("E_AUTH_FIRST AUTH required before {verb}")));
        }
        if topic == "forbidden" {
            let text = format!("E_UNAUTHORIZED AUTH failed for {verb} on {topic:?} {channel:?}");
            return Err(Refused(text));
        }
        Ok(())
    }
}

impl Server for Nsqd {
    fn open(&mut self, conn: ConnId, out: &mut Out) {
        let it = Connection {
            inbox: Vec::new(),
            need: 4,
            greeted: false,
            authorized: false,
            dead: false,
            heartbeat: Some(30 * SECOND),
            next_heartbeat: out.now + 30 * SECOND,
            patience: out.now + 60 * SECOND,
            unanswered: false,
            phase: Phase::Init,
            subscription: None,
            rdy: 0,
            msg_timeout: 60 * SECOND,
            taken_back: BTreeSet::new(),
        };
        self.now = out.now;
        self.connections.insert(conn, it);
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], out: &mut Out) {
        self.now = out.now;
        if let Some(it) = self.connections.get_mut(&conn) {
            it.inbox.extend_from_slice(bytes);
            // Most single bytes complete nothing.
            if it.inbox.len() < it.need && self.next.get() > out.now {
                self.same.set(true);
                return;
            }
        }
        while self.step(conn, out) {}
        self.pump(out);
    }

    fn ended(&mut self, conn: ConnId, out: &mut Out) {
        let Some(it) = self.connections.get_mut(&conn) else { return };
        if !it.dead {
            if let Some(words) = cut_off(&it.inbox) {
                refuse(it, conn, words, out);
            } else {
                it.dead = true;
                out.close(conn);
            }
        }
    }

    fn closed(&mut self, conn: ConnId) {
        self.connections.remove(&conn);
        if self.settings.returns_at_once {
            self.channels.give_back(conn);
        }
    }

    fn deadline(&self) -> u64 {
        if self.same.take() {
            return self.next.get();
        }
        let live = self.connections.values().filter(|it| !it.dead);
        let own = live.map(|it| it.next_heartbeat.min(it.patience)).min();
        self.next.set(own.unwrap_or(u64::MAX).min(self.channels.deadline(self.now)));
        self.next.get()
    }

    fn tick(&mut self, out: &mut Out) {
        self.now = out.now;
        for (&conn, it) in self.connections.iter_mut().filter(|(_, it)| !it.dead) {
            if it.next_heartbeat <= out.now {
                if it.unanswered {
                    out.seen.push((conn, Seen::Overdue("an answer to a heartbeat")));
                }
                it.unanswered = true;
                it.next_heartbeat = out.now + it.heartbeat.unwrap_or(u64::MAX >> 2);
                out.say(conn, Kind::Heartbeat, frame(0, b"_heartbeat_"));
            }
            if it.patience <= out.now {
                it.dead = true;
                out.close(conn);
            }
        }
        self.pump(out);
    }

    fn feed(&mut self, topic: &str, body: &[u8], out: &mut Out) {
        self.now = out.now;
        self.channels.store(topic, body, 0);
        self.pump(out);
    }

    fn unfinished(&self, topic: &str) -> Vec<Vec<u8>> {
        self.channels.unfinished(topic)
    }

    fn lie(&self, random: &mut Random) -> Vec<u8> {
        // No OK: it could not be recognized as wrong.
        match random.below(6) {
            0 => frame(0, b"CLOSE_WAIT"),
            1 => frame(0, br#"{"a":["#),
            2 => frame(0, b""),
            3 => frame(2, b"01234567890123456789012345hello"),
            4 => frame(3, b"OK"),
            _ => frame(0, b"_heartbeat_"),
        }
    }

    fn set_exiting(&mut self, exiting: bool) {
        self.exiting = exiting;
    }

    fn vandalize(&mut self, random: &mut Random, _: &[&str]) -> String {
        // Deleting a topic does not affect producers.
        let Some((what, gone)) = self.channels.empty(random) else { return "a topic".into() };
        for (conn, number) in gone {
            if let Some(it) = self.connections.get_mut(&conn) {
                it.taken_back.insert(number);
            }
        }
        what
    }

    fn listing(&self, _: ConnId) -> Option<BTreeSet<String>> {
        None
    }
}

/// Returns nsqd's response to a command that was cut off; a partial line has none.
fn cut_off(inbox: &[u8]) -> Option<String> {
    let end = inbox.iter().position(|&b| b == b'\n')?;
    let verb = inbox[..end].split(|&b| b == b' ').next().unwrap_or_default();
    let verb = String::from_utf8_lossy(verb).into_owned();
    let rest = &inbox[end + 1..];
    Some(match verb.as_str() {
        "PUB" | "DPUB" if rest.len() < 4 => {
            format!("E_BAD_MESSAGE {verb} failed to read message body size")
        }
        "PUB" | "DPUB" => format!("E_BAD_MESSAGE {verb} failed to read message body"),
        "MPUB" if rest.len() < 4 => "E_BAD_BODY MPUB failed to read body size".into(),
        "MPUB" if rest.len() < 8 => "E_BAD_BODY MPUB failed to read message count".into(),
        "MPUB" => {
            let (mut at, mut index) = (8, 0);
            loop {
                match body(&rest[at..]) {
                    None => {
                        break format!(
                            "E_BAD_MESSAGE MPUB failed to read message({index}) body size"
                        );
                    }
                    Some((_, None)) => {
                        break "E_BAD_MESSAGE MPUB failed to read message body".into();
                    }
                    Some((_, Some(text))) => at += 4 + text.len(),
                }
                index += 1;
            }
        }
        _ if rest.len() < 4 => format!("E_BAD_BODY {verb} failed to read body size"),
        _ => format!("E_BAD_BODY {verb} failed to read body"),
    })
}

fn refuse(it: &mut Connection, conn: ConnId, words: String, out: &mut Out) {
    it.dead = true;
    out.say(conn, Kind::Refusal, frame(1, words.as_bytes()));
    out.close(conn);
}

fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len() + 4).expect("a short frame").to_be_bytes();
    [&size[..], &[0, 0, 0, kind], data].concat()
}
