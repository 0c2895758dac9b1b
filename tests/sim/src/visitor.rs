//! HTTP clients of directories and nodes, well-behaved and broken, and checks of the responses.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use nanonsq_core::time::Span;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process, until};
use crate::exec::application;
use crate::schedule::FAULTY;
use crate::script::{Part, pause, play};
use crate::watch::{self, Session};
use crate::world::{Clock, World};

/// Simultaneous connections that visit; and with those that only occupy a slot.
const VISITS: usize = 2;
const LANES: usize = VISITS + 3;
/// The first unit of the lanes, behind those of `actor`.
const FIRST: usize = 2;
/// The longest visit: visits, and those that waited for them, are over when the world must be well.
const PATIENCE: Span = Span::from_secs(60);
/// The longest time from acceptance to response when the world must be well.
const PROMPT: Span = Span::from_secs(10);
/// A header longer than a connection's buffer.
const LONG: usize = 1500;
/// The most attempts of a request, as a spare listener may reject it.
const TRIES: usize = 6;

/// See the [module](self).
pub(crate) struct Visitor {
    world: World,
    me: usize,
    /// Names of the hosts to visit, each with whether the host is a node.
    hosts: Rc<Vec<(String, bool)>>,
}

/// A connection that only occupies a slot, made again until a deadline.
#[derive(Clone)]
struct Hold {
    host: String,
    sends: &'static [u8],
    /// The lifetime of each connection, and the time after which no further one is made.
    patience: Span,
    until: u64,
}

impl Hold {
    /// A slow HTTP client.
    fn slow(host: &str) -> Self {
        Self { host: host.to_owned(), sends: b"GET /pi", patience: PROMPT, until: 0 }
    }

    /// Clients at a node's TCP port that have sent a command and may stay. With others like them
    /// all slots are taken, and the next client is rejected.
    fn identified(world: &World, random: &mut Random, hosts: &[(String, bool)]) -> Option<Self> {
        let nodes: Vec<_> = hosts.iter().filter(|(_, is_node)| *is_node).collect();
        let at = random.below(nodes.len().max(1) as u64) as usize;
        let host = nodes.get(at)?.0.replace("stat", "nsqd");
        let patience = Span::from_secs(random.pick(&[1, 10, 30]));
        let until = (world.now() + patience.as_micros()).min(1000 * FAULTY);
        Some(Self { host, sends: b"  V2NOP\n", patience, until })
    }
}

/// The script of one visit.
struct Visit {
    host: usize,
    script: VecDeque<Part>,
    /// An upper bound of the requests in it.
    requests: usize,
    /// A HEAD request is among them: its response has a length and no body.
    heads: bool,
}

/// The parsed responses of a connection.
#[derive(Default)]
struct Answers {
    /// The status codes.
    codes: Vec<u16>,
    /// The last body.
    body: Vec<u8>,
    /// True if the last response is complete.
    whole: bool,
}

impl Visitor {
    pub(crate) fn new(world: &World, me: usize, hosts: Vec<(String, bool)>) -> Self {
        watch::trace(|| format!("node{me} visits {hosts:?}"));
        Self { world: world.clone(), me, hosts: Rc::new(hosts) }
    }
}

