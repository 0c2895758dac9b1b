use super::answer::{Framing, Head};
use super::route::Methods;
use super::*;
use crate::session::TransportError;
use crate::wire::Write;

mod body;
mod head;

/// A service: `/echo` answers with the body, `/list?n=3` with 3 elements of `element` bytes.
#[derive(Default)]
struct Echo {
    config: Config,
    ends: Vec<End>,
    /// How many bytes of a body are accepted in one call.
    takes: usize,
    /// The length of an element in bytes.
    element: usize,
    patience: Option<Span>,
    /// The longest body that is accepted.
    most: u32,
    begun: u32,
}

const ROUTES: &[Route<u8>] = &[
    Route { method: Method::Post, path: "/echo", to: 0 },
    Route { method: Method::Post, path: "/lines", to: 5 },
    Route { method: Method::Put, path: "/whole/", to: 1 },
    Route { method: Method::Get, path: "/whole/", to: 4 },
    Route { method: Method::Get, path: "/list", to: 2 },
    Route { method: Method::Get, path: "/ping", to: 3 },
    Route { method: Method::Post, path: "/nothing", to: 4 },
];

enum Task {
    Echo(Vec<u8>),
    Lines(Vec<u8>),
    List { left: u32, at: u32 },
    Ping,
    Nothing,
}

impl Service for Echo {
    type Task = Task;

    fn config(&self) -> &Config {
        &self.config
    }

    fn patience(&self) -> Span {
        self.patience.unwrap_or(self.config.body)
    }

    const PARAMS: &'static [&'static str] = &["n", "x"];

    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal> {
        Ok(match find(ROUTES, request)? {
            0 => Body::Pieces(self.most, "TOO_BIG"),
            1 => Body::Whole("TOO_LONG"),
            5 => Body::Lines(self.most, "LONG_LINE"),
            _ => Body::Ignore,
        })
    }

    fn begin(&mut self, _: Instant, request: &Request<'_>) -> Result<Task, Refusal> {
        self.begun += 1;
        Ok(match find(ROUTES, request)? {
            0 | 1 => Task::Echo(Vec::new()),
            2 => {
                let n = request.param("n").and_then(|n| n.number());
                let left = n.ok_or(Refusal::bad_request("BAD_N"))?;
                Task::List { left, at: 0 }
            }
            3 => Task::Ping,
            5 => Task::Lines(Vec::new()),
            _ => Task::Nothing,
        })
    }

    fn body(&mut self, _: Instant, task: &mut Task, bytes: &[u8]) -> Result<usize, Refusal> {
        assert!(!bytes.is_empty());
        if let Task::Lines(body) = task {
            if self.takes == 0 {
                return Ok(0);
            }
            assert!(!bytes.contains(&b'\n'));
            body.extend([b"[", bytes, b"]"].concat());
            return if bytes == b"!" {
                Err(Refusal::new(Status::ContentTooLarge, "NO"))
            } else {
                Ok(bytes.len())
            };
        }
        let Task::Echo(body) = task else { panic!("not asked for") };
        let taken = bytes.len().min(self.takes);
        body.extend_from_slice(&bytes[..taken]);
        if body.contains(&b'!') {
            return Err(Refusal::new(Status::ContentTooLarge, "NO"));
        }
        Ok(taken)
    }

    fn answer(&mut self, _: Instant, task: &mut Task) -> Result<Content, Refusal> {
        match task {
            Task::Echo(body) if body.is_empty() => Err(Refusal::bad_request("EMPTY")),
            Task::Echo(_) | Task::Lines(_) => Ok(Content::Text),
            Task::List { .. } => Ok(Content::Json),
            Task::Ping => Ok(Content::Plain),
            Task::Nothing => Ok(Content::Nothing),
        }
    }

    fn write(&mut self, _: Instant, task: &mut Task, piece: &mut Piece<'_>) -> bool {
        match task {
            Task::Echo(body) | Task::Lines(body) => {
                while !body.is_empty() {
                    if !piece.put(|w| w.write_all(&body[..1])) {
                        return false;
                    }
                    body.remove(0);
                }
            }
            Task::List { left, at } => {
                while left > at {
                    let letter = b'a' + (*at % 26) as u8;
                    if !piece.put(|w| w.write_all(&vec![letter; self.element])) {
                        return false;
                    }
                    *at += 1;
                }
            }
            Task::Ping => {
                piece.put(|w| w.write_all(b"OK"));
            }
            Task::Nothing => panic!("nothing to write"),
        }
        true
    }

    fn end(&mut self, _: Instant, _: Option<&mut Task>, how: End) {
        self.ends.push(how);
    }
}

