//! A consumer, model nsqds and model nsqlookupds in virtual time, over a network that fails at
//! random: seeded lives, each until every message is finished.

mod support;

use std::collections::{HashMap, HashSet, VecDeque};

use nanonsq_core::address::Address;
use nanonsq_core::consumer::{Config, Consumer, Discovery, Exhausted, Storage, Token, TooLarge};
use nanonsq_core::name::{ChannelName, TopicName};
use nanonsq_core::session::{Closed, DRAINS_MAX, DialError, Fault, Link, Session, TransportError};
use nanonsq_core::time::{Instant, Span};
use support::{Random, seeds};

type Id = [u8; 16];

const CONNECTIONS: usize = 3;
const MESSAGES: usize = 8;
const SLOT: usize = 64;
const INFO: &[u8] = b"{\"max_rdy_count\":5,\"version\":\"1.3.0\",\"max_msg_timeout\":4000,\
    \"msg_timeout\":2000,\"auth_required\":false}";

/// Bytes on their way, in order, with their arrival times.
#[derive(Default)]
struct Pipe(VecDeque<(Instant, Vec<u8>)>);

impl Pipe {
    fn send(&mut self, at: Instant, bytes: Vec<u8>) {
        let last = self.0.back().map_or(Instant::ZERO, |(at, _)| *at);
        self.0.push_back((at.max(last), bytes));
    }

    fn arrived(&mut self, now: Instant) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.0.front().is_some_and(|(at, _)| *at <= now) {
            bytes.extend(self.0.pop_front().unwrap().1);
        }
        bytes
    }
}

#[derive(Clone)]
struct Message {
    id: Id,
    body: Vec<u8>,
    attempts: u16,
    due: Instant,
}

struct Flying {
    message: Message,
    client: u64,
    delivered: Instant,
    deadline: Instant,
}

#[derive(Default)]
struct Nsqd {
    queue: Vec<Message>,
    flying: Vec<Flying>,
    finished: HashSet<Id>,
    down: bool,
}

/// One connection of an nsqd.
struct Client {
    nsqd: usize,
    number: u64,
    inbox: Vec<u8>,
    requests: Pipe,
    answers: Pipe,
    greeted: bool,
    subscribed: bool,
    closing: bool,
    rdy: u16,
    /// Heartbeats without an answer.
    heartbeats: u32,
    next_heartbeat: Instant,
    /// Messages that were delivered to it and then timed out.
    expired: HashSet<Id>,
    mute: bool,
}

fn frame(kind: u8, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len() + 4).unwrap().to_be_bytes();
    [&size[..], &[0, 0, 0, kind], data].concat()
}

const MSG_TIMEOUT: Span = Span::from_millis(2000);
const MAX_MSG_TIMEOUT: Span = Span::from_millis(4000);

impl Client {
    fn answer(&mut self, at: Instant, kind: u8, data: &[u8]) {
        if !self.mute {
            self.answers.send(at, frame(kind, data));
        }
    }

