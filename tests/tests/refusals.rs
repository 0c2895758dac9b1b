//! The decoders for servers accept and refuse the same commands as real nsqd and nsqlookupd, with
//! the same errors.
//!
//! Streams of commands, most of them damaged, go to the real server and to the decoder. Only
//! refusals that end the connection are compared: the others depend on topics and messages, which
//! decoders do not know. `SEEDS=100000 cargo test --release -p nanonsq-tests --test refusals` sends
//! more of them.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use nanonsq_std::core::wire::{nsqd, nsqlookupd};
use nanonsq_tests::{Nsqd, Nsqlookupd, ServerOptions, random, require_peers};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The number of streams of commands for each server.
const STREAMS: u32 = 3000;
/// The number of IDENTIFY with damaged JSON for each server.
const BODIES: u32 = 1000;
/// The limit for one conversation.
const LIMIT: Duration = Duration::from_secs(10);
/// The most differences that are printed.
const SHOWN: usize = 20;

/// Small limits, so that commands reach them; nsqd is started with the same.
const LIMITS: nsqd::Limits =
    nsqd::Limits { max_msg_size: 300, max_body_size: 400, ..nsqd::Limits::NSQD };

/// The longest V1 IDENTIFY that the decoder accepts here; nsqlookupd accepts longer ones.
const NODE_MAX: u32 = 100_000;

/// Commands for nsqd.
const TO_NSQD: &[&[u8]] = &[
    b"NOP\n",
    b"SUB t c\n",
    b"RDY 10\n",
    b"RDY\n",
    b"RDY \n",
    b"FIN 0123456789abcdef\n",
    b"REQ 0123456789abcdef 100\n",
    b"TOUCH 0123456789abcdef\r\n",
    b"CLS\n",
    b"PUB t\n\0\0\0\x02hi",
    b"MPUB t\n\0\0\0\x0f\0\0\0\x02\0\0\0\x01a\0\0\0\x02bc",
    b"DPUB t 250\n\0\0\0\x01x",
    b"AUTH\n\0\0\0\x02s3",
    // Beyond a limit.
    b"RDY 2501\n",
    b"PUB t\n\0\0\x01\x2d",
    b"MPUB t\n\0\0\x01\x91",
    b"MPUB t\n\0\0\0\x09\0\0\0\x50",
    b"DPUB t 3600001\n\0\0\0\x01x",
    // Bad names and parameters.
    b"PUB bad$topic\n",
    b"SUB t bad$\n",
    b"SUB $ $\n",
    b"SUB t\n",
    b"MPUB \xff\"\n",
    b"PUB\n",
    b"\n",
    b"XX y\n",
    b"AUTH x\n",
    b"FIN 1\n",
];

/// Bodies of IDENTIFY for nsqd.
const CLIENTS: &[&str] = &[
    r#"{"client_id":"a\u00e9","hostname":null,"heartbeat_interval":1000,"msg_timeout":5000,
       "x":[{},1.5e3,"\n"],"sample_rate":10,"tls_v1":true}"#,
    r#"{"heartbeat_interval":-1,"output_buffer_size":64,"output_buffer_timeout":25}"#,
    r#"{"output_buffer_timeout":250,"tls_v1":false,"user_agent":"\u00e9\ud83d\ude00x"}"#,
    // Beyond a limit.
    r#"{"heartbeat_interval":100}"#,
    r#"{"output_buffer_timeout":24}"#,
    // Mutually exclusive.
    r#"{"feature_negotiation":true,"snappy":true,"deflate":true}"#,
];

/// Commands for nsqlookupd.
const TO_NSQLOOKUPD: &[&[u8]] = &[
    b"PING\n",
    b" PING \r\n",
    b"REGISTER t\n",
    b"REGISTER t c\n",
    b"UNREGISTER t  c\n",
    b"UNREGISTER t c#ephemeral\n",
    b"IDENTIFY\n\0\0\0\x02{}",
    b"IDENTIFY x\n\0\0\0\0",
    // Bad names and parameters.
    b"REGISTER\n",
    b"REGISTER $ $\n",
    b"REGISTER t $\n",
    b"register t\n",
    b"\n",
];

