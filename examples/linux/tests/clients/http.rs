//! HTTP requests of curl, of Python's http.client, and hand-written ones.

use std::io::Write as _;
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use nanonsq_tests::{ServerOptions, eventually, peers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::pair::{SOON, Setting, tests_with};
use crate::raw::{Raw, Received};

tests_with!([Real, OurNode]: bodies_in_chunks, requests_of_curl_and_python);
tests_with!([Real, Ours]: odd_requests);

/// Sends a request and returns the status of the answer.
async fn ask(server: SocketAddr, request: &[u8]) -> u16 {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let (mut reads, mut writes) = stream.split();
    let mut received = vec![0; 12];
    // The server may not read a refused request to its end.
    let send = async {
        let _ = writes.write_all(request).await;
        std::future::pending::<()>().await;
    };
    let read = timeout(SOON, reads.read_exact(&mut received));
    tokio::select! {
        read = read => read.expect("an answer in time").expect("an answer"),
        () = send => unreachable!(),
    };
    let text = String::from_utf8_lossy(&received);
    text.strip_prefix("HTTP/1.").and_then(|it| it[2..5].parse().ok()).expect(&text)
}

async fn bodies_in_chunks(setting: Setting) {
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["c"]).await;
    let http = pair.node.http_address();
    let post = async |path: &str, chunks: &str| {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        ask(http, (head + chunks).as_bytes()).await
    };
    let depth = async || pair.channel_stat("t", "c", "depth").await;
    for (path, chunks, status, messages) in [
        ("/pub?topic=t", "2\r\nhe\r\n3;a=\"b\"\r\nllo\r\n0\r\n\r\n", 200, 1),
        ("/pub?topic=t", "2\r\nhi\r\n0\r\nA: b\r\n\r\n", 200, 1),
        ("/pub?topic=t", "0\r\n\r\n", 400, 0),
        ("/mpub?topic=t", "3\r\na\nb\r\n4\r\n\n\ncd\r\n0\r\n\r\n", 200, 3),
        ("/mpub?topic=t&binary=true", "9\r\n\0\0\0\x01\0\0\0\x03a\r\n2\r\nbc\r\n0\r\n\r\n", 200, 1),
        ("/topic/create?topic=u", "2\r\nhi\r\n0\r\n\r\n", 200, 0),
        ("/nowhere", "2\r\nhi\r\n0\r\n\r\n", 404, 0),
    ] {
        let before = depth().await;
        assert_eq!(post(path, chunks).await, status, "{path} {chunks:?}");
        eventually("the messages are there", SOON, async || depth().await == before + messages)
            .await;
    }
    // A message of many blocks, in pieces of all lengths.
    let body: String = (0..2000).map(|n| format!("{n},")).collect();
    let mut rest = &body[..];
    let mut chunks = String::new();
    for len in (1..60).cycle() {
        let (piece, behind) = rest.split_at(len.min(rest.len()));
        chunks += &format!("{:x}\r\n{piece}\r\n", piece.len());
        rest = behind;
        if piece.is_empty() {
            break;
        }
    }
    pair.node.create_topic("long").await;
    pair.node.create_channel("long", "c").await;
    assert_eq!(post("/pub?topic=long", &chunks).await, 200);
    let mut raw = Raw::subscribe(pair.node.tcp_address(), "long", "c", 1).await.unwrap();
    let Received::Message(message) = raw.next().await.unwrap() else { panic!("no message") };
    assert_eq!(String::from_utf8_lossy(&message.body), body);
}

async fn requests_of_curl_and_python(setting: Setting) {
    let pair = setting.start(ServerOptions::new()).await;
    pair.create("t", &["c"]).await;
    let http = pair.node.http_address();
    let depth = async || pair.channel_stat("t", "c", "depth").await;
    if let Some(curl) = peers::installed_or_skip("curl", "curl", setting.test) {
        let url = format!("http://{http}/pub?topic=t");
        let cookie = format!("Cookie: a={}", "b".repeat(5000));
        let mut child = Command::new(curl)
            .args(["--silent", "--max-time", "10", "-X", "POST", "-T", "-", "-H", &cookie, &url])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // curl does not know the length in advance.
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(b"hello ").unwrap();
        stdin.flush().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        stdin.write_all(b"world").unwrap();
        drop(stdin);
        assert_eq!(child.wait_with_output().unwrap().stdout, b"OK");
        eventually("the message of curl is there", SOON, async || depth().await == 1).await;
    }
    let Some(python) = peers::installed_or_skip("python3", "python3", setting.test) else { return };
    let script = "import http.client, sys\n\
        c = http.client.HTTPConnection(sys.argv[1], timeout=10)\n\
        for n in range(3):\n\
        \x20c.request('POST', '/mpub?topic=t', iter([b'a\\nb', b'c\\n', b'd']), \
        {f'X-{i}': 'v' * 100 for i in range(90)}, encode_chunked=True)\n\
        \x20r = c.getresponse()\n\
        \x20print(r.status, r.read().decode())\n";
    let before = depth().await;
    let output = Command::new(python).args(["-c", script, &http.to_string()]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "200 OK\n".repeat(3), "{output:?}");
    eventually("the messages of Python are there", SOON, async || depth().await == before + 9)
        .await;
}

