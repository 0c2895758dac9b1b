//! JSON: tokens, the fields of an object, and all scanners of messages in JSON.

use std::fmt::Write as _;

use nanonsq_core::wire::json::{Fields, JsonError, Scanner, Token};
use nanonsq_core::wire::nsqd::{Granted, GrantedScanner, Identification, IdentifyScanner, Limits};
use nanonsq_core::wire::nsqlookupd::{NodeInfoScanner, OwnedNodeInfo};

use crate::decode::{Transcript, agree, drain, split_seeds};
use crate::feature;
use crate::reference;
use crate::reference::json::{Value, before_numbers, cut};

/// The number of bytes of a text that are kept.
const KEEP: usize = 20;
/// The keys that [`Fields`] looks for.
const FIELDS: [&str; 2] = ["a", "tcp_port"];

/// Passes one text to all readers of JSON.
pub(crate) fn run(data: &[u8]) {
    let decode = |pieces: &mut dyn Iterator<Item = &[u8]>| {
        let mut transcript = Transcript::default();
        let mut scanner = Scanner::<KEEP>::new();
        let mut fields = Fields::<12>::new();
        let mut field_error = None;
        let mut found = String::new();
        let mut granted = GrantedScanner::new();
        let mut identify = IdentifyScanner::<24, 20>::new();
        let mut node = NodeInfoScanner::new();
        for piece in pieces {
            // Each of them decides where the text ends.
            granted.feed(piece);
            let _ = identify.feed(piece);
            let _ = node.feed(piece);
            let mut rest = piece;
            while field_error.is_none() {
                match fields.next(&FIELDS, &mut rest) {
                    Ok(Some((key, value))) => {
                        feature(("field", key, std::mem::discriminant(&value)));
                        let _ = write!(found, " {key} {}", describe(value));
                    }
                    Ok(None) => break,
                    Err(error) => field_error = Some(error),
                }
            }
            if !transcript.over {
                drain(piece, &mut transcript, |input, transcript| match scanner.next(input) {
                    Ok(Some(token)) => {
                        let kind = std::mem::discriminant(&token);
                        feature((transcript.kinds.min(6), kind));
                        transcript.item("token", format!(" {}", describe(token)));
                        true
                    }
                    Ok(None) => false,
                    Err(error) => {
                        json_fault(transcript, error);
                        false
                    }
                });
                assert!(scanner.depth() <= 32);
            }
        }
        if !transcript.over {
            match scanner.end() {
                // A number is complete at the end, as before white space.
                Ok(Some(token)) => transcript.item("token", format!(" {}", describe(token))),
                Ok(None) => {}
                Err(error) => json_fault(&mut transcript, error),
            }
        }
        let field_error = field_error.or(fields.finish().err());
        if field_error.is_none() {
            let _ = write!(transcript.items, " fields{found}");
        }
        let _ = write!(
            transcript.rest,
            " {field_error:?} {:?} {:?} {:?}",
            granted.finish(),
            identify.finish(&Limits::NSQD).map_err(|refusal| refusal.to_string()),
            node.finish().map_err(|refusal| refusal.to_string()),
        );
        transcript.scanned = Some(Scanned {
            granted: granted.finish().ok(),
            identify: identify.finish(&Limits::NSQD).ok().cloned(),
            node: node.finish().ok().cloned(),
        });
        let required = granted.finish().map(|granted| granted.auth_required);
        feature(("auth required", required.ok()));
        transcript
    };
    agree(data, decode, expected);
    if let Some((_, text)) = data.split_first()
        && std::str::from_utf8(text).is_ok()
    {
        let scanned = decode(&mut std::iter::once(text)).scanned.expect("the scanners ran");
        scanned.check(text);
    }
}

fn json_fault(transcript: &mut Transcript, error: JsonError) {
    let said = before_numbers(&transcript.items).len();
    transcript.items.truncate(said);
    transcript.fault("", error);
}

/// Formats a token as the reference does.
fn describe(token: Token<'_>) -> String {
    match token {
        Token::Key(text) | Token::String(text) => {
            assert!(text.as_bytes().len() <= KEEP);
            format!("{:?} {}", text.as_str(), text.truncated())
        }
        other => format!("{other:?}"),
    }
}

fn expected(text: &[u8]) -> String {
    let (value, mut said) = reference::json::read(text, KEEP);
    let Some(value) = value else { return said + " !" };
    let all = match &value {
        Value::Object(all) => &**all,
        Value::Null => &[],
        _ => return said,
    };
    said += " fields";
    for (key, value) in all {
        let Some(at) = FIELDS.iter().position(|field| is_named(key, field)) else { continue };
        let text = match value {
            Value::Null => "Null".into(),
            Value::Bool(value) => format!("Bool({value})"),
            Value::Number(integer, exact) => {
                format!("Number(Number {{ integer: {integer}, exact: {exact} }})")
            }
            Value::Text(bytes) => {
                let (text, truncated) = cut(bytes, 12);
                format!("{text:?} {truncated}")
            }
            Value::List(_) => "ArrayStart".into(),
            Value::Object(_) => "ObjectStart".into(),
        };
        let _ = write!(said, " {at} {text}");
    }
    said
}

