//! Chunked bodies.

use super::*;

#[test]
fn chunked_bodies() {
    let a4000 = "a".repeat(4000);
    for chunks in [
        "2\r\nhi\r\n0\r\n\r\n",
        "1\r\nh\r\n1\r\ni\r\n0\r\n\r\n",
        "2;a=b\r\nhi\r\n0;x\r\n\r\n",
        "2;a=\"b;c\"\r\nhi\r\n0\r\n\r\n",
        "2 \t\r\nhi\r\n000\r\nA: b\r\nC: d\r\n\r\n",
        "0000000000000002\r\nhi\r\n0\r\n\r\n",
        &format!("2;{a4000}\r\nhi\r\n0;{a4000}\r\n{a4000}\r\n\r\n"),
    ] {
        for path in ["/echo", "/whole/x"] {
            let answer = ask(&(chunked(path, chunks) + PING));
            let (first, ping) = answer.split_at(answer.len() - OK.len());
            assert_eq!((body(first).as_str(), ping), ("hi", OK), "{chunks:?}");
        }
        let answer = ask(&(chunked("/nothing", chunks) + PING));
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with(OK), "{answer}");
        let answer = ask(&(chunked("/nope", chunks) + PING));
        assert!(answer.starts_with("HTTP/1.1 404") && answer.ends_with(OK), "{answer}");
    }
    // A valid `Content-Length` is ignored then.
    let both = chunked("/echo", "A\r\n0123456789\r\n0\r\n\r\n");
    let with_len = both.replace("\r\n\r\nA", "\r\nContent-Length: 3\r\n\r\nA");
    assert_eq!(body(&ask(&with_len)), "0123456789");
    let bad = both.replace("\r\n\r\nA", "\r\nContent-Length: x\r\n\r\nA");
    assert_eq!(ask(&bad), refusal("400 Bad Request", "BAD_REQUEST", true));
    let none = chunked("/echo", "0\r\n\r\n");
    assert_eq!(ask(&none), refusal("400 Bad Request", "EMPTY", false));
    // `100 Continue` is sent.
    let waits = chunked("/echo", "").replace("\r\n\r\n", "\r\nExpect: 100-continue\r\n\r\n");
    assert_eq!(ask(&waits), "HTTP/1.1 100 Continue\r\n\r\n");
}

#[test]
fn invalid_chunks_are_refused() {
    let a5000 = "a".repeat(5000);
    for chunks in [
        "x\r\n",
        "-2\r\n",
        "0x2\r\n",
        " 2\r\n",
        "\r\n",
        "2\n",
        "2;a\n",
        "2;a\rb\r\n",
        "2 ;a\r\n",
        "00000000000000002\r\n",
        "2\r\nhix\r\n",
        "2\r\nhi\n",
        "2\r\nhi\rx",
        "0\r\n\n",
        "0\r\nA: b\n",
        "0\r\n\rx",
        &format!("2;{a5000}"),
        &format!("0\r\n{a5000}"),
        &format!("0\r\n{}", "A: b\r\n".repeat(700)),
    ] {
        let bad = refusal("400 Bad Request", "BAD_CHUNK", true);
        for path in ["/echo", "/whole/x", "/lines", "/nothing"] {
            let mut world = World::new();
            assert_eq!(world.send(&chunked(path, chunks)), bad, "{path} {chunks:?}");
            assert_eq!(world.send(PING), "");
            assert_eq!(world.after(world.service.config.linger), Link::Close);
            // The request was begun only if its body is passed on.
            assert_eq!(world.service.begun, u32::from(path != "/nothing"));
        }
        // A request that was refused before gets that refusal.
        let refused = ask(&chunked("/nope", chunks));
        assert_eq!(refused, refusal("404 Not Found", "NOT_FOUND", true), "{chunks:?}");
    }
}

#[test]
fn chunks_at_their_bounds() {
    // A body of the longest length is accepted, in chunks of any length.
    for (path, most, code) in [
        ("/echo", 60_000, "TOO_BIG"),
        ("/whole/x", BUFFER, "TOO_LONG"),
        ("/nothing", DISCARD_MAX as usize, "BODY_TOO_BIG"),
        ("/lines", 60_000, "BODY_TOO_BIG"),
    ] {
        for over in [0, 1] {
            for piece in [1000, 7] {
                let line = "b\n".repeat(most / 2) + &"b".repeat(over);
                let pieces = line.as_bytes().chunks(piece);
                let text = pieces.map(|piece| {
                    format!("{:x}\r\n{}\r\n", piece.len(), str::from_utf8(piece).unwrap())
                });
                let answer = ask(&chunked(path, &(text.collect::<String>() + "0\r\n\r\n")));
                let refused = refusal("413 Request Entity Too Large", code, true);
                assert_eq!(answer.starts_with("HTTP/1.1 200"), over == 0, "{path} {answer:.300}");
                assert!(over == 0 || answer == refused, "{answer}");
            }
        }
    }
    for size in ["ffffffffffffffff", "fffffffff", "ea61"] {
        let long = refusal("413 Request Entity Too Large", "TOO_BIG", true);
        assert_eq!(ask(&chunked("/echo", &format!("{size}\r\n"))), long);
    }
    // Refused before, and too long to be discarded.
    let long = format!("4000\r\n{}\r\n1\r\n", "b".repeat(0x4000));
    let not_found = refusal("404 Not Found", "NOT_FOUND", true);
    assert_eq!(ask(&chunked("/nope", &long)), not_found);
}