/// Requests that the real servers and ours answer with the same status. `docs/src/differences.md`
/// lists the others.
async fn odd_requests(setting: Setting) {
    let pair = setting.start(ServerOptions::new()).await;
    let line = |line: &str| format!("{line}\r\nHost: x\r\n\r\n");
    let with = |headers: &str| format!("GET /ping HTTP/1.1\r\n{headers}\r\n");
    let mut cases = Vec::new();
    for (request, status) in [
        ("GET /ping HTTP/1.0", 200),
        ("GET /ping HTTP/1.2", 200),
        ("GET /ping HTTP/2.0", 505),
        ("GET /ping HTTP/0.9", 505),
        ("GET /ping HTTP/1.10", 400),
        ("GET /ping http/1.1", 400),
        ("GET /ping", 400),
        ("GET  /ping HTTP/1.1", 400),
        ("GET /ping HTTP/1.1 ", 400),
        ("OPTIONS * HTTP/1.1", 200),
        ("GET * HTTP/1.1", 405),
        ("OPTIONS /ping HTTP/1.1", 200),
        ("HEAD /ping HTTP/1.1", 405),
        ("get /ping HTTP/1.1", 405),
        ("G(T /ping HTTP/1.1", 400),
        ("CONNECT h:80 HTTP/1.1", 404),
        ("GET http://h/ping HTTP/1.1", 200),
        ("GET HTTPS://h:1/ping HTTP/1.1", 200),
        ("GET http:/ping HTTP/1.1", 200),
        ("GET http://h HTTP/1.1", 404),
        ("GET http://h?x=1 HTTP/1.1", 404),
        ("GET foo:bar HTTP/1.1", 404),
        ("GET ping HTTP/1.1", 400),
        ("GET /p%69ng HTTP/1.1", 200),
        ("GET /%zz HTTP/1.1", 400),
        ("GET /ping%00 HTTP/1.1", 404),
        ("GET /ping#x HTTP/1.1", 404),
        ("GET /ping?%zz;b HTTP/1.1", 200),
        ("POST /topic/create?topic=t&%zz HTTP/1.1", 400),
        ("POST /topic/create?topic=t&a;b HTTP/1.1", 400),
        ("GET /ping?\x7f HTTP/1.1", 400),
        ("GET /ping\0 HTTP/1.1", 400),
    ] {
        cases.push((line(request), status));
    }
    for (headers, status) in [
        ("", 400),
        ("Host:\r\n", 200),
        ("Host: x\r\nHost: x\r\n", 400),
        ("Host: a b\r\n", 400),
        ("Host: a/b\r\n", 400),
        ("Host: x\nA: b\n", 200),
        ("Host: x\r\nA: b\r\n c\r\n", 200),
        (" A: b\r\nHost: x\r\n", 400),
        ("Host: x\r\nAbc\r\n", 400),
        ("Host: x\r\nAbc : d\r\n", 400),
        ("Host: x\r\n: d\r\n", 400),
        ("Host: x\r\nA: b\0c\r\n", 400),
        ("Host: x\r\nA: b\rc\r\n", 400),
        ("Host: x\r\nA: ö\tb\r\n", 200),
        ("Host: x\r\nExpect: foo\r\n", 417),
        ("Host: x\r\nExpect: 100-continue\r\n", 200),
        ("Host: x\r\nContent-Length: 0\r\nContent-Length: 0\r\n", 200),
        ("Host: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n", 400),
        ("Host: x\r\nContent-Length: +0\r\n", 400),
        ("Host: x\r\nContent-Length:\r\n", 200),
        ("Host: x\r\nTransfer-Encoding: identity\r\n", 501),
        ("Host: x\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        ("Host: x\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 501),
        ("Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: x\r\n", 400),
    ] {
        cases.push((with(headers), status));
    }
    cases.push((with(&format!("Host: x\r\nCookie: {}\r\n", "a".repeat(3000))), 200));
    cases.push((with(&format!("Host: x\r\nCookie: {}\r\n", "a".repeat(500_000))), 200));
    cases.push((with(&format!("Host: x\r\n{}", "X: y\r\n".repeat(5000))), 200));
    cases.push((with(&format!("Host: x\r\nCookie: {}\r\n", "a".repeat(1_100_000))), 431));
    cases.push((line(&format!("GET /ping?{} HTTP/1.1", "a=b&".repeat(500))), 200));
    for (request, status) in &cases {
        for server in [pair.node.http_address(), pair.lookupd.http_address()] {
            let short: String = request.chars().take(100).collect();
            assert_eq!(ask(server, request.as_bytes()).await, *status, "{short:?}");
        }
    }
}
