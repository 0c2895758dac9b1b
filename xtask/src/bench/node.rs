//! `cargo xtask bench --node`: the CPU time that our servers take for an operation beside that of
//! nsqd and nsqlookupd.
//!
//! Each measurement gets a fresh server, ours and the real one in turn, and the same client: one that
//! writes prepared bytes and counts frames. What the server needs to be in the state that a row is
//! about does not count. Both keep all messages in memory.

use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::directory;
use super::raw::{Message, Raw, batch, command};
use super::server::{self, Server};
use super::table::{Row, Run, compare};
use crate::project;

/// Messages that our server holds with its default memory, though nobody consumes them.
const LAP: u64 = 20_000;

/// Messages that wait before the measured ones.
const DEPTH: u64 = 60_000;

const BODY: [u8; 200] = [b'x'; 200];

const ROWS: [Row; 19] = [
    Row { name: "PUB, one at a time", limit: 1.2, run: |run| one_at_a_time(run, LAP, &BODY) },
    Row { name: "PUB, 100 in a write", limit: 1.2, run: pipelined },
    Row { name: "MPUB of 100", limit: 1.2, run: batches },
    Row { name: "HTTP /pub, one at a time", limit: 1.2, run: over_http },
    Row { name: "1 consumer", limit: 1.2, run: |run| consume(run, 1, 1) },
    Row { name: "8 consumers", limit: 1.2, run: |run| consume(run, 8, 1) },
    Row { name: "64 consumers", limit: 1.5, run: |run| consume(run, 64, 1) },
    Row { name: "8 channels", limit: 1.2, run: |run| consume(run, 8, 8) },
    Row { name: "PUB to 100 topics", limit: 1.2, run: many_topics },
    Row { name: "PUB beside 200 idle clients", limit: 1.2, run: beside_idle_clients },
    Row { name: "PUB at a depth of 60,000", limit: 1.2, run: deep },
    Row { name: "DPUB, random", limit: 3.0, run: deferred },
    Row { name: "REQ, random", limit: 3.0, run: requeued },
    Row { name: "PUB of 10 B", limit: 1.2, run: |run| one_at_a_time(run, LAP, &[b'x'; 10]) },
    Row {
        name: "PUB of 1 KiB",
        limit: 1.2,
        run: |run| one_at_a_time(run, 10_000, &[b'x'; 1 << 10]),
    },
    Row {
        name: "PUB of 16 KiB",
        limit: 1.2,
        run: |run| one_at_a_time(run, 1_000, &[b'x'; 16 << 10]),
    },
    Row {
        name: "PUB of 128 KiB",
        limit: 1.3,
        run: |run| one_at_a_time(run, 100, &[b'x'; 128 << 10]),
    },
    Row { name: "PUB of 1 MiB", limit: 1.3, run: |run| one_at_a_time(run, 15, &[b'x'; 1 << 20]) },
    Row { name: "memory when idle, KiB", limit: 1.0, run: memory },
];

pub(crate) fn run(rounds: usize, quick: bool, only: &[String]) -> Result<()> {
    ensure!(rounds > 0, "numbers must be positive");
    let manifest = project::root().join("examples/linux/Cargo.toml");
    let ours = project::build_release(&manifest, "nanonsq", None)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("Load before: {}. CPU time in µs an operation, medians of {rounds}.", load.trim());
    let nsqd = |is_real: bool| {
        if !is_real {
            let mut command = Command::new(&ours);
            // As nsqd, it has no bound for what nobody consumes.
            command.args(["node", "--max-unconsumed", "100"]);
            return Server::start(command, false);
        }
        let mut command = Command::new(server::peer("nsqd")?);
        command.arg("--mem-queue-size=10000000");
        Server::start(command, true)
    };
    let nsqlookupd = |is_real: bool| {
        let mut command =
            Command::new(if is_real { server::peer("nsqlookupd")? } else { ours.clone() });
        if !is_real {
            command.arg("lookupd");
        }
        Server::start(command, false)
    };
    let large = compare("nsqd", &ROWS, &nsqd, rounds, only)?
        + compare("nsqlookupd", &directory::ROWS, &nsqlookupd, rounds, only)?;
    // One round says little.
    ensure!(quick || large == 0, "{large} ratios are above their limits");
    Ok(())
}