/// A body of IDENTIFY for nsqlookupd.
const NODE: &str = r#"{"broadcast_address":"a","tcp_port":1,"http_port":2,"version":"v",
    "hostname":null,"x":{}}"#;

#[tokio::test]
async fn nsqd_refuses_the_same_commands_with_the_same_errors() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, options()).await;
    compare(STREAMS, nsqd.tcp_address(), by_nsqd, by_v2, |random| {
        let mut stream = nsqd::MAGIC.to_vec();
        for _ in 0..=random.below(4) {
            match random.below(5) {
                0 => stream.extend(identify(random.pick(CLIENTS).as_bytes())),
                _ => stream.extend_from_slice(random.pick(TO_NSQD)),
            }
        }
        random.damage(&mut stream, nsqd::MAGIC.len());
        stream
    })
    .await;
}

#[tokio::test]
async fn nsqd_refuses_the_same_json_with_the_same_errors() {
    let peers = require_peers!();
    let nsqd = Nsqd::start(&peers, options()).await;
    compare(BODIES, nsqd.tcp_address(), by_nsqd, by_v2, |random| {
        let body = random.pick(CLIENTS);
        // SUB is refused where the body switches heartbeats off.
        identify_damaged(random, nsqd::MAGIC, body, b"SUB t c\n")
    })
    .await;
}

#[tokio::test]
async fn nsqlookupd_refuses_the_same_commands_with_the_same_errors() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    compare(STREAMS, lookupd.tcp_address(), by_nsqlookupd, by_v1, |random| {
        let mut stream = nsqlookupd::MAGIC.to_vec();
        // Most other commands are refused before IDENTIFY.
        if random.below(4) > 0 {
            stream.extend(identify(NODE.as_bytes()));
        }
        for _ in 0..random.below(5) {
            match random.below(8) {
                0 => stream.extend(identify(NODE.as_bytes())),
                _ => stream.extend_from_slice(random.pick(TO_NSQLOOKUPD)),
            }
        }
        random.damage(&mut stream, nsqlookupd::MAGIC.len());
        stream
    })
    .await;
}

#[tokio::test]
async fn nsqlookupd_refuses_the_same_json_with_the_same_errors() {
    let peers = require_peers!();
    let lookupd = Nsqlookupd::start(&peers, ServerOptions::new()).await;
    compare(BODIES, lookupd.tcp_address(), by_nsqlookupd, by_v1, |random| {
        identify_damaged(random, nsqlookupd::MAGIC, NODE, b"REGISTER t\n")
    })
    .await;
}

fn options() -> ServerOptions {
    ServerOptions::new()
        .flag(format!("--max-msg-size={}", LIMITS.max_msg_size))
        .flag(format!("--max-body-size={}", LIMITS.max_body_size))
}

/// The result of a stream.
#[derive(PartialEq, Eq)]
enum Verdict {
    /// All commands are accepted.
    Accepted,
    /// A command is refused with this error.
    Refused(Vec<u8>),
    /// A deliberate difference between nanonsq and the real server.
    Differs(Difference),
}

/// The deliberate differences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Difference {
    /// nsqd would continue in snappy or deflate; the decoder reads decompressed bytes.
    Compressed,
    /// A negative length of IDENTIFY crashes nsqlookupd; it waits for any long one.
    NodeLength,
    /// nsqlookupd accepts impossible ports, such as -1.
    NodePort,
    /// nsqlookupd has no bound on a line or an address.
    Unbounded,
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted => f.write_str("taken"),
            Self::Refused(error) => write!(f, "refused: {}", error.escape_ascii()),
            Self::Differs(difference) => write!(f, "{difference:?}"),
        }
    }
}