impl Actor for Visitor {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(FIRST + LANES, LANES as u32);
        let (world, hosts) = (self.world.clone(), self.hosts.clone());
        (Box::pin(run(world, self.me, hosts, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, _: Seen) {}
}

async fn run(world: World, me: usize, hosts: Rc<Vec<(String, bool)>>, mailbox: Rc<Mailbox>) {
    let units = &mailbox.units;
    let visits: RefCell<VecDeque<Visit>> = RefCell::default();
    // Hosts that must answer before the end, and how many did.
    let (due, answered): (RefCell<VecDeque<usize>>, Cell<usize>) = Default::default();
    // Connections that are to occupy slots.
    let held: RefCell<VecDeque<Hold>> = RefCell::default();
    let settled = Cell::new(false);
    let mut lanes: [_; LANES] = std::array::from_fn(|n| {
        let (world, hosts, visits, due, answered) = (&world, &hosts, &visits, &due, &answered);
        let held = &held;
        Box::pin(async move {
            let session = (me, n);
            if n >= VISITS {
                loop {
                    let hold = until(|| held.borrow_mut().pop_front()).await;
                    loop {
                        let began = world.now();
                        let script = [Part::Send(hold.sends.to_vec()), Part::Pause(PATIENCE)];
                        visit_host(world, session, &hold.host, script.into(), hold.patience).await;
                        let mut clock = Clock::of_session(world, session);
                        pause(&mut clock, Span::from_millis(50)).await;
                        // At the largest instant no time passes.
                        if hold.until <= world.now() || world.now() == began {
                            break;
                        }
                    }
                }
            }
            loop {
                // Healthy hosts answer everybody.
                let next = || {
                    let host = due.borrow_mut().pop_front();
                    let visit = || visits.borrow_mut().pop_front().map(Err);
                    host.map(Ok).or_else(visit)
                };
                match until(next).await {
                    Ok(host) => {
                        // Beside callers that occupy all other slots and are slow.
                        let hold = Hold::slow(&hosts[host].0);
                        held.borrow_mut().extend(vec![hold; LANES - VISITS]);
                        (VISITS..LANES).for_each(|n| units.wake(FIRST + n));
                        pause(&mut Clock::of_session(world, session), Span::from_secs(1)).await;
                        let (host, is_node) = &hosts[host];
                        let answers = |it: &Answers| it.body == b"OK";
                        expect_response(world, session, host, "/ping", answers).await;
                        if !is_node {
                            let once = |it: &Answers| lists_each_once(&it.body);
                            expect_response(world, session, host, "/nodes", once).await;
                        }
                        answered.set(answered.get() + 1);
                    }
                    Err(visit) => {
                        let name = &hosts[visit.host].0;
                        let received =
                            visit_host(world, session, name, visit.script, PATIENCE).await;
                        if let Some(received) = received.filter(|_| !visit.heads) {
                            let codes = Answers::read(&received).codes;
                            let count = codes.iter().filter(|code| **code != 100).count();
                            let most = visit.requests;
                            assert!(count <= most, "{count} responses to {most} requests");
                            (0..count).for_each(|_| watch::count("answered over HTTP"));
                        }
                    }
                }
            }
        })
    });
    mailbox
        .attend(&world, |unit, cx| {
            if unit == ORDERS {
                while let Some(order) = mailbox.next_order() {
                    match order {
                        Order::Act(mut random) => {
                            // Earlier visits that still wait are dropped.
                            visits.borrow_mut().clear();
                            visits.borrow_mut().push_back(Visit::random(&mut random, &hosts));
                            if random.one_in(8)
                                && let Some(hold) = Hold::identified(&world, &mut random, &hosts)
                            {
                                watch::count("slots occupied");
                                held.borrow_mut().extend(vec![hold; LANES - VISITS]);
                            }
                        }
                        Order::Settled(_) => {
                            visits.borrow_mut().clear();
                            due.borrow_mut().extend(0..hosts.len());
                            settled.set(true);
                        }
                        Order::End => assert!(
                            !settled.get() || answered.get() == hosts.len(),
                            "{} of {} hosts do not answer though nothing is wrong",
                            hosts.len() - answered.get(),
                            hosts.len()
                        ),
                        Order::Restart => {}
                    }
                    (0..LANES).for_each(|n| units.wake(FIRST + n));
                }
            } else if let Some(lane) = unit.checked_sub(FIRST) {
                assert!(application(|| lanes[lane].as_mut().poll(cx)).is_pending(), "for ever");
            }
        })
        .await;
}

/// Returns whether no address is listed twice.
fn lists_each_once(nodes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(nodes);
    let mut addresses: Vec<_> =
        text.split("\"broadcast_address\":").skip(1).map(|it| it.split(',').next()).collect();
    let all = addresses.len();
    addresses.sort();
    addresses.dedup();
    addresses.len() == all
}

/// Requests `path` until the response is as it must be; panics after [`TRIES`] attempts.
async fn expect_response(
    world: &World,
    session: Session,
    host: &str,
    path: &str,
    is_expected: impl Fn(&Answers) -> bool,
) {
    for _ in 0..TRIES {
        let script = VecDeque::from([
            Part::Send(
                format!("GET {path} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n")
                    .into_bytes(),
            ),
            Part::Send(format!("Cookie: {}\r\n", "c".repeat(LONG)).into_bytes()),
            Part::Send(b"Connection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n".to_vec()),
        ]);
        let received = visit_host(world, session, host, script, PROMPT).await;
        if received
            .map(|received| Answers::read(&received))
            .is_some_and(|it| it.whole && it.codes == [200] && is_expected(&it))
        {
            return;
        }
        watch::count("visited in vain");
    }
    panic!("{host} does not answer {path} correctly, though nothing is wrong");
}

/// Plays a script and returns what was received, or `None` if the dial failed or led elsewhere.
async fn visit_host(
    world: &World,
    session: Session,
    host: &str,
    script: VecDeque<Part>,
    patience: Span,
) -> Option<Vec<u8>> {
    let mut received = Vec::new();
    let theirs = play(world, session, host, script, patience, |bytes| {
        received.extend_from_slice(bytes);
        Vec::new()
    });
    if !theirs.await? {
        watch::count("visited another host");
        return None;
    }
    watch::trace_session(session, || format!("was answered {}", received.escape_ascii()));
    Some(received)
}

impl Answers {
    /// Parses all responses; panics if anything is not HTTP.
    fn read(mut received: &[u8]) -> Self {
        let mut answers = Self { whole: true, ..Self::default() };
        while !received.is_empty() {
            let Some(at) = received.windows(4).position(|it| it == b"\r\n\r\n") else {
                answers.whole = false;
                return answers;
            };
            let head = std::str::from_utf8(&received[..at]).expect("text");
            let mut lines = head.split("\r\n");
            let status = lines.next().expect("a line");
            let code = status.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
            let code: u16 = code.unwrap_or_else(|| panic!("not HTTP: {status}"));
            let (mut len, mut chunked) = (None, false);
            for line in lines {
                let (name, value) = line.split_once(": ").expect("a header line");
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => len = Some(value.parse::<usize>().expect("a number")),
                    "transfer-encoding" => chunked = value == "chunked",
                    _ => {}
                }
            }
            answers.codes.push(code);
            let rest = &received[at + 4..];
            let body = match (code, chunked, len) {
                (100, ..) => Some((Vec::new(), rest)),
                (_, true, _) => dechunk(rest),
                (_, false, Some(len)) => {
                    rest.split_at_checked(len).map(|(body, rest)| (body.to_vec(), rest))
                }
                // Up to the end of the connection.
                (_, false, None) => Some((rest.to_vec(), &rest[rest.len()..])),
            };
            let Some((body, rest)) = body else {
                answers.whole = false;
                return answers;
            };
            answers.body = body;
            received = rest;
        }
        answers
    }
}

/// Returns a chunked body and what follows, or `None` if the body is not complete.
fn dechunk(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let at = bytes.windows(2).position(|it| it == b"\r\n")?;
        let len = std::str::from_utf8(&bytes[..at])
            .ok()
            .and_then(|it| usize::from_str_radix(it, 16).ok());
        let len = len.expect("the length of a chunk");
        let (chunk, rest) = bytes[at + 2..].split_at_checked(len)?;
        body.extend_from_slice(chunk);
        let (end, rest) = rest.split_at_checked(2)?;
        assert_eq!(end, b"\r\n", "the end of a chunk");
        bytes = rest;
        if len == 0 {
            return Some((body, bytes));
        }
    }
}