/// Empties a topic, so that the next lap has room.
fn empty(run: &Run, topic: &str) -> Result<()> {
    run.server.request("POST", &format!("/topic/empty?topic={topic}"), &[]).map(drop)
}

/// Publishes messages, each after the answer to the one before.
fn publish(raw: &mut Raw, count: u64, topic: impl Fn(u64) -> String, body: &[u8]) -> Result<()> {
    for at in 0..count {
        raw.send(&command(&format!("PUB {}", topic(at)), body))?;
        raw.expect_ok()?;
    }
    Ok(())
}

fn one_at_a_time(run: &mut Run, count: u64, body: &[u8]) -> Result<()> {
    let mut raw = Raw::connect(run.server.tcp, b"  V2")?;
    for _ in 0..3 {
        run.measure(count, |_| publish(&mut raw, count, |_| "topic".into(), body))?;
        empty(run, "topic")?;
    }
    Ok(())
}

/// Sends `operations` operations, `each` of them in a write with one answer for each command.
fn writes(run: &mut Run, bytes: &[u8], answers: u64, each: u64) -> Result<()> {
    let mut raw = Raw::connect(run.server.tcp, b"  V2")?;
    for _ in 0..5 {
        run.measure(LAP, |_| {
            for _ in 0..LAP / each {
                raw.send(bytes)?;
                for _ in 0..answers {
                    raw.expect_ok()?;
                }
            }
            Ok(())
        })?;
        empty(run, "topic")?;
    }
    Ok(())
}

fn pipelined(run: &mut Run) -> Result<()> {
    writes(run, &command("PUB topic", &BODY).repeat(100), 100, 100)
}

fn batches(run: &mut Run) -> Result<()> {
    writes(run, &command("MPUB topic", &batch(100, &BODY)), 1, 100)
}

fn over_http(run: &mut Run) -> Result<()> {
    let mut raw = Raw::new(run.server.connect_http()?)?;
    let head = "POST /pub?topic=topic HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200\r\n\r\n";
    let request = [head.as_bytes(), &BODY].concat();
    run.measure(LAP, |_| (0..LAP).try_for_each(|_| raw.request(&request)))
}

/// Creates a topic's channels, `c0` and so on.
fn create(run: &Run, channels: usize) -> Result<()> {
    run.server.request("POST", "/topic/create?topic=topic", &[])?;
    for at in 0..channels {
        run.server.request("POST", &format!("/channel/create?topic=topic&channel=c{at}"), &[])?;
    }
    Ok(())
}

fn fill(run: &Run, count: u64, body: &[u8]) -> Result<()> {
    let mut raw = Raw::connect(run.server.tcp, b"  V2")?;
    let command = command("MPUB topic", &batch(100, body));
    for _ in 0..count / 100 {
        raw.send(&command)?;
        raw.expect_ok()?;
    }
    Ok(())
}

/// Receives messages until all consumers together are done with `left`, each with `ready` in flight.
/// Finishes those that are final, and requeues the others for less than 50 ms.
fn receive(
    mut raw: Raw,
    ready: usize,
    left: &AtomicU64,
    is_final: impl Fn(&Message) -> bool,
) -> Result<()> {
    raw.set_timeout(Duration::from_millis(20))?;
    raw.send(format!("RDY {ready}\n").as_bytes())?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut answers = Vec::new();
    while left.load(Ordering::Relaxed) > 0 {
        ensure!(Instant::now() < deadline, "{left:?} messages are left");
        let Some(message) = raw.message()? else { continue };
        let is_final = is_final(&message);
        answers.extend(if is_final { b"FIN " } else { b"REQ " });
        answers.extend(message.id);
        if !is_final {
            let delay = u64::from(message.id[15] % 50);
            answers.extend(format!(" {delay}").bytes());
        }
        answers.push(b'\n');
        if raw.is_empty() {
            raw.send(&answers)?;
            answers.clear();
        }
        if is_final {
            left.fetch_sub(1, Ordering::Relaxed);
        }
    }
    // The last answers have been sent: nothing more was to be read.
    raw.send(&answers)
}

