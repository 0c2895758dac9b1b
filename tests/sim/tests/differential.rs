//! The model servers respond as the real ones do: scripts of commands are sent to both, and every
//! byte of the responses is compared.
//!
//! `SEEDS=100000 cargo test --release -p nanonsq-sim --test differential` replays more of them.

use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_models::nsqd::{self, Settings};
use nanonsq_models::nsqlookupd;
use nanonsq_models::random::Random;
use nanonsq_models::server::{Out, Reply, Server};
use nanonsq_tests::{Nsqd, Nsqlookupd, ServerOptions, require_peers};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The number of scripts for each server.
const SCRIPTS: u64 = 2000;
/// The limit for one conversation.
const LIMIT: Duration = Duration::from_secs(10);
/// The most attempts: a real server's responses may get lost when it closes with unread bytes.
const ATTEMPTS: usize = 4;

/// Small limits, so that commands reach them; nsqd is started with the same.
const MESSAGE_MAX: i32 = 300;
const BODY_MAX: i32 = 400;

const TO_NSQD: &[&[u8]] = &[
    b"NOP\n",
    b"NOP\r\n",
    b"PUB t\n\0\0\0\x02hi",
    b"PUB t#ephemeral and more\n\0\0\0\x02hi",
    b"MPUB t\n\0\0\0\x0f\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc",
    b"DPUB t 250\n\0\0\0\x01x",
    b"DPUB t 0\n\0\0\0\x01x",
    b"IDENTIFY\n\0\0\0\x02{}",
    b"IDENTIFY\n\0\0\0\x1c{\"feature_negotiation\":true}",
    b"IDENTIFY\n\0\0\0\x1b{\"heartbeat_interval\":1000}",
    b"IDENTIFY\n\0\0\0\x19{\"heartbeat_interval\":-1}",
    // Refused for their content or for a limit.
    b"IDENTIFY\n\0\0\0\x1a{\"heartbeat_interval\":100}",
    b"IDENTIFY\n\0\0\0\x01{",
    b"IDENTIFY\n\0\0\0\0",
    b"IDENTIFY\n\0\0\x01\x91",
    b"IDENTIFY\n\xff\xff\xff\xff",
    b"AUTH\n\0\0\0\x02s3",
    b"AUTH x\n",
    b"AUTH\n\0\0\0\0",
    b"AUTH\n\0\0\x01\x91",
    b"PUB t\n\0\0\x01\x2d",
    b"PUB t\n\0\0\0\0",
    b"PUB t\n\x80\0\0\0",
    b"PUB\n",
    b"PUB \n",
    b"PUB bad$topic\n",
    b"PUB 12345678901234567890123456789012345678901234567890123456789012345\n",
    b"MPUB\n",
    b"MPUB bad$\n",
    b"MPUB t\n\0\0\x01\x91",
    b"MPUB t\n\0\0\0\0",
    b"MPUB t\n\0\0\0\x08\0\0\0\0\0\0\0\0",
    b"MPUB t\n\0\0\0\x08\0\0\0\x50\0\0\0\0",
    b"MPUB t\n\0\0\0\x0d\0\0\0\x02\0\0\0\x01a\0\0\0\0",
    b"MPUB t\n\0\0\0\x0d\0\0\0\x02\0\0\0\x01a\0\0\x01\x2d",
    b"DPUB t\n",
    b"DPUB bad$ 1\n",
    b"DPUB t x\n",
    b"DPUB t -1\n",
    b"DPUB t 3600001\n\0\0\0\x01x",
    b"DPUB t 1\n\0\0\0\0",
    b"XX y\n",
    b"pub t\n",
    b"\n",
];

const ID: &str = "0123456789abcdef";

