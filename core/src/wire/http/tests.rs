//! Answers of nsqlookupd: valid, split anywhere, and invalid.

use super::*;

fn read(pieces: &[&[u8]]) -> Result<(Option<u16>, Vec<u8>, bool), HttpError> {
    let mut decoder = ResponseDecoder::new();
    let mut body = Vec::new();
    for piece in pieces {
        let mut input = *piece;
        while let Some(data) = decoder.next(&mut input)? {
            body.extend(data);
        }
        assert!(input.is_empty());
    }
    let complete = decoder.is_complete();
    decoder.finish()?;
    Ok((decoder.status(), body, complete))
}

/// Checks that the answer is read, however it is split.
#[track_caller]
fn reads(text: &[u8], status: u16, body: &str, complete: bool) {
    let expected = Ok((Some(status), body.as_bytes().to_vec(), complete));
    for at in 0..=text.len() {
        let (one, two) = text.split_at(at);
        assert_eq!(read(&[one, two]), expected, "split at {at}");
    }
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    assert_eq!(read(&bytes), expected);
}

#[track_caller]
fn refuses(text: &[u8], error: HttpError) {
    let bytes: Vec<&[u8]> = text.chunks(1).collect();
    assert_eq!(read(&bytes), Err(error));
    assert_eq!(read(&[text]), Err(error));
}

#[test]
fn answers_of_go_are_read() {
    reads(
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n\
          X-Nsq-Content-Type: nsq; version=1.0\r\nDate: Sun, 22 Nov 2026 22:00:00 GMT\r\n\
          Content-Length: 30\r\nConnection: close\r\n\r\n{\"channels\":[],\"producers\":[]}",
        200,
        "{\"channels\":[],\"producers\":[]}",
        true,
    );
    reads(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
          4\r\nWiki\r\nA;name=value\r\npedia in c\r\n5\r\nhunks\r\n0\r\nTrailer: x\r\n\r\nmore",
        200,
        "Wikipedia in chunks",
        true,
    );
    reads(b"HTTP/1.0 404 Not Found\r\n\r\ngone", 404, "gone", false);
}

#[test]
fn answers_of_other_servers_are_read() {
    reads(b"HTTP/1.1 200\nCONTENT-LENGTH:\t 2 \n\nOK", 200, "OK", true);
    reads(b"HTTP/1.1 204 No Content\r\n\r\n", 204, "", true);
    reads(b"HTTP/1.1 100 Continue\r\nContent-Length: 9\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, "", true);
    let long = format!("X-Long: {}\r\n", "x".repeat(3000));
    let text = format!("HTTP/1.1 200 OK\r\n{long}{long}Content-Length: 1\r\n\r\n1");
    reads(text.as_bytes(), 200, "1", true);
    // Chunks take precedence over a length.
    reads(
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: Chunked\r\n\
          Content-Length: 4\r\n\r\n1\r\nx\r\n0\r\n\r\n",
        200,
        "x",
        true,
    );
}

#[test]
fn invalid_answers_are_refused_with_the_reason() {
    use HttpError::*;
    // The answers of nsqlookupd and nsqd at their TCP ports, and their first byte.
    refuses(b"\0\0\0\x0eE_BAD_PROTOCOL", NotHttp);
    refuses(b"\0\0\0\x12\0\0\0\x01E_BAD_PROTOCOL", NotHttp);
    refuses(b"\0", NotHttp);
    refuses(b"HTTP/0", NotHttp);
    refuses(b"http/1", NotHttp);
    refuses(b"\n", NotHttp);
    refuses(b"HTTP/1", Truncated);
    refuses(b"HTTP/2 200\r\n", NotHttp);
    refuses(b"HTTP/1.1 2x0 OK\r\n", NotHttp);
    refuses(b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", Length);
    refuses(b"HTTP/1.1 200 OK\r\nContent-Length:\r\n", Length);
    refuses(b"HTTP/1.1 200 OK\r\nContent-Length: 4294967296\r\n", Length);
    refuses(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n", Length);
    let zeros = format!("HTTP/1.1 200 OK\r\nContent-Length: {}1\r\n", "0".repeat(40));
    refuses(zeros.as_bytes(), Length);
    refuses(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n", Coding);
    refuses(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n", Chunk);
    refuses(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n123456789\r\n", Chunk);
    refuses(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n", Chunk);
    refuses(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nx", Truncated);
    refuses(b"HTTP/1.1 200 OK\r\nConte", Truncated);
    refuses(b"", Truncated);
    let endless = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(HEAD_MAX.into()));
    refuses(endless.as_bytes(), HeadTooLong);
    let lines = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(HEAD_MAX.into()));
    refuses(lines.as_bytes(), HeadTooLong);
    for error in [NotHttp, HeadTooLong, Length, Coding, Chunk, Truncated] {
        assert!(!error.to_string().is_empty());
    }
}

#[test]
fn a_request_is_written() {
    let ask = |host: &str, topic: &str| {
        let mut buf = [0; 512];
        let mut rest = &mut buf[..];
        let host: Address = host.parse().unwrap();
        emit_get(&mut rest, &host, "/lookup?topic=", topic, "nanonsq/1").unwrap();
        let len = 512 - rest.len();
        String::from_utf8(buf[..len].to_vec()).unwrap()
    };
    assert_eq!(
        ask("lookup:4161", "logs#ephemeral"),
        "GET /lookup?topic=logs%23ephemeral HTTP/1.1\r\nHost: lookup:4161\r\n\
         User-Agent: nanonsq/1\r\nAccept: application/vnd.nsq; version=1.0\r\n\
         Connection: close\r\n\r\n"
    );
    assert!(ask("[::1]:80", "t").contains("topic=t HTTP/1.1\r\nHost: [::1]:80\r\n"));
}

#[test]
fn ram() {
    assert_eq!(size_of::<ResponseDecoder>(), 52);
}