/// Splits a body into chunks of this length, if `with_more` with an extension and a trailer.
fn in_chunks(body: &[u8], chunk: usize, with_extras: bool) -> Vec<u8> {
    let (extension, trailer) = if with_extras { (";a=b", "A: b\r\n") } else { ("", "") };
    let mut all = Vec::new();
    for piece in body.chunks(chunk) {
        all.extend(format!("{:x}{extension}\r\n", piece.len()).bytes());
        all.extend(piece.iter().chain(b"\r\n"));
    }
    all.extend(format!("0\r\n{trailer}\r\n").bytes());
    all
}

/// Requests to a directory.
const OF_DIRECTORY: &[(&str, &str)] = &[
    ("GET", "/lookup?topic=feed"),
    ("GET", "/lookup?topic=nobody"),
    ("GET", "/topics"),
    ("GET", "/channels?topic=feed"),
    ("GET", "/nodes"),
    ("GET", "/debug"),
    ("POST", "/topic/create?topic=feed"),
    ("POST", "/topic/delete?topic=nobody"),
    ("POST", "/channel/create?topic=feed&channel=c"),
    ("POST", "/topic/tombstone?topic=feed&node=nobody:4151"),
];

/// Requests to a node.
const OF_NODE: &[(&str, &str)] = &[
    ("GET", "/stats"),
    ("GET", "/stats?format=json"),
    ("GET", "/config/nsqlookupd_tcp_addresses"),
    ("POST", "/topic/create?topic=x"),
    ("POST", "/topic/empty?topic=x"),
    ("POST", "/channel/create?topic=x&channel=c"),
    ("POST", "/pub?topic=x"),
    ("POST", "/pub?topic=z&defer=1000"),
    ("POST", "/pub?topic=x"),
    ("POST", "/mpub?topic=x"),
    ("POST", "/mpub?topic=z"),
    ("POST", "/mpub?topic=z&binary=true"),
];

