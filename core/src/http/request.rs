//! Requests: what a client asks for.

use crate::name::{ChannelName, NAME_MAX, NameError, TopicName};

/// A request's method, as far as NSQ's servers tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Method {
    /// `GET`
    Get,
    /// `POST`
    Post,
    /// `PUT`
    Put,
    /// `HEAD`: answered without a body. NSQ's servers refuse it.
    Head,
    /// `OPTIONS`: which methods there are.
    Options,
    /// Any other.
    Other,
}

impl Method {
    pub(super) fn parse(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "POST" => Self::Post,
            "PUT" => Self::Put,
            "HEAD" => Self::Head,
            "OPTIONS" => Self::Options,
            _ => Self::Other,
        }
    }
}

/// The head of a request, where it lies in the connection's buffer.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    method: Method,
    path: &'r str,
    query: &'r str,
    body_len: u32,
}

/// The query is not one: a `%` without two hexadecimal digits, or a `;`, which Go refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct BadQuery;

impl<'r> Request<'r> {
    /// A request for `target`: a path, perhaps a `?` and a query. Of `http://host/path` the path
    /// counts. `None` if there is no path, or a `%` in it without two digits.
    pub(super) fn new(method: Method, target: &'r str, body_len: u32) -> Option<Self> {
        let target = match target.strip_prefix("http://") {
            Some(rest) => {
                let slash = rest.bytes().position(|byte| byte == b'/')?;
                rest.get(slash..)?
            }
            None => target,
        };
        if !target.starts_with('/') {
            return None;
        }
        let (path, query) = split(target, b'?');
        let request = Self { method, path, query: query.unwrap_or_default(), body_len };
        decoded(path, false).all(|byte| byte.is_ok()).then_some(request)
    }

    /// The method.
    pub const fn method(&self) -> Method {
        self.method
    }

    /// How long the body is that follows, in bytes.
    pub const fn body_len(&self) -> u32 {
        self.body_len
    }

    /// Whether this is the path, once `%` escapes are read.
    pub fn is_for(&self, path: &str) -> bool {
        decoded(self.path, false).eq(path.bytes().map(Ok))
    }

    /// What follows `prefix` in the path, if that is one name: not empty and without a `/`.
    pub fn name_after(&self, prefix: &str) -> Option<Value<'r>> {
        let rest = self.path.strip_prefix(prefix)?;
        let value = Value { text: rest, plus: false };
        let mut bytes = value.bytes().peekable();
        bytes.peek()?;
        bytes.all(|byte| byte != b'/').then_some(value)
    }

    /// Whether the query is one; nsqd and nsqlookupd refuse the others as a whole.
    pub fn check_query(&self) -> Result<(), BadQuery> {
        let has_semicolon = self.query.bytes().any(|byte| byte == b';');
        if has_semicolon || decoded(self.query, true).any(|byte| byte.is_err()) {
            return Err(BadQuery);
        }
        Ok(())
    }

    /// The first value of a parameter; `None` if there is none. A parameter without `=` is empty.
    pub fn param(&self, name: &str) -> Option<Value<'r>> {
        let mut rest = Some(self.query);
        while let Some(query) = rest {
            let (pair, more) = split(query, b'&');
            rest = more;
            let (key, value) = split(pair, b'=');
            if !pair.is_empty() && decoded(key, true).eq(name.bytes().map(Ok)) {
                return Some(Value { text: value.unwrap_or_default(), plus: true });
            }
        }
        None
    }
}

/// A value out of a path or a query, not yet unescaped.
#[derive(Debug, Clone, Copy)]
pub struct Value<'r> {
    text: &'r str,
    /// Whether a `+` is a space.
    plus: bool,
}

impl<'r> Value<'r> {
    /// Its bytes. Where an escape is none, they end.
    pub fn bytes(&self) -> impl Iterator<Item = u8> + use<'r> {
        decoded(self.text, self.plus).map_while(Result::ok)
    }

    /// Whether it is this text.
    pub fn is(&self, text: &str) -> bool {
        self.bytes().eq(text.bytes())
    }

    /// It as a topic's name.
    pub fn topic(&self) -> Result<TopicName, NameError> {
        self.name(TopicName::from_bytes)
    }

    /// It as a channel's name.
    pub fn channel(&self) -> Result<ChannelName, NameError> {
        self.name(ChannelName::from_bytes)
    }

    /// It as a decimal number without a sign; `None` if it is none or has more than 32 bits.
    pub fn number(&self) -> Option<u32> {
        let mut number = None;
        for byte in self.bytes() {
            let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
            let tens = number.unwrap_or(0u32).checked_mul(10)?;
            number = Some(tens.checked_add(digit.into())?);
        }
        number
    }

    /// It as the truth value that Go's `strconv.ParseBool` reads.
    pub fn bool(&self) -> Option<bool> {
        const WORDS: [(&str, bool); 12] = [
            ("1", true),
            ("t", true),
            ("T", true),
            ("true", true),
            ("TRUE", true),
            ("True", true),
            ("0", false),
            ("f", false),
            ("F", false),
            ("false", false),
            ("FALSE", false),
            ("False", false),
        ];
        WORDS.iter().find(|(word, _)| self.is(word)).map(|&(_, value)| value)
    }

    fn name<T>(&self, parse: impl FnOnce(&[u8]) -> Result<T, NameError>) -> Result<T, NameError> {
        // One byte more than a name may have, so that a longer one is seen as too long.
        let mut name = [0; NAME_MAX + 1];
        let mut len = 0usize;
        for (slot, byte) in name.iter_mut().zip(self.bytes()) {
            *slot = byte;
            len = len.saturating_add(1);
        }
        parse(name.get(..len).unwrap_or_default())
    }
}

