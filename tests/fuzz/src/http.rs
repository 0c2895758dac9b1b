//! The server side of HTTP with a service that does a little of everything: for any requests, in
//! any pieces, the responses are well-formed and the same.

use nanonsq_core::http::{
    Body, Config, Connection, Content, End, Method, PATH_MAX, Piece, Refusal, Request, Route,
    Service, Status, VALUE_MAX, find,
};
use nanonsq_core::session::{Closed, Fault, Link, Session, Transmit};
use nanonsq_core::time::Instant;
use nanonsq_core::wire::Write as _;

use crate::feature;
use crate::input::{Input, pieces};
use crate::reference::http::Target;
use crate::reference::names;
use crate::serving::{self, Answers, converse, play};
use crate::session::Machine;

const CONNECTIONS: usize = 2;

const REQUESTS: &[&[u8]] = &[
    b"GET /ping HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /ping HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello",
    b"POST /echo?a=%20b+c HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 30\r\n\r\n",
    b"POST /lines HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\none\n\ntwo\n",
    b"PUT /whole/one HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nall",
    b"PUT /whole/two HTTP/1.1\r\nHost: x\r\nContent-Length: 2000\r\n\r\n",
    b"GET /list?n=3 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /list?n=40 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /list?n=40 HTTP/1.0\r\n\r\n",
    b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 20\r\nConnection: close\r\n\r\nabc",
    b"GET /lines HTTP/1.1\r\nHost: x\r\n\r\n",
    b"OPTIONS /echo HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"5;a=b\r\nhello\r\n0\r\n\r\n",
    b"0\r\nA: b\r\n\r\n",
    b"POST /lines HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\na\nb\r\n",
    b"GET /ping HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n",
    b"GET http://h/ping?a=%20 HTTP/1.1\r\nHost: x\r\nExpect: a\r\n b\r\n\r\n",
    b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 4294967296\r\n\r\n",
    b"0123456789012345678901234567890123456789!\n",
];

/// A service that responds according to the path and reads bodies in pieces.
#[derive(Default)]
struct Odd {
    config: Config,
    begun: u32,
    ended: u32,
    /// Bodies are not accepted.
    full: bool,
}

enum Task {
    Bytes(Vec<u8>),
    List { left: u32 },
    Ping,
    Nothing,
}

const fn route(method: Method, path: &'static str, to: u8) -> Route<u8> {
    Route { method, path, to }
}

const ROUTES: &[Route<u8>] = &[
    route(Method::Post, "/echo", 0),
    route(Method::Post, "/lines", 1),
    route(Method::Put, "/whole/", 2),
    route(Method::Get, "/list", 3),
    route(Method::Get, "/ping", 4),
    route(Method::Post, "/nothing", 5),
];

impl Service for Odd {
    type Task = Task;

    fn config(&self) -> &Config {
        &self.config
    }

    const PARAMS: &'static [&'static str] = &["n", "a"];

    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal> {
        let to = find(ROUTES, request)?;
        feature(("to", to, request.body_len().map(|len| len.min(9))));
        Ok(match to {
            0 => Body::Pieces(10_000, "TOO_BIG"),
            1 => Body::Lines(10_000, "LONG_LINE"),
            2 => Body::Whole("TOO_LONG"),
            _ => Body::Ignore,
        })
    }

    fn begin(&mut self, _: Instant, request: &Request<'_>) -> Result<Task, Refusal> {
        request.check_query().map_err(|_| Refusal::bad_request("INVALID_REQUEST"))?;
        let done = match find(ROUTES, request)? {
            0..3 => Task::Bytes(Vec::new()),
            3 => {
                let given = request.param("n").and_then(|n| n.number());
                Task::List { left: given.ok_or(Refusal::bad_request("BAD_N"))?.min(2000) }
            }
            4 => Task::Ping,
            _ => Task::Nothing,
        };
        self.begun += 1;
        Ok(done)
    }

    fn body(&mut self, _: Instant, task: &mut Task, bytes: &[u8]) -> Result<usize, Refusal> {
        assert!(!bytes.is_empty(), "a piece of a body is not empty");
        let Task::Bytes(body) = task else { panic!("a body that was not requested") };
        if bytes.contains(&b'!') {
            return Err(Refusal::new(Status::ContentTooLarge, "NO"));
        }
        if self.full {
            return Ok(0);
        }
        body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn answer(&mut self, _: Instant, task: &mut Task) -> Result<Content, Refusal> {
        match task {
            Task::Bytes(body) if body.is_empty() => Err(Refusal::bad_request("EMPTY")),
            Task::Bytes(_) | Task::List { .. } => Ok(Content::Text),
            Task::Ping => Ok(Content::Plain),
            Task::Nothing => Ok(Content::Nothing),
        }
    }

    fn write(&mut self, _: Instant, task: &mut Task, piece: &mut Piece<'_>) -> bool {
        match task {
            Task::Bytes(body) => {
                while let Some(&byte) = body.first() {
                    if !piece.put(|w| w.write_all(&[byte])) {
                        return false;
                    }
                    body.remove(0);
                }
            }
            Task::List { left } => {
                while *left > 0 {
                    if !piece.put(|w| w.write_all(&[b'x'; 100])) {
                        return false;
                    }
                    *left -= 1;
                }
            }
            Task::Ping => assert!(piece.put(|w| w.write_all(b"OK")), "room for two bytes"),
            Task::Nothing => panic!("nothing to write"),
        }
        true
    }

    fn end(&mut self, _: Instant, task: Option<&mut Task>, how: End) {
        self.ended += u32::from(task.is_some());
        assert!(self.ended <= self.begun, "each request ends once");
        feature(std::mem::discriminant(&how));
    }
}