/// Requests to either.
const OF_ALL: &[(&str, &str)] = &[
    ("GET", "/ping"),
    ("HEAD", "/ping"),
    ("GET", "/info"),
    ("GET", "/nowhere"),
    ("DELETE", "/ping"),
    ("POST", "/topic/create?topic=$"),
    ("POST", "/topic/delete"),
];

impl Visit {
    fn random(random: &mut Random, hosts: &[(String, bool)]) -> Self {
        let host = random.below(hosts.len() as u64) as usize;
        let own = if hosts[host].1 { OF_NODE } else { OF_DIRECTORY };
        let mut visit = Self { host, script: VecDeque::new(), requests: 0, heads: false };
        if hosts[host].1 && random.one_in(6) {
            visit.take_no_answers(random);
            return visit;
        }
        if !hosts[host].1 && random.one_in(4) {
            visit.make_junk(random);
            return visit;
        }
        let hasty = random.one_in(3);
        for _ in 0..random.pick(&[1, 1, 2, 4]) {
            if random.one_in(12) {
                visit
                    .script
                    .push_back(Part::DeafFor(Span::from_millis(random.pick(&[500, 20_000]))));
            }
            let from = if random.one_in(3) { OF_ALL } else { own };
            let (method, path) = random.pick(from);
            let mut head =
                format!("{method} {path} HTTP/1.{}\r\nHost: h\r\n", random.pick(&[1, 1, 1, 0]));
            if random.one_in(4) {
                head.push_str(
                    random.pick(&["Connection: close\r\n", "Connection: keep-alive\r\n"]),
                );
            }
            visit.heads |= method == "HEAD";
            let bodied = method == "POST" || random.one_in(8);
            let len = match random.below(40) {
                _ if !bodied => 0,
                0 => 17_000,
                _ => random.pick(&[0, 1, 10, 60, 300, 2000]),
            };
            let mut chunk = None;
            match random.below(if bodied { 16 } else { 40 }) {
                0 | 14 | 15 => {
                    head.push_str("Transfer-Encoding: chunked\r\n");
                    // Now and then the body is not chunked at all.
                    chunk = (!random.one_in(8)).then(|| random.pick(&[1, 16, 700, 20_000]));
                }
                1 => head.push_str("Content-Length: 99999999999\r\n"),
                2 | 3 => {
                    head.push_str(&format!("Content-Length: {len}\r\nExpect: 100-continue\r\n"))
                }
                _ if len > 0 => head.push_str(&format!("Content-Length: {len}\r\n")),
                _ => {}
            }
            if random.one_in(20) {
                head.push_str(&format!("X: {}\r\n", "y".repeat(random.pick(&[300, 1200, 20_000]))));
            }
            head.push_str("\r\n");
            let line = random.pick(&[1, 7, 50, 700, 30_000]);
            let body = (0..len).map(|n| if n % line == line - 1 { b'\n' } else { b'b' });
            let mut body: Vec<u8> = body.collect();
            if let Some(chunk) = chunk {
                body = in_chunks(&body, chunk, random.one_in(3));
            }
            let len = body.len();
            let mut request = [head.into_bytes(), body].concat();
            visit.requests += 1;
            if random.one_in(20) {
                // Random bytes: each line may count as a request.
                request = (0..random.between(1, 300)).map(|_| random.below(256) as u8).collect();
                visit.requests += request.len();
            } else if len > 0 {
                // The rest of a body that is refused or not announced may be taken for requests.
                visit.requests += len;
            }
            let stops = random.one_in(10);
            if stops {
                request.truncate(random.below(request.len() as u64) as usize);
            }
            let cut = random.below(request.len() as u64 + 1) as usize;
            let second = request.split_off(cut);
            for piece in [request, second] {
                if !piece.is_empty() {
                    visit.script.push_back(Part::Send(piece));
                }
                if !hasty && random.one_in(4) {
                    let ms = random.pick(&[10, 300, 5000, 12_000, 40_000]);
                    visit.script.push_back(Part::Pause(Span::from_millis(ms)));
                }
            }
            if stops {
                break;
            }
        }
        if random.one_in(4) {
            visit.script.push_back(Part::Close);
        }
        visit
    }

