//! The scenario in which the device is an nsqd among hostile clients, which announce bodies that
//! never come, fill the store, keep their messages and stay silent, on all its sockets. Meanwhile
//! its application publishes within [`LIMIT`], and an honest consumer receives every reading once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nanonsq_tests::oracle::{Frame, Message};
use nanonsq_tests::{http, ports};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, sleep_until, timeout};

use super::device::Device;
use super::scenario::{READINGS, REPORTS};
use crate::judge::{exactly_once, expect};

/// Time limit for each publish of the application.
const LIMIT: Duration = Duration::from_secs(2);
/// Time limit between two readings at the consumer: [`LIMIT`], plus time for a busy machine.
const GAP: Duration = Duration::from_secs(3);
/// Time of each attack.
const ATTACK: Duration = Duration::from_secs(7);
/// Time without attacks at the end.
const PEACE: Duration = Duration::from_secs(4);
/// Time between readings.
const PERIOD: Duration = Duration::from_millis(50);
/// Time limit for the end of the device, once its messages are consumed.
const END: Duration = Duration::from_secs(30);
/// Time limit for an answer over HTTP after the attacks.
const ANSWERED: Duration = Duration::from_secs(15);

const CHANNEL: &str = "archive";

/// The behaviour of a hostile client, which repeats it on new connections.
#[derive(Clone)]
struct Harm {
    http: bool,
    /// Bytes sent first.
    opening: Vec<u8>,
    /// Bytes sent after that, one at a time.
    trickles: Vec<u8>,
    /// True if it requeues all messages.
    requeues: bool,
    /// True if it closes after these bytes.
    leaves: bool,
}

impl Harm {
    fn new(opening: impl Into<Vec<u8>>) -> Self {
        Self {
            http: false,
            opening: opening.into(),
            trickles: Vec::new(),
            requeues: false,
            leaves: false,
        }
    }

    fn nsqd(opening: impl AsRef<[u8]>) -> Self {
        Self::new([b"  V2", opening.as_ref()].concat())
    }

    fn http(opening: impl Into<Vec<u8>>) -> Self {
        Self { http: true, ..Self::new(opening) }
    }

    fn trickles(self, bytes: &[u8]) -> Self {
        Self { trickles: bytes.to_vec(), ..self }
    }
}

/// Returns a command with a body.
fn sized(line: &str, body: &[u8]) -> Vec<u8> {
    [line.as_bytes(), b"\n", &(body.len() as u32).to_be_bytes(), body].concat()
}

/// Returns a command that announces `len` bytes, without the body.
fn announced(line: &str, len: u32) -> Vec<u8> {
    [line.as_bytes(), b"\n", &len.to_be_bytes()].concat()
}

fn request(method: &str, path: &str, len: usize) -> Vec<u8> {
    format!("{method} {path} HTTP/1.1\r\nHost: device\r\nContent-Length: {len}\r\n\r\n")
        .into_bytes()
}

