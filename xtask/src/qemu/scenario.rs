//! The scenarios of a device that publishes, and their checks.

mod command;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use nanonsq_tests::{
    Nsqd, Nsqlookupd, Peers, Proxy, ServerOptions, Until, consume_all, eventually, http, tap,
};
use serde_json::Value;
use tokio::time::sleep;

use super::Scenario;
use super::device::{Device, Line};
use crate::judge::{at_least_once, exactly_once, expect};

pub(super) const READINGS: &str = "readings";
const SECOND: &str = "more-readings";
pub(super) const REPORTS: &str = "reports";
const REPLIES: &str = "replies";
/// An ephemeral topic without a channel: nsqd counts its messages and keeps none.
const FLOOD: &str = "flood#ephemeral";
/// The host's address in the device's network.
pub(super) const HOST: &str = "10.0.2.2";
/// Time limit for events that should happen at once, on a busy machine.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// Settings of a device that runs for 15 s, with a heartbeat each second.
const SLOW: [(&str, u64); 4] = [
    ("readings", SLOW_READINGS as u64),
    ("period-ms", 10),
    ("report-ms", 1000),
    ("heartbeat-ms", 1000),
];
const SLOW_READINGS: u32 = 1500;
/// Time limit for a node to be listed again after a restart of its nsqlookupd.
const LISTED: Duration = Duration::from_secs(2);
/// Time limit between PINGs, which nsqlookupd receives each 15 s.
const PING_LIMIT: Duration = Duration::from_secs(18);
/// Time between two samples while a device runs.
const SAMPLE: Duration = Duration::from_millis(250);

/// The servers and the firmware of a scenario.
pub(crate) struct Stage<'s> {
    kernel: &'s Path,
    defmt: bool,
    lookupds: [Nsqlookupd; 2],
    nsqd: Nsqd,
}

impl<'s> Stage<'s> {
    pub(crate) async fn set(
        peers: &Peers,
        kernel: &'s Path,
        defmt: bool,
        scenario: Scenario,
    ) -> Self {
        let mut options = ServerOptions::new();
        if matches!(
            scenario,
            Scenario::Restarts | Scenario::Hurry | Scenario::Unplugged | Scenario::Silence
        ) {
            // Only nsqd's file queue keeps the order of arrival.
            options = options.flag("--mem-queue-size=0");
        }
        let lookupds = [
            Nsqlookupd::start(peers, ServerOptions::new()).await,
            Nsqlookupd::start(peers, ServerOptions::new()).await,
        ];
        if matches!(scenario, Scenario::Command) {
            // The address at which the device reaches nsqd.
            options = options.flag(format!("--broadcast-address={HOST}"));
            for lookupd in &lookupds {
                options = options.lookupd(lookupd.tcp_address());
            }
        }
        let nsqd = Nsqd::start(peers, options).await;
        println!(
            "nsqlookupds on {} and {}, nsqd on {}",
            lookupds[0].tcp_address(),
            lookupds[1].tcp_address(),
            nsqd.tcp_address()
        );
        Self { kernel, defmt, lookupds, nsqd }
    }