/// Commands of a consumer that never receives a message.
fn consumer_commands() -> Vec<Vec<u8>> {
    let lines = [
        "SUB e#ephemeral c#ephemeral",
        "SUB e#ephemeral c#ephemeral and more",
        "RDY 1",
        "RDY",
        "RDY ",
        "RDY 2500",
        "RDY 007",
        "FIN ID",
        "FIN ID more",
        "REQ ID 0",
        "REQ ID 999999999",
        "REQ ID ",
        "TOUCH ID",
        "NOP",
        "CLS",
        "PUB other#ephemeral\n\0\0\0\x02hi",
        // Refused.
        "SUB",
        "SUB e#ephemeral",
        "SUB $ c",
        "SUB e#ephemeral $",
        "SUB  c",
        "RDY 2501",
        "RDY -1",
        "RDY x",
        "RDY 1x",
        "FIN",
        "FIN ",
        "FIN 0123",
        "FIN 0123456789abcdef0",
        "REQ ID",
        "REQ",
        "REQ ID -1",
        "REQ ID x",
        "REQ 0123 1",
        "TOUCH",
        "TOUCH 1",
        "IDENTIFY\n\0\0\0\x02{}",
        "AUTH\n\0\0\0\x02s3",
        "CLS",
        "CLS\nRDY 1",
        "CLS\nCLS",
        "CLS\nFIN ID",
        "IDENTIFY\n\0\0\0\x19{\"heartbeat_interval\":-1}",
        "IDENTIFY\n\0\0\0\x12{\"msg_timeout\":999}",
        "IDENTIFY\n\0\0\0\x35{\"feature_negotiation\":true,\"msg_timeout\":1234      }",
    ];
    let with_end = |line: &str| {
        let body = line.contains('\0');
        let line = line.replace("ID ", &format!("{ID} "));
        let line = if line.ends_with(" ID") { line.replace("ID", ID) } else { line };
        format!("{line}{}", if body { "" } else { "\n" }).into_bytes()
    };
    lines.into_iter().map(with_end).collect()
}

const SECRET: &[u8] = b"s3";

/// Commands to an nsqd that requires AUTH.
const WITH_AUTH: &[&[u8]] = &[
    b"AUTH\n\0\0\0\x02s3",
    b"PUB t\n\0\0\0\x02hi",
    b"MPUB t\n\0\0\0\x0f\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc",
    b"DPUB t 250\n\0\0\0\x01x",
    b"NOP\n",
    b"AUTH\n\0\0\0\x02s4",
    b"AUTH\n\0\0\0\0",
    b"PUB forbidden\n\0\0\0\x02hi",
    b"MPUB forbidden\n\0\0\0\x0f\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc",
    b"DPUB forbidden 250\n\0\0\0\x01x",
    b"PUB bad$topic\n",
    b"PUB t\n\0\0\0\0",
    b"MPUB t\n\0\0\0\0",
    b"IDENTIFY\n\0\0\0\x1c{\"feature_negotiation\":true}",
    b"XX\n",
    b"NOP\n",
    b"NOP\n",
    b"NOP\n",
    b"NOP\n",
    b"NOP\n",
];

const NODE: &[u8] =
    br#"{"broadcast_address":"a","hostname":"h","tcp_port":1,"http_port":2,"version":"v"}"#;

const TO_NSQLOOKUPD: &[&[u8]] = &[
    b"PING\n",
    b" PING \r\n",
    b"REGISTER t\n",
    b"REGISTER t c\n",
    b"REGISTER t c more\n",
    b"UNREGISTER t c\n",
    b"UNREGISTER t c#ephemeral\n",
    b"UNREGISTER t\n",
    b"UNREGISTER never\n",
    // Refused.
    b"REGISTER\n",
    b"REGISTER \n",
    b"REGISTER $ c\n",
    b"REGISTER t $\n",
    b"UNREGISTER\n",
    b"UNREGISTER t  c\n",
    b"register t\n",
    b"IDENTIFY\n\0\0\0\x02{}",
    b"IDENTIFY\n\0\0\0\x02[]",
    b"IDENTIFY\n\0\0\0\0",
    b"\n",
];

#[tokio::test]
async fn the_model_nsqd_responds_as_nsqd() {
    let peers = require_peers!();
    let options = ServerOptions::new()
        .flag(format!("--max-msg-size={MESSAGE_MAX}"))
        .flag(format!("--max-body-size={BODY_MAX}"));
    let real = Nsqd::start(&peers, options).await;
    let settings =
        Settings { max_msg_size: MESSAGE_MAX, max_body_size: BODY_MAX, ..Settings::default() };
    compare(
        real.tcp_address(),
        || nsqd::Nsqd::new(settings.clone()),
        <[u8]>::to_vec,
        |random| script(random, b"  V2", None, TO_NSQD),
    )
    .await;
}

#[tokio::test]
async fn the_model_nsqd_responds_to_consumers_as_nsqd() {
    let peers = require_peers!();
    let real = Nsqd::start(&peers, ServerOptions::new()).await;
    let commands = consumer_commands();
    let commands: Vec<&[u8]> = commands.iter().map(Vec::as_slice).collect();
    compare(
        real.tcp_address(),
        || nsqd::Nsqd::new(Settings::default()),
        <[u8]>::to_vec,
        |random| {
            let first = random.below(5) > 0;
            script(random, b"  V2", first.then_some(&commands[0].to_vec()), &commands)
        },
    )
    .await;
}

