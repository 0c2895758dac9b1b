//! The reply to IDENTIFY, for both sides.

use super::command::{BROADCAST_ADDRESS, HOSTNAME, HTTP_PORT, TCP_PORT, VERSION};
use crate::wire::json::Object;
use crate::wire::{Write, len_of};

/// The reply to IDENTIFY, in which nsqlookupd describes itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct IdentifyReply<'a> {
    /// The host of nsqlookupd for HTTP: a name or an address without a port.
    pub broadcast_address: &'a str,
    /// The name of its host.
    pub hostname: &'a str,
    /// The port for HTTP.
    pub http_port: u16,
    /// The port for V1.
    pub tcp_port: u16,
    /// Its version, as in `1.3.0`.
    pub version: &'a str,
}

impl IdentifyReply<'_> {
    /// Writes the JSON with the keys in nsqlookupd's order. The caller first writes
    /// [`encoded_len`](Self::encoded_len) as `u32be`, as [`emit_reply`](super::emit_reply) does for
    /// texts.
    pub fn emit<W: Write>(&self, w: &mut W) -> Result<(), W::Error> {
        let mut object = Object::new(w);
        object.string(BROADCAST_ADDRESS, self.broadcast_address)?;
        object.string(HOSTNAME, self.hostname)?;
        object.number(HTTP_PORT, self.http_port.into())?;
        object.number(TCP_PORT, self.tcp_port.into())?;
        object.string(VERSION, self.version)?;
        object.end()
    }

    /// Returns the length of the JSON in bytes.
    pub fn encoded_len(&self) -> usize {
        len_of(|w| self.emit(w))
    }
}

/// Finds the HTTP port in the reply to IDENTIFY, in pieces and without a JSON parser: nsqd uses
/// nothing else of the reply. Text that is not JSON has no port.
///
/// RAM: 4 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HttpPortFinder {
    /// How many bytes of [`NEEDLE`] were matched, or a place after it.
    at: u8,
    port: u16,
}

/// The key. A string value cannot be taken for it: the quotes inside a string are escaped.
const NEEDLE: &[u8] = b"\"http_port\"";

// Places after the key: before the colon, before the first digit, in the digits, done.
const COLON: u8 = NEEDLE.len() as u8;
const FIRST: u8 = COLON + 1;
const DIGITS: u8 = COLON + 2;
const DONE: u8 = COLON + 3;

impl HttpPortFinder {
    /// Creates a finder for a new reply.
    pub(crate) const fn new() -> Self {
        Self { at: 0, port: 0 }
    }

    /// Reads the next piece of the reply.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.at = match self.at {
                DONE => return,
                COLON.. if self.at < DIGITS && byte.is_ascii_whitespace() => self.at,
                COLON if byte == b':' => FIRST,
                FIRST | DIGITS if byte.is_ascii_digit() => {
                    let digit = u16::from(byte & 15);
                    let port = self.port.checked_mul(10).and_then(|port| port.checked_add(digit));
                    self.port = port.unwrap_or(0);
                    if port.is_some() { DIGITS } else { DONE }
                }
                // A fraction is no port, nor are digits inside a string.
                DIGITS if !matches!(byte, b',' | b'}') && !byte.is_ascii_whitespace() => {
                    self.port = 0;
                    DONE
                }
                DIGITS | FIRST => DONE,
                at if NEEDLE.get(usize::from(at)) == Some(&byte) => at.wrapping_add(1),
                // The needle's first byte, a quote, occurs again only at its end.
                _ => u8::from(byte == b'"'),
            };
        }
    }

    /// Returns the port once it was read; 0 if the value is no port.
    pub(crate) fn port(self) -> Option<u16> {
        (self.at == DONE).then_some(self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::HttpPortFinder;

    #[track_caller]
    fn finds(text: &str, port: u16) {
        for at in 0..=text.len() {
            let (one, two) = text.as_bytes().split_at(at);
            let mut finder = HttpPortFinder::new();
            finder.feed(one);
            finder.feed(two);
            assert_eq!(finder.port().unwrap_or(0), port, "{text} split at {at}");
        }
    }

    #[test]
    fn the_http_port_is_found_however_the_answer_is_split() {
        finds(r#"{"broadcast_address":"h","http_port":4161,"tcp_port":4160}"#, 4161);
        finds("{ \"http_port\" :\n 65535 }", 65535);
        finds("{\"http_port\":41 61}", 41);
        finds(r#"{"http_port":1}"#, 1);
        finds(r#"{"a":"","http_port":7}"#, 7);
        finds(r#"{"hostname":"http_port","tcp_port":1,"http_port":2}"#, 2);
        finds(r#"{"hostname":"\"http_port\":9","http_port":2}"#, 2);
        finds(r#"{"http_port":4161,"http_port":4162}"#, 4161);
    }

    #[test]
    fn values_that_are_no_port_are_none() {
        finds(r#"{"tcp_port":4160}"#, 0);
        finds(r#"{"http_port":"4161"}"#, 0);
        finds(r#"{"http_port":null}"#, 0);
        finds(r#"{"http_port":-1}"#, 0);
        finds(r#"{"http_port":0}"#, 0);
        finds(r#"{"http_port":65536}"#, 0);
        finds(r#"{"http_port":4161.5}"#, 0);
        finds(r#"{"http_port":99999999999999999999}"#, 0);
        finds("OK", 0);
        finds("", 0);
        finds(r#"{"http_port":4161"#, 0);
    }
}
