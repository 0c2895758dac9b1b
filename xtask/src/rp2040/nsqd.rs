//! The scenario in which the board is an nsqd: go-nsq on this machine finds it through real
//! nsqlookupds, and consumes from it through a forwarded port.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nanonsq_tests::{Peers, Tool, Until, consume_all, http, ports};
use serde_json::Value;

use super::device::{Device, LED_ON};
use super::scenario::{HOST, NAME, READINGS, REPORTS, Stage, listed};
use super::{LIMIT, scenario};
use crate::judge::{exactly_once, expect};

const CHANNEL: &str = "archive";
/// The consumer's messages in flight; more than the board has room for in a channel.
const IN_FLIGHT: u32 = 100;

impl Stage<'_> {
    pub(super) async fn node(&mut self, peers: &Peers, readings: u32) -> Result<String> {
        let (tcp, http) = ports::reserve_two();
        println!("the board is to be reached on {} and {}", tcp.address(), http.address());
        let args = [(tcp.address(), 4150), (http.address(), 4151)]
            .map(|(host, guest)| format!("--forward={}:{guest}", host.port()));
        let started = Instant::now();
        let mut device = Device::boot(self.emulator, self.image, self.seed, &args)?;
        device.ready(started).await?;
        let lookupds = self.lookupds.each_ref().map(|lookupd| lookupd.tcp_address().port());
        for (key, value) in [
            ("mode", "node".to_owned()),
            ("lookupd", format!("{HOST}:{},{HOST}:{}", lookupds[0], lookupds[1])),
            ("broadcast", tcp.address().to_string()),
            ("interval", "10ms".to_owned()),
            ("report-interval", "1s".to_owned()),
            ("count", readings.to_string()),
        ] {
            let answer = device.ask(&format!("set {key} {value}")).await?;
            ensure!(answer.contains("not saved yet"), "{answer}");
        }
        device.ask("save").await?;
        self.reboot(&mut device).await?;
        let booted = Instant::now();
        for lookupd in &self.lookupds {
            for topic in [READINGS, REPORTS] {
                listed(lookupd, topic, &tcp.address().to_string(), LIMIT).await?;
            }
        }
        let found = booted.elapsed();
        device.led(LED_ON).await?;

        let lookupds: Vec<_> = self
            .lookupds
            .iter()
            .map(|lookupd| format!("--lookupd-http-address={}", lookupd.http_address()))
            .collect();
        let options = [
            format!("--topic={READINGS}"),
            format!("--channel={CHANNEL}"),
            format!("--n={readings}"),
            format!("--max-in-flight={IN_FLIGHT}"),
        ];
        let mut tail = Tool::start(peers.program("nsq_tail"), options.into_iter().chain(lookupds));
        let status = tail.wait(scenario::PUBLISHING).await;
        ensure!(status.success(), "nsq_tail: {status}: {}", tail.stderr());
        let bodies: Vec<String> = tail.stdout().lines().map(str::to_owned).collect();
        let numbers = bodies.iter().map(|body| -> Result<u32> {
            let reading: Value = serde_json::from_str(body)?;
            ensure!(reading["device"] == NAME && reading["values"].is_object(), "{reading}");
            Ok(serde_json::from_value(reading["number"].clone())?)
        });
        exactly_once(&numbers.collect::<Result<Vec<_>>>()?, readings)?;
        println!("    > {}\n    > ... {} more ...", bodies[0], bodies.len() - 1);
        // nsq_tail ends without answers to messages in flight: only these are delivered again.
        let until = Until::quiet_for(Duration::from_secs(1));
        let again = consume_all(tcp.address(), READINGS, CHANNEL, until).await?.texts();
        let known: BTreeSet<_> = bodies.iter().collect();
        let count = again.len();
        ensure!((1..=IN_FLIGHT as usize).contains(&count), "{count} delivered again");
        ensure!(again.iter().all(|body| known.contains(body)), "{again:?}");

        // The statistics over HTTP.
        let stats = http::get_json(http.address(), "/stats?format=json").await?;
        let topics = stats["topics"].as_array().context("no topics")?;
        let readings_topic = topics.iter().find(|topic| topic["topic_name"] == READINGS);
        ensure!(readings_topic.context("not there")?["message_count"] == readings, "{stats}");
        let numbers = device.numbers().await?;
        expect(&numbers, "accepted", u64::from(readings)..=u64::MAX)?;
        expect(&numbers, "finished", u64::from(readings)..=u64::MAX)?;
        expect(&numbers, "timed_out", 0..=0)?;
        // A reboot unregisters the board first.
        device.type_line("reboot")?;
        let since = Instant::now();
        while !self.lookupds[0].lookup(READINGS).await.is_empty() {
            ensure!(since.elapsed() < LIMIT, "still listed");
        }
        Ok(format!(
            "{readings} readings, each once, to go-nsq, which found the board by nsqlookupd {} ms \
             after its start",
            found.as_millis()
        ))
    }
}