/// One step of a conversation with messages; all but the first two answer messages in flight.
#[derive(Debug, Clone, Copy)]
enum Do {
    Publish(u64),
    Ready(u64),
    Finish,
    Requeue,
    Defer,
    Touch,
    Leave,
}

/// Parsed frames: messages as body and attempts, sorted because nsqd promises no order, and all
/// other frames.
#[derive(Debug, Default, PartialEq)]
struct Received {
    messages: Vec<(String, u16)>,
    others: Vec<String>,
    /// Pairs of body and the server's message id.
    ids: Vec<(String, String)>,
}

impl Received {
    fn of(bytes: &[u8]) -> Self {
        let mut received = Self::default();
        let mut rest = bytes;
        while let Some((size, data)) = rest.split_first_chunk::<4>() {
            let (frame, behind) = data.split_at(u32::from_be_bytes(*size) as usize);
            rest = behind;
            let (kind, data) = frame.split_at(4);
            if kind != [0, 0, 0, 2] {
                received.others.push(data.escape_ascii().to_string());
                continue;
            }
            let attempts = u16::from_be_bytes([data[8], data[9]]);
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let body = text(&data[26..]);
            received.ids.push((body.clone(), text(&data[10..26])));
            received.messages.push((body, attempts));
        }
        received.messages.sort();
        received
    }
}

/// One side of a conversation: its messages in flight.
struct Side {
    in_flight: Vec<(String, String)>,
}

impl Side {
    /// Returns the commands of a step, with this server's message ids.
    fn commands(&mut self, what: Do, published: &mut u32, topic: &str) -> Vec<u8> {
        let answer = |form: &str, side: &mut Self| {
            // In the order of bodies, which are the same on both sides.
            side.in_flight.sort();
            let id = if matches!(what, Do::Touch) {
                side.in_flight.first().map(|(_, id)| id.clone())
            } else {
                (!side.in_flight.is_empty()).then(|| side.in_flight.remove(0).1)
            };
            id.map_or(String::from("NOP\n"), |id| form.replace("ID", &id)).into_bytes()
        };
        match what {
            Do::Publish(count) => {
                let mut text = Vec::new();
                for _ in 0..count {
                    let body = format!("m{published:03}");
                    *published += 1;
                    text.extend(format!("PUB {topic}\n\0\0\0\x04{body}").bytes());
                }
                text
            }
            Do::Ready(count) => format!("RDY {count}\n").into_bytes(),
            Do::Finish => answer("FIN ID\n", self),
            Do::Requeue => answer("REQ ID 0\n", self),
            // Deferred far beyond the end of the conversation.
            Do::Defer => answer("REQ ID 600000\n", self),
            Do::Touch => answer("TOUCH ID\n", self),
            Do::Leave => b"CLS\n".to_vec(),
        }
    }
}

/// The silence after which a real nsqd's response counts as complete.
const QUIET: Duration = Duration::from_millis(150);

/// Conversations with messages: both sides deliver the same messages as often and send the same
/// responses. nsqd may choose the order of several messages, so RDY always admits all of them or
/// none.
#[tokio::test]
async fn the_model_nsqd_delivers_as_nsqd() {
    let peers = require_peers!();
    let real = Nsqd::start(&peers, ServerOptions::new()).await;
    let address = real.tcp_address();
    let conversations = (0..40).map(|seed| tokio::spawn(converse(address, seed)));
    let mut delivered = 0;
    for conversation in conversations.collect::<Vec<_>>() {
        delivered += conversation.await.expect("a conversation that is the same");
    }
    println!("{delivered} messages delivered");
    assert!(delivered > 200, "{delivered}");
}

