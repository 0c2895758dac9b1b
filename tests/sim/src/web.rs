//! The HTTP side of a model nsqlookupd: `GET /lookup?topic=...` and `GET /channels?topic=...`, with
//! each way to mark the end of a response.

use std::collections::{BTreeMap, BTreeSet};

use nanonsq_models::nsqlookupd::Known;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Kind, Out, Server};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Web {
    /// The hosts that it lists, except those that an administrator tombstoned.
    nsqds: Vec<String>,
    /// Entries that cannot be reached or used, as JSON.
    others: String,
    /// The channels that the TCP side has registered.
    known: Known,
    hidden: BTreeSet<usize>,
    exiting: bool,
    connections: BTreeMap<ConnId, Vec<u8>>,
    requests: u32,
}

impl Web {
    /// Lists these hosts, and the channels in `known`.
    pub(crate) fn new(nsqds: Vec<String>, known: Known) -> Self {
        Self {
            nsqds,
            others: String::new(),
            known,
            hidden: BTreeSet::new(),
            exiting: false,
            connections: BTreeMap::new(),
            requests: 0,
        }
    }

    /// Also lists `dead` hosts that cannot be reached, and some entries that nobody can use.
    pub(crate) fn with_dead(mut self, first: usize, dead: usize, random: &mut Random) -> Self {
        for n in first..first + dead {
            // Dials are refused at once, or never answered.
            let name = if random.one_in(2) { "gone" } else { HOLE };
            self = self.with(&format!("{name}{n}"));
            if random.one_in(4) {
                self.others.push_str(random.pick(&[
                    "{\"broadcast_address\":\"[::1]\",\"tcp_port\":4150},",
                    "{\"broadcast_address\":\"nsqd0\",\"tcp_port\":0},",
                    "{\"broadcast_address\":\"nsqd0\",\"tcp_port\":\"4150\"},",
                    "{\"broadcast_address\":\"nsqd0\",\"tcp_port\":70000},",
                    "{\"tcp_port\":4150},",
                    "{},",
                ]));
            }
        }
        self
    }

    /// Lists one more host.
    pub(crate) fn with(mut self, name: &str) -> Self {
        self.others.push_str(&format!("{{\"broadcast_address\":\"{name}\",\"tcp_port\":4150}},"));
        self
    }

    fn channels(&self, topic: &str) -> String {
        let names = self.known.channels(&topic.replace("%23", "#"));
        let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
        format!("{{\"channels\":[{}]}}", names.join(","))
    }

    fn listing(&self) -> Option<String> {
        let listed = self.nsqds.iter().enumerate().filter(|(at, _)| !self.hidden.contains(at));
        let producers: Vec<_> = listed
            .map(|(_, nsqd)| {
                format!(
                    "{{\"remote_address\":\"10.0.0.1:2\",\"hostname\":\"h\",\
                     \"broadcast_address\":\"{nsqd}\",\"tcp_port\":4150,\"http_port\":4151,\
                     \"version\":\"1.3.0\"}}"
                )
            })
            .collect();
        let known = !producers.is_empty();
        let (others, producers) = (&self.others, producers.join(","));
        known.then(|| format!("{{\"channels\":[\"c\"],\"producers\":[{others}{producers}]}}"))
    }
}

/// The name of a host that never answers a dial begins with this.
pub(crate) const HOLE: &str = "hole";

/// The name of an nsqd that requires TLS.
pub(crate) const REFUSES: &str = "closed";

/// The beginning of a request for a topic's channels.
const CHANNELS: &str = "GET /channels?topic=";

/// A response with a Content-Length.
fn answer(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

impl Server for Web {
    fn open(&mut self, conn: ConnId, _: &mut Out) {
        self.connections.insert(conn, Vec::new());
    }

    fn receive(&mut self, conn: ConnId, bytes: &[u8], out: &mut Out) {
        let Some(inbox) = self.connections.get_mut(&conn) else { return };
        inbox.extend_from_slice(bytes);
        let begins = |asks: &[u8]| {
            let n = inbox.len().min(asks.len());
            inbox[..n] == asks[..n]
        };
        if !begins(b"GET /lookup?topic=") && !begins(CHANNELS.as_bytes()) {
            self.connections.remove(&conn);
            out.say(conn, Kind::Refusal, answer("400 Bad Request", "400 Bad Request"));
            out.close(conn);
            return;
        }
        if !inbox.ends_with(b"\r\n\r\n") {
            return;
        }
        let request = String::from_utf8(std::mem::take(inbox)).expect("text");
        let of = request.strip_prefix(CHANNELS).and_then(|rest| rest.split(' ').next());
        self.requests += 1;
        if self.exiting {
            let body = "{\"message\":\"INTERNAL_ERROR\"}";
            out.say(conn, Kind::Refusal, answer("500 Internal Server Error", body));
            return;
        }
        let Some(body) = of.map_or_else(|| self.listing(), |of| Some(self.channels(of))) else {
            let body = "{\"message\":\"TOPIC_NOT_FOUND\"}";
            out.say(conn, Kind::Refusal, answer("404 Not Found", body));
            return;
        };
        match self.requests % 3 {
            0 => out.say(conn, Kind::Ok, answer("200 OK", &body)),
            1 => {
                let text = format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
                out.say(conn, Kind::Ok, text.into_bytes());
                out.close(conn);
            }
            _ => {
                let (one, two) = body.split_at(body.len() / 3);
                let text = format!(
                    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                     {:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
                    one.len(),
                    two.len()
                );
                out.say(conn, Kind::Ok, text.into_bytes());
            }
        }
    }

    fn ended(&mut self, conn: ConnId, out: &mut Out) {
        if self.connections.remove(&conn).is_some() {
            out.close(conn);
        }
    }

    fn closed(&mut self, conn: ConnId) {
        self.connections.remove(&conn);
    }

    fn deadline(&self) -> u64 {
        u64::MAX
    }

    fn tick(&mut self, _: &mut Out) {}

    fn lie(&self, random: &mut Random) -> Vec<u8> {
        match random.below(7) {
            0 => answer("200 OK", "{\"producers\":[]}"),
            1 => answer("200 OK", "{\"channels\":[]}"),
            2 => answer("200 OK", "{\"producers\":[{\"broadcast_address\":"),
            3 => answer("302 Found", ""),
            4 => answer("404 Not Found", "nothing"),
            5 => answer("200 OK", "{\"channels\":[\"c\""),
            _ => answer(
                "200 OK",
                "{\"producers\":[{\"broadcast_address\":\"nobody\",\"tcp_port\":4150}]}",
            ),
        }
    }

    fn set_exiting(&mut self, exiting: bool) {
        self.exiting = exiting;
    }

    fn vandalize(&mut self, random: &mut Random, _: &[&str]) -> String {
        let at = random.below(self.nsqds.len() as u64) as usize;
        self.hidden.insert(at);
        format!("{} from a list", self.nsqds[at])
    }

    fn heal(&mut self) {
        self.exiting = false;
        self.hidden.clear();
    }

    fn listing(&self, _: ConnId) -> Option<BTreeSet<String>> {
        None
    }
}
