//! Hostile or broken clients of a node: they announce bodies that never come, fill all tables, keep
//! what they received, and stay silent.
//!
//! Each *attack* repeats connections of one kind until its end. The checks of what it may cost
//! others are in `board`.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;

use nanonsq_core::time::Span;
use nanonsq_models::random::Random;
use nanonsq_models::server::{ConnId, Seen};

use crate::actor::{Actor, Mailbox, ORDERS, Order, Process};
use crate::board::{ARCHIVE, Frame, Frames, Ledger, OTHERS, READINGS};
use crate::exec::application;
use crate::schedule::FAULTY;
use crate::script::{Part, pause, play};
use crate::watch::{self, Session};
use crate::world::{Clock, World};

/// Simultaneous connections: more than a board has slots for.
const LANES: usize = 6;
/// The first unit of the lanes, behind those of `actor`.
const FIRST: usize = 2;

/// See the [module](self).
pub(crate) struct Hostile {
    world: World,
    me: usize,
    /// The kinds of its attacks; repeated ones are more frequent.
    kinds: Rc<Vec<Kind>>,
    ledger: Rc<Ledger>,
}

/// The kind of an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Announces a body and sends none of it, or single bytes slowly.
    Announce,
    /// Announces an MPUB of very many messages and sends some of them, slowly.
    Batch,
    /// Publishes messages that nobody consumes, until that is refused.
    Junk,
    /// The same over HTTP.
    Post,
    /// Subscribes to topics and channels of its own and leaves.
    Names,
    /// Creates topics and channels over HTTP.
    Create,
    /// Consumes in a channel of its own, and does not answer or requeues everything.
    Consume,
    /// The same in the channel of the honest consumer.
    Share,
    /// Fills a topic and finishes one of its messages now and then, so that the topic counts as
    /// consumed.
    Hoard,
    /// Sends nothing, or nothing after the magic.
    Silent,
    /// Sends commands and reads no responses.
    Deaf,
    /// HTTP: a request that does not end, a response that is not read, an idle connection.
    Slow,
}

const KINDS: [Kind; 12] = [
    Kind::Announce,
    Kind::Batch,
    Kind::Junk,
    Kind::Post,
    Kind::Names,
    Kind::Create,
    Kind::Consume,
    Kind::Share,
    Kind::Hoard,
    Kind::Silent,
    Kind::Deaf,
    Kind::Slow,
];

impl Hostile {
    pub(crate) fn new(world: &World, me: usize, ledger: &Rc<Ledger>, random: &mut Random) -> Self {
        let n = random.pick(&[1, 1, 2, 4, 12]);
        let kinds: Vec<_> = (0..n).map(|_| random.pick(&KINDS)).collect();
        watch::trace(|| format!("node{me} is hostile: {kinds:?}"));
        Self { world: world.clone(), me, kinds: Rc::new(kinds), ledger: ledger.clone() }
    }
}

impl Actor for Hostile {
    fn start(&mut self) -> (Process, Rc<Mailbox>) {
        let mailbox = Mailbox::new(FIRST + LANES, LANES as u32);
        let (world, kinds, ledger) = (self.world.clone(), self.kinds.clone(), self.ledger.clone());
        (Box::pin(run(world, self.me, kinds, ledger, mailbox.clone())), mailbox)
    }

    fn seen(&mut self, _: Session, _: ConnId, _: Seen) {}
}

