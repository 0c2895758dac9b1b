//! Exchanges with a session driven by hand and with a real HTTP server, and normalized responses.

use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_core::session::Session;
use nanonsq_core::time::Instant;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Passes bytes to a session until it consumes no more; returns all that it transmits.
pub(crate) fn exchange(session: &mut dyn Session, now: Instant, mut bytes: &[u8]) -> Vec<u8> {
    let mut sent = Vec::new();
    loop {
        let consumed = session.take(now, bytes);
        bytes = &bytes[consumed..];
        let lent = session.transmit(now);
        let piece = [lent.head, lent.body].concat();
        session.sent(now, piece.len());
        if consumed == 0 && piece.is_empty() {
            assert!(bytes.is_empty(), "held for nothing");
            return sent;
        }
        sent.extend(piece);
    }
}

/// Sends one request on its own connection, which the server closes, and returns the response.
pub(crate) async fn ask(address: SocketAddr, request: &[u8]) -> Vec<u8> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request).await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    tokio::time::timeout(LIMIT, exchange).await.expect("a response").expect("a complete response")
}

/// A parsed response. The headers are sorted and without the date.
pub(crate) struct Answer {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn new(answer: &[u8]) -> Self {
        let answer = String::from_utf8_lossy(answer);
        let (head, rest) = answer.split_once("\r\n\r\n").expect("a head");
        let (line, head) = head.split_once("\r\n").unwrap_or((head, ""));
        let mut headers: Vec<_> = head
            .lines()
            .map(|header| header.split_once(": ").expect("a header line"))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            .filter(|(name, _)| name != "date")
            .collect();
        headers.sort();
        let is_chunked = headers.contains(&("transfer-encoding".into(), "chunked".into()));
        let body = if is_chunked { unchunk(rest) } else { rest.to_owned() };
        Self { line: line.to_owned(), headers, body }
    }

    /// Removes the headers for the length of the body, after checking them.
    pub(crate) fn forget_length(&mut self) {
        let len = self.body.len().to_string();
        self.headers.retain(|(name, value)| {
            assert!(name != "content-length" || *value == len, "{value} for {len}");
            name != "content-length" && name != "transfer-encoding"
        });
    }

    /// Returns the body if it is a JSON list or object, and checks that it is as compact as Go's.
    pub(crate) fn json(&self) -> Option<Value> {
        let json: Value = serde_json::from_str(&self.body).ok()?;
        if !json.is_object() && !json.is_array() {
            return None;
        }
        if !self.body.contains("\\u") && self.line.contains("200") {
            // Compact JSON has the same characters in any order of keys.
            let text = serde_json::to_string(&json).expect("JSON");
            assert_eq!(sorted(&self.body), sorted(&text), "{}", self.body);
        }
        Some(json)
    }

    pub(crate) fn show(&self, body: &str) -> String {
        format!("{}\n{:?}\n{body}", self.line, self.headers)
    }
}

fn sorted(text: &str) -> Vec<char> {
    let mut chars: Vec<_> = text.chars().collect();
    chars.sort_unstable();
    chars
}

fn unchunk(mut rest: &str) -> String {
    let mut body = String::new();
    loop {
        let (len, behind) = rest.split_once("\r\n").expect("a chunk's length");
        let len = usize::from_str_radix(len, 16).expect("a number");
        body.push_str(&behind[..len]);
        rest = behind[len..].strip_prefix("\r\n").expect("a chunk's end");
        if len == 0 {
            assert_eq!(rest, "");
            return body;
        }
    }
}

/// Sorts the lists in JSON, and replaces the value of each key with `scrub`'s result.
pub(crate) fn in_order(json: Value, scrub: &impl Fn(&str, Value) -> Value) -> Value {
    match json {
        Value::Object(object) => {
            let object = object.into_iter().map(|(key, value)| {
                let value = in_order(scrub(&key, value), scrub);
                (key, value)
            });
            Value::Object(object.collect::<Map<_, _>>())
        }
        Value::Array(list) => {
            let mut list: Vec<_> = list.into_iter().map(|item| in_order(item, scrub)).collect();
            list.sort_by_key(Value::to_string);
            Value::Array(list)
        }
        other => other,
    }
}

/// Returns true, as JSON, if the value is text with an address and a port.
pub(crate) fn is_address(value: &Value) -> Value {
    Value::from(matches!(value.as_str().map(str::parse::<SocketAddr>), Some(Ok(_))))
}
