//! Heads of requests, and the connection that a head requests.

use super::*;

#[test]
fn methods() {
    let mut world = World::new();
    // HEAD is refused, without a body.
    let head = world.send("HEAD /ping HTTP/1.1\r\nHost: x\r\n\r\n");
    let get = refusal("405 Method Not Allowed\r\nAllow: GET, OPTIONS", "METHOD_NOT_ALLOWED", false);
    assert_eq!(format!("{head}{{\"message\":\"METHOD_NOT_ALLOWED\"}}"), get);
    for method in ["POST", "DELETE", "get", "PRI"] {
        assert_eq!(
            world.send(&format!("{method} /ping HTTP/1.1\r\nHost: x\r\n\r\n")),
            get,
            "{method}"
        );
    }
    let both = world.send("OPTIONS /whole/x HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(both, "HTTP/1.1 200 OK\r\nAllow: GET, OPTIONS, PUT\r\nContent-Length: 0\r\n\r\n");
    assert!(world.send("OPTIONS /nope HTTP/1.1\r\nHost: x\r\n\r\n").starts_with("HTTP/1.1 404"));
}

#[test]
fn an_invalid_request_ends_the_connection() {
    for (request, line, code) in [
        ("  V2IDENTIFY\n", "400 Bad Request", "BAD_REQUEST"),
        ("GET ping HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request", "BAD_REQUEST"),
        ("GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", "400 Bad Request", "BAD_REQUEST"),
        ("GET /ping\r\n\r\n", "400 Bad Request", "BAD_REQUEST"),
        ("GET /ping HTTP/2.0\r\n", "505 HTTP Version Not Supported", "VERSION_NOT_SUPPORTED"),
        ("GET /ping HTTP/1.1\r\nHost: x\r\n: x\r\n\r\n", "400 Bad Request", "BAD_REQUEST"),
        (
            "GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
            "400 Bad Request",
            "BAD_REQUEST",
        ),
        (
            "GET /ping HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            "400 Bad Request",
            "BAD_REQUEST",
        ),
    ] {
        let mut world = World::new();
        assert_eq!(world.send(request), refusal(line, code, true), "{request:?}");
        // Further bytes are discarded for a short time, so that the client reads the answer.
        assert_eq!(world.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"), "");
        assert_eq!(world.connection.link(), Link::Up);
        assert_eq!(world.after(world.service.config.linger), Link::Close);
        assert_eq!(world.service.ends.len(), 1);
    }
}

#[test]
fn heads_of_any_length_are_read() {
    let ping = "GET /ping HTTP/1.1\r\nHost: x\r\n";
    for (name, value, times) in [
        ("Cookie", "a".repeat(3000), 1),
        ("Cookie", "a".repeat(500_000), 1),
        ("X", "y".into(), 60),
        ("X", "y".into(), 20_000),
        (&"x".repeat(10_000), String::new(), 3),
    ] {
        let lines = format!("{name}: {value}\r\n").repeat(times);
        assert_eq!(ask(&format!("{ping}{lines}\r\n")), OK);
    }
    for over in [0, 1] {
        let fixed = ping.len() + "X: \r\n\r\n".len();
        let filler = "y".repeat(HEAD_MAX as usize - fixed + over);
        let answer = ask(&format!("{ping}X: {filler}\r\n\r\n"));
        let refused = refusal("431 Request Header Fields Too Large", "HEADER_TOO_LARGE", true);
        assert_eq!(answer, if over == 0 { OK.to_owned() } else { refused });
    }
}

#[test]
fn the_first_line_at_its_bound() {
    for (before, after) in [
        ("GET /ping?", " HTTP/1.1"),
        ("GET /ping?n=", " HTTP/1.1"),
        ("GET http://", "/ping HTTP/1.1"),
        ("GET /ping?a=", "&b=%20&c HTTP/1.1"),
    ] {
        for over in [0, 1] {
            let filler = "y".repeat(LINE_MAX as usize - before.len() - after.len() + over);
            let answer = ask(&format!("{before}{filler}{after}\r\nHost: x\r\n\r\n"));
            let refused = refusal("414 Request URI Too Long", "URI_TOO_LONG", true);
            assert_eq!(answer, if over == 0 { OK.to_owned() } else { refused });
        }
    }
    let long = "GET /".to_owned() + &"y".repeat(PATH_MAX) + " HTTP/1.1\r\nHost: x\r\n\r\n";
    assert!(ask(&long).starts_with("HTTP/1.1 404"));
    let long = "yyyyyyyyyyyyyyyyyyyyyyyyyyyyy /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    assert!(ask(long).starts_with("HTTP/1.1 405"));
}

#[test]
fn targets() {
    for (target, status) in [
        ("/ping", 200),
        ("/p%69ng", 200),
        ("/ping?a;b&%zz", 200),
        ("//ping", 404),
        ("/ping/", 404),
        ("/ping#a", 404),
        ("/ping%00", 404),
        ("/pöng", 404),
        ("http://h/ping", 200),
        ("HTTP://h:1/ping", 200),
        ("ftp+x://u:p@h/ping?a", 200),
        ("http:/ping", 200),
        ("http:///ping", 200),
        ("http://h", 404),
        ("http://h?a", 404),
        ("h:80", 404),
        ("foo:bar", 404),
        ("foo:bar?/%", 404),
        ("foo:://?%", 404),
        ("*", 405),
        ("*a", 400),
        ("ping", 400),
        ("1h:80", 400),
        ("/%zz", 400),
        ("/%2", 400),
        ("/a\x01", 400),
        ("/ping?\x7f", 400),
        ("/ping\0", 400),
        ("", 400),
    ] {
        let answer = ask(&format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{target:?}: {answer}");
    }
    let all = ask("OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(all.starts_with("HTTP/1.1 200") && all.ends_with("\r\n\r\n"), "{all}");
}

#[test]
fn parameters() {
    let list = |query: &str| {
        let answer = ask(&format!("GET /list?{query} HTTP/1.1\r\nHost: x\r\n\r\n"));
        answer.starts_with("HTTP/1.1 200").then(|| body(&answer).len() / 100)
    };
    for (query, expected) in [
        ("n=2", Some(2)),
        ("a=b&n=2&c", Some(2)),
        ("n=2&n=3", Some(2)),
        ("&&n=2&", Some(2)),
        ("%6e=%32", Some(2)),
        ("n=2&x=%2", Some(2)),
        ("=5&n=2", Some(2)),
        ("nn=5&n=2", Some(2)),
        ("n&n=2", None),
        ("n=", None),
        ("n=2=", None),
        ("n=2+", None),
        ("N=2", None),
        ("", None),
    ] {
        assert_eq!(list(query), expected, "{query}");
    }
    // However many other parameters there are.
    let others: String = (0..200).map(|n| format!("a{n}=b&")).collect();
    assert_eq!(list(&format!("{others}n=2&{}", &others[..500])), Some(2));
    let long = "x".repeat(1900);
    assert_eq!(list(&format!("x={long}&n=2")), Some(2));
    assert_eq!(list(&format!("{long}={}&n=2", "y".repeat(50))), Some(2));
    // All of the longest parameters fit.
    const { assert!(PATH_MAX + PARAMS_MAX * (VALUE_MAX + 3) < BUFFER) }
}

#[test]
fn headers() {
    let with = |lines: &str| {
        let answer = ask(&format!("GET /ping HTTP/1.1\r\n{lines}\r\n"));
        let code = answer.split("\"message\":\"").nth(1).map(|it| it.trim_end_matches("\"}"));
        (answer[9..12].parse::<u16>().unwrap(), code.unwrap_or("").to_owned())
    };
    for (lines, status, code) in [
        ("Host: x\r\n", 200, ""),
        ("hOsT:\r\n", 200, ""),
        ("Host: [::1]:80 \r\n", 200, ""),
        ("Host: x\n", 200, ""),
        ("", 400, "MISSING_HOST"),
        ("Hosts: x\r\n", 400, "MISSING_HOST"),
        ("Host: x\r\nHost: x\r\n", 400, "TOO_MANY_HOSTS"),
        ("Host: a b\r\n", 400, "BAD_HOST"),
        ("Host: a/b\r\n", 400, "BAD_HOST"),
        ("Host: a\r\n b\r\n", 400, "BAD_HOST"),
        // Folded lines.
        ("Host: x\r\nA: b\r\n c\r\n\td\r\n \r\n", 200, ""),
        (" A: b\r\nHost: x\r\n", 400, "BAD_REQUEST"),
        ("Host:\r\n x\r\n", 200, ""),
        // Invalid headers.
        ("Host: x\r\nAbc\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nAbc : d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nAbc\t: d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA bc: d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\n: d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA(b: d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nÄ: d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA\0: d\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA: b\0c\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA: b\x7fc\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA: b\rc\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nA: ö\tb\r\n", 200, ""),
        ("Host: x\r\nA:\r\n", 200, ""),
        // Lengths.
        ("Host: x\r\nContent-Length: 0\r\nContent-Length: 00\r\n", 200, ""),
        ("Host: x\r\nContent-Length:\r\n 0\r\n", 200, ""),
        ("Host: x\r\nContent-Length: 2\r\n 0\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nContent-Length: +1\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nContent-Length: -1\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nContent-Length: 1, 1\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nContent-Length: 0x0\r\n", 400, "BAD_REQUEST"),
        ("Host: x\r\nContent-Length:\r\n", 200, ""),
        ("Host: x\r\nContent-Length : 0\r\n", 400, "BAD_REQUEST"),
        // Encodings.
        ("Host: x\r\nTransfer-Encoding: identity\r\n", 501, "UNSUPPORTED_TRANSFER_ENCODING"),
        ("Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", 501, "UNSUPPORTED_TRANSFER_ENCODING"),
        ("Host: x\r\nTransfer-Encoding: chunked, x\r\n", 501, "UNSUPPORTED_TRANSFER_ENCODING"),
        ("Host: x\r\nTransfer-Encoding: xchunked\r\n", 501, "UNSUPPORTED_TRANSFER_ENCODING"),
        ("Host: x\r\nTransfer-Encoding:\r\n", 501, "UNSUPPORTED_TRANSFER_ENCODING"),
        (
            "Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            501,
            "UNSUPPORTED_TRANSFER_ENCODING",
        ),
        // Unknown expectations.
        ("Host: x\r\nExpect: foo\r\n", 417, "EXPECTATION_FAILED"),
        ("Host: x\r\nExpect: b\r\nExpect: 100-continue\r\n", 417, "EXPECTATION_FAILED"),
        ("Host: x\r\nExpect: a, 100-Continue\r\nExpect: b\r\n", 200, ""),
        ("Host: x\r\nExpect: \r\n", 200, ""),
    ] {
        assert_eq!(with(lines), (status, code.to_owned()), "{lines:?}");
    }
    let closes = |lines: &str| ask(lines).contains("Connection: close");
    for (lines, expected) in [
        ("Connection: x, Close ,y\r\n", true),
        ("Connection: keep-alive\r\nConnection: close\r\n", true),
        ("Connection:\r\n close\r\n", true),
        ("Connection: closed, no close\r\n", false),
        ("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n", false),
    ] {
        let request = format!("GET /ping HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        assert_eq!(closes(&request), expected, "{lines}");
    }
}

#[test]
fn http_1_0_keeps_alive_if_asked_to() {
    // HTTP/1.0 needs no host, and has no encodings.
    let old = |lines: &str| ask(&format!("GET /ping HTTP/1.0\r\n{lines}\r\n"));
    assert!(old("Transfer-Encoding: gzip\r\n").contains("200 OK"));
    assert!(old("").contains("Connection: close"));
    assert!(old("Connection: Keep-Alive\r\n").contains("Connection: keep-alive"));
    assert!(old("Connection: keep-alive, close\r\n").contains("Connection: close"));
    assert!(old("Expect: x\r\n").contains(" 417 "));
    let mut world = World::new();
    world.send("GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert_eq!(world.connection.link(), Link::Up);
    assert_eq!(world.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"), OK);
    // A long answer in HTTP/1.0 ends with the connection.
    let long = "GET /list?n=100 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n";
    assert!(world.send(long).contains("Connection: close"));
    // Other versions.
    for (version, status) in [("1.2", 200), ("1.9", 200), ("2.0", 505), ("0.9", 505)] {
        let answer = ask(&format!("GET /ping HTTP/{version}\r\nHost: x\r\n\r\n"));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{version}: {answer}");
    }
    for line in ["http/1.1", "HTTP/1.10", "HTTP/1.1 ", " HTTP/1.1", "HTTP/1", "HTTP/1.x"] {
        let answer = ask(&format!("GET /ping {line}\r\nHost: x\r\n\r\n"));
        assert!(answer.starts_with("HTTP/1.1 400"), "{line}: {answer}");
    }
}