async fn run(
    world: World,
    me: usize,
    kinds: Rc<Vec<Kind>>,
    ledger: Rc<Ledger>,
    mailbox: Rc<Mailbox>,
) {
    let units = &mailbox.units;
    let mut lanes: [Option<Pin<Box<dyn Future<Output = ()>>>>; LANES] = Default::default();
    mailbox
        .attend(&world, |unit, cx| {
            if unit == ORDERS {
                while let Some(order) = mailbox.next_order() {
                    match order {
                        Order::Act(mut random) => {
                            let kind = random.pick(&kinds);
                            watch::count(kind.name());
                            match kind {
                                Kind::Share => ledger.shared.set(true),
                                Kind::Create => ledger.named.set(true),
                                _ => {}
                            }
                            let ms = random.pick(&[100, 3000, 30_000, 130_000, 300_000]);
                            let end =
                                (world.now() + 1000 * random.between(1, ms)).min(1000 * FAULTY);
                            let n = random.between(1, LANES as u64) as usize;
                            watch::trace(|| format!("node{me}: {kind:?} by {n} until {end}"));
                            for (at, lane) in lanes.iter_mut().enumerate().take(n) {
                                let (world, random) = (world.clone(), random.fork());
                                *lane = Some(Box::pin(attack(world, (me, at), kind, random, end)));
                            }
                        }
                        Order::Settled(_) => lanes = Default::default(),
                        Order::End | Order::Restart => {}
                    }
                    (0..LANES).for_each(|n| units.wake(FIRST + n));
                }
            } else if let Some(at) = unit.checked_sub(FIRST)
                && let Some(lane) = &mut lanes[at]
                && application(|| lane.as_mut().poll(cx)).is_ready()
            {
                lanes[at] = None;
            }
        })
        .await;
}

/// Makes one connection after the other until `end`.
async fn attack(world: World, session: Session, kind: Kind, mut random: Random, end: u64) {
    // The pause between connections, different for each attack.
    let rest = random.pick(&[100, 1000, 20_000]);
    while world.now() < end {
        let script = kind.script(&mut random);
        let answer = Answer::of(kind, &mut random);
        let (mut frames, mut next) = (Frames::default(), 0);
        let receive = |bytes: &[u8]| {
            let mut replies = Vec::new();
            if kind.speaks_http() {
                return replies;
            }
            for frame in frames.read(bytes) {
                match frame {
                    Frame::Heartbeat if answer != Answer::Nothing => replies.extend(b"NOP\n"),
                    Frame::Heartbeat | Frame::Response(_) => {}
                    // The message is delivered again within a minute.
                    Frame::Message { .. } if answer == Answer::FinishSome && world.now() < next => {
                    }
                    Frame::Message { id, .. } => {
                        next = world.now() + SOME;
                        replies.extend(answer.to(&id));
                    }
                }
            }
            replies
        };
        let left = Span::from_millis(((end - world.now()) / 1000 + 1) as u32);
        let patience = random.pick(&[1000, 20_000, 300_000]);
        let patience = Span::from_millis(patience).min(left);
        let host = if kind.speaks_http() { "stat0" } else { "nsqd0" };
        play(&world, session, host, script, patience, receive).await;
        let mut clock = Clock::of_session(&world, session);
        pause(&mut clock, Span::from_millis(random.between(10, rest) as u32)).await;
    }
}

/// The interval in microseconds at which finishing one message keeps a channel consumed.
const SOME: u64 = 25_000_000;

/// A hostile consumer's answer to a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// No answer, neither to heartbeats.
    Nothing,
    /// No answer, but to heartbeats.
    Beats,
    /// Requeues it for this many milliseconds.
    Requeue(u32),
    /// Touches it again and again.
    Touch,
    /// Finishes it.
    Finish,
    /// Finishes one now and then.
    FinishSome,
}

impl Answer {
    fn of(kind: Kind, random: &mut Random) -> Self {
        match random.below(6) {
            _ if kind == Kind::Hoard => Self::FinishSome,
            0 => Self::Nothing,
            1 => Self::Beats,
            2 => Self::Requeue(0),
            // Messages that the honest consumer needs come back before the end.
            3 if kind == Kind::Share => Self::Requeue(random.pick(&[1000, 60_000])),
            3 => Self::Requeue(random.pick(&[1000, 60_000, 3_600_000])),
            4 => Self::Touch,
            // Messages of the honest consumer are not finished here.
            _ if kind == Kind::Share => Self::Beats,
            _ => Self::Finish,
        }
    }