/// Both sides of the first `at`; the second only if there is one.
fn split(text: &str, at: u8) -> (&str, Option<&str>) {
    // Not `split_once`: the search behind it indexes, and the compiler keeps the panic.
    let place = text.bytes().position(|byte| byte == at).unwrap_or(text.len());
    let (front, back) = text.split_at_checked(place).unwrap_or((text, ""));
    (front, back.get(1..))
}

/// The bytes of a text in which some are escaped as `%` and two digits.
// A closure: a type of its own would have all that iterators can do compiled, panics included.
fn decoded(text: &str, plus: bool) -> impl Iterator<Item = Result<u8, BadQuery>> {
    let mut rest = text.bytes();
    core::iter::from_fn(move || {
        Some(match rest.next()? {
            b'%' => {
                let mut digit = || rest.next().and_then(|byte| char::from(byte).to_digit(16));
                match (digit(), digit()) {
                    // Below 256.
                    (Some(high), Some(low)) => Ok((high << 4 | low) as u8),
                    _ => Err(BadQuery),
                }
            }
            b'+' if plus => Ok(b' '),
            byte => Ok(byte),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(target: &str) -> Request<'_> {
        Request::new(Method::Get, target, 0).unwrap()
    }

    fn text(value: Value<'_>) -> String {
        String::from_utf8(value.bytes().collect()).unwrap()
    }

    #[test]
    fn paths() {
        assert!(get("/lookup?topic=a").is_for("/lookup"));
        assert!(get("/%6Cookup").is_for("/lookup"));
        assert!(get("http://host:1/lookup?x").is_for("/lookup"));
        assert!(!get("/lookup/").is_for("/lookup"));
        assert!(!get("/look").is_for("/lookup"));
        assert!(!get("/a+b").is_for("/a b"));
        for bad in ["", "lookup", "*", "http://host", "/%", "/%2", "/%2g"] {
            assert!(Request::new(Method::Get, bad, 0).is_none(), "{bad}");
        }
        assert_eq!(get("/config/a%20b").name_after("/config/").map(text), Some("a b".into()));
        for none in ["/config/", "/config", "/config/a/b", "/config/a%2fb", "/other/a"] {
            assert!(get(none).name_after("/config/").is_none(), "{none}");
        }
    }

    #[test]
    fn parameters() {
        let query = |query, name: &str| get(query).param(name).map(text);
        assert_eq!(query("/?topic=a&channel=b", "channel"), Some("b".into()));
        assert_eq!(query("/?topic=a&topic=b", "topic"), Some("a".into()));
        assert_eq!(query("/?topic=a%23b+c=d", "topic"), Some("a#b c=d".into()));
        assert_eq!(query("/?t%6fpic=a", "topic"), Some("a".into()));
        assert_eq!(query("/?&&topic", "topic"), Some(String::new()));
        assert_eq!(query("/?&&topic=a", ""), None);
        assert_eq!(query("/?=a", ""), Some("a".into()));
        assert_eq!(query("/?topics=a", "topic"), None);
        assert_eq!(query("/", "topic"), None);
        assert_eq!(query("/?", ""), None);
    }

    #[test]
    fn what_is_no_query() {
        for good in ["/", "/?", "/?a=%00", "/?a=+&&=%ff", "/?a?b"] {
            assert_eq!(get(good).check_query(), Ok(()), "{good}");
        }
        for bad in ["/?%", "/?a=%2", "/?a=%zz", "/?a;b", "/?a=b&c=%"] {
            assert_eq!(get(bad).check_query(), Err(BadQuery), "{bad}");
        }
    }

    #[test]
    fn values() {
        let value = |text| Value { text, plus: true };
        assert_eq!(value("a%23ephemeral").topic().unwrap().as_str(), "a#ephemeral");
        assert_eq!(value("").channel(), Err(NameError::Empty));
        let longest = "x".repeat(NAME_MAX);
        assert_eq!(value(&longest).channel().unwrap().as_str(), longest);
        let long = "x".repeat(NAME_MAX + 1);
        assert_eq!(value(&long).topic(), Err(NameError::TooLong { len: NAME_MAX + 1 }));
        // However much longer.
        let longer = long.repeat(9);
        assert_eq!(value(&longer).topic(), Err(NameError::TooLong { len: NAME_MAX + 1 }));
        assert_eq!(value("4294967295").number(), Some(u32::MAX));
        for none in ["", "4294967296", "-1", "+1", "1x", "99999999999"] {
            assert_eq!(value(none).number(), None, "{none}");
        }
        assert_eq!((value("TRUE").bool(), value("f").bool()), (Some(true), Some(false)));
        assert_eq!((value("yes").bool(), value("").bool()), (None, None));
    }
}