/// A connection, its service and the time.
struct World {
    connection: Connection<Task>,
    service: Echo,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let service = Echo { takes: usize::MAX, element: 100, most: 60_000, ..Echo::default() };
        let connection = Connection::zero(Task::Ping);
        let mut world = Self { connection, service, now: Instant::ZERO };
        world.connection.init();
        assert_eq!(world.connection.link(), Link::Down);
        world.connection.open(world.now, &mut world.service);
        assert_eq!(world.connection.link(), Link::Up);
        world
    }

    /// Offers bytes until none are consumed any more, and returns all bytes written; each write
    /// takes `write` bytes.
    #[track_caller]
    fn exchange(&mut self, mut bytes: &[u8], write: usize) -> String {
        let mut all = Vec::new();
        for _ in 0..100_000 {
            let taken = self.connection.take(self.now, bytes, &mut self.service);
            bytes = &bytes[taken..];
            let written = self.write(write);
            if taken == 0 && written.is_empty() {
                break;
            }
            all.extend(written);
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    fn write(&mut self, most: usize) -> Vec<u8> {
        let lent = self.connection.transmit(self.now, &mut self.service);
        let mut bytes = [lent.head, lent.body].concat();
        assert!(bytes.len() <= BUFFER);
        bytes.truncate(most);
        self.connection.sent(self.now, bytes.len(), &mut self.service);
        bytes
    }

    #[track_caller]
    fn send(&mut self, text: &str) -> String {
        self.exchange(text.as_bytes(), usize::MAX)
    }

    fn after(&mut self, span: Span) -> Link {
        self.now = self.now.after(span);
        self.connection.tick(self.now, &mut self.service);
        self.connection.link()
    }
}

const JSON: &str = "Content-Type: application/json; charset=utf-8\r\n\
                    X-NSQ-Content-Type: nsq; version=1.0\r\n";

fn refusal(line: &str, code: &str, closes: bool) -> String {
    let len = code.len() + 14;
    let close = if closes { "Connection: close\r\n" } else { "" };
    format!(
        "HTTP/1.1 {line}\r\n{JSON}Content-Length: {len}\r\n{close}\r\n{{\"message\":\"{code}\"}}"
    )
}

const OK: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain; charset=utf-8\r\n\
                  Content-Length: 2\r\n\r\nOK";

/// Returns the body of an answer, its chunks joined.
#[track_caller]
fn body(answer: &str) -> String {
    let (head, mut rest) = answer.split_once("\r\n\r\n").unwrap();
    if !head.contains("Transfer-Encoding: chunked") {
        return rest.to_owned();
    }
    assert!(!head.contains("Content-Length"));
    let mut body = String::new();
    loop {
        let (len, behind) = rest.split_once("\r\n").unwrap();
        let len = usize::from_str_radix(len, 16).unwrap();
        body.push_str(&behind[..len]);
        rest = behind[len..].strip_prefix("\r\n").unwrap();
        if len == 0 {
            assert_eq!(rest, "");
            return body;
        }
    }
}

/// Sends a request at once, and a byte at a time: the answer has to be the same.
#[track_caller]
fn ask(request: &str) -> String {
    let whole = World::new().send(request);
    if request.len() < 5000 {
        let mut world = World::new();
        let bytes = request.bytes().map(|byte| world.exchange(&[byte], usize::MAX));
        assert_eq!(bytes.collect::<String>(), whole, "{request:?}");
    }
    whole
}

#[test]
fn requests_one_after_the_other() {
    let mut world = World::new();
    let ping = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    assert_eq!(world.send(ping), OK);
    assert_eq!(world.send(ping), OK);
    // With the empty line that some clients send behind a body.
    assert_eq!(world.send(&format!("\r\n{ping}")), OK);
    // Pipelined.
    assert_eq!(world.send(&ping.repeat(5)), OK.repeat(5));
    let nothing = "POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n123";
    let empty =
        "HTTP/1.1 200 OK\r\nX-NSQ-Content-Type: nsq; version=1.0\r\nContent-Length: 0\r\n\r\n";
    assert_eq!(world.send(nothing), empty);
    assert_eq!(world.service.ends, [End::Answered; 9]);
    assert_eq!(world.connection.link(), Link::Up);
    let last = world.send("GET /ping HTTP/1.1\r\nHost: x\r\nConnection: Keep-Alive, CLOSE\r\n\r\n");
    assert_eq!(last, OK.replace("\r\n\r\n", "\r\nConnection: close\r\n\r\n"));
    assert_eq!(world.connection.link(), Link::Close);
    world.connection.closed(world.now, Closed::Local, &mut world.service);
    assert_eq!(world.connection.link(), Link::Down);
    assert_eq!(world.connection.deadline(), Instant::NEVER);
}

#[test]
fn split_anywhere() {
    let script = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello\
                  GET /list?n=20 HTTP/1.1\nHost: x\n\nGET /nope HTTP/1.1\r\nHost: x\r\nX: y\r\n\r\n\
                  PUT /whole/x HTTP/1.1\r\nHost: x\r\ncontent-length:2\r\n\r\nhi";
    let whole = World::new().send(script);
    assert!(whole.ends_with("hi") && whole.contains("hello") && whole.contains("NOT_FOUND"));
    for at in 0..=script.len() {
        let mut world = World::new();
        let (front, back) = script.split_at(at);
        assert_eq!(world.send(front) + &world.send(back), whole, "split at {at}");
    }
    // A byte at a time, both ways.
    let mut world = World::new();
    let bytes = script.bytes().map(|byte| world.exchange(&[byte], 1));
    assert_eq!(bytes.collect::<String>(), whole);
}

#[test]
fn long_answers_come_in_chunks() {
    for element in [1, 100, PIECE_MIN] {
        for n in [0, 1, 7, 8, 9, 100] {
            let mut world = World::new();
            world.service.element = element;
            let answer = world.send(&format!("GET /list?n={n} HTTP/1.1\r\nHost: x\r\n\r\n"));
            let expected: String =
                (0..n).flat_map(|at| vec![char::from(b'a' + at % 26); element]).collect();
            assert_eq!(body(&answer), expected);
            let is_long = usize::from(n) * element > PIECE_MIN;
            assert_eq!(answer.contains("chunked"), is_long, "{n} of {element}");
            assert_eq!(world.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"), OK);
            // To the connection's end.
            let old = world.send(&format!("GET /list?n={n} HTTP/1.0\r\n\r\n"));
            assert!(
                old.starts_with("HTTP/1.0 200 OK\r\n") && old.contains("Connection: close\r\n")
            );
            assert_eq!(old.contains("Content-Length"), !is_long);
            assert_eq!(body(&old), expected);
            assert_eq!(world.connection.link(), Link::Close);
        }
    }
}

#[test]
fn an_element_longer_than_a_piece_ends_the_connection() {
    let mut world = World::new();
    world.service.element = PIECE_MIN + 1;
    world.send("GET /list?n=2 HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(world.connection.link(), Link::Close);
    assert_eq!(world.service.ends, [End::Lost]);
}

#[test]
fn refusals_of_the_service_keep_the_connection() {
    let mut world = World::new();
    let bad = refusal("400 Bad Request", "BAD_N", false);
    assert_eq!(world.send("GET /list HTTP/1.1\r\nHost: x\r\n\r\n"), bad);
    let not_found = refusal("404 Not Found", "NOT_FOUND", false);
    assert_eq!(world.send("GET /lists HTTP/1.1\r\nHost: x\r\n\r\n"), not_found);
    let empty = refusal("400 Bad Request", "EMPTY", false);
    assert_eq!(world.send("POST /echo HTTP/1.1\r\nHost: x\r\n\r\n"), empty);
    assert_eq!(world.send("PUT /whole/x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"), empty);
    // The body is discarded first.
    let with_body = "POST /list HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
    let answer = world.send(with_body);
    assert!(answer.contains("405 Method Not Allowed\r\nAllow: GET, OPTIONS\r\n"), "{answer}");
    assert_eq!(
        world.send("POST /nope HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody"),
        not_found
    );
    // Refused in the middle of the body.
    let no = refusal("413 Request Entity Too Large", "NO", false);
    assert_eq!(world.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n!"), "");
    assert_eq!(world.send("dy "), no);
    assert_eq!(world.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"), OK);
    let bad = End::Refused(Status::BadRequest);
    let not_found = End::Refused(Status::NotFound);
    let method = End::Refused(Status::MethodNotAllowed);
    let long = End::Refused(Status::ContentTooLarge);
    let expected = [bad, not_found, bad, bad, method, not_found, long, End::Answered];
    assert_eq!(world.service.ends, expected);
}

fn chunked(path: &str, chunks: &str) -> String {
    let method = if path == "/whole/x" { "PUT" } else { "POST" };
    format!("{method} {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")
}

const PING: &str = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_slow_client_may_be_closed_when_another_one_waits() {
    let ms = |ms| Span::from_millis(ms);
    let mut world = World::new();
    let at = |world: &World| world.connection.evictable();
    // No request has begun.
    assert_eq!(at(&world), world.now.after(ms(500)));
    world.after(ms(400));
    world.send("\r\n");
    assert_eq!(at(&world), Instant::from_millis(500));
    // A head, a byte at a time: each byte gives a millisecond.
    world.send("G");
    let begun = world.now.after(SLOW);
    assert_eq!(at(&world), begun);
    for _ in 0..10 {
        world.after(ms(100));
        world.send("E");
    }
    assert_eq!(at(&world), begun.after(ms(10)));
    // A client that is fast enough always has its two seconds.
    world.send(&"E".repeat(1200));
    assert_eq!(at(&world), world.now.after(SLOW));

    // Between requests.
    let mut world = World::new();
    world.after(ms(300));
    world.send(PING);
    assert_eq!(at(&world), world.now.after(ms(100)));

    // A client that is held is not slow.
    world.service.takes = 0;
    let post = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi";
    world.connection.take(world.now, post.as_bytes(), &mut world.service);
    assert_eq!(at(&world), Instant::NEVER);
    world.after(ms(3000));
    assert_eq!(at(&world), Instant::NEVER);
    world.service.takes = 1;
    world.connection.take(world.now, b"h", &mut world.service);
    assert_eq!(at(&world), world.now.after(SLOW));
    assert_eq!(world.connection.deadline(), Instant::from_millis(30_300), "the body's deadline");

    // The client does not read.
    let mut world = World::new();
    let list = b"GET /list?n=100 HTTP/1.1\r\nHost: x\r\n\r\n";
    world.connection.take(world.now, list, &mut world.service);
    let begun = world.now;
    for _ in 0..5 {
        world.after(ms(100));
        world.write(10);
    }
    assert_eq!(at(&world), begun.after(SLOW).after(ms(50)));
    // The answer was written.
    let mut world = World::new();
    world.send("GET /ping HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!((world.connection.link(), at(&world)), (Link::Close, Instant::ZERO));
    world.connection.closed(world.now, Closed::Local, &mut world.service);
    assert_eq!(at(&world), Instant::NEVER);
}

#[test]
fn bodies_at_their_bounds() {
    let post = |path: &str, len: usize| {
        let method = if path == "/whole/x" { "PUT" } else { "POST" };
        format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len}\r\n\r\n{}",
            "b".repeat(len)
        )
    };
    let most = DISCARD_MAX as usize;
    assert!(World::new().send(&post("/nothing", most)).starts_with("HTTP/1.1 200"));
    let long = refusal("413 Request Entity Too Large", "BODY_TOO_BIG", true);
    assert_eq!(World::new().send(&post("/nothing", most + 1)), long);
    assert!(body(&World::new().send(&post("/whole/x", BUFFER))).len() == BUFFER);
    let long = refusal("413 Request Entity Too Large", "TOO_LONG", false);
    assert_eq!(World::new().send(&post("/whole/x", BUFFER + 1)), long);
    // Refused anyway, but too long to be discarded.
    let not_found = refusal("404 Not Found", "NOT_FOUND", true);
    assert_eq!(World::new().send(&post("/nope", most + 1)), not_found);
    let endless = "POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n";
    assert!(World::new().send(endless).starts_with("HTTP/1.1 413"));
    // A body in pieces has no bound but the service's.
    assert_eq!(body(&World::new().send(&post("/echo", 60_000))).len(), 60_000);
    let long = refusal("413 Request Entity Too Large", "TOO_BIG", true);
    assert_eq!(World::new().send(&post("/echo", 60_001)), long);
}

#[test]
fn leave_to_send_a_body() {
    let head =
        "POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-Continue\r\nContent-Length: 2\r\n\r\n";
    let leave = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut world = World::new();
    assert_eq!(world.send(head), leave);
    assert!(world.send("hi").ends_with("\r\n\r\nhi"));
    // The client does not wait.
    let answer = world.send(&format!("{head}hi"));
    assert!(answer.starts_with(leave) && answer.ends_with("hi"), "{answer}");
    // Refused instead of `100 Continue`: the body may arrive, or not.
    let refused = world.send(&head.replace("/echo", "/nope"));
    assert_eq!(refused, refusal("404 Not Found", "NOT_FOUND", true));
    // Not sent for HTTP/1.0, nor without a body.
    let mut world = World::new();
    assert_eq!(world.send(&head.replace("1.1", "1.0")), "");
    let mut world = World::new();
    let nothing = world.send(&head.replace("Length: 2", "Length: 0"));
    assert_eq!(nothing, refusal("400 Bad Request", "EMPTY", false));
}

#[test]
fn a_client_is_held_while_there_is_no_room() {
    let mut world = World::new();
    world.service.takes = 0;
    let request = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbodyGET";
    let taken = world.connection.take(world.now, request, &mut world.service);
    assert_eq!(taken, request.len() - 7);
    let mut rest = &request[taken..];
    assert_eq!(world.connection.take(world.now, rest, &mut world.service), 0);
    world.service.takes = 3;
    let taken = world.connection.take(world.now, rest, &mut world.service);
    // The whole body, in two calls, and no more: the answer comes first.
    assert_eq!(taken, 4);
    rest = &rest[taken..];
    assert_eq!(world.connection.take(world.now, rest, &mut world.service), 0);
    assert!(world.send("").ends_with("body"));
    assert_eq!(world.connection.take(world.now, rest, &mut world.service), 3);

    // A client is held for a limited time.
    let mut world = World::new();
    world.service.takes = 0;
    world.connection.take(world.now, request, &mut world.service);
    assert_eq!(world.connection.deadline(), world.now.after(world.service.config.body));
    world.after(world.service.config.body);
    assert_eq!(world.send(""), refusal("503 Service Unavailable", "BUSY", true));
    assert_eq!(world.service.ends, [End::Refused(Status::Unavailable)]);
}

#[test]
fn lines() {
    let post = |body: &str| {
        format!("POST /lines HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let longest = "y".repeat(BUFFER);
    for (text, expected) in [
        ("", ""),
        ("\n\n", ""),
        ("a", "[a]"),
        ("a\n", "[a]"),
        ("\na\n\nbc\r\nd", "[a][bc\r][d]"),
        (&format!("{longest}\n{longest}"), &format!("[{longest}][{longest}]")),
    ] {
        assert_eq!(body(&World::new().send(&post(text))), expected);
        // A byte at a time.
        let mut world = World::new();
        let written: String =
            post(text).bytes().map(|byte| world.exchange(&[byte], usize::MAX)).collect();
        assert_eq!(body(&written), expected);
        // Held before every line, with the bytes behind it as well.
        let mut world = World::new();
        let request = post(text) + "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
        let (mut rest, mut written) = (request.as_bytes(), String::new());
        while !rest.is_empty() {
            for takes in [0, 0, 1] {
                world.service.takes = takes;
                let piece = &rest[..rest.len().min(7)];
                let taken = world.connection.take(world.now, piece, &mut world.service);
                rest = &rest[taken..];
                written += &world.send("");
            }
        }
        let (answer, ping) = written.split_at(written.len() - OK.len());
        assert_eq!((body(answer), ping), (expected.to_owned(), OK), "{text:?}");
    }
    // Too long, with or without an end; refused by the service. The rest is discarded.
    let ping = "GET /ping HTTP/1.1\r\nHost: x\r\n\r\n";
    for (text, code) in [
        (&format!("{longest}y"), "LONG_LINE"),
        (&format!("a\n{longest}y\nb"), "LONG_LINE"),
        (&"a\n!\nb\nc".to_owned(), "NO"),
        (&"a\n!".to_owned(), "NO"),
    ] {
        let refused = refusal("413 Request Entity Too Large", code, false);
        let mut world = World::new();
        assert_eq!(world.send(&(post(text) + ping)), refused.clone() + OK);
        let mut world = World::new();
        let bytes = post(text) + ping;
        let written: String = bytes.bytes().map(|byte| world.exchange(&[byte], 9)).collect();
        assert_eq!(written, refused + OK);
        assert_eq!(world.service.ends.len(), 2);
    }
    // Held as long as the service allows, each time anew, but no longer than a body may take.
    let mut world = World::new();
    world.service.patience = Some(Span::from_secs(4));
    let request = post("a\nb\nc\nd\ne\nf\ng\nh\ni\n");
    let mut rest = request.as_bytes();
    for _ in 0..9 {
        world.service.takes = 0;
        rest = &rest[world.connection.take(world.now, rest, &mut world.service)..];
        assert_eq!(world.connection.link(), Link::Up);
        world.after(Span::from_secs(3));
        world.service.takes = 1;
        let taken = world.connection.take(world.now, &rest[..1], &mut world.service);
        assert_eq!(taken, 1);
        rest = &rest[taken..];
    }
    assert!(world.send("").ends_with("[a][b][c][d][e][f][g][h][i]"));
    let mut world = World::new();
    world.service.patience = Some(Span::from_secs(4));
    world.service.takes = 0;
    world.connection.take(world.now, request.as_bytes(), &mut world.service);
    assert_eq!(world.connection.deadline(), world.now.after(Span::from_secs(4)));
    world.after(Span::from_secs(4));
    assert_eq!(world.send(""), refusal("503 Service Unavailable", "BUSY", true));
}

#[test]
fn time_runs_out() {
    let config = Config::new();
    // Between requests.
    let mut world = World::new();
    assert_eq!(world.after(Span::from_millis(config.idle.as_millis() - 1)), Link::Up);
    assert_eq!(world.after(Span::from_millis(1)), Link::Close);
    assert_eq!(world.after(config.close), Link::Close);
    assert_eq!(world.connection.deadline(), world.now, "due until the driver aborts");
    assert_eq!(world.service.ends, []);

    // In a head, also if bytes arrive all the time, after any number of empty lines.
    let mut world = World::new();
    world.after(Span::from_secs(1));
    world.send("\r\n");
    for _ in 0..10 {
        world.send("G");
        world.after(Span::from_secs(1));
    }
    assert_eq!(world.send(""), refusal("408 Request Timeout", "TIMEOUT", true));
    assert_eq!(world.after(config.linger), Link::Close);

    // In a body.
    let mut world = World::new();
    world.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n");
    for _ in 0..30 {
        assert_eq!(world.send("b"), "");
        world.after(Span::from_secs(1));
    }
    assert_eq!(world.send(""), refusal("408 Request Timeout", "TIMEOUT", true));
    assert_eq!(world.service.ends, [End::Refused(Status::RequestTimeout)]);

    // The client does not read, or hardly.
    let mut world = World::new();
    let request = b"GET /list?n=100 HTTP/1.1\r\nHost: x\r\n\r\n";
    world.connection.take(world.now, request, &mut world.service);
    for _ in 0..9 {
        assert_eq!(world.write(1).len(), 1);
        assert_eq!(world.after(Span::from_secs(1)), Link::Up);
    }
    assert_eq!(world.after(Span::from_secs(1)), Link::Close);
    assert_eq!(world.write(usize::MAX), b"");
    assert_eq!(world.service.ends, [End::Lost]);
}

#[test]
fn a_connection_that_breaks_leaves_nothing_behind() {
    let script =
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /list?n=20 HTTP/1.1\nHost: x\n\n";
    for at in 0..script.len() {
        for write in [0, 1, usize::MAX] {
            let mut world = World::new();
            let mut rest = &script[..at];
            for _ in 0..3 {
                let taken = world.connection.take(world.now, rest, &mut world.service);
                rest = &rest[taken..];
                world.write(write);
            }
            let broken = Closed::Transport(TransportError::Reset);
            world.connection.closed(world.now, broken, &mut world.service);
            assert_eq!(world.write(usize::MAX), b"", "cut at {at}");
            assert!(world.connection.task.is_none());
            world.connection.open(world.now, &mut world.service);
            assert_eq!(world.send("GET /ping HTTP/1.1\r\nHost: x\r\n\r\n"), OK, "cut at {at}");
        }
    }
}

#[test]
fn garbage() {
    let good =
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello\
                 GET /list?n=30&x=%20 HTTP/1.1\r\nHost: x\r\n\r\nGET /ping HTTP/1.0\r\n\r\n";
    let mut seed = 7u32;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) as usize % below
    };
    let mut answers = 0;
    for _ in 0..20_000 {
        let mut bytes = good.to_vec();
        for _ in 0..random(4) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = random(256) as u8,
                1 => bytes.truncate(at + 1),
                _ => bytes.insert(at, b" %\n\r:;?&/0"[random(10)]),
            }
        }
        let mut world = World::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(1 + random(rest.len()));
            rest = behind;
            let written = world.exchange(piece, 1 + random(2000));
            answers += usize::from(written.contains("HTTP/1."));
            if random(9) == 0 {
                world.after(Span::from_secs(random(20) as u32));
            }
        }
        for _ in 0..5 {
            world.after(Span::from_secs(31));
            world.send("");
        }
        // However the connection was left, it ends.
        assert_eq!(world.connection.link(), Link::Close);
    }
    assert!(answers > 20_000, "{answers}");
}

#[test]
fn the_longest_head_has_room() {
    let all = [Method::Get, Method::Post, Method::Put, Method::Options];
    let head = Head {
        status: Status::HeadTooLarge,
        content: Content::Json,
        allow: all.into_iter().fold(Methods::NONE, Methods::with),
        is_old: false,
        closes: true,
        framing: Framing::Chunked,
    };
    let mut buf = [0; BUFFER];
    let mut piece = Piece::new(&mut buf);
    head.put(&mut piece);
    answer::put_chunk_len(&mut piece, 4095);
    assert!(piece.len() > 200 && piece.len() <= FRONT, "{}", piece.len());
    let long = Head { framing: Framing::Length(PIECE_MIN), ..head };
    let mut piece = Piece::new(&mut buf);
    long.put(&mut piece);
    assert!(piece.len() <= FRONT);
}

#[test]
fn ram() {
    assert!(size_of::<Connection<()>>() <= BUFFER + 144, "{}", size_of::<Connection<()>>());
}