struct Server {
    connections: [Connection<Task>; CONNECTIONS],
    service: Odd,
    answers: [Answers; CONNECTIONS],
}

/// A connection as a session.
struct ServerSession<'s> {
    connection: &'s mut Connection<Task>,
    service: &'s mut Odd,
}

impl Session for ServerSession<'_> {
    fn link(&self) -> Link {
        self.connection.link()
    }

    fn open(&mut self, now: Instant) {
        self.connection.open(now, self.service);
    }

    fn receive(&mut self, _: Instant, _: &[u8]) -> Result<(), Fault> {
        panic!("servers receive with take()")
    }

    fn take(&mut self, now: Instant, bytes: &[u8]) -> usize {
        self.connection.take(now, bytes, self.service)
    }

    fn transmit(&mut self, now: Instant) -> Transmit<'_> {
        self.connection.transmit(now, self.service)
    }

    fn sent(&mut self, now: Instant, n: usize) {
        self.connection.sent(now, n, self.service);
    }

    fn deadline(&self) -> Instant {
        self.connection.deadline()
    }

    fn tick(&mut self, now: Instant) {
        self.connection.tick(now, self.service);
    }

    fn closed(&mut self, now: Instant, why: Closed) {
        self.connection.closed(now, why, self.service);
    }
}

impl Machine for Server {
    fn sessions(&self) -> usize {
        CONNECTIONS
    }

    fn with(&mut self, index: usize, f: &mut dyn FnMut(&mut dyn Session)) {
        let connection = &mut self.connections[index];
        f(&mut ServerSession { connection, service: &mut self.service });
    }

    fn pieces(&self, _: usize) -> &'static [&'static [u8]] {
        REQUESTS
    }

    fn act(&mut self, _: Instant, _: &mut Input<'_>) {
        self.service.full = !self.service.full;
    }

    fn opened(&mut self, index: usize) {
        self.answers[index] = Answers::default();
    }

    fn received(&mut self, index: usize, bytes: &[u8]) {
        self.answers[index].received(bytes);
    }

    fn wrote(&mut self, index: usize, bytes: &[u8]) {
        self.answers[index].wrote(bytes);
    }

    fn check(&mut self, _: Instant) {
        let open = self.connections.iter().filter(|it| it.link() != Link::Down).count();
        let under_way = self.service.begun - self.service.ended;
        assert!(under_way as usize <= open, "{under_way} requests on {open} connections");
    }
}

fn connection<T>(task: T) -> Connection<T> {
    let mut connection = Connection::zero(task);
    connection.init();
    connection
}

/// Plays the operations of an input, or compares requests in one piece and split.
pub(crate) fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    if kind < 128 {
        let connections = [(); CONNECTIONS].map(|()| connection(Task::Nothing));
        let answers = [(); CONNECTIONS].map(|()| Answers::default());
        let mut server = Server { connections, service: Odd::default(), answers };
        play(&mut server, &mut Input::new(data));
        assert_eq!(server.service.begun, server.service.ended, "all requests ended");
        return;
    }
    let whole = ask(&mut std::iter::once(data));
    let split = ask(&mut pieces(data, kind));
    assert_eq!(whole, split, "splits show, seed {kind}");
}

fn ask(requests: &mut dyn Iterator<Item = &[u8]>) -> String {
    let mut service = Odd::default();
    let mut connection = connection(Task::Nothing);
    let response = converse(
        &mut |f| f(&mut ServerSession { connection: &mut connection, service: &mut service }),
        Instant::from_millis(5),
        requests,
    );
    for line in String::from_utf8_lossy(&response).split("\r\n") {
        feature(line.get(..20).unwrap_or(line).replace(|c: char| c.is_ascii_digit(), "0"));
    }
    response.escape_ascii().to_string()
}