    /// Runs every complete command.
    fn run(&mut self, nsqd: &mut Nsqd, now: Instant, latency: Span, context: &str) {
        let at = now.after(latency);
        if !self.greeted {
            if self.inbox.len() < 4 {
                return;
            }
            assert!(self.inbox.starts_with(b"  V2"), "{context}");
            self.inbox.drain(..4);
            self.greeted = true;
        }
        while let Some(end) = self.inbox.iter().position(|&b| b == b'\n') {
            let line = String::from_utf8(self.inbox[..end].to_vec()).unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            let mut used = end + 1;
            let id = |text: &str| -> Id { text.as_bytes().try_into().unwrap() };
            match words[..] {
                ["IDENTIFY"] => {
                    let Some(len) = self.inbox[used..].first_chunk::<4>() else { return };
                    let len = u32::from_be_bytes(*len) as usize;
                    if self.inbox.len() < used + 4 + len {
                        return;
                    }
                    used += 4 + len;
                    self.answer(at, 0, INFO);
                }
                ["SUB", "t#ephemeral", "ch"] => {
                    assert!(!self.subscribed, "{context}");
                    self.subscribed = true;
                    self.answer(at, 0, b"OK");
                }
                ["RDY", count] => {
                    let count: u16 = count.parse().unwrap();
                    assert!(self.subscribed && !self.closing, "{context}: {line}");
                    assert!(count <= 5, "{context}: above max_rdy_count");
                    assert_ne!(count, self.rdy, "{context}: RDY without a change");
                    self.rdy = count;
                }
                ["FIN", text] => match self.landed(nsqd, &id(text)) {
                    Some(message) => assert!(nsqd.finished.insert(message.id), "{context}"),
                    None => self.unknown(at, &line, &id(text), context),
                },
                ["REQ", text, delay] => match self.landed(nsqd, &id(text)) {
                    Some(mut message) => {
                        message.due = now.after(Span::from_millis(delay.parse().unwrap()));
                        nsqd.queue.push(message);
                    }
                    None => self.unknown(at, &line, &id(text), context),
                },
                ["TOUCH", text] => {
                    let (id, number) = (id(text), self.number);
                    let mine = |f: &&mut Flying| f.message.id == id && f.client == number;
                    match nsqd.flying.iter_mut().find(mine) {
                        Some(flying) => {
                            let end = flying.delivered.after(MAX_MSG_TIMEOUT);
                            flying.deadline = now.after(MSG_TIMEOUT).min(end);
                        }
                        None => self.unknown(at, &line, &id, context),
                    }
                }
                ["CLS"] => {
                    assert!(self.subscribed && !self.closing, "{context}");
                    self.closing = true;
                    self.answer(at, 0, b"CLOSE_WAIT");
                }
                ["NOP"] => {
                    assert!(self.heartbeats > 0, "{context}: NOP without a heartbeat");
                    self.heartbeats = 0;
                }
                _ => panic!("{context}: {line:?}"),
            }
            self.inbox.drain(..used);
        }
    }

    fn landed(&self, nsqd: &mut Nsqd, id: &Id) -> Option<Message> {
        let mine = |f: &Flying| f.message.id == *id && f.client == self.number;
        let index = nsqd.flying.iter().position(mine)?;
        Some(nsqd.flying.swap_remove(index).message)
    }

    /// Answers a late FIN, REQ or TOUCH, which is allowed only for a message that timed out.
    fn unknown(&mut self, at: Instant, line: &str, id: &Id, context: &str) {
        assert!(self.expired.contains(id), "{context}: {line}");
        let verb = line.split(' ').next().unwrap();
        self.answer(at, 1, format!("E_{verb}_FAILED {line} failed ID not in flight").as_bytes());
    }

    /// Delivers messages as far as RDY allows. Returns how many.
    fn deliver(&mut self, nsqd: &mut Nsqd, now: Instant, random: &mut Random, latency: u32) -> u64 {
        let mut delivered = 0;
        while self.subscribed && !self.closing {
            let in_flight = nsqd.flying.iter().filter(|f| f.client == self.number).count();
            if in_flight >= self.rdy.into() {
                break;
            }
            let due: Vec<usize> =
                (0..nsqd.queue.len()).filter(|&n| nsqd.queue[n].due <= now).collect();
            if due.is_empty() {
                break;
            }
            let mut message = nsqd.queue.swap_remove(due[random.below(due.len() as u32) as usize]);
            message.attempts += 1;
            let data =
                [&[0; 8][..], &message.attempts.to_be_bytes(), &message.id, &message.body].concat();
            self.answer(now.after(Span::from_millis(random.below(latency))), 2, &data);
            nsqd.flying.push(Flying {
                message,
                client: self.number,
                delivered: now,
                deadline: now.after(MSG_TIMEOUT),
            });
            delivered += 1;
        }
        delivered
    }
}

/// One request to an nsqlookupd.
#[derive(Default)]
struct Request {
    inbox: Vec<u8>,
    answers: Pipe,
    answered: bool,
}

fn answer_http(random: &mut Random, status: &str, body: &str) -> Vec<u8> {
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\n");
    match random.below(3) {
        0 => format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes(),
        1 => format!("{head}Connection: close\r\n\r\n{body}").into_bytes(),
        _ => {
            let mut text = format!("{head}Transfer-Encoding: chunked\r\n\r\n");
            let mut rest = body;
            while !rest.is_empty() {
                let n = 1 + random.below(rest.len() as u32) as usize;
                text += &format!("{n:x}\r\n{}\r\n", &rest[..n]);
                rest = &rest[n..];
            }
            (text + "0\r\n\r\n").into_bytes()
        }
    }
}