    /// Boots a device that publishes to the nsqd, with further settings.
    fn boot(
        &self,
        settings: &[(&'static str, u64)],
        texts: &[(&'static str, &str)],
    ) -> Result<Device> {
        self.boot_for(self.nsqd.tcp_address(), settings, texts)
    }

    /// Boots a device that publishes to an nsqd at the address `nsqd`.
    fn boot_for(
        &self,
        nsqd: SocketAddr,
        settings: &[(&'static str, u64)],
        texts: &[(&'static str, &str)],
    ) -> Result<Device> {
        let at_host = |port| format!("{HOST}:{port}");
        let lookupds =
            self.lookupds.each_ref().map(|lookupd| at_host(lookupd.tcp_address().port()));
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |at| at.subsec_nanos());
        let mut args = vec![
            ("nsqds", at_host(nsqd.port())),
            ("lookupds", lookupds.join(",")),
            // The address at which consumers find its messages.
            ("broadcast", self.nsqd.tcp_address().ip().to_string()),
            ("broadcast-tcp-port", self.nsqd.tcp_address().port().to_string()),
            ("broadcast-http-port", self.nsqd.http_address().port().to_string()),
            ("seed", nanos.to_string()),
        ];
        args.extend(settings.iter().map(|&(key, number)| (key, number.to_string())));
        // All other scenarios only publish.
        if !texts.iter().any(|(key, _)| *key == "commands") {
            args.push(("commands", String::new()));
        }
        args.extend(texts.iter().map(|&(key, text)| (key, text.to_owned())));
        Device::boot(self.kernel, &args, self.defmt)
    }

    pub(crate) async fn clean(&mut self, readings: u32) -> Result<String> {
        let mut device = self.boot(&[("readings", readings.into()), ("period-ms", 0)], &[])?;
        let numbers = finish(&mut device, LIMIT).await?;
        let arrived = self.arrived(READINGS, readings).await?;
        exactly_once(&arrived, readings)?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "possible_duplicates", 0..=0)?;
        self.check_last_report(readings).await?;
        self.check_registered().await?;
        Ok(format!("{readings} readings, each once, {} ms after reset", numbers["uptime_ms"]))
    }

    pub(crate) async fn restarts(&mut self, readings: u32) -> Result<String> {
        // With one reading each millisecond, the restarts happen while it publishes.
        let pause = Duration::from_millis(u64::from(readings) / 8);
        let mut device = self
            .boot(&[("readings", readings.into()), ("period-ms", 1), ("report-ms", 1000)], &[])?;
        device.wait_for("nsqd 0: connected", device.booted(), LIMIT).await?;
        let mut took = Duration::ZERO;
        for round in 1..=5 {
            sleep(pause).await;
            println!("stopping and restarting nsqd, {round} of 5");
            self.nsqd.stop_sigterm().await;
            sleep(Duration::from_millis(100)).await;
            self.nsqd.start_again().await;
            if round == 3 {
                sleep(pause / 2).await;
                println!("killing and restarting an nsqlookupd");
                self.lookupds[1].kill().await;
                sleep(Duration::from_millis(500)).await;
                self.lookupds[1].start_again().await;
                took = self.listed(1, self.lookupds[1].listening_since()).await?;
                println!("listed again after {took:?}");
            }
        }
        for index in [0, 1] {
            self.listed(index, Instant::now()).await?;
        }
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 6..=6 + 5)?;
        let arrived = self.arrived(READINGS, readings).await?;
        let duplicates = at_least_once(&arrived, readings, &numbers)?;
        self.check_last_report(readings).await?;
        Ok(format!(
            "{readings} readings and {duplicates} duplicates across 5 restarts of nsqd; listed \
             again {} ms after nsqlookupd's",
            took.as_millis()
        ))
    }

    pub(crate) async fn hurry(&mut self) -> Result<String> {
        let mut device =
            self.boot(&[("duration-ms", 5000), ("period-ms", 0), ("report-ms", 1000)], &[])?;
        device.wait_for("nsqd 0: connected", device.booted(), LIMIT).await?;
        for round in 1..=5 {
            sleep(Duration::from_millis(700)).await;
            println!("stopping and restarting nsqd, {round} of 5");
            self.nsqd.restart().await;
        }
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 6..=6 + 5)?;
        let readings = u32::try_from(numbers["readings"])?;
        let arrived = self.arrived(READINGS, readings).await?;
        let duplicates = at_least_once(&arrived, readings, &numbers)?;
        self.check_last_report(readings).await?;
        Ok(format!("{readings} readings and {duplicates} duplicates across 5 restarts of nsqd"))
    }

    pub(crate) async fn unplugged(&mut self) -> Result<String> {
        let device = self.boot(&SLOW, &[])?;
        device.wait_for("nsqd 0: connected", device.booted(), LIMIT).await?;
        sleep(Duration::from_secs(3)).await;
        println!("pulling the cable");
        let pulled = Instant::now();
        device.set_cable(false)?;
        // The Ethernet driver reports the lost link.
        let noticed = device.wait_for("nsqd 0: ", pulled, Duration::from_secs(2)).await?;
        self.outage(device, pulled, noticed, |device| device.set_cable(true)).await
    }

    pub(crate) async fn silence(&mut self) -> Result<String> {
        let device = self.boot(&SLOW, &[])?;
        device.wait_for("nsqd 0: connected", device.booted(), LIMIT).await?;
        sleep(Duration::from_secs(3)).await;
        println!("holding back all frames");
        let silent = Instant::now();
        device.hold_frames(true)?;
        // Two missed heartbeats, and another second for the close.
        let noticed = device.wait_for("nsqd 0: ", silent, Duration::from_millis(4500)).await?;
        ensure!(noticed.at - silent > Duration::from_secs(1), "not noticed by missed heartbeats");
        self.outage(device, silent, noticed, |device| device.hold_frames(false)).await
    }

    /// The second half of a scenario in which the device has noticed an outage of the network.
    async fn outage(
        &mut self,
        mut device: Device,
        gone: Instant,
        noticed: Line,
        bring_back: impl FnOnce(&Device) -> Result<()>,
    ) -> Result<String> {
        let noticed = noticed.at - gone;
        println!("noticed after {noticed:?}");
        sleep(Duration::from_secs(5).saturating_sub(gone.elapsed())).await;
        println!("ending the outage");
        let back = Instant::now();
        bring_back(&device)?;
        let connected = device.wait_for("nsqd 0: connected", back, Duration::from_secs(15)).await?;
        let connected = connected.at - back;
        println!("connected after {connected:?}");
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 2..=2)?;
        let arrived = self.arrived(READINGS, SLOW_READINGS).await?;
        let duplicates = at_least_once(&arrived, SLOW_READINGS, &numbers)?;
        self.check_last_report(SLOW_READINGS).await?;
        Ok(format!(
            "noticed after {} ms, connected {} ms after the end, {SLOW_READINGS} readings and \
             {duplicates} duplicates",
            noticed.as_millis(),
            connected.as_millis()
        ))
    }

    pub(crate) async fn crowd(&mut self) -> Result<String> {
        // The delay keeps the outbox full: messages of two topics alternate, so each is a command
        // of its own, and only a few commands may be in flight. The proxy records the device's
        // bytes.
        let proxy = Proxy::start(self.nsqd.tcp_address()).await;
        proxy.set_delay(Duration::from_millis(20));
        proxy.set_recording(true);
        let mut device = self.boot_for(
            proxy.address(),
            &[
                ("duration-ms", 20_000),
                ("period-ms", 0),
                ("report-ms", 100),
                ("heartbeat-ms", 1000),
            ],
            &[("second", SECOND)],
        )?;
        device.wait_for("nsqd 0: connected", device.booted(), LIMIT).await?;
        let (mut nops, mut since, mut longest) = (0, Instant::now(), Duration::ZERO);
        while device.runs()? {
            sleep(SAMPLE).await;
            self.check_pings().await?;
            let answered = nops_of(&proxy)?;
            if answered > nops {
                (nops, since) = (answered, Instant::now());
            }
            longest = longest.max(since.elapsed());
        }
        let numbers = finish(&mut device, LIMIT).await?;
        println!("{nops} heartbeats answered, never longer than {longest:?} apart");
        expect(&numbers, "connections", 1..=1)?;
        // Reports for which the outbox had no room.
        expect(&numbers, "refused", 100..=u64::MAX)?;
        // One each second, except perhaps in the first and the last.
        let seconds = numbers["uptime_ms"] / 1000;
        expect(&numbers, "heartbeats", seconds - 2..=seconds)?;
        ensure!(nops + 1 >= numbers["heartbeats"], "{nops} heartbeats answered");
        ensure!(longest < Duration::from_millis(2500), "heartbeats were answered late");
        let mut counts = Vec::new();
        for (topic, name) in [(READINGS, "readings"), (SECOND, "second")] {
            let readings = u32::try_from(*numbers.get(name).context("the device has no number")?)?;
            exactly_once(&self.arrived(topic, readings).await?, readings)?;
            counts.push(readings);
        }
        let (one, other) = (counts[0], counts[1]);
        ensure!(one.min(other) > one.max(other) / 2, "one task starves: {one} and {other}");
        Ok(format!(
            "{one} and {other} readings, each once, {} reports refused; {nops} heartbeats answered",
            numbers["refused"]
        ))
    }

    pub(crate) async fn idle(&mut self, duration: Duration) -> Result<String> {
        let mut device = self.boot(
            &[("duration-ms", millis(duration)), ("period-ms", 3_600_000), ("report-ms", 60_000)],
            &[],
        )?;
        self.soak(&mut device).await?;
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "failures", 0..=0)?;
        // One every 30 s, with some tolerance.
        let heartbeats = (duration.as_secs() / 30).saturating_sub(1);
        expect(&numbers, "heartbeats", heartbeats..=heartbeats + 1)?;
        let per_minute = |name: &str| {
            let number = numbers.get(name).copied().unwrap_or_default();
            number as f64 * 60.0 / duration.as_secs_f64()
        };
        // Some at the start, then at most one a second.
        expect(&numbers, "wakeups", 1..=100 + duration.as_secs())?;
        self.check_counts(&numbers, &[READINGS, REPORTS]).await?;
        Ok(format!(
            "a minute: {:.0} wakeups, {:.0} bytes in {:.0} frames in, {:.0} bytes in {:.0} out",
            per_minute("wakeups"),
            per_minute("bytes_in"),
            per_minute("frames_in"),
            per_minute("bytes_out"),
            per_minute("frames_out"),
        ))
    }

    pub(crate) async fn flood(&mut self, duration: Duration) -> Result<String> {
        let mut device =
            self.boot(&[("duration-ms", millis(duration)), ("period-ms", 0)], &[("topic", FLOOD)])?;
        self.soak(&mut device).await?;
        let numbers = finish(&mut device, LIMIT).await?;
        expect(&numbers, "connections", 1..=1)?;
        expect(&numbers, "possible_duplicates", 0..=0)?;
        self.check_counts(&numbers, &[FLOOD, REPORTS]).await?;
        let rate = numbers["accepted"] as f64 / duration.as_secs_f64();
        Ok(format!("{rate:.0} messages a second for {duration:?}, all counted by nsqd"))
    }

    /// Waits until the device has ended, and checks that both nsqlookupds receive its PINGs.
    async fn soak(&self, device: &mut Device) -> Result<()> {
        while device.runs()? {
            sleep(SAMPLE).await;
            self.check_pings().await?;
        }
        Ok(())
    }

    /// Checks that the last PING at each nsqlookupd is recent.
    async fn check_pings(&self) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
        for lookupd in &self.lookupds {
            for (key, producers) in
                lookupd.get_json("/debug").await.as_object().context("/debug is no object")?
            {
                for producer in producers.as_array().into_iter().flatten() {
                    let nanos = producer["last_update"].as_u64().context("no last_update")?;
                    let age = now.saturating_sub(Duration::from_nanos(nanos));
                    ensure!(age < PING_LIMIT, "no PING for {age:?}: {key} {producer}");
                }
            }
        }
        Ok(())
    }

    /// Returns the numbers of the readings in nsqd, in the order of their arrival.
    async fn arrived(&self, topic: &str, readings: u32) -> Result<Vec<u32>> {
        let until =
            Until::distinct(readings as usize).linger(Duration::from_millis(500)).limit(LIMIT);
        let consumed = consume_all(self.nsqd.tcp_address(), topic, "checker", until).await?;
        let numbers = consumed.bodies().map(|body| -> Result<u32> {
            let reading: Value = serde_json::from_slice(body)?;
            ensure!(reading["device"] == "qemu" && reading["values"].is_object(), "{reading}");
            Ok(serde_json::from_value(reading["number"].clone())?)
        });
        let numbers: Vec<u32> = numbers.collect::<Result<_>>()?;
        let texts = consumed.texts();
        println!("in nsqd, topic {topic}:");
        for text in texts.iter().take(2) {
            println!("    > {text}");
        }
        if let [_, _, .., last] = &*texts {
            println!("    > ... {} more ...\n    > {last}", texts.len() - 3);
        }
        Ok(numbers)
    }

    async fn check_last_report(&self, readings: u32) -> Result<()> {
        let until = Until::quiet_for(Duration::from_millis(500));
        let consumed = consume_all(self.nsqd.tcp_address(), REPORTS, "checker", until).await?;
        let last = consumed.bodies().last().context("no report")?;
        let report: Value = serde_json::from_slice(last)?;
        println!("in nsqd, topic {REPORTS}, the last of {}:", consumed.messages.len());
        println!("    > {}", String::from_utf8_lossy(last));
        ensure!(report["readings"] == readings && report["pending"] == 0, "{report}");
        Ok(())
    }

    /// Checks that the topics were registered with both nsqlookupds, and unregistered.
    async fn check_registered(&self) -> Result<()> {
        for lookupd in &self.lookupds {
            let log = lookupd.log();
            for topic in [READINGS, REPORTS, REPLIES] {
                for command in ["REGISTER", "UNREGISTER"] {
                    let line = format!(" {command} category:topic key:{topic} ");
                    ensure!(log.contains(&line), "no{line}in the log of nsqlookupd:\n{log}");
                }
                let listed = lookupd.lookup(topic).await;
                ensure!(listed.is_empty(), "{topic} is still at {listed:?}");
            }
        }
        Ok(())
    }

    /// Waits until an nsqlookupd lists the device; returns the time since `since`.
    async fn listed(&self, index: usize, since: Instant) -> Result<Duration> {
        let producer = self.nsqd.tcp_address().to_string();
        loop {
            if self.lookupds[index].lookup(READINGS).await.contains(&producer) {
                return Ok(since.elapsed());
            }
            ensure!(since.elapsed() < LISTED, "not listed again within {LISTED:?}");
            sleep(Duration::from_millis(2)).await;
        }
    }

    /// Checks that nsqd counted as many messages as the device reports as acknowledged.
    async fn check_counts(&self, numbers: &BTreeMap<String, u64>, topics: &[&str]) -> Result<()> {
        let mut counted = 0;
        for topic in topics {
            let count = self.nsqd.message_count(topic).await;
            println!("nsqd counted {count} messages of topic {topic}");
            ensure!(count > 0, "nothing of {topic} arrived");
            counted += count;
        }
        expect(numbers, "acknowledged", counted..=counted)
    }
}

/// Waits until the device has ended successfully; returns its numbers.
pub(super) async fn finish(device: &mut Device, limit: Duration) -> Result<BTreeMap<String, u64>> {
    let status = device.end(limit).await?;
    ensure!(status.success(), "the device ended with {status}");
    let numbers = device.numbers();
    for name in ["pending", "rejected", "dropped", "expired"] {
        expect(&numbers, name, 0..=0)?;
    }
    Ok(numbers)
}

/// Returns the number of heartbeats that the device answered.
fn nops_of(proxy: &Proxy) -> Result<u64> {
    let bytes = proxy.client_bytes();
    let first = bytes.first().context("nothing was recorded")?;
    Ok(tap::nsqd(first)?.counts().nop as u64)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis() as u64
}