    fn to(self, id: &[u8; 16]) -> Vec<u8> {
        let line = |verb: &str, rest: &str| [verb.as_bytes(), id, rest.as_bytes()].concat();
        match self {
            Self::Nothing | Self::Beats => Vec::new(),
            Self::Requeue(ms) => line("REQ ", &format!(" {ms}\n")),
            Self::Touch => line("TOUCH ", "\n"),
            Self::Finish | Self::FinishSome => line("FIN ", "\n"),
        }
    }
}

/// Returns a topic that no honest client has.
fn hostile_topic(random: &mut Random) -> String {
    format!("evil{}", random.below(8))
}

/// Returns a topic of its own, or an unconsumed one of the device.
fn any_topic(random: &mut Random) -> String {
    if random.one_in(3) { random.pick(&OTHERS).to_owned() } else { hostile_topic(random) }
}

fn channel(random: &mut Random) -> String {
    format!("c{}{}", random.below(3), random.pick(&["", "", "#ephemeral"]))
}

/// Returns the length of a body.
fn length(random: &mut Random) -> u32 {
    let most = random.pick(&[1, 100, 800, 2000, 16_000, 32_000, 60_000, 1 << 20]);
    random.pick(&[1, most / 2 + 1, most, random.clone().between(1, most.into()) as u32])
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Announce => "hostile announce",
            Self::Batch => "hostile batch",
            Self::Junk => "hostile junk",
            Self::Post => "hostile post",
            Self::Names => "hostile names",
            Self::Create => "hostile create",
            Self::Consume => "hostile consume",
            Self::Share => "hostile share",
            Self::Hoard => "hostile hoard",
            Self::Silent => "hostile silent",
            Self::Deaf => "hostile deaf",
            Self::Slow => "hostile slow",
        }
    }

    fn speaks_http(self) -> bool {
        matches!(self, Self::Post | Self::Create | Self::Slow)
    }

    /// Makes the script of one connection.
    fn script(self, random: &mut Random) -> VecDeque<Part> {
        let mut script = VecDeque::new();
        let mute = self == Self::Silent && random.one_in(3);
        let identifies = self != Self::Hoard && !random.one_in(3);
        if !self.speaks_http() && !mute {
            let mut hello = b"  V2".to_vec();
            if identifies {
                hello.extend(identify(random));
            }
            script.push_back(Part::Send(hello));
        }
        match self {
            Self::Announce => announce(random, &mut script),
            Self::Batch => batch(random, &mut script),
            Self::Junk => junk(random, &mut script),
            Self::Post => post(random, &mut script),
            Self::Names => names(random, &mut script),
            Self::Create => create(random, &mut script),
            Self::Consume | Self::Share => consume(self, random, &mut script),
            Self::Hoard => hoard(random, &mut script),
            Self::Silent => {}
            Self::Deaf => deaf(random, &mut script),
            Self::Slow => slow(random, &mut script),
        }
        if random.one_in(4) {
            let ms = random.pick(&[1, 300, 10_000]);
            script.push_back(Part::Pause(Span::from_millis(ms)));
            script.push_back(if random.one_in(2) { Part::Close } else { Part::Cut });
        }
        script
    }
}

/// Returns a command with a body.
fn sized(line: &str, body: &[u8]) -> Vec<u8> {
    [line.as_bytes(), b"\n", &(body.len() as u32).to_be_bytes(), body].concat()
}

fn identify(random: &mut Random) -> Vec<u8> {
    let heartbeat = random.pick(&[-1, -1, 1000, 30_000, 60_000]);
    let mut json = format!("{{\"heartbeat_interval\":{heartbeat}");
    if random.one_in(3) {
        json.push_str(",\"msg_timeout\":900000");
    }
    json.push('}');
    sized("IDENTIFY", json.as_bytes())
}