/// Returns the attacks with their names; the connections of one attack run at the same time.
fn attacks() -> Vec<(&'static str, Vec<Harm>)> {
    let silent = sized("IDENTIFY", br#"{"heartbeat_interval":-1}"#);
    let patient = sized("IDENTIFY", br#"{"heartbeat_interval":60000,"msg_timeout":900000}"#);
    let with = |hello: &[u8], commands: &[u8]| Harm::nsqd([hello, commands].concat());
    let batch = |len: u32, count: u32, one: u32| {
        [announced("MPUB evil0", len), count.to_be_bytes().into(), one.to_be_bytes().into()]
            .concat()
    };
    let post = |path: &str| [request("POST", path, 100), vec![b'j'; 100]].concat().repeat(40);
    // Short messages fill the memory that long ones leave.
    let junk = |topic: &str| {
        let line = format!("PUB {topic}");
        [sized(&line, &[b'j'; 200]).repeat(100), sized(&line, b"j").repeat(300)].concat()
    };
    let subscribe = |topic: &str, channel: &str| format!("SUB {topic} {channel}\nRDY 100\n");
    let names = (0..6).map(|n| Harm { leaves: true, ..Harm::nsqd(format!("SUB evil{n} c{n}\n")) });
    let created = (0..6).map(|n| {
        Harm::http(request("POST", &format!("/channel/create?topic=evil{n}&channel=c"), 0))
    });
    vec![
        (
            "bodies that never come",
            // Together about the whole store.
            [23_000, 600, 100].map(|len| with(&patient, &announced("PUB evil0", len))).to_vec(),
        ),
        (
            "bodies of DPUB and MPUB that never come",
            vec![
                with(&silent, &announced("DPUB evil1 3600000", 12_000)),
                with(&silent, &batch(20_000, 100, 190)),
                with(&silent, &batch(2000, 1000, 1)),
            ],
        ),
        (
            "bodies and batches that trickle",
            vec![
                with(&patient, &announced("PUB evil0", 8000)).trickles(&[b't'; 400]),
                with(&patient, &announced("PUB reports", 2000)).trickles(&[b't'; 400]),
                with(&patient, &batch(20_000, 100, 190)).trickles(&[b't'; 400]),
                with(&silent, &batch(10_000, 2000, 1)).trickles(&[0; 400]),
                Harm::nsqd(batch(1 << 20, 0x7fff_ffff, 1)).trickles(&[0; 400]),
            ],
        ),
        (
            "messages without consumers",
            vec![
                with(&patient, &junk("evil0")),
                with(&patient, &junk(REPORTS)),
                with(&patient, &[&b"SUB evil1 c\n"[..], &junk("evil1")].concat()),
                with(&patient, &sized("DPUB evil2 3600000", &[b'j'; 200]).repeat(150)),
                Harm::http(post("/pub?topic=evil0")),
                Harm::http(post("/mpub?topic=evil1")),
            ],
        ),
        ("topics and channels of their own", names.chain(created).collect()),
        (
            "consumers that do not answer",
            vec![
                with(&silent, subscribe(READINGS, "evil").as_bytes()),
                with(&silent, subscribe(READINGS, CHANNEL).as_bytes()),
                with(&patient, subscribe(READINGS, "evil").as_bytes()),
            ],
        ),
        (
            "consumers that requeue all messages",
            vec![
                Harm { requeues: true, ..Harm::nsqd(subscribe(READINGS, "evil")) },
                Harm { requeues: true, ..Harm::nsqd(subscribe(READINGS, CHANNEL)) },
            ],
        ),
        (
            "clients that are silent or do not read",
            vec![
                Harm::new(""),
                Harm::nsqd(&silent),
                Harm::nsqd(&patient),
                Harm::nsqd(b"FIN 0123456789abcdef\n".repeat(500)),
            ],
        ),
        (
            "slow callers over HTTP",
            vec![
                Harm::http(""),
                Harm::http("GET /sta").trickles(b"ts HTTP/1.1\r\nHost: device\r\n\r\n"),
                Harm::http(request("POST", "/pub?topic=evil0", 10_000)).trickles(&[b'b'; 400]),
                Harm::http(request("GET", "/stats", 0).repeat(20)),
                Harm::http(request("GET", "/ping", 0)),
            ],
        ),
    ]
}

/// The readings that the consumer has received, with their times.
#[derive(Default)]
struct Got {
    numbers: Vec<u32>,
    last: Option<Instant>,
    longest: Duration,
}

impl Got {
    /// Returns the longest time without a reading so far.
    fn longest(&self) -> Duration {
        self.longest.max(self.last.map_or(Duration::ZERO, |last| last.elapsed()))
    }
}

/// Runs the scenario; returns a short summary.
pub(super) async fn play(kernel: &Path, defmt: bool) -> Result<String> {
    let (tcp, web) = (ports::reserve(), ports::reserve());
    let attacks = attacks();
    let all = ATTACK * attacks.len() as u32 + PEACE;
    let args = [
        ("node", "1".to_owned()),
        ("lookupds", String::new()),
        ("duration-ms", (all + Duration::from_secs(3)).as_millis().to_string()),
        ("period-ms", PERIOD.as_millis().to_string()),
    ];
    let forwards = [(tcp.address(), 4150), (web.address(), 4151)];
    let mut device = Device::boot_reachable(kernel, &args, &forwards, defmt)?;
    device.wait_for("address ", device.booted(), LIMIT * 10).await?;
    let got = Arc::new(Mutex::new(Got::default()));
    let consumer = consume(tcp.address(), READINGS, Some(got.clone())).await?;
    for (name, harms) in attacks {
        println!("{name}");
        let end = Instant::now() + ATTACK;
        let mut doing = JoinSet::new();
        for harm in harms {
            doing.spawn(again(harm, tcp.address(), web.address(), end));
        }
        doing.join_all().await;
        let longest = lock(&got).longest();
        println!("    the consumer never waited longer than {longest:?}");
        ensure!(longest < GAP, "{name}: no reading for {longest:?}");
    }
    // After the attacks, HTTP is answered again, and an administrator deletes the remains.
    let began = Instant::now();
    while !http::get(web.address(), "/ping").await.is_ok_and(|answer| answer.status == 200) {
        ensure!(began.elapsed() < ANSWERED, "no answer over HTTP for {ANSWERED:?}");
        sleep(PERIOD).await;
    }
    let answered = began.elapsed();
    clean(web.address()).await?;
    // The device ends once its last report is consumed.
    let reports = consume(tcp.address(), REPORTS, None).await?;
    let status = device.end(all + END).await?;
    ensure!(status.success(), "the device ended with {status}");
    consumer.abort();
    reports.abort();
    let numbers = device.numbers();
    let readings = u32::try_from(*numbers.get("readings").context("no number of readings")?)?;
    exactly_once(&lock(&got).numbers, readings)?;
    let most = LIMIT.as_millis() as u64;
    expect(&numbers, "longest_publish_ms", 0..=most)?;
    Ok(format!(
        "{readings} readings, each once; the longest publish took {} ms, the consumer waited for \
         {} ms at most; HTTP answered {} ms after the attacks",
        numbers["longest_publish_ms"],
        lock(&got).longest().as_millis(),
        answered.as_millis()
    ))
}

fn lock(got: &Mutex<Got>) -> std::sync::MutexGuard<'_, Got> {
    got.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Deletes topics and channels that do not belong to the device's application.
async fn clean(web: SocketAddr) -> Result<()> {
    let stats = http::get_json(web, "/stats?format=json").await?;
    let own: BTreeSet<_> = [READINGS, REPORTS].into();
    for topic in stats["topics"].as_array().into_iter().flatten() {
        let name = topic["topic_name"].as_str().unwrap_or_default();
        if !own.contains(name) {
            http::post(web, &format!("/topic/delete?topic={name}"), b"").await?;
            continue;
        }
        // The reports have no consumer yet.
        http::post(web, &format!("/topic/empty?topic={REPORTS}"), b"").await?;
        for channel in topic["channels"].as_array().into_iter().flatten() {
            let channel = channel["channel_name"].as_str().unwrap_or_default();
            if (name, channel) != (READINGS, CHANNEL) {
                let path = format!("/channel/delete?topic={name}&channel={channel}");
                http::post(web, &path, b"").await?;
            }
        }
    }
    Ok(())
}

/// Starts an honest consumer.
async fn consume(
    device: SocketAddr,
    topic: &str,
    got: Option<Arc<Mutex<Got>>>,
) -> Result<JoinHandle<Result<()>>> {
    let began = Instant::now();
    let mut stream = loop {
        // The device may not listen yet: then QEMU closes the forwarded connection.
        let mut stream = TcpStream::connect(device).await?;
        stream.write_all(format!("  V2SUB {topic} {CHANNEL}\n").as_bytes()).await?;
        let mut ok = [0; 10];
        if stream.read_exact(&mut ok).await.is_ok() && ok.ends_with(b"OK") {
            break stream;
        }
        ensure!(began.elapsed() < END, "the consumer cannot subscribe");
        sleep(PERIOD).await;
    };
    stream.write_all(b"RDY 20\n").await?;
    Ok(tokio::spawn(async move {
        let mut inbox = Vec::new();
        while stream.read_buf(&mut inbox).await? > 0 {
            let mut answers = Vec::new();
            while let Some((frame, size)) = Frame::parse(&inbox)? {
                match frame {
                    Frame::Message(message) => {
                        if let Some(got) = &got {
                            note(&message, got)?;
                        }
                        answers.extend([b"FIN ", &message.id[..], b"\n"].concat());
                    }
                    _ => answers.extend(b"NOP\n"),
                }
                inbox.drain(..size);
            }
            stream.write_all(&answers).await?;
        }
        Ok(())
    }))
}

/// Records a reading.
fn note(message: &Message, got: &Mutex<Got>) -> Result<()> {
    let reading: Value = serde_json::from_slice(&message.body)?;
    let got = &mut *lock(got);
    got.numbers.push(serde_json::from_value(reading["number"].clone())?);
    let now = Instant::now();
    if let Some(last) = got.last.replace(now) {
        got.longest = got.longest.max(now - last);
    }
    Ok(())
}

/// Runs a hostile client until `end`, one connection after the other.
async fn again(harm: Harm, tcp: SocketAddr, web: SocketAddr, end: Instant) {
    let address = if harm.http { web } else { tcp };
    while Instant::now() < end {
        // Any end of a connection is allowed.
        let _ = timeout(end.saturating_duration_since(Instant::now()), once(&harm, address)).await;
        sleep_until((Instant::now() + PERIOD / 2).min(end).into()).await;
    }
}

async fn once(harm: &Harm, address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    let (mut reader, mut writer) = stream.split();
    let run = async {
        writer.write_all(&harm.opening).await?;
        for byte in &harm.trickles {
            sleep(PERIOD).await;
            writer.write_all(&[*byte]).await?;
        }
        if harm.leaves {
            return Ok(());
        }
        let (mut inbox, mut buf) = (Vec::new(), [0; 1024]);
        loop {
            let n = reader.read(&mut buf).await?;
            if n == 0 {
                return Ok(());
            }
            if !harm.requeues {
                continue;
            }
            inbox.extend_from_slice(&buf[..n]);
            while let Some((frame, size)) = Frame::parse(&inbox)? {
                if let Frame::Message(message) = frame {
                    writer.write_all(&[b"REQ ", &message.id[..], b" 0\n"].concat()).await?;
                }
                inbox.drain(..size);
            }
        }
    };
    run.await
}