/// A service that checks the request's target and refuses it.
struct Checker<'t> {
    config: Config,
    text: &'t str,
    called: bool,
}

impl Service for Checker<'_> {
    type Task = ();

    fn config(&self) -> &Config {
        &self.config
    }

    const PARAMS: &'static [&'static str] = &["n", "topic", "", " "];

    fn wants(&self, request: &Request<'_>) -> Result<Body, Refusal> {
        assert_eq!((request.method(), request.body_len()), (Method::Get, Some(0)));
        Ok(Body::Ignore)
    }

    fn begin(&mut self, _: Instant, request: &Request<'_>) -> Result<(), Refusal> {
        self.called = true;
        let target = Target::new(self.text).expect("a target");
        let path = &target.path[..];
        let is_short = path.len() <= PATH_MAX;
        match std::str::from_utf8(path) {
            Ok(path) => {
                assert_eq!(request.is_for(path), is_short, "{path}");
                assert!(!request.is_for(&format!("{path}/")), "{path}");
            }
            Err(_) => assert!(!request.is_for(&String::from_utf8_lossy(path))),
        }
        if is_short {
            let name = request.name_after("/a/").map(|value| value.bytes());
            assert_eq!(name, target.name_after("/a/"));
        }
        let params = target.params();
        assert_eq!(request.check_query().is_ok(), params.is_some());
        feature((path.len().min(9), params.as_ref().map(Vec::len)));
        let Some(params) = params else { return Err(Refusal::bad_request("QUERY")) };
        for name in Self::PARAMS {
            let value = request.param(name);
            let expected = params.iter().find(|(key, _)| key == name.as_bytes());
            let expected = expected.map(|(_, value)| &value[..value.len().min(VALUE_MAX + 1)]);
            assert_eq!(value.map(|value| value.bytes()), expected, "{name}");
            let (Some(value), Some(expected)) = (value, expected) else { continue };
            assert_eq!(value.topic().is_ok(), names::is_name(expected), "{value:?}");
            assert_eq!(
                value.channel().ok().map(|it| it.to_string()),
                value.topic().ok().map(|it| it.to_string())
            );
            let text = std::str::from_utf8(expected).unwrap_or("no number");
            let digits = text.len() <= VALUE_MAX && text.bytes().all(|it| it.is_ascii_digit());
            assert_eq!(value.number(), text.parse().ok().filter(|_: &u32| digits), "{value:?}");
            let bool = match text {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
                _ => None,
            };
            assert_eq!(value.bool(), bool, "{value:?}");
            feature((name, value.topic().is_ok(), value.number().is_some(), bool));
        }
        Err(Refusal::bad_request("HEARD"))
    }

    fn answer(&mut self, _: Instant, _: &mut ()) -> Result<Content, Refusal> {
        panic!("everything is refused")
    }

    fn write(&mut self, _: Instant, _: &mut (), _: &mut Piece<'_>) -> bool {
        panic!("everything is refused")
    }
}

/// A request with this target: path and parameters are those that the reference finds.
pub(crate) fn target(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // A target without spaces that is not too long.
    if text.len() > 2000 || text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return;
    }
    let mut service = Checker { config: Config::default(), text, called: false };
    let mut connection = connection(());
    let now = Instant::from_millis(5);
    connection.open(now, &mut service);
    let request = format!("GET {text} HTTP/1.1\r\nHost: x\r\n\r\n");
    connection.take(now, request.as_bytes(), &mut service);
    assert_eq!(service.called, Target::new(text).is_some(), "{text}");
}

pub(crate) fn target_seeds() -> Vec<Vec<u8>> {
    let texts = [
        "/stats?format=json&topic=t&n=12",
        "http://host:1/a/b%20c?n=%31&topic=a%23ephemeral",
        "/a/?=x&n=True&topic&&+=1",
        "/a/b/c?n=4294967296&topic=+",
        "/%zz?n",
        "/?n=%2",
        "/?a;b",
        "*",
        "a+b:c?n=1",
        "http://h?n=1",
        "http:/a/b",
        "/0123456789012345678901234567890123456789012345678901234567890123",
        "/a/?n=000000000000000000000000000000000000000000000000000000000000000000000000000000000000\
         00000000000000000000000001",
    ];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let plain = serving::seeds(CONNECTIONS as u8, REQUESTS.len() as u8, 8);
    let mut seeds: Vec<_> = plain.iter().map(|seed| [b"\0", &seed[..]].concat()).collect();
    for few in REQUESTS.chunks(3) {
        seeds.push([b"\x80", &few.concat()[..]].concat());
    }
    seeds
}