async fn converse(address: SocketAddr, seed: u64) -> usize {
    let mut random = Random::new(seed);
    let topic = format!("conversation{seed}#ephemeral");
    let mut model = nsqd::Nsqd::new(Settings::default());
    let mut out = Out::new(0);
    model.open(1, &mut out);
    let mut socket = TcpStream::connect(address).await.expect("a server that listens");
    let (mut ours, mut theirs) = (Side { in_flight: Vec::new() }, Side { in_flight: Vec::new() });
    let mut delivered = 0;
    let mut published = [0, 0];
    let mut script = vec![];
    let all = [Do::Finish, Do::Finish, Do::Requeue, Do::Defer, Do::Touch];
    for _ in 0..24 {
        script.push(match random.below(8) {
            0 | 1 => Do::Publish(1),
            2 => Do::Publish(random.between(1, 4)),
            // More than there ever are, or none: otherwise nsqd chooses which ones it delivers.
            3 => Do::Ready(random.pick(&[0, 100, 100])),
            _ => random.pick(&all),
        });
    }
    script.push(Do::Leave);
    script.extend([Do::Finish, Do::Requeue, Do::Ready(5), Do::Publish(1), Do::Finish]);
    let hello = format!("  V2SUB {topic} c#ephemeral\n").into_bytes();
    for step in 0..=script.len() {
        let (to_model, to_real) = match step.checked_sub(1) {
            None => (hello.clone(), hello.clone()),
            Some(at) => (
                ours.commands(script[at], &mut published[0], &topic),
                theirs.commands(script[at], &mut published[1], &topic),
            ),
        };
        model.receive(1, &to_model, &mut out);
        let response = out.replies.drain(..).map(|(_, reply)| match reply {
            Reply::Say(_, bytes) => bytes,
            Reply::Close => b"\0\0\0\x09\0\0\0\0close".to_vec(),
        });
        let response: Vec<u8> = response.flatten().collect();
        let expected = Received::of(&response);
        socket.write_all(&to_real).await.expect("a connection");
        let mut bytes = Vec::new();
        // As much as is expected, and then nothing more.
        let mut piece = [0; 4096];
        loop {
            let patience = if bytes.len() < response.len() { LIMIT } else { QUIET };
            match tokio::time::timeout(patience, socket.read(&mut piece)).await {
                Ok(Ok(n)) if n > 0 => bytes.extend_from_slice(&piece[..n]),
                _ => break,
            }
        }
        let real = Received::of(&bytes);
        let what = step.checked_sub(1).map(|at| script[at]);
        assert_eq!(
            (&real.messages, &real.others),
            (&expected.messages, &expected.others),
            "seed {seed}, step {step}: {what:?}"
        );
        delivered += real.messages.len();
        ours.in_flight.extend(expected.ids);
        theirs.in_flight.extend(real.ids);
    }
    delivered
}

#[tokio::test]
async fn the_model_nsqd_with_auth_responds_as_nsqd() {
    let peers = require_peers!();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let flag = format!("--auth-http-address={}", listener.local_addr().expect("its address"));
    tokio::spawn(authorize(listener));
    let real = Nsqd::start(&peers, ServerOptions::new().flag(flag)).await;
    let settings = Settings { secret: Some(SECRET.to_vec()), ..Settings::default() };
    compare(
        real.tcp_address(),
        || nsqd::Nsqd::new(settings.clone()),
        <[u8]>::to_vec,
        |random| {
            let first = random.below(5) > 0;
            script(random, b"  V2", first.then_some(&WITH_AUTH[0].to_vec()), WITH_AUTH)
        },
    )
    .await;
}

/// The server that nsqd asks about secrets: the right secret permits publishing to all topics but
/// `forbidden`.
async fn authorize(listener: TcpListener) {
    while let Ok((mut socket, _)) = listener.accept().await {
        let mut request = vec![0; 4096];
        let n = socket.read(&mut request).await.unwrap_or(0);
        let permitted = String::from_utf8_lossy(&request[..n]).contains("secret=s3");
        let (status, body) = if permitted {
            let body = r#"{"ttl":60,"identity":"","identity_url":"","authorizations":
                [{"topic":"^[^f].*$","channels":[".*"],"permissions":["publish"]}]}"#;
            ("200 OK", body)
        } else {
            ("403 Forbidden", "")
        };
        let len = body.len();
        let reply = format!(
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len}\r\n\
             Connection: close\r\n\r\n{body}"
        );
        let _ = socket.write_all(reply.as_bytes()).await;
    }
}

#[tokio::test]
async fn the_model_nsqlookupd_responds_as_nsqlookupd() {
    let peers = require_peers!();
    let real = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    let identify = [b"IDENTIFY\n", &(NODE.len() as u32).to_be_bytes()[..], NODE].concat();
    compare(
        real.tcp_address(),
        || nsqlookupd::Nsqlookupd::new(u64::MAX / 2),
        without_names,
        |random| {
            let first = random.below(5) > 0;
            script(random, b"  V1", first.then_some(&identify), TO_NSQLOOKUPD)
        },
    )
    .await;
}

