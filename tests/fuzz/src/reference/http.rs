//! nsqlookupd's HTTP responses, and the targets of requests.

/// Returns a line without its end, cut as decoders cut it, and the rest.
fn line(stream: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = stream.iter().position(|byte| *byte == b'\n')?;
    let line = &stream[..end.min(40)];
    Some((line.strip_suffix(b"\r").unwrap_or(line), &stream[end + 1..]))
}

/// Returns a response's status, body, and whether it is complete; `None` if it is invalid.
pub(crate) fn response(stream: &[u8]) -> Option<(Option<u16>, Vec<u8>, bool)> {
    let mut rest = stream;
    let (status, length, chunked) = loop {
        let start = b"HTTP/1.";
        if rest.iter().zip(start).any(|(is, should)| is != should) {
            return None;
        }
        let Some((first, mut behind)) = line(rest) else { return Some((None, Vec::new(), false)) };
        let code = first.get(start.len() + 1..start.len() + 5)?.strip_prefix(b" ")?;
        if !code.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let status: u16 = std::str::from_utf8(code).ok()?.parse().ok()?;
        let (mut length, mut chunked) = (None, false);
        loop {
            let Some((header, more)) = line(behind) else { return Some((None, Vec::new(), false)) };
            behind = more;
            if header.is_empty() {
                break;
            }
            let text = String::from_utf8_lossy(header);
            let Some((name, value)) = text.split_once(':') else { continue };
            let value = value.trim_matches(|char: char| char.is_ascii_whitespace());
            match name.to_ascii_lowercase().as_str() {
                "content-length" => {
                    let digits = value.bytes().all(|byte| byte.is_ascii_digit());
                    let value: u32 = value.parse().ok().filter(|_| digits)?;
                    let other = !chunked && length.is_some_and(|length| length != value);
                    if header.len() == 40 || other {
                        return None;
                    }
                    length = Some(value);
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => chunked = true,
                "transfer-encoding" => return None,
                _ => {}
            }
        }
        rest = behind;
        if !(100..200).contains(&status) {
            break (status, length, chunked);
        }
    };
    let mut body = Vec::new();
    let complete = match length {
        _ if status == 204 || status == 304 => true,
        _ if chunked => chunks(rest, &mut body)?,
        Some(length) => {
            body.extend(rest.iter().take(length as usize));
            body.len() == length as usize
        }
        None => {
            body.extend(rest);
            // Complete so far: the end of the connection ends the body.
            true
        }
    };
    Some((Some(status), body, complete))
}

/// Reads chunks and returns whether they are complete; `None` if they are invalid.
fn chunks(stream: &[u8], body: &mut Vec<u8>) -> Option<bool> {
    let mut rest = stream;
    loop {
        let Some((head, behind)) = line(rest) else { return Some(false) };
        rest = behind;
        let size = head.split(|byte| *byte == b';').next().expect("one at least");
        let size = std::str::from_utf8(size).ok()?;
        let size = size.trim_matches(|char: char| char.is_ascii_whitespace());
        if !size.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let size = u32::from_str_radix(size, 16).ok()? as usize;
        if size == 0 {
            break;
        }
        body.extend(rest.iter().take(size));
        let Some(behind) = rest.get(size..) else { return Some(false) };
        let Some((end, behind)) = line(behind) else { return Some(false) };
        if !end.is_empty() {
            return None;
        }
        rest = behind;
    }
    // Trailers.
    loop {
        match line(rest) {
            None => return Some(false),
            Some(([], _)) => return Some(true),
            Some((_, behind)) => rest = behind,
        }
    }
}

/// The target of a request.
pub(crate) struct Target<'t> {
    /// The unescaped path; empty if there is none.
    pub(crate) path: Vec<u8>,
    query: &'t str,
}

impl<'t> Target<'t> {
    /// Parses a target; `None` if it is invalid.
    pub(crate) fn new(text: &'t str) -> Option<Self> {
        if text == "*" {
            return Some(Self { path: b"*".to_vec(), query: "" });
        }
        // As in Go, whatever comes before.
        let (text, query) = text.split_once('?').unwrap_or((text, ""));
        let path = match text.strip_prefix('/') {
            Some(_) => text,
            None => {
                let (scheme, rest) = text.split_once(':')?;
                let mut letters = scheme.bytes();
                let begins = letters.next()?.is_ascii_alphabetic();
                let goes_on = |it: u8| it.is_ascii_alphanumeric() || b"+-.".contains(&it);
                if !begins || !letters.all(goes_on) {
                    return None;
                }
                match rest.strip_prefix("//") {
                    Some(rest) => &rest[rest.find('/').unwrap_or(rest.len())..],
                    None => rest,
                }
            }
        };
        let path = if path.starts_with('/') { path } else { "" };
        Some(Self { path: unescape(path, false)?, query })
    }

    /// Returns the path's last part, after `prefix`.
    pub(crate) fn name_after(&self, prefix: &str) -> Option<&[u8]> {
        let name = self.path.strip_prefix(prefix.as_bytes())?;
        (!name.is_empty() && !name.contains(&b'/')).then_some(name)
    }

    /// Returns all parameters in order; `None` if the query is invalid.
    pub(crate) fn params(&self) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        let split = |pair: &'t str| pair.split_once('=').unwrap_or((pair, ""));
        let unescape = |(key, value)| Some((unescape(key, true)?, unescape(value, true)?));
        (!self.query.contains(';')).then(|| pairs.map(split).map(unescape).collect())?
    }
}

/// Replaces `%` and two digits by a byte, and if `plus` a `+` by a space; `None` if that fails.
fn unescape(text: &str, plus: bool) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let plain = |part: &str| match plus {
        true => part.replace('+', " ").into_bytes(),
        false => part.as_bytes().to_vec(),
    };
    let mut bytes = plain(parts.next().expect("one at least"));
    for part in parts {
        let digits =
            part.get(..2).filter(|two| two.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).expect("two digits"));
        bytes.extend(plain(&part[2..]));
    }
    Some(bytes)
}
