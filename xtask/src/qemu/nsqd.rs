//! The scenario in which the device is an nsqd: go-nsq on this machine finds it through a real
//! nsqlookupd, and consumes from it through a forwarded port.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nanonsq_tests::{
    Nsqd, Nsqlookupd, Peers, ServerOptions, Tool, Until, consume_all, http, ports,
};
use serde_json::Value;

use super::device::Device;
use super::scenario::{HOST, LIMIT, READINGS, REPORTS, finish};
use crate::judge::{exactly_once, expect};

const CHANNEL: &str = "archive";
/// The consumer's messages in flight; more than the device has room for in a channel.
const IN_FLIGHT: u32 = 100;

/// Runs the scenario; returns a short summary.
pub(super) async fn play(
    peers: &Peers,
    kernel: &Path,
    defmt: bool,
    readings: u32,
) -> Result<String> {
    let lookupd = Nsqlookupd::start(peers, ServerOptions::new()).await;
    let (tcp, http) = (ports::reserve(), ports::reserve());
    println!(
        "nsqlookupd on {}; the device is to be reached on {} and {}",
        lookupd.tcp_address(),
        tcp.address(),
        http.address()
    );
    let args = [
        ("node", "1".to_owned()),
        ("lookupds", format!("{HOST}:{}", lookupd.tcp_address().port())),
        ("broadcast", "127.0.0.1".to_owned()),
        ("broadcast-tcp-port", tcp.address().port().to_string()),
        ("broadcast-http-port", http.address().port().to_string()),
        ("readings", readings.to_string()),
        // As fast as they are consumed, with reports at the same time.
        ("period-ms", "0".to_owned()),
        ("report-ms", "1000".to_owned()),
    ];
    let forwards = [(tcp.address(), 4150), (http.address(), 4151)];
    let mut device = Device::boot_reachable(kernel, &args, &forwards, defmt)?;
    lookupd.wait_listed(READINGS, tcp.address(), LIMIT).await;
    let listed = device.booted().elapsed();

    let (bodies, took) = drain(peers, &lookupd, READINGS, readings).await?;
    let numbers = bodies.iter().map(|body| -> Result<u32> {
        let reading: Value = serde_json::from_str(body)?;
        ensure!(reading["device"] == "qemu" && reading["values"].is_object(), "{reading}");
        Ok(serde_json::from_value(reading["number"].clone())?)
    });
    exactly_once(&numbers.collect::<Result<Vec<_>>>()?, readings)?;
    println!("    > {}\n    > ... {} more ...", bodies[0], bodies.len() - 1);
    // nsq_tail ends without answers to its last messages: these are delivered again.
    let until = Until::quiet_for(Duration::from_millis(500));
    let again = consume_all(tcp.address(), READINGS, CHANNEL, until).await?.texts();
    ensure!(again.iter().all(|body| bodies.contains(body)), "{again:?}");
    // The device ends once all its messages are consumed.
    let until = Until::quiet_for(Duration::from_millis(1500));
    let reports = consume_all(tcp.address(), REPORTS, CHANNEL, until).await?.texts();
    let last: Value = serde_json::from_str(reports.last().context("no report")?)?;
    ensure!(last["readings"] == readings, "{last}");
    let counts = finish(&mut device, LIMIT).await?;
    expect(&counts, "accepted", u64::from(readings) + reports.len() as u64..=u64::MAX)?;
    expect(&counts, "timed_out", 0..=0)?;
    let left = lookupd.lookup(READINGS).await;
    ensure!(left.is_empty(), "{READINGS} is still at {left:?}");

    // For comparison, the same from an nsqd on this machine, which has all messages at the start.
    let options = ServerOptions::new().lookupd(lookupd.tcp_address());
    let nsqd = Nsqd::start(peers, options.flag("--broadcast-address=127.0.0.1")).await;
    let lines = bodies.join("\n");
    http::post(nsqd.http_address(), &format!("/mpub?topic={READINGS}"), lines.as_bytes()).await?;
    lookupd.wait_listed(READINGS, nsqd.tcp_address(), LIMIT).await;
    let (_, real) = drain(peers, &lookupd, READINGS, readings).await?;
    let rate = |took: Duration| (f64::from(readings) / took.as_secs_f64()) as u32;
    Ok(format!(
        "{readings} readings, each once, to go-nsq, {}/s; from an nsqd on this machine {}/s; \
         listed {} ms after reset",
        rate(took),
        rate(real),
        listed.as_millis()
    ))
}

/// Consumes `count` messages with go-nsq from the listed nodes; returns them, and the time taken.
async fn drain(
    peers: &Peers,
    lookupd: &Nsqlookupd,
    topic: &str,
    count: u32,
) -> Result<(Vec<String>, Duration)> {
    let lookupd: SocketAddr = lookupd.http_address();
    let started = Instant::now();
    let mut tail = Tool::start(
        peers.program("nsq_tail"),
        [
            format!("--topic={topic}"),
            format!("--channel={CHANNEL}"),
            format!("--n={count}"),
            format!("--max-in-flight={IN_FLIGHT}"),
            format!("--lookupd-http-address={lookupd}"),
        ],
    );
    let status = tail.wait(Duration::from_secs(120)).await;
    let took = started.elapsed();
    ensure!(status.success(), "nsq_tail: {status}: {}", tail.stderr());
    let bodies: Vec<String> = tail.stdout().lines().map(str::to_owned).collect();
    Ok((bodies, took))
}
