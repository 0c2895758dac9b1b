//! A small HTTP/1.1 client: one request per connection, every wait bounded.

use std::io::{Error, ErrorKind, Result};
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(5);

/// A response.
#[derive(Debug, Clone)]
pub struct Response {
    /// The status code, such as 200.
    pub status: u16,
    /// Names (in lower case) and values of the headers.
    pub headers: Vec<(String, String)>,
    /// The body; chunks are joined.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(is, _)| is == name).map(|(_, value)| value.as_str())
    }

    /// Returns the body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Parses the body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body)
            .map_err(|error| bad(format!("{error} in {:?}", self.text())))
    }
}

/// Sends `GET path`.
pub async fn get(address: SocketAddr, path: &str) -> Result<Response> {
    request(address, "GET", path, b"").await
}

/// Sends `GET path`; the response must be 200 with JSON.
pub async fn get_json(address: SocketAddr, path: &str) -> Result<Value> {
    let response = get(address, path).await?;
    match response.status {
        200 => response.json(),
        status => Err(bad(format!("GET {path}: {status} {}", response.text()))),
    }
}

/// Sends `POST path`.
pub async fn post(address: SocketAddr, path: &str, body: &[u8]) -> Result<Response> {
    request(address, "POST", path, body).await
}

/// Sends any request.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Response> {
    request_within(LIMIT, address, method, path, body).await
}

/// Sends any request, with another limit than 5 s.
pub async fn request_within(
    limit: Duration,
    address: SocketAddr,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<Response> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let length = body.len();
        let mut out = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\
             Content-Length: {length}\r\n\r\n"
        )
        .into_bytes();
        out.extend_from_slice(body);
        stream.write_all(&out).await?;
        let mut answer = Vec::new();
        // chromedriver announces that it closes the connection and then does not.
        while !has_all(&answer) && stream.read_buf(&mut answer).await? > 0 {}
        parse(&answer)
    };
    let late = || {
        Error::new(ErrorKind::TimedOut, format!("{method} {address}{path}: no answer in {limit:?}"))
    };
    timeout(limit, exchange).await.map_err(|_| late())?
}

/// Percent-encodes a topic or channel name for a query: `#ephemeral` must not become a fragment.
pub fn encode(name: &str) -> String {
    name.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' | b'-' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// Returns whether a body of known length is complete.
fn has_all(answer: &[u8]) -> bool {
    let length = || {
        let (head, body) = split_once(answer, b"\r\n\r\n")?;
        let head = std::str::from_utf8(head).ok()?.to_ascii_lowercase();
        let mut lengths = head.lines().filter_map(|line| line.strip_prefix("content-length:"));
        let length: usize = lengths.next()?.trim().parse().ok()?;
        Some(body.len() >= length)
    };
    length().unwrap_or(false)
}

fn parse(answer: &[u8]) -> Result<Response> {
    let (head, rest) =
        split_once(answer, b"\r\n\r\n").ok_or_else(|| bad("the header has no end"))?;
    let head = std::str::from_utf8(head).map_err(|_| bad("the header is not text"))?;
    let mut lines = head.split("\r\n");
    let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut response =
        Response { status: status.ok_or_else(|| bad("no status"))?, headers, body: rest.to_vec() };
    if response.header("transfer-encoding") == Some("chunked") {
        response.body = unchunk(rest).ok_or_else(|| bad("bad chunks"))?;
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().map_err(|_| bad("bad Content-Length"))?;
        if rest.len() != length {
            return Err(bad(format!(
                "Content-Length is {length}, the body has {} bytes",
                rest.len()
            )));
        }
    }
    Ok(response)
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let (size, after) = split_once(rest, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(size).ok()?, 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

fn split_once<'a>(bytes: &'a [u8], at: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let start = bytes.windows(at.len()).position(|window| window == at)?;
    Some((&bytes[..start], &bytes[start + at.len()..]))
}

fn bad(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
            4\r\nnano\r\n3\r\nnsq\r\n0\r\n\r\n";
        let response = parse(answer).unwrap();
        assert_eq!((response.status, response.text().as_str()), (200, "nanonsq"));
    }

    #[test]
    fn a_cut_body_is_an_error() {
        let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnano";
        assert_eq!(parse(answer).unwrap_err().kind(), ErrorKind::InvalidData);
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nna";
        assert_eq!(parse(answer).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn names_are_encoded() {
        assert_eq!(encode("a.b_c-1#ephemeral"), "a.b_c-1%23ephemeral");
    }
}