/// The results of the scanners that accepted a text.
#[derive(Debug, PartialEq)]
pub(crate) struct Scanned {
    granted: Option<Granted>,
    identify: Option<Identification<20>>,
    node: Option<OwnedNodeInfo>,
}

/// Reads a field's value; `None` if its type is wrong.
type Read<'f> = dyn FnMut(&str, &Value) -> Option<()> + 'f;

/// Returns whether the key has this name, in any case.
fn is_named(key: &[u8], name: &str) -> bool {
    key.eq_ignore_ascii_case(name.as_bytes())
}

/// As [`all_given`], with keys in lower case, as Go reads them.
fn all(document: Option<&Value>, read: &mut Read<'_>) -> Option<()> {
    all_given(document, &mut |key, value| read(&key.to_ascii_lowercase(), value))
}

/// Reads all fields of an object that are not null; returns `None` if a type is wrong. `null` is an
/// object without fields.
fn all_given(document: Option<&Value>, read: &mut Read<'_>) -> Option<()> {
    let fields = match document {
        Some(Value::Object(fields)) => &**fields,
        Some(Value::Null) => &[],
        _ => return None,
    };
    let given = fields.iter().filter(|(_, value)| *value != Value::Null);
    for (key, value) in given {
        if let Ok(key) = std::str::from_utf8(key) {
            read(key, value)?;
        }
    }
    Some(())
}

fn flag(value: &Value) -> Option<bool> {
    if let Value::Bool(value) = value { Some(*value) } else { None }
}

fn integer(value: &Value) -> Option<i32> {
    if let Value::Number(value, _) = value { Some(*value) } else { None }
}

fn exact(value: &Value) -> Option<i32> {
    if let Value::Number(value, true) = value { Some(*value) } else { None }
}

/// Returns a text cut to `keep` bytes, with whole characters only.
fn text(value: &Value, keep: usize) -> Option<String> {
    let Value::Text(bytes) = value else { return None };
    Some(cut(bytes, keep).0.expect("UTF-8").to_owned())
}

/// Converts a port; 0 if it is out of range.
fn port(number: i32) -> u16 {
    u16::try_from(number).unwrap_or(0)
}

impl Scanned {
    fn check(&self, document: &[u8]) {
        let (value, _) = reference::json::read(document, 0);
        let value = value.as_ref();
        self.check_answers(value, document);

        self.check_node(value);
        self.check_identify(value);
    }

    fn check_node(&self, value: Option<&Value>) {
        let mut texts = [(); 5].map(|()| String::new());
        let keys = ["broadcast_address", "hostname", "version", "topology_region", "topology_zone"];
        let mut ports = [0; 2];
        let taken = all(value, &mut |key, value| {
            match (keys.iter().position(|name| *name == key), key) {
                (Some(at), _) => texts[at] = text(value, usize::MAX)?,
                (_, "tcp_port") => ports[0] = port(exact(value)?),
                (_, "http_port") => ports[1] = port(exact(value)?),
                (_, "remote_address") => drop(text(value, 0)?),
                _ => {}
            }
            Some(())
        });
        let [address, _, version, ..] = &texts;
        let is_node = !address.is_empty()
            && address.len() <= 96
            && !version.is_empty()
            && ports.iter().all(|&port| port > 0);
        assert_eq!(self.node.is_some(), taken.is_some() && is_node, "{value:?}");
        let Some(node) = &self.node else { return };
        assert_eq!([node.tcp_port, node.http_port], ports);
        let found = [
            node.broadcast_address.as_view(),
            node.hostname.as_view(),
            node.version.as_view(),
            node.topology_region.as_view(),
            node.topology_zone.as_view(),
        ];
        for (found, said) in found.iter().zip(&texts) {
            let (kept, _) = cut(said.as_bytes(), found.capacity().min(96));
            assert_eq!(Some(found.as_str()), kept);
        }
    }