impl Request {
    fn run(&mut self, random: &mut Random, at: Instant, listed: &[usize], faulty: bool) {
        if self.answered || !self.inbox.ends_with(b"\r\n\r\n") {
            return;
        }
        self.answered = true;
        assert!(self.inbox.starts_with(b"GET /lookup?topic=t%23ephemeral HTTP/1.1\r\nHost: l"));
        let producers: Vec<String> = listed
            .iter()
            .map(|n| {
                format!(
                    "{{\"remote_address\":\"1.2.3.4:5\",\"hostname\":\"h\",\
                     \"broadcast_address\":\"nsqd{n}\",\"tcp_port\":4150,\"http_port\":4151,\
                     \"version\":\"1.3.0\"}}"
                )
            })
            .collect();
        let body = format!("{{\"channels\":[\"ch\"],\"producers\":[{}]}}", producers.join(","));
        let answer = match if faulty { random.below(8) } else { 9 } {
            0 => return, // hangs
            1 => answer_http(random, "500 Internal Server Error", "{\"message\":\"X\"}"),
            2 => answer_http(random, "404 Not Found", "{\"message\":\"TOPIC_NOT_FOUND\"}"),
            3 => answer_http(random, "200 OK", "{\"channels\":[],\"producers\":[]}"),
            4 => answer_http(random, "200 OK", &body.replace("},{", "}{").replace('"', "'")),
            _ => answer_http(random, "200 OK", &body),
        };
        self.answers.send(at, answer);
    }
}

/// The dial whose outcome a session waits for, with its server.
#[derive(Clone, Copy, PartialEq)]
enum Dialing {
    No,
    To(usize),
}

#[derive(Clone, Copy)]
struct Step<'c> {
    now: Instant,
    faulty: bool,
    context: &'c str,
}

/// Drives a session until it makes no progress. Returns the bytes that it wrote. `dialed` decides
/// whether a dial succeeds.
fn drive<S: Session>(
    session: &mut S,
    step: Step<'_>,
    random: &mut Random,
    dialing: &mut Dialing,
    events: &mut u64,
    mut dialed: impl FnMut(&mut Random, usize) -> bool,
) -> Vec<u8> {
    let Step { now, faulty, context } = step;
    let mut written = Vec::new();
    let mut drains = 0;
    loop {
        drains += 1;
        assert!(drains < DRAINS_MAX, "{context}: never settles");
        if session.deadline() <= now {
            session.tick(now);
            *events += 1;
        }
        let progress = match session.link() {
            Link::Down => match session.dial(now) {
                Some(address) => {
                    let digit = address.host().trim_start_matches(|c: char| !c.is_ascii_digit());
                    *dialing = Dialing::To(digit.parse().unwrap());
                    true
                }
                None => false,
            },
            Link::Up => {
                if let Dialing::To(server) = *dialing {
                    if faulty && random.one_in(10) {
                        return written; // no answer yet
                    }
                    *dialing = Dialing::No;
                    *events += 1;
                    if dialed(random, server) {
                        session.open(now);
                    } else {
                        session.closed(now, Closed::Dial(DialError::Refused));
                    }
                    true
                } else {
                    let bytes = session.transmit(now).head.to_vec();
                    let n = if !faulty || random.one_in(2) {
                        bytes.len()
                    } else {
                        random.below(bytes.len() as u32 + 1) as usize
                    };
                    session.sent(now, n);
                    written.extend(&bytes[..n]);
                    *events += u64::from(n > 0);
                    n > 0
                }
            }
            Link::Close => {
                // The remaining bytes are written, unless the transport is broken.
                loop {
                    let bytes = session.transmit(now).head.to_vec();
                    if bytes.is_empty() || faulty && random.one_in(10) {
                        break;
                    }
                    session.sent(now, bytes.len());
                    written.extend(bytes);
                }
                *dialing = Dialing::No;
                session.closed(now, Closed::Local);
                // The end of the connection follows the written bytes.
                written.extend(END);
                *events += 1;
                true
            }
            Link::Upgrade(_) => unreachable!(),
        };
        if !progress || !written.is_empty() && written.ends_with(END) {
            return written;
        }
    }
}