/// Makes a script of commands, sometimes cut off, rarely with a wrong magic.
fn script(
    random: &mut Random,
    magic: &[u8; 4],
    first: Option<&Vec<u8>>,
    from: &[&[u8]],
) -> Vec<u8> {
    let magic = if random.one_in(50) { b"  V3" } else { magic };
    let mut script = magic.to_vec();
    script.extend(first.into_iter().flatten());
    for _ in 0..random.below(6) {
        // The first commands of the list are those that are accepted.
        let few = from.len() as u64 / 4;
        let most = if random.one_in(3) { from.len() as u64 } else { few };
        let at = random.below(most);
        script.extend_from_slice(from[at as usize]);
        if random.one_in(20) {
            script.extend(first.into_iter().flatten());
        }
    }
    if random.one_in(3) {
        script.truncate(random.below(script.len() as u64 + 1) as usize);
    }
    script
}

/// Replays scripts to `real` and to a model; `scrub` removes from a response what must differ.
async fn compare<S: Server>(
    real: SocketAddr,
    model: impl Fn() -> S,
    scrub: impl Fn(&[u8]) -> Vec<u8>,
    script: impl Fn(&mut Random) -> Vec<u8>,
) {
    let scripts = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(SCRIPTS);
    let (mut differ, mut answers, mut refusals) = (0, 0, 0);
    for seed in 0..scripts {
        let mut random = Random::new(seed);
        let script = script(&mut random);
        let ours = scrub(&replay(&mut model(), &script, &mut random));
        let mut theirs = Vec::new();
        for _ in 0..ATTEMPTS {
            theirs = scrub(&exchange(real, &script).await);
            if theirs == ours {
                break;
            }
        }
        answers += usize::from(!ours.is_empty());
        refusals += usize::from(ours.windows(2).any(|two| two == b"E_"));
        if ours != theirs {
            differ += 1;
            println!("seed {seed}: {}", script.escape_ascii());
            println!("  model {}\n  real  {}", ours.escape_ascii(), theirs.escape_ascii());
        }
    }
    println!("{scripts} scripts, {answers} with answers, {refusals} with a refusal");
    assert_eq!(differ, 0, "of {scripts} scripts; see above");
    let few = scripts as usize / 10;
    assert!(answers - refusals > few && refusals > few, "one-sided scripts");
}

/// Returns a model's response to a script that arrives in pieces.
fn replay(model: &mut impl Server, script: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = Out::new(0);
    model.open(1, &mut out);
    let mut rest = script;
    while !rest.is_empty() {
        let (piece, behind) = rest.split_at(1 + random.below(rest.len() as u64) as usize);
        model.receive(1, piece, &mut out);
        rest = behind;
    }
    model.ended(1, &mut out);
    assert_eq!(out.replies.last(), Some(&(1, Reply::Close)), "the model closes last");
    let response = out.replies.into_iter().filter_map(|(_, reply)| match reply {
        Reply::Say(_, bytes) => Some(bytes),
        Reply::Close => None,
    });
    response.flatten().collect()
}

/// Returns a real server's response to a script.
async fn exchange(server: SocketAddr, script: &[u8]) -> Vec<u8> {
    let conversation = async {
        let mut socket = TcpStream::connect(server).await.expect("a server that listens");
        let mut replies = Vec::new();
        // These fail if the server refused and closed before it read everything.
        let _ = socket.write_all(script).await;
        let _ = socket.shutdown().await;
        let _ = socket.read_to_end(&mut replies).await;
        replies
    };
    tokio::time::timeout(LIMIT, conversation)
        .await
        .unwrap_or_else(|_| panic!("no end within {LIMIT:?}: {}", script.escape_ascii()))
}

/// Returns nsqlookupd's responses without its own names and ports.
fn without_names(replies: &[u8]) -> Vec<u8> {
    let mut rest = replies;
    let mut kept = Vec::new();
    while let Some((size, data)) = rest.split_first_chunk::<4>() {
        let (reply, behind) = data.split_at(u32::from_be_bytes(*size) as usize);
        rest = behind;
        match serde_json::from_slice::<serde_json::Value>(reply) {
            Ok(serde_json::Value::Object(info)) => {
                for (key, value) in &info {
                    let kind = if value.is_string() { "text" } else { "number" };
                    let value = if key == "version" { value.to_string() } else { kind.into() };
                    kept.extend(format!("{key}={value};").bytes());
                }
            }
            _ => kept.extend([size, reply].concat()),
        }
    }
    kept
}