fn announce(random: &mut Random, script: &mut VecDeque<Part>) {
    let (topic, len) = (any_topic(random), length(random));
    let mut command = match random.below(4) {
        0 => format!("DPUB {topic} {}\n", random.pick(&[0, 1000, 3_600_000])),
        1 => format!("MPUB {topic}\n"),
        _ => format!("PUB {topic}\n"),
    }
    .into_bytes();
    command.extend(len.to_be_bytes());
    script.push_back(Part::Send(command));
    match random.below(3) {
        0 => {}
        1 => {
            let some = random.between(0, 200.min(u64::from(len) - 1));
            script.push_back(Part::Send(vec![b'a'; some as usize]));
        }
        _ => script.push_back(trickle(random, &vec![b'a'; len.min(4000) as usize])),
    }
}

fn trickle(random: &mut Random, bytes: &[u8]) -> Part {
    let ms = random.pick(&[100, 1000, 5000, 20_000]);
    Part::Trickle(bytes.iter().copied().collect(), Span::from_millis(ms))
}

fn batch(random: &mut Random, script: &mut VecDeque<Part>) {
    let (topic, len) = (any_topic(random), length(random).max(10));
    let count = random.pick(&[1, 2, 100, len / 5, len, 0x7fff_ffff]);
    let mut command = format!("MPUB {topic}\n").into_bytes();
    command.extend(len.to_be_bytes());
    command.extend(count.to_be_bytes());
    script.push_back(Part::Send(command));
    // Messages of the longest or the shortest possible length.
    let each = random.pick(&[1, 1, 100, len / count.max(1)]).max(1);
    let message = [&each.to_be_bytes()[..], &vec![b'm'; each.min(4000) as usize]].concat();
    let some = message.repeat(random.pick(&[1, 3, 20]));
    script.push_back(if random.one_in(2) { trickle(random, &some) } else { Part::Send(some) });
}

fn junk(random: &mut Random, script: &mut VecDeque<Part>) {
    let topic = any_topic(random);
    if random.one_in(3) {
        // A channel that nobody consumes.
        script.push_back(Part::Send(format!("SUB {topic} {}\n", channel(random)).into_bytes()));
    }
    let body = vec![b'j'; random.pick(&[1, 50, 200, 2000])];
    let command = match random.below(4) {
        0 => sized(&format!("DPUB {topic} 3600000"), &body),
        _ => sized(&format!("PUB {topic}"), &body),
    };
    let ms = random.pick(&[0, 10, 300]);
    for _ in 0..random.between(1, 300) {
        script.push_back(Part::Send(command.clone()));
        if ms > 0 {
            script.push_back(Part::Pause(Span::from_millis(ms)));
        }
    }
}

fn post(random: &mut Random, script: &mut VecDeque<Part>) {
    let topic = any_topic(random);
    let len = random.pick(&[1, 50, 200, 2000]);
    let path = random.pick(&["pub?topic=", "mpub?topic=", "pub?defer=3600000&topic="]);
    for _ in 0..random.between(1, 100) {
        let head =
            format!("POST /{path}{topic} HTTP/1.1\r\nHost: h\r\nContent-Length: {len}\r\n\r\n");
        let body = std::iter::repeat_n(b'j', len);
        script.push_back(Part::Send(head.into_bytes().into_iter().chain(body).collect()));
    }
}

fn names(random: &mut Random, script: &mut VecDeque<Part>) {
    let topic = if random.one_in(4) { any_topic(random) } else { hostile_topic(random) };
    let command = match random.below(4) {
        0 => sized(&format!("PUB {topic}"), b"j"),
        _ => format!("SUB {topic} {}\n", channel(random)).into_bytes(),
    };
    script.push_back(Part::Send(command));
    if !random.one_in(4) {
        script.push_back(Part::Pause(Span::from_millis(random.pick(&[1, 200]))));
        script.push_back(if random.one_in(2) { Part::Close } else { Part::Cut });
    }
}