/// Marks the end of the connection; no command contains it.
const END: &[u8] = b"\0end\0";

struct Held {
    token: Token,
    id: Id,
    until: Instant,
}

fn live(seed: u32) -> [u64; 12] {
    let mut random = Random::new(seed);
    let nsqd_count = 1 + random.below(5) as usize;
    let lookup_count = random.below(3) as usize;
    // The application may take longer than the message timeout; messages may be longer than a slot.
    let (slow, long) = (random.one_in(2), random.one_in(2));
    let auto_touch = random.one_in(3);
    // The application never changes `max_in_flight`.
    let constant = random.one_in(2);
    let max_attempts = if random.one_in(2) { 0 } else { 3 + random.below(4) as u16 };
    let exhausted = if random.one_in(2) { Exhausted::Finish } else { Exhausted::Deliver };
    let config = Config {
        heartbeat: Span::from_secs(1),
        connect_timeout: Span::from_millis(500),
        max_in_flight: 1 + random.below(10) as u16,
        reconnect_cap: Span::from_millis(500),
        drain_timeout: Span::from_millis(300 + random.below(1000)),
        lookup_interval: Span::from_millis(300 + random.below(1000)),
        lookup_timeout: Span::from_millis(500),
        grace: Span::from_millis(500 + random.below(3000)),
        rotate: Span::from_millis(1000 + random.below(3000)),
        redistribute: Span::from_millis(300),
        max_attempts,
        exhausted,
        // Without a limit of attempts a too large message would be requeued for ever.
        too_large: if max_attempts == 0 || exhausted == Exhausted::Deliver {
            TooLarge::Finish
        } else {
            TooLarge::Requeue
        },
        requeue_base: Span::from_millis(1 + random.below(300)),
        backoff_base: Span::from_millis(random.below(3) * 100),
        backoff_cap: Span::from_millis(1000),
        auto_touch,
        seed,
        ..Config::new(TopicName::new("t#ephemeral").unwrap(), ChannelName::new("ch").unwrap())
    };
    let all: Vec<Address> =
        (0..nsqd_count).map(|n| format!("nsqd{n}:4150").parse().unwrap()).collect();
    let lookups: Vec<Address> =
        (0..lookup_count).map(|n| format!("l{n}:4161").parse().unwrap()).collect();
    // Without nsqlookupds all nsqds are configured, otherwise at most one.
    let given = if lookup_count == 0 { &all[..] } else { &all[..random.below(2) as usize] };
    let mut ring = [0; MESSAGES * SLOT];
    let mut storage = Storage::<CONNECTIONS, MESSAGES>::new();
    let mut discovery = Discovery::<2, CONNECTIONS>::new();
    let mut consumer = Consumer::new(&config, &mut storage, given, &mut ring).unwrap();
    consumer.discover(&mut discovery, &lookups).unwrap();

    let mut nsqds: Vec<Nsqd> = (0..nsqd_count).map(|_| Nsqd::default()).collect();
    let mut clients: [Option<Client>; CONNECTIONS] = Default::default();
    // Connections that the consumer closed; bytes that it wrote before may still arrive.
    let mut ghosts: Vec<Client> = Vec::new();
    let mut requests: [Option<Request>; 2] = Default::default();
    let mut dialing = [Dialing::No; CONNECTIONS];
    let mut polling = [Dialing::No; 2];
    let mut held: Vec<Held> = Vec::new();
    let mut published: HashMap<Id, usize> = HashMap::new();
    let mut limits: VecDeque<(Instant, u16)> = VecDeque::new();
    let mut max = config.max_in_flight;
    let (mut numbers, mut events, mut duplicates, mut crossings) = (0u64, 0u64, 0u64, 0u64);
    let mut now = Instant::from_millis(5);
    let end_of_faults = now.after(Span::from_millis(1000 + random.below(20_000)));
    let mut stopping = None;
    let context = format!("seed {seed}");

    loop {
        let faulty = now < end_of_faults;
        // Producers.
        if faulty && random.one_in(3) {
            let number = published.len() as u64;
            let id: Id = format!("{number:016x}").as_bytes().try_into().unwrap();
            let len = match random.below(30) {
                0 if long => 500 + random.below(300),
                1..4 if long => 40 + random.below(120),
                _ => random.below(39),
            };
            let nsqd = random.below(nsqd_count as u32) as usize;
            let body = vec![number as u8; len as usize];
            nsqds[nsqd].queue.push(Message { id, body, attempts: 0, due: now });
            published.insert(id, nsqd);
            events += 1;
        }
        // The application.
        if faulty && !constant && random.one_in(200) {
            max = random.below(11) as u16;
            consumer.set_max_in_flight(now, max);
        }
        if faulty && !constant && random.one_in(150) {
            if consumer.is_paused() { consumer.resume(now) } else { consumer.pause(now) }
        }
        if !faulty && stopping.is_none() && (max == 0 || consumer.is_paused()) {
            max = max.max(1);
            consumer.set_max_in_flight(now, max);
            consumer.resume(now);
        }
        while !faulty || random.one_in(2) {
            let Some(delivery) = consumer.take(now) else { break };
            let message = consumer.message(delivery.token).unwrap();
            let (id, attempts) = (message.head.id.0, message.head.attempts);
            let number = u64::from_str_radix(std::str::from_utf8(&id).unwrap(), 16).unwrap();
            assert!(message.body.iter().all(|&byte| byte == number as u8), "{context}");
            let nsqd = published[&id];
            // nsqd may deliver a message again after its timeout, while the answer to the first
            // delivery is on its way: nsqd takes that answer for the second delivery's.
            let crossed = clients.iter().flatten().any(|client| client.expired.contains(&id));
            let finished = nsqds[nsqd].finished.contains(&id);
            assert!(!finished || crossed, "{context}: {number} after its FIN");
            crossings += u64::from(finished);
            assert_eq!(delivery.exhausted, max_attempts > 0 && attempts > max_attempts);
            assert!(!delivery.exhausted || exhausted == Exhausted::Deliver, "{context}");
            let same = held.iter().filter(|held| held.id == id).count();
            duplicates += same as u64;
            let longest = if slow { 5000 } else { 600 };
            let until = if faulty { random.below(longest) } else { 0 };
            held.push(Held {
                token: delivery.token,
                id,
                until: now.after(Span::from_millis(until)),
            });
            events += 1;
        }
        for index in (0..held.len()).rev() {
            let Held { token, id, until } = held[index];
            if until > now {
                if random.one_in(100) {
                    let _ = consumer.touch(now, token);
                }
                continue;
            }
            held.swap_remove(index);
            events += 1;
            let delay = random.one_in(2).then(|| Span::from_millis(random.below(200)));
            let done = match random.below(10) {
                0 if faulty => consumer.requeue(now, token, delay),
                1 if faulty => consumer.release(now, token, delay),
                _ => consumer.finish(now, token),
            };
            if done.is_ok() {
                assert!(consumer.message(token).is_none(), "{context}");
            } else {
                assert!(!held.iter().any(|held| held.token == token), "{context}: {id:?}");
            }
            assert!(consumer.finish(now, token).is_err(), "{context}: answered twice");
        }

        // nsqds.
        for nsqd in nsqds.iter_mut() {
            if faulty && random.one_in(300) {
                nsqd.down = true;
            } else if !faulty || random.one_in(60) {
                nsqd.down = false;
            }
            for index in (0..nsqd.flying.len()).rev() {
                if nsqd.flying[index].deadline <= now {
                    let flying = nsqd.flying.swap_remove(index);
                    let client = |c: &&mut Client| c.number == flying.client;
                    if let Some(client) = clients.iter_mut().flatten().find(client) {
                        client.expired.insert(flying.message.id);
                    }
                    nsqd.queue.push(Message { due: now, ..flying.message });
                }
            }
        }

        // The consumer's connections and the network.
        let latency = if faulty { 1 + random.below(200) } else { 2 };
        for index in 0..CONNECTIONS {
            let before = consumer.status(index).unwrap().rdy;
            let mut session = consumer.connection(index).unwrap();
            let mut opened = None;
            let written = drive(
                &mut session,
                Step { now, faulty, context: &context },
                &mut random,
                &mut dialing[index],
                &mut events,
                |random, server| {
                    let up = !(nsqds[server].down || faulty && random.one_in(5));
                    opened = up.then_some(server);
                    up
                },
            );
            // A RDY count is raised only if the sum of all counts stays within the present bound.
            let rdy: [u16; CONNECTIONS] =
                std::array::from_fn(|index| consumer.status(index).unwrap().rdy);
            let most = match () {
                () if consumer.is_paused() => 0,
                () if consumer.is_backing_off() => max.min(1),
                () => max.min(MESSAGES as u16),
            };
            let sum: u16 = rdy.iter().sum();
            assert!(rdy[index] <= before || sum <= most, "{context}: raised to {rdy:?} of {most}");
            let mut session = consumer.connection(index).unwrap();
            if let Some(nsqd) = opened {
                numbers += 1;
                clients[index] = Some(Client {
                    nsqd,
                    number: numbers,
                    inbox: Vec::new(),
                    requests: Pipe::default(),
                    answers: Pipe::default(),
                    greeted: false,
                    subscribed: false,
                    closing: false,
                    rdy: 0,
                    heartbeats: 0,
                    next_heartbeat: now.after(Span::from_secs(1)),
                    expired: HashSet::new(),
                    mute: faulty && random.one_in(10),
                });
            }
            if session.link() == Link::Down && !written.ends_with(END) {
                clients[index] = None;
            }
            let Some(client) = clients[index].as_mut() else { continue };
            let at = now.after(Span::from_millis(random.below(latency)));
            if let Some(last) = written.strip_suffix(END) {
                let mut client = clients[index].take().unwrap();
                client.requests.send(at, last.to_vec());
                ghosts.push(client);
                continue;
            }
            if !written.is_empty() {
                client.requests.send(at, written);
            }
            if client.next_heartbeat <= now && client.greeted {
                client.next_heartbeat = now.after(Span::from_secs(1));
                client.heartbeats += 1;
                client.answer(now, 0, b"_heartbeat_");
            }
            let arrived = client.requests.arrived(now);
            client.inbox.extend(arrived);
            let nsqd = &mut nsqds[client.nsqd];
            client.run(nsqd, now, Span::from_millis(random.below(latency)), &context);
            events += client.deliver(nsqd, now, &mut random, latency);
            let arrived = client.answers.arrived(now);
            let cut = random.below(arrived.len() as u32 + 1) as usize;
            for piece in [&arrived[..cut], &arrived[cut..]] {
                events += u64::from(!piece.is_empty());
                if let Err(fault) = session.receive(now, piece) {
                    panic!("{context}: fault without a cause: {fault}");
                }
            }
            let lost = client.heartbeats > 3 || nsqds[client.nsqd].down;
            if lost || faulty && random.one_in(300) {
                let why = if random.one_in(2) {
                    Closed::Peer
                } else {
                    Closed::Transport(TransportError::Reset)
                };
                if session.link() != Link::Down {
                    session.closed(now, why);
                }
                clients[index] = None;
                events += 1;
            }
            while session.poll_event().is_some() {}
        }
        ghosts.retain_mut(|ghost| {
            let arrived = ghost.requests.arrived(now);
            ghost.inbox.extend(arrived);
            // A message that was on its way times out in nsqd.
            ghost.expired.extend(published.keys());
            ghost.run(&mut nsqds[ghost.nsqd], now, Span::ZERO, &context);
            !ghost.requests.0.is_empty()
        });

        // nsqlookupds.
        for index in 0..lookup_count {
            let mut session = consumer.lookupd(index).unwrap();
            let mut opened = false;
            let written = drive(
                &mut session,
                Step { now, faulty, context: &context },
                &mut random,
                &mut polling[index],
                &mut events,
                |random, _| {
                    opened = !(faulty && random.one_in(3));
                    opened
                },
            );
            if opened {
                requests[index] = Some(Request::default());
            }
            if session.link() == Link::Down {
                requests[index] = None;
            }
            let Some(request) = requests[index].as_mut() else { continue };
            request.inbox.extend(written);
            // Each lists some nsqds; together they list all.
            let listed: Vec<usize> = (0..nsqd_count)
                .filter(|n| !faulty || n % lookup_count == index || random.one_in(3))
                .filter(|n| !faulty || !nsqds[*n].down)
                .collect();
            let at = now.after(Span::from_millis(random.below(latency)));
            request.run(&mut random, at, &listed, faulty);
            let arrived = request.answers.arrived(now);
            let cut = random.below(arrived.len() as u32 + 1) as usize;
            for piece in [&arrived[..cut], &arrived[cut..]] {
                events += u64::from(!piece.is_empty());
                if session.link() == Link::Up
                    && let Err(fault) = session.receive(now, piece)
                {
                    // The query began before the faults ended.
                    assert!(now < end_of_faults.after(Span::from_secs(1)), "{context}: {fault}");
                    assert!(matches!(fault, Fault::BadAnswer(_)), "{context}: {fault}");
                }
            }
            let whole = request.answered && request.answers.0.is_empty();
            if session.link() == Link::Up && (whole || faulty && random.one_in(50)) {
                session.closed(now, Closed::Peer);
                requests[index] = None;
            }
            while session.poll_event().is_some() {}
        }

        // At every step: all nsqds together may deliver at most the largest bound of the time that
        // a change takes to reach all of them.
        limits.push_back((now, max.min(MESSAGES as u16)));
        while limits.front().is_some_and(|(at, _)| at.after(Span::from_millis(2500)) < now) {
            limits.pop_front();
        }
        let allowed = limits.iter().map(|(_, limit)| *limit).max().unwrap();
        let sum: u16 = clients.iter().flatten().filter(|c| !c.closing).map(|c| c.rdy).sum();
        assert!(sum <= allowed, "{context}: RDY {sum} of {allowed}");
        if constant && !slow {
            // Also while a connection closes, and while RDY moves between connections.
            let in_flight = |index| consumer.status(index).unwrap().in_flight;
            let sum: u16 = (0..CONNECTIONS).map(in_flight).sum();
            assert!(sum <= allowed, "{context}: {sum} in flight of {allowed}");
        }
        let counters = consumer.counters();
        if !slow && !long && counters.timed_out == 0 && counters.refused == 0 {
            assert_eq!(counters.no_room, 0, "{context}: RDY above the room");
        }

        if !faulty && stopping.is_none() {
            let quiet = |nsqd: &Nsqd| nsqd.queue.is_empty() && nsqd.flying.is_empty();
            if nsqds.iter().all(quiet) && held.is_empty() {
                consumer.stop();
                stopping = Some(now);
            }
        }
        if stopping.is_some() && consumer.is_stopped() {
            break;
        }
        let patience = stopping.map_or(end_of_faults.after(Span::from_secs(200)), |at: Instant| {
            at.after(Span::from_secs(5))
        });
        if now >= patience {
            let left: Vec<_> = nsqds
                .iter()
                .map(|n| (n.down, n.queue.len(), n.flying.len(), n.queue.first().map(|m| m.due)))
                .collect();
            panic!("{context}: stuck at {now:?}: {left:?} {consumer:#?}");
        }
        now = now.after(Span::from_millis(random.below(20)));
    }

    // The end: every published message is finished at its nsqd.
    let counters = consumer.counters();
    for (id, nsqd) in &published {
        assert!(nsqds[*nsqd].finished.contains(id), "{context}");
    }
    assert_eq!(consumer.waiting(), 0, "{context}");
    assert!(crossings <= 2, "{context}: {crossings} deliveries after the FIN");
    if max_attempts == 0 || exhausted == Exhausted::Deliver {
        assert_eq!(counters.given_up, 0, "{context}");
    }
    [
        events,
        published.len() as u64,
        counters.received,
        counters.finished,
        counters.late.into(),
        counters.timed_out.into(),
        counters.touched.into(),
        counters.no_room.into(),
        counters.too_large.into(),
        counters.given_up.into(),
        counters.refused.into(),
        duplicates,
    ]
}

#[test]
fn a_million_events_lose_nothing() {
    let mut sums = [0; 12];
    for seed in 0..seeds(400) {
        for (sum, n) in sums.iter_mut().zip(live(seed)) {
            *sum += n;
        }
    }
    println!(
        "events, published, received, finished, late, timed out, touched, no room, too large, \
         given up, refused, duplicates: {sums:?}"
    );
    assert!(sums[0] > u64::from(seeds(400)) * 2500, "{sums:?}");
    // Each case occurred.
    assert!(sums.iter().all(|&n| n > u64::from(seeds(400)) / 20), "{sums:?}");
}