/// Sends `streams` generated streams to `server` and to the decoder, and compares the verdicts.
async fn compare(
    streams: u32,
    server: SocketAddr,
    theirs: fn(&[u8]) -> Verdict,
    ours: fn(&[u8]) -> Verdict,
    generate: impl Fn(&mut Random) -> Vec<u8>,
) {
    let streams = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(streams);
    let (mut taken, mut refused, mut skipped, mut differ) = (0, 0, 0, 0);
    for seed in 0..streams {
        let stream = generate(&mut Random(random::Random::new(seed.into())));
        let ours = ours(&stream);
        if let Verdict::Differs(_) = ours {
            // Do not send it: it might crash the server.
            skipped += 1;
            continue;
        }
        let theirs = theirs(&exchange(server, &stream).await);
        match theirs {
            Verdict::Refused(_) => refused += 1,
            Verdict::Accepted | Verdict::Differs(_) => taken += 1,
        }
        if ours != theirs {
            differ += 1;
            if differ <= SHOWN {
                println!("seed {seed}: {}", stream.escape_ascii());
                println!("  ours   {ours:?}\n  theirs {theirs:?}");
            }
        }
    }
    println!("{streams} streams: {taken} taken, {refused} refused, {skipped} skipped");
    assert_eq!(differ, 0, "of {streams} streams; see above");
    // Otherwise the generator has become useless.
    let few = streams / 50;
    assert!(taken >= few && refused >= few && skipped <= streams / 4, "one-sided streams");
}

/// Returns all that `server` answers to `stream`.
async fn exchange(server: SocketAddr, stream: &[u8]) -> Vec<u8> {
    let conversation = async {
        let mut socket = TcpStream::connect(server).await.expect("a server that listens");
        let mut replies = Vec::new();
        // These fail if the server refused and closed before it read everything; earlier replies
        // are still read.
        let _ = socket.write_all(stream).await;
        let _ = socket.shutdown().await;
        let _ = socket.read_to_end(&mut replies).await;
        replies
    };
    tokio::time::timeout(LIMIT, conversation)
        .await
        .unwrap_or_else(|_| panic!("no end within {LIMIT:?}: {}", stream.escape_ascii()))
}

/// Returns nsqd's verdict from its frames: `[u32 size][u32 type][data]`; the size includes the
/// type.
fn by_nsqd(replies: &[u8]) -> Verdict {
    const ERROR: &[u8] = &[0, 0, 0, 1];
    for frame in sized(replies) {
        if let Some(error) = frame.strip_prefix(ERROR)
            && nsqd::ErrorCode::parse(error).0.is_fatal()
        {
            return Verdict::Refused(error.to_vec());
        }
    }
    Verdict::Accepted
}

/// Returns nsqlookupd's verdict from its replies: `[u32 size][data]`. All its errors are fatal.
fn by_nsqlookupd(replies: &[u8]) -> Verdict {
    sized(replies)
        .find(|reply| reply.starts_with(b"E_"))
        .map_or(Verdict::Accepted, |error| Verdict::Refused(error.to_vec()))
}

/// Splits replies by their lengths; a reply that is cut off is left out.
fn sized(replies: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = replies;
    std::iter::from_fn(move || {
        let (size, data) = rest.split_first_chunk::<4>()?;
        let (reply, behind) = data.split_at_checked(u32::from_be_bytes(*size) as usize)?;
        rest = behind;
        Some(reply)
    })
}

/// Returns the decoder's verdict on a stream for nsqd.
fn by_v2(stream: &[u8]) -> Verdict {
    let mut commands = nsqd::CommandDecoder::new();
    let mut input = stream;
    let mut identify = None;
    let mut auth = false;
    loop {
        let item = match commands.next(&LIMITS, &mut input) {
            Ok(Some(item)) => item,
            Ok(None) => {
                return commands.end().map_or_else(|r| refused_v2(&r), |()| Verdict::Accepted);
            }
            Err(refusal) => return refused_v2(&refusal),
        };
        match item {
            nsqd::Item::Identify => identify = Some(nsqd::IdentifyScanner::<64, 32>::new()),
            nsqd::Item::Auth => auth = true,
            nsqd::Item::Part { data, done, .. } => {
                if let Some(scanner) = &mut identify {
                    // An error is returned again at the end; nsqd reads the whole body first.
                    let _ = scanner.feed(data);
                }
                if !done {
                    continue;
                }
                if auth {
                    return refused_v2(&nsqd::Refusal::AuthDisabled);
                }
                if let Some(mut scanner) = identify.take() {
                    let asked = match scanner.finish(&LIMITS) {
                        Ok(identification) => identification.settings,
                        Err(refusal) => return refused_v2(&refusal),
                    };
                    if asked.feature_negotiation && (asked.snappy || asked.deflate) {
                        return Verdict::Differs(Difference::Compressed);
                    }
                    match asked.heartbeat_interval {
                        0 => {}
                        interval => commands.set_heartbeats(interval > 0),
                    }
                }
            }
            _ => {}
        }
    }
}