/// Has all messages of a topic delivered to each channel by consumers that take turns.
fn consume_all(
    run: &mut Run,
    (consumers, channels): (usize, usize),
    (count, operations): (u64, u64),
    is_final: impl Fn(&Message) -> bool + Copy + Send,
) -> Result<()> {
    let raws = (0..consumers)
        .map(|at| Raw::subscribe(run.server.tcp, "topic", &format!("c{}", at % channels)))
        .collect::<Result<Vec<_>>>()?;
    let left = &AtomicU64::new(count);
    let ready = 1000 / consumers;
    run.measure(operations, |_| {
        thread::scope(|scope| {
            let start = |raw| scope.spawn(move || receive(raw, ready, left, is_final));
            let threads: Vec<_> = raws.into_iter().map(start).collect();
            threads.into_iter().try_for_each(|thread| thread.join().expect("it does not panic"))
        })
    })
}

fn consume(run: &mut Run, consumers: usize, channels: usize) -> Result<()> {
    create(run, channels)?;
    for _ in 0..3 {
        fill(run, LAP, &BODY)?;
        let count = LAP * channels as u64;
        consume_all(run, (consumers, channels), (count, count), |_| true)?;
    }
    Ok(())
}

fn many_topics(run: &mut Run) -> Result<()> {
    let mut raw = Raw::connect(run.server.tcp, b"  V2")?;
    let topic = |at| format!("topic{}", at % 100);
    publish(&mut raw, 100, topic, &BODY)?;
    run.measure(LAP, |_| publish(&mut raw, LAP, topic, &BODY))
}

fn beside_idle_clients(run: &mut Run) -> Result<()> {
    let mut idle = Vec::new();
    for _ in 0..200 {
        let raw = Raw::subscribe(run.server.tcp, "idle", "channel")?;
        raw.send(b"RDY 1\n")?;
        idle.push(raw);
    }
    one_at_a_time(run, LAP, &BODY)
}

fn deep(run: &mut Run) -> Result<()> {
    create(run, 1)?;
    fill(run, DEPTH, b"0123456789")?;
    let mut raw = Raw::connect(run.server.tcp, b"  V2")?;
    run.measure(5_000, |_| publish(&mut raw, 5_000, |_| "topic".into(), b"0123456789"))
}

/// Numbers without an order, always the same ones.
fn scattered(at: u64) -> u64 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) % 3_600_000
}

fn deferred(run: &mut Run) -> Result<()> {
    create(run, 1)?;
    let mut raw = Raw::connect(run.server.tcp, b"  V2")?;
    run.measure(LAP, |_| {
        for write in 0..LAP / 100 {
            let dpub =
                |at| command(&format!("DPUB topic {}", 1 + scattered(write * 100 + at)), &BODY);
            raw.send(&(0..100).flat_map(dpub).collect::<Vec<_>>())?;
            (0..100).try_for_each(|_| raw.expect_ok())?;
        }
        Ok(())
    })
}

/// Each message is requeued twice.
fn requeued(run: &mut Run) -> Result<()> {
    create(run, 1)?;
    fill(run, LAP, &BODY)?;
    consume_all(run, (1, 1), (LAP, LAP * 3), |message| message.attempts > 2)
}

fn memory(run: &mut Run) -> Result<()> {
    run.set(run.server.memory()? as f64);
    Ok(())
}