    fn check_identify(&self, value: Option<&Value>) {
        let keys = ["client_id", "hostname", "user_agent", "topology_region", "topology_zone"];
        let flags = ["feature_negotiation", "tls_v1", "snappy", "deflate"];
        let numbers = [
            "heartbeat_interval",
            "output_buffer_size",
            "output_buffer_timeout",
            "msg_timeout",
            "sample_rate",
            "deflate_level",
        ];
        let mut said = [(); 5].map(|()| String::new());
        let (mut set, mut amounts) = ([false; 4], [0; 6]);
        let taken = all(value, &mut |key, value| {
            let of = |keys: &[&str]| keys.iter().position(|name| *name == key);
            if let Some(at) = of(&keys) {
                said[at] = text(value, 20)?;
            } else if let Some(at) = of(&flags) {
                set[at] = flag(value)?;
            } else if let Some(at) = of(&numbers) {
                amounts[at] = exact(value)?;
            }
            Some(())
        });
        let [heartbeat, size, timeout, msg_timeout, sample, _] = amounts;
        let limits = Limits::NSQD;
        let within = |value: i32, least: u32, most: u32| {
            [-1, 0].contains(&value) || (least as i32..=most as i32).contains(&value)
        };
        let fine = within(heartbeat, 1000, limits.max_heartbeat_interval_ms)
            && within(size, 64, limits.max_output_buffer_size)
            && within(
                timeout,
                limits.min_output_buffer_timeout_ms,
                limits.max_output_buffer_timeout_ms,
            )
            && (0..=99).contains(&sample)
            && (msg_timeout == 0 || (1..=limits.max_msg_timeout_ms as i32).contains(&msg_timeout));
        // The two compressions exclude each other.
        let refused = !fine || (set[0] && set[2] && set[3]);
        assert_eq!(self.identify.is_some(), taken.is_some() && !refused, "{value:?}");
        let Some(identify) = &self.identify else { return };
        let found = [
            &identify.client_id,
            &identify.hostname,
            &identify.user_agent,
            &identify.topology_region,
            &identify.topology_zone,
        ];
        assert!(found.iter().zip(&said).all(|(found, said)| found.as_str() == said));
        let settings = &identify.settings;
        let found =
            [settings.feature_negotiation, settings.tls_v1, settings.snappy, settings.deflate];
        assert_eq!(found, set);
        let found = [
            settings.heartbeat_interval,
            settings.output_buffer_size,
            settings.output_buffer_timeout,
            settings.msg_timeout,
            settings.sample_rate,
            settings.deflate_level,
        ];
        assert_eq!(found, amounts);
    }

    /// Checks nsqd's response to IDENTIFY; its reader ignores escapes and expects the keys as nsqd
    /// writes them.
    fn check_answers(&self, value: Option<&Value>, document: &[u8]) {
        let mut numbers = [2500, 60_000, 900_000];
        let mut auth_required = false;
        let taken = all_given(value, &mut |key, value| {
            let amount = || integer(value).map(|number| number.max(0) as u32);
            match key {
                "max_rdy_count" => numbers[0] = amount()?,
                "msg_timeout" => numbers[1] = amount()?,
                "max_msg_timeout" => numbers[2] = amount()?,
                "auth_required" => auth_required = flag(value)?,
                "sample_rate" => drop(amount()?),
                "tls_v1" | "snappy" | "deflate" => drop(flag(value)?),
                _ => {}
            }
            Some(())
        });
        if document.contains(&b'\\') || document.starts_with(b"O") {
            return;
        }
        let (Some(granted), Some(())) = (&self.granted, taken) else { return };
        // The reference's numbers are limited to an i32.
        let found = [granted.max_rdy_count, granted.msg_timeout_ms, granted.max_msg_timeout_ms];
        assert_eq!(found.map(|number| number.min(i32::MAX as u32)), numbers);
        assert_eq!(granted.auth_required, auth_required);
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    split_seeds(&[
        br#"{"broadcast_address":"l","hostname":"l","http_port":1,"tcp_port":2,"version":"1"}"#,
        br#"{"max_rdy_count":2500,"version":"1.3.0","max_msg_timeout":900000,"msg_timeout":60000,"tls_v1":false,"auth_required":true,"sample_rate":0}"#,
        br#"{"identity":"\u00e9\ud83d\ude00","identity_url":"","permission_count":3}"#,
        br#"{"client_id":null,"heartbeat_interval":-1,"hostname":"a\nb","tls_v1":true,"feature_negotiation":true}"#,
        br#"{"Broadcast_Address":"l","TCP_PORT":1,"Http_Port":2,"VERSION":"1","remote_address":1}"#,
        br#"{"CLIENT_ID":"c","\u0048eartbeat_Interval":1e3,"TLS_V1":true,"Msg_Timeout":1000}"#,
        b"null ",
        br#"[1,-2.5e7,[[[[[["\"\\\/\b"]]]]]],null,true,false,{"":{}}]"#,
        b" [ ",
        br#"["\u007f\u0080","\u07ff\u0800","\uffff\ud800\udc00"]"#,
        br#"{"a":12345678901,"tcp_port":"x","a":{"tcp_port":[1]}} 7"#,
        b"-0.0e+0",
    ])
}