/// Returns the decoder's verdict on a stream for nsqlookupd.
fn by_v1(stream: &[u8]) -> Verdict {
    let mut commands = nsqlookupd::CommandDecoder::new(NODE_MAX);
    let mut input = stream;
    let mut scanner = nsqlookupd::NodeInfoScanner::new();
    let mut body = Vec::new();
    loop {
        match commands.next(&mut input) {
            Ok(Some(nsqlookupd::Item::Part { data, last })) => {
                let _ = scanner.feed(data);
                body.extend_from_slice(data);
                if last && let Err(refusal) = scanner.finish() {
                    return refused_v1(&refusal, &body);
                }
            }
            Ok(Some(_)) => {}
            Ok(None) => {
                return commands
                    .end()
                    .map_or_else(|r| refused_v1(&r, &body), |()| Verdict::Accepted);
            }
            Err(refusal) => return refused_v1(&refusal, &body),
        }
    }
}

fn refused_v2(refusal: &nsqd::Refusal<'_>) -> Verdict {
    let mut error = vec![0; refusal.encoded_len()];
    refusal.emit(&mut error.as_mut_slice()).unwrap();
    Verdict::Refused(error)
}

fn refused_v1(refusal: &nsqlookupd::Refusal<'_>, body: &[u8]) -> Verdict {
    match refusal {
        nsqlookupd::Refusal::BadLength { .. } => return Verdict::Differs(Difference::NodeLength),
        nsqlookupd::Refusal::LineTooLong | nsqlookupd::Refusal::AddressTooLong => {
            return Verdict::Differs(Difference::Unbounded);
        }
        nsqlookupd::Refusal::MissingFields if has_odd_port(body) => {
            return Verdict::Differs(Difference::NodePort);
        }
        _ => {}
    }
    let mut error = vec![0; refusal.encoded_len()];
    refusal.emit(&mut error.as_mut_slice()).unwrap();
    Verdict::Refused(error)
}

fn has_odd_port(body: &[u8]) -> bool {
    // Go replaces invalid UTF-8 in the same way.
    let node: Value = serde_json::from_str(&String::from_utf8_lossy(body)).unwrap_or_default();
    ["tcp_port", "http_port"]
        .iter()
        .filter_map(|key| node[key].as_i64())
        .any(|port| u16::try_from(port).is_err())
}

fn identify(body: &[u8]) -> Vec<u8> {
    [b"IDENTIFY\n", &(body.len() as u32).to_be_bytes()[..], body].concat()
}

/// Returns an IDENTIFY with a damaged body, followed by a command.
fn identify_damaged(random: &mut Random, magic: [u8; 4], body: &str, then: &[u8]) -> Vec<u8> {
    let mut body = body.as_bytes().to_vec();
    random.damage(&mut body, 0);
    random.damage(&mut body, 0);
    [&magic[..], &identify(&body), then].concat()
}

/// The generator, with helpers.
struct Random(random::Random);

impl Random {
    /// Returns a number in `0..bound`.
    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }

    /// Changes, removes, inserts or repeats bytes from `start` on, in 0 to 2 places.
    fn damage(&mut self, bytes: &mut Vec<u8>, start: usize) {
        // Bytes with a meaning for one of the parsers.
        const SPECIAL: &[u8] = b"\0\x01\xff\n\r \"\\a019-$#\x07\x7f\xc3{}[],.:e";
        for _ in 0..self.pick(&[0, 0, 1, 1, 2]) {
            if bytes.len() <= start {
                break;
            }
            let at = start + self.below(bytes.len() - start);
            match self.below(4) {
                0 => bytes[at] = self.pick(SPECIAL),
                1 => drop(bytes.remove(at)),
                2 => bytes.insert(at, self.pick(SPECIAL)),
                _ => {
                    let end = bytes.len().min(at + self.below(10));
                    bytes.extend_from_within(at..end);
                    let repeated = end - at;
                    bytes[at..].rotate_right(repeated);
                }
            }
        }
    }
}