fn create(random: &mut Random, script: &mut VecDeque<Part>) {
    for _ in 0..random.between(1, 10) {
        let topic = any_topic(random);
        let path = match random.below(2) {
            0 => format!("topic/create?topic={topic}"),
            _ => {
                let channel = channel(random).replace('#', "%23");
                format!("channel/create?topic={topic}&channel={channel}")
            }
        };
        let head = format!("POST /{path} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n");
        script.push_back(Part::Send(head.into_bytes()));
    }
}

fn consume(kind: Kind, random: &mut Random, script: &mut VecDeque<Part>) {
    let (topic, channel) = match kind {
        Kind::Share => (READINGS.to_owned(), ARCHIVE.to_owned()),
        _ if random.one_in(2) => (READINGS.to_owned(), channel(random)),
        _ => (any_topic(random), channel(random)),
    };
    if topic != READINGS && random.one_in(2) {
        // Publish something to consume.
        script.push_back(Part::Send(sized(&format!("PUB {topic}"), b"j")));
    }
    let rdy = random.pick(&[0, 1, 10, 100, 100, 2500]);
    script.push_back(Part::Send(format!("SUB {topic} {channel}\nRDY {rdy}\n").into_bytes()));
    if random.one_in(3) {
        script.push_back(Part::Narrow(random.between(1, 200) as usize));
        script.push_back(Part::DeafFor(Span::from_millis(random.pick(&[500, 60_000, 300_000]))));
    }
}

fn hoard(random: &mut Random, script: &mut VecDeque<Part>) {
    if random.one_in(2) {
        script.push_back(Part::Send(sized("IDENTIFY", br#"{"msg_timeout":30000}"#)));
        script.push_back(Part::Send(b"SUB evil c\nRDY 1\n".to_vec()));
    } else {
        script.push_back(Part::Send(sized("PUB evil", &[b'j'; 1400]).repeat(20)));
    }
}

fn deaf(random: &mut Random, script: &mut VecDeque<Part>) {
    script.push_back(Part::Narrow(random.between(1, 200) as usize));
    script.push_back(Part::DeafFor(Span::from_secs(300)));
    let topic = hostile_topic(random);
    let command = match random.below(4) {
        0 => "FIN 0123456789abcdef\n".to_owned(),
        1 => "NOP\n".to_owned(),
        2 => "TOUCH 0123456789abcdef\n".to_owned(),
        _ => String::from_utf8_lossy(&sized(&format!("PUB {topic}"), b"j")).into_owned(),
    };
    for _ in 0..random.between(1, 40) {
        script.push_back(Part::Send(command.repeat(10).into_bytes()));
    }
}

fn slow(random: &mut Random, script: &mut VecDeque<Part>) {
    let get = |path: &str| format!("GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes();
    match random.below(6) {
        // Sends nothing at all.
        0 => {}
        1 => {
            let head = get("ping");
            let cut = random.between(1, head.len() as u64 - 1) as usize;
            script.push_back(Part::Send(head[..cut].to_vec()));
        }
        2 => script.push_back(trickle(random, &get("stats?format=json"))),
        3 => {
            let head = format!(
                "POST /pub?topic={} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
                any_topic(random),
                random.pick(&[10, 1000, 10_000])
            );
            script.push_back(Part::Send(head.into_bytes()));
            script.push_back(trickle(random, &[b'b'; 9]));
        }
        4 => {
            script.push_back(Part::Narrow(random.between(1, 100) as usize));
            script.push_back(Part::DeafFor(Span::from_secs(300)));
            let path = random.pick(&["stats", "stats?format=json", "info"]);
            for _ in 0..random.between(1, 10) {
                script.push_back(Part::Send(get(path)));
            }
        }
        // Was answered, and stays connected.
        _ => script.push_back(Part::Send(get("ping"))),
    }
}
