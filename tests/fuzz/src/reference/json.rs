//! JSON, by recursive descent.

use std::fmt::Write as _;

/// The deepest nesting.
const DEPTH_MAX: usize = 32;

/// A value, as NSQ's protocols read it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    /// The digits before any `.` or `e`, clamped to an `i32`; true if that is the exact value.
    Number(i32, bool),
    Text(Vec<u8>),
    List(Vec<Value>),
    Object(Vec<(Vec<u8>, Value)>),
}

impl Value {
    /// Returns the last value of a key that `fits` accepts.
    pub(crate) fn last(&self, key: &str, fits: impl Fn(&Value) -> bool) -> Option<&Value> {
        let Self::Object(fields) = self else { return None };
        let of_key = fields.iter().rev().filter(|(name, _)| name == key.as_bytes());
        of_key.map(|(_, value)| value).find(|value| fits(value))
    }
}

/// Returns the document, if it is valid, and its tokens. Before an error, trailing numbers are left
/// out. Texts are cut to `keep` bytes.
pub(crate) fn read(text: &[u8], keep: usize) -> (Option<Value>, String) {
    let mut reader = Reader { rest: text, depth: 0, keep, items: String::new() };
    let value = reader.value().filter(|_| {
        reader.space();
        reader.rest.is_empty()
    });
    let items = if value.is_some() { &reader.items } else { before_numbers(&reader.items) };
    (value, items.to_owned())
}

/// Leaves out numbers at the end: only the next byte shows that a number is complete.
pub(crate) fn before_numbers(items: &str) -> &str {
    let mut items = items;
    while let Some((before, number)) = items.rsplit_once(" token Number(")
        && !number.contains(" token ")
    {
        items = before;
    }
    items
}

/// Cuts a text to `keep` bytes, with whole characters only; returns whether it was cut.
pub(crate) fn cut(bytes: &[u8], keep: usize) -> (Option<&str>, bool) {
    let cut = bytes.len() > keep;
    let kept = &bytes[..bytes.len().min(keep)];
    let text = match std::str::from_utf8(kept) {
        Err(error) if cut && error.error_len().is_none() => {
            std::str::from_utf8(&kept[..error.valid_up_to()]).ok()
        }
        other => other.ok(),
    };
    (text, cut)
}

struct Reader<'t> {
    rest: &'t [u8],
    depth: usize,
    keep: usize,
    items: String,
}

impl Reader<'_> {
    fn space(&mut self) {
        while let [b' ' | b'\t' | b'\n' | b'\r', rest @ ..] = self.rest {
            self.rest = rest;
        }
    }

    fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(byte)
    }

    /// Consumes `word` if it comes next.
    fn has(&mut self, word: &str) -> bool {
        let rest = self.rest.strip_prefix(word.as_bytes());
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    fn token(&mut self, token: impl std::fmt::Display) {
        let _ = write!(self.items, " token {token}");
    }

    fn text_token(&mut self, bytes: &[u8]) {
        let (text, truncated) = cut(bytes, self.keep);
        self.token(format!("{text:?} {truncated}"));
    }

    fn value(&mut self) -> Option<Value> {
        self.space();
        match self.rest.first()? {
            b'{' | b'[' if self.depth == DEPTH_MAX => None,
            b'{' => self.object(),
            b'[' => self.list(),
            b'"' => {
                let text = self.text()?;
                self.text_token(&text);
                Some(Value::Text(text))
            }
            b'-' | b'0'..=b'9' => self.number(),
            _ => {
                let words = [
                    ("null", Value::Null),
                    ("true", Value::Bool(true)),
                    ("false", Value::Bool(false)),
                ];
                let (_, value) = words.into_iter().find(|(word, _)| self.has(word))?;
                self.token(match &value {
                    Value::Bool(value) => format!("Bool({value})"),
                    _ => "Null".into(),
                });
                Some(value)
            }
        }
    }

    fn object(&mut self) -> Option<Value> {
        self.byte();
        self.depth += 1;
        self.token("ObjectStart");
        let mut fields = Vec::new();
        self.space();
        if !self.has("}") {
            loop {
                self.space();
                if self.rest.first() != Some(&b'"') {
                    return None;
                }
                let key = self.text()?;
                self.text_token(&key);
                self.space();
                if !self.has(":") {
                    return None;
                }
                fields.push((key, self.value()?));
                self.space();
                match self.byte()? {
                    b',' => {}
                    b'}' => break,
                    _ => return None,
                }
            }
        }
        self.depth -= 1;
        self.token("ObjectEnd");
        Some(Value::Object(fields))
    }

    fn list(&mut self) -> Option<Value> {
        self.byte();
        self.depth += 1;
        self.token("ArrayStart");
        let mut values = Vec::new();
        self.space();
        if !self.has("]") {
            loop {
                values.push(self.value()?);
                self.space();
                match self.byte()? {
                    b',' => {}
                    b']' => break,
                    _ => return None,
                }
            }
        }
        self.depth -= 1;
        self.token("ArrayEnd");
        Some(Value::List(values))
    }

    /// Reads a string; invalid UTF-8 is kept.
    fn text(&mut self) -> Option<Vec<u8>> {
        self.byte();
        let mut bytes = Vec::new();
        loop {
            match self.byte()? {
                b'"' => return Some(bytes),
                ..b' ' => return None,
                b'\\' => match self.byte()? {
                    same @ (b'"' | b'\\' | b'/') => bytes.push(same),
                    b'b' => bytes.push(8),
                    b'f' => bytes.push(12),
                    b'n' => bytes.push(b'\n'),
                    b'r' => bytes.push(b'\r'),
                    b't' => bytes.push(b'\t'),
                    b'u' => {
                        let mut units = vec![self.unit()?];
                        while self.has("\\u") {
                            units.push(self.unit()?);
                        }
                        // U+FFFD for half of a surrogate pair.
                        bytes.extend(String::from_utf16_lossy(&units).bytes());
                    }
                    _ => return None,
                },
                byte => bytes.push(byte),
            }
        }
    }

    fn unit(&mut self) -> Option<u16> {
        let mut unit = 0;
        for _ in 0..4 {
            unit = unit << 4 | char::from(self.byte()?).to_digit(16)?;
        }
        Some(unit as u16)
    }

    fn digits(&mut self) -> String {
        let mut digits = String::new();
        while let [byte @ b'0'..=b'9', rest @ ..] = self.rest {
            digits.push(char::from(*byte));
            self.rest = rest;
        }
        digits
    }

    fn number(&mut self) -> Option<Value> {
        let negative = self.has("-");
        let digits = self.digits();
        if digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) {
            return None;
        }
        let mut exact = true;
        if self.has(".") {
            exact = false;
            if self.digits().is_empty() {
                return None;
            }
        }
        if self.has("e") || self.has("E") {
            exact = false;
            let _ = self.has("+") || self.has("-");
            if self.digits().is_empty() {
                return None;
            }
        }
        // 12 digits are enough for the clamp.
        let number: i64 = digits[..digits.len().min(12)].parse().expect("digits");
        let number = if negative { -number } else { number };
        let integer = number.clamp(i32::MIN.into(), i32::MAX.into()) as i32;
        exact &= i64::from(integer) == number;
        self.token(format!("Number(Number {{ integer: {integer}, exact: {exact} }})"));
        Some(Value::Number(integer, exact))
    }
}
