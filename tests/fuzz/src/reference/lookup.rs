//! The producers in a response of nsqlookupd.

use super::http::response;
use super::json::{Value, read};
use super::names;

/// Returns the producers in a response, each as `host:port`, or `None` for an address that cannot
/// be dialed; returns `None` if the response is invalid.
pub(crate) fn producers(answer: &[u8]) -> Option<Vec<Option<String>>> {
    let (status, body, complete) = response(answer)?;
    let value = read(&body, 0).0.filter(|_| complete && matches!(status, Some(200 | 404)))?;
    let mut found = Found::default();
    found.look(&value, 1);
    found.any.then_some(found.listed)
}

#[derive(Default)]
struct Found {
    /// There is a list, or an explicit statement that there is none.
    any: bool,
    listed: Vec<Option<String>>,
}

impl Found {
    /// Looks for `producers` as a key of the document, or of a value directly in it.
    fn look(&mut self, value: &Value, depth: usize) {
        match value {
            Value::Object(fields) => {
                for (key, value) in fields {
                    match value {
                        Value::List(list) if depth <= 2 && key == b"producers" => {
                            self.any = true;
                            self.list(list);
                        }
                        Value::Null if depth <= 2 && key == b"producers" => self.any = true,
                        other => self.look(other, depth + 1),
                    }
                }
            }
            Value::List(values) => values.iter().for_each(|value| self.look(value, depth + 1)),
            Value::Text(text) => self.any |= text == b"TOPIC_NOT_FOUND",
            _ => {}
        }
    }

    fn list(&mut self, list: &[Value]) {
        for value in list {
            if matches!(value, Value::Object(_)) {
                self.listed.push(address(value));
            }
            // Producers in here do not count, but nsqlookupd's message does.
            self.look(value, 3);
        }
    }
}

fn address(producer: &Value) -> Option<String> {
    let Some(Value::Text(host)) =
        producer.last("broadcast_address", |value| matches!(value, Value::Text(_)))
    else {
        return None;
    };
    let Some(Value::Number(port, _)) =
        producer.last("tcp_port", |value| matches!(value, Value::Number(_, true)))
    else {
        return None;
    };
    let host = std::str::from_utf8(host).ok().filter(|host| host.is_ascii())?;
    let text =
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    names::address(&text).is_some().then_some(text)
}