    /// Creates topics and channels that no node has.
    fn make_junk(&mut self, random: &mut Random) {
        for _ in 0..random.between(5, 40) {
            let (topic, channel) = (random.below(30), random.below(30));
            let path = match random.below(3) {
                0 => format!("topic/create?topic=junk{topic}"),
                1 => format!("channel/create?topic=junk{topic}&channel=c{channel}"),
                _ => format!("channel/create?topic=junk&channel=c{channel}"),
            };
            let request = format!("POST /{path} HTTP/1.1\r\nHost: h\r\n\r\n");
            self.script.push_back(Part::Send(request.into_bytes()));
            self.requests += 1;
        }
        self.script.push_back(Part::Close);
    }

    /// Publishes to a node that may be full, reads nothing, and drops the connection.
    fn take_no_answers(&mut self, random: &mut Random) {
        let window = random.between(1, 200) as usize;
        self.script.extend([Part::DeafFor(PATIENCE), Part::Narrow(window)]);
        for _ in 0..random.between(1, 6) {
            let len = random.pick(&[1, 10, 60]);
            let head = format!(
                "POST /pub?topic=x HTTP/1.1\r\nHost: h\r\nContent-Length: {len}\r\nExpect: 100-continue\r\n\r\n"
            );
            let body = std::iter::repeat_n(b'b', len);
            self.script.push_back(Part::Send(head.into_bytes().into_iter().chain(body).collect()));
            self.requests += 1 + len;
        }
        let ms = random.pick(&[1, 10, 300, 5000]);
        self.script.extend([Part::Pause(Span::from_millis(ms)), Part::Cut]);
    }
}
