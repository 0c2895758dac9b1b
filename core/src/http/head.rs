//! Heads of requests.

use core::mem::MaybeUninit;

use super::answer::{Refusal, Status};
use super::request::{Method, Request};
use super::{Exchange, HEADERS_MAX};

/// Refuses what does not begin with the line of a request.
pub(super) fn check_line(line: &[u8]) -> Result<(), Refusal> {
    let mut headers = [const { MaybeUninit::uninit() }; 1];
    let parsed = httparse::Request::new(&mut []).parse_with_uninit_headers(line, &mut headers);
    parsed.map(|_| ()).map_err(not_parsed)
}

/// A head, parsed.
pub(super) struct Parsed<'r> {
    pub(super) request: Request<'r>,
    pub(super) exchange: Exchange,
}

/// Parses a whole head.
pub(super) fn parse(head: &[u8]) -> Result<Parsed<'_>, Refusal> {
    let bad = Refusal::bad_request("BAD_REQUEST");
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut []);
    let done = parsed.parse_with_uninit_headers(head, &mut headers).map_err(not_parsed)?;
    if done.is_partial() {
        return Err(bad);
    }
    let (Some(method), Some(target)) = (parsed.method, parsed.path) else { return Err(bad) };
    let method = Method::parse(method);
    let is_old = parsed.version == Some(0);
    let mut exchange =
        Exchange { is_old, is_head: method == Method::Head, closes: is_old, expects: false };
    let mut body_len = None;
    for header in &*parsed.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            let len = length(header.value).ok_or(bad)?;
            if body_len.is_some_and(|earlier| earlier != len) {
                return Err(bad);
            }
            body_len = Some(len);
        } else if is("transfer-encoding") {
            return Err(Refusal::new(Status::LengthRequired, "LENGTH_REQUIRED"));
        } else if is("connection") {
            exchange.closes |= header
                .value
                .split(|byte| *byte == b',')
                .any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"));
        } else if is("expect") {
            exchange.expects =
                !is_old && header.value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
        }
    }
    let request = Request::new(method, target, body_len.unwrap_or(0)).ok_or(bad)?;
    Ok(Parsed { request, exchange })
}

/// A `Content-Length`; saturated, which is more than anybody takes.
fn length(value: &[u8]) -> Option<u32> {
    let mut len = None;
    for byte in value.trim_ascii() {
        let digit = byte.checked_sub(b'0').filter(|&digit| digit < 10)?;
        let tens = len.unwrap_or(0u32).saturating_mul(10);
        len = Some(tens.saturating_add(digit.into()));
    }
    len
}

fn not_parsed(error: httparse::Error) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => Refusal::new(Status::HeadTooLarge, "HEADER_TOO_LARGE"),
        httparse::Error::Version => {
            Refusal::new(Status::VersionNotSupported, "VERSION_NOT_SUPPORTED")
        }
        httparse::Error::HeaderName
        | httparse::Error::HeaderValue
        | httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token => Refusal::bad_request("BAD_REQUEST"),
    }
}
